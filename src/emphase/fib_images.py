"""What a focused ion beam microscope wrote into its own images: beam, voltage, current, stage tilt and time, by maker.

Read are the TIFFs of Thermo Fisher (FEI; tags 34680 and 34682, sections of a text), of Zeiss (tag 34118, pairs of lines) and of Tescan
(tag 50431, blocks of text); tifffile reads the first two, as RosettaSciIO does, which takes the electron beam's values alone. All makers'
volts, amperes, radians and nanoseconds become kV, nA, degrees and µs. What an image does not say is None, never a guess.

An image proves that its beam was on the specimen at that voltage. Its current says little about milling, as one looks with less, and its
stage tilt is no milling angle, which also depends on column and holder.
"""

from __future__ import annotations

import math
import re
import struct
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from datetime import datetime
from itertools import groupby
from pathlib import Path
from typing import Any

from .errors import EmphaseError, one_line

TESCAN_TAG = 50431

#: What a number can be in any instrument, both ends allowed: another one is a misread unit or a damaged file.
LIMITS = {"voltage_kV": (0.01, 60.0), "current_nA": (0.0, 5000.0), "dwell_time_us": (0.0, 1e6), "stage_tilt_deg": (-180.0, 180.0)}

#: Dates as the makers write them; slashes are American first, as FEI's default is.
_DATES = ("%Y-%m-%d", "%m/%d/%Y", "%d/%m/%Y", "%d.%m.%Y", "%d %b %Y")
_TIMES = ("%H:%M:%S", "%I:%M:%S %p", "%H:%M:%S.%f")

#: Factors from a unit of Zeiss or Tescan to that of `FibImage`.
_TO_KV = {"V": 1e-3, "kV": 1.0}
_TO_NA = {"fA": 1e-6, "pA": 1e-3, "nA": 1.0, "µA": 1e3, "\u03bcA": 1e3, "uA": 1e3, "A": 1e9}
_TO_US = {"ns": 1e-3, "µs": 1.0, "\u03bcs": 1.0, "us": 1.0, "ms": 1e3, "s": 1e6}

_TESCAN_BLOCKS = {2: "MAIN", 3: "SEM", 5: "FIB"}  # 1 is a thumbnail, 4 belongs to a detector, 0 ends them


@dataclass(frozen=True)
class FibImage:
    """What one image says about itself; None where it does not.

    Attributes
    ----------
    file
        The file's name.
    maker
        "FEI", "Zeiss" or "Tescan".
    instrument
        The model, as the maker writes it.
    beam
        "ion" or "electron"; where None, voltage, current and dwell time are None too.
    voltage_kV, current_nA, dwell_time_us
        Of that beam.
    stage_tilt_deg
        As the stage counts it.
    acquired
        By the clock of the instrument, without a time zone.
    """

    file: str
    maker: str
    instrument: str | None
    beam: str | None
    voltage_kV: float | None
    current_nA: float | None
    dwell_time_us: float | None
    stage_tilt_deg: float | None
    acquired: datetime | None

    def as_record(self) -> dict[str, Any]:
        """The fields as texts and numbers that JSON can hold; for a None there is a ``<field>_reason``."""
        record = asdict(self) | {"acquired": self.acquired and self.acquired.isoformat()}
        missing = [name for name, value in record.items() if value is None]
        return record | {f"{name}_reason": "the image's metadata do not say" for name in missing}

    def as_milling_step(self) -> dict[str, Any]:
        """A milling step with this beam, in the names of OpenFIBSEM; its stage is the name of the file."""
        beam = {"milling_voltage_kV": self.voltage_kV, "milling_current_nA": self.current_nA, "stage_tilt_deg": self.stage_tilt_deg}
        return {"stage": f"{self.file} (image)", **beam}


def read_fib_image(path: str | Path) -> FibImage:
    """Read what a microscope of Thermo Fisher (FEI), Zeiss or Tescan wrote into a TIFF about its beam and stage.

    Parameters
    ----------
    path
        A TIFF as the instrument saved it: image programs drop what is read here.

    Raises
    ------
    EmphaseError
        Naming the file, what came and what was expected: for a file that is no TIFF, or cut short, one without such metadata, and a
        number that no instrument has.

    Notes
    -----
    FEI: ``[Beam] Beam`` names the section of the beam, with HV in V and BeamCurrent in A; ``[Stage] StageT`` is in radians. Zeiss: ``FIB
    Imaging`` tells the beam, ``FIB Image Probe`` is like 30KV:50 pA; the electron beam has EHT and I Probe. Tescan: HV in V,
    PredictedBeamCurrent in A and StageTilt in degrees, in a block for the ion beam or one for the electron beam.
    """
    import tifffile

    path = Path(path)
    if not path.is_file():
        raise EmphaseError(f"{path.name}: no such file, expected a TIFF as the FIB saved it")
    try:
        with tifffile.TiffFile(path) as tiff:
            page = tiff.pages.first
            ends = [offset + count for offset, count in zip(page.dataoffsets, page.databytecounts, strict=True)]
            fei, zeiss, tescan = tiff.fei_metadata, tiff.sem_metadata, page.tags.valueof(TESCAN_TAG)
            order = tiff.byteorder
    except Exception as error:  # tifffile raises whatever it meets in a broken file
        reason = f"{type(error).__name__}: {one_line(error)}"
        raise EmphaseError(f"{path.name}: no TIFF or a damaged one ({reason}), expected one as the FIB saved it") from error
    if max(ends, default=0) > path.stat().st_size:
        raise EmphaseError(f"{path.name}: cut short at {path.stat().st_size} bytes, expected {max(ends)}")
    if fei:
        found = _read_fei(fei)
    elif zeiss:
        found = _read_zeiss(zeiss)
    elif isinstance(tescan, bytes):
        found = _read_tescan(_tescan_blocks(tescan, order, path.name))
    else:
        raise EmphaseError(f"{path.name}: a TIFF without the metadata of a FIB, expected those of FEI (Thermo Fisher), Zeiss or Tescan")
    for name, (low, high) in LIMITS.items():
        if found.get(name) is not None and not low <= found[name] <= high:
            raise EmphaseError(f"{path.name}: {name} is {found[name]:g} in the {found['maker']} metadata, expected {low:g} to {high:g}")
    return FibImage(file=path.name, **found)


def _number(value: Any, factor: float = 1.0) -> float | None:
    """A finite number times a factor, to six digits, from a number or its text; None for anything else."""
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        return None
    try:
        number = float(f"{float(value) * factor:.6g}")
    except ValueError:
        return None
    return number if math.isfinite(number) else None


def _moment(date: Any, time: Any) -> datetime | None:
    for form in (f"{d} {t}" for d in _DATES for t in _TIMES):
        try:
            return datetime.strptime(f"{date} {time}".strip(), form)
        except ValueError:
            continue
    return None


def _text(value: Any) -> str | None:
    return " ".join(str(value).split()) or None if value is not None else None


def _read_fei(sections: dict[str, dict[str, Any]]) -> dict[str, Any]:
    get = lambda section, key: sections.get(section, {}).get(key)
    column = str(get("Beam", "Beam"))
    beam = {"IBeam": "ion", "EBeam": "electron"}.get(column)
    voltage_V = get(column, "HV") if get(column, "HV") is not None else get("Beam", "HV")
    return {
        "maker": "FEI",
        "instrument": _text(get("System", "SystemType")),
        "beam": beam,
        "voltage_kV": _number(voltage_V, 1e-3) if beam else None,
        "current_nA": _number(get(column, "BeamCurrent"), 1e9) if beam else None,
        "dwell_time_us": _number(get("Scan", "Dwelltime"), 1e6) if beam else None,
        "stage_tilt_deg": _number(get("Stage", "StageT"), math.degrees(1)),
        "acquired": _moment(get("User", "Date"), get("User", "Time")),
    }


def _read_zeiss(pairs: dict[str, tuple]) -> dict[str, Any]:
    """From tifffile's ``{tag: (name, value[, unit])}``; names are those that the microscope shows beside its image."""
    shown = {entry[0]: entry[1:] for key, entry in pairs.items() if key}
    beam = {("FIB",): "ion", ("SEM",): "electron", (): "electron" if "EHT" in shown else None}.get(shown.get("FIB Imaging", ()))
    probe = re.fullmatch(r"([\d.]+)\s*kV:\s*([\d.]+)\s*([pnµu]A).*", str(shown.get("FIB Image Probe", ("",))[0]), re.IGNORECASE)
    if beam == "ion":
        voltage_kV = _measured(shown, ("FIB EHT",), _TO_KV)
        current_nA = _measured(shown, ("FIB Probe Current Actual",), _TO_NA)
        if probe:
            voltage_kV = float(probe[1]) if voltage_kV is None else voltage_kV
            current_nA = float(probe[2]) * _TO_NA[probe[3][0].lower() + "A"]
    else:
        voltage_kV = _measured(shown, ("EHT", "EHT Target"), _TO_KV)
        current_nA = _measured(shown, ("I Probe", "Beam Current"), _TO_NA)
    return {
        "maker": "Zeiss",
        "instrument": _text(shown.get("Sem", (None,))[0]),
        "beam": beam,
        "voltage_kV": voltage_kV if beam else None,
        "current_nA": current_nA if beam else None,
        "dwell_time_us": _measured(shown, ("Dwell Time",), _TO_US) if beam else None,
        "stage_tilt_deg": _number(shown.get("Stage at T", (None,))[0]),
        "acquired": _moment(shown.get("Date", ("",))[0], shown.get("Time", ("",))[0]),
    }


def _measured(shown: dict[str, tuple], names: Iterable[str], factors: dict[str, float]) -> float | None:
    """The first of some numbers whose unit is known, in the unit that the factors lead to."""
    found = (shown[name] for name in names if len(shown.get(name, ())) == 2 and shown[name][1] in factors)
    return next((_number(value, factors[unit]) for value, unit in found), None)


def _tescan_blocks(content: bytes, byteorder: str, name: str) -> dict[str, dict[str, str]]:
    """The texts of Tescan's tag: blocks of a size (4 bytes, which counts what follows it), a kind (2 bytes) and lines ``key=value``."""
    blocks: dict[str, dict[str, str]] = {}
    at = 0
    while at + 6 <= len(content):
        size, kind = struct.unpack_from(f"{byteorder}IH", content, at)
        if size < 2 or at + 4 + size > len(content):
            raise EmphaseError(f"{name}: block {kind} of the Tescan metadata tells of {size} bytes, expected 2 to {len(content) - at - 4}")
        if kind in _TESCAN_BLOCKS:
            lines = content[at + 6 : at + 4 + size].decode("utf-8", errors="replace").replace("\0", "").splitlines()
            blocks[_TESCAN_BLOCKS[kind]] = {k.strip(): v.strip() for k, _, v in (line.partition("=") for line in lines)}
        at += 4 + size
    if not blocks:
        raise EmphaseError(f"{name}: Tescan metadata without a block of text, expected MAIN and FIB or SEM")
    return blocks


def _read_tescan(blocks: dict[str, dict[str, str]]) -> dict[str, Any]:
    main, columns = blocks.get("MAIN", {}), [name for name in ("FIB", "SEM") if name in blocks]
    beam = {"FIB": "ion", "SEM": "electron"}[columns[0]] if len(columns) == 1 else None
    column = blocks[columns[0]] if beam else {}
    tilts = {_number(blocks[name].get("StageTilt")) for name in columns}
    return {
        "maker": "Tescan",
        "instrument": _text(main.get("Device")),
        "beam": beam,
        "voltage_kV": _number(column.get("HV"), 1e-3),
        "current_nA": _number(column.get("PredictedBeamCurrent", column.get("BeamCurrent")), 1e9),
        "dwell_time_us": _number(column.get("DwellTime"), 1e6),
        "stage_tilt_deg": tilts.pop() if len(tilts) == 1 else None,
        "acquired": _moment(main.get("Date"), main.get("Time")),
    }


def ion_settings(images: Iterable[FibImage]) -> list[FibImage]:
    """The images of the ion beam by time, the first of each run with the same voltage, current and tilt; undated ones come last."""
    ion = [image for image in images if image.beam == "ion"]
    ion.sort(key=lambda image: (image.acquired is None, image.acquired or datetime.min))
    return [next(run) for _, run in groupby(ion, lambda image: (image.voltage_kV, image.current_nA, image.stage_tilt_deg))]
