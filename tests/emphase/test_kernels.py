"""Kernels run the code that is there, whatever file it stands in, and are compiled again only where something that they use changed."""

import enum
import json
import os
import subprocess
import sys
from pathlib import Path

import numba
import numpy as np
import pytest

import emphase
from emphase.kernels import dependency_key, kernel, side_by_side

# The shortest of kernels: `total` calls `scaled` across files, which uses two constants of its own file.
FILES = {
    "__init__.py": "",
    "caller.py": """
from emphase.kernels import kernel
from .callee import scaled

@kernel
def total(values):
    result = 0.0
    for value in values:
        result += scaled(value)
    return result
""",
    "callee.py": """
from typing import NamedTuple
from emphase.kernels import kernel

class Options(NamedTuple):
    factor: float = 2.0

OPTIONS = Options()
OFFSET = 1.0

@kernel
def scaled(value):
    return OPTIONS.factor * value + OFFSET
""",
    "elsewhere.py": """
from emphase.kernels import kernel

@kernel
def other(value):
    return value
""",
}

# Numba is imported, and its compiler made ready, once; each line of input is a program, run in a process of its own.
SERVER = """
import os, sys
import numba, numpy
import emphase.kernels
numba.njit(lambda values: sum([value for value in values]))(numpy.arange(4.0))
for line in sys.stdin:
    child = os.fork()
    if not child:
        exec(eval(line))
        sys.stdout.flush()
        os._exit(0)
    if os.waitpid(child, 0)[1]:
        print("failed", flush=True)
"""
PROGRAM = """
import enum
import json
import numba
import numpy as np
from parts.caller import total
value = total(np.arange(4.0))
print(json.dumps([value, sum(total.stats.cache_hits.values()), sum(total.stats.cache_misses.values())]))
"""


class Package:
    """A package of `FILES`, and processes that import it."""

    def __init__(self, folder):
        self.folder = folder / "parts"
        self.folder.mkdir()
        for name, text in FILES.items():
            (self.folder / name).write_text(text)
        paths = os.pathsep.join(map(str, [folder, Path(emphase.__file__).parents[1]]))
        surroundings = os.environ | {"PYTHONPATH": paths, "NUMBA_CACHE_DIR": str(folder / "cache"), "PYTHONDONTWRITEBYTECODE": "1"}
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True, "bufsize": 1}
        self.server = subprocess.Popen([sys.executable, "-c", SERVER], env=surroundings, cwd=folder, **pipes)

    def run(self, program=PROGRAM):
        """The total, how often its kernel was found in the cache, and how often it was compiled."""
        print(repr(program), file=self.server.stdin, flush=True)
        return json.loads(self.server.stdout.readline())

    def edit(self, name, old, new):
        """Replace text that must be there in a file."""
        text = (self.folder / name).read_text()
        assert old in text
        (self.folder / name).write_text(text.replace(old, new))


@pytest.fixture
def package(tmp_path):
    """The package, which has run once: 2 (0 + 1 + 2 + 3) + 4 = 16, compiled anew."""
    package = Package(tmp_path)
    assert package.run() == [16.0, 0, 1]
    yield package
    package.server.stdin.close()
    package.server.wait()


def test_kernels_follow_what_they_call_and_survive_all_other_edits(package):
    """Numba's own cache would give the first result for ever: it looks at the caller's file alone."""
    for old, new, expected in (
        ("* value +", "* value -", 8.0),  # the function that is called
        ("OFFSET = 1.0", "OFFSET = 3.0", 0.0),  # a constant that it uses
        ("factor: float = 2.0", "factor: float = 5.0", 18.0),  # one in a named tuple
        ("@kernel\ndef", "@kernel(boundscheck=True)\ndef", 18.0),  # how it is compiled
    ):
        package.edit("callee.py", old, new)
        assert package.run() == [expected, 0, 1], new
    package.edit("elsewhere.py", "return value", "return -value")
    package.edit("callee.py", "OFFSET = 3.0", "OFFSET = 3.0  # counts")  # changes no code
    assert package.run() == [18.0, 1, 0]


def test_a_file_edited_under_a_running_process_leaves_no_old_code_in_the_cache(package):
    """The process compiles what it imported; under the key of the new text there must be nothing of it."""
    package.edit("callee.py", "OFFSET = 1.0", "OFFSET = 5.0")
    edited = (package.folder / "callee.py").read_text().replace("= 5.0", "= 7.0")
    late = PROGRAM.replace("value =", f"open({str(package.folder / 'callee.py')!r}, 'w').write({edited!r})\nvalue =", 1)
    assert package.run(late) == [32.0, 0, 1]
    assert package.run() == [40.0, 0, 1]


def test_the_key_holds_arrays_and_what_functions_around_a_kernel_give_it():
    """Arrays by all their values, also those that their text leaves out; what is closed over by value."""

    def made(table, offset):
        @kernel
        def looked_up(i):
            return table[i] + offset

        return looked_up

    table, changed = np.zeros(5000), np.zeros(5000)
    changed[2500] = 1
    keys = {dependency_key(made(t, offset)) for t, offset in ((table, 0), (changed, 0), (table, 1))}
    assert len(keys) == 3
    assert dependency_key(made(table.copy(), 0)) in keys


@pytest.mark.parametrize(
    "callee",
    [
        "def g(x, eps={}):\n    return x + eps",
        "def g(x, *, eps={}):\n    return x + eps",
        "T = (numba.njit(lambda x: x + {}),)\ndef g(x):\n    return T[0](x)",
        "class E(enum.Enum):\n    A = {}\ndef g(x):\n    return x + E.A.value",
    ],
    ids=["default", "keyword", "tuple of kernels", "enum"],
)
def test_the_key_knows_what_a_callee_holds(callee):
    def key(source: str) -> str:
        names: dict = {"numba": numba, "enum": enum}
        exec(f"{source}\ng = numba.njit(g)\ndef f(x):\n    return g(x)", names)
        return dependency_key(numba.njit(names["f"]))

    assert key(callee.format(1.0)) == key(callee.format(1.0)) != key(callee.format(2.0))


@kernel(nogil=True)
def _squares(numbers, values, out):
    for i in numbers:
        out[i] = values[i] / (values[i] - 3) if values[i] != 4 else values[i] ** 2


@pytest.mark.parametrize("n", [0, 1, 2, 7])
def test_items_are_shared_out_over_threads(n):
    """Each item once, whatever their number; a division by zero is numpy's."""
    values, out = np.arange(n, dtype=float), np.full(n, -1.0)
    side_by_side(_squares, n, values, out)
    expected = [0.0, -0.5, -2.0, np.inf, 16.0, 2.5, 2.0]
    np.testing.assert_array_equal(out, expected[:n])


def test_what_a_thread_raises_is_raised():
    @numba.njit(nogil=True)
    def fail(numbers):
        raise ValueError("no such pattern")

    with pytest.raises(ValueError, match="no such pattern"):
        side_by_side(fail, 5)


def test_no_kernel_reorders_sums():
    """A copy of a kernel inside another may be compiled otherwise: the last bit would depend on which was compiled first."""
    with pytest.raises(ValueError, match="got fastmath, expected sums in the order in which they are written"):
        kernel(fastmath=True)(_squares.py_func)
