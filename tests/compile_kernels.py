"""Compile the kernels once, before several processes of the suite ask for them: the methods on recordings of a few pixels.

Tests that need them wait for the lock that this holds (`conftest.COMPILING`).
"""

import fcntl
import warnings

import numpy as np
import study
from conftest import COMPILING

import emphase
import helpers


def match(rng: np.random.Generator, crystals: list) -> None:
    """Match a scan and its spike-ins."""
    patterns, truth = emphase.simulate.ped_scan(rng, crystals, (5, 5))
    mean, variance, _ = emphase.ped.scan.scan_statistics(patterns)
    mask = emphase.ped.scan.hot_and_dead_pixels(mean, variance, 25, int(patterns.max()))
    emphase.ped.scan.direct_beam_positions(patterns, mask)
    calibration = emphase.ped.Calibration(0.02178, np.eye(2), truth["centre_px"], mask, 1.4)
    optics = {"max_g_invA": 1.0, "beam_energy_keV": 200, "precession_deg": 0.5, "excitation_width_invA": 0.001}
    banks = [emphase.ped.template_bank(crystal, cache=helpers.BANK_CACHE, **optics) for crystal in crystals]
    maps, _, spots = study.map_scan(patterns, calibration, banks)
    emphase.ped.search.zone_axis_landscape(spots[:1], calibration, banks[0])
    study.run_spike_ins(patterns, calibration, banks, maps, trials=range(1))


def analyse(rng: np.random.Generator, crystals: list) -> None:
    """Analyse an interface and register a stack."""
    image, _ = study.interface_image(rng, (320, 320), 0.02)
    study.analyse_interface(image, 0.02, crystals[:1], rng)
    emphase.drift.register_stack(study.cryo_stack(rng, 4, (64, 64))[0])


def main() -> None:
    """Both, one after the other."""
    warnings.simplefilter("ignore")  # the recordings are too small for what is asked of them
    crystals = [helpers.phase_crystal(p) for p in ("layered", "spinel", "rocksalt", "llzo")]
    COMPILING.parent.mkdir(exist_ok=True)
    with open(COMPILING, "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        match(np.random.default_rng(1), crystals)
        analyse(np.random.default_rng(1), crystals)


if __name__ == "__main__":
    main()
