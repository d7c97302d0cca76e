"""A scan, its images and its spots as signals of pyxem: axes, counts and places against what was put in."""

import hyperspy.api as hs
import numpy as np
import pytest

import emphase
import helpers
from emphase.ped import in_pyxem
from emphase.spot_lists import read_spot_list

SCALE = 0.02178


@pytest.fixture(scope="module")
def scan():
    """Patterns of a simulated scan and its calibration, with an ellipse of a per cent."""
    crystals = [helpers.phase_crystal(p) for p in ("layered", "spinel", "rocksalt", "llzo")]
    patterns, truth = emphase.simulate.ped_scan(np.random.default_rng(4), crystals, (4, 5), emphase.simulate.PedScene(0.2, n_grains=2))
    strain = np.array([[1.005, 0.002], [0.002, 0.995]])
    mask = np.zeros(patterns.shape[2:], bool)
    return patterns, emphase.ped.Calibration(SCALE, strain, truth["centre_px"], mask, 1.4)


def test_the_axes_of_the_signal_are_those_of_the_calibration(scan):
    patterns, calibration = scan
    signal = in_pyxem.diffraction_signal(patterns, calibration, step_nm=8.0, beam_energy=200.0, rocking_angle=8.7)
    assert type(signal).__name__ == "ElectronDiffraction2D" and signal.data is patterns
    x, y = signal.axes_manager.navigation_axes
    assert (x.name, x.size, x.scale, x.units, y.size) == ("x", 5, 8.0, "nm", 4)
    beam_y, beam_x = calibration.centre_px.reshape(-1, 2).mean(axis=0)
    kx, ky = signal.axes_manager.signal_axes
    assert kx.offset + beam_x * kx.scale == pytest.approx(0) and ky.offset + beam_y * ky.scale == pytest.approx(0)
    assert signal.beam_energy == 200.0
    one = in_pyxem.diffraction_signal(patterns[0, 0], calibration)
    assert one.data.shape == patterns.shape[2:] and one.axes_manager.signal_axes[0].scale == SCALE


def test_a_recording_stays_on_the_disk(scan, tmp_path):
    patterns, calibration = scan
    hs.signals.Signal2D(patterns).save(tmp_path / "scan.hspy")
    frames = emphase.frames.RecordedFrames(tmp_path / "scan.hspy", 2)
    signal = in_pyxem.diffraction_signal(frames, calibration)
    assert signal._lazy and signal.data.shape == patterns.shape
    in_pyxem.save_signal(signal, tmp_path / "again.zspy")
    back = hs.load(tmp_path / "again.zspy")
    assert type(back).__name__ == "ElectronDiffraction2D" and np.array_equal(back.data, patterns)
    assert emphase.frames.axis_scale(emphase.frames.load_recording(tmp_path / "again.zspy"), "1/angstrom") == pytest.approx(SCALE)


def test_virtual_images_hold_the_counts_of_their_apertures(scan):
    patterns, calibration = scan
    signal = in_pyxem.diffraction_signal(patterns, calibration)
    images = in_pyxem.virtual_images(signal, 0.13, 1.2)
    off = np.stack(np.indices(patterns.shape[2:]), axis=-1) - calibration.centre_px.reshape(-1, 2).mean(axis=0)
    g_invA = np.linalg.norm(off, axis=-1) * SCALE
    for image, least, most in ((images.bright_field, 0.0, 0.13), (images.dark_field, 0.13, 1.2)):
        surely, at_most = ((g_invA > least + margin) & (g_invA < most - margin) for margin in (SCALE, -SCALE))
        assert image.shape == (4, 5)
        assert (patterns[..., surely].sum(axis=-1) <= image).all() and (image <= patterns[..., at_most].sum(axis=-1)).all()


def test_the_profile_of_rings_on_an_ellipse_is_sharp(scan):
    _, calibration = scan
    off = np.stack(np.indices((144, 144)), axis=-1) - calibration.centre_px.reshape(-1, 2).mean(axis=0)
    g_invA = np.linalg.norm(off[..., ::-1] @ np.linalg.inv(calibration.metric).T, axis=-1)
    mask = np.random.default_rng(1).uniform(size=g_invA.shape) < 0.1
    pattern = np.where(mask, 1e6, 3 + 50 * (np.abs(g_invA - 0.7) < SCALE / 4))
    lengths, counts = in_pyxem.radial_profile(pattern, mask, calibration)
    assert abs(lengths[np.argmax(counts)] - 0.7) < SCALE
    assert counts[np.abs(lengths - 0.7) > 1.5 * SCALE] == pytest.approx(3)


@pytest.mark.parametrize("suffix", [".hspy", ".zspy"])
def test_vectors_come_back_as_a_list_of_spots(scan, tmp_path, suffix):
    patterns, calibration = scan
    spots = emphase.ped.find_spots(patterns.reshape(-1, *patterns.shape[2:]), calibration.centre_px.reshape(-1, 2), calibration)
    vectors = in_pyxem.diffraction_vectors(spots, (4, 5), calibration, step_nm=8.0)
    in_pyxem.save_signal(vectors, tmp_path / f"spots{suffix}")
    in_pyxem.save_signal(vectors, tmp_path / f"spots{suffix}")  # over the one that is there
    assert type(hs.load(tmp_path / f"spots{suffix}")).__name__ == "DiffractionVectors"
    listed = read_spot_list(tmp_path / f"spots{suffix}")
    assert listed.shape == (4, 5) and listed.in_invA and listed.step_nm == 8.0
    table = spots.table[7, : spots.number[7]]
    clear = table[table[:, 4] >= 4]
    mine = slice(listed.first[7], listed.first[8])
    recorded = listed.places[mine][:, ::-1] @ calibration.metric.T
    assert np.allclose(recorded[:, ::-1] + spots.centre_px[7], clear[:, :2], atol=1e-3)
    assert np.allclose(listed.intensity[mine], clear[:, 2] - clear[:, 3], rtol=1e-5)
