"""TIFFs as the makers of focused ion beams save them, with metadata of one's own choice, for the tests."""

import struct
from pathlib import Path

import numpy as np
import tifffile

PIXELS = np.arange(64 * 48, dtype="u1").reshape(48, 64)


def write_fei(path: Path, beam: str = "IBeam", **changes: str) -> Path:
    """As xT writes it: volts, amperes, radians, seconds; American dates."""
    given = {"HV": "30000", "BeamCurrent": "7.7e-011", "StageT": "0.907571211", "Date": "03/21/2024", "Time": "02:05:09 PM"} | changes
    lines = ["[User]", f"Date={given['Date']}", f"Time={given['Time']}", "User=operator", "[System]", "Type=DualBeam"]
    lines += ["SystemType=Helios G4 UX", "[Beam]", f"HV={given['HV']}", f"Beam={beam}", f"Scan={beam[0]}Scan"]
    lines += [f"[{beam}]", "Source=LMIS", f"HV={given['HV']}", f"BeamCurrent={given['BeamCurrent']}", "[Scan]", "Dwelltime=1e-006"]
    lines += ["[Stage]", "StageX=0.001", f"StageT={given['StageT']}", ""]
    tifffile.imwrite(path, PIXELS, extratags=[(34682, "s", 0, "\r\n".join(lines), True)])
    return path


def write_zeiss(path: Path, beam: str = "FIB", probe: str = "30KV:50 pA") -> Path:
    """As SmartSEM writes it: unnamed numbers, then a tag and the line that is shown, in turn."""
    shown = {
        "DP_SEM": "Sem = Crossbeam 540",
        "AP_ACTUALKV": "EHT = 5.00 kV",
        "AP_IPROBE": "I Probe = 700 pA",
        "DP_FIB_IMAGING": f"FIB Imaging = {beam}",
        "DP_FIB_IMAGE_PROBE": f"FIB Image Probe = {probe}",
        "DP_DWELL_TIME": "Dwell Time = 400 ns",
        "AP_STAGE_AT_T": "Stage at T = 54.0 °",
        "AP_DATE": "Date :21 Mar 2024",
        "AP_TIME": "Time :14:05:09",
    }
    text = "\r\n".join(["", "0", "0", "1.5e-008", *(line for pair in shown.items() for line in pair), ""])
    tifffile.imwrite(path, PIXELS, extratags=[(34118, "s", 0, text.encode("cp1252"), True)])
    return path


def tescan_content(column: str = "FIB", **changes: str) -> bytes:
    """Blocks of a size, which counts the kind and the content behind it, a kind, and lines of text; a thumbnail before them."""
    given = {"HV": "30000.0", "PredictedBeamCurrent": "1.5e-10", "DwellTime": "3.2e-06", "StageTilt": "55.0"} | changes
    main = "AccFrames=1\r\nDate=2024-03-21\r\nDevice=TESCAN AMBER X\r\nPixelSizeX=1e-08\r\nTime=14:05:09\r\n"
    text = "".join(f"{key}={value}\r\n" for key, value in given.items())
    blocks = [(1, b"\xff\xd8\xff\xe0HV=1.0\r\n"), (2, main.encode()), ({"SEM": 3, "FIB": 5}[column], text.encode()), (0, b"")]
    return b"".join(struct.pack("<IH", 2 + len(content), kind) + content for kind, content in blocks)


def write_tescan(path: Path, content: bytes | None = None) -> Path:
    """A TIFF with Tescan's tag."""
    content = tescan_content() if content is None else content
    tifffile.imwrite(path, PIXELS, byteorder="<", extratags=[(50431, "B", len(content), content, True)])
    return path
