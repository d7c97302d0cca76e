"""The explorer of a bright-field image of an interface: the spectrum of a window, and what it could be.

Shown are the image with the boundaries of its lattices, and the power spectrum of one window over its background, with the spots of the
lattice that owns the window. Other candidates are analysed by the caller's function.
"""

from __future__ import annotations

import html
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..choices import HandChoices
from ..drawing import scale_bar
from ..interface.phases import InterfaceResult
from .base import Explorer, show_image, table_html


@dataclass(frozen=True)
class InterfaceExplorerOptions:
    """Tuning numbers of `InterfaceExplorer`."""

    least_amplitude: float = 0.2  # of a lattice's spots that are marked, relative to its strongest
    reach_invA: float = 0.75  # of the spectrum that is shown: spacings down to 1.33 Å
    likely: int = 5  # candidates in the table
    least_share: float = 0.004  # of a phase in the title


OPTIONS = InterfaceExplorerOptions()


class InterfaceExplorer(Explorer):
    """A bright-field image: drag the window to see its spectrum and the candidates for it; choose others and analyse again.

    Parameters
    ----------
    image : ndarray (y, x)
        Counts.
    result : InterfaceResult
        From `emphase.interface.analyse_interface`.
    phases : list of str
        All that may be candidates.
    chosen : list of str
        The candidates of ``result``.
    analyse : callable
        ``analyse(phases, progress)`` gives the `InterfaceResult` with these candidates.
    hand : HandChoices, optional
        Title, and what becomes of a choice.
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
        self.window = self._nearest_window(np.array(image.shape) / 2)
        self.table = ipywidgets.HTML()
        self.table.add_class("explorer-table")
        self.candidates = ipywidgets.SelectMultiple(options=phases, value=chosen, rows=len(phases), description="candidates")
        again = self.button("analyse again", self.measure, "Search the image for the chosen candidates alone")
        self._draw_image()
        self.show_window()
        self.arrange(ipywidgets.HBox([self.table, ipywidgets.VBox([self.candidates, again])]), self.hand_box())

    def choice(self) -> dict[str, Any]:
        """The candidates; none where all are chosen."""
        chosen = list(self.candidates.value)
        return {"candidate_phases": [] if len(chosen) == len(self.candidates.options) else chosen}

    def _draw_image(self) -> None:
        """The image with the boundaries of its lattices and the window, and the area fractions."""
        from matplotlib.patches import Rectangle

        ax, found = self.axes["image"], self.result.map
        shares = ", ".join(f"{k} {100 * v:.0f} %" for k, v in found.area_fractions().items() if v > OPTIONS.least_share)
        show_image(ax, self.image, (1, 99), shares)
        places = [np.linspace(-0.5, n - 0.5, 2 * m + 1)[1::2] for n, m in zip(self.image.shape, found.label.shape, strict=True)]
        for k in range(int(found.label.max(initial=-1)) + 1):
            if (found.label == k).any() and not (found.label == k).all():
                ax.contour(places[1], places[0], (found.label == k).astype(float), levels=[0.5], colors="#56B4E9", linewidths=1)
        size = self.result.spectra.size
        self.square = ax.add_patch(Rectangle((0, 0), size, size, fill=False, ec="#E69F00", lw=2))
        scale_bar(ax, self.result.pixel_size_nm)

    def show_window(self) -> None:
        """The window, its spectrum with the spots of the lattice that it shows, and the candidates."""
        result, k = self.result, self.window
        origin = result.spectra.origins[k]
        self.square.set_xy((origin[1] - 0.5, origin[0] - 0.5))
        self._draw_spectrum()
        owner = int(result.owner[k])
        state = {-1: "no lattice", -2: "spots that no candidate explains"}.get(owner) or f"lattice of {result.lattices[owner].phase}"
        centre = result.spectra.centres[k] * result.pixel_size_nm
        self.status.value = html.escape(f"Window at y {centre[0]:.2f}, x {centre[1]:.2f} nm: {state}.")
        likely = sorted(result.window_posteriors[k].items(), key=lambda item: -item[1])[: OPTIONS.likely]
        rows = [(name, f"{probability:.3f}") for name, probability in likely]
        self.table.value = table_html(("phase and zone axis", "posterior"), rows, "This window by itself")
        self.draw()

    def _draw_spectrum(self) -> None:
        """Signal over noise of the window's spectrum, logarithmic, with the spots of the lattice that owns it."""
        result, k = self.result, self.window
        power, snr = result.spectra.mean([k])
        bin_invA = result.spectra.bin_invA / result.calibration["scale"]
        reach, half = len(power) // 2 * bin_invA, 0.5 * bin_invA  # zero frequency is in the middle of its bin
        ax = self.axes["spectrum"]
        ax.clear()
        ax.imshow(np.log10(np.maximum(snr, 0.5)), cmap="gray", extent=(-reach - half, reach - half, reach - half, -reach - half))
        if result.owner[k] >= 0:
            lattice = result.lattices[int(result.owner[k])]
            spots = lattice.spots[lattice.pattern.amplitude > OPTIONS.least_amplitude]
            label = f"{lattice.phase} {list(lattice.pattern.zone_axis)}"
            ax.plot(spots.real, spots.imag, "o", mfc="none", mec="#56B4E9", ms=10, label=label)
            ax.legend(fontsize=8, loc="upper right")
        shown = OPTIONS.reach_invA
        ax.set(xlim=(-shown, shown), ylim=(shown, -shown), xlabel="1/Å", ylabel="1/Å")
        ax.set_title("spectrum of the window", fontsize=9)

    def _nearest_window(self, centre_px: np.ndarray) -> int:
        """Index of the window nearest to a place (y, x) px."""
        return int(np.argmin(np.linalg.norm(self.result.spectra.centres - centre_px, axis=1)))

    def go_to(self, centre_px: np.ndarray) -> None:
        """To the window nearest to a place (y, x) in px."""
        self.window = self._nearest_window(centre_px)
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
        """A click in the image chooses a window."""
        if event.inaxes is self.axes["image"]:
            self.go_to(np.array([event.ydata, event.xdata]))

    def on_move(self, event: Any) -> None:
        """Dragging in the image moves the window."""
        if event.inaxes is self.axes["image"] and event.button == 1:
            self.on_click(event)

    def on_key(self, event: Any) -> None:
        """Arrow keys choose the next window of the same row or column."""
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
