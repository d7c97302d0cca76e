"""TODO."""

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


def busiest_window(maps: dict[str, np.ndarray], most_patterns: int = 2304) -> tuple[slice, slice]:
    """The part of a scan (slices in y and x) of at most so many patterns that holds the most patterns of two phases."""
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
    """A scan whose patterns of two phases are replaced by mixtures of recorded patterns in known shares.

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
        Maps (ny, nx) as `load_maps` gives them.

    Returns
    -------
    Counts (ny, nx, ky, kx) float32 (gain 1, offset 0), and a mask (ny, nx) of the patterns that were made.
    """
    from scipy.spatial import cKDTree

    rng = np.random.default_rng(seed)
    counts = np.rint(np.maximum((patterns.astype(np.float32) - calibration.offset) / calibration.gain, 0)).astype(np.int32)
    spiked, made = counts.astype(np.float32), np.zeros(maps["phase_id"].shape, bool)
    alone = (maps["phase_id"] >= 0) & (maps["share"] > 0.97) & (maps["correlation"] >= 0.5) & (maps["crystal_id"] >= 0)
    donors = {c: np.argwhere(alone & (maps["crystal_id"] == c)) for c in np.unique(maps["crystal_id"][alone])}
    trees = {c: cKDTree(places) for c, places in donors.items()}
    share_of_second = _second_of_two(maps)
    for y, x in np.argwhere((maps["phase_id"] >= 0) & (maps["second_phase_id"] >= 0)):
        pair = maps["crystal_id"][y, x], maps["second_crystal_id"][y, x]
        if pair[0] not in donors or pair[1] not in donors:
            continue
        second = share_of_second[y, x]
        mixture = np.zeros(patterns.shape[2:], np.int64)
        for crystal, kept in zip(pair, (1 - second, second), strict=True):
            k = min(nearest, len(donors[crystal]))
            close = np.atleast_1d(trees[crystal].query((y, x), k=k)[1])
            v, u = donors[crystal][close[rng.integers(k)]]
            moved = np.rint(calibration.centre_px[y, x] - calibration.centre_px[v, u]).astype(int)
            mixture += rng.binomial(np.roll(counts[v, u], tuple(moved), (0, 1)), kept)
        spiked[y, x], made[y, x] = mixture, True
    return spiked, made


def _second_of_two(maps: dict[str, np.ndarray]) -> np.ndarray:
    """Share (ny, nx) of the second crystal in what it and the first hold together."""
    return maps["second_share"] / np.maximum(maps["share"] + maps["second_share"], 1e-9)


@dataclass(frozen=True)
class SpikeIn:
    """What became of known mixtures: one row for each (n,).

    ``pair`` numbers their two crystals, ``lead`` and ``second`` are the phases put in and ``found`` the phase found (-1: none),
    ``put_in`` the log-odds of the first crystal against the second and ``error`` by how much more those found are;
    ``several`` whether a second phase was seen.
    """

    pair: np.ndarray
    lead: np.ndarray
    second: np.ndarray
    found: np.ndarray
    put_in: np.ndarray
    error: np.ndarray
    several: np.ndarray


_LEAST_ODDS = 0.02  # of a share, added to both sides of every ratio


def log_odds(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Logarithm of the ratio of two shares, finite where one of them is 0.

    >>> float(log_odds(np.array(0.5), np.array(0.5)))
    0.0
    """
    return np.log((first + _LEAST_ODDS) / (second + _LEAST_ODDS))


def judge_spike_in(maps: dict[str, np.ndarray], made: np.ndarray, found: Indexing, decision: dict[str, np.ndarray]) -> SpikeIn:
    """Compare the mixtures that `spike_in` made from ``maps`` with what the matching found in them."""
    lead, second = maps["phase_id"][made], maps["second_phase_id"][made]
    pairs = np.stack([maps["crystal_id"][made], maps["second_crystal_id"][made]], axis=-1)
    _, pair = np.unique(pairs, axis=0, return_inverse=True)
    held = [np.where(found.part_phase[made] == k[:, None], found.part_share[made], 0.0).sum(axis=-1) for k in (lead, second)]
    share = _second_of_two(maps)[made]
    put_in = log_odds(1 - share, share)
    error = np.clip(log_odds(*held) - put_in, -2.5, 2.5)
    return SpikeIn(pair.ravel(), lead, second, decision["phase_id"][made], put_in, error, decision["second_phase_id"][made] >= 0)


def no_spike_in() -> SpikeIn:
    """The trial of a scan in which no mixtures can be made."""
    return SpikeIn(*(np.zeros(0, kind) for kind in (int, int, int, int, float, float, bool)))


def run_spike_ins(
    patterns: np.ndarray, calibration: Calibration, banks: list[TemplateBank], maps: dict[str, np.ndarray],
    thresholds: dict[str, float] | None = None, *, trials: Iterable[int] = range(3), seed: int = 1, **options: Any,
) -> SpikeIn:  # fmt: skip
    """Make known mixtures of a scan (ny, nx, ky, kx) and match them as `map_scan` did, once for each of ``trials``.

    ``maps`` are those of the scan; ``thresholds`` and ``options`` those of `map_scan`. Empty where no mixtures can be made.
    """
    counting, results = replace(calibration, gain=1.0, offset=0.0), [no_spike_in()]
    for number in trials:
        mixtures, made = spike_in(patterns, calibration, maps, seed=seed + number)
        if not made.any():
            break
        again, found, _ = map_scan(mixtures, counting, banks, thresholds, **options)
        results.append(judge_spike_in(maps, made, found, again))
    return SpikeIn(*(np.concatenate([getattr(t, f.name) for t in results]) for f in dataclasses.fields(SpikeIn)))


def confusion(trial: SpikeIn, n_phases: int) -> np.ndarray:
    """Mixtures counted by larger phase put in (rows, p) and phase found (columns, p + 1, the last not indexed)."""
    counts = np.zeros((n_phases, n_phases + 1), int)
    np.add.at(counts, (trial.lead, np.where(trial.found < 0, n_phases, trial.found)), 1)
    return counts
