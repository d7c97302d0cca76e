"""Template banks: what a phase diffracts along every zone axis under precession, from its structure.

The intensity of a reflection is |F / V|^1.4 times a rocking curve. The power lies between the kinematical (2) and the dynamical (1) limit.
The rocking curve in excitation error is a Lorentzian, for thickness and bending, convolved with the arcsine density of a beam that
precesses on a cone (Vincent and Midgley, Ultramicroscopy 53 (1994) 271); it has a closed form (`rocking_curve`).

Zone axes lie on a spiral (Fibonacci) lattice of the sphere, reduced by the Laue group. Each gives one coarse template, spots in polar
coordinates about the beam, for the votes of `emphase.ped.search`; evidence is later computed from the reflections themselves, at the
orientation itself. Excitation errors use the parabolic approximation of the Ewald sphere.
"""

from __future__ import annotations

import hashlib
import inspect
import io
import math
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ..crystals import Crystal, electron_wavelength_A, reflections
from ..files import write_atomically
from ..kernels import kernel


class TemplateOptions(NamedTuple):
    """Tuning numbers of template banks; a named tuple, so that kernels can read it."""

    strength_power: float = 0.7  # of the kinematical intensity: 1 is its limit for thin crystals, 0.5 that of two beams in thick ones
    faint: float = 1e-4  # of a pattern's strength: what no dose of these patterns can show
    most_spots: int = 80  # of a coarse template, the brightest
    least_strength: float = 0.01  # of the brightest spot of a coarse template
    weight_power: float = 0.3  # of a spot's strength, for its vote: intensities are little to go by, so faint spots count too
    radial_bin_invA: float = 0.005  # of the spots sorted by radius


OPTIONS = TemplateOptions()


class _Reflections(NamedTuple):
    """Reflections as the kernels take them: g (n, 3) in 1/Å, strength (n,), cone (n,) = |g| times the precession angle.

    ``reach`` (n,) is the excitation error beyond which one is too faint to count; with the half
    width of the rocking curve and the wavelength.
    """

    g: np.ndarray
    strength: np.ndarray
    cone: np.ndarray
    reach: np.ndarray
    half_width: float
    wavelength: float


class _Coarse(NamedTuple):
    """The coarse search of one phase: a frame for every zone axis, the reflections near it, its spots sorted by radius."""

    frames: np.ndarray
    near: np.ndarray
    near_start: np.ndarray
    radius: np.ndarray
    turn: np.ndarray
    weight: np.ndarray
    template: np.ndarray
    bin_start: np.ndarray
    operators: np.ndarray


@dataclass(frozen=True)
class TemplateBank:
    """All that matching needs of one phase, from its structure and the optics.

    Attributes
    ----------
    crystal
        The phase.
    hkl, g
        (n, 3) reflections, and their vectors in 1/Å in the crystal's Cartesian frame.
    strength
        (n,) integrated over the excitation error.
    cone
        (n,) |g| times the precession angle, 1/Å.
    reach
        (n,) excitation error to which the rocking curve is followed, 1/Å.
    half_width_invA
        Half width of the rocking curve at rest.
    wavelength_A
        Of the electrons.
    frames
        (m, 3, 3) one rotation, sample to crystal, for every zone axis of the coarse search.
    near, near_start
        Numbers of the reflections that can shine near each zone axis, and (m + 1,) where each axis begins in these.
    spot_radius, spot_turn, spot_weight, spot_template
        Spots of all coarse templates, sorted by radius: 1/Å, shares of a full turn, weight in votes, number of the zone axis.
    operators
        (o, 3, 3) proper rotations of the Laue group.
    """

    crystal: Crystal
    hkl: np.ndarray
    g: np.ndarray
    strength: np.ndarray
    cone: np.ndarray
    reach: np.ndarray
    half_width_invA: float
    wavelength_A: float
    frames: np.ndarray
    near: np.ndarray
    near_start: np.ndarray
    spot_radius: np.ndarray
    spot_turn: np.ndarray
    spot_weight: np.ndarray
    spot_template: np.ndarray
    operators: np.ndarray

    @property
    def reflections(self) -> _Reflections:
        """The reflections as the kernels take them."""
        return _Reflections(self.g, self.strength, self.cone, self.reach, self.half_width_invA, self.wavelength_A)

    @property
    def coarse(self) -> _Coarse:
        """The coarse search as the kernels take it."""
        edges = np.arange(0, self.spot_radius.max(initial=0) + 0.1, OPTIONS.radial_bin_invA)
        return _Coarse(
            self.frames, self.near, self.near_start, self.spot_radius, self.spot_turn, self.spot_weight, self.spot_template,
            np.searchsorted(self.spot_radius, edges).astype(np.int64), self.operators,
        )  # fmt: skip


def zone_axes(operators: np.ndarray, step_deg: float) -> np.ndarray:
    """Directions that cover the sphere up to symmetry, from the proper rotations of a Laue group.

    Parameters
    ----------
    operators
        (o, 3, 3) proper rotations.
    step_deg
        Distance between neighbours, about.

    Returns
    -------
    (m, 3) unit vectors: a spiral (Fibonacci) lattice, of which every set of equivalent directions keeps the one nearest to a general
    direction.
    """
    n = round(4 * math.pi / (math.radians(step_deg) ** 2 * math.sqrt(3) / 2))
    z = 1 - (2 * np.arange(n) + 1) / n
    angle = math.pi * (1 + math.sqrt(5)) * np.arange(n)
    directions = np.stack([np.sqrt(1 - z * z) * np.cos(angle), np.sqrt(1 - z * z) * np.sin(angle), z], axis=1)
    pole = np.array([0.3125, 0.1234, 0.9418])
    nearness = np.einsum("oij,nj->noi", operators, directions) @ pole
    return directions[directions @ pole >= nearness.max(axis=1) - 1e-12]


def rotation_to_zone(zone: np.ndarray) -> np.ndarray:
    """A rotation (3, 3), sample to crystal, that puts the beam (sample z) along ``zone`` (crystal, Cartesian)."""
    z = zone / np.linalg.norm(zone)
    helper = np.eye(3)[np.argmin(np.abs(z))]
    x = helper - z * (helper @ z)
    x /= np.linalg.norm(x)
    return np.stack([x, np.cross(z, x), z], axis=1)


def excitation_error(g_sample: np.ndarray, wavelength_A: float) -> np.ndarray:
    """Distance of reciprocal points from the Ewald sphere along the beam (+z), in its parabolic approximation.

    Parameters
    ----------
    g_sample
        (n, 3) in the sample's frame, 1/Å.
    wavelength_A
        Of the electrons.

    Returns
    -------
    (n,) in 1/Å.
    """
    return -g_sample[:, 2] - wavelength_A * np.sum(g_sample**2, axis=1) / 2


@kernel
def rocking_curve(excitation_error, cone, half_width):
    """Intensity of a reflection against its excitation error in precession, normalised to an integral of one.

    Parameters
    ----------
    excitation_error
        s, 1/Å; a number or an array, as all three.
    cone
        c = |g| times the precession angle, 1/Å.
    half_width
        w of the curve at rest, 1/Å.

    Notes
    -----
    In a turn of the beam the excitation error swings as s + c cos(phi); at rest the curve is a Lorentzian of half width w (thickness,
    bending). Their convolution is the real part of 1 / (pi sqrt(c² - (s + i w)²)): flat within the cone, with tails as s^-2 outside.
    """
    u, r = excitation_error / cone, half_width / cone
    real, imaginary = 1 - u * u + r * r, 2 * u * r
    size = np.sqrt(real * real + imaginary * imaginary)
    return np.sqrt(np.maximum(size + real, 0.0) / 2) / (math.pi * size * cone)


def template_bank(
    crystal: Crystal,
    *,
    max_g_invA: float,
    beam_energy_keV: float,
    precession_deg: float,
    excitation_width_invA: float,
    step_deg: float = 2.0,
    min_relative_intensity: float = 1e-3,
    cache: str | Path | None = None,
) -> TemplateBank:
    """The template bank of one phase, from its structure and the optics of a precessed beam.

    Parameters
    ----------
    crystal
        The phase.
    max_g_invA
        Longest reflection, 1/Å.
    beam_energy_keV
        Energy of the electrons.
    precession_deg
        Half angle of the cone, degrees.
    excitation_width_invA
        Half width of the rocking curve at rest, 1/Å.
    step_deg
        Distance of zone axes, degrees.
    min_relative_intensity
        Weakest reflection, as a share of the strongest.
    cache
        Folder that keeps the coarse search, by a hash of all it depends on; None: it is made anew.

    Notes
    -----
    The strength of a reflection is |F/V|^1.4 times `rocking_curve`. The coarse templates are broader by the step of the search, and the
    weights of their spots go with a low power of the strength, because real intensities are neither kinematical nor dynamical.
    """
    reflected = reflections(crystal, max_g_invA, min_relative_intensity)
    wavelength = electron_wavelength_A(beam_energy_keV)
    strength = reflected.intensity**OPTIONS.strength_power
    cone = np.linalg.norm(reflected.g, axis=1) * max(math.radians(precession_deg), 1e-4)
    operators = crystal.laue_rotations
    reach = _excited_reach(reflected.g, strength, cone, excitation_width_invA, wavelength, zone_axes(operators, 10 * step_deg))
    bright = reach > 0
    refs = _Reflections(reflected.g[bright], strength[bright], cone[bright], reach[bright], excitation_width_invA, wavelength)
    coarse = _cached_arrays(cache, lambda: _coarse_templates(refs, operators, step_deg), *refs, operators, step_deg, OPTIONS)
    arrays: dict[str, Any] = {name: coarse[name] for name in _COARSE_ARRAYS}
    return TemplateBank(crystal, reflected.hkl[bright], *refs, **arrays, operators=operators)


def _excited_reach(
    g: np.ndarray, strength: np.ndarray, cone: np.ndarray, half_width: float, wavelength: float, zones: np.ndarray
) -> np.ndarray:
    """The excitation error (n,) at which each reflection falls under `faint` of a usual pattern's whole; 0 where it never is above."""
    whole = [np.sum(strength * rocking_curve(excitation_error(g @ rotation_to_zone(zone), wavelength), cone, half_width)) for zone in zones]
    outside = np.linspace(0, 8, 65)
    s = cone[:, None] + half_width * outside
    shines = strength[:, None] * rocking_curve(s, cone[:, None], half_width) > OPTIONS.faint * np.median(whole)
    last = shines.shape[1] - 1 - np.argmax(shines[:, ::-1], axis=1)
    return np.where(shines.any(axis=1), cone + half_width * outside[last], 0.0)


_COARSE_ARRAYS = ("frames", "near", "near_start", "spot_radius", "spot_turn", "spot_weight", "spot_template")


def _cached_arrays(folder: str | Path | None, make: Any, *depends_on: Any) -> dict[str, np.ndarray]:
    """Named arrays from a folder's .npz named by the hash of what they depend on and of the code; else made, and kept there."""
    if folder is None:
        return make()
    code = (_coarse_templates, zone_axes, rotation_to_zone, excitation_error, rocking_curve)
    digest = hashlib.sha256("".join(inspect.getsource(function) for function in code).encode())
    for part in depends_on:
        digest.update(np.ascontiguousarray(part, dtype=float).tobytes())
    path = Path(folder) / f"bank_{digest.hexdigest()[:24]}.npz"
    if path.is_file():
        try:
            with np.load(path, allow_pickle=False) as arrays:
                return {name: arrays[name] for name in arrays.files}
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
            pass  # broken off or damaged: made again below
    arrays = make()
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)
    write_atomically(path, buffer.getvalue())
    return arrays


def _coarse_templates(
    refs: _Reflections, operators: np.ndarray, step_deg: float, most_spots: int = OPTIONS.most_spots
) -> dict[str, np.ndarray]:
    """For every zone axis the reflections that shine within its reach, and its spots; all spots sorted by radius."""
    step = math.radians(step_deg)
    length = np.linalg.norm(refs.g, axis=1)
    frames = np.array([rotation_to_zone(zone) for zone in zone_axes(operators, step_deg)])
    near, near_start = [], [0]
    columns: list[list[np.ndarray]] = [[], [], [], []]
    for number, frame in enumerate(frames):
        g = refs.g @ frame
        s = excitation_error(g, refs.wavelength)
        close = np.flatnonzero(np.abs(s) < refs.reach + 1.3 * length * step)
        near.append(close)
        near_start.append(near_start[-1] + len(close))
        broad = np.hypot(refs.cone[close], 0.5 * length[close] * step)
        strength = refs.strength[close] * rocking_curve(s[close], broad, refs.half_width + 0.1 * length[close] * step)
        brightest = np.argsort(-strength, kind="stable")[:most_spots]
        brightest = brightest[strength[brightest] > OPTIONS.least_strength * strength.max(initial=0)]
        weight = strength[brightest] ** OPTIONS.weight_power
        x, y = g[close[brightest], :2].T
        values = (np.hypot(x, y), np.arctan2(y, x) / (2 * np.pi) % 1, weight / max(np.linalg.norm(weight), 1e-12))
        for column, value in zip(columns, (*values, np.full(len(weight), number)), strict=True):
            column.append(value)
    radius, turn, weight, template = (np.concatenate(column) for column in columns)
    order = np.argsort(radius, kind="stable")
    arrays = (
        frames, np.concatenate(near), np.array(near_start), radius[order].astype(np.float32), turn[order].astype(np.float32),
        weight[order].astype(np.float32), template[order].astype(np.int32),
    )  # fmt: skip
    return dict(zip(_COARSE_ARRAYS, arrays, strict=True))


def _longest_g(banks: Sequence[TemplateBank]) -> float:
    """Length (1/Å) of the longest reflection of the banks."""
    return max(float(np.linalg.norm(bank.g, axis=1).max()) for bank in banks)


def _joined_reflections(banks: list[TemplateBank]) -> tuple[_Reflections, np.ndarray]:
    """The reflections of all banks in one, and where each begins (p + 1,)."""
    parts = [b.reflections for b in banks]
    g, strength, cone, reach = (np.concatenate([getattr(r, name) for r in parts]) for name in ("g", "strength", "cone", "reach"))
    return _Reflections(g, strength, cone, reach, parts[0].half_width, parts[0].wavelength), np.cumsum([0, *(len(r.g) for r in parts)])
