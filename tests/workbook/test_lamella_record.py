"""Notebook 01: findings on the lamella, names of NXem, and the gate against broken recordings."""

import json

import hyperspy.api as hs
import numpy as np
import pytest
import tifffile
import yaml
from executed import alone
from fib_tiffs import write_fei, write_tescan, write_zeiss

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


# --- the FIB's own images -------------------------------------------------------------------


def with_images(folder):
    """Three images of one FIB: rough milling, polish at 2 kV, and the electron beam; the file names are not in order of time."""
    (folder / "S").mkdir()
    write_fei(folder / "S" / "b_rough.tif", Time="10:00:00 AM", BeamCurrent="2.5e-009")
    write_fei(folder / "S" / "a_polish.tif", Time="11:00:00 AM", HV="2000", StageT="0.959931089")
    write_fei(folder / "S" / "look.tif", "EBeam", HV="5000", Time="11:30:00 AM")
    return ["a_polish.tif", "b_rough.tif", "look.tif"]


def test_images_of_the_ion_beam_are_the_steps_where_none_are_written(tmp_path):
    record = {"images": with_images(tmp_path), "final_thickness_nm": 80}
    filled, images, findings = helpers.with_fib_images(sample_with(tmp_path, record))
    assert [i.file for i in images] == record["images"]
    assert [s.stage for s in filled.lamella.steps] == ["b_rough.tif (image)", "a_polish.tif (image)"]
    assert [s.milling_voltage_kV for s in filled.lamella.steps] == pytest.approx([30, 2])
    assert [s.milling_current_nA for s in filled.lamella.steps] == pytest.approx([2.5, 0.077])
    assert [s.stage_tilt_deg for s in filled.lamella.steps] == pytest.approx([52, 55], abs=1e-4)
    assert all(s.angle_deg is None for s in filled.lamella.steps), "a stage tilt is no milling angle"
    assert filled.lamella.instrument == "Helios G4 UX"
    assert "instrument and steps" in texts(findings, "note") and not texts(findings, "warning")
    assert "Final polish a_polish.tif (image) at 2 kV" in texts(helpers.lamella_findings(filled, CRYSTALS), "ok")
    entry = helpers.nxem_entry(filled)
    assert entry["not_in_nxem"]["event2"]["stage_tilt_deg"] == pytest.approx(55, abs=1e-4)


def test_what_is_written_by_hand_stays_and_contradictions_are_findings(tmp_path):
    sample = sample_with(tmp_path, lamella(images=with_images(tmp_path), instrument="Zeiss Crossbeam"))
    filled, _, findings = helpers.with_fib_images(sample)
    assert filled.lamella == sample.lamella
    assert "The instrument is Helios G4 UX in look.tif and Zeiss Crossbeam in the record" in texts(findings, "warning")
    fits = sample_with(tmp_path, lamella(images=sample.lamella.images, instrument="Helios"))
    assert helpers.with_fib_images(fits)[2] == []
    steps = [STEPS[0], STEPS[1] | {"milling_voltage_kV": 5}]
    _, _, findings = helpers.with_fib_images(sample_with(tmp_path, lamella(images=sample.lamella.images, instrument="Helios", steps=steps)))
    assert "a_polish.tif (2 kV)" in texts(findings, "warning") and "Polish (5 kV)" in texts(findings, "note")


def test_images_that_cannot_be_read_are_findings(tmp_path):
    names = with_images(tmp_path)
    tifffile.imwrite(tmp_path / "S" / "edited.tif", np.zeros((9, 9), "u1"))
    (tmp_path / "S" / "text.tif").write_text("no image")
    (tmp_path / "S" / "cut.tif").write_bytes((tmp_path / "S" / "look.tif").read_bytes()[:900])
    _, images, findings = helpers.with_fib_images(sample_with(tmp_path, lamella(images=[*names, "edited.tif", "text.tif", "cut.tif"])))
    warned = texts(findings, "warning")
    assert len(images) == 3
    assert "lamella.images.3: edited.tif: a TIFF without the metadata of a FIB" in warned
    assert "lamella.images.4: text.tif: no TIFF" in warned and "lamella.images.5: cut.tif: " in warned


@pytest.mark.parametrize(
    ("name", "words"), [("no.tif", r"no file 'no\.tif'"), ("../x.tif", "expected a path inside"), ("x" * 300, "name of a file|no file")]
)
def test_an_image_that_is_not_there_is_a_fault_of_the_sample(tmp_path, name, words):
    with pytest.raises(helpers.SampleError, match=rf"^S/sample\.yaml: lamella\.images\.0: .*({words})"):
        sample_with(tmp_path, lamella(images=[name]))


def test_the_notebook_reads_images_of_every_maker(tmp_path):
    names = with_images(tmp_path)
    write_zeiss(tmp_path / "S" / "zeiss.tif")
    write_tescan(tmp_path / "S" / "tescan.tif")
    tifffile.imwrite(tmp_path / "S" / "edited <b>.tif", np.zeros((9, 9), "u1"))
    sample_with(tmp_path, {"images": [*names, "zeiss.tif", "tescan.tif", "edited <b>.tif"]})
    folders = {"data_dir": str(tmp_path), "results_dir": str(tmp_path / "r"), "figures_dir": str(tmp_path / "f")}
    assert alone("01_lamella_metadata", tmp_path / "run", {"sample_id": "S", **folders}) is None
    result = json.loads((tmp_path / "r" / "S" / "01_lamella_metadata.json").read_text())
    by_file = {image["file"]: image for image in result["fib_images"]}
    assert [by_file[n]["maker"] for n in ("a_polish.tif", "zeiss.tif", "tescan.tif")] == ["FEI", "Zeiss", "Tescan"]
    assert by_file["tescan.tif"]["voltage_kV"] == 30 and by_file["look.tif"]["beam"] == "electron"
    assert by_file["zeiss.tif"]["acquired"] == "2024-03-21T14:05:09"
    assert "lamella.images.5: edited <b>.tif" in texts(result["findings"], "warning")
    assert {"a_polish.tif", "edited <b>.tif"} <= set(result["inputs"])
    assert len([k for k in result["nxem"]["measurement"] if k.startswith("event")]) == 4
