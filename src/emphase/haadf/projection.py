"""Atomic columns of a crystal along a zone axis, with their primitive plane lattice and HAADF brightness.

Atoms whose projections coincide within 0.03 nm are one column, at their mean. Its brightness is the sum of occupancy times Z^1.7
(Pennycook & Jesson, Ultramicroscopy 37 (1991) 14). The basis is reduced to the two shortest translations, with the centring that the
projection has.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product

import numpy as np

from ..crystals import Crystal
from ..errors import EmphaseError


@dataclass(frozen=True)
class ProjectedColumns:
    """Atomic columns of a crystal seen along a zone axis.

    ``basis_nm`` (2, 2) holds the two shortest translations of the projection as rows; ``sites``
    (n, 2) are fractional in it; ``brightness`` (n,) is the HAADF signal of a column for one unit of
    length, ∝ Σ occupancy · Z^1.7, the brightest being 1; ``elements`` the element that gives most of it.
    """

    name: str
    zone_axis: tuple[int, int, int]
    basis_nm: np.ndarray
    sites: np.ndarray
    brightness: np.ndarray
    elements: tuple[str, ...]

    def beside_brightest(self, reach_nm: float, faintest: float) -> tuple[np.ndarray, np.ndarray]:
        """Places (m, 2), fractional, and brightness (m,) of columns within ``reach_nm`` of a column 0, itself first."""
        cells = np.array([(0, 0), *(c for c in product(range(-1, 2), repeat=2) if c != (0, 0))])
        places = (self.sites[:, None] + cells).reshape(-1, 2)
        brightness = np.repeat(self.brightness, len(cells))
        near = (np.linalg.norm(places @ self.basis_nm, axis=1) < reach_nm) & (brightness >= faintest)
        return places[near], brightness[near]

    def frequencies(self, max_invnm: float = 10.0, probe_nm: float = 0.05) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Spatial frequencies of the image: indices (n, 2), 1/nm (n, 2), complex amplitudes (n,), strongest first."""
        dual = np.linalg.inv(self.basis_nm).T
        reach = np.ceil(max_invnm * np.linalg.norm(self.basis_nm, axis=1)).astype(int)
        index = np.array([i for i in product(*(range(-n, n + 1) for n in reach)) if i > (0, 0)])
        vector = index @ dual
        keep = np.linalg.norm(vector, axis=1) <= max_invnm
        index, vector = index[keep], vector[keep]
        amplitude = np.exp(-2j * np.pi * index @ self.sites.T) @ self.brightness
        amplitude = amplitude * np.exp(-2 * (np.pi * probe_nm) ** 2 * np.sum(vector**2, axis=1))
        order = np.argsort(-np.abs(amplitude), kind="stable")
        order = order[np.abs(amplitude[order]) > 0.02 * np.abs(amplitude).max()]
        return index[order], vector[order], amplitude[order]


def _atomic_number(element: str) -> int:
    """Z of an element."""
    from ase.data import atomic_numbers

    return atomic_numbers[element]


def _shortest_basis(vectors: np.ndarray) -> np.ndarray:
    """The two shortest independent vectors of a plane lattice, given enough of its vectors."""
    length = np.linalg.norm(vectors, axis=1)
    vectors = vectors[np.lexsort((-vectors[:, 0], np.round(length, 6)))]
    vectors = vectors[np.linalg.norm(vectors, axis=1) > 1e-3]
    first = vectors[0]
    cross = np.abs(vectors[:, 0] * first[1] - vectors[:, 1] * first[0])
    second = vectors[np.argmax(cross > 1e-3 * np.dot(first, first))]
    return np.array([first, second if second @ first <= 1e-9 else -second])


def _merged(points: np.ndarray, basis: np.ndarray, tolerance: float = 0.03) -> list[list[int]]:
    """Groups of points (fractional in ``basis``) that coincide modulo the lattice, within ``tolerance`` nm."""
    groups: list[list[int]] = []
    for k, point in enumerate(points):
        for group in groups:
            apart = point - points[group[0]]
            if np.linalg.norm((apart - np.round(apart)) @ basis) < tolerance:
                group.append(k)
                break
        else:
            groups.append([k])
    return groups


def _middle(points: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Mean (2,) of the points (n, 2) of one column, fractional, by their weights (n,): atoms of a column may zigzag about it."""
    if not weights.any():  # of sites that no atom occupies
        return points[0]
    apart = points - points[0]
    return points[0] + weights @ (apart - np.round(apart)) / weights.sum()


def project_columns(crystal: Crystal, zone_axis: tuple[int, int, int]) -> ProjectedColumns:
    """Atomic columns of a crystal along a zone axis, with their primitive plane lattice.

    Parameters
    ----------
    crystal
        The structure.
    zone_axis
        [uvw] of the direct lattice.

    Returns
    -------
    ProjectedColumns

    Raises
    ------
    EmphaseError
        For a zone axis of zeros.
    """
    uvw = np.asarray(zone_axis, dtype=int)
    if not uvw.any():
        raise EmphaseError("zone_axis: got [0, 0, 0], expected a direction like [1, 0, 0]")
    axis = uvw @ crystal.lattice / np.linalg.norm(uvw @ crystal.lattice)
    first = crystal.lattice[np.argmin(np.abs(crystal.lattice @ axis) / np.linalg.norm(crystal.lattice, axis=1))]
    first = first - (first @ axis) * axis
    first /= np.linalg.norm(first)
    plane = np.array([np.cross(axis, first), first]).T / 10  # Å to nm, as (y, x)
    steps = np.array(list(product(range(-3, 4), repeat=3)))
    basis = _shortest_basis(steps @ crystal.lattice @ plane)
    weight = crystal.occupancies * np.array([_atomic_number(e) ** 1.7 for e in crystal.elements])
    points = crystal.positions @ crystal.lattice @ plane @ np.linalg.inv(basis)
    groups = _merged(points, basis)
    basis = _with_centring(points[[g[0] for g in groups]], np.array([weight[g].sum() for g in groups]), basis)
    points = crystal.positions @ crystal.lattice @ plane @ np.linalg.inv(basis)
    groups = _merged(points, basis)
    bright = np.array([weight[g].sum() for g in groups])
    main = tuple(crystal.elements[max(g, key=lambda k: weight[k])] for g in groups)
    sites = np.array([_middle(points[g], weight[g]) for g in groups])
    order = np.argsort(-bright, kind="stable")
    sites = sites[order] - sites[order[0]]
    sites = sites - np.floor(sites + 1e-6)
    u, v, w = (int(i) for i in uvw)
    return ProjectedColumns(crystal.name, (u, v, w), basis, sites, bright[order] / bright.max(), tuple(main[k] for k in order))


def _with_centring(sites: np.ndarray, weights: np.ndarray, basis: np.ndarray) -> np.ndarray:
    """The primitive basis, where translations between like columns map the whole projection on itself."""
    found = [np.zeros(2)]
    for site, weight in zip(sites[1:], weights[1:], strict=True):
        shift = site - sites[0]
        if abs(weight - weights[0]) > 1e-3 * weights[0]:
            continue
        apart = (sites + shift)[:, None] - sites[None]
        apart = np.linalg.norm((apart - np.round(apart)) @ basis, axis=2) < 0.03
        if np.all(np.any(apart & (np.abs(weights[:, None] - weights[None]) < 1e-3 * weights.max()), axis=1)):
            found.append(shift)
    steps = np.array(list(product(range(-2, 3), repeat=2)))
    return _shortest_basis(np.concatenate([(steps + f) @ basis for f in found]))
