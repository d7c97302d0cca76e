"""Where all columns of an image stand against the lattice laid on it, from the mean cell and the whole projected structure.

A column that stands nearer to its neighbour than the blur cannot be located alone: the two halves of a dumbbell merge, and a peak fitted to
one of them settles between both, in every cell alike, so that the scatter of cells does not show it. Here all columns of the mean cell
are fitted together. Its Fourier coefficients are those of the projected structure, with heights as Z^1.7, times one blur, a Gaussian core
with a halo, and the phase of one offset:

    c(g) = T(g) exp(-2πi g·d) Σ_k b_k exp(-2πi g·s_k),    T(g) = A exp(-2π² σ² g²) + B exp(-2π² (h σ)² g²).

The heights A and B are linear and eliminated (variable projection; Golub & Pereyra, SIAM J. Numer. Anal. 10 (1973) 413). Offset d and width
σ are searched over the whole cell, with the structure as it is and turned by 180°, which amplitudes alone do not tell apart. Minima
that put columns elsewhere and fit as well are said.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

from ..errors import EmphaseError
from .image_lattice import ImageLattice, Registration, _sites_in
from .projection import ProjectedColumns


@dataclass(frozen=True)
class RegistrationOptions:
    """Tuning of `measure_registration`."""

    finest_nm: float = 0.11  # period of the frequencies used: a blur of 0.08 nm (FWHM) leaves 2 % of what is finer
    sample_nm: float = 0.02  # between samples of a cell: a third of the finest period at most
    most_samples: int = 400_000  # of all cells: more only sharpen an error that is below 1 pm
    least_cells: int = 4  # whole ones in the image, for their scatter to be known
    least_contrast: float = 0.5  # of the frequencies of a cell against those of the better half: vacuum says nothing
    background: float = 1.2  # spacings, of the Gaussian mean that is taken off: thickness and haze
    widths_nm: tuple[float, float, int] = (0.025, 0.13, 10)  # standard deviations of the blur that are searched, and how many
    halo: float = 2.5  # widths of the core, of the halo of the probe
    grid: int = 48  # offsets a side that are searched: 10 pm in a cell of 0.5 nm, a tenth of the finest period
    minima: int = 4  # of each sense that are refined
    same_nm: float = 0.02  # columns that move less are in the same place: two origins of a symmetric structure
    clear_chi2: float = 12.0  # by which another place of the columns has to fit worse: 3.5 standard errors
    least_explained: float = 0.5  # of the contrast of the mean cell, to move a lattice by the structure
    clear_errors: float = 4.0  # standard errors, of an offset that a lattice is moved by
    faintest: float = 0.1  # of the brightest column, of those whose places are compared


OPTIONS = RegistrationOptions()


class _MeanCell(NamedTuple):
    """Fourier coefficients (g,) of the mean cell, their indices (g, 2), frequencies (g,) in 1/nm, and the variance of a component."""

    seen: np.ndarray
    indices: np.ndarray
    frequency: np.ndarray
    variance: float


class _Place(NamedTuple):
    """One minimum: the parameters (offset, ln σ), its sense, the sum of squares left, and the residuals' Jacobian (2 g, 3)."""

    found: np.ndarray
    sense: int
    misfit: float
    jacobian: np.ndarray


def measure_registration(image: np.ndarray, lattice: ImageLattice) -> Registration:
    """Where all columns of an image stand against the lattice laid on it, fitted together to the mean cell.

    Parameters
    ----------
    image
        (y, x), counts.
    lattice
        Laid on the image: whether its origin is the right one is what is measured.

    Returns
    -------
    Registration

    Raises
    ------
    EmphaseError
        Where fewer than four whole cells stand in the image, or nothing of the structure is in them.

    Notes
    -----
    Errors come from the scatter of cells, or from what the structure leaves unexplained where that is more. Places whose misfit is within
    ``clear_chi2`` of the least one fit; that which is nearest to the lattice is reported, and those that put columns elsewhere are rivals.
    """
    columns, cell = lattice.columns, _mean_cell(image, lattice)
    places = [_refined_place(cell, columns, sense, start) for sense in (1, -1) for start in _minima(cell, columns, sense)]
    if not places:
        raise EmphaseError("no place of the columns agrees with the mean cell, expected the structure of the lattice")
    least = min(p.misfit for p in places)
    variance = max(cell.variance, least / max(2 * len(cell.seen) - 5, 1))
    fitting = [p for p in places if p.misfit - least < OPTIONS.clear_chi2 * variance]
    shown = min(fitting, key=lambda p: (p.sense < 0, float(np.linalg.norm(p.found[:2] @ columns.basis_nm))))
    moves = [far for far in (_farthest_nm(columns, shown, p) for p in fitting) if far >= OPTIONS.same_nm]
    covariance = variance * np.linalg.pinv(shown.jacobian.T @ shown.jacobian)[:2, :2]
    error = np.sqrt(0.5 * np.trace(columns.basis_nm.T @ covariance @ columns.basis_nm))
    return Registration(
        offset=shown.found[:2],
        turned=shown.sense < 0,
        distance_nm=_distance_nm(columns, shown),
        error_nm=float(error),
        fwhm_nm=float(2 * np.sqrt(2 * np.log(2)) * np.exp(shown.found[2])),
        explained=1 - shown.misfit / float(np.sum(np.abs(cell.seen) ** 2)),
        rival_nm=max(moves, default=None),
    )


def registered(image: np.ndarray, lattice: ImageLattice) -> ImageLattice:
    """The lattice with its `Registration`, moved to where the columns of its image stand if they clearly stand elsewhere.

    Parameters
    ----------
    image
        (y, x), counts.
    lattice
        Laid on the image, perhaps from another origin.

    Returns
    -------
    ImageLattice
        Where columns are off by less than ``clear_errors`` standard errors it stays: places that were fitted column by column do not
        depend on all of the structure. What they are off counts in ``residual_px``. Without a whole cell in the image it is returned as
        it came.
    """
    try:
        found = measure_registration(image, lattice)
    except EmphaseError:
        return lattice
    elsewhere = found.turned or found.distance_nm > OPTIONS.clear_errors * found.error_nm
    if elsewhere and found.explained > OPTIONS.least_explained:
        moved = lattice.moved(found.offset, found.turned)
        with contextlib.suppress(EmphaseError):  # a row of cells left the image: it stays where it was, and says how far it is off
            lattice, found = moved, measure_registration(image, moved)
    off_px = found.distance_nm / lattice.scan()["pixel_size_nm"] / np.sqrt(2)
    return replace(lattice, residual_px=float(np.hypot(lattice.residual_px, off_px)), registration=found)


# -- the mean cell ------------------------------------------------------------------------


def _mean_cell(image: np.ndarray, lattice: ImageLattice) -> _MeanCell:
    """Fourier coefficients of the mean of the cells that hold crystal, sampled along the bent lattice."""
    from scipy.ndimage import gaussian_filter, map_coordinates

    basis = lattice.columns.basis_nm
    spacing = float(np.linalg.norm(lattice.matrix, axis=1).min())
    flat = np.asarray(image, dtype=float)
    flat = flat - gaussian_filter(flat, OPTIONS.background * spacing)
    cells, _ = _sites_in(image.shape, lattice.to_px, lattice.matrix, lattice.to_px(np.zeros((1, 2)))[0], 0.0)
    steps = [int(np.ceil(length / OPTIONS.sample_nm)) for length in np.linalg.norm(basis, axis=1)]
    within = np.stack(np.meshgrid(*(np.arange(n) / n for n in steps), indexing="ij"), axis=-1).reshape(-1, 2)
    cells = cells[:: max(1, -(-len(cells) * len(within) // OPTIONS.most_samples))]
    px = lattice.to_px((cells[:, None] + within).reshape(-1, 2))
    whole = np.all((px >= 0) & (px <= np.array(image.shape) - 1), axis=1).reshape(len(cells), -1).all(axis=1)
    if whole.sum() < OPTIONS.least_cells:
        raise EmphaseError(f"{int(whole.sum())} whole cells stand in the image, expected {OPTIONS.least_cells} or more for their mean")
    sampled = map_coordinates(flat, px.T, order=1, mode="nearest").reshape(len(cells), -1)[whole]
    index = _frequencies(basis)
    each = sampled @ np.exp(-2j * np.pi * within @ index.T) / len(within)
    contrast = np.linalg.norm(each, axis=1)
    each = each[contrast >= OPTIONS.least_contrast * np.median(contrast[contrast >= np.median(contrast)])]
    variance = float(np.median(np.var(each, axis=0))) / 2 / len(each)
    return _MeanCell(each.mean(axis=0), index, np.linalg.norm(index @ np.linalg.inv(basis).T, axis=1), variance)


def _frequencies(basis_nm: np.ndarray) -> np.ndarray:
    """Indices (g, 2) of all frequencies of a plane lattice up to the finest used, one of each pair ±g."""
    reach = np.ceil(np.linalg.norm(basis_nm, axis=1) / OPTIONS.finest_nm).astype(int)
    index = np.stack(np.meshgrid(*(np.arange(-n, n + 1) for n in reach), indexing="ij"), axis=-1).reshape(-1, 2)
    half = (index[:, 0] > 0) | ((index[:, 0] == 0) & (index[:, 1] > 0))
    return index[half & (np.linalg.norm(index @ np.linalg.inv(basis_nm).T, axis=1) <= 1 / OPTIONS.finest_nm)]


# -- all columns together -------------------------------------------------------------------


def _structure(cell: _MeanCell, columns: ProjectedColumns, sense: int) -> np.ndarray:
    """Fourier coefficients (g,) of the projected structure without blur, turned by 180° where ``sense`` is −1."""
    return np.exp(-2j * np.pi * sense * (cell.indices @ columns.sites.T)) @ columns.brightness


def _blurs(cell: _MeanCell, sigma_nm: float) -> np.ndarray:
    """What a Gaussian core of this width and its halo leave of every frequency (2, g)."""
    widths = sigma_nm * np.array([1.0, OPTIONS.halo])
    return np.exp(-2 * (np.pi * widths[:, None] * cell.frequency) ** 2)


def _minima(cell: _MeanCell, columns: ProjectedColumns, sense: int) -> np.ndarray:
    """Offsets and logarithms of widths (n, 3) about which the cores alone fit better than all around, best first."""
    from scipy.ndimage import minimum_filter

    axis = np.arange(OPTIONS.grid) / OPTIONS.grid
    offsets = np.stack(np.meshgrid(axis, axis, indexing="ij"), axis=-1)
    waves = np.exp(2j * np.pi * offsets @ cell.indices.T)
    structure = _structure(cell, columns, sense)
    low, high, count = OPTIONS.widths_nm
    widths = np.geomspace(low, high, count)
    left = []
    for sigma in widths:
        model = structure * _blurs(cell, sigma)[0]
        agreement = np.maximum(np.real(waves @ (cell.seen * np.conj(model))), 0.0)  # columns are bright
        left.append(-(agreement**2) / np.sum(np.abs(model) ** 2))
    misfit, width = np.min(left, axis=0), widths[np.argmin(left, axis=0)]
    at = np.argwhere((misfit == minimum_filter(misfit, 5, mode="wrap")) & (misfit < 0))
    at = at[np.argsort(misfit[tuple(at.T)], kind="stable")][: OPTIONS.minima]
    return np.column_stack([offsets[tuple(at.T)], np.log(width[tuple(at.T)])])


def _refined_place(cell: _MeanCell, columns: ProjectedColumns, sense: int, start: np.ndarray) -> _Place:
    """Least squares over offset and width from a start (3,), the heights of core and halo eliminated."""
    from scipy.optimize import least_squares, nnls

    structure = _structure(cell, columns, sense)
    seen = np.concatenate([cell.seen.real, cell.seen.imag])
    low, high, _ = OPTIONS.widths_nm

    def residuals(at: np.ndarray) -> np.ndarray:
        """What the best heights leave of the mean cell, real parts then imaginary ones (2 g,)."""
        moved = structure * np.exp(-2j * np.pi * cell.indices @ at[:2])
        parts = _blurs(cell, float(np.exp(at[2]))) * moved
        design = np.concatenate([parts.real, parts.imag], axis=1).T
        return seen - design @ nnls(design, seen)[0]

    bounds = ([-np.inf, -np.inf, np.log(0.5 * low)], [np.inf, np.inf, np.log(1.5 * high)])
    fit = least_squares(residuals, start, x_scale=(0.02, 0.02, 0.1), bounds=bounds)
    found = fit.x.copy()
    found[:2] -= np.rint(found[:2])
    return _Place(found, sense, float(2 * fit.cost), fit.jac)


# -- how far columns are from others -----------------------------------------------------------


def _shortest_nm(apart: np.ndarray, basis_nm: np.ndarray) -> np.ndarray:
    """Lengths (...) in nm of differences (..., 2) of lattice coordinates, modulo the lattice."""
    near = np.stack(np.meshgrid(*2 * [np.arange(-1, 2)], indexing="ij"), axis=-1).reshape(-1, 2)
    apart = apart - np.round(apart)
    return np.linalg.norm((apart[..., None, :] + near) @ basis_nm, axis=-1).min(axis=-1)


def _farthest_nm(columns: ProjectedColumns, one: _Place, two: _Place) -> float:
    """How far the farthest visible column of one place is from the nearest column of its kind in another place (nm)."""
    clear = np.flatnonzero(columns.brightness >= OPTIONS.faintest)
    sites, level = columns.sites[clear], columns.brightness[clear]
    apart = (one.sense * sites + one.found[:2])[:, None] - (two.sense * sites + two.found[:2])
    alike = np.abs(level[:, None] - level) < 1e-3
    return float(np.where(alike, _shortest_nm(apart, columns.basis_nm), np.inf).min(axis=1).max())


def _distance_nm(columns: ProjectedColumns, place: _Place) -> float:
    """Distance (nm, rms) of the visible columns of a place from where the lattice has the same columns."""
    clear = columns.brightness >= OPTIONS.faintest
    apart = (place.sense - 1) * columns.sites[clear] + place.found[:2]
    return float(np.sqrt(np.mean(_shortest_nm(apart, columns.basis_nm) ** 2)))
