"""A calibration with the lattices that the spots have, where these are not those of the structure files.

A phase whose lattice is per cents off draws the common scale with it, and of its spots only those near their predicted places are
explained. So its lattice parameters come out right only by turns: the crystal gets the parameters found, and the scan is calibrated anew.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from ..crystals import Crystal
from .calibration import CalibratedScan
from .spacings import LatticeParameter, with_lattice_parameters

ROUNDS = 3  # after which a change of 2 % is right to some tenths of a per mille


def refine_lattices(
    scan: CalibratedScan, calibrate: Callable[[list[Crystal]], CalibratedScan]
) -> tuple[CalibratedScan, list[LatticeParameter], dict[str, dict[str, float]]]:
    """Calibrate a scan with the lattice parameters that its spots have, of the phases in which they differ from the structure file.

    Parameters
    ----------
    scan
        As calibrated with the crystals of the structure files.
    calibrate
        Calibrates it with other crystals, as `emphase.ped.calibrate`.

    Returns
    -------
    refined
        The calibration with these lattices; ``scan`` itself where none differs, as with fewer than three phases, which may all share the
        blame.
    parameters
        All lattice parameters that it shows, against those of the structure files.
    used
        Those that were put into crystals (Å), by phase and axis.
    """
    crystals = [bank.crystal for bank in scan.banks]
    given = {crystal.name: dict(zip("abc", np.linalg.norm(crystal.lattice, axis=1).tolist(), strict=True)) for crystal in crystals}
    used: dict[str, dict[str, float]] = {}
    for _ in range(ROUNDS):
        for p in scan.fit.lattice_parameters:
            if p.differs or p.axis in used.get(p.phase, {}):
                used.setdefault(p.phase, {})[p.axis] = p.found_A
        if not used:
            break
        scan = calibrate([with_lattice_parameters(crystal, used.get(crystal.name, {})) for crystal in crystals])
    parameters = [p._replace(given_A=given[p.phase][p.axis]) for p in scan.fit.lattice_parameters]
    return scan, parameters, used
