"""Spots of diffraction patterns from their counts: places, counts and the evidence of each against background.

A pattern is reduced once, while it is in the processor's cache, to the table of its spots and the radial profile of its background; all
matching works on these few hundred numbers, and no image is read a second time.

1. Counts are summed over a disc about every pixel, by differences of running sums along the rows.
2. The background is the mean against the distance from the direct beam, smoothed over a width that grows with the distance; discs that
   stand out from it are left out, and the mean is taken again. To it comes what all patterns of a scan share beside a round background
   (`emphase.ped.fixed_background`).
3. A local maximum of the disc's counts a over the background's b in it is a spot where a log(a / b) - (a - b), the log of the likelihood
   ratio of the Poisson means a and b, is large enough (the deviance of Cash, Astrophys. J. 228 (1979) 939, halved). Parabolas through the
   neighbouring pixels give its place; the slope of the background, which would draw it inwards, is taken off first. One pixel that holds
   more of the counts than that of a spot can is a cosmic ray, not a spot.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np

from ..errors import EmphaseError
from ..kernels import kernel, side_by_side
from .distortion import undistorted_places
from .scan import Calibration


class SpotOptions(NamedTuple):
    """Tuning numbers of spot finding; a named tuple, so that kernels can read it."""

    most_spots: int = 64  # of a pattern: more than tell phases apart, and a table that stays in the cache
    least_nats: float = 2.0  # local maxima with less evidence against background are not kept
    aperture_sigma: float = 1.8  # radius of the disc over which a spot is counted: 80 % of a Gaussian spot, and little background
    beam_sigma: float = 4.5  # no spot is looked for nearer to the direct beam, whose tail is 1e-5 of its height there
    background_rounds: int = 3  # until the discs that are left out no longer change
    stands_out_sd: float = 2.5  # a disc so far above the background is left out of it ...
    stands_out_counts: float = 1.5  # ... where it also has so many counts more
    one_pixel: float = 0.6  # of a spot's counts, as of a Gaussian of 0.5 px on the middle of a pixel, at most ...
    sharper: float = 2.5  # ... or so many times what one pixel holds of the scan's typical spot, where these are sharper still ...
    halo_error: float = 0.003  # of a steep background: its medians are known that well
    steep_sd: float = 2.0  # a background that falls by so much a pixel, over the window of a maximum by what a clear spot has, is taken off
    steep_gap_px: int = 2  # rings that are not steep, beyond which nothing belongs to the halo
    least_median: float = 20.0  # counts a pixel: of fewer, a median is no mean
    least_steep_px: int = 4  # rings beyond the direct beam: its flank alone is no halo
    steep_reach_px: int = 3  # rings on both sides that are smoothed together there
    ray_sd: float = 3.0  # ... and so much more by chance; beyond it is a cosmic ray
    fixed_error: float = 0.15  # of the background that all patterns share: its streaks and rings are known that well
    least_of_radial: float = 0.2  # of a pattern's own background stays where that is negative: of a thin place it is too negative
    least_good_share: float = 0.5  # of the pixels in a disc, for a spot to be looked for
    empty_counts: float = 0.02  # of a disc on no background at all, so that its logarithm exists


OPTIONS = SpotOptions()


class _SpotArrays(NamedTuple):
    """The arrays of `Spots` as kernels take them."""

    table: np.ndarray
    number: np.ndarray
    background: np.ndarray
    centre: np.ndarray


class _Detector(NamedTuple):
    """What counting spots needs of the detector.

    ``mask`` marks bad pixels, ``pixels`` counts the good ones of the aperture about each pixel, ``half`` is its half width in each of its
    rows and ``full`` its number of pixels; ``gain`` and ``offset`` are grey values of a count and of none. Spots lie beyond
    ``first_radius`` (px), where the direct beam ends, and have ``nats`` of evidence at least; no pixel of a spot holds more than the share
    ``sharpest`` of its counts. ``fixed`` (ky, kx) is the background that all patterns share beside a radial one, counts a pixel, and
    ``fixed_counts`` in the apertures.
    """

    mask: np.ndarray
    pixels: np.ndarray
    half: np.ndarray
    full: float
    gain: float
    offset: float
    first_radius: float
    nats: float
    sharpest: float
    fixed: np.ndarray
    fixed_counts: np.ndarray


@dataclass(frozen=True)
class Spots:
    """What matching keeps of n patterns.

    Attributes
    ----------
    table
        (n, 64, 5) float32: of every spot y, x (px), the counts in a disc there, those that background gives, and the evidence against
        background in nats; the surest first.
    number
        (n,) spots of each pattern.
    background
        (n, radii) float32, counts a pixel against the distance (px) from the direct beam.
    centre_px
        (n, 2) direct beam, (y, x).
    """

    table: np.ndarray
    number: np.ndarray
    background: np.ndarray
    centre_px: np.ndarray

    @property
    def arrays(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Table, number, background and centre, as the kernels take them."""
        return self.table, self.number, self.background, self.centre_px

    def __getitem__(self, chosen: Any) -> Spots:
        return Spots(self.table[chosen], self.number[chosen], self.background[chosen], self.centre_px[chosen])


def _aperture(radius_px: float) -> np.ndarray:
    """Half-widths of the rows of a disc, for summing counts over it."""
    reach = math.floor(radius_px)
    return np.array([math.floor(math.sqrt(radius_px**2 - dy * dy)) for dy in range(-reach, reach + 1)], np.int64)


def _aperture_of(calibration: Calibration) -> np.ndarray:
    return _aperture(OPTIONS.aperture_sigma * calibration.spot_sigma_px)


def _good_pixels(mask: np.ndarray, half: np.ndarray) -> np.ndarray:
    """Number of pixels (ky, kx) float32 in the aperture about every pixel that are neither masked nor off the camera."""
    from scipy import ndimage

    return ndimage.correlate((~mask).astype(np.float32), _disc(half), mode="constant")


def _disc(half: np.ndarray) -> np.ndarray:
    """An aperture as an image of ones and zeros."""
    return (np.abs(np.arange(-half.max(), half.max() + 1))[None, :] <= half[:, None]).astype(np.float32)


def fixed_counts(calibration: Calibration) -> np.ndarray:
    """What all patterns have in the aperture about every pixel (ky, kx) float32 beside a radial background."""
    from scipy import ndimage

    if not calibration.fixed_background.size:
        return _fixed(calibration)
    return ndimage.correlate(calibration.fixed_background, _disc(_aperture_of(calibration)), mode="constant")


def _fixed(calibration: Calibration) -> np.ndarray:
    """The background (ky, kx) that all patterns share beside a radial one, with zeros where there is none."""
    return calibration.fixed_background if calibration.fixed_background.size else np.zeros(calibration.mask.shape, np.float32)


def _sharpest(spot_sigma_px: float) -> float:
    """The largest share of a spot's counts in its aperture that one pixel may hold."""
    in_pixel = math.erf(0.5 / (math.sqrt(2) * spot_sigma_px)) ** 2
    in_aperture = 1 - math.exp(-(OPTIONS.aperture_sigma**2) / 2)
    return min(1.0, max(OPTIONS.one_pixel, OPTIONS.sharper * in_pixel / in_aperture))


def first_radius_px(calibration: Calibration) -> float:
    """The distance from the direct beam below which no spot is looked for, from the spot size."""
    return OPTIONS.beam_sigma * calibration.spot_sigma_px


@kernel
def ring_reach_px(radius_px):
    """Half the width of the rings whose mean is the background at a radius, or at several."""
    return 2 + radius_px // 12


@kernel
def _aperture_counts(image, mask, half, gain, offset, row, counts):
    """Counts in the aperture about every pixel, into ``counts`` (ky, kx), by differences of running sums (``row``)."""
    ny, nx = image.shape
    reach = len(half) // 2
    per_unit, zero = np.float32(1 / gain), np.float32(offset)
    counts[:] = 0
    for y in range(ny):
        total = np.float32(0)
        for x in range(nx):
            row[x] = total
            if not mask[y, x]:
                total += (np.float32(image[y, x]) - zero) * per_unit
        row[nx] = total
        for k in range(len(half)):
            v, h = y + k - reach, half[k]
            if v < 0 or v >= ny:
                continue
            for x in range(h, nx - h - 1):
                counts[v, x] += row[x + h + 1] - row[x - h]
            for x in range(h):
                counts[v, x] += row[x + h + 1]
            for x in range(nx - h - 1, nx):
                counts[v, x] += total - row[max(x - h, 0)]


@kernel
def _between_rings(background, r):
    """The background at a radius between those (r + 0.5) that it is the mean of."""
    k = min(max(int(r - 0.5), 0), len(background) - 2)
    return background[k] + (background[k + 1] - background[k]) * min(max(r - 0.5 - k, 0.0), 1.0)


@kernel
def _over_aperture(background, r, full):
    """The mean of the background over an aperture of ``full`` pixels at a radius: a disc of radius R adds R²/8 (B″ + B′/r)."""
    here, before, after = _between_rings(background, r), _between_rings(background, r - 1), _between_rings(background, r + 1)
    bend = after - 2 * here + before + (after - before) / (2 * max(r, 1.0))
    return here + full / (8 * math.pi) * bend


@kernel
def _is_steep(background, r, full):
    """Whether the background of an aperture falls so fast at a radius (px) that it hides maxima, and no mean over wide rings is one."""
    fall = full * (background[max(r - 2, 0)] - background[min(r + 2, len(background) - 1)]) / 4
    return fall > OPTIONS.steep_sd * math.sqrt(full * background[r])


@kernel
def _radial_background(image, detector, counts, radius, background, ceiling):
    """Counts a pixel of the smooth background against radius (px); apertures that stand out are left out, and the mean is taken again.

    Returns the first of these means, of all pixels.
    """
    ny, nx = image.shape
    n_radii = len(background)
    per_unit, zero = np.float32(1 / detector.gain), np.float32(detector.offset)
    mask, full = detector.mask, detector.full
    total, number, of_all = np.zeros(n_radii + 1), np.zeros(n_radii + 1), np.zeros(n_radii)
    ceiling[:] = 1e30
    for turn in range(OPTIONS.background_rounds):
        total[:] = 0
        number[:] = 0
        for y in range(ny):
            for x in range(nx):
                r = radius[y, x]
                fixed = detector.fixed_counts[y, x]
                most = ceiling[r] + fixed + OPTIONS.stands_out_sd * math.sqrt(max(fixed, np.float32(0)))
                if counts[y, x] <= most and not mask[y, x]:
                    total[r + 1] += (image[y, x] - zero) * per_unit - detector.fixed[y, x]
                    number[r + 1] += 1
        for r in range(n_radii):
            total[r + 1] += total[r]
            number[r + 1] += number[r]
        for r in range(n_radii):
            reach = ring_reach_px(r)
            low, high = max(0, r - reach), min(n_radii, r + reach + 1)
            background[r] = max((total[high] - total[low] + 0.3) / (number[high] - number[low] + 1.0), 1e-3)
            expected = background[r] * full
            ceiling[r] = expected + OPTIONS.stands_out_sd * math.sqrt(expected) + OPTIONS.stands_out_counts
        if turn == 0:
            of_all[:] = background
    return of_all


@kernel
def _steep_rings(steep, in_ring, first):
    """The first ring with good pixels from ``first`` on, behind a beam stop say, and the last of those that are steep from there on.

    Farther out a ring, or a row of spots, falls steeply too.
    """
    while first < len(steep) and in_ring[first] == 0:
        first += 1
    last, gap = first - 1, 0
    for r in range(first, len(steep)):
        if in_ring[r] == 0:
            continue
        gap = 0 if steep[r] else gap + 1
        if gap > OPTIONS.steep_gap_px:
            break
        last = r if steep[r] else last
    return first, last


@kernel
def _ring_medians(image, detector, radius, in_ring, steep):
    """Logarithms (radii,) of the medians of the ``steep`` rings; one of few counts, or without a good pixel, is no longer called so.

    ``in_ring`` (radii + 1,) are the good pixels of the ring before.
    """
    start = np.cumsum(in_ring)
    values, filled = np.empty(start[-1], np.float32), start[:-1].copy()
    for y in range(image.shape[0]):
        for x in range(image.shape[1]):
            if not detector.mask[y, x]:
                r = radius[y, x]
                values[filled[r]] = (image[y, x] - detector.offset) / detector.gain - detector.fixed[y, x]
                filled[r] += 1
    logarithm = np.zeros(len(steep))
    for r in range(len(steep)):
        median = np.median(values[start[r] : start[r + 1]]) if steep[r] and start[r + 1] > start[r] else 0.0
        steep[r] = median > OPTIONS.least_median
        logarithm[r] = math.log(median) if steep[r] else 0.0
    return logarithm


@kernel
def _steepen(image, detector, radius, of_all, background):
    """Where the background (radii,) falls steeply from the beam on, by the means ``of_all`` pixels, take medians of narrow rings.

    They are smoothed by means of logarithms. A mean over wide rings is none of a background that bends, and leaves out the inner side of
    its rings as if that stood out. Counts are high there. Returns the last radius of such a halo, -1 without one.
    """
    n_radii = len(background)
    steep, in_ring = np.zeros(n_radii, np.bool_), np.zeros(n_radii + 1, np.int64)
    for r in range(n_radii):
        steep[r] = _is_steep(of_all, r, detector.full)
    if not steep.any():
        return -1
    ny, nx = image.shape
    for y in range(ny):
        for x in range(nx):
            in_ring[radius[y, x] + 1] += not detector.mask[y, x]
    first, last = _steep_rings(steep, in_ring[1:], int(detector.first_radius))
    if last < first + OPTIONS.least_steep_px:
        return -1
    steep[: last + 1], steep[last + 1 :] = True, False
    logarithm = _ring_medians(image, detector, radius, in_ring, steep)
    while last >= 0 and not steep[last]:
        last -= 1
    if not steep.any() or last < first + OPTIONS.least_steep_px:
        return -1
    for r in range(n_radii):
        reach = 0
        while steep[r] and reach < OPTIONS.steep_reach_px:
            if r - reach < 1 or r + reach + 2 > n_radii or not (steep[r - reach - 1] and steep[r + reach + 1]):
                break
            reach += 1
        if steep[r]:
            background[r] = math.exp(logarithm[r - reach : r + reach + 1].mean())
    return last


@kernel
def _least_counts(background, full, nats, least):
    """The counts in a full aperture at every radius that make ``nats`` against background, into ``least``, by Newton's method."""
    for r in range(len(background)):
        b = background[r] * full + OPTIONS.empty_counts
        a = b + math.sqrt(2 * b * nats) + 0.5
        for _ in range(20):
            slope = math.log(a / b)
            a = max(a - (a * slope - (a - b) - nats) / max(slope, 1e-3), 1.001 * b + 0.05)
        least[r] = max(a, 2.5)


@kernel
def _cosmic_ray(image, detector, y, x, a, b, beam, background):
    """The number of the pixel of an aperture of a counts, b of background, that holds more than a spot's can; -1 if none does.

    ``beam`` is as for `_local_maxima`: on a steep halo the background of a pixel is not the aperture's mean.
    """
    half, brightest, pixel = detector.half, np.float32(0), -1
    reach = len(half) // 2
    for v in range(max(0, y - reach), min(image.shape[0], y + reach + 1)):
        h = half[v - y + reach]
        for u in range(max(0, x - h), min(image.shape[1], x + h + 1)):
            if not detector.mask[v, u] and image[v, u] > brightest:
                brightest, pixel = np.float32(image[v, u]), v * image.shape[1] + u
    below = b / detector.pixels[y, x]
    if math.hypot(y - beam[0], x - beam[1]) < beam[2] + 1 and pixel >= 0:
        below = max(below, _between_rings(background, math.hypot(pixel // image.shape[1] - beam[0], pixel % image.shape[1] - beam[1])))
    most = detector.sharpest * (a - b) + below
    return pixel if (brightest - detector.offset) / detector.gain > most + OPTIONS.ray_sd * math.sqrt(most + 1) else -1


@kernel
def _highest(counts, y, x, beam, background, full):
    """Whether a pixel is the highest within two of it, of equal ones the first; above ``full`` times the background, unless that is 0."""
    here = full * _between_rings(background, math.hypot(y - beam[0], x - beam[1])) if full > 0 else 0.0
    for dy in range(-2, 3):
        for dx in range(-2, 3):
            other = counts[y + dy, x + dx]
            if full > 0:
                other += here - full * _between_rings(background, math.hypot(y + dy - beam[0], x + dx - beam[1]))
            if other > counts[y, x] or (other == counts[y, x] and (dy < 0 or (dy == 0 and dx < 0))):
                return False
    return True


@kernel
def _summit(before, here, after, fall):
    """Where a parabola through three pixels is highest, at most one from the middle, less what the ``fall`` of the background draws it."""
    bend = before - 2 * here + after
    return min(max((0.5 * (before - after) + fall) / bend, -1.0), 1.0) if bend < 0 else 0.0


@kernel
def _local_maxima(image, counts, detector, radius, beam, background, least, table):
    """Fill ``table`` (most, 5) with the peaks of a pattern over its ``background``, the surest first.

    ``beam`` is (y, x) of the direct beam, and up to which radius the background is a steep halo.
    Returns how many, and how many cosmic rays there are. Not `skimage.feature.peak_local_max`: the kernel looks at neighbours only where
    the counts suffice, and of equal pixels keeps one.
    """
    pixels, full, first_radius, nats = detector.pixels, detector.full, detector.first_radius, detector.nats
    cy, cx, steep_to = beam
    ny, nx = counts.shape
    n, n_rays = 0, 0
    rays = np.empty(len(table), np.int64)
    for y in range(2, ny - 2):
        for x in range(2, nx - 2):
            a, r, fixed = counts[y, x], radius[y, x], detector.fixed_counts[y, x]
            usable = r >= first_radius and pixels[y, x] >= OPTIONS.least_good_share * full
            if not usable or (a - min(fixed, np.float32(0))) * full < least[r] * pixels[y, x]:
                continue
            steep = r <= steep_to
            radial = (_over_aperture(background, math.hypot(y - cy, x - cx), full) if steep else background[r]) * pixels[y, x]
            b = max(radial + fixed, OPTIONS.least_of_radial * radial) + OPTIONS.empty_counts
            most = b + OPTIONS.fixed_error * abs(fixed) + (OPTIONS.halo_error * radial if steep else 0.0)
            if a <= most:
                continue
            evidence = a * math.log(a / most) - (a - most)
            if evidence < nats or not _highest(counts, y, x, beam, background, full if steep else 0.0):
                continue
            ray = _cosmic_ray(image, detector, y, x, a, b, beam, background)
            if ray >= 0:  # two maxima may stand beside one
                if not (rays[:n_rays] == ray).any() and n_rays < len(rays):
                    rays[n_rays] = ray
                    n_rays += 1
                continue
            k = n
            if n < len(table):
                n += 1
            else:
                k = int(np.argmin(table[:, 4]))
                if table[k, 4] >= evidence:
                    continue
            fall = full * (background[min(r + 2, len(background) - 1)] - background[max(r - 2, 0)]) / 4 / max(r, 1)
            table[k, 0] = y + _summit(counts[y - 1, x], a, counts[y + 1, x], fall * (y - cy))
            table[k, 1] = x + _summit(counts[y, x - 1], a, counts[y, x + 1], fall * (x - cx))
            table[k, 2], table[k, 3], table[k, 4] = a, b, evidence
    table[:n] = table[:n][np.argsort(-table[:n, 4], kind="mergesort")]
    return n, n_rays


@kernel(nogil=True)
def _find_spots(numbers, patterns, centre, detector, table, number, background, rays):
    ny, nx, n_radii = patterns.shape[1], patterns.shape[2], background.shape[1]
    counts, row = np.empty((ny, nx), np.float32), np.empty(nx + 1, np.float32)
    radius = np.empty((ny, nx), np.int32)
    ceiling, least = np.empty(n_radii, np.float32), np.empty(n_radii, np.float32)
    for i in numbers:
        cy, cx = np.float32(centre[i, 0]), np.float32(centre[i, 1])
        for y in range(ny):
            for x in range(nx):
                radius[y, x] = min(int(math.sqrt((y - cy) * (y - cy) + (x - cx) * (x - cx))), n_radii - 1)
        _aperture_counts(patterns[i], detector.mask, detector.half, detector.gain, detector.offset, row, counts)
        of_all = _radial_background(patterns[i], detector, counts, radius, background[i], ceiling)
        steep_to = _steepen(patterns[i], detector, radius, of_all, background[i])
        _least_counts(background[i], detector.full, detector.nats, least)
        beam = (cy, cx, steep_to)
        number[i], rays[i] = _local_maxima(patterns[i], counts, detector, radius, beam, background[i], least, table[i])


def _no_spots(centre_px: np.ndarray, shape: tuple[int, ...]) -> Spots:
    """Room for the spots of n patterns of ``shape`` (ky, kx)."""
    n = len(centre_px)
    background = np.zeros((n, int(0.75 * max(shape))), np.float32)
    return Spots(np.zeros((n, OPTIONS.most_spots, 5), np.float32), np.zeros(n, np.int64), background, np.array(centre_px, float))


def find_spots(patterns: np.ndarray, centre_px: np.ndarray, calibration: Calibration) -> Spots:
    """The spots of patterns, from their counts against a radial background.

    Parameters
    ----------
    patterns
        (n, ky, kx) of any real type, in recorded units.
    centre_px
        (n, 2) direct beams, (y, x).
    calibration
        Mask, spot size, gain, offset and the background that all patterns share are used.

    Returns
    -------
    `Spots`: up to 64 of every pattern, the surest first, where an undistorted camera would see them (`emphase.ped.distortion`).

    Raises
    ------
    EmphaseError
        Where there are not as many direct beams as patterns.
    """
    if len(centre_px) != len(patterns):
        raise EmphaseError(f"find_spots: got {len(patterns)} patterns and {len(centre_px)} places of the direct beam, expected as many")
    return undistorted_spots(_spots_and_rays(patterns, centre_px, calibration)[0], calibration)


def cosmic_rays(patterns: np.ndarray, centre_px: np.ndarray, calibration: Calibration) -> np.ndarray:
    """How many cosmic rays `find_spots` leaves out of each pattern.

    Parameters
    ----------
    patterns, centre_px, calibration
        As for `find_spots`.

    Returns
    -------
    (n,) maxima of the counts of which one pixel holds more than that of a spot can. Where spots are no larger than a pixel there are none.
    """
    return _spots_and_rays(patterns, centre_px, calibration)[1]


def _spots_and_rays(patterns: np.ndarray, centre_px: np.ndarray, calibration: Calibration) -> tuple[Spots, np.ndarray]:
    """The spots of n patterns, where the camera has them, and (n,) the number of cosmic rays."""
    half = _aperture_of(calibration)
    spots, rays = _no_spots(centre_px, patterns.shape[1:]), np.zeros(len(patterns), np.int64)
    detector = _Detector(
        calibration.mask, _good_pixels(calibration.mask, half), half, float(np.sum(2 * half + 1)),
        calibration.gain, calibration.offset, first_radius_px(calibration), OPTIONS.least_nats, _sharpest(calibration.spot_sigma_px),
        _fixed(calibration), fixed_counts(calibration),
    )  # fmt: skip
    side_by_side(_find_spots, len(patterns), patterns, spots.centre_px, detector, spots.table, spots.number, spots.background, rays)
    return spots, rays


def undistorted_spots(spots: Spots, calibration: Calibration) -> Spots:
    """Recorded spots, put where an undistorted camera would see them.

    Parameters
    ----------
    spots
        Of n patterns, their places as recorded.
    calibration
        With its ``distortion``.
    """
    if not calibration.distortion.any():
        return spots
    table, last = spots.table.copy(), np.array(calibration.mask.shape) - 1.0
    places = undistorted_places(table[:, :, :2].astype(float), spots.centre_px[:, None], calibration)
    shown = np.arange(table.shape[1]) < spots.number[:, None]
    table[:, :, :2] = np.where(shown[:, :, None], np.clip(places, 0, last), 0)
    return replace(spots, table=table)


def pattern_peaks(
    image: np.ndarray, centre_px: np.ndarray, calibration: Calibration, *, most: int = 100, least_nats: float = 4.0
) -> np.ndarray:
    """The spots of one pattern, from its counts against a radial background.

    Parameters
    ----------
    image
        (ky, kx).
    centre_px
        (2,) direct beam, (y, x).
    calibration
        As for `find_spots`.
    most
        Spots to return at most.
    least_nats
        Evidence against background that a spot must have.

    Returns
    -------
    Rows (y px, x px, evidence against background in nats, net counts), the surest first, as the camera recorded them.
    """
    as_recorded = replace(calibration, distortion=np.zeros(5))
    spots = find_spots(np.asarray(image)[None], np.asarray(centre_px)[None], as_recorded)
    y, x, counts, below, nats = spots.table[0, : spots.number[0]].astype(float).T
    return np.stack([y, x, nats, counts - below], axis=1)[nats >= least_nats][:most]
