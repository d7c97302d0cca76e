"""TODO."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from ..crystals import Crystal, Reflections, electron_wavelength_A, reflections
from ..ped.families import orientation_relations
from ..ped.templates import excitation_error


def _two_beam_intensity(structure_factor_invA2: np.ndarray, s: np.ndarray, thickness_A: float, wavelength_A: float) -> np.ndarray:
    """Diffracted share of the beam in the two-beam dynamical theory, for F/V (1/Å²) and excitation errors s (1/Å)."""
    inverse_extinction = 1.39 * wavelength_A * structure_factor_invA2 / np.pi  # 1.39: relativistic mass at 200 keV
    effective = np.hypot(s, inverse_extinction)
    return (inverse_extinction * np.sin(np.pi * thickness_A * effective) / np.maximum(effective, 1e-12)) ** 2


def _precessed_spots(
    reflected: Reflections,
    amplitude: np.ndarray,
    rotation: np.ndarray,
    thicknesses_A: np.ndarray,
    precession_deg: float,
    wavelength_A: float,
) -> tuple[np.ndarray, np.ndarray]:
    """Positions g (n, 2) (x, y) and intensities (n,) of a precessed pattern, averaged over the cone and a spread of thickness."""
    g = reflected.g @ rotation
    length = np.linalg.norm(g, axis=1)
    cone = math.radians(precession_deg)
    s = excitation_error(g, wavelength_A)
    near = np.abs(s) < length * cone + 0.012
    g, s, amplitude = g[near], s[near], amplitude[near]
    turn = np.arange(16) * 2 * np.pi / 16
    tilted = s[:, None] - cone * (g[:, :1] * np.cos(turn) + g[:, 1:2] * np.sin(turn))
    intensity = np.mean([_two_beam_intensity(amplitude[:, None], tilted, t, wavelength_A).mean(axis=1) for t in thicknesses_A], axis=0)
    bright = intensity > 5e-5
    return g[bright, :2], intensity[bright]


def _simulate_phase_map(
    rng: np.random.Generator, shape: tuple[int, int], rocksalt_fraction: float, spinel_fraction: float, n_grains: int
) -> tuple[np.ndarray, np.ndarray]:
    """Phase (0 layered, 1 spinel, 2 rocksalt, 3 another solid, -1 pore) and grain of every pattern of a composite.

    Rocksalt, and under it spinel, grow inwards from the oxide's surfaces (the other solid, pores) and less from its
    grain boundaries, with an uneven front, until they take their share of the oxide's area.
    """
    from scipy import ndimage

    nx = shape[1]

    def smooth(width: float) -> np.ndarray:
        noise = ndimage.gaussian_filter(rng.standard_normal(shape), width * min(shape), mode="reflect")
        return noise / noise.std()

    field = smooth(0.15) + np.linspace(-1.2, 1.2, nx)
    other = field > np.quantile(field, 0.75)
    holes = smooth(0.06)
    pore = holes > np.quantile(holes, 0.93)
    seeds = rng.uniform(0, 1, (n_grains, 2)) * shape
    yy, xx = np.indices(shape)
    grain = np.argmin((yy[..., None] - seeds[:, 0]) ** 2 + (xx[..., None] - seeds[:, 1]) ** 2, axis=-1)
    grain[other] += n_grains
    boundary = np.zeros(shape, bool)
    boundary[:-1] |= grain[:-1] != grain[1:]
    boundary[:, :-1] |= grain[:, :-1] != grain[:, 1:]
    oxide = ~(other | pore)
    depth = np.minimum(ndimage.distance_transform_edt(oxide), 2 + 1.5 * ndimage.distance_transform_edt(~boundary))
    depth = np.where(oxide, depth * np.exp(0.4 * smooth(0.08)), np.inf)
    phase = np.where(pore, -1, np.where(other, 3, 0))
    order = np.argsort(depth, axis=None, kind="stable")
    n_rocksalt, n_spinel = round(rocksalt_fraction * oxide.sum()), round(spinel_fraction * oxide.sum())
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
    is_free = rng.random(n) < 0.15
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
    """Where the crystals of a pattern come from and their shares: its own place and one next to it; none in a pore."""
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
        _add_spots(image, g / scale_invA_per_px + centre[::-1], share * intensity, 1.8)
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
    scattered = 0.4 if crystalline else 0.25
    return rng.poisson(electrons * (diffracted + scattered * inelastic + max(0.2, 1 - scattered - total) * direct))


def ped_scan(
    rng: np.random.Generator,
    crystals: list[Crystal],
    shape: tuple[int, int] = (32, 32),
    *,
    rocksalt_fraction: float = 0.15,
    spinel_fraction: float = 0.05,
    electrons: float = 8000,
    detector: int = 144,
    scale_invA_per_px: float = 0.02178,
    precession_deg: float = 0.5,
    beam_energy_keV: float = 200,
    thickness_nm: float = 60,
    antisite: float = 0.05,
    overlap: float = 0.5,
    bend_deg: float = 0.3,
    hot_pixels: int = 4,
    n_grains: int = 10,
) -> tuple[np.ndarray, dict[str, Any]]:
    """A PED scan of a composite of a layered oxide and another solid, with its truth.

    ``crystals`` are the layered oxide, spinel, rocksalt and the other solid in this order. The intensities are those
    of two-beam dynamical theory averaged over the precession cone and a spread of thickness,
    not those of a template bank; antisite disorder weakens the layered reflections of odd l;
    a pattern next to another grain or phase holds up to ``overlap`` of it; the beam wanders
    over the camera with the scan (descan); ``electrons`` a pattern are counted (Poisson) with
    an inelastic background, saturating at 255.

    Returns
    -------
    Patterns (ny, nx, ky, kx) uint8 and a dict with ``phase`` (ny, nx; -1 pore), ``grain``,
    ``rotation`` (ny, nx, 3, 3; sample to crystal), ``centre_px`` (ny, nx, 2), and the true
    ``rocksalt_fraction`` and ``spinel_fraction`` of the oxide's area.
    """
    wavelength = electron_wavelength_A(beam_energy_keV)
    corner = detector / math.sqrt(2) * scale_invA_per_px
    reflected = [reflections(c, corner, 1e-3) for c in crystals]
    amplitudes = [np.sqrt(r.intensity) for r in reflected]
    amplitudes[0] = amplitudes[0] * np.where(reflected[0].hkl[:, 2] % 2 != 0, 1 - 2 * antisite, 1.0)
    phase, grain = _simulate_phase_map(rng, shape, rocksalt_fraction, spinel_fraction, n_grains)
    rotation = _simulate_rotations(rng, phase, grain, crystals, bend_deg)
    centre = _descan(shape, detector)
    hot = rng.integers(0, detector, (hot_pixels, 2))
    patterns = np.zeros((*shape, detector, detector), np.uint8)
    for place in np.ndindex(shape):
        parts = _crystals_of_pattern(rng, phase, grain, place, overlap)
        thickness = 10 * thickness_nm * (1 + 0.15 * rng.standard_normal()) * np.array([0.9, 1, 1.1])
        spots = []
        for where, share in parts:
            p = phase[where]
            found = _precessed_spots(reflected[p], amplitudes[p], rotation[where], thickness, precession_deg, wavelength)
            spots.append((share, *found))
        total = sum(share * float(intensity.sum()) for share, _, intensity in spots)
        image = _diffracted_image(detector, spots, centre[place], scale_invA_per_px)
        counts = _counted_pattern(rng, image, total, centre[place], electrons, bool(parts))
        counts[hot[:, 0], hot[:, 1]] = rng.integers(30, 120, hot_pixels)
        patterns[place] = np.minimum(counts, 255)
    oxide = np.isin(phase, (0, 1, 2))
    truth = {"phase": phase, "grain": grain, "rotation": rotation, "centre_px": centre}
    fractions = {"rocksalt_fraction": float((phase[oxide] == 2).mean()), "spinel_fraction": float((phase[oxide] == 1).mean())}
    return patterns, truth | fractions
