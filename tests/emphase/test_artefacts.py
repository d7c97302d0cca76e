"""What a camera and its surroundings add to patterns is masked or is background: it becomes no spot, and hides no clear one."""

import math
from dataclasses import replace
from itertools import product
from typing import NamedTuple

import numpy as np
import pytest
from scipy import ndimage, special
from scipy.spatial import cKDTree
from study import SHARED, crystals

import emphase
from emphase.ped.explained import unexplained
from emphase.ped.fixed_background import fixed_background
from emphase.ped.scan import bad_lines, direct_beam_positions, hot_and_dead_pixels, scan_statistics
from emphase.ped.spots import cosmic_rays
from helpers import BANK_CACHE

SIDE = 8
STEEL = SHARED / "realdata" / "ped_steel" / "subset_data.hspy"
ALUMINIUM = SHARED / "realdata" / "al_sped" / "selected_patterns.npy"


class Recording(NamedTuple):
    """A simulated scan (ny, nx, ky, kx), and its calibration with all that is bad on its camera masked."""

    patterns: np.ndarray
    calibration: emphase.ped.Calibration

    def spots(self, patterns: np.ndarray, calibration: emphase.ped.Calibration | None = None) -> list[np.ndarray]:
        """The spots of every pattern, as rows of `Spots.table`."""
        flat, centres = patterns.reshape(-1, *patterns.shape[2:]), self.calibration.centre_px.reshape(-1, 2)
        found = emphase.ped.find_spots(flat, centres, calibration or self.calibration)
        return [table[:n] for table, n in zip(found.table, found.number, strict=True)]

    def places(self) -> tuple[np.ndarray, np.ndarray]:
        """y and x of the camera's pixels."""
        y, x = np.indices(self.patterns.shape[2:])
        return y, x


def masked(patterns: np.ndarray) -> np.ndarray:
    """The bad pixels that a scan shows."""
    mean, variance, total = scan_statistics(patterns)
    return hot_and_dead_pixels(mean, variance, total.size, 12)


@pytest.fixture(scope="module")
def recording() -> Recording:
    rng = np.random.default_rng(11)
    phases = [*crystals("layered", "spinel", "rocksalt", "llzo").values()]
    patterns, truth = emphase.simulate.ped_scan(rng, phases, (SIDE, SIDE), emphase.simulate.PedScene(0.25, n_grains=6))
    patterns = patterns.astype(np.uint16)
    return Recording(patterns, emphase.ped.Calibration(0.02178, np.eye(2), truth["centre_px"], masked(patterns), 1.3))


def false_and_lost(recording: Recording, patterns: np.ndarray, **found: np.ndarray) -> tuple[float, float]:
    """Clear spots (10 nats) a pattern that the scan as it is has not within 2 px, and share of its clear spots that are lost.

    ``found`` are fields of the calibration of ``patterns``.
    """
    calibration = replace(recording.calibration, **found)
    false = lost = clear = 0
    for before, after in zip(recording.spots(recording.patterns), recording.spots(patterns, calibration), strict=True):
        true, seen = before[before[:, 4] > 10, :2], after[after[:, 4] > 10, :2]
        clear += len(true)
        false += int((cKDTree(before[:, :2]).query(seen)[0] > 2).sum())
        lost += int((cKDTree(after[:, :2]).query(true)[0] > 2).sum())
    return false / math.prod(patterns.shape[:2]), lost / clear


def poisson(recording: Recording, rate: np.ndarray, seed: int = 1) -> np.ndarray:
    """The scan with counts of a ``rate`` (ky, kx) or (ny, nx, ky, kx) added."""
    rng = np.random.default_rng(seed)
    return recording.patterns + rng.poisson(np.broadcast_to(rate, recording.patterns.shape)).astype(recording.patterns.dtype)


# --- lines of the camera --------------------------------------------------------------------


@pytest.mark.parametrize(
    "rows, columns, factor",
    [([81, 82, 83], [79, 80, 81], 0), ([81, 82], [79, 80], 3), ([], [40, 100, 101], 0), ([30], [], 0.5)],
    ids=["dead cross", "cross of wide pixels", "dead columns", "a weak row"],
)
def test_bad_lines_are_masked_and_no_others(recording, rows, columns, factor):
    patterns, bad = recording.patterns.copy(), np.zeros(recording.patterns.shape[2:], bool)
    bad[rows], bad[:, columns] = True, True
    patterns[..., bad] = (patterns[..., bad] * factor).astype(patterns.dtype)
    found = masked(patterns)
    away = np.hypot(*(np.stack(recording.places(), axis=-1) - recording.calibration.centre_px.mean(axis=(0, 1))).transpose(2, 0, 1)) > 16
    assert found[bad & away].all()  # the direct beam's own pixels are kept
    assert (found & ~bad).sum() <= recording.calibration.mask.sum()
    assert false_and_lost(recording, patterns, mask=found)[0] < 0.5


def test_half_a_column_is_masked_alone(recording):
    patterns = recording.patterns.copy()
    patterns[..., :72, 50] = 0
    mean, _, total = scan_statistics(patterns)
    found = bad_lines(mean, total.size)
    assert found[:72, 50].all() and not found[72:, 50].any() and not np.delete(found, 50, axis=1).any()


def test_a_camera_without_bad_lines_has_none(recording):
    mean, _, total = scan_statistics(recording.patterns)
    for dark_level in (0.0, 0.3):
        assert not bad_lines(mean - dark_level, total.size).any()


@pytest.mark.parametrize("spacing, peak, tilt_deg", [((10, 10), 1000, 0), ((10, 10), 200, 2), ((10, 14), 4000, 0), ((8, 24), 1000, 4)])
def test_the_rows_of_spots_along_the_camera_are_no_lines(spacing, peak, tilt_deg):
    """One aligned crystal in every pattern, so bright that the flanks of its spots meet."""
    y, x = np.indices((128, 128)) - 63.6
    turn = np.deg2rad(tilt_deg)
    image = 3.0 + np.zeros(y.shape)
    for h, k in np.ndindex(25, 25):
        v, u = (h - 12) * spacing[0], (k - 12) * spacing[1]
        v, u = v * np.cos(turn) + u * np.sin(turn), u * np.cos(turn) - v * np.sin(turn)
        image += peak * np.exp(-np.hypot(v, u) / 40) * np.exp(-((y - v) ** 2 + (x - u) ** 2) / (2 * 1.5**2))
    for n in (1, 4, 400):
        assert not bad_lines(np.random.default_rng(n).poisson(n * image) / n, n).any()


@pytest.mark.parametrize("size, sigma_px", [(32, 3.0), (32, 4.0), (32, 5.0), (48, 4.0), (256, 6.0)])
def test_the_direct_beam_is_no_line(size, sigma_px):
    y, x = np.indices((size, size)) - size / 2 + 0.3
    for peak in (1e2, 1e4, 1e6):
        image = 1 + peak * np.exp(-(y**2 + x**2) / (2 * sigma_px**2))
        assert not bad_lines(np.random.default_rng(1).poisson(64 * image) / 64, 64).any()


@pytest.mark.skipif(not STEEL.is_file(), reason="recorded PED of steel is not here")
def test_the_rows_of_spots_of_one_recorded_crystal_are_no_lines():
    patterns = np.asarray(emphase.frames.load_recording(STEEL, navigation_dimension=2).data)
    assert not bad_lines(patterns.reshape(-1, *patterns.shape[2:]).mean(axis=0), 400).any()


# --- cosmic rays ----------------------------------------------------------------------------


def test_cosmic_rays_are_no_spots_and_are_counted(recording):
    rng, patterns = np.random.default_rng(2), recording.patterns.copy()
    planted = np.zeros(SIDE**2)
    beam = np.hypot(*(np.stack(recording.places(), axis=-1) - recording.calibration.centre_px.mean(axis=(0, 1))).transpose(2, 0, 1))
    for i, image in enumerate(patterns.reshape(-1, *patterns.shape[2:])):
        free = np.argwhere((beam > 12) & (beam < 68) & ~recording.calibration.mask)
        for y, x in free[rng.choice(len(free), 4, replace=False)]:
            image[y, x] += rng.integers(100, 2000)
            planted[i] += 1
    flat, centres = patterns.reshape(-1, *patterns.shape[2:]), recording.calibration.centre_px.reshape(-1, 2)
    counted = cosmic_rays(flat, centres, recording.calibration)
    assert counted.sum() == pytest.approx(planted.sum(), rel=0.1)  # one in a spot goes with it, two may lie together
    false, lost = false_and_lost(recording, patterns)
    assert false < 0.2 and lost < 0.04
    assert cosmic_rays(recording.patterns.reshape(flat.shape), centres, recording.calibration).sum() <= 1


@pytest.mark.skipif(not STEEL.is_file(), reason="recorded PED of steel is not here")
def test_recorded_spots_are_no_cosmic_rays():
    patterns = np.asarray(emphase.frames.load_recording(STEEL, navigation_dimension=2).data)
    mask = masked(patterns)
    centres, _ = direct_beam_positions(patterns, mask)
    flat = patterns.reshape(-1, *patterns.shape[2:])
    gain, offset, _ = emphase.ped.noise.detector_noise(flat, mask)
    calibration = emphase.ped.Calibration(0.01261, np.eye(2), centres, mask, 1.7, gain, offset)
    assert cosmic_rays(flat, centres.reshape(-1, 2), calibration).sum() == 0


@pytest.mark.parametrize("sigma_px", [0.5, 0.7, 1.3, 3.0])
@pytest.mark.parametrize("counts", [300, 3000])
def test_spots_sharper_than_was_guessed_are_no_cosmic_rays(sigma_px, counts):
    rng = np.random.default_rng(3)
    y, x = np.indices((128, 128))
    image, places = 3.0 + np.zeros(y.shape), np.array([*product((20, 42, 86, 108), (20, 64, 108))]) + rng.uniform(-0.5, 0.5, (12, 2))
    below = lambda at, edge: special.erf((edge - at) / (np.sqrt(2) * sigma_px)) / 2
    for v, u in places:
        image += counts * (below(v, y + 0.5) - below(v, y - 0.5)) * (below(u, x + 0.5) - below(u, x - 0.5))
    calibration = emphase.ped.Calibration(0.02, np.eye(2), np.full((1, 1, 2), 64.0), np.zeros(y.shape, bool), 1.3)
    patterns = rng.poisson(image, (4, *image.shape))
    assert cosmic_rays(patterns, np.full((4, 2), 64.0), calibration).sum() <= 0.1 * patterns.shape[0] * len(places)


# --- backgrounds that are not round ---------------------------------------------------------


@pytest.mark.parametrize("number, radius, counts", [(6, 8, 200), (8, 10, 200), (12, 14, 200), (16, 16, 200), (12, 10, 3000), (12, 20, 100)])
def test_spots_all_around_the_beam_are_no_ring(number, radius, counts):
    rng = np.random.default_rng(5)
    y, x = np.indices((128, 128)) - 64.0
    image = 2 + 20 * np.exp(-np.hypot(y, x) / 15)
    for turn in 2 * np.pi * (np.arange(number) + 0.3) / number:
        v, u = radius * np.sin(turn), radius * np.cos(turn)
        image += counts / (2 * np.pi * 1.3**2) * np.exp(-((y - v) ** 2 + (x - u) ** 2) / (2 * 1.3**2))
    calibration = emphase.ped.Calibration(0.02, np.eye(2), np.full((1, 1, 2), 64.0), np.zeros(y.shape, bool), 1.3)
    found = emphase.ped.find_spots(rng.poisson(image, (20, *image.shape)), np.full((20, 2), 64.0), calibration)
    clear = found.table[:, :, 4] > 6
    assert clear.sum() / 20 > 0.85 * number
    net = (found.table[:, :, 2] - found.table[:, :, 3])[clear]
    assert np.median(net) > 0.64 * counts  # 70 to 80 % of a spot lies in its disc


def test_where_the_background_is_round_little_changes(recording):
    """Spots of the scan and of the scan with a round halo of as many counts."""
    y, x = recording.places()
    centre = recording.calibration.centre_px.mean(axis=(0, 1))
    halo = 3 * np.exp(-((((y - centre[0]) ** 2 + (x - centre[1]) ** 2) / 30**2) / 2))
    false, lost = false_and_lost(recording, poisson(recording, halo))
    assert false < 0.5 and lost < 0.35


@pytest.mark.skipif(not ALUMINIUM.is_file(), reason="recorded SPED of an aluminium alloy is not here")
def test_recorded_half_patterns_have_no_bad_lines():
    half = np.load(ALUMINIUM)[:, :, 3:]
    assert not bad_lines(half.mean(axis=0), 400).any()


@pytest.mark.parametrize("kept", [0.01, 0.03])
def test_what_a_camera_keeps_of_the_last_pattern_is_no_crystal(kept):
    """Columns of vacuum beside crystals, of which the first one holds a little of the crystal's pattern."""
    rng = np.random.default_rng(5)
    phases = [*crystals("layered", "spinel", "rocksalt", "llzo").values()]
    patterns, truth = emphase.simulate.ped_scan(rng, phases, (10, 12), emphase.simulate.PedScene(0.15, n_grains=4), electrons=30_000)
    patterns = patterns.astype(np.int64)
    mask, typical = masked(patterns), np.median(patterns.reshape(-1, *patterns.shape[2:]), axis=0)
    vacuum = [4, 5, 9, 10]
    seen = patterns.copy()
    seen[:, vacuum] = rng.poisson(0.3 * ndimage.median_filter(typical, 15), seen[:, vacuum].shape)
    seen[:, vacuum[::2]] += rng.poisson(kept * patterns[:, [3, 8]])
    calibration = emphase.ped.Calibration(0.02178, np.eye(2), truth["centre_px"], mask, 1.3)
    optics = {"max_g_invA": 1.5, "beam_energy_keV": 200, "precession_deg": 0.5, "excitation_width_invA": 0.001}
    banks = [emphase.ped.template_bank(crystal, cache=BANK_CACHE, **optics) for crystal in phases]
    maps, _, _ = emphase.ped.map_scan(seen.astype(np.uint16), calibration, banks)
    assert maps["afterglow"][:, vacuum[::2]].mean() > 0.3
    assert not maps["afterglow"][:, [1, 2, 3, 7, 8]].any()
    assert not maps["decided"][:, vacuum].any()
    of_crystals = np.delete(maps["decided"] & (maps["phase_id"] == truth["phase"]), vacuum, axis=1)
    assert of_crystals.mean() > 0.6


def fixed_things(shape: tuple[int, int], centre: np.ndarray) -> dict[str, np.ndarray]:
    """Counts a pixel of what does not move with the specimen."""
    y, x = np.indices(shape) - centre[:, None, None]
    bump = lambda dy, dx, sy, sx: np.exp(-(((y - dy) / sy) ** 2 + ((x - dx) / sx) ** 2) / 2)
    return {
        "halo off the beam": 25 * bump(14, -9, 22, 30),
        "reflex of a beam stop": 60 * bump(14, 32, 6, 14),
        "streak": 20 * np.exp(-(((y - 0.3 * x) / 1.5) ** 2) / 2),
        "ring": 12 * np.exp(-(((np.hypot(y, x) - 22) / 1.2) ** 2) / 2),
    }


@pytest.fixture(scope="module")
def scan() -> Recording:
    """Twelve by twelve patterns, in 36 blocks."""
    rng = np.random.default_rng(12)
    phases = [*crystals("layered", "spinel", "rocksalt", "llzo").values()]
    patterns, truth = emphase.simulate.ped_scan(rng, phases, (12, 12), emphase.simulate.PedScene(0.25, n_grains=8))
    patterns = patterns.astype(np.uint16)
    return Recording(patterns, emphase.ped.Calibration(0.02178, np.eye(2), truth["centre_px"], masked(patterns), 1.3))


@pytest.mark.parametrize(
    ("thing", "most_false"), [("halo off the beam", 1.5), ("reflex of a beam stop", 0.5), ("streak", 1.5), ("ring", 1.5)]
)
def test_what_all_patterns_share_is_background_and_no_spots(scan, thing, most_false):
    centre = scan.calibration.centre_px.reshape(-1, 2).mean(axis=0)
    added = fixed_things(scan.patterns.shape[2:], centre)[thing]
    patterns = (scan.patterns + np.random.default_rng(3).poisson(added, scan.patterns.shape)).astype(np.uint16)
    fixed = fixed_background(patterns, scan.calibration)
    assert fixed.shape == added.shape
    y, x = scan.places()
    outside = (np.hypot(y - centre[0], x - centre[1]) > 12) & ~scan.calibration.mask
    assert np.std((fixed - added)[outside]) < 0.25 * added.max()  # what of it is round is each pattern's own
    before, _ = false_and_lost(scan, patterns)
    after, _ = false_and_lost(scan, patterns, fixed_background=fixed)
    assert after < most_false and after < 0.5 * before, (before, after)


def test_a_round_background_and_grains_all_over_the_scan_share_nothing(scan):
    assert fixed_background(scan.patterns, scan.calibration).size == 0
    assert fixed_background(scan.patterns[:5], replace(scan.calibration, centre_px=scan.calibration.centre_px[:5])).size == 0
    phases = [*crystals("layered", "spinel", "rocksalt", "llzo").values()]
    for electrons in (2_000, 50_000):
        rng = np.random.default_rng([electrons, 4])
        patterns, truth = emphase.simulate.ped_scan(rng, phases, (12, 12), emphase.simulate.PedScene(0.1, n_grains=1), electrons=electrons)
        one_grain = emphase.ped.Calibration(0.02178, np.eye(2), truth["centre_px"], masked(patterns), 1.3)
        assert fixed_background(patterns, one_grain).size == 0


def test_a_scan_with_a_halo_off_the_beam_is_mapped(scan):
    """Of its patterns nothing was decided where the halo made spots of its own."""
    phases = [*crystals("layered", "spinel", "rocksalt", "llzo").values()]
    rng = np.random.default_rng(12)
    patterns, truth = emphase.simulate.ped_scan(rng, phases, (12, 12), emphase.simulate.PedScene(0.25, n_grains=8))
    halo = fixed_things(patterns.shape[2:], truth["centre_px"].reshape(-1, 2).mean(axis=0))["halo off the beam"]
    seen = (patterns.astype(np.int64) + np.random.default_rng(3).poisson(halo, patterns.shape)).astype(np.uint16)
    found = emphase.ped.calibrate(seen, phases, emphase.ped.Optics(0.0218, 200.0, 0.5, 0.001, 1.0), cache=BANK_CACHE)
    maps, indexed, spots = emphase.ped.map_scan(seen, found.calibration, found.banks)
    assert not unexplained(spots, found.calibration, found.banks, indexed, maps).phase_is_missing
    decided = maps["decided"]
    assert decided.mean() > 0.2
    assert (maps["phase_id"] == truth["phase"])[decided].mean() > 0.9
