"""Amplitude spectra of image patches, their peaks, and their match with the frequencies of a projected crystal.

Peaks of a Hann-windowed patch are located by parabolas through the logarithm. Pairs of strong peaks are tried as pairs of expected
frequencies; the match is Bhattacharyya's coefficient of expected and measured amplitudes, so peaks that no frequency explains count
against it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from .projection import ProjectedColumns


@dataclass(frozen=True)
class SpectrumOptions:
    """Tuning of the spectra of patches and of their match with a projection."""

    coarsest_nm: float = 0.0255  # of binned pixels: columns are broad, so pixels of 0.025 nm lose nothing
    most_peaks: int = 40  # of a spectrum, the strongest
    clear_noise: float = 6.0  # times the noise, of a peak that may be a lattice's: none of the 1e4 pixels of a patch by chance
    seen_noise: float = 4.0  # times the noise, of an amplitude at an expected place, where one looks once
    seeds: int = 14  # peaks seen that are tried in pairs, ...
    expected_seeds: int = 6  # ... as pairs of so many expected frequencies
    least_angle_sine: float = 0.2  # of a pair: near to one line it says nothing across
    most_stretch: float = 0.06  # of one direction against the other: drift of the scan
    most_shear_deg: float = 5.0  # of a pair's angle
    stretch_spread: float = 0.08  # the logarithm of a distortion that costs a standard deviation


OPTIONS = SpectrumOptions()


def _binning(pixel_nm: float) -> int:
    """How many pixels to add up a side."""
    return max(1, int(OPTIONS.coarsest_nm / pixel_nm))


def _binned(image: np.ndarray, factor: int) -> np.ndarray:
    """Means of squares of pixels as float64; a remainder at the far edges is left out."""
    from skimage.measure import block_reduce

    image = np.asarray(image, dtype=float)
    rows, cols = (n // factor for n in image.shape)
    return block_reduce(image[: rows * factor, : cols * factor], factor, np.mean)


def _band_passed(image: np.ndarray, small: float, large: float) -> np.ndarray:
    """An image between two Gaussian widths in px."""
    from scipy.ndimage import gaussian_filter

    return gaussian_filter(image, small) - gaussian_filter(image, large)


@dataclass(frozen=True)
class _Spectrum:
    """Amplitude spectrum of a patch of an image, and its peaks as cycles a pixel (n, 2), strongest first."""

    amplitude: np.ndarray
    peaks: np.ndarray
    heights: np.ndarray
    noise: float

    def at(self, k: np.ndarray) -> np.ndarray:
        """Amplitude at k (..., 2), cycles a pixel; 0 beyond the spectrum."""
        size = self.amplitude.shape[0]
        index = np.rint(k * size).astype(int) + size // 2
        inside = np.all((index >= 0) & (index < size), axis=-1)
        index = np.where(inside[..., None], index, 0)
        return np.where(inside, self.amplitude[index[..., 0], index[..., 1]], 0.0)


def _spectrum(patch: np.ndarray, lowest: float) -> _Spectrum:
    """Spectrum of a square patch; peaks are looked for at and above ``lowest`` cycles a pixel."""
    from scipy.ndimage import maximum_filter
    from skimage.feature import peak_local_max

    size = patch.shape[0]
    window = np.hanning(size)[:, None] * np.hanning(size)
    flat = (patch - patch.mean()) * window
    amplitude = np.abs(np.fft.fftshift(np.fft.fft2(flat)))
    axis = np.fft.fftshift(np.fft.fftfreq(size))
    length = np.hypot(axis[:, None], axis)
    amplitude[length < lowest] = 0
    noise = float(np.median(amplitude[(length > 0.3) & (length < 0.5)])) / 1.1774
    half = (axis[:, None] > 0) | ((axis[:, None] == 0) & (axis > 0))
    y, x = peak_local_max(amplitude, min_distance=2, threshold_abs=0, exclude_border=False).T
    used = (half & (length < 0.48))[y, x]
    y, x = y[used][: OPTIONS.most_peaks], x[used][: OPTIONS.most_peaks]
    peaks = np.array([_vertex(amplitude, a, b) for a, b in zip(y.tolist(), x.tolist(), strict=True)]).reshape(-1, 2)
    return _Spectrum(maximum_filter(amplitude, 3), (peaks - size // 2) / size, amplitude[y, x], max(noise, 1e-12))


def _vertex(array: np.ndarray, y: int, x: int) -> tuple[float, float]:
    """Sub-pixel place of a maximum by parabolas through the logarithm."""
    out = []
    for axis, at in ((0, y), (1, x)):
        if not 0 < at < array.shape[axis] - 1:
            out.append(float(at))
            continue
        low, mid, high = (math.log(array[(y + d, x) if axis == 0 else (y, x + d)] + 1e-12) for d in (-1, 0, 1))
        bend = low - 2 * mid + high
        out.append(at + (0.5 * (low - high) / bend if bend < 0 else 0.0))
    return out[0], out[1]


def _match_spectrum(
    spectrum: _Spectrum, columns: ProjectedColumns, pixel_nm: float, scales: tuple[float, float]
) -> tuple[float, np.ndarray]:
    """The best map (2, 2) from 1/nm to cycles a pixel, and how well its spectrum is the one seen, 0 to 1.

    Every pair of strong peaks is tried as every pair of strong expected frequencies, turned or
    mirrored; lengths may differ by ``scales`` (ratio to the stated pixel), with a little distortion. Agreement is Bhattacharyya's
    coefficient of expected and seen amplitudes, so that strong peaks which no frequency explains count against a map, and so
    does its distortion.
    """
    _, vectors, amplitudes = columns.frequencies()
    strength = np.abs(amplitudes) / np.sum(np.abs(amplitudes))
    clear = spectrum.heights > OPTIONS.clear_noise * spectrum.noise
    farthest = float(np.linalg.norm(vectors, axis=1).max())
    heights, far = spectrum.heights[clear], np.linalg.norm(spectrum.peaks[clear], axis=1)
    seen = spectrum.peaks[clear][: OPTIONS.seeds]
    best, best_map = 0.0, np.zeros((2, 2))
    if len(seen) < 2:
        return best, best_map
    seen = np.concatenate([seen, -seen])
    top = min(OPTIONS.expected_seeds, len(vectors))
    for one, two in ((a, b) for a in range(top) for b in range(a + 1, top)):
        g = vectors[[one, two]]
        if abs(np.linalg.det(g)) < OPTIONS.least_angle_sine * np.linalg.norm(g[0]) * np.linalg.norm(g[1]):
            continue
        for a in range(len(seen) // 2):
            ratio = np.linalg.norm(seen[a]) / np.linalg.norm(g[0]) / pixel_nm
            if not scales[0] < ratio < scales[1]:
                continue
            other = np.linalg.norm(seen, axis=1) / np.linalg.norm(g[1]) / pixel_nm
            for b in np.flatnonzero(np.abs(other / ratio - 1) < OPTIONS.most_stretch).tolist():
                turn = _angle(seen[a], seen[b]), _angle(g[0], g[1])
                if abs(abs(turn[0]) - abs(turn[1])) > math.radians(OPTIONS.most_shear_deg):
                    continue
                trial = np.linalg.solve(g, seen[[a, b]])
                stretch = np.linalg.svd(trial, compute_uv=False)
                level = spectrum.at(vectors @ trial)
                level = np.where(level > OPTIONS.seen_noise * spectrum.noise, level, 0.0)
                total = max(float(level.sum()), float(np.sum(heights[far < farthest * math.sqrt(stretch[0] * stretch[1])])))
                score = float(np.sum(np.sqrt(strength * level))) / math.sqrt(total)
                score *= math.exp(-0.5 * (math.log(stretch[0] / stretch[1]) / OPTIONS.stretch_spread) ** 2 - 0.25 * abs(math.log(ratio)))
                if score > best:
                    best, best_map = score, trial
    return best, best_map


def _angle(a: np.ndarray, b: np.ndarray) -> float:
    """Angle (rad) from one vector of a plane to another."""
    return math.atan2(a[0] * b[1] - a[1] * b[0], a[0] * b[0] + a[1] * b[1])
