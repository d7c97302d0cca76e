"""The area fraction of a phase from a phase map, corrected for misclassification, with its interval and its detection limit.

A pattern is misjudged where two crystals share it nearly equally and the shares found are a little off, and then so are those of the
same two crystals next to it: an error in how strongly a crystal is taken to diffract is the same in all of its patterns. So errors
belong to crystals, not to patterns. Their size is measured on the scan itself (`run_spike_ins`): recorded patterns of single crystals
are thinned and added in known shares, which keeps intensities, noise and background as recorded, and matched again. Recovering a known
added amount is the spike-in control of analytical chemistry. Thinning is exact: of Poisson counts, each kept with probability w,
remains what a crystal of w times the thickness would have given.

The scatter of the shares found about those put in, between pairs of crystals and within a pair (`spread_of`, a one-way analysis of
variance), says how else the whole map could have come out (`drawn_counts`); the mixtures taken for another phase give the bias that
`corrected_fraction` takes off, and the rate of false patterns behind its detection limit (Poisson upper bound, as Currie, Anal. Chem.
40 (1968) 586). Grains are resampled (`resampling_units`; cluster bootstrap) for what another area of the same specimen would show.
Material that hardly diffracts is counted with the phase that its neighbourhood supports (`with_hidden_material`).
`emphase.fractions.compare` compares fractions of several specimens.
"""

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
