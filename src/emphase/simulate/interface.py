"""TODO."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from ..crystals import Crystal, _view_along, electron_wavelength_A, reflections, structure_factors
from .noise import _smooth_noise

#: Cubic phases that grow on a layered oxide as `_topotactic_view` says.
_TOPOTACTIC = ("rocksalt", "spinel", "spinel_m3o4")


def _topotactic_view(view: np.ndarray) -> np.ndarray:
    """The same view for a cubic crystal grown on the hexagonal one: [001]hex || [111]cubic, [100]hex || [1-10]cubic."""
    e1, e3 = np.array([1.0, -1.0, 0.0]) / math.sqrt(2), np.array([1.0, 1.0, 1.0]) / math.sqrt(3)
    return view @ np.array([e1, np.cross(e3, e1), e3])


def _projected_phase(
    crystal: Crystal, view: np.ndarray, rotation_deg: float, positions_A: np.ndarray, thickness_A: float, tilt: np.ndarray
) -> np.ndarray:
    """Phase shift (rad) of 200 keV electrons by a crystal, from the reflections of its zone; positions (y, x, 2) in Å."""
    found = reflections(crystal, 0.95, 3e-4)
    in_zone = np.abs(found.g @ view[2]) < 1e-4
    amplitude = structure_factors(crystal, found.hkl[in_zone], 0.7) / crystal.volume
    c, s = math.cos(math.radians(rotation_deg)), math.sin(math.radians(rotation_deg))
    g = found.g[in_zone] @ view[:2].T @ np.array([[c, s], [-s, c]])
    wavelength = electron_wavelength_A(200)
    error = 0.5 * wavelength * np.sum(g**2, axis=1) + g @ tilt
    amplitude = amplitude * np.sinc(error * thickness_A) * 1.391 * wavelength * thickness_A
    phase = np.zeros(positions_A.shape[:2], dtype=np.float32)
    x, y = positions_A[..., 1].astype(np.float32), positions_A[..., 0].astype(np.float32)
    upper = (g[:, 1] > 1e-9) | ((np.abs(g[:, 1]) <= 1e-9) & (g[:, 0] > 0))
    for (gx, gy), a in zip(g[upper].astype(np.float32), amplitude[upper], strict=True):
        phase += np.float32(2 * abs(a)) * np.cos(np.float32(2 * np.pi) * (gx * x + gy * y) + np.float32(np.angle(a)))
    return phase


def _interface_regions(
    rng: np.random.Generator, shape: tuple[int, int], pixel_size_nm: float, layer_nm: float, roughness_nm: float
) -> tuple[np.ndarray, float]:
    """0 left, 1 layer, 2 right of a rough interface; and the layer's mean width in nm."""
    y, x = np.indices(shape, dtype=np.float32)
    angle = rng.uniform(-0.35, 0.35)
    across = ((x - shape[1] / 2) * math.cos(angle) + (y - shape[0] / 2) * math.sin(angle)) * pixel_size_nm
    along = -(x - shape[1] / 2) * math.sin(angle) + (y - shape[0] / 2) * math.cos(angle)
    index = np.clip(np.round(along + sum(shape) / 2).astype(int), 0, sum(shape) - 1)
    middle = rng.uniform(-0.08, 0.08) * shape[1] * pixel_size_nm
    edges = [_smooth_noise(rng, (sum(shape),), 2.0 / pixel_size_nm) * roughness_nm for _ in range(2)]
    left = middle - layer_nm / 2 + edges[0]
    right = np.maximum(left, middle + layer_nm / 2 + edges[1]) if layer_nm > 0 else left
    region = (across > left[index]).astype(np.uint8) + (across > right[index]).astype(np.uint8)
    inside = index[(region == 1) | (np.abs(across) < 1)]
    return region, float(np.mean((right - left)[inside]))


def _bright_field(phase: np.ndarray, pixel_A: float, defocus_A: float, cs_A: float, focal_spread_A: float) -> np.ndarray:
    """Intensity of a bright-field image of a phase object at 200 keV, mean 1."""
    wavelength = electron_wavelength_A(200)
    fy, fx = (np.fft.fftfreq(n, pixel_A).astype(np.float32) for n in phase.shape)
    g2 = fy[:, None] ** 2 + fx[None, :] ** 2
    chi = np.pi * wavelength * defocus_A * g2 + 0.5 * np.pi * cs_A * wavelength**3 * g2**2
    damping = np.exp(-0.5 * (np.pi * wavelength * focal_spread_A * g2) ** 2)
    wave = np.fft.ifft2(np.fft.fft2(np.exp(1j * phase)) * np.exp(-1j * chi) * damping)
    intensity = np.abs(wave) ** 2
    return intensity / intensity.mean()


def _interface_views(
    rng: np.random.Generator,
    crystals: Mapping[str, Crystal],
    sides: tuple[str, str],
    interface_phase: str,
    zones: tuple[tuple[int, int, int], tuple[int, int, int], tuple[int, int, int]],
) -> list[tuple[str, Any, Any]]:
    """Name, view along its zone axis and rotation (degrees) of the left side, the layer and the right side; None without a crystal."""
    left_zone, layer_zone, right_zone = zones
    left_view = _view_along(crystals[sides[0]], left_zone)
    left_rotation, right_rotation = rng.uniform(0, 360, 2)
    layer: tuple[Any, Any] = (None, None)
    if interface_phase in _TOPOTACTIC:
        layer = (_topotactic_view(left_view), left_rotation)
    elif interface_phase not in ("none", "amorphous"):
        layer = (_view_along(crystals[interface_phase], layer_zone), rng.uniform(0, 360))
    right_view = _view_along(crystals[sides[1]], right_zone)
    return [(sides[0], left_view, left_rotation), (interface_phase, *layer), (sides[1], right_view, right_rotation)]


def interface_image(
    rng: np.random.Generator,
    crystals: Mapping[str, Crystal],
    shape: tuple[int, int] = (1024, 1024),
    pixel_size_nm: float = 0.02,
    layer_nm: float = 4.0,
    interface_phase: str = "rocksalt",
    sides: tuple[str, str] = ("layered", "llzo"),
    zones: tuple[tuple[int, int, int], tuple[int, int, int], tuple[int, int, int]] = ((1, 0, 0), (1, 1, 0), (1, 1, 1)),
    counts: float = 150.0,
    pixel_size_error: float = 0.0,
    roughness_nm: float = 0.3,
    amorphous: float = 1.0,
) -> tuple[np.ndarray, dict]:
    """A bright-field lattice image of an interface of a layered oxide (left) and another crystal (right).

    A phase object of three crystals, each in a zone axis with a small mistilt, strain and an
    amorphous film over all, goes through the transfer of a corrected microscope at 200 keV,
    so that spots differ from kinematical ones in strength and sums of reflections appear.

    Parameters
    ----------
    crystals
        By name, all that the image is to show.
    layer_nm, interface_phase
        Mean width and phase of the layer between them: a name among ``crystals``, "amorphous" or
        "none". Rocksalt and spinel grow topotactically on the layered crystal; for others
        the second of ``zones`` is the zone axis and the rotation is random.
    sides, zones
        Names of the crystals left and right; zone axes of left, layer and right.
    counts
        Electrons a pixel.
    pixel_size_error
        The true pixel is larger than ``pixel_size_nm`` by this share.
    amorphous
        Strength of the amorphous film.

    Returns
    -------
    image (y, x) uint16, and the truth: ``phases`` (names), ``phase_map`` (y, x) their indices,
    ``interface_phase``, ``interface_width_nm``, ``pixel_size_nm`` (true).
    """
    true_nm = pixel_size_nm * (1 + pixel_size_error)
    none = interface_phase == "none"
    region, width = _interface_regions(rng, shape, true_nm, 0.0 if none else layer_nm, roughness_nm)
    strain = np.stack([_smooth_noise(rng, shape, 4.0 / true_nm) for _ in range(2)], axis=-1) * 0.06
    positions = np.indices(shape).transpose(1, 2, 0) * (10 * true_nm) + strain
    film = _smooth_noise(rng, shape, 0.045 / true_nm) - 0.7 * _smooth_noise(rng, shape, 0.08 / true_nm)
    phase = (0.10 * amorphous * film).astype(np.float32)
    parts = _interface_views(rng, crystals, sides, interface_phase, zones)
    thickness = 60 * np.exp(0.15 * _smooth_noise(rng, shape, 5.0 / true_nm)).astype(np.float32) / 60
    for i, (name, view, rotation) in enumerate(parts):
        if view is None or not np.any(region == i):
            phase += np.where(region == i, 0.15 * film, 0).astype(np.float32)
            continue
        tilt = rng.normal(0, 0.002, 2)
        phase += np.where(
            region == i, thickness * _projected_phase(crystals[name], view, rotation, positions, rng.uniform(25, 50), tilt), 0
        )
    intensity = _bright_field(phase, 10 * true_nm, rng.uniform(-110, -60), 1e5, rng.uniform(30, 45))
    intensity = 1 + 0.35 * (intensity - 1)  # images are flatter than theory: Stobbs' factor, about a third
    image = rng.poisson(counts * intensity).clip(0, 65535).astype(np.uint16)
    truth = {
        "phases": [sides[0], interface_phase, sides[1]],
        "phase_map": region,
        "interface_phase": interface_phase,
        "interface_width_nm": 0.0 if none else width,
        "pixel_size_nm": true_nm,
    }
    return image, truth
