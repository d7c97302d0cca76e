"""Registration of stacks larger than memory: segment by segment, then the segments' sums, then every frame against the sum of all.

Segments are chunks of long work (`..chunks`): in this process or on a cluster, at once or after a crash, the result is the same to the
bit. Frames too faint are summed with their neighbours, and pixels are summed where they are smaller than what the spectrum shows.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np

from ..chunks import ChunkStore, LongWork
from .climb import _climbed
from .counts import DriftSolution
from .options import OPTIONS
from .segments import _LEFT_OUT, _contrast_and_loss, _Items
from .solution import _NOTHING_SHOWS, _axis_variance, _off_group_px, _Prepared, _prepared, _refusal, _why_grouped
from .trajectory import _Setting, _Trajectory, _trajectory_of


def _register_long(
    frames: Any, max_shift_px: float | None, leave_out: frozenset[int], take_in: frozenset[int], budget_bytes: float,
    work: LongWork | None, progress: Callable | None,
) -> DriftSolution:  # fmt: skip
    """`register_stack` by segments."""
    prepared = _prepared(frames, max_shift_px, leave_out, take_in)
    members, reach_px = prepared.members, prepared.reach_px
    if len(members) < 2:
        return _refusal(prepared, f"{len(members)} usable frame: two at least are needed to see drift")
    depends = (frames.shape, members, prepared.per_unit, reach_px, sorted(leave_out), sorted(take_in), budget_bytes)
    folder = work.chunk_folder(_register_long, *depends) if work else None
    with contextlib.ExitStack() as open_stores:

        def opened(name: str, layout: dict, chunks: dict) -> ChunkStore:
            store = ChunkStore(layout, chunks, folder and folder / name)
            open_stores.callback(store.close)
            return store

        for size in (1, 2, 4, 8):
            items = _items_of(frames, prepared, take_in, size)
            reach = np.full(2, reach_px / items.binning)
            setting = _Setting(reach, budget_bytes, opened, work.scheduler if work else "", progress)
            trajectory = _trajectory_of(items, setting)
            if trajectory is not None:
                break
        if trajectory is None:
            return _refusal(prepared, f"{prepared.means[members].mean() * prepared.per_unit:.3g} {_NOTHING_SHOWS}")
        good = (trajectory.code == 0) & items.usable
        first = trajectory.shift[np.flatnonzero(good)[0]]
        far = good & (np.abs(trajectory.shift - first).max(axis=1) > reach[0])
        trajectory.code[far] = 2
        good &= ~far
        found = {name: values.copy() for name, values in _climbed(items, trajectory, good, setting).items()}
    return _long_solution(prepared, items, trajectory, good, found)


def _items_of(frames: Any, prepared: _Prepared, take_in: frozenset[int], size: int) -> _Items:
    """Sums of ``size`` neighbouring frames, in pixels as large as the information on shifts allows."""
    n, members = len(frames), prepared.members
    groups = list(np.arange(n)[:, None]) if size == 1 else [members[k : k + size] for k in range(0, len(members), size)]
    usable = np.isin(np.arange(n), members) if size == 1 else np.ones(len(groups), bool)
    items = _Items(frames, groups, usable, prepared.per_unit)
    while max(items.shape) > 1024 and _contrast_and_loss(items.sample(items.field(1024)))[1] < OPTIONS.binning_loss:
        items = replace(items, binning=2 * items.binning)
    rate = float(np.median(prepared.means[members])) * prepared.per_unit * size * items.binning**2
    return replace(items, rate=rate, take_in=frozenset(k for k, group in enumerate(groups) if take_in & set(group.tolist())))


def _weak_items(items: _Items, good: np.ndarray, found: dict[str, np.ndarray]) -> tuple[np.ndarray, float]:
    """Which items show less than half of the usual contrast, by four standard errors, and that contrast."""
    contrast, error = found["contrast"], found["error"]
    seen = good & np.isfinite(error)
    usual = float(np.median(contrast[seen]))
    weak = seen & (contrast < 0.5 * usual) & (usual - contrast > 4 * error)
    return weak & ~np.isin(np.arange(len(good)), list(items.take_in)), usual


def _precision(found: dict[str, np.ndarray], used: np.ndarray, size: int) -> tuple[np.ndarray, float]:
    """Standard deviation of each item's position along an axis (n,), and the floor of one; as `solution._position_sigma`."""
    scale, information = found["scale"], found["information"][used]
    mean = np.mean(information / scale[used, None, None], axis=0)
    variance = _axis_variance(mean) * max(1.0, float(found["noise"][used].mean()))
    sigma = np.sqrt(variance * (1 - 1 / used.sum()) / np.maximum(scale, 1e-6))
    if size > 1:
        sigma = np.hypot(sigma, _off_group_px(found["shift"][used], size))
    return sigma, math.sqrt(_axis_variance(found["floor"][used].mean(axis=0)))


def _long_solution(
    prepared: _Prepared, items: _Items, trajectory: _Trajectory, good: np.ndarray, found: dict[str, np.ndarray]
) -> DriftSolution:
    """What was found for items, as that of their frames; the first frame used is the origin."""
    size, binning, n = len(items.groups[0]), items.binning, len(prepared.means)
    index = np.full(n, -1)
    for k, group in enumerate(items.groups):
        index[group] = k
    weak, usual = _weak_items(items, good, found)
    used_item = good & np.isfinite(found["error"]) & ~weak
    left_out = dict(prepared.left_out)
    for i in (int(i) for i in np.flatnonzero(index >= 0) if int(i) not in left_out):
        k = index[i]
        if weak[k]:
            share, error = found["contrast"][k] / usual, found["error"][k] / usual
            left_out[i] = f"foreign or blurred: shows {share:.2f} ± {error:.2f} of the others' contrast"
        elif not used_item[k]:
            left_out[i] = _LEFT_OUT[trajectory.code[k]]
    used = np.array([i not in left_out for i in range(n)])
    of_frames = lambda values: np.where(used.reshape(-1, *[1] * (values.ndim - 1)), values[index], 0.0)
    sigma, floor = _precision(found, used_item, size)
    jump_nats = trajectory.jump_nats * used_item
    return DriftSolution(
        shift_px=of_frames(found["shift"] - found["shift"][index[int(np.flatnonzero(used)[0])]]) * binning,
        sigma_px=of_frames(sigma) * binning,
        used=used,
        left_out=left_out,
        registered=True,
        reason=_why_grouped(size),
        group=size,
        hop_probability=of_frames(trajectory.elsewhere),
        jumps=[{"frame": int(items.groups[k][0]), "margin_nats": float(trajectory.jump_nats[k])} for k in np.flatnonzero(jump_nats)],
        crlb_px=floor * binning * math.sqrt(size),
        contrast=of_frames(found["contrast"] / usual),
        counts_per_unit=prepared.per_unit,
        notes=(*prepared.notes, _how(n, len(trajectory.segments), binning)),
    )


def _how(n: int, n_segments: int, binning: int) -> str:
    """A note on how a long stack was registered."""
    text = f"{n} frames do not fit into memory: registered in {n_segments} segments, then each against the sum of all"
    return text + (f"; in pixels {binning} times as large, which hold what the spectrum shows" if binning > 1 else "")
