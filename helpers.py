"""The shared module of the workbook: everything that two notebooks use or a test needs.

It reads from top to bottom in the order of the pipeline:

    project and names -> sample contract -> recordings -> result contract -> pages
    -> crystallography -> simulation -> 02 drift -> 03 surface layer -> 04 interface
    -> 05 PED calibration -> 06 matching -> grains -> 07 fractions -> 08 comparison

Conventions, used everywhere and not repeated in every docstring:

* Images and scans are indexed (y, x), y downwards; vectors of pixels are (y, x) too.
* In the diffraction plane x points right and y down; angles turn from +x towards +y on screen.
* Units stand in names at the borders: ``_nm``, ``_invA`` (1/Å, no factor 2 pi), ``_deg``, ``_keV``.
* A crystal's Cartesian frame has e1 along a and e3 along c* (orix and ase agree on it).
* A rotation takes sample coordinates to crystal coordinates (orix's convention).
* A random generator is always passed in or seeded; the same input gives the same result.
"""

from __future__ import annotations

import ast
import difflib
import hashlib
import json
import logging
import math
import os
import platform
import re
import shutil
import sys
import tempfile
import time
import warnings
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

# --------------------------------------------------------------------------------------
# Project, names and colours
# --------------------------------------------------------------------------------------

PROJECT_ROOT = Path(__file__).resolve().parent
STEPS = (
    "01_lamella_metadata",
    "02_cryo_stem_drift",
    "03_haadf_surface",
    "04_interface_phases",
    "05_ped_calibration",
    "06_ped_matching",
    "07_rocksalt_fraction",
)
COMPARISON = "08_sample_comparison"

#: Names of the phases of the NCM cathode; the rocksalt fraction is a share of their area.
NCM_PHASES = ("layered", "spinel", "spinel_m3o4", "rocksalt")

PHASE_COLOURS = {
    "layered": "#0072B2",
    "rocksalt": "#F0E442",
    "spinel": "#D55E00",
    "spinel_m3o4": "#A03C00",
    "llzo": "#7D9C8C",
    "la2zr2o7": "#CC79A7",
    "lanio3": "#56B4E9",
    "li2co3": "#9A7B4F",
}
_OTHER_COLOURS = ("#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#9A7B4F", "#5D3A9B")
NOT_INDEXED_COLOUR = "#FFFFFF"
UNDECIDED_COLOUR = "#BBBBBB"


class WorkbookError(Exception):
    """A mistake in the input that the user can mend; its text is all that is shown of it."""

    def _render_traceback_(self) -> list[str]:
        """IPython shows these lines in place of a traceback."""
        return [f"{type(self).__name__}: {self}"]


class SampleError(WorkbookError):
    """A sample.yaml, or a file that it names, is not what the contract asks for."""


class RecordingError(WorkbookError):
    """A recording cannot be read, or does not have the shape that its kind needs."""


class ResultError(WorkbookError):
    """A result that a step needs is missing, or one that it would write breaks the contract."""


class ParameterError(WorkbookError):
    """A notebook was given a parameter that it does not know, or a value it cannot use."""


def phase_colours(phases: list[str]) -> dict[str, str]:
    """A colour for every phase: the fixed one of the four NCM/LLZO phases, else one of a cycle.

    >>> phase_colours(["layered", "austenite"])["layered"]
    '#0072B2'
    """
    spare = (c for c in _OTHER_COLOURS * len(phases) if c not in {PHASE_COLOURS.get(p) for p in phases})
    return {p: PHASE_COLOURS.get(p) or next(spare) for p in phases}


# --------------------------------------------------------------------------------------
# The sample contract: data/samples/<id>/sample.yaml
# --------------------------------------------------------------------------------------


class _Strict(BaseModel):
    """A part of sample.yaml: unknown keys are errors, numbers are not guessed from text."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


def _number(low: float, high: float, unit: str) -> Any:
    return Annotated[float, Field(ge=low, le=high, description=unit)]


class Composition(_Strict):
    cathode: str | None = None
    electrolyte: str | None = None


class Sintering(_Strict):
    """How the pellet was sintered; ``temperature_C: null`` is pressed and not sintered."""

    temperature_C: _number(20, 2000, "°C") | None
    time_h: _number(0, 1000, "h") | None = None
    atmosphere: str | None = None


class Frame(_Strict):
    """The deposition that holds loose particles while the lamella is milled."""

    all_around: bool
    material: str | None = None
    thickness_um: _number(0, 50, "µm") | None = None


class MillingStep(_Strict):
    """One milling step; names follow OpenFIBSEM."""

    stage: str
    milling_voltage_kV: _number(0.1, 50, "kV") | None = None
    milling_current_nA: _number(0, 200, "nA") | None = None
    angle_deg: _number(-90, 90, "degrees") | None = None
    duration_min: _number(0, 10000, "min") | None = None


class Lamella(_Strict):
    instrument: str | None = None
    ion: str | None = None
    frame: Frame | None = None
    steps: list[MillingStep] = []
    final_thickness_nm: _number(1, 5000, "nm") | None = None
    air_exposure_min: _number(0, 1e6, "min") | None = None


class _Acquisition(_Strict):
    """What all recordings have: the file, in the sample's folder, and the beam energy."""

    file: str
    beam_energy_keV: _number(20, 1500, "keV")


class CryoStem(_Acquisition):
    pixel_size_nm: _number(1e-4, 100, "nm") | None = None
    frame_dose_e_per_A2: _number(0, 1e6, "electrons/Å²") | None = None
    temperature_K: _number(1, 500, "K") | None = None


class Haadf(_Acquisition):
    pixel_size_nm: _number(1e-4, 100, "nm") | None = None
    zone_axis: Annotated[list[int], Field(min_length=3, max_length=3)] = [1, 0, 0]
    dose_e_per_A2: _number(0, 1e9, "electrons/Å²") | None = None
    phase: str = "layered"


class Interface(_Acquisition):
    pixel_size_nm: _number(1e-4, 100, "nm") | None = None
    phases: list[str] | None = None


class Ped(_Acquisition):
    step_nm: _number(0.01, 1e5, "nm") | None = None
    scale_invA_per_px: _number(1e-4, 1.0, "1/Å per pixel") | None = None
    precession_deg: _number(0, 5, "degrees")
    phases: Annotated[list[str], Field(min_length=1)]

    @field_validator("phases")
    @classmethod
    def _no_phase_twice(cls, phases: list[str]) -> list[str]:
        if len(set(phases)) < len(phases):
            raise ValueError("every phase once")
        return phases


class Acquisitions(_Strict):
    cryo_stem: CryoStem | None = None
    haadf: Haadf | None = None
    interface: Interface | None = None
    ped: Ped | None = None


class Sample(_Strict):
    """A validated sample.yaml, with the folder that it was read from."""

    id: str
    label: str
    simulated: bool = False
    composition: Composition | None = None
    sintering: Sintering | None = None
    lamella: Lamella | None = None
    acquisitions: Acquisitions
    folder: Path = Field(exclude=True)

    @property
    def title(self) -> str:
        """The label, with "(simulated)" behind it where the data are."""
        return self.label + (" (simulated)" if self.simulated else "")

    def path(self, acquisition: str) -> Path:
        """The file of an acquisition."""
        return self.folder / getattr(self.acquisitions, acquisition).file


def _expected(error: dict, model: type[BaseModel]) -> str:
    """One validation error of pydantic as `key: what came, what was expected`."""
    keys = [k for k in error["loc"] if isinstance(k, (str, int)) and not str(k).startswith(("float", "constrained"))]
    key = ".".join(str(k) for k in keys)
    came = error["input"]
    if error["type"] == "extra_forbidden":
        owner: Any = model
        for k in keys[:-1]:
            owner = _field_model(owner, k) or owner
        known = [n for n in owner.model_fields if n != "folder"]
        near = difflib.get_close_matches(str(keys[-1]), known, 1, 0.5)
        hint = f"; did you mean {near[0]}?" if near else ""
        return f"{key}: unknown key, expected one of {', '.join(known)}{hint}"
    if error["type"] == "missing":
        return f"{key}: missing, expected a value here"
    unit = _unit_of(model, keys)
    expected = error["msg"].replace("Input should be ", "").replace("Value error, ", "")
    return f"{key}: got {came!r}, expected {expected}{f' ({unit})' if unit else ''}"


def _field_model(owner: Any, key: str | int) -> type[BaseModel] | None:
    """The pydantic model behind a field, looking through Optional and list."""
    if isinstance(key, int) or not hasattr(owner, "model_fields") or key not in owner.model_fields:
        return None
    todo = [owner.model_fields[key].annotation]
    while todo:
        annotation = todo.pop()
        if isinstance(annotation, type) and issubclass(annotation, BaseModel):
            return annotation
        todo.extend(getattr(annotation, "__args__", ()))
    return None


def _unit_of(model: Any, keys: list) -> str | None:
    for k in keys[:-1]:
        model = _field_model(model, k) or model
    if not keys or keys[-1] not in model.model_fields:
        return None
    todo = [model.model_fields[keys[-1]]]
    while todo:
        item = todo.pop()
        if getattr(item, "description", None):
            return item.description
        todo.extend(getattr(item, "metadata", ()) or getattr(item, "__metadata__", ()))
        if getattr(item, "annotation", None) is not None:
            todo.append(item.annotation)
        todo.extend(getattr(item, "__args__", ()))
    return None


def samples_folder(data_dir: str | Path = "") -> Path:
    """The folder that holds one folder a sample.

    ``data_dir`` may be that folder or one that holds it as ``samples``; empty means the
    project's own ``data``. Raises `SampleError` where there is no such folder.
    """
    root = Path(data_dir) if str(data_dir) else PROJECT_ROOT / "data"
    folder = root / "samples" if (root / "samples").is_dir() else root
    if not folder.is_dir():
        raise SampleError(f"{root}: no such folder, expected one that holds samples")
    return folder


def list_samples(data_dir: str | Path = "") -> list[str]:
    """The ids of all samples of a data folder: its sub-folders that hold a sample.yaml, sorted."""
    folder = samples_folder(data_dir)
    return sorted(p.name for p in folder.iterdir() if (p / "sample.yaml").is_file())


def load_sample(data_dir: str | Path, sample_id: str) -> Sample:
    """Read and check ``<data_dir>/<sample_id>/sample.yaml`` and the files that it names.

    Raises `SampleError` with one line for each fault, naming file, key, what came and what
    was expected. Units are those of the keys' names.
    """
    folder = samples_folder(data_dir) / sample_id
    path = folder / "sample.yaml"
    name = f"{sample_id}/sample.yaml"
    if not path.is_file():
        have = ", ".join(list_samples(data_dir)) or "none: notebook 00_demo_data writes three"
        raise SampleError(f"{name}: no such file; samples here: {have}")
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        where = getattr(error, "problem_mark", None)
        line = f", line {where.line + 1}" if where else ""
        raise SampleError(f"{name}{line}: not YAML: {getattr(error, 'problem', error)}") from None
    if not isinstance(content, dict):
        raise SampleError(f"{name}: got {type(content).__name__}, expected keys and values (id, label, …)")
    if "folder" in content:
        raise SampleError(f"{name}: folder: unknown key")
    try:
        sample = Sample(**content, folder=folder)
    except ValidationError as error:
        raise SampleError("\n".join(f"{name}: {_expected(e, Sample)}" for e in error.errors())) from None
    faults = _sample_faults(sample, sample_id, _phase_folders(data_dir))
    if faults:
        raise SampleError("\n".join(f"{name}: {fault}" for fault in faults))
    return sample


def _sample_faults(sample: Sample, folder_name: str, phase_folders: list[Path]) -> list[str]:
    """What pydantic cannot see: the id against the folder, the files, the phases."""
    faults = []
    if not re.fullmatch(r"[A-Za-z0-9_-]+", sample.id):
        faults.append(f"id: got {sample.id!r}, expected letters, digits, - and _ only")
    if sample.id != folder_name:
        faults.append(f"id: got {sample.id!r}, expected {folder_name!r}, the name of its folder")
    for kind in Acquisitions.model_fields:
        acquisition = getattr(sample.acquisitions, kind)
        if acquisition is None:
            continue
        path = sample.folder / acquisition.file
        if not path.resolve().is_relative_to(sample.folder.resolve()):
            faults.append(f"acquisitions.{kind}.file: got {acquisition.file!r}, expected a path inside the sample's folder")
        elif not path.is_file():
            faults.append(f"acquisitions.{kind}.file: no file {acquisition.file!r} in the sample's folder")
        for phase in getattr(acquisition, "phases", None) or []:
            if not any((folder / f"{phase}.cif").is_file() for folder in phase_folders):
                known = sorted({p.stem for folder in phase_folders for p in folder.glob("*.cif")})
                faults.append(f"acquisitions.{kind}.phases: no phase {phase!r}, expected one of {', '.join(known)}")
    return faults


def _phase_folders(data_dir: str | Path = "") -> list[Path]:
    """Where phases are looked up: beside or in the data folder first, then the project's own."""
    samples = samples_folder(data_dir)
    candidates = [samples / "phases", samples.parent / "phases", PROJECT_ROOT / "data" / "phases"]
    return [p for p in dict.fromkeys(candidates) if p.is_dir()]


def phase_file(phase: str, data_dir: str | Path = "") -> Path:
    """The CIF file of a phase; one that lies in the data folder goes before the project's own."""
    for folder in _phase_folders(data_dir):
        if (folder / f"{phase}.cif").is_file():
            return folder / f"{phase}.cif"
    raise SampleError(f"no phase {phase!r}: expected {phase}.cif in data/phases")


# --------------------------------------------------------------------------------------
# Recordings: anything that RosettaSciIO reads, lazily
# --------------------------------------------------------------------------------------


def load_recording(path: str | Path, *, navigation_dimension: int | None = None) -> Any:
    """A recording of 2-D frames as a lazy hyperspy signal.

    Parameters
    ----------
    path
        A file of any format that RosettaSciIO reads.
    navigation_dimension
        0 for one image, 1 for a stack, 2 for a scan of patterns; None takes any. A stack is
        taken for a scan of one line where 2 is asked for, and a single frame for 1 x 1.

    Returns
    -------
    A lazy ``Signal2D`` with data of shape ([[scan y,] scan x or frame,] y, x).

    Raises
    ------
    RecordingError
        Where the file cannot be read or does not hold such frames; the text says why.
    """
    import hyperspy.api as hs

    path = Path(path)
    if not path.is_file():
        raise RecordingError(f"{path.name}: no such file")
    if path.stat().st_size == 0:
        raise RecordingError(f"{path.name}: the file is empty")
    try:
        with warnings.catch_warnings(), _QuietLogging("rsciio", "hyperspy"):
            warnings.simplefilter("ignore")
            loaded = hs.load(str(path), lazy=True)
    except Exception as error:  # readers raise whatever they meet in a broken file
        raise RecordingError(f"{path.name}: cannot be read: {type(error).__name__}: {_one_line(error)}") from error
    signals = loaded if isinstance(loaded, list) else [loaded]
    frames = [s for s in (_as_frames(s, navigation_dimension) for s in signals) if s is not None]
    if not frames:
        shapes = ", ".join(str(s.data.shape) for s in signals) or "nothing"
        kind = {0: "one image", 1: "a stack of frames", 2: "a scan of patterns"}.get(navigation_dimension, "2-D frames")
        raise RecordingError(f"{path.name}: holds arrays of shape {shapes}, expected {kind}")
    return max(frames, key=lambda s: s.data.size)


def _as_frames(signal: Any, navigation_dimension: int | None) -> Any | None:
    """The signal with 2-D frames and the wanted number of navigation axes, or None."""
    if signal.data.dtype.kind not in "iuf" or signal.data.ndim < 2 or min(signal.data.shape) < 1:
        return None
    if signal.axes_manager.signal_dimension != 2:
        signal = signal.transpose(signal_axes=2)
    have = signal.axes_manager.navigation_dimension
    if navigation_dimension is None or have == navigation_dimension:
        return signal if min(signal.data.shape[-2:]) > 1 else None
    if navigation_dimension == 2 and have in (0, 1):
        signal.data = signal.data.reshape((1,) * (2 - have) + signal.data.shape)
        return type(signal)(signal.data, metadata=signal.metadata.as_dictionary(), axes=_with_unit_axes(signal, 2 - have))
    return None


def _with_unit_axes(signal: Any, count: int) -> list[dict]:
    axes = [{"name": name, "size": 1, "navigate": True} for name in ("y", "x")[:count]]
    return axes + [a.get_axis_dictionary() | {"size": a.size} for a in signal.axes_manager._axes]


def axis_scale(signal: Any, unit: str) -> float | None:
    """The step of the frames' x axis in ``unit`` ("nm", "1/angstrom"), or None if it is not calibrated in such a unit."""
    import pint

    axis = signal.axes_manager.signal_axes[0]
    if axis.scale <= 0 or not isinstance(axis.units, str):
        return None
    try:
        return float(axis.scale_as_quantity.to(unit).magnitude)
    except (pint.errors.PintError, ValueError, TypeError):
        return None


def calibration(sample: Sample, acquisition: str, key: str, signal: Any, unit: str) -> float:
    """The value of ``key`` in sample.yaml, else the file's own scale; an error naming the key if neither has it."""
    value = getattr(getattr(sample.acquisitions, acquisition), key)
    value = value if value is not None else axis_scale(signal, unit)
    if value is None:
        raise SampleError(
            f"{sample.id}/sample.yaml: acquisitions.{acquisition}.{key}: missing, and "
            f"{sample.path(acquisition).name} holds no calibration in {unit}; expected a value here"
        )
    return value


class _QuietLogging:
    """Silence the loggers of readers that report what this module reports in its own words."""

    def __init__(self, *names: str):
        self._loggers = [logging.getLogger(name) for name in names]

    def __enter__(self) -> None:
        self._levels = [logger.level for logger in self._loggers]
        for logger in self._loggers:
            logger.setLevel(logging.CRITICAL)

    def __exit__(self, *_: object) -> None:
        for logger, level in zip(self._loggers, self._levels, strict=True):
            logger.setLevel(level)


def _one_line(error: object) -> str:
    return " ".join(str(error).split())[:300]


# --------------------------------------------------------------------------------------
# The result contract: results/<id>/NN_<step>.json
# --------------------------------------------------------------------------------------


def write_atomically(path: str | Path, content: str | bytes) -> Path:
    """Write a file so that a reader sees the old content or the new, never a part of it."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    data = content.encode() if isinstance(content, str) else content
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise
    return path


def plain(value: Any, key: str = "") -> Any:
    """Numbers, texts, lists and dicts that JSON can hold, from numpy's and Python's own.

    Raises `ResultError` for NaN or infinity, and for a null without a ``<key>_reason`` beside it.

    >>> plain({"a_nm": np.float32(1.5), "shape": np.array([2, 3])})
    {'a_nm': 1.5, 'shape': [2, 3]}
    """
    if isinstance(value, dict):
        out = {str(k): plain(v, str(k)) for k, v in value.items()}
        unexplained = [k for k, v in out.items() if v is None and f"{k}_reason" not in out and key != "parameters"]
        if unexplained:
            raise ResultError(f"{', '.join(unexplained)}: null without a reason beside it")
        return out
    if isinstance(value, (list, tuple)):
        return [plain(v, key) for v in value]
    if isinstance(value, np.ndarray):
        return plain(value.tolist(), key)
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        raise ResultError(f"{key}: not a finite number")
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    return str(value)


def file_sha256(path: str | Path) -> str:
    """The SHA-256 of a file's content, in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_result(results_dir: str | Path, sample_id: str, step: str) -> dict:
    """The JSON that a step wrote; `ResultError` saying which step to run where there is none."""
    path = _results_root(results_dir) / sample_id / f"{step}.json"
    if not path.is_file():
        raise ResultError(f"run {step} for {sample_id} first: there is no {sample_id}/{step}.json in the results")
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ResultError(f"{sample_id}/{step}.json: not JSON ({_one_line(error)}); run {step} for {sample_id} again") from None


def software_versions() -> dict[str, str]:
    """Versions of Python, the libraries that compute, and the hash of this module."""
    names = ("numpy", "scipy", "numba", "hyperspy", "pyxem", "diffsims", "orix", "ase", "scikit-image", "papermill")
    found = {"python": platform.python_version(), **{name: version(name) for name in names}}
    return found | {"helpers_sha256": file_sha256(__file__)[:16]}


def _results_root(results_dir: str | Path) -> Path:
    return Path(results_dir) if str(results_dir) else PROJECT_ROOT / "results"


def _figures_root(figures_dir: str | Path) -> Path:
    return Path(figures_dir) if str(figures_dir) else PROJECT_ROOT / "figures"


@dataclass
class Step:
    """One notebook at work on one sample: where it reads, where it writes, what it was told."""

    name: str
    sample_id: str
    parameters: dict[str, Any]
    results: Path
    figures: Path
    data_dir: str
    started: float = field(default_factory=time.monotonic)
    sample: Sample | None = None

    def previous(self, step: str) -> dict:
        """The result of an earlier step for this sample; ends this one too if that had no acquisition."""
        result = read_result(self.results.parent, self.sample_id, step)
        if result["status"] == "not_acquired":
            self.not_acquired(result["reason"])
        return result

    def acquisition(self, kind: str) -> Any:
        """An acquisition of sample.yaml; where it is absent the notebook says so and ends well."""
        found = getattr(self.sample.acquisitions, kind)
        if found is None:
            self.not_acquired(f"{self.sample_id} has no {kind} acquisition in its sample.yaml")
        return found

    def not_acquired(self, reason: str) -> None:
        """Write ``status: not_acquired``, say so on the page, and end the notebook without an error."""
        self.save({}, status="not_acquired", reason=reason)
        print(f"Not acquired: {reason}. Nothing to do in this step.")
        warnings.filterwarnings("ignore", message="To exit: use")
        sys.exit(0)

    def save(self, numbers: dict, *, inputs: list[Path] | None = None, status: str = "ok", **more: Any) -> Path:
        """Write ``<results>/<step>.json`` atomically; `ResultError` where a number is NaN or an unexplained null."""
        content = {"status": status, "sample": self.sample_id, **more, **numbers}
        content["inputs"] = {self._short(p): file_sha256(p) for p in inputs or []}
        content["parameters"] = {k: v for k, v in self.parameters.items() if not k.endswith("_dir")}
        content["versions"] = software_versions()
        text = json.dumps(plain(content), indent=1, ensure_ascii=False, allow_nan=False)
        return write_atomically(self.results / f"{self.name}.json", text + "\n")

    def _short(self, path: Path) -> str:
        for root in (self.sample.folder if self.sample else None, self.results, PROJECT_ROOT):
            if root is not None and path.resolve().is_relative_to(root.resolve()):
                return path.resolve().relative_to(root.resolve()).as_posix()
        return path.name

    def figure(self, fig: Any, name: str, alt: str) -> None:
        """Save a figure as PNG and SVG under figures/<id>/NN_<name> and show it with its alt text."""
        from IPython.display import Image, display
        from matplotlib import pyplot as plt

        stem = self.figures / f"{self.name[:2]}_{name}"
        stem.parent.mkdir(parents=True, exist_ok=True)
        if self.sample is not None and self.sample.simulated:
            fig.text(0.995, 0.005, "simulated data", ha="right", va="bottom", fontsize=7, color="0.35")
        for suffix in (".png", ".svg"):
            options = {"metadata": {"Date": None}} if suffix == ".svg" else {}
            fig.savefig(stem.with_suffix(suffix), dpi=130, bbox_inches="tight", facecolor="white", **options)
        plt.close(fig)
        display(Image(filename=stem.with_suffix(".png"), alt=alt))

    def progress(self, items: Any, label: str, total: int | None = None) -> Any:
        """Iterate with a bar in JupyterLab and plain lines, one for each tenth, in batch runs."""
        total = total if total is not None else len(items)
        if "JPY_SESSION_NAME" in os.environ:
            from tqdm.auto import tqdm

            yield from tqdm(items, total=total, desc=label)
            return
        start, told = time.monotonic(), 0
        for done, item in enumerate(items, 1):
            yield item
            if done * 10 // total > told:
                told = done * 10 // total
                print(f"{self.sample_id} {self.name}: {label} {done} of {total}, {time.monotonic() - start:.0f} s", flush=True)


def begin(step: str, namespace: dict) -> Step:
    """Start a notebook: collect its parameters, load its sample, refuse parameters it does not know.

    ``namespace`` is the notebook's ``globals()`` after its parameters cell (and the cell that
    papermill injects behind it). Raises `ParameterError` for an injected name that the
    parameters cell does not have, `SampleError` for a fault in the sample.
    """
    known = notebook_parameters(PROJECT_ROOT / "notebooks" / f"{step}.ipynb")
    for source in namespace.get("In", []):
        if source.startswith("# Parameters\n"):
            check_parameters(step, _assigned_names(source), known)
    parameters = {name: namespace[name] for name in known}
    for name, default in known.items():
        came = parameters[name]
        if isinstance(default, str) != isinstance(came, str) and default is not None:
            raise ParameterError(f"{step}: parameter {name}: got {came!r}, expected {type(default).__name__} like {default!r}")
    sample_id = parameters.get("sample_id", "")
    run = Step(
        name=step,
        sample_id=sample_id,
        parameters=parameters,
        results=_results_root(parameters["results_dir"]) / sample_id,
        figures=_figures_root(parameters["figures_dir"]) / sample_id,
        data_dir=parameters["data_dir"],
    )
    if sample_id:
        run.sample = load_sample(parameters["data_dir"], sample_id)
    return run


def notebook_parameters(path: Path) -> dict[str, Any]:
    """Names and default values of a notebook's cell tagged ``parameters``."""
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    sources = ["".join(c["source"]) for c in cells if "parameters" in c["metadata"].get("tags", [])]
    if len(sources) != 1:
        raise ParameterError(f"{path.name}: has {len(sources)} cells tagged parameters, expected 1")
    return {node.targets[0].id: ast.literal_eval(node.value) for node in ast.parse(sources[0]).body if isinstance(node, ast.Assign)}


def check_parameters(step: str, given: Any, known: Any) -> None:
    """`ParameterError` for the first given name that is not known."""
    for name in given:
        if name not in known:
            near = difflib.get_close_matches(name, list(known), 1, 0.5)
            hint = f"; did you mean {near[0]}?" if near else ""
            raise ParameterError(f"{step}: unknown parameter {name}, expected one of {', '.join(known)}{hint}")


def _assigned_names(source: str) -> list[str]:
    return [node.targets[0].id for node in ast.parse(source).body if isinstance(node, ast.Assign)]


# --------------------------------------------------------------------------------------
# Crystallography
# --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Crystal:
    """A crystal structure as diffraction needs it.

    ``lattice`` has a, b, c as rows (Å) in the Cartesian frame e1 || a, e3 || c*; ``positions``
    (n, 3) are fractional; one entry of ``elements`` and ``occupancies`` for every atom, mixed
    sites being several atoms in one place. ``point_group`` is the Laue group's name for orix.
    """

    name: str
    lattice: np.ndarray
    positions: np.ndarray
    elements: tuple[str, ...]
    occupancies: np.ndarray
    space_group: int

    @property
    def reciprocal(self) -> np.ndarray:
        """a*, b*, c* as rows, 1/Å."""
        return np.linalg.inv(self.lattice).T

    @property
    def volume(self) -> float:
        """Volume of the cell, Å³."""
        return float(abs(np.linalg.det(self.lattice)))

    def orix_phase(self) -> Any:
        """The phase for orix, with its colour and the symmetry of its space group."""
        from diffpy.structure import Atom, Lattice, Structure
        from orix.crystal_map import Phase

        a, b, c = (float(np.linalg.norm(v)) for v in self.lattice)
        cosines = [float(np.dot(self.lattice[i], self.lattice[j])) for i, j in ((1, 2), (0, 2), (0, 1))]
        alpha, beta, gamma = (math.degrees(math.acos(x / y)) for x, y in zip(cosines, (b * c, a * c, a * b), strict=True))
        atoms = [Atom(e, p, occupancy=o) for e, p, o in zip(self.elements, self.positions, self.occupancies, strict=True)]
        structure = Structure(atoms=atoms, lattice=Lattice(a, b, c, alpha, beta, gamma), title=self.name)
        colour = _named_colour(phase_colours([self.name])[self.name])
        return Phase(self.name, space_group=self.space_group, structure=structure, color=colour)


def _named_colour(colour: str) -> str:
    """The named colour of matplotlib nearest to a hexadecimal one: orix takes names only."""
    from matplotlib.colors import CSS4_COLORS, to_rgb

    wanted = np.array(to_rgb(colour))
    return min(CSS4_COLORS, key=lambda name: float(np.sum((np.array(to_rgb(name)) - wanted) ** 2)))


def read_crystal(path: str | Path, name: str | None = None) -> Crystal:
    """Read a CIF with ase; `SampleError` where it holds no atoms or cannot be read."""
    import ase.io
    from ase.geometry import cellpar_to_cell

    path = Path(path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            atoms = ase.io.read(path, format="cif", fractional_occupancies=True)
    except Exception as error:  # ase raises whatever it meets in a broken file
        raise SampleError(f"{path.name}: cannot be read as a crystal structure: {_one_line(error)}") from error
    if len(atoms) == 0:
        raise SampleError(f"{path.name}: holds no atoms, expected a structure that can diffract")
    cell = cellpar_to_cell(atoms.cell.cellpar())
    occupancy = atoms.info.get("occupancy") or {}
    kinds = atoms.arrays.get("spacegroup_kinds", np.arange(len(atoms)))
    elements, positions, occupancies = [], [], []
    for symbol, kind, position in zip(atoms.get_chemical_symbols(), kinds, atoms.get_scaled_positions(), strict=True):
        for element, share in occupancy.get(str(kind), {symbol: 1.0}).items():
            elements.append(element)
            positions.append(position)
            occupancies.append(float(share))
    group = atoms.info["spacegroup"].no if "spacegroup" in atoms.info else 1
    return Crystal(name or path.stem, cell, np.array(positions), tuple(elements), np.array(occupancies), int(group))


def electron_wavelength_A(beam_energy_keV: float) -> float:
    """Relativistic wavelength of the electrons in Å.

    >>> round(electron_wavelength_A(200), 5)
    0.02508
    """
    volts = beam_energy_keV * 1e3
    return 12.2643 / math.sqrt(volts * (1 + 0.978476e-6 * volts))


def structure_factors(crystal: Crystal, hkl: np.ndarray, debye_waller_A2: float = 0.5) -> np.ndarray:
    """Structure factors for electrons, complex (n,), of reflections hkl (n, 3).

    Atomic scattering factors are Lobato's (Acta Cryst. A70 (2014) 636) as tabulated by
    diffsims; one Debye-Waller factor B (Å²) for all atoms.
    """
    from diffsims.utils.sim_utils import get_scattering_params_dict

    table = get_scattering_params_dict("lobato")
    unknown = sorted(set(crystal.elements) - set(table))
    if unknown:
        raise SampleError(f"{crystal.name}: no scattering factor for {', '.join(unknown)}")
    g2 = np.sum((hkl @ crystal.reciprocal) ** 2, axis=1)
    total = np.zeros(len(hkl), dtype=complex)
    for element in dict.fromkeys(crystal.elements):
        here = np.array([e == element for e in crystal.elements])
        a, b = np.asarray(table[element], dtype=float).T
        x = g2[:, None] * b
        amplitude = np.sum(a * (2 + x) / (1 + x) ** 2, axis=1)
        phases = np.exp(2j * np.pi * hkl @ crystal.positions[here].T)
        total += amplitude * (phases @ crystal.occupancies[here])
    return total * np.exp(-debye_waller_A2 * g2 / 4)


@dataclass(frozen=True)
class Reflections:
    """Reflections of a crystal: hkl (n, 3), g (n, 3) Cartesian in 1/Å, intensity |F/V|² (n,) and their d (n,) in Å."""

    hkl: np.ndarray
    g: np.ndarray
    intensity: np.ndarray

    @property
    def d_A(self) -> np.ndarray:
        return 1 / np.linalg.norm(self.g, axis=1)


def reflections(crystal: Crystal, max_g_invA: float, min_relative_intensity: float = 1e-6) -> Reflections:
    """All reflections up to a length of g, extinct and very weak ones left out, shortest first.

    The intensities are |F/V|² with V the cell's volume, so that different crystals of the
    same thickness compare.
    """
    reach = np.ceil(max_g_invA * np.linalg.norm(crystal.lattice, axis=1)).astype(int)
    h, k, l = np.meshgrid(*(np.arange(-n, n + 1) for n in reach), indexing="ij")
    hkl = np.stack([h.ravel(), k.ravel(), l.ravel()], axis=1)
    g = hkl @ crystal.reciprocal
    length = np.linalg.norm(g, axis=1)
    inside = (length > 1e-9) & (length <= max_g_invA)
    hkl, g, length = hkl[inside], g[inside], length[inside]
    intensity = np.abs(structure_factors(crystal, hkl) / crystal.volume) ** 2
    keep = intensity > min_relative_intensity * intensity.max(initial=0)
    order = np.lexsort((*hkl[keep].T, np.round(length[keep], 9)))
    return Reflections(hkl[keep][order], g[keep][order], intensity[keep][order])


# --------------------------------------------------------------------------------------
# Simulation: recordings with their truth, for the demo data, the tests and the validation
# --------------------------------------------------------------------------------------


# --------------------------------------------------------------------------------------
# 01 The lamella
# --------------------------------------------------------------------------------------


#: The definition that `nxem_entry` follows: name, source, commit, NXDL schema.
NXEM_DEFINITION = {
    "definition": "NXem",
    "definition_source": "FAIRmat-NFDI/nexus_definitions, applications/NXem (NXDL 3.1)",
    "definition_version": "eada03fb4a1b466af8cf29a4aeb531428000a7d4",
}

#: What each kind of recording must hold: navigation axes, calibrations (key, unit) and words for the reader.
_RECORDING_KINDS = {
    "cryo_stem": (1, {"pixel_size_nm": "nm"}, "a stack of frames"),
    "haadf": (0, {"pixel_size_nm": "nm"}, "one image"),
    "interface": (0, {"pixel_size_nm": "nm"}, "one image"),
    "ped": (2, {"step_nm": None, "scale_invA_per_px": "1/angstrom"}, "a scan of diffraction patterns"),
}


def parse_formula(formula: str) -> dict[str, float]:
    """Elements and their numbers in a chemical formula; `SampleError` where it is none.

    >>> parse_formula("LiNi0.6Co0.2Mn0.2O2")["O"]
    2.0
    """
    from ase.data import atomic_numbers

    parts = re.findall(r"([A-Z][a-z]?)(\d*\.?\d*)", formula)
    if not parts or "".join(e + n for e, n in parts) != formula or any(e not in atomic_numbers for e, _ in parts):
        raise SampleError(f"composition: got {formula!r}, expected a formula like LiNi0.6Co0.2Mn0.2O2")
    found: dict[str, float] = {}
    for element, number in parts:
        found[element] = found.get(element, 0.0) + (float(number) if number else 1.0)
    return found


def amorphous_layer_nm(voltage_kV: float) -> tuple[float, float]:
    """Thickness of the amorphous, gallium-bearing layer on one side of a lamella, nm: low and high estimate.

    Between two power laws through values measured on the side walls of silicon: 21 nm at 30 kV
    and 2.5 nm at 5 kV (Giannuzzi et al., Microsc. Microanal. 11 S2 (2005) 828; reviewed by Mayer et
    al., MRS Bull. 32 (2007) 400), and 23 nm at 30 kV and 10 nm at
    10 kV (Proc. ISTFA 2004, 563). The implanted gallium lies in the same layer (Rubanov &
    Munroe, J. Microsc. 214 (2004) 213). Oxides may differ by a factor of two.

    >>> [round(t, 1) for t in amorphous_layer_nm(30)]
    [21.0, 23.0]
    """
    steep = math.log(21 / 2.5) / math.log(30 / 5)
    shallow = math.log(23 / 10) / math.log(30 / 10)
    bounds = sorted((21 * (voltage_kV / 30) ** steep, 23 * (voltage_kV / 30) ** shallow))
    return bounds[0], bounds[1]


def inelastic_mean_free_path_nm(formula: str, beam_energy_keV: float, collection_mrad: float = 10.0) -> float:
    """Mean free path for inelastic scattering, nm, within 20 %.

    Malis, Cheng & Egerton, J. Electron Microsc. Tech. 8 (1988) 193:
    lambda = 106 F (E0/Em) / ln(2 beta E0/Em), F = (1 + E0/1022)/(1 + E0/511)², Em = 7.6 Z^0.36 eV,
    with E0 in keV and beta in mrad. For compounds Z = sum(f Z^1.3)/sum(f Z^0.3) (Egerton, EELS in
    the Electron Microscope, 3rd ed., eq. 5.4).
    """
    from ase.data import atomic_numbers

    shares = parse_formula(formula)
    z = np.array([atomic_numbers[e] for e in shares], dtype=float)
    f = np.array(list(shares.values()))
    effective = float(np.sum(f * z**1.3) / np.sum(f * z**0.3))
    mean_loss = 7.6 * effective**0.36
    relativistic = (1 + beam_energy_keV / 1022) / (1 + beam_energy_keV / 511) ** 2
    ratio = beam_energy_keV / mean_loss
    return float(106 * relativistic * ratio / math.log(2 * collection_mrad * ratio))


def extinction_distance_nm(crystal: Crystal, beam_energy_keV: float) -> tuple[float, tuple[int, int, int]]:
    """Two-beam extinction distance of a crystal's strongest reflection, nm, and its hkl.

    xi = pi V / (gamma lambda |F|) (Hirsch et al., Electron Microscopy of Thin Crystals, 1965).
    """
    found = reflections(crystal, 1.0)
    strongest = int(np.argmax(found.intensity))
    gamma = 1 + beam_energy_keV / 510.999
    per_volume = math.sqrt(found.intensity[strongest])
    xi = math.pi / (gamma * electron_wavelength_A(beam_energy_keV) * per_volume) / 10
    return xi, tuple(int(i) for i in found.hkl[strongest])


def _finding(level: str, text: str, reason: str) -> dict[str, str]:
    return {"level": level, "text": text, "reason": reason}


def _milling_findings(steps: list[MillingStep]) -> list[dict[str, str]]:
    """What the voltages of the milling steps mean for the surfaces of the lamella."""
    from itertools import pairwise

    known = [s for s in steps if s.milling_voltage_kV is not None]
    if not known:
        return [_finding("warning", "No milling voltage is recorded", "the damaged layer on the surfaces cannot be estimated")]
    findings = []
    rises = [f"{before.stage} → {after.stage}" for before, after in pairwise(known) if after.milling_voltage_kV > before.milling_voltage_kV]
    if rises:
        findings.append(
            _finding("warning", f"The voltage rises again: {', '.join(rises)}", "a later step at a higher voltage undoes the polish")
        )
    last = known[-1]
    low, high = amorphous_layer_nm(last.milling_voltage_kV)
    layer = f"estimated {low:.1f}–{high:.1f} nm of amorphous, ion-implanted material on each side"
    reason = "estimate from side walls of silicon milled with Ga (Mayer et al. 2007; ISTFA 2004, 563); oxides may differ by a factor of two"
    if last.milling_voltage_kV > 5:
        text = f"Final polish {last.stage} at {last.milling_voltage_kV:g} kV, above 5 kV: {layer}"
        findings.append(_finding("warning", text, reason))
    else:
        findings.append(_finding("ok", f"Final polish {last.stage} at {last.milling_voltage_kV:g} kV: {layer}", reason))
    return findings


def _thickness_findings(
    lamella: Lamella, paths_nm: dict[str, float], limits_nm: dict[str, float], energy_keV: float
) -> list[dict[str, str]]:
    """The final thickness against the mean free path and the kinematical limit of each material."""
    thickness = lamella.final_thickness_nm
    if thickness is None:
        return [_finding("warning", "Final thickness not recorded", "plural and dynamical scattering cannot be judged without it")]
    findings = []
    for name, path in paths_nm.items():
        share = 1 - math.exp(-thickness / path)
        level = "warning" if thickness > path else "note" if thickness > path / 2 else "ok"
        text = f"{thickness:g} nm is {thickness / path:.2f} inelastic mean free paths of {name} ({path:.0f} nm at {energy_keV:g} keV): "
        reason = "Malis et al. 1988, collection half-angle 10 mrad, within 20 %"
        findings.append(_finding(level, text + f"{100 * share:.0f} % of the electrons lose energy", reason))
    for name, limit in limits_nm.items():
        ratio = thickness / limit
        text = f"{thickness:g} nm is {ratio:.1f} times the kinematical limit of {name} ({limit:.0f} nm at {energy_keV:g} keV)"
        beyond = "intensities are dynamical: phases must be told by positions and extinctions, and precession helps"
        reason = "limit = extinction distance of the strongest reflection / π, where kinematical theory would diffract the whole beam"
        findings.append(_finding("note" if ratio > 1 else "ok", text, f"{reason}; {beyond}" if ratio > 1 else reason))
    return findings


def _handling_findings(lamella: Lamella) -> list[dict[str, str]]:
    """Frame, damaged share of the thickness and exposure to air."""
    findings = []
    if lamella.frame is None:
        findings.append(_finding("warning", "The frame is not recorded", "loose particles of an unsintered sample fall out without one"))
    elif lamella.frame.all_around:
        findings.append(_finding("ok", "The frame goes all around the lamella", "loose particles are held while it is milled"))
    else:
        findings.append(_finding("note", "The frame does not go all around the lamella", "particles at its open edge may shift or be lost"))
    voltages = [s.milling_voltage_kV for s in lamella.steps if s.milling_voltage_kV is not None]
    if voltages and lamella.final_thickness_nm is not None:
        damaged = 2 * amorphous_layer_nm(voltages[-1])[1]
        share = damaged / lamella.final_thickness_nm
        text = f"Up to {damaged:.0f} nm, {100 * min(share, 1):.0f} % of the thickness, is amorphous (both sides)"
        findings.append(
            _finding("warning" if share > 0.25 else "ok", text, "the high estimate of the layer, twice, over the final thickness")
        )
    minutes = lamella.air_exposure_min
    reason = "from the first contact with moist air LLZO exchanges Li⁺ for H⁺ (Redhammer et al., Crystals 11 (2021) 721), and Li₂CO₃ grows"
    if minutes is not None and minutes > 0:
        text = f"{minutes:g} min in air: Li₂CO₃ on LLZO and NCM surfaces is to be expected, and a shell of it is not evidence of sintering"
        findings.append(_finding("warning" if minutes > 10 else "note", text, reason))
    elif minutes == 0:
        findings.append(_finding("ok", "Never exposed to air", reason))
    return findings


def _missing_findings(lamella: Lamella) -> list[dict[str, str]]:
    """One note that lists what the record leaves out."""
    missing = [name for name in ("instrument", "ion", "frame", "final_thickness_nm", "air_exposure_min") if getattr(lamella, name) is None]
    missing += [] if lamella.steps else ["steps"]
    for i, step in enumerate(lamella.steps):
        fields = ("milling_voltage_kV", "milling_current_nA", "angle_deg")
        missing += [f"steps.{i}.{name}" for name in fields if getattr(step, name) is None]
    if not missing:
        return [_finding("ok", "The record is complete", "instrument, ion, frame, steps, thickness and air exposure are all there")]
    keys = ", ".join(f"lamella.{name}" for name in missing)
    return [_finding("note", f"Not recorded: {keys}", "what is not written down cannot be checked or repeated")]


def lamella_findings(sample: Sample, crystals: dict[str, Crystal]) -> list[dict[str, str]]:
    """What the lamella's record means for the measurements that follow.

    Parameters
    ----------
    sample
        A sample with a lamella; the lowest beam energy of its acquisitions is the strictest.
    crystals
        Structures whose kinematical limit counts, by a name for the reader.

    Returns
    -------
    Findings, worst first, each with ``level`` ("warning", "note", "ok"), ``text`` and ``reason``.
    """
    lamella = sample.lamella
    recorded = [a for a in (getattr(sample.acquisitions, kind) for kind in Acquisitions.model_fields) if a is not None]
    energy = min((a.beam_energy_keV for a in recorded), default=200.0)
    composition = sample.composition or Composition()
    formulas = [f for f in (composition.cathode, composition.electrolyte) if f]
    paths = {formula: inelastic_mean_free_path_nm(formula, energy) for formula in formulas}
    limits = {name: extinction_distance_nm(crystal, energy)[0] / math.pi for name, crystal in crystals.items()}
    findings = _milling_findings(lamella.steps) + _thickness_findings(lamella, paths, limits, energy)
    findings += _handling_findings(lamella) + _missing_findings(lamella)
    return sorted(findings, key=lambda f: ("warning", "note", "ok").index(f["level"]))


def _quantity(value: float | None, unit: str) -> dict[str, Any] | None:
    return None if value is None else {"value": value, "units": unit}


def _without_none(content: dict) -> dict:
    return {k: v for k, v in content.items() if v is not None and v != {}}


def nxem_entry(sample: Sample) -> dict:
    """The lamella's record in the names of NXem, as nested groups; numbers carry their ``units``.

    What NXem requires and sample.yaml does not hold stands under ``missing_required`` with a
    reason and is not made up; what NXem has no name for stands under ``not_in_nxem``. Milling
    steps are events whose ion column holds what changed.
    """
    lamella = sample.lamella
    composition = sample.composition or Composition()
    elements = sorted({e for f in (composition.cathode, composition.electrolyte) if f for e in parse_formula(f)})
    source = {"probe": lamella.ion, "emitter_type": {"Ga": "liquid_metal", "Xe": "plasma", "Ar": "plasma"}.get(lamella.ion or "")}
    events, beyond = {}, {}
    for i, step in enumerate(lamella.steps, 1):
        column = {"voltage": _quantity(step.milling_voltage_kV, "kV"), "current": _quantity(step.milling_current_nA, "nA")}
        ibeam = {"operation_mode": step.stage, "ion_source": _without_none(column)}
        events[f"event{i}"] = {"identifier_sample": sample.id, "instrument": {"ibeam_column": _without_none(ibeam)}}
        beyond[f"event{i}"] = _without_none({"milling_angle_deg": step.angle_deg, "duration_min": step.duration_min})
    frame = lamella.frame.model_dump() if lamella.frame else {}
    beyond |= {"frame": _without_none(frame), "air_exposure_min": lamella.air_exposure_min}
    specimen = {
        "name": sample.label,
        "identifier_sample": sample.id,
        "is_simulation": sample.simulated,
        "physical_form": "foil",
        "atom_types": ", ".join(elements) or None,
        "thickness": _quantity(lamella.final_thickness_nm, "nm"),
    }
    instrument = {
        "fabrication": _without_none({"model": lamella.instrument}),
        "ibeam_column": {"ion_source": _without_none(source)},
    }
    missing = {
        "start_time": "sample.yaml holds no time of the session",
        "sample/preparation_date": "sample.yaml holds no date of the preparation",
        "measurement/instrument/fabrication/vendor": "sample.yaml names the instrument in one field, here the model",
    }
    measurement = {"instrument": _without_none(instrument), **events}
    return {
        **NXEM_DEFINITION,
        "sample": _without_none(specimen),
        "measurement": measurement,
        "not_in_nxem": _without_none(beyond),
        "missing_required": missing,
    }


def check_recording(sample: Sample, kind: str) -> dict[str, Any]:
    """Open a recording, read its first and last frame, and tell what it holds.

    Returns
    -------
    ``kind``, ``file``, ``shape``, ``dtype``, ``size_MB``, ``calibration`` (key: value, where from)
    and ``dose`` in words.

    Raises
    ------
    RecordingError
        Naming the file, the key and what was expected, where it cannot be read to its end.
    """
    dimensions, keys, words = _RECORDING_KINDS[kind]
    acquisition, path = getattr(sample.acquisitions, kind), sample.path(kind)
    where = f"{sample.id}/sample.yaml: acquisitions.{kind}.file"
    try:
        with _QuietLogging("tifffile"):
            signal = load_recording(path, navigation_dimension=dimensions)
    except RecordingError as error:
        raise RecordingError(f"{where}: {error}; expected {words} in a file that is whole") from None
    frames = signal.data.reshape((-1, *signal.data.shape[-2:]))
    try:
        for frame in (frames[0], frames[-1]):
            np.asarray(frame)
    except Exception as error:  # readers raise whatever they meet in a broken file
        need, have = signal.data.nbytes, path.stat().st_size
        raise RecordingError(
            f"{where}: {path.name} is truncated or damaged: its header tells of {' × '.join(map(str, signal.data.shape))} "
            f"{signal.data.dtype} ({need} bytes), the file has {have} bytes and its last frame cannot be read "
            f"({type(error).__name__}: {_one_line(error)}); expected a file that is whole"
        ) from error
    return {
        "kind": kind,
        "file": acquisition.file,
        "shape": [int(n) for n in signal.data.shape],
        "dtype": str(signal.data.dtype),
        "size_MB": round(path.stat().st_size / 1e6, 2),
        "calibration": {key: _calibration_in_words(acquisition, kind, key, signal, unit) for key, unit in keys.items()},
        "dose": _dose_in_words(kind, acquisition, len(frames)),
    }


def _calibration_in_words(acquisition: Any, kind: str, key: str, signal: Any, unit: str | None) -> str:
    value = getattr(acquisition, key)
    if value is not None:
        return f"{value:.5g} (sample.yaml)"
    found = axis_scale(signal, unit) if unit else None
    return f"{found:.5g} (file)" if found is not None else f"missing: set acquisitions.{kind}.{key} in sample.yaml"


def _dose_in_words(kind: str, acquisition: Any, n_frames: int) -> str:
    if kind == "cryo_stem" and acquisition.frame_dose_e_per_A2 is not None:
        dose = acquisition.frame_dose_e_per_A2
        return f"{dose:.3g} e/Å² a frame, {dose * n_frames:.4g} e/Å² in {n_frames} frames"
    if kind == "haadf" and acquisition.dose_e_per_A2 is not None:
        return f"{acquisition.dose_e_per_A2:.4g} e/Å²"
    return "not recorded"


def check_recordings(sample: Sample) -> list[dict[str, Any]]:
    """`check_recording` for every acquisition of a sample; one `RecordingError` with a line for each fault."""
    found, faults = [], []
    for kind in Acquisitions.model_fields:
        if getattr(sample.acquisitions, kind) is None:
            continue
        try:
            found.append(check_recording(sample, kind))
        except RecordingError as error:
            faults.append(str(error))
    if faults:
        raise RecordingError("\n".join(faults))
    return found


# --------------------------------------------------------------------------------------
# 02 Cryo-STEM: drift and dose
# --------------------------------------------------------------------------------------


# --------------------------------------------------------------------------------------
# 03 HAADF: atomic columns and the surface layer
# --------------------------------------------------------------------------------------


# --------------------------------------------------------------------------------------
# 04 Bright field: phases at the interface by local spectra
# --------------------------------------------------------------------------------------


# --------------------------------------------------------------------------------------
# 05 PED: calibration
# --------------------------------------------------------------------------------------


# --------------------------------------------------------------------------------------
# 06 PED: template matching and the decision on the phase
# --------------------------------------------------------------------------------------


# --------------------------------------------------------------------------------------
# 07 Fractions
# --------------------------------------------------------------------------------------


# --------------------------------------------------------------------------------------
# 08 Comparison
# --------------------------------------------------------------------------------------


# --------------------------------------------------------------------------------------
# Pages: the executed notebooks as HTML that opens from disk
# --------------------------------------------------------------------------------------


def failed_step(results_dir: str | Path, sample_id: str) -> tuple[str, str] | None:
    """The first step that failed for a sample in the last run, and why; None where none did.

    ``make run`` leaves ``<id>/.done/<step>`` behind for every step that succeeded on the present
    input. A step without it counts as failed where its executed notebook (``<id>/notebooks/<step>.ipynb``)
    ends in an error, or where papermill itself did (``<step>.log`` beside it). The reason is one
    text as the user should read it, ``SampleError: 600C/sample.yaml: …``.
    """
    root = _results_root(results_dir) / sample_id
    for step in STEPS:
        if not (root / ".done" / step).exists():
            reason = run_error(root / "notebooks" / f"{step}.ipynb")
            if reason:
                return step, reason
    return None


def run_error(executed: str | Path) -> str | None:
    """Why an executed notebook ended in an error: ``name: text`` of the error; None where it did not."""
    executed = Path(executed)
    log = executed.with_suffix(".log")
    if executed.is_file():
        try:
            cells = json.loads(executed.read_text(encoding="utf-8"))["cells"]
        except (ValueError, KeyError, TypeError):
            return "the executed notebook is broken off; run the step again"
        for output in (o for cell in cells for o in cell.get("outputs", [])):
            if output["output_type"] == "error" and not _ended_well(output):
                return f"{output['ename']}: {output['evalue']}"
    lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines() if log.is_file() else []
    errors = [line for line in lines if re.match(r"[A-Za-z_.]*(Error|Exception|Killed)\b", line)]
    return errors[-1] if errors else None


def _ended_well(output: dict) -> bool:
    """Whether an error output is the ``sys.exit(0)`` of a step that has nothing to do."""
    return output["ename"] == "SystemExit" and output["evalue"] in ("", "0")


@dataclass(frozen=True)
class _Page:
    """One page to be: the executed notebook, where the page goes below html/, and what stands around it."""

    notebook: Path
    target: str
    title: str
    sample: str
    simulated: bool
    navigation: list[dict]
    home: str = ""


def render_pages(results_dir: str | Path = "", data_dir: str | Path = "") -> Path:
    """Render every executed notebook as ``results/html/<id>/<step>.html``, the comparison as ``index.html``.

    The pages hold their figures with alt texts and no script, name no absolute path, and open from
    disk without a network. One that is up to date is left as it is, one of a sample that is gone is
    removed. Returns the path of ``index.html``.
    """
    results = _results_root(results_dir)
    html = results / "html"
    pages = _planned_pages(results, data_dir)
    hidden = _hidden_paths(results, data_dir)
    style = _page_style()
    for page in pages:
        source = hashlib.sha256(repr((page, hidden, style, file_sha256(__file__))).encode())
        source.update(page.notebook.read_bytes() if page.notebook.is_file() else b"")
        target = html / page.target
        if not (target.is_file() and source.hexdigest() in target.read_text(encoding="utf-8")[:2000]):
            write_atomically(target, _page_html(page, source.hexdigest(), hidden, style))
    for path in set(html.rglob("*.html")) - {html / page.target for page in pages}:
        path.unlink()
    return html / "index.html"


def share_pages(results_dir: str | Path = "") -> Path:
    """Gather the rendered pages as ``results/share/workbook`` and the same as ``workbook.zip`` beside it."""
    results = _results_root(results_dir)
    if not (results / "html" / "index.html").is_file():
        raise ResultError("there are no pages yet: run `make run` first")
    folder = results / "share" / "workbook"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(results / "html", folder)
    return Path(shutil.make_archive(str(folder), "zip", folder.parent, folder.name))


def finish_run(data_dir: str | Path = "", results_dir: str | Path = "") -> int:
    """Render the pages of a run, tell every failure in one message, and return the exit status, 0 or 1."""
    results = _results_root(results_dir)
    index = render_pages(results, data_dir)
    faults = []
    for sample_id in list_samples(data_dir):
        failure = failed_step(results, sample_id)
        missing = [step for step in STEPS if not (results / sample_id / ".done" / step).exists()]
        if failure:
            faults.append(f"FAILED {sample_id} {failure[0]}: {failure[1]}")
        elif missing:
            faults.append(f"NOT RUN {sample_id} {missing[0]}: see run.log in the results")
    if not (results / ".done" / COMPARISON).exists():
        reason = run_error(results / f"{COMPARISON}.ipynb") or "see run.log in the results"
        faults.append(f"FAILED {COMPARISON}: {reason}")
    print("\n".join(["", *faults, f"pages: {os.path.relpath(index)}"]))
    return 1 if faults else 0


def _planned_pages(results: Path, data_dir: str | Path) -> list[_Page]:
    """All pages of a results folder, the index last."""
    pages, overview = [], []
    for sample_id in list_samples(data_dir):
        try:
            sample = load_sample(data_dir, sample_id)
            title, simulated = sample.label, sample.simulated
        except SampleError:
            title, simulated = sample_id, False
        steps = [(step, results / sample_id / "notebooks" / f"{step}.ipynb") for step in STEPS]
        links = [_step_link(results, sample_id, step, notebook) for step, notebook in steps]
        failure = failed_step(results, sample_id)
        overview.append({"name": title, "links": links, "fault": f"{failure[0]}: {failure[1]}" if failure else ""})
        for step, notebook in steps:
            if notebook.is_file():
                own = [link | {"current": link["step"] == step, "href": link["href"].split("/")[-1]} for link in links]
                navigation = [{"name": "Steps", "links": own}]
                pages.append(_Page(notebook, f"{sample_id}/{step}.html", _step_title(step), title, simulated, navigation, "../index.html"))
    demo = results / "00_demo_data.ipynb"
    if demo.is_file() and not str(data_dir):
        link = {"text": "how they were simulated", "href": "00_demo_data.html"}
        overview.append({"name": "Demo data", "links": [link]})
        pages.append(_Page(demo, "00_demo_data.html", _step_title("00_demo_data"), "Demo data", True, [], "index.html"))
    comparison = results / f"{COMPARISON}.ipynb"
    return [*pages, _Page(comparison, "index.html", _step_title(COMPARISON), "All samples", False, overview)]


def _step_title(step: str) -> str:
    """A step's name as a reader wants it.

    >>> _step_title("05_ped_calibration")
    '05 PED calibration'
    """
    words = step.replace("_", " ").replace("haadf", "HAADF").replace("ped", "PED").replace("cryo stem", "cryo-STEM")
    return words if words[3:4].isupper() else words[:3] + words[3:4].upper() + words[4:]


def _step_link(results: Path, sample_id: str, step: str, notebook: Path) -> dict:
    """The link to one page of a sample, with a word on its state where there is something to say."""
    note = ""
    if not (results / sample_id / ".done" / step).exists():
        note = "failed" if run_error(notebook) else "not run" if not notebook.is_file() else "from an earlier run"
    elif (results / sample_id / f"{step}.json").is_file() and read_result(results, sample_id, step).get("status") == "not_acquired":
        note = "not acquired"
    href = f"{sample_id}/{step}.html" if notebook.is_file() else ""
    return {"step": step, "text": _step_title(step), "href": href, "note": note}


def _hidden_paths(results: Path, data_dir: str | Path) -> list[tuple[str, str]]:
    """Paths of this machine and what stands for them on a page, the longest first."""
    known = {PROJECT_ROOT: ".", results: "results", Path.home(): "~", Path(tempfile.gettempdir()): "tmp"}
    known |= {samples_folder(data_dir): "samples", samples_folder(data_dir).parent: "data"}
    absolute = {os.path.abspath(path): word for path, word in known.items()}
    absolute |= {os.path.realpath(path): word for path, word in absolute.items()}
    return sorted(((p, word) for p, word in absolute.items() if len(p) > 1), key=lambda pair: -len(pair[0]))


def _without_paths(text: str, hidden: list[tuple[str, str]]) -> str:
    """A text without absolute paths: known folders by their word, other files by their name.

    >>> _without_paths("in /home/ada/work/x/a.tif and /usr/lib/python3/zlib.py", [("/home/ada/work", "data")])
    'in data/x/a.tif and zlib.py'
    """
    for path, word in hidden:
        text = text.replace(path, word)
    return re.sub(r"(?<![\w./:~<-])/(?:[\w.+@-]+/)+([\w.+@-]*)", r"\1", text)


def _presentable(notebook: Any, hidden: list[tuple[str, str]]) -> Any:
    """The notebook as readers should see it: no paths, no tracebacks, no ticks of the progress, no markers of papermill."""
    progress = re.compile(r"^\S+ \d\d_\w+: .* \d+ of \d+, \d+ s\n", re.MULTILINE)
    notebook.cells = [cell for cell in notebook.cells if "papermill-error-cell-tag" not in cell.metadata.get("tags", [])]
    for cell in notebook.cells:
        cell.source = _without_paths(cell.source, hidden)
        tags = cell.metadata.get("tags", [])
        cell.metadata["summary"] = "Parameters" if "parameters" in tags or "injected-parameters" in tags else "Code"
        outputs = [o for o in cell.get("outputs", []) if not (o.output_type == "error" and _ended_well(o))]
        for output in outputs:
            if output.output_type == "error":
                output.evalue = _without_paths(output.evalue, hidden)
            elif output.output_type == "stream":
                output.text = _without_paths(progress.sub("", output.text), hidden)
            else:
                texts = {kind: _without_paths("".join(text), hidden) for kind, text in output.data.items() if kind.startswith("text/")}
                output.data.update(texts)
        if cell.cell_type == "code":
            cell.outputs = [o for o in outputs if o.output_type != "stream" or o.text.strip()]
    notebook.metadata.pop("widgets", None)
    return notebook


def _safe_html(text: str) -> str:
    """HTML with nothing in it that could run or load: text, tables, links and pictures that are inside."""
    import bleach

    def allowed(tag: str, name: str, value: str) -> bool:
        if name in ("href", "src"):
            return value.startswith("data:image/") if tag == "img" else value.startswith(("#", "http:", "https:")) or "://" not in value
        return name in ("id", "alt", "title", "class", "scope", "colspan", "rowspan", "lang")

    tags = "h1 h2 h3 h4 h5 h6 p br hr div span section ul ol li dl dt dd table caption thead tbody tfoot tr th td"
    tags += " a abbr b blockquote code del em figure i img kbd pre small strong sub summary sup details"
    protocols = ["http", "https", "data"]
    return bleach.clean(text, tags=tags.split(), attributes=allowed, protocols=protocols, strip=True, strip_comments=True)


def _page_style() -> str:
    """The style sheet of all pages, with the colours of highlighted code for light and dark."""
    from pygments.formatters import HtmlFormatter

    own = (PROJECT_ROOT / "notebooks" / "templates" / "page" / "style.css").read_text(encoding="utf-8")
    colours = {style: HtmlFormatter(style=style, nobackground=True).get_style_defs(".highlight") for style in ("xcode", "github-dark")}
    return f"{own}\n{colours['xcode']}\n@media (prefers-color-scheme: dark) {{\n{colours['github-dark']}\n}}"


def _page_html(page: _Page, source: str, hidden: list[tuple[str, str]], style: str) -> str:
    """One page as HTML."""
    import nbformat
    from nbconvert import HTMLExporter
    from traitlets.config import Config

    if page.notebook.is_file():
        notebook = _presentable(nbformat.read(page.notebook, as_version=4), hidden)
    else:
        text = f"# {page.title}\n\nThis page could not be made: the notebook was not executed."
        notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_markdown_cell(text)])
    config = Config()
    config.NbConvertBase.display_data_priority = ["text/html", "text/markdown", "image/png", "image/jpeg", "text/plain"]
    templates = PROJECT_ROOT / "notebooks" / "templates"
    exporter = HTMLExporter(
        config=config,
        template_name="page",
        extra_template_basedirs=[str(templates)],
        exclude_anchor_links=True,
        filters={"safe_html": _safe_html},
    )
    around = {
        "source": source,
        "style": style,
        "title": f"{page.sample}: {page.title}" if page.home else page.title,
        "home": page.home,
        "sample": page.sample,
        "simulated": page.simulated,
        "navigation": [line | {"fault": _without_paths(line.get("fault", ""), hidden)} for line in page.navigation],
    }
    return exporter.from_notebook_node(notebook, resources={"page": around})[0]
