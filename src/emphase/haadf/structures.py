"""Structures column by column, the thickness of a layer along the surface, and its extrapolation to zero dose.

The brightness of the four kinds of column around each column is compared with that of layered, rocksalt and spinel structures in each of
their origins; which spinel it is, LiM2O4 or M3O4, is read from the tetrahedral 8a columns. The thickness in blocks along the surface is
fitted with the levels of the whole layer, and regressed on the angle to the lithium channels.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from ..errors import EmphaseError
from .columns import CationLattice, Columns
from .image_lattice import ImageLattice
from .layer import SurfaceLayer, transformed_share


@dataclass(frozen=True)
class StructureOptions:
    """Tuning of what is said column by column and along the surface; levels are in full metal columns."""

    tetrahedral_blur_nm: float = 0.03  # of the image where an 8a place is read: under the width of a column
    inside_nm: tuple[float, float] = (0.15, 0.2)  # of the layer's outer and inner border, where no 8a column is read
    into_bulk_nm: float = 0.4  # below the layer, where the bulk begins for sure
    least_columns: int = 6  # in the layer and in the bulk, for the 8a columns to say which spinel it is
    m3o4_above: float = 0.12  # brightness beside the empty columns: 0.36 in M3O4, none in LiM2O4; 95 % have to lie above
    lim2o4_below: float = 0.20  # or below
    expected_8a: float = 0.36  # what the blur and the difference leave of half a metal column
    level_scatter: float = 0.12  # of a structure's levels about those expected: antisites, thickness
    scatter_8a: float = 0.08  # the same of the 8a columns
    column_scatter: float = 0.06  # of one column beside its noise
    reach_nm: float = 0.45  # over which columns are averaged: some ten of each kind
    neighbours: int = 48  # of a column, all within three such lengths that count
    least_probability: float = 0.9  # of a structure that is called so
    most_chi2: float = 16.0  # of four levels: three in a thousand by chance
    block_nm: float = 0.8  # of the surface, for one thickness: three spacings
    trial_nm: float = 0.02  # between thicknesses that are tried
    most_cost: float = 9.0  # of one column: three scatters, beyond which it is an outlier
    least_in_block: int = 12  # columns
    least_turn: float = 0.15  # of cos² of the angle to the channels, over which the surface must turn to compare them


OPTIONS = StructureOptions()


def tetrahedral_brightness(image: np.ndarray, lattice: ImageLattice, cations: CationLattice, columns: Columns) -> np.ndarray:
    """Brightness at the two tetrahedral (8a) places beside every column, from the image.

    Parameters
    ----------
    image
        (y, x), counts.
    lattice, cations, columns
        From `find_image_lattice`, `cation_lattice` and `measure_columns`.

    Returns
    -------
    (n,) for each of the columns, in units of a full metal column; that at two places as far off in the other direction is subtracted.

    Notes
    -----
    Beside the empty column of an M₃O₄ the 8a columns hold half a metal column; beside that of LiM₂O₄ lithium, which is dark.
    """
    from scipy.ndimage import gaussian_filter, map_coordinates

    smooth = gaussian_filter(np.asarray(image, dtype=float), OPTIONS.tetrahedral_blur_nm / lattice.scan()["pixel_size_nm"])
    full = columns.height / np.where(np.abs(columns.brightness) > 1e-9, columns.brightness, 1e-9)
    along = 0.25 * cations.steps.sum(axis=0)
    other_nm = np.array([-1.0, 1.0]) * (along @ lattice.columns.basis_nm)[::-1]
    across = other_nm @ np.linalg.inv(lattice.columns.basis_nm)
    at = columns.index @ cations.steps
    values = [map_coordinates(smooth, lattice.to_px(at + side * v).T, order=1, mode="nearest") for v in (along, across) for side in (1, -1)]
    return (values[0] + values[1] - values[2] - values[3]) / 2 / full


def spinel_variant(layer: SurfaceLayer, tetrahedral: np.ndarray) -> tuple[str, float, float]:
    """Which spinel a layer is, from the metal on its 8a columns.

    Parameters
    ----------
    layer
        From `measure_surface_layer`.
    tetrahedral
        (n,) of its columns, from `tetrahedral_brightness`.

    Returns
    -------
    variant : str
        "LiM2O4", "M3O4" or "undecided".
    signal, error : float
        Median brightness beside the empty columns of the layer, less the same in the bulk, and its standard error.
    """
    empty = (layer.role == 3) & (layer.depth_nm < layer.thickness_nm - OPTIONS.inside_nm[1]) & (layer.depth_nm > OPTIONS.inside_nm[0])
    bulk = (layer.role >= 2) & (layer.depth_nm > layer.thickness_nm + OPTIONS.into_bulk_nm)
    if min(empty.sum(), bulk.sum()) < OPTIONS.least_columns:
        return "undecided", 0.0, 1.0
    inner, outer = tetrahedral[empty], tetrahedral[bulk]
    value = float(np.median(inner) - np.median(outer))
    error = 1.25 * float(np.hypot(inner.std() / math.sqrt(len(inner)), outer.std() / math.sqrt(len(outer))))
    if value - 1.96 * error > OPTIONS.m3o4_above:
        return "M3O4", value, error
    return ("LiM2O4" if value + 1.96 * error < OPTIONS.lim2o4_below else "undecided"), value, error


#: Structures that a column may belong to.
REGIONS = ("layered", "LiM2O4", "M3O4", "rocksalt", "undecided")
# metal in the columns (i mod 2) + 2 (j mod 2) of each structure; a rocksalt-like one may lack some in the former lithium layer
_STRUCTURES = [("layered", (1.0, 1.0, 0.0, 0.0))]
_STRUCTURES += [("rocksalt", (1.0, 1.0, f, f)) for f in np.arange(0.5, 1.01, 0.05)]
_STRUCTURES += [("spinel", (*metal, *lithium)) for metal in ((1.0, 0.5), (0.5, 1.0)) for lithium in ((0.5, 0.0), (0.0, 0.5))]


def column_regions(layer: SurfaceLayer, tetrahedral: np.ndarray, reach_nm: float = OPTIONS.reach_nm) -> tuple[np.ndarray, np.ndarray]:
    """Structure around every column from the brightness of its neighbours.

    Parameters
    ----------
    layer
        From `measure_surface_layer`.
    tetrahedral
        (n,), the brightness of the 8a columns beside every column (`tetrahedral_brightness`): it decides which spinel.
    reach_nm
        Standard deviation of the Gaussian over which brightness is averaged.

    Returns
    -------
    posterior : ndarray
        (n, 4) of the first four of `REGIONS`.
    label : ndarray
        (n,) index into `REGIONS`: "undecided" where no structure is probable enough, or none fits; −1 outside.

    Notes
    -----
    The mean brightness of the four kinds of column is compared with that of each structure in each of its origins; levels may be off
    by a little (`StructureOptions`).
    """
    from scipy.spatial import cKDTree

    columns, used = layer.columns, layer.role >= 0
    base = float(layer.levels[2:, 0].mean())
    bright = (columns.brightness - base) / (1 - base)
    variance = columns.noise**2 + OPTIONS.column_scatter**2
    lithium = used & ~columns.is_metal
    bulk_8a = (
        float(np.median(tetrahedral[lithium & (layer.depth_nm > layer.thickness_nm + OPTIONS.into_bulk_nm)])) if lithium.any() else 0.0
    )
    scatter_8a = 1.4826 * float(np.median(np.abs(tetrahedral[lithium] - np.median(tetrahedral[lithium]))))
    rows = np.flatnonzero(used)
    apart, near = cKDTree(columns.nm[rows]).query(columns.nm[rows], k=min(OPTIONS.neighbours, len(rows)))
    weight = np.exp(-0.5 * (apart / reach_nm) ** 2)
    level, error, t_level, t_error = (np.empty((len(rows), 4)) for _ in range(4))
    for kind in range(4):
        w = weight * (columns.kind[rows][near] == kind)
        total = np.maximum(w.sum(axis=1), 1e-9)
        level[:, kind] = (w * bright[rows][near]).sum(axis=1) / total
        error[:, kind] = np.sqrt((w**2 * variance[rows][near]).sum(axis=1)) / total + 1.0 * (total < 0.5)
        t_level[:, kind] = (w * tetrahedral[rows][near]).sum(axis=1) / total - bulk_8a
        t_error[:, kind] = scatter_8a * np.sqrt((w**2).sum(axis=1)) / total + 1.0 * (total < 0.5)
    names = REGIONS[:4]
    chi2, best = np.full((len(rows), 4), np.inf), np.full((len(rows), 4), np.inf)
    for name, expected in _STRUCTURES:
        off = np.sum((level - expected) ** 2 / (error**2 + OPTIONS.level_scatter**2), axis=1)
        empty = int(np.argmin(expected))
        spread = t_error[:, empty] ** 2 + OPTIONS.scatter_8a**2
        lit = (t_level[:, empty] - OPTIONS.expected_8a) ** 2 / spread - t_level[:, empty] ** 2 / spread
        for k in [names.index(name)] if name != "spinel" else (1, 2):
            score = off + (lit if k == 2 else 0.0)
            chi2[:, k], best[:, k] = np.where(score < best[:, k], (off, score), (chi2[:, k], best[:, k]))
    posterior = np.exp(-0.5 * (best - best.min(axis=1, keepdims=True)))
    posterior /= posterior.sum(axis=1, keepdims=True)
    winner = posterior.argmax(axis=1)
    doubt = (posterior.max(axis=1) < OPTIONS.least_probability) | (chi2[np.arange(len(rows)), winner] > OPTIONS.most_chi2)
    full, label = np.zeros((len(used), 4)), np.full(len(used), -1)
    full[rows], label[rows] = posterior, np.where(doubt, 4, winner)
    return full, label


@dataclass(frozen=True)
class LayerAlong:
    """The layer's thickness along the surface, in blocks (b,).

    ``along_nm``, ``thickness_nm`` with its standard error ``error_nm``, and ``channel_deg``, the angle between the surface's normal and the
    (003) planes that lithium moves in (0: channels end at the surface). ``spread_nm`` is the standard deviation of the thickness itself,
    the errors taken off. ``deeper_along_nm`` is how much thicker the layer is where channels end at the surface than where they run along
    it, with its standard error; None with a ``reason`` where the surface does not turn enough.
    """

    along_nm: np.ndarray
    thickness_nm: np.ndarray
    error_nm: np.ndarray
    channel_deg: np.ndarray
    spread_nm: float | None
    deeper_along_nm: tuple[float, float] | None
    reason: str | None


def layer_along(layer: SurfaceLayer, cations: CationLattice, block_nm: float = OPTIONS.block_nm) -> LayerAlong:
    """Thickness of a layer in blocks along the surface, and whether it is deeper along the lithium channels.

    Parameters
    ----------
    layer, cations
        From `measure_surface_layer` and `cation_lattice`; levels and width are those of the whole layer.
    block_nm
        Length of a block.

    Returns
    -------
    LayerAlong
    """
    middles, thicknesses, errors = [], [], []
    rows = np.flatnonzero(layer.role >= 0)
    s, d, y, r = layer.along_nm[rows], layer.depth_nm[rows], layer.columns.brightness[rows], layer.role[rows]
    trials = np.arange(0.0, layer.thickness_nm + 2.0, OPTIONS.trial_nm)
    share = transformed_share(d[:, None], trials, layer.width_nm)
    off = y[:, None] - layer.levels[r, 0][:, None] * (1 - share) - layer.levels[r, 1][:, None] * share
    scale = max(1.4826 * float(np.median(np.abs(off[:, np.argmin((off**2).sum(axis=0))]))), 0.02)
    cost = np.minimum((off / scale) ** 2, OPTIONS.most_cost)
    edge_error = 0.4 * math.sqrt(cations.spacing_nm / block_nm) * cations.spacing_nm
    for low in np.arange(s.min(), s.max() - 0.5 * block_nm, block_nm) if layer.thickness_nm > 0 else ():
        here = (s >= low) & (s < low + block_nm)
        total = cost[here].sum(axis=0)
        best = int(np.argmin(total))
        deepest = d[here].max() if here.any() else 0.0
        allowed = trials[total < total[best] + 1]
        if here.sum() < OPTIONS.least_in_block or not 0 < best < len(trials) - 1 or trials[best] > deepest - 0.4:
            continue
        middles.append(low + 0.5 * block_nm)
        thicknesses.append(float(trials[best]))
        errors.append(math.hypot(0.5 * float(np.ptp(allowed)) + 0.02, edge_error))
    along, thickness, error = np.array(middles), np.array(thicknesses), np.array(errors)
    channel = cations.steps_nm[0] / np.linalg.norm(cations.steps_nm[0])
    normals = layer.contour.normals(along) if len(along) else np.zeros((0, 2))
    angle = np.degrees(np.arccos(np.clip(np.abs(normals @ channel), 0, 1)))
    if len(along) < 4:
        return LayerAlong(along, thickness, error, angle, None, None, "the layer is followed over fewer than four blocks of the surface")
    spread = math.sqrt(max(0.0, float(thickness.var(ddof=1) - np.mean(error**2))))
    return LayerAlong(along, thickness, error, angle, spread, *_deeper_along(thickness, np.hypot(error, spread), angle))


def _weighted_line(x: np.ndarray, y: np.ndarray, error: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Offset and slope (2,) of a straight line through y ± error (n,), their covariance (2, 2), and what is left in errors (n,)."""
    design = np.stack([np.ones_like(x), x], axis=1) / error[:, None]
    covariance = np.linalg.inv(design.T @ design)
    found = covariance @ design.T @ (y / error)
    return found, covariance, y / error - design @ found


def _deeper_along(thickness: np.ndarray, error: np.ndarray, channel_deg: np.ndarray) -> tuple[tuple[float, float] | None, str | None]:
    """Slope of the thickness over cos² of the angle to the channels, with its error; or why there is none."""
    steer = np.cos(np.radians(channel_deg)) ** 2
    if np.ptp(steer) < OPTIONS.least_turn or len(steer) < 8:
        low, high = float(channel_deg.min()), float(channel_deg.max())
        return None, f"the surface's normal keeps to {low:.0f}° to {high:.0f}° from the channels: along and across cannot be compared"
    found, covariance, off = _weighted_line(steer, thickness, error)
    alike = float(np.clip(np.sum(off[1:] * off[:-1]) / np.sum(off**2), 0.0, 0.9))  # neighbours that vary together count less
    inflation = max(1.0, float(off @ off) / (len(steer) - 2)) * (1 + alike) / (1 - alike)
    return (float(found[1]), math.sqrt(float(covariance[1, 1]) * inflation)), None


def thickness_at_zero_dose(dose_e_per_A2: np.ndarray, thickness_nm: np.ndarray, error_nm: np.ndarray) -> dict[str, float]:
    """Thickness at dose zero from a straight line through the thicknesses that images of one area show at growing doses.

    Parameters
    ----------
    dose_e_per_A2, thickness_nm, error_nm
        (n,) of the images; errors are standard errors, and where the images scatter more than these allow, that scatter is used.

    Returns
    -------
    dict
        ``thickness_nm``, ``error_nm`` at dose zero, ``growth_nm_per_1000_e_per_A2`` and ``growth_error``.

    Raises
    ------
    EmphaseError
        Fewer than two different doses.
    """
    dose, thickness, error = (np.asarray(v, dtype=float) for v in (dose_e_per_A2, thickness_nm, error_nm))
    if len(np.unique(dose)) < 2:
        raise EmphaseError(f"doses {dose.tolist()}: expected two different ones or more to go back to dose zero")
    found, covariance, off = _weighted_line(dose / 1000, thickness, error)
    misfit = float(np.sum(off**2)) / max(1, len(dose) - 2)
    sigma = np.sqrt(np.diag(covariance) * max(1.0, misfit))
    return {
        "thickness_nm": float(max(0.0, found[0])),
        "error_nm": float(sigma[0]),
        "growth_nm_per_1000_e_per_A2": float(found[1]),
        "growth_error": float(sigma[1]),
    }
