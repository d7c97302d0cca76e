"""Low-dose stacks of a lattice that drifts, jumps, decays and misses frames, with the exact floor of any registration.

A scene is a relative intensity that is larger than the field of view: a crystal along [001] as an annular detector sees it (Z^1.7 columns,
Pennycook & Jesson, Ultramicroscopy 37 (1991) 14) or one column a cell. A frame is the scene moved by a cubic spline, its contrast decayed
with dose, counted (Poisson). The floor is the Cramér-Rao bound of a shift against the noise-free scene.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import product

import numpy as np

from ..crystals import Crystal
from ..drift.counts import poisson_shift_information
from .noise import _smooth_noise

Scene = Callable[[np.random.Generator, tuple[int, int]], np.ndarray]


@dataclass(frozen=True)
class StackMotion:
    """How the content of a stack moves."""

    #: Slow drift of a frame, px.
    drift_px: float = 0.5
    #: Number of jumps of 4 to 9 px.
    jumps: int = 2
    #: The rows of a frame follow the drift while it is scanned; the truth is that of the middle row.
    within_frame: bool = False
    #: Error of every scan line along either axis (standard deviation), px.
    jitter_px: float = 0.0


@dataclass(frozen=True)
class _Model:
    """What is the same in every stack."""

    contrast: float = 0.3  # of the columns against the mean: a thick lamella at low dose
    column_sigma_nm: float = 0.075  # of a column in `lattice_scene`, with the probe
    plain_sigma_px: float = 1.6  # of a column in `plain_lattice`
    weight_scatter: float = 0.2  # of columns in `lattice_scene`, so that cells differ at all
    boundary_deg: tuple[float, float] = (0.3, 0.9)  # of the low-angle boundary
    velocity_walk: float = 0.08  # step of the random walk of the velocity, in units of the drift
    unsteadiness: float = 0.3  # of a step about the velocity, in units of the drift
    jump_px: tuple[float, float] = (4.0, 9.0)
    margin_px: int = 8  # of the scene around all that a frame sees
    dark: float = 0.02  # counts of a blanked frame, of those of a lit one


_MODEL = _Model()


def _columns_along_c(crystal: Crystal) -> tuple[np.ndarray, np.ndarray]:
    """Columns along c of a crystal: (n, 2) in fractions of a and b, and their HAADF weights (n,), the largest 1.

    An atom weighs Z^1.7 times its occupancy (Pennycook & Jesson, Ultramicroscopy 37 (1991) 14).
    """
    from ase.data import atomic_numbers

    weight = np.array([atomic_numbers[e] for e in crystal.elements], dtype=float) ** 1.7 * crystal.occupancies
    columns, index = np.unique(np.round(crystal.positions[:, :2] % 1, 3) % 1, axis=0, return_inverse=True)
    total = np.bincount(index.ravel(), weight)
    return columns, total / total.max()


def _scattered_columns(
    rng: np.random.Generator, shape: tuple[int, int], crystal: Crystal, pixel_size_nm: float
) -> tuple[np.ndarray, np.ndarray]:
    """Columns of a tetragonal or cubic crystal along [001] over an image: positions (n, 2) in px and weights (n,).

    Near periodic and no more: the weight of every column differs and a boundary of less than
    one degree crosses the image.
    """
    columns, weights = _columns_along_c(crystal)
    cell_px = float(np.linalg.norm(crystal.lattice[0])) / 10 / pixel_size_nm
    reach = int(np.ceil(0.8 * max(shape) / cell_px)) + 1
    ij = np.stack(np.meshgrid(*[np.arange(-reach, reach + 1)] * 2, indexing="ij"), -1)
    flat = ((ij[:, :, None] + columns) * cell_px).reshape(-1, 2)
    weight = np.tile(weights, len(flat) // len(weights)) * np.maximum(0, 1 + _MODEL.weight_scatter * rng.standard_normal(len(flat)))
    beyond = flat @ _direction(rng) > rng.uniform(0.0, 0.2) * max(shape)
    angle = rng.uniform(0, np.pi / 2) + np.where(beyond, np.radians(rng.uniform(*_MODEL.boundary_deg)), 0.0)
    y = flat[:, 0] * np.cos(angle) - flat[:, 1] * np.sin(angle) + shape[0] / 2
    x = flat[:, 0] * np.sin(angle) + flat[:, 1] * np.cos(angle) + shape[1] / 2
    inside = (y > 0) & (y < shape[0] - 2) & (x > 0) & (x < shape[1] - 2)
    return np.stack([y, x], 1)[inside], weight[inside]


def _direction(rng: np.random.Generator) -> np.ndarray:
    """A unit vector (y, x) of random direction."""
    angle = rng.uniform(0, 2 * np.pi)
    return np.array([np.sin(angle), np.cos(angle)])


def _added_points(shape: tuple[int, int], yx: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """An image with points (n, 2) of given weights, each shared between the four pixels around it."""
    low = yx.astype(int)
    part, image = yx - low, np.zeros(shape)
    for dy, dx in product((0, 1), repeat=2):
        share = np.abs(1 - dy - part[:, 0]) * np.abs(1 - dx - part[:, 1])
        np.add.at(image, (low[:, 0] + dy, low[:, 1] + dx), weight * share)
    return image


def plain_lattice(rng: np.random.Generator, shape: tuple[int, int], pitch_px: float = 7.2, spread: float = 0.15) -> np.ndarray:
    """Relative intensity of one column a square cell: only the weights of the columns differ from cell to cell.

    The hardest scene for a registration that may hop: nothing in it is larger than a column.

    Parameters
    ----------
    rng
        All that is random is drawn from it.
    shape
        Of the scene, (y, x).
    pitch_px
        Side of the cell.
    spread
        Standard deviation of the weights about 1.

    Returns
    -------
    ndarray
        (y, x), mean 1.
    """
    from scipy.ndimage import gaussian_filter

    reach = int(max(shape) / pitch_px) + 2
    ij = np.stack(np.meshgrid(*[np.arange(-reach, reach + 1)] * 2, indexing="ij"), -1).reshape(-1, 2) * pitch_px
    angle = rng.uniform(0, np.pi / 2)
    yx = ij @ np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]]) + np.array(shape) / 2
    yx = yx[((yx >= 0) & (yx < np.array(shape) - 2)).all(axis=1)]
    weight = np.maximum(0, 1 + spread * rng.standard_normal(len(yx)))
    image = gaussian_filter(_added_points(shape, yx, weight), _MODEL.plain_sigma_px)
    return 1 + _MODEL.contrast * (image / image.mean() - 1)


def lattice_scene(rng: np.random.Generator, shape: tuple[int, int], crystal: Crystal, pixel_size_nm: float = 0.045) -> np.ndarray:
    """Relative intensity of a lamella of a crystal along [001], as an annular detector sees it at low dose.

    The weights of the columns scatter, a boundary of less than a degree crosses the field, and amorphous pockets lie in it.

    Parameters
    ----------
    rng
        All that is random is drawn from it.
    shape
        Of the scene, (y, x).
    crystal
        Tetragonal or cubic.
    pixel_size_nm
        Of the scene.

    Returns
    -------
    ndarray
        (y, x), mean about 1.
    """
    from scipy.ndimage import gaussian_filter

    image = _added_points(shape, *_scattered_columns(rng, shape, crystal, pixel_size_nm))
    image = gaussian_filter(image, _MODEL.column_sigma_nm / pixel_size_nm)
    image *= np.where(_smooth_noise(rng, shape, 0.5 / pixel_size_nm, "reflect") > 2.2, 0.3, 1.0)  # amorphous pockets
    relative = 1 + _MODEL.contrast * (image / image.mean() - 1)
    return relative * np.clip(1 + 0.05 * _smooth_noise(rng, shape, 2.5 / pixel_size_nm, "reflect"), 0.5, 1.5)


def _drift_path(rng: np.random.Generator, n_frames: int, motion: StackMotion) -> tuple[np.ndarray, list[int]]:
    """Slow drift whose velocity wanders, with jumps; shifts (n, 2) in px, and the frames that jump."""
    drift_px = motion.drift_px
    velocity = drift_px * _direction(rng) + np.cumsum(_MODEL.velocity_walk * drift_px * rng.standard_normal((n_frames, 2)), axis=0)
    steps = velocity + _MODEL.unsteadiness * drift_px * rng.standard_normal((n_frames, 2))
    last = max(2, n_frames - 2)
    size = min(motion.jumps, last - 1)
    at = sorted(int(i) for i in rng.choice(np.arange(1, last), size=size, replace=False)) if n_frames > 2 else []
    for i in at:
        steps[i] += rng.uniform(*_MODEL.jump_px) * _direction(rng)
    steps[0] = 0
    return np.cumsum(steps, axis=0), at


def _blank_frames(rng: np.random.Generator, n_frames: int, number: int) -> list[int]:
    """Numbers of frames whose beam is blanked; none among the first tenth."""
    first = max(1, n_frames // 10)
    return sorted(int(i) for i in rng.choice(np.arange(first, n_frames), number, replace=False)) if n_frames > first else []


def drifting_stack(
    rng: np.random.Generator,
    n_frames: int = 30,
    shape: tuple[int, int] = (256, 256),
    counts_per_px: float = 2.0,
    *,
    scene: Scene,
    motion: StackMotion = StackMotion(),
    blank_frames: int = 1,
    critical_dose_frames: float = math.inf,
) -> tuple[np.ndarray, dict]:
    """Low-dose stack of a scene that drifts, jumps and misses a frame, and its truth.

    Parameters
    ----------
    rng
        All that is random is drawn from it.
    n_frames, shape
        Number and shape (y, x) of the frames.
    counts_per_px
        Mean counts of a pixel in one frame.
    scene
        Makes the relative intensity of what is imaged, for a random generator and a shape: `lattice_scene` of a crystal, say.
    motion
        Drift, jumps and the distortion of frames.
    blank_frames
        Number of frames with a blanked beam.
    critical_dose_frames
        Frames after which the lattice contrast has fallen to 1/e.

    Returns
    -------
    frames : ndarray of uint16
        (n_frames, y, x), Poisson counts. The scene is larger than the field of view.
    truth : dict
        ``shift_px`` (n, 2): the content of a frame is that of the first moved by +shift; ``blank``, ``jumps``: numbers of frames;
        ``crlb_px``: the Cramér-Rao floor of one axis of one frame against the noise-free scene, the root mean square over axes and frames.
    """
    from scipy.ndimage import map_coordinates, spline_filter

    shift, jumped = _drift_path(rng, n_frames, motion)
    room = np.ceil(np.abs(shift).max(axis=0)).astype(int) + _MODEL.margin_px
    imaged = scene(rng, tuple(np.array(shape) + 2 * room))
    perfect, flat = spline_filter(imaged), imaged.mean()
    blank = _blank_frames(rng, n_frames, blank_frames)
    rows, columns = np.meshgrid(*[np.arange(n, dtype=float) for n in shape], indexing="ij")
    late = (rows / shape[0] - 0.5)[..., None] if motion.within_frame else np.zeros((*shape, 1))
    step = np.gradient(shift, axis=0) * (np.abs(np.gradient(shift, axis=0)) < 2) if n_frames > 1 else shift
    frames, information = np.zeros((n_frames, *shape), np.uint16), []
    for i in range(n_frames):
        moved = shift[i] + late * step[i]
        if motion.jitter_px:
            moved = moved + motion.jitter_px * rng.standard_normal((shape[0], 1, 2))
        at = np.stack([rows - moved[..., 0] + room[0], columns - moved[..., 1] + room[1]])
        rate = map_coordinates(perfect, at, order=3, prefilter=False, mode="nearest")
        rate = counts_per_px * (flat + (rate - flat) * math.exp(-i / critical_dose_frames))
        information.append(poisson_shift_information(rate))
        frames[i] = rng.poisson(_MODEL.dark * counts_per_px if i in blank else rate)
    good = [i for i in range(n_frames) if i not in blank]
    floor = math.sqrt(np.mean([np.trace(np.linalg.inv(information[i])) / 2 for i in good]))
    return frames, {"shift_px": shift, "blank": blank, "jumps": jumped, "crlb_px": floor}
