"""Phases, orientations and layers of battery materials from electron microscope recordings, with how sure each number is.

Every folder is a method and its ``__init__`` the table of contents. They are loaded when they are first asked for:

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
    "fractions",
    "frames",
    "haadf",
    "interface",
    "lamella",
    "orientations",
    "ped",
    "simulate",
]


def __getattr__(name: str) -> ModuleType:
    try:
        return importlib.import_module(f".{name}", __name__)
    except ModuleNotFoundError as error:
        if error.name != f"{__name__}.{name}":
            raise
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}") from None
