"""TODO."""

from __future__ import annotations

import math
from typing import Any

import numba
import numpy as np

from ..kernels import kernel
from .decide import decide_phases
from .evidence import _camera, _collect, _near_ewald, _predict, _room, _view
from .index import Indexing, index_scan
from .overlap import _MOST_PARTS
from .scan import Calibration
from .spots import _MOST_SPOTS, Spots, first_radius_px
from .templates import TemplateBank, _joined_reflections


@kernel(parallel=True)
def _correlations(table, number, background, centre, refs, first, camera, phase, share, rotation, result, threads):
    for thread in numba.prange(threads):
        work = _room(camera, len(refs.g))
        near = np.empty(len(refs.g), np.int64)
        expected = np.empty(_MOST_SPOTS)
        for i in range(thread, len(table), threads):
            if phase[i, 0] < 0 or number[i] == 0:
                continue
            view, _ = _view(table[i], number[i], background[i], centre[i], camera, work)
            expected[:] = 0
            for q in range(phase.shape[1]):
                if phase[i, q] < 0:
                    continue
                n_near = _near_ewald(rotation[i, q], 0.0, refs, first[phase[i, q]], first[phase[i, q] + 1], near)
                _, total = _collect(rotation[i, q], near, n_near, refs, camera, view)
                for k in range(number[i]):
                    expected[k] += share[i, q] * view.strength[k] / max(total, 1e-30)
            product, measured, explained = 0.0, 0.0, 0
            for k in range(number[i]):
                if view.spots[k, 4] >= 4:
                    net = max(view.spots[k, 2] - view.spots[k, 3], np.float32(0))
                    measured += net
                    product += math.sqrt(net * expected[k])
                    explained += expected[k] > 0
            if explained > 1:
                result[i] = product / math.sqrt(measured)


def correlation_map(spots: Spots, calibration: Calibration, banks: list[TemplateBank], found: Indexing) -> np.ndarray:
    """Correlation coefficient (0 to 1) of measured and predicted spot strengths (square roots), (ny, nx).

    Over all measured spots of at least 4 nats and all places that the crystals of a pattern
    predict, these in their shares; 1 is a pattern whose spots are all predicted, in their
    proportions, and no others. One spot is no crystal: 0 where fewer than two are explained.
    """
    refs, first = _joined_reflections(banks)
    shape = found.winner.shape
    result = np.zeros(found.winner.size)
    _correlations(
        *spots.arrays, refs, first, _camera(calibration),
        found.part_phase.reshape(-1, _MOST_PARTS), found.part_share.reshape(-1, _MOST_PARTS),
        found.part_rotation.reshape(-1, _MOST_PARTS, 3, 3).astype(float), result, numba.get_num_threads(),
    )  # fmt: skip
    return result.reshape(shape)


@kernel(parallel=True)
def _distinct(table, number, background, centre, refs, first, camera, phase, rotations, result, threads):
    for thread in numba.prange(threads):
        own, other = _room(camera, len(refs.g)), _room(camera, len(refs.g))
        near = np.empty(len(refs.g), np.int64)
        taken = np.zeros(camera.pixels.shape, np.int16)
        for i in range(thread, len(table), threads):
            p = phase[i]
            if p < 0:
                continue
            view, diffracted = _view(table[i], number[i], background[i], centre[i], camera, own)
            n_near = _near_ewald(rotations[p, i], 0.0, refs, first[p], first[p + 1], near)
            n_own = _predict(rotations[p, i], near, n_near, refs, camera, centre[i], own.predicted)
            least = 100.0
            for q in range(len(rotations)):
                if q == p:
                    continue
                n_near = _near_ewald(rotations[q, i], 0.0, refs, first[q], first[q + 1], near)
                n_other = _predict(rotations[q, i], near, n_near, refs, camera, centre[i], other.predicted)
                count = _lone_spots(own.predicted, n_own, other.predicted, n_other, view.background, centre[i], camera, diffracted, taken)
                count += _lone_spots(other.predicted, n_other, own.predicted, n_own, view.background, centre[i], camera, diffracted, taken)
                least = min(least, count)
            result[i] = least


@kernel
def _lone_spots(mine, n_mine, others, n_others, background, centre, camera, diffracted, taken):
    """How many of my spots are bright enough to be seen and lie on no spot of the other crystal."""
    taken[:] = 0
    reach = int(camera.match)
    for j in range(n_others):
        v, u = int(others[j, 0] + 0.5), int(others[j, 1] + 0.5)
        taken[max(0, v - reach) : v + reach + 1, max(0, u - reach) : u + reach + 1] = 1
    total = 0.0
    for j in range(n_mine):
        total += mine[j, 2]
    count = 0
    for j in range(n_mine):
        mean = diffracted * mine[j, 2] / total
        r = math.sqrt((mine[j, 0] - centre[0]) ** 2 + (mine[j, 1] - centre[1]) ** 2)
        below = background[min(int(r), len(background) - 1)] * camera.full + 0.02
        seen = (mean + below) * math.log((mean + below) / below) - mean > 6.0
        if seen and taken[int(mine[j, 0] + 0.5), int(mine[j, 1] + 0.5)] == 0:
            count += 1
    return count


def discriminating_spots(
    spots: Spots, calibration: Calibration, banks: list[TemplateBank], phase_id: np.ndarray, rotation: np.ndarray
) -> np.ndarray:
    """How many spots tell the phase of a pattern from every other phase, (ny, nx); 0 where not indexed.

    ``rotation`` (p, ny, nx, 3, 3) are the best solutions of all phases. For each other phase the
    spots are counted that one of the two predicts, bright enough to stand out by 6 nats, and the
    other does not; the least of these counts is returned. Where it is 0, the pattern cannot
    discriminate, whatever its dose.
    """
    refs, first = _joined_reflections(banks)
    result = np.zeros(phase_id.size)
    _distinct(
        *spots.arrays, refs, first, _camera(calibration), phase_id.ravel(),
        np.ascontiguousarray(rotation, dtype=float).reshape(len(banks), -1, 3, 3), result, numba.get_num_threads(),
    )  # fmt: skip
    return result.reshape(phase_id.shape)


def map_scan(
    patterns: Any, calibration: Calibration, banks: list[TemplateBank], thresholds: dict[str, float] | None = None, **options: Any
) -> tuple[dict[str, np.ndarray], Indexing, Spots]:
    """The maps (ny, nx) of a scan: those of `decide_phases`, ``correlation``, ``discriminating_spots``, ``diffuse`` counts and ``support``.

    ``thresholds`` go to `decide_phases`, ``options`` to `index_scan`. A pattern without a discriminating spot is not decided.
    """
    found, spots = index_scan(patterns, calibration, banks, **options)
    return read_maps(found, spots, calibration, banks, thresholds), found, spots


def read_maps(
    found: Indexing, spots: Spots, calibration: Calibration, banks: list[TemplateBank], thresholds: dict[str, float] | None = None
) -> dict[str, np.ndarray]:
    """The maps of `map_scan` from what was found, some lines of the scan at a time; other thresholds need no other search."""
    ny, nx = found.winner.shape
    lines = max(1, _PATTERNS_READ // nx)
    blocks = []
    for y in range(0, ny, lines):
        rows = slice(y, min(y + lines, ny))
        here = spots[rows.start * nx : rows.stop * nx]
        blocks.append(_read_lines(found.part(rows, slice(0, nx)), here, calibration, banks, thresholds or {}))
    return {name: np.concatenate([block[name] for block in blocks], axis=int(name in ("probability", "support"))) for name in blocks[0]}


_PATTERNS_READ = 200_000  # at a time, by `read_maps`


def _read_lines(
    found: Indexing, spots: Spots, calibration: Calibration, banks: list[TemplateBank], thresholds: dict[str, float]
) -> dict[str, np.ndarray]:
    correlation = correlation_map(spots, calibration, banks, found)
    maps = decide_phases(found, correlation, **thresholds)
    telling = discriminating_spots(spots, calibration, banks, maps["phase_id"], found.rotation)
    decided = maps["decided"] & (telling > 0) if len(banks) > 1 else maps["decided"]
    maps |= {"correlation": correlation, "discriminating_spots": telling, "decided": decided, "support": found.support}
    return maps | {"diffuse": diffuse_counts(spots, calibration).reshape(correlation.shape)}


def diffuse_counts(spots: Spots, calibration: Calibration) -> np.ndarray:
    """Counts (n,) of the radial background outside the direct beam: how much material there is, whether it diffracts or not."""
    radius = np.arange(spots.background.shape[1])
    shown = (radius >= first_radius_px(calibration)) & (radius < min(calibration.mask.shape) / 2)
    return (spots.background[:, shown] * (2 * np.pi * radius[shown])).sum(axis=1)
