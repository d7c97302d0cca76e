"""`make run`: the stages of the Snakefile one after the other, with the arguments of the command line for Snakemake.

Each stage is a process of its own, forked from this one, which has loaded Snakemake and helpers.py: they take longer to load than a
graph in which nothing is to be done. A stage in which a step failed (status 1) does not keep the others from running; any other status
ends the run. The steps' kernels are forks of a process that has loaded their packages (warm.py).
"""

import multiprocessing
import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from snakemake import cli

import helpers  # noqa: F401  the Snakefile asks it, and finds it loaded
from workflow import warm

STAGES = ("gate", "steps", "comparison")
STEP_FAILED = 1
INTERRUPTED = 130


def run_stage(stage: str, arguments: list[str]) -> int:
    """Snakemake's exit status."""
    process = multiprocessing.get_context("fork").Process(target=cli.main, args=([*arguments, "--config", f"stage={stage}"],))
    process.start()
    try:
        process.join()
    except KeyboardInterrupt:
        process.join()
        return INTERRUPTED
    return process.exitcode or 0


def main() -> int:
    """Run the stages; the exit status is that of the one that ended the run, or 0."""
    with warm.serving() as environment:
        os.environ |= environment
        for stage in STAGES:
            status = run_stage(stage, sys.argv[1:])
            if status not in (0, STEP_FAILED):
                return status
    return 0


if __name__ == "__main__":
    sys.exit(main())
