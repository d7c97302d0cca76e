"""Smooth random fields: white Gaussian noise through a Gaussian filter, standardised. What is uneven in a specimen follows them."""

from __future__ import annotations

import numpy as np


def _smooth_noise(rng: np.random.Generator, shape: tuple[int, ...], length_px: float, mode: str = "wrap") -> np.ndarray:
    """Gaussian noise of mean zero and unit variance, smooth over a length; ``mode`` is scipy's for what lies beyond the edge."""
    from scipy.ndimage import gaussian_filter

    noise = gaussian_filter(rng.standard_normal(shape), length_px, mode=mode)
    return (noise - noise.mean()) / noise.std()  # where the field is no longer than the length, the mean would be many deviations
