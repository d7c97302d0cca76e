"""The true size of a pixel, from a lattice in the image whose phase is known.

A lattice alone tells its shape; its size is that of its phase only where the pixel is known, and the pixel only where the phase is. Two
phases of one structure type (Si and Ge, two perovskites) explain an image alike, at two sizes of the pixel. So the pixel rests on a phase
that is known to be in the image; where none is, every candidate gives a scale of its own, and these are weighed by how well all candidates
together explain the image at each, and by how far each is from the pixel as stated. What is named rests on all of them.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from .spectra import OPTIONS as SPECTRUM_OPTIONS
from .spectra import WindowSpectra, ZonePattern, _PatternBank, _sigma, spectrum_peaks


@dataclass(frozen=True)
class PixelOptions:
    """Tuning of the calibration."""

    peak_threshold: float = 13.0  # power over background of a peak of one window: exponential noise exceeds it once in 400,000 bins
    certain: float = 0.99  # posterior of a phase in a window, or of a scale, to rest on it
    certain_score: float = 10.0  # and its score: a few peaks by chance stay below
    least_windows: int = 3
    scale_tolerance: float = 0.06  # of a stated pixel, in the search; ...
    widest: float = 0.1  # ... and of what is weighed: a rival beyond the search has its share
    strain_tolerance: float = 0.015  # of a calibrated one
    strained: float = 1e-3  # of the crystal that calibrates: enters the error
    same_scale: float = 0.004  # within which two phases ask for the same pixel
    freedom: float = 3.0  # degrees of it, of the t distribution of a stated pixel's error: some recordings are off by 5 %
    least_probability: float = 1e-3  # of a scale that is kept
    unknown: tuple[float, ...] = (
        -2.0,
        -1.0,
        0.0,
        1.0,
        2.0,
    )  # sd of a stated pixel, at which it is tried where no phase helps


OPTIONS = PixelOptions()


class PixelScale(NamedTuple):
    """What a pixel may be.

    Attributes
    ----------
    phase
        On which it is calibrated; None: the stated size, or another.
    scale, error
        True over stated size, and its standard error.
    n_windows
        Windows that show the phase.
    probability
        Of this scale.
    rivals
        Phases that would explain the same spots at another scale.
    """

    phase: str | None
    scale: float
    error: float
    n_windows: int
    probability: float
    rivals: tuple[str, ...] = ()


def calibrate_on_lattice(spectra: WindowSpectra, bank: _PatternBank, sides: Iterable[str] = (), n_windows: int = 60) -> dict[str, Any]:
    """True size of a pixel over its nominal one, from a phase that is known to be in the image, or from all candidates.

    Parameters
    ----------
    spectra, bank
        Spectra of windows, and the candidate patterns.
    sides
        Phases that are known to be in the image, the first before the next; only where none of them is a candidate may the calibration
        rest on another.
    n_windows
        About as many windows are looked at.

    Returns
    -------
    dict
        ``scales``, the `PixelScale` that are possible, the most probable first; ``scale`` of the first and its standard error
        ``scale_error``, the phase ``anchor`` that it rests on and ``n_windows``. Where no scale is certain, the error is the spread of
        all or None, the anchor None, and ``reason`` says why.

    Notes
    -----
    The evidence of a scale is the mean over windows of the score of the best candidate there: windows overlap and share the errors of the
    model of amplitudes, so they are not counted as independent. Its prior is Student's t about the stated pixel,
    of 2 %.
    """
    windows = [
        spectrum_peaks(*spectra.mean([i]), spectra.bin_invA) for i in range(0, len(spectra.power), max(1, len(spectra.power) // n_windows))
    ]
    windows = [(q, strength) for q, strength in windows if len(q) >= 3]
    searched = [
        bank.search(q, _sigma(q, spectra.bin_invA), strength, OPTIONS.scale_tolerance, OPTIONS.peak_threshold)[:2]
        for q, strength in windows
    ]
    sides = [side for side in sides if side in bank.phases]
    for side in sides:
        values = _scales_of(bank.phases.index(side), searched, bank, alone=True)
        if len(values) >= OPTIONS.least_windows:
            return _rests_on([_by_phase(side, values, 1.0)])
    if sides:
        return _unknown("no phase to calibrate on is certain in three windows")
    possible = []
    for number, phase in enumerate(bank.phases):
        values = _scales_of(number, searched, bank, alone=False)
        if len(values) >= OPTIONS.least_windows:
            possible.append(_by_phase(phase, values, 0.0))
    if not possible:
        return _unknown("no phase to calibrate on is seen in three windows")
    return _rests_on(_weighed(_with_similar(possible, searched, bank), windows, spectra.bin_invA, bank))


def _shown(phase: str, searched: Sequence[tuple[np.ndarray, np.ndarray]], bank: _PatternBank) -> int:
    """The pattern of a phase that most windows show best."""
    here = np.flatnonzero(bank.phase_index == bank.phases.index(phase))
    return int(here[np.bincount([int(np.argmax(score[here])) for score, _ in searched], minlength=len(here)).argmax()])


def _net(spots: np.ndarray) -> np.ndarray:
    """Basis (2, 2) of the net that spots (complex) lie on, also where most of it is dark."""
    short = np.concatenate([spots, (spots[:, None] - spots).ravel()])
    short = short[np.abs(short) > SPECTRUM_OPTIONS.same_place_invA]
    first = short[np.abs(short).argmin()]
    aside = short[np.abs((short * np.conj(first)).imag) > SPECTRUM_OPTIONS.least_cross * np.abs(short) * abs(first)]
    second = aside[np.abs(aside).argmin()]
    return np.array([[first.real, first.imag], [second.real, second.imag]])


def _on_net(spots: np.ndarray, basis: np.ndarray) -> bool:
    """Whether spots (complex) lie on the net of a basis."""
    index = np.stack([spots.real, spots.imag], axis=-1) @ np.linalg.inv(basis)
    off = np.linalg.norm((index - np.rint(index)) @ basis, axis=-1)
    return bool((off < SPECTRUM_OPTIONS.same_place_invA).all())


def _size_ratio(first: ZonePattern, second: ZonePattern) -> float | None:
    """How much larger the net of the second pattern is, where the two differ by size alone, turned or mirrored; None where by more.

    Which of its spots are bright is no ground to tell them apart: images are not kinematical.
    """
    bright = [p.spots[p.amplitude > SPECTRUM_OPTIONS.seed_amplitude] for p in (first, second)]
    strongest = first.spots[np.argmax(first.amplitude)]
    for spot in bright[1]:
        turn = spot / strongest
        if abs(math.log(abs(turn))) < 2 * OPTIONS.scale_tolerance:
            mirrored = spot / np.conj(strongest)
            for place in (lambda spots, turn=turn: turn * spots, lambda spots, turn=mirrored: turn * np.conj(spots)):
                if _on_net(place(bright[0]), _net(second.spots)) and _on_net(bright[1], _net(place(first.spots))):
                    return float(abs(turn))
    return None


def _with_similar(
    possible: Sequence[PixelScale], searched: Sequence[tuple[np.ndarray, np.ndarray]], bank: _PatternBank
) -> list[list[PixelScale]]:
    """The scales by phases in groups that no image tells apart: of patterns that differ by size alone, also those of other candidates."""
    groups: list[list[PixelScale]] = []
    seen = {one.phase: one for one in possible}
    for one in sorted(possible, key=lambda p: -p.n_windows):
        if any(one.phase == other.phase for group in groups for other in group):
            continue
        shown, group = bank.patterns[_shown(str(one.phase), searched, bank)], {one.phase: one}
        for pattern in bank.patterns:
            ratio = None if pattern.phase in group else _size_ratio(shown, pattern)
            if ratio is not None:
                group[pattern.phase] = seen.get(pattern.phase) or one._replace(phase=pattern.phase, scale=one.scale / ratio)
        alike = [p for p in group.values() if p.phase in seen or abs(p.scale - 1) < OPTIONS.widest]
        groups.append([p._replace(rivals=tuple(str(q.phase) for q in alike if q is not p)) for p in alike])
    return groups


def _scales_of(number: int, searched: Sequence[tuple[np.ndarray, np.ndarray]], bank: _PatternBank, *, alone: bool) -> np.ndarray:
    """The scales at which windows show a phase, by its number: those in which it alone is certain, or all that it explains."""
    values = []
    for score, turn in searched:
        of_phase = np.where(bank.phase_index == number, score, -np.inf)
        best = int(np.argmax(of_phase))
        if of_phase[best] > OPTIONS.certain_score and (not alone or bank.phase_posterior(score)[number] > OPTIONS.certain):
            values.append(abs(turn[best]))
    return np.array(values)


def _by_phase(phase: str, values: np.ndarray, probability: float) -> PixelScale:
    """The scale by a phase, from those of its windows."""
    scale = float(np.median(values))
    spread = 1.4826 * float(np.median(np.abs(values - scale)))
    error = math.hypot(1.25 * spread / math.sqrt(len(values)), OPTIONS.strained)  # a crystal may be strained by a thousandth
    return PixelScale(phase, scale, error, len(values), probability)


def _weighed(
    groups: Sequence[Sequence[PixelScale]], windows: Sequence[tuple[np.ndarray, np.ndarray]], bin_invA: float, bank: _PatternBank
) -> list[PixelScale]:
    """The scales with their probabilities, those of unlike phases that are all but the same as one, the most probable first."""
    search = lambda q, strength: bank.search(q, _sigma(q, bin_invA), strength, OPTIONS.strain_tolerance, OPTIONS.peak_threshold)
    evidence = lambda scale: float(np.mean([max(0.0, search(q / scale, strength)[0].max()) for q, strength in windows]))
    distinct: list[PixelScale] = []
    log_probability: list[float] = []
    for group in groups:
        of_group = max(evidence(one.scale) for one in group)  # intensities of a lattice image are no ground to choose by
        for one in group:
            if all(abs(one.scale - other.scale) > OPTIONS.same_scale or other.phase in one.rivals for other in distinct):
                distinct.append(one)
                off = (one.scale - 1) / SPECTRUM_OPTIONS.scale_spread[1]
                log_probability.append(of_group - 0.5 * (OPTIONS.freedom + 1) * math.log1p(off**2 / OPTIONS.freedom))
    chance = np.exp(np.array(log_probability) - max(log_probability))
    weighed = [one._replace(probability=float(p)) for one, p in zip(distinct, chance / chance.sum(), strict=True)]
    kept = sorted((p for p in weighed if p.probability > OPTIONS.least_probability), key=lambda p: -p.probability)
    total = sum(p.probability for p in kept)
    return [p._replace(probability=p.probability / total) for p in kept]


def _rests_on(scales: list[PixelScale]) -> dict[str, Any]:
    """The calibration by the scales that are possible."""
    best = scales[0]
    near = [p for p in scales if abs(p.scale - best.scale) <= OPTIONS.same_scale]
    spread = math.sqrt(sum(p.probability * (p.scale - best.scale) ** 2 for p in scales))
    anchor = " or ".join(str(p.phase) for p in near)
    error = math.hypot(spread, best.error)
    result = {"scale": best.scale, "scale_error": error, "anchor": anchor, "n_windows": best.n_windows, "scales": scales}
    if sum(p.probability for p in near) > OPTIONS.certain:
        return result
    likely = ", ".join(f"{p.phase} at {100 * (p.scale - 1):+.1f} % of the stated pixel ({p.probability:.2f})" for p in scales[:4])
    reason = f"phases explain the image alike at different sizes of the pixel, none of them known to be in it: {likely}"
    return result | {"anchor": None, "reason": reason}


def _unknown(reason: str) -> dict[str, Any]:
    """The calibration where no phase gives a scale: the pixel as stated, and what it may be."""
    spread = SPECTRUM_OPTIONS.scale_spread[1]
    chance = np.exp(-0.5 * np.square(OPTIONS.unknown))
    by_chance = zip(OPTIONS.unknown, chance / chance.sum(), strict=True)
    scales = sorted((PixelScale(None, 1 + spread * z, spread, 0, float(p)) for z, p in by_chance), key=lambda p: -p.probability)
    return {"scale": 1.0, "scale_error": None, "anchor": None, "n_windows": 0, "scales": scales, "reason": reason}
