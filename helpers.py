"""What makes this workbook this study: the one module that the notebooks share.

It reads from top to bottom:

    Project, names, colours    PROJECT_ROOT, GRAPH, STEPS, NCM_PHASES, FAMILIES, PHASE_COLOURS, the errors
    The sample contract        Sample and load_sample: sample.yaml checked, with unit and range of every key
    The result contract        begin, Step (save, figure, progress), read_result, HandChoice: what a notebook starts and ends with
    01 The lamella             lamella_findings, with_fib_images, check_recordings, nxem_entry
    05 to 07                   load_calibration, scan_banks, load_maps: what the steps on PED take from each other
    08 Comparison              collect_samples, comparability, compare_fractions, compare_conditions

What is computed stands in the library (`emphase`), which knows neither sample.yaml nor NCM; its conventions hold here: (y, x) with y
downwards, units in the names, evidence in nats, -1 for "none" in maps of numbers. ``maps`` are the dict of `emphase.ped.map_scan` or of
`load_maps`; ``progress`` wraps what a function loops over (`Step.progress`).

What a user can mend is a `WorkbookError` that names file, key, what came and what was expected: `SampleError`, `RecordingError`,
`ResultError` or `ParameterError`; the library's `EmphaseError` is its base. A result holds no NaN: an unknown number is null with a
reason beside it (`plain`).
"""

from __future__ import annotations

import ast
import datetime
import difflib
import functools
import hashlib
import html
import importlib.util
import itertools
import json
import math
import os
import platform
import re
import shutil
import sys
import time
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, NamedTuple

import numpy as np
import yaml
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, field_validator

from emphase.choices import HandChoices, in_jupyterlab
from emphase.chunks import LongWork
from emphase.crystals import Crystal, read_crystal
from emphase.drawing import as_files, colours_of, without_formulae
from emphase.errors import EmphaseError, one_line, shortened
from emphase.fib_images import FibImage, ion_settings, read_fib_image
from emphase.files import file_sha256, write_atomically
from emphase.frames import axis_scale, is_drawn_to_scale, load_recording
from emphase.lamella import NXEM_DEFINITION, amorphous_layer_nm, extinction_distance_nm, inelastic_mean_free_path_nm, parse_formula
from emphase.milling import contradictions
from emphase.settings import fault_in_words, read_yaml
from emphase.sources import definitions_behind, source_sha256
from emphase.staging import StagedFiles

if TYPE_CHECKING:  # Numba is imported where it is needed: the graph of the steps, which asks this module, is not
    from emphase.ped import Calibration, TemplateBank

PROJECT_ROOT = Path(__file__).resolve().parent
#: Where template banks are kept by a hash of all they depend on; safe to delete.
BANK_CACHE = PROJECT_ROOT / ".cache" / "banks"


class GraphStep(NamedTuple):
    """A step of a sample: the acquisition whose recording and crystal structures it reads, the steps whose results it reads, and the
    modules of the library that its results depend on, with all that these import."""

    acquisition: str
    needs: tuple[str, ...]
    methods: tuple[str, ...]


#: The steps of a sample, in order. The first is the gate: it reads all recordings.
GRAPH = {
    "01_lamella_metadata": GraphStep("", (), ("emphase.lamella",)),
    "02_cryo_stem_drift": GraphStep("cryo_stem", (), ("emphase.frames", "emphase.drift")),
    "03_haadf_surface": GraphStep("haadf", (), ("emphase.frames", "emphase.haadf")),
    "04_interface_phases": GraphStep("interface", (), ("emphase.frames", "emphase.interface")),
    "05_ped_calibration": GraphStep("ped", (), ("emphase.frames", "emphase.ped")),
    "06_ped_matching": GraphStep("ped", ("05_ped_calibration",), ("emphase.frames", "emphase.ped", "emphase.orientations")),
    "07_rocksalt_fraction": GraphStep(
        "ped", ("03_haadf_surface", "04_interface_phases", "06_ped_matching"), ("emphase.frames", "emphase.ped", "emphase.fractions")
    ),
}
STEPS = tuple(GRAPH)
GATE = STEPS[0]
COMPARISON = "08_sample_comparison"
#: Modules whose edits change no result: what shows and asks.
VIEWS = "emphase.explore"

#: Names of the phases of the NCM cathode, which grow on one oxygen lattice; the rocksalt fraction is a share of their area.
NCM_PHASES = ("layered", "spinel", "spinel_m3o4", "rocksalt")
FAMILIES = (NCM_PHASES,)
#: Candidates at the interface where sample.yaml names none, and the phases on both sides of it.
INTERFACE_PHASES = ("layered", "rocksalt", "spinel", "llzo", "la2zr2o7", "lanio3", "li2co3")
INTERFACE_SIDES = ("layered", "llzo")

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
NOT_INDEXED_COLOUR = "#FFFFFF"
UNDECIDED_COLOUR = "#BBBBBB"


class WorkbookError(EmphaseError):
    """A mistake in what the workbook was given, which the user can mend; what the library finds wrong is an `EmphaseError`."""


class SampleError(WorkbookError):
    """A sample.yaml, or a file that it names, is not what the contract asks for."""


class RecordingError(WorkbookError):
    """A recording cannot be read, or does not have the shape that its kind needs."""


class ResultError(WorkbookError):
    """A result that a step needs is missing, or one that it would write breaks the contract."""


class ParameterError(WorkbookError):
    """A notebook was given a parameter that it does not know, or a value it cannot use."""


def phase_colours(phases: list[str]) -> dict[str, str]:
    """A colour for every phase: its own in `PHASE_COLOURS`, else one of a cycle.

    >>> phase_colours(["layered", "austenite"])["layered"]
    '#0072B2'
    """
    return colours_of(phases, PHASE_COLOURS)


# --------------------------------------------------------------------------------------
# The sample contract: data/samples/<id>/sample.yaml
# --------------------------------------------------------------------------------------


class _Strict(BaseModel):
    """A part of sample.yaml: unknown keys are errors, numbers are not guessed from text."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


def _range(low: float, high: float, unit: str) -> Any:
    return Field(ge=low, le=high, description=unit)


def _name_of_phase(name: str) -> str:
    if not re.fullmatch(r"\w[\w .+()-]{0,79}", name):
        raise ValueError("the name of a CIF without .cif: letters, digits, spaces and . + ( ) - _")
    return name


_PhaseName = Annotated[str, AfterValidator(_name_of_phase)]


class Composition(_Strict):
    """What cathode and electrolyte are made of, as formulae."""

    cathode: str | None = None
    electrolyte: str | None = None


class Sintering(_Strict):
    """How the pellet was sintered; ``temperature_C: null`` is pressed and not sintered."""

    temperature_C: Annotated[float, _range(20, 2000, "°C")] | None
    time_h: Annotated[float, _range(0, 1000, "h")] | None = None
    atmosphere: str | None = None


class Frame(_Strict):
    """The deposition that holds loose particles while the lamella is milled."""

    all_around: bool
    material: str | None = None
    thickness_um: Annotated[float, _range(0, 50, "µm")] | None = None


class MillingStep(_Strict):
    """One milling step; names follow OpenFIBSEM."""

    stage: str
    milling_voltage_kV: Annotated[float, _range(0.1, 50, "kV")] | None = None
    milling_current_nA: Annotated[float, _range(0, 200, "nA")] | None = None
    angle_deg: Annotated[float, _range(-90, 90, "degrees")] | None = None
    duration_min: Annotated[float, _range(0, 10000, "min")] | None = None
    stage_tilt_deg: Annotated[float, _range(-90, 90, "degrees")] | None = None


class Lamella(_Strict):
    """How the lamella was made; every part is optional."""

    instrument: str | None = None
    ion: str | None = None
    frame: Frame | None = None
    steps: list[MillingStep] = []
    images: list[str] = []  # TIFFs as the FIB saved them
    final_thickness_nm: Annotated[float, _range(1, 5000, "nm")] | None = None
    air_exposure_min: Annotated[float, _range(0, 1e6, "min")] | None = None


class _Acquisition(_Strict):
    """What all recordings have: the file, in the sample's folder, and the beam energy.

    ``recording`` says what the file must hold: navigation axes, calibrations (key, unit of the file's axes) and words for the reader.
    """

    recording: ClassVar[tuple[int, dict[str, str | None], str]]
    file: str
    beam_energy_keV: Annotated[float, _range(20, 1500, "keV")]


class CryoStem(_Acquisition):
    """A low-dose stack of frames."""

    recording = (1, {"pixel_size_nm": "nm"}, "a stack of frames")
    pixel_size_nm: Annotated[float, _range(1e-4, 100, "nm")] | None = None
    frame_dose_e_per_A2: Annotated[float, _range(0, 1e6, "electrons/Å²")] | None = None
    frame_time_s: Annotated[float, _range(1e-9, 1e5, "s")] | None = None
    temperature_K: Annotated[float, _range(1, 500, "K")] | None = None


class FurtherImage(_Strict):
    """Another image of the same area, and the dose that the area has had at its end."""

    file: str
    dose_e_per_A2: Annotated[float, _range(0, 1e9, "electrons/Å²")]


class Haadf(_Acquisition):
    """An HAADF image along a zone axis of ``phase``; ``series`` are further images of the same area, at other doses."""

    recording = (0, {"pixel_size_nm": "nm"}, "one image")
    pixel_size_nm: Annotated[float, _range(1e-4, 100, "nm")] | None = None
    zone_axis: Annotated[list[Annotated[int, Field(ge=-20, le=20)]], Field(min_length=3, max_length=3)] = [1, 0, 0]
    dose_e_per_A2: Annotated[float, _range(0, 1e9, "electrons/Å²")] | None = None
    phase: _PhaseName = "layered"
    series: list[FurtherImage] = []

    @field_validator("zone_axis")
    @classmethod
    def _a_direction(cls, zone_axis: list[int]) -> list[int]:
        if not any(zone_axis):
            raise ValueError("a direction, not [0, 0, 0]")
        return zone_axis


class Interface(_Acquisition):
    """A bright-field lattice image of the interface."""

    recording = (0, {"pixel_size_nm": "nm"}, "one image")
    pixel_size_nm: Annotated[float, _range(1e-4, 100, "nm")] | None = None
    phases: list[_PhaseName] | None = None


class Ped(_Acquisition):
    """A scan of precession electron diffraction patterns."""

    recording = (2, {"step_nm": None, "scale_invA_per_px": "1/angstrom"}, "a scan of diffraction patterns")
    step_nm: Annotated[float, _range(0.01, 1e5, "nm")] | None = None
    scale_invA_per_px: Annotated[float, _range(1e-4, 1.0, "1/Å per pixel")] | None = None
    precession_deg: Annotated[float, _range(0, 5, "degrees")]
    scan_rotation_deg: Annotated[float, _range(-360, 360, "degrees")] | None = None
    flip_y: bool = False
    flip_x: bool = False
    phases: Annotated[list[_PhaseName], Field(min_length=1)]

    @field_validator("phases")
    @classmethod
    def _no_phase_twice(cls, phases: list[str]) -> list[str]:
        if len(set(phases)) < len(phases):
            raise ValueError("every phase once")
        return phases


class Acquisitions(_Strict):
    """The recordings of a sample, each optional."""

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

    def files(self, acquisition: str) -> dict[str, Path]:
        """All files of an acquisition, by the key of sample.yaml that names each; the first is its `path`."""
        found = getattr(self.acquisitions, acquisition)
        further = {f"{acquisition}.series.{i}.file": image.file for i, image in enumerate(getattr(found, "series", []))}
        return {key: self.folder / file for key, file in {f"{acquisition}.file": found.file, **further}.items()}

    def all_files(self) -> dict[str, Path]:
        """All files that sample.yaml names, by the key that names each: those of the acquisitions and the images of the FIB."""
        recorded = {f"acquisitions.{k}": path for kind, found in self.acquisitions if found for k, path in self.files(kind).items()}
        return recorded | {f"lamella.images.{i}": self.folder / file for i, file in enumerate(self.lamella.images if self.lamella else [])}


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


_SAMPLE_ID = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_-]*")


def _folders_with_yaml(data_dir: str | Path) -> list[str]:
    return [p.name for p in samples_folder(data_dir).iterdir() if p.is_dir() and any(p.glob("*.y*ml"))]


def list_samples(data_dir: str | Path = "") -> list[str]:
    """The ids of all samples of a data folder, sorted: its sub-folders with a sample.yaml, or a YAML file that should be it."""
    return sorted(name for name in _folders_with_yaml(data_dir) if _SAMPLE_ID.fullmatch(name))


def misnamed_samples(data_dir: str | Path = "") -> list[str]:
    """Why folders that hold a sample are none of `list_samples`: their names are no ids."""
    names = sorted(name for name in _folders_with_yaml(data_dir) if not _SAMPLE_ID.fullmatch(name))
    shown = [f"{name!r}" if name.isprintable() else ascii(name) for name in names]
    return [f"{name}: a folder with a sample, expected a name of letters, digits, - and _ only, the first one no -" for name in shown]


def load_sample(data_dir: str | Path, sample_id: str) -> Sample:
    """Read and check ``<data_dir>/<sample_id>/sample.yaml`` and the files that it names.

    Raises `SampleError` with one line for each fault, naming file, key, what came and what
    was expected. Units are those of the keys' names.
    """
    folder = samples_folder(data_dir) / sample_id
    path = folder / "sample.yaml"
    name = f"{sample_id}/sample.yaml"
    if not path.is_file():
        beside = ", ".join(sorted(p.name for p in folder.glob("*.y*ml")))
        have = ", ".join(list_samples(data_dir)) or "none: notebook 00_demo_data writes three"
        raise SampleError(f"{name}: no such file; " + (f"the folder holds {beside}" if beside else f"samples here: {have}"))
    if not path.resolve().is_relative_to(folder.resolve()):
        raise SampleError(f"{name}: a link out of the sample's folder, expected a file inside")
    content = read_yaml(path, name, SampleError)
    if not isinstance(content, dict):
        raise SampleError(f"{name}: got {type(content).__name__}, expected keys and values (id, label, …)")
    if "folder" in content:
        raise SampleError(f"{name}: folder: unknown key")
    try:
        sample = Sample.model_validate(content | {"folder": folder})
    except ValidationError as error:
        lines = [f"{name}: {fault_in_words(e, Sample)}" for e in error.errors()[:20]]
        raise SampleError("\n".join(lines + [f"{name}: {error.error_count() - 20} more faults"] * (error.error_count() > 20))) from None
    faults = _sample_faults(sample, sample_id, phase_folders(data_dir))
    if faults:
        raise SampleError("\n".join(f"{name}: {fault}" for fault in faults))
    return sample


def _sample_faults(sample: Sample, folder_name: str, folders: list[Path]) -> list[str]:
    """What pydantic cannot see: the id against the folder, the files, the phases."""
    faults = []
    if not _SAMPLE_ID.fullmatch(sample.id):
        faults.append(f"id: got {sample.id!r}, expected letters, digits, - and _ only, the first one no -")
    if sample.id != folder_name:
        faults.append(f"id: got {sample.id!r}, expected {folder_name!r}, the name of its folder")
    for key, path in sample.all_files().items():
        name = path.relative_to(sample.folder).as_posix() if path.is_relative_to(sample.folder) else str(path)
        try:
            inside = path.resolve().is_relative_to(sample.folder.resolve())
            there = path.is_file() or (path.suffix == ".zspy" and path.is_dir())
        except (OSError, RuntimeError, ValueError) as error:  # a link to itself, a name that is too long
            faults.append(f"{key}: got {shortened(name)!r}, expected the name of a file ({shortened(one_line(error), 80)})")
            continue
        if not inside:
            faults.append(f"{key}: got {name!r}, expected a path inside the sample's folder")
        elif not there:
            faults.append(f"{key}: no file {name!r} in the sample's folder")
    for kind, acquisition in sample.acquisitions:
        named = [("phases", phase) for phase in getattr(acquisition, "phases", None) or []]
        named += [("phase", acquisition.phase)] if hasattr(acquisition, "phase") else []
        for key, phase in named:
            if not any((folder / f"{phase}.cif").is_file() for folder in folders):
                known = sorted({p.stem for folder in folders for p in folder.glob("*.cif")})
                faults.append(f"acquisitions.{kind}.{key}: no phase {phase!r}, expected one of {', '.join(known)}")
    return faults


def phase_folders(data_dir: str | Path = "") -> list[Path]:
    """Where phases are looked up: beside or in the data folder first, then the project's own."""
    samples = samples_folder(data_dir)
    candidates = [samples / "phases", samples.parent / "phases", PROJECT_ROOT / "data" / "phases"]
    return [p for p in dict.fromkeys(candidates) if p.is_dir()]


def phase_file(phase: str, data_dir: str | Path = "") -> Path:
    """The CIF file of a phase; one that lies in the data folder goes before the project's own. `SampleError` where there is none."""
    for folder in phase_folders(data_dir):
        if (folder / f"{phase}.cif").is_file():
            return folder / f"{phase}.cif"
    raise SampleError(f"no phase {phase!r}: expected {phase}.cif in data/phases")


# --------------------------------------------------------------------------------------
# The result contract: results/<id>/NN_<step>.json
# --------------------------------------------------------------------------------------


def calibration(sample: Sample, acquisition: str, key: str, signal: Any, unit: str) -> float:
    """The value of ``key`` in sample.yaml, else the file's own; that of patterns that are drawn to scale; an error if none is possible."""
    section = getattr(sample.acquisitions, acquisition)
    value = None if key == "scale_invA_per_px" and is_drawn_to_scale(signal) else getattr(section, key)
    if value is not None:
        return value
    value = axis_scale(signal, unit, scan=key == "step_nm")
    name, file = f"{sample.id}/sample.yaml: acquisitions.{acquisition}.{key}", sample.path(acquisition).name
    if value is None:
        raise SampleError(f"{name}: missing, and {file} holds no calibration in {unit}; expected a value here")
    try:
        type(section).model_validate(section.model_dump() | {key: value})
    except ValidationError as error:
        expected = error.errors()[0]["msg"].replace("Input should be ", "")
        raise SampleError(f"{name}: missing, and {file} says {value:.4g} {unit}, expected {expected}; give the value here") from None
    return value


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


@functools.cache
def code_sha256(step: str) -> str:
    """The hash of the code that a notebook's results depend on: the notebook, its modules of the library, and what it uses of this one.

    The modules are those that `GRAPH` and the notebook name, and those from which the used part of this module imports, each with all
    that it imports. `VIEWS` change no result. To notebook 09 belongs tests/validation, to a notebook the folder of tests of its name.
    """
    files = [PROJECT_ROOT / "notebooks" / f"{step}.ipynb", *sorted((PROJECT_ROOT / "tests" / step[3:]).glob("*.py"))]
    methods = {*methods_of(*files), *(GRAPH[step].methods if step in GRAPH else ())}
    used = [name for file in files for name in re.findall(r"\bhelpers\.(\w+)", file.read_text(encoding="utf-8"))]
    sources, imported = definitions_behind(Path(__file__), used)
    modules = {module for module in {*methods, *imported} if not module.startswith(VIEWS)}
    code = [*map(file_sha256, files), source_sha256(*sorted(modules)), *sources]
    return hashlib.sha256("\n".join(code).encode()).hexdigest()


def methods_of(*files: Path) -> tuple[str, ...]:
    """The packages and modules of the library that notebooks or modules name, but those in `VIEWS`."""
    named = {name for file in files for name in re.findall(r"\bemphase\.([a-z]\w+)\b", file.read_text(encoding="utf-8"))}
    modules = sorted(f"emphase.{name}" for name in named if importlib.util.find_spec(f"emphase.{name}"))
    return tuple(module for module in modules if not module.startswith(VIEWS))


class _Result(dict):
    """A part of a result that was read: to ask for a key that it lacks is a `ResultError`."""

    where = ""

    def __missing__(self, key: str) -> None:
        raise ResultError(
            f"{self.where}: holds no {key!r}, expected a result as this version of the workbook writes it; run the step again"
        )


def _no_number(text: str) -> None:
    raise ValueError(f"{text} is no number that a result holds")


def read_result(results_dir: str | Path, sample_id: str, step: str) -> dict:
    """The JSON that a step wrote; `ResultError` saying which step to run where there is none, and on access to a key that it lacks."""
    path = results_root(results_dir) / sample_id / f"{step}.json"
    if not path.is_file():
        raise ResultError(f"run {step} for {sample_id} first: there is no {sample_id}/{step}.json in the results")
    part = type("_Part", (_Result,), {"where": f"{sample_id}/{step}.json"})
    try:
        result = json.loads(path.read_text(encoding="utf-8"), object_hook=part, parse_constant=_no_number)
    except (ValueError, RecursionError) as error:
        raise ResultError(f"{sample_id}/{step}.json: not JSON ({one_line(error)}); run {step} for {sample_id} again") from None
    if not isinstance(result, dict) or result.get("status") not in ("ok", "not_acquired"):
        raise ResultError(f"{sample_id}/{step}.json: holds no status ok or not_acquired; run {step} for {sample_id} again")
    return result


def software_versions(step: str) -> dict[str, str]:
    """Versions of Python and the libraries that compute, and the hash of the code that a notebook's results depend on."""
    names = ("numpy", "scipy", "numba", "hyperspy", "pyxem", "diffsims", "orix", "ase", "scikit-image", "statsmodels", "papermill")
    found = {"python": platform.python_version(), **{name: version(name) for name in names}}
    return found | {"code_sha256": code_sha256(step)[:16]}


def results_root(results_dir: str | Path) -> Path:
    """The folder of results, the project's own where none is named."""
    return Path(results_dir) if str(results_dir) else PROJECT_ROOT / "results"


def with_candidates(ped: Ped, candidates: list[str]) -> Ped:
    """The acquisition with those of its candidate phases alone that were chosen; all of them where none was."""
    unknown = [phase for phase in candidates if phase not in ped.phases]
    if unknown:
        raise ParameterError(f"candidate_phases: got {unknown[0]!r}, expected some of sample.yaml's {', '.join(ped.phases)}")
    return ped.model_copy(update={"phases": [phase for phase in ped.phases if phase in candidates]}) if candidates else ped


#: The file of a results folder that keeps what was chosen by hand.
MANUAL = "manual.yaml"


class HandChoice(_Strict):
    """Parameters of one step chosen by hand: their values, the reason, the date, and the files that they were chosen on (name: sha256)."""

    parameters: dict[str, Any]
    reason: Annotated[str, Field(min_length=3)]
    date: str
    made_on: dict[str, str] = {}

    @field_validator("date", mode="before")
    @classmethod
    def _as_text(cls, value: Any) -> Any:
        return value.isoformat() if isinstance(value, datetime.date) else value


def hand_choices(results: str | Path, steps: tuple[str, ...] = STEPS) -> dict[str, HandChoice]:
    """What ``manual.yaml`` in a results folder holds, by step; empty where there is none. `ResultError` for a fault in it.

    ``steps`` are those that the folder is of: a sample's, or the comparison alone in the folder of all results.
    """
    path = Path(results, MANUAL)
    if not path.is_file():
        return {}
    where = f"{path.parent.name}/{MANUAL}"
    content = read_yaml(path, where, ResultError) or {}
    if not isinstance(content, dict):
        raise ResultError(f"{where}: got {type(content).__name__}, expected steps with their parameters, reason and date")
    choices = {}
    for step, entry in content.items():
        if step not in steps:
            raise ResultError(f"{where}: unknown step {step}, expected one of {', '.join(steps)}")
        try:
            choices[step] = HandChoice.model_validate(entry)
        except ValidationError as error:
            faults = "; ".join(f"{'.'.join(map(str, e['loc'])) or 'the entry'}: {e['msg']}" for e in error.errors())
            raise ResultError(f"{where}: {step}: {faults}") from None
    return choices


def _steps_beside(step: str) -> tuple[str, ...]:
    """The steps whose choices stand in one file with this one's."""
    return STEPS if step in STEPS else (COMPARISON,)


def hand_choice(results: str | Path, step: str) -> HandChoice | None:
    """What ``manual.yaml`` in the folder of a step's results holds for it."""
    return hand_choices(results, _steps_beside(step)).get(step)


def save_hand_choice(results: str | Path, step: str, choice: HandChoice | None) -> Path:
    """Write one step's choice into ``manual.yaml``, or take it out (None); what other steps have there stays."""
    choices = {name: entry.model_dump() for name, entry in hand_choices(results, _steps_beside(step)).items() if name != step}
    if choice is not None:
        choices[step] = choice.model_dump()
    head = "# Chosen by hand. A run uses these in place of the parameters' defaults, and says so.\n"
    return write_atomically(
        Path(results, MANUAL), head + yaml.safe_dump(dict(sorted(choices.items())), allow_unicode=True, sort_keys=False)
    )


def _not_made_on(choice: HandChoice, step: str, sample: Sample | None) -> str:
    """Which file that a choice was made on is another one now, in a sentence: what was drawn on one image does not fit the next."""
    for name, sha256 in choice.made_on.items():
        folder = sample.folder if sample else PROJECT_ROOT
        path = folder / name
        inside = Path(os.path.normpath(path)).is_relative_to(folder) and (path.is_file() or path.is_dir())
        if not inside or file_sha256(path) != sha256:
            return (
                f"{sample.id if sample else 'results'}/{MANUAL}: {step}: made on {name} with sha256 {sha256[:16]}…, which is another file "
                f"now or gone; expected the same: choose again, or take the entry {step} out"
            )
    return ""


def in_markdown(text: str) -> str:
    """A label or a name as Markdown shows it letter by letter: no markup, no link, no HTML.

    >>> in_markdown("600 °C *new* <b>")
    '600 °C \\\\*new\\\\* &lt;b&gt;'
    """
    return re.sub(r"([\\`*_{}\[\]()#$|~!])", r"\\\1", html.escape(" ".join(text.split()), quote=False))


@dataclass
class Step:
    """One notebook at work on one sample: where it reads and writes, and its parameters."""

    name: str
    sample_id: str
    parameters: dict[str, Any]
    results: Path
    figures: Path
    data_dir: str
    started: float = field(default_factory=time.monotonic)
    sample: Sample | None = None
    by_hand: HandChoice | None = None
    inputs_at_start: dict[Path, str] = field(default_factory=dict)
    files: StagedFiles | None = None
    withdrawn: set[str] = field(default_factory=set)

    @property
    def params(self) -> SimpleNamespace:
        """The parameters of this run as attributes: ``run.params.seed``."""
        return SimpleNamespace(**self.parameters)

    def reads(self, *paths: Path) -> None:
        """Note the hashes of files before they are read: `save` refuses a result whose inputs are others by then."""
        self.inputs_at_start |= {path: file_sha256(path) for path in paths if path.exists()}  # one that is not there, its reader tells

    def previous(self, step: str) -> dict:
        """The result of an earlier step for this sample; ends this one too if that had no acquisition."""
        result = read_result(self.results.parent, self.sample_id, step)
        self.reads(self.results / f"{step}.json")
        if result["status"] == "not_acquired":
            self.not_acquired(result["reason"])
        return result

    def acquisition(self, kind: str) -> Any:
        """An acquisition of sample.yaml; where it is absent the notebook says so and ends well."""
        assert self.sample is not None, "the comparison has no sample of its own"
        found = getattr(self.sample.acquisitions, kind)
        if found is None:
            self.not_acquired(f"{self.sample_id} has no {kind} acquisition in its sample.yaml")
        self.reads(*self.sample.files(kind).values())
        return found

    def long_work(self, scheduler: str = "") -> LongWork:
        """Where this step keeps finished chunks until it saves its result; ``scheduler``, else the environment's SCHEDULER, does them."""
        inputs = {self._short(path): sha256 for path, sha256 in self.inputs_at_start.items()}
        return LongWork(self.results / ".work" / self.name, inputs, scheduler or os.environ.get("SCHEDULER", ""))

    def provenance(self) -> dict[str, Any]:
        """The parameters of this run, and what of them was chosen by hand."""
        found: dict[str, Any] = {"parameters": {k: v for k, v in self.parameters.items() if not k.endswith("_dir")}}
        if self.by_hand:
            found["by_hand"] = {"statement": self.hand_choice_in_words(), **self.by_hand.model_dump()}
        return found

    def hand_choice_in_words(self) -> str:
        """Which parameters were chosen by hand and why, and which of these this run did not use."""
        assert self.by_hand is not None, "nothing was chosen by hand"
        used = {name: value for name, value in self.by_hand.parameters.items() if self.parameters[name] == value}
        values = ", ".join(f"{name} = {value}" for name, value in used.items())
        because = f"{self.by_hand.reason} ({MANUAL}, {self.by_hand.date})"
        unused = ", ".join(name for name in self.by_hand.parameters if name not in used)
        sentences = [f"Chosen by hand: {values}. Reason: {because}."] if used else []
        sentences += [f"Chosen by hand but not used, because the run was told otherwise: {unused}."] if unused else []
        return " ".join(sentences)

    def choose_by_hand(self, parameters: dict[str, Any], reason: str, made_on: Iterable[Path] = ()) -> HandChoice | None:
        """Keep parameters as chosen by hand, for runs to come, with the reason and the hashes of the files they were chosen on.

        Other parameters of this step that manual.yaml holds stay; those that are back at the notebook's default leave it. Returns
        the step's entry, None where nothing is left of it.
        """
        defaults = notebook_parameters(PROJECT_ROOT / "notebooks" / f"{self.name}.ipynb")
        check_parameters(self.name, parameters, defaults)
        known = hand_choice(self.results, self.name)
        kept = {name: value for name, value in (known.parameters if known else {}).items() if name not in parameters}
        kept |= {name: value for name, value in plain(parameters, "parameters").items() if value != defaults[name]}
        hashes = {self._short(path): file_sha256(path) for path in made_on}
        choice = HandChoice(parameters=kept, reason=reason, date=time.strftime("%Y-%m-%d", time.gmtime()), made_on=hashes) if kept else None
        save_hand_choice(self.results, self.name, choice)
        return choice

    def hand_choices(self, *made_on: Path) -> HandChoices:
        """What an explorer does with a choice made on these files: it goes to manual.yaml, for runs to come."""
        title = self.sample.title if self.sample else ""
        kept = self.hand_choice_in_words() if self.by_hand else ""
        return HandChoices(title, functools.partial(self._keep_choice, made_on=made_on), self._forget_choice, kept)

    def _keep_choice(self, parameters: dict[str, Any], reason: str, made_on: Iterable[Path] = ()) -> str:
        kept = self.choose_by_hand(parameters, reason, made_on)
        if kept is None:
            return f"Nothing to keep: these are the defaults. {MANUAL} holds nothing for this step."
        values = ", ".join(f"{name} = {value}" for name, value in kept.parameters.items())
        return f"Kept in {MANUAL} beside the results: {values}. Runs use it from now on and say so; run the notebook again to see it."

    def _forget_choice(self) -> str:
        save_hand_choice(self.results, self.name, None)
        return "Forgotten: runs use the parameters' defaults again."

    def not_acquired(self, reason: str) -> None:
        """Write ``status: not_acquired``, say so on the page, and end the notebook without an error."""
        self.save({}, status="not_acquired", reason=reason)
        print(f"Not acquired: {reason}. Nothing to do in this step.")
        warnings.filterwarnings("ignore", message="To exit: use")
        sys.exit(0)

    def staged(self, name: str) -> Path:
        """Where to write a result file ``<results>/<name>``: `save` puts all of them in their places, once the step is through."""
        self.files = self.files or StagedFiles(self.results)
        return self.files.path(name)

    def withdraw(self, name: str) -> None:
        """This run has no such result file: `save` takes away one that an earlier run wrote."""
        self.withdrawn.add(name)

    def save(self, numbers: dict, *, inputs: list[Path] | None = None, status: str = "ok", **more: Any) -> None:
        """Put the staged files in their places and write ``<results>/<step>.json``, each in one step; finished chunks are then let go.

        Nothing is written, and a `ResultError` raised, where a number is NaN or an unexplained null; a `RecordingError` where a file
        that was read is another one by now.
        """
        hashes = {path: file_sha256(path) if path.exists() else "none, it is gone" for path in {*(inputs or []), *self.inputs_at_start}}
        for path, sha256 in self.inputs_at_start.items():
            if hashes[path] != sha256:
                raise RecordingError(
                    f"{self.sample_id}/{self._short(path)}: changed while {self.name} ran: sha256 {sha256[:16]}… at the start, "
                    f"{hashes[path][:16]}… at the end; nothing is written, run the step again"
                )
        content = {"status": status, "sample": self.sample_id, **more, **numbers}
        content["inputs"] = {self._short(p): hashes[p] for p in inputs or []}
        content |= self.provenance()
        content["versions"] = software_versions(self.name)
        text = json.dumps(plain(content), indent=1, ensure_ascii=False, allow_nan=False)
        files, self.files = self.files or StagedFiles(self.results), None
        files.publish({f"{self.name}.json": text + "\n"}, self.withdrawn)
        shutil.rmtree(self.results / ".work" / self.name, ignore_errors=True)

    def _short(self, path: Path) -> str:
        roots = [root for root in (self.sample.folder if self.sample else None, self.results, PROJECT_ROOT) if root is not None]
        for as_seen in (Path.absolute, Path.resolve):  # a linked folder inside the sample's is one of its folders
            for root in roots:
                if as_seen(path).is_relative_to(as_seen(root)):
                    return as_seen(path).relative_to(as_seen(root)).as_posix()
        return path.name

    def figure(self, fig: Any, name: str, alt: str) -> None:
        """Save a figure as PNG and SVG under figures/<id>/NN_<name> and show it with its alt text."""
        from IPython.display import Image, display
        from matplotlib import pyplot as plt

        stem = self.figures / f"{self.name[:2]}_{name}"
        stem.parent.mkdir(parents=True, exist_ok=True)
        if self.sample is not None and self.sample.simulated:
            fig.text(1, 0, "simulated data", ha="right", va="top", fontsize=7, color="0.35")  # below the axes, in the margin
        without_formulae(fig)
        for suffix, content in as_files(fig, (".png", ".svg")).items():
            write_atomically(stem.with_suffix(suffix), content)
        plt.close(fig)
        display(Image(filename=stem.with_suffix(".png"), alt=alt))

    def progress(self, items: Any, label: str, total: int | None = None) -> Any:
        """Iterate with a bar in JupyterLab and plain lines, one for each tenth, in batch runs."""
        total = total if total is not None else len(items)
        if in_jupyterlab():
            from tqdm.auto import tqdm

            yield from tqdm(items, total=total, desc=label)
            return
        start, printed = time.monotonic(), 0
        for done, item in enumerate(items, 1):
            yield item
            if done * 10 // total > printed:
                printed = done * 10 // total
                print(f"{self.sample_id} {self.name}: {label} {done} of {total}, {time.monotonic() - start:.0f} s", flush=True)


_SEEDS = (0, 2**32 - 1)


def begin(step: str, given: Mapping[str, Any], **ranges: tuple[float, float]) -> Step:
    """Start a notebook: check its parameters and its sample, and return the `Step` that holds both.

    Parameters
    ----------
    step
        Name of the notebook, without its suffix.
    given
        The notebook's ``globals()`` after its parameters cell and the cell that papermill injects behind it; they stay as they are.
    **ranges
        Least and largest value, both allowed, of each parameter that is a number.

    Returns
    -------
    Step
        Its ``parameters`` are those given, but what was chosen by hand (`HandChoice`) in place of defaults, which is printed.

    Raises
    ------
    ParameterError
        For an injected name that the parameters cell lacks, and a value of another kind than its default or out of range.
    SampleError, ResultError
        For a fault in sample.yaml, and one in manual.yaml.
    """
    defaults = notebook_parameters(PROJECT_ROOT / "notebooks" / f"{step}.ipynb")
    injected = _injected(given)
    check_parameters(step, injected, defaults)
    parameters = {name: given[name] for name in defaults}
    sample_id = parameters.get("sample_id", "")
    sample = load_sample(parameters["data_dir"], sample_id) if sample_id else None
    results = results_root(parameters["results_dir"]) / sample_id
    by_hand = _usable_choice(step, results, sample, defaults)
    if by_hand:
        at_default = {name for name, value in parameters.items() if value == defaults[name]} - injected
        parameters |= {name: value for name, value in by_hand.parameters.items() if name in at_default}
    for name, default in defaults.items():
        _check_parameter(f"{step}: parameter {name}", parameters[name], default, ranges.get(name, _SEEDS if name == "seed" else None))
    figures = Path(parameters["figures_dir"] or PROJECT_ROOT / "figures") / sample_id
    run = Step(step, sample_id, parameters, results, figures, parameters["data_dir"], sample=sample, by_hand=by_hand)
    if by_hand:
        print(run.hand_choice_in_words())
    if sample is not None:
        run.reads(sample.folder / "sample.yaml")
    code_sha256(step)  # kept: an edit from here on is not what this run was made by
    return run


def _injected(given: Mapping[str, Any]) -> set[str]:
    """The parameters that papermill set: it marks its cell with a comment, and IPython keeps the source of every cell."""
    return {name for source in given.get("In", []) if source.startswith("# Parameters\n") for name, _ in _assigned(source)}


def _usable_choice(step: str, results: Path, sample: Sample | None, defaults: dict[str, Any]) -> HandChoice | None:
    """What manual.yaml holds for a step, or None; one that was made on other files is an error in batch runs, and printed in JupyterLab."""
    choice = hand_choice(results, step)
    if choice is None:
        return None
    open_to_hands = [name for name in defaults if name != "sample_id" and not name.endswith("_dir")]
    check_parameters(f"{sample.id if sample else 'results'}/{MANUAL}: {step}", choice.parameters, open_to_hands)
    fault = _not_made_on(choice, step, sample)
    if fault and not in_jupyterlab():
        raise ResultError(fault)
    if fault:  # who sits before it can choose again
        print(f"NOT USED: {fault}")
    return None if fault else choice


def _assigned(source: str) -> list[tuple[str, ast.expr]]:
    """The names that code assigns to, and what."""
    assigned = [node for node in ast.parse(source).body if isinstance(node, ast.Assign)]
    return [(target.id, node.value) for node in assigned for target in node.targets if isinstance(target, ast.Name)]


def notebook_parameters(path: Path) -> dict[str, Any]:
    """Names and default values of a notebook's cell tagged ``parameters``."""
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    sources = ["".join(c["source"]) for c in cells if "parameters" in c["metadata"].get("tags", [])]
    if len(sources) != 1:
        raise ParameterError(f"{path.name}: has {len(sources)} cells tagged parameters, expected 1")
    return {name: ast.literal_eval(value) for name, value in _assigned(sources[0])}


def check_parameters(step: str, given: Any, known: Any) -> None:
    """`ParameterError` for the first given name that is not known."""
    for name in given:
        if name not in known:
            near = difflib.get_close_matches(name, list(known), 1, 0.5)
            hint = f"; did you mean {near[0]}?" if near else ""
            raise ParameterError(f"{step}: unknown parameter {name}, expected one of {', '.join(known)}{hint}")


def _check_parameter(where: str, came: Any, default: Any, least_and_most: tuple[float, float] | None) -> None:
    """`ParameterError` for a value that is of another kind than the default, or outside its range."""
    kinds: Any = {bool: bool, int: int, float: (int, float)}.get(type(default), type(default))
    if not isinstance(came, kinds) or (isinstance(came, bool) and kinds is not bool):
        raise ParameterError(f"{where}: got {came!r}, expected {type(default).__name__} like {default!r}")
    if least_and_most and not least_and_most[0] <= came <= least_and_most[1]:
        raise ParameterError(f"{where}: got {came}, expected {least_and_most[0]:,} to {least_and_most[1]:,}, like {default!r}")


# --------------------------------------------------------------------------------------
# 01 The lamella and its recordings
# --------------------------------------------------------------------------------------


def _finding(level: str, text: str, reason: str) -> dict[str, str]:
    return {"level": level, "text": text, "reason": reason}


def _milling_findings(steps: list[MillingStep]) -> list[dict[str, str]]:
    """What the voltages of the milling steps mean for the surfaces of the lamella."""
    known = [(s.stage, s.milling_voltage_kV) for s in steps if s.milling_voltage_kV is not None]
    if not known:
        return [_finding("warning", "No milling voltage is recorded", "the damaged layer on the surfaces cannot be estimated")]
    findings = []
    rises = [f"{before} → {after}" for (before, high), (after, higher) in itertools.pairwise(known) if higher > high]
    if rises:
        text = f"The voltage rises again: {', '.join(rises)}"
        findings.append(_finding("warning", text, "a later step at a higher voltage undoes the polish"))
    last, voltage_kV = known[-1]
    low, high = amorphous_layer_nm(voltage_kV)
    layer = f"estimated {low:.1f}–{high:.1f} nm of amorphous, ion-implanted material on each side"
    reason = "estimate from side walls of silicon milled with Ga (Mayer et al. 2007; ISTFA 2004, 563); oxides may differ by a factor of two"
    level, above = ("warning", ", above 5 kV") if voltage_kV > 5 else ("ok", "")
    return [*findings, _finding(level, f"Final polish {last} at {voltage_kV:g} kV{above}: {layer}", reason)]


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
        reason = "the high estimate of the layer, twice, over the final thickness"
        findings.append(_finding("warning" if share > 0.25 else "ok", text, reason))
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
    assert lamella is not None
    energy = min((acquisition.beam_energy_keV for _, acquisition in sample.acquisitions if acquisition), default=200.0)
    composition = sample.composition or Composition()
    formulas = [f for f in (composition.cathode, composition.electrolyte) if f]
    paths = {formula: inelastic_mean_free_path_nm(formula, energy) for formula in formulas}
    limits = {name: extinction_distance_nm(crystal, energy)[0] / math.pi for name, crystal in crystals.items()}
    findings = _milling_findings(lamella.steps) + _thickness_findings(lamella, paths, limits, energy)
    findings += _handling_findings(lamella) + _missing_findings(lamella)
    return sorted(findings, key=lambda f: ("warning", "note", "ok").index(f["level"]))


def with_fib_images(sample: Sample) -> tuple[Sample, list[FibImage], list[dict[str, str]]]:
    """The sample with what the FIB's own images say, these images, and findings: what cannot be read, contradicts the record or fills it.

    Images fill ``lamella.steps`` and ``lamella.instrument`` where sample.yaml has none; what is written by hand stays.
    """
    lamella, images, findings = sample.lamella or Lamella(), [], []
    filled: dict[str, Any] = {}
    for key, path in ((key, path) for key, path in sample.all_files().items() if key.startswith("lamella.images")):
        try:
            images.append(read_fib_image(path))
        except EmphaseError as error:
            findings.append(_finding("warning", f"{key}: {error}", "what this image says of the milling is not known"))
    findings += [_finding(*contradiction) for contradiction in contradictions(images, lamella.steps, lamella.instrument)]
    if len(instruments := {image.instrument for image in images if image.instrument}) == 1 and lamella.instrument is None:
        filled["instrument"] = instruments.pop()
    dated = ion_settings(image for image in images if image.acquired)  # without a date there is no order
    if dated and not lamella.steps:
        filled["steps"] = [MillingStep.model_construct(**image.as_milling_step()) for image in dated]
    if filled:
        reason = "sample.yaml has none by hand; the last image need not show the last step, nor an image the current of the milling"
        findings.append(_finding("note", f"Read from the FIB's images: {' and '.join(filled)}", reason))
    return sample.model_copy(update={"lamella": lamella.model_copy(update=filled)}), images, findings


def _quantity(value: float | None, unit: str) -> dict[str, Any] | None:
    return None if value is None else {"value": value, "units": unit}


def _without_none(content: dict) -> dict:
    return {k: v for k, v in content.items() if v is not None and v != {}}


def nxem_entry(sample: Sample) -> dict:
    """The lamella's record in the names of NXem, as nested groups; numbers carry their ``units``.

    What NXem requires and sample.yaml does not hold stands under ``missing_required`` with a reason and is not made up; what NXem has
    no name for stands under ``not_in_nxem``. Milling steps are events whose ion column holds what changed.
    """
    lamella = sample.lamella
    assert lamella is not None
    composition = sample.composition or Composition()
    elements = sorted({e for f in (composition.cathode, composition.electrolyte) if f for e in parse_formula(f)})
    source = {"probe": lamella.ion, "emitter_type": {"Ga": "liquid_metal", "Xe": "plasma", "Ar": "plasma"}.get(lamella.ion or "")}
    events: dict[str, Any] = {}
    beyond: dict[str, Any] = {}
    for i, step in enumerate(lamella.steps, 1):
        column = {"voltage": _quantity(step.milling_voltage_kV, "kV"), "current": _quantity(step.milling_current_nA, "nA")}
        ibeam = {"operation_mode": step.stage, "ion_source": _without_none(column)}
        events[f"event{i}"] = {"identifier_sample": sample.id, "instrument": {"ibeam_column": _without_none(ibeam)}}
        angles = {"milling_angle_deg": step.angle_deg, "stage_tilt_deg": step.stage_tilt_deg}
        beyond[f"event{i}"] = _without_none(angles | {"duration_min": step.duration_min})
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
    made_by = {"fabrication": _without_none({"model": lamella.instrument}), "ibeam_column": {"ion_source": _without_none(source)}}
    missing = {
        "start_time": "sample.yaml holds no time of the session",
        "sample/preparation_date": "sample.yaml holds no date of the preparation",
        "measurement/instrument/fabrication/vendor": "sample.yaml names the instrument in one field, here the model",
    }
    return {
        **NXEM_DEFINITION,
        "sample": _without_none(specimen),
        "measurement": {"instrument": _without_none(made_by), **events},
        "not_in_nxem": _without_none(beyond),
        "missing_required": missing,
    }


def check_recording(sample: Sample, kind: str) -> dict[str, Any]:
    """Open a recording, read its first and last frame, and list what it holds.

    Returns
    -------
    ``kind``, ``file``, ``shape``, ``dtype``, ``size_MB``, ``calibration`` (key: value, where from) and ``dose`` in words.

    Raises
    ------
    RecordingError
        Naming the file, the key and what was expected, where it cannot be read to its end.
    """
    acquisition, path = getattr(sample.acquisitions, kind), sample.path(kind)
    dimensions, keys, words = acquisition.recording
    where = f"{sample.id}/sample.yaml: acquisitions.{kind}.file"
    try:
        signal = load_recording(path, navigation_dimension=dimensions)
    except EmphaseError as error:
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
            f"({type(error).__name__}: {one_line(error)}); expected a file that is whole"
        ) from error
    return {
        "kind": kind,
        "file": acquisition.file,
        "shape": [int(n) for n in signal.data.shape],
        "dtype": str(signal.data.dtype),
        "size_MB": round(path.stat().st_size / 1e6, 2),
        "calibration": {key: _calibration_in_words(acquisition, kind, key, signal, unit) for key, unit in keys.items()},
        "dose": _dose_in_words(acquisition, len(frames)),
    }


def _calibration_in_words(acquisition: Any, kind: str, key: str, signal: Any, unit: str | None) -> str:
    value = None if key == "scale_invA_per_px" and is_drawn_to_scale(signal) else getattr(acquisition, key)
    if value is not None:
        return f"{value:.5g} (sample.yaml)"
    found = axis_scale(signal, unit) if unit else None
    return f"{found:.5g} (file)" if found is not None else f"missing: set acquisitions.{kind}.{key} in sample.yaml"


def _dose_in_words(acquisition: Any, n_frames: int) -> str:
    of_frame, of_all = (getattr(acquisition, key, None) for key in ("frame_dose_e_per_A2", "dose_e_per_A2"))
    if of_frame is not None:
        return f"{of_frame:.3g} e/Å² a frame, {of_frame * n_frames:.4g} e/Å² in {n_frames} frames"
    return "not recorded" if of_all is None else f"{of_all:.4g} e/Å²"


def check_recordings(sample: Sample) -> list[dict[str, Any]]:
    """`check_recording` for every acquisition of a sample; one `RecordingError` with a line for each fault."""
    found, faults = [], []
    for kind in (kind for kind, acquisition in sample.acquisitions if acquisition):
        try:
            found.append(check_recording(sample, kind))
        except EmphaseError as error:
            faults.append(str(error))
    if faults:
        raise RecordingError("\n".join(faults))
    return found


# --------------------------------------------------------------------------------------
# 05 to 07 What the steps on PED take from each other
# --------------------------------------------------------------------------------------


def load_calibration(results: Path, shape: tuple[int, ...]) -> Calibration:
    """The calibration that notebook 05 left in a sample's results folder; `ResultError` where it is not of a scan of this shape."""
    from emphase.ped import Calibration

    numbers = read_result(results.parent, results.name, "05_ped_calibration")
    path = results / "05_ped_calibration.npz"
    if not path.is_file():
        raise ResultError(f"run 05_ped_calibration for {results.name} first: there is no {results.name}/{path.name} in the results")
    try:
        with np.load(path, allow_pickle=False) as arrays:
            strain, centre_px, mask = (arrays[name] for name in ("strain", "centre_px", "mask"))
            distortion = arrays.get("distortion", np.zeros(5))
            fixed = arrays.get("fixed_background", np.zeros((0, 0), np.float32))
    except Exception as error:  # numpy and zipfile raise whatever they meet in a broken file
        where = f"{results.name}/{path.name}"
        raise ResultError(f"{where}: cannot be read ({one_line(error)}); run 05_ped_calibration for {results.name} again") from None
    of = (*centre_px.shape[:2], *mask.shape)
    whole = fixed.shape in ((0, 0), mask.shape) and all(np.isfinite(array).all() for array in (strain, centre_px, fixed))
    if of != tuple(shape) or not whole:
        its_shape, scan_shape = " × ".join(map(str, of)), " × ".join(map(str, shape))
        raise ResultError(
            f"{results.name}/{path.name}: the calibration of a scan of {its_shape}, but the scan is one of {scan_shape}; "
            f"run 05_ped_calibration for {results.name} again"
        )
    of_detector = {name: numbers[f"detector_{name}"] for name in ("gain", "offset")}
    fitted = {name: numbers[name] for name in ("scale_invA_per_px", "spot_sigma_px", "place_strain")}
    of_camera = {"strain": strain, "distortion": distortion, "centre_px": centre_px, "mask": mask, "fixed_background": fixed}
    return Calibration(**of_camera, **of_detector, **fitted)


def phase_crystal(phase: str, data_dir: str | Path = "") -> Crystal:
    """The crystal structure of a phase, from the CIF of its name (`phase_file`)."""
    return read_crystal(phase_file(phase, data_dir), phase)


def scan_banks(ped: Any, calibrated: dict[str, Any], data_dir: str | Path, *, step_deg: float = 2.0) -> list[TemplateBank]:
    """Template banks of an acquisition's candidate phases, with the reach, width and lattices that 05 uses (its result ``calibrated``)."""
    from emphase.ped import spacings, template_bank

    options = {"beam_energy_keV": ped.beam_energy_keV, "precession_deg": ped.precession_deg, "step_deg": step_deg, "cache": BANK_CACHE}
    options |= {name: calibrated[name] for name in ("max_g_invA", "excitation_width_invA")}
    used = calibrated.get("lattice_parameters_used", {})
    crystals = (spacings.with_lattice_parameters(phase_crystal(p, data_dir), used.get(p, {})) for p in ped.phases)
    return [template_bank(crystal, **options) for crystal in crystals]


MAP_PROPERTIES = (
    "score", "correlation", "phase_margin", "orientation_margin", "decided", "grain_id", "share", "crystal_id", "lattice_id",
    "second_phase_id", "second_share", "second_crystal_id", "diffuse",
)  # fmt: skip


def load_maps(path: Path, matched: dict[str, Any]) -> dict[str, np.ndarray]:
    """Maps (ny, nx) of the CrystalMap that notebook 06 wrote, ``rotation`` (ny, nx, 3, 3), ``probability`` and ``support`` (p, ny, nx).

    ``matched`` is the result of 06. `ResultError` where there is no such file, or where an older version of the workbook wrote it.
    """
    from emphase.orientations import crystal_map_arrays

    where, phases = f"{path.parent.name}/{path.name}", matched["phases"]
    if not path.is_file():
        raise ResultError(f"run 06_ped_matching for {path.parent.name} first: there is no {where} in the results")
    try:
        arrays = crystal_map_arrays(path)
    except Exception as error:  # h5py raises whatever it meets in a file that was cut short
        raise ResultError(f"{where}: cannot be read ({one_line(error)}); run 06_ped_matching for {path.parent.name} again") from None
    lacking = [name for name in (*MAP_PROPERTIES, *(f"probability_{p}" for p in phases)) if name not in arrays]
    if lacking:
        raise ResultError(f"{where}: holds no {lacking[0]!r}, expected the map of this version of the workbook; run 06_ped_matching again")
    ny = len(np.unique(arrays["y"]))
    read = lambda name: arrays[name].reshape(ny, -1, *arrays[name].shape[1:])
    maps: dict[str, np.ndarray] = {name: read(name) for name in (*MAP_PROPERTIES, "phase_id", "rotation")}
    maps["probability"] = np.stack([read(f"probability_{p}") for p in phases])
    maps["support"] = np.stack([read(f"score_{p}") - matched["chance_nats"][p] for p in phases])
    return maps


# --------------------------------------------------------------------------------------
# 08 Comparison
# --------------------------------------------------------------------------------------

COMPARISON_COLUMNS = ["sample", "temperature_C", "rocksalt_fraction", "ci95_low", "ci95_high", "n_patterns_ncm", "n_grains"]


def condition_name(temperature_C: float | None) -> str:
    """What a reader calls the condition: "pressed only" where it was not sintered.

    >>> condition_name(None), condition_name(600.0)
    ('pressed only', '600 °C')
    """
    return "pressed only" if temperature_C is None else f"{temperature_C:g} °C"


def listed(texts: Iterable[str], separator: str = ", ", most: int = 12) -> str:
    """Texts in a row, and how many more there are beyond those that one reads.

    >>> listed(["a", "b"]), listed("abcd", most=2)
    ('a, b', 'a, b and 2 more')
    """
    texts = list(texts)
    return separator.join(texts[:most]) + (f" and {len(texts) - most} more" if len(texts) > most else "")


def collect_samples(
    data_dir: str | Path, results: Path, leave_out: Iterable[str] = ()
) -> tuple[list[dict[str, Any]], dict[str, str]]:  # fmt: skip
    """What the comparison needs of every sample, in order of sintering, and why others are missing.

    A sample whose last run failed, which has no fraction yet or one of an older version, or whose scan is that of a sample
    before it, is missing, with its reason, and so is one in ``leave_out``; one without a PED scan stays, with a fraction of None.
    `ParameterError` where a sample in ``leave_out`` is not there.
    """
    samples: list[dict[str, Any]] = []
    names = list_samples(data_dir)
    unknown = [name for name in leave_out if name not in names]
    if unknown:
        raise ParameterError(f"leave_out: no sample {unknown[0]!r}, expected some of {', '.join(names)}")
    missing = dict.fromkeys(leave_out, "left out by hand")
    for name in (n for n in names if n not in missing):
        failed = failed_step(results, name)
        if failed:
            missing[name] = f"{failed[0]} failed: {failed[1]}"
            continue
        try:
            row = _sample_row(load_sample(data_dir, name), results)
        except EmphaseError as error:
            missing[name] = str(error)
            continue
        twin = next((s["sample"] for s in samples if row["scan_sha256"] and s["scan_sha256"] == row["scan_sha256"]), None)
        if twin:
            missing[name] = f"its PED scan is that of {twin}, byte for byte: one scan is not two lamellae"
        else:
            samples.append(row)
    samples.sort(key=lambda s: (s["temperature_C"] is not None, s["temperature_C"] or 0.0, s["sample"]))
    return samples, missing


def _sample_row(sample: Sample, results: Path) -> dict[str, Any]:
    fraction = read_result(results, sample.id, "07_rocksalt_fraction")
    row: dict[str, Any] = {
        "sample": sample.id,
        "label": sample.label,
        "simulated": sample.simulated,
        "temperature_C": sample.sintering.temperature_C if sample.sintering else None,
        "has_map": fraction["status"] == "ok",
        "scan_sha256": fraction.get("inputs", {}).get(sample.acquisitions.ped.file) if sample.acquisitions.ped else None,
        **{key: fraction.get(key) for key in ("n_patterns_ncm", "n_grains", "detection_limit")},
        "raw": fraction.get("rocksalt_fraction_raw"),
        "doses": {},
        "by_hand": _choices_behind(results / sample.id),
    }
    for phase in ("rocksalt", "spinel"):
        row |= _fraction_of(fraction, phase, f"{sample.id}/07_rocksalt_fraction.json")
    row["ci95_low"], row["ci95_high"] = row["rocksalt_fraction_ci95"] or (None, None)
    if row["has_map"]:
        row["phases"] = read_result(results, sample.id, "06_ped_matching").get("phases", [])
        row["calibration_trusted"] = fraction.get("calibration_trusted")
    for step, keys in (
        ("03_haadf_surface", ("surface_layer_thickness_nm", "surface_layer_thickness_ci95_nm", "surface_phase", "dose_e_per_A2")),
        ("02_cryo_stem_drift", ("total_dose_e_per_A2", "used_dose_e_per_A2")),
    ):
        path = results / sample.id / f"{step}.json"
        local = read_result(results, sample.id, step) if path.is_file() else {"status": "missing"}
        if local["status"] == "ok":
            row |= {key: local.get(key) for key in keys}
            row["doses"] |= {f"{step}_{key}": local[key] for key in keys if "dose" in key and local.get(key) is not None}
    return row


def _choices_behind(folder: Path) -> dict[str, str]:
    """What was chosen by hand for the results in a sample's folder, in words, by step."""
    made = [step for step in STEPS if step != GATE and (folder / f"{step}.json").is_file()]
    choices = {step: read_result(folder.parent, folder.name, step).get("by_hand") for step in made}
    return {step: choice["statement"] for step, choice in choices.items() if choice}


def _fraction_of(result: dict[str, Any], phase: str, where: str) -> dict[str, Any]:
    """A phase's fraction and what it rests on, of a result of 07; `ResultError` where an older version wrote that."""
    keys = ("fraction", "fraction_ci95", "fraction_raw", "detected", "detection_limit", "fraction_quantiles", "elsewhere_quantiles")
    found = {f"{phase}_{key}": result.get(f"{phase}_{key}") for key in keys}
    if found[f"{phase}_fraction"] is not None and found[f"{phase}_fraction_quantiles"] is None:
        raise ResultError(f"{where}: holds no {phase}_fraction_quantiles, an older version wrote it; run 07_rocksalt_fraction again")
    return found


def comparability(samples: list[dict[str, Any]], most_dose_ratio: float = 1.5) -> list[str]:
    """What forbids to take the difference of samples for that of their treatment, in sentences.

    ``samples`` as `collect_samples` gives them: other candidate phases, doses that differ by more than a ratio, scales that are not
    trusted, and, always, how many lamellae stand for a condition.
    """
    caveats = []
    mapped = [s for s in samples if s["has_map"]]
    candidates = {tuple(sorted(s["phases"])) for s in mapped}
    if len(candidates) > 1:
        each = listed((f"{s['sample']}: {', '.join(s['phases'])}" for s in mapped), "; ")
        caveats.append(f"The scans were matched with different candidate phases, so their fractions do not mean the same ({each}).")
    untrusted = [s["sample"] for s in mapped if s.get("calibration_trusted") is False]
    if untrusted:
        caveats.append(f"The calibration is not trusted for {listed(untrusted)}.")
    for kind, name in (("03_haadf_surface_dose_e_per_A2", "HAADF images"), ("02_cryo_stem_drift_used_dose_e_per_A2", "cryo-STEM averages")):
        doses = {s["sample"]: s["doses"][kind] for s in samples if s["doses"].get(kind)}
        if len(doses) > 1 and max(doses.values()) > most_dose_ratio * min(doses.values()):
            each = listed(f"{k} {v:.4g} e/Å²" for k, v in doses.items())
            caveats.append(f"The doses of the {name} differ ({each}), and the beam itself makes spinel and rocksalt.")
    caveats += [f"{s['sample']}, {step}: {words}" for s in samples for step, words in s.get("by_hand", {}).items()]
    if len(samples) > 1 and len({condition_name(s["temperature_C"]) for s in samples}) == len(samples):
        caveats.append(
            "There is one lamella for each condition, so these numbers compare lamellae: they cannot tell the part of the temperature from "
            "that of the specimen."
        )
    return caveats


def compare_fractions(rows: list[dict[str, Any]], phase: str = "rocksalt") -> list[dict[str, Any]]:
    """Pairwise differences of a phase's fractions with 95 % intervals and the probability of an increase.

    ``rows`` hold ``sample``, ``<phase>_fraction`` and its quantiles, for the scanned areas and, with ``elsewhere_``
    before the names of the result, for the lamellae they were taken from (absent where one has one grain only).
    """
    from emphase.fractions.compare import difference

    pairs = []
    for first, second in itertools.combinations(rows, 2):
        pair = {"from": first["sample"], "to": second["sample"], "difference": second[f"{phase}_fraction"] - first[f"{phase}_fraction"]}
        pair |= difference(first[f"{phase}_fraction_quantiles"], second[f"{phase}_fraction_quantiles"])
        here, there = (row.get(f"{phase}_elsewhere_quantiles") for row in (first, second))
        if here is not None and there is not None:
            pair |= {f"elsewhere_{k}": v for k, v in difference(here, there).items()}
        pairs.append(pair)
    return pairs


def compare_conditions(rows: list[dict[str, Any]], phase: str = "rocksalt") -> dict[str, Any]:
    """The fraction of every condition over its lamellae, and differences of conditions, by `random_effects`.

    A lamella's fraction scatters about its condition's mean by what its grains say (``<phase>_elsewhere_quantiles``), and by a variance
    between lamellae, which only several lamellae of one condition can tell.

    Returns
    -------
    ``conditions`` (name, ``n_lamellae``, ``mean``, ``ci95``), ``between_lamellae_sd`` and ``differences``; where no condition
    has two lamellae there are no ``ci95``, no differences, and the standard deviation is None with its reason.
    """
    from emphase.fractions.compare import random_effects, standard_deviation

    groups: dict[str, list[tuple[float, float]]] = {}
    for row in rows:
        quantiles = row.get(f"{phase}_elsewhere_quantiles")
        spread = standard_deviation(row[f"{phase}_fraction_quantiles"] if quantiles is None else quantiles)
        groups.setdefault(condition_name(row["temperature_C"]), []).append((row[f"{phase}_fraction"], spread**2))
    found = random_effects(groups)
    conditions = [{("n_lamellae" if k == "n_specimens" else k): v for k, v in row.items()} for row in found["conditions"]]
    compared = {"conditions": conditions, "between_lamellae_sd": found["between_sd"], "differences": found["differences"]}
    if found["between_sd"] is None:
        compared["between_lamellae_sd_reason"] = "no condition has more than one lamella"
    return compared


def ended_well(output: dict) -> bool:
    """Whether an error output is the ``sys.exit(0)`` of a step that has nothing to do."""
    return output["ename"] == "SystemExit" and output["evalue"] in ("", "0")


def run_error(executed: str | Path) -> str | None:
    """Why an executed notebook ended in an error: ``name: text`` of the error; None where it did not."""
    executed, log = Path(executed), Path(executed).with_suffix(".log")
    if executed.is_file():
        try:
            cells = json.loads(executed.read_text(encoding="utf-8"))["cells"]
        except (ValueError, KeyError, TypeError):
            return "the executed notebook is broken off; run the step again"
        for output in (o for cell in cells for o in cell.get("outputs", [])):
            if output["output_type"] == "error" and not ended_well(output):
                return f"{output['ename']}: {output['evalue']}"
    lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines() if log.is_file() else []
    errors = [line for line in lines if re.match(r"[A-Za-z_.]*(Error|Exception|Killed)\b", line)]
    if errors and re.search("DeadKernelError|Kernel died before", errors[-1]) and executed.is_file():
        return _where_the_kernel_died(cells)
    return errors[-1] if errors else None


def _where_the_kernel_died(cells: list[dict]) -> str:
    """The last cell that was begun, in a sentence."""
    code = [k for k, cell in enumerate(cells, 1) if cell["cell_type"] == "code"]
    begun = [k for k in code if cells[k - 1]["metadata"].get("papermill", {}).get("start_time")]
    if not begun:
        return "the kernel died before the first cell; run the step again"
    line = "".join(cells[begun[-1] - 1]["source"]).strip().partition("\n")[0]
    return f"the kernel died, twice, in cell {begun[-1]} of the notebook, which begins with {line!r}; was there enough memory?"


def failed_step(results_dir: str | Path, sample_id: str) -> tuple[str, str] | None:
    """The first step that failed for a sample in the last run, and why; None where none did.

    ``make run`` leaves a mark ``<id>/.done/<step>`` for every step that succeeded on the present input. A step without it failed where its
    executed notebook (``<id>/notebooks/<step>.ipynb``), or papermill itself (``<step>.log`` beside it), ended in an error.
    """
    root = results_root(results_dir) / sample_id
    for step in STEPS:
        if not (root / ".done" / step).exists():
            reason = run_error(root / "notebooks" / f"{step}.ipynb")
            if reason:
                return step, reason
    return None
