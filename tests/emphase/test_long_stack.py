"""Stacks larger than memory: segment by segment, the same as jointly, and the same after a crash."""

from __future__ import annotations

import dataclasses
import itertools

import numpy as np
import pytest
import study

import emphase

SMALL = 1e6  # bytes, in which no more than the shortest segments fit


def same(a, b):
    """Whether two solutions are the same, to the bit."""
    return emphase.chunks.content_key(vars(a)) == emphase.chunks.content_key(vars(b))


def errors(solution, truth_px):
    """Errors (n, 2) of used frames about the cell that most share, and the number of frames in another."""
    error = (solution.shift_px - truth_px)[solution.used]
    votes = [np.linalg.norm(error - e, axis=1) < 2 for e in error]
    most = max(votes, key=np.sum)
    return error[most] - error[most].mean(axis=0), int(np.sum(~most))


@pytest.fixture(scope="module")
def stack():
    """44 frames in four segments, with jumps and, in the middle, a run of blank frames."""
    frames, truth = study.cryo_stack(np.random.default_rng(4), 44, (80, 80), 3.0, jumps=2, blank_frames=0)
    frames[20:23] = np.random.default_rng(1).poisson(0.02, (3, 80, 80))
    return frames, truth


@pytest.fixture(scope="module")
def solution(stack):
    return emphase.drift.register_stack(stack[0], budget_bytes=SMALL)


def segments_of(n):
    return list(emphase.drift.segments._segments_of(n, np.s_[0:80, 0:80], SMALL).values())


def recorded(path, frames):
    """Frames of a file that is read lazily."""
    import hyperspy.api as hs

    hs.signals.Signal2D(frames).save(str(path), chunks=(7, *frames.shape[1:]))
    return emphase.frames.RecordedFrames(path, navigation_dimension=1)


def test_segments_give_what_the_joint_solution_gives(stack, solution):
    frames, truth = stack
    joint = emphase.drift.register_stack(frames)
    error, hops = errors(solution, truth["shift_px"])
    assert hops == 0
    assert np.sqrt(np.mean(error**2)) < 1.2 * truth["crlb_px"]
    assert 0.8 < np.sqrt(np.mean((error / np.median(solution.sigma_px[solution.used])) ** 2)) < 1.25
    apart = (solution.shift_px - joint.shift_px)[joint.used]
    assert np.sqrt(np.mean((apart - apart.mean(axis=0)) ** 2)) < 0.3 * truth["crlb_px"]
    assert sorted(solution.left_out) == sorted(joint.left_out) == [20, 21, 22]
    assert solution.left_out == joint.left_out
    assert {jump["frame"] for jump in solution.jumps} == {jump["frame"] for jump in joint.jumps}
    assert solution.crlb_px == pytest.approx(joint.crlb_px, rel=0.1)
    assert "segments" in solution.notes[0] and not joint.notes


def test_segments_cover_every_frame_once_and_share_some():
    for n in (17, 44, 97, 1000):
        segments = segments_of(n)
        cores = np.concatenate([np.arange(s.core.start, s.core.stop) for s in segments])
        assert np.array_equal(cores, np.arange(n))
        assert all(np.isin(cores[s.core], s.items).all() for s in segments)
        assert all(len(np.intersect1d(a.items, b.items)) >= 2 for a, b in itertools.pairwise(segments))


@pytest.mark.parametrize("place", ["border", "shared"])
def test_a_jump_by_about_a_cell_at_the_border_of_segments_is_no_hop(place):
    rng = np.random.default_rng(12)
    second = segments_of(28)[1]
    border = second.core.start if place == "border" else int(second.items[0])
    scene = emphase.simulate.plain_lattice(rng, (150, 150))
    truth = np.cumsum(rng.normal(0, 0.3, (28, 2)), axis=0)
    truth[border:] += [7.2, 0.0]
    whole = np.round(truth - truth[0]).astype(int)
    frames = rng.poisson([2.0 * scene[35 - y : 115 - y, 35 - x : 115 - x] for y, x in whole]).astype(np.uint16)
    solution = emphase.drift.register_stack(frames, budget_bytes=SMALL, max_shift_px=26)
    error, hops = errors(solution, whole)
    assert hops == 0 and solution.used.all()
    assert np.sqrt(np.mean(error**2)) < 1.3 * solution.crlb_px


def test_a_segment_in_a_wrong_cell_is_put_right_by_the_sums(monkeypatch):
    angle = np.random.default_rng(6).uniform(0, np.pi / 2)  # of the lattice that this seed gives
    rng = np.random.default_rng(6)
    scene = emphase.simulate.plain_lattice(rng, (150, 150))
    whole = np.round(np.cumsum(rng.normal(0, 0.4, (44, 2)), axis=0)).astype(int)
    frames = rng.poisson([2.0 * scene[35 - y : 115 - y, 35 - x : 115 - x] for y, x in whole]).astype(np.uint16)
    chain = emphase.drift.trajectory._chain_segments

    def off_by_a_cell(found, segments, fields):
        places, agrees = chain(found, segments, fields)
        if len(segments) == 4:
            places[2:] += 7.2 * np.array([np.cos(angle), np.sin(angle)])
        return places, agrees

    monkeypatch.setattr(emphase.drift.trajectory, "_chain_segments", off_by_a_cell)
    solution = emphase.drift.register_stack(frames, budget_bytes=SMALL, max_shift_px=26)
    error, hops = errors(solution, whole)
    assert hops == 0 and solution.used.all()
    assert np.sqrt(np.mean(error**2)) < 1.3 * solution.crlb_px


def test_a_foreign_segment_is_left_out_and_what_follows_is_not(stack):
    frames = stack[0].copy()
    core = segments_of(44)[2].core
    other, _ = study.cryo_stack(np.random.default_rng(77), 44, (80, 80), 3.0, jumps=0, blank_frames=0)
    frames[core] = other[core]
    solution = emphase.drift.register_stack(frames, budget_bytes=SMALL, max_shift_px=26)
    foreign = set(range(core.start, core.stop))
    assert foreign <= set(solution.left_out) and all("foreign" in solution.left_out[i] for i in foreign)
    assert solution.used[core.stop :].all() and solution.used[:20].all()
    error, hops = errors(solution, stack[1]["shift_px"])
    assert hops == 0 and np.sqrt(np.mean(error**2)) < 1.3 * stack[1]["crlb_px"]


def test_what_is_broken_off_goes_on_to_the_same_bits(stack, solution, tmp_path):
    work = emphase.chunks.LongWork(tmp_path / "work", {"stack": "0"})
    jobs_begun = []

    def breaks_off(after):
        def progress(jobs):
            jobs_begun.append(len(jobs))
            for k, job in enumerate(jobs):
                if k == after:
                    raise KeyboardInterrupt
                yield job

        return progress

    for after in (2, 1, 3):  # at last among those that climb
        with pytest.raises(KeyboardInterrupt):
            emphase.drift.register_stack(stack[0], budget_bytes=SMALL, work=work, progress=breaks_off(after))
    again = emphase.drift.register_stack(stack[0], budget_bytes=SMALL, work=work, progress=breaks_off(None))
    assert same(again, solution)
    assert jobs_begun == [4, 2, 1, 4, 1]  # segments, the rest of them, the last; then what climbs, and its rest


def test_a_recorded_stack_gives_the_same_as_the_array(stack, solution, tmp_path):
    frames = recorded(tmp_path / "stack.hspy", stack[0])
    assert isinstance(emphase.drift.check_stack(frames), np.ndarray)
    assert isinstance(emphase.drift.check_stack(frames, "", SMALL), emphase.frames.RecordedFrames)
    assert same(emphase.drift.register_stack(frames, budget_bytes=SMALL), solution)
    for a, b in zip(*(emphase.drift.sum_frames(f, solution.shift_px, solution.used) for f in (frames, stack[0])), strict=True):
        assert np.array_equal(a, b)
    even = emphase.drift.stack.PickedFrames(frames, np.arange(0, 44, 2))
    assert np.array_equal(even[3:7], stack[0][6:14:2]) and np.array_equal(even[5], stack[0][10])
    assert np.array_equal(emphase.drift.stack.frame_means(even), stack[0][::2].mean(axis=(1, 2)))
    some, part, which = emphase.drift.checks.some_frames(frames, solution, also=[3])
    assert 3 in which and np.array_equal(some, stack[0][which]) and np.array_equal(part.shift_px, solution.shift_px[which])
    assert np.all(np.diff(emphase.drift.checks.some_frames(frames, solution, in_a_row=True)[2]) >= 1)


@pytest.mark.parametrize(("value", "says"), [(np.nan, "NaN or infinite values in 1 frames, the first is frame 41"), (-1.0, "negative")])
def test_a_bad_value_late_in_a_recorded_stack_is_refused(stack, tmp_path, value, says):
    frames = stack[0].astype(np.float32)
    frames[41, 3, 4] = value
    with pytest.raises(emphase.EmphaseError, match=says):
        emphase.drift.register_stack(recorded(tmp_path / "stack.hspy", frames), budget_bytes=SMALL)


def test_noise_is_refused_by_segments_too():
    noise = np.random.default_rng(1).poisson(2.0, (44, 80, 80)).astype(np.uint16)
    solution = emphase.drift.register_stack(noise, budget_bytes=SMALL)
    assert not solution.registered and "cannot be registered" in solution.reason


def test_oversampled_large_frames_are_registered_in_larger_pixels(monkeypatch):
    monkeypatch.setattr(emphase.drift.segments, "OPTIONS", dataclasses.replace(emphase.drift.options.OPTIONS, field_px=64))
    counts = np.random.default_rng(2).poisson(2.0, (6, 256, 256))
    items = emphase.drift.segments._Items(counts, list(np.arange(6)[:, None]), np.ones(6, bool), 1.0, 2)
    (numbers, first), *_ = items.read(np.arange(2, 4))
    assert list(numbers) == [2, 3] and first.shape == (2, 128, 128)
    assert first[0, 3, 5] == counts[2, 6:8, 10:12].sum()
    assert first.sum() == counts[2:4].sum()
