"""Which crystal of an overlap gives a pattern its phase, from the evidence of sets of crystals and from their shares.

The phase of a pattern is that of its largest crystal. Two things speak for a phase: the evidence of the best set of crystals in which one
of it is the largest (`emphase.ped.overlap`), which compares all hypotheses but knows strengths from the template banks only; and, within
the set that was chosen, the shares (`emphase.ped.shares`), which know them better but take the set for granted. Their logarithms add up.
How sure the shares may be is limited: that a larger share is the larger crystal was wrong in some of 150 patterns of held-out simulated
scans, however small its error, and far more often in recorded ones, where free orientations of a dense phase pick up what is left over.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class LeadingOptions:
    """Tuning numbers of the largest crystal."""

    model_sd: float = 0.06  # error of a share that the model of the strengths adds
    most_share_nats: float = 5.0  # that shares alone may say for a phase against another: odds of 150


OPTIONS = LeadingOptions()


def probability_of_largest(part_phase: np.ndarray, part_share: np.ndarray, part_sd: np.ndarray, n_phases: int) -> np.ndarray:
    """Probability that each phase has the largest crystal of a pattern, from the shares of its crystals and their errors.

    Parameters
    ----------
    part_phase
        (..., 3) phases of the crystals, -1 for none.
    part_share, part_sd
        (..., 3) their shares and standard deviations.
    n_phases
        Number p of candidate phases.

    Returns
    -------
    (p, ...), which adds up to one where there is a crystal: Gaussian, each phase against the largest share of the others.
    """
    from scipy.special import ndtr

    shares = np.stack([np.where(part_phase == k, part_share, 0).max(axis=-1) for k in range(n_phases)])
    sd = np.hypot(part_sd.max(axis=-1), OPTIONS.model_sd) * math.sqrt(2)
    result = np.empty_like(shares)
    for k in range(n_phases):
        rest = np.delete(shares, k, axis=0).max(axis=0) if n_phases > 1 else np.zeros_like(shares[0])
        result[k] = np.where(shares[k] > 0, ndtr((shares[k] - rest) / sd), 0.0)
    return result / np.maximum(result.sum(axis=0), 1e-9)


def log_odds_of_leading(part_phase: np.ndarray, part_share: np.ndarray, part_sd: np.ndarray, set_value: np.ndarray) -> np.ndarray:
    """Log odds (p, ...) in nats, up to a constant, that each phase has the largest crystal of a pattern.

    Parameters
    ----------
    part_phase, part_share, part_sd
        (..., 3) as in `probability_of_largest`.
    set_value
        (p, ...) evidence less price of the best set in which each phase is the largest, in nats.

    Notes
    -----
    With the set values V and the probabilities P of `probability_of_largest`: V_k + max(log(P_k / max P), -5).
    """
    probability = probability_of_largest(part_phase, part_share, part_sd, len(set_value))
    least = math.exp(-OPTIONS.most_share_nats)
    return set_value + np.log(np.maximum(probability / np.maximum(probability.max(axis=0), 1e-9), least))
