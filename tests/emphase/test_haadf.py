"""The surface layer in HAADF: against simulated truth, the lattice itself, and recorded images."""

import json
from pathlib import Path

import numpy as np
import pytest
import study

import emphase
import helpers

SHARED = study.SHARED
LAYERED = helpers.phase_crystal("layered")
PROJECTED = emphase.haadf.project_columns(LAYERED, (1, 0, 0))
CATIONS = emphase.haadf.cation_lattice(PROJECTED)


def recorded(path: str) -> Path:
    if not (SHARED / path).exists():
        pytest.skip(f"no shared/{path} here")
    return SHARED / path


def strontium_titanate(a: float = 3.905) -> emphase.crystals.Crystal:
    positions = np.array([[0, 0, 0], [0.5, 0.5, 0.5], [0.5, 0.5, 0], [0.5, 0, 0.5], [0, 0.5, 0.5]])
    return emphase.crystals.Crystal("srtio3", a * np.eye(3), positions, ("Sr", "Ti", "O", "O", "O"), np.ones(5), 221)


def measured(image: np.ndarray, pixel_nm: float) -> tuple:
    lattice = emphase.haadf.find_image_lattice(image, PROJECTED, pixel_nm)
    columns = emphase.haadf.measure_columns(image, lattice, CATIONS)
    return lattice, emphase.haadf.measure_surface_layer(np.random.default_rng(0), columns, CATIONS, bootstraps=100)


def lattice_image(kind_of_lattice: np.ndarray, shape: tuple[int, int], pixel_nm: float, counts: float, seed: int) -> np.ndarray:
    """Poisson counts of Gaussian columns on a plane lattice whose translations (rows, nm) are given."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[: shape[0], : shape[1]] * pixel_nm
    dual = 2 * np.pi * np.linalg.inv(kind_of_lattice).T
    waves = [np.cos(k[0] * y + k[1] * x) for k in (dual[0], dual[1], dual[0] + dual[1])]
    return rng.poisson(counts * np.exp(2 * sum(waves) - 6) + 0.2)


# -- projection ---------------------------------------------------------------------------


def test_layered_along_100_shows_metal_oxygen_and_lithium_columns():
    assert PROJECTED.elements == ("Ni", "O", "O", "Li")
    area = abs(np.linalg.det(PROJECTED.basis_nm))
    assert area == pytest.approx(0.2867 * np.sqrt(3) / 2 * 1.422 / 3, rel=1e-9)
    assert np.allclose(PROJECTED.sites[3], 0.5)


def test_spacings_of_the_strongest_frequencies_are_those_of_the_reflections():
    _, vectors, _ = PROJECTED.frequencies()
    d = 1 / np.linalg.norm(vectors, axis=1)
    assert d[0] == pytest.approx(1.422 / 3)
    # 011 of the hexagonal cell: 1/d² = 4/3 k²/a² + l²/c²
    assert np.min(np.abs(d - 1 / np.sqrt(4 / 3 / 0.2867**2 + 1 / 1.422**2))) < 1e-6


def test_mixed_columns_and_centring():
    spinel = emphase.haadf.project_columns(helpers.phase_crystal("spinel"), (1, 1, 0))
    assert abs(np.linalg.det(spinel.basis_nm)) == pytest.approx(0.813 * 0.813 / np.sqrt(2) / 2, rel=1e-6)
    assert np.allclose(sorted(spinel.brightness, reverse=True)[:3], [1, 0.5, 0.5], atol=1e-6)
    titanate = emphase.haadf.project_columns(strontium_titanate(), (0, 0, 1))
    assert titanate.elements[:2] == ("Sr", "Ti")
    assert np.linalg.norm(titanate.basis_nm, axis=1) == pytest.approx([0.3905, 0.3905])


def test_cation_lattice_is_that_of_rocksalt():
    a, s = CATIONS.steps_nm
    assert abs(np.linalg.det(CATIONS.steps_nm)) == pytest.approx(abs(np.linalg.det(PROJECTED.basis_nm)) / 2)
    assert np.linalg.norm(a) == pytest.approx(0.2867 * np.sqrt(3) / 2)
    # a + s is the cubic axis (a(NiO) 0.4177 nm, here stretched by the layered cell)
    assert np.linalg.norm(a + s) == pytest.approx(0.4177, rel=0.04)


@pytest.mark.parametrize("zone_axis", [(0, 0, 1), (2, 1, 0)])
def test_a_zone_axis_that_cannot_tell_is_refused(zone_axis):
    with pytest.raises(emphase.EmphaseError, match=r"zone axis \[\d \d \d\] of layered"):
        emphase.haadf.cation_lattice(emphase.haadf.project_columns(LAYERED, zone_axis))


# -- truth of simulated images ---------------------------------------------------------------

CASES = [
    ("spinel", 1.3, 25.0, 30.0),
    ("spinel", 3.6, -70.0, 15.0),
    ("spinel_m3o4", 2.4, 140.0, 60.0),
    ("rocksalt", 1.1, 5.0, 15.0),
    ("rocksalt", 2.9, 88.0, 100.0),
    ("none", 0.0, -35.0, 15.0),
    ("none", 0.0, 90.0, 60.0),
]


@pytest.mark.parametrize(("kind", "layer_nm", "rotation_deg", "counts"), CASES)
def test_thickness_kind_and_pixel_size_of_simulated_layers(kind, layer_nm, rotation_deg, counts):
    rng = np.random.default_rng(int(abs(rotation_deg) * 7 + counts))
    image, truth = emphase.simulate.haadf_image(
        rng, (448, 448), 0.0125, layer_nm, kind, rotation_deg, counts, conditions=emphase.simulate.HaadfConditions(antisite=0.06)
    )
    image = np.rot90(image, int(rng.integers(4)))
    lattice, layer = measured(image, 0.0125)
    assert layer.kind == truth["kind"]
    assert layer.thickness_nm == pytest.approx(truth["thickness_nm"], abs=0.12)
    assert layer.ci95_nm[0] - 0.06 <= truth["thickness_nm"] <= layer.ci95_nm[1] + 0.06
    # the drift of the simulated scan stretches its slow axis by 0.6 % (standard deviation)
    assert lattice.scan()["pixel_size_nm"] == pytest.approx(truth["pixel_size_nm"], rel=0.01)
    if kind == "none":
        assert 0 < layer.upper_limit_nm < 0.3
    if truth["kind"] == "spinel":
        tetrahedral = emphase.haadf.structures.tetrahedral_brightness(image, lattice, CATIONS, layer.columns)
        assert emphase.haadf.structures.spinel_variant(layer, tetrahedral)[0] == {"spinel": "LiM2O4", "spinel_m3o4": "M3O4"}[kind]


@pytest.mark.parametrize(
    ("kind", "phase", "levels"),
    [
        ("spinel", "LiM2O4", {"003": 0.5, "111": 0.5, "220": 0.0}),
        ("spinel_m3o4", "M3O4", {"003": 0.15, "111": 0.15, "220": 0.3}),
        ("rocksalt", "rocksalt", {"111": 0.0, "220": 0.0}),
        ("none", "none", {}),
    ],
)
def test_fingerprint_frequencies_alone_find_depth_and_phase(kind, phase, levels):
    image, truth = emphase.simulate.haadf_image(np.random.default_rng(8), layer_nm=2.2, kind=kind, rotation_deg=15)
    lattice, layer = measured(image, 0.0125)
    profile = emphase.haadf.fingerprints.fingerprint_profile(
        emphase.haadf.fingerprints.fingerprint_maps(image, lattice, CATIONS), lattice, layer.contour
    )
    found = emphase.haadf.fingerprint_layer(profile)
    assert found.phase == phase
    assert found.kind == truth["kind"]
    assert found.thickness_nm == pytest.approx(truth["thickness_nm"], abs=0.2)
    for name, level in levels.items():
        assert found.levels[name] == pytest.approx(level, abs=0.12)


@pytest.mark.parametrize("kind", ["spinel", "spinel_m3o4", "rocksalt", "none"])
def test_structures_about_columns(kind):
    image, truth = emphase.simulate.haadf_image(np.random.default_rng(9), layer_nm=2.4, kind=kind, rotation_deg=-40, counts_per_px=20)
    lattice, layer = measured(image, 0.0125)
    posterior, region = emphase.haadf.column_regions(
        layer, emphase.haadf.structures.tetrahedral_brightness(image, lattice, CATIONS, layer.columns)
    )
    name = {"spinel": "LiM2O4", "spinel_m3o4": "M3O4", "rocksalt": "rocksalt", "none": "layered"}[kind]
    names = list(emphase.haadf.structures.REGIONS)
    crystal = region >= 0
    assert np.array_equal(crystal, layer.role >= 0)
    assert posterior[crystal].sum(axis=1) == pytest.approx(1)
    inner = crystal & (layer.depth_nm < truth["thickness_nm"] - 0.5)
    bulk = crystal & (layer.depth_nm > truth["thickness_nm"] + 0.5)
    assert np.mean(region[bulk] == names.index("layered")) > 0.97
    if kind != "none":
        assert np.mean(region[inner] == names.index(name)) > 0.9
    assert np.mean(region[crystal] == names.index("undecided")) < 0.1


def curved_crystal(
    radius_nm: float, layer_nm: float, seed: int, deeper_nm: float = 0.0, pixel_nm: float = 0.02, size: int = 640
) -> np.ndarray:
    """Counts of a disc of layered columns with a rocksalt rim, thicker by ``deeper_nm`` where (003) planes end at its edge."""
    rng = np.random.default_rng(seed)
    steps = CATIONS.steps_nm
    reach = int(radius_nm / 0.2) + 8
    index = np.stack(np.meshgrid(*2 * [np.arange(-reach, reach + 1)], indexing="ij"), axis=-1).reshape(-1, 2)
    nm = index @ steps
    radius = np.linalg.norm(nm, axis=1)
    channel = steps[0] / np.linalg.norm(steps[0])
    along = (nm @ channel / np.maximum(radius, 1e-9)) ** 2
    depth = radius_nm - radius
    metal = (index[:, 1] % 2 == 0) | (depth < layer_nm + deeper_nm * along)
    px = nm / pixel_nm + 0.12 * size
    inside = (depth > 0) & metal & np.all((px > -4) & (px < size + 4), axis=1)
    image = np.full((size, size), 0.02)
    y, x = np.indices((13, 13)) - 6
    for p in px[inside]:
        corner = np.rint(p).astype(int) - 6
        part = np.exp(-((y + corner[0] - p[0]) ** 2 + (x + corner[1] - p[1]) ** 2) / (2 * (0.055 / pixel_nm) ** 2))
        low, high = np.maximum(corner, 0), np.minimum(corner + 13, size)
        if np.all(low < high):
            image[low[0] : high[0], low[1] : high[1]] += part[
                low[0] - corner[0] : high[0] - corner[0], low[1] - corner[1] : high[1] - corner[1]
            ]
    return rng.poisson(40 * image)


@pytest.mark.parametrize("deeper_nm", [0.0, 1.0])
def test_a_round_particle_has_its_layer_measured_along_normals_and_against_the_channels(deeper_nm):
    image = curved_crystal(9.0, 1.6, 1, deeper_nm)
    _, layer = measured(image, 0.02)
    assert layer.kind == "rocksalt"
    along = emphase.haadf.layer_along(layer, CATIONS)
    expected = 1.6 + deeper_nm * float(np.mean(np.cos(np.radians(along.channel_deg)) ** 2))
    assert layer.thickness_nm == pytest.approx(expected, abs=0.15)
    value, error = along.deeper_along_nm
    assert error < 0.35
    assert value == pytest.approx(deeper_nm, abs=3 * error)
    if deeper_nm:
        assert value > 3 * error


def test_a_straight_surface_tells_no_direction():
    _, layer = measured(emphase.simulate.haadf_image(np.random.default_rng(8), layer_nm=1.5, kind="rocksalt")[0], 0.0125)
    along = emphase.haadf.layer_along(layer, CATIONS)
    assert along.deeper_along_nm is None
    assert "along and across cannot be compared" in along.reason
    assert along.spread_nm < 0.15  # the simulated layer follows its edge


def test_thickness_goes_back_to_dose_zero():
    dose = np.array([500.0, 1500.0, 4000.0])
    found = emphase.haadf.thickness_at_zero_dose(dose, 1.2 + 0.1 * dose / 1000, np.full(3, 0.05))
    assert found["thickness_nm"] == pytest.approx(1.2)
    assert found["growth_nm_per_1000_e_per_A2"] == pytest.approx(0.1)
    assert 0.05 / np.sqrt(3) < found["error_nm"] < 0.06
    with pytest.raises(emphase.EmphaseError, match="two different"):
        emphase.haadf.thickness_at_zero_dose([500, 500], [1, 1], [0.1, 0.1])


def test_scan_shear_and_pixel_aspect_are_reported():
    pixel, shear, aspect = 0.012, 1.3, 1.04
    basis = PROJECTED.basis_nm / pixel
    turn = np.array([[np.cos(0.4), np.sin(0.4)], [-np.sin(0.4), np.cos(0.4)]])
    scan = np.array([[aspect, np.tan(np.radians(shear)) * aspect], [0, 1]])
    image = lattice_image(basis @ turn @ scan * pixel, (384, 384), pixel, 60, 1)
    metal_only = emphase.haadf.projection.ProjectedColumns("metal", (1, 0, 0), PROJECTED.basis_nm, np.zeros((1, 2)), np.ones(1), ("Ni",))
    found = emphase.haadf.find_image_lattice(image, metal_only, 0.0118).scan()
    assert found["shear_deg"] == pytest.approx(shear, abs=0.05)
    assert found["pixel_size_x_nm"] == pytest.approx(pixel, rel=1e-3)
    assert found["pixel_size_y_nm"] == pytest.approx(pixel / aspect, rel=1e-3)


def test_lattice_on_binned_pixels_says_the_same():
    image, _ = emphase.simulate.haadf_image(np.random.default_rng(5), (256, 256), layer_nm=1.0)
    lattice = emphase.haadf.find_image_lattice(image, PROJECTED, 0.0125)
    half = lattice.rescaled(0.5)
    px = np.array([[10.0, 20.0], [100.5, 7.25]])
    assert half.to_lattice((px + 0.5) / 2 - 0.5) == pytest.approx(lattice.to_lattice(px))
    assert lattice.to_px(lattice.to_lattice(px)) == pytest.approx(px, abs=0.3)


# -- the example with known truth, and recorded images ---------------------------------------------


def test_example_with_known_truth():
    folder = recorded("example_blind")
    truth = json.loads((folder / "example_truth.json").read_text())["haadf"]
    image = np.asarray(emphase.frames.load_recording(folder / "samples/example/haadf.tif", navigation_dimension=0).data)
    _, layer = measured(image, 0.0125)
    assert layer.kind == truth["kind"]
    assert layer.thickness_nm == pytest.approx(truth["thickness_nm"], abs=0.1)


def spacing_by_autocorrelation(image: np.ndarray, near_px: float) -> float:
    """Side (px) of a square lattice by the area of its autocorrelation's cell: no model, no fit of columns."""
    flat = image - image.mean()
    flat = flat * np.hanning(len(flat))[:, None] * np.hanning(len(flat))
    correlation = np.fft.fftshift(np.fft.ifft2(np.abs(np.fft.fft2(flat)) ** 2).real)
    middle = len(flat) // 2
    y, x = np.indices(correlation.shape) - middle
    peaks = []
    for angle in np.radians(np.arange(0, 180, 2)):
        at = np.rint(near_px * np.array([np.sin(angle), np.cos(angle)])).astype(int) + middle
        peaks.append((correlation[tuple(at)], angle))
    first = max(peaks)[1]
    vectors = []
    for angle in (first, first + np.pi / 2):
        guess, steps = near_px * np.array([np.sin(angle), np.cos(angle)]), []
        for n in range(1, 9):
            disc = np.hypot(y - n * guess[0], x - n * guess[1]) < 0.3 * near_px
            weight = np.where(disc, np.clip(correlation - np.percentile(correlation[disc], 60), 0, None), 0)
            steps.append(np.array([(weight * y).sum(), (weight * x).sum()]) / weight.sum())
            guess = steps[-1] / n
        vectors.append(guess)
    return float(np.sqrt(abs(np.linalg.det(vectors))))


@pytest.mark.parametrize(("file", "stated_nm"), [("16_STOimage_1.ser", 0.010013), ("Acquisition_18.emd", 0.012247)])
def test_strontium_titanate_gives_the_true_pixel_size(file, stated_nm):
    image = np.asarray(emphase.frames.load_recording(recorded("realdata/haadf_sto") / file, navigation_dimension=0).data)
    lattice = emphase.haadf.find_image_lattice(image, emphase.haadf.project_columns(strontium_titanate(), (0, 0, 1)), stated_nm, file)
    pixel = lattice.scan()["pixel_size_nm"]
    assert 0.93 < pixel / stated_nm < 0.985  # as stored it is 2 to 6 % off
    by_correlation = 0.3905 / spacing_by_autocorrelation(image.astype(float), 0.3905 / pixel)
    assert pixel == pytest.approx(by_correlation, rel=0.01)
    heights = emphase.haadf.columns.sublattice_heights(image, lattice)
    assert np.median(heights["Sr"]) > 1.3 * np.median(heights["Ti"]) > 0
    with pytest.raises(emphase.EmphaseError, match="no layer can be measured"):
        emphase.haadf.cation_lattice(lattice.columns)


def test_recorded_cryo_image_has_its_columns_found():
    folder = recorded("realdata/cryo_haadf")
    image = np.asarray(emphase.frames.load_recording(next(folder.glob("*.tif")), navigation_dimension=0).data)
    perovskite = strontium_titanate(3.85)
    lattice = emphase.haadf.find_image_lattice(image, emphase.haadf.project_columns(perovskite, (0, 0, 1)), 0.018)
    expected = image.size * 0.018**2 / 0.385**2
    assert 0.85 * expected < lattice.n_columns < 1.1 * expected
    assert lattice.residual_px * lattice.scan()["pixel_size_nm"] < 0.012


# -- bad input -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def image() -> np.ndarray:
    return emphase.simulate.haadf_image(
        np.random.default_rng(2), (320, 320), layer_nm=1.0, conditions=emphase.simulate.HaadfConditions(pixel_size_error=0.0)
    )[0]


def test_noise_is_no_lattice():
    with pytest.raises(emphase.EmphaseError, match=r"a\.tif: no lattice"):
        emphase.haadf.find_image_lattice(np.random.default_rng(0).poisson(10, (300, 300)), PROJECTED, 0.0125, "a.tif")


def test_wrong_zone_axis_names_what_is_seen_and_expected(image):
    with pytest.raises(emphase.EmphaseError, match=r"does not show layered along \[0 0 1\].*strongest spacings .* expected"):
        emphase.haadf.find_image_lattice(image, emphase.haadf.project_columns(LAYERED, (0, 0, 1)), 0.0125)


@pytest.mark.parametrize("pixel_nm", [0.0125 * 1.4, 0.0125 / 2, 0.2, 1e-4])
def test_absurd_pixel_size_is_named(image, pixel_nm):
    with pytest.raises(emphase.EmphaseError, match="pixel_size_nm: got"):
        emphase.haadf.find_image_lattice(image, PROJECTED, pixel_nm)


def test_inverted_contrast_is_refused(image):
    with pytest.raises(emphase.EmphaseError, match="inverted"):
        emphase.haadf.find_image_lattice(image.max() - image.astype(int), PROJECTED, 0.0125)


def test_saturated_image_is_refused(image):
    with pytest.raises(emphase.EmphaseError, match="saturated"):
        emphase.haadf.find_image_lattice(np.minimum(image, int(np.percentile(image, 96))), PROJECTED, 0.0125)


@pytest.mark.parametrize("bad", [np.zeros((200, 200)), np.ones((40, 40)), np.ones((3, 200, 200)), np.full((200, 200), np.nan)])
def test_flat_small_stacked_and_nan_images_are_refused(bad):
    with pytest.raises(emphase.EmphaseError, match="expected"):
        emphase.haadf.find_image_lattice(bad, PROJECTED, 0.0125)


def test_no_vacuum_means_no_thickness():
    image, _ = emphase.simulate.haadf_image(
        np.random.default_rng(4), (320, 420), layer_nm=1.0, conditions=emphase.simulate.HaadfConditions(vacuum_share=0.1)
    )
    with pytest.raises(emphase.EmphaseError, match="no vacuum"):
        measured(image[:, 170:], 0.0125)


def test_a_layer_that_fills_the_image_leaves_no_bulk_to_measure_from():
    image, _ = emphase.simulate.haadf_image(
        np.random.default_rng(4), (320, 320), layer_nm=2.5, kind="spinel", conditions=emphase.simulate.HaadfConditions(vacuum_share=0.2)
    )
    with pytest.raises(emphase.EmphaseError, match=r"no layered bulk|does not show layered"):
        measured(image[:, :200], 0.0125)


def test_a_bright_contamination_is_not_taken_for_a_grain():
    image, truth = emphase.simulate.haadf_image(
        np.random.default_rng(14), (512, 512), layer_nm=1.4, kind="rocksalt", conditions=emphase.simulate.HaadfConditions(vacuum_share=0.4)
    )
    rng = np.random.default_rng(0)
    edge = np.argmax(image[:, :400].cumsum(axis=1) > 0.02 * image.sum(axis=1, keepdims=True), axis=1).mean()
    x = np.arange(image.shape[1])
    image = image + rng.poisson(7.0 * ((x > edge - 140) & (x < edge + 40)), image.shape)
    _, layer = measured(image, 0.0125)
    assert layer.thickness_nm == pytest.approx(truth["thickness_nm"], abs=0.12)


def test_another_grain_is_not_taken_for_vacuum():
    one, _ = emphase.simulate.haadf_image(
        np.random.default_rng(4), (320, 320), kind="none", rotation_deg=10, conditions=emphase.simulate.HaadfConditions(vacuum_share=-0.5)
    )
    other, _ = emphase.simulate.haadf_image(
        np.random.default_rng(5), (320, 320), kind="none", rotation_deg=47, conditions=emphase.simulate.HaadfConditions(vacuum_share=-0.5)
    )
    with pytest.raises(emphase.EmphaseError, match="several grains"):
        measured(np.hstack([other[:, :110], one[:, 110:]]), 0.0125)
    out_of_zone = np.random.default_rng(6).poisson(one.mean(), (320, 110))
    with pytest.raises(emphase.EmphaseError, match="another grain"):
        measured(np.hstack([out_of_zone, one[:, 110:]]), 0.0125)


@pytest.mark.parametrize("side", ["beside", "behind"])
def test_several_grains_are_said(side):
    one, _ = emphase.simulate.haadf_image(
        np.random.default_rng(4),
        layer_nm=2,
        kind="rocksalt",
        rotation_deg=10,
        conditions=emphase.simulate.HaadfConditions(pixel_size_error=0.0),
    )
    vacuum = 0.22 if side == "beside" else -0.5
    other, _ = emphase.simulate.haadf_image(
        np.random.default_rng(5), kind="none", rotation_deg=57, conditions=emphase.simulate.HaadfConditions(0.0, vacuum)
    )
    rows, columns = np.indices(one.shape)
    image = np.where(rows > 300 if side == "beside" else columns > 330, other, one)
    with pytest.raises(emphase.EmphaseError, match=r"several grains: .* turned by 4\d°"):
        measured(image, 0.0125)


def test_unknown_kind_is_refused():
    with pytest.raises(emphase.EmphaseError, match="kind"):
        emphase.simulate.haadf_image(np.random.default_rng(0), kind="perovskite")
