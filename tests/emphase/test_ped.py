"""PED: calibration, matching, decision and grains against truth, symmetry and recorded patterns."""

import math
from dataclasses import replace

import numpy as np
import pytest
import study
from scipy.spatial.transform import Rotation

import emphase
import helpers

SHARED = study.SHARED
PHASES = ("layered", "spinel", "rocksalt", "llzo")
OPTICS = {"beam_energy_keV": 200.0, "precession_deg": 0.5, "excitation_width_invA": 0.001}


@pytest.fixture(scope="module")
def crystals():
    return [helpers.phase_crystal(p) for p in PHASES]


@pytest.fixture(scope="module")
def scan(crystals):
    """A small scan of known scale without overlap, bright enough for every pattern to be decidable on average."""
    return emphase.simulate.ped_scan(
        np.random.default_rng(3), crystals, (9, 9), emphase.simulate.PedScene(0.25, 0.15, n_grains=3, overlap=0.0), electrons=12000
    )


@pytest.fixture(scope="module")
def banks(crystals):
    return [emphase.ped.template_bank(c, max_g_invA=1.5, **OPTICS) for c in crystals]


@pytest.fixture(scope="module")
def calibration(scan):
    patterns, truth = scan
    mean, variance, _ = emphase.ped.scan.scan_statistics(patterns)
    mask = emphase.ped.scan.hot_and_dead_pixels(mean, variance, 81, 12)
    return emphase.ped.Calibration(0.02178, np.eye(2), truth["centre_px"], mask, 1.4)


# --- crystallography of the templates ------------------------------------------------------


@pytest.mark.parametrize("phase", ["layered", "rocksalt", "li2co3"])
def test_zone_axes_cover_the_sphere_up_to_symmetry(phase):
    crystal = helpers.phase_crystal(phase)
    operators = np.asarray(crystal.orix_phase().point_group.laue_proper_subgroup.to_matrix()).reshape(-1, 3, 3)
    zones = emphase.ped.templates.zone_axes(operators, 3.0)
    directions = np.random.default_rng(0).standard_normal((300, 3))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    nearest = np.max(np.einsum("oij,nj->noi", operators, directions) @ zones.T, axis=(1, 2))
    assert np.degrees(np.arccos(nearest.min())) < 3.0
    assert len(zones) == pytest.approx(4 * math.pi / len(operators) / (math.radians(3) ** 2 * math.sqrt(3) / 2), rel=0.05)


def test_excited_reflections_of_a_zone_axis_obey_the_zone_law(crystals):
    bank = emphase.ped.template_bank(crystals[2], max_g_invA=1.0, **(OPTICS | {"precession_deg": 0.0, "excitation_width_invA": 1e-3}))
    rotation = emphase.ped.templates.rotation_to_zone(np.array([1.0, 1.0, 0.0]))
    calibration = emphase.ped.Calibration(0.02, np.eye(2), np.full((1, 1, 2), 71.5), np.zeros((144, 144), bool), 1.3)
    _, _, hkl = emphase.ped.predicted_spots(bank, rotation, np.array([71.5, 71.5]), calibration, min_relative_intensity=0.0)
    low = hkl[np.linalg.norm(hkl, axis=1) < 2.5]
    assert len(low) >= 6
    assert (low.sum(axis=1) % 1 == 0).all() and (low[:, 0] + low[:, 1] == 0).all()


def test_layered_and_cubic_share_their_oxygen_lattice(crystals):
    layered, _, rocksalt, _ = crystals
    relation = emphase.ped.families.orientation_relations(layered, rocksalt)
    assert relation.shape == (1, 3, 3)
    for hexagonal, cubic in (((1, 0, 4), (2, 0, 0)), ((1, 1, 0), (2, 0, -2)), ((0, 0, 6), (1, 1, 1))):
        a = relation[0] @ (np.array(hexagonal) @ layered.reciprocal)
        b = np.array(cubic) @ rocksalt.reciprocal
        a, b = np.sort(np.abs(a)), np.sort(np.abs(b))
        assert math.degrees(math.acos(a @ b / np.linalg.norm(a) / np.linalg.norm(b))) < 1.0
        assert np.linalg.norm(a) == pytest.approx(np.linalg.norm(b), rel=0.031)  # the cells themselves differ by 3.0 % along [110]hex
    assert emphase.ped.families.orientation_relations(rocksalt, layered).shape == (4, 3, 3)


def test_rotations_come_back_from_orix_as_they_went(tmp_path, crystals):
    """Sample-to-crystal matrices survive the CrystalMap, and orix turns R-3m reflections into the frame of the sample as we do."""
    from orix import io
    from orix.vector import Miller

    rotation = Rotation.random(6, rng=np.random.default_rng(1)).as_matrix().reshape(2, 3, 3, 3)
    phase_id = np.array([[0, 0, 2], [-1, 3, 1]])
    crystal_map = emphase.orientations.to_crystal_map(phase_id, rotation, crystals, 8.0, {"score": np.arange(6.0).reshape(2, 3)})
    emphase.orientations.save_crystal_map(tmp_path / "map.h5", crystal_map)
    again = io.load(str(tmp_path / "map.h5"))
    assert again.phase_id.tolist() == [0, 0, 2, -1, 3, 1]
    assert again.prop["score"].tolist() == list(range(6))
    assert np.allclose(again.rotations[0].to_matrix()[0], rotation[0, 0], atol=1e-6)
    miller = Miller(hkl=[[1, 0, 4]], phase=again.phases[0])
    ours = (np.array([1, 0, 4]) @ crystals[0].reciprocal) @ rotation[0, 1]
    assert np.allclose((~again.rotations[1] * miller).data.ravel(), ours, atol=1e-6)


def test_a_structure_dropped_beside_the_data_is_a_candidate_and_is_found(tmp_path, monkeypatch, crystals, calibration):
    """A perovskite that the project has not, LaNiO3 with Co for Ni and a cell 0.3 % smaller, takes the place of LLZO in a scan."""
    dropped = tmp_path / "phases" / "LaCoO3.cif"
    dropped.parent.mkdir()
    text = helpers.phase_file("lanio3").read_text(encoding="utf-8").replace(" Ni ", " Co ")
    dropped.write_text(text.replace("5.4573", "5.4433").replace("13.1462", "13.0932"), encoding="utf-8")
    monkeypatch.setattr(helpers, "BANK_CACHE", tmp_path / "banks")
    ped = helpers.Ped(file="ped.blo", beam_energy_keV=200.0, precession_deg=0.5, phases=["layered", "rocksalt", "LaCoO3"])
    candidates = helpers.scan_banks(ped, {"max_g_invA": 1.5, "excitation_width_invA": 0.001}, tmp_path)
    patterns, truth = emphase.simulate.ped_scan(
        np.random.default_rng(3), [*crystals[:3], emphase.crystals.read_crystal(dropped)], (9, 9), emphase.simulate.PedScene(overlap=0.0)
    )
    decision, _, _ = study.map_scan(patterns, replace(calibration, centre_px=truth["centre_px"]), candidates)
    true = truth["phase"] == 3
    assert true.sum() > 10
    assert (decision["phase_id"][true] == 2).mean() > 0.9 and (decision["phase_id"][truth["phase"] == 0] == 2).mean() < 0.1


# --- calibration ---------------------------------------------------------------------------


def test_direct_beam_follows_the_descan(scan, calibration):
    patterns, truth = scan
    measured, intensity = emphase.ped.scan.direct_beam_positions(patterns, calibration.mask)
    smooth, scatter = emphase.ped.scan.smooth_descan(measured, intensity)
    assert np.abs(smooth - truth["centre_px"]).max() < 0.1
    assert scatter < 0.15


def test_a_saturated_beam_on_a_bright_halo_is_found():
    yy, xx = np.indices((64, 64))
    radius = np.hypot(yy - 33.0, xx - 30.0)
    image = np.minimum(140 * np.exp(-radius / 15) + 400 * np.exp(-0.5 * (radius / 3) ** 2), 255).astype(np.uint8)
    measured, intensity = emphase.ped.scan.direct_beam_positions(np.tile(image, (2, 3, 1, 1)), np.zeros((64, 64), bool))
    assert np.abs(measured - (33, 30)).max() < 0.1 and (intensity > 0).all()
    with pytest.raises(emphase.EmphaseError, match="no direct beam stands out"):
        emphase.ped.scan.smooth_descan(measured, 0 * intensity)


def test_descan_ignores_blanked_patterns():
    centre = np.stack(np.meshgrid(np.linspace(70, 73, 12), np.linspace(69, 70, 10), indexing="ij"), axis=-1)
    odd = centre.copy()
    odd[2, 3] += 20
    intensity = np.full((12, 10), 100.0)
    intensity[5, 5], odd[5, 5] = 0.0, (0, 0)
    smooth, _ = emphase.ped.scan.smooth_descan(odd, intensity)
    assert np.abs(smooth - centre).max() < 1e-6


def test_a_hot_pixel_beside_the_direct_beam_is_masked_and_the_beam_is_not():
    rng = np.random.default_rng(8)
    yy, xx = np.indices((144, 144))
    for sigma in (0.6, 1.5):
        beam = 400 * np.exp(-((yy - 71.0) ** 2 + (xx - 72.0) ** 2) / (2 * sigma**2))
        patterns = rng.poisson(np.tile(beam + 0.3, (10, 10, 1, 1)))
        patterns[:, :, 79, 65] = rng.integers(30, 120, (10, 10))
        mean, variance, _ = emphase.ped.scan.scan_statistics(patterns)
        assert np.argwhere(emphase.ped.scan.hot_and_dead_pixels(mean, variance, 100, 11.5)).tolist() == [[79, 65]]


def test_hot_pixels_are_masked_and_spots_are_not(scan, calibration):
    patterns, _ = scan
    hot = np.argwhere(np.median(patterns.reshape(-1, *patterns.shape[2:]), axis=0) > 25)
    hot = hot[np.hypot(*(hot - 71.5).T) > 12]
    assert all(calibration.mask[tuple(p)] for p in hot)
    assert calibration.mask.sum() <= len(hot) + 2


def test_scale_is_found_from_the_scan(scan, calibration, banks):
    patterns, _ = scan
    wrong = replace(calibration, scale_invA_per_px=0.02178 * 1.021)
    chosen, images = emphase.ped.calibration.spread_patterns(patterns, wrong, 16)
    refined, fit = emphase.ped.refinement.refine_calibration(images, calibration.centre_px.reshape(-1, 2)[chosen], wrong, banks)
    assert refined.scale_invA_per_px == pytest.approx(0.02178, rel=0.0015)
    assert refined.ellipticity < 0.005
    assert fit.residual_px < 0.6


def test_one_call_calibrates_a_scan(scan, crystals):
    """From a scale 1.2 % off, and what is kept where the same fit cannot be trusted."""
    patterns, truth = scan
    found = emphase.ped.calibrate(patterns, crystals, emphase.ped.Optics(0.02178 * 1.012, 200.0, 0.5), n_patterns=16, search=0.02)
    assert found.trusted and found.calibration is found.refined
    assert found.calibration.scale_invA_per_px == pytest.approx(0.02178, rel=0.0015)
    assert np.abs(found.calibration.centre_px - truth["centre_px"]).max() < 0.1
    assert found.images.shape == (16, *patterns.shape[2:]) and len(found.fit.sweep) == 9
    assert [bank.crystal.name for bank in found.banks] == list(PHASES) and found.optics.max_g_invA == pytest.approx(1.6, abs=0.1)
    edge = replace(found.fit, residual_px=0.9, n_patterns=4)
    findings = emphase.ped.refinement.fit_findings(edge, found.refined, 0.022)
    assert "0.90 px, more than 0.8 px" in findings[0] and "only 4 patterns" in findings[1]


def test_a_scale_beyond_the_search_is_found_where_two_phases_show_it(scan, crystals):
    """The rings suggest it."""
    given = 0.02178 * 1.07
    optics = emphase.ped.Optics(given, 200.0, 0.5, max_g_invA=1.5)
    found = emphase.ped.calibrate(scan[0], crystals, optics, n_patterns=24, search=0.005)
    assert found.trusted and found.calibration.scale_invA_per_px == pytest.approx(0.02178, rel=0.0015)
    alone = emphase.ped.calibrate(scan[0], crystals[3:], optics, n_patterns=24, search=0.005)
    assert not alone.trusted and alone.calibration.scale_invA_per_px == given and alone.calibration.place_strain == 0.02
    assert alone.calibration.ellipticity == 0


# --- matching ------------------------------------------------------------------------------


def test_phases_and_orientations_against_truth(scan, calibration, banks):
    patterns, truth = scan
    decision, _, _ = study.map_scan(patterns, calibration, banks)
    crystal = truth["phase"] >= 0
    right = decision["phase_id"] == truth["phase"]
    assert right[crystal].mean() > 0.97
    assert (decision["phase_id"][~crystal] == -1).mean() > 0.8
    sure = decision["decided"] & (decision["phase_margin"] > 10)
    assert right[sure & crystal].mean() > 0.98
    angles = [
        emphase.ped.grains.misorientations_deg(decision["rotation"][y, x], truth["rotation"][y, x], banks[p].operators)
        for (y, x), p in np.ndenumerate(truth["phase"])
        if p >= 0 and right[y, x]
    ]
    assert np.median(angles) < 0.3


def indexing(support, shares=(), *, sets=None, prior=0.0, sd=0.05, thickness=1.0):
    """What was found in one pattern: ``support`` of phases a, b, c, and crystals as (phase, share); no chance, no neighbours.

    ``sets`` are the values of the best sets in which each phase is the largest; without, equal.
    """
    support = np.asarray(support, float)[:, None, None]
    p = len(support)
    part = lambda values, nothing: np.array([*values, *[nothing] * (3 - len(values))])[None, None]
    first = shares[0][0] if shares else int(np.argmax(support))
    return emphase.ped.Indexing(
        names=list("abc"[:p]),
        rotation=np.tile(np.eye(3), (p, 1, 1, 1, 1)),
        evidence=support,
        runner_up=support - 4,
        set_value=np.zeros_like(support) if sets is None else np.asarray(sets, float)[:, None, None],
        chance=np.zeros(p),
        winner=np.full((1, 1), first),
        prior=np.full((1, 1), prior),
        thickness=np.full((1, 1), thickness),
        afterglow=np.full((1, 1), False),
        part_phase=part([k for k, _ in shares], -1),
        part_share=part([share for _, share in shares], 0.0),
        part_sd=part([sd] * len(shares), 0.0),
        part_rotation=np.tile(np.eye(3), (1, 1, 3, 1, 1)),
        part_lattice=part([0] * len(shares), -1),
        part_crystal=part(list(range(len(shares))), -1),
    )


@pytest.mark.parametrize(
    ("found", "correlation", "phase", "decided"),
    [
        (indexing([9.0, 5.0, 1.0], [(0, 1.0)]), 0.8, 0, True),  # a margin of 4 nats
        (indexing([9.0, 7.0, 1.0], [(0, 1.0)]), 0.8, 0, False),  # of 2
        (indexing([9.0, 5.0, 1.0], [(0, 1.0)]), 0.3, -1, False),  # too little correlation to be indexed, ...
        (indexing([9.0, 5.0, 1.0], [(0, 1.0)], prior=3.0), 0.3, 0, True),  # ... but on the neighbours' lattice
        (indexing([1.5, 0.0, 0.0], [(0, 1.0)]), 0.8, -1, False),  # no more than chance, ...
        (indexing([1.5, 0.0, 0.0], [(0, 1.0)], prior=1.5), 0.8, 0, False),  # ... but for the neighbours
        (indexing([5.0, 9.0, 1.0], [(0, 1.0)]), 0.8, 0, False),  # the neighbours' choice against the evidence
        (indexing([9.0, 5.0, 1.0], [(0, 1.0)], thickness=0.02), 0.8, -1, False),  # next to nothing of the crystal
        (indexing([9.0, 5.0, 1.0], [(1, 0.8), (0, 0.2)]), 0.8, 1, True),  # of two that overlap the larger, whatever the evidence alone, ...
        (
            indexing([9.0, 5.0, 1.0], [(1, 0.8), (0, 0.2)], sets=[4.0, 0.0, 0.0]),
            0.8,
            1,
            False,
        ),  # ... unless sets speak against it
        (indexing([9.0, 5.0, 1.0], [(1, 0.51), (0, 0.49)]), 0.8, 1, False),  # which may be the smaller within the errors
        (indexing([9.0], [(0, 1.0)]), 0.8, 0, True),  # a single candidate against background
    ],
)
def test_what_indexes_and_decides_a_pattern(found, correlation, phase, decided):
    maps = emphase.ped.decide.decide_phases(found, np.full((1, 1), correlation), np.ones((1, 1), bool))
    assert maps["phase_id"].item() == phase and maps["decided"].item() == decided
    np.testing.assert_allclose(maps["probability"].sum(axis=0), 1)


def test_probabilities_follow_from_support_and_from_the_errors_of_shares():
    """Odds of e⁴ for one crystal; for two, the normal law of the difference of their shares."""
    maps = emphase.ped.decide.decide_phases(indexing([9.0, 5.0], [(0, 1.0)]), np.ones((1, 1)), np.ones((1, 1), bool))
    np.testing.assert_allclose(maps["probability"].ravel(), [1 / (1 + np.exp(-4)), 1 / (1 + np.exp(4))])
    assert maps["phase_margin"].item() == 4 and maps["orientation_margin"].item() == 4
    maps = emphase.ped.decide.decide_phases(indexing([9.0, 5.0], [(0, 0.6), (1, 0.4)], sd=0.08), np.ones((1, 1)), np.ones((1, 1), bool))
    sd = math.hypot(0.08, emphase.ped.leading.OPTIONS.model_sd) * math.sqrt(2)
    np.testing.assert_allclose(maps["probability"][0].item(), (1 + math.erf(0.2 / sd / math.sqrt(2))) / 2)
    assert maps["second_phase_id"].item() == 1 and maps["second_share"].item() == 0.4


def test_the_first_crystal_of_a_set_is_cheap_and_the_largest_bonus_counts():
    from emphase.ped import overlap

    candidates = overlap._no_candidates(1)
    candidates.cost[:3] = overlap.OPTIONS.near_nats, overlap.OPTIONS.far_nats, overlap.OPTIONS.far_nats + 4  # the last one chosen freely
    candidates.bonus[:3] = 3.0, 0.0, 1.5
    for members, price in (
        ([0], 1.5 - 3),
        ([1], 2),
        ([2], 2 - 1.5),
        ([0, 1], 1.5 + 8 - 3),
        ([1, 2], 2 + 12 - 1.5),
        ([0, 1, 2], 1.5 + 8 + 12 - 3),
    ):
        assert overlap._price(np.array(members), candidates) == price


def test_tiles_cover_a_scan_once_and_overlap_by_their_margin(monkeypatch):
    from emphase.ped import tiles

    monkeypatch.setattr(tiles, "OPTIONS", tiles.TileOptions(side=7, margin=2))
    covered, number = np.zeros((20, 9), int), np.zeros((20, 9, 1), int)
    found = tiles._tiles(20, 9).values()
    for tile in found:
        covered[tile.core] += 1
        assert covered[tile.outer][tile.inner].shape == covered[tile.core].shape
        assert all(o.start == max(0, c.start - 2) for o, c in zip(tile.outer, tile.core, strict=True))
    assert len(found) > 2 and (covered == 1).all()
    assert set(tiles._numbered_on(number, [tile.core for tile in found]).ravel()) == set(range(len(found)))


def test_same_input_same_result(scan, calibration, banks):
    part = scan[0][:2, :3]
    local = replace(calibration, centre_px=calibration.centre_px[:2, :3])
    first, second = (study.index_scan(part, local, banks[1:3])[0] for _ in range(2))
    assert np.array_equal(first.evidence, second.evidence) and np.array_equal(first.rotation, second.rotation)


def test_background_alone_is_not_indexed(calibration, banks):
    rng = np.random.default_rng(8)
    radius = np.hypot(*np.indices((144, 144)) - 71.5)
    expected = 2.5 * np.exp(-radius / 20) + 200 * np.exp(-0.5 * (radius / 1.5) ** 2)
    patterns = np.minimum(rng.poisson(expected, (4, 5, 144, 144)), 255).astype(np.uint8)
    local = replace(calibration, centre_px=np.full((4, 5, 2), 71.5))
    decision, _, _ = study.map_scan(patterns, local, banks)
    assert (decision["phase_id"] == -1).mean() >= 0.9


def pattern_of(parts, calibration, rng, electrons=6000.0, shape=(144, 144)):
    """A pattern (ky, kx) of several crystals: ``parts`` holds (bank, rotation, share); strengths off by 30 % each, Poisson noise."""
    centre = calibration.centre_px[0, 0]
    radius = np.hypot(*(np.indices(shape) - centre[:, None, None]))
    image = 0.3 * electrons * np.exp(-radius / 20) / (2 * math.pi * 20**2)
    yy, xx = np.indices(shape)
    for bank, rotation, share in parts:
        places, strength, _ = emphase.ped.predicted_spots(bank, rotation, centre, calibration, min_relative_intensity=0.001)
        strength = strength * rng.lognormal(0, 0.3, len(strength))
        for (y, x), s in zip(places, strength / strength.sum(), strict=True):
            image += 0.3 * electrons * share * s * np.exp(-0.5 * ((yy - y) ** 2 + (xx - x) ** 2) / 1.4**2) / (2 * math.pi * 1.4**2)
    return np.minimum(rng.poisson(image), 255).astype(np.uint8)


@pytest.fixture(scope="module")
def still():
    """The calibration of a scan without descan."""
    return emphase.ped.Calibration(0.02178, np.eye(2), np.full((8, 8, 2), 71.5), np.zeros((144, 144), bool), 1.4)


def test_rocking_curve_is_a_lorentzian_on_the_precession_cone():
    s, cone, width = np.linspace(-0.02, 0.02, 9)[:, None], 0.005, 0.0007
    turn = (np.arange(20000) + 0.5) * 2 * math.pi / 20000
    numeric = np.mean(width / math.pi / ((s - cone * np.cos(turn)) ** 2 + width**2), axis=1)
    assert np.allclose(emphase.ped.templates.rocking_curve(s[:, 0], cone, width), numeric, rtol=1e-6)
    everywhere = np.linspace(-20, 20, 400001)
    assert np.trapezoid(emphase.ped.templates.rocking_curve(everywhere, cone, width), everywhere) == pytest.approx(1, abs=1e-3)


def test_banks_are_kept_by_content_and_made_again_when_damaged(tmp_path, crystals):
    options = OPTICS | {"max_g_invA": 1.0, "step_deg": 4.0, "cache": tmp_path}
    first = emphase.ped.template_bank(crystals[2], **options)
    (kept,) = tmp_path.iterdir()
    for damage in (None, b"not an archive", kept.read_bytes()[:200]):
        if damage is not None:
            kept.write_bytes(damage)
        again = emphase.ped.template_bank(crystals[2], **options)
        assert all(np.array_equal(a, b) for a, b in zip(first.coarse, again.coarse, strict=True))
    emphase.ped.template_bank(crystals[2], **(options | {"precession_deg": 0.7}))
    assert len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize("electrons", [1000, 4000, 16000])
def test_defaults_hold_whatever_the_dose(crystals, banks, electrons):
    """No knob follows the dose: from few spots of ten counts to saturated ones."""
    rng = np.random.default_rng(7)
    patterns, truth = emphase.simulate.ped_scan(
        rng,
        crystals,
        (12, 12),
        emphase.simulate.PedScene(0.3, 0.15, n_grains=4, overlap=0.0),
        electrons=electrons,
        recording=emphase.simulate.PedRecording(hot_pixels=0),
    )
    calibration = emphase.ped.Calibration(0.02178, np.eye(2), truth["centre_px"], np.zeros((144, 144), bool), 1.4)
    decision, _, _ = study.map_scan(patterns, calibration, banks)
    crystal = truth["phase"] >= 0
    right = decision["phase_id"] == truth["phase"]
    assert right[crystal].mean() > 0.93
    assert right[crystal & decision["decided"]].mean() > 0.97


def test_two_crystals_in_a_pattern_do_not_become_a_third(banks, still):
    """Layered over LLZO, and layered over rocksalt on its lattice: the larger share names the pattern, the other one is reported."""
    rng = np.random.default_rng(11)
    layered, _, rocksalt, llzo = banks
    turns = Rotation.random(2, rng=rng).as_matrix()
    on_lattice = emphase.ped.families.orientation_relations(layered.crystal, rocksalt.crystal)[0] @ turns[0]
    for other, rotation, number in ((llzo, turns[1], 3), (rocksalt, on_lattice, 2)):
        patterns = np.empty((4, 5, 144, 144), np.uint8)
        for y, x in np.ndindex(4, 5):
            share = (0.0, 0.25, 0.5, 0.75, 1.0)[x]
            parts = [(layered, turns[0], 1 - share), (other, rotation, share)]
            patterns[y, x] = pattern_of([p for p in parts if p[2] > 0], still, rng)
        local = replace(still, centre_px=still.centre_px[:4, :5])
        decision, _, _ = study.map_scan(patterns, local, banks)
        assert (decision["phase_id"][:, :2] == 0).all() and (decision["phase_id"][:, 3:] == number).all()
        assert np.isin(decision["phase_id"], (0, number)).all()
        assert (decision["second_phase_id"][:, 1] == number).mean() >= 0.75 and (decision["second_phase_id"][:, 3] == 0).mean() >= 0.75
        assert np.isin(decision["second_phase_id"][:, [0, 4]], (-1, 0, number)).mean() >= 0.75
        assert np.median(decision["second_share"][:, [1, 3]]) == pytest.approx(0.25, abs=0.1)


def test_a_zone_that_cannot_discriminate_says_so(banks, still):
    """Along [001]hex || [111]cubic layered and rocksalt show the same spots; along [100]hex || [1-10] the 003 row tells them apart."""
    layered, _, rocksalt, _ = banks
    relation = emphase.ped.families.orientation_relations(layered.crystal, rocksalt.crystal)[0]
    low = [emphase.ped.template_bank(b.crystal, max_g_invA=0.8, **OPTICS) for b in (layered, rocksalt)]
    counts = []
    for zone in ((0.0, 0.0, 1.0), (1.0, 0.0, 0.0)):
        rotation = emphase.ped.templates.rotation_to_zone(np.array(zone))
        image = pattern_of([(low[0], rotation, 1.0)], still, np.random.default_rng(3), electrons=20000)
        local = replace(still, centre_px=still.centre_px[:1, :1])
        spots = emphase.ped.find_spots(image[None], local.centre_px[0], local)
        rotations = np.stack([rotation, relation @ rotation])[:, None, None]
        counts.append(emphase.ped.maps.discriminating_spots(spots, local, low, np.zeros((1, 1), int), rotations)[0, 0])
    assert counts[0] == 0 and counts[1] >= 2


def test_neighbours_can_be_switched_off(scan, calibration, banks):
    """Then a pattern's result does not depend on what lies around it; only what is chance comes from the whole scan."""
    patterns = scan[0][:3, :4]
    local = replace(calibration, centre_px=calibration.centre_px[:3, :4])
    turned = replace(calibration, centre_px=local.centre_px[::-1, ::-1])
    options = {"neighbours": False, "mixtures": False}
    first, second = (
        study.map_scan(patterns, local, banks, **options)[1],
        study.map_scan(patterns[::-1, ::-1], turned, banks, **options)[1],
    )
    assert (first.evidence == second.evidence[:, ::-1, ::-1]).mean() > 0.9


def test_lazy_scans_give_what_arrays_give(scan, calibration, banks):
    import dask.array as da

    part = scan[0][:3, :4]
    local = replace(calibration, centre_px=calibration.centre_px[:3, :4])
    lazy = study.map_scan(da.from_array(part, chunks=(1, 2, 144, 144)), local, banks)[0]
    assert all(np.array_equal(a, b) for a, b in zip(lazy.values(), study.map_scan(part, local, banks)[0].values(), strict=True))


@pytest.mark.parametrize("kind", ["saturated", "zero", "masked", "flat", "one bright pixel"])
def test_patterns_without_diffraction_are_not_indexed(scan, calibration, banks, kind):
    patterns = scan[0][:2, :2].copy()
    local = replace(calibration, centre_px=calibration.centre_px[:2, :2])
    if kind == "masked":
        local = replace(local, mask=np.ones((144, 144), bool))
    else:
        patterns[:] = {"saturated": 255, "zero": 0, "flat": 7, "one bright pixel": 0}[kind]
        if kind == "one bright pixel":
            patterns[:, :, 100, 90] = 200
    decision, found, spots = study.map_scan(patterns, local, banks)
    assert (decision["phase_id"] == -1).all() and not decision["decided"].any()
    assert np.isfinite(decision["probability"]).all() and np.isfinite(decision["phase_margin"]).all()
    assert (emphase.ped.maps.discriminating_spots(spots, local, banks, decision["phase_id"], found.rotation) == 0).all()


def test_one_pattern_alone_is_indexed(scan, calibration, banks):
    _, truth = scan
    y, x = np.argwhere(truth["phase"] == 3)[0]
    local = replace(calibration, centre_px=calibration.centre_px[y : y + 1, x : x + 1])
    decision, _, _ = study.map_scan(scan[0][y : y + 1, x : x + 1], local, banks)
    assert decision["phase_id"][0, 0] == 3 and decision["decided"][0, 0]


def test_a_missing_candidate_makes_no_confident_map(scan, calibration, banks):
    """LLZO patterns offered only the phases of the cathode: few find a place, and hardly one is called decided."""
    patterns, truth = scan
    decision, _, _ = study.map_scan(patterns, calibration, banks[:3])
    garnet = truth["phase"] == 3
    assert decision["decided"][garnet].mean() < 0.1
    assert decision["decided"][(truth["phase"] >= 0) & ~garnet].mean() > 0.9


def test_grains_join_neighbours_of_one_orientation(banks):
    turn = Rotation.from_euler("z", [[0], [2], [20]], degrees=True).as_matrix()
    rotation = turn[np.array([[0, 1, 2], [0, 1, 2]])]
    phase_id = np.array([[2, 2, 2], [2, -1, 2]])
    grains = emphase.ped.segment_grains(phase_id, rotation, [b.operators for b in banks])
    assert grains[0, 0] == grains[0, 1] == grains[1, 0] != grains[0, 2] == grains[1, 2]
    assert grains[1, 1] == -1


@pytest.mark.parametrize(
    ("scale", "message"),
    [(0.2178, "is the scale in 1/nm"), (0.0005, "is the scale in 1/nm")],
)
def test_a_scale_wrong_by_ten_is_refused(scale, message):
    with pytest.raises(emphase.EmphaseError, match=message):
        emphase.ped.scan.check_patterns(np.zeros((2, 2, 144, 144)), scale, "ped.blo")


def test_scans_without_counts_are_refused():
    with pytest.raises(emphase.EmphaseError, match="all patterns are zero"):
        emphase.ped.scan.scan_statistics(np.zeros((2, 2, 40, 40)))
    broken = np.ones((2, 2, 40, 40))
    broken[1, 0, 3, 3] = np.nan
    with pytest.raises(emphase.EmphaseError, match="line 1 holds NaN"):
        emphase.ped.scan.scan_statistics(broken)


# --- recorded patterns ------------------------------------------------------------------------


@pytest.mark.skipif(not (SHARED / "realdata" / "ped_steel").is_dir(), reason="recorded PED of steel is not here")
def test_recorded_steel_is_austenite_and_not_g_phase():
    """Real camera noise, a ring distorted by some 3 %, and a phase with 30 times more reflections that must not win by them."""
    folder = SHARED / "realdata" / "ped_steel"
    signal = emphase.frames.load_recording(folder / "subset_data.hspy", navigation_dimension=2)
    patterns = np.asarray(signal.data)
    crystals = [emphase.crystals.read_crystal(folder / f"{n}.cif", n) for n in ("austeniteLP", "g-phaseLP")]
    mean, variance, _ = emphase.ped.scan.scan_statistics(patterns)
    mask = emphase.ped.scan.hot_and_dead_pixels(mean, variance, 4, 20)
    measured, _ = emphase.ped.scan.direct_beam_positions(patterns, mask)
    gain, offset, _ = emphase.ped.noise.detector_noise(patterns.reshape(-1, *patterns.shape[2:]), mask)
    calibration = emphase.ped.Calibration(0.01261, np.eye(2), measured, mask, 1.7, gain, offset, place_strain=0.02)
    banks = [emphase.ped.template_bank(c, max_g_invA=1.4, **(OPTICS | {"excitation_width_invA": 0.004})) for c in crystals]
    decision, found, spots = study.map_scan(patterns, calibration, banks)
    assert (decision["phase_id"] == 0).all()
    assert (found.support[0] > 50).all() and (found.support[1] < 0).all()
    # The crystal is seen along <110>: of its eight clearest spots within 1 1/Å six are, within 2 px, reflections of that zone.
    # A pair is not austenite's.
    zone = np.sort(np.abs(decision["rotation"][0, 0][:, 2]))
    assert (
        np.degrees(np.arccos(zone @ np.array([0, 1, 1]) / math.sqrt(2))) < 5
    )  # it is tilted off the zone: Friedel pairs differ by a factor of two
    places, _, _ = emphase.ped.predicted_spots(banks[0], decision["rotation"][0, 0], measured[0, 0], calibration)
    seen = spots.table[0, :, :2][np.hypot(*(spots.table[0, :, :2] - measured[0, 0]).T) * 0.01261 < 1.0][:8]
    off = np.hypot(*(seen[:, None] - places[None]).transpose(2, 0, 1)).min(axis=1)
    assert (off < 2).sum() >= 6


@pytest.mark.parametrize(
    ("families", "why"),
    [
        (("layered", "rocksalt"), "expected families of names"),
        ("layered", "expected families of names"),
        ([("layered", "rocksalt"), ("spinel", "rocksalt")], "'rocksalt' stands in two"),
    ],
)
def test_families_that_are_none(families, why):
    with pytest.raises(emphase.EmphaseError, match=why):
        emphase.ped.families.lattice_families(["layered", "rocksalt"], families)


def test_what_does_not_belong_together_is_refused():
    crystal = helpers.phase_crystal("rocksalt")
    patterns = np.ones((2, 3, 64, 64), np.uint8)
    optics = emphase.ped.Optics(scale_invA_per_px=0.02, beam_energy_keV=200, precession_deg=0.5)
    bank = emphase.ped.template_bank(crystal, max_g_invA=0.8, beam_energy_keV=200, precession_deg=0.5, excitation_width_invA=0.001)
    of_another = emphase.ped.Calibration(0.02, np.eye(2), np.full((4, 4, 2), 32.0), np.zeros((64, 64), bool), 1.3)
    with pytest.raises(emphase.EmphaseError, match="of a scan of 4 × 4 × 64 × 64, but the patterns are 2 × 3 × 64 × 64"):
        emphase.ped.map_scan(patterns, of_another, [bank])
    own = emphase.ped.Calibration(0.02, np.eye(2), np.full((2, 3, 2), 32.0), np.zeros((64, 64), bool), 1.3)
    for banks in ([], [bank, bank]):
        with pytest.raises(emphase.EmphaseError, match="expected one or more of different names"):
            emphase.ped.map_scan(patterns, own, banks)
    for crystals, settings, why in (
        ([], optics, "expected one `Crystal` or more"),
        (["rocksalt"], optics, "expected one `Crystal` or more"),
        ([crystal], optics._replace(beam_energy_keV=200_000), "beam_energy_keV: got 200000, expected 20 to 3000"),
        ([crystal], optics._replace(scale_invA_per_px=-1), "scale_invA_per_px: got -1"),
    ):
        with pytest.raises(emphase.EmphaseError, match=why):
            emphase.ped.calibrate(patterns, crystals, settings)
    with pytest.raises(emphase.EmphaseError, match="expected a scan"):
        emphase.ped.calibrate("ped.hspy", [crystal], optics)
