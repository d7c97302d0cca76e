"""TODO."""

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
