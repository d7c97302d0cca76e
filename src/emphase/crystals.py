"""TODO."""

from __future__ import annotations

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

    ``lattice`` has a, b, c as rows (Å) in the Cartesian frame e1 || a, e3 || c*; ``positions``
    (n, 3) are fractional; one entry of ``elements`` and ``occupancies`` for every atom, mixed
    sites being several atoms in one place. ``space_group`` is its number, 1 to 230.
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
        """Proper rotations (o, 3, 3) of the Laue group in the Cartesian frame."""
        return np.asarray(self.orix_phase().point_group.laue_proper_subgroup.to_matrix()).reshape(-1, 3, 3)


def _named_colour(colour: str) -> str:
    """The named colour of matplotlib nearest to a hexadecimal one: orix takes names only."""
    from matplotlib.colors import CSS4_COLORS, to_rgb

    wanted = np.array(to_rgb(colour))
    return min(CSS4_COLORS, key=lambda name: float(np.sum((np.array(to_rgb(name)) - wanted) ** 2)))


_CIF_BYTES = 1_000_000  # of a crystal structure at most


def read_crystal(path: str | Path, name: str | None = None) -> Crystal:
    """Read a CIF with ase; `EmphaseError` where it cannot be read, holds no atoms, or has a cell that no crystal here has."""
    import ase.io
    from ase.geometry import cellpar_to_cell

    path = Path(path)
    if path.stat().st_size > _CIF_BYTES:
        raise EmphaseError(f"{path.name}: {path.stat().st_size} bytes, expected a crystal structure of at most {_CIF_BYTES}")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            atoms: Any = ase.io.read(path, format="cif", fractional_occupancies=True)
    except Exception as error:  # ase raises whatever it meets in a broken file
        raise EmphaseError(f"{path.name}: cannot be read as a crystal structure: {one_line(error)}") from error
    if len(atoms) == 0:
        raise EmphaseError(f"{path.name}: holds no atoms, expected a structure that can diffract")
    edges = atoms.cell.lengths()
    if not (np.all((edges > 1) & (edges < 60)) and 4 < atoms.cell.volume < 10_000 and np.isfinite(atoms.positions).all()):
        told = " × ".join(f"{edge:.4g}" for edge in edges)
        raise EmphaseError(
            f"{path.name}: a cell of {told} Å and {atoms.cell.volume:.4g} Å³, expected edges of 1 to 60 Å and up to 10000 Å³"
        )
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


def electron_wavelength_A(beam_energy_keV: float) -> float:
    """Relativistic wavelength of the electrons in Å.

    >>> round(electron_wavelength_A(200), 5)
    0.02508
    """
    volts = beam_energy_keV * 1e3
    return 12.2643 / math.sqrt(volts * (1 + 0.978476e-6 * volts))


def structure_factors(crystal: Crystal, hkl: np.ndarray, debye_waller_A2: float = 0.5) -> np.ndarray:
    """Structure factors for electrons, complex (n,), of reflections hkl (n, 3).

    Atomic scattering factors are Lobato's (Acta Cryst. A70 (2014) 636) as tabulated by
    diffsims; one Debye-Waller factor B (Å²) for all atoms. `EmphaseError` for an element that has none.
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
    """Reflections of a crystal: hkl (n, 3), g (n, 3) Cartesian in 1/Å and intensity |F/V|² (n,)."""

    hkl: np.ndarray
    g: np.ndarray
    intensity: np.ndarray

    @property
    def d_A(self) -> np.ndarray:
        """Spacings (n,) in Å."""
        return 1 / np.linalg.norm(self.g, axis=1)


def reflections(crystal: Crystal, max_g_invA: float, min_relative_intensity: float = 1e-6) -> Reflections:
    """All reflections up to a length of g, extinct and very weak ones left out, shortest first.

    The intensities are |F/V|² with V the cell's volume, so that different crystals of the
    same thickness compare.
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
    return Reflections(hkl[keep][order], g[keep][order], intensity[keep][order])


def direction_name(uvw: Iterable[int]) -> str:
    """A direction's indices as they are written.

    >>> direction_name(np.array([1, -1, 0]))
    '[1 −1 0]'
    """
    return "[" + " ".join(str(i).replace("-", "−") for i in uvw) + "]"


def _view_along(crystal: Crystal, zone_axis: tuple[int, int, int]) -> np.ndarray:
    """Rows x, y, z of an image frame in the crystal's Cartesian frame, z along the zone axis."""
    z = np.asarray(zone_axis, dtype=float) @ crystal.lattice
    z /= np.linalg.norm(z)
    helper = np.eye(3)[int(np.argmin(np.abs(z)))]
    x = np.cross(helper, z)
    x /= np.linalg.norm(x)
    return np.array([x, np.cross(z, x), z])
