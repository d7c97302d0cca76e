"""Decay of the lattice with dose, measured in the stack itself, and the number of frames that is best to keep.

Every frame's lattice amplitude is taken in phase with the average of the *other* frames, so that noise adds nothing to it in the mean.
"""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np

from .cells import _reflections
from .checks import _joint_of
from .counts import DriftSolution
from .likelihood import _Canvas


def frames_to_keep(dose: np.ndarray, rate: float, least_amplitude: float = 0.0) -> tuple[int, np.ndarray]:
    """How many first frames give the best signal-to-noise, and that of every number of frames (n,), relative to its best.

    Parameters
    ----------
    dose
        Dose (n,) before each frame, in any unit.
    rate
        Decay rate of the lattice amplitude, per that unit; with 0 or less all frames are kept.
    least_amplitude
        Share of the first frame's amplitude, below which no frame is kept.

    Notes
    -----
    A lattice amplitude that decays as exp(-rate dose) adds less with every frame while noise goes on: the
    plain sum is best near 1.26/rate (Hayward & Glaeser, Ultramicroscopy 4 (1979) 201).
    """
    amplitude = np.exp(-max(rate, 0.0) * (np.asarray(dose, dtype=float) - dose[0]))
    snr = np.cumsum(amplitude) / np.sqrt(np.arange(1, len(amplitude) + 1))
    allowed = np.where(amplitude >= least_amplitude, snr, 0)
    return int(np.argmax(allowed)) + 1, snr / snr.max()


def _amplitudes_of_frames(
    canvas: _Canvas, summed: np.ndarray, members: np.ndarray, shifts: np.ndarray, at: tuple[np.ndarray, np.ndarray]
) -> tuple[np.ndarray, np.ndarray]:
    """Amplitudes (frames, peaks) at frequencies, in phase with the average of the other frames and relative to it, and their errors."""
    amplitude, error = np.zeros((len(members), len(summed))), np.zeros((len(members), len(summed)))
    for k, i in enumerate(members):
        frame = canvas.moved(int(i), shifts[i])[at]
        rest = summed - frame
        level = np.abs(rest) / (len(members) - 1)
        amplitude[k] = (frame * rest.conj()).real / np.abs(rest) / level / canvas.scale[i]
        error[k] = math.sqrt(canvas.totals[i] / 2) / level / canvas.scale[i]
    return amplitude, error


def _common_field(frames: np.ndarray, solution: DriftSolution) -> tuple[np.ndarray, DriftSolution]:
    """What all used frames show, cut out of each to the nearest pixel, with what is left of the shifts; all of it if that is little."""
    whole = np.where(solution.used[:, None], np.round(solution.shift_px), 0).astype(int)
    low, high = whole[solution.used].min(axis=0), whole[solution.used].max(axis=0)
    size = np.array(frames.shape[1:]) - (high - low)
    if np.any(size < 0.4 * np.array(frames.shape[1:])):
        return frames, solution
    corners = np.where(solution.used[:, None], whole - low, 0)
    cut = np.stack([f[y : y + size[0], x : x + size[1]] for f, (y, x) in zip(frames, corners, strict=True)])
    return cut, replace(solution, shift_px=solution.shift_px - whole)


def lattice_decay(frames: np.ndarray, solution: DriftSolution, dose: np.ndarray, peaks: int = 12) -> dict:
    """Decay of lattice frequencies with dose, from the stack itself.

    Parameters
    ----------
    frames, solution
        The stack (n, y, x) and its registration.
    dose
        Dose (n,) before the middle of each frame, in any unit.
    peaks
        How many of the strongest lattice frequencies are measured.

    Returns
    -------
    ``frame``, ``amplitude`` and ``error`` of the used frames, all frequencies together; ``period_px``, ``rate`` and ``rate_sigma``
    (1/dose) of each frequency; ``pooled_rate`` and ``pooled_rate_sigma``. Where nothing is measured, no ``period_px`` and a ``reason``.

    Notes
    -----
    Every frame's amplitude is measured in phase with the average of the others, relative to it, in the field that all
    frames share (else an edge that drifts into view looks like damage). An exponential is fitted to all together.
    """
    from scipy.optimize import curve_fit

    members = np.flatnonzero(solution.used)
    joint = _joint_of(*_common_field(frames, solution))
    canvas, shifts, total = joint.canvas, joint.shifts, joint.total()
    q = np.hypot(canvas.qy[:, None], canvas.qx[None]) / (2 * np.pi)
    at = tuple(_reflections(canvas, total.spectrum, float(canvas.totals[members].sum()), peaks, least=30)[0].T)
    if len(members) < 6:
        return {"period_px": [], "reason": "fewer than six frames"}
    if len(at[0]) == 0:
        return {"period_px": [], "reason": "no lattice frequency stands out far enough"}
    amplitude, error = _amplitudes_of_frames(canvas, total.spectrum[at], members, shifts, at)
    decay = lambda d, a, rate: a * np.exp(-rate * d)

    def fit(a: np.ndarray, e: np.ndarray) -> tuple[float, float]:
        best, covariance = curve_fit(decay, dose[members], a, p0=(1.0, 0.0), sigma=e, absolute_sigma=True)
        return float(best[1]), float(np.sqrt(covariance[1, 1]))

    each = np.array([fit(amplitude[:, g], error[:, g]) for g in range(amplitude.shape[1])])
    weight = 1 / error**2
    mean, mean_error = (amplitude * weight).sum(axis=1) / weight.sum(axis=1), 1 / np.sqrt(weight.sum(axis=1))
    rate, sigma = fit(mean, mean_error)
    return {
        "frame": members,
        "amplitude": mean,
        "error": mean_error,
        "period_px": (1 / q[at]).tolist(),
        "rate": each[:, 0],
        "rate_sigma": each[:, 1],
        "pooled_rate": rate,
        "pooled_rate_sigma": sigma,
    }
