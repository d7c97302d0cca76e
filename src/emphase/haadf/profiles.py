"""Local planes through scattered values, and the boundary between occupied and empty places.

The boundary is logistic regression on places about a curve that is linear between knots, with a quadratic penalty on its bends.
"""

from __future__ import annotations

import math

import numpy as np


def _local_level(nm: np.ndarray, values: np.ndarray, weights: np.ndarray, at: np.ndarray, reach_nm: float) -> np.ndarray:
    """Weighted plane through the values near every point, evaluated there; Gaussian weights of width ``reach_nm``."""
    from scipy.spatial import cKDTree

    count = min(len(nm), 40)
    apart, near = cKDTree(nm).query(at, k=count)
    w = weights[near] * (np.exp(-0.5 * (apart / reach_nm) ** 2) + 1e-6)
    offset = (nm[near] - at[:, None]) / reach_nm
    design = np.concatenate([np.ones((len(at), count, 1)), offset], axis=2)
    normal = np.einsum("nka,nk,nkb->nab", design, w, design)
    normal += np.einsum("n,ab->nab", np.sum(w, axis=1), np.diag([1e-9, 0.05, 0.05]))
    return np.linalg.solve(normal, np.einsum("nka,nk,nk->na", design, w, values[near])[..., None])[:, 0, 0]


def _edge_curve(s: np.ndarray, u: np.ndarray, present: np.ndarray, spacing_nm: float) -> tuple[np.ndarray, np.ndarray, float]:
    """Knots, curve and error of its mean: logistic boundary u(s), linear between knots, smooth by a penalty on bends."""
    from scipy.optimize import minimize

    strip = np.floor((s - s.min()) / spacing_nm).astype(int)
    top, bottom = np.full(strip.max() + 3, np.inf), np.full(strip.max() + 3, -np.inf)
    np.minimum.at(top, strip[present] + 1, u[present])
    np.maximum.at(bottom, strip[~present] + 1, u[~present])
    top, bottom = (f(np.stack([v[:-2], v[1:-1], v[2:]]), axis=0) for f, v in ((np.min, top), (np.max, bottom)))
    both = np.isfinite(top) & np.isfinite(bottom)
    guess = np.where(both, 0.5 * (np.where(both, top, 0) + np.where(both, bottom, 0)), 0)[strip]
    known = both[strip]
    low, high = s[known].min(), s[known].max()
    near = known & (np.abs(u - guess) < 1.0)
    middle = float(np.median(guess[near]))
    s, u, present = s[near], u[near], present[near]
    count = max(4, round((high - low) / (2.5 * spacing_nm)) + 1)
    knots = np.linspace(low, high, count)
    inside = (s >= low) & (s <= high)
    s, u, sign = s[inside], u[inside], np.where(present[inside], 1.0, -1.0)
    place = np.clip((s - low) / (knots[1] - knots[0]), 0, count - 1 - 1e-9)
    k, f = place.astype(int), place % 1
    design = np.zeros((len(s), count))
    design[np.arange(len(s)), k], design[np.arange(len(s)), k + 1] = 1 - f, f
    bends = np.diff(np.eye(count), 2, axis=0) / (0.12 * (knots[1] - knots[0]) / 0.6)
    width = 0.2 * spacing_nm

    def loss(edge: np.ndarray) -> tuple[float, np.ndarray]:
        """Negative log likelihood with the penalty, and its gradient."""
        z = sign * (u - design @ edge) / width
        pull = sign / width / (1 + np.exp(np.clip(z, -50, 50)))
        bent = bends @ edge
        return float(np.sum(np.logaddexp(0, -z)) + 0.5 * bent @ bent), design.T @ pull + bends.T @ bent

    start = np.full(count, middle)
    edge = minimize(loss, start, jac=True, method="L-BFGS-B", options={"maxiter": 500}).x
    return knots, edge, float(0.4 * spacing_nm / math.sqrt(max(1.0, (high - low) / spacing_nm)))
