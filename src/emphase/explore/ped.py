"""TODO."""

from __future__ import annotations

import html
import math
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np

from ..crystals import direction_name
from ..drawing import colours_of, scale_bar
from ..errors import EmphaseError
from ..fractions.estimate import counted_shares
from ..orientations import ipf_colours
from ..ped.index import Indexing
from ..ped.maps import map_scan, read_maps
from ..ped.scan import Calibration, patterns_at
from ..ped.search import SpotComparison, compare_spots, nearest_zone_axis, zone_axis_landscape
from ..ped.spots import Spots
from ..ped.templates import TemplateBank
from .base import HandChoices, _Explorer, _table_html


@dataclass(frozen=True)
class Reading:
    """What matching with some banks and thresholds says of a box of a scan: its ``rows`` and ``cols``, and the results of `map_scan`."""

    rows: slice
    cols: slice
    banks: list[TemplateBank]
    thresholds: dict[str, float]
    maps: dict[str, np.ndarray]
    found: Indexing
    spots: Spots

    @property
    def names(self) -> list[str]:
        """The candidate phases."""
        return [bank.crystal.name for bank in self.banks]

    def holds(self, y: int, x: int) -> bool:
        """Whether the pattern at (y, x) of the scan is in the box."""
        return self.rows.start <= y < self.rows.stop and self.cols.start <= x < self.cols.stop

    def with_thresholds(self, thresholds: dict[str, float], calibration: Calibration, rows: slice, cols: slice) -> Reading:
        """A part of the box with other thresholds, which need no other search; ``calibration`` is that of the whole scan."""
        inner = tuple(slice(part.start - own.start, part.stop - own.start) for part, own in ((rows, self.rows), (cols, self.cols)))
        places = np.arange(self.found.winner.size).reshape(self.found.winner.shape)[inner].ravel()
        found, spots = self.found.part(*inner), self.spots[places]
        here = replace(calibration, centre_px=calibration.centre_px[rows, cols])
        return Reading(rows, cols, self.banks, thresholds, read_maps(found, spots, here, self.banks, thresholds), found, spots)


class ShareOf(NamedTuple):
    """A share that is told of a region: that of ``phase`` in the patterns of the phases ``among``, which together are called ``area``."""

    phase: str
    among: tuple[str, ...]
    area: str


class PedExplorer(_Explorer):
    """A scan of diffraction patterns: pick one in a map and see every phase's spots on it, scores, and the landscape of orientations.

    ``patterns`` (ny, nx, ky, kx), numpy or dask, with their ``calibration`` and the ``banks`` of all phases that may be chosen. With
    ``whole``, what `map_scan` said of the scan, its maps are shown, and regions can be read with other candidates or thresholds; without,
    ``layers`` are shown and each pattern is matched when it is picked. ``options`` go to `index_scan`; nothing counts as decided where the
    map is not ``trusted``. ``colours`` (by phase, hexadecimal) are those of the map; ``ratio`` is a share of some phases that is told of
    regions.
    """

    LANDSCAPE = "phase found"
    MOST_IN_MEAN = 4096

    def __init__(
        self, patterns: Any, calibration: Calibration, banks: list[TemplateBank], step_nm: float, *,
        layers: dict[str, np.ndarray] | None = None, whole: Reading | None = None, options: dict[str, Any] | None = None,
        trusted: bool = True, colours: Mapping[str, str] | None = None, ratio: ShareOf | None = None, hand: HandChoices | None = None,
    ):  # fmt: skip
        import ipywidgets

        super().__init__(
            (11.8, 4.8),
            {"mosaic": [["map", "pattern", "triangle"], ["bar", ".", "."]], "width_ratios": [1.1, 1.1, 0.9], "height_ratios": [24, 1]},
            "Click in the map, or move with the arrow keys on the figure. Circles: predicted spots of each phase; × missing ones, □ "
            "measured ones that the phase found does not predict."
            + (" For a region: switch on “draw a region” and drag, or set the two ranges." if whole else ""),
            hand,
        )  # fmt: skip
        self.patterns, self.calibration, self.banks, self.step_nm = patterns, calibration, banks, step_nm
        self.whole, self.options, self.trusted, self.ratio = whole, dict(options or {}), trusted, ratio
        self.layers: dict[str, Any] = layers or {}
        self.colours = colours_of(self.names, colours or {})
        self.shape = patterns.shape[:2]
        self.region: tuple[slice, slice] | None = None
        self.again: Reading | None = None
        self.mean: tuple[np.ndarray, str] | None = None
        self.corner: tuple[int, int] | None = None
        self._controls()
        self._draw_map()
        self.show_pattern()
        rows = [ipywidgets.HBox([self.layer, self.row, self.column])]
        rows += [ipywidgets.HBox([self.table, ipywidgets.VBox([self.shown, self.of_landscape])])]
        if whole:
            rows += [ipywidgets.HBox([self.drawing, self.rows, self.columns, self.button("no region", self.clear_region)])]
            again = self.button("match the whole scan again", self.match_whole, "With the chosen candidates")
            rows += [ipywidgets.HBox([self.candidates, ipywidgets.VBox([self.least_support, self.least_margin, again])]), self.keeping()]
        self.arrange(*rows)

    @property
    def names(self) -> list[str]:
        """All phases that may be candidates."""
        return [bank.crystal.name for bank in self.banks]

    def _controls(self) -> None:
        import ipywidgets

        ny, nx = self.shape
        if self.whole:
            found = ("phase", "score", "orientation (IPF)", "phase margin", "orientation margin", "correlation")
            self.layers = dict.fromkeys(found) | self.layers
        chosen = self.whole.names if self.whole else self.names
        thresholds = self.whole.thresholds if self.whole else {}
        self.layer = ipywidgets.Dropdown(options=list(self.layers), description="map")
        self.row = ipywidgets.IntSlider(ny // 2, 0, ny - 1, description="row y")
        self.column = ipywidgets.IntSlider(nx // 2, 0, nx - 1, description="column x")
        self.shown = ipywidgets.SelectMultiple(options=self.names, value=chosen, rows=len(self.names), description="spots of")
        self.of_landscape = ipywidgets.Dropdown(options=[self.LANDSCAPE, *self.names], description="triangle")
        self.table = ipywidgets.HTML()
        self.table.add_class("explorer-table")
        self.drawing = ipywidgets.ToggleButton(description="draw a region", layout={"width": "auto"})
        at_rest = {"continuous_update": False}
        self.rows = ipywidgets.IntRangeSlider(value=(0, ny - 1), min=0, max=ny - 1, description="rows", **at_rest)
        self.columns = ipywidgets.IntRangeSlider(value=(0, nx - 1), min=0, max=nx - 1, description="columns", **at_rest)
        self.candidates = ipywidgets.SelectMultiple(options=self.names, value=chosen, rows=len(self.names), description="candidates")
        low, margin = thresholds.get("least_support", 2.0), thresholds.get("least_margin", 3.0)
        style = {"min": 0, "max": max(30.0, 2 * low, 2 * margin), "step": 0.5, "style": {"description_width": "11em"}}
        style |= {"layout": {"width": "27em"}, **at_rest}
        self.least_support = ipywidgets.FloatSlider(low, description="least score (nats)", tooltip="above chance, to be indexed", **style)
        self.least_margin = ipywidgets.FloatSlider(
            margin, description="least margin (nats)", tooltip="to the next phase, to be decided", **style
        )
        self.observe(self.layer, self._draw_map)
        for control in (self.row, self.column):
            self.observe(control, self._moved)
        for control in (self.shown, self.of_landscape):
            self.observe(control, self.show_pattern)
        for control in (self.rows, self.columns):
            self.observe(control, self._region_moved)
        for control in (self.candidates, self.least_support, self.least_margin):
            self.observe(control, self.read_again)

    def choice(self) -> dict[str, Any]:
        chosen = [bank.crystal.name for bank in self._chosen()[0]]
        support, margin = (round(slider.value, 6) for slider in (self.least_support, self.least_margin))
        candidates = [] if len(chosen) == len(self.names) else chosen
        return {"candidate_phases": candidates, "least_support_nats": support, "least_margin_nats": margin}

    def _chosen(self) -> tuple[list[TemplateBank], dict[str, float]]:
        """Banks of the chosen candidates and the thresholds; `EmphaseError` where no candidate is chosen."""
        banks = [bank for bank in self.banks if bank.crystal.name in self.candidates.value]
        if not banks:
            raise EmphaseError("choose one candidate at least")
        return banks, {"least_support": self.least_support.value, "least_margin": self.least_margin.value}

    def _reading_of(self, rows: slice, cols: slice) -> Reading | None:
        """A box as the present choices read it, where that needs no other search."""
        banks, thresholds = self._chosen()
        names = [bank.crystal.name for bank in banks]
        for known in (self.again, self.whole):
            if known and known.names == names and known.holds(rows.start, cols.start) and known.holds(rows.stop - 1, cols.stop - 1):
                return known.with_thresholds(thresholds, self.calibration, rows, cols)
        return None

    def _matched(self, rows: slice, cols: slice, progress: Any = None) -> Reading:
        """A box matched with the present choices, by itself."""
        banks, thresholds = self._chosen()
        here = replace(self.calibration, centre_px=self.calibration.centre_px[rows, cols])
        found = map_scan(self.patterns[rows, cols], here, banks, thresholds, **self.options, progress=progress)
        return Reading(rows, cols, banks, thresholds, *found)

    # --- the map ---

    def _values(self, name: str) -> tuple[np.ndarray, dict[str, Any], str]:
        """What a layer shows: an image, how to draw it, and its unit."""
        if self.layers.get(name) is not None:
            return self.layers[name], {"cmap": "viridis"}, name
        assert self.whole is not None, "without the whole only layers are shown"
        maps, found = self.whole.maps, self.whole.found
        phase_id = maps["phase_id"]
        if name == "phase":
            return self._phase_image(self._numbered(self.whole)), {}, ""
        if name == "orientation (IPF)":
            image = np.ones((*self.shape, 3))
            for k, bank in enumerate(self.whole.banks):
                inside = phase_id == k
                image[inside] = ipf_colours(maps["rotation"], inside, bank.crystal)[inside]
            return image, {}, ""
        if name == "score":
            score = np.take_along_axis(found.evidence, np.maximum(phase_id, 0)[None], axis=0)[0]
            return np.where(phase_id >= 0, score, np.nan), {"cmap": "viridis"}, "evidence of the phase found (nats)"
        if name == "correlation":
            return maps["correlation"], {"cmap": "gray", "vmin": 0, "vmax": 1}, "correlation coefficient"
        values = np.where(phase_id >= 0, maps[name.replace(" ", "_")], np.nan)
        return values, {"cmap": "viridis", "vmin": 0, "vmax": 30}, f"{name} (nats)"

    def _numbered(self, reading: Reading) -> np.ndarray:
        """The phases of a reading, numbered as in ``names``; -1 not indexed."""
        return np.array([*(self.names.index(name) for name in reading.names), -1])[reading.maps["phase_id"]]

    def _phase_image(self, phase_id: np.ndarray) -> np.ndarray:
        from matplotlib.colors import to_rgb

        return np.array([*(to_rgb(self.colours[name]) for name in self.names), (1.0, 1.0, 1.0)])[phase_id]

    def _draw_map(self) -> None:
        from matplotlib.patches import Patch

        ax, bar = self.axes["map"], self.axes["bar"]
        ax.clear()
        bar.clear()
        image, style, label = self._values(self.layer.value)
        shown = ax.imshow(image, interpolation="nearest", **style)
        bar.set_visible(bool(label))
        if label:
            self.figure.colorbar(shown, cax=bar, label=label, orientation="horizontal")
        if self.layer.value == "phase":
            handles = [Patch(fc=self.colours[p], ec="k", label=p) for p in self.names]
            ax.legend(handles=handles, fontsize=7, loc="upper center", bbox_to_anchor=(0.5, -0.02), ncols=2, frameon=False)
            if self.again:
                rows, cols = self.again.rows, self.again.cols
                extent = (cols.start - 0.5, cols.stop - 0.5, rows.stop - 0.5, rows.start - 0.5)
                ax.imshow(self._phase_image(self._numbered(self.again)), extent=extent, interpolation="nearest")
        ax.set(xticks=[], yticks=[], xlim=(-0.5, self.shape[1] - 0.5), ylim=(self.shape[0] - 0.5, -0.5))
        if self.shape[1] > 1:
            scale_bar(ax, self.step_nm)
        ax.set_title(self.layer.value, fontsize=9)
        place = [self.column.value], [self.row.value]
        self.cross = [ax.plot(*place, "+", color=c, ms=s, mew=w)[0] for c, s, w in (("k", 16, 3), ("w", 14, 1.2))]
        (self.frame,) = ax.plot([], [], color="#D55E00", lw=2)
        self._draw_frame(self.region)
        self.draw()

    def _draw_frame(self, box: tuple[slice, slice] | None) -> None:
        if box is None:
            self.frame.set_data([], [])
            return
        (top, bottom), (left, right) = ((part.start - 0.5, part.stop - 0.5) for part in box)
        self.frame.set_data([left, right, right, left, left], [top, top, bottom, bottom, top])

    # --- one pattern ---

    def pick(self, y: int, x: int) -> None:
        """Choose the pattern at (y, x)."""
        with self.silently(self.row), self.silently(self.column):
            self.row.value, self.column.value = (int(np.clip(v, 0, n - 1)) for v, n in zip((y, x), self.shape, strict=True))
        self._moved()

    def _moved(self) -> None:
        self.mean = None
        self.show_pattern()

    def show_pattern(self) -> None:
        """The chosen pattern with its spots (after a region was chosen, its mean), the table of the phases and the triangle."""
        y, x = self.row.value, self.column.value
        box = slice(y, y + 1), slice(x, x + 1)
        known = self._reading_of(*box)
        one = known or self._matched(*box)
        maps, banks, rotations = one.maps, one.banks, one.found.rotation[:, 0, 0].astype(float)
        phase = int(maps["phase_id"][0, 0])
        lead = phase if phase >= 0 else int(np.argmax(one.found.support[:, 0, 0]))
        rotations[lead] = maps["rotation"][0, 0] if phase >= 0 else rotations[lead]
        best = one.names[phase] if phase >= 0 else "not indexed"
        compared = [compare_spots(one.spots, self.calibration, bank, r) for bank, r in zip(banks, rotations, strict=True)]
        if self.mean:
            self._draw_image(*self.mean)
        else:
            image = patterns_at(self.patterns, np.array([y * self.shape[1] + x]))[0]
            self._draw_image(image, f"pattern y {y}, x {x}: {best}")
            self._draw_spots(one.names, compared, lead)
        for cross in self.cross:
            cross.set_data([x], [y])
        self._tell(one, compared, rotations, best, known is None)
        wanted = self.of_landscape.value
        k = one.names.index(wanted) if wanted in one.names else lead
        self._draw_triangle(banks[k], one.spots, rotations[k])
        self.draw()

    def _draw_spots(self, names: list[str], compared: list[SpotComparison], lead: int) -> None:
        """Circles about the spots of each phase that are there, those of the phase found that are missing, and extra ones."""
        ax = self.axes["pattern"]
        for k, (name, spots) in enumerate(zip(names, compared, strict=True)):
            if name not in self.shown.value:
                continue
            colour, size = self.colours[name], 7 + 2.6 * k
            shown = spots.predicted_px[spots.seen]
            ax.plot(shown[:, 1], shown[:, 0], "o", mfc="none", mec="k", ms=size, mew=2.2)
            ax.plot(shown[:, 1], shown[:, 0], "o", mfc="none", mec=colour, ms=size, mew=1.3, label=name)
        lost, extra = compared[lead].predicted_px[compared[lead].missing], compared[lead].extra_px
        ax.plot(lost[:, 1], lost[:, 0], "x", color="#B00000", ms=7, mew=1.6, label="missing")
        ax.plot(extra[:, 1], extra[:, 0], "s", mfc="none", mec="0.25", ms=8, label="extra")
        ax.legend(fontsize=7, loc="upper center", bbox_to_anchor=(0.5, -0.02), ncols=3, frameon=False)

    def _tell(self, one: Reading, compared: list[SpotComparison], rotations: np.ndarray, best: str, alone: bool) -> None:
        """The chosen pattern in words and as a table."""
        y, x, maps = self.row.value, self.column.value, one.maps
        zones = [nearest_zone_axis(bank.crystal, r[:, 2]) for bank, r in zip(one.banks, rotations, strict=True)]
        rows = [
            (
                name, f"{one.found.evidence[k, 0, 0]:.1f}", f"{one.found.support[k, 0, 0]:+.1f}", int(c.seen.sum()), int(c.missing.sum()),
                len(c.extra_px), f"{direction_name(zones[k][0])} + {zones[k][1]:.1f}°",
            )
            for k, (name, c) in enumerate(zip(one.names, compared, strict=True))
        ]  # fmt: skip
        self.table.value = _table_html(("phase", "score (nats)", "above chance", "seen", "missing", "extra", "beam along"), rows)
        margin, turn, correlation = (float(maps[key][0, 0]) for key in ("phase_margin", "orientation_margin", "correlation"))
        decided = "decided" if maps["decided"][0, 0] and self.trusted else "not decided"
        told = f"y {y}, x {x} ({y * self.step_nm:.4g}, {x * self.step_nm:.4g} nm): {best}, {decided}; margin to the next phase "
        told += f"{margin:.1f} nats, to the next orientation {turn:.1f} nats; correlation {correlation:.2f}."
        told += " Matched by itself, without its neighbours." if alone and self.whole else ""
        self.status.value = "<br>".join(html.escape(sentence) for sentence in [told, *self._region_told()])

    def _draw_image(self, image: np.ndarray, title: str) -> None:
        ax = self.axes["pattern"]
        ax.clear()
        values = np.sqrt(np.maximum(image - self.calibration.offset, 0))
        ax.imshow(values, cmap="gray_r", vmin=0, vmax=max(float(np.percentile(values, 99.8)), 1.0))
        ax.set(xlim=(-0.5, image.shape[1] - 0.5), ylim=(image.shape[0] - 0.5, -0.5), xticks=[], yticks=[])
        scale_bar(ax, self.calibration.scale_invA_per_px, "1/Å", 0.5)
        ax.set_title(title, fontsize=9)

    def _draw_triangle(self, bank: TemplateBank, spots: Spots, rotation: np.ndarray) -> None:
        """The evidence of all zone axes of one phase, on the triangle of its Laue group (stereographic)."""
        from orix.vector import Vector3d

        group = bank.crystal.orix_phase().point_group.laue
        zones, evidence = zone_axis_landscape(spots, self.calibration, bank)
        project = lambda v: v[:, :2].T / (1 + v[:, 2])
        inside = lambda v: project(Vector3d(v).in_fundamental_sector(group).data)
        ax = self.axes["triangle"]
        ax.clear()
        ax.tripcolor(*inside(zones), np.maximum(evidence, 0), shading="gouraud", cmap="viridis", rasterized=True)
        ax.plot(*project(group.fundamental_sector.edges.data), color="k", lw=1)
        ax.plot(*inside(rotation[None, :, 2]), "*", mfc="#D55E00", mec="w", ms=14)
        for corner in group.fundamental_sector.vertices.unit.data:
            uvw, _ = nearest_zone_axis(bank.crystal, corner, 2)
            paper = {"fc": "w", "ec": "none", "alpha": 0.8, "pad": 1}
            ax.annotate(direction_name(uvw), project(corner[None])[:, 0], fontsize=8, ha="center", va="center", bbox=paper)
        ax.set(aspect="equal", xticks=[], yticks=[])
        ax.set_axis_off()
        most = evidence.max(initial=0)
        ax.set_title(f"{bank.crystal.name}: score of each beam direction,\n0 (dark) to {most:.0f} nats; ★ refined best", fontsize=9)

    # --- a region ---

    def _region_moved(self) -> None:
        self.set_region(*(slice(low, high + 1) for low, high in (self.rows.value, self.columns.value)))

    def set_region(self, rows: slice, cols: slice) -> None:
        """Choose a box of patterns: its mean pattern, its fractions, and how the present choices read it."""
        self.work.drop()
        self.region, self.again = (rows, cols), None
        for slider, part in ((self.rows, rows), (self.columns, cols)):
            with self.silently(slider):
                slider.value = (part.start, part.stop - 1)
        part = self.patterns[rows, cols]
        n = part.shape[0] * part.shape[1]
        every = math.ceil(math.sqrt(n / self.MOST_IN_MEAN))  # a whole scan would take minutes to read
        part = part[::every, ::every]
        taken = part.shape[0] * part.shape[1]
        self.mean = np.asarray(part.mean(axis=(0, 1))), f"mean of {n} patterns" if every == 1 else f"mean of {taken} of {n} patterns"
        self.read_again()

    def clear_region(self) -> None:
        """No region any more."""
        self.work.drop()
        self.region = self.again = self.mean = None
        self._draw_map()
        self.show_pattern()

    def match_whole(self) -> None:
        """Match the whole scan with the present choices."""
        self.set_region(*(slice(0, n) for n in self.shape))

    def _as_mapped(self) -> bool:
        """Whether the present choices are those of the map."""
        banks, thresholds = self._chosen()
        known = {key: self.whole.thresholds.get(key, value) for key, value in thresholds.items()} if self.whole else {}
        return self.whole is not None and [bank.crystal.name for bank in banks] == self.whole.names and known == thresholds

    def read_again(self) -> None:
        """Read the region as the present choices do, at once where that needs no other search; without a region, the pattern."""
        self.work.drop()
        if self.region is None or self._as_mapped():
            self._read(None)
            return
        before, region, started = self.again, self.region, time.monotonic()
        at_once = self._reading_of(*region)
        if at_once:
            self._read(at_once)
            return

        def back() -> None:
            shown = before or self.whole
            with self.silently(self.candidates):
                self.candidates.value = shown.names if shown else self.names
            self._read(before)

        def done(found: Reading) -> None:
            self._read(found)
            self.say(f"{found.found.winner.size} patterns matched again in {time.monotonic() - started:.1f} s.")

        self._draw_map()
        self.work.start("matching", lambda progress: self._matched(*region, progress), done, back)

    def _read(self, reading: Reading | None) -> None:
        self.again = reading
        self._draw_map()
        self.show_pattern()

    def _region_told(self) -> list[str]:
        """The fractions of the region, of the map and as read now, in words."""
        if self.region is None or self.whole is None:
            return []
        readings = [("map", self._numbered(self.whole)[self.region])]
        readings += [("with these choices", self._numbered(self.again))] if self.again else []
        told = []
        for name, phase_id in readings:
            shares = counted_shares(phase_id, self.names)
            of_all = ", ".join(f"{p} {share:.1%}" for p, share in shares.items() if share > 0) or "nothing indexed"
            told.append(f"Region of {phase_id.size} patterns, {name}: {of_all}{self._ratio_in_words(shares, phase_id.size)}.")
        return told

    def _ratio_in_words(self, shares: dict[str, float], n_patterns: int) -> str:
        area = sum(share for phase, share in shares.items() if phase in self.ratio.among) if self.ratio else 0.0
        if self.ratio is None or area == 0:
            return ""
        of_area = f"{shares.get(self.ratio.phase, 0.0) / area:.1%} of {round(area * n_patterns)} {self.ratio.area} patterns"
        return f"; {self.ratio.phase} {of_area} (counted, not corrected)"

    # --- mouse and keys ---

    def on_click(self, event: Any) -> None:
        if event.inaxes is not self.axes["map"]:
            return
        y, x = round(event.ydata), round(event.xdata)
        if self.drawing.value:
            self.corner = (y, x)
        else:
            self.pick(y, x)

    def on_move(self, event: Any) -> None:
        if self.corner is not None and event.inaxes is self.axes["map"]:
            self._draw_frame(self._box(self.corner, event.ydata, event.xdata))
            self.draw()

    def _box(self, corner: tuple[int, int], y: float, x: float) -> tuple[slice, slice]:
        """From the corner where the mouse went down to a place."""
        low_high = (sorted((c, round(v))) for c, v in zip(corner, (y, x), strict=True))
        rows, cols = (slice(max(0, low), min(n, high + 1)) for (low, high), n in zip(low_high, self.shape, strict=True))
        return rows, cols

    def on_release(self, event: Any) -> None:
        if self.corner is None:
            return
        inside = event.inaxes is self.axes["map"]
        box = self._box(self.corner, event.ydata, event.xdata) if inside else None
        self.corner = None
        self.drawing.value = False
        if box:
            self.set_region(*box)
        else:
            self._draw_frame(self.region)
            self.draw()
            self.say("No region: the mouse was let go outside the map.")

    def on_key(self, event: Any) -> None:
        step = {"left": (0, -1), "right": (0, 1), "up": (-1, 0), "down": (1, 0)}.get(event.key)
        if step:
            self.pick(self.row.value + step[0], self.column.value + step[1])
