"""Scale and ellipse of a camera from patterns of known phases, how well they are known, and whether they can be trusted.

All phases are matched to the patterns at scales around the given one (`scale_sweep`); the scale with the most evidence in nats is the start
of a least-squares fit of the symmetric 2 x 2 metric, which holds scale and ellipse, to the spots that the matched crystals explain
(`refine_calibration`). Camera length and elliptical distortion from reflections of known spacing are the usual calibration of 4D-STEM
(Savitzky et al., Microsc. Microanal. 27 (2021) 712); here the sample is its own standard. The uncertainty is a bootstrap over patterns
(Efron and Tibshirani, An Introduction to the Bootstrap, 1993). `fit_findings` checks the fit.

The rotation of the camera against the scan is not visible in diffraction alone and is left at zero.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from .scan import Calibration
from .search import predicted_spots, search_phase
from .spots import Spots, find_spots
from .templates import TemplateBank


@dataclass(frozen=True)
class RefinementOptions:
    """Tuning of the sweep, the fit and its checks."""

    sweep_step: float = 0.005  # of the scale: finer than what the place of a spot allows at `sweep_place_strain`
    sweep_place_strain: float = 0.01  # while the scale is only known to a step of the sweep and the ellipse not at all
    fit_place_strains: tuple[float, ...] = (0.02, 0.01, 0.004, 0.004)  # of the fits in turn: an ellipse of 2 % must be within reach
    pattern_nats: float = 20.0  # evidence of a crystal whose spots are fitted; background alone stays below
    spot_nats: float = 8.0  # evidence of a spot that is fitted
    spot_reach: float = 1.5  # in spot sigmas: one predicted spot within it, and only one, makes a pair
    place_px: float = 0.15  # floor of a spot's place uncertainty, so that the brightest do not decide alone
    least_spots: int = 12  # pairs for six parameters
    least_patterns: int = 5  # patterns that the fit must rest on
    most_residual_px: float = 0.8  # beyond, spots are not where the phases put them
    most_scale_sd: float = 0.003  # of the scale: spacings of related phases differ by 1 to 3 %
    most_ellipticity: float = 0.03  # more than a projector lens makes
    least_phase_offset: float = 0.006  # of the scale: the spacings of one phase alone are off by this much before it is noted
    resamplings: int = 100  # of the patterns, for the scale's standard deviation to 7 %


OPTIONS = RefinementOptions()


@dataclass(frozen=True)
class ScaleFit:
    """What `refine_calibration` found besides the calibration.

    Attributes
    ----------
    sweep
        Scales tried (1/Å per pixel) with the evidence (nats) of all patterns at each.
    n_spots, n_patterns
        Spots that the metric is fitted to, and the patterns that hold them.
    predicted, measured
        (n_spots, 2): g of these spots in 1/Å and their places from the direct beam in px, both (x, y).
    scale_by_phase
        For every phase with ten spots or more, ``ratio``: the scale from its spots alone over the common one, with its standard
        deviation ``sd`` and ``n_spots``.
    scale_sd_invA_per_px
        Standard deviation of the scale over resampled patterns; None where nothing could be fitted.
    residual_px
        Robust standard deviation of one coordinate of the explained spots; None where nothing could be fitted.
    """

    sweep: list[tuple[float, float]]
    n_spots: int
    n_patterns: int
    predicted: np.ndarray
    measured: np.ndarray
    scale_by_phase: dict[str, dict[str, float]] = field(default_factory=dict)
    scale_sd_invA_per_px: float | None = None
    residual_px: float | None = None


def scale_sweep(
    spots: Spots, calibration: Calibration, banks: Sequence[TemplateBank], factors: np.ndarray, progress: Any = None
) -> tuple[np.ndarray, np.ndarray]:
    """Evidence of all patterns, and the phase of each, at a range of scales.

    Parameters
    ----------
    spots
        Of n patterns.
    calibration
        Its scale is multiplied by each factor.
    banks
        Of the candidate phases.
    factors
        (m,) to try.
    progress
        Wraps the factors while they are tried, as `tqdm.tqdm` does.

    Returns
    -------
    evidence
        (m,) in nats, of every pattern's best phase, summed.
    winner
        (m, n) number of the bank that wins in each pattern.
    """
    evidence, winner = [], []
    for factor in progress(factors) if progress else factors:
        trial = replace(calibration, scale_invA_per_px=calibration.scale_invA_per_px * factor)
        of_phases = np.array([search_phase(spots, trial, bank)[1] for bank in banks])
        evidence.append(float(of_phases.max(axis=0).sum()))
        winner.append(of_phases.argmax(axis=0))
    return np.array(evidence), np.array(winner)


@dataclass(frozen=True)
class _Pairs:
    """Predicted g (m, 2) and measured positions (m, 2) from the beam, both (x, y), the weight (m,) of each, its pattern and phase (m,)."""

    predicted: np.ndarray
    measured: np.ndarray
    weight: np.ndarray
    pattern: np.ndarray
    phase: np.ndarray


def _matched_pairs(spots: Spots, calibration: Calibration, banks: Sequence[TemplateBank]) -> _Pairs:
    """The clear spots of all patterns that their best crystal, and only one of its reflections, explains."""
    solved = [search_phase(spots, calibration, bank) for bank in banks]
    evidence = np.array([s[1] for s in solved])
    best = evidence.argmax(axis=0)
    reach = OPTIONS.spot_reach * calibration.spot_sigma_px
    rows = []
    for i in np.flatnonzero(evidence.max(axis=0) > OPTIONS.pattern_nats):
        k, centre = int(best[i]), spots.centre_px[i]
        place, _, _ = predicted_spots(banks[k], solved[k][0][i], centre, calibration, min_relative_intensity=0.02)
        clear = spots.table[i, : spots.number[i]]
        for y, x, counts, below, _ in clear[clear[:, 4] > OPTIONS.spot_nats].astype(float):
            near = np.flatnonzero(np.hypot(place[:, 0] - y, place[:, 1] - x) < reach)
            if len(near) == 1:
                g = np.linalg.solve(calibration.metric, place[near[0]][::-1] - centre[::-1])
                variance = OPTIONS.place_px**2 + calibration.spot_sigma_px**2 * counts / max(counts - below, 1.0) ** 2
                rows.append((*g, x - centre[1], y - centre[0], 1 / variance, i, k))
    table = np.array(rows, float).reshape(-1, 7)
    return _Pairs(table[:, :2], table[:, 2:4], table[:, 4], table[:, 5].astype(int), table[:, 6].astype(int))


def _metric_from(predicted: np.ndarray, measured: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """The symmetric (2, 2) matrix that takes g to pixels best, outliers cut; a common rotation and a shift are taken out.

    Cutting outliers at three robust standard deviations, not `scipy.optimize.least_squares` with a soft loss: each round is linear,
    and a spot of another crystal gets no weight at all.
    """
    design = np.column_stack([predicted, np.ones(len(predicted))])
    use = np.ones(len(predicted), bool)
    for _ in range(5):
        root = np.sqrt(weight[use])[:, None]
        matrix = np.linalg.lstsq(design[use] * root, measured[use] * root, rcond=None)[0]
        off = np.linalg.norm(measured - design @ matrix, axis=1)
        use = off < 3 * max(1.4826 * np.median(off[use]), 0.1)
    _, s, vt = np.linalg.svd(matrix[:2].T)
    return vt.T @ np.diag(s) @ vt


def _with_metric(calibration: Calibration, metric: np.ndarray) -> Calibration:
    """The calibration with this metric: its mean radius gives the scale, the rest the strain."""
    size = math.sqrt(np.linalg.det(metric))
    return replace(calibration, scale_invA_per_px=1 / size, strain=metric / size)


def _fitted(spots: Spots, start: Calibration, banks: Sequence[TemplateBank]) -> tuple[Calibration, _Pairs]:
    """The calibration fitted to the explained spots, found anew for every fit and ever nearer to their places; and the last pairs."""
    fitted = start
    for place_strain in OPTIONS.fit_place_strains:
        pairs = _matched_pairs(spots, replace(fitted, place_strain=place_strain), banks)
        if len(pairs.weight) < OPTIONS.least_spots:
            break
        fitted = _with_metric(fitted, _metric_from(pairs.predicted, pairs.measured, pairs.weight))
    return fitted, pairs


def refine_calibration(
    patterns: np.ndarray,
    centres: np.ndarray,
    calibration: Calibration,
    banks: Sequence[TemplateBank],
    *,
    search: float = 0.03,
    seed: int = 1,
    progress: Any = None,
) -> tuple[Calibration, ScaleFit]:
    """Scale and ellipse of a camera from patterns of known phases.

    Parameters
    ----------
    patterns
        (n, ky, kx), with clear spots.
    centres
        (n, 2) direct beams, (y, x) in px.
    calibration
        To start from.
    banks
        Of the candidate phases.
    search
        Scales within ± this share of the given one are tried, in steps of 0.5 %.
    seed
        Of the resampling.
    progress
        Wraps the scales while they are tried, as `tqdm.tqdm` does.

    Returns
    -------
    The calibration with the fitted scale and strain, or as it came where fewer than twelve spots are explained; and the `ScaleFit`.

    Notes
    -----
    From the scale with the most evidence the metric M is fitted four times over: measured place = M g + shift, by least squares over the
    spots that the solutions explain, each with the inverse variance of its place as weight, 1 / (0.15² + s² c / n²), for a spot of
    standard deviation s px, c counts and n net counts. The symmetric part of M (polar decomposition) is kept; the rotation is not
    distinguishable from a turn of the crystals. The uncertainty is the spread over resampled patterns.
    """
    rng = np.random.default_rng(seed)
    spots = find_spots(patterns, centres, calibration)
    steps = round(search / OPTIONS.sweep_step)
    factors = 1 + OPTIONS.sweep_step * np.arange(-steps, steps + 1)
    evidence, _ = scale_sweep(spots, replace(calibration, place_strain=OPTIONS.sweep_place_strain), banks, factors, progress)
    best = replace(calibration, scale_invA_per_px=calibration.scale_invA_per_px * float(factors[evidence.argmax()]))
    refined, pairs = _fitted(spots, best, banks)
    fit = ScaleFit(
        sweep=list(zip((calibration.scale_invA_per_px * factors).tolist(), evidence.tolist(), strict=True)),
        n_spots=len(pairs.weight),
        n_patterns=len(np.unique(pairs.pattern)),
        predicted=pairs.predicted,
        measured=pairs.measured,
    )
    if fit.n_spots < OPTIONS.least_spots:
        return calibration, fit
    off = pairs.measured - pairs.predicted @ refined.metric.T
    return refined, replace(
        fit,
        scale_by_phase=_scale_by_phase(pairs, refined, [b.crystal.name for b in banks]),
        scale_sd_invA_per_px=float(np.std(_resampled_scales(pairs, refined, rng))),
        residual_px=1.4826 * float(np.median(np.abs(off - np.median(off, axis=0)))),
    )


def _resampled_scales(pairs: _Pairs, calibration: Calibration, rng: np.random.Generator) -> list[float]:
    """Scale (1/Å per px) from patterns drawn with replacement."""
    members = [np.flatnonzero(pairs.pattern == i) for i in np.unique(pairs.pattern)]
    drawn = []
    for _ in range(OPTIONS.resamplings):
        rows = np.concatenate([members[i] for i in rng.integers(0, len(members), len(members))])
        metric = _metric_from(pairs.predicted[rows], pairs.measured[rows], pairs.weight[rows])
        drawn.append(_with_metric(calibration, metric).scale_invA_per_px)
    return drawn


def _scale_by_phase(pairs: _Pairs, calibration: Calibration, names: list[str]) -> dict[str, dict[str, float]]:
    """For each phase with ten spots or more, the scale from its spots alone over the common one (ratio, sd, spots)."""
    found = {}
    for k, name in enumerate(names):
        here = pairs.phase == k
        if here.sum() < 10:
            continue
        model = pairs.predicted[here] @ calibration.metric.T
        stretch = np.sum(model * pairs.measured[here], axis=1) / np.sum(model * model, axis=1)
        weight = pairs.weight[here] * np.sum(model * model, axis=1)
        middle = float(np.median(stretch))
        use = np.abs(stretch - middle) < 4 * 1.4826 * np.median(np.abs(stretch - middle)) + 1e-6
        ratio = float(np.average(stretch[use], weights=weight[use]))
        spread = float(np.sqrt(np.average((stretch[use] - ratio) ** 2, weights=weight[use]) / use.sum()))
        found[name] = {"ratio": 1 / ratio, "sd": spread, "n_spots": int(here.sum())}
    return found


def fit_findings(fit: ScaleFit, refined: Calibration, given_scale: float) -> list[str]:
    """Why a fitted scale cannot be trusted, from its spots, residual, uncertainty, sweep and ellipse.

    Parameters
    ----------
    fit, refined
        Of `refine_calibration`.
    given_scale
        The scale that it started from, 1/Å per pixel.

    Returns
    -------
    One sentence for every check that fails: enough explained spots in enough patterns, a small residual, a scale that is known well
    enough, a maximum of the evidence inside the sweep, a round ring.
    """
    findings = []
    if fit.scale_sd_invA_per_px is None or fit.residual_px is None:
        findings.append(f"only {fit.n_spots} spots could be explained, {OPTIONS.least_spots} are needed: the given scale is kept unrefined")
    else:
        if fit.residual_px > OPTIONS.most_residual_px:
            findings.append(f"the explained spots miss their places by {fit.residual_px:.2f} px, more than {OPTIONS.most_residual_px} px")
        if fit.n_patterns < OPTIONS.least_patterns:
            findings.append(f"only {fit.n_patterns} patterns could be explained, {OPTIONS.least_patterns} are needed")
        if fit.scale_sd_invA_per_px > OPTIONS.most_scale_sd * given_scale:
            known, needed = 100 * fit.scale_sd_invA_per_px / given_scale, 100 * OPTIONS.most_scale_sd
            findings.append(f"the scale is known to {known:.2f} % only, {needed:.2g} % are needed")
    scales, evidence = np.array(fit.sweep).T
    best = int(np.argmax(evidence))
    if len(scales) > 1 and best in (0, len(scales) - 1):
        findings.append(f"the best scale lies at the edge of the search, {scales[best]:.5f} 1/Å per pixel")
    if refined.ellipticity > OPTIONS.most_ellipticity:
        ellipticity, most = 100 * refined.ellipticity, 100 * OPTIONS.most_ellipticity
        findings.append(f"an ellipticity of {ellipticity:.1f} % is more than a projector lens makes, {most:.0f} %")
    return findings


def phase_notes(fit: ScaleFit) -> list[str]:
    """Which phases ask for another scale than the common one, from the fit of each phase's spots alone.

    Parameters
    ----------
    fit
        Of `refine_calibration`.

    Returns
    -------
    One sentence for every phase whose scale differs by more than 0.6 % and four standard deviations.
    """
    return [
        f"the spots of {phase} alone put the scale {100 * (alone['ratio'] - 1):+.2f} % from the common one: is its lattice that of the CIF?"
        for phase, alone in fit.scale_by_phase.items()
        if abs(alone["ratio"] - 1) > max(OPTIONS.least_phase_offset, 4 * alone["sd"])
    ]
