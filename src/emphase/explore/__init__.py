"""Explorers for JupyterLab: views of the library's objects that answer mouse and keys.

Each takes what the method's functions return, beside the recording: `DriftExplorer` a stack with its `DriftSolution`, `SurfaceExplorer` an
HAADF image with its columns and layer, `InterfaceExplorer` a bright-field image with its `InterfaceResult`, `PedExplorer` a scan with its
calibration and template banks, and the map where there is one, `ComparisonExplorer` shares of several samples. They compute
nothing: another choice is handed to the function that made the result, in a thread that can be cancelled.

What becomes of a choice made by hand is up to the caller, who passes two callbacks (`HandChoices`); without them an explorer only shows.
Figures are ipympl canvases (https://matplotlib.org/ipympl) in ipywidgets; they need the extra ``emphase[explore]``. Outside JupyterLab
(`in_jupyterlab`) there is nobody to answer, and a notebook skips them.
"""

from ..choices import HandChoices, in_jupyterlab
from .comparison import ComparisonExplorer
from .drift import DriftExplorer
from .interface import InterfaceExplorer
from .ped import PedExplorer
from .readings import MapDisplay, Reading, ShareOf
from .surface import MeasuredSurface, SurfaceExplorer

__all__ = [
    "ComparisonExplorer",
    "DriftExplorer",
    "HandChoices",
    "InterfaceExplorer",
    "MapDisplay",
    "MeasuredSurface",
    "PedExplorer",
    "Reading",
    "ShareOf",
    "SurfaceExplorer",
    "in_jupyterlab",
]
