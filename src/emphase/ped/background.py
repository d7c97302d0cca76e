"""The background of a diffraction pattern against the distance from the direct beam.

The mean in rings whose width grows with the distance. Discs that stand out are left out, and the mean is taken again.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from ..kernels import kernel


class BackgroundOptions(NamedTuple):
    """Tuning numbers of the background; a named tuple, so that kernels can read it."""

    rounds: int = 3  # until the discs that are left out no longer change
    stands_out_sd: float = 2.5  # a disc so far above the background is left out of it ...
    stands_out_counts: float = 1.5  # ... where it also has so many counts more


OPTIONS = BackgroundOptions()


@kernel
def _radial_background(image, detector, counts, radius, background, ceiling):
    """Counts a pixel of the smooth background against radius (px); apertures that stand out are left out, and the mean is taken again."""
    ny, nx = image.shape
    n_radii = len(background)
    per_unit, zero = np.float32(1 / detector.gain), np.float32(detector.offset)
    mask, full = detector.mask, detector.full
    total, number = np.zeros(n_radii + 1), np.zeros(n_radii + 1)
    ceiling[:] = 1e30
    for _ in range(OPTIONS.rounds):
        total[:] = 0
        number[:] = 0
        for y in range(ny):
            for x in range(nx):
                r = radius[y, x]
                if counts[y, x] <= ceiling[r] and not mask[y, x]:
                    total[r + 1] += (image[y, x] - zero) * per_unit
                    number[r + 1] += 1
        for r in range(n_radii):
            total[r + 1] += total[r]
            number[r + 1] += number[r]
        for r in range(n_radii):
            reach = 2 + r // 12
            low, high = max(0, r - reach), min(n_radii, r + reach + 1)
            background[r] = max((total[high] - total[low] + 0.3) / (number[high] - number[low] + 1.0), 1e-3)
            expected = background[r] * full
            ceiling[r] = expected + OPTIONS.stands_out_sd * math.sqrt(expected) + OPTIONS.stands_out_counts
