"""One run of all notebooks serves every test that looks at it, also where pytest-xdist spreads the files over processes."""

import fcntl
import pickle
from pathlib import Path

import pytest
from executed import Executed


@pytest.fixture(scope="session")
def executed(tmp_path_factory) -> Executed:
    """`make run` on the tiny sample and, where recorded data are, on the recorded steel: made by the first process that asks."""
    base = tmp_path_factory.getbasetemp()
    shared: Path = base.parent if "popen" in base.name else base
    made = shared / "executed.pickle"
    with open(shared / "executed.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not made.is_file():
            made.write_bytes(pickle.dumps(Executed.make(shared / "executed")))
        return pickle.loads(made.read_bytes())
