"""TODO."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np

from ..errors import EmphaseError
from ..frames import RecordedFrames
from .options import _BLOCK_BYTES, _JOINT_BYTES, _joint_bytes


def check_stack(frames: Any, name: str = "the stack", budget_bytes: float | None = None) -> Any:
    """The stack as an array (n, y, x); `EmphaseError` for anything that cannot be frames of counts.

    Recorded frames (`RecordedFrames`, `PickedFrames`) stay what they are, and are read a few at a time, where the joint
    solution would take more than ``budget_bytes`` of memory (3 GB if not given).
    """
    recorded = isinstance(frames, (RecordedFrames, PickedFrames))
    if recorded and _joint_bytes(len(frames), frames.shape[1:]) <= (_JOINT_BYTES if budget_bytes is None else budget_bytes):
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
    """Some frames of a recorded stack, in the order of ``index`` (n,), ascending, read where they are used."""

    def __init__(self, frames: Any, index: np.ndarray):
        self.frames, self.index = frames, np.asarray(index)
        self.shape, self.dtype = (len(self.index), *frames.shape[1:]), frames.dtype

    def __len__(self) -> int:
        return len(self.index)

    def __getitem__(self, which: Any) -> np.ndarray:
        picked = self.index[which]
        return read_frames(self.frames, picked) if np.ndim(picked) else self.frames[int(picked)]


def read_frames(frames: Any, index: np.ndarray) -> np.ndarray:
    """Frames (k, y, x) of ascending indices of a stack; of recorded frames in one piece, unless they lie far apart."""
    index = np.asarray(index)
    if isinstance(frames, np.ndarray):
        return frames[index]
    if index[-1] - index[0] >= 4 * len(index):
        return np.stack([frames[int(i)] for i in index])
    return frames[int(index[0]) : int(index[-1]) + 1][index - index[0]]


def _blocks(frames: Any, index: np.ndarray | None = None) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Frames of ascending indices (all if not given) a few at a time: the indices, and the frames (k, y, x)."""
    index = np.arange(len(frames)) if index is None else index
    step = max(1, int(_BLOCK_BYTES // (math.prod(frames.shape[1:]) * frames.dtype.itemsize)))
    for k in range(0, len(index), step):
        yield index[k : k + step], read_frames(frames, index[k : k + step])


def frame_means(frames: Any) -> np.ndarray:
    """Mean of every frame (n,)."""
    return np.concatenate([f.reshape(len(f), -1).mean(axis=1, dtype=np.float64) for _, f in _blocks(frames)])


def counts_per_unit(frames: np.ndarray) -> tuple[float, str | None]:
    """Factor that turns grey values of a stack (n, y, x) into counts, with a note where it is not 1.

    White noise fills the corners of the spectrum, beyond the Nyquist circle, where optics leave
    little signal; the variance there against the mean is the gain of the detector
    (grey values a count). Whole numbers within 15 % of Poisson's variance are taken as counts. `EmphaseError` where there is no noise.
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
    """Frames whose mean (n,) alone rules them out, with the reason; blanked beams above all."""
    lit = means[means > 0.2 * means.max()]
    usual = float(np.median(lit))
    out = {}
    for i, mean in enumerate(means):
        if mean < 0.4 * usual:
            out[i] = f"blank: mean {mean:.3g} against {usual:.3g} of the others"
        elif mean > 2.5 * usual:
            out[i] = f"too bright: mean {mean:.3g} against {usual:.3g} of the others"
    return out
