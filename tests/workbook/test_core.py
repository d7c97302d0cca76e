"""The sample contract, the loader, the result contract and the crystals."""

import json
import math
import re
import runpy
import shutil
from pathlib import Path

import numpy as np
import pytest
import study
import tifffile
import yaml

import emphase
import helpers

SHARED = study.SHARED / "realdata"
needs_recordings = pytest.mark.skipif(not SHARED.is_dir(), reason="../shared/realdata is not here")

GOOD = {
    "id": "S1",
    "label": "a sample",
    "simulated": True,
    "sintering": {"temperature_C": 600},
    "lamella": {"steps": [{"stage": "MillRough", "milling_voltage_kV": 30}]},
    "acquisitions": {
        "haadf": {"file": "haadf.tif", "beam_energy_keV": 200, "pixel_size_nm": 0.0125},
        "ped": {"file": "haadf.tif", "beam_energy_keV": 200, "precession_deg": 0.5, "phases": ["layered", "llzo"]},
    },
}


def write_sample(folder: Path, content: dict | str | bytes, sample_id: str = "S1") -> Path:
    """A data folder with one sample of that sample.yaml and one small image."""
    sample = folder / sample_id
    sample.mkdir(parents=True)
    tifffile.imwrite(sample / "haadf.tif", np.ones((8, 8), np.uint16))
    text = content if isinstance(content, (str, bytes)) else yaml.safe_dump(content, allow_unicode=True)
    (sample / "sample.yaml").write_bytes(text if isinstance(text, bytes) else text.encode())
    return folder


def changed(*path_and_value: object) -> dict:
    """GOOD with one value set, or removed where it is `...`."""
    content = json.loads(json.dumps(GOOD))
    *path, last, value = path_and_value
    part = content
    for key in path:
        part = part[key]
    if value is ...:
        del part[last]
    else:
        part[last] = value
    return content


def test_a_good_sample_loads(tmp_path):
    sample = helpers.load_sample(write_sample(tmp_path, GOOD), "S1")
    assert sample.sintering.temperature_C == 600
    assert sample.title == "a sample (simulated)"
    assert helpers.list_samples(tmp_path) == ["S1"]


def test_the_data_folder_may_hold_samples_one_level_down(tmp_path):
    write_sample(tmp_path / "samples", GOOD)
    assert helpers.load_sample(tmp_path, "S1").id == "S1"


FAULTS = {
    "missing key": (changed("label", ...), r"label: missing"),
    "missing energy": (changed("acquisitions", "haadf", "beam_energy_keV", ...), r"acquisitions\.haadf\.beam_energy_keV: missing"),
    "misspelt key": (
        changed("acquisitions", "haadf", "pixelsize_nm", 0.1),
        r"haadf\.pixelsize_nm: unknown key.*did you mean pixel_size_nm",
    ),
    "misspelt top key": (changed("lable", "x"), r"lable: unknown key.*did you mean label"),
    "key of a milling step": (changed("lamella", "steps", 0, "kV", 30), r"lamella\.steps\.0\.kV: unknown key, expected one of stage"),
    "volts for kilovolts": (
        changed("acquisitions", "haadf", "beam_energy_keV", 200000),
        r"got 200000, expected less than or equal to 1500 \(keV\)",
    ),
    "picometres for nanometres": (changed("acquisitions", "haadf", "pixel_size_nm", 125.0), r"pixel_size_nm: got 125\.0.*\(nm\)"),
    "text for a number": (changed("acquisitions", "haadf", "pixel_size_nm", "12.5 pm"), r"got '12\.5 pm', expected a valid number \(nm\)"),
    "NaN": (changed("acquisitions", "haadf", "pixel_size_nm", math.nan), r"pixel_size_nm: got nan"),
    "kelvin for celsius": (changed("sintering", "temperature_C", -10), r"sintering\.temperature_C: got -10.*°C"),
    "absent file": (changed("acquisitions", "haadf", "file", "no.tif"), r"acquisitions\.haadf\.file: no file 'no\.tif'"),
    "path outside": (
        changed("acquisitions", "haadf", "file", "../haadf.tif"),
        r"haadf\.file: got '\.\./haadf\.tif', expected a path inside",
    ),
    "absolute path": (changed("acquisitions", "haadf", "file", "/etc/passwd"), r"expected a path inside"),
    "unlike id": (changed("id", "S2"), r"id: got 'S2', expected 'S1'"),
    "odd id": (changed("id", "S 1"), r"expected letters, digits, - and _"),
    "number for id": (changed("id", 600), r"id: got 600, expected a valid string"),
    "unknown phase": (changed("acquisitions", "ped", "phases", ["lyered"]), r"no phase 'lyered', expected one of .*layered"),
    "unknown phase of the image": (changed("acquisitions", "haadf", "phase", "lyered"), r"haadf\.phase: no phase 'lyered', expected one"),
    "phase twice": (changed("acquisitions", "ped", "phases", ["llzo", "llzo"]), r"phases: got .*every phase once"),
    "no phases": (changed("acquisitions", "ped", "phases", []), r"acquisitions\.ped\.phases"),
    "no acquisitions": (changed("acquisitions", ...), r"acquisitions: missing"),
    "reserved key": (changed("folder", "/etc"), r"folder: unknown key"),
    "not a mapping": ("just text", r"got str, expected keys and values"),
    "empty": ("", r"expected keys and values"),
    "not YAML": ("id: [", r"line 1: not YAML|line 2: not YAML"),
    "not text": (b"\xff\xfe\x00id", r"not YAML"),
    "a hostile tag": ("id: !!python/object/apply:os.system [true]", r"not YAML"),
    "keys that are numbers": ("1: x\nid: S1\nlabel: y\nacquisitions: {}", r"1: got 1, expected Keys should be strings"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_in_the_sample_names_file_key_and_expectation(tmp_path, fault):
    content, expected = FAULTS[fault]
    with pytest.raises(helpers.SampleError, match=expected) as caught:
        helpers.load_sample(write_sample(tmp_path, content), "S1")
    assert all(line.startswith("S1/sample.yaml") for line in str(caught.value).splitlines())
    assert str(tmp_path) not in str(caught.value)


def test_several_faults_are_told_at_once(tmp_path):
    content = changed("acquisitions", "haadf", "file", "no.tif") | {"id": "S2"}
    with pytest.raises(helpers.SampleError) as caught:
        helpers.load_sample(write_sample(tmp_path, content), "S1")
    assert len(str(caught.value).splitlines()) == 2


def test_a_link_out_of_the_folder_is_refused(tmp_path):
    write_sample(tmp_path, changed("acquisitions", "haadf", "file", "link.tif"))
    shutil.copy(tmp_path / "S1" / "haadf.tif", tmp_path / "outside.tif")
    (tmp_path / "S1" / "link.tif").symlink_to(tmp_path / "outside.tif")
    with pytest.raises(helpers.SampleError, match="expected a path inside"):
        helpers.load_sample(tmp_path, "S1")


def test_absent_folders_and_misnamed_files(tmp_path):
    with pytest.raises(helpers.SampleError, match="no such folder"):
        helpers.list_samples(tmp_path / "none")
    assert helpers.list_samples(tmp_path) == []
    write_sample(tmp_path, GOOD)
    (tmp_path / "S1" / "sample.yaml").rename(tmp_path / "S1" / "sampel.yaml")
    assert helpers.list_samples(tmp_path) == ["S1"]
    with pytest.raises(helpers.SampleError, match=r"S1/sample\.yaml: no such file; the folder holds sampel\.yaml"):
        helpers.load_sample(tmp_path, "S1")


def test_a_phase_beside_the_data_goes_before_the_project_s_own(tmp_path):
    write_sample(tmp_path, changed("acquisitions", "ped", "phases", ["mine"]))
    (tmp_path / "phases").mkdir()
    shutil.copy(helpers.phase_file("llzo"), tmp_path / "phases" / "mine.cif")
    assert helpers.load_sample(tmp_path, "S1").acquisitions.ped.phases == ["mine"]
    assert helpers.phase_file("mine", tmp_path) == tmp_path / "phases" / "mine.cif"


# --- recordings -------------------------------------------------------------------------

VENDOR_FILES = sorted((SHARED / "vendor_files").rglob("*.*")) if SHARED.is_dir() else []
READABLE = {".blo", ".mib", ".app5", ".dm3", ".dm4", ".ser", ".emd", ".mrc", ".tvips", ".tif", ".hspy"}


@needs_recordings
@pytest.mark.parametrize("path", VENDOR_FILES, ids=lambda p: p.name)
def test_every_vendor_file_loads_or_says_why_not(path):
    try:
        signal = emphase.frames.load_recording(path)
    except helpers.RecordingError as error:
        assert path.suffix not in READABLE, error
        assert path.name in str(error)
        return
    assert signal._lazy
    assert signal.axes_manager.signal_dimension == 2
    assert np.isfinite(float(signal.data.sum().compute()))


@needs_recordings
@pytest.mark.parametrize(
    ("file", "unit", "expected"),
    [
        ("haadf_sto/16_STOimage_1.ser", "nm", 0.010013),
        ("haadf_sto/Acquisition_18.emd", "nm", 0.012247),
        ("ped_steel/subset_data.hspy", "1/angstrom", 0.01261),
        ("vendor_files/test_diffraction_pattern.dm3", "1/angstrom", 0.017443),
        ("vendor_files/test_multi.mib", "nm", None),
        ("vendor_files/test1.blo", "1/angstrom", None),
    ],
)
def test_the_scale_that_a_file_states_is_read_in_the_wanted_unit(file, unit, expected):
    found = emphase.frames.axis_scale(emphase.frames.load_recording(SHARED / file), unit)
    assert found == (None if expected is None else pytest.approx(expected, rel=1e-4))


@needs_recordings
def test_shapes_of_the_kinds_of_recordings():
    vendor = SHARED / "vendor_files"
    assert emphase.frames.load_recording(vendor / "test1.blo", navigation_dimension=2).data.shape == (3, 2, 144, 144)
    assert emphase.frames.load_recording(vendor / "test_multi.mib", navigation_dimension=2).data.shape == (1, 9, 256, 256)
    assert emphase.frames.load_recording(vendor / "test.mib", navigation_dimension=2).data.shape == (1, 1, 256, 256)
    with pytest.raises(helpers.RecordingError, match=r"test1\.blo: holds arrays of shape \(3, 2, 144, 144\), expected one image"):
        emphase.frames.load_recording(vendor / "test1.blo", navigation_dimension=0)


def test_files_that_are_no_recordings(tmp_path):
    (tmp_path / "empty.tif").touch()
    (tmp_path / "text.tif").write_text("no image")
    (tmp_path / "notes.docx").write_text("no image")
    for name, reason in {
        "empty.tif": "is empty",
        "text.tif": "cannot be read",
        "notes.docx": "no reader",
        "none.tif": "no such file",
    }.items():
        with pytest.raises(helpers.RecordingError, match=f"{name}: .*{reason}"):
            emphase.frames.load_recording(tmp_path / name)


@pytest.mark.parametrize("suffix", [".hspy", ".zspy"])
def test_a_missing_calibration_comes_from_the_file_or_its_key_is_named(tmp_path, suffix):
    import hyperspy.api as hs

    file = f"image{suffix}"
    write_sample(tmp_path, changed("acquisitions", "haadf", {"file": file, "beam_energy_keV": 200}))
    path = tmp_path / "S1" / file

    def read(scale: float, units: str) -> float:
        signal = hs.signals.Signal2D(np.ones((8, 8), np.float32))
        for axis in signal.axes_manager.signal_axes:
            axis.scale, axis.units = scale, units
        signal.save(path, overwrite=True)
        return helpers.calibration(helpers.load_sample(tmp_path, "S1"), "haadf", "pixel_size_nm", emphase.frames.load_recording(path), "nm")

    assert read(20.0, "pm") == pytest.approx(0.02)
    before = emphase.files.file_sha256(path)
    with pytest.raises(helpers.SampleError, match=r"S1/sample\.yaml: acquisitions\.haadf\.pixel_size_nm: missing"):
        read(1.0, "px")
    assert emphase.files.file_sha256(path) != before
    with pytest.raises(helpers.SampleError, match=r"says 1e\+15 nm, expected less than or equal to 100"):
        read(1e6, "m")


# --- results ----------------------------------------------------------------------------


def test_a_result_is_written_whole_or_not_at_all(tmp_path):
    path = emphase.files.write_atomically(tmp_path / "deep" / "a.json", "old")
    with pytest.raises(TypeError):
        emphase.files.write_atomically(path, 3.0)
    assert path.read_text() == "old"
    emphase.files.write_atomically(path, b"new")
    assert path.read_text() == "new"
    assert [p.name for p in path.parent.iterdir()] == ["a.json"]


@pytest.mark.parametrize(
    "bad", [{"x_nm": math.nan}, {"x_nm": np.float32(np.inf)}, {"a": {"b": [1.0, math.nan]}}, {"x_nm": None}, {"a": [{"b": None}]}]
)
def test_results_hold_no_nan_and_no_unexplained_null(bad):
    with pytest.raises(helpers.ResultError):
        helpers.plain(bad)


def test_results_hold_plain_values():
    found = helpers.plain({"a": np.arange(2), "b": (np.float64(1.5), True), "c": None, "c_reason": "not measured", "p": Path("x")})
    assert found == {"a": [0, 1], "b": [1.5, True], "c": None, "c_reason": "not measured", "p": "x"}
    json.dumps(found, allow_nan=False)


def test_a_missing_result_names_the_step_to_run(tmp_path):
    with pytest.raises(helpers.ResultError, match="run 05_ped_calibration for 600C first"):
        helpers.read_result(tmp_path, "600C", "05_ped_calibration")
    emphase.files.write_atomically(tmp_path / "600C" / "05_ped_calibration.json", '{"status": "o')
    with pytest.raises(helpers.ResultError, match=r"not JSON .*; run 05_ped_calibration for 600C again"):
        helpers.read_result(tmp_path, "600C", "05_ped_calibration")


def test_unknown_parameters_are_refused():
    known = helpers.notebook_parameters(helpers.PROJECT_ROOT / "notebooks" / "01_lamella_metadata.ipynb")
    assert {"sample_id", "data_dir", "results_dir", "figures_dir"} <= set(known)
    helpers.check_parameters("01", ["sample_id"], known)
    with pytest.raises(helpers.ParameterError, match=r"unknown parameter sampel_id, expected one of .*did you mean sample_id"):
        helpers.check_parameters("01", ["sampel_id"], known)


# --- crystals ---------------------------------------------------------------------------


def phase(name: str) -> emphase.crystals.Crystal:
    return helpers.phase_crystal(name)


def d_and_intensity(crystal: emphase.crystals.Crystal, *hkl: int) -> tuple[float, float]:
    """d (Å) and |F/V|² relative to the strongest reflection."""
    strongest = emphase.crystals.reflections(crystal, 1.0).intensity.max()
    g = np.linalg.norm(np.array(hkl) @ crystal.reciprocal)
    factor = emphase.crystals.structure_factors(crystal, np.array([hkl]))[0]
    return 1 / g, abs(factor / crystal.volume) ** 2 / strongest


# d from the published cells: d = a / sqrt(h²+k²+l²), hexagonal 1/d² = 4/3 (h²+hk+k²)/a² + l²/c²
SPACINGS = [
    ("rocksalt", (1, 1, 1), 2.412),
    ("rocksalt", (2, 0, 0), 2.089),
    ("rocksalt", (2, 2, 0), 1.477),
    ("layered", (0, 0, 3), 4.740),
    ("layered", (1, 0, 1), 2.445),
    ("layered", (1, 0, 4), 2.0356),
    ("layered", (1, 1, 0), 1.4335),
    ("spinel", (1, 1, 1), 4.694),
    ("spinel", (3, 1, 1), 2.451),
    ("spinel", (4, 0, 0), 2.0325),
    ("llzo", (2, 1, 1), 5.295),
    ("llzo", (4, 2, 0), 2.900),
    ("la2zr2o7", (2, 2, 2), 3.118),
]


@pytest.mark.parametrize(("name", "hkl", "d"), SPACINGS)
def test_d_spacings_are_those_published(name, hkl, d):
    found, intensity = d_and_intensity(phase(name), *hkl)
    assert found == pytest.approx(d, rel=1.5e-3)
    assert intensity > 1e-3


@pytest.mark.parametrize(
    ("name", "extinct", "why"),
    [
        ("rocksalt", lambda h, k, l: len({h % 2, k % 2, l % 2}) > 1, "F: all even or all odd"),
        ("layered", lambda h, k, l: (-h + k + l) % 3 != 0, "R, obverse: -h + k + l = 3n"),
        ("spinel", lambda h, k, l: len({h % 2, k % 2, l % 2}) > 1, "F"),
        ("spinel", lambda h, k, l: h == 0 and (k + l) % 4 != 0, "d glide of Fd-3m: 0kl with k + l = 4n"),
        ("la2zr2o7", lambda h, k, l: h == 0 and (k + l) % 4 != 0, "d glide of Fd-3m"),
        ("llzo", lambda h, k, l: (h + k + l) % 2 != 0, "I: h + k + l even"),
        ("llzo", lambda h, k, l: h == 0 and (k % 2 or l % 2), "a glide of Ia-3d: 0kl with k, l even"),
        ("llzo", lambda h, k, l: h == k and (2 * h + l) % 4 != 0, "d glide of Ia-3d: hhl with 2h + l = 4n"),
        ("li2co3", lambda h, k, l: (h + k) % 2 != 0, "C: h + k even"),
        ("li2co3", lambda h, k, l: k == 0 and (h % 2 or l % 2), "c glide of C2/c: h0l with h, l even"),
    ],
)
def test_extinctions_of_the_space_groups(name, extinct, why):
    found = emphase.crystals.reflections(phase(name), 0.8, 1e-9)
    assert len(found.hkl) > 20
    assert not [tuple(hkl) for hkl in found.hkl if extinct(*hkl)], why


def test_odd_l_of_the_layered_phase_is_what_rocksalt_lacks():
    """003 and 101 are seen in layered; spinel-only and layered-only spots have no match in rocksalt within 3 %."""
    layered, rocksalt = phase("layered"), phase("rocksalt")
    spacings = emphase.crystals.reflections(rocksalt, 1.0).d_A
    assert d_and_intensity(layered, 0, 0, 3)[1] > 0.05
    for hkl in [(0, 0, 3), (1, 0, 5), (1, 0, 7)]:
        assert np.abs(spacings / d_and_intensity(layered, *hkl)[0] - 1).min() > 0.03
    for hkl in [(0, 0, 6), (1, 0, 2), (1, 0, 4), (1, 1, 0)]:
        assert np.abs(spacings / d_and_intensity(layered, *hkl)[0] - 1).min() < 0.035


@needs_recordings
@pytest.mark.parametrize(("own", "file"), [("rocksalt", "NiO-Bunsenite.cif"), ("li2co3", "Li2CO3-Zabuyelite.cif")])
def test_own_structures_agree_with_the_open_databases(own, file):
    ours, theirs = phase(own), emphase.crystals.read_crystal(SHARED / "cifs" / file)
    a, b = emphase.crystals.reflections(ours, 0.7, 1e-3), emphase.crystals.reflections(theirs, 0.7, 1e-3)
    assert ours.volume == pytest.approx(theirs.volume, rel=0.01)
    assert sorted(ours.elements) == sorted(theirs.elements)
    strong = np.argsort(b.intensity)[::-1][:12]
    for d, intensity in zip(b.d_A[strong], b.intensity[strong], strict=True):
        same = np.abs(a.d_A / d - 1) < 0.01
        assert np.any(np.abs(a.intensity[same] / intensity - 1) < 0.15), (d, intensity)


@needs_recordings
def test_the_layered_structure_is_that_of_licoo2():
    crystals = phase("layered"), emphase.crystals.read_crystal(SHARED / "cifs" / "LiCoO2_R-3m_dans-diffraction.cif")
    near = [{tuple(hkl) for hkl in emphase.crystals.reflections(c, 0.6, 1e-4).hkl} for c in crystals]
    far = [{tuple(hkl) for hkl in emphase.crystals.reflections(c, 0.7, 1e-5).hkl} for c in crystals]
    assert near[0] <= far[1]
    assert near[1] <= far[0]


@pytest.mark.parametrize("name", ["layered", "llzo", "li2co3", "lanio3"])
def test_lattice_frame_is_that_of_orix(name):
    """e1 along a, e3 along c*: reciprocal vectors agree with orix, for cells that are not orthogonal too."""
    from orix.vector import Miller

    crystal = phase(name)
    hkl = np.array([[1, 0, 0], [0, 1, 0], [0, 0, 3], [1, 1, 2], [1, 0, -4]])
    theirs = Miller(hkl=hkl, phase=crystal.orix_phase()).data
    np.testing.assert_allclose(hkl @ crystal.reciprocal, theirs, atol=1e-9)


@pytest.mark.parametrize(
    ("content", "reason"), [("", "cannot be read|holds no atoms"), ("data_x\n_cell_length_a 3\n", "cannot be read|holds no atoms")]
)
def test_a_broken_cif_says_so(tmp_path, content, reason):
    (tmp_path / "bad.cif").write_text(content)
    with pytest.raises(helpers.SampleError, match=rf"bad\.cif: .*({reason})"):
        emphase.crystals.read_crystal(tmp_path / "bad.cif")


def test_the_crystal_structures_are_those_that_make_phases_writes():
    make_phases = runpy.run_path(str(helpers.PROJECT_ROOT / "data" / "phases" / "make_phases.py"))
    for name, values in make_phases["PHASES"].items():
        assert make_phases["cif_text"](name, **values) == helpers.phase_file(name).read_text(encoding="utf-8"), name


def test_every_phase_cites_its_source():
    for path in (helpers.PROJECT_ROOT / "data" / "phases").glob("*.cif"):
        assert re.search(r"_publ|_journal|doi|Acta|J\. |Chem", path.read_text(encoding="utf-8")), path.name
