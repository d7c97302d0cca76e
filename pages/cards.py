"""The card of a sample on the first page: its phase map in small, and its headline numbers in words.

Each number links to the page that it comes from; where there is none, a dash and the reason stand in its place.
"""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np

from helpers import NOT_INDEXED_COLOUR, ResultError, phase_colours, read_result


def _percent(share: float) -> str:
    """A share as text, with one digit more where it is small.

    >>> _percent(0.146), _percent(0.0042)
    ('14.6 %', '0.42 %')
    """
    return f"{100 * share:.{1 if share >= 0.01 else 2}f} %"


def _interval(bounds: list | None, factor: float = 1.0, unit: str = "", digits: int = 1) -> str:
    """A 95 % interval as text; "" where there is none."""
    return "" if not bounds else f"95 % interval {factor * bounds[0]:.{digits}f}–{factor * bounds[1]:.{digits}f}{unit}"


def _share_in_words(result: dict, phase: str) -> tuple[str, str]:
    """A phase's share of the NCM area and its interval."""
    share = result.get(f"{phase}_fraction")
    if share is None:
        return "—", result.get(f"{phase}_fraction_reason", "not a candidate phase")
    if not result.get(f"{phase}_detected", True):
        limit = result.get(f"{phase}_detection_limit")
        return "not detected" + ("" if limit is None else f", < {_percent(limit)}"), ""
    return _percent(share), _interval(result.get(f"{phase}_fraction_ci95"), 100, " %")


def _layer_in_words(result: dict) -> tuple[str, str]:
    """The surface layer of 03: thickness and phase, and the interval."""
    thickness = result.get("surface_layer_thickness_nm")
    if thickness is None:
        return "—", result.get("surface_layer_thickness_nm_reason", "")
    if result.get("surface_phase") == "none" or thickness == 0:
        limit = result.get("surface_layer_upper_limit_nm")
        return "none" + (f", < {limit:.2f} nm" if limit else ""), ""
    phase = result.get("surface_phase", "phase unknown")
    return f"{thickness:.2f} nm, {phase}", _interval(result.get("surface_layer_thickness_ci95_nm"), 1, " nm", 2)


def _interface_in_words(result: dict) -> tuple[str, str]:
    """The interface of 04: its phase and width, and the interval."""
    phase, width = result.get("interface_phase"), result.get("interface_width_nm")
    if phase is None:
        return "—", result.get("interface_phase_reason", "")
    if width is None:
        return phase, result.get("interface_width_nm_reason", "")
    return f"{phase}, {width:.1f} nm wide", _interval(result.get("interface_width_nm_ci95"), 1, " nm")


def _patterns_in_words(result: dict) -> tuple[str, str]:
    """How much of the cathode 07 rests on."""
    if result.get("n_patterns_ncm") is None:
        return "—", result.get("n_patterns_ncm_reason", "")
    return f"{result['n_patterns_ncm']} patterns", f"in {result['n_grains']} grains" if result.get("n_grains") is not None else ""


#: Name of each headline number, the step that gives it, and how it is written.
_HEADLINES: tuple[tuple[str, str, Callable[[dict], tuple[str, str]]], ...] = (
    ("Rocksalt share of the NCM area", "07_rocksalt_fraction", lambda result: _share_in_words(result, "rocksalt")),
    ("Spinel share of the NCM area", "07_rocksalt_fraction", lambda result: _share_in_words(result, "spinel")),
    ("Surface layer", "03_haadf_surface", _layer_in_words),
    ("LLZO–NCM interface", "04_interface_phases", _interface_in_words),
    ("NCM area scanned", "07_rocksalt_fraction", _patterns_in_words),
)


def _headline(name: str, link: dict, result: dict, words: Callable[[dict], tuple[str, str]]) -> dict:
    """One number of a card with the page that it comes from; a dash and why where there is none."""
    if result.get("status") == "ok" and link["note"] != "failed":
        value, detail = words(result)
        detail = "; ".join(part for part in (detail, link["note"]) if part)
    else:
        value, detail = "—", link["note"] or "no result"
    return {"name": name, "value": value, "detail": detail, "href": link["href"]}


def _result_or_nothing(results: Path, sample_id: str, step: str) -> dict:
    """The JSON of a step; an empty dict where it is missing or broken."""
    try:
        return read_result(results, sample_id, step)
    except ResultError:
        return {}


_LONGER_SIDE_PX = 240  # of a thumbnail at most, about the width of a card
_LEAST_SIDE_PX = 24  # of a scan of one line, which would not show


def _thumbnail(results: Path, sample_id: str, matched: dict) -> str:
    """The phase map of a sample as a PNG in a data URI, some 200 px wide; "" where it cannot be read."""
    import h5py
    from matplotlib.colors import to_rgb
    from PIL import Image

    ny, nx = matched["shape"]
    try:
        with h5py.File(results / sample_id / "06_ped.h5") as file:
            phase_id = file["crystal_map/data/phase_id"][()].reshape(ny, nx)
    except (OSError, KeyError, ValueError):
        return ""
    every = max(1, math.ceil(max(ny, nx) / _LONGER_SIDE_PX))
    phase_id = phase_id[::every, ::every]
    colours = [to_rgb(c) for c in (*phase_colours(matched["phases"]).values(), NOT_INDEXED_COLOUR)]  # the last for -1
    pixels = np.rint(255 * np.array(colours)[phase_id]).astype(np.uint8)
    zoom = max(1, _LONGER_SIDE_PX // max(phase_id.shape))
    for axis in (0, 1):
        pixels = pixels.repeat(max(zoom, math.ceil(_LEAST_SIDE_PX / phase_id.shape[axis])), axis=axis)
    buffer = io.BytesIO()
    Image.fromarray(pixels).quantize(len(colours)).save(buffer, "PNG", optimize=True)
    return _data_uri("image/png", buffer.getvalue())


def _data_uri(kind: str, content: bytes) -> str:
    """Content as the address of a picture that is inside the page."""
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


def _map_in_words(title: str, matched: dict) -> str:
    """The alternative text of a sample's phase map."""
    shares = ", ".join(f"{phase.replace('_', ' ')} {_percent(share)}" for phase, share in matched["area_fraction"].items())
    ny, nx = matched["shape"]
    return f"Phase map of {title}, {nx} by {ny} patterns at {matched['step_nm']:g} nm: {shares}"
