"""The edge of a crystal from occupied and empty places of its lattice.

A base line is the half-along contour of the blurred occupancy, smoothed over 2.5 nm; the edge is a height over it, a logistic boundary
between occupied and empty places, linear between knots with a penalty on bends (`profiles`). An edge drawn by hand is a cubic spline.
Positions on the surface are given as the distance along the base line and the depth below the edge along its normal.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from ..errors import EmphaseError
from .columns import Columns, _connected
from .profiles import _edge_curve


@dataclass(frozen=True)
class ContourOptions:
    """Tuning of `surface_contour` and of an edge drawn by hand."""

    base_blur_nm: float = 2.5  # over which the surface's direction is taken; what is rougher is height over the base line
    occupancy_blur_nm: float = 0.8  # three spacings of columns: one that is missing makes no edge
    grid_nm: float = 0.1  # of the blurred occupancy
    point_nm: float = 0.02  # between points of the base line
    least_length_nm: float = 1.0  # of an edge
    least_places: int = 12  # with a column, and as many without, ...
    least_empty: float = 0.02  # ... which are such a share of all: an edge, not vacancies
    vacuum_within_nm: float = (
        3.0  # outside the edge, within which it gets dark where the surface is free: contamination ends, a grain does not
    )
    dark: float = 0.6  # of the counts in the crystal
    drawn_error: float = 0.25  # spacings, by which a hand is off
    least_contrast: float = 0.1  # between the occupied shares on the sides of a line drawn by hand


OPTIONS = ContourOptions()


@dataclass(frozen=True)
class SurfaceContour:
    """The edge of the crystal: a smooth base line, as curved as the surface is, and the edge's height over it.

    ``base_nm`` (m, 2) are points of the base line in the crystal plane, ``inwards`` (m, 2) its unit normals into the crystal, ``length_nm``
    (m,) the distance along it, ``open`` (m,) whether it faces vacuum there rather than another grain. ``knots_nm`` and ``edge_nm`` (k,)
    give the edge: it lies ``edge`` inside the base line at the distances ``knots``. ``error_nm`` is the standard error of its mean place.
    """

    base_nm: np.ndarray
    inwards: np.ndarray
    length_nm: np.ndarray
    open: np.ndarray
    knots_nm: np.ndarray
    edge_nm: np.ndarray
    error_nm: float

    def edge(self, s: np.ndarray) -> np.ndarray:
        """How far (nm) the edge lies inside the base line at distances ``s`` (n,) along it."""
        from scipy.interpolate import PchipInterpolator

        return PchipInterpolator(self.knots_nm, self.edge_nm)(np.clip(s, self.knots_nm[0], self.knots_nm[-1]))

    def places(self, nm: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Of points (n, 2): distance along the surface (nm), depth below the edge (nm), and whether a surface is seen there."""
        s, u = _beside(self.base_nm, self.inwards, self.length_nm, nm)
        seen = (s > self.knots_nm[0]) & (s < self.knots_nm[-1]) & (np.interp(s, self.length_nm, self.open.astype(float)) > 0.5)
        return s, u - self.edge(s), seen

    def depth(self, nm: np.ndarray) -> np.ndarray:
        """Depth (nm) of points (n, 2) below the edge, along the normal of the base line."""
        return self.places(nm)[1]

    def curve(self, depth_nm: float | np.ndarray = 0.0, step_nm: float = 0.05) -> np.ndarray:
        """Points (k, 2) in the crystal plane, ``depth_nm`` below the edge (a number or one for each of k points), from end to end."""
        s = np.arange(self.knots_nm[0], self.knots_nm[-1], step_nm)
        return self._between(self.base_nm, s) + (self.edge(s) + depth_nm)[:, None] * self._between(self.inwards, s)

    def _between(self, vectors: np.ndarray, s: np.ndarray) -> np.ndarray:
        """Vectors (m, 2) of the base line, interpolated to distances ``s`` (n,)."""
        return np.stack([np.interp(s, self.length_nm, vectors[:, k]) for k in (0, 1)], axis=1)

    def normals(self, s: np.ndarray) -> np.ndarray:
        """Unit normals (n, 2) into the crystal at distances ``s`` (n,) along the base line."""
        found = self._between(self.inwards, s)
        return found / np.linalg.norm(found, axis=1, keepdims=True)


def _beside(base: np.ndarray, inwards: np.ndarray, length: np.ndarray, nm: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Distance along a line of densely set points, and distance inwards from it, of points (n, 2); the line goes on straight."""
    from scipy.spatial import cKDTree

    _, nearest = cKDTree(base).query(nm)
    apart = nm - base[nearest]
    tangent = np.gradient(base, axis=0)
    tangent /= np.linalg.norm(tangent, axis=1, keepdims=True)
    return length[nearest] + np.sum(apart * tangent[nearest], axis=1), np.sum(apart * inwards[nearest], axis=1)


def _locally_straight(along: np.ndarray, line: np.ndarray, reach: float) -> np.ndarray:
    """A line (m, 2) smoothed by local straight fits with Gaussian weights over the distance along it: its ends are not drawn in."""
    apart = along[None, :] - along[:, None]
    weight = np.exp(-0.5 * (apart / reach) ** 2)
    s0, s1, s2 = weight.sum(axis=1), (weight * apart).sum(axis=1), (weight * apart**2).sum(axis=1)
    return ((s2[:, None] * (weight @ line)) - s1[:, None] * ((weight * apart) @ line)) / (s0 * s2 - s1**2)[:, None]


def _normals_and_length(line: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Unit normals (m, 2) of a line of densely set points (m, 2), all on one side, and the distance (m,) along it."""
    tangent = np.gradient(line, axis=0)
    tangent /= np.linalg.norm(tangent, axis=1, keepdims=True)
    along = np.append(0.0, np.cumsum(np.linalg.norm(np.diff(line, axis=0), axis=1)))
    return np.stack([tangent[:, 1], -tangent[:, 0]], axis=1), along


def _base_line(columns: Columns, present: np.ndarray, nm: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray] | None:
    """Points, inward normals and distances of the longest line where the blurred share of occupied places is one half."""
    from scipy.interpolate import CubicSpline
    from scipy.ndimage import gaussian_filter
    from skimage.measure import find_contours

    step = OPTIONS.grid_nm
    low = nm.min(axis=0) - step
    shape = np.ceil((nm.max(axis=0) - low) / step).astype(int) + 2
    full, mass = np.zeros(shape), np.zeros(shape)
    at = tuple(np.rint((nm - low) / step).astype(int).T)
    np.add.at(full, at, present.astype(float))
    np.add.at(mass, at, 1.0)
    full, mass = (gaussian_filter(v, OPTIONS.occupancy_blur_nm / step, mode="constant") for v in (full, mass))
    share = full / np.maximum(mass, 1e-12)
    lines = find_contours(share, 0.5, mask=mass > 0.35 * np.median(mass[at]))
    if not lines:
        return None
    line = max(lines, key=len) * step + low
    along = np.append(0.0, np.cumsum(np.linalg.norm(np.diff(line, axis=0), axis=1)))
    if along[-1] < OPTIONS.least_length_nm:
        return None
    coarse, fine = np.linspace(0.0, along[-1], max(30, int(along[-1] / OPTIONS.grid_nm))), np.arange(0.0, along[-1], OPTIONS.point_nm)
    line = _locally_straight(coarse, np.stack([np.interp(coarse, along, line[:, k]) for k in (0, 1)], axis=1), OPTIONS.base_blur_nm)
    line = CubicSpline(coarse, line)(fine)
    inwards, length = _normals_and_length(line)
    probe = np.rint((line + 0.3 * inwards - low) / step).astype(int), np.rint((line - 0.3 * inwards - low) / step).astype(int)
    inner, outer = (share[tuple(np.clip(p, 0, np.array(shape) - 1).T)].mean() for p in probe)
    inwards = inwards if inner > outer else -inwards
    return line, inwards, length


def surface_contour(columns: Columns, spacing_nm: float, visible: np.ndarray | None = None) -> SurfaceContour | None:
    """The curve that parts occupied from empty places of the lattice, or None where the image holds no vacuum.

    It lies half a column spacing outside the outermost columns on average.

    Parameters
    ----------
    columns
        From `measure_columns`.
    spacing_nm
        Mean distance of neighbouring columns.
    visible
        (n,), the places where a column can be seen at all; default: those of metal layers.
    """
    use = columns.is_metal if visible is None else visible
    vacuum = _connected(columns.index, ~columns.present & columns.is_metal) | (~columns.present & ~columns.is_metal)
    present, empty = columns.present & use, vacuum & ~columns.present & use
    if min(present.sum(), empty.sum()) < OPTIONS.least_places or empty.sum() < OPTIONS.least_empty * (present.sum() + empty.sum()):
        return None
    chosen = present | empty
    nm, occupied = columns.nm[chosen], present[chosen]
    even = (columns.is_metal & chosen)[chosen]  # lithium columns are visible in the crystal alone: they would pull the base line
    base = _base_line(columns, occupied[even], nm[even])
    if base is None:
        return None
    s, u = _beside(*base, nm)
    inside = (s > 0) & (s < base[2][-1])
    return SurfaceContour(*base, _faces_vacuum(columns, *base), *_edge_curve(s[inside], u[inside], occupied[inside], spacing_nm))


def drawn_points(surface_px: Any, shape: tuple[int, int]) -> np.ndarray:
    """The points of a surface drawn by hand, checked.

    Parameters
    ----------
    surface_px
        What was given for it.
    shape
        (ny, nx) of the image on which it was drawn.

    Returns
    -------
    (k, 2), (y, x) px.

    Raises
    ------
    EmphaseError
        Where these are not three points [y, x] or more, or one lies outside the image.
    """
    try:
        points = np.asarray(surface_px, dtype=float)
    except (TypeError, ValueError):
        points = np.empty(0)
    if points.ndim != 2 or points.shape[1] != 2 or len(points) < 3 or not np.isfinite(points).all():
        raise EmphaseError(f"surface_px: got {str(surface_px)[:60]}, expected three or more points [y, x] in px")
    if (points < -0.5).any() or (points > np.array(shape) - 0.5).any():
        raise EmphaseError(f"surface_px: a point lies outside the image of {shape[0]} x {shape[1]} px")
    return points


def drawn_contour(columns: Columns, points_nm: np.ndarray, spacing_nm: float) -> SurfaceContour:
    """The edge of the crystal as drawn by hand.

    Parameters
    ----------
    columns
        From `measure_columns`: the side with more occupied places is inside.
    points_nm
        (k, 2) in the crystal plane, one after the other along the edge.
    spacing_nm
        Mean distance of neighbouring columns; a hand is off by a quarter of it, all along.

    Returns
    -------
    SurfaceContour
        A cubic spline by chord length; all of it counts as facing vacuum.

    Raises
    ------
    EmphaseError
        For fewer than three points, a line that is too short or turns back on itself, and where both sides look alike.
    """
    from scipy.interpolate import CubicSpline

    points = np.asarray(points_nm, dtype=float)
    if points.ndim != 2 or points.shape[1:] != (2,) or len(points) < 3:
        raise EmphaseError(f"surface drawn by hand: got points of shape {points.shape}, expected three or more of two coordinates")
    steps = np.diff(points, axis=0)
    chords = np.linalg.norm(steps, axis=1)
    if chords.min() <= 0 or chords.sum() < OPTIONS.least_length_nm:
        raise EmphaseError(
            f"surface drawn by hand: {chords.sum():.2f} nm long, expected {OPTIONS.least_length_nm:g} nm or more with no point twice"
        )
    if (np.sum(steps[1:] * steps[:-1], axis=1) < -0.5 * chords[1:] * chords[:-1]).any():
        raise EmphaseError("surface drawn by hand: it turns back on itself, expected points one after the other along the edge")
    along = np.append(0.0, np.cumsum(chords))
    line = CubicSpline(along, points)(np.arange(0.0, along[-1], OPTIONS.point_nm))
    inwards, length = _normals_and_length(line)
    s, u = _beside(line, inwards, length, columns.nm[columns.is_metal])
    beside, occupied = (s > 0) & (s < length[-1]), columns.present[columns.is_metal]
    inner, outer = (float(occupied[side].mean()) if side.any() else 0.0 for side in (beside & (u > 0), beside & (u < 0)))
    if abs(inner - outer) < OPTIONS.least_contrast:
        raise EmphaseError(
            f"surface drawn by hand: {100 * inner:.0f} % and {100 * outer:.0f} % of the places on its sides hold a column, so that neither "
            "is the vacuum; expected the line along the edge of the crystal"
        )
    knots = np.linspace(0.0, length[-1], 4)
    return SurfaceContour(
        line, inwards if inner > outer else -inwards, length, np.ones(len(line), bool), knots, np.zeros(4), OPTIONS.drawn_error * spacing_nm
    )


def _faces_vacuum(columns: Columns, base: np.ndarray, inwards: np.ndarray, length: np.ndarray) -> np.ndarray:
    """For every point of a base line (m,), whether the image gets dark a little outside it; true where nothing is seen outside.

    Contamination ends in the dark; another grain or a support does not.
    """
    s, u = _beside(base, inwards, length, columns.nm)
    outside = (u < -0.1) & (u > -OPTIONS.vacuum_within_nm) & ~columns.present
    bright = OPTIONS.dark * float(np.median(columns.surroundings[columns.present]))
    bins = np.clip((s[outside] / 0.5).astype(int), 0, int(length[-1] / 0.5))
    least = np.full(int(length[-1] / 0.5) + 3, np.inf)
    np.minimum.at(least, bins + 1, columns.surroundings[outside])
    least = np.min([least[:-2], least[1:-1], least[2:]], axis=0)
    return (np.where(np.isfinite(least), least, 0.0) < bright)[np.minimum((length / 0.5).astype(int), len(least) - 1)]
