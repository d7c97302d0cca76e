"""The scale of a camera where none is given, from the spots of patterns and the phases that they may show.

The lengths of all spots have ratios, and the spots of one pattern angles, that are those of a lattice at one scale only, or at few: a
cubic net repeats itself √2 larger in part. So scales are proposed by the rings of all phases (the likelihood of lengths of
`emphase.ped.rings`, here over the whole range in which a camera shows reflections), tried by the evidence of crystals matched loosely at
each, and the best of them fitted with scale, ellipse and distortion. Then spots must lie in their places: at the right scale the fit
finds more evidence than the loose match, at a wrong one less. What the next best scale has of the support of the best says how sure the
answer is. The absolute size comes from the structure files alone: the scale is as right as a lattice that is among the candidates, and
one cubic phase fits any other of its lattice at another scale.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

from ..errors import EmphaseError
from .refinement import refine_calibration
from .rings import OPTIONS as RING_OPTIONS
from .rings import _ring_likelihood, clear_spots
from .scan import OPTIONS as SCAN_OPTIONS
from .scan import Calibration, reach_on_camera
from .search import chance_evidence, search_phase
from .spots import Spots, find_spots
from .templates import TemplateBank, _longest_g


@dataclass(frozen=True)
class ScaleOptions:
    """Tuning numbers of the search over all scales."""

    least_edge_invA: float = 0.5  # the nearest edge of a camera on which a few reflections of any crystal are seen ...
    most_edge_invA: float = 4.0  # ... and beyond what spots reach
    tried: int = 24  # scales proposed by rings that are matched
    apart: float = 0.015  # proposals nearer than this in log scale are one
    place_strain: float = 0.02  # with which they are matched: a proposal is off by half their distance, and a camera by an ellipse
    fitted: int = 8  # of these, those with the most evidence are fitted, ...
    fit_search: float = 0.02  # ... from scales this far about them
    reach_step_invA: float = 0.2  # to which the reach of a camera is rounded up, so that few banks are made
    least_nats: float = 4.0  # support of a pattern, the mean, below which none of them may be a crystal of the candidates
    chance_patterns: int = 48  # of background alone, for what each phase reaches by chance
    next_apart: float = 0.05  # scales nearer than this to the best are the same answer
    most_next_share: float = 0.7  # of the best support: right phases have up to two thirds at a wrong scale, wrong ones nearly as much


OPTIONS = ScaleOptions()


class FoundScale(NamedTuple):
    """A scale that was found from spots and structures alone.

    Attributes
    ----------
    scale_invA_per_px
        The best.
    support_nats
        Of all patterns together at the best scale: evidence above chance.
    next_scale_invA_per_px, next_support_share
        The next best that is another answer, and what it has of the support.
    """

    scale_invA_per_px: float
    support_nats: float
    next_scale_invA_per_px: float
    next_support_share: float


def find_scale(
    images: np.ndarray, centres_px: np.ndarray, calibration: Calibration, banks_up_to: Callable[[float], list[TemplateBank]]
) -> FoundScale:
    """The scale at which the phases explain the spots of patterns best, over all scales of electron diffraction.

    Parameters
    ----------
    images
        (n, ky, kx) patterns with clear spots, two dozen or more.
    centres_px
        (n, 2) direct beams, (y, x).
    calibration
        Mask, spot size, gain and offset; its scale is not used.
    banks_up_to
        Gives the banks of the candidate phases with reflections up to a length, 1/Å.

    Returns
    -------
    The `FoundScale`.

    Raises
    ------
    EmphaseError
        Where no pattern has a clear spot, where even the best scale has no support, and where the next best has more than 0.7 of it.

    Notes
    -----
    The support of a scale is Σ over patterns of the evidence of the best crystal of any phase above what that phase reaches by chance, at
    least 0, with the calibration fitted from there.
    """
    spots, banks = find_spots(images, centres_px, calibration), banks_up_to(SCAN_OPTIONS.most_g_invA)
    proposed = _proposed(spots, calibration, banks)
    if not len(proposed):
        raise EmphaseError("scale_invA_per_px: not given, and the patterns hold no clear spots that show it; expected a scale")
    likeliest = proposed[np.argsort([-_evidence(spots, calibration, banks, scale) for scale in proposed], kind="stable")[: OPTIONS.fitted]]
    starts = [replace(calibration, scale_invA_per_px=float(scale)) for scale in likeliest]
    reach = [OPTIONS.reach_step_invA * math.ceil(reach_on_camera(start) / OPTIONS.reach_step_invA) for start in starts]
    reaching = {reach_invA: banks_up_to(reach_invA) for reach_invA in set(reach)}
    fitted = [_fitted(images, centres_px, start, reaching[reach_invA]) for start, reach_invA in zip(starts, reach, strict=True)]
    scales, support = (np.array(values) for values in zip(*fitted, strict=True))
    best = int(np.argmax(support))
    others = np.where(np.abs(np.log(scales / scales[best])) > OPTIONS.next_apart, support, 0.0)
    runner = int(np.argmax(others))
    share = float(others[runner] / support[best]) if support[best] > 0 else 1.0
    if support[best] < OPTIONS.least_nats * len(images) or share > OPTIONS.most_next_share:
        names = ", ".join(bank.crystal.name for bank in banks)
        raise EmphaseError(
            f"scale_invA_per_px: not given, and the patterns do not show it: {scales[best]:.5f} explains them best, with crystals of "
            f"{names}, {scales[runner]:.5f} {share:.0%} as well; expected a scale, or the phases that are in the scan"
        )
    return FoundScale(float(scales[best]), float(support[best]), float(scales[runner]), share)


def _fitted(images: np.ndarray, centres_px: np.ndarray, start: Calibration, banks: Sequence[TemplateBank]) -> tuple[float, float]:
    """The scale that is fitted from a start, and its support in nats."""
    refined, _ = refine_calibration(images, centres_px, start, banks, search=OPTIONS.fit_search)
    spots = find_spots(images, centres_px, refined)
    chance = chance_evidence(spots, refined, list(banks), images.shape[1:], n=OPTIONS.chance_patterns)
    above = [search_phase(spots, refined, bank)[1] - by_chance for bank, by_chance in zip(banks, chance, strict=True)]
    return refined.scale_invA_per_px, float(np.maximum(np.max(above, axis=0), 0).sum())


def scale_finding(agreeing: Sequence[str]) -> list[str]:
    """Why a scale that was found cannot be trusted, from the phases whose own spots agree on it.

    Parameters
    ----------
    agreeing
        Their names (`emphase.ped.refinement.agreeing_phases`).

    Returns
    -------
    One sentence where fewer than two phases show the scale, else none.
    """
    if len(agreeing) > 1:
        return []
    return [
        f"no scale is given, and {agreeing[0] if agreeing else 'no phase'} alone shows the one that was found: a crystal of another size "
        "would fit as well at another scale; give it"
    ]


def _evidence(spots: Spots, calibration: Calibration, banks: Sequence[TemplateBank], scale_invA_per_px: float) -> float:
    """Nats of all patterns together at a scale."""
    trial = replace(calibration, scale_invA_per_px=scale_invA_per_px, place_strain=OPTIONS.place_strain)
    best = np.max([search_phase(spots, trial, bank)[1] for bank in banks], axis=0)
    return float(np.maximum(best, 0).sum())


def _proposed(spots: Spots, calibration: Calibration, banks: Sequence[TemplateBank]) -> np.ndarray:
    """Scales (m,) in 1/Å per px at which the lengths of the spots gather on rings, the likeliest first."""
    off, weight = clear_spots(spots)
    if not len(off):
        return np.zeros(0)
    step = RING_OPTIONS.step
    edge_px = min(calibration.mask.shape) / 2
    length = np.log(np.maximum(np.linalg.norm(off, axis=1), 1.0))
    edges_px = np.arange(length.min() - 2 * step, length.max() + 2 * step, step)
    number, _ = np.histogram(length, edges_px, weights=weight)
    edges_g = np.arange(math.log(0.02), math.log(_longest_g(banks)) + math.log(8.0), step)
    gathered = _ring_likelihood(banks, edges_g)
    score = np.correlate(gathered, number, mode="valid")  # at each k: the spots shifted so that edges_px[0] lies on edges_g[k]
    log_scale = edges_g[: len(score)] - edges_px[0]
    known = (log_scale > math.log(OPTIONS.least_edge_invA / edge_px)) & (log_scale < math.log(OPTIONS.most_edge_invA / edge_px))
    kept: list[float] = []
    for k in np.argsort(-np.where(known, score, -np.inf), kind="stable")[: int(known.sum())]:
        if all(abs(log_scale[k] - other) > OPTIONS.apart for other in kept):
            kept.append(float(log_scale[k]))
        if len(kept) == OPTIONS.tried:
            break
    return np.exp(kept)
