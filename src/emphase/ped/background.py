"""The background of a diffraction pattern: what inelastic scattering, amorphous material and the camera's surroundings leave under spots.

1. Against the distance from the direct beam: the mean in rings whose width grows with the distance. Discs that stand out are left out, and
   the mean is taken again. (Rings narrow enough for those of amorphous material take the spots of a zone axis along: not done.)
2. What is not round, as a halo off the beam or the reflex of a beam stop, is the ratio of the counts to that, cell by cell,
   from the cell and its neighbours; where the counts are few it is drawn to one. Discs that stand out from it are left out in their turn;
   at first, when nothing is known of it, it is the median of the ratios of the cell and its neighbours. Where few of these medians are far
   from one the background is round, and nothing is changed.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from ..kernels import kernel


class BackgroundOptions(NamedTuple):
    """Tuning numbers of the background; a named tuple, so that kernels can read it."""

    rounds: int = 3  # until the discs that are left out no longer change
    stands_out_sd: float = 2.5  # a disc so far above the background is left out of it ...
    stands_out_counts: float = 1.5  # ... where it also has so many counts more
    sure_counts: float = 400.0  # of a cell, which is then known to 5 % and is not averaged with its neighbours
    ratio_spread: float = 0.5  # sd of the logarithm of the ratio, before it is seen
    beside_counts: float = 20.0  # that spots leave in a cell and its neighbours, in discs that do not stand out
    no_counts: float = 0.2  # added to what is seen and expected, so that none has a logarithm
    round_within: float = 1.3  # a factor by which ratios of neighbours may differ, and those of a round background from one
    uneven_share: float = 0.03  # of all cells: if more are off, the background is not round


OPTIONS = BackgroundOptions()


@kernel
def _radial_background(image, detector, counts, radius, background, ceiling):
    """Counts a pixel of the smooth background against radius (px); apertures that stand out are left out, and the mean is taken again."""
    ny, nx = image.shape
    n_radii = len(background)
    per_unit, zero = np.float32(1 / detector.gain), np.float32(detector.offset)
    mask, full = detector.mask, detector.full
    total, number = np.zeros(n_radii + 1), np.zeros(n_radii + 1)
    ceiling[:] = 1e30
    for _ in range(OPTIONS.rounds):
        total[:] = 0
        number[:] = 0
        for y in range(ny):
            for x in range(nx):
                r = radius[y, x]
                if counts[y, x] <= ceiling[r] and not mask[y, x]:
                    total[r + 1] += (image[y, x] - zero) * per_unit
                    number[r + 1] += 1
        for r in range(n_radii):
            total[r + 1] += total[r]
            number[r + 1] += number[r]
        for r in range(n_radii):
            reach = 2 + r // 12
            low, high = max(0, r - reach), min(n_radii, r + reach + 1)
            background[r] = max((total[high] - total[low] + 0.3) / (number[high] - number[low] + 1.0), 1e-3)
            expected = background[r] * full
            ceiling[r] = expected + OPTIONS.stands_out_sd * math.sqrt(expected) + OPTIONS.stands_out_counts


@kernel
def _local_background(image, detector, counts, radius, background, ratio, work):
    """Of cells (rows, columns) of the camera the ``ratio`` of their background to that of their distance from the beam, 1 if it is round.

    ``work`` (2, rows, columns) is room for counts and what is expected.
    """
    mean = background * np.float32(detector.full)  # in an aperture
    deviation = np.float32(OPTIONS.stands_out_sd) * np.sqrt(mean)
    ratio[:] = np.float32(1e6)  # at first nothing stands out
    _sum_cells(image, detector, counts, radius, background, (mean, deviation, 2), ratio, work)
    _median_of_cells(work, ratio)
    if _uneven(ratio):
        ratio *= np.float32(OPTIONS.round_within)  # the median over neighbours is lower than a summit
        _sum_cells(image, detector, counts, radius, background, (mean, deviation, 1), ratio, work)
        _ratio_of_cells(work, ratio)
    if not _uneven(ratio):  # nor where the medians were those of many spots
        ratio[:] = 1


@kernel
def _sum_cells(image, detector, counts, radius, background, limits, ratio, work):
    """Counts and what is expected at the distance from the beam, in the pixels of every cell that do not stand out, into ``work``.

    ``limits`` are the mean of an aperture at every radius, by how much it may stand out where the ratio is one, and of how many rows one is
    looked at.
    """
    side, first = _cell_side(detector), detector.first_radius
    per_unit, zero = np.float32(1 / detector.gain), np.float32(detector.offset)
    mean, deviation, step = limits
    for v in range(ratio.shape[0]):
        for u in range(ratio.shape[1]):
            rate = ratio[v, u]
            root, seen, expected = np.sqrt(rate), np.float32(0), np.float32(0)
            for y in range(v * side, min((v + 1) * side, image.shape[0]), step):
                for x in range(u * side, min((u + 1) * side, image.shape[1])):
                    r = radius[y, x]
                    ceiling = rate * mean[r] + root * deviation[r] + np.float32(OPTIONS.stands_out_counts)
                    if r >= first and counts[y, x] <= ceiling and not detector.mask[y, x]:
                        seen += (image[y, x] - zero) * per_unit
                        expected += background[r]
            work[0, v, u], work[1, v, u] = seen, expected


@kernel
def _rate(seen, expected, beside):
    """The ratio of what is ``seen`` to what is ``expected``, its logarithm drawn to 0 by a normal prior.

    Against it stand the noise of counting and the counts that spots leave ``beside`` their discs.
    """
    seen, expected, prior = max(seen, 0.0) + OPTIONS.no_counts, expected + OPTIONS.no_counts, OPTIONS.ratio_spread**2
    most = max(seen, expected)
    return math.exp(math.log(seen / expected) * prior / (prior + 1 / most + (beside / most) ** 2))


@kernel
def _ratio_of_cells(work, ratio):
    """The rate of every cell, together with its neighbours where it has too few counts by itself."""
    rows, columns = ratio.shape
    for v in range(rows):
        for u in range(columns):
            seen, expected = 0.0, 0.0
            reach = 0 if work[0, v, u] > OPTIONS.sure_counts else 1
            for b in range(max(0, v - reach), min(rows, v + reach + 1)):
                for a in range(max(0, u - reach), min(columns, u + reach + 1)):
                    seen += work[0, b, a]
                    expected += work[1, b, a]
            ratio[v, u] = _rate(seen, expected, OPTIONS.beside_counts)


@kernel
def _median_of_cells(work, ratio):
    """The median over every cell and its neighbours of the rates of single cells, which one or two spots do not move."""
    rows, columns = ratio.shape
    for v in range(rows):
        for u in range(columns):
            work[0, v, u] = _rate(work[0, v, u], work[1, v, u], 0.0)
    near = np.empty(9)
    for v in range(rows):
        for u in range(columns):
            n = 0
            for b in range(max(0, v - 1), min(rows, v + 2)):
                for a in range(max(0, u - 1), min(columns, u + 2)):
                    k = n
                    while k > 0 and near[k - 1] > work[0, b, a]:
                        near[k] = near[k - 1]
                        k -= 1
                    near[k] = work[0, b, a]
                    n += 1
            ratio[v, u] = near[(n - 1) // 2]


@kernel
def _uneven(ratio):
    """Whether so many cells have another background than their distance from the beam that it is not round."""
    low, high, n = 1 / OPTIONS.round_within, OPTIONS.round_within, 0
    for v in range(ratio.shape[0]):
        for u in range(ratio.shape[1]):
            n += ratio[v, u] < low or ratio[v, u] > high
    return n > OPTIONS.uneven_share * ratio.size


@kernel
def _ratio_at(ratio, side, y, x):
    """The ratio at a pixel, linear between the middles of cells."""
    v = min(max((y - (side - 1) / 2) / side, 0.0), ratio.shape[0] - 1.0)
    u = min(max((x - (side - 1) / 2) / side, 0.0), ratio.shape[1] - 1.0)
    b, a = min(int(v), ratio.shape[0] - 2), min(int(u), ratio.shape[1] - 2)
    v, u = v - b, u - a
    return (1 - v) * ((1 - u) * ratio[b, a] + u * ratio[b, a + 1]) + v * ((1 - u) * ratio[b + 1, a] + u * ratio[b + 1, a + 1])


@kernel
def _cell_side(detector):
    """Side of a cell (px): that of a spot's aperture."""
    return len(detector.half)
