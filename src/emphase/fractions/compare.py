"""Differences of fractions, and what the specimens of a condition have in common.

Two fractions, each given by the quantiles of its distribution, are compared by the distribution of their difference. Fractions of several
specimens under a few conditions follow a random-effects model: each scatters about the mean of its condition by its own uncertainty
and by a variance between specimens that all conditions share (DerSimonian & Laird, Control. Clin. Trials 7 (1986) 177).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from typing import Any

import numpy as np


def difference(first: np.ndarray, second: np.ndarray) -> dict[str, float]:
    """Second minus first, of two independent quantities given by quantiles at equal steps of probability.

    Parameters
    ----------
    first, second
        Quantiles (q,), the first at probability 0 and the last at 1.

    Returns
    -------
    dict
        ``ci95_low``, ``ci95_high`` and ``probability_of_increase``; equal values count half.

    Examples
    --------
    >>> difference(np.linspace(0, 1, 101), np.linspace(2, 3, 101))["probability_of_increase"]
    1.0
    """
    middle = [(np.asarray(q, float)[1:] + np.asarray(q, float)[:-1]) / 2 for q in (first, second)]
    change = middle[1][:, None] - middle[0][None, :]
    low, high = np.quantile(change, [0.025, 0.975])
    increase = float((change > 0).mean() + (change == 0).mean() / 2)
    return {"ci95_low": float(low), "ci95_high": float(high), "probability_of_increase": increase}


def standard_deviation(quantiles: np.ndarray, least: float = 1e-4) -> float:
    """Standard deviation of a distribution from its quantiles (q,) at equal steps of probability.

    It is half the distance of the quantiles at 15.87 and 84.13 %, robust against long tails, and ``least`` at least.

    >>> round(standard_deviation(np.linspace(0, 1, 101)), 4)
    0.3413
    """
    return max(float(np.diff(np.quantile(np.asarray(quantiles, float), [0.1587, 0.8413]))[0]) / 2, least)


def random_effects(groups: Mapping[str, list[tuple[float, float]]]) -> dict[str, Any]:
    """Mean of every condition over its specimens, and differences of conditions.

    Parameters
    ----------
    groups
        For every condition the fraction of each of its specimens and the variance of that.

    Returns
    -------
    dict
        ``conditions`` (list of ``condition``, ``n_specimens``, ``mean``, ``ci95``), ``between_sd``, the standard deviation between
        specimens of one condition, and ``differences``. Where no condition has two specimens there are no ``ci95`` and no differences, and
        ``between_sd`` is None: how specimens of one condition differ is not known.

    Notes
    -----
    The variance between specimens is the estimate of DerSimonian & Laird of each condition, by statsmodels, pooled by degrees of freedom;
    intervals are Student's with the pooled degrees of freedom.
    """
    from scipy.stats import t

    freedom = sum(len(g) - 1 for g in groups.values())
    between = _variance_between(groups, freedom)
    means = {}
    for name, effects in groups.items():
        value, variance = np.array(effects).T
        weight = 1 / (variance + between)
        means[name] = (float((weight * value).sum() / weight.sum()), float(1 / weight.sum()))
    conditions: list[dict[str, Any]] = [{"condition": k, "n_specimens": len(groups[k]), "mean": mean} for k, (mean, _) in means.items()]
    if not freedom:
        return {"conditions": conditions, "between_sd": None, "differences": []}
    reach = float(t.ppf(0.975, freedom))
    for row, (mean, variance) in zip(conditions, means.values(), strict=True):
        row["ci95"] = [max(0.0, mean - reach * math.sqrt(variance)), min(1.0, mean + reach * math.sqrt(variance))]
    differences = []
    for a, b in itertools.combinations(means, 2):
        change, error = means[b][0] - means[a][0], math.sqrt(means[a][1] + means[b][1])
        interval = {"ci95_low": change - reach * error, "ci95_high": change + reach * error}
        increase = float(t.cdf(change / error, freedom))
        differences.append({"from": a, "to": b, "difference": change, **interval, "probability_of_increase": increase})
    return {"conditions": conditions, "between_sd": math.sqrt(between), "differences": differences}


def _variance_between(groups: Mapping[str, list[tuple[float, float]]], freedom: int) -> float:
    """Variance between specimens of one condition, 0 where no condition has two."""
    from statsmodels.stats.meta_analysis import combine_effects

    between = 0.0
    for effects in groups.values():
        if len(effects) > 1:
            value, variance = np.array(effects).T
            between += (len(effects) - 1) * float(combine_effects(value, variance, method_re="dl").tau2) / freedom
    return max(between, 0.0)
