"""How else a phase map could have come out: the scatter of errors, what varies together, and maps drawn accordingly.

The errors of known mixtures (`SpikeIn`) are split into a part between pairs of crystals and one within a pair (`spread_of`, a one-way
random-effects analysis of variance, drawn towards what simulated scans gave where the scan has few pairs). `drawn_counts` draws maps
with errors of that size, one for each crystal and one for each pattern, and counts their phases in groups of patterns. Groups are
grains with the layers on their lattices (`resampling_units`), which also are what a bootstrap over areas resamples.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from ..ped.grains import eight_neighbours
from .spike_in import SpikeIn, log_odds, share_of_second


def resampling_units(maps: dict[str, np.ndarray], inside: np.ndarray, least_patterns: int = 10) -> np.ndarray:
    """Number the grains together with the layers on their lattices: what varies together from area to area.

    Parameters
    ----------
    maps
        ``lattice_id`` (ny, nx) is used: patterns of one lattice are one unit, wherever their phase changes.
    inside
        Mask (ny, nx) of the area.
    least_patterns
        Smaller pieces, which are seldom grains, belong to the nearest larger unit.

    Returns
    -------
    (ny, nx) numbers from 0, -1 outside.
    """
    from scipy import ndimage

    lattice = np.where(inside, maps["lattice_id"], -1)
    names, size = np.unique(lattice[lattice >= 0], return_counts=True)
    large = np.isin(lattice, names[size >= least_patterns]) if len(names) else np.zeros(inside.shape, bool)
    if not large.any():
        return np.where(inside, 0, -1)
    nearest = ndimage.distance_transform_edt(~large, return_distances=False, return_indices=True)
    _, unit = np.unique(lattice[tuple(nearest)], return_inverse=True)
    return np.where(inside, unit.reshape(inside.shape), -1)


@dataclass(frozen=True)
class Spread:
    """How far the shares of a map stray (`spread_of`).

    Attributes
    ----------
    between, within
        Standard deviations, in log-odds, of shares found from one pair of crystals to the next and between patterns of a pair.
    unseen
        Number of mixtures, for each one seen, that were taken for their smaller crystal alone.
    """

    between: float
    within: float
    unseen: float


@dataclass(frozen=True)
class SpreadOptions:
    """What is expected of a scan before its known mixtures say more."""

    prior_between: float = 0.7  # log-odds, of simulated scans; it counts as much as ...
    prior_pairs: int = 8  # ... so many pairs of crystals of the scan
    prior_within: float = 0.8  # log-odds, of simulated scans; it counts as much as ...
    prior_mixtures: int = 40  # ... so many mixtures of the scan
    most_odds: float = 0.8 / 0.2  # of the two shares put in: where one crystal holds nearly all, the log-odds say little
    least_mixtures: int = 4  # of a pair, whose mean says something of the scatter between pairs
    certain: float = 1e-6  # probability below which a phase is not drawn


OPTIONS = SpreadOptions()


def spread_of(spike_ins: SpikeIn) -> Spread:
    """The scatter of shares in a scan, from its known mixtures.

    Parameters
    ----------
    spike_ins
        Of `run_spike_ins`; without mixtures the result is what simulated scans gave.

    Notes
    -----
    A one-way analysis of variance over the mixtures whose smaller share is over 0.2, drawn towards what
    simulated scans gave where the scan has few pairs.
    """
    near = spike_ins.put_in < math.log(OPTIONS.most_odds)
    _, pair = np.unique(spike_ins.pair[near], return_inverse=True)
    n = np.bincount(pair)
    mean = np.bincount(pair, spike_ins.error[near]) / np.maximum(n, 1)
    squares = float(((spike_ins.error[near] - mean[pair]) ** 2).sum()) if near.any() else 0.0
    freedom = max(int(near.sum()) - len(n), 0)
    within = math.sqrt((OPTIONS.prior_mixtures * OPTIONS.prior_within**2 + squares) / (OPTIONS.prior_mixtures + freedom))
    often = n >= OPTIONS.least_mixtures
    excess = float((mean[often] ** 2 - within**2 / n[often]).sum())
    prior = OPTIONS.prior_pairs * OPTIONS.prior_between**2
    between = math.sqrt((prior + max(excess, 0.0)) / (OPTIONS.prior_pairs + int(often.sum())))
    hidden = int(((spike_ins.found == spike_ins.second) & ~spike_ins.several).sum())
    return Spread(between, within, (hidden + 1) / (int(spike_ins.several.sum()) + OPTIONS.prior_mixtures))


def neighbouring_phase(phase_id: np.ndarray) -> np.ndarray:
    """The most frequent other phase among the eight neighbours of every indexed pattern, (ny, nx), -1 where there is none."""
    around = eight_neighbours(phase_id)
    often = np.stack([(around == k).sum(axis=0) * (phase_id != k) for k in range(int(phase_id.max(initial=0)) + 1)])
    return np.where((phase_id >= 0) & (often.max(axis=0) > 0), np.argmax(often, axis=0), -1)


def drawn_counts(maps: dict[str, np.ndarray], group: np.ndarray, spread: Spread, *, draws: int = 400, seed: int = 1) -> np.ndarray:
    """Draw how many patterns of each group could have been of each phase, from the errors that known mixtures show.

    Parameters
    ----------
    maps
        Maps (ny, nx) of the scan, and ``probability`` (p, ny, nx) of the phases.
    group
        (ny, nx) number of the group a pattern is counted in, -1 for none.
    spread
        Of the errors (`spread_of`).
    draws
        Number of maps to draw.
    seed
        Of these.

    Returns
    -------
    (draws, groups, p) numbers of patterns.

    Notes
    -----
    Where two phases share a pattern, their log-odds vary by ``spread``: one part is common to all patterns of a crystal, one is the
    pattern's own. Patterns of one crystal beside another phase may be mixtures that were not seen, and more so
    all along one crystal than another. All others are drawn by the probability of their phases, those of a crystal alike.
    """
    inside = (group >= 0) & (maps["phase_id"] >= 0)
    p, n_groups = len(maps["probability"]), int(group.max(initial=-1)) + 1
    number, patterns = group[inside], _Patterns.of(maps, inside)
    hidden = spread.unseen * patterns.several.sum() / max(len(patterns.edge), 1)
    rng = np.random.default_rng(seed)
    result = np.zeros((draws, n_groups, p), np.int32)
    drawn = patterns.phase.copy()
    for i in range(draws):
        patterns.draw(drawn, rng, spread, hidden)
        result[i] = np.bincount(number * p + drawn, minlength=n_groups * p).reshape(n_groups, p)
    return result


class _Patterns(NamedTuple):
    """The n patterns of an area, as phases are drawn for them: m of two phases, e beside another phase, o whose phase is open."""

    phase: np.ndarray  #: (n,) as found
    second: np.ndarray  #: (n,) second phase, -1 for none
    beside: np.ndarray  #: (n,) phase of their neighbours, -1 for none
    crystal: np.ndarray  #: (n, 2) numbers of their crystals, from 0
    several: np.ndarray  #: (n,) mask of those of two phases
    odds: np.ndarray  #: (m,) log-odds of their first phase
    edge: np.ndarray  #: (e,) indices
    open: np.ndarray  #: (o,) indices
    cumulative: np.ndarray  #: (p - 1, o) probabilities of the phases, summed up

    @classmethod
    def of(cls, maps: dict[str, np.ndarray], inside: np.ndarray) -> _Patterns:
        """Those of the maps inside a mask (ny, nx)."""
        phase, second = maps["phase_id"][inside], maps["second_phase_id"][inside]
        several, beside = second >= 0, neighbouring_phase(maps["phase_id"])[inside]
        share = share_of_second(maps)[inside][several]
        crystal = np.stack([maps["crystal_id"][inside], maps["second_crystal_id"][inside]], axis=-1)
        lone = crystal < 0
        crystal[lone] = crystal.max(initial=-1) + 1 + np.arange(lone.sum())
        crystal = np.unique(crystal, return_inverse=True)[1].reshape(-1, 2)
        edge = np.flatnonzero(~several & (beside >= 0))
        cumulative = np.cumsum(maps["probability"][:, inside], axis=0)[:-1]
        certain = OPTIONS.certain
        open_ = np.flatnonzero(~several & ((cumulative > certain) & (cumulative < 1 - certain)).any(axis=0))
        return cls(phase, second, beside, crystal, several, log_odds(1 - share, share), edge, open_, cumulative[:, open_])

    def draw(self, drawn: np.ndarray, rng: np.random.Generator, spread: Spread, hidden: float) -> None:
        """Draw the phases (n,) of a map anew, in place; ``hidden`` is the mean rate of unseen mixtures among the patterns of ``edge``."""
        n_crystals, of_pair = int(self.crystal.max(initial=-1)) + 1, self.crystal[self.several]
        off = rng.normal(0, spread.between / math.sqrt(2), n_crystals)
        off = off[of_pair[:, 0]] - off[of_pair[:, 1]] + rng.normal(0, spread.within, len(self.odds))
        drawn[self.several] = np.where(self.odds + off >= 0, self.phase[self.several], self.second[self.several])
        drawn[self.edge] = self.phase[self.edge]
        drawn[self.open] = (rng.random(n_crystals)[self.crystal[self.open, 0]] > self.cumulative).sum(axis=0)
        uniform = rng.random(len(self.edge))
        rate = 2 * hidden * rng.gamma(0.5, size=n_crystals)  # of every crystal: of mean ``hidden``, and very unequal
        missed = uniform < rate[self.crystal[self.edge, 0]]
        drawn[self.edge[missed]] = self.beside[self.edge[missed]]
