"""Compiled functions whose cache on disk knows what they call.

Numba keeps a compiled function until the file that it stands in changes. What it calls, and the constants that it uses, are compiled
into it, from whichever file they come; a change there it does not see, and runs the old code. A `kernel` is cached under a key that holds
the source of all that it calls and the values of all constants that either uses. So an edit makes Numba compile again the kernels that
depend on it, and no others.
"""

from __future__ import annotations

import functools
import hashlib
import inspect
from collections.abc import Callable, Iterator
from types import CodeType
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
        Of arrays and numbers.
    **options
        Those of `numba.njit`, but ``cache``.

    Returns
    -------
    The compiled function, or a decorator where ``function`` is not given.
    """
    if function is None:
        return functools.partial(kernel, **options)
    compiled = numba.njit(**options)(function)
    compiled._cache = _DependencyCache(function)  # as `Dispatcher.enable_caching` sets its own
    return compiled


class _DependencyCache(FunctionCache):
    """Numba's cache of a function, its key with that of what the function calls."""

    def _index_key(self, sig: Any, codegen: Any) -> tuple:
        return (*super()._index_key(sig, codegen), dependency_key(self._py_func))


def dependency_key(function: Callable) -> str:
    """A hash of the source of a function and of every compiled function that it calls, and of the constants that these use."""
    digest = hashlib.sha256()
    seen: set[Callable] = set()
    todo = [function]
    while todo:
        here = todo.pop()
        if here in seen:
            continue
        seen.add(here)
        digest.update(inspect.getsource(here).encode())
        for name in sorted(set(_names(here.__code__))):
            value = here.__globals__.get(name)
            if isinstance(value, Dispatcher):
                todo.append(value.py_func)
            elif isinstance(value, np.ndarray):
                digest.update(f"{name} {value.dtype} {value.shape}".encode() + value.tobytes())
            elif isinstance(value, (bool, int, float, complex, str, tuple)):
                digest.update(f"{name} {value!r}".encode())
    return digest.hexdigest()


def _names(code: CodeType) -> Iterator[str]:
    """The global names that code uses, that of comprehensions in it too."""
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _names(constant)
