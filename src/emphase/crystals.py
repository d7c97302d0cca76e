"""Crystal structures as electron diffraction needs them: cell, atoms, reflections and their kinematical intensities.

A structure is read from a CIF by ase (Larsen et al., J. Phys. Condens. Matter 29 (2017) 273002). Structure factors are sums of
Lobato's atomic scattering factors (Lobato & Van Dyck, Acta Cryst. A70 (2014) 636), as tabulated by diffsims; the intensity of a
reflection is |F/V|², so that crystals of one thickness compare. The Cartesian frame is that of orix, e1 || a and e3 || c*.
"""

from __future__ import annotations

import functools
import math
import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from .errors import EmphaseError, one_line


@dataclass(frozen=True, eq=False)
class Crystal:
    """A crystal structure as diffraction needs it.

    Attributes
    ----------
    name
        Of the phase.
    lattice
        (3, 3), a, b, c as rows, Å, in the Cartesian frame e1 || a, e3 || c*.
    positions
        (n, 3), fractional.
    elements, occupancies
        Of the n atoms; a mixed site is several atoms in one place.
    space_group
        Its number, 1 to 230.
    """

    name: str
    lattice: np.ndarray
    positions: np.ndarray
    elements: tuple[str, ...]
    occupancies: np.ndarray
    space_group: int

    @property
    def reciprocal(self) -> np.ndarray:
        """a*, b*, c* as rows, 1/Å."""
        return np.linalg.inv(self.lattice).T

    @property
    def volume(self) -> float:
        """Volume of the cell, Å³."""
        return float(abs(np.linalg.det(self.lattice)))

    def orix_phase(self, colour: str = "") -> Any:
        """The phase for orix, with the symmetry of its space group; ``colour`` is hexadecimal, orix's own choice if empty."""
        from diffpy.structure import Atom, Lattice, Structure
        from orix.crystal_map import Phase

        a, b, c = (float(np.linalg.norm(v)) for v in self.lattice)
        cosines = [float(np.dot(self.lattice[i], self.lattice[j])) for i, j in ((1, 2), (0, 2), (0, 1))]
        alpha, beta, gamma = (math.degrees(math.acos(x / y)) for x, y in zip(cosines, (b * c, a * c, a * b), strict=True))
        atoms = [Atom(e, p, occupancy=o) for e, p, o in zip(self.elements, self.positions, self.occupancies, strict=True)]
        structure = Structure(atoms=atoms, lattice=Lattice(a, b, c, alpha, beta, gamma), title=self.name)
        named = _named_colour(colour) if colour else None
        return Phase(self.name, space_group=self.space_group, structure=structure, color=named)

    @property
    def laue_rotations(self) -> np.ndarray:
        """Proper rotations (o, 3, 3) of the Laue group in the Cartesian frame; not to be written to."""
        return _laue_rotations(self.space_group)


@functools.cache
def _laue_rotations(space_group: int) -> np.ndarray:
    """Proper rotations (o, 3, 3) of the Laue group of a space group in orix's Cartesian frame."""
    from orix.crystal_map import Phase

    rotations = np.asarray(Phase(space_group=space_group).point_group.laue_proper_subgroup.to_matrix()).reshape(-1, 3, 3)
    rotations.flags.writeable = False
    return rotations


def _named_colour(colour: str) -> str:
    """The named colour of matplotlib nearest to a hexadecimal one: orix takes names only."""
    from matplotlib.colors import CSS4_COLORS, to_rgb

    wanted = np.array(to_rgb(colour))
    return min(CSS4_COLORS, key=lambda name: float(np.sum((np.array(to_rgb(name)) - wanted) ** 2)))


@dataclass(frozen=True)
class CellLimits:
    """What a file may hold to pass for a crystal structure."""

    file_bytes: int = 1_000_000  # the largest of the databases hold some 100 kB
    edge_A: tuple[float, float] = (1.0, 60.0)  # shorter than any bond, and longer than an inorganic cell: other units, or no cell
    volume_A3: tuple[float, float] = (4.0, 10_000.0)  # of one atom, and of what a bank of templates can be made for


LIMITS = CellLimits()


def read_crystal(path: str | Path, name: str | None = None) -> Crystal:
    """A crystal structure from a CIF.

    Parameters
    ----------
    path
        The file, as ase reads it.
    name
        Of the phase; that of the file where None.

    Raises
    ------
    EmphaseError
        Where the file cannot be read, holds no atoms, or has a cell outside of `LIMITS`.
    """
    from ase.geometry import cellpar_to_cell

    path = Path(path)
    atoms = _atoms_of(path)
    cell = cellpar_to_cell(atoms.cell.cellpar())
    occupancy = atoms.info.get("occupancy") or {}
    kinds = atoms.arrays.get("spacegroup_kinds", np.arange(len(atoms)))
    elements, positions, occupancies = [], [], []
    for symbol, kind, position in zip(atoms.get_chemical_symbols(), kinds, atoms.get_scaled_positions(), strict=True):
        for element, share in occupancy.get(str(kind), {symbol: 1.0}).items():
            elements.append(element)
            positions.append(position)
            occupancies.append(float(share))
    group = atoms.info["spacegroup"].no if "spacegroup" in atoms.info else 1
    return Crystal(name or path.stem, cell, np.array(positions), tuple(elements), np.array(occupancies), int(group))


def _atoms_of(path: Path) -> Any:
    """The atoms of a CIF as ase gives them; `EmphaseError` where they are none of a crystal."""
    import ase.io

    if not path.is_file():
        raise EmphaseError(f"{path.name}: no such file, expected a CIF")
    if path.stat().st_size > LIMITS.file_bytes:
        raise EmphaseError(f"{path.name}: {path.stat().st_size} bytes, expected a crystal structure of at most {LIMITS.file_bytes}")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            atoms: Any = ase.io.read(path, format="cif", fractional_occupancies=True)
    except Exception as error:  # ase raises whatever it meets in a broken file
        why = one_line(error) or type(error).__name__
        raise EmphaseError(f"{path.name}: cannot be read as a crystal structure: {why}; expected a CIF with cell and atoms") from error
    if len(atoms) == 0:
        raise EmphaseError(f"{path.name}: holds no atoms, expected a structure that can diffract")
    edges = atoms.cell.lengths()
    (shortest, longest), (smallest, largest) = LIMITS.edge_A, LIMITS.volume_A3
    usual = np.all((edges > shortest) & (edges < longest)) and smallest < atoms.cell.volume < largest
    if not (usual and np.isfinite(atoms.positions).all()):
        size = " × ".join(f"{edge:.4g}" for edge in edges)
        raise EmphaseError(
            f"{path.name}: a cell of {size} Å and {atoms.cell.volume:.4g} Å³, "
            f"expected edges of {shortest:g} to {longest:g} Å and up to {largest:g} Å³"
        )
    return atoms


def electron_wavelength_A(beam_energy_keV: float) -> float:
    """Relativistic wavelength of electrons of an energy, Å.

    lambda = 12.2643 / sqrt(V (1 + 0.978476e-6 V)) with V in volts.

    >>> round(electron_wavelength_A(200), 5)
    0.02508
    """
    volts = beam_energy_keV * 1e3
    return 12.2643 / math.sqrt(volts * (1 + 0.978476e-6 * volts))


def structure_factors(crystal: Crystal, hkl: np.ndarray, debye_waller_A2: float = 0.5) -> np.ndarray:
    """Structure factors of a crystal for electrons, from its atoms.

    Parameters
    ----------
    crystal
        The structure.
    hkl
        (n, 3) reflections.
    debye_waller_A2
        B of all atoms, Å².

    Returns
    -------
    Complex (n,), F in Å.

    Raises
    ------
    EmphaseError
        For an element that has no scattering factor.

    Notes
    -----
    F(g) = exp(-B g²/4) sum_j o_j f_j(g) exp(2 pi i hkl·x_j), with Lobato's parametrisation
    f(g) = sum_i a_i (2 + b_i g²) / (1 + b_i g²)² (Acta Cryst. A70 (2014) 636) as tabulated by diffsims.
    """
    from diffsims.utils.sim_utils import get_scattering_params_dict

    table = get_scattering_params_dict("lobato")
    unknown = sorted(set(crystal.elements) - set(table))
    if unknown:
        raise EmphaseError(f"{crystal.name}: no scattering factor for {', '.join(unknown)}")
    g2 = np.sum((hkl @ crystal.reciprocal) ** 2, axis=1)
    total = np.zeros(len(hkl), dtype=complex)
    for element in dict.fromkeys(crystal.elements):
        here = np.array([e == element for e in crystal.elements])
        a, b = np.asarray(table[element], dtype=float).T
        x = g2[:, None] * b
        amplitude = np.sum(a * (2 + x) / (1 + x) ** 2, axis=1)
        phases = np.exp(2j * np.pi * hkl @ crystal.positions[here].T)
        total += amplitude * (phases @ crystal.occupancies[here])
    return total * np.exp(-debye_waller_A2 * g2 / 4)


@dataclass(frozen=True)
class Reflections:
    """Reflections of a crystal: hkl (n, 3), g (n, 3) Cartesian in 1/Å, and intensity |F/V|² (n,) in Å⁻⁴."""

    hkl: np.ndarray
    g: np.ndarray
    intensity: np.ndarray

    @property
    def d_A(self) -> np.ndarray:
        """Spacings (n,) in Å."""
        return 1 / np.linalg.norm(self.g, axis=1)


@functools.lru_cache(maxsize=32)
def reflections(crystal: Crystal, max_g_invA: float, min_relative_intensity: float = 1e-6) -> Reflections:
    """The reflections of a crystal up to a length of g, shortest first.

    Parameters
    ----------
    crystal
        The structure.
    max_g_invA
        Largest length of g, 1/Å.
    min_relative_intensity
        Extinct reflections and those weaker than this share of the strongest one are left out.

    Notes
    -----
    The intensities are |F/V|² with V the cell's volume, so that different crystals of the same thickness compare.
    """
    reach = np.ceil(max_g_invA * np.linalg.norm(crystal.lattice, axis=1)).astype(int)
    h, k, l = np.meshgrid(*(np.arange(-n, n + 1) for n in reach), indexing="ij")
    hkl = np.stack([h.ravel(), k.ravel(), l.ravel()], axis=1)
    g = hkl @ crystal.reciprocal
    length = np.linalg.norm(g, axis=1)
    inside = (length > 1e-9) & (length <= max_g_invA)
    hkl, g, length = hkl[inside], g[inside], length[inside]
    half = np.abs(structure_factors(crystal, hkl[: len(hkl) // 2]) / crystal.volume) ** 2
    intensity = np.concatenate([half, half[::-1]])  # the grid is symmetric: its second half is the first one inverted (Friedel)
    keep = intensity > min_relative_intensity * intensity.max(initial=0)
    order = np.lexsort((*hkl[keep].T, np.round(length[keep], 9)))
    found = Reflections(hkl[keep][order], g[keep][order], intensity[keep][order])
    for shared in (found.hkl, found.g, found.intensity):
        shared.flags.writeable = False
    return found


def direction_name(uvw: Iterable[int]) -> str:
    """The indices of a direction in brackets, with true minus signs.

    >>> direction_name(np.array([1, -1, 0]))
    '[1 −1 0]'
    """
    return "[" + " ".join(str(i).replace("-", "−") for i in uvw) + "]"


def view_along(crystal: Crystal, zone_axis: tuple[int, int, int]) -> np.ndarray:
    """The frame of an image along a zone axis: unit vectors x, y, z as rows (3, 3) in the crystal's Cartesian frame, z along the axis."""
    z = np.asarray(zone_axis, dtype=float) @ crystal.lattice
    z /= np.linalg.norm(z)
    helper = np.eye(3)[int(np.argmin(np.abs(z)))]
    x = np.cross(helper, z)
    x /= np.linalg.norm(x)
    return np.array([x, np.cross(z, x), z])
