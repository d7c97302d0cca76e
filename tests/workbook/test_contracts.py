"""The contracts: sample.yaml and its faults, results that are written whole, parameters, and the crystal structures of the study."""

import json
import math
import re
import runpy
import shutil
from functools import partial
from pathlib import Path

import broken
import numpy as np
import pytest
import tifffile
import yaml

import emphase
import helpers

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


changed = partial(broken.changed, GOOD)


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


# --- results -----------------------------------------------------------------------------------


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


# --- crystal structures ------------------------------------------------------------------------


def test_the_crystal_structures_are_those_that_make_phases_writes():
    make_phases = runpy.run_path(str(helpers.PROJECT_ROOT / "data" / "phases" / "make_phases.py"))
    for name, values in make_phases["PHASES"].items():
        assert make_phases["cif_text"](name, **values) == helpers.phase_file(name).read_text(encoding="utf-8"), name


def test_every_phase_cites_its_source():
    for path in (helpers.PROJECT_ROOT / "data" / "phases").glob("*.cif"):
        assert re.search(r"_publ|_journal|doi|Acta|J\. |Chem", path.read_text(encoding="utf-8")), path.name
