"""Recordings of crystals with their truth: PED scans, HAADF images, bright-field images and drifting low-dose stacks.

What a simulator shows is composed of frozen dataclasses of plain numbers; crystals are passed. All that is random is drawn from the
generator that is given, in a fixed order, so the same seed gives the same recording to the bit. A recording comes with a dict that holds
its truth. The physics is other than that of the estimators, so that a test against it is not circular: two-beam dynamical intensities
averaged over precession and thickness (PED), a phase object through the transfer of the microscope (bright field; Kirkland, *Advanced
Computing in Electron Microscopy*, 2010), and columns of Z^1.7 contrast with probe tails and scan distortion (HAADF; Pennycook & Jesson,
Ultramicroscopy 37 (1991) 14). Counts are Poisson throughout.
"""

from .haadf import HaadfConditions, haadf_image
from .interface import InterfaceScene, interface_image
from .ped import PedRecording, PedScene, ped_scan
from .stack import StackMotion, drifting_stack, lattice_scene, plain_lattice

__all__ = [
    "HaadfConditions",
    "InterfaceScene",
    "PedRecording",
    "PedScene",
    "StackMotion",
    "drifting_stack",
    "haadf_image",
    "interface_image",
    "lattice_scene",
    "ped_scan",
    "plain_lattice",
]
