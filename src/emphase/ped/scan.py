"""A PED scan before any crystal is known: its averages, bad pixels, detector and direct beam, read box by box.

- `scan_statistics`: mean and variance over the scan, in one pass.
- `hot_and_dead_pixels`: a diffraction spot spreads over its neighbours in the average, a hot pixel does not.
- `bad_lines`: gaps between the chips of a camera and dead columns differ from the next lines by one factor all along; no crystal does.
- `direct_beam_positions`: centroid of the direct beam in every pattern; `smooth_descan` fits the drift of the beam over the scan (descan)
  by a polynomial surface and cuts outliers, as py4DSTEM does (Savitzky et al., Microsc. Microanal. 27 (2021) 712).

`Calibration` holds what these and `emphase.ped.calibration` find.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from itertools import product
from typing import Any, NamedTuple

import numpy as np

from ..errors import EmphaseError
from ..kernels import kernel, side_by_side


@dataclass(frozen=True)
class ScanOptions:
    """Tuning of what is read from a scan."""

    least_size: int = 32  # px of a pattern: below, spots are not resolved
    nearest_edge_invA: float = 0.4  # of the camera: below it lie hardly any reflections ...
    farthest_edge_invA: float = 6.0  # ... and beyond it none are recorded: the scale is in another unit
    hot_sigmas: float = 8.0  # by which a hot pixel stands above its neighbours: none of a million pixels does by chance
    hot_upper: float = 2.5  # times the third quartile of its neighbours; the flank of a spot is less steep
    hot_typical: float = 2.0  # times the camera's median, besides: dark corners
    hot_median: float = 4.0  # times the median of its neighbours
    hot_in_beam: float = 12.0  # times the brightest neighbour, inside a direct beam that may be sharp
    dead_counts: float = 20.0  # that a pixel's neighbours have over the scan, for its zero to mean something
    dead_share: float = 0.2  # of its neighbours' mean
    line_patterns: int = 16  # of a scan, at least, for lines to be judged: fewer may all show one crystal
    line_width: int = 4  # lines side by side that may be bad
    line_factor: float = 1.3  # by which a bad line differs from the next ...
    line_segment: int = 8  # px along a line whose counts are taken together
    line_share: float = 0.7  # ... and by half as much (of the logarithm) in so many of its segments
    line_flat: float = 0.25  # of that step, in logarithms: so little changes within and beside bad lines
    line_counts: float = 400.0  # over the scan in half a line beside: its median is then known to a few per cent
    most_lines: int = 3  # groups of bad lines in one direction: more are rows of spots
    averaged_patterns: int = 64  # patterns, spread over the scan, whose mean shows where the direct beam is
    middle_share: float = 0.3  # of the camera's width: the direct beam is this near to the middle
    blanked: float = 0.1  # of the median intensity of the direct beam: patterns with less do not count
    descan_rounds: int = 8  # of fit and cut; converged after three to five
    descan_sigmas: float = 4.0  # robust standard deviations, beyond which a pattern is left out
    most_g_invA: float = 1.6  # beyond it, spots are weak and crowd
    edge_factor: float = 1.1  # reflections up to this times the nearest edge of the camera: the scale may be off by as much


OPTIONS = ScanOptions()
_BOX_BYTES = 128_000_000  # of patterns that are read at once


@dataclass(frozen=True)
class Calibration:
    """Geometry and noise of a PED scan; counts are (recorded - offset) / gain.

    Attributes
    ----------
    scale_invA_per_px
        Of the camera, 1/Å per pixel.
    strain
        (2, 2) symmetric matrix that takes g (x, y) in 1/Å times 1/scale to detector pixels: the ellipse of the camera.
    centre_px
        (ny, nx, 2) direct beam of every pattern, (y, x).
    mask
        (ky, kx) True where a pixel is hot, dead or otherwise unusable.
    spot_sigma_px
        Standard deviation of a spot.
    gain, offset
        Recorded units per electron, and recorded units without any.
    place_strain
        How far spots may lie off their places, as a share of their distance from the direct beam: what the metric and the lattices are
        trusted to.
    distortion
        (5,) keystone (x, y), centre (x, y) and radial distortion of the camera, as shares of half its width there
        (`emphase.ped.distortion`).
    fixed_background
        (ky, kx) counts a pixel that all patterns have beside a background that depends on the distance from the direct beam
        (`emphase.ped.fixed_background`); (0, 0) where there is no such.
    """

    scale_invA_per_px: float
    strain: np.ndarray
    centre_px: np.ndarray
    mask: np.ndarray
    spot_sigma_px: float
    gain: float = 1.0
    offset: float = 0.0
    place_strain: float = 0.004
    distortion: np.ndarray = field(default_factory=lambda: np.zeros(5))
    fixed_background: np.ndarray = field(default_factory=lambda: np.zeros((0, 0), np.float32))

    @property
    def ellipticity(self) -> float:
        """Long over short axis of a ring, minus 1."""
        long, short = np.linalg.eigvalsh(self.strain)[::-1]
        return float(long / short - 1)

    @property
    def metric(self) -> np.ndarray:
        """(2, 2) matrix from g (x, y) in 1/Å to pixels (x, y)."""
        return self.strain / self.scale_invA_per_px


def reach_on_camera(calibration: Calibration) -> float:
    """The longest g (1/Å) to use: what lies on the camera in all directions, and no more than `most_g_invA`."""
    ky, kx = calibration.mask.shape
    beam_y, beam_x = calibration.centre_px.reshape(-1, 2).mean(axis=0)
    to_edge = max(min(beam_y, ky - beam_y), min(beam_x, kx - beam_x))
    return float(min(OPTIONS.most_g_invA, OPTIONS.edge_factor * to_edge * calibration.scale_invA_per_px))


def check_patterns(patterns: Any, scale_invA_per_px: float, name: str = "PED scan") -> None:
    """Refuse patterns too small to index, and a scale in another unit, from the angle at which the edge of the camera lies.

    Parameters
    ----------
    patterns
        (ny, nx, ky, kx); only their shape is used.
    scale_invA_per_px
        As given.
    name
        Of the scan, for the message.

    Raises
    ------
    EmphaseError
        Where patterns are under 32 px, or the edge of the camera is not between 0.4 and 6 1/Å.
    """
    size = min(patterns.shape[2:])
    if size < OPTIONS.least_size:
        raise EmphaseError(f"{name}: patterns of {patterns.shape[2]} x {patterns.shape[3]} pixels, expected at least 32 x 32")
    half_width = size / 2 * scale_invA_per_px
    if not OPTIONS.nearest_edge_invA < half_width < OPTIONS.farthest_edge_invA:
        raise EmphaseError(
            f"{name}: a scale of {scale_invA_per_px:g} 1/Å per pixel puts the edge of the camera at {half_width:.3g} 1/Å, "
            "expected 0.4 to 6 1/Å; is the scale in 1/nm?"
        )


class ScanStatistics(NamedTuple):
    """Sums over a scan: ``mean`` and ``variance`` (ky, kx) over its patterns, and ``total`` (ny, nx), the sum of every pattern."""

    mean: np.ndarray
    variance: np.ndarray
    total: np.ndarray


def scan_statistics(patterns: Any) -> ScanStatistics:
    """Mean and variance of the patterns over a scan, and the sum of every pattern, in one pass.

    Parameters
    ----------
    patterns
        (ny, nx, ky, kx): numpy, dask or anything that is sliced like them; read box by box.

    Raises
    ------
    EmphaseError
        Where the scan holds NaN or infinity, or nothing at all.
    """
    ny, nx = patterns.shape[:2]
    first = np.zeros(patterns.shape[2:])
    second = np.zeros(patterns.shape[2:])
    total = np.zeros((ny, nx))
    for box in scan_boxes(patterns):
        block = read_box(patterns, box)
        counts = np.zeros(len(block))
        side_by_side(_add_squares, len(first), block, first, second)
        side_by_side(_sum_patterns, len(block), block, counts)
        total[box] = counts.reshape(total[box].shape)
        bad = np.argwhere(~np.isfinite(total[box]))
        if len(bad):
            raise EmphaseError(f"PED scan: line {box[0].start + bad[0, 0]} holds NaN or infinity, expected counts")
    if not total.any():
        raise EmphaseError("PED scan: all patterns are zero, expected counts")
    mean = first / (ny * nx)
    return ScanStatistics(mean, np.maximum(second / (ny * nx) - mean**2, 0), total)


def patterns_at(patterns: Any, indices: np.ndarray) -> np.ndarray:
    """Patterns (n, ky, kx) of a scan (ny, nx, ky, kx), from their indices (n,) in the flattened scan."""
    places = (divmod(int(i), patterns.shape[1]) for i in indices)
    return np.concatenate([read_box(patterns, (slice(y, y + 1), slice(x, x + 1))) for y, x in places])


@kernel(nogil=True)
def _add_squares(rows, patterns, first, second):
    """Add ``rows`` of patterns (n, ky, kx) and of their squares to ``first`` and ``second`` (ky, kx)."""
    n, _, nx = patterns.shape
    for y in rows:
        for i in range(n):
            for x in range(nx):
                value = float(patterns[i, y, x])
                first[y, x] += value
                second[y, x] += value * value


@kernel(nogil=True)
def _sum_patterns(numbers, patterns, total):
    """The sums of the patterns ``numbers`` into ``total`` (n,)."""
    _, ny, nx = patterns.shape
    for i in numbers:
        counted = 0.0
        for y in range(ny):
            for x in range(nx):
                counted += float(patterns[i, y, x])
        total[i] = counted


def scan_boxes(patterns: Any, most: int = 2048) -> list[tuple[slice, slice]]:
    """The boxes in which a scan is read, from its shape and its chunks, so that no chunk is read more often than it must be.

    Parameters
    ----------
    patterns
        (ny, nx, ky, kx), with ``chunks`` where it is lazy.
    most
        Patterns in a box at most; 128 MB in any case.

    Returns
    -------
    Slices of lines and columns of each box, which together cover the scan once.
    """
    ny, nx = patterns.shape[:2]
    most = max(1, min(most, _BOX_BYTES // (math.prod(patterns.shape[2:]) * patterns.dtype.itemsize)))
    cy, cx = (max(c) for c in patterns.chunks[:2]) if getattr(patterns, "chunks", None) else (1, 1)
    if cy * cx >= most:
        width = min(cx, most)
        height = most // width
    else:
        width = min(nx, most // (cy * cx) * cx)
        height = cy if width < nx else max(1, most // (cy * nx)) * cy
    spans = [[slice(a, min(a + step, n)) for a in range(0, n, step)] for n, step in ((ny, height), (nx, width))]
    return list(product(*spans))


def read_box(patterns: Any, box: tuple[slice, slice]) -> np.ndarray:
    """Patterns (n, ky, kx) of a box of a scan, line by line, from numpy, dask or `RecordedFrames`."""
    block = patterns[box]
    block = np.asarray(block.compute(scheduler="threads") if hasattr(block, "compute") else block)
    return np.ascontiguousarray(block.reshape(-1, *block.shape[2:]))


def hot_and_dead_pixels(mean_pattern: np.ndarray, variance: np.ndarray, n_patterns: int, direct_beam_radius_px: float) -> np.ndarray:
    """Bad pixels of a camera, from the mean and variance of its patterns over a scan.

    Parameters
    ----------
    mean_pattern, variance
        (ky, kx) over the scan.
    n_patterns
        Of the scan.
    direct_beam_radius_px
        Within it, a pixel is hot only where it is twelve times as bright as any of its neighbours, because the beam may be sharp; within
        half of it lines are not masked.

    Returns
    -------
    (ky, kx), True where a pixel stands far above or below its neighbours. A diffraction spot spreads over its neighbours in the scan
    average, a hot pixel does not; the variance shows a dead pixel and what noise can do.
    """
    from scipy import ndimage

    ring = np.ones((3, 3), bool)
    ring[1, 1] = False
    neighbours = ndimage.median_filter(mean_pattern, footprint=ring, mode="reflect")
    upper = ndimage.percentile_filter(mean_pattern, 75, footprint=ring, mode="reflect")
    typical = np.median(neighbours) + 1e-9
    always = variance < mean_pattern**2  # a spot of a few patterns varies more over the scan than this
    sure = mean_pattern - OPTIONS.hot_upper * upper > OPTIONS.hot_sigmas * np.sqrt(variance / n_patterns)
    bright = (mean_pattern > OPTIONS.hot_upper * upper + OPTIONS.hot_typical * typical) & (mean_pattern > OPTIONS.hot_median * neighbours)
    hot = always & sure & bright
    dead = (variance == 0) & (neighbours * n_patterns > OPTIONS.dead_counts) & (mean_pattern < OPTIONS.dead_share * neighbours)
    y, x = np.unravel_index(np.argmax(ndimage.gaussian_filter(neighbours, 2)), mean_pattern.shape)
    yy, xx = np.indices(mean_pattern.shape)
    from_beam_px = np.hypot(yy - y, xx - x)
    outside = from_beam_px > direct_beam_radius_px
    alone = mean_pattern > OPTIONS.hot_in_beam * ndimage.maximum_filter(mean_pattern, footprint=ring, mode="reflect")
    lines = bad_lines(mean_pattern, n_patterns) & (from_beam_px > direct_beam_radius_px / 2)  # its centroid needs what is left of it
    return (hot & (outside | alone)) | (dead & outside) | lines


def bad_lines(mean_pattern: np.ndarray, n_patterns: int) -> np.ndarray:
    """Rows and columns of a camera that are dead, or brighter or darker than those about them, from the mean over a scan.

    The gaps between the chips of a detector, whose pixels are wider or not read, and dead columns. They begin and end from one line to
    the next, by one factor all along; on either side of that step, and within, nothing changes. Rows of spots and the flanks of the direct
    beam rise over several lines. Halves of lines are judged by themselves. Few patterns, and many such lines, are those of a crystal.

    Parameters
    ----------
    mean_pattern
        (ky, kx) over the scan.
    n_patterns
        Of the scan.

    Returns
    -------
    (ky, kx), True on bad lines.
    """
    bad = np.zeros(mean_pattern.shape, bool)
    if n_patterns < OPTIONS.line_patterns:
        return bad
    for image, marked in ((mean_pattern, bad), (mean_pattern.T, bad.T)):
        for half in np.array_split(np.arange(image.shape[1]), 2):
            parts = np.array_split(image[:, half], max(1, len(half) // OPTIONS.line_segment), axis=1)
            sums = np.stack([np.maximum(part.sum(axis=1), 0) for part in parts], axis=1)  # not below 0
            steps = np.diff(np.log(sums + 1 / n_patterns), axis=0)
            known = sums.sum(axis=1) * n_patterns > OPTIONS.line_counts
            groups = _lines_between_steps(steps, known)
            if len(groups) <= OPTIONS.most_lines:
                for first, last in groups:
                    marked[np.ix_(np.arange(first, last + 1), half)] = True
    return bad


def _lines_between_steps(steps: np.ndarray, known: np.ndarray) -> list[tuple[int, int]]:
    """First and last of the lines that lie between two opposite steps of equal height; ``steps`` (n - 1, m) from each line to the next.

    Of the lines just outside, enough is ``known`` (n,).
    """
    typical = np.median(steps, axis=1)
    found = []
    for first in range(2, len(steps) - 1):
        height = typical[first - 1]
        all_along = np.mean(steps[first - 1] * np.sign(height) > abs(height) / 2) > OPTIONS.line_share
        if abs(height) < math.log(OPTIONS.line_factor) or not all_along or not known[first - 2 : first].all():
            continue
        for last in range(first, min(first + OPTIONS.line_width, len(steps) - 1)):
            flat = np.abs(np.concatenate([typical[first - 2 : first - 1], typical[first:last], typical[last + 1 : last + 2]]))
            back = np.mean(-steps[last] * np.sign(height) > abs(height) / 2) > OPTIONS.line_share
            if back and abs(typical[last] + height) < OPTIONS.line_flat * abs(height) and (flat < OPTIONS.line_flat * abs(height)).all():
                found.append((first, last))
                break
    return found


def direct_beam_positions(patterns: Any, mask: np.ndarray, radius_px: float = 6.0) -> tuple[np.ndarray, np.ndarray]:
    """The direct beam of every pattern of a scan, from the centroid of its counts above their surroundings.

    Parameters
    ----------
    patterns
        (ny, nx, ky, kx); read box by box.
    mask
        (ky, kx) bad pixels.
    radius_px
        Of the disc whose centroid is taken at last; the search begins with twice as much.

    Returns
    -------
    centre_px
        (ny, nx, 2), (y, x).
    intensity
        (ny, nx) in recorded units; nearly nothing in a blanked pattern.

    Notes
    -----
    The search starts at the brightest blob of the scan average near its middle and follows the centroid of the disc.
    """
    from scipy import ndimage

    ny, nx = patterns.shape[:2]
    mean = patterns_at(patterns, np.linspace(0, ny * nx - 1, min(OPTIONS.averaged_patterns, ny * nx)).astype(int)).mean(axis=0)
    smooth = ndimage.gaussian_filter(np.where(mask, 0, mean), 2)
    middle = np.hypot(*(np.indices(mean.shape) - (np.array(mean.shape)[:, None, None] - 1) / 2)) < OPTIONS.middle_share * min(mean.shape)
    start = np.array(np.unravel_index(np.argmax(np.where(middle, smooth, 0)), mean.shape), float)
    centre, total = np.zeros((ny, nx, 2)), np.zeros((ny, nx))
    for box in scan_boxes(patterns):
        block = read_box(patterns, box)
        places, counts = np.zeros((len(block), 2)), np.zeros(len(block))
        side_by_side(_centroids, len(block), block, mask, start, radius_px, places, counts)
        centre[box], total[box] = places.reshape(centre[box].shape), counts.reshape(total[box].shape)
    return centre, total


@kernel
def _halo(image, mask, cy, cx, reach):
    """The counts of a pattern above which they belong to the direct beam: the rim of the disc, and 30 % of what the peak has more."""
    ky, kx = image.shape
    edge, n_edge = 0.0, 0
    for y in range(max(0, int(cy - reach)), min(ky, int(cy + reach) + 2)):
        for x in range(max(0, int(cx - reach)), min(kx, int(cx + reach) + 2)):
            d2 = (y - cy) ** 2 + (x - cx) ** 2
            if mask[y, x] or d2 > reach * reach:
                continue
            value = float(image[y, x])
            if d2 > (0.8 * reach) ** 2:
                edge += value
                n_edge += 1
    background = edge / max(n_edge, 1)
    peak = background
    for y in range(max(0, int(cy - reach)), min(ky, int(cy + reach) + 2)):
        for x in range(max(0, int(cx - reach)), min(kx, int(cx + reach) + 2)):
            if not mask[y, x] and (y - cy) ** 2 + (x - cx) ** 2 <= reach * reach:
                peak = max(peak, float(image[y, x]))
    return background + 0.3 * (peak - background)


@kernel
def _centroid(image, mask, start, radius):
    """Centre (y, x) of a pattern's direct beam and its counts above the halo of inelastic scattering."""
    ky, kx = image.shape
    cy, cx = start[0], start[1]
    reach = 2.0 * radius
    for _ in range(12):
        s = sy = sx = 0.0
        floor = _halo(image, mask, cy, cx, reach)
        for y in range(max(0, int(cy - reach)), min(ky, int(cy + reach) + 2)):
            for x in range(max(0, int(cx - reach)), min(kx, int(cx + reach) + 2)):
                if mask[y, x] or (y - cy) ** 2 + (x - cx) ** 2 > reach * reach:
                    continue
                value = max(float(image[y, x]) - floor, 0.0)
                s += value
                sy += value * y
                sx += value * x
        if s <= 0:
            break
        shift = abs(sy / s - cy) + abs(sx / s - cx)
        cy, cx = sy / s, sx / s
        reach = max(radius, 0.8 * reach)
        if shift < 1e-3 and reach <= radius:
            break
    return cy, cx, s


@kernel(nogil=True)
def _centroids(numbers, patterns, mask, start, radius, centre, total):
    """Centre (n, 2) and intensity (n,) of the direct beam in the patterns ``numbers`` of (n, ky, kx)."""
    for i in numbers:
        cy, cx, total[i] = _centroid(patterns[i], mask, start, radius)
        centre[i] = cy, cx


def smooth_descan(centre_px: np.ndarray, weight: np.ndarray, order: int = 2) -> tuple[np.ndarray, float]:
    """The descan, from the direct beam measured in every pattern: a polynomial surface over the scan, and the scatter about it.

    Parameters
    ----------
    centre_px
        Measured direct beam (ny, nx, 2), (y, x).
    weight
        Intensity (ny, nx) of the direct beam: blanked patterns (under a tenth of the median) do not count.
    order
        Highest power; lowered where the scan has too few lines for it.

    Returns
    -------
    smooth_px
        (ny, nx, 2) on the surface.
    scatter_px
        Robust standard deviation of one coordinate about it.

    Raises
    ------
    EmphaseError
        Where no pattern has a direct beam.
    """
    ny, nx = centre_px.shape[:2]
    if not (weight > 0).any():
        raise EmphaseError("PED scan: no direct beam stands out in any pattern, expected one near the middle of the camera")
    v, u = np.meshgrid(np.linspace(-1, 1, ny) if ny > 1 else [0.0], np.linspace(-1, 1, nx) if nx > 1 else [0.0], indexing="ij")
    # not polyvander2d: the total degree is limited, and each power by the lines of the scan
    powers = [(i, j) for i in range(order + 1) for j in range(order + 1 - i) if i < max(1, ny - 1) and j < max(1, nx - 1)]
    design = np.stack([v**i * u**j for i, j in powers], axis=-1).reshape(-1, len(powers))
    measured = centre_px.reshape(-1, 2)
    use = weight.ravel() > OPTIONS.blanked * np.median(weight)
    if use.sum() < 3 * len(powers):
        use = np.ones(len(use), bool)
        powers, design = powers[:1], design[:, :1]
    spread = np.inf
    for _ in range(OPTIONS.descan_rounds):
        fit = np.linalg.lstsq(design[use], measured[use], rcond=None)[0]
        off = np.abs(measured - design @ fit).max(axis=1)
        spread = 1.4826 * float(np.median(off[use])) + 1e-3
        use = (weight.ravel() > OPTIONS.blanked * np.median(weight)) & (off < OPTIONS.descan_sigmas * spread)
    return (design @ fit).reshape(ny, nx, 2), spread
