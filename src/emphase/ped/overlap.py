"""Which crystals lie over each other in a pattern, by the evidence of sets of one to three of them.

Where two crystals overlap in the thickness of the lamella, the pattern is their sum, and whichever phase has the most spots would win. So
sets compete: the evidence of a set (`emphase.ped.evidence`, with the predicted strengths of its members added up in given shares) less
its price. The price is the prior against a further crystal, in nats: one that a neighbour holds costs 1.5, any other 8, and more where its
orientation was chosen freely for this pattern. All single crystals and all pairs of the likeliest ten are tried, at five shares of the
second crystal; a third one is tried beside the best pair where that is the best set so far. How large the shares of a chosen set are is
measured afterwards (`emphase.ped.shares`).
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from ..kernels import kernel
from .evidence import _collect, _judge, _near_ewald, _room, _view
from .spots import OPTIONS as SPOT_OPTIONS


class OverlapOptions(NamedTuple):
    """Tuning numbers of the choice of sets; a named tuple, which kernels read."""

    near_nats: float = 1.5  # price of a crystal that one of the eight neighbours holds
    far_nats: float = 8.0  # of any other: about what one clear spot adds to the evidence, so that one spot alone makes no crystal
    first_nats: float = 2.0  # what the cheapest of one or two crystals pays at most: every pattern has a first crystal
    near_share: float = 0.3  # least share with which a neighbour holds a crystal
    likeliest: int = 10  # components of a pattern that are tried: 45 pairs
    most_missed: int = 2000  # predicted spots without a measured one that are kept of a crystal, ...
    room_missed: int = 8192  # ... and of all crystals of a pattern, ...
    full_missed: int = 6000  # ... so that beyond this number there is no room for a further crystal
    shown_nats: float = 3.0  # spots this far above the background give the scale
    least_matched: float = 0.15  # share of the diffracted counts that a set explains at least, for its scale


OPTIONS = OverlapOptions()
_MOST_PARTS = 3  # crystals in a pattern
_NO_SET = -1e9  # value of a set that is none, nats
_SHARES = np.array([0.12, 0.3, 0.5, 0.7, 0.88])  # of the second crystal; a third one is tried at the first three


class _Prices(NamedTuple):
    """The prior of every component (n, c) in nats: its ``cost`` in a set, and the ``bonus`` for lying on the neighbours' lattice."""

    cost: np.ndarray
    bonus: np.ndarray


class _Candidates(NamedTuple):
    """The likeliest components of a pattern and what each predicts per unit of its ``total`` strength; room for ``likeliest`` of them.

    ``component`` (c,) is their number, ``phase`` (c,) that of each, ``cost`` and ``bonus`` (c,) as in `_Prices`; ``strength``,
    ``off_y``, ``off_x`` (c, m) at the measured spots, and ``missed``, whose rows of candidate c start at ``missed_start[c]``, are what
    `_collect` found. ``near`` is work space.
    """

    component: np.ndarray
    phase: np.ndarray
    cost: np.ndarray
    bonus: np.ndarray
    total: np.ndarray
    strength: np.ndarray
    off_y: np.ndarray
    off_x: np.ndarray
    missed: np.ndarray
    missed_start: np.ndarray
    near: np.ndarray


class _Set(NamedTuple):
    """Candidates that overlap: ``members`` (3,), -1 for none, their ``weights`` (3,), and the ``value`` (1,) of the set in nats.

    ``of_phase`` (p,) is the largest value of all sets that were tried in which a crystal of each phase has the largest weight.
    """

    members: np.ndarray
    weights: np.ndarray
    value: np.ndarray
    of_phase: np.ndarray


@kernel
def _no_candidates(n_reflections):
    """Room for the candidates of one pattern."""
    most = OPTIONS.likeliest
    shape = (most, SPOT_OPTIONS.most_spots)
    strength, off_y, off_x = np.zeros(shape), np.zeros(shape), np.zeros(shape)
    missed, missed_start = np.zeros((OPTIONS.room_missed, 2)), np.zeros(most + 1, np.int64)
    component, phase, near = np.zeros(most, np.int64), np.zeros(most, np.int64), np.empty(n_reflections, np.int64)
    cost, bonus, total = np.zeros(most), np.zeros(most), np.zeros(most)
    return _Candidates(component, phase, cost, bonus, total, strength, off_y, off_x, missed, missed_start, near)


@kernel
def _likeliest(i, parts, prices, refs, first, camera, view, candidates):
    """Fill ``candidates`` with what the components of pattern i with the most evidence predict; returns how many there are."""
    n, start = 0, candidates.missed_start
    for c in np.argsort(-parts.evidence[i], kind="mergesort")[: OPTIONS.likeliest]:
        phase = parts.phase[i, c]
        if phase < 0 or start[n] > OPTIONS.full_missed:
            continue
        n_near = _near_ewald(parts.rotation[i, c], 0.0, refs, first[phase], first[phase + 1], candidates.near)
        n_missed, total = _collect(parts.rotation[i, c], candidates.near, n_near, refs, camera, view)
        if total <= 0:
            continue
        for k in range(len(view.spots)):
            candidates.strength[n, k] = view.strength[k] / total
            candidates.off_y[n, k], candidates.off_x[n, k] = view.off_y[k] / total, view.off_x[k] / total
        n_missed = min(n_missed, OPTIONS.most_missed)
        for j in range(n_missed):
            candidates.missed[start[n] + j, 0], candidates.missed[start[n] + j, 1] = view.missed[j, 0] / total, view.missed[j, 1]
        start[n + 1] = start[n] + n_missed
        candidates.component[n], candidates.phase[n], candidates.total[n] = c, phase, total
        candidates.cost[n], candidates.bonus[n] = prices.cost[i, c], prices.bonus[i, c]
        n += 1
    return n


@kernel
def _set_evidence(members, weights, candidates, view, diffracted):
    """Evidence of several crystals together, each with the given share of all predicted strength."""
    matched = 0.0
    total, sum_y, sum_x = view.strength, view.off_y, view.off_x
    for k in range(len(view.spots)):
        total[k] = sum_y[k] = sum_x[k] = 0.0
        for q in range(len(members)):
            c = members[q]
            total[k] += weights[q] * candidates.strength[c, k]
            sum_y[k] += weights[q] * candidates.off_y[c, k]
            sum_x[k] += weights[q] * candidates.off_x[c, k]
        if total[k] > 0 and view.spots[k, 4] > OPTIONS.shown_nats:
            matched += view.spots[k, 2] - view.spots[k, 3]
    n = 0
    for q in range(len(members)):
        for j in range(candidates.missed_start[members[q]], candidates.missed_start[members[q] + 1]):
            view.missed[n, 0], view.missed[n, 1] = weights[q] * candidates.missed[j, 0], candidates.missed[j, 1]
            n += 1
    scale = max(matched, OPTIONS.least_matched * diffracted)
    return _judge(total, sum_y, sum_x, view.missed, n, scale, view)[0]


@kernel
def _price(members, candidates):
    """What a set costs in nats, less its bonus.

    Every crystal pays its cost, but the cheapest of one or two no more than that of a first crystal. Of the bonuses for lying on the
    neighbours' lattice the set gets the largest.
    """
    cheapest = members[np.argmin(candidates.cost[members])]
    price = 0.0
    for c in members:
        first = c == cheapest and len(members) < _MOST_PARTS
        price += min(candidates.cost[c], OPTIONS.first_nats) if first else candidates.cost[c]
    return price - candidates.bonus[members].max()


@kernel
def _keep_better(members, weights, candidates, view, diffracted, best):
    """Keep a set in ``best`` where its evidence less its price is larger than that of the set there."""
    value = _set_evidence(members, weights, candidates, view, diffracted) - _price(members, candidates)
    largest = weights.max()
    for q in range(len(members)):
        phase = candidates.phase[members[q]]
        if weights[q] == largest and value > best.of_phase[phase]:
            best.of_phase[phase] = value
    if value > best.value[0]:
        n = len(members)
        best.value[0] = value
        best.members[:n], best.members[n:] = members, -1
        best.weights[:n], best.weights[n:] = weights, 0.0


@kernel
def _best_set(n, candidates, view, diffracted, best):
    """The set of one to three of n candidates with the most evidence less its price, into ``best``."""
    best.members[:], best.weights[:], best.value[0], best.of_phase[:] = -1, 0.0, _NO_SET, _NO_SET
    members, weights = np.zeros(_MOST_PARTS, np.int64), np.zeros(_MOST_PARTS)
    for c in range(n):
        members[0], weights[0] = c, 1.0
        _keep_better(members[:1], weights[:1], candidates, view, diffracted, best)
    for c in range(n):
        for d in range(c + 1, n):
            members[0], members[1] = c, d
            for share in _SHARES:
                weights[0], weights[1] = 1 - share, share
                _keep_better(members[:2], weights[:2], candidates, view, diffracted, best)
    if best.members[1] < 0:
        return
    members[:], pair = best.members, best.weights.copy()
    for d in range(n):
        members[2] = d
        if d != members[0] and d != members[1]:
            for share in _SHARES[:3]:
                weights[0], weights[1], weights[2] = (1 - share) * pair[0], (1 - share) * pair[1], share
                _keep_better(members, weights, candidates, view, diffracted, best)
    members[:], weights[:] = best.members, best.weights
    if members[2] >= 0:  # its other crystals as the largest
        for first, second in ((0, 1), (0, 2), (1, 2)):
            turned = weights.copy()
            turned[first], turned[second] = weights[second], weights[first]
            _keep_better(members, turned, candidates, view, diffracted, best)


class _Sets(NamedTuple):
    """Sets of components of n patterns: ``chosen`` (n, 3) their numbers, -1 for none, ``share`` (n, 3) their first shares.

    ``unit`` (n,) are the measured counts a unit of strength where the set is one component, else 0, and ``value`` (n, p) is that in nats
    of the best set in which each phase is the largest.
    """

    chosen: np.ndarray
    share: np.ndarray
    unit: np.ndarray
    value: np.ndarray


def _no_sets(n: int, n_phases: int) -> _Sets:
    """Room for the sets of n patterns."""
    return _Sets(np.full((n, _MOST_PARTS), -1), np.zeros((n, _MOST_PARTS)), np.zeros(n), np.empty((n, n_phases)))


@kernel(nogil=True)
def _choose_sets(numbers, spots, refs, first, camera, parts, prices, sets):
    """For the patterns ``numbers`` the sets of components that are in them, into ``sets``."""
    work = _room(camera, len(refs.g))
    candidates = _no_candidates(len(refs.g))
    best = _Set(np.zeros(_MOST_PARTS, np.int64), np.zeros(_MOST_PARTS), np.zeros(1), np.zeros(len(first) - 1))
    for i in numbers:
        view, diffracted = _view(spots.table[i], spots.number[i], spots.background[i], spots.centre[i], camera, work)
        _best_set(_likeliest(i, parts, prices, refs, first, camera, view, candidates), candidates, view, diffracted, best)
        sets.share[i], sets.value[i] = best.weights, best.of_phase
        if best.members[0] >= 0 and best.members[1] < 0:
            sets.unit[i] = _counts_a_unit(best.members[0], candidates, view)
        for q in range(_MOST_PARTS):
            if best.members[q] >= 0:
                sets.chosen[i, q] = candidates.component[best.members[q]]


@kernel
def _counts_a_unit(c, candidates, view):
    """Measured counts of the clear spots that candidate c predicts, a unit of its strength."""
    counts = 0.0
    for k in range(len(view.spots)):
        if candidates.strength[c, k] > 0 and view.spots[k, 4] > OPTIONS.shown_nats:
            counts += (view.spots[k, 2] - view.spots[k, 3]) / candidates.total[c]
    return counts


@kernel
def _costs(shape, parts, chance, chosen, share):
    """What each component (n, c) of each pattern costs in nats, with the sets ``chosen`` (n, 3) about it and their ``share`` (n, 3).

    Little where a neighbour holds the same crystal at a fair share. A crystal whose
    orientation is of this pattern alone was free to choose it and pays what ``chance`` gives its phase as well.
    """
    ny, nx = shape
    cost = np.full(parts.phase.shape, OPTIONS.far_nats)
    for i in range(ny * nx):
        y, x = i // nx, i % nx
        for c in range(parts.phase.shape[1]):
            if parts.phase[i, c] >= 0 and parts.lattice[i, c] < 0:
                cost[i, c] += chance[parts.phase[i, c]]
        for v in range(max(0, y - 1), min(ny, y + 2)):
            for u in range(max(0, x - 1), min(nx, x + 2)):
                j = v * nx + u
                for q in range(_MOST_PARTS):
                    d = chosen[j, q]
                    if j == i or d < 0 or share[j, q] < OPTIONS.near_share or parts.lattice[j, d] < 0:
                        continue
                    for c in range(parts.phase.shape[1]):
                        if _same_crystal(parts, i, c, j, d):
                            cost[i, c] = OPTIONS.near_nats
    return cost


@kernel
def _same_crystal(parts, i, c, j, d):
    """Whether component c of pattern i and d of j are one phase in one variant on one lattice."""
    same_phase = parts.phase[i, c] == parts.phase[j, d] and parts.variant[i, c] == parts.variant[j, d]
    return same_phase and parts.lattice[i, c] == parts.lattice[j, d]
