"""Compiled functions whose cache on disk knows what they call.

Numba keeps a compiled function on disk until the file that it stands in changes. The functions that it calls and the constants that
it uses are compiled into it, from whichever file they come; of a change there Numba's cache knows nothing, and the old code runs on
(Numba manual, "Notes on caching": the cache "fails to see changes in functions defined in different files").

A `kernel` is cached under a key that also holds the bytecode and the compiler options of all compiled functions that it calls, directly
or not, and the values of all constants that any of them uses. An edit therefore compiles again the kernels of the edited file
and those that depend on what changed there, and no others. The key is taken from the functions as they were imported, not from the
files, so that an edit under a running process cannot put old code under a new key.

Kernels do not reorder sums (`fastmath`). A kernel that another calls is compiled into it once more; where the compiler may reorder sums it
does so differently in every copy, and which copy runs depends on what was compiled before and what came from the cache, so that the first
run on a machine and the second differ in the last bit. Sums that should use the vector units run over rows of an array instead.
"""

from __future__ import annotations

import enum
import functools
import hashlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from types import CodeType, ModuleType
from typing import Any

import numba
import numpy as np
from numba.core.caching import FunctionCache
from numba.core.dispatcher import Dispatcher


def kernel(function: Callable | None = None, **options: Any) -> Any:
    """Compile a function by `numba.njit`, cached on disk under all that it depends on.

    Parameters
    ----------
    function
        Of arrays, numbers and named tuples of these. It may call other kernels, of its file or imported from another, and use
        numbers, arrays and named tuples of these that are constants of its module.
    **options
        Those of `numba.njit`, but ``cache``. A division by zero gives infinity or NaN, as numpy's, unless they say otherwise.

    Returns
    -------
    The compiled function, or a decorator where ``function`` is not given.

    Raises
    ------
    ValueError
        For ``fastmath``.
    RuntimeError
        For a function that stands in no file, as one typed at a prompt: its code could not be recognised. `numba.njit` compiles these.
    """
    if options.get("fastmath"):
        raise ValueError("kernel: got fastmath, expected sums in the order in which they are written; see this module's text")
    if function is None:
        return functools.partial(kernel, **options)
    compiled: Any = numba.njit(**{"error_model": "numpy"} | options)(function)
    compiled._cache = _DependencyCache(compiled)  # as `Dispatcher.enable_caching` sets its cache
    return compiled


def side_by_side(compiled: Callable, n: int, *arguments: Any) -> None:
    """Run a kernel on as many threads as Numba may use, each with its part of n items.

    Parameters
    ----------
    compiled
        A kernel with ``nogil=True``, called as ``compiled(numbers, *arguments)``, ``numbers`` (k,) being those of its items. What it finds
        for these it writes into arrays among its arguments; it returns nothing.
    n
        Items.
    *arguments
        The same for every thread.

    Notes
    -----
    Every thread takes one of as many items as there are threads, so neighbours, which cost alike, are shared out evenly. Numba's ``prange``
    does the same, but takes three times as long to compile.
    """
    threads = min(numba.get_num_threads(), max(n, 1))
    parts = [np.arange(thread, n, threads) for thread in range(threads)]
    if threads == 1:
        compiled(*parts, *arguments)
        return
    with ThreadPoolExecutor(threads) as pool:
        for part in [pool.submit(compiled, numbers, *arguments) for numbers in parts]:
            part.result()


class _DependencyCache(FunctionCache):
    """Numba's cache of a function, its key extended by `dependency_key`."""

    def __init__(self, compiled: Dispatcher) -> None:
        super().__init__(compiled.py_func)
        self._compiled = compiled

    def _index_key(self, sig: Any, codegen: Any) -> tuple:
        return (*super()._index_key(sig, codegen), dependency_key(self._compiled))


def dependency_key(compiled: Dispatcher) -> str:
    """A hash of a compiled function, of every compiled function that it calls, and of the constants that these use.

    Parameters
    ----------
    compiled
        What `kernel` or `numba.njit` returns.

    Returns
    -------
    64 hexadecimal digits, the same in every process that imports the same code.
    """
    digest = hashlib.sha256()
    seen: set[Dispatcher] = set()
    todo = [compiled]
    while todo:
        here = todo.pop()
        if here in seen:
            continue
        seen.add(here)
        digest.update(repr(sorted(here.targetoptions.items(), key=str)).encode())
        defaults = (here.py_func.__defaults__ or (), tuple(sorted((here.py_func.__kwdefaults__ or {}).items())))
        for part in (*_content(here.py_func.__code__), *_content(defaults)):
            digest.update(part)
        for name, value in _globals(here.py_func):
            todo += [v for v in (value if isinstance(value, tuple) else (value,)) if isinstance(v, Dispatcher)]
            for part in _content(value):
                digest.update(name.encode() + b" " + part)
    return digest.hexdigest()


def _globals(function: Callable) -> list[tuple[str, Any]]:
    """Names and values of what a function uses from outside: of its module, of modules imported there, and of functions around it."""
    code = function.__code__
    names = sorted({name for part in _codes(code) for name in part.co_names})
    values = [(name, function.__globals__[name]) for name in names if name in function.__globals__]
    modules = [value for _, value in values if isinstance(value, ModuleType)]
    for module in modules:  # those found on the way are looked into as well
        inside = [(name, getattr(module, name)) for name in names if hasattr(module, name)]
        values += inside
        modules += [value for _, value in inside if isinstance(value, ModuleType) and value not in modules]
    return values + [(name, cell.cell_contents) for name, cell in zip(code.co_freevars, function.__closure__ or (), strict=True)]


def _codes(code: CodeType) -> Iterator[CodeType]:
    """A function's code and that of the comprehensions and functions in it."""
    yield code
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _codes(constant)


def _content(value: Any) -> Iterator[bytes]:
    """What of a value is compiled into a function that uses it, as bytes; nothing for modules, classes and functions of Python."""
    if isinstance(value, CodeType):
        yield repr((value.co_code, value.co_names, value.co_varnames, value.co_freevars)).encode()
        for constant in value.co_consts:
            yield from _content(constant)
    elif isinstance(value, np.ndarray):
        yield f"{value.dtype} {value.shape}".encode() + value.tobytes()
    elif isinstance(value, tuple):
        yield f"{getattr(value, '_fields', '')} {len(value)}".encode()
        for item in value:
            yield from _content(item)
    elif isinstance(value, frozenset):
        yield repr(sorted(map(repr, value))).encode()
    elif isinstance(value, type) and issubclass(value, enum.Enum):
        yield repr([(member.name, member.value) for member in value]).encode()
    elif isinstance(value, type) and issubclass(value, tuple):
        yield repr(getattr(value, "_fields", "")).encode()
    elif value is None or isinstance(value, (bool, int, float, complex, str, bytes, np.generic)):
        yield repr(value).encode()
