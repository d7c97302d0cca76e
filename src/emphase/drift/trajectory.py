"""The trajectory of a long stack, from joint solutions of its segments.

Segments are chained by the items that they share. Their sums are then registered in the same way, about these places, as the items of a
shorter stack: there a segment in a wrong lattice cell is seen best, because a sum has next to no noise. What the sums say moves whole
segments; within a segment its own joint solution stands.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from ..chunks import ChunkStore, finish_chunks
from .options import OPTIONS
from .pairs import _overlapping, pair_shifts
from .segments import _field_of, _Items, _Segment, _segment_layout, _segments_of, _solve_segment


class _Setting(NamedTuple):
    """How a long registration works: largest shift looked for (2,) in px, memory, where chunks are kept and who does them.

    ``opened`` gives a `ChunkStore` for a name, a layout and chunks; ``scheduler`` and ``progress`` as in `finish_chunks`.
    """

    reach: np.ndarray
    budget_bytes: float
    opened: Callable[..., ChunkStore]
    scheduler: str = ""
    progress: Callable | None = None


@dataclass
class _Trajectory:
    """Shifts (n, 2) of items, ``code`` (n,) of `_LEFT_OUT`, probability of another cell, margins of jumps (0 where there is none).

    ``sums`` and ``coverage`` are those of the segments, ``places`` (k, 2) where these lie: an item at the shift ``places`` has its
    pixel (0, 0) at the margin. ``in_sum`` (n,) are the items that are in the sums.
    """

    shift: np.ndarray
    code: np.ndarray
    elsewhere: np.ndarray
    jump_nats: np.ndarray
    segments: dict[str, _Segment]
    sums: np.ndarray
    coverage: np.ndarray
    places: np.ndarray
    in_sum: np.ndarray


def _trajectory_of(items: _Items, setting: _Setting, about: np.ndarray | None = None, level: int = 0) -> _Trajectory | None:
    """Trajectory of items through their segments, and of these through segments of theirs; None where most segments show nothing.

    ``about`` (n, 2) are the shifts, where they are known but for lattice cells; ``level`` 0 is that of the items of a stack.
    """
    field = _field_of(items, setting.budget_bytes)
    segments = _segments_of(len(items.groups), field, setting.budget_bytes)
    store = setting.opened(f"segments_{len(items.groups[0])}_{level}", *_segment_layout(items, segments))
    shared = (items, field, setting.reach, store.arrays["code"].shape[1])
    arguments = lambda name: (segments[name], None if about is None else about[segments[name].items])
    found = finish_chunks(store, _solve_segment, shared, arguments, setting.scheduler, setting.progress)
    solved = (found["code"] == 0).sum(axis=1) > 1
    if solved.sum() <= len(segments) / 2:
        return None
    m = items.margin
    fields = found["sum"][:, 2 * m : -2 * m, 2 * m : -2 * m]  # that all items of a sum cover
    places, agrees = _chain_segments(found, list(segments.values()), fields)
    of_sums = _trajectory_of_sums(fields, solved & agrees, setting, places, level + 1) if len(segments) > 1 else None
    if of_sums is not None and (of_sums.code == 0).any():
        better = of_sums.code == 0
        places = np.where(better[:, None], of_sums.shift, places + np.median((of_sums.shift - places)[better], axis=0))
    return _joined(items, segments, found, places, agrees, of_sums)


def _trajectory_of_sums(fields: np.ndarray, usable: np.ndarray, setting: _Setting, places: np.ndarray, level: int) -> _Trajectory | None:
    """Trajectory of segments from the ``fields`` (k, y, x) of their sums, about the ``places`` where they were chained."""
    if usable.sum() < 2:
        return None
    usual = float(np.median([f.mean(dtype=np.float64) for f, good in zip(fields, usable, strict=True) if good]))
    sums = _Items(fields, list(np.arange(len(fields))[:, None]), usable, rate=usual)
    return _trajectory_of(sums, setting._replace(scheduler="", progress=None), places, level)


def _joined(
    items: _Items, segments: dict[str, _Segment], found: dict[str, np.ndarray], places: np.ndarray, agrees: np.ndarray,
    of_sums: _Trajectory | None,
) -> _Trajectory:  # fmt: skip
    """The cores of all segments at their places, with the doubts of the segments and of their sums."""
    n = len(items.groups)
    whole = _Trajectory(
        np.zeros((n, 2)), np.full(n, 3), np.zeros(n), np.zeros(n), segments, found["sum"], found["coverage"], places, np.zeros(n, bool)
    )
    for k, segment in enumerate(segments.values()):
        core = np.arange(segment.core.start, segment.core.stop)
        local = core - segment.items[0]
        code, off_middle = found["code"][k, local], found["shift"][k, local] - found["middle"][k]
        whole.shift[core] = places[k] + found["shift"][k, local] - found["middle"][k]
        whole.in_sum[core] = (code == 0) & (np.abs(off_middle).max(axis=1) < items.margin)
        whole.elsewhere[core], whole.jump_nats[core] = found["elsewhere"][k, local], found["jump_nats"][k, local]
        if of_sums is not None:
            whole.elsewhere[core] = 1 - (1 - whole.elsewhere[core]) * (1 - of_sums.elsewhere[k])
            whole.jump_nats[core[0]] = max(whole.jump_nats[core[0]], of_sums.jump_nats[k])
        foreign = not agrees[k] or (of_sums is not None and of_sums.code[k] == 1)
        whole.code[core] = np.where(foreign & (code == 0) & ~np.isin(core, list(items.take_in)), 4, code)
    return whole


class _Link(NamedTuple):
    """How a segment lies to an earlier one: the shift (2,) of its middle against that, and the agreement of their sums there."""

    earlier: int
    step: np.ndarray
    agreement: float


def _chain_segments(found: dict[str, np.ndarray], segments: list[_Segment], fields: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Shifts (k, 2) of the middles of segments, each from the items that it shares with the one before, and which segments agree (k,).

    Where it shares none, or the sums' ``fields`` (k, y, x) then do not agree as others do (a segment that shows something else), it
    goes where its field agrees best with one of the four before.
    """
    lit = [k for k in range(len(segments)) if (found["code"][k] == 0).sum() > 1 and fields[k].any()]
    shared = {k: _link_by_items(found, segments, fields, j, k) for j, k in itertools.pairwise(lit)}
    usual = float(np.quantile([link.agreement for link in shared.values() if link] or [0.0], 0.75))
    places, agreement = np.zeros((len(segments), 2)), dict.fromkeys(lit[:1], usual)
    for n, k in enumerate(lit[1:], 1):
        link = shared[k]
        if link is None or link.agreement < 0.5 * usual:
            link = _link_by_fields(fields, lit[max(0, n - 4) : n], k)
        places[k] = places[link.earlier] + link.step
        agreement[k] = link.agreement
    agrees = [k in agreement and agreement[k] >= OPTIONS.least_likeness * usual for k in range(len(segments))]
    return places, np.array(agrees)


def _link_by_items(found: dict[str, np.ndarray], segments: list[_Segment], fields: np.ndarray, j: int, k: int) -> _Link | None:
    """The link of segment k to j by the items that both have placed; None where there are none."""
    placed = [segments[i].items[found["code"][i, : len(segments[i].items)] == 0] for i in (j, k)]
    both = np.intersect1d(*placed)
    if len(both) == 0:
        return None
    there, here = (found["shift"][i, both - segments[i].items[0]] - found["middle"][i] for i in (j, k))
    step = np.median(there - here, axis=0)
    return _Link(j, step, _agreement(fields[[j, k]], step))


def _link_by_fields(fields: np.ndarray, earlier: list[int], k: int) -> _Link:
    """The link of segment k to that of the ``earlier`` ones whose sum agrees best, at the peak of their correlation."""
    links = []
    for i in earlier:
        step = pair_shifts(fields[[i, k]], np.ones(2, bool), 0.4 * min(fields.shape[1:]))[0, 1]
        links.append(_Link(i, step, _agreement(fields[[i, k]], step)))
    return max(links, key=lambda link: link.agreement)


def _agreement(pair: np.ndarray, shift: np.ndarray) -> float:
    """Correlation coefficient of what two images (2, y, x) both show, the second being moved by +shift; 0 where that is little."""
    if np.any(np.abs(shift) > 0.75 * np.array(pair.shape[1:])):
        return 0.0
    first, second = _overlapping(pair, shift)
    return float(np.corrcoef(first.ravel(), second.ravel())[0, 1])
