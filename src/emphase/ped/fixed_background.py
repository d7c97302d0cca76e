"""What the background of a scan has in all patterns, and that is not a matter of the distance from the direct beam alone.

A halo off the beam, the reflex of a beam stop, a streak, and the rings of an amorphous film or of ice stay where they are while the
specimen moves, and spots do not. So blocks of neighbouring patterns are averaged, and of these means the median over the blocks is taken,
pixel by pixel: a spot is lost as long as no grain fills half of the blocks. Whether there is such a background is asked of a lower quantile
of the blocks without what may be spots: its median along each ring, one pixel wide, the median of what is left in a window larger than a
spot, and the largest median along lines longer than a spot of what is left then. Where one crystal is all over the scan, its spots and what
is fixed cannot be told apart, and nothing is taken. What is round and smooth is each pattern's own (`emphase.ped.spots`), and is taken off.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from .scan import Calibration, read_box
from .spots import _aperture_of, first_radius_px, ring_reach_px


@dataclass(frozen=True)
class FixedBackgroundOptions:
    """Tuning numbers of the background that all patterns share."""

    blocks: int = 6  # along each side of a scan, and ...
    least_blocks: int = 3  # ... in a scan of fewer, grains cannot be told from what is fixed
    side_patterns: int = 4  # of a block, at most: patterns that are read along each of its sides
    window_apertures: float = 2.5  # side of the window of the median, in diameters of a spot's aperture
    directions: int = 12  # of lines along which streaks are sought
    streak_noise: float = 6.0  # times the median over the camera of the medians along lines: a streak
    stands_out_sd: float = 1.5  # of the noise in an aperture of one pattern: so much more would be a spot in some of them
    compared_blocks: int = 9  # whose spots are looked for in what all share, ...
    clear_sd: float = 1.0  # pixels beyond the level by so many times the noise of one pattern ...
    most_kept: float = 0.5  # ... hold there this share of their counts: then it is one crystal
    sure_quantile: float = 0.25  # of the blocks, in which a grain that fills three quarters of the scan has no spots
    least_share: float = 0.04  # of the camera must stand out there; spots of one grain all over a scan reach 3 %


OPTIONS = FixedBackgroundOptions()


def fixed_background(patterns: Any, calibration: Calibration) -> np.ndarray:
    """The background that all patterns of a scan share beyond a smooth radial one.

    Parameters
    ----------
    patterns
        Scan (ny, nx, ky, kx): numpy, dask or anything that is sliced like them; boxes of at most 4 × 4 patterns are read.
    calibration
        Direct beam, mask, spot size, gain and offset are used.

    Returns
    -------
    (ky, kx) float32 counts a pixel, negative where a smooth radial background is too high; of no pixel (0, 0) where nothing stands out, and
    where the scan has fewer than 6 lines or columns or is a list of spots.
    """
    from scipy import ndimage

    nothing = np.zeros((0, 0), np.float32)
    if getattr(patterns, "is_spot_list", False) or min(patterns.shape[:2]) < 2 * OPTIONS.least_blocks:
        return nothing
    means = (_block_means(patterns) - calibration.offset) / calibration.gain
    radius = _radius_px(calibration)
    surely = _without_spots(np.quantile(means, OPTIONS.sure_quantile, axis=0), radius, calibration)
    smooth = _smooth_radial(surely, radius, calibration.mask, np.mean)[radius]
    if not _stands_out(surely - smooth, smooth, calibration) or _one_crystal(means, calibration):
        return nothing
    shared = np.median(means, axis=0)
    level = _without_spots(shared, radius, calibration)
    shared = ndimage.median_filter(np.where(calibration.mask, level, shared), 3, mode="nearest")
    fixed = shared - _smooth_radial(level, radius, calibration.mask, np.median)[radius]
    return np.where(calibration.mask | (radius < first_radius_px(calibration)), 0.0, fixed).astype(np.float32)


def _block_means(patterns: Any) -> np.ndarray:
    """Mean patterns (n, ky, kx) of the middles of the blocks of a scan, in recorded units."""
    spans = []
    for n in patterns.shape[:2]:
        edges = np.linspace(0, n, min(OPTIONS.blocks, n // 2) + 1).astype(int)
        sides = np.minimum(np.diff(edges), OPTIONS.side_patterns)
        first = edges[:-1] + (np.diff(edges) - sides) // 2
        spans.append([slice(int(a), int(a + side)) for a, side in zip(first, sides, strict=True)])
    return np.array([read_box(patterns, (rows, cols)).mean(axis=0, dtype=float) for rows in spans[0] for cols in spans[1]])


def _one_crystal(means: np.ndarray, calibration: Calibration) -> bool:
    """Whether the median of the blocks' ``means`` (n, ky, kx) keeps the spots that single blocks have: one crystal is all over the scan."""
    radius = _radius_px(calibration)
    here = (radius > first_radius_px(calibration)) & ~calibration.mask
    some = means[np.linspace(0, len(means) - 1, OPTIONS.compared_blocks).astype(int)]
    in_spots = []
    for image in (np.median(means, axis=0), *some):
        level = _without_spots(image, radius, calibration)
        beyond = np.where(here, image - level, 0.0)
        in_spots.append(beyond[beyond > OPTIONS.clear_sd * np.sqrt(np.maximum(level, 0) + 1 / OPTIONS.side_patterns**2)].sum())
    return bool(in_spots[0] > OPTIONS.most_kept * np.median(in_spots[1:]))


def _radius_px(calibration: Calibration) -> np.ndarray:
    """Whole pixels (ky, kx) from the mean place of the direct beam."""
    y, x = np.indices(calibration.mask.shape)
    cy, cx = calibration.centre_px.reshape(-1, 2).mean(axis=0)
    return np.hypot(y - cy, x - cx).astype(int)


def _without_spots(counts: np.ndarray, radius: np.ndarray, calibration: Calibration) -> np.ndarray:
    """The level (ky, kx) of the background: the median along each ring, and the median in a window of what is left."""
    from scipy import ndimage

    good = ~calibration.mask
    ring = np.zeros(radius.max() + 1)
    known = np.unique(radius[good])
    ring[known] = ndimage.median(np.where(good, counts, 0.0), np.where(good, radius, -1), known)
    side = 2 * round(OPTIONS.window_apertures * len(_aperture_of(calibration)) / 2) + 1
    rest = np.where(good, counts - ring[radius], 0.0)
    wide = ndimage.median_filter(rest, side, mode="nearest")
    return ring[radius] + wide + _streaks(rest - wide, side, good)


def _streaks(rest: np.ndarray, side: int, good: np.ndarray) -> np.ndarray:
    """What of an image (ky, kx) is long and narrow: the largest of the medians along lines of ``side`` px, where it is beyond all noise."""
    from scipy import ndimage

    reach, along = side // 2, np.zeros(rest.shape)
    y, x = np.indices((side, side)) - reach
    for angle in np.arange(OPTIONS.directions) * np.pi / OPTIONS.directions:
        across = np.abs(y * np.cos(angle) - x * np.sin(angle))
        line = (across <= 0.5) & (np.hypot(y, x) <= reach + 0.5)
        along = np.maximum(along, ndimage.median_filter(rest, footprint=line, mode="nearest"))
    noise = np.median(along[good])
    return np.where(along > OPTIONS.streak_noise * noise, along, 0.0)


def _smooth_radial(level: np.ndarray, radius: np.ndarray, mask: np.ndarray, average: Callable[[np.ndarray], Any]) -> np.ndarray:
    """A round background at every radius (px): the average along rings, and its mean over widths that grow as in patterns.

    Of a reflex on a part of a ring the median along it knows nothing, and where there is none nothing has to be taken off.
    """
    n = radius.max() + 1
    number = np.bincount(radius[~mask], minlength=n)
    along = np.array([average(level[(radius == r) & ~mask]) if number[r] else 0.0 for r in range(n)])
    sums, numbers = (np.r_[0, np.cumsum(w)] for w in (along * number, number))
    r = np.arange(n)
    low, high = np.maximum(r - ring_reach_px(r), 0), np.minimum(r + ring_reach_px(r) + 1, n)
    return (sums[high] - sums[low]) / np.maximum(numbers[high] - numbers[low], 1)


def _stands_out(fixed: np.ndarray, smooth: np.ndarray, calibration: Calibration) -> bool:
    """Whether on a share of the camera an aperture of one pattern would be off by more than its noise."""
    from scipy import ndimage

    full = float(np.sum(2 * _aperture_of(calibration) + 1))
    here = (_radius_px(calibration) > first_radius_px(calibration)) & ~calibration.mask
    off = full * np.abs(ndimage.uniform_filter(fixed, 3))
    return bool((off > OPTIONS.stands_out_sd * np.sqrt(full * np.maximum(smooth, 0) + 1))[here].mean() > OPTIONS.least_share)
