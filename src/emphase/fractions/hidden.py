"""Material that hardly diffracts: separated from pores by its diffuse scattering, and given the phase that its neighbourhood supports.

A crystal may lie so that its few strong reflections are not excited; it is not indexed, and rightly. To leave it out would bias an area
fraction, because such patches are of one phase each, and more often of one with few reflections. Where the scan tells material from pores,
the evidence of such patterns is pooled with that of their neighbours: alone they say little, pooled, the true phase has the most support.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class HiddenOptions:
    """When pores count as seen, and how evidence of neighbours is pooled."""

    weakest: float = 0.01  # quantile of the indexed patterns' diffuse scattering, below which a pattern may be one of a pore
    least_pores: int = 3  # patterns below: fewer give no level
    pore_sds: float = 2.0  # by which the pores lie below the weakest material, in standard deviations of theirs ...
    pore_log: float = 0.05  # ... and at least by this, in logarithms
    most_support: float = 20.0  # nats of a pattern that count: one pattern does not decide for all about it
    reach_px: float = 3.0  # patterns (standard deviation), over which the evidence is pooled
    weight: float = 4 / 3  # of the pooled evidence of a pattern in its probability: of a few neighbours, and less, since they err alike


OPTIONS = HiddenOptions()


def hidden_material(maps: dict[str, np.ndarray]) -> np.ndarray:
    """Find the patterns that are not indexed, but of material: crystals that hardly diffract as they lie, not pores.

    Parameters
    ----------
    maps
        ``phase_id`` and ``diffuse`` (ny, nx) are used.

    Returns
    -------
    Mask (ny, nx).

    Notes
    -----
    Material scatters diffusely, a pore does not: the mask holds patterns that were not indexed and scatter as the indexed ones
    do. It is empty where the scan shows no such contrast, that is where the patterns that scatter less than (nearly) all indexed ones
    are not well below these: a pore filled with something amorphous cannot be distinguished from a crystal that does not diffract.
    """
    indexed, level = maps["phase_id"] >= 0, np.log(np.maximum(maps["diffuse"], 1e-9))
    nothing = np.zeros(indexed.shape, bool)
    if not indexed.any() or indexed.all():
        return nothing
    least = float(np.quantile(level[indexed], OPTIONS.weakest))
    pores = level[~indexed & (level < least)]
    apart = max(OPTIONS.pore_sds * float(pores.std()), OPTIONS.pore_log) if len(pores) else 0.0
    if len(pores) < OPTIONS.least_pores or np.median(pores) > least - apart:
        return nothing
    return ~indexed & (level > (least + np.median(pores)) / 2)


def with_hidden_material(maps: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Give every pattern of `hidden_material` the phase with the most support in it and those about it.

    Parameters
    ----------
    maps
        Maps (ny, nx) of a scan, and ``support`` and ``probability`` (p, ny, nx).

    Returns
    -------
    The maps, and ``indexed_phase_id``, the phases as they were indexed. The ``probability`` of the patterns that were added is that of the
    pooled support, weakened, and each connected piece is one crystal, so that it errs as a whole; they are not ``decided`` and have
    no ``lattice_id``.
    """
    from scipy import ndimage

    hidden = hidden_material(maps)
    filled = maps | {"indexed_phase_id": maps["phase_id"]}
    if not hidden.any():
        return filled
    around = np.ones((3, 3))
    spread = lambda field: ndimage.gaussian_filter(field, OPTIONS.reach_px, mode="constant")
    held = np.maximum(spread(hidden.astype(float)), 1e-9)
    pooled = np.stack([spread(s) / held for s in np.clip(maps["support"], -OPTIONS.most_support, OPTIONS.most_support) * hidden])
    weight = np.exp(OPTIONS.weight * (pooled - pooled.max(axis=0)))
    piece, _ = ndimage.label(hidden, around)
    crystal = max(maps["crystal_id"].max(), maps["second_crystal_id"].max()) + 1 + piece
    changes = {"phase_id": np.argmax(pooled, axis=0), "share": 1.0, "crystal_id": crystal, "decided": False, "lattice_id": -1}
    changes |= {"second_phase_id": -1, "second_share": 0.0, "second_crystal_id": -1, "probability": weight / weight.sum(axis=0)}
    return filled | {name: np.where(hidden, value, maps[name]) for name, value in changes.items()}


def as_indexed(maps: dict[str, np.ndarray]) -> np.ndarray:
    """Phases (ny, nx) as they were indexed, without what `with_hidden_material` added."""
    return maps.get("indexed_phase_id", maps["phase_id"])
