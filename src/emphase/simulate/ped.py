"""Precession electron diffraction scans of a composite of a layered oxide, its spinel and rocksalt, and another solid.

A map of phases and grains is drawn: the other solid on one side, pores, grains by nearest seed, rocksalt and spinel growing inwards from
the surfaces of the oxide on its lattice. A pattern holds the crystals of its place, with intensities of two-beam dynamical theory
(Hirsch et al., *Electron Microscopy of Thin Crystals*, 1965) averaged over the precession cone (Vincent & Midgley, Ultramicroscopy 53
(1994) 271) and a spread of thickness, so they are not those of a kinematical template bank. Discs lie on an inelastic background; the
direct beam wanders over the camera with the scan; counts are Poisson.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from ..crystals import Crystal, Reflections, electron_wavelength_A, reflections
from ..ped.families import orientation_relations
from ..ped.templates import excitation_error


@dataclass(frozen=True)
class PedScene:
    """The composite that is scanned."""

    #: Shares of the area of the oxide (layered, spinel, rocksalt) that have transformed.
    rocksalt_fraction: float = 0.15
    spinel_fraction: float = 0.05
    #: Grains of the oxide, and as many of the other solid.
    n_grains: int = 10
    #: Mean thickness; it varies by 15 % from pattern to pattern.
    thickness_nm: float = 60.0
    #: Share of metal in the lithium layers of the layered oxide.
    antisite: float = 0.05
    #: Share up to which a pattern next to another grain or phase holds it.
    overlap: float = 0.5
    #: Bend of the lattice within a grain (standard deviation).
    bend_deg: float = 0.3


@dataclass(frozen=True)
class PedRecording:
    """The microscope and the camera."""

    beam_energy_keV: float = 200.0
    precession_deg: float = 0.5
    #: Pixels along each side of the camera.
    detector: int = 144
    #: Pixels that read 30 to 120 counts in every pattern.
    hot_pixels: int = 4


@dataclass(frozen=True)
class _Model:
    """What is the same in every scan."""

    other_above: float = 0.75  # quantile of the scan's area: the rest is the other solid
    pore_above: float = 0.93  # the rest is pores
    free_share: float = 0.15  # of the grains have rocksalt that is not on the lattice of the oxide
    spot_radius_px: float = 1.8  # of a disc
    cone_steps: int = 16  # azimuths of the precession
    thickness_spread: tuple[float, ...] = (0.9, 1.0, 1.1)  # within a pattern, of its thickness
    thickness_scatter: float = 0.15  # from pattern to pattern
    excitation_margin_invA: float = 0.012  # beyond the cone, where a thin crystal still diffracts
    least_intensity: float = 5e-5  # of a spot, of the beam
    inelastic_share: tuple[float, float] = (0.4, 0.25)  # of the beam, in a crystal and in a pore
    least_direct: float = 0.2  # of the beam, where theory without multiple scattering diffracts more than there is


_MODEL = _Model()


class _Diffracting(NamedTuple):
    """The crystals as they diffract: reflections and amplitudes of each, half-angle of the cone in degrees, wavelength in Å."""

    reflected: list[Reflections]
    amplitudes: list[np.ndarray]
    precession_deg: float
    wavelength_A: float


def _diffracting(crystals: list[Crystal], max_g_invA: float, antisite: float, recording: PedRecording) -> _Diffracting:
    """Amplitudes of all crystals up to a length of g; antisite disorder weakens the reflections of odd l of the first, the layered one."""
    reflected = [reflections(c, max_g_invA, 1e-3) for c in crystals]
    amplitudes = [np.sqrt(r.intensity) for r in reflected]
    amplitudes[0] = amplitudes[0] * np.where(reflected[0].hkl[:, 2] % 2 != 0, 1 - 2 * antisite, 1.0)
    return _Diffracting(reflected, amplitudes, recording.precession_deg, electron_wavelength_A(recording.beam_energy_keV))


def _two_beam_intensity(structure_factor_invA2: np.ndarray, s: np.ndarray, thickness_A: float, wavelength_A: float) -> np.ndarray:
    """Diffracted share of the beam in the two-beam dynamical theory, for F/V (1/Å²) and excitation errors s (1/Å)."""
    inverse_extinction = 1.39 * wavelength_A * structure_factor_invA2 / np.pi  # 1.39: relativistic mass at 200 keV
    effective = np.hypot(s, inverse_extinction)
    return (inverse_extinction * np.sin(np.pi * thickness_A * effective) / np.maximum(effective, 1e-12)) ** 2


def _precessed_spots(
    diffracting: _Diffracting, phase: int, rotation: np.ndarray, thicknesses_A: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Positions g (n, 2) (x, y) and intensities (n,) of a precessed pattern, averaged over the cone and a spread of thickness."""
    g, wavelength = diffracting.reflected[phase].g @ rotation, diffracting.wavelength_A
    length = np.linalg.norm(g, axis=1)
    cone = math.radians(diffracting.precession_deg)
    s = excitation_error(g, wavelength)
    near = np.abs(s) < length * cone + _MODEL.excitation_margin_invA
    g, s, amplitude = g[near], s[near], diffracting.amplitudes[phase][near]
    turn = np.arange(_MODEL.cone_steps) * 2 * np.pi / _MODEL.cone_steps
    tilted = s[:, None] - cone * (g[:, :1] * np.cos(turn) + g[:, 1:2] * np.sin(turn))
    intensity = np.mean([_two_beam_intensity(amplitude[:, None], tilted, t, wavelength).mean(axis=1) for t in thicknesses_A], axis=0)
    bright = intensity > _MODEL.least_intensity
    return g[bright, :2], intensity[bright]


def _smooth_field(rng: np.random.Generator, shape: tuple[int, ...], width: float) -> np.ndarray:
    """Gaussian noise of unit variance, smooth over a share of the shorter side."""
    from scipy import ndimage

    noise = ndimage.gaussian_filter(rng.standard_normal(shape), width * min(shape), mode="reflect")
    return noise / noise.std()


def _growth_order(rng: np.random.Generator, oxide: np.ndarray, grain: np.ndarray) -> np.ndarray:
    """Flat indices of patterns in the order in which they transform: from surfaces, later from grain boundaries, with an uneven front."""
    from scipy import ndimage

    boundary = np.zeros(oxide.shape, bool)
    boundary[:-1] |= grain[:-1] != grain[1:]
    boundary[:, :-1] |= grain[:, :-1] != grain[:, 1:]
    depth = np.minimum(ndimage.distance_transform_edt(oxide), 2 + 1.5 * ndimage.distance_transform_edt(~boundary))
    depth = np.where(oxide, depth * np.exp(0.4 * _smooth_field(rng, oxide.shape, 0.08)), np.inf)
    return np.argsort(depth, axis=None, kind="stable")


def _simulate_phase_map(rng: np.random.Generator, shape: tuple[int, int], scene: PedScene) -> tuple[np.ndarray, np.ndarray]:
    """Phase (0 layered, 1 spinel, 2 rocksalt, 3 another solid, -1 pore) and grain of every pattern of a composite.

    Rocksalt, and under it spinel, grow inwards from the oxide's surfaces (the other solid, pores) and less from its
    grain boundaries, with an uneven front, until they take their share of the oxide's area.
    """
    field = _smooth_field(rng, shape, 0.15) + np.linspace(-1.2, 1.2, shape[1])
    other = field > np.quantile(field, _MODEL.other_above)
    holes = _smooth_field(rng, shape, 0.06)
    pore = holes > np.quantile(holes, _MODEL.pore_above)
    seeds = rng.uniform(0, 1, (scene.n_grains, 2)) * shape
    yy, xx = np.indices(shape)
    grain = np.argmin((yy[..., None] - seeds[:, 0]) ** 2 + (xx[..., None] - seeds[:, 1]) ** 2, axis=-1)
    grain[other] += scene.n_grains
    oxide = ~(other | pore)
    phase = np.where(pore, -1, np.where(other, 3, 0))
    order = _growth_order(rng, oxide, grain)
    n_rocksalt, n_spinel = round(scene.rocksalt_fraction * oxide.sum()), round(scene.spinel_fraction * oxide.sum())
    phase.flat[order[:n_rocksalt]] = 2
    phase.flat[order[n_rocksalt : n_rocksalt + n_spinel]] = 1
    return phase, grain


def _simulate_rotations(
    rng: np.random.Generator, phase: np.ndarray, grain: np.ndarray, crystals: list[Crystal], bend_deg: float
) -> np.ndarray:
    """Orientations (ny, nx, 3, 3): one a grain, surface layers on the grain's lattice (some rocksalt free of it), slightly bent."""
    from scipy.spatial.transform import Rotation

    n = int(grain.max()) + 1
    of_grain = Rotation.random(n, rng=rng).as_matrix()
    free = Rotation.random(n, rng=rng).as_matrix()
    is_free = rng.random(n) < _MODEL.free_share
    to_cubic = orientation_relations(crystals[0], crystals[2])[0]
    bend = Rotation.from_rotvec(rng.normal(0, math.radians(bend_deg) / math.sqrt(3), (phase.size, 3))).as_matrix()
    rotation = np.empty((*phase.shape, 3, 3))
    for i, (y, x) in enumerate(np.ndindex(phase.shape)):
        g, p = grain[y, x], phase[y, x]
        base = free[g] if p == 2 and is_free[g] else to_cubic @ of_grain[g] if p in (1, 2) else of_grain[g]
        rotation[y, x] = base @ bend[i]
    return rotation


def _add_spots(image: np.ndarray, places: np.ndarray, weights: np.ndarray, radius_px: float) -> None:
    """Add discs with soft edges (a converged beam on a camera) to an image (ky, kx), each of total ``weight``."""
    reach = math.ceil(radius_px + 4)
    for (x, y), weight in zip(places, weights, strict=True):
        v, u = int(y), int(x)
        rows = np.arange(max(0, v - reach), min(image.shape[0], v + reach + 1))
        columns = np.arange(max(0, u - reach), min(image.shape[1], u + reach + 1))
        if len(rows) and len(columns):
            distance = np.hypot(rows[:, None] - y, columns[None, :] - x)
            disc = 1 / (1 + np.exp((distance - radius_px) / (0.25 * radius_px)))
            image[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1] += weight * disc / (1.21 * math.pi * radius_px**2)


def _crystals_of_pattern(
    rng: np.random.Generator, phase: np.ndarray, grain: np.ndarray, place: tuple[int, int], overlap: float
) -> list[tuple[tuple[int, int], float]]:
    """Where the crystals of a pattern come from and their shares: its place and one next to it; none in a pore."""
    other = tuple(np.clip([v + rng.integers(-1, 2) for v in place], 0, np.array(phase.shape) - 1))
    if phase[place] < 0:
        return []
    if phase[other] < 0 or (phase[other] == phase[place] and grain[other] == grain[place]):
        return [(place, 1.0)]
    share = rng.uniform(0, overlap) / 2
    return [(place, 1 - share), (other, share)]


def _diffracted_image(
    detector: int, crystals: list[tuple[float, np.ndarray, np.ndarray]], centre: np.ndarray, scale_invA_per_px: float
) -> np.ndarray:
    """Shares of the beam (ky, kx) in the spots of a pattern: of every crystal its share, places g (n, 2) and intensities (n,)."""
    image = np.zeros((detector, detector))
    for share, g, intensity in crystals:
        _add_spots(image, g / scale_invA_per_px + centre[::-1], share * intensity, _MODEL.spot_radius_px)
    return image


def _descan(shape: tuple[int, int], detector: int) -> np.ndarray:
    """Where the direct beam falls (ny, nx, 2) in px: near the middle of the camera, wandering with the scan."""
    v, u = np.meshgrid(*(np.linspace(-1, 1, n) for n in shape), indexing="ij")
    return (detector - 1) / 2 + np.stack([1.5 * v + 0.7 * u**2, -1.2 * u + 0.5 * u * v], axis=-1)


def _counted_pattern(
    rng: np.random.Generator, diffracted: np.ndarray, total: float, centre: np.ndarray, electrons: float, crystalline: bool
) -> np.ndarray:
    """Counts (ky, kx) of a pattern: its diffracted spots (``total`` of the beam), an inelastic background, and what is left of the beam."""
    yy, xx = np.indices(diffracted.shape)
    r = np.hypot(yy - centre[0], xx - centre[1])
    inelastic = 0.6 * np.exp(-r / 14) / (2 * np.pi * 14**2) + 0.4 * np.exp(-r / 30) / (2 * np.pi * 30**2)
    direct = np.exp(-0.5 * (r / 1.5) ** 2) / (2 * np.pi * 1.5**2)
    scattered = _MODEL.inelastic_share[0 if crystalline else 1]
    return rng.poisson(electrons * (diffracted + scattered * inelastic + max(_MODEL.least_direct, 1 - scattered - total) * direct))


def ped_scan(
    rng: np.random.Generator,
    crystals: list[Crystal],
    shape: tuple[int, int] = (32, 32),
    scene: PedScene = PedScene(),
    *,
    electrons: float = 8000,
    scale_invA_per_px: float = 0.02178,
    recording: PedRecording = PedRecording(),
) -> tuple[np.ndarray, dict[str, Any]]:
    """PED scan of a composite of a layered oxide and another solid, and its truth.

    Parameters
    ----------
    rng
        All that is random is drawn from it.
    crystals
        The layered oxide, spinel, rocksalt and the other solid in this order.
    shape
        Patterns (ny, nx) of the scan.
    scene
        The composite.
    electrons
        Of a pattern, the direct beam included.
    scale_invA_per_px
        1/Å of a pixel of the camera.
    recording
        The microscope and the camera.

    Returns
    -------
    patterns : ndarray of uint8
        (ny, nx, ky, kx); counts saturate at 255.
    truth : dict
        ``phase`` (ny, nx; -1 pore), ``grain``, ``rotation`` (ny, nx, 3, 3; sample to crystal), ``centre_px`` (ny, nx, 2), and the true
        ``rocksalt_fraction`` and ``spinel_fraction`` of the oxide's area.

    Notes
    -----
    The intensities are those of two-beam dynamical theory averaged over the precession cone and a spread of thickness, not those of a
    template bank; antisite disorder weakens the layered reflections of odd l; a pattern next to another grain or phase holds up to
    ``scene.overlap`` of it; the beam wanders over the camera with the scan (descan); the electrons of a pattern are counted (Poisson) with
    an inelastic background.
    """
    detector = recording.detector
    diffracting = _diffracting(crystals, detector / math.sqrt(2) * scale_invA_per_px, scene.antisite, recording)
    phase, grain = _simulate_phase_map(rng, shape, scene)
    rotation = _simulate_rotations(rng, phase, grain, crystals, scene.bend_deg)
    centre = _descan(shape, detector)
    hot = rng.integers(0, detector, (recording.hot_pixels, 2))
    patterns = np.zeros((*shape, detector, detector), np.uint8)
    for place in np.ndindex(shape):
        parts = _crystals_of_pattern(rng, phase, grain, place, scene.overlap)
        thickness = 10 * scene.thickness_nm * (1 + _MODEL.thickness_scatter * rng.standard_normal()) * np.array(_MODEL.thickness_spread)
        spots = [(share, *_precessed_spots(diffracting, phase[at], rotation[at], thickness)) for at, share in parts]
        total = sum(share * float(intensity.sum()) for share, _, intensity in spots)
        image = _diffracted_image(detector, spots, centre[place], scale_invA_per_px)
        counts = _counted_pattern(rng, image, total, centre[place], electrons, bool(parts))
        counts[hot[:, 0], hot[:, 1]] = rng.integers(30, 120, recording.hot_pixels)
        patterns[place] = np.minimum(counts, 255)
    oxide = np.isin(phase, (0, 1, 2))
    truth = {"phase": phase, "grain": grain, "rotation": rotation, "centre_px": centre}
    fractions = {"rocksalt_fraction": float((phase[oxide] == 2).mean()), "spinel_fraction": float((phase[oxide] == 1).mean())}
    return patterns, truth | fractions
