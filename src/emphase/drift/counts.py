"""TODO."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class DriftSolution:
    """Shifts of a stack: ``shift_px`` (n, 2) with NaN where a frame is left out, content moved by +shift.

    ``sigma_px`` (n,) is the standard deviation of a frame's position along one axis, without
    the error that all frames share. ``left_out`` maps frames to the reason. ``registered`` is
    False where the counts do not suffice (``reason`` says why, the shifts are then 0);
    ``group`` > 1 where so many neighbours share one shift. ``hop_probability`` (n,) is that of
    another peak, a lattice cell away, given the frames around; ``jumps`` lists the first frame
    after each jump and its margin (nats) over the next best cell. ``crlb_px`` is the Cramér-Rao
    floor of one axis of one frame. ``contrast`` (n,) is relative to the average, 0 where unknown.
    ``used`` (n,) are the frames that count, ``counts_per_unit`` the counts of a grey value (`counts_per_unit`), ``notes`` sentences.
    """

    shift_px: np.ndarray
    sigma_px: np.ndarray
    used: np.ndarray
    left_out: dict[int, str]
    registered: bool
    reason: str
    group: int
    hop_probability: np.ndarray
    jumps: list[dict]
    crlb_px: float | None
    contrast: np.ndarray
    counts_per_unit: float
    notes: tuple[str, ...]


def poisson_shift_information(rate: np.ndarray) -> np.ndarray:
    """Fisher information (2, 2) of a rigid shift (y, x) of an image of Poisson counts, 1/px².

    J = Σ ∂λ ∂λᵀ/λ over the pixels; the variance of an unbiased estimate is at least inv(J).
    """
    from scipy.ndimage import correlate1d

    stencil = np.array([-1, 9, -45, 0, 45, -9, 1]) / 60
    dy, dx = (correlate1d(rate, stencil, axis=axis, mode="nearest") for axis in (0, 1))
    weight = 1 / np.maximum(rate, 1e-9)
    yx = np.sum(dy * dx * weight)
    return np.array([[np.sum(dy * dy * weight), yx], [yx, np.sum(dx * dx * weight)]])
