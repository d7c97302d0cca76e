"""Recordings of frames: the one door through which files of microscopes come in, and what is refused at it.

Files are read lazily by RosettaSciIO and become hyperspy signals with 2-D frames. Only arrays, steps and units of axes are kept: all
else that a file may hold, such as packages to import, formulae and pickled models, stays out, and so do links that lead out of the
file's folder. A header may announce more than the file, or the memory, can hold; that is an error before anything is read. Readers
raise whatever they meet in a broken file; here each fault is one `EmphaseError` that begins with the file's name.

`RecordedFrames` stands for the array of a scan or a stack and reads the part that is indexed.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import logging
import math
import os
import re
import threading
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from .errors import EmphaseError, one_line, shortened
from .spot_lists import drawn_recording, read_spot_list


@dataclass(frozen=True)
class FrameLimits:
    """What a file may announce, and how long its reader may take."""

    reader_s: float = 120  # for a header and a map of what is behind it
    compression: int = 1100  # bytes of data for a byte of a file; deflate reaches 1032
    axis: int = 10_000_000  # steps: hyperspy makes a number for every one
    memory_share: float = 1 / 8  # of the memory, for what is read whole: computing takes several times as much


LIMITS = FrameLimits()
#: Formats of spectra whose readers open whatever file a recording names
_READERS_LEFT_OUT = ("EDAX", "EMPAD", "JEOL")


def load_recording(path: str | Path, *, navigation_dimension: int | None = None) -> Any:
    """A recording of 2-D frames as a lazy hyperspy signal.

    Parameters
    ----------
    path
        A file of any format that RosettaSciIO reads; for a scan also a list of spots (`emphase.spot_lists`), which is drawn.
    navigation_dimension
        0 for one image, 1 for a stack, 2 for a scan of patterns; None takes any. A stack is
        taken for a scan of one line where 2 is given, and a single frame for one of 1 x 1.

    Returns
    -------
    A lazy ``Signal2D`` with data of shape ([[scan y,] scan x or frame,] y, x): the largest such array that the file holds.

    Raises
    ------
    EmphaseError
        Where the file cannot be read or does not hold such frames; the text says why.
    """
    path = Path(path)
    _check_there(path)
    _refuse_links(path, path.parent.resolve(), set())
    if navigation_dimension in (None, 2) and (listed := read_spot_list(path)) is not None:
        drawn = drawn_recording(listed)
        _check_memory(path, drawn.data, read_whole=False)
        return drawn
    reader = _reader(path)
    try:
        with warnings.catch_warnings(), _QuietLogging("rsciio", "hyperspy", "tifffile"), _at_most(LIMITS.reader_s, path.name):
            warnings.simplefilter("ignore")
            arrays = [found for found in reader(str(path), lazy=True) if "data" in found]
            _check_announced(path, [found["data"] for found in arrays])
            signals = [_plain_signal(found) for found in arrays]
            frames = [s for s in (_as_frames(s, navigation_dimension) for s in signals) if s is not None]
    except EmphaseError:
        raise
    except Exception as error:  # readers raise whatever they meet in a broken file
        raise EmphaseError(f"{path.name}: cannot be read: {type(error).__name__}: {one_line(error)}") from error
    if not frames:
        shapes = ", ".join(str(s.data.shape) for s in signals) or "nothing"
        kinds: dict[int | None, str] = {0: "one image", 1: "a stack of frames", 2: "a scan of patterns"}
        raise EmphaseError(f"{path.name}: holds arrays of shape {shapes}, expected {kinds.get(navigation_dimension, '2-D frames')}")
    signal = max(frames, key=lambda s: s.data.size)
    _check_memory(path, signal.data, read_whole=navigation_dimension == 0)
    return signal


def _check_there(path: Path) -> None:
    """`EmphaseError` where a path is no file with something in it."""
    if not path.exists():
        raise EmphaseError(f"{path.name}: no such file")
    if not (path.is_file() or (path.suffix == ".zspy" and path.is_dir())):
        raise EmphaseError(f"{path.name}: neither a file nor a .zspy folder, expected a recording")
    if path.stat().st_size == 0 or (path.is_dir() and not any(path.iterdir())):
        raise EmphaseError(f"{path.name}: the file is empty")


class RecordedFrames:
    """The frames of a recording, read where they are used: it stands for the array ([[scan y,] scan x or frame,] y, x).

    ``frames[index]`` is a numpy array, read then; nothing else of the file is in memory. Pickled, it is the name of its file, which
    another process then needs too.

    Parameters
    ----------
    path, navigation_dimension
        As for `load_recording`.

    Attributes
    ----------
    shape, dtype, chunks
        Of the array; ``chunks`` as dask has them.

    Raises
    ------
    EmphaseError
        As `load_recording` does, and on indexing where that part cannot be read.
    """

    def __init__(self, path: str | Path, navigation_dimension: int):
        self.path, self.navigation_dimension = Path(path).absolute(), navigation_dimension
        _check_there(self.path)
        data = self.signal.data
        self.shape, self.dtype, self.chunks = data.shape, data.dtype, data.chunks

    @property
    def signal(self) -> Any:
        """The lazy hyperspy signal, with its axes and metadata."""
        state = self.path.stat()
        return _opened_recording(str(self.path), self.navigation_dimension, state.st_size, state.st_mtime_ns)

    @property
    def is_spot_list(self) -> bool:
        """Whether the file holds no patterns but lists of their spots, from which the frames are drawn (`emphase.spot_lists`)."""
        return bool(self.signal.metadata.get_item("Signal.spot_list", default=False))

    def __reduce__(self) -> tuple:
        return RecordedFrames, (str(self.path), self.navigation_dimension)

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, index: Any) -> np.ndarray:
        try:
            return self.signal.data[index].compute(scheduler="threads")
        except Exception as error:  # readers raise whatever they meet in a broken file
            raise EmphaseError(f"{self.path.name}: cannot be read at {index}: {type(error).__name__}: {one_line(error)}") from error


@functools.lru_cache(maxsize=4)
def _opened_recording(path: str, navigation_dimension: int, size: int, changed_ns: int) -> Any:
    """`load_recording`, once in a process for a file of this size and date."""
    return load_recording(path, navigation_dimension=navigation_dimension)


@contextlib.contextmanager
def _at_most(seconds: float, name: str) -> Iterator[None]:
    """`EmphaseError` in what takes longer, on the main thread: a header can announce more frames than its reader can count."""
    import signal

    if threading.current_thread() is not threading.main_thread() or not hasattr(signal, "SIGALRM"):
        yield
        return

    def end(*_: object) -> None:
        raise EmphaseError(f"{name}: its header announces more than can be read in {seconds:g} s, expected a file that is whole")

    before = signal.signal(signal.SIGALRM, end)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def _reader(path: Path) -> Callable[..., list[dict]]:
    """The function of RosettaSciIO that reads files of a path's suffix; `EmphaseError` where there is none, or several."""
    from rsciio import IO_PLUGINS

    suffix = path.suffix.lower().lstrip(".")
    plugins = [p for p in IO_PLUGINS if p["name"] not in _READERS_LEFT_OUT and suffix in map(str.lower, p["file_extensions"])]
    plugins = [p for p in plugins if p["name"].lower() == suffix] or plugins
    if not plugins:
        raise EmphaseError(f"{path.name}: no reader for {path.suffix or 'a name without a suffix'}, expected a format of RosettaSciIO")
    if len(plugins) > 1:
        names = ", ".join(p["name"] for p in plugins)
        raise EmphaseError(f"{path.name}: cannot be read: {path.suffix} may be any of {names}; expected a suffix of one format")
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
    """The step and unit of an axis as hyperspy takes them; a step of 1 without unit where one of them is invalid or the steps differ."""
    scale, units = axis.get("scale"), axis.get("units")
    if not (isinstance(units, str) and isinstance(scale, (int, float, np.number)) and np.isfinite(scale)):
        scale, units = 1.0, None
    kept = {"size": size, "scale": float(scale), "offset": 0.0, "units": units}
    return kept | ({"navigate": bool(axis["navigate"])} if "navigate" in axis else {})


def _refuse_links(path: Path, home: Path, seen: set[Path]) -> None:
    """`EmphaseError` where a recording, or a file beside it that belongs to it, leads out of its folder ``home``.

    By a symbolic link, or by one within an HDF5 file; where that leads to a file in the folder, the same holds for this one.
    """
    first = re.split(r"[._]", path.name)[0]
    for other in [*(path.rglob("*") if path.is_dir() else ()), *(p for p in path.parent.iterdir() if p.name.startswith(first))]:
        if other.is_symlink() and not other.resolve().is_relative_to(home):
            raise EmphaseError(f"{path.name}: {other.name} is a link out of its folder, expected files inside")
    seen.add(path)
    for name in _hdf5_links(path) if path.is_file() else ():
        linked = (home / name).resolve()
        if not (linked.is_relative_to(home) and linked.is_file()):
            raise EmphaseError(
                f"{path.name}: links to {shortened(Path(name).name)!r} elsewhere, expected data inside the file or beside it"
            )
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
        raise EmphaseError(f"{path.name}: cannot be read: {type(error).__name__}: {one_line(error)}") from error
    return names


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
    """The array that a file announces, for messages."""
    return f"{path.name}: announces {' × '.join(map(str, data.shape))} {data.dtype} ({data.nbytes / 1e6:.4g} MB)"


def _check_announced(path: Path, arrays: list[Any]) -> None:
    """`EmphaseError` where a file cannot hold what it announces; hyperspy makes a number for every step of an axis."""
    files = path.rglob("*") if path.is_dir() else path.parent.iterdir()  # data may lie in a file beside it
    held = sum(p.stat().st_size for p in files if p.is_file())
    for data in arrays:
        if data.nbytes > LIMITS.compression * held:
            raise EmphaseError(f"{_announced(path, data)}, expected no more than {held} bytes on disk can hold")
        if max(data.shape, default=0) > LIMITS.axis:
            raise EmphaseError(f"{_announced(path, data)}, expected at most {LIMITS.axis} along an axis")


def _check_memory(path: Path, data: Any, *, read_whole: bool) -> None:
    """`EmphaseError` where what is read at a time would take too much of the memory."""
    block = math.prod(max(sizes) for sizes in data.chunks) if hasattr(data, "chunks") else data.size
    at_once = data.size if read_whole else max(block, math.prod(data.shape[-2:]))
    most = LIMITS.memory_share * _memory_bytes()
    if at_once * data.dtype.itemsize > most:
        part = "" if read_whole else f", of which {at_once * data.dtype.itemsize / 1e6:.4g} MB are read at once"
        raise EmphaseError(f"{_announced(path, data)}{part}; expected at most {most / 1e6:.4g} MB, an eighth of the memory")


def read_array(data: Any, name: str) -> np.ndarray:
    """A lazy array read into the memory.

    Parameters
    ----------
    data
        Of a signal of `load_recording`.
    name
        Of its file, for the message.

    Raises
    ------
    EmphaseError
        Where the file is broken in the middle.
    """
    try:
        with _QuietLogging("rsciio", "tifffile"):
            return np.asarray(data)
    except Exception as error:  # readers raise whatever they meet in a broken file
        raise EmphaseError(f"{name}: cannot be read to its end: {type(error).__name__}: {one_line(error)}") from error


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
    """The axes of a signal after ``count`` scan axes of one step."""
    axes = [{"name": name, "size": 1, "navigate": True} for name in ("y", "x")[:count]]
    return axes + [a.get_axis_dictionary() | {"size": a.size} for a in signal.axes_manager._axes]


#: Units as some writers spell them: NCEM's EMD, and pyxem in LaTeX
_UNITS_AS_WRITTEN = {"n_m": "nm", "n_m^-1": "1/nm", "A^{-1}": "1/angstrom", "A^-1": "1/angstrom", "nm^{-1}": "1/nm", "1/A": "1/angstrom"}
#: One unit or its inverse
_ONE_UNIT = re.compile(r"(1 ?/ ?)?[^\W\d]{1,24}( ?(\*\*|\^) ?\(?-?[12]\)?|⁻¹)?")


def axis_scale(signal: Any, unit: str, *, scan: bool = False) -> float | None:
    """The step of a recording's x axis as its file states it.

    Parameters
    ----------
    signal
        Of `load_recording`.
    unit
        Of the step, as pint names it: "nm", "1/angstrom".
    scan
        Take the axis of the scan, not of the frames.

    Returns
    -------
    The step in that unit; None where the file has none, or one in another kind of unit.
    """
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


def is_drawn_to_scale(signal: Any) -> bool:
    """Whether the patterns of a recording are drawn from a list of spots in 1/Å, at a scale that the drawing chose.

    Then no other scale than that of its axes can be right, and what a record says of the camera is about the one before.
    """
    return bool(signal.metadata.get_item("Signal.drawn_scale", default=False))


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
