"""Fractions with their intervals: against truth, limits and conservation of counts."""

from dataclasses import replace

import numpy as np
import pytest
import study
from scipy import ndimage

import emphase
import helpers

PHASES = ("layered", "spinel", "rocksalt", "llzo")
NCM = [0, 1, 2]


def maps_of(phase_id, second=None, share=0.6, lattice=None):
    """Maps as 06 writes them, of phases that are certain, with second phases where they are given (-1: none)."""
    phase_id = np.asarray(phase_id)
    second = np.full(phase_id.shape, -1) if second is None else np.asarray(second)
    mixed = second >= 0
    lattice = np.zeros(phase_id.shape, int) if lattice is None else np.asarray(lattice)
    crystal = np.where(phase_id >= 0, 10 * lattice + phase_id, -1)
    return {
        "phase_id": phase_id,
        "probability": np.stack([phase_id == k for k in range(4)]).astype(float),
        "decided": phase_id >= 0,
        "correlation": np.where(phase_id >= 0, 0.9, 0.0),
        "share": np.where(phase_id >= 0, np.where(mixed, share, 1.0), 0.0),
        "lattice_id": np.where(phase_id >= 0, lattice, -1),
        "crystal_id": crystal,
        "second_phase_id": second,
        "second_share": np.where(mixed, 1 - share, 0.0),
        "second_crystal_id": np.where(mixed, 10 * lattice + second, -1),
        "diffuse": np.where(phase_id >= 0, 1000.0, 500.0),
        "support": np.where(np.arange(4)[:, None, None] == phase_id, 50.0, -5.0),
    }


def spike_ins_of(n=200, pairs=20, wrong=0.0, between=0.0, within=0.0, seed=0, lead=0, second=2):
    rng = np.random.default_rng(seed)
    pair = np.arange(n) % pairs
    error = rng.normal(0, between, pairs)[pair] + rng.normal(0, within, n)
    found = np.where(rng.random(n) < wrong, second, lead)
    return emphase.fractions.SpikeIn(pair, np.full(n, lead), np.full(n, second), found, np.full(n, 0.3), error, np.ones(n, bool))


CERTAIN = emphase.fractions.draws.Spread(0.0, 0.0, 0.0)


# --- known mixtures -----------------------------------------------------------------------------


@pytest.fixture
def two_crystals():
    """A scan of two crystals whose patterns have 30 and 10 counts a pixel, with a column of mixtures between them."""
    phase_id = np.repeat([[0, 0, 0, 0, 2, 2, 2, 2]], 12, axis=0)
    second = np.full(phase_id.shape, -1)
    second[:, 3] = 2
    rng = np.random.default_rng(1)
    patterns = rng.poisson(np.where(phase_id == 0, 30.0, 10.0)[..., None, None], (*phase_id.shape, 40, 40)).astype(np.uint8)
    calibration = emphase.ped.Calibration(0.02, np.eye(2), np.full((*phase_id.shape, 2), 19.5), np.zeros((40, 40), bool), 1.4)
    return patterns, calibration, maps_of(phase_id, second, share=0.7)


def test_known_mixtures_keep_counts_and_their_noise(two_crystals):
    patterns, calibration, maps = two_crystals
    mixtures, made = emphase.fractions.spike_in.spike_in(patterns, calibration, maps, seed=3)
    assert (made == (maps["second_phase_id"] >= 0)).all()
    assert (mixtures[~made] == patterns[~made]).all()
    mean = 0.7 * 30 + 0.3 * 10
    assert mixtures[made].mean() == pytest.approx(mean, abs=0.1)
    assert mixtures[made].var() == pytest.approx(mean, rel=0.03)  # still Poisson
    assert (mixtures == emphase.fractions.spike_in.spike_in(patterns, calibration, maps, seed=3)[0]).all()


def test_known_mixtures_count_in_the_units_of_the_calibration(two_crystals):
    patterns, calibration, maps = two_crystals
    recorded = 4 * patterns.astype(float) + 100
    plain, _ = emphase.fractions.spike_in.spike_in(patterns, calibration, maps, seed=3)
    scaled, _ = emphase.fractions.spike_in.spike_in(recorded, replace(calibration, gain=4.0, offset=100.0), maps, seed=3)
    assert (plain == scaled).all()


def test_a_crystal_that_is_nowhere_alone_gives_no_mixtures(two_crystals):
    patterns, calibration, maps = two_crystals
    maps = maps | {"second_crystal_id": np.where(maps["second_phase_id"] >= 0, 99, -1)}
    mixtures, made = emphase.fractions.spike_in.spike_in(patterns, calibration, maps)
    assert not made.any() and (mixtures == patterns).all()


@pytest.mark.parametrize(("between", "within"), [(0.3, 0.5), (1.2, 0.4)])
def test_scatter_of_shares_is_split_between_and_within_pairs(between, within):
    spread = emphase.fractions.spread_of(spike_ins_of(6000, 200, between=between, within=within))
    assert spread.between == pytest.approx(between, rel=0.2)
    assert spread.within == pytest.approx(within, rel=0.1)


def test_without_mixtures_simulated_scans_stand_in():
    nothing = emphase.fractions.spike_in.no_spike_in()
    spread = emphase.fractions.spread_of(nothing)
    assert 0.3 < spread.between < 1.5 and 0.3 < spread.within < 1.5
    maps = maps_of(np.repeat([[0, 2]], 4, axis=0))
    inside = np.ones((4, 2), bool)
    assert emphase.fractions.estimate.misclassification(nothing, maps, 2, inside) == (0.0, 0.0, 0.0)
    assert emphase.fractions.estimate.detection_limit(nothing, maps, 2, inside) == pytest.approx(3 / 8, rel=0.01)


def test_a_bias_is_taken_off_as_far_as_it_stands_out():
    maps = maps_of(np.zeros((40, 40), int), np.where(np.indices((40, 40))[0] < 10, 2, -1))
    inside = np.ones((40, 40), bool)
    few = emphase.fractions.estimate.misclassification(spike_ins_of(wrong=0.02), maps, 2, inside)
    many = emphase.fractions.estimate.misclassification(spike_ins_of(wrong=0.4), maps, 2, inside)
    assert many[0] == pytest.approx(0.4 * 400 / 1600, rel=0.2)
    for bias, _, correction in (few, many):
        assert 0 <= correction <= bias
    assert few[2] / max(few[0], 1e-12) < many[2] / many[0]


def test_detection_limit_grows_with_false_patterns_and_is_never_nothing():
    maps = maps_of(np.zeros((30, 30), int), np.where(np.indices((30, 30))[0] < 10, 1, -1))
    inside = np.ones((30, 30), bool)
    clean, false = (spike_ins_of(wrong=0.0, second=1), spike_ins_of(wrong=0.0, second=1))
    false = replace(false, found=np.where(np.arange(200) < 10, 2, false.found))
    assert emphase.fractions.estimate.detection_limit(clean, maps, 2, inside) == pytest.approx(3 / 900, rel=0.01)  # the rule of three
    expected = 10 / 200 * 300
    assert expected / 900 < emphase.fractions.estimate.detection_limit(false, maps, 2, inside) < 2 * expected / 900


# --- crystals that hardly diffract ------------------------------------------------------------------


def test_material_that_hardly_diffracts_is_told_from_pores_by_its_diffuse_scattering():
    rng = np.random.default_rng(5)
    phase_id = np.zeros((30, 30), int)
    phase_id[:, 20:] = 3
    phase_id[2:8, 2:8] = -1  # a pore
    phase_id[12:26, 4:12] = -1  # rocksalt that hardly diffracts
    maps = maps_of(phase_id)
    rocksalt = np.zeros(phase_id.shape, bool)
    rocksalt[12:26, 4:12] = True
    maps["diffuse"] = np.where(rocksalt, 1000.0, maps["diffuse"]) * np.exp(rng.normal(0, 0.05, phase_id.shape))
    weak = rng.normal(-6, 4, (4, *phase_id.shape)) + 2 * (np.arange(4)[:, None, None] == 2)
    maps["support"] = np.where(phase_id < 0, weak, maps["support"])
    assert (emphase.fractions.hidden.hidden_material(maps) == rocksalt).all()
    filled = emphase.fractions.with_hidden_material(maps)
    assert (filled["phase_id"][rocksalt] == 2).mean() > 0.9 and (filled["phase_id"][~rocksalt] == phase_id[~rocksalt]).all()
    assert not filled["decided"][rocksalt].any() and (filled["indexed_phase_id"] == phase_id).all()
    assert filled["probability"].sum(axis=0)[rocksalt] == pytest.approx(1.0)
    counts = emphase.fractions.drawn_counts(filled, np.where(filled["phase_id"] >= 0, 0, -1), CERTAIN, draws=200)
    assert counts.sum(axis=2).min() == counts.sum(axis=2).max() == 30 * 30 - 36
    assert counts[:, 0, 2].std() > 3  # it may be wrong as a whole


def test_pores_that_scatter_like_material_stay_pores():
    rng = np.random.default_rng(6)
    phase_id = np.where(np.indices((30, 30))[0] < 4, -1, 0)
    maps = maps_of(phase_id)
    maps["diffuse"] = 1000 * np.exp(rng.normal(0, 0.05, phase_id.shape))
    assert not emphase.fractions.hidden.hidden_material(maps).any()
    assert (emphase.fractions.with_hidden_material(maps)["phase_id"] == phase_id).all()
    everything = maps_of(np.zeros((5, 5), int))
    assert not emphase.fractions.hidden.hidden_material(everything).any()


# --- how else the map could have come out ---------------------------------------------------------


def test_draws_conserve_patterns_and_certain_maps_do_not_vary():
    phase_id = np.array([[0, 0, 2, 3], [0, 1, 2, -1]])
    group = np.where(phase_id >= 0, np.array([[0, 0, 1, 1], [0, 0, 1, 1]]), -1)
    counts = emphase.fractions.drawn_counts(maps_of(phase_id), group, CERTAIN, draws=20)
    assert (counts == np.array([[3, 1, 0, 0], [0, 0, 2, 1]])).all()
    loose = emphase.fractions.drawn_counts(
        maps_of(phase_id, np.where(phase_id == 2, 0, -1)), group, emphase.fractions.draws.Spread(1.0, 1.0, 0.5), draws=50
    )
    assert (loose.sum(axis=2) == [4, 3]).all() and loose.std() > 0


def test_patterns_of_one_crystal_err_together():
    """As many patterns flip with errors of crystals as with errors of patterns, but they do not average out."""
    rng = np.random.default_rng(0)
    phase_id = np.zeros((40, 40), int)
    maps = maps_of(phase_id, np.full((40, 40), 2), share=0.55, lattice=rng.integers(0, 4, (40, 40)))
    group = np.zeros((40, 40), int)
    together = emphase.fractions.drawn_counts(maps, group, emphase.fractions.draws.Spread(1.0, 0.0, 0.0), draws=200)[:, 0, 2]
    apart = emphase.fractions.drawn_counts(maps, group, emphase.fractions.draws.Spread(0.0, 1.0, 0.0), draws=200)[:, 0, 2]
    assert together.mean() == pytest.approx(apart.mean(), rel=0.2)
    assert together.std() > 5 * apart.std()


def test_small_pieces_belong_to_the_grain_about_them():
    lattice = np.zeros((12, 12), int)
    lattice[:, 6:] = 1
    lattice[3, 3] = 2
    lattice[8, 9] = -1
    units = emphase.fractions.resampling_units(maps_of(np.zeros((12, 12), int), lattice=lattice), np.ones((12, 12), bool))
    assert units.max() == 1 and units[3, 3] == units[0, 0] != units[8, 9] == units[0, 11]
    nothing = np.zeros((12, 12), bool)
    assert (emphase.fractions.resampling_units(maps_of(np.zeros((12, 12), int)), nothing) == -1).all()


def test_interval_covers_the_fraction_from_which_shares_stray():
    """Maps made by the very errors that the spread states: the interval of the scanned area covers, and is not idle."""
    rng, covered, width = np.random.default_rng(4), 0, []
    between, within = 0.8, 0.7
    for i in range(60):
        lattice = np.arange(40)[:, None] // 10 * 4 + np.arange(40)[None] // 10
        true = np.where(ndimage.gaussian_filter(rng.standard_normal((40, 40)), 3) > 0.08, 2, 0)
        edge = ndimage.binary_dilation(true == 2, np.ones((3, 3))) & ndimage.binary_dilation(true == 0, np.ones((3, 3)))
        share = rng.uniform(0.5, 1, true.shape)
        odds = np.log(share / (1 - share)) + rng.normal(0, between, 16)[lattice] + rng.normal(0, within, true.shape)
        other = 2 - true
        lead = np.where(edge & (odds < 0), other, true)
        maps = maps_of(lead, np.where(edge, 2 - lead, -1), lattice=lattice)
        found = 1 / (1 + np.exp(-np.abs(odds)))
        maps |= {"share": np.where(edge, found, 1.0), "second_share": np.where(edge, 1 - found, 0.0)}
        units = emphase.fractions.resampling_units(maps, np.ones_like(edge))
        counts = emphase.fractions.drawn_counts(maps, units, emphase.fractions.draws.Spread(between, within, 0.0), draws=200, seed=i)
        fraction = emphase.fractions.estimate.phase_fraction(float((lead == 2).mean()), counts, 2, [0, 2], seed=i)
        covered += fraction.low <= (true == 2).mean() <= fraction.high
        width.append(fraction.high - fraction.low)
        assert fraction.elsewhere_ci95[1] - fraction.elsewhere_ci95[0] > fraction.high - fraction.low
    assert covered >= 54 and np.mean(width) < 0.12


def test_fraction_of_no_patterns_is_an_error_with_a_reason():
    with pytest.raises(emphase.EmphaseError, match="no pattern of these phases"):
        emphase.fractions.estimate.phase_fraction(0.0, np.zeros((10, 1, 4), int), 2, NCM)
    nothing = maps_of(np.full((3, 3), -1))
    counts = emphase.fractions.drawn_counts(nothing, np.full((3, 3), -1), CERTAIN)
    with pytest.raises(emphase.EmphaseError, match="no pattern of these phases"):
        emphase.fractions.estimate.phase_fraction(0.0, counts, 2, NCM)


def test_one_grain_says_nothing_of_others():
    maps = maps_of(np.array([[0, 0, 2], [0, 0, 0]]))
    counts = emphase.fractions.drawn_counts(maps, np.zeros((2, 3), int), CERTAIN, draws=30)
    fraction = emphase.fractions.estimate.phase_fraction(1 / 6, counts, 2, NCM)
    assert fraction.elsewhere is None and fraction.elsewhere_ci95 is None and fraction.n_effective is None
    assert [fraction.low, fraction.value, fraction.high] == pytest.approx([1 / 6] * 3)


# --- against simulated scans -----------------------------------------------------------------------


@pytest.mark.parametrize(("rocksalt", "seed"), [(0.2, 31), (0.0, 32)])
def test_fraction_of_a_simulated_scan_against_truth(rocksalt, seed):
    """The whole chain of 07 on 28 x 28 patterns: near the truth, covered; and what is not there is not detected."""
    crystals = [helpers.phase_crystal(p) for p in PHASES]
    patterns, truth = emphase.simulate.ped_scan(
        np.random.default_rng(seed), crystals, (28, 28), emphase.simulate.PedScene(rocksalt, 0.06, n_grains=7), electrons=5000
    )
    optics = {"beam_energy_keV": 200.0, "precession_deg": 0.5, "excitation_width_invA": 0.001}
    banks = [emphase.ped.template_bank(c, max_g_invA=1.5, **optics) for c in crystals]
    mean, variance, _ = emphase.ped.scan.scan_statistics(patterns)
    mask = emphase.ped.scan.hot_and_dead_pixels(mean, variance, 784, 12)
    calibration = emphase.ped.Calibration(0.02178, np.eye(2), truth["centre_px"], mask, 1.4)
    maps, _, _ = study.map_scan(patterns, calibration, banks)
    spike_ins = study.run_spike_ins(patterns, calibration, banks, maps, trials=range(1))
    assert len(spike_ins.pair) > 20
    assert (spike_ins.found == spike_ins.lead).mean() > 0.8
    units = emphase.fractions.resampling_units(maps, np.isin(maps["phase_id"], NCM))
    counts = emphase.fractions.drawn_counts(maps, units, emphase.fractions.spread_of(spike_ins), draws=300)
    fraction = emphase.fractions.corrected_fraction(maps, spike_ins, counts, 2, NCM)
    assert abs(fraction.value - truth["rocksalt_fraction"]) < 0.02
    assert fraction.low - 1e-9 <= truth["rocksalt_fraction"] <= fraction.high + 1e-9
    assert fraction.detected == (rocksalt > 0)
    assert 0.4 * 7 <= units.max() + 1 <= 2.5 * 7


# --- where it sits ----------------------------------------------------------------------------------


def test_shares_by_distance_are_those_of_the_map():
    phase_id = np.repeat([[2, 2, 0, 0, 0, 0]], 20, axis=0)
    phase_id[:4, 1] = 0
    maps = maps_of(phase_id, lattice=np.arange(20)[:, None] // 5 * np.ones((1, 6), int))
    units = emphase.fractions.resampling_units(maps, np.ones(phase_id.shape, bool), 5)
    bins = np.repeat([[0, 1, 1, 2, 2, -1]], 20, axis=0)
    rows = [r for r in emphase.fractions.share_by_bin(maps, units, bins, CERTAIN, NCM) if r["phase"] == 2]
    assert [r["share"] for r in rows] == pytest.approx([1.0, 16 / 40, 0.0])
    assert [r["n_patterns"] for r in rows] == [20, 40, 40]
    assert rows[0]["ci95"] == [1.0, 1.0] and rows[1]["ci95"][0] < 0.4 < rows[1]["ci95"][1]


def test_layers_are_measured_where_the_map_resolves_them():
    body = np.zeros((20, 20), bool)
    body[:, 5:] = True
    thick, thin = np.zeros_like(body), np.zeros_like(body)
    thick[:10, 5:9] = True
    thin[:, 5] = True
    thin[10, 15] = True  # hangs together with nothing
    found = emphase.fractions.layer_at(thick, ~body, body, 8.0)
    assert found == {"covered": pytest.approx(0.5), "thickness_nm": pytest.approx(32.0), "resolved": True}
    found = emphase.fractions.layer_at(thin, ~body, body, 8.0)
    assert found == {"covered": pytest.approx(1.0), "thickness_nm": pytest.approx(8.0), "resolved": False}
    assert emphase.fractions.layer_at(thick, np.zeros_like(body), body, 8.0) == {}


def test_topotaxy_is_a_lattice_in_common_with_a_neighbour():
    phase_id = np.array([[0, 2, 2, 0], [0, 2, 2, 0], [3, 3, 3, 3]])
    lattice = np.array([[1, 1, 5, 2], [1, 1, 5, 2], [7, 7, 7, 7]])
    assert emphase.fractions.places.topotactic_patterns(maps_of(phase_id, lattice=lattice), 2, [0, 1]) == (2, 4)
    assert emphase.fractions.places.topotactic_patterns(maps_of(phase_id, lattice=lattice), 1, [0, 2]) == (0, 0)


def test_boundaries_of_units_and_the_busiest_window():
    units = np.array([[0, 0, 1, 1], [0, 0, 1, -1]])
    assert (emphase.fractions.places.unit_boundaries(units) == np.array([[0, 1, 1, 0], [0, 1, 1, 0]], bool)).all()
    phase_id, second = np.zeros((60, 90), int), np.full((60, 90), -1)
    second[35:55, 60:80] = 2
    rows, columns = emphase.fractions.spike_in.busiest_window(maps_of(phase_id, second), 900)
    assert (rows.stop - rows.start) * (columns.stop - columns.start) <= 900
    assert (second[rows, columns] >= 0).sum() == 400
    assert emphase.fractions.spike_in.busiest_window(maps_of(phase_id, second), 6000) == (slice(0, 60), slice(0, 90))


def test_a_share_of_others_is_none():
    with pytest.raises(emphase.EmphaseError, match=r"got phase 1, expected one of those it is a share of, \[0\]"):
        emphase.fractions.corrected_fraction({}, None, np.zeros((1, 2)), wanted=1, among=[0])
