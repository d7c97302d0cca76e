"""Orientations of one phase from the spots of single patterns, and what a known crystal predicts.

`search_phase` goes from coarse to fine. Every measured spot votes, by the fourth root of its evidence, for the templates that have a spot
of its radius and for the in-plane angles that bring them together: the sparse polar correlation of Ophus et al., Microsc. Microanal. 28
(2022) 390, as a Hough transform. The templates with the most votes are compared by evidence (`emphase.ped.evidence`), turned in the plane
as their spots require, and the best of them climbed in tilt. The best solution at least 10 degrees away says how unique the orientation is.

`predicted_spots`, `compare_spots` and `nearest_zone_axis` say what a solution means; `zone_axis_landscape` shows the evidence over all zone
axes; `chance_evidence` gives what each bank finds in background alone, which evidence must exceed.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from itertools import product
from typing import NamedTuple

import numpy as np

from ..crystals import Crystal
from ..kernels import kernel, side_by_side
from .distortion import recorded_places
from .evidence import _camera, _predict, _refine, _room, _spun, _turned, _view
from .scan import Calibration
from .spots import OPTIONS as SPOT_OPTIONS
from .spots import Spots, _SpotArrays, find_spots
from .templates import OPTIONS as TEMPLATE_OPTIONS
from .templates import TemplateBank


class SearchOptions(NamedTuple):
    """Tuning numbers of the search of orientations; a named tuple, so that kernels can read it."""

    coarse_candidates: int = 10  # templates with the most votes that are compared by evidence
    fine_candidates: int = 4  # of these are climbed a little, and half of them to the end
    behind_nats: float = 25.0  # behind the best: a candidate is not climbed further
    hopeless_nats: float = -10.0  # from which none is: chance alone gives more than ten
    voting_spots: int = 20  # the surest of a pattern
    apart: float = math.radians(10)  # orientations farther from each other are two
    radial_tolerance_invA: float = 0.015  # of a spot that votes, besides Calibration.place_strain
    angle_bins: int = 120  # of the in-plane angle: 3 degrees, which the turn in the plane then makes exact
    vote_unit: float = 256.0  # votes are whole numbers, which add and compare faster
    first_tilt: float = 0.4  # of the distance of templates, in which the climb begins


OPTIONS = SearchOptions()


@kernel
def _vote(weights, radius, turn, coarse, tolerance, votes):
    """Sum over pairs (measured spot, template spot) of equal radius, filed by template and in-plane angle, into ``votes``."""
    votes[:] = 0
    last = len(coarse.bin_start) - 1
    spot_radius, spot_turn, spot_weight, template = coarse.radius, coarse.turn, coarse.weight, coarse.template
    for k in range(len(radius)):
        low = max(0, int((radius[k] - tolerance) / TEMPLATE_OPTIONS.radial_bin_invA))
        high = min(last, int((radius[k] + tolerance) / TEMPLATE_OPTIONS.radial_bin_invA) + 1)
        if low > last:
            continue
        here, angle, per_tolerance = np.float32(radius[k]), np.float32(turn[k]), np.float32(1 / tolerance)
        weight = np.float32(weights[k] * OPTIONS.vote_unit)
        for i in range(coarse.bin_start[low], coarse.bin_start[high]):
            off = (spot_radius[i] - here) * per_tolerance
            near = np.float32(1) - off * off
            if near <= 0:
                continue
            between = angle - spot_turn[i]
            if between < 0:
                between += np.float32(1)
            between *= np.float32(OPTIONS.angle_bins)
            j = int(between)
            value = weight * spot_weight[i] * near
            second = value * (between - np.float32(j))
            votes[template[i], j] += np.uint16(value - second)
            votes[template[i], j + 1] += np.uint16(second)


@kernel
def _most_votes(votes, height, templates, bins):
    """The templates with the highest votes and their best angles, the highest first; returns how many."""
    for t in range(len(votes)):
        row = votes[t]
        row[0] += row[OPTIONS.angle_bins]
        highest = np.uint16(0)
        for j in range(OPTIONS.angle_bins):
            highest = max(highest, row[j])
        height[t] = highest
    most = min(len(templates), len(votes))
    for m in range(most):
        t = int(np.argmax(height))
        templates[m], bins[m], height[t] = t, np.argmax(votes[t, : OPTIONS.angle_bins]), -1
    return most


@kernel
def _nearest_operator(key, other, operators):
    """The operator that turns ``key`` nearest to ``other`` (both sample to crystal), and the angle (radians) left."""
    turn = np.empty((3, 3))
    for i in range(3):
        for j in range(3):
            turn[i, j] = other[i, 0] * key[j, 0] + other[i, 1] * key[j, 1] + other[i, 2] * key[j, 2]
    best, largest = 0, -2.0
    for o in range(len(operators)):
        trace = 0.0
        for i in range(3):
            for j in range(3):
                trace += operators[o, i, j] * turn[i, j]
        if trace > largest:
            best, largest = o, trace
    return best, math.acos(min(1.0, max(-1.0, (largest - 1) / 2)))


@kernel
def _best_of(candidates, value, n, operators, rotation, result):
    """The best candidate into ``rotation`` (3, 3); its evidence and the best at least ten degrees away into ``result`` (2,)."""
    best = np.argmax(value[:n])
    rotation[:] = candidates[best]
    result[0] = value[best]
    for c in range(n):
        if value[c] > result[1] and _nearest_operator(candidates[c], candidates[best], operators)[1] > OPTIONS.apart:
            result[1] = value[c]


@kernel
def _voting_spots(spots, votes_cast, centre, camera, radius, turn, weights):
    """Radius (1/Å), turn (of a full one) and weight of the surest spots that may vote, into the arrays; returns how many."""
    voting = 0
    for k in range(len(spots)):
        if voting < OPTIONS.voting_spots and votes_cast[k]:
            y, x = spots[k, 0] - centre[0], spots[k, 1] - centre[1]
            gx = camera.inverse[0, 0] * x + camera.inverse[0, 1] * y
            gy = camera.inverse[1, 0] * x + camera.inverse[1, 1] * y
            radius[voting], turn[voting] = math.hypot(gx, gy), (math.atan2(gy, gx) / (2 * math.pi)) % 1.0
            weights[voting] = math.sqrt(math.sqrt(spots[k, 4]))
            voting += 1
    return voting


class _Plan(NamedTuple):
    """How far a search goes: first tilt of the climb (radians), candidates that climb and that are spun."""

    tilt: float
    n_fine: int
    n_coarse: int


class _Best(NamedTuple):
    """The best ``rotation`` (n, 3, 3) in every pattern; its evidence and that of the second in ``result`` (n, 2)."""

    rotation: np.ndarray
    result: np.ndarray


@kernel(nogil=True)
def _search_templates(numbers, spots, votes_cast, coarse, refs, camera, plan, solutions):
    tilt, n_fine, candidates_each = plan.tilt, plan.n_fine, plan.n_coarse
    rotation, result = solutions
    table, number, background, centre = spots.table, spots.number, spots.background, spots.centre
    work = _room(camera, len(refs.g))
    votes = np.zeros((len(coarse.frames), OPTIONS.angle_bins + 1), np.uint16)
    height = np.zeros(len(coarse.frames), np.int32)
    templates, bins = np.zeros(candidates_each, np.int64), np.zeros(candidates_each, np.int64)
    candidates, value = np.zeros((candidates_each, 3, 3)), np.zeros(candidates_each)
    radius, turn, weights = np.zeros(OPTIONS.voting_spots), np.zeros(OPTIONS.voting_spots), np.zeros(OPTIONS.voting_spots, np.float32)
    for i in numbers:
        if number[i] == 0:
            rotation[i] = np.eye(3)
            continue
        view, diffracted = _view(table[i], number[i], background[i], centre[i], camera, work)
        voting = _voting_spots(view.spots, votes_cast[i], centre[i], camera, radius, turn, weights)
        _vote(weights, radius[:voting], turn[:voting], coarse, OPTIONS.radial_tolerance_invA + camera.place_strain, votes)
        n = _most_votes(votes, height, templates, bins)
        for c in range(n):
            t = templates[c]
            _turned(coarse.frames[t], 2, -2 * math.pi * bins[c] / OPTIONS.angle_bins, candidates[c])
            near = coarse.near[coarse.near_start[t] : coarse.near_start[t + 1]]
            value[c] = _spun(candidates[c], near, refs, camera, view, diffracted)
        for levels, most in ((1, n_fine), (3, (n_fine + 1) // 2)):  # few are climbed a little, the best of them to the end
            least = max(value[:n].max() - OPTIONS.behind_nats, OPTIONS.hopeless_nats if levels > 1 else -1e9)
            for c in np.argsort(-value[:n], kind="mergesort")[:most]:
                if value[c] < least:
                    break
                near = coarse.near[coarse.near_start[templates[c]] : coarse.near_start[templates[c] + 1]]
                step = tilt if levels == 1 else tilt / 2
                value[c] = _refine(candidates[c], step, levels, near, refs, camera, view, diffracted)
        _best_of(candidates, value, n, coarse.operators, rotation[i], result[i])


def search_phase(
    spots: Spots,
    calibration: Calibration,
    bank: TemplateBank,
    *,
    voters: np.ndarray | None = None,
    n_coarse: int = OPTIONS.coarse_candidates,
    n_fine: int = OPTIONS.fine_candidates,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The best orientation of one phase in every pattern, from the spots of each pattern alone.

    Parameters
    ----------
    spots
        Of n patterns.
    calibration
        Metric, mask, spot size, and how far spots may lie off their places.
    bank
        The phase.
    voters
        (n, 64) spots that may vote for templates; None: all. All spots count in the evidence.
    n_coarse
        Templates with the most votes that are compared by evidence.
    n_fine
        Candidates whose tilt is climbed a little; the better half is climbed to the end.

    Returns
    -------
    rotation
        (n, 3, 3), sample to crystal.
    evidence
        (n,) in nats.
    second
        (n,) evidence of the best solution at least 10 degrees away; -1000 where there is none.
    """
    n = len(spots.number)
    best = _Best(np.zeros((n, 3, 3)), np.full((n, 2), -1e3))
    if len(bank.spot_radius):
        step = math.sqrt(4 * math.pi / (len(bank.operators) * len(bank.frames) * math.sqrt(3) / 2))
        votes_cast = spots.table[:, :, 4] > 0 if voters is None else voters
        plan, arrays = _Plan(OPTIONS.first_tilt * step, n_fine, n_coarse), _SpotArrays(*spots.arrays)
        side_by_side(_search_templates, n, arrays, votes_cast, bank.coarse, bank.reflections, _camera(calibration), plan, best)
    return best.rotation, best.result[:, 0], best.result[:, 1]


@kernel
def _zone_evidence(table, number, background, centre, coarse, refs, camera, evidence):
    """Evidence of every template at the in-plane angle that has the most votes, for one pattern."""
    work = _room(camera, len(refs.g))
    view, diffracted = _view(table, number, background, centre, camera, work)
    radius, turn, weights = np.zeros(OPTIONS.voting_spots), np.zeros(OPTIONS.voting_spots), np.zeros(OPTIONS.voting_spots, np.float32)
    voting = _voting_spots(view.spots, view.spots[:, 4] > 0, centre, camera, radius, turn, weights)
    votes = np.zeros((len(coarse.frames), OPTIONS.angle_bins + 1), np.uint16)
    _vote(weights, radius[:voting], turn[:voting], coarse, OPTIONS.radial_tolerance_invA + camera.place_strain, votes)
    turned = np.empty((3, 3))
    for t in range(len(coarse.frames)):
        votes[t, 0] += votes[t, OPTIONS.angle_bins]
        _turned(coarse.frames[t], 2, -2 * math.pi * np.argmax(votes[t, : OPTIONS.angle_bins]) / OPTIONS.angle_bins, turned)
        near = coarse.near[coarse.near_start[t] : coarse.near_start[t + 1]]
        evidence[t] = _spun(turned, near, refs, camera, view, diffracted)


def zone_axis_landscape(spots: Spots, calibration: Calibration, bank: TemplateBank) -> tuple[np.ndarray, np.ndarray]:
    """Evidence of one phase along every zone axis of its bank, from the spots of one pattern, without any refinement.

    Parameters
    ----------
    spots
        The first pattern of these.
    calibration, bank
        As for `search_phase`.

    Returns
    -------
    directions
        (m, 3) of the beam, unit vectors in the crystal's Cartesian frame.
    evidence
        (m,) in nats, at the in-plane angle for which the spots vote.
    """
    evidence = np.zeros(len(bank.frames))
    if len(bank.spot_radius) and spots.number[0]:
        first = (spots.table[0], spots.number[0], spots.background[0], spots.centre_px[0])
        _zone_evidence(*first, bank.coarse, bank.reflections, _camera(calibration), evidence)
    return bank.frames[:, :, 2], evidence


def indices_up_to(most: int) -> np.ndarray:
    """All directions (n, 3) of indices without a common factor, the simple ones first.

    Not `orix.vector.Miller.from_highest_indices`: that keeps multiples, and its order does not put the simpler of two equals first.
    """
    indices = np.array([uvw for uvw in product(range(-most, most + 1), repeat=3) if math.gcd(*uvw) == 1])
    return indices[np.argsort(np.abs(indices).sum(axis=1), kind="stable")]


def nearest_zone_axis(crystal: Crystal, direction: np.ndarray, max_index: int = 5) -> tuple[tuple[int, int, int], float]:
    """The direction [uvw] of low indices nearest to a direction of the crystal, such as that of the beam.

    Parameters
    ----------
    crystal
        Its lattice is used.
    direction
        (3,) in the crystal's Cartesian frame; the beam's is ``rotation[:, 2]``.
    max_index
        Of u, v and w.

    Returns
    -------
    uvw
        A higher index is taken only where it is nearer by 1° for each.
    angle
        Between it and ``direction``, degrees.

    Notes
    -----
    Not `orix.vector.Miller.round`: that rounds to the smallest residual of the indices, whatever their size, and knows no angle.

    >>> cubic = Crystal("cubic", 4.2 * np.eye(3), np.zeros((1, 3)), ("Ni",), np.ones(1), 225)
    >>> nearest_zone_axis(cubic, np.array([0.0, 1.0, 1.02]))[0]
    (0, 1, 1)
    """
    uvw = indices_up_to(max_index)
    axes = uvw @ crystal.lattice
    angle = np.degrees(np.arccos(np.clip(axes @ direction / np.linalg.norm(axes, axis=1) / np.linalg.norm(direction), -1, 1)))
    best = int(np.argmin(angle + np.abs(uvw).sum(axis=1)))
    u, v, w = (int(i) for i in uvw[best])
    return (u, v, w), float(angle[best])


@dataclass(frozen=True)
class SpotComparison:
    """The spots of one pattern against those that a crystal predicts.

    Attributes
    ----------
    predicted_px
        (n, 2) predicted places, (y, x).
    seen, missing
        (n,) of these. Neither seen nor missing are those too faint to be expected.
    extra_px
        (m, 2) measured places that the crystal does not predict.
    """

    predicted_px: np.ndarray
    seen: np.ndarray
    missing: np.ndarray
    extra_px: np.ndarray


def compare_spots(
    spots: Spots, calibration: Calibration, bank: TemplateBank, rotation: np.ndarray, *, least_nats: float = 6.0
) -> SpotComparison:
    """Which spots that a crystal predicts are in a pattern, and which measured ones it does not explain.

    Parameters
    ----------
    spots
        The first pattern of these.
    calibration, bank
        As for `search_phase`.
    rotation
        (3, 3) of the crystal, sample to crystal.
    least_nats
        A spot counts as measured above this evidence against background. One that is predicted is missing where the counts expected of
        it, scaled by the matched spots, would stand out by as much.
    """
    from scipy.spatial import cKDTree

    camera, centre = _camera(calibration), spots.centre_px[0]
    table = spots.table[0, : spots.number[0]].astype(float)
    measured = table[table[:, 4] >= least_nats]
    places, strength, _ = _undistorted_prediction(bank, rotation, centre, calibration, 1e-3)
    recorded = lambda yx: recorded_places(yx, centre, calibration)
    if not len(places) or not len(measured):
        nothing = np.zeros(len(places), bool)
        return SpotComparison(recorded(places), nothing, nothing, recorded(measured[:, :2]))
    apart, nearest = cKDTree(measured[:, :2]).query(places)
    seen = apart <= camera.match
    net = np.bincount(nearest[seen], minlength=len(measured)) > 0
    scale = float(np.sum(measured[net, 2] - measured[net, 3])) / max(float(strength[seen].sum()), 1e-12)
    mean = scale * strength
    radius, at = np.minimum(np.linalg.norm(places - centre, axis=1).astype(int), spots.background.shape[1] - 1), np.rint(places).astype(int)
    radial = spots.background[0, radius] * camera.full
    below = np.maximum(radial + camera.fixed[tuple(at.T)], SPOT_OPTIONS.least_of_radial * radial) + SPOT_OPTIONS.empty_counts
    bright = (mean + below) * np.log((mean + below) / below) - mean > least_nats
    good = camera.pixels[tuple(at.T)] > 0.5
    extra = measured[cKDTree(places).query(measured[:, :2])[0] > camera.match, :2]
    return SpotComparison(recorded(places), seen, bright & ~seen & good, recorded(extra))


def predicted_spots(
    bank: TemplateBank, rotation: np.ndarray, centre_px: np.ndarray, calibration: Calibration, *, min_relative_intensity: float = 0.01
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The spots of a crystal on the camera, from its orientation and the calibration.

    Parameters
    ----------
    bank
        The phase.
    rotation
        (3, 3), sample to crystal.
    centre_px
        (2,) direct beam, (y, x).
    calibration
        Metric, mask and spot size.
    min_relative_intensity
        Weakest spot, as a share of the strongest.

    Returns
    -------
    places
        (n, 2), (y, x) in px, where the camera records them.
    strength
        (n,) of the bank's model.
    hkl
        (n, 3).
    """
    places, strength, number = _undistorted_prediction(bank, rotation, centre_px, calibration, min_relative_intensity)
    return recorded_places(places, np.asarray(centre_px, float), calibration), strength, bank.hkl[number]


def _undistorted_prediction(
    bank: TemplateBank, rotation: np.ndarray, centre_px: np.ndarray, calibration: Calibration, min_relative_intensity: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Places, strengths and numbers of the reflections of `predicted_spots`, on an undistorted camera."""
    spots, everything = np.empty((len(bank.g), 4)), np.arange(len(bank.g))
    rotation, centre = np.ascontiguousarray(rotation, dtype=float), np.asarray(centre_px, float)
    n = _predict(rotation, everything, len(everything), bank.reflections, _camera(calibration), centre, spots)
    spots = spots[:n][spots[:n, 2] > min_relative_intensity * spots[:n, 2].max(initial=0)]
    return spots[:, :2], spots[:, 2], spots[:, 3].astype(int)


@kernel
def _most_evidence(spots, camera, reach, least_nats, refs_length):
    """Evidence (n,) that the clear spots of patterns could give at most, those within ``reach`` px of the direct beam."""
    result = np.zeros(len(spots.number))
    work = _room(camera, refs_length)
    for i in range(len(result)):
        view, _ = _view(spots.table[i], spots.number[i], spots.background[i], spots.centre[i], camera, work)
        for k in range(len(view.spots)):
            away = (view.spots[k, 0] - view.centre[0]) ** 2 + (view.spots[k, 1] - view.centre[1]) ** 2
            if view.spots[k, 4] >= least_nats and away <= reach * reach:
                result[i] += math.log((view.terms[k, 3] + view.terms[k, 4]) / view.terms[k, 5])
    return result


def most_evidence(spots: Spots, calibration: Calibration, reach_invA: float, least_nats: float = 8.0) -> np.ndarray:
    """The evidence of a crystal that would predict all clear spots of a pattern in their places and strengths.

    Parameters
    ----------
    spots
        Of n patterns.
    calibration
        As for `search_phase`.
    reach_invA
        Spots within this length of g count, 1/Å.
    least_nats
        Evidence against background of a clear spot.

    Returns
    -------
    (n,) in nats.
    """
    arrays = _SpotArrays(*spots.arrays)
    return _most_evidence(arrays, _camera(calibration), reach_invA / calibration.scale_invA_per_px, least_nats, 1)


def chance_evidence(
    spots: Spots, calibration: Calibration, banks: list[TemplateBank], shape: tuple[int, int], *, n: int = 96, quantile: float = 0.95,
    seed: int = 1,
) -> np.ndarray:  # fmt: skip
    """The evidence that each bank finds by chance, from simulated patterns of a scan's background alone.

    Parameters
    ----------
    spots
        Of the scan; their radial backgrounds are used.
    calibration, banks
        As for `search_phase`.
    shape
        (ky, kx) of the camera.
    n
        Patterns of background and Poisson noise to simulate.
    quantile
        Of their evidence.
    seed
        Of the noise.

    Returns
    -------
    (p,) in nats: the quantile of each bank, plus what the best of all banks exceeds its quantile by in one of fifty patterns.
    """
    rng = np.random.default_rng(seed)
    chosen = np.sort(rng.choice(len(spots.number), size=n, replace=len(spots.number) < n))
    yy, xx = np.indices(shape)
    empty = np.empty((n, *shape), np.float32)
    for image, i in zip(empty, chosen, strict=True):
        cy, cx = spots.centre_px[i]
        radius = np.minimum(np.hypot(yy - cy, xx - cx).astype(int), spots.background.shape[1] - 1)
        image[:] = rng.poisson(spots.background[i][radius])
    plain_counts = replace(calibration, gain=1.0, offset=0.0, fixed_background=np.zeros((0, 0), np.float32))
    of_empty = find_spots(empty, spots.centre_px[chosen], plain_counts)
    evidence = np.array([search_phase(of_empty, plain_counts, bank)[1] for bank in banks])
    chance = np.quantile(evidence, quantile, axis=1)
    return chance + max(0.0, float(np.quantile((evidence - chance[:, None]).max(axis=0), 0.98)))
