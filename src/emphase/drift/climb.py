"""At last every frame of a long stack climbs to its sub-pixel maximum against the scene of all segments together.

The scene is the sum of the segments where the trajectory puts them; the few frames that climb together are taken out of it, so that
no frame is compared with itself. A chunk of the work is the core of a segment.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numba
import numpy as np

from ..chunks import finish_chunks
from .counts import poisson_shift_information
from .joint import _DriftPrior, _Joint
from .likelihood import _Canvas, _Sum
from .options import OPTIONS
from .segments import _counts_of, _Items
from .trajectory import _Setting, _Trajectory


class _Scene(_Sum):
    """The aligned sum of a stack that a canvas holds a few frames of: counts less those of a flat scene, and coverage, on that canvas."""

    def __init__(self, canvas: _Canvas, data: np.ndarray, coverage: np.ndarray):
        super().__init__(canvas)
        self.spectrum, self.coverage = canvas.spectrum(data), coverage

    def most(self) -> float:
        return float(self.coverage.max())

    def counts(self) -> float:
        return self.canvas.rate * float(self.coverage.sum(dtype=np.float64))

    def seen(self) -> np.ndarray:
        return (self.coverage > 0.5).astype(np.float32)


@dataclass
class _Against(_Joint):
    """Frames that are compared with one scene of others."""

    known: tuple[np.ndarray, np.ndarray] = field(kw_only=True)  # the scene and where it is seen

    def leave_one_out(self) -> Any:
        for i in self.members:
            yield int(i), *self.known


class _Whole(NamedTuple):
    """What the segments show together, on an image whose pixel (0, 0) is ``corner`` of the scene."""

    data: np.ndarray
    coverage: np.ndarray
    corner: np.ndarray

    def window(self, low: np.ndarray, size: np.ndarray) -> _Whole:
        """A part of it, 0 where it does not reach."""
        parts = []
        first = low - self.corner
        for image in self[:2]:
            part = np.zeros(size, np.float32)
            inside = [(max(0, -f), min(s, n - f)) for f, s, n in zip(first, size, image.shape, strict=True)]
            if all(a < b for a, b in inside):
                here, there = (tuple(slice(a + f, b + f) for (a, b), f in zip(inside, off, strict=True)) for off in ((0, 0), first))
                part[here] = image[there]
            parts.append(part)
        return _Whole(parts[0], parts[1], low)


def _whole_scene(trajectory: _Trajectory, chosen: np.ndarray, rate: float, margin: int) -> _Whole:
    """The sums of chosen segments (k,) where they belong, a fraction of a pixel undone in Fourier space."""
    from scipy.ndimage import fourier_shift

    corner = -trajectory.places - margin  # of the sums, in the scene
    low = np.floor(corner[chosen].min(axis=0)).astype(int) - 4
    size = np.ceil(corner[chosen].max(axis=0)).astype(int) + np.array(trajectory.sums.shape[1:]) + 8 - low
    whole = _Whole(np.zeros(size, np.float32), np.zeros(size, np.float32), low)
    for k in np.flatnonzero(chosen):
        first = np.floor(corner[k]).astype(int)
        data = np.pad(trajectory.sums[k] - np.float32(rate) * trajectory.coverage[k], 4)
        part = corner[k] - first
        moved = np.fft.irfft2(fourier_shift(np.fft.rfft2(data), part, data.shape[1]), data.shape)
        here = tuple(slice(f - 4 - a, f - 4 - a + n) for f, a, n in zip(first, low, data.shape, strict=True))
        whole.data[here] += moved
        covered = np.pad(trajectory.coverage[k], 4)
        for axis in (0, 1):
            covered = (1 - part[axis]) * covered + part[axis] * np.roll(covered, 1, axis)
        whole.coverage[here] += covered
    return whole


def _joint_against(
    rate: float, counts: np.ndarray, shift: np.ndarray, in_sum: np.ndarray, whole: _Whole
) -> tuple[_Against, np.ndarray] | None:
    """Counts (k, y, x) of items at shifts (k, 2) against the scene without them, and the origin of the shifts; None where none is seen."""
    middle = np.round((shift.min(axis=0) + shift.max(axis=0)) / 2)
    canvas = _counts_of(rate, counts, np.ptp(shift, axis=0) / 2 + OPTIONS.tight_room_px)
    low = -np.array([(size - f) // 2 for size, f in zip(canvas.shape, canvas.frame_shape, strict=True)])
    seen = whole.window(low - middle.astype(int), np.array(canvas.shape))
    total = _Scene(canvas, *(np.roll(image, low, (0, 1)) for image in seen[:2]))
    for k in np.flatnonzero(in_sum):
        total.add(int(k), shift[k] - middle, -1)
    total.coverage = np.maximum(total.coverage, 0)
    if total.most() < 0.5:
        return None
    known, prior = (total.scene(rounds=12), total.seen()), _DriftPrior(np.zeros(2), OPTIONS.start_spread_px)
    return _Against(canvas, np.arange(len(counts)), shift - middle, np.zeros(len(counts)), prior, known=known), middle


def _climb_segment(
    items: _Items, numbers: np.ndarray, shift: np.ndarray, in_sum: np.ndarray, good: np.ndarray, whole: _Whole
) -> dict[str, np.ndarray]:
    """Items of a segment at the sub-pixel maximum of their likelihood against the scene of all but the few around them.

    ``shift`` (n, 2) is where they are, and in the scene if they are (``in_sum``); ``good`` are those that climb. Returns ``shift``,
    ``information``, ``contrast`` with its ``error``, ``scale`` (beam current), and of the few together the factor of their ``noise``
    over that of counts and ``floor``, the information of a frame with the scene known.
    """
    from scipy import fft

    n = len(numbers)
    out = {"shift": shift.copy(), "information": np.zeros((n, 2, 2)), "floor": np.zeros((n, 2, 2))}
    out |= {"contrast": np.zeros(n), "error": np.full(n, np.inf), "scale": np.ones(n), "noise": np.ones(n)}
    climbing = np.flatnonzero(good)
    step = max(2, min(math.ceil(n / 8), int(OPTIONS.block_bytes * 4 // (8 * math.prod(items.shape)))))
    with fft.set_workers(numba.get_num_threads()):
        for part in np.array_split(climbing, math.ceil(len(climbing) / step)) if len(climbing) else ():
            counts = np.concatenate([counts for _, counts in items.read(numbers[part])])
            placed = _joint_against(items.rate, counts, shift[part], in_sum[part], whole)
            if placed is None:
                continue
            joint, middle = placed
            canvas = joint.canvas
            for _ in range(2):
                _, information = joint.climb()
                canvas.scale = canvas.totals / (canvas.area * items.rate)
            out["scale"][part] = canvas.scale
            out["shift"][part], out["information"][part] = joint.shifts + middle, information
            out["contrast"][part], out["error"][part] = joint.contrasts()
            out["noise"][part] = joint.noise_factor() if len(part) > 1 else 1.0
            bright = items.rate * (1 + canvas.under(joint.known[0], joint.shifts.mean(axis=0)))
            out["floor"][part] = poisson_shift_information(bright)
    return out


def _climbed(items: _Items, trajectory: _Trajectory, good: np.ndarray, setting: _Setting) -> dict[str, np.ndarray]:
    """The arrays of `_climb_segment` for all items."""
    n, segments = len(items.groups), trajectory.segments
    chosen = np.array([good[segment.core].any() for segment in segments.values()])
    whole = _whole_scene(trajectory, chosen, items.rate, items.margin)
    in_sum = trajectory.in_sum & np.repeat(chosen, [segment.core.stop - segment.core.start for segment in segments.values()])
    layout: dict[str, tuple] = {"shift": ((n, 2), np.float64, 0)} | {name: ((n, 2, 2), np.float64, 0) for name in ("information", "floor")}
    layout |= {name: ((n,), np.float64, 0) for name in ("contrast", "error", "scale", "noise")}
    store = setting.opened(f"climb_{len(items.groups[0])}", layout, {name: (segment.core,) for name, segment in segments.items()})

    def arguments(name: str) -> tuple:
        core = segments[name].core
        shift = trajectory.shift[core][good[core]] if good[core].any() else np.zeros((1, 2))
        low, high = np.floor(-shift.max(axis=0)).astype(int) - 100, np.ceil(-shift.min(axis=0)).astype(int) + np.array(items.shape) + 100
        return np.arange(core.start, core.stop), trajectory.shift[core], in_sum[core], good[core], whole.window(low, high - low)

    return finish_chunks(store, _climb_segment, (items,), arguments, setting.scheduler, setting.progress)
