"""Heights of the cation columns of a layered oxide, relative to a full metal column nearby.

The cation lattice is that which layered, spinel and rocksalt structures share along [100]hex ∥ ⟨110⟩cubic. A Gaussian of one width for
every column, its neighbours and a sloping background are fitted together in a window around each column (linear least squares), so that
neighbours do not add to it. The reference is the local plane through the brighter of the metal columns around.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import product

import numpy as np

from ..crystals import direction_name
from ..errors import EmphaseError
from .image_lattice import ImageLattice, _refined_positions, _sites_in
from .profiles import _local_level
from .projection import ProjectedColumns
from .spectrum import _angle, _band_passed, _binned, _binning


@dataclass(frozen=True)
class ColumnOptions:
    """Tuning of `measure_columns`; lengths are in spacings of columns, levels in full metal columns."""

    heavy_brightness: float = 0.4  # of the brightest column, of one that is called heavy
    angles_deg: tuple[float, float] = (65.0, 76.0)  # between the steps of the cation lattice along <110>: 70.5 in a cubic one
    window: float = 1.15  # radius in which a column is fitted: its next neighbours stand inside, those after them outside
    neighbours: int = 12  # of a column that are fitted with it, ...
    neighbours_within: float = 2.1  # ... and how far they may be: those whose flanks reach into the window
    ridge: float = 1e-3  # of the normal equations: places over the edge of the image have no pixels
    widths: tuple[float, float] = (0.1, 0.45)  # of a column, that are tried
    band: tuple[float, float] = (0.12, 1.2)  # widths between which an image is passed before places are refined
    search: tuple[float, float] = (0.2, 0.25)  # width and reach of the refinement of a place
    margin: float = 0.45  # at the border of an image, where columns are cut
    strong_level: float = 0.3  # of bright places: metal columns, which set the width
    least_columns: int = 30  # strong ones, for the width and level of a column to be known
    reference_percentile: float = 60.0  # of the heights of strong columns: a layer at the surface lowers the others
    noise_excess: float = 1.5  # of the scatter of heights over that of counts: neighbours and background are fitted too
    occupied: tuple[float, float] = (0.28, 0.2)  # least height of a column that is there: at first, and against the level about it
    least_of_full: float = 0.08  # of the image's reference, also where the level about it is low
    clear_noise: float = 4.0  # standard errors, of a column that is there
    level_reach_nm: float = 0.7  # over which the height of full columns is a plane
    surroundings: float = 1.2  # over which the counts about a column are averaged


OPTIONS = ColumnOptions()


@dataclass(frozen=True)
class CationLattice:
    """The lattice that metal and lithium columns of the layered structure share with rocksalt and spinel.

    ``steps`` (2, 2): two translations A, S of it as rows, in the basis of the layered projection; A runs
    inside a metal layer, S from a metal column to a lithium one, and A + S is the long diagonal. The
    column i A + j S is of metal where j is even. A spinel repeats over 2A and 2S: its four
    columns (i mod 2, j mod 2) hold 1, 1/2, 1/2 and 0 of the metal, its 8a columns stand a quarter of
    A + S on either side of the empty one.
    """

    steps: np.ndarray
    steps_nm: np.ndarray

    @property
    def spacing_nm(self) -> float:
        """Mean distance of neighbouring columns."""
        return float(np.linalg.norm(self.steps_nm, axis=1).mean())


def cation_lattice(columns: ProjectedColumns, filling: str = "Li") -> CationLattice:
    """Cation lattice that layered, spinel and rocksalt structures share, from the projected columns of a layered oxide.

    Parameters
    ----------
    columns
        From `project_columns`.
    filling
        The element between the metal layers, whose columns fill with metal where the oxide transforms.

    Returns
    -------
    CationLattice

    Raises
    ------
    EmphaseError
        Where the zone axis does not show it: metal and filling columns have to be apart, two steps from one to the other making a
        lattice step, as along [100]hex, which is <110> of the cubic phases.
    """
    axis = direction_name(columns.zone_axis)
    empty = [k for k, e in enumerate(columns.elements) if e == filling]
    heavy = [k for k, b in enumerate(columns.brightness) if b > OPTIONS.heavy_brightness]
    if len(empty) != 1 or len(heavy) != 1:
        raise EmphaseError(
            f"zone axis {axis} of {columns.name} does not show {filling} columns apart from metal columns: no layer can be measured there"
        )
    offset = columns.sites[empty[0]] - columns.sites[heavy[0]]
    if not np.allclose(2 * offset, np.rint(2 * offset), atol=0.02):
        raise EmphaseError(
            f"zone axis {axis} of {columns.name}: metal and {filling} columns share no lattice: no layer can be measured there"
        )
    cells = np.array(list(product(range(-2, 3), repeat=2)))
    by_length = lambda v: v[np.argsort(np.round(np.linalg.norm(v @ columns.basis_nm, axis=1), 6), kind="stable")]
    a = by_length(cells[np.any(cells != 0, axis=1)])[0].astype(float)
    s = by_length(cells + np.rint(2 * offset) / 2)[0]
    if np.dot(a @ columns.basis_nm, s @ columns.basis_nm) < 0:
        a = -a
    steps = np.array([a, s])
    steps_nm = steps @ columns.basis_nm
    angle = abs(math.degrees(_angle(steps_nm[0], steps_nm[1])))
    if not OPTIONS.angles_deg[0] < angle < OPTIONS.angles_deg[1]:
        raise EmphaseError(
            f"zone axis {axis} of {columns.name} is not along <110> of the cubic phases; spinel and rocksalt cannot be told apart there"
        )
    return CationLattice(steps, steps_nm)


def column_amplitudes(
    image: np.ndarray, positions: np.ndarray, sigma_px: float, spacing_px: float, wanted: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Heights of columns and the background under them, neighbours and a sloping background fitted together with each.

    Parameters
    ----------
    image
        (y, x), counts.
    positions
        (n, 2) px of all columns; they may reach over the edge of the image.
    sigma_px, spacing_px
        Width of a column (`column_width`), and the distance of neighbours.
    wanted
        (n,), true for the m columns inside that are measured.

    Returns
    -------
    heights, backgrounds : ndarray
        (m,) in counts.

    Notes
    -----
    Linear least squares of Gaussians of one width in a round window of ``window`` spacings for every column.
    """
    from scipy.spatial import cKDTree

    half = round(OPTIONS.window * spacing_px)
    padded = np.pad(image, half + 1, constant_values=np.nan)
    _, neighbours = cKDTree(positions).query(
        positions[wanted], k=min(OPTIONS.neighbours, len(positions)), distance_upper_bound=OPTIONS.neighbours_within * spacing_px
    )
    far = np.concatenate([positions, [[-1e6, -1e6]]])
    offsets = np.arange(-half, half + 1)
    taper = np.clip(1.2 - np.hypot(offsets[:, None], offsets) / half, 0, 1) * (np.hypot(offsets[:, None], offsets) <= half)
    places = positions[wanted]
    heights, grounds = np.empty(len(places)), np.empty(len(places))
    for begin_at in range(0, len(places), 256):
        part = slice(begin_at, begin_at + 256)
        corner = np.rint(places[part]).astype(int)
        window = padded[corner[:, 0, None, None] + offsets[:, None] + half + 1, corner[:, 1, None, None] + offsets + half + 1]
        away = far[neighbours[part]] - corner[:, None]
        bell_y = np.exp(-((offsets - away[..., :1]) ** 2) / (2 * sigma_px**2))
        bell_x = np.exp(-((offsets - away[..., 1:]) ** 2) / (2 * sigma_px**2))
        bells = bell_y[..., :, None] * bell_x[..., None, :]
        plane = np.broadcast_to(np.stack(np.broadcast_arrays(1.0, offsets[:, None] / half, offsets / half)), (len(corner), 3, *taper.shape))
        design = np.concatenate([bells, plane], axis=1).reshape(len(corner), -1, taper.size)
        known = np.isfinite(window).reshape(len(corner), 1, -1)
        window = np.nan_to_num(window)
        weighted = design * taper.ravel() * known
        normal = weighted @ design.transpose(0, 2, 1) + OPTIONS.ridge * np.eye(design.shape[1])
        found = np.linalg.solve(normal, weighted @ window.reshape(len(corner), -1, 1))[..., 0]
        heights[part], grounds[part] = found[:, 0], found[:, -3]
    return heights, grounds


def column_width(image: np.ndarray, positions: np.ndarray, spacing_px: float) -> float:
    """The width of a column, from the mean of many.

    Parameters
    ----------
    image
        (y, x), counts.
    positions
        (n, 2) px of strong columns; the first 400 are used.
    spacing_px
        Distance of neighbouring columns.

    Returns
    -------
    Standard deviation (px) of the Gaussian that fits the mean column best within half a spacing.
    """
    from scipy.ndimage import map_coordinates
    from scipy.optimize import minimize_scalar

    half = round(0.5 * spacing_px)
    grid = np.stack(np.meshgrid(*2 * [np.arange(-half, half + 1)], indexing="ij")).astype(float)
    mean = np.mean([map_coordinates(image, grid + p[:, None, None], order=1, mode="nearest") for p in positions[:400]], axis=0)
    inside = np.hypot(*grid) <= half

    def misfit(sigma: float) -> float:
        """Sum of squares left by a Gaussian of this width over a constant."""
        design = np.stack([np.exp(-(grid**2).sum(axis=0) / (2 * sigma**2))[inside], np.ones(inside.sum())], axis=1)
        return float(np.sum((mean[inside] - design @ np.linalg.lstsq(design, mean[inside], rcond=None)[0]) ** 2))

    return float(minimize_scalar(misfit, bounds=tuple(w * spacing_px for w in OPTIONS.widths), method="bounded").x)


def sublattice_heights(image: np.ndarray, lattice: ImageLattice, faintest: float = 0.2) -> dict[str, np.ndarray]:
    """Heights of all columns of each sublattice of a crystal, from an image of it alone.

    Parameters
    ----------
    image
        (y, x), counts.
    lattice
        From `find_image_lattice`.
    faintest
        Sublattices that are expected to be fainter, relative to the brightest, are left out.

    Returns
    -------
    Heights (n,) in counts, by the main element of each sublattice.
    """
    factor = _binning(lattice.scan()["pixel_size_nm"])
    image, lattice = _binned(image, factor), lattice.rescaled(1 / factor)
    seen = np.flatnonzero(lattice.columns.brightness >= faintest)
    cells, _ = _sites_in(image.shape, lattice.to_px, lattice.matrix, lattice.to_px(np.zeros((1, 2)))[0], 0.0)
    px = np.concatenate([lattice.to_px(cells + lattice.columns.sites[k]) for k in seen])
    kind = np.repeat(seen, len(cells))
    spacing = math.sqrt(abs(float(np.linalg.det(lattice.matrix))) / len(seen))
    wanted = np.all((px > 0.5 * spacing) & (px < np.array(image.shape) - 1 - 0.5 * spacing), axis=1)
    sigma = column_width(image, px[wanted & (kind == seen[0])], spacing)
    heights, _ = column_amplitudes(image, px, sigma, spacing, wanted)
    names = lattice.columns.elements
    return {n: heights[[names[k] == n for k in kind[wanted]]] for n in dict.fromkeys(names[k] for k in seen)}


@dataclass(frozen=True)
class Columns:
    """All cation columns inside an image, one row each.

    ``index`` (n, 2) i, j of `CationLattice`; ``px`` (n, 2); ``nm`` (n, 2) in the undistorted crystal plane;
    ``height`` and ``background`` in counts, ``surroundings`` the mean counts within some 0.3 nm; ``brightness``
    relative to a full metal column nearby, ``noise`` its standard error; ``present`` is false where the place is empty.
    """

    index: np.ndarray
    px: np.ndarray
    nm: np.ndarray
    height: np.ndarray
    background: np.ndarray
    brightness: np.ndarray
    noise: np.ndarray
    present: np.ndarray
    surroundings: np.ndarray

    @property
    def is_metal(self) -> np.ndarray:
        """Whether the place is in a metal layer of the layered structure."""
        return self.index[:, 1] % 2 == 0

    @property
    def kind(self) -> np.ndarray:
        """0 to 3: (i mod 2) + 2 (j mod 2), the four columns of a spinel."""
        return self.index[:, 0] % 2 + 2 * (self.index[:, 1] % 2)


def measure_columns(image: np.ndarray, lattice: ImageLattice, cations: CationLattice) -> Columns:
    """Heights of all cation columns of the lattice, relative to the full metal columns around them.

    Parameters
    ----------
    image
        (y, x), counts.
    lattice, cations
        From `find_image_lattice` and `cation_lattice`.

    Returns
    -------
    Columns

    Raises
    ------
    EmphaseError
        Where fewer than 30 columns stand in the image, or where it holds a second grain.
    """
    from scipy.ndimage import gaussian_filter

    if lattice.other_grain_deg is not None:
        raise EmphaseError(
            f"several grains: a part of the image shows the same lattice turned by {lattice.other_grain_deg:.0f}°; "
            "expected one grain and vacuum: crop the image to one grain"
        )

    factor = _binning(lattice.scan()["pixel_size_nm"])
    image, lattice = _binned(image, factor), lattice.rescaled(1 / factor)
    matrix = cations.steps @ lattice.matrix
    spacing = float(np.linalg.norm(matrix, axis=1).mean())
    to_px = lambda points: lattice.to_px(points @ cations.steps)
    index, px = _sites_in(image.shape, to_px, matrix, to_px(np.zeros((1, 2)))[0], -1.2 * spacing)
    seen = np.all((px >= OPTIONS.margin * spacing) & (px <= np.array(image.shape) - 1 - OPTIONS.margin * spacing), axis=1)
    smooth = _band_passed(image, OPTIONS.band[0] * spacing, OPTIONS.band[1] * spacing)
    metal = index[:, 1] % 2 == 0
    place, level = _refined_positions(smooth, px, OPTIONS.search[0] * spacing, OPTIONS.search[1] * spacing)
    strong = metal & seen & (level > OPTIONS.strong_level * np.percentile(level[metal & seen], 80))
    if strong.sum() < OPTIONS.least_columns:
        raise EmphaseError(f"{int(strong.sum())} columns stand in the image, expected {OPTIONS.least_columns} or more")
    sigma = column_width(image, place[strong], spacing)
    px = np.where(strong[:, None], 0.5 * (px + place), px)
    height, ground = column_amplitudes(image, px, sigma, spacing, seen)
    index, px, metal, strong = index[seen], px[seen], metal[seen], strong[seen]
    full = float(np.percentile(height[strong], OPTIONS.reference_percentile))
    nm = index @ cations.steps_nm
    noise = np.sqrt(np.maximum(ground + 0.6 * height, 0.02) / (4 * np.pi * sigma**2)) * OPTIONS.noise_excess
    present = _connected(index, height > OPTIONS.occupied[0] * full)
    for _ in range(2):
        level = _metal_level(nm, height, metal & present)
        present = _connected(
            index,
            (height > OPTIONS.occupied[1] * level)
            & (height > OPTIONS.least_of_full * full)
            & (height > OPTIONS.clear_noise * noise / factor),
        )
    around = gaussian_filter(image, OPTIONS.surroundings * spacing)[tuple(np.rint(px).astype(int).T)]
    return Columns(index, (px + 0.5) * factor - 0.5, nm, height, ground, height / level, noise / level / factor, present, around)


def _metal_level(nm: np.ndarray, height: np.ndarray, usable: np.ndarray, expected: np.ndarray | None = None) -> np.ndarray:
    """Height of a full metal column at every place: the local plane through the brighter of the neighbouring metal columns."""
    from scipy.spatial import cKDTree

    if expected is None:
        tree = cKDTree(nm[usable])
        _, near = tree.query(nm[usable], k=min(7, int(usable.sum())))
        brighter = height[usable] > 0.8 * np.sort(height[usable][near], axis=1)[:, -2]
        nm_ref, values = nm[usable][brighter], height[usable][brighter]
    else:
        good = usable & (expected > 0.3)
        nm_ref, values = nm[good], height[good] / expected[good]
    return np.maximum(_local_level(nm_ref, values, np.ones(len(values)), nm, OPTIONS.level_reach_nm), 0.2 * float(np.median(values)))


def _connected(index: np.ndarray, present: np.ndarray) -> np.ndarray:
    """Only the largest cluster of present columns: stray bright spots in the vacuum go; empty places inside the crystal stay empty."""
    from scipy.ndimage import binary_dilation, label

    low = index.min(axis=0)
    grid = np.zeros(index.max(axis=0) - low + 1, dtype=bool)
    grid[tuple((index - low).T)] = present
    marks, _ = label(binary_dilation(grid, structure=np.ones((3, 3))))
    marks = marks * grid
    sizes = np.bincount(marks.ravel())
    sizes[0] = 0
    return present & (marks[tuple((index - low).T)] == int(np.argmax(sizes)))
