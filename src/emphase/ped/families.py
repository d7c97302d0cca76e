"""Which phases grow on one lattice, and how their orientations are related.

Layered, spinel-type and rocksalt-type crystals share a close-packed sublattice, so that a scan holds few lattices, and a pattern shows
one or two phases on those found about it. The orientation relations are the topotactic ones: cube on cube between cubic phases, and
[001]hex || [111]cubic with [100]hex || [1-10]cubic between a trigonal cell (hexagonal axes) and a cubic one, as for layered LiMO2 and the
spinel and rocksalt phases that it turns into at surfaces (Lin et al., Nat. Commun. 5 (2014) 3529).

Each family of phases is described by one parent, its most symmetric member; the orientation of any member, taken to the parent's frame,
names the lattice. This is the first part of the prior of `emphase.ped.index.index_scan`. It knows lattices, not phases: it cannot turn a
pattern from one phase of a family to another.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np

from ..crystals import Crystal
from ..errors import EmphaseError
from .search import _nearest_operator
from .templates import TemplateBank

_SAME_LATTICE = math.radians(3.0)  # orientations nearer than this are one lattice: more than a fit errs, less than most grain boundaries
_SAME_VARIANT = 1e-3  # radians; rotations nearer than this are one and the same


@functools.lru_cache(maxsize=256)
def orientation_relations(parent: Crystal, child: Crystal) -> np.ndarray:
    """Rotations that take a crystal's orientation to those of another phase on the same lattice, from the space groups.

    Parameters
    ----------
    parent, child
        The phase whose orientation is known, and the one that shares its lattice.

    Returns
    -------
    Matrices (v, 3, 3), one for each variant: an orientation r (sample to crystal) of the parent becomes ``variant @ r``. No variant
    (v = 0) for pairs without a relation.

    Notes
    -----
    Cubic on cubic is cube on cube. A trigonal cell (hexagonal axes) and a cubic one share the
    oxygen lattice: [001]hex || [111]cubic, [100]hex || [1-10]cubic: one cubic variant for a
    layered crystal, four layered ones for a cubic.
    """
    e1, e3 = np.array([1, -1, 0]) / math.sqrt(2), np.array([1, 1, 1]) / math.sqrt(3)
    to_cubic = np.stack([e1, np.cross(e3, e1), e3], axis=1)
    kinds = ["cubic" if c.space_group >= 195 else "trigonal" if 143 <= c.space_group <= 167 else "other" for c in (parent, child)]
    if kinds == ["cubic", "cubic"]:
        return np.eye(3)[None]
    if kinds == ["trigonal", "cubic"]:
        return to_cubic[None]
    if kinds != ["cubic", "trigonal"]:
        return np.zeros((0, 3, 3))
    variants: list[np.ndarray] = []
    for operator in parent.laue_rotations:
        variant = to_cubic.T @ operator
        if all(_nearest_operator(variant, other, child.laue_rotations)[1] > _SAME_VARIANT for other in variants):
            variants.append(variant)
    return np.array(variants)


class _Families(NamedTuple):
    """Phases that share a lattice, as the kernels take them.

    ``family`` (p,) of each phase; a family's lattice is that of its parent, the most symmetric
    member: ``to_parent`` (p, 3, 3), ``operators`` (p, o, 3, 3) of the parent and ``phase_operators`` (p, o, 3, 3)
    of the phase itself, and back ``from_parent`` (p, v, 3, 3), of which the first ``n_variants`` (p,) count.
    """

    family: np.ndarray
    to_parent: np.ndarray
    operators: np.ndarray
    phase_operators: np.ndarray
    from_parent: np.ndarray
    n_variants: np.ndarray


def lattice_families(names: list[str], families: Iterable[Iterable[str]] = ()) -> list[list[int]]:
    """The phases of each family that is among ``names``, by number; one family of all phases where none of them is.

    Parameters
    ----------
    names
        Of all candidate phases.
    families
        Names of the phases that grow on one another's lattice, family by family; those that are no candidates are left out.

    Returns
    -------
    Indices into ``names``, family by family.

    Raises
    ------
    EmphaseError
        For names that do not stand in families, and a name that stands in two.

    Examples
    --------
    >>> lattice_families(["layered", "carbonate", "rocksalt"], [("layered", "spinel", "rocksalt")])
    [[0, 2]]
    """
    families = [families] if isinstance(families, str) else list(families)
    if any(isinstance(family, str) for family in families):
        raise EmphaseError(f"families: got {families[0]!r}, expected families of names, as [('layered', 'rocksalt')]")
    listed = [name for family in map(set, families) for name in family]
    if len(set(listed)) < len(listed):
        twice = next(name for name in listed if listed.count(name) > 1)
        raise EmphaseError(f"families: {twice!r} stands in two of them, expected a phase in one")
    found = [[k for k, name in enumerate(names) if name in family] for family in map(tuple, families)]
    return [members for members in found if members] or [list(range(len(names)))]


def _families(banks: list[TemplateBank], families: Iterable[Iterable[str]] = ()) -> _Families:
    """The phases named in ``families`` are on one lattice each, and all related phases where none is named; others stand alone."""
    pools = lattice_families([b.crystal.name for b in banks], families)
    family, parent = list(range(len(banks))), list(range(len(banks)))
    for pool in pools:
        for k in pool:
            related = [j for j in pool if j == k or len(orientation_relations(banks[k].crystal, banks[j].crystal))]
            parent[k] = max(related, key=lambda j: (len(banks[j].operators), -j))
            family[k] = parent[k]
    to_parent = [np.eye(3) if p == k else orientation_relations(banks[k].crystal, banks[p].crystal)[0] for k, p in enumerate(parent)]
    back = [np.eye(3)[None] if p == k else orientation_relations(banks[p].crystal, banks[k].crystal) for k, p in enumerate(parent)]
    most = max(len(b.operators) for b in banks)
    operators = np.array([np.resize(b.operators, (most, 3, 3)) for b in banks])  # a shorter set is repeated, which does no harm
    variants = np.zeros((len(banks), max(len(b) for b in back), 3, 3))
    for k, some in enumerate(back):
        variants[k, : len(some)] = some
    return _Families(np.array(family), np.array(to_parent), operators[parent], operators, variants, np.array([len(b) for b in back]))
