"""TODO."""

from .phases import InterfaceMap, InterfaceResult, analyse_interface, layer_width, spacing_table
from .spectra import Lattice, zone_patterns

__all__ = [
    "InterfaceMap",
    "InterfaceResult",
    "Lattice",
    "analyse_interface",
    "layer_width",
    "spacing_table",
    "zone_patterns",
]
