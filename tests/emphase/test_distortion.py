"""Calibration of cameras that distort: scale, ellipse, keystone and radial distortion against those that made the patterns."""

from dataclasses import replace

import metals
import numpy as np
import pytest
from scipy import ndimage

import emphase
import helpers
from emphase.ped.distortion import recorded_places, undistorted_mask, undistorted_places
from emphase.ped.refined_lattices import refine_lattices
from emphase.ped.spacings import LatticeParameter, against_the_others, lattice_parameters, with_lattice_parameters

PHASES = ("layered", "spinel", "rocksalt", "llzo")
SCALE = 0.02178


def camera(strain=(1.0, 1.0), distortion=(0.0,) * 5, side=144):
    centre = np.full((1, 1, 2), (side - 1) / 2)
    return emphase.ped.Calibration(1.0, np.diag(strain), centre, np.zeros((side, side), bool), 1.3, distortion=np.array(distortion))


def test_undistorted_places_are_the_inverse_of_recorded_ones():
    bent = camera(distortion=(0.03, -0.01, 0.004, 0.002, 0.02))
    places = np.random.default_rng(0).uniform(0, 143, (200, 2))
    there = recorded_places(places, np.array([71.5, 70.0]), bent)
    assert 0.5 < np.abs(there - places).max() < 15
    np.testing.assert_allclose(undistorted_places(there, np.array([71.5, 70.0]), bent), places, atol=1e-3)
    np.testing.assert_allclose(recorded_places(np.array([71.5, 70.0]), np.array([71.5, 70.0]), bent), [71.5, 70.0])


def test_a_radial_distortion_of_two_per_cent_moves_the_edge_by_two_per_cent():
    bent = camera(distortion=(0, 0, 0, 0, 0.02))
    centre = np.array([71.5, 71.5])
    np.testing.assert_allclose(recorded_places(np.array([71.5, 71.5 + 72]), centre, bent), [71.5, 71.5 + 72 * 1.02])
    np.testing.assert_allclose(recorded_places(np.array([71.5, 71.5 + 36]), centre, bent), [71.5, 71.5 + 36 * 1.005])


def test_what_an_undistorted_camera_sees_beyond_the_recorded_one_is_masked():
    assert not undistorted_mask(camera()).any()
    pincushion = undistorted_mask(camera(distortion=(0, 0, 0, 0, 0.05)))
    assert pincushion[0, 0] and not pincushion[72, 72] and pincushion.mean() < 0.2


@pytest.fixture(scope="module")
def composite():
    scene = emphase.simulate.PedScene(0.2, 0.1, n_grains=6, overlap=0.3)
    return emphase.simulate.ped_scan(
        np.random.default_rng(4), [helpers.phase_crystal(p) for p in PHASES], (12, 12), scene, electrons=12000, scale_invA_per_px=SCALE
    )


def seen_by(scan, bent):
    """The patterns as another camera records them, with Poisson noise."""
    patterns, truth = scan
    seen = np.zeros(patterns.shape, np.uint16)
    grid = np.moveaxis(np.indices(patterns.shape[2:]), 0, -1).astype(float)
    for place in np.ndindex(patterns.shape[:2]):
        centre = truth["centre_px"][place]
        at = undistorted_places(grid, centre, bent) - centre
        at = (at[..., ::-1] @ np.linalg.inv(bent.strain).T)[..., ::-1] + centre
        rate = ndimage.map_coordinates(patterns[place].astype(float), np.moveaxis(at, -1, 0), order=1)
        seen[place] = np.random.default_rng(place).poisson(rate)
    return seen


@pytest.mark.parametrize(
    ("bent", "given"),
    [
        (camera(), 1.0),
        (camera(distortion=(0.03, 0, 0, 0, 0.02)), 1.0),
        (camera(strain=(1.025, 0.975)), 1.0),
        (camera(strain=(0.975, 1.025), distortion=(0.01, -0.015, 0, 0, -0.01)), 1.01),
        (camera(), 0.91),
        (camera(), 1.09),
    ],
    ids=["plain", "keystone 3 %, radial 2 %", "ellipse 5 %", "all three", "scale 9 % low", "scale 9 % high"],
)
def test_a_camera_is_calibrated_from_its_own_patterns(composite, bent, given):
    """The scale within 0.1 % (0.15 % with all distortions at once), and within three of its standard deviations."""
    seen = seen_by(composite, bent) if bent.distortion.any() or not np.allclose(bent.strain, np.eye(2)) else composite[0]
    optics = emphase.ped.Optics(SCALE * given, 200.0, 0.5, max_g_invA=1.5)
    scan = emphase.ped.calibrate(seen, [helpers.phase_crystal(p) for p in PHASES], optics)
    true = SCALE / np.sqrt(np.linalg.det(bent.strain))
    off = abs(scan.refined.scale_invA_per_px - true)
    assert scan.trusted and off < (0.0015 if bent.distortion.any() and not np.allclose(bent.strain, np.eye(2)) else 0.001) * true
    assert off < 3 * scan.fit.scale_sd_invA_per_px + 2e-4 * true
    np.testing.assert_allclose(scan.refined.distortion, bent.distortion, atol=0.003)
    np.testing.assert_allclose(scan.refined.strain, bent.strain / np.sqrt(np.linalg.det(bent.strain)), atol=0.002)
    assert scan.fit.residual_px < 0.35


def test_far_from_the_given_scale_one_phase_alone_is_not_believed():
    """Another metal of its lattice would fit as well."""
    silver = metals.scan_of(metals.SILVER, seed=2)
    scan = emphase.ped.calibrate(silver, [metals.SILVER], emphase.ped.Optics(SCALE * 1.06, 200.0, 0.5, max_g_invA=1.5))
    assert scan.refined.scale_invA_per_px == pytest.approx(SCALE, rel=0.002)
    assert not scan.trusted and "one phase alone" in scan.findings[-1].replace("by one ", "one ")
    assert scan.calibration.scale_invA_per_px == SCALE * 1.06


def test_lattice_parameters_come_back():
    """Of a tetragonal crystal whose c is 3 % longer than in its file, a exact; and nothing of an axis that no spot shows."""
    file = replace(metals.fcc("x", 4.0), lattice=np.diag([4.0, 4.0, 5.8]), space_group=139)
    real = replace(file, lattice=np.diag([4.0, 4.0, 5.974]))
    hkl = np.array([(h, k, m) for h in range(-2, 3) for k in range(-2, 3) for m in range(-2, 3) if h or k or m])
    length = lambda crystal: np.linalg.norm(hkl @ crystal.reciprocal, axis=1)
    noise = np.random.default_rng(1).normal(0, 0.002, len(hkl))
    a, c = lattice_parameters(file, hkl, length(real) / length(file) * (1 + noise), np.ones(len(hkl)))
    assert (a.axis, c.axis) == ("a", "c") and not a.differs and c.differs
    assert abs(a.found_A - 4.0) < 4 * a.sd_A and a.sd_A < 0.004
    assert c.found_A == pytest.approx(5.974, abs=0.012 + 4 * c.sd_A)
    flat = hkl[:, 2] == 0
    assert [p.axis for p in lattice_parameters(file, hkl[flat], 1 + noise[flat], np.ones(flat.sum()))] == ["a"]
    assert not lattice_parameters(file, hkl[:5], np.ones(5), np.ones(5))


def test_a_lattice_that_is_not_its_files_is_measured_and_put_right():
    """A layered oxide whose c is 2 % longer than in the CIF draws the scale with it, until its own is used."""
    crystals = [helpers.phase_crystal(p) for p in PHASES]
    given_A = float(np.linalg.norm(crystals[0].lattice[2]))
    real = with_lattice_parameters(crystals[0], {"c": 1.02 * given_A})
    np.testing.assert_allclose(np.linalg.norm(real.lattice, axis=1), np.linalg.norm(crystals[0].lattice, axis=1) * [1, 1, 1.02])
    scene = emphase.simulate.PedScene(0.2, 0.1, n_grains=6, overlap=0.3)
    patterns, _ = emphase.simulate.ped_scan(np.random.default_rng(1), [real, *crystals[1:]], (10, 10), scene, scale_invA_per_px=SCALE)
    optics = emphase.ped.Optics(SCALE, 200.0, 0.5, max_g_invA=1.4)
    calibrate = lambda crystals: emphase.ped.calibrate(patterns, crystals, optics, n_patterns=48)
    scan = calibrate(crystals)
    assert [p.axis for p in scan.fit.lattice_parameters if p.differs] == ["c"] and "layered: c" in scan.notes[0]
    refined, parameters, used = refine_lattices(scan, calibrate)
    (found,) = [p for p in parameters if p.differs]
    assert (found.phase, found.axis, found.given_A) == ("layered", "c", pytest.approx(given_A))
    assert abs(found.found_A - 1.02 * given_A) < min(3 * found.sd_A, 0.002 * given_A) and list(used) == ["layered"]
    assert refined.trusted and not refined.notes
    assert refined.refined.scale_invA_per_px == pytest.approx(SCALE, rel=0.001)
    assert refine_lattices(refined, calibrate)[0] is refined  # none differs any more


def test_the_phase_that_is_off_is_told_by_most_phases_and_by_none_of_two():
    """All in the scale of all spots, which lies between: one phase with three axes does not outvote two with one."""
    off = [LatticeParameter("monoclinic", axis, 10.0 * 1.014, 0.001, 10.0, 50) for axis in "abc"]
    right = [LatticeParameter(phase, "a", 4.0 * 0.994, 0.001, 4.0, 50) for phase in ("one", "two")]
    found = against_the_others([*off, *right])
    assert [p.differs for p in found] == [True, True, True, False, False]
    assert found[0].found_A == pytest.approx(10.2, abs=0.01)
    assert not any(p.differs for p in against_the_others([off[0], right[0]]))
