"""The public door of the registration: checks of the input, then one joint solution or, where memory does not suffice, segments."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numba

from ..chunks import LongWork
from ..errors import EmphaseError
from .counts import DriftSolution
from .long import _register_long
from .options import OPTIONS, joint_solution_bytes
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
    """Shifts of the frames of a low-dose stack, from the joint likelihood of their Poisson counts.

    Parameters
    ----------
    frames
        Stack (n, y, x) of counts, or of grey values whose noise gives the counts; an array or recorded frames.
    max_shift_px
        Largest shift from the first frame that is looked for; if not given the side of a frame, of frames over 512 px 0.6 of it.
    leave_out, take_in
        Frames by number that are not used, and frames that are used although they look foreign.
    name
        What messages call the stack.
    budget_bytes
        Memory for the joint solution, 3 GB if not given. Where it would take more, the frames are solved jointly segment by
        segment, the segments' sums likewise, and every frame then climbs against the sum of all.
    work
        Where finished segments are kept (`LongWork`), so that a run that was broken off goes on, and who does them. The results are
        the same, to the bit, with it and without.
    progress
        Wraps the list of segments that are to be solved, as `tqdm.tqdm` does.

    Returns
    -------
    The shifts with their errors and doubts. Where single frames do not show their lattice, 2, 4, then 8 neighbours are summed and share
    a shift; where that fails too, the solution says so and has no shifts.

    Raises
    ------
    EmphaseError
        For arrays that cannot be counts (NaN, negative, all blank), for frames in ``leave_out`` or ``take_in`` that are not
        there, are in both or hold nothing, and where fewer than two are left.
    """
    from scipy import fft

    budget_bytes = OPTIONS.joint_bytes if budget_bytes is None else budget_bytes
    frames = check_stack(frames, name, budget_bytes)
    for wrong in (k for k in (*leave_out, *take_in) if not (isinstance(k, int) and 0 <= k < len(frames))):
        raise EmphaseError(f"{name}: frame {wrong} by hand: expected whole numbers from 0 to {len(frames) - 1}")
    leave_out, take_in = frozenset(leave_out), frozenset(take_in)
    if leave_out & take_in:
        raise EmphaseError(f"{name}: frame {min(leave_out & take_in)} is both left out and taken in by hand, expected one of these")
    if leave_out and len(frames) - len(leave_out) < 2:
        raise EmphaseError(f"{name}: {len(leave_out)} of {len(frames)} frames left out by hand, expected two at least to be left")
    empty = [i for i in sorted(take_in) if not frames[i].any()]
    if empty:
        raise EmphaseError(f"{name}: frame {empty[0]} taken in by hand holds no counts: there is nothing in it to register")
    with fft.set_workers(numba.get_num_threads()):
        if joint_solution_bytes(len(frames), frames.shape[1:]) <= budget_bytes:
            return _register(frames, max_shift_px, leave_out, take_in)
        return _register_long(frames, max_shift_px, leave_out, take_in, budget_bytes, work, progress)
