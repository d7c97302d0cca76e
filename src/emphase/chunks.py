"""Long work chunk by chunk: kept when a process is killed, resumed by the next, done here or by the workers of a cluster.

Long work is one function of one chunk, whose result depends on its arguments and on nothing else. So a chunk can be done in
this process or by any worker, now or after a crash, with the same result to the bit. This process alone writes:
`finish_chunks` puts the results into the arrays of a `ChunkStore`, memory-mapped files with a journal that holds a checksum
(CRC-32) of every finished chunk. The folder of these files is named by a hash of all that the results depend on
(`LongWork.chunk_folder`): the recordings, the source of the method with all that it imports, the versions of the numerical
libraries, and the arguments.

A chunk of a worker that was lost is done by another one; workers are those of dask.distributed (M. Rocklin, Proc. 14th Python in Science
Conf. (2015) 126).
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import math
import os
import shutil
import threading
import warnings
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from .errors import EmphaseError, one_line
from .files import is_locked, lock_file
from .sources import source_sha256


@dataclass(frozen=True)
class ClusterOptions:
    """How long a cluster is waited for, and how often a chunk is tried."""

    tries: int = 3  # of a chunk whose worker was lost: more point to a chunk that kills its worker, by its memory for instance
    answer_s: float = 20  # for a scheduler that may be starting
    worker_s: float = 60  # for the first worker: a queue may have to start it
    queued_per_worker: int = 2  # chunks on their way: one that is done and one that waits, so that no worker waits for data


OPTIONS = ClusterOptions()
#: Kernels take all threads of a process, and numba's pool is for one at a time.
_ONE_POOL = threading.Lock()
#: What does a chunk: shared and own arguments in, its part of every array out
Task = Callable[..., dict[str, np.ndarray]]
#: For every array its shape, type, and how many axes come before those that a chunk is a part of
Layout = dict[str, tuple[tuple[int, ...], Any, int]]


@dataclass(frozen=True)
class LongWork:
    """Where the finished chunks of long work are kept, what they depend on beside its arguments, and who does them.

    Parameters
    ----------
    folder
        Holds one folder for every key of all that a result depends on.
    inputs
        The files that the work reads, and the SHA-256 of each.
    scheduler
        Address of a dask.distributed scheduler; empty for this process.
    """

    folder: Path
    inputs: dict[str, str]
    scheduler: str = ""

    def part(self, name: str) -> LongWork:
        """The same for one of several pieces of long work under one folder, which do not remove each other's chunks."""
        return replace(self, folder=self.folder / name)

    def chunk_folder(self, task: Callable, *depends_on: Any) -> Path:
        """The folder for results of a task that depend on some content; folders of other content or other code are removed.

        Parameters
        ----------
        task
            The function of one chunk. The code is that of its module and of all that this imports from the library (`source_sha256`).
        *depends_on
            The content, as `content_key` takes it.
        """
        versions = [version(name) for name in ("numpy", "scipy", "numba")]
        folder = self.folder / content_key(self.inputs, source_sha256(task.__module__), versions, depends_on)
        for other in self.folder.glob("*") if self.folder.is_dir() else ():
            if other != folder and not is_locked(other):
                shutil.rmtree(other, ignore_errors=True)
        return folder


def content_key(*content: Any) -> str:
    """A key of 24 hexadecimal digits of arrays, dataclasses, tuples, lists, dicts, texts and numbers, by their content alone.

    Raises
    ------
    TypeError
        For a value of another type: its content is not known.

    Examples
    --------
    >>> content_key(np.arange(3), "a") == content_key(np.arange(3), "a") != content_key(np.arange(3.0), "a")
    True
    """
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
        Chunks that an earlier process finished there are taken over where the arrays still have the checksum (CRC-32) of the journal.

    Attributes
    ----------
    arrays
        The arrays by name, zero where no chunk is finished.

    Raises
    ------
    EmphaseError
        Where another process is at work in the folder, or there is no room for the arrays.
    """

    def __init__(self, layout: Layout, chunks: dict[str, tuple[slice, ...]], folder: Path | None = None):
        self.chunks, self._lead = chunks, {name: lead for name, (_, _, lead) in layout.items()}
        self._done: set[str] = set()
        self._open_files: list[int] = []
        if folder is None:
            self.arrays = {name: np.zeros(shape, dtype) for name, (shape, dtype, _) in layout.items()}
            return
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._open_files.append(lock_file(folder / ".lock"))
            self.arrays = {name: _array_in_file(folder / f"{name}.bin", shape, dtype) for name, (shape, dtype, _) in layout.items()}
            self._take_over(folder / "journal")
        except BlockingIOError:
            self.close()
            raise EmphaseError(f"{_shown(folder)}: another process is at work on this, expected one at a time: wait for its end") from None
        except OSError as error:
            self.close()
            size = sum(math.prod(shape) * np.dtype(dtype).itemsize for shape, dtype, _ in layout.values()) / 1e6
            raise EmphaseError(f"{_shown(folder)}: no place to keep finished work, {size:.0f} MB: {error.strerror or error}") from error

    def _take_over(self, journal: Path) -> None:
        """Count the chunks as done whose checksum in the journal is that of the arrays, and open the journal for more."""
        for line in journal.read_text(encoding="utf-8", errors="replace").splitlines() if journal.is_file() else ():
            chunk, _, checksum = line.rpartition(" ")  # the last line may have been broken off
            if chunk in self.chunks and checksum == self._checksum(chunk):
                self._done.add(chunk)
        self._open_files.append(os.open(journal, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644))
        os.write(self._open_files[-1], b"\n")

    def _part(self, name: str, chunk: str) -> np.ndarray:
        """A chunk's part of an array, as a view."""
        return self.arrays[name][(slice(None),) * self._lead[name] + self.chunks[chunk]]

    def _checksum(self, chunk: str) -> str:
        """CRC-32 of a chunk's part of all arrays, in hexadecimal."""
        crc = 0
        for name in sorted(self.arrays):
            crc = zlib.crc32(np.ascontiguousarray(self._part(name, chunk)).view(np.uint8).data, crc)
        return f"{crc:08x}"

    def todo(self) -> list[str]:
        """The chunks that are not finished."""
        return [chunk for chunk in self.chunks if chunk not in self._done]

    def put(self, chunk: str, values: dict[str, np.ndarray]) -> None:
        """Store the results of a chunk, for every array its part, and enter it in the journal."""
        for name in self.arrays:
            self._part(name, chunk)[...] = values[name]
        if self._open_files:
            os.write(self._open_files[-1], f"{chunk} {self._checksum(chunk)}\n".encode())
        self._done.add(chunk)

    def close(self) -> None:
        """Release the folder for other processes; the arrays stay as they are."""
        while self._open_files:
            os.close(self._open_files.pop())


def _shown(path: Path) -> str:
    """The last parts of a path, for messages."""
    return "/".join(path.parts[-4:])


def _array_in_file(path: Path, shape: tuple[int, ...], dtype: Any) -> np.ndarray:
    """A writable array in a file of its size, allocated on the disk now: later, a full disk would end the process by a signal."""
    size = math.prod(shape) * np.dtype(dtype).itemsize
    with open(path, "a+b") as file:
        if size:
            os.posix_fallocate(file.fileno(), 0, size)
    return np.asarray(np.memmap(path, dtype, "r+", shape=shape)) if size else np.zeros(shape, dtype)


def finish_chunks(
    store: ChunkStore,
    task: Task,
    shared: tuple,
    arguments: Callable[[str], tuple],
    scheduler: str = "",
    progress: Callable[[list], Iterable] | None = None,
) -> dict[str, np.ndarray]:
    """Do what is left of long work, chunk by chunk.

    Parameters
    ----------
    store
        Says what is left, and takes the results.
    task
        ``task(*shared, *arguments(chunk))`` gives the parts of the arrays that a chunk fills, by name. A function of a module, so
        that a worker can import it.
    shared
        Arguments that all chunks have in common; they go to every worker once.
    arguments
        Gives the others for a chunk.
    scheduler
        Address of a dask.distributed scheduler whose workers do it; empty for this process.
    progress
        Wraps the list of chunks, as `tqdm.tqdm` does.

    Returns
    -------
    All arrays of the store, by name.

    Raises
    ------
    EmphaseError
        Where no scheduler answers, it has no workers, these have other code, or a chunk fails on several of them.
    """
    todo = store.todo()
    if scheduler:
        done = _done_on_cluster(task, shared, todo, arguments, scheduler)
    else:
        done = ((chunk, _one_chunk(task, shared, arguments(chunk))) for chunk in todo)
    for _ in progress(todo) if progress and todo else todo:
        store.put(*next(done))
    return store.arrays


def _one_chunk(task: Task, shared: tuple, arguments: tuple) -> dict[str, np.ndarray]:
    """A chunk's result, here or on a worker. BLAS, whose last bits depend on the number of its threads, gets one."""
    from threadpoolctl import threadpool_limits

    with _ONE_POOL, threadpool_limits(1, user_api="blas"):
        return task(*shared, *arguments)


def _done_on_cluster(
    task: Task, shared: tuple, todo: list[str], arguments: Callable[[str], tuple], address: str
) -> Iterator[tuple[str, dict[str, np.ndarray]]]:
    """Chunks and their results in the order in which workers finish them; a chunk of a lost worker is done by another."""
    if not todo:
        return
    with _cluster(address, task.__module__) as client:
        queue = _Queue(client, task, shared, arguments)
        waiting = [(chunk, 1) for chunk in reversed(todo)]
        while waiting or queue.running:
            while waiting and queue.has_room():
                queue.submit(*waiting.pop())
            chunk, tries, future = queue.next()
            if future.status == "finished":
                result = future.result()
                future.release()
                yield chunk, result
                continue
            error = future.exception() if future.status == "error" else None
            if isinstance(error, EmphaseError):
                raise error
            if tries == OPTIONS.tries:
                raise EmphaseError(
                    f"scheduler {address}: part {chunk} failed {tries} times on the workers, the last time with {one_line(repr(error))}; "
                    "is there enough memory for a worker? What is finished is kept: run again"
                )
            queue.scatter()  # the shared arguments may be gone with the workers that had them
            waiting.append((chunk, tries + 1))


class _Queue:
    """Chunks of one task that are on their way to the workers of a cluster, or on them."""

    def __init__(self, client: Any, task: Task, shared: tuple, arguments: Callable[[str], tuple]):
        from distributed import as_completed

        self._client, self._task, self._shared, self._arguments = client, task, shared, arguments
        self._completed = as_completed(loop=client.loop)
        self.running: dict[Any, tuple[str, int]] = {}
        self.scatter()

    def scatter(self) -> None:
        """Send the shared arguments to all workers."""
        self._on_workers = self._client.scatter([self._shared], broadcast=True)[0]

    def has_room(self) -> bool:
        """Whether a worker would otherwise wait for its next chunk."""
        workers = self._client.scheduler_info(n_workers=-1)["workers"]
        return len(self.running) < OPTIONS.queued_per_worker * max(1, len(workers))

    def submit(self, chunk: str, tries: int) -> None:
        """Send a chunk, for the ``tries``-th time."""
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Sending large graph")  # the data of a chunk go to one worker alone
            future = self._client.submit(_one_chunk, self._task, self._on_workers, self._arguments(chunk), pure=False)
        self.running[future] = (chunk, tries)
        self._completed.add(future)

    def next(self) -> tuple[str, int, Any]:
        """The next chunk that ended in any way, how often it was tried, and its future."""
        future = next(self._completed)
        return (*self.running.pop(future), future)


@contextlib.contextmanager
def _cluster(address: str, module: str) -> Iterator[Any]:
    """A client of a dask.distributed scheduler whose workers have the source of ``module``, and of what it imports, that is here."""
    from distributed import Client

    try:
        client = Client(address, timeout=OPTIONS.answer_s, set_as_default=False)
    except (OSError, ValueError, TypeError) as error:  # a timeout is an OSError
        raise EmphaseError(
            f"scheduler: got {address!r}, where no dask scheduler answers ({one_line(error)}); expected the address of one, tcp://host:8786"
        ) from None
    with client:
        try:
            client.wait_for_workers(1, timeout=OPTIONS.worker_s)
        except TimeoutError:
            raise EmphaseError(f"scheduler {address}: has no worker after {OPTIONS.worker_s:g} s, expected one at least") from None
        found = client.run(source_sha256, module)
        others = [worker for worker, sha256 in found.items() if sha256 != source_sha256(module)]
        if others:
            raise EmphaseError(f"scheduler {address}: worker {others[0]} has another {module}, expected the same on all machines")
        yield client
