"""What makers of focused ion beams write into their images, against files made with known numbers; and records against images."""

from datetime import datetime
from types import SimpleNamespace

import pytest
import tifffile
from fib_tiffs import PIXELS, tescan_content, write_fei, write_tescan, write_zeiss

import emphase
from emphase.fib_images import FibImage, ion_settings, read_fib_image
from emphase.milling import contradictions

NOON = datetime(2024, 3, 21, 12)


def test_fei_in_kilovolts_nanoamperes_degrees_and_microseconds(tmp_path):
    image = read_fib_image(write_fei(tmp_path / "a.tif"))
    assert (image.file, image.maker, image.instrument, image.beam) == ("a.tif", "FEI", "Helios G4 UX", "ion")
    assert image.voltage_kV == pytest.approx(30)
    assert image.current_nA == pytest.approx(0.077)
    assert image.stage_tilt_deg == 52  # 0.907571211 rad, to six digits
    assert image.dwell_time_us == pytest.approx(1)
    assert image.acquired == datetime(2024, 3, 21, 14, 5, 9)


def test_fei_electron_beam_has_its_own_section(tmp_path):
    image = read_fib_image(write_fei(tmp_path / "a.tif", "EBeam", HV="2000", BeamCurrent="5e-011", StageT="0"))
    assert (image.beam, image.stage_tilt_deg) == ("electron", 0)
    assert (image.voltage_kV, image.current_nA) == (pytest.approx(2), pytest.approx(0.05))


@pytest.mark.parametrize(
    ("date", "time", "moment"),
    [
        ("21.03.2024", "14:05:09", datetime(2024, 3, 21, 14, 5, 9)),
        ("21/03/2024", "14:05:09", datetime(2024, 3, 21, 14, 5, 9)),  # no 21st month
        ("04/03/2024", "12:00:00 AM", datetime(2024, 4, 3)),
        ("yesterday", "", None),
    ],
)
def test_dates_as_regions_write_them(tmp_path, date, time, moment):
    assert read_fib_image(write_fei(tmp_path / "a.tif", Date=date, Time=time)).acquired == moment


def test_zeiss_ion_beam_is_not_taken_for_the_electron_beam_beside_it(tmp_path):
    image = read_fib_image(write_zeiss(tmp_path / "a.tif"))
    assert (image.maker, image.instrument, image.beam) == ("Zeiss", "Crossbeam 540", "ion")
    assert (image.voltage_kV, image.current_nA) == (30, pytest.approx(0.05))
    assert (image.stage_tilt_deg, image.dwell_time_us) == (54, pytest.approx(0.4))
    assert image.acquired == datetime(2024, 3, 21, 14, 5, 9)
    electron = read_fib_image(write_zeiss(tmp_path / "b.tif", beam="SEM"))
    assert (electron.beam, electron.voltage_kV, electron.current_nA) == ("electron", 5, pytest.approx(0.7))


@pytest.mark.parametrize(("probe", "kV", "nA"), [("5kV:20pA", 5, 0.02), ("30KV:1.5 nA", 30, 1.5), ("16 kV: 3 nA", 16, 3)])
def test_zeiss_probes(tmp_path, probe, kV, nA):
    image = read_fib_image(write_zeiss(tmp_path / "a.tif", probe=probe))
    assert (image.voltage_kV, image.current_nA) == (kV, pytest.approx(nA))


def test_zeiss_that_does_not_say_which_beam(tmp_path):
    image = read_fib_image(write_zeiss(tmp_path / "a.tif", beam="Mixed"))
    assert (image.beam, image.voltage_kV, image.current_nA, image.stage_tilt_deg) == (None, None, None, 54)


def test_tescan_reads_the_block_of_its_beam(tmp_path):
    image = read_fib_image(write_tescan(tmp_path / "a.tif"))
    assert (image.maker, image.instrument, image.beam) == ("Tescan", "TESCAN AMBER X", "ion")
    assert (image.voltage_kV, image.current_nA) == (30, pytest.approx(0.15))
    assert (image.stage_tilt_deg, image.dwell_time_us) == (55, pytest.approx(3.2))
    assert image.acquired == datetime(2024, 3, 21, 14, 5, 9)
    electron = read_fib_image(write_tescan(tmp_path / "b.tif", tescan_content("SEM", HV="5000")))
    assert (electron.beam, electron.voltage_kV) == ("electron", 5)


def test_a_record_has_no_null_without_a_reason(tmp_path):
    record = read_fib_image(write_fei(tmp_path / "a.tif", BeamCurrent="", Date="?")).as_record()
    assert record["current_nA"] is None and record["current_nA_reason"]
    assert record["acquired"] is None and record["acquired_reason"]
    assert "voltage_kV_reason" not in record


def test_a_tiff_of_another_program(tmp_path):
    tifffile.imwrite(tmp_path / "a.tif", PIXELS)
    with pytest.raises(emphase.EmphaseError, match=r"a\.tif: a TIFF without the metadata of a FIB, expected those of FEI.*Zeiss or Tescan"):
        read_fib_image(tmp_path / "a.tif")


@pytest.mark.parametrize("content", [b"", b"II", b"not an image", b"\x89PNG\r\n\x1a\n" + bytes(100)])
def test_what_is_no_tiff(tmp_path, content):
    (tmp_path / "a.tif").write_bytes(content)
    with pytest.raises(emphase.EmphaseError, match=r"a\.tif: no TIFF or a damaged one.*expected one as the FIB saved it"):
        read_fib_image(tmp_path / "a.tif")


@pytest.mark.parametrize("write", [write_fei, write_zeiss, write_tescan])
def test_every_cut_is_told_in_one_line(tmp_path, write):
    whole = write(tmp_path / "a.tif").read_bytes()
    for length in range(0, len(whole), 61):
        (tmp_path / "a.tif").write_bytes(whole[:length])
        with pytest.raises(emphase.EmphaseError, match=r"^a\.tif: .*expected") as caught:
            read_fib_image(tmp_path / "a.tif")
        assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize(
    ("content", "words"), [(b"\x09\x00\x00\x00\x02\x00AB", "tells of 9 bytes"), (b"\x02\x00\x00\x00\x00\x00", "without a block of text")]
)
def test_tescan_blocks_that_do_not_fit(tmp_path, content, words):
    with pytest.raises(emphase.EmphaseError, match=words):
        read_fib_image(write_tescan(tmp_path / "a.tif", content))


def test_a_number_that_no_instrument_has(tmp_path):
    with pytest.raises(emphase.EmphaseError, match=r"a\.tif: voltage_kV is 3e\+07 in the FEI metadata, expected 0\.01 to 60"):
        read_fib_image(write_fei(tmp_path / "a.tif", HV="3e10"))


def image(voltage_kV, hour=0, tilt_deg=52.0, file=None, instrument="Helios G4 UX", beam="ion"):
    name = file or f"{voltage_kV}kV_{hour}.tif"
    return FibImage(name, "FEI", instrument, beam, voltage_kV, 0.1, 1.0, tilt_deg, NOON.replace(hour=hour))


def step(stage, voltage_kV, tilt_deg=None):
    return SimpleNamespace(stage=stage, milling_voltage_kV=voltage_kV, stage_tilt_deg=tilt_deg)


STEPS = [step("Rough", 30), step("Fine", 30), step("Polish", 5), step("Last", 2)]


def test_settings_come_by_time_once_each_and_without_electrons():
    images = [image(5, 9), image(2, 7, beam="electron"), image(30, 8), image(30, 6, file="first.tif"), image(30, 10)]
    assert [i.file for i in ion_settings(images)] == ["first.tif", "5kV_9.tif", "30kV_10.tif"]


def test_images_that_agree_contradict_nothing():
    assert contradictions([image(30, 8), image(5.02, 9), image(2, 10)], STEPS, "FEI Helios") == []
    assert contradictions([], STEPS, "Helios") == contradictions([image(30)], [], None) == []


def test_contradictions_of_voltage_order_and_tilt():
    (unseen,) = contradictions([image(30, 8), image(5, 9)], STEPS)
    assert unseen.level == "note" and "Last (2 kV)" in unseen.text and "Polish" not in unseen.text
    unwritten, _ = contradictions([image(30, 8), image(5, 9), image(8, 10)], STEPS)
    assert unwritten.level == "warning" and "8kV_10.tif (8 kV)" in unwritten.text
    (order,) = contradictions([image(30, 8), image(5, 9), image(2, 10), image(30, 11)], STEPS)
    assert order.level == "warning" and "30kV_11.tif at 30 kV is later than 2kV_10.tif" in order.text
    tilted = contradictions([image(30, 8)], [step("Rough", 30, 54.0), step("Fine", 30, 52.5)])
    assert [c.text for c in tilted] == ["Rough has a stage tilt of 54°, images at its voltage show 52.0°"]


@pytest.mark.parametrize(
    ("written", "shown", "agrees"),
    [
        ("Helios G4", "Helios G4 UX", True),
        ("FEI Helios", "Helios NanoLab 660", True),
        ("Thermo Fisher", "Helios G4 UX", True),
        ("FIB-SEM", "Helios G4 UX", True),
        ("Scios", None, True),  # nothing to compare with
        ("Zeiss Crossbeam", "Helios G4 UX", False),
        ("Helios 5 UX", "Helios G4 UX", False),
        ("Scios", "Helios G4 UX", False),
    ],
)
def test_names_of_instruments(written, shown, agrees):
    found = contradictions([image(30, instrument=shown)], [], written)
    assert (not found) == agrees
