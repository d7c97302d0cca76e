"""TODO."""

from .haadf import haadf_image
from .interface import interface_image
from .ped import ped_scan
from .stack import drifting_stack, lattice_scene, plain_lattice

__all__ = [
    "drifting_stack",
    "haadf_image",
    "interface_image",
    "lattice_scene",
    "ped_scan",
    "plain_lattice",
]
