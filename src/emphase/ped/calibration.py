"""Calibration of a PED scan from its own patterns: detector, direct beam, spot size, scale and ellipse of the camera.

The phases in a scan have known spacings, so the scan calibrates itself. `calibrate` is the whole chain; each of its steps can be used
alone:

1. mean and variance over the scan give the hot and dead pixels, the noise gives gain and offset of the detector, and the centroid of
   the direct beam in every pattern, smoothed over the scan, gives the descan (`emphase.ped.scan`);
2. patterns with clear spots are taken from all over the scan (`spread_patterns`), and their mean spot gives the spot size (`spot_size`);
3. all phases are matched to these patterns at scales around the given one (`scale_sweep`): the scale with the most evidence in nats is
   the start of a least-squares fit of the symmetric 2 x 2 metric, which holds scale and ellipse, to the spots that the matched crystals
   explain (`refine_calibration`). Camera length and elliptical distortion from reflections of known spacing are the usual calibration of
   4D-STEM (Savitzky et al., Microsc. Microanal. 27 (2021) 712); here the sample is its own standard. The uncertainty is a bootstrap over
   patterns (Efron and Tibshirani, An Introduction to the Bootstrap, 1993);
4. the fit is checked (`fit_findings`). Where a check fails, the given scale is kept and the places of spots are trusted less.

The rotation of the camera against the scan is not visible in diffraction alone and is left at zero.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ..crystals import Crystal
from .scan import (
    Calibration,
    ScanStatistics,
    check_patterns,
    detector_gain,
    direct_beam_positions,
    hot_and_dead_pixels,
    patterns_at,
    scan_statistics,
    smooth_descan,
)
from .search import predicted_spots, search_phase
from .spots import Spots, find_spots, pattern_peaks
from .templates import TemplateBank, template_bank


@dataclass(frozen=True)
class CalibrationOptions:
    """Tuning of the calibration."""

    beam_radius_share: float = 0.08  # of the camera's width: inside it, a sharp direct beam must not count as a hot pixel
    gain_patterns: int = 64  # patterns, spread over the scan, whose noise gives the gain: enough blocks for twelve levels of brightness
    first_sigma_px: float = 1.3  # standard deviation of a spot before it is measured
    size_rounds: int = 2  # the size of the spots sets the aperture that finds them: the second round changes little
    size_reach_px: int = 5  # half width of the window about a peak
    size_peaks: int = 6  # peaks of a pattern at most, so that no pattern dominates the mean spot
    size_nats: float = 15.0  # evidence of a peak that may shape the mean spot
    least_sigma_px: float = 0.7  # a spot within one pixel
    most_sigma_px: float = 4.0  # beyond, the spots of these lattices overlap
    most_g_invA: float = 1.6  # beyond it, spots are weak and crowd
    edge_factor: float = 1.1  # reflections up to this times the nearest edge of the camera: the scale may be off by as much
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
    untrusted_place_strain: float = 0.02  # where the given scale is kept: spots may be off by as much as the scale may
    resamplings: int = 100  # of the patterns, for the scale's standard deviation to 7 %


OPTIONS = CalibrationOptions()


class Optics(NamedTuple):
    """The settings of the microscope that a calibration starts from.

    Attributes
    ----------
    scale_invA_per_px
        Scale of the camera as given, 1/Å per pixel; right to the ``search`` of `calibrate`.
    beam_energy_keV
        Energy of the electrons, keV.
    precession_deg
        Half angle of the precession cone, degrees.
    excitation_width_invA
        Half width of the rocking curve at rest, 1/Å.
    max_g_invA
        Reflections up to this length are used, 1/Å; None: `calibrate` takes what is fully on the camera, but at most 1.6 1/Å.
    """

    scale_invA_per_px: float
    beam_energy_keV: float
    precession_deg: float
    excitation_width_invA: float = 0.001
    max_g_invA: float | None = None


class DirectBeam(NamedTuple):
    """The direct beam of every pattern of a scan.

    Attributes
    ----------
    measured_px
        (ny, nx, 2) centroid, (y, x) in px.
    intensity
        (ny, nx), in recorded units.
    scatter_px
        Robust standard deviation of one coordinate about the smooth descan.
    """

    measured_px: np.ndarray
    intensity: np.ndarray
    scatter_px: float


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


@dataclass(frozen=True)
class CalibratedScan:
    """A calibration, how far it can be trusted, and what it rests on.

    Attributes
    ----------
    calibration
        The one to use: ``refined`` where `trusted`, else ``given`` with a wider ``place_strain``. It holds the smooth direct beam of every
        pattern, the mask of bad pixels, the spot size and the detector's gain and offset.
    given, refined
        The calibration with the scale as given, and with the fitted scale and ellipse, whether trusted or not.
    banks
        Template banks of the crystals, in their order.
    optics
        The settings used, with ``max_g_invA`` filled in.
    statistics
        Mean and variance of the patterns over the scan, and the sum of every pattern.
    beam
        Direct beam of every pattern as measured, and its scatter about the smooth descan ``calibration.centre_px``.
    chosen, images, centres_px
        Indices (n,) of the patterns that the fit used in the flattened scan, the patterns (n, ky, kx), and their direct beams (n, 2).
    fit
        Sweep, explained spots, residual and uncertainty of the scale.
    findings
        One sentence for every check that failed; empty where the calibration can be trusted.
    notes
        One sentence for every phase whose spots alone give another scale.
    """

    calibration: Calibration
    given: Calibration
    refined: Calibration
    banks: list[TemplateBank]
    optics: Optics
    statistics: ScanStatistics
    beam: DirectBeam
    chosen: np.ndarray
    images: np.ndarray
    centres_px: np.ndarray
    fit: ScaleFit
    findings: list[str]
    notes: list[str]

    @property
    def trusted(self) -> bool:
        """True where all checks passed."""
        return not self.findings


def spread_patterns(patterns: Any, calibration: Calibration, n: int) -> tuple[np.ndarray, np.ndarray]:
    """Patterns with clear spots, chosen from the evidence in the spots of a few patterns in each of ``n`` parts of a scan.

    Parameters
    ----------
    patterns
        Scan (ny, nx, ky, kx): numpy, dask or anything that is sliced like them.
    calibration
        Direct beam, mask, spot size, gain and offset are used.
    n
        Number of patterns; all where the scan has fewer.

    Returns
    -------
    chosen
        (n,) indices of the flattened scan.
    images
        (n, ky, kx) the patterns.
    """
    total = patterns.shape[0] * patterns.shape[1]
    chosen, images = [], []
    for part in np.array_split(np.arange(total), min(n, total)):
        few = part[:: max(1, len(part) // 4)][:4]
        blocks = patterns_at(patterns, few)
        spots = find_spots(blocks, calibration.centre_px.reshape(-1, 2)[few], calibration)
        best = int(np.argmax(spots.table[:, :, 4].clip(max=20).sum(axis=1)))
        chosen.append(int(few[best]))
        images.append(blocks[best])
    return np.array(chosen), np.array(images)


def spot_size(patterns: np.ndarray, centre_px: np.ndarray, calibration: Calibration) -> float:
    """Standard deviation of a spot in px, from the mean of the clearest peaks of patterns.

    Parameters
    ----------
    patterns
        (n, ky, kx).
    centre_px
        (n, 2) direct beams, (y, x).
    calibration
        Mask, gain, offset, and a first guess of the spot size.

    Returns
    -------
    Between 0.7 and 4 px; the guess where no peak is clear.
    """
    reach, windows = OPTIONS.size_reach_px, []
    for image, centre in zip(patterns, centre_px, strict=True):
        for y, x, *_ in pattern_peaks(image, centre, calibration, most=OPTIONS.size_peaks, least_nats=OPTIONS.size_nats):
            v, u = round(y), round(x)
            near = np.s_[v - reach : v + reach + 1, u - reach : u + reach + 1]
            window = image[near].astype(float)
            if window.shape == (2 * reach + 1,) * 2 and not calibration.mask[near].any():
                windows.append(window / max(window.sum(), 1e-9))
    if not windows:
        return calibration.spot_sigma_px
    mean = np.mean(windows, axis=0)
    yy, xx = np.indices(mean.shape) - reach
    distance = np.hypot(yy, xx)
    mean = np.maximum(mean - mean[distance > reach].mean(), 0)
    mean[distance > 0.9 * reach] = 0
    sigma = math.sqrt((mean * distance**2).sum() / mean.sum() / 2)
    return float(np.clip(sigma, OPTIONS.least_sigma_px, OPTIONS.most_sigma_px))


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


def _phase_notes(fit: ScaleFit) -> list[str]:
    """One sentence for every phase whose spots alone give a scale that differs by more than 0.6 % and four standard deviations."""
    return [
        f"the spots of {phase} alone put the scale {100 * (alone['ratio'] - 1):+.2f} % from the common one: is its lattice that of the CIF?"
        for phase, alone in fit.scale_by_phase.items()
        if abs(alone["ratio"] - 1) > max(OPTIONS.least_phase_offset, 4 * alone["sd"])
    ]


def _fully_on_camera(calibration: Calibration) -> float:
    """The longest g (1/Å) to use: what lies on the camera in all directions, and no more than `most_g_invA`."""
    ky, kx = calibration.mask.shape
    beam_y, beam_x = calibration.centre_px.reshape(-1, 2).mean(axis=0)
    to_edge = max(min(beam_y, ky - beam_y), min(beam_x, kx - beam_x))
    return float(min(OPTIONS.most_g_invA, OPTIONS.edge_factor * to_edge * calibration.scale_invA_per_px))


def phase_banks(crystals: Sequence[Crystal], optics: Optics, cache: str | Path | None = None) -> list[TemplateBank]:
    """The template bank of every crystal for the same optics.

    Parameters
    ----------
    crystals
        Candidate phases.
    optics
        Energy, precession, rocking curve and reach; its scale is not used.
    cache
        Folder that keeps the banks; None: they are made anew.
    """
    return [
        template_bank(
            crystal,
            max_g_invA=OPTIONS.most_g_invA if optics.max_g_invA is None else optics.max_g_invA,
            beam_energy_keV=optics.beam_energy_keV,
            precession_deg=optics.precession_deg,
            excitation_width_invA=optics.excitation_width_invA,
            cache=cache,
        )
        for crystal in crystals
    ]


def _before_the_fit(patterns: Any, statistics: ScanStatistics, scale_invA_per_px: float) -> tuple[Calibration, DirectBeam]:
    """Mask, direct beam, gain and offset of a scan, with the scale as given and no strain; and the beam as measured."""
    mean, variance, total = statistics
    mask = hot_and_dead_pixels(mean, variance, total.size, OPTIONS.beam_radius_share * min(mean.shape))
    measured_px, intensity = direct_beam_positions(patterns, mask)
    centre_px, scatter_px = smooth_descan(measured_px, intensity)
    spread = np.linspace(0, total.size - 1, min(OPTIONS.gain_patterns, total.size)).astype(int)
    gain, offset = detector_gain(patterns_at(patterns, spread), mask)
    first = Calibration(scale_invA_per_px, np.eye(2), centre_px, mask, OPTIONS.first_sigma_px, gain, offset)
    return first, DirectBeam(measured_px, intensity, scatter_px)


def calibrate(
    patterns: Any,
    crystals: Sequence[Crystal],
    optics: Optics,
    *,
    n_patterns: int = 96,
    search: float = 0.03,
    seed: int = 1,
    cache: str | Path | None = None,
    progress: Any = None,
) -> CalibratedScan:
    """Geometry, noise and bad pixels of a PED scan, from its patterns, the crystals in it and a scale that is roughly right.

    Parameters
    ----------
    patterns
        Scan (ny, nx, ky, kx) of any real type: numpy, dask, or anything that is sliced like them; read box by box.
    crystals
        The phases expected in the scan.
    optics
        Given scale, energy, precession.
    n_patterns
        Patterns, spread over the scan, that calibrate the camera.
    search
        How far the given scale may be off, as a share of it.
    seed
        Of the resampling that gives the scale's uncertainty.
    cache
        Folder that keeps the template banks; None: they are made anew.
    progress
        Wraps the scales while they are tried, as `tqdm.tqdm` does.

    Returns
    -------
    The `CalibratedScan`: its ``calibration`` is ready for `map_scan`, its ``findings`` say why it is not trusted, if it is not.

    Raises
    ------
    EmphaseError
        Where patterns are smaller than 32 px or hold NaN or no counts, where no direct beam stands out, or where the scale is in the
        wrong unit.

    Examples
    --------
    >>> optics = Optics(scale_invA_per_px=0.0218, beam_energy_keV=200.0, precession_deg=0.5)
    >>> scan = calibrate(patterns, [layered, rocksalt], optics)  # doctest: +SKIP
    >>> maps, _, _ = map_scan(patterns, scan.calibration, scan.banks)  # doctest: +SKIP
    """
    check_patterns(patterns, optics.scale_invA_per_px)
    statistics = scan_statistics(patterns)
    given, beam = _before_the_fit(patterns, statistics, optics.scale_invA_per_px)
    chosen, images = spread_patterns(patterns, given, n_patterns)
    centres = given.centre_px.reshape(-1, 2)[chosen]
    for _ in range(OPTIONS.size_rounds):
        given = replace(given, spot_sigma_px=spot_size(images, centres, given))
    if optics.max_g_invA is None:
        optics = optics._replace(max_g_invA=_fully_on_camera(given))
    banks = phase_banks(crystals, optics, cache)
    refined, fit = refine_calibration(images, centres, given, banks, search=search, seed=seed, progress=progress)
    findings = fit_findings(fit, refined, given.scale_invA_per_px)
    return CalibratedScan(
        calibration=replace(given, place_strain=OPTIONS.untrusted_place_strain) if findings else refined,
        given=given,
        refined=refined,
        banks=banks,
        optics=optics,
        statistics=statistics,
        beam=beam,
        chosen=chosen,
        images=images,
        centres_px=centres,
        fit=fit,
        findings=findings,
        notes=_phase_notes(fit),
    )
