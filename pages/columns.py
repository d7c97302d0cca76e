"""What the map page says of every pattern, as columns of whole numbers in one compressed stream.

Numbers are kept in 8, 16 or 32 bits with the offset and scale that give them back; directions of low indices as numbers in a list of names.
"""

from __future__ import annotations

import base64
import zlib

import numpy as np

from emphase.crystals import Crystal, direction_name
from emphase.orientations import ipf_colours
from emphase.ped.search import indices_up_to, nearest_zone_axis

_NOTHING = 2**16 - 1  # stands for no number in columns of 16 bits


def _low_index_directions(crystal: Crystal, most: int = 3) -> tuple[np.ndarray, list[str]]:
    """Unit vectors (n, 3) along all directions of indices up to ``most`` in the crystal's frame, and each one's name (n,).

    Directions that the Laue group takes into each other share a name, that of the simplest of them, as ``[1 −1 0]``. orix has no name for a
    family and no order of simplicity, so both are made here.
    """
    along = indices_up_to(most) @ crystal.lattice
    operators = crystal.laue_rotations
    turned = np.einsum("oij,nj->noi", operators, along) @ np.linalg.inv(crystal.lattice)
    family = np.rint(np.concatenate([turned, -turned], axis=1)).astype(int)
    order = np.concatenate([np.abs(family).sum(axis=-1, keepdims=True), (family < 0).sum(axis=-1, keepdims=True), -family], axis=-1)
    first = (order @ 100 ** np.arange(4, -1, -1)).argmin(axis=1)  # small sums of indices, then few signs, then large first indices
    simplest = family[np.arange(len(family)), first]
    return along / np.linalg.norm(along, axis=1, keepdims=True), [direction_name(uvw) for uvw in simplest]


def _zone_columns(rotation: np.ndarray, phase_id: np.ndarray, crystals: list[Crystal]) -> tuple[np.ndarray, np.ndarray, list[list[str]]]:
    """For every pattern (n,) the nearest direction of low indices along the beam and the angle (n,) to it in degrees.

    Directions are numbers in the list of their phase's names, which comes third.
    """
    zone, off, names = np.zeros(len(phase_id), int), np.zeros(len(phase_id)), []
    for k, crystal in enumerate(crystals):
        vectors, each = _low_index_directions(crystal)
        known = list(dict.fromkeys(each))
        number = np.array([known.index(name) for name in each])
        for part in np.array_split(np.flatnonzero(phase_id == k), max(1, (phase_id == k).sum() // 20_000)):
            cosine = rotation[part, :, 2] @ vectors.T
            zone[part], off[part] = number[cosine.argmax(axis=1)], np.degrees(np.arccos(np.clip(cosine.max(axis=1), -1, 1)))
        names.append(known)
    return zone, off, names


def _colour_key(crystal: Crystal) -> list[dict]:
    """The corners of a phase's inverse pole figure: ``direction`` by name and ``colour``."""
    from matplotlib.colors import to_hex
    from orix.plot import IPFColorKeyTSL

    symmetry = crystal.orix_phase().point_group.laue
    corners = symmetry.fundamental_sector.vertices.unit
    colours = IPFColorKeyTSL(symmetry).direction_color_key.direction2color(corners)
    nearest = [direction_name(nearest_zone_axis(crystal, corner, 3)[0]) for corner in corners.data.reshape(-1, 3)]
    return [{"direction": name, "colour": to_hex(np.clip(colour, 0, 1))} for name, colour in zip(nearest, colours, strict=True)]


def _edge_bits(grain_id: np.ndarray, topotactic: np.ndarray) -> np.ndarray:
    """Grain boundaries of a map (ny, nx) as bits: 1 to the right, 4 below, shifted by one where only the phase changes there.

    ``topotactic`` (n, 2) holds the middles (y, x) of the latter.
    """
    bits = np.zeros(grain_id.shape, np.uint8)
    bits[:, :-1] |= (grain_id[:, 1:] != grain_id[:, :-1]).astype(np.uint8)
    bits[:-1] |= 4 * (grain_id[1:] != grain_id[:-1]).astype(np.uint8)
    for y, x in topotactic:
        solid = 1 if x % 1 else 4
        bits[int(y), int(x)] += solid if bits[int(y), int(x)] & solid else 0  # 1 becomes 2, 4 becomes 8
    return bits


def _column(values: np.ndarray, step: float | None = None) -> dict:
    """Numbers as whole ones of 16 bits with the scale that gives them back; where not finite, as nothing.

    The range of colours ends at the 98th percentile (``high``), since evidence has a long tail.
    """
    values = np.asarray(values, float).ravel()
    finite = np.isfinite(values)
    low, top = (float(values[finite].min()), float(values[finite].max())) if finite.any() else (0.0, 0.0)
    low = min(low, 0.0)
    step = step or max((top - low) / (_NOTHING - 1), 1e-6)
    high = float(np.percentile(values[finite], 98)) if finite.any() else 1.0
    raw = np.where(finite, np.rint((np.where(finite, values, low) - low) / step), _NOTHING).astype(np.uint16)
    return {"raw": raw, "offset": low, "scale": step, "high": high if high > low else low + 1, "beyond": high < top}


def _whole(values: np.ndarray, kind: type) -> dict:
    """Whole numbers as they are, -1 as nothing."""
    return {"raw": np.asarray(values).astype(kind).ravel(), "offset": 0, "scale": 1, "high": 1, "beyond": False}


def _pack(columns: dict[str, dict]) -> dict:
    """Columns as one compressed stream in base64, and where each lies in it."""
    stream, described = bytearray(), []
    for name, column in columns.items():
        raw = column["raw"]
        stream += bytes(-len(stream) % 4)
        more = {k: v for k, v in column.items() if k != "raw"}
        described.append({"name": name, "start": len(stream), "length": raw.size, "bytes": raw.itemsize, **more})
        stream += raw.astype(raw.dtype.newbyteorder("<")).tobytes()
    return {"columns": described, "packed": base64.b64encode(zlib.compress(bytes(stream), 9)).decode()}


def _bunge_deg(rotation: np.ndarray) -> np.ndarray:
    """Euler angles (n, 3) after Bunge of rotations (n, 3, 3), in degrees from 0 to 360."""
    from orix.quaternion import Rotation

    return np.degrees(Rotation.from_matrix(rotation).to_euler()) % 360


def _orientation_colours(rotation: np.ndarray, phase_id: np.ndarray, crystals: list[Crystal]) -> np.ndarray:
    """Colours (ny, nx, 3) from 0 to 255 of the directions along the beam; white where not indexed."""
    colours = np.ones((*phase_id.shape, 3))
    for k, crystal in enumerate(crystals):
        inside = phase_id == k
        colours[inside] = ipf_colours(rotation, inside, crystal)[inside]
    return np.rint(255 * np.clip(colours, 0, 1))
