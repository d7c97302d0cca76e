"""TODO."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numba

from ..chunks import LongWork
from ..errors import EmphaseError
from .counts import DriftSolution
from .long import _register_long
from .options import _JOINT_BYTES, _joint_bytes
from .solution import _register
from .stack import check_stack


def register_stack(
    frames: Any,
    *,
    max_shift_px: float | None = None,
    leave_out: Iterable[int] = (),
    take_in: Iterable[int] = (),
    name: str = "the stack",
    budget_bytes: float | None = None,
    work: LongWork | None = None,
    progress: Any = None,
) -> DriftSolution:
    """Joint registration of a low-dose stack of frames (n, y, x) of counts, an array or recorded frames; see `DriftSolution`.

    Where single frames do not show their lattice, 2, 4, then 8 neighbours are summed and share
    a shift; where that fails too, the solution says so and has no shifts. ``max_shift_px`` is
    the largest shift from the first frame (if not given the side of the frame, of frames over 512 px 0.6 of it).
    Frames in ``leave_out`` are not used, those in ``take_in`` are although they look foreign.

    Where the joint solution would take more than ``budget_bytes`` of memory (3 GB if not given) the frames are solved jointly segment by
    segment, the segments' sums likewise, and every frame then climbs against the sum of all. ``work`` says where
    finished segments are kept (`LongWork`), so that a run that was broken off goes on, and who does them; the results are the same,
    to the bit, with any of it and without.

    Raises
    `EmphaseError` for arrays that cannot be counts (NaN, negative, all blank), `EmphaseError` for frames that are not there
    or hold nothing.
    """
    from scipy import fft

    budget_bytes = _JOINT_BYTES if budget_bytes is None else budget_bytes
    frames = check_stack(frames, name, budget_bytes)
    for strange in (k for k in (*leave_out, *take_in) if not (isinstance(k, int) and 0 <= k < len(frames))):
        raise EmphaseError(f"{name}: frame {strange} by hand: expected whole numbers from 0 to {len(frames) - 1}")
    leave_out, take_in = frozenset(leave_out), frozenset(take_in)
    if leave_out & take_in:
        raise EmphaseError(f"{name}: frame {min(leave_out & take_in)} is both left out and taken in by hand, expected one of these")
    if leave_out and len(frames) - len(leave_out) < 2:
        raise EmphaseError(f"{name}: {len(leave_out)} of {len(frames)} frames left out by hand, expected two at least to be left")
    empty = [i for i in sorted(take_in) if not frames[i].any()]
    if empty:
        raise EmphaseError(f"{name}: frame {empty[0]} taken in by hand holds no counts: there is nothing in it to register")
    with fft.set_workers(numba.get_num_threads()):
        if _joint_bytes(len(frames), frames.shape[1:]) <= budget_bytes:
            return _register(frames, max_shift_px, leave_out, take_in)
        return _register_long(frames, max_shift_px, leave_out, take_in, budget_bytes, work, progress)
