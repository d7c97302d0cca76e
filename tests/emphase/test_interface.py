"""Notebook 04: phases at an interface by local spectra, against simulated images with their truth."""

import numpy as np
import pytest
import study

import emphase
import helpers

CRYSTALS = [helpers.phase_crystal(name) for name in helpers.INTERFACE_PHASES]
PIXEL_NM = 0.02
SEARCH = emphase.interface.InterfaceSearch(stride_nm=1.3)


def analyse(image, pixel_size_nm=PIXEL_NM, **options):
    return study.analyse_interface(image, pixel_size_nm, CRYSTALS, np.random.default_rng(0), search=SEARCH, **options)


def compare(result, truth):
    """Share of points right among the decided, and share of ambiguous ones."""
    shape, full = result.map.label.shape, truth["phase_map"].shape
    rows, columns = (((np.arange(n) + 0.5) * m / n).astype(int) for n, m in zip(shape, full, strict=True))
    true = np.array(truth["phases"], dtype=object)[truth["phase_map"][np.ix_(rows, columns)]]
    label = np.array(result.map.names, dtype=object)[result.map.label]
    decided = label != "ambiguous"
    return np.mean(true[decided] == label[decided]), 1 - decided.mean()


def patterns(name):
    return {p.zone_axis: p for p in emphase.interface.zone_patterns(CRYSTALS[helpers.INTERFACE_PHASES.index(name)])}


def test_zone_patterns_hold_the_spacings_and_angles_of_the_phases():
    layered, rocksalt, spinel = patterns("layered")[1, 0, 0], patterns("rocksalt")[1, 1, 0], patterns("spinel")[1, 1, 0]
    assert 1 / np.abs(layered.spots).min() == pytest.approx(4.74, abs=0.01)
    assert 1 / np.abs(rocksalt.spots).min() == pytest.approx(2.412, abs=0.005)
    first = spinel.spots[np.abs(np.abs(spinel.spots) - 1 / 4.694) < 1e-3]
    angles = np.degrees(np.angle(first[None, :] / first[:, None]))
    assert len(first) == 4
    assert np.min(np.abs(np.abs(angles) - 70.53)) < 0.05


def test_mirror_images_and_equal_zones_count_once():
    axes = list(patterns("rocksalt"))
    assert len(axes) == len({tuple(sorted(map(abs, axis))) for axis in axes})


def test_peaks_are_found_at_sub_pixel_precision():
    y, x = np.indices((192, 192))
    q = np.array([0.0313, 0.0527 + 0.0471j])  # cycles a pixel, x + iy
    image = sum(np.cos(2 * np.pi * (s.real * x + s.imag * y)) for s in q) + np.random.default_rng(1).normal(0, 1.0, y.shape)
    spectra = emphase.interface.spectra.window_spectra(image, PIXEL_NM, window_nm=3.84)
    found, _ = emphase.interface.spectra.spectrum_peaks(*spectra.mean([0]), spectra.bin_invA)
    for s in q / (10 * PIXEL_NM):
        assert np.abs(found - s).min() < 0.02 * spectra.bin_invA


@pytest.mark.parametrize(("phase", "zone", "seed"), [("rocksalt", (1, 1, 0), 21), ("la2zr2o7", (1, 1, 0), 22)])
def test_the_layer_its_phase_its_width_and_the_pixel(phase, zone, seed):
    rng = np.random.default_rng(seed)
    image, truth = study.interface_image(
        rng, (680, 680), PIXEL_NM, 3.5, phase, zones=((1, 0, 0), zone, (1, 1, 1)), counts=60, pixel_size_error=-0.02, roughness_nm=0.2
    )
    result = analyse(image)
    right, ambiguous = compare(result, truth)
    assert right > 0.95
    assert ambiguous < 0.15
    assert result.interface_phase == phase
    assert result.width["width_nm"] == pytest.approx(truth["interface_width_nm"], abs=0.35)
    assert result.pixel_size_nm == pytest.approx(truth["pixel_size_nm"], rel=0.004)
    assert sum(result.map.area_fractions().values()) == pytest.approx(1)


def test_no_layer_is_invented_and_each_side_keeps_to_its_own_phase():
    image, truth = study.interface_image(np.random.default_rng(23), (600, 600), PIXEL_NM, phase="none", counts=60)
    result = analyse(image)
    assert result.interface_phase == "none"
    assert "no layer" in " ".join(result.statements)
    assert compare(result, truth)[0] > 0.97
    assert result.width["width_nm"] < 0.5
    rows = emphase.interface.spacing_table(result.lattices[0])
    assert max(abs(row["deviation_percent"]) for row in rows) < 2


def test_an_amorphous_layer_is_neither_a_lattice_nor_ambiguous():
    image, truth = study.interface_image(np.random.default_rng(31), (700, 700), PIXEL_NM, 4.0, "amorphous", counts=80)
    result = analyse(image)
    right, ambiguous = compare(result, truth)
    assert result.interface_phase == "amorphous"
    assert right > 0.95
    assert ambiguous < 0.1
    assert result.width["width_nm"] == pytest.approx(truth["interface_width_nm"], abs=0.4)


def test_a_thin_layer_on_the_lattice_of_the_cathode_is_named():
    image, truth = study.interface_image(np.random.default_rng(33), (700, 700), PIXEL_NM, 2.4, "rocksalt", counts=100, roughness_nm=0.2)
    result = analyse(image)
    assert result.interface_phase == "rocksalt"
    low, high = result.width["ci95_nm"]
    assert low <= truth["interface_width_nm"] <= high


def test_posteriors_of_windows_and_zone_axes():
    image, truth = study.interface_image(np.random.default_rng(32), (500, 700), PIXEL_NM, phase="none", counts=100)
    result = analyse(image)
    assert len(result.window_posteriors) == len(result.owner)
    for posterior in result.window_posteriors:
        assert 0.9 < sum(posterior.values()) <= 1 + 1e-9
    named = [max(p, key=p.get) for p in result.window_posteriors]
    true = np.array(truth["phases"])[truth["phase_map"][tuple(np.rint(result.spectra.centres).astype(int).T)]]
    right = [n.split()[0] == t for n, t in zip(named, true, strict=True) if n != "unknown"]
    assert np.mean(right) > 0.9
    assert set(result.lattices[0].zones) and next(iter(result.lattices[0].zones)).startswith(result.lattices[0].phase)


def test_one_phase_alone_has_no_interface():
    image, _ = study.interface_image(np.random.default_rng(24), (340, 1200), PIXEL_NM, phase="none", counts=60)
    result = analyse(image[:, :400])
    assert result.map.area_fractions()["layered"] > 0.75
    assert result.map.area_fractions()["llzo"] == 0
    assert result.interface_phase is None
    assert "only one lattice" in " ".join(result.statements)


def fringes(spacings_A, noise, shape=(420, 420)):
    rng = np.random.default_rng(25)
    y, x = np.indices(shape) * 10 * PIXEL_NM
    turn = np.exp(0.4j)
    waves = sum(np.cos(2 * np.pi * (turn.real * x + turn.imag * y) / d) for d in spacings_A)
    return rng.poisson(100 * (1 + 0.1 * waves) + noise)


@pytest.mark.parametrize("spacings", [[4.74], [4.586], [2.37], [1.872], [4.74, 2.37]])
def test_spots_of_one_direction_never_decide(spacings):
    """NCM 003 and LLZO 220, NCM 006 and LLZO 521, NCM 015 and LLZO 444 lie within 3 % of each other."""
    result = analyse(fringes(spacings, 0))
    fractions = result.map.area_fractions()
    assert not result.lattices
    assert fractions["ambiguous"] > 0.9
    assert result.interface_phase is None


def test_noise_alone_holds_no_lattice():
    result = analyse(np.random.default_rng(26).poisson(50, (420, 420)))
    assert result.map.area_fractions()["amorphous"] > 0.97
    assert "noise or amorphous matter only" in " ".join(result.statements)
    assert result.calibration["anchor"] is None


def test_another_scale_is_not_explained_by_force():
    image, _ = study.interface_image(np.random.default_rng(27), (500, 500), PIXEL_NM, phase="none", counts=100)
    result = analyse(image, 0.026)
    assert result.map.area_fractions()["layered"] < 0.1
    assert result.map.area_fractions()["llzo"] < 0.1


@pytest.mark.parametrize(
    ("image", "pixel_size_nm", "words"),
    [
        (np.ones((400, 400)), 0.02, "all pixels are equal"),
        (np.random.default_rng(0).random((400, 400)), 0.5, "got 0.5"),
        (np.random.default_rng(0).random((400, 400)), 0.001, "field of 0.4 × 0.4 nm"),
        (np.full((400, 400), np.nan), 0.02, "not finite"),
        (np.minimum(np.random.default_rng(0).poisson(100, (400, 400)), 110), 0.02, "saturated"),
    ],
)
def test_images_that_hold_no_lattice_are_refused(image, pixel_size_nm, words):
    with pytest.raises(emphase.EmphaseError, match=words) as caught:
        analyse(image, pixel_size_nm, where="S/sample.yaml: acquisitions.interface")
    assert "S/sample.yaml: acquisitions.interface" in str(caught.value)
    assert "expected" in str(caught.value)
