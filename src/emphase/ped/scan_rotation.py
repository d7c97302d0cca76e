"""How the camera is turned against the scan, from the direct beam alone.

A beam that is out of focus casts a shadow image of the specimen into its disc: where the scan crosses an edge, one side of the disc is
dark before the other. In focus, the specimen's potential deflects the beam towards what is thicker (Waddell & Chapman, Optik 54 (1979)
83). Either way the centroid of the direct beam moves along the gradient of the bright field, in the axes of the camera, so that the two
fields differ by the camera's rotation, or are mirror images (Savitzky et al., Microsc. Microanal. 27 (2021) 712, turn the camera until the
deflection has no curl).

With u the deflection and g the gradient as complex numbers (x + i y, y down), u = a g or, where the camera shows a mirror image, u = b g*;
least squares give a = Σ u g* / Σ |g|² and b = Σ u g / Σ |g|². Which sign the deflection has depends on the defocus, so the angle is known
up to half a turn: patterns do not tell g from -g either.

What chance gives is measured: the same sums with one field shifted against the other; grains that deflect or shade the beam in directions
of their own are in it. So is the error of the angle, with what is left of u in place of u.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from .scan import OPTIONS as OF_SCANS


@dataclass(frozen=True)
class RotationOptions:
    """Tuning of the estimate."""

    least_known: float = 0.5  # of the patterns
    least_lines: int = 16  # of the scan in both directions: with fewer, shifts of the fields are hardly independent
    smooth_steps: float = 1.0  # standard deviation of the Gaussian over the bright field, against its noise
    cut_quantile: float = 0.99  # of the deflections, at which longer ones are cut: cosmic rays, spots near the direct beam
    least_shift_share: float = 0.125  # of the scan's size: farther apart, the fields of chance are independent of each other
    least_by_chance: float = 4.0  # times the amplitude that chance gives (root mean square): it is as large once in 10^7 scans
    most_sd_deg: float = 3.0  # of the angle: five times less than facets at random would be told apart by
    least_difference_deg: float = 5.0  # to a rotation that is given, for the two to contradict each other ...
    sigmas: float = 4.0  # ... and so many standard deviations
    least_ratio: float = 3.0  # of the rotated to the mirrored amplitude, or the other way: else the deflection is no image of the gradient


OPTIONS = RotationOptions()


class ScanRotation(NamedTuple):
    """The camera against the scan.

    Attributes
    ----------
    rotation_deg
        The angle by which the image of the camera has to be turned, counter-clockwise as it is shown, to lie on the map as it is shown,
        from -90 to 90: half a turn more fits as well.
    sd_deg
        Its standard deviation.
    mirrored
        Whether the image is upside down before that.
    """

    rotation_deg: float
    sd_deg: float
    mirrored: bool

    @property
    def in_words(self) -> str:
        """For people."""
        mirrored = "upside down and " if self.mirrored else ""
        return f"the camera is {mirrored}turned by {self.rotation_deg:.1f} ± {self.sd_deg:.1f}° against the scan, or by half a turn more"

    def contradicts(self, rotation_deg: float, *, flip_y: bool = False, flip_x: bool = False) -> bool:
        """Whether a given rotation with its flips is another one: by 5° and by four standard deviations, or the other hand."""
        apart = abs((self.rotation_deg - rotation_deg + 90) % 180 - 90)
        return self.mirrored != (flip_y != flip_x) or apart > max(OPTIONS.least_difference_deg, OPTIONS.sigmas * self.sd_deg)


def estimate(deflection_px: np.ndarray, intensity: np.ndarray) -> ScanRotation | None:
    """The rotation of the camera against the scan, from where the direct beam is and how bright.

    Parameters
    ----------
    deflection_px
        (ny, nx, 2), (y, x): the direct beam of every pattern less the smooth descan.
    intensity
        (ny, nx) of the direct beam; blanked patterns (under a tenth of the median) do not count.

    Returns
    -------
    None where the scan is under 16 lines, where half of its patterns are blanked or unknown (NaN), or where the angle is not known to 3°.

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> thickness = np.kron(rng.normal(size=(16, 16)), np.ones((4, 4)))
    >>> down, right = np.gradient(thickness)
    >>> deflection_px = np.stack([-right, down], axis=-1)  # to the right on the camera is down in the map
    >>> abs(round(estimate(deflection_px, 100 - thickness).rotation_deg))
    90
    """
    from scipy import ndimage

    ny, nx = intensity.shape
    if min(ny, nx) < OPTIONS.least_lines:
        return None
    known = np.isfinite(deflection_px).all(axis=-1) & np.isfinite(intensity)
    if known.mean() < OPTIONS.least_known:
        return None
    use = known & (intensity > OF_SCANS.blanked * np.median(intensity[known]))
    if use.sum() < OPTIONS.least_lines**2:
        return None
    bright = ndimage.gaussian_filter(np.where(use, intensity, np.median(intensity[use])), OPTIONS.smooth_steps)
    down, right = np.gradient(bright)
    off = deflection_px - np.median(deflection_px[use], axis=0)
    most = np.quantile(np.abs(off[use]), OPTIONS.cut_quantile)
    off = np.where(use[..., None], np.clip(off, -most, most), 0)
    deflection, gradient = off[..., 1] + 1j * off[..., 0], np.where(use, right + 1j * down, 0)
    power = float((np.abs(gradient) ** 2).sum())
    if not power:
        return None
    turned, mirrored = (complex((deflection * g).sum() / power) for g in (gradient.conj(), gradient))
    is_mirrored = abs(mirrored) > abs(turned)
    amplitude, other, image = (mirrored, turned, gradient.conj()) if is_mirrored else (turned, mirrored, gradient)
    if abs(amplitude) <= OPTIONS.least_ratio * abs(other):
        return None
    if abs(amplitude) <= OPTIONS.least_by_chance * _by_chance(deflection, image):
        return None
    sd_deg = math.degrees(_by_chance(deflection - amplitude * image, image) / (math.sqrt(2) * abs(amplitude)))
    if sd_deg > OPTIONS.most_sd_deg:
        return None
    angle = math.degrees(np.angle(amplitude)) * (-1 if is_mirrored else 1)
    return ScanRotation((angle + 90) % 180 - 90, sd_deg, bool(is_mirrored))


def _by_chance(field: np.ndarray, image: np.ndarray) -> float:
    """The root mean square of the amplitude of ``image`` in ``field`` where the one is shifted against the other."""
    sums = np.fft.ifft2(np.fft.fft2(field) * np.fft.fft2(image).conj())
    far_y, far_x = (np.minimum(np.arange(n), n - np.arange(n)) >= OPTIONS.least_shift_share * n for n in sums.shape)
    by_chance = np.abs(sums[far_y[:, None] | far_x]) ** 2
    return float(np.sqrt(by_chance.mean()) / (np.abs(image) ** 2).sum())
