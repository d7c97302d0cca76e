"""The phase of every pattern, with its probability, from the solutions of all phases and the shares of overlapping crystals.

Where one crystal explains a pattern, its phases are compared by *support*, the evidence above what chance gives each bank: the
probabilities are those of equal priors (Bayes' theorem), the margin is the log of the odds against the next phase. Where several crystals
overlap, the best set in which a phase is the largest is compared with the best sets of the other phases, and the shares within the chosen
set count as far as they may (`emphase.ped.leading`).

Evidence compares the candidates only. Whether any of them is right is seen in what the pattern holds beyond them
(`emphase.ped.explained`); a pattern is *indexed* where support and correlation suffice, and its phase is *decided* where the margin is
large and the crystals explain the pattern.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .index import Indexing
from .leading import log_odds_of_leading


@dataclass(frozen=True)
class DecisionOptions:
    """Tuning numbers of the decision; the first four are the defaults of `decide_phases`."""

    least_support: float = 2.0  # nats above what chance hardly ever exceeds, the neighbours' lattice included
    least_margin: float = 3.0  # nats: odds of 20 to 1
    least_correlation: float = 0.35  # below, most of the strength lies on spots that the crystals found do not predict
    least_on_lattice: float = 0.15  # near a systematic row one strong spot outshines the others, and the correlation falls
    least_thickness: float = 0.03  # of what its crystals have elsewhere: less is afterglow of the last frame, or a halo
    clear_support: float = 6.0  # nats beyond least_support, with which a neighbours' lattice makes up for a low correlation ...
    lattice_nats: float = 3.0  # ... where the prior is at least this: two neighbours on it
    most_nats: float = 50.0  # exponents are kept within; e to the 50 is certainty
    most_set_nats: float = 30.0  # margins between sets are cut here: a phase of which no set was tried is not beyond all doubt
    most_orientation_nats: float = 100.0  # margins of the orientation are cut here


OPTIONS = DecisionOptions()


def decide_phases(
    found: Indexing,
    correlation: np.ndarray,
    explained: np.ndarray,
    *,
    least_support: float = OPTIONS.least_support,
    least_margin: float = OPTIONS.least_margin,
    least_correlation: float = OPTIONS.least_correlation,
    least_on_lattice: float = OPTIONS.least_on_lattice,
) -> dict[str, np.ndarray]:
    """The phase of every pattern and its probability, from what `emphase.ped.index.index_scan` found.

    Parameters
    ----------
    found
        Solutions of p phases for a scan (ny, nx), and the crystals that overlap.
    correlation
        Of measured and predicted spots (ny, nx), of `emphase.ped.explained.explain`.
    explained
        Whether the crystals explain as much of each pattern (ny, nx) as they would if they were right, of the same.
    least_support
        In nats above what chance gives, the neighbours' lattice included: less is not indexed.
    least_margin
        In nats to the next phase, to be decided; 3 is 20 to 1.
    least_correlation
        Less is not indexed, but ...
    least_on_lattice
        ... this is enough where the support is clear and two neighbours have the lattice too, because near a systematic row one strong spot
        outshines the others.

    Returns
    -------
    Maps (ny, nx) by name:

    ``phase_id``
        Number of the phase, -1 where not indexed.
    ``probability``
        Of each phase, (p, ny, nx).
    ``phase_margin``, ``orientation_margin``
        In nats to the next phase, and to the next orientation of the same phase.
    ``afterglow``
        Whether its spots would be indexed, but look like what the camera kept of the pattern before it.
    ``decided``
        Whether the pattern is indexed with a margin of at least ``least_margin``, and explained.
    ``share``, ``crystal_id``, ``lattice_id``
        Of the crystal that gives the phase: its share, its number, and that of its lattice, -1 for none.
    ``rotation``
        Its orientation (ny, nx, 3, 3), sample to crystal.
    ``second_phase_id``, ``second_share``, ``second_crystal_id``
        Of the largest crystal of another phase; -1, 0 and -1 where there is none.

    Notes
    -----
    With the support s_k of phase k, a pattern of one crystal has the phase of largest s, the probabilities p_k ∝ exp(s_k), and the
    margin log(p_1 / p_2) = s_1 - s_2. The prior on lattices may choose another phase than the largest s; it then counts as
    probable as the best of the others, and has no margin.
    """
    chosen = found.part_phase[..., 0] >= 0
    phase = np.where(chosen, found.part_phase[..., 0], found.winner)
    shown = _indexed(found, correlation, least_support, least_correlation, least_on_lattice)
    indexed = shown & ~found.afterglow & (found.thickness >= OPTIONS.least_thickness)
    overlap = (found.part_share > 0).sum(axis=-1) > 1
    by_evidence, evidence_margin = _compare_support(found.support, phase)
    by_set, set_margin = _compare_sets(found, phase)
    margin = np.where(overlap, set_margin, evidence_margin) if len(found.support) > 1 else evidence_margin
    evidence, runner_up, rotation = (_of_phase(a, phase) for a in (found.evidence, found.runner_up, found.rotation))
    return {
        "phase_id": np.where(indexed, phase, -1),
        "probability": np.where(overlap, by_set, by_evidence),
        "phase_margin": np.maximum(margin, 0.0),
        "orientation_margin": np.clip(evidence - runner_up, 0.0, OPTIONS.most_orientation_nats),
        "afterglow": shown & found.afterglow,
        "decided": indexed & (margin >= least_margin) & explained,
        "share": np.where(indexed, np.where(chosen, found.part_share[..., 0], 1.0), 0.0),
        "crystal_id": np.where(indexed, found.part_crystal[..., 0], -1),
        "lattice_id": np.where(indexed, found.part_lattice[..., 0], -1),
        "rotation": np.where(chosen[..., None, None], found.part_rotation[..., 0, :, :], rotation),
        **_second_phase(found, indexed),
    }


def _of_phase(values: np.ndarray, phase: np.ndarray) -> np.ndarray:
    """Of values (p, ny, nx, …) those of the phase (ny, nx) of each pattern, (ny, nx, …)."""
    number = phase.reshape(1, *phase.shape, *(1,) * (values.ndim - 3))
    return np.take_along_axis(values, number, axis=0)[0]


def _indexed(
    found: Indexing, correlation: np.ndarray, least_support: float, least_correlation: float, least_on_lattice: float
) -> np.ndarray:
    """Whether a pattern (ny, nx) has the support and the correlation of a crystal."""
    support = found.support.max(axis=0) + found.prior
    clear_on_lattice = (support > least_support + OPTIONS.clear_support) & (found.prior >= OPTIONS.lattice_nats)
    least = np.where(clear_on_lattice, min(least_on_lattice, least_correlation), least_correlation)
    return (support > least_support) & (correlation >= least)


def _compare_support(support: np.ndarray, phase: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Probability (p, ny, nx) of each phase by its support (p, ny, nx), and the margin (ny, nx) of the chosen ``phase`` in nats."""
    of_chosen = np.arange(len(support))[:, None, None] == phase
    lead = _of_phase(support, phase)
    next_best = np.where(of_chosen, -np.inf, support).max(axis=0)
    log_odds = np.where(of_chosen, np.maximum(lead, next_best), support) - lead
    weight = np.exp(np.clip(log_odds, -OPTIONS.most_nats, OPTIONS.most_nats))
    return weight / weight.sum(axis=0), lead - next_best if len(support) > 1 else lead


def _compare_sets(found: Indexing, phase: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Probability (p, ny, nx) that each phase has the largest crystal, and the log odds (ny, nx) of ``phase`` against the next."""
    log_odds = log_odds_of_leading(found.part_phase, found.part_share, found.part_sd, found.set_value)
    of_chosen = np.arange(len(log_odds))[:, None, None] == phase
    next_best = np.where(of_chosen, -np.inf, log_odds).max(axis=0)
    weight = np.exp(np.maximum(log_odds - log_odds.max(axis=0), -OPTIONS.most_nats))
    return weight / weight.sum(axis=0), np.minimum(_of_phase(log_odds, phase) - next_best, OPTIONS.most_set_nats)


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
