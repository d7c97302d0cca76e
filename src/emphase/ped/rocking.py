"""The width of the rocking curve and the angle of the precession, from the patterns themselves.

Both say how far from its Bragg condition a reflection still shines: the precession sweeps every reflection through a range of excitation
errors of its length times the angle, and thickness and bending blur that range. At rest the curve is a Lorentzian (`emphase.ped.templates`;
precession: Vincent and Midgley, Ultramicroscopy 53 (1994) 271). The length of a reflection tells one from the other, so that a scan with
patterns of many spots fixes both. They are varied together in steps of a factor until no step explains the patterns better; an end of the
range is no answer. The error of the angle is a bootstrap over crystals (Efron and Tibshirani,
An Introduction to the Bootstrap, 1993).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ..crystals import Crystal
from .calibration import Optics, phase_banks
from .refinement import _crystals_of
from .scan import Calibration
from .search import search_phase
from .spots import Spots


@dataclass(frozen=True)
class RockingOptions:
    """Tuning numbers of the search."""

    width_factor: float = 2.0  # between widths: evidence changes little over less
    angle_factor: float = math.sqrt(2)
    limits: tuple[tuple[float, float], ...] = ((0.05, 5.0), (1e-4, 0.03))  # of angles in degrees; of widths: of 3 µm, and of a few cells
    first_angle_deg: float = 0.5  # to start from where none is given, ...
    first_width_step: int = -1  # ... with half the width, which does not make up for a wrong angle
    pattern_nats: float = 20.0  # evidence of a pattern that says something; background alone stays below
    resamples: int = 200
    least_crystals: int = 4  # of fewer, the angle is not determined
    most_sd_log: float = 0.25  # of the angle by resampling, beyond which it is not determined
    model_sd_log: float = 0.2  # of the angle by what intensities are not: over scans of six structures by two-beam theory, 0.17
    sure_sds: float = 3.0  # of both, from the given angle, to contradict it: a factor of two, as of a cone's half angle and its whole


OPTIONS = RockingOptions()


class Rocking(NamedTuple):
    """What the patterns say of rocking curve and precession.

    Attributes
    ----------
    excitation_width_invA
        Half width of the rocking curve at rest, 1/Å, of those tried the best at the precession angle as given.
    widths
        Rows of a half width tried at the given angle and the evidence of all patterns in nats.
    precession_deg, precession_sd_deg
        Half angle of the cone, degrees, and its standard deviation, by resampling of crystals and by what the model of intensities
        leaves; None where the patterns do not determine it.
    angles
        Rows of an angle tried and the evidence of all patterns in nats.
    """

    excitation_width_invA: float
    widths: list[tuple[float, float]]
    precession_deg: float | None
    precession_sd_deg: float | None
    angles: list[tuple[float, float]]

    def contradicts(self, given_deg: float) -> bool:
        """Whether the angle by the patterns is another than the given one, beyond its error."""
        if self.precession_deg is None or self.precession_sd_deg is None:
            return False
        off = abs(math.log(self.precession_deg / max(given_deg, OPTIONS.limits[0][0])))
        return off > OPTIONS.sure_sds * self.precession_sd_deg / self.precession_deg


def estimate(
    spots: Spots,
    calibration: Calibration,
    crystals: Sequence[Crystal],
    optics: Optics,
    *,
    seed: int = 1,
    cache: str | Path | None = None,
) -> Rocking:
    """The width of the rocking curve and the precession angle with which the crystals explain the patterns best.

    Parameters
    ----------
    spots
        Of n patterns, spread over the scan.
    calibration
        Of the scan.
    crystals
        Candidate phases.
    optics
        Energy, the precession angle as given (0: none is), and the reach of the templates.
    seed
        Of the resampling.
    cache
        Folder that keeps the template banks; None: they are made anew.

    Notes
    -----
    The evidence of a pattern is that of its best crystal alone. It is interpolated by a parabola in the logarithm of the angle.
    """

    def evidence(angle: float, width: float) -> np.ndarray:
        banks = phase_banks(crystals, optics._replace(precession_deg=angle, excitation_width_invA=width), cache)
        return np.max([search_phase(spots, calibration, bank)[1] for bank in banks], axis=0)

    given, width = optics.precession_deg, optics.excitation_width_invA
    as_given = _Climb(lambda _, w: evidence(given, w), OPTIONS.first_angle_deg, width)
    j = as_given.climb((0, 0), _ALONG_WIDTH)[1]
    grid, start = _Climb(evidence, given or OPTIONS.first_angle_deg, width), (0, OPTIONS.first_width_step)
    if given > 0:
        grid.known, start = dict(as_given.known), (0, j)
    best = grid.climb(start, _ALL_WAYS)
    angle, width = grid.pair(*best)
    crystal = _crystal_numbers(spots, calibration, crystals, optics._replace(precession_deg=angle, excitation_width_invA=width), cache)
    of_angle = grid.angles(best[1])
    found, sd = _angle(np.log([a for a, _ in of_angle]), np.array([each for _, each in of_angle]), crystal, seed)
    widths = [(as_given.pair(*at)[1], float(as_given.known[at].sum())) for at in sorted(as_given.known)]
    return Rocking(as_given.pair(0, j)[1], widths, found, sd, [(a, float(each.sum())) for a, each in of_angle])


_ALONG_WIDTH = ((0, 1), (0, -1))
#: Also across, as a broader curve makes up for a small angle
_ALL_WAYS = (*_ALONG_WIDTH, (1, 0), (-1, 0), (1, -1), (-1, 1))


class _Climb:
    """A climb over pairs of an angle (degrees) and a width (1/Å), in steps of their factors from a first one, to the most evidence.

    ``known`` holds the evidence (n,) of the patterns at every pair tried, by the numbers of the steps.
    """

    def __init__(self, evidence: Callable[[float, float], np.ndarray], angle: float, width: float):
        self.evidence, self.first = evidence, (angle, width)
        self.known: dict[tuple[int, int], np.ndarray] = {}

    def pair(self, i: int, j: int) -> tuple[float, float]:
        """The angle after i steps and the width after j."""
        return self.first[0] * OPTIONS.angle_factor**i, self.first[1] * OPTIONS.width_factor**j

    def climb(self, at: tuple[int, int], moves: Sequence[tuple[int, int]]) -> tuple[int, int]:
        """From a pair to one that no move makes better."""
        self._try(*at)
        while True:
            for di, dj in moves:
                self._try(at[0] + di, at[1] + dj)
            best = max(self.known, key=lambda pair: self.known[pair].sum())
            if best == at:
                return best
            at = best

    def angles(self, j: int) -> list[tuple[float, np.ndarray]]:
        """The angles tried with the width after j steps, and those between them, which a climb across leaves out."""
        tried = [i for i, of_width in self.known if of_width == j]
        for i in range(min(tried), max(tried) + 1):
            self._try(i, j)
        return [(self.pair(i, j)[0], self.known[i, j]) for i in range(min(tried), max(tried) + 1)]

    def _try(self, i: int, j: int) -> None:
        within = (least <= value <= most for value, (least, most) in zip(self.pair(i, j), OPTIONS.limits, strict=True))
        if (i, j) not in self.known and all(within):
            self.known[i, j] = self.evidence(*self.pair(i, j))


def _crystal_numbers(
    spots: Spots, calibration: Calibration, crystals: Sequence[Crystal], optics: Optics, cache: str | Path | None
) -> np.ndarray:
    """The number of the crystal of every pattern (n,); patterns that belong to none have one each."""
    banks = phase_banks(crystals, optics, cache)
    solved = [search_phase(spots, calibration, bank) for bank in banks]
    value = np.array([s[1] for s in solved])
    phase = value.argmax(axis=0)
    rotation = np.array([solved[k][0][i] for i, k in enumerate(phase)])
    number = _crystals_of(phase, rotation, np.flatnonzero(value.max(axis=0) > OPTIONS.pattern_nats), banks)
    return np.where(number >= 0, number, len(number) + np.arange(len(number)))


def _vertex(log_value: np.ndarray, total: np.ndarray) -> float:
    """The place of the maximum of values (m,), by the parabola through the best and its neighbours; that of the best at an end."""
    best = int(total.argmax())
    if not 0 < best < len(total) - 1:
        return float(log_value[best])
    before, here, after = total[best - 1 : best + 2]
    return float(log_value[best] + (log_value[1] - log_value[0]) * (before - after) / (2 * (before - 2 * here + after)))


def _angle(log_angle: np.ndarray, evidence: np.ndarray, crystal: np.ndarray, seed: int) -> tuple[float | None, float | None]:
    """The angle in degrees and its standard deviation, from evidence (m, n) of patterns of crystals (n,); None where not determined."""
    total, rng = evidence.sum(axis=1), np.random.default_rng(seed)
    units, unit = np.unique(crystal, return_inverse=True)
    by_crystal = np.array([np.bincount(unit, each, len(units)) for each in evidence])
    drawn = rng.multinomial(len(units), np.full(len(units), 1 / len(units)), OPTIONS.resamples)
    sd = float(np.std([_vertex(log_angle, by_crystal @ counts) for counts in drawn]))
    crystals = np.count_nonzero(units < len(crystal))
    if not 0 < total.argmax() < len(total) - 1 or sd > OPTIONS.most_sd_log or crystals < OPTIONS.least_crystals:
        return None, None
    angle = math.exp(_vertex(log_angle, total))
    return angle, math.hypot(sd, OPTIONS.model_sd_log) * angle
