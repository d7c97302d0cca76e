"""The shared module of the workbook: everything that two notebooks use or a test needs.

It reads from top to bottom in the order of the pipeline; in a section private steps mostly come before the function that needs them:

    Project, names, colours    PROJECT_ROOT, GRAPH, STEPS, NCM_PHASES, PHASE_COLOURS, the errors, scale_bar
    The sample contract        Sample and load_sample: sample.yaml checked, with unit and range of every key
    Recordings                 load_recording, RecordedFrames, calibration: the only door to files of microscopes
    The result contract        begin, Step (save, figure, progress), read_result, HandChoice: what a notebook starts and ends with
    Long work                  LongWork, ChunkStore, finish_chunks: chunk by chunk, kept as it goes, here or on a cluster
    Crystallography            Crystal, read_crystal, reflections, structure_factors
    Simulation                 simulate_ped_scan, simulate_haadf, simulate_interface, simulate_cryo_stack, each with its truth
    01 The lamella             lamella_findings, check_recordings, nxem_entry
    02 Cryo-STEM               register_stack, DriftSolution, sum_frames, half_average_resolution, motion_within_frames, lattice_decay
    03 HAADF                   project_columns, find_image_lattice, measure_columns, measure_surface_layer, fingerprint_layer
    04 Bright field            zone_patterns, analyse_interface, spacing_table
    05 PED: calibration        Calibration, find_spots, template_bank, search_phase, refine_calibration
    06 PED: matching           map_scan (index_scan, decide_phases, correlation_map), segment_grains, to_crystal_map, save_ang, save_ctf
    07 Fractions               load_maps, try_mixtures, drawn_counts, corrected_fraction, share_by_bin
    08 Comparison              collect_samples, compare_fractions, compare_conditions
    Explore                    DriftExplorer, SurfaceExplorer, InterfaceExplorer, PedExplorer, ComparisonExplorer
    Pages                      render_pages, share_pages, print_comparison, finish_run

Conventions, used everywhere and not repeated in every docstring:

* Images and scans are indexed (y, x), y downwards, and vectors of pixels are (y, x) too; a stack is (frame, y, x), a scan of
  patterns (ny, nx, ky, kx). Pixel (0, 0) has its middle at 0. Shapes in docstrings: (n, 2) is an array of n rows.
* In the diffraction plane x points right and y down, vectors g are (x, y); angles turn from +x towards +y on screen.
* A shift is how far the content of a frame moved: the content of frame i is that of the first one moved by +shift.
* Units stand in names at the borders: ``_nm``, ``_px``, ``_invA`` (1/Å, no factor 2 pi), ``_deg``, ``_keV``, ``_e_per_A2``. Evidence
  is in nats: the natural logarithm of a ratio of probabilities.
* A crystal's Cartesian frame has e1 along a and e3 along c* (orix and ase agree on it). hkl are rows (n, 3).
* A rotation (3, 3) takes sample coordinates to crystal coordinates (orix's convention); the sample has x right, y down, z along the
  beam, so ``rotation[:, 2]`` is the beam's direction in the crystal.
* Maps of a scan (ny, nx) number phases in the order of the candidates; -1 is "none" in every map of numbers.
* ``progress`` wraps what a function loops over (`Step.progress`); ``maps`` are the dict of `map_scan` or `load_maps`.

Contracts: what computes depends on its arguments alone and leaves them as they are; a random generator or a seed is always passed in,
so the same input gives the same result, and long work the same bits on any number of threads or workers. Computing never plots. What a
user can mend is a `WorkbookError` that names file, key, what came and what was expected: `SampleError`, `RecordingError`, `ResultError`
or `ParameterError`. A result holds no NaN: an unknown number is null with a reason beside it (`plain`).
"""

from __future__ import annotations

import ast
import base64
import contextlib
import dataclasses
import datetime
import difflib
import functools
import hashlib
import html
import importlib
import inspect
import io
import itertools
import json
import logging
import math
import os
import platform
import re
import shutil
import sys
import tempfile
import threading
import time
import warnings
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from itertools import product
from pathlib import Path
from typing import Annotated, Any, ClassVar, NamedTuple

import numba
import numpy as np
import yaml
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, field_validator

# --------------------------------------------------------------------------------------
# Project, names and colours
# --------------------------------------------------------------------------------------

PROJECT_ROOT = Path(__file__).resolve().parent
#: Where template banks are kept by a hash of all they depend on; safe to delete.
BANK_CACHE = PROJECT_ROOT / ".cache" / "banks"
#: The steps of a sample, in order: the acquisition whose recording and crystal structures each reads, and the steps whose results it reads.
GRAPH: dict[str, tuple[str, tuple[str, ...]]] = {
    "01_lamella_metadata": ("", ()),  # the gate: it reads all recordings
    "02_cryo_stem_drift": ("cryo_stem", ()),
    "03_haadf_surface": ("haadf", ()),
    "04_interface_phases": ("interface", ()),
    "05_ped_calibration": ("ped", ()),
    "06_ped_matching": ("ped", ("05_ped_calibration",)),
    "07_rocksalt_fraction": ("ped", ("03_haadf_surface", "04_interface_phases", "06_ped_matching")),
}
STEPS = tuple(GRAPH)
GATE = STEPS[0]
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
    """A colour for every phase: its own in `PHASE_COLOURS`, else one of a cycle.

    >>> phase_colours(["layered", "austenite"])["layered"]
    '#0072B2'
    """
    spare = (c for c in _OTHER_COLOURS * len(phases) if c not in {PHASE_COLOURS.get(p) for p in phases})
    return {p: PHASE_COLOURS.get(p) or next(spare) for p in phases}


def _nice_length(most: float) -> float:
    """The longest of 1, 2, 5 times a power of ten that is at most ``most``.

    >>> _nice_length(0.7), _nice_length(34.0)
    (0.5, 20.0)
    """
    unit = 10.0 ** math.floor(math.log10(most))
    return max(float(f"{n * unit:.6g}") for n in (1, 2, 5) if n * unit <= most * 1.0001)


def scale_bar(ax: Any, pixel: float, unit: str = "nm", length: float | None = None) -> None:
    """A bar with its length in the lower left corner of an image on matplotlib axes.

    ``pixel`` is the size in ``unit`` of a step of 1 on the axes; ``length`` is that of the bar, if not given about 0.3 of the width.
    """
    (x0, x1), (y0, y1) = ax.get_xlim(), ax.get_ylim()
    left, low, width, height = min(x0, x1), max(y0, y1), abs(x1 - x0), abs(y1 - y0)  # y grows downwards in an image
    length = length or _nice_length(0.3 * width * pixel)
    left += 0.05 * width
    for colour, thickness in (("k", 5), ("w", 3)):
        ax.plot([left, left + length / pixel], [low - 0.06 * height] * 2, color=colour, lw=thickness)
    box = {"facecolor": "k", "alpha": 0.5, "lw": 0, "pad": 1.5}
    ax.text(left, low - 0.1 * height, f"{length:g} {unit}", color="w", fontsize=8, va="bottom", bbox=box)


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


class Lamella(_Strict):
    """How the lamella was made; every part is optional."""

    instrument: str | None = None
    ion: str | None = None
    frame: Frame | None = None
    steps: list[MillingStep] = []
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


def _cut(text: str, most: int = 200) -> str:
    return text if len(text) <= most else f"{text[: most - 1]}…"


def _expected(error: Mapping[str, Any], model: type[BaseModel]) -> str:
    """One validation error of pydantic as `key: what came, what was expected`."""
    keys = [k for k in error["loc"] if isinstance(k, (str, int)) and not str(k).startswith(("float", "constrained"))]
    key = _cut(".".join(str(k) for k in keys))
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
    return f"{key}: got {_cut(repr(came))}, expected {expected}{f' ({unit})' if unit else ''}"


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


_SAMPLE_ID = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_-]*")


def _folders_with_yaml(data_dir: str | Path) -> list[str]:
    return [p.name for p in samples_folder(data_dir).iterdir() if p.is_dir() and any(p.glob("*.y*ml"))]


def list_samples(data_dir: str | Path = "") -> list[str]:
    """The ids of all samples of a data folder, sorted: its sub-folders with a sample.yaml, or a YAML file that should be it."""
    return sorted(name for name in _folders_with_yaml(data_dir) if _SAMPLE_ID.fullmatch(name))


def misnamed_samples(data_dir: str | Path = "") -> list[str]:
    """Why folders that hold a sample are none of `list_samples`: their names are no ids."""
    names = sorted(name for name in _folders_with_yaml(data_dir) if not _SAMPLE_ID.fullmatch(name))
    told = [f"{name!r}" if name.isprintable() else ascii(name) for name in names]
    return [f"{name}: a folder with a sample, expected a name of letters, digits, - and _ only, the first one no -" for name in told]


_YAML_BYTES = 200_000  # of a file that a person writes, at most
_YAML_ALIASES = 10
_YAML_DEPTH = 30


class _PlainLoader(yaml.SafeLoader):
    """YAML of plain values. A key that stands twice is an error, and so are more aliases than a person writes: they multiply."""

    aliases = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        """A node; `yaml.YAMLError` where it is one alias too many."""
        event = self.peek_event()
        self.aliases += isinstance(event, yaml.AliasEvent)
        if self.aliases > _YAML_ALIASES:
            raise yaml.MarkedYAMLError(problem=f"more than {_YAML_ALIASES} aliases (*)", problem_mark=event.start_mark)
        return super().compose_node(parent, index)

    def construct_mapping(self, node: Any, deep: bool = False) -> dict:
        """A mapping; `yaml.YAMLError` naming the key that it holds twice."""
        seen = set()
        for key in (key for key, _ in node.value if isinstance(key, yaml.ScalarNode)):
            if key.value in seen:
                raise yaml.MarkedYAMLError(problem=f"the key {_cut(key.value)!r} stands twice", problem_mark=key.start_mark)
            seen.add(key.value)
        return super().construct_mapping(node, deep)


def _unheard_of(value: Any, depth: int = 0) -> str:
    """What no file here may hold: values deeper than `_YAML_DEPTH` (or in themselves), text that cannot be written; "" for neither."""
    if depth > _YAML_DEPTH:
        return f"more than {_YAML_DEPTH} values within each other"
    if isinstance(value, str) and re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]", value):
        return f"characters that cannot be shown: {_cut(ascii(value))}"
    parts = [*value, *value.values()] if isinstance(value, dict) else value if isinstance(value, (list, tuple, set)) else ()
    return next((fault for fault in (_unheard_of(part, depth + 1) for part in parts) if fault), "")


def _read_yaml(path: Path, name: str, error: type[WorkbookError]) -> Any:
    """The content of a YAML file as plain values; an ``error`` that begins with ``name`` where that is not what it holds."""
    if path.stat().st_size > _YAML_BYTES:
        raise error(f"{name}: {path.stat().st_size} bytes, expected at most {_YAML_BYTES}")
    try:
        content = yaml.load(path.read_text(encoding="utf-8-sig"), Loader=_PlainLoader)
    except UnicodeDecodeError as fault:
        raise error(f"{name}: not YAML in UTF-8: {fault.reason} at byte {fault.start}") from None
    except yaml.YAMLError as fault:
        where = getattr(fault, "problem_mark", None)
        line = f", line {where.line + 1}" if where else ""
        raise error(f"{name}{line}: not YAML: {_one_line(getattr(fault, 'problem', None) or fault)}") from None
    except (ValueError, RecursionError) as fault:  # a date or a number that there is not, or thousands of brackets
        raise error(f"{name}: not YAML: {_one_line(fault)}") from None
    unheard_of = _unheard_of(content)
    if unheard_of:
        raise error(f"{name}: holds {unheard_of}")
    return content


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
    content = _read_yaml(path, name, SampleError)
    if not isinstance(content, dict):
        raise SampleError(f"{name}: got {type(content).__name__}, expected keys and values (id, label, …)")
    if "folder" in content:
        raise SampleError(f"{name}: folder: unknown key")
    try:
        sample = Sample.model_validate(content | {"folder": folder})
    except ValidationError as error:
        told = [f"{name}: {_expected(e, Sample)}" for e in error.errors()[:20]]
        raise SampleError("\n".join(told + [f"{name}: {error.error_count() - 20} more faults"] * (error.error_count() > 20))) from None
    faults = _sample_faults(sample, sample_id, _phase_folders(data_dir))
    if faults:
        raise SampleError("\n".join(f"{name}: {fault}" for fault in faults))
    return sample


def _sample_faults(sample: Sample, folder_name: str, phase_folders: list[Path]) -> list[str]:
    """What pydantic cannot see: the id against the folder, the files, the phases."""
    faults = []
    if not _SAMPLE_ID.fullmatch(sample.id):
        faults.append(f"id: got {sample.id!r}, expected letters, digits, - and _ only, the first one no -")
    if sample.id != folder_name:
        faults.append(f"id: got {sample.id!r}, expected {folder_name!r}, the name of its folder")
    for kind in Acquisitions.model_fields:
        acquisition = getattr(sample.acquisitions, kind)
        if acquisition is None:
            continue
        for key, path in sample.files(kind).items():
            name = path.relative_to(sample.folder).as_posix() if path.is_relative_to(sample.folder) else str(path)
            try:
                inside = path.resolve().is_relative_to(sample.folder.resolve())
                there = path.is_file() or (path.suffix == ".zspy" and path.is_dir())
            except (OSError, RuntimeError, ValueError) as error:  # a link to itself, a name that is too long
                faults.append(f"acquisitions.{key}: got {_cut(name)!r}, expected the name of a file ({_cut(_one_line(error), 80)})")
                continue
            if not inside:
                faults.append(f"acquisitions.{key}: got {name!r}, expected a path inside the sample's folder")
            elif not there:
                faults.append(f"acquisitions.{key}: no file {name!r} in the sample's folder")
        named = [("phases", phase) for phase in getattr(acquisition, "phases", None) or []]
        named += [("phase", acquisition.phase)] if hasattr(acquisition, "phase") else []
        for key, phase in named:
            if not any((folder / f"{phase}.cif").is_file() for folder in phase_folders):
                known = sorted({p.stem for folder in phase_folders for p in folder.glob("*.cif")})
                faults.append(f"acquisitions.{kind}.{key}: no phase {phase!r}, expected one of {', '.join(known)}")
    return faults


def _phase_folders(data_dir: str | Path = "") -> list[Path]:
    """Where phases are looked up: beside or in the data folder first, then the project's own."""
    samples = samples_folder(data_dir)
    candidates = [samples / "phases", samples.parent / "phases", PROJECT_ROOT / "data" / "phases"]
    return [p for p in dict.fromkeys(candidates) if p.is_dir()]


def phase_file(phase: str, data_dir: str | Path = "") -> Path:
    """The CIF file of a phase; one that lies in the data folder goes before the project's own. `SampleError` where there is none."""
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
    path = Path(path)
    if not path.exists():
        raise RecordingError(f"{path.name}: no such file")
    if not (path.is_file() or (path.suffix == ".zspy" and path.is_dir())):
        raise RecordingError(f"{path.name}: neither a file nor a .zspy folder, expected a recording")
    if path.stat().st_size == 0 or (path.is_dir() and not any(path.iterdir())):
        raise RecordingError(f"{path.name}: the file is empty")
    reader = _reader(path)
    _refuse_links(path, path.parent.resolve(), set())
    try:
        with warnings.catch_warnings(), _QuietLogging("rsciio", "hyperspy", "tifffile"), _at_most(_READER_SECONDS, path.name):
            warnings.simplefilter("ignore")
            arrays = [found for found in reader(str(path), lazy=True) if "data" in found]
            _check_announced(path, [found["data"] for found in arrays])
            signals = [_plain_signal(found) for found in arrays]
            frames = [s for s in (_as_frames(s, navigation_dimension) for s in signals) if s is not None]
    except RecordingError:
        raise
    except Exception as error:  # readers raise whatever they meet in a broken file
        raise RecordingError(f"{path.name}: cannot be read: {type(error).__name__}: {_one_line(error)}") from error
    if not frames:
        shapes = ", ".join(str(s.data.shape) for s in signals) or "nothing"
        kinds: dict[int | None, str] = {0: "one image", 1: "a stack of frames", 2: "a scan of patterns"}
        raise RecordingError(f"{path.name}: holds arrays of shape {shapes}, expected {kinds.get(navigation_dimension, '2-D frames')}")
    signal = max(frames, key=lambda s: s.data.size)
    _check_memory(path, signal.data, read_whole=navigation_dimension == 0)
    return signal


class RecordedFrames:
    """The frames of a recording, read where they are used: it stands for the array ([[scan y,] scan x or frame,] y, x).

    ``frames[index]`` is a numpy array, read then; nothing else of the file is in memory. To another process it goes
    as the name of its file, which has to be there too. Raises `RecordingError` as `load_recording` does, and where a part cannot be read.
    """

    def __init__(self, path: str | Path, navigation_dimension: int):
        self.path, self.navigation_dimension = Path(path).absolute(), navigation_dimension
        data = self.signal.data
        self.shape, self.dtype, self.chunks = data.shape, data.dtype, data.chunks

    @property
    def signal(self) -> Any:
        """The lazy hyperspy signal, with its axes and metadata."""
        state = self.path.stat()
        return _opened_recording(str(self.path), self.navigation_dimension, state.st_size, state.st_mtime_ns)

    def __reduce__(self) -> tuple:
        return RecordedFrames, (str(self.path), self.navigation_dimension)

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, index: Any) -> np.ndarray:
        try:
            return self.signal.data[index].compute(scheduler="threads")
        except Exception as error:  # readers raise whatever they meet in a broken file
            raise RecordingError(f"{self.path.name}: cannot be read at {index}: {type(error).__name__}: {_one_line(error)}") from error


@functools.lru_cache(maxsize=4)
def _opened_recording(path: str, navigation_dimension: int, size: int, changed_ns: int) -> Any:
    """`load_recording`, once in a process for a file of this size and date."""
    return load_recording(path, navigation_dimension=navigation_dimension)


_READER_SECONDS = 120  # for a header and a map of what is behind it


@contextlib.contextmanager
def _at_most(seconds: float, name: str) -> Iterator[None]:
    """`RecordingError` in what takes longer, on the main thread: a header can announce more frames than its reader can count."""
    import signal

    if threading.current_thread() is not threading.main_thread() or not hasattr(signal, "SIGALRM"):
        yield
        return

    def end(*_: object) -> None:
        raise RecordingError(f"{name}: its header announces more than can be read in {seconds:g} s, expected a file that is whole")

    before = signal.signal(signal.SIGALRM, end)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


#: Formats of spectra whose readers open whatever file a recording names
_READERS_LEFT_OUT = ("EDAX", "EMPAD", "JEOL")


def _reader(path: Path) -> Callable[..., list[dict]]:
    """The function of RosettaSciIO that reads files of a path's suffix; `RecordingError` where there is none, or several."""
    from rsciio import IO_PLUGINS

    suffix = path.suffix.lower().lstrip(".")
    plugins = [p for p in IO_PLUGINS if p["name"] not in _READERS_LEFT_OUT and suffix in map(str.lower, p["file_extensions"])]
    plugins = [p for p in plugins if p["name"].lower() == suffix] or plugins
    if not plugins:
        raise RecordingError(f"{path.name}: no reader for {path.suffix or 'a name without a suffix'}, expected a format of RosettaSciIO")
    if len(plugins) > 1:
        names = ", ".join(p["name"] for p in plugins)
        raise RecordingError(f"{path.name}: cannot be read: {path.suffix} may be any of {names}; expected a suffix of one format")
    return importlib.import_module(plugins[0]["api"]).file_reader


def _plain_signal(found: dict[str, Any]) -> Any:
    """A lazy signal of an array and its uniform axes, as a reader of RosettaSciIO found them.

    All else that a file holds stays out: hyperspy would import the package that it names, compile the formula of an axis, and keep
    models whose functions are pickled. Numbers are in the byte order of this machine.
    """
    from hyperspy.io import dict2signal

    data = found["data"]
    if data.dtype.kind in "iuf":
        data = data.astype(data.dtype.newbyteorder("="), copy=False)
    kept = {"data": data, "metadata": {"General": {}, "Signal": {}}, "post_process": found.get("post_process", [])}
    if "axes" in found:
        axes = sorted(found["axes"], key=lambda axis: axis.get("index_in_array") or 0)  # those without a place stand in order
        kept["axes"] = [_plain_axis(axis, size) for axis, size in zip(axes, data.shape, strict=True)]
    return dict2signal(kept, lazy=True)


def _plain_axis(axis: dict[str, Any], size: int) -> dict[str, Any]:
    """What counts of an axis: its step and unit; neither where one of them is no such thing, or steps differ."""
    scale, units = axis.get("scale"), axis.get("units")
    if not (isinstance(units, str) and isinstance(scale, (int, float, np.number)) and np.isfinite(scale)):
        scale, units = 1.0, None
    kept = {"size": size, "scale": float(scale), "offset": 0.0, "units": units}
    return kept | ({"navigate": bool(axis["navigate"])} if "navigate" in axis else {})


def _refuse_links(path: Path, home: Path, seen: set[Path]) -> None:
    """`RecordingError` where a recording, or a file beside it that belongs to it, leads out of its folder ``home``.

    By a symbolic link, or by one within an HDF5 file; where that leads to a file in the folder, the same holds for this one.
    """
    first = re.split(r"[._]", path.name)[0]
    for other in [*(path.rglob("*") if path.is_dir() else ()), *(p for p in path.parent.iterdir() if p.name.startswith(first))]:
        if other.is_symlink() and not other.resolve().is_relative_to(home):
            raise RecordingError(f"{path.name}: {other.name} is a link out of its folder, expected files inside")
    seen.add(path)
    for name in _hdf5_links(path) if path.is_file() else ():
        linked = (home / name).resolve()
        if not (linked.is_relative_to(home) and linked.is_file()):
            raise RecordingError(f"{path.name}: links to {_cut(Path(name).name)!r} elsewhere, expected data inside the file or beside it")
        if linked not in seen:
            _refuse_links(linked, home, seen)


def _hdf5_links(path: Path) -> list[str]:
    """Names of the files that an HDF5 file takes data from: by external links, virtual datasets and external storage."""
    import h5py

    names: list[str] = []

    def look(_: str, link: Any) -> None:
        if isinstance(link, h5py.ExternalLink):
            names.append(os.fsdecode(link.filename))

    def look_inside(_: str, item: Any) -> None:
        if isinstance(item, h5py.Dataset):
            names.extend(os.path.join("/", os.fsdecode(name)) for name, *_ in item.external or ())  # HDF5 looks in the working folder
            names.extend(source.file_name for source in (item.virtual_sources() if item.is_virtual else ()) if source.file_name != ".")

    if not h5py.is_hdf5(path):
        return []
    try:
        with h5py.File(path, "r") as file:
            file.visititems_links(look)
            file.visititems(look_inside)
    except Exception as error:  # h5py raises whatever it meets in a broken file
        raise RecordingError(f"{path.name}: cannot be read: {type(error).__name__}: {_one_line(error)}") from error
    return names


_MOST_COMPRESSION = 1100  # bytes of data for a byte of a file; deflate reaches 1032
_LONGEST_AXIS = 10_000_000
_MEMORY_SHARE = 1 / 8  # of the memory, for what is read whole: computing takes several times as much


def _memory_bytes() -> int:
    """The memory that this process may have: the machine's, or less where a limit is set, by a container or a shell."""
    limits = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    with contextlib.suppress(ImportError):
        import resource

        limits.append(resource.getrlimit(resource.RLIMIT_AS)[0])
    for limit in ("memory.max", "memory/memory.limit_in_bytes"):  # of a container: cgroups of version 2, and 1
        with contextlib.suppress(OSError, ValueError):
            limits.append(int(Path("/sys/fs/cgroup", limit).read_text(encoding="ascii")))
    return min(limit for limit in limits if limit > 0)


def _announced(path: Path, data: Any) -> str:
    return f"{path.name}: announces {' × '.join(map(str, data.shape))} {data.dtype} ({data.nbytes / 1e6:.4g} MB)"


def _check_announced(path: Path, arrays: list[Any]) -> None:
    """`RecordingError` where a file cannot hold what it announces; hyperspy makes a number for every step of an axis."""
    files = path.rglob("*") if path.is_dir() else path.parent.iterdir()  # data may lie in a file beside it
    held = sum(p.stat().st_size for p in files if p.is_file())
    for data in arrays:
        if data.nbytes > _MOST_COMPRESSION * held:
            raise RecordingError(f"{_announced(path, data)}, expected no more than {held} bytes on disk can hold")
        if max(data.shape, default=0) > _LONGEST_AXIS:
            raise RecordingError(f"{_announced(path, data)}, expected at most {_LONGEST_AXIS} along an axis")


def _check_memory(path: Path, data: Any, *, read_whole: bool) -> None:
    """`RecordingError` where what is read at a time would take too much of the memory."""
    block = math.prod(max(sizes) for sizes in data.chunks) if hasattr(data, "chunks") else data.size
    at_once = data.size if read_whole else max(block, math.prod(data.shape[-2:]))
    most = _MEMORY_SHARE * _memory_bytes()
    if at_once * data.dtype.itemsize > most:
        part = "" if read_whole else f", of which {at_once * data.dtype.itemsize / 1e6:.4g} MB are read at once"
        raise RecordingError(f"{_announced(path, data)}{part}; expected at most {most / 1e6:.4g} MB, an eighth of the memory")


def read_array(data: Any, name: str) -> np.ndarray:
    """A lazy array read into the memory; `RecordingError` where the file, which ``name`` tells, is broken in the middle."""
    try:
        with _QuietLogging("rsciio", "tifffile"):
            return np.asarray(data)
    except Exception as error:  # readers raise whatever they meet in a broken file
        raise RecordingError(f"{name}: cannot be read to its end: {type(error).__name__}: {_one_line(error)}") from error


def _as_frames(signal: Any, navigation_dimension: int | None) -> Any | None:
    """The signal with 2-D frames and the wanted number of navigation axes, or None."""
    if (
        signal.data.dtype.kind not in "iuf"
        or signal.data.dtype.itemsize > 8
        or len(signal.axes_manager._axes) < 2
        or min(signal.data.shape) < 1
    ):
        return None
    if signal.axes_manager.signal_dimension != 2:
        signal = signal.transpose(signal_axes=2)
    have = signal.axes_manager.navigation_dimension
    if navigation_dimension is None or have == navigation_dimension:
        return signal if min(signal.data.shape[-2:]) > 1 else None
    if navigation_dimension == 2 and have in (0, 1):
        signal.data = signal.data.reshape((1,) * (2 - have) + signal.data.shape)
        return type(signal)(signal.data, axes=_with_unit_axes(signal, 2 - have))
    return None


def _with_unit_axes(signal: Any, count: int) -> list[dict]:
    axes = [{"name": name, "size": 1, "navigate": True} for name in ("y", "x")[:count]]
    return axes + [a.get_axis_dictionary() | {"size": a.size} for a in signal.axes_manager._axes]


#: Units as some writers spell them: NCEM's EMD, and pyxem in LaTeX
_UNITS_AS_WRITTEN = {"n_m": "nm", "n_m^-1": "1/nm", "A^{-1}": "1/angstrom", "A^-1": "1/angstrom", "nm^{-1}": "1/nm", "1/A": "1/angstrom"}


#: One unit or its inverse
_ONE_UNIT = re.compile(r"(1 ?/ ?)?[^\W\d]{1,24}( ?(\*\*|\^) ?\(?-?[12]\)?|⁻¹)?")


def axis_scale(signal: Any, unit: str, *, scan: bool = False) -> float | None:
    """The step of the frames' x axis, or of the scan's, in ``unit`` ("nm", "1/angstrom"); None if it is not calibrated in such a unit."""
    import pint

    axes = signal.axes_manager.navigation_axes if scan else signal.axes_manager.signal_axes
    if not axes or axes[0].scale <= 0 or not isinstance(axes[0].units, str):
        return None
    written = axes[0].units.strip("$[] ")
    written = _UNITS_AS_WRITTEN.get(written, written)
    if not _ONE_UNIT.fullmatch(written):  # pint computes what it is given, 9**9**9 too
        return None
    try:
        return float(pint.application_registry.Quantity(axes[0].scale, written).to(unit).magnitude)
    except (pint.errors.PintError, ValueError, TypeError, AssertionError):
        return None


def calibration(sample: Sample, acquisition: str, key: str, signal: Any, unit: str) -> float:
    """The value of ``key`` in sample.yaml, else the file's own scale; an error naming the key if neither has a possible one."""
    section = getattr(sample.acquisitions, acquisition)
    value = getattr(section, key)
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
    """The SHA-256 of a file's content, in hexadecimal; of a folder (.zspy), that of its files' names and hashes."""
    path = Path(path)
    if path.is_dir():
        listing = [f"{file_sha256(p)}  {p.relative_to(path).as_posix()}\n" for p in sorted(path.rglob("*")) if p.is_file()]
        return hashlib.sha256("".join(listing).encode()).hexdigest()
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@functools.cache
def _own_sha256() -> str:
    """The hash of this module."""
    return file_sha256(__file__)


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
    """The JSON that a step wrote; `ResultError` saying which step to run where there is none, or asked for a key that it lacks."""
    path = _results_root(results_dir) / sample_id / f"{step}.json"
    if not path.is_file():
        raise ResultError(f"run {step} for {sample_id} first: there is no {sample_id}/{step}.json in the results")
    part = type("_Part", (_Result,), {"where": f"{sample_id}/{step}.json"})
    try:
        result = json.loads(path.read_text(encoding="utf-8"), object_hook=part, parse_constant=_no_number)
    except (ValueError, RecursionError) as error:
        raise ResultError(f"{sample_id}/{step}.json: not JSON ({_one_line(error)}); run {step} for {sample_id} again") from None
    if not isinstance(result, dict) or result.get("status") not in ("ok", "not_acquired"):
        raise ResultError(f"{sample_id}/{step}.json: holds no status ok or not_acquired; run {step} for {sample_id} again")
    return result


def software_versions() -> dict[str, str]:
    """Versions of Python, the libraries that compute, and the hash of this module."""
    names = ("numpy", "scipy", "numba", "hyperspy", "pyxem", "diffsims", "orix", "ase", "scikit-image", "statsmodels", "papermill")
    found = {"python": platform.python_version(), **{name: version(name) for name in names}}
    return found | {"helpers_sha256": _own_sha256()[:16]}


def _results_root(results_dir: str | Path) -> Path:
    return Path(results_dir) if str(results_dir) else PROJECT_ROOT / "results"


def _figures_root(figures_dir: str | Path) -> Path:
    return Path(figures_dir) if str(figures_dir) else PROJECT_ROOT / "figures"


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
    content = _read_yaml(path, where, ResultError) or {}
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


def _today() -> str:
    return time.strftime("%Y-%m-%d", time.gmtime())


#: How the folder begins in whose files a step writes before it is through.
_STAGING = ".staged-"


_LATEX_OF_TICKS = re.compile(r"\$\\mathdefault\{[-−0-9.^{}]*(\\times[-−0-9.^{}]*)?\}\$")


def without_formulae(fig: Any) -> None:
    """Make a figure's texts show a $ as it is: labels and names are no formulae, and matplotlib raises at one that is half."""
    from matplotlib.text import Text

    for text in fig.findobj(Text):
        if "$" in text.get_text() and not _LATEX_OF_TICKS.fullmatch(text.get_text()):
            text.set_parse_math(False)


def in_markdown(text: str) -> str:
    """A label or a name as Markdown shows it letter by letter: no markup, no link, no HTML.

    >>> in_markdown("600 °C *new* <b>")
    '600 °C \\\\*new\\\\* &lt;b&gt;'
    """
    return re.sub(r"([\\`*_{}\[\]()#$|~!])", r"\\\1", html.escape(" ".join(text.split()), quote=False))


def csv_of(table: Any, **options: Any) -> str:
    """A pandas table as CSV. A text is one line, with an apostrophe where a spreadsheet would take it for a formula; numbers stay.

    >>> import pandas as pd
    >>> csv_of(pd.DataFrame({"name": ["=1+1", "a"], "x": [-1.5, 2.0]}))
    "name,x\\n'=1+1,-1.5\\na,2.0\\n"
    """

    def told(value: Any) -> Any:
        line = " ".join(value.split()) if isinstance(value, str) else value
        return f"'{line}" if isinstance(line, str) and line.startswith(("=", "+", "-", "@")) else line

    return table.map(told).to_csv(index=False, **options)


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
    by_hand: HandChoice | None = None
    inputs_at_start: dict[Path, str] = field(default_factory=dict)
    staging: Path | None = None
    staging_lock: int = -1
    withdrawn: set[str] = field(default_factory=set)

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

    def told(self) -> dict[str, Any]:
        """The parameters of this run, and what of them was chosen by hand."""
        told: dict[str, Any] = {"parameters": {k: v for k, v in self.parameters.items() if not k.endswith("_dir")}}
        if self.by_hand:
            told["by_hand"] = {"statement": self.hand_choice_in_words(), **self.by_hand.model_dump()}
        return told

    def hand_choice_in_words(self) -> str:
        """Which parameters were chosen by hand and why, and which of these this run did not use."""
        assert self.by_hand is not None, "asked for where nothing was chosen by hand"
        used = {name: value for name, value in self.by_hand.parameters.items() if self.parameters[name] == value}
        told = ", ".join(f"{name} = {value}" for name, value in used.items())
        because = f"{self.by_hand.reason} ({MANUAL}, {self.by_hand.date})"
        unused = ", ".join(name for name in self.by_hand.parameters if name not in used)
        sentences = [f"Chosen by hand: {told}. Reason: {because}."] if used else []
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
        choice = HandChoice(parameters=kept, reason=reason, date=_today(), made_on=hashes) if kept else None
        save_hand_choice(self.results, self.name, choice)
        return choice

    def not_acquired(self, reason: str) -> None:
        """Write ``status: not_acquired``, say so on the page, and end the notebook without an error."""
        self.save({}, status="not_acquired", reason=reason)
        print(f"Not acquired: {reason}. Nothing to do in this step.")
        warnings.filterwarnings("ignore", message="To exit: use")
        sys.exit(0)

    def staged(self, name: str) -> Path:
        """Where to write a result file ``<results>/<name>``: `save` puts all of them in their places, once the step is through."""
        if self.staging is None:
            self.results.mkdir(parents=True, exist_ok=True)
            for left in self.results.glob(f"{_STAGING}*"):  # by a process that was killed
                if not _in_use(left):
                    shutil.rmtree(left, ignore_errors=True)
            self.staging = Path(tempfile.mkdtemp(prefix=_STAGING, dir=self.results))
            self.staging_lock = _lock(self.staging / ".lock")
        return self.staging / name

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
        content |= self.told()
        content["versions"] = software_versions()
        text = json.dumps(plain(content), indent=1, ensure_ascii=False, allow_nan=False)
        self._publish(text + "\n")
        shutil.rmtree(self.results / ".work" / self.name, ignore_errors=True)

    def _publish(self, text: str) -> None:
        self.results.mkdir(parents=True, exist_ok=True)
        lock = _lock(self.results / ".publish.lock", wait_s=60)  # another run's files do not come between these
        try:
            for path in sorted(self.staging.glob("[!.]*")) if self.staging else ():
                os.replace(path, self.results / path.name)
            for name in self.withdrawn:
                (self.results / name).unlink(missing_ok=True)
            write_atomically(self.results / f"{self.name}.json", text)
        finally:
            os.close(lock)
        if self.staging is not None:
            os.close(self.staging_lock)
            shutil.rmtree(self.staging)
            self.staging = None

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
        for suffix in (".png", ".svg"):
            options = {"metadata": {"Date": None}} if suffix == ".svg" else {}
            drawn = io.BytesIO()
            fig.savefig(drawn, format=suffix[1:], dpi=130, bbox_inches="tight", facecolor="white", **options)
            write_atomically(stem.with_suffix(suffix), drawn.getvalue())
        plt.close(fig)
        display(Image(filename=stem.with_suffix(".png"), alt=alt))

    def progress(self, items: Any, label: str, total: int | None = None) -> Any:
        """Iterate with a bar in JupyterLab and plain lines, one for each tenth, in batch runs."""
        total = total if total is not None else len(items)
        if in_jupyterlab():
            from tqdm.auto import tqdm

            yield from tqdm(items, total=total, desc=label)
            return
        start, told = time.monotonic(), 0
        for done, item in enumerate(items, 1):
            yield item
            if done * 10 // total > told:
                told = done * 10 // total
                print(f"{self.sample_id} {self.name}: {label} {done} of {total}, {time.monotonic() - start:.0f} s", flush=True)


_SEEDS = (0, 2**32 - 1)


def begin(step: str, namespace: dict, **ranges: tuple[float, float]) -> Step:
    """Start a notebook: collect its parameters, load its sample, refuse parameters it does not know.

    ``namespace`` is the notebook's ``globals()`` after its parameters cell (and the cell that
    papermill injects behind it); ``ranges`` are the least and the largest value of its parameters that are numbers, both allowed.
    What was chosen by hand (`HandChoice`) takes the place of a parameter that was left
    at its default, in ``namespace`` too, and is said. Raises `ParameterError` for an injected name that the
    parameters cell does not have and for a value of another kind than the default or out of range,
    `SampleError` for a fault in the sample, `ResultError` for one in manual.yaml.
    """
    known = notebook_parameters(PROJECT_ROOT / "notebooks" / f"{step}.ipynb")
    given = set()
    for source in namespace.get("In", []):
        if source.startswith("# Parameters\n"):
            given |= {name for name, _ in _assigned(source)}
            check_parameters(step, given, known)
    sample_id = namespace.get("sample_id", "") if "sample_id" in known else ""
    results = _results_root(namespace["results_dir"]) / sample_id
    sample = load_sample(namespace["data_dir"], sample_id) if sample_id else None
    for name, value in namespace.pop("_chosen_by_hand", {}).items():  # what an earlier run of this cell put there is no one's wish
        namespace[name] = known[name] if namespace.get(name) == value else namespace[name]
    by_hand = hand_choice(results, step)
    if by_hand:
        open_to_hands = [name for name in known if name != "sample_id" and not name.endswith("_dir")]
        check_parameters(f"{sample_id or 'results'}/{MANUAL}: {step}", by_hand.parameters, open_to_hands)
        fault = _not_made_on(by_hand, step, sample)
        if fault and not in_jupyterlab():
            raise ResultError(fault)
        if fault:  # who sits before it can choose again
            print(f"NOT USED: {fault}")
            by_hand = None
    if by_hand:
        given |= {name for name, default in known.items() if namespace[name] != default}
        namespace["_chosen_by_hand"] = {name: value for name, value in by_hand.parameters.items() if name not in given}
        namespace.update(namespace["_chosen_by_hand"])
    parameters = {name: namespace[name] for name in known}
    for name, default in known.items():
        _check_parameter(f"{step}: parameter {name}", parameters[name], default, ranges.get(name, _SEEDS if name == "seed" else None))
    run = Step(
        name=step,
        sample_id=sample_id,
        parameters=parameters,
        results=results,
        figures=_figures_root(parameters["figures_dir"]) / sample_id,
        data_dir=parameters["data_dir"],
        sample=sample,
        by_hand=by_hand,
    )
    if by_hand:
        print(run.hand_choice_in_words())
    if sample is not None:
        run.reads(sample.folder / "sample.yaml")
    return run


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
# Long work: chunk by chunk, kept as it goes, here or on a cluster
# --------------------------------------------------------------------------------------
#
# Long work is one function of one chunk, whose result depends on nothing else than its arguments. So a chunk can be done in this
# process or by any worker of a cluster, now or after a crash, with the same result to the bit. This process alone writes.


@dataclass(frozen=True)
class LongWork:
    """Where the finished chunks of long work are kept, what they depend on beside its arguments, and who does them.

    ``folder`` holds one folder for every key of all that a result depends on; ``inputs`` are the files read (name: sha256) and
    ``scheduler`` is the address of a dask.distributed scheduler, empty for this process.
    """

    folder: Path
    inputs: dict[str, str]
    scheduler: str = ""

    def part(self, name: str) -> LongWork:
        """The same for one of several pieces of long work in a step, which do not take away each other's chunks."""
        return replace(self, folder=self.folder / name)

    def chunk_folder(self, *depends_on: Any) -> Path:
        """The folder for results that depend on this content; folders of other content are taken away."""
        versions = [version(name) for name in ("numpy", "scipy", "numba")]
        folder = self.folder / content_key(self.inputs, _own_sha256(), versions, depends_on)
        for other in self.folder.glob("*") if self.folder.is_dir() else ():
            if other != folder and not _in_use(other):
                shutil.rmtree(other, ignore_errors=True)
        return folder


def content_key(*content: Any) -> str:
    """A key of 24 hexadecimal digits of arrays, dataclasses, tuples, lists, dicts, texts and numbers, by their content alone."""
    digest = hashlib.sha256()

    def add(value: Any) -> None:
        if isinstance(value, np.ndarray):
            digest.update(f"array {value.dtype} {value.shape}".encode())
            digest.update(np.ascontiguousarray(value).tobytes())
        elif dataclasses.is_dataclass(value):
            add({f.name: getattr(value, f.name) for f in dataclasses.fields(value)})
        elif isinstance(value, (list, tuple, dict)):
            digest.update(f"{type(value).__name__} {len(value)}".encode())
            for item in value.items() if isinstance(value, dict) else value:
                add(item)
        elif value is None or isinstance(value, (str, bool, int, float, np.generic)):
            digest.update(f"{type(value).__name__} {value!r}".encode())
        else:
            raise TypeError(f"content_key: got {type(value).__name__}, expected arrays, dataclasses, texts and numbers")

    add(content)
    return digest.hexdigest()[:24]


def _in_use(folder: Path) -> bool:
    """Whether a process holds the lock of a chunk folder."""
    for path in folder.rglob(".lock"):
        try:
            os.close(_lock(path))
        except BlockingIOError:
            return True
    return False


def _lock(path: Path, *, wait_s: float = 0.0) -> int:
    """Take a lock until the file that is returned is closed, or the process ends; `BlockingIOError` where another one keeps it."""
    import fcntl

    file = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    until = time.monotonic() + wait_s
    try:
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return file
            except BlockingIOError:
                if time.monotonic() >= until:
                    raise
                time.sleep(0.05)
    except BaseException:
        os.close(file)
        raise


class ChunkStore:
    """Arrays that long work fills chunk by chunk: in memory, or in files that outlive the process.

    Parameters
    ----------
    layout
        For every array its shape, type, and how many axes come before those that a chunk is a part of.
    chunks
        For every chunk its part of the arrays, as a tuple of slices.
    folder
        Where the arrays are kept, one file each, memory-mapped, with a journal of what is finished; None keeps them in memory.
        Chunks that an earlier process finished there are taken over where the array still has the checksum (CRC-32) that the journal holds.

    Raises
    ------
    ResultError
        Where another process is at work in the folder, or there is no room for the arrays.
    """

    def __init__(
        self, layout: dict[str, tuple[tuple[int, ...], Any, int]], chunks: dict[str, tuple[slice, ...]], folder: Path | None = None
    ):
        self.chunks, self._lead = chunks, {name: lead for name, (_, _, lead) in layout.items()}
        self._done: set[str] = set()
        self._open_files: list[int] = []
        if folder is None:
            self.arrays = {name: np.zeros(shape, dtype) for name, (shape, dtype, _) in layout.items()}
            return
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._open_files.append(_lock(folder / ".lock"))
            self.arrays = {name: _array_in_file(folder / f"{name}.bin", shape, dtype) for name, (shape, dtype, _) in layout.items()}
            self._take_over(folder / "journal")
        except BlockingIOError:
            self.close()
            raise ResultError(f"{_told(folder)}: another process is at work on this, expected one at a time: wait for its end") from None
        except OSError as error:
            self.close()
            size = sum(math.prod(shape) * np.dtype(dtype).itemsize for shape, dtype, _ in layout.values()) / 1e6
            raise ResultError(f"{_told(folder)}: no place to keep finished work, {size:.0f} MB: {error.strerror or error}") from error

    def _take_over(self, journal: Path) -> None:
        for line in journal.read_text(encoding="utf-8", errors="replace").splitlines() if journal.is_file() else ():
            chunk, _, checksum = line.rpartition(" ")  # the last line may have been broken off
            if chunk in self.chunks and checksum == self._checksum(chunk):
                self._done.add(chunk)
        self._open_files.append(os.open(journal, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644))
        os.write(self._open_files[-1], b"\n")

    def _part(self, name: str, chunk: str) -> np.ndarray:
        return self.arrays[name][(slice(None),) * self._lead[name] + self.chunks[chunk]]

    def _checksum(self, chunk: str) -> str:
        crc = 0
        for name in sorted(self.arrays):
            crc = zlib.crc32(np.ascontiguousarray(self._part(name, chunk)).view(np.uint8).data, crc)
        return f"{crc:08x}"

    def todo(self) -> list[str]:
        """The chunks that are not finished."""
        return [chunk for chunk in self.chunks if chunk not in self._done]

    def put(self, chunk: str, values: dict[str, np.ndarray]) -> None:
        """Take the results of a chunk, for every array its part."""
        for name in self.arrays:
            self._part(name, chunk)[...] = values[name]
        if self._open_files:
            os.write(self._open_files[-1], f"{chunk} {self._checksum(chunk)}\n".encode())
        self._done.add(chunk)

    def close(self) -> None:
        """Give the folder free; the arrays stay as they are."""
        while self._open_files:
            os.close(self._open_files.pop())


def _told(path: Path) -> str:
    """The last parts of a path, for messages."""
    return "/".join(path.parts[-4:])


def _array_in_file(path: Path, shape: tuple[int, ...], dtype: Any) -> np.ndarray:
    """A writable array in a file of its size, whose room on the disk is taken now: later, a full disk would end the process."""
    size = math.prod(shape) * np.dtype(dtype).itemsize
    with open(path, "a+b") as file:
        if size:
            os.posix_fallocate(file.fileno(), 0, size)
    return np.asarray(np.memmap(path, dtype, "r+", shape=shape)) if size else np.zeros(shape, dtype)


def finish_chunks(
    store: ChunkStore,
    task: Callable[..., dict[str, np.ndarray]],
    shared: tuple,
    arguments: Callable[[str], tuple],
    scheduler: str = "",
    progress: Callable[[list], Iterable] | None = None,
) -> dict[str, np.ndarray]:
    """Do what is left of long work: ``task(*shared, *arguments(chunk))`` gives the arrays of a chunk. Returns all arrays.

    ``scheduler`` is the address of a dask.distributed scheduler whose workers do it; empty: this process.
    """
    todo = store.todo()
    if scheduler:
        done = _done_on_cluster(task, shared, todo, arguments, scheduler)
    else:
        done = ((chunk, _one_chunk(task, shared, arguments(chunk))) for chunk in todo)
    for _ in progress(todo) if progress and todo else todo:
        store.put(*next(done))
    return store.arrays


#: Kernels take all threads of a process, and numba's pool is for one at a time.
_ONE_POOL = threading.Lock()
_TRIES = 3  # of a chunk whose worker was lost
_ANSWER_S = 20  # a scheduler has to answer


def _one_chunk(task: Callable[..., dict[str, np.ndarray]], shared: tuple, arguments: tuple) -> dict[str, np.ndarray]:
    """A chunk's result, here or on a worker. BLAS, whose last bits depend on the number of its threads, gets one."""
    from threadpoolctl import threadpool_limits

    with _ONE_POOL, threadpool_limits(1, user_api="blas"):
        return task(*shared, *arguments)


def _done_on_cluster(
    task: Callable[..., dict[str, np.ndarray]], shared: tuple, todo: list[str], arguments: Callable[[str], tuple], address: str
) -> Iterator[tuple[str, dict[str, np.ndarray]]]:
    """Chunks and their results in the order in which workers finish them; a chunk of a lost worker is done by another.

    Raises `ParameterError` where no scheduler answers, or workers have another helpers.py or cannot read the recording.
    """
    from distributed import as_completed

    if not todo:
        return
    with _cluster(address) as client:
        running: dict[Any, tuple[str, int]] = {}
        completed = as_completed(loop=client.loop)
        spread = client.scatter([shared], broadcast=True)[0]
        waiting = [(chunk, 1) for chunk in reversed(todo)]
        while waiting or running:
            while waiting and len(running) < 2 * max(1, len(client.scheduler_info(n_workers=-1)["workers"])):
                chunk, tries = waiting.pop()
                with warnings.catch_warnings():
                    warnings.filterwarnings("ignore", message="Sending large graph")  # a tile's patterns go to one worker alone
                    future = client.submit(_one_chunk, task, spread, arguments(chunk), pure=False)
                running[future] = (chunk, tries)
                completed.add(future)
            future = next(completed)
            chunk, tries = running.pop(future)
            if future.status == "finished":
                result = future.result()
                future.release()
                yield chunk, result
                continue
            error = future.exception() if future.status == "error" else None
            if isinstance(error, WorkbookError):
                raise error
            if tries == _TRIES:
                raise ParameterError(
                    f"scheduler {address}: part {chunk} failed {tries} times on the workers, the last time with {_one_line(repr(error))}; "
                    "is there enough memory for a worker? What is finished is kept: run again"
                )
            spread = client.scatter([shared], broadcast=True)[0]  # it may be gone with the workers that had it
            waiting.append((chunk, tries + 1))


@contextlib.contextmanager
def _cluster(address: str) -> Iterator[Any]:
    """A client of a dask.distributed scheduler that has workers with this very module."""
    from distributed import Client

    try:
        client = Client(address, timeout=_ANSWER_S, set_as_default=False)
    except (OSError, ValueError, TypeError) as error:  # a timeout is an OSError
        raise ParameterError(
            f"scheduler: got {address!r}, where no dask scheduler answers ({_one_line(error)}); expected the address of one, tcp://host:8786"
        ) from None
    with client:
        try:
            client.wait_for_workers(1, timeout=60)
        except TimeoutError:
            raise ParameterError(f"scheduler {address}: has no worker after a minute, expected one at least") from None
        others = [worker for worker, sha256 in client.run(_own_sha256).items() if sha256 != _own_sha256()]
        if others:
            raise ParameterError(f"scheduler {address}: worker {others[0]} has another helpers.py, expected the same on all machines")
        yield client


# --------------------------------------------------------------------------------------
# Crystallography
# --------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Crystal:
    """A crystal structure as diffraction needs it.

    ``lattice`` has a, b, c as rows (Å) in the Cartesian frame e1 || a, e3 || c*; ``positions``
    (n, 3) are fractional; one entry of ``elements`` and ``occupancies`` for every atom, mixed
    sites being several atoms in one place. ``space_group`` is its number, 1 to 230.
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

    @property
    def laue_rotations(self) -> np.ndarray:
        """Proper rotations (o, 3, 3) of the Laue group in the Cartesian frame."""
        return np.asarray(self.orix_phase().point_group.laue_proper_subgroup.to_matrix()).reshape(-1, 3, 3)


def _named_colour(colour: str) -> str:
    """The named colour of matplotlib nearest to a hexadecimal one: orix takes names only."""
    from matplotlib.colors import CSS4_COLORS, to_rgb

    wanted = np.array(to_rgb(colour))
    return min(CSS4_COLORS, key=lambda name: float(np.sum((np.array(to_rgb(name)) - wanted) ** 2)))


_CIF_BYTES = 1_000_000  # of a crystal structure at most


def read_crystal(path: str | Path, name: str | None = None) -> Crystal:
    """Read a CIF with ase; `SampleError` where it cannot be read, holds no atoms, or has a cell that no crystal here has."""
    import ase.io
    from ase.geometry import cellpar_to_cell

    path = Path(path)
    if path.stat().st_size > _CIF_BYTES:
        raise SampleError(f"{path.name}: {path.stat().st_size} bytes, expected a crystal structure of at most {_CIF_BYTES}")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            atoms: Any = ase.io.read(path, format="cif", fractional_occupancies=True)
    except Exception as error:  # ase raises whatever it meets in a broken file
        raise SampleError(f"{path.name}: cannot be read as a crystal structure: {_one_line(error)}") from error
    if len(atoms) == 0:
        raise SampleError(f"{path.name}: holds no atoms, expected a structure that can diffract")
    edges = atoms.cell.lengths()
    if not (np.all((edges > 1) & (edges < 60)) and 4 < atoms.cell.volume < 10_000 and np.isfinite(atoms.positions).all()):
        told = " × ".join(f"{edge:.4g}" for edge in edges)
        raise SampleError(f"{path.name}: a cell of {told} Å and {atoms.cell.volume:.4g} Å³, expected edges of 1 to 60 Å and up to 10000 Å³")
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
    diffsims; one Debye-Waller factor B (Å²) for all atoms. `SampleError` for an element that has none.
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
    """Reflections of a crystal: hkl (n, 3), g (n, 3) Cartesian in 1/Å and intensity |F/V|² (n,)."""

    hkl: np.ndarray
    g: np.ndarray
    intensity: np.ndarray

    @property
    def d_A(self) -> np.ndarray:
        """Spacings (n,) in Å."""
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
    half = np.abs(structure_factors(crystal, hkl[: len(hkl) // 2]) / crystal.volume) ** 2
    intensity = np.concatenate([half, half[::-1]])  # the grid is symmetric: its second half is the first one inverted (Friedel)
    keep = intensity > min_relative_intensity * intensity.max(initial=0)
    order = np.lexsort((*hkl[keep].T, np.round(length[keep], 9)))
    return Reflections(hkl[keep][order], g[keep][order], intensity[keep][order])


def direction_name(uvw: Iterable[int]) -> str:
    """A direction's indices as they are written.

    >>> direction_name(np.array([1, -1, 0]))
    '[1 −1 0]'
    """
    return "[" + " ".join(str(i).replace("-", "−") for i in uvw) + "]"


def _view_along(crystal: Crystal, zone_axis: tuple[int, int, int]) -> np.ndarray:
    """Rows x, y, z of an image frame in the crystal's Cartesian frame, z along the zone axis."""
    z = np.asarray(zone_axis, dtype=float) @ crystal.lattice
    z /= np.linalg.norm(z)
    helper = np.eye(3)[int(np.argmin(np.abs(z)))]
    x = np.cross(helper, z)
    x /= np.linalg.norm(x)
    return np.array([x, np.cross(z, x), z])


# --------------------------------------------------------------------------------------
# Simulation: recordings with their truth, for the demo data, the tests and the validation
# --------------------------------------------------------------------------------------


def _two_beam_intensity(structure_factor_invA2: np.ndarray, s: np.ndarray, thickness_A: float, wavelength_A: float) -> np.ndarray:
    """Diffracted share of the beam in the two-beam dynamical theory, for F/V (1/Å²) and excitation errors s (1/Å)."""
    inverse_extinction = 1.39 * wavelength_A * structure_factor_invA2 / np.pi  # 1.39: relativistic mass at 200 keV
    effective = np.hypot(s, inverse_extinction)
    return (inverse_extinction * np.sin(np.pi * thickness_A * effective) / np.maximum(effective, 1e-12)) ** 2


def _precessed_spots(
    reflected: Reflections,
    amplitude: np.ndarray,
    rotation: np.ndarray,
    thicknesses_A: np.ndarray,
    precession_deg: float,
    wavelength_A: float,
) -> tuple[np.ndarray, np.ndarray]:
    """Positions g (n, 2) (x, y) and intensities (n,) of a precessed pattern, averaged over the cone and a spread of thickness."""
    g = reflected.g @ rotation
    length = np.linalg.norm(g, axis=1)
    cone = math.radians(precession_deg)
    s = excitation_error(g, wavelength_A)
    near = np.abs(s) < length * cone + 0.012
    g, s, amplitude = g[near], s[near], amplitude[near]
    turn = np.arange(16) * 2 * np.pi / 16
    tilted = s[:, None] - cone * (g[:, :1] * np.cos(turn) + g[:, 1:2] * np.sin(turn))
    intensity = np.mean([_two_beam_intensity(amplitude[:, None], tilted, t, wavelength_A).mean(axis=1) for t in thicknesses_A], axis=0)
    bright = intensity > 5e-5
    return g[bright, :2], intensity[bright]


def _simulate_phase_map(
    rng: np.random.Generator, shape: tuple[int, int], rocksalt_fraction: float, spinel_fraction: float, n_grains: int
) -> tuple[np.ndarray, np.ndarray]:
    """Phase (0 layered, 1 spinel, 2 rocksalt, 3 LLZO, -1 pore) and grain of every pattern of a co-sintered cathode.

    Rocksalt, and under it spinel, grow inwards from the NCM's surfaces (LLZO, pores) and less from its
    grain boundaries, with an uneven front, until they take their share of the NCM area.
    """
    from scipy import ndimage

    nx = shape[1]

    def smooth(width: float) -> np.ndarray:
        noise = ndimage.gaussian_filter(rng.standard_normal(shape), width * min(shape), mode="reflect")
        return noise / noise.std()

    field = smooth(0.15) + np.linspace(-1.2, 1.2, nx)
    llzo = field > np.quantile(field, 0.75)
    holes = smooth(0.06)
    pore = holes > np.quantile(holes, 0.93)
    seeds = rng.uniform(0, 1, (n_grains, 2)) * shape
    yy, xx = np.indices(shape)
    grain = np.argmin((yy[..., None] - seeds[:, 0]) ** 2 + (xx[..., None] - seeds[:, 1]) ** 2, axis=-1)
    grain[llzo] += n_grains
    boundary = np.zeros(shape, bool)
    boundary[:-1] |= grain[:-1] != grain[1:]
    boundary[:, :-1] |= grain[:, :-1] != grain[:, 1:]
    ncm = ~(llzo | pore)
    depth = np.minimum(ndimage.distance_transform_edt(ncm), 2 + 1.5 * ndimage.distance_transform_edt(~boundary))
    depth = np.where(ncm, depth * np.exp(0.4 * smooth(0.08)), np.inf)
    phase = np.where(pore, -1, np.where(llzo, 3, 0))
    order = np.argsort(depth, axis=None, kind="stable")
    n_rocksalt, n_spinel = round(rocksalt_fraction * ncm.sum()), round(spinel_fraction * ncm.sum())
    phase.flat[order[:n_rocksalt]] = 2
    phase.flat[order[n_rocksalt : n_rocksalt + n_spinel]] = 1
    return phase, grain


def _simulate_rotations(
    rng: np.random.Generator, phase: np.ndarray, grain: np.ndarray, crystals: list[Crystal], bend_deg: float
) -> np.ndarray:
    """Orientations (ny, nx, 3, 3): one a grain, surface layers on the grain's lattice (some rocksalt free of it), slightly bent."""
    from scipy.spatial.transform import Rotation

    n = int(grain.max()) + 1
    of_grain = Rotation.random(n, rng=rng).as_matrix()
    free = Rotation.random(n, rng=rng).as_matrix()
    is_free = rng.random(n) < 0.15
    to_cubic = orientation_relations(crystals[0], crystals[2])[0]
    bend = Rotation.from_rotvec(rng.normal(0, math.radians(bend_deg) / math.sqrt(3), (phase.size, 3))).as_matrix()
    rotation = np.empty((*phase.shape, 3, 3))
    for i, (y, x) in enumerate(np.ndindex(phase.shape)):
        g, p = grain[y, x], phase[y, x]
        base = free[g] if p == 2 and is_free[g] else to_cubic @ of_grain[g] if p in (1, 2) else of_grain[g]
        rotation[y, x] = base @ bend[i]
    return rotation


def _add_spots(image: np.ndarray, places: np.ndarray, weights: np.ndarray, radius_px: float) -> None:
    """Add discs with soft edges (a converged beam on a camera) to an image (ky, kx), each of total ``weight``."""
    reach = math.ceil(radius_px + 4)
    for (x, y), weight in zip(places, weights, strict=True):
        v, u = int(y), int(x)
        rows = np.arange(max(0, v - reach), min(image.shape[0], v + reach + 1))
        columns = np.arange(max(0, u - reach), min(image.shape[1], u + reach + 1))
        if len(rows) and len(columns):
            distance = np.hypot(rows[:, None] - y, columns[None, :] - x)
            disc = 1 / (1 + np.exp((distance - radius_px) / (0.25 * radius_px)))
            image[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1] += weight * disc / (1.21 * math.pi * radius_px**2)


def _crystals_of_pattern(
    rng: np.random.Generator, phase: np.ndarray, grain: np.ndarray, place: tuple[int, int], overlap: float
) -> list[tuple[tuple[int, int], float]]:
    """Where the crystals of a pattern come from and their shares: its own place and one next to it; none in a pore."""
    other = tuple(np.clip([v + rng.integers(-1, 2) for v in place], 0, np.array(phase.shape) - 1))
    if phase[place] < 0:
        return []
    if phase[other] < 0 or (phase[other] == phase[place] and grain[other] == grain[place]):
        return [(place, 1.0)]
    share = rng.uniform(0, overlap) / 2
    return [(place, 1 - share), (other, share)]


def _diffracted_image(
    detector: int, crystals: list[tuple[float, np.ndarray, np.ndarray]], centre: np.ndarray, scale_invA_per_px: float
) -> np.ndarray:
    """Shares of the beam (ky, kx) in the spots of a pattern: of every crystal its share, places g (n, 2) and intensities (n,)."""
    image = np.zeros((detector, detector))
    for share, g, intensity in crystals:
        _add_spots(image, g / scale_invA_per_px + centre[::-1], share * intensity, 1.8)
    return image


def _descan(shape: tuple[int, int], detector: int) -> np.ndarray:
    """Where the direct beam falls (ny, nx, 2) in px: near the middle of the camera, wandering with the scan."""
    v, u = np.meshgrid(*(np.linspace(-1, 1, n) for n in shape), indexing="ij")
    return (detector - 1) / 2 + np.stack([1.5 * v + 0.7 * u**2, -1.2 * u + 0.5 * u * v], axis=-1)


def _counted_pattern(
    rng: np.random.Generator, diffracted: np.ndarray, total: float, centre: np.ndarray, electrons: float, crystalline: bool
) -> np.ndarray:
    """Counts (ky, kx) of a pattern: its diffracted spots (``total`` of the beam), an inelastic background, and what is left of the beam."""
    yy, xx = np.indices(diffracted.shape)
    r = np.hypot(yy - centre[0], xx - centre[1])
    inelastic = 0.6 * np.exp(-r / 14) / (2 * np.pi * 14**2) + 0.4 * np.exp(-r / 30) / (2 * np.pi * 30**2)
    direct = np.exp(-0.5 * (r / 1.5) ** 2) / (2 * np.pi * 1.5**2)
    scattered = 0.4 if crystalline else 0.25
    return rng.poisson(electrons * (diffracted + scattered * inelastic + max(0.2, 1 - scattered - total) * direct))


def simulate_ped_scan(
    rng: np.random.Generator,
    crystals: list[Crystal],
    shape: tuple[int, int] = (32, 32),
    *,
    rocksalt_fraction: float = 0.15,
    spinel_fraction: float = 0.05,
    electrons: float = 8000,
    detector: int = 144,
    scale_invA_per_px: float = 0.02178,
    precession_deg: float = 0.5,
    beam_energy_keV: float = 200,
    thickness_nm: float = 60,
    antisite: float = 0.05,
    overlap: float = 0.5,
    bend_deg: float = 0.3,
    hot_pixels: int = 4,
    n_grains: int = 10,
) -> tuple[np.ndarray, dict[str, Any]]:
    """A PED scan of a co-sintered cathode with its truth.

    ``crystals`` are layered, spinel, rocksalt and LLZO in this order. The intensities are those
    of two-beam dynamical theory averaged over the precession cone and a spread of thickness,
    not those of a template bank; antisite disorder weakens the layered reflections of odd l;
    a pattern next to another grain or phase holds up to ``overlap`` of it; the beam wanders
    over the camera with the scan (descan); ``electrons`` a pattern are counted (Poisson) with
    an inelastic background, saturating at 255.

    Returns
    -------
    Patterns (ny, nx, ky, kx) uint8 and a dict with ``phase`` (ny, nx; -1 pore), ``grain``,
    ``rotation`` (ny, nx, 3, 3; sample to crystal), ``centre_px`` (ny, nx, 2), and the true
    ``rocksalt_fraction`` and ``spinel_fraction`` of the NCM area.
    """
    wavelength = electron_wavelength_A(beam_energy_keV)
    corner = detector / math.sqrt(2) * scale_invA_per_px
    reflected = [reflections(c, corner, 1e-3) for c in crystals]
    amplitudes = [np.sqrt(r.intensity) for r in reflected]
    amplitudes[0] = amplitudes[0] * np.where(reflected[0].hkl[:, 2] % 2 != 0, 1 - 2 * antisite, 1.0)
    phase, grain = _simulate_phase_map(rng, shape, rocksalt_fraction, spinel_fraction, n_grains)
    rotation = _simulate_rotations(rng, phase, grain, crystals, bend_deg)
    centre = _descan(shape, detector)
    hot = rng.integers(0, detector, (hot_pixels, 2))
    patterns = np.zeros((*shape, detector, detector), np.uint8)
    for place in np.ndindex(shape):
        parts = _crystals_of_pattern(rng, phase, grain, place, overlap)
        thickness = 10 * thickness_nm * (1 + 0.15 * rng.standard_normal()) * np.array([0.9, 1, 1.1])
        spots = []
        for where, share in parts:
            p = phase[where]
            found = _precessed_spots(reflected[p], amplitudes[p], rotation[where], thickness, precession_deg, wavelength)
            spots.append((share, *found))
        total = sum(share * float(intensity.sum()) for share, _, intensity in spots)
        image = _diffracted_image(detector, spots, centre[place], scale_invA_per_px)
        counts = _counted_pattern(rng, image, total, centre[place], electrons, bool(parts))
        counts[hot[:, 0], hot[:, 1]] = rng.integers(30, 120, hot_pixels)
        patterns[place] = np.minimum(counts, 255)
    ncm = np.isin(phase, (0, 1, 2))
    truth = {"phase": phase, "grain": grain, "rotation": rotation, "centre_px": centre}
    fractions = {"rocksalt_fraction": float((phase[ncm] == 2).mean()), "spinel_fraction": float((phase[ncm] == 1).mean())}
    return patterns, truth | fractions


_HAADF_CELL_NM = (0.2867, 1.422)  # layered a and c, the bulk of every simulated image


def simulate_haadf(
    rng: np.random.Generator,
    shape: tuple[int, int] = (512, 512),
    pixel_size_nm: float = 0.0125,
    layer_nm: float = 2.0,
    kind: str = "spinel",
    rotation_deg: float = 20.0,
    counts_per_px: float = 40.0,
    *,
    pixel_size_error: float | None = None,
    vacuum_share: float = 0.22,
    roughness_nm: float = 0.15,
    antisite: float = 0.03,
    width_nm: float = 0.12,
) -> tuple[np.ndarray, dict]:
    """HAADF image of layered NCM along [100]hex with a transformed layer at its surface, and its truth.

    Parameters
    ----------
    shape, pixel_size_nm
        Image (y, x) and the pixel that its file states; the true one is larger by ``pixel_size_error``
        (a share; None draws it with a standard deviation of 0.025).
    layer_nm
        Thickness from the crystal's edge to where half of every column is transformed; 0 for "none".
    kind
        "spinel" (LiM2O4), "spinel_m3o4", "rocksalt" (lithium columns hold 0.6 to 1 of the metal) or "none".
    rotation_deg
        Turn of the (003) planes against the image's lines; the surface turns on its own.
    counts_per_px
        Mean counts on top of a full metal column in the bulk.
    antisite, width_nm, roughness_nm, vacuum_share
        Share of metal in bulk lithium columns, width of the transition, height of the
        edge's waves (standard deviation) and the part of the image that is vacuum.

    Columns are a core with long tails, oxygen is there, each column's brightness scatters by 4 %, the crystal thins towards
    its edge, lines jitter and drift shears them, and a contamination haze lies over edge and vacuum.

    Returns
    -------
    Image (y, x) uint16, and a dict with ``thickness_nm``, ``kind`` ("spinel", "rocksalt" or "none"), ``variant`` (the
    kind as given), ``pixel_size_nm`` (true), ``pixel_size_stated_nm``, ``rotation_deg`` and ``counts_per_px``.
    `ParameterError` for another ``kind``.
    """
    if kind not in ("spinel", "spinel_m3o4", "rocksalt", "none"):
        raise ParameterError(f"simulate_haadf: kind: got {kind!r}, expected spinel, spinel_m3o4, rocksalt or none")
    thickness = 0.0 if kind == "none" else float(layer_nm)
    error = float(rng.normal(0, 0.025)) if pixel_size_error is None else pixel_size_error
    true_pixel = pixel_size_nm * (1 + error)
    field_nm = np.array(shape) * true_pixel
    nm, strength, depth = _haadf_columns(rng, field_nm, thickness, kind, rotation_deg, vacuum_share, roughness_nm, antisite, width_nm)
    px = _scan_places(rng, nm / true_pixel, shape)
    bright = strength * (0.55 + 0.45 * (1 - np.exp(-np.maximum(depth, 0) / 2.5))) * rng.normal(1, 0.04, len(px))
    image = _rendered_columns(shape, px, bright, sigma_px=rng.uniform(0.052, 0.062) / true_pixel)
    image = counts_per_px * (image + _haze(rng, shape, px, depth, true_pixel))
    counts = rng.poisson(np.maximum(image, 0)).astype(np.uint16)
    truth = {
        "thickness_nm": thickness,
        "kind": "spinel" if kind == "spinel_m3o4" else kind if thickness > 0 else "none",
        "variant": kind,
        "pixel_size_nm": true_pixel,
        "pixel_size_stated_nm": pixel_size_nm,
        "rotation_deg": float(rotation_deg),
        "counts_per_px": float(counts_per_px),
    }
    return counts, truth


def _haadf_columns(
    rng: np.random.Generator,
    field_nm: np.ndarray,
    thickness: float,
    kind: str,
    rotation_deg: float,
    vacuum_share: float,
    roughness_nm: float,
    antisite: float,
    width_nm: float,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Places (n, 2) in nm, strengths and depths of all columns of the simulated crystal, in the frame of the scan."""
    a, c = _HAADF_CELL_NM
    row, up = np.array([0.0, a * math.sqrt(3) / 2]), np.array([c / 6, a * math.sqrt(3) / 6])
    reach = int(np.hypot(*field_nm) / 0.2) + 4
    i, j = (g.ravel() for g in np.meshgrid(np.arange(-reach, reach + 1), np.arange(-reach, reach + 1), indexing="ij"))
    plane = i[:, None] * row + j[:, None] * up
    keep = np.linalg.norm(plane, axis=1) < np.hypot(*field_nm) * 0.6
    i, j, plane = i[keep], j[keep], plane[keep]
    oxygen = plane + np.array([0.103 * np.where(j % 2 == 0, 1, -1), 0.166 * np.where(j % 2 == 0, 1, -1)]).T * np.ones((len(j), 1))
    angle = math.radians(rotation_deg)
    turn = np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
    centre, moved = field_nm / 2, rng.uniform(-0.2, 0.2, 2)
    place = lambda p: p @ turn + centre + moved
    edge = _edge_of(rng, field_nm, vacuum_share, roughness_nm)
    depth = edge(place(plane))
    share = _step((depth - thickness) / width_nm) if thickness > 0 else np.zeros(len(depth))
    if thickness > 0:
        share = np.clip(share + 0.15 * np.sqrt(share * (1 - share)) * rng.normal(size=len(share)), 0, 1)
    metal = (j % 2 == 0) * (1 - antisite) + (j % 2 == 1) * np.clip(rng.normal(antisite, 0.02, len(j)), 0, 1)
    metal = (1 - share) * metal + share * _transformed(rng, i, j, kind)
    places, strengths, depths = [place(plane), place(oxygen)], [metal, np.full(len(j), 0.11)], [depth, edge(place(oxygen))]
    if kind == "spinel_m3o4":
        empty = (share > 0.02) & (i % 2 == 1) & (j % 2 == 1)
        for side in (-0.25, 0.25):
            tetrahedral = place(plane[empty] + side * (row + up))
            places, strengths, depths = [*places, tetrahedral], [*strengths, 0.5 * share[empty]], [*depths, edge(tetrahedral)]
    nm, strength, depth = np.concatenate(places), np.concatenate(strengths), np.concatenate(depths)
    seen = (depth > 0) & np.all((nm > -0.4) & (nm < field_nm + 0.4), axis=1)
    return nm[seen], strength[seen], depth[seen]


def _step(x: np.ndarray) -> np.ndarray:
    """A soft step from 1 to 0 about x = 0 (logistic, with the standard deviation of a unit normal)."""
    return 1 / (1 + np.exp(np.clip(x * math.pi / math.sqrt(3), -50, 50)))


def _transformed(rng: np.random.Generator, i: np.ndarray, j: np.ndarray, kind: str) -> np.ndarray:
    """Metal in the columns of the transformed structure, 1 being a full column."""
    if kind == "rocksalt":
        filled = rng.uniform(0.6, 1.0)
        return np.where(j % 2 == 0, 1.0, np.clip(rng.normal(filled, 0.06, len(j)), 0, 1.1))
    return np.where(j % 2 == 0, np.where(i % 2 == 0, 1.0, 0.5), np.where(i % 2 == 0, 0.5, 0.0))


def _edge_of(rng: np.random.Generator, field_nm: np.ndarray, vacuum_share: float, roughness_nm: float) -> Any:
    """Depth below a wavy edge, as a function of places (n, 2) in nm."""
    tilt = math.radians(rng.uniform(-12, 12))
    normal = np.array([math.sin(tilt), math.cos(tilt)])
    along = np.array([normal[1], -normal[0]])
    waves = [(rng.uniform(1.5, 6.0), rng.uniform(0, 2 * math.pi)) for _ in range(4)]
    height = roughness_nm / math.sqrt(len(waves) / 2)
    offset = np.array([0.5, vacuum_share]) * field_nm

    def depth(nm: np.ndarray) -> np.ndarray:
        s = (nm - offset) @ along
        return (nm - offset) @ normal - height * sum(np.sin(2 * math.pi * s / length + phase) for length, phase in waves)

    return depth


def _scan_places(rng: np.random.Generator, px: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """Where the scan puts columns: sheared and stretched by drift, lines jittering by a slow random walk."""
    shear, stretch = rng.normal(0, 0.006, 2)
    walk = np.cumsum(rng.normal(0, 0.03, shape[0] + 64))
    walk -= np.linspace(walk[0], walk[-1], len(walk))
    line = np.clip(np.rint(px[:, 0]).astype(int) + 32, 0, len(walk) - 1)
    y = (px[:, 0] - shape[0] / 2) * (1 + stretch) + shape[0] / 2
    return np.stack([y, px[:, 1] + shear * (px[:, 0] - shape[0] / 2) + walk[line]], axis=1)


def _rendered_columns(shape: tuple[int, int], px: np.ndarray, bright: np.ndarray, sigma_px: float) -> np.ndarray:
    """The sum of all columns: three quarters a Gaussian core, one quarter a wider halo of the probe."""
    image = np.zeros(shape)
    half = int(4 * sigma_px) + 2
    offsets = np.arange(-half, half + 1)
    for (y, x), b in zip(px, bright, strict=True):
        y0, x0 = round(y), round(x)
        ys, xs = offsets + y0, offsets + x0
        iy, ix = (ys >= 0) & (ys < shape[0]), (xs >= 0) & (xs < shape[1])
        if not (iy.any() and ix.any()):
            continue
        dy2, dx2 = (ys[iy] - y) ** 2, (xs[ix] - x) ** 2
        core = np.exp(-dy2 / (2 * sigma_px**2))[:, None] * np.exp(-dx2 / (2 * sigma_px**2))
        halo = 1 / (1 + (dy2[:, None] + dx2) / (2.2 * sigma_px) ** 2) ** 2.5
        image[np.ix_(ys[iy], xs[ix])] += b * (0.82 * core + 0.18 * halo)
    return image


def _haze(rng: np.random.Generator, shape: tuple[int, int], px: np.ndarray, depth: np.ndarray, pixel_nm: float) -> np.ndarray:
    """Diffuse signal: of the crystal itself, growing inwards, and of amorphous contamination on its edge."""
    from scipy.ndimage import gaussian_filter

    grid = np.zeros(shape)
    y, x = np.clip(np.rint(px).astype(int), 0, np.array(shape) - 1).T
    np.add.at(grid, (y, x), 1.0)
    solid = gaussian_filter(grid, 0.25 / pixel_nm)
    solid /= max(float(solid.max()), 1e-12)
    near = gaussian_filter((solid > 0.3).astype(float), 0.8 / pixel_nm)
    patchy = gaussian_filter(rng.normal(size=shape), 0.5 / pixel_nm)
    patchy = 1 + 0.5 * patchy / max(float(patchy.std()), 1e-12)
    return 0.015 + 0.18 * solid + rng.uniform(0.02, 0.10) * np.clip(near * (1.2 - near) * 2.5, 0, 1) * np.clip(patchy, 0, 2)


#: Cubic phases that grow on layered NCM as `_topotactic_view` says.
_TOPOTACTIC = ("rocksalt", "spinel", "spinel_m3o4")


def _topotactic_view(view: np.ndarray) -> np.ndarray:
    """The same view for a cubic crystal grown on the hexagonal one: [001]hex || [111]cubic, [100]hex || [1-10]cubic."""
    e1, e3 = np.array([1.0, -1.0, 0.0]) / math.sqrt(2), np.array([1.0, 1.0, 1.0]) / math.sqrt(3)
    return view @ np.array([e1, np.cross(e3, e1), e3])


def _projected_phase(
    crystal: Crystal, view: np.ndarray, rotation_deg: float, positions_A: np.ndarray, thickness_A: float, tilt: np.ndarray
) -> np.ndarray:
    """Phase shift (rad) of 200 keV electrons by a crystal, from the reflections of its zone; positions (y, x, 2) in Å."""
    found = reflections(crystal, 0.95, 3e-4)
    in_zone = np.abs(found.g @ view[2]) < 1e-4
    amplitude = structure_factors(crystal, found.hkl[in_zone], 0.7) / crystal.volume
    c, s = math.cos(math.radians(rotation_deg)), math.sin(math.radians(rotation_deg))
    g = found.g[in_zone] @ view[:2].T @ np.array([[c, s], [-s, c]])
    wavelength = electron_wavelength_A(200)
    error = 0.5 * wavelength * np.sum(g**2, axis=1) + g @ tilt
    amplitude = amplitude * np.sinc(error * thickness_A) * 1.391 * wavelength * thickness_A
    phase = np.zeros(positions_A.shape[:2], dtype=np.float32)
    x, y = positions_A[..., 1].astype(np.float32), positions_A[..., 0].astype(np.float32)
    upper = (g[:, 1] > 1e-9) | ((np.abs(g[:, 1]) <= 1e-9) & (g[:, 0] > 0))
    for (gx, gy), a in zip(g[upper].astype(np.float32), amplitude[upper], strict=True):
        phase += np.float32(2 * abs(a)) * np.cos(np.float32(2 * np.pi) * (gx * x + gy * y) + np.float32(np.angle(a)))
    return phase


def _smooth_noise(rng: np.random.Generator, shape: tuple[int, ...], length_px: float, mode: str = "wrap") -> np.ndarray:
    """Gaussian noise of mean zero and unit variance, smooth over a length; ``mode`` is scipy's for what lies beyond the edge."""
    from scipy.ndimage import gaussian_filter

    noise = gaussian_filter(rng.standard_normal(shape), length_px, mode=mode)
    return (noise - noise.mean()) / noise.std()  # where the field is no longer than the length, the mean would be many deviations


def _interface_regions(
    rng: np.random.Generator, shape: tuple[int, int], pixel_size_nm: float, layer_nm: float, roughness_nm: float
) -> tuple[np.ndarray, float]:
    """0 left, 1 layer, 2 right of a rough interface; and the layer's mean width in nm."""
    y, x = np.indices(shape, dtype=np.float32)
    angle = rng.uniform(-0.35, 0.35)
    across = ((x - shape[1] / 2) * math.cos(angle) + (y - shape[0] / 2) * math.sin(angle)) * pixel_size_nm
    along = -(x - shape[1] / 2) * math.sin(angle) + (y - shape[0] / 2) * math.cos(angle)
    index = np.clip(np.round(along + sum(shape) / 2).astype(int), 0, sum(shape) - 1)
    middle = rng.uniform(-0.08, 0.08) * shape[1] * pixel_size_nm
    edges = [_smooth_noise(rng, (sum(shape),), 2.0 / pixel_size_nm) * roughness_nm for _ in range(2)]
    left = middle - layer_nm / 2 + edges[0]
    right = np.maximum(left, middle + layer_nm / 2 + edges[1]) if layer_nm > 0 else left
    region = (across > left[index]).astype(np.uint8) + (across > right[index]).astype(np.uint8)
    inside = index[(region == 1) | (np.abs(across) < 1)]
    return region, float(np.mean((right - left)[inside]))


def _bright_field(phase: np.ndarray, pixel_A: float, defocus_A: float, cs_A: float, focal_spread_A: float) -> np.ndarray:
    """Intensity of a bright-field image of a phase object at 200 keV, mean 1."""
    wavelength = electron_wavelength_A(200)
    fy, fx = (np.fft.fftfreq(n, pixel_A).astype(np.float32) for n in phase.shape)
    g2 = fy[:, None] ** 2 + fx[None, :] ** 2
    chi = np.pi * wavelength * defocus_A * g2 + 0.5 * np.pi * cs_A * wavelength**3 * g2**2
    damping = np.exp(-0.5 * (np.pi * wavelength * focal_spread_A * g2) ** 2)
    wave = np.fft.ifft2(np.fft.fft2(np.exp(1j * phase)) * np.exp(-1j * chi) * damping)
    intensity = np.abs(wave) ** 2
    return intensity / intensity.mean()


def _interface_views(
    rng: np.random.Generator,
    interface_phase: str,
    ncm_zone: tuple[int, int, int],
    layer_zone: tuple[int, int, int],
    llzo_zone: tuple[int, int, int],
) -> list[tuple[str, Any, Any]]:
    """Name, view along its zone axis and rotation (degrees) of NCM, the layer and LLZO; None where there is no crystal."""
    ncm_view = _view_along(read_crystal(phase_file("layered")), ncm_zone)
    ncm_rotation, llzo_rotation = rng.uniform(0, 360, 2)
    layer: tuple[Any, Any] = (None, None)
    if interface_phase in _TOPOTACTIC:
        layer = (_topotactic_view(ncm_view), ncm_rotation)
    elif interface_phase not in ("none", "amorphous"):
        layer = (_view_along(read_crystal(phase_file(interface_phase)), layer_zone), rng.uniform(0, 360))
    llzo_view = _view_along(read_crystal(phase_file("llzo")), llzo_zone)
    return [("layered", ncm_view, ncm_rotation), (interface_phase, *layer), ("llzo", llzo_view, llzo_rotation)]


def simulate_interface(
    rng: np.random.Generator,
    shape: tuple[int, int] = (1024, 1024),
    pixel_size_nm: float = 0.02,
    layer_nm: float = 4.0,
    interface_phase: str = "rocksalt",
    ncm_zone: tuple[int, int, int] = (1, 0, 0),
    llzo_zone: tuple[int, int, int] = (1, 1, 1),
    layer_zone: tuple[int, int, int] = (1, 1, 0),
    counts: float = 150.0,
    pixel_size_error: float = 0.0,
    roughness_nm: float = 0.3,
    amorphous: float = 1.0,
) -> tuple[np.ndarray, dict]:
    """A bright-field lattice image of an interface of layered NCM (left) and LLZO (right).

    A phase object of three crystals, each in a zone axis with a small mistilt, strain and an
    amorphous film over all, goes through the transfer of a corrected microscope at 200 keV,
    so that spots differ from kinematical ones in strength and sums of reflections appear.

    Parameters
    ----------
    layer_nm, interface_phase
        Mean width and phase of the layer between them: a name of data/phases, "amorphous" or
        "none". Rocksalt and spinel grow topotactically on the layered crystal; for others
        ``layer_zone`` is the zone axis and the rotation is random.
    counts
        Electrons a pixel.
    pixel_size_error
        The true pixel is larger than ``pixel_size_nm`` by this share.
    amorphous
        Strength of the amorphous film.

    Returns
    -------
    image (y, x) uint16, and the truth: ``phases`` (names), ``phase_map`` (y, x) their indices,
    ``interface_phase``, ``interface_width_nm``, ``pixel_size_nm`` (true).
    """
    true_nm = pixel_size_nm * (1 + pixel_size_error)
    none = interface_phase == "none"
    region, width = _interface_regions(rng, shape, true_nm, 0.0 if none else layer_nm, roughness_nm)
    strain = np.stack([_smooth_noise(rng, shape, 4.0 / true_nm) for _ in range(2)], axis=-1) * 0.06
    positions = np.indices(shape).transpose(1, 2, 0) * (10 * true_nm) + strain
    film = _smooth_noise(rng, shape, 0.045 / true_nm) - 0.7 * _smooth_noise(rng, shape, 0.08 / true_nm)
    phase = (0.10 * amorphous * film).astype(np.float32)
    parts = _interface_views(rng, interface_phase, ncm_zone, layer_zone, llzo_zone)
    thickness = 60 * np.exp(0.15 * _smooth_noise(rng, shape, 5.0 / true_nm)).astype(np.float32) / 60
    for i, (name, view, rotation) in enumerate(parts):
        if view is None or not np.any(region == i):
            phase += np.where(region == i, 0.15 * film, 0).astype(np.float32)
            continue
        crystal = read_crystal(phase_file(name))
        tilt = rng.normal(0, 0.002, 2)
        phase += np.where(region == i, thickness * _projected_phase(crystal, view, rotation, positions, rng.uniform(25, 50), tilt), 0)
    intensity = _bright_field(phase, 10 * true_nm, rng.uniform(-110, -60), 1e5, rng.uniform(30, 45))
    intensity = 1 + 0.35 * (intensity - 1)  # images are flatter than theory: Stobbs' factor, about a third
    image = rng.poisson(counts * intensity).clip(0, 65535).astype(np.uint16)
    truth = {
        "phases": ["layered", interface_phase, "llzo"],
        "phase_map": region,
        "interface_phase": interface_phase,
        "interface_width_nm": 0.0 if none else width,
        "pixel_size_nm": true_nm,
    }
    return image, truth


# --- the cryo-STEM stack ---------------------------------------------------------------


def _columns_along_c(crystal: Crystal) -> tuple[np.ndarray, np.ndarray]:
    """Columns along c of a crystal: (n, 2) in fractions of a and b, and their HAADF weights (n,), the largest 1.

    An atom weighs Z^1.7 times its occupancy (Pennycook & Jesson, Ultramicroscopy 37 (1991) 14).
    """
    from ase.data import atomic_numbers

    weight = np.array([atomic_numbers[e] for e in crystal.elements], dtype=float) ** 1.7 * crystal.occupancies
    columns, index = np.unique(np.round(crystal.positions[:, :2] % 1, 3) % 1, axis=0, return_inverse=True)
    total = np.bincount(index.ravel(), weight)
    return columns, total / total.max()


def _garnet_columns(rng: np.random.Generator, shape: tuple[int, int], pixel_size_nm: float) -> tuple[np.ndarray, np.ndarray]:
    """Columns of LLZO along [001] over an image: positions (n, 2) in px and weights (n,).

    Near periodic and no more: the weight of every column differs and a boundary of less than
    one degree crosses the image.
    """
    columns, weights = _columns_along_c(read_crystal(phase_file("llzo")))
    cell_px = 1.297 / pixel_size_nm
    reach = int(np.ceil(0.8 * max(shape) / cell_px)) + 1
    ij = np.stack(np.meshgrid(*[np.arange(-reach, reach + 1)] * 2, indexing="ij"), -1)
    flat = ((ij[:, :, None] + columns) * cell_px).reshape(-1, 2)
    weight = np.tile(weights, len(flat) // len(weights)) * np.maximum(0, 1 + 0.2 * rng.standard_normal(len(flat)))
    beyond = flat @ _direction(rng) > rng.uniform(0.0, 0.2) * max(shape)
    angle = rng.uniform(0, np.pi / 2) + np.where(beyond, np.radians(rng.uniform(0.3, 0.9)), 0.0)
    y = flat[:, 0] * np.cos(angle) - flat[:, 1] * np.sin(angle) + shape[0] / 2
    x = flat[:, 0] * np.sin(angle) + flat[:, 1] * np.cos(angle) + shape[1] / 2
    inside = (y > 0) & (y < shape[0] - 2) & (x > 0) & (x < shape[1] - 2)
    return np.stack([y, x], 1)[inside], weight[inside]


def _direction(rng: np.random.Generator) -> np.ndarray:
    angle = rng.uniform(0, 2 * np.pi)
    return np.array([np.sin(angle), np.cos(angle)])


def _added_points(shape: tuple[int, int], yx: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """An image with points (n, 2) of given weights, each shared between the four pixels around it."""
    low = yx.astype(int)
    part, image = yx - low, np.zeros(shape)
    for dy, dx in product((0, 1), repeat=2):
        share = np.abs(1 - dy - part[:, 0]) * np.abs(1 - dx - part[:, 1])
        np.add.at(image, (low[:, 0] + dy, low[:, 1] + dx), weight * share)
    return image


def plain_lattice_scene(rng: np.random.Generator, shape: tuple[int, int], pitch_px: float = 7.2, spread: float = 0.15) -> np.ndarray:
    """One column a square cell, relative intensity: only the weights (standard deviation ``spread``) tell cells apart.

    The hardest scene for a registration that may hop: nothing in it is larger than a column.
    """
    from scipy.ndimage import gaussian_filter

    reach = int(max(shape) / pitch_px) + 2
    ij = np.stack(np.meshgrid(*[np.arange(-reach, reach + 1)] * 2, indexing="ij"), -1).reshape(-1, 2) * pitch_px
    angle = rng.uniform(0, np.pi / 2)
    yx = ij @ np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]]) + np.array(shape) / 2
    yx = yx[((yx >= 0) & (yx < np.array(shape) - 2)).all(axis=1)]
    image = gaussian_filter(_added_points(shape, yx, np.maximum(0, 1 + spread * rng.standard_normal(len(yx)))), 1.6)
    return 1 + 0.3 * (image / image.mean() - 1)


def _garnet_scene(rng: np.random.Generator, shape: tuple[int, int], pixel_size_nm: float) -> np.ndarray:
    """A garnet lamella as an annular detector sees it at low dose: relative intensity, mean about 1."""
    from scipy.ndimage import gaussian_filter

    image = _added_points(shape, *_garnet_columns(rng, shape, pixel_size_nm))
    image = gaussian_filter(image, 0.075 / pixel_size_nm)
    image *= np.where(_smooth_noise(rng, shape, 0.5 / pixel_size_nm, "reflect") > 2.2, 0.3, 1.0)  # amorphous pockets
    relative = 1 + 0.3 * (image / image.mean() - 1)
    return relative * np.clip(1 + 0.05 * _smooth_noise(rng, shape, 2.5 / pixel_size_nm, "reflect"), 0.5, 1.5)


def _drift_path(rng: np.random.Generator, n_frames: int, drift_px: float, jumps: int) -> tuple[np.ndarray, list[int]]:
    """Slow drift of about ``drift_px`` a frame whose velocity wanders, with jumps of 4-9 px; shifts (n, 2), frames that jump."""
    velocity = drift_px * _direction(rng) + np.cumsum(0.08 * drift_px * rng.standard_normal((n_frames, 2)), axis=0)
    steps = velocity + 0.3 * drift_px * rng.standard_normal((n_frames, 2))
    last = max(2, n_frames - 2)
    at = sorted(int(i) for i in rng.choice(np.arange(1, last), size=min(jumps, last - 1), replace=False)) if n_frames > 2 else []
    for i in at:
        steps[i] += rng.uniform(4, 9) * _direction(rng)
    steps[0] = 0
    return np.cumsum(steps, axis=0), at


def simulate_cryo_stack(
    rng: np.random.Generator,
    n_frames: int = 30,
    shape: tuple[int, int] = (256, 256),
    counts_per_px: float = 2.0,
    *,
    pixel_size_nm: float = 0.045,
    drift_px: float = 0.5,
    jumps: int = 2,
    blank_frames: int = 1,
    critical_dose_frames: float = math.inf,
    moves_within_frame: bool = False,
    jitter_px: float = 0.0,
    scene: Callable[[np.random.Generator, tuple[int, int]], np.ndarray] | None = None,
) -> tuple[np.ndarray, dict]:
    """A low-dose stack of LLZO along [001], or another scene, that drifts, jumps and misses a frame.

    Parameters
    ----------
    counts_per_px
        Mean counts of a pixel in one frame.
    drift_px, jumps, blank_frames
        Drift a frame in px; number of jumps of 4-9 px; number of frames with a blanked beam.
    critical_dose_frames
        Frames after which the lattice contrast has fallen to 1/e.
    moves_within_frame
        Let the rows of a frame follow the drift while it is scanned; the truth is that of the middle row.
    jitter_px
        Standard deviation along either axis of what every scan line is off by.
    scene
        Makes the relative intensity of what is imaged, for a random generator and a shape; LLZO if not given.

    Returns
    -------
    frames
        uint16 (n_frames, y, x), Poisson counts. The scene is larger than the field of view.
    truth
        ``shift_px`` (n, 2): the content of a frame is that of the first moved by +shift;
        ``blank``, ``jumps``: numbers of frames; ``crlb_px``: the Cramér-Rao floor of one axis of
        one frame against the noise-free scene, the root mean square over axes and frames.
    """
    from scipy.ndimage import map_coordinates, spline_filter

    shift, jumped = _drift_path(rng, n_frames, drift_px, jumps)
    room = np.ceil(np.abs(shift).max(axis=0)).astype(int) + 8
    wide = tuple(np.array(shape) + 2 * room)
    imaged = _garnet_scene(rng, wide, pixel_size_nm) if scene is None else scene(rng, wide)
    perfect, flat = spline_filter(imaged), imaged.mean()
    first = max(1, n_frames // 10)
    blank = sorted(int(i) for i in rng.choice(np.arange(first, n_frames), blank_frames, replace=False)) if n_frames > first else []
    rows, columns = np.meshgrid(*[np.arange(n, dtype=float) for n in shape], indexing="ij")
    late = (rows / shape[0] - 0.5)[..., None] if moves_within_frame else np.zeros((*shape, 1))
    step = np.gradient(shift, axis=0) * (np.abs(np.gradient(shift, axis=0)) < 2) if n_frames > 1 else shift
    frames, information = np.zeros((n_frames, *shape), np.uint16), []
    for i in range(n_frames):
        moved = shift[i] + late * step[i]
        if jitter_px:
            moved = moved + jitter_px * rng.standard_normal((shape[0], 1, 2))
        at = np.stack([rows - moved[..., 0] + room[0], columns - moved[..., 1] + room[1]])
        rate = map_coordinates(perfect, at, order=3, prefilter=False, mode="nearest")
        rate = counts_per_px * (flat + (rate - flat) * math.exp(-i / critical_dose_frames))
        information.append(poisson_shift_information(rate))
        frames[i] = rng.poisson(0.02 * counts_per_px if i in blank else rate)
    good = [i for i in range(n_frames) if i not in blank]
    floor = math.sqrt(np.mean([np.trace(np.linalg.inv(information[i])) / 2 for i in good]))
    return frames, {"shift_px": shift, "blank": blank, "jumps": jumped, "crlb_px": floor}


# --------------------------------------------------------------------------------------
# 01 The lamella
# --------------------------------------------------------------------------------------


#: The definition that `nxem_entry` follows: name, source, commit, NXDL schema.
NXEM_DEFINITION = {
    "definition": "NXem",
    "definition_source": "FAIRmat-NFDI/nexus_definitions, applications/NXem (NXDL 3.1)",
    "definition_version": "eada03fb4a1b466af8cf29a4aeb531428000a7d4",
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
    h, k, l = (int(i) for i in found.hkl[strongest])
    return xi, (h, k, l)


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
        findings.append(
            _finding("warning", f"The voltage rises again: {', '.join(rises)}", "a later step at a higher voltage undoes the polish")
        )
    last, voltage_kV = known[-1]
    low, high = amorphous_layer_nm(voltage_kV)
    layer = f"estimated {low:.1f}–{high:.1f} nm of amorphous, ion-implanted material on each side"
    reason = "estimate from side walls of silicon milled with Ga (Mayer et al. 2007; ISTFA 2004, 563); oxides may differ by a factor of two"
    if voltage_kV > 5:
        text = f"Final polish {last} at {voltage_kV:g} kV, above 5 kV: {layer}"
        findings.append(_finding("warning", text, reason))
    else:
        findings.append(_finding("ok", f"Final polish {last} at {voltage_kV:g} kV: {layer}", reason))
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
    assert lamella is not None
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
    acquisition, path = getattr(sample.acquisitions, kind), sample.path(kind)
    dimensions, keys, words = acquisition.recording
    where = f"{sample.id}/sample.yaml: acquisitions.{kind}.file"
    try:
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
        "dose": _dose_in_words(acquisition, len(frames)),
    }


def _calibration_in_words(acquisition: Any, kind: str, key: str, signal: Any, unit: str | None) -> str:
    value = getattr(acquisition, key)
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

# Registration follows the likelihood of Poisson counts. With a scene λ = λ0 (1 + T), frame k at
# shift s and beam current a, the log-likelihood against a flat scene is
#     L(s) = Σ_r [k(r) ln(1 + T(r - s)) - a λ0 T(r - s)]            r over the frame,
# a correlation of the counts with the logarithm of the scene less that of the frame's box with
# the scene: two products in Fourier space, without wrap-around on a canvas that holds all frames.
# T is the Wiener estimate of the scene from the *other* frames (a template that holds the frame
# itself pulls it to where it is), which weighs every frequency by what is known there.
# Near-periodic lattices hop by a cell unless the frames are solved together: all frames choose
# among their best peaks of L under a drift prior with a heavy tail (Viterbi). What tells one cell from
# the next is spread thin, and a template of frames that are half in one cell and half in another
# defends itself; so runs of frames are then moved by whole translations of the lattice, by scores of all
# pairs of frames (`_CellScores`) and the evidence of the whole stack. At last every frame climbs to
# its sub-pixel maximum.

_JUMP_PROBABILITY = 0.03  # prior of a jump between two frames; the drift prior's tail
_JUMP_LENGTH_PX = 6.0  # of half of the jumps about
_START_SPREAD_PX = 1.2
_SPREADS_PX = (0.15, 0.3, 0.6, 1.2, 2.5, 5.0)  # of the drift between frames, that the stack chooses from
_FALSE_MODES = 1e-5  # share of noise modes of a spectrum that may be taken for signal
_RINGS, _RING_SIGMA = 42, 2.5  # rings of a spectrum, and the standard errors above noise that make one signal
_LEAST_SNR = 5.0  # of a frame's whole contrast, below which its highest peak may be noise
_CLEAR_NATS = 40.0  # a jump whose cell is that much clearer than the next is not tested again
_LEAST_GAIN = 3.0  # nats, below which no run of frames is moved to another cell
_COMPARED_MOVES = 4  # of runs of frames, for which the evidence of the whole stack is asked
_MODULATION_RINGS = 8  # of the band of a lattice's modulation, a spectral density each
_FRAME_NATS = 6.0  # a frame, by which a segment's other lattice cells may fall short and still be compared
_STEP_PX = 28  # between frames, beyond which no peak is looked for
_ROOM_PX, _TIGHT_ROOM_PX = 20, 42  # between the largest shift that is looked for, or was found, and where a canvas wraps around
_CANDIDATES = 36  # peaks of the likelihood that the joint solution may choose from


@dataclass(frozen=True)
class DriftSolution:
    """Shifts of a stack: ``shift_px`` (n, 2) with NaN where a frame is left out, content moved by +shift.

    ``sigma_px`` (n,) is the standard deviation of a frame's position along one axis, without
    the error that all frames share. ``left_out`` maps frames to the reason. ``registered`` is
    False where the counts do not suffice (``reason`` says why, the shifts are then 0);
    ``group`` > 1 where so many neighbours share one shift. ``hop_probability`` (n,) is that of
    another peak, a lattice cell away, given the frames around; ``jumps`` lists the first frame
    after each jump and its margin (nats) over the next best cell. ``crlb_px`` is the Cramér-Rao
    floor of one axis of one frame. ``contrast`` (n,) is relative to the average, 0 where unknown.
    ``used`` (n,) are the frames that count, ``counts_per_unit`` the counts of a grey value (`counts_per_unit`), ``notes`` sentences.
    """

    shift_px: np.ndarray
    sigma_px: np.ndarray
    used: np.ndarray
    left_out: dict[int, str]
    registered: bool
    reason: str
    group: int
    hop_probability: np.ndarray
    jumps: list[dict]
    crlb_px: float | None
    contrast: np.ndarray
    counts_per_unit: float
    notes: tuple[str, ...]


def poisson_shift_information(rate: np.ndarray) -> np.ndarray:
    """Fisher information (2, 2) of a rigid shift (y, x) of an image of Poisson counts, 1/px².

    J = Σ ∂λ ∂λᵀ/λ over the pixels; the variance of an unbiased estimate is at least inv(J).
    """
    from scipy.ndimage import correlate1d

    stencil = np.array([-1, 9, -45, 0, 45, -9, 1]) / 60
    dy, dx = (correlate1d(rate, stencil, axis=axis, mode="nearest") for axis in (0, 1))
    weight = 1 / np.maximum(rate, 1e-9)
    yx = np.sum(dy * dx * weight)
    return np.array([[np.sum(dy * dy * weight), yx], [yx, np.sum(dx * dx * weight)]])


# --- counts ------------------------------------------------------------------------------


def check_stack(frames: Any, name: str = "the stack", budget_bytes: float | None = None) -> Any:
    """The stack as an array (n, y, x); `RecordingError` for anything that cannot be frames of counts.

    Recorded frames (`RecordedFrames`, `PickedFrames`) stay what they are, and are read a few at a time, where the joint
    solution would take more than ``budget_bytes`` of memory (3 GB if not given).
    """
    recorded = isinstance(frames, (RecordedFrames, PickedFrames))
    if recorded and _joint_bytes(len(frames), frames.shape[1:]) <= (_JOINT_BYTES if budget_bytes is None else budget_bytes):
        frames, recorded = frames[:], False
    frames = frames if recorded else np.asarray(frames)
    if len(frames.shape) != 3 or min(frames.shape) < 1 or frames.dtype.kind not in "iuf":
        raise RecordingError(f"{name}: got an array of {frames.dtype} with shape {frames.shape}, expected numbers of shape (frame, y, x)")
    if min(frames.shape[1:]) < 16:
        raise RecordingError(f"{name}: frames of {frames.shape[1]} x {frames.shape[2]} px, expected 16 x 16 at least")
    least, most = (np.concatenate(part) for part in zip(*((f.min((1, 2)), f.max((1, 2))) for _, f in _blocks(frames)), strict=True))
    bad = np.flatnonzero(~np.isfinite(least) | ~np.isfinite(most))  # NaN is the least and the most of a frame that has it
    if len(bad):
        raise RecordingError(f"{name}: NaN or infinite values in {len(bad)} frames, the first is frame {bad[0]}; expected counts")
    bad = np.flatnonzero(least < 0)
    if len(bad):
        raise RecordingError(
            f"{name}: negative values (down to {least.min():g}) in {len(bad)} frames, the first is frame {bad[0]}; expected counts"
        )
    if not most.any():
        raise RecordingError(f"{name}: all frames are blank (every pixel is 0)")
    return frames


class PickedFrames:
    """Some frames of a recorded stack, in the order of ``index`` (n,), ascending, read where they are used."""

    def __init__(self, frames: Any, index: np.ndarray):
        self.frames, self.index = frames, np.asarray(index)
        self.shape, self.dtype = (len(self.index), *frames.shape[1:]), frames.dtype

    def __len__(self) -> int:
        return len(self.index)

    def __getitem__(self, which: Any) -> np.ndarray:
        picked = self.index[which]
        return read_frames(self.frames, picked) if np.ndim(picked) else self.frames[int(picked)]


def read_frames(frames: Any, index: np.ndarray) -> np.ndarray:
    """Frames (k, y, x) of ascending indices of a stack; of recorded frames in one piece, unless they lie far apart."""
    index = np.asarray(index)
    if isinstance(frames, np.ndarray):
        return frames[index]
    if index[-1] - index[0] >= 4 * len(index):
        return np.stack([frames[int(i)] for i in index])
    return frames[int(index[0]) : int(index[-1]) + 1][index - index[0]]


def _blocks(frames: Any, index: np.ndarray | None = None) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Frames of ascending indices (all if not given) a few at a time: the indices, and the frames (k, y, x)."""
    index = np.arange(len(frames)) if index is None else index
    step = max(1, int(_BLOCK_BYTES // (math.prod(frames.shape[1:]) * frames.dtype.itemsize)))
    for k in range(0, len(index), step):
        yield index[k : k + step], read_frames(frames, index[k : k + step])


def frame_means(frames: Any) -> np.ndarray:
    """Mean of every frame (n,)."""
    return np.concatenate([f.reshape(len(f), -1).mean(axis=1, dtype=np.float64) for _, f in _blocks(frames)])


def counts_per_unit(frames: np.ndarray) -> tuple[float, str | None]:
    """Factor that turns grey values of a stack (n, y, x) into counts, with a note where it is not 1.

    White noise fills the corners of the spectrum, beyond the Nyquist circle, where optics leave
    little signal; the variance there against the mean is the gain of the detector
    (grey values a count). Whole numbers within 15 % of Poisson's variance are taken as counts. `RecordingError` where there is no noise.
    """
    n_y, n_x = frames.shape[1:]
    q = np.hypot(np.fft.fftfreq(n_y)[:, None], np.fft.rfftfreq(n_x)[None])
    window = np.outer(np.hanning(n_y), np.hanning(n_x)).astype(np.float32)
    means, levels = [], []
    for i in range(0, len(frames), max(1, len(frames) // 16)):
        frame = frames[i]
        mean = float(frame.mean())
        power = np.abs(np.fft.rfft2((frame - mean) * window)) ** 2
        means.append(mean)
        levels.append(np.median(power[q > 0.5]) / math.log(2) / np.sum(window**2))
    mean = np.median(means)
    gain = float(np.median(levels) / mean) if mean > 0 else 0.0
    some = range(0, len(frames), max(1, len(frames) // 4))
    whole = frames.dtype.kind in "iu" or all(bool(np.all(frames[i] % 1 == 0)) for i in some)
    if whole and 0.85 < gain < 1.15:
        return 1.0, None
    if gain <= 0 or mean <= 0:
        raise RecordingError("the stack: no noise in the frames, expected counts of single electrons or grey values with their noise")
    kind = "whole numbers" if whole else "not whole numbers"
    note = f"grey values are not counts ({kind}, variance {gain:.3g} x mean at high frequencies): taken as counts times {gain:.3g}"
    return 1 / gain, note


def unusable_frames(means: np.ndarray) -> dict[int, str]:
    """Frames whose mean (n,) alone rules them out, with the reason; blanked beams above all."""
    lit = means[means > 0.2 * means.max()]
    usual = float(np.median(lit))
    out = {}
    for i, mean in enumerate(means):
        if mean < 0.4 * usual:
            out[i] = f"blank: mean {mean:.3g} against {usual:.3g} of the others"
        elif mean > 2.5 * usual:
            out[i] = f"too bright: mean {mean:.3g} against {usual:.3g} of the others"
    return out


# --- template and likelihood in Fourier space --------------------------------------------


class _Canvas:
    """Spectra of frames on a canvas that holds all of them, and what follows from them.

    Scene and canvas share coordinates; frame i lies at -shift. ``reach`` (2,) is the range of
    shifts on either side of 0 for which nothing wraps around.
    """

    def __init__(self, counts: np.ndarray, reach: np.ndarray):
        from scipy import fft

        self.counts = counts
        self.n, *self.frame_shape = counts.shape
        self.shape = tuple(fft.next_fast_len(int(f + 2 * np.ceil(r)), real=True) for f, r in zip(self.frame_shape, reach, strict=True))
        self.qy = (2 * np.pi * fft.fftfreq(self.shape[0])).astype(np.float32)
        self.qx = (2 * np.pi * fft.rfftfreq(self.shape[1])).astype(np.float32)
        self.totals = counts.reshape(self.n, -1).sum(axis=1, dtype=np.float64)
        self.area = float(np.prod(self.frame_shape))
        self.spectra = np.empty((self.n, self.shape[0], len(self.qx)), np.complex64)
        for spectrum, image in zip(self.spectra, counts, strict=True):
            spectrum[:] = fft.rfft2(image.astype(np.float32), self.shape)
        self.box = fft.rfft2(np.ones(self.frame_shape, np.float32), self.shape)
        self.double = np.where((np.arange(len(self.qx)) == 0) | (2 * np.arange(len(self.qx)) == self.shape[1]), 1.0, 2.0)
        self.scale = self.totals / np.median(self.totals[self.totals > 0])
        self.rate = float(np.median(self.totals[self.totals > 0]) / self.area)

    def spectrum(self, image: np.ndarray) -> np.ndarray:
        """Spectrum of an image of the size of a frame or of the canvas."""
        from scipy import fft

        return fft.rfft2(image.astype(np.float32, copy=False), self.shape)

    def image(self, spectrum: np.ndarray) -> np.ndarray:
        from scipy import fft

        return fft.irfft2(spectrum, self.shape)

    def phase(self, shift: np.ndarray) -> np.ndarray:
        """Factor that brings the content of a frame at ``shift`` back to the scene."""
        return np.exp(1j * self.qy * np.float32(shift[0]))[:, None] * np.exp(1j * self.qx * np.float32(shift[1]))[None]

    def moved(self, i: int, shift: np.ndarray) -> np.ndarray:
        """Spectrum of frame i in the scene's coordinates, less what a flat scene would give."""
        return (self.spectra[i] - np.float32(self.scale[i] * self.rate) * self.box) * self.phase(shift)

    def under(self, image: np.ndarray, shift: np.ndarray) -> np.ndarray:
        """The part of an image of the canvas that a frame at a shift lies on, to the nearest pixel."""
        rows, columns = (np.arange(n) - round(float(s)) for s, n in zip(shift, self.frame_shape, strict=True))
        return image[np.ix_(rows % self.shape[0], columns % self.shape[1])]

    def scale_at(self, i: int, scene: np.ndarray, seen: np.ndarray, shift: np.ndarray) -> float:
        """Beam current of frame i relative to the scene's, from the pixels seen at its shift."""
        inside = self.under(seen, shift)
        expected = self.rate * float(np.sum((1 + self.under(scene, shift)) * inside))
        return float(np.sum(self.counts[i] * inside)) / expected if inside.any() else float(self.scale[i])

    def worth(self, i: int, scene: np.ndarray, shift: np.ndarray) -> np.ndarray:
        """Spectrum of the log-likelihood that every pixel of a frame earns from a scene at a shift."""
        there = self.image(self.spectrum(scene) / self.phase(shift))[: self.frame_shape[0], : self.frame_shape[1]]
        rate = 1 + np.maximum(there, np.float32(-0.9))
        rate = rate / rate.mean()
        return self.spectrum(self.counts[i] * np.log(rate) - np.float32(self.totals[i] / self.area) * (rate - 1))

    def coverage(self, shift: np.ndarray) -> np.ndarray:
        """The frame's box in the scene, split over pixels where it lies between them."""
        sides = []
        for s, n, size in zip(shift, self.frame_shape, self.shape, strict=True):
            low = math.floor(-s)
            part = -s - low
            side = np.zeros(size, np.float32)
            side[np.arange(low, low + n) % size] += 1 - part
            side[np.arange(low + 1, low + 1 + n) % size] += part
            sides.append(side)
        return np.outer(*sides)


def _smoothed(power: np.ndarray, width: int) -> np.ndarray:
    """A half spectrum of a real image averaged over width x width modes, its mirror image respected."""
    from scipy.ndimage import uniform_filter1d

    wide = uniform_filter1d(power, width, axis=0, mode="wrap")
    pad = width // 2
    mirrored = np.concatenate([np.roll(wide[::-1], 1, axis=0)[:, pad:0:-1], wide], axis=1)
    return uniform_filter1d(mirrored, width, axis=1, mode="nearest")[:, pad:]


def _signal_power(power: np.ndarray, noise: float, oversampling: float, spectra: int = 1) -> np.ndarray:
    """What of a power spectrum is significantly above white noise, else 0.

    Sharp lattice peaks are told mode by mode; what is left is averaged over a few modes, then
    over more, at last over rings, so that no peak lends its power to the noise around it. What makes one
    cell of a lattice differ from the next is spread so thin that only the widest averages show it.
    ``oversampling`` is the number of modes of the canvas for one independent mode, ``spectra`` that of
    the spectra that ``power`` is the mean of; noise power is gamma distributed.
    """
    from scipy.stats import gamma

    excess = power - noise
    signal, found = np.zeros_like(power), np.zeros(power.shape, bool)
    for width in (1, 3, 11, 33):
        free = (~found).astype(np.float32)
        weight = _smoothed(free, width) if width > 1 else free
        smooth = _smoothed(excess * free, width) / np.maximum(weight, 1e-3) if width > 1 else excess
        modes = spectra * max(1.0, width**2 / oversampling)
        here = ~found & (weight > 0.3) & (smooth > noise * (gamma.isf(_FALSE_MODES, modes) / modes - 1))
        signal[here] = smooth[here]
        found |= here
    ring = _frequency_rings(power.shape)
    count, total = (np.bincount(ring[~found], v, minlength=_RINGS + 1) for v in (None, excess[~found]))
    mean = total / np.maximum(count, 1)
    shows = mean > _RING_SIGMA * noise / np.sqrt(np.maximum(spectra * count / oversampling, 1))
    return np.where(found, signal, np.where(shows, mean, 0)[ring]).astype(power.dtype)


def _frequency_rings(shape: tuple[int, ...]) -> np.ndarray:
    """Number of the ring of every mode of a half spectrum, `_RINGS` of them between 0 and the corner."""
    qy, qx = np.fft.fftfreq(shape[0]), np.linspace(0, 0.5, shape[1])
    return (np.hypot(qy[:, None], qx[None]) * _RINGS * math.sqrt(2)).astype(int)


class _Sum:
    """The aligned sum of frames of a canvas, from which frames can be taken out again."""

    def __init__(self, canvas: _Canvas):
        self.canvas = canvas
        self.spectrum = np.zeros(canvas.spectra.shape[1:], np.complex64)
        self.coverage = np.zeros(canvas.shape, np.float32)
        self.held: set[int] = set()

    def add(self, i: int, shift: np.ndarray, sign: int = 1) -> None:
        """Put frame i in at its shift, or take it out (sign -1)."""
        self.spectrum += np.float32(sign) * self.canvas.moved(i, shift)
        self.coverage += np.float32(sign * self.canvas.scale[i]) * self.canvas.coverage(shift)
        self.held ^= {i}

    def most(self) -> float:
        """Frames that cover a pixel at most."""
        return float(self.canvas.scale[list(self.held)].sum())

    def counts(self) -> float:
        """All counts in the sum."""
        return float(self.canvas.totals[list(self.held)].sum())

    def power(self) -> np.ndarray:
        """Spectral density of the scene's signal, (counts per pixel and frame)² a mode."""
        canvas, noise = self.canvas, self.counts()
        oversampling = float(np.prod(canvas.shape)) / canvas.area
        return _signal_power(np.abs(self.spectrum) ** 2, noise, oversampling) / float(np.sum(self.coverage.astype(np.float64) ** 2))

    def scene(self, power: np.ndarray | None = None, start: np.ndarray | None = None, rounds: int = 8) -> np.ndarray:
        """Most probable scene over the canvas, relative to its mean less 1 (at least -0.9).

        With signal of spectral density P and noise λ0/coverage in every pixel it solves
        (1/P + coverage/λ0) T = data/λ0 by conjugate gradients, preconditioned with the Wiener
        filter of full coverage: what few frames saw is held to what the lattice continues.
        """
        canvas, rate = self.canvas, self.canvas.rate
        most = self.most()
        power = (self.power() if power is None else power) / rate**2
        known = power > 0
        inverse = np.divide(1, power, out=np.zeros_like(power), where=known).astype(np.float32)
        wiener = np.where(known, 1 / (inverse + np.float32(rate * most)), 0).astype(np.float32)
        weight, size = np.float32(rate) * self.coverage, float(np.prod(canvas.shape))
        dot = lambda a, b: float(np.sum(canvas.double * (a.real * b.real + a.imag * b.imag), dtype=np.float64)) / size
        x = np.zeros_like(self.spectrum) if start is None else np.where(known, canvas.spectrum(start), 0)
        residual = np.where(known, self.spectrum, 0)
        if start is not None:
            residual = residual - inverse * x - canvas.spectrum(weight * canvas.image(x)) * known
        direction, before, first = None, 0.0, 0.0
        for _ in range(rounds):
            step = wiener * residual
            now = dot(residual, step)
            first = max(first, now)
            if now <= 1e-8 * first:
                break
            direction = step if direction is None else step + np.float32(now / before) * direction
            image = canvas.image(direction)
            bent = inverse * direction + canvas.spectrum(weight * image) * known
            length = np.float32(now / dot(direction, bent))
            x, residual, before = x + length * direction, residual - length * bent, now
        return np.maximum(canvas.image(x), np.float32(-0.9))

    def evidence(self, power: np.ndarray) -> float:
        """Log probability of the sum under a scene of spectral density ``power``, but for a constant.

        ½ dataᵀT/λ0-weighted less ½ ln det(1 + coverage P/λ0), the determinant pixel by pixel.
        """
        canvas, rate = self.canvas, self.canvas.rate
        size = float(np.prod(canvas.shape))
        scene = canvas.spectrum(self.scene(power, rounds=12))
        explained = 0.5 * float(np.sum(canvas.double * (np.conj(self.spectrum) * scene).real, dtype=np.float64)) / size
        steps = np.linspace(0, float(self.coverage.max()) + 1e-6, 33)
        weights = np.broadcast_to(canvas.double, power.shape)[power > 0]
        loss = [0.5 * float(np.sum(weights * np.log1p(c * power[power > 0] / rate))) / size for c in steps]
        return explained - float(np.sum(np.interp(self.coverage, steps, loss)))

    def seen(self) -> np.ndarray:
        """Where at least about one of the frames held covers the canvas, as 0 and 1."""
        return (self.coverage > 0.5 * min(1.0, float(self.canvas.scale[list(self.held)].min()))).astype(np.float32)


class _Match:
    """Log-likelihoods of frames against a scene at every shift, whatever the beam current was.

    L(s) = Σ k ln(1 + T) - Σk ln(Σλ/Σλ0) over the pixels seen, the likelihood of the counts' places
    against a flat scene. Pixels of a frame that fall where nothing was seen are credited with
    what they earn at another shift of the same phase in the lattice (``worth``), where the scene is
    continued: an overlap larger or smaller is then no advantage.
    """

    def __init__(self, canvas: _Canvas, scene: np.ndarray, seen: np.ndarray):
        self.canvas = canvas
        self._seen, self._log, self._bright = (canvas.spectrum(image * seen) for image in (np.ones_like(scene), np.log1p(scene), scene))

    def images(self, counts: np.ndarray, box: np.ndarray, worth: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """L at every whole shift, and the beam current relative to the scene's there (images of the canvas)."""
        canvas = self.canvas
        found, flat, bright = (canvas.image(np.conj(x) * y) for x, y in ((self._seen, counts), (self._seen, box), (self._bright, box)))
        flat = np.maximum(flat, 1e-3 * flat.max())
        mean = np.maximum(1 + bright / flat, 0.05)
        likelihood = canvas.image(np.conj(self._log) * counts - np.conj(self._seen) * worth) - found * np.log(mean)
        return likelihood, found / (canvas.rate * flat * mean)

    def spectra(self, counts: np.ndarray, box: np.ndarray, worth: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Spectra whose first less a times the second is that of L, but for a constant, about a shift with beam current a."""
        return self._log * np.conj(counts) - self._seen * np.conj(worth), np.float32(self.canvas.rate) * self._bright * np.conj(box)


def _likelihood(canvas: _Canvas, i: int, scene: np.ndarray, seen: np.ndarray, shift: np.ndarray) -> np.ndarray:
    """Spectrum of the log-likelihood of frame i about a shift, of the pixels that others saw there and around."""
    from scipy.ndimage import minimum_filter

    inside = minimum_filter(canvas.under(seen, shift), 5, mode="nearest")
    counts, box = canvas.spectra[i], canvas.box
    if not inside.all():
        counts, box = canvas.spectrum(canvas.counts[i] * inside), canvas.spectrum(inside)
    flat = np.float32(canvas.scale[i] * canvas.rate)
    return np.conj(counts) * canvas.spectrum(np.log1p(scene)) - flat * np.conj(box) * canvas.spectrum(scene)


@numba.njit(cache=True, fastmath=True)
def _moments(spectrum, ey, ex, qy, qx):
    """Real parts of Σ A ey ex times 1, -iqy, -iqx, -qy², -qyqx, -qx²."""
    out = np.zeros(6)
    for i in range(spectrum.shape[0]):
        re0, im0, re1, im1, re2, im2 = 0.0, 0.0, 0.0, 0.0, 0.0, 0.0
        for j in range(spectrum.shape[1]):
            a, b, c, d, q = spectrum[i, j].real, spectrum[i, j].imag, ex[j].real, ex[j].imag, qx[j]
            re, im = a * c - b * d, a * d + b * c
            re0 += re
            im0 += im
            re1 += q * re
            im1 += q * im
            re2 += q * q * re
            im2 += q * q * im
        row0, row1, row2 = complex(re0, im0) * ey[i], complex(re1, im1) * ey[i], complex(re2, im2) * ey[i]
        out[0] += row0.real
        out[1] += qy[i] * row0.imag
        out[2] += row1.imag
        out[3] -= qy[i] * qy[i] * row0.real
        out[4] -= qy[i] * row1.real
        out[5] -= row2.real
    return out


def _evaluate(canvas: _Canvas, spectrum: np.ndarray, s: np.ndarray) -> tuple[float, np.ndarray, np.ndarray]:
    """L(s), its gradient (2,) and -∂∂L (2, 2) from the spectrum A."""
    ey = np.exp(-1j * canvas.qy * s[0])
    ex = np.exp(-1j * canvas.qx * s[1]) * canvas.double / float(np.prod(canvas.shape))
    m = _moments(spectrum, ey, ex, canvas.qy, canvas.qx)
    return float(m[0]), m[1:3], -np.array([[m[3], m[4]], [m[4], m[5]]])


def _climb(canvas: _Canvas, spectrum: np.ndarray, start: np.ndarray, steps: int = 5) -> tuple[np.ndarray, float, np.ndarray]:
    """Newton's method on L, in steps below 0.7 px: the place of the maximum, L there and -∂∂L (2, 2)."""
    s = np.array(start, dtype=np.float64)
    for _ in range(steps):
        _, slope, curvature = _evaluate(canvas, spectrum, s)
        concave = np.linalg.eigvalsh(curvature)[0] > 0
        move = np.linalg.solve(curvature, slope) if concave else slope
        length = float(np.linalg.norm(move))
        s = s + move * min(1.0, 0.7 / max(length, 1e-12))
        if length < 1e-3:
            break
    value, _, curvature = _evaluate(canvas, spectrum, s)
    return s, value, curvature


def _peaks(match: _Match, frame: tuple, centre: np.ndarray, reach: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The highest maxima of L within ``reach`` (2,) of ``centre``: places (m, 2), values (m,), best first.

    ``frame`` holds the spectra of its counts, of its box and of what its pixels are worth.
    """
    from scipy.ndimage import maximum_filter

    image, scale = match.images(*frame)
    middle = np.round(centre).astype(int)
    rows, columns = (np.arange(m - int(r), m + int(r) + 1) for m, r in zip(middle, reach, strict=True))
    at = np.ix_(rows % image.shape[0], columns % image.shape[1])
    window, scale = image[at], scale[at]
    y, x = np.nonzero(window == maximum_filter(window, 3))
    order = np.argsort(window[y, x])[::-1][:_CANDIDATES]
    order = order[window[y, x][order] > window.max() - max(30.0, 0.3 * float(np.ptp(window)))]
    places, values = np.zeros((len(order), 2)), np.zeros(len(order))
    fixed, flat = match.spectra(*frame)
    for k, (row, column) in enumerate(zip(y[order], x[order], strict=True)):
        spectrum, start = fixed - np.float32(scale[row, column]) * flat, np.array([rows[row], columns[column]], dtype=float)
        places[k], top, _ = _climb(match.canvas, spectrum, start, steps=2)
        values[k] = window[row, column] + top - _evaluate(match.canvas, spectrum, start)[0]
    apart = [k for k in range(len(order)) if not np.any(np.linalg.norm(places[:k] - places[k], axis=1) < 0.5)]
    best = sorted(apart, key=lambda k: -values[k])[:_CANDIDATES]
    return places[best], values[best]


# --- lattice cells -----------------------------------------------------------------------


def _reflections(canvas: _Canvas, spectrum: np.ndarray, noise: float, most: int = 40, least: float = 25) -> tuple[np.ndarray, np.ndarray]:
    """Strongest sharp peaks of a sum's half spectrum, ``least`` times its noise: indices (m, 2) and powers (m,), strongest first."""
    from scipy.ndimage import maximum_filter

    power = np.abs(spectrum) ** 2
    q = np.hypot(canvas.qy[:, None], canvas.qx[None]) / (2 * np.pi)
    reach = 2 * math.ceil(2.5 * max(np.array(canvas.shape) / canvas.frame_shape)) + 1
    top = (q > 6 / min(canvas.frame_shape)) & (canvas.qx[None] > 0) & (power > least * noise)
    at = np.argwhere(top & (power == maximum_filter(power, reach, mode="wrap")))
    at = at[np.argsort(power[tuple(at.T)])[::-1][:most]]
    return at, power[tuple(at.T)]


def _between_modes(canvas: _Canvas, spectrum: np.ndarray, at: np.ndarray) -> np.ndarray:
    """Frequencies (m, 2) in rad/px of peaks at the indices ``at``, between modes by the centre of their power."""
    power = np.abs(spectrum) ** 2
    centre, weight = np.zeros((len(at), 2)), np.zeros(len(at))
    for dy, dx in product((-1, 0, 1), repeat=2):
        here = power[(at[:, 0] + dy) % power.shape[0], np.clip(at[:, 1] + dx, 0, power.shape[1] - 1)]
        centre += here[:, None] * np.array([dy, dx])
        weight += here
    whole = np.stack([canvas.qy[at[:, 0]], canvas.qx[at[:, 1]]], -1)
    return whole + centre / weight[:, None] * 2 * np.pi / np.array(canvas.shape)


def _translations(q: np.ndarray, power: np.ndarray, window: int) -> np.ndarray:
    """Translations (t, 2) in px up to ``window`` that bring reflections ``q`` (m, 2) in rad/px back into phase."""
    from scipy.ndimage import maximum_filter

    near = np.arange(-window, window + 1)
    image = sum(p * np.cos(g[0] * near[:, None] + g[1] * near[None]) for g, p in zip(q, power, strict=True))
    places = np.argwhere((image == maximum_filter(image, 5)) & (image > 0.3 * power.sum())).astype(float) - window
    for _ in range(6):
        turn = places @ q.T
        slope = -(power * np.sin(turn)) @ q
        bend = np.einsum("vm,ma,mb->vab", power * np.cos(turn), q, q)
        low, high = np.linalg.eigvalsh(bend).T
        peaked = low > 1e-6 * high  # reflections along one line have ridges, no translations
        places, bend, slope = places[peaked], bend[peaked], slope[peaked]
        step = np.linalg.solve(bend, slope[..., None])[..., 0]
        places = places + step * np.minimum(1, 1 / np.maximum(np.linalg.norm(step, axis=1), 1e-9))[:, None]
    places = places[np.abs(places).max(axis=1, initial=0) < window - 1]
    same = np.linalg.norm(places[:, None] - places[None], axis=2) < 1
    return places[~np.tril(same, -1).any(axis=1)]


def _near_modes(shape: tuple[int, ...], at: np.ndarray, radius: int) -> np.ndarray:
    """Where a half spectrum lies within ``radius`` modes of the indices ``at`` (m, 2)."""
    near, step = np.zeros(shape, bool), np.arange(-radius, radius + 1)
    dy, dx = (v.ravel() for v in np.meshgrid(step, step, indexing="ij"))
    disc = dy**2 + dx**2 <= radius**2
    rows, columns = (at[:, :1] + dy[disc]) % shape[0], at[:, 1:] + dx[disc]
    inside = (columns >= 0) & (columns < shape[1])
    near[rows[inside], columns[inside]] = True
    return near


def _taper(shape: Iterable[int], share: float) -> np.ndarray:
    """1 inside of a frame, falling to 0 over this share of its sides at either edge."""
    sides = []
    for n in shape:
        edge = max(4, int(share * n))
        rise = 0.5 - 0.5 * np.cos(np.pi * (np.arange(edge, dtype=np.float32) + 0.5) / edge)
        sides.append(np.concatenate([rise, np.ones(n - 2 * edge, np.float32), rise[::-1]]))
    return np.outer(*sides)


@dataclass(frozen=True)
class _Move:
    """A run of members that is moved by a translation (2,) of the lattice, and what that gains (nats)."""

    members: np.ndarray
    displacement: np.ndarray
    gain: float


@dataclass
class _CellScores:
    """How well members of a stack agree in other lattice cells, a score (nats) for every pair and displacement.

    Columns of a crystal differ in brightness, by thickness, composition, bending or an edge, from one to the next
    or slowly. Such a modulation m(r) of the lattice c(r) has a copy about *every* reflection. The
    residual of a frame less the lattice, times c, brings all copies together below the first
    reflection, where with amplitudes of spectral density P and noise N, of n frames, a displacement u of
    frame k against j has the log-likelihood Σ_q w Re(conj(m_j) m_k exp(iqu)), w = P/(N(N + nP)).
    On simulated plain lattices at 0.15 counts a pixel, frames in a wrong cell fell from 45 % to about none. Reflections that some
    translations break (superlattices) are added with their amplitudes. Neither depends on how far frames
    overlap, as a correlation of lattice images does.

    ``tables`` (n, n, y, x) hold the first for displacements on a grid of ``pitch`` (2,) px; ``amplitudes`` (n, m)
    and ``weights`` (m,) belong to the ``reflections`` (m, 2) in rad/px; ``offsets`` (n, 2) is how far members were moved since.
    ``rest`` is the stack without its lattice, of pixels ``binning`` times as large, and ``power`` its spectral density: the evidence
    of what is left knows an edge or a step, and is not misled by how much lattice a larger area holds.
    """

    tables: np.ndarray
    pitch: np.ndarray
    window: float
    translations: np.ndarray
    reflections: np.ndarray
    amplitudes: np.ndarray
    weights: np.ndarray
    offsets: np.ndarray
    members: np.ndarray
    rest: _Joint
    binning: int
    power: np.ndarray

    @classmethod
    def of(cls, joint: _Joint) -> _CellScores | None:
        """Scores about the present shifts; None where there is no lattice."""
        canvas, members, total = joint.canvas, joint.members, joint.total()
        at, power = _reflections(canvas, total.spectrum, float(canvas.totals[members].sum()))
        if len(at) == 0:
            return None
        q = _between_modes(canvas, total.spectrum, at)
        strong = float(np.linalg.norm(q[power > 0.1 * power[0]], axis=1).min()) / (2 * np.pi)
        far = 100.0 if len(members) <= 50 else 40.0  # px; the tables of many frames would take too much memory
        window = float(min(0.4 * min(canvas.frame_shape), max(far, 5 / strong)))
        translations = _translations(q, power, int(window))
        if len(translations) < 2:
            return None
        reach = 0.6 * strong
        binning = 2 if min(canvas.frame_shape) >= 512 and reach < 0.1 else 1
        fields, frequency, noise, left = _modulations(joint, total, at, reach, binning)
        runs = [np.searchsorted(members, segment) for segment in joint.segments()]
        rest = _rest_of(joint, left, binning)
        weight = _modulation_weight(fields, frequency / reach, noise, runs, canvas)
        tables, pitch = _pair_tables(fields, weight, np.array(canvas.shape), 2 * window)
        amplitudes, weights = _superlattice(joint, q, power, translations[np.linalg.norm(translations, axis=1) < 0.5 * window])
        offsets, power = np.zeros((len(members), 2)), rest.power(runs)
        return cls(tables, pitch, window, translations, q, amplitudes, weights, offsets, members, rest, binning, power)

    def evidence(self, run: np.ndarray | None = None, displacement: np.ndarray | float = 0.0) -> float:
        """Log evidence of the stack without its lattice, a run of members being moved, but for a constant."""
        rest, kept = self.rest, self.rest.shifts
        if run is not None:
            rest.shifts = kept.copy()
            rest.shifts[np.isin(self.members, run)] += np.asarray(displacement) / self.binning
        value = rest.total().evidence(self.power)
        rest.shifts = kept
        return value

    def _pairs(self, displacement: np.ndarray) -> np.ndarray:
        """Scores (n, n) of column k moved against row j by displacements (n, n, 2)."""
        j, k = np.indices(displacement.shape[:2])
        half = np.array(self.tables.shape[2:]) // 2
        at = np.round(displacement / self.pitch).astype(int)
        known = (np.abs(at) <= half).all(axis=-1)
        y, x = np.moveaxis(np.clip(at, -half, half) + half, -1, 0)
        return np.where(known, self.tables[j, k, y, x], 0)

    def _gains(self, displacements: np.ndarray) -> Iterator[np.ndarray]:
        """For each displacement (t, 2) what every pair (n, n) gains if its second member is moved by it."""
        apart = self.offsets[None] - self.offsets[:, None]
        kept, here = self._pairs(apart), self.amplitudes * np.exp(1j * (self.offsets @ self.reflections.T))
        for u in displacements:
            turn = np.exp(1j * (self.reflections @ u)) - 1
            gain = self._pairs(apart + u) - kept + 2 * np.real((here.conj() * self.weights) @ (here * turn).T)
            np.fill_diagonal(gain, 0)
            yield gain

    def gain(self, run: np.ndarray, displacement: np.ndarray) -> float:
        """What the pair scores gain if a run of members is moved."""
        inside = np.isin(self.members, run)
        return float(next(self._gains(displacement[None]))[np.ix_(~inside, inside)].sum())

    def moves(self, joint: _Joint) -> list[_Move]:
        """Moves of runs of members, by pair scores and drift prior, the best first."""
        members, n = joint.members, len(joint.members)
        gaps, step = np.diff(members), np.diff(joint.way(), axis=0)
        link = joint.prior.log_density(step, gaps)
        first, last = np.triu_indices(n + 1, 1)
        allowed = (2 * (last - first) <= n) | ((first > 0) & (last < n))  # a run at an end and the rest are the same move
        moves = []
        others = self.translations[np.linalg.norm(self.translations, axis=1) > 1]
        for u, gain in zip(others, self._gains(others), strict=True):
            sums = np.pad(np.cumsum(gain.sum(axis=0)), (1, 0))
            square = np.pad(np.cumsum(np.cumsum(gain, axis=0), axis=1), ((1, 0), (1, 0)))
            inside = square[last, last] - square[first, last] - square[last, first] + square[first, first]
            into, out_of = (np.pad(joint.prior.log_density(step + sign * u, gaps) - link, 1) for sign in (1, -1))
            value = np.where(allowed, sums[last] - sums[first] - inside + into[first] + out_of[last], -np.inf)
            moves += [_Move(members[first[m] : last[m]], u, float(value[m])) for m in np.argsort(value)[::-1][:3]]
        return sorted(moves, key=lambda move: -move.gain)

    def move(self, joint: _Joint, run: np.ndarray, displacement: np.ndarray) -> None:
        """Move a run of members, and note it."""
        joint.shifts[run] += displacement
        inside = np.isin(self.members, run)
        self.offsets[inside] += displacement
        self.rest.shifts[inside] += displacement / self.binning


def _rest_of(joint: _Joint, left: np.ndarray, binning: int) -> _Joint:
    """A joint registration of members without their lattice, at the present shifts."""
    canvas, members = joint.canvas, joint.members
    room = (np.array(canvas.shape) - canvas.frame_shape) / 2
    rest = _Joint(
        _Canvas(left, room / binning), np.arange(len(members)), joint.shifts[members] / binning, np.zeros(len(members)), joint.prior
    )
    rest.canvas.scale = canvas.scale[members]
    return rest


def _modulations(
    joint: _Joint, total: _Sum, at: np.ndarray, reach: float, binning: int
) -> tuple[np.ndarray, np.ndarray, float, np.ndarray]:
    """Half spectra of all members' modulations of the lattice, on a smaller canvas; frequencies (1/px); noise of a mode.

    Last the frames (n, y, x) less their lattice, in pixels ``binning`` times as large.

    ``reach`` (1/px) is the highest frequency of a modulation, half of the way to the first strong reflection and a bit.
    """
    from scipy import fft

    canvas, members, shape = joint.canvas, joint.members, joint.canvas.frame_shape
    peaks = _near_modes(total.spectrum.shape, at, math.ceil(1.2 * max(np.array(canvas.shape) / shape)))
    lattice, seen = canvas.image(np.where(peaks, canvas.spectrum(total.scene()), 0)), total.seen() > 0
    comb = np.maximum(lattice - np.percentile(lattice[seen], 3), 0)
    comb /= comb[seen].mean()
    images = canvas.spectrum(lattice), canvas.spectrum(comb)
    taper, width = _taper(shape, 0.05), min(1 / reach, min(shape) / 5)
    blur = np.exp(-0.5 * width**2 * (canvas.qy[:, None] ** 2 + canvas.qx[None] ** 2))
    smooth = lambda image: canvas.image(canvas.spectrum(image) * blur)[: shape[0], : shape[1]]
    inside = smooth(np.ones(shape, np.float32))
    small = tuple(min(n, fft.next_fast_len(2 * math.ceil(2 * reach * n) + 2, real=True)) for n in canvas.shape)
    rows = np.round(np.fft.fftfreq(small[0], 1 / small[0])).astype(int)
    fields = np.zeros((len(members), small[0], small[1] // 2 + 1), np.complex64)
    left = np.zeros((len(members), *(n // binning for n in shape)), np.float32)
    for row, coarse, i in zip(fields, left, members, strict=True):
        there, columns = (canvas.image(image / canvas.phase(joint.shifts[i]))[: shape[0], : shape[1]] for image in images)
        flat = np.float32(canvas.scale[i] * canvas.rate)
        rest = canvas.counts[i] - flat * (1 + there)
        trimmed = rest[: left.shape[1] * binning, : left.shape[2] * binning]
        coarse[:] = trimmed.reshape(left.shape[1], binning, left.shape[2], binning).sum(axis=(1, 3)) + flat * binning**2
        rest = (rest - smooth(rest) / inside) * columns
        rest = (rest - smooth(rest) / inside) * taper
        row[:] = (canvas.spectrum(rest) * canvas.phase(joint.shifts[i]))[rows, : row.shape[1]]
    frequency = np.hypot(rows[:, None] / canvas.shape[0], np.arange(fields.shape[2])[None] / canvas.shape[1])
    passed = 1 - np.exp(-2 * (np.pi * frequency * width) ** 2)  # by what is slower being taken off
    fields *= np.where((frequency < reach) & (passed > 0.2), 1 / np.maximum(passed, 0.2), 0).astype(np.float32)
    noise = canvas.rate * float((taper**2).sum()) * float((comb[seen] ** 2 * (1 + lattice[seen])).mean())
    return fields, frequency, noise, left


def _modulation_weight(fields: np.ndarray, frequency: np.ndarray, noise: float, runs: list[np.ndarray], canvas: _Canvas) -> np.ndarray:
    """Weight P/(N(N + nP)) of every mode, P by rings from the sums of runs; ``frequency`` is 1 at the end of the band."""
    lengths = np.array([len(run) for run in runs], float)
    double = np.broadcast_to(np.where(np.arange(fields.shape[2]) == 0, 1.0, 2.0), fields.shape[1:])
    excess = sum(np.abs(fields[run].sum(axis=0)) ** 2 for run in runs) - noise * lengths.sum()
    used = (frequency < 1) & (np.abs(fields).max(axis=0) > 0)
    ring = np.where(used, np.minimum(frequency * _MODULATION_RINGS, _MODULATION_RINGS - 1).astype(int), _MODULATION_RINGS)
    modes, total = (np.bincount(ring.ravel(), v.ravel(), minlength=_MODULATION_RINGS + 1) for v in (double, excess * double))
    modes[-1] = total[-1] = 0
    independent = np.maximum(modes / 2 * canvas.area / float(np.prod(canvas.shape)), 1)
    mean = total / np.maximum(modes, 1)
    error = noise * np.sqrt((lengths**2).sum() / independent)
    snr = (np.where(mean > error, mean, 0) / (lengths**2).sum() / noise)[ring]
    return (snr / (1 + len(fields) * snr) / noise).astype(np.float32) * np.float32(canvas.area / np.prod(canvas.shape))


def _pair_tables(fields: np.ndarray, weight: np.ndarray, size: np.ndarray, window: float) -> tuple[np.ndarray, np.ndarray]:
    """Scores (n, n, y, x) of all pairs for displacements up to ``window`` px, and their pitch (2,) in px; ``size`` is the canvas."""
    from scipy import fft

    n, small = len(fields), (fields.shape[1], 2 * (fields.shape[2] - 1))
    pitch = size / np.array(small)
    half = np.minimum(window / pitch, 0.45 * np.array(small)).astype(int)
    at = np.ix_(*(np.arange(-h, h + 1) % m for h, m in zip(half, small, strict=True)))
    tables = np.zeros((n, n, *(2 * half + 1)), np.float32)
    for j in range(n):
        left = np.conj(fields[j]) * weight * np.float32(np.prod(small))
        for k in range(j + 1, n):
            tables[j, k] = fft.irfft2(left * fields[k], small)[at]
            tables[k, j] = tables[j, k, ::-1, ::-1]
    return tables, pitch


def _superlattice(joint: _Joint, q: np.ndarray, power: np.ndarray, translations: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Amplitudes (n, m) of reflections in all members, and weights (m,), 0 for those that no translation breaks."""
    canvas, members = joint.canvas, joint.members
    taper = _taper(canvas.frame_shape, 0.125)
    waves = [np.exp(-1j * np.outer(q[:, axis], np.arange(size))).astype(np.complex64) for axis, size in enumerate(canvas.frame_shape)]
    amplitude = lambda image: np.sum((waves[0] @ image) * waves[1], axis=1)
    box = amplitude(taper) * canvas.rate
    amplitudes = np.array([amplitude(canvas.counts[i] * taper) - canvas.scale[i] * box for i in members])
    amplitudes *= np.exp(1j * (joint.shifts[members] @ q.T))
    n, noise = len(members), float((taper**2).sum()) * canvas.rate
    snr = np.maximum(np.abs(amplitudes.sum(axis=0)) ** 2 - n * noise, 0) / n**2 / noise
    phase = np.cos(translations @ q.T)
    common = phase @ power > 0.5 * power.sum()
    broken = np.abs(1 - phase[common]).max(axis=0) > 0.5
    return amplitudes, np.where(broken, snr / (1 + n * snr) / noise, 0)


# --- the joint solution ------------------------------------------------------------------


@dataclass(frozen=True)
class _DriftPrior:
    """Steps between frames: a normal drift, or with small probability a jump (heavy-tailed)."""

    step: np.ndarray
    spread: float

    def log_density(self, displacement: np.ndarray, gap: np.ndarray | int) -> np.ndarray:
        """Log density of displacements (..., 2) over ``gap`` frames."""
        variance = self.spread**2 * gap
        away2 = np.sum((displacement - self.step * np.asarray(gap)[..., None]) ** 2, axis=-1)
        drift = np.exp(-away2 / (2 * variance)) / (2 * np.pi * variance)
        jump = _JUMP_LENGTH_PX / (2 * np.pi * (_JUMP_LENGTH_PX**2 + away2) ** 1.5)
        share = np.minimum(0.5, _JUMP_PROBABILITY * np.asarray(gap))
        return np.log((1 - share) * drift + share * jump)


def _best_path(
    places: list[np.ndarray], values: list[np.ndarray], frames: np.ndarray, prior: _DriftPrior
) -> tuple[np.ndarray, np.ndarray, float]:
    """The most probable choice of one peak a frame, for each the probability of a peak elsewhere, and the log evidence.

    Viterbi's algorithm for the first, forward-backward sums for the others.
    """
    from scipy.special import logsumexp

    links = [prior.log_density(b[None] - a[:, None], int(g)) for a, b, g in zip(places[:-1], places[1:], np.diff(frames), strict=True)]
    best, back, ahead = values[0], [], [values[0]]
    for link, value in zip(links, values[1:], strict=True):
        table = best[:, None] + link
        back.append(np.argmax(table, axis=0))
        best = table.max(axis=0) + value
        ahead.append(logsumexp(ahead[-1][:, None] + link, axis=0) + value)
    path = [int(np.argmax(best))]
    for pointer in reversed(back):
        path.append(int(pointer[path[-1]]))
    path = path[::-1]
    behind = [np.zeros(len(values[-1]))]
    for link, value in zip(links[::-1], values[:0:-1], strict=True):
        behind.append(logsumexp(link + (value + behind[-1])[None], axis=1))
    total = [a + b for a, b in zip(ahead, behind[::-1], strict=True)]
    elsewhere = [1 - np.exp(t[k] - logsumexp(t)) for t, k in zip(total, path, strict=True)]
    return np.array([p[k] for p, k in zip(places, path, strict=True)]), np.clip(elsewhere, 0, 1), float(logsumexp(ahead[-1]))


def _incoherent_power(canvas: _Canvas, members: np.ndarray) -> np.ndarray:
    """Spectral density of the scene from the mean power of single frames, which knows no shifts."""
    power = np.mean([np.abs(canvas.moved(int(i), np.zeros(2))) ** 2 for i in members], axis=0)
    oversampling = float(np.prod(canvas.shape)) / canvas.area
    return _signal_power(power, float(canvas.totals[members].mean()), oversampling, len(members)) / canvas.area


def _first_path(canvas: _Canvas, members: np.ndarray, reach: np.ndarray) -> np.ndarray:
    """Shifts (n, 2) of members, each against the sum of those before it, drift preferred to jumps."""
    shifts, scene = np.zeros((canvas.n, 2)), None
    total = _Sum(canvas)
    power, prior = _incoherent_power(canvas, members), _DriftPrior(np.zeros(2), _START_SPREAD_PX)
    total.add(int(members[0]), shifts[members[0]])
    for before, i in itertools.pairwise(members):
        scene, seen = total.scene(power, scene, rounds=8 if scene is None else 3), total.seen()
        match = _Match(canvas, scene, seen)
        window = shifts[before], np.minimum(reach, _STEP_PX)
        nearest = _peaks(match, (canvas.spectra[i], canvas.box, 0 * canvas.box), *window)[0][0]
        places, values = _peaks(match, (canvas.spectra[i], canvas.box, canvas.worth(int(i), scene, nearest)), *window)
        shifts[i] = places[np.argmax(values + prior.log_density(places - shifts[before], int(i - before)))]
        shifts[i] = np.clip(shifts[i], -reach, reach)
        canvas.scale[i] = canvas.scale_at(int(i), scene, seen, shifts[i])
        total.add(int(i), shifts[i])
    return shifts


@dataclass
class _Joint:
    """The state of a joint registration: shifts (n, 2) of the frames in ``members`` on a canvas."""

    canvas: _Canvas
    members: np.ndarray
    shifts: np.ndarray
    elsewhere: np.ndarray
    prior: _DriftPrior
    jumps: list[dict] = field(default_factory=list)
    beyond: np.ndarray = field(default_factory=lambda: np.zeros(0, bool))  # which frames drift as far as is looked for
    about: np.ndarray | float = 0.0  # shifts (n, 2) that are expected: the drift prior is of what is off them

    def way(self) -> np.ndarray:
        """The members' shifts (m, 2) less those expected."""
        return (self.shifts - self.about)[self.members]

    def total(self, leave_out: set[int] | frozenset[int] = frozenset()) -> _Sum:
        total = _Sum(self.canvas)
        for i in self.members:
            if int(i) not in leave_out:
                total.add(int(i), self.shifts[i])
        return total

    def power(self, segments: list[np.ndarray] | None = None) -> np.ndarray:
        """Spectral density of the scene from the sums of segments between jumps: a segment in a wrong cell does not lower it."""
        canvas, noise, coverage2 = self.canvas, 0.0, 0.0
        squares: Any = 0.0
        for segment in self.segments() if segments is None else segments:
            total = _Sum(canvas)
            for i in segment:
                total.add(int(i), self.shifts[i])
            squares = squares + np.abs(total.spectrum) ** 2
            noise += float(canvas.totals[segment].sum())
            coverage2 += float(np.sum(total.coverage.astype(np.float64) ** 2))
        return _signal_power(squares, noise, float(np.prod(canvas.shape)) / canvas.area) / coverage2

    def leave_one_out(self) -> Any:
        """Each member with the scene that the others show, and where: (frame, scene, seen)."""
        total = self.total()
        scene = total.scene(rounds=12)
        for i in self.members:
            total.add(int(i), self.shifts[i], -1)
            yield int(i), total.scene(start=scene, rounds=4), total.seen()
            total.add(int(i), self.shifts[i])

    def choose_peaks(self) -> None:
        """All frames choose among their best peaks together, under the drift that they show."""
        places, values, scale = [], [], self.canvas.scale.copy()
        for i, scene, seen in self.leave_one_out():
            match = _Match(self.canvas, scene, seen)
            frame = self.canvas.spectra[i], self.canvas.box, self.canvas.worth(i, scene, self.shifts[i])
            p, v = _peaks(match, frame, self.shifts[i], np.array([_STEP_PX, _STEP_PX]))
            places.append(p)
            values.append(v)
            scale[i] = self.canvas.scale_at(i, scene, seen, self.shifts[i])
        self.canvas.scale = scale / np.median(scale[self.members])
        solutions = []
        for spread in _SPREADS_PX:
            step = np.zeros(2)
            for _ in range(2):
                prior = _DriftPrior(step, spread)
                path, elsewhere, evidence = _best_path(places, values, self.members, prior)
                solutions.append((evidence, path, elsewhere, prior))
                step = np.median(np.diff(path, axis=0) / np.diff(self.members)[:, None], axis=0)
        _, self.shifts[self.members], self.elsewhere[self.members], self.prior = max(solutions, key=lambda solution: solution[0])

    def segments(self) -> list[np.ndarray]:
        """Members between jumps: steps far outside of the drift."""
        if len(self.members) < 3:
            return [self.members]
        prior = self.prior
        gaps = np.diff(self.members)[:, None]
        away = np.linalg.norm(np.diff(self.way(), axis=0) - prior.step * gaps, axis=1)
        cuts = np.flatnonzero(away > np.maximum(4 * prior.spread * np.sqrt(gaps[:, 0]), 1.5)) + 1
        return np.split(self.members, cuts)

    def settle_cells(self) -> bool:
        """Move runs of members to the lattice cells where they belong; True if one moved.

        Of all runs and all translations of the lattice the likeliest are compared by pair scores, drift prior
        and the evidence of the whole stack together, until none gains. Then what lies on one side of
        a jump, and every segment, is compared likewise at the peaks of its own likelihood.
        """
        moved = False
        for _ in range(3):
            scores = _CellScores.of(self)
            again = scores is not None and self._move_runs(scores)
            again |= self._move_segments(scores)
            moved |= again
            if not again:
                break
        return moved

    def _move_runs(self, scores: _CellScores, most: int = 30) -> bool:
        moved = False
        for _ in range(most):
            here, moves = scores.evidence(), scores.moves(self)
            gains = [m.gain + scores.evidence(m.members, m.displacement) - here for m in moves[:_COMPARED_MOVES]]
            best = int(np.argmax(gains)) if gains else 0
            if not gains or gains[best] < _LEAST_GAIN:
                self._note_doubts(moves, gains)
                return moved
            scores.move(self, moves[best].members, moves[best].displacement)
            moved = True
        return moved

    def _note_doubts(self, moves: list[_Move], gains: list[float]) -> None:
        """Probability of another cell for every member, from the moves that were not made."""
        weight = np.zeros(self.canvas.n)
        for move, gain in itertools.zip_longest(moves, gains):
            weight[move.members] += math.exp(min(0.0, move.gain if gain is None else gain))
        self.elsewhere = np.where(weight > 0, weight / (1 + weight), 0)

    def _move_segments(self, scores: _CellScores | None) -> bool:
        segments, known = self.segments(), {jump["frame"]: jump for jump in self.jumps}
        self.jumps, moved = [], False
        for k in range(1, len(segments)):
            frame = int(segments[k][0])
            if known.get(frame, {}).get("margin_nats", 0) < _CLEAR_NATS:
                step, margin = self._settle(min(np.concatenate(segments[:k]), np.concatenate(segments[k:]), key=len), scores)
                moved |= step
                known[frame] = {"frame": frame, "margin_nats": margin}
            self.jumps.append(known[frame])
        for segment in segments[1:-1]:
            moved |= self._settle(segment, scores)[0]
        return moved

    def _settle(self, run: np.ndarray, scores: _CellScores | None) -> tuple[bool, float]:
        step, margin = self._test_segment(run, scores)
        if np.linalg.norm(step) < 1:
            return False, margin
        if scores is None:
            self.shifts[run] += step
        else:
            scores.move(self, run, step)
        return True, margin

    def _test_segment(self, segment: np.ndarray, scores: _CellScores | None) -> tuple[np.ndarray, float]:
        """Most probable common displacement of a segment given all other frames, and its margin (nats) over the next.

        Candidates are peaks of the segment's likelihood against the scene of the others. They are
        compared by the evidence of the whole stack with the segment there, the drift prior and the pair scores.
        """
        canvas = self.canvas
        total = self.total(leave_out={int(i) for i in segment})
        scene = total.scene(rounds=12)
        parts = [(canvas.spectra[i], np.float32(canvas.scale[i]) * canvas.box, canvas.worth(i, scene, self.shifts[i])) for i in segment]
        frame = tuple(sum(part[k] * canvas.phase(self.shifts[i]) for part, i in zip(parts, segment, strict=True)) for k in range(3))
        reach = np.full(2, 40 if scores is None else max(40, scores.window))
        places, values = _peaks(_Match(canvas, scene, total.seen()), frame, np.zeros(2), reach)
        here = np.linalg.norm(places, axis=1)
        likely = (values > values[0] - _FRAME_NATS * (8 + len(segment))) & (np.arange(len(values)) < _COMPARED_MOVES + 2) | (here < 0.7)
        likely[np.argmax([self._step_prior(segment, place) for place in places])] = True
        if here.min() > 0.7:
            places, likely = np.vstack([np.zeros(2), places]), np.append(True, likely)
        places = places[likely]
        if len(places) == 1:
            return places[0], float(values[0] - values[1]) if len(values) > 1 else _FRAME_NATS * len(segment)
        score = np.array([self._step_prior(segment, place) for place in places])
        if scores is None:
            power = self.power()
            score += [self._evidence_with(total, segment, place, power) for place in places]
        else:
            score += [scores.evidence(segment, place) + scores.gain(segment, place) for place in places]
        score[np.linalg.norm(places, axis=1) < 0.7] += _LEAST_GAIN  # no endless moving between equals
        order = np.argsort(score)[::-1]
        return places[order[0]], float(score[order[0]] - score[order[1]])

    def _evidence_with(self, total: _Sum, segment: np.ndarray, displacement: np.ndarray, power: np.ndarray) -> float:
        for i in segment:
            total.add(int(i), self.shifts[i] + displacement)
        value = total.evidence(power)
        for i in segment:
            total.add(int(i), self.shifts[i] + displacement, -1)
        return value

    def _step_prior(self, segment: np.ndarray, displacement: np.ndarray) -> float:
        """Log prior of the steps into and out of a displaced segment."""
        first, last = (int(np.flatnonzero(self.members == i)[0]) for i in (segment[0], segment[-1]))
        value, way = 0.0, self.way()
        for a, b, sign in ((first - 1, first, 1), (last, last + 1, -1)):
            if a >= 0 and b < len(self.members):
                gap = int(self.members[b] - self.members[a])
                value += float(self.prior.log_density(way[b] - way[a] + sign * displacement, gap))
        return value

    def climb(self) -> tuple[float, np.ndarray]:
        """Move every frame to the maximum of its own likelihood nearby; rms move, and -∂∂L of every frame (n, 2, 2)."""
        new, information = self.shifts.copy(), np.zeros((self.canvas.n, 2, 2))
        scale = self.canvas.scale.copy()
        for i, scene, seen in self.leave_one_out():
            spectrum = _likelihood(self.canvas, i, scene, seen, self.shifts[i])
            place, _, information[i] = _climb(self.canvas, spectrum, self.shifts[i])
            if np.linalg.norm(place - self.shifts[i]) < 1.5:
                new[i] = place
            scale[i] = self.canvas.scale_at(i, scene, seen, self.shifts[i])
        move = new - self.shifts
        self.shifts, self.canvas.scale = new, scale / np.median(scale[self.members])
        return float(np.sqrt(np.mean(move[self.members] ** 2))), information

    def contrasts(self) -> tuple[np.ndarray, np.ndarray]:
        """Contrast of every frame relative to the scene of the others, and its standard error (n,)."""
        contrast, error = np.zeros(self.canvas.n), np.full(self.canvas.n, np.inf)
        canvas = self.canvas
        for i, scene, seen in self.leave_one_out():
            flat = canvas.scale[i] * canvas.rate
            there = canvas.image(canvas.spectrum(scene) / canvas.phase(self.shifts[i]))[: canvas.frame_shape[0], : canvas.frame_shape[1]]
            there = there * canvas.under(seen, self.shifts[i])
            energy = flat * float(np.sum(there**2))
            if energy > 1e-6:
                contrast[i] = float(np.sum((canvas.counts[i] - flat) * there)) / energy
                error[i] = 1 / math.sqrt(energy)
        return contrast, error

    def noise_factor(self) -> float:
        """Variance from frame to frame of what the scene does not explain, over that of Poisson counts, where it matters.

        That is at the frequencies that tell the shift. 1 for counts; more where a detector correlates
        its noise or frames are distorted.
        """
        canvas, n = self.canvas, len(self.members)
        squares: Any = 0.0
        mean: Any = 0.0
        weight: Any = 0.0
        for i, scene, seen in self.leave_one_out():
            spectrum = canvas.spectrum(scene)
            there = canvas.image(spectrum / canvas.phase(self.shifts[i]))[: canvas.frame_shape[0], : canvas.frame_shape[1]]
            rest = (canvas.counts[i] - canvas.scale[i] * canvas.rate * (1 + there)) * canvas.under(seen, self.shifts[i])
            rest = canvas.spectrum(rest) * canvas.phase(self.shifts[i])
            squares, mean = squares + np.abs(rest) ** 2, mean + rest / n
            weight = weight + (canvas.qy[:, None] ** 2 + canvas.qx[None] ** 2) * np.abs(spectrum) ** 2 * canvas.double
        weight = _smoothed(weight.astype(np.float32), 5)
        if not weight.any():
            return 1.0
        variance = np.maximum(squares - n * np.abs(mean) ** 2, 0) / (n - 1)
        return float(np.sum(weight * variance) / np.sum(weight)) / float(canvas.totals[self.members].mean())


def _tight_canvas(counts: np.ndarray, shifts: np.ndarray, members: np.ndarray) -> tuple[_Canvas, np.ndarray]:
    """A canvas just large enough for the shifts found, and the shifts about its middle."""
    low, high = shifts[members].min(axis=0), shifts[members].max(axis=0)
    middle = np.round((low + high) / 2)
    return _Canvas(counts, (high - low) / 2 + _TIGHT_ROOM_PX), shifts - middle


def _settled(counts: np.ndarray, members: np.ndarray, reach: np.ndarray, about: np.ndarray | None = None) -> _Joint:
    """Members of a stack in their lattice cells, to the pixel; ``reach`` (2,) is the largest shift that is looked for, in px.

    ``about`` (n, 2) are the shifts, where they are known but for lattice cells.
    """
    shifts = _first_path(_Canvas(counts, reach + _ROOM_PX), members, reach) if about is None else about
    beyond = (np.abs(shifts).max(axis=1) > reach[0] - 3) & (about is None)
    canvas, shifts = _tight_canvas(counts, shifts, members)
    joint = _Joint(canvas, members, shifts, np.zeros(len(counts)), _DriftPrior(np.zeros(2), _START_SPREAD_PX), beyond=beyond)
    joint.about = 0.0 if about is None else shifts.copy()
    for _ in range(3):
        before = joint.shifts.copy()
        if about is None:
            joint.choose_peaks()
        if not joint.settle_cells() or np.abs(joint.shifts - before).max() < 1.5:
            break
    joint.beyond = beyond & (np.abs(joint.shifts - joint.shifts[members[0]]).max(axis=1) > reach[0] - 3)
    return joint


def _solve(counts: np.ndarray, members: np.ndarray, reach: np.ndarray, about: np.ndarray | None = None) -> tuple[_Joint, np.ndarray]:
    """Joint shifts of members of a stack of counts (n, y, x) to the sub-pixel maximum, and -∂∂L of every frame.

    ``reach`` (2,) is the largest shift that is looked for, in px; a third of the frame first, because few drift farther.
    ``about`` (n, 2) are the shifts, where they are known but for lattice cells.
    """
    near = np.minimum(reach, 0.33 * min(counts.shape[1:]))
    joint = _settled(counts, members, near, about)
    if np.any(reach > near) and joint.beyond.any():
        joint = _settled(counts, members, reach)
    for _ in range(5):
        move, information = joint.climb()
        sharpness = np.linalg.eigvalsh(np.mean(information[members], axis=0))[0]
        if move < max(0.002, 0.1 / math.sqrt(max(sharpness, 1e-6))):
            break
    return joint, information


# --- the stack ---------------------------------------------------------------------------


def _weak_frames(joint: _Joint) -> tuple[dict[int, str], np.ndarray, float]:
    """Members whose lattice is not that of the others, the contrasts (n,), and the median signal-to-noise of a frame."""
    contrast, error = joint.contrasts()
    members = joint.members
    usual = float(np.median(contrast[members]))
    out = {}
    for i in members:
        if len(members) > 3 and contrast[i] < 0.5 * usual and (usual - contrast[i]) > 4 * error[i]:
            share = contrast[i] / usual
            out[int(i)] = f"foreign or blurred: shows {share:.2f} ± {error[i] / usual:.2f} of the others' contrast"
    return out, contrast, usual / float(np.median(error[members]))


def _lost_frames(joint: _Joint, reach: np.ndarray) -> dict[int, str]:
    """Members that drift farther than is looked for, and those beyond them: only the longest run before or after is kept."""
    members = joint.members
    if not joint.beyond[members].any():
        return {}
    runs = np.split(members, np.flatnonzero(np.diff(joint.beyond[members].astype(int))) + 1)
    kept = max((run for run in runs if not joint.beyond[run[0]]), key=len, default=members[:0])
    why = f"drifts beyond {reach[0]:.0f} px, the largest shift that is looked for (max_shift_px), or follows frames that do"
    return {int(i): why for i in members if i not in kept}


def _axis_variance(information: np.ndarray) -> float:
    """The least variance (px²) of a shift along an axis, the mean of y and x, for its Fisher information (2, 2)."""
    return float(np.trace(np.linalg.inv(information))) / 2


def _off_group_px(shifts: np.ndarray, size: int) -> float:
    """How far (px, standard deviation) a frame may lie off its group of ``size`` by what drift does between groups at shifts (n, 2)."""
    return float(np.median(np.abs(np.diff(shifts, axis=0)))) / size * math.sqrt((size**2 - 1) / 12)


def _why_grouped(size: int) -> str:
    """Why so many neighbours share a shift; "" where each frame has its own."""
    return "" if size == 1 else f"single frames are too noisy: {size} neighbours share a shift"


def _position_sigma(joint: _Joint, information: np.ndarray) -> tuple[np.ndarray, float]:
    """Standard deviation of each frame's position along an axis (n,), and the floor of one frame with the scene known.

    The curvature of L is noisy for one frame: its mean over the frames, scaled by the beam
    current, serves all. Noise beyond that of Poisson counts widens it. Uncertainty that all frames
    share is left out: 1/J (1 - 1/n).
    """
    members, scale = joint.members, joint.canvas.scale
    mean = np.mean(information[members] / scale[members, None, None], axis=0)
    variance = _axis_variance(mean) * max(1.0, joint.noise_factor())
    total = joint.total()
    rate = joint.canvas.rate * (1 + joint.canvas.under(total.scene(rounds=12), joint.shifts[members].mean(axis=0)))
    floor = math.sqrt(_axis_variance(poisson_shift_information(rate)))
    return np.sqrt(variance * (1 - 1 / len(members)) / np.maximum(scale, 1e-6)), floor


def _register_counts(
    counts: np.ndarray, members: np.ndarray, reach: np.ndarray, take_in: frozenset[int] = frozenset(), about: np.ndarray | None = None
) -> tuple[_Joint, dict[int, str], np.ndarray, float, np.ndarray] | None:
    """Joint solution without foreign frames, those, contrasts, signal-to-noise and information; None where nothing shows.

    Frames in ``take_in`` are not foreign whatever they show; ``about`` as in `_solve`.
    """
    foreign: dict[int, str] = {}
    for _ in range(3):
        alone = _Canvas(counts[members], np.zeros(2))
        power = _incoherent_power(alone, np.arange(len(members)))
        if float(np.sum(power * alone.double)) / alone.rate < _LEAST_SNR**2:
            return None
        joint, information = _solve(counts, members, reach, about)
        weak, contrast, snr = _weak_frames(joint)
        weak = {i: why for i, why in (weak | _lost_frames(joint, reach)).items() if i not in take_in}
        if not weak or len(members) - len(weak) < 2:
            break
        foreign |= weak
        members = np.array([i for i in members if int(i) not in weak])
    return joint, foreign, contrast, snr, information


def register_stack(
    frames: Any,
    *,
    max_shift_px: float | None = None,
    leave_out: Iterable[int] = (),
    take_in: Iterable[int] = (),
    name: str = "the stack",
    budget_bytes: float | None = None,
    work: LongWork | None = None,
    progress: Any = None,
) -> DriftSolution:
    """Joint registration of a low-dose stack of frames (n, y, x) of counts, an array or recorded frames; see `DriftSolution`.

    Where single frames do not show their lattice, 2, 4, then 8 neighbours are summed and share
    a shift; where that fails too, the solution says so and has no shifts. ``max_shift_px`` is
    the largest shift from the first frame (if not given the side of the frame, of frames over 512 px 0.6 of it).
    Frames in ``leave_out`` are not used, those in ``take_in`` are although they look foreign.

    Where the joint solution would take more than ``budget_bytes`` of memory (3 GB if not given) the frames are solved jointly segment by
    segment, the segments' sums likewise, and every frame then climbs against the sum of all. ``work`` says where
    finished segments are kept (`LongWork`), so that a run that was broken off goes on, and who does them; the results are the same,
    to the bit, with any of it and without.

    Raises
    `RecordingError` for arrays that cannot be counts (NaN, negative, all blank), `ParameterError` for frames that are not there
    or hold nothing.
    """
    from scipy import fft

    budget_bytes = _JOINT_BYTES if budget_bytes is None else budget_bytes
    frames = check_stack(frames, name, budget_bytes)
    for strange in (k for k in (*leave_out, *take_in) if not (isinstance(k, int) and 0 <= k < len(frames))):
        raise ParameterError(f"{name}: frame {strange} by hand: expected whole numbers from 0 to {len(frames) - 1}")
    leave_out, take_in = frozenset(leave_out), frozenset(take_in)
    if leave_out & take_in:
        raise ParameterError(f"{name}: frame {min(leave_out & take_in)} is both left out and taken in by hand, expected one of these")
    if leave_out and len(frames) - len(leave_out) < 2:
        raise ParameterError(f"{name}: {len(leave_out)} of {len(frames)} frames left out by hand, expected two at least to be left")
    empty = [i for i in sorted(take_in) if not frames[i].any()]
    if empty:
        raise ParameterError(f"{name}: frame {empty[0]} taken in by hand holds no counts: there is nothing in it to register")
    with fft.set_workers(numba.get_num_threads()):
        if _joint_bytes(len(frames), frames.shape[1:]) <= budget_bytes:
            return _register(frames, max_shift_px, leave_out, take_in)
        return _register_long(frames, max_shift_px, leave_out, take_in, budget_bytes, work, progress)


class _Given(NamedTuple):
    """A stack to be registered: counts of a grey value, notes, frames left out with the reason and the others, their means (n,)."""

    per_unit: float
    notes: tuple[str, ...]
    left_out: dict[int, str]
    members: np.ndarray
    means: np.ndarray
    reach_px: float


def _given(frames: Any, max_shift_px: float | None, leave_out: frozenset[int], take_in: frozenset[int]) -> _Given:
    per_unit, note = counts_per_unit(frames)
    means, side = frame_means(frames), min(frames.shape[1:])
    left_out = {i: why for i, why in unusable_frames(means).items() if i not in take_in} | dict.fromkeys(sorted(leave_out), "by hand")
    members = np.array([i for i in range(len(frames)) if i not in left_out])
    return _Given(per_unit, (note,) if note else (), left_out, members, means, max_shift_px or (side if side <= 512 else 0.6 * side))


def _register(frames: np.ndarray, max_shift_px: float | None, leave_out: frozenset[int], take_in: frozenset[int]) -> DriftSolution:
    """`register_stack` in one piece."""
    per_unit, notes, left_out, members, _, reach_px = _given(frames, max_shift_px, leave_out, take_in)
    if len(members) < 2:
        return _refusal(frames, left_out, per_unit, notes, f"{len(members)} usable frame: two at least are needed to see drift")
    counts = frames if per_unit == 1 else frames.astype(np.float32) * np.float32(per_unit)
    reach = np.full(2, reach_px)
    for size in (1, 2, 4, 8):
        groups = [members[k : k + size] for k in range(0, len(members), size)]
        if size > 1 and len(groups) < 4:
            break
        summed = counts if size == 1 else np.stack([counts[g].sum(axis=0, dtype=np.float32) for g in groups])
        kept = take_in if size == 1 else frozenset(k for k, group in enumerate(groups) if take_in & set(group.tolist()))
        found = _register_counts(summed, members if size == 1 else np.arange(len(groups)), reach, kept)
        if found is not None and found[3] >= _LEAST_SNR:
            n_jumps, n_steps = len(found[0].jumps), len(found[0].members) - 1
            if n_jumps > 3 and n_jumps > 0.25 * n_steps:
                notes += (f"{n_jumps} of {n_steps} steps are jumps: cells are uncertain (steps over {_STEP_PX} px are not found)",)
            return _solution(frames, groups, found, left_out, per_unit, notes)
    return _refusal(frames, left_out, per_unit, notes, f"{counts[members].mean():.3g} {_NOTHING_SHOWS}")


_NOTHING_SHOWS = "counts a pixel and frame: nothing stands out of the noise in frames or sums of them, they cannot be registered"


def _refusal(frames: np.ndarray, left_out: dict[int, str], per_unit: float, notes: tuple, reason: str) -> DriftSolution:
    n = len(frames)
    used = np.array([i not in left_out for i in range(n)])
    nothing = np.zeros(n)
    return DriftSolution(np.zeros((n, 2)), nothing, used, left_out, False, reason, 0, nothing, [], None, nothing, per_unit, notes)


def _solution(frames: np.ndarray, groups: list[np.ndarray], found: tuple, left_out: dict, per_unit: float, notes: tuple) -> DriftSolution:
    """What was found for groups of frames, told for frames; the first frame used is the origin."""
    joint, foreign, contrast, _, information = found
    size = len(groups[0])
    single = size == 1
    sigma, floor = _position_sigma(joint, information)
    n = len(frames)
    index = np.full(n, -1)
    for k, group in enumerate(groups):
        index[group] = group[0] if single else k
    left_out = dict(left_out)
    for k, why in foreign.items():
        left_out |= {int(i): why for i in np.flatnonzero(index == k)}
    used = np.array([i not in left_out for i in range(n)])
    first = int(np.flatnonzero(used)[0])
    pick = lambda values: np.where(used.reshape(-1, *[1] * (values.ndim - 1)), values[index], 0.0)
    shift = pick(joint.shifts - joint.shifts[index[first]])
    jumps = [jump | {"frame": jump["frame"] if single else int(groups[jump["frame"]][0])} for jump in joint.jumps]
    if not single:
        sigma = np.hypot(sigma, _off_group_px(joint.shifts[joint.members], size))
    return DriftSolution(
        shift, pick(sigma), used, left_out, True, _why_grouped(size), size, pick(joint.elsewhere), jumps, floor * math.sqrt(size),
        pick(contrast), per_unit, notes,
    )  # fmt: skip


def sum_frames(
    frames: Any, shift_px: np.ndarray, used: np.ndarray, weight: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray, tuple[int, int]]:
    """Sum of frames moved back by their shifts to the nearest pixel: every count is kept, none is spread.

    Returns the sum (y, x), the coverage (frames a pixel), and the position (y, x) of the
    first frame's pixel (0, 0) in them. No wrap-around: the images are as large as needed.
    With ``weight`` (n,) both count every frame that often.
    """
    chosen = np.flatnonzero(used)
    whole = -np.round(shift_px).astype(int)
    low, high = whole[chosen].min(axis=0), whole[chosen].max(axis=0)
    shape = tuple(np.array(frames.shape[1:]) + high - low)
    total = np.zeros(shape, np.float64 if frames.dtype.kind == "f" or weight is not None else np.uint64)
    coverage = np.zeros(shape, np.uint32 if weight is None else np.float64)
    for i, frame in ((i, frame) for index, block in _blocks(frames, chosen) for i, frame in zip(index, block, strict=True)):
        y, x = whole[i] - low
        here = np.s_[y : y + frames.shape[1], x : x + frames.shape[2]]
        once = 1 if weight is None else weight[i]
        total[here] += frame.astype(total.dtype) * once
        coverage[here] += once
    return total, coverage, (int(-low[0]), int(-low[1]))


def placed_frame(image: np.ndarray, by: np.ndarray) -> np.ndarray:
    """An image (y, x) moved by whole pixels, its mean where nothing comes in."""
    out = np.full(image.shape, image.mean())
    to, source = (tuple(slice(max(0, s * b), n + min(0, s * b)) for b, n in zip(by, image.shape, strict=True)) for s in (1, -1))
    out[to] = image[source]
    return out


def covered_average(total: np.ndarray, coverage: np.ndarray, least_share: float = 0.5) -> tuple[np.ndarray, tuple[int, int]]:
    """Mean counts a frame over the largest box where at least this share of the frames lies; and the box's corner (y, x)."""
    good = coverage >= least_share * coverage.max()
    top, bottom, left, right = 0, good.shape[0], 0, good.shape[1]
    while not good[top:bottom, left:right].all():
        part = good[top:bottom, left:right]
        missing = [(~part[0]).sum() / part.shape[1], (~part[-1]).sum() / part.shape[1]]
        missing += [(~part[:, 0]).sum() / part.shape[0], (~part[:, -1]).sum() / part.shape[0]]
        side = int(np.argmax(missing))
        top, bottom, left, right = top + (side == 0), bottom - (side == 1), left + (side == 2), right - (side == 3)
    box = np.s_[top:bottom, left:right]
    return total[box] / coverage[box], (top, left)


# --- stacks that are larger than memory ---------------------------------------------------

# Consecutive frames, few enough, are solved jointly as above: a segment, one chunk of long work. Neighbouring segments share some
# frames, which tells how segments lie to each other but for errors of a lattice cell. Their sums are the frames of
# a shorter stack with next to no noise, which is solved in the same way, about these places: what tells cells apart is seen best there.
# At last every frame climbs to its sub-pixel maximum against the scene of the whole stack without the few frames around it.

_JOINT_BYTES = 3e9  # of memory, that a joint solution may take: what needs more goes by segments
_SEGMENT, _LEAST_SEGMENT, _SHARED = 96, 16, 8  # frames of a segment at most and at least, and those it shares with the next
_BLOCK_BYTES = 1.3e8  # of frames that are read at a time
_FIELD_PX, _FIELD_SNR = 512, 20.0  # side of the field that segments are solved in, unless frames show less than this there
_LEAST_LIKENESS = 0.7  # of that of other sums, below which the sum of a segment shows something else
_BINNING_LOSS = 0.05  # of the information on shifts, that pixels twice as large may cost where frames are larger than 1024
_LEFT_OUT = (
    "lies where no other frame does",
    "foreign or blurred: does not show what the frames around it show",
    "drifts beyond the largest shift that is looked for (max_shift_px), or follows frames that do",
    "the frames around it show nothing that stands out of the noise",
    "foreign: lies in a part of the stack that shows something else",
)


def _joint_bytes(n: int, frame_shape: tuple[int, ...]) -> float:
    """Memory that the joint solution of n frames takes at most (measured: with drift over all of a frame), with the frames."""
    return 60.0 * (n + 7) * math.prod(frame_shape) + n**2 * (6e4 if n <= 50 else 1.6e4)


def _middle(shape: Iterable[int], side: int) -> tuple[slice, slice]:
    """The middle of an image of ``shape``, of this side at most."""
    y, x = (slice((n - min(n, side)) // 2, (n + min(n, side)) // 2) for n in shape)
    return y, x


@dataclass(frozen=True)
class _Items:
    """What is registered: sums of ``groups`` of frames, their grey values times ``per_unit``, in pixels ``binning`` times as large."""

    frames: Any
    groups: list[np.ndarray]
    usable: np.ndarray
    per_unit: float = 1.0
    binning: int = 1

    @property
    def shape(self) -> tuple[int, int]:
        return tuple(n // self.binning for n in self.frames.shape[1:])

    def read(self, numbers: np.ndarray, field: tuple[slice, slice] = np.s_[:, :]) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Items of ascending numbers a few at a time: the numbers, and counts (k, y, x) of a field of them."""
        size, b = max(len(self.groups[i]) for i in numbers), self.binning
        step = max(1, int(_BLOCK_BYTES // (4 * size * math.prod(self.frames.shape[1:]))))
        for first in range(0, len(numbers), step):
            part = numbers[first : first + step]
            raw = read_frames(self.frames, np.concatenate([self.groups[i] for i in part]))
            if b > 1:
                raw = raw[:, : self.shape[0] * b, : self.shape[1] * b]
                raw = raw.reshape(len(raw), self.shape[0], b, self.shape[1], b).sum(axis=(2, 4), dtype=np.float32)
            raw = raw[(slice(None), *field)]
            raw = raw if self.per_unit == 1 else raw.astype(np.float32) * np.float32(self.per_unit)
            if size > 1:
                ends = np.cumsum([len(self.groups[i]) for i in part])[:-1]
                raw = np.stack([group.sum(axis=0, dtype=np.float32) for group in np.split(raw, ends)])
            yield part, raw

    @property
    def margin(self) -> int:
        """How far (px) an item may lie from the middle of its segment to be in its sum, which is larger by that on every side."""
        return max(8, min(self.shape) // 12)

    @property
    def sum_shape(self) -> tuple[int, int]:
        return self.shape[0] + 2 * self.margin, self.shape[1] + 2 * self.margin

    def field(self, side: int) -> tuple[slice, slice]:
        """The middle of an item, of this side at most."""
        return _middle(self.shape, side)

    def sample(self, field: tuple[slice, slice], most: int = 8) -> np.ndarray:
        """A few items (k, y, x), evenly spread, in a field."""
        usable = np.flatnonzero(self.usable)
        chosen = usable[np.unique(np.linspace(0, len(usable) - 1, most).astype(int))]
        return np.concatenate([counts for i in chosen for _, counts in self.read(np.array([i]), field)])


def _contrast_and_loss(counts: np.ndarray) -> tuple[float, float]:
    """Signal-to-noise of all that one frame shows, and the share of the information on shifts that pixels twice as large lose."""
    alone = _Canvas(counts, np.zeros(2))
    power = _incoherent_power(alone, np.arange(len(counts))) * alone.double
    told = power * (alone.qy[:, None] ** 2 + alone.qx[None] ** 2)
    passed = (np.cos(alone.qy[:, None] / 2) * np.cos(alone.qx[None] / 2)) ** 2
    inside = (np.abs(alone.qy[:, None]) < np.pi / 2) & (alone.qx[None] < np.pi / 2)
    loss = 1 - float(np.sum(told * passed * inside) / np.sum(told)) if told.any() else 1.0
    return math.sqrt(max(0.0, float(np.sum(power)) / alone.rate)), loss


def _field_of(items: _Items, budget_bytes: float) -> tuple[slice, slice]:
    """The middle of the items, so large that they show enough there to be placed, if memory allows."""
    side = _FIELD_PX
    while side < max(items.shape) and _contrast_and_loss(items.sample(items.field(side)))[0] < _FIELD_SNR:
        if _joint_bytes(_LEAST_SEGMENT, tuple(min(n, 2 * side) for n in items.shape)) > budget_bytes:
            break
        side *= 2
    return items.field(side)


@dataclass(frozen=True)
class _Segment:
    """Consecutive items that are solved together; ``own`` is the part of them (slice of all items) that no other segment has."""

    items: np.ndarray
    own: slice


def _segments_of(n: int, field: tuple[slice, slice], budget_bytes: float) -> dict[str, _Segment]:
    """Segments of n items, as long as memory allows, by name."""
    shape = tuple(part.stop - part.start for part in field)
    most = max(_LEAST_SEGMENT, max((k for k in range(2, _SEGMENT + 1) if _joint_bytes(k, shape) <= budget_bytes), default=2))
    if n <= most:
        return {"segment_0": _Segment(np.arange(n), slice(0, n))}
    shared = min(_SHARED, most // 4)
    edges = np.linspace(0, n - shared, math.ceil((n - shared) / (most - shared)) + 1).astype(int).tolist()
    found = {}
    for k, (low, high) in enumerate(itertools.pairwise(edges)):
        first, last = low + (shared // 2 if k else 0), high + (shared // 2 if high < edges[-1] else shared)
        found[f"segment_{k}"] = _Segment(np.arange(low, high + shared), slice(first, last))
    return found


def _segment_layout(items: _Items, segments: dict[str, _Segment]) -> tuple[dict, dict]:
    """Layout and chunks of `ChunkStore` for the results of `_solve_segment`."""
    k, length, summed = len(segments), max(len(s.items) for s in segments.values()), items.sum_shape
    layout = {"shift": ((k, length, 2), np.float64, 0), "code": ((k, length), np.int8, 0), "middle": ((k, 2), np.int64, 0)}
    layout |= {name: ((k, length), np.float64, 0) for name in ("elsewhere", "jump_nats")}
    layout |= {"sum": ((k, *summed), np.float32, 0), "coverage": ((k, *summed), np.float32, 0), "snr": ((k,), np.float64, 0)}
    return layout, {name: (slice(i, i + 1),) for i, name in enumerate(segments)}


def _solve_segment(
    items: _Items, field: tuple[slice, slice], reach: np.ndarray, rate: float, take_in: frozenset[int], length: int,
    segment: _Segment, about: np.ndarray | None,
) -> dict[str, np.ndarray]:  # fmt: skip
    """Joint solution of a segment, in a field of its frames, and the sum of what is its own, in full: the arrays of `_segment_layout`.

    ``code`` numbers the reasons in `_LEFT_OUT`, -1 is no item; ``jump_nats`` is the margin of a jump before an item, else 0. In the sum
    an item at the shift ``middle`` has its pixel (0, 0) at the margin. ``rate`` is the usual mean of a pixel.
    """
    from scipy import fft

    n, margin = len(segment.items), items.margin
    out: dict[str, np.ndarray] = {
        "shift": np.zeros((length, 2)),
        "code": np.full(length, -1, np.int8),
        "middle": np.zeros(2, np.int64),
        "snr": np.zeros(()),
    }
    out |= {"elsewhere": np.zeros(length), "jump_nats": np.zeros(length)}
    out |= {"sum": np.zeros(items.sum_shape, np.float32), "coverage": np.zeros(items.sum_shape, np.float32)}
    members = np.flatnonzero(items.usable[segment.items])
    out["code"][:n] = 3
    with fft.set_workers(numba.get_num_threads()):
        counts = np.concatenate([counts for _, counts in items.read(segment.items, field)])
        kept = frozenset(k for k, i in enumerate(segment.items) if int(i) in take_in)
        found = _register_counts(counts, members, reach, kept, about) if len(members) > 1 else None
        for _ in range(2):  # the frames that it begins with may be those that are foreign
            lost = [k for k, why in found[1].items() if not why.startswith("foreign")] if found else []
            if len(lost) <= len(members) / 2:
                break
            found = _register_counts(counts, np.array(sorted(lost)), reach, kept, about)
    del counts
    if found is not None and found[3] >= _LEAST_SNR:
        joint, foreign, _, out["snr"][...], _ = found
        out["shift"][joint.members] = joint.shifts[joint.members]
        out["elsewhere"][:n] = joint.elsewhere
        out["code"][members] = 1
        out["code"][joint.members] = 0
        for k, why in foreign.items():
            out["code"][k] = 1 if why.startswith("foreign") else 2
        for jump in joint.jumps:
            out["jump_nats"][jump["frame"]] = max(1e-3, jump["margin_nats"])
        own = np.flatnonzero(out["code"][:n] == 0)
        own = own[(segment.items[own] >= segment.own.start) & (segment.items[own] < segment.own.stop)]
        if len(own):
            away = np.linalg.norm(out["shift"][own] - np.median(out["shift"][own], axis=0), axis=1)
            out["middle"][:] = np.round(out["shift"][own[np.argmin(away)]])
            own = own[np.abs(out["shift"][own] - out["middle"]).max(axis=1) < margin]
            out["sum"], out["coverage"] = _summed(items, segment.items[own], out["shift"][own] - out["middle"], rate)
    return {name: values[None] for name, values in out.items()}


def _summed(items: _Items, numbers: np.ndarray, shift: np.ndarray, rate: float) -> tuple[np.ndarray, np.ndarray]:
    """Sum and coverage of items moved back by shifts (k, 2) below the margin, on images larger by that on every side."""
    from scipy import fft

    size, margin = items.sum_shape, items.margin
    summed, coverage = np.zeros((2, *size), np.float32)
    place = dict(zip(numbers.tolist(), shift, strict=True))
    with fft.set_workers(numba.get_num_threads()):
        for part, counts in items.read(numbers):
            total = _Sum(_counts_of(rate, counts, np.full(2, margin)))
            for k, i in enumerate(part.tolist()):
                total.add(k, place[i])
            image = total.canvas.image(total.spectrum) + np.float32(rate) * total.coverage
            for result, found in ((summed, image), (coverage, total.coverage)):
                result += np.roll(found, (margin, margin), (0, 1))[: size[0], : size[1]]
    return summed, coverage


def _counts_of(rate: float, counts: np.ndarray, reach: np.ndarray) -> _Canvas:
    """A canvas whose beam currents are relative to that of frames with ``rate`` counts a pixel."""
    canvas = _Canvas(counts, reach)
    canvas.rate, canvas.scale = rate, canvas.totals / (canvas.area * rate)
    return canvas


@dataclass
class _Way:
    """Shifts (n, 2) of items, ``code`` (n,) of `_LEFT_OUT`, probability of another cell, margins of jumps (0 none), signal-to-noise.

    ``sums``, ``coverage`` and ``at`` (k, 2) are those of the segments: an item at the shift ``at`` has its pixel (0, 0) at the margin.
    ``in_sum`` (n,) are the items that are in the sums.
    """

    shift: np.ndarray
    code: np.ndarray
    elsewhere: np.ndarray
    jump_nats: np.ndarray
    snr: float
    segments: dict[str, _Segment]
    sums: np.ndarray
    coverage: np.ndarray
    at: np.ndarray
    in_sum: np.ndarray


def _way_of(
    items: _Items, reach: np.ndarray, rate: float, take_in: frozenset[int], budget_bytes: float, opened: Callable,
    scheduler: str, progress: Callable | None, about: np.ndarray | None = None, level: int = 0,
) -> _Way | None:  # fmt: skip
    """The way of items through their segments, from segments of these, and so on; None where most segments show nothing.

    ``opened`` gives a `ChunkStore` for a name, a layout and chunks.
    """
    field = _field_of(items, budget_bytes)
    segments = _segments_of(len(items.groups), field, budget_bytes)
    store = opened(f"segments_{len(items.groups[0])}_{level}", *_segment_layout(items, segments))
    length = store.arrays["code"].shape[1]
    chosen = lambda name: (segments[name], None if about is None else about[segments[name].items])
    found = finish_chunks(store, _solve_segment, (items, field, reach, rate, take_in, length), chosen, scheduler, progress)
    solved = (found["code"] == 0).sum(axis=1) > 1
    if solved.sum() <= len(segments) / 2:
        return None
    n, m = len(items.groups), items.margin
    fields = found["sum"][:, 2 * m : -2 * m, 2 * m : -2 * m]  # that all items of a sum cover
    at, agrees = _chained(found, list(segments.values()), fields)
    way = _Way(np.zeros((n, 2)), np.full(n, 3), np.zeros(n), np.zeros(n), float(np.median(found["snr"][solved])), segments,
               found["sum"], found["coverage"], at, np.zeros(n, bool))  # fmt: skip
    above = None
    if len(segments) > 1:
        sums = _Items(fields, list(np.arange(len(segments))[:, None]), solved & agrees)
        usual = float(np.median([f.mean(dtype=np.float64) for f, good in zip(fields, sums.usable, strict=True) if good] or [1.0]))
        above = _way_of(sums, reach, usual, frozenset(), budget_bytes, opened, "", None, at, level + 1) if sums.usable.sum() > 1 else None
    if above is not None and (above.code == 0).any():
        better = above.code == 0
        at = np.where(better[:, None], above.shift, at + np.median((above.shift - at)[better], axis=0))
        way.at = at
    for k, segment in enumerate(segments.values()):
        own = np.arange(segment.own.start, segment.own.stop)
        local = own - segment.items[0]
        shift = found["shift"][k, local]
        way.shift[own] = at[k] + shift - found["middle"][k]
        way.in_sum[own] = (found["code"][k, local] == 0) & (np.abs(shift - found["middle"][k]).max(axis=1) < m)
        way.code[own], way.elsewhere[own], way.jump_nats[own] = (found[name][k, local] for name in ("code", "elsewhere", "jump_nats"))
        if above is not None:
            way.elsewhere[own] = 1 - (1 - way.elsewhere[own]) * (1 - above.elsewhere[k])
            way.jump_nats[own[0]] = max(way.jump_nats[own[0]], above.jump_nats[k])
        strange = not agrees[k] or (above is not None and above.code[k] == 1)
        way.code[own] = np.where(strange & (way.code[own] == 0) & ~np.isin(own, list(take_in)), 4, way.code[own])
    return way


def _chained(found: dict[str, np.ndarray], segments: list[_Segment], fields: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Shifts (k, 2) of the middles of segments, each from the items that it shares with the one before, and which segments agree (k,).

    Where it shares none, or the sums' ``fields`` (k, y, x) then do not agree as others do (a segment that shows something else), it
    goes where its field agrees best with one of the four before.
    """
    at, lit = np.zeros((len(segments), 2)), [k for k in range(len(segments)) if (found["code"][k] == 0).sum() > 1 and fields[k].any()]
    steps, agreement, linked = {}, {}, []
    for j, k in itertools.pairwise(lit):
        good = [segments[i].items[found["code"][i, : len(segments[i].items)] == 0] for i in (j, k)]
        both = np.intersect1d(*good)
        there, here = (found["shift"][i, both - segments[i].items[0]] - found["middle"][i] for i in (j, k))
        linked += [k] if len(both) else []
        steps[k] = np.median(there - here, axis=0) if len(both) else np.zeros(2)
        agreement[k] = _agreement(fields[[j, k]], steps[k]) if len(both) else 0.0
    usual = float(np.quantile([agreement[k] for k in linked] or [0.0], 0.75))
    for n, (j, k) in enumerate(itertools.pairwise(lit)):
        at[k] = at[j] + steps[k]
        if agreement[k] < 0.5 * usual or k not in linked:
            others = {
                i: pair_shifts(fields[[i, k]], np.ones(2, bool), 0.4 * min(fields.shape[1:]))[0, 1] for i in lit[max(0, n - 3) : n + 1]
            }
            agrees = {i: _agreement(fields[[i, k]], shift) for i, shift in others.items()}
            best = max(agrees, key=lambda i: agrees[i])
            at[k], agreement[k] = at[best] + others[best], agrees[best]
    return at, np.array([k in lit and agreement.get(k, usual) >= _LEAST_LIKENESS * usual for k in range(len(segments))])


def _agreement(pair: np.ndarray, shift: np.ndarray) -> float:
    """Correlation coefficient of what two images (2, y, x) both show, the second being moved by +shift; 0 where that is little."""
    if np.any(np.abs(shift) > 0.75 * np.array(pair.shape[1:])):
        return 0.0
    first, second = _overlapping(pair, shift)
    return float(np.corrcoef(first.ravel(), second.ravel())[0, 1])


class _Scene(_Sum):
    """The aligned sum of a stack that a canvas holds a few frames of: counts less those of a flat scene, and coverage, on that canvas."""

    def __init__(self, canvas: _Canvas, data: np.ndarray, coverage: np.ndarray):
        super().__init__(canvas)
        self.spectrum, self.coverage = canvas.spectrum(data), coverage

    def most(self) -> float:
        return float(self.coverage.max())

    def counts(self) -> float:
        return self.canvas.rate * float(self.coverage.sum(dtype=np.float64))

    def seen(self) -> np.ndarray:
        return (self.coverage > 0.5).astype(np.float32)


@dataclass
class _Against(_Joint):
    """Frames that are compared with one scene of others."""

    known: tuple[np.ndarray, np.ndarray] = field(kw_only=True)  # the scene and where it is seen

    def leave_one_out(self) -> Any:
        for i in self.members:
            yield int(i), *self.known


class _Whole(NamedTuple):
    """What the segments show together, on an image whose pixel (0, 0) is ``corner`` of the scene."""

    data: np.ndarray
    coverage: np.ndarray
    corner: np.ndarray

    def window(self, low: np.ndarray, size: np.ndarray) -> _Whole:
        """A part of it, 0 where it does not reach."""
        parts = []
        first = low - self.corner
        for image in self[:2]:
            part = np.zeros(size, np.float32)
            inside = [(max(0, -f), min(s, n - f)) for f, s, n in zip(first, size, image.shape, strict=True)]
            if all(a < b for a, b in inside):
                here, there = (tuple(slice(a + f, b + f) for (a, b), f in zip(inside, off, strict=True)) for off in ((0, 0), first))
                part[here] = image[there]
            parts.append(part)
        return _Whole(parts[0], parts[1], low)


def _whole_scene(way: _Way, chosen: np.ndarray, rate: float, margin: int) -> _Whole:
    """The sums of chosen segments (k,) where they belong, a fraction of a pixel undone in Fourier space."""
    from scipy.ndimage import fourier_shift

    corner = -way.at - margin  # of the sums, in the scene
    low = np.floor(corner[chosen].min(axis=0)).astype(int) - 4
    size = np.ceil(corner[chosen].max(axis=0)).astype(int) + np.array(way.sums.shape[1:]) + 8 - low
    whole = _Whole(np.zeros(size, np.float32), np.zeros(size, np.float32), low)
    for k in np.flatnonzero(chosen):
        first = np.floor(corner[k]).astype(int)
        data = np.pad(way.sums[k] - np.float32(rate) * way.coverage[k], 4)
        part = corner[k] - first
        moved = np.fft.irfft2(fourier_shift(np.fft.rfft2(data), part, data.shape[1]), data.shape)
        here = tuple(slice(f - 4 - a, f - 4 - a + n) for f, a, n in zip(first, low, data.shape, strict=True))
        whole.data[here] += moved
        covered = np.pad(way.coverage[k], 4)
        for axis in (0, 1):
            covered = (1 - part[axis]) * covered + part[axis] * np.roll(covered, 1, axis)
        whole.coverage[here] += covered
    return whole


def _climb_segment(
    items: _Items, rate: float, numbers: np.ndarray, shift: np.ndarray, in_sum: np.ndarray, good: np.ndarray,
    whole: _Whole,
) -> dict[str, np.ndarray]:  # fmt: skip
    """Items of a segment at the sub-pixel maximum of their likelihood against the scene of all but the few around them.

    ``shift`` (n, 2) is where they are, and in the scene if they are (``in_sum``); ``good`` are those that are wanted. Returns ``shift``,
    ``information``, ``contrast`` with its ``error``, ``scale`` (beam current), and of the few together the factor of their ``noise``
    over that of counts and ``floor``, the information of a frame with the scene known.
    """
    from scipy import fft

    n = len(numbers)
    out = {"shift": shift.copy(), "information": np.zeros((n, 2, 2)), "floor": np.zeros((n, 2, 2))}
    out |= {"contrast": np.zeros(n), "error": np.full(n, np.inf), "scale": np.ones(n), "noise": np.ones(n)}
    wanted = np.flatnonzero(good)
    step = max(2, min(math.ceil(n / 8), int(_BLOCK_BYTES * 4 // (8 * math.prod(items.shape)))))
    with fft.set_workers(numba.get_num_threads()):
        for part in np.array_split(wanted, math.ceil(len(wanted) / step)) if len(wanted) else ():
            counts = np.concatenate([counts for _, counts in items.read(numbers[part])])
            middle = np.round((shift[part].min(axis=0) + shift[part].max(axis=0)) / 2)
            canvas = _counts_of(rate, counts, np.ptp(shift[part], axis=0) / 2 + _TIGHT_ROOM_PX)
            low = -np.array([(size - f) // 2 for size, f in zip(canvas.shape, canvas.frame_shape, strict=True)])
            seen = whole.window(low - middle.astype(int), np.array(canvas.shape))
            total = _Scene(canvas, *(np.roll(image, low, (0, 1)) for image in seen[:2]))
            for k, i in enumerate(part):
                if in_sum[i]:
                    total.add(k, shift[i] - middle, -1)
            total.coverage = np.maximum(total.coverage, 0)
            if total.most() < 0.5:
                continue
            members, start = np.arange(len(part)), shift[part] - middle
            known, prior = (total.scene(rounds=12), total.seen()), _DriftPrior(np.zeros(2), _START_SPREAD_PX)
            joint = _Against(canvas, members, start, np.zeros(len(part)), prior, known=known)
            for _ in range(2):
                _, information = joint.climb()
                out["scale"][part] = canvas.scale = canvas.totals / (canvas.area * rate)
            out["shift"][part], out["information"][part] = joint.shifts + middle, information
            out["contrast"][part], out["error"][part] = joint.contrasts()
            out["noise"][part] = joint.noise_factor() if len(part) > 1 else 1.0
            bright = rate * (1 + canvas.under(joint.known[0], joint.shifts.mean(axis=0)))
            out["floor"][part] = poisson_shift_information(bright)
    return out


def _register_long(
    frames: Any, max_shift_px: float | None, leave_out: frozenset[int], take_in: frozenset[int], budget_bytes: float,
    work: LongWork | None, progress: Callable | None,
) -> DriftSolution:  # fmt: skip
    """`register_stack` by segments."""
    per_unit, notes, left_out, members, means, reach = _given(frames, max_shift_px, leave_out, take_in)
    if len(members) < 2:
        return _refusal(frames, left_out, per_unit, notes, f"{len(members)} usable frame: two at least are needed to see drift")
    usable = np.isin(np.arange(len(frames)), members)
    depends = ("drift", frames.shape, members, per_unit, reach, sorted(leave_out), sorted(take_in), budget_bytes)
    folder = work.chunk_folder(*depends) if work else None
    scheduler = work.scheduler if work else ""
    with contextlib.ExitStack() as open_stores:

        def opened(name: str, layout: dict, chunks: dict) -> ChunkStore:
            store = ChunkStore(layout, chunks, folder and folder / name)
            open_stores.callback(store.close)
            return store

        for size in (1, 2, 4, 8):
            groups = list(np.arange(len(frames))[:, None]) if size == 1 else [members[k : k + size] for k in range(0, len(members), size)]
            items = _Items(frames, groups, usable if size == 1 else np.ones(len(groups), bool), per_unit)
            while max(items.shape) > 1024 and _contrast_and_loss(items.sample(items.field(1024)))[1] < _BINNING_LOSS:
                items = replace(items, binning=2 * items.binning)
            rate = float(np.median(means[members])) * per_unit * size * items.binning**2
            kept = frozenset(k for k, group in enumerate(groups) if take_in & set(group.tolist()))
            options = (np.full(2, reach / items.binning), rate, kept, budget_bytes, opened, scheduler, progress)
            way = _way_of(items, *options)
            if way is not None:
                break
        if way is None:
            return _refusal(frames, left_out, per_unit, notes, f"{means[members].mean() * per_unit:.3g} {_NOTHING_SHOWS}")
        good = (way.code == 0) & items.usable
        first = way.shift[np.flatnonzero(good)[0]]
        far = good & (np.abs(way.shift - first).max(axis=1) > reach / items.binning)
        way.code[far] = 2
        good &= ~far
        found = _climbed(items, way, good, rate, opened, scheduler, progress)
        found = {name: values.copy() for name, values in found.items()}
    return _long_solution(frames, items, way, good, found, left_out, kept, per_unit, notes)


def _climbed(
    items: _Items, way: _Way, good: np.ndarray, rate: float, opened: Callable, scheduler: str, progress: Callable | None
) -> dict[str, np.ndarray]:
    """The arrays of `_climb_segment` for all items."""
    n = len(items.groups)
    chosen = np.array([good[segment.own].any() for segment in way.segments.values()])
    whole = _whole_scene(way, chosen, rate, items.margin)
    in_sum = way.in_sum & np.repeat(chosen, [segment.own.stop - segment.own.start for segment in way.segments.values()])
    layout: dict[str, tuple] = {"shift": ((n, 2), np.float64, 0)} | {name: ((n, 2, 2), np.float64, 0) for name in ("information", "floor")}
    layout |= {name: ((n,), np.float64, 0) for name in ("contrast", "error", "scale", "noise")}
    store = opened(f"climb_{len(items.groups[0])}", layout, {name: (segment.own,) for name, segment in way.segments.items()})

    def arguments(name: str) -> tuple:
        own = way.segments[name].own
        shift = way.shift[own][good[own]] if good[own].any() else np.zeros((1, 2))
        low, high = np.floor(-shift.max(axis=0)).astype(int) - 100, np.ceil(-shift.min(axis=0)).astype(int) + np.array(items.shape) + 100
        return np.arange(own.start, own.stop), way.shift[own], in_sum[own], good[own], whole.window(low, high - low)

    return finish_chunks(store, _climb_segment, (items, rate), arguments, scheduler, progress)


def _long_solution(
    frames: Any, items: _Items, way: _Way, good: np.ndarray, found: dict[str, np.ndarray], left_out: dict[int, str], kept: frozenset[int],
    per_unit: float, notes: tuple,
) -> DriftSolution:  # fmt: skip
    """What the segments gave for items, told for frames; the first frame used is the origin."""
    size, b, n = len(items.groups[0]), items.binning, len(frames)
    index = np.full(n, -1)
    for k, group in enumerate(items.groups):
        index[group] = k
    seen = good & np.isfinite(found["error"])
    usual = float(np.median(found["contrast"][seen]))
    weak = (
        seen
        & (found["contrast"] < 0.5 * usual)
        & (usual - found["contrast"] > 4 * found["error"])
        & ~np.isin(np.arange(len(good)), list(kept))
    )
    used_item = seen & ~weak
    left_out = dict(left_out)
    for i in np.flatnonzero(index >= 0):
        k = index[i]
        if int(i) not in left_out and weak[k]:
            share, error = found["contrast"][k] / usual, found["error"][k] / usual
            left_out[int(i)] = f"foreign or blurred: shows {share:.2f} ± {error:.2f} of the others' contrast"
        elif int(i) not in left_out and not used_item[k]:
            left_out[int(i)] = _LEFT_OUT[way.code[k]]
    used = np.array([i not in left_out for i in range(n)])
    scale, information = found["scale"], found["information"][used_item]
    mean = np.mean(information / scale[used_item, None, None], axis=0)
    variance = _axis_variance(mean) * max(1.0, float(found["noise"][used_item].mean()))
    sigma = np.sqrt(variance * (1 - 1 / used_item.sum()) / np.maximum(scale, 1e-6))
    floor = math.sqrt(_axis_variance(found["floor"][used_item].mean(axis=0)))
    if size > 1:
        sigma = np.hypot(sigma, _off_group_px(found["shift"][used_item], size))
    pick = lambda values: np.where(used.reshape(-1, *[1] * (values.ndim - 1)), values[index], 0.0)
    shift = found["shift"] - found["shift"][index[int(np.flatnonzero(used)[0])]]
    jumps = [{"frame": int(items.groups[k][0]), "margin_nats": float(way.jump_nats[k])} for k in np.flatnonzero(way.jump_nats * used_item)]
    told = f"{n} frames do not fit into memory: registered in {len(way.segments)} segments, then each against the sum of all"
    told += f"; in pixels {b} times as large, which hold what the spectrum shows" if b > 1 else ""
    return DriftSolution(
        pick(shift) * b, pick(sigma) * b, used, left_out, True, _why_grouped(size), size, pick(way.elsewhere), jumps,
        floor * b * math.sqrt(size), pick(found["contrast"] / usual), per_unit, (*notes, told),
    )  # fmt: skip


# --- checks on the result ----------------------------------------------------------------


def some_frames(frames: Any, solution: DriftSolution, *, also: Iterable[int] = (), in_a_row: bool = False) -> tuple:
    """Frames that the checks below are made on: (array, solution of these, their numbers); of an array all of it.

    Of a recorded stack it is as many used frames as the checks have memory for, 60 at most, evenly spread or in a row in the
    middle, with those in ``also``; of frames over 1 megapixel all lines of the middle columns. Shifts stay as they are.
    """
    if isinstance(frames, np.ndarray):
        return frames, solution, np.arange(len(frames))
    used, (n_y, n_x) = np.flatnonzero(solution.used), frames.shape[1:]
    width = min(n_x, max(128, 2**20 // n_y))
    reach = np.ptp(solution.shift_px[used], axis=0) + 100
    most = int(np.clip(_JOINT_BYTES / 2 / (12 * (n_y + reach[0]) * (width + reach[1])), 4, 60))
    if in_a_row:
        first = max(0, (len(used) - most) // 2)
        chosen = used[first : first + most]
    else:
        chosen = used[np.unique(np.linspace(0, len(used) - 1, most).astype(int))]
    chosen = np.unique(np.concatenate([chosen, np.array(list(also), int)]))
    left = (n_x - width) // 2
    array = np.stack([frames[int(i)][:, left : left + width] for i in chosen])
    part = {name: getattr(solution, name)[chosen] for name in ("shift_px", "sigma_px", "used", "hop_probability", "contrast")}
    return array, replace(solution, left_out={}, **part), chosen


def pair_shifts(frames: np.ndarray, used: np.ndarray, max_shift_px: float = 40.0, about_px: np.ndarray | None = None) -> np.ndarray:
    """Shifts (n, n, 2) between all pairs of frames by themselves: [i, j] is that of j less that of i, NaN if not used.

    The highest peak of the correlation, each frequency weighted by its signal, per pixel of
    overlap, within ``max_shift_px`` of no shift or of that between the shifts ``about_px`` (n, 2). On
    near-periodic lattices many are off by lattice cells: that is what the joint solution is for.
    """
    from scipy import fft

    members = np.flatnonzero(used)
    about = np.zeros((len(frames), 2)) if about_px is None else np.asarray(about_px)
    farthest = float(np.ptp(about[members], axis=0).max())
    canvas = _Canvas(frames.astype(np.float32, copy=False), np.full(2, (farthest + max_shift_px) / 2 + 1))
    power, noise = _incoherent_power(canvas, members), float(canvas.totals[members].mean()) / canvas.area
    weight = (power / (noise + 2 * power)).astype(np.float32)
    r = int(max_shift_px)
    moved = {int(i): canvas.moved(int(i), np.zeros(2)) for i in members}
    pairs = np.full((len(frames), len(frames), 2), np.nan)
    pairs[members, members] = 0
    for a, i in enumerate(members):
        left = np.conj(moved[int(i)]) * weight
        for j in members[a + 1 :]:
            middle = np.round(about[j] - about[i]).astype(int)
            near = [np.arange(m - r, m + r + 1) for m in middle]
            overlap = np.outer(*(np.maximum(1 - np.abs(k) / n, 0.05) for k, n in zip(near, canvas.frame_shape, strict=True)))
            image = fft.irfft2(left * moved[int(j)], canvas.shape)[np.ix_(near[0] % canvas.shape[0], near[1] % canvas.shape[1])]
            pairs[i, j] = _parabola_peak(image / overlap) - r + middle
            pairs[j, i] = -pairs[i, j]
    return pairs


def _parabola_peak(image: np.ndarray) -> np.ndarray:
    """Place of the maximum of an image with a parabola through its neighbours on either axis."""
    y, x = np.unravel_index(int(np.argmax(image)), image.shape)
    place = np.array([y, x], dtype=float)
    for axis, line in enumerate((image[:, x], image[y])):
        k = (y, x)[axis]
        if 0 < k < len(line) - 1 and (bend := line[k - 1] - 2 * line[k] + line[k + 1]) < 0:
            place[axis] += 0.5 * (line[k - 1] - line[k + 1]) / bend
    return place


def solve_pair_shifts(pairs: np.ndarray, *, scale_px: float = 1.0, rounds: int = 30) -> tuple[np.ndarray, np.ndarray]:
    """Shifts (n, 2), the first 0, from measured pair shifts (n, n, 2) of which many may be wrong.

    ``pairs[i, j]`` is the shift of j less that of i, NaN where not measured. The frame that most
    pairs agree with is the start, every frame then moves to where most of its pairs put it, and
    least squares with redescending weights (Geman-McClure, its scale from the residuals) ends
    it. Also returns which pairs agree (n, n). Raises `RecordingError` where frames are not linked.
    """
    pairs = np.asarray(pairs, dtype=float)
    n = len(pairs)
    known = np.isfinite(pairs).all(axis=2) & ~np.eye(n, dtype=bool)
    if n < 2 or not known.any(axis=1).all():
        raise RecordingError(f"pair shifts: frames {np.flatnonzero(~known.any(axis=1)).tolist()} have no pair, expected one at least")
    filled = np.where(known[..., None], pairs, 0)
    agree = lambda x: np.where(known, np.exp(-np.sum((filled - (x[None] - x[:, None])) ** 2, axis=2) / (2 * scale_px**2)), 0)
    starts = [np.where(known[i][:, None], filled[i], 0) for i in range(n)]
    x = max(starts, key=lambda start: float(agree(start).sum()))
    for _ in range(rounds):
        before = x.copy()
        for j in range(n):
            votes = np.concatenate([(x + filled[:, j])[known[:, j]], (x - filled[j])[known[j]]])
            near = np.exp(-np.sum((votes[:, None] - votes[None]) ** 2, axis=2) / (2 * scale_px**2)).sum(axis=1)
            x[j] = votes[np.argmax(near)]
        if np.abs(x - before).max() < 1e-6:
            break
    for _ in range(rounds):
        residual = np.linalg.norm(filled - (x[None] - x[:, None]), axis=2)
        inner = residual[known & (residual < 3 * scale_px)]
        width = max(1e-3, 3 * float(np.median(inner))) if inner.size else scale_px
        weight = np.where(known, 1 / (1 + (residual / width) ** 2) ** 2, 0)
        links = weight + weight.T
        pull = (weight[..., None] * filled).sum(axis=0) - (weight[..., None] * filled).sum(axis=1)
        x = np.linalg.lstsq(np.diag(links.sum(axis=0)) - links, pull, rcond=None)[0]
    agreeing = known & (np.linalg.norm(filled - (x[None] - x[:, None]), axis=2) < 3 * scale_px)
    return x - x[0], agreeing


def fourier_ring_correlation(first: np.ndarray, second: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Fourier ring correlation of two images: frequency (cycles a pixel), correlation, half-bit threshold, a ring each.

    Images are windowed (Hann). Half-bit curve of van Heel & Schatz, J. Struct. Biol. 151 (2005) 250.
    """
    n = min(first.shape)
    window = np.outer(*(np.hanning(k) for k in first.shape))
    a, b = (np.fft.rfft2((image - image.mean()) * window) for image in (first, second))
    q = np.hypot(np.fft.fftfreq(first.shape[0])[:, None], np.fft.rfftfreq(first.shape[1])[None])
    ring = np.round(q * n).astype(int).ravel()
    count = n // 2
    sums = [np.bincount(ring, v.ravel(), minlength=count + 1)[1:count] for v in ((a * b.conj()).real, np.abs(a) ** 2, np.abs(b) ** 2)]
    modes = np.bincount(ring, minlength=count + 1)[1:count] / 2.25  # the window correlates neighbours
    correlation = sums[0] / np.sqrt(np.maximum(sums[1] * sums[2], 1e-30))
    root = np.sqrt(np.maximum(modes, 1))
    half_bit = (0.2071 + 1.9102 / root) / (1.2071 + 0.9102 / root)
    return np.arange(1, count) / n, correlation, np.minimum(half_bit, 1)


def half_average_resolution(
    frames: Any,
    solution: DriftSolution,
    take_in: Iterable[int] = (),
    *,
    budget_bytes: float | None = None,
    work: LongWork | None = None,
    progress: Any = None,
) -> dict:
    """Fourier ring correlation of the averages of even and odd frames, each half registered by itself.

    Frames in ``take_in`` are used in their half although they look foreign; this and the further arguments as in `register_stack`.

    Returns ``frequency`` (cycles a pixel), ``correlation``, ``threshold`` and ``resolution_px``: the
    period of the highest ring above the threshold (half a bit, and 4 standard errors), or None.
    """
    used = np.flatnonzero(solution.used)
    halves = [frames[used[k::2]] if isinstance(frames, np.ndarray) else PickedFrames(frames, used[k::2]) for k in (0, 1)]
    if not solution.registered or min(len(h) for h in halves) < 2:
        return {"resolution_px": None, "reason": "fewer than four frames that can be registered"}
    by_hand = [[int(i) for i in np.flatnonzero(np.isin(used[k::2], list(take_in)))] for k in (0, 1)]
    options = {"budget_bytes": budget_bytes, "progress": progress}
    solved = [
        register_stack(half, take_in=chosen, work=work and work.part(name), **options)
        for half, chosen, name in zip(halves, by_hand, ("even", "odd"), strict=True)
    ]
    if not all(s.registered for s in solved):
        return {"resolution_px": None, "reason": "half of the frames alone cannot be registered"}
    averages = [covered_average(*sum_frames(h, s.shift_px, s.used)[:2], 0.8)[0] for h, s in zip(halves, solved, strict=True)]
    shape = np.min([a.shape for a in averages], axis=0)
    pair = np.stack([a[: shape[0], : shape[1]] * s.used.sum() * solution.counts_per_unit for a, s in zip(averages, solved, strict=True)])
    field = pair[(slice(None), *_middle(shape, 2048))]  # of larger ones the middle tells
    joint, _ = _solve(field.astype(np.float32), np.arange(2), np.full(2, 0.33 * min(field.shape[1:])))
    first, second = _overlapping(pair, joint.shifts[1] - joint.shifts[0])
    frequency, correlation, half_bit = fourier_ring_correlation(first, second)
    modes = np.pi * frequency * min(first.shape) ** 2 * frequency[0] / 2.25
    threshold = np.maximum(half_bit, 4 / np.sqrt(np.maximum(modes, 1)))
    above = np.flatnonzero(correlation > threshold)
    out = {"frequency": frequency, "correlation": correlation, "threshold": threshold}
    if len(above) == 0:
        return out | {"resolution_px": None, "reason": "the halves agree at no frequency"}
    return out | {"resolution_px": float(1 / frequency[above[-1]])}


def _overlapping(pair: np.ndarray, shift: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The parts of two images that show the same, the second being moved by +shift; its fraction of a pixel undone in Fourier space."""
    from scipy.ndimage import fourier_shift

    whole = np.round(shift).astype(int)
    mean = pair[1].mean()
    moved = np.fft.ifft2(fourier_shift(np.fft.fft2(pair[1] - mean), -(shift - whole))).real + mean
    n_y, n_x = pair.shape[1:]
    y, x = whole
    first = pair[0][max(0, -y) : n_y - max(0, y), max(0, -x) : n_x - max(0, x)]
    second = moved[max(0, y) : n_y - max(0, -y), max(0, x) : n_x - max(0, -x)]
    return first[2:-2, 2:-2], second[2:-2, 2:-2]


def _joint_of(frames: np.ndarray, solution: DriftSolution) -> _Joint:
    """The state of a registration as its solution left it."""
    members = np.flatnonzero(solution.used)
    counts = frames if solution.counts_per_unit == 1 else frames.astype(np.float32) * np.float32(solution.counts_per_unit)
    canvas, shifts = _tight_canvas(counts, solution.shift_px, members)
    return _Joint(canvas, members, shifts, np.zeros(len(frames)), _DriftPrior(np.zeros(2), _START_SPREAD_PX))


def cell_landscape(frames: np.ndarray, solution: DriftSolution, frame: int, reach_px: int = 24) -> np.ndarray:
    """Log-likelihood (nats) of one frame against the scene of all others, for displacements up to ``reach_px`` from its place.

    An image (2 reach + 1, 2 reach + 1), in the middle no displacement. Its maxima are lattice cells; that they
    differ by few nats is what makes single frames hop.
    """
    joint = _joint_of(frames, solution)
    canvas, total = joint.canvas, joint.total(leave_out={frame})
    scene, place = total.scene(rounds=12), joint.shifts[frame]
    spectra = canvas.spectra[frame], canvas.box, canvas.worth(frame, scene, place)
    image = _Match(canvas, scene, total.seen()).images(*spectra)[0]
    at = [(round(float(s)) + np.arange(-reach_px, reach_px + 1)) % n for s, n in zip(place, canvas.shape, strict=True)]
    return image[np.ix_(*at)]


def _rows_of_frames(joint: _Joint) -> tuple[np.ndarray, np.ndarray]:
    """Slope (members, rows, 2) and information (members, rows, 2) of the log-likelihood of every scan line's own shift, y and x.

    The template is the most probable scene of the other frames, so slope over information is an unbiased shift.
    """
    canvas, (n_y, n_x) = joint.canvas, joint.canvas.frame_shape
    slopes, information = np.zeros((2, len(joint.members), n_y, 2))
    for k, (i, scene, seen) in enumerate(joint.leave_one_out()):
        there = canvas.spectrum(scene) / canvas.phase(joint.shifts[i])
        rate = np.float32(canvas.scale[i] * canvas.rate)
        expected = np.maximum(rate * (1 + canvas.image(there)[:n_y, :n_x]), 0.05 * rate)
        known = canvas.under(seen, joint.shifts[i])
        for axis, q in enumerate((canvas.qy[:, None], canvas.qx[None])):
            change = -rate * canvas.image(1j * q * there)[:n_y, :n_x] * known  # the content moves by +shift
            slopes[k, :, axis] = np.sum((canvas.counts[i] - expected) * change / expected, axis=1)
            information[k, :, axis] = np.sum(change**2 / expected, axis=1)
    return slopes, information


def motion_within_frames(frames: np.ndarray, solution: DriftSolution, band_rows: int = 8) -> dict:
    """What of the motion within a frame the data resolve: drift while a frame is scanned, and jitter of scan lines.

    A frame that drifts while it is scanned is sheared. A shear that all frames share looks like a
    property of the sample; what varies between frames is compared with the drift between them:
    ``share_of_drift`` is the part of a frame's step that happens from its first row to its last (1 if it is scanned
    without pause, 0 if it is taken at once), with ``share_of_drift_sigma``, or both None with a ``reason``.
    ``line_jitter_px`` (y, x) is the rms of bands of ``band_rows`` scan lines about that shear beyond
    their counting noise, as that of a single line if lines are independent, with ``line_jitter_limit_px`` (95 %).
    Raises `RecordingError` where frames are not registered one by one.
    """
    if not solution.registered or solution.group > 1 or solution.used.sum() < 4:
        raise RecordingError("motion within frames: expected four frames at least that are registered one by one")
    joint = _joint_of(frames, solution)
    slopes, information = _rows_of_frames(joint)
    rows = (np.arange(slopes.shape[1]) + 0.5) / slopes.shape[1] - 0.5
    weight = information.sum(axis=1)
    middle = np.sum(information * rows[:, None], axis=1) / weight
    lever = rows[None, :, None] - middle[:, None]
    force = np.sum(information * lever**2, axis=1)
    shear, sigma = np.sum(slopes * lever, axis=1) / force, 1 / np.sqrt(force)
    share = _share_of_drift(joint, shear, sigma)
    rest = slopes - information * (np.sum(slopes, axis=1) / weight)[:, None] - information * lever * shear[:, None]
    jitter, limit = _line_jitter(rest, information, band_rows)
    return share | {"line_jitter_px": jitter, "line_jitter_limit_px": limit, "shear_px": shear, "shear_sigma_px": sigma}


def _line_jitter(rest: np.ndarray, information: np.ndarray, band_rows: int) -> tuple[list[float | None], list[float]]:
    """Jitter of scan lines (y, x) in what shift and shear leave of slopes (n, rows, 2), None below 3 standard errors; 95 % limits."""
    n_bands = rest.shape[1] // band_rows
    bands = lambda values: values[:, : n_bands * band_rows].reshape(len(values), n_bands, band_rows, 2).sum(axis=2)
    known, pull = bands(information), bands(rest)
    freedom = 1 - 2 / n_bands  # a shift and a shear are fitted to every frame
    lever = np.sum(known**2, axis=(0, 1))
    excess = (np.sum(pull**2, axis=(0, 1)) - freedom * np.sum(known, axis=(0, 1))) / lever / freedom
    error = np.sqrt(2 * lever) / lever
    jitter = np.sqrt(np.maximum(excess, 0) * band_rows)
    limit = np.sqrt((np.maximum(excess, 0) + 1.645 * error) * band_rows)
    return [float(j) if e > 3 * s else None for j, e, s in zip(jitter, excess, error, strict=True)], limit.tolist()


def _share_of_drift(joint: _Joint, shear: np.ndarray, sigma: np.ndarray) -> dict:
    """Part of the drift between frames that shears them, from its variation; jumps are left out."""
    members, shifts = joint.members, joint.shifts[joint.members]
    step = np.gradient(shifts, members, axis=0)
    away = np.linalg.norm(np.diff(shifts, axis=0) - np.median(np.diff(shifts, axis=0), axis=0), axis=1)
    far = away > 4 * np.median(away) + 0.1
    calm = ~(np.append(far, False) | np.insert(far, 0, False))
    weight = np.where(calm[:, None], 1 / sigma**2, 0)
    if calm.sum() < 4:
        return {"share_of_drift": None, "share_of_drift_sigma": None, "reason": "too few frames between jumps"}
    about = lambda values: values - np.sum(weight * values, axis=0) / weight.sum(axis=0)
    force = float(np.sum(weight * about(step) ** 2))
    error = 1 / math.sqrt(max(force, 1e-12))
    if error > 0.35:
        why = "the drift is too even, or the counts are too few, to tell a frame's shear from the sample's"
        return {"share_of_drift": None, "share_of_drift_sigma": None, "reason": why}
    share = float(np.sum(weight * about(step) * about(shear))) / force
    misfit = float(np.sum(weight * (about(shear) - share * about(step)) ** 2)) / (2 * calm.sum() - 3)
    return {"share_of_drift": share, "share_of_drift_sigma": error * math.sqrt(max(1.0, misfit))}


def frames_to_keep(dose: np.ndarray, rate: float, least_amplitude: float = 0.0) -> tuple[int, np.ndarray]:
    """How many first frames give the best signal-to-noise, and that of every number of frames (n,), relative to its best.

    A lattice amplitude that decays as exp(-rate dose) adds less with every frame while noise goes on: the
    plain sum is best near 1.26/rate (Hayward & Glaeser, Ultramicroscopy 4 (1979) 201). Frames whose amplitude is
    below ``least_amplitude`` of the first's are never kept. With ``rate`` 0 or less all frames are.
    """
    amplitude = np.exp(-max(rate, 0.0) * (np.asarray(dose, dtype=float) - dose[0]))
    snr = np.cumsum(amplitude) / np.sqrt(np.arange(1, len(amplitude) + 1))
    allowed = np.where(amplitude >= least_amplitude, snr, 0)
    return int(np.argmax(allowed)) + 1, snr / snr.max()


def _amplitudes_of_frames(
    canvas: _Canvas, summed: np.ndarray, members: np.ndarray, shifts: np.ndarray, at: tuple[np.ndarray, np.ndarray]
) -> tuple[np.ndarray, np.ndarray]:
    """Amplitudes (frames, peaks) at frequencies, in phase with the average of the other frames and relative to it, and their errors."""
    amplitude, error = np.zeros((len(members), len(summed))), np.zeros((len(members), len(summed)))
    for k, i in enumerate(members):
        own = canvas.moved(int(i), shifts[i])[at]
        rest = summed - own
        level = np.abs(rest) / (len(members) - 1)
        amplitude[k] = (own * rest.conj()).real / np.abs(rest) / level / canvas.scale[i]
        error[k] = math.sqrt(canvas.totals[i] / 2) / level / canvas.scale[i]
    return amplitude, error


def _common_field(frames: np.ndarray, solution: DriftSolution) -> tuple[np.ndarray, DriftSolution]:
    """What all used frames show, cut out of each to the nearest pixel, with what is left of the shifts; all of it if that is little."""
    whole = np.where(solution.used[:, None], np.round(solution.shift_px), 0).astype(int)
    low, high = whole[solution.used].min(axis=0), whole[solution.used].max(axis=0)
    size = np.array(frames.shape[1:]) - (high - low)
    if np.any(size < 0.4 * np.array(frames.shape[1:])):
        return frames, solution
    corners = np.where(solution.used[:, None], whole - low, 0)
    cut = np.stack([f[y : y + size[0], x : x + size[1]] for f, (y, x) in zip(frames, corners, strict=True)])
    return cut, replace(solution, shift_px=solution.shift_px - whole)


def lattice_decay(frames: np.ndarray, solution: DriftSolution, dose: np.ndarray, peaks: int = 12) -> dict:
    """Decay of lattice frequencies with dose, from the stack itself.

    Every frame's amplitude at the strongest lattice frequencies is measured in phase with the
    average of the others, relative to it, in the field that all frames share (else an edge that drifts
    into view looks like damage); ``dose`` (n,) is that before the middle of each frame (any unit). An
    exponential is fitted to all together. Returns ``amplitude`` and ``error`` (frames), ``period_px``
    (peaks), ``rate`` and ``rate_sigma`` (1/dose) of each, and the ``pooled_rate``, ``pooled_rate_sigma``.
    """
    from scipy.optimize import curve_fit

    members = np.flatnonzero(solution.used)
    joint = _joint_of(*_common_field(frames, solution))
    canvas, shifts, total = joint.canvas, joint.shifts, joint.total()
    q = np.hypot(canvas.qy[:, None], canvas.qx[None]) / (2 * np.pi)
    at = tuple(_reflections(canvas, total.spectrum, float(canvas.totals[members].sum()), peaks, least=30)[0].T)
    if len(members) < 6:
        return {"period_px": [], "reason": "fewer than six frames"}
    if len(at[0]) == 0:
        return {"period_px": [], "reason": "no lattice frequency stands out far enough"}
    amplitude, error = _amplitudes_of_frames(canvas, total.spectrum[at], members, shifts, at)
    decay = lambda d, a, rate: a * np.exp(-rate * d)

    def fit(a: np.ndarray, e: np.ndarray) -> tuple[float, float]:
        best, covariance = curve_fit(decay, dose[members], a, p0=(1.0, 0.0), sigma=e, absolute_sigma=True)
        return float(best[1]), float(np.sqrt(covariance[1, 1]))

    each = np.array([fit(amplitude[:, g], error[:, g]) for g in range(amplitude.shape[1])])
    weight = 1 / error**2
    mean, mean_error = (amplitude * weight).sum(axis=1) / weight.sum(axis=1), 1 / np.sqrt(weight.sum(axis=1))
    rate, sigma = fit(mean, mean_error)
    return {
        "frame": members,
        "amplitude": mean,
        "error": mean_error,
        "period_px": (1 / q[at]).tolist(),
        "rate": each[:, 0],
        "rate_sigma": each[:, 1],
        "pooled_rate": rate,
        "pooled_rate_sigma": sigma,
    }


# --------------------------------------------------------------------------------------
# 03 HAADF: atomic columns and the surface layer
# --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ProjectedColumns:
    """Atomic columns of a crystal seen along a zone axis.

    ``basis_nm`` (2, 2) holds the two shortest translations of the projection as rows; ``sites``
    (n, 2) are fractional in it; ``brightness`` (n,) is the HAADF signal of a column for one unit of
    length, ∝ Σ occupancy · Z^1.7, the brightest being 1; ``elements`` the element that gives most of it.
    """

    name: str
    zone_axis: tuple[int, int, int]
    basis_nm: np.ndarray
    sites: np.ndarray
    brightness: np.ndarray
    elements: tuple[str, ...]

    def frequencies(self, max_invnm: float = 10.0, probe_nm: float = 0.05) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Spatial frequencies of the image: indices (n, 2), 1/nm (n, 2), complex amplitudes (n,), strongest first."""
        dual = np.linalg.inv(self.basis_nm).T
        reach = np.ceil(max_invnm * np.linalg.norm(self.basis_nm, axis=1)).astype(int)
        index = np.array([i for i in product(*(range(-n, n + 1) for n in reach)) if i > (0, 0)])
        vector = index @ dual
        keep = np.linalg.norm(vector, axis=1) <= max_invnm
        index, vector = index[keep], vector[keep]
        amplitude = np.exp(-2j * np.pi * index @ self.sites.T) @ self.brightness
        amplitude = amplitude * np.exp(-2 * (np.pi * probe_nm) ** 2 * np.sum(vector**2, axis=1))
        order = np.argsort(-np.abs(amplitude), kind="stable")
        order = order[np.abs(amplitude[order]) > 0.02 * np.abs(amplitude).max()]
        return index[order], vector[order], amplitude[order]


def _atomic_number(element: str) -> int:
    from ase.data import atomic_numbers

    return atomic_numbers[element]


def _shortest_basis(vectors: np.ndarray) -> np.ndarray:
    """The two shortest independent vectors of a plane lattice, given enough of its vectors."""
    length = np.linalg.norm(vectors, axis=1)
    vectors = vectors[np.lexsort((-vectors[:, 0], np.round(length, 6)))]
    vectors = vectors[np.linalg.norm(vectors, axis=1) > 1e-3]
    first = vectors[0]
    cross = np.abs(vectors[:, 0] * first[1] - vectors[:, 1] * first[0])
    second = vectors[np.argmax(cross > 1e-3 * np.dot(first, first))]
    return np.array([first, second if second @ first <= 1e-9 else -second])


def _merged(points: np.ndarray, basis: np.ndarray, tolerance: float = 0.03) -> list[list[int]]:
    """Groups of points (fractional in ``basis``) that coincide modulo the lattice, within ``tolerance`` nm."""
    groups: list[list[int]] = []
    for k, point in enumerate(points):
        for group in groups:
            apart = point - points[group[0]]
            if np.linalg.norm((apart - np.round(apart)) @ basis) < tolerance:
                group.append(k)
                break
        else:
            groups.append([k])
    return groups


def project_columns(crystal: Crystal, zone_axis: tuple[int, int, int]) -> ProjectedColumns:
    """Columns of a crystal along a zone axis [uvw] (direct lattice), with their primitive plane lattice.

    Raises `ParameterError` for a zone axis of zeros.
    """
    uvw = np.asarray(zone_axis, dtype=int)
    if not uvw.any():
        raise ParameterError("zone_axis: got [0, 0, 0], expected a direction like [1, 0, 0]")
    axis = uvw @ crystal.lattice / np.linalg.norm(uvw @ crystal.lattice)
    first = crystal.lattice[np.argmin(np.abs(crystal.lattice @ axis) / np.linalg.norm(crystal.lattice, axis=1))]
    first = first - (first @ axis) * axis
    first /= np.linalg.norm(first)
    plane = np.array([np.cross(axis, first), first]).T / 10  # Å to nm, as (y, x)
    steps = np.array(list(product(range(-3, 4), repeat=3)))
    basis = _shortest_basis(steps @ crystal.lattice @ plane)
    weight = crystal.occupancies * np.array([_atomic_number(e) ** 1.7 for e in crystal.elements])
    points = crystal.positions @ crystal.lattice @ plane @ np.linalg.inv(basis)
    groups = _merged(points, basis)
    basis = _with_centring(points[[g[0] for g in groups]], np.array([weight[g].sum() for g in groups]), basis)
    points = crystal.positions @ crystal.lattice @ plane @ np.linalg.inv(basis)
    groups = _merged(points, basis)
    bright = np.array([weight[g].sum() for g in groups])
    main = tuple(crystal.elements[max(g, key=lambda k: weight[k])] for g in groups)
    sites = points[[g[0] for g in groups]]
    order = np.argsort(-bright, kind="stable")
    sites = sites[order] - sites[order[0]]
    sites = sites - np.floor(sites + 1e-6)
    u, v, w = (int(i) for i in uvw)
    return ProjectedColumns(crystal.name, (u, v, w), basis, sites, bright[order] / bright.max(), tuple(main[k] for k in order))


def _with_centring(sites: np.ndarray, weights: np.ndarray, basis: np.ndarray) -> np.ndarray:
    """The primitive basis, where translations between like columns map the whole projection on itself."""
    found = [np.zeros(2)]
    for site, weight in zip(sites[1:], weights[1:], strict=True):
        shift = site - sites[0]
        if abs(weight - weights[0]) > 1e-3 * weights[0]:
            continue
        apart = (sites + shift)[:, None] - sites[None]
        apart = np.linalg.norm((apart - np.round(apart)) @ basis, axis=2) < 0.03
        if np.all(np.any(apart & (np.abs(weights[:, None] - weights[None]) < 1e-3 * weights.max()), axis=1)):
            found.append(shift)
    steps = np.array(list(product(range(-2, 3), repeat=2)))
    return _shortest_basis(np.concatenate([(steps + f) @ basis for f in found]))


# --- lattice of the image ----------------------------------------------------------------


def _terms(points: np.ndarray, degree: int) -> np.ndarray:
    """Monomials up to a total degree of points (n, 2), as columns; the first three are 1, p0, p1."""
    powers = [(a, n - a) for n in range(degree + 1) for a in range(n, -1, -1)]
    return np.stack([points[:, 0] ** a * points[:, 1] ** b for a, b in powers], axis=1)


def _binning(pixel_nm: float) -> int:
    """How many pixels to add up a side: columns are broad, so pixels above 0.025 nm lose nothing."""
    return max(1, int(0.0255 / pixel_nm))


def _binned(image: np.ndarray, factor: int) -> np.ndarray:
    """Means of squares of pixels as float64; a remainder at the far edges is left out."""
    image = np.asarray(image, dtype=float)
    rows, cols = (n // factor for n in image.shape)
    return image[: rows * factor, : cols * factor].reshape(rows, factor, cols, factor).mean(axis=(1, 3))


@dataclass(frozen=True)
class ImageLattice:
    """A projected lattice laid on an image, with a smooth distortion of the scan.

    ``forward`` and ``inverse`` are polynomial coefficients between lattice coordinates (fractional
    in ``columns.basis_nm``) and pixels (y, x), of points less their centre over their span; ``matrix`` (2, 2) the mean step in px for a
    step of the basis. ``residual_px`` is how far the ``n_columns`` that it was fitted to lie off it (rms of an axis).
    ``other_grain_deg`` is the turn of a second grain of the same structure in the image, None where there is none.
    """

    columns: ProjectedColumns
    degree: int
    forward: np.ndarray
    inverse: np.ndarray
    centre: np.ndarray
    span: float
    inverse_centre: np.ndarray
    inverse_span: float
    matrix: np.ndarray
    residual_px: float
    n_columns: int
    other_grain_deg: float | None = None

    def to_px(self, lattice: np.ndarray) -> np.ndarray:
        """Pixels (n, 2) as (y, x) of lattice coordinates (n, 2)."""
        return _terms((np.asarray(lattice, dtype=float) - self.centre) / self.span, self.degree) @ self.forward

    def to_lattice(self, px: np.ndarray) -> np.ndarray:
        """Lattice coordinates (n, 2) of pixels (n, 2)."""
        return _terms((np.asarray(px, dtype=float) - self.inverse_centre) / self.inverse_span, self.degree) @ self.inverse

    def rescaled(self, factor: float) -> ImageLattice:
        """The same lattice on pixels ``factor`` times as small (1/2 for an image binned by 2)."""
        shift = 0.5 * (factor - 1)
        forward = self.forward * factor
        forward[0] += shift
        return replace(
            self,
            forward=forward,
            inverse_centre=self.inverse_centre * factor + shift,
            inverse_span=self.inverse_span * factor,
            matrix=self.matrix * factor,
            residual_px=self.residual_px * factor,
        )

    def bending_px(self, shape: tuple[int, int]) -> float:
        """How far (px, rms) the scan of an image of ``shape`` puts places off the straight lattice that fits best."""
        y, x = (g.ravel() for g in np.meshgrid(*(np.linspace(0, n - 1, 24) for n in shape), indexing="ij"))
        px = np.stack([y, x], axis=1)
        design = np.column_stack([np.ones(len(px)), self.to_lattice(px)])
        off = px - design @ np.linalg.lstsq(design, px, rcond=None)[0]
        return float(np.sqrt(np.mean(np.sum(off**2, axis=1))))

    @property
    def px_per_nm(self) -> np.ndarray:
        """(2, 2): a step in nm in the crystal's plane times this is a step in px."""
        return np.linalg.inv(self.columns.basis_nm) @ self.matrix

    def scan(self) -> dict[str, float]:
        """Pixel size from the lattice and what the scan did to it.

        The mean pixel is that of equal area. The distortion is that of slow drift: lines (x) are
        taken as true, the slow axis y is stretched and sheared: (y, x) -> (s·y, x + tan(shear)·y).
        """
        _, triangle = np.linalg.qr(self.px_per_nm)
        sy, sx = abs(triangle[0, 0]), abs(triangle[1, 1])
        shear = math.degrees(math.atan2(triangle[0, 1] * np.sign(triangle[1, 1]), sy * np.sign(triangle[0, 0]) * np.sign(triangle[1, 1])))
        shear = (shear + 90) % 180 - 90
        row = self.matrix[0]
        return {
            "pixel_size_nm": float(1 / math.sqrt(abs(np.linalg.det(self.px_per_nm)))),
            "pixel_size_x_nm": float(1 / sx),
            "pixel_size_y_nm": float(1 / sy),
            "shear_deg": float(shear),
            "rotation_deg": float(math.degrees(math.atan2(row[0], row[1]))),
            "mirrored": bool(np.linalg.det(self.px_per_nm) < 0),
        }


def _fit_lattice(
    columns: ProjectedColumns, lattice: np.ndarray, px: np.ndarray, degree: int, guide: tuple[np.ndarray, np.ndarray] | None = None
) -> tuple[ImageLattice, np.ndarray]:
    """A robust polynomial map through columns at known places; also which columns it kept. A ``guide`` (points, px) counts little."""
    beside, beside_px = guide or (np.zeros((0, 2)), np.zeros((0, 2)))
    centre = lattice.mean(axis=0)
    span = max(float(np.abs(np.concatenate([lattice, beside]) - centre).max()), 1.0)
    design, faint = _terms((lattice - centre) / span, degree), 0.03 * _terms((beside - centre) / span, degree)
    keep = np.ones(len(px), dtype=bool)
    for _ in range(6):
        both = np.concatenate([design[keep], faint]), np.concatenate([px[keep], 0.03 * beside_px])
        forward, *_ = np.linalg.lstsq(*both, rcond=None)
        off = np.linalg.norm(px - design @ forward, axis=1)
        limit = max(3.5 * float(np.median(off[keep])), 0.3)
        if np.array_equal(keep, off < limit):
            break
        keep = off < limit
    smooth = design[keep] @ forward
    all_px, all_points = np.concatenate([smooth, faint / 0.03 @ forward]), np.concatenate([lattice[keep], beside])
    i_centre, i_span = all_px.mean(axis=0), max(float(np.abs(all_px - all_px.mean(axis=0)).max()), 1.0)
    inverse, *_ = np.linalg.lstsq(_terms((all_px - i_centre) / i_span, degree), all_points, rcond=None)
    straight, *_ = np.linalg.lstsq(_terms((lattice[keep] - centre) / span, 1), smooth, rcond=None)
    rms = float(np.sqrt(np.mean(off[keep] ** 2) / 2))
    fit = ImageLattice(columns, degree, forward, inverse, centre, span, i_centre, i_span, straight[1:] / span, rms, int(keep.sum()))
    return fit, keep


def _band_passed(image: np.ndarray, small: float, large: float) -> np.ndarray:
    from scipy.ndimage import gaussian_filter

    return gaussian_filter(image, small) - gaussian_filter(image, large)


@dataclass(frozen=True)
class _Spectrum:
    """Amplitude spectrum of a patch of an image, and its peaks as cycles a pixel (n, 2), strongest first."""

    amplitude: np.ndarray
    peaks: np.ndarray
    heights: np.ndarray
    noise: float

    def at(self, k: np.ndarray) -> np.ndarray:
        """Amplitude at k (..., 2), cycles a pixel; 0 beyond the spectrum."""
        size = self.amplitude.shape[0]
        index = np.rint(k * size).astype(int) + size // 2
        inside = np.all((index >= 0) & (index < size), axis=-1)
        index = np.where(inside[..., None], index, 0)
        return np.where(inside, self.amplitude[index[..., 0], index[..., 1]], 0.0)


def _spectrum(patch: np.ndarray, lowest: float) -> _Spectrum:
    """Spectrum of a square patch; peaks are looked for at and above ``lowest`` cycles a pixel."""
    from scipy.ndimage import maximum_filter

    size = patch.shape[0]
    window = np.hanning(size)[:, None] * np.hanning(size)
    flat = (patch - patch.mean()) * window
    amplitude = np.abs(np.fft.fftshift(np.fft.fft2(flat)))
    axis = np.fft.fftshift(np.fft.fftfreq(size))
    length = np.hypot(axis[:, None], axis)
    amplitude[length < lowest] = 0
    noise = float(np.median(amplitude[(length > 0.3) & (length < 0.5)])) / 1.1774
    half = (axis[:, None] > 0) | ((axis[:, None] == 0) & (axis > 0))
    is_peak = (amplitude == maximum_filter(amplitude, 5)) & half & (length < 0.48) & (amplitude > 0)
    y, x = np.nonzero(is_peak)
    order = np.argsort(-amplitude[y, x], kind="stable")[:40]
    y, x = y[order], x[order]
    peaks = np.array([_vertex(amplitude, a, b) for a, b in zip(y.tolist(), x.tolist(), strict=True)]).reshape(-1, 2)
    return _Spectrum(maximum_filter(amplitude, 3), (peaks - size // 2) / size, amplitude[y, x], max(noise, 1e-12))


def _vertex(array: np.ndarray, y: int, x: int) -> tuple[float, float]:
    """Sub-pixel place of a maximum by parabolas through the logarithm."""
    out = []
    for axis, at in ((0, y), (1, x)):
        if not 0 < at < array.shape[axis] - 1:
            out.append(float(at))
            continue
        low, mid, high = (math.log(array[(y + d, x) if axis == 0 else (y, x + d)] + 1e-12) for d in (-1, 0, 1))
        bend = low - 2 * mid + high
        out.append(at + (0.5 * (low - high) / bend if bend < 0 else 0.0))
    return out[0], out[1]


def _match_spectrum(
    spectrum: _Spectrum, columns: ProjectedColumns, pixel_nm: float, scales: tuple[float, float]
) -> tuple[float, np.ndarray]:
    """The best map (2, 2) from 1/nm to cycles a pixel, and how well its spectrum is the one seen, 0 to 1.

    Every pair of strong peaks is tried as every pair of strong expected frequencies, turned or
    mirrored; lengths may differ by ``scales`` (ratio to the stated pixel), with 6 % and 5° of distortion. Agreement is Bhattacharyya's
    coefficient of expected and seen amplitudes, so that strong peaks which no frequency explains count against a map; a distortion
    of 8 % between two directions costs as much as a standard deviation.
    """
    _, vectors, amplitudes = columns.frequencies()
    strength = np.abs(amplitudes) / np.sum(np.abs(amplitudes))
    clear = spectrum.heights > 6 * spectrum.noise
    farthest = float(np.linalg.norm(vectors, axis=1).max())
    heights, far = spectrum.heights[clear], np.linalg.norm(spectrum.peaks[clear], axis=1)
    seen = spectrum.peaks[clear][:14]
    best, best_map = 0.0, np.zeros((2, 2))
    if len(seen) < 2:
        return best, best_map
    seen = np.concatenate([seen, -seen])
    top = min(6, len(vectors))
    for one, two in ((a, b) for a in range(top) for b in range(a + 1, top)):
        g = vectors[[one, two]]
        if abs(np.linalg.det(g)) < 0.2 * np.linalg.norm(g[0]) * np.linalg.norm(g[1]):
            continue
        for a in range(len(seen) // 2):
            ratio = np.linalg.norm(seen[a]) / np.linalg.norm(g[0]) / pixel_nm
            if not scales[0] < ratio < scales[1]:
                continue
            other = np.linalg.norm(seen, axis=1) / np.linalg.norm(g[1]) / pixel_nm
            for b in np.flatnonzero(np.abs(other / ratio - 1) < 0.06).tolist():
                turn = _angle(seen[a], seen[b]), _angle(g[0], g[1])
                if abs(abs(turn[0]) - abs(turn[1])) > math.radians(5):
                    continue
                trial = np.linalg.solve(g, seen[[a, b]])
                stretch = np.linalg.svd(trial, compute_uv=False)
                level = spectrum.at(vectors @ trial)
                level = np.where(level > 4 * spectrum.noise, level, 0.0)
                total = max(float(level.sum()), float(np.sum(heights[far < farthest * math.sqrt(stretch[0] * stretch[1])])))
                score = float(np.sum(np.sqrt(strength * level))) / math.sqrt(total)
                score *= math.exp(-0.5 * (math.log(stretch[0] / stretch[1]) / 0.08) ** 2 - 0.25 * abs(math.log(ratio)))
                if score > best:
                    best, best_map = score, trial
    return best, best_map


def _angle(a: np.ndarray, b: np.ndarray) -> float:
    return math.atan2(a[0] * b[1] - a[1] * b[0], a[0] * b[0] + a[1] * b[1])


def _polished_map(spectrum: _Spectrum, columns: ProjectedColumns, trial: np.ndarray) -> tuple[np.ndarray, int, int]:
    """Least squares over all peaks that the map explains; how many of the strong peaks it explains, and how many there are."""
    _, vectors, _ = columns.frequencies()
    both = np.concatenate([vectors, -vectors])
    strong = spectrum.heights > max(6 * spectrum.noise, 0.08 * spectrum.heights[0])
    strong &= np.linalg.norm(spectrum.peaks, axis=1) < 1.02 * np.linalg.norm(vectors @ trial, axis=1).max()  # sharp columns have more
    peaks, heights = spectrum.peaks[strong], spectrum.heights[strong]
    for _ in range(3):
        apart = np.linalg.norm(peaks[:, None] - (both @ trial)[None], axis=2)
        nearest = np.argmin(apart, axis=1)
        near = apart[np.arange(len(peaks)), nearest] < np.maximum(0.02 * np.linalg.norm(peaks, axis=1), 0.006)
        if near.sum() < 3:
            break
        w = np.sqrt(heights[near])[:, None]
        trial, *_ = np.linalg.lstsq(w * both[nearest[near]], w * peaks[near], rcond=None)
    return trial, int(near.sum()), len(peaks)


def _origin(
    patch: np.ndarray, corner: tuple[int, int], columns: ProjectedColumns, to_frequency: np.ndarray
) -> tuple[np.ndarray, float, float]:
    """Pixel (y, x) of a site 0 by the phases of the lattice's frequencies, with the best and the worst agreement (−1 to 1)."""
    size = patch.shape[0]
    window = np.hanning(size)
    flat = (patch - patch.mean()) * window[:, None] * window
    index, vectors, amplitudes = columns.frequencies()
    k = vectors[:16] @ to_frequency
    r = np.arange(size)
    wave_y, wave_x = np.exp(-2j * np.pi * k[:, :1] * r), np.exp(-2j * np.pi * k[:, 1:] * r)
    seen = np.einsum("ky,yx,kx->k", wave_y, flat, wave_x)
    weight = seen * np.conj(amplitudes[:16])
    grid = np.stack(np.meshgrid(*2 * [np.arange(64) / 64], indexing="ij"), axis=-1)
    agreement = np.real(np.exp(2j * np.pi * (grid @ index[:16].T)) @ weight) / np.sum(np.abs(weight))
    best = np.array(np.unravel_index(np.argmax(agreement), agreement.shape)) / 64
    step = np.linalg.inv(to_frequency).T
    place = best @ columns.basis_nm @ step
    middle = np.array([size / 2, size / 2])
    cells = np.rint((middle - place) @ np.linalg.inv(columns.basis_nm @ step))
    return place + cells @ columns.basis_nm @ step + np.array(corner), float(agreement.max()), float(agreement.min())


def _refined_positions(image: np.ndarray, start: np.ndarray, sigma_px: float, reach_px: float) -> tuple[np.ndarray, np.ndarray]:
    """Sub-pixel places (n, 2) and heights (n,) of columns by Gauss-Newton on a Gaussian of known width over a constant.

    Columns that leave the window, ``reach_px`` around where they started, keep their start and get height 0.
    """
    half = max(2, round(reach_px))
    corner = np.clip(np.rint(start).astype(int), half, np.array(image.shape) - half - 1)
    offsets = np.arange(-half, half + 1)
    window = image[corner[:, 0, None, None] + offsets[None, :, None], corner[:, 1, None, None] + offsets[None, None, :]]
    shift = start - corner
    height = np.zeros(len(start))
    for _ in range(4):
        dy, dx = offsets[None, :, None] - shift[:, 0, None, None], offsets[None, None, :] - shift[:, 1, None, None]
        bell = np.exp(-(dy**2 + dx**2) / (2 * sigma_px**2))
        taper = np.exp(-(dy**2 + dx**2) / (2 * (0.6 * half) ** 2))
        design = np.stack([bell, np.ones_like(bell), bell * dy / sigma_px**2, bell * dx / sigma_px**2], axis=-1)
        normal = np.einsum("nyxa,nyx,nyxb->nab", design, taper, design) + 1e-9 * np.eye(4)
        found = np.linalg.solve(normal, np.einsum("nyxa,nyx,nyx->na", design, taper, window)[..., None])[..., 0]
        height = found[:, 0]
        step = found[:, 2:] / np.where(np.abs(height) > 1e-9, height, 1e-9)[:, None]
        shift = shift + np.clip(step, -1.0, 1.0)
    lost = np.linalg.norm(shift - (start - corner), axis=1) > reach_px
    return np.where(lost[:, None], start, corner + shift), np.where(lost, 0.0, height)


def _sites_in(shape: tuple[int, int], to_px: Any, guess: np.ndarray, origin: np.ndarray, margin: float) -> tuple[np.ndarray, np.ndarray]:
    """Lattice points whose place lies inside the image, and these places; ``guess`` (2, 2) and ``origin`` bound the search."""
    corners = np.array([(y, x) for y in (0, shape[0]) for x in (0, shape[1])], dtype=float)
    reach = (corners - origin) @ np.linalg.inv(guess)
    low, high = np.floor(reach.min(axis=0)).astype(int) - 2, np.ceil(reach.max(axis=0)).astype(int) + 3
    points = np.stack(np.meshgrid(*(np.arange(a, b) for a, b in zip(low, high, strict=True)), indexing="ij"), axis=-1).reshape(-1, 2)
    places = to_px(points)
    inside = np.all((places >= margin) & (places <= np.array(shape) - 1 - margin), axis=1)
    return points[inside], places[inside]


def _grown_lattice(image: np.ndarray, columns: ProjectedColumns, origin: np.ndarray, matrix: np.ndarray) -> ImageLattice | None:
    """The lattice of the brightest columns, followed outwards from a patch over the whole image; None where they are not there."""
    spacing = float(np.linalg.norm(matrix, axis=1).min())
    sigma, far = 0.2 * spacing, max(image.shape) * 1.5
    smooth = _band_passed(image, 0.12 * spacing, 1.2 * spacing)
    radius = 6 * spacing
    to_px = lambda points: origin + points @ matrix
    fit, height = None, 0.0
    while True:
        points, places = _sites_in(image.shape, to_px, matrix, origin, 0.5 * spacing)
        near = np.linalg.norm(places - origin, axis=1) < radius
        found, level = _refined_positions(smooth, places[near], sigma, 0.4 * spacing)
        height = float(np.percentile(level, 75)) if fit is None else height
        good = level > 0.4 * height
        if good.sum() < 12:
            break
        degree = 1 if radius < 12 * spacing or good.sum() < 80 else 2 if radius < far else 3
        fit, kept = _fit_lattice(columns, points[near][good].astype(float), found[good], degree)
        height = float(np.median(level[good][kept]))
        to_px = fit.to_px
        if radius >= far:
            break
        radius = radius * 1.6 if radius * 1.6 < far else far
    if fit is None or fit.n_columns < 12 or fit.residual_px > 0.2 * spacing:
        return None
    seen, found = _followed_columns(smooth, fit, matrix, spacing, height)
    everywhere, _ = _sites_in(image.shape, fit.to_px, matrix, origin, -spacing)
    return _smoothest_fit(columns, seen, found, everywhere) if len(seen) >= 60 else fit


def _followed_columns(
    smooth: np.ndarray, fit: ImageLattice, matrix: np.ndarray, spacing: float, height: float
) -> tuple[np.ndarray, np.ndarray]:
    """Lattice points (n, 2) and places (n, 2) px of columns, followed from those near a polynomial by what their neighbours are off it.

    So corners of a scan that bends more than the polynomial does are reached, and the thin edge of a wedge.
    """
    from scipy.spatial import cKDTree

    points, places = _sites_in(smooth.shape, fit.to_px, matrix, fit.to_px(np.zeros((1, 2)))[0], 0.5 * spacing)
    found, level = _refined_positions(smooth, places, 0.2 * spacing, 0.4 * spacing)
    good = (level > 0.4 * height) & (np.linalg.norm(found - places, axis=1) < 0.15 * spacing)
    for _ in range(12):
        if good.sum() < 12:
            break
        tree, off = cKDTree(places[good]), found[good] - places[good]
        weights = np.ones(int(good.sum()))
        moved = places + np.stack([_local_level(places[good], off[:, k], weights, places, 2 * spacing) for k in (0, 1)], axis=1)
        apart, near = tree.query(places, k=min(7, int(good.sum())))
        usual, before = np.median(level[good][near], axis=1), good
        found, level = _refined_positions(smooth, moved, 0.2 * spacing, 0.4 * spacing)
        good = (np.median(apart[:, :3], axis=1) < 2.6 * spacing) & (level > np.maximum(0.35 * usual, 0.12 * height))
        good &= np.linalg.norm(found - moved, axis=1) < 0.2 * spacing
        if np.array_equal(good, before):
            break
    return points[good].astype(float), found[good]


def _smoothest_fit(columns: ProjectedColumns, seen: np.ndarray, found: np.ndarray, everywhere: np.ndarray) -> ImageLattice:
    """The polynomial of degree 1 to 6 that columns ``seen`` (n, 2) ``found`` (n, 2) px ask for, by Bayes' information criterion.

    ``everywhere`` are the lattice points of the whole image: where no column is seen, a degree of 2 goes on with a small weight, so that a
    high one does not run off in the vacuum.
    """
    from scipy.spatial import cKDTree

    empty = everywhere[cKDTree(seen).query(everywhere)[0] > 1.5].astype(float)
    plain, _ = _fit_lattice(columns, seen, found, 2)
    best = (math.inf, plain)
    for degree in range(1, 7):
        terms = (degree + 1) * (degree + 2) // 2
        if 4 * terms > len(seen):
            break
        trial, kept = _fit_lattice(columns, seen, found, degree, (empty, plain.to_px(empty)) if degree > 2 else None)
        score = 4 * len(seen) * math.log(trial.residual_px) + 2 * terms * math.log(2 * len(seen)) + 12 * int(np.sum(~kept))
        if score < best[0]:
            best = (score, trial)
    return best[1]


def check_haadf_image(image: np.ndarray, name: str = "image") -> np.ndarray:
    """The image as float; `RecordingError` where it is not one image, is too small, flat, or saturated."""
    image = np.asarray(image)
    if image.ndim != 2 or min(image.shape) < 96:
        raise RecordingError(f"{name}: shape {image.shape}, expected one image of 96 x 96 pixels or more")
    if not np.all(np.isfinite(image)):
        raise RecordingError(f"{name}: {int(np.sum(~np.isfinite(image)))} pixels are not finite numbers, expected counts")
    top = image.max()
    if image.min() == top:
        raise RecordingError(f"{name}: every pixel is {top}, expected contrast")
    clipped = float(np.mean(image == top))
    if clipped > 0.003 and top - np.median(image) > 8:
        raise RecordingError(f"{name}: {clipped:.1%} of the pixels sit at the highest value {top}: saturated, expected peaks below it")
    return image.astype(float)


def _patches(shape: tuple[int, int], size: int) -> list[tuple[int, int]]:
    """Corners of square patches that cover an image with overlap, at most 7 a side."""
    starts = [np.unique(np.linspace(0, n - size, min(7, max(1, math.ceil(2 * (n - size) / size) + 1))).round().astype(int)) for n in shape]
    return [(int(y), int(x)) for y in starts[0] for x in starts[1]]


def find_image_lattice(image: np.ndarray, columns: ProjectedColumns, pixel_size_nm: float, name: str = "image") -> ImageLattice:
    """Find the lattice of a projected crystal in an HAADF image, index it and follow it over the image.

    The spectrum of patches is compared with the frequencies of the projection, in any
    orientation, mirrored or not, at 0.85 to 1.15 of the stated pixel size; phases give
    the place of the brightest column; the columns' own places, fitted with sub-pixel
    precision, give the map, a polynomial of degree 6 at most (`_smoothest_fit`).

    Parameters
    ----------
    image
        (y, x), counts; columns bright.
    columns
        From `project_columns`.
    pixel_size_nm
        The stated pixel size.
    name
        What errors call the image: its file.

    Raises
    ------
    RecordingError
        No lattice; not the lattice of this zone axis; inverted contrast.
    SampleError
        A pixel size that this lattice contradicts by more than 15 %.
    """
    image = check_haadf_image(image, name)
    spacing = float(np.linalg.norm(columns.basis_nm, axis=1).min()) / pixel_size_nm
    if not 2.5 < spacing < min(image.shape) / 6:
        raise SampleError(
            f"acquisitions.haadf.pixel_size_nm: got {pixel_size_nm:g}, at which columns {spacing * pixel_size_nm:.3f} nm "
            f"apart lie {spacing:.1f} px apart; expected a pixel of {spacing * pixel_size_nm / 60:.4f} to "
            f"{spacing * pixel_size_nm / 4:.3f} nm"
        )
    factor = _binning(pixel_size_nm)
    image, pixel_size_nm, spacing = _binned(image, factor), pixel_size_nm * factor, spacing / factor
    lowest = 0.6 * pixel_size_nm / (2 * float(np.linalg.norm(columns.basis_nm, axis=1).max()))
    spectra = {}
    for size in sorted({int(min(min(image.shape), max(least, n * spacing))) for least, n in ((96, 16), (64, 9))}):
        for corner in _patches(image.shape, size):
            spectrum = _spectrum(image[corner[0] : corner[0] + size, corner[1] : corner[1] + size], lowest)
            if len(spectrum.peaks):
                spectra[(*corner, size)] = spectrum
    tried = [(*_match_spectrum(s, columns, pixel_size_nm, (0.84, 1.19)), place) for place, s in spectra.items()]
    _check_match(spectra, max((t[0] for t in tried), default=0.0), columns, pixel_size_nm, factor, name)
    strength = {place: float(np.sum(s.heights[:6])) / place[2] ** 2 for place, s in spectra.items()}
    strongest = max(strength.values())
    tried = [t for t in tried if t[0] >= _LEAST_AGREEMENT]
    tried.sort(key=lambda t: -t[0] * (strength[t[2]] / strongest) ** 0.2)  # a few columns at an edge agree with much
    turned = _other_grain(columns, tried, strength)
    reason = ""
    for _, trial, place in tried[:12]:
        trial, explained, strong = _polished_map(spectra[place], columns, trial)
        if explained < 3 or explained < 0.5 * strong:
            reason = reason or _wrong_zone(spectra[place], columns, pixel_size_nm, f"{explained} of {strong} strong spots agree")
            continue
        y, x, size = place
        origin, best, worst = _origin(image[y : y + size, x : x + size], (y, x), columns, trial)
        if -worst > 1.15 * best:
            raise RecordingError(f"{name}: the columns are dark: the contrast is inverted, expected an HAADF image with bright columns")
        fit = _grown_lattice(image, columns, origin, columns.basis_nm @ np.linalg.inv(trial).T)
        if fit is not None:
            return replace(fit, other_grain_deg=turned).rescaled(factor)
        reason = "the lattice of the spectrum is not there as columns: fewer than 12 stand where it says"
    raise RecordingError(f"{name}: {reason}")


def _other_grain(columns: ProjectedColumns, matched: list, strength: dict) -> float | None:
    """Turn (degrees) against the first of the maps of patches that three others agree on, None where all lie alike.

    A layer of spinel or rocksalt may pass for layered turned by 70.5°, the angle of its own {111}: that is no grain.
    """
    if not matched:
        return None
    wave = columns.frequencies()[1][0]
    along = np.array([np.arctan2(*(wave @ trial)) for _, trial, _ in matched])
    turn = np.degrees(along - along[0]) % 180
    turn = np.minimum(turn, 180 - turn)
    clear = np.array([score > 0.8 and strength[place] > 0.3 * strength[matched[0][2]] for score, _, place in matched])
    other = clear & (turn > 4) & (np.abs(turn - 70.5) > 4.5)
    if other.sum() < 3:
        return None
    middle = float(np.median(turn[other]))
    return middle if np.sum(np.abs(turn[other] - middle) < 4) >= 3 else None


_LEAST_AGREEMENT = 0.7  # of a spectrum with that of the projection; noise and other zones stay below


def _check_match(spectra: dict, score: float, columns: ProjectedColumns, pixel_size_nm: float, factor: int, name: str) -> None:
    """Say what is wrong where the expected lattice was not found: no lattice, another pixel size, another zone."""
    if score >= _LEAST_AGREEMENT:
        return
    lit = [s for s in spectra.values() if np.sum(s.heights > 8 * s.noise) >= 2]
    if not lit:
        best = max((float(s.heights[0] / s.noise) for s in spectra.values()), default=0.0)
        raise RecordingError(
            f"{name}: no lattice: the strongest spatial frequency stands {best:.1f} times above the noise, expected two of 8 or more"
        )
    spectrum = max(lit, key=lambda s: float(np.sum(s.heights[:6])))
    other, trial = _match_spectrum(spectrum, columns, pixel_size_nm, (0.05, 20.0))
    if other > _LEAST_AGREEMENT:
        true = float(math.sqrt(abs(np.linalg.det(trial)))) / factor
        raise SampleError(
            f"acquisitions.haadf.pixel_size_nm: got {pixel_size_nm / factor:g}, but the lattice of {columns.name} fits at {true:.4g}; "
            "expected within 15 %"
        )
    raise RecordingError(f"{name}: " + _wrong_zone(spectrum, columns, pixel_size_nm, f"agreement {score:.2f}, expected {_LEAST_AGREEMENT}"))


def _wrong_zone(spectrum: _Spectrum, columns: ProjectedColumns, pixel_size_nm: float, why: str) -> str:
    _, vectors, _ = columns.frequencies()
    seen = spectrum.peaks[spectrum.heights > 8 * spectrum.noise][:4]
    have = ", ".join(f"{pixel_size_nm / np.linalg.norm(k):.3f}" for k in seen)
    want = ", ".join(f"{1 / np.linalg.norm(g):.3f}" for g in vectors[:4])
    shown = f"the image does not show {columns.name} along {direction_name(columns.zone_axis)} ({why})"
    return f"{shown}: strongest spacings {have} nm, expected {want} nm"


# --- columns, occupancy and the surface layer --------------------------------------------


@dataclass(frozen=True)
class CationLattice:
    """The lattice that metal and lithium columns of the layered structure share with rocksalt and spinel.

    ``steps`` (2, 2): two translations A, S of it as rows, in the basis of the layered projection; A runs
    inside a metal layer, S from a metal column to a lithium one, and A + S is the long diagonal. The
    column i A + j S is of metal where j is even. A spinel repeats over 2A and 2S: its four
    columns (i mod 2, j mod 2) hold 1, 1/2, 1/2 and 0 of the metal, its 8a columns stand a quarter of
    A + S on either side of the empty one.
    """

    steps: np.ndarray
    steps_nm: np.ndarray

    @property
    def spacing_nm(self) -> float:
        """Mean distance of neighbouring columns."""
        return float(np.linalg.norm(self.steps_nm, axis=1).mean())


def cation_lattice(columns: ProjectedColumns) -> CationLattice:
    """The shared cation lattice of a layered oxide; `ParameterError` where its zone axis does not show it.

    It shows where metal and lithium columns are apart, two lithium steps making a lattice
    step, as along [100]hex, which is <110> of the cubic phases.
    """
    axis = direction_name(columns.zone_axis)
    lithium = [k for k, e in enumerate(columns.elements) if e == "Li"]
    heavy = [k for k, b in enumerate(columns.brightness) if b > 0.4]
    if len(lithium) != 1 or len(heavy) != 1:
        raise ParameterError(
            f"zone axis {axis} of {columns.name} does not show lithium columns apart from metal columns: no layer can be told there"
        )
    offset = columns.sites[lithium[0]] - columns.sites[heavy[0]]
    if not np.allclose(2 * offset, np.rint(2 * offset), atol=0.02):
        raise ParameterError(f"zone axis {axis} of {columns.name}: metal and lithium columns share no lattice: no layer can be told there")
    cells = np.array(list(product(range(-2, 3), repeat=2)))
    by_length = lambda v: v[np.argsort(np.round(np.linalg.norm(v @ columns.basis_nm, axis=1), 6), kind="stable")]
    a = by_length(cells[np.any(cells != 0, axis=1)])[0].astype(float)
    s = by_length(cells + np.rint(2 * offset) / 2)[0]
    if np.dot(a @ columns.basis_nm, s @ columns.basis_nm) < 0:
        a = -a
    steps = np.array([a, s])
    steps_nm = steps @ columns.basis_nm
    angle = abs(math.degrees(_angle(steps_nm[0], steps_nm[1])))
    if not 65 < angle < 76:
        raise ParameterError(
            f"zone axis {axis} of {columns.name} is not along <110> of the cubic phases; spinel and rocksalt cannot be told there"
        )
    return CationLattice(steps, steps_nm)


def column_amplitudes(
    image: np.ndarray, positions: np.ndarray, sigma_px: float, spacing_px: float, wanted: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Heights of the wanted columns and the background under them, their neighbours and a sloping background fitted along.

    Linear least squares of Gaussians of one width in a round window of 1.15 spacings a
    column. ``positions`` (n, 2) may reach over the image's edge; ``wanted`` (n,) is true for m columns inside.
    Returns two arrays (m,) in counts.
    """
    from scipy.spatial import cKDTree

    half = round(1.15 * spacing_px)
    padded = np.pad(image, half + 1, constant_values=np.nan)
    _, neighbours = cKDTree(positions).query(positions[wanted], k=min(12, len(positions)), distance_upper_bound=2.1 * spacing_px)
    far = np.concatenate([positions, [[-1e6, -1e6]]])
    offsets = np.arange(-half, half + 1)
    taper = np.clip(1.2 - np.hypot(offsets[:, None], offsets) / half, 0, 1) * (np.hypot(offsets[:, None], offsets) <= half)
    places = positions[wanted]
    heights, grounds = np.empty(len(places)), np.empty(len(places))
    for begin_at in range(0, len(places), 256):
        part = slice(begin_at, begin_at + 256)
        corner = np.rint(places[part]).astype(int)
        window = padded[corner[:, 0, None, None] + offsets[:, None] + half + 1, corner[:, 1, None, None] + offsets + half + 1]
        away = far[neighbours[part]] - corner[:, None]
        bell_y = np.exp(-((offsets - away[..., :1]) ** 2) / (2 * sigma_px**2))
        bell_x = np.exp(-((offsets - away[..., 1:]) ** 2) / (2 * sigma_px**2))
        bells = bell_y[..., :, None] * bell_x[..., None, :]
        plane = np.broadcast_to(np.stack(np.broadcast_arrays(1.0, offsets[:, None] / half, offsets / half)), (len(corner), 3, *taper.shape))
        design = np.concatenate([bells, plane], axis=1).reshape(len(corner), -1, taper.size)
        known = np.isfinite(window).reshape(len(corner), 1, -1)
        window = np.nan_to_num(window)
        weighted = design * taper.ravel() * known
        normal = weighted @ design.transpose(0, 2, 1) + 1e-3 * np.eye(design.shape[1])
        found = np.linalg.solve(normal, weighted @ window.reshape(len(corner), -1, 1))[..., 0]
        heights[part], grounds[part] = found[:, 0], found[:, -3]
    return heights, grounds


def column_width(image: np.ndarray, positions: np.ndarray, spacing_px: float) -> float:
    """Standard deviation (px) of the Gaussian that describes the mean of isolated-enough columns best."""
    from scipy.ndimage import map_coordinates
    from scipy.optimize import minimize_scalar

    half = round(0.5 * spacing_px)
    grid = np.stack(np.meshgrid(*2 * [np.arange(-half, half + 1)], indexing="ij")).astype(float)
    mean = np.mean([map_coordinates(image, grid + p[:, None, None], order=1, mode="nearest") for p in positions[:400]], axis=0)
    inside = np.hypot(*grid) <= half

    def misfit(sigma: float) -> float:
        design = np.stack([np.exp(-(grid**2).sum(axis=0) / (2 * sigma**2))[inside], np.ones(inside.sum())], axis=1)
        return float(np.sum((mean[inside] - design @ np.linalg.lstsq(design, mean[inside], rcond=None)[0]) ** 2))

    return float(minimize_scalar(misfit, bounds=(0.1 * spacing_px, 0.45 * spacing_px), method="bounded").x)


def sublattice_heights(image: np.ndarray, lattice: ImageLattice, faintest: float = 0.2) -> dict[str, np.ndarray]:
    """Heights in counts of all columns of each sublattice, by its main element; those expected fainter than ``faintest`` are left out."""
    factor = _binning(lattice.scan()["pixel_size_nm"])
    image, lattice = _binned(image, factor), lattice.rescaled(1 / factor)
    seen = np.flatnonzero(lattice.columns.brightness >= faintest)
    cells, _ = _sites_in(image.shape, lattice.to_px, lattice.matrix, lattice.to_px(np.zeros((1, 2)))[0], 0.0)
    px = np.concatenate([lattice.to_px(cells + lattice.columns.sites[k]) for k in seen])
    kind = np.repeat(seen, len(cells))
    spacing = math.sqrt(abs(float(np.linalg.det(lattice.matrix))) / len(seen))
    wanted = np.all((px > 0.5 * spacing) & (px < np.array(image.shape) - 1 - 0.5 * spacing), axis=1)
    sigma = column_width(image, px[wanted & (kind == seen[0])], spacing)
    heights, _ = column_amplitudes(image, px, sigma, spacing, wanted)
    names = lattice.columns.elements
    return {n: heights[[names[k] == n for k in kind[wanted]]] for n in dict.fromkeys(names[k] for k in seen)}


@dataclass(frozen=True)
class Columns:
    """All cation columns inside an image, one row each.

    ``index`` (n, 2) i, j of `CationLattice`; ``px`` (n, 2); ``nm`` (n, 2) in the undistorted crystal plane;
    ``height`` and ``background`` in counts, ``surroundings`` the mean counts within some 0.3 nm; ``brightness``
    relative to a full metal column nearby, ``noise`` its standard error; ``present`` is false where the place is empty.
    """

    index: np.ndarray
    px: np.ndarray
    nm: np.ndarray
    height: np.ndarray
    background: np.ndarray
    brightness: np.ndarray
    noise: np.ndarray
    present: np.ndarray
    surroundings: np.ndarray

    @property
    def is_metal(self) -> np.ndarray:
        """Whether the place is in a metal layer of the layered structure."""
        return self.index[:, 1] % 2 == 0

    @property
    def kind(self) -> np.ndarray:
        """0 to 3: (i mod 2) + 2 (j mod 2), the four columns of a spinel."""
        return self.index[:, 0] % 2 + 2 * (self.index[:, 1] % 2)


def _local_level(nm: np.ndarray, values: np.ndarray, weights: np.ndarray, at: np.ndarray, reach_nm: float) -> np.ndarray:
    """Weighted plane through the values near every point, evaluated there; Gaussian weights of width ``reach_nm``."""
    from scipy.spatial import cKDTree

    count = min(len(nm), 40)
    apart, near = cKDTree(nm).query(at, k=count)
    w = weights[near] * (np.exp(-0.5 * (apart / reach_nm) ** 2) + 1e-6)
    offset = (nm[near] - at[:, None]) / reach_nm
    design = np.concatenate([np.ones((len(at), count, 1)), offset], axis=2)
    normal = np.einsum("nka,nk,nkb->nab", design, w, design)
    normal += np.einsum("n,ab->nab", np.sum(w, axis=1), np.diag([1e-9, 0.05, 0.05]))
    return np.linalg.solve(normal, np.einsum("nka,nk,nk->na", design, w, values[near])[..., None])[:, 0, 0]


def measure_columns(image: np.ndarray, lattice: ImageLattice, cations: CationLattice) -> Columns:
    """Heights of all cation columns of the lattice, relative to the full metal columns around them.

    Raises `RecordingError` where fewer than 30 columns stand in the image, or where it holds a second grain.
    """
    from scipy.ndimage import gaussian_filter

    if lattice.other_grain_deg is not None:
        raise RecordingError(
            f"several grains: a part of the image shows the same lattice turned by {lattice.other_grain_deg:.0f}°; "
            "expected one grain and vacuum: crop the image to one grain"
        )

    factor = _binning(lattice.scan()["pixel_size_nm"])
    image, lattice = _binned(image, factor), lattice.rescaled(1 / factor)
    matrix = cations.steps @ lattice.matrix
    spacing = float(np.linalg.norm(matrix, axis=1).mean())
    to_px = lambda points: lattice.to_px(points @ cations.steps)
    index, px = _sites_in(image.shape, to_px, matrix, to_px(np.zeros((1, 2)))[0], -1.2 * spacing)
    seen = np.all((px >= 0.45 * spacing) & (px <= np.array(image.shape) - 1 - 0.45 * spacing), axis=1)
    smooth = _band_passed(image, 0.12 * spacing, 1.2 * spacing)
    metal = index[:, 1] % 2 == 0
    place, level = _refined_positions(smooth, px, 0.2 * spacing, 0.25 * spacing)
    strong = metal & seen & (level > 0.3 * np.percentile(level[metal & seen], 80))
    if strong.sum() < 30:
        raise RecordingError(f"{int(strong.sum())} columns stand in the image, expected 30 or more")
    sigma = column_width(image, place[strong], spacing)
    px = np.where(strong[:, None], 0.5 * (px + place), px)
    height, ground = column_amplitudes(image, px, sigma, spacing, seen)
    index, px, metal, strong = index[seen], px[seen], metal[seen], strong[seen]
    full = float(np.percentile(height[strong], 60))
    nm = index @ cations.steps_nm
    noise = np.sqrt(np.maximum(ground + 0.6 * height, 0.02) / (4 * np.pi * sigma**2)) * 1.5
    present = _connected(index, height > 0.28 * full)
    for _ in range(2):
        level = _metal_level(nm, height, metal & present)
        present = _connected(index, (height > 0.2 * level) & (height > 0.08 * full) & (height > 4 * noise / factor))
    around = gaussian_filter(image, 1.2 * spacing)[tuple(np.rint(px).astype(int).T)]
    px = (px + 0.5) * factor - 0.5
    return Columns(index, px, nm, height, ground, height / level, noise / level / factor, present, around)


def _metal_level(nm: np.ndarray, height: np.ndarray, usable: np.ndarray, expected: np.ndarray | None = None) -> np.ndarray:
    """Height of a full metal column at every place: the local plane through the brighter of the neighbouring metal columns."""
    from scipy.spatial import cKDTree

    if expected is None:
        tree = cKDTree(nm[usable])
        _, near = tree.query(nm[usable], k=min(7, int(usable.sum())))
        brighter = height[usable] > 0.8 * np.sort(height[usable][near], axis=1)[:, -2]
        nm_ref, values = nm[usable][brighter], height[usable][brighter]
    else:
        good = usable & (expected > 0.3)
        nm_ref, values = nm[good], height[good] / expected[good]
    return np.maximum(_local_level(nm_ref, values, np.ones(len(values)), nm, 0.7), 0.2 * float(np.median(values)))


def _connected(index: np.ndarray, present: np.ndarray) -> np.ndarray:
    """Only the largest cluster of present columns: stray bright spots in the vacuum go; empty places inside the crystal stay empty."""
    from scipy.ndimage import binary_dilation, label

    low = index.min(axis=0)
    grid = np.zeros(index.max(axis=0) - low + 1, dtype=bool)
    grid[tuple((index - low).T)] = present
    marks, _ = label(binary_dilation(grid, structure=np.ones((3, 3))))
    marks = marks * grid
    sizes = np.bincount(marks.ravel())
    sizes[0] = 0
    return present & (marks[tuple((index - low).T)] == int(np.argmax(sizes)))


@dataclass(frozen=True)
class SurfaceContour:
    """The edge of the crystal: a smooth base line, as curved as the surface is, and the edge's height over it.

    ``base_nm`` (m, 2) are points of the base line in the crystal plane, ``inwards`` (m, 2) its unit normals into the crystal, ``length_nm``
    (m,) the way along it, ``open`` (m,) whether it faces vacuum there rather than another grain. ``knots_nm`` and ``edge_nm`` (k,) give
    the edge: it lies ``edge`` inside the base line where the way is ``knots``. ``error_nm`` is the standard error of its mean place.
    """

    base_nm: np.ndarray
    inwards: np.ndarray
    length_nm: np.ndarray
    open: np.ndarray
    knots_nm: np.ndarray
    edge_nm: np.ndarray
    error_nm: float

    def edge(self, s: np.ndarray) -> np.ndarray:
        """How far (nm) the edge lies inside the base line at ways ``s`` (n,) along it."""
        from scipy.interpolate import PchipInterpolator

        return PchipInterpolator(self.knots_nm, self.edge_nm)(np.clip(s, self.knots_nm[0], self.knots_nm[-1]))

    def places(self, nm: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Of points (n, 2): way along the surface (nm), depth below the edge (nm), and whether their part of the edge is a surface seen."""
        s, u = _beside(self.base_nm, self.inwards, self.length_nm, nm)
        seen = (s > self.knots_nm[0]) & (s < self.knots_nm[-1]) & (np.interp(s, self.length_nm, self.open.astype(float)) > 0.5)
        return s, u - self.edge(s), seen

    def depth(self, nm: np.ndarray) -> np.ndarray:
        """Depth (nm) of points (n, 2) below the edge, along the normal of the base line."""
        return self.places(nm)[1]

    def curve(self, depth_nm: float | np.ndarray = 0.0, step_nm: float = 0.05) -> np.ndarray:
        """Points (k, 2) in the crystal plane, ``depth_nm`` below the edge (a number or one for each of k ways), from end to end."""
        s = np.arange(self.knots_nm[0], self.knots_nm[-1], step_nm)
        return self._between(self.base_nm, s) + (self.edge(s) + depth_nm)[:, None] * self._between(self.inwards, s)

    def _between(self, vectors: np.ndarray, s: np.ndarray) -> np.ndarray:
        return np.stack([np.interp(s, self.length_nm, vectors[:, k]) for k in (0, 1)], axis=1)

    def normals(self, s: np.ndarray) -> np.ndarray:
        """Unit normals (n, 2) into the crystal at ways ``s`` (n,)."""
        found = self._between(self.inwards, s)
        return found / np.linalg.norm(found, axis=1, keepdims=True)


def _beside(base: np.ndarray, inwards: np.ndarray, length: np.ndarray, nm: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Way along a line of densely set points, and distance inwards from it, of points (n, 2); beyond its ends the line goes on straight."""
    from scipy.spatial import cKDTree

    _, nearest = cKDTree(base).query(nm)
    apart = nm - base[nearest]
    tangent = np.gradient(base, axis=0)
    tangent /= np.linalg.norm(tangent, axis=1, keepdims=True)
    return length[nearest] + np.sum(apart * tangent[nearest], axis=1), np.sum(apart * inwards[nearest], axis=1)


_BASE_BLUR_NM = 2.5  # over which the surface's direction is taken; what is rougher is height over the base line


def _locally_straight(way: np.ndarray, line: np.ndarray, reach: float) -> np.ndarray:
    """A line (m, 2) smoothed by local straight fits with Gaussian weights over the way along it: its ends are not drawn in."""
    apart = way[None, :] - way[:, None]
    weight = np.exp(-0.5 * (apart / reach) ** 2)
    s0, s1, s2 = weight.sum(axis=1), (weight * apart).sum(axis=1), (weight * apart**2).sum(axis=1)
    return ((s2[:, None] * (weight @ line)) - s1[:, None] * ((weight * apart) @ line)) / (s0 * s2 - s1**2)[:, None]


def _normals_and_way(line: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Unit normals (m, 2) of a line of densely set points (m, 2), all on one side, and the way (m,) along it."""
    tangent = np.gradient(line, axis=0)
    tangent /= np.linalg.norm(tangent, axis=1, keepdims=True)
    way = np.append(0.0, np.cumsum(np.linalg.norm(np.diff(line, axis=0), axis=1)))
    return np.stack([tangent[:, 1], -tangent[:, 0]], axis=1), way


def _base_line(columns: Columns, present: np.ndarray, nm: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray] | None:
    """Points, inward normals and way of the longest line where the blurred share of occupied places is one half."""
    from scipy.interpolate import CubicSpline
    from scipy.ndimage import gaussian_filter
    from skimage.measure import find_contours

    step = 0.1
    low = nm.min(axis=0) - step
    shape = np.ceil((nm.max(axis=0) - low) / step).astype(int) + 2
    full, mass = np.zeros(shape), np.zeros(shape)
    at = tuple(np.rint((nm - low) / step).astype(int).T)
    np.add.at(full, at, present.astype(float))
    np.add.at(mass, at, 1.0)
    full, mass = (gaussian_filter(v, 0.8 / step, mode="constant") for v in (full, mass))
    share = full / np.maximum(mass, 1e-12)
    lines = find_contours(share, 0.5, mask=mass > 0.35 * np.median(mass[at]))
    if not lines:
        return None
    line = max(lines, key=len) * step + low
    way = np.append(0.0, np.cumsum(np.linalg.norm(np.diff(line, axis=0), axis=1)))
    if way[-1] < 1.0:
        return None
    coarse, fine = np.linspace(0.0, way[-1], max(30, int(way[-1] / 0.1))), np.arange(0.0, way[-1], 0.02)
    line = _locally_straight(coarse, np.stack([np.interp(coarse, way, line[:, k]) for k in (0, 1)], axis=1), _BASE_BLUR_NM)
    line = CubicSpline(coarse, line)(fine)
    inwards, length = _normals_and_way(line)
    probe = np.rint((line + 0.3 * inwards - low) / step).astype(int), np.rint((line - 0.3 * inwards - low) / step).astype(int)
    inner, outer = (share[tuple(np.clip(p, 0, np.array(shape) - 1).T)].mean() for p in probe)
    inwards = inwards if inner > outer else -inwards
    return line, inwards, length


def surface_contour(columns: Columns, spacing_nm: float, visible: np.ndarray | None = None) -> SurfaceContour | None:
    """The curve that parts occupied from empty places of the lattice, or None where the image holds no vacuum.

    It lies half a column spacing outside the outermost columns on average. ``visible`` (n,)
    names the places where a column can be seen at all (default: those of metal layers).
    """
    use = columns.is_metal if visible is None else visible
    vacuum = _connected(columns.index, ~columns.present & columns.is_metal) | (~columns.present & ~columns.is_metal)
    present, empty = columns.present & use, vacuum & ~columns.present & use
    if present.sum() < 12 or empty.sum() < 12 or empty.sum() < 0.02 * (present.sum() + empty.sum()):
        return None
    chosen = present | empty
    nm, occupied = columns.nm[chosen], present[chosen]
    even = (columns.is_metal & chosen)[chosen]  # lithium columns are visible in the crystal alone: they would pull the base line
    base = _base_line(columns, occupied[even], nm[even])
    if base is None:
        return None
    s, u = _beside(*base, nm)
    inside = (s > 0) & (s < base[2][-1])
    return SurfaceContour(*base, _faces_vacuum(columns, *base), *_edge_curve(s[inside], u[inside], occupied[inside], spacing_nm))


def drawn_points(surface_px: Any, shape: tuple[int, int]) -> np.ndarray:
    """The points (k, 2), (y, x) px, of a surface drawn by hand on an image of ``shape``; `ParameterError` where they cannot be those."""
    try:
        points = np.asarray(surface_px, dtype=float)
    except (TypeError, ValueError):
        points = np.empty(0)
    if points.ndim != 2 or points.shape[1] != 2 or len(points) < 3 or not np.isfinite(points).all():
        raise ParameterError(f"surface_px: got {str(surface_px)[:60]}, expected three or more points [y, x] in px")
    if (points < -0.5).any() or (points > np.array(shape) - 0.5).any():
        raise ParameterError(f"surface_px: a point lies outside the image of {shape[0]} x {shape[1]} px")
    return points


def drawn_contour(columns: Columns, points_nm: np.ndarray, spacing_nm: float) -> SurfaceContour:
    """The edge of the crystal as drawn by hand through points (k, 2) of the crystal plane, one after the other.

    A cubic spline by chord length; the side with more occupied places is inside, and all of it counts as facing vacuum. Where a hand
    draws an edge is uncertain by a quarter of a column spacing, all along. `ParameterError` for fewer than three points, a line shorter
    than 1 nm or one that turns back on itself, and where both sides look alike.
    """
    from scipy.interpolate import CubicSpline

    points = np.asarray(points_nm, dtype=float)
    if points.ndim != 2 or points.shape[1:] != (2,) or len(points) < 3:
        raise ParameterError(f"surface drawn by hand: got points of shape {points.shape}, expected three or more of two coordinates")
    steps = np.diff(points, axis=0)
    chords = np.linalg.norm(steps, axis=1)
    if chords.min() <= 0 or chords.sum() < 1.0:
        raise ParameterError(f"surface drawn by hand: {chords.sum():.2f} nm long, expected 1 nm or more with no point twice")
    if (np.sum(steps[1:] * steps[:-1], axis=1) < -0.5 * chords[1:] * chords[:-1]).any():
        raise ParameterError("surface drawn by hand: it turns back on itself, expected points one after the other along the edge")
    way = np.append(0.0, np.cumsum(chords))
    line = CubicSpline(way, points)(np.arange(0.0, way[-1], 0.02))
    inwards, length = _normals_and_way(line)
    s, u = _beside(line, inwards, length, columns.nm[columns.is_metal])
    beside, occupied = (s > 0) & (s < length[-1]), columns.present[columns.is_metal]
    inner, outer = (float(occupied[side].mean()) if side.any() else 0.0 for side in (beside & (u > 0), beside & (u < 0)))
    if abs(inner - outer) < 0.1:
        raise ParameterError(
            f"surface drawn by hand: {100 * inner:.0f} % and {100 * outer:.0f} % of the places on its sides hold a column, so that neither "
            "is the vacuum; expected the line along the edge of the crystal"
        )
    knots = np.linspace(0.0, length[-1], 4)
    return SurfaceContour(
        line, inwards if inner > outer else -inwards, length, np.ones(len(line), bool), knots, np.zeros(4), 0.25 * spacing_nm
    )


def _faces_vacuum(columns: Columns, base: np.ndarray, inwards: np.ndarray, length: np.ndarray) -> np.ndarray:
    """For every point of a base line (m,), whether the image gets dark within 3 nm outside it; true where nothing is seen outside.

    Contamination ends in the dark; another grain or a support does not.
    """
    s, u = _beside(base, inwards, length, columns.nm)
    outside = (u < -0.1) & (u > -3.0) & ~columns.present
    bright = 0.6 * float(np.median(columns.surroundings[columns.present]))
    bins = np.clip((s[outside] / 0.5).astype(int), 0, int(length[-1] / 0.5))
    least = np.full(int(length[-1] / 0.5) + 3, np.inf)
    np.minimum.at(least, bins + 1, columns.surroundings[outside])
    least = np.min([least[:-2], least[1:-1], least[2:]], axis=0)
    return (np.where(np.isfinite(least), least, 0.0) < bright)[np.minimum((length / 0.5).astype(int), len(least) - 1)]


def _edge_curve(s: np.ndarray, u: np.ndarray, present: np.ndarray, spacing_nm: float) -> tuple[np.ndarray, np.ndarray, float]:
    """Knots, curve and error of its mean: logistic boundary u(s), linear between knots, smooth by a penalty on bends."""
    from scipy.optimize import minimize

    strip = np.floor((s - s.min()) / spacing_nm).astype(int)
    top, bottom = np.full(strip.max() + 3, np.inf), np.full(strip.max() + 3, -np.inf)
    np.minimum.at(top, strip[present] + 1, u[present])
    np.maximum.at(bottom, strip[~present] + 1, u[~present])
    top, bottom = (f(np.stack([v[:-2], v[1:-1], v[2:]]), axis=0) for f, v in ((np.min, top), (np.max, bottom)))
    both = np.isfinite(top) & np.isfinite(bottom)
    guess = np.where(both, 0.5 * (np.where(both, top, 0) + np.where(both, bottom, 0)), 0)[strip]
    known = both[strip]
    low, high = s[known].min(), s[known].max()
    near = known & (np.abs(u - guess) < 1.0)
    middle = float(np.median(guess[near]))
    s, u, present = s[near], u[near], present[near]
    count = max(4, round((high - low) / (2.5 * spacing_nm)) + 1)
    knots = np.linspace(low, high, count)
    inside = (s >= low) & (s <= high)
    s, u, sign = s[inside], u[inside], np.where(present[inside], 1.0, -1.0)
    place = np.clip((s - low) / (knots[1] - knots[0]), 0, count - 1 - 1e-9)
    k, f = place.astype(int), place % 1
    design = np.zeros((len(s), count))
    design[np.arange(len(s)), k], design[np.arange(len(s)), k + 1] = 1 - f, f
    bends = np.diff(np.eye(count), 2, axis=0) / (0.12 * (knots[1] - knots[0]) / 0.6)
    width = 0.2 * spacing_nm

    def loss(edge: np.ndarray) -> tuple[float, np.ndarray]:
        z = sign * (u - design @ edge) / width
        pull = sign / width / (1 + np.exp(np.clip(z, -50, 50)))
        bent = bends @ edge
        return float(np.sum(np.logaddexp(0, -z)) + 0.5 * bent @ bent), design.T @ pull + bends.T @ bent

    start = np.full(count, middle)
    edge = minimize(loss, start, jac=True, method="L-BFGS-B", options={"maxiter": 500}).x
    return knots, edge, float(0.4 * spacing_nm / math.sqrt(max(1.0, (high - low) / spacing_nm)))


@dataclass(frozen=True)
class SurfaceLayer:
    """A transformed layer at the surface, and the columns that it was read from.

    ``thickness_nm`` is 0 where there is no layer, ``ci95_nm`` its 95 % interval and ``upper_limit_nm`` the upper end of that; ``kind`` is
    "spinel", "rocksalt", "none" or "undecided". ``levels`` (4, 2) is the relative brightness in the bulk and in the layer of bright and
    dim metal columns, bright and dim lithium-layer columns; ``width_nm`` the standard deviation of the transition. ``alternation`` is
    the contrast of full and half metal columns in the layer and ``lithium_layer`` the brightness of its lithium columns, each with its
    standard error. ``way_nm``, ``depth_nm`` and ``role`` (0 to 3, the rows of ``levels``; −1 empty place), (n,), belong to the rows of
    ``columns``.
    """

    thickness_nm: float
    ci95_nm: tuple[float, float]
    upper_limit_nm: float
    kind: str
    width_nm: float
    levels: np.ndarray
    alternation: tuple[float, float]
    lithium_layer: tuple[float, float]
    contour: SurfaceContour
    columns: Columns
    way_nm: np.ndarray
    depth_nm: np.ndarray
    role: np.ndarray


def transformed_share(depth: np.ndarray, thickness: Any, width: Any) -> np.ndarray:
    """Transformed share at a depth: 1 at the surface, 1/2 at the thickness."""
    from scipy.special import erfc

    return 0.5 * erfc((depth - thickness) / (math.sqrt(2) * width))


def _roles(columns: Columns, layer_weight: np.ndarray) -> np.ndarray:
    """0 bright or 1 dim metal, 2 bright or 3 dim lithium column of a spinel, judged by the other columns of its row.

    The column itself has no say, so that noise alone makes no alternation. Rows go on into the vacuum.
    """
    role = 2 * (~columns.is_metal)
    for row in np.unique(columns.index[:, 1]):
        k = np.flatnonzero(columns.index[:, 1] == row)
        i, b, w = columns.index[k, 0], columns.brightness[k], layer_weight[k]
        near = w * np.exp(-np.abs(i[:, None] - i[None, :]) / 3.0)
        np.fill_diagonal(near, 0.0)
        odd = (i[:, None] - i[None, :]) % 2 == 1
        same, other = np.where(odd, 0.0, near), np.where(odd, near, 0.0)
        total = same.sum(axis=1) * other.sum(axis=1)
        contrast = (same @ b) * other.sum(axis=1) - (other @ b) * same.sum(axis=1)
        role[k] += np.where(total > 0, contrast < 0, i % 2 == 1)
    return role


@dataclass(frozen=True)
class _Profile:
    """A fitted profile of brightness against depth: thickness and width in nm, ``levels`` (4, 2) as in `SurfaceLayer`."""

    thickness: float
    width: float
    levels: np.ndarray
    misfit: float

    def brightness(self, depth: np.ndarray, role: np.ndarray) -> np.ndarray:
        """Brightness (n,) expected of columns of these roles (n,) at depths (n,) in nm."""
        share = transformed_share(depth, self.thickness, self.width)
        return self.levels[role, 0] * (1 - share) + self.levels[role, 1] * share


_WIDTHS_NM = (0.04, 0.08, 0.14, 0.22, 0.32, 0.45)


_DEPTH_STEP_NM = 0.02


def _profile_sums(
    depth: np.ndarray, y: np.ndarray, role: np.ndarray, thicknesses: np.ndarray, weights: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Misfit (b, t, w) of the best levels for every weighting (b, n), thickness and width; levels (b, t, w, 4, 2).

    Columns are gathered in steps of depth of 0.02 nm first.
    """
    bins, place = np.unique(np.floor(depth / _DEPTH_STEP_NM).astype(int), return_inverse=True)
    centres = (bins + 0.5) * _DEPTH_STEP_NM
    grid = transformed_share(centres[:, None, None], thicknesses[None, :, None], np.array(_WIDTHS_NM)[None, None, :]).reshape(len(bins), -1)
    squares = grid**2
    misfit, levels = np.zeros((len(weights), grid.shape[1])), np.zeros((len(weights), grid.shape[1], 4, 2))
    for r in range(4):
        here = role == r
        gathered = np.zeros((here.sum(), len(bins)))
        gathered[np.arange(here.sum()), place[here]] = 1
        v, w = y[here], weights[:, here]
        w_bin, wy_bin = w @ gathered, (w * v) @ gathered
        s0, sy, syy = w.sum(axis=1)[:, None] + 1e-9, (w @ v)[:, None], (w @ v**2)[:, None]
        s1, s2, sfy = w_bin @ grid, w_bin @ squares, wy_bin @ grid
        spread = s2 - s1**2 / s0
        slope = np.where(spread > 0.3, (sfy - s1 * sy / s0) / np.maximum(spread, 0.3), 0.0)
        base = (sy - slope * s1) / s0
        misfit += syy - base * sy - slope * sfy
        levels[:, :, r, 0], levels[:, :, r, 1] = base, base + slope
    shape = (len(weights), len(thicknesses), len(_WIDTHS_NM))
    return misfit.reshape(shape), levels.reshape(*shape, 4, 2)


def _fit_profile(depth: np.ndarray, y: np.ndarray, role: np.ndarray, weights: np.ndarray, thicknesses: np.ndarray) -> list[_Profile]:
    """One best profile for every row of weights."""
    out = []
    misfits, all_levels = _profile_sums(depth, y, role, thicknesses, weights)
    for m, v in zip(misfits, all_levels, strict=True):
        t, w = np.unravel_index(np.argmin(m), m.shape)
        fine = thicknesses[t]
        if 0 < t < len(thicknesses) - 1:
            low, mid, high = m[t - 1 : t + 2, w]
            bend = low - 2 * mid + high
            fine += 0.5 * (low - high) / bend * (thicknesses[1] - thicknesses[0]) if bend > 0 else 0.0
        out.append(_Profile(float(fine), _WIDTHS_NM[w], v[t, w], float(m[t, w])))
    return out


def _robust_weights(depth: np.ndarray, y: np.ndarray, role: np.ndarray, fit: _Profile) -> tuple[np.ndarray, float]:
    off = np.abs(y - fit.brightness(depth, role))
    scale = max(1.4826 * float(np.median(off)), 0.01)
    return np.minimum(1.0, 2.5 * scale / np.maximum(off, 1e-9)), scale


def measure_surface_layer(
    rng: np.random.Generator, columns: Columns, cations: CationLattice, *, bootstraps: int = 300, drawn_nm: np.ndarray | None = None
) -> SurfaceLayer:
    """Thickness and kind of the transformed layer of a layered oxide, from the brightness of its cation columns.

    The edge of the crystal is the curve that parts occupied from empty places of the lattice, so
    half a column spacing outside the outermost columns; the brightness of the four kinds of
    columns against depth follows one share 0.5 erfc((depth − thickness)/(√2 width)). A layer is reported
    where it explains the columns better than none does (F ≥ 12 a level) and fills lithium
    columns by more than 0.08 of a metal column. The interval comes from resampling blocks along the surface, with the
    edge's own error added. With ``drawn_nm`` the edge is the line by hand through these points (`drawn_contour`).

    Raises `RecordingError` where the image holds no vacuum, so that there is no surface to measure from.
    """
    contour: SurfaceContour | None
    if drawn_nm is not None:
        contour = drawn_contour(columns, drawn_nm, cations.spacing_nm)
    else:
        contour = surface_contour(columns, cations.spacing_nm)
        if contour is None:
            raise RecordingError(
                "the image shows no vacuum: every place of the lattice holds a column, there is no surface to measure from"
            )
        _check_vacuum(columns, contour)
    level_of, fit = columns, None
    old_level = columns.height / np.where(columns.brightness == 0, 1.0, columns.brightness)
    for turn in range(4):
        way, depth, faced = contour.places(columns.nm)
        inside = faced & (depth > 0) & (columns.present | ~columns.is_metal) & (np.abs(level_of.brightness) < 2)
        seen = depth.max() if fit is None else fit.thickness
        layer_weight = np.where(inside, 0.05 + transformed_share(depth, min(seen, 1.0) if fit is None else seen, 0.2), 0.0)
        role = _roles(level_of, layer_weight)
        fit, weights, scale = _fitted(depth[inside], level_of.brightness[inside], role[inside])
        expected = np.zeros(len(depth))
        expected[inside] = fit.brightness(depth[inside], role[inside])
        level = _metal_level(columns.nm, columns.height, columns.present & inside & columns.is_metal, expected)
        level_of = replace(columns, brightness=columns.height / level, noise=columns.noise * old_level / level)
        lithium_seen = (fit.levels[2:, 1] > 0.35)[np.maximum(role - 2, 0)] & (role >= 2)
        visible = columns.is_metal | (lithium_seen & (depth < 0.6 * fit.thickness))
        if turn < 3 and drawn_nm is None:
            contour = surface_contour(columns, cations.spacing_nm, visible) or contour
    assert fit is not None
    return _layer_from(rng, fit, weights, scale, level_of, contour, way, depth, inside, role, bootstraps)


def _check_vacuum(columns: Columns, contour: SurfaceContour) -> None:
    """`RecordingError` where the lattice ends but the image stays bright: another grain or a support is not a surface."""
    if contour.open.mean() > 0.3:
        return
    empty = _connected(columns.index, ~columns.present & columns.is_metal)
    outside, crystal = float(np.median(columns.surroundings[empty])), float(np.median(columns.surroundings[columns.present]))
    raise RecordingError(
        f"the lattice ends inside the image, but beyond it the image has {outside:.3g} counts where the crystal has {crystal:.3g}: "
        "another grain or a support, no vacuum to measure a surface from"
    )


def _check_bulk(fit: _Profile, depth: np.ndarray, role: np.ndarray, has_layer: bool) -> None:
    """`RecordingError` where the deepest columns that the image shows are not those of the layered structure, or none lie below a layer."""
    deep = int(np.sum((role >= 2) & (depth > fit.thickness + fit.width)))
    bright, dim = float(fit.levels[2, 0]), float(fit.levels[3, 0])
    if (has_layer and deep < 4) or bright - dim > 0.15 or bright > 0.4:
        raise RecordingError(
            f"no layered bulk below the surface: lithium columns hold {max(dim, 0.0):.2f} and {max(bright, 0.0):.2f} of a metal column "
            f"in the deepest {deep} that the image shows, expected less than 0.15 in 4 or more; the transformed region fills the image"
        )


def _fitted(depth: np.ndarray, y: np.ndarray, role: np.ndarray) -> tuple[_Profile, np.ndarray, float]:
    """The profile over all columns, their robust weights and the scatter about it."""
    weights = np.ones((1, len(y)))
    fit = _fit_profile(depth, y, role, weights, np.arange(0.12, max(0.5, 0.9 * depth.max()), 0.1))[0]
    for _ in range(4):
        near = fit.thickness + np.arange(-0.4, 0.41, 0.04)
        fit = _fit_profile(depth, y, role, weights, near[near > 0.08])[0]
        robust, scale = _robust_weights(depth, y, role, fit)
        weights = robust[None]
    return fit, weights[0], scale


_LEAST_LIMIT_NM = 0.24  # a column spacing: a thinner layer holds no column of its own


def _stands_out(fit: _Profile, d: np.ndarray, y: np.ndarray, r: np.ndarray, weights: np.ndarray) -> bool:
    """Whether a layer explains brightness ``y`` of columns of roles ``r`` at depths ``d`` better than none, and fills lithium columns."""
    flat = sum(
        float(np.sum(weights[r == k] * (y[r == k] - np.average(y[r == k], weights=weights[r == k])) ** 2))
        for k in range(4)
        if np.any(r == k)
    )
    gain = (flat - fit.misfit) / 6 / max(fit.misfit / max(len(y) - 10, 1), 1e-12)
    change = fit.levels[:, 1] - fit.levels[:, 0]
    filled = (r >= 2) & (d < fit.thickness)
    rise = float((y - fit.levels[r, 0])[filled].mean()) if filled.sum() > 3 else 0.0
    return bool(gain > 12 and fit.thickness > _LEAST_LIMIT_NM and min(rise, float(change[2:].mean())) > 0.08)


def _resampled_profiles(
    rng: np.random.Generator, fit: _Profile, weights: np.ndarray, along: np.ndarray, d: np.ndarray, y: np.ndarray, r: np.ndarray,
    draws: int,
) -> tuple[list[_Profile], int]:  # fmt: skip
    """Profiles about ``fit`` for blocks ``along`` (n,) the surface drawn with replacement, and the number of blocks."""
    blocks = np.floor((along - along.min()) / max(0.5, float(np.ptp(along)) / 40)).astype(int)
    count = int(blocks.max()) + 1
    drawn = rng.multinomial(count, np.full(count, 1 / count), size=draws)
    near = fit.thickness + np.arange(-0.6, 0.61, 0.03)
    shallow = d < fit.thickness + 4.0
    return _fit_profile(d[shallow], y[shallow], r[shallow], (drawn[:, blocks] * weights)[:, shallow], near[near > 0.05]), count


def _alternation(levels: np.ndarray) -> np.ndarray:
    """Contrast between full and half columns in the metal rows of a layer, of levels (..., 4, 2)."""
    return (levels[..., 0, 1] - levels[..., 1, 1]) / (levels[..., 0, 1] + levels[..., 1, 1])


def _layer_from(
    rng: np.random.Generator,
    fit: _Profile,
    weights: np.ndarray,
    scale: float,
    columns: Columns,
    contour: SurfaceContour,
    way: np.ndarray,
    depth: np.ndarray,
    inside: np.ndarray,
    role: np.ndarray,
    bootstraps: int,
) -> SurfaceLayer:
    """The fitted profile as a layer or as none, with intervals by resampling blocks along the surface."""
    d, y, r = depth[inside], columns.brightness[inside], role[inside]
    seen = (contour, columns, way, depth, np.where(inside, role, -1))
    has_layer = _stands_out(fit, d, y, r, weights)
    _check_bulk(fit, d, r, has_layer)
    if not has_layer:
        limit = max(_upper_limit(d, y, r, weights, scale) + 2 * contour.error_nm, _LEAST_LIMIT_NM)
        nothing = np.column_stack([fit.levels[:, 0]] * 2)
        return SurfaceLayer(0.0, (0.0, limit), limit, "none", fit.width, nothing, (0.0, 0.0), (0.0, 0.0), *seen)
    fits, count = _resampled_profiles(rng, fit, weights, way[inside], d, y, r, bootstraps)
    found, levels = np.array([f.thickness for f in fits]), np.array([f.levels for f in fits])
    slope = np.gradient(contour.edge(contour.length_nm), contour.length_nm)
    direction = 0.5 * fit.thickness * float(np.mean(slope**2))  # along which normal: that of the base line or that of its waves
    spread = math.hypot(float(found.std()) * math.sqrt(count / max(count - 1, 1)), math.sqrt(2) * contour.error_nm, direction)
    half = 1.96 * spread * (1 + 1.2 / max(count - 1, 1))
    ci = (max(0.0, float(fit.thickness - half)), float(fit.thickness + half))
    alternation = (float(_alternation(fit.levels)), float(_alternation(levels).std()))
    lithium = (float(fit.levels[2:, 1].mean()), float(levels[:, 2:, 1].mean(axis=1).std()))
    return SurfaceLayer(fit.thickness, ci, ci[1], _kind(alternation), fit.width, fit.levels, alternation, lithium, *seen)


def _kind(alternation: tuple[float, float]) -> str:
    """Spinel alternates full and half columns in its metal rows (1/3), rocksalt does not (0); between them, undecided."""
    value, error = alternation
    if value - 1.96 * error > 0.13:
        return "spinel"
    return "rocksalt" if value + 1.96 * error < 0.20 else "undecided"


def _upper_limit(depth: np.ndarray, y: np.ndarray, role: np.ndarray, weights: np.ndarray, scale: float) -> float:
    """The thickest layer with a quarter of a metal column in its lithium columns that the columns do not rule out (95 %)."""
    lithium = role >= 2
    d, v, w = depth[lithium], y[lithium], weights[lithium]
    base = float(np.average(v, weights=w))
    trial = np.arange(0.0, 1.5, 0.02)
    inner = transformed_share(d[:, None], trial[None], 0.05)
    misfit = np.sum(w[:, None] * ((v[:, None] - base - (0.25 - base) * inner) / scale) ** 2, axis=0)
    allowed = trial[misfit < misfit.min() + 3.84]
    return float(allowed.max()) + 0.02


FINGERPRINTS = {
    "003": ((0.0, 0.5), "layered 003 / spinel 111, 0.474 nm"),
    "111": ((0.5, 0.0), "second spinel 111 at 70.5°, 0.474 nm"),
    "220": ((0.5, -0.5), "M3O4 spinel 220, 0.287 nm"),
}


def fingerprint_maps(image: np.ndarray, lattice: ImageLattice, cations: CationLattice, blur_nm: float = 0.35) -> dict[str, np.ndarray]:
    """Local amplitude of the frequencies that tell the phases apart, and of those that all of them share.

    The image is demodulated on the fitted lattice (so distortions of the scan do not blur it) and
    smoothed with a Gaussian of ``blur_nm``, in steps of 0.04 nm. "003" is signed, positive where metal lies in the metal layers; "111" and
    "220" are moduli; "shared" is the mean modulus of the two shortest cation frequencies. All (y, x), counts.
    """
    from scipy.ndimage import gaussian_filter

    image = np.asarray(image, dtype=float)
    pixel_nm = lattice.scan()["pixel_size_nm"]
    factor = max(1, int(0.04 / pixel_nm))
    coarse, lattice, blur = _binned(image, factor), lattice.rescaled(1 / factor), blur_nm / (pixel_nm * factor)
    flat = coarse - gaussian_filter(coarse, blur)
    y, x = np.meshgrid(np.arange(coarse.shape[0]), np.arange(coarse.shape[1]), indexing="ij")
    ij = (lattice.to_lattice(np.stack([y.ravel(), x.ravel()], axis=1)) @ np.linalg.inv(cations.steps)).reshape(*coarse.shape, 2)

    def lock_in(q: tuple[float, float]) -> np.ndarray:
        phase = 2 * np.pi * (ij @ np.array(q))
        return gaussian_filter(flat * np.cos(phase), blur) - 1j * gaussian_filter(flat * np.sin(phase), blur)

    maps = {name: lock_in(q) for name, (q, _) in FINGERPRINTS.items()}
    shared = 0.5 * (np.abs(lock_in((0.0, 1.0))) + np.abs(lock_in((1.0, 0.0))))
    maps = {"003": maps["003"].real, "111": np.abs(maps["111"]), "220": np.abs(maps["220"]), "shared": shared}
    over = [(0, n - m * factor) for n, m in zip(image.shape, coarse.shape, strict=True)]
    return {name: np.pad(np.kron(m, np.ones((factor, factor))), over, mode="edge") for name, m in maps.items()}


def fingerprint_profile(
    maps: dict[str, np.ndarray], lattice: ImageLattice, contour: SurfaceContour, blur_nm: float = 0.35
) -> dict[str, np.ndarray]:
    """Mean over the surface of every fingerprint, relative to the shared frequencies, against depth in steps of 0.05 nm.

    Returns ``depth_nm`` (m,) and one array (m,) for each fingerprint, all in units of the 003 of the bulk.
    """
    shape = maps["shared"].shape
    step = max(1, round(0.04 / lattice.scan()["pixel_size_nm"]))
    edge = round(blur_nm / lattice.scan()["pixel_size_nm"])
    y, x = (g.ravel() for g in np.meshgrid(np.arange(edge, shape[0] - edge, step), np.arange(edge, shape[1] - edge, step), indexing="ij"))
    _, depth, seen = contour.places(lattice.to_lattice(np.stack([y, x], axis=1)) @ lattice.columns.basis_nm)
    seen &= depth >= 0
    bins = np.floor(depth[seen] / 0.05).astype(int)
    count = np.bincount(bins)
    good = count >= max(20, 0.3 * float(np.median(count)))
    last = int(np.argmin(good)) if not good.all() else len(good)
    total = {k: np.bincount(bins, weights=m[y, x][seen])[:last] for k, m in maps.items()}
    out = {k: v / total["shared"] for k, v in total.items() if k != "shared"}
    bulk = float(np.median(out["003"][-max(10, last // 5) :]))
    return {"depth_nm": (np.arange(last) + 0.5) * 0.05, **{k: v / bulk for k, v in out.items()}}


@dataclass(frozen=True)
class FingerprintLayer:
    """What the fingerprint frequencies alone say of the layer: its thickness and phase, and their levels in it (003 of the bulk = 1).

    ``phase`` is "LiM2O4", "M3O4", "rocksalt", "none" or "undecided"; ``fitted`` (m,) the 003 of the profile as fitted.
    """

    thickness_nm: float
    phase: str
    levels: dict[str, float]
    fitted: np.ndarray

    @property
    def kind(self) -> str:
        """The phase with both spinels as one."""
        return "spinel" if self.phase in ("LiM2O4", "M3O4") else self.phase


def fingerprint_layer(profile: dict[str, np.ndarray], blur_nm: float = 0.35) -> FingerprintLayer:
    """Thickness and phase of the layer from the fingerprint frequencies, without any column.

    The share falls by a step with a width of 0.12 nm; blur and edge of the crystal are part of the model. In a rocksalt
    the frequencies that all share grow by as much as the 003 shrinks, which moves the half value of their ratio; in a spinel they
    stay. Expected of the four columns (1, 1/2, 1/2, 0) and the metal of the 8a columns: LiM₂O₄ 003 and 111 of 1/2 and no 220; M₃O₄
    220 the strongest.
    """
    depth, seen = profile["depth_nm"], profile["003"]
    x = np.arange(-2.0, depth[-1] + 2.0, 0.02)
    kernel = np.exp(-0.5 * ((depth[:, None] - x) / blur_nm) ** 2) * (x > 0)
    kernel /= kernel.sum(axis=1, keepdims=True)
    trials = np.arange(0.02, 0.9 * depth[-1], 0.02)
    blurred = kernel @ transformed_share(x[:, None], trials, 0.12)
    best, level, fitted = _fit_003(seen, blurred, 0.0)
    share = blurred[:, best]
    levels = {"003": level} | {k: _level_over_bulk(profile[k], share) for k in ("111", "220")}
    if level > 0.85 or trials[best] < _LEAST_LIMIT_NM:
        return FingerprintLayer(0.0, "none", levels, np.ones_like(seen))
    if levels["220"] > max(0.12, levels["111"]):
        phase = "M3O4"
    elif levels["111"] > max(0.2, 1.5 * levels["220"]):
        phase = "LiM2O4"
    else:
        phase = "rocksalt" if max(levels["111"], levels["220"]) < 0.12 else "undecided"
    if phase == "rocksalt":
        best, levels["003"], fitted = _fit_003(seen, blurred, 1.0)
    return FingerprintLayer(float(trials[best]), phase, levels, fitted)


def _fit_003(seen: np.ndarray, blurred: np.ndarray, growth: float) -> tuple[int, float, np.ndarray]:
    """Which of the shares (m, trials) explains the 003 over the shared frequencies, its level in the layer, and the fit (m,).

    ``growth``: by how much of what the 003 loses the shared frequencies gain.
    """
    best = (math.inf, 0, 1.0, seen)
    drop = np.clip(np.sum(blurred * (1 - seen)[:, None], axis=0) / np.maximum(np.sum(blurred**2, axis=0), 1e-9), 0, 1.5)
    for trial, least in enumerate(drop):
        share = blurred[:, trial]
        for lost in np.linspace(0.3, 1.0, 15) if growth else (least,):
            fitted = (1 - lost * share) / (1 + growth * lost * share)
            misfit = float(np.sum((seen - fitted) ** 2))
            if misfit < best[0]:
                best = (misfit, trial, 1 - float(lost), fitted)
    return best[1:]


def _level_over_bulk(amplitude: np.ndarray, share: np.ndarray) -> float:
    """Amplitude that a profile (m,) has where the share is 1, over what it has where that is 0."""
    design = np.stack([np.ones_like(share), share], axis=1)
    return float(np.linalg.lstsq(design, amplitude, rcond=None)[0][1])


def tetrahedral_brightness(image: np.ndarray, lattice: ImageLattice, cations: CationLattice, columns: Columns) -> np.ndarray:
    """Brightness (n,) at the two 8a places beside every column, less that at two places as far off the other way, of a full metal column.

    Beside the empty column of an M₃O₄ the 8a columns hold half a metal column; beside that of LiM₂O₄ lithium, which is dark.
    """
    from scipy.ndimage import gaussian_filter, map_coordinates

    smooth = gaussian_filter(np.asarray(image, dtype=float), 0.03 / lattice.scan()["pixel_size_nm"])
    full = columns.height / np.where(np.abs(columns.brightness) > 1e-9, columns.brightness, 1e-9)
    along = 0.25 * cations.steps.sum(axis=0)
    other_nm = np.array([-1.0, 1.0]) * (along @ lattice.columns.basis_nm)[::-1]
    across = other_nm @ np.linalg.inv(lattice.columns.basis_nm)
    at = columns.index @ cations.steps
    values = [map_coordinates(smooth, lattice.to_px(at + side * v).T, order=1, mode="nearest") for v in (along, across) for side in (1, -1)]
    return (values[0] + values[1] - values[2] - values[3]) / 2 / full


def spinel_variant(layer: SurfaceLayer, tetrahedral: np.ndarray) -> tuple[str, float, float]:
    """ "LiM2O4", "M3O4" or "undecided", by the metal on the 8a columns (`tetrahedral_brightness`), with that signal and its standard error.

    The signal is that beside the empty columns of the layer, less the same measure in the bulk.
    """
    empty = (layer.role == 3) & (layer.depth_nm < layer.thickness_nm - 0.2) & (layer.depth_nm > 0.15)
    bulk = (layer.role >= 2) & (layer.depth_nm > layer.thickness_nm + 0.4)
    if empty.sum() < 6 or bulk.sum() < 6:
        return "undecided", 0.0, 1.0
    inner, outer = tetrahedral[empty], tetrahedral[bulk]
    value = float(np.median(inner) - np.median(outer))
    error = 1.25 * float(np.hypot(inner.std() / math.sqrt(len(inner)), outer.std() / math.sqrt(len(outer))))
    if value - 1.96 * error > 0.12:
        return "M3O4", value, error
    return ("LiM2O4" if value + 1.96 * error < 0.20 else "undecided"), value, error


#: Structures that columns are told apart into, with the colour of each.
REGIONS = {"layered": PHASE_COLOURS["layered"], "LiM2O4": PHASE_COLOURS["spinel"], "M3O4": PHASE_COLOURS["spinel_m3o4"]}
REGIONS |= {"rocksalt": PHASE_COLOURS["rocksalt"], "undecided": "#999999"}

# metal in the columns (i mod 2) + 2 (j mod 2) of each structure; a rocksalt-like one may lack some in the former lithium layer
_STRUCTURES = [("layered", (1.0, 1.0, 0.0, 0.0))]
_STRUCTURES += [("rocksalt", (1.0, 1.0, f, f)) for f in np.arange(0.5, 1.01, 0.05)]
_STRUCTURES += [("spinel", (*metal, *lithium)) for metal in ((1.0, 0.5), (0.5, 1.0)) for lithium in ((0.5, 0.0), (0.0, 0.5))]


def column_regions(layer: SurfaceLayer, tetrahedral: np.ndarray, reach_nm: float = 0.45) -> tuple[np.ndarray, np.ndarray]:
    """The structure about every column: posterior (n, 4) of the first four of `REGIONS`, and the index (n,) of what it is called.

    The brightness of the four kinds of column, averaged with a Gaussian of ``reach_nm``, is compared with that of each structure in each of
    its origins; levels may be off by 0.12 of a metal column. Which spinel it is says ``tetrahedral`` (n,), the brightness of the 8a columns
    beside those that are empty in it. "Undecided" where no structure has 0.9, or none fits (χ² > 16 for four levels); −1 outside.
    """
    from scipy.spatial import cKDTree

    columns, used = layer.columns, layer.role >= 0
    base = float(layer.levels[2:, 0].mean())
    bright = (columns.brightness - base) / (1 - base)
    variance = columns.noise**2 + 0.06**2
    lithium = used & ~columns.is_metal
    bulk_8a = float(np.median(tetrahedral[lithium & (layer.depth_nm > layer.thickness_nm + 0.4)])) if lithium.any() else 0.0
    scatter_8a = 1.4826 * float(np.median(np.abs(tetrahedral[lithium] - np.median(tetrahedral[lithium]))))
    rows = np.flatnonzero(used)
    nm = columns.nm[rows]
    apart, near = cKDTree(nm).query(nm, k=min(48, len(nm)))
    weight = np.exp(-0.5 * (apart / reach_nm) ** 2)
    level, error, t_level, t_error = (np.empty((len(rows), 4)) for _ in range(4))
    for kind in range(4):
        w = weight * (columns.kind[rows][near] == kind)
        total = np.maximum(w.sum(axis=1), 1e-9)
        level[:, kind] = (w * bright[rows][near]).sum(axis=1) / total
        error[:, kind] = np.sqrt((w**2 * variance[rows][near]).sum(axis=1)) / total + 1.0 * (total < 0.5)
        t_level[:, kind] = (w * tetrahedral[rows][near]).sum(axis=1) / total - bulk_8a
        t_error[:, kind] = scatter_8a * np.sqrt((w**2).sum(axis=1)) / total + 1.0 * (total < 0.5)
    names = list(REGIONS)[:4]
    chi2, best = np.full((len(rows), 4), np.inf), np.full((len(rows), 4), np.inf)
    for name, expected in _STRUCTURES:
        off = np.sum((level - expected) ** 2 / (error**2 + 0.12**2), axis=1)
        empty = int(np.argmin(expected))
        spread = t_error[:, empty] ** 2 + 0.08**2
        lit = (t_level[:, empty] - 0.36) ** 2 / spread - t_level[:, empty] ** 2 / spread
        for k in [names.index(name)] if name != "spinel" else (1, 2):
            score = off + (lit if k == 2 else 0.0)
            chi2[:, k], best[:, k] = np.where(score < best[:, k], (off, score), (chi2[:, k], best[:, k]))
    posterior = np.exp(-0.5 * (best - best.min(axis=1, keepdims=True)))
    posterior /= posterior.sum(axis=1, keepdims=True)
    winner = posterior.argmax(axis=1)
    doubt = (posterior.max(axis=1) < 0.9) | (chi2[np.arange(len(rows)), winner] > 16)
    full, label = np.zeros((len(used), 4)), np.full(len(used), -1)
    full[rows], label[rows] = posterior, np.where(doubt, 4, winner)
    return full, label


@dataclass(frozen=True)
class LayerAlong:
    """The layer's thickness along the surface, in blocks (b,).

    ``way_nm``, ``thickness_nm`` with its standard error ``error_nm``, and ``channel_deg``, the angle between the surface's normal and the
    (003) planes that lithium moves in (0: channels end at the surface). ``spread_nm`` is the standard deviation of the thickness itself,
    the errors taken off. ``deeper_along_nm`` is how much thicker the layer is where channels end at the surface than where they run along
    it, with its standard error; None with a ``reason`` where the surface does not turn enough to tell.
    """

    way_nm: np.ndarray
    thickness_nm: np.ndarray
    error_nm: np.ndarray
    channel_deg: np.ndarray
    spread_nm: float | None
    deeper_along_nm: tuple[float, float] | None
    reason: str | None


def layer_along(layer: SurfaceLayer, cations: CationLattice, block_nm: float = 0.8) -> LayerAlong:
    """Thickness of a layer in blocks along the surface, with levels and width of the whole, and whether it is deeper along the channels."""
    middles, thicknesses, errors = [], [], []
    rows = np.flatnonzero(layer.role >= 0)
    s, d, y, r = layer.way_nm[rows], layer.depth_nm[rows], layer.columns.brightness[rows], layer.role[rows]
    trials = np.arange(0.0, layer.thickness_nm + 2.0, 0.02)
    share = transformed_share(d[:, None], trials, layer.width_nm)
    off = y[:, None] - layer.levels[r, 0][:, None] * (1 - share) - layer.levels[r, 1][:, None] * share
    scale = max(1.4826 * float(np.median(np.abs(off[:, np.argmin((off**2).sum(axis=0))]))), 0.02)
    cost = np.minimum((off / scale) ** 2, 9.0)
    edge_error = 0.4 * math.sqrt(cations.spacing_nm / block_nm) * cations.spacing_nm
    for low in np.arange(s.min(), s.max() - 0.5 * block_nm, block_nm) if layer.thickness_nm > 0 else ():
        here = (s >= low) & (s < low + block_nm)
        total = cost[here].sum(axis=0)
        best = int(np.argmin(total))
        deepest = d[here].max() if here.any() else 0.0
        allowed = trials[total < total[best] + 1]
        if here.sum() < 12 or not 0 < best < len(trials) - 1 or trials[best] > deepest - 0.4:
            continue
        middles.append(low + 0.5 * block_nm)
        thicknesses.append(float(trials[best]))
        errors.append(math.hypot(0.5 * float(np.ptp(allowed)) + 0.02, edge_error))
    way, thickness, error = np.array(middles), np.array(thicknesses), np.array(errors)
    channel = cations.steps_nm[0] / np.linalg.norm(cations.steps_nm[0])
    normals = layer.contour.normals(way) if len(way) else np.zeros((0, 2))
    angle = np.degrees(np.arccos(np.clip(np.abs(normals @ channel), 0, 1)))
    if len(way) < 4:
        return LayerAlong(way, thickness, error, angle, None, None, "the layer is followed over fewer than four blocks of the surface")
    spread = math.sqrt(max(0.0, float(thickness.var(ddof=1) - np.mean(error**2))))
    return LayerAlong(way, thickness, error, angle, spread, *_deeper_along(thickness, np.hypot(error, spread), angle))


def _weighted_line(x: np.ndarray, y: np.ndarray, error: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Offset and slope (2,) of a straight line through y ± error (n,), their covariance (2, 2), and what is left in errors (n,)."""
    design = np.stack([np.ones_like(x), x], axis=1) / error[:, None]
    covariance = np.linalg.inv(design.T @ design)
    found = covariance @ design.T @ (y / error)
    return found, covariance, y / error - design @ found


def _deeper_along(thickness: np.ndarray, error: np.ndarray, channel_deg: np.ndarray) -> tuple[tuple[float, float] | None, str | None]:
    """Slope of the thickness over cos² of the angle to the channels, with its error; or why there is none."""
    steer = np.cos(np.radians(channel_deg)) ** 2
    if np.ptp(steer) < 0.15 or len(steer) < 8:
        low, high = float(channel_deg.min()), float(channel_deg.max())
        return None, f"the surface's normal keeps to {low:.0f}° to {high:.0f}° from the channels: along and across cannot be compared"
    found, covariance, off = _weighted_line(steer, thickness, error)
    alike = float(np.clip(np.sum(off[1:] * off[:-1]) / np.sum(off**2), 0.0, 0.9))  # neighbours that vary together count less
    inflation = max(1.0, float(off @ off) / (len(steer) - 2)) * (1 + alike) / (1 - alike)
    return (float(found[1]), math.sqrt(float(covariance[1, 1]) * inflation)), None


def thickness_at_zero_dose(dose_e_per_A2: np.ndarray, thickness_nm: np.ndarray, error_nm: np.ndarray) -> dict[str, float]:
    """A straight line through the thicknesses that images of one area show at growing doses, and where it meets dose zero.

    ``error_nm`` are standard errors; where the images scatter more than these allow, that scatter is used.

    Returns
    -------
    ``thickness_nm``, ``error_nm`` at dose zero, ``growth_nm_per_1000_e_per_A2`` and ``growth_error``.

    Raises
    ------
    ParameterError
        Fewer than two different doses.
    """
    dose, thickness, error = (np.asarray(v, dtype=float) for v in (dose_e_per_A2, thickness_nm, error_nm))
    if len(np.unique(dose)) < 2:
        raise ParameterError(f"doses {dose.tolist()}: expected two different ones or more to go back to dose zero")
    found, covariance, off = _weighted_line(dose / 1000, thickness, error)
    misfit = float(np.sum(off**2)) / max(1, len(dose) - 2)
    sigma = np.sqrt(np.diag(covariance) * max(1.0, misfit))
    return {
        "thickness_nm": float(max(0.0, found[0])),
        "error_nm": float(sigma[0]),
        "growth_nm_per_1000_e_per_A2": float(found[1]),
        "growth_error": float(sigma[1]),
    }


# --------------------------------------------------------------------------------------
# 04 Bright field: phases at the interface by local spectra
# --------------------------------------------------------------------------------------


#: Candidates where sample.yaml names none.
INTERFACE_PHASES = ("layered", "rocksalt", "spinel", "llzo", "la2zr2o7", "lanio3", "li2co3")

_MIN_Q, _MAX_Q = 0.12, 0.72  # 1/Å: below lies the slope of the background, above the damping of the microscope
_STRAIN = 0.006  # share of q by which a spot may move with strain and bending
_RANDOM_PEAK = 0.06  # share of peaks that no candidate explains
_MISFIT = 0.4  # share of the amplitudes that the lattices found leave unexplained before a point is ambiguous


@dataclass(frozen=True)
class ZonePattern:
    """Spots of a phase in a zone axis: ``spots`` complex x + iy in 1/Å, ``weight`` (sum 1 over a half plane), ``amplitude`` (max 1)."""

    phase: str
    zone_axis: tuple[int, int, int]
    hkl: np.ndarray
    spots: np.ndarray
    weight: np.ndarray
    amplitude: np.ndarray


def zone_patterns(crystal: Crystal, max_index: int = 2) -> list[ZonePattern]:
    """Spot patterns of a crystal in its low-index zone axes, one of each kind.

    Zone axes whose reflections have the same lengths and intensities count once (equal by
    symmetry or mirror images, and the search tries both hands). Left out are zones with spots
    in one direction only.
    """
    found = reflections(crystal, _MAX_Q, 1e-4)
    steps = range(-max_index, max_index + 1)
    axes = [(u, v, w) for u in steps for v in steps for w in steps if math.gcd(u, v, w) == 1 and (u, v, w) > (0, 0, 0)]
    axes.sort(key=lambda a: (sum(map(abs, a)), [-x for x in a]))
    patterns: dict[tuple, ZonePattern] = {}
    for axis in axes:
        here = found.hkl @ np.array(axis) == 0
        if here.sum() < 6:
            continue
        g, intensity = found.g[here], found.intensity[here]
        key = tuple(sorted(zip(np.round(np.linalg.norm(g, axis=1), 4), np.round(np.log(intensity), 1), strict=True)))
        spots = g @ _view_along(crystal, axis)[:2].T @ np.array([1, 1j])
        spread = np.linalg.eigvalsh(np.cov(np.stack([spots.real, spots.imag])))
        if key in patterns or spread[0] < 1e-3:
            continue
        amplitude = np.sqrt(intensity / intensity.max())
        weight = amplitude + 0.03
        weight = 2 * weight / weight.sum()
        patterns[key] = ZonePattern(crystal.name, axis, found.hkl[here], spots, weight, amplitude)
    return list(patterns.values())


def _window_origins(shape: tuple[int, int], size: int, stride: int) -> np.ndarray:
    """Upper left corners (n, 2) of windows that cover an image evenly."""
    rows, columns = (np.linspace(0, n - size, max(1, round((n - size) / stride) + 1)).round().astype(int) for n in shape)
    return np.array([(y, x) for y in rows for x in columns])


def _rings(half: int) -> np.ndarray:
    """Whole number of bins from the middle, (2 half, 2 half)."""
    return np.hypot(*np.indices((2 * half, 2 * half)) - half).astype(int)


@dataclass(frozen=True)
class WindowSpectra:
    """Spectra of windows: ``power`` (n, m, m), zero frequency in the middle, ``background`` (n, r) in r rings of one bin each.

    ``origins`` (n, 2) px are the upper left corners of the windows, ``size`` px their side and ``bin_invA`` a bin of frequency.
    """

    power: np.ndarray
    background: np.ndarray
    origins: np.ndarray
    size: int
    bin_invA: float

    @property
    def centres(self) -> np.ndarray:
        """Middle of every window (n, 2) in px."""
        return self.origins + (self.size - 1) / 2

    def mean(self, windows: np.ndarray | list[int]) -> tuple[np.ndarray, np.ndarray]:
        """Mean power (m, m) of some windows, and that power over the mean background."""
        power = self.power[windows].mean(axis=0)
        return power, power / self.background[windows].mean(axis=0)[_rings(len(power) // 2)]


def window_spectra(image: np.ndarray, pixel_size_nm: float, window_nm: float = 3.8, stride_nm: float = 1.0) -> WindowSpectra:
    """Power spectra of Hann windows over the background of each.

    The background is that of noise and amorphous matter: in every ring of frequency the 30 %
    quantile, which spots do not reach, over 0.357, its value for exponential statistics.
    """
    from scipy.fft import fft2, fftshift
    from scipy.ndimage import gaussian_filter1d

    size = min(2 * round(window_nm / pixel_size_nm / 2), *(2 * (n // 2) for n in image.shape))
    origins = _window_origins(image.shape, size, max(1, round(stride_nm / pixel_size_nm)))
    taper = np.sin(np.pi * np.arange(size, dtype=np.float32) / size) ** 2
    taper = taper[:, None] * taper
    bin_invA = 1 / (10 * pixel_size_nm * size)
    half = min(size // 2, math.ceil((_MAX_Q + 0.05) / bin_invA))
    middle = slice(size // 2 - half, size // 2 + half)
    ring = _rings(half)
    order = np.argsort(ring.ravel(), kind="stable")
    starts = np.searchsorted(ring.ravel()[order], np.arange(ring.max() + 2))
    spectra = np.empty((len(origins), 2 * half, 2 * half), dtype=np.float32)
    background = np.empty((len(origins), ring.max() + 1), dtype=np.float32)
    for i, (y, x) in enumerate(origins):
        part = image[y : y + size, x : x + size].astype(np.float32)
        part = (part - part.mean()) * taper
        power = np.abs(fftshift(fft2(part))[middle, middle]) ** 2
        in_order = power.ravel()[order]
        low = [np.quantile(in_order[a:b], 0.3) / 0.357 for a, b in itertools.pairwise(starts)]
        background[i] = np.exp(gaussian_filter1d(np.log(np.maximum(low, 1e-12)), 1.5))
        spectra[i] = power
    return WindowSpectra(spectra, background, origins, size, bin_invA)


def spectrum_peaks(
    power: np.ndarray, snr: np.ndarray, bin_invA: float, threshold: float = 13.0, limit: int = 24
) -> tuple[np.ndarray, np.ndarray]:
    """Peaks of one spectrum in a half plane: positions complex x + iy (1/Å), and their power over background.

    Sub-pixel from the ratio of neighbours, exact for a Hann window; strongest first.
    """
    from scipy.ndimage import maximum_filter

    half = snr.shape[0] // 2
    y, x = np.nonzero((snr == maximum_filter(snr, 3)) & (snr > threshold))
    inside = (y > 0) & (x > 0) & (y < 2 * half - 1) & (x < 2 * half - 1) & ((y > half) | ((y == half) & (x > half)))
    y, x = y[inside], x[inside]
    height = np.sqrt(power)

    def shift(before: np.ndarray, at: np.ndarray, after: np.ndarray) -> np.ndarray:
        ratio = np.maximum(before, after) / at
        return np.where(after > before, 1, -1) * np.clip((2 * ratio - 1) / (1 + ratio), 0, 0.6)

    dy = shift(height[y - 1, x], height[y, x], height[y + 1, x])
    dx = shift(height[y, x - 1], height[y, x], height[y, x + 1])
    q = ((x - half + dx) + 1j * (y - half + dy)) * bin_invA
    strength = snr[y, x]
    keep = (np.abs(q) > _MIN_Q) & (np.abs(q) < _MAX_Q)
    order = np.argsort(-strength[keep])[:limit]
    return q[keep][order], strength[keep][order]


@numba.njit(cache=True)
def _match(q, sigma, predicted, weight, area, excused, matched):
    """Log likelihood of peak positions over that of random ones; ``matched`` gets the spot of each peak or -1.

    A peak that is ``excused``, because a neighbour explains it, does not count against the pattern.
    """
    total = 0.0
    for i in range(len(q)):
        best, best_k, var = -1e9, -1, 2 * sigma[i] ** 2
        for k in range(len(predicted)):
            d2 = abs(q[i] - predicted[k]) ** 2
            if d2 < 8 * var:
                value = math.log(weight[k]) - d2 / var
                if value > best:
                    best, best_k = value, k
        matched[i] = best_k
        density = _RANDOM_PEAK
        if best_k >= 0:
            density += (1 - _RANDOM_PEAK) * area * math.exp(best) / (math.pi * var)
        total += max(math.log(density), 0.0) if excused[i] else math.log(density)
    return total


@numba.njit(cache=True)
def _missing(q, strength, predicted, amplitude, matched, threshold):
    """Log likelihood of what is predicted strong and not seen, at worst -12; and whether spots of two directions are."""
    seen = np.zeros(len(predicted), dtype=np.bool_)
    measured, expected, cross = 0.0, 0.0, 0.0
    for i in range(len(q)):
        if matched[i] >= 0:
            seen[matched[i]] = True
            measured += math.sqrt(strength[i])
            expected += amplitude[matched[i]]
            for j in range(i):
                if matched[j] >= 0:
                    cross = max(cross, abs((q[i] * np.conj(q[j])).imag) / (abs(q[i]) * abs(q[j])))
    if expected == 0.0:
        return -12.0, 0.0
    total = 0.0
    for k in range(len(predicted)):
        p = predicted[k]
        if seen[k] or p.imag < 0 or (p.imag == 0 and p.real < 0) or abs(p) < _MIN_Q or abs(p) > _MAX_Q:
            continue
        near = 1e9
        for j in range(len(predicted)):
            if seen[j]:
                near = min(near, abs(predicted[j] + p), abs(predicted[j] - p))
        ratio = amplitude[k] * measured / expected / math.sqrt(threshold)
        if near > 1e-6 and ratio > 1.3:
            total -= 0.7 if ratio < 2.2 else 1.6
    return max(total, -12.0), cross


@numba.njit(cache=True)
def _fit_turn(q, sigma, predicted, matched):
    """Complex factor of the pattern that fits the matched peaks best."""
    top, bottom = 0j, 0.0
    for i in range(len(q)):
        if matched[i] >= 0:
            p = predicted[matched[i]]
            top += q[i] * np.conj(p) / sigma[i] ** 2
            bottom += abs(p) ** 2 / sigma[i] ** 2
    return top / bottom if bottom > 0 else 1 + 0j


@numba.njit(cache=True)
def _search(q, sigma, strength, excused, spots, weight, amplitude, offsets, tolerance, scale_sigma, threshold, area):
    """Best score, complex factor and hand of every pattern for one window's peaks."""
    n = len(offsets) - 1
    best = np.full(n, -1e9)
    turns = np.ones(n, dtype=np.complex128)
    hands = np.zeros(n, dtype=np.int64)
    matched = np.empty(len(q), dtype=np.int64)
    for t in range(n):
        a, b = offsets[t], offsets[t + 1]
        w, f = weight[a:b], amplitude[a:b]
        for hand in range(2):
            g = spots[a:b] if hand == 0 else np.conj(spots[a:b])
            for i in range(min(5, len(q))):
                for k in range(b - a):
                    scale = abs(q[i]) / abs(g[k])
                    if abs(scale - 1) > tolerance or f[k] < 0.08:
                        continue
                    turn = q[i] / g[k]
                    if scale_sigma < 0.005:
                        turn /= scale
                    score = _match(q, 1.5 * sigma, turn * g, w, area, excused, matched)
                    if score < best[t] - 8 or score < 0:
                        continue
                    turn *= _fit_turn(q, sigma, turn * g, matched)
                    predicted = turn * g
                    score = _match(q, sigma, predicted, w, area, excused, matched)
                    lack, cross = _missing(q, strength, predicted, f, matched, threshold)
                    score += lack - 0.5 * ((abs(turn) - 1) / scale_sigma) ** 2
                    if cross > 0.2 and score > best[t]:
                        best[t], turns[t], hands[t] = score, turn, hand
    return best, turns, hands


class _PatternBank:
    """All candidate patterns in the flat arrays that the search takes, with the prior of each."""

    def __init__(self, patterns: list[ZonePattern]):
        self.patterns = patterns
        self.phases = list(dict.fromkeys(p.phase for p in patterns))
        self.spots = np.concatenate([p.spots for p in patterns])
        self.weight = np.concatenate([p.weight for p in patterns])
        self.amplitude = np.concatenate([p.amplitude for p in patterns])
        self.offsets = np.concatenate([[0], np.cumsum([len(p.spots) for p in patterns])])
        zones = [sum(p.phase == other.phase for other in patterns) for p in patterns]
        self.log_prior = -np.log(np.array(zones, dtype=float)) - math.log(len(self.phases))
        self.phase_index = np.array([self.phases.index(p.phase) for p in patterns])

    def search(
        self, q: np.ndarray, sigma: np.ndarray, strength: np.ndarray, tolerance: float, threshold: float, excused: np.ndarray | None = None
    ) -> tuple:
        """Log posterior (up to a constant; 0 is chance), complex factor and hand of every pattern."""
        if len(q) < 2:
            n = len(self.patterns)
            return np.full(n, -1e9), np.ones(n, dtype=complex), np.zeros(n, dtype=int)
        scale_sigma = 0.02 if tolerance > 0.02 else 0.004
        area = math.pi * (_MAX_Q**2 - _MIN_Q**2) / 2
        arrays = (self.spots, self.weight, self.amplitude, self.offsets)
        excused = np.zeros(len(q), dtype=bool) if excused is None else excused
        score, turn, hand = _search(q, sigma, strength, excused, *arrays, tolerance, scale_sigma, threshold, area)
        return score + self.log_prior, turn, hand

    def phase_posterior(self, score: np.ndarray) -> np.ndarray:
        """Posterior of each phase, and of chance as the last, from the scores of all patterns."""
        best = np.array([score[self.phase_index == i].max() for i in range(len(self.phases))] + [0.0])
        best = np.exp(best - best.max())
        return best / best.sum()

    def zone_posterior(self, score: np.ndarray) -> dict[str, float]:
        """Posterior of every phase in every zone axis, those above a thousandth, and of chance as "unknown"; the most probable first."""
        share = np.exp(np.append(score, 0.0) - max(float(score.max()), 0.0))
        share /= share.sum()
        names = [*(f"{p.phase} [{' '.join(map(str, p.zone_axis))}]" for p in self.patterns), "unknown"]
        return {names[k]: float(share[k]) for k in np.argsort(-share) if share[k] > 1e-3}

    def placed(self, index: int, turn: complex, hand: int) -> np.ndarray:
        """The spots of a pattern as they lie in the image's spectrum, complex, 1/Å."""
        spots = self.patterns[index].spots
        return turn * (np.conj(spots) if hand else spots)


@dataclass(frozen=True)
class Lattice:
    """A crystal lattice found in an image: its most probable pattern and where its spots are.

    ``posterior`` holds each candidate phase's probability and "unknown", ``zones`` that of each phase in each zone axis ("llzo [1 1 1]")
    above a thousandth; ``spots`` the placed pattern (complex x + iy, 1/Å), which is that of the bank times ``turn``, ``measured`` the
    peaks that it explains (complex; power over background in ``strength``), ``index`` the pattern's spot that each is.
    """

    pattern: ZonePattern
    turn: complex
    spots: np.ndarray
    posterior: dict[str, float]
    zones: dict[str, float]
    measured: np.ndarray
    strength: np.ndarray
    index: np.ndarray
    n_windows: int

    @property
    def phase(self) -> str:
        """The most probable phase, or "unknown"."""
        return max(self.posterior, key=lambda phase: self.posterior[phase])

    @property
    def certain(self) -> bool:
        """Whether that phase has more than 0.95."""
        return self.posterior[self.phase] > 0.95 and self.phase != "unknown"


def _sigma(q: np.ndarray, bin_invA: float, bins: float = 0.15, strain: float = _STRAIN) -> np.ndarray:
    return np.hypot(bins * bin_invA, strain * np.abs(q))


def calibrate_on_lattice(spectra: WindowSpectra, bank: _PatternBank, n_windows: int = 60) -> dict:
    """True size of a pixel over its nominal one, from the windows whose phase is certain.

    The phase is layered or LLZO, which are there by the making of the sample; only where neither
    is a candidate may it be another.

    Returns ``scale``, its standard error ``scale_error``, the phase ``anchor`` it rests on and
    ``n_windows``; where no phase is certain in three windows ``scale`` is 1, the error and the
    anchor None, and ``reason`` says why.
    """
    chosen = range(0, len(spectra.power), max(1, len(spectra.power) // n_windows))
    found: dict[str, list[float]] = {}
    for i in chosen:
        q, strength = spectrum_peaks(*spectra.mean([i]), spectra.bin_invA)
        score, turn, _ = bank.search(q, _sigma(q, spectra.bin_invA), strength, 0.06, 13.0)
        posterior = bank.phase_posterior(score)
        if len(q) >= 3 and posterior[:-1].max() > 0.99 and score.max() > 10:
            found.setdefault(bank.phases[int(np.argmax(posterior[:-1]))], []).append(abs(turn[int(np.argmax(score))]))
    anchors: list[str] = [a for a in ("layered", "llzo") if a in bank.phases] or sorted(found, key=lambda phase: -len(found[phase]))
    certain = {phase: np.array(values) for phase, values in found.items() if len(values) >= 3 and phase in anchors}
    if not certain:
        reason = "no phase to calibrate on is certain in three windows"
        return {"scale": 1.0, "scale_error": None, "anchor": None, "n_windows": 0, "reason": reason}
    anchor = next(phase for phase in anchors if phase in certain)
    values = certain[anchor]
    scale = float(np.median(values))
    spread = 1.4826 * float(np.median(np.abs(values - scale)))
    error = math.hypot(1.25 * spread / math.sqrt(len(values)), 1e-3)  # a crystal may be strained by a thousandth
    return {"scale": scale, "scale_error": error, "anchor": anchor, "n_windows": len(values)}


@dataclass
class _Window:
    """Peaks of one window and the hypotheses about it."""

    q: np.ndarray
    strength: np.ndarray
    sigma: np.ndarray
    score: np.ndarray
    turn: np.ndarray
    hand: np.ndarray


def _searched_windows(spectra: WindowSpectra, bank: _PatternBank, scale: float, progress: Any) -> list[_Window]:
    windows = []
    for i in progress(range(len(spectra.power))):
        q, strength = spectrum_peaks(*spectra.mean([i]), spectra.bin_invA)
        q = q / scale
        sigma = _sigma(q, spectra.bin_invA)
        windows.append(_Window(q, strength, sigma, *bank.search(q, sigma, strength, 0.015, 13.0)))
    return windows


def _score_placed(window: _Window, spots: np.ndarray, weight: np.ndarray, amplitude: np.ndarray | None) -> float:
    """Score of spots that are already placed; without amplitudes nothing is expected to be there."""
    if len(window.q) < 2:
        return -1e9
    matched = np.empty(len(window.q), dtype=np.int64)
    nothing_excused = np.zeros(len(window.q), dtype=bool)
    score = _match(window.q, window.sigma, spots, weight, math.pi * (_MAX_Q**2 - _MIN_Q**2) / 2, nothing_excused, matched)
    if amplitude is not None:
        score += _missing(window.q, window.strength, spots, amplitude, matched, 13.0)[0]
    return score


def _same_spots(a: np.ndarray, weight: np.ndarray, b: np.ndarray, reach: float = 0.012) -> float:
    """Share of the weight of the first spots that has a spot of the second within reach."""
    near = np.abs(a[:, None] - b[None, :]).min(axis=1) < reach
    return float(weight[near].sum() / weight.sum())


def _proposals(windows: list[_Window], bank: _PatternBank, limit: int = 40) -> list[tuple[int, np.ndarray]]:
    """Distinct placed patterns that are among the best three of some windows, most supported first."""
    groups: list[list] = []
    for window in windows:
        for index in np.argsort(-window.score)[:3]:
            if window.score[index] < 6:
                continue
            spots = bank.placed(index, window.turn[index] / abs(window.turn[index]), window.hand[index])
            weight = bank.patterns[index].weight
            for group in groups:
                if group[0] == index and _same_spots(spots, weight, group[1]) > 0.8:
                    group[2] += window.score[index]
                    break
            else:
                groups.append([index, spots, window.score[index]])
    groups.sort(key=lambda g: -g[2])
    return [(int(g[0]), g[1]) for g in groups[:limit]]


def _accepted_lattices(windows: list[_Window], bank: _PatternBank) -> tuple[list[tuple[int, np.ndarray]], np.ndarray]:
    """Lattices that the windows need, and the score (windows, lattices) of each; one enters while it explains what single
    ones and pairs of those before it do not."""
    proposals = _proposals(windows, bank)
    scores = np.array(
        [[_score_placed(w, spots, bank.patterns[i].weight, bank.patterns[i].amplitude) for i, spots in proposals] for w in windows]
    )
    base = np.zeros(len(windows))
    accepted: list[int] = []
    while proposals and len(accepted) < 8:
        gain = np.clip(scores - base[:, None], 0, None)
        gain = np.where(gain > 3, gain, 0)
        support = np.where((gain > 0).sum(axis=0) >= 3, gain.sum(axis=0), 0)
        best = int(np.argmax(support))
        if support[best] < 25:
            break
        index, spots = proposals[best]
        for other in accepted:
            both = np.concatenate([spots, proposals[other][1]])
            weight = 0.5 * np.concatenate([bank.patterns[index].weight, bank.patterns[proposals[other][0]].weight])
            pair = np.array([_score_placed(w, both, weight, None) - 4 for w in windows])
            base = np.maximum(base, pair)
        base = np.maximum(base, scores[:, best])
        accepted.append(best)
    return [proposals[i] for i in accepted], scores[:, accepted]


def _identified(spectra: WindowSpectra, chosen: np.ndarray, scale: float, bank: _PatternBank, neighbours: np.ndarray) -> Lattice | None:
    """The lattice that the mean spectrum of some windows shows; peaks at spots of its ``neighbours`` (complex) need no explanation."""
    n, bin_invA = len(chosen), spectra.bin_invA
    threshold = max(3.0, 13 / math.sqrt(n))
    q, strength = spectrum_peaks(*spectra.mean(chosen), bin_invA, threshold)
    q = q / scale
    if len(q) < 3:
        return None
    sigma = _sigma(q, bin_invA, 0.08, 0.004)
    excused = np.min(np.abs(q[:, None] - neighbours), axis=1, initial=1.0) < 3 * sigma
    score, turn, hand = bank.search(q, sigma, strength, 0.015, threshold, excused)
    best = int(np.argmax(score))
    spots = bank.placed(best, turn[best], hand[best])
    nearest = np.abs(q[:, None] - spots[None, :]).argmin(axis=1)
    explained = np.abs(q - spots[nearest]) < 3.5 * sigma
    posterior = dict(zip([*bank.phases, "unknown"], bank.phase_posterior(score).tolist(), strict=True))
    zones = bank.zone_posterior(score)
    return Lattice(bank.patterns[best], turn[best], spots, posterior, zones, q[explained], strength[explained], nearest[explained], n)


def _strange_peaks(window: _Window, lattices: list[Lattice]) -> bool:
    """Whether a window has a clear peak that is no spot of any of the lattices."""
    known = np.concatenate([x.spots for x in lattices]) if lattices else np.array([1e3 + 0j])
    if len(window.q) == 0:
        return False
    far = np.abs(window.q[:, None] - known[None, :]).min(axis=1) > 4 * window.sigma
    return bool(np.any(far & (window.strength > 20)))


def find_lattices(
    spectra: WindowSpectra, bank: _PatternBank, scale: float, progress: Any = iter
) -> tuple[list[Lattice], np.ndarray, list[dict[str, float]]]:
    """The crystal lattices in an image, and for every window which it shows most clearly.

    Every window is searched by itself; the lattices that several windows need are then
    identified from the mean spectrum of the windows that show them best.

    Returns
    -------
    lattices, and per window: its lattice, -1 where nothing is found, -2 where there are peaks
    that no candidate explains; and the posterior of each phase in each zone axis from that window alone.
    """
    windows = _searched_windows(spectra, bank, scale, progress)
    accepted, scores = _accepted_lattices(windows, bank)
    lattices: list[Lattice] = []
    owner = np.full(len(windows), -1)
    margin = np.zeros(len(windows))
    if accepted:
        order = np.sort(np.concatenate([scores, np.zeros((len(scores), 1))], axis=1), axis=1)
        margin = order[:, -1] - order[:, -2]
        winner = np.where(order[:, -1] > 6, scores.argmax(axis=1), -1)
    for k in range(len(accepted)):
        mine = np.nonzero(winner == k)[0]
        mine = mine[np.argsort(-margin[mine])][:25]
        if len(mine) < 2:
            continue
        others = np.concatenate([np.zeros(0, dtype=complex), *(spots for i, (_, spots) in enumerate(accepted) if i != k)])
        lattice = _identified(spectra, mine, scale, bank, others)
        if lattice is None:
            continue
        same = [
            i
            for i, other in enumerate(lattices)
            if other.pattern is lattice.pattern and _same_spots(lattice.spots, lattice.pattern.weight, other.spots, 0.02) > 0.8
        ]
        if not same:
            lattices.append(lattice)
        owner[winner == k] = same[0] if same else len(lattices) - 1
    strange = np.array([_strange_peaks(w, lattices) for w in windows])
    owner[(owner < 0) & strange] = -2
    return lattices, owner, [bank.zone_posterior(w.score) for w in windows]


def _lock_in(image: np.ndarray, spots_px: np.ndarray, sigma_px: float, grid: tuple[int, int]) -> np.ndarray:
    """Amplitude of each spatial frequency (cycles a pixel, complex x + iy) around every point of a grid that spans the image.

    A Gaussian kernel of the given width; towards the border the amplitude is that of the part
    inside. Returns amplitudes (n, *grid).
    """
    from scipy.fft import fft2, ifft2
    from scipy.ndimage import gaussian_filter1d

    pad = math.ceil(3 * sigma_px)
    steps = [n / m for n, m in zip(image.shape, grid, strict=True)]
    margins = [math.ceil(pad / step) for step in steps]
    full = tuple(m + 2 * e for m, e in zip(grid, margins, strict=True))
    padded = tuple(round(m * step) for m, step in zip(full, steps, strict=True))
    canvas = np.zeros(padded, dtype=np.float32)
    canvas[: image.shape[0], : image.shape[1]] = image - image.mean()
    spectrum = fft2(canvas)
    fy, fx = (np.fft.fftfreq(m, step) for m, step in zip(full, steps, strict=True))
    kernel = np.exp(-2 * (np.pi * sigma_px) ** 2 * (fy[:, None] ** 2 + fx[None, :] ** 2))
    inside = [gaussian_filter1d(np.pad(np.ones(m), e), sigma_px / step)[e : e + m] for m, e, step in zip(grid, margins, steps, strict=True)]
    mass = inside[0][:, None] * inside[1][None, :]
    rows, columns = (np.round(np.fft.fftfreq(m) * m).astype(int) for m in full)
    out = np.empty((len(spots_px), *grid), dtype=np.float32)
    offset = [(step - 1) / 2 for step in steps]
    for i, spot in enumerate(spots_px):
        at = (round(spot.imag * padded[0]), round(spot.real * padded[1]))
        patch = spectrum[np.ix_((rows + at[0]) % padded[0], (columns + at[1]) % padded[1])] * kernel
        patch = patch * np.exp(2j * np.pi * (fy[:, None] * offset[0] + fx[None, :] * offset[1]))
        field = ifft2(patch) * (full[0] * full[1] / (padded[0] * padded[1]))
        out[i] = 2 * np.abs(field[: grid[0], : grid[1]]) / mass
    return out


def _common_spots(lattices: list[Lattice], reach: float) -> np.ndarray:
    """The measured spots of all lattices, those nearer than reach taken as one."""
    spots: list[complex] = []
    for lattice in lattices:
        for q in lattice.measured[np.argsort(-lattice.strength)][:14]:
            if not spots or min(min(abs(q - s), abs(q + s)) for s in spots) > reach:
                spots.append(complex(q))
    return np.array(spots)


def _non_negative_shares(amplitudes: np.ndarray, signatures: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """Non-negative c (n, lattices) that minimise sum_s w_s (a_s - sum_v c_v r_sv)², by coordinate descent."""
    gram = (signatures * weight[:, None]).T @ signatures
    right = amplitudes @ (signatures * weight[:, None])
    shares = np.clip(right / np.diag(gram), 0, None)
    for _ in range(60):
        for v in range(len(gram)):
            rest = right[:, v] - shares @ gram[:, v] + shares[:, v] * gram[v, v]
            shares[:, v] = np.clip(rest / gram[v, v], 0, None)
    return shares


def _control_spots(spots: np.ndarray, lattices: list[Lattice], reach: float, number: int = 4) -> np.ndarray:
    """For every spot (n,) frequencies (n, number) as long where no lattice has a spot: what they hold is noise and amorphous matter."""
    known = np.concatenate([x.spots for x in lattices])
    turns = np.exp(1j * np.radians(np.arange(4, 177, 4)))
    trial = spots[:, None] * turns
    apart = np.min(np.abs(trial[..., None] - np.concatenate([known, -known])), axis=-1)
    free = np.where(apart > reach, np.random.default_rng(0).random(apart.shape), 2.0 - apart)
    return np.take_along_axis(trial, np.argsort(free, axis=1)[:, :number], axis=1)


def lattice_shares(
    image: np.ndarray, pixel_size_nm: float, spectra: WindowSpectra, lattices: list[Lattice], owner: np.ndarray, kernel_nm: float = 0.55
) -> tuple[np.ndarray, float, np.ndarray, np.ndarray]:
    """How much of each lattice there is around every point of a grid.

    The amplitude of every spot is measured by lock-in with a Gaussian kernel, less that of frequencies of the same length
    where no lattice has a spot, and explained as a sum of the lattices' own amplitudes, taken from the windows that each of them owns.
    Spots that two lattices share therefore count for both, and those of one only decide.

    Returns
    -------
    shares (lattices, y, x), 1 inside a lattice; the grid's step in nm; the standard error of
    the shares (lattices,); and the misfit (y, x), the share of the amplitudes, weighted, that
    the sum does not explain: 0 where all do, 1 where none does, 0 where there is no more than noise.
    """
    from scipy.ndimage import gaussian_filter

    step_px = max(1, round(kernel_nm / 2.5 / pixel_size_nm))
    grid = tuple(max(8, n // step_px) for n in image.shape)
    spots = _common_spots(lattices, 0.02 / kernel_nm)
    sigma_px = kernel_nm / pixel_size_nm
    lock_in = lambda q: _lock_in(image.astype(np.float32), q * 10 * pixel_size_nm, sigma_px, grid)
    power = lock_in(spots).reshape(len(spots), -1).T.astype(float) ** 2
    control = lock_in(_control_spots(spots, lattices, 0.5 / (10 * kernel_nm)).ravel()).astype(float) ** 2
    control = np.median(control.reshape(len(spots), -1, *grid), axis=1) / math.log(2)  # the median of an exponential law
    noise = np.stack([gaussian_filter(c, kernel_nm / (step_px * pixel_size_nm)) for c in control]).reshape(len(spots), -1).T
    flat = np.sqrt(np.clip(power - noise, 0, None))
    centres = np.clip((spectra.centres / np.array(image.shape) * np.array(grid)).astype(int), 0, np.array(grid) - 1)
    at = centres[:, 0] * grid[1] + centres[:, 1]
    signatures = np.array([np.median(flat[at[owner == v]], axis=0) for v in range(len(lattices))]).T
    scale = signatures.max(axis=1) + 1e-9
    weight = 1 / (0.3 * scale + np.median(scale) * 0.1) ** 2
    for _ in range(2):
        shares = _non_negative_shares(flat, signatures, weight)
        winner = np.where(shares.max(axis=1) > 0.6, shares.argmax(axis=1), -1)
        for v in range(len(lattices)):
            core = (winner == v) & (np.delete(shares, v, axis=1).max(axis=1, initial=0) < 0.25)
            if core.sum() >= 8:
                signatures[:, v] = np.median(flat[core], axis=0)
    shares = _non_negative_shares(flat, signatures, weight)
    rest = flat - shares @ signatures.T
    variance = float(np.average(np.median(rest**2, axis=0), weights=weight))
    covariance = np.linalg.inv((signatures * weight[:, None]).T @ signatures) * variance * weight.mean()
    error = np.sqrt(np.diag(covariance)) + 0.05
    present = np.sqrt((flat**2) @ weight) / np.sqrt(np.median((signatures**2).T @ weight))
    unexplained = np.clip((rest**2) @ weight - noise @ weight, 0, None)
    misfit = np.sqrt(unexplained / np.maximum((flat**2) @ weight, 1e-12))
    misfit = np.where(present > 0.35, misfit, 0.0)
    return shares.T.reshape(len(lattices), *grid), step_px * pixel_size_nm, error, misfit.reshape(grid)


@dataclass(frozen=True)
class InterfaceMap:
    """Phases around every point of a grid over the image.

    ``posterior`` (classes, y, x) of ``classes``, the candidate phases and "amorphous";
    ``label`` (y, x) indices into ``classes`` + ["ambiguous"]; ``lattice`` (y, x) the lattice, -1 none.
    """

    classes: list[str]
    posterior: np.ndarray
    label: np.ndarray
    lattice: np.ndarray
    step_nm: float

    @property
    def names(self) -> list[str]:
        """What ``label`` numbers."""
        return [*self.classes, "ambiguous"]

    def area_fractions(self) -> dict[str, float]:
        """Share of the image of each class; they sum to 1."""
        counts = np.bincount(self.label.ravel(), minlength=len(self.names))
        return {name: float(n / self.label.size) for name, n in zip(self.names, counts, strict=True)}


def phase_map(
    shares: np.ndarray,
    error: np.ndarray,
    lattices: list[Lattice],
    unexplained: np.ndarray,
    misfit: np.ndarray,
    phases: list[str],
    step_nm: float,
) -> InterfaceMap:
    """The posterior of every phase at every point, and its label.

    A point belongs to the lattice with the largest share; the probability that it truly is the
    largest comes from the shares' errors, and the phase from the lattice's posterior. What the
    shares lack of 0.6 (a lattice may be as much fainter where it is thin), less a fifth, is amorphous, or
    ambiguous where ``unexplained`` (y, x) tells of spots that no candidate has. Where no phase has 0.9, or the lattices found do not
    explain the spots (``misfit`` (y, x): some are missing that should be there), it is
    ambiguous.
    """
    from scipy.special import ndtr

    classes = [*phases, "amorphous"]
    posterior = np.zeros((len(classes), *unexplained.shape))
    posterior[-1] = 1.0
    lattice = np.full(unexplained.shape, -1)
    if len(lattices):
        levels = np.concatenate([shares, 0.8 * np.clip(1 - shares.sum(axis=0, keepdims=True) / 0.6, 0, None)])
        sigma = np.append(error, 0.08)
        presence = np.ones_like(levels)
        for v in range(len(levels)):
            for other in range(len(levels)):
                if other != v:
                    presence[v] *= ndtr((levels[v] - levels[other]) / math.hypot(sigma[v], sigma[other]))
        presence /= presence.sum(axis=0)
        identity = np.array([[x.posterior.get(phase, 0.0) for phase in phases] for x in lattices])
        posterior[:-1] = np.tensordot(identity.T, presence[:-1], axes=1)
        posterior[-1] = presence[-1]
        lattice = np.where(levels.argmax(axis=0) < len(lattices), levels.argmax(axis=0), -1)
    label = posterior.argmax(axis=0)
    doubtful = (posterior.max(axis=0) < 0.9) | ((label == len(phases)) & unexplained) | misfit
    return InterfaceMap(classes, posterior, np.where(doubtful, len(classes), label), lattice, step_nm)


def _facing_distances(first: np.ndarray, second: np.ndarray, step_nm: float) -> list[np.ndarray]:
    """Distances (nm) between the half-way contours of two shares, in blocks of 2 nm along each contour."""
    from scipy.spatial import cKDTree
    from skimage.measure import find_contours

    contours = []
    for share in (first, second):
        lines = [line for line in find_contours(share, 0.5) if len(line) >= 8]
        longest = max((len(line) for line in lines), default=0)
        lines = [line for line in lines if len(line) > longest / 2]
        inside = [line[np.all((line > 2) & (line < np.array(share.shape) - 3), axis=1)] for line in lines]
        contours.append([line for line in inside if len(line) >= 8])
    if not contours[0] or not contours[1]:
        return []
    points = [np.concatenate(c) for c in contours]
    trees = [cKDTree(p) for p in points]
    distances = [[trees[1 - i].query(line)[0] for line in contours[i]] for i in (0, 1)]
    limit = 2.5 * min(float(np.median(np.concatenate(d))) for d in distances) + 2 / step_nm
    block = max(4, round(2 / step_nm))
    blocks = [d[i : i + block] * step_nm for side in distances for d in side for i in range(0, len(d), block)]
    blocks = [b[b < limit * step_nm] for b in blocks]
    return [b for b in blocks if len(b) >= 2]


def layer_width(first: np.ndarray, second: np.ndarray, step_nm: float, rng: np.random.Generator) -> dict[str, Any]:
    """Width of what lies between two lattices, from where the share of each falls to half.

    Median distance of the two contours, both ways; the interval is a bootstrap of 2 nm blocks
    along them, with 0.13 nm for each half value, a quarter of the lock-in's kernel: a lattice that fades at its end is cut off early.

    Returns
    -------
    ``width_nm``, ``ci95_nm``, ``spread_nm`` (standard deviation along the interface); without
    facing contours ``width_nm`` is None.
    """
    blocks = _facing_distances(first, second, step_nm)
    if len(blocks) < 3:
        return {"width_nm": None, "ci95_nm": None, "spread_nm": None}
    values = np.concatenate(blocks)
    draws = [np.median(np.concatenate([blocks[i] for i in rng.integers(0, len(blocks), len(blocks))])) for _ in range(400)]
    low, high = np.percentile(draws, [2.5, 97.5])
    width, error = float(np.median(values)), math.sqrt(2) * 0.13
    ci = [max(0.0, width - math.hypot(width - low, error)), width + math.hypot(high - width, error)]
    return {"width_nm": width, "ci95_nm": ci, "spread_nm": float(values.std())}


def _width_between(shares: np.ndarray, sides: tuple[int, int], step_nm: float, rng: np.random.Generator) -> dict[str, Any]:
    """`layer_width` between two of the lattices (lattices, y, x).

    Where a third lies between them their shares are taken of the sum of all: two lattices that share most of their spots both fade
    where they meet, which leaves a gap that belongs to neither. Half of what that moves the width enters the interval.
    """
    plain = layer_width(shares[sides[0]], shares[sides[1]], step_nm, rng)
    if len(shares) < 3 or plain["width_nm"] is None:
        return plain
    total = np.maximum(shares.sum(axis=0), 0.5)
    width = layer_width(shares[sides[0]] / total, shares[sides[1]] / total, step_nm, rng)
    if width["width_nm"] is None:
        return plain
    moved, middle = 0.5 * (plain["width_nm"] - width["width_nm"]), width["width_nm"]
    low, high = (middle + math.copysign(math.hypot(end - middle, moved), end - middle) for end in width["ci95_nm"])
    return width | {"ci95_nm": [max(0.0, low), high]}


def _sides(lattices: list[Lattice], lattice_map: np.ndarray) -> tuple[int, int] | None:
    """The lattices on both sides of the interface: layered and LLZO if both are there, else the two largest."""
    area = {v: int(np.sum(lattice_map == v)) for v in range(len(lattices))}
    present = sorted((v for v in area if area[v] > 0.02 * lattice_map.size), key=lambda v: -area[v])
    named = {lattices[v].phase: v for v in reversed(present) if lattices[v].certain}
    if "layered" in named and "llzo" in named:
        return named["layered"], named["llzo"]
    return (present[0], present[1]) if len(present) >= 2 else None


def _layer_in_hiding(shares: np.ndarray, sides: tuple[int, int], misfit: np.ndarray, step_nm: float) -> bool:
    """Whether spots are missing within 0.6 nm of most of where two lattices meet: a layer that has no spots but those of one of them."""
    from scipy.ndimage import binary_dilation, distance_transform_edt

    second = shares[sides[1]] > shares[sides[0]]
    meeting = binary_dilation(second) & ~second
    if not misfit.any() or not meeting.any():
        return False
    return bool(np.mean(distance_transform_edt(~misfit)[meeting] * step_nm < 0.6) > 0.5)


def _phase_between(found: InterfaceMap, sides: tuple[int, int], width_nm: float) -> str:
    """The class that holds most of what lies between two lattices."""
    from scipy.ndimage import distance_transform_edt

    reach = 1.5 * width_nm / found.step_nm
    label = np.where(found.label == len(found.classes), -1, found.lattice)
    away = [distance_transform_edt(label != side) for side in sides]
    between = (away[0] > 0) & (away[1] > 0) & (away[0] + away[1] < reach + 3)
    counts = np.bincount(found.label[between], minlength=len(found.names))
    decided = counts[:-1]
    if decided.sum() < 0.5 * counts.sum() or decided.max(initial=0) < 0.6 * decided.sum() or decided.sum() < 10:
        return "ambiguous"
    return found.names[int(np.argmax(decided))]


@dataclass(frozen=True)
class InterfaceResult:
    """All that `analyse_interface` finds.

    ``window_posteriors`` are those of every window by itself, of each phase in each zone axis; ``owner`` the lattice that it shows most
    clearly. ``statements`` tell in words what could not be found.
    """

    calibration: dict[str, Any]
    pixel_size_nm: float
    spectra: WindowSpectra
    lattices: list[Lattice]
    owner: np.ndarray
    window_posteriors: list[dict[str, float]]
    map: InterfaceMap
    shares: np.ndarray
    sides: tuple[int, int] | None
    interface_phase: str | None
    width: dict[str, Any]
    statements: list[str]


def check_lattice_image(image: np.ndarray, pixel_size_nm: float, window_nm: float, where: str) -> None:
    """`RecordingError` for an image (y, x) that is constant or saturated, `SampleError` for a pixel at which it can hold no lattice.

    ``where`` is the key of the acquisition, for the message.
    """
    values = np.asarray(image)
    if not np.all(np.isfinite(values)) or values.std() == 0:
        raise RecordingError(f"{where}.file: all pixels are equal or some are not finite, expected an image with contrast")
    for end, words in ((values.max(), "highest"), (values.min(), "lowest")):
        clipped = float(np.mean(values == end))
        if clipped > 0.02 and abs(float(end) - float(np.median(values))) > 8:
            raise RecordingError(
                f"{where}.file: {clipped:.1%} of the pixels sit at the {words} value {end:g}: saturated, expected values inside"
            )
    nyquist = 1 / (20 * pixel_size_nm)
    if nyquist < 0.45:
        raise SampleError(
            f"{where}.pixel_size_nm: got {pixel_size_nm:g}, at which spacings below {1 / nyquist:.1f} Å are lost; "
            "expected a lattice image of at most 0.11 nm a pixel"
        )
    field = [n * pixel_size_nm for n in values.shape]
    if min(field) < 1.5 * window_nm:
        raise SampleError(
            f"{where}.pixel_size_nm: got {pixel_size_nm:g}, a field of {field[0]:.3g} × {field[1]:.3g} nm for {values.shape[0]} × "
            f"{values.shape[1]} pixels; expected at least {1.5 * window_nm:g} nm on each side (or a smaller window_nm)"
        )


def _unexplained(spectra: WindowSpectra, owner: np.ndarray, shape: tuple[int, int], image_shape: tuple[int, ...]) -> np.ndarray:
    """Grid points whose nearest window has spots that no candidate explains."""
    from scipy.spatial import cKDTree

    points = (np.indices(shape).reshape(2, -1).T + 0.5) * np.array(image_shape) / np.array(shape)
    return (owner == -2)[cKDTree(spectra.centres).query(points)[1]].reshape(shape)


def analyse_interface(
    image: np.ndarray,
    pixel_size_nm: float,
    crystals: list[Crystal],
    rng: np.random.Generator,
    *,
    window_nm: float = 3.8,
    stride_nm: float = 1.0,
    max_index: int = 2,
    where: str = "acquisitions.interface",
    progress: Any = iter,
) -> InterfaceResult:
    """Phases around every point of a bright-field lattice image, and the layer at its interface.

    Spectra of sliding windows give peaks; lengths, angles and strengths of all peaks of a
    window together score every candidate phase in every zone axis and rotation, and no phase is
    taken for certain on spots of one direction. The pixel is calibrated on the phase that is
    certain, layered where it is there. The lattices found are then followed over the image.

    Parameters
    ----------
    image
        (y, x), any real type.
    crystals
        Candidate phases.
    rng
        For the bootstrap of the width.
    where
        Key of the acquisition, for error messages.

    Raises
    ------
    RecordingError, SampleError
        Where the image cannot hold a lattice at this pixel size.
    """
    for name, value, least, most in (("window_nm", window_nm, 0.5, 100), ("stride_nm", stride_nm, 0.05, window_nm)):
        if not least <= value <= most:
            raise ParameterError(f"{name}: got {value:g}, expected {least:g} to {most:g} nm")
    check_lattice_image(image, pixel_size_nm, window_nm, where)
    bank = _PatternBank([p for crystal in crystals for p in zone_patterns(crystal, max_index)])
    spectra = window_spectra(image, pixel_size_nm, window_nm, stride_nm)
    scale = calibrate_on_lattice(spectra, bank)
    true_nm = pixel_size_nm * scale["scale"]
    lattices, owner, posteriors = find_lattices(spectra, bank, scale["scale"], progress)
    if lattices:
        shares, step_nm, error, misfit = lattice_shares(image, true_nm, spectra, lattices, owner)
    else:
        step_nm, error = 0.22, np.zeros(0)
        shares = np.zeros((0, *(max(8, round(n * true_nm / step_nm)) for n in image.shape)))
        misfit = np.zeros(shares.shape[1:])
    strange = _unexplained(spectra, owner, shares.shape[1:], image.shape)
    found = phase_map(shares, error, lattices, strange, misfit > _MISFIT, bank.phases, step_nm)
    sides = _sides(lattices, found.lattice)
    width: dict[str, Any] = {"width_nm": None, "ci95_nm": None, "spread_nm": None}
    phase = None
    if sides:
        sure = np.where(misfit > _MISFIT, np.minimum(shares, 0.3), shares)
        width = _width_between(sure, sides, step_nm, rng)
        if width["width_nm"] is not None:
            phase = _phase_between(found, sides, width["width_nm"]) if width["width_nm"] > 0.6 else "none"
            if phase == "none" and _layer_in_hiding(shares, sides, misfit > _MISFIT, step_nm):
                phase = "ambiguous"
    result = InterfaceResult(scale, true_nm, spectra, lattices, owner, posteriors, found, shares, sides, phase, width, [])
    result.statements.extend(_interface_statements(result))
    return result


def _interface_statements(result: InterfaceResult) -> list[str]:
    """What the image does not show, in words."""
    told = []
    if result.calibration["anchor"] is None:
        told.append(f"the pixel size is not corrected: {result.calibration['reason']}")
    if not result.lattices:
        strange = float(np.mean(result.owner == -2))
        told.append(
            f"no lattice of a candidate phase is found; {100 * strange:.0f} % of the windows have spots that none explains"
            + (": check the pixel size and the candidates" if strange > 0.1 else ": noise or amorphous matter only")
        )
    elif result.sides is None:
        told.append(f"only one lattice fills the image ({result.lattices[0].phase}): there is no interface in it")
    elif result.width["width_nm"] is None:
        told.append("the two lattices do not face each other: no layer can be measured between them")
    elif result.interface_phase == "none":
        told.append(f"no layer between the lattices wider than {max(0.6, result.width['ci95_nm'][1]):.1f} nm")
    elif result.interface_phase == "ambiguous":
        told.append("what lies between the two lattices shows too few spots, or those of several phases, to be named")
    told += [f"a lattice is ambiguous: {_named_posterior(x)}" for x in result.lattices if not x.certain]
    return told


def _named_posterior(lattice: Lattice) -> str:
    likely = sorted(lattice.posterior.items(), key=lambda item: -item[1])[:3]
    return ", ".join(f"{phase} {probability:.2f}" for phase, probability in likely)


def spacing_table(lattice: Lattice) -> list[dict[str, Any]]:
    """Measured against expected spacings (Å) of a lattice, the strongest peak of each reflection, longest first."""
    rows: dict[int, dict[str, Any]] = {}
    for q, strength, k in sorted(zip(lattice.measured, lattice.strength, lattice.index, strict=True), key=lambda r: -r[1]):
        expected = 1 / abs(lattice.pattern.spots[k])
        row = {
            "hkl": tuple(int(i) for i in lattice.pattern.hkl[k]),
            "expected_A": float(expected),
            "measured_A": float(1 / abs(q)),
            "deviation_percent": float(100 * (1 / abs(q) / expected - 1)),
            "power_over_background": float(strength),
        }
        rows.setdefault(int(k), row)
    return sorted(rows.values(), key=lambda r: -r["expected_A"])


# --------------------------------------------------------------------------------------
# 05 PED: calibration
# --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Calibration:
    """Geometry and noise of a PED scan, as notebook 05 finds it and 06 uses it.

    ``centre_px`` (ny, nx, 2) is the direct beam (y, x) of every pattern; ``strain`` (2, 2) is the
    symmetric matrix that takes g (x, y) in 1/Å times 1/scale to detector pixels; ``mask``
    (ky, kx) is True where a pixel is hot, dead or otherwise unusable; counts are
    (recorded - offset) / gain. ``place_strain`` is how far spots may lie off their places, as a
    share of their distance from the direct beam: what the metric and the lattices are trusted to.
    """

    scale_invA_per_px: float
    strain: np.ndarray
    centre_px: np.ndarray
    mask: np.ndarray
    spot_sigma_px: float
    gain: float = 1.0
    offset: float = 0.0
    place_strain: float = 0.004

    @property
    def ellipticity(self) -> float:
        """Long over short axis of a ring, minus 1."""
        long, short = np.linalg.eigvalsh(self.strain)[::-1]
        return float(long / short - 1)

    @property
    def metric(self) -> np.ndarray:
        """(2, 2) matrix from g (x, y) in 1/Å to pixels (x, y)."""
        return self.strain / self.scale_invA_per_px


def check_patterns(patterns: Any, scale_invA_per_px: float, name: str) -> None:
    """`RecordingError` for patterns (ny, nx, ky, kx) under 32 px, `SampleError` for a scale at which their edge lies at no such angle."""
    size = min(patterns.shape[2:])
    if size < 32:
        raise RecordingError(f"{name}: patterns of {patterns.shape[2]} x {patterns.shape[3]} pixels, expected at least 32 x 32")
    half_width = size / 2 * scale_invA_per_px
    if not 0.4 < half_width < 6:
        raise SampleError(
            f"{name}: acquisitions.ped.scale_invA_per_px: {scale_invA_per_px:g} puts the edge of the camera at {half_width:.3g} 1/Å, "
            "expected 0.4 to 6 1/Å; is the scale in 1/nm?"
        )


def scan_statistics(patterns: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Mean and variance (ky, kx) over a scan (ny, nx, ky, kx), numpy or dask, and the sum (ny, nx) of every pattern; read box by box.

    `RecordingError` where the scan holds NaN or nothing at all.
    """
    ny, nx = patterns.shape[:2]
    first = np.zeros(patterns.shape[2:])
    second = np.zeros(patterns.shape[2:])
    total = np.zeros((ny, nx))
    for box in scan_boxes(patterns):
        block = _read_box(patterns, box)
        counts = np.zeros(len(block))
        _add_statistics(block, first, second, counts)
        total[box] = counts.reshape(total[box].shape)
        bad = np.argwhere(~np.isfinite(total[box]))
        if len(bad):
            raise RecordingError(f"PED scan: line {box[0].start + bad[0, 0]} holds NaN or infinity, expected counts")
    if not total.any():
        raise RecordingError("PED scan: all patterns are zero, expected counts")
    mean = first / (ny * nx)
    return mean, np.maximum(second / (ny * nx) - mean**2, 0), total


def patterns_at(patterns: Any, indices: np.ndarray) -> np.ndarray:
    """Patterns (n, ky, kx) at indices (n,) of the flattened scan (ny, nx, ky, kx)."""
    places = (divmod(int(i), patterns.shape[1]) for i in indices)
    return np.concatenate([_read_box(patterns, (slice(y, y + 1), slice(x, x + 1))) for y, x in places])


@numba.njit(cache=True, parallel=True)
def _add_statistics(patterns, first, second, total):
    """Add patterns (n, ky, kx) and their squares to ``first`` and ``second`` (ky, kx), and their sums to ``total`` (n,)."""
    n, ny, nx = patterns.shape
    for y in numba.prange(ny):
        for i in range(n):
            for x in range(nx):
                value = float(patterns[i, y, x])
                first[y, x] += value
                second[y, x] += value * value
    for i in numba.prange(n):
        counted = 0.0
        for y in range(ny):
            for x in range(nx):
                counted += float(patterns[i, y, x])
        total[i] = counted


_BOX_BYTES = 128_000_000  # of patterns that are read at once


def scan_boxes(patterns: Any, most: int = 2048) -> list[tuple[slice, slice]]:
    """The boxes, as slices of lines and columns, in which a scan (ny, nx, ky, kx) is read: up to ``most`` patterns and 128 MB.

    They follow the chunks of a lazy array, so that none is read more often than it must be.
    """
    ny, nx = patterns.shape[:2]
    most = max(1, min(most, _BOX_BYTES // (math.prod(patterns.shape[2:]) * patterns.dtype.itemsize)))
    cy, cx = (max(c) for c in patterns.chunks[:2]) if getattr(patterns, "chunks", None) else (1, 1)
    if cy * cx >= most:
        width = min(cx, most)
        height = most // width
    else:
        width = min(nx, most // (cy * cx) * cx)
        height = cy if width < nx else max(1, most // (cy * nx)) * cy
    spans = [[slice(a, min(a + step, n)) for a in range(0, n, step)] for n, step in ((ny, height), (nx, width))]
    return list(product(*spans))


def _read_box(patterns: Any, box: tuple[slice, slice]) -> np.ndarray:
    """Patterns (n, ky, kx) of a box of a scan, line by line, from numpy, dask or `RecordedFrames`."""
    block = patterns[box]
    block = np.asarray(block.compute(scheduler="threads") if hasattr(block, "compute") else block)
    return np.ascontiguousarray(block.reshape(-1, *block.shape[2:]))


def hot_and_dead_pixels(mean_pattern: np.ndarray, variance: np.ndarray, n_patterns: int, direct_beam_radius_px: float) -> np.ndarray:
    """Pixels (ky, kx) whose scan average stands far above or below their neighbours', True where bad.

    A diffraction spot spreads over its neighbours in the scan average, a hot pixel does not.
    Within the radius of the direct beam, which may be sharp, only a pixel that is twelve times as bright as any of its neighbours is hot.
    ``variance`` (ky, kx) over the ``n_patterns`` tells a dead pixel and what noise can do.
    """
    from scipy import ndimage

    ring = np.ones((3, 3), bool)
    ring[1, 1] = False
    neighbours = ndimage.median_filter(mean_pattern, footprint=ring, mode="reflect")
    upper = ndimage.percentile_filter(mean_pattern, 75, footprint=ring, mode="reflect")
    typical = np.median(neighbours) + 1e-9
    always = variance < mean_pattern**2  # a spot of a few patterns varies more over the scan than this
    sure = mean_pattern - 2.5 * upper > 8 * np.sqrt(variance / n_patterns)
    hot = always & sure & (mean_pattern > 2.5 * upper + 2 * typical) & (mean_pattern > 4 * neighbours)
    dead = (variance == 0) & (neighbours * n_patterns > 20) & (mean_pattern < 0.2 * neighbours)
    y, x = np.unravel_index(np.argmax(ndimage.gaussian_filter(neighbours, 2)), mean_pattern.shape)
    yy, xx = np.indices(mean_pattern.shape)
    outside = np.hypot(yy - y, xx - x) > direct_beam_radius_px
    alone = mean_pattern > 12 * ndimage.maximum_filter(mean_pattern, footprint=ring, mode="reflect")
    return (hot & (outside | alone)) | (dead & outside)


def direct_beam_positions(patterns: Any, mask: np.ndarray, radius_px: float = 6.0) -> tuple[np.ndarray, np.ndarray]:
    """Centroids (ny, nx, 2) of the direct beam in patterns (ny, nx, ky, kx), and its intensity (ny, nx).

    The search starts at the brightest blob of the scan average near its middle and follows
    the centroid of a disc; a blanked pattern has an intensity of nearly nothing.
    """
    from scipy import ndimage

    ny, nx = patterns.shape[:2]
    mean = patterns_at(patterns, np.linspace(0, ny * nx - 1, min(64, ny * nx)).astype(int)).mean(axis=0)
    smooth = ndimage.gaussian_filter(np.where(mask, 0, mean), 2)
    middle = np.hypot(*(np.indices(mean.shape) - (np.array(mean.shape)[:, None, None] - 1) / 2)) < 0.3 * min(mean.shape)
    start = np.array(np.unravel_index(np.argmax(np.where(middle, smooth, 0)), mean.shape), float)
    centre, total = np.zeros((ny, nx, 2)), np.zeros((ny, nx))
    for box in scan_boxes(patterns):
        block = _read_box(patterns, box).reshape(*total[box].shape, *mean.shape)
        centre[box], total[box] = _centroids(block, mask, start, radius_px)
    return centre, total


@numba.njit(cache=True)
def _centroid(image: np.ndarray, mask: np.ndarray, start: np.ndarray, radius: float) -> tuple[float, float, float]:
    """Centre (y, x) of a pattern's direct beam and its counts above the halo; a function, as numba's prange takes sums for its own."""
    ky, kx = image.shape
    cy, cx = start[0], start[1]
    reach = 2.0 * radius
    for _ in range(12):
        s = sy = sx = 0.0
        edge, n_edge = 0.0, 0
        for y in range(max(0, int(cy - reach)), min(ky, int(cy + reach) + 2)):
            for x in range(max(0, int(cx - reach)), min(kx, int(cx + reach) + 2)):
                d2 = (y - cy) ** 2 + (x - cx) ** 2
                if mask[y, x] or d2 > reach * reach:
                    continue
                value = float(image[y, x])
                if d2 > (0.8 * reach) ** 2:
                    edge += value
                    n_edge += 1
        background = edge / max(n_edge, 1)
        peak = background
        for y in range(max(0, int(cy - reach)), min(ky, int(cy + reach) + 2)):
            for x in range(max(0, int(cx - reach)), min(kx, int(cx + reach) + 2)):
                if not mask[y, x] and (y - cy) ** 2 + (x - cx) ** 2 <= reach * reach:
                    peak = max(peak, float(image[y, x]))
        floor = background + 0.3 * (peak - background)  # the halo of inelastic scattering is not the beam
        for y in range(max(0, int(cy - reach)), min(ky, int(cy + reach) + 2)):
            for x in range(max(0, int(cx - reach)), min(kx, int(cx + reach) + 2)):
                if mask[y, x] or (y - cy) ** 2 + (x - cx) ** 2 > reach * reach:
                    continue
                value = max(float(image[y, x]) - floor, 0.0)
                s += value
                sy += value * y
                sx += value * x
        if s <= 0:
            break
        shift = abs(sy / s - cy) + abs(sx / s - cx)
        cy, cx = sy / s, sx / s
        reach = max(radius, 0.8 * reach)
        if shift < 1e-3 and reach <= radius:
            break
    return cy, cx, s


@numba.njit(cache=True, parallel=True)
def _centroids(patterns: np.ndarray, mask: np.ndarray, start: np.ndarray, radius: float) -> tuple[np.ndarray, np.ndarray]:
    ny, nx = patterns.shape[:2]
    centre = np.zeros((ny, nx, 2))
    total = np.zeros((ny, nx))
    for i in numba.prange(ny * nx):
        cy, cx, counts = _centroid(patterns[i // nx, i % nx], mask, start, radius)
        centre[i // nx, i % nx] = cy, cx
        total[i // nx, i % nx] = counts
    return centre, total


def smooth_descan(centre_px: np.ndarray, weight: np.ndarray, order: int = 2) -> tuple[np.ndarray, float]:
    """The descan as a polynomial surface over the scan, and the scatter about it.

    Parameters
    ----------
    centre_px
        Measured direct beam (ny, nx, 2), (y, x).
    weight
        Intensity (ny, nx) of the direct beam: blanked patterns (under a tenth of the median) do not count.
    order
        Highest power; lowered where the scan has too few lines for it.

    Returns
    -------
    Centres (ny, nx, 2) on the surface and the robust standard deviation of one coordinate, px.
    `RecordingError` where no pattern has a direct beam.
    """
    ny, nx = centre_px.shape[:2]
    if not (weight > 0).any():
        raise RecordingError("PED scan: no direct beam stands out in any pattern, expected one near the middle of the camera")
    v, u = np.meshgrid(np.linspace(-1, 1, ny) if ny > 1 else [0.0], np.linspace(-1, 1, nx) if nx > 1 else [0.0], indexing="ij")
    powers = [(i, j) for i in range(order + 1) for j in range(order + 1 - i) if i < max(1, ny - 1) and j < max(1, nx - 1)]
    design = np.stack([v**i * u**j for i, j in powers], axis=-1).reshape(-1, len(powers))
    measured = centre_px.reshape(-1, 2)
    use = weight.ravel() > 0.1 * np.median(weight)
    if use.sum() < 3 * len(powers):
        use = np.ones(len(use), bool)
        powers, design = powers[:1], design[:, :1]
    spread = np.inf
    for _ in range(8):
        fit = np.linalg.lstsq(design[use], measured[use], rcond=None)[0]
        off = np.abs(measured - design @ fit).max(axis=1)
        spread = 1.4826 * float(np.median(off[use])) + 1e-3
        use = (weight.ravel() > 0.1 * np.median(weight)) & (off < 4 * spread)
    return (design @ fit).reshape(ny, nx, 2), spread


def detector_gain(patterns: np.ndarray, mask: np.ndarray) -> tuple[float, float]:
    """Gain (recorded units per electron) and offset of a detector from the noise of the patterns themselves.

    Neighbouring blocks of 4 x 4 pixels, about the area of a spot, share nearly the same
    expectation, so a sixth of the mean square of their second difference is the variance; for
    counted electrons variance = gain x (mean - offset). Blocks, not pixels, because a camera
    smears its noise over neighbours. A counting detector gives 1 and 0. ``patterns`` is (n, ky, kx).
    """
    size = 4
    ny, nx = (n // size for n in patterns.shape[1:])
    blocks = patterns[:, : ny * size, : nx * size].astype(np.float64).reshape(-1, ny, size, nx, size).sum(axis=(2, 4))
    bad: Any = mask[: ny * size, : nx * size].reshape(ny, size, nx, size).any(axis=(1, 3))
    good = ~(bad[:, 2:] | bad[:, 1:-1] | bad[:, :-2])
    level = ((blocks[:, :, 2:] + blocks[:, :, 1:-1] + blocks[:, :, :-2]) / 3)[:, good].ravel()
    square = ((blocks[:, :, 2:] - 2 * blocks[:, :, 1:-1] + blocks[:, :, :-2]) ** 2 / 6)[:, good].ravel()
    order = np.argsort(level, kind="stable")[: int(0.8 * len(level))]
    bins = [part for part in np.array_split(order, 12) if len(part) >= 20]
    if len(bins) < 3 or level[order].max(initial=0) <= 0:
        return 1.0, 0.0
    middle = np.array([level[part].mean() for part in bins])
    variance = np.array([_lower_mean(square[part]) / _MEAN_OF_LOWER_90_PERCENT for part in bins])
    if patterns.dtype == np.uint8:
        gain, offset = float(variance.sum() / middle.sum()), 0.0
    else:
        gain, at_zero = np.polyfit(middle, variance, 1, w=1 / np.maximum(variance, 1e-9))
        lowest = float(np.percentile(level, 1))
        offset = float(np.clip(-at_zero / gain if gain > 0 else 0.0, 0.0, lowest)) / size**2
    return (1.0 if 0.6 < gain < 1.6 else max(float(gain), 1e-3)), offset


def _lower_mean(values: np.ndarray) -> float:
    """Mean of the lower 90 %: diffraction spots make the upper tenth."""
    return float(np.sort(values)[: math.ceil(0.9 * len(values))].mean())


_MEAN_OF_LOWER_90_PERCENT = 0.623  # of the square of a standard normal variable


# --- spots of a pattern -----------------------------------------------------------------
#
# A pattern is reduced once, while it is in the cache, to the table of its spots and the profile of its
# background. All matching works on these few hundred numbers; no image is read a second time.

_MOST_SPOTS = 64
_LEAST_NATS = 2.0  # local maxima with less evidence against background are not kept


@dataclass(frozen=True)
class Spots:
    """What matching keeps of n patterns.

    ``table`` (n, 64, 5) float32 has for every spot y, x (px), the counts in an aperture there,
    those that background gives, and the evidence against background in nats; the surest come
    first and ``number`` (n,) says how many there are. ``background`` (n, radii) is in counts a
    pixel against the distance (px) from the direct beam, which is at ``centre_px`` (n, 2), (y, x).
    """

    table: np.ndarray
    number: np.ndarray
    background: np.ndarray
    centre_px: np.ndarray

    @property
    def arrays(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Table, number, background and centre, as the kernels take them."""
        return self.table, self.number, self.background, self.centre_px

    def __getitem__(self, chosen: Any) -> Spots:
        return Spots(self.table[chosen], self.number[chosen], self.background[chosen], self.centre_px[chosen])


def _aperture(radius_px: float) -> np.ndarray:
    """Half-widths of the rows of a disc, for summing counts over it."""
    reach = math.floor(radius_px)
    return np.array([math.floor(math.sqrt(radius_px**2 - dy * dy)) for dy in range(-reach, reach + 1)], np.int64)


def _aperture_of(calibration: Calibration) -> np.ndarray:
    return _aperture(1.8 * calibration.spot_sigma_px)


def _good_pixels(mask: np.ndarray, half: np.ndarray) -> np.ndarray:
    """Number of pixels (ky, kx) float32 in the aperture about every pixel that are neither masked nor off the camera."""
    from scipy import ndimage

    disc = np.abs(np.arange(-half.max(), half.max() + 1))[None, :] <= half[:, None]
    return ndimage.correlate((~mask).astype(np.float32), disc.astype(np.float32), mode="constant")


def first_radius_px(calibration: Calibration) -> float:
    """Spots nearer to the direct beam than this are not looked at."""
    return 4.5 * calibration.spot_sigma_px


@numba.njit(cache=True, fastmath=True)
def _aperture_counts(image, mask, half, gain, offset, row, counts):
    """Counts in the aperture about every pixel, into ``counts`` (ky, kx), by differences of running sums (``row``)."""
    ny, nx = image.shape
    reach = len(half) // 2
    per_unit, zero = np.float32(1 / gain), np.float32(offset)
    counts[:] = 0
    for y in range(ny):
        total = np.float32(0)
        for x in range(nx):
            row[x] = total
            if not mask[y, x]:
                total += (np.float32(image[y, x]) - zero) * per_unit
        row[nx] = total
        for k in range(len(half)):
            v, h = y + k - reach, half[k]
            if v < 0 or v >= ny:
                continue
            for x in range(h, nx - h - 1):
                counts[v, x] += row[x + h + 1] - row[x - h]
            for x in range(h):
                counts[v, x] += row[x + h + 1]
            for x in range(nx - h - 1, nx):
                counts[v, x] += total - row[max(x - h, 0)]


@numba.njit(cache=True, fastmath=True)
def _radial_background(image, mask, counts, radius, full, gain, offset, background, ceiling):
    """Counts a pixel of the smooth background against radius (px); apertures that stand out are left out, three times over."""
    ny, nx = image.shape
    n_radii = len(background)
    per_unit, zero = np.float32(1 / gain), np.float32(offset)
    total, number = np.zeros(n_radii + 1), np.zeros(n_radii + 1)
    ceiling[:] = 1e30
    for _ in range(3):
        total[:] = 0
        number[:] = 0
        for y in range(ny):
            for x in range(nx):
                r = radius[y, x]
                if counts[y, x] <= ceiling[r] and not mask[y, x]:
                    total[r + 1] += (image[y, x] - zero) * per_unit
                    number[r + 1] += 1
        for r in range(n_radii):
            total[r + 1] += total[r]
            number[r + 1] += number[r]
        for r in range(n_radii):
            reach = 2 + r // 12
            low, high = max(0, r - reach), min(n_radii, r + reach + 1)
            background[r] = max((total[high] - total[low] + 0.3) / (number[high] - number[low] + 1.0), 1e-3)
            expected = background[r] * full
            ceiling[r] = expected + 2.5 * math.sqrt(expected) + 1.5


@numba.njit(cache=True)
def _least_counts(background, full, nats, least):
    """The counts in a full aperture at every radius that make ``nats`` against background, into ``least``, by Newton's method."""
    for r in range(len(background)):
        b = background[r] * full + 0.02
        a = b + math.sqrt(2 * b * nats) + 0.5
        for _ in range(20):
            slope = math.log(a / b)
            a = max(a - (a * slope - (a - b) - nats) / max(slope, 1e-3), 1.001 * b + 0.05)
        least[r] = max(a, 2.5)


@numba.njit(cache=True)
def _local_maxima(counts, pixels, radius, cy, cx, background, least, full, first_radius, nats, table):
    """Fill ``table`` (most, 5) with the peaks of a pattern, the surest first; returns how many."""
    ny, nx = counts.shape
    n = 0
    for y in range(2, ny - 2):
        for x in range(2, nx - 2):
            a, r = counts[y, x], radius[y, x]
            if a * full < least[r] * pixels[y, x] or r < first_radius or pixels[y, x] < 0.5 * full:
                continue
            highest = True
            for dy in range(-2, 3):
                for dx in range(-2, 3):
                    other = counts[y + dy, x + dx]
                    if other > a or (other == a and (dy < 0 or (dy == 0 and dx < 0))):
                        highest = False
            b = background[r] * pixels[y, x] + 0.02
            evidence = a * math.log(a / b) - (a - b)
            if not highest or a <= b or evidence < nats:
                continue
            k = n
            if n < len(table):
                n += 1
            else:
                k = int(np.argmin(table[:, 4]))
                if table[k, 4] >= evidence:
                    continue
            bend_y = counts[y - 1, x] - 2 * a + counts[y + 1, x]
            bend_x = counts[y, x - 1] - 2 * a + counts[y, x + 1]
            # the fall of the background would draw a weak spot inwards
            fall = full * (background[min(r + 2, len(background) - 1)] - background[max(r - 2, 0)]) / 4 / max(r, 1)
            slope_y = 0.5 * (counts[y - 1, x] - counts[y + 1, x]) + fall * (y - cy)
            slope_x = 0.5 * (counts[y, x - 1] - counts[y, x + 1]) + fall * (x - cx)
            table[k, 0] = y + (min(max(slope_y / bend_y, -1.0), 1.0) if bend_y < 0 else 0.0)
            table[k, 1] = x + (min(max(slope_x / bend_x, -1.0), 1.0) if bend_x < 0 else 0.0)
            table[k, 2], table[k, 3], table[k, 4] = a, b, evidence
    table[:n] = table[:n][np.argsort(-table[:n, 4], kind="mergesort")]
    return n


@numba.njit(cache=True, parallel=True)
def _find_spots(patterns, centre, mask, pixels, half, full, gain, offset, first_radius, nats, table, number, background, threads):
    n, ny, nx = patterns.shape
    n_radii = background.shape[1]
    for thread in numba.prange(threads):
        counts, row = np.empty((ny, nx), np.float32), np.empty(nx + 1, np.float32)
        radius = np.empty((ny, nx), np.int32)
        ceiling, least = np.empty(n_radii, np.float32), np.empty(n_radii, np.float32)
        for i in range(thread, n, threads):
            cy, cx = np.float32(centre[i, 0]), np.float32(centre[i, 1])
            for y in range(ny):
                for x in range(nx):
                    radius[y, x] = min(int(math.sqrt((y - cy) * (y - cy) + (x - cx) * (x - cx))), n_radii - 1)
            _aperture_counts(patterns[i], mask, half, gain, offset, row, counts)
            _radial_background(patterns[i], mask, counts, radius, full, gain, offset, background[i], ceiling)
            _least_counts(background[i], full, nats, least)
            number[i] = _local_maxima(counts, pixels, radius, cy, cx, background[i], least, full, first_radius, nats, table[i])


def _no_spots(centre_px: np.ndarray, shape: tuple[int, ...]) -> Spots:
    """Room for the spots of n patterns of ``shape`` (ky, kx)."""
    n = len(centre_px)
    background = np.zeros((n, int(0.75 * max(shape))), np.float32)
    return Spots(np.zeros((n, _MOST_SPOTS, 5), np.float32), np.zeros(n, np.int64), background, np.array(centre_px, float))


def find_spots(patterns: np.ndarray, centre_px: np.ndarray, calibration: Calibration) -> Spots:
    """The spots of patterns (n, ky, kx) of any real type with the direct beam at ``centre_px`` (n, 2), (y, x)."""
    if len(centre_px) != len(patterns):
        raise ValueError(f"find_spots: got {len(patterns)} patterns and {len(centre_px)} places of the direct beam, expected as many")
    half = _aperture_of(calibration)
    spots = _no_spots(centre_px, patterns.shape[1:])
    _find_spots(
        patterns, spots.centre_px, calibration.mask, _good_pixels(calibration.mask, half), half, float(np.sum(2 * half + 1)),
        calibration.gain, calibration.offset, first_radius_px(calibration), _LEAST_NATS, spots.table, spots.number, spots.background,
        numba.get_num_threads(),
    )  # fmt: skip
    return spots


def pattern_peaks(
    image: np.ndarray, centre_px: np.ndarray, calibration: Calibration, *, most: int = 100, least_nats: float = 4.0
) -> np.ndarray:
    """Spots of one pattern (ky, kx): rows (y px, x px, evidence against background in nats, net counts), the surest first."""
    spots = find_spots(np.asarray(image)[None], np.asarray(centre_px)[None], calibration)
    y, x, counts, below, nats = spots.table[0, : spots.number[0]].astype(float).T
    return np.stack([y, x, nats, counts - below], axis=1)[nats >= least_nats][:most]


# --- template banks ---------------------------------------------------------------------


class _Reflections(NamedTuple):
    """Reflections as the kernels take them: g (n, 3) in 1/Å, strength (n,), cone (n,) = |g| times the precession angle.

    ``reach`` (n,) is the excitation error beyond which one is too faint to count; with the half
    width of the rocking curve and the wavelength.
    """

    g: np.ndarray
    strength: np.ndarray
    cone: np.ndarray
    reach: np.ndarray
    half_width: float
    wavelength: float


class _Coarse(NamedTuple):
    """The coarse search of one phase: a frame for every zone axis, the reflections near it, its spots sorted by radius."""

    frames: np.ndarray
    near: np.ndarray
    near_start: np.ndarray
    radius: np.ndarray
    turn: np.ndarray
    weight: np.ndarray
    template: np.ndarray
    bin_start: np.ndarray
    operators: np.ndarray


@dataclass(frozen=True)
class TemplateBank:
    """All that matching needs of one phase.

    ``g`` (n, 3) in 1/Å in the crystal's frame with the ``strength`` (n,) of each reflection,
    integrated over the excitation error; the rocking curve is that of `rocking_curve` with
    ``cone`` (n,) and ``half_width_invA``, followed to an excitation error of ``reach`` (n,).
    ``frames`` (m, 3, 3) is one rotation (sample to crystal) for every zone axis of the coarse search,
    with the reflections that can shine near it (``near``, from ``near_start``) and its ``spot_*``
    sorted by radius; ``operators`` are the proper rotations of the Laue group.
    """

    crystal: Crystal
    hkl: np.ndarray
    g: np.ndarray
    strength: np.ndarray
    cone: np.ndarray
    reach: np.ndarray
    half_width_invA: float
    wavelength_A: float
    frames: np.ndarray
    near: np.ndarray
    near_start: np.ndarray
    spot_radius: np.ndarray
    spot_turn: np.ndarray
    spot_weight: np.ndarray
    spot_template: np.ndarray
    operators: np.ndarray

    @property
    def reflections(self) -> _Reflections:
        """The reflections as the kernels take them."""
        return _Reflections(self.g, self.strength, self.cone, self.reach, self.half_width_invA, self.wavelength_A)

    @property
    def coarse(self) -> _Coarse:
        """The coarse search as the kernels take it."""
        edges = np.arange(0, self.spot_radius.max(initial=0) + 0.1, _RADIAL_BIN)
        return _Coarse(
            self.frames, self.near, self.near_start, self.spot_radius, self.spot_turn, self.spot_weight, self.spot_template,
            np.searchsorted(self.spot_radius, edges).astype(np.int64), self.operators,
        )  # fmt: skip


_RADIAL_BIN = 0.005  # 1/Å
_RADIAL_TOLERANCE = 0.015  # 1/Å, besides Calibration.place_strain
_ANGLE_BINS = 120
_VOTE_UNIT = 256.0  # votes are whole numbers, which add and compare faster


def zone_axes(operators: np.ndarray, step_deg: float) -> np.ndarray:
    """Unit vectors (m, 3) that cover the sphere, reduced by proper rotations (o, 3, 3), at about one step's distance.

    A spiral (Fibonacci) lattice; of every set of equivalent directions the one nearest to a
    general direction stays.
    """
    n = round(4 * math.pi / (math.radians(step_deg) ** 2 * math.sqrt(3) / 2))
    z = 1 - (2 * np.arange(n) + 1) / n
    angle = math.pi * (1 + math.sqrt(5)) * np.arange(n)
    directions = np.stack([np.sqrt(1 - z * z) * np.cos(angle), np.sqrt(1 - z * z) * np.sin(angle), z], axis=1)
    pole = np.array([0.3125, 0.1234, 0.9418])
    nearness = np.einsum("oij,nj->noi", operators, directions) @ pole
    return directions[directions @ pole >= nearness.max(axis=1) - 1e-12]


def rotation_to_zone(zone: np.ndarray) -> np.ndarray:
    """A rotation (3, 3), sample to crystal, that puts the beam (sample z) along ``zone`` (crystal, Cartesian)."""
    z = zone / np.linalg.norm(zone)
    helper = np.eye(3)[np.argmin(np.abs(z))]
    x = helper - z * (helper @ z)
    x /= np.linalg.norm(x)
    return np.stack([x, np.cross(z, x), z], axis=1)


def excitation_error(g_sample: np.ndarray, wavelength_A: float) -> np.ndarray:
    """Distance (n,) of reciprocal points (n, 3) in the sample's frame from the Ewald sphere along the beam (+z), 1/Å."""
    return -g_sample[:, 2] - wavelength_A * np.sum(g_sample**2, axis=1) / 2


@numba.njit(cache=True, fastmath=True)
def rocking_curve(excitation_error, cone, half_width):
    """Intensity of a reflection against its excitation error (1/Å) in precession, normalised to an integral of one.

    In a turn of the beam the excitation error swings as s + cone cos(phi), cone = |g| times the
    precession angle; at rest the curve is a Lorentzian of ``half_width`` (thickness, bending).
    Their convolution is the real part of 1 / (pi sqrt(cone² - (s + i half_width)²)): flat
    within the cone, with tails as s^-2 outside.
    """
    u, r = excitation_error / cone, half_width / cone
    real, imaginary = 1 - u * u + r * r, 2 * u * r
    size = np.sqrt(real * real + imaginary * imaginary)
    return np.sqrt(np.maximum(size + real, 0.0) / 2) / (math.pi * size * cone)


def template_bank(
    crystal: Crystal,
    *,
    max_g_invA: float,
    beam_energy_keV: float,
    precession_deg: float,
    excitation_width_invA: float,
    step_deg: float = 2.0,
    min_relative_intensity: float = 1e-3,
    cache: str | Path | None = None,
) -> TemplateBank:
    """The bank of one phase for a precessed beam.

    ``precession_deg`` is the half angle of the cone, ``excitation_width_invA`` the half width of the rocking curve at rest,
    ``step_deg`` the distance of zone axes. The strength of a reflection is |F/V|^1.4, between the kinematical (2) and the dynamical
    (1) power, times `rocking_curve`. The coarse templates are broader by the step of the
    search, and the weights of their spots go with a low power of the strength, because real
    intensities are neither. ``cache`` is a folder that keeps the coarse search by a hash of all it
    depends on.
    """
    reflected = reflections(crystal, max_g_invA, min_relative_intensity)
    wavelength = electron_wavelength_A(beam_energy_keV)
    strength = reflected.intensity**0.7
    cone = np.linalg.norm(reflected.g, axis=1) * max(math.radians(precession_deg), 1e-4)
    operators = crystal.laue_rotations
    reach = _excited_reach(reflected.g, strength, cone, excitation_width_invA, wavelength, zone_axes(operators, 10 * step_deg))
    bright = reach > 0
    refs = _Reflections(reflected.g[bright], strength[bright], cone[bright], reach[bright], excitation_width_invA, wavelength)
    coarse = _cached_arrays(cache, lambda: _coarse_templates(refs, operators, step_deg), *refs, operators, step_deg)
    arrays: dict[str, Any] = {name: coarse[name] for name in _COARSE_ARRAYS}
    return TemplateBank(crystal, reflected.hkl[bright], *refs, **arrays, operators=operators)


_FAINT = 1e-4  # of a pattern's strength: what no dose of these patterns can show


def _excited_reach(
    g: np.ndarray, strength: np.ndarray, cone: np.ndarray, half_width: float, wavelength: float, zones: np.ndarray
) -> np.ndarray:
    """The excitation error (n,) at which each reflection falls under `_FAINT` of a usual pattern's whole; 0 where it never is above."""
    whole = [np.sum(strength * rocking_curve(excitation_error(g @ rotation_to_zone(zone), wavelength), cone, half_width)) for zone in zones]
    outside = np.linspace(0, 8, 65)
    s = cone[:, None] + half_width * outside
    shines = strength[:, None] * rocking_curve(s, cone[:, None], half_width) > _FAINT * np.median(whole)
    last = shines.shape[1] - 1 - np.argmax(shines[:, ::-1], axis=1)
    return np.where(shines.any(axis=1), cone + half_width * outside[last], 0.0)


_COARSE_ARRAYS = ("frames", "near", "near_start", "spot_radius", "spot_turn", "spot_weight", "spot_template")


def _cached_arrays(folder: str | Path | None, make: Any, *depends_on: Any) -> dict[str, np.ndarray]:
    """Named arrays from a folder's .npz named by the hash of what they depend on and of the code; else made, and kept there."""
    if folder is None:
        return make()
    code = (_coarse_templates, zone_axes, rotation_to_zone, excitation_error, rocking_curve)
    digest = hashlib.sha256("".join(inspect.getsource(function) for function in code).encode())
    for part in depends_on:
        digest.update(np.ascontiguousarray(part, dtype=float).tobytes())
    path = Path(folder) / f"bank_{digest.hexdigest()[:24]}.npz"
    if path.is_file():
        try:
            with np.load(path, allow_pickle=False) as arrays:
                return {name: arrays[name] for name in arrays.files}
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
            pass  # broken off or damaged: made again below
    arrays = make()
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)
    write_atomically(path, buffer.getvalue())
    return arrays


def _coarse_templates(refs: _Reflections, operators: np.ndarray, step_deg: float, most_spots: int = 80) -> dict[str, np.ndarray]:
    """For every zone axis the reflections that shine within its reach, and its spots; all spots sorted by radius."""
    step = math.radians(step_deg)
    length = np.linalg.norm(refs.g, axis=1)
    frames = np.array([rotation_to_zone(zone) for zone in zone_axes(operators, step_deg)])
    near, near_start = [], [0]
    columns: list[list[np.ndarray]] = [[], [], [], []]
    for number, frame in enumerate(frames):
        g = refs.g @ frame
        s = excitation_error(g, refs.wavelength)
        close = np.flatnonzero(np.abs(s) < refs.reach + 1.3 * length * step)
        near.append(close)
        near_start.append(near_start[-1] + len(close))
        broad = np.hypot(refs.cone[close], 0.5 * length[close] * step)
        strength = refs.strength[close] * rocking_curve(s[close], broad, refs.half_width + 0.1 * length[close] * step)
        brightest = np.argsort(-strength, kind="stable")[:most_spots]
        brightest = brightest[strength[brightest] > 0.01 * strength.max(initial=0)]
        weight = strength[brightest] ** 0.3
        x, y = g[close[brightest], :2].T
        values = (np.hypot(x, y), np.arctan2(y, x) / (2 * np.pi) % 1, weight / max(np.linalg.norm(weight), 1e-12))
        for column, value in zip(columns, (*values, np.full(len(weight), number)), strict=True):
            column.append(value)
    radius, turn, weight, template = (np.concatenate(column) for column in columns)
    order = np.argsort(radius, kind="stable")
    arrays = (
        frames, np.concatenate(near), np.array(near_start), radius[order].astype(np.float32), turn[order].astype(np.float32),
        weight[order].astype(np.float32), template[order].astype(np.int32),
    )  # fmt: skip
    return dict(zip(_COARSE_ARRAYS, arrays, strict=True))


# --- evidence ---------------------------------------------------------------------------
#
# Log of the probability of a pattern's spots with a crystal, over that with background and stray spots only. A
# predicted spot is missing altogether with a probability of `_MISSING` (dynamical extinction, a wrong tilt); else
# its strength is log-normal about the expected one. A measured spot that no crystal predicts is noise, or, at a share
# `_STRAY` of all places, a stray of any strength over three decades. So a clear spot earns some 6 to 9 nats where
# it is predicted, whatever its brightness; one that is off its place by more than the spot's own
# uncertainty earns nothing; one that is predicted and missing costs up to -log(_MISSING).

_MISSING = 0.08
_LOG_MEAN = -0.15
_LOG_SPREAD = 0.8
_STRAY = 0.003
_STRAY_DENSITY = 1 / math.log(1000)
_PLACE_PX = 0.2  # how far a strong spot may be off its place, px, besides Calibration.place_strain
_LEAST_MEAN = 0.15  # spots expected to have fewer counts are left out


class _Camera(NamedTuple):
    """Geometry of all patterns of a scan: ``metric`` (2, 2) from g (x, y) to px (x, y) and its inverse, lengths in px.

    ``pixels`` (ky, kx) is the share of good pixels in the aperture about each, ``full`` the number of pixels of an aperture.
    """

    metric: np.ndarray
    inverse: np.ndarray
    pixels: np.ndarray
    spot_sigma: float
    match: float
    first_radius: float
    full: float
    place_strain: float


def _camera(calibration: Calibration) -> _Camera:
    half = _aperture_of(calibration)
    full = float(np.sum(2 * half + 1))
    sigma = calibration.spot_sigma_px
    metric = np.ascontiguousarray(calibration.metric, dtype=float)
    pixels = _good_pixels(calibration.mask, half) / np.float32(full)
    return _Camera(metric, np.linalg.inv(metric), pixels, sigma, 2.0 * sigma, first_radius_px(calibration), full, calibration.place_strain)


class _View(NamedTuple):
    """One pattern made ready for evidence, and room to work in.

    ``spots`` (m, 5) is its table, ``terms`` (m, 6) per spot what evidence needs of it: log of the
    net counts, 1/variance of the log strength, 1/variance of the place, density at perfect
    agreement, that of a missing or stray spot, that without a crystal; ``owner`` (ky, kx) the number of the nearest spot + 1.
    ``strength``, ``off_y``, ``off_x`` (m,), ``missed`` (n, 2) and ``predicted`` (n, 4) take what a crystal predicts.
    """

    spots: np.ndarray
    terms: np.ndarray
    owner: np.ndarray
    background: np.ndarray
    centre: np.ndarray
    strength: np.ndarray
    off_y: np.ndarray
    off_x: np.ndarray
    missed: np.ndarray
    predicted: np.ndarray


@numba.njit(cache=True)
def _own_pixels(spots, reach, owner):
    """Write for every pixel the number + 1 of the nearest spot within ``reach``; 0 where there is none."""
    ny, nx = owner.shape
    owner[:] = 0
    wide = int(reach) + 1
    for k in range(len(spots)):
        y0, x0 = int(spots[k, 0] + 0.5), int(spots[k, 1] + 0.5)
        for y in range(max(0, y0 - wide), min(ny, y0 + wide + 1)):
            for x in range(max(0, x0 - wide), min(nx, x0 + wide + 1)):
                distance = (y - spots[k, 0]) ** 2 + (x - spots[k, 1]) ** 2
                if distance > reach * reach:
                    continue
                other = owner[y, x] - 1
                if other < 0 or distance < (y - spots[other, 0]) ** 2 + (x - spots[other, 1]) ** 2:
                    owner[y, x] = k + 1


@numba.njit(cache=True)
def _view(table, number, background, centre, camera, work):
    """The `_View` of a pattern in the room of ``work``, and the net counts in its clear spots."""
    spots, terms = table[:number], work.terms[:number]
    _own_pixels(spots, camera.match, work.owner)
    area = math.pi * camera.match**2
    diffracted = 3.0
    for k in range(number):
        a, b = spots[k, 2], spots[k, 3]
        net = max(a - b, 0.1)
        if spots[k, 4] > 4:
            diffracted += net
        r2 = (spots[k, 0] - centre[0]) ** 2 + (spots[k, 1] - centre[1]) ** 2
        noise = a / (net * net)
        spread = _LOG_SPREAD**2 + noise
        place = _PLACE_PX**2 + camera.place_strain**2 * r2 + camera.spot_sigma**2 * noise
        nothing = net / math.sqrt(2 * math.pi * a) * math.exp(-min(spots[k, 4], 600.0))
        stray = _STRAY * _STRAY_DENSITY
        terms[k, 0] = math.log(net)
        terms[k, 1] = 0.5 / spread
        terms[k, 2] = 0.5 / place
        terms[k, 3] = (1 - _STRAY) * (1 - _MISSING) / math.sqrt(2 * math.pi * spread) * area / (2 * math.pi * place)
        terms[k, 4] = (1 - _STRAY) * _MISSING * nothing + stray
        terms[k, 5] = (1 - _STRAY) * nothing + stray
    view = _View(
        spots, terms, work.owner, background, centre, work.strength[:number], work.off_y[:number], work.off_x[:number], work.missed,
        work.predicted,
    )  # fmt: skip
    return view, diffracted


@numba.njit(cache=True)
def _room(camera, n_reflections):
    """Work space of one thread, in the shape of a `_View`."""
    return _View(
        np.empty((0, 5), np.float32), np.empty((_MOST_SPOTS, 6)), np.zeros(camera.pixels.shape, np.int16), np.empty(0, np.float32),
        np.empty(2), np.empty(_MOST_SPOTS), np.empty(_MOST_SPOTS), np.empty(_MOST_SPOTS), np.empty((n_reflections, 2)),
        np.empty((n_reflections, 4)),
    )  # fmt: skip


@numba.njit(cache=True, fastmath=True)
def _predict(rotation, near, n_near, refs, camera, centre, out):
    """The spots of a crystal on the camera: rows (y px, x px, strength, number of the reflection) into ``out``; returns how many.

    ``near`` holds the numbers of the reflections to look at.
    """
    g, strengths, cones, reaches = refs.g, refs.strength, refs.cone, refs.reach
    half_width, half_wavelength = refs.half_width, 0.5 * refs.wavelength
    r00, r10, r20 = rotation[0, 0], rotation[1, 0], rotation[2, 0]
    r01, r11, r21 = rotation[0, 1], rotation[1, 1], rotation[2, 1]
    r02, r12, r22 = rotation[0, 2], rotation[1, 2], rotation[2, 2]
    m00, m01, m10, m11 = camera.metric[0, 0], camera.metric[0, 1], camera.metric[1, 0], camera.metric[1, 1]
    cy, cx = centre[0], centre[1]
    last_y, last_x = camera.pixels.shape[0] - 3, camera.pixels.shape[1] - 3
    nearest2 = camera.first_radius**2
    n = 0
    for j in range(n_near):
        i = near[j]
        g0, g1, g2 = g[i, 0], g[i, 1], g[i, 2]
        s = g0 * r02 + g1 * r12 + g2 * r22 + half_wavelength * (g0 * g0 + g1 * g1 + g2 * g2)
        if abs(s) > reaches[i]:
            continue
        gx, gy = g0 * r00 + g1 * r10 + g2 * r20, g0 * r01 + g1 * r11 + g2 * r21
        dx, dy = m00 * gx + m01 * gy, m10 * gx + m11 * gy
        y, x = cy + dy, cx + dx
        if y < 2 or x < 2 or y > last_y or x > last_x or dx * dx + dy * dy < nearest2:
            continue
        out[n, 0], out[n, 1], out[n, 2], out[n, 3] = y, x, strengths[i] * rocking_curve(s, cones[i], half_width), i
        n += 1
    return n


@numba.njit(cache=True, fastmath=True)
def _collect(rotation, near, n_near, refs, camera, view):
    """What a crystal predicts: strength and mean offset at each measured spot into ``view``, the rest into ``view.missed``.

    Returns the number of predicted spots without a measured one, and the total strength.
    """
    strength, off_y, off_x, missed, predicted = view.strength, view.off_y, view.off_x, view.missed, view.predicted
    spots, owner, background, pixels, full = view.spots, view.owner, view.background, camera.pixels, camera.full
    cy, cx = view.centre[0], view.centre[1]
    for k in range(len(strength)):
        strength[k] = off_y[k] = off_x[k] = 0.0
    total, n_missed, last = 0.0, 0, len(background) - 1
    for j in range(_predict(rotation, near, n_near, refs, camera, view.centre, predicted)):
        y, x, expected = predicted[j, 0], predicted[j, 1], predicted[j, 2]
        v, u = int(y + 0.5), int(x + 0.5)
        k = owner[v, u] - 1
        if k >= 0:
            strength[k] += expected
            off_y[k] += expected * (y - spots[k, 0])
            off_x[k] += expected * (x - spots[k, 1])
        elif pixels[v, u] > 0.5:
            missed[n_missed, 0] = expected
            missed[n_missed, 1] = background[min(int(math.sqrt((y - cy) ** 2 + (x - cx) ** 2)), last)] * full + 0.02
            n_missed += 1
        else:
            continue
        total += expected
    return n_missed, total


@numba.njit(cache=True, fastmath=True)
def _missed_odds(mean, below):
    """How much more probable it is to see nothing over ``below`` counts with a crystal that predicts ``mean`` more than without it.

    The Poisson probability averaged over the spread of strengths falls off as a power, not exponentially.
    """
    lack = 1 + 0.45 * mean * mean / (below + 0.667 * mean)
    return _MISSING + (1 - _MISSING) / (lack * lack)


@numba.njit(cache=True, fastmath=True)
def _judge(strength, off_y, off_x, missed, n_missed, scale, view):
    """Evidence (nats) of what was collected, with ``scale`` counts a unit of strength, and the turn (radians) that would fit best."""
    spots, terms, cy, cx = view.spots, view.terms, view.centre[0], view.centre[1]
    log_scale, least = math.log(scale) + _LOG_MEAN, _LEAST_MEAN / scale
    evidence, odds, torque, inertia = 0.0, 1.0, 0.0, 1e-9
    for k in range(len(spots)):
        expected = strength[k]
        if expected < least:
            continue
        dy, dx = off_y[k] / expected, off_x[k] / expected
        off = terms[k, 0] - log_scale - math.log(expected)
        density = terms[k, 3] * math.exp(-off * off * terms[k, 1] - (dy * dy + dx * dx) * terms[k, 2])
        ratio = (density + terms[k, 4]) / terms[k, 5]
        odds *= ratio
        if odds > 1e100 or odds < 1e-100:
            evidence += math.log(odds)
            odds = 1.0
        if ratio > 2.7:
            y, x = spots[k, 0] - cy, spots[k, 1] - cx
            weight = min(spots[k, 4], np.float32(30.0))
            torque += weight * (x * dy - y * dx)
            inertia += weight * (x * x + y * y)
    for j in range(n_missed):
        if missed[j, 0] >= least:
            odds *= _missed_odds(scale * missed[j, 0], missed[j, 1])
            if odds < 1e-100:
                evidence += math.log(odds)
                odds = 1.0
    return evidence + math.log(odds), torque / inertia


@numba.njit(cache=True, fastmath=True)
def _evidence(rotation, near, n_near, refs, camera, view, diffracted):
    """Evidence (nats) of a crystal, and by how much (radians) its spots should turn in the plane to fit best.

    The scale is that of the measured spots which the crystal explains, but at least 15 % of all diffracted counts.
    """
    n_missed, total = _collect(rotation, near, n_near, refs, camera, view)
    if total <= 0:
        return 0.0, 0.0
    spots, strength = view.spots, view.strength
    matched = 0.0
    for k in range(len(spots)):
        if strength[k] > 0 and spots[k, 4] > 3:
            matched += spots[k, 2] - spots[k, 3]
    return _judge(strength, view.off_y, view.off_x, view.missed, n_missed, max(matched, 0.15 * diffracted) / total, view)


@numba.njit(cache=True)
def _turned(rotation, axis, angle, out):
    """Into ``out`` the rotation (sample to crystal) after turning the crystal by ``angle`` about an axis of the sample."""
    c, s = math.cos(angle), math.sin(angle)
    i, j = (axis + 1) % 3, (axis + 2) % 3
    for row in range(3):
        out[row, axis] = rotation[row, axis]
        out[row, i] = c * rotation[row, i] + s * rotation[row, j]
        out[row, j] = c * rotation[row, j] - s * rotation[row, i]


@numba.njit(cache=True)
def _spun(rotation, near, n_near, refs, camera, view, diffracted):
    """Turn ``rotation`` in the plane, in place, as its spots ask for, where that helps; returns the evidence."""
    trial = np.empty((3, 3))
    best, spin = _evidence(rotation, near, n_near, refs, camera, view, diffracted)
    _turned(rotation, 2, spin, trial)
    value, _ = _evidence(trial, near, n_near, refs, camera, view, diffracted)
    if value > best:
        best = value
        rotation[:] = trial
    return best


@numba.njit(cache=True)
def _refine(rotation, tilt, levels, near, n_near, refs, camera, view, diffracted):
    """Climb the evidence from ``rotation``, which is changed in place; returns the evidence.

    The turn in the plane follows from the places of the spots at once; the tilt about x and y is
    searched in steps of ``tilt`` radians, halved ``levels - 1`` times.
    """
    trial = np.empty((3, 3))
    best, spin = _evidence(rotation, near, n_near, refs, camera, view, diffracted)
    for _ in range(levels):
        for _ in range(2):
            if abs(spin) < 3e-4:
                break
            _turned(rotation, 2, spin, trial)
            value, left = _evidence(trial, near, n_near, refs, camera, view, diffracted)
            if value <= best:
                break
            best, spin = value, left
            rotation[:] = trial
        for _ in range(2):
            moved = False
            for direction in range(4):
                _turned(rotation, direction % 2, tilt if direction < 2 else -tilt, trial)
                value, left = _evidence(trial, near, n_near, refs, camera, view, diffracted)
                if value > best:
                    best, spin, moved = value, left, True
                    rotation[:] = trial
            if not moved:
                break
        tilt *= 0.5
    return best


@numba.njit(cache=True, fastmath=True)
def _near_ewald(rotation, reach, refs, first, last, near):
    """Numbers of the reflections of ``first`` to ``last`` that can shine within ``reach`` radians of tilt, into ``near``; how many."""
    n = 0
    for i in range(first, last):
        g0, g1, g2 = refs.g[i, 0], refs.g[i, 1], refs.g[i, 2]
        length2 = g0 * g0 + g1 * g1 + g2 * g2
        s = g0 * rotation[0, 2] + g1 * rotation[1, 2] + g2 * rotation[2, 2] + 0.5 * refs.wavelength * length2
        if abs(s) < refs.reach[i] + reach * math.sqrt(length2):
            near[n] = i
            n += 1
    return n


# --- search of one phase ------------------------------------------------------------------

_COARSE_CANDIDATES = 10
_FINE_CANDIDATES = 4
_BEHIND = 25.0  # nats behind the best, at which a candidate is not climbed further
_HOPELESS = -10.0  # nats, from which none is: chance alone gives more than ten
_VOTING_SPOTS = 20
_TEN_DEGREES = math.radians(10)


@numba.njit(cache=True, fastmath=True)
def _vote(weights, radius, turn, coarse, tolerance, votes):
    """Sum over pairs (measured spot, template spot) of equal radius, filed by template and in-plane angle, into ``votes``."""
    votes[:] = 0
    last = len(coarse.bin_start) - 1
    spot_radius, spot_turn, spot_weight, template = coarse.radius, coarse.turn, coarse.weight, coarse.template
    for k in range(len(radius)):
        low = max(0, int((radius[k] - tolerance) / _RADIAL_BIN))
        high = min(last, int((radius[k] + tolerance) / _RADIAL_BIN) + 1)
        if low > last:
            continue
        here, angle, per_tolerance = np.float32(radius[k]), np.float32(turn[k]), np.float32(1 / tolerance)
        weight = np.float32(weights[k] * _VOTE_UNIT)
        for i in range(coarse.bin_start[low], coarse.bin_start[high]):
            off = (spot_radius[i] - here) * per_tolerance
            near = np.float32(1) - off * off
            if near <= 0:
                continue
            between = angle - spot_turn[i]
            if between < 0:
                between += np.float32(1)
            between *= np.float32(_ANGLE_BINS)
            j = int(between)
            value = weight * spot_weight[i] * near
            second = value * (between - np.float32(j))
            votes[template[i], j] += np.uint16(value - second)
            votes[template[i], j + 1] += np.uint16(second)


@numba.njit(cache=True)
def _most_votes(votes, height, templates, bins):
    """The templates with the highest votes and their best angles, the highest first; returns how many."""
    for t in range(len(votes)):
        row = votes[t]
        row[0] += row[_ANGLE_BINS]
        highest = np.uint16(0)
        for j in range(_ANGLE_BINS):
            highest = max(highest, row[j])
        height[t] = highest
    most = min(len(templates), len(votes))
    for m in range(most):
        t = int(np.argmax(height))
        templates[m], bins[m], height[t] = t, np.argmax(votes[t, :_ANGLE_BINS]), -1
    return most


@numba.njit(cache=True)
def _nearest_operator(key, other, operators):
    """The operator that turns ``key`` nearest to ``other`` (both sample to crystal), and the angle (radians) left."""
    turn = np.empty((3, 3))
    for i in range(3):
        for j in range(3):
            turn[i, j] = other[i, 0] * key[j, 0] + other[i, 1] * key[j, 1] + other[i, 2] * key[j, 2]
    best, largest = 0, -2.0
    for o in range(len(operators)):
        trace = 0.0
        for i in range(3):
            for j in range(3):
                trace += operators[o, i, j] * turn[i, j]
        if trace > largest:
            best, largest = o, trace
    return best, math.acos(min(1.0, max(-1.0, (largest - 1) / 2)))


@numba.njit(cache=True)
def _best_of(candidates, value, n, operators, rotation, result):
    """The best candidate into ``rotation`` (3, 3); its evidence and the best at least ten degrees away into ``result`` (2,)."""
    best = np.argmax(value[:n])
    rotation[:] = candidates[best]
    result[0] = value[best]
    for c in range(n):
        if value[c] > result[1] and _nearest_operator(candidates[c], candidates[best], operators)[1] > _TEN_DEGREES:
            result[1] = value[c]


@numba.njit(cache=True)
def _voting_spots(spots, votes_cast, centre, camera, radius, turn, weights):
    """Radius (1/Å), turn (of a full one) and weight of the surest spots that may vote, into the arrays; returns how many."""
    voting = 0
    for k in range(len(spots)):
        if voting < _VOTING_SPOTS and votes_cast[k]:
            y, x = spots[k, 0] - centre[0], spots[k, 1] - centre[1]
            gx = camera.inverse[0, 0] * x + camera.inverse[0, 1] * y
            gy = camera.inverse[1, 0] * x + camera.inverse[1, 1] * y
            radius[voting], turn[voting] = math.hypot(gx, gy), (math.atan2(gy, gx) / (2 * math.pi)) % 1.0
            weights[voting] = math.sqrt(math.sqrt(spots[k, 4]))
            voting += 1
    return voting


@numba.njit(cache=True, parallel=True)
def _search_templates(
    table, number, background, centre, votes_cast, coarse, refs, camera, tilt, n_fine, candidates_each, rotation, result, threads
):
    for thread in numba.prange(threads):
        work = _room(camera, len(refs.g))
        votes = np.zeros((len(coarse.frames), _ANGLE_BINS + 1), np.uint16)
        height = np.zeros(len(coarse.frames), np.int32)
        templates, bins = np.zeros(candidates_each, np.int64), np.zeros(candidates_each, np.int64)
        candidates, value = np.zeros((candidates_each, 3, 3)), np.zeros(candidates_each)
        radius, turn, weights = np.zeros(_VOTING_SPOTS), np.zeros(_VOTING_SPOTS), np.zeros(_VOTING_SPOTS, np.float32)
        for i in range(thread, len(table), threads):
            if number[i] == 0:
                rotation[i] = np.eye(3)
                continue
            view, diffracted = _view(table[i], number[i], background[i], centre[i], camera, work)
            voting = _voting_spots(view.spots, votes_cast[i], centre[i], camera, radius, turn, weights)
            _vote(weights, radius[:voting], turn[:voting], coarse, _RADIAL_TOLERANCE + camera.place_strain, votes)
            n = _most_votes(votes, height, templates, bins)
            for c in range(n):
                t = templates[c]
                _turned(coarse.frames[t], 2, -2 * math.pi * bins[c] / _ANGLE_BINS, candidates[c])
                near = coarse.near[coarse.near_start[t] : coarse.near_start[t + 1]]
                value[c] = _spun(candidates[c], near, len(near), refs, camera, view, diffracted)
            for levels, most in ((1, n_fine), (3, (n_fine + 1) // 2)):  # few are climbed a little, the best of them to the end
                least = max(value[:n].max() - _BEHIND, _HOPELESS if levels > 1 else -1e9)
                for c in np.argsort(-value[:n], kind="mergesort")[:most]:
                    if value[c] < least:
                        break
                    near = coarse.near[coarse.near_start[templates[c]] : coarse.near_start[templates[c] + 1]]
                    step = tilt if levels == 1 else tilt / 2
                    value[c] = _refine(candidates[c], step, levels, near, len(near), refs, camera, view, diffracted)
            _best_of(candidates, value, n, coarse.operators, rotation[i], result[i])


def search_phase(
    spots: Spots,
    calibration: Calibration,
    bank: TemplateBank,
    *,
    voters: np.ndarray | None = None,
    n_coarse: int = _COARSE_CANDIDATES,
    n_fine: int = _FINE_CANDIDATES,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The best orientation of one phase for every pattern, each searched on its own.

    Every measured spot votes for the templates and in-plane angles that have a spot of its
    radius there, or only those marked in ``voters`` (n, 64); the ``n_coarse`` templates with the
    most votes are climbed a little, the ``n_fine`` best of them to the end.

    Returns
    -------
    Rotations (n, 3, 3) sample to crystal, evidence (n,) in nats, and that of the best solution
    at least 10 degrees away (n,); -1000 where there is none.
    """
    n = len(spots.number)
    rotation, result = np.zeros((n, 3, 3)), np.full((n, 2), -1e3)
    if len(bank.spot_radius):
        step = math.sqrt(4 * math.pi / (len(bank.operators) * len(bank.frames) * math.sqrt(3) / 2))
        _search_templates(
            *spots.arrays, spots.table[:, :, 4] > 0 if voters is None else voters,
            bank.coarse, bank.reflections, _camera(calibration),
            0.4 * step, n_fine, n_coarse, rotation, result, numba.get_num_threads(),
        )  # fmt: skip
    return rotation, result[:, 0], result[:, 1]


@numba.njit(cache=True)
def _zone_evidence(table, number, background, centre, coarse, refs, camera, evidence):
    """Evidence of every template at the in-plane angle that has the most votes, for one pattern."""
    work = _room(camera, len(refs.g))
    view, diffracted = _view(table, number, background, centre, camera, work)
    radius, turn, weights = np.zeros(_VOTING_SPOTS), np.zeros(_VOTING_SPOTS), np.zeros(_VOTING_SPOTS, np.float32)
    voting = _voting_spots(view.spots, view.spots[:, 4] > 0, centre, camera, radius, turn, weights)
    votes = np.zeros((len(coarse.frames), _ANGLE_BINS + 1), np.uint16)
    _vote(weights, radius[:voting], turn[:voting], coarse, _RADIAL_TOLERANCE + camera.place_strain, votes)
    turned = np.empty((3, 3))
    for t in range(len(coarse.frames)):
        votes[t, 0] += votes[t, _ANGLE_BINS]
        _turned(coarse.frames[t], 2, -2 * math.pi * np.argmax(votes[t, :_ANGLE_BINS]) / _ANGLE_BINS, turned)
        near = coarse.near[coarse.near_start[t] : coarse.near_start[t + 1]]
        evidence[t] = _spun(turned, near, len(near), refs, camera, view, diffracted)


def zone_axis_landscape(spots: Spots, calibration: Calibration, bank: TemplateBank) -> tuple[np.ndarray, np.ndarray]:
    """What one phase scores in every zone axis of its bank for one pattern (the first of ``spots``), without any refinement.

    Returns directions of the beam (m, 3), unit vectors in the crystal's Cartesian frame, and the evidence (m,) in nats at the
    in-plane angle for which the spots vote.
    """
    evidence = np.zeros(len(bank.frames))
    if len(bank.spot_radius) and spots.number[0]:
        first = (spots.table[0], spots.number[0], spots.background[0], spots.centre_px[0])
        _zone_evidence(*first, bank.coarse, bank.reflections, _camera(calibration), evidence)
    return bank.frames[:, :, 2], evidence


def _indices_up_to(most: int) -> np.ndarray:
    """All directions (n, 3) of indices without a common factor, the simple ones first."""
    indices = np.array([uvw for uvw in product(range(-most, most + 1), repeat=3) if math.gcd(*uvw) == 1])
    return indices[np.argsort(np.abs(indices).sum(axis=1), kind="stable")]


def nearest_zone_axis(crystal: Crystal, direction: np.ndarray, max_index: int = 5) -> tuple[tuple[int, int, int], float]:
    """The direction [uvw] of low indices nearest to one of the crystal's Cartesian frame (3,), and the angle (deg) to it.

    A higher index is taken only where it is nearer by 1° for each. The beam's direction is ``rotation[:, 2]``.

    >>> nearest_zone_axis(read_crystal(phase_file("rocksalt")), np.array([0.0, 1.0, 1.02]))[0]
    (0, 1, 1)
    """
    uvw = _indices_up_to(max_index)
    axes = uvw @ crystal.lattice
    angle = np.degrees(np.arccos(np.clip(axes @ direction / np.linalg.norm(axes, axis=1) / np.linalg.norm(direction), -1, 1)))
    best = int(np.argmin(angle + np.abs(uvw).sum(axis=1)))
    u, v, w = (int(i) for i in uvw[best])
    return (u, v, w), float(angle[best])


@dataclass(frozen=True)
class SpotComparison:
    """Spots of one pattern against those that a crystal predicts: ``predicted_px`` (n, 2), ``seen`` and ``missing`` (n,) of these, and
    ``extra_px`` (m, 2), the measured ones that it does not predict. Neither seen nor missing are those too faint to be expected."""

    predicted_px: np.ndarray
    seen: np.ndarray
    missing: np.ndarray
    extra_px: np.ndarray


def compare_spots(
    spots: Spots, calibration: Calibration, bank: TemplateBank, rotation: np.ndarray, *, least_nats: float = 6.0
) -> SpotComparison:
    """Which predicted spots of a crystal are in a pattern (the first of ``spots``), and which measured ones it does not explain.

    A spot counts as measured above ``least_nats`` against background; one that is predicted is missing where the counts expected of
    it, with the matched spots for a scale, would stand out by as much.
    """
    from scipy.spatial import cKDTree

    camera, centre = _camera(calibration), spots.centre_px[0]
    table = spots.table[0, : spots.number[0]].astype(float)
    measured = table[table[:, 4] >= least_nats]
    places, strength, _ = predicted_spots(bank, rotation, centre, calibration, min_relative_intensity=1e-3)
    if not len(places) or not len(measured):
        nothing = np.zeros(len(places), bool)
        return SpotComparison(places, nothing, nothing, measured[:, :2])
    apart, nearest = cKDTree(measured[:, :2]).query(places)
    seen = apart <= camera.match
    net = np.bincount(nearest[seen], minlength=len(measured)) > 0
    scale = float(np.sum(measured[net, 2] - measured[net, 3])) / max(float(strength[seen].sum()), 1e-12)
    mean = scale * strength
    radius = np.minimum(np.linalg.norm(places - centre, axis=1).astype(int), spots.background.shape[1] - 1)
    below = spots.background[0, radius] * camera.full + 0.02
    bright = (mean + below) * np.log((mean + below) / below) - mean > least_nats
    good = camera.pixels[tuple(np.rint(places).astype(int).T)] > 0.5
    return SpotComparison(places, seen, bright & ~seen & good, measured[cKDTree(places).query(measured[:, :2])[0] > camera.match, :2])


def predicted_spots(
    bank: TemplateBank, rotation: np.ndarray, centre_px: np.ndarray, calibration: Calibration, *, min_relative_intensity: float = 0.01
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Where a crystal puts its spots: positions (n, 2) (y, x) in px, strengths (n,) of the bank's model, hkl (n, 3)."""
    spots, everything = np.empty((len(bank.g), 4)), np.arange(len(bank.g))
    rotation, centre = np.ascontiguousarray(rotation, dtype=float), np.asarray(centre_px, float)
    n = _predict(rotation, everything, len(everything), bank.reflections, _camera(calibration), centre, spots)
    spots = spots[:n][spots[:n, 2] > min_relative_intensity * spots[:n, 2].max(initial=0)]
    return spots[:, :2], spots[:, 2], bank.hkl[spots[:, 3].astype(int)]


# --- scale and ellipse from the scan itself -------------------------------------------------


def spread_patterns(patterns: Any, calibration: Calibration, n: int) -> tuple[np.ndarray, np.ndarray]:
    """Indices (n,) of the flattened scan (ny, nx, ky, kx) with clear spots, spread over it, and the patterns (n, ky, kx) themselves.

    Every n-th part of the scan gives its pattern with the most evidence in spots among a few.
    """
    total = patterns.shape[0] * patterns.shape[1]
    chosen, images = [], []
    for edge in np.array_split(np.arange(total), min(n, total)):
        few = edge[:: max(1, len(edge) // 4)][:4]
        blocks = patterns_at(patterns, few)
        spots = find_spots(blocks, calibration.centre_px.reshape(-1, 2)[few], calibration)
        best = int(np.argmax(spots.table[:, :, 4].clip(max=20).sum(axis=1)))
        chosen.append(int(few[best]))
        images.append(blocks[best])
    return np.array(chosen), np.array(images)


def spot_size(patterns: np.ndarray, centre_px: np.ndarray, calibration: Calibration) -> float:
    """Standard deviation in px of the mean spot of patterns (n, ky, kx) about their clearest peaks.

    Where there are none, that of the guess.
    """
    reach, windows = 5, []
    for image, centre in zip(patterns, centre_px, strict=True):
        for y, x, *_ in pattern_peaks(image, centre, calibration, most=6, least_nats=15.0):
            v, u = round(y), round(x)
            near = np.s_[v - reach : v + reach + 1, u - reach : u + reach + 1]
            window = image[near].astype(float)
            if window.shape == (2 * reach + 1,) * 2 and not calibration.mask[near].any():
                windows.append(window / max(window.sum(), 1e-9))
    if not windows:
        return calibration.spot_sigma_px
    mean = np.mean(windows, axis=0)
    yy, xx = np.indices(mean.shape) - reach
    distance = np.hypot(yy, xx)
    mean = np.maximum(mean - mean[distance > reach].mean(), 0)
    mean[distance > 0.9 * reach] = 0
    return float(np.clip(math.sqrt((mean * distance**2).sum() / mean.sum() / 2), 0.7, 4.0))


def scale_sweep(
    spots: Spots, calibration: Calibration, banks: list[TemplateBank], factors: np.ndarray, progress: Any = None
) -> tuple[np.ndarray, np.ndarray]:
    """Evidence (m,) in nats of all patterns at the calibration's scale times each of m ``factors``, and the phases (m, n) that win."""
    evidence, winner = [], []
    for factor in progress(factors) if progress else factors:
        trial = replace(calibration, scale_invA_per_px=calibration.scale_invA_per_px * factor)
        of_phases = np.array([search_phase(spots, trial, bank)[1] for bank in banks])
        evidence.append(float(of_phases.max(axis=0).sum()))
        winner.append(of_phases.argmax(axis=0))
    return np.array(evidence), np.array(winner)


@dataclass(frozen=True)
class _Pairs:
    """Predicted g (m, 2) and measured positions (m, 2) from the beam, both (x, y), the weight (m,) of each, its pattern and phase (m,)."""

    predicted: np.ndarray
    measured: np.ndarray
    weight: np.ndarray
    pattern: np.ndarray
    phase: np.ndarray


def _matched_pairs(spots: Spots, calibration: Calibration, banks: list[TemplateBank], least_evidence: float = 20.0) -> _Pairs:
    """The clear spots of all patterns that their best crystal, and only one of its reflections, explains."""
    solved = [search_phase(spots, calibration, bank) for bank in banks]
    evidence = np.array([s[1] for s in solved])
    best = evidence.argmax(axis=0)
    reach = 1.5 * calibration.spot_sigma_px
    rows = []
    for i in np.flatnonzero(evidence.max(axis=0) > least_evidence):
        k, centre = int(best[i]), spots.centre_px[i]
        place, _, _ = predicted_spots(banks[k], solved[k][0][i], centre, calibration, min_relative_intensity=0.02)
        clear = spots.table[i, : spots.number[i]]
        for y, x, counts, below, _ in clear[clear[:, 4] > 8].astype(float):
            near = np.flatnonzero(np.hypot(place[:, 0] - y, place[:, 1] - x) < reach)
            if len(near) == 1:
                g = np.linalg.solve(calibration.metric, place[near[0]][::-1] - centre[::-1])
                weight = 1 / (0.15**2 + calibration.spot_sigma_px**2 * counts / max(counts - below, 1.0) ** 2)
                rows.append((*g, x - centre[1], y - centre[0], weight, i, k))
    table = np.array(rows, float).reshape(-1, 7)
    return _Pairs(table[:, :2], table[:, 2:4], table[:, 4], table[:, 5].astype(int), table[:, 6].astype(int))


def _metric_from(predicted: np.ndarray, measured: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """The symmetric (2, 2) matrix that takes g to pixels best, outliers cut; a common rotation and a shift are taken out."""
    design = np.column_stack([predicted, np.ones(len(predicted))])
    use = np.ones(len(predicted), bool)
    for _ in range(5):
        root = np.sqrt(weight[use])[:, None]
        matrix = np.linalg.lstsq(design[use] * root, measured[use] * root, rcond=None)[0]
        off = np.linalg.norm(measured - design @ matrix, axis=1)
        use = off < 3 * max(1.4826 * np.median(off[use]), 0.1)
    _, s, vt = np.linalg.svd(matrix[:2].T)
    return vt.T @ np.diag(s) @ vt


def _with_metric(calibration: Calibration, metric: np.ndarray) -> Calibration:
    """The calibration with this metric: its mean radius gives the scale, the rest the strain."""
    size = math.sqrt(np.linalg.det(metric))
    return replace(calibration, scale_invA_per_px=1 / size, strain=metric / size)


def refine_calibration(
    patterns: np.ndarray,
    centres: np.ndarray,
    calibration: Calibration,
    banks: list[TemplateBank],
    *,
    search: float = 0.03,
    seed: int = 1,
    progress: Any = None,
) -> tuple[Calibration, dict[str, Any]]:
    """Scale and ellipse of a scan from the phases expected in it.

    The scales within ±``search`` of the given one are tried in steps of 0.5 % on the patterns
    (n, ky, kx) with centres (n, 2); from the one with the most evidence the 2 x 2 metric is
    fitted to the spots that its solutions explain, four times over. The uncertainty is the
    spread over resampled patterns.

    Returns the calibration and a dict: ``scan`` (list of scale, evidence), ``scale_sd_invA_per_px``,
    ``residual_px`` (robust standard deviation of one coordinate), ``n_spots``, ``n_patterns``,
    ``predicted``/``measured`` pairs for a look, and ``scale_by_phase``: for every phase the scale
    that its spots alone ask for over the common one, with its standard deviation and number of spots.
    """
    rng = np.random.default_rng(seed)
    spots = find_spots(patterns, centres, calibration)
    steps = round(search / 0.005)
    factors = 1 + 0.005 * np.arange(-steps, steps + 1)
    evidence, _ = scale_sweep(spots, replace(calibration, place_strain=0.01), banks, factors, progress)
    refined = replace(calibration, scale_invA_per_px=calibration.scale_invA_per_px * float(factors[evidence.argmax()]))
    for place_strain in (0.02, 0.01, 0.004, 0.004):
        pairs = _matched_pairs(spots, replace(refined, place_strain=place_strain), banks)
        if len(pairs.weight) < 12:
            break
        refined = _with_metric(refined, _metric_from(pairs.predicted, pairs.measured, pairs.weight))
    found: dict[str, Any] = {
        "scan": list(zip((calibration.scale_invA_per_px * factors).tolist(), evidence.tolist(), strict=True)),
        "n_spots": len(pairs.weight),
        "n_patterns": len(np.unique(pairs.pattern)),
        "predicted": pairs.predicted,
        "measured": pairs.measured,
        "scale_by_phase": {},
    }
    if len(pairs.weight) < 12:
        return calibration, found | {"scale_sd_invA_per_px": None, "residual_px": None}
    scales = _resampled_scales(pairs, refined, rng)
    off = pairs.measured - pairs.predicted @ refined.metric.T
    return refined, found | {
        "scale_sd_invA_per_px": float(np.std(scales)),
        "residual_px": 1.4826 * float(np.median(np.abs(off - np.median(off, axis=0)))),
        "scale_by_phase": _scale_by_phase(pairs, refined, [b.crystal.name for b in banks]),
    }


def _resampled_scales(pairs: _Pairs, calibration: Calibration, rng: np.random.Generator, draws: int = 100) -> list[float]:
    """Scale (1/Å per px) from patterns drawn with replacement."""
    members = [np.flatnonzero(pairs.pattern == i) for i in np.unique(pairs.pattern)]
    drawn = []
    for _ in range(draws):
        rows = np.concatenate([members[i] for i in rng.integers(0, len(members), len(members))])
        metric = _metric_from(pairs.predicted[rows], pairs.measured[rows], pairs.weight[rows])
        drawn.append(_with_metric(calibration, metric).scale_invA_per_px)
    return drawn


def _scale_by_phase(pairs: _Pairs, calibration: Calibration, names: list[str]) -> dict[str, dict[str, float]]:
    """For each phase with ten spots or more, how far its own spots put the scale from the common one (ratio, sd, spots)."""
    found = {}
    for k, name in enumerate(names):
        here = pairs.phase == k
        if here.sum() < 10:
            continue
        model = pairs.predicted[here] @ calibration.metric.T
        stretch = np.sum(model * pairs.measured[here], axis=1) / np.sum(model * model, axis=1)
        weight = pairs.weight[here] * np.sum(model * model, axis=1)
        middle = float(np.median(stretch))
        use = np.abs(stretch - middle) < 4 * 1.4826 * np.median(np.abs(stretch - middle)) + 1e-6
        ratio = float(np.average(stretch[use], weights=weight[use]))
        spread = float(np.sqrt(np.average((stretch[use] - ratio) ** 2, weights=weight[use]) / use.sum()))
        found[name] = {"ratio": 1 / ratio, "sd": spread, "n_spots": int(here.sum())}
    return found


def load_calibration(results: Path, shape: tuple[int, ...]) -> Calibration:
    """The calibration that notebook 05 left in a sample's results folder; `ResultError` where it is not of a scan of this shape."""
    numbers = read_result(results.parent, results.name, "05_ped_calibration")
    path = results / "05_ped_calibration.npz"
    if not path.is_file():
        raise ResultError(f"run 05_ped_calibration for {results.name} first: there is no {results.name}/{path.name} in the results")
    try:
        with np.load(path, allow_pickle=False) as arrays:
            strain, centre_px, mask = (arrays[name] for name in ("strain", "centre_px", "mask"))
    except Exception as error:  # numpy and zipfile raise whatever they meet in a broken file
        where = f"{results.name}/{path.name}"
        raise ResultError(f"{where}: cannot be read ({_one_line(error)}); run 05_ped_calibration for {results.name} again") from None
    of = (*centre_px.shape[:2], *mask.shape)
    if of != tuple(shape) or not (np.isfinite(strain).all() and np.isfinite(centre_px).all()):
        told = " × ".join(map(str, of)), " × ".join(map(str, shape))
        raise ResultError(
            f"{results.name}/{path.name}: the calibration of a scan of {told[0]}, but the scan is one of {told[1]}; "
            f"run 05_ped_calibration for {results.name} again"
        )
    return Calibration(
        scale_invA_per_px=numbers["scale_invA_per_px"],
        strain=strain,
        centre_px=centre_px,
        mask=mask,
        spot_sigma_px=numbers["spot_sigma_px"],
        gain=numbers["detector_gain"],
        offset=numbers["detector_offset"],
        place_strain=numbers["place_strain"],
    )


# --------------------------------------------------------------------------------------
# 06 PED: matching
# --------------------------------------------------------------------------------------


# --- lattices of a scan -------------------------------------------------------------------
#
# Layered, spinel and rocksalt grow on one oxygen lattice, so a scan holds few lattices, and what a pattern
# shows is one or two phases on those found about it. This is the first half of the stated prior of
# `index_scan`: orientations are offered between neighbours, and a neighbour on the same lattice, of whatever phase,
# is worth `neighbour_nats`. It knows lattices, not phases: it cannot move a pattern from layered to rocksalt.

_SAME_LATTICE = math.radians(3.0)
_LATTICE_REACH = 2  # patterns
_SURE_NATS = 30.0


@functools.lru_cache(maxsize=256)
def orientation_relations(parent: Crystal, child: Crystal) -> np.ndarray:
    """Rotations (v, 3, 3) that take the parent's orientation to those the child may have on the same lattice.

    Cubic on cubic is cube on cube; a trigonal cell (hexagonal axes) and a cubic one share the
    oxygen lattice: [001]hex || [111]cubic, [100]hex || [1-10]cubic (one cubic variant for a
    layered crystal, four layered ones for a cubic). Other pairs have none.
    """
    e1, e3 = np.array([1, -1, 0]) / math.sqrt(2), np.array([1, 1, 1]) / math.sqrt(3)
    to_cubic = np.stack([e1, np.cross(e3, e1), e3], axis=1)
    kinds = ["cubic" if c.space_group >= 195 else "trigonal" if 143 <= c.space_group <= 167 else "other" for c in (parent, child)]
    if kinds == ["cubic", "cubic"]:
        return np.eye(3)[None]
    if kinds == ["trigonal", "cubic"]:
        return to_cubic[None]
    if kinds != ["cubic", "trigonal"]:
        return np.zeros((0, 3, 3))
    operators, own = parent.laue_rotations, child.laue_rotations
    variants: list[np.ndarray] = []
    for operator in operators:
        variant = to_cubic.T @ operator
        if all(_nearest_operator(variant, other, own)[1] > 1e-3 for other in variants):
            variants.append(variant)
    return np.array(variants)


class _Families(NamedTuple):
    """Phases that share a lattice, as the kernels take them.

    ``family`` (p,) of each phase; a family's lattice is that of its parent, the most symmetric
    member: ``to_parent`` (p, 3, 3), ``operators`` (p, o, 3, 3) of the parent and ``own`` (p, o, 3, 3)
    of the phase itself, and back ``from_parent`` (p, v, 3, 3), of which the first ``n_variants`` (p,) count.
    """

    family: np.ndarray
    to_parent: np.ndarray
    operators: np.ndarray
    own: np.ndarray
    from_parent: np.ndarray
    n_variants: np.ndarray


def _families(banks: list[TemplateBank]) -> _Families:
    """The phases of the cathode are one family, and all related phases where none is of the cathode; others stand alone."""
    names = [b.crystal.name for b in banks]
    pool = [k for k, name in enumerate(names) if name in NCM_PHASES] or list(range(len(banks)))
    family, parent = list(range(len(banks))), list(range(len(banks)))
    for k in pool:
        related = [j for j in pool if j == k or len(orientation_relations(banks[k].crystal, banks[j].crystal))]
        parent[k] = max(related, key=lambda j: (len(banks[j].operators), -j))
        family[k] = parent[k]
    to_parent = [np.eye(3) if p == k else orientation_relations(banks[k].crystal, banks[p].crystal)[0] for k, p in enumerate(parent)]
    back = [np.eye(3)[None] if p == k else orientation_relations(banks[p].crystal, banks[k].crystal) for k, p in enumerate(parent)]
    most = max(len(b.operators) for b in banks)
    own = np.array([np.resize(b.operators, (most, 3, 3)) for b in banks])  # a shorter set is repeated, which does no harm
    variants = np.zeros((len(banks), max(len(b) for b in back), 3, 3))
    for k, some in enumerate(back):
        variants[k, : len(some)] = some
    return _Families(np.array(family), np.array(to_parent), own[parent], own, variants, np.array([len(b) for b in back]))


@numba.njit(cache=True)
def _product(first, second, out):
    for i in range(3):
        for j in range(3):
            out[i, j] = first[i, 0] * second[0, j] + first[i, 1] * second[1, j] + first[i, 2] * second[2, j]


@numba.njit(cache=True)
def _joins(i, number, key, leader, operators, lattice, keys):
    """Whether the orientation ``key`` of pattern i lies on lattice ``number``; if so it is noted, turned to the leader's setting."""
    o, angle = _nearest_operator(key, leader, operators)
    if angle > _SAME_LATTICE:
        return False
    lattice[i] = number
    _product(operators[o], key, keys[i])
    return True


@numba.njit(cache=True)
def _find_lattices(shape, best, support, rotation, least_support, families, shared):
    """Group the patterns' best solutions by lattice, the surest first; each is a lattice of its own where they are not ``shared``.

    Returns the lattice (n,) of every pattern (-1: support too small), its orientation in the
    parent's frame and the lattice's setting (n, 3, 3), the leader's pattern of each lattice, and
    how often each variant of each phase was seen on it (lattices, p, v).
    """
    ny, nx = shape
    n = ny * nx
    lattice, keys = np.full(n, -1), np.zeros((n, 3, 3))
    leaders = np.empty(n, np.int64)
    n_lattices = 0
    key = np.empty((3, 3))
    for i in np.argsort(-support, kind="mergesort"):
        if support[i] < least_support:
            break
        phase = best[i]
        _product(families.to_parent[phase], rotation[i], key)
        y, x, joined = i // nx, i % nx, not shared
        for v in range(max(0, y - 1), min(ny, y + 2)):  # most often one of the neighbours' lattices
            for u in range(max(0, x - 1), min(nx, x + 2)):
                number = lattice[v * nx + u]
                if not joined and number >= 0 and families.family[best[leaders[number]]] == families.family[phase]:
                    joined = _joins(i, number, key, keys[leaders[number]], families.operators[phase], lattice, keys)
        for number in range(0 if joined else n_lattices):
            if not joined and families.family[best[leaders[number]]] == families.family[phase]:
                joined = _joins(i, number, key, keys[leaders[number]], families.operators[phase], lattice, keys)
        if lattice[i] < 0:
            leaders[n_lattices], lattice[i] = i, n_lattices
            keys[i] = key
            n_lattices += 1
    seen = np.zeros((n_lattices, len(families.family), families.from_parent.shape[1]))
    for i in range(n):
        if lattice[i] >= 0:
            phase = best[i]
            nearest, least = 0, 10.0
            for variant in range(families.n_variants[phase]):
                _product(families.from_parent[phase, variant], keys[i], key)
                angle = _nearest_operator(key, rotation[i], families.own[phase])[1]
                if angle < least:
                    nearest, least = variant, angle
            seen[lattice[i], phase, nearest] += 1
    return lattice, keys, leaders[:n_lattices], seen


_MOST_COMPONENTS = 16


class _Components(NamedTuple):
    """What may be in each pattern: ``phase`` (n, c), -1 for nothing, ``lattice`` (-1: of this pattern alone) and ``variant``.

    With ``rotation`` (n, c, 3, 3), sample to crystal, and ``evidence`` (n, c) in nats.
    """

    phase: np.ndarray
    lattice: np.ndarray
    variant: np.ndarray
    rotation: np.ndarray
    evidence: np.ndarray


@numba.njit(cache=True)
def _lattices_about(i, shape, reach, lattice, size, numbers, nearest):
    """Lattices found within ``reach`` of pattern i, its own first, then the most frequent; returns how many.

    ``nearest`` takes the nearest pattern on each. One whose ``size`` is under three counts only in its own patterns.
    """
    ny, nx = shape
    y, x = i // nx, i % nx
    count, distance = np.zeros(len(numbers)), np.zeros(len(numbers))
    n = 0
    if lattice[i] >= 0:
        numbers[0], nearest[0], count[0], n = lattice[i], i, 1e6, 1
    for v in range(max(0, y - reach), min(ny, y + reach + 1)):
        for u in range(max(0, x - reach), min(nx, x + reach + 1)):
            number, away = lattice[v * nx + u], float((v - y) ** 2 + (u - x) ** 2)
            if number < 0 or size[number] < 3:
                continue
            k = 0
            while k < n and numbers[k] != number:
                k += 1
            if k == n:
                if n == len(numbers):
                    continue
                numbers[n], distance[n], n = number, 1e9, n + 1
            count[k] += 1
            if away < distance[k]:
                distance[k], nearest[k] = away, v * nx + u
    order = np.argsort(-count[:n], kind="mergesort")
    numbers[:n], nearest[:n] = numbers[:n][order], nearest[:n][order]
    return n


@numba.njit(cache=True)
def _propose(shape, reach, lattice, keys, seen, surest, families, rotation_each, support_each, second, out):
    """Fill ``out`` with what each pattern may hold.

    That is all phases on the lattices about it, its own best solutions ``rotation_each``
    (p, n, 3, 3) of the other phases, and ``second`` (p, n, 3, 3), what the spots ask for that its best crystal leaves.
    """
    n = shape[0] * shape[1]
    p = seen.shape[1]
    size = seen.sum(axis=2).sum(axis=1)
    size[surest > _SURE_NATS] += 3  # found once, but beyond doubt
    numbers, nearest = np.zeros(12, np.int64), np.zeros(12, np.int64)
    for i in range(n):
        c = 0
        n_lattices = min(4, _lattices_about(i, shape, reach, lattice, size, numbers, nearest))
        for m in range(n_lattices):
            number = numbers[m]
            family = -1
            for phase in range(p):
                if seen[number, phase].sum() > 0:
                    family = families.family[phase]
            for phase in range(p):
                often = seen[number, phase].max()
                for variant in range(families.n_variants[phase]):
                    likely = often < 2 or seen[number, phase, variant] >= max(2.0, 0.1 * often)
                    if families.family[phase] == family and likely and c < out.phase.shape[1]:
                        out.phase[i, c], out.lattice[i, c], out.variant[i, c] = phase, number, variant
                        _product(families.from_parent[phase, variant], keys[nearest[m]], out.rotation[i, c])
                        c += 1
        for phase in range(2 * p):
            phase, left = phase % p, phase >= p
            rotation = second[phase, i] if left else rotation_each[phase, i]
            known = rotation[2, 2] == 0 if left else support_each[phase, i] <= 0
            for k in range(c):
                if out.phase[i, k] == phase and not known:
                    known = _nearest_operator(rotation, out.rotation[i, k], families.own[phase])[1] < 2 * _SAME_LATTICE
            if not known and c < out.phase.shape[1]:
                out.phase[i, c] = phase
                out.rotation[i, c] = rotation
                c += 1


@numba.njit(cache=True, parallel=True)
def _mark_unexplained(table, number, background, centre, refs, first, camera, phase, rotation, voters, threads):
    """Mark in ``voters`` (n, 64) the spots of at least 8 nats that a pattern's best crystal does not predict."""
    for thread in numba.prange(threads):
        work = _room(camera, len(refs.g))
        near = np.empty(len(refs.g), np.int64)
        for i in range(thread, len(table), threads):
            voters[i] = False
            view, _ = _view(table[i], number[i], background[i], centre[i], camera, work)
            n_near = _near_ewald(rotation[i], 0.0, refs, first[phase[i]], first[phase[i] + 1], near)
            _collect(rotation[i], near, n_near, refs, camera, view)
            for k in range(number[i]):
                voters[i, k] = view.spots[k, 4] > 8 and view.strength[k] <= 0


_LEAST_UNEXPLAINED = 4  # clear spots, which also hold ...
_LEAST_LEFT = 0.1  # ... this share of the net counts of all clear spots, call for a second crystal


def _second_crystals(
    spots: Spots, calibration: Calibration, banks: list[TemplateBank], best: np.ndarray, rotation: np.ndarray
) -> np.ndarray:
    """For every phase the orientation (p, n, 3, 3) that the spots vote for which a pattern's best crystal leaves; 0 where these are few."""
    refs, first = _joined_reflections(banks)
    voters = np.zeros(spots.table.shape[:2], bool)
    _mark_unexplained(*spots.arrays, refs, first, _camera(calibration), best, rotation, voters, numba.get_num_threads())
    net = np.where(spots.table[:, :, 4] > 8, spots.table[:, :, 2] - spots.table[:, :, 3], 0)
    left = (net * voters).sum(axis=1) >= _LEAST_LEFT * net.sum(axis=1)
    some = np.flatnonzero((voters.sum(axis=1) >= _LEAST_UNEXPLAINED) & left)
    found = np.zeros((len(banks), len(best), 3, 3))
    for k, bank in enumerate(banks if len(some) else ()):
        found[k, some] = search_phase(spots[some], calibration, bank, voters=voters[some])[0]
    return found


@numba.njit(cache=True, parallel=True)
def _score_components(table, number, background, centre, refs, first, camera, tilt, own, phases, rotations, evidence, threads):
    """Refine every component (n, c) on its pattern; of two that become one orientation of a phase only the better one stays.

    The arrays of `_Components` come one by one: what is written in a parallel loop must not hide in a tuple.
    """
    for thread in numba.prange(threads):
        work = _room(camera, len(refs.g))
        near = np.empty(len(refs.g), np.int64)
        for i in range(thread, len(table), threads):
            view, diffracted = _view(table[i], number[i], background[i], centre[i], camera, work)
            for c in range(phases.shape[1]):
                phase = phases[i, c]
                if phase < 0 or number[i] == 0:
                    phases[i, c] = -1
                    continue
                rotation = rotations[i, c]
                n_near = _near_ewald(rotation, 2 * tilt, refs, first[phase], first[phase + 1], near)
                evidence[i, c] = _refine(rotation, tilt, 3, near, n_near, refs, camera, view, diffracted)
                for k in range(c):
                    if phases[i, k] != phase:
                        continue
                    if _nearest_operator(rotations[i, k], rotation, own[phase])[1] < 0.03:
                        worse = k if evidence[i, k] < evidence[i, c] else c
                        phases[i, worse] = -1
                        evidence[i, worse] = -1e3


@numba.njit(cache=True)
def _settle(shape, parts, chance, related, nats, choice, agreeing):
    """Choose in turns the component of every pattern with the most support and agreement about it, into ``choice``.

    ``agreeing`` (n, c) takes the number of the eight neighbours whose choice lies on a component's
    lattice, and, of one phase, is the same variant there.
    """
    ny, nx = shape
    for turn in range(6):
        before = choice.copy()
        for i in range(ny * nx):
            best, y, x = -1e9, i // nx, i % nx
            for c in range(parts.phase.shape[1]):
                if parts.phase[i, c] < 0:
                    continue
                agree, own = 0, parts.lattice[i, c]
                for v in range(max(0, y - 1), min(ny, y + 2)):
                    for u in range(max(0, x - 1), min(nx, x + 2)):
                        j = v * nx + u
                        if turn == 0 or nats == 0 or j == i or before[j] < 0 or own < 0:
                            continue
                        d = before[j]
                        other, phase = parts.lattice[j, d], parts.phase[j, d]
                        if other < 0 or not related[own, other] or parts.evidence[j, d] <= chance[phase] + 2:
                            continue
                        agree += phase != parts.phase[i, c] or own != other or parts.variant[j, d] == parts.variant[i, c]
                agreeing[i, c] = agree
                value = parts.evidence[i, c] - chance[parts.phase[i, c]] + nats * agree
                if value > best:
                    best, choice[i] = value, c
        if turn > 0 and np.array_equal(before, choice):
            break


@numba.njit(cache=True)
def _related_lattices(keys, family, operators):
    """Whether lattices (l, 3, 3) are the same or neighbours in orientation (a bent grain has several), (l, l)."""
    n = len(keys)
    related = np.zeros((n, n), np.bool_)
    for a in range(n):
        related[a, a] = True
        for b in range(a):
            if family[a] == family[b]:
                related[a, b] = related[b, a] = _nearest_operator(keys[a], keys[b], operators[a])[1] < 2 * _SAME_LATTICE
    return related


# --- overlapping crystals -----------------------------------------------------------------
#
# Where two crystals lie over each other, the pattern is their sum, and whichever phase has the most spots would win.
# So first the set of crystals (one to three) is chosen by evidence, each further one at a cost; then their
# shares follow from a non-negative fit to counts and places of the spots. The second half of the stated
# prior: a crystal found in one of the eight neighbours costs `_NEAR_COST` nats, any other `_FAR_COST`; and the
# strengths of a crystal's reflections, which dynamical scattering changes beyond what a bank can know, are learned
# from all patterns that show it.

_NEAR_COST = 1.5
_FAR_COST = 8.0
_MOST_PARTS = 3
_SHARES = np.array([0.12, 0.3, 0.5, 0.7, 0.88])


@numba.njit(cache=True, fastmath=True)
def _set_evidence(members, weights, n_members, strength, off_y, off_x, missed, missed_start, view, diffracted):
    """Evidence of several crystals together, each with the given share of all predicted strength.

    ``strength``, ``off_y``, ``off_x`` (c, m) and ``missed``, whose rows of member c start at
    ``missed_start[c]``, are what `_collect` found for each crystal, over its total strength.
    """
    matched = 0.0
    total, sum_y, sum_x = view.strength, view.off_y, view.off_x
    for k in range(len(view.spots)):
        total[k] = sum_y[k] = sum_x[k] = 0.0
        for q in range(n_members):
            c = members[q]
            total[k] += weights[q] * strength[c, k]
            sum_y[k] += weights[q] * off_y[c, k]
            sum_x[k] += weights[q] * off_x[c, k]
        if total[k] > 0 and view.spots[k, 4] > 3:
            matched += view.spots[k, 2] - view.spots[k, 3]
    n = 0
    for q in range(n_members):
        for j in range(missed_start[members[q]], missed_start[members[q] + 1]):
            view.missed[n, 0], view.missed[n, 1] = weights[q] * missed[j, 0], missed[j, 1]
            n += 1
    return _judge(total, sum_y, sum_x, view.missed, n, max(matched, 0.15 * diffracted), view)[0]


@numba.njit(cache=True)
def _best_set(cost, bonus, n, strength, off_y, off_x, missed, missed_start, view, diffracted, chosen, share):
    """The set of one to three of n crystals with the most evidence after costs into ``chosen`` and ``share``; returns its size.

    Of the ``bonus`` for lying on the neighbours' lattice a set gets the largest among its members.
    """
    members, weights = np.zeros(3, np.int64), np.zeros(3)
    best, size = -1e9, 0
    for c in range(n):
        members[0], weights[0] = c, 1.0
        alone = _set_evidence(members, weights, 1, strength, off_y, off_x, missed, missed_start, view, diffracted)
        value = alone - min(cost[c], 2.0) + bonus[c]
        if value > best:
            best, size, chosen[0], share[0] = value, 1, c, 1.0
    for c in range(n):
        for d in range(c + 1, n):
            paid = max(cost[c], cost[d]) + min(cost[c], cost[d], 2.0) - max(bonus[c], bonus[d])
            members[0], members[1] = c, d
            for f in _SHARES:
                weights[0], weights[1] = 1 - f, f
                value = _set_evidence(members, weights, 2, strength, off_y, off_x, missed, missed_start, view, diffracted) - paid
                if value > best:
                    best, size, chosen[0], chosen[1], share[0], share[1] = value, 2, c, d, 1 - f, f
    if size == 2:
        first, second, part = chosen[0], chosen[1], share[0]
        for d in range(n):
            if d in (first, second):
                continue
            members[0], members[1], members[2] = first, second, d
            for f in _SHARES[:3]:
                weights[0], weights[1], weights[2] = (1 - f) * part, (1 - f) * (1 - part), f
                value = _set_evidence(members, weights, 3, strength, off_y, off_x, missed, missed_start, view, diffracted)
                value -= cost[first] + cost[second] + cost[d] - max(bonus[first], bonus[second], bonus[d])
                if value > best:
                    best, size, chosen[2], share[:] = value, 3, d, weights
    return size


@numba.njit(cache=True, parallel=True)
def _choose_sets(table, number, background, centre, refs, first, camera, parts, cost, bonus, chosen, share, unit, threads):
    """For every pattern the set of components that are in it: numbers into ``chosen`` (n, 3), -1 for none, and first ``share``.

    ``unit`` (n,) takes the counts a unit of strength where it is one component, else 0.
    """
    most = parts.phase.shape[1]
    for thread in numba.prange(threads):
        work = _room(camera, len(refs.g))
        near = np.empty(len(refs.g), np.int64)
        strength, off_y, off_x = np.zeros((most, _MOST_SPOTS)), np.zeros((most, _MOST_SPOTS)), np.zeros((most, _MOST_SPOTS))
        missed, missed_start = np.zeros((8192, 2)), np.zeros(most + 1, np.int64)
        likely, paid, gained, totals = np.zeros(most, np.int64), np.zeros(most), np.zeros(most), np.zeros(most)
        for i in range(thread, len(table), threads):
            chosen[i] = -1
            share[i] = 0
            unit[i] = 0
            view, diffracted = _view(table[i], number[i], background[i], centre[i], camera, work)
            m, n = len(view.spots), 0
            for c in np.argsort(-parts.evidence[i], kind="mergesort")[:10]:
                phase = parts.phase[i, c]
                if phase < 0 or missed_start[n] > 6000:
                    continue
                n_near = _near_ewald(parts.rotation[i, c], 0.0, refs, first[phase], first[phase + 1], near)
                n_missed, total = _collect(parts.rotation[i, c], near, n_near, refs, camera, view)
                if total <= 0:
                    continue
                for k in range(m):
                    strength[n, k], off_y[n, k], off_x[n, k] = view.strength[k] / total, view.off_y[k] / total, view.off_x[k] / total
                n_missed = min(n_missed, 2000)
                for j in range(n_missed):
                    missed[missed_start[n] + j, 0], missed[missed_start[n] + j, 1] = view.missed[j, 0] / total, view.missed[j, 1]
                missed_start[n + 1] = missed_start[n] + n_missed
                likely[n], paid[n], gained[n], totals[n] = c, cost[i, c], bonus[i, c], total
                n += 1
            if n > 0:
                size = _best_set(paid, gained, n, strength, off_y, off_x, missed, missed_start, view, diffracted, chosen[i], share[i])
                if size == 1:
                    only = chosen[i, 0]
                    for k in range(m):
                        if strength[only, k] > 0 and view.spots[k, 4] > 3:
                            unit[i] += (view.spots[k, 2] - view.spots[k, 3]) / totals[only]
                for q in range(size):
                    chosen[i, q] = likely[chosen[i, q]]
                chosen[i, size:] = -1
                share[i, size:] = 0


@numba.njit(cache=True)
def _costs(shape, parts, chance, chosen, share, cost):
    """What each component of each pattern costs in nats.

    ``_NEAR_COST`` where a neighbour holds the crystal at 30 % or more, else ``_FAR_COST``; one whose
    orientation is of this pattern alone was free to choose it and pays what ``chance`` gives its phase as well.
    """
    ny, nx = shape
    for i in range(ny * nx):
        y, x = i // nx, i % nx
        for c in range(parts.phase.shape[1]):
            cost[i, c] = _FAR_COST
            if parts.phase[i, c] >= 0 and parts.lattice[i, c] < 0:
                cost[i, c] += chance[parts.phase[i, c]]
        for v in range(max(0, y - 1), min(ny, y + 2)):
            for u in range(max(0, x - 1), min(nx, x + 2)):
                j = v * nx + u
                for q in range(_MOST_PARTS):
                    d = chosen[j, q]
                    if j == i or d < 0 or share[j, q] < 0.3 or parts.lattice[j, d] < 0:
                        continue
                    for c in range(parts.phase.shape[1]):
                        if (
                            parts.lattice[i, c] == parts.lattice[j, d]
                            and parts.phase[i, c] == parts.phase[j, d]
                            and parts.variant[i, c] == parts.variant[j, d]
                        ):
                            cost[i, c] = _NEAR_COST


# --- shares of overlapping crystals -------------------------------------------------------

_KNOWN_SPREAD = 0.15  # of the strength of a reflection in one pattern about its mean over a crystal's patterns
_UNKNOWN_SPREAD = 0.5  # of a reflection's mean strength about the bank's
_SHARE_PLACE_PX = 0.1
_SHARE_PLACE_STRAIN = 0.002
_SUM_SPREAD = 0.3  # the lamella is about as thick here as next to here: shares add up to one within this
_SCALE_SPREAD = 0.25  # of the strength of phases on one lattice


class _Predictions(NamedTuple):
    """Predicted spots of all chosen components, row by row, those of one component from ``start`` (n, 4) on.

    ``owner`` is the measured spot there or -1, ``reflection`` its number, ``strength`` in counts,
    ``off_y`` and ``off_x`` in px from the measured spot, ``below`` the counts of the background there.
    """

    start: np.ndarray
    owner: np.ndarray
    reflection: np.ndarray
    strength: np.ndarray
    off_y: np.ndarray
    off_x: np.ndarray
    below: np.ndarray


@numba.njit(cache=True)
def _predict_chosen(table, number, background, centre, refs, first, camera, parts, chosen, scale, counting, rows):
    """Write the predicted spots of the chosen components into ``rows``; with ``counting`` only their places in it."""
    work = _room(camera, len(refs.g))
    near = np.empty(len(refs.g), np.int64)
    n = 0
    for i in range(len(table)):
        view, _ = _view(table[i], number[i], background[i], centre[i], camera, work)
        for q in range(_MOST_PARTS):
            rows.start[i, q] = n
            if chosen[i, q] < 0:
                continue
            phase, rotation = parts.phase[i, chosen[i, q]], parts.rotation[i, chosen[i, q]]
            n_near = _near_ewald(rotation, 0.0, refs, first[phase], first[phase + 1], near)
            for j in range(_predict(rotation, near, n_near, refs, camera, view.centre, view.predicted)):
                y, x, strength = view.predicted[j, 0], view.predicted[j, 1], scale[phase] * view.predicted[j, 2]
                v, u = int(y + 0.5), int(x + 0.5)
                if strength < _LEAST_MEAN or camera.pixels[v, u] < 0.5:
                    continue
                if not counting:
                    k = view.owner[v, u] - 1
                    rows.owner[n], rows.reflection[n], rows.strength[n] = k, int(view.predicted[j, 3]), strength
                    if k >= 0:
                        rows.off_y[n], rows.off_x[n] = y - view.spots[k, 0], x - view.spots[k, 1]
                    r = math.sqrt((y - view.centre[0]) ** 2 + (x - view.centre[1]) ** 2)
                    rows.below[n] = view.background[min(int(r), len(view.background) - 1)] * camera.full + 0.02
                n += 1
        rows.start[i, _MOST_PARTS] = n
    return n


@numba.njit(cache=True)
def _non_negative(normal, right, n, weights):
    """Least squares with weights >= 0 of up to three unknowns from its normal equations, by coordinate descent."""
    for _ in range(200):
        moved = 0.0
        for a in range(n):
            gradient = right[a]
            for b in range(n):
                gradient -= normal[a, b] * weights[b]
            new = max(0.0, weights[a] + gradient / max(normal[a, a], 1e-12))
            moved = max(moved, abs(new - weights[a]))
            weights[a] = new
        if moved < 1e-6:
            break


@numba.njit(cache=True)
def _fit_shares(i, spots, centre, sigma, keys, scale, mean, variance, rows, room, weights, normal):
    """Weights (3,) of the chosen components of pattern i, and the normal matrix (3, 3).

    Every measured spot that a component predicts gives three equations: its counts, and the
    moments of its place in y and x about the components' places; every predicted spot that was not
    measured gives one; the sum of the weights another. Variances hold Poisson noise and what
    is not known of strengths and places, and are renewed four times.
    """
    m = len(spots)
    expect, moment_y, moment_x, doubt = room[0], room[1], room[2], room[3]
    n = 0
    while n < _MOST_PARTS and keys[i, n] >= 0:
        n += 1
    right = np.zeros(_MOST_PARTS)
    for _ in range(4):
        normal[:] = 0
        right[:] = 0
        normal[:n, :n] += 1 / _SUM_SPREAD**2
        right[:n] += 1 / _SUM_SPREAD**2
        expect[:] = 0
        moment_y[:] = 0
        moment_x[:] = 0
        doubt[:] = 0
        for q in range(n):
            key = keys[i, q]
            for j in range(rows.start[i, q], rows.start[i, q + 1]):
                raw = scale[key] * rows.strength[j]
                strength, k = raw * mean[rows.reflection[j]], rows.owner[j]
                spread = variance[rows.reflection[j]] * (weights[q] * raw) ** 2
                if k >= 0:
                    expect[k, q] += strength
                    moment_y[k, q] += strength * rows.off_y[j]
                    moment_x[k, q] += strength * rows.off_x[j]
                    doubt[k, 0] += spread
                else:
                    normal[q, q] += strength * strength / (rows.below[j] + 2 + spread)
        for k in range(m):
            net = max(spots[k, 2] - spots[k, 3], np.float32(1.0))
            r2 = (spots[k, 0] - centre[0]) ** 2 + (spots[k, 1] - centre[1]) ** 2
            for_counts = 1 / (spots[k, 2] + 1 + doubt[k, 0])
            for_place = 1 / (sigma**2 * spots[k, 2] + (_SHARE_PLACE_PX**2 + _SHARE_PLACE_STRAIN**2 * r2) * net * net)
            for a in range(n):
                if expect[k, a] <= 0:
                    continue
                right[a] += for_counts * expect[k, a] * (spots[k, 2] - spots[k, 3])
                for b in range(n):
                    normal[a, b] += for_counts * expect[k, a] * expect[k, b]
                    normal[a, b] += for_place * (moment_y[k, a] * moment_y[k, b] + moment_x[k, a] * moment_x[k, b])
        _non_negative(normal, right, n, weights)


@numba.njit(cache=True)
def _learn(i, spots, keys, scale, mean, variance, rows, room, weights, gained, known):
    """Add what pattern i says of its components' reflections: ``gained`` and ``known`` (reflections of all crystals,)."""
    expect, doubt = room[0], room[3]
    for q in range(_MOST_PARTS):
        key = keys[i, q]
        if key < 0 or weights[q] < 0.2:
            continue
        for j in range(rows.start[i, q], rows.start[i, q + 1]):
            r, k = rows.reflection[j], rows.owner[j]
            strength = weights[q] * scale[key] * rows.strength[j]
            if k < 0:
                known[r] += strength * strength / (rows.below[j] + 2)
                continue
            net = spots[k, 2] - spots[k, 3]
            predicted = 0.0
            for b in range(_MOST_PARTS):
                predicted += expect[k, b] * weights[b]
            others = max(doubt[k, 0] - strength * strength * variance[r], 0.0)
            precision = 1 / (spots[k, 2] + 1 + (_KNOWN_SPREAD * net) ** 2 + others)
            gained[r] += precision * strength * (net - predicted + strength * mean[r])
            known[r] += precision * strength * strength


@numba.njit(cache=True, parallel=True)
def _fit_all_shares(table, number, centre, sigma, keys, scale, mean, variance, rows, weights, normals, gained, known):
    """`_fit_shares` and `_learn` for all patterns; ``gained`` and ``known`` (sums, reflections) are added up in as many sums."""
    for part in numba.prange(len(gained)):
        room = np.zeros((4, _MOST_SPOTS, _MOST_PARTS))
        for i in range(part, len(table), len(gained)):
            if keys[i, 0] < 0:
                continue
            spots = table[i, : number[i]]
            _fit_shares(i, spots, centre[i], sigma, keys, scale, mean, variance, rows, room, weights[i], normals[i])
            _learn(i, spots, keys, scale, mean, variance, rows, room, weights[i], gained[part], known[part])


_LEARNING_SUMS = 4  # side by side; not one a thread, so that the result is the same to the bit however many there are


def _standardise(keys: np.ndarray, group: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Factors (k,) by which the scale of each of k crystals is off, from the rule that the shares of a pattern add up to one.

    First one factor for every lattice (``group``), then one for every crystal near that of its
    lattice; patterns that cannot obey (an edge, a pore) count less. ``keys`` and ``weights`` are (n, 3).
    Few crystals share a pattern, so the normal equations are sparse.
    """
    from scipy.sparse import csc_array, diags_array
    from scipy.sparse.linalg import spsolve

    used = (keys >= 0).any(axis=1) & (weights.sum(axis=1) > 0.05)
    number, weight = np.maximum(keys[used], 0), np.where(keys[used] >= 0, weights[used], 0.0)
    spread = 0.15

    def fit(column: np.ndarray, prior: np.ndarray, prior_spread: float) -> np.ndarray:
        pattern = np.repeat(np.arange(len(weight)), _MOST_PARTS)
        share = csc_array((weight.ravel(), (pattern, column.ravel())), shape=(len(weight), len(prior)))
        trust = np.ones(len(weight))
        result = prior
        for _ in range(8):
            trusted = share.T @ diags_array(trust / spread**2)
            matrix = trusted @ share + diags_array(1 / (prior_spread * prior) ** 2)
            right = trusted @ np.ones(len(weight)) + 1 / (prior_spread**2 * prior)
            result = np.clip(spsolve(matrix.tocsc(), right, permc_spec="MMD_AT_PLUS_A"), 0.1 * prior, 10 * prior)
            trust = 1 / np.maximum(1, np.abs(share @ result - 1) / 0.25)
        return result

    of_lattice = fit(group[number], np.ones(group.max() + 1), 2.0)
    return 1 / fit(number, of_lattice[group], _SCALE_SPREAD)


def _measure_shares(
    spots: Spots, camera: _Camera, refs: _Reflections, first: np.ndarray, family: np.ndarray, parts: _Components, chosen: np.ndarray,
    unit: np.ndarray, learn: bool,
) -> tuple[np.ndarray, np.ndarray]:  # fmt: skip
    """Weights (n, 3) of the chosen components, in units of the local thickness, and their covariance (n, 3, 3).

    ``unit`` (n,) is what `_choose_sets` says of counts a unit of strength. With ``learn`` the
    strengths of each crystal's reflections are learned from all its patterns, in six rounds.
    """
    n = len(chosen)
    taken = np.maximum(chosen, 0)
    phase, lattice, variant = (np.take_along_axis(a, taken, axis=1) for a in (parts.phase, parts.lattice, parts.variant))
    alone = -1 - np.repeat(np.arange(n)[:, None], _MOST_PARTS, axis=1)  # a crystal of one pattern only is a crystal of its own
    names = np.stack([np.where(lattice < 0, alone, lattice), phase, variant], axis=-1)[chosen >= 0]
    crystals, number = np.unique(names, axis=0, return_inverse=True)
    keys = np.full(chosen.shape, -1)
    keys[chosen >= 0] = number
    group = np.unique(crystals[:, :1], return_inverse=True)[1].ravel()
    rows = _predicted_rows(spots, camera, refs, first, parts, chosen, _unit_of_phases(family, phase[:, 0], unit))
    of_crystal = np.repeat(keys.ravel(), np.diff(rows.start, axis=1).ravel())
    seen, reflection = np.unique(of_crystal * len(refs.g) + rows.reflection, return_inverse=True)
    rows = rows._replace(reflection=reflection)  # numbered over all crystals, and only those that are predicted somewhere
    mean, variance, scale = np.ones(len(seen)), np.full(len(seen), _UNKNOWN_SPREAD**2), np.ones(len(crystals))
    weights, normals = np.where(keys >= 0, 1 / np.maximum((keys >= 0).sum(axis=1, keepdims=True), 1), 0.0), np.zeros((n, 3, 3))
    for turn in range(6 if learn else 2):
        gained, known = np.zeros((_LEARNING_SUMS, len(seen))), np.zeros((_LEARNING_SUMS, len(seen)))
        _fit_all_shares(
            spots.table, spots.number, spots.centre_px, camera.spot_sigma, keys, scale, mean, variance, rows, weights, normals, gained,
            known,
        )  # fmt: skip
        scale = scale * _standardise(keys, group, weights)
        if learn and turn >= 2:
            prior = 1 / _UNKNOWN_SPREAD**2
            total = known.sum(axis=0) + prior
            mean = np.maximum((gained.sum(axis=0) + prior) / total, 0.02)
            variance = (_KNOWN_SPREAD * mean) ** 2 + 1 / total
    weights[keys < 0] = 0
    return weights, np.linalg.pinv(normals, hermitian=True)


def _unit_of_phases(family: np.ndarray, phase: np.ndarray, unit: np.ndarray) -> np.ndarray:
    """Counts a unit of strength of every phase (p,): the median over the patterns of one crystal of its family."""
    overall = np.median(unit[unit > 0]) if (unit > 0).any() else 1.0
    mine = [unit[(unit > 0) & (family[phase] == f)] for f in family]
    return np.array([np.median(m) if len(m) >= 5 else overall for m in mine])


def _predicted_rows(
    spots: Spots, camera: _Camera, refs: _Reflections, first: np.ndarray, parts: _Components, chosen: np.ndarray, scale: np.ndarray
) -> _Predictions:
    """The predicted spots of all chosen components, counted first and then written."""

    def empty(n: int) -> _Predictions:
        whole, real = (np.zeros(n, np.int32) for _ in range(2)), (np.zeros(n, np.float32) for _ in range(4))
        return _Predictions(np.zeros((len(chosen), _MOST_PARTS + 1), np.int64), *whole, *real)

    def fill(rows: _Predictions, counting: bool) -> int:
        return _predict_chosen(*spots.arrays, refs, first, camera, parts, chosen, scale,
                               counting, rows)  # fmt: skip

    rows = empty(fill(empty(0), True))
    fill(rows, False)
    return rows


# --- the whole scan -----------------------------------------------------------------------


@dataclass
class Indexing:
    """The best solution of every phase for every pattern of a scan, and what overlaps in it.

    ``rotation`` (p, ny, nx, 3, 3), ``evidence`` and ``runner_up`` (p, ny, nx) in nats, for the
    p phases in ``names``; ``chance`` (p,) is the evidence that patterns without any crystal
    hardly ever reach (`chance_evidence`), so that ``evidence - chance`` compares phases whose banks
    differ in size and density. ``winner`` (ny, nx) is the phase with the most support, the prior
    included, and ``prior`` (ny, nx) what the neighbours' lattices add to the support of a pattern.
    The crystals that lie over each other, the largest first: ``part_phase`` (ny, nx, 3) (-1: none),
    ``part_share`` (ny, nx, 3), ``part_sd`` that of its share, and ``part_rotation`` (ny, nx, 3, 3, 3). ``part_lattice``
    and ``part_crystal`` (ny, nx, 3) number the lattices and, on each, the crystals (phases and their variants) of the scan; -1
    is an orientation that one pattern alone has.
    """

    names: list[str]
    rotation: np.ndarray
    evidence: np.ndarray
    runner_up: np.ndarray
    chance: np.ndarray
    winner: np.ndarray
    prior: np.ndarray
    part_phase: np.ndarray
    part_share: np.ndarray
    part_sd: np.ndarray
    part_rotation: np.ndarray
    part_lattice: np.ndarray
    part_crystal: np.ndarray

    @property
    def support(self) -> np.ndarray:
        """Evidence above chance, (p, ny, nx)."""
        return self.evidence - self.chance[:, None, None]

    def part(self, rows: slice, cols: slice) -> Indexing:
        """What was found in a box of the scan."""
        by_phase = {name: getattr(self, name)[:, rows, cols] for name in ("rotation", "evidence", "runner_up")}
        names = ("winner", "prior", "part_phase", "part_share", "part_sd", "part_rotation", "part_lattice", "part_crystal")
        return replace(self, **by_phase, **{name: getattr(self, name)[rows, cols] for name in names})


def index_scan(
    patterns: Any,
    calibration: Calibration,
    banks: list[TemplateBank],
    *,
    neighbours: bool = True,
    mixtures: bool = True,
    neighbour_nats: float = 1.5,
    seed: int = 1,
    progress: Any = None,
    work: LongWork | None = None,
) -> tuple[Indexing, Spots]:
    """Find the best orientation of every phase, and what overlaps, for every pattern of a scan (ny, nx, ky, kx), numpy or dask.

    Every pattern is searched on its own first, read once by lines of the scan. With
    ``neighbours`` one in four is searched deeper, and the stated prior follows: orientations found about a pattern are offered to
    it and refined on its own counts, each of the eight neighbours on the same lattice is
    worth ``neighbour_nats``, overlapping crystals are sought first among the neighbours', and
    the strengths of a crystal's reflections are learned from all its patterns. With
    ``mixtures`` two or three crystals may share a pattern; else it is one.

    ``work`` says where finished chunks are kept (`LongWork`), so that a run that was broken off goes on, and who does them; the
    results are the same, to the bit, with any of it and without. Without, all is done here and kept in memory.

    Returns the `Indexing` and the `Spots` of all patterns in the order of the scan.
    """
    centre_px = np.ascontiguousarray(calibration.centre_px, dtype=float)
    calibration = replace(calibration, centre_px=centre_px[:1, :1])  # the rest goes with the patterns that it is of
    options = (neighbours, mixtures, neighbour_nats, seed)
    folder = work.chunk_folder(calibration, centre_px, banks, patterns.shape, options) if work else None
    scheduler = work.scheduler if work else ""
    with contextlib.ExitStack() as open_stores:
        alone = ChunkStore(*_searches(patterns, banks), folder and folder / "alone")
        open_stores.callback(alone.close)
        found = ChunkStore(*_solutions(patterns.shape[:2], len(banks)), folder and folder / "found")
        open_stores.callback(found.close)
        place = lambda name: (alone.chunks[name], centre_px[alone.chunks[name]].reshape(-1, 2))
        finish_chunks(alone, _search_box, (patterns, calibration, banks, neighbours), place, scheduler, progress)
        spots = _spots_of(alone.arrays, centre_px)
        chance = chance_evidence(spots, calibration, banks, patterns.shape[2:], seed=seed)
        tiles = _tiles(*patterns.shape[:2])
        cut = lambda name: (_cut_tile(alone, spots, tiles[name][0]), tiles[name])
        several = progress if len(tiles) > 1 else None
        finish_chunks(found, _solve_tile, (calibration, banks, chance, *options[:3]), cut, scheduler, several)
        solved = dict(found.arrays)
    for name in ("part_lattice", "part_crystal"):  # tiles number their own
        solved[name] = _numbered_on(solved[name], found.chunks.values())
    return Indexing(names=[b.crystal.name for b in banks], chance=chance, **solved), spots


_SPARSE_SPOTS = 40  # a template: the votes of banks with fewer may miss an orientation all over a grain, ...
_DEEP_EVERY = 4  # ... so one pattern in four is searched deeper, and what is found there is offered to its neighbours
_DEEP_COARSE, _DEEP_FINE = 80, 30


def _searches(patterns: Any, banks: list[TemplateBank]) -> tuple[dict, dict]:
    """Layout and chunks of `ChunkStore` for what each pattern gives on its own: its spots, and for every phase the best that was found."""
    shape, p = patterns.shape[:2], len(banks)
    room = _no_spots(np.zeros((1, 2)), patterns.shape[2:])
    layout = {name: ((*shape, *a.shape[1:]), a.dtype, 0) for name in ("table", "number", "background") for a in [getattr(room, name)]}
    layout |= {"rotation": ((p, *shape, 3, 3), np.float32, 1)}
    layout |= {name: ((p, *shape), np.float64, 1) for name in ("evidence", "runner_up")}
    return layout, {f"box_{rows.start}_{cols.start}": (rows, cols) for rows, cols in scan_boxes(patterns)}


def _search_box(
    patterns: Any, calibration: Calibration, banks: list[TemplateBank], neighbours: bool, box: tuple[slice, slice], centre_px: np.ndarray
) -> dict[str, np.ndarray]:
    """Spots of the patterns in a box of a scan and, for every phase, rotation, evidence and runner-up, each pattern on its own.

    With ``neighbours``, which can make use of it, some patterns are searched deeper in sparse banks. ``centre_px`` is (n, 2).
    """
    spots = find_spots(_read_box(patterns, box), centre_px, calibration)
    rows, cols = (np.arange(part.start, part.stop) for part in box)
    n, p = len(centre_px), len(banks)
    diagonal = np.add.outer(rows, cols).ravel() % _DEEP_EVERY == 0
    rotation, evidence, runner_up = np.zeros((p, n, 3, 3), np.float32), np.zeros((p, n)), np.zeros((p, n))
    for k, bank in enumerate(banks):
        sparse = len(bank.spot_radius) < _SPARSE_SPOTS * len(bank.frames)
        deep = diagonal & sparse & neighbours
        deeper: dict[str, Any] = {"n_coarse": _DEEP_COARSE, "n_fine": _DEEP_FINE}
        for some, depth in ((~deep, {}), (deep, deeper)):
            rotation[k, some], evidence[k, some], runner_up[k, some] = search_phase(spots[some], calibration, bank, **depth)
    shape = len(rows), len(cols)
    by_pattern = {"table": spots.table, "number": spots.number, "background": spots.background}
    by_phase: dict[str, np.ndarray] = {"rotation": rotation, "evidence": evidence, "runner_up": runner_up}
    return {name: a.reshape(*shape, *a.shape[1:]) for name, a in by_pattern.items()} | {
        name: a.reshape(p, *shape, *a.shape[2:]) for name, a in by_phase.items()
    }


def _spots_of(arrays: dict[str, np.ndarray], centre_px: np.ndarray) -> Spots:
    """The spots of all patterns of a scan, in its order, from their arrays (ny, nx, …)."""
    table, number, background = (arrays[name].reshape(-1, *arrays[name].shape[2:]) for name in ("table", "number", "background"))
    return Spots(table, number, background, centre_px.reshape(-1, 2))


def _cut_tile(alone: ChunkStore, spots: Spots, tile: tuple[slice, slice]) -> tuple[Spots, np.ndarray, np.ndarray, np.ndarray]:
    """What `_search_box` gave for the patterns of a tile, in its order."""
    chosen = np.arange(len(spots.number)).reshape(alone.arrays["number"].shape)[tile].ravel()
    by_phase = (alone.arrays[name][(slice(None), *tile)] for name in ("rotation", "evidence", "runner_up"))
    rotation, evidence, runner_up = (a.reshape(len(a), len(chosen), *a.shape[3:]) for a in by_phase)
    return spots[chosen], rotation, evidence, runner_up


class _Tile(NamedTuple):
    """A part of a scan with a margin, as slices of the scan; ``inner`` is what of it is its own, as slices of the part."""

    outer: tuple[slice, slice]
    inner: tuple[slice, slice]

    @property
    def own(self) -> tuple[slice, slice]:
        """What is its own, as slices of the scan."""
        y, x = (slice(o.start + i.start, o.start + i.stop) for o, i in zip(self.outer, self.inner, strict=True))
        return y, x


_TILE, _TILE_MARGIN = 96, 4  # patterns a side, in which overlap is sought at once


def _tiles(ny: int, nx: int) -> dict[str, _Tile]:
    """Tiles that cover a scan, by name."""

    def spans(n: int) -> list[tuple[slice, slice]]:
        edges = np.linspace(0, n, max(1, round(n / _TILE)) + 1).astype(int)
        spans = []
        for low, high in itertools.pairwise(edges.tolist()):
            outer = slice(max(0, low - _TILE_MARGIN), min(n, high + _TILE_MARGIN))
            spans.append((outer, slice(low - outer.start, high - outer.start)))
        return spans

    return {f"tile_{j}_{i}": _Tile((y, x), (v, u)) for j, (y, v) in enumerate(spans(ny)) for i, (x, u) in enumerate(spans(nx))}


def _solutions(shape: tuple[int, int], p: int) -> tuple[dict, dict]:
    """Layout and chunks of `ChunkStore` for the fields of `Indexing`."""
    layout = {"rotation": ((p, *shape, 3, 3), np.float32, 1), "winner": (shape, int, 0), "prior": (shape, float, 0)}
    layout |= {name: ((p, *shape), float, 1) for name in ("evidence", "runner_up")}
    layout |= {name: ((*shape, _MOST_PARTS), int, 0) for name in ("part_phase", "part_lattice", "part_crystal")}
    layout |= {name: ((*shape, _MOST_PARTS), float, 0) for name in ("part_share", "part_sd")}
    layout |= {"part_rotation": ((*shape, _MOST_PARTS, 3, 3), np.float32, 0)}
    return layout, {name: tile.own for name, tile in _tiles(*shape).items()}


def _numbered_on(number: np.ndarray, tiles: Iterable[tuple[slice, ...]]) -> np.ndarray:
    """Numbers (ny, nx, 3) that begin at 0 in every tile, -1 for none, made to go on from tile to tile."""
    result, first = np.full_like(number, -1), 0
    for tile in tiles:
        here = number[tile]
        result[tile] = np.where(here >= 0, here + first, -1)
        first = max(first, int(result[tile].max()) + 1)
    return result


def _joined_reflections(banks: list[TemplateBank]) -> tuple[_Reflections, np.ndarray]:
    """The reflections of all banks in one, and where each begins (p + 1,)."""
    parts = [b.reflections for b in banks]
    g, strength, cone, reach = (np.concatenate([getattr(r, name) for r in parts]) for name in ("g", "strength", "cone", "reach"))
    return _Reflections(g, strength, cone, reach, parts[0].half_width, parts[0].wavelength), np.cumsum([0, *(len(r.g) for r in parts)])


def _solve_tile(
    calibration: Calibration, banks: list[TemplateBank], chance: np.ndarray, neighbours: bool, mixtures: bool, neighbour_nats: float,
    alone: tuple[Spots, np.ndarray, np.ndarray, np.ndarray], tile: _Tile,
) -> dict[str, np.ndarray]:  # fmt: skip
    """The fields of `Indexing` for what is a tile's own, from what each of its patterns gave on its own; lattices are numbered from 0."""
    spots, rotation, evidence, runner_up = alone
    shape = tuple(part.stop - part.start for part in tile.outer)
    n, p = len(spots.number), len(banks)
    rotation = rotation.astype(float)
    families, camera = _families(banks), _camera(calibration)
    refs, first = _joined_reflections(banks)
    parts, related = _components_of(spots, shape, calibration, banks, rotation, evidence - chance[:, None], neighbours, mixtures)
    choice, agreeing = np.full(n, -1), np.zeros((n, _MOST_COMPONENTS), int)
    nats = neighbour_nats if neighbours else 0.0
    _settle(shape, parts, chance, related, nats, choice, agreeing)
    solved = _best_of_phases(parts, agreeing, nats, rotation, evidence, runner_up, chance, families)
    chosen, share, sd = np.full((n, _MOST_PARTS), -1), np.zeros((n, _MOST_PARTS)), np.zeros((n, _MOST_PARTS))
    chosen[:, 0], share[:, 0] = choice, choice >= 0
    if mixtures:
        cost = np.zeros((n, _MOST_COMPONENTS))
        _costs(shape, parts, chance, chosen if neighbours else np.full_like(chosen, -1), share, cost)
        chosen, share, sd = _overlaps(spots, camera, refs, first, families.family, parts, cost, nats * agreeing, neighbours)
    solved |= _largest_first(parts, chosen, share, sd, nats * agreeing, families)
    by_phase = ("rotation", "evidence", "runner_up")
    return {k: v.reshape(p, *shape, *v.shape[2:])[:, *tile.inner] if k in by_phase else v.reshape(*shape, *v.shape[1:])[tile.inner]
            for k, v in solved.items()}  # fmt: skip


def _components_of(
    spots: Spots, shape: tuple[int, int], calibration: Calibration, banks: list[TemplateBank], rotation: np.ndarray, support: np.ndarray,
    neighbours: bool, mixtures: bool,
) -> tuple[_Components, np.ndarray]:  # fmt: skip
    """What each pattern of a part of a scan may hold, refined and judged, and which lattices are related (l, l).

    ``rotation`` (p, n, 3, 3) and ``support`` (p, n) are the best solutions of every phase for each pattern on its own.
    """
    n = len(spots.number)
    families, camera = _families(banks), _camera(calibration)
    refs, first = _joined_reflections(banks)
    best, most = np.argmax(support, axis=0), support.max(axis=0)
    own = rotation[best, np.arange(n)]
    lattice, keys, leaders, seen = _find_lattices(shape, best, most, own, 3.0, families, neighbours)
    parts = _Components(
        np.full((n, _MOST_COMPONENTS), -1), np.full((n, _MOST_COMPONENTS), -1), np.zeros((n, _MOST_COMPONENTS), int),
        np.zeros((n, _MOST_COMPONENTS, 3, 3)), np.full((n, _MOST_COMPONENTS), -1e3),
    )  # fmt: skip
    second = _second_crystals(spots, calibration, banks, best, own) if mixtures else np.zeros_like(rotation)
    reach = _LATTICE_REACH if neighbours else 0
    _propose(shape, reach, lattice, keys, seen, most[leaders], families, rotation, support, second, parts)
    _score_components(
        *spots.arrays, refs, first, camera, math.radians(0.3), families.own, parts.phase, parts.rotation, parts.evidence,
        numba.get_num_threads(),
    )  # fmt: skip
    shared = leaders if neighbours else leaders[:0]
    return parts, _related_lattices(keys[shared], families.family[best[shared]], families.operators[best[shared]])


def _overlaps(
    spots: Spots, camera: _Camera, refs: _Reflections, first: np.ndarray, family: np.ndarray, parts: _Components, cost: np.ndarray,
    bonus: np.ndarray, learn: bool,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:  # fmt: skip
    """Which components (n, 3) of each pattern lie over each other, their shares and the standard deviations of these."""
    n = len(spots.number)
    chosen, share, unit = np.full((n, _MOST_PARTS), -1), np.zeros((n, _MOST_PARTS)), np.zeros(n)
    _choose_sets(*spots.arrays, refs, first, camera, parts, cost, bonus, chosen, share, unit, numba.get_num_threads())
    if not (chosen >= 0).any():
        return chosen, share, np.zeros_like(share)
    weights, covariance = _measure_shares(spots, camera, refs, first, family, parts, chosen, unit, learn)
    return chosen, *_normalised(weights, covariance)


def _best_of_phases(
    parts: _Components, agreeing: np.ndarray, nats: float, rotation: np.ndarray, evidence: np.ndarray, runner_up: np.ndarray,
    chance: np.ndarray, families: _Families,
) -> dict[str, np.ndarray]:  # fmt: skip
    """The best solution of every phase under the prior on lattices: of its components, or the one found alone."""
    p, n = evidence.shape
    rotation, evidence, runner_up, total = rotation.copy(), evidence.copy(), runner_up.copy(), np.empty((p, n))
    for k in range(p):
        value = np.where(parts.phase == k, parts.evidence + nats * agreeing, -1e3)
        c = np.argmax(value, axis=1)
        here, rows = value[np.arange(n), c], np.arange(n)
        better = here > evidence[k]
        _note_runner_up(rotation[k], evidence[k], runner_up[k], parts.rotation[rows, c], parts.evidence[rows, c], better, families.own[k])
        total[k] = np.maximum(here, evidence[k]) - chance[k]
        rotation[k][better] = parts.rotation[rows, c][better]
        evidence[k][better] = parts.evidence[rows, c][better]
    return {"rotation": rotation, "evidence": evidence, "runner_up": runner_up, "winner": np.argmax(total, axis=0)}


@numba.njit(cache=True)
def _note_runner_up(rotation, evidence, runner_up, new_rotation, new_evidence, better, operators):
    """Keep ``runner_up`` the best evidence at least ten degrees from the solution that stays, where a new one is at hand."""
    for i in range(len(evidence)):
        far = _nearest_operator(rotation[i], new_rotation[i], operators)[1] > _TEN_DEGREES
        if far:
            runner_up[i] = max(runner_up[i], evidence[i] if better[i] else new_evidence[i])


def _normalised(weights: np.ndarray, covariance: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Shares (n, 3) that add up to one and their standard deviations, by the law of propagation."""
    total = np.maximum(weights.sum(axis=1, keepdims=True), 1e-9)
    share = weights / total
    slope = (np.eye(_MOST_PARTS)[None] - share[:, :, None]) / total[:, :, None]
    variance = np.einsum("nab,nbc,nac->na", slope, covariance, slope)
    return share, np.where(weights > 0, np.sqrt(np.maximum(variance, 0)), 0.0)


def _largest_first(
    parts: _Components, chosen: np.ndarray, share: np.ndarray, sd: np.ndarray, bonus: np.ndarray, families: _Families
) -> dict[str, np.ndarray]:
    """What `Indexing` holds of the chosen components (n, 3), the largest first."""
    order = np.argsort(-np.where(chosen >= 0, share, -1.0), axis=1, kind="stable")
    chosen, share, sd = (np.take_along_axis(a, order, axis=1) for a in (chosen, share, sd))
    taken, rows = np.maximum(chosen, 0), np.arange(len(chosen))[:, None]
    present = (chosen >= 0) & (share > 0)
    lattice = np.where(present, parts.lattice[rows, taken], -1)
    n_phases, n_variants = families.from_parent.shape[:2]
    crystal = (lattice * n_phases + parts.phase[rows, taken]) * n_variants + np.maximum(parts.variant[rows, taken], 0)
    return {
        "part_lattice": lattice,
        "part_crystal": np.where(lattice >= 0, crystal, -1),
        "prior": np.where(chosen[:, 0] >= 0, bonus[rows[:, 0], taken[:, 0]], 0.0),
        "part_phase": np.where(present, parts.phase[rows, taken], -1),
        "part_share": np.where(present, share, 0.0),
        "part_sd": np.where(present, sd, 0.0),
        "part_rotation": np.where(present[..., None, None], parts.rotation[rows, taken], 0.0),
    }


def chance_evidence(
    spots: Spots, calibration: Calibration, banks: list[TemplateBank], shape: tuple[int, int], *, n: int = 96, quantile: float = 0.95,
    seed: int = 1,
) -> np.ndarray:  # fmt: skip
    """What evidence each bank finds where there is no crystal, (p,) in nats.

    Its ``quantile`` over patterns of background alone, each with the radial background of a
    pattern of this scan, on a camera of ``shape`` (ky, kx), and Poisson noise; plus what the best of all banks
    exceeds that by in one of fifty of them.
    """
    rng = np.random.default_rng(seed)
    chosen = np.sort(rng.choice(len(spots.number), size=n, replace=len(spots.number) < n))
    yy, xx = np.indices(shape)
    empty = np.empty((n, *shape), np.float32)
    for image, i in zip(empty, chosen, strict=True):
        cy, cx = spots.centre_px[i]
        radius = np.minimum(np.hypot(yy - cy, xx - cx).astype(int), spots.background.shape[1] - 1)
        image[:] = rng.poisson(spots.background[i][radius])
    plain_counts = replace(calibration, gain=1.0, offset=0.0)
    of_empty = find_spots(empty, spots.centre_px[chosen], plain_counts)
    evidence = np.array([search_phase(of_empty, plain_counts, bank)[1] for bank in banks])
    chance = np.quantile(evidence, quantile, axis=1)
    return chance + max(0.0, float(np.quantile((evidence - chance[:, None]).max(axis=0), 0.98)))


def decide_phases(
    found: Indexing,
    correlation: np.ndarray,
    *,
    least_support: float = 2.0,
    least_margin: float = 3.0,
    least_correlation: float = 0.35,
    least_on_lattice: float = 0.15,
    sure_correlation: float = 0.5,
) -> dict[str, np.ndarray]:
    """The phase of every pattern.

    Where one crystal explains a pattern, its phase is decided by the evidence above chance;
    where several overlap, by the largest share, whose error is that of the shares. Evidence compares the
    candidates only; whether any of them is right shows in ``correlation`` (ny, nx) (`correlation_map`).

    Returns maps (ny, nx): ``phase_id`` (-1 not indexed: less than ``least_support`` nats above
    what chance gives, the neighbours' lattice included, or less than ``least_correlation``; ``least_on_lattice`` will do where
    the support is clear and two neighbours have the lattice too, because near a systematic row one strong spot outshines what
    the others say), ``probability`` (p, ny, nx), ``phase_margin`` in nats to the next phase, ``orientation_margin`` to the next
    orientation of the same phase, ``decided``: a margin of at least ``least_margin`` (20 to 1) and a correlation of at least
    ``sure_correlation``; ``share`` and ``crystal_id`` of the crystal that gives the phase, ``lattice_id`` of its lattice, and
    ``second_phase_id`` (-1: none), ``second_share`` and ``second_crystal_id`` of the largest crystal of another phase; and
    ``rotation`` (ny, nx, 3, 3).
    """
    support = found.support
    p = len(support)
    total = support.max(axis=0) + found.prior
    on_lattice = (total > least_support + 6) & (found.prior >= 3) & (correlation >= least_on_lattice)
    indexed = (total > least_support) & ((correlation >= least_correlation) | on_lattice)
    several = (found.part_share > 0).sum(axis=-1) > 1
    phase = np.where(found.part_phase[..., 0] >= 0, found.part_phase[..., 0], found.winner)
    lead = np.take_along_axis(support, phase[None], axis=0)[0]
    others = np.where(np.arange(p)[:, None, None] == phase, -np.inf, support)
    weight = np.exp(np.clip(np.where(np.arange(p)[:, None, None] == phase, np.maximum(lead, others.max(axis=0)), support) - lead, -50, 50))
    margin = lead - others.max(axis=0) if p > 1 else lead
    shares = np.stack([np.where(found.part_phase == k, found.part_share, 0).max(axis=-1) for k in range(p)])
    of_shares = _probability_of_largest(shares, found)
    probability = np.where(several, of_shares, weight / weight.sum(axis=0))
    ranked = np.sort(of_shares, axis=0)
    margin = np.where(several, np.log(np.maximum(ranked[-1], 1e-6) / np.maximum(ranked[-2], 1e-6)) if p > 1 else margin, margin)
    rotation = np.take_along_axis(found.rotation, phase[None, ..., None, None], axis=0)[0]
    rotation = np.where((found.part_phase[..., 0] >= 0)[..., None, None], found.part_rotation[..., 0, :, :], rotation)
    evidence, runner_up = (np.take_along_axis(a, phase[None], axis=0)[0] for a in (found.evidence, found.runner_up))
    return {
        "phase_id": np.where(indexed, phase, -1),
        "probability": probability,
        "phase_margin": np.maximum(margin, 0.0),
        "orientation_margin": np.clip(evidence - runner_up, 0.0, 100.0),
        "decided": indexed & (margin >= least_margin) & (correlation >= sure_correlation),
        "share": np.where(indexed, np.where(found.part_phase[..., 0] >= 0, found.part_share[..., 0], 1.0), 0.0),
        "crystal_id": np.where(indexed, found.part_crystal[..., 0], -1),
        "lattice_id": np.where(indexed, found.part_lattice[..., 0], -1),
        "rotation": rotation,
        **_second_phase(found, indexed),
    }


def _second_phase(found: Indexing, indexed: np.ndarray) -> dict[str, np.ndarray]:
    """Phase, share and crystal (ny, nx) of the largest crystal of another phase in every indexed pattern."""
    others = np.where(found.part_phase == found.part_phase[..., :1], 0.0, found.part_share)
    place = np.argmax(others, axis=-1)[..., None]
    present = indexed & (others.max(axis=-1) > 0)
    of_second = lambda part, nothing: np.where(present, np.take_along_axis(part, place, axis=-1)[..., 0], nothing)
    return {
        "second_phase_id": of_second(found.part_phase, -1),
        "second_share": of_second(found.part_share, 0.0),
        "second_crystal_id": of_second(found.part_crystal, -1),
    }


def _probability_of_largest(shares: np.ndarray, found: Indexing, model_sd: float = 0.06) -> np.ndarray:
    """Probability (p, ny, nx) that each phase has the largest share (p, ny, nx) of a pattern, from the shares' errors.

    Gaussian, pair by pair against the largest of the others; ``model_sd`` is what the strengths' model adds to each share.
    """
    from scipy.special import ndtr

    sd = np.hypot(found.part_sd.max(axis=-1), model_sd) * math.sqrt(2)
    result = np.empty_like(shares)
    for k in range(len(shares)):
        rest = np.delete(shares, k, axis=0).max(axis=0) if len(shares) > 1 else np.zeros_like(shares[0])
        result[k] = np.where(shares[k] > 0, ndtr((shares[k] - rest) / sd), 0.0)
    return result / np.maximum(result.sum(axis=0), 1e-9)


# --- maps and grains ----------------------------------------------------------------------


@numba.njit(cache=True, parallel=True)
def _correlations(table, number, background, centre, refs, first, camera, phase, share, rotation, result, threads):
    for thread in numba.prange(threads):
        work = _room(camera, len(refs.g))
        near = np.empty(len(refs.g), np.int64)
        expected = np.empty(_MOST_SPOTS)
        for i in range(thread, len(table), threads):
            if phase[i, 0] < 0 or number[i] == 0:
                continue
            view, _ = _view(table[i], number[i], background[i], centre[i], camera, work)
            expected[:] = 0
            for q in range(phase.shape[1]):
                if phase[i, q] < 0:
                    continue
                n_near = _near_ewald(rotation[i, q], 0.0, refs, first[phase[i, q]], first[phase[i, q] + 1], near)
                _, total = _collect(rotation[i, q], near, n_near, refs, camera, view)
                for k in range(number[i]):
                    expected[k] += share[i, q] * view.strength[k] / max(total, 1e-30)
            product, measured, explained = 0.0, 0.0, 0
            for k in range(number[i]):
                if view.spots[k, 4] >= 4:
                    net = max(view.spots[k, 2] - view.spots[k, 3], np.float32(0))
                    measured += net
                    product += math.sqrt(net * expected[k])
                    explained += expected[k] > 0
            if explained > 1:
                result[i] = product / math.sqrt(measured)


def correlation_map(spots: Spots, calibration: Calibration, banks: list[TemplateBank], found: Indexing) -> np.ndarray:
    """Correlation coefficient (0 to 1) of measured and predicted spot strengths (square roots), (ny, nx).

    Over all measured spots of at least 4 nats and all places that the crystals of a pattern
    predict, these in their shares; 1 is a pattern whose spots are all predicted, in their
    proportions, and no others. One spot is no crystal: 0 where fewer than two are explained.
    """
    refs, first = _joined_reflections(banks)
    shape = found.winner.shape
    result = np.zeros(found.winner.size)
    _correlations(
        *spots.arrays, refs, first, _camera(calibration),
        found.part_phase.reshape(-1, _MOST_PARTS), found.part_share.reshape(-1, _MOST_PARTS),
        found.part_rotation.reshape(-1, _MOST_PARTS, 3, 3).astype(float), result, numba.get_num_threads(),
    )  # fmt: skip
    return result.reshape(shape)


@numba.njit(cache=True, parallel=True)
def _distinct(table, number, background, centre, refs, first, camera, phase, rotations, result, threads):
    for thread in numba.prange(threads):
        own, other = _room(camera, len(refs.g)), _room(camera, len(refs.g))
        near = np.empty(len(refs.g), np.int64)
        taken = np.zeros(camera.pixels.shape, np.int16)
        for i in range(thread, len(table), threads):
            p = phase[i]
            if p < 0:
                continue
            view, diffracted = _view(table[i], number[i], background[i], centre[i], camera, own)
            n_near = _near_ewald(rotations[p, i], 0.0, refs, first[p], first[p + 1], near)
            n_own = _predict(rotations[p, i], near, n_near, refs, camera, centre[i], own.predicted)
            least = 100.0
            for q in range(len(rotations)):
                if q == p:
                    continue
                n_near = _near_ewald(rotations[q, i], 0.0, refs, first[q], first[q + 1], near)
                n_other = _predict(rotations[q, i], near, n_near, refs, camera, centre[i], other.predicted)
                count = _lone_spots(own.predicted, n_own, other.predicted, n_other, view.background, centre[i], camera, diffracted, taken)
                count += _lone_spots(other.predicted, n_other, own.predicted, n_own, view.background, centre[i], camera, diffracted, taken)
                least = min(least, count)
            result[i] = least


@numba.njit(cache=True)
def _lone_spots(mine, n_mine, others, n_others, background, centre, camera, diffracted, taken):
    """How many of my spots are bright enough to be seen and lie on no spot of the other crystal."""
    taken[:] = 0
    reach = int(camera.match)
    for j in range(n_others):
        v, u = int(others[j, 0] + 0.5), int(others[j, 1] + 0.5)
        taken[max(0, v - reach) : v + reach + 1, max(0, u - reach) : u + reach + 1] = 1
    total = 0.0
    for j in range(n_mine):
        total += mine[j, 2]
    count = 0
    for j in range(n_mine):
        mean = diffracted * mine[j, 2] / total
        r = math.sqrt((mine[j, 0] - centre[0]) ** 2 + (mine[j, 1] - centre[1]) ** 2)
        below = background[min(int(r), len(background) - 1)] * camera.full + 0.02
        seen = (mean + below) * math.log((mean + below) / below) - mean > 6.0
        if seen and taken[int(mine[j, 0] + 0.5), int(mine[j, 1] + 0.5)] == 0:
            count += 1
    return count


def discriminating_spots(
    spots: Spots, calibration: Calibration, banks: list[TemplateBank], phase_id: np.ndarray, rotation: np.ndarray
) -> np.ndarray:
    """How many spots tell the phase of a pattern from every other phase, (ny, nx); 0 where not indexed.

    ``rotation`` (p, ny, nx, 3, 3) are the best solutions of all phases. For each other phase the
    spots are counted that one of the two predicts, bright enough to stand out by 6 nats, and the
    other does not; the least of these counts is returned. Where it is 0, the pattern cannot
    discriminate, whatever its dose.
    """
    refs, first = _joined_reflections(banks)
    result = np.zeros(phase_id.size)
    _distinct(
        *spots.arrays, refs, first, _camera(calibration), phase_id.ravel(),
        np.ascontiguousarray(rotation, dtype=float).reshape(len(banks), -1, 3, 3), result, numba.get_num_threads(),
    )  # fmt: skip
    return result.reshape(phase_id.shape)


@numba.njit(cache=True)
def _misorientations(first, second, operators):
    angles = np.empty(len(first))
    for i in range(len(first)):
        angles[i] = _nearest_operator(second[i], first[i], operators)[1]
    return angles


def misorientations_deg(first: np.ndarray, second: np.ndarray, operators: np.ndarray) -> np.ndarray:
    """Least angles (n,) between orientations (n, 3, 3), sample to crystal, of one phase with proper rotations (o, 3, 3)."""
    first, second = (np.ascontiguousarray(a, dtype=float).reshape(-1, 3, 3) for a in (first, second))
    return np.degrees(_misorientations(first, second, operators))


def _neighbour_pairs(ny: int, nx: int) -> tuple[np.ndarray, np.ndarray]:
    """Indices (n,), (n,) in the flattened scan of all pairs of patterns that share an edge."""
    number = np.arange(ny * nx).reshape(ny, nx)
    return (
        np.concatenate([number[:, :-1].ravel(), number[:-1].ravel()]),
        np.concatenate([number[:, 1:].ravel(), number[1:].ravel()]),
    )


def _eight_neighbours(values: np.ndarray) -> np.ndarray:
    """Values (8, ny, nx) of the neighbours of every pattern of a map (ny, nx) of numbers, -1 beyond its edge."""
    ny, nx = values.shape
    padded = np.pad(values, 1, constant_values=-1)
    steps = [step for step in product((0, 1, 2), repeat=2) if step != (1, 1)]
    return np.stack([padded[y : y + ny, x : x + nx] for y, x in steps])


def segment_grains(phase_id: np.ndarray, rotation: np.ndarray, operators: list[np.ndarray], threshold_deg: float = 5.0) -> np.ndarray:
    """Grain numbers (ny, nx), -1 where not indexed: neighbours of one phase within a misorientation are one grain.

    ``rotation`` (ny, nx, 3, 3) sample to crystal, ``operators`` the proper rotations of each phase.
    """
    from scipy.sparse import coo_matrix
    from scipy.sparse.csgraph import connected_components

    phase, matrices = phase_id.ravel(), rotation.reshape(-1, 3, 3)
    a, b = _neighbour_pairs(*phase_id.shape)
    joined = np.zeros(len(a), bool)
    for k, own in enumerate(operators):
        here = (phase[a] == k) & (phase[b] == k)
        joined[here] = misorientations_deg(matrices[a[here]], matrices[b[here]], own) < threshold_deg
    graph = coo_matrix((np.ones(joined.sum()), (a[joined], b[joined])), shape=(len(phase), len(phase)))
    label = connected_components(graph, directed=False)[1]
    label[phase < 0] = -1
    _, label[phase >= 0] = np.unique(label[phase >= 0], return_inverse=True)
    return label.reshape(phase_id.shape)


def _lattice_angles(phase: np.ndarray, matrices: np.ndarray, a: np.ndarray, b: np.ndarray, banks: list[TemplateBank]) -> np.ndarray:
    """For pairs of patterns a, b (n,) of different phases the angle (n,) in degrees to a common lattice; inf where they have none."""
    angles = np.full(len(a), np.inf)
    for p, q in itertools.permutations(range(len(banks)), 2):
        here = (phase[a] == p) & (phase[b] == q)
        for relation in orientation_relations(banks[p].crystal, banks[q].crystal) if here.any() else ():
            turned = np.einsum("ij,njk->nik", relation, matrices[a[here]])
            angles[here] = np.minimum(angles[here], misorientations_deg(turned, matrices[b[here]], banks[q].operators))
    return angles


def boundary_relations(phase_id: np.ndarray, rotation: np.ndarray, banks: list[TemplateBank]) -> tuple[np.ndarray, list[tuple[str, str]]]:
    """For neighbours of different NCM phases the angle (n,) in degrees to their common lattice, and the names of both.

    Phases outside `NCM_PHASES` are compared only where none of these is among the banks.
    """
    names = [b.crystal.name for b in banks]
    ncm = [k for k, name in enumerate(names) if name in NCM_PHASES] or list(range(len(names)))
    phase = phase_id.ravel()
    a, b = _neighbour_pairs(*phase_id.shape)
    between = (phase[a] != phase[b]) & np.isin(phase[a], ncm) & np.isin(phase[b], ncm)
    a, b = a[between], b[between]
    angles = _lattice_angles(phase, rotation.reshape(-1, 3, 3), a, b, banks)
    known = np.isfinite(angles)
    return angles[known], [(names[phase[i]], names[phase[j]]) for i, j in zip(a[known], b[known], strict=True)]


def boundaries(
    phase_id: np.ndarray, rotation: np.ndarray, grain_id: np.ndarray, banks: list[TemplateBank], threshold_deg: float = 5.0
) -> tuple[np.ndarray, np.ndarray]:
    """Edges between patterns of different grains: both ends (n, 2, 2), (y, x) in patterns, and whether only the phase changes (n,).

    The latter is where two phases share their lattice within ``threshold_deg``.
    """
    nx = phase_id.shape[1]
    a, b = _neighbour_pairs(*phase_id.shape)
    grain = grain_id.ravel()
    a, b = a[grain[a] != grain[b]], b[grain[a] != grain[b]]
    topotactic = _lattice_angles(phase_id.ravel(), rotation.reshape(-1, 3, 3), a, b, banks) < threshold_deg
    first, second = (np.stack([i // nx, i % nx], axis=-1).astype(float) for i in (a, b))
    middle, across = (first + second) / 2, (second - first)[:, ::-1] / 2
    return np.stack([middle - across, middle + across], axis=1), topotactic


def to_crystal_map(
    phase_id: np.ndarray, rotation: np.ndarray, crystals: list[Crystal], step_nm: float, properties: dict[str, np.ndarray]
) -> Any:
    """An orix CrystalMap of a scan (ny, nx) with rotations (ny, nx, 3, 3) and properties (ny, nx)."""
    from orix.crystal_map import CrystalMap, PhaseList
    from orix.quaternion import Rotation

    ny, nx = phase_id.shape
    y, x = np.indices((ny, nx)) * step_nm
    phases = PhaseList([c.orix_phase() for c in crystals], ids=list(range(len(crystals))))
    if (phase_id < 0).any():
        phases.add_not_indexed()
    safe = np.where((phase_id >= 0)[..., None, None], rotation, np.eye(3))
    return CrystalMap(
        rotations=Rotation.from_matrix(safe.reshape(-1, 3, 3)),
        phase_id=phase_id.ravel(),
        x=x.ravel(),
        y=y.ravel(),
        phase_list=phases,
        prop={k: v.ravel() for k, v in properties.items()},
        scan_unit="nm",
    )


def ipf_colours(rotation: np.ndarray, inside: np.ndarray, crystal: Crystal) -> np.ndarray:
    """Colours (ny, nx, 3) of the crystal direction along the beam (inverse pole figure), white outside the mask (ny, nx)."""
    from orix.plot import IPFColorKeyTSL
    from orix.quaternion import Orientation
    from orix.vector import Vector3d

    symmetry = crystal.orix_phase().point_group.laue
    colours = np.ones((*inside.shape, 3))
    if inside.any():
        orientations = Orientation.from_matrix(rotation[inside], symmetry=symmetry)
        colours[inside] = IPFColorKeyTSL(symmetry, direction=Vector3d.zvector()).orientation2color(orientations)
    return colours


def scan_banks(ped: Any, calibrated: dict[str, Any], data_dir: str | Path, *, step_deg: float = 2.0) -> list[TemplateBank]:
    """Template banks of an acquisition's candidate phases, with the reach and width that 05 found (its result ``calibrated``)."""
    return [
        template_bank(
            read_crystal(phase_file(phase, data_dir), phase),
            max_g_invA=calibrated["max_g_invA"],
            beam_energy_keV=ped.beam_energy_keV,
            precession_deg=ped.precession_deg,
            excitation_width_invA=calibrated["excitation_width_invA"],
            step_deg=step_deg,
            cache=BANK_CACHE,
        )
        for phase in ped.phases
    ]


def map_scan(
    patterns: Any, calibration: Calibration, banks: list[TemplateBank], thresholds: dict[str, float] | None = None, **options: Any
) -> tuple[dict[str, np.ndarray], Indexing, Spots]:
    """The maps (ny, nx) of a scan: those of `decide_phases`, ``correlation``, ``discriminating_spots``, ``diffuse`` counts and ``support``.

    ``thresholds`` go to `decide_phases`, ``options`` to `index_scan`. A pattern without a discriminating spot is not decided.
    """
    found, spots = index_scan(patterns, calibration, banks, **options)
    return read_maps(found, spots, calibration, banks, thresholds), found, spots


def read_maps(
    found: Indexing, spots: Spots, calibration: Calibration, banks: list[TemplateBank], thresholds: dict[str, float] | None = None
) -> dict[str, np.ndarray]:
    """The maps of `map_scan` from what was found, some lines of the scan at a time; other thresholds need no other search."""
    ny, nx = found.winner.shape
    lines = max(1, _PATTERNS_READ // nx)
    blocks = []
    for y in range(0, ny, lines):
        rows = slice(y, min(y + lines, ny))
        here = spots[rows.start * nx : rows.stop * nx]
        blocks.append(_read_lines(found.part(rows, slice(0, nx)), here, calibration, banks, thresholds or {}))
    return {name: np.concatenate([block[name] for block in blocks], axis=int(name in ("probability", "support"))) for name in blocks[0]}


_PATTERNS_READ = 200_000  # at a time, by `read_maps`


def _read_lines(
    found: Indexing, spots: Spots, calibration: Calibration, banks: list[TemplateBank], thresholds: dict[str, float]
) -> dict[str, np.ndarray]:
    correlation = correlation_map(spots, calibration, banks, found)
    maps = decide_phases(found, correlation, **thresholds)
    telling = discriminating_spots(spots, calibration, banks, maps["phase_id"], found.rotation)
    decided = maps["decided"] & (telling > 0) if len(banks) > 1 else maps["decided"]
    maps |= {"correlation": correlation, "discriminating_spots": telling, "decided": decided, "support": found.support}
    return maps | {"diffuse": diffuse_counts(spots, calibration).reshape(correlation.shape)}


def diffuse_counts(spots: Spots, calibration: Calibration) -> np.ndarray:
    """Counts (n,) of the radial background outside the direct beam: how much material there is, whether it diffracts or not."""
    radius = np.arange(spots.background.shape[1])
    shown = (radius >= first_radius_px(calibration)) & (radius < min(calibration.mask.shape) / 2)
    return (spots.background[:, shown] * (2 * np.pi * radius[shown])).sum(axis=1)


# --- files of maps --------------------------------------------------------------------------


def save_crystal_map(path: Path, crystal_map: Any, **options: Any) -> None:
    """Write an orix CrystalMap in one step: a reader sees the old file or the new.

    The suffix of the path chooses the writer of orix, which takes the ``options``: .h5 holds all of the map;
    `save_ang` brings it into the units and axes of .ang first.
    """
    from orix import io

    temporary = path.with_name(f".{path.stem}.part{path.suffix}")
    path.parent.mkdir(parents=True, exist_ok=True)
    io.save(str(temporary), crystal_map, overwrite=True, **options)
    os.replace(temporary, path)


def _a_star_and_c(phase: Any) -> np.ndarray:
    """Rotation (3, 3) of a crystal's Cartesian coordinates from the axes e1 || a, e3 || c* to e1 || a*, e3 || c.

    It turns about c by 30° in trigonal and hexagonal cells, about b by beta - 90° in monoclinic ones, and not at all
    where the angles of the cell are right.
    """
    lattice = phase.structure.lattice.base
    a_star, c = np.linalg.inv(lattice)[:, 0], lattice[2]
    x, z = a_star / np.linalg.norm(a_star), c / np.linalg.norm(c)
    return np.stack([x, np.cross(z, x), z])


def _indexed_phases(crystal_map: Any) -> list[tuple[int, Any]]:
    """Ids and phases of a CrystalMap in the order of the ids, without that of points that are not indexed."""
    return [(k, phase) for k, phase in crystal_map.phases if k >= 0]


def _rotations_to(crystal_map: Any, axes: dict[int, np.ndarray]) -> Any:
    """The rotations (n,) of a CrystalMap, carried on to other Cartesian axes of the crystal by a rotation (3, 3) for every phase id."""
    from orix.quaternion import Rotation

    rotations = crystal_map.rotations
    for k, turn in axes.items():
        here = crystal_map.phase_id == k
        rotations[here] = Rotation.from_matrix(turn) * rotations[here]
    return rotations


def _positions_um(crystal_map: Any) -> tuple[np.ndarray, np.ndarray]:
    """Positions x (n,) and y (n,) of a CrystalMap in µm; orix has None for the one that all points share."""
    um = {"nm": 1e-3, "um": 1.0}[crystal_map.scan_unit]
    x, y = (np.zeros(crystal_map.size) if v is None else v * um for v in (crystal_map.x, crystal_map.y))
    return x, y


def save_ang(path: Path, crystal_map: Any) -> None:
    """Write the CrystalMap of a whole scan as .ang of EDAX (TSL), for OIM Analysis, MTEX or orix, in one step.

    Columns: image quality is ``score`` (nats), confidence index is ``correlation`` (0 to 1), detector signal is
    ``phase_margin`` (nats), each 0 where the map lacks it, and fit is 0. Points that are not indexed have phase 0 (-1 in a map
    of one phase), confidence index -1, fit 180 and Euler angles of 4 pi, as OIM has them. Phases are numbered from 1 in the
    order of the map. Positions are in µm, rounded to 0.01 nm: at steps of about 1 nm that are no multiple of that, a reader
    that takes the step from two points, as orix does, can count a column too many; the header has the right number.

    Euler angles (Bunge, radians) lead from the axes of the map, x to the right, y down, z along the beam, to the crystal's
    Cartesian axes: e1 || a, e3 || c* as in this workbook, in monoclinic crystals e1 || a*, e3 || c with the symmetry code 20
    of a twofold axis along b. So MTEX reads .ang (its loadEBSD_ang.m and calcAxis.m, "EDAX"). The Euler angles of OIM's own
    maps are about other axes than the map's, by one of four settings that the file does not name: load this one without
    MTEX's correction for that.

    Raises `ResultError` for a scan of a single column, which orix would write as a row of points in one place; its writer also
    fails on a row of fewer than four points.
    """
    from orix.crystal_map import CrystalMap

    if crystal_map.x is None:
        raise ResultError(f"{path.name}: a scan of one column, expected two or more; .ctf can hold it")
    x, y = _positions_um(crystal_map)
    monoclinic = {k: _a_star_and_c(p) for k, p in _indexed_phases(crystal_map) if p.point_group.system == "monoclinic"}
    phases = crystal_map.phases.deepcopy()
    for k in monoclinic:
        phases[k].space_group, phases[k].point_group = None, "121"  # orix itself has the twofold axis of these along e3
    columns = {"image_quality_prop": "score", "confidence_index_prop": "correlation", "detector_signal_prop": "phase_margin"}
    columns = {column: name for column, name in columns.items() if name in crystal_map.prop}
    written = CrystalMap(
        rotations=_rotations_to(crystal_map, monoclinic),
        phase_id=crystal_map.phase_id,
        x=x,
        y=y,
        phase_list=phases,
        prop={name: crystal_map.prop[name] for name in columns.values()},
        scan_unit="um",
    )
    save_crystal_map(path, written, **columns)


#: Laue groups in the numbering of Channel 5, which begins with 1.
_LAUE_GROUPS = ("-1", "2/m", "mmm", "4/m", "4/mmm", "-3", "-3m", "6/m", "6/mmm", "m-3", "m-3m")


def _ctf_phase(phase: Any) -> str:
    """A phase as a line of a .ctf header."""
    a, b, c, alpha, beta, gamma = phase.structure.lattice.abcABG()
    laue = _LAUE_GROUPS.index(phase.point_group.laue.name) + 1
    space_group = phase.space_group.number if phase.space_group else 0
    return f"{a:.4f};{b:.4f};{c:.4f}\t{alpha:.4f};{beta:.4f};{gamma:.4f}\t{phase.name}\t{laue}\t{space_group}\t\t\t"


def _ctf_header(name: str, x_um: np.ndarray, y_um: np.ndarray, phases: list[Any]) -> list[str]:
    """The lines of a .ctf before its points; the microscope's numbers are 0, for a CrystalMap does not hold them."""
    nx, ny = len(np.unique(x_um)), len(np.unique(y_um))
    dx, dy = np.ptp(x_um) / max(nx - 1, 1), np.ptp(y_um) / max(ny - 1, 1)
    return [
        "Channel Text File",
        f"Prj\t{name}",
        "Author\t[Unknown]",
        "JobMode\tGrid",
        f"XCells\t{nx}",
        f"YCells\t{ny}",
        f"XStep\t{dx or dy:.8f}",
        f"YStep\t{dy or dx:.8f}",
        *(f"AcqE{i}\t0.0000" for i in (1, 2, 3)),
        "Euler angles refer to Sample Coordinate system (CS0)!\t"
        "Mag\t0.0000\tCoverage\t100\tDevice\t0\tKV\t0.0000\tTiltAngle\t0.0000\tTiltAxis\t0",
        f"Phases\t{len(phases)}",
        *(_ctf_phase(phase) for phase in phases),
        "Phase\tX\tY\tBands\tError\tEuler1\tEuler2\tEuler3\tMAD\tBC\tBS",
    ]


def save_ctf(path: Path, crystal_map: Any) -> None:
    """Write the CrystalMap of a whole scan as .ctf of Oxford (HKL Channel 5), for AZtecCrystal, MTEX or orix, in one step.

    Columns: band contrast BC is ``correlation`` times 255, band slope BS is ``phase_margin`` in nats, at most 255, each 0
    where the map lacks it. Bands and MAD are 0: no bands are counted and no angular deviation is measured. Points that are
    not indexed have phase 0, error 3 (no solution) and Euler angles of 0. Phases are numbered from 1 in the order of the map.
    Positions are in µm.

    Euler angles (Bunge, degrees) lead from the axes of the map, x to the right, y down, z along the beam, to the crystal's
    Cartesian axes e1 || a*, e3 || c of Channel 5: in trigonal and hexagonal crystals the third one is 30° larger than in this
    workbook's axes (MTEX's loadEBSD_ctf.m and calcAxis.m; Mainprice in its issue 241). orix takes the axes of every .ctf as
    e1 || a, so the directions that it gives in such crystals are turned by these 30°. The Euler angles of Oxford's own maps are
    about other axes than the map's: load this one without MTEX's correction for that.
    """
    x, y = _positions_um(crystal_map)
    phases = _indexed_phases(crystal_map)
    number = np.searchsorted([-1, *(k for k, _ in phases)], crystal_map.phase_id)
    rotations = _rotations_to(crystal_map, {k: _a_star_and_c(phase) for k, phase in phases})
    euler = np.where(number[:, None] > 0, rotations.to_euler(degrees=True), 0.0)
    nothing = np.zeros(crystal_map.size)
    contrast = 255 * np.clip(crystal_map.prop.get("correlation", nothing), 0, 1)
    slope = np.clip(crystal_map.prop.get("phase_margin", nothing), 0, 255)
    error = np.where(number > 0, 0, 3)
    points = np.column_stack([number, x, y, nothing, error, euler, nothing, np.rint(contrast), np.rint(slope)])
    row = "%d\t%.8f\t%.8f\t%d\t%d\t%.4f\t%.4f\t%.4f\t%.4f\t%d\t%d"
    lines = _ctf_header(path.stem, x, y, [phase for _, phase in phases]) + [row % tuple(point) for point in points]
    write_atomically(path, "\r\n".join(lines) + "\r\n")


# --------------------------------------------------------------------------------------
# 07 Fractions
# --------------------------------------------------------------------------------------
#
# A pattern is misjudged where two crystals share it nearly equally and the shares found are a little off, and then so are those of
# the same two crystals next to it: what is wrong with how strongly a crystal is taken to diffract is wrong in all its patterns. So errors
# belong to crystals, not to patterns. How large they are is measured on the scan itself: recorded patterns of single crystals
# are thinned and added in known shares (`spike_in`), which keeps intensities, noise and background as they were recorded, and go
# through the same matching. The spread of the shares found about those put in, from one pair of crystals to the next
# and within a pair, then says how the whole map could have come out (`drawn_counts`). Thinning is exact: of Poisson
# counts, each kept with probability w, remains what a crystal of w times the thickness would have given.


_MAP_PROPERTIES = (
    "score", "correlation", "phase_margin", "orientation_margin", "decided", "grain_id", "share", "crystal_id", "lattice_id",
    "second_phase_id", "second_share", "second_crystal_id", "diffuse",
)  # fmt: skip


def load_maps(path: Path, matched: dict[str, Any]) -> dict[str, np.ndarray]:
    """Maps (ny, nx) of the CrystalMap that notebook 06 wrote, and ``probability`` and ``support`` (p, ny, nx) of the phases.

    ``matched`` is the result of 06. The map that comes back has its patterns in rows of the scan, as they were written. `ResultError`
    where there is no such file, or where an older version of the workbook wrote it.
    """
    from orix import io

    where, phases = f"{path.parent.name}/{path.name}", matched["phases"]
    if not path.is_file():
        raise ResultError(f"run 06_ped_matching for {path.parent.name} first: there is no {where} in the results")
    try:
        crystal_map = io.load(str(path))
    except Exception as error:  # h5py and orix raise whatever they meet in a file that was cut short
        raise ResultError(f"{where}: cannot be read ({_one_line(error)}); run 06_ped_matching for {path.parent.name} again") from None
    lacking = [name for name in (*_MAP_PROPERTIES, *(f"probability_{p}" for p in phases)) if name not in crystal_map.prop]
    if lacking:
        raise ResultError(
            f"{where}: holds no {lacking[0]!r}, expected the map as this version of the workbook writes it; run 06_ped_matching again"
        )
    shape = (len(np.unique(crystal_map.y)) if crystal_map.y is not None else 1, -1)
    read = lambda name: np.asarray(crystal_map.prop[name]).reshape(shape)
    maps = {name: read(name) for name in _MAP_PROPERTIES}
    maps["phase_id"] = np.asarray(crystal_map.phase_id).reshape(shape)
    maps["probability"] = np.stack([read(f"probability_{p}") for p in phases])
    maps["support"] = np.stack([read(f"score_{p}") - matched["chance_nats"][p] for p in phases])
    return maps


# --- crystals that hardly diffract ---------------------------------------------------------------


def hidden_material(maps: dict[str, np.ndarray]) -> np.ndarray:
    """Mask (ny, nx) of patterns that are not indexed, but of material: crystals that hardly diffract as they lie, not pores.

    Material scatters diffusely, a pore does not: they are those that were not indexed and scatter as the indexed ones
    do. None where the scan shows no such contrast, that is where the patterns that scatter less than (nearly) all indexed ones
    are not well set off from these: a pore filled with something amorphous cannot be told from a crystal that does not diffract.
    """
    indexed, level = maps["phase_id"] >= 0, np.log(np.maximum(maps["diffuse"], 1e-9))
    nothing = np.zeros(indexed.shape, bool)
    if not indexed.any() or indexed.all():
        return nothing
    least = float(np.quantile(level[indexed], 0.01))
    pores = level[~indexed & (level < least)]
    if len(pores) < 3 or np.median(pores) > least - max(2 * float(pores.std()), 0.05):
        return nothing
    return ~indexed & (level > (least + np.median(pores)) / 2)


_HIDDEN_REACH = 3.0  # patterns (standard deviation), over which the evidence of hidden material is pooled
_HIDDEN_WEIGHT = 4 / 3  # of the pooled evidence a pattern in its probability: of a few neighbours, and less, since they err alike


def with_hidden_material(maps: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The maps with a phase for every pattern of `hidden_material`: the one with the most support in it and those about it.

    Alone, such patterns say little; pooled, the true phase has the most support. Their ``probability`` is that of the pooled
    support, weakened, and each connected piece is one crystal, so that it errs as a whole; they are not ``decided`` and
    have no ``lattice_id``. ``indexed_phase_id`` keeps the phases as indexed.
    """
    from scipy import ndimage

    hidden = hidden_material(maps)
    filled = maps | {"indexed_phase_id": maps["phase_id"]}
    if not hidden.any():
        return filled
    around = np.ones((3, 3))
    spread = lambda field: ndimage.gaussian_filter(field, _HIDDEN_REACH, mode="constant")
    held = np.maximum(spread(hidden.astype(float)), 1e-9)
    pooled = np.stack([spread(s) / held for s in np.clip(maps["support"], -20, 20) * hidden])
    weight = np.exp(_HIDDEN_WEIGHT * (pooled - pooled.max(axis=0)))
    piece, _ = ndimage.label(hidden, around)
    crystal = max(maps["crystal_id"].max(), maps["second_crystal_id"].max()) + 1 + piece
    changes = {"phase_id": np.argmax(pooled, axis=0), "share": 1.0, "crystal_id": crystal, "decided": False, "lattice_id": -1}
    changes |= {"second_phase_id": -1, "second_share": 0.0, "second_crystal_id": -1, "probability": weight / weight.sum(axis=0)}
    return filled | {name: np.where(hidden, value, maps[name]) for name, value in changes.items()}


def _as_indexed(maps: dict[str, np.ndarray]) -> np.ndarray:
    """Phases (ny, nx) as 06 indexed them, without what `with_hidden_material` added."""
    return maps.get("indexed_phase_id", maps["phase_id"])


# --- known mixtures of recorded patterns --------------------------------------------------------


def busiest_window(maps: dict[str, np.ndarray], most_patterns: int = 2304) -> tuple[slice, slice]:
    """The part of a scan (slices in y and x) of at most so many patterns that holds the most patterns of two phases."""
    ny, nx = maps["phase_id"].shape
    side = math.isqrt(most_patterns)
    height = min(ny, max(side, most_patterns // nx))
    width = min(nx, most_patterns // height)
    total = np.pad(np.cumsum(np.cumsum(maps["second_phase_id"] >= 0, axis=0), axis=1), ((1, 0), (1, 0)))
    held = total[height:, width:] - total[:-height, width:] - total[height:, :-width] + total[:-height, :-width]
    y, x = (int(v) for v in np.unravel_index(np.argmax(held), held.shape))
    return slice(y, y + height), slice(x, x + width)


def spike_in(
    patterns: np.ndarray, calibration: Calibration, maps: dict[str, np.ndarray], *, seed: int = 1, nearest: int = 4
) -> tuple[np.ndarray, np.ndarray]:
    """A scan whose patterns of two phases are replaced by mixtures of recorded patterns in known shares.

    Each pattern that `decide_phases` gave a second phase becomes the sum of one recorded pattern of its
    larger crystal alone and one of its second crystal alone, each of the ``nearest`` ones at random, thinned to the
    shares that were found; all others stay as they are.

    Parameters
    ----------
    patterns
        Recorded (ny, nx, ky, kx).
    calibration
        Of these patterns; its gain and offset make counts of them.
    maps
        Maps (ny, nx) as `load_maps` gives them.

    Returns
    -------
    Counts (ny, nx, ky, kx) float32 (gain 1, offset 0), and a mask (ny, nx) of the patterns that were made.
    """
    from scipy.spatial import cKDTree

    rng = np.random.default_rng(seed)
    counts = np.rint(np.maximum((patterns.astype(np.float32) - calibration.offset) / calibration.gain, 0)).astype(np.int32)
    spiked, made = counts.astype(np.float32), np.zeros(maps["phase_id"].shape, bool)
    alone = (maps["phase_id"] >= 0) & (maps["share"] > 0.97) & (maps["correlation"] >= 0.5) & (maps["crystal_id"] >= 0)
    donors = {c: np.argwhere(alone & (maps["crystal_id"] == c)) for c in np.unique(maps["crystal_id"][alone])}
    trees = {c: cKDTree(places) for c, places in donors.items()}
    share_of_second = _second_of_two(maps)
    for y, x in np.argwhere((maps["phase_id"] >= 0) & (maps["second_phase_id"] >= 0)):
        pair = maps["crystal_id"][y, x], maps["second_crystal_id"][y, x]
        if pair[0] not in donors or pair[1] not in donors:
            continue
        second = share_of_second[y, x]
        mixture = np.zeros(patterns.shape[2:], np.int64)
        for crystal, kept in zip(pair, (1 - second, second), strict=True):
            k = min(nearest, len(donors[crystal]))
            close = np.atleast_1d(trees[crystal].query((y, x), k=k)[1])
            v, u = donors[crystal][close[rng.integers(k)]]
            moved = np.rint(calibration.centre_px[y, x] - calibration.centre_px[v, u]).astype(int)
            mixture += rng.binomial(np.roll(counts[v, u], tuple(moved), (0, 1)), kept)
        spiked[y, x], made[y, x] = mixture, True
    return spiked, made


def _second_of_two(maps: dict[str, np.ndarray]) -> np.ndarray:
    """Share (ny, nx) of the second crystal in what it and the first hold together."""
    return maps["second_share"] / np.maximum(maps["share"] + maps["second_share"], 1e-9)


@dataclass(frozen=True)
class Trial:
    """What became of known mixtures: one row for each (n,).

    ``pair`` numbers their two crystals, ``lead`` and ``second`` are the phases put in and ``found`` the phase found (-1: none),
    ``put_in`` the log-odds of the first crystal against the second and ``error`` by how much more those found are;
    ``several`` whether a second phase was seen.
    """

    pair: np.ndarray
    lead: np.ndarray
    second: np.ndarray
    found: np.ndarray
    put_in: np.ndarray
    error: np.ndarray
    several: np.ndarray


_LEAST_ODDS = 0.02  # of a share, added to both sides of every ratio


def log_odds(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Logarithm of the ratio of two shares, finite where one of them is 0.

    >>> float(log_odds(np.array(0.5), np.array(0.5)))
    0.0
    """
    return np.log((first + _LEAST_ODDS) / (second + _LEAST_ODDS))


def judge_trial(maps: dict[str, np.ndarray], made: np.ndarray, found: Indexing, decision: dict[str, np.ndarray]) -> Trial:
    """Compare the mixtures that `spike_in` made from ``maps`` with what the matching found in them."""
    lead, second = maps["phase_id"][made], maps["second_phase_id"][made]
    pairs = np.stack([maps["crystal_id"][made], maps["second_crystal_id"][made]], axis=-1)
    _, pair = np.unique(pairs, axis=0, return_inverse=True)
    held = [np.where(found.part_phase[made] == k[:, None], found.part_share[made], 0.0).sum(axis=-1) for k in (lead, second)]
    share = _second_of_two(maps)[made]
    put_in = log_odds(1 - share, share)
    error = np.clip(log_odds(*held) - put_in, -2.5, 2.5)
    return Trial(pair.ravel(), lead, second, decision["phase_id"][made], put_in, error, decision["second_phase_id"][made] >= 0)


def no_trial() -> Trial:
    """The trial of a scan in which no mixtures can be made."""
    return Trial(*(np.zeros(0, kind) for kind in (int, int, int, int, float, float, bool)))


def try_mixtures(
    patterns: np.ndarray, calibration: Calibration, banks: list[TemplateBank], maps: dict[str, np.ndarray],
    thresholds: dict[str, float] | None = None, *, trials: Iterable[int] = range(3), seed: int = 1, **options: Any,
) -> Trial:  # fmt: skip
    """Make known mixtures of a scan (ny, nx, ky, kx) and match them as `map_scan` did, once for each of ``trials``.

    ``maps`` are those of the scan; ``thresholds`` and ``options`` those of `map_scan`. Empty where no mixtures can be made.
    """
    counting, results = replace(calibration, gain=1.0, offset=0.0), [no_trial()]
    for number in trials:
        mixtures, made = spike_in(patterns, calibration, maps, seed=seed + number)
        if not made.any():
            break
        again, found, _ = map_scan(mixtures, counting, banks, thresholds, **options)
        results.append(judge_trial(maps, made, found, again))
    return Trial(*(np.concatenate([getattr(t, f.name) for t in results]) for f in dataclasses.fields(Trial)))


def confusion(trial: Trial, n_phases: int) -> np.ndarray:
    """Mixtures counted by larger phase put in (rows, p) and phase found (columns, p + 1, the last not indexed)."""
    counts = np.zeros((n_phases, n_phases + 1), int)
    np.add.at(counts, (trial.lead, np.where(trial.found < 0, n_phases, trial.found)), 1)
    return counts


def misclassification(trial: Trial, maps: dict[str, np.ndarray], wanted: int, inside: np.ndarray) -> tuple[float, float, float]:
    """What misclassification adds to the share of a phase, as the trial says: bias, its standard error, and a correction.

    The trial's patterns stand for all mixtures of the map, the unseen ones too: of the known mixtures a share was seen
    as such. The standard error is that of the sum over pairs of crystals. As correction the bias is drawn towards zero
    by how far it stands out of that error (of two independent estimates, zero and the bias, weighted by their
    squared errors), because a bias that is not known does more harm when it is taken off.
    """
    n_inside = int(inside.sum())
    if len(trial.pair) == 0 or n_inside == 0:
        return 0.0, 0.0, 0.0
    seen = max(trial.several.mean(), 0.2)
    mixtures = (maps["second_phase_id"] >= 0).sum() / seen
    gained = ((trial.found == wanted).astype(float) - (trial.lead == wanted)) * mixtures / len(trial.pair) / n_inside
    by_pair = np.bincount(trial.pair, gained)
    bias, error = float(by_pair.sum()), float(np.sqrt((by_pair**2).sum()))
    return bias, error, bias**3 / (bias**2 + error**2) if error > 0 else 0.0


def detection_limit(trial: Trial, maps: dict[str, np.ndarray], wanted: int, inside: np.ndarray) -> float:
    """The smallest share of the patterns ``inside`` (ny, nx) that counts as detected.

    The 95 % upper bound (Poisson) of how many patterns would be given the phase if there were none of it: mixtures
    of other phases that the trial gave it, scaled to all mixtures of the map, and
    what its probability adds up to in patterns that other phases won. With nothing seen it is the rule of three.
    """
    from scipy.stats import gamma

    n_inside = max(int(inside.sum()), 1)
    without = (trial.lead != wanted) & (trial.second != wanted)
    mixtures = (maps["second_phase_id"] >= 0).sum()
    rate = float((trial.found[without] == wanted).mean()) if without.any() else 0.0
    lost = inside & (_as_indexed(maps) >= 0) & (maps["phase_id"] != wanted) & (maps["second_phase_id"] < 0)
    false = rate * mixtures + float(maps["probability"][wanted][lost].sum())
    return float(min(1.0, gamma.ppf(0.95, false + 1) / n_inside))


# --- how else the map could have come out ---------------------------------------------------------


def resampling_units(maps: dict[str, np.ndarray], inside: np.ndarray, least_patterns: int = 10) -> np.ndarray:
    """Numbers (ny, nx) of the grains with the layers on their lattices, -1 outside a mask (ny, nx): what varies together.

    Patterns of one lattice are one unit, wherever their phase changes; pieces of fewer than ``least_patterns``, which are
    seldom grains, belong to the nearest larger unit.
    """
    from scipy import ndimage

    lattice = np.where(inside, maps["lattice_id"], -1)
    names, size = np.unique(lattice[lattice >= 0], return_counts=True)
    large = np.isin(lattice, names[size >= least_patterns]) if len(names) else np.zeros(inside.shape, bool)
    if not large.any():
        return np.where(inside, 0, -1)
    nearest = ndimage.distance_transform_edt(~large, return_distances=False, return_indices=True)
    _, unit = np.unique(lattice[tuple(nearest)], return_inverse=True)
    return np.where(inside, unit.reshape(inside.shape), -1)


@dataclass(frozen=True)
class Spread:
    """How much else a map could have come out, as a `Trial` says (`spread_of`).

    ``between`` and ``within`` are the standard deviations, in log-odds, of shares found from one pair of crystals to
    the next and between patterns of a pair; ``unseen`` is how many mixtures a seen one hides that were taken for their
    smaller crystal alone.
    """

    between: float
    within: float
    unseen: float


_PRIOR_BETWEEN, _PRIOR_WITHIN = 0.7, 0.8  # of simulated scans; they count as much as ...
_PRIOR_PAIRS, _PRIOR_MIXTURES = 8, 40  # ... so many pairs of crystals and mixtures of the scan's own


def spread_of(trial: Trial) -> Spread:
    """What a trial says of the shares of a scan.

    A one-way analysis of variance over the mixtures whose smaller share is over 0.2, drawn towards what
    simulated scans gave where the scan has few pairs.
    """
    near = trial.put_in < math.log(0.8 / 0.2)
    _, pair = np.unique(trial.pair[near], return_inverse=True)
    n = np.bincount(pair)
    mean = np.bincount(pair, trial.error[near]) / np.maximum(n, 1)
    squares = float(((trial.error[near] - mean[pair]) ** 2).sum()) if near.any() else 0.0
    freedom = max(int(near.sum()) - len(n), 0)
    within = math.sqrt((_PRIOR_MIXTURES * _PRIOR_WITHIN**2 + squares) / (_PRIOR_MIXTURES + freedom))
    often = n >= 4
    excess = float((mean[often] ** 2 - within**2 / n[often]).sum())
    between = math.sqrt((_PRIOR_PAIRS * _PRIOR_BETWEEN**2 + max(excess, 0.0)) / (_PRIOR_PAIRS + int(often.sum())))
    hidden = int(((trial.found == trial.second) & ~trial.several).sum())
    return Spread(between, within, (hidden + 1) / (int(trial.several.sum()) + _PRIOR_MIXTURES))


def neighbouring_phase(phase_id: np.ndarray) -> np.ndarray:
    """The most frequent other phase among the eight neighbours of every indexed pattern, (ny, nx), -1 where there is none."""
    around = _eight_neighbours(phase_id)
    often = np.stack([(around == k).sum(axis=0) * (phase_id != k) for k in range(int(phase_id.max(initial=0)) + 1)])
    return np.where((phase_id >= 0) & (often.max(axis=0) > 0), np.argmax(often, axis=0), -1)


def drawn_counts(maps: dict[str, np.ndarray], group: np.ndarray, spread: Spread, *, draws: int = 400, seed: int = 1) -> np.ndarray:
    """How many patterns of each group would be of each phase, had the errors come out otherwise: (draws, groups, p).

    Where two phases share a pattern, their log-odds vary by ``spread``: one part is common to all patterns of a crystal, one is the
    pattern's own. Patterns of one crystal beside another phase may be mixtures that were not seen, and more so
    all along one crystal than another. All others are drawn by the probability of their phases, those of a crystal alike.

    Parameters
    ----------
    maps
        As `load_maps` gives them.
    group
        (ny, nx) number of the group a pattern is counted in, -1 for none.
    """
    inside = (group >= 0) & (maps["phase_id"] >= 0)
    number, phase, second = group[inside], maps["phase_id"][inside], maps["second_phase_id"][inside]
    several, beside = second >= 0, neighbouring_phase(maps["phase_id"])[inside]
    p, n_groups = len(maps["probability"]), int(group.max(initial=-1)) + 1
    share = _second_of_two(maps)[inside][several]
    odds = log_odds(1 - share, share)
    crystal = np.stack([maps["crystal_id"][inside], maps["second_crystal_id"][inside]], axis=-1)
    lone = crystal < 0
    crystal[lone] = crystal.max(initial=-1) + 1 + np.arange(lone.sum())
    crystal = np.unique(crystal, return_inverse=True)[1].reshape(-1, 2)
    n_crystals, of_pair = int(crystal.max(initial=-1)) + 1, crystal[several]
    edge = np.flatnonzero(~several & (beside >= 0))
    hidden = spread.unseen * several.sum() / max(len(edge), 1)
    cumulative = np.cumsum(maps["probability"][:, inside], axis=0)[:-1]
    open_ = np.flatnonzero(~several & ((cumulative > 1e-6) & (cumulative < 1 - 1e-6)).any(axis=0))
    cumulative = cumulative[:, open_]
    rng = np.random.default_rng(seed)
    result = np.zeros((draws, n_groups, p), np.int32)
    drawn = phase.copy()
    for i in range(draws):
        off = rng.normal(0, spread.between / math.sqrt(2), n_crystals)
        off = off[of_pair[:, 0]] - off[of_pair[:, 1]] + rng.normal(0, spread.within, len(odds))
        drawn[several] = np.where(odds + off >= 0, phase[several], second[several])
        drawn[edge] = phase[edge]
        drawn[open_] = (rng.random(n_crystals)[crystal[open_, 0]] > cumulative).sum(axis=0)
        missed = rng.random(len(edge)) < (2 * hidden * rng.gamma(0.5, size=n_crystals))[crystal[edge, 0]]
        drawn[edge[missed]] = beside[edge[missed]]
        result[i] = np.bincount(number * p + drawn, minlength=n_groups * p).reshape(n_groups, p)
    return result


@dataclass(frozen=True)
class Fraction:
    """A share of an area: ``raw`` counts winners, ``value`` is corrected for misclassification, with the 95 % interval ``low`` to ``high``.

    That interval is for the area that was scanned. ``draws`` (d,) are what it rests on; ``elsewhere`` (d,) is how
    the value would vary over other areas of the same lamella, its grains resampled, or None where there is only one.
    ``bias`` and ``bias_error`` are what misclassification adds, as known mixtures say (`misclassification`).
    """

    value: float
    low: float
    high: float
    raw: float
    draws: np.ndarray
    elsewhere: np.ndarray | None
    detection_limit: float = 0.0
    bias: float = 0.0
    bias_error: float = 0.0

    @property
    def detected(self) -> bool:
        """Over what false patterns alone reach once in twenty scans, as indexed too, and with an interval that leaves zero out."""
        return min(self.value, self.raw) > self.detection_limit and self.low > 0

    @property
    def upper_limit(self) -> float:
        """What the share is below, where it is not detected."""
        return max(self.detection_limit, self.high)

    @property
    def elsewhere_ci95(self) -> tuple[float, float] | None:
        """95 % interval of the lamella beyond the scanned area."""
        if self.elsewhere is None:
            return None
        low, high = np.quantile(self.elsewhere, [0.025, 0.975])
        return float(low), float(high)

    @property
    def n_effective(self) -> float | None:
        """How many independent observations would vary as much from area to area."""
        if self.elsewhere is None or not 0 < self.value < 1 or self.elsewhere.var() == 0:
            return None
        return float(self.value * (1 - self.value) / self.elsewhere.var())


_BEYOND_TRIAL = 1.25  # errors over the draws' spread: crystals that nowhere lie alone cannot be tried (over simulated scans; see 09)


def phase_fraction(
    raw: float, counts: np.ndarray, wanted: int, among: list[int], correction: tuple[float, float] = (0.0, 0.0), *,
    n_units: int | None = None, seed: int = 1,
) -> Fraction:  # fmt: skip
    """The share of one phase in the area of several.

    Parameters
    ----------
    raw
        The share of winners.
    counts
        (draws, groups, p) patterns as `drawn_counts` gives them, the groups those of `resampling_units`.
    wanted, among
        Number of the phase, and of all phases of the area.
    correction
        What misclassification is taken to add, and the standard error of that and of what else adds (the scale).
    n_units
        How many of the groups, the first ones, are resampled for the lamella elsewhere; None is all of them.

    Returns
    -------
    `Fraction`. Its draws vary about the corrected value as those of the map about their mean: the
    draws themselves would count the errors of the map twice. `ResultError` where the area is empty.
    """
    area, mine = counts[:, :, among].sum(axis=2), counts[:, :, wanted]
    if counts.size == 0 or not area.sum(axis=1).all():
        raise ResultError("no pattern of an NCM phase: a fraction of the NCM area does not exist here")
    rng = np.random.default_rng(seed)
    value = float(np.clip(raw - correction[0], 0, 1))
    share = mine.sum(axis=1) / area.sum(axis=1)
    draws = np.clip(value + _BEYOND_TRIAL * (share - share.mean()) + rng.normal(0, correction[1], len(share)), 0, 1)
    n = counts.shape[1] if n_units is None else n_units
    elsewhere = None
    if n > 1:
        chosen = rng.multinomial(n, np.full(n, 1 / n), size=len(share))
        of_units = [(chosen * c[:, :n]).sum(axis=1) + c[:, n:].sum(axis=1) for c in (mine, area)]
        resampled = of_units[0] / np.maximum(of_units[1], 1)
        elsewhere = np.clip(value + math.sqrt(n / (n - 1)) * (resampled - resampled.mean()), 0, 1)
    low, high = np.quantile(draws, [0.025, 0.975])
    return Fraction(value, float(min(low, value)), float(max(high, value)), raw, draws, elsewhere)


def counted_shares(phase_id: np.ndarray, phases: list[str]) -> tuple[dict[str, float], int, float | None]:
    """Share of each phase in a map, the number of its NCM patterns, and the rocksalt's share of those (None where there are none).

    Counted, not corrected: `phase_fraction` measures what matching gets wrong and gives the interval.

    >>> counted_shares(np.array([[0, 0, 1, -1]]), ["layered", "rocksalt"])
    ({'layered': 0.5, 'rocksalt': 0.25}, 3, 0.3333333333333333)
    """
    shares = {phase: float((phase_id == k).mean()) for k, phase in enumerate(phases)}
    ncm = np.isin(phase_id, [k for k, phase in enumerate(phases) if phase in NCM_PHASES])
    rocksalt = np.isin(phase_id, [k for k, phase in enumerate(phases) if phase == "rocksalt"])
    return shares, int(ncm.sum()), float(rocksalt.sum() / ncm.sum()) if ncm.any() else None


def corrected_fraction(
    maps: dict[str, np.ndarray], trial: Trial, counts: np.ndarray, wanted: int, among: list[int], *, scale_error: float = 0.0,
    n_units: int | None = None, seed: int = 1,
) -> Fraction:  # fmt: skip
    """`phase_fraction` of a map, corrected for `misclassification` and with its `detection_limit`.

    ``scale_error`` is the standard error that the camera's scale brings to the share. Under the limit the interval is
    all that the limit leaves open, from zero on.
    """
    inside = np.isin(maps["phase_id"], among)
    bias, error, correction = misclassification(trial, maps, wanted, inside)
    counted = float((maps["phase_id"][inside] == wanted).mean()) if inside.any() else 0.0
    not_known = error * math.sqrt(correction / bias) if bias else 0.0  # what is left of the bias's error after the weighing
    taken_off = (correction, math.hypot(not_known, scale_error))
    fraction = phase_fraction(counted, counts, wanted, among, taken_off, n_units=n_units, seed=seed)
    indexed = _as_indexed(maps)
    indexed = indexed[np.isin(indexed, among)]
    raw = float((indexed == wanted).mean()) if len(indexed) else 0.0
    limit = detection_limit(trial, maps, wanted, inside)
    if min(fraction.value, raw) <= limit:
        fraction = replace(fraction, low=0.0, high=max(fraction.high, limit))
    return replace(fraction, raw=raw, detection_limit=limit, bias=bias, bias_error=error)


# --- where a phase sits ---------------------------------------------------------------------------


def share_by_bin(
    maps: dict[str, np.ndarray], units: np.ndarray, bins: np.ndarray, spread: Spread, among: list[int], *, draws: int = 400, seed: int = 1,
) -> list[dict[str, Any]]:  # fmt: skip
    """The share of each of several phases in their common area, bin by bin, with 95 % intervals over resampled units and drawn errors.

    ``units`` (ny, nx) of `resampling_units`, ``bins`` (ny, nx) numbers of bins; -1 is outside of either. Returns for every phase of
    ``among`` and every bin ``phase``, ``bin``, ``share``, ``ci95`` and ``n_patterns``; bins without a pattern are left out.
    """
    n_bins, n_units = int(bins.max(initial=-1)) + 1, int(units.max(initial=-1)) + 1
    counts = drawn_counts(maps, np.where((units >= 0) & (bins >= 0), units * n_bins + bins, -1), spread, draws=draws, seed=seed)
    missing = n_units * n_bins - counts.shape[1]
    counts = np.pad(counts, ((0, 0), (0, missing), (0, 0))).reshape(draws, n_units, n_bins, -1)[..., among]
    rng = np.random.default_rng(seed)
    chosen = rng.multinomial(n_units, np.full(n_units, 1 / n_units), size=draws) if n_units > 1 else np.ones((draws, n_units), int)
    mine = np.einsum("du,dubp->dbp", chosen, counts)
    rows = []
    for b in range(n_bins):
        here = maps["phase_id"][(bins == b) & (units >= 0) & np.isin(maps["phase_id"], among)]
        drawn = mine[:, b][mine[:, b].sum(axis=1) > 0]
        for place, k in enumerate(among if len(here) else ()):
            share = float((here == k).mean())
            low, high = np.quantile(drawn[:, place] / drawn.sum(axis=1), [0.025, 0.975]) if len(drawn) else (share, share)
            ci95 = [float(min(low, share)), float(max(high, share))]
            rows.append({"phase": k, "bin": b, "share": share, "ci95": ci95, "n_patterns": len(here)})
    return rows


def unit_boundaries(units: np.ndarray) -> np.ndarray:
    """Patterns (ny, nx) that touch, by an edge, one of another unit; -1 is no unit."""
    a, b = _neighbour_pairs(*units.shape)
    number, result = units.ravel(), np.zeros(units.size, bool)
    apart = (number[a] != number[b]) & (number[a] >= 0) & (number[b] >= 0)
    result[a[apart]] = result[b[apart]] = True
    return result.reshape(units.shape)


def topotactic_patterns(maps: dict[str, np.ndarray], wanted: int, others: list[int]) -> tuple[int, int]:
    """How many patterns of a phase that touch one of ``others`` share its lattice, and how many touch one at all."""
    beside = (maps["phase_id"] == wanted) & np.isin(_eight_neighbours(maps["phase_id"]), others)
    lattice = _eight_neighbours(maps["lattice_id"])
    joined = beside & (lattice >= 0) & (lattice == maps["lattice_id"])
    return int(joined.any(axis=0).sum()), int(beside.any(axis=0).sum())


def layer_at(wanted: np.ndarray, facing: np.ndarray, body: np.ndarray, step_nm: float) -> dict[str, Any]:
    """The layer that a phase forms where a body faces something else.

    Parameters
    ----------
    wanted, body, facing
        Masks (ny, nx) of the phase, of the body it is part of, and of what the body faces.

    Returns
    -------
    ``covered``, the share of the body's patterns along that boundary that are of the phase; ``thickness_nm``, the area of
    the phase that hangs together with it over the length covered; ``resolved``: that is at least two steps of the scan,
    else the layer is thinner than the map can tell. Empty where the body does not face it.
    """
    from scipy import ndimage

    around = np.ones((3, 3), bool)
    edge = body & ndimage.binary_dilation(facing, around)
    if not edge.any():
        return {}
    covered = edge & wanted
    label, _ = ndimage.label(wanted, around)
    layer = np.isin(label, np.unique(label[covered])) & (label > 0)
    thickness = float(layer.sum() / max(covered.sum(), 1)) * step_nm
    return {"covered": float(covered.sum() / edge.sum()), "thickness_nm": thickness, "resolved": bool(thickness >= 2 * step_nm)}


# --------------------------------------------------------------------------------------
# 08 Comparison
# --------------------------------------------------------------------------------------


COMPARISON_COLUMNS = ["sample", "temperature_C", "rocksalt_fraction", "ci95_low", "ci95_high", "n_patterns_ncm", "n_grains"]


def condition_name(temperature_C: float | None) -> str:
    """What a reader calls the condition: pressed and not sintered is one of its own.

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
        except WorkbookError as error:
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
        "n_patterns_ncm": fraction.get("n_patterns_ncm"),
        "n_grains": fraction.get("n_grains"),
        "detection_limit": fraction.get("detection_limit"),
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
    said = {step: read_result(folder.parent, folder.name, step).get("by_hand") for step in made}
    return {step: choice["statement"] for step, choice in said.items() if choice}


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
    said = []
    mapped = [s for s in samples if s["has_map"]]
    candidates = {tuple(sorted(s["phases"])) for s in mapped}
    if len(candidates) > 1:
        each = listed((f"{s['sample']}: {', '.join(s['phases'])}" for s in mapped), "; ")
        said.append(f"The scans were matched with different candidate phases, so their fractions do not mean the same ({each}).")
    untrusted = [s["sample"] for s in mapped if s.get("calibration_trusted") is False]
    if untrusted:
        said.append(f"The calibration is not trusted for {listed(untrusted)}.")
    for kind, name in (("03_haadf_surface_dose_e_per_A2", "HAADF images"), ("02_cryo_stem_drift_used_dose_e_per_A2", "cryo-STEM averages")):
        doses = {s["sample"]: s["doses"][kind] for s in samples if s["doses"].get(kind)}
        if len(doses) > 1 and max(doses.values()) > most_dose_ratio * min(doses.values()):
            each = listed(f"{k} {v:.4g} e/Å²" for k, v in doses.items())
            said.append(f"The doses of the {name} differ ({each}), and the beam itself makes spinel and rocksalt.")
    said += [f"{s['sample']}, {step}: {words}" for s in samples for step, words in s.get("by_hand", {}).items()]
    if len(samples) > 1 and len({condition_name(s["temperature_C"]) for s in samples}) == len(samples):
        said.append(
            "There is one lamella for each condition, so these numbers compare lamellae: they cannot tell the part of the temperature from "
            "that of the specimen."
        )
    return said


def difference(first: np.ndarray, second: np.ndarray) -> dict[str, float]:
    """Second minus first, of two independent quantities given by quantiles at equal steps of probability.

    Returns ``ci95_low``, ``ci95_high`` and ``probability_of_increase``; equal values count half.

    >>> difference(np.linspace(0, 1, 101), np.linspace(2, 3, 101))["probability_of_increase"]
    1.0
    """
    middle = [(np.asarray(q, float)[1:] + np.asarray(q, float)[:-1]) / 2 for q in (first, second)]
    change = middle[1][:, None] - middle[0][None, :]
    low, high = np.quantile(change, [0.025, 0.975])
    increase = float((change > 0).mean() + (change == 0).mean() / 2)
    return {"ci95_low": float(low), "ci95_high": float(high), "probability_of_increase": increase}


def compare_fractions(rows: list[dict[str, Any]], phase: str = "rocksalt") -> list[dict[str, Any]]:
    """Pairwise differences of a phase's fractions with 95 % intervals and the probability of an increase.

    ``rows`` hold ``sample``, ``<phase>_fraction`` and its quantiles, for the scanned areas and, with ``elsewhere_``
    before the names of the result, for the lamellae they were taken from (absent where one has one grain only).
    """
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
    """The fraction of every condition over its lamellae, and differences of conditions: a random-effects model.

    A lamella's fraction scatters about its condition's mean by what its grains say (``<phase>_elsewhere_quantiles``) and by a
    variance between lamellae that all conditions share (DerSimonian & Laird 1986, by statsmodels, pooled by degrees of freedom).
    Only several lamellae of one condition can tell that.

    Returns
    -------
    ``conditions`` (name, ``n_lamellae``, ``mean``, ``ci95``), ``between_lamellae_sd`` and ``differences``; where no condition
    has two lamellae there are no ``ci95``, no differences, and the standard deviation is None with its reason.
    """
    from scipy.stats import t
    from statsmodels.stats.meta_analysis import combine_effects

    groups: dict[str, list[tuple[float, float]]] = {}
    for row in rows:
        quantiles = row.get(f"{phase}_elsewhere_quantiles")
        quantiles = np.asarray(row[f"{phase}_fraction_quantiles"] if quantiles is None else quantiles, float)
        spread = max(float(np.diff(np.quantile(quantiles, [0.1587, 0.8413]))[0]) / 2, 1e-4)
        groups.setdefault(condition_name(row["temperature_C"]), []).append((row[f"{phase}_fraction"], spread**2))
    freedom = sum(len(g) - 1 for g in groups.values())
    between = 0.0
    for effects in groups.values():
        if len(effects) > 1:
            value, variance = np.array(effects).T
            between += (len(effects) - 1) * float(combine_effects(value, variance, method_re="dl").tau2) / freedom
    means = {}
    for name, effects in groups.items():
        value, variance = np.array(effects).T
        weight = 1 / (variance + max(between, 0.0))
        means[name] = (float((weight * value).sum() / weight.sum()), float(1 / weight.sum()))
    conditions: list[dict[str, Any]] = [{"condition": k, "n_lamellae": len(groups[k]), "mean": mean} for k, (mean, _) in means.items()]
    if not freedom:
        reason = "no condition has more than one lamella"
        return {"conditions": conditions, "between_lamellae_sd": None, "between_lamellae_sd_reason": reason, "differences": []}
    reach = float(t.ppf(0.975, freedom))
    for row, (mean, variance) in zip(conditions, means.values(), strict=True):
        row["ci95"] = [max(0.0, mean - reach * math.sqrt(variance)), min(1.0, mean + reach * math.sqrt(variance))]
    differences = []
    for a, b in itertools.combinations(means, 2):
        change, error = means[b][0] - means[a][0], math.sqrt(means[a][1] + means[b][1])
        interval = {"ci95_low": change - reach * error, "ci95_high": change + reach * error}
        increase = float(t.cdf(change / error, freedom))
        differences.append({"from": a, "to": b, "difference": change, **interval, "probability_of_increase": increase})
    return {"conditions": conditions, "between_lamellae_sd": math.sqrt(max(between, 0.0)), "differences": differences}


# --------------------------------------------------------------------------------------
# Explore: widgets for JupyterLab. They show and ask; all that is computed comes from the functions above.
# --------------------------------------------------------------------------------------


def in_jupyterlab() -> bool:
    """Whether someone runs this cell in JupyterLab, which names the cell to the kernel; batch runs skip what is made for hands."""
    from IPython import get_ipython

    shell = get_ipython()
    parent: dict[str, Any] = getattr(shell, "get_parent", dict)()
    return shell is not None and "cellId" in parent.get("metadata", {})


class _CancelledError(Exception):
    """The user wants no more of a computation."""


class _Work:
    """One long computation at a time beside the widgets: a bar, a button that cancels it, and a message where it fails.

    What is started later takes the place of what runs: that goes on to its next step, and its result is dropped. ``lock`` is the
    explorer's: what a computation ends with and what a user does never happen at once.
    """

    def __init__(self, say: Callable[[str], None], lock: Any):
        import ipywidgets

        self.say, self.lock = say, lock
        self.bar = ipywidgets.FloatProgress(min=0, max=1, description="", layout={"width": "16em"})
        self.cancel_button = ipywidgets.Button(description="Cancel", tooltip="Stop this computation", layout={"width": "6em"})
        self.cancel_button.on_click(lambda _: self.cancel())
        self.box = ipywidgets.HBox([self.bar, self.cancel_button], layout={"visibility": "hidden"})
        self._current = 0
        self._back: Callable[[], None] = lambda: None
        self.thread: threading.Thread | None = None

    @property
    def running(self) -> bool:
        return self.box.layout.visibility == "visible"

    def cancel(self) -> None:
        """Drop what runs, and go back to what was before."""
        with self.lock:
            if self.running:
                self._end()
                self._back()
                self.say("Cancelled; nothing has changed.")

    def drop(self) -> None:
        """Drop what runs without a word: something else takes its place."""
        with self.lock:
            if self.running:
                self._end()

    def _end(self) -> None:
        self._current += 1
        self.box.layout.visibility = "hidden"

    def start(self, label: str, compute: Callable[[Callable], Any], done: Callable[[Any], None], back: Callable[[], None]) -> None:
        """Run ``compute(progress)`` beside, ``progress`` wrapping what it loops over, then ``done(result)``; ``back()`` where not."""
        if not self.running:
            self._back = back
        self._current += 1
        number = self._current
        self.bar.description, self.bar.value = label, 0.0
        self.box.layout.visibility = "visible"

        def progress(items: Any, total: int | None = None) -> Iterator:
            items = list(items) if total is None else items
            for k, item in enumerate(items):
                self._go_on(number, k / max(total or len(items), 1))
                yield item
            self._go_on(number, 1.0)

        def work() -> None:
            fault, result = "", None
            try:
                result = compute(progress)
            except _CancelledError:
                return
            except WorkbookError as error:
                fault = f"{type(error).__name__}: {error}"
            except Exception as error:  # nobody sees the traceback of a thread: say it, and go back
                fault = f"This failed: {type(error).__name__}: {error}"
            with self.lock:
                if number != self._current:
                    return
                self._end()
                if fault:
                    self._back()
                    self.say(fault)
                else:
                    done(result)

        self.thread = threading.Thread(target=work, daemon=True)
        self.thread.start()

    def _go_on(self, number: int, share: float) -> None:
        self.bar.value = share
        time.sleep(0.02)  # compiled code holds the interpreter: only here can the button for cancelling be heard
        if number != self._current:
            raise _CancelledError


#: JupyterLab takes arrows and letters for commands of its own before a control that has the focus sees them, unless that very element
#: says otherwise; sliders have no name that a screen reader could tell.
_CONTROLS_KEEP_KEYS = """window.explorersKeepKeys ||= (document.addEventListener("focusin", event => {
  const control = event.target.closest(".explorer .jupyter-widgets");
  if (!control) return;
  event.target.setAttribute("data-lm-suppress-shortcuts", "");
  const label = control.querySelector(".widget-label");
  if (label && !event.target.id) event.target.setAttribute("aria-label", label.textContent);
}, true), true);"""


class _Explorer:
    """A figure that answers mouse and keys, controls under it, a line that says what is shown, and a box to keep what was chosen.

    ``widget`` is all of it. Clicks, moves and keys reach ``on_click``, ``on_move``, ``on_key``; what a user keeps are the parameters
    of ``choice()``, made on the files ``made_on``.
    """

    made_on: tuple[Path, ...] = ()

    def __init__(self, run: Step, size_in: tuple[float, float], axes: Any, help_text: str):
        import ipywidgets
        from ipympl.backend_nbagg import Canvas, FigureManager
        from matplotlib.figure import Figure

        self.run = run
        self.figure = Figure(figsize=size_in, dpi=80, layout="constrained")
        self.canvas = Canvas(self.figure)
        self.manager = FigureManager(self.canvas, 0)
        for part in ("toolbar_visible", "header_visible", "footer_visible", "resizable"):
            setattr(self.canvas, part, False)
        self.canvas.add_class("explorer-canvas")
        self.axes = self.figure.subplot_mosaic(**axes)
        self.lock = threading.RLock()
        self._silent: list[Any] = []
        self._render, self.canvas.draw = self.canvas.draw, self._draw_alone
        self.status = ipywidgets.HTML()
        self.status.add_class("explorer-status")
        self.message = ipywidgets.HTML()
        self.message.add_class("explorer-message")
        self.work = _Work(self.say, self.lock)
        self.help = ipywidgets.HTML(f"<small>{help_text} Tab leaves the figure.</small>")
        for event, handler in (("button_press_event", "on_click"), ("motion_notify_event", "on_move"), ("key_press_event", "on_key"),
                               ("button_release_event", "on_release")):  # fmt: skip
            self.canvas.mpl_connect(event, functools.partial(self._handle, handler))
        if run.sample is not None:
            self.figure.suptitle(run.sample.title, fontsize=10)

    def guarded(self, act: Callable[[], None]) -> None:
        """Do what the user asks for, and say it where that cannot be done."""
        with self.lock:
            try:
                act()
            except (WorkbookError, OSError) as error:
                self.say(f"{type(error).__name__}: {error}")

    def _draw_alone(self) -> None:
        """Draw while no computation that ends beside changes the figure; a drawing that fails would be the canvas's last."""
        with self.lock:
            self._render()

    def _handle(self, name: str, event: Any) -> None:
        if name == "on_key" and event.key in ("tab", "escape"):  # the canvas takes every key: without this it would not let go of the focus
            self.first.focus()
            return
        self.guarded(lambda: getattr(self, name)(event))

    def on_click(self, event: Any) -> None:
        """A mouse button goes down."""

    def on_move(self, event: Any) -> None:
        """The mouse moves."""

    def on_release(self, event: Any) -> None:
        """A mouse button goes up."""

    def on_key(self, event: Any) -> None:
        """A key goes down while the figure has the focus."""

    def choice(self) -> dict[str, Any]:
        """The parameters that a user would keep."""
        return {}

    def say(self, text: str) -> None:
        """Show a sentence under the controls."""
        self.message.value = html.escape(text)

    def observe(self, control: Any, change: Callable[[], None]) -> None:
        """Call ``change`` whenever the value of a control does, unless it is set `silently`."""

        def handler(_: Any) -> None:
            if control not in self._silent:
                self.guarded(change)

        control.observe(handler, "value")

    @contextlib.contextmanager
    def silently(self, control: Any) -> Iterator[None]:
        """Set a control to what holds without acting on it."""
        self._silent.append(control)
        yield
        self._silent.remove(control)

    def button(self, label: str, act: Callable[[], None], tooltip: str = "") -> Any:
        """A button that calls ``act``."""
        import ipywidgets

        button = ipywidgets.Button(description=label, tooltip=tooltip or label, layout={"width": "auto"})

        button.on_click(lambda _: self.guarded(act))
        return button

    def keeping(self) -> Any:
        """The box in which a user keeps a choice with its reason, or forgets it."""
        import ipywidgets

        self.reason = ipywidgets.Text(placeholder="reason, kept with the choice", description="Why", layout={"width": "30em"})
        keep = self.button("Keep for batch runs", self.keep, "Write this choice to manual.yaml; runs use it and say so")
        forget = self.button("Forget", self.forget, "Take this step's entry out of manual.yaml")
        if self.run.by_hand:
            self.say(self.run.hand_choice_in_words())
        return ipywidgets.HBox([self.reason, keep, forget])

    def keep(self) -> None:
        """Write the choice to manual.yaml."""
        if len(self.reason.value.strip()) < 3:
            self.say("Not kept: say why first, in a few words. A choice without a reason is of no use to the next reader.")
            return
        kept = self.run.choose_by_hand(self.choice(), self.reason.value.strip(), self.made_on)
        if kept is None:
            self.say("Nothing to keep: these are the defaults. manual.yaml holds nothing for this step.")
            return
        told = ", ".join(f"{name} = {value}" for name, value in kept.parameters.items())
        self.say(f"Kept in {MANUAL} beside the results: {told}. Runs use it from now on and say so; run the notebook again to see it.")

    def forget(self) -> None:
        """Take the choice out of manual.yaml."""
        save_hand_choice(self.run.results, self.run.name, None)
        self.say("Forgotten: runs use the parameters' defaults again.")

    def arrange(self, *rows: Any) -> None:
        """Put the widget together and draw for the first time; the axes then stay where they are."""
        import ipywidgets

        self.figure.draw_without_rendering()
        self.figure.set_layout_engine("none")
        self.first = rows[0].children[0]
        self.widget = ipywidgets.VBox([self.canvas, self.status, *rows, self.work.box, self.message, self.help])
        self.widget.add_class("explorer")

    def draw(self) -> None:
        self.canvas.draw_idle()

    def _ipython_display_(self) -> None:
        from IPython.display import Javascript, display

        display(Javascript(_CONTROLS_KEEP_KEYS), self.widget)


def _table_html(head: Iterable[str], rows: Iterable[Iterable[Any]], caption: str = "") -> str:
    """A small table; all texts are escaped."""
    cell = lambda value, tag: f'<{tag} style="padding:0 .8em 0 0;text-align:left">{html.escape(str(value))}</{tag}>'
    row = lambda values, tag: f"<tr>{''.join(cell(value, tag) for value in values)}</tr>"
    told = f"<caption style='text-align:left'>{html.escape(caption)}</caption>" if caption else ""
    return f"<table>{told}<thead>{row(head, 'th')}</thead><tbody>{''.join(row(r, 'td') for r in rows)}</tbody></table>"


class DriftExplorer(_Explorer):
    """A stack frame by frame, with the drift and without; frames left out or taken in, with trajectory, average and FRC following.

    ``frames`` (n, y, x) and its ``solution`` as `register_stack` gives them, ``half`` as `half_average_resolution`; ``given`` its options.
    """

    def __init__(
        self, run: Step, frames: Any, solution: DriftSolution, pixel_nm: float, path: Path, half: dict | None = None, **given: Any
    ):  # fmt: skip
        import ipywidgets

        super().__init__(
            run, (11, 6.4), {"mosaic": [["recorded", "undone", "average"], ["path", "path", "frc"]], "height_ratios": [1.25, 1]},
            "Click on the trajectory, or use ← and → on the figure, to choose a frame; space leaves it out or takes it in.",
        )  # fmt: skip
        self.frames, self.pixel_nm, self.made_on, self.given = frames, pixel_nm, (path,), given
        self.solution, self.half = solution, half
        self.leave_out, self.take_in = set(given.pop("leave_out", ())), set(given.pop("take_in", ()))
        self.frame = ipywidgets.IntSlider(0, 0, len(frames) - 1, description="frame", layout={"width": "30em"})
        self.neighbours = ipywidgets.IntSlider(
            3, 1, 15, step=2, description="summed", tooltip="neighbours added up, so that something shows"
        )
        self.use = ipywidgets.ToggleButton(description="use this frame", value=bool(solution.used[0]), layout={"width": "auto"})
        self.observe(self.frame, self.show_frame)
        self.observe(self.neighbours, self.show_frame)
        self.observe(self.use, self.toggle)
        self.show_solution()
        self.show_frame()
        self.arrange(ipywidgets.HBox([self.frame, self.neighbours, self.use]), self.keeping())

    def choice(self) -> dict[str, Any]:
        return {"leave_out": sorted(self.leave_out), "take_in": sorted(self.take_in)}

    def show_frame(self) -> None:
        """The chosen frame, summed with its neighbours, as recorded and with the drift undone."""
        k, reach = self.frame.value, self.neighbours.value // 2
        near = [i for i in range(max(0, k - reach), min(len(self.frames), k + reach + 1)) if self.solution.used[i] or i == k]
        whole = -np.round(self.solution.shift_px).astype(int)
        pictures = (("recorded", np.zeros_like(whole)), ("undone", whole - whole[k]))
        for name, moved in pictures:
            image = sum(placed_frame(self.frames[i].astype(float), moved[i]) for i in near) / len(near)
            low, high = np.percentile(image, [1, 99.7])
            ax = self.axes[name]
            ax.clear()
            ax.imshow(image, cmap="gray", vmin=low, vmax=max(high, low + 1e-9))
            ax.set_xticks([])
            ax.set_yticks([])
            ax.set_title(f"frames {near[0]} to {near[-1]}, {'as recorded' if name == 'recorded' else 'drift undone'}", fontsize=9)
        self.mark.set_xdata([k, k])
        used = bool(self.solution.used[k])
        with self.silently(self.use):
            self.use.value, self.use.icon = used, "check" if used else "times"
            self.use.description = "frame is used" if used else "frame is left out"
        shift, sigma = self.solution.shift_px[k], self.solution.sigma_px[k]
        state = f"moved by y {shift[0]:.2f}, x {shift[1]:.2f} px ± {sigma:.3f} px"
        state = state if self.solution.registered else f"not registered: {self.solution.reason}"
        state = state if used else f"left out: {self.solution.left_out.get(k, '')}"
        state += f"; {self.frames[k].mean():.3g} counts a pixel"
        resolution = self.half and self.half["resolution_px"]
        told = f"; resolution of the average {resolution * self.pixel_nm:.3f} nm" if resolution else ""
        self.status.value = html.escape(f"Frame {k}: {state}. {self.solution.used.sum()} frames used{told}.")
        self.draw()

    def show_solution(self) -> None:
        """Trajectory, average and ring correlation."""
        ax, used = self.axes["path"], self.solution.used
        ax.clear()
        index = np.arange(len(used))
        for axis, (name, colour, marker) in enumerate((("y", "#0072B2", "o"), ("x", "#D55E00", "s"))):
            shown = np.where(used, self.solution.shift_px[:, axis], np.nan)
            ax.errorbar(index, shown, self.solution.sigma_px, fmt=marker + "-", ms=3.5, lw=0.8, color=colour, label=name)
        out = np.flatnonzero(~used)
        ax.plot(out, np.zeros(len(out)), "x", color="0.4", label="left out")
        self.mark = ax.axvline(self.frame.value, color="k", lw=1)
        ax.set(xlabel="frame", ylabel="shift (px)")
        ax.legend(fontsize=8, ncols=3)
        shown, solution, _ = some_frames(self.frames, self.solution)
        average, _ = covered_average(*sum_frames(shown, solution.shift_px, solution.used)[:2])
        ax = self.axes["average"]
        ax.clear()
        low, high = np.percentile(average, [1, 99.7])
        ax.imshow(average, cmap="gray", vmin=low, vmax=max(high, low + 1e-9))
        scale_bar(ax, self.pixel_nm)
        ax.set_xticks([])
        ax.set_yticks([])
        ax.set_title(f"average of {solution.used.sum()} frames", fontsize=9)
        ax = self.axes["frc"]
        ax.clear()
        ax.set(xlabel="spatial frequency (1/nm)", ylabel="ring correlation", ylim=(-0.3, 1.05))
        if self.half and "correlation" in self.half:
            ax.plot(self.half["frequency"] / self.pixel_nm, self.half["correlation"], color="#0072B2", lw=1, label="even against odd")
            ax.plot(self.half["frequency"] / self.pixel_nm, self.half["threshold"], color="0.3", ls="--", lw=1, label="threshold")
            ax.legend(fontsize=8)
        else:
            ax.text(
                0.5, 0.5, "measured when frames\nare left out or taken in", transform=ax.transAxes, ha="center", va="center", fontsize=8
            )

    def toggle(self) -> None:
        """Leave the chosen frame out or take it in, and register again beside."""
        k = self.frame.value
        before = (self.solution, self.half, set(self.leave_out), set(self.take_in))
        if k in self.leave_out or k in self.take_in:
            self.leave_out.discard(k)
            self.take_in.discard(k)
        elif self.solution.used[k]:
            self.leave_out.add(k)
        else:
            self.take_in.add(k)
        if k in self.leave_out:  # the average without it, at once; where the others then lie follows
            used = self.solution.used & (np.arange(len(self.frames)) != k)
            if used.any():
                self.solution = replace(self.solution, used=used, left_out=self.solution.left_out | {k: "by hand"})
                self.show_solution()
        self.show_frame()
        self.measure(before)

    def measure(self, before: tuple) -> None:
        """Register and correlate the halves with the frames that are chosen now; of a stack larger than memory the next run does it."""
        if not isinstance(self.frames, np.ndarray):
            self.say("This stack is larger than memory: the next run registers it with this choice.")
            return
        chosen = self.choice()

        def back() -> None:
            self.solution, self.half, self.leave_out, self.take_in = before
            self.show_solution()
            self.show_frame()

        def compute(progress: Callable) -> tuple[DriftSolution, dict]:
            steps = iter(progress(range(2)))
            next(steps)
            solution = register_stack(self.frames, **self.given, **chosen)
            next(steps)
            return solution, half_average_resolution(self.frames, solution, self.take_in)

        self.work.start("registering", compute, self._measured, back)

    def _measured(self, result: tuple[DriftSolution, dict]) -> None:
        self.solution, self.half = result
        self.show_solution()
        self.show_frame()
        again = "Registered again" if self.solution.registered else "Not registered"
        self.say(f"{again}: left out by hand {sorted(self.leave_out) or 'none'}, taken in by hand {sorted(self.take_in) or 'none'}.")

    def on_click(self, event: Any) -> None:
        if event.inaxes is self.axes["path"] and event.xdata is not None:
            self.frame.value = int(np.clip(round(event.xdata), 0, len(self.frames) - 1))

    def on_key(self, event: Any) -> None:
        step = {"left": -1, "right": 1}.get(event.key)
        if step:
            self.frame.value = int(np.clip(self.frame.value + step, 0, len(self.frames) - 1))
        elif event.key == " ":
            self.toggle()


class SurfaceExplorer(_Explorer):
    """An HAADF image: hover a column for its fit and occupancy; move the surface by hand and see the thickness follow.

    ``layer`` is None where no surface was found: then a line can be drawn all the same. ``remeasure(points_nm)`` measures the layer
    with a drawn surface, or as it is found (None). ``drawn_px`` are the points by hand that ``layer`` was measured with, if it was.
    """

    def __init__(
        self, run: Step, image: np.ndarray, lattice: ImageLattice, columns: Columns, layer: SurfaceLayer | None,
        structure: np.ndarray | None, path: Path, remeasure: Callable[[np.ndarray | None], SurfaceLayer], drawn_px: Any = (),
    ):  # fmt: skip
        import ipywidgets

        super().__init__(
            run, (11, 5.6), {"mosaic": [["image", "near"], ["image", "profile"]], "width_ratios": [1.6, 1]},
            "Hover a column, or step through them with the slider. To move the surface: switch it on, then drag a point, or choose one and "
            "press ↑ and ↓ (0.05 nm out and in along the normal) on the figure.",
        )  # fmt: skip
        self.image, self.lattice, self.columns, self.layer = np.asarray(image, float), lattice, columns, layer
        self.structure, self.made_on, self.remeasure = structure, (path,), remeasure
        self.by_hand = len(drawn_px) > 0
        self.dragged: np.ndarray | None = None
        self.before: tuple | None = None  # what a cancelled or failed measurement goes back to
        self.found = self._as_found() if self.by_hand else layer
        spacing = float(np.linalg.norm(lattice.matrix, axis=1).min()) * 0.5
        metal = columns.present & columns.is_metal
        self.reach = max(4, round(1.6 * spacing))
        self.sigma = column_width(self.image, columns.px[metal], spacing)
        self.points = np.array(drawn_px, float) if self.by_hand else self._found_points()
        self.column = ipywidgets.IntSlider(0, 0, len(columns.px) - 1, description="column", layout={"width": "26em"})
        self.moving = ipywidgets.ToggleButton(description="move the surface", layout={"width": "auto"})
        self.point = ipywidgets.IntSlider(0, 0, len(self.points) - 1, description="point", layout={"width": "16em"})
        back = self.button("as it was found", self.reset, "Undo all that was moved")
        self.observe(self.column, self.show_column)
        self.observe(self.moving, self.show_surface)
        self.observe(self.point, self.show_surface)
        self._draw_image()
        self.show_surface()
        self.show_column()
        self.arrange(ipywidgets.HBox([self.column, self.moving, self.point, back]), self.keeping())

    def choice(self) -> dict[str, Any]:
        return {"surface_px": np.round(self.points, 2).tolist() if self.by_hand else []}

    def _as_found(self) -> SurfaceLayer | None:
        """The layer with the surface that is found in the image; None where there is none."""
        try:
            return self.remeasure(None)
        except WorkbookError:
            return None

    def _found_points(self) -> np.ndarray:
        return self._points_along(self.found) if self.found is not None else self._straight_points()

    def _to_nm(self, px: np.ndarray) -> np.ndarray:
        return self.lattice.to_lattice(px) @ self.lattice.columns.basis_nm

    def _to_px(self, nm: np.ndarray) -> np.ndarray:
        return self.lattice.to_px(nm @ np.linalg.inv(self.lattice.columns.basis_nm))

    def _points_along(self, layer: SurfaceLayer, spacing_nm: float = 0.8) -> np.ndarray:
        """Points of the surface that was found, (k, 2) px, to be moved."""
        curve = layer.contour.curve()
        count = max(4, round(len(curve) * 0.05 / spacing_nm))
        return self._to_px(curve[np.linspace(0, len(curve) - 1, count).astype(int)])

    def _straight_points(self) -> np.ndarray:
        """A line down the middle of the image, where no surface was found."""
        ny, nx = self.image.shape
        return np.stack([np.linspace(0.1 * ny, 0.9 * ny, 6), np.full(6, 0.5 * nx)], axis=1)

    def _draw_image(self) -> None:
        ax, c = self.axes["image"], self.columns
        low, high = np.percentile(self.image, [1, 99.7])
        ax.imshow(self.image, cmap="gray", vmin=low, vmax=high * 1.3)
        size = 22 * min(1.0, 30 / math.sqrt(len(c.px)))
        crystal = self.layer.role >= 0 if self.layer is not None else c.present
        for metal, marker in ((True, "o"), (False, "^")):
            here = (c.is_metal == metal) & crystal
            ax.scatter(c.px[here, 1], c.px[here, 0], c=np.clip(c.brightness[here], 0, 1.1), s=size, marker=marker, vmin=0, vmax=1.1)
        (self.edge,) = ax.plot([], [], color="#56B4E9", lw=1.8)
        (self.depth,) = ax.plot([], [], color="#E69F00", lw=1.8, ls="--")
        (self.handles,) = ax.plot([], [], "D", mfc="w", mec="#0072B2", ms=7)
        (self.handle,) = ax.plot([], [], "D", mfc="#E69F00", mec="k", ms=9)
        (self.here,) = ax.plot([], [], "s", mfc="none", mec="#D55E00", ms=13, mew=1.8)
        ax.set(xlim=(-0.5, self.image.shape[1] - 0.5), ylim=(self.image.shape[0] - 0.5, -0.5), xticks=[], yticks=[])
        scale_bar(ax, self.lattice.scan()["pixel_size_nm"])
        ax.set_title("metal ●, lithium layer ▲, colour: brightness / full metal column", fontsize=9)

    def show_column(self) -> None:
        """The surroundings of the chosen column, a cut through it with its fit, and what it holds."""
        k, c = self.column.value, self.columns
        y, x = c.px[k]
        self.here.set_data([x], [y])
        rows, cols = (
            np.clip(np.arange(round(v) - self.reach, round(v) + self.reach + 1), 0, n - 1)
            for v, n in zip((y, x), self.image.shape, strict=True)
        )
        near = np.flatnonzero(np.all(np.abs(c.px - c.px[k]) < 2 * self.reach, axis=1))
        part = self.image[np.ix_(rows, cols)]
        ax = self.axes["near"]
        ax.clear()
        ax.imshow(part, cmap="gray", extent=(cols[0] - 0.5, cols[-1] + 0.5, rows[-1] + 0.5, rows[0] - 0.5))
        ax.plot([cols[0], cols[-1]], [round(y)] * 2, color="#D55E00", lw=0.8)
        ax.set(xticks=[], yticks=[])
        ax.set_title(f"column {k} and the cut below", fontsize=9)
        model = c.background[k] + sum(
            c.height[i] * np.exp(-((cols - c.px[i, 1]) ** 2 + (round(y) - c.px[i, 0]) ** 2) / (2 * self.sigma**2)) for i in near
        )
        ax = self.axes["profile"]
        ax.clear()
        pixel_nm = self.lattice.scan()["pixel_size_nm"]
        ax.plot((cols - x) * pixel_nm, self.image[round(y), cols], "o", ms=3, color="0.4", label="counts")
        ax.plot((cols - x) * pixel_nm, model, color="#0072B2", label="fit")
        ax.axvline(0, color="#D55E00", lw=0.8)
        ax.set(xlabel="along x (nm)", ylabel="counts")
        ax.legend(fontsize=8)
        kind = "metal layer" if c.is_metal[k] else "lithium layer"
        told = f"Column {k}, {kind}: {c.brightness[k]:.2f} ± {c.noise[k]:.2f} of a full metal column, "
        told += f"{c.height[k]:.3g} counts over {c.background[k]:.3g}"
        told += "" if c.present[k] or not c.is_metal[k] else ", an empty place"
        if self.layer is not None:
            told += f"; {self.layer.contour.depth(c.nm[k : k + 1])[0]:.2f} nm below the edge"
        if self.structure is not None and self.structure[k] >= 0:
            told += f"; structure about it: {list(REGIONS)[self.structure[k]]}"
        self.column_told = told
        self._tell()

    def _tell(self) -> None:
        if self.layer is None:
            layer = "No surface was found; switch on “move the surface” to draw one."
        else:
            by = "with the surface by hand" if self.by_hand else "as found"
            low, high = self.layer.ci95_nm
            layer = f"Layer {by}: {self.layer.kind}, {self.layer.thickness_nm:.2f} nm (95 %: {low:.2f} to {high:.2f} nm)."
        if self.by_hand and self.found is not None:
            layer += f" As found: {self.found.thickness_nm:.2f} nm."
        self.status.value = f"{html.escape(self.column_told)}.<br><b>{html.escape(layer)}</b>"
        self.draw()

    def show_surface(self) -> None:
        """The edge, the depth of the layer, and the points while they can be moved."""
        if self.layer is not None:
            for line, depth in ((self.edge, 0.0), (self.depth, self.layer.thickness_nm)):
                px = self._to_px(self.layer.contour.curve(depth))
                line.set_data(px[:, 1], px[:, 0])
        moving = self.moving.value
        chosen = self.points[[self.point.value]]
        self.handles.set_data(*(self.points.T[::-1] if moving else ([], [])))
        self.handle.set_data(*(chosen.T[::-1] if moving else ([], [])))
        self.draw()

    def move(self, px: np.ndarray) -> None:
        """Put the chosen point to a place (y, x) px."""
        if not self.work.running and self.before is None:
            self.before = (self.layer, self.points.copy(), self.by_hand)
        self.by_hand = True
        self.points[self.point.value] = np.clip(px, 0, np.array(self.image.shape) - 1)
        self.show_surface()

    def measure(self) -> None:
        """The layer below the surface as it is drawn now."""
        points = self._to_nm(self.points)
        before = self.before or (self.layer, self.points.copy(), self.by_hand)

        def done(layer: SurfaceLayer) -> None:
            self.layer, self.before = layer, None
            self.show_surface()
            self.show_column()

        def back() -> None:
            (self.layer, self.points, self.by_hand), self.before = before, None
            self.show_surface()
            self.show_column()

        compute = lambda progress: next(self.remeasure(points) for _ in progress(range(1)))
        self.work.start("measuring", compute, done, back)

    def reset(self) -> None:
        """Back to the surface that was found."""
        self.work.drop()
        self.layer, self.by_hand, self.before = self.found, False, None
        self.points = self._found_points()
        self.point.max = len(self.points) - 1
        self.show_surface()
        self.show_column()

    def on_click(self, event: Any) -> None:
        if event.inaxes is self.axes["image"] and self.moving.value:
            mouse = np.array([event.ydata, event.xdata])
            apart = np.linalg.norm(self.points - mouse, axis=1)
            if apart.min() < 0.06 * max(self.image.shape):
                self.point.value = int(np.argmin(apart))
                self.dragged = mouse - self.points[self.point.value]  # where it was taken hold of

    def on_move(self, event: Any) -> None:
        if event.inaxes is not self.axes["image"]:
            return
        if self.dragged is not None:
            self._drag(event, self.dragged)
        elif not self.moving.value:
            apart = np.linalg.norm(self.columns.px - [event.ydata, event.xdata], axis=1)
            if apart.min() < self.reach:
                self.column.value = int(np.argmin(apart))

    def _drag(self, event: Any, held: np.ndarray) -> None:
        place = np.array([event.ydata, event.xdata]) - held
        if np.linalg.norm(place - self.points[self.point.value]) > 0.5:
            self.move(place)

    def on_release(self, event: Any) -> None:
        if self.dragged is not None:
            if event.inaxes is self.axes["image"]:
                self._drag(event, self.dragged)
            self.dragged = None
            if self.before is not None:
                self.measure()

    def on_key(self, event: Any) -> None:
        step = {"up": -0.05, "down": 0.05}.get(event.key)
        turn = {"left": -1, "right": 1}.get(event.key)
        if turn:
            slider = self.point if self.moving.value else self.column
            slider.value = int(np.clip(slider.value + turn, slider.min, slider.max))
        elif step and self.moving.value:
            nm = self._to_nm(self.points)
            contour = self.layer.contour if self.layer is not None else drawn_contour(self.columns, nm, 0.24)
            way, _, _ = contour.places(nm[[self.point.value]])
            self.move(self._to_px(nm[[self.point.value]] + step * contour.normals(way))[0])
            self.measure()


class InterfaceExplorer(_Explorer):
    """A bright-field image: drag the window, see its spectrum and what it could be; choose candidates and have it analysed again.

    ``phases`` are all that may be candidates, ``chosen`` those of ``result``; ``analyse(phases, progress)`` is the analysis with others.
    """

    def __init__(
        self, run: Step, image: np.ndarray, result: InterfaceResult, phases: list[str], chosen: list[str], path: Path,
        analyse: Callable[..., InterfaceResult],
    ):  # fmt: skip
        import ipywidgets

        super().__init__(
            run, (11, 5.2), {"mosaic": [["image", "spectrum"]], "width_ratios": [1, 1]},
            "Click or drag in the image, or move the window with the arrow keys on the figure.",
        )  # fmt: skip
        self.image, self.result, self.analyse, self.made_on = image, result, analyse, (path,)
        self.window = int(np.argmin(np.linalg.norm(result.spectra.centres - np.array(image.shape) / 2, axis=1)))
        self.table = ipywidgets.HTML()
        self.table.add_class("explorer-table")
        self.candidates = ipywidgets.SelectMultiple(options=phases, value=chosen, rows=len(phases), description="candidates")
        again = self.button("analyse again", self.measure, "Search the image for the chosen candidates alone")
        self._draw_image()
        self.show_window()
        self.arrange(ipywidgets.HBox([self.table, ipywidgets.VBox([self.candidates, again])]), self.keeping())

    def choice(self) -> dict[str, Any]:
        chosen = list(self.candidates.value)
        return {"candidate_phases": [] if len(chosen) == len(self.candidates.options) else chosen}

    def _draw_image(self) -> None:
        from matplotlib.patches import Rectangle

        ax = self.axes["image"]
        ax.clear()
        low, high = np.percentile(self.image, [1, 99])
        ax.imshow(self.image, cmap="gray", vmin=low, vmax=high)
        found = self.result.map
        places = [np.linspace(-0.5, n - 0.5, 2 * m + 1)[1::2] for n, m in zip(self.image.shape, found.label.shape, strict=True)]
        for k in range(int(found.label.max(initial=-1)) + 1):
            if (found.label == k).any() and not (found.label == k).all():
                ax.contour(places[1], places[0], (found.label == k).astype(float), levels=[0.5], colors="#56B4E9", linewidths=1)
        size = self.result.spectra.size
        self.square = ax.add_patch(Rectangle((0, 0), size, size, fill=False, ec="#E69F00", lw=2))
        ax.set(xticks=[], yticks=[])
        scale_bar(ax, self.result.pixel_size_nm)
        shares = ", ".join(f"{name} {100 * share:.0f} %" for name, share in found.area_fractions().items() if share > 0.004)
        ax.set_title(shares, fontsize=9)

    def show_window(self) -> None:
        """The window, its spectrum with the spots of the lattice that it shows, and the candidates."""
        result, k = self.result, self.window
        origin = result.spectra.origins[k]
        self.square.set_xy((origin[1] - 0.5, origin[0] - 0.5))
        power, snr = result.spectra.mean([k])
        bin_invA = result.spectra.bin_invA / result.calibration["scale"]
        reach, half = len(power) // 2 * bin_invA, 0.5 * bin_invA  # zero frequency is in the middle of its bin
        ax = self.axes["spectrum"]
        ax.clear()
        ax.imshow(np.log10(np.maximum(snr, 0.5)), cmap="gray", extent=(-reach - half, reach - half, reach - half, -reach - half))
        owner = int(result.owner[k])
        if owner >= 0:
            lattice = result.lattices[owner]
            spots = lattice.spots[lattice.pattern.amplitude > 0.2]
            ax.plot(
                spots.real, spots.imag, "o", mfc="none", mec="#56B4E9", ms=10, label=f"{lattice.phase} {list(lattice.pattern.zone_axis)}"
            )
            ax.legend(fontsize=8, loc="upper right")
        ax.set(xlim=(-0.75, 0.75), ylim=(0.75, -0.75), xlabel="1/Å", ylabel="1/Å")
        ax.set_title("spectrum of the window", fontsize=9)
        shown = {-1: "no lattice", -2: "spots that no candidate explains"}.get(owner) or f"lattice of {result.lattices[owner].phase}"
        centre = result.spectra.centres[k] * result.pixel_size_nm
        self.status.value = html.escape(f"Window at y {centre[0]:.2f}, x {centre[1]:.2f} nm: {shown}.")
        likely = sorted(result.window_posteriors[k].items(), key=lambda item: -item[1])[:5]
        rows = [(name, f"{probability:.3f}") for name, probability in likely]
        self.table.value = _table_html(("phase and zone axis", "posterior"), rows, "This window by itself")
        self.draw()

    def go_to(self, centre_px: np.ndarray) -> None:
        """To the window nearest to a place (y, x) px."""
        self.window = int(np.argmin(np.linalg.norm(self.result.spectra.centres - centre_px, axis=1)))
        self.show_window()

    def measure(self) -> None:
        """Analyse the image for the chosen candidates alone."""
        phases = list(self.candidates.value)
        if not phases:
            self.say("Choose one candidate at least.")
            return

        def done(result: InterfaceResult) -> None:
            self.result = result
            self._draw_image()
            self.show_window()
            at_interface = result.interface_phase or "not determined"
            self.say(f"With {', '.join(phases)}: at the interface {at_interface}. " + "; ".join(result.statements))

        self.work.start("windows", lambda progress: self.analyse(phases, progress), done, self._draw_image)

    def on_click(self, event: Any) -> None:
        if event.inaxes is self.axes["image"]:
            self.go_to(np.array([event.ydata, event.xdata]))

    def on_move(self, event: Any) -> None:
        if event.inaxes is self.axes["image"] and event.button == 1:
            self.on_click(event)

    def on_key(self, event: Any) -> None:
        step = {"left": (0, -1), "right": (0, 1), "up": (-1, 0), "down": (1, 0)}.get(event.key)
        if step:
            origins, here = self.result.spectra.origins, self.result.spectra.origins[self.window]
            axis, sign = (0, step[0]) if step[0] else (1, step[1])
            ahead = (origins[:, axis] - here[axis]) * sign > 0
            same = origins[:, 1 - axis] == here[1 - axis]
            if (ahead & same).any():
                candidates = np.flatnonzero(ahead & same)
                self.window = int(candidates[np.argmin(np.abs(origins[candidates, axis] - here[axis]))])
                self.show_window()


@dataclass(frozen=True)
class Reading:
    """What matching with some banks and thresholds says of a box of a scan: its ``rows`` and ``cols``, and the results of `map_scan`."""

    rows: slice
    cols: slice
    banks: list[TemplateBank]
    thresholds: dict[str, float]
    maps: dict[str, np.ndarray]
    found: Indexing
    spots: Spots

    @property
    def names(self) -> list[str]:
        """The candidate phases."""
        return [bank.crystal.name for bank in self.banks]

    def holds(self, y: int, x: int) -> bool:
        """Whether the pattern at (y, x) of the scan is in the box."""
        return self.rows.start <= y < self.rows.stop and self.cols.start <= x < self.cols.stop

    def with_thresholds(self, thresholds: dict[str, float], calibration: Calibration, rows: slice, cols: slice) -> Reading:
        """A part of the box with other thresholds, which need no other search; ``calibration`` is that of the whole scan."""
        inner = tuple(slice(part.start - own.start, part.stop - own.start) for part, own in ((rows, self.rows), (cols, self.cols)))
        places = np.arange(self.found.winner.size).reshape(self.found.winner.shape)[inner].ravel()
        found, spots = self.found.part(*inner), self.spots[places]
        here = replace(calibration, centre_px=calibration.centre_px[rows, cols])
        return Reading(rows, cols, self.banks, thresholds, read_maps(found, spots, here, self.banks, thresholds), found, spots)


class PedExplorer(_Explorer):
    """A scan of diffraction patterns: pick one in a map and see every phase's spots on it, scores, and the landscape of orientations.

    ``patterns`` (ny, nx, ky, kx), numpy or dask, with their ``calibration`` and the ``banks`` of all phases that may be chosen. With
    ``whole``, what `map_scan` said of the scan, its maps are shown, and regions can be read with other candidates or thresholds; without,
    ``layers`` are shown and each pattern is matched when it is picked. ``options`` go to `index_scan`; nothing counts as decided where the
    map is not ``trusted``.
    """

    LANDSCAPE = "phase found"
    MOST_IN_MEAN = 4096

    def __init__(
        self, run: Step, patterns: Any, calibration: Calibration, banks: list[TemplateBank], step_nm: float, *,
        layers: dict[str, np.ndarray] | None = None, whole: Reading | None = None, options: dict[str, Any] | None = None,
        trusted: bool = True, made_on: tuple[Path, ...] = (),
    ):  # fmt: skip
        import ipywidgets

        super().__init__(
            run, (11.8, 4.8),
            {"mosaic": [["map", "pattern", "triangle"], ["bar", ".", "."]], "width_ratios": [1.1, 1.1, 0.9], "height_ratios": [24, 1]},
            "Click in the map, or move with the arrow keys on the figure. Circles: predicted spots of each phase; × missing ones, □ "
            "measured ones that the phase found does not predict."
            + (" For a region: switch on “draw a region” and drag, or set the two ranges." if whole else ""),
        )  # fmt: skip
        self.patterns, self.calibration, self.banks, self.step_nm = patterns, calibration, banks, step_nm
        self.whole, self.options, self.trusted, self.made_on = whole, dict(options or {}), trusted, made_on
        self.layers: dict[str, Any] = layers or {}
        self.colours = phase_colours(self.names)
        self.shape = patterns.shape[:2]
        self.region: tuple[slice, slice] | None = None
        self.again: Reading | None = None
        self.mean: tuple[np.ndarray, str] | None = None
        self.corner: tuple[int, int] | None = None
        self._controls()
        self._draw_map()
        self.show_pattern()
        rows = [ipywidgets.HBox([self.layer, self.row, self.column])]
        rows += [ipywidgets.HBox([self.table, ipywidgets.VBox([self.shown, self.of_landscape])])]
        if whole:
            rows += [ipywidgets.HBox([self.drawing, self.rows, self.columns, self.button("no region", self.clear_region)])]
            again = self.button("match the whole scan again", self.match_whole, "With the chosen candidates")
            rows += [ipywidgets.HBox([self.candidates, ipywidgets.VBox([self.least_support, self.least_margin, again])]), self.keeping()]
        self.arrange(*rows)

    @property
    def names(self) -> list[str]:
        """All phases that may be candidates."""
        return [bank.crystal.name for bank in self.banks]

    def _controls(self) -> None:
        import ipywidgets

        ny, nx = self.shape
        if self.whole:
            found = ("phase", "score", "orientation (IPF)", "phase margin", "orientation margin", "correlation")
            self.layers = dict.fromkeys(found) | self.layers
        chosen = self.whole.names if self.whole else self.names
        thresholds = self.whole.thresholds if self.whole else {}
        self.layer = ipywidgets.Dropdown(options=list(self.layers), description="map")
        self.row = ipywidgets.IntSlider(ny // 2, 0, ny - 1, description="row y")
        self.column = ipywidgets.IntSlider(nx // 2, 0, nx - 1, description="column x")
        self.shown = ipywidgets.SelectMultiple(options=self.names, value=chosen, rows=len(self.names), description="spots of")
        self.of_landscape = ipywidgets.Dropdown(options=[self.LANDSCAPE, *self.names], description="triangle")
        self.table = ipywidgets.HTML()
        self.table.add_class("explorer-table")
        self.drawing = ipywidgets.ToggleButton(description="draw a region", layout={"width": "auto"})
        at_rest = {"continuous_update": False}
        self.rows = ipywidgets.IntRangeSlider(value=(0, ny - 1), min=0, max=ny - 1, description="rows", **at_rest)
        self.columns = ipywidgets.IntRangeSlider(value=(0, nx - 1), min=0, max=nx - 1, description="columns", **at_rest)
        self.candidates = ipywidgets.SelectMultiple(options=self.names, value=chosen, rows=len(self.names), description="candidates")
        low, margin = thresholds.get("least_support", 2.0), thresholds.get("least_margin", 3.0)
        style = {"min": 0, "max": max(30.0, 2 * low, 2 * margin), "step": 0.5, "style": {"description_width": "11em"}}
        style |= {"layout": {"width": "27em"}, **at_rest}
        self.least_support = ipywidgets.FloatSlider(low, description="least score (nats)", tooltip="above chance, to be indexed", **style)
        self.least_margin = ipywidgets.FloatSlider(
            margin, description="least margin (nats)", tooltip="to the next phase, to be decided", **style
        )
        self.observe(self.layer, self._draw_map)
        for control in (self.row, self.column):
            self.observe(control, self._moved)
        for control in (self.shown, self.of_landscape):
            self.observe(control, self.show_pattern)
        for control in (self.rows, self.columns):
            self.observe(control, self._region_moved)
        for control in (self.candidates, self.least_support, self.least_margin):
            self.observe(control, self.read_again)

    def choice(self) -> dict[str, Any]:
        chosen = [bank.crystal.name for bank in self._chosen()[0]]
        support, margin = (round(slider.value, 6) for slider in (self.least_support, self.least_margin))
        candidates = [] if len(chosen) == len(self.names) else chosen
        return {"candidate_phases": candidates, "least_support_nats": support, "least_margin_nats": margin}

    def _chosen(self) -> tuple[list[TemplateBank], dict[str, float]]:
        """Banks of the chosen candidates and the thresholds; `ParameterError` where no candidate is chosen."""
        banks = [bank for bank in self.banks if bank.crystal.name in self.candidates.value]
        if not banks:
            raise ParameterError("choose one candidate at least")
        return banks, {"least_support": self.least_support.value, "least_margin": self.least_margin.value}

    def _reading_of(self, rows: slice, cols: slice) -> Reading | None:
        """A box as the present choices read it, where that needs no other search."""
        banks, thresholds = self._chosen()
        names = [bank.crystal.name for bank in banks]
        for known in (self.again, self.whole):
            if known and known.names == names and known.holds(rows.start, cols.start) and known.holds(rows.stop - 1, cols.stop - 1):
                return known.with_thresholds(thresholds, self.calibration, rows, cols)
        return None

    def _matched(self, rows: slice, cols: slice, progress: Any = None) -> Reading:
        """A box matched with the present choices, by itself."""
        banks, thresholds = self._chosen()
        here = replace(self.calibration, centre_px=self.calibration.centre_px[rows, cols])
        found = map_scan(self.patterns[rows, cols], here, banks, thresholds, **self.options, progress=progress)
        return Reading(rows, cols, banks, thresholds, *found)

    # --- the map ---

    def _values(self, name: str) -> tuple[np.ndarray, dict[str, Any], str]:
        """What a layer shows: an image, how to draw it, and its unit."""
        if self.layers.get(name) is not None:
            return self.layers[name], {"cmap": "viridis"}, name
        assert self.whole is not None, "without the whole only layers are shown"
        maps, found = self.whole.maps, self.whole.found
        phase_id = maps["phase_id"]
        if name == "phase":
            return self._phase_image(self._numbered(self.whole)), {}, ""
        if name == "orientation (IPF)":
            image = np.ones((*self.shape, 3))
            for k, bank in enumerate(self.whole.banks):
                inside = phase_id == k
                image[inside] = ipf_colours(maps["rotation"], inside, bank.crystal)[inside]
            return image, {}, ""
        if name == "score":
            score = np.take_along_axis(found.evidence, np.maximum(phase_id, 0)[None], axis=0)[0]
            return np.where(phase_id >= 0, score, np.nan), {"cmap": "viridis"}, "evidence of the phase found (nats)"
        if name == "correlation":
            return maps["correlation"], {"cmap": "gray", "vmin": 0, "vmax": 1}, "correlation coefficient"
        values = np.where(phase_id >= 0, maps[name.replace(" ", "_")], np.nan)
        return values, {"cmap": "viridis", "vmin": 0, "vmax": 30}, f"{name} (nats)"

    def _numbered(self, reading: Reading) -> np.ndarray:
        """The phases of a reading, numbered as in ``names``; -1 not indexed."""
        return np.array([*(self.names.index(name) for name in reading.names), -1])[reading.maps["phase_id"]]

    def _phase_image(self, phase_id: np.ndarray) -> np.ndarray:
        from matplotlib.colors import to_rgb

        return np.array([*(to_rgb(self.colours[name]) for name in self.names), (1.0, 1.0, 1.0)])[phase_id]

    def _draw_map(self) -> None:
        from matplotlib.patches import Patch

        ax, bar = self.axes["map"], self.axes["bar"]
        ax.clear()
        bar.clear()
        image, style, label = self._values(self.layer.value)
        shown = ax.imshow(image, interpolation="nearest", **style)
        bar.set_visible(bool(label))
        if label:
            self.figure.colorbar(shown, cax=bar, label=label, orientation="horizontal")
        if self.layer.value == "phase":
            handles = [Patch(fc=self.colours[p], ec="k", label=p) for p in self.names]
            ax.legend(handles=handles, fontsize=7, loc="upper center", bbox_to_anchor=(0.5, -0.02), ncols=2, frameon=False)
            if self.again:
                rows, cols = self.again.rows, self.again.cols
                extent = (cols.start - 0.5, cols.stop - 0.5, rows.stop - 0.5, rows.start - 0.5)
                ax.imshow(self._phase_image(self._numbered(self.again)), extent=extent, interpolation="nearest")
        ax.set(xticks=[], yticks=[], xlim=(-0.5, self.shape[1] - 0.5), ylim=(self.shape[0] - 0.5, -0.5))
        if self.shape[1] > 1:
            scale_bar(ax, self.step_nm)
        ax.set_title(self.layer.value, fontsize=9)
        place = [self.column.value], [self.row.value]
        self.cross = [ax.plot(*place, "+", color=c, ms=s, mew=w)[0] for c, s, w in (("k", 16, 3), ("w", 14, 1.2))]
        (self.frame,) = ax.plot([], [], color="#D55E00", lw=2)
        self._draw_frame(self.region)
        self.draw()

    def _draw_frame(self, box: tuple[slice, slice] | None) -> None:
        if box is None:
            self.frame.set_data([], [])
            return
        (top, bottom), (left, right) = ((part.start - 0.5, part.stop - 0.5) for part in box)
        self.frame.set_data([left, right, right, left, left], [top, top, bottom, bottom, top])

    # --- one pattern ---

    def pick(self, y: int, x: int) -> None:
        """Choose the pattern at (y, x)."""
        with self.silently(self.row), self.silently(self.column):
            self.row.value, self.column.value = (int(np.clip(v, 0, n - 1)) for v, n in zip((y, x), self.shape, strict=True))
        self._moved()

    def _moved(self) -> None:
        self.mean = None
        self.show_pattern()

    def show_pattern(self) -> None:
        """The chosen pattern with its spots (after a region was chosen, its mean), the table of the phases and the triangle."""
        y, x = self.row.value, self.column.value
        box = slice(y, y + 1), slice(x, x + 1)
        known = self._reading_of(*box)
        one = known or self._matched(*box)
        maps, banks, rotations = one.maps, one.banks, one.found.rotation[:, 0, 0].astype(float)
        phase = int(maps["phase_id"][0, 0])
        lead = phase if phase >= 0 else int(np.argmax(one.found.support[:, 0, 0]))
        rotations[lead] = maps["rotation"][0, 0] if phase >= 0 else rotations[lead]
        best = one.names[phase] if phase >= 0 else "not indexed"
        compared = [compare_spots(one.spots, self.calibration, bank, r) for bank, r in zip(banks, rotations, strict=True)]
        if self.mean:
            self._draw_image(*self.mean)
        else:
            image = patterns_at(self.patterns, np.array([y * self.shape[1] + x]))[0]
            self._draw_image(image, f"pattern y {y}, x {x}: {best}")
            self._draw_spots(one.names, compared, lead)
        for cross in self.cross:
            cross.set_data([x], [y])
        self._tell(one, compared, rotations, best, known is None)
        wanted = self.of_landscape.value
        k = one.names.index(wanted) if wanted in one.names else lead
        self._draw_triangle(banks[k], one.spots, rotations[k])
        self.draw()

    def _draw_spots(self, names: list[str], compared: list[SpotComparison], lead: int) -> None:
        """Circles about the spots of each phase that are there, those of the phase found that are missing, and extra ones."""
        ax = self.axes["pattern"]
        for k, (name, spots) in enumerate(zip(names, compared, strict=True)):
            if name not in self.shown.value:
                continue
            colour, size = self.colours[name], 7 + 2.6 * k
            shown = spots.predicted_px[spots.seen]
            ax.plot(shown[:, 1], shown[:, 0], "o", mfc="none", mec="k", ms=size, mew=2.2)
            ax.plot(shown[:, 1], shown[:, 0], "o", mfc="none", mec=colour, ms=size, mew=1.3, label=name)
        lost, extra = compared[lead].predicted_px[compared[lead].missing], compared[lead].extra_px
        ax.plot(lost[:, 1], lost[:, 0], "x", color="#B00000", ms=7, mew=1.6, label="missing")
        ax.plot(extra[:, 1], extra[:, 0], "s", mfc="none", mec="0.25", ms=8, label="extra")
        ax.legend(fontsize=7, loc="upper center", bbox_to_anchor=(0.5, -0.02), ncols=3, frameon=False)

    def _tell(self, one: Reading, compared: list[SpotComparison], rotations: np.ndarray, best: str, alone: bool) -> None:
        """The chosen pattern in words and as a table."""
        y, x, maps = self.row.value, self.column.value, one.maps
        zones = [nearest_zone_axis(bank.crystal, r[:, 2]) for bank, r in zip(one.banks, rotations, strict=True)]
        rows = [
            (
                name, f"{one.found.evidence[k, 0, 0]:.1f}", f"{one.found.support[k, 0, 0]:+.1f}", int(c.seen.sum()), int(c.missing.sum()),
                len(c.extra_px), f"{direction_name(zones[k][0])} + {zones[k][1]:.1f}°",
            )
            for k, (name, c) in enumerate(zip(one.names, compared, strict=True))
        ]  # fmt: skip
        self.table.value = _table_html(("phase", "score (nats)", "above chance", "seen", "missing", "extra", "beam along"), rows)
        margin, turn, correlation = (float(maps[key][0, 0]) for key in ("phase_margin", "orientation_margin", "correlation"))
        decided = "decided" if maps["decided"][0, 0] and self.trusted else "not decided"
        told = f"y {y}, x {x} ({y * self.step_nm:.4g}, {x * self.step_nm:.4g} nm): {best}, {decided}; margin to the next phase "
        told += f"{margin:.1f} nats, to the next orientation {turn:.1f} nats; correlation {correlation:.2f}."
        told += " Matched by itself, without its neighbours." if alone and self.whole else ""
        self.status.value = "<br>".join(html.escape(sentence) for sentence in [told, *self._region_told()])

    def _draw_image(self, image: np.ndarray, title: str) -> None:
        ax = self.axes["pattern"]
        ax.clear()
        values = np.sqrt(np.maximum(image - self.calibration.offset, 0))
        ax.imshow(values, cmap="gray_r", vmin=0, vmax=max(float(np.percentile(values, 99.8)), 1.0))
        ax.set(xlim=(-0.5, image.shape[1] - 0.5), ylim=(image.shape[0] - 0.5, -0.5), xticks=[], yticks=[])
        scale_bar(ax, self.calibration.scale_invA_per_px, "1/Å", 0.5)
        ax.set_title(title, fontsize=9)

    def _draw_triangle(self, bank: TemplateBank, spots: Spots, rotation: np.ndarray) -> None:
        """The evidence of all zone axes of one phase, on the triangle of its Laue group (stereographic)."""
        from orix.vector import Vector3d

        group = bank.crystal.orix_phase().point_group.laue
        zones, evidence = zone_axis_landscape(spots, self.calibration, bank)
        project = lambda v: v[:, :2].T / (1 + v[:, 2])
        inside = lambda v: project(Vector3d(v).in_fundamental_sector(group).data)
        ax = self.axes["triangle"]
        ax.clear()
        ax.tripcolor(*inside(zones), np.maximum(evidence, 0), shading="gouraud", cmap="viridis", rasterized=True)
        ax.plot(*project(group.fundamental_sector.edges.data), color="k", lw=1)
        ax.plot(*inside(rotation[None, :, 2]), "*", mfc="#D55E00", mec="w", ms=14)
        for corner in group.fundamental_sector.vertices.unit.data:
            uvw, _ = nearest_zone_axis(bank.crystal, corner, 2)
            paper = {"fc": "w", "ec": "none", "alpha": 0.8, "pad": 1}
            ax.annotate(direction_name(uvw), project(corner[None])[:, 0], fontsize=8, ha="center", va="center", bbox=paper)
        ax.set(aspect="equal", xticks=[], yticks=[])
        ax.set_axis_off()
        most = evidence.max(initial=0)
        ax.set_title(f"{bank.crystal.name}: score of each beam direction,\n0 (dark) to {most:.0f} nats; ★ refined best", fontsize=9)

    # --- a region ---

    def _region_moved(self) -> None:
        self.set_region(*(slice(low, high + 1) for low, high in (self.rows.value, self.columns.value)))

    def set_region(self, rows: slice, cols: slice) -> None:
        """Choose a box of patterns: its mean pattern, its fractions, and how the present choices read it."""
        self.work.drop()
        self.region, self.again = (rows, cols), None
        for slider, part in ((self.rows, rows), (self.columns, cols)):
            with self.silently(slider):
                slider.value = (part.start, part.stop - 1)
        part = self.patterns[rows, cols]
        n = part.shape[0] * part.shape[1]
        every = math.ceil(math.sqrt(n / self.MOST_IN_MEAN))  # a whole scan would take minutes to read
        part = part[::every, ::every]
        taken = part.shape[0] * part.shape[1]
        self.mean = np.asarray(part.mean(axis=(0, 1))), f"mean of {n} patterns" if every == 1 else f"mean of {taken} of {n} patterns"
        self.read_again()

    def clear_region(self) -> None:
        """No region any more."""
        self.work.drop()
        self.region = self.again = self.mean = None
        self._draw_map()
        self.show_pattern()

    def match_whole(self) -> None:
        """Match the whole scan with the present choices."""
        self.set_region(*(slice(0, n) for n in self.shape))

    def _as_mapped(self) -> bool:
        """Whether the present choices are those of the map."""
        banks, thresholds = self._chosen()
        known = {key: self.whole.thresholds.get(key, value) for key, value in thresholds.items()} if self.whole else {}
        return self.whole is not None and [bank.crystal.name for bank in banks] == self.whole.names and known == thresholds

    def read_again(self) -> None:
        """Read the region as the present choices do, at once where that needs no other search; without a region, the pattern."""
        self.work.drop()
        if self.region is None or self._as_mapped():
            self._read(None)
            return
        before, region, started = self.again, self.region, time.monotonic()
        at_once = self._reading_of(*region)
        if at_once:
            self._read(at_once)
            return

        def back() -> None:
            shown = before or self.whole
            with self.silently(self.candidates):
                self.candidates.value = shown.names if shown else self.names
            self._read(before)

        def done(found: Reading) -> None:
            self._read(found)
            self.say(f"{found.found.winner.size} patterns matched again in {time.monotonic() - started:.1f} s.")

        self._draw_map()
        self.work.start("matching", lambda progress: self._matched(*region, progress), done, back)

    def _read(self, reading: Reading | None) -> None:
        self.again = reading
        self._draw_map()
        self.show_pattern()

    def _region_told(self) -> list[str]:
        """The fractions of the region, of the map and as read now, in words."""
        if self.region is None or self.whole is None:
            return []
        readings = [("map", self._numbered(self.whole)[self.region])]
        readings += [("with these choices", self._numbered(self.again))] if self.again else []
        told = []
        for name, phase_id in readings:
            shares, n_ncm, rocksalt = counted_shares(phase_id, self.names)
            of_all = ", ".join(f"{p} {share:.1%}" for p, share in shares.items() if share > 0) or "nothing indexed"
            of_ncm = f"; rocksalt {rocksalt:.1%} of {n_ncm} NCM patterns (counted, not corrected)" if rocksalt is not None else ""
            told.append(f"Region of {phase_id.size} patterns, {name}: {of_all}{of_ncm}.")
        return told

    # --- mouse and keys ---

    def on_click(self, event: Any) -> None:
        if event.inaxes is not self.axes["map"]:
            return
        y, x = round(event.ydata), round(event.xdata)
        if self.drawing.value:
            self.corner = (y, x)
        else:
            self.pick(y, x)

    def on_move(self, event: Any) -> None:
        if self.corner is not None and event.inaxes is self.axes["map"]:
            self._draw_frame(self._box(self.corner, event.ydata, event.xdata))
            self.draw()

    def _box(self, corner: tuple[int, int], y: float, x: float) -> tuple[slice, slice]:
        """From the corner where the mouse went down to a place."""
        low_high = (sorted((c, round(v))) for c, v in zip(corner, (y, x), strict=True))
        rows, cols = (slice(max(0, low), min(n, high + 1)) for (low, high), n in zip(low_high, self.shape, strict=True))
        return rows, cols

    def on_release(self, event: Any) -> None:
        if self.corner is None:
            return
        inside = event.inaxes is self.axes["map"]
        box = self._box(self.corner, event.ydata, event.xdata) if inside else None
        self.corner = None
        self.drawing.value = False
        if box:
            self.set_region(*box)
        else:
            self._draw_frame(self.region)
            self.draw()
            self.say("No region: the mouse was let go outside the map.")

    def on_key(self, event: Any) -> None:
        step = {"left": (0, -1), "right": (0, 1), "up": (-1, 0), "down": (1, 0)}.get(event.key)
        if step:
            self.pick(self.row.value + step[0], self.column.value + step[1])


class ComparisonExplorer(_Explorer):
    """The samples side by side: choose the phase, the kind of interval and the samples; click one for what its fraction rests on.

    ``samples`` as `collect_samples` gives them, those with a fraction.
    """

    INTERVALS: ClassVar = {"the scanned areas": "fraction_quantiles", "the lamellae": "elsewhere_quantiles"}

    def __init__(self, run: Step, samples: list[dict[str, Any]]):
        import ipywidgets

        super().__init__(
            run, (9.5, 4), {"mosaic": [["fractions", "change"]], "width_ratios": [1.2, 1]},
            "Click a sample, or step through them with ← and → on the figure; space leaves the chosen one out or takes it in.",
        )  # fmt: skip
        self.samples, self.picked = samples, 0
        simulated = " (simulated data)" if any(s["simulated"] for s in samples) else ""
        self.figure.suptitle(f"all samples{simulated}", fontsize=10)
        names = [s["sample"] for s in samples]
        self.phase = ipywidgets.ToggleButtons(options=["rocksalt", "spinel"], description="phase")
        self.interval = ipywidgets.ToggleButtons(options=list(self.INTERVALS), description="interval of")
        self.compared = ipywidgets.SelectMultiple(options=names, value=names, rows=min(len(names), 6), description="compared")
        self.table = ipywidgets.HTML()
        self.table.add_class("explorer-table")
        for control in (self.phase, self.interval, self.compared):
            self.observe(control, self.show)
        self.show()
        self.arrange(ipywidgets.HBox([self.phase, self.interval]), ipywidgets.HBox([self.compared, self.table]), self.keeping())

    def choice(self) -> dict[str, Any]:
        already = self.run.parameters["leave_out"]
        return {"leave_out": [*already, *(s["sample"] for s in self.samples if s["sample"] not in self.compared.value)]}

    def _quantiles(self, sample: dict[str, Any]) -> np.ndarray | None:
        return sample[f"{self.phase.value}_{self.INTERVALS[self.interval.value]}"]

    def show(self) -> None:
        """Fractions and differences of the samples that are compared."""
        phase, prefix = self.phase.value, "elsewhere_" if "elsewhere" in self.INTERVALS[self.interval.value] else ""
        kept = [s for s in self.samples if s["sample"] in self.compared.value and s[f"{phase}_fraction"] is not None]
        ax = self.axes["fractions"]
        ax.clear()
        for k, s in enumerate(self.samples):
            value, quantiles = s[f"{phase}_fraction"], self._quantiles(s)
            if value is None or quantiles is None:
                continue
            low, high = np.interp([2.5, 97.5], np.arange(101), quantiles)
            faint = s not in kept
            colour = "0.7" if faint else "k"
            ax.plot([k, k], [low, high], color=colour, lw=2, ls=":" if faint else "-")
            ax.plot(k, value, "o", ms=12 if k == self.picked else 8, mfc="w" if faint else PHASE_COLOURS[phase], mec=colour)
        ax.set_xticks(range(len(self.samples)), [s["sample"] for s in self.samples], rotation=20)
        ax.set(xlim=(-0.6, len(self.samples) - 0.4), ylim=(0, None), ylabel=f"{phase} share of the NCM area")
        ax.set_title(f"95 % intervals of {self.interval.value}", fontsize=9)
        pairs = [p for p in compare_fractions(kept, phase) if f"{prefix}ci95_low" in p]
        ax = self.axes["change"]
        ax.clear()
        for k, pair in enumerate(pairs[:30]):
            ax.plot([pair[f"{prefix}ci95_low"], pair[f"{prefix}ci95_high"]], [k, k], color="k", lw=2)
            ax.plot(pair["difference"], k, "D", mfc="w", mec="k")
        ax.axvline(0, color="0.5", lw=0.8)
        ax.set_yticks(range(len(pairs[:30])), [f"{p['from']} → {p['to']}" for p in pairs[:30]], fontsize=8)
        ax.set(ylim=(max(len(pairs[:30]), 1) - 0.5, -0.5), xlabel="change of the share")
        rows = [
            (p["from"], p["to"], f"{p['difference']:+.3f}", f"{p[f'{prefix}ci95_low']:+.3f} to {p[f'{prefix}ci95_high']:+.3f}",
             f"{p[f'{prefix}probability_of_increase']:.3f}") for p in pairs[:30]
        ]  # fmt: skip
        self.table.value = _table_html(("from", "to", "change", "95 %", "P(increase)"), rows)
        s = self.samples[self.picked]
        told = [f"{s['n_patterns_ncm']} NCM patterns in {s['n_grains']} grains"]
        if s[f"{phase}_fraction"] is None:
            told = [f"no {phase} fraction", *told]
        else:
            verdict = "detected" if s[f"{phase}_detected"] else "not detected"
            told = [f"{phase} {s[f'{phase}_fraction']:.3f}, {verdict}", *told, f"raw share {s[f'{phase}_fraction_raw']:.3f}"]
            told += [f"detection limit {s[f'{phase}_detection_limit']:.3f}"]
        self.status.value = html.escape(f"{s['sample']} ({s['label']}): {'; '.join(told)}.")
        self.draw()

    def pick(self, k: int) -> None:
        """Choose a sample by its place."""
        self.picked = int(np.clip(k, 0, len(self.samples) - 1))
        self.show()

    def on_click(self, event: Any) -> None:
        if event.inaxes is self.axes["fractions"]:
            self.pick(round(event.xdata))

    def on_key(self, event: Any) -> None:
        step = {"left": -1, "right": 1}.get(event.key)
        if step:
            self.pick(self.picked + step)
        elif event.key == " ":
            name, compared = self.samples[self.picked]["sample"], set(self.compared.value)
            self.compared.value = [s["sample"] for s in self.samples if s["sample"] in compared ^ {name}]


# --------------------------------------------------------------------------------------
# Pages: the executed notebooks as HTML that opens from disk
# --------------------------------------------------------------------------------------


def _ended_well(output: dict) -> bool:
    """Whether an error output is the ``sys.exit(0)`` of a step that has nothing to do."""
    return output["ename"] == "SystemExit" and output["evalue"] in ("", "0")


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
    if errors and "DeadKernelError" in errors[-1] and executed.is_file():
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


@dataclass(frozen=True)
class _Page:
    """One page to be: the executed notebook, where the page goes below html/, and what stands around it.

    ``depends`` holds what it is made of besides: where that has not changed, the page is up to date. ``maps`` is the
    sample of a map page, which shows no notebook.
    """

    notebook: Path
    target: str
    title: str
    sample: str
    simulated: bool
    provenance: dict
    navigation: list[dict] = field(default_factory=list)
    home: str = ""
    explore: str = ""
    cards: list[dict] = field(default_factory=list)
    more: list[dict] = field(default_factory=list)
    depends: tuple = ()
    maps: Sample | None = None


# --- where a page's numbers come from ------------------------------------------------------------

_HASHED_UP_TO = 256_000_000  # bytes of a file; whether a larger one has changed is told by its time


def _file_state(path: Path) -> tuple[int, int]:
    """Size in bytes and time of the last change in ns of a file, or of all files of a folder (.zspy)."""
    states = [p.stat() for p in (path.rglob("*") if path.is_dir() else [path]) if p.is_file()]
    return sum(s.st_size for s in states), max((s.st_mtime_ns for s in states), default=0)


class _Hashes:
    """SHA-256 of files, kept in ``results/.hashes.json`` by path, size and time: a recording is read once."""

    def __init__(self, results: Path):
        self._path = results / ".hashes.json"
        self._known: dict[str, str] = {}
        self._used: dict[str, str] = {}
        with contextlib.suppress(OSError, ValueError, TypeError):  # none yet, or broken off: all are made anew
            self._known = dict(json.loads(self._path.read_text(encoding="utf-8")))

    def of(self, path: Path) -> str:
        """The hash of a file's present content."""
        key = f"{os.path.abspath(path)} {_file_state(path)}"
        self._used[key] = self._used.get(key) or self._known.get(key) or file_sha256(path)
        return self._used[key]

    def save(self) -> None:
        """Keep what was asked for in this run, where that is not what was kept before."""
        if self._used != self._known:
            write_atomically(self._path, json.dumps(self._used, indent=0))


def _input_path(name: str, folder: Path, data_dir: str | Path) -> Path | None:
    """The file that a result's ``inputs`` call ``name``; None where it is gone. ``folder`` is the sample's results folder."""
    crystals = [phases / Path(name).name for phases in _phase_folders(data_dir)] if name.endswith(".cif") else []
    candidates = (samples_folder(data_dir) / folder.name / name, folder / name, PROJECT_ROOT / name, *crystals)
    return next((path for path in candidates if path.exists()), None)


def _inputs_now(result: dict, folder: Path, data_dir: str | Path, step: str, hashes: _Hashes) -> list[dict]:
    """Every input of a result: ``name``, ``sha256`` as it was read, and ``state``, how the file is now ("" where it is the same)."""
    written_ns = (folder / f"{step}.json").stat().st_mtime_ns if result else 0
    found = []
    for name, sha256 in result.get("inputs", {}).items():
        path, state = _input_path(name, folder, data_dir), ""
        if path is None:
            state = "no longer here"
        else:
            size, changed_ns = _file_state(path)
            differs = changed_ns > written_ns if size > _HASHED_UP_TO else hashes.of(path) != sha256
            state = "changed since" if differs else ""
        found.append({"name": name, "sha256": sha256, "state": state})
    return found


def _stale_text(inputs: list[dict]) -> list[str]:
    """One sentence where inputs have changed since they were read, else none.

    >>> _stale_text([{"name": "ped.blo", "state": "changed since"}, {"name": "sample.yaml", "state": ""}])
    ['ped.blo has changed since this step was run. Run `make run` to bring it up to date.']
    """
    changed = [file["name"] for file in inputs if file["state"] == "changed since"]
    if not changed:
        return []
    named = ", ".join(changed[:-1]) + " and " * (len(changed) > 1) + changed[-1]
    return [f"{named} {'have' if len(changed) > 1 else 'has'} changed since this step was run. Run `make run` to bring it up to date."]


def _chosen_since(folder: Path, step: str, result: dict) -> list[str]:
    """One sentence where ``manual.yaml`` holds another choice for a step than its result was made with, else none."""
    try:
        now = hand_choice(folder, step)
    except ResultError as error:
        return [f"{error}."]
    made_with = {k: v for k, v in result.get("by_hand", {}).items() if k != "statement"}
    if not result or made_with == (now.model_dump() if now else {}):
        return []
    return [f"What is chosen by hand for {_step_title(step)} has changed since. Run `make run` to bring it up to date."]


def _provenance(who: str, simulated: bool | None, result: dict, inputs: list[dict]) -> dict:
    """What the foot of a page says about it; the date comes with the notebook."""
    kind = {True: "simulated data", False: "recorded data", None: "simulated and recorded data"}[simulated]
    parameters = {k: v for k, v in result.get("parameters", {}).items() if k != "sample_id"}
    versions = {k: v for k, v in result.get("versions", {}).items() if k != "helpers_sha256"}
    code = result.get("versions", {}).get("helpers_sha256", "")
    now = _own_sha256()[: len(code)]
    facts = {
        "Sample": who,
        "Data": kind,
        "Parameters": ", ".join(f"{k} = {v}" for k, v in parameters.items()),
        "Versions": ", ".join(f"{k} {v}" for k, v in versions.items()),
        "By hand": result.get("by_hand", {}).get("statement", ""),
        "Workbook": code and f"helpers.py {code}" + (f"; this page was made with another version, {now}" if now != code else ""),
    }
    return {"facts": {k: v for k, v in facts.items() if v}, "inputs": inputs, "stale": _stale_text(inputs), "summary": f"{who}, {kind}"}


def _with_stale(provenance: dict, sentences: list[str]) -> dict:
    """Provenance with more that makes its page older than what it stands on."""
    return provenance | {"stale": [*provenance["stale"], *sentences]}


def _executed_at(notebook: Any) -> str:
    """When papermill ended a notebook, in UTC to the minute; "" where it did not."""
    ended = notebook.metadata.get("papermill", {}).get("end_time") or ""
    return f"{ended[:10]} {ended[11:16]} UTC" if re.match(r"\d{4}-\d\d-\d\dT\d\d:\d\d", ended) else ""


def _dated(provenance: dict, notebook: Any, hidden: list[tuple[str, str]]) -> dict:
    """Provenance with the date of the execution, as a page shows it: without paths."""
    date = _executed_at(notebook)
    facts = {"Executed": date or "no date in the notebook"} | provenance["facts"]
    summary = provenance["summary"] + (f", executed {date}" if date else "")
    return provenance | {"facts": [(k, _without_paths(v, hidden)) for k, v in facts.items()], "summary": summary}


# --- the samples at a glance ---------------------------------------------------------------------


def _percent(share: float) -> str:
    """A share as text, with one digit more where it is small.

    >>> _percent(0.146), _percent(0.0042)
    ('14.6 %', '0.42 %')
    """
    return f"{100 * share:.{1 if share >= 0.01 else 2}f} %"


def _interval(bounds: list | None, factor: float = 1.0, unit: str = "", digits: int = 1) -> str:
    """The words for a 95 % interval; "" where there is none."""
    return "" if not bounds else f"95 % interval {factor * bounds[0]:.{digits}f}–{factor * bounds[1]:.{digits}f}{unit}"


def _share_in_words(result: dict, phase: str) -> tuple[str, str]:
    """A phase's share of the NCM area and its interval."""
    share = result.get(f"{phase}_fraction")
    if share is None:
        return "—", result.get(f"{phase}_fraction_reason", "not a candidate phase")
    if not result.get(f"{phase}_detected", True):
        limit = result.get(f"{phase}_detection_limit")
        return "not detected" + ("" if limit is None else f", < {_percent(limit)}"), ""
    return _percent(share), _interval(result.get(f"{phase}_fraction_ci95"), 100, " %")


def _layer_in_words(result: dict) -> tuple[str, str]:
    """The surface layer of 03: thickness and phase, and the interval."""
    thickness = result.get("surface_layer_thickness_nm")
    if thickness is None:
        return "—", result.get("surface_layer_thickness_nm_reason", "")
    if result.get("surface_phase") == "none" or thickness == 0:
        limit = result.get("surface_layer_upper_limit_nm")
        return "none" + (f", < {limit:.2f} nm" if limit else ""), ""
    phase = result.get("surface_phase", "phase unknown")
    return f"{thickness:.2f} nm, {phase}", _interval(result.get("surface_layer_thickness_ci95_nm"), 1, " nm", 2)


def _interface_in_words(result: dict) -> tuple[str, str]:
    """The interface of 04: its phase and width, and the interval."""
    phase, width = result.get("interface_phase"), result.get("interface_width_nm")
    if phase is None:
        return "—", result.get("interface_phase_reason", "")
    if width is None:
        return phase, result.get("interface_width_nm_reason", "")
    return f"{phase}, {width:.1f} nm wide", _interval(result.get("interface_width_nm_ci95"), 1, " nm")


def _patterns_in_words(result: dict) -> tuple[str, str]:
    """How much of the cathode 07 rests on."""
    if result.get("n_patterns_ncm") is None:
        return "—", result.get("n_patterns_ncm_reason", "")
    return f"{result['n_patterns_ncm']} patterns", f"in {result['n_grains']} grains" if result.get("n_grains") is not None else ""


_HEADLINES: tuple[tuple[str, str, Callable[[dict], tuple[str, str]]], ...] = (
    ("Rocksalt share of the NCM area", "07_rocksalt_fraction", lambda result: _share_in_words(result, "rocksalt")),
    ("Spinel share of the NCM area", "07_rocksalt_fraction", lambda result: _share_in_words(result, "spinel")),
    ("Surface layer", "03_haadf_surface", _layer_in_words),
    ("LLZO–NCM interface", "04_interface_phases", _interface_in_words),
    ("NCM area scanned", "07_rocksalt_fraction", _patterns_in_words),
)


def _headline(name: str, link: dict, result: dict, words: Callable[[dict], tuple[str, str]]) -> dict:
    """One number of a card with the page that it comes from; a dash and why where there is none."""
    if result.get("status") == "ok" and link["note"] != "failed":
        value, detail = words(result)
        detail = "; ".join(part for part in (detail, link["note"]) if part)
    else:
        value, detail = "—", link["note"] or "no result"
    return {"name": name, "value": value, "detail": detail, "href": link["href"]}


def _result_or_nothing(results: Path, sample_id: str, step: str) -> dict:
    """The JSON of a step; an empty dict where it is missing or broken."""
    try:
        return read_result(results, sample_id, step)
    except ResultError:
        return {}


def _thumbnail(results: Path, sample_id: str, matched: dict) -> str:
    """The phase map of a sample as a PNG in a data URI, some 200 px wide; "" where it cannot be read."""
    import h5py
    from matplotlib.colors import to_rgb
    from PIL import Image

    ny, nx = matched["shape"]
    try:
        with h5py.File(results / sample_id / "06_ped.h5") as file:
            phase_id = file["crystal_map/data/phase_id"][()].reshape(ny, nx)
    except (OSError, KeyError, ValueError):
        return ""
    every = max(1, math.ceil(max(ny, nx) / 240))
    phase_id = phase_id[::every, ::every]
    colours = [to_rgb(c) for c in (*phase_colours(matched["phases"]).values(), NOT_INDEXED_COLOUR)]  # the last for -1
    pixels = np.rint(255 * np.array(colours)[phase_id]).astype(np.uint8)
    zoom = max(1, 240 // max(phase_id.shape))
    pixels = pixels.repeat(max(zoom, math.ceil(24 / phase_id.shape[0])), axis=0).repeat(
        max(zoom, math.ceil(24 / phase_id.shape[1])), axis=1
    )
    buffer = io.BytesIO()
    Image.fromarray(pixels).quantize(len(colours)).save(buffer, "PNG", optimize=True)
    return _data_uri("image/png", buffer.getvalue())


def _data_uri(kind: str, content: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


def _map_in_words(title: str, matched: dict) -> str:
    """The alternative text of a sample's phase map."""
    shares = ", ".join(f"{phase.replace('_', ' ')} {_percent(share)}" for phase, share in matched["area_fraction"].items())
    ny, nx = matched["shape"]
    return f"Phase map of {title}, {nx} by {ny} patterns at {matched['step_nm']:g} nm: {shares}"


# --- all pages of a results folder ---------------------------------------------------------------


def _step_title(step: str) -> str:
    """A step's name as a reader wants it.

    >>> _step_title("05_ped_calibration")
    '05 PED calibration'
    """
    words = re.sub(r"\b(haadf|ped|eds|eels|stem|tem)\b", lambda found: found[0].upper(), step.replace("_", " ")).replace("cryo ", "cryo-")
    return words if words[3:4].isupper() else words[:3] + words[3:4].upper() + words[4:]


def _step_link(results: Path, sample_id: str, step: str, result: dict) -> dict:
    """The link to one page of a sample, with a word on its state where there is something to say."""
    notebook, note = results / sample_id / "notebooks" / f"{step}.ipynb", ""
    if not (results / sample_id / ".done" / step).exists():
        note = "failed" if run_error(notebook) else "not run" if not notebook.is_file() else "from an earlier run"
    elif result.get("status") == "not_acquired":
        note = "not acquired"
    return {"step": step, "text": _step_title(step), "href": f"{step}.html" if notebook.is_file() else "", "note": note}


_MAP_STEP = "06_ped_matching"


def _sample_pages(results: Path, data_dir: str | Path, sample_id: str, hashes: _Hashes) -> tuple[list[_Page], dict]:
    """The pages of one sample, and its card on the index."""
    try:
        sample = load_sample(data_dir, sample_id)
        title, simulated = sample.label, sample.simulated
    except SampleError:
        sample, title, simulated = None, sample_id, False
    step_results = {step: _result_or_nothing(results, sample_id, step) for step in STEPS}
    links = [_step_link(results, sample_id, step, result) for step, result in step_results.items()]
    matched, h5 = step_results[_MAP_STEP], results / sample_id / "06_ped.h5"
    has_map = sample is not None and {"shape", "step_nm", "phases", "area_fraction"} <= set(matched) and h5.is_file()
    explore = [{"step": "map", "text": "Explore the map", "href": "map.html", "note": ""}] if has_map else []
    pages: list[_Page] = []
    stale: dict[str, str] = {}
    for step, result in step_results.items():
        inputs = _inputs_now(result, results / sample_id, data_dir, step, hashes)
        stale |= {file["name"]: step for file in inputs if file["state"] == "changed since"}
        who = sample_id if title == sample_id else f"{sample_id}, {title}"
        page = _Page(
            notebook=results / sample_id / "notebooks" / f"{step}.ipynb",
            target=f"{sample_id}/{step}.html",
            title=_step_title(step),
            sample=title,
            simulated=simulated,
            provenance=_with_stale(_provenance(who, simulated, result, inputs), _chosen_since(results / sample_id, step, result)),
            navigation=[link | {"current": link["step"] == step} for link in (*links, *explore)],
            home="../index.html",
            explore="map.html" if has_map and step in ("05_ped_calibration", _MAP_STEP) else "",
        )
        if page.notebook.is_file():
            pages.append(page)
        if sample is not None and has_map and step == _MAP_STEP:
            content = hashes.of(h5), matched, _recording_state(sample)
            navigation = [link | {"current": link["step"] == "map"} for link in (*links, *explore)]
            pages.append(
                replace(page, target=f"{sample_id}/map.html", title="Explore the map", navigation=navigation, maps=sample, depends=content)
            )
    card = _card(results, sample_id, title, simulated, step_results, [*links, *explore])
    condition = condition_name(sample.sintering.temperature_C) if sample and sample.sintering else "no sintering named"
    return pages, card | {"stale": ", ".join(stale), "h5": hashes.of(h5) if has_map else "", "condition": condition}


def _recording_state(sample: Sample) -> tuple:
    """What tells that the recording of a map page is another one; nothing where there is none."""
    path = sample.path("ped") if sample.acquisitions.ped else None
    return _file_state(path) if path is not None and path.exists() else ()


def _card(results: Path, sample_id: str, title: str, simulated: bool, step_results: dict[str, dict], links: list[dict]) -> dict:
    """What the index says of a sample; all links as seen from there."""
    links = [link | {"href": link["href"] and f"{sample_id}/{link['href']}"} for link in links]
    by_step = {link["step"]: link for link in links}
    failure = failed_step(results, sample_id)
    missing = by_step[_MAP_STEP]["note"] or "no map"
    return {
        "id": sample_id,
        "label": title,
        "simulated": simulated,
        "map": by_step["map"]["href"] if "map" in by_step else "",
        "alt": _map_in_words(title, step_results[_MAP_STEP]) if "map" in by_step else f"No phase map: {missing}",
        "matched": step_results[_MAP_STEP],
        "rows": [_headline(name, by_step[step], step_results[step], words) for name, step, words in _HEADLINES],
        "links": links,
        "fault": f"{failure[0]}: {failure[1]}" if failure else "",
    }


def _planned_pages(results: Path, data_dir: str | Path, hashes: _Hashes) -> list[_Page]:
    """All pages of a results folder, the index last."""
    pages, cards = [], []
    for sample_id in list_samples(data_dir):
        own, card = _sample_pages(results, data_dir, sample_id, hashes)
        pages += own
        cards.append(card)
    more = []
    own_data = samples_folder(data_dir) == samples_folder("")
    for step, who, link in (
        ("00_demo_data", "Demo data", "How the demo data were simulated"),
        ("09_validation", "Validation", "How well all this works, on data with known truth"),
    ):
        notebook = results / f"{step}.ipynb"
        if notebook.is_file() and (own_data or step != "00_demo_data"):
            more.append({"text": link, "href": f"{step}.html"})
            about = _provenance(who.lower(), True, {}, [])
            pages.append(_Page(notebook, f"{step}.html", _step_title(step), who, True, about, home="index.html"))
    return [*pages, _index_page(results, data_dir, cards, more)]


def _index_page(results: Path, data_dir: str | Path, cards: list[dict], more: list[dict]) -> _Page:
    """The comparison, with a card for each sample in the order of sintering."""
    try:
        compared = json.loads((results / "08_comparison.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        compared = {}
    order = {s["sample"]: k for k, s in enumerate(compared.get("samples", []))}
    cards = sorted(cards, key=lambda c: (order.get(c["id"], len(order)), c["id"]))
    simulated = {card["simulated"] for card in cards}
    scans = [
        {"name": f"{s['sample']}: PED scan", "sha256": s["scan_sha256"], "state": ""}
        for s in compared.get("samples", [])
        if s.get("scan_sha256")
    ]
    provenance = _provenance("all samples", next(iter(simulated)) if len(simulated) == 1 else None, compared, scans)
    older = [f"{card['label']} ({card['stale']})" for card in cards if card["stale"]]
    newer = _compared_before(results, compared)
    provenance["stale"] = [f"changed since: {listed(older)}. Run `make run` to bring them up to date."] if older else []
    provenance["stale"] += [f"new results since the samples were compared: {listed(newer)}."] if newer else []
    provenance = _with_stale(provenance, _chosen_since(results, COMPARISON, compared))
    comparison = results / f"{COMPARISON}.ipynb"
    return _Page(comparison, "index.html", _step_title(COMPARISON), "All samples", simulated == {True}, provenance, cards=cards, more=more)


def _compared_before(results: Path, compared: dict) -> list[str]:
    """Samples whose fraction is not the one that was compared."""
    keys = ("rocksalt_fraction", "rocksalt_fraction_ci95", "n_patterns_ncm")
    now = {s["sample"]: _result_or_nothing(results, s["sample"], "07_rocksalt_fraction") for s in compared.get("samples", [])}
    return [s["sample"] for s in compared.get("samples", []) if any(s.get(key) != now[s["sample"]].get(key) for key in keys)]


# --- the map page: maps and patterns packed into one file ----------------------------------------

_MAP_BYTES = 9_000_000  # of a map page at most, of the 10 MB that it may have
_MOST_PATTERNS_DRAWN = 150_000  # of a map; of a larger scan every 2nd, 3rd, … is shown
_SPOTS_SHOWN = 24  # of a pattern at most, the strongest
_NOTHING = 2**16 - 1  # stands for no number in columns of 16 bits


def _low_index_directions(crystal: Crystal, most: int = 3) -> tuple[np.ndarray, list[str]]:
    """Unit vectors (n, 3) along all directions of indices up to ``most`` in the crystal's frame, and each one's name (n,).

    Directions that the Laue group takes into each other share a name, ``[1 −1 0]`` as the simplest of them is written.
    """
    along = _indices_up_to(most) @ crystal.lattice
    operators = crystal.laue_rotations
    turned = np.einsum("oij,nj->noi", operators, along) @ np.linalg.inv(crystal.lattice)
    family = np.rint(np.concatenate([turned, -turned], axis=1)).astype(int)
    key = lambda uvw: (np.abs(uvw).sum(), (uvw < 0).sum(), *(-uvw))
    simplest = [min(members, key=key) for members in family]
    return along / np.linalg.norm(along, axis=1, keepdims=True), [direction_name(uvw) for uvw in simplest]


def _zone_columns(rotation: np.ndarray, phase_id: np.ndarray, crystals: list[Crystal]) -> tuple[np.ndarray, np.ndarray, list[list[str]]]:
    """For every pattern (n,) the nearest direction of low indices along the beam and the angle (n,) to it in degrees.

    Directions are numbers in the list of their phase's names, which comes third.
    """
    zone, off, names = np.zeros(len(phase_id), int), np.zeros(len(phase_id)), []
    for k, crystal in enumerate(crystals):
        vectors, each = _low_index_directions(crystal)
        known = list(dict.fromkeys(each))
        number = np.array([known.index(name) for name in each])
        for part in np.array_split(np.flatnonzero(phase_id == k), max(1, (phase_id == k).sum() // 20_000)):
            cosine = rotation[part, :, 2] @ vectors.T
            zone[part], off[part] = number[cosine.argmax(axis=1)], np.degrees(np.arccos(np.clip(cosine.max(axis=1), -1, 1)))
        names.append(known)
    return zone, off, names


def _colour_key(crystal: Crystal) -> list[dict]:
    """The corners of a phase's inverse pole figure: ``direction`` by name and ``colour``."""
    from matplotlib.colors import to_hex
    from orix.plot import IPFColorKeyTSL

    symmetry = crystal.orix_phase().point_group.laue
    corners = symmetry.fundamental_sector.vertices.unit
    colours = IPFColorKeyTSL(symmetry).direction_color_key.direction2color(corners)
    nearest = [direction_name(nearest_zone_axis(crystal, corner, 3)[0]) for corner in corners.data.reshape(-1, 3)]
    return [{"direction": name, "colour": to_hex(np.clip(colour, 0, 1))} for name, colour in zip(nearest, colours, strict=True)]


def _edge_bits(grain_id: np.ndarray, topotactic: np.ndarray) -> np.ndarray:
    """Grain boundaries of a map (ny, nx) as bits: 1 to the right, 4 below, shifted by one where only the phase changes there.

    ``topotactic`` (n, 2) holds the middles (y, x) of the latter.
    """
    bits = np.zeros(grain_id.shape, np.uint8)
    bits[:, :-1] |= (grain_id[:, 1:] != grain_id[:, :-1]).astype(np.uint8)
    bits[:-1] |= 4 * (grain_id[1:] != grain_id[:-1]).astype(np.uint8)
    for y, x in topotactic:
        solid = 1 if x % 1 else 4
        bits[int(y), int(x)] += solid if bits[int(y), int(x)] & solid else 0  # 1 becomes 2, 4 becomes 8
    return bits


def _column(values: np.ndarray, step: float | None = None) -> dict:
    """Numbers as whole ones of 16 bits with the scale that gives them back; where not finite, as nothing.

    Evidence has a long tail: without a ``step`` the range of colours ends at the 98th percentile (``high``).
    """
    values = np.asarray(values, float).ravel()
    finite = np.isfinite(values)
    low, top = (float(values[finite].min()), float(values[finite].max())) if finite.any() else (0.0, 0.0)
    low = min(low, 0.0)
    step = step or max((top - low) / (_NOTHING - 1), 1e-6)
    high = float(np.percentile(values[finite], 98)) if finite.any() else 1.0
    raw = np.where(finite, np.rint((np.where(finite, values, low) - low) / step), _NOTHING).astype(np.uint16)
    return {"raw": raw, "offset": low, "scale": step, "high": high if high > low else low + 1, "beyond": high < top}


def _whole(values: np.ndarray, kind: type) -> dict:
    """Whole numbers as they are, -1 as nothing."""
    return {"raw": np.asarray(values).astype(kind).ravel(), "offset": 0, "scale": 1, "high": 1, "beyond": False}


def _pack(columns: dict[str, dict]) -> dict:
    """Columns as one compressed stream in base64, and where each lies in it."""
    stream, described = bytearray(), []
    for name, column in columns.items():
        raw = column["raw"]
        stream += bytes(-len(stream) % 4)
        more = {k: v for k, v in column.items() if k != "raw"}
        described.append({"name": name, "start": len(stream), "length": raw.size, "bytes": raw.itemsize, **more})
        stream += raw.astype(raw.dtype.newbyteorder("<")).tobytes()
    return {"columns": described, "packed": base64.b64encode(zlib.compress(bytes(stream), 9)).decode()}


@dataclass(frozen=True)
class _Explored:
    """Maps (ny, nx) of a sample with rotations (ny, nx, 3, 3), and what names and predicts them."""

    maps: dict[str, np.ndarray]
    rotation: np.ndarray
    matched: dict
    crystals: list[Crystal]
    banks: list[TemplateBank] | None

    @property
    def phase_id(self) -> np.ndarray:
        return self.maps["phase_id"]


def _explored(results: Path, sample: Sample, data_dir: str | Path) -> _Explored:
    """What the map page of a sample shows; `WorkbookError` where it cannot be read. Without template banks where those cannot be made."""
    from orix import io

    matched, path = read_result(results, sample.id, _MAP_STEP), results / sample.id / "06_ped.h5"
    try:
        maps = load_maps(path, matched)
        rotation = np.asarray(io.load(str(path)).rotations.to_matrix()).reshape(*maps["phase_id"].shape, 3, 3)
    except WorkbookError:
        raise
    except Exception as error:  # h5py and orix raise whatever they meet in a file that was cut short
        raise ResultError(f"{sample.id}/{path.name}: cannot be read: {_one_line(error)}") from error
    crystals = [read_crystal(phase_file(phase, data_dir), phase) for phase in matched["phases"]]
    try:
        calibrated = read_result(results, sample.id, "05_ped_calibration")
        ped: Any = sample.acquisitions.ped  # None, which has no copy, where sample.yaml no longer names the scan
        ped = ped.model_copy(update={"phases": matched["phases"]})
        banks = scan_banks(ped, calibrated, data_dir, step_deg=matched["parameters"]["step_deg"])
    except (WorkbookError, KeyError, AttributeError):
        banks = None
    return _Explored(maps, rotation, matched, crystals, banks)


def _map_columns(explored: _Explored, stride: int) -> tuple[dict[str, dict], list[list[str]]]:
    """All that the map page tells of a pattern, for every ``stride``-th in both directions, and the zone axes' names of each phase."""
    thin = np.s_[::stride, ::stride]
    maps = {name: explored.maps[name][thin] for name in (*_MAP_PROPERTIES, "phase_id")}
    rotation, phase_id = explored.rotation[thin], maps["phase_id"]
    flat = rotation.reshape(-1, 3, 3)
    zone, off, zones = _zone_columns(flat, phase_id.ravel(), explored.crystals)
    topotactic = np.empty((0, 2))
    if explored.banks:
        ends, dotted = boundaries(phase_id, rotation, maps["grain_id"], explored.banks)
        topotactic = ends[dotted].mean(axis=1)
    colours = np.ones((*phase_id.shape, 3))
    for k, crystal in enumerate(explored.crystals):
        inside = phase_id == k
        colours[inside] = ipf_colours(rotation, inside, crystal)[inside]
    columns = {name: _column(maps[name]) for name in ("score", "phase_margin", "orientation_margin")}
    columns |= {
        "correlation": _column(maps["correlation"], 0.001),
        "phase": _whole(phase_id, np.uint8),
        "decided": _whole(maps["decided"], np.uint8),
        "second_phase": _whole(maps["second_phase_id"], np.uint8),
        "second_share": _column(maps["second_share"], 0.001),
        "grain": _whole(maps["grain_id"], np.uint32),
        "edges": _whole(_edge_bits(maps["grain_id"], topotactic), np.uint8),
        "zone": _whole(zone, np.uint16),
        "zone_off": _column(off, 0.1),
        "euler": _column(_bunge_deg(flat), 0.1),
        "ipf": _whole(np.rint(255 * np.clip(colours, 0, 1)), np.uint8),
    }
    return columns, zones


def _bunge_deg(rotation: np.ndarray) -> np.ndarray:
    """Euler angles (n, 3) after Bunge of rotations (n, 3, 3), in degrees from 0 to 360."""
    from orix.quaternion import Rotation

    return np.degrees(Rotation.from_matrix(rotation).to_euler()) % 360


def _kept_patterns(patterns: Any, every: int) -> Iterator[np.ndarray]:
    """Every n-th pattern of every n-th line of a scan, in blocks (m, ky, kx) of whole lines; the scan itself is read box by box."""
    ky, kx = patterns.shape[2:]
    for _, boxes in itertools.groupby(scan_boxes(patterns), key=lambda box: box[0].start):
        pieces = []
        for rows, cols in boxes:
            first, left = (-part.start % every for part in (rows, cols))
            box = slice(rows.start + first, rows.stop, every), slice(cols.start + left, cols.stop, every)
            shape = [len(range(part.start, part.stop, every)) for part in box]
            pieces.append(_read_box(patterns, box).reshape(*shape, ky, kx) if all(shape) else np.empty((*shape, ky, kx), patterns.dtype))
        block = np.concatenate(pieces, axis=1)
        if block.size:
            yield block.reshape(-1, ky, kx)


def _shown_patterns(block: np.ndarray, binning: int, mask: np.ndarray, offset: float) -> np.ndarray:
    """Patterns (m, ky, kx) as the page shows them, (m, ky // binning, kx // binning) of 8 bits: binned, square root, bright is 255."""
    m, ky, kx = block.shape
    counts = np.where(mask, 0, np.maximum(block.astype(np.float32) - offset, 0))
    tall, wide = ky // binning, kx // binning
    binned = counts[:, : tall * binning, : wide * binning].reshape(m, tall, binning, wide, binning).mean(axis=(2, 4))
    amplitude = np.sqrt(binned)
    brightest = np.maximum(np.percentile(amplitude.reshape(m, -1), 99.8, axis=1), 1e-6)
    return np.clip(255 * amplitude / brightest[:, None, None], 0, 255).astype(np.uint8)


_TILES_ACROSS = 8


def _sprite(tiles: np.ndarray) -> str:
    """Up to 64 patterns (n, h, w) side by side in rows of 8, as a WebP in base64."""
    from PIL import Image

    n, tall, wide = tiles.shape
    rows = math.ceil(n / _TILES_ACROSS)
    sheet = np.zeros((rows * _TILES_ACROSS, tall, wide), np.uint8)
    sheet[:n] = tiles
    sheet = sheet.reshape(rows, _TILES_ACROSS, tall, wide).swapaxes(1, 2).reshape(rows * tall, _TILES_ACROSS * wide)
    buffer = io.BytesIO()
    Image.fromarray(sheet).save(buffer, "WEBP", quality=45, method=3)
    return base64.b64encode(buffer.getvalue()).decode()


def _sprites(patterns: Any, every: int, show: Callable[[np.ndarray], np.ndarray], most_bytes: float) -> list[str] | None:
    """The kept patterns of a scan in sprites of 64; None where they would take more than ``most_bytes``."""
    sprites, waiting, spent = [], [], 0
    count = 0
    for block in _kept_patterns(patterns, every):
        waiting.append(show(block))
        count += len(block)
        if count < _TILES_ACROSS**2:
            continue
        tiles = np.concatenate(waiting)
        full = len(tiles) // _TILES_ACROSS**2 * _TILES_ACROSS**2
        sprites += [_sprite(tiles[i : i + _TILES_ACROSS**2]) for i in range(0, full, _TILES_ACROSS**2)]
        waiting, count = [tiles[full:]], len(tiles) - full
        spent = sum(map(len, sprites))
        if spent > most_bytes:
            return None
    if count:
        sprites.append(_sprite(np.concatenate(waiting)))
    return sprites if sum(map(len, sprites)) <= most_bytes else None


def _pattern_choices(shape: tuple[int, ...], bytes_of: Callable[[int], float], most_bytes: float) -> Iterator[tuple[int, int]]:
    """Ways (every n-th pattern, binning) to keep a scan's patterns in a budget, the best first: all patterns, then fine ones.

    ``bytes_of`` says what a pattern takes at a binning.
    """
    ny, nx, ky, kx = shape
    side = max(ky, kx)
    binnings = list(range(math.ceil(side / 160), side // 48 + 1)) or [math.ceil(side / 160)]
    for every in range(1, max(ny, nx) + 1):
        kept = math.ceil(ny / every) * math.ceil(nx / every)
        yield from ((every, b) for b in binnings if kept * bytes_of(b) < 0.95 * most_bytes)


def _packed_patterns(patterns: Any, calibration: Calibration, most_bytes: float) -> tuple[dict, int, int]:
    """Sprites of a scan's patterns within a budget of bytes, every how many-th pattern is kept, and the binning in px."""
    ny, nx = patterns.shape[:2]
    show = lambda block, binning: _shown_patterns(block, binning, calibration.mask, calibration.offset)
    lines = np.unique(np.linspace(0, ny - 1, 8).astype(int))
    columns = np.unique(np.linspace(0, nx - 1, 64 // len(lines)).astype(int))
    tried = patterns_at(patterns, np.add.outer(nx * lines, columns).ravel())
    bytes_of = functools.cache(lambda binning: len(_sprite(show(tried, binning))) / len(tried))
    for every, binning in _pattern_choices(patterns.shape, bytes_of, most_bytes):
        sprites = _sprites(patterns, every, functools.partial(show, binning=binning), most_bytes)
        if sprites is not None:
            side = [n // binning for n in patterns.shape[2:]]
            packed = {"every": every, "across": math.ceil(nx / every), "down": math.ceil(ny / every), "side": side}
            packed |= {"tiles": _TILES_ACROSS**2, "in_row": _TILES_ACROSS}
            return packed | {"sprites": sprites, "scale_invA_per_px": calibration.scale_invA_per_px * binning, "spots": 0}, every, binning
    raise RecordingError(f"a pattern of {patterns.shape[2]} x {patterns.shape[3]} pixels is too large for the page")


def _spot_places(
    explored: _Explored, banks: list[TemplateBank], calibration: Calibration, every: int, binning: int, most: int
) -> np.ndarray:
    """Where the phases found put their strongest spots in the kept patterns (n, most, 2): (y, x) in 254ths of the picture, 255 for none."""
    ny, nx = explored.phase_id.shape
    ky, kx = calibration.mask.shape
    extent = np.array([ky // binning, kx // binning]) * binning
    kept = [(y, x) for y in range(0, ny, every) for x in range(0, nx, every)]
    places = np.full((len(kept), most, 2), 255, np.uint8)
    for n, (y, x) in enumerate(kept):
        k = explored.phase_id[y, x]
        if k < 0:
            continue
        yx, strength, _ = predicted_spots(banks[k], explored.rotation[y, x], calibration.centre_px[y, x], calibration)
        share = (yx[np.argsort(-strength)] + 0.5) / extent
        share = share[((share >= 0) & (share < 1)).all(axis=1)][:most]
        places[n, : len(share)] = np.rint(254 * share)
    return places


def _pattern_data(results: Path, sample: Sample, explored: _Explored, most_bytes: float) -> tuple[dict, dict[str, dict], str]:
    """The patterns for the map page, the column of their spots, and which are kept in words; `WorkbookError` where there are none."""
    path = sample.path("ped")
    try:
        patterns = load_recording(path, navigation_dimension=2).data
        calibration = load_calibration(results / sample.id, patterns.shape)
        if patterns.shape != (*explored.phase_id.shape, *calibration.mask.shape):
            raise RecordingError(f"{path.name}: holds patterns of another shape than those that were matched")
        most_spots = min(_SPOTS_SHOWN, 400_000 // explored.phase_id.size + 8) if explored.banks else 0
        packed, every, binning = _packed_patterns(patterns, calibration, most_bytes)
    except WorkbookError:
        raise
    except Exception as error:  # readers raise whatever they meet in a file that was cut short
        raise RecordingError(f"{path.name}: cannot be read: {type(error).__name__}: {_one_line(error)}") from error
    columns = {}
    if explored.banks and most_spots:
        packed["spots"] = most_spots
        columns["spots"] = _whole(_spot_places(explored, explored.banks, calibration, every, binning, most_spots), np.uint8)
    th = {1: "every position", 2: "every 2nd position", 3: "every 3rd position"}.get(every, f"every {every}th position")
    tall, wide = packed["side"]
    binned = f"binned to {wide} × {tall} px" if binning > 1 else f"{wide} × {tall} px"
    return packed, columns, f"Patterns of {th}, {binned}, compressed with a small loss: to look at, not to measure."


def _map_data(results: Path, sample: Sample, explored: _Explored) -> tuple[dict, str, str]:
    """What map.js draws, the sentence on the patterns that are kept, and why there are none ("" where there are)."""
    ny, nx = explored.phase_id.shape
    stride = next(k for k in itertools.count(1) if math.ceil(ny / k) * math.ceil(nx / k) <= _MOST_PATTERNS_DRAWN)
    columns, zones = _map_columns(explored, stride)
    matched, fractions = explored.matched, explored.matched["area_fraction"]
    colours = phase_colours(matched["phases"])
    phases = [
        {"name": p, "colour": colours[p], "share": _percent(fractions[p]), "zones": z, "key": _colour_key(c)}
        for p, z, c in zip(matched["phases"], zones, explored.crystals, strict=True)
    ]
    spent = len(_pack(columns)["packed"])
    try:
        patterns, more, kept = _pattern_data(results, sample, explored, _MAP_BYTES - spent - 1_200_000)
        why = ""
    except WorkbookError as error:
        patterns, more, kept, why = None, {}, "", f"The patterns are not on this page: {error}."
    drawn = explored.phase_id[::stride, ::stride]
    if stride > 1:
        kept = f"The map shows every {stride}th pattern in both directions. {kept}".replace(" 2th", " 2nd").replace(" 3th", " 3rd")
    data = {
        "shape": list(drawn.shape),
        "stride": stride,
        "step_nm": matched["step_nm"] * stride,
        "phases": phases,
        "not_indexed": _percent(fractions.get("not_indexed", 0.0)),
        "start": int(np.argmax(np.where(drawn >= 0, explored.maps["score"][::stride, ::stride], -np.inf))),
        "patterns": patterns,
        **_pack(columns | more),
    }
    return data, kept, why


def _json_in_html(content: Any) -> str:
    """JSON that may stand in a script element: no ``<``, ``>`` or ``&`` ends it.

    >>> _json_in_html({"label": "</script>"})
    '{"label":"\\\\u003c/script\\\\u003e"}'
    """
    text = json.dumps(plain(content, "parameters"), ensure_ascii=True, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


_LAYERS = {
    "phase": "phase",
    "correlation": "correlation",
    "score": "score",
    "orientation": "orientation (IPF colours)",
    "phase_margin": "phase margin",
    "orientation_margin": "orientation margin",
    "second": "second phase",
}


def _map_html(
    page: _Page, sample: Sample, frame: dict, hidden: list[tuple[str, str]], results: Path, data_dir: str | Path, exporter: Any
) -> str:
    """The map page of a sample as HTML."""
    around = frame | {"layers": [{"name": k, "text": v} for k, v in _LAYERS.items()], "scripts": _page_scripts("map.js")}
    around["policy"] = _content_policy(around["scripts"])
    try:
        explored = _explored(results, sample, data_dir)
        data, kept, why = _map_data(results, sample, explored)
        around |= {"data": _json_in_html(data), "patterns_text": kept, "no_patterns": _without_paths(why, hidden)}
        around["map_label"] = _map_in_words(page.sample, explored.matched)
    except WorkbookError as error:
        around["fault"] = _without_paths(_one_line(error), hidden)
    return exporter.environment.get_template("map.html.j2").render(page=around)


# --- rendering -----------------------------------------------------------------------------------


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


def _joined_streams(outputs: list) -> list:
    """Outputs with consecutive prints as one, and without empty ones."""
    joined: list = []
    for output in outputs:
        if output.output_type != "stream":
            joined.append(output)
        elif joined and joined[-1].output_type == "stream" and joined[-1].name == output.name:
            joined[-1].text += output.text
        elif output.text.strip():
            joined.append(output)
    return joined


_EXPLORE_TEXT = "[Explore the map](map.html): phase, scores and orientation of every pattern, and the pattern itself, without a kernel."


def _without_widgets(cells: list, explore: str) -> list:
    """Cells without those tagged ``explore``, which live in JupyterLab only; the first becomes a link where a map page stands for them."""
    import nbformat

    kept, link = [], [nbformat.v4.new_markdown_cell(_EXPLORE_TEXT)] if explore else []
    for cell in cells:
        if "explore" in cell.metadata.get("tags", []):
            kept += link
            link = []
        else:
            kept.append(cell)
    return kept


def _presentable(notebook: Any, hidden: list[tuple[str, str]], explore: str) -> Any:
    """The notebook as readers should see it: no paths, no tracebacks, no ticks of the progress, no markers of papermill, no widgets."""
    progress = re.compile(r"^\S* ?\d\d_\w+: .* \d+ of \d+, \d+ s\n", re.MULTILINE)
    notebook.cells = [cell for cell in notebook.cells if "papermill-error-cell-tag" not in cell.metadata.get("tags", [])]
    notebook.cells = _without_widgets(notebook.cells, explore)
    for cell in notebook.cells:
        cell.source = _without_paths(cell.source, hidden)
        summaries = {"parameters": "Parameters: defaults", "injected-parameters": "Parameters of this run"}
        cell.metadata["summary"] = next((summaries[t] for t in cell.metadata.get("tags", []) if t in summaries), "Code")
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
            cell.outputs = _joined_streams(outputs)
    notebook.metadata.pop("widgets", None)
    return notebook


def _safe_html(text: str) -> str:
    """HTML with nothing in it that could run or load: text, tables, links and pictures that are inside."""
    import bleach

    def allowed(tag: str, name: str, value: str) -> bool:
        if name in ("href", "src"):
            return value.startswith("data:image/") if tag == "img" else value.startswith(("#", "http:", "https:")) or ":" not in value
        return name in ("id", "alt", "title", "class", "scope", "colspan", "rowspan", "lang")

    tags = "h1 h2 h3 h4 h5 h6 p br hr div span section ul ol li dl dt dd table caption thead tbody tfoot tr th td"
    tags += " a abbr b blockquote code del em figure i img kbd pre small strong sub summary sup details"
    protocols = ["http", "https", "data"]
    text = re.sub(r"(?is)<(style|script)\b.*?(?:</\1\s*>|\Z)", "", text)  # bleach takes the tags alone, and their text would be read
    safe = bleach.clean(text, tags=tags.split(), attributes=allowed, protocols=protocols, strip=True, strip_comments=True)
    return re.sub(r"<th\b[^>]*>(?:\s|&nbsp;)*</th>", "<td></td>", safe)  # a header that says nothing is none


_PAGE_TEMPLATES = PROJECT_ROOT / "notebooks" / "templates"


def _page_style() -> str:
    """The style sheet of all pages, with the colours of highlighted code for light and dark."""
    from pygments.formatters import HtmlFormatter

    own = (_PAGE_TEMPLATES / "page" / "style.css").read_text(encoding="utf-8")
    colours = {style: HtmlFormatter(style=style, nobackground=True).get_style_defs(".highlight") for style in ("xcode", "github-dark")}
    return f"{own}\n{colours['xcode']}\n@media screen and (prefers-color-scheme: dark) {{\n{colours['github-dark']}\n}}"


def _page_scripts(*more: str) -> list[str]:
    """The scripts of a page: the one of all pages, and its own."""
    return [(_PAGE_TEMPLATES / "page" / name).read_text(encoding="utf-8") for name in ("page.js", *more)]


def _content_policy(scripts: list[str]) -> str:
    """The content security policy of a page: nothing is loaded from anywhere, and only these scripts run."""
    digests = [base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in scripts]
    allowed = " ".join(f"'sha256-{digest}'" for digest in digests)
    return f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src {allowed}; base-uri 'none'; form-action 'none'"


def _page_exporter() -> Any:
    """The exporter of all pages, with the templates of notebooks/templates/page."""
    from nbconvert import HTMLExporter
    from traitlets.config import Config

    config = Config()
    config.NbConvertBase.display_data_priority = ["text/html", "text/markdown", "image/png", "image/jpeg", "text/plain"]
    return HTMLExporter(
        config=config,
        template_name="page",
        extra_template_basedirs=[str(_PAGE_TEMPLATES)],
        exclude_anchor_links=True,
        filters={"safe_html": _safe_html},
    )


def _shown_card(card: dict, results: Path, hidden: list[tuple[str, str]]) -> dict:
    """A card with its picture, and without paths."""
    rows = [row | {"detail": _without_paths(row["detail"], hidden)} for row in card["rows"]]
    image = _thumbnail(results, card["id"], card["matched"]) if card["map"] else ""
    alt = card["alt"] if image or not card["map"] else "No phase map: 06_ped.h5 cannot be read"
    return card | {"image": image, "alt": alt, "rows": rows, "fault": _without_paths(card["fault"], hidden)}


_SIDE_BY_SIDE = 12  # samples whose cards all show; of more they fold away by condition, with a box to find one


def _card_groups(cards: list[dict]) -> list[dict]:
    """The cards as the first page shows them: in one group without a name, or by condition where there are many."""
    if len(cards) <= _SIDE_BY_SIDE:
        return [{"name": "", "cards": cards}] if cards else []
    groups: dict[str, list[dict]] = {}
    for card in cards:
        groups.setdefault(card["condition"], []).append(card)
    told = {name: [f"{len(own)} samples" if len(own) > 1 else "1 sample"] for name, own in groups.items()}
    for word in ("fault", "stale"):
        for name, own in groups.items():
            count = sum(bool(card[word]) for card in own)
            told[name] += [f"{count} {'failed' if word == 'fault' else 'older than the data'}"] if count else []
    return [{"name": name, "cards": own, "told": ", ".join(told[name])} for name, own in groups.items()]


def _map_legend(cards: list[dict]) -> list[dict]:
    """Name and colour of every phase in the maps of the cards, and of what was not indexed."""
    colours: dict[str, str] = {}
    for card in cards:
        colours |= phase_colours(card["matched"]["phases"]) if card["map"] else {}
    return [{"name": k, "colour": v} for k, v in {**colours, "not indexed": NOT_INDEXED_COLOUR}.items()] if colours else []


def _executed_notebook(page: _Page) -> Any:
    """The executed notebook of a page, or one cell that says why there is none."""
    import nbformat

    why = "the notebook was not executed"
    if page.notebook.is_file():
        try:
            notebook = nbformat.read(page.notebook, as_version=4)
            nbformat.validate(notebook)
            return notebook
        except (ValueError, AttributeError, KeyError, nbformat.ValidationError):
            why = "the executed notebook is broken off; run the step again"
    text = f"# {page.title}\n\nThis page could not be made: {why}."
    return nbformat.v4.new_notebook(cells=[nbformat.v4.new_markdown_cell(text)])


def _page_html(page: _Page, source: str, hidden: list[tuple[str, str]], results: Path, data_dir: str | Path, exporter: Any) -> str:
    """One page as HTML."""
    notebook = _executed_notebook(page)
    scripts = _page_scripts()
    frame = {
        "source": source,
        "policy": _content_policy(scripts),
        "scripts": scripts,
        "style": _page_style(),
        "title": f"{page.sample}: {page.title}" if page.home else page.title,
        "home": page.home,
        "sample": page.sample,
        "simulated": page.simulated,
        "navigation": page.navigation,
        "provenance": _dated(page.provenance, notebook, hidden),
        "groups": _card_groups([_shown_card(card, results, hidden) for card in page.cards]),
        "legend": _map_legend(page.cards),
        "more": page.more,
    }
    if page.maps:
        return _map_html(page, page.maps, frame, hidden, results, data_dir, exporter)
    notebook = _presentable(notebook, hidden, page.explore)
    for cell in [cell for cell in notebook.cells if cell.cell_type == "markdown"][:1]:
        cell.metadata["opening"] = True
    return exporter.from_notebook_node(notebook, resources={"page": frame})[0]


def _is_made_of(target: Path, source: str) -> bool:
    """Whether a page is there already, made of that source."""
    if not target.is_file():
        return False
    with open(target, encoding="utf-8", errors="replace") as file:
        return source in file.read(500)


def render_pages(results_dir: str | Path = "", data_dir: str | Path = "") -> Path:
    """Render every executed notebook as ``results/html/<id>/<step>.html``, the comparison as ``index.html``.

    Each sample with a matched scan gets ``map.html`` too, where its maps and patterns are explored without a kernel. The pages
    hold their figures with alt texts and no script but the project's own, name no absolute path, and open from
    disk without a network. One that is up to date is left as it is, one of a sample that is gone is
    removed. Returns the path of ``index.html``.
    """
    results = Path(os.path.abspath(_results_root(results_dir)))
    folder = results / "html"
    hashes = _Hashes(results)
    pages = _planned_pages(results, data_dir, hashes)
    hidden = _hidden_paths(results, data_dir)
    made_by = [file_sha256(p) for p in (Path(__file__), *sorted((_PAGE_TEMPLATES / "page").iterdir()))]
    exporter = _page_exporter()
    for page in pages:
        source = hashlib.sha256(repr((page, hidden, made_by)).encode())
        source.update(hashes.of(page.notebook).encode() if page.notebook.is_file() else b"")
        target = folder / page.target
        if not _is_made_of(target, source.hexdigest()):
            write_atomically(target, _page_html(page, source.hexdigest(), hidden, results, data_dir, exporter))
    for path in set(folder.rglob("*.html")) - {folder / page.target for page in pages}:
        path.unlink()
    hashes.save()
    return folder / "index.html"


def _data_of_run(results: Path) -> str:
    """The data folder that the comparison was executed on, as its notebook tells; "" for the project's own, or where it does not."""
    try:
        told = json.loads((results / f"{COMPARISON}.ipynb").read_text(encoding="utf-8"))["metadata"]["papermill"]["parameters"]["data_dir"]
    except (OSError, ValueError, KeyError, TypeError):
        return ""
    return "" if Path(told or "data").resolve() == (PROJECT_ROOT / "data").resolve() else told


def _refreshed_pages(results: Path, data_dir: str | Path) -> Path:
    """The folder of the pages, rendered again where the data they were made of are still there; `ResultError` where there are none."""
    if not (results / "html" / "index.html").is_file():
        raise ResultError("there are no pages yet: run `make run` first")
    data_dir = str(data_dir) or _data_of_run(results)
    if not data_dir or Path(data_dir).is_dir():
        render_pages(results, data_dir)
    return results / "html"


def share_pages(results_dir: str | Path = "", data_dir: str | Path = "") -> Path:
    """Gather the pages as ``results/share/workbook`` and the same as ``workbook.zip`` beside it, whose path is returned.

    They are rendered again first, so that they say which results are older than the data; ``data_dir`` is by default the folder
    of the last run. Results that came without their data are shared as they are.
    """
    results = _results_root(results_dir)
    pages = _refreshed_pages(results, data_dir)
    folder = results / "share" / "workbook"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(pages, folder)
    return Path(shutil.make_archive(str(folder), "zip", folder.parent, folder.name))


def find_chromium() -> str | None:
    """The Chromium or Chrome that prints pages: the one that CHROMIUM names, else the first on PATH; None where there is none."""
    named = os.environ.get("CHROMIUM", "")
    candidates = [named] if named else ["chromium", "chromium-browser", "google-chrome", "google-chrome-stable"]
    return next((found for found in map(shutil.which, candidates) if found), None)


_PAGE_NUMBERS = (
    '<div style="width: 100%; margin: 0 16mm; font: 8px sans-serif; color: #555; display: flex; justify-content: space-between">'
    '<span>{}</span><span><span class="pageNumber"></span> of <span class="totalPages"></span></span></div>'
)


#: A PDF writes a link to another page with the path of this machine
_UNLINKED = "document.querySelectorAll('a:not([href^=http])').forEach((a) => a.removeAttribute('href'))"


def print_comparison(results_dir: str | Path = "", data_dir: str | Path = "") -> Path:
    """The comparison as ``results/share/comparison.pdf`` (A4, tagged, with bookmarks), printed by Chromium without a network.

    `WorkbookError` where no Chromium is installed, `ResultError` where there are no pages.
    """
    from playwright.sync_api import Error, sync_playwright

    chromium = find_chromium()
    if chromium is None:
        raise WorkbookError("a PDF needs Chromium or Chrome: install one, or name its program in CHROMIUM")
    results = _results_root(results_dir)
    index = _refreshed_pages(results, data_dir) / "index.html"
    target = results / "share" / "comparison.pdf"
    footer = _PAGE_NUMBERS.format("Sample comparison")
    try:
        with sync_playwright() as play:
            browser = play.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-background-networking"])
            page = browser.new_context(offline=True).new_page()
            page.goto(index.resolve().as_uri())
            page.evaluate(_UNLINKED)
            printed = page.pdf(
                format="A4", print_background=True, tagged=True, outline=True, display_header_footer=True,
                header_template="<span></span>", footer_template=footer,
                margin={"top": "16mm", "bottom": "18mm", "left": "16mm", "right": "16mm"},
            )  # fmt: skip
            browser.close()
    except Error as error:
        raise WorkbookError(f"{chromium} did not print the comparison: {_one_line(error)}") from error
    return write_atomically(target, printed)


def tell(work: Callable[..., Path], *given: Any) -> int:
    """Do what makes a file, print its path and size, or why there is none in one line; returns the exit status, 0 or 1."""
    try:
        made = work(*given)
    except WorkbookError as error:
        print(error)
        return 1
    print(f"{os.path.relpath(made)} ({made.stat().st_size / 1e6:.1f} MB)")
    return 0


def finish_run(data_dir: str | Path = "", results_dir: str | Path = "") -> int:
    """Render the pages of a run, tell every failure in one message, and return the exit status, 0 or 1."""
    results, faults = _results_root(results_dir), []
    try:
        pages = f"pages: {os.path.relpath(render_pages(results, data_dir))}"
    except OSError as error:
        pages = f"pages: those of before, {error.filename or 'they'} could not be written: {error.strerror}"
        faults.append("FAILED to write the pages")
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
    faults += [f"NOT RUN {why}" for why in misnamed_samples(data_dir)]
    print("\n".join(["", *faults, pages]))
    return 1 if faults else 0
