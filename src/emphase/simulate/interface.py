"""Bright-field lattice images of an interface of two crystals with a layer between them.

A phase object of three crystals, each in a zone axis with a small mistilt, strain and an amorphous film over all, goes through the transfer
of a corrected microscope at 200 keV (Kirkland, *Advanced Computing in Electron Microscopy*, 2010, chapters 3 and 5), so that spots differ
from kinematical ones in strength and sums of reflections appear. The projected potential of a crystal is the sum of its reflections in the
zone, each damped by its excitation error at the thickness. Cubic phases may grow on the left crystal with its lattice; another layer has
a zone axis and a rotation of its kind.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from ..crystals import Crystal, electron_wavelength_A, reflections, structure_factors, view_along
from .noise import _smooth_noise

#: Cubic phases that grow on a layered oxide as `_topotactic_view` says.
_TOPOTACTIC = ("rocksalt", "spinel", "spinel_m3o4")

ZoneAxis = tuple[int, int, int]


@dataclass(frozen=True)
class InterfaceScene:
    """What meets at a simulated interface."""

    #: Names of the crystals left and right.
    sides: tuple[str, str]
    #: What the layer between them is: the name of a crystal, "amorphous" or "none".
    phase: str = "rocksalt"
    #: Mean width of the layer, nm.
    layer_nm: float = 4.0
    #: Zone axes of left, layer and right; that of the layer is not used where it grows on the left crystal.
    zones: tuple[ZoneAxis, ZoneAxis, ZoneAxis] = ((1, 0, 0), (1, 1, 0), (1, 1, 1))
    #: Height of the waves of either edge of the layer (standard deviation), nm.
    roughness_nm: float = 0.3


@dataclass(frozen=True)
class _Model:
    """What is the same in every image."""

    max_g_invA: float = 0.95  # reflections of a projected potential: finer than the transfer lets through
    least_intensity: float = 3e-4  # of these reflections, of the strongest
    debye_waller_A2: float = 0.7  # B of every atom
    strain_A: float = 0.06  # displacement of places (standard deviation), smooth over 4 nm
    film_rad: float = 0.10  # phase of the amorphous film over all
    amorphous_rad: float = 0.15  # of the film's pattern in an amorphous layer, on top
    uneven_thickness: float = 0.15  # standard deviation of the logarithm, smooth over 5 nm
    thickness_A: tuple[float, float] = (25.0, 50.0)  # of a crystal: thin, where lattice images are taken
    tilt_rad: float = 0.002  # mistilt from the zone axis (standard deviation of either component)
    defocus_A: tuple[float, float] = (-110.0, -60.0)
    cs_A: float = 1e5  # spherical aberration left by the corrector, 10 µm
    focal_spread_A: tuple[float, float] = (30.0, 45.0)
    stobbs_factor: float = 0.35  # images are flatter than theory by about three (Hytch & Stobbs, Ultramicroscopy 53 (1994) 191)


_MODEL = _Model()


class _Part(NamedTuple):
    """A region of the image: its name, the view (3, 3) along its zone axis and its rotation in degrees; None without a crystal."""

    name: str
    view: np.ndarray | None
    rotation_deg: float


class _Plate(NamedTuple):
    """How a crystal lies in the beam: view (3, 3) along its zone axis, rotation in degrees, thickness in Å, mistilt (2,) in rad."""

    view: np.ndarray
    rotation_deg: float
    thickness_A: float
    tilt_rad: np.ndarray


def _topotactic_view(view: np.ndarray) -> np.ndarray:
    """The same view for a cubic crystal grown on the hexagonal one: [001]hex || [111]cubic, [100]hex || [1-10]cubic."""
    e1, e3 = np.array([1.0, -1.0, 0.0]) / math.sqrt(2), np.array([1.0, 1.0, 1.0]) / math.sqrt(3)
    return view @ np.array([e1, np.cross(e3, e1), e3])


def _projected_phase(crystal: Crystal, plate: _Plate, positions_A: np.ndarray) -> np.ndarray:
    """Phase shift (rad) of 200 keV electrons by a crystal, from the reflections of its zone; positions (y, x, 2) in Å."""
    found = reflections(crystal, _MODEL.max_g_invA, _MODEL.least_intensity)
    in_zone = np.abs(found.g @ plate.view[2]) < 1e-4
    amplitude = structure_factors(crystal, found.hkl[in_zone], _MODEL.debye_waller_A2) / crystal.volume
    c, s = math.cos(math.radians(plate.rotation_deg)), math.sin(math.radians(plate.rotation_deg))
    g = found.g[in_zone] @ plate.view[:2].T @ np.array([[c, s], [-s, c]])
    wavelength = electron_wavelength_A(200)
    error = 0.5 * wavelength * np.sum(g**2, axis=1) + g @ plate.tilt_rad
    # 1.391: relativistic mass of 200 keV electrons
    amplitude = amplitude * np.sinc(error * plate.thickness_A) * 1.391 * wavelength * plate.thickness_A
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


def _bright_field(phase: np.ndarray, pixel_A: float, defocus_A: float, focal_spread_A: float) -> np.ndarray:
    """Intensity of a bright-field image of a phase object at 200 keV, mean 1."""
    wavelength = electron_wavelength_A(200)
    fy, fx = (np.fft.fftfreq(n, pixel_A).astype(np.float32) for n in phase.shape)
    g2 = fy[:, None] ** 2 + fx[None, :] ** 2
    chi = np.pi * wavelength * defocus_A * g2 + 0.5 * np.pi * _MODEL.cs_A * wavelength**3 * g2**2
    damping = np.exp(-0.5 * (np.pi * wavelength * focal_spread_A * g2) ** 2)
    wave = np.fft.ifft2(np.fft.fft2(np.exp(1j * phase)) * np.exp(-1j * chi) * damping)
    intensity = np.abs(wave) ** 2
    return intensity / intensity.mean()


def _interface_parts(rng: np.random.Generator, crystals: Mapping[str, Crystal], scene: InterfaceScene) -> list[_Part]:
    """The left side, the layer and the right side."""
    left_zone, layer_zone, right_zone = scene.zones
    left_view = view_along(crystals[scene.sides[0]], left_zone)
    left_rotation, right_rotation = rng.uniform(0, 360, 2)
    layer = _Part(scene.phase, None, 0.0)
    if scene.phase in _TOPOTACTIC:
        layer = _Part(scene.phase, _topotactic_view(left_view), left_rotation)
    elif scene.phase not in ("none", "amorphous"):
        layer = _Part(scene.phase, view_along(crystals[scene.phase], layer_zone), rng.uniform(0, 360))
    right_view = view_along(crystals[scene.sides[1]], right_zone)
    return [_Part(scene.sides[0], left_view, left_rotation), layer, _Part(scene.sides[1], right_view, right_rotation)]


def _phase_object(
    rng: np.random.Generator,
    crystals: Mapping[str, Crystal],
    scene: InterfaceScene,
    region: np.ndarray,
    true_nm: float,
    amorphous: float,
) -> np.ndarray:
    """Phase shift (y, x) in rad of the crystals, each in its region, under an amorphous film."""
    shape = region.shape
    strain = np.stack([_smooth_noise(rng, shape, 4.0 / true_nm) for _ in range(2)], axis=-1) * _MODEL.strain_A
    positions = np.indices(shape).transpose(1, 2, 0) * (10 * true_nm) + strain
    film = _smooth_noise(rng, shape, 0.045 / true_nm) - 0.7 * _smooth_noise(rng, shape, 0.08 / true_nm)
    phase = (_MODEL.film_rad * amorphous * film).astype(np.float32)
    parts = _interface_parts(rng, crystals, scene)
    uneven = 60 * np.exp(_MODEL.uneven_thickness * _smooth_noise(rng, shape, 5.0 / true_nm)).astype(np.float32) / 60
    for i, part in enumerate(parts):
        if part.view is None or not np.any(region == i):
            phase += np.where(region == i, _MODEL.amorphous_rad * film, 0).astype(np.float32)
            continue
        tilt = rng.normal(0, _MODEL.tilt_rad, 2)
        plate = _Plate(part.view, part.rotation_deg, rng.uniform(*_MODEL.thickness_A), tilt)
        phase += np.where(region == i, uneven * _projected_phase(crystals[part.name], plate, positions), 0)
    return phase


def interface_image(
    rng: np.random.Generator,
    crystals: Mapping[str, Crystal],
    scene: InterfaceScene,
    shape: tuple[int, int] = (1024, 1024),
    pixel_size_nm: float = 0.02,
    *,
    counts: float = 150.0,
    pixel_size_error: float = 0.0,
    amorphous: float = 1.0,
) -> tuple[np.ndarray, dict]:
    """Bright-field lattice image of an interface of two crystals with a layer between them, and its truth.

    Parameters
    ----------
    rng
        All that is random is drawn from it.
    crystals
        By name, all that the image is to show.
    scene
        What meets at the interface. Rocksalt and spinel grow topotactically on the left crystal, a layered oxide: [001]hex || [111]cubic,
        [100]hex || [1-10]cubic; another layer is in the second of ``scene.zones`` with a random rotation.
    shape
        Of the image, (y, x).
    pixel_size_nm
        The stated pixel size.
    counts
        Electrons a pixel.
    pixel_size_error
        The true pixel is larger than ``pixel_size_nm`` by this share.
    amorphous
        Strength of the amorphous film over all, 1 being 0.1 rad.

    Returns
    -------
    image : ndarray of uint16
        Counts (y, x).
    truth : dict
        ``phases`` (names), ``phase_map`` (y, x) their indices, ``interface_phase``, ``interface_width_nm``, ``pixel_size_nm`` (true).
    """
    true_nm = pixel_size_nm * (1 + pixel_size_error)
    none = scene.phase == "none"
    region, width = _interface_regions(rng, shape, true_nm, 0.0 if none else scene.layer_nm, scene.roughness_nm)
    phase = _phase_object(rng, crystals, scene, region, true_nm, amorphous)
    intensity = _bright_field(phase, 10 * true_nm, rng.uniform(*_MODEL.defocus_A), rng.uniform(*_MODEL.focal_spread_A))
    intensity = 1 + _MODEL.stobbs_factor * (intensity - 1)
    image = rng.poisson(counts * intensity).clip(0, 65535).astype(np.uint16)
    return image, {
        "phases": [scene.sides[0], scene.phase, scene.sides[1]],
        "phase_map": region,
        "interface_phase": scene.phase,
        "interface_width_nm": 0.0 if none else width,
        "pixel_size_nm": true_nm,
    }
