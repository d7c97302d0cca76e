"""TODO."""

from __future__ import annotations

import html
from collections.abc import Callable, Iterable, Mapping
from typing import Any, ClassVar

import numpy as np

from .base import HandChoices, _Explorer, _table_html


class ComparisonExplorer(_Explorer):
    """The samples side by side: choose the phase, the kind of interval and the samples; click one for what its fraction rests on.

    ``samples`` (dicts) have ``sample``, ``label``, ``simulated``, ``n_patterns`` and ``n_grains``, and for each of the phases in
    ``colours`` (by name, hexadecimal) ``<phase>_fraction`` (None: not known), ``_fraction_raw``, ``_detected``, ``_detection_limit``,
    ``_fraction_quantiles`` and ``_elsewhere_quantiles`` (101,). ``compare(samples, phase)`` gives the differences of pairs; ``area`` is what
    the fractions are of, and ``left_out`` the samples that had been left out before.
    """

    INTERVALS: ClassVar = {"the scanned areas": "fraction_quantiles", "the lamellae": "elsewhere_quantiles"}

    def __init__(
        self, samples: list[dict[str, Any]], colours: Mapping[str, str], compare: Callable[[list[dict], str], list[dict]], *,
        area: str = "scanned area", left_out: Iterable[str] = (), hand: HandChoices | None = None,
    ):  # fmt: skip
        import ipywidgets

        super().__init__(
            (9.5, 4), {"mosaic": [["fractions", "change"]], "width_ratios": [1.2, 1]},
            "Click a sample, or step through them with ← and → on the figure; space leaves the chosen one out or takes it in.", hand,
        )  # fmt: skip
        self.samples, self.picked, self.colours, self.compare = samples, 0, colours, compare
        self.area, self.left_out = area, list(left_out)
        simulated = " (simulated data)" if any(s["simulated"] for s in samples) else ""
        self.figure.suptitle(f"all samples{simulated}", fontsize=10)
        names = [s["sample"] for s in samples]
        self.phase = ipywidgets.ToggleButtons(options=list(colours), description="phase")
        self.interval = ipywidgets.ToggleButtons(options=list(self.INTERVALS), description="interval of")
        self.compared = ipywidgets.SelectMultiple(options=names, value=names, rows=min(len(names), 6), description="compared")
        self.table = ipywidgets.HTML()
        self.table.add_class("explorer-table")
        for control in (self.phase, self.interval, self.compared):
            self.observe(control, self.show)
        self.show()
        self.arrange(ipywidgets.HBox([self.phase, self.interval]), ipywidgets.HBox([self.compared, self.table]), self.keeping())

    def choice(self) -> dict[str, Any]:
        return {"leave_out": [*self.left_out, *(s["sample"] for s in self.samples if s["sample"] not in self.compared.value)]}

    def _quantiles(self, sample: dict[str, Any]) -> np.ndarray | None:
        return sample[f"{self.phase.value}_{self.INTERVALS[self.interval.value]}"]

    def show(self) -> None:
        """Fractions and differences of the samples that are compared."""
        phase, prefix = self.phase.value, "elsewhere_" if "elsewhere" in self.INTERVALS[self.interval.value] else ""
        kept = [s for s in self.samples if s["sample"] in self.compared.value and s[f"{phase}_fraction"] is not None]
        ax = self.axes["fractions"]
        ax.clear()
        for k, s in enumerate(self.samples):
            value, quantiles = s[f"{phase}_fraction"], self._quantiles(s)
            if value is None or quantiles is None:
                continue
            low, high = np.interp([2.5, 97.5], np.arange(101), quantiles)
            faint = s not in kept
            colour = "0.7" if faint else "k"
            ax.plot([k, k], [low, high], color=colour, lw=2, ls=":" if faint else "-")
            ax.plot(k, value, "o", ms=12 if k == self.picked else 8, mfc="w" if faint else self.colours[phase], mec=colour)
        ax.set_xticks(range(len(self.samples)), [s["sample"] for s in self.samples], rotation=20)
        ax.set(xlim=(-0.6, len(self.samples) - 0.4), ylim=(0, None), ylabel=f"{phase} share of the {self.area}")
        ax.set_title(f"95 % intervals of {self.interval.value}", fontsize=9)
        pairs = [p for p in self.compare(kept, phase) if f"{prefix}ci95_low" in p]
        ax = self.axes["change"]
        ax.clear()
        for k, pair in enumerate(pairs[:30]):
            ax.plot([pair[f"{prefix}ci95_low"], pair[f"{prefix}ci95_high"]], [k, k], color="k", lw=2)
            ax.plot(pair["difference"], k, "D", mfc="w", mec="k")
        ax.axvline(0, color="0.5", lw=0.8)
        ax.set_yticks(range(len(pairs[:30])), [f"{p['from']} → {p['to']}" for p in pairs[:30]], fontsize=8)
        ax.set(ylim=(max(len(pairs[:30]), 1) - 0.5, -0.5), xlabel="change of the share")
        rows = [
            (p["from"], p["to"], f"{p['difference']:+.3f}", f"{p[f'{prefix}ci95_low']:+.3f} to {p[f'{prefix}ci95_high']:+.3f}",
             f"{p[f'{prefix}probability_of_increase']:.3f}") for p in pairs[:30]
        ]  # fmt: skip
        self.table.value = _table_html(("from", "to", "change", "95 %", "P(increase)"), rows)
        s = self.samples[self.picked]
        told = [f"{s['n_patterns']} patterns of the {self.area} in {s['n_grains']} grains"]
        if s[f"{phase}_fraction"] is None:
            told = [f"no {phase} fraction", *told]
        else:
            verdict = "detected" if s[f"{phase}_detected"] else "not detected"
            told = [f"{phase} {s[f'{phase}_fraction']:.3f}, {verdict}", *told, f"raw share {s[f'{phase}_fraction_raw']:.3f}"]
            told += [f"detection limit {s[f'{phase}_detection_limit']:.3f}"]
        self.status.value = html.escape(f"{s['sample']} ({s['label']}): {'; '.join(told)}.")
        self.draw()

    def pick(self, k: int) -> None:
        """Choose a sample by its place."""
        self.picked = int(np.clip(k, 0, len(self.samples) - 1))
        self.show()

    def on_click(self, event: Any) -> None:
        if event.inaxes is self.axes["fractions"]:
            self.pick(round(event.xdata))

    def on_key(self, event: Any) -> None:
        step = {"left": -1, "right": 1}.get(event.key)
        if step:
            self.pick(self.picked + step)
        elif event.key == " ":
            name, compared = self.samples[self.picked]["sample"], set(self.compared.value)
            self.compared.value = [s["sample"] for s in self.samples if s["sample"] in compared ^ {name}]
