"""TODO."""

from .columns import Columns, cation_lattice, measure_columns
from .fingerprints import fingerprint_layer
from .image_lattice import ImageLattice
from .lattice import find_image_lattice
from .layer import SurfaceLayer, measure_surface_layer
from .projection import project_columns
from .structures import column_regions, layer_along, thickness_at_zero_dose

__all__ = [
    "Columns",
    "ImageLattice",
    "SurfaceLayer",
    "cation_lattice",
    "column_regions",
    "find_image_lattice",
    "fingerprint_layer",
    "layer_along",
    "measure_columns",
    "measure_surface_layer",
    "project_columns",
    "thickness_at_zero_dose",
]
