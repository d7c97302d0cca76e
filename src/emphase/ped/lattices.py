"""The lattices of a scan from the best solutions of its patterns, and the crystals that each pattern may hold.

Every pattern has been searched on its own (`emphase.ped.search`). Patterns whose orientations, taken to their family's parent
(`emphase.ped.families`), agree within 3° are on one lattice; the surest pattern of each leads it. A pattern may then hold

- the phases of a family on the lattices that are found around it, in the variants that are frequent there,
- its own best solution of every phase,
- of every phase, the orientation that its unexplained spots vote for, where its best crystal leaves several of them.

These *components* are refined on the pattern's own counts. Which of them is the leading one is settled in turns, by evidence above chance
and a bonus for each of the eight neighbours on the same lattice, of whatever phase: a Potts-like prior on lattices, maximised by iterated
conditional modes (Besag, J. R. Stat. Soc. B 48 (1986) 259).
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from ..kernels import kernel, side_by_side
from .evidence import _camera, _collect, _near_ewald, _refine, _room, _view, _within
from .families import _SAME_LATTICE
from .scan import Calibration
from .search import _nearest_operator, search_phase
from .spots import Spots, _SpotArrays
from .templates import TemplateBank, _joined_reflections


class LatticeOptions(NamedTuple):
    """Tuning numbers of the lattices of a scan and of what a pattern may hold; a named tuple, which kernels read."""

    least_support: float = 3.0  # nats above chance: a pattern with less founds no lattice and joins none
    reach: int = 2  # patterns: the lattices this far about a pattern are offered to it; a thin layer may skip one
    most_about: int = 12  # different lattices that are counted about a pattern, of 25 patterns at most
    most_lattices: int = 4  # of these are offered: more take the room of other orientations
    most_components: int = 16  # a pattern: four lattices of three phases with a variant, and its own solutions
    least_size: int = 3  # patterns: a smaller lattice is offered to its own patterns only ...
    sure_nats: float = 30.0  # ... unless one is beyond doubt
    often: float = 2.0  # times that a variant was seen on a lattice, and ...
    rare_share: float = 0.1  # ... the share of the most frequent one's that it must reach to be offered
    clear_nats: float = 8.0  # a spot this far above the background must be explained
    least_unexplained: int = 4  # clear spots, which also hold ...
    least_left: float = 0.1  # ... this share of the net counts of all clear spots, call for a second crystal
    tilt: float = math.radians(0.3)  # radians, the first step of the refinement about the orientation of a neighbour, ...
    levels: int = 3  # ... halved in each further level
    same_orientation: float = 0.03  # radians; components of a phase that come nearer than this are one
    above_chance: float = 2.0  # nats that a neighbour's crystal must have above chance to count as agreeing
    turns: int = 6  # rounds at most in which the leading components are settled


OPTIONS = LatticeOptions()
_NOTHING = -1e3  # evidence of a component that is none, nats


class _Lattices(NamedTuple):
    """The lattices of a scan of n patterns.

    ``number`` (n,) of the lattice of every pattern (-1: support too small), ``keys`` (n, 3, 3) its orientation in the
    parent's frame and the lattice's setting, the ``leaders`` (l,), which are the surest patterns, and how often each variant of each phase
    was ``seen`` (l, p, v).
    """

    number: np.ndarray
    keys: np.ndarray
    leaders: np.ndarray
    seen: np.ndarray


class _Solutions(NamedTuple):
    """Orientations of every phase for patterns on their own.

    The best ``rotation`` (p, n, 3, 3) with its ``support`` (p, n) above chance, and ``second`` (p, n, 3, 3), what the spots that the best
    crystal leaves vote for; zeros where they are few.
    """

    rotation: np.ndarray
    support: np.ndarray
    second: np.ndarray


class _Components(NamedTuple):
    """What may be in each pattern: ``phase`` (n, c), -1 for nothing, ``lattice`` (-1: of this pattern alone) and ``variant``.

    With ``rotation`` (n, c, 3, 3), sample to crystal, and ``evidence`` (n, c) in nats.
    """

    phase: np.ndarray
    lattice: np.ndarray
    variant: np.ndarray
    rotation: np.ndarray
    evidence: np.ndarray


def _no_components(n: int) -> _Components:
    """Room for the components of n patterns, which hold nothing yet."""
    shape = (n, OPTIONS.most_components)
    return _Components(np.full(shape, -1), np.full(shape, -1), np.zeros(shape, int), np.zeros((*shape, 3, 3)), np.full(shape, _NOTHING))


@kernel
def _product(first, second, out):
    """Matrix product of (3, 3) matrices into ``out``; numpy's would allocate and call BLAS."""
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
def _find_lattices(shape, best, support, rotation, families, shared):
    """Group the patterns' ``best`` phases (n,) and their ``rotation`` (n, 3, 3) by lattice, those of most ``support`` (n,) first.

    Where lattices are not ``shared``, each pattern has one of its own.
    """
    ny, nx = shape
    n = ny * nx
    lattice, keys = np.full(n, -1), np.zeros((n, 3, 3))
    leaders = np.empty(n, np.int64)
    n_lattices = 0
    key = np.empty((3, 3))
    for i in np.argsort(-support, kind="mergesort"):
        if support[i] < OPTIONS.least_support:
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
    seen = _variants_seen(lattice, keys, n_lattices, best, rotation, families)
    return _Lattices(lattice, keys, leaders[:n_lattices], seen)


@kernel
def _variants_seen(lattice, keys, n_lattices, best, rotation, families):
    """How often each variant of each phase is the best solution on each lattice, (l, p, v)."""
    key = np.empty((3, 3))
    seen = np.zeros((n_lattices, len(families.family), families.from_parent.shape[1]))
    for i in range(len(lattice)):
        if lattice[i] >= 0:
            phase = best[i]
            nearest, least = 0, 10.0
            for variant in range(families.n_variants[phase]):
                _product(families.from_parent[phase, variant], keys[i], key)
                angle = _nearest_operator(key, rotation[i], families.phase_operators[phase])[1]
                if angle < least:
                    nearest, least = variant, angle
            seen[lattice[i], phase, nearest] += 1
    return seen


@kernel
def _lattices_about(i, shape, reach, lattice, size, numbers, nearest):
    """Lattices found within ``reach`` of pattern i, that of i first, then the most frequent; returns how many.

    ``nearest`` takes the nearest pattern on each. One whose ``size`` is too small counts only in its own patterns.
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
            if number < 0 or size[number] < OPTIONS.least_size:
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
def _propose_of_lattice(i, c, number, key, seen, families, out):
    """Add the phases on lattice ``number`` in the orientation ``key`` to the c components of pattern i; returns how many there are then.

    ``seen`` (p, v) says which variants are frequent on the lattice; of a phase that was never seen all are offered.
    """
    family = -1
    for phase in range(len(seen)):
        if seen[phase].sum() > 0:
            family = families.family[phase]
    for phase in range(len(seen)):
        most = seen[phase].max()
        for variant in range(families.n_variants[phase]):
            likely = most < OPTIONS.often or seen[phase, variant] >= max(OPTIONS.often, OPTIONS.rare_share * most)
            if families.family[phase] == family and likely and c < out.phase.shape[1]:
                out.phase[i, c], out.lattice[i, c], out.variant[i, c] = phase, number, variant
                _product(families.from_parent[phase, variant], key, out.rotation[i, c])
                c += 1
    return c


@kernel
def _propose(shape, reach, lattices, support, families, solutions, out):
    """Fill ``out`` with what each pattern may hold: the phases on the lattices about it, and its own solutions of each phase.

    ``support`` (l,) is that of the leaders. An orientation that is among those of a pattern is not taken twice.
    """
    p = len(solutions.support)
    size = lattices.seen.sum(axis=2).sum(axis=1)
    size[support > OPTIONS.sure_nats] += OPTIONS.least_size
    numbers, nearest = np.zeros(OPTIONS.most_about, np.int64), np.zeros(OPTIONS.most_about, np.int64)
    for i in range(shape[0] * shape[1]):
        c = 0
        n_lattices = min(OPTIONS.most_lattices, _lattices_about(i, shape, reach, lattices.number, size, numbers, nearest))
        for m in range(n_lattices):
            c = _propose_of_lattice(i, c, numbers[m], lattices.keys[nearest[m]], lattices.seen[numbers[m]], families, out)
        for k in range(2 * p):
            phase, left = k % p, k >= p
            rotation = solutions.second[phase, i] if left else solutions.rotation[phase, i]
            known = rotation[2, 2] == 0 if left else solutions.support[phase, i] <= 0
            for d in range(c):
                if out.phase[i, d] == phase and not known:
                    known = _nearest_operator(rotation, out.rotation[i, d], families.phase_operators[phase])[1] < 2 * _SAME_LATTICE
            if not known and c < out.phase.shape[1]:
                out.phase[i, c] = phase
                out.rotation[i, c] = rotation
                c += 1


@kernel(nogil=True)
def _mark_unexplained(numbers, spots, refs, first, camera, phase, rotation, unexplained):
    """Mark in ``unexplained`` (n, m) the clear spots that the best crystals of patterns, of ``phase`` (n,), do not predict.

    Spots beyond the longest g of all candidates are no candidate's.
    """
    work = _room(camera, len(refs.g))
    longest = math.sqrt((refs.g**2).sum(axis=1).max())
    near = np.empty(len(refs.g), np.int64)
    for i in numbers:
        unexplained[i] = False
        view, _ = _view(spots.table[i], spots.number[i], spots.background[i], spots.centre[i], camera, work)
        n_near = _near_ewald(rotation[i], 0.0, refs, first[phase[i]], first[phase[i] + 1], near)
        _collect(rotation[i], near, n_near, refs, camera, view)
        for k in range(spots.number[i]):
            clear = view.spots[k, 4] > OPTIONS.clear_nats and _within(view, k, camera, longest)
            unexplained[i, k] = clear and view.strength[k] <= 0


def _second_crystals(
    spots: Spots, calibration: Calibration, banks: list[TemplateBank], best: np.ndarray, rotation: np.ndarray
) -> np.ndarray:
    """For every phase the orientation (p, n, 3, 3) that the spots vote for which a pattern's best crystal leaves; 0 where these are few."""
    refs, first = _joined_reflections(banks)
    unexplained = np.zeros(spots.table.shape[:2], bool)
    arrays = _SpotArrays(*spots.arrays)
    side_by_side(_mark_unexplained, len(best), arrays, refs, first, _camera(calibration), best, rotation, unexplained)
    net = np.where(spots.table[:, :, 4] > OPTIONS.clear_nats, spots.table[:, :, 2] - spots.table[:, :, 3], 0)
    left = (net * unexplained).sum(axis=1) >= OPTIONS.least_left * net.sum(axis=1)
    some = np.flatnonzero((unexplained.sum(axis=1) >= OPTIONS.least_unexplained) & left)
    found = np.zeros((len(banks), len(best), 3, 3))
    for k, bank in enumerate(banks if len(some) else ()):
        found[k, some] = search_phase(spots[some], calibration, bank, voters=unexplained[some])[0]
    return found


@kernel(nogil=True)
def _score_components(numbers, spots, refs, first, camera, operators, parts):
    """Refine every component of the patterns ``numbers`` on its pattern, and judge it, in place.

    Of two that become one orientation of a phase only the better one stays.
    """
    phases, rotations, evidence = parts.phase, parts.rotation, parts.evidence
    work = _room(camera, len(refs.g))
    near = np.empty(len(refs.g), np.int64)
    for i in numbers:
        view, diffracted = _view(spots.table[i], spots.number[i], spots.background[i], spots.centre[i], camera, work)
        for c in range(phases.shape[1]):
            phase = phases[i, c]
            if phase < 0 or spots.number[i] == 0:
                phases[i, c] = -1
                continue
            rotation = rotations[i, c]
            n_near = _near_ewald(rotation, 2 * OPTIONS.tilt, refs, first[phase], first[phase + 1], near)
            evidence[i, c] = _refine(rotation, OPTIONS.tilt, OPTIONS.levels, near[:n_near], refs, camera, view, diffracted)
            for k in range(c):
                if phases[i, k] != phase:
                    continue
                if _nearest_operator(rotations[i, k], rotation, operators[phase])[1] < OPTIONS.same_orientation:
                    worse = k if evidence[i, k] < evidence[i, c] else c
                    phases[i, worse] = -1
                    evidence[i, worse] = _NOTHING


@kernel
def _settle(shape, parts, chance, related, nats, choice, agreeing):
    """Choose in turns the component of every pattern with the most support and agreement about it, into ``choice``.

    ``agreeing`` (n, c) takes the number of the eight neighbours whose choice agrees with a component; each is a bonus of ``nats``.
    """
    for turn in range(OPTIONS.turns):
        before = choice.copy()
        for i in range(len(choice)):
            best = -1e9
            for c in range(parts.phase.shape[1]):
                if parts.phase[i, c] < 0:
                    continue
                agreeing[i, c] = 0 if turn == 0 or nats == 0 else _agreement(i, c, shape, parts, chance, related, before)
                value = parts.evidence[i, c] - chance[parts.phase[i, c]] + nats * agreeing[i, c]
                if value > best:
                    best, choice[i] = value, c
        if turn > 0 and np.array_equal(before, choice):
            break


@kernel
def _agreement(i, c, shape, parts, chance, related, choice):
    """Of how many of the eight neighbours the choice lies on the lattice of component c, and, of one phase, is the same variant there."""
    ny, nx = shape
    y, x, lattice = i // nx, i % nx, parts.lattice[i, c]
    agree = 0
    for v in range(max(0, y - 1), min(ny, y + 2)):
        for u in range(max(0, x - 1), min(nx, x + 2)):
            j = v * nx + u
            d = choice[j]
            if j == i or d < 0 or lattice < 0:
                continue
            other, phase = parts.lattice[j, d], parts.phase[j, d]
            if other < 0 or not related[lattice, other] or parts.evidence[j, d] <= chance[phase] + OPTIONS.above_chance:
                continue
            agree += phase != parts.phase[i, c] or lattice != other or parts.variant[j, d] == parts.variant[i, c]
    return agree


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
