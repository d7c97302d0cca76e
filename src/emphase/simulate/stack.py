"""TODO."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import product

import numpy as np

from ..crystals import Crystal
from ..drift.counts import poisson_shift_information
from .noise import _smooth_noise


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
    weight = np.tile(weights, len(flat) // len(weights)) * np.maximum(0, 1 + 0.2 * rng.standard_normal(len(flat)))
    beyond = flat @ _direction(rng) > rng.uniform(0.0, 0.2) * max(shape)
    angle = rng.uniform(0, np.pi / 2) + np.where(beyond, np.radians(rng.uniform(0.3, 0.9)), 0.0)
    y = flat[:, 0] * np.cos(angle) - flat[:, 1] * np.sin(angle) + shape[0] / 2
    x = flat[:, 0] * np.sin(angle) + flat[:, 1] * np.cos(angle) + shape[1] / 2
    inside = (y > 0) & (y < shape[0] - 2) & (x > 0) & (x < shape[1] - 2)
    return np.stack([y, x], 1)[inside], weight[inside]


def _direction(rng: np.random.Generator) -> np.ndarray:
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
    """One column a square cell, relative intensity: only the weights (standard deviation ``spread``) tell cells apart.

    The hardest scene for a registration that may hop: nothing in it is larger than a column.
    """
    from scipy.ndimage import gaussian_filter

    reach = int(max(shape) / pitch_px) + 2
    ij = np.stack(np.meshgrid(*[np.arange(-reach, reach + 1)] * 2, indexing="ij"), -1).reshape(-1, 2) * pitch_px
    angle = rng.uniform(0, np.pi / 2)
    yx = ij @ np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]]) + np.array(shape) / 2
    yx = yx[((yx >= 0) & (yx < np.array(shape) - 2)).all(axis=1)]
    image = gaussian_filter(_added_points(shape, yx, np.maximum(0, 1 + spread * rng.standard_normal(len(yx)))), 1.6)
    return 1 + 0.3 * (image / image.mean() - 1)


def lattice_scene(rng: np.random.Generator, shape: tuple[int, int], crystal: Crystal, pixel_size_nm: float = 0.045) -> np.ndarray:
    """A lamella of a crystal along [001] as an annular detector sees it at low dose: relative intensity (y, x), mean about 1.

    The columns' weights scatter, a boundary of less than a degree crosses the field, and amorphous pockets lie in it.
    """
    from scipy.ndimage import gaussian_filter

    image = _added_points(shape, *_scattered_columns(rng, shape, crystal, pixel_size_nm))
    image = gaussian_filter(image, 0.075 / pixel_size_nm)
    image *= np.where(_smooth_noise(rng, shape, 0.5 / pixel_size_nm, "reflect") > 2.2, 0.3, 1.0)  # amorphous pockets
    relative = 1 + 0.3 * (image / image.mean() - 1)
    return relative * np.clip(1 + 0.05 * _smooth_noise(rng, shape, 2.5 / pixel_size_nm, "reflect"), 0.5, 1.5)


def _drift_path(rng: np.random.Generator, n_frames: int, drift_px: float, jumps: int) -> tuple[np.ndarray, list[int]]:
    """Slow drift of about ``drift_px`` a frame whose velocity wanders, with jumps of 4-9 px; shifts (n, 2), frames that jump."""
    velocity = drift_px * _direction(rng) + np.cumsum(0.08 * drift_px * rng.standard_normal((n_frames, 2)), axis=0)
    steps = velocity + 0.3 * drift_px * rng.standard_normal((n_frames, 2))
    last = max(2, n_frames - 2)
    at = sorted(int(i) for i in rng.choice(np.arange(1, last), size=min(jumps, last - 1), replace=False)) if n_frames > 2 else []
    for i in at:
        steps[i] += rng.uniform(4, 9) * _direction(rng)
    steps[0] = 0
    return np.cumsum(steps, axis=0), at


def drifting_stack(
    rng: np.random.Generator,
    n_frames: int = 30,
    shape: tuple[int, int] = (256, 256),
    counts_per_px: float = 2.0,
    *,
    scene: Callable[[np.random.Generator, tuple[int, int]], np.ndarray],
    drift_px: float = 0.5,
    jumps: int = 2,
    blank_frames: int = 1,
    critical_dose_frames: float = math.inf,
    moves_within_frame: bool = False,
    jitter_px: float = 0.0,
) -> tuple[np.ndarray, dict]:
    """A low-dose stack of a scene that drifts, jumps and misses a frame.

    Parameters
    ----------
    counts_per_px
        Mean counts of a pixel in one frame.
    drift_px, jumps, blank_frames
        Drift a frame in px; number of jumps of 4-9 px; number of frames with a blanked beam.
    critical_dose_frames
        Frames after which the lattice contrast has fallen to 1/e.
    moves_within_frame
        Let the rows of a frame follow the drift while it is scanned; the truth is that of the middle row.
    jitter_px
        Standard deviation along either axis of what every scan line is off by.
    scene
        Makes the relative intensity of what is imaged, for a random generator and a shape: `lattice_scene` of a crystal, say.

    Returns
    -------
    frames
        uint16 (n_frames, y, x), Poisson counts. The scene is larger than the field of view.
    truth
        ``shift_px`` (n, 2): the content of a frame is that of the first moved by +shift;
        ``blank``, ``jumps``: numbers of frames; ``crlb_px``: the Cramér-Rao floor of one axis of
        one frame against the noise-free scene, the root mean square over axes and frames.
    """
    from scipy.ndimage import map_coordinates, spline_filter

    shift, jumped = _drift_path(rng, n_frames, drift_px, jumps)
    room = np.ceil(np.abs(shift).max(axis=0)).astype(int) + 8
    wide = tuple(np.array(shape) + 2 * room)
    imaged = scene(rng, wide)
    perfect, flat = spline_filter(imaged), imaged.mean()
    first = max(1, n_frames // 10)
    blank = sorted(int(i) for i in rng.choice(np.arange(first, n_frames), blank_frames, replace=False)) if n_frames > first else []
    rows, columns = np.meshgrid(*[np.arange(n, dtype=float) for n in shape], indexing="ij")
    late = (rows / shape[0] - 0.5)[..., None] if moves_within_frame else np.zeros((*shape, 1))
    step = np.gradient(shift, axis=0) * (np.abs(np.gradient(shift, axis=0)) < 2) if n_frames > 1 else shift
    frames, information = np.zeros((n_frames, *shape), np.uint16), []
    for i in range(n_frames):
        moved = shift[i] + late * step[i]
        if jitter_px:
            moved = moved + jitter_px * rng.standard_normal((shape[0], 1, 2))
        at = np.stack([rows - moved[..., 0] + room[0], columns - moved[..., 1] + room[1]])
        rate = map_coordinates(perfect, at, order=3, prefilter=False, mode="nearest")
        rate = counts_per_px * (flat + (rate - flat) * math.exp(-i / critical_dose_frames))
        information.append(poisson_shift_information(rate))
        frames[i] = rng.poisson(0.02 * counts_per_px if i in blank else rate)
    good = [i for i in range(n_frames) if i not in blank]
    floor = math.sqrt(np.mean([np.trace(np.linalg.inv(information[i])) / 2 for i in good]))
    return frames, {"shift_px": shift, "blank": blank, "jumps": jumped, "crlb_px": floor}
