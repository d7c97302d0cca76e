"""Registration of low-dose stacks of frames by the likelihood of their Poisson counts, and checks of what it found.

With a scene λ = λ0 (1 + T), frame k at shift s and beam current a, the log-likelihood against a flat scene is
L(s) = Σ_r [k(r) ln(1 + T(r - s)) - a λ0 T(r - s)] over the frame: a correlation of the counts with the logarithm of the scene, less that
of the frame's box with the scene. T is the Wiener estimate of the scene from the *other* frames, because a template that holds the frame
itself biases it to where it is. Near-periodic lattices hop by a cell unless frames are solved together: all frames choose among their
best peaks of L under a drift prior with a heavy tail (Viterbi's algorithm), then runs of frames move by whole translations of the
lattice, by scores of all pairs of frames and the evidence of the whole stack. At last every frame climbs to its sub-pixel maximum.

Errors are those of the curvature of L; their floor is the Cramér-Rao bound of a shift under Poisson noise, J = Σ(∂λ)²/λ an axis.
Resolution is the Fourier ring correlation of halves that are registered by themselves (van Heel & Schatz, J. Struct. Biol. 151 (2005)
250), the number of frames to keep follows Hayward & Glaeser, Ultramicroscopy 4 (1979) 201. Pair shifts by themselves, as in Savitzky
et al., Ultramicroscopy 191 (2018) 56, are there for comparison.
"""

from .averages import covered_average, sum_frames
from .checks import cell_landscape, half_average_resolution, motion_within_frames
from .counts import DriftSolution, poisson_shift_information
from .damage import frames_to_keep, lattice_decay
from .pairs import pair_shifts
from .register import register_stack
from .stack import check_stack

__all__ = [
    "DriftSolution",
    "cell_landscape",
    "check_stack",
    "covered_average",
    "frames_to_keep",
    "half_average_resolution",
    "lattice_decay",
    "motion_within_frames",
    "pair_shifts",
    "poisson_shift_information",
    "register_stack",
    "sum_frames",
]
