"""Phases, orientations and layers of battery materials from electron microscope recordings, with how sure each number is.

Every folder is a method, and its ``__init__`` names the method's sources and its public functions. Four methods take recordings:
`drift` registers low-dose stacks, `haadf` measures layers at surfaces in atomic columns, `interface` indexes lattice images, `ped` maps
phases and orientations from precession electron diffraction. `fractions` turns maps into area fractions with intervals, `simulate`
makes recordings whose truth is known, `explore` shows all of it in JupyterLab. Input that cannot be used raises `EmphaseError`.

Packages are loaded when they are first used:

>>> import emphase
>>> emphase.drift.register_stack.__name__
'register_stack'
"""

from __future__ import annotations

import importlib
from types import ModuleType

from .errors import EmphaseError

__all__ = [
    "EmphaseError",
    "chunks",
    "crystals",
    "drift",
    "explore",
    "fib_images",
    "fractions",
    "frames",
    "haadf",
    "interface",
    "lamella",
    "milling",
    "orientations",
    "ped",
    "simulate",
]


def __dir__() -> list[str]:
    return sorted(__all__)


def __getattr__(name: str) -> ModuleType:
    """A module of the library, imported when it is first used."""
    try:
        return importlib.import_module(f".{name}", __name__)
    except ModuleNotFoundError as error:
        if error.name != f"{__name__}.{name}":
            raise
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}") from None
