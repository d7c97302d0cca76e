"""TODO."""

from __future__ import annotations

from typing import NamedTuple

import numba
import numpy as np

from ..kernels import kernel
from .evidence import _camera, _collect, _near_ewald, _refine, _room, _view
from .families import _SAME_LATTICE
from .scan import Calibration
from .search import _nearest_operator, search_phase
from .spots import Spots
from .templates import TemplateBank, _joined_reflections

_LATTICE_REACH = 2  # patterns
_SURE_NATS = 30.0


@kernel
def _product(first, second, out):
    for i in range(3):
        for j in range(3):
            out[i, j] = first[i, 0] * second[0, j] + first[i, 1] * second[1, j] + first[i, 2] * second[2, j]


@kernel
def _joins(i, number, key, leader, operators, lattice, keys):
    """Whether the orientation ``key`` of pattern i lies on lattice ``number``; if so it is noted, turned to the leader's setting."""
    o, angle = _nearest_operator(key, leader, operators)
    if angle > _SAME_LATTICE:
        return False
    lattice[i] = number
    _product(operators[o], key, keys[i])
    return True


@kernel
def _find_lattices(shape, best, support, rotation, least_support, families, shared):
    """Group the patterns' best solutions by lattice, the surest first; each is a lattice of its own where they are not ``shared``.

    Returns the lattice (n,) of every pattern (-1: support too small), its orientation in the
    parent's frame and the lattice's setting (n, 3, 3), the leader's pattern of each lattice, and
    how often each variant of each phase was seen on it (lattices, p, v).
    """
    ny, nx = shape
    n = ny * nx
    lattice, keys = np.full(n, -1), np.zeros((n, 3, 3))
    leaders = np.empty(n, np.int64)
    n_lattices = 0
    key = np.empty((3, 3))
    for i in np.argsort(-support, kind="mergesort"):
        if support[i] < least_support:
            break
        phase = best[i]
        _product(families.to_parent[phase], rotation[i], key)
        y, x, joined = i // nx, i % nx, not shared
        for v in range(max(0, y - 1), min(ny, y + 2)):  # most often one of the neighbours' lattices
            for u in range(max(0, x - 1), min(nx, x + 2)):
                number = lattice[v * nx + u]
                if not joined and number >= 0 and families.family[best[leaders[number]]] == families.family[phase]:
                    joined = _joins(i, number, key, keys[leaders[number]], families.operators[phase], lattice, keys)
        for number in range(0 if joined else n_lattices):
            if not joined and families.family[best[leaders[number]]] == families.family[phase]:
                joined = _joins(i, number, key, keys[leaders[number]], families.operators[phase], lattice, keys)
        if lattice[i] < 0:
            leaders[n_lattices], lattice[i] = i, n_lattices
            keys[i] = key
            n_lattices += 1
    seen = np.zeros((n_lattices, len(families.family), families.from_parent.shape[1]))
    for i in range(n):
        if lattice[i] >= 0:
            phase = best[i]
            nearest, least = 0, 10.0
            for variant in range(families.n_variants[phase]):
                _product(families.from_parent[phase, variant], keys[i], key)
                angle = _nearest_operator(key, rotation[i], families.own[phase])[1]
                if angle < least:
                    nearest, least = variant, angle
            seen[lattice[i], phase, nearest] += 1
    return lattice, keys, leaders[:n_lattices], seen


_MOST_COMPONENTS = 16


class _Components(NamedTuple):
    """What may be in each pattern: ``phase`` (n, c), -1 for nothing, ``lattice`` (-1: of this pattern alone) and ``variant``.

    With ``rotation`` (n, c, 3, 3), sample to crystal, and ``evidence`` (n, c) in nats.
    """

    phase: np.ndarray
    lattice: np.ndarray
    variant: np.ndarray
    rotation: np.ndarray
    evidence: np.ndarray


@kernel
def _lattices_about(i, shape, reach, lattice, size, numbers, nearest):
    """Lattices found within ``reach`` of pattern i, its own first, then the most frequent; returns how many.

    ``nearest`` takes the nearest pattern on each. One whose ``size`` is under three counts only in its own patterns.
    """
    ny, nx = shape
    y, x = i // nx, i % nx
    count, distance = np.zeros(len(numbers)), np.zeros(len(numbers))
    n = 0
    if lattice[i] >= 0:
        numbers[0], nearest[0], count[0], n = lattice[i], i, 1e6, 1
    for v in range(max(0, y - reach), min(ny, y + reach + 1)):
        for u in range(max(0, x - reach), min(nx, x + reach + 1)):
            number, away = lattice[v * nx + u], float((v - y) ** 2 + (u - x) ** 2)
            if number < 0 or size[number] < 3:
                continue
            k = 0
            while k < n and numbers[k] != number:
                k += 1
            if k == n:
                if n == len(numbers):
                    continue
                numbers[n], distance[n], n = number, 1e9, n + 1
            count[k] += 1
            if away < distance[k]:
                distance[k], nearest[k] = away, v * nx + u
    order = np.argsort(-count[:n], kind="mergesort")
    numbers[:n], nearest[:n] = numbers[:n][order], nearest[:n][order]
    return n


@kernel
def _propose(shape, reach, lattice, keys, seen, surest, families, rotation_each, support_each, second, out):
    """Fill ``out`` with what each pattern may hold.

    That is all phases on the lattices about it, its own best solutions ``rotation_each``
    (p, n, 3, 3) of the other phases, and ``second`` (p, n, 3, 3), what the spots ask for that its best crystal leaves.
    """
    n = shape[0] * shape[1]
    p = seen.shape[1]
    size = seen.sum(axis=2).sum(axis=1)
    size[surest > _SURE_NATS] += 3  # found once, but beyond doubt
    numbers, nearest = np.zeros(12, np.int64), np.zeros(12, np.int64)
    for i in range(n):
        c = 0
        n_lattices = min(4, _lattices_about(i, shape, reach, lattice, size, numbers, nearest))
        for m in range(n_lattices):
            number = numbers[m]
            family = -1
            for phase in range(p):
                if seen[number, phase].sum() > 0:
                    family = families.family[phase]
            for phase in range(p):
                often = seen[number, phase].max()
                for variant in range(families.n_variants[phase]):
                    likely = often < 2 or seen[number, phase, variant] >= max(2.0, 0.1 * often)
                    if families.family[phase] == family and likely and c < out.phase.shape[1]:
                        out.phase[i, c], out.lattice[i, c], out.variant[i, c] = phase, number, variant
                        _product(families.from_parent[phase, variant], keys[nearest[m]], out.rotation[i, c])
                        c += 1
        for phase in range(2 * p):
            phase, left = phase % p, phase >= p
            rotation = second[phase, i] if left else rotation_each[phase, i]
            known = rotation[2, 2] == 0 if left else support_each[phase, i] <= 0
            for k in range(c):
                if out.phase[i, k] == phase and not known:
                    known = _nearest_operator(rotation, out.rotation[i, k], families.own[phase])[1] < 2 * _SAME_LATTICE
            if not known and c < out.phase.shape[1]:
                out.phase[i, c] = phase
                out.rotation[i, c] = rotation
                c += 1


@kernel(parallel=True)
def _mark_unexplained(table, number, background, centre, refs, first, camera, phase, rotation, voters, threads):
    """Mark in ``voters`` (n, 64) the spots of at least 8 nats that a pattern's best crystal does not predict."""
    for thread in numba.prange(threads):
        work = _room(camera, len(refs.g))
        near = np.empty(len(refs.g), np.int64)
        for i in range(thread, len(table), threads):
            voters[i] = False
            view, _ = _view(table[i], number[i], background[i], centre[i], camera, work)
            n_near = _near_ewald(rotation[i], 0.0, refs, first[phase[i]], first[phase[i] + 1], near)
            _collect(rotation[i], near, n_near, refs, camera, view)
            for k in range(number[i]):
                voters[i, k] = view.spots[k, 4] > 8 and view.strength[k] <= 0


_LEAST_UNEXPLAINED = 4  # clear spots, which also hold ...
_LEAST_LEFT = 0.1  # ... this share of the net counts of all clear spots, call for a second crystal


def _second_crystals(
    spots: Spots, calibration: Calibration, banks: list[TemplateBank], best: np.ndarray, rotation: np.ndarray
) -> np.ndarray:
    """For every phase the orientation (p, n, 3, 3) that the spots vote for which a pattern's best crystal leaves; 0 where these are few."""
    refs, first = _joined_reflections(banks)
    voters = np.zeros(spots.table.shape[:2], bool)
    _mark_unexplained(*spots.arrays, refs, first, _camera(calibration), best, rotation, voters, numba.get_num_threads())
    net = np.where(spots.table[:, :, 4] > 8, spots.table[:, :, 2] - spots.table[:, :, 3], 0)
    left = (net * voters).sum(axis=1) >= _LEAST_LEFT * net.sum(axis=1)
    some = np.flatnonzero((voters.sum(axis=1) >= _LEAST_UNEXPLAINED) & left)
    found = np.zeros((len(banks), len(best), 3, 3))
    for k, bank in enumerate(banks if len(some) else ()):
        found[k, some] = search_phase(spots[some], calibration, bank, voters=voters[some])[0]
    return found


@kernel(parallel=True)
def _score_components(table, number, background, centre, refs, first, camera, tilt, own, phases, rotations, evidence, threads):
    """Refine every component (n, c) on its pattern; of two that become one orientation of a phase only the better one stays.

    The arrays of `_Components` come one by one: what is written in a parallel loop must not hide in a tuple.
    """
    for thread in numba.prange(threads):
        work = _room(camera, len(refs.g))
        near = np.empty(len(refs.g), np.int64)
        for i in range(thread, len(table), threads):
            view, diffracted = _view(table[i], number[i], background[i], centre[i], camera, work)
            for c in range(phases.shape[1]):
                phase = phases[i, c]
                if phase < 0 or number[i] == 0:
                    phases[i, c] = -1
                    continue
                rotation = rotations[i, c]
                n_near = _near_ewald(rotation, 2 * tilt, refs, first[phase], first[phase + 1], near)
                evidence[i, c] = _refine(rotation, tilt, 3, near, n_near, refs, camera, view, diffracted)
                for k in range(c):
                    if phases[i, k] != phase:
                        continue
                    if _nearest_operator(rotations[i, k], rotation, own[phase])[1] < 0.03:
                        worse = k if evidence[i, k] < evidence[i, c] else c
                        phases[i, worse] = -1
                        evidence[i, worse] = -1e3


@kernel
def _settle(shape, parts, chance, related, nats, choice, agreeing):
    """Choose in turns the component of every pattern with the most support and agreement about it, into ``choice``.

    ``agreeing`` (n, c) takes the number of the eight neighbours whose choice lies on a component's
    lattice, and, of one phase, is the same variant there.
    """
    ny, nx = shape
    for turn in range(6):
        before = choice.copy()
        for i in range(ny * nx):
            best, y, x = -1e9, i // nx, i % nx
            for c in range(parts.phase.shape[1]):
                if parts.phase[i, c] < 0:
                    continue
                agree, own = 0, parts.lattice[i, c]
                for v in range(max(0, y - 1), min(ny, y + 2)):
                    for u in range(max(0, x - 1), min(nx, x + 2)):
                        j = v * nx + u
                        if turn == 0 or nats == 0 or j == i or before[j] < 0 or own < 0:
                            continue
                        d = before[j]
                        other, phase = parts.lattice[j, d], parts.phase[j, d]
                        if other < 0 or not related[own, other] or parts.evidence[j, d] <= chance[phase] + 2:
                            continue
                        agree += phase != parts.phase[i, c] or own != other or parts.variant[j, d] == parts.variant[i, c]
                agreeing[i, c] = agree
                value = parts.evidence[i, c] - chance[parts.phase[i, c]] + nats * agree
                if value > best:
                    best, choice[i] = value, c
        if turn > 0 and np.array_equal(before, choice):
            break


@kernel
def _related_lattices(keys, family, operators):
    """Whether lattices (l, 3, 3) are the same or neighbours in orientation (a bent grain has several), (l, l)."""
    n = len(keys)
    related = np.zeros((n, n), np.bool_)
    for a in range(n):
        related[a, a] = True
        for b in range(a):
            if family[a] == family[b]:
                related[a, b] = related[b, a] = _nearest_operator(keys[a], keys[b], operators[a])[1] < 2 * _SAME_LATTICE
    return related
