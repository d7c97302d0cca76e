"""Grains, their boundaries and shared lattices, from the phase and orientation of every pattern.

A grain is a connected set of patterns of one phase, in which neighbours are turned by less than a threshold against each other (the least
angle over the phase's proper rotations). Across a boundary of two phases the lattice goes on where the orientation of one, taken through a
known relation (`emphase.ped.families.orientation_relations`), is that of the other.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from itertools import product

import numpy as np

from ..kernels import kernel
from .families import lattice_families, orientation_relations
from .search import _nearest_operator
from .templates import TemplateBank


@kernel
def _misorientations(first, second, operators):
    """Least angles (n,) in radians between orientations (n, 3, 3) under proper rotations (o, 3, 3)."""
    angles = np.empty(len(first))
    for i in range(len(first)):
        angles[i] = _nearest_operator(second[i], first[i], operators)[1]
    return angles


def misorientations_deg(first: np.ndarray, second: np.ndarray, operators: np.ndarray) -> np.ndarray:
    """Misorientation angles of pairs of crystals of one phase, from their orientations.

    Parameters
    ----------
    first, second
        Orientations (n, 3, 3), sample to crystal.
    operators
        Proper rotations (o, 3, 3) of the phase's Laue group.

    Returns
    -------
    Least angles (n,) in degrees.
    """
    first, second = (np.ascontiguousarray(a, dtype=float).reshape(-1, 3, 3) for a in (first, second))
    return np.degrees(_misorientations(first, second, operators))


def neighbour_pairs(ny: int, nx: int) -> tuple[np.ndarray, np.ndarray]:
    """Indices (n,), (n,) in the flattened scan of all pairs of patterns that share an edge."""
    number = np.arange(ny * nx).reshape(ny, nx)
    return (
        np.concatenate([number[:, :-1].ravel(), number[:-1].ravel()]),
        np.concatenate([number[:, 1:].ravel(), number[1:].ravel()]),
    )


def eight_neighbours(values: np.ndarray) -> np.ndarray:
    """Values (8, ny, nx) of the neighbours of every pattern of a map (ny, nx) of numbers, -1 beyond its edge."""
    ny, nx = values.shape
    padded = np.pad(values, 1, constant_values=-1)
    steps = [step for step in product((0, 1, 2), repeat=2) if step != (1, 1)]
    return np.stack([padded[y : y + ny, x : x + nx] for y, x in steps])


def segment_grains(phase_id: np.ndarray, rotation: np.ndarray, operators: list[np.ndarray], threshold_deg: float = 5.0) -> np.ndarray:
    """Grains from phases and orientations: neighbours of one phase within a misorientation belong to one grain.

    Parameters
    ----------
    phase_id
        Phase (ny, nx) of every pattern, -1 where not indexed.
    rotation
        Its orientation (ny, nx, 3, 3), sample to crystal.
    operators
        The proper rotations (o, 3, 3) of each phase's Laue group.
    threshold_deg
        Neighbours that share an edge and are turned by less are joined.

    Returns
    -------
    Grain numbers (ny, nx), -1 where not indexed.
    """
    from scipy.sparse import coo_matrix
    from scipy.sparse.csgraph import connected_components

    phase, matrices = phase_id.ravel(), rotation.reshape(-1, 3, 3)
    a, b = neighbour_pairs(*phase_id.shape)
    joined = np.zeros(len(a), bool)
    for k, of_phase in enumerate(operators):
        here = (phase[a] == k) & (phase[b] == k)
        joined[here] = misorientations_deg(matrices[a[here]], matrices[b[here]], of_phase) < threshold_deg
    graph = coo_matrix((np.ones(joined.sum()), (a[joined], b[joined])), shape=(len(phase), len(phase)))
    label = connected_components(graph, directed=False)[1]
    label[phase < 0] = -1
    _, label[phase >= 0] = np.unique(label[phase >= 0], return_inverse=True)
    return label.reshape(phase_id.shape)


def _lattice_angles(phase: np.ndarray, matrices: np.ndarray, a: np.ndarray, b: np.ndarray, banks: list[TemplateBank]) -> np.ndarray:
    """For pairs of patterns a, b (n,) of different phases the angle (n,) in degrees to a common lattice; inf where they have none."""
    angles = np.full(len(a), np.inf)
    for p, q in itertools.permutations(range(len(banks)), 2):
        here = (phase[a] == p) & (phase[b] == q)
        for relation in orientation_relations(banks[p].crystal, banks[q].crystal) if here.any() else ():
            turned = np.einsum("ij,njk->nik", relation, matrices[a[here]])
            angles[here] = np.minimum(angles[here], misorientations_deg(turned, matrices[b[here]], banks[q].operators))
    return angles


def boundary_relations(
    phase_id: np.ndarray, rotation: np.ndarray, banks: list[TemplateBank], families: Iterable[Iterable[str]] = ()
) -> tuple[np.ndarray, list[tuple[str, str]]]:
    """How far neighbours of different phases are from a common lattice, from their orientations.

    Parameters
    ----------
    phase_id
        Phase (ny, nx) of every pattern, -1 where not indexed.
    rotation
        Its orientation (ny, nx, 3, 3), sample to crystal.
    banks
        Of the phases.
    families
        Names of the phases that grow on one another's lattice, family by family; phases outside of them are compared only where none
        of these is among the banks.

    Returns
    -------
    Angles (n,) in degrees of all pairs of neighbours whose phases have an orientation relation, and the names of both phases of each.
    """
    names = [b.crystal.name for b in banks]
    related = [k for members in lattice_families(names, families) for k in members]
    phase = phase_id.ravel()
    a, b = neighbour_pairs(*phase_id.shape)
    between = (phase[a] != phase[b]) & np.isin(phase[a], related) & np.isin(phase[b], related)
    a, b = a[between], b[between]
    angles = _lattice_angles(phase, rotation.reshape(-1, 3, 3), a, b, banks)
    known = np.isfinite(angles)
    return angles[known], [(names[phase[i]], names[phase[j]]) for i, j in zip(a[known], b[known], strict=True)]


def boundaries(
    phase_id: np.ndarray, rotation: np.ndarray, grain_id: np.ndarray, banks: list[TemplateBank], threshold_deg: float = 5.0
) -> tuple[np.ndarray, np.ndarray]:
    """The edges between patterns of different grains, from a map of grains.

    Parameters
    ----------
    phase_id
        Phase (ny, nx) of every pattern, -1 where not indexed.
    rotation
        Its orientation (ny, nx, 3, 3), sample to crystal.
    grain_id
        Its grain (ny, nx), of `segment_grains`.
    banks
        Of the phases.
    threshold_deg
        Two phases whose orientations are nearer than this to a common lattice share it.

    Returns
    -------
    ends
        Both ends (n, 2, 2) of every edge, (y, x) in patterns.
    topotactic
        Whether only the phase changes there (n,), and the lattice goes on.
    """
    nx = phase_id.shape[1]
    a, b = neighbour_pairs(*phase_id.shape)
    grain = grain_id.ravel()
    a, b = a[grain[a] != grain[b]], b[grain[a] != grain[b]]
    topotactic = _lattice_angles(phase_id.ravel(), rotation.reshape(-1, 3, 3), a, b, banks) < threshold_deg
    first, second = (np.stack([i // nx, i % nx], axis=-1).astype(float) for i in (a, b))
    middle, across = (first + second) / 2, (second - first)[:, ::-1] / 2
    return np.stack([middle - across, middle + across], axis=1), topotactic
