"""What README claims, from what was measured, beside the best of the others where there is one; and the sentences of the summary.

A claim is a dict: ``what`` it is, ``on`` which data, its ``unit``, whether higher or lower is ``better``, the ``workbook``'s value, and
where there is one its ``peer`` (name) with ``peer_value``. `tests/workbook/readme_numbers.py` writes them to README.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import pandas as pd

from .costs import largest_scans
from .drift import DOSES, WORKBOOK
from .forward_haadf import SurfaceImage


def claim(
    what: str, on: str, unit: str, better: str, workbook: float, peer: str | None = None, peer_value: float | None = None
) -> dict[str, Any]:
    """A row of the table in README, with the fields that the module's docstring names."""
    row = {"what": what, "on": on, "unit": unit, "better": better, "workbook": float(workbook)}
    return row if peer is None or peer_value is None else row | {"peer": peer, "peer_value": float(peer_value)}


def rms(errors: Any) -> float:
    """Root mean square of errors."""
    return float(np.sqrt(np.mean(np.square(errors))))


def of_matching(table: pd.DataFrame, beside: pd.DataFrame) -> list[dict[str, Any]]:
    """Claims on phases and orientations, from `ped.accuracy_table` and `by_pyxem.compare_scans`."""
    on_scans, on_beside = f"{len(table)} simulated scans", f"every ninth pattern of {len(beside)} simulated scans"
    off = {suffix: rms(beside[f"rocksalt{suffix}"] - beside["rocksalt_true"]) for suffix in ("", "_pyxem")}
    orientation, rate, scale = (table[c] for c in ("orientation off, median (deg)", "patterns per s", "scale found off (%)"))
    rate_pyxem = beside["patterns_per_s_pyxem"].median()
    oriented = "orientation within 3°, of those with the right phase"
    return [
        claim("patterns with the right phase", on_beside, "share", "higher", beside["right"].mean(), "pyxem", beside["right_pyxem"].mean()),
        claim("rocksalt share of the map, error (rms)", on_beside, "absolute", "lower", off[""], "pyxem", off["_pyxem"]),
        claim(oriented, on_beside, "share", "higher", beside["oriented"].mean(), "pyxem", beside["oriented_pyxem"].mean()),
        claim("orientation of those with the right phase, median error", on_scans, "deg", "lower", orientation.median()),
        claim("patterns matched", on_scans, "1/s", "higher", rate.median(), "pyxem", rate_pyxem),
        claim("patterns called decided", on_scans, "share", "higher", table["decided"].mean()),
        claim("decided patterns with the right phase", on_scans, "share", "higher", right_where_decided(table)),
        claim("refined camera constant, largest error", on_scans, "percent", "lower", scale.abs().max()),
    ]


def right_where_decided(table: pd.DataFrame) -> float:
    """Share of the decided patterns of all scans with the right phase."""
    return np.average(table["right where decided"], weights=table["decided"])


def of_fractions(coverage: pd.DataFrame) -> list[dict[str, Any]]:
    """Claims on fractions and their intervals, from `fractions.coverage`."""
    rows = []
    for _, r in coverage.iterrows():
        on, what = f"{r['scans']} simulated scans", f"{r['phase']} fraction, error (rms)"
        rows += [
            claim(what, on, "absolute", "lower", r["error, rms"], "counting the map", r["raw error, rms"]),
            claim(f"95 % intervals of the {r['phase']} fraction that hold the truth", on, "share", "higher", r["covered"]),
        ]
    return rows


def of_steel(steel: dict[str, int] | None) -> list[dict[str, Any]]:
    """The claim on recorded patterns, from `recorded.austenite_of_steel`; none without the recording."""
    if steel is None:
        return []
    shares = {name: steel[name] / steel["patterns"] for name in ("workbook", "pyxem")}
    on = f"{steel['patterns']} recorded patterns"
    return [claim("austenite told from G-phase in steel", on, "share", "higher", shares["workbook"], "pyxem", shares["pyxem"])]


def _best_peer(errors: pd.DataFrame, column: str, scene: str) -> tuple[str, float]:
    """Of the other programs for drift the one that is best at its worst dose, with that value."""
    worst = errors.xs(scene, level="scene")[column].unstack("method").drop(columns=[WORKBOOK, "nothing"]).max()
    return str(worst.idxmin()), float(worst.min())


def of_drift(errors: pd.DataFrame) -> list[dict[str, Any]]:
    """Claims on drift, from `drift.by_scene_and_dose`."""
    rows = []
    for scene, ours in errors.xs(WORKBOOK, level="method").groupby(level="scene", sort=False):
        on = f"{scene}, {DOSES[0]:g} to {DOSES[-1]:g} counts a pixel, {int(ours['stacks'].sum())} stacks"
        peers = {column: _best_peer(errors, column, scene) for column in ("wrong_place", "median_error_px")}
        wrong, median = "frames in a wrong place, at the worst dose", "drift, median error, at the worst dose"
        floor = "drift, rms over the Cramér-Rao floor, at the worst dose"
        rows += [
            claim(wrong, on, "share", "lower", ours["wrong_place"].max(), *peers["wrong_place"]),
            claim(median, on, "px", "lower", ours["median_error_px"].max(), *peers["median_error_px"]),
            claim(floor, on, "times", "lower", ours["rms_over_floor"].max()),
        ]
    return rows


def of_images(surfaces: pd.DataFrame, interfaces: pd.DataFrame) -> list[dict[str, Any]]:
    """Claims on surface layers and interfaces, from the rows of `haadf.measure_surfaces` and `interface.measure_interfaces`."""
    on_layers, on_interfaces = f"{len(surfaces)} simulated HAADF images", f"{len(interfaces)} simulated images"
    return [
        claim("surface layer, error (rms)", on_layers, "nm", "lower", rms(surfaces["error_nm"])),
        claim("surface layer, kind right", on_layers, "share", "higher", surfaces["kind_right"].mean()),
        claim("surface layer, 95 % intervals that hold the truth", on_layers, "share", "higher", surfaces["covered"].mean()),
        claim("interface, points named rightly of those named", on_interfaces, "share", "higher", interfaces["right_of_named"].mean()),
        claim("interface, points left ambiguous", on_interfaces, "share", "lower", interfaces["ambiguous"].mean()),
    ]


def of_memory(costs: pd.DataFrame) -> list[dict[str, Any]]:
    """The claim on memory, from `costs.scaling`."""
    largest = largest_scans(costs).iloc[-1]
    return [claim("memory of matching", f"{largest['number']:,.0f} patterns of 144 × 144", "GB", "lower", largest["memory_GB"])]


def of_forward_model(patterns: pd.DataFrame | None, images: Sequence[SurfaceImage]) -> list[dict[str, Any]]:
    """Claims on data by abTEM, from the rows of `forward_ped.find_phases` and from `forward_haadf.measure_slabs`; none without it."""
    if patterns is None:
        return []
    on, off_nm = f"{len(patterns)} dynamical patterns by abTEM", _errors_nm(images)
    on_layers = f"{len(off_nm)} of {len(images)} multislice images by abTEM"
    return [
        claim("patterns with the right phase", on, "share", "higher", patterns["right"].mean()),
        claim("orientation of those with the right phase, median error", on, "deg", "lower", patterns["off_deg"].median()),
        claim("surface layer, error (rms)", on_layers, "nm", "lower", rms(off_nm)),
    ]


def _errors_nm(images: Iterable[SurfaceImage]) -> list[float]:
    """Errors of the layers that were measured."""
    return [image.row["error_nm"] for image in images if "error_nm" in image.row]


# --- sentences of the summary -----------------------------------------------------------------


def matching_in_words(table: pd.DataFrame, beside: pd.DataFrame, share_right: float) -> str:
    """Phases, orientations, scale and speed, beside pyxem."""
    scale, angle = table["scale found off (%)"].abs().max(), table["orientation off, median (deg)"].median()
    rocksalt = (table["rocksalt found"] - table["rocksalt true"]).abs().max()
    return (
        f"**Of the crystalline patterns of {len(table)} simulated scans {share_right:.1%} get their phase**, "
        f"from {table['phases right'].min():.1%} to {table['phases right'].max():.1%} a scan; where the workbook calls them decided, "
        f"{right_where_decided(table):.1%}. The orientation is off by {angle:.2f}° in the median, the refined scale by {scale:.3f} % at "
        f"most, and the rocksalt share of the area, not yet corrected for anything, by {rocksalt:.3f} at most. "
        f"{table['patterns per s'].median():.0f} patterns are matched in a second. "
        f"pyxem's template matching, at its best settings, gets {beside['right_pyxem'].mean():.1%} of the same patterns right."
    )


def fractions_in_words(coverage: pd.DataFrame) -> str:
    """Coverage, error and width of the intervals of every phase."""
    return " ".join(
        f"Over {r['scans']} further scans the 95 % interval of the {r['phase']} fraction covers in {r['covered']:.0%}; its error is "
        f"{r['error, rms']:.4f} (rms), the interval {r['width at 1,000, mean']:.3f} wide on average at 1,000 patterns of the cathode."
        for _, r in coverage.iterrows()
    )


def drift_in_words(errors: pd.DataFrame) -> str:
    """Drift against the floor, and frames in a wrong place."""
    ours = errors.xs(WORKBOOK, level="method")
    return (
        f"Drift, {int(ours['stacks'].sum())} stacks: frames are off by {ours['rms_over_floor'].min():.2f} to "
        f"{ours['rms_over_floor'].max():.2f} times the Cramér-Rao floor (rms of a scene and dose), and "
        f"{ours['wrong_place'].max():.1%} of the frames at most lie in a wrong lattice cell."
    )


def images_in_words(surfaces: pd.DataFrame, by_kind: pd.DataFrame, interfaces: pd.DataFrame) -> str:
    """Surface layers and interfaces; ``by_kind`` is that of `haadf.by_kind`."""
    layered = by_kind.drop(index="none", errors="ignore")
    return (
        f"Surface layers: {len(surfaces)} images, off by {layered['rms_error_nm'].max():.3f} nm (rms) at most, the kind right in "
        f"{surfaces['kind_right'].mean():.0%}. Interfaces: {interfaces['right_of_named'].mean():.1%} of the points that are named are "
        f"right, {interfaces['ambiguous'].mean():.1%} stay ambiguous."
    )


def forward_model_in_words(patterns: pd.DataFrame | None, images: Sequence[SurfaceImage]) -> str:
    """What is found on data by abTEM; empty without it."""
    if patterns is None:
        return ""
    kinds = sum(image.row.get("kind_right", False) for image in images)
    off_nm = max(abs(error) for error in _errors_nm(images))
    return (
        f"By abTEM's forward model: of {len(patterns)} patterns {patterns['right'].mean():.1%} get their phase, the orientation off by "
        f"{patterns['off_deg'].median():.2f}° in the median; of {len(images)} images of surfaces {kinds} get their kind, "
        f"the thickness off by {off_nm:.3f} nm at most."
    )
