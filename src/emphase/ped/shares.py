"""The shares of overlapping crystals from counts and places of the spots, by non-negative least squares.

The components of a pattern are chosen (`emphase.ped.overlap`); each predicts spots of given strengths. The weights of the components
follow from a linear model of all spots: the counts of every measured spot that is predicted, the moments of its place about the
components' places, every predicted spot that was not measured, and the rule that the weights add up to about one, because the lamella is
about as thick here as next to here. The variances hold Poisson noise and what is not known of strengths and places; they depend on the
weights and are renewed (iteratively reweighted least squares).

Dynamical scattering changes the strengths of reflections beyond what a bank can know, but alike in all patterns of a crystal. So with
``learn`` the mean strength of each reflection of each crystal is estimated from all patterns that show it, in turns with the weights,
under a Gaussian prior about the bank's strength (an empirical Bayes estimate); and a scale of each crystal, from the rule that shares add
up to one.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from ..kernels import kernel, side_by_side
from .evidence import OPTIONS as EVIDENCE_OPTIONS
from .evidence import _Camera, _counts_below, _near_ewald, _predict, _room, _view
from .lattices import _Components
from .overlap import _MOST_PARTS
from .spots import OPTIONS as SPOT_OPTIONS
from .spots import Spots, _SpotArrays
from .templates import _Reflections


class ShareOptions(NamedTuple):
    """Tuning numbers of the shares; a named tuple, which kernels read."""

    known_spread: float = 0.15  # of the strength of a reflection in one pattern about its mean over a crystal's patterns
    unknown_spread: float = 0.5  # of a reflection's mean strength about the bank's
    place_px: float = 0.1  # error of a predicted place, px, besides ...
    place_strain: float = 0.002  # ... this share of its distance from the direct beam
    sum_spread: float = 0.3  # the lamella is about as thick here as next to here: shares add up to one within this
    reweightings: int = 4  # of the least squares, whose variances depend on the weights
    descent_steps: int = 200  # of the coordinate descent, at most
    descent_tolerance: float = 1e-6  # of a weight
    learning_weight: float = 0.2  # from a pattern with less of a crystal its reflections are not learned
    learning_rounds: int = 6  # weights, scales and strengths in turns
    plain_rounds: int = 2  # weights and scales in turns, where strengths are not learned
    first_learning_round: int = 2  # the scales come first
    least_strength: float = 0.02  # of a reflection, in terms of the bank's
    lattice_spread: float = 2.0  # of the scale of a lattice: its thickness is unknown
    scale_spread: float = 0.25  # of the strength of phases on one lattice
    pattern_spread: float = 0.15  # of the sum of the shares of one pattern, where it is trusted, ...
    trusted_misfit: float = 0.25  # ... which it is less where the sum is off by more (an edge, a pore)
    least_sum: float = 0.05  # a pattern of less total weight is not used for scales
    scale_steps: int = 8  # of reweighting
    most_scale: float = 10.0  # times the prior, and as many times less
    typical_patterns: int = 5  # least number of patterns from which the counts of a family are taken


OPTIONS = ShareOptions()
_LEARNING_SUMS = 4  # side by side; not one a thread, so that the result is the same to the bit however many there are


class _Predictions(NamedTuple):
    """Predicted spots of all chosen components, row by row, those of one component from ``start`` (n, 4) on.

    ``crystal`` (n, 3) is the number of each component's crystal or -1. Of every row, ``owner`` is the measured spot there or -1,
    ``reflection`` its number, ``strength`` in counts, ``off_y`` and ``off_x`` in px from the measured spot, ``below`` the counts of the
    background there.
    """

    start: np.ndarray
    crystal: np.ndarray
    owner: np.ndarray
    reflection: np.ndarray
    strength: np.ndarray
    off_y: np.ndarray
    off_x: np.ndarray
    below: np.ndarray


class _Strengths(NamedTuple):
    """What is known of strengths: a factor ``scale`` (k,) of each crystal; ``mean`` and ``variance`` (r,) of each reflection's factor."""

    scale: np.ndarray
    mean: np.ndarray
    variance: np.ndarray


class _Sums(NamedTuple):
    """Work space (m, 3): what the components of a pattern predict at each measured spot, and in ``doubt[:, 0]`` the variance of that."""

    expect: np.ndarray
    moment_y: np.ndarray
    moment_x: np.ndarray
    doubt: np.ndarray


@kernel
def _predict_chosen(spots, refs, first, camera, parts, chosen, scale, rows):
    """Write the predicted spots of the chosen components into ``rows``; returns how many. Where it is empty, only their places in it."""
    work = _room(camera, len(refs.g))
    near = np.empty(len(refs.g), np.int64)
    n = 0
    for i in range(len(chosen)):
        view, _ = _view(spots.table[i], spots.number[i], spots.background[i], spots.centre[i], camera, work)
        for q in range(_MOST_PARTS):
            rows.start[i, q] = n
            if chosen[i, q] < 0:
                continue
            phase, rotation = parts.phase[i, chosen[i, q]], parts.rotation[i, chosen[i, q]]
            n_near = _near_ewald(rotation, 0.0, refs, first[phase], first[phase + 1], near)
            for j in range(_predict(rotation, near, n_near, refs, camera, view.centre, view.predicted)):
                y, x, strength = view.predicted[j, 0], view.predicted[j, 1], scale[phase] * view.predicted[j, 2]
                v, u = int(y + 0.5), int(x + 0.5)
                if strength < EVIDENCE_OPTIONS.least_mean or camera.pixels[v, u] < 0.5:
                    continue
                if len(rows.owner) > 0:
                    k = view.owner[v, u] - 1
                    rows.owner[n], rows.reflection[n], rows.strength[n] = k, int(view.predicted[j, 3]), strength
                    if k >= 0:
                        rows.off_y[n], rows.off_x[n] = y - view.spots[k, 0], x - view.spots[k, 1]
                    rows.below[n] = _counts_below(y, x, view, camera)
                n += 1
        rows.start[i, _MOST_PARTS] = n
    return n


@kernel
def _non_negative(normal, right, n, weights):
    """Least squares with weights >= 0 of up to three unknowns from its normal equations, by coordinate descent.

    In a kernel, from equations that have been added up, where `scipy.optimize.nnls` would need their matrix and a call for each pattern.
    """
    for _ in range(OPTIONS.descent_steps):
        moved = 0.0
        for a in range(n):
            gradient = right[a]
            for b in range(n):
                gradient -= normal[a, b] * weights[b]
            new = max(0.0, weights[a] + gradient / max(normal[a, a], 1e-12))
            moved = max(moved, abs(new - weights[a]))
            weights[a] = new
        if moved < OPTIONS.descent_tolerance:
            break


@kernel
def _no_sums():
    """Room for the sums of one pattern."""
    shape = (SPOT_OPTIONS.most_spots, _MOST_PARTS)
    return _Sums(np.zeros(shape), np.zeros(shape), np.zeros(shape), np.zeros(shape))


@kernel
def _add_predicted(i, n, rows, strengths, weights, sums, normal):
    """Add up what the n components of pattern i predict at each measured spot, and the equations of spots that were not measured."""
    sums.expect[:] = 0
    sums.moment_y[:] = 0
    sums.moment_x[:] = 0
    sums.doubt[:] = 0
    for q in range(n):
        scale = strengths.scale[rows.crystal[i, q]]
        for j in range(rows.start[i, q], rows.start[i, q + 1]):
            raw = scale * rows.strength[j]
            strength, k = raw * strengths.mean[rows.reflection[j]], rows.owner[j]
            spread = strengths.variance[rows.reflection[j]] * (weights[q] * raw) ** 2
            if k >= 0:
                sums.expect[k, q] += strength
                sums.moment_y[k, q] += strength * rows.off_y[j]
                sums.moment_x[k, q] += strength * rows.off_x[j]
                sums.doubt[k, 0] += spread
            else:
                normal[q, q] += strength * strength / (rows.below[j] + 2 + spread)


@kernel
def _add_measured(n, table, centre, sigma, sums, normal, right):
    """Add the equations of the counts and places of the measured spots ``table`` (m, 5) to the normal equations of n components."""
    for k in range(len(table)):
        net = max(table[k, 2] - table[k, 3], np.float32(1.0))
        r2 = (table[k, 0] - centre[0]) ** 2 + (table[k, 1] - centre[1]) ** 2
        for_counts = 1 / (table[k, 2] + 1 + sums.doubt[k, 0])
        for_place = 1 / (sigma**2 * table[k, 2] + (OPTIONS.place_px**2 + OPTIONS.place_strain**2 * r2) * net * net)
        for a in range(n):
            if sums.expect[k, a] <= 0:
                continue
            right[a] += for_counts * sums.expect[k, a] * (table[k, 2] - table[k, 3])
            for b in range(n):
                moments = sums.moment_y[k, a] * sums.moment_y[k, b] + sums.moment_x[k, a] * sums.moment_x[k, b]
                normal[a, b] += for_counts * sums.expect[k, a] * sums.expect[k, b]
                normal[a, b] += for_place * moments


@kernel
def _fit_shares(i, spots, sigma, rows, strengths, sums, weights, normal):
    """Weights (3,) of the chosen components of pattern i, renewed in place, and the normal matrix (3, 3).

    Every measured spot that a component predicts gives three equations: its counts, and the
    moments of its place in y and x about the components' places; every predicted spot that was not
    measured gives one; the sum of the weights another.
    """
    table = spots.table[i, : spots.number[i]]
    n = 0
    while n < _MOST_PARTS and rows.crystal[i, n] >= 0:
        n += 1
    right = np.zeros(_MOST_PARTS)
    for _ in range(OPTIONS.reweightings):
        normal[:] = 0
        right[:] = 0
        normal[:n, :n] += 1 / OPTIONS.sum_spread**2
        right[:n] += 1 / OPTIONS.sum_spread**2
        _add_predicted(i, n, rows, strengths, weights, sums, normal)
        _add_measured(n, table, spots.centre[i], sigma, sums, normal, right)
        _non_negative(normal, right, n, weights)


@kernel
def _learn(i, spots, rows, strengths, sums, weights, gained, known):
    """Add the estimates of the reflections' strengths from pattern i: ``gained`` and ``known`` (r,), the mean's numerator and precision."""
    for q in range(_MOST_PARTS):
        crystal = rows.crystal[i, q]
        if crystal < 0 or weights[q] < OPTIONS.learning_weight:
            continue
        for j in range(rows.start[i, q], rows.start[i, q + 1]):
            r, k = rows.reflection[j], rows.owner[j]
            strength = weights[q] * strengths.scale[crystal] * rows.strength[j]
            if k < 0:
                known[r] += strength * strength / (rows.below[j] + 2)
                continue
            counts = spots.table[i, k, 2]
            net = counts - spots.table[i, k, 3]
            predicted = 0.0
            for b in range(_MOST_PARTS):
                predicted += sums.expect[k, b] * weights[b]
            others = max(sums.doubt[k, 0] - strength * strength * strengths.variance[r], 0.0)
            precision = 1 / (counts + 1 + (OPTIONS.known_spread * net) ** 2 + others)
            gained[r] += precision * strength * (net - predicted + strength * strengths.mean[r])
            known[r] += precision * strength * strength


@kernel(nogil=True)
def _fit_all_shares(parts, spots, sigma, rows, strengths, weights, normals, learned):
    """`_fit_shares` and `_learn` for all patterns of some ``parts``, each with sums of its own: ``learned``."""
    gained, known = learned
    for part in parts:
        sums = _no_sums()
        for i in range(part, len(weights), len(gained)):
            if rows.crystal[i, 0] < 0:
                continue
            _fit_shares(i, spots, sigma, rows, strengths, sums, weights[i], normals[i])
            _learn(i, spots, rows, strengths, sums, weights[i], gained[part], known[part])


def _standardise(keys: np.ndarray, group: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Factors (k,) by which the scale of each of k crystals is off, from the rule that the shares of a pattern add up to one.

    First one factor for every lattice (``group``), then one for every crystal near that of its
    lattice; patterns that cannot obey (an edge, a pore) count less. ``keys`` and ``weights`` are (n, 3).
    """
    used = (keys >= 0).any(axis=1) & (weights.sum(axis=1) > OPTIONS.least_sum)
    number, weight = np.maximum(keys[used], 0), np.where(keys[used] >= 0, weights[used], 0.0)
    of_lattice = _sum_to_one(weight, group[number], np.ones(group.max() + 1), OPTIONS.lattice_spread)
    return 1 / _sum_to_one(weight, number, of_lattice[group], OPTIONS.scale_spread)


def _sum_to_one(weight: np.ndarray, column: np.ndarray, prior: np.ndarray, prior_spread: float) -> np.ndarray:
    """Factors (k,) near ``prior`` (k,), with which the weights (n, 3), each times the factor of its ``column`` (n, 3), add up to one.

    By robust least squares. Few crystals share a pattern, so the normal equations are sparse.
    """
    from scipy.sparse import csc_array, diags_array
    from scipy.sparse.linalg import spsolve

    pattern = np.repeat(np.arange(len(weight)), _MOST_PARTS)
    share = csc_array((weight.ravel(), (pattern, column.ravel())), shape=(len(weight), len(prior)))
    trust = np.ones(len(weight))
    result = prior
    for _ in range(OPTIONS.scale_steps):
        trusted = share.T @ diags_array(trust / OPTIONS.pattern_spread**2)
        matrix = trusted @ share + diags_array(1 / (prior_spread * prior) ** 2)
        right = trusted @ np.ones(len(weight)) + 1 / (prior_spread**2 * prior)
        solved = spsolve(matrix.tocsc(), right, permc_spec="MMD_AT_PLUS_A")
        result = np.clip(solved, 1 / OPTIONS.most_scale * prior, OPTIONS.most_scale * prior)
        trust = 1 / np.maximum(1, np.abs(share @ result - 1) / OPTIONS.trusted_misfit)
    return result


def _measure_shares(
    spots: Spots, camera: _Camera, refs: _Reflections, first: np.ndarray, parts: _Components, chosen: np.ndarray, unit: np.ndarray,
    learn: bool,
) -> tuple[np.ndarray, np.ndarray]:  # fmt: skip
    """Weights (n, 3) of the chosen components, in units of the local thickness, and their covariance (n, 3, 3).

    ``unit`` (p,) is the counts a unit of strength of every phase. With ``learn`` the strengths of each crystal's reflections are
    learned from all its patterns.
    """
    n = len(chosen)
    keys, group = _crystals_of(parts, chosen)
    rows = _predicted_rows(_SpotArrays(*spots.arrays), camera, refs, first, parts, chosen, unit)
    of_crystal = np.repeat(keys.ravel(), np.diff(rows.start, axis=1).ravel())
    seen, reflection = np.unique(of_crystal * len(refs.g) + rows.reflection, return_inverse=True)
    rows = rows._replace(crystal=keys, reflection=reflection)  # numbered over all crystals, and only those that are predicted somewhere
    strengths = _Strengths(np.ones(len(group)), np.ones(len(seen)), np.full(len(seen), OPTIONS.unknown_spread**2))
    weights, normals = np.where(keys >= 0, 1 / np.maximum((keys >= 0).sum(axis=1, keepdims=True), 1), 0.0), np.zeros((n, 3, 3))
    for turn in range(OPTIONS.learning_rounds if learn else OPTIONS.plain_rounds):
        gained, known = np.zeros((_LEARNING_SUMS, len(seen))), np.zeros((_LEARNING_SUMS, len(seen)))
        arrays = _SpotArrays(*spots.arrays)
        side_by_side(_fit_all_shares, len(gained), arrays, camera.spot_sigma, rows, strengths, weights, normals, (gained, known))
        strengths = strengths._replace(scale=strengths.scale * _standardise(keys, group, weights))
        if learn and turn >= OPTIONS.first_learning_round:
            prior = 1 / OPTIONS.unknown_spread**2
            total = known.sum(axis=0) + prior
            mean = np.maximum((gained.sum(axis=0) + prior) / total, OPTIONS.least_strength)
            strengths = strengths._replace(mean=mean, variance=(OPTIONS.known_spread * mean) ** 2 + 1 / total)
    weights[keys < 0] = 0
    return weights, np.linalg.pinv(normals, hermitian=True)


def _crystals_of(parts: _Components, chosen: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The crystal (n, 3) of each chosen component by number, -1 for none, and the lattice (k,) of each crystal by number.

    A crystal is a phase in one variant on one lattice; one that lies on no lattice is of its pattern alone.
    """
    taken = np.maximum(chosen, 0)
    phase, lattice, variant = (np.take_along_axis(a, taken, axis=1) for a in (parts.phase, parts.lattice, parts.variant))
    alone = -1 - np.repeat(np.arange(len(chosen))[:, None], _MOST_PARTS, axis=1)
    names = np.stack([np.where(lattice < 0, alone, lattice), phase, variant], axis=-1)[chosen >= 0]
    crystals, number = np.unique(names, axis=0, return_inverse=True)
    keys = np.full(chosen.shape, -1)
    keys[chosen >= 0] = number
    return keys, np.unique(crystals[:, :1], return_inverse=True)[1].ravel()


def _unit_of_phases(family: np.ndarray, phase: np.ndarray, unit: np.ndarray) -> np.ndarray:
    """Counts a unit of strength of every phase (p,): the median over the patterns of one crystal of its family.

    ``phase`` (n,) and ``unit`` (n,) are of the patterns, the latter 0 where several crystals overlap.
    """
    overall = np.median(unit[unit > 0]) if (unit > 0).any() else 1.0
    of_family = [unit[(unit > 0) & (family[phase] == f)] for f in family]
    return np.array([np.median(some) if len(some) >= OPTIONS.typical_patterns else overall for some in of_family])


def _predicted_rows(
    spots: _SpotArrays, camera: _Camera, refs: _Reflections, first: np.ndarray, parts: _Components, chosen: np.ndarray, unit: np.ndarray
) -> _Predictions:
    """The predicted spots of all chosen components, counted first and then written."""

    def empty(n: int) -> _Predictions:
        whole, real = (np.zeros(n, np.int32) for _ in range(2)), (np.zeros(n, np.float32) for _ in range(4))
        return _Predictions(np.zeros((len(chosen), _MOST_PARTS + 1), np.int64), chosen, *whole, *real)

    rows = empty(_predict_chosen(spots, refs, first, camera, parts, chosen, unit, empty(0)))
    _predict_chosen(spots, refs, first, camera, parts, chosen, unit, rows)
    return rows
