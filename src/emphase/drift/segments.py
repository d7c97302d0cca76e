"""Joint solutions of segments: consecutive frames, few enough to be solved together, one chunk of long work each.

Neighbouring segments share some frames, which tells how they lie to each other but for errors of a lattice cell (`trajectory`). Each
segment gives the shifts of its frames, solved in a field in their middle, and the sum of its frames in full. The sums are the frames of
a shorter stack with next to no noise, which is solved in the same way.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numba
import numpy as np

from .joint import _incoherent_power
from .likelihood import _Canvas, _Sum
from .options import OPTIONS, joint_solution_bytes
from .solution import _Found, _register_counts
from .stack import read_frames

_LEFT_OUT = (  # the reasons that a code stands for
    "lies where no other frame does",
    "foreign or blurred: does not show what the frames around it show",
    "drifts beyond the largest shift that is looked for (max_shift_px), or follows frames that do",
    "the frames around it show nothing that stands out of the noise",
    "foreign: lies in a part of the stack that shows something else",
)


def _middle(shape: Iterable[int], side: int) -> tuple[slice, slice]:
    """The middle of an image of ``shape``, of this side at most."""
    y, x = (slice((n - min(n, side)) // 2, (n + min(n, side)) // 2) for n in shape)
    return y, x


@dataclass(frozen=True)
class _Items:
    """What is registered: sums of ``groups`` of frames, their grey values times ``per_unit``, in pixels ``binning`` times as large.

    ``rate`` is the usual mean of a pixel of an item, ``take_in`` are items that are kept although they look foreign.
    """

    frames: Any
    groups: list[np.ndarray]
    usable: np.ndarray
    per_unit: float = 1.0
    binning: int = 1
    rate: float = 1.0
    take_in: frozenset[int] = frozenset()

    @property
    def shape(self) -> tuple[int, int]:
        """Sides (y, x) of an item."""
        return tuple(n // self.binning for n in self.frames.shape[1:])

    def read(self, numbers: np.ndarray, field: tuple[slice, slice] = np.s_[:, :]) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Items of ascending numbers a few at a time: the numbers, and counts (k, y, x) of a field of them."""
        from skimage.measure import block_reduce

        size, b = max(len(self.groups[i]) for i in numbers), self.binning
        step = max(1, int(OPTIONS.block_bytes // (4 * size * math.prod(self.frames.shape[1:]))))
        for first in range(0, len(numbers), step):
            part = numbers[first : first + step]
            raw = read_frames(self.frames, np.concatenate([self.groups[i] for i in part]))
            if b > 1:
                raw = raw[:, : self.shape[0] * b, : self.shape[1] * b]
                raw = block_reduce(raw, (1, b, b), np.sum, func_kwargs={"dtype": np.float32})
            raw = raw[(slice(None), *field)]
            raw = raw if self.per_unit == 1 else raw.astype(np.float32) * np.float32(self.per_unit)
            if size > 1:
                ends = np.cumsum([len(self.groups[i]) for i in part])[:-1]
                raw = np.stack([group.sum(axis=0, dtype=np.float32) for group in np.split(raw, ends)])
            yield part, raw

    @property
    def margin(self) -> int:
        """How far (px) an item may lie from the middle of its segment to be in its sum, which is larger by that on every side."""
        return max(8, min(self.shape) // 12)

    @property
    def sum_shape(self) -> tuple[int, int]:
        """Sides (y, x) of the sum of a segment."""
        return self.shape[0] + 2 * self.margin, self.shape[1] + 2 * self.margin

    def field(self, side: int) -> tuple[slice, slice]:
        """The middle of an item, of this side at most."""
        return _middle(self.shape, side)

    def sample(self, field: tuple[slice, slice], most: int = 8) -> np.ndarray:
        """A few items (k, y, x), evenly spread, in a field."""
        usable = np.flatnonzero(self.usable)
        chosen = usable[np.unique(np.linspace(0, len(usable) - 1, most).astype(int))]
        return np.concatenate([counts for i in chosen for _, counts in self.read(np.array([i]), field)])


def _contrast_and_loss(counts: np.ndarray) -> tuple[float, float]:
    """Signal-to-noise of all that one frame shows, and the share of the information on shifts that pixels twice as large lose."""
    alone = _Canvas(counts, np.zeros(2))
    power = _incoherent_power(alone, np.arange(len(counts))) * alone.double
    information = power * (alone.qy[:, None] ** 2 + alone.qx[None] ** 2)
    passed = (np.cos(alone.qy[:, None] / 2) * np.cos(alone.qx[None] / 2)) ** 2
    inside = (np.abs(alone.qy[:, None]) < np.pi / 2) & (alone.qx[None] < np.pi / 2)
    loss = 1 - float(np.sum(information * passed * inside) / np.sum(information)) if information.any() else 1.0
    return math.sqrt(max(0.0, float(np.sum(power)) / alone.rate)), loss


def _field_of(items: _Items, budget_bytes: float) -> tuple[slice, slice]:
    """The middle of the items, so large that they show enough there to be placed, if memory allows."""
    side = OPTIONS.field_px
    while side < max(items.shape) and _contrast_and_loss(items.sample(items.field(side)))[0] < OPTIONS.field_snr:
        if joint_solution_bytes(OPTIONS.least_segment, tuple(min(n, 2 * side) for n in items.shape)) > budget_bytes:
            break
        side *= 2
    return items.field(side)


@dataclass(frozen=True)
class _Segment:
    """Consecutive items that are solved together; ``core`` is the part of them (slice of all items) that is this segment's alone."""

    items: np.ndarray
    core: slice


def _segments_of(n: int, field: tuple[slice, slice], budget_bytes: float) -> dict[str, _Segment]:
    """Segments of n items, as long as memory allows, by name."""
    shape = tuple(part.stop - part.start for part in field)
    affordable = max((k for k in range(2, OPTIONS.segment + 1) if joint_solution_bytes(k, shape) <= budget_bytes), default=2)
    most = max(OPTIONS.least_segment, affordable)
    if n <= most:
        return {"segment_0": _Segment(np.arange(n), slice(0, n))}
    shared = min(OPTIONS.shared, most // 4)
    edges = np.linspace(0, n - shared, math.ceil((n - shared) / (most - shared)) + 1).astype(int).tolist()
    found = {}
    for k, (low, high) in enumerate(itertools.pairwise(edges)):
        first, last = low + (shared // 2 if k else 0), high + (shared // 2 if high < edges[-1] else shared)
        found[f"segment_{k}"] = _Segment(np.arange(low, high + shared), slice(first, last))
    return found


def _segment_layout(items: _Items, segments: dict[str, _Segment]) -> tuple[dict, dict]:
    """Layout and chunks of `ChunkStore` for the results of `_solve_segment`."""
    k, length, summed = len(segments), max(len(s.items) for s in segments.values()), items.sum_shape
    layout = {"shift": ((k, length, 2), np.float64, 0), "code": ((k, length), np.int8, 0), "middle": ((k, 2), np.int64, 0)}
    layout |= {name: ((k, length), np.float64, 0) for name in ("elsewhere", "jump_nats")}
    layout |= {"sum": ((k, *summed), np.float32, 0), "coverage": ((k, *summed), np.float32, 0), "snr": ((k,), np.float64, 0)}
    return layout, {name: (slice(i, i + 1),) for i, name in enumerate(segments)}


def _solve_segment(
    items: _Items, field: tuple[slice, slice], reach: np.ndarray, length: int, segment: _Segment, about: np.ndarray | None
) -> dict[str, np.ndarray]:
    """Joint solution of a segment, in a field of its frames, and the sum of its core, in full: the arrays of `_segment_layout`.

    ``code`` numbers the reasons in `_LEFT_OUT`, 0 is none and -1 no item; ``jump_nats`` is the margin of a jump before an item, else 0.
    In the sum an item at the shift ``middle`` has its pixel (0, 0) at the margin. ``about`` (n, 2) as in `joint._solve`.
    """
    members = np.flatnonzero(items.usable[segment.items])
    out: dict[str, np.ndarray] = {"shift": np.zeros((length, 2)), "code": np.full(length, -1, np.int8), "middle": np.zeros(2, np.int64)}
    out |= {"snr": np.zeros(()), "elsewhere": np.zeros(length), "jump_nats": np.zeros(length)}
    out |= {"sum": np.zeros(items.sum_shape, np.float32), "coverage": np.zeros(items.sum_shape, np.float32)}
    out["code"][: len(segment.items)] = 3
    found = _register_segment(items, field, reach, segment, members, about)
    if found is not None and found.snr >= OPTIONS.least_snr:
        _enter_shifts(out, found, members)
        _enter_sum(out, items, segment)
    return {name: values[None] for name, values in out.items()}


def _register_segment(
    items: _Items, field: tuple[slice, slice], reach: np.ndarray, segment: _Segment, members: np.ndarray, about: np.ndarray | None
) -> _Found | None:
    """Joint solution of members of a segment; from the frames that it lost, where these are more than those it kept."""
    from scipy import fft

    if len(members) < 2:
        return None
    with fft.set_workers(numba.get_num_threads()):
        counts = np.concatenate([counts for _, counts in items.read(segment.items, field)])
        take_in = frozenset(k for k, i in enumerate(segment.items) if int(i) in items.take_in)
        found = _register_counts(counts, members, reach, take_in, about)
        for _ in range(2):  # the frames that it begins with may be those that are foreign
            lost = [k for k, why in found.left_out.items() if not why.startswith("foreign")] if found else []
            if len(lost) <= len(members) / 2:
                break
            found = _register_counts(counts, np.array(sorted(lost)), reach, take_in, about)
    return found


def _enter_shifts(out: dict[str, np.ndarray], found: _Found, members: np.ndarray) -> None:
    """Enter shifts, codes and doubts of a joint solution into the arrays of its segment."""
    joint = found.joint
    out["snr"][...] = found.snr
    out["shift"][joint.members] = joint.shifts[joint.members]
    out["elsewhere"][: len(joint.elsewhere)] = joint.elsewhere
    out["code"][members] = 1
    out["code"][joint.members] = 0
    for k, why in found.left_out.items():
        out["code"][k] = 1 if why.startswith("foreign") else 2
    for jump in joint.jumps:
        out["jump_nats"][jump["frame"]] = max(1e-3, jump["margin_nats"])


def _enter_sum(out: dict[str, np.ndarray], items: _Items, segment: _Segment) -> None:
    """Enter the sum of a segment's core, about the item that lies in the middle of the others."""
    core = np.flatnonzero(out["code"][: len(segment.items)] == 0)
    core = core[(segment.items[core] >= segment.core.start) & (segment.items[core] < segment.core.stop)]
    if len(core):
        away = np.linalg.norm(out["shift"][core] - np.median(out["shift"][core], axis=0), axis=1)
        out["middle"][:] = np.round(out["shift"][core[np.argmin(away)]])
        core = core[np.abs(out["shift"][core] - out["middle"]).max(axis=1) < items.margin]
        out["sum"], out["coverage"] = _summed(items, segment.items[core], out["shift"][core] - out["middle"])


def _summed(items: _Items, numbers: np.ndarray, shift: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Sum and coverage of items moved back by shifts (k, 2) below the margin, on images larger by that on every side."""
    from scipy import fft

    size, margin = items.sum_shape, items.margin
    summed, coverage = np.zeros((2, *size), np.float32)
    place = dict(zip(numbers.tolist(), shift, strict=True))
    with fft.set_workers(numba.get_num_threads()):
        for part, counts in items.read(numbers):
            total = _Sum(_counts_of(items.rate, counts, np.full(2, margin)))
            for k, i in enumerate(part.tolist()):
                total.add(k, place[i])
            image = total.canvas.image(total.spectrum) + np.float32(items.rate) * total.coverage
            for result, found in ((summed, image), (coverage, total.coverage)):
                result += np.roll(found, (margin, margin), (0, 1))[: size[0], : size[1]]
    return summed, coverage


def _counts_of(rate: float, counts: np.ndarray, reach: np.ndarray) -> _Canvas:
    """A canvas whose beam currents are relative to that of frames with ``rate`` counts a pixel."""
    canvas = _Canvas(counts, reach)
    canvas.rate, canvas.scale = rate, canvas.totals / (canvas.area * rate)
    return canvas
