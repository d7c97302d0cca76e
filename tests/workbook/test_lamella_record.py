"""Notebook 01: findings on the lamella, names of NXem, and the gate against broken recordings."""

import hyperspy.api as hs
import numpy as np
import pytest
import tifffile
import yaml

import helpers

CRYSTALS = {name: helpers.phase_crystal(name) for name in ("layered", "llzo")}
STEPS = [
    {"stage": "MillRough", "milling_voltage_kV": 30, "milling_current_nA": 2.5, "angle_deg": 1.5},
    {"stage": "Polish", "milling_voltage_kV": 2, "milling_current_nA": 0.03, "angle_deg": 3},
]


def lamella(**changes):
    full = {
        "instrument": "FIB-SEM",
        "ion": "Ga",
        "frame": {"all_around": True, "material": "Pt-C", "thickness_um": 1.5},
        "steps": STEPS,
        "final_thickness_nm": 30,
        "air_exposure_min": 0,
    }
    return full | changes


def sample_with(folder, record, acquisitions=None):
    content = {
        "id": "S",
        "label": "a sample",
        "simulated": True,
        "composition": {"cathode": "LiNi0.6Co0.2Mn0.2O2", "electrolyte": "Li6.25Al0.25La3Zr2O12"},
        "lamella": record,
        "acquisitions": acquisitions or {},
    }
    (folder / "S").mkdir(exist_ok=True)
    (folder / "S" / "sample.yaml").write_text(yaml.safe_dump(content, allow_unicode=True), encoding="utf-8")
    return helpers.load_sample(folder, "S")


def texts(findings, level):
    return " | ".join(f["text"] for f in findings if f["level"] == level)


def test_a_good_lamella_gives_no_warning(tmp_path):
    findings = helpers.lamella_findings(sample_with(tmp_path, lamella()), CRYSTALS)
    assert not texts(findings, "warning")
    assert "record is complete" in texts(findings, "ok")
    assert all(f["reason"] for f in findings)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"steps": [*STEPS, {"stage": "Last", "milling_voltage_kV": 8}]}, "above 5 kV"),
        ({"steps": [*STEPS, {"stage": "Last", "milling_voltage_kV": 8}]}, "rises again"),
        ({"final_thickness_nm": 200}, "inelastic mean free paths"),
        ({"final_thickness_nm": 10, "steps": STEPS[:1]}, "is amorphous"),
        ({"air_exposure_min": 60}, "Li₂CO₃"),
        ({"frame": None}, "frame is not recorded"),
        ({"steps": []}, "No milling voltage"),
        ({"final_thickness_nm": None}, "Final thickness not recorded"),
    ],
)
def test_a_fault_of_the_lamella_is_a_warning(tmp_path, change, words):
    assert words in texts(helpers.lamella_findings(sample_with(tmp_path, lamella(**change)), CRYSTALS), "warning")


def test_missing_fields_are_listed_by_key(tmp_path):
    findings = helpers.lamella_findings(sample_with(tmp_path, {"steps": [{"stage": "Polish"}]}), CRYSTALS)
    for key in ("lamella.instrument", "lamella.air_exposure_min", "lamella.steps.0.milling_voltage_kV"):
        assert key in texts(findings, "note")


def test_nxem_names_units_and_what_is_missing(tmp_path):
    entry = helpers.nxem_entry(sample_with(tmp_path, lamella()))
    assert entry["definition"] == "NXem"
    assert len(entry["definition_version"]) == 40
    source = entry["measurement"]["event2"]["instrument"]["ibeam_column"]["ion_source"]
    assert source == {"voltage": {"value": 2.0, "units": "kV"}, "current": {"value": 0.03, "units": "nA"}}
    assert entry["sample"]["thickness"] == {"value": 30.0, "units": "nm"}
    assert entry["sample"]["is_simulation"] is True
    assert "start_time" in entry["missing_required"]
    helpers.plain(entry)


def write_recordings(folder):
    rng = np.random.default_rng(1)
    scan = hs.signals.Signal2D(rng.integers(1, 200, (4, 5, 48, 48)).astype("u1"))
    for axis, unit in zip(scan.axes_manager._axes, ("nm", "nm", "cm", "cm"), strict=True):
        axis.units = unit
    scan.save(folder / "ped.blo", show_progressbar=False)
    scan.inav[:, 0].save(folder / "cryo.hspy")
    tifffile.imwrite(folder / "haadf.tif", rng.integers(1, 60000, (128, 120)).astype("u2"))
    tifffile.imwrite(folder / "packed.tif", rng.integers(1, 60000, (128, 120)).astype("u2"), compression="zlib")
    return {
        "ped": {"file": "ped.blo", "beam_energy_keV": 200, "precession_deg": 0.5, "phases": ["layered"], "step_nm": 8},
        "cryo_stem": {"file": "cryo.hspy", "beam_energy_keV": 200, "frame_dose_e_per_A2": 2.0, "pixel_size_nm": 0.04},
        "haadf": {"file": "haadf.tif", "beam_energy_keV": 200, "pixel_size_nm": 0.01},
        "interface": {"file": "packed.tif", "beam_energy_keV": 200},
    }


def test_whole_recordings_are_told(tmp_path):
    (tmp_path / "S").mkdir()
    sample = sample_with(tmp_path, lamella(), write_recordings(tmp_path / "S"))
    found = {r["kind"]: r for r in helpers.check_recordings(sample)}
    assert found["ped"]["shape"] == [4, 5, 48, 48]
    assert found["cryo_stem"]["dose"].endswith("10 e/Å² in 5 frames")
    assert "missing: set acquisitions.interface.pixel_size_nm" in found["interface"]["calibration"]["pixel_size_nm"]


@pytest.mark.parametrize("share", [0.9, 0.3])
@pytest.mark.parametrize(
    ("kind", "name"), [("ped", "ped.blo"), ("cryo_stem", "cryo.hspy"), ("haadf", "haadf.tif"), ("interface", "packed.tif")]
)
def test_a_truncated_recording_is_one_clear_error(tmp_path, kind, name, share):
    (tmp_path / "S").mkdir()
    acquisitions = write_recordings(tmp_path / "S")
    path = tmp_path / "S" / name
    content = path.read_bytes()
    path.unlink()
    path.write_bytes(content[: int(len(content) * share)])
    with pytest.raises(helpers.RecordingError) as caught:
        helpers.check_recordings(sample_with(tmp_path, lamella(), acquisitions))
    text = str(caught.value)
    assert len(text.splitlines()) == 1
    assert f"acquisitions.{kind}.file" in text
    assert name in text
    assert "expected" in text


def test_a_recording_of_the_wrong_kind(tmp_path):
    (tmp_path / "S").mkdir()
    acquisitions = write_recordings(tmp_path / "S")
    acquisitions["haadf"]["file"] = "cryo.hspy"
    with pytest.raises(helpers.RecordingError, match="expected one image"):
        helpers.check_recordings(sample_with(tmp_path, lamella(), acquisitions))
