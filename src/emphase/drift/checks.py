"""Checks of a registration: independent halves, rival lattice cells of a frame, and motion while a frame is scanned."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import numpy as np

from ..chunks import LongWork
from ..errors import EmphaseError
from .averages import covered_average, sum_frames
from .counts import DriftSolution
from .joint import _DriftPrior, _Joint, _solve, _tight_canvas
from .likelihood import _Match
from .options import OPTIONS
from .pairs import _overlapping
from .register import register_stack
from .segments import _middle
from .stack import PickedFrames


def some_frames(frames: Any, solution: DriftSolution, *, also: Iterable[int] = (), in_a_row: bool = False) -> tuple:
    """Frames of a stack that its checks are made on, as many as memory allows.

    Parameters
    ----------
    frames, solution
        The stack (n, y, x), an array or recorded frames, and its registration.
    also
        Frames by number that are among them in any case.
    in_a_row
        Frames in a row in the middle of the stack; else they are evenly spread.

    Returns
    -------
    array
        Of an array all of it. Of a recorded stack 60 used frames at most; of frames over 1 megapixel all lines of the middle columns.
    solution
        The solution of these frames, shifts as they are.
    chosen
        Their numbers.
    """
    if isinstance(frames, np.ndarray):
        return frames, solution, np.arange(len(frames))
    used, (n_y, n_x) = np.flatnonzero(solution.used), frames.shape[1:]
    width = min(n_x, max(128, 2**20 // n_y))
    reach = np.ptp(solution.shift_px[used], axis=0) + 100
    most = int(np.clip(OPTIONS.joint_bytes / 2 / (12 * (n_y + reach[0]) * (width + reach[1])), 4, 60))
    if in_a_row:
        first = max(0, (len(used) - most) // 2)
        chosen = used[first : first + most]
    else:
        chosen = used[np.unique(np.linspace(0, len(used) - 1, most).astype(int))]
    chosen = np.unique(np.concatenate([chosen, np.array(list(also), int)]))
    left = (n_x - width) // 2
    array = np.stack([frames[int(i)][:, left : left + width] for i in chosen])
    part = {name: getattr(solution, name)[chosen] for name in ("shift_px", "sigma_px", "used", "hop_probability", "contrast")}
    return array, replace(solution, left_out={}, **part), chosen


def fourier_ring_correlation(first: np.ndarray, second: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Fourier ring correlation of two images of the same shape.

    Parameters
    ----------
    first, second
        Images (y, x) with independent noise.

    Returns
    -------
    frequency, correlation, half_bit
        Of each ring its frequency (cycles a pixel), the correlation, and the threshold of half a bit.

    Notes
    -----
    Images are windowed (Hann). Half-bit curve of van Heel & Schatz, J. Struct. Biol. 151 (2005) 250.
    """
    n = min(first.shape)
    window = np.outer(*(np.hanning(k) for k in first.shape))
    a, b = (np.fft.rfft2((image - image.mean()) * window) for image in (first, second))
    q = np.hypot(np.fft.fftfreq(first.shape[0])[:, None], np.fft.rfftfreq(first.shape[1])[None])
    ring = np.round(q * n).astype(int).ravel()
    count = n // 2
    sums = [np.bincount(ring, v.ravel(), minlength=count + 1)[1:count] for v in ((a * b.conj()).real, np.abs(a) ** 2, np.abs(b) ** 2)]
    modes = np.bincount(ring, minlength=count + 1)[1:count] / 2.25  # the window correlates neighbours
    correlation = sums[0] / np.sqrt(np.maximum(sums[1] * sums[2], 1e-30))
    root = np.sqrt(np.maximum(modes, 1))
    half_bit = (0.2071 + 1.9102 / root) / (1.2071 + 0.9102 / root)
    return np.arange(1, count) / n, correlation, np.minimum(half_bit, 1)


def half_average_resolution(
    frames: Any,
    solution: DriftSolution,
    take_in: Iterable[int] = (),
    *,
    budget_bytes: float | None = None,
    work: LongWork | None = None,
    progress: Any = None,
) -> dict:
    """Resolution from the Fourier ring correlation of the averages of even and odd frames, each half registered by itself.

    Parameters
    ----------
    frames, solution
        The stack (n, y, x) and its registration, whose used frames are halved.
    take_in
        Frames that are used in their half although they look foreign.
    budget_bytes, work, progress
        As in `register_stack`.

    Returns
    -------
    ``frequency`` (cycles a pixel), ``correlation``, ``threshold`` and ``resolution_px``: the period of the highest ring above the
    threshold (half a bit, and 4 standard errors), or None with a ``reason``.
    """
    used = np.flatnonzero(solution.used)
    halves = [frames[used[k::2]] if isinstance(frames, np.ndarray) else PickedFrames(frames, used[k::2]) for k in (0, 1)]
    if not solution.registered or min(len(h) for h in halves) < 2:
        return {"resolution_px": None, "reason": "fewer than four frames that can be registered"}
    by_hand = [[int(i) for i in np.flatnonzero(np.isin(used[k::2], list(take_in)))] for k in (0, 1)]
    options = {"budget_bytes": budget_bytes, "progress": progress}
    solved = [
        register_stack(half, take_in=chosen, work=work and work.part(name), **options)
        for half, chosen, name in zip(halves, by_hand, ("even", "odd"), strict=True)
    ]
    if not all(s.registered for s in solved):
        return {"resolution_px": None, "reason": "half of the frames alone cannot be registered"}
    averages = [covered_average(*sum_frames(h, s.shift_px, s.used)[:2], 0.8)[0] for h, s in zip(halves, solved, strict=True)]
    shape = np.min([a.shape for a in averages], axis=0)
    pair = np.stack([a[: shape[0], : shape[1]] * s.used.sum() * solution.counts_per_unit for a, s in zip(averages, solved, strict=True)])
    field = pair[(slice(None), *_middle(shape, 2048))]  # the middle of larger ones suffices
    joint, _ = _solve(field.astype(np.float32), np.arange(2), np.full(2, 0.33 * min(field.shape[1:])))
    first, second = _overlapping(pair, joint.shifts[1] - joint.shifts[0])
    frequency, correlation, half_bit = fourier_ring_correlation(first, second)
    modes = np.pi * frequency * min(first.shape) ** 2 * frequency[0] / 2.25
    threshold = np.maximum(half_bit, 4 / np.sqrt(np.maximum(modes, 1)))
    above = np.flatnonzero(correlation > threshold)
    out = {"frequency": frequency, "correlation": correlation, "threshold": threshold}
    if len(above) == 0:
        return out | {"resolution_px": None, "reason": "the halves agree at no frequency"}
    return out | {"resolution_px": float(1 / frequency[above[-1]])}


def _joint_of(frames: np.ndarray, solution: DriftSolution) -> _Joint:
    """The state of a registration as its solution left it."""
    members = np.flatnonzero(solution.used)
    counts = frames if solution.counts_per_unit == 1 else frames.astype(np.float32) * np.float32(solution.counts_per_unit)
    canvas, shifts = _tight_canvas(counts, solution.shift_px, members)
    return _Joint(canvas, members, shifts, np.zeros(len(frames)), _DriftPrior(np.zeros(2), OPTIONS.start_spread_px))


def cell_landscape(frames: np.ndarray, solution: DriftSolution, frame: int, reach_px: int = 24) -> np.ndarray:
    """Log-likelihood of one frame against the scene of all others, at displacements from its place.

    Parameters
    ----------
    frames, solution
        The stack (n, y, x) and its registration.
    frame
        Number of the frame.
    reach_px
        Largest displacement.

    Returns
    -------
    Log-likelihood (nats), an image (2 reach + 1, 2 reach + 1) with no displacement in the middle. Its maxima are lattice cells;
    that they differ by few nats is what makes single frames hop.
    """
    joint = _joint_of(frames, solution)
    canvas, total = joint.canvas, joint.total(leave_out={frame})
    scene, place = total.scene(rounds=12), joint.shifts[frame]
    spectra = canvas.spectra[frame], canvas.box, canvas.pixel_likelihood(frame, scene, place)
    image = _Match(canvas, scene, total.seen()).images(*spectra)[0]
    at = [(round(float(s)) + np.arange(-reach_px, reach_px + 1)) % n for s, n in zip(place, canvas.shape, strict=True)]
    return image[np.ix_(*at)]


def _rows_of_frames(joint: _Joint) -> tuple[np.ndarray, np.ndarray]:
    """Slope (members, rows, 2) and information (members, rows, 2) of the log-likelihood of every scan line's own shift, y and x.

    The template is the most probable scene of the other frames, so slope over information is an unbiased shift.
    """
    canvas, (n_y, n_x) = joint.canvas, joint.canvas.frame_shape
    slopes, information = np.zeros((2, len(joint.members), n_y, 2))
    for k, (i, scene, seen) in enumerate(joint.leave_one_out()):
        there = canvas.spectrum(scene) / canvas.phase(joint.shifts[i])
        rate = np.float32(canvas.scale[i] * canvas.rate)
        expected = np.maximum(rate * (1 + canvas.image(there)[:n_y, :n_x]), 0.05 * rate)
        known = canvas.under(seen, joint.shifts[i])
        for axis, q in enumerate((canvas.qy[:, None], canvas.qx[None])):
            change = -rate * canvas.image(1j * q * there)[:n_y, :n_x] * known  # the content moves by +shift
            slopes[k, :, axis] = np.sum((canvas.counts[i] - expected) * change / expected, axis=1)
            information[k, :, axis] = np.sum(change**2 / expected, axis=1)
    return slopes, information


def motion_within_frames(frames: np.ndarray, solution: DriftSolution, band_rows: int = 8) -> dict:
    """What of the motion within a frame the data resolve: drift while a frame is scanned, and jitter of scan lines.

    Parameters
    ----------
    frames, solution
        The stack (n, y, x) and its registration.
    band_rows
        Scan lines of a band that is compared with the others.

    Returns
    -------
    ``share_of_drift`` is the part of a frame's step that happens from its first row to its last (1 if it is scanned
    without pause, 0 if it is taken at once), with ``share_of_drift_sigma``, or both None with a ``reason``. ``line_jitter_px``
    (y, x) is the rms of bands of scan lines about their frame's shear beyond their counting noise, as that of a single line if lines
    are independent, None where it is not seen, with ``line_jitter_limit_px`` (95 %). ``shear_px`` and ``shear_sigma_px`` (n, 2) are
    those of the frames.

    Raises
    ------
    EmphaseError
        Where frames are not registered one by one, or fewer than four are.

    Notes
    -----
    A frame that drifts while it is scanned is sheared. A shear that all frames share looks like a property of the
    sample; what varies between frames is compared with the drift between them.
    """
    if not solution.registered or solution.group > 1 or solution.used.sum() < 4:
        raise EmphaseError("motion within frames: expected four frames at least that are registered one by one")
    joint = _joint_of(frames, solution)
    slopes, information = _rows_of_frames(joint)
    rows = (np.arange(slopes.shape[1]) + 0.5) / slopes.shape[1] - 0.5
    weight = information.sum(axis=1)
    middle = np.sum(information * rows[:, None], axis=1) / weight
    lever = rows[None, :, None] - middle[:, None]
    force = np.sum(information * lever**2, axis=1)
    shear, sigma = np.sum(slopes * lever, axis=1) / force, 1 / np.sqrt(force)
    share = _share_of_drift(joint, shear, sigma)
    rest = slopes - information * (np.sum(slopes, axis=1) / weight)[:, None] - information * lever * shear[:, None]
    jitter, limit = _line_jitter(rest, information, band_rows)
    return share | {"line_jitter_px": jitter, "line_jitter_limit_px": limit, "shear_px": shear, "shear_sigma_px": sigma}


def _line_jitter(rest: np.ndarray, information: np.ndarray, band_rows: int) -> tuple[list[float | None], list[float]]:
    """Jitter of scan lines (y, x) in what shift and shear leave of slopes (n, rows, 2), None below 3 standard errors; 95 % limits."""
    from skimage.measure import block_reduce

    n_bands = rest.shape[1] // band_rows
    bands = lambda values: block_reduce(values[:, : n_bands * band_rows], (1, band_rows, 1), np.sum)
    known, pull = bands(information), bands(rest)
    freedom = 1 - 2 / n_bands  # a shift and a shear are fitted to every frame
    lever = np.sum(known**2, axis=(0, 1))
    excess = (np.sum(pull**2, axis=(0, 1)) - freedom * np.sum(known, axis=(0, 1))) / lever / freedom
    error = np.sqrt(2 * lever) / lever
    jitter = np.sqrt(np.maximum(excess, 0) * band_rows)
    limit = np.sqrt((np.maximum(excess, 0) + 1.645 * error) * band_rows)
    return [float(j) if e > 3 * s else None for j, e, s in zip(jitter, excess, error, strict=True)], limit.tolist()


def _share_of_drift(joint: _Joint, shear: np.ndarray, sigma: np.ndarray) -> dict:
    """Part of the drift between frames that shears them, from its variation; jumps are left out."""
    members, shifts = joint.members, joint.shifts[joint.members]
    step = np.gradient(shifts, members, axis=0)
    away = np.linalg.norm(np.diff(shifts, axis=0) - np.median(np.diff(shifts, axis=0), axis=0), axis=1)
    far = away > 4 * np.median(away) + 0.1
    calm = ~(np.append(far, False) | np.insert(far, 0, False))
    weight = np.where(calm[:, None], 1 / sigma**2, 0)
    if calm.sum() < 4:
        return {"share_of_drift": None, "share_of_drift_sigma": None, "reason": "too few frames between jumps"}
    about = lambda values: values - np.sum(weight * values, axis=0) / weight.sum(axis=0)
    force = float(np.sum(weight * about(step) ** 2))
    error = 1 / math.sqrt(max(force, 1e-12))
    if error > 0.35:
        why = "the drift is too even, or the counts are too few, to tell a frame's shear from the sample's"
        return {"share_of_drift": None, "share_of_drift_sigma": None, "reason": why}
    share = float(np.sum(weight * about(step) * about(shear))) / force
    misfit = float(np.sum(weight * (about(shear) - share * about(step)) ** 2)) / (2 * calm.sum() - 3)
    return {"share_of_drift": share, "share_of_drift_sigma": error * math.sqrt(max(1.0, misfit))}
