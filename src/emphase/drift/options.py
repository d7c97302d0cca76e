"""TODO."""

from __future__ import annotations

import math

# Registration follows the likelihood of Poisson counts. With a scene λ = λ0 (1 + T), frame k at
# shift s and beam current a, the log-likelihood against a flat scene is
#     L(s) = Σ_r [k(r) ln(1 + T(r - s)) - a λ0 T(r - s)]            r over the frame,
# a correlation of the counts with the logarithm of the scene less that of the frame's box with
# the scene: two products in Fourier space, without wrap-around on a canvas that holds all frames.
# T is the Wiener estimate of the scene from the *other* frames (a template that holds the frame
# itself pulls it to where it is), which weighs every frequency by what is known there.
# Near-periodic lattices hop by a cell unless the frames are solved together: all frames choose
# among their best peaks of L under a drift prior with a heavy tail (Viterbi). What tells one cell from
# the next is spread thin, and a template of frames that are half in one cell and half in another
# defends itself; so runs of frames are then moved by whole translations of the lattice, by scores of all
# pairs of frames (`_CellScores`) and the evidence of the whole stack. At last every frame climbs to
# its sub-pixel maximum.

_JUMP_PROBABILITY = 0.03  # prior of a jump between two frames; the drift prior's tail
_JUMP_LENGTH_PX = 6.0  # of half of the jumps about
_START_SPREAD_PX = 1.2
_SPREADS_PX = (0.15, 0.3, 0.6, 1.2, 2.5, 5.0)  # of the drift between frames, that the stack chooses from
_FALSE_MODES = 1e-5  # share of noise modes of a spectrum that may be taken for signal
_RINGS, _RING_SIGMA = 42, 2.5  # rings of a spectrum, and the standard errors above noise that make one signal
_LEAST_SNR = 5.0  # of a frame's whole contrast, below which its highest peak may be noise
_CLEAR_NATS = 40.0  # a jump whose cell is that much clearer than the next is not tested again
_LEAST_GAIN = 3.0  # nats, below which no run of frames is moved to another cell
_COMPARED_MOVES = 4  # of runs of frames, for which the evidence of the whole stack is asked
_MODULATION_RINGS = 8  # of the band of a lattice's modulation, a spectral density each
_FRAME_NATS = 6.0  # a frame, by which a segment's other lattice cells may fall short and still be compared
_STEP_PX = 28  # between frames, beyond which no peak is looked for
_ROOM_PX, _TIGHT_ROOM_PX = 20, 42  # between the largest shift that is looked for, or was found, and where a canvas wraps around
_CANDIDATES = 36  # peaks of the likelihood that the joint solution may choose from
# Consecutive frames, few enough, are solved jointly as above: a segment, one chunk of long work. Neighbouring segments share some
# frames, which tells how segments lie to each other but for errors of a lattice cell. Their sums are the frames of
# a shorter stack with next to no noise, which is solved in the same way, about these places: what tells cells apart is seen best there.
# At last every frame climbs to its sub-pixel maximum against the scene of the whole stack without the few frames around it.

_JOINT_BYTES = 3e9  # of memory, that a joint solution may take: what needs more goes by segments
_BLOCK_BYTES = 1.3e8  # of frames that are read at a time


def _joint_bytes(n: int, frame_shape: tuple[int, ...]) -> float:
    """Memory that the joint solution of n frames takes at most (measured: with drift over all of a frame), with the frames."""
    return 60.0 * (n + 7) * math.prod(frame_shape) + n**2 * (6e4 if n <= 50 else 1.6e4)
