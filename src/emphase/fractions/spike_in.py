"""Known mixtures of a scan's own patterns (spike-ins), and how the matching recovers their phases and shares.

Each pattern in which two phases were found is replaced by the sum of a recorded pattern of its larger crystal alone and of one of its
second crystal alone, both from nearby, each thinned to its share (`spike_in`): of Poisson counts, each kept with probability w, remains
what a crystal of w times the thickness would have given. So intensities, noise and background stay as recorded. The mixtures go through
the same matching as the scan (`run_spike_ins`), and `SpikeIn` holds for each of them what was put in and what was found.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ..ped.index import Indexing
from ..ped.maps import map_scan
from ..ped.scan import Calibration
from ..ped.templates import TemplateBank


@dataclass(frozen=True)
class SpikeInOptions:
    """Which patterns are taken for those of one crystal, and how shares are compared."""

    least_share_alone: float = 0.97  # of the larger crystal: the second one has less than the counts' noise
    least_correlation_alone: float = 0.5  # of such a pattern with its template: below, the crystal may be another one
    added_to_share: float = 0.02  # on both sides of a ratio: log-odds stay finite, and smaller shares are not resolved anyway
    largest_error: float = 2.5  # in log-odds: one crystal that was missed altogether does not make the scatter of all


OPTIONS = SpikeInOptions()


def busiest_window(maps: dict[str, np.ndarray], most_patterns: int = 2304) -> tuple[slice, slice]:
    """The part of a scan that holds the most patterns of two phases, from its maps.

    Parameters
    ----------
    maps
        ``second_phase_id`` (ny, nx) is used.
    most_patterns
        Of the part.

    Returns
    -------
    Slices in y and x.
    """
    ny, nx = maps["phase_id"].shape
    side = math.isqrt(most_patterns)
    height = min(ny, max(side, most_patterns // nx))
    width = min(nx, most_patterns // height)
    total = np.pad(np.cumsum(np.cumsum(maps["second_phase_id"] >= 0, axis=0), axis=1), ((1, 0), (1, 0)))
    held = total[height:, width:] - total[:-height, width:] - total[height:, :-width] + total[:-height, :-width]
    y, x = (int(v) for v in np.unravel_index(np.argmax(held), held.shape))
    return slice(y, y + height), slice(x, x + width)


def spike_in(
    patterns: np.ndarray, calibration: Calibration, maps: dict[str, np.ndarray], *, seed: int = 1, nearest: int = 4
) -> tuple[np.ndarray, np.ndarray]:
    """Replace the patterns of two phases in a scan by mixtures of recorded patterns in known shares.

    Each pattern that `decide_phases` gave a second phase becomes the sum of one recorded pattern of its
    larger crystal alone and one of its second crystal alone, each of the ``nearest`` ones at random, thinned to the
    shares that were found; all others stay as they are.

    Parameters
    ----------
    patterns
        Recorded (ny, nx, ky, kx).
    calibration
        Of these patterns; its gain and offset make counts of them.
    maps
        Maps (ny, nx) of the scan, as `emphase.ped.map_scan` gives them.
    seed
        Of the choice of patterns and of the thinning.
    nearest
        Number of patterns of a crystal alone that a mixture chooses from.

    Returns
    -------
    Counts (ny, nx, ky, kx) float32 (gain 1, offset 0), and a mask (ny, nx) of the patterns that were made.
    """
    rng = np.random.default_rng(seed)
    counts = np.rint(np.maximum((patterns.astype(np.float32) - calibration.offset) / calibration.gain, 0)).astype(np.int32)
    spiked, made = counts.astype(np.float32), np.zeros(maps["phase_id"].shape, bool)
    donors = _patterns_alone(maps)
    shares = share_of_second(maps)
    for y, x in np.argwhere((maps["phase_id"] >= 0) & (maps["second_phase_id"] >= 0)):
        pair = maps["crystal_id"][y, x], maps["second_crystal_id"][y, x]
        if pair[0] not in donors or pair[1] not in donors:
            continue
        second = shares[y, x]
        mixture = np.zeros(patterns.shape[2:], np.int64)
        for crystal, kept in zip(pair, (1 - second, second), strict=True):
            places, tree = donors[crystal]
            k = min(nearest, len(places))
            close = np.atleast_1d(tree.query((y, x), k=k)[1])
            v, u = places[close[rng.integers(k)]]
            moved = np.rint(calibration.centre_px[y, x] - calibration.centre_px[v, u]).astype(int)
            mixture += rng.binomial(np.roll(counts[v, u], tuple(moved), (0, 1)), kept)
        spiked[y, x], made[y, x] = mixture, True
    return spiked, made


def _patterns_alone(maps: dict[str, np.ndarray]) -> dict[int, tuple[np.ndarray, Any]]:
    """For every crystal that fills patterns alone the places (n, 2) of these, y and x, and a tree to search them by distance."""
    from scipy.spatial import cKDTree

    alone = (maps["phase_id"] >= 0) & (maps["crystal_id"] >= 0)
    alone &= (maps["share"] > OPTIONS.least_share_alone) & (maps["correlation"] >= OPTIONS.least_correlation_alone)
    places = {c: np.argwhere(alone & (maps["crystal_id"] == c)) for c in np.unique(maps["crystal_id"][alone])}
    return {c: (found, cKDTree(found)) for c, found in places.items()}


def share_of_second(maps: dict[str, np.ndarray]) -> np.ndarray:
    """Share (ny, nx) of a pattern's second crystal in what it and the first hold together, from the maps."""
    return maps["second_share"] / np.maximum(maps["share"] + maps["second_share"], 1e-9)


@dataclass(frozen=True)
class SpikeIn:
    """What became of known mixtures: arrays (n,), one entry for each mixture.

    Attributes
    ----------
    pair
        Number of the pair of crystals that is mixed.
    lead, second
        Phases put in: of the crystal with the larger share, and of the other one.
    found
        Phase found, -1 for none.
    put_in
        Log-odds put in, of the first crystal against the second.
    error
        By how much larger the log-odds found are.
    several
        Whether a second phase was found.
    """

    pair: np.ndarray
    lead: np.ndarray
    second: np.ndarray
    found: np.ndarray
    put_in: np.ndarray
    error: np.ndarray
    several: np.ndarray


def log_odds(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Logarithm of the ratio of two shares, finite where one of them is 0: `SpikeInOptions.added_to_share` is added to both.

    >>> float(log_odds(np.array(0.5), np.array(0.5)))
    0.0
    """
    return np.log((first + OPTIONS.added_to_share) / (second + OPTIONS.added_to_share))


def judge_spike_in(maps: dict[str, np.ndarray], made: np.ndarray, found: Indexing, decision: dict[str, np.ndarray]) -> SpikeIn:
    """Compare the mixtures that `spike_in` made with what the matching found in them.

    Parameters
    ----------
    maps, made
        Of the scan, and the mask (ny, nx) of its patterns that were replaced.
    found, decision
        What the matching gave for the mixtures: parts and shares, and maps with ``phase_id`` and ``second_phase_id``.
    """
    lead, second = maps["phase_id"][made], maps["second_phase_id"][made]
    pairs = np.stack([maps["crystal_id"][made], maps["second_crystal_id"][made]], axis=-1)
    _, pair = np.unique(pairs, axis=0, return_inverse=True)
    held = [np.where(found.part_phase[made] == k[:, None], found.part_share[made], 0.0).sum(axis=-1) for k in (lead, second)]
    share = share_of_second(maps)[made]
    put_in = log_odds(1 - share, share)
    error = np.clip(log_odds(*held) - put_in, -OPTIONS.largest_error, OPTIONS.largest_error)
    return SpikeIn(pair.ravel(), lead, second, decision["phase_id"][made], put_in, error, decision["second_phase_id"][made] >= 0)


def no_spike_in() -> SpikeIn:
    """The `SpikeIn` of a scan in which no mixtures can be made: arrays of length 0."""
    return SpikeIn(*(np.zeros(0, kind) for kind in (int, int, int, int, float, float, bool)))


def run_spike_ins(
    patterns: np.ndarray,
    calibration: Calibration,
    banks: list[TemplateBank],
    maps: dict[str, np.ndarray],
    thresholds: dict[str, float] | None = None,
    *,
    trials: Iterable[int] = range(3),
    seed: int = 1,
    **options: Any,
) -> SpikeIn:
    """Make known mixtures of a scan, match them as the scan was matched, and compare.

    Parameters
    ----------
    patterns
        Recorded (ny, nx, ky, kx).
    calibration, banks
        Of the scan and its candidate phases.
    maps
        Of the scan, from `emphase.ped.map_scan` with the same ``thresholds`` and ``options``.
    thresholds, **options
        Those of `emphase.ped.map_scan`.
    trials
        Numbers of the repetitions, each with mixtures of its own; an iterable, so that it may show progress.
    seed
        Of the first repetition.

    Returns
    -------
    `SpikeIn` of all repetitions together, of length 0 where no mixtures can be made.
    """
    counting, recovered = replace(calibration, gain=1.0, offset=0.0), [no_spike_in()]
    for number in trials:
        mixtures, made = spike_in(patterns, calibration, maps, seed=seed + number)
        if not made.any():
            break
        again, found, _ = map_scan(mixtures, counting, banks, thresholds, **options)
        recovered.append(judge_spike_in(maps, made, found, again))
    return SpikeIn(*(np.concatenate([getattr(r, f.name) for r in recovered]) for f in dataclasses.fields(SpikeIn)))


def confusion(spike_ins: SpikeIn, n_phases: int) -> np.ndarray:
    """Numbers of mixtures (p, p + 1) by the larger phase put in (rows) and the phase found (columns, the last not indexed)."""
    counts = np.zeros((n_phases, n_phases + 1), int)
    np.add.at(counts, (spike_ins.lead, np.where(spike_ins.found < 0, n_phases, spike_ins.found)), 1)
    return counts
