"""Start Python programs in processes forked from one that has loaded the packages: a kernel is there at once, not after six seconds.

``python -S workflow/warm.py MODULE [argument ...]`` does what ``python -m MODULE [argument ...]`` does. Where the variable `ADDRESS` names
the socket of a server, the module runs in a fork of that server, with this process's arguments, working folder, environment, input and
outputs; this process passes signals on, and ends as the fork ends. Without a server, or where the server's Python, paths or settings
are others, this process becomes ``python -m MODULE``.

`serving` runs a server for as long as its block lasts, and has Jupyter take its kernels from there. The server loads packages of others,
never this project's modules: what a process runs of these are the files as they are when it starts. It runs on Linux only, for
packages of other systems do not bear a fork.
"""

import atexit
import contextlib
import gc
import importlib
import io
import json
import os
import runpy
import select
import selectors
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple, TextIO

#: The variable that names the server's socket
ADDRESS = "WORKBOOK_WARM_PROCESS"
#: What stands for ``python -m``
COMMAND = (sys.executable, "-S", __file__)
#: What kernels, papermill and Snakemake load
PACKAGES = (
    "pyxem", "hyperspy.api", "orix.crystal_map", "ase.io", "skimage.feature", "matplotlib.pyplot", "h5py", "pydantic", "psutil",
    "dask.array", "distributed", "tifffile", "zarr", "pint",
)  # fmt: skip
PROGRAMS = ("ipykernel.kernelapp", "papermill.cli", "snakemake.cli")
#: Variables that are read while Python starts and packages load; a fork has a `PYTHONPATH` of its own
SETTINGS = ("PYTHON", "MPLCONFIGDIR", "HOME", "XDG_", "HYPERSPY")
OWN = "PYTHONPATH"
INLINE = "module://matplotlib_inline.backend_inline"
#: Variables of pools of threads, and what threadpoolctl calls these
POOLS = {"OMP_NUM_THREADS": "openmp", "OPENBLAS_NUM_THREADS": "blas"}
PASSED_ON = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


# --- the process that asks --------------------------------------------------------------


def _kin() -> list[str]:
    """What a process shares with a server whose fork may stand for it."""
    settings = (f"{name}={value}" for name, value in sorted(os.environ.items()) if name.startswith(SETTINGS) and name != OWN)
    return [os.path.realpath(os.path.dirname(sys.executable)), *settings]


def _ask(address: str, arguments: list[str]) -> socket.socket | None:
    """A connection to the fork that runs a module; None where no server of this kin answers."""
    asked = {"kin": _kin(), "arguments": arguments, "folder": os.getcwd(), "environment": dict(os.environ)}
    connection = socket.socket(socket.AF_UNIX)
    try:
        connection.connect(address)
        socket.send_fds(connection, [b"?"], [0, 1, 2])
        connection.sendall(json.dumps(asked).encode() + b"\n")
        if connection.recv(1) == b"+":
            return connection
    except OSError:
        pass  # the server has ended
    connection.close()
    return None


def _follow(connection: socket.socket) -> int:
    """Pass signals on to the fork until it ends; its exit status, negative where a signal ended it."""

    def pass_on(number: int, _: Any) -> None:
        with contextlib.suppress(OSError):  # it has just ended
            connection.sendall(bytes([number]))

    for number in PASSED_ON:
        signal.signal(number, pass_on)
    said = b""
    while more := connection.recv(16):
        said += more
    return int(said or -signal.SIGKILL)  # a server that was killed takes its forks along


def main() -> int:
    """Run the module that the command line names; the exit status."""
    arguments, address = sys.argv[1:], os.environ.get(ADDRESS)
    connection = _ask(address, arguments) if address else None
    if connection is None:
        os.execv(sys.executable, [sys.executable, "-m", *arguments])
    status = _follow(connection)
    if status < 0:
        if -status != signal.SIGKILL:
            signal.signal(-status, signal.SIG_DFL)
        os.kill(os.getpid(), -status)
    return status


# --- the server -------------------------------------------------------------------------


class _Request(NamedTuple):
    """A module to run, as the process that asks would run it; ``files`` are its input and outputs."""

    arguments: list[str]
    folder: str
    environment: dict[str, str]
    files: list[int]


def _received(connection: socket.socket) -> _Request | None:
    """What a process asks for; None, and an answer that says so, where it needs another Python or other settings."""
    _, files, _, _ = socket.recv_fds(connection, 1, 3)
    with connection.makefile("rb") as lines:
        asked = json.loads(lines.readline() or b"null")
    if asked is None or asked.pop("kin") != _kin():
        for file in files:
            os.close(file)
        return None
    return _Request(files=files, **asked)


class _Server:
    """Forks for every connection, passes signals on to the forks, and tells how each ended."""

    def __init__(self, listener: socket.socket) -> None:
        self.selector = selectors.DefaultSelector()
        self.listener = listener
        self.selector.register(listener, selectors.EVENT_READ, self._accept)
        self.selector.register(sys.stdin, selectors.EVENT_READ, self._end)
        self.forks: set[int] = set()
        self.ended = False
        self.asked: _Request | None = None  # in a fork: what to run

    def answer(self) -> _Request | None:
        """Answer until the input ends: None then; in a fork, what it is to run."""
        while not self._finished():
            for key, _ in self.selector.select():
                key.data()
                if self._finished():
                    break
        if self.ended:
            for running in self.forks:
                signal.pidfd_send_signal(running, signal.SIGKILL)
        self.selector.close()
        return self.asked

    def _finished(self) -> bool:
        return self.ended or self.asked is not None

    def _end(self) -> None:
        self.ended = not os.read(0, 1024)

    def _accept(self) -> None:
        connection, _ = self.listener.accept()
        connection.settimeout(10)
        try:
            request = _received(connection)
            connection.sendall(b"-" if request is None else b"+")
        except (OSError, ValueError):  # the process that asked has ended
            request = None
        if request is None:
            connection.close()
            return
        child = os.fork()
        if child == 0:
            self.listener.close()
            connection.close()
            self.asked = request
            return
        for file in request.files:
            os.close(file)
        running = os.pidfd_open(child)
        self.forks.add(running)
        self.selector.register(connection, selectors.EVENT_READ, lambda: self._pass_on(connection, running))
        self.selector.register(running, selectors.EVENT_READ, lambda: self._tell(connection, running, child))

    def _pass_on(self, connection: socket.socket, running: int) -> None:
        """Send the fork the signals that its process got, and kill it where that process has ended."""
        try:
            numbers = connection.recv(16)
        except OSError:
            numbers = b""
        if not numbers:
            self.selector.unregister(connection)
        for number in numbers or bytes([signal.SIGKILL]):
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(running, number)

    def _tell(self, connection: socket.socket, running: int, child: int) -> None:
        """Say how a fork ended."""
        self.selector.unregister(running)
        self.forks.remove(running)
        if connection in self.selector.get_map():
            self.selector.unregister(connection)
        os.close(running)
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        with contextlib.suppress(OSError):
            connection.sendall(str(status).encode())
        connection.close()


def _paths() -> list[str]:
    """The folders of `PYTHONPATH`."""
    return [path for path in os.environ.get(OWN, "").split(os.pathsep) if path]


def _opened(file: int, like: TextIO) -> TextIO:
    """A stream on an open file, as Python opens it when it starts."""
    unbuffered = bool(os.environ.get("PYTHONUNBUFFERED")) and file > 0
    raw = os.fdopen(file, "rb" if file == 0 else "wb", closefd=False, buffering=0 if unbuffered else -1)
    lines = file == 2 or raw.isatty()
    return io.TextIOWrapper(raw, like.encoding, like.errors, line_buffering=lines, write_through=unbuffered)


def _become(request: _Request) -> None:
    """Make this fork the process that was asked for: a session, folder, environment, files and paths of its own, and new random numbers."""
    os.setsid()
    inherited = [path for path in sys.path if path not in _paths()]
    os.chdir(request.folder)
    os.environ.clear()
    os.environ.update(request.environment)
    for target, file in enumerate(request.files):
        os.dup2(file, target)
        os.close(file)
    sys.stdin, sys.stdout, sys.stderr = (_opened(file, stream) for file, stream in enumerate((sys.stdin, sys.stdout, sys.stderr)))
    sys.argv = list(request.arguments)
    sys.path[:] = [os.getcwd(), *_paths(), *inherited]
    tempfile.tempdir = None
    _settle()


def _settle() -> None:
    """New random numbers in this fork, and what packages took from their surroundings when they were loaded."""
    import random

    import dask
    import matplotlib
    import numba
    import numpy
    import threadpoolctl

    random.seed()
    numpy.random.seed()  # noqa: NPY002  the one that packages share
    for name in ("tqdm.auto", "tqdm.autonotebook"):  # which progress bar: they look for a notebook when they are loaded
        sys.modules.pop(name, None)
    matplotlib.rcParams["backend"] = os.environ.get("MPLBACKEND") or INLINE
    numba.core.config.reload_config()
    dask.config.refresh()
    for pool, kind in POOLS.items():
        threadpoolctl.threadpool_limits(int(os.environ.get(pool) or len(os.sched_getaffinity(0))), kind)


def load_packages() -> None:
    """Load what kernels and programs load, without a thread: only a process of one thread may fork."""
    os.environ |= {"MPLBACKEND": INLINE} | dict.fromkeys(POOLS, "1")
    with contextlib.redirect_stderr(io.StringIO()):  # what packages say of each other
        for name in (*PACKAGES, *PROGRAMS):
            importlib.import_module(name)
    sys.modules["pint"].get_application_registry().parse_units("nm")  # it reads its units when it is first asked for one


def _run(request: _Request, ended: list[int]) -> None:
    """Run a module in this fork, and leave its exit status."""
    ended.append(1)
    _become(request)
    try:
        runpy.run_module(request.arguments[0], run_name="__main__", alter_sys=True)
        ended.append(0)
    except SystemExit as end:
        ended.append(end.code if isinstance(end.code, int) else int(end.code is not None))
        raise


def serve(listening: int) -> None:
    """Once somebody asks at an open socket load the packages, then fork for whoever asks, until the input ends."""
    ended = [0]

    @atexit.register  # before all others, so that it comes last: to take apart what was loaded needs a third of a second
    def _leave() -> None:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(ended[-1])

    with socket.socket(fileno=listening) as listener:
        ready, _, _ = select.select([listener, sys.stdin], [], [])
        if listener not in ready:
            return
        sys.path.pop(0)  # the folder of this file
        load_packages()  # who asks waits for it, no longer than it would load itself
        gc.freeze()
        request = _Server(listener).answer()
    if request is not None:
        _run(request, ended)


@contextlib.contextmanager
def serving(environment: Mapping[str, str] = os.environ) -> Iterator[dict[str, str]]:
    """A server while the block lasts.

    Parameters
    ----------
    environment
        Of the programs that are to be started.

    Yields
    ------
    What else their environment needs for them, and for the kernels that they start, to come from the server: nothing where there is one
    already, or on another system than Linux.
    """
    if sys.platform != "linux" or environment.get(ADDRESS):
        yield {}
        return
    with tempfile.TemporaryDirectory(prefix="warm") as folder:
        address, spec = f"{folder}/socket", Path(folder, "kernels", "python3", "kernel.json")
        with socket.socket(socket.AF_UNIX) as listener:  # open before anybody can ask
            listener.bind(address)
            listener.listen(256)
            command = [sys.executable, __file__, "--serve", str(listener.fileno())]
            server = subprocess.Popen(command, stdin=subprocess.PIPE, pass_fds=[listener.fileno()], start_new_session=True, env=environment)
        # a kernel looks whether its parent is there; whose that is, it read while it was loaded
        kernel = ["ipykernel_launcher", "-f", "{connection_file}", f"--IPKernelApp.parent_handle={server.pid}"]
        described = {"display_name": "Python 3 (ipykernel)", "language": "python", "metadata": {"debugger": True}}
        spec.parent.mkdir(parents=True)
        spec.write_text(json.dumps({"argv": [*COMMAND, *kernel], **described}))
        try:
            yield {ADDRESS: address, "JUPYTER_PATH": os.pathsep.join(filter(None, [folder, environment.get("JUPYTER_PATH", "")]))}
        finally:
            server.communicate()  # its input ends


if __name__ == "__main__":
    if sys.argv[1] == "--serve":
        serve(int(sys.argv[2]))
    else:
        sys.exit(main())
