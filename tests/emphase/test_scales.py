"""The scale of a camera where none is given: found where the patterns show it, and said where they do not."""

import metals
import numpy as np
import pytest

import emphase
import helpers

PHASES = ("layered", "spinel", "rocksalt", "llzo")
UNKNOWN = emphase.ped.Optics(None, 200.0, 0.5)


def test_four_phases_show_the_scale_of_a_camera():
    crystals = [helpers.phase_crystal(p) for p in PHASES]
    scene = emphase.simulate.PedScene(0.2, 0.1, n_grains=6)
    scale_invA_per_px = 0.0262
    patterns, _ = emphase.simulate.ped_scan(
        np.random.default_rng(3), crystals, (12, 12), scene, electrons=6000, scale_invA_per_px=scale_invA_per_px
    )
    scan = emphase.ped.calibrate(patterns, crystals, UNKNOWN, n_patterns=48)
    assert scan.trusted
    assert scan.calibration.scale_invA_per_px == pytest.approx(scale_invA_per_px, rel=1e-3)
    assert scan.found_scale.next_evidence_share < 0.5
    assert abs(np.log(scan.found_scale.next_scale_invA_per_px / scan.found_scale.scale_invA_per_px)) > 0.05


def test_one_metal_is_found_and_not_trusted():
    """Silver at its scale, and copper at another, have the same patterns."""
    patterns = metals.scan_of(metals.SILVER, seed=2)
    scales = {}
    for metal in (metals.SILVER, metals.COPPER):
        scan = emphase.ped.calibrate(patterns, [metal], UNKNOWN, n_patterns=32)
        assert not scan.trusted and any("alone shows" in finding for finding in scan.findings)
        scales[metal.name] = scan.found_scale.scale_invA_per_px
    assert scales["Ag"] == pytest.approx(metals.SCALE_INVA_PER_PX, rel=0.015)
    sizes = np.linalg.norm(metals.SILVER.lattice[0]) / np.linalg.norm(metals.COPPER.lattice[0])
    assert scales["Cu"] == pytest.approx(metals.SCALE_INVA_PER_PX * sizes, rel=0.02)


def test_patterns_of_noise_have_no_scale():
    rng = np.random.default_rng(1)
    patterns = rng.poisson(3.0, (3, 3, 96, 96)).astype(np.uint16)
    y, x = np.indices((96, 96)) - 47.6
    patterns += rng.poisson(900 * np.exp(-(y**2 + x**2) / 8), patterns.shape).astype(np.uint16)
    with pytest.raises(
        emphase.EmphaseError, match=r"scale_invA_per_px: not given, and the patterns do not show it: .* as well; expected a"
    ):
        emphase.ped.calibrate(patterns, [metals.SILVER], UNKNOWN)


def test_of_wrong_metals_several_scales_are_as_good():
    patterns = metals.scan_of(metals.SILVER, seed=2)
    with pytest.raises(emphase.EmphaseError, match=r"with crystals of Cu, W, Ti, .* or the phases that are in the scan"):
        emphase.ped.calibrate(patterns, [metals.COPPER, metals.TUNGSTEN, metals.TITANIUM], UNKNOWN, n_patterns=32)
