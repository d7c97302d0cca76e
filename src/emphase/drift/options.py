"""The tuning numbers of the registration, each with its reason, and the memory that a joint solution takes."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class DriftOptions:
    """Thresholds, priors and sizes of the registration of low-dose stacks; lengths in px, log-likelihoods in nats."""

    # drift prior: normal steps between frames, with the tail of jumps
    jump_probability: float = 0.03  # of a jump between two frames, one in about 30; the tail of the drift prior
    jump_length_px: float = 6.0  # of half of the jumps about: a tail that falls slowly, so that no jump is ruled out
    start_spread_px: float = 1.2  # of the drift between frames, before the stack has shown its own
    spreads_px: tuple[float, ...] = (0.15, 0.3, 0.6, 1.2, 2.5, 5.0)  # of the drift, from which the stack chooses by evidence

    # what stands out of the noise
    false_modes: float = 1e-5  # share of the noise modes of a spectrum that may pass as signal
    rings: int = 42  # of a spectrum, from 0 to its corner, for signal so thinly spread that only a whole ring shows it
    ring_sigma: float = 2.5  # standard errors above noise that make a ring's mean a signal
    least_snr: float = 5.0  # of a frame's whole contrast; below it the highest peak of its likelihood may be noise

    # which lattice cell
    clear_nats: float = 40.0  # a jump whose cell is clearer than the next by this is not tested again
    least_gain_nats: float = 3.0  # below which no run of frames is moved to another cell: a factor of 20 in probability
    compared_moves: int = 4  # likeliest moves of runs that are compared by the evidence of the whole stack, which is slow
    modulation_rings: int = 8  # of the band of a lattice's modulation, with one spectral density each
    frame_nats: float = 6.0  # a frame, by which other cells of a segment may fall short and still be compared

    # where maxima of the likelihood are looked for
    step_px: int = 28  # between frames, beyond which no peak is looked for
    room_px: int = 20  # beyond the largest shift looked for, before a canvas wraps around
    tight_room_px: int = 42  # the same beyond the largest shift found: more than step_px, so that peaks in reach do not wrap
    candidates: int = 36  # peaks of a frame's likelihood that the joint solution may choose from

    # stacks larger than memory
    joint_bytes: float = 3e9  # of memory that a joint solution may take; what needs more goes by segments
    block_bytes: float = 1.3e8  # of frames that are read at a time
    segment: int = 96  # frames of a segment at most: scores of pairs take memory and time as n²
    least_segment: int = 16  # frames of a segment at least, whatever the memory: its scene is what its frames show together
    shared: int = 8  # frames that neighbouring segments share, which tell how they lie to each other
    field_px: int = 512  # side of the field that segments are solved in, unless frames show less than field_snr there
    field_snr: float = 20.0  # of a frame's whole contrast in that field, well above least_snr
    least_likeness: float = 0.7  # of that of other sums, below which the sum of a segment shows something else
    binning_loss: float = 0.05  # of the information on shifts, that pixels twice as large may cost where frames exceed 1024 px


OPTIONS = DriftOptions()


def joint_solution_bytes(n: int, frame_shape: tuple[int, ...]) -> float:
    """Memory that the joint solution of n frames takes at most, with the frames: measured, for drift over all of a frame."""
    return 60.0 * (n + 7) * math.prod(frame_shape) + n**2 * (6e4 if n <= 50 else 1.6e4)
