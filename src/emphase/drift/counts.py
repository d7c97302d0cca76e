"""The result of a registration, and the information on a shift that Poisson counts hold."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class DriftSolution:
    """Shifts of the frames of a stack, with how sure each is.

    Attributes
    ----------
    shift_px
        Shifts (n, 2) in (y, x), content moved by +shift; the first frame used is the origin, 0 where a frame is left out.
    sigma_px
        Standard deviation (n,) of a frame's position along one axis, without the error that all frames share.
    used
        Which frames (n,) count.
    left_out
        The other frames, with the reason.
    registered
        False where the counts do not suffice: all shifts are then 0.
    reason
        Why the stack is not registered, or why neighbours share a shift; else empty.
    group
        How many neighbours share one shift, 1 where each frame has its own, 0 where the stack is not registered.
    hop_probability
        Probability (n,) of another peak, a lattice cell away, given the frames around.
    jumps
        The first ``frame`` after each jump, and its margin ``margin_nats`` over the next best cell.
    crlb_px
        Cramér-Rao floor of one axis of one frame with the scene known; None where not registered.
    contrast
        Contrast (n,) relative to that of the others, 0 where unknown.
    counts_per_unit
        Counts of a grey value (`stack.counts_per_unit`).
    notes
        Sentences on what was assumed.
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

    Parameters
    ----------
    rate
        Expected counts (y, x) a pixel.

    Notes
    -----
    J = Σ ∂λ ∂λᵀ/λ over the pixels, with derivatives of sixth order; the variance of an unbiased estimate is at least inv(J).
    """
    from scipy.ndimage import correlate1d

    stencil = np.array([-1, 9, -45, 0, 45, -9, 1]) / 60
    dy, dx = (correlate1d(rate, stencil, axis=axis, mode="nearest") for axis in (0, 1))
    weight = 1 / np.maximum(rate, 1e-9)
    yx = np.sum(dy * dx * weight)
    return np.array([[np.sum(dy * dy * weight), yx], [yx, np.sum(dx * dx * weight)]])
