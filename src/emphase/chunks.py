"""TODO."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import math
import os
import shutil
import threading
import time
import warnings
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from .errors import EmphaseError, one_line
from .sources import source_sha256

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

    def chunk_folder(self, task: Callable, *depends_on: Any) -> Path:
        """The folder for results of ``task`` that depend on this content; folders of other content, or of other code, are taken away.

        The code is that of the module which ``task`` stands in and of all that it imports from this library (`source_sha256`).
        """
        versions = [version(name) for name in ("numpy", "scipy", "numba")]
        folder = self.folder / content_key(self.inputs, source_sha256(task.__module__), versions, depends_on)
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
    EmphaseError
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
            raise EmphaseError(f"{_told(folder)}: another process is at work on this, expected one at a time: wait for its end") from None
        except OSError as error:
            self.close()
            size = sum(math.prod(shape) * np.dtype(dtype).itemsize for shape, dtype, _ in layout.values()) / 1e6
            raise EmphaseError(f"{_told(folder)}: no place to keep finished work, {size:.0f} MB: {error.strerror or error}") from error

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

    Raises `EmphaseError` where no scheduler answers, or workers have other code or cannot read the recording.
    """
    from distributed import as_completed

    if not todo:
        return
    with _cluster(address, task.__module__) as client:
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
            if isinstance(error, EmphaseError):
                raise error
            if tries == _TRIES:
                raise EmphaseError(
                    f"scheduler {address}: part {chunk} failed {tries} times on the workers, the last time with {one_line(repr(error))}; "
                    "is there enough memory for a worker? What is finished is kept: run again"
                )
            spread = client.scatter([shared], broadcast=True)[0]  # it may be gone with the workers that had it
            waiting.append((chunk, tries + 1))


@contextlib.contextmanager
def _cluster(address: str, module: str) -> Iterator[Any]:
    """A client of a dask.distributed scheduler whose workers have ``module``, and what it imports, as it stands here."""
    from distributed import Client

    try:
        client = Client(address, timeout=_ANSWER_S, set_as_default=False)
    except (OSError, ValueError, TypeError) as error:  # a timeout is an OSError
        raise EmphaseError(
            f"scheduler: got {address!r}, where no dask scheduler answers ({one_line(error)}); expected the address of one, tcp://host:8786"
        ) from None
    with client:
        try:
            client.wait_for_workers(1, timeout=60)
        except TimeoutError:
            raise EmphaseError(f"scheduler {address}: has no worker after a minute, expected one at least") from None
        found = client.run(source_sha256, module)
        others = [worker for worker, sha256 in found.items() if sha256 != source_sha256(module)]
        if others:
            raise EmphaseError(f"scheduler {address}: worker {others[0]} has another {module}, expected the same on all machines")
        yield client
