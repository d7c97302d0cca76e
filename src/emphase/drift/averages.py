"""Sums and averages of frames moved back by their shifts, to the nearest pixel: every count is kept and none is invented."""

from __future__ import annotations

from typing import Any

import numpy as np

from .stack import _blocks


def sum_frames(
    frames: Any, shift_px: np.ndarray, used: np.ndarray, weight: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray, tuple[int, int]]:
    """Sum of frames moved back by their shifts to the nearest pixel: every count is kept, none is spread.

    Parameters
    ----------
    frames
        Stack (n, y, x), an array or recorded frames.
    shift_px
        Shifts (n, 2) in (y, x), content moved by +shift.
    used
        Which frames (n,) are summed.
    weight
        How often (n,) sum and coverage count each frame; once if not given.

    Returns
    -------
    total, coverage
        The sum (y, x) and the frames a pixel. There is no wrap-around: both are as large as needed.
    origin
        Position (y, x) of pixel (0, 0) of a frame at shift 0 in them.
    """
    chosen = np.flatnonzero(used)
    whole = -np.round(shift_px).astype(int)
    low, high = whole[chosen].min(axis=0), whole[chosen].max(axis=0)
    shape = tuple(np.array(frames.shape[1:]) + high - low)
    total = np.zeros(shape, np.float64 if frames.dtype.kind == "f" or weight is not None else np.uint64)
    coverage = np.zeros(shape, np.uint32 if weight is None else np.float64)
    for i, frame in ((i, frame) for index, block in _blocks(frames, chosen) for i, frame in zip(index, block, strict=True)):
        y, x = whole[i] - low
        here = np.s_[y : y + frames.shape[1], x : x + frames.shape[2]]
        once = 1 if weight is None else weight[i]
        total[here] += frame.astype(total.dtype) * once
        coverage[here] += once
    return total, coverage, (int(-low[0]), int(-low[1]))


def placed_frame(image: np.ndarray, by: np.ndarray) -> np.ndarray:
    """An image (y, x) moved by whole pixels.

    Parameters
    ----------
    image
        The image (y, x).
    by
        Displacement (2,) of its content in (y, x), whole numbers.

    Returns
    -------
    An image of the same shape, its mean where nothing comes in.
    """
    out = np.full(image.shape, image.mean())
    to, source = (tuple(slice(max(0, s * b), n + min(0, s * b)) for b, n in zip(by, image.shape, strict=True)) for s in (1, -1))
    out[to] = image[source]
    return out


def covered_average(total: np.ndarray, coverage: np.ndarray, least_share: float = 0.5) -> tuple[np.ndarray, tuple[int, int]]:
    """Mean counts a frame from a sum and its coverage, over a box that enough frames cover.

    Parameters
    ----------
    total, coverage
        From `sum_frames`.
    least_share
        Share of the largest coverage that every pixel of the box has at least; sides are taken off where most pixels have less.

    Returns
    -------
    average
        Mean counts a frame (y, x).
    corner
        Position (y, x) of its pixel (0, 0) in the sum.
    """
    good = coverage >= least_share * coverage.max()
    top, bottom, left, right = 0, good.shape[0], 0, good.shape[1]
    while not good[top:bottom, left:right].all():
        part = good[top:bottom, left:right]
        missing = [(~part[0]).sum() / part.shape[1], (~part[-1]).sum() / part.shape[1]]
        missing += [(~part[:, 0]).sum() / part.shape[0], (~part[:, -1]).sum() / part.shape[0]]
        side = int(np.argmax(missing))
        top, bottom, left, right = top + (side == 0), bottom - (side == 1), left + (side == 2), right - (side == 3)
    box = np.s_[top:bottom, left:right]
    return total[box] / coverage[box], (top, left)
