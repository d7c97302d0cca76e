"""Scale, ellipse and distortion of a camera from patterns of known phases, how well they are known, and whether they can be trusted.

All phases are matched to the patterns at scales around the given one (`scale_sweep`) and at the starts that the rings suggest
(`emphase.ped.rings`). From the start with the most evidence in nats the symmetric 2 x 2 metric, which holds scale and ellipse, and where
the spots show them keystone and radial distortion (`emphase.ped.distortion`), are fitted to the spots that the matched crystals explain
(`refine_calibration`). Camera length and distortion from reflections of known spacing are the usual calibration of 4D-STEM (Savitzky et
al., Microsc. Microanal. 27 (2021) 712); here the sample is its own standard. The uncertainty is a bootstrap over crystals (Efron and
Tibshirani, An Introduction to the Bootstrap, 1993), because the patterns of one crystal share its errors. `fit_findings` checks the fit.

The rotation of the camera against the scan is not visible in diffraction alone and is left at zero.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from .distortion import fit_distortion, radius_px, recorded_places, undistorted_places
from .grains import misorientations_deg
from .rings import ring_starts
from .scan import Calibration
from .search import most_evidence, predicted_spots, search_phase
from .spacings import OPTIONS as SPACING_OPTIONS
from .spacings import LatticeParameter, against_the_others, lattice_parameters
from .spots import Spots, find_spots, undistorted_spots
from .templates import TemplateBank, _longest_g


@dataclass(frozen=True)
class RefinementOptions:
    """Tuning of the sweep, the fit and its checks."""

    sweep_step: float = 0.005  # of the scale: finer than what the place of a spot allows at `sweep_place_strain`
    sweep_place_strain: float = 0.01  # while the scale is only known to a step of the sweep and the ellipse not at all
    fit_place_strains: tuple[float, ...] = (0.02, 0.01, 0.004, 0.004)  # of the fits in turn: an ellipse of 2 % must be within reach
    undistorted_fits: int = 1  # of these are of the metric alone, before its spots are known to be those of the right reflections
    far_start: float = 1.25  # times the evidence near the given scale, and its share of what the clear spots could give, that a start
    # far from it or with an ellipse must have: wrong candidates gain some per cent by the freedom
    clear_distortion: float = 5.0  # standard deviations by which a distortion stands out, ...
    least_distortion: float = 0.001  # ... and the share of half the camera's width that it has there at least
    usual_distortion: float = 0.003  # standard deviation of what does not stand out: recorded cameras have 0.2 to 0.8 % of radial
    distortion_spots: int = 30  # pairs, twice as many numbers, for eleven parameters
    least_units: int = 6  # crystals that are drawn with replacement; of fewer, patterns are, and of fewer of these, spots
    same_crystal_deg: float = 3.0  # patterns whose orientations differ by less are of one crystal
    pattern_nats: float = 20.0  # evidence of a crystal whose spots are fitted; background alone stays below
    spot_nats: float = 8.0  # evidence of a spot that is fitted
    spot_reach: float = 1.5  # in spot sigmas: one predicted spot within it, and only one, makes a pair
    place_px: float = 0.15  # floor of a spot's place uncertainty, so that the brightest do not decide alone
    least_spots: int = 12  # pairs for six parameters
    least_patterns: int = 5  # patterns that the fit must rest on, or all where there are fewer
    most_residual_px: float = 0.8  # beyond, spots are not where the phases put them
    most_scale_sd: float = 0.003  # of the scale: spacings of related phases differ by 1 to 3 %
    far_scale: float = 0.035  # from the given scale: beyond, two phases must agree, as one alone fits another of its lattice
    most_phase_offset: float = 0.012  # between the scales that phases ask for: the spacings of related ones differ by as much
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
    n_spots, n_patterns, n_tried
        Spots that the metric is fitted to, the patterns that hold them, and the patterns that were tried.
    predicted, measured
        (n_spots, 2): g of these spots in 1/Å and their places from the direct beam in px, both (x, y).
    residuals_px
        (n_spots, 2) of the recorded places, (x, y).
    distortion_sd
        (5,) standard deviations of the distortion's coefficients, 0 of those that do not stand out.
    scale_by_phase
        For every phase with ten spots or more, ``ratio``: the scale from its spots alone over the common one, with its standard
        deviation ``sd`` and ``n_spots``.
    lattice_parameters
        Of every phase, those that its spots show, with the common scale.
    scale_sd_invA_per_px
        Standard deviation of the scale over resampled crystals, and what a fit of all distortions would change in it; None where nothing
        could be fitted.
    residual_px
        Robust standard deviation of one coordinate of the explained spots; None where nothing could be fitted.
    """

    sweep: list[tuple[float, float]]
    n_spots: int
    n_patterns: int
    n_tried: int
    predicted: np.ndarray
    measured: np.ndarray
    residuals_px: np.ndarray = field(default_factory=lambda: np.zeros((0, 2)))
    distortion_sd: np.ndarray = field(default_factory=lambda: np.zeros(5))
    scale_by_phase: dict[str, dict[str, float]] = field(default_factory=dict)
    lattice_parameters: list[LatticeParameter] = field(default_factory=list)
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
    """Predicted g (m, 2) and recorded places (m, 2) from the beam, both (x, y), the weight (m,) of each, its pattern and phase (m,).

    ``crystal`` (n,) is the number of the crystal of every pattern, or -1; ``hkl`` (m, 3) the reflection of each spot.
    """

    predicted: np.ndarray
    measured: np.ndarray
    weight: np.ndarray
    pattern: np.ndarray
    phase: np.ndarray
    crystal: np.ndarray
    hkl: np.ndarray


def _matched_pairs(recorded: Spots, calibration: Calibration, banks: Sequence[TemplateBank]) -> _Pairs:
    """The clear spots of all patterns that their best crystal, and only one of its reflections, explains."""
    spots = undistorted_spots(recorded, calibration)
    solved = [search_phase(spots, calibration, bank) for bank in banks]
    evidence = np.array([s[1] for s in solved])
    best = evidence.argmax(axis=0)
    reach = OPTIONS.spot_reach * calibration.spot_sigma_px
    undistorted = replace(calibration, distortion=np.zeros(5))
    rows = []
    used = np.flatnonzero(evidence.max(axis=0) > OPTIONS.pattern_nats)
    for i in used:
        k, centre = int(best[i]), spots.centre_px[i]
        place, _, hkl = predicted_spots(banks[k], solved[k][0][i], centre, undistorted, min_relative_intensity=0.02)
        for j in np.flatnonzero(spots.table[i, : spots.number[i], 4] > OPTIONS.spot_nats):
            y, x, counts, below, _ = spots.table[i, j].astype(float)
            near = np.flatnonzero(np.hypot(place[:, 0] - y, place[:, 1] - x) < reach)
            if len(near) == 1:
                g = np.linalg.solve(calibration.metric, place[near[0]][::-1] - centre[::-1])
                variance = OPTIONS.place_px**2 + calibration.spot_sigma_px**2 * counts / max(counts - below, 1.0) ** 2
                rows.append((*g, *(recorded.table[i, j, 1::-1] - centre[::-1]), 1 / variance, i, k, *hkl[near[0]]))
    table = np.array(rows, float).reshape(-1, 10)
    crystal = _crystals_of(best, np.array([solved[k][0][i] for i, k in enumerate(best)]), used, banks)
    return _Pairs(table[:, :2], table[:, 2:4], table[:, 4], table[:, 5].astype(int), table[:, 6].astype(int), crystal, table[:, 7:])


def _crystals_of(phase: np.ndarray, rotation: np.ndarray, used: np.ndarray, banks: Sequence[TemplateBank]) -> np.ndarray:
    """Number (n,) of the crystal of every used pattern, from its ``phase`` (n,) and ``rotation`` (n, 3, 3); -1 for the others."""
    number = np.full(len(phase), -1)
    leaders: list[int] = []
    for i in used:
        for k, j in enumerate(leaders):
            if phase[i] == phase[j] and number[i] < 0:
                off = misorientations_deg(rotation[i][None].astype(float), rotation[j][None].astype(float), banks[phase[i]].operators)
                number[i] = k if off[0] < OPTIONS.same_crystal_deg else -1
        if number[i] < 0:
            number[i] = len(leaders)
            leaders.append(i)
    return number


def _with_metric(calibration: Calibration, metric: np.ndarray, distortion: np.ndarray) -> Calibration:
    """The calibration with this metric, whose mean radius gives the scale and the rest the strain, and this distortion."""
    size = math.sqrt(np.linalg.det(metric))
    return replace(calibration, scale_invA_per_px=1 / size, strain=metric / size, distortion=distortion.copy())


def _refitted(
    calibration: Calibration, pairs: _Pairs, rows: np.ndarray | slice, used: np.ndarray, prior_sd: np.ndarray | None = None
) -> tuple[Calibration, np.ndarray]:
    """The calibration fitted to some of the pairs with the coefficients ``used`` (5,) of the distortion, and the errors (5,) of these."""
    metric, distortion, error = fit_distortion(
        calibration.metric, pairs.predicted[rows], pairs.measured[rows], pairs.weight[rows], radius_px(calibration), used, prior_sd
    )
    return _with_metric(calibration, metric, distortion), error


def _shown_distortion(calibration: Calibration, pairs: _Pairs) -> np.ndarray:
    """Which coefficients (5,) of the distortion stand out of their errors: keystone, centre and radial distortion each as a whole."""
    if len(pairs.weight) < OPTIONS.distortion_spots:
        return np.zeros(5, bool)
    fitted, error = _refitted(calibration, pairs, slice(None), np.ones(5, bool))
    shown = np.zeros(5, bool)
    for part in ([0, 1], [2, 3], [4]):
        value = fitted.distortion[part]
        clear = np.sqrt(np.mean((value / np.maximum(error[part], 1e-12)) ** 2)) > OPTIONS.clear_distortion
        shown[part] = clear and np.abs(value).max() > OPTIONS.least_distortion
    return shown


def _fitted(recorded: Spots, start: Calibration, banks: Sequence[TemplateBank]) -> tuple[Calibration, _Pairs, np.ndarray, np.ndarray]:
    """The calibration fitted to the explained spots, found anew for every fit and ever nearer to their places; the last pairs.

    And which coefficients (5,) of the distortion were fitted, and their errors (5,).
    """
    fitted, shown, error = start, np.zeros(5, bool), np.zeros(5)
    for turn, place_strain in enumerate(OPTIONS.fit_place_strains):
        pairs = _matched_pairs(recorded, replace(fitted, place_strain=place_strain), banks)
        if len(pairs.weight) < OPTIONS.least_spots:
            break
        shown = _shown_distortion(fitted, pairs) if turn >= OPTIONS.undistorted_fits else shown
        fitted, error = _refitted(fitted, pairs, slice(None), shown)
    return fitted, pairs, shown, error


def _best_start(
    recorded: Spots, calibration: Calibration, banks: Sequence[TemplateBank], factors: np.ndarray, progress: Any
) -> tuple[Calibration, np.ndarray]:
    """Where the fit starts, from the evidence (m,) at the scales near the given one and at the starts that rings suggest."""
    wide = replace(calibration, place_strain=OPTIONS.sweep_place_strain)
    evidence, _ = scale_sweep(recorded, wide, banks, factors, progress)
    best = replace(calibration, scale_invA_per_px=calibration.scale_invA_per_px * float(factors[evidence.argmax()]))
    reach_invA = _longest_g(banks)
    share_of = lambda value, start: value / max(float(most_evidence(recorded, start, reach_invA).sum()), 1.0)
    most = OPTIONS.far_start * float(evidence.max())
    most_share = OPTIONS.far_start * share_of(float(evidence.max()), replace(best, place_strain=OPTIONS.sweep_place_strain))
    for start in ring_starts(recorded, calibration, banks):
        start = replace(start, place_strain=OPTIONS.sweep_place_strain)
        here = float(scale_sweep(recorded, start, banks, np.ones(1))[0][0])
        share = share_of(here, start)
        if here > most and share > most_share:
            best, most, most_share = replace(start, place_strain=calibration.place_strain), here, share
    return best, evidence


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
    From the start with the most evidence the metric M and the distortion are fitted four times over: recorded place = distorted (M g) +
    shift, by least squares over the spots that the solutions explain, each with the inverse variance of its place as weight,
    1 / (0.15² + s² c / n²), for a spot of standard deviation s px, c counts and n net counts. The symmetric part of M (polar
    decomposition) is kept; the rotation is not distinguishable from a turn of the crystals.
    """
    rng = np.random.default_rng(seed)
    recorded = find_spots(patterns, centres, calibration)
    steps = round(search / OPTIONS.sweep_step)
    factors = 1 + OPTIONS.sweep_step * np.arange(-steps, steps + 1)
    start, evidence = _best_start(recorded, calibration, banks, factors, progress)
    refined, pairs, shown, error = _fitted(recorded, start, banks)
    fit = ScaleFit(
        sweep=list(zip((calibration.scale_invA_per_px * factors).tolist(), evidence.tolist(), strict=True)),
        n_spots=len(pairs.weight),
        n_patterns=len(np.unique(pairs.pattern)),
        n_tried=len(patterns),
        predicted=pairs.predicted,
        measured=pairs.measured,
    )
    if fit.n_spots < OPTIONS.least_spots:
        return calibration, fit
    off = pairs.measured - recorded_places((pairs.predicted @ refined.metric.T)[:, ::-1], np.zeros(2), refined)[:, ::-1]
    scales, lattices = _by_phase(pairs, refined, banks)
    return refined, replace(
        fit,
        residuals_px=off,
        distortion_sd=error,
        scale_by_phase=scales,
        lattice_parameters=lattices,
        scale_sd_invA_per_px=_scale_sd(pairs, refined, shown, rng),
        residual_px=1.4826 * float(np.median(np.abs(off - np.median(off, axis=0)))),
    )


def _scale_sd(pairs: _Pairs, calibration: Calibration, shown: np.ndarray, rng: np.random.Generator) -> float:
    """Standard deviation of the scale (1/Å per px): of crystals drawn with replacement, and what all distortions together would change.

    Where there are few crystals, patterns are drawn, and where there are few of these, spots.
    """
    units = (pairs.crystal[pairs.pattern], pairs.pattern, np.arange(len(pairs.pattern)))
    of_spot = next((unit for unit in units if len(np.unique(unit)) >= OPTIONS.least_units), units[-1])
    members = [np.flatnonzero(of_spot == k) for k in np.unique(of_spot)]
    drawn = []
    for _ in range(OPTIONS.resamplings):
        rows = np.concatenate([members[k] for k in rng.integers(0, len(members), len(members))])
        drawn.append(_refitted(calibration, pairs, rows, shown)[0].scale_invA_per_px)
    prior_sd = np.where(shown, np.inf, OPTIONS.usual_distortion)
    other = _refitted(calibration, pairs, slice(None), np.ones(5, bool), prior_sd)[0]
    return float(np.hypot(np.std(drawn), other.scale_invA_per_px - calibration.scale_invA_per_px))


def _by_phase(pairs: _Pairs, calibration: Calibration, banks: Sequence[TemplateBank]) -> tuple[dict[str, dict], list[LatticeParameter]]:
    """For each phase with ten spots or more, the scale from its spots alone over the common one, and its lattice parameters."""
    scales: dict[str, dict] = {}
    lattices: list[LatticeParameter] = []
    places = undistorted_places(pairs.measured[:, ::-1], np.zeros(2), calibration)[:, ::-1]
    for k, bank in enumerate(banks):
        here = pairs.phase == k
        if here.sum() < SPACING_OPTIONS.least_spots:
            continue
        model = pairs.predicted[here] @ calibration.metric.T
        stretch = np.sum(model * places[here], axis=1) / np.sum(model * model, axis=1)
        weight = pairs.weight[here] * np.sum(model * model, axis=1)
        middle = float(np.median(stretch))
        use = np.abs(stretch - middle) < 4 * 1.4826 * np.median(np.abs(stretch - middle)) + 1e-6
        ratio = float(np.average(stretch[use], weights=weight[use]))
        spread = float(np.sqrt(np.average((stretch[use] - ratio) ** 2, weights=weight[use]) / use.sum()))
        scales[bank.crystal.name] = {"ratio": 1 / ratio, "sd": spread, "n_spots": int(here.sum())}
        lattices += lattice_parameters(bank.crystal, pairs.hkl[here], stretch, weight)
    return scales, against_the_others(lattices)


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
    enough, and far from the given one only where two phases agree.
    """
    findings = []
    if fit.scale_sd_invA_per_px is None or fit.residual_px is None:
        findings.append(f"only {fit.n_spots} spots could be explained, {OPTIONS.least_spots} are needed: the given scale is kept unrefined")
    else:
        if fit.residual_px > OPTIONS.most_residual_px:
            findings.append(f"the explained spots miss their places by {fit.residual_px:.2f} px, more than {OPTIONS.most_residual_px} px")
        if fit.n_patterns < min(OPTIONS.least_patterns, fit.n_tried):
            findings.append(f"only {fit.n_patterns} patterns could be explained, {OPTIONS.least_patterns} are needed")
        if fit.scale_sd_invA_per_px > OPTIONS.most_scale_sd * given_scale:
            known, needed = 100 * fit.scale_sd_invA_per_px / given_scale, 100 * OPTIONS.most_scale_sd
            findings.append(f"the scale is known to {known:.2f} % only, {needed:.2g} % are needed")
    off = refined.scale_invA_per_px / given_scale - 1
    if abs(off) > OPTIONS.far_scale and len(agreeing_phases(fit)) < 2:
        findings.append(
            f"the spots put the scale at {refined.scale_invA_per_px:.5f} 1/Å per pixel, {100 * off:+.1f} % from the given one, by one "
            "phase alone: one of another size would fit as well; give that scale if it is right"
        )
    ratios = {name: alone["ratio"] for name, alone in fit.scale_by_phase.items() if abs(alone["ratio"] - 1) > 4 * alone["sd"]}
    if ratios and max(ratios.values()) - min(min(ratios.values()), 1) > OPTIONS.most_phase_offset:
        each = ", ".join(f"{name} {100 * (ratio - 1):+.1f} %" for name, ratio in ratios.items())
        findings.append(f"the phases do not agree on one scale ({each}): the lattice of one is not that of its structure file")
    return findings


def agreeing_phases(fit: ScaleFit) -> list[str]:
    """Names of the phases whose spots alone give the scale of all, within 0.6 %.

    Parameters
    ----------
    fit
        Of `refine_calibration`.
    """
    return [name for name, alone in fit.scale_by_phase.items() if abs(alone["ratio"] - 1) < OPTIONS.least_phase_offset]


def phase_notes(fit: ScaleFit) -> list[str]:
    """Which phases ask for another scale than the common one, from the fit of each phase's spots alone.

    Parameters
    ----------
    fit
        Of `refine_calibration`.

    Returns
    -------
    One sentence for every phase whose scale differs by more than 0.6 % and four standard deviations, and for every lattice parameter that
    does from its structure file.
    """
    lattices = [p.in_words for p in fit.lattice_parameters if p.differs]
    return lattices + [
        f"the spots of {phase} alone put the scale {100 * (alone['ratio'] - 1):+.2f} % from the common one: is its lattice that of the CIF?"
        for phase, alone in fit.scale_by_phase.items()
        if abs(alone["ratio"] - 1) > max(OPTIONS.least_phase_offset, 4 * alone["sd"])
    ]
