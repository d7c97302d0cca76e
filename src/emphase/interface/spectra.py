"""Spectra of windows, their peaks, and the likelihood of peaks given the spots of a phase in a zone axis.

A spectrum is that of a Hann window over the background of noise and amorphous matter. A peak is at a spot of the pattern with a Gaussian
error, or anywhere at random; predicted strong spots that are not seen count against a pattern. The score of a pattern is the log
likelihood ratio to random peaks, at its best scale and rotation.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from ..crystals import Crystal, reflections, view_along
from ..kernels import kernel


class SpectrumOptions(NamedTuple):
    """Tuning of spectra, their peaks and the search of patterns; a named tuple, so that kernels can read it."""

    min_q_invA: float = 0.12  # below lies the slope of the background
    max_q_invA: float = 0.72  # above, the microscope damps contrast away
    background_quantile: float = 0.3  # of a ring of frequencies: spots do not reach it ...
    quantile_of_mean: float = 0.357  # ... and exponential statistics have it at so much of their mean, -log(0.7)
    background_blur: float = 1.5  # bins of radius over which the background is smooth
    strain: float = 0.006  # share of q by which a spot may move with strain and bending
    peak_error: float = 0.15  # bins by which a peak of a spectrum is off its place
    random_peak: float = 0.06  # share of peaks that no candidate explains
    reach_variances: float = 8.0  # twice these: a peak farther off is at random
    seed_peaks: int = 5  # the strongest, from each of which patterns are placed
    seed_amplitude: float = 0.08  # of a pattern's strongest spot, of the spots that are placed there
    seed_reach: float = 1.5  # errors, within which peaks count before the scale is fitted
    behind: float = 8.0  # nats behind the best, of a seed that is fitted no further
    least_cross: float = 0.2  # sine between two matched spots: those of one row say nothing of a zone axis
    visible: float = 1.3  # times the threshold of peaks, of an expected amplitude that is missed where it is not seen ...
    clearly_visible: float = 2.2  # ... and missed for sure
    missed_nats: tuple[float, float] = (0.7, 1.6)  # lost by each of these: half and four fifths of such spots are seen
    most_missed: float = 12.0  # nats lost by all of them: intensities are not kinematical
    weight_floor: float = 0.03  # of a spot in its pattern, beside its amplitude
    scale_spread: tuple[float, float] = (0.004, 0.02)  # prior of a scale, where the pixel is calibrated and where it is as stated
    certain: float = 0.95  # of a phase that is called certain
    same_spots: float = 0.8  # weight of the spots in common, from which two placed patterns are one lattice
    same_place_invA: float = 0.012  # within which two spots are one: the width of a peak of a window


OPTIONS = SpectrumOptions()


@dataclass(frozen=True)
class ZonePattern:
    """Spots of a phase in a zone axis: ``spots`` complex x + iy in 1/Å, ``weight`` (sum 1 over a half plane), ``amplitude`` (max 1)."""

    phase: str
    zone_axis: tuple[int, int, int]
    hkl: np.ndarray
    spots: np.ndarray
    weight: np.ndarray
    amplitude: np.ndarray


def zone_patterns(crystal: Crystal, max_index: int = 2) -> list[ZonePattern]:
    """Spot patterns of a crystal in its low-index zone axes, one of each kind.

    Zone axes whose reflections have the same lengths and intensities count once (equal by symmetry or mirror images, and the search tries
    both hands). Left out are zones with spots in one direction only.

    Parameters
    ----------
    crystal
        The phase.
    max_index
        Largest index of a zone axis.

    Returns
    -------
    list of ZonePattern
        Low indices first.
    """
    found = reflections(crystal, OPTIONS.max_q_invA, 1e-4)
    steps = range(-max_index, max_index + 1)
    axes = [(u, v, w) for u in steps for v in steps for w in steps if math.gcd(u, v, w) == 1 and (u, v, w) > (0, 0, 0)]
    axes.sort(key=lambda a: (sum(map(abs, a)), [-x for x in a]))
    patterns: dict[tuple, ZonePattern] = {}
    for axis in axes:
        here = found.hkl @ np.array(axis) == 0
        if here.sum() < 6:
            continue
        g, intensity = found.g[here], found.intensity[here]
        key = tuple(sorted(zip(np.round(np.linalg.norm(g, axis=1), 4), np.round(np.log(intensity), 1), strict=True)))
        spots = g @ view_along(crystal, axis)[:2].T @ np.array([1, 1j])
        spread = np.linalg.eigvalsh(np.cov(np.stack([spots.real, spots.imag])))
        if key in patterns or spread[0] < 1e-3:
            continue
        amplitude = np.sqrt(intensity / intensity.max())
        weight = amplitude + OPTIONS.weight_floor
        weight = 2 * weight / weight.sum()
        patterns[key] = ZonePattern(crystal.name, axis, found.hkl[here], spots, weight, amplitude)
    return list(patterns.values())


def _window_origins(shape: tuple[int, int], size: int, stride: int) -> np.ndarray:
    """Upper left corners (n, 2) of windows that cover an image evenly."""
    rows, columns = (np.linspace(0, n - size, max(1, round((n - size) / stride) + 1)).round().astype(int) for n in shape)
    return np.array([(y, x) for y in rows for x in columns])


def _rings(half: int) -> np.ndarray:
    """Whole number of bins from the middle, (2 half, 2 half)."""
    return np.hypot(*np.indices((2 * half, 2 * half)) - half).astype(int)


@dataclass(frozen=True)
class WindowSpectra:
    """Spectra of windows: ``power`` (n, m, m), zero frequency in the middle, ``background`` (n, r) in r rings of one bin each.

    ``origins`` (n, 2) px are the upper left corners of the windows, ``size`` px their side and ``bin_invA`` a bin of frequency.
    """

    power: np.ndarray
    background: np.ndarray
    origins: np.ndarray
    size: int
    bin_invA: float

    @property
    def centres(self) -> np.ndarray:
        """Middle of every window (n, 2) in px."""
        return self.origins + (self.size - 1) / 2

    def mean(self, windows: np.ndarray | list[int]) -> tuple[np.ndarray, np.ndarray]:
        """Mean power (m, m) of some windows, and that power over the mean background."""
        power = self.power[windows].mean(axis=0)
        return power, power / self.background[windows].mean(axis=0)[_rings(len(power) // 2)]


def window_spectra(image: np.ndarray, pixel_size_nm: float, window_nm: float = 3.8, stride_nm: float = 1.0) -> WindowSpectra:
    """Power spectra of Hann windows of an image, and the background of each.

    Parameters
    ----------
    image
        (y, x).
    pixel_size_nm, window_nm, stride_nm
        The pixel, the side of a window and the distance of neighbouring windows.

    Notes
    -----
    The background is that of noise and amorphous matter: in every ring of frequency a low quantile, which spots do not reach,
    over its value for exponential statistics.
    """
    from scipy.fft import fft2, fftshift
    from scipy.ndimage import gaussian_filter1d

    size = min(2 * round(window_nm / pixel_size_nm / 2), *(2 * (n // 2) for n in image.shape))
    origins = _window_origins(image.shape, size, max(1, round(stride_nm / pixel_size_nm)))
    taper = np.sin(np.pi * np.arange(size, dtype=np.float32) / size) ** 2
    taper = taper[:, None] * taper
    bin_invA = 1 / (10 * pixel_size_nm * size)
    half = min(size // 2, math.ceil((OPTIONS.max_q_invA + 0.05) / bin_invA))
    middle = slice(size // 2 - half, size // 2 + half)
    ring = _rings(half)
    order = np.argsort(ring.ravel(), kind="stable")
    starts = np.searchsorted(ring.ravel()[order], np.arange(ring.max() + 2))
    spectra = np.empty((len(origins), 2 * half, 2 * half), dtype=np.float32)
    background = np.empty((len(origins), ring.max() + 1), dtype=np.float32)
    for i, (y, x) in enumerate(origins):
        part = image[y : y + size, x : x + size].astype(np.float32)
        part = (part - part.mean()) * taper
        power = np.abs(fftshift(fft2(part))[middle, middle]) ** 2
        in_order = power.ravel()[order]
        low = [np.quantile(in_order[a:b], OPTIONS.background_quantile) / OPTIONS.quantile_of_mean for a, b in itertools.pairwise(starts)]
        background[i] = np.exp(gaussian_filter1d(np.log(np.maximum(low, 1e-12)), OPTIONS.background_blur))
        spectra[i] = power
    return WindowSpectra(spectra, background, origins, size, bin_invA)


def spectrum_peaks(
    power: np.ndarray, snr: np.ndarray, bin_invA: float, threshold: float = 13.0, limit: int = 24
) -> tuple[np.ndarray, np.ndarray]:
    """Peaks of one spectrum in a half plane: positions complex x + iy (1/Å), and their power over background, strongest first.

    Parameters
    ----------
    power, snr
        (m, m), zero frequency in the middle: power, and power over background.
    bin_invA
        A bin of frequency, 1/Å.
    threshold, limit
        Least power over background, and the largest number of peaks.

    Notes
    -----
    Sub-pixel from the ratio of neighbours, exact for a Hann window.
    """
    from skimage.feature import peak_local_max

    half = snr.shape[0] // 2
    y, x = peak_local_max(snr, min_distance=1, threshold_abs=threshold, exclude_border=1).T
    upper = (y > half) | ((y == half) & (x > half))
    y, x = y[upper], x[upper]
    height = np.sqrt(power)

    def shift(before: np.ndarray, at: np.ndarray, after: np.ndarray) -> np.ndarray:
        """Offset of the maximum from the ratio of its neighbours, for a Hann window."""
        ratio = np.maximum(before, after) / at
        return np.where(after > before, 1, -1) * np.clip((2 * ratio - 1) / (1 + ratio), 0, 0.6)

    dy = shift(height[y - 1, x], height[y, x], height[y + 1, x])
    dx = shift(height[y, x - 1], height[y, x], height[y, x + 1])
    q = ((x - half + dx) + 1j * (y - half + dy)) * bin_invA
    strength = snr[y, x]
    keep = (np.abs(q) > OPTIONS.min_q_invA) & (np.abs(q) < OPTIONS.max_q_invA)
    order = np.argsort(-strength[keep])[:limit]
    return q[keep][order], strength[keep][order]


@kernel
def _match(q, sigma, predicted, weight, area, excused, matched):
    """Log likelihood of peak positions over that of random ones; ``matched`` gets the spot of each peak or -1.

    A peak that is ``excused``, because a neighbour explains it, does not count against the pattern.
    """
    total = 0.0
    for i in range(len(q)):
        best, best_k, var = -1e9, -1, 2 * sigma[i] ** 2
        for k in range(len(predicted)):
            d2 = abs(q[i] - predicted[k]) ** 2
            if d2 < OPTIONS.reach_variances * var:
                value = math.log(weight[k]) - d2 / var
                if value > best:
                    best, best_k = value, k
        matched[i] = best_k
        density = OPTIONS.random_peak
        if best_k >= 0:
            density += (1 - OPTIONS.random_peak) * area * math.exp(best) / (math.pi * var)
        total += max(math.log(density), 0.0) if excused[i] else math.log(density)
    return total


@kernel
def _missing(q, strength, predicted, amplitude, matched, threshold):
    """Log likelihood of what is predicted strong and not seen; and whether spots of two directions are."""
    seen = np.zeros(len(predicted), dtype=np.bool_)
    measured, expected, cross = 0.0, 0.0, 0.0
    for i in range(len(q)):
        if matched[i] >= 0:
            seen[matched[i]] = True
            measured += math.sqrt(strength[i])
            expected += amplitude[matched[i]]
            for j in range(i):
                if matched[j] >= 0:
                    cross = max(cross, abs((q[i] * np.conj(q[j])).imag) / (abs(q[i]) * abs(q[j])))
    if expected == 0.0:
        return -OPTIONS.most_missed, 0.0
    total = 0.0
    for k in range(len(predicted)):
        p = predicted[k]
        if seen[k] or p.imag < 0 or (p.imag == 0 and p.real < 0) or abs(p) < OPTIONS.min_q_invA or abs(p) > OPTIONS.max_q_invA:
            continue
        near = 1e9
        for j in range(len(predicted)):
            if seen[j]:
                near = min(near, abs(predicted[j] + p), abs(predicted[j] - p))
        ratio = amplitude[k] * measured / expected / math.sqrt(threshold)
        if near > 1e-6 and ratio > OPTIONS.visible:
            total -= OPTIONS.missed_nats[0] if ratio < OPTIONS.clearly_visible else OPTIONS.missed_nats[1]
    return max(total, -OPTIONS.most_missed), cross


@kernel
def _fit_turn(q, sigma, predicted, matched):
    """Complex factor of the pattern that fits the matched peaks best."""
    top, bottom = 0j, 0.0
    for i in range(len(q)):
        if matched[i] >= 0:
            p = predicted[matched[i]]
            top += q[i] * np.conj(p) / sigma[i] ** 2
            bottom += abs(p) ** 2 / sigma[i] ** 2
    return top / bottom if bottom > 0 else 1 + 0j


class _Peaks(NamedTuple):
    """Peaks of a spectrum: places (complex, 1/Å), their errors, power over background, and which need no explanation; all (n,)."""

    q: np.ndarray
    sigma: np.ndarray
    strength: np.ndarray
    excused: np.ndarray


class _Spots(NamedTuple):
    """Spots, weights and amplitudes of all patterns end to end, and the offset of each pattern."""

    spots: np.ndarray
    weight: np.ndarray
    amplitude: np.ndarray
    offsets: np.ndarray


class _Limits(NamedTuple):
    """Largest deviation of a scale, its prior (standard deviation), threshold of peaks, and area (1/Å²) of the half plane of peaks."""

    tolerance: float
    scale_sigma: float
    threshold: float
    area: float


@kernel
def _search(peaks, patterns, limits):
    """Best score, complex factor and hand of every pattern for the peaks of one window: `_Peaks`, `_Spots`, `_Limits`."""
    q, sigma, strength, excused = peaks.q, peaks.sigma, peaks.strength, peaks.excused
    spots, weight, amplitude, offsets = patterns.spots, patterns.weight, patterns.amplitude, patterns.offsets
    tolerance, scale_sigma, threshold, area = limits.tolerance, limits.scale_sigma, limits.threshold, limits.area
    n = len(offsets) - 1
    best = np.full(n, -1e9)
    turns = np.ones(n, dtype=np.complex128)
    hands = np.zeros(n, dtype=np.int64)
    matched = np.empty(len(q), dtype=np.int64)
    for t in range(n):
        a, b = offsets[t], offsets[t + 1]
        w, f = weight[a:b], amplitude[a:b]
        for hand in range(2):
            g = spots[a:b] if hand == 0 else np.conj(spots[a:b])
            for i in range(min(OPTIONS.seed_peaks, len(q))):
                for k in range(b - a):
                    scale = abs(q[i]) / abs(g[k])
                    if abs(scale - 1) > tolerance or f[k] < OPTIONS.seed_amplitude:
                        continue
                    turn = q[i] / g[k]
                    if scale_sigma < 0.005:
                        turn /= scale
                    score = _match(q, OPTIONS.seed_reach * sigma, turn * g, w, area, excused, matched)
                    if score < best[t] - OPTIONS.behind or score < 0:
                        continue
                    turn *= _fit_turn(q, sigma, turn * g, matched)
                    predicted = turn * g
                    score = _match(q, sigma, predicted, w, area, excused, matched)
                    lack, cross = _missing(q, strength, predicted, f, matched, threshold)
                    score += lack - 0.5 * ((abs(turn) - 1) / scale_sigma) ** 2
                    if cross > OPTIONS.least_cross and score > best[t]:
                        best[t], turns[t], hands[t] = score, turn, hand
    return best, turns, hands


def _half_plane_area() -> float:
    """Area (1/Å²) of the half plane of frequencies in which peaks are looked for."""
    return math.pi * (OPTIONS.max_q_invA**2 - OPTIONS.min_q_invA**2) / 2


class _PatternBank:
    """All candidate patterns in the flat arrays that the search takes, with the prior of each."""

    def __init__(self, patterns: list[ZonePattern]):
        """The patterns with equal prior for every phase, shared by its zone axes."""
        self.patterns = patterns
        self.phases = list(dict.fromkeys(p.phase for p in patterns))
        self.spots = np.concatenate([p.spots for p in patterns])
        self.weight = np.concatenate([p.weight for p in patterns])
        self.amplitude = np.concatenate([p.amplitude for p in patterns])
        self.offsets = np.concatenate([[0], np.cumsum([len(p.spots) for p in patterns])])
        zones = [sum(p.phase == other.phase for other in patterns) for p in patterns]
        self.log_prior = -np.log(np.array(zones, dtype=float)) - math.log(len(self.phases))
        self.phase_index = np.array([self.phases.index(p.phase) for p in patterns])
        self.phase_of_pattern = np.array([p.phase for p in patterns])

    def search(
        self, q: np.ndarray, sigma: np.ndarray, strength: np.ndarray, tolerance: float, threshold: float, excused: np.ndarray | None = None
    ) -> tuple:
        """Log posterior (up to a constant; 0 is chance), complex factor and hand of every pattern."""
        if len(q) < 2:
            n = len(self.patterns)
            return np.full(n, -1e9), np.ones(n, dtype=complex), np.zeros(n, dtype=int)
        calibrated, stated = OPTIONS.scale_spread
        scale_sigma = stated if tolerance > stated else calibrated
        area = _half_plane_area()
        patterns = _Spots(self.spots, self.weight, self.amplitude, self.offsets)
        excused = np.zeros(len(q), dtype=bool) if excused is None else excused
        limits = _Limits(float(tolerance), scale_sigma, float(threshold), area)
        score, turn, hand = _search(_Peaks(q, sigma, strength, excused), patterns, limits)
        return score + self.log_prior, turn, hand

    def phase_posterior(self, score: np.ndarray) -> np.ndarray:
        """Posterior of each phase, and of chance as the last, from the scores of all patterns."""
        best = np.array([score[self.phase_index == i].max() for i in range(len(self.phases))] + [0.0])
        best = np.exp(best - best.max())
        return best / best.sum()

    def zone_posterior(self, scores: Sequence[np.ndarray], chances: Sequence[float]) -> dict[str, float]:
        """Posterior of every phase in every zone axis, those above a thousandth, and of chance as "unknown"; the most probable first.

        The mean over several sets of ``scores``, of which each has its chance.
        """
        shares = np.array([np.exp(np.append(score, 0.0) - max(float(score.max()), 0.0)) for score in scores])
        share = np.asarray(chances) @ (shares / shares.sum(axis=1, keepdims=True))
        names = [*(f"{p.phase} [{' '.join(map(str, p.zone_axis))}]" for p in self.patterns), "unknown"]
        return {names[k]: float(share[k]) for k in np.argsort(-share) if share[k] > 1e-3}

    def placed(self, index: int, turn: complex, hand: int) -> np.ndarray:
        """The spots of a pattern as they lie in the image's spectrum, complex, 1/Å."""
        spots = self.patterns[index].spots
        return turn * (np.conj(spots) if hand else spots)


def _same_spots(a: np.ndarray, weight: np.ndarray, b: np.ndarray, reach: float = OPTIONS.same_place_invA) -> float:
    """Share of the weight of the first spots that has a spot of the second within reach."""
    near = np.abs(a[:, None] - b[None, :]).min(axis=1) < reach
    return float(weight[near].sum() / weight.sum())


@dataclass(frozen=True)
class Lattice:
    """A crystal lattice found in an image: its most probable pattern and where its spots are.

    ``posterior`` holds each candidate phase's probability and "unknown", ``zones`` that of each phase in each zone axis ("spinel [1 1 0]")
    above a thousandth; ``spots`` the placed pattern (complex x + iy, 1/Å), which is that of the bank times ``turn``, ``measured`` the
    peaks that it explains (complex; power over background in ``strength``), ``index`` the pattern's spot that each is.
    """

    pattern: ZonePattern
    turn: complex
    spots: np.ndarray
    posterior: dict[str, float]
    zones: dict[str, float]
    measured: np.ndarray
    strength: np.ndarray
    index: np.ndarray
    n_windows: int

    @property
    def phase(self) -> str:
        """The most probable phase, or "unknown"."""
        return max(self.posterior, key=lambda phase: self.posterior[phase])

    @property
    def certain(self) -> bool:
        """Whether that phase is probable enough to be called so."""
        return self.posterior[self.phase] > OPTIONS.certain and self.phase != "unknown"


def _sigma(q: np.ndarray, bin_invA: float, bins: float = OPTIONS.peak_error, strain: float = OPTIONS.strain) -> np.ndarray:
    """Error (1/Å) of peaks at q: a part of a bin, and strain."""
    return np.hypot(bins * bin_invA, strain * np.abs(q))
