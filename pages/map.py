"""TODO."""

from __future__ import annotations

import base64
import functools
import io
import itertools
import json
import math
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from emphase.crystals import Crystal, direction_name, read_crystal
from emphase.errors import EmphaseError, one_line
from emphase.frames import load_recording
from emphase.orientations import ipf_colours
from emphase.ped.grains import boundaries
from emphase.ped.scan import Calibration, _read_box, patterns_at, scan_boxes
from emphase.ped.search import _indices_up_to, nearest_zone_axis, predicted_spots
from emphase.ped.templates import TemplateBank
from helpers import (
    _MAP_PROPERTIES,
    RecordingError,
    ResultError,
    Sample,
    load_calibration,
    load_maps,
    phase_colours,
    phase_file,
    plain,
    read_result,
    scan_banks,
)

from .assets import _content_policy, _page_scripts
from .cards import _map_in_words, _percent
from .text import _MAP_STEP, _Page, _without_paths

_MAP_BYTES = 9_000_000  # of a map page at most, of the 10 MB that it may have
_MOST_PATTERNS_DRAWN = 150_000  # of a map; of a larger scan every 2nd, 3rd, … is shown
_SPOTS_SHOWN = 24  # of a pattern at most, the strongest
_NOTHING = 2**16 - 1  # stands for no number in columns of 16 bits


def _low_index_directions(crystal: Crystal, most: int = 3) -> tuple[np.ndarray, list[str]]:
    """Unit vectors (n, 3) along all directions of indices up to ``most`` in the crystal's frame, and each one's name (n,).

    Directions that the Laue group takes into each other share a name, ``[1 −1 0]`` as the simplest of them is written.
    """
    along = _indices_up_to(most) @ crystal.lattice
    operators = crystal.laue_rotations
    turned = np.einsum("oij,nj->noi", operators, along) @ np.linalg.inv(crystal.lattice)
    family = np.rint(np.concatenate([turned, -turned], axis=1)).astype(int)
    key = lambda uvw: (np.abs(uvw).sum(), (uvw < 0).sum(), *(-uvw))
    simplest = [min(members, key=key) for members in family]
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

    Evidence has a long tail: without a ``step`` the range of colours ends at the 98th percentile (``high``).
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


@dataclass(frozen=True)
class _Explored:
    """Maps (ny, nx) of a sample with rotations (ny, nx, 3, 3), and what names and predicts them."""

    maps: dict[str, np.ndarray]
    rotation: np.ndarray
    matched: dict
    crystals: list[Crystal]
    banks: list[TemplateBank] | None

    @property
    def phase_id(self) -> np.ndarray:
        return self.maps["phase_id"]


def _explored(results: Path, sample: Sample, data_dir: str | Path) -> _Explored:
    """What the map page of a sample shows; `WorkbookError` where it cannot be read. Without template banks where those cannot be made."""
    from orix import io

    matched, path = read_result(results, sample.id, _MAP_STEP), results / sample.id / "06_ped.h5"
    try:
        maps = load_maps(path, matched)
        rotation = np.asarray(io.load(str(path)).rotations.to_matrix()).reshape(*maps["phase_id"].shape, 3, 3)
    except EmphaseError:
        raise
    except Exception as error:  # h5py and orix raise whatever they meet in a file that was cut short
        raise ResultError(f"{sample.id}/{path.name}: cannot be read: {one_line(error)}") from error
    crystals = [read_crystal(phase_file(phase, data_dir), phase) for phase in matched["phases"]]
    try:
        calibrated = read_result(results, sample.id, "05_ped_calibration")
        ped: Any = sample.acquisitions.ped  # None, which has no copy, where sample.yaml no longer names the scan
        ped = ped.model_copy(update={"phases": matched["phases"]})
        banks = scan_banks(ped, calibrated, data_dir, step_deg=matched["parameters"]["step_deg"])
    except (EmphaseError, KeyError, AttributeError):
        banks = None
    return _Explored(maps, rotation, matched, crystals, banks)


def _map_columns(explored: _Explored, stride: int) -> tuple[dict[str, dict], list[list[str]]]:
    """All that the map page tells of a pattern, for every ``stride``-th in both directions, and the zone axes' names of each phase."""
    thin = np.s_[::stride, ::stride]
    maps = {name: explored.maps[name][thin] for name in (*_MAP_PROPERTIES, "phase_id")}
    rotation, phase_id = explored.rotation[thin], maps["phase_id"]
    flat = rotation.reshape(-1, 3, 3)
    zone, off, zones = _zone_columns(flat, phase_id.ravel(), explored.crystals)
    topotactic = np.empty((0, 2))
    if explored.banks:
        ends, dotted = boundaries(phase_id, rotation, maps["grain_id"], explored.banks)
        topotactic = ends[dotted].mean(axis=1)
    colours = np.ones((*phase_id.shape, 3))
    for k, crystal in enumerate(explored.crystals):
        inside = phase_id == k
        colours[inside] = ipf_colours(rotation, inside, crystal)[inside]
    columns = {name: _column(maps[name]) for name in ("score", "phase_margin", "orientation_margin")}
    columns |= {
        "correlation": _column(maps["correlation"], 0.001),
        "phase": _whole(phase_id, np.uint8),
        "decided": _whole(maps["decided"], np.uint8),
        "second_phase": _whole(maps["second_phase_id"], np.uint8),
        "second_share": _column(maps["second_share"], 0.001),
        "grain": _whole(maps["grain_id"], np.uint32),
        "edges": _whole(_edge_bits(maps["grain_id"], topotactic), np.uint8),
        "zone": _whole(zone, np.uint16),
        "zone_off": _column(off, 0.1),
        "euler": _column(_bunge_deg(flat), 0.1),
        "ipf": _whole(np.rint(255 * np.clip(colours, 0, 1)), np.uint8),
    }
    return columns, zones


def _bunge_deg(rotation: np.ndarray) -> np.ndarray:
    """Euler angles (n, 3) after Bunge of rotations (n, 3, 3), in degrees from 0 to 360."""
    from orix.quaternion import Rotation

    return np.degrees(Rotation.from_matrix(rotation).to_euler()) % 360


def _kept_patterns(patterns: Any, every: int) -> Iterator[np.ndarray]:
    """Every n-th pattern of every n-th line of a scan, in blocks (m, ky, kx) of whole lines; the scan itself is read box by box."""
    ky, kx = patterns.shape[2:]
    for _, boxes in itertools.groupby(scan_boxes(patterns), key=lambda box: box[0].start):
        pieces = []
        for rows, cols in boxes:
            first, left = (-part.start % every for part in (rows, cols))
            box = slice(rows.start + first, rows.stop, every), slice(cols.start + left, cols.stop, every)
            shape = [len(range(part.start, part.stop, every)) for part in box]
            pieces.append(_read_box(patterns, box).reshape(*shape, ky, kx) if all(shape) else np.empty((*shape, ky, kx), patterns.dtype))
        block = np.concatenate(pieces, axis=1)
        if block.size:
            yield block.reshape(-1, ky, kx)


def _shown_patterns(block: np.ndarray, binning: int, mask: np.ndarray, offset: float) -> np.ndarray:
    """Patterns (m, ky, kx) as the page shows them, (m, ky // binning, kx // binning) of 8 bits: binned, square root, bright is 255."""
    m, ky, kx = block.shape
    counts = np.where(mask, 0, np.maximum(block.astype(np.float32) - offset, 0))
    tall, wide = ky // binning, kx // binning
    binned = counts[:, : tall * binning, : wide * binning].reshape(m, tall, binning, wide, binning).mean(axis=(2, 4))
    amplitude = np.sqrt(binned)
    brightest = np.maximum(np.percentile(amplitude.reshape(m, -1), 99.8, axis=1), 1e-6)
    return np.clip(255 * amplitude / brightest[:, None, None], 0, 255).astype(np.uint8)


_TILES_ACROSS = 8


def _sprite(tiles: np.ndarray) -> str:
    """Up to 64 patterns (n, h, w) side by side in rows of 8, as a WebP in base64."""
    from PIL import Image

    n, tall, wide = tiles.shape
    rows = math.ceil(n / _TILES_ACROSS)
    sheet = np.zeros((rows * _TILES_ACROSS, tall, wide), np.uint8)
    sheet[:n] = tiles
    sheet = sheet.reshape(rows, _TILES_ACROSS, tall, wide).swapaxes(1, 2).reshape(rows * tall, _TILES_ACROSS * wide)
    buffer = io.BytesIO()
    Image.fromarray(sheet).save(buffer, "WEBP", quality=45, method=3)
    return base64.b64encode(buffer.getvalue()).decode()


def _sprites(patterns: Any, every: int, show: Callable[[np.ndarray], np.ndarray], most_bytes: float) -> list[str] | None:
    """The kept patterns of a scan in sprites of 64; None where they would take more than ``most_bytes``."""
    sprites, waiting, spent = [], [], 0
    count = 0
    for block in _kept_patterns(patterns, every):
        waiting.append(show(block))
        count += len(block)
        if count < _TILES_ACROSS**2:
            continue
        tiles = np.concatenate(waiting)
        full = len(tiles) // _TILES_ACROSS**2 * _TILES_ACROSS**2
        sprites += [_sprite(tiles[i : i + _TILES_ACROSS**2]) for i in range(0, full, _TILES_ACROSS**2)]
        waiting, count = [tiles[full:]], len(tiles) - full
        spent = sum(map(len, sprites))
        if spent > most_bytes:
            return None
    if count:
        sprites.append(_sprite(np.concatenate(waiting)))
    return sprites if sum(map(len, sprites)) <= most_bytes else None


def _pattern_choices(shape: tuple[int, ...], bytes_of: Callable[[int], float], most_bytes: float) -> Iterator[tuple[int, int]]:
    """Ways (every n-th pattern, binning) to keep a scan's patterns in a budget, the best first: all patterns, then fine ones.

    ``bytes_of`` says what a pattern takes at a binning.
    """
    ny, nx, ky, kx = shape
    side = max(ky, kx)
    binnings = list(range(math.ceil(side / 160), side // 48 + 1)) or [math.ceil(side / 160)]
    for every in range(1, max(ny, nx) + 1):
        kept = math.ceil(ny / every) * math.ceil(nx / every)
        yield from ((every, b) for b in binnings if kept * bytes_of(b) < 0.95 * most_bytes)


def _packed_patterns(patterns: Any, calibration: Calibration, most_bytes: float) -> tuple[dict, int, int]:
    """Sprites of a scan's patterns within a budget of bytes, every how many-th pattern is kept, and the binning in px."""
    ny, nx = patterns.shape[:2]
    show = lambda block, binning: _shown_patterns(block, binning, calibration.mask, calibration.offset)
    lines = np.unique(np.linspace(0, ny - 1, 8).astype(int))
    columns = np.unique(np.linspace(0, nx - 1, 64 // len(lines)).astype(int))
    tried = patterns_at(patterns, np.add.outer(nx * lines, columns).ravel())
    bytes_of = functools.cache(lambda binning: len(_sprite(show(tried, binning))) / len(tried))
    for every, binning in _pattern_choices(patterns.shape, bytes_of, most_bytes):
        sprites = _sprites(patterns, every, functools.partial(show, binning=binning), most_bytes)
        if sprites is not None:
            side = [n // binning for n in patterns.shape[2:]]
            packed = {"every": every, "across": math.ceil(nx / every), "down": math.ceil(ny / every), "side": side}
            packed |= {"tiles": _TILES_ACROSS**2, "in_row": _TILES_ACROSS}
            return packed | {"sprites": sprites, "scale_invA_per_px": calibration.scale_invA_per_px * binning, "spots": 0}, every, binning
    raise RecordingError(f"a pattern of {patterns.shape[2]} x {patterns.shape[3]} pixels is too large for the page")


def _spot_places(
    explored: _Explored, banks: list[TemplateBank], calibration: Calibration, every: int, binning: int, most: int
) -> np.ndarray:
    """Where the phases found put their strongest spots in the kept patterns (n, most, 2): (y, x) in 254ths of the picture, 255 for none."""
    ny, nx = explored.phase_id.shape
    ky, kx = calibration.mask.shape
    extent = np.array([ky // binning, kx // binning]) * binning
    kept = [(y, x) for y in range(0, ny, every) for x in range(0, nx, every)]
    places = np.full((len(kept), most, 2), 255, np.uint8)
    for n, (y, x) in enumerate(kept):
        k = explored.phase_id[y, x]
        if k < 0:
            continue
        yx, strength, _ = predicted_spots(banks[k], explored.rotation[y, x], calibration.centre_px[y, x], calibration)
        share = (yx[np.argsort(-strength)] + 0.5) / extent
        share = share[((share >= 0) & (share < 1)).all(axis=1)][:most]
        places[n, : len(share)] = np.rint(254 * share)
    return places


def _pattern_data(results: Path, sample: Sample, explored: _Explored, most_bytes: float) -> tuple[dict, dict[str, dict], str]:
    """The patterns for the map page, the column of their spots, and which are kept in words; `WorkbookError` where there are none."""
    path = sample.path("ped")
    try:
        patterns = load_recording(path, navigation_dimension=2).data
        calibration = load_calibration(results / sample.id, patterns.shape)
        if patterns.shape != (*explored.phase_id.shape, *calibration.mask.shape):
            raise RecordingError(f"{path.name}: holds patterns of another shape than those that were matched")
        most_spots = min(_SPOTS_SHOWN, 400_000 // explored.phase_id.size + 8) if explored.banks else 0
        packed, every, binning = _packed_patterns(patterns, calibration, most_bytes)
    except EmphaseError:
        raise
    except Exception as error:  # readers raise whatever they meet in a file that was cut short
        raise RecordingError(f"{path.name}: cannot be read: {type(error).__name__}: {one_line(error)}") from error
    columns = {}
    if explored.banks and most_spots:
        packed["spots"] = most_spots
        columns["spots"] = _whole(_spot_places(explored, explored.banks, calibration, every, binning, most_spots), np.uint8)
    th = {1: "every position", 2: "every 2nd position", 3: "every 3rd position"}.get(every, f"every {every}th position")
    tall, wide = packed["side"]
    binned = f"binned to {wide} × {tall} px" if binning > 1 else f"{wide} × {tall} px"
    return packed, columns, f"Patterns of {th}, {binned}, compressed with a small loss: to look at, not to measure."


def _map_data(results: Path, sample: Sample, explored: _Explored) -> tuple[dict, str, str]:
    """What map.js draws, the sentence on the patterns that are kept, and why there are none ("" where there are)."""
    ny, nx = explored.phase_id.shape
    stride = next(k for k in itertools.count(1) if math.ceil(ny / k) * math.ceil(nx / k) <= _MOST_PATTERNS_DRAWN)
    columns, zones = _map_columns(explored, stride)
    matched, fractions = explored.matched, explored.matched["area_fraction"]
    colours = phase_colours(matched["phases"])
    phases = [
        {"name": p, "colour": colours[p], "share": _percent(fractions[p]), "zones": z, "key": _colour_key(c)}
        for p, z, c in zip(matched["phases"], zones, explored.crystals, strict=True)
    ]
    spent = len(_pack(columns)["packed"])
    try:
        patterns, more, kept = _pattern_data(results, sample, explored, _MAP_BYTES - spent - 1_200_000)
        why = ""
    except EmphaseError as error:
        patterns, more, kept, why = None, {}, "", f"The patterns are not on this page: {error}."
    drawn = explored.phase_id[::stride, ::stride]
    if stride > 1:
        kept = f"The map shows every {stride}th pattern in both directions. {kept}".replace(" 2th", " 2nd").replace(" 3th", " 3rd")
    data = {
        "shape": list(drawn.shape),
        "stride": stride,
        "step_nm": matched["step_nm"] * stride,
        "phases": phases,
        "not_indexed": _percent(fractions.get("not_indexed", 0.0)),
        "start": int(np.argmax(np.where(drawn >= 0, explored.maps["score"][::stride, ::stride], -np.inf))),
        "patterns": patterns,
        **_pack(columns | more),
    }
    return data, kept, why


def _json_in_html(content: Any) -> str:
    """JSON that may stand in a script element: no ``<``, ``>`` or ``&`` ends it.

    >>> _json_in_html({"label": "</script>"})
    '{"label":"\\\\u003c/script\\\\u003e"}'
    """
    text = json.dumps(plain(content, "parameters"), ensure_ascii=True, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


_LAYERS = {
    "phase": "phase",
    "correlation": "correlation",
    "score": "score",
    "orientation": "orientation (IPF colours)",
    "phase_margin": "phase margin",
    "orientation_margin": "orientation margin",
    "second": "second phase",
}


def _map_html(
    page: _Page, sample: Sample, frame: dict, hidden: list[tuple[str, str]], results: Path, data_dir: str | Path, exporter: Any
) -> str:
    """The map page of a sample as HTML."""
    around = frame | {"layers": [{"name": k, "text": v} for k, v in _LAYERS.items()], "scripts": _page_scripts("map.js")}
    around["policy"] = _content_policy(around["scripts"])
    try:
        explored = _explored(results, sample, data_dir)
        data, kept, why = _map_data(results, sample, explored)
        around |= {"data": _json_in_html(data), "patterns_text": kept, "no_patterns": _without_paths(why, hidden)}
        around["map_label"] = _map_in_words(page.sample, explored.matched)
    except EmphaseError as error:
        around["fault"] = _without_paths(one_line(error), hidden)
    return exporter.environment.get_template("map.html.j2").render(page=around)
