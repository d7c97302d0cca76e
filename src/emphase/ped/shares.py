"""TODO."""

from __future__ import annotations

import math
from typing import NamedTuple

import numba
import numpy as np

from ..kernels import kernel
from .evidence import _LEAST_MEAN, _Camera, _near_ewald, _predict, _room, _view
from .lattices import _Components
from .overlap import _MOST_PARTS
from .spots import _MOST_SPOTS, Spots
from .templates import _Reflections

_KNOWN_SPREAD = 0.15  # of the strength of a reflection in one pattern about its mean over a crystal's patterns
_UNKNOWN_SPREAD = 0.5  # of a reflection's mean strength about the bank's
_SHARE_PLACE_PX = 0.1
_SHARE_PLACE_STRAIN = 0.002
_SUM_SPREAD = 0.3  # the lamella is about as thick here as next to here: shares add up to one within this
_SCALE_SPREAD = 0.25  # of the strength of phases on one lattice


class _Predictions(NamedTuple):
    """Predicted spots of all chosen components, row by row, those of one component from ``start`` (n, 4) on.

    ``owner`` is the measured spot there or -1, ``reflection`` its number, ``strength`` in counts,
    ``off_y`` and ``off_x`` in px from the measured spot, ``below`` the counts of the background there.
    """

    start: np.ndarray
    owner: np.ndarray
    reflection: np.ndarray
    strength: np.ndarray
    off_y: np.ndarray
    off_x: np.ndarray
    below: np.ndarray


@kernel
def _predict_chosen(table, number, background, centre, refs, first, camera, parts, chosen, scale, counting, rows):
    """Write the predicted spots of the chosen components into ``rows``; with ``counting`` only their places in it."""
    work = _room(camera, len(refs.g))
    near = np.empty(len(refs.g), np.int64)
    n = 0
    for i in range(len(table)):
        view, _ = _view(table[i], number[i], background[i], centre[i], camera, work)
        for q in range(_MOST_PARTS):
            rows.start[i, q] = n
            if chosen[i, q] < 0:
                continue
            phase, rotation = parts.phase[i, chosen[i, q]], parts.rotation[i, chosen[i, q]]
            n_near = _near_ewald(rotation, 0.0, refs, first[phase], first[phase + 1], near)
            for j in range(_predict(rotation, near, n_near, refs, camera, view.centre, view.predicted)):
                y, x, strength = view.predicted[j, 0], view.predicted[j, 1], scale[phase] * view.predicted[j, 2]
                v, u = int(y + 0.5), int(x + 0.5)
                if strength < _LEAST_MEAN or camera.pixels[v, u] < 0.5:
                    continue
                if not counting:
                    k = view.owner[v, u] - 1
                    rows.owner[n], rows.reflection[n], rows.strength[n] = k, int(view.predicted[j, 3]), strength
                    if k >= 0:
                        rows.off_y[n], rows.off_x[n] = y - view.spots[k, 0], x - view.spots[k, 1]
                    r = math.sqrt((y - view.centre[0]) ** 2 + (x - view.centre[1]) ** 2)
                    rows.below[n] = view.background[min(int(r), len(view.background) - 1)] * camera.full + 0.02
                n += 1
        rows.start[i, _MOST_PARTS] = n
    return n


@kernel
def _non_negative(normal, right, n, weights):
    """Least squares with weights >= 0 of up to three unknowns from its normal equations, by coordinate descent."""
    for _ in range(200):
        moved = 0.0
        for a in range(n):
            gradient = right[a]
            for b in range(n):
                gradient -= normal[a, b] * weights[b]
            new = max(0.0, weights[a] + gradient / max(normal[a, a], 1e-12))
            moved = max(moved, abs(new - weights[a]))
            weights[a] = new
        if moved < 1e-6:
            break


@kernel
def _fit_shares(i, spots, centre, sigma, keys, scale, mean, variance, rows, room, weights, normal):
    """Weights (3,) of the chosen components of pattern i, and the normal matrix (3, 3).

    Every measured spot that a component predicts gives three equations: its counts, and the
    moments of its place in y and x about the components' places; every predicted spot that was not
    measured gives one; the sum of the weights another. Variances hold Poisson noise and what
    is not known of strengths and places, and are renewed four times.
    """
    m = len(spots)
    expect, moment_y, moment_x, doubt = room[0], room[1], room[2], room[3]
    n = 0
    while n < _MOST_PARTS and keys[i, n] >= 0:
        n += 1
    right = np.zeros(_MOST_PARTS)
    for _ in range(4):
        normal[:] = 0
        right[:] = 0
        normal[:n, :n] += 1 / _SUM_SPREAD**2
        right[:n] += 1 / _SUM_SPREAD**2
        expect[:] = 0
        moment_y[:] = 0
        moment_x[:] = 0
        doubt[:] = 0
        for q in range(n):
            key = keys[i, q]
            for j in range(rows.start[i, q], rows.start[i, q + 1]):
                raw = scale[key] * rows.strength[j]
                strength, k = raw * mean[rows.reflection[j]], rows.owner[j]
                spread = variance[rows.reflection[j]] * (weights[q] * raw) ** 2
                if k >= 0:
                    expect[k, q] += strength
                    moment_y[k, q] += strength * rows.off_y[j]
                    moment_x[k, q] += strength * rows.off_x[j]
                    doubt[k, 0] += spread
                else:
                    normal[q, q] += strength * strength / (rows.below[j] + 2 + spread)
        for k in range(m):
            net = max(spots[k, 2] - spots[k, 3], np.float32(1.0))
            r2 = (spots[k, 0] - centre[0]) ** 2 + (spots[k, 1] - centre[1]) ** 2
            for_counts = 1 / (spots[k, 2] + 1 + doubt[k, 0])
            for_place = 1 / (sigma**2 * spots[k, 2] + (_SHARE_PLACE_PX**2 + _SHARE_PLACE_STRAIN**2 * r2) * net * net)
            for a in range(n):
                if expect[k, a] <= 0:
                    continue
                right[a] += for_counts * expect[k, a] * (spots[k, 2] - spots[k, 3])
                for b in range(n):
                    normal[a, b] += for_counts * expect[k, a] * expect[k, b]
                    normal[a, b] += for_place * (moment_y[k, a] * moment_y[k, b] + moment_x[k, a] * moment_x[k, b])
        _non_negative(normal, right, n, weights)


@kernel
def _learn(i, spots, keys, scale, mean, variance, rows, room, weights, gained, known):
    """Add what pattern i says of its components' reflections: ``gained`` and ``known`` (reflections of all crystals,)."""
    expect, doubt = room[0], room[3]
    for q in range(_MOST_PARTS):
        key = keys[i, q]
        if key < 0 or weights[q] < 0.2:
            continue
        for j in range(rows.start[i, q], rows.start[i, q + 1]):
            r, k = rows.reflection[j], rows.owner[j]
            strength = weights[q] * scale[key] * rows.strength[j]
            if k < 0:
                known[r] += strength * strength / (rows.below[j] + 2)
                continue
            net = spots[k, 2] - spots[k, 3]
            predicted = 0.0
            for b in range(_MOST_PARTS):
                predicted += expect[k, b] * weights[b]
            others = max(doubt[k, 0] - strength * strength * variance[r], 0.0)
            precision = 1 / (spots[k, 2] + 1 + (_KNOWN_SPREAD * net) ** 2 + others)
            gained[r] += precision * strength * (net - predicted + strength * mean[r])
            known[r] += precision * strength * strength


@kernel(parallel=True)
def _fit_all_shares(table, number, centre, sigma, keys, scale, mean, variance, rows, weights, normals, gained, known):
    """`_fit_shares` and `_learn` for all patterns; ``gained`` and ``known`` (sums, reflections) are added up in as many sums."""
    for part in numba.prange(len(gained)):
        room = np.zeros((4, _MOST_SPOTS, _MOST_PARTS))
        for i in range(part, len(table), len(gained)):
            if keys[i, 0] < 0:
                continue
            spots = table[i, : number[i]]
            _fit_shares(i, spots, centre[i], sigma, keys, scale, mean, variance, rows, room, weights[i], normals[i])
            _learn(i, spots, keys, scale, mean, variance, rows, room, weights[i], gained[part], known[part])


_LEARNING_SUMS = 4  # side by side; not one a thread, so that the result is the same to the bit however many there are


def _standardise(keys: np.ndarray, group: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Factors (k,) by which the scale of each of k crystals is off, from the rule that the shares of a pattern add up to one.

    First one factor for every lattice (``group``), then one for every crystal near that of its
    lattice; patterns that cannot obey (an edge, a pore) count less. ``keys`` and ``weights`` are (n, 3).
    Few crystals share a pattern, so the normal equations are sparse.
    """
    from scipy.sparse import csc_array, diags_array
    from scipy.sparse.linalg import spsolve

    used = (keys >= 0).any(axis=1) & (weights.sum(axis=1) > 0.05)
    number, weight = np.maximum(keys[used], 0), np.where(keys[used] >= 0, weights[used], 0.0)
    spread = 0.15

    def fit(column: np.ndarray, prior: np.ndarray, prior_spread: float) -> np.ndarray:
        pattern = np.repeat(np.arange(len(weight)), _MOST_PARTS)
        share = csc_array((weight.ravel(), (pattern, column.ravel())), shape=(len(weight), len(prior)))
        trust = np.ones(len(weight))
        result = prior
        for _ in range(8):
            trusted = share.T @ diags_array(trust / spread**2)
            matrix = trusted @ share + diags_array(1 / (prior_spread * prior) ** 2)
            right = trusted @ np.ones(len(weight)) + 1 / (prior_spread**2 * prior)
            result = np.clip(spsolve(matrix.tocsc(), right, permc_spec="MMD_AT_PLUS_A"), 0.1 * prior, 10 * prior)
            trust = 1 / np.maximum(1, np.abs(share @ result - 1) / 0.25)
        return result

    of_lattice = fit(group[number], np.ones(group.max() + 1), 2.0)
    return 1 / fit(number, of_lattice[group], _SCALE_SPREAD)


def _measure_shares(
    spots: Spots, camera: _Camera, refs: _Reflections, first: np.ndarray, family: np.ndarray, parts: _Components, chosen: np.ndarray,
    unit: np.ndarray, learn: bool,
) -> tuple[np.ndarray, np.ndarray]:  # fmt: skip
    """Weights (n, 3) of the chosen components, in units of the local thickness, and their covariance (n, 3, 3).

    ``unit`` (n,) is what `_choose_sets` says of counts a unit of strength. With ``learn`` the
    strengths of each crystal's reflections are learned from all its patterns, in six rounds.
    """
    n = len(chosen)
    taken = np.maximum(chosen, 0)
    phase, lattice, variant = (np.take_along_axis(a, taken, axis=1) for a in (parts.phase, parts.lattice, parts.variant))
    alone = -1 - np.repeat(np.arange(n)[:, None], _MOST_PARTS, axis=1)  # a crystal of one pattern only is a crystal of its own
    names = np.stack([np.where(lattice < 0, alone, lattice), phase, variant], axis=-1)[chosen >= 0]
    crystals, number = np.unique(names, axis=0, return_inverse=True)
    keys = np.full(chosen.shape, -1)
    keys[chosen >= 0] = number
    group = np.unique(crystals[:, :1], return_inverse=True)[1].ravel()
    rows = _predicted_rows(spots, camera, refs, first, parts, chosen, _unit_of_phases(family, phase[:, 0], unit))
    of_crystal = np.repeat(keys.ravel(), np.diff(rows.start, axis=1).ravel())
    seen, reflection = np.unique(of_crystal * len(refs.g) + rows.reflection, return_inverse=True)
    rows = rows._replace(reflection=reflection)  # numbered over all crystals, and only those that are predicted somewhere
    mean, variance, scale = np.ones(len(seen)), np.full(len(seen), _UNKNOWN_SPREAD**2), np.ones(len(crystals))
    weights, normals = np.where(keys >= 0, 1 / np.maximum((keys >= 0).sum(axis=1, keepdims=True), 1), 0.0), np.zeros((n, 3, 3))
    for turn in range(6 if learn else 2):
        gained, known = np.zeros((_LEARNING_SUMS, len(seen))), np.zeros((_LEARNING_SUMS, len(seen)))
        _fit_all_shares(
            spots.table, spots.number, spots.centre_px, camera.spot_sigma, keys, scale, mean, variance, rows, weights, normals, gained,
            known,
        )  # fmt: skip
        scale = scale * _standardise(keys, group, weights)
        if learn and turn >= 2:
            prior = 1 / _UNKNOWN_SPREAD**2
            total = known.sum(axis=0) + prior
            mean = np.maximum((gained.sum(axis=0) + prior) / total, 0.02)
            variance = (_KNOWN_SPREAD * mean) ** 2 + 1 / total
    weights[keys < 0] = 0
    return weights, np.linalg.pinv(normals, hermitian=True)


def _unit_of_phases(family: np.ndarray, phase: np.ndarray, unit: np.ndarray) -> np.ndarray:
    """Counts a unit of strength of every phase (p,): the median over the patterns of one crystal of its family."""
    overall = np.median(unit[unit > 0]) if (unit > 0).any() else 1.0
    mine = [unit[(unit > 0) & (family[phase] == f)] for f in family]
    return np.array([np.median(m) if len(m) >= 5 else overall for m in mine])


def _predicted_rows(
    spots: Spots, camera: _Camera, refs: _Reflections, first: np.ndarray, parts: _Components, chosen: np.ndarray, scale: np.ndarray
) -> _Predictions:
    """The predicted spots of all chosen components, counted first and then written."""

    def empty(n: int) -> _Predictions:
        whole, real = (np.zeros(n, np.int32) for _ in range(2)), (np.zeros(n, np.float32) for _ in range(4))
        return _Predictions(np.zeros((len(chosen), _MOST_PARTS + 1), np.int64), *whole, *real)

    def fill(rows: _Predictions, counting: bool) -> int:
        return _predict_chosen(*spots.arrays, refs, first, camera, parts, chosen, scale,
                               counting, rows)  # fmt: skip

    rows = empty(fill(empty(0), True))
    fill(rows, False)
    return rows
