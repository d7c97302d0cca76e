"""The three figures of `PedExplorer`: the map of a scan, one pattern with its spots, and the evidence of every zone axis."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from ..crystals import direction_name
from ..drawing import scale_bar
from ..orientations import ipf_colours
from ..ped.scan import Calibration
from ..ped.search import nearest_zone_axis, zone_axis_landscape
from ..ped.spots import Spots
from ..ped.templates import TemplateBank
from .readings import Box, PatternReading, Reading

#: Layers of a map that was matched.
_FOUND = ("phase", "score", "orientation (IPF)", "phase margin", "orientation margin", "correlation")
_LEGEND_BELOW = {"fontsize": 7, "loc": "upper center", "bbox_to_anchor": (0.5, -0.02), "frameon": False}


class _Layer(NamedTuple):
    """An image (ny, nx) or (ny, nx, 3) with arguments of ``imshow``, and the label of its colour bar."""

    image: np.ndarray
    style: dict[str, Any]
    label: str


class MapView:
    """The map of a scan: one of its layers, a region that was matched again, and a cross at the pattern that is shown.

    Parameters
    ----------
    axes, bar : matplotlib.axes.Axes
        For the map, and for its colour bar.
    colours : dict of str to str
        Colour of every phase; its order numbers the phases.
    step_nm : float
        Distance of neighbouring patterns.
    layers : dict of str to ndarray (ny, nx)
    whole : Reading, optional
        What was found in the whole scan; gives further layers.
    """

    def __init__(self, axes: Any, bar: Any, colours: dict[str, str], step_nm: float, layers: dict[str, np.ndarray], whole: Reading | None):
        self.axes, self.bar, self.colours, self.step_nm = axes, bar, colours, step_nm
        self.given, self.whole = layers, whole

    @property
    def layers(self) -> list[str]:
        """The names of all layers."""
        return list(dict.fromkeys([*(_FOUND if self.whole else ()), *self.given]))

    def draw(self, name: str, place: tuple[int, int], region: Box | None, reread: Reading | None) -> None:
        """Draw a layer with the cross at ``place`` (y, x), and the region; on the phases also as it was ``reread``."""
        ax, layer = self.axes, self._layer(name)
        ax.clear()
        self.bar.clear()
        shown = ax.imshow(layer.image, interpolation="nearest", **layer.style)
        self.bar.set_visible(bool(layer.label))
        if layer.label:
            ax.figure.colorbar(shown, cax=self.bar, label=layer.label, orientation="horizontal")
        if name == "phase":
            self._draw_phases(reread)
        ny, nx = layer.image.shape[:2]
        ax.set(xticks=[], yticks=[], xlim=(-0.5, nx - 0.5), ylim=(ny - 0.5, -0.5))
        if nx > 1:
            scale_bar(ax, self.step_nm)
        ax.set_title(name, fontsize=9)
        y, x = place
        self.cross = [ax.plot([x], [y], "+", color=c, ms=s, mew=w)[0] for c, s, w in (("k", 16, 3), ("w", 14, 1.2))]
        (self.frame,) = ax.plot([], [], color="#D55E00", lw=2)
        self.frame_region(region)

    def _draw_phases(self, reread: Reading | None) -> None:
        """The legend of the phases, and over the map the region as it was matched again."""
        from matplotlib.patches import Patch

        handles = [Patch(fc=colour, ec="k", label=name) for name, colour in self.colours.items()]
        self.axes.legend(handles=handles, ncols=2, **_LEGEND_BELOW)
        if reread:
            rows, cols = reread.rows, reread.cols
            extent = (cols.start - 0.5, cols.stop - 0.5, rows.stop - 0.5, rows.start - 0.5)
            self.axes.imshow(self._phase_image(reread), extent=extent, interpolation="nearest")

    def move_cross(self, y: int, x: int) -> None:
        """Put the cross at (y, x)."""
        for cross in self.cross:
            cross.set_data([x], [y])

    def frame_region(self, box: Box | None) -> None:
        """A frame around a box, or none."""
        if box is None:
            self.frame.set_data([], [])
            return
        (top, bottom), (left, right) = ((part.start - 0.5, part.stop - 0.5) for part in box)
        self.frame.set_data([left, right, right, left, left], [top, top, bottom, bottom, top])

    def _layer(self, name: str) -> _Layer:
        """A layer by name."""
        if name in self.given:
            return _Layer(self.given[name], {"cmap": "viridis"}, name)
        assert self.whole is not None, "without a reading of the whole scan only given layers are shown"
        maps, found = self.whole.maps, self.whole.found
        phase_id = maps["phase_id"]
        if name == "phase":
            return _Layer(self._phase_image(self.whole), {}, "")
        if name == "orientation (IPF)":
            return _Layer(self._orientation_image(self.whole), {}, "")
        if name == "score":
            score = np.take_along_axis(found.evidence, np.maximum(phase_id, 0)[None], axis=0)[0]
            return _Layer(np.where(phase_id >= 0, score, np.nan), {"cmap": "viridis"}, "evidence of the phase found (nats)")
        if name == "correlation":
            return _Layer(maps["correlation"], {"cmap": "gray", "vmin": 0, "vmax": 1}, "correlation coefficient")
        values = np.where(phase_id >= 0, maps[name.replace(" ", "_")], np.nan)
        return _Layer(values, {"cmap": "viridis", "vmin": 0, "vmax": 30}, f"{name} (nats)")

    def _phase_image(self, reading: Reading) -> np.ndarray:
        """Colours (ny, nx, 3) of the phases; white where not indexed."""
        from matplotlib.colors import to_rgb

        return np.array([*map(to_rgb, self.colours.values()), (1.0, 1.0, 1.0)])[reading.numbered(list(self.colours))]

    @staticmethod
    def _orientation_image(reading: Reading) -> np.ndarray:
        """Colours (ny, nx, 3) of the directions along the beam; white where not indexed."""
        phase_id = reading.maps["phase_id"]
        image = np.ones((*phase_id.shape, 3))
        for k, bank in enumerate(reading.banks):
            inside = phase_id == k
            image[inside] = ipf_colours(reading.maps["rotation"], inside, bank.crystal)[inside]
        return image


def draw_pattern(ax: Any, image: np.ndarray, calibration: Calibration, title: str) -> None:
    """A diffraction pattern, square root of counts, dark on white.

    Parameters
    ----------
    ax : matplotlib.axes.Axes
    image : ndarray (ky, kx)
        Counts.
    calibration : Calibration
    title : str
    """
    ax.clear()
    values = np.sqrt(np.maximum(image - calibration.offset, 0))
    ax.imshow(values, cmap="gray_r", vmin=0, vmax=max(float(np.percentile(values, 99.8)), 1.0))
    ax.set(xlim=(-0.5, image.shape[1] - 0.5), ylim=(image.shape[0] - 0.5, -0.5), xticks=[], yticks=[])
    scale_bar(ax, calibration.scale_invA_per_px, "1/Å", 0.5)
    ax.set_title(title, fontsize=9)


def draw_spots(ax: Any, pattern: PatternReading, colours: dict[str, str], shown: tuple[str, ...]) -> None:
    """Circles at predicted spots that are measured, crosses at missing ones of the leading phase, squares at measured ones it lacks.

    Parameters
    ----------
    ax : matplotlib.axes.Axes
    pattern : PatternReading
    colours : dict of str to str
        Colour of every phase.
    shown : tuple of str
        Phases whose spots are circled.
    """
    for k, (name, spots) in enumerate(zip(pattern.reading.names, pattern.compared, strict=True)):
        if name not in shown:
            continue
        seen, size = spots.predicted_px[spots.seen], 7 + 2.6 * k
        ax.plot(seen[:, 1], seen[:, 0], "o", mfc="none", mec="k", ms=size, mew=2.2)
        ax.plot(seen[:, 1], seen[:, 0], "o", mfc="none", mec=colours[name], ms=size, mew=1.3, label=name)
    leading = pattern.compared[pattern.leading]
    missing, extra = leading.predicted_px[leading.missing], leading.extra_px
    ax.plot(missing[:, 1], missing[:, 0], "x", color="#B00000", ms=7, mew=1.6, label="missing")
    ax.plot(extra[:, 1], extra[:, 0], "s", mfc="none", mec="0.25", ms=8, label="extra")
    ax.legend(ncols=3, **_LEGEND_BELOW)


def draw_zone_axes(ax: Any, spots: Spots, calibration: Calibration, bank: TemplateBank, rotation: np.ndarray) -> None:
    """The evidence of every zone axis of a phase for one pattern, on the triangle of its Laue group in stereographic projection.

    Parameters
    ----------
    ax : matplotlib.axes.Axes
    spots : Spots
        Of the pattern.
    calibration : Calibration
    bank : TemplateBank
    rotation : ndarray (3, 3)
        The refined orientation, marked by a star.
    """
    from orix.vector import Vector3d

    group = bank.crystal.orix_phase().point_group.laue
    zones, evidence = zone_axis_landscape(spots, calibration, bank)
    project = lambda v: v[:, :2].T / (1 + v[:, 2])
    inside = lambda v: project(Vector3d(v).in_fundamental_sector(group).data)
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
