"""A module run in a fork of the server ends, prints and is ended as one that runs by itself; without a server it runs all the same."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from workflow import warm

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the server runs on Linux only")

#: A module that says what it is, then does what its argument says
MODULE = """
import json, os, random, signal, sys, threading, time
import numba
said = {"arguments": sys.argv[1:], "main": __name__, "folder": os.getcwd(), "variable": os.environ.get("VARIABLE"),
        "threads": numba.config.NUMBA_NUM_THREADS, "random": random.random(), "input": sys.stdin.read() if sys.argv[1] == "read" else "",
        "path": sys.path[0], "loaded": "pyxem" in sys.modules, "seekable": sys.stdout.seekable(), "process": os.getpid(),
        "backend": os.environ.get("MPLBACKEND")}
if said["loaded"]:
    said["backend"] = sys.modules["matplotlib"].rcParams["backend"]
try:
    print(json.dumps(said), flush=True)
    if sys.argv[1] == "wait":
        time.sleep(60)
except KeyboardInterrupt:
    sys.exit(9)
if sys.argv[1] == "fail":
    raise ValueError("as it was told")
if sys.argv[1] == "exit":
    sys.exit(7)
if sys.argv[1] == "kill":
    os.kill(os.getpid(), signal.SIGKILL)
if sys.argv[1] == "thread":
    threading.Timer(0.3, lambda: print("the thread's end")).start()
"""


@pytest.fixture(scope="module")
def server() -> Iterator[dict[str, str]]:
    """The environment of a process that asks a server, that of the whole suite where there is one."""
    with warm.serving() as environment:
        yield os.environ | environment


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder that holds the module."""
    (tmp_path / "told.py").write_text(MODULE)
    return tmp_path


def run(folder: Path, environment: dict[str, str], *arguments: str, given: str = "") -> subprocess.CompletedProcess[str]:
    command = [*warm.COMMAND, "told", *arguments]
    return subprocess.run(command, cwd=folder, env=environment, input=given, capture_output=True, text=True, timeout=60)


def test_it_runs_with_the_arguments_folder_variables_and_input_of_who_asks(folder, server):
    done = run(folder, server | {"VARIABLE": "its own", "NUMBA_NUM_THREADS": "1", "MPLBACKEND": "svg"}, "read", "two words", given="a line")
    said = json.loads(done.stdout)
    assert (done.returncode, done.stderr) == (0, "")
    assert said["arguments"] == ["read", "two words"] and said["main"] == "__main__" and said["input"] == "a line"
    assert said["folder"] == said["path"] == str(folder) and said["variable"] == "its own" and said["threads"] == 1
    assert said["loaded"] and said["backend"] == "svg" and not said["seekable"]
    assert json.loads(run(folder, server, "again").stdout)["random"] != said["random"]


@pytest.mark.parametrize("what, status", [("nothing", 0), ("exit", 7), ("fail", 1), ("kill", -signal.SIGKILL), ("thread", 0)])
def test_it_ends_as_a_module_by_itself_ends(folder, server, what, status):
    warm_done, cold = run(folder, server, what), run(folder, without_server(), what)
    assert warm_done.returncode == cold.returncode == status
    assert ("ValueError: as it was told" in warm_done.stderr) == ("ValueError: as it was told" in cold.stderr) == (what == "fail")
    assert ("the thread's end" in warm_done.stdout) == (what == "thread")
    assert json.loads(warm_done.stdout.splitlines()[0])["loaded"] and not json.loads(cold.stdout.splitlines()[0])["loaded"]


def without_server() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if name != warm.ADDRESS}


def started(folder: Path, environment: dict[str, str]) -> tuple[subprocess.Popen, dict]:
    """A module that waits, and what it said of itself."""
    process = subprocess.Popen(
        [*warm.COMMAND, "told", "wait"], cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    return process, json.loads(process.stdout.readline())


def test_an_interrupt_reaches_it(folder, server):
    process, _ = started(folder, server)
    process.send_signal(signal.SIGINT)
    assert process.wait(10) == 9


def test_it_ends_where_who_asked_was_killed(folder, server):
    process, said = started(folder, server)
    fork = psutil.Process(said["process"])
    process.kill()
    process.wait(10)
    fork.wait(10)


def test_its_end_is_told_though_a_later_one_goes_on(folder, server):
    """A fork holds none of the connections that were open when it was made."""
    earlier, _ = started(folder, server)
    later, _ = started(folder, server)
    try:
        earlier.send_signal(signal.SIGINT)
        assert earlier.wait(5) == 9 and later.poll() is None
    finally:
        for process in (earlier, later):
            process.kill()
            process.wait(10)


def test_a_server_of_other_settings_or_none_at_the_address_is_not_used(folder, server):
    for other in ({"HOME": str(folder)}, {warm.ADDRESS: str(folder / "no socket")}, {"PYTHONUTF8": "1"}):
        done = run(folder, server | other, "exit")
        assert done.returncode == 7 and not json.loads(done.stdout)["loaded"]


def test_paths_of_who_asks_come_first(folder, server):
    (folder / "other").mkdir()
    (folder / "other" / "told_too.py").write_text("print('found')")
    done = subprocess.run(
        [*warm.COMMAND, "told_too"], env=server | {"PYTHONPATH": str(folder / "other")}, capture_output=True, text=True, timeout=60
    )
    assert (done.returncode, done.stdout) == (0, "found\n")
