"""TODO."""

from .base import HandChoices, in_jupyterlab
from .comparison import ComparisonExplorer
from .drift import DriftExplorer
from .interface import InterfaceExplorer
from .ped import PedExplorer, Reading, ShareOf
from .surface import SurfaceExplorer

__all__ = [
    "ComparisonExplorer",
    "DriftExplorer",
    "HandChoices",
    "InterfaceExplorer",
    "PedExplorer",
    "Reading",
    "ShareOf",
    "SurfaceExplorer",
    "in_jupyterlab",
]
