"""Lists of spots of other programs, in each of their formats, against what was put in; and the patterns that are drawn from them."""

import json
import warnings

import h5py
import numpy as np
import pandas as pd
import pytest
import study

import emphase
import helpers
from emphase.frames import RecordedFrames, axis_scale, load_recording
from emphase.ped.calibration import OF_A_LIST, Optics
from emphase.spot_lists import OPTIONS, read_spot_list

CATHODE = study.SHARED / "realdata" / "cathode_bragg"
SHAPE = (3, 4)


@pytest.fixture(scope="module")
def listed():
    """Of each position of a small scan, places (y, x) in 1/Å and intensities (n, 3): the direct beam first; one position has none."""
    rng = np.random.default_rng(1)
    spots = []
    for k in range(SHAPE[0] * SHAPE[1]):
        places = np.vstack([[0, 0], rng.uniform(-1.2, 1.2, (4 + k, 2))])
        spots.append(np.column_stack([places, np.append(900.0, rng.uniform(5, 60, 4 + k))]))
    spots[5] = np.zeros((0, 3))
    return spots


def as_table(path, spots, names=("qy_invA", "qx_invA")):
    rows = [(*divmod(k, SHAPE[1]), *spot) for k, some in enumerate(spots) for spot in some]
    table = pd.DataFrame(rows, columns=["scan_y", "scan_x", *names, "intensity"])
    shuffled = table.sample(frac=1, random_state=1)
    shuffled.to_csv(path, index=False) if path.suffix == ".csv" else shuffled.to_parquet(path, index=False)


def as_point_lists(path, spots, unit=None, step=None):
    """As py4DSTEM writes: qx runs down."""
    point = np.dtype([("qx", "<f8"), ("qy", "<f8"), ("intensity", "<f8")])
    with h5py.File(path, "w") as file:
        group = file.create_group("4DSTEM/braggpeaks_cal")
        group.attrs["emd_group_type"], group.attrs["python_class"] = "pointlistarray", "PointListArray"
        data = group.create_dataset("data", SHAPE, dtype=h5py.vlen_dtype(point))
        for k, some in enumerate(spots):
            data[divmod(k, SHAPE[1])] = np.array([tuple(spot) for spot in some], point)
        said = {"Q_pixel_units": unit, "R_pixel_size": step, "R_pixel_units": "A" if step else None}
        for key, value in said.items():
            if value is not None:
                file.create_dataset(f"4DSTEM/metadatabundle/calibration/{key}", data=value)


def as_vectors(path, spots):
    from pyxem.signals import DiffractionVectors

    data = np.empty(SHAPE, object)
    for k, some in enumerate(spots):
        data[divmod(k, SHAPE[1])] = some
    vectors = DiffractionVectors(data, ragged=True, column_names=["ky", "kx", "intensity"], units=["$A^{-1}$", "$A^{-1}$", "a.u."])
    vectors.axes_manager.navigation_axes[0].scale, vectors.axes_manager.navigation_axes[0].units = 2.5, "nm"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        vectors.save(path, overwrite=True)


def check(found, spots, step=None):
    assert found.shape == SHAPE and found.in_invA and found.step_nm == step
    for k, some in enumerate(spots):
        mine = slice(found.first[k], found.first[k + 1])
        order = lambda rows: rows[np.lexsort(rows.T)]
        assert np.allclose(order(np.column_stack([found.places[mine], found.intensity[mine]])), order(some))


@pytest.mark.parametrize("name", ["spots.csv", "spots.parquet", "spots.h5", "spots.emd", "spots.hspy", "spots.zspy"])
def test_every_format_gives_the_list_that_was_written(tmp_path, listed, name):
    path = tmp_path / name
    if path.suffix in (".csv", ".parquet"):
        as_table(path, listed)
    elif path.suffix in (".h5", ".emd"):
        as_point_lists(path, listed, "A^-1", 30.0)
    else:
        as_vectors(path, listed)
    check(read_spot_list(path), listed, {".h5": 3.0, ".emd": 3.0, ".hspy": 2.5, ".zspy": 2.5}.get(path.suffix))


def test_inverse_nanometres_and_lists_without_a_unit_are_told_by_their_numbers(tmp_path, listed):
    as_point_lists(tmp_path / "plain.h5", listed)
    check(read_spot_list(tmp_path / "plain.h5"), listed)
    as_point_lists(tmp_path / "nm.h5", [some * [10, 10, 1] for some in listed], "nm^-1")
    check(read_spot_list(tmp_path / "nm.h5"), listed)


def test_spots_are_drawn_where_they_are_listed_with_the_counts_of_their_strength(tmp_path, listed):
    as_table(tmp_path / "spots.csv", listed)
    frames = RecordedFrames(tmp_path / "spots.csv", 2)
    assert frames.is_spot_list and frames.shape == (*SHAPE, OPTIONS.width_px, OPTIONS.width_px)
    scale = axis_scale(frames.signal, "1/angstrom")
    image = frames[2, 1]
    some = listed[9]
    inside = np.linalg.norm(some[:, :2], axis=1) < 1.1
    for y, x, strength in some[inside]:
        others = np.linalg.norm(some[:, :2] - [y, x], axis=1)
        if np.sort(others)[1] < 12 * scale:
            continue  # another spot stands in the window
        v, u = np.rint([y / scale, x / scale]).astype(int) + OPTIONS.width_px // 2
        window = image[v - 5 : v + 6, u - 5 : u + 6] - image.min()
        dy, dx = np.mgrid[-5:6, -5:6]
        place = np.array([(window * dy).sum(), (window * dx).sum()]) / window.sum() + [v, u] - OPTIONS.width_px / 2
        assert np.allclose(place * scale, [y, x], atol=0.02 * scale)
        assert window.sum() / strength == pytest.approx(image[image.shape[0] // 2 - 6 :][:12, 122:134].sum() / 900, rel=0.2)


def test_a_position_without_spots_has_a_direct_beam_and_nothing_else(tmp_path, listed):
    as_table(tmp_path / "spots.csv", listed)
    image = RecordedFrames(tmp_path / "spots.csv", 2)[1, 1]
    flat = image == image.min()
    assert 0.99 < flat.mean() < 1 and np.argwhere(~flat).mean(axis=0) == pytest.approx(OPTIONS.width_px / 2)


def test_places_in_pixels_take_the_scale_of_the_file_or_none(tmp_path, listed):
    in_px = [some * [50, 50, 1] + [64, 64, 0] for some in listed]
    as_table(tmp_path / "px.csv", in_px, ("y_px", "x_px"))
    signal = load_recording(tmp_path / "px.csv", navigation_dimension=2)
    assert axis_scale(signal, "1/angstrom") is None and 124 <= signal.data.shape[-1] <= 136
    as_point_lists(tmp_path / "px.h5", in_px, "A^-1")
    with h5py.File(tmp_path / "px.h5", "a") as file:
        file["4DSTEM/metadatabundle/calibration/Q_pixel_size"] = 0.02
    assert axis_scale(load_recording(tmp_path / "px.h5", navigation_dimension=2), "1/angstrom") == pytest.approx(0.02)


def test_a_recording_of_patterns_is_no_list(tmp_path):
    import hyperspy.api as hs

    for suffix in (".hspy", ".zspy"):
        path = tmp_path / f"patterns{suffix}"
        hs.signals.Signal2D(np.ones((2, 2, 40, 40), np.uint16)).save(path)
        assert read_spot_list(path) is None
        assert not RecordedFrames(path, 2).is_spot_list


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("\n", r"cannot be read as a table"),
        ("a,b\n1,2\n", r"has columns a, b, expected scan_y, scan_x, intensity and qy_invA, qx_invA or y_px, x_px"),
        ("scan_y,scan_x,qy_invA,qx_invA,intensity\n", r"no spot"),
        ("scan_y,scan_x,qy_invA,qx_invA,intensity\n0,0,zero,1,1\n", r"negative or no number"),
        ("scan_y,scan_x,qy_invA,qx_invA,intensity\n0,0,0.1,1,-1\n", r"negative or no number"),
        ("scan_y,scan_x,qy_invA,qx_invA,intensity\n0.5,0,0.1,1,1\n", r"whole numbers from 0"),
        ("scan_y,scan_x,qy_invA,qx_invA,intensity\n90000,90000,0.1,1,1\n", r"90001 × 90001 positions, expected 2000000 at most"),
        ("scan_y,scan_x,y_px,x_px,intensity\n0,0,-5,1,1\n", r"down to -5, expected none below 0"),
    ],
)
def test_what_is_no_list_is_refused_with_its_name(tmp_path, content, expected):
    path = tmp_path / "spots.csv"
    path.write_text(content)
    with pytest.raises(emphase.EmphaseError, match=rf"^spots\.csv: .*{expected}"):
        load_recording(path, navigation_dimension=2)


def test_a_filter_that_may_run_code_is_not_opened(tmp_path, listed):
    as_vectors(tmp_path / "spots.zspy", listed)
    [described] = [p for p in (tmp_path / "spots.zspy").rglob("data/.zarray")]
    content = json.loads(described.read_text())
    described.write_text(json.dumps(content | {"filters": [{"id": "pickle"}]}))
    assert read_spot_list(tmp_path / "spots.zspy") is None


def test_a_simulated_scan_is_mapped_from_the_list_of_its_spots(tmp_path):
    rng = np.random.default_rng(3)
    crystals = [helpers.phase_crystal(p) for p in ("layered", "spinel", "rocksalt", "llzo")]
    patterns, truth = emphase.simulate.ped_scan(rng, crystals, (6, 6), emphase.simulate.PedScene(0.2, n_grains=3))
    scan = emphase.ped.calibrate(patterns, crystals, Optics(0.02178, 200.0, 0.5))
    spots = emphase.ped.find_spots(patterns.reshape(-1, *patterns.shape[2:]), scan.calibration.centre_px.reshape(-1, 2), scan.calibration)
    rows = []
    for k in range(36):
        table = spots.table[k, : spots.number[k]]
        table = table[table[:, 4] >= 4]  # programs list what stands out
        g = (table[:, :2] - spots.centre_px[k])[:, ::-1] @ np.linalg.inv(scan.calibration.metric).T
        rows += [(*divmod(k, 6), y, x, net) for (x, y), net in zip(g, table[:, 2] - table[:, 3], strict=True)]
    pd.DataFrame(rows, columns=["scan_y", "scan_x", "qy_invA", "qx_invA", "intensity"]).to_csv(tmp_path / "spots.csv", index=False)
    frames = RecordedFrames(tmp_path / "spots.csv", 2)
    given = axis_scale(frames.signal, "1/angstrom")
    drawn = emphase.ped.calibrate(frames, crystals, Optics(given, 200.0, 0.5))
    assert drawn.trusted and drawn.notes[0] == OF_A_LIST
    assert drawn.calibration.scale_invA_per_px == pytest.approx(given, rel=0.002)
    from_list = emphase.ped.map_scan(frames, drawn.calibration, drawn.banks, families=helpers.FAMILIES)[0]
    from_patterns = emphase.ped.map_scan(patterns, scan.calibration, scan.banks, families=helpers.FAMILIES)[0]
    right = [float((maps["phase_id"] == truth["phase"]).mean()) for maps in (from_list, from_patterns)]
    assert right[0] >= right[1] - 0.06
    assert (from_list["phase_id"] == truth["phase"])[from_list["decided"]].mean() > 0.97


@pytest.mark.skipif(not CATHODE.is_dir(), reason="no recorded cathode particle beside the project")
def test_the_recorded_cathode_is_mostly_layered(tmp_path):
    """Every seventh position of the particle each way; spinel is on the oxygen lattice of the layered phase."""
    crystals = [emphase.crystals.read_crystal(CATHODE / f"{name}.cif") for name in ("LCO", "LiMn2O4")]
    whole = read_spot_list(CATHODE / "braggdisks_cali.h5")
    assert whole.shape == (80, 58) and whole.in_invA and len(whole.places) == 121_390
    some = [(y, x, whole.first[58 * y + x], whole.first[58 * y + x + 1]) for y in range(3, 80, 7) for x in range(3, 58, 7)]
    rows = [(y // 7, x // 7, *whole.places[k], whole.intensity[k]) for y, x, first, last in some for k in range(first, last)]
    columns = ["scan_y", "scan_x", "qy_invA", "qx_invA", "intensity"]
    pd.DataFrame(rows, columns=columns).to_csv(tmp_path / "spots.csv", index=False)
    frames = RecordedFrames(tmp_path / "spots.csv", 2)
    scan = emphase.ped.calibrate(frames, crystals, Optics(axis_scale(frames.signal, "1/angstrom"), 300.0, 0.0, 0.004, 1.2), n_patterns=48)
    assert scan.trusted and abs(scan.refined.scale_invA_per_px / scan.given.scale_invA_per_px - 1) < 0.01
    phase = emphase.ped.map_scan(frames, scan.calibration, scan.banks, neighbours=False)[0]["phase_id"]
    assert 0.3 < (phase < 0).mean() < 0.5  # vacuum about the particle
    assert (phase == 0).sum() > 1.5 * (phase == 1).sum()


def test_positions_where_pyxem_found_nothing_are_empty(tmp_path, listed):
    """hyperspy's peaks have a row of NaN there."""
    as_vectors(tmp_path / "spots.hspy", [some if len(some) else np.full((1, 3), np.nan) for some in listed])
    check(read_spot_list(tmp_path / "spots.hspy"), listed, 2.5)


def test_patterns_in_a_file_come_before_a_list_of_their_spots(tmp_path, listed):
    as_point_lists(tmp_path / "both.h5", listed)
    with h5py.File(tmp_path / "both.h5", "a") as file:
        file["4DSTEM/datacube/data"] = np.zeros((2, 2, 8, 8), np.uint16)
    assert read_spot_list(tmp_path / "both.h5") is None


def test_the_unit_of_a_pixel_is_not_taken_for_that_of_raw_places(tmp_path, listed):
    """Pixels from a corner, one just outside of it; pixels from the direct beam; and with a direct beam in the file."""
    raw = [some * [50, 50, 1] + [64, 64, 0] for some in listed]
    raw[0][1, :2] = -0.3
    as_point_lists(tmp_path / "corner.h5", raw, "A^-1")
    assert not read_spot_list(tmp_path / "corner.h5").in_invA
    as_point_lists(tmp_path / "centred.h5", [some * [50, 50, 1] for some in listed], "A^-1")
    with h5py.File(tmp_path / "centred.h5", "a") as file:
        file["4DSTEM/metadatabundle/calibration/Q_pixel_size"] = 0.02
    check(read_spot_list(tmp_path / "centred.h5"), listed)
    as_point_lists(tmp_path / "beam.h5", [some * [50, 50, 1] + [64, 60, 0] for some in listed], "A^-1")
    with h5py.File(tmp_path / "beam.h5", "a") as file:
        calibration = file["4DSTEM/metadatabundle/calibration"]
        calibration["Q_pixel_size"], calibration["qx0"], calibration["qy0"] = 0.02, np.full(SHAPE, 64.0), 60.0
    check(read_spot_list(tmp_path / "beam.h5"), listed)


def test_a_unit_that_is_no_length_is_refused(tmp_path, listed):
    as_point_lists(tmp_path / "angles.h5", listed, "mrad")
    with pytest.raises(emphase.EmphaseError, match=r"^angles\.h5: places of spots in 'mrad', expected 1/Å, 1/nm or pixels"):
        read_spot_list(tmp_path / "angles.h5")


def test_direct_beams_alone_and_a_camera_of_a_kilometre_are_refused(tmp_path, listed):
    as_table(tmp_path / "beams.csv", [some[:1] for some in listed])
    with pytest.raises(emphase.EmphaseError, match=r"^beams\.csv: a list of spots with direct beams alone"):
        load_recording(tmp_path / "beams.csv", navigation_dimension=2)
    as_table(tmp_path / "far.csv", [some * [1e8, 1e8, 1] + [2e8, 2e8, 0] for some in listed], ("y_px", "x_px"))
    with pytest.raises(emphase.EmphaseError, match=r"^far\.csv: places of spots up to .* px, expected 4096 at most"):
        load_recording(tmp_path / "far.csv", navigation_dimension=2)


def test_bragg_vectors_of_py4dstem_are_found_and_calibrated_ones_come_first(tmp_path, listed):
    as_point_lists(tmp_path / "both.h5", listed)
    in_px = [some * [50, 50, 1] + [64, 64, 0] for some in listed]
    point = np.dtype([("qx", "<f8"), ("qy", "<f8"), ("intensity", "<f8")])
    with h5py.File(tmp_path / "both.h5", "a") as file:
        group = file.create_group("4DSTEM/a_braggvectors")
        group.attrs["python_class"] = "BraggVectors"
        raw = group.create_group("_v_uncal")
        raw.attrs["python_class"] = "PointListArray"
        data = raw.create_dataset("data", SHAPE, dtype=h5py.vlen_dtype(point))
        for k, some in enumerate(in_px):
            data[divmod(k, SHAPE[1])] = np.array([tuple(spot) for spot in some], point)
    check(read_spot_list(tmp_path / "both.h5"), listed)
    with h5py.File(tmp_path / "both.h5", "a") as file:
        del file["4DSTEM/braggpeaks_cal"]
    raw_list = read_spot_list(tmp_path / "both.h5")
    assert not raw_list.in_invA and len(raw_list.places) == sum(map(len, listed))
