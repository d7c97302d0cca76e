"""Whether the 95 % intervals of the phase fractions cover the truth, on scans with everything varied at once.

Each scan of 40 × 40 patterns goes through notebooks 05, 06 and 07: calibration, maps, spike-ins of known mixtures, draws over what the
maps leave open, the fraction corrected for misclassification. The truth is the share of the very area that was scanned. An interval of
95 % should cover it in 95 of 100 scans: far fewer are false, all of them too wide to be of use.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from scipy.stats import binomtest

import emphase
import helpers

from . import ped

SIDE = 40  # patterns along each side
WANTED = {"rocksalt": 2, "spinel": 1}  # phases whose fraction is measured, with their numbers


class FoundFractions(NamedTuple):
    """Fractions of a scan by phase, the spike-ins that correct them, and how many patterns of the cathode there are."""

    fraction: dict[str, Any]
    spike_ins: Any
    n_patterns_ncm: int


def draw_case(rng: np.random.Generator) -> dict[str, float]:
    """The conditions of a scan at random: fractions, electrons, antisite disorder, overlap, bending, grains, the scale's error."""
    return {
        "rocksalt_fraction": float(rng.choice([0, 0.02, 0.05, 0.1, 0.2, 0.3])),
        "spinel_fraction": float(rng.choice([0, 0.03, 0.06, 0.1])),
        "electrons": float(np.exp(rng.uniform(np.log(1500), np.log(12000)))),
        "antisite": float(rng.uniform(0.02, 0.08)),
        "overlap": float(rng.choice([0.3, 0.6, 0.9])),
        "bend_deg": float(rng.uniform(0.1, 0.5)),
        "n_grains": int(rng.integers(5, 15)),
        "scale_off": rng.uniform(-0.012, 0.012),
    }


def find_fractions(patterns: np.ndarray, crystals: Sequence[Any], seed: int) -> FoundFractions:
    """Rocksalt and spinel fractions of a scan as notebook 07 gives them."""
    calibration, banks = ped.calibrate(patterns, crystals, seed)
    maps, _, _ = emphase.ped.map_scan(patterns, calibration, banks, seed=seed, families=helpers.FAMILIES)
    trial = emphase.fractions.run_spike_ins(patterns, calibration, banks, maps, seed=seed, families=helpers.FAMILIES)
    maps, ncm = emphase.fractions.with_hidden_material(maps), list(ped.NCM)
    units = emphase.fractions.resampling_units(maps, np.isin(maps["phase_id"], ncm))
    n_units = int(units.max()) + 1
    group = np.where(maps["phase_id"] == 3, n_units, units)
    counts = emphase.fractions.drawn_counts(maps, group, emphase.fractions.spread_of(trial), seed=seed)
    corrected = {
        phase: emphase.fractions.corrected_fraction(maps, trial, counts, k, ncm, n_units=n_units, seed=seed) for phase, k in WANTED.items()
    }
    return FoundFractions(corrected, trial, int(np.isin(maps["phase_id"], ncm).sum()))


def measure_fractions(scans: int, crystals: Sequence[Any], seed: int, progress: Callable[..., Iterable]) -> list[dict[str, Any]]:
    """A row for every phase of every scan: its conditions, the true fraction and what is found.

    Parameters
    ----------
    scans
        How many.
    crystals
        Those of `ped.PHASES`, in their order.
    seed
        Of the scans and of what is drawn in the chain.
    progress
        Iterates over the scans, with a label.
    """
    rows = []
    for number in progress(range(scans), "scans for coverage"):
        rng = np.random.default_rng([seed, 1000 + number])
        case = draw_case(rng)
        patterns, truth = ped.simulate_scan(rng, crystals, SIDE, case)
        found = find_fractions(patterns, crystals, seed)
        for phase, f in found.fraction.items():
            row = {"scan": number, "phase": phase, "true": truth[f"{phase}_fraction"]}
            row |= {"raw": f.raw, "fraction": f.value, "low": f.low, "high": f.high, "detected": f.detected, "limit": f.detection_limit}
            row |= {
                "n_patterns_ncm": found.n_patterns_ncm,
                "mixtures_wrong": float((found.spike_ins.found != found.spike_ins.lead).mean()),
            }
            rows.append(case | row)
    return rows


def with_errors(rows: list[dict[str, Any]]) -> pd.DataFrame:
    """The rows with their errors, whether the interval covers the truth, and its width as it were for 1,000 patterns of the cathode."""
    table = pd.DataFrame(rows)
    table["error"] = table["fraction"] - table["true"]
    table["raw error"] = table["raw"] - table["true"]
    table["covered"] = (table["low"] - 1e-9 <= table["true"]) & (table["true"] <= table["high"] + 1e-9)
    table["width at 1,000"] = (table["high"] - table["low"]) * np.sqrt(table["n_patterns_ncm"] / 1000)
    return table


def coverage(table: pd.DataFrame) -> pd.DataFrame:
    """A row for every phase, from `with_errors`: coverage with its exact (Clopper-Pearson) interval, errors, widths, detections."""
    return pd.DataFrame([_coverage_of(phase, rows) for phase, rows in table.groupby("phase", sort=False)])


def _coverage_of(phase: str, rows: pd.DataFrame) -> dict[str, Any]:
    """The row of a phase."""
    absent, error, width = rows["true"] == 0, rows["error"], rows["width at 1,000"]
    held = int(rows["covered"].sum())
    exact = binomtest(held, len(rows)).proportion_ci(method="exact")
    return {
        "phase": phase,
        "scans": len(rows),
        "covered": held / len(rows),
        "covered, 95 % interval": f"{exact.low:.2f} to {exact.high:.2f}",
        "error, rms": np.sqrt((error**2).mean()),
        "error, median": error.abs().median(),
        "within 0.005": (error.abs() <= 0.005).mean(),
        "within 0.01": (error.abs() <= 0.01).mean(),
        "bias": error.mean(),
        "raw error, rms": np.sqrt((rows["raw error"] ** 2).mean()),
        "width at 1,000, mean": width.mean(),
        "width at 1,000, most": width.max(),
        "absent and not detected": f"{int((absent & ~rows['detected']).sum())} of {int(absent.sum())}",
        "present and detected": f"{int((~absent & rows['detected']).sum())} of {int((~absent).sum())}",
    }
