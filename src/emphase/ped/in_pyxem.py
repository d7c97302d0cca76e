"""A calibrated scan and its spots as signals of pyxem, to go on there, and virtual images that pyxem makes of it.

pyxem (Cautaerts et al., Ultramicroscopy 237 (2022) 113517) keeps the calibration of a scan in the axes of its signals: one step in 1/Å for
each axis and one zero for all patterns. So the scale and the mean place of the direct beam go with a signal, but neither the descan nor
the ellipse and distortion of the camera. The vectors of spots hold all of these: they are counted from the direct beam of their own
pattern, on an undistorted camera.
"""

from __future__ import annotations

import math
import warnings
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from .scan import Calibration
from .spots import OPTIONS as SPOT_OPTIONS
from .spots import Spots

_UNIT = "$A^{-1}$"  # as pyxem writes it


class VirtualImages(NamedTuple):
    """Counts (ny, nx) of the patterns of a scan: ``bright_field`` within the direct beam, ``dark_field`` in the annulus about it."""

    bright_field: np.ndarray
    dark_field: np.ndarray


def _signals() -> Any:
    """The module of pyxem's signals; loading it takes seconds, and hyperspy warns then of names that pyxem uses."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import pyxem.signals
    return pyxem.signals


def _set_axes(signal: Any, step_nm: float | None) -> None:
    """Names, step and unit of the axes of a scan; one pattern has none."""
    for axis, name in zip(signal.axes_manager.navigation_axes, "xy", strict=False):
        axis.name, axis.scale, axis.units = name, step_nm or 1.0, "nm" if step_nm else "px"


def diffraction_signal(patterns: Any, calibration: Calibration, *, step_nm: float | None = None, **experiment: float) -> Any:
    """A scan as pyxem's ``ElectronDiffraction2D``, in 1/Å from the mean direct beam.

    Parameters
    ----------
    patterns
        (ny, nx, ky, kx): an array, numpy or dask, or `emphase.frames.RecordedFrames`, of which nothing is read; or one pattern (ky, kx).
    calibration
        Scale and direct beam are used.
    step_nm
        Of the scan; None: its axes are in px.
    **experiment
        What pyxem's ``set_experimental_parameters`` takes: ``beam_energy`` (keV), ``rocking_angle`` (mrad).

    Returns
    -------
    The signal, lazy where the patterns are.
    """
    data = patterns.signal.data if hasattr(patterns, "signal") else patterns
    signal = (_signals().LazyElectronDiffraction2D if hasattr(data, "dask") else _signals().ElectronDiffraction2D)(data)
    _set_axes(signal, step_nm)
    beam_px = calibration.centre_px.reshape(-1, 2).mean(axis=0)
    for axis, name, zero in zip(signal.axes_manager.signal_axes, ("kx", "ky"), beam_px[::-1], strict=True):
        axis.name, axis.units, axis.scale = name, _UNIT, calibration.scale_invA_per_px
        axis.offset = -zero * calibration.scale_invA_per_px
    signal.set_experimental_parameters(**experiment)
    return signal


def virtual_images(signal: Any, beam_invA: float, outer_invA: float) -> VirtualImages:
    """Bright and annular dark field of a scan, from the counts of its patterns in two fixed apertures, by pyxem.

    Parameters
    ----------
    signal
        Of `diffraction_signal`; read once where it is lazy.
    beam_invA
        Radius of the bright field's aperture, and the inner one of the annulus.
    outer_invA
        The outer radius of the annulus.
    """
    import dask
    from hyperspy.roi import CircleROI

    rois = CircleROI(0, 0, beam_invA), CircleROI(0, 0, outer_invA, beam_invA)
    return VirtualImages(*dask.compute(*(signal.get_integrated_intensity(roi).data for roi in rois)))


def radial_profile(mean_pattern: np.ndarray, mask: np.ndarray, calibration: Calibration) -> tuple[np.ndarray, np.ndarray]:
    """Mean counts of a pixel against the length of g, from the mean pattern of a scan.

    Parameters
    ----------
    mean_pattern
        (ky, kx), in recorded units.
    mask
        (ky, kx) bad pixels, which are left out.
    calibration
        Scale, ellipse and the mean direct beam are used; distortion and descan are not, and blur it.

    Returns
    -------
    g_invA, counts
        (n,) each, in steps of a pixel.

    Notes
    -----
    pyxem's azimuthal integral needs a minute for one pattern at first, and knows no ellipse.
    """
    off = np.moveaxis(np.indices(mean_pattern.shape), 0, -1) - calibration.centre_px.reshape(-1, 2).mean(axis=0)
    g_invA = np.linalg.norm(off[..., ::-1] @ np.linalg.inv(calibration.metric).T, axis=-1)
    ring = np.floor(g_invA / calibration.scale_invA_per_px).astype(int)[~mask]
    pixels = np.bincount(ring)
    counts = np.bincount(ring, mean_pattern[~mask]) / np.maximum(pixels, 1)
    return (np.arange(len(pixels)) + 0.5)[pixels > 0] * calibration.scale_invA_per_px, counts[pixels > 0]


def diffraction_vectors(
    spots: Spots, shape: tuple[int, int], calibration: Calibration, *, step_nm: float | None = None, least_nats: float = 4.0
) -> Any:
    """The spots of a scan as pyxem's ``DiffractionVectors``: ky, kx in 1/Å from the direct beam, and net counts.

    Parameters
    ----------
    spots
        Of all patterns, in the order of the scan.
    shape
        (ny, nx).
    calibration
        The metric of the camera is used: scale and ellipse.
    step_nm
        Of the scan; None: its axes are in px.
    least_nats
        Evidence that a spot must have against background; fainter ones are noise as often.

    Returns
    -------
    The vectors; a file of them (.hspy, .zspy) is a list of spots (`emphase.spot_lists`) that maps the scan once more.
    """
    vectors = np.empty(shape, object)
    to_invA = np.linalg.inv(calibration.metric).T
    shown = (np.arange(SPOT_OPTIONS.most_spots) < spots.number[:, None]) & (spots.table[:, :, 4] >= least_nats)
    for k, (table, centre, kept) in enumerate(zip(spots.table, spots.centre_px, shown, strict=True)):
        place = (table[kept, :2] - centre)[:, ::-1] @ to_invA
        vectors[divmod(k, shape[1])] = np.column_stack([place[:, ::-1], table[kept, 2] - table[kept, 3]])
    units = [_UNIT, _UNIT, "a.u."]
    signal = _signals().DiffractionVectors(vectors, ragged=True, column_names=["ky", "kx", "intensity"], units=units)
    _set_axes(signal, step_nm)
    return signal


def rocking_angle_mrad(precession_deg: float) -> float:
    """The half angle of the cone as pyxem keeps it.

    >>> round(rocking_angle_mrad(0.5), 3)
    8.727
    """
    return 1e3 * math.radians(precession_deg)


def save_signal(signal: Any, path: str | Path) -> None:
    """Write a signal of pyxem; its format goes by the suffix, .hspy or .zspy."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # by zarr, about how hyperspy stores it
        signal.save(Path(path), overwrite=True, show_progressbar=False)
