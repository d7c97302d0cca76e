"""Stacks of frames: what can be one, frames that are read as they are used, counts of a grey value, frames that cannot be used."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np

from ..errors import EmphaseError
from ..frames import RecordedFrames
from .options import OPTIONS, joint_solution_bytes


def check_stack(frames: Any, name: str = "the stack", budget_bytes: float | None = None) -> Any:
    """A stack of counts, checked.

    Parameters
    ----------
    frames
        Stack (n, y, x), an array or recorded frames (`RecordedFrames`, `PickedFrames`).
    name
        What messages call it.
    budget_bytes
        Recorded frames stay what they are, and are read a few at a time, where the joint solution would take more memory than
        this (3 GB if not given).

    Returns
    -------
    An array (n, y, x), or the recorded frames.

    Raises
    ------
    EmphaseError
        For anything that cannot be frames of counts: another shape or type, frames below 16 px, NaN, negative values, only zeros.
    """
    recorded = isinstance(frames, (RecordedFrames, PickedFrames))
    if recorded and joint_solution_bytes(len(frames), frames.shape[1:]) <= (OPTIONS.joint_bytes if budget_bytes is None else budget_bytes):
        frames, recorded = frames[:], False
    frames = frames if recorded else np.asarray(frames)
    if len(frames.shape) != 3 or min(frames.shape) < 1 or frames.dtype.kind not in "iuf":
        raise EmphaseError(f"{name}: got an array of {frames.dtype} with shape {frames.shape}, expected numbers of shape (frame, y, x)")
    if min(frames.shape[1:]) < 16:
        raise EmphaseError(f"{name}: frames of {frames.shape[1]} x {frames.shape[2]} px, expected 16 x 16 at least")
    least, most = (np.concatenate(part) for part in zip(*((f.min((1, 2)), f.max((1, 2))) for _, f in _blocks(frames)), strict=True))
    bad = np.flatnonzero(~np.isfinite(least) | ~np.isfinite(most))  # NaN is the least and the most of a frame that has it
    if len(bad):
        raise EmphaseError(f"{name}: NaN or infinite values in {len(bad)} frames, the first is frame {bad[0]}; expected counts")
    bad = np.flatnonzero(least < 0)
    if len(bad):
        raise EmphaseError(
            f"{name}: negative values (down to {least.min():g}) in {len(bad)} frames, the first is frame {bad[0]}; expected counts"
        )
    if not most.any():
        raise EmphaseError(f"{name}: all frames are blank (every pixel is 0)")
    return frames


class PickedFrames:
    """Some frames of a recorded stack, read where they are used.

    Parameters
    ----------
    frames
        The stack (n, y, x).
    index
        Numbers (k,) of the frames, ascending.
    """

    def __init__(self, frames: Any, index: np.ndarray):
        self.frames, self.index = frames, np.asarray(index)
        self.shape, self.dtype = (len(self.index), *frames.shape[1:]), frames.dtype

    def __len__(self) -> int:
        return len(self.index)

    def __getitem__(self, which: Any) -> np.ndarray:
        picked = self.index[which]
        return read_frames(self.frames, picked) if np.ndim(picked) else self.frames[int(picked)]


def read_frames(frames: Any, index: np.ndarray) -> np.ndarray:
    """Some frames of a stack.

    Parameters
    ----------
    frames
        Stack (n, y, x), an array or recorded frames.
    index
        Numbers (k,) of frames, ascending.

    Returns
    -------
    Frames (k, y, x); recorded ones are read in one piece, unless they lie far apart.
    """
    index = np.asarray(index)
    if isinstance(frames, np.ndarray):
        return frames[index]
    if index[-1] - index[0] >= 4 * len(index):
        return np.stack([frames[int(i)] for i in index])
    return frames[int(index[0]) : int(index[-1]) + 1][index - index[0]]


def _blocks(frames: Any, index: np.ndarray | None = None) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Frames of ascending indices (all if not given) a few at a time: the indices, and the frames (k, y, x)."""
    index = np.arange(len(frames)) if index is None else index
    step = max(1, int(OPTIONS.block_bytes // (math.prod(frames.shape[1:]) * frames.dtype.itemsize)))
    for k in range(0, len(index), step):
        yield index[k : k + step], read_frames(frames, index[k : k + step])


def frame_means(frames: Any) -> np.ndarray:
    """Mean (n,) of every frame of a stack (n, y, x), an array or recorded frames."""
    return np.concatenate([f.reshape(len(f), -1).mean(axis=1, dtype=np.float64) for _, f in _blocks(frames)])


def counts_per_unit(frames: np.ndarray) -> tuple[float, str | None]:
    """Counts of a grey value, from the noise of a stack against its mean.

    Parameters
    ----------
    frames
        Stack (n, y, x) of grey values.

    Returns
    -------
    factor
        That turns grey values into counts.
    note
        A sentence where it is not 1, else None.

    Raises
    ------
    EmphaseError
        Where there is no noise.

    Notes
    -----
    White noise fills the corners of the spectrum, beyond the Nyquist circle, where optics leave little signal; the variance there
    against the mean is the gain of the detector (grey values a count). Whole numbers within 15 % of Poisson's variance are counts.
    """
    n_y, n_x = frames.shape[1:]
    q = np.hypot(np.fft.fftfreq(n_y)[:, None], np.fft.rfftfreq(n_x)[None])
    window = np.outer(np.hanning(n_y), np.hanning(n_x)).astype(np.float32)
    means, levels = [], []
    for i in range(0, len(frames), max(1, len(frames) // 16)):
        frame = frames[i]
        mean = float(frame.mean())
        power = np.abs(np.fft.rfft2((frame - mean) * window)) ** 2
        means.append(mean)
        levels.append(np.median(power[q > 0.5]) / math.log(2) / np.sum(window**2))
    mean = np.median(means)
    gain = float(np.median(levels) / mean) if mean > 0 else 0.0
    some = range(0, len(frames), max(1, len(frames) // 4))
    whole = frames.dtype.kind in "iu" or all(bool(np.all(frames[i] % 1 == 0)) for i in some)
    if whole and 0.85 < gain < 1.15:
        return 1.0, None
    if gain <= 0 or mean <= 0:
        raise EmphaseError("the stack: no noise in the frames, expected counts of single electrons or grey values with their noise")
    kind = "whole numbers" if whole else "not whole numbers"
    note = f"grey values are not counts ({kind}, variance {gain:.3g} x mean at high frequencies): taken as counts times {gain:.3g}"
    return 1 / gain, note


def unusable_frames(means: np.ndarray) -> dict[int, str]:
    """Frames that their mean alone rules out, blanked beams above all.

    Parameters
    ----------
    means
        Mean (n,) of every frame.

    Returns
    -------
    The frames that cannot be used, by number, with the reason.
    """
    lit = means[means > 0.2 * means.max()]
    usual = float(np.median(lit))
    out = {}
    for i, mean in enumerate(means):
        if mean < 0.4 * usual:
            out[i] = f"blank: mean {mean:.3g} against {usual:.3g} of the others"
        elif mean > 2.5 * usual:
            out[i] = f"too bright: mean {mean:.3g} against {usual:.3g} of the others"
    return out
