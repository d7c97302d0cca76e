"""TODO."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..ped.grains import _eight_neighbours, _neighbour_pairs
from .draws import Spread, drawn_counts


def share_by_bin(
    maps: dict[str, np.ndarray], units: np.ndarray, bins: np.ndarray, spread: Spread, among: list[int], *, draws: int = 400, seed: int = 1,
) -> list[dict[str, Any]]:  # fmt: skip
    """The share of each of several phases in their common area, bin by bin, with 95 % intervals over resampled units and drawn errors.

    ``units`` (ny, nx) of `resampling_units`, ``bins`` (ny, nx) numbers of bins; -1 is outside of either. Returns for every phase of
    ``among`` and every bin ``phase``, ``bin``, ``share``, ``ci95`` and ``n_patterns``; bins without a pattern are left out.
    """
    n_bins, n_units = int(bins.max(initial=-1)) + 1, int(units.max(initial=-1)) + 1
    counts = drawn_counts(maps, np.where((units >= 0) & (bins >= 0), units * n_bins + bins, -1), spread, draws=draws, seed=seed)
    missing = n_units * n_bins - counts.shape[1]
    counts = np.pad(counts, ((0, 0), (0, missing), (0, 0))).reshape(draws, n_units, n_bins, -1)[..., among]
    rng = np.random.default_rng(seed)
    chosen = rng.multinomial(n_units, np.full(n_units, 1 / n_units), size=draws) if n_units > 1 else np.ones((draws, n_units), int)
    mine = np.einsum("du,dubp->dbp", chosen, counts)
    rows = []
    for b in range(n_bins):
        here = maps["phase_id"][(bins == b) & (units >= 0) & np.isin(maps["phase_id"], among)]
        drawn = mine[:, b][mine[:, b].sum(axis=1) > 0]
        for place, k in enumerate(among if len(here) else ()):
            share = float((here == k).mean())
            low, high = np.quantile(drawn[:, place] / drawn.sum(axis=1), [0.025, 0.975]) if len(drawn) else (share, share)
            ci95 = [float(min(low, share)), float(max(high, share))]
            rows.append({"phase": k, "bin": b, "share": share, "ci95": ci95, "n_patterns": len(here)})
    return rows


def unit_boundaries(units: np.ndarray) -> np.ndarray:
    """Patterns (ny, nx) that touch, by an edge, one of another unit; -1 is no unit."""
    a, b = _neighbour_pairs(*units.shape)
    number, result = units.ravel(), np.zeros(units.size, bool)
    apart = (number[a] != number[b]) & (number[a] >= 0) & (number[b] >= 0)
    result[a[apart]] = result[b[apart]] = True
    return result.reshape(units.shape)


def topotactic_patterns(maps: dict[str, np.ndarray], wanted: int, others: list[int]) -> tuple[int, int]:
    """How many patterns of a phase that touch one of ``others`` share its lattice, and how many touch one at all."""
    beside = (maps["phase_id"] == wanted) & np.isin(_eight_neighbours(maps["phase_id"]), others)
    lattice = _eight_neighbours(maps["lattice_id"])
    joined = beside & (lattice >= 0) & (lattice == maps["lattice_id"])
    return int(joined.any(axis=0).sum()), int(beside.any(axis=0).sum())


def layer_at(wanted: np.ndarray, facing: np.ndarray, body: np.ndarray, step_nm: float) -> dict[str, Any]:
    """The layer that a phase forms where a body faces something else.

    Parameters
    ----------
    wanted, body, facing
        Masks (ny, nx) of the phase, of the body it is part of, and of what the body faces.

    Returns
    -------
    ``covered``, the share of the body's patterns along that boundary that are of the phase; ``thickness_nm``, the area of
    the phase that hangs together with it over the length covered; ``resolved``: that is at least two steps of the scan,
    else the layer is thinner than the map can tell. Empty where the body does not face it.
    """
    from scipy import ndimage

    around = np.ones((3, 3), bool)
    edge = body & ndimage.binary_dilation(facing, around)
    if not edge.any():
        return {}
    covered = edge & wanted
    label, _ = ndimage.label(wanted, around)
    layer = np.isin(label, np.unique(label[covered])) & (label > 0)
    thickness = float(layer.sum() / max(covered.sum(), 1)) * step_nm
    return {"covered": float(covered.sum() / edge.sum()), "thickness_nm": thickness, "resolved": bool(thickness >= 2 * step_nm)}
