"""Rocking curve and precession by the patterns: the angle that was simulated, whatever is given, and none where patterns are too few."""

import metals
import numpy as np
import pytest

import emphase
import helpers
from emphase.ped.rocking import _ALL_WAYS, _Climb, _vertex, estimate


def matched(metal, precession_deg, given, grains=30):
    patterns = metals.scan_of(metal, 3, (8, 8), grains, precession_deg=precession_deg)
    scan = emphase.ped.calibrate(patterns, [metal], emphase.ped.Optics(metals.SCALE_INVA_PER_PX, 200.0, given))
    spots = emphase.ped.find_spots(scan.images, scan.centres_px, scan.calibration)
    return estimate(spots, scan.calibration, [metal], scan.optics)


@pytest.mark.parametrize("metal", [metals.SILVER, metals.TITANIUM], ids=lambda crystal: crystal.name)
@pytest.mark.parametrize(("true", "given"), [(0.4, 0.4), (1.0, 0.5), (0.5, 1.0), (0.8, 0.0)])
def test_the_angle_of_the_patterns_is_found_within_its_error(metal, true, given):
    """Also of metals, whose few and strong reflections are far from kinematical."""
    found = matched(metal, true, given)
    assert abs(found.precession_deg - true) < 3 * found.precession_sd_deg < 0.9 * found.precession_deg
    assert not found.contradicts(true)
    if true == given:
        assert 1e-4 < found.excitation_width_invA < 4e-3  # 60 nm of thickness, a bend, and dynamical diffraction


def test_a_cone_given_by_its_half_is_told():
    """Crystals with many reflections determine the angle to what the model of intensities leaves."""
    crystals = [helpers.phase_crystal(p) for p in ("layered", "spinel", "rocksalt", "llzo")]
    recording = emphase.simulate.ped.PedRecording(precession_deg=1.0)
    patterns, _ = emphase.simulate.ped_scan(
        np.random.default_rng(3), crystals, (8, 8), emphase.simulate.PedScene(n_grains=6), recording=recording
    )
    scan = emphase.ped.calibrate(patterns, crystals, emphase.ped.Optics(metals.SCALE_INVA_PER_PX, 200.0, 0.5, max_g_invA=1.0))
    spots = emphase.ped.find_spots(scan.images, scan.centres_px, scan.calibration)
    found = estimate(spots, scan.calibration, crystals, scan.optics)
    assert found.contradicts(0.5) and not found.contradicts(1.0)
    assert found.precession_deg == pytest.approx(1.0, rel=0.15)


def test_patterns_of_one_crystal_do_not_determine_the_angle():
    found = matched(metals.TITANIUM, 0.5, 0.5, grains=1)
    assert found.precession_deg is None and found.precession_sd_deg is None and not found.contradicts(2.0)
    assert found.excitation_width_invA in dict(found.widths)


def test_an_end_of_a_search_is_no_answer():
    """The climb goes on from its start to the maximum, also along a ridge that runs across."""
    climb = _Climb(lambda a, w: -np.array([np.log(w / 0.016) ** 2]), 0.5, 0.001)
    assert climb.pair(*climb.climb((0, 0), ((0, 1), (0, -1))))[1] == pytest.approx(0.016)
    ridge = lambda a, w: -np.array([10 * np.log(a**2 * w / 0.001) ** 2 + np.log(a) ** 2])  # best at 1 degree and 0.001
    climb = _Climb(ridge, 0.5, 0.004)
    assert climb.pair(*climb.climb((0, 0), _ALL_WAYS)) == pytest.approx((1.0, 0.001))
    climb = _Climb(lambda a, w: np.array([w]), 0.5, 0.001)
    assert climb.pair(*climb.climb((0, 0), _ALL_WAYS))[1] == pytest.approx(0.016)  # within the limit of 0.03


def test_a_parabola_has_its_vertex():
    x = np.linspace(-1, 1, 5)
    assert _vertex(x, 3 - (x - 0.2) ** 2) == pytest.approx(0.2)
    assert _vertex(x, x) == 1
