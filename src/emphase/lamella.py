"""What a lamella of a focused ion beam means for electron microscopy: damage, mean free path and extinction distance.

From the milling voltage the thickness of the amorphous layer that the ions left (`amorphous_layer_nm`, between two power laws through
measurements on silicon), from the composition the mean free path for inelastic scattering (`inelastic_mean_free_path_nm`, Malis, Cheng &
Egerton 1988), and from a crystal's structure factors the two-beam extinction distance (`extinction_distance_nm`, Hirsch et al. 1965), up
to which kinematical intensities hold at best. Each is an estimate to some 20 % or a factor of two, as its function says.
"""

from __future__ import annotations

import math
import re

import numpy as np

from .crystals import Crystal, electron_wavelength_A, reflections
from .errors import EmphaseError

#: The definition of NeXus for a record of electron microscopy: name, source, commit.
NXEM_DEFINITION = {
    "definition": "NXem",
    "definition_source": "FAIRmat-NFDI/nexus_definitions, applications/NXem (NXDL 3.1)",
    "definition_version": "eada03fb4a1b466af8cf29a4aeb531428000a7d4",
}


def parse_formula(formula: str) -> dict[str, float]:
    """Elements and their numbers in a chemical formula without brackets; `EmphaseError` where it is none.

    >>> parse_formula("LiNi0.6Co0.2Mn0.2O2")["O"]
    2.0
    """
    from ase.data import atomic_numbers

    parts = re.findall(r"([A-Z][a-z]?)(\d*\.?\d*)", formula)
    if not parts or "".join(e + n for e, n in parts) != formula or any(e not in atomic_numbers for e, _ in parts):
        raise EmphaseError(f"chemical formula: got {formula!r}, expected one like LiNi0.6Co0.2Mn0.2O2")
    found: dict[str, float] = {}
    for element, number in parts:
        found[element] = found.get(element, 0.0) + (float(number) if number else 1.0)
    return found


def amorphous_layer_nm(voltage_kV: float) -> tuple[float, float]:
    """Thickness of the amorphous, gallium-bearing layer on one side of a lamella, from the voltage of the last milling.

    Parameters
    ----------
    voltage_kV
        Of the gallium ions.

    Returns
    -------
    Low and high estimate, nm.

    Notes
    -----
    Between two power laws through values measured on the side walls of silicon: 21 nm at 30 kV
    and 2.5 nm at 5 kV (Giannuzzi et al., Microsc. Microanal. 11 S2 (2005) 828; reviewed by Mayer et
    al., MRS Bull. 32 (2007) 400), and 23 nm at 30 kV and 10 nm at
    10 kV (Proc. ISTFA 2004, 563). The implanted gallium lies in the same layer (Rubanov &
    Munroe, J. Microsc. 214 (2004) 213). Oxides may differ by a factor of two.

    Examples
    --------
    >>> [round(t, 1) for t in amorphous_layer_nm(30)]
    [21.0, 23.0]
    """
    steep = math.log(21 / 2.5) / math.log(30 / 5)
    shallow = math.log(23 / 10) / math.log(30 / 10)
    bounds = sorted((21 * (voltage_kV / 30) ** steep, 23 * (voltage_kV / 30) ** shallow))
    return bounds[0], bounds[1]


def inelastic_mean_free_path_nm(formula: str, beam_energy_keV: float, collection_mrad: float = 10.0) -> float:
    """Mean free path of electrons for inelastic scattering, nm, from the composition, within 20 %.

    Parameters
    ----------
    formula
        Of the material, as for `parse_formula`.
    beam_energy_keV
        E0 of the electrons.
    collection_mrad
        Semi-angle beta up to which scattered electrons are collected.

    Notes
    -----
    Malis, Cheng & Egerton, J. Electron Microsc. Tech. 8 (1988) 193:
    lambda = 106 F (E0/Em) / ln(2 beta E0/Em), F = (1 + E0/1022)/(1 + E0/511)², Em = 7.6 Z^0.36 eV,
    with E0 in keV and beta in mrad. For compounds Z = sum(f Z^1.3)/sum(f Z^0.3) (Egerton, EELS in
    the Electron Microscope, 3rd ed., eq. 5.4).
    """
    from ase.data import atomic_numbers

    shares = parse_formula(formula)
    z = np.array([atomic_numbers[e] for e in shares], dtype=float)
    f = np.array(list(shares.values()))
    effective = float(np.sum(f * z**1.3) / np.sum(f * z**0.3))
    mean_loss = 7.6 * effective**0.36
    relativistic = (1 + beam_energy_keV / 1022) / (1 + beam_energy_keV / 511) ** 2
    ratio = beam_energy_keV / mean_loss
    return float(106 * relativistic * ratio / math.log(2 * collection_mrad * ratio))


def extinction_distance_nm(crystal: Crystal, beam_energy_keV: float) -> tuple[float, tuple[int, int, int]]:
    """Two-beam extinction distance of a crystal's strongest reflection up to 1 1/Å.

    Returns
    -------
    The distance, nm, and hkl of the reflection.

    Notes
    -----
    xi = pi V / (gamma lambda |F|) (Hirsch et al., Electron Microscopy of Thin Crystals, 1965).
    """
    found = reflections(crystal, 1.0)
    strongest = int(np.argmax(found.intensity))
    gamma = 1 + beam_energy_keV / 510.999
    per_volume = math.sqrt(found.intensity[strongest])
    xi = math.pi / (gamma * electron_wavelength_A(beam_energy_keV) * per_volume) / 10
    h, k, l = (int(i) for i in found.hkl[strongest])
    return xi, (h, k, l)
