"""Run one step of one sample: execute its notebook by papermill (execute.py), and leave the mark that says that it is done.

The mark holds the time, the results that the step wrote, and the hash of the marks of the steps that it needs, one in a line. The executed
notebook is the log of a step, and what papermill says goes beside it. A kernel that died is tried once more: Snakemake starts this
program a second time (``retries``), which does nothing where the first attempt ended in any other way.
"""

import argparse
import hashlib
import os
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
from workflow import warm

POOLS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS", "DASK_NUM_WORKERS")


def execute(notebook: Path, parameters: Path, executed: Path, threads: int) -> int:
    """papermill's exit status; every pool of threads gets as many."""
    executed.parent.mkdir(parents=True, exist_ok=True)
    command = [*warm.COMMAND, "workflow.execute", "--no-progress-bar", "--log-level", "ERROR", "--stdout-file", "-"]
    command += ["--cwd", str(ROOT / "notebooks"), "-f", str(parameters), str(notebook), str(executed)]
    paths = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    environment = os.environ | dict.fromkeys(POOLS, str(threads)) | {"PYTHONPATH": paths}
    with open(executed.with_suffix(".log"), "wb") as errors:
        return subprocess.run(command, stderr=errors, env=environment, check=False).returncode


def kernel_died(executed: Path) -> bool:
    """Whether the execution of a notebook ended because its kernel died."""
    import helpers

    return (helpers.run_error(executed) or "").startswith("the kernel died")


def results_of(folder: Path, step: str) -> list[str]:
    """The files that a step wrote, but its log."""
    return sorted(path.name for path in folder.glob(f"{step[:2]}_*") if path.suffix != ".log")


def mark(written: list[str], needs: list[Path]) -> str:
    """The text of the mark of a step that is done."""
    head = f"done {time.strftime('%a %b %d %H:%M:%S %Z %Y')}, process {os.getpid()}"
    tail = [f"needs {hashlib.sha256(need.read_bytes()).hexdigest()}  {need}" for need in needs]
    return "\n".join([head, *written, *tail]) + "\n"


def say(text: str) -> None:
    """One line, in one write: the steps that run side by side share an output, and it may be unbuffered."""
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def main() -> int:
    """Run the step that the command line names; its exit status is 0 or 1."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sample", default="", help="its id; none for the comparison")
    parser.add_argument("--attempt", type=int, default=1)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("notebook", type=Path)
    parser.add_argument("parameters", type=Path, help="YAML file")
    parser.add_argument("executed", type=Path)
    parser.add_argument("mark", type=Path)
    parser.add_argument("needs", type=Path, nargs="*", help="marks of the steps that this one needs")
    args = parser.parse_args()
    step = args.notebook.stem
    label, started = f"{args.sample or 'all samples'}  {step}", time.monotonic()
    if args.attempt == 1:
        args.executed.unlink(missing_ok=True)
    elif not kernel_died(args.executed):
        return 1
    say(f"{label} … the kernel died, once more" if args.attempt > 1 else f"{label} …")
    status = execute(args.notebook, args.parameters, args.executed, args.threads)
    written = results_of(Path(args.sample or "."), step)
    if status == 0 and written:
        args.mark.write_text(mark(written, args.needs), encoding="utf-8")
        say(f"{label} … {time.monotonic() - started:.0f} s")
        return 0
    if args.attempt > 1 or not kernel_died(args.executed):
        say(f"{label} … failed")
    return 1


if __name__ == "__main__":
    sys.exit(main())
