"""TODO."""

from __future__ import annotations

import contextlib
import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import numba
import numpy as np

from ..chunks import ChunkStore, LongWork, finish_chunks
from .counts import DriftSolution, poisson_shift_information
from .joint import _DriftPrior, _Joint
from .likelihood import _Canvas, _Sum
from .options import _BLOCK_BYTES, _START_SPREAD_PX, _TIGHT_ROOM_PX
from .pairs import _overlapping, pair_shifts
from .segments import (
    _BINNING_LOSS,
    _LEAST_LIKENESS,
    _LEFT_OUT,
    _contrast_and_loss,
    _counts_of,
    _field_of,
    _Items,
    _Segment,
    _segment_layout,
    _segments_of,
    _solve_segment,
)
from .solution import _NOTHING_SHOWS, _axis_variance, _given, _off_group_px, _refusal, _why_grouped


@dataclass
class _Trajectory:
    """Shifts (n, 2) of items, ``code`` (n,) of `_LEFT_OUT`, probability of another cell, margins of jumps (0 none), signal-to-noise.

    ``sums``, ``coverage`` and ``at`` (k, 2) are those of the segments: an item at the shift ``at`` has its pixel (0, 0) at the margin.
    ``in_sum`` (n,) are the items that are in the sums.
    """

    shift: np.ndarray
    code: np.ndarray
    elsewhere: np.ndarray
    jump_nats: np.ndarray
    snr: float
    segments: dict[str, _Segment]
    sums: np.ndarray
    coverage: np.ndarray
    at: np.ndarray
    in_sum: np.ndarray


def _trajectory_of(
    items: _Items, reach: np.ndarray, rate: float, take_in: frozenset[int], budget_bytes: float, opened: Callable,
    scheduler: str, progress: Callable | None, about: np.ndarray | None = None, level: int = 0,
) -> _Trajectory | None:  # fmt: skip
    """The way of items through their segments, from segments of these, and so on; None where most segments show nothing.

    ``opened`` gives a `ChunkStore` for a name, a layout and chunks.
    """
    field = _field_of(items, budget_bytes)
    segments = _segments_of(len(items.groups), field, budget_bytes)
    store = opened(f"segments_{len(items.groups[0])}_{level}", *_segment_layout(items, segments))
    length = store.arrays["code"].shape[1]
    chosen = lambda name: (segments[name], None if about is None else about[segments[name].items])
    found = finish_chunks(store, _solve_segment, (items, field, reach, rate, take_in, length), chosen, scheduler, progress)
    solved = (found["code"] == 0).sum(axis=1) > 1
    if solved.sum() <= len(segments) / 2:
        return None
    n, m = len(items.groups), items.margin
    fields = found["sum"][:, 2 * m : -2 * m, 2 * m : -2 * m]  # that all items of a sum cover
    at, agrees = _chained(found, list(segments.values()), fields)
    way = _Trajectory(np.zeros((n, 2)), np.full(n, 3), np.zeros(n), np.zeros(n), float(np.median(found["snr"][solved])), segments,
               found["sum"], found["coverage"], at, np.zeros(n, bool))  # fmt: skip
    above = None
    if len(segments) > 1:
        sums = _Items(fields, list(np.arange(len(segments))[:, None]), solved & agrees)
        usual = float(np.median([f.mean(dtype=np.float64) for f, good in zip(fields, sums.usable, strict=True) if good] or [1.0]))
        above = (
            _trajectory_of(sums, reach, usual, frozenset(), budget_bytes, opened, "", None, at, level + 1)
            if sums.usable.sum() > 1
            else None
        )
    if above is not None and (above.code == 0).any():
        better = above.code == 0
        at = np.where(better[:, None], above.shift, at + np.median((above.shift - at)[better], axis=0))
        way.at = at
    for k, segment in enumerate(segments.values()):
        own = np.arange(segment.own.start, segment.own.stop)
        local = own - segment.items[0]
        shift = found["shift"][k, local]
        way.shift[own] = at[k] + shift - found["middle"][k]
        way.in_sum[own] = (found["code"][k, local] == 0) & (np.abs(shift - found["middle"][k]).max(axis=1) < m)
        way.code[own], way.elsewhere[own], way.jump_nats[own] = (found[name][k, local] for name in ("code", "elsewhere", "jump_nats"))
        if above is not None:
            way.elsewhere[own] = 1 - (1 - way.elsewhere[own]) * (1 - above.elsewhere[k])
            way.jump_nats[own[0]] = max(way.jump_nats[own[0]], above.jump_nats[k])
        strange = not agrees[k] or (above is not None and above.code[k] == 1)
        way.code[own] = np.where(strange & (way.code[own] == 0) & ~np.isin(own, list(take_in)), 4, way.code[own])
    return way


def _chained(found: dict[str, np.ndarray], segments: list[_Segment], fields: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Shifts (k, 2) of the middles of segments, each from the items that it shares with the one before, and which segments agree (k,).

    Where it shares none, or the sums' ``fields`` (k, y, x) then do not agree as others do (a segment that shows something else), it
    goes where its field agrees best with one of the four before.
    """
    at, lit = np.zeros((len(segments), 2)), [k for k in range(len(segments)) if (found["code"][k] == 0).sum() > 1 and fields[k].any()]
    steps, agreement, linked = {}, {}, []
    for j, k in itertools.pairwise(lit):
        good = [segments[i].items[found["code"][i, : len(segments[i].items)] == 0] for i in (j, k)]
        both = np.intersect1d(*good)
        there, here = (found["shift"][i, both - segments[i].items[0]] - found["middle"][i] for i in (j, k))
        linked += [k] if len(both) else []
        steps[k] = np.median(there - here, axis=0) if len(both) else np.zeros(2)
        agreement[k] = _agreement(fields[[j, k]], steps[k]) if len(both) else 0.0
    usual = float(np.quantile([agreement[k] for k in linked] or [0.0], 0.75))
    for n, (j, k) in enumerate(itertools.pairwise(lit)):
        at[k] = at[j] + steps[k]
        if agreement[k] < 0.5 * usual or k not in linked:
            others = {
                i: pair_shifts(fields[[i, k]], np.ones(2, bool), 0.4 * min(fields.shape[1:]))[0, 1] for i in lit[max(0, n - 3) : n + 1]
            }
            agrees = {i: _agreement(fields[[i, k]], shift) for i, shift in others.items()}
            best = max(agrees, key=lambda i: agrees[i])
            at[k], agreement[k] = at[best] + others[best], agrees[best]
    return at, np.array([k in lit and agreement.get(k, usual) >= _LEAST_LIKENESS * usual for k in range(len(segments))])


def _agreement(pair: np.ndarray, shift: np.ndarray) -> float:
    """Correlation coefficient of what two images (2, y, x) both show, the second being moved by +shift; 0 where that is little."""
    if np.any(np.abs(shift) > 0.75 * np.array(pair.shape[1:])):
        return 0.0
    first, second = _overlapping(pair, shift)
    return float(np.corrcoef(first.ravel(), second.ravel())[0, 1])


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


def _whole_scene(way: _Trajectory, chosen: np.ndarray, rate: float, margin: int) -> _Whole:
    """The sums of chosen segments (k,) where they belong, a fraction of a pixel undone in Fourier space."""
    from scipy.ndimage import fourier_shift

    corner = -way.at - margin  # of the sums, in the scene
    low = np.floor(corner[chosen].min(axis=0)).astype(int) - 4
    size = np.ceil(corner[chosen].max(axis=0)).astype(int) + np.array(way.sums.shape[1:]) + 8 - low
    whole = _Whole(np.zeros(size, np.float32), np.zeros(size, np.float32), low)
    for k in np.flatnonzero(chosen):
        first = np.floor(corner[k]).astype(int)
        data = np.pad(way.sums[k] - np.float32(rate) * way.coverage[k], 4)
        part = corner[k] - first
        moved = np.fft.irfft2(fourier_shift(np.fft.rfft2(data), part, data.shape[1]), data.shape)
        here = tuple(slice(f - 4 - a, f - 4 - a + n) for f, a, n in zip(first, low, data.shape, strict=True))
        whole.data[here] += moved
        covered = np.pad(way.coverage[k], 4)
        for axis in (0, 1):
            covered = (1 - part[axis]) * covered + part[axis] * np.roll(covered, 1, axis)
        whole.coverage[here] += covered
    return whole


def _climb_segment(
    items: _Items, rate: float, numbers: np.ndarray, shift: np.ndarray, in_sum: np.ndarray, good: np.ndarray,
    whole: _Whole,
) -> dict[str, np.ndarray]:  # fmt: skip
    """Items of a segment at the sub-pixel maximum of their likelihood against the scene of all but the few around them.

    ``shift`` (n, 2) is where they are, and in the scene if they are (``in_sum``); ``good`` are those that are wanted. Returns ``shift``,
    ``information``, ``contrast`` with its ``error``, ``scale`` (beam current), and of the few together the factor of their ``noise``
    over that of counts and ``floor``, the information of a frame with the scene known.
    """
    from scipy import fft

    n = len(numbers)
    out = {"shift": shift.copy(), "information": np.zeros((n, 2, 2)), "floor": np.zeros((n, 2, 2))}
    out |= {"contrast": np.zeros(n), "error": np.full(n, np.inf), "scale": np.ones(n), "noise": np.ones(n)}
    wanted = np.flatnonzero(good)
    step = max(2, min(math.ceil(n / 8), int(_BLOCK_BYTES * 4 // (8 * math.prod(items.shape)))))
    with fft.set_workers(numba.get_num_threads()):
        for part in np.array_split(wanted, math.ceil(len(wanted) / step)) if len(wanted) else ():
            counts = np.concatenate([counts for _, counts in items.read(numbers[part])])
            middle = np.round((shift[part].min(axis=0) + shift[part].max(axis=0)) / 2)
            canvas = _counts_of(rate, counts, np.ptp(shift[part], axis=0) / 2 + _TIGHT_ROOM_PX)
            low = -np.array([(size - f) // 2 for size, f in zip(canvas.shape, canvas.frame_shape, strict=True)])
            seen = whole.window(low - middle.astype(int), np.array(canvas.shape))
            total = _Scene(canvas, *(np.roll(image, low, (0, 1)) for image in seen[:2]))
            for k, i in enumerate(part):
                if in_sum[i]:
                    total.add(k, shift[i] - middle, -1)
            total.coverage = np.maximum(total.coverage, 0)
            if total.most() < 0.5:
                continue
            members, start = np.arange(len(part)), shift[part] - middle
            known, prior = (total.scene(rounds=12), total.seen()), _DriftPrior(np.zeros(2), _START_SPREAD_PX)
            joint = _Against(canvas, members, start, np.zeros(len(part)), prior, known=known)
            for _ in range(2):
                _, information = joint.climb()
                out["scale"][part] = canvas.scale = canvas.totals / (canvas.area * rate)
            out["shift"][part], out["information"][part] = joint.shifts + middle, information
            out["contrast"][part], out["error"][part] = joint.contrasts()
            out["noise"][part] = joint.noise_factor() if len(part) > 1 else 1.0
            bright = rate * (1 + canvas.under(joint.known[0], joint.shifts.mean(axis=0)))
            out["floor"][part] = poisson_shift_information(bright)
    return out


def _register_long(
    frames: Any, max_shift_px: float | None, leave_out: frozenset[int], take_in: frozenset[int], budget_bytes: float,
    work: LongWork | None, progress: Callable | None,
) -> DriftSolution:  # fmt: skip
    """`register_stack` by segments."""
    per_unit, notes, left_out, members, means, reach = _given(frames, max_shift_px, leave_out, take_in)
    if len(members) < 2:
        return _refusal(frames, left_out, per_unit, notes, f"{len(members)} usable frame: two at least are needed to see drift")
    usable = np.isin(np.arange(len(frames)), members)
    depends = ("drift", frames.shape, members, per_unit, reach, sorted(leave_out), sorted(take_in), budget_bytes)
    folder = work.chunk_folder(*depends) if work else None
    scheduler = work.scheduler if work else ""
    with contextlib.ExitStack() as open_stores:

        def opened(name: str, layout: dict, chunks: dict) -> ChunkStore:
            store = ChunkStore(layout, chunks, folder and folder / name)
            open_stores.callback(store.close)
            return store

        for size in (1, 2, 4, 8):
            groups = list(np.arange(len(frames))[:, None]) if size == 1 else [members[k : k + size] for k in range(0, len(members), size)]
            items = _Items(frames, groups, usable if size == 1 else np.ones(len(groups), bool), per_unit)
            while max(items.shape) > 1024 and _contrast_and_loss(items.sample(items.field(1024)))[1] < _BINNING_LOSS:
                items = replace(items, binning=2 * items.binning)
            rate = float(np.median(means[members])) * per_unit * size * items.binning**2
            kept = frozenset(k for k, group in enumerate(groups) if take_in & set(group.tolist()))
            options = (np.full(2, reach / items.binning), rate, kept, budget_bytes, opened, scheduler, progress)
            way = _trajectory_of(items, *options)
            if way is not None:
                break
        if way is None:
            return _refusal(frames, left_out, per_unit, notes, f"{means[members].mean() * per_unit:.3g} {_NOTHING_SHOWS}")
        good = (way.code == 0) & items.usable
        first = way.shift[np.flatnonzero(good)[0]]
        far = good & (np.abs(way.shift - first).max(axis=1) > reach / items.binning)
        way.code[far] = 2
        good &= ~far
        found = _climbed(items, way, good, rate, opened, scheduler, progress)
        found = {name: values.copy() for name, values in found.items()}
    return _long_solution(frames, items, way, good, found, left_out, kept, per_unit, notes)


def _climbed(
    items: _Items, way: _Trajectory, good: np.ndarray, rate: float, opened: Callable, scheduler: str, progress: Callable | None
) -> dict[str, np.ndarray]:
    """The arrays of `_climb_segment` for all items."""
    n = len(items.groups)
    chosen = np.array([good[segment.own].any() for segment in way.segments.values()])
    whole = _whole_scene(way, chosen, rate, items.margin)
    in_sum = way.in_sum & np.repeat(chosen, [segment.own.stop - segment.own.start for segment in way.segments.values()])
    layout: dict[str, tuple] = {"shift": ((n, 2), np.float64, 0)} | {name: ((n, 2, 2), np.float64, 0) for name in ("information", "floor")}
    layout |= {name: ((n,), np.float64, 0) for name in ("contrast", "error", "scale", "noise")}
    store = opened(f"climb_{len(items.groups[0])}", layout, {name: (segment.own,) for name, segment in way.segments.items()})

    def arguments(name: str) -> tuple:
        own = way.segments[name].own
        shift = way.shift[own][good[own]] if good[own].any() else np.zeros((1, 2))
        low, high = np.floor(-shift.max(axis=0)).astype(int) - 100, np.ceil(-shift.min(axis=0)).astype(int) + np.array(items.shape) + 100
        return np.arange(own.start, own.stop), way.shift[own], in_sum[own], good[own], whole.window(low, high - low)

    return finish_chunks(store, _climb_segment, (items, rate), arguments, scheduler, progress)


def _long_solution(
    frames: Any, items: _Items, way: _Trajectory, good: np.ndarray, found: dict[str, np.ndarray], left_out: dict[int, str], kept: frozenset[int],
    per_unit: float, notes: tuple,
) -> DriftSolution:  # fmt: skip
    """What the segments gave for items, told for frames; the first frame used is the origin."""
    size, b, n = len(items.groups[0]), items.binning, len(frames)
    index = np.full(n, -1)
    for k, group in enumerate(items.groups):
        index[group] = k
    seen = good & np.isfinite(found["error"])
    usual = float(np.median(found["contrast"][seen]))
    weak = (
        seen
        & (found["contrast"] < 0.5 * usual)
        & (usual - found["contrast"] > 4 * found["error"])
        & ~np.isin(np.arange(len(good)), list(kept))
    )
    used_item = seen & ~weak
    left_out = dict(left_out)
    for i in np.flatnonzero(index >= 0):
        k = index[i]
        if int(i) not in left_out and weak[k]:
            share, error = found["contrast"][k] / usual, found["error"][k] / usual
            left_out[int(i)] = f"foreign or blurred: shows {share:.2f} ± {error:.2f} of the others' contrast"
        elif int(i) not in left_out and not used_item[k]:
            left_out[int(i)] = _LEFT_OUT[way.code[k]]
    used = np.array([i not in left_out for i in range(n)])
    scale, information = found["scale"], found["information"][used_item]
    mean = np.mean(information / scale[used_item, None, None], axis=0)
    variance = _axis_variance(mean) * max(1.0, float(found["noise"][used_item].mean()))
    sigma = np.sqrt(variance * (1 - 1 / used_item.sum()) / np.maximum(scale, 1e-6))
    floor = math.sqrt(_axis_variance(found["floor"][used_item].mean(axis=0)))
    if size > 1:
        sigma = np.hypot(sigma, _off_group_px(found["shift"][used_item], size))
    pick = lambda values: np.where(used.reshape(-1, *[1] * (values.ndim - 1)), values[index], 0.0)
    shift = found["shift"] - found["shift"][index[int(np.flatnonzero(used)[0])]]
    jumps = [{"frame": int(items.groups[k][0]), "margin_nats": float(way.jump_nats[k])} for k in np.flatnonzero(way.jump_nats * used_item)]
    told = f"{n} frames do not fit into memory: registered in {len(way.segments)} segments, then each against the sum of all"
    told += f"; in pixels {b} times as large, which hold what the spectrum shows" if b > 1 else ""
    return DriftSolution(
        pick(shift) * b, pick(sigma) * b, used, left_out, True, _why_grouped(size), size, pick(way.elsewhere), jumps,
        floor * b * math.sqrt(size), pick(found["contrast"] / usual), per_unit, (*notes, told),
    )  # fmt: skip
