"""Orientations as files: maps that come back from .ang and .ctf as they went, and their axes."""

import math

import numpy as np
import orix.io
import pytest
from scipy.spatial.transform import Rotation

import emphase
import helpers

PHASES = ("layered", "spinel", "rocksalt", "llzo")
#: From e1 || a to e1 || a* of a cell with gamma = 120°, both with e3 || c.
ABOUT_C = np.array([[math.sqrt(3) / 2, 0.5, 0], [-0.5, math.sqrt(3) / 2, 0], [0, 0, 1]])


@pytest.fixture(scope="module")
def crystals():
    return [helpers.phase_crystal(p) for p in PHASES]


def exported(path, phase_id, crystals):
    """Rotations of a map that was written to a path, at random, with scores that tell its points apart."""
    rotation = Rotation.random(phase_id.size, rng=np.random.default_rng(1)).as_matrix().reshape(*phase_id.shape, 3, 3)
    order = np.arange(phase_id.size).reshape(phase_id.shape)
    properties = {"score": 100.0 + order, "correlation": order / phase_id.size, "phase_margin": 2.0 * order}
    crystal_map = emphase.orientations.to_crystal_map(phase_id, rotation, crystals, 8.0, properties)
    {".ang": emphase.orientations.save_ang, ".ctf": emphase.orientations.save_ctf}[path.suffix](path, crystal_map)
    assert [p.name for p in path.parent.iterdir()] == [path.name]
    return rotation.reshape(-1, 3, 3)


def bunge(path):
    """Orientation matrices (n, 3, 3) of the Euler angles in a file (Bunge, Texture Analysis in Materials Science, 1982)."""
    columns, unit = {".ang": ((0, 1, 2), 1.0), ".ctf": ((5, 6, 7), math.radians(1))}[path.suffix]
    points = path.read_text().rpartition("\tBS\n")[2].splitlines()
    angles = np.loadtxt(points, usecols=columns, ndmin=2, unpack=True) * unit
    (c1, c, c2), (s1, s, s2) = np.cos(angles), np.sin(angles)
    rows = (
        (c1 * c2 - s1 * s2 * c, s1 * c2 + c1 * s2 * c, s2 * s),
        (-c1 * s2 - s1 * c2 * c, -s1 * s2 + c1 * c2 * c, c2 * s),
        (s1 * s, -c1 * s, c),
    )
    return np.moveaxis(np.array(rows), -1, 0)


@pytest.mark.parametrize("phase_id", [[[0, 0, 2], [-1, 3, 1]], [[0, -1, 2, 0]], [[0, 1], [2, 3], [0, 0]], [[0, 0], [0, -1]]])
@pytest.mark.parametrize("suffix", [".ang", ".ctf"])
def test_exported_maps_come_back(tmp_path, crystals, suffix, phase_id):
    """With pores, in one row, without pores, of one phase: what orix reads is what was written, in µm and in the axes of the format."""
    from orix import io

    path, phase_id = tmp_path / f"map{suffix}", np.array(phase_id)
    rotation = exported(path, phase_id, crystals)
    again = io.load(str(path))
    y, x = np.indices(phase_id.shape).reshape(2, -1) * 0.008
    assert np.allclose(again.x, x, atol=1e-9) and again.dx == pytest.approx(0.008)
    assert np.allclose(again.y, y, atol=1e-9) if len(phase_id) > 1 else again.y is None
    names = [again.phases[int(k)].name if k >= 0 else None for k in again.phase_id]
    assert names == [PHASES[k] if k >= 0 else None for k in phase_id.ravel()]
    assert again.phases["layered"].structure.lattice.abcABG() == pytest.approx((2.867, 2.867, 14.22, 90, 90, 120), abs=1e-3)
    for k, there, here in zip(phase_id.ravel(), again.rotations.to_matrix(), rotation, strict=True):
        expected = ABOUT_C @ here if suffix == ".ctf" and k == 0 else here
        angle = np.degrees(Rotation.from_matrix(there @ expected.T).magnitude())
        assert k < 0 or angle < 0.01
    order = np.arange(phase_id.size)
    indexed = phase_id.ravel() >= 0
    if suffix == ".ang":
        assert again.prop["ci"][indexed] == pytest.approx((order / phase_id.size)[indexed], abs=1e-5)
        assert again.prop["iq"][indexed].tolist() == (100.0 + order)[indexed].tolist()
        assert again.prop["detector_signal"][indexed].tolist() == (2.0 * order)[indexed].tolist()
        assert (again.prop["ci"][~indexed] == -1).all()
    else:
        assert again.prop["BC"].tolist() == np.rint(255 * order / phase_id.size).tolist()
        assert again.prop["BS"].tolist() == (2.0 * order).tolist()
        assert again.prop["error"].tolist() == np.where(indexed, 0, 3).tolist()


@pytest.mark.parametrize(("phase", "hkl"), [("layered", (1, 0, 4)), ("layered", (0, 1, 4)), ("li2co3", (2, 1, -3))])
@pytest.mark.parametrize("suffix", [".ang", ".ctf"])
def test_exported_reflections_lie_where_ours_do(tmp_path, suffix, phase, hkl):
    """A reader who knows the axes of a format finds a reflection in the sample's frame, in R-3m and in a monoclinic crystal.

    diffpy's lattices stand for those of Channel 5, and of EDAX where it is monoclinic: e1 || a*, e3 || c.
    """
    from diffpy.structure import Lattice

    path = tmp_path / f"map{suffix}"
    crystal = helpers.phase_crystal(phase)
    rotation = exported(path, np.zeros((2, 2), int), [crystal])
    lattice = Lattice(*crystal.orix_phase().structure.lattice.abcABG())
    assert np.allclose(lattice.base[2, :2], 0) and np.allclose(np.linalg.inv(lattice.base)[1:, 0], 0)
    axes = crystal.lattice if (phase, suffix) == ("layered", ".ang") else lattice.base
    there = np.array(hkl) @ np.linalg.inv(axes).T @ bunge(path)
    ours = np.array(hkl) @ crystal.reciprocal @ rotation
    assert np.allclose(there, ours, atol=2e-4 * np.linalg.norm(ours))


def test_a_column_of_patterns_goes_to_ctf_only(tmp_path, crystals):
    exported(tmp_path / "map.ctf", np.array([[0], [2], [-1]]), crystals)
    lines = (tmp_path / "map.ctf").read_text().splitlines()
    assert {"XCells\t1", "YCells\t3", "XStep\t0.00800000", "YStep\t0.00800000"} <= set(lines)
    with pytest.raises(emphase.EmphaseError, match="one column"):
        exported(tmp_path / "map.ang", np.array([[0], [2], [-1]]), crystals)


def test_orix_has_our_crystal_axes_and_diffsims_alone_has_others(crystals):
    """diffsims puts a structure of diffpy on e1 || a*, e3 || c (pyxem issue 947), and a phase of orix on our e1 || a, e3 || c*."""
    from diffpy.structure import Lattice, Structure
    from diffsims.generators.diffraction_generator import DiffractionGenerator
    from diffsims.generators.simulation_generator import SimulationGenerator

    layered = crystals[0]
    phase = layered.orix_phase()
    reach = {"reciprocal_radius": 1.5, "with_direct_beam": False, "max_excitation_error": 0.05}
    by_orix = SimulationGenerator(200).calculate_diffraction2d(phase, **reach).coordinates
    assert len(by_orix.hkl) > 20 and np.any(by_orix.hkl[:, 2] > 0.5)
    assert np.allclose(by_orix.data, by_orix.hkl @ layered.reciprocal, atol=1e-6)
    alone = Structure(phase.structure, lattice=Lattice(*phase.structure.lattice.abcABG()))
    by_diffsims = DiffractionGenerator(200).calculate_ed_data(alone, **reach)
    ours = by_diffsims.indices @ layered.reciprocal
    assert np.abs(by_diffsims.coordinates - ours).max() > 0.5
    assert np.allclose(by_diffsims.coordinates, ours @ ABOUT_C.T, atol=1e-6)


@pytest.mark.parametrize(
    ("angle_deg", "flip_y", "flip_x"), [(0, False, False), (37, False, False), (-90, True, False), (215, False, True), (8, True, True)]
)
def test_orientations_are_carried_to_the_axes_of_the_map(angle_deg, flip_y, flip_x):
    """A crystal in the map, recorded by a camera that is turned and flipped: its spots are those of the orientation that comes back."""
    rng = np.random.default_rng(2)
    in_map = Rotation.random(5, rng=rng).as_matrix()
    g = rng.normal(size=(40, 3))
    camera_from_map = np.diag([-1.0 if flip_x else 1.0, -1.0 if flip_y else 1.0, 1.0])  # after the turn back, clockwise as shown
    back = np.deg2rad(angle_deg)
    turn_back = np.array([[np.cos(back), -np.sin(back), 0], [np.sin(back), np.cos(back), 0], [0, 0, 1]])
    camera_from_map = camera_from_map @ turn_back
    for orientation in in_map:
        seen = (g @ orientation) @ camera_from_map.T
        handed = np.sign(np.linalg.det(camera_from_map))  # what is found is a rotation: a pattern has g and -g alike
        found = orientation @ (handed * camera_from_map).T
        assert np.allclose(g @ found, handed * seen)
        assert np.allclose(emphase.orientations.in_map_axes(found, angle_deg, flip_y=flip_y, flip_x=flip_x), orientation)


def test_files_say_whose_axes_their_angles_are_about(tmp_path):
    crystals = [helpers.phase_crystal("layered")]
    crystal_map = emphase.orientations.to_crystal_map(np.zeros((4, 5), int), np.tile(np.eye(3), (4, 5, 1, 1)), crystals, 8.0, {})
    emphase.orientations.save_ang(tmp_path / "a.ang", crystal_map, "about the camera")
    emphase.orientations.save_ctf(tmp_path / "a.ctf", crystal_map, "about the camera")
    assert (tmp_path / "a.ang").read_text().startswith("# about the camera\n")
    assert "Prj\ta (about the camera)" in (tmp_path / "a.ctf").read_text()
    for name in ("a.ang", "a.ctf"):
        assert orix.io.load(str(tmp_path / name)).shape == (4, 5)
