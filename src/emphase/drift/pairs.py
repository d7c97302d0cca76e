"""Shifts between pairs of frames by themselves, as in rigid registration by pairs (Savitzky et al., Ultramicroscopy 191 (2018) 56).

Many are off by lattice cells where counts are few; the joint solution is compared with them, and sums of segments are linked by them.
"""

from __future__ import annotations

import numpy as np

from .joint import _incoherent_power
from .likelihood import _Canvas


def pair_shifts(frames: np.ndarray, used: np.ndarray, max_shift_px: float = 40.0, about_px: np.ndarray | None = None) -> np.ndarray:
    """Shifts between all pairs of frames by themselves, from the peak of their correlation.

    Parameters
    ----------
    frames
        Stack (n, y, x).
    used
        Which frames (n,) are compared.
    max_shift_px
        How far from ``about_px`` a peak is looked for.
    about_px
        Shifts (n, 2) in (y, x) of the frames, about whose differences peaks are looked for; 0 if not given.

    Returns
    -------
    Shifts (n, n, 2) in (y, x): [i, j] is that of j less that of i, NaN where one of them is not used.

    Notes
    -----
    The correlation is taken per pixel of overlap, each frequency weighted by its signal over signal and noise. On near-periodic
    lattices many shifts are off by lattice cells: that is what the joint solution is for.
    """
    from scipy import fft

    members = np.flatnonzero(used)
    about = np.zeros((len(frames), 2)) if about_px is None else np.asarray(about_px)
    farthest = float(np.ptp(about[members], axis=0).max())
    canvas = _Canvas(frames.astype(np.float32, copy=False), np.full(2, (farthest + max_shift_px) / 2 + 1))
    power, noise = _incoherent_power(canvas, members), float(canvas.totals[members].mean()) / canvas.area
    weight = (power / (noise + 2 * power)).astype(np.float32)
    r = int(max_shift_px)
    moved = {int(i): canvas.moved(int(i), np.zeros(2)) for i in members}
    pairs = np.full((len(frames), len(frames), 2), np.nan)
    pairs[members, members] = 0
    for a, i in enumerate(members):
        left = np.conj(moved[int(i)]) * weight
        for j in members[a + 1 :]:
            middle = np.round(about[j] - about[i]).astype(int)
            near = [np.arange(m - r, m + r + 1) for m in middle]
            overlap = np.outer(*(np.maximum(1 - np.abs(k) / n, 0.05) for k, n in zip(near, canvas.frame_shape, strict=True)))
            image = fft.irfft2(left * moved[int(j)], canvas.shape)[np.ix_(near[0] % canvas.shape[0], near[1] % canvas.shape[1])]
            pairs[i, j] = _parabola_peak(image / overlap) - r + middle
            pairs[j, i] = -pairs[i, j]
    return pairs


def _parabola_peak(image: np.ndarray) -> np.ndarray:
    """Place of the maximum of an image with a parabola through its neighbours on either axis."""
    y, x = np.unravel_index(int(np.argmax(image)), image.shape)
    place = np.array([y, x], dtype=float)
    for axis, line in enumerate((image[:, x], image[y])):
        k = (y, x)[axis]
        if 0 < k < len(line) - 1 and (bend := line[k - 1] - 2 * line[k] + line[k + 1]) < 0:
            place[axis] += 0.5 * (line[k - 1] - line[k + 1]) / bend
    return place


def _overlapping(pair: np.ndarray, shift: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The parts of two images that show the same, the second being moved by +shift; its fraction of a pixel undone in Fourier space."""
    from scipy.ndimage import fourier_shift

    whole = np.round(shift).astype(int)
    mean = pair[1].mean()
    moved = np.fft.ifft2(fourier_shift(np.fft.fft2(pair[1] - mean), -(shift - whole))).real + mean
    n_y, n_x = pair.shape[1:]
    y, x = whole
    first = pair[0][max(0, -y) : n_y - max(0, y), max(0, -x) : n_x - max(0, x)]
    second = moved[max(0, y) : n_y - max(0, -y), max(0, x) : n_x - max(0, -x)]
    return first[2:-2, 2:-2], second[2:-2, 2:-2]
