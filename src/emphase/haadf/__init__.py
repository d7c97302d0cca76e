"""Surface layers of layered oxides in HAADF images along [100]hex: phase and thickness from the brightness of atomic columns.

A crystal is projected along its zone axis (`project_columns`); the projection is found in the image in any orientation by its spatial
frequencies and followed from column to column (`find_image_lattice`), which gives the true pixel and the distortion of the scan.
`registration` fits all columns of the mean cell together: columns nearer than the blur are located by the structure.
`measure_columns` fits the height of every cation column relative to full metal columns nearby; HAADF signal grows as Z^1.7 (Pennycook &
Jesson, Ultramicroscopy 37 (1991) 14), so lithium columns are dark until metal moves in. `measure_surface_layer` finds the edge of the
crystal and fits brightness against depth: spinel alternates full and half metal columns, rocksalt does not.

`fingerprint_layer` does the same from local spatial frequencies without any column. `column_regions`, `layer_along` and
`thickness_at_zero_dose` give structures column by column, the thickness along the surface and its extrapolation to zero dose.
"""

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
