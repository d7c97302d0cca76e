"""A thin crystal in a thick one: it is found by the few spots of its own, and its share of the counts is right."""

import math
from dataclasses import replace

import numpy as np
import pytest
from metals import SCALE_INVA_PER_PX, SILVER, TITANIUM, TUNGSTEN
from scipy.spatial.transform import Rotation

import emphase
from emphase.crystals import reflections
from emphase.simulate import ped
from helpers import BANK_CACHE

SHAPE = (9, 12)
PLATE = (np.abs(np.arange(12) - 6) < 3) & (np.abs(np.arange(9) - 4) < 3)[:, None]
CRYSTALS = [SILVER, TITANIUM, TUNGSTEN]
CENTRE_PX = np.full((*SHAPE, 2), 71.5)
CALIBRATION = emphase.ped.Calibration(SCALE_INVA_PER_PX, np.eye(2), CENTRE_PX, np.zeros((144, 144), bool), 1.3)


def plate_in_silver(seed: int, share: float, electrons: float) -> tuple[np.ndarray, np.ndarray]:
    """Patterns of one grain of silver with a plate of titanium in it, and the true share of its counts: about ``share``."""
    rng = np.random.default_rng(seed)
    reflected = [reflections(crystal, 144 / math.sqrt(2) * SCALE_INVA_PER_PX, 1e-3) for crystal in CRYSTALS]
    diffracting = ped._Diffracting(reflected, [np.sqrt(r.intensity) for r in reflected], 0.5, 0.02508)
    grain, plate = Rotation.random(2, rng=rng).as_matrix()
    bend = lambda rotation: rotation @ Rotation.from_rotvec(rng.normal(0, math.radians(0.15), 3)).as_matrix()
    thicknesses_A = 600 * np.array([0.9, 1.0, 1.1])
    counts_of = [ped._precessed_spots(diffracting, k, r, thicknesses_A)[1].sum() for k, r in enumerate((grain, plate))]
    weight = share / (1 - share) * counts_of[0] / counts_of[1]
    patterns, true = np.zeros((*SHAPE, 144, 144), np.uint32), np.zeros(SHAPE)
    for place in np.ndindex(SHAPE):
        parts = [(1.0, *ped._precessed_spots(diffracting, 0, bend(grain), thicknesses_A * rng.uniform(0.9, 1.1)))]
        if PLATE[place] and share:
            parts.append((weight, *ped._precessed_spots(diffracting, 1, bend(plate), thicknesses_A)))
        counts = [w * intensity[np.linalg.norm(g, axis=1) < 1.5].sum() for w, g, intensity in parts]
        true[place] = counts[1] / sum(counts) if len(counts) > 1 else 0
        image = ped._diffracted_image(144, parts, CENTRE_PX[place], SCALE_INVA_PER_PX)
        patterns[place] = ped._counted_pattern(rng, image, sum(counts), CENTRE_PX[place], electrons, True)
    return patterns, true


def mapped(patterns: np.ndarray) -> dict[str, np.ndarray]:
    optics = {"max_g_invA": 1.5, "beam_energy_keV": 200, "precession_deg": 0.5, "excitation_width_invA": 0.002}
    banks = [emphase.ped.template_bank(crystal, cache=BANK_CACHE, **optics) for crystal in CRYSTALS]
    return emphase.ped.map_scan(patterns, CALIBRATION, banks)[0]


@pytest.mark.parametrize("seed, share", [(1, 0.03), (2, 0.015)])
def test_a_plate_of_a_few_per_cent_is_found_with_its_share(seed, share):
    patterns, true = plate_in_silver(seed, share, 5e5)
    maps = mapped(patterns)
    assert (maps["phase_id"] == 0).all() and maps["decided"].mean() > 0.95
    second = maps["second_phase_id"]
    assert (second[PLATE] == 1).mean() > 0.85
    assert (second != 2).all() and (second[~PLATE] < 0).mean() > 0.95
    found = maps["second_share"][PLATE & (second == 1)]
    ratio = found / true[PLATE & (second == 1)]
    assert 1 / 1.5 < found.mean() / true[PLATE & (second == 1)].mean() < 1.5
    assert (np.abs(np.log(ratio)) < math.log(1.5)).mean() > 0.7


def test_without_a_plate_none_is_found():
    patterns, _ = plate_in_silver(3, 0.0, 5e5)
    maps = mapped(patterns)
    assert (maps["phase_id"] == 0).all() and (maps["second_phase_id"] < 0).mean() > 0.98


@pytest.mark.parametrize(("fall_px", "counts", "stop_px"), [(9, 300, 0), (9, 300, 10), (14, 300, 0), (20, 300, 0), (20, 10_000, 0)])
def test_spots_on_a_steep_background_are_found(fall_px, counts, stop_px):
    """The halo falls by more over the window of a maximum than the spots rise; none is found where there is none, nor a cosmic ray."""
    y, x = np.indices((144, 144))
    radius = np.hypot(y - 71.5, x - 71.5)
    halo = counts * np.exp((18 - radius) / fall_px)
    camera = replace(CALIBRATION, mask=radius < stop_px)
    angles = np.arange(12) * math.pi / 6 + 0.2
    places = 71.5 + 18 * np.stack([np.sin(angles), np.cos(angles)], axis=-1)
    spots = sum(np.exp(-((y - a) ** 2 + (x - b) ** 2) / (2 * 1.3**2)) for a, b in places)
    found, false, rays = 0, 0, 0
    for seed in range(5):
        for height in (0.2 * counts, 0.0):
            image = np.random.default_rng(seed).poisson(halo + height * spots)[None]
            rays += emphase.ped.spots.cosmic_rays(image, np.array([[71.5, 71.5]]), camera).sum()
            table = emphase.ped.find_spots(image, np.array([[71.5, 71.5]]), camera).table[0]
            clear = table[table[:, 4] > 8, :2]
            near = np.hypot(*(clear[:, None] - places[None]).transpose(2, 0, 1)).min(axis=1) < 1.5
            found += near.sum()
            false += (~near).sum()
    assert found > 0.8 * 60 and false <= 10 and rays <= 5
