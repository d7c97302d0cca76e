"""What all tests share: one thread a pool, no windows, and kernels that are compiled once."""

import contextlib
import fcntl
import os
from pathlib import Path

import pytest

from workflow import warm

for pool in ("OMP", "OPENBLAS", "MKL", "NUMBA"):
    os.environ.setdefault(f"{pool}_NUM_THREADS", "2" if pool == "NUMBA" else "1")
os.environ.setdefault("MPLBACKEND", "Agg")

#: Tests that match patterns, the longest first: they come last, and wait for `compile_kernels.py` where it runs beside them. One that
#: does not wait compiles the same kernels again, in another order, and the last bit of a sum may be another.
MATCHING = (
    "test_lab.py", "test_bad_input.py", "test_notebooks.py", "test_chunks.py", "test_explore.py", "test_fractions.py", "test_ped.py",
    "test_by_hand.py", "test_readme.py", "test_explore_choices.py", "test_explained.py", "test_distortion.py", "test_rocking.py",
    "test_spot_lists.py", "test_scales.py", "test_outsiders.py", "test_in_pyxem.py", "test_artefacts.py",
)  # fmt: skip
COMPILING = Path(__file__).resolve().parents[1] / ".cache" / "compiling"


def pytest_configure(config: pytest.Config) -> None:
    """Where several processes run tests, kernels and papermill are forks of one that has loaded their packages."""
    if not hasattr(config, "workerinput") and getattr(config.option, "numprocesses", None):
        running = contextlib.ExitStack()
        os.environ |= running.enter_context(warm.serving())
        config.add_cleanup(running.close)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files of tests in their order, those of MATCHING at the end."""
    place = {name: k for k, name in enumerate(MATCHING, 1)}
    items.sort(key=lambda item: place.get(item.path.name, 0))


@pytest.fixture(autouse=True, scope="module")
def _compiled(request: pytest.FixtureRequest) -> None:
    """Wait for the kernels, where this file needs them and they are being compiled."""
    if request.path.name in MATCHING and COMPILING.is_file():
        with open(COMPILING) as lock:
            fcntl.flock(lock, fcntl.LOCK_SH)
