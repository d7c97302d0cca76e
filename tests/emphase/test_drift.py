"""Registration of low-dose stacks: against simulated truth, the bounds of physics and recorded data."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import study
from scipy.optimize import least_squares

import emphase

SHARED = study.SHARED
needs_shared = pytest.mark.skipif(not SHARED.is_dir(), reason="the recorded data in ../shared are not here")


def errors(solution, truth_px):
    """Errors (n, 2) of used frames about the cell that most share, and which frames are a lattice cell off."""
    error = (solution.shift_px - truth_px)[solution.used]
    votes = [np.linalg.norm(error - e, axis=1) < 2 for e in error]
    same = max(votes, key=np.sum)
    return error[same] - error[same].mean(axis=0), int(np.sum(~same))


@pytest.fixture(scope="module", params=[(2.0, 3), (0.5, 4)], ids=["2 counts", "0.5 counts"])
def stack(request):
    counts, seed = request.param
    frames, truth = study.cryo_stack(np.random.default_rng(seed), 30, (192, 192), counts)
    return frames, truth, emphase.drift.register_stack(frames)


def test_shifts_reach_the_floor_without_hops(stack):
    _, truth, solution = stack
    error, hops = errors(solution, truth["shift_px"])
    assert hops == 0
    assert np.sqrt(np.mean(error**2)) < 1.35 * truth["crlb_px"]
    assert solution.crlb_px == pytest.approx(truth["crlb_px"], rel=0.15)


def test_uncertainty_is_that_of_the_errors(stack):
    _, truth, solution = stack
    error, _ = errors(solution, truth["shift_px"])
    z = error / solution.sigma_px[solution.used][:, None]
    assert 0.7 < np.sqrt(np.mean(z**2)) < 1.35


def test_blank_frame_is_left_out_with_its_reason_and_the_first_is_the_origin(stack):
    _, truth, solution = stack
    assert sorted(solution.left_out) == truth["blank"]
    assert all("blank" in why for why in solution.left_out.values())
    assert not solution.used[truth["blank"]].any()
    assert np.all(solution.shift_px[np.flatnonzero(solution.used)[0]] == 0)
    assert np.isfinite(solution.shift_px).all() and np.isfinite(solution.sigma_px).all()


def test_every_count_is_kept_and_the_average_is_sharper(stack):
    frames, _, solution = stack
    total, coverage, _ = emphase.drift.sum_frames(frames, solution.shift_px, solution.used)
    assert total.sum() == frames[solution.used].sum()
    assert coverage.max() == solution.used.sum()
    average, _ = emphase.drift.covered_average(total, coverage, 0.9)
    plain = frames[solution.used].mean(axis=0)
    n = min(average.shape)
    assert lattice_power(average[:n, :n]) > 1.5 * lattice_power(plain[:n, :n])


def lattice_power(image):
    window = np.outer(np.hanning(len(image)), np.hanning(len(image)))
    power = np.abs(np.fft.fft2((image - image.mean()) * window)) ** 2
    q = np.hypot(*np.meshgrid(np.fft.fftfreq(len(image)), np.fft.fftfreq(len(image))))
    return power[(q > 0.1) & (q < 0.2)].max()


def test_halves_agree_at_the_lattice_and_not_beyond_what_was_simulated(stack):
    frames, _, solution = stack
    half = emphase.drift.half_average_resolution(frames, solution)
    assert 2.5 < half["resolution_px"] < 8  # columns blurred by 0.075 nm pass nothing below 0.11 nm


def test_no_decay_is_invented_and_a_real_one_is_measured():
    rng = np.random.default_rng(8)
    frames, _ = study.cryo_stack(rng, 16, (160, 160), 6.0, critical_dose_frames=20.0, jumps=0)
    solution = emphase.drift.register_stack(frames)
    decay = emphase.drift.lattice_decay(frames, solution, np.arange(16) + 0.5)
    assert abs(decay["pooled_rate"] - 1 / 20) < 4 * decay["pooled_rate_sigma"] + 0.002
    frames, _ = study.cryo_stack(rng, 16, (160, 160), 6.0, jumps=0)
    solution = emphase.drift.register_stack(frames)
    decay = emphase.drift.lattice_decay(frames, solution, np.arange(16) + 0.5)
    assert abs(decay["pooled_rate"]) < 3.5 * decay["pooled_rate_sigma"]


def test_an_edge_that_drifts_into_view_is_no_damage():
    rng = np.random.default_rng(18)
    frames, truth = study.cryo_stack(rng, 12, (160, 160), 6.0, drift_px=3.0, jumps=0, blank_frames=0)
    beyond = np.arange(160)[None, None] - truth["shift_px"][:, 1, None, None] < 20 - truth["shift_px"][:, 1].min()
    beyond = np.broadcast_to(beyond, frames.shape)
    frames = np.where(beyond, rng.poisson(3.0, frames.shape), frames).astype(np.uint16)  # no lattice there
    solution = emphase.drift.register_stack(frames)
    decay = emphase.drift.lattice_decay(frames, solution, np.arange(12) + 0.5)
    assert abs(decay["pooled_rate"]) < 3.5 * decay["pooled_rate_sigma"]


@pytest.mark.parametrize("seed", range(3))
def test_plain_lattice_is_not_hopped_over(seed):
    # some 20,000 counts a frame, as 0.3 a pixel give at 256 x 256 px
    frames, truth = study.cryo_stack(np.random.default_rng(seed), 24, (160, 160), 0.77, jumps=3, scene=emphase.simulate.plain_lattice)
    solution = emphase.drift.register_stack(frames)
    error, hops = errors(solution, truth["shift_px"])
    assert hops == 0
    assert np.sqrt(np.mean(error**2)) < 1.5 * truth["crlb_px"]


def test_drift_beyond_the_frame_is_left_out_with_its_reason():
    frames, truth = study.cryo_stack(np.random.default_rng(4), 14, (128, 128), 6.0, drift_px=24.0, jumps=0, blank_frames=0)
    assert np.ptp(truth["shift_px"], axis=0).max() > 150
    solution = emphase.drift.register_stack(frames)
    assert solution.used.sum() > 4 and not solution.used.all()
    assert all("drifts beyond 128 px" in why for why in solution.left_out.values())
    error, hops = errors(solution, truth["shift_px"])
    assert hops == 0 and np.abs(error).max() < 0.5


def test_lattice_translations_are_those_of_the_lattice():
    q = 2 * np.pi * np.array([[0.0, 0.14], [0.14, 0.0], [0.14, 0.14]])
    found = emphase.drift.cells._translations(q, np.array([3.0, 3.0, 1.0]), 20)
    cells = found * 0.14
    assert np.abs(cells - np.round(cells)).max() < 1e-3
    assert len(found) == 25  # -2 to 2 cells along either axis


def test_reflections_along_one_line_are_no_lattice():
    q = 2 * np.pi * np.array([[0.0, 0.1], [0.0, 0.2]])
    assert len(emphase.drift.cells._translations(q, np.array([2.0, 1.0]), 20)) == 0
    assert len(emphase.drift.cells._translations(q[:1] + 0.2, np.array([2.0]), 20)) == 0


@pytest.mark.parametrize("counts", [0.15, 2.0])
@pytest.mark.parametrize("seed", range(4))
def test_noise_is_refused_whatever_its_seed(counts, seed):
    noise = np.random.default_rng([20, seed]).poisson(counts, (29, 128, 128)).astype(np.uint16)
    assert not emphase.drift.register_stack(noise).registered


@pytest.mark.parametrize("moves", [False, True])
def test_motion_within_frames_is_separated_from_none(moves):
    rng = np.random.default_rng(21 + moves)
    frames, _ = study.cryo_stack(rng, 24, counts_per_px=4.0, drift_px=0.8, within_frame=moves)
    motion = emphase.drift.motion_within_frames(frames, emphase.drift.register_stack(frames))
    assert abs(motion["share_of_drift"] - moves) < 4 * motion["share_of_drift_sigma"]
    assert motion["line_jitter_px"] == [None, None]
    assert max(motion["line_jitter_limit_px"]) < 0.25


def test_jitter_of_scan_lines_is_measured():
    frames, _ = study.cryo_stack(np.random.default_rng(23), 16, counts_per_px=8.0, jitter_px=0.3)
    motion = emphase.drift.motion_within_frames(frames, emphase.drift.register_stack(frames))
    assert motion["line_jitter_px"] == pytest.approx([0.3, 0.3], abs=0.06)


def test_motion_needs_frames_that_are_registered():
    noise = np.random.default_rng(1).poisson(2.0, (6, 64, 64)).astype(np.uint16)
    with pytest.raises(emphase.EmphaseError, match="four frames"):
        emphase.drift.motion_within_frames(noise, emphase.drift.register_stack(noise))


def test_frames_to_keep_is_where_the_sum_is_best():
    dose = np.arange(2000) * 0.01
    keep, snr = emphase.drift.frames_to_keep(dose, 1.0)
    assert dose[keep] == pytest.approx(1.2564, abs=0.03)  # of 2x = exp(x) - 1, Hayward & Glaeser
    assert snr.max() == 1 and snr[keep - 1] == 1
    assert emphase.drift.frames_to_keep(dose, 1.0, least_amplitude=0.5)[0] == pytest.approx(69, abs=2)
    assert emphase.drift.frames_to_keep(dose, -0.1)[0] == len(dose)


def test_weighted_sum_counts_frames_that_often():
    frames = np.random.default_rng(2).poisson(3.0, (3, 20, 20)).astype(np.uint16)
    shift, used = np.array([[0, 0], [1, 2], [-1, 0]]), np.ones(3, bool)
    total, coverage, _ = emphase.drift.sum_frames(frames, shift, used, np.array([1.0, 0.5, 0.25]))
    assert total.sum() == pytest.approx(frames[0].sum() + 0.5 * frames[1].sum() + 0.25 * frames[2].sum())
    assert coverage.max() == pytest.approx(1.75)


def test_landscape_is_highest_where_the_frame_was_put():
    frames, _ = study.cryo_stack(np.random.default_rng(3), 12, (160, 160), 4.0, jumps=0, blank_frames=0)
    landscape = emphase.drift.cell_landscape(frames, emphase.drift.register_stack(frames), 5)
    assert landscape.shape == (49, 49)
    assert np.hypot(*(np.unravel_index(np.argmax(landscape), landscape.shape) - np.array([24, 24]))) < 1.5


def test_pure_noise_is_refused():
    noise = np.random.default_rng(1).poisson(2.0, (16, 128, 128)).astype(np.uint16)
    solution = emphase.drift.register_stack(noise)
    assert not solution.registered
    assert "cannot be registered" in solution.reason
    assert np.all(solution.shift_px == 0)
    assert emphase.drift.half_average_resolution(noise, solution)["resolution_px"] is None


def test_foreign_frame_is_left_out():
    frames, _ = study.cryo_stack(np.random.default_rng(5), 12, (160, 160), 4.0, jumps=0, blank_frames=0)
    other, _ = study.cryo_stack(np.random.default_rng(6), 12, (160, 160), 4.0, jumps=0, blank_frames=0)
    frames[7] = other[7]
    solution = emphase.drift.register_stack(frames)
    assert list(solution.left_out) == [7]
    assert "foreign" in solution.left_out[7]


@pytest.mark.parametrize("n", [1, 2])
def test_one_and_two_frames(n):
    frames, truth = study.cryo_stack(np.random.default_rng(2), n, (128, 128), 8.0, jumps=0, blank_frames=0)
    solution = emphase.drift.register_stack(frames)
    assert solution.used.all()
    if n == 1:
        assert not solution.registered and "two at least" in solution.reason
    else:
        error = solution.shift_px[1] - truth["shift_px"][1]
        assert np.linalg.norm(error) < 6 * math.sqrt(2) * truth["crlb_px"]


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (lambda f: np.zeros_like(f), "all frames are blank"),
        (lambda f: np.where(np.arange(f.shape[-1]) == 3, np.nan, f.astype(float)), "NaN"),
        (lambda f: f.astype(float) - 5, "negative"),
        (lambda f: f[0], "expected numbers of shape"),
        (lambda f: f[:, :4, :4], "16 x 16"),
        (lambda f: np.full(f.shape, 7.5), "no noise"),
    ],
)
def test_bad_stacks_are_refused_in_words(spoil, says):
    frames = np.random.default_rng(0).poisson(2.0, (4, 64, 64)).astype(np.uint16)
    with pytest.raises(emphase.EmphaseError, match=says):
        emphase.drift.register_stack(spoil(frames))


def test_grey_values_are_turned_into_counts_and_said_so():
    frames, truth = study.cryo_stack(np.random.default_rng(9), 8, (160, 160), 6.0, jumps=0, blank_frames=0)
    solution = emphase.drift.register_stack(frames * 37.3)
    assert solution.counts_per_unit == pytest.approx(1 / 37.3, rel=0.05)
    assert "not counts" in solution.notes[0]
    error, hops = errors(solution, truth["shift_px"])
    assert hops == 0 and np.sqrt(np.mean(error**2)) < 1.6 * truth["crlb_px"]
    assert emphase.drift.register_stack(frames).notes == ()


def test_information_of_a_known_image():
    y, x = np.mgrid[:200, :200]
    rate = 10 + 2 * np.sin(2 * np.pi * x / 10) + 0.0 * y
    information = emphase.drift.poisson_shift_information(rate)
    expected = 200 * 200 * (2 * 2 * np.pi / 10) ** 2 / 2 / 10  # Σ(∂λ)²/λ for small contrast
    assert information[1, 1] == pytest.approx(expected, rel=0.04)
    assert abs(information[0, 0]) < 1e-6


def test_ring_correlation_of_the_same_and_of_strangers():
    rng = np.random.default_rng(0)
    a, b = rng.standard_normal((2, 128, 128))
    assert np.allclose(emphase.drift.checks.fourier_ring_correlation(a, a)[1], 1)
    assert abs(emphase.drift.checks.fourier_ring_correlation(a, b)[1][10:].mean()) < 0.05


def test_pair_shifts_near_the_truth_are_off_by_counting_noise():
    frames, truth = study.cryo_stack(np.random.default_rng(5), 8, (96, 96), 6.0, jumps=1, blank_frames=0)
    used = np.arange(8) != 5
    pairs = emphase.drift.pair_shifts(frames, used, 3.0, truth["shift_px"])
    expected = truth["shift_px"][None] - truth["shift_px"][:, None]
    assert np.isnan(pairs[5]).all() and np.isnan(pairs[:, 5]).all()
    measured = pairs[np.ix_(used, used)]
    assert np.array_equal(measured, -measured.transpose(1, 0, 2))
    assert np.median(np.linalg.norm(measured - expected[np.ix_(used, used)], axis=2)) < 4 * truth["crlb_px"]


@needs_shared
def test_recorded_pair_matrix_gives_the_recorded_shifts():
    record = json.loads((SHARED / "realdata/cryo_haadf/rigidregistration_record.json").read_text())
    pairs = np.stack([np.array(record["Y_ij"]).T, np.array(record["X_ij"]).T], axis=-1)
    truth = np.stack([np.ravel(record["shifts_y"]), np.ravel(record["shifts_x"])], axis=-1)
    n = len(pairs)
    i, j = np.nonzero(np.isfinite(pairs).all(axis=2) & ~np.eye(n, dtype=bool))
    links = np.zeros((len(i), n))
    links[np.arange(len(i)), j], links[np.arange(len(i)), i] = 1, -1
    fit = lambda measured: (
        least_squares(lambda x: links @ x - measured[i, j], np.nanmedian(measured, axis=0), lambda x: links, loss="cauchy", f_scale=0.1).x
    )
    found = np.stack([fit(pairs[..., axis]) for axis in (0, 1)], axis=-1)
    error = found - truth
    assert np.abs(error - np.median(error, axis=0)).max() < 0.1
    agree = np.linalg.norm(pairs[i, j] - (found[j] - found[i]), axis=1) < 3
    assert agree.mean() < 0.96  # the outliers are seen


@needs_shared
def test_recorded_trajectory_on_the_recorded_image_is_recovered():
    folder = SHARED / "realdata/cryo_haadf"
    record = json.loads((folder / "rigidregistration_record.json").read_text())
    path = np.round(np.stack([np.ravel(record["shifts_y"]), np.ravel(record["shifts_x"])], axis=-1)).astype(int)
    path -= path[0]
    image = np.asarray(emphase.frames.load_recording(next(folder.glob("*.tif"))).data, dtype=float)
    rng = np.random.default_rng(0)
    corner = path.max(axis=0) + 40 - path
    frames = np.stack([rng.poisson(45 * image[y : y + 256, x : x + 256] / image.mean()) for y, x in corner]).astype(np.uint16)
    solution = emphase.drift.register_stack(frames)
    error, hops = errors(solution, path)
    assert hops == 0
    assert np.sqrt(np.mean(error**2)) < 1.5 * solution.crlb_px


@needs_shared
def test_recorded_stack_without_drift_stays_within_its_error():
    signal = emphase.frames.load_recording(SHARED / "realdata/vendor_files/64x64x5_TEM_preview_1.ser", navigation_dimension=1)
    solution = emphase.drift.register_stack(np.asarray(signal.data))
    shift = solution.shift_px - solution.shift_px.mean(axis=0)
    assert solution.used.all()
    assert np.sqrt(np.mean((shift / solution.sigma_px[:, None]) ** 2)) < 2


@needs_shared
def test_example_with_known_truth():
    signal = emphase.frames.load_recording(SHARED / "example_blind/samples/example/cryo_stem.hspy", navigation_dimension=1)
    truth = json.loads((SHARED / "example_blind/example_truth.json").read_text())["cryo_stem"]
    solution = emphase.drift.register_stack(np.asarray(signal.data))
    assert sorted(solution.left_out) == truth["bad"]
    error, hops = errors(solution, np.array(truth["shifts"]))
    assert hops == 0
    assert np.sqrt(np.mean(error**2)) < 1.2 * truth["crlb_px"]
