"""Where a phase lies in a map: its share with the distance from something, layers on boundaries, and lattices in common.

Shares in bins, of distance for instance, have intervals that resample grains and hold the errors of the map (`drawn_counts`); a layer is
measured as area over the length that it covers.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ..ped.grains import eight_neighbours, neighbour_pairs
from .draws import Spread, drawn_counts


def share_by_bin(
    maps: dict[str, np.ndarray],
    units: np.ndarray,
    bins: np.ndarray,
    spread: Spread,
    among: list[int],
    *,
    draws: int = 400,
    seed: int = 1,
) -> list[dict[str, Any]]:
    """The share of each of several phases in their common area, bin by bin, with 95 % intervals over resampled units and drawn errors.

    Parameters
    ----------
    maps
        Maps (ny, nx) of a scan, as for `drawn_counts`.
    units
        (ny, nx) numbers of `resampling_units`, -1 outside.
    bins
        (ny, nx) numbers of the bins, -1 outside.
    spread, draws, seed
        As for `drawn_counts`.
    among
        Numbers of the phases.

    Returns
    -------
    For every bin and every phase ``phase``, ``bin``, ``share``, ``ci95`` and ``n_patterns``; bins without a pattern are left out.
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
    a, b = neighbour_pairs(*units.shape)
    number, result = units.ravel(), np.zeros(units.size, bool)
    apart = (number[a] != number[b]) & (number[a] >= 0) & (number[b] >= 0)
    result[a[apart]] = result[b[apart]] = True
    return result.reshape(units.shape)


def topotactic_patterns(maps: dict[str, np.ndarray], wanted: int, others: list[int]) -> tuple[int, int]:
    """Count the patterns of a phase that lie on the lattice of a neighbour of another phase.

    Parameters
    ----------
    maps
        ``phase_id`` and ``lattice_id`` (ny, nx) are used.
    wanted, others
        Numbers of the phase, and of the phases of the neighbours.

    Returns
    -------
    How many patterns of the phase share the lattice of one of their eight neighbours of ``others``, and how many have such a neighbour.
    """
    beside = (maps["phase_id"] == wanted) & np.isin(eight_neighbours(maps["phase_id"]), others)
    lattice = eight_neighbours(maps["lattice_id"])
    joined = beside & (lattice >= 0) & (lattice == maps["lattice_id"])
    return int(joined.any(axis=0).sum()), int(beside.any(axis=0).sum())


def layer_at(wanted: np.ndarray, facing: np.ndarray, body: np.ndarray, step_nm: float) -> dict[str, Any]:
    """The cover and thickness of the layer that a phase forms where a body faces something else, from masks of the three.

    Parameters
    ----------
    wanted, facing, body
        Masks (ny, nx) of the phase, of what the body faces, and of the body that the phase is part of.
    step_nm
        Of the scan.

    Returns
    -------
    ``covered``, the share of the body's patterns along that boundary that are of the phase; ``thickness_nm``, the area of
    the phase that hangs together with it over the length covered; ``resolved``: that is at least two steps of the scan,
    else the layer is thinner than the map resolves. Empty where the body does not face it.
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
