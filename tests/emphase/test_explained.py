"""What no candidate predicts: a missing phase is found out and named, and right ones stay decided."""

from types import SimpleNamespace

import metals
import numpy as np
import pytest
import study

import emphase
import helpers
from emphase.ped.explained import OPTIONS, believable, evidence_of_others, unexplained

SHARED = study.SHARED
PHASES = ("layered", "spinel", "rocksalt", "llzo")
OPTICS = emphase.ped.Optics(metals.SCALE_INVA_PER_PX, 200.0, 0.5, max_g_invA=1.5)


def mapped(patterns, crystals, optics=OPTICS, **options):
    """A scan through the whole chain: calibrated and mapped with these candidates."""
    scan = emphase.ped.calibrate(patterns, crystals, optics)
    maps, found, spots = emphase.ped.map_scan(patterns, scan.calibration, scan.banks, **options)
    missing = unexplained(spots, scan.calibration, scan.banks, found, maps)
    return SimpleNamespace(scan=scan, maps=maps, found=found, spots=spots, missing=missing)


@pytest.fixture(scope="module")
def silver():
    return metals.scan_of(metals.SILVER, seed=2)


@pytest.fixture(scope="module")
def composite():
    """A scan of layered, spinel, rocksalt and garnet, and its truth."""
    crystals = [helpers.phase_crystal(p) for p in PHASES]
    scene = emphase.simulate.PedScene(0.2, 0.1, n_grains=5, overlap=0.4)
    return emphase.simulate.ped_scan(np.random.default_rng(8), crystals, (14, 14), scene, electrons=6000)


def test_a_metal_among_the_candidates_is_decided(silver):
    result = mapped(silver, [metals.SILVER, metals.TUNGSTEN])
    assert (result.maps["phase_id"] == 0).mean() > 0.95
    assert result.maps["decided"].mean() > 0.9
    assert not result.missing.phase_is_missing and result.missing.explained_share > 0.97


@pytest.mark.parametrize(
    "candidates",
    [(metals.COPPER, metals.TUNGSTEN, metals.TITANIUM), (metals.LEAD, metals.IRON, metals.MAGNESIUM), (metals.IRON,)],
    ids=lambda crystals: ", ".join(c.name for c in crystals),
)
def test_a_metal_that_is_no_candidate_is_found_out_and_named(silver, candidates):
    """Another fcc, a bcc and an hcp: some patterns fit one of them by luck, and none is decided."""
    result = mapped(silver, list(candidates))
    assert result.maps["decided"].mean() <= 0.02
    assert result.missing.phase_is_missing and result.missing.explained_share < 0.7
    others = emphase.ped.calibration.phase_banks([metals.COPPER, metals.LEAD, metals.SILVER], OPTICS)
    others = [bank for bank in others if bank.crystal not in candidates]
    gain = evidence_of_others(result.spots, result.scan.calibration, result.scan.banks, others, result.missing)
    assert next(iter(gain)) == "Ag" and gain["Ag"] > 3


def test_without_the_garnet_its_patterns_are_not_decided_and_the_others_are(composite):
    patterns, truth = composite
    every = mapped(patterns, [helpers.phase_crystal(p) for p in PHASES], families=helpers.FAMILIES)
    fewer = mapped(patterns, [helpers.phase_crystal(p) for p in PHASES[:3]], families=helpers.FAMILIES)
    garnet, oxide = truth["phase"] == 3, np.isin(truth["phase"], (0, 1, 2))
    assert not every.missing.rings and every.missing.explained_share > 0.95
    assert fewer.maps["decided"][garnet].mean() <= 0.02
    right = oxide & every.maps["decided"] & (every.maps["phase_id"] == truth["phase"])
    assert fewer.maps["decided"][right].mean() > 0.95
    assert fewer.missing.phase_is_missing
    assert garnet.ravel()[fewer.missing.patterns].mean() > 0.9
    llzo, perovskite = (helpers.phase_crystal(p) for p in ("llzo", "lanio3"))
    banks = emphase.ped.calibration.phase_banks([perovskite, llzo], OPTICS)
    assert next(iter(evidence_of_others(fewer.spots, fewer.scan.calibration, fewer.scan.banks, banks, fewer.missing))) == "llzo"


@pytest.mark.parametrize("seed", [5, 6])
def test_right_candidates_are_not_called_short_of_one(seed):
    """Nor where templates end: there the density of spots falls, and faint ones of a crystal recur in all of its patterns."""
    crystals = [helpers.phase_crystal(p) for p in PHASES]
    patterns, _ = emphase.simulate.ped_scan(np.random.default_rng(seed), crystals, (12, 12), emphase.simulate.PedScene(0.2, n_grains=4))
    result = mapped(patterns, crystals, OPTICS._replace(max_g_invA=None, excitation_width_invA=5e-4), families=helpers.FAMILIES)
    assert not result.missing.phase_is_missing and not result.missing.rings
    assert result.missing.explained_share > 0.93


def test_rings_of_a_missing_phase_are_at_its_spacings(silver):
    """Of a bcc that has hardly a spacing in common with silver, the rings left over are silver's."""
    result = mapped(silver, [metals.TUNGSTEN])
    spacings = 1 / np.linalg.norm(emphase.crystals.reflections(metals.SILVER, 1.5, 1e-3).g, axis=1)
    heaviest = result.missing.rings[0].spacing_A
    assert np.abs(spacings / heaviest - 1).min() < 0.025  # the scale follows the wrong candidate
    assert 0 < sum(ring.share for ring in result.missing.rings) <= 1


def test_patterns_of_few_spots_are_believed_where_their_like_are_explained():
    clear, explained = np.array([[3, 4, 4, 5, 3, 4, 20, 20, 25, 1]]), np.array([[1, 1, 1, 1, 1, 1, 0, 0, 0, 1]], bool)
    assert believable({"clear_spots": clear, "explained": explained}).all()  # others have many spots, and these none of theirs
    explained[0, :3] = False
    few = believable({"clear_spots": clear, "explained": explained})
    assert not few.any()  # two of eight that say something are explained
    clear, explained = np.repeat(clear, 5, axis=0), np.ones((5, 10), bool)
    explained[:2, :3] = False
    few = believable({"clear_spots": clear, "explained": explained})
    assert few[clear >= OPTIONS.few_spots].all() and not few[clear < OPTIONS.few_spots].any()


@pytest.mark.skipif(not (SHARED / "realdata" / "ped_steel").is_dir(), reason="recorded PED of steel is not here")
def test_recorded_austenite_is_not_taken_for_other_metals():
    from validation.recorded import _calibration_of_steel

    folder = SHARED / "realdata" / "ped_steel"
    patterns = np.asarray(emphase.frames.load_recording(folder / "subset_data.hspy", navigation_dimension=2).data)
    calibration = _calibration_of_steel(patterns)
    read = lambda name: emphase.crystals.read_crystal(folder / f"{name}.cif", name)
    optics = OPTICS._replace(excitation_width_invA=0.004, max_g_invA=1.4)
    for candidates, decided in (([read("austeniteLP")], True), ([read("g-phaseLP")], False), ([metals.IRON, metals.TITANIUM], False)):
        maps, _, _ = emphase.ped.map_scan(patterns, calibration, emphase.ped.calibration.phase_banks(candidates, optics))
        assert (maps["decided"] == decided).all()


@pytest.mark.skipif(not (SHARED / "realdata" / "al_sped").is_dir(), reason="recorded SPED of an aluminium alloy is not here")
def test_recorded_aluminium_is_not_taken_for_other_metals():
    """Al along [001], whose square of spots no fcc or hcp of other size has; two patterns hold θ′ besides, which is no candidate."""
    half = np.load(SHARED / "realdata" / "al_sped" / "selected_patterns.npy")[:, :, 3:]  # beam at (43.5, -0.5) of what is left
    patterns = np.concatenate([half[:, ::-1, ::-1], half], axis=2).reshape(2, 3, 88, 88)
    aluminium = emphase.crystals.read_crystal(SHARED / "realdata" / "al_sped" / "Al.cif", "Al")
    optics = emphase.ped.Optics(0.01904, 200.0, 1.0)
    right = mapped(patterns, [aluminium, metals.LEAD], optics)
    assert (right.maps["phase_id"] == 0).all() and right.maps["decided"].ravel()[:4].all()
    wrong = mapped(patterns, [metals.COPPER, metals.TUNGSTEN, metals.TITANIUM], optics)
    assert not wrong.maps["decided"].any() and wrong.missing.phase_is_missing
