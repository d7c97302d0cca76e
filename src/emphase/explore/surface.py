"""The explorer of an HAADF image: the fit of every column, and a surface that can be moved by hand.

The thickness of the layer is measured again by the caller's function with every surface that is drawn, in a thread. Points of a surface are
kept in px of the image, (y, x), and measured in nm of the crystal's basis.
"""

from __future__ import annotations

import html
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from ..choices import HandChoices
from ..drawing import scale_bar
from ..errors import EmphaseError
from ..haadf.columns import Columns, column_width
from ..haadf.contour import drawn_contour
from ..haadf.image_lattice import ImageLattice
from ..haadf.layer import SurfaceLayer
from ..haadf.structures import REGIONS
from .base import Explorer


@dataclass(frozen=True)
class SurfaceExplorerOptions:
    """Tuning numbers of `SurfaceExplorer`."""

    point_spacing_nm: float = 0.8  # along the surface found: the points that can be moved, a few column spacings apart
    least_points: int = 4
    key_step_nm: float = 0.05  # of a point along the normal: a fifth of a column spacing
    grab_share: float = 0.06  # of the image's longer side within which a click takes hold of a point
    straight_points: int = 6  # of the line where no surface was found
    drawn_spacing_nm: float = 0.24  # of the columns along a drawn surface, where none was found: that of a layered oxide
    surroundings: float = 1.6  # half width of what is shown about a column, in half the spacing of columns


OPTIONS = SurfaceExplorerOptions()


class MeasuredSurface(NamedTuple):
    """A surface layer as it was measured.

    Attributes
    ----------
    layer : SurfaceLayer
    structure : ndarray (n,) or None
        Index in `emphase.haadf.structures.REGIONS` of the structure about every column; -1 for none.
    drawn_px : array_like (k, 2)
        The points (y, x) by hand with which it was measured; none where the surface is as found.
    """

    layer: SurfaceLayer
    structure: np.ndarray | None = None
    drawn_px: Any = ()


class SurfaceExplorer(Explorer):
    """An HAADF image: hover a column for its fit and occupancy; move the surface by hand and see the thickness follow.

    Parameters
    ----------
    image : ndarray (y, x)
        Counts.
    lattice : ImageLattice
    columns : Columns
        From `emphase.haadf.measure_columns`; those of a measured layer are shown where there is one.
    remeasure : callable
        ``remeasure(points_nm)`` measures the layer with a drawn surface (k, 2), or as it is found (None).
    measured : MeasuredSurface, optional
        None where no surface was found: then a line can be drawn all the same.
    hand : HandChoices, optional
        Title, and what becomes of a choice.
    """

    def __init__(
        self, image: np.ndarray, lattice: ImageLattice, columns: Columns, remeasure: Callable[[np.ndarray | None], SurfaceLayer],
        measured: MeasuredSurface | None = None, *, hand: HandChoices | None = None,
    ):  # fmt: skip
        super().__init__(
            (11, 5.6), {"mosaic": [["image", "near"], ["image", "profile"]], "width_ratios": [1.6, 1]},
            "Hover a column, or step through them with the slider. To move the surface: switch it on, then drag a point, or choose one and "
            "press ↑ and ↓ (0.05 nm out and in along the normal) on the figure.", hand,
        )  # fmt: skip
        layer, structure, drawn_px = measured or (None, None, ())
        columns = layer.columns if layer else columns
        self.image, self.lattice, self.columns, self.layer = np.asarray(image, float), lattice, columns, layer
        self.structure, self.remeasure = structure, remeasure
        self.by_hand = len(drawn_px) > 0
        self.dragged: np.ndarray | None = None  # from the point to the mouse (y, x) px, while a point is dragged
        self.before: tuple | None = None  # layer, points and by_hand that a cancelled or failed measurement restores
        self.found = self._as_found() if self.by_hand else layer
        spacing = float(np.linalg.norm(lattice.matrix, axis=1).min()) * 0.5
        metal = columns.present & columns.is_metal
        self.reach = max(4, round(OPTIONS.surroundings * spacing))
        self.sigma = column_width(self.image, columns.px[metal], spacing)
        self.points = np.array(drawn_px, float) if self.by_hand else self._found_points()
        controls = self._controls()
        self._draw_image()
        self.show_surface()
        self.show_column()
        self.arrange(controls, self.hand_box())

    def _controls(self) -> Any:
        """The controls in a row."""
        import ipywidgets

        self.column = ipywidgets.IntSlider(0, 0, len(self.columns.px) - 1, description="column", layout={"width": "26em"})
        self.moving = ipywidgets.ToggleButton(description="move the surface", layout={"width": "auto"})
        self.point = ipywidgets.IntSlider(0, 0, len(self.points) - 1, description="point", layout={"width": "16em"})
        back = self.button("as it was found", self.reset, "Undo all that was moved")
        self.observe(self.column, self.show_column)
        self.observe(self.moving, self.show_surface)
        self.observe(self.point, self.show_surface)
        return ipywidgets.HBox([self.column, self.moving, self.point, back])

    def choice(self) -> dict[str, Any]:
        """The points (y, x) px of a surface by hand; none where it is as found."""
        return {"surface_px": np.round(self.points, 2).tolist() if self.by_hand else []}

    # --- the surface's points ---

    def _as_found(self) -> SurfaceLayer | None:
        """The layer with the surface that is found in the image; None where there is none."""
        try:
            return self.remeasure(None)
        except EmphaseError:
            return None

    def _found_points(self) -> np.ndarray:
        """The points of the surface that was found, or of a straight line where there is none."""
        return self._points_along(self.found) if self.found is not None else self._straight_points()

    def _to_nm(self, px: np.ndarray) -> np.ndarray:
        """Places (k, 2) px in nm of the crystal."""
        return self.lattice.to_lattice(px) @ self.lattice.columns.basis_nm

    def _to_px(self, nm: np.ndarray) -> np.ndarray:
        """Places (k, 2) nm of the crystal in px."""
        return self.lattice.to_px(nm @ np.linalg.inv(self.lattice.columns.basis_nm))

    def _points_along(self, layer: SurfaceLayer) -> np.ndarray:
        """Points (k, 2) px of the surface that was found; its curve has one every 0.05 nm."""
        curve = layer.contour.curve()
        count = max(OPTIONS.least_points, round(len(curve) * 0.05 / OPTIONS.point_spacing_nm))
        return self._to_px(curve[np.linspace(0, len(curve) - 1, count).astype(int)])

    def _straight_points(self) -> np.ndarray:
        """A line down the middle of the image, where no surface was found."""
        (ny, nx), n = self.image.shape, OPTIONS.straight_points
        return np.stack([np.linspace(0.1 * ny, 0.9 * ny, n), np.full(n, 0.5 * nx)], axis=1)

    # --- figures ---

    def _draw_image(self) -> None:
        """The image with its columns, and empty lines for what is drawn over it."""
        ax, c = self.axes["image"], self.columns
        low, high = np.percentile(self.image, [1, 99.7])
        ax.imshow(self.image, cmap="gray", vmin=low, vmax=high * 1.3)
        size = 22 * min(1.0, 30 / math.sqrt(len(c.px)))
        crystal = self.layer.role >= 0 if self.layer is not None else c.present
        for metal, marker in ((True, "o"), (False, "^")):
            here = (c.is_metal == metal) & crystal
            ax.scatter(c.px[here, 1], c.px[here, 0], c=np.clip(c.brightness[here], 0, 1.1), s=size, marker=marker, vmin=0, vmax=1.1)
        (self.edge,) = ax.plot([], [], color="#56B4E9", lw=1.8)
        (self.depth,) = ax.plot([], [], color="#E69F00", lw=1.8, ls="--")
        (self.handles,) = ax.plot([], [], "D", mfc="w", mec="#0072B2", ms=7)
        (self.handle,) = ax.plot([], [], "D", mfc="#E69F00", mec="k", ms=9)
        (self.here,) = ax.plot([], [], "s", mfc="none", mec="#D55E00", ms=13, mew=1.8)
        ax.set(xlim=(-0.5, self.image.shape[1] - 0.5), ylim=(self.image.shape[0] - 0.5, -0.5), xticks=[], yticks=[])
        scale_bar(ax, self.lattice.scan()["pixel_size_nm"])
        ax.set_title("metal ●, lithium layer ▲, colour: brightness / full metal column", fontsize=9)

    def show_column(self) -> None:
        """The surroundings of the chosen column, a cut through it with its fit, and its occupancy."""
        y, x = self.columns.px[self.column.value]
        self.here.set_data([x], [y])
        rows, cols = (
            np.clip(np.arange(round(v) - self.reach, round(v) + self.reach + 1), 0, n - 1)
            for v, n in zip((y, x), self.image.shape, strict=True)
        )
        ax = self.axes["near"]
        ax.clear()
        extent = (cols[0] - 0.5, cols[-1] + 0.5, rows[-1] + 0.5, rows[0] - 0.5)
        ax.imshow(self.image[np.ix_(rows, cols)], cmap="gray", extent=extent)
        ax.plot([cols[0], cols[-1]], [round(y)] * 2, color="#D55E00", lw=0.8)
        ax.set(xticks=[], yticks=[])
        ax.set_title(f"column {self.column.value} and the cut below", fontsize=9)
        self._draw_cut(cols)
        self._describe()

    def _draw_cut(self, cols: np.ndarray) -> None:
        """Counts along the row of the chosen column, and the sum of the Gaussians fitted to the columns about it."""
        k, c = self.column.value, self.columns
        y, x = c.px[k]
        near = np.flatnonzero(np.all(np.abs(c.px - c.px[k]) < 2 * self.reach, axis=1))
        fit = c.background[k] + sum(
            c.height[i] * np.exp(-((cols - c.px[i, 1]) ** 2 + (round(y) - c.px[i, 0]) ** 2) / (2 * self.sigma**2)) for i in near
        )
        ax, pixel_nm = self.axes["profile"], self.lattice.scan()["pixel_size_nm"]
        ax.clear()
        ax.plot((cols - x) * pixel_nm, self.image[round(y), cols], "o", ms=3, color="0.4", label="counts")
        ax.plot((cols - x) * pixel_nm, fit, color="#0072B2", label="fit")
        ax.axvline(0, color="#D55E00", lw=0.8)
        ax.set(xlabel="along x (nm)", ylabel="counts")
        ax.legend(fontsize=8)

    def _column_sentence(self) -> str:
        """The chosen column's kind, brightness, depth and the structure about it."""
        k, c = self.column.value, self.columns
        text = f"Column {k}, {'metal' if c.is_metal[k] else 'lithium'} layer: "
        text += f"{c.brightness[k]:.2f} ± {c.noise[k]:.2f} of a full metal column, {c.height[k]:.3g} counts over {c.background[k]:.3g}"
        text += "" if c.present[k] or not c.is_metal[k] else ", an empty place"
        if self.layer is not None:
            text += f"; {self.layer.contour.depth(c.nm[k : k + 1])[0]:.2f} nm below the edge"
        if self.structure is not None and self.structure[k] >= 0:
            text += f"; structure about it: {REGIONS[self.structure[k]]}"
        return f"{text}."

    def _layer_sentence(self) -> str:
        """Thickness of the layer, and what it was as found."""
        if self.layer is None:
            text = "No surface was found; switch on “move the surface” to draw one."
        else:
            by = "with the surface by hand" if self.by_hand else "as found"
            low, high = self.layer.ci95_nm
            text = f"Layer {by}: {self.layer.kind}, {self.layer.thickness_nm:.2f} nm (95 %: {low:.2f} to {high:.2f} nm)."
        if self.by_hand and self.found is not None:
            text += f" As found: {self.found.thickness_nm:.2f} nm."
        return text

    def _describe(self) -> None:
        """The chosen column and the layer in words."""
        self.status.value = f"{html.escape(self._column_sentence())}<br><b>{html.escape(self._layer_sentence())}</b>"
        self.draw()

    def show_surface(self) -> None:
        """The edge, the depth of the layer, and the points while they can be moved."""
        if self.layer is not None:
            for line, depth in ((self.edge, 0.0), (self.depth, self.layer.thickness_nm)):
                px = self._to_px(self.layer.contour.curve(depth))
                line.set_data(px[:, 1], px[:, 0])
        moving = self.moving.value
        chosen = self.points[[self.point.value]]
        self.handles.set_data(*(self.points.T[::-1] if moving else ([], [])))
        self.handle.set_data(*(chosen.T[::-1] if moving else ([], [])))
        self.draw()

    def _show_all(self) -> None:
        """The surface and the chosen column."""
        self.show_surface()
        self.show_column()

    # --- moving it ---

    def move(self, px: np.ndarray) -> None:
        """Put the chosen point to a place (y, x) px."""
        if not self.work.running and self.before is None:
            self.before = (self.layer, self.points.copy(), self.by_hand)
        self.by_hand = True
        self.points[self.point.value] = np.clip(px, 0, np.array(self.image.shape) - 1)
        self.show_surface()

    def measure(self) -> None:
        """The layer below the surface as it is drawn now, in a thread."""
        points = self._to_nm(self.points)
        before = self.before or (self.layer, self.points.copy(), self.by_hand)

        def done(layer: SurfaceLayer) -> None:
            self.layer, self.before = layer, None
            self._show_all()

        def restore() -> None:
            (self.layer, self.points, self.by_hand), self.before = before, None
            self._show_all()

        compute = lambda progress: next(self.remeasure(points) for _ in progress(range(1)))
        self.work.start("measuring", compute, done, restore)

    def reset(self) -> None:
        """Back to the surface that was found."""
        self.work.drop()
        self.layer, self.by_hand, self.before = self.found, False, None
        self.points = self._found_points()
        self.point.max = len(self.points) - 1
        self._show_all()

    # --- mouse and keys ---

    def on_click(self, event: Any) -> None:
        """Take hold of a point of the surface."""
        if event.inaxes is self.axes["image"] and self.moving.value:
            mouse = np.array([event.ydata, event.xdata])
            apart = np.linalg.norm(self.points - mouse, axis=1)
            if apart.min() < OPTIONS.grab_share * max(self.image.shape):
                self.point.value = int(np.argmin(apart))
                self.dragged = mouse - self.points[self.point.value]

    def on_move(self, event: Any) -> None:
        """Drag a point of the surface, or choose the column below the mouse."""
        if event.inaxes is not self.axes["image"]:
            return
        if self.dragged is not None:
            self._drag(event, self.dragged)
        elif not self.moving.value:
            apart = np.linalg.norm(self.columns.px - [event.ydata, event.xdata], axis=1)
            if apart.min() < self.reach:
                self.column.value = int(np.argmin(apart))

    def _drag(self, event: Any, held: np.ndarray) -> None:
        """Move the point that is held to the mouse; less than half a pixel is a click."""
        place = np.array([event.ydata, event.xdata]) - held
        if np.linalg.norm(place - self.points[self.point.value]) > 0.5:
            self.move(place)

    def on_release(self, event: Any) -> None:
        """Measure below the surface that was moved."""
        if self.dragged is not None:
            if event.inaxes is self.axes["image"]:
                self._drag(event, self.dragged)
            self.dragged = None
            if self.before is not None:
                self.measure()

    def on_key(self, event: Any) -> None:
        """← and → choose the next column or point; ↑ and ↓ move a point along the normal of the surface."""
        step = {"up": -OPTIONS.key_step_nm, "down": OPTIONS.key_step_nm}.get(event.key)
        turn = {"left": -1, "right": 1}.get(event.key)
        if turn:
            slider = self.point if self.moving.value else self.column
            slider.value = int(np.clip(slider.value + turn, slider.min, slider.max))
        elif step and self.moving.value:
            nm = self._to_nm(self.points)
            contour = self.layer.contour if self.layer is not None else drawn_contour(self.columns, nm, OPTIONS.drawn_spacing_nm)
            along, _, _ = contour.places(nm[[self.point.value]])
            self.move(self._to_px(nm[[self.point.value]] + step * contour.normals(along))[0])
            self.measure()
