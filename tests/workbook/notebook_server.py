"""Runs notebooks as a batch does, but without a kernel: `python notebook_server.py` reads one job a line, and forks for each.

A job is JSON: notebook, parameters, seconds, megabytes. The answer is JSON too: exit status (0 it ended well, 1 one
`EmphaseError` said why not, 2 any other exception, -9 killed because it took too long), what it printed, the seconds it
took and its peak memory. A fork has all modules loaded already, its own limit of memory, and nothing of the run before.
"""

import contextlib
import json
import math
import os
import resource
import signal
import sys
import tempfile
import time
import traceback
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def literal(value: object) -> str:
    """A value as papermill writes it into the cell of injected parameters."""
    return f"float('{value}')" if isinstance(value, float) and not math.isfinite(value) else repr(value)


def run_cells(notebook: str, parameters: dict) -> int:
    """Execute the code cells of a notebook with its parameters injected, as papermill does; the exit status."""
    import emphase

    os.chdir(ROOT / "notebooks")
    cells = json.loads(Path(f"{notebook}.ipynb").read_text(encoding="utf-8"))["cells"]
    namespace: dict = {"__name__": "__main__", "In": []}
    try:
        for cell in (c for c in cells if c["cell_type"] == "code" and "explore" not in c["metadata"].get("tags", [])):
            sources = ["".join(cell["source"])]
            if "parameters" in cell["metadata"].get("tags", []):
                sources.append("# Parameters\n" + "".join(f"{name} = {literal(value)}\n" for name, value in parameters.items()))
            for source in sources:
                namespace["In"].append(source)
                exec(compile(source, notebook, "exec"), namespace)
    except SystemExit as end:
        return int(end.code or 0)
    except emphase.EmphaseError as error:
        print("\n".join(error._render_traceback_()), file=sys.stderr)
        return 1
    except BaseException:
        traceback.print_exc()
        return 2
    return 0


def run_in_fork(job: dict) -> dict:
    """One job in a process of its own, with limits of time and memory."""
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as errors:
        started = time.monotonic()
        child = os.fork()
        if child == 0:
            status = 2
            with contextlib.suppress(BaseException):
                for stream, number in ((out, 1), (errors, 2)):
                    os.dup2(stream.fileno(), number)
                sys.stdout, sys.stderr = out, errors
                most = resource.RLIM_INFINITY if job["megabytes"] is None else job["megabytes"] * 1_000_000
                resource.setrlimit(resource.RLIMIT_AS, (most, most))
                status = run_cells(job["notebook"], job["parameters"])
                sys.stdout.flush()
                sys.stderr.flush()
            os._exit(status)
        done, status, usage = 0, 0, None
        while not done:
            done, status, usage = os.wait4(child, os.WNOHANG)
            if not done and time.monotonic() - started > job["seconds"]:
                os.kill(child, signal.SIGKILL)
                done, status, usage = os.wait4(child, 0)
            time.sleep(0 if done else 0.02)
        out.seek(0)
        errors.seek(0)
        told = {"printed": out.read(), "error": errors.read()}
    peak = usage.ru_maxrss / 1000
    return told | {"status": os.waitstatus_to_exitcode(status), "seconds": time.monotonic() - started, "megabytes": peak}


def serve() -> None:
    """Answer every line of stdin with one on stdout."""
    import orix.io
    import pandas
    import scipy.signal

    import emphase
    import helpers
    from workflow import warm

    warm.load_packages()
    for package in ("drift", "explore", "fractions", "haadf", "interface", "ped", "simulate"):
        getattr(emphase, package)
    assert all((orix.io, pandas, scipy.signal, helpers))  # what every notebook would load again
    answers = os.fdopen(os.dup(1), "w")
    for line in sys.stdin:
        print(json.dumps(run_in_fork(json.loads(line))), file=answers, flush=True)


if __name__ == "__main__":
    sys.path[:0] = [str(ROOT), str(ROOT / "src")]
    serve()
