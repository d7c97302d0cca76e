"""HAADF images of a layered oxide LiMO2 along [100] with a transformed layer at its surface.

The columns of the crystal are laid out in the frame of the scan: rows of metal columns alternate with rows of lithium columns, which hold
metal where the surface has transformed. Spinel leaves half of the metal sites half full and half of the lithium sites empty, M3O4 fills
tetrahedral sites too, rocksalt fills the lithium columns. An image is the sum of the columns, each a Gaussian core with the halo of the
probe (Kirkland, *Advanced Computing in Electron Microscopy*, 2010), brighter where the wedge-shaped crystal is thicker, on a haze of the
crystal and of contamination; drift shears and stretches the scan, and its lines jitter. Counts are Poisson. The transition is a logistic
step of the depth below the edge, which is a sum of waves; the truth is the depth at which half of every column is transformed.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from ..errors import EmphaseError

_KINDS = ("spinel", "spinel_m3o4", "rocksalt", "none")


@dataclass(frozen=True)
class HaadfConditions:
    """What a simulated HAADF image shows besides its layer: the specimen and the error of the scale."""

    #: The true pixel is larger than the stated one by this share; None draws it with a standard deviation of 0.025.
    pixel_size_error: float | None = None
    #: Part of the image that is vacuum, negative where the edge lies outside.
    vacuum_share: float = 0.22
    #: Height of the waves of the edge (standard deviation), nm.
    roughness_nm: float = 0.15
    #: Share of metal in the lithium columns of the bulk.
    antisite: float = 0.03
    #: Width of the transition (standard deviation of the logistic step), nm.
    width_nm: float = 0.12
    #: a and c of the hexagonal cell of the bulk, LiMO2.
    cell_nm: tuple[float, float] = (0.2867, 1.422)


@dataclass(frozen=True)
class _Model:
    """What is the same in every image."""

    oxygen_nm: tuple[float, float] = (0.103, 0.166)  # of an oxygen column from its metal column: z 0.2585 of LiMO2, and a/sqrt(3)
    oxygen_strength: float = 0.11  # of a full metal column: about (8/28)^1.7, the ratio of the atomic numbers
    antisite_spread: float = 0.02  # of the metal of lithium columns, from column to column
    uneven_layer: float = 0.15  # of the transformed share of a column where half is transformed, from column to column
    scale_error: float = 0.025  # standard deviation of the error of a stated pixel size
    brightness_scatter: float = 0.04  # of a column, by its height and strain
    edge_and_wedge: tuple[float, float] = (0.55, 0.45)  # of the full brightness: at the thin edge, and what the wedge adds
    wedge_nm: float = 2.5  # depth over which the crystal grows to its full thickness
    probe_sigma_nm: tuple[float, float] = (0.052, 0.062)  # of a column's core, with probe and vibration
    core_and_halo: tuple[float, float] = (0.82, 0.18)  # of a column's peak; the halo is the tails of an aberrated probe
    halo_width: float = 2.2  # of the tails, in units of the core
    edge_tilt_deg: float = 12.0  # of the surface against the lines of the scan, at most
    edge_waves: int = 4  # of 1.5 to 6 nm length, that make up the roughness of the edge
    scan_distortion: float = 0.006  # standard deviation of shear and stretch by slow drift
    line_jitter_px: float = 0.03  # step of the random walk of the lines


_MODEL = _Model()


class _Columns(NamedTuple):
    """Columns of the simulated crystal: places (n, 2) in nm in the frame of the scan, strengths (full metal 1) and depths (n,) in nm."""

    nm: np.ndarray
    strength: np.ndarray
    depth: np.ndarray


class _Sites(NamedTuple):
    """Sites of the cation rows in the crystal's frame: row and column numbers (n,), places (n, 2) in nm, and the steps of a cell in nm."""

    i: np.ndarray
    j: np.ndarray
    nm: np.ndarray
    row: np.ndarray
    up: np.ndarray


class _Layer(NamedTuple):
    """The layer of an image: its thickness in nm (0 for none) and its kind."""

    thickness_nm: float
    kind: str


def _sites(cell_nm: tuple[float, float], field_nm: np.ndarray) -> _Sites:
    """Cation sites of the projected bulk about the origin, enough for any rotation of the field."""
    a, c = cell_nm
    row, up = np.array([0.0, a * math.sqrt(3) / 2]), np.array([c / 6, a * math.sqrt(3) / 6])
    reach = int(np.hypot(*field_nm) / 0.2) + 4
    i, j = (g.ravel() for g in np.meshgrid(np.arange(-reach, reach + 1), np.arange(-reach, reach + 1), indexing="ij"))
    plane = i[:, None] * row + j[:, None] * up
    keep = np.linalg.norm(plane, axis=1) < np.hypot(*field_nm) * 0.6
    return _Sites(i[keep], j[keep], plane[keep], row, up)


def _step(x: np.ndarray) -> np.ndarray:
    """A soft step from 1 to 0 about x = 0 (logistic, with the standard deviation of a unit normal)."""
    return 1 / (1 + np.exp(np.clip(x * math.pi / math.sqrt(3), -50, 50)))


def _transformed_metal(rng: np.random.Generator, i: np.ndarray, j: np.ndarray, kind: str) -> np.ndarray:
    """Metal in the columns of the transformed structure, 1 being a full column."""
    if kind == "rocksalt":
        filled = rng.uniform(0.6, 1.0)
        return np.where(j % 2 == 0, 1.0, np.clip(rng.normal(filled, 0.06, len(j)), 0, 1.1))
    return np.where(j % 2 == 0, np.where(i % 2 == 0, 1.0, 0.5), np.where(i % 2 == 0, 0.5, 0.0))


def _metal(
    rng: np.random.Generator, sites: _Sites, depth: np.ndarray, layer: _Layer, conditions: HaadfConditions
) -> tuple[np.ndarray, np.ndarray]:
    """Transformed share (n,) of the cation columns, and the metal (n,) that they hold, 1 being a full column."""
    i, j = sites.i, sites.j
    share = _step((depth - layer.thickness_nm) / conditions.width_nm) if layer.thickness_nm > 0 else np.zeros(len(depth))
    if layer.thickness_nm > 0:
        share = np.clip(share + _MODEL.uneven_layer * np.sqrt(share * (1 - share)) * rng.normal(size=len(share)), 0, 1)
    antisite = conditions.antisite
    lithium = np.clip(rng.normal(antisite, _MODEL.antisite_spread, len(j)), 0, 1)
    metal = (j % 2 == 0) * (1 - antisite) + (j % 2 == 1) * lithium
    return share, (1 - share) * metal + share * _transformed_metal(rng, i, j, layer.kind)


def _wavy_edge(rng: np.random.Generator, field_nm: np.ndarray, conditions: HaadfConditions) -> Callable[[np.ndarray], np.ndarray]:
    """Depth below a wavy edge, as a function of places (n, 2) in nm."""
    tilt = math.radians(rng.uniform(-_MODEL.edge_tilt_deg, _MODEL.edge_tilt_deg))
    normal = np.array([math.sin(tilt), math.cos(tilt)])
    along = np.array([normal[1], -normal[0]])
    waves = [(rng.uniform(1.5, 6.0), rng.uniform(0, 2 * math.pi)) for _ in range(_MODEL.edge_waves)]
    height = conditions.roughness_nm / math.sqrt(len(waves) / 2)
    offset = np.array([0.5, conditions.vacuum_share]) * field_nm

    def depth(nm: np.ndarray) -> np.ndarray:
        """Depth (n,) in nm of places (n, 2)."""
        s = (nm - offset) @ along
        return (nm - offset) @ normal - height * sum(np.sin(2 * math.pi * s / length + phase) for length, phase in waves)

    return depth


def _crystal_columns(
    rng: np.random.Generator, field_nm: np.ndarray, rotation_deg: float, layer: _Layer, conditions: HaadfConditions
) -> _Columns:
    """All columns of the simulated crystal that reach into the field."""
    sites = _sites(conditions.cell_nm, field_nm)
    side = np.where(sites.j % 2 == 0, 1, -1)
    oxygen = sites.nm + np.array([_MODEL.oxygen_nm[0] * side, _MODEL.oxygen_nm[1] * side]).T * np.ones((len(sites.j), 1))
    angle = math.radians(rotation_deg)
    turn = np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
    centre, moved = field_nm / 2, rng.uniform(-0.2, 0.2, 2)
    place = lambda p: p @ turn + centre + moved
    edge = _wavy_edge(rng, field_nm, conditions)
    depth = edge(place(sites.nm))
    share, metal = _metal(rng, sites, depth, layer, conditions)
    parts = [(place(sites.nm), metal, depth), (place(oxygen), np.full(len(oxygen), _MODEL.oxygen_strength), edge(place(oxygen)))]
    if layer.kind == "spinel_m3o4":
        empty = (share > 0.02) & (sites.i % 2 == 1) & (sites.j % 2 == 1)
        for step in (-0.25, 0.25):
            tetrahedral = place(sites.nm[empty] + step * (sites.row + sites.up))
            parts.append((tetrahedral, 0.5 * share[empty], edge(tetrahedral)))
    nm, strength, depth = (np.concatenate(values) for values in zip(*parts, strict=True))
    seen = (depth > 0) & np.all((nm > -0.4) & (nm < field_nm + 0.4), axis=1)
    return _Columns(nm[seen], strength[seen], depth[seen])


def _scan_places(rng: np.random.Generator, px: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """Where the scan puts columns: sheared and stretched by drift, lines jittering by a slow random walk."""
    shear, stretch = rng.normal(0, _MODEL.scan_distortion, 2)
    walk = np.cumsum(rng.normal(0, _MODEL.line_jitter_px, shape[0] + 64))
    walk -= np.linspace(walk[0], walk[-1], len(walk))
    line = np.clip(np.rint(px[:, 0]).astype(int) + 32, 0, len(walk) - 1)
    y = (px[:, 0] - shape[0] / 2) * (1 + stretch) + shape[0] / 2
    return np.stack([y, px[:, 1] + shear * (px[:, 0] - shape[0] / 2) + walk[line]], axis=1)


def _rendered_columns(shape: tuple[int, int], px: np.ndarray, bright: np.ndarray, sigma_px: float) -> np.ndarray:
    """The sum of all columns: a Gaussian core and a wider halo of the probe."""
    image = np.zeros(shape)
    half = int(4 * sigma_px) + 2
    offsets = np.arange(-half, half + 1)
    core_share, halo_share = _MODEL.core_and_halo
    for (y, x), b in zip(px, bright, strict=True):
        y0, x0 = round(y), round(x)
        ys, xs = offsets + y0, offsets + x0
        iy, ix = (ys >= 0) & (ys < shape[0]), (xs >= 0) & (xs < shape[1])
        if not (iy.any() and ix.any()):
            continue
        dy2, dx2 = (ys[iy] - y) ** 2, (xs[ix] - x) ** 2
        core = np.exp(-dy2 / (2 * sigma_px**2))[:, None] * np.exp(-dx2 / (2 * sigma_px**2))
        halo = 1 / (1 + (dy2[:, None] + dx2) / (_MODEL.halo_width * sigma_px) ** 2) ** 2.5
        image[np.ix_(ys[iy], xs[ix])] += b * (core_share * core + halo_share * halo)
    return image


def _haze(rng: np.random.Generator, shape: tuple[int, int], px: np.ndarray, pixel_nm: float) -> np.ndarray:
    """Diffuse signal: of the crystal itself, growing inwards, and of amorphous contamination on its edge."""
    from scipy.ndimage import gaussian_filter

    grid = np.zeros(shape)
    y, x = np.clip(np.rint(px).astype(int), 0, np.array(shape) - 1).T
    np.add.at(grid, (y, x), 1.0)
    solid = gaussian_filter(grid, 0.25 / pixel_nm)
    solid /= max(float(solid.max()), 1e-12)
    near = gaussian_filter((solid > 0.3).astype(float), 0.8 / pixel_nm)
    patchy = gaussian_filter(rng.normal(size=shape), 0.5 / pixel_nm)
    patchy = 1 + 0.5 * patchy / max(float(patchy.std()), 1e-12)
    return 0.015 + 0.18 * solid + rng.uniform(0.02, 0.10) * np.clip(near * (1.2 - near) * 2.5, 0, 1) * np.clip(patchy, 0, 2)


def haadf_image(
    rng: np.random.Generator,
    shape: tuple[int, int] = (512, 512),
    pixel_size_nm: float = 0.0125,
    layer_nm: float = 2.0,
    kind: str = "spinel",
    rotation_deg: float = 20.0,
    counts_per_px: float = 40.0,
    conditions: HaadfConditions = HaadfConditions(),
) -> tuple[np.ndarray, dict]:
    """HAADF image of a layered oxide along [100]hex with a transformed layer at its surface, and its truth.

    Parameters
    ----------
    rng
        All that is random is drawn from it.
    shape
        Of the image, (y, x).
    pixel_size_nm
        The pixel size that the file states; the true one is larger by ``conditions.pixel_size_error``.
    layer_nm
        Thickness from the crystal's edge to where half of every column is transformed; 0 for "none".
    kind
        "spinel" (LiM2O4), "spinel_m3o4", "rocksalt" (lithium columns hold 0.6 to 1 of the metal) or "none".
    rotation_deg
        Angle of the (003) planes with the lines of the image; the surface has an angle independent of it.
    counts_per_px
        Mean counts on top of a full metal column in the bulk.
    conditions
        The specimen and the error of the scale.

    Returns
    -------
    image : ndarray of uint16
        Counts (y, x).
    truth : dict
        ``thickness_nm``, ``kind`` ("spinel", "rocksalt" or "none"), ``variant`` (the ``kind`` as given), ``pixel_size_nm`` (true),
        ``pixel_size_stated_nm``, ``rotation_deg`` and ``counts_per_px``.

    Raises
    ------
    EmphaseError
        For another ``kind``.

    Notes
    -----
    Columns are a core with long tails, oxygen is there, the brightness of each column scatters by 4 %, the crystal thins towards its
    edge, lines jitter and drift shears them, and a contamination haze lies over edge and vacuum.
    """
    if kind not in _KINDS:
        raise EmphaseError(f"haadf_image: kind: got {kind!r}, expected spinel, spinel_m3o4, rocksalt or none")
    thickness = 0.0 if kind == "none" else float(layer_nm)
    error = float(rng.normal(0, _MODEL.scale_error)) if conditions.pixel_size_error is None else conditions.pixel_size_error
    true_pixel = pixel_size_nm * (1 + error)
    columns = _crystal_columns(rng, np.array(shape) * true_pixel, rotation_deg, _Layer(thickness, kind), conditions)
    px = _scan_places(rng, columns.nm / true_pixel, shape)
    edge, wedge = _MODEL.edge_and_wedge
    bright = columns.strength * (edge + wedge * (1 - np.exp(-np.maximum(columns.depth, 0) / _MODEL.wedge_nm)))
    bright = bright * rng.normal(1, _MODEL.brightness_scatter, len(px))
    image = _rendered_columns(shape, px, bright, sigma_px=rng.uniform(*_MODEL.probe_sigma_nm) / true_pixel)
    image = counts_per_px * (image + _haze(rng, shape, px, true_pixel))
    counts = rng.poisson(np.maximum(image, 0)).astype(np.uint16)
    return counts, {
        "thickness_nm": thickness,
        "kind": "spinel" if kind == "spinel_m3o4" else kind if thickness > 0 else "none",
        "variant": kind,
        "pixel_size_nm": true_pixel,
        "pixel_size_stated_nm": pixel_size_nm,
        "rotation_deg": float(rotation_deg),
        "counts_per_px": float(counts_per_px),
    }
