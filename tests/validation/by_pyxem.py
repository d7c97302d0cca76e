"""Stock template matching, pyxem's `get_orientation`, on every third pattern along both axes of the same scans.

It gets what it needs at its best: the refined scale, every pattern moved to the centre of its direct beam, zone axes 2° apart, no
prefilter (``frac_keep=1``; the default drops whole phases), templates normalised. Contrast is set as its documentation advises, by a
gamma and an offset; of the `SETTINGS` each scan gets the one that is right most often by its truth, which no user could know.

The phase comes from the index of the template, not by `orientation2phase`, which gives the first template of a phase to the phase
before. pyxem's sample is turned by 180° about y (`SAMPLE_FRAME`). For cells that are not orthogonal its templates and orix's sampling
have different frames (its issue 947), so these get templates of a sector twice as large, and the better of two frames
(`CRYSTAL_FRAMES`).
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

import emphase

from .ped import NCM, OPTICS, MeasuredScan

SETTINGS = ((1.0, 0.0), (0.5, 0.05), (0.3, 0.2), (0.2, 0.3))  # gamma, and offset as a share of the pattern's maximum
SAMPLE_FRAME = np.diag([-1, 1, -1])  # of pyxem's sample, seen from the workbook's
CRYSTAL_FRAMES = (np.eye(3), np.diag([-1, -1, 1]))  # of cells that are not orthogonal; of the others one is as good as the other
EVERY_THIRD = (slice(None, None, 3), slice(None, None, 3))


class Library(NamedTuple):
    """Templates of all phases, and the number of the phase of each."""

    templates: Any
    phase: np.ndarray


class Score(NamedTuple):
    """Share of the crystalline patterns with the right phase, rocksalt share found, share of the right ones oriented within 3°."""

    right: float
    rocksalt: float
    oriented: float


def template_library(crystals: Sequence[Any]) -> Library:
    """diffsims' templates of crystals, zone axes 2° apart."""
    import hyperspy.api as hs
    from diffsims.generators.simulation_generator import SimulationGenerator
    from orix.quaternion.symmetry import S6
    from orix.sampling import get_sample_reduced_fundamental

    hs.set_log_level("ERROR")  # it warns of the two units of polar axes at every call
    warnings.filterwarnings("ignore", message=r"`_get_block_pattern` has moved")  # pyxem calls what hyperspy has moved
    hs.preferences.General.show_progressbar = False
    phases = [crystal.orix_phase() for crystal in crystals]
    groups = [S6 if phase.point_group.name == "-3m" else phase.point_group for phase in phases]
    rotations = [get_sample_reduced_fundamental(2.0, point_group=group) for group in groups]
    generator = SimulationGenerator(OPTICS.beam_energy_keV, precession_angle=OPTICS.precession_deg)
    library = generator.calculate_diffraction2d(phases, rotations, reciprocal_radius=1.5, with_direct_beam=False, max_excitation_error=0.03)
    return Library(library, np.repeat(np.arange(len(phases)), [r.size for r in rotations]))


def polar_patterns(patterns: np.ndarray, calibration: Any) -> Any:
    """Patterns (ny, nx, ky, kx), each about its own direct beam, in polar coordinates: a pyxem signal."""
    from pyxem.signals import ElectronDiffraction2D
    from scipy.ndimage import shift as moved

    middle = (np.array(patterns.shape[2:]) - 1) / 2
    centred = np.empty(patterns.shape, np.float32)
    for here in np.ndindex(patterns.shape[:2]):
        centred[here] = moved(patterns[here].astype(np.float32), middle - calibration.centre_px[here], order=1)
    signal = ElectronDiffraction2D(centred)
    signal.calibration(scale=calibration.scale_invA_per_px, center=None, units="k_A^-1")
    return signal.get_azimuthal_integral2d(npt=112, radial_range=(0.0, 1.5), mean=True, show_progressbar=False)


def match(polar: Any, library: Library, setting: tuple[float, float]) -> tuple[np.ndarray, np.ndarray]:
    """Number of the best template of every pattern (ny, nx), and the rotations (ny, nx, 3, 3), sample to crystal, at one of `SETTINGS`."""
    gamma, offset = setting
    data = polar.data**gamma
    data -= offset * data.max(axis=(-1, -2), keepdims=True)
    signal = polar._deepcopy_with_new_data(data)
    matched = signal.get_orientation(library.templates, n_best=1, frac_keep=1.0, show_progressbar=False)
    rotation = matched.to_rotation().to_matrix()
    return matched.data[..., 0, 0].astype(int), rotation.reshape(*data.shape[:2], 3, 3) @ SAMPLE_FRAME


def compare_with_truth(phase_found: np.ndarray, rotation_found: np.ndarray, scan: MeasuredScan) -> Score:
    """Score of phases and rotations that were found on `EVERY_THIRD` pattern of a scan, in the better of the `CRYSTAL_FRAMES`."""
    phase, rotation_true = scan.truth["phase"][EVERY_THIRD], scan.truth["rotation"][EVERY_THIRD]
    crystal = phase >= 0
    right = (phase_found == phase) & crystal
    ncm = np.isin(phase_found, NCM) & crystal
    angles = []
    for k, bank in enumerate(scan.banks):
        if (here := right & (phase == k)).any():
            off = [
                emphase.ped.grains.misorientations_deg(frame @ rotation_found[here], rotation_true[here], bank.operators)
                for frame in CRYSTAL_FRAMES
            ]
            angles.append(min(off, key=np.median))
    rocksalt = float((phase_found[ncm] == 2).mean()) if ncm.any() else 0.0
    return Score(right[crystal].mean(), rocksalt, float((np.concatenate(angles) < 3).mean()))


def _best_setting(scan: MeasuredScan, library: Library) -> tuple[Score, float]:
    """The score at the setting that suits a scan best, and the patterns matched per second, the polar transform included."""
    started = time.monotonic()
    calibration = replace(scan.calibration, centre_px=scan.calibration.centre_px[EVERY_THIRD])
    polar = polar_patterns(scan.patterns[EVERY_THIRD], calibration)
    polar_seconds = time.monotonic() - started
    of_setting = []
    for setting in SETTINGS:
        started = time.monotonic()
        template, rotation = match(polar, library, setting)
        seconds = polar_seconds + time.monotonic() - started
        of_setting.append((compare_with_truth(library.phase[template], rotation, scan), template.size / seconds))
    return max(of_setting)


def compare_scans(scans: Sequence[MeasuredScan], crystals: Sequence[Any], progress: Callable[..., Iterable]) -> pd.DataFrame:
    """The workbook's and pyxem's `Score` of every scan, on the same patterns.

    Parameters
    ----------
    scans, crystals
        Measured scans and the crystals of their phases.
    progress
        Iterates over the scans, with a label.

    Returns
    -------
    DataFrame
        ``electrons``, ``rocksalt_true``, the fields of `Score`, the same with ``_pyxem``, and ``patterns_per_s_pyxem``.
    """
    library, rows = template_library(crystals), []
    for scan in progress(scans, "scans beside pyxem"):
        best, patterns_per_s = _best_setting(scan, library)
        ours = compare_with_truth(scan.maps["phase_id"][EVERY_THIRD], scan.maps["rotation"][EVERY_THIRD], scan)
        phase = scan.truth["phase"][EVERY_THIRD]
        row = {"electrons": scan.case["electrons"], "rocksalt_true": float((phase[np.isin(phase, NCM)] == 2).mean())}
        peer = {f"{name}_pyxem": value for name, value in best._asdict().items()}
        rows.append(row | ours._asdict() | peer | {"patterns_per_s_pyxem": patterns_per_s})
    return pd.DataFrame(rows)
