"""A projected lattice laid on an image by a polynomial map, and columns refined to sub-pixel places.

The polynomial holds what drift and scan did to the image. It is fitted by least squares to the places of columns at known lattice
coordinates; columns more than 3.5 times the median off are left out and the fit is repeated. `_refined_positions` is Gauss-Newton on a
Gaussian of known width over a constant; the columns of a dumbbell are located together.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np

from .projection import ProjectedColumns


def _terms(points: np.ndarray, degree: int) -> np.ndarray:
    """Monomials up to a total degree of points (n, 2), as columns; the first three are 1, p0, p1.

    `polyvander2d` also holds the products beyond the total degree, and orders them otherwise.
    """
    powers = [(a, n - a) for n in range(degree + 1) for a in range(n, -1, -1)]
    return np.stack([points[:, 0] ** a * points[:, 1] ** b for a, b in powers], axis=1)


@dataclass(frozen=True)
class Registration:
    """Where all columns of an image stand against the lattice laid on it.

    ``offset`` (2,) is fractional in the basis, ``turned`` whether the structure fits turned by 180°: a column expected at s stands at
    ±s + offset. ``distance_nm`` is how far columns stand from where the lattice has them (rms), ``error_nm`` the standard error of the
    offset along an axis, ``fwhm_nm`` the blur of the core of a column, ``explained`` the share of the mean cell's variance that the
    structure explains. ``rival_nm`` is how far columns would move, the farthest of them, in another place that fits as well; None where
    there is none.
    """

    offset: np.ndarray
    turned: bool
    distance_nm: float
    error_nm: float
    fwhm_nm: float
    explained: float
    rival_nm: float | None


@dataclass(frozen=True)
class ImageLattice:
    """A projected lattice laid on an image, with a smooth distortion of the scan.

    ``forward`` and ``inverse`` are polynomial coefficients between lattice coordinates (fractional
    in ``columns.basis_nm``) and pixels (y, x), of points less their centre over their span; ``matrix`` (2, 2) the mean step in px for a
    step of the basis. ``residual_px`` is how far the ``n_columns`` that it was fitted to lie off it (rms of an axis), their scatter and
    what they are off together; ``registration`` holds the latter, None where it was not measured.
    ``other_grain_deg`` is the turn of a second grain of the same structure in the image, None where there is none.
    """

    columns: ProjectedColumns
    degree: int
    forward: np.ndarray
    inverse: np.ndarray
    centre: np.ndarray
    span: float
    inverse_centre: np.ndarray
    inverse_span: float
    matrix: np.ndarray
    residual_px: float
    n_columns: int
    other_grain_deg: float | None = None
    registration: Registration | None = None

    def to_px(self, lattice: np.ndarray) -> np.ndarray:
        """Pixels (n, 2) as (y, x) of lattice coordinates (n, 2)."""
        return _terms((np.asarray(lattice, dtype=float) - self.centre) / self.span, self.degree) @ self.forward

    def to_lattice(self, px: np.ndarray) -> np.ndarray:
        """Lattice coordinates (n, 2) of pixels (n, 2)."""
        return _terms((np.asarray(px, dtype=float) - self.inverse_centre) / self.inverse_span, self.degree) @ self.inverse

    def rescaled(self, factor: float) -> ImageLattice:
        """The same lattice on pixels ``factor`` times as small (1/2 for an image binned by 2)."""
        shift = 0.5 * (factor - 1)
        forward = self.forward * factor
        forward[0] += shift
        return replace(
            self,
            forward=forward,
            inverse_centre=self.inverse_centre * factor + shift,
            inverse_span=self.inverse_span * factor,
            matrix=self.matrix * factor,
            residual_px=self.residual_px * factor,
        )

    def moved(self, offset: np.ndarray, turned: bool = False) -> ImageLattice:
        """The lattice with the column of p where p + ``offset`` was, of −p + ``offset`` where ``turned`` by 180°; both fractional."""
        offset = np.asarray(offset, dtype=float)
        sense = -1.0 if turned else 1.0
        degrees = np.repeat(np.arange(self.degree + 1), np.arange(1, self.degree + 2))
        inverse = self.inverse.copy()
        inverse[0] -= offset
        return replace(
            self,
            forward=self.forward * (sense**degrees)[:, None],
            centre=sense * (self.centre - offset),
            inverse=sense * inverse,
            matrix=sense * self.matrix,
            registration=None,
        )

    def bending_px(self, shape: tuple[int, int]) -> float:
        """How far (px, rms) the scan of an image of ``shape`` puts places off the straight lattice that fits best."""
        y, x = (g.ravel() for g in np.meshgrid(*(np.linspace(0, n - 1, 24) for n in shape), indexing="ij"))
        px = np.stack([y, x], axis=1)
        design = np.column_stack([np.ones(len(px)), self.to_lattice(px)])
        off = px - design @ np.linalg.lstsq(design, px, rcond=None)[0]
        return float(np.sqrt(np.mean(np.sum(off**2, axis=1))))

    @property
    def px_per_nm(self) -> np.ndarray:
        """(2, 2): a step in nm in the crystal's plane times this is a step in px."""
        return np.linalg.inv(self.columns.basis_nm) @ self.matrix

    def scan(self) -> dict[str, float]:
        """Pixel size from the lattice and what the scan did to it.

        The mean pixel is that of equal area. The distortion is that of slow drift: lines (x) are
        taken as true, the slow axis y is stretched and sheared: (y, x) -> (s·y, x + tan(shear)·y).
        """
        _, triangle = np.linalg.qr(self.px_per_nm)
        sy, sx = abs(triangle[0, 0]), abs(triangle[1, 1])
        shear = math.degrees(math.atan2(triangle[0, 1] * np.sign(triangle[1, 1]), sy * np.sign(triangle[0, 0]) * np.sign(triangle[1, 1])))
        shear = (shear + 90) % 180 - 90
        row = self.matrix[0]
        return {
            "pixel_size_nm": float(1 / math.sqrt(abs(np.linalg.det(self.px_per_nm)))),
            "pixel_size_x_nm": float(1 / sx),
            "pixel_size_y_nm": float(1 / sy),
            "shear_deg": float(shear),
            "rotation_deg": float(math.degrees(math.atan2(row[0], row[1]))),
            "mirrored": bool(np.linalg.det(self.px_per_nm) < 0),
        }


def _fit_lattice(
    columns: ProjectedColumns, lattice: np.ndarray, px: np.ndarray, degree: int, guide: tuple[np.ndarray, np.ndarray] | None = None
) -> tuple[ImageLattice, np.ndarray]:
    """A robust polynomial map through columns at known places; also which columns it kept. A ``guide`` (points, px) counts little."""
    beside, beside_px = guide or (np.zeros((0, 2)), np.zeros((0, 2)))
    centre = lattice.mean(axis=0)
    span = max(float(np.abs(np.concatenate([lattice, beside]) - centre).max()), 1.0)
    design, faint = _terms((lattice - centre) / span, degree), 0.03 * _terms((beside - centre) / span, degree)
    keep = np.ones(len(px), dtype=bool)
    for _ in range(6):
        both = np.concatenate([design[keep], faint]), np.concatenate([px[keep], 0.03 * beside_px])
        forward, *_ = np.linalg.lstsq(*both, rcond=None)
        off = np.linalg.norm(px - design @ forward, axis=1)
        limit = max(3.5 * float(np.median(off[keep])), 0.3)
        if np.array_equal(keep, off < limit):
            break
        keep = off < limit
    smooth = design[keep] @ forward
    all_px, all_points = np.concatenate([smooth, faint / 0.03 @ forward]), np.concatenate([lattice[keep], beside])
    i_centre, i_span = all_px.mean(axis=0), max(float(np.abs(all_px - all_px.mean(axis=0)).max()), 1.0)
    inverse, *_ = np.linalg.lstsq(_terms((all_px - i_centre) / i_span, degree), all_points, rcond=None)
    straight, *_ = np.linalg.lstsq(_terms((lattice[keep] - centre) / span, 1), smooth, rcond=None)
    rms = float(np.sqrt(np.mean(off[keep] ** 2) / 2))
    fit = ImageLattice(columns, degree, forward, inverse, centre, span, i_centre, i_span, straight[1:] / span, rms, int(keep.sum()))
    return fit, keep


class _Group(NamedTuple):
    """Columns too near to each other to be located alone, about each lattice point.

    Their common ``middle`` (2,) is fractional, offsets (m, 2) from it in px; ``heights`` (m,) are relative.
    """

    middle: np.ndarray
    offsets_px: np.ndarray
    heights: np.ndarray


_ALONE = _Group(np.zeros(2), np.zeros((1, 2)), np.ones(1))


def _refined_positions(
    image: np.ndarray, start: np.ndarray, sigma_px: float, reach_px: float, group: _Group = _ALONE
) -> tuple[np.ndarray, np.ndarray]:
    """Sub-pixel places (n, 2) and heights (n,) of columns by Gauss-Newton on a Gaussian of known width over a constant.

    Columns of a ``group`` are fitted as one, at their known offsets from its middle, which is what is located; the height is that of a
    column of relative height 1. Columns that leave the window, ``reach_px`` around where they started, keep their start and get height 0.
    """
    half = max(2, round(reach_px))
    corner = np.clip(np.rint(start).astype(int), half, np.array(image.shape) - half - 1)
    offsets = np.arange(-half, half + 1)
    window = image[corner[:, 0, None, None] + offsets[None, :, None], corner[:, 1, None, None] + offsets[None, None, :]]
    shift = start - corner
    height = np.zeros(len(start))
    for _ in range(4):
        dy, dx = offsets[None, :, None] - shift[:, 0, None, None], offsets[None, None, :] - shift[:, 1, None, None]
        taper = np.exp(-(dy**2 + dx**2) / (2 * (0.6 * half) ** 2))
        design = np.zeros((*taper.shape, 4))
        design[..., 1] = 1.0
        for (oy, ox), level in zip(group.offsets_px, group.heights, strict=True):
            bell = level * np.exp(-((dy - oy) ** 2 + (dx - ox) ** 2) / (2 * sigma_px**2))
            design[..., 0] += bell
            design[..., 2] += bell * (dy - oy) / sigma_px**2
            design[..., 3] += bell * (dx - ox) / sigma_px**2
        normal = np.einsum("nyxa,nyx,nyxb->nab", design, taper, design) + 1e-9 * np.eye(4)
        found = np.linalg.solve(normal, np.einsum("nyxa,nyx,nyx->na", design, taper, window)[..., None])[..., 0]
        height = found[:, 0]
        step = found[:, 2:] / np.where(np.abs(height) > 1e-9, height, 1e-9)[:, None]
        shift = shift + np.clip(step, -1.0, 1.0)
    lost = np.linalg.norm(shift - (start - corner), axis=1) > reach_px
    return np.where(lost[:, None], start, corner + shift), np.where(lost, 0.0, height)


def _sites_in(shape: tuple[int, int], to_px: Any, guess: np.ndarray, origin: np.ndarray, margin: float) -> tuple[np.ndarray, np.ndarray]:
    """Lattice points whose place lies inside the image, and these places; ``guess`` (2, 2) and ``origin`` bound the search."""
    corners = np.array([(y, x) for y in (0, shape[0]) for x in (0, shape[1])], dtype=float)
    reach = (corners - origin) @ np.linalg.inv(guess)
    low, high = np.floor(reach.min(axis=0)).astype(int) - 2, np.ceil(reach.max(axis=0)).astype(int) + 3
    points = np.stack(np.meshgrid(*(np.arange(a, b) for a, b in zip(low, high, strict=True)), indexing="ij"), axis=-1).reshape(-1, 2)
    places = to_px(points)
    inside = np.all((places >= margin) & (places <= np.array(shape) - 1 - margin), axis=1)
    return points[inside], places[inside]
