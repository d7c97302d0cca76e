"""From joint shifts to a `DriftSolution`: frames that are foreign or lost, neighbours summed where frames are too noisy, errors.

A frame is foreign where its contrast, against the scene that the others show, is less than half of the usual by four standard errors.
The error of a position is the curvature of the log-likelihood, widened where the noise is more than that of Poisson counts; its floor
is the Cramér-Rao bound with the scene known (`counts.poisson_shift_information`).
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np

from .counts import DriftSolution, poisson_shift_information
from .joint import _incoherent_power, _Joint, _solve
from .likelihood import _Canvas
from .options import OPTIONS
from .stack import counts_per_unit, frame_means, unusable_frames


def _weak_frames(joint: _Joint) -> tuple[dict[int, str], np.ndarray, float]:
    """Members whose lattice is not that of the others, the contrasts (n,), and the median signal-to-noise of a frame."""
    contrast, error = joint.contrasts()
    members = joint.members
    usual = float(np.median(contrast[members]))
    out = {}
    for i in members:
        if len(members) > 3 and contrast[i] < 0.5 * usual and (usual - contrast[i]) > 4 * error[i]:
            share = contrast[i] / usual
            out[int(i)] = f"foreign or blurred: shows {share:.2f} ± {error[i] / usual:.2f} of the others' contrast"
    return out, contrast, usual / float(np.median(error[members]))


def _lost_frames(joint: _Joint, reach: np.ndarray) -> dict[int, str]:
    """Members that drift farther than is looked for, and those beyond them: only the longest run before or after is kept."""
    members = joint.members
    if not joint.beyond[members].any():
        return {}
    runs = np.split(members, np.flatnonzero(np.diff(joint.beyond[members].astype(int))) + 1)
    kept = max((run for run in runs if not joint.beyond[run[0]]), key=len, default=members[:0])
    why = f"drifts beyond {reach[0]:.0f} px, the largest shift that is looked for (max_shift_px), or follows frames that do"
    return {int(i): why for i in members if i not in kept}


def _axis_variance(information: np.ndarray) -> float:
    """The least variance (px²) of a shift along an axis, the mean of y and x, for its Fisher information (2, 2)."""
    return float(np.trace(np.linalg.inv(information))) / 2


def _off_group_px(shifts: np.ndarray, size: int) -> float:
    """How far (px, standard deviation) a frame may lie off its group of ``size`` by what drift does between groups at shifts (n, 2)."""
    return float(np.median(np.abs(np.diff(shifts, axis=0)))) / size * math.sqrt((size**2 - 1) / 12)


def _why_grouped(size: int) -> str:
    """Why so many neighbours share a shift; "" where each frame has its own."""
    return "" if size == 1 else f"single frames are too noisy: {size} neighbours share a shift"


def _position_sigma(joint: _Joint, information: np.ndarray) -> tuple[np.ndarray, float]:
    """Standard deviation of each frame's position along an axis (n,), and the floor of one frame with the scene known.

    The curvature of L is noisy for one frame: its mean over the frames, scaled by the beam
    current, serves all. Noise beyond that of Poisson counts widens it. Uncertainty that all frames
    share is left out: 1/J (1 - 1/n).
    """
    members, scale = joint.members, joint.canvas.scale
    mean = np.mean(information[members] / scale[members, None, None], axis=0)
    variance = _axis_variance(mean) * max(1.0, joint.noise_factor())
    total = joint.total()
    rate = joint.canvas.rate * (1 + joint.canvas.under(total.scene(rounds=12), joint.shifts[members].mean(axis=0)))
    floor = math.sqrt(_axis_variance(poisson_shift_information(rate)))
    return np.sqrt(variance * (1 - 1 / len(members)) / np.maximum(scale, 1e-6)), floor


class _Found(NamedTuple):
    """A joint solution: its state, the members ``left_out`` with the reason, contrasts (n,), a frame's signal-to-noise, -∂∂L (n, 2, 2)."""

    joint: _Joint
    left_out: dict[int, str]
    contrast: np.ndarray
    snr: float
    information: np.ndarray


def _register_counts(
    counts: np.ndarray, members: np.ndarray, reach: np.ndarray, take_in: frozenset[int] = frozenset(), about: np.ndarray | None = None
) -> _Found | None:
    """Joint solution without foreign frames; None where nothing shows.

    Frames in ``take_in`` are not foreign whatever they show; ``about`` as in `_solve`.
    """
    foreign: dict[int, str] = {}
    for _ in range(3):
        alone = _Canvas(counts[members], np.zeros(2))
        power = _incoherent_power(alone, np.arange(len(members)))
        if float(np.sum(power * alone.double)) / alone.rate < OPTIONS.least_snr**2:
            return None
        joint, information = _solve(counts, members, reach, about)
        weak, contrast, snr = _weak_frames(joint)
        weak = {i: why for i, why in (weak | _lost_frames(joint, reach)).items() if i not in take_in}
        if not weak or len(members) - len(weak) < 2:
            break
        foreign |= weak
        members = np.array([i for i in members if int(i) not in weak])
    return _Found(joint, foreign, contrast, snr, information)


class _Prepared(NamedTuple):
    """A stack to be registered: counts of a grey value, notes, frames left out with the reason and the others, their means (n,)."""

    per_unit: float
    notes: tuple[str, ...]
    left_out: dict[int, str]
    members: np.ndarray
    means: np.ndarray
    reach_px: float


def _prepared(frames: Any, max_shift_px: float | None, leave_out: frozenset[int], take_in: frozenset[int]) -> _Prepared:
    """The stack as it goes into the registration: its counts, its usable frames, and how far is looked for."""
    per_unit, note = counts_per_unit(frames)
    means, side = frame_means(frames), min(frames.shape[1:])
    left_out = {i: why for i, why in unusable_frames(means).items() if i not in take_in} | dict.fromkeys(sorted(leave_out), "by hand")
    members = np.array([i for i in range(len(frames)) if i not in left_out])
    return _Prepared(per_unit, (note,) if note else (), left_out, members, means, max_shift_px or (side if side <= 512 else 0.6 * side))


def _register(frames: np.ndarray, max_shift_px: float | None, leave_out: frozenset[int], take_in: frozenset[int]) -> DriftSolution:
    """`register_stack` in one piece."""
    prepared = _prepared(frames, max_shift_px, leave_out, take_in)
    per_unit, members = prepared.per_unit, prepared.members
    if len(members) < 2:
        return _refusal(prepared, f"{len(members)} usable frame: two at least are needed to see drift")
    counts = frames if per_unit == 1 else frames.astype(np.float32) * np.float32(per_unit)
    reach = np.full(2, prepared.reach_px)
    for size in (1, 2, 4, 8):
        groups = [members[k : k + size] for k in range(0, len(members), size)]
        if size > 1 and len(groups) < 4:
            break
        summed = counts if size == 1 else np.stack([counts[g].sum(axis=0, dtype=np.float32) for g in groups])
        kept = take_in if size == 1 else frozenset(k for k, group in enumerate(groups) if take_in & set(group.tolist()))
        found = _register_counts(summed, members if size == 1 else np.arange(len(groups)), reach, kept)
        if found is not None and found.snr >= OPTIONS.least_snr:
            return _solution(groups, found, prepared._replace(notes=prepared.notes + _many_jumps(found.joint)))
    return _refusal(prepared, f"{counts[members].mean():.3g} {_NOTHING_SHOWS}")


_NOTHING_SHOWS = "counts a pixel and frame: nothing stands out of the noise in frames or sums of them, they cannot be registered"


def _many_jumps(joint: _Joint) -> tuple[str, ...]:
    """A note where so many steps are jumps that cells are uncertain."""
    n_jumps, n_steps = len(joint.jumps), len(joint.members) - 1
    if n_jumps <= 3 or n_jumps <= 0.25 * n_steps:
        return ()
    return (f"{n_jumps} of {n_steps} steps are jumps: cells are uncertain (steps over {OPTIONS.step_px} px are not found)",)


def _refusal(prepared: _Prepared, reason: str) -> DriftSolution:
    """A solution without shifts."""
    n = len(prepared.means)
    used = np.array([i not in prepared.left_out for i in range(n)])
    return DriftSolution(
        shift_px=np.zeros((n, 2)),
        sigma_px=np.zeros(n),
        used=used,
        left_out=prepared.left_out,
        registered=False,
        reason=reason,
        group=0,
        hop_probability=np.zeros(n),
        jumps=[],
        crlb_px=None,
        contrast=np.zeros(n),
        counts_per_unit=prepared.per_unit,
        notes=prepared.notes,
    )


def _solution(groups: list[np.ndarray], found: _Found, prepared: _Prepared) -> DriftSolution:
    """What was found for groups of frames, as that of their frames; the first frame used is the origin."""
    joint, n, size = found.joint, len(prepared.means), len(groups[0])
    single = size == 1
    sigma, floor = _position_sigma(joint, found.information)
    index = np.full(n, -1)
    for k, group in enumerate(groups):
        index[group] = group[0] if single else k
    left_out = dict(prepared.left_out)
    for k, why in found.left_out.items():
        left_out |= {int(i): why for i in np.flatnonzero(index == k)}
    used = np.array([i not in left_out for i in range(n)])
    first = int(np.flatnonzero(used)[0])
    of_frames = lambda values: np.where(used.reshape(-1, *[1] * (values.ndim - 1)), values[index], 0.0)
    if not single:
        sigma = np.hypot(sigma, _off_group_px(joint.shifts[joint.members], size))
    return DriftSolution(
        shift_px=of_frames(joint.shifts - joint.shifts[index[first]]),
        sigma_px=of_frames(sigma),
        used=used,
        left_out=left_out,
        registered=True,
        reason=_why_grouped(size),
        group=size,
        hop_probability=of_frames(joint.elsewhere),
        jumps=[jump | {"frame": jump["frame"] if single else int(groups[jump["frame"]][0])} for jump in joint.jumps],
        crlb_px=floor * math.sqrt(size),
        contrast=of_frames(found.contrast),
        counts_per_unit=prepared.per_unit,
        notes=prepared.notes,
    )
