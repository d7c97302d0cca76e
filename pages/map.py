"""The page on which the maps of a sample are explored without a kernel: phase, scores, orientation and pattern at every place.

Results and patterns are read, packed and put into the page, where `map.js` draws them. A page keeps to a budget of bytes: numbers first
(`columns`), patterns in what is left (`sprites`). Where a map or the patterns cannot be read, the page says so.
"""

from __future__ import annotations

import itertools
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from emphase.crystals import Crystal, read_crystal
from emphase.errors import EmphaseError, one_line
from emphase.frames import load_recording
from emphase.ped.grains import boundaries
from emphase.ped.scan import Calibration
from emphase.ped.search import predicted_spots
from emphase.ped.templates import TemplateBank
from helpers import (
    MAP_PROPERTIES,
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
from .columns import _bunge_deg, _colour_key, _column, _edge_bits, _orientation_colours, _pack, _whole, _zone_columns
from .sprites import _packed_patterns
from .text import _MAP_STEP, _Page, _without_paths


@dataclass(frozen=True)
class MapPageOptions:
    """Tuning numbers of the map page."""

    most_bytes: int = 9_000_000  # of a page, of the 10 MB that it may have
    around_bytes: int = 1_200_000  # of these for the page itself and the column of the spots
    most_patterns: int = 150_000  # of a map; of a larger scan every 2nd, 3rd, … is drawn
    most_spots: int = 24  # of a pattern, the strongest
    all_spots: int = 400_000  # of the page: large scans have fewer in a pattern, eight at least
    least_spots: int = 8


OPTIONS = MapPageOptions()


@dataclass(frozen=True)
class _Explored:
    """Maps (ny, nx) of a sample with rotations (ny, nx, 3, 3), and the crystals and template banks of its phases."""

    maps: dict[str, np.ndarray]
    rotation: np.ndarray
    matched: dict
    crystals: list[Crystal]
    banks: list[TemplateBank] | None

    @property
    def phase_id(self) -> np.ndarray:
        """Index of the phase found (ny, nx); -1 where not indexed."""
        return self.maps["phase_id"]


def _explored(results: Path, sample: Sample, data_dir: str | Path) -> _Explored:
    """The maps of a sample; `WorkbookError` where they cannot be read. Without template banks where these cannot be made."""
    matched, path = read_result(results, sample.id, _MAP_STEP), results / sample.id / "06_ped.h5"
    try:
        maps = load_maps(path, matched)
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
    return _Explored(maps, maps.pop("rotation"), matched, crystals, banks)


def _map_columns(explored: _Explored, stride: int) -> tuple[dict[str, dict], list[list[str]]]:
    """The columns of the map page, of every ``stride``-th pattern in both directions, and the names of each phase's zone axes."""
    thin = np.s_[::stride, ::stride]
    maps = {name: explored.maps[name][thin] for name in (*MAP_PROPERTIES, "phase_id")}
    rotation, phase_id = explored.rotation[thin], maps["phase_id"]
    flat = rotation.reshape(-1, 3, 3)
    zone, off, zones = _zone_columns(flat, phase_id.ravel(), explored.crystals)
    topotactic = np.empty((0, 2))
    if explored.banks:
        ends, dotted = boundaries(phase_id, rotation, maps["grain_id"], explored.banks)
        topotactic = ends[dotted].mean(axis=1)
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
        "ipf": _whole(_orientation_colours(rotation, phase_id, explored.crystals), np.uint8),
    }
    return columns, zones


def _spot_places(
    explored: _Explored, banks: list[TemplateBank], calibration: Calibration, every: int, binning: int, most: int
) -> np.ndarray:
    """The strongest predicted spots of the phase found in the kept patterns (n, most, 2): (y, x) in 254ths of the picture, 255 for none."""
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
    """The patterns of the map page, the column of their spots, and a sentence on which are kept; `WorkbookError` where there are none."""
    path = sample.path("ped")
    try:
        patterns = load_recording(path, navigation_dimension=2).data
        calibration = load_calibration(results / sample.id, patterns.shape)
        if patterns.shape != (*explored.phase_id.shape, *calibration.mask.shape):
            raise RecordingError(f"{path.name}: holds patterns of another shape than those that were matched")
        most_spots = min(OPTIONS.most_spots, OPTIONS.all_spots // explored.phase_id.size + OPTIONS.least_spots) if explored.banks else 0
        packed, every, binning = _packed_patterns(patterns, calibration, most_bytes)
    except EmphaseError:
        raise
    except Exception as error:  # readers raise whatever they meet in a file that was cut short
        raise RecordingError(f"{path.name}: cannot be read: {type(error).__name__}: {one_line(error)}") from error
    columns = {}
    if explored.banks and most_spots:
        packed["spots"] = most_spots
        columns["spots"] = _whole(_spot_places(explored, explored.banks, calibration, every, binning, most_spots), np.uint8)
    positions = {1: "every position", 2: "every 2nd position", 3: "every 3rd position"}.get(every, f"every {every}th position")
    tall, wide = packed["side"]
    binned = f"binned to {wide} × {tall} px" if binning > 1 else f"{wide} × {tall} px"
    return packed, columns, f"Patterns of {positions}, {binned}, compressed with a small loss: to look at, not to measure."


def _map_data(results: Path, sample: Sample, explored: _Explored) -> tuple[dict, str, str]:
    """The data of map.js, a sentence on the patterns that are kept, and why there are none ("" where there are)."""
    ny, nx = explored.phase_id.shape
    stride = next(k for k in itertools.count(1) if math.ceil(ny / k) * math.ceil(nx / k) <= OPTIONS.most_patterns)
    columns, zones = _map_columns(explored, stride)
    matched, fractions = explored.matched, explored.matched["area_fraction"]
    colours = phase_colours(matched["phases"])
    phases = [
        {"name": p, "colour": colours[p], "share": _percent(fractions[p]), "zones": z, "key": _colour_key(c)}
        for p, z, c in zip(matched["phases"], zones, explored.crystals, strict=True)
    ]
    spent = len(_pack(columns)["packed"])
    try:
        patterns, more, kept = _pattern_data(results, sample, explored, OPTIONS.most_bytes - OPTIONS.around_bytes - spent)
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


#: The maps that can be shown: names for map.js, and labels.
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
