"""TODO."""

from .calibrate import refine_calibration
from .grains import segment_grains
from .index import Indexing
from .maps import map_scan
from .scan import Calibration, check_patterns
from .search import predicted_spots, search_phase
from .spots import Spots, find_spots
from .templates import TemplateBank, template_bank

__all__ = [
    "Calibration",
    "Indexing",
    "Spots",
    "TemplateBank",
    "check_patterns",
    "find_spots",
    "map_scan",
    "predicted_spots",
    "refine_calibration",
    "search_phase",
    "segment_grains",
    "template_bank",
]
