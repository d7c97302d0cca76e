"""Crystals that hold a few per cent of a pattern beside those that were chosen: a thin plate in a thick matrix.

Sets of overlapping crystals (`emphase.ped.overlap`) compare shares from an eighth on, and a crystal with two per cent of the counts earns
nothing in a search over all spots: it is asked to explain the bright ones. So what the chosen crystals leave over is searched on its own.
Spots that they explain are *hidden*: a further crystal neither gains by them nor loses, for what it has there cannot be seen. Where four
clear spots are left, the orientation of every phase is searched among them; it must beat chance and the price of a crystal that no
neighbour holds. It is then offered to the patterns about it, refined there, and accepted for the price of a neighbour's crystal.

Such a crystal never gives a pattern its phase; the margin is then that of sets, with all shares. Its share is one of counts: those of its
own spots over what it is to have there, times all that it is to have, over the counts of all clear spots within the reach of the templates.
How much a crystal that is nowhere alone scatters for its thickness nobody knows, and dynamical scattering weakens the strong reflections of
the matrix, so it is no share of thickness. A crystal that sets found, and whose lattice leads nowhere in this part of the scan, has its
share in the same way (`part_followers`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from ..kernels import kernel, side_by_side
from .evidence import _Camera, _collect, _near_ewald, _predict, _refine, _room, _view, _within
from .families import _SAME_LATTICE
from .lattices import OPTIONS as LATTICE_OPTIONS
from .lattices import _Components
from .overlap import _MOST_PARTS
from .overlap import OPTIONS as OVERLAP_OPTIONS
from .search import _nearest_operator
from .spots import Spots, _SpotArrays
from .templates import _Reflections


class FaintOptions(NamedTuple):
    """Tuning numbers of faint crystals; a named tuple, which kernels read. Prices are those of `emphase.ped.overlap`."""

    least_spots: int = LATTICE_OPTIONS.least_unexplained  # clear ones that are left, for a search ...
    offered_spots: int = 2  # ... and for what a neighbour found to be looked at
    most_share: float = 0.5  # of the counts: more would be no faint crystal
    most_left: float = 0.1  # share of the clear counts that is left: from here on sets decide
    reach: int = 2  # patterns
    seen_nats: float = 4.0  # spots expected so far above the background count for the share, measured or not
    share_turns: int = 4  # of which these are
    strength_spread: float = 0.6  # of the strength of a spot about the bank's
    least_margin: float = 3.0  # nats to the best crystal of another phase: few spots may fit both


OPTIONS = FaintOptions()


class _Known(NamedTuple):
    """Reflections of all candidates, the ``first`` (p + 1,) of each, the camera, and the ``operators`` of every phase; for kernels."""

    refs: _Reflections
    first: np.ndarray
    camera: _Camera
    operators: Any


class _Residue(NamedTuple):
    """What the chosen crystals of n patterns leave: ``table`` and ``number`` as in `Spots`, and how many are ``clear`` (n,).

    Behind the spots that are left, ``table`` holds those that are hidden. ``counts`` (n,) are those of all clear spots, and ``share``
    (n,) is what is left of them.
    """

    table: np.ndarray
    number: np.ndarray
    clear: np.ndarray
    counts: np.ndarray
    share: np.ndarray


class _Found(NamedTuple):
    """A faint crystal of each of n patterns: ``phase`` (n,), -1 for none, and ``rotation`` (n, 3, 3).

    ``evidence`` (n,) and the ``value`` (n,) less its price are in nats; ``share`` and ``sd`` (n,) of the counts.
    """

    phase: np.ndarray
    rotation: np.ndarray
    evidence: np.ndarray
    value: np.ndarray
    share: np.ndarray
    sd: np.ndarray


@kernel
def _mark_explained(i, known, parts, chosen, view, near, explained):
    """Mark the spots of pattern i that its chosen components predict."""
    refs, first, camera = known.refs, known.first, known.camera
    explained[:] = False
    for q in range(_MOST_PARTS):
        if chosen[i, q] >= 0:
            phase, rotation = parts.phase[i, chosen[i, q]], parts.rotation[i, chosen[i, q]]
            _collect(rotation, near, _near_ewald(rotation, 0.0, refs, first[phase], first[phase + 1], near), refs, camera, view)
            for k in range(len(view.strength)):
                explained[k] |= view.strength[k] > 0


@kernel(nogil=True)
def _leave_over(numbers, spots, known, parts, chosen, residue):
    """Part the spots of the patterns ``numbers`` into those that their chosen components predict and those that are left."""
    refs, camera = known.refs, known.camera
    work = _room(camera, len(refs.g))
    near = np.empty(len(refs.g), np.int64)
    explained = np.empty(spots.table.shape[1], np.bool_)
    longest = np.sqrt((refs.g**2).sum(axis=1).max())
    for i in numbers:
        view, _ = _view(spots.table[i], spots.number[i], spots.background[i], spots.centre[i], camera, work)
        _mark_explained(i, known, parts, chosen, view, near, explained)
        n, clear, left, total = 0, 0, 0.0, 1e-9
        for hidden in (False, True):
            for k in range(spots.number[i]):
                spot = spots.table[i, k]
                if explained[k] != hidden or not _within(view, k, camera, longest):
                    continue
                residue.table[i, n] = spot
                n += 1
                if spot[4] > LATTICE_OPTIONS.clear_nats:
                    total += spot[2] - spot[3]
                    clear += not hidden
                    left += 0.0 if hidden else spot[2] - spot[3]
            if not hidden:
                residue.number[i] = n
        residue.clear[i], residue.counts[i], residue.share[i] = clear, total, left / total


@kernel(nogil=True)
def _offer(numbers, shape, spots, clear, known, alone, out):
    """Offer the patterns ``numbers`` what was found ``alone`` about them, and keep the best, into ``out``."""
    refs, first, camera, operators = known
    ny, nx = shape
    work = _room(camera, len(refs.g))
    near = np.empty(len(refs.g), np.int64)
    rotation = np.empty((3, 3))
    for i in numbers:
        if clear[i] < OPTIONS.offered_spots:
            continue
        y, x = i // nx, i % nx
        view, diffracted = _view(spots.table[i], spots.number[i], spots.background[i], spots.centre[i], camera, work)
        for v in range(max(0, y - OPTIONS.reach), min(ny, y + OPTIONS.reach + 1)):
            for u in range(max(0, x - OPTIONS.reach), min(nx, x + OPTIONS.reach + 1)):
                j = v * nx + u
                phase = alone.phase[j]
                if j == i or phase < 0:
                    continue
                of_it = phase == out.phase[i]
                if of_it and _nearest_operator(out.rotation[i], alone.rotation[j], operators[phase])[1] < _SAME_LATTICE:
                    out.value[i] = max(out.value[i], out.evidence[i] - OVERLAP_OPTIONS.near_nats)  # a neighbour holds it as well
                    continue
                rotation[:] = alone.rotation[j]
                n = _near_ewald(rotation, 2 * LATTICE_OPTIONS.tilt, refs, first[phase], first[phase + 1], near)
                evidence = _refine(rotation, LATTICE_OPTIONS.tilt, LATTICE_OPTIONS.levels, near[:n], refs, camera, view, diffracted)
                value = evidence - OVERLAP_OPTIONS.near_nats - LATTICE_OPTIONS.above_chance
                if value > out.value[i]:
                    out.phase[i], out.evidence[i], out.value[i] = phase, evidence, value
                    out.rotation[i] = rotation


@kernel
def _group(found, phase_operators, number):
    """Number the crystals of the patterns with a faint one into ``number`` (n,): one phase in one orientation; returns how many."""
    leaders = np.empty(len(number), np.int64)
    n = 0
    for i in np.argsort(-found.value, kind="mergesort"):
        if found.phase[i] < 0:
            continue
        phase = found.phase[i]
        for k in range(n):
            if number[i] < 0 and found.phase[leaders[k]] == phase:
                angle = _nearest_operator(found.rotation[i], found.rotation[leaders[k]], phase_operators[phase])[1]
                number[i] = k if angle < _SAME_LATTICE else -1
        if number[i] < 0:
            leaders[n], number[i] = i, n
            n += 1
    return n


@kernel(nogil=True)
def _share_counts(numbers, spots, counts, known, found):
    """The share of the ``counts`` (n,) of the patterns ``numbers`` that their faint crystal has, and its standard deviation.

    By the ratio of sums over the places that are not hidden: measured counts over expected ones, where these would be seen.
    """
    refs, first, camera, _ = known
    work = _room(camera, len(refs.g))
    near = np.empty(len(refs.g), np.int64)
    for i in numbers:
        phase, rotation = found.phase[i], found.rotation[i]
        if phase < 0:
            continue
        view, _ = _view(spots.table[i], spots.number[i], spots.background[i], spots.centre[i], camera, work)
        n_near = _near_ewald(rotation, 0.0, refs, first[phase], first[phase + 1], near)
        n_missed, _ = _collect(rotation, near, n_near, refs, camera, view)
        matched = measured = 0.0
        for k in range(spots.number[i]):
            if view.strength[k] > 0:
                matched += view.strength[k]
                measured += view.spots[k, 2] - view.spots[k, 3]
        unit = measured / max(matched, 1e-9)
        for _ in range(OPTIONS.share_turns):
            expected = matched
            for j in range(n_missed):
                mean, below = unit * view.missed[j, 0], view.missed[j, 1]
                if mean * mean > 2 * OPTIONS.seen_nats * (below + mean):
                    expected += view.missed[j, 0]
            unit = measured / max(expected, 1e-9)
        squares = 0.0
        for k in range(spots.number[i]):
            squares += view.strength[k] ** 2
        everywhere = 0.0
        for j in range(_predict(rotation, near, n_near, refs, camera, view.centre, view.predicted)):
            everywhere += view.predicted[j, 2]
        found.share[i] = min(unit * everywhere / counts[i], OPTIONS.most_share)
        found.sd[i] = found.share[i] * OPTIONS.strength_spread * np.sqrt(squares) / max(matched, 1e-9)


def _search_alone(residue: Spots, search: Callable[[Spots], tuple[np.ndarray, np.ndarray]], some: np.ndarray) -> _Found:
    """The best crystal among what is left of the patterns ``some``, where it beats chance, its price, and the other phases."""
    n = len(residue.number)
    found = _Found(np.full(n, -1), np.zeros((n, 3, 3)), *np.zeros((4, n)))
    if not len(some):
        return found
    rotation, support = search(residue[some])
    value = support - OVERLAP_OPTIONS.far_nats
    best = np.argmax(value, axis=0)
    second = np.sort(value, axis=0)[-2] if len(value) > 1 else -np.inf
    sure = value.max(axis=0) > np.maximum(second + OPTIONS.least_margin, 0)
    here, k = some[sure], best[sure]
    found.phase[here], found.rotation[here] = k, rotation[k, sure]
    found.evidence[here], found.value[here] = support[k, sure], value[k, sure]
    return found


def _left_over(spots: Spots, known: _Known, parts: _Components, chosen: np.ndarray) -> _Residue:
    """What the chosen crystals of n patterns leave."""
    n = len(chosen)
    residue = _Residue(np.zeros_like(spots.table), np.zeros(n, np.int64), np.zeros(n, np.int64), np.zeros(n), np.zeros(n))
    side_by_side(_leave_over, n, _SpotArrays(*spots.arrays), known, parts, chosen, residue)
    return residue


def part_followers(spots: Spots, known: _Known, parts: _Components, chosen: np.ndarray, share: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Take the faint crystals out of sets: the sets (n, 3) without them, and the components (n,) that were taken out, -1 for none.

    A member is one where its lattice is hardly anywhere in this part of the scan that of the largest crystal, while that of this pattern's
    is in several, and where a small part of the counts is left without it: no pattern tells how bright it is in itself.
    """
    there = chosen >= 0
    lattice = np.where(there, np.take_along_axis(parts.lattice, np.maximum(chosen, 0), axis=1), -1)
    largest = there & (share == share.max(axis=1, keepdims=True))
    leading, often = np.unique(lattice[largest & (lattice >= 0)], return_counts=True)
    leading = leading[often >= LATTICE_OPTIONS.least_size]
    follows = there & ~largest & ~np.isin(lattice, leading)
    settled = (largest & np.isin(lattice, leading)).any(axis=1)
    place = np.where(follows.any(axis=1) & settled, np.argmax(follows, axis=1), -1)
    some = np.flatnonzero(place >= 0)
    residue = _left_over(spots[some], known, _Components(*(values[some] for values in parts)), _without(chosen[some], place[some]))
    faint = some[(residue.share < OPTIONS.most_left) & (residue.clear >= OPTIONS.offered_spots)]
    taken = np.full(len(chosen), -1)
    taken[faint] = chosen[faint, place[faint]]
    return _without(chosen, np.where(taken >= 0, place, -1)), taken


def _without(chosen: np.ndarray, place: np.ndarray) -> np.ndarray:
    """The sets (n, 3) less the member at ``place`` (n,), those behind it moved up."""
    kept = np.where(np.arange(_MOST_PARTS) == place[:, None], -1, chosen)
    return np.take_along_axis(kept, np.argsort(kept < 0, axis=1, kind="stable"), axis=1)


def find_faint_crystals(
    spots: Spots, shape: tuple[int, ...], known: _Known, search: Callable[[Spots], tuple[np.ndarray, np.ndarray]], parts: _Components,
    chosen: np.ndarray, follower: np.ndarray, neighbours: bool,
) -> tuple[_Found, np.ndarray]:  # fmt: skip
    """The faint crystals of n patterns, and the number (n,) of each, -1 for none: one phase in one orientation.

    ``search`` gives the best orientation of every phase among the spots of some patterns, (p, n, 3, 3), and its evidence above chance
    (p, n). ``follower`` (n,) is a component that is known to be in a pattern beside those that are ``chosen``, or -1.
    """
    n = len(chosen)
    residue = _left_over(spots, known, parts, chosen)
    left = Spots(residue.table, residue.number, spots.background, spots.centre_px)
    told = np.flatnonzero(follower >= 0)
    room = (chosen[:, 0] >= 0) & (chosen[:, -1] < 0) & (residue.share < OPTIONS.most_left) & (follower < 0)
    alone = _search_alone(left, search, np.flatnonzero(room & (residue.clear >= OPTIONS.least_spots)))
    for of_scan, of_parts in ((alone.phase, parts.phase), (alone.rotation, parts.rotation), (alone.evidence, parts.evidence)):
        of_scan[told] = of_parts[told, follower[told]]
    alone.value[told] = alone.evidence[told]
    found, number = _Found(*(a.copy() for a in alone)), np.full(n, -1)
    arrays = _SpotArrays(*left.arrays)
    if neighbours:
        side_by_side(_offer, n, shape, arrays, np.where(room, residue.clear, 0), known, alone, found)
    side_by_side(_share_counts, n, arrays, residue.counts, known, found)
    found.phase[(found.share >= OPTIONS.most_share) & (follower < 0)] = -1  # too little of it is seen to tell its share
    _group(found, known.operators, number)
    return found, number


def with_faint(
    parts: _Components, chosen: np.ndarray, share: np.ndarray, sd: np.ndarray, found: _Found, number: np.ndarray
) -> tuple[_Components, np.ndarray, np.ndarray, np.ndarray]:
    """Components (n, c + 1), sets, shares and their errors (n, 3) with the faint crystals as the last component and member.

    The shares of the others become those of what the faint one leaves.
    """
    here = np.flatnonzero(number >= 0)
    free = np.argmax(chosen[here] < 0, axis=1)
    lattice = np.where(number >= 0, parts.lattice.max() + 1 + number, -1)
    further = (found.phase, lattice, np.zeros_like(number), found.rotation, found.evidence)
    parts = _Components(*(np.concatenate([old, new[:, None]], axis=1) for old, new in zip(parts, further, strict=True)))
    chosen, share, sd = chosen.copy(), share * (1 - np.where(number >= 0, found.share, 0)[:, None]), sd.copy()
    chosen[here, free] = parts.phase.shape[1] - 1
    share[here, free], sd[here, free] = found.share[here], found.sd[here]
    return parts, chosen, share, sd
