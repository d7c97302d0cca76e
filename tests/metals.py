"""Metals and scans of their precession patterns by two-beam theory, for tests of what is not in the study."""

import math

import numpy as np
from scipy.spatial.transform import Rotation

from emphase.crystals import Crystal, reflections
from emphase.simulate import ped

SCALE_INVA_PER_PX = 0.02178


def fcc(name, a):
    return Crystal(name, a * np.eye(3), np.array([[0, 0, 0], [0, 0.5, 0.5], [0.5, 0, 0.5], [0.5, 0.5, 0]]), (name,) * 4, np.ones(4), 225)


def bcc(name, a):
    return Crystal(name, a * np.eye(3), np.array([[0, 0, 0], [0.5, 0.5, 0.5]]), (name,) * 2, np.ones(2), 229)


def hcp(name, a, c):
    lattice = np.array([[a, 0, 0], [-a / 2, a * math.sqrt(3) / 2, 0], [0, 0, c]])
    return Crystal(name, lattice, np.array([[1 / 3, 2 / 3, 0.25], [2 / 3, 1 / 3, 0.75]]), (name,) * 2, np.ones(2), 194)


SILVER, COPPER, LEAD = fcc("Ag", 4.086), fcc("Cu", 3.615), fcc("Pb", 4.951)
TUNGSTEN, IRON = bcc("W", 3.165), bcc("Fe", 2.866)
TITANIUM, MAGNESIUM = hcp("Ti", 2.951, 4.684), hcp("Mg", 3.209, 5.211)


def scan_of(crystal, seed, shape=(10, 10), grains=8, electrons=8000, thickness_nm=60, precession_deg=0.5):
    """Patterns (ny, nx, 144, 144) of grains of one crystal, which lie anyhow, slightly bent and of varied thickness."""
    rng, recording = np.random.default_rng(seed), ped.PedRecording(precession_deg=precession_deg, hot_pixels=0)
    reflected = [reflections(crystal, 144 / math.sqrt(2) * SCALE_INVA_PER_PX, 1e-3)]
    diffracting = ped._Diffracting(reflected, [np.sqrt(r.intensity) for r in reflected], recording.precession_deg, 0.02508)
    seeds, of_grain = rng.uniform(0, 1, (grains, 2)) * shape, Rotation.random(grains, rng=rng).as_matrix()
    centre = ped._descan(shape, recording.detector)
    patterns = np.zeros((*shape, recording.detector, recording.detector), np.uint8)
    for place in np.ndindex(shape):
        nearest = np.argmin(((np.array(place) - seeds) ** 2).sum(axis=1))
        rotation = of_grain[nearest] @ Rotation.from_rotvec(rng.normal(0, math.radians(0.2), 3)).as_matrix()
        thicknesses_A = 10 * thickness_nm * (1 + 0.15 * rng.standard_normal()) * np.array([0.9, 1.0, 1.1])
        g, intensity = ped._precessed_spots(diffracting, 0, rotation, thicknesses_A)
        image = ped._diffracted_image(recording.detector, [(1.0, g, intensity)], centre[place], SCALE_INVA_PER_PX)
        counts = ped._counted_pattern(rng, image, intensity.sum(), centre[place], electrons, True)
        patterns[place] = np.minimum(counts, 255)
    return patterns
