"""How much of a pattern its crystals explain, and what the patterns of a scan hold that no candidate predicts.

Evidence compares candidates. Whether any of them is right, only the spots say that none predicts. Every pattern gets

- the *correlation coefficient* of measured and predicted spot strengths (Rauch and Dupuy, Arch. Metall. Mater. 50 (2005) 87, here over
  spots and of square roots, so that one bright spot does not outweigh all others),
- the *explained share* of the net counts in its clear spots: a spot is explained up to what the crystals predict there, times the spread
  of strengths; what lies beyond, or where nothing is predicted, is left over,
- the *evidence share*: the evidence that its crystals have, over that of a crystal which predicts every clear spot in its place and
  strength. It is about one where the model is true, whatever the dose, and counts spots that are predicted and missing against a crystal.

All three look at spots within the reach of the templates only. Over simulated scans by two-beam theory the right phases have explained
shares of 0.8 to 1 and evidence shares of 0.5 to 1.3 (98 % of the patterns), whatever the phase and the dose; without the right phase,
one of a large cell has 0.1 to 0.6 and 0 to 0.3.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

from ..kernels import kernel, side_by_side
from .evidence import OPTIONS as EVIDENCE_OPTIONS
from .evidence import _camera, _collect, _judge, _near_ewald, _room, _view, _within
from .index import Indexing
from .overlap import _MOST_PARTS
from .overlap import OPTIONS as OVERLAP_OPTIONS
from .scan import Calibration
from .search import search_phase
from .spots import OPTIONS as SPOT_OPTIONS
from .spots import Spots, _SpotArrays
from .templates import TemplateBank, _joined_reflections, _longest_g


class ExplainedOptions(NamedTuple):
    """Tuning numbers of what is explained; a named tuple, which kernels read."""

    correlated_nats: float = 4.0  # spots this far above the background are correlated; fainter ones are noise as often
    clear_nats: float = 8.0  # spots that must be explained: one in 3000 of the background's fluctuations is as clear
    brighter: float = math.exp(EVIDENCE_OPTIONS.log_mean + 2 * EVIDENCE_OPTIONS.log_spread)  # than expected, still explained: 2 sd
    reach: float = 1.003  # of the longest reflection of the templates: beyond, a spot cannot be predicted, ...
    sure_reach: float = 0.99  # ... and nearer than this it is, where it is a reflection
    ring_reach: float = 0.97  # beyond, the density of unexplained spots ends
    judged_spots: int = 3  # clear spots of a pattern that says whether a phase is missing: two are a systematic row
    least_explained: float = 0.7  # of the net counts in clear spots
    least_evidence: float = 0.25  # of the evidence that the clear spots could give
    usual_share: float = 0.05  # of the patterns is not explained although no phase is missing: bent, thick, at a boundary
    chance: float = 0.01  # at which a scan of right candidates has by chance as many patterns that are not explained, and is called short
    least_patterns: int = 3  # fewer say nothing about the scan
    least_share: float = 0.5  # of the patterns must be explained, or nothing is decided; and ...
    few_spots: int = 10  # ... where a pattern has fewer clear spots, which fit a wrong crystal by luck in one of five patterns, ...
    alike: float = 1.5  # ... of the patterns with as many clear spots, up to this factor, ...
    least_share_alike: float = 0.85  # ... this share must be
    broader: float = 2.0  # rocking curve than that of the templates: so much may a thin or bent part have, and a spot is still explained
    ring_width: float = 0.012  # of a spacing: spots of one ring, with what the camera's distortion leaves
    same_place_px: float = 4.0  # spots of one crystal this near are one reflection, in however many patterns
    ring_sigmas: float = 5.0  # by which the spots of a ring exceed what chance puts there, ...
    least_ring: float = 0.05  # ... and their share of the counts in its patterns: multiple scattering lights forbidden reflections up to it
    strong_ring: float = 0.2  # of the strongest family {hkl} of a candidate: one whose spots would be left over
    most_rings: int = 8  # that are listed
    tried_patterns: int = 48  # on which further phases are tried, ...
    tried_scale: float = 0.03  # ... at scales off by as much, in steps of half a per cent: the scale may follow the wrong candidates


OPTIONS = ExplainedOptions()


class Explained(NamedTuple):
    """How much of each pattern (ny, nx) its crystals explain.

    Attributes
    ----------
    correlation
        0 to 1; 1 is a pattern whose spots are all predicted, in their proportions, and no others. 0 where fewer than two are explained.
    counts_share
        Of the net counts in clear spots, what the crystals explain; 1 where there is no clear spot.
    evidence_share
        Evidence of the crystals over the most that the clear spots could give; 1 where there is no clear spot.
    clear_spots, unexplained_spots
        Numbers of spots of more than 8 nats within reach, and of those of which less than half is explained.
    unexplained
        (ny, nx, 64) net counts left over in each spot of the table.
    """

    correlation: np.ndarray
    counts_share: np.ndarray
    evidence_share: np.ndarray
    clear_spots: np.ndarray
    unexplained_spots: np.ndarray
    unexplained: np.ndarray

    @property
    def enough(self) -> np.ndarray:
        """(ny, nx) whether as much is explained as would be if the crystals were right."""
        return (self.counts_share >= OPTIONS.least_explained) & (self.evidence_share >= OPTIONS.least_evidence)


class _Crystals(NamedTuple):
    """The crystals of n patterns: ``phase`` (n, 3), -1 for none, ``share`` (n, 3) and ``rotation`` (n, 3, 3, 3)."""

    phase: np.ndarray
    share: np.ndarray
    rotation: np.ndarray


class _Predicted(NamedTuple):
    """What the crystals of a pattern predict per unit of strength: ``sums`` (3, m) of strength and offsets at the spots, and the missed.

    Of ``missed`` (n, 2), ``n_missed`` (1,) rows are filled.
    """

    sums: np.ndarray
    missed: np.ndarray
    n_missed: np.ndarray


class _Out(NamedTuple):
    """The ``columns`` (n, 5) of `Explained`, and the net counts ``left`` (n, 64) in every spot."""

    columns: np.ndarray
    left: np.ndarray


@kernel(nogil=True)
def _explain(numbers, spots, refs, first, camera, reach, crystals, out):
    """The columns of `Explained` for the ``crystals`` of the patterns ``numbers``, and the net counts that are left, into ``out``."""
    phase, share, rotation = crystals
    work = _room(camera, len(refs.g))
    near = np.empty(len(refs.g), np.int64)
    missed = np.empty((OVERLAP_OPTIONS.room_missed, 2))
    predicted = _Predicted(np.empty((3, SPOT_OPTIONS.most_spots)), missed, np.zeros(1, np.int64))
    for i in numbers:
        view, diffracted = _view(spots.table[i], spots.number[i], spots.background[i], spots.centre[i], camera, work)
        predicted.sums[:] = 0
        predicted.n_missed[0] = 0
        for q in range(phase.shape[1]):
            if phase[i, q] >= 0:
                n_near = _near_ewald(rotation[i, q], 0.0, refs, first[phase[i, q]], first[phase[i, q] + 1], near)
                _add_crystal(rotation[i, q], share[i, q], near[:n_near], refs, camera, view, predicted)
        _explain_pattern(view, predicted, diffracted, camera, reach, out.columns[i], out.left[i])


@kernel
def _add_crystal(rotation, share, near, refs, camera, view, predicted):
    """Add what a crystal predicts, in its share, to what is ``predicted``."""
    found, total = _collect(rotation, near, len(near), refs, camera, view)
    if total <= 0:
        return
    for k in range(len(view.spots)):
        predicted.sums[0, k] += share * view.strength[k] / total
        predicted.sums[1, k] += share * view.off_y[k] / total
        predicted.sums[2, k] += share * view.off_x[k] / total
    first = predicted.n_missed[0]
    found = min(found, len(predicted.missed) - first)
    for j in range(found):
        predicted.missed[first + j, 0], predicted.missed[first + j, 1] = share * view.missed[j, 0] / total, view.missed[j, 1]
    predicted.n_missed[0] += found


@kernel
def _explain_pattern(view, predicted, diffracted, camera, reach, result, left):
    """Correlation, explained and evidence share, clear and unexplained spots of a pattern into ``result``, counts left into ``left``."""
    strength = predicted.sums[0]
    product = measured = matched = expected = most = 0.0
    n_explained = clear = 0
    for k in range(len(view.spots)):
        net = max(view.spots[k, 2] - view.spots[k, 3], np.float32(0))
        if view.spots[k, 4] < OPTIONS.correlated_nats or not _within(view, k, camera, OPTIONS.reach * reach):
            continue
        measured += net
        if strength[k] > 0:
            product += math.sqrt(net * strength[k])
            n_explained += 1
            matched += net
            expected += strength[k]
        if view.spots[k, 4] >= OPTIONS.clear_nats and _within(view, k, camera, OPTIONS.sure_reach * reach):
            clear += 1
            most += math.log((view.terms[k, 3] + view.terms[k, 4]) / view.terms[k, 5])
    lost, unexplained = _left_over(view, strength, matched / max(expected, 1e-30), camera, reach, left)
    scale = max(matched, EVIDENCE_OPTIONS.least_share * diffracted)
    _, off_y, off_x = predicted.sums
    evidence = _judge(strength[: len(view.spots)], off_y, off_x, predicted.missed, predicted.n_missed[0], scale, view)[0]
    result[0] = product / math.sqrt(measured) if n_explained > 1 else 0.0
    result[1], result[2] = 1 - lost, evidence / most if clear > 0 else 1.0
    result[3], result[4] = clear, unexplained


@kernel
def _left_over(view, strength, counts, camera, reach, left):
    """Share of the clear spots' net counts beyond what ``strength`` (m,) times ``counts`` explains; how many spots are unexplained."""
    in_clear, lost, unexplained = 0.0, 0.0, 0
    for k in range(len(view.spots)):
        if view.spots[k, 4] >= OPTIONS.clear_nats and _within(view, k, camera, OPTIONS.sure_reach * reach):
            net = max(view.spots[k, 2] - view.spots[k, 3], np.float32(0))
            left[k] = max(net - OPTIONS.brighter * strength[k] * counts, 0.0)
            in_clear += net
            lost += left[k]
            unexplained += left[k] > 0.5 * net
    return lost / max(in_clear, 1e-9), unexplained


def explain(spots: Spots, calibration: Calibration, banks: Sequence[TemplateBank], found: Indexing) -> Explained:
    """How much of every pattern the crystals found in it explain, from its spots and what they predict in their shares.

    Parameters
    ----------
    spots
        Of all patterns, in the order of the scan.
    calibration
        Of the scan.
    banks
        Of the candidate phases, in the order of ``found``.
    found
        The crystals of every pattern and their shares.

    Returns
    -------
    The `Explained` of the scan.

    Notes
    -----
    The correlation is Σ √(m q) / √(Σ m) over all measured spots of at least 4 nats, with their net counts m and the predicted strengths q,
    which add up to one over all places that the crystals of the pattern predict. With c = Σ m / Σ q over predicted spots, a clear spot
    leaves max(m - f c q, 0), f = exp(-0.15 + 2 x 0.8), of the model of strengths in `emphase.ped.evidence`. What is left is that of a
    rocking curve twice as broad as the templates': its flanks are those of the thickness, which is not the same all over a lamella.
    """
    refs, first = _joined_reflections(list(banks))
    phase, share = found.part_phase.reshape(-1, _MOST_PARTS), found.part_share.reshape(-1, _MOST_PARTS)
    rotation = found.part_rotation.reshape(-1, _MOST_PARTS, 3, 3).astype(float)
    n, shape = len(spots.table), found.winner.shape
    broad = refs._replace(half_width=OPTIONS.broader * refs.half_width, reach=refs.cone + OPTIONS.broader * (refs.reach - refs.cone))
    arrays, crystals, reach = _SpotArrays(*spots.arrays), _Crystals(phase, share, rotation), _longest_g(banks)
    of_curve, of_broad = (_Out(np.zeros((n, 5)), np.zeros(spots.table.shape[:2])) for _ in range(2))
    for curve, out in ((refs, of_curve), (broad, of_broad)):
        side_by_side(_explain, n, arrays, curve, first, _camera(calibration), reach, crystals, out)
    correlation, _, evidence_share, _, _ = of_curve.columns.T.reshape(5, *shape)
    _, counts_share, _, clear, unexplained = of_broad.columns.T.reshape(5, *shape)
    left = of_broad.left.reshape(*shape, -1)
    return Explained(correlation, counts_share, evidence_share, clear.astype(int), unexplained.astype(int), left)


class Ring(NamedTuple):
    """Unexplained spots at one spacing (Å): how many reflections of crystals, and their share of all unexplained counts."""

    spacing_A: float
    n_spots: int
    share: float


@dataclass(frozen=True)
class Unexplained:
    """What the patterns of a scan hold that no candidate predicts.

    Attributes
    ----------
    judged, explained_share
        Number of patterns with three clear spots or more, and the share of these that are explained.
    patterns
        (n,) flat indices of those that are not, the most counts left over first.
    spacings_A
        (m,) of the unexplained spots of all patterns.
    rings
        Spacings at which these gather, the heaviest first.
    """

    judged: int
    explained_share: float
    patterns: np.ndarray
    spacings_A: np.ndarray
    rings: list[Ring]

    @property
    def phase_is_missing(self) -> bool:
        """Whether more patterns are not explained than bending, thickness and boundaries leave so, or spots gather at spacings.

        More than the usual share is meant of many scans, so by chance one of few patterns has more.
        """
        from scipy import stats

        many = stats.binom.sf(len(self.patterns) - 1, self.judged, OPTIONS.usual_share) < OPTIONS.chance
        return bool((many and len(self.patterns) >= OPTIONS.least_patterns) or self.rings)


def _judged(maps: dict[str, np.ndarray]) -> np.ndarray:
    """Which patterns (ny, nx) say whether a phase is missing."""
    return maps["clear_spots"] >= OPTIONS.judged_spots


def believable(maps: dict[str, np.ndarray]) -> np.ndarray:
    """Which patterns (ny, nx) are not explained by luck, from how many of the scan's patterns like each are explained at all.

    Parameters
    ----------
    maps
        ``clear_spots`` and ``explained`` of `emphase.ped.maps.read_maps`.

    Notes
    -----
    Where a phase is missing among the candidates, some of its patterns are explained by luck: few spots lie near those of a wrong crystal,
    alike all over a grain. So patterns of few clear spots are believed only where nearly all of their like are explained, and none is
    where fewer than half of all patterns are.
    """
    judged, enough, number = _judged(maps), maps["explained"], np.maximum(maps["clear_spots"], OPTIONS.judged_spots)
    if (judged & ~enough).sum() < OPTIONS.least_patterns:
        return np.ones(enough.shape, bool)
    if enough[judged].mean() < OPTIONS.least_share:
        return np.zeros(enough.shape, bool)
    every, explained = (np.bincount(number[some], minlength=number.max() + 1) for some in (judged, judged & enough))
    counts = np.arange(len(every))
    like = np.maximum(counts[:, None], counts) <= OPTIONS.alike * np.minimum(counts[:, None], counts)
    share = (like @ explained) / np.maximum(like @ every, 1)
    return (number >= OPTIONS.few_spots) | (share[number] >= OPTIONS.least_share_alike)


def unexplained(
    spots: Spots, calibration: Calibration, banks: Sequence[TemplateBank], found: Indexing, maps: dict[str, np.ndarray]
) -> Unexplained:
    """What the patterns of a scan hold that no candidate predicts, from the spots that its crystals leave over.

    Parameters
    ----------
    spots, calibration, banks, found
        As for `explain`.
    maps
        Those of `emphase.ped.maps.read_maps`.

    Returns
    -------
    The `Unexplained` of the scan.
    """
    judged, enough = _judged(maps), maps["explained"]
    share = float(enough[judged].mean()) if judged.any() else 1.0
    left, clear_counts = np.zeros(enough.shape), np.zeros(enough.shape)
    places, counts, crystals, members = [np.zeros((0, 2))], [np.zeros(0)], [np.zeros(0, int)], [np.zeros(0, int)]
    # a pattern without a crystal is one of its own
    crystal = np.where(maps["crystal_id"] >= 0, maps["crystal_id"], -1 - np.arange(enough.size).reshape(enough.shape))
    for y in np.flatnonzero((maps["unexplained_spots"] > 0).any(axis=1)):
        line = spots[y * enough.shape[1] : (y + 1) * enough.shape[1]]
        of_spots = explain(line, calibration, banks, found.part(slice(y, y + 1), slice(None))).unexplained[0]
        net = np.maximum(line.table[:, :, 2] - line.table[:, :, 3], 1e-9)
        left[y], clear_counts[y] = of_spots.sum(axis=1), (net * (line.table[:, :, 4] >= OPTIONS.clear_nats)).sum(axis=1)
        lone = of_spots > 0.5 * net
        places.append((line.table[:, :, :2] - line.centre_px[:, None])[lone][:, ::-1])
        counts.append(of_spots[lone])
        crystals.append(np.broadcast_to(crystal[y][:, None], lone.shape)[lone])
        members.append(y * enough.shape[1] + np.nonzero(lone)[0])
    patterns = np.flatnonzero(judged & ~enough)
    patterns = patterns[np.argsort(-left.ravel()[patterns], kind="stable")]
    place, counted = np.concatenate(places), np.concatenate(counts)
    g_invA = np.linalg.norm(place @ np.linalg.inv(calibration.metric).T, axis=1)
    cell = np.column_stack([np.concatenate(crystals), np.rint(place / OPTIONS.same_place_px)])
    _, first, reflection = np.unique(cell, axis=0, return_index=True, return_inverse=True)
    rings = _rings(g_invA[first], np.bincount(reflection.ravel(), counted, len(first)), _longest_g(banks))
    lit = _Lit(g_invA, counted, np.concatenate(members), np.concatenate(crystals), clear_counts.ravel())
    rings = [ring for ring in rings if lit.share(ring) >= OPTIONS.least_ring and not _is_of_candidates(ring, banks)]
    return Unexplained(int(judged.sum()), share, patterns, 1 / g_invA, rings[: OPTIONS.most_rings])


def _is_of_candidates(ring: Ring, banks: Sequence[TemplateBank]) -> bool:
    """Whether a candidate has strong reflections at this spacing: their spots are left over where an orientation was not found."""
    for bank in banks:
        families, of_family = np.unique(np.linalg.norm(bank.g, axis=1).round(4), return_inverse=True)
        strength = np.bincount(of_family.ravel(), bank.reflections.strength)
        near = np.abs(np.log(families * ring.spacing_A)) <= OPTIONS.ring_width
        if strength[near].max(initial=0) > OPTIONS.strong_ring * strength.max():
            return True
    return False


class _Lit(NamedTuple):
    """Unexplained spots: length and counts (n,), pattern and crystal of each; counts (patterns,) in the clear spots of every pattern."""

    g_invA: np.ndarray
    counts: np.ndarray
    pattern: np.ndarray
    crystal: np.ndarray
    clear_counts: np.ndarray

    def share(self, ring: Ring) -> float:
        """The share that the spots of a ring have of the counts of the patterns in which they are, the median over the crystals."""
        here = np.abs(np.log(self.g_invA * ring.spacing_A)) <= OPTIONS.ring_width
        patterns, one = np.unique(self.pattern[here], return_index=True)
        _, crystal = np.unique(self.crystal[here], return_inverse=True)
        in_ring, whole = np.bincount(crystal, self.counts[here]), np.bincount(crystal[one], self.clear_counts[patterns])
        return float(np.median(in_ring / np.maximum(whole, 1e-9)))


def _rings(g_invA: np.ndarray, counts: np.ndarray, reach_invA: float) -> list[Ring]:
    """Lengths at which spots (n,) of these ``counts`` gather, against a density in log g that is smooth over a tenth.

    The density is that of the lengths at which templates could have predicted a spot.
    """
    from scipy import ndimage
    from skimage.feature import peak_local_max

    if len(g_invA) < OPTIONS.least_patterns:
        return []
    step = OPTIONS.ring_width / 4
    edges = np.arange(math.log(g_invA.min()) - 0.2, math.log(reach_invA) + 0.2, step)
    number, _ = np.histogram(np.log(g_invA), edges)
    near = ndimage.uniform_filter1d(number.astype(float), 4, mode="constant") * 4
    within = (edges[1:] < math.log(OPTIONS.sure_reach * reach_invA)).astype(float)
    about, known = (ndimage.uniform_filter1d(part, 60, mode="constant") for part in (within * number, within))
    about = 4 * about / np.maximum(known, 1 / 60)
    excess = np.where(edges[1:] < math.log(OPTIONS.ring_reach * reach_invA), (near - about) / np.sqrt(about + 1), 0.0)
    rings = []
    for (k,) in peak_local_max(excess, min_distance=4, threshold_abs=OPTIONS.ring_sigmas, exclude_border=False):
        here = np.abs(np.log(g_invA) - edges[k]) <= OPTIONS.ring_width
        rings.append(Ring(float(1 / np.median(g_invA[here])), int(here.sum()), float(counts[here].sum() / counts.sum())))
    return sorted(rings, key=lambda ring: -ring.share)


def evidence_of_others(
    spots: Spots, calibration: Calibration, banks: Sequence[TemplateBank], others: Sequence[TemplateBank], missing: Unexplained
) -> dict[str, float]:
    """How well further phases would explain the patterns that the candidates do not, from the best evidence of each.

    Parameters
    ----------
    spots, calibration, banks
        With which the scan was mapped.
    others
        Banks of phases that were not candidates.
    missing
        What `unexplained` gives.

    Returns
    -------
    For each of the others by name the median gain in nats of a pattern over the best candidate alone, at the scale within 3 % at which it
    is largest, the largest first; only those that win more than half of the patterns.
    """
    some = spots[missing.patterns[: OPTIONS.tried_patterns]]
    if not len(some.number):
        return {}
    best = np.max([search_phase(some, calibration, bank)[1] for bank in banks], axis=0)
    factors = 1 + np.arange(-OPTIONS.tried_scale, OPTIONS.tried_scale + 1e-6, 0.005)
    gain = {}
    for bank in others:
        scales = [replace(calibration, scale_invA_per_px=calibration.scale_invA_per_px * factor) for factor in factors]
        gain[bank.crystal.name] = max(float(np.median(search_phase(some, scaled, bank)[1] - best)) for scaled in scales)
    return {name: nats for name, nats in sorted(gain.items(), key=lambda item: -item[1]) if nats > 0}
