"""Distortion of a camera beyond an ellipse: keystone, radial distortion, and a centre of these beside the direct beam.

Places are offsets p from the direct beam, in px, and u = p / R with half the width of the camera R. An undistorted camera sees p = M g,
with the metric M of scale and ellipse; the recorded place is

    q = p + R (u (k·u) + c |u|² + ρ u |u|²)

with the keystone k of a camera that is tilted against the beam (perspective), the radial (pincushion or barrel) distortion ρ of the
projector lens, and c, which a distortion about another centre than the direct beam adds (Capitani et al., Ultramicroscopy 106 (2006) 66;
Savitzky et al., Microsc. Microanal. 27 (2021) 712). Spots are put where an undistorted camera would see them as soon as they are found, so
that matching and evidence know nothing of it.
"""

from __future__ import annotations

import math

import numpy as np

from .scan import Calibration

_ROUNDS = 6  # of the inversion; a distortion of a few per cent shrinks its error to as much in each


def _terms(u: np.ndarray) -> np.ndarray:
    """What each of the five coefficients adds to a place ``u`` (..., 2), in units of R: (..., 2, 5)."""
    r2 = np.sum(u * u, axis=-1)
    terms = np.zeros((*u.shape, 5))
    terms[..., 0], terms[..., 1] = u * u[..., :1], u * u[..., 1:]
    terms[..., 0, 2] = terms[..., 1, 3] = r2
    terms[..., 4] = u * r2[..., None]
    return terms


def radius_px(calibration: Calibration) -> float:
    """Half the width of the camera, R.

    Parameters
    ----------
    calibration
        Of the camera.
    """
    return min(calibration.mask.shape) / 2


def recorded_places(places_px: np.ndarray, centre_px: np.ndarray, calibration: Calibration) -> np.ndarray:
    """Where the camera records spots that an undistorted one would see at these places.

    Parameters
    ----------
    places_px
        (..., 2), (y, x).
    centre_px
        Direct beam, (2,) or (..., 2), (y, x).
    calibration
        With its ``distortion``.

    Returns
    -------
    (..., 2), (y, x) in px.
    """
    if not calibration.distortion.any():
        return places_px
    radius = radius_px(calibration)
    u = (places_px - centre_px)[..., ::-1] / radius
    return places_px + radius * (_terms(u) @ calibration.distortion)[..., ::-1]


def undistorted_places(places_px: np.ndarray, centre_px: np.ndarray, calibration: Calibration) -> np.ndarray:
    """Where an undistorted camera would see recorded spots: the inverse of `recorded_places`, by iteration; arguments as there."""
    if not calibration.distortion.any():
        return places_px
    found = places_px
    for _ in range(_ROUNDS):
        found = found + places_px - recorded_places(found, centre_px, calibration)
    return found


def undistorted_mask(calibration: Calibration) -> np.ndarray:
    """Bad pixels (ky, kx) where an undistorted camera would have them; what it sees beyond the recorded one is bad."""
    return undistorted_image(calibration.mask.astype(np.float32), calibration, beyond=1.0) > 0.5


def undistorted_image(image: np.ndarray, calibration: Calibration, beyond: float = 0.0) -> np.ndarray:
    """A recorded image (ky, kx) as an undistorted camera would have it, with the value ``beyond`` where the recorded one sees nothing."""
    from scipy import ndimage

    if not calibration.distortion.any():
        return image
    places = np.moveaxis(np.indices(image.shape), 0, -1).astype(float)
    at = recorded_places(places, calibration.centre_px.reshape(-1, 2).mean(axis=0), calibration)
    return ndimage.map_coordinates(image, np.moveaxis(at, -1, 0), order=1, cval=beyond)


def fit_distortion(
    metric: np.ndarray,
    predicted: np.ndarray,
    measured: np.ndarray,
    weight: np.ndarray,
    radius_px: float,
    used: np.ndarray,
    prior_sd: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Metric and distortion from predicted g and recorded places of spots, by weighted linear least squares.

    Parameters
    ----------
    metric
        (2, 2) to start from, from g (x, y) in 1/Å to px.
    predicted
        (n, 2) g of the spots, (x, y) in 1/Å.
    measured
        (n, 2) their recorded places from the direct beam, (x, y) in px.
    weight
        (n,) of each.
    radius_px
        Half the width of the camera.
    used
        (5,) which coefficients of the distortion to fit; the others are 0.
    prior_sd
        (5,) standard deviation of each coefficient before the spots are looked at; without, nothing is known of them.

    Returns
    -------
    metric
        (2, 2), symmetric: a common rotation is taken out; a common shift is fitted besides and dropped.
    distortion
        (5,) the coefficients k (x, y), c (x, y) and ρ.
    error
        (5,) their standard deviations, of the scatter of the spots.

    Notes
    -----
    Outliers beyond three robust standard deviations are cut, in five rounds; each is linear, because places enter the distortion as they
    are predicted with the last metric.
    """
    keep = np.ones(len(predicted), bool)
    root = np.sqrt(weight)
    distortion, error, spread = np.zeros(5), np.zeros(5), 1.0
    linear = np.zeros((len(predicted), 2, 6))
    linear[:, 0, :2] = linear[:, 1, 2:4] = predicted
    linear[:, 0, 4] = linear[:, 1, 5] = 1
    for _ in range(5):
        extra = radius_px * _terms(predicted @ metric.T / radius_px)[..., used]
        design = np.concatenate([linear, extra], axis=-1)
        rows = (design[keep] * root[keep, None, None]).reshape(-1, design.shape[-1])
        values = (measured[keep] * root[keep, None]).ravel()
        held = np.eye(design.shape[-1])[6:] * (0.0 if prior_sd is None else math.sqrt(spread) / prior_sd[used][:, None])
        solved, *_ = np.linalg.lstsq(np.vstack([rows, held]), np.append(values, np.zeros(len(held))), rcond=None)
        residual = measured - design @ solved
        off = np.linalg.norm(residual, axis=1)
        spread = float(np.sum((values - rows @ solved) ** 2)) / max(len(values) - len(solved), 1)
        covariance = np.linalg.pinv(rows.T @ rows) * spread
        _, s, vt = np.linalg.svd(solved[:4].reshape(2, 2))
        metric = vt.T @ np.diag(s) @ vt
        distortion[used], error[used] = solved[6:], np.sqrt(np.diag(covariance)[6:])
        keep = off < 3 * max(1.4826 * float(np.median(off[keep])), 0.1)
    return metric, distortion, error
