"""Precession patterns by another program's forward model, abTEM's Bloch waves, through the chain of notebooks 05 and 06.

The atoms are those of the CIFs, mixed sites by their occupancies, 4 % of lithium and nickel exchanged in the layered phase, 0.08 Å of
thermal displacement. Patterns are many-beam dynamical ones at 200 keV: 12 tilts of the beam on a cone of 0.5°, averaged and descanned,
at nine thicknesses from 20 to 60 nm; spots of 1.3 px on a diffuse background, 4,000 electrons. A grain is layered, spinel and rocksalt
on one oxygen lattice, [001]hex ∥ [111]cubic and [100]hex ∥ ⟨1-10⟩cubic, beside an LLZO of its own: on a zone axis, 1.5 to 5° off one, or
anyhow. The chain is given a scale that is 0.6 % off.

abTEM (Madsen & Susi, Open Research Europe 1 (2021) 24) is optional: `abtem` is None where it is not installed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import ase
import numpy as np
import pandas as pd
from scipy.spatial.transform import Rotation
from threadpoolctl import threadpool_limits

import emphase
import helpers

from . import ped
from .tables import records

try:
    import abtem
except ImportError:
    abtem = None

THICKNESSES_NM = np.linspace(20, 60, 9)  # of the nine patterns of a crystal, 3 x 3
ZONES = ((1, 0, 0), (0, 0, 1), (2, 1, 0), (8, 4, 1))  # of the first grains, layered; the others lie anyhow
LLZO_ZONES = ((1, 0, 0), (1, 1, 1), (1, 1, 0), (3, 1, 1))
SCALE_OFF = 0.006  # how far the true scale lies from the given one
CAMERA_PX = 144
PRECESSION_DEG, TILTS = 0.5, 12
EXCHANGED = 0.04  # share of lithium and nickel of the layered phase on each other's sites
THERMAL_A = 0.08  # standard deviation of the displacement of atoms
BEAMS = ((2.5, 0.06), (2.5, 0.06), (2.5, 0.06), (1.5, 0.03))  # up to this g and excitation error, 1/Å; fewer in the large cell
ELECTRONS, DIFFUSE, SPOT_SIGMA_PX = 4000.0, 0.35, 1.3  # of a pattern, the share of them in the diffuse background, size of a spot
#: Rows: directions of the cubic crystals along e1 ∥ [100]hex, e2, e3 ∥ [001]hex.
CUBIC_ON_HEXAGONAL = np.array([[1, -1, 0], [1, 1, -2], [1, 1, 1]]) / np.sqrt([[2], [6], [3]])


@dataclass(frozen=True)
class DynamicalScan:
    """Patterns (3 n, 12, 144, 144) of n grains in blocks of 3 × 3, a line of blocks a grain, a column a phase; and their truth.

    ``phase`` (3 n, 12) are numbers of `ped.PHASES`, ``rotation`` (3 n, 12, 3, 3) goes from sample to crystal.
    """

    patterns: np.ndarray
    phase: np.ndarray
    rotation: np.ndarray


@dataclass(frozen=True)
class FoundPhases:
    """What the chain finds on a `DynamicalScan`: its calibration, its maps, and a row for every pattern.

    ``rows`` holds ``phase`` (the true one), whether it is ``right``, whether right ``alone`` (without what neighbours say), ``decided``,
    ``sure`` (orientation margin of 3 nats or more), ``off_deg``, the misorientation of the right ones, and ``turned``, whether these
    are the true ones turned by 180° about the beam.
    """

    calibration: Any
    maps: dict[str, np.ndarray]
    rows: pd.DataFrame


def exchange_cations(crystal: Any, share: float) -> Any:
    """A crystal with this share of its lithium and nickel sites exchanged."""
    elements, occupancies = np.array(crystal.elements), crystal.occupancies.copy()
    lithium, nickel = np.flatnonzero(elements == "Li"), np.flatnonzero(elements == "Ni")
    moved = np.concatenate([lithium, nickel])
    occupancies[moved] -= share
    return replace(
        crystal,
        elements=(*elements, *["Ni"] * len(lithium), *["Li"] * len(nickel)),
        positions=np.concatenate([crystal.positions, crystal.positions[moved]]),
        occupancies=np.concatenate([occupancies, np.full(len(moved), share)]),
    )


def _structure_factors(crystal: Any, max_g_invA: float) -> Any:
    """abTEM's structure factors of a crystal for beams up to ``max_g_invA``."""
    from abtem.bloch import StructureFactor

    atoms = ase.Atoms(crystal.elements, scaled_positions=crystal.positions, cell=crystal.lattice, pbc=True)
    options = {"thermal_sigma": THERMAL_A, "occupancy": crystal.occupancies, "cutoff": "hard"}
    return StructureFactor(atoms, g_max=2 * max_g_invA, **options).build(lazy=False)


def dynamical_spots(factors: Any, crystal: Any, rotation: np.ndarray, beams: tuple[float, float]) -> tuple[np.ndarray, np.ndarray]:
    """Places g (n, 2) in 1/Å and intensities (thickness, n) of the spots of a crystal: Bloch waves, the mean over the tilts, descanned.

    Parameters
    ----------
    factors, crystal
        abTEM's structure factors, and the crystal that they are of.
    rotation
        (3, 3), sample to crystal.
    beams
        Largest g and largest excitation error of the beams, 1/Å.
    """
    from abtem.bloch import BlochWaves

    max_g_invA, sg_max_invA = beams
    intensity = np.zeros((len(THICKNESSES_NM), len(factors.hkl)))
    for turn in 2 * np.pi * np.arange(TILTS) / TILTS:
        tilt = Rotation.from_rotvec(np.radians(PRECESSION_DEG) * np.array([np.cos(turn), np.sin(turn), 0])).as_matrix()
        waves = BlochWaves(factors, 200e3, sg_max_invA, g_max=max_g_invA, orientation_matrix=tilt @ rotation.T)
        intensity[:, waves.hkl_mask] += waves.calculate_diffraction_patterns(10 * THICKNESSES_NM, lazy=False).array / TILTS
    shines = intensity.max(axis=0) > 1e-6
    return (factors.hkl[shines] @ crystal.reciprocal @ rotation)[:, :2], intensity[:, shines]


def count_electrons(rng: np.random.Generator, g_invA: np.ndarray, intensity: np.ndarray, centre_px: np.ndarray) -> np.ndarray:
    """Counts of patterns (thickness, 144, 144): spots g (n, 2) of intensities (thickness, n) on a diffuse background about the beam."""
    x, y = g_invA.T / (ped.GIVEN_SCALE_INVA_PER_PX * (1 + SCALE_OFF)) + centre_px[::-1, None]
    pixels = np.arange(CAMERA_PX)
    line = lambda at: np.exp(-0.5 * ((pixels[:, None] - at) / SPOT_SIGMA_PX) ** 2) / (SPOT_SIGMA_PX * np.sqrt(2 * np.pi))
    spots = np.einsum("yn,tn,xn->tyx", line(y), intensity, line(x), optimize=True)
    radius2 = np.add.outer((pixels - centre_px[0]) ** 2, (pixels - centre_px[1]) ** 2)
    haze = (1 + radius2 / 12**2) ** -1.5
    return rng.poisson(ELECTRONS * ((1 - DIFFUSE) * spots + DIFFUSE * haze / haze.sum()))


def grain_rotations(rng: np.random.Generator, number: int, crystals: Sequence[Any]) -> list[np.ndarray]:
    """Orientations, sample to crystal, of layered, spinel and rocksalt on one oxygen lattice, and of LLZO: on, off a zone axis, or any."""
    if number < 2 * len(ZONES):
        axes = [ZONES[number // 2], LLZO_ZONES[number // 2]]
        off = 0.0 if number % 2 == 0 else np.radians(rng.uniform(1.5, 5))
        layered, llzo = (
            emphase.ped.templates.rotation_to_zone(np.array(a) @ c.lattice) for a, c in zip(axes, (crystals[0], crystals[3]), strict=True)
        )
        turns = [Rotation.from_rotvec([0, 0, a]) * Rotation.from_rotvec([off, 0, 0]) for a in rng.uniform(0, 2 * np.pi, 2)]
        layered, llzo = (r @ t.as_matrix() for r, t in zip((layered, llzo), turns, strict=True))
    else:
        layered, llzo = Rotation.random(2, rng=rng).as_matrix()
    cubic = CUBIC_ON_HEXAGONAL.T @ layered
    return [layered, cubic, cubic, llzo]


def simulate_scan(crystals: Sequence[Any], n_grains: int, seed: int, progress: Callable[..., Iterable]) -> DynamicalScan:
    """A scan of ``n_grains`` grains by Bloch waves.

    Parameters
    ----------
    crystals
        Those of `ped.PHASES`, in their order.
    n_grains, seed
        Of the scan.
    progress
        Iterates over the grains, with a label.
    """
    rng = np.random.default_rng([seed, 6000])
    real = [exchange_cations(crystals[0], EXCHANGED), *crystals[1:]]
    factors = [_structure_factors(crystal, max_g_invA) for crystal, (max_g_invA, _) in zip(real, BEAMS, strict=True)]
    shape = (3 * n_grains, 3 * len(real))
    patterns, rotations = np.zeros((*shape, CAMERA_PX, CAMERA_PX), np.uint16), np.zeros((*shape, 3, 3))
    for number in progress(range(n_grains), "grains by Bloch waves"):
        for k, rotation in enumerate(grain_rotations(rng, number, crystals)):
            with threadpool_limits(1, user_api="blas"):
                spots = dynamical_spots(factors[k], real[k], rotation, BEAMS[k])
            block = np.s_[3 * number : 3 * number + 3, 3 * k : 3 * k + 3]
            centre_px = 71.5 + np.array([1.2 * (number / n_grains - 0.5), 0.4 * (k - 1.5)])
            patterns[block] = count_electrons(rng, *spots, centre_px).reshape(3, 3, CAMERA_PX, CAMERA_PX)
            rotations[block] = rotation
    return DynamicalScan(patterns, np.repeat(np.tile([0, 1, 2, 3], (shape[0], 1)), 3, axis=1), rotations)


def turned_about_beam(found: np.ndarray, true: np.ndarray, operators: np.ndarray) -> np.ndarray:
    """Which rotations (n, 3, 3) are the true ones turned by 180° about a direction within 15° of the beam: to a zero layer, the same."""
    relative = operators[:, None] @ found @ true.swapaxes(1, 2)
    vectors = Rotation.from_matrix(relative.reshape(-1, 3, 3)).as_rotvec().reshape(*relative.shape[:2], 3)
    angle = np.maximum(np.linalg.norm(vectors, axis=2), 1e-9)
    along = np.abs(np.einsum("onc,nc->on", vectors, true[:, :, 2])) / angle
    return ((angle > np.radians(177)) & (along > np.cos(np.radians(15)))).any(axis=0)


def find_phases(scan: DynamicalScan, crystals: Sequence[Any], seed: int) -> FoundPhases:
    """What the chain makes of a scan: calibrated, mapped, and mapped again without what neighbours say."""
    calibration, banks = ped.calibrate(scan.patterns, crystals, seed)
    options: dict[str, Any] = {"seed": seed, "families": helpers.FAMILIES}
    maps, _, _ = emphase.ped.map_scan(scan.patterns, calibration, banks, **options)
    alone, _, _ = emphase.ped.map_scan(scan.patterns, calibration, banks, neighbours=False, **options)
    return FoundPhases(calibration, maps, _rows_of_patterns(scan, maps, alone["phase_id"], banks))


def _rows_of_patterns(scan: DynamicalScan, maps: dict[str, np.ndarray], phase_alone: np.ndarray, banks: Sequence[Any]) -> pd.DataFrame:
    """The rows of `FoundPhases`."""
    rows = pd.DataFrame({"phase": np.array(ped.PHASES)[scan.phase.ravel()], "right": (maps["phase_id"] == scan.phase).ravel()})
    rows["alone"] = (phase_alone == scan.phase).ravel()
    rows["decided"] = maps["decided"].ravel()
    rows["sure"] = (maps["orientation_margin"] >= 3).ravel()
    rows["off_deg"], rows["turned"] = np.nan, False
    found, true = maps["rotation"].reshape(-1, 3, 3), scan.rotation.reshape(-1, 3, 3)
    for phase, bank in zip(ped.PHASES, banks, strict=True):
        here = np.flatnonzero(rows["right"] & (rows["phase"] == phase))
        off = emphase.ped.grains.misorientations_deg(found[here], true[here], bank.operators)
        rows.loc[here, "off_deg"] = off
        far = here[off > 2]
        if len(far):
            rows.loc[far, "turned"] = turned_about_beam(found[far], true[far], bank.operators)
    return rows


def _within_2_deg(off_deg: pd.Series) -> float:
    return (off_deg.dropna() <= 2).mean()


def by_phase(rows: pd.DataFrame) -> pd.DataFrame:
    """Shares of the patterns of every phase, and the median misorientation, from the rows of `FoundPhases`."""
    return rows.groupby("phase", sort=False).agg(
        patterns=("right", "size"),
        phases_right=("right", "mean"),
        phases_right_alone=("alone", "mean"),
        decided=("decided", "mean"),
        orientation_off_deg=("off_deg", "median"),
        orientation_within_2_deg=("off_deg", _within_2_deg),
        orientation_turned_180_deg=("turned", "mean"),
    )


def summary(found: FoundPhases) -> dict[str, Any]:
    """What the chain makes of all patterns, as 09_validation.json holds it."""
    rows = found.rows
    true_scale = ped.GIVEN_SCALE_INVA_PER_PX * (1 + SCALE_OFF)
    return {
        "program": f"abTEM {abtem.__version__}",
        "patterns": len(rows),
        "phases_right": float(rows["right"].mean()),
        "phases_right_alone": float(rows["alone"].mean()),
        "decided": float(rows["decided"].mean()),
        "right_where_decided": float(rows["right"][rows["decided"]].mean()),
        "orientation_off_deg": float(rows["off_deg"].median()),
        "orientation_within_2_deg": float(_within_2_deg(rows["off_deg"])),
        "orientation_within_2_deg_where_margin_3": float(_within_2_deg(rows["off_deg"][rows["sure"]])),
        "orientation_turned_180_deg": float(rows["turned"].mean()),
        "scale_found_off_percent": 100 * (found.calibration.scale_invA_per_px / true_scale - 1),
        "by_phase": records(by_phase(rows).reset_index()),
    }
