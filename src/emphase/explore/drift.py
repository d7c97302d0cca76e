"""The explorer of a stack of frames: recorded and with the drift undone, trajectory, average and Fourier ring correlation.

Frames left out or taken in by hand are registered again by `emphase.drift.register_stack` with all options of the first registration, so
that a later run with the same choice finds the same.
"""

from __future__ import annotations

import html
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ..choices import HandChoices
from ..drawing import scale_bar
from ..drift.averages import covered_average, placed_frame, sum_frames
from ..drift.checks import half_average_resolution, some_frames
from ..drift.counts import DriftSolution
from ..drift.register import register_stack
from .base import Explorer, show_image


@dataclass(frozen=True)
class DriftExplorerOptions:
    """Tuning numbers of `DriftExplorer`."""

    summed: int = 3  # frames that are added up at first: a frame of low dose alone shows nothing
    most_summed: int = 15


OPTIONS = DriftExplorerOptions()


class DriftExplorer(Explorer):
    """A stack frame by frame; frames are left out or taken in, and trajectory, average and ring correlation follow.

    Parameters
    ----------
    frames : array_like (n, y, x)
        Counts.
    solution : DriftSolution
        From `emphase.drift.register_stack`.
    pixel_nm : float
        Pixel size.
    half : dict, optional
        From `emphase.drift.checks.half_average_resolution`; without it the ring correlation is shown once frames were registered again.
    hand : HandChoices, optional
        Title, and what becomes of a choice.
    **options
        Those of `register_stack` that gave the solution; ``leave_out`` and ``take_in`` among them are where the choice begins.
    """

    def __init__(
        self, frames: Any, solution: DriftSolution, pixel_nm: float, half: dict | None = None, *,
        hand: HandChoices | None = None, **options: Any,
    ):  # fmt: skip
        import ipywidgets

        super().__init__(
            (11, 6.4), {"mosaic": [["recorded", "undone", "average"], ["path", "path", "frc"]], "height_ratios": [1.25, 1]},
            "Click on the trajectory, or use ← and → on the figure, to choose a frame; space leaves it out or takes it in.", hand,
        )  # fmt: skip
        self.frames, self.pixel_nm, self.options = frames, pixel_nm, options
        self.solution, self.half = solution, half
        self.leave_out, self.take_in = set(options.pop("leave_out", ())), set(options.pop("take_in", ()))
        self.frame = ipywidgets.IntSlider(0, 0, len(frames) - 1, description="frame", layout={"width": "30em"})
        self.neighbours = ipywidgets.IntSlider(
            OPTIONS.summed, 1, OPTIONS.most_summed, step=2, description="summed", tooltip="neighbours added up, so that something shows"
        )
        self.use = ipywidgets.ToggleButton(description="use this frame", value=bool(solution.used[0]), layout={"width": "auto"})
        self.observe(self.frame, self.show_frame)
        self.observe(self.neighbours, self.show_frame)
        self.observe(self.use, self.toggle)
        self.show_solution()
        self.show_frame()
        self.arrange(ipywidgets.HBox([self.frame, self.neighbours, self.use]), self.hand_box())

    def choice(self) -> dict[str, Any]:
        """Frames left out and taken in."""
        return {"leave_out": sorted(self.leave_out), "take_in": sorted(self.take_in)}

    def show_frame(self) -> None:
        """The chosen frame, summed with its neighbours, as recorded and with the drift undone."""
        k, reach = self.frame.value, self.neighbours.value // 2
        near = [i for i in range(max(0, k - reach), min(len(self.frames), k + reach + 1)) if self.solution.used[i] or i == k]
        whole = -np.round(self.solution.shift_px).astype(int)
        for name, moved, label in (
            ("recorded", np.zeros_like(whole), "as recorded"),
            ("undone", whole - whole[k], "drift undone"),
        ):
            image = np.sum([placed_frame(self.frames[i].astype(float), moved[i]) for i in near], axis=0) / len(near)
            show_image(self.axes[name], image, title=f"frames {near[0]} to {near[-1]}, {label}")
        self.mark.set_xdata([k, k])
        used = bool(self.solution.used[k])
        with self.silently(self.use):
            self.use.value, self.use.icon = used, "check" if used else "times"
            self.use.description = "frame is used" if used else "frame is left out"
        self.status.value = html.escape(self._frame_sentence(k))
        self.draw()

    def _frame_sentence(self, k: int) -> str:
        """A frame's shift, or why it has none, its counts, and the resolution of the average."""
        solution = self.solution
        shift, sigma = solution.shift_px[k], solution.sigma_px[k]
        state = f"moved by y {shift[0]:.2f}, x {shift[1]:.2f} px ± {sigma:.3f} px"
        state = state if solution.registered else f"not registered: {solution.reason}"
        state = state if solution.used[k] else f"left out: {solution.left_out.get(k, '')}"
        resolution_px = self.half and self.half["resolution_px"]
        average = f"; resolution of the average {resolution_px * self.pixel_nm:.3f} nm" if resolution_px else ""
        return f"Frame {k}: {state}; {self.frames[k].mean():.3g} counts a pixel. {solution.used.sum()} frames used{average}."

    def show_solution(self) -> None:
        """Trajectory, average and ring correlation."""
        self._draw_trajectory()
        shown, solution, _ = some_frames(self.frames, self.solution)
        average, _ = covered_average(*sum_frames(shown, solution.shift_px, solution.used)[:2])
        show_image(self.axes["average"], average, title=f"average of {solution.used.sum()} frames")
        scale_bar(self.axes["average"], self.pixel_nm)
        self._draw_correlation()

    def _draw_trajectory(self) -> None:
        """Shift of every frame with its standard error, frames left out, and a line at the chosen frame."""
        ax, used = self.axes["path"], self.solution.used
        ax.clear()
        index = np.arange(len(used))
        for axis, (name, colour, marker) in enumerate((("y", "#0072B2", "o"), ("x", "#D55E00", "s"))):
            shift = np.where(used, self.solution.shift_px[:, axis], np.nan)
            ax.errorbar(index, shift, self.solution.sigma_px, fmt=marker + "-", ms=3.5, lw=0.8, color=colour, label=name)
        out = np.flatnonzero(~used)
        ax.plot(out, np.zeros(len(out)), "x", color="0.4", label="left out")
        self.mark = ax.axvline(self.frame.value, color="k", lw=1)
        ax.set(xlabel="frame", ylabel="shift (px)")
        ax.legend(fontsize=8, ncols=3)

    def _draw_correlation(self) -> None:
        """Ring correlation of the averages of even and odd frames, with its threshold."""
        ax, half = self.axes["frc"], self.half
        ax.clear()
        ax.set(xlabel="spatial frequency (1/nm)", ylabel="ring correlation", ylim=(-0.3, 1.05))
        if half and "correlation" in half:
            ax.plot(half["frequency"] / self.pixel_nm, half["correlation"], color="#0072B2", lw=1, label="even against odd")
            ax.plot(half["frequency"] / self.pixel_nm, half["threshold"], color="0.3", ls="--", lw=1, label="threshold")
            ax.legend(fontsize=8)
        else:
            text = "measured when frames\nare left out or taken in"
            ax.text(0.5, 0.5, text, transform=ax.transAxes, ha="center", va="center", fontsize=8)

    def toggle(self) -> None:
        """Leave the chosen frame out or take it in, and register again in a thread."""
        k = self.frame.value
        before = (self.solution, self.half, set(self.leave_out), set(self.take_in))
        if k in self.leave_out or k in self.take_in:
            self.leave_out.discard(k)
            self.take_in.discard(k)
        elif self.solution.used[k]:
            self.leave_out.add(k)
        else:
            self.take_in.add(k)
        if k in self.leave_out:  # the average without it, at once; the shifts of the others follow
            used = self.solution.used & (np.arange(len(self.frames)) != k)
            if used.any():
                self.solution = replace(self.solution, used=used, left_out=self.solution.left_out | {k: "by hand"})
                self.show_solution()
        self.show_frame()
        self.measure(before)

    def measure(self, before: tuple) -> None:
        """Register and correlate the halves with the chosen frames, unless the stack is larger than memory.

        ``before`` holds the solution, the halves, and the frames left out and taken in that are restored where that fails.
        """
        if not isinstance(self.frames, np.ndarray):
            self.say("This stack is larger than memory: the next run registers it with this choice.")
            return
        chosen = self.choice()

        def restore() -> None:
            self.solution, self.half, self.leave_out, self.take_in = before
            self.show_solution()
            self.show_frame()

        def compute(progress: Callable) -> tuple[DriftSolution, dict]:
            steps = iter(progress(range(2)))
            next(steps)
            solution = register_stack(self.frames, **self.options, **chosen)
            next(steps)
            return solution, half_average_resolution(self.frames, solution, self.take_in)

        self.work.start("registering", compute, self._measured, restore)

    def _measured(self, result: tuple[DriftSolution, dict]) -> None:
        """Show what was registered again."""
        self.solution, self.half = result
        self.show_solution()
        self.show_frame()
        again = "Registered again" if self.solution.registered else "Not registered"
        self.say(f"{again}: left out by hand {sorted(self.leave_out) or 'none'}, taken in by hand {sorted(self.take_in) or 'none'}.")

    def on_click(self, event: Any) -> None:
        """A click on the trajectory chooses a frame."""
        if event.inaxes is self.axes["path"] and event.xdata is not None:
            self.frame.value = int(np.clip(round(event.xdata), 0, len(self.frames) - 1))

    def on_key(self, event: Any) -> None:
        """Arrow keys choose the next frame; space leaves it out or takes it in."""
        step = {"left": -1, "right": 1}.get(event.key)
        if step:
            self.frame.value = int(np.clip(self.frame.value + step, 0, len(self.frames) - 1))
        elif event.key == " ":
            self.toggle()
