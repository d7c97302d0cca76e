"""Gain and offset of a detector from the noise of its patterns, told from spots and halo by its spatial frequency.

For counted electrons the variance of a pixel is gain x (mean - offset): the photon transfer curve (Janesick, Photon Transfer, 2007). In
a diffraction pattern neighbouring pixels do not share an expectation, and differences between them read spots and halo as noise: by a
factor of two at 1e5 counts a pattern, of sixty at 3e6. But a spot of one pixel or more (standard deviation) has next to nothing at the
highest spatial frequencies, exp(-pi² s²) of its amplitude, where the noise of a detector whose pixels are independent has as much as
anywhere. So the variance is taken in windows of 9 pixels that oscillate at, and at three quarters of, the Nyquist frequency, against the
mean in the same windows; the slope of that line is the gain.

A camera that smears an electron over several pixels (scintillator and CCD) has no noise at these frequencies. It shows by variances that
rise towards lower frequencies in the darkest places, too. There the variance of blocks of 4 x 4 pixels is taken, in the places that are
flattest for their brightness; that is right to a factor of three, and said to be.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import product
from typing import NamedTuple

import numpy as np


@dataclass(frozen=True)
class NoiseOptions:
    """Tuning numbers of the noise."""

    window_px: int = 9  # across an oscillating window: a band a quarter of the Nyquist frequency wide
    high: tuple[float, ...] = (1.0, 0.75)  # of the Nyquist frequency, where spots have nothing
    low: float = 0.5  # where smeared noise has more than there, and spots little yet in the dark, ...
    rough: float = 0.25  # ... in the half of the windows where there is least at this share
    step_px: int = 4  # between windows: half of them apart
    levels: int = 14  # of brightness, equally filled
    brightest: int = 2  # of them are left out: they hold the tips of spots
    dark: int = 6  # levels in which high and low frequencies are compared
    least_windows: int = 400  # that make a photon transfer curve
    clear_counts: float = 2.0  # electrons of a pixel above which the noise of windows is Gaussian
    least_growth: float = 1.5  # of the variance from the darkest level to the brightest: less is the amplifier's noise
    most_smeared: float = 1.7  # ratio of the slopes at the low frequency and at the high one; structure alone makes up to 1.35
    counting: tuple[float, float] = (0.8, 1.25)  # a gain of whole numbers between these is that of a counting detector, 1
    no_offset: float = 0.25  # of the median level: what noise makes of an offset that is none
    block_px: int = 4  # side of the blocks where the noise is smeared
    flattest: float = 0.3  # quantile of the squared differences of blocks: the flattest places


OPTIONS = NoiseOptions()


class DetectorNoise(NamedTuple):
    """Gain and offset of a detector.

    Attributes
    ----------
    gain
        Recorded units per electron; 1 for a counting detector.
    offset
        Recorded units of a pixel without any electron.
    doubt
        Why the gain is not known, "" where it is.
    """

    gain: float
    offset: float
    doubt: str


def detector_noise(patterns: np.ndarray, mask: np.ndarray) -> DetectorNoise:
    """Gain and offset of a detector, from the noise of the patterns themselves.

    Parameters
    ----------
    patterns
        (n, ky, kx), in recorded units.
    mask
        (ky, kx) bad pixels.

    Returns
    -------
    `DetectorNoise`. Where the noise is smeared over pixels the gain is known to a factor of three, where it does not grow with the mean it
    is the ratio of both, where the patterns are too dark it is 1; each with its ``doubt``.

    Notes
    -----
    Patterns of few counts are added up before, so that the windows' noise is Gaussian; sums of Poisson counts have the same gain.
    """
    noise = _measured(patterns, mask, 1.0)
    return _measured(patterns, mask, noise.gain) if noise.gain > 1 and not noise.doubt else noise


def _measured(patterns: np.ndarray, mask: np.ndarray, gain: float) -> DetectorNoise:
    """`detector_noise` from patterns that are added up for about this ``gain``."""
    summed, number = _summed(patterns, gain)
    high = _transfer_curve(summed, mask, OPTIONS.high)
    low = _transfer_curve(summed, mask, (OPTIONS.low,), OPTIONS.rough)
    if high is None or low is None or not summed.any():
        return DetectorNoise(1.0, 0.0, "too few or too dark patterns to measure the detector's gain")
    whole = np.issubdtype(patterns.dtype, np.integer) or not np.any(patterns % 1)
    least, most = OPTIONS.counting
    if whole and max(values[-1] / values[0] for values in high) < OPTIONS.least_growth and least < np.median(high[1] / high[0]) < most:
        return DetectorNoise(1.0, 0.0, "")  # equally bright all over, and as noisy as counts
    slope, at_zero = _line(*high)
    if slope > 0 and _is_white(high, low):
        offset = 0.0 if patterns.dtype == np.uint8 else float(np.clip(-at_zero / slope, 0, high[0][0]))
        if whole and least < slope < most and offset < OPTIONS.no_offset * float(np.median(high[0])):
            return DetectorNoise(1.0, 0.0, "")
        return DetectorNoise(slope, offset / number, "")
    return _of_blocks(summed, mask, number, patterns.dtype == np.uint8)


def _summed(patterns: np.ndarray, gain: float) -> tuple[np.ndarray, int]:
    """Sums of as many patterns as make their noise Gaussian with this ``gain``, but at least four sums; and how many each holds."""
    typical = max(float(np.median(patterns)) - float(np.percentile(patterns, 1)), float(patterns.mean()) / 4, 1e-9)
    number = int(np.clip(math.ceil(OPTIONS.clear_counts * gain / typical), 1, max(1, len(patterns) // 4)))
    whole = patterns[: len(patterns) // number * number].astype(np.float64)
    return whole.reshape(-1, number, *patterns.shape[1:]).sum(axis=1), number


def _windows(share: float) -> list[np.ndarray]:
    """Windows (9,) that oscillate at a share of the Nyquist frequency: cosine and, where it is another, sine; without a mean."""
    n = np.arange(OPTIONS.window_px) - OPTIONS.window_px // 2
    taper = np.hanning(OPTIONS.window_px + 2)[1:-1]
    cosine, sine = taper * np.cos(math.pi * share * n), taper * np.sin(math.pi * share * n)
    return [cosine] if share == 1 else [cosine - taper * cosine.sum() / taper.sum(), sine]


def _in_windows(patterns: np.ndarray, shares: Iterable[float]) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Variance of a pixel and mean, (n, ky, kx), in windows that oscillate along both axes, about every pixel."""
    from scipy import ndimage

    filtered = lambda y, x: ndimage.correlate1d(ndimage.correlate1d(patterns, y, axis=-2, mode="nearest"), x, axis=-1, mode="nearest")
    windows = [window for share in shares for window in _windows(share)]
    for along_y, along_x in product(windows, windows):
        weight = np.sum(along_y**2) * np.sum(along_x**2)
        yield filtered(along_y, along_x) ** 2 / weight, filtered(along_y**2, along_x**2) / weight


def _transfer_curve(
    patterns: np.ndarray, mask: np.ndarray, shares: Iterable[float], rough: float | None = None
) -> tuple[np.ndarray, np.ndarray] | None:
    """Mean and variance (levels,) of a pixel at shares of the Nyquist frequency, by the median; None where there are too few windows.

    Without the brightest levels; with ``rough``, in the windows that have less than the median of their level at that share.
    """
    from scipy import ndimage

    reach = OPTIONS.window_px // 2 + 1
    inner = np.s_[reach : -reach : OPTIONS.step_px, reach : -reach : OPTIONS.step_px]
    good = ~ndimage.binary_dilation(mask, np.ones((OPTIONS.window_px,) * 2))[inner]
    filled = np.where(mask, 0, patterns)
    pairs = [(v[:, *inner][:, good], m[:, *inner][:, good]) for v, m in _in_windows(filled, shares)]
    variance, mean = (np.stack(part) for part in zip(*pairs, strict=True))
    if mean.size < OPTIONS.least_windows:
        return None
    roughness = None if rough is None else np.sum([v[:, *inner][:, good] for v, _ in _in_windows(filled, (rough,))], axis=0)
    levels, variances = [], []
    for part in np.array_split(np.argsort(mean.mean(axis=0), axis=None, kind="stable"), OPTIONS.levels)[: -OPTIONS.brightest]:
        at = np.unravel_index(part, mean.shape[1:])
        flat = np.ones(len(part), bool) if roughness is None else roughness[at] <= np.median(roughness[at])
        here = tuple(axis[flat] for axis in at)
        levels.append(float(mean[:, *here].mean()))
        variances.append(_variance_of(variance[:, *here], 0.5))
    return np.array(levels), np.array(variances)


def _variance_of(squares: np.ndarray, quantile: float) -> float:
    """The variance whose squares have this quantile, for Gaussian noise."""
    from scipy.special import chdtri

    return float(np.quantile(squares, quantile) / chdtri(1, 1 - quantile))


def _line(mean: np.ndarray, variance: np.ndarray) -> tuple[float, float]:
    """Slope and value at zero of the variance against the mean; each level has the same relative error."""
    slope, at_zero = np.polyfit(mean, variance, 1, w=1 / np.maximum(variance, 1e-9)) if np.ptp(mean) > 0 else (0.0, 0.0)
    return float(slope), float(at_zero)


def _is_white(high: tuple[np.ndarray, np.ndarray], low: tuple[np.ndarray, np.ndarray]) -> bool:
    """Whether the noise grows with the mean, and no more at the low frequency than at the high ones: the pixels are independent."""
    if high[1][-1] < OPTIONS.least_growth * high[1][0]:
        return False
    dark_high, dark_low = (_line(mean[: OPTIONS.dark], variance[: OPTIONS.dark])[0] for mean, variance in (high, low))
    return dark_low < OPTIONS.most_smeared * max(dark_high, _line(*high)[0])


def _of_blocks(patterns: np.ndarray, mask: np.ndarray, number: int, eight_bit: bool) -> DetectorNoise:
    """Gain and offset from second differences of blocks in the flattest places, for noise that is smeared."""
    from skimage.measure import block_reduce

    size = OPTIONS.block_px
    whole = np.s_[..., : mask.shape[0] // size * size, : mask.shape[1] // size * size]
    blocks = block_reduce(patterns[whole], (1, size, size), np.sum)
    bad = block_reduce(mask[whole], (size, size), np.any)
    good = ~(bad[:, 2:] | bad[:, 1:-1] | bad[:, :-2])
    level = ((blocks[:, :, 2:] + blocks[:, :, 1:-1] + blocks[:, :, :-2]) / 3)[:, good].ravel()
    square = ((blocks[:, :, 2:] - 2 * blocks[:, :, 1:-1] + blocks[:, :, :-2]) ** 2 / 6)[:, good].ravel()
    parts = np.array_split(np.argsort(level, kind="stable"), OPTIONS.levels)[: -OPTIONS.brightest]
    mean = np.array([level[part].mean() for part in parts])
    variance = np.array([_variance_of(square[part], OPTIONS.flattest) for part in parts])
    gain, at_zero = _line(mean, variance)
    if gain <= 0 or eight_bit:
        gain, at_zero = max(float(variance.sum() / max(mean.sum(), 1e-9)), 1e-3), 0.0
        doubt = "its noise does not grow with the counts as that of electrons does (gamma, compression or 8 bits?)"
        return DetectorNoise(gain, 0.0, f"the detector's gain is not known: {doubt}")
    offset = float(np.clip(-at_zero / gain, 0, np.percentile(level, 1))) / size**2 / number
    return DetectorNoise(gain, offset, f"the camera smears its noise over pixels: its gain, {gain:.2g}, is known to a factor of three")
