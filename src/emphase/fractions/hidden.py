"""TODO."""

from __future__ import annotations

import numpy as np


def hidden_material(maps: dict[str, np.ndarray]) -> np.ndarray:
    """Mask (ny, nx) of patterns that are not indexed, but of material: crystals that hardly diffract as they lie, not pores.

    Material scatters diffusely, a pore does not: they are those that were not indexed and scatter as the indexed ones
    do. None where the scan shows no such contrast, that is where the patterns that scatter less than (nearly) all indexed ones
    are not well set off from these: a pore filled with something amorphous cannot be told from a crystal that does not diffract.
    """
    indexed, level = maps["phase_id"] >= 0, np.log(np.maximum(maps["diffuse"], 1e-9))
    nothing = np.zeros(indexed.shape, bool)
    if not indexed.any() or indexed.all():
        return nothing
    least = float(np.quantile(level[indexed], 0.01))
    pores = level[~indexed & (level < least)]
    if len(pores) < 3 or np.median(pores) > least - max(2 * float(pores.std()), 0.05):
        return nothing
    return ~indexed & (level > (least + np.median(pores)) / 2)


_HIDDEN_REACH = 3.0  # patterns (standard deviation), over which the evidence of hidden material is pooled
_HIDDEN_WEIGHT = 4 / 3  # of the pooled evidence a pattern in its probability: of a few neighbours, and less, since they err alike


def with_hidden_material(maps: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The maps with a phase for every pattern of `hidden_material`: the one with the most support in it and those about it.

    Alone, such patterns say little; pooled, the true phase has the most support. Their ``probability`` is that of the pooled
    support, weakened, and each connected piece is one crystal, so that it errs as a whole; they are not ``decided`` and
    have no ``lattice_id``. ``indexed_phase_id`` keeps the phases as indexed.
    """
    from scipy import ndimage

    hidden = hidden_material(maps)
    filled = maps | {"indexed_phase_id": maps["phase_id"]}
    if not hidden.any():
        return filled
    around = np.ones((3, 3))
    spread = lambda field: ndimage.gaussian_filter(field, _HIDDEN_REACH, mode="constant")
    held = np.maximum(spread(hidden.astype(float)), 1e-9)
    pooled = np.stack([spread(s) / held for s in np.clip(maps["support"], -20, 20) * hidden])
    weight = np.exp(_HIDDEN_WEIGHT * (pooled - pooled.max(axis=0)))
    piece, _ = ndimage.label(hidden, around)
    crystal = max(maps["crystal_id"].max(), maps["second_crystal_id"].max()) + 1 + piece
    changes = {"phase_id": np.argmax(pooled, axis=0), "share": 1.0, "crystal_id": crystal, "decided": False, "lattice_id": -1}
    changes |= {"second_phase_id": -1, "second_share": 0.0, "second_crystal_id": -1, "probability": weight / weight.sum(axis=0)}
    return filled | {name: np.where(hidden, value, maps[name]) for name, value in changes.items()}


def _as_indexed(maps: dict[str, np.ndarray]) -> np.ndarray:
    """Phases (ny, nx) as 06 indexed them, without what `with_hidden_material` added."""
    return maps.get("indexed_phase_id", maps["phase_id"])
