"""TODO."""

from __future__ import annotations

import html
from collections.abc import Callable
from typing import Any

import numpy as np

from ..drawing import scale_bar
from ..interface.phases import InterfaceResult
from .base import HandChoices, _Explorer, _table_html


class InterfaceExplorer(_Explorer):
    """A bright-field image: drag the window, see its spectrum and what it could be; choose candidates and have it analysed again.

    ``phases`` are all that may be candidates, ``chosen`` those of ``result``; ``analyse(phases, progress)`` is the analysis with others.
    """

    def __init__(
        self, image: np.ndarray, result: InterfaceResult, phases: list[str], chosen: list[str],
        analyse: Callable[..., InterfaceResult], *, hand: HandChoices | None = None,
    ):  # fmt: skip
        import ipywidgets

        super().__init__(
            (11, 5.2), {"mosaic": [["image", "spectrum"]], "width_ratios": [1, 1]},
            "Click or drag in the image, or move the window with the arrow keys on the figure.", hand,
        )  # fmt: skip
        self.image, self.result, self.analyse = image, result, analyse
        self.window = int(np.argmin(np.linalg.norm(result.spectra.centres - np.array(image.shape) / 2, axis=1)))
        self.table = ipywidgets.HTML()
        self.table.add_class("explorer-table")
        self.candidates = ipywidgets.SelectMultiple(options=phases, value=chosen, rows=len(phases), description="candidates")
        again = self.button("analyse again", self.measure, "Search the image for the chosen candidates alone")
        self._draw_image()
        self.show_window()
        self.arrange(ipywidgets.HBox([self.table, ipywidgets.VBox([self.candidates, again])]), self.keeping())

    def choice(self) -> dict[str, Any]:
        chosen = list(self.candidates.value)
        return {"candidate_phases": [] if len(chosen) == len(self.candidates.options) else chosen}

    def _draw_image(self) -> None:
        from matplotlib.patches import Rectangle

        ax = self.axes["image"]
        ax.clear()
        low, high = np.percentile(self.image, [1, 99])
        ax.imshow(self.image, cmap="gray", vmin=low, vmax=high)
        found = self.result.map
        places = [np.linspace(-0.5, n - 0.5, 2 * m + 1)[1::2] for n, m in zip(self.image.shape, found.label.shape, strict=True)]
        for k in range(int(found.label.max(initial=-1)) + 1):
            if (found.label == k).any() and not (found.label == k).all():
                ax.contour(places[1], places[0], (found.label == k).astype(float), levels=[0.5], colors="#56B4E9", linewidths=1)
        size = self.result.spectra.size
        self.square = ax.add_patch(Rectangle((0, 0), size, size, fill=False, ec="#E69F00", lw=2))
        ax.set(xticks=[], yticks=[])
        scale_bar(ax, self.result.pixel_size_nm)
        shares = ", ".join(f"{name} {100 * share:.0f} %" for name, share in found.area_fractions().items() if share > 0.004)
        ax.set_title(shares, fontsize=9)

    def show_window(self) -> None:
        """The window, its spectrum with the spots of the lattice that it shows, and the candidates."""
        result, k = self.result, self.window
        origin = result.spectra.origins[k]
        self.square.set_xy((origin[1] - 0.5, origin[0] - 0.5))
        power, snr = result.spectra.mean([k])
        bin_invA = result.spectra.bin_invA / result.calibration["scale"]
        reach, half = len(power) // 2 * bin_invA, 0.5 * bin_invA  # zero frequency is in the middle of its bin
        ax = self.axes["spectrum"]
        ax.clear()
        ax.imshow(np.log10(np.maximum(snr, 0.5)), cmap="gray", extent=(-reach - half, reach - half, reach - half, -reach - half))
        owner = int(result.owner[k])
        if owner >= 0:
            lattice = result.lattices[owner]
            spots = lattice.spots[lattice.pattern.amplitude > 0.2]
            ax.plot(
                spots.real, spots.imag, "o", mfc="none", mec="#56B4E9", ms=10, label=f"{lattice.phase} {list(lattice.pattern.zone_axis)}"
            )
            ax.legend(fontsize=8, loc="upper right")
        ax.set(xlim=(-0.75, 0.75), ylim=(0.75, -0.75), xlabel="1/Å", ylabel="1/Å")
        ax.set_title("spectrum of the window", fontsize=9)
        shown = {-1: "no lattice", -2: "spots that no candidate explains"}.get(owner) or f"lattice of {result.lattices[owner].phase}"
        centre = result.spectra.centres[k] * result.pixel_size_nm
        self.status.value = html.escape(f"Window at y {centre[0]:.2f}, x {centre[1]:.2f} nm: {shown}.")
        likely = sorted(result.window_posteriors[k].items(), key=lambda item: -item[1])[:5]
        rows = [(name, f"{probability:.3f}") for name, probability in likely]
        self.table.value = _table_html(("phase and zone axis", "posterior"), rows, "This window by itself")
        self.draw()

    def go_to(self, centre_px: np.ndarray) -> None:
        """To the window nearest to a place (y, x) px."""
        self.window = int(np.argmin(np.linalg.norm(self.result.spectra.centres - centre_px, axis=1)))
        self.show_window()

    def measure(self) -> None:
        """Analyse the image for the chosen candidates alone."""
        phases = list(self.candidates.value)
        if not phases:
            self.say("Choose one candidate at least.")
            return

        def done(result: InterfaceResult) -> None:
            self.result = result
            self._draw_image()
            self.show_window()
            at_interface = result.interface_phase or "not determined"
            self.say(f"With {', '.join(phases)}: at the interface {at_interface}. " + "; ".join(result.statements))

        self.work.start("windows", lambda progress: self.analyse(phases, progress), done, self._draw_image)

    def on_click(self, event: Any) -> None:
        if event.inaxes is self.axes["image"]:
            self.go_to(np.array([event.ydata, event.xdata]))

    def on_move(self, event: Any) -> None:
        if event.inaxes is self.axes["image"] and event.button == 1:
            self.on_click(event)

    def on_key(self, event: Any) -> None:
        step = {"left": (0, -1), "right": (0, 1), "up": (-1, 0), "down": (1, 0)}.get(event.key)
        if step:
            origins, here = self.result.spectra.origins, self.result.spectra.origins[self.window]
            axis, sign = (0, step[0]) if step[0] else (1, step[1])
            ahead = (origins[:, axis] - here[axis]) * sign > 0
            same = origins[:, 1 - axis] == here[1 - axis]
            if (ahead & same).any():
                candidates = np.flatnonzero(ahead & same)
                self.window = int(candidates[np.argmin(np.abs(origins[candidates, axis] - here[axis]))])
                self.show_window()
