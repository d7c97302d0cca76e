"""Candidates that the mask of a camera hides: what is not indexed may be one of them, and so may most of what touches it.

Where the reflections of a matrix are masked, to see what lies in it, or a large part of the camera is dead, a phase can be there and show
nothing. A pattern at the rim of a plate then shows the plate alone, though most of it may be matrix; which is the larger part there is not
known. In the middle of the plate its neighbours say so.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .evidence import _camera
from .scan import Calibration
from .templates import TemplateBank


@dataclass(frozen=True)
class HiddenOptions:
    """Tuning of what counts as hidden."""

    least_masked: float = 0.1  # of the camera: a smaller mask (lines between chips, hot pixels) hides no crystal
    hidden_share: float = 0.9  # of the strength of a template at its worst in-plane angle ...
    least_templates: float = 0.5  # ... in this share of a phase's zone axes
    angles: int = 120  # in the plane: every three degrees


OPTIONS = HiddenOptions()


def hidden_candidates(calibration: Calibration, banks: list[TemplateBank]) -> np.ndarray:
    """Whether each of p candidate phases may be in a pattern and show hardly anything, (p,).

    Parameters
    ----------
    calibration
        Of the scan, with its mask.
    banks
        Of the candidates.

    Notes
    -----
    A phase is hidden where 90 % of the strength of half of its templates lies on masked pixels at some in-plane angle.
    """
    camera = _camera(calibration)
    masked = camera.pixels <= 0.5
    if masked[2:-2, 2:-2].mean() < OPTIONS.least_masked:
        return np.zeros(len(banks), bool)
    centre = calibration.centre_px.reshape(-1, 2).mean(axis=0)
    return np.array([_hidden_share(bank, camera.metric, centre, masked) >= OPTIONS.least_templates for bank in banks])


def _hidden_share(bank: TemplateBank, metric: np.ndarray, centre: np.ndarray, masked: np.ndarray) -> float:
    """The share of the templates of a bank that may be hidden, with the direct beam at ``centre`` (y, x)."""
    coarse, last = bank.coarse, np.array(masked.shape) - 3
    most = np.zeros(len(coarse.frames))
    for step in range(OPTIONS.angles):
        turn = 2 * np.pi * (coarse.turn + step / OPTIONS.angles)
        g = coarse.radius * np.stack([np.cos(turn), np.sin(turn)])
        y, x = np.rint(centre[:, None] + (metric @ g)[::-1]).astype(int)
        shown = (y >= 2) & (x >= 2) & (y <= last[0]) & (x <= last[1])
        under = shown.copy()
        under[shown] = masked[y[shown], x[shown]]
        total, hidden = (np.bincount(coarse.template, coarse.weight * where, len(most)) for where in (shown, under))
        most = np.maximum(most, hidden / np.maximum(total, 1e-9))
    return float((most >= OPTIONS.hidden_share).mean())


def beside_hidden(phase_id: np.ndarray, hidden: np.ndarray) -> np.ndarray:
    """Whether a pattern (ny, nx) of a phase that is not hidden touches one that is not indexed, where any candidate is ``hidden`` (p,).

    ``phase_id`` (ny, nx) is -1 where not indexed.
    """
    from scipy import ndimage

    if not hidden.any():
        return np.zeros(phase_id.shape, bool)
    indexed = phase_id >= 0
    touches = ndimage.binary_dilation(~indexed, np.ones((3, 3)))
    return touches & indexed & ~hidden[np.maximum(phase_id, 0)]
