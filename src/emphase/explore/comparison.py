"""The explorer of several samples side by side: shares with their intervals, and the differences of pairs.

Intervals are 2.5th to 97.5th percentiles, read from 101 quantiles (0 to 100 %). There are two kinds: of the areas that were scanned, and of
the lamellae that these were taken from (another area of the same lamella).
"""

from __future__ import annotations

import html
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..choices import HandChoices
from .base import Explorer, table_html

#: Kinds of intervals by the label of their button: key of the quantiles, and prefix of a difference's keys.
_INTERVALS = {"the scanned areas": ("fraction_quantiles", ""), "the lamellae": ("elsewhere_quantiles", "elsewhere_")}


@dataclass(frozen=True)
class ComparisonExplorerOptions:
    """Tuning numbers of `ComparisonExplorer`."""

    most_pairs: int = 30  # that are drawn and listed; more are not legible
    most_rows: int = 6  # of the list of samples


OPTIONS = ComparisonExplorerOptions()


class ComparisonExplorer(Explorer):
    """Samples side by side: choose the phase, the kind of interval and the samples; click one for what its share rests on.

    Parameters
    ----------
    samples : list of dict
        With ``sample``, ``label``, ``simulated``, ``n_patterns`` and ``n_grains``, and for each of the phases ``<phase>_fraction`` (None:
        not known), ``_fraction_raw``, ``_detected``, ``_detection_limit``, ``_fraction_quantiles`` and ``_elsewhere_quantiles`` (101,).
    colours : mapping of str to str
        Colour of every phase that may be chosen, hexadecimal.
    compare : callable
        ``compare(samples, phase)`` gives the differences of pairs, dicts with ``from``, ``to``, ``difference``, ``ci95_low``,
        ``ci95_high``, ``probability_of_increase``, and the last three with the prefix ``elsewhere_`` for the lamellae.
    area : str
        What the shares are of.
    left_out : iterable of str
        Samples left out before, which are not among ``samples``.
    hand : HandChoices, optional
        Title, and what becomes of a choice.
    """

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
        names, rows = [s["sample"] for s in samples], min(len(samples), OPTIONS.most_rows)
        self.phase = ipywidgets.ToggleButtons(options=list(colours), description="phase")
        self.interval = ipywidgets.ToggleButtons(options=list(_INTERVALS), description="interval of")
        self.compared = ipywidgets.SelectMultiple(options=names, value=names, rows=rows, description="compared")
        self.table = ipywidgets.HTML()
        self.table.add_class("explorer-table")
        for control in (self.phase, self.interval, self.compared):
            self.observe(control, self.show)
        self.show()
        self.arrange(ipywidgets.HBox([self.phase, self.interval]), ipywidgets.HBox([self.compared, self.table]), self.hand_box())

    def choice(self) -> dict[str, Any]:
        """The samples that are left out, with those left out before."""
        return {"leave_out": [*self.left_out, *(s["sample"] for s in self.samples if s["sample"] not in self.compared.value)]}

    def show(self) -> None:
        """Shares and differences of the samples that are compared, and what the chosen one's share rests on."""
        phase, (_, prefix) = self.phase.value, _INTERVALS[self.interval.value]
        kept = [s for s in self.samples if s["sample"] in self.compared.value and s[f"{phase}_fraction"] is not None]
        pairs = [pair for pair in self.compare(kept, phase) if f"{prefix}ci95_low" in pair][: OPTIONS.most_pairs]
        self._draw_shares(kept)
        self._draw_differences(pairs, prefix)
        rows = [
            (p["from"], p["to"], f"{p['difference']:+.3f}", f"{p[f'{prefix}ci95_low']:+.3f} to {p[f'{prefix}ci95_high']:+.3f}",
             f"{p[f'{prefix}probability_of_increase']:.3f}") for p in pairs
        ]  # fmt: skip
        self.table.value = table_html(("from", "to", "change", "95 %", "P(increase)"), rows)
        self.status.value = html.escape(self._sample_sentence(self.samples[self.picked]))
        self.draw()

    def _draw_shares(self, kept: list[dict[str, Any]]) -> None:
        """Every sample's share with its interval, those that are not compared in grey."""
        ax, phase, (quantiles_key, _) = self.axes["fractions"], self.phase.value, _INTERVALS[self.interval.value]
        ax.clear()
        for k, s in enumerate(self.samples):
            value, quantiles = s[f"{phase}_fraction"], s[f"{phase}_{quantiles_key}"]
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

    def _draw_differences(self, pairs: list[dict[str, Any]], prefix: str) -> None:
        """The difference of every pair with its interval."""
        ax = self.axes["change"]
        ax.clear()
        for k, pair in enumerate(pairs):
            ax.plot([pair[f"{prefix}ci95_low"], pair[f"{prefix}ci95_high"]], [k, k], color="k", lw=2)
            ax.plot(pair["difference"], k, "D", mfc="w", mec="k")
        ax.axvline(0, color="0.5", lw=0.8)
        ax.set_yticks(range(len(pairs)), [f"{p['from']} → {p['to']}" for p in pairs], fontsize=8)
        ax.set(ylim=(max(len(pairs), 1) - 0.5, -0.5), xlabel="change of the share")

    def _sample_sentence(self, s: dict[str, Any]) -> str:
        """A sample's share of the chosen phase, and the patterns and grains that it rests on."""
        phase = self.phase.value
        patterns = f"{s['n_patterns']} patterns of the {self.area} in {s['n_grains']} grains"
        if s[f"{phase}_fraction"] is None:
            parts = [f"no {phase} fraction", patterns]
        else:
            verdict = "detected" if s[f"{phase}_detected"] else "not detected"
            parts = [f"{phase} {s[f'{phase}_fraction']:.3f}, {verdict}", patterns, f"raw share {s[f'{phase}_fraction_raw']:.3f}"]
            parts += [f"detection limit {s[f'{phase}_detection_limit']:.3f}"]
        return f"{s['sample']} ({s['label']}): {'; '.join(parts)}."

    def pick(self, k: int) -> None:
        """Choose a sample by its place."""
        self.picked = int(np.clip(k, 0, len(self.samples) - 1))
        self.show()

    def on_click(self, event: Any) -> None:
        """A click chooses the nearest sample."""
        if event.inaxes is self.axes["fractions"]:
            self.pick(round(event.xdata))

    def on_key(self, event: Any) -> None:
        """Arrow keys choose the next sample; space leaves it out or takes it in."""
        step = {"left": -1, "right": 1}.get(event.key)
        if step:
            self.pick(self.picked + step)
        elif event.key == " ":
            name, compared = self.samples[self.picked]["sample"], set(self.compared.value)
            self.compared.value = [s["sample"] for s in self.samples if s["sample"] in compared ^ {name}]
