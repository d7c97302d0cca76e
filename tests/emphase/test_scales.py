"""The scale of a camera where none is given: found where the patterns show it, and said where they do not."""

import metals
import numpy as np
import pytest
from study import SHARED

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
    assert scan.found_scale.next_support_share < 0.5
    assert abs(np.log(scan.found_scale.next_scale_invA_per_px / scan.found_scale.scale_invA_per_px)) > 0.05


def test_one_metal_is_found_and_not_trusted():
    """Copper at another scale has the same patterns."""
    scan = emphase.ped.calibrate(metals.scan_of(metals.SILVER, seed=2), [metals.SILVER], UNKNOWN, n_patterns=20)
    assert scan.found_scale.scale_invA_per_px == pytest.approx(metals.SCALE_INVA_PER_PX, rel=2e-3)
    assert not scan.trusted and any("Ag alone shows" in finding for finding in scan.findings)


def test_candidates_that_are_not_there_do_not_hide_the_scale():
    crystals = [metals.TUNGSTEN, metals.SILVER, metals.TITANIUM]
    scan = emphase.ped.calibrate(metals.scan_of(metals.SILVER, seed=2), crystals, UNKNOWN, n_patterns=20)
    assert scan.found_scale.scale_invA_per_px == pytest.approx(metals.SCALE_INVA_PER_PX, rel=2e-3)
    assert scan.found_scale.next_support_share < 0.5


@pytest.mark.skipif(not (SHARED / "realdata" / "ped_steel").is_dir(), reason="recorded PED of steel is not here")
def test_the_scale_of_recorded_steel_is_found():
    """Of four patterns, with an ellipse of 5 %: 0.01261 is said by those who recorded them."""
    folder = SHARED / "realdata" / "ped_steel"
    crystals = [emphase.crystals.read_crystal(folder / name) for name in ("austeniteLP.cif", "g-phaseLP.cif")]
    patterns = emphase.frames.RecordedFrames(folder / "subset_data.hspy", navigation_dimension=2)
    scan = emphase.ped.calibrate(patterns, crystals, UNKNOWN)
    assert scan.found_scale.scale_invA_per_px == pytest.approx(0.01261, rel=0.01)


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
        emphase.ped.calibrate(patterns, [metals.COPPER, metals.TUNGSTEN, metals.TITANIUM], UNKNOWN, n_patterns=20)
