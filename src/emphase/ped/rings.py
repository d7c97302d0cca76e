"""Where to start the fit of scale and ellipse: the rings of all phases against the lengths of all spots.

Over many crystals the spots of a scan lie on rings, whose radii are the spacings of its phases over the scale, stretched by the ellipse of
the camera. No crystal need be matched: the scale and the ellipse sought are those with which the lengths of the spots gather where the
phases have reflections (a likelihood of lengths, by cross-correlation of histograms in log g). It looks far, within some 12 % of the scale
and an ellipse of 6 %, but cannot tell one cubic metal from another of the same lattice: the evidence of matched crystals chooses among
the starts.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from .scan import Calibration
from .spots import Spots
from .templates import TemplateBank, _longest_g


@dataclass(frozen=True)
class RingOptions:
    """Tuning numbers of the search."""

    spot_nats: float = 8.0  # evidence of a spot that counts
    most_nats: float = 20.0  # beyond, spots count alike, so that bright ones do not decide alone
    step: float = 0.002  # of log g: a fifth of a ring's width
    ring_width: float = 0.008  # standard deviation of a ring in log g: strain, keystone, the error of a place
    smooth_width: float = 0.08  # of the density to which rings are compared
    floor: float = 0.3  # of the density that is no ring: artefacts, other phases
    reach: float = 0.95  # of the longest reflection: beyond, the density ends
    most_scale: float = 0.12  # largest change of the scale that is looked for, ...
    most_strain: float = 0.036  # ... and of the logarithm of a length by the ellipse: long over short axis is 1 + twice that
    strain_step: float = 0.004
    apart: float = 0.012  # starts that differ by less, in scale and strain, are one


OPTIONS = RingOptions()


def ring_starts(spots: Spots, calibration: Calibration, banks: Sequence[TemplateBank], *, most: int = 6) -> list[Calibration]:
    """Calibrations from which a fit may start, from the lengths of the spots and the spacings of the phases, the likeliest first.

    Parameters
    ----------
    spots
        Of n patterns, as recorded.
    calibration
        Direct beams, the scale as given, no strain.
    banks
        Of the candidate phases.
    most
        Starts to return at most.
    """
    off, weight = clear_spots(spots)
    if not len(off):
        return []
    length = np.log(np.linalg.norm(off, axis=1) * calibration.scale_invA_per_px)
    double = 2 * np.arctan2(off[:, 1], off[:, 0])
    edges = np.arange(math.log(0.1) - 0.3, math.log(_longest_g(banks)) + 0.3, OPTIONS.step)
    gathered = _ring_likelihood(banks, edges)
    reach = round(OPTIONS.most_scale / OPTIONS.step)
    strains = np.arange(-OPTIONS.most_strain, OPTIONS.most_strain + 1e-9, OPTIONS.strain_step)
    found = []
    for along in strains:
        for across in strains:
            stretched = length - along * np.cos(double) - across * np.sin(double)
            number, _ = np.histogram(stretched, edges, weights=weight)
            score = [float(number[reach:-reach] @ gathered[reach + k : len(gathered) - reach + k]) for k in range(-reach, reach + 1)]
            best = int(np.argmax(score))
            found.append((score[best], (best - reach) * OPTIONS.step, float(along), float(across)))
    return [_start(calibration, *place) for place in _apart(found)[:most]]


def clear_spots(spots: Spots) -> tuple[np.ndarray, np.ndarray]:
    """Places (m, 2) of all clear spots from the direct beam, (x, y) in px, and their weights (m,), the evidence up to `most_nats`."""
    clear = (spots.table[:, :, 4] >= OPTIONS.spot_nats) & (np.arange(spots.table.shape[1]) < spots.number[:, None])
    off = (spots.table[:, :, 1::-1] - spots.centre_px[:, None, ::-1])[clear]
    return off, np.minimum(spots.table[:, :, 4][clear], OPTIONS.most_nats)


def _ring_likelihood(banks: Sequence[TemplateBank], edges: np.ndarray) -> np.ndarray:
    """Log of how much denser reflections lie in each bin of log g than about it, the mean over the phases, less its own smooth mean.

    So spots that lie anyhow add nothing, wherever they are; nor do those beyond the longest reflection.
    """
    from scipy import ndimage

    smoothed = lambda values, width: ndimage.gaussian_filter1d(values, width / OPTIONS.step)
    ratio = np.zeros(len(edges) - 1)
    for bank in banks:
        number, _ = np.histogram(np.log(np.linalg.norm(bank.g, axis=1)), edges, weights=bank.strength)
        smooth = smoothed(number, OPTIONS.smooth_width)
        ratio += smoothed(number, OPTIONS.ring_width) / np.maximum(smooth, 1e-6 * smooth.max()) / len(banks)
    gathered = np.log(OPTIONS.floor + (1 - OPTIONS.floor) * ratio)
    return np.where(edges[1:] < math.log(OPTIONS.reach * _longest_g(banks)), gathered - smoothed(gathered, OPTIONS.smooth_width), 0.0)


def _apart(found: list[tuple[float, float, float, float]]) -> list[tuple[float, float, float]]:
    """Change of the scale and strain of the best starts that are no neighbours of a better one."""
    kept: list[tuple[float, float, float]] = []
    for _, *place in sorted(found, reverse=True):
        if all(max(abs(a - b) for a, b in zip(place, other, strict=True)) > OPTIONS.apart for other in kept):
            kept.append((place[0], place[1], place[2]))
    return kept


def _start(calibration: Calibration, change: float, along: float, across: float) -> Calibration:
    """The calibration with the logarithm of its scale changed, and a strain that stretches lengths by ``along`` and ``across``."""
    strain = np.array([[1 + along, across], [across, 1 - along]])
    strain /= math.sqrt(np.linalg.det(strain))
    return replace(calibration, scale_invA_per_px=calibration.scale_invA_per_px * math.exp(change), strain=strain)
