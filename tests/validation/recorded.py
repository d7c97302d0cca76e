"""What recordings of others serve for: patterns of a steel whose phase is known, and a cryo-HAADF image with its trajectory.

The recordings lie outside the project (CONTRIBUTING names them); where their folder is absent, what is measured on them is left out.
``ped_steel`` holds four precession patterns of an austenitic steel along ⟨110⟩ (TVIPS camera) and the CIFs of austenite and of G-phase,
which has 30 times more reflections and must not win by them. ``cryo_haadf`` holds an image and the shifts, frame by frame, that the
same microscope recorded.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

import emphase

from . import by_pyxem
from .ped import OPTICS, template_bank

_FIELD_PX = 384  # side of a frame cut from the recorded image
_ROOM_PX = 40  # between the outermost frame and the image's edge


def austenite_of_steel(folder: Path) -> dict[str, int]:
    """Number of the steel's patterns that the workbook and pyxem call austenite.

    Parameters
    ----------
    folder
        ``ped_steel``, with ``subset_data.hspy`` and the CIFs of both phases.

    Returns
    -------
    dict
        ``workbook``; ``pyxem``, the best of its settings; ``patterns``, how many there are.
    """
    patterns = np.asarray(emphase.frames.load_recording(folder / "subset_data.hspy", navigation_dimension=2).data)
    crystals = [emphase.crystals.read_crystal(folder / f"{name}.cif", name) for name in ("austeniteLP", "g-phaseLP")]
    calibration = _calibration_of_steel(patterns)
    optics = OPTICS._replace(excitation_width_invA=0.004, max_g_invA=1.4)
    banks = [template_bank(crystal, optics) for crystal in crystals]
    ours = emphase.ped.map_scan(patterns, calibration, banks)[0]["phase_id"]
    library = by_pyxem.template_library(crystals)
    polar = by_pyxem.polar_patterns(patterns, calibration)
    peers = [library.phase[by_pyxem.match(polar, library, setting)[0]] for setting in by_pyxem.SETTINGS]
    return {"workbook": int((ours == 0).sum()), "pyxem": max(int((found == 0).sum()) for found in peers), "patterns": ours.size}


class Particle(NamedTuple):
    """A recorded cathode particle, mapped from the list of its spots.

    Attributes
    ----------
    phase_id, decided
        (ny, nx), -1 not indexed.
    phases
        Names of the candidates.
    examples
        For a pattern of each of the first two phases, the one with the largest margin: its image, and the places (y, x) that its phase and
        the other one predict.
    summary
        Numbers for the page.
    """

    phase_id: np.ndarray
    decided: np.ndarray
    phases: list[str]
    examples: list[tuple[np.ndarray, np.ndarray, np.ndarray]]
    summary: dict[str, Any]


def cathode_particle(folder: Path) -> Particle:
    """The phases of a recorded layered-oxide particle, from its list of spots, through what 05 and 06 do.

    Parameters
    ----------
    folder
        ``cathode_bragg``, with ``braggdisks_cali.h5`` and the CIFs. It names no voltage, step or precession: 300 keV and none are taken.
    """
    crystals = [emphase.crystals.read_crystal(folder / f"{name}.cif") for name in ("LCO", "LiMn2O4", "Li2MnO3")]
    frames = emphase.frames.RecordedFrames(folder / "braggdisks_cali.h5", navigation_dimension=2)
    given = emphase.frames.axis_scale(frames.signal, "1/angstrom")
    optics = emphase.ped.Optics(given, 300.0, 0.0, 0.004, 1.6)
    scan = emphase.ped.calibrate(frames, crystals, optics)
    family = [tuple(crystal.name for crystal in crystals)]
    maps, found, spots = emphase.ped.map_scan(frames, scan.calibration, scan.banks, families=family)
    missing = emphase.ped.explained.unexplained(spots, scan.calibration, scan.banks, found, maps)
    phase_id, examples = maps["phase_id"], []
    for k in (0, 1):
        y, x = np.unravel_index(np.argmax(np.where(phase_id == k, maps["phase_margin"], -1)), phase_id.shape)
        beam = scan.calibration.centre_px[y, x]
        predicted = [emphase.ped.predicted_spots(scan.banks[j], found.rotation[j, y, x], beam, scan.calibration)[0] for j in (k, 1 - k)]
        examples.append((frames[int(y), int(x)], *predicted))
    indexed = phase_id >= 0
    shares = {crystal.name: float((phase_id[indexed] == k).mean()) for k, crystal in enumerate(crystals)}
    summary = {"patterns": phase_id.size, "indexed": float(indexed.mean()), "share_of_indexed": shares} | {
        "decided": float(maps["decided"][indexed].mean()),
        "scale_invA_per_px": scan.calibration.scale_invA_per_px,
        "scale_against_given": scan.refined.scale_invA_per_px / given - 1,
        "trusted": scan.trusted,
        "unexplained_spacings_A": [ring.spacing_A for ring in missing.rings],
    }
    return Particle(phase_id, maps["decided"], list(shares), examples, summary)


def _calibration_of_steel(patterns: np.ndarray) -> Any:
    """The calibration of the steel's patterns: its stated scale, the rest from the patterns."""
    mean, variance, _ = emphase.ped.scan.scan_statistics(patterns)
    mask = emphase.ped.scan.hot_and_dead_pixels(mean, variance, 4, 20)
    centre_px, _ = emphase.ped.scan.direct_beam_positions(patterns, mask)
    gain, offset, _ = emphase.ped.noise.detector_noise(patterns.reshape(-1, *patterns.shape[2:]), mask)
    return emphase.ped.Calibration(0.01261, np.eye(2), centre_px, mask, 1.7, gain, offset, place_strain=0.02)


def stack_along_trajectory(folder: Path, rng: np.random.Generator, counts_per_px: float) -> tuple[np.ndarray, dict[str, Any]]:
    """A stack of the recorded cryo-HAADF image along its recorded trajectory, with Poisson noise.

    The image is the scene, so the Cramér-Rao floor is exact.

    Parameters
    ----------
    folder
        ``cryo_haadf``, with the image (.tif) and ``rigidregistration_record.json``.
    rng, counts_per_px
        Of the noise; mean counts of a pixel in one frame.

    Returns
    -------
    frames
        uint16 (n, 384, 384).
    truth
        ``shift_px`` (n, 2) whole pixels, ``blank`` (none) and ``crlb_px``, as `emphase.simulate.drifting_stack` has them.
    """
    record = json.loads((folder / "rigidregistration_record.json").read_text(encoding="utf-8"))
    path_px = np.round(np.stack([np.ravel(record["shifts_y"]), np.ravel(record["shifts_x"])], axis=-1)).astype(int)
    path_px -= path_px[0]
    image = np.asarray(emphase.frames.load_recording(next(folder.glob("*.tif"))).data, dtype=float)
    image = counts_per_px * np.maximum(image, 0.05 * image.mean()) / image.mean()
    rates = [image[y : y + _FIELD_PX, x : x + _FIELD_PX] for y, x in path_px.max(axis=0) + _ROOM_PX - path_px]
    floor_px = np.sqrt(np.mean([np.trace(np.linalg.inv(emphase.drift.poisson_shift_information(rate))) / 2 for rate in rates]))
    return rng.poisson(rates).astype(np.uint16), {"shift_px": path_px, "blank": [], "crlb_px": floor_px}
