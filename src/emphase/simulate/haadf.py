"""TODO."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from ..errors import EmphaseError

_HAADF_CELL_NM = (0.2867, 1.422)  # layered a and c, the bulk of every simulated image


def haadf_image(
    rng: np.random.Generator,
    shape: tuple[int, int] = (512, 512),
    pixel_size_nm: float = 0.0125,
    layer_nm: float = 2.0,
    kind: str = "spinel",
    rotation_deg: float = 20.0,
    counts_per_px: float = 40.0,
    *,
    pixel_size_error: float | None = None,
    vacuum_share: float = 0.22,
    roughness_nm: float = 0.15,
    antisite: float = 0.03,
    width_nm: float = 0.12,
) -> tuple[np.ndarray, dict]:
    """HAADF image of a layered oxide along [100]hex with a transformed layer at its surface, and its truth.

    Parameters
    ----------
    shape, pixel_size_nm
        Image (y, x) and the pixel that its file states; the true one is larger by ``pixel_size_error``
        (a share; None draws it with a standard deviation of 0.025).
    layer_nm
        Thickness from the crystal's edge to where half of every column is transformed; 0 for "none".
    kind
        "spinel" (LiM2O4), "spinel_m3o4", "rocksalt" (lithium columns hold 0.6 to 1 of the metal) or "none".
    rotation_deg
        Turn of the (003) planes against the image's lines; the surface turns on its own.
    counts_per_px
        Mean counts on top of a full metal column in the bulk.
    antisite, width_nm, roughness_nm, vacuum_share
        Share of metal in bulk lithium columns, width of the transition, height of the
        edge's waves (standard deviation) and the part of the image that is vacuum.

    Columns are a core with long tails, oxygen is there, each column's brightness scatters by 4 %, the crystal thins towards
    its edge, lines jitter and drift shears them, and a contamination haze lies over edge and vacuum.

    Returns
    -------
    Image (y, x) uint16, and a dict with ``thickness_nm``, ``kind`` ("spinel", "rocksalt" or "none"), ``variant`` (the
    kind as given), ``pixel_size_nm`` (true), ``pixel_size_stated_nm``, ``rotation_deg`` and ``counts_per_px``.
    `EmphaseError` for another ``kind``.
    """
    if kind not in ("spinel", "spinel_m3o4", "rocksalt", "none"):
        raise EmphaseError(f"haadf_image: kind: got {kind!r}, expected spinel, spinel_m3o4, rocksalt or none")
    thickness = 0.0 if kind == "none" else float(layer_nm)
    error = float(rng.normal(0, 0.025)) if pixel_size_error is None else pixel_size_error
    true_pixel = pixel_size_nm * (1 + error)
    field_nm = np.array(shape) * true_pixel
    nm, strength, depth = _haadf_columns(rng, field_nm, thickness, kind, rotation_deg, vacuum_share, roughness_nm, antisite, width_nm)
    px = _scan_places(rng, nm / true_pixel, shape)
    bright = strength * (0.55 + 0.45 * (1 - np.exp(-np.maximum(depth, 0) / 2.5))) * rng.normal(1, 0.04, len(px))
    image = _rendered_columns(shape, px, bright, sigma_px=rng.uniform(0.052, 0.062) / true_pixel)
    image = counts_per_px * (image + _haze(rng, shape, px, depth, true_pixel))
    counts = rng.poisson(np.maximum(image, 0)).astype(np.uint16)
    truth = {
        "thickness_nm": thickness,
        "kind": "spinel" if kind == "spinel_m3o4" else kind if thickness > 0 else "none",
        "variant": kind,
        "pixel_size_nm": true_pixel,
        "pixel_size_stated_nm": pixel_size_nm,
        "rotation_deg": float(rotation_deg),
        "counts_per_px": float(counts_per_px),
    }
    return counts, truth


def _haadf_columns(
    rng: np.random.Generator,
    field_nm: np.ndarray,
    thickness: float,
    kind: str,
    rotation_deg: float,
    vacuum_share: float,
    roughness_nm: float,
    antisite: float,
    width_nm: float,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Places (n, 2) in nm, strengths and depths of all columns of the simulated crystal, in the frame of the scan."""
    a, c = _HAADF_CELL_NM
    row, up = np.array([0.0, a * math.sqrt(3) / 2]), np.array([c / 6, a * math.sqrt(3) / 6])
    reach = int(np.hypot(*field_nm) / 0.2) + 4
    i, j = (g.ravel() for g in np.meshgrid(np.arange(-reach, reach + 1), np.arange(-reach, reach + 1), indexing="ij"))
    plane = i[:, None] * row + j[:, None] * up
    keep = np.linalg.norm(plane, axis=1) < np.hypot(*field_nm) * 0.6
    i, j, plane = i[keep], j[keep], plane[keep]
    oxygen = plane + np.array([0.103 * np.where(j % 2 == 0, 1, -1), 0.166 * np.where(j % 2 == 0, 1, -1)]).T * np.ones((len(j), 1))
    angle = math.radians(rotation_deg)
    turn = np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
    centre, moved = field_nm / 2, rng.uniform(-0.2, 0.2, 2)
    place = lambda p: p @ turn + centre + moved
    edge = _edge_of(rng, field_nm, vacuum_share, roughness_nm)
    depth = edge(place(plane))
    share = _step((depth - thickness) / width_nm) if thickness > 0 else np.zeros(len(depth))
    if thickness > 0:
        share = np.clip(share + 0.15 * np.sqrt(share * (1 - share)) * rng.normal(size=len(share)), 0, 1)
    metal = (j % 2 == 0) * (1 - antisite) + (j % 2 == 1) * np.clip(rng.normal(antisite, 0.02, len(j)), 0, 1)
    metal = (1 - share) * metal + share * _transformed(rng, i, j, kind)
    places, strengths, depths = [place(plane), place(oxygen)], [metal, np.full(len(j), 0.11)], [depth, edge(place(oxygen))]
    if kind == "spinel_m3o4":
        empty = (share > 0.02) & (i % 2 == 1) & (j % 2 == 1)
        for side in (-0.25, 0.25):
            tetrahedral = place(plane[empty] + side * (row + up))
            places, strengths, depths = [*places, tetrahedral], [*strengths, 0.5 * share[empty]], [*depths, edge(tetrahedral)]
    nm, strength, depth = np.concatenate(places), np.concatenate(strengths), np.concatenate(depths)
    seen = (depth > 0) & np.all((nm > -0.4) & (nm < field_nm + 0.4), axis=1)
    return nm[seen], strength[seen], depth[seen]


def _step(x: np.ndarray) -> np.ndarray:
    """A soft step from 1 to 0 about x = 0 (logistic, with the standard deviation of a unit normal)."""
    return 1 / (1 + np.exp(np.clip(x * math.pi / math.sqrt(3), -50, 50)))


def _transformed(rng: np.random.Generator, i: np.ndarray, j: np.ndarray, kind: str) -> np.ndarray:
    """Metal in the columns of the transformed structure, 1 being a full column."""
    if kind == "rocksalt":
        filled = rng.uniform(0.6, 1.0)
        return np.where(j % 2 == 0, 1.0, np.clip(rng.normal(filled, 0.06, len(j)), 0, 1.1))
    return np.where(j % 2 == 0, np.where(i % 2 == 0, 1.0, 0.5), np.where(i % 2 == 0, 0.5, 0.0))


def _edge_of(rng: np.random.Generator, field_nm: np.ndarray, vacuum_share: float, roughness_nm: float) -> Any:
    """Depth below a wavy edge, as a function of places (n, 2) in nm."""
    tilt = math.radians(rng.uniform(-12, 12))
    normal = np.array([math.sin(tilt), math.cos(tilt)])
    along = np.array([normal[1], -normal[0]])
    waves = [(rng.uniform(1.5, 6.0), rng.uniform(0, 2 * math.pi)) for _ in range(4)]
    height = roughness_nm / math.sqrt(len(waves) / 2)
    offset = np.array([0.5, vacuum_share]) * field_nm

    def depth(nm: np.ndarray) -> np.ndarray:
        s = (nm - offset) @ along
        return (nm - offset) @ normal - height * sum(np.sin(2 * math.pi * s / length + phase) for length, phase in waves)

    return depth


def _scan_places(rng: np.random.Generator, px: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """Where the scan puts columns: sheared and stretched by drift, lines jittering by a slow random walk."""
    shear, stretch = rng.normal(0, 0.006, 2)
    walk = np.cumsum(rng.normal(0, 0.03, shape[0] + 64))
    walk -= np.linspace(walk[0], walk[-1], len(walk))
    line = np.clip(np.rint(px[:, 0]).astype(int) + 32, 0, len(walk) - 1)
    y = (px[:, 0] - shape[0] / 2) * (1 + stretch) + shape[0] / 2
    return np.stack([y, px[:, 1] + shear * (px[:, 0] - shape[0] / 2) + walk[line]], axis=1)


def _rendered_columns(shape: tuple[int, int], px: np.ndarray, bright: np.ndarray, sigma_px: float) -> np.ndarray:
    """The sum of all columns: three quarters a Gaussian core, one quarter a wider halo of the probe."""
    image = np.zeros(shape)
    half = int(4 * sigma_px) + 2
    offsets = np.arange(-half, half + 1)
    for (y, x), b in zip(px, bright, strict=True):
        y0, x0 = round(y), round(x)
        ys, xs = offsets + y0, offsets + x0
        iy, ix = (ys >= 0) & (ys < shape[0]), (xs >= 0) & (xs < shape[1])
        if not (iy.any() and ix.any()):
            continue
        dy2, dx2 = (ys[iy] - y) ** 2, (xs[ix] - x) ** 2
        core = np.exp(-dy2 / (2 * sigma_px**2))[:, None] * np.exp(-dx2 / (2 * sigma_px**2))
        halo = 1 / (1 + (dy2[:, None] + dx2) / (2.2 * sigma_px) ** 2) ** 2.5
        image[np.ix_(ys[iy], xs[ix])] += b * (0.82 * core + 0.18 * halo)
    return image


def _haze(rng: np.random.Generator, shape: tuple[int, int], px: np.ndarray, depth: np.ndarray, pixel_nm: float) -> np.ndarray:
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
