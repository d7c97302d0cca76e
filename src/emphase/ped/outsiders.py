"""Whether a phase on the lattice of the candidates, which is none of them, explains patterns of a scan better than they do.

A phase that shares no lattice with the candidates leaves spots over that none predicts (`emphase.ped.explained`). One that shares their
lattice need not: two variants of a layered crystal over each other have the spots of a spinel in most zone axes. Only the comparison
tells, by what it takes to explain a pattern: one crystal of the outsider, or two of a candidate. So the scan is matched once more
with the outsider among the candidates: some patterns from all over it first, and all where it wins more of these than the decision errs.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np

from ..crystals import Crystal
from .families import orientation_relations
from .maps import map_scan
from .scan import Calibration, patterns_at
from .templates import TemplateBank


@dataclass(frozen=True)
class OutsiderOptions:
    """Tuning of the search for outsiders."""

    tried_patterns: int = 1500  # from all over the scan: a phase of a fiftieth of them wins thirty
    usual_share: float = 0.01  # of the patterns may an outsider win where it is not there: as many of what is decided err
    chance: float = 0.01  # at which an outsider that is not there wins as many patterns
    same_lattice: float = 0.03  # lattice parameters of a candidate nearer than this differ by less than a scale may


OPTIONS = OutsiderOptions()


class Outsiders(NamedTuple):
    """What phases on the candidates' lattice that are no candidates explain better.

    Attributes
    ----------
    share
        By name the share of a scan's patterns that an outsider explains better than the candidates do; only of those that win more
        patterns than by chance.
    better
        (ny, nx) whether an outsider explains the pattern better, or as well within the margin that decides.
    """

    share: dict[str, float]
    better: np.ndarray


def possible_outsiders(candidates: Sequence[Crystal], others: Iterable[Crystal], families: Iterable[Iterable[str]]) -> list[Crystal]:
    """Those of the ``others`` that share the lattice of a candidate, and have reflections where it has none.

    Parameters
    ----------
    candidates
        With which a scan was mapped.
    others
        Further phases.
    families
        Names of the phases that grow on one another's lattice, family by family.

    Returns
    -------
    The crystals of a candidate's family with an orientation relation to it, without those of a candidate's space group and lattice, and
    one of several that are so alike: these differ by the strengths of their reflections alone, which dynamical scattering changes as much.
    """
    families = [set(family) for family in families]
    found: list[Crystal] = []
    for other in others:
        family = set[str]().union(*(f for f in families if other.name in f))
        related = [c for c in candidates if c.name in family and len(orientation_relations(c, other))]
        if related and not any(_alike(other, c) for c in (*candidates, *found)):
            found.append(other)
    return found


def _alike(one: Crystal, other: Crystal) -> bool:
    """Whether two crystals have one space group and one lattice."""
    lengths, others = (np.linalg.norm(crystal.lattice, axis=1) for crystal in (one, other))
    return one.space_group == other.space_group and np.allclose(lengths, others, rtol=OPTIONS.same_lattice)


def find_outsiders(
    patterns: Any,
    calibration: Calibration,
    banks: Sequence[TemplateBank],
    others: Sequence[TemplateBank],
    maps: dict[str, np.ndarray],
    *,
    suspected: bool = False,
    thresholds: dict[str, float] | None = None,
    **options: Any,
) -> Outsiders:
    """Phases on the candidates' lattice that explain patterns of a scan better than the candidates, and which patterns.

    Parameters
    ----------
    patterns, calibration, banks, thresholds, **options
        With which the scan was mapped (`emphase.ped.map_scan`).
    others
        Banks of the `possible_outsiders`.
    maps
        Those of `emphase.ped.map_scan`.
    suspected
        Whether a phase is known to be missing, by the spots that the candidates leave over: then the whole scan is matched again anyway.

    Returns
    -------
    The `Outsiders` of the scan.

    Notes
    -----
    An outsider that is not there wins a pattern by error, with a probability p of at most 0.01. It is called one where it wins so many of
    n decided patterns that a binomial of p and n has as many in one of a hundred scans.
    """
    shape = maps["phase_id"].shape
    every, numbers = [*banks, *others], range(len(banks), len(banks) + len(others))
    tried = np.flatnonzero(maps["decided"])
    if not others or not len(tried):
        return Outsiders({}, np.zeros(shape, bool))
    if not suspected:
        tried = tried[np.unique(np.linspace(0, len(tried) - 1, OPTIONS.tried_patterns).astype(int))]
        alone = replace(calibration, centre_px=np.broadcast_to(calibration.centre_px, (*shape, 2)).reshape(-1, 2)[tried][None])
        short = {name: value for name, value in options.items() if name not in ("work", "progress", "neighbours")}
        some, _, _ = map_scan(patterns_at(patterns, tried)[None], alone, every, thresholds, neighbours=False, **short)
        if not any(_wins(some["decided"], some["phase_id"], k) for k in numbers):
            return Outsiders({}, np.zeros(shape, bool))
    whole, _, _ = map_scan(patterns, calibration, every, thresholds, **options)
    better = maps["decided"] & ((whole["phase_id"] != maps["phase_id"]) | ~whole["decided"])
    share = {
        every[k].crystal.name: float((whole["phase_id"] == k).mean()) for k in numbers if _wins(whole["decided"], whole["phase_id"], k)
    }
    return Outsiders(share, better & bool(share))


def _wins(decided: np.ndarray, phase_id: np.ndarray, k: int) -> bool:
    """Whether phase k has more of the ``decided`` patterns than it would have by errors alone."""
    from scipy import stats

    return bool(stats.binom.sf((phase_id[decided] == k).sum() - 1, decided.sum(), OPTIONS.usual_share) < OPTIONS.chance)
