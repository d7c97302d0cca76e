"""Phases at an interface from local spectra of a bright-field lattice image.

Peaks of the spectra of sliding windows are matched with the reflections of every candidate phase in every low-index zone axis and
rotation: lengths, angles and strengths together, as a likelihood, so a single spot never decides (`zone_patterns`, `analyse_interface`).
The pixel is calibrated on a phase that is known to be in the image; where none is, the scales that the candidates ask for are weighed
(`emphase.interface.pixel`). The lattices that several windows need are followed over the image by lock-in on their spots (geometric phase
analysis: Hÿtch, Snoeck & Kilaas, Ultramicroscopy 74 (1998) 131), which gives a share of each at every point, an `InterfaceMap` with
amorphous and ambiguous classes, and the width of what lies between two lattices (`layer_width`).
"""

from .phases import InterfaceMap, InterfaceResult, InterfaceSearch, analyse_interface, layer_width, spacing_table
from .spectra import Lattice, zone_patterns

__all__ = [
    "InterfaceMap",
    "InterfaceResult",
    "InterfaceSearch",
    "Lattice",
    "analyse_interface",
    "layer_width",
    "spacing_table",
    "zone_patterns",
]
