"""TODO."""

from __future__ import annotations

import numba
import numpy as np

from ..kernels import kernel
from .evidence import _collect, _judge, _near_ewald, _room, _view
from .spots import _MOST_SPOTS

#
# Where two crystals lie over each other, the pattern is their sum, and whichever phase has the most spots would win.
# So first the set of crystals (one to three) is chosen by evidence, each further one at a cost; then their
# shares follow from a non-negative fit to counts and places of the spots. The second half of the stated
# prior: a crystal found in one of the eight neighbours costs `_NEAR_COST` nats, any other `_FAR_COST`; and the
# strengths of a crystal's reflections, which dynamical scattering changes beyond what a bank can know, are learned
# from all patterns that show it.

_NEAR_COST = 1.5
_FAR_COST = 8.0
_MOST_PARTS = 3
_SHARES = np.array([0.12, 0.3, 0.5, 0.7, 0.88])


@kernel(fastmath=True)
def _set_evidence(members, weights, n_members, strength, off_y, off_x, missed, missed_start, view, diffracted):
    """Evidence of several crystals together, each with the given share of all predicted strength.

    ``strength``, ``off_y``, ``off_x`` (c, m) and ``missed``, whose rows of member c start at
    ``missed_start[c]``, are what `_collect` found for each crystal, over its total strength.
    """
    matched = 0.0
    total, sum_y, sum_x = view.strength, view.off_y, view.off_x
    for k in range(len(view.spots)):
        total[k] = sum_y[k] = sum_x[k] = 0.0
        for q in range(n_members):
            c = members[q]
            total[k] += weights[q] * strength[c, k]
            sum_y[k] += weights[q] * off_y[c, k]
            sum_x[k] += weights[q] * off_x[c, k]
        if total[k] > 0 and view.spots[k, 4] > 3:
            matched += view.spots[k, 2] - view.spots[k, 3]
    n = 0
    for q in range(n_members):
        for j in range(missed_start[members[q]], missed_start[members[q] + 1]):
            view.missed[n, 0], view.missed[n, 1] = weights[q] * missed[j, 0], missed[j, 1]
            n += 1
    return _judge(total, sum_y, sum_x, view.missed, n, max(matched, 0.15 * diffracted), view)[0]


@kernel
def _best_set(cost, bonus, n, strength, off_y, off_x, missed, missed_start, view, diffracted, chosen, share):
    """The set of one to three of n crystals with the most evidence after costs into ``chosen`` and ``share``; returns its size.

    Of the ``bonus`` for lying on the neighbours' lattice a set gets the largest among its members.
    """
    members, weights = np.zeros(3, np.int64), np.zeros(3)
    best, size = -1e9, 0
    for c in range(n):
        members[0], weights[0] = c, 1.0
        alone = _set_evidence(members, weights, 1, strength, off_y, off_x, missed, missed_start, view, diffracted)
        value = alone - min(cost[c], 2.0) + bonus[c]
        if value > best:
            best, size, chosen[0], share[0] = value, 1, c, 1.0
    for c in range(n):
        for d in range(c + 1, n):
            paid = max(cost[c], cost[d]) + min(cost[c], cost[d], 2.0) - max(bonus[c], bonus[d])
            members[0], members[1] = c, d
            for f in _SHARES:
                weights[0], weights[1] = 1 - f, f
                value = _set_evidence(members, weights, 2, strength, off_y, off_x, missed, missed_start, view, diffracted) - paid
                if value > best:
                    best, size, chosen[0], chosen[1], share[0], share[1] = value, 2, c, d, 1 - f, f
    if size == 2:
        first, second, part = chosen[0], chosen[1], share[0]
        for d in range(n):
            if d in (first, second):
                continue
            members[0], members[1], members[2] = first, second, d
            for f in _SHARES[:3]:
                weights[0], weights[1], weights[2] = (1 - f) * part, (1 - f) * (1 - part), f
                value = _set_evidence(members, weights, 3, strength, off_y, off_x, missed, missed_start, view, diffracted)
                value -= cost[first] + cost[second] + cost[d] - max(bonus[first], bonus[second], bonus[d])
                if value > best:
                    best, size, chosen[2], share[:] = value, 3, d, weights
    return size


@kernel(parallel=True)
def _choose_sets(table, number, background, centre, refs, first, camera, parts, cost, bonus, chosen, share, unit, threads):
    """For every pattern the set of components that are in it: numbers into ``chosen`` (n, 3), -1 for none, and first ``share``.

    ``unit`` (n,) takes the counts a unit of strength where it is one component, else 0.
    """
    most = parts.phase.shape[1]
    for thread in numba.prange(threads):
        work = _room(camera, len(refs.g))
        near = np.empty(len(refs.g), np.int64)
        strength, off_y, off_x = np.zeros((most, _MOST_SPOTS)), np.zeros((most, _MOST_SPOTS)), np.zeros((most, _MOST_SPOTS))
        missed, missed_start = np.zeros((8192, 2)), np.zeros(most + 1, np.int64)
        likely, paid, gained, totals = np.zeros(most, np.int64), np.zeros(most), np.zeros(most), np.zeros(most)
        for i in range(thread, len(table), threads):
            chosen[i] = -1
            share[i] = 0
            unit[i] = 0
            view, diffracted = _view(table[i], number[i], background[i], centre[i], camera, work)
            m, n = len(view.spots), 0
            for c in np.argsort(-parts.evidence[i], kind="mergesort")[:10]:
                phase = parts.phase[i, c]
                if phase < 0 or missed_start[n] > 6000:
                    continue
                n_near = _near_ewald(parts.rotation[i, c], 0.0, refs, first[phase], first[phase + 1], near)
                n_missed, total = _collect(parts.rotation[i, c], near, n_near, refs, camera, view)
                if total <= 0:
                    continue
                for k in range(m):
                    strength[n, k], off_y[n, k], off_x[n, k] = view.strength[k] / total, view.off_y[k] / total, view.off_x[k] / total
                n_missed = min(n_missed, 2000)
                for j in range(n_missed):
                    missed[missed_start[n] + j, 0], missed[missed_start[n] + j, 1] = view.missed[j, 0] / total, view.missed[j, 1]
                missed_start[n + 1] = missed_start[n] + n_missed
                likely[n], paid[n], gained[n], totals[n] = c, cost[i, c], bonus[i, c], total
                n += 1
            if n > 0:
                size = _best_set(paid, gained, n, strength, off_y, off_x, missed, missed_start, view, diffracted, chosen[i], share[i])
                if size == 1:
                    only = chosen[i, 0]
                    for k in range(m):
                        if strength[only, k] > 0 and view.spots[k, 4] > 3:
                            unit[i] += (view.spots[k, 2] - view.spots[k, 3]) / totals[only]
                for q in range(size):
                    chosen[i, q] = likely[chosen[i, q]]
                chosen[i, size:] = -1
                share[i, size:] = 0


@kernel
def _costs(shape, parts, chance, chosen, share, cost):
    """What each component of each pattern costs in nats.

    ``_NEAR_COST`` where a neighbour holds the crystal at 30 % or more, else ``_FAR_COST``; one whose
    orientation is of this pattern alone was free to choose it and pays what ``chance`` gives its phase as well.
    """
    ny, nx = shape
    for i in range(ny * nx):
        y, x = i // nx, i % nx
        for c in range(parts.phase.shape[1]):
            cost[i, c] = _FAR_COST
            if parts.phase[i, c] >= 0 and parts.lattice[i, c] < 0:
                cost[i, c] += chance[parts.phase[i, c]]
        for v in range(max(0, y - 1), min(ny, y + 2)):
            for u in range(max(0, x - 1), min(nx, x + 2)):
                j = v * nx + u
                for q in range(_MOST_PARTS):
                    d = chosen[j, q]
                    if j == i or d < 0 or share[j, q] < 0.3 or parts.lattice[j, d] < 0:
                        continue
                    for c in range(parts.phase.shape[1]):
                        if (
                            parts.lattice[i, c] == parts.lattice[j, d]
                            and parts.phase[i, c] == parts.phase[j, d]
                            and parts.variant[i, c] == parts.variant[j, d]
                        ):
                            cost[i, c] = _NEAR_COST
