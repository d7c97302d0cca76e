"""Thickness and phase of the transformed layer of a layered oxide from brightness against depth.

All cation columns share one transformed share 0.5 erfc((depth - thickness)/(sqrt(2) width)); each of four kinds of column, bright and dim
metal and lithium columns of a spinel, has a level in the bulk and one in the layer. For a thickness and a width the levels are linear
least squares, so both are searched on a grid. Edge, roles and reference heights depend on the layer and are iterated. The interval is a
bootstrap of blocks along the surface (Künsch, Ann. Statist. 17 (1989) 1217) with the error of the edge added.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np

from ..errors import EmphaseError
from .columns import CationLattice, Columns, _connected, _metal_level
from .contour import SurfaceContour, drawn_contour, surface_contour


@dataclass(frozen=True)
class LayerOptions:
    """Tuning of `measure_surface_layer`."""

    widths_nm: tuple[float, ...] = (0.04, 0.08, 0.14, 0.22, 0.32, 0.45)  # of the transition, that are tried
    depth_step_nm: float = 0.02  # in which columns are gathered: far below the error of a depth
    least_limit_nm: float = 0.24  # a column spacing: a thinner layer holds no column
    least_gain: float = 12.0  # F of a level: what roughness and wedge give without a layer stays below
    least_rise: float = 0.08  # of a metal column that a layer fills into lithium columns: scatter of antisites stays below
    huber: float = 2.5  # scatters beyond which a column counts less
    most_bulk_lithium: float = 0.4  # of a metal column in the lithium columns of a layered bulk
    most_bulk_alternation: float = 0.15  # between the lithium columns of a layered bulk
    least_bulk: int = 4  # lithium columns below a layer, in which the bulk is seen
    rounds: int = 4  # of edge, roles and reference heights, which depend on the layer: the third changes little
    first_weight: float = 0.05  # of the bulk's columns for the roles, which the layer's decide
    first_depth_nm: float = 1.0  # of a layer before one is fitted, at most, ...
    first_width_nm: float = 0.2  # ... and its transition
    role_reach: float = 3.0  # columns along the surface over which bright and dim ones alternate
    visible_lithium: float = 0.35  # level of a layer's lithium columns that can be seen, so that they mark the edge ...
    visible_depth: float = 0.6  # ... down to this share of the layer
    coarse_nm: tuple[float, float, float] = (0.12, 0.5, 0.1)  # thicknesses tried first: from, to at least, in steps, ...
    deepest: float = 0.9  # ... and to this share of the deepest column
    fine_nm: tuple[float, float] = (0.4, 0.04)  # about the best: as far, in steps
    thinnest_nm: float = 0.08  # of a thickness that is tried there
    least_level_weight: float = 0.3  # sum of squares of the share over a role's columns, for its two levels to differ
    block_nm: float = 0.5  # of the bootstrap: two spacings ...
    most_blocks: int = 40  # ... or as many over the whole surface
    resampled_nm: tuple[float, float, float] = (0.6, 0.03, 0.05)  # thicknesses of a resample: as far, in steps, from at least
    resampled_depth_nm: float = 4.0  # below the layer, beyond which columns say nothing of it
    few_blocks: float = 1.2  # by which an interval of n blocks is wider, over n: Student's t at 95 % goes so
    limit_nm: tuple[float, float] = (1.5, 0.02)  # thicknesses tried for a limit where there is no layer: to, in steps, ...
    limit_width_nm: float = 0.05  # ... of a sharp layer ...
    limit_level: float = 0.25  # ... that holds this much metal in its lithium columns: a spinel's mean
    limit_chi2: float = 3.84  # 95 % of one parameter
    least_open: float = 0.3  # share of the edge that has to face vacuum
    spinel_above: float = 0.13  # alternation, a third for spinel and none for rocksalt: 95 % have to lie above
    rocksalt_below: float = 0.20  # or below


OPTIONS = LayerOptions()


@dataclass(frozen=True)
class SurfaceLayer:
    """A transformed layer at the surface, and the columns that it was read from.

    ``thickness_nm`` is 0 where there is no layer, ``ci95_nm`` its 95 % interval and ``upper_limit_nm`` the upper end of that; ``kind`` is
    "spinel", "rocksalt", "none" or "undecided". ``levels`` (4, 2) is the relative brightness in the bulk and in the layer of bright and
    dim metal columns, bright and dim lithium-layer columns; ``width_nm`` the standard deviation of the transition. ``alternation`` is
    the contrast of full and half metal columns in the layer and ``lithium_layer`` the brightness of its lithium columns, each with its
    standard error. ``along_nm``, ``depth_nm`` and ``role`` (0 to 3, the rows of ``levels``; −1 empty place), (n,), belong to the rows of
    ``columns``.
    """

    thickness_nm: float
    ci95_nm: tuple[float, float]
    upper_limit_nm: float
    kind: str
    width_nm: float
    levels: np.ndarray
    alternation: tuple[float, float]
    lithium_layer: tuple[float, float]
    contour: SurfaceContour
    columns: Columns
    along_nm: np.ndarray
    depth_nm: np.ndarray
    role: np.ndarray


def transformed_share(depth: np.ndarray, thickness: Any, width: Any) -> np.ndarray:
    """Transformed share at a depth: 1 at the surface, 1/2 at the thickness."""
    from scipy.special import erfc

    return 0.5 * erfc((depth - thickness) / (math.sqrt(2) * width))


def _roles(columns: Columns, layer_weight: np.ndarray) -> np.ndarray:
    """0 bright or 1 dim metal, 2 bright or 3 dim lithium column of a spinel, judged by the other columns of its row.

    The column itself does not count, so that noise alone makes no alternation. Rows go on into the vacuum.
    """
    role = 2 * (~columns.is_metal)
    for row in np.unique(columns.index[:, 1]):
        k = np.flatnonzero(columns.index[:, 1] == row)
        i, b, w = columns.index[k, 0], columns.brightness[k], layer_weight[k]
        near = w * np.exp(-np.abs(i[:, None] - i[None, :]) / OPTIONS.role_reach)
        np.fill_diagonal(near, 0.0)
        odd = (i[:, None] - i[None, :]) % 2 == 1
        same, other = np.where(odd, 0.0, near), np.where(odd, near, 0.0)
        total = same.sum(axis=1) * other.sum(axis=1)
        contrast = (same @ b) * other.sum(axis=1) - (other @ b) * same.sum(axis=1)
        role[k] += np.where(total > 0, contrast < 0, i % 2 == 1)
    return role


@dataclass(frozen=True)
class _Profile:
    """A fitted profile of brightness against depth: thickness and width in nm, ``levels`` (4, 2) as in `SurfaceLayer`."""

    thickness: float
    width: float
    levels: np.ndarray
    misfit: float

    def brightness(self, depth: np.ndarray, role: np.ndarray) -> np.ndarray:
        """Brightness (n,) expected of columns of these roles (n,) at depths (n,) in nm."""
        share = transformed_share(depth, self.thickness, self.width)
        return self.levels[role, 0] * (1 - share) + self.levels[role, 1] * share


def _profile_sums(
    depth: np.ndarray, y: np.ndarray, role: np.ndarray, thicknesses: np.ndarray, weights: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Misfit (b, t, w) of the best levels for every weighting (b, n), thickness and width; levels (b, t, w, 4, 2).

    Columns are gathered in steps of depth first.
    """
    bins, place = np.unique(np.floor(depth / OPTIONS.depth_step_nm).astype(int), return_inverse=True)
    centres = (bins + 0.5) * OPTIONS.depth_step_nm
    grid = transformed_share(centres[:, None, None], thicknesses[None, :, None], np.array(OPTIONS.widths_nm)[None, None, :]).reshape(
        len(bins), -1
    )
    squares = grid**2
    misfit, levels = np.zeros((len(weights), grid.shape[1])), np.zeros((len(weights), grid.shape[1], 4, 2))
    for r in range(4):
        here = role == r
        gathered = np.zeros((here.sum(), len(bins)))
        gathered[np.arange(here.sum()), place[here]] = 1
        v, w = y[here], weights[:, here]
        w_bin, wy_bin = w @ gathered, (w * v) @ gathered
        s0, sy, syy = w.sum(axis=1)[:, None] + 1e-9, (w @ v)[:, None], (w @ v**2)[:, None]
        s1, s2, sfy = w_bin @ grid, w_bin @ squares, wy_bin @ grid
        spread = s2 - s1**2 / s0
        slope = np.where(spread > OPTIONS.least_level_weight, (sfy - s1 * sy / s0) / np.maximum(spread, OPTIONS.least_level_weight), 0.0)
        base = (sy - slope * s1) / s0
        misfit += syy - base * sy - slope * sfy
        levels[:, :, r, 0], levels[:, :, r, 1] = base, base + slope
    shape = (len(weights), len(thicknesses), len(OPTIONS.widths_nm))
    return misfit.reshape(shape), levels.reshape(*shape, 4, 2)


def _fit_profile(depth: np.ndarray, y: np.ndarray, role: np.ndarray, weights: np.ndarray, thicknesses: np.ndarray) -> list[_Profile]:
    """One best profile for every row of weights."""
    out = []
    misfits, all_levels = _profile_sums(depth, y, role, thicknesses, weights)
    for m, v in zip(misfits, all_levels, strict=True):
        t, w = np.unravel_index(np.argmin(m), m.shape)
        fine = thicknesses[t]
        if 0 < t < len(thicknesses) - 1:
            low, mid, high = m[t - 1 : t + 2, w]
            bend = low - 2 * mid + high
            fine += 0.5 * (low - high) / bend * (thicknesses[1] - thicknesses[0]) if bend > 0 else 0.0
        out.append(_Profile(float(fine), OPTIONS.widths_nm[w], v[t, w], float(m[t, w])))
    return out


def _robust_weights(depth: np.ndarray, y: np.ndarray, role: np.ndarray, fit: _Profile) -> tuple[np.ndarray, float]:
    """Huber's weights about a profile, and the scatter; the profile is searched on a grid, so a robust `least_squares` has no place."""
    off = np.abs(y - fit.brightness(depth, role))
    scale = max(1.4826 * float(np.median(off)), 0.01)
    return np.minimum(1.0, OPTIONS.huber * scale / np.maximum(off, 1e-9)), scale


def measure_surface_layer(
    rng: np.random.Generator, columns: Columns, cations: CationLattice, *, bootstraps: int = 300, drawn_nm: np.ndarray | None = None
) -> SurfaceLayer:
    """Thickness and kind of the transformed layer of a layered oxide, from the brightness of its cation columns.

    Parameters
    ----------
    rng
        For the resampling.
    columns, cations
        From `measure_columns` and `cation_lattice`.
    bootstraps
        Resamplings of blocks along the surface.
    drawn_nm
        Points (k, 2) of the edge in the crystal plane, drawn by hand (`drawn_contour`); None finds the edge.

    Returns
    -------
    SurfaceLayer

    Raises
    ------
    EmphaseError
        Where the image holds no vacuum, so that there is no surface to measure from, or no layered bulk.

    Notes
    -----
    The edge of the crystal is the curve that parts occupied from empty places of the lattice, so half a column spacing outside the
    outermost columns; the brightness of the four kinds of columns against depth follows one share
    0.5 erfc((depth − thickness)/(√2 width)). A layer is reported where it explains the columns better than none does (by F a level) and
    fills lithium columns (`LayerOptions`). The interval comes from resampling blocks along the surface, with the error
    of the edge added.
    """
    contour: SurfaceContour | None
    if drawn_nm is not None:
        contour = drawn_contour(columns, drawn_nm, cations.spacing_nm)
    else:
        contour = surface_contour(columns, cations.spacing_nm)
        if contour is None:
            raise EmphaseError("the image shows no vacuum: every place of the lattice holds a column, there is no surface to measure from")
        _check_vacuum(columns, contour)
    level_of, fit = columns, None
    old_level = columns.height / np.where(columns.brightness == 0, 1.0, columns.brightness)
    for iteration in range(OPTIONS.rounds):
        along, depth, faced = contour.places(columns.nm)
        inside = faced & (depth > 0) & (columns.present | ~columns.is_metal) & (np.abs(level_of.brightness) < 2)
        seen = depth.max() if fit is None else fit.thickness
        reach = min(seen, OPTIONS.first_depth_nm) if fit is None else seen
        layer_weight = np.where(inside, OPTIONS.first_weight + transformed_share(depth, reach, OPTIONS.first_width_nm), 0.0)
        role = _roles(level_of, layer_weight)
        fit, weights, scale = _fitted(depth[inside], level_of.brightness[inside], role[inside])
        expected = np.zeros(len(depth))
        expected[inside] = fit.brightness(depth[inside], role[inside])
        level = _metal_level(columns.nm, columns.height, columns.present & inside & columns.is_metal, expected)
        level_of = replace(columns, brightness=columns.height / level, noise=columns.noise * old_level / level)
        lithium_seen = (fit.levels[2:, 1] > OPTIONS.visible_lithium)[np.maximum(role - 2, 0)] & (role >= 2)
        visible = columns.is_metal | (lithium_seen & (depth < OPTIONS.visible_depth * fit.thickness))
        if iteration < OPTIONS.rounds - 1 and drawn_nm is None:
            contour = surface_contour(columns, cations.spacing_nm, visible) or contour
    assert fit is not None
    return _layer_from(rng, _Surface(level_of, contour, along, depth, inside, role), _Fit(fit, weights, scale), bootstraps)


def _check_vacuum(columns: Columns, contour: SurfaceContour) -> None:
    """`EmphaseError` where the lattice ends but the image stays bright: another grain or a support is not a surface."""
    if contour.open.mean() > OPTIONS.least_open:
        return
    empty = _connected(columns.index, ~columns.present & columns.is_metal)
    outside, crystal = float(np.median(columns.surroundings[empty])), float(np.median(columns.surroundings[columns.present]))
    raise EmphaseError(
        f"the lattice ends inside the image, but beyond it the image has {outside:.3g} counts where the crystal has {crystal:.3g}: "
        "another grain or a support, no vacuum to measure a surface from"
    )


def _check_bulk(fit: _Profile, depth: np.ndarray, role: np.ndarray, has_layer: bool) -> None:
    """`EmphaseError` where the deepest columns that the image shows are not those of the layered structure, or none lie below a layer."""
    deep = int(np.sum((role >= 2) & (depth > fit.thickness + fit.width)))
    bright, dim = float(fit.levels[2, 0]), float(fit.levels[3, 0])
    if (has_layer and deep < OPTIONS.least_bulk) or bright - dim > OPTIONS.most_bulk_alternation or bright > OPTIONS.most_bulk_lithium:
        raise EmphaseError(
            f"no layered bulk below the surface: lithium columns hold {max(dim, 0.0):.2f} and {max(bright, 0.0):.2f} of a metal column "
            f"in the deepest {deep} that the image shows, expected less than {OPTIONS.most_bulk_lithium:g}, alike to "
            f"{OPTIONS.most_bulk_alternation:g}, in {OPTIONS.least_bulk} or more; the transformed region fills the image"
        )


def _fitted(depth: np.ndarray, y: np.ndarray, role: np.ndarray) -> tuple[_Profile, np.ndarray, float]:
    """The profile over all columns, their robust weights and the scatter about it."""
    weights = np.ones((1, len(y)))
    (first, last, step), (reach, fine) = OPTIONS.coarse_nm, OPTIONS.fine_nm
    fit = _fit_profile(depth, y, role, weights, np.arange(first, max(last, OPTIONS.deepest * depth.max()), step))[0]
    for _ in range(OPTIONS.rounds):
        near = fit.thickness + np.arange(-reach, reach + fine / 4, fine)
        fit = _fit_profile(depth, y, role, weights, near[near > OPTIONS.thinnest_nm])[0]
        robust, scale = _robust_weights(depth, y, role, fit)
        weights = robust[None]
    return fit, weights[0], scale


def _stands_out(fit: _Profile, d: np.ndarray, y: np.ndarray, r: np.ndarray, weights: np.ndarray) -> bool:
    """Whether a layer explains brightness ``y`` of columns of roles ``r`` at depths ``d`` better than none, and fills lithium columns."""
    flat = sum(
        float(np.sum(weights[r == k] * (y[r == k] - np.average(y[r == k], weights=weights[r == k])) ** 2))
        for k in range(4)
        if np.any(r == k)
    )
    gain = (flat - fit.misfit) / 6 / max(fit.misfit / max(len(y) - 10, 1), 1e-12)
    change = fit.levels[:, 1] - fit.levels[:, 0]
    filled = (r >= 2) & (d < fit.thickness)
    rise = float((y - fit.levels[r, 0])[filled].mean()) if filled.sum() > 3 else 0.0
    return bool(
        gain > OPTIONS.least_gain and fit.thickness > OPTIONS.least_limit_nm and min(rise, float(change[2:].mean())) > OPTIONS.least_rise
    )


def _resampled_profiles(
    rng: np.random.Generator,
    fit: _Profile,
    weights: np.ndarray,
    along: np.ndarray,
    d: np.ndarray,
    y: np.ndarray,
    r: np.ndarray,
    draws: int,
) -> tuple[list[_Profile], int]:
    """Profiles about ``fit`` for blocks ``along`` (n,) the surface drawn with replacement, and the number of blocks."""
    blocks = np.floor((along - along.min()) / max(OPTIONS.block_nm, float(np.ptp(along)) / OPTIONS.most_blocks)).astype(int)
    count = int(blocks.max()) + 1
    drawn = rng.multinomial(count, np.full(count, 1 / count), size=draws)
    reach, step, least = OPTIONS.resampled_nm
    near = fit.thickness + np.arange(-reach, reach + step / 3, step)
    shallow = d < fit.thickness + OPTIONS.resampled_depth_nm
    return _fit_profile(d[shallow], y[shallow], r[shallow], (drawn[:, blocks] * weights)[:, shallow], near[near > least]), count


def _alternation(levels: np.ndarray) -> np.ndarray:
    """Contrast between full and half columns in the metal rows of a layer, of levels (..., 4, 2)."""
    return (levels[..., 0, 1] - levels[..., 1, 1]) / (levels[..., 0, 1] + levels[..., 1, 1])


class _Fit(NamedTuple):
    """A profile, the robust weights (n,) of the columns inside and their scatter about it."""

    profile: _Profile
    weights: np.ndarray
    scale: float


class _Surface(NamedTuple):
    """Columns against a contour: position along it and depth below it in nm, whether they are used, and their roles; all (n,)."""

    columns: Columns
    contour: SurfaceContour
    along: np.ndarray
    depth: np.ndarray
    inside: np.ndarray
    role: np.ndarray


def _layer_from(rng: np.random.Generator, surface: _Surface, fitted: _Fit, bootstraps: int) -> SurfaceLayer:
    """The fitted profile as a layer or as none, with intervals by resampling blocks along the surface."""
    columns, contour, along, depth, inside, role = surface
    fit, weights, scale = fitted
    d, y, r = depth[inside], columns.brightness[inside], role[inside]
    seen = (contour, columns, along, depth, np.where(inside, role, -1))
    has_layer = _stands_out(fit, d, y, r, weights)
    _check_bulk(fit, d, r, has_layer)
    if not has_layer:
        limit = max(_upper_limit(d, y, r, weights, scale) + 2 * contour.error_nm, OPTIONS.least_limit_nm)
        nothing = np.column_stack([fit.levels[:, 0]] * 2)
        return SurfaceLayer(0.0, (0.0, limit), limit, "none", fit.width, nothing, (0.0, 0.0), (0.0, 0.0), *seen)
    fits, count = _resampled_profiles(rng, fit, weights, along[inside], d, y, r, bootstraps)
    found, levels = np.array([f.thickness for f in fits]), np.array([f.levels for f in fits])
    slope = np.gradient(contour.edge(contour.length_nm), contour.length_nm)
    direction = 0.5 * fit.thickness * float(np.mean(slope**2))  # along which normal: that of the base line or that of its waves
    spread = math.hypot(float(found.std()) * math.sqrt(count / max(count - 1, 1)), math.sqrt(2) * contour.error_nm, direction)
    half = 1.96 * spread * (1 + OPTIONS.few_blocks / max(count - 1, 1))
    ci = (max(0.0, float(fit.thickness - half)), float(fit.thickness + half))
    alternation = (float(_alternation(fit.levels)), float(_alternation(levels).std()))
    lithium = (float(fit.levels[2:, 1].mean()), float(levels[:, 2:, 1].mean(axis=1).std()))
    return SurfaceLayer(fit.thickness, ci, ci[1], _kind(alternation), fit.width, fit.levels, alternation, lithium, *seen)


def _kind(alternation: tuple[float, float]) -> str:
    """Spinel alternates full and half columns in its metal rows (1/3), rocksalt does not (0); between them, undecided."""
    value, error = alternation
    if value - 1.96 * error > OPTIONS.spinel_above:
        return "spinel"
    return "rocksalt" if value + 1.96 * error < OPTIONS.rocksalt_below else "undecided"


def _upper_limit(depth: np.ndarray, y: np.ndarray, role: np.ndarray, weights: np.ndarray, scale: float) -> float:
    """The thickest layer with a quarter of a metal column in its lithium columns that the columns do not rule out (95 %)."""
    lithium = role >= 2
    d, v, w = depth[lithium], y[lithium], weights[lithium]
    base = float(np.average(v, weights=w))
    most, step = OPTIONS.limit_nm
    trial = np.arange(0.0, most, step)
    inner = transformed_share(d[:, None], trial[None], OPTIONS.limit_width_nm)
    misfit = np.sum(w[:, None] * ((v[:, None] - base - (OPTIONS.limit_level - base) * inner) / scale) ** 2, axis=0)
    allowed = trial[misfit < misfit.min() + OPTIONS.limit_chi2]
    return float(allowed.max()) + step
