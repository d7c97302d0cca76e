"""The camera against the scan: shadow images in a disc out of focus, at known angles; and none where the direct beam shows nothing."""

import numpy as np
import pytest
from scipy import ndimage

from emphase.orientations import in_map_axes
from emphase.ped import scan_rotation
from emphase.ped.scan import direct_beam_positions, smooth_descan

#: Shape of the disc of the direct beam on a camera of 32 x 32, and how many steps of the scan its rim is off its middle
RADIUS_PX, SHADOW_STEPS = 5, 2.0


def shadow_scan(rng: np.random.Generator, n: int, rotation_deg: float, flip_y: bool, counts: float) -> np.ndarray:
    """Patterns (n, n, 32, 32): each pixel of the disc sees the specimen, grains of two transmissions, where its electrons crossed it."""
    grains = ndimage.gaussian_filter(rng.normal(size=(n + 20, n + 20)), 3)
    transmission = np.where(grains > 0, 0.5, 1.0)
    ky, kx = np.mgrid[-16:16, -16:16]
    disc = np.argwhere(np.hypot(ky, kx) <= RADIUS_PX)
    y, x = np.mgrid[10 : 10 + n, 10 : 10 + n]
    patterns = np.full((n, n, 32, 32), 0.02)
    # where the map is on the camera: the axes of the map seen from those of the camera
    of_map = in_map_axes(np.eye(3), rotation_deg, flip_y=flip_y)[:2, :2].T
    for row, column in disc:
        right, down = SHADOW_STEPS / RADIUS_PX * of_map @ [column - 16, row - 16]
        patterns[:, :, row, column] = ndimage.map_coordinates(transmission, [y + down, x + right], order=1) * counts / len(disc)
    return rng.poisson(patterns).astype(np.uint16)


def estimated(patterns: np.ndarray) -> scan_rotation.ScanRotation | None:
    centre_px, intensity = direct_beam_positions(patterns, np.zeros(patterns.shape[2:], bool))
    return scan_rotation.estimate(centre_px - smooth_descan(centre_px, intensity)[0], intensity)


@pytest.mark.parametrize("rotation_deg, flip_y", [(20.0, False), (-75.0, False), (130.0, True), (-5.0, True)])
def test_a_shadow_image_shows_how_the_camera_is_turned(rotation_deg, flip_y):
    found = estimated(shadow_scan(np.random.default_rng(5), 48, rotation_deg, flip_y, 3000.0))
    assert found is not None and found.mirrored == flip_y
    assert abs((found.rotation_deg - rotation_deg + 90) % 180 - 90) < 3 * found.sd_deg + 0.5
    assert not found.contradicts(rotation_deg, flip_y=flip_y) and not found.contradicts(rotation_deg + 180, flip_y=flip_y)
    assert not found.contradicts(rotation_deg + 180, flip_x=flip_y)  # upside down, then half a turn, is left for right
    assert found.contradicts(rotation_deg + 12, flip_y=flip_y) and found.contradicts(rotation_deg, flip_y=not flip_y)


def test_its_error_is_as_stated():
    z = []
    for seed in range(60):
        rng = np.random.default_rng(seed)
        rotation_deg = float(rng.uniform(-90, 90))
        deflection, intensity = centroids(rng, 40, rotation_deg)
        found = scan_rotation.estimate(deflection, intensity)
        if found is not None:
            z.append(((found.rotation_deg - rotation_deg + 90) % 180 - 90) / found.sd_deg)
    assert len(z) > 40 and np.abs(z).max() < 4 and 0.5 < np.std(z) < 1.3


def centroids(rng: np.random.Generator, n: int, rotation_deg: float) -> tuple[np.ndarray, np.ndarray]:
    """Deflections along the gradient of a bright field of grains, with noise twice as large."""
    bright = 1000 + 300 * np.sign(ndimage.gaussian_filter(rng.normal(size=(n, n)), 2))
    down, right = np.gradient(ndimage.gaussian_filter(bright, 1))
    angle = np.deg2rad(rotation_deg)
    # the map's right is on the camera turned by the angle the other way, clockwise as it is shown
    camera = np.stack([np.sin(angle) * right + np.cos(angle) * down, np.cos(angle) * right - np.sin(angle) * down], axis=-1)
    return camera + rng.normal(0, 2 * camera.std(), camera.shape), rng.poisson(bright).astype(float)


def test_where_the_beam_shows_nothing_nothing_is_said():
    """Grains that deflect the beam in directions of their own, a disc in focus, a scan of few lines, and one without any contrast."""
    for seed in range(40):
        rng = np.random.default_rng(seed)
        _, intensity = centroids(rng, 32, 0.0)
        of_grains = ndimage.gaussian_filter(rng.normal(size=(32, 32, 2)), (3, 3, 0)) + rng.normal(0, 0.01, (32, 32, 2))
        assert scan_rotation.estimate(of_grains, intensity) is None
    deflection, intensity = centroids(rng, 12, 30.0)
    assert scan_rotation.estimate(deflection, intensity) is None
    assert scan_rotation.estimate(np.zeros((32, 32, 2)), np.ones((32, 32))) is None
    assert scan_rotation.estimate(np.full((32, 32, 2), np.nan), np.ones((32, 32))) is None
    assert scan_rotation.estimate(np.ones((32, 32, 2)), np.zeros((32, 32))) is None
    deflection, intensity = centroids(rng, 40, 30.0)
    deflection[3, 4] = np.nan
    assert abs(scan_rotation.estimate(deflection, intensity).rotation_deg - 30) < 6
    assert estimated(rng.poisson(np.full((20, 20, 32, 32), 3.0)).astype(np.uint16)) is None
