"""TODO."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from ..ped.grains import _eight_neighbours
from .spike_in import SpikeIn, _second_of_two, log_odds


def resampling_units(maps: dict[str, np.ndarray], inside: np.ndarray, least_patterns: int = 10) -> np.ndarray:
    """Numbers (ny, nx) of the grains with the layers on their lattices, -1 outside a mask (ny, nx): what varies together.

    Patterns of one lattice are one unit, wherever their phase changes; pieces of fewer than ``least_patterns``, which are
    seldom grains, belong to the nearest larger unit.
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
    """How much else a map could have come out, as a `SpikeIn` says (`spread_of`).

    ``between`` and ``within`` are the standard deviations, in log-odds, of shares found from one pair of crystals to
    the next and between patterns of a pair; ``unseen`` is how many mixtures a seen one hides that were taken for their
    smaller crystal alone.
    """

    between: float
    within: float
    unseen: float


_PRIOR_BETWEEN, _PRIOR_WITHIN = 0.7, 0.8  # of simulated scans; they count as much as ...
_PRIOR_PAIRS, _PRIOR_MIXTURES = 8, 40  # ... so many pairs of crystals and mixtures of the scan's own


def spread_of(trial: SpikeIn) -> Spread:
    """What a trial says of the shares of a scan.

    A one-way analysis of variance over the mixtures whose smaller share is over 0.2, drawn towards what
    simulated scans gave where the scan has few pairs.
    """
    near = trial.put_in < math.log(0.8 / 0.2)
    _, pair = np.unique(trial.pair[near], return_inverse=True)
    n = np.bincount(pair)
    mean = np.bincount(pair, trial.error[near]) / np.maximum(n, 1)
    squares = float(((trial.error[near] - mean[pair]) ** 2).sum()) if near.any() else 0.0
    freedom = max(int(near.sum()) - len(n), 0)
    within = math.sqrt((_PRIOR_MIXTURES * _PRIOR_WITHIN**2 + squares) / (_PRIOR_MIXTURES + freedom))
    often = n >= 4
    excess = float((mean[often] ** 2 - within**2 / n[often]).sum())
    between = math.sqrt((_PRIOR_PAIRS * _PRIOR_BETWEEN**2 + max(excess, 0.0)) / (_PRIOR_PAIRS + int(often.sum())))
    hidden = int(((trial.found == trial.second) & ~trial.several).sum())
    return Spread(between, within, (hidden + 1) / (int(trial.several.sum()) + _PRIOR_MIXTURES))


def neighbouring_phase(phase_id: np.ndarray) -> np.ndarray:
    """The most frequent other phase among the eight neighbours of every indexed pattern, (ny, nx), -1 where there is none."""
    around = _eight_neighbours(phase_id)
    often = np.stack([(around == k).sum(axis=0) * (phase_id != k) for k in range(int(phase_id.max(initial=0)) + 1)])
    return np.where((phase_id >= 0) & (often.max(axis=0) > 0), np.argmax(often, axis=0), -1)


def drawn_counts(maps: dict[str, np.ndarray], group: np.ndarray, spread: Spread, *, draws: int = 400, seed: int = 1) -> np.ndarray:
    """How many patterns of each group would be of each phase, had the errors come out otherwise: (draws, groups, p).

    Where two phases share a pattern, their log-odds vary by ``spread``: one part is common to all patterns of a crystal, one is the
    pattern's own. Patterns of one crystal beside another phase may be mixtures that were not seen, and more so
    all along one crystal than another. All others are drawn by the probability of their phases, those of a crystal alike.

    Parameters
    ----------
    maps
        As `load_maps` gives them.
    group
        (ny, nx) number of the group a pattern is counted in, -1 for none.
    """
    inside = (group >= 0) & (maps["phase_id"] >= 0)
    number, phase, second = group[inside], maps["phase_id"][inside], maps["second_phase_id"][inside]
    several, beside = second >= 0, neighbouring_phase(maps["phase_id"])[inside]
    p, n_groups = len(maps["probability"]), int(group.max(initial=-1)) + 1
    share = _second_of_two(maps)[inside][several]
    odds = log_odds(1 - share, share)
    crystal = np.stack([maps["crystal_id"][inside], maps["second_crystal_id"][inside]], axis=-1)
    lone = crystal < 0
    crystal[lone] = crystal.max(initial=-1) + 1 + np.arange(lone.sum())
    crystal = np.unique(crystal, return_inverse=True)[1].reshape(-1, 2)
    n_crystals, of_pair = int(crystal.max(initial=-1)) + 1, crystal[several]
    edge = np.flatnonzero(~several & (beside >= 0))
    hidden = spread.unseen * several.sum() / max(len(edge), 1)
    cumulative = np.cumsum(maps["probability"][:, inside], axis=0)[:-1]
    open_ = np.flatnonzero(~several & ((cumulative > 1e-6) & (cumulative < 1 - 1e-6)).any(axis=0))
    cumulative = cumulative[:, open_]
    rng = np.random.default_rng(seed)
    result = np.zeros((draws, n_groups, p), np.int32)
    drawn = phase.copy()
    for i in range(draws):
        off = rng.normal(0, spread.between / math.sqrt(2), n_crystals)
        off = off[of_pair[:, 0]] - off[of_pair[:, 1]] + rng.normal(0, spread.within, len(odds))
        drawn[several] = np.where(odds + off >= 0, phase[several], second[several])
        drawn[edge] = phase[edge]
        drawn[open_] = (rng.random(n_crystals)[crystal[open_, 0]] > cumulative).sum(axis=0)
        missed = rng.random(len(edge)) < (2 * hidden * rng.gamma(0.5, size=n_crystals))[crystal[edge, 0]]
        drawn[edge[missed]] = beside[edge[missed]]
        result[i] = np.bincount(number * p + drawn, minlength=n_groups * p).reshape(n_groups, p)
    return result
