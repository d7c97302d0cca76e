"""Lattice parameters of the phases of a scan, from the lengths of their spots and one common scale.

The structure files of a scan are off by tenths of a per cent, sometimes by per cents (composition, temperature, strain in a matrix), and
the c of a layered oxide moves with its lithium. With the scale that all phases share, the relative change of the length of g with small
changes ε of the axes is -(ε_a g_a² + ε_b g_b² + ε_c g_c²) / g², with the parts of g along the reciprocal axes. So the ε follow from the
lengths of the explained spots by weighted linear least squares. What the symmetry makes equal is one parameter: a of cubic crystals; a
and c of tetragonal, hexagonal and trigonal ones; a, b and c of the others, whose angles are kept.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

from ..crystals import Crystal


@dataclass(frozen=True)
class SpacingOptions:
    """Tuning numbers of lattice parameters."""

    least_offset: float = 0.006  # of a lattice parameter from its file's: less is strain, or another composition of the same phase
    sigmas: float = 4.0  # by which it must differ besides
    least_phases: int = 3  # of which most say what their common scale is
    least_spots: int = 10  # of a phase, for its lattice parameters
    most_sd: float = 0.01  # of a parameter: one that the spots hardly show is not given


OPTIONS = SpacingOptions()


class LatticeParameter(NamedTuple):
    """One lattice parameter of a phase.

    Attributes
    ----------
    phase, axis
        Name of the phase, and "a", "b" or "c".
    found_A, sd_A, given_A
        As the spots have it, with its standard deviation, and as in the structure file, Å.
    n_spots
        Spots of the phase.
    """

    phase: str
    axis: str
    found_A: float
    sd_A: float
    given_A: float
    n_spots: int

    @property
    def differs(self) -> bool:
        """Whether it differs from the structure file by more than 0.6 % and four standard deviations."""
        off = abs(self.found_A - self.given_A)
        return off > max(OPTIONS.least_offset * self.given_A, OPTIONS.sigmas * self.sd_A)

    @property
    def in_words(self) -> str:
        """What was found beside what the structure file has."""
        return f"{self.phase}: {self.axis} {self.found_A:.3f} ± {self.sd_A:.3f} Å, structure file {self.given_A:.3f} Å"


def lattice_parameters(crystal: Crystal, hkl: np.ndarray, stretch: np.ndarray, weight: np.ndarray) -> list[LatticeParameter]:
    """Lattice parameters of a phase from the lengths of its spots.

    Parameters
    ----------
    crystal
        The phase as in the structure file.
    hkl
        (n, 3) reflections of the spots.
    stretch
        (n,) measured over predicted length of g, with the common scale.
    weight
        (n,) of each, one over its variance.

    Returns
    -------
    One `LatticeParameter` for each that is free and known to 1 %; none where there are fewer than ten spots.
    """
    if len(hkl) < OPTIONS.least_spots:
        return []
    names, groups = _free_axes(crystal)
    along = hkl[:, :, None] * crystal.reciprocal  # (n, 3, 3): the parts of g along a*, b* and c*
    g2 = np.sum(along.sum(axis=1) ** 2, axis=1)
    parts = np.einsum("nik,nk->ni", along, along.sum(axis=1)) / g2[:, None]
    design = -np.stack([parts[:, group].sum(axis=1) for group in groups], axis=1)
    keep = np.ones(len(hkl), bool)
    values, strain, covariance = np.log(stretch), np.zeros(len(groups)), np.eye(len(groups))
    for _ in range(5):
        root = np.sqrt(weight[keep])
        rows = design[keep] * root[:, None]
        strain = np.linalg.lstsq(rows, values[keep] * root, rcond=None)[0]
        residual = values - design @ strain
        spread = float(np.sum(weight[keep] * residual[keep] ** 2)) / max(keep.sum() - len(groups), 1)
        covariance = np.linalg.pinv(rows.T @ rows) * spread
        keep = np.abs(residual) <= 4 * max(1.4826 * float(np.median(np.abs(residual[keep]))), 1e-4)
    shown = np.linalg.norm(design[keep], axis=0) > 1e-6
    lengths = np.linalg.norm(crystal.lattice, axis=1)
    found = []
    for k, name in enumerate(names):
        given, sd = float(lengths[groups[k][0]]), math.sqrt(covariance[k, k])
        if shown[k] and 0 < sd < OPTIONS.most_sd:
            found.append(LatticeParameter(crystal.name, name, given * math.exp(strain[k]), given * sd, given, int(keep.sum())))
    return found


def against_the_others(found: Sequence[LatticeParameter]) -> list[LatticeParameter]:
    """Lattice parameters in the scale that most of them have in common, with how well the phases agree on it in their errors.

    Parameters
    ----------
    found
        Of all phases, in the scale of all their spots, which one phase of another lattice than its file draws with it.

    Returns
    -------
    The same, each relative to the median of the phases' changes, and their median absolute deviation added to the standard deviations. Of
    fewer than three phases nothing says which one is off: their standard deviations hold the spread of all changes.
    """
    if len({p.phase for p in found}) < OPTIONS.least_phases:
        most = max((abs(math.log(p.found_A / p.given_A)) for p in found), default=0.0)
        return [p._replace(sd_A=math.hypot(p.sd_A, p.found_A * most)) for p in found]
    phases = dict.fromkeys(p.phase for p in found)
    change = np.array([np.median([math.log(p.found_A / p.given_A) for p in found if p.phase == phase]) for phase in phases])
    common = float(np.median(change))
    spread = 1.4826 * float(np.median(np.abs(change - common)))
    return [p._replace(found_A=p.found_A * math.exp(-common), sd_A=math.hypot(p.sd_A, p.found_A * spread)) for p in found]


def with_lattice_parameters(crystal: Crystal, lengths_A: Mapping[str, float]) -> Crystal:
    """A crystal with other lattice parameters: its angles and the places of its atoms in the cell are kept.

    Parameters
    ----------
    crystal
        As in the structure file.
    lengths_A
        New lengths (Å) by axis, of those that the symmetry leaves free: "a" of cubic crystals, "a" and "c" of tetragonal, hexagonal and
        trigonal ones, all three of others; those not named stay as they are.
    """
    lattice, lengths = crystal.lattice.copy(), np.linalg.norm(crystal.lattice, axis=1)
    for name, group in zip(*_free_axes(crystal), strict=True):
        lattice[group] *= lengths_A.get(name, lengths[group[0]]) / lengths[group[0]]
    return replace(crystal, lattice=lattice)


def _free_axes(crystal: Crystal) -> tuple[Sequence[str], list[list[int]]]:
    """Names of the free lattice parameters of a crystal's system, and the axes that each moves."""
    if crystal.space_group >= 195:
        return "a", [[0, 1, 2]]
    if crystal.space_group >= 75:
        return "ac", [[0, 1], [2]]
    return "abc", [[0], [1], [2]]
