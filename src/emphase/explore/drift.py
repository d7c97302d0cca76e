"""TODO."""

from __future__ import annotations

import html
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np

from ..drawing import scale_bar
from ..drift.averages import covered_average, placed_frame, sum_frames
from ..drift.checks import half_average_resolution, some_frames
from ..drift.counts import DriftSolution
from ..drift.register import register_stack
from .base import HandChoices, _Explorer


class DriftExplorer(_Explorer):
    """A stack frame by frame, with the drift and without; frames left out or taken in, with trajectory, average and FRC following.

    ``frames`` (n, y, x) and its ``solution`` as `register_stack` gives them, ``half`` as `half_average_resolution`; ``given`` its options.
    """

    def __init__(
        self, frames: Any, solution: DriftSolution, pixel_nm: float, half: dict | None = None, *,
        hand: HandChoices | None = None, **given: Any,
    ):  # fmt: skip
        import ipywidgets

        super().__init__(
            (11, 6.4), {"mosaic": [["recorded", "undone", "average"], ["path", "path", "frc"]], "height_ratios": [1.25, 1]},
            "Click on the trajectory, or use ← and → on the figure, to choose a frame; space leaves it out or takes it in.", hand,
        )  # fmt: skip
        self.frames, self.pixel_nm, self.given = frames, pixel_nm, given
        self.solution, self.half = solution, half
        self.leave_out, self.take_in = set(given.pop("leave_out", ())), set(given.pop("take_in", ()))
        self.frame = ipywidgets.IntSlider(0, 0, len(frames) - 1, description="frame", layout={"width": "30em"})
        self.neighbours = ipywidgets.IntSlider(
            3, 1, 15, step=2, description="summed", tooltip="neighbours added up, so that something shows"
        )
        self.use = ipywidgets.ToggleButton(description="use this frame", value=bool(solution.used[0]), layout={"width": "auto"})
        self.observe(self.frame, self.show_frame)
        self.observe(self.neighbours, self.show_frame)
        self.observe(self.use, self.toggle)
        self.show_solution()
        self.show_frame()
        self.arrange(ipywidgets.HBox([self.frame, self.neighbours, self.use]), self.keeping())

    def choice(self) -> dict[str, Any]:
        return {"leave_out": sorted(self.leave_out), "take_in": sorted(self.take_in)}

    def show_frame(self) -> None:
        """The chosen frame, summed with its neighbours, as recorded and with the drift undone."""
        k, reach = self.frame.value, self.neighbours.value // 2
        near = [i for i in range(max(0, k - reach), min(len(self.frames), k + reach + 1)) if self.solution.used[i] or i == k]
        whole = -np.round(self.solution.shift_px).astype(int)
        pictures = (("recorded", np.zeros_like(whole)), ("undone", whole - whole[k]))
        for name, moved in pictures:
            image = sum(placed_frame(self.frames[i].astype(float), moved[i]) for i in near) / len(near)
            low, high = np.percentile(image, [1, 99.7])
            ax = self.axes[name]
            ax.clear()
            ax.imshow(image, cmap="gray", vmin=low, vmax=max(high, low + 1e-9))
            ax.set_xticks([])
            ax.set_yticks([])
            ax.set_title(f"frames {near[0]} to {near[-1]}, {'as recorded' if name == 'recorded' else 'drift undone'}", fontsize=9)
        self.mark.set_xdata([k, k])
        used = bool(self.solution.used[k])
        with self.silently(self.use):
            self.use.value, self.use.icon = used, "check" if used else "times"
            self.use.description = "frame is used" if used else "frame is left out"
        shift, sigma = self.solution.shift_px[k], self.solution.sigma_px[k]
        state = f"moved by y {shift[0]:.2f}, x {shift[1]:.2f} px ± {sigma:.3f} px"
        state = state if self.solution.registered else f"not registered: {self.solution.reason}"
        state = state if used else f"left out: {self.solution.left_out.get(k, '')}"
        state += f"; {self.frames[k].mean():.3g} counts a pixel"
        resolution = self.half and self.half["resolution_px"]
        told = f"; resolution of the average {resolution * self.pixel_nm:.3f} nm" if resolution else ""
        self.status.value = html.escape(f"Frame {k}: {state}. {self.solution.used.sum()} frames used{told}.")
        self.draw()

    def show_solution(self) -> None:
        """Trajectory, average and ring correlation."""
        ax, used = self.axes["path"], self.solution.used
        ax.clear()
        index = np.arange(len(used))
        for axis, (name, colour, marker) in enumerate((("y", "#0072B2", "o"), ("x", "#D55E00", "s"))):
            shown = np.where(used, self.solution.shift_px[:, axis], np.nan)
            ax.errorbar(index, shown, self.solution.sigma_px, fmt=marker + "-", ms=3.5, lw=0.8, color=colour, label=name)
        out = np.flatnonzero(~used)
        ax.plot(out, np.zeros(len(out)), "x", color="0.4", label="left out")
        self.mark = ax.axvline(self.frame.value, color="k", lw=1)
        ax.set(xlabel="frame", ylabel="shift (px)")
        ax.legend(fontsize=8, ncols=3)
        shown, solution, _ = some_frames(self.frames, self.solution)
        average, _ = covered_average(*sum_frames(shown, solution.shift_px, solution.used)[:2])
        ax = self.axes["average"]
        ax.clear()
        low, high = np.percentile(average, [1, 99.7])
        ax.imshow(average, cmap="gray", vmin=low, vmax=max(high, low + 1e-9))
        scale_bar(ax, self.pixel_nm)
        ax.set_xticks([])
        ax.set_yticks([])
        ax.set_title(f"average of {solution.used.sum()} frames", fontsize=9)
        ax = self.axes["frc"]
        ax.clear()
        ax.set(xlabel="spatial frequency (1/nm)", ylabel="ring correlation", ylim=(-0.3, 1.05))
        if self.half and "correlation" in self.half:
            ax.plot(self.half["frequency"] / self.pixel_nm, self.half["correlation"], color="#0072B2", lw=1, label="even against odd")
            ax.plot(self.half["frequency"] / self.pixel_nm, self.half["threshold"], color="0.3", ls="--", lw=1, label="threshold")
            ax.legend(fontsize=8)
        else:
            ax.text(
                0.5, 0.5, "measured when frames\nare left out or taken in", transform=ax.transAxes, ha="center", va="center", fontsize=8
            )

    def toggle(self) -> None:
        """Leave the chosen frame out or take it in, and register again beside."""
        k = self.frame.value
        before = (self.solution, self.half, set(self.leave_out), set(self.take_in))
        if k in self.leave_out or k in self.take_in:
            self.leave_out.discard(k)
            self.take_in.discard(k)
        elif self.solution.used[k]:
            self.leave_out.add(k)
        else:
            self.take_in.add(k)
        if k in self.leave_out:  # the average without it, at once; where the others then lie follows
            used = self.solution.used & (np.arange(len(self.frames)) != k)
            if used.any():
                self.solution = replace(self.solution, used=used, left_out=self.solution.left_out | {k: "by hand"})
                self.show_solution()
        self.show_frame()
        self.measure(before)

    def measure(self, before: tuple) -> None:
        """Register and correlate the halves with the frames that are chosen now; of a stack larger than memory the next run does it."""
        if not isinstance(self.frames, np.ndarray):
            self.say("This stack is larger than memory: the next run registers it with this choice.")
            return
        chosen = self.choice()

        def back() -> None:
            self.solution, self.half, self.leave_out, self.take_in = before
            self.show_solution()
            self.show_frame()

        def compute(progress: Callable) -> tuple[DriftSolution, dict]:
            steps = iter(progress(range(2)))
            next(steps)
            solution = register_stack(self.frames, **self.given, **chosen)
            next(steps)
            return solution, half_average_resolution(self.frames, solution, self.take_in)

        self.work.start("registering", compute, self._measured, back)

    def _measured(self, result: tuple[DriftSolution, dict]) -> None:
        self.solution, self.half = result
        self.show_solution()
        self.show_frame()
        again = "Registered again" if self.solution.registered else "Not registered"
        self.say(f"{again}: left out by hand {sorted(self.leave_out) or 'none'}, taken in by hand {sorted(self.take_in) or 'none'}.")

    def on_click(self, event: Any) -> None:
        if event.inaxes is self.axes["path"] and event.xdata is not None:
            self.frame.value = int(np.clip(round(event.xdata), 0, len(self.frames) - 1))

    def on_key(self, event: Any) -> None:
        step = {"left": -1, "right": 1}.get(event.key)
        if step:
            self.frame.value = int(np.clip(self.frame.value + step, 0, len(self.frames) - 1))
        elif event.key == " ":
            self.toggle()
