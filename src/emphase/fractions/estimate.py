"""TODO."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np

from ..errors import EmphaseError
from .hidden import _as_indexed
from .spike_in import SpikeIn


def misclassification(trial: SpikeIn, maps: dict[str, np.ndarray], wanted: int, inside: np.ndarray) -> tuple[float, float, float]:
    """What misclassification adds to the share of a phase, as the trial says: bias, its standard error, and a correction.

    The trial's patterns stand for all mixtures of the map, the unseen ones too: of the known mixtures a share was seen
    as such. The standard error is that of the sum over pairs of crystals. As correction the bias is drawn towards zero
    by how far it stands out of that error (of two independent estimates, zero and the bias, weighted by their
    squared errors), because a bias that is not known does more harm when it is taken off.
    """
    n_inside = int(inside.sum())
    if len(trial.pair) == 0 or n_inside == 0:
        return 0.0, 0.0, 0.0
    seen = max(trial.several.mean(), 0.2)
    mixtures = (maps["second_phase_id"] >= 0).sum() / seen
    gained = ((trial.found == wanted).astype(float) - (trial.lead == wanted)) * mixtures / len(trial.pair) / n_inside
    by_pair = np.bincount(trial.pair, gained)
    bias, error = float(by_pair.sum()), float(np.sqrt((by_pair**2).sum()))
    return bias, error, bias**3 / (bias**2 + error**2) if error > 0 else 0.0


def detection_limit(trial: SpikeIn, maps: dict[str, np.ndarray], wanted: int, inside: np.ndarray) -> float:
    """The smallest share of the patterns ``inside`` (ny, nx) that counts as detected.

    The 95 % upper bound (Poisson) of how many patterns would be given the phase if there were none of it: mixtures
    of other phases that the trial gave it, scaled to all mixtures of the map, and
    what its probability adds up to in patterns that other phases won. With nothing seen it is the rule of three.
    """
    from scipy.stats import gamma

    n_inside = max(int(inside.sum()), 1)
    without = (trial.lead != wanted) & (trial.second != wanted)
    mixtures = (maps["second_phase_id"] >= 0).sum()
    rate = float((trial.found[without] == wanted).mean()) if without.any() else 0.0
    lost = inside & (_as_indexed(maps) >= 0) & (maps["phase_id"] != wanted) & (maps["second_phase_id"] < 0)
    false = rate * mixtures + float(maps["probability"][wanted][lost].sum())
    return float(min(1.0, gamma.ppf(0.95, false + 1) / n_inside))


@dataclass(frozen=True)
class Fraction:
    """A share of an area: ``raw`` counts winners, ``value`` is corrected for misclassification, with the 95 % interval ``low`` to ``high``.

    That interval is for the area that was scanned. ``draws`` (d,) are what it rests on; ``elsewhere`` (d,) is how
    the value would vary over other areas of the same lamella, its grains resampled, or None where there is only one.
    ``bias`` and ``bias_error`` are what misclassification adds, as known mixtures say (`misclassification`).
    """

    value: float
    low: float
    high: float
    raw: float
    draws: np.ndarray
    elsewhere: np.ndarray | None
    detection_limit: float = 0.0
    bias: float = 0.0
    bias_error: float = 0.0

    @property
    def detected(self) -> bool:
        """Over what false patterns alone reach once in twenty scans, as indexed too, and with an interval that leaves zero out."""
        return min(self.value, self.raw) > self.detection_limit and self.low > 0

    @property
    def upper_limit(self) -> float:
        """What the share is below, where it is not detected."""
        return max(self.detection_limit, self.high)

    @property
    def elsewhere_ci95(self) -> tuple[float, float] | None:
        """95 % interval of the lamella beyond the scanned area."""
        if self.elsewhere is None:
            return None
        low, high = np.quantile(self.elsewhere, [0.025, 0.975])
        return float(low), float(high)

    @property
    def n_effective(self) -> float | None:
        """How many independent observations would vary as much from area to area."""
        if self.elsewhere is None or not 0 < self.value < 1 or self.elsewhere.var() == 0:
            return None
        return float(self.value * (1 - self.value) / self.elsewhere.var())


_BEYOND_SPIKE_IN = 1.25  # errors over the draws' spread: crystals that nowhere lie alone cannot be tried (over simulated scans; see 09)


def phase_fraction(
    raw: float, counts: np.ndarray, wanted: int, among: list[int], correction: tuple[float, float] = (0.0, 0.0), *,
    n_units: int | None = None, seed: int = 1,
) -> Fraction:  # fmt: skip
    """The share of one phase in the area of several.

    Parameters
    ----------
    raw
        The share of winners.
    counts
        (draws, groups, p) patterns as `drawn_counts` gives them, the groups those of `resampling_units`.
    wanted, among
        Number of the phase, and of all phases of the area.
    correction
        What misclassification is taken to add, and the standard error of that and of what else adds (the scale).
    n_units
        How many of the groups, the first ones, are resampled for the lamella elsewhere; None is all of them.

    Returns
    -------
    `Fraction`. Its draws vary about the corrected value as those of the map about their mean: the
    draws themselves would count the errors of the map twice. `EmphaseError` where the area is empty.
    """
    area, mine = counts[:, :, among].sum(axis=2), counts[:, :, wanted]
    if counts.size == 0 or not area.sum(axis=1).all():
        raise EmphaseError("no pattern of these phases: a fraction of their area does not exist here")
    rng = np.random.default_rng(seed)
    value = float(np.clip(raw - correction[0], 0, 1))
    share = mine.sum(axis=1) / area.sum(axis=1)
    draws = np.clip(value + _BEYOND_SPIKE_IN * (share - share.mean()) + rng.normal(0, correction[1], len(share)), 0, 1)
    n = counts.shape[1] if n_units is None else n_units
    elsewhere = None
    if n > 1:
        chosen = rng.multinomial(n, np.full(n, 1 / n), size=len(share))
        of_units = [(chosen * c[:, :n]).sum(axis=1) + c[:, n:].sum(axis=1) for c in (mine, area)]
        resampled = of_units[0] / np.maximum(of_units[1], 1)
        elsewhere = np.clip(value + math.sqrt(n / (n - 1)) * (resampled - resampled.mean()), 0, 1)
    low, high = np.quantile(draws, [0.025, 0.975])
    return Fraction(value, float(min(low, value)), float(max(high, value)), raw, draws, elsewhere)


def counted_shares(phase_id: np.ndarray, phases: list[str]) -> dict[str, float]:
    """Share of each phase in a map of numbers of phases: counted, not corrected for what matching gets wrong (`phase_fraction`).

    >>> counted_shares(np.array([[0, 0, 1, -1]]), ["layered", "rocksalt"])
    {'layered': 0.5, 'rocksalt': 0.25}
    """
    return {phase: float((phase_id == k).mean()) for k, phase in enumerate(phases)}


def corrected_fraction(
    maps: dict[str, np.ndarray], trial: SpikeIn, counts: np.ndarray, wanted: int, among: list[int], *, scale_error: float = 0.0,
    n_units: int | None = None, seed: int = 1,
) -> Fraction:  # fmt: skip
    """`phase_fraction` of a map, corrected for `misclassification` and with its `detection_limit`.

    ``scale_error`` is the standard error that the camera's scale brings to the share. Under the limit the interval is
    all that the limit leaves open, from zero on.
    """
    inside = np.isin(maps["phase_id"], among)
    bias, error, correction = misclassification(trial, maps, wanted, inside)
    counted = float((maps["phase_id"][inside] == wanted).mean()) if inside.any() else 0.0
    not_known = error * math.sqrt(correction / bias) if bias else 0.0  # what is left of the bias's error after the weighing
    taken_off = (correction, math.hypot(not_known, scale_error))
    fraction = phase_fraction(counted, counts, wanted, among, taken_off, n_units=n_units, seed=seed)
    indexed = _as_indexed(maps)
    indexed = indexed[np.isin(indexed, among)]
    raw = float((indexed == wanted).mean()) if len(indexed) else 0.0
    limit = detection_limit(trial, maps, wanted, inside)
    if min(fraction.value, raw) <= limit:
        fraction = replace(fraction, low=0.0, high=max(fraction.high, limit))
    return replace(fraction, raw=raw, detection_limit=limit, bias=bias, bias_error=error)
