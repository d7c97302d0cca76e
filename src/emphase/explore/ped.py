"""The explorer of a scan of diffraction patterns: pick a pattern, read a region with other candidates or thresholds.

Shown are the map, the pattern with the spots that every phase predicts in its best orientation, and the evidence of every zone axis of one
phase. Where the scan was matched, a region is read again by `emphase.ped.map_scan` with the chosen candidates; other thresholds alone act
on what was found, at once. The records that it shows are in `readings`, its figures in `ped_views`.
"""

from __future__ import annotations

import html
import math
import time
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ..choices import HandChoices
from ..drawing import colours_of
from ..errors import EmphaseError
from ..ped.decide import OPTIONS as DECISION
from ..ped.maps import map_scan
from ..ped.scan import Calibration, patterns_at
from ..ped.templates import TemplateBank
from .base import Explorer, table_html
from .ped_views import MapView, draw_pattern, draw_spots, draw_zone_axes
from .readings import Box, MapDisplay, PatternReading, Reading, region_sentence

_STEPS = {"left": (0, -1), "right": (0, 1), "up": (-1, 0), "down": (1, 0)}  # of the arrow keys, (y, x)
_PHASE_FOUND = "phase found"
_HELP = (
    "Click in the map, or move with the arrow keys on the figure. Circles: predicted spots of each phase; × missing ones, □ "
    "measured ones that the phase found does not predict."
)
_REGION_HELP = " For a region: switch on “draw a region” and drag, or set the two ranges."
_COLUMNS = ("phase", "score (nats)", "above chance", "seen", "missing", "extra", "beam along")


@dataclass(frozen=True)
class PedExplorerOptions:
    """Tuning numbers of `PedExplorer`."""

    most_in_mean: int = 4096  # patterns in the mean of a region, thinned evenly: reading a whole scan would take minutes
    threshold_range_nats: float = 30.0  # of the sliders; at least twice the map's thresholds


OPTIONS = PedExplorerOptions()


class PedExplorer(Explorer):
    """A scan of diffraction patterns: its map, one pattern with every phase's spots, and the evidence of every zone axis.

    Parameters
    ----------
    patterns : array_like (ny, nx, ky, kx)
        Counts, numpy or dask.
    calibration : Calibration
    banks : list of TemplateBank
        Of all phases that may be chosen as candidates.
    step_nm : float
        Distance of neighbouring patterns.
    whole : Reading, optional
        What `emphase.ped.map_scan` found in the scan: its maps are shown, and regions can be read with other candidates or thresholds.
        Without it the layers of ``display`` are shown, and each pattern is matched when it is picked.
    display : MapDisplay, optional
        Further layers, colours of phases, and a share that regions report.
    hand : HandChoices, optional
        Title, and what becomes of a choice.
    """

    def __init__(
        self, patterns: Any, calibration: Calibration, banks: list[TemplateBank], step_nm: float, *,
        whole: Reading | None = None, display: MapDisplay | None = None, hand: HandChoices | None = None,
    ):  # fmt: skip
        mosaic = [["map", "pattern", "triangle"], ["bar", ".", "."]]
        axes = {"mosaic": mosaic, "width_ratios": [1.1, 1.1, 0.9], "height_ratios": [24, 1]}
        super().__init__((11.8, 4.8), axes, _HELP + (_REGION_HELP if whole else ""), hand)
        self.patterns, self.calibration, self.banks, self.step_nm = patterns, calibration, banks, step_nm
        self.whole, self.display = whole, display or MapDisplay()
        self.shape = patterns.shape[:2]
        self.names = [bank.crystal.name for bank in banks]
        self.colours = colours_of(self.names, self.display.colours)
        self.map = MapView(self.axes["map"], self.axes["bar"], self.colours, step_nm, self.display.layers, whole)
        self.region: Box | None = None
        self.reread: Reading | None = None  # the region with the present choices
        self.mean: tuple[np.ndarray, str] | None = None  # the mean pattern of the region, and its title
        self.corner: tuple[int, int] | None = None  # where the mouse went down
        self._make_pattern_controls()
        self._make_region_controls()
        self._observe_controls()
        self._draw_map()
        self.show_pattern()
        self.arrange(*self._rows())

    # --- controls ---

    def _make_pattern_controls(self) -> None:
        """Controls of the map, the pattern and the triangle."""
        import ipywidgets

        ny, nx = self.shape
        chosen = self.whole.names if self.whole else self.names
        self.layer = ipywidgets.Dropdown(options=self.map.layers, description="map")
        self.row = ipywidgets.IntSlider(ny // 2, 0, ny - 1, description="row y")
        self.column = ipywidgets.IntSlider(nx // 2, 0, nx - 1, description="column x")
        self.shown = ipywidgets.SelectMultiple(options=self.names, value=chosen, rows=len(self.names), description="spots of")
        self.of_triangle = ipywidgets.Dropdown(options=[_PHASE_FOUND, *self.names], description="triangle")
        self.table = ipywidgets.HTML()
        self.table.add_class("explorer-table")

    def _make_region_controls(self) -> None:
        """Controls of a region, its candidates and thresholds."""
        import ipywidgets

        ny, nx = self.shape
        chosen, thresholds = (self.whole.names, self.whole.thresholds) if self.whole else (self.names, {})
        at_rest = {"continuous_update": False}
        self.drawing = ipywidgets.ToggleButton(description="draw a region", layout={"width": "auto"})
        self.rows = ipywidgets.IntRangeSlider(value=(0, ny - 1), min=0, max=ny - 1, description="rows", **at_rest)
        self.columns = ipywidgets.IntRangeSlider(value=(0, nx - 1), min=0, max=nx - 1, description="columns", **at_rest)
        self.candidates = ipywidgets.SelectMultiple(options=self.names, value=chosen, rows=len(self.names), description="candidates")
        support = thresholds.get("least_support", DECISION.least_support)
        margin = thresholds.get("least_margin", DECISION.least_margin)
        style: dict[str, Any] = {"min": 0, "max": max(OPTIONS.threshold_range_nats, 2 * support, 2 * margin), "step": 0.5}
        style |= {"style": {"description_width": "11em"}, "layout": {"width": "27em"}, **at_rest}
        slider = ipywidgets.FloatSlider
        self.least_support = slider(support, description="least score (nats)", tooltip="above chance, to be indexed", **style)
        self.least_margin = slider(margin, description="least margin (nats)", tooltip="to the next phase, to be decided", **style)

    def _observe_controls(self) -> None:
        """What happens when a control changes."""
        changes = {
            self._draw_map: (self.layer,),
            self._moved: (self.row, self.column),
            self.show_pattern: (self.shown, self.of_triangle),
            self._region_moved: (self.rows, self.columns),
            self.read_again: (self.candidates, self.least_support, self.least_margin),
        }
        for change, controls in changes.items():
            for control in controls:
                self.observe(control, change)

    def _rows(self) -> list[Any]:
        """The controls in rows; those of a region where the scan was matched."""
        from ipywidgets import HBox, VBox

        rows = [HBox([self.layer, self.row, self.column]), HBox([self.table, VBox([self.shown, self.of_triangle])])]
        if self.whole:
            again = self.button("match the whole scan again", self.match_whole, "With the chosen candidates")
            rows += [HBox([self.drawing, self.rows, self.columns, self.button("no region", self.clear_region)])]
            rows += [HBox([self.candidates, VBox([self.least_support, self.least_margin, again])]), self.hand_box()]
        return rows

    def choice(self) -> dict[str, Any]:
        """The candidates (none where all are chosen) and the thresholds."""
        chosen = [bank.crystal.name for bank in self._chosen()[0]]
        support, margin = (round(slider.value, 6) for slider in (self.least_support, self.least_margin))
        candidates = [] if len(chosen) == len(self.names) else chosen
        return {"candidate_phases": candidates, "least_support_nats": support, "least_margin_nats": margin}

    # --- reading a box with the present choices ---

    def _chosen(self) -> tuple[list[TemplateBank], dict[str, float]]:
        """Banks of the chosen candidates and the thresholds; `EmphaseError` where no candidate is chosen."""
        banks = [bank for bank in self.banks if bank.crystal.name in self.candidates.value]
        if not banks:
            raise EmphaseError("choose one candidate at least")
        return banks, {"least_support": self.least_support.value, "least_margin": self.least_margin.value}

    def _known(self, rows: slice, cols: slice) -> Reading | None:
        """The reading of a box where that needs no other search."""
        banks, thresholds = self._chosen()
        names = [bank.crystal.name for bank in banks]
        for known in (self.reread, self.whole):
            if known and known.names == names and known.holds(rows, cols):
                return known.with_thresholds(thresholds, self.calibration, rows, cols)
        return None

    def _matched(self, rows: slice, cols: slice, progress: Any = None) -> Reading:
        """A box matched anew, without its neighbours."""
        banks, thresholds = self._chosen()
        here = replace(self.calibration, centre_px=self.calibration.centre_px[rows, cols])
        trusted, options = (self.whole.trusted, self.whole.options) if self.whole else (True, {})
        found = map_scan(self.patterns[rows, cols], here, banks, thresholds, **options, progress=progress)
        return Reading(rows, cols, banks, thresholds, *found, trusted, options)

    def _as_mapped(self) -> bool:
        """Whether the present choices are those of the map."""
        banks, thresholds = self._chosen()
        known = {key: self.whole.thresholds.get(key, value) for key, value in thresholds.items()} if self.whole else {}
        return self.whole is not None and [bank.crystal.name for bank in banks] == self.whole.names and known == thresholds

    # --- one pattern ---

    def _draw_map(self) -> None:
        """The chosen layer of the map."""
        self.map.draw(self.layer.value, (self.row.value, self.column.value), self.region, self.reread)
        self.draw()

    def pick(self, y: int, x: int) -> None:
        """Choose the pattern at (y, x), or the one nearest to it."""
        with self.silently(self.row), self.silently(self.column):
            self.row.value, self.column.value = (int(np.clip(v, 0, n - 1)) for v, n in zip((y, x), self.shape, strict=True))
        self._moved()

    def _moved(self) -> None:
        """Another pattern was chosen."""
        self.mean = None
        self.show_pattern()

    def show_pattern(self) -> None:
        """The chosen pattern with its spots (after a region was chosen, its mean), the table of the phases and the triangle."""
        y, x = self.row.value, self.column.value
        box = slice(y, y + 1), slice(x, x + 1)
        known = self._known(*box)
        reading = known or self._matched(*box)
        pattern = PatternReading.of(reading, self.calibration)
        if self.mean:
            draw_pattern(self.axes["pattern"], self.mean[0], self.calibration, self.mean[1])
        else:
            image = patterns_at(self.patterns, np.array([y * self.shape[1] + x]))[0]
            draw_pattern(self.axes["pattern"], image, self.calibration, f"pattern y {y}, x {x}: {pattern.phase}")
            draw_spots(self.axes["pattern"], pattern, self.colours, self.shown.value)
        self.map.move_cross(y, x)
        self._describe(pattern, known is None)
        k = reading.names.index(self.of_triangle.value) if self.of_triangle.value in reading.names else pattern.leading
        draw_zone_axes(self.axes["triangle"], reading.spots, self.calibration, reading.banks[k], pattern.rotation[k])
        self.draw()

    def _describe(self, pattern: PatternReading, alone: bool) -> None:
        """The chosen pattern in words and as a table, and the region in words."""
        self.table.value = table_html(_COLUMNS, pattern.table())
        sentence = pattern.sentence(self.row.value, self.column.value, self.step_nm)
        sentence += " Matched by itself, without its neighbours." if alone and self.whole else ""
        self.status.value = "<br>".join(html.escape(text) for text in [sentence, *self._region_sentences()])

    # --- a region ---

    def _region_moved(self) -> None:
        """Another region was chosen by the ranges."""
        self.set_region(*(slice(low, high + 1) for low, high in (self.rows.value, self.columns.value)))

    def set_region(self, rows: slice, cols: slice) -> None:
        """Choose a box of patterns: its mean pattern, its fractions, and how the present choices read it."""
        self.work.drop()
        self.region, self.reread = (rows, cols), None
        for slider, part in ((self.rows, rows), (self.columns, cols)):
            with self.silently(slider):
                slider.value = (part.start, part.stop - 1)
        self.mean = self._mean_pattern(rows, cols)
        self.read_again()

    def _mean_pattern(self, rows: slice, cols: slice) -> tuple[np.ndarray, str]:
        """The mean of a box, of a large one of every k-th pattern in both directions, and its title."""
        part = self.patterns[rows, cols]
        n = part.shape[0] * part.shape[1]
        every = math.ceil(math.sqrt(n / OPTIONS.most_in_mean))
        part = part[::every, ::every]
        taken = part.shape[0] * part.shape[1]
        return np.asarray(part.mean(axis=(0, 1))), f"mean of {n} patterns" if every == 1 else f"mean of {taken} of {n} patterns"

    def clear_region(self) -> None:
        """No region any more."""
        self.work.drop()
        self.region = self.reread = self.mean = None
        self._draw_map()
        self.show_pattern()

    def match_whole(self) -> None:
        """Match the whole scan with the present choices."""
        self.set_region(*(slice(0, n) for n in self.shape))

    def read_again(self) -> None:
        """Read the region as the present choices do, at once where that needs no other search; without a region, the pattern."""
        self.work.drop()
        if self.region is None or self._as_mapped():
            self._show_reading(None)
            return
        before, region, started = self.reread, self.region, time.monotonic()
        at_once = self._known(*region)
        if at_once:
            self._show_reading(at_once)
            return

        def restore() -> None:
            shown = before or self.whole
            with self.silently(self.candidates):
                self.candidates.value = shown.names if shown else self.names
            self._show_reading(before)

        def done(reading: Reading) -> None:
            self._show_reading(reading)
            self.say(f"{reading.found.winner.size} patterns matched again in {time.monotonic() - started:.1f} s.")

        self._draw_map()
        self.work.start("matching", lambda progress: self._matched(*region, progress), done, restore)

    def _show_reading(self, reading: Reading | None) -> None:
        """Show the region as it was read; None as in the map."""
        self.reread = reading
        self._draw_map()
        self.show_pattern()

    def _region_sentences(self) -> list[str]:
        """The fractions of the region in the map, and as it is read now."""
        if self.region is None or self.whole is None:
            return []
        readings = [("map", self.whole.numbered(self.names)[self.region])]
        readings += [("with these choices", self.reread.numbered(self.names))] if self.reread else []
        return [region_sentence(label, phase_id, self.names, self.display.share) for label, phase_id in readings]

    # --- mouse and keys ---

    def on_click(self, event: Any) -> None:
        """Pick a pattern, or begin to draw a region."""
        if event.inaxes is not self.axes["map"]:
            return
        y, x = round(event.ydata), round(event.xdata)
        if self.drawing.value:
            self.corner = (y, x)
        else:
            self.pick(y, x)

    def on_move(self, event: Any) -> None:
        """Draw the frame of the region."""
        if self.corner is not None and event.inaxes is self.axes["map"]:
            self.map.frame_region(self._box(self.corner, event.ydata, event.xdata))
            self.draw()

    def _box(self, corner: tuple[int, int], y: float, x: float) -> Box:
        """From the corner where the mouse went down to a place."""
        low_high = (sorted((c, round(v))) for c, v in zip(corner, (y, x), strict=True))
        rows, cols = (slice(max(0, low), min(n, high + 1)) for (low, high), n in zip(low_high, self.shape, strict=True))
        return rows, cols

    def on_release(self, event: Any) -> None:
        """Set the region that was drawn."""
        if self.corner is None:
            return
        inside = event.inaxes is self.axes["map"]
        box = self._box(self.corner, event.ydata, event.xdata) if inside else None
        self.corner = None
        self.drawing.value = False
        if box:
            self.set_region(*box)
        else:
            self.map.frame_region(self.region)
            self.draw()
            self.say("No region: the mouse was let go outside the map.")

    def on_key(self, event: Any) -> None:
        """Arrow keys choose the next pattern."""
        if event.key in _STEPS:
            dy, dx = _STEPS[event.key]
            self.pick(self.row.value + dy, self.column.value + dx)
