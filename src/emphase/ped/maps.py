"""Maps of a scan from what was found in it: phases, correlation, discriminating spots, diffuse counts.

Besides the decision (`emphase.ped.decide`) every pattern gets

- the *correlation coefficient* of measured and predicted spot strengths, which says whether any of the candidates is right (Rauch and
  Dupuy, Arch. Metall. Mater. 50 (2005) 87, here over spots and of square roots, so that one bright spot does not outweigh all others),
- the number of *discriminating spots*: those that the phase found predicts, bright enough to be seen, and another phase does not, or the
  other way round. Where the least of these numbers is 0, no dose can distinguish the two.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np

from ..kernels import kernel, side_by_side
from .decide import decide_phases
from .evidence import _camera, _counts_below, _near_ewald, _predict, _room, _view
from .explained import believable, explain
from .hidden import beside_hidden, hidden_candidates
from .index import Indexing, index_scan
from .scan import Calibration
from .spots import Spots, _SpotArrays, first_radius_px
from .templates import TemplateBank, _joined_reflections


class MapOptions(NamedTuple):
    """Tuning numbers of the maps; a named tuple, which kernels read."""

    seen_nats: float = 6.0  # a spot that would stand out by this is seen: one in 400 of the background's fluctuations does
    patterns_read: int = 200_000  # patterns at a time, so that maps of a long scan need no memory of its length


OPTIONS = MapOptions()


@kernel(nogil=True)
def _distinct(numbers, spots, refs, first, camera, phase, rotations, least):
    """The ``least`` number (n,) of spots that distinguish the ``phase`` (n,) of patterns from another; ``rotations`` (p, n, 3, 3)."""
    work, work_of_other = _room(camera, len(refs.g)), _room(camera, len(refs.g))
    near = np.empty(len(refs.g), np.int64)
    taken = np.zeros(camera.pixels.shape, np.int16)
    for i in numbers:
        p = phase[i]
        if p < 0:
            continue
        view, diffracted = _view(spots.table[i], spots.number[i], spots.background[i], spots.centre[i], camera, work)
        n_near = _near_ewald(rotations[p, i], 0.0, refs, first[p], first[p + 1], near)
        found = work.predicted[: _predict(rotations[p, i], near, n_near, refs, camera, view.centre, work.predicted)]
        least[i] = 100.0
        for q in range(len(rotations)):
            if q == p:
                continue
            n_near = _near_ewald(rotations[q, i], 0.0, refs, first[q], first[q + 1], near)
            n_other = _predict(rotations[q, i], near, n_near, refs, camera, view.centre, work_of_other.predicted)
            other = work_of_other.predicted[:n_other]
            count = _lone_spots(found, other, view, camera, diffracted, taken)
            count += _lone_spots(other, found, view, camera, diffracted, taken)
            least[i] = min(least[i], count)


@kernel
def _lone_spots(predicted, others, view, camera, diffracted, taken):
    """How many ``predicted`` spots (n, 4) of a crystal are bright enough to be seen and lie on no spot of the other crystal.

    ``diffracted`` are the counts that the crystal's spots hold together; ``taken`` is work space, an image.
    """
    taken[:] = 0
    reach = int(camera.match)
    for j in range(len(others)):
        v, u = int(others[j, 0] + 0.5), int(others[j, 1] + 0.5)
        taken[max(0, v - reach) : v + reach + 1, max(0, u - reach) : u + reach + 1] = 1
    total = 0.0
    for j in range(len(predicted)):
        total += predicted[j, 2]
    count = 0
    for j in range(len(predicted)):
        mean = diffracted * predicted[j, 2] / total
        below = _counts_below(predicted[j, 0], predicted[j, 1], view, camera)
        seen = (mean + below) * math.log((mean + below) / below) - mean > OPTIONS.seen_nats
        if seen and taken[int(predicted[j, 0] + 0.5), int(predicted[j, 1] + 0.5)] == 0:
            count += 1
    return count


def discriminating_spots(
    spots: Spots, calibration: Calibration, banks: list[TemplateBank], phase_id: np.ndarray, rotation: np.ndarray
) -> np.ndarray:
    """How many spots distinguish the phase of a pattern from every other phase, from the orientations found for all of them.

    Parameters
    ----------
    spots
        Of all patterns, in the order of the scan.
    calibration
        Of the scan.
    banks
        Of the p candidate phases.
    phase_id
        The phase (ny, nx) of every pattern, -1 where not indexed.
    rotation
        The best solutions (p, ny, nx, 3, 3) of all phases.

    Returns
    -------
    Numbers (ny, nx), 0 where not indexed. For each other phase the spots are counted that one of the two predicts, bright enough to stand
    out by 6 nats, and the other does not; the least of these counts is returned. Where it is 0, the pattern cannot
    discriminate, whatever its dose.
    """
    refs, first = _joined_reflections(banks)
    rotations = np.ascontiguousarray(rotation, dtype=float).reshape(len(banks), -1, 3, 3)
    least, phase = np.zeros(phase_id.size), phase_id.ravel()
    side_by_side(_distinct, len(phase), _SpotArrays(*spots.arrays), refs, first, _camera(calibration), phase, rotations, least)
    return least.reshape(phase_id.shape)


def map_scan(
    patterns: Any, calibration: Calibration, banks: list[TemplateBank], thresholds: dict[str, float] | None = None, **options: Any
) -> tuple[dict[str, np.ndarray], Indexing, Spots]:
    """The maps of a scan, with what was found in it and its spots, from its patterns: `index_scan`, then `read_maps`.

    Parameters
    ----------
    patterns
        Scan (ny, nx, ky, kx), numpy or dask, or anything that is read by slices of lines and columns.
    calibration
        Of the scan, with the direct beam of every pattern.
    banks
        Templates of the candidate phases.
    thresholds
        Keyword arguments of `emphase.ped.decide.decide_phases`.
    **options
        Of `emphase.ped.index.index_scan`.

    Returns
    -------
    maps
        As `read_maps` gives them.
    found
        What `emphase.ped.index.index_scan` found.
    spots
        Of all patterns, in the order of the scan.
    """
    found, spots = index_scan(patterns, calibration, banks, **options)
    return read_maps(found, spots, calibration, banks, thresholds), found, spots


def read_maps(
    found: Indexing, spots: Spots, calibration: Calibration, banks: list[TemplateBank], thresholds: dict[str, float] | None = None
) -> dict[str, np.ndarray]:
    """The maps of a scan from what was found in it, some lines at a time; other thresholds need no other search.

    Parameters
    ----------
    found, spots
        What `emphase.ped.index.index_scan` returns.
    calibration, banks
        With which it was found.
    thresholds
        Keyword arguments of `emphase.ped.decide.decide_phases`.

    Returns
    -------
    Maps (ny, nx) by name: those of `emphase.ped.decide.decide_phases`; ``correlation``, ``explained_share``, ``evidence_share``,
    ``clear_spots`` and ``unexplained_spots`` of `emphase.ped.explained.explain`, and whether it is ``explained``;
    ``discriminating_spots``, ``diffuse`` counts, ``support`` (p, ny, nx), and ``beside_hidden``. A pattern without a discriminating spot
    is not decided, nor is one that may be explained by luck, because a phase is missing (`emphase.ped.explained.believable`), nor one
    that touches what is not indexed where the mask hides a candidate (`emphase.ped.hidden`).
    """
    ny, nx = found.winner.shape
    lines = max(1, OPTIONS.patterns_read // nx)
    blocks = []
    for y in range(0, ny, lines):
        rows = slice(y, min(y + lines, ny))
        here = spots[rows.start * nx : rows.stop * nx]
        blocks.append(_read_lines(found.part(rows, slice(0, nx)), here, calibration, banks, thresholds or {}))
    by_phase = ("probability", "support")
    maps = {name: np.concatenate([block[name] for block in blocks], axis=int(name in by_phase)) for name in blocks[0]}
    maps["beside_hidden"] = beside_hidden(maps["phase_id"], hidden_candidates(calibration, banks))
    return maps | {"decided": maps["decided"] & believable(maps) & ~maps["beside_hidden"]}


def _read_lines(
    found: Indexing, spots: Spots, calibration: Calibration, banks: list[TemplateBank], thresholds: dict[str, float]
) -> dict[str, np.ndarray]:
    """The maps of some lines of a scan."""
    shown = explain(spots, calibration, banks, found)
    maps = decide_phases(found, shown.correlation, shown.enough, **thresholds)
    n_discriminating = discriminating_spots(spots, calibration, banks, maps["phase_id"], found.rotation)
    decided = maps["decided"] & (n_discriminating > 0) if len(banks) > 1 else maps["decided"]
    maps |= {"discriminating_spots": n_discriminating, "decided": decided, "support": found.support, "explained": shown.enough}
    maps |= {"correlation": shown.correlation, "explained_share": shown.counts_share, "evidence_share": shown.evidence_share}
    maps |= {"clear_spots": shown.clear_spots, "unexplained_spots": shown.unexplained_spots}
    return maps | {"diffuse": diffuse_counts(spots, calibration).reshape(decided.shape)}


def diffuse_counts(spots: Spots, calibration: Calibration) -> np.ndarray:
    """How much material there is in the beam, whether it diffracts or not, from the radial background outside the direct beam.

    Parameters
    ----------
    spots
        Of n patterns.
    calibration
        Of the scan, for the size of the direct beam and of the camera.

    Returns
    -------
    Counts (n,).
    """
    radius = np.arange(spots.background.shape[1])
    shown = (radius >= first_radius_px(calibration)) & (radius < min(calibration.mask.shape) / 2)
    return (spots.background[:, shown] * (2 * np.pi * radius[shown])).sum(axis=1)
