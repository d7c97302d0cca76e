"""Phases and orientations from scanning precession electron diffraction (PED).

A scan calibrates itself on the phases that it holds (`calibrate`). Every pattern is reduced once to a table of its spots with their
counts above a radial background (`find_spots`). Template banks (`template_bank`) hold what each phase diffracts in every zone axis under
precession (rocking curve: Vincent and Midgley, Ultramicroscopy 53 (1994) 271), and measured spots vote for templates and in-plane angles
as in template matching (Rauch and Dupuy, Arch. Metall. Mater. 50 (2005) 87; Ophus et al., Microsc. Microanal. 28 (2022) 390).

The best candidates are then compared by evidence, not by a correlation: the log of the probability of a pattern's spots, Poisson counts
and places, with a crystal over that with background and stray spots only, in nats (`search_phase`). Evidence adds up over patterns, so
that `map_scan` shares lattices between neighbours, separates overlapping crystals, and says by how many nats a phase wins over the next.
`segment_grains` joins the map to grains.
"""

from .calibration import CalibratedScan, Optics, calibrate
from .grains import segment_grains
from .index import Indexing
from .maps import map_scan
from .scan import Calibration
from .search import predicted_spots, search_phase
from .spots import find_spots
from .templates import TemplateBank, template_bank

__all__ = [
    "CalibratedScan",
    "Calibration",
    "Indexing",
    "Optics",
    "TemplateBank",
    "calibrate",
    "find_spots",
    "map_scan",
    "predicted_spots",
    "search_phase",
    "segment_grains",
    "template_bank",
]
