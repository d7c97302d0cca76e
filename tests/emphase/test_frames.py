"""Recordings: formats of vendors, scales, faults, and files that were changed at random."""

import math
import pickle
from dataclasses import replace
from pathlib import Path

import hyperspy.api as hs
import numpy as np
import pytest
import study
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from test_bad_input import VENDOR, flipped

import emphase

SHARED = study.SHARED / "realdata"
needs_recordings = pytest.mark.skipif(not SHARED.is_dir(), reason="../shared/realdata is not here")
VENDOR_FILES = sorted((SHARED / "vendor_files").rglob("*.*")) if SHARED.is_dir() else []
READABLE = {".blo", ".mib", ".app5", ".dm3", ".dm4", ".ser", ".emd", ".mrc", ".tvips", ".tif", ".hspy"}
properties = settings(deadline=None, derandomize=True, max_examples=150, suppress_health_check=list(HealthCheck), database=None)
few = settings(properties, max_examples=60)


@needs_recordings
@pytest.mark.parametrize("path", VENDOR_FILES, ids=lambda p: p.name)
def test_every_vendor_file_loads_or_says_why_not(path):
    try:
        signal = emphase.frames.load_recording(path)
    except emphase.EmphaseError as error:
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
    with pytest.raises(emphase.EmphaseError, match=r"test1\.blo: holds arrays of shape \(3, 2, 144, 144\), expected one image"):
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
        with pytest.raises(emphase.EmphaseError, match=f"{name}: .*{reason}"):
            emphase.frames.load_recording(tmp_path / name)


@pytest.fixture
def scan(tmp_path):
    """A small scan of patterns in a file with chunks."""
    path = tmp_path / "scan.hspy"
    hs.signals.Signal2D(np.random.default_rng(3).poisson(5, (20, 18, 12, 14)).astype(np.uint8)).save(path, chunks=(4, 8, 12, 14))
    return path


def test_recorded_frames_read_as_the_array_does_and_go_to_another_process_as_a_name(scan):
    frames = emphase.frames.RecordedFrames(scan, 2)
    whole = np.asarray(frames.signal.data)
    assert np.array_equal(frames[3:7, ::2], whole[3:7, ::2])
    packed = pickle.dumps(frames)
    assert len(packed) < 1000 and np.array_equal(pickle.loads(packed)[0, 0], whole[0, 0])


# --- files that were changed -------------------------------------------------------------------


def _recordings(folder: Path) -> dict[str, bytes]:
    """Small valid files of the formats that the workbook itself writes, and the smallest recorded ones where they are here."""
    rng = np.random.default_rng(0)
    found = {}
    for name, shape in (("image.tif", (24, 32)), ("image.hspy", (24, 32)), ("scan.hspy", (2, 3, 16, 16)), ("scan.blo", (2, 3, 16, 16))):
        signal = hs.signals.Signal2D(rng.poisson(5, shape).astype(np.uint8))
        for axis in signal.axes_manager.signal_axes:
            axis.scale, axis.units = (1.0, "cm") if name.endswith(".blo") else (0.02, "nm")
        signal.save(folder / name, overwrite=True)
        found[name] = (folder / name).read_bytes()
    np.save(folder / "image.npy", rng.poisson(5, (24, 32)))
    found["image.npy"] = (folder / "image.npy").read_bytes()
    for name in RECORDED:
        if (VENDOR / name).is_file():
            found[name] = (VENDOR / name).read_bytes()
    return found


@pytest.fixture(scope="module")
def recordings(tmp_path_factory) -> tuple[Path, dict[str, bytes]]:
    folder = tmp_path_factory.mktemp("recordings")
    return tmp_path_factory.mktemp("mutated"), _recordings(folder)


FILES = ["image.tif", "image.hspy", "scan.hspy", "scan.blo", "image.npy"]
RECORDED = ["test2.blo", "test_tvips_2345_000.tvips", "20241021_00405_movie.mrc", "64x64x5_TEM_preview_1.ser", "test_STEM_image.dm3"]


@settings(properties, max_examples=40)
@given(seed=st.integers(0, 2**32 - 1), count=st.sampled_from([1, 2, 4, 16, 200]), share=st.sampled_from([1.0, 1.0, 0.97, 0.6, 0.1, 0.01]),
       more=st.binary(max_size=20), dimension=st.sampled_from([None, 0, 1, 2]))  # fmt: skip
@pytest.mark.parametrize("file", FILES + RECORDED)
def test_bytes_that_were_changed_are_a_signal_or_an_error_of_its_own(recordings, file, seed, count, share, more, dimension):
    folder, known = recordings
    if file not in known:
        pytest.skip("../shared/realdata is not here")
    content = flipped(known[file], seed, count)
    (folder / file).write_bytes(content[: int(share * len(content))] + more)
    try:
        signal = emphase.frames.load_recording(folder / file, navigation_dimension=dimension)
        values = emphase.frames.read_array(signal.data, file)
        scale = emphase.frames.axis_scale(signal, "nm")
    except emphase.EmphaseError as error:
        assert file in str(error) and str(folder) not in str(error)
        return
    assert values.shape == signal.data.shape and values.dtype.kind in "iuf"
    assert scale is None or math.isfinite(scale)


def test_a_header_that_announces_too_much_to_count_ends(recordings, monkeypatch):
    """16386 x 300 patterns of 32773 x 32773 pixels: the reader makes a slice for each of their chunks."""
    folder, known = recordings
    header = bytearray(known["scan.blo"])
    for at, value in ((20, 32773), (24, 16386), (26, 300)):  # DP_SZ, NX, NY
        header[at : at + 2] = value.to_bytes(2, "little")
    (folder / "counted.blo").write_bytes(header)
    monkeypatch.setattr(emphase.frames, "LIMITS", replace(emphase.frames.LIMITS, reader_s=1))
    with pytest.raises(
        emphase.EmphaseError, match=r"counted\.blo: (its header announces more than can be read in 1 s|announces|cannot be read)"
    ):
        emphase.frames.load_recording(folder / "counted.blo")


@few
@given(st.text(max_size=40))
def test_any_unit_is_a_scale_or_none(units):
    signal = hs.signals.Signal2D(np.ones((4, 4)))
    signal.axes_manager.signal_axes[0].units = units
    found = emphase.frames.axis_scale(signal, "nm")
    assert found is None or found > 0
