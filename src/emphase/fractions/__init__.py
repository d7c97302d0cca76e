"""TODO."""

from .draws import drawn_counts, resampling_units, spread_of
from .estimate import Fraction, corrected_fraction, counted_shares
from .hidden import with_hidden_material
from .places import layer_at, share_by_bin
from .spike_in import SpikeIn, confusion, run_spike_ins

__all__ = [
    "Fraction",
    "SpikeIn",
    "confusion",
    "corrected_fraction",
    "counted_shares",
    "drawn_counts",
    "layer_at",
    "resampling_units",
    "run_spike_ins",
    "share_by_bin",
    "spread_of",
    "with_hidden_material",
]
