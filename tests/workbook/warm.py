"""Snakemake for tests, in processes forked from one that has loaded it: loading takes longer than planning a run of a few samples."""

import multiprocessing
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(["snakemake.cli"])


def _snakemake(arguments: Sequence[str], folder: str, environment: dict[str, str], output: str) -> None:
    """Snakemake's command line in this process, with what it says in a file."""
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    sys.path[:0] = [folder, *environment.get("PYTHONPATH", "").split(os.pathsep)]
    said = os.open(output, os.O_WRONLY)
    os.dup2(said, 1)
    os.dup2(said, 2)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    from snakemake import cli

    cli.main(list(arguments))


def snakemake(arguments: Sequence[str], folder: Path, environment: dict[str, str], timeout: float = 300) -> subprocess.CompletedProcess:
    """``python -m snakemake`` with these arguments: its exit status and, as ``stdout``, all that it said."""
    with tempfile.NamedTemporaryFile("r", suffix=".log", encoding="utf-8") as output:
        process = _CONTEXT.Process(target=_snakemake, args=(arguments, str(folder), dict(environment), output.name))
        process.start()
        process.join(timeout)
        if process.exitcode is None:
            process.kill()
            raise subprocess.TimeoutExpired("snakemake", timeout)
        return subprocess.CompletedProcess(arguments, process.exitcode, output.read(), "")
