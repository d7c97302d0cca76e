"""Phases and orientations of simulated PED scans through the chain of notebooks 05 and 06, against their truth.

Scans are simulated by two-beam dynamical theory, averaged over precession and thickness (`emphase.simulate.ped_scan`), under held-out
conditions: few electrons, a scale that is given wrongly by up to 1.2 %, antisite disorder, overlap. The chain knows the patterns, the
given scale and the crystals; it calibrates, maps and decides. A phase is right where it is that of the crystal which the truth puts at
the place of a pattern, an orientation is off by the misorientation up to the crystal's symmetry.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd

import emphase
import helpers
from emphase.ped import Optics

PHASES = ("layered", "spinel", "rocksalt", "llzo")
NCM = (0, 1, 2)  # numbers of the phases of the cathode
GIVEN_SCALE_INVA_PER_PX = 0.02178  # what the chain is given; the truth is off by `scale_off`
OPTICS = Optics(GIVEN_SCALE_INVA_PER_PX, beam_energy_keV=200.0, precession_deg=0.5, max_g_invA=1.5)
HARD = {"antisite": 0.08, "overlap": 0.6}  # of all the scans below: metal on lithium sites, share of a neighbour in a pattern

#: Conditions of the scans: electrons of a pattern, the direct beam included; how far the true scale lies from the given one.
CASES = (
    {"electrons": 1500, "scale_off": 0.012, "rocksalt_fraction": 0.10, "spinel_fraction": 0.05},
    {"electrons": 2500, "scale_off": -0.012, "rocksalt_fraction": 0.25, "spinel_fraction": 0.08},
    {"electrons": 4000, "scale_off": 0.006, "rocksalt_fraction": 0.00, "spinel_fraction": 0.00},
    {"electrons": 16000, "scale_off": -0.004, "rocksalt_fraction": 0.15, "spinel_fraction": 0.05},
)
#: Further ones of a full validation.
MORE_CASES = (
    {"electrons": 1000, "scale_off": 0.003, "rocksalt_fraction": 0.20, "spinel_fraction": 0.05},
    {"electrons": 2000, "scale_off": 0.010, "rocksalt_fraction": 0.05, "spinel_fraction": 0.02},
    {"electrons": 3000, "scale_off": -0.008, "rocksalt_fraction": 0.40, "spinel_fraction": 0.10},
    {"electrons": 4000, "scale_off": 0.012, "rocksalt_fraction": 0.15, "spinel_fraction": 0.05},
    {"electrons": 8000, "scale_off": 0.000, "rocksalt_fraction": 0.15, "spinel_fraction": 0.05},
    {"electrons": 8000, "scale_off": -0.010, "rocksalt_fraction": 0.03, "spinel_fraction": 0.02},
)


@dataclass(frozen=True)
class MeasuredScan:
    """A simulated scan, its truth, and what the chain finds.

    ``truth`` is that of `emphase.simulate.ped_scan`; ``maps`` those of `emphase.ped.map_scan`, with ``clear_spots`` (ny, nx), the spots
    of more than 8 nats; ``seconds`` the time of the mapping.
    """

    case: Mapping[str, float]
    patterns: np.ndarray
    truth: dict[str, Any]
    calibration: Any
    banks: list[Any]
    maps: dict[str, np.ndarray]
    seconds: float

    @property
    def true_scale_invA_per_px(self) -> float:
        """The scale that the scan was simulated with."""
        return GIVEN_SCALE_INVA_PER_PX * (1 + self.case["scale_off"])


def simulate_scan(rng: np.random.Generator, crystals: Sequence[Any], side: int, case: Mapping[str, float]) -> tuple[np.ndarray, dict]:
    """Patterns (side, side, 144, 144) and truth of a scan under the conditions of a ``case``; `emphase.simulate.ped_scan`.

    Parameters
    ----------
    rng, crystals, side
        Of the scan; the crystals of `PHASES`; patterns along each side.
    case
        ``scale_off``, the share by which the true scale lies from the given one, ``electrons``, and fields of `emphase.simulate.PedScene`.
    """
    scene = emphase.simulate.PedScene(**{k: v for k, v in case.items() if k not in ("scale_off", "electrons")})
    scale = GIVEN_SCALE_INVA_PER_PX * (1 + case["scale_off"])
    return emphase.simulate.ped_scan(rng, list(crystals), (side, side), scene, electrons=case["electrons"], scale_invA_per_px=scale)


def calibrate(patterns: np.ndarray, crystals: Sequence[Any], seed: int) -> tuple[Any, list[Any]]:
    """Calibration and template banks of a scan, from its patterns, the given scale and the crystals alone: what notebook 05 does."""
    scan = emphase.ped.calibrate(patterns, crystals, OPTICS, seed=seed, cache=helpers.BANK_CACHE)
    return scan.calibration, scan.banks


def template_bank(crystal: Any, optics: Optics = OPTICS, step_deg: float = 2.0) -> Any:
    """Template bank of a crystal for some optics, zone axes ``step_deg`` apart."""
    options: dict[str, Any] = optics._asdict()
    del options["scale_invA_per_px"]
    return emphase.ped.template_bank(crystal, step_deg=step_deg, cache=helpers.BANK_CACHE, **options)


def map_phases(patterns: np.ndarray, calibration: Any, banks: list[Any], seed: int) -> tuple[dict[str, np.ndarray], float]:
    """Maps of a scan as `MeasuredScan` holds them, and the seconds that the mapping takes: what notebook 06 does."""
    started = time.monotonic()
    maps, _, spots = emphase.ped.map_scan(patterns, calibration, banks, seed=seed, families=helpers.FAMILIES)
    seconds = time.monotonic() - started
    return maps | {"clear_spots": (spots.table[:, :, 4] > 8).sum(axis=1).reshape(maps["phase_id"].shape)}, seconds


def measure_scans(crystals: Sequence[Any], side: int, seed: int, full: bool, progress: Callable[..., Iterable]) -> list[MeasuredScan]:
    """Simulate, calibrate and map a scan for every case, the kernels compiled before.

    Parameters
    ----------
    crystals
        Those of `PHASES`, in their order.
    side
        Patterns along each side of a scan.
    seed
        Of the scans and of what is drawn in the chain.
    full
        With `MORE_CASES`.
    progress
        Iterates over the cases, with a label.
    """
    easy = {"electrons": 4000, "scale_off": 0.0}
    patterns, _ = simulate_scan(np.random.default_rng([seed, 99]), crystals, side, easy | HARD)
    calibration, banks = calibrate(patterns, crystals, seed)
    map_phases(patterns[:4, :4], replace(calibration, centre_px=calibration.centre_px[:4, :4]), banks, seed)
    scans = []
    for number, case in enumerate(progress(CASES + MORE_CASES * full, "scans")):
        rng = np.random.default_rng([seed, number])
        patterns, truth = simulate_scan(rng, crystals, side, case | HARD)
        calibration, banks = calibrate(patterns, crystals, seed)
        maps, seconds = map_phases(patterns, calibration, banks, seed)
        scans.append(MeasuredScan(case, patterns, truth, calibration, banks, maps, seconds))
    return scans


def orientation_errors_deg(scan: MeasuredScan) -> np.ndarray:
    """Misorientations (n,) in degrees from the truth, of the patterns whose phase is right."""
    phase, angles = scan.truth["phase"], []
    right = (phase >= 0) & (scan.maps["phase_id"] == phase)
    for k, bank in enumerate(scan.banks):
        if (here := right & (phase == k)).any():
            found, true = scan.maps["rotation"][here], scan.truth["rotation"][here]
            angles.append(emphase.ped.grains.misorientations_deg(found, true, bank.operators))
    return np.concatenate(angles)


def accuracy(scan: MeasuredScan) -> dict[str, float]:
    """The row of a scan in the table: what of it is right, and how fast it was mapped. Shares are of the crystalline patterns."""
    phase, found, decided = scan.truth["phase"], scan.maps["phase_id"], scan.maps["decided"]
    crystal, right = phase >= 0, found == phase
    ncm_true, ncm_found = np.isin(phase, NCM), np.isin(found, NCM)
    off = scan.case["scale_off"]
    return {
        "electrons": scan.case["electrons"],
        "scale given off (%)": -100 * off / (1 + off),
        "scale found off (%)": 100 * (scan.calibration.scale_invA_per_px / scan.true_scale_invA_per_px - 1),
        "clear spots, median": np.median(scan.maps["clear_spots"][crystal & (phase != 3)]),
        "phases right": right[crystal].mean(),
        "not indexed": (found[crystal] == -1).mean(),
        "right where decided": right[crystal & decided].mean(),
        "decided": decided[crystal].mean(),
        "pores left out": (found[~crystal] == -1).mean(),
        "orientation off, median (deg)": np.median(orientation_errors_deg(scan)),
        "rocksalt true": (phase[ncm_true] == 2).mean(),
        "rocksalt found": (found[ncm_found] == 2).mean(),
        "spinel true": (phase[ncm_true] == 1).mean(),
        "spinel found": (found[ncm_found] == 1).mean(),
        "patterns per s": phase.size / scan.seconds,
    }


def accuracy_table(scans: Iterable[MeasuredScan]) -> pd.DataFrame:
    """A row of `accuracy` for every scan."""
    return pd.DataFrame([accuracy(scan) for scan in scans])


def confusion(scans: Iterable[MeasuredScan]) -> np.ndarray:
    """Number of patterns (5, 5) of all scans by true and found phase: those of `PHASES`, then pores and what was not indexed."""
    order = (*range(len(PHASES)), -1)
    pairs = [(scan.truth["phase"], scan.maps["phase_id"]) for scan in scans]
    return np.sum([[[((true == a) & (found == b)).sum() for b in order] for a in order] for true, found in pairs], axis=0)


def share_right(counts: np.ndarray) -> float:
    """Share of the crystalline patterns with the right phase, from a `confusion`."""
    n = len(PHASES)
    return float(np.trace(counts[:n, :n]) / counts[:n].sum())
