"""The fraction of a phase: what was counted, less what misclassification adds, with its interval and its detection limit.

The mixtures of a scan's own patterns (`SpikeIn`) give the bias of a count with its standard error; it is taken off as far as it stands
out of that error (`misclassification`). Maps drawn with the errors of the scan (`drawn_counts`) give the 95 % interval of the scanned
area, resampled grains that of other areas of the same specimen (`phase_fraction`). A fraction is detected where it is over the Poisson
upper bound of false patterns (`detection_limit`; as Currie, Anal. Chem. 40 (1968) 586) and its interval leaves zero out.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np

from ..errors import EmphaseError
from .hidden import as_indexed
from .spike_in import SpikeIn


@dataclass(frozen=True)
class FractionOptions:
    """How far known mixtures stand for all patterns of a map."""

    least_seen: float = 0.2  # share of the known mixtures that were seen as such: fewer would scale noise to the whole map
    beyond_spike_in: float = 1.25  # errors over the draws' spread, of simulated scans: crystals that nowhere lie alone are in no mixture


OPTIONS = FractionOptions()


def misclassification(spike_ins: SpikeIn, maps: dict[str, np.ndarray], wanted: int, inside: np.ndarray) -> tuple[float, float, float]:
    """What misclassification adds to the share of a phase, from known mixtures.

    Parameters
    ----------
    spike_ins
        Of `run_spike_ins`.
    maps
        ``second_phase_id`` (ny, nx) is used.
    wanted
        Number of the phase.
    inside
        Mask (ny, nx) of the area.

    Returns
    -------
    The bias, its standard error, and the correction that is to be taken off; 0 where there are no mixtures.

    Notes
    -----
    The known mixtures stand for all mixtures of the map, the unseen ones too: of the known ones a share was seen
    as such. The standard error is that of the sum over pairs of crystals. As correction the bias is drawn towards zero
    by how far it stands out of that error (of two independent estimates, zero and the bias, weighted by their
    squared errors): b³ / (b² + s²), because a bias that is not known does more harm when it is taken off.
    """
    n_inside = int(inside.sum())
    if len(spike_ins.pair) == 0 or n_inside == 0:
        return 0.0, 0.0, 0.0
    seen = max(spike_ins.several.mean(), OPTIONS.least_seen)
    mixtures = (maps["second_phase_id"] >= 0).sum() / seen
    gained = ((spike_ins.found == wanted).astype(float) - (spike_ins.lead == wanted)) * mixtures / len(spike_ins.pair) / n_inside
    by_pair = np.bincount(spike_ins.pair, gained)
    bias, error = float(by_pair.sum()), float(np.sqrt((by_pair**2).sum()))
    return bias, error, bias**3 / (bias**2 + error**2) if error > 0 else 0.0


def detection_limit(spike_ins: SpikeIn, maps: dict[str, np.ndarray], wanted: int, inside: np.ndarray) -> float:
    """The smallest share of an area that counts as detected, from the false patterns of a phase among known mixtures.

    Parameters
    ----------
    spike_ins, wanted, inside
        As for `misclassification`.
    maps
        Maps (ny, nx) of the scan, and ``probability`` (p, ny, nx).

    Returns
    -------
    From 0 to 1.

    Notes
    -----
    The 95 % upper bound (Poisson) of how many patterns would be given the phase if there were none of it: mixtures
    of other phases that were taken for it, scaled to all mixtures of the map, and what its probability adds up to in
    patterns that other phases won. With no false pattern it is the rule of three.
    """
    from scipy.stats import gamma

    n_inside = max(int(inside.sum()), 1)
    without = (spike_ins.lead != wanted) & (spike_ins.second != wanted)
    mixtures = (maps["second_phase_id"] >= 0).sum()
    rate = float((spike_ins.found[without] == wanted).mean()) if without.any() else 0.0
    lost = inside & (as_indexed(maps) >= 0) & (maps["phase_id"] != wanted) & (maps["second_phase_id"] < 0)
    false = rate * mixtures + float(maps["probability"][wanted][lost].sum())
    return float(min(1.0, gamma.ppf(0.95, false + 1) / n_inside))


@dataclass(frozen=True)
class Fraction:
    """The share of a phase in an area.

    Attributes
    ----------
    value
        The share, corrected for misclassification.
    low, high
        Its 95 % interval, for the area that was scanned.
    raw
        The share of the patterns that were given the phase.
    draws
        (d,), the distribution behind the interval.
    elsewhere
        (d,), how the value would vary over other areas of the same specimen, its grains resampled; None where there is only one.
    detection_limit
        Of `detection_limit`.
    bias, bias_error
        What misclassification adds (`misclassification`), and its standard error.
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
        """Whether value and raw are over what false patterns alone reach once in twenty scans, and the interval leaves zero out."""
        return min(self.value, self.raw) > self.detection_limit and self.low > 0

    @property
    def upper_limit(self) -> float:
        """What the share is below, where it is not detected."""
        return max(self.detection_limit, self.high)

    @property
    def elsewhere_ci95(self) -> tuple[float, float] | None:
        """95 % interval for other areas of the same specimen; None where there is one grain only."""
        if self.elsewhere is None:
            return None
        low, high = np.quantile(self.elsewhere, [0.025, 0.975])
        return float(low), float(high)

    @property
    def n_effective(self) -> float | None:
        """Number of independent patterns that would vary as much from area to area; None where that is not known."""
        if self.elsewhere is None or not 0 < self.value < 1 or self.elsewhere.var() == 0:
            return None
        return float(self.value * (1 - self.value) / self.elsewhere.var())


def phase_fraction(
    raw: float,
    counts: np.ndarray,
    wanted: int,
    among: list[int],
    correction: tuple[float, float] = (0.0, 0.0),
    *,
    n_units: int | None = None,
    seed: int = 1,
) -> Fraction:
    """The share of one phase in the area of several, with its intervals, from the share counted and drawn maps.

    Parameters
    ----------
    raw
        The share of the patterns that were given the phase.
    counts
        (draws, groups, p) patterns as `drawn_counts` gives them, the groups those of `resampling_units`.
    wanted, among
        Number of the phase, and of all phases of the area.
    correction
        What misclassification is taken to add, and the standard error of that and of what else adds (the scale).
    n_units
        How many of the groups, the first ones, are resampled for other areas of the specimen; None is all of them.
    seed
        Of the resampling.

    Returns
    -------
    `Fraction`. Its draws vary about the corrected value as those of the map about their mean: the
    draws themselves would count the errors of the map twice.

    Raises
    ------
    EmphaseError
        Where the area is empty.
    """
    area, mine = counts[:, :, among].sum(axis=2), counts[:, :, wanted]
    if counts.size == 0 or not area.sum(axis=1).all():
        raise EmphaseError("no pattern of these phases: a fraction of their area does not exist here")
    rng = np.random.default_rng(seed)
    value = float(np.clip(raw - correction[0], 0, 1))
    share = mine.sum(axis=1) / area.sum(axis=1)
    draws = np.clip(value + OPTIONS.beyond_spike_in * (share - share.mean()) + rng.normal(0, correction[1], len(share)), 0, 1)
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
    """Share of each phase in a map (ny, nx) of numbers of phases: counted, not corrected for misclassification (`corrected_fraction`).

    >>> counted_shares(np.array([[0, 0, 1, -1]]), ["ferrite", "austenite"])
    {'ferrite': 0.5, 'austenite': 0.25}
    """
    return {phase: float((phase_id == k).mean()) for k, phase in enumerate(phases)}


def corrected_fraction(
    maps: dict[str, np.ndarray],
    spike_ins: SpikeIn,
    counts: np.ndarray,
    wanted: int,
    among: list[int],
    *,
    scale_error: float = 0.0,
    n_units: int | None = None,
    seed: int = 1,
) -> Fraction:
    """The fraction of a phase in a map, corrected for `misclassification` and with its `detection_limit`.

    Parameters
    ----------
    maps
        Maps (ny, nx) of a scan, of `emphase.ped.map_scan` or `with_hidden_material`.
    spike_ins
        Known mixtures of the scan (`run_spike_ins`).
    counts, wanted, among, n_units, seed
        As for `phase_fraction`.
    scale_error
        Standard error that the camera's scale brings to the share.

    Returns
    -------
    `Fraction`. Under the limit its interval is all that the limit leaves open, from zero on.

    Raises
    ------
    EmphaseError
        Where the phase is not among those it is a share of.
    """
    if wanted not in among:
        raise EmphaseError(f"wanted: got phase {wanted!r}, expected one of those it is a share of, {among}")
    inside = np.isin(maps["phase_id"], among)
    bias, error, correction = misclassification(spike_ins, maps, wanted, inside)
    counted = float((maps["phase_id"][inside] == wanted).mean()) if inside.any() else 0.0
    not_known = error * math.sqrt(correction / bias) if bias else 0.0  # what is left of the bias's error after the weighing
    taken_off = (correction, math.hypot(not_known, scale_error))
    fraction = phase_fraction(counted, counts, wanted, among, taken_off, n_units=n_units, seed=seed)
    indexed = as_indexed(maps)
    indexed = indexed[np.isin(indexed, among)]
    raw = float((indexed == wanted).mean()) if len(indexed) else 0.0
    limit = detection_limit(spike_ins, maps, wanted, inside)
    if min(fraction.value, raw) <= limit:
        fraction = replace(fraction, low=0.0, high=max(fraction.high, limit))
    return replace(fraction, raw=raw, detection_limit=limit, bias=bias, bias_error=error)
