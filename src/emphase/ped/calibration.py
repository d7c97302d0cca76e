"""Calibration of a PED scan from its own patterns: detector, direct beam, spot size, scale and ellipse of the camera.

The phases in a scan have known spacings, so the scan calibrates itself. `calibrate` is the whole chain; each of its steps can be used
alone:

1. mean and variance over the scan give the hot and dead pixels, the noise gives gain and offset of the detector
   (`emphase.ped.noise`), and the centroid of the direct beam in every pattern, smoothed over the scan, the descan (`emphase.ped.scan`);
2. patterns with clear spots are taken from all over the scan (`spread_patterns`), and their mean spot gives the spot size (`spot_size`);
3. scale and ellipse are fitted to the spots that the phases explain (`emphase.ped.refinement`);
4. the fit is checked. Where a check fails, the given scale is kept and the places of spots are trusted less.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ..crystals import Crystal
from ..errors import EmphaseError
from .fixed_background import fixed_background
from .noise import DetectorNoise, detector_noise
from .refinement import ScaleFit, agreeing_phases, fit_findings, phase_notes, refine_calibration
from .scales import FoundScale, find_scale, scale_finding
from .scan import OPTIONS as SCAN_OPTIONS
from .scan import (
    Calibration,
    ScanStatistics,
    check_patterns,
    direct_beam_positions,
    hot_and_dead_pixels,
    patterns_at,
    reach_on_camera,
    scan_statistics,
    smooth_descan,
)
from .spots import find_spots, pattern_peaks
from .templates import TemplateBank, template_bank


@dataclass(frozen=True)
class CalibrationOptions:
    """Tuning of the calibration before the fit, and where the fit is not trusted."""

    beam_radius_share: float = 0.08  # of the camera's width: inside it, a sharp direct beam must not count as a hot pixel
    gain_patterns: int = 64  # patterns, spread over the scan, whose noise gives the gain: enough blocks for twelve levels of brightness
    first_sigma_px: float = 1.3  # standard deviation of a spot before it is measured
    size_rounds: int = 2  # the size of the spots sets the aperture that finds them: the second round changes little
    size_reach_px: int = 5  # half width of the window about a peak
    size_peaks: int = 6  # peaks of a pattern at most, so that no pattern dominates the mean spot
    size_nats: float = 15.0  # evidence of a peak that may shape the mean spot
    least_sigma_px: float = 0.7  # a spot within one pixel
    most_sigma_px: float = 4.0  # beyond, the spots of these lattices overlap
    unknown_edge_invA: float = 1.2  # of the camera, while its scale is not known
    scale_patterns: int = 32  # that find an unknown scale
    settings: tuple[tuple[str, float, float], ...] = (  # of electron microscopes; beyond, a unit is another
        ("scale_invA_per_px", 1e-5, 0.5), ("beam_energy_keV", 20.0, 3000.0), ("precession_deg", 0.0, 10.0),
    )  # fmt: skip
    untrusted_place_strain: float = 0.02  # where the given scale is kept: spots may be off by as much as the scale may


OPTIONS = CalibrationOptions()
#: The doubt about the noise of patterns that are drawn
OF_A_LIST = (
    "the recording is a list of spots: the patterns are drawn from it on a flat background, from which the faintest spots just stand out; "
    "evidence comes from places and strengths alone"
)


class Optics(NamedTuple):
    """The settings of the microscope that a calibration starts from.

    Attributes
    ----------
    scale_invA_per_px
        Scale of the camera as given, 1/Å per pixel; right to the ``search`` of `calibrate`. None: it is found from the patterns
        (`emphase.ped.scales`).
    beam_energy_keV
        Energy of the electrons, keV.
    precession_deg
        Half angle of the precession cone, degrees.
    excitation_width_invA
        Half width of the rocking curve at rest, 1/Å.
    max_g_invA
        Reflections up to this length are used, 1/Å; None: `calibrate` takes what is fully on the camera, but at most 1.6 1/Å.
    """

    scale_invA_per_px: float | None
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
        Sentences on what is doubtful and does not stop the use: the detector's gain, phases whose spots alone give another scale.
    found_scale
        Where no scale was given: the one from which the fit started, and how much better it is than the next.
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
    found_scale: FoundScale | None = None

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
            max_g_invA=SCAN_OPTIONS.most_g_invA if optics.max_g_invA is None else optics.max_g_invA,
            beam_energy_keV=optics.beam_energy_keV,
            precession_deg=optics.precession_deg,
            excitation_width_invA=optics.excitation_width_invA,
            cache=cache,
        )
        for crystal in crystals
    ]


def _before_the_fit(patterns: Any, statistics: ScanStatistics, scale_invA_per_px: float) -> tuple[Calibration, DirectBeam, str]:
    """Mask, direct beam, gain and offset of a scan, with the scale as given and no strain; the beam as measured; doubts of the gain."""
    mean, variance, total = statistics
    mask = hot_and_dead_pixels(mean, variance, total.size, OPTIONS.beam_radius_share * min(mean.shape))
    measured_px, intensity = direct_beam_positions(patterns, mask)
    centre_px, scatter_px = smooth_descan(measured_px, intensity)
    spread = np.linspace(0, total.size - 1, min(OPTIONS.gain_patterns, total.size)).astype(int)
    listed = getattr(patterns, "is_spot_list", False)
    noise = DetectorNoise(1.0, 0.0, OF_A_LIST) if listed else detector_noise(patterns_at(patterns, spread), mask)
    first = Calibration(scale_invA_per_px, np.eye(2), centre_px, mask, OPTIONS.first_sigma_px, noise.gain, noise.offset)
    return first, DirectBeam(measured_px, intensity, scatter_px), noise.doubt


def _with_background(patterns: Any, given: Calibration, n_patterns: int) -> tuple[Calibration, np.ndarray, np.ndarray]:
    """The calibration with spot size and shared background, and the patterns that calibrate: their numbers (n,) and images (n, ky, kx).

    Each needs the other: a halo makes spots of its own, and how large spots are says what is none. So both are found twice where there is
    such a background.
    """
    given = replace(given, fixed_background=fixed_background(patterns, given))
    given, chosen, images = _with_spot_size(patterns, given, n_patterns)
    fixed = fixed_background(patterns, given)
    if fixed.size or given.fixed_background.size:
        return _with_spot_size(patterns, replace(given, fixed_background=fixed), n_patterns)
    return given, chosen, images


def _with_spot_size(patterns: Any, given: Calibration, n_patterns: int) -> tuple[Calibration, np.ndarray, np.ndarray]:
    """The calibration with the size of spots, and the patterns that show it, as `_with_background` returns them."""
    chosen, images = spread_patterns(patterns, given, n_patterns)
    for _ in range(OPTIONS.size_rounds):
        given = replace(given, spot_sigma_px=spot_size(images, given.centre_px.reshape(-1, 2)[chosen], given))
    return given, chosen, images


def _with_scale(
    given: Calibration, optics: Optics, crystals: Sequence[Crystal], images: np.ndarray, centres_px: np.ndarray, cache: str | Path | None
) -> tuple[Calibration, Optics, FoundScale | None]:
    """Calibration and settings with the scale as given, or as patterns (n, ky, kx) show it, and how far reflections are used."""
    found = None
    if optics.scale_invA_per_px is None:
        some = np.unique(np.linspace(0, len(images) - 1, OPTIONS.scale_patterns).astype(int))
        found = find_scale(
            images[some], centres_px[some], given, lambda reach_invA: phase_banks(crystals, optics._replace(max_g_invA=reach_invA), cache)
        )
        given = replace(given, scale_invA_per_px=found.scale_invA_per_px)
    return given, optics._replace(scale_invA_per_px=given.scale_invA_per_px, max_g_invA=optics.max_g_invA or reach_on_camera(given)), found


def _check_settings(patterns: Any, crystals: Sequence[Crystal], optics: Optics) -> None:
    """`EmphaseError` for what is no scan, no crystal or no setting of an electron microscope."""
    shape = getattr(patterns, "shape", None)
    if shape is None or len(shape) != 4:
        raise EmphaseError(f"patterns: got {type(patterns).__name__} of shape {shape}, expected a scan (ny, nx, ky, kx)")
    if not crystals or not all(isinstance(crystal, Crystal) for crystal in crystals):
        raise EmphaseError(f"crystals: got {[*map(str, crystals)]}, expected one `Crystal` or more")
    for name, least, most in OPTIONS.settings:
        value = getattr(optics, name)
        if value is not None and not least <= value <= most:
            raise EmphaseError(f"{name}: got {value:g}, expected {least:g} to {most:g}")


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
    """Geometry, noise and bad pixels of a PED scan, from its patterns, the crystals in it and a scale that is roughly right, or none.

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
        Where patterns are smaller than 32 px or hold NaN or no counts, where no direct beam stands out, where a setting is in the wrong
        unit, where there is no crystal, and where no scale is given and the patterns show none.

    Examples
    --------
    >>> optics = Optics(scale_invA_per_px=0.0218, beam_energy_keV=200.0, precession_deg=0.5)
    >>> scan = calibrate(patterns, [layered, rocksalt], optics)  # doctest: +SKIP
    >>> maps, _, _ = map_scan(patterns, scan.calibration, scan.banks)  # doctest: +SKIP
    """
    _check_settings(patterns, crystals, optics)
    start = optics.scale_invA_per_px or OPTIONS.unknown_edge_invA / (min(patterns.shape[2:]) / 2)
    check_patterns(patterns, start)
    statistics = scan_statistics(patterns)
    given, beam, doubt = _before_the_fit(patterns, statistics, start)
    given, chosen, images = _with_background(patterns, given, n_patterns)
    centres = given.centre_px.reshape(-1, 2)[chosen]
    given, optics, found = _with_scale(given, optics, crystals, images, centres, cache)
    banks = phase_banks(crystals, optics, cache)
    refined, fit = refine_calibration(images, centres, given, banks, search=search, seed=seed, progress=progress)
    findings = fit_findings(fit, refined, given.scale_invA_per_px) + (scale_finding(agreeing_phases(fit)) if found else [])
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
        notes=[*([doubt] if doubt else []), *phase_notes(fit)],
        found_scale=found,
    )
