"""TODO."""

from __future__ import annotations

import math

import numpy as np

from .index import Indexing


def decide_phases(
    found: Indexing,
    correlation: np.ndarray,
    *,
    least_support: float = 2.0,
    least_margin: float = 3.0,
    least_correlation: float = 0.35,
    least_on_lattice: float = 0.15,
    sure_correlation: float = 0.5,
) -> dict[str, np.ndarray]:
    """The phase of every pattern.

    Where one crystal explains a pattern, its phase is decided by the evidence above chance;
    where several overlap, by the largest share, whose error is that of the shares. Evidence compares the
    candidates only; whether any of them is right shows in ``correlation`` (ny, nx) (`correlation_map`).

    Returns maps (ny, nx): ``phase_id`` (-1 not indexed: less than ``least_support`` nats above
    what chance gives, the neighbours' lattice included, or less than ``least_correlation``; ``least_on_lattice`` will do where
    the support is clear and two neighbours have the lattice too, because near a systematic row one strong spot outshines what
    the others say), ``probability`` (p, ny, nx), ``phase_margin`` in nats to the next phase, ``orientation_margin`` to the next
    orientation of the same phase, ``decided``: a margin of at least ``least_margin`` (20 to 1) and a correlation of at least
    ``sure_correlation``; ``share`` and ``crystal_id`` of the crystal that gives the phase, ``lattice_id`` of its lattice, and
    ``second_phase_id`` (-1: none), ``second_share`` and ``second_crystal_id`` of the largest crystal of another phase; and
    ``rotation`` (ny, nx, 3, 3).
    """
    support = found.support
    p = len(support)
    total = support.max(axis=0) + found.prior
    on_lattice = (total > least_support + 6) & (found.prior >= 3) & (correlation >= least_on_lattice)
    indexed = (total > least_support) & ((correlation >= least_correlation) | on_lattice)
    several = (found.part_share > 0).sum(axis=-1) > 1
    phase = np.where(found.part_phase[..., 0] >= 0, found.part_phase[..., 0], found.winner)
    lead = np.take_along_axis(support, phase[None], axis=0)[0]
    others = np.where(np.arange(p)[:, None, None] == phase, -np.inf, support)
    weight = np.exp(np.clip(np.where(np.arange(p)[:, None, None] == phase, np.maximum(lead, others.max(axis=0)), support) - lead, -50, 50))
    margin = lead - others.max(axis=0) if p > 1 else lead
    shares = np.stack([np.where(found.part_phase == k, found.part_share, 0).max(axis=-1) for k in range(p)])
    of_shares = _probability_of_largest(shares, found)
    probability = np.where(several, of_shares, weight / weight.sum(axis=0))
    ranked = np.sort(of_shares, axis=0)
    margin = np.where(several, np.log(np.maximum(ranked[-1], 1e-6) / np.maximum(ranked[-2], 1e-6)) if p > 1 else margin, margin)
    rotation = np.take_along_axis(found.rotation, phase[None, ..., None, None], axis=0)[0]
    rotation = np.where((found.part_phase[..., 0] >= 0)[..., None, None], found.part_rotation[..., 0, :, :], rotation)
    evidence, runner_up = (np.take_along_axis(a, phase[None], axis=0)[0] for a in (found.evidence, found.runner_up))
    return {
        "phase_id": np.where(indexed, phase, -1),
        "probability": probability,
        "phase_margin": np.maximum(margin, 0.0),
        "orientation_margin": np.clip(evidence - runner_up, 0.0, 100.0),
        "decided": indexed & (margin >= least_margin) & (correlation >= sure_correlation),
        "share": np.where(indexed, np.where(found.part_phase[..., 0] >= 0, found.part_share[..., 0], 1.0), 0.0),
        "crystal_id": np.where(indexed, found.part_crystal[..., 0], -1),
        "lattice_id": np.where(indexed, found.part_lattice[..., 0], -1),
        "rotation": rotation,
        **_second_phase(found, indexed),
    }


def _second_phase(found: Indexing, indexed: np.ndarray) -> dict[str, np.ndarray]:
    """Phase, share and crystal (ny, nx) of the largest crystal of another phase in every indexed pattern."""
    others = np.where(found.part_phase == found.part_phase[..., :1], 0.0, found.part_share)
    place = np.argmax(others, axis=-1)[..., None]
    present = indexed & (others.max(axis=-1) > 0)
    of_second = lambda part, nothing: np.where(present, np.take_along_axis(part, place, axis=-1)[..., 0], nothing)
    return {
        "second_phase_id": of_second(found.part_phase, -1),
        "second_share": of_second(found.part_share, 0.0),
        "second_crystal_id": of_second(found.part_crystal, -1),
    }


def _probability_of_largest(shares: np.ndarray, found: Indexing, model_sd: float = 0.06) -> np.ndarray:
    """Probability (p, ny, nx) that each phase has the largest share (p, ny, nx) of a pattern, from the shares' errors.

    Gaussian, pair by pair against the largest of the others; ``model_sd`` is what the strengths' model adds to each share.
    """
    from scipy.special import ndtr

    sd = np.hypot(found.part_sd.max(axis=-1), model_sd) * math.sqrt(2)
    result = np.empty_like(shares)
    for k in range(len(shares)):
        rest = np.delete(shares, k, axis=0).max(axis=0) if len(shares) > 1 else np.zeros_like(shares[0])
        result[k] = np.where(shares[k] > 0, ndtr((shares[k] - rest) / sd), 0.0)
    return result / np.maximum(result.sum(axis=0), 1e-9)
