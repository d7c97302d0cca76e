"""Joint registration of frames: peaks chosen together, runs of frames moved by lattice cells, then each to its sub-pixel maximum.

All frames choose among their best peaks of the likelihood under a drift prior with a heavy tail (Viterbi's algorithm; the spread of the
drift by evidence). Runs of frames are then moved by translations of the lattice (`cells`), segments between jumps by the peaks of their
own likelihood, until the evidence of the whole stack rises no more. Each frame is always compared with the scene of the *others*.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from .cells import _CellScores, _Move
from .likelihood import _Canvas, _climb, _likelihood, _Match, _peaks, _signal_power, _smoothed, _Sum
from .options import OPTIONS


@dataclass(frozen=True)
class _DriftPrior:
    """Steps between frames: a normal drift, or with small probability a jump (heavy-tailed)."""

    step: np.ndarray
    spread: float

    def log_density(self, displacement: np.ndarray, gap: np.ndarray | int) -> np.ndarray:
        """Log density of displacements (..., 2) over ``gap`` frames."""
        variance = self.spread**2 * gap
        away2 = np.sum((displacement - self.step * np.asarray(gap)[..., None]) ** 2, axis=-1)
        drift = np.exp(-away2 / (2 * variance)) / (2 * np.pi * variance)
        jump = OPTIONS.jump_length_px / (2 * np.pi * (OPTIONS.jump_length_px**2 + away2) ** 1.5)
        share = np.minimum(0.5, OPTIONS.jump_probability * np.asarray(gap))
        return np.log((1 - share) * drift + share * jump)


def _best_path(
    places: list[np.ndarray], values: list[np.ndarray], frames: np.ndarray, prior: _DriftPrior
) -> tuple[np.ndarray, np.ndarray, float]:
    """The most probable choice of one peak a frame, for each the probability of a peak elsewhere, and the log evidence.

    Viterbi's algorithm for the first, forward-backward sums for the others.
    """
    from scipy.special import logsumexp

    links = [prior.log_density(b[None] - a[:, None], int(g)) for a, b, g in zip(places[:-1], places[1:], np.diff(frames), strict=True)]
    best, back, ahead = values[0], [], [values[0]]
    for link, value in zip(links, values[1:], strict=True):
        table = best[:, None] + link
        back.append(np.argmax(table, axis=0))
        best = table.max(axis=0) + value
        ahead.append(logsumexp(ahead[-1][:, None] + link, axis=0) + value)
    path = [int(np.argmax(best))]
    for pointer in reversed(back):
        path.append(int(pointer[path[-1]]))
    path = path[::-1]
    behind = [np.zeros(len(values[-1]))]
    for link, value in zip(links[::-1], values[:0:-1], strict=True):
        behind.append(logsumexp(link + (value + behind[-1])[None], axis=1))
    total = [a + b for a, b in zip(ahead, behind[::-1], strict=True)]
    elsewhere = [1 - np.exp(t[k] - logsumexp(t)) for t, k in zip(total, path, strict=True)]
    return np.array([p[k] for p, k in zip(places, path, strict=True)]), np.clip(elsewhere, 0, 1), float(logsumexp(ahead[-1]))


def _incoherent_power(canvas: _Canvas, members: np.ndarray) -> np.ndarray:
    """Spectral density of the scene from the mean power of single frames, which knows no shifts."""
    power = np.mean([np.abs(canvas.moved(int(i), np.zeros(2))) ** 2 for i in members], axis=0)
    oversampling = float(np.prod(canvas.shape)) / canvas.area
    return _signal_power(power, float(canvas.totals[members].mean()), oversampling, len(members)) / canvas.area


def _first_path(canvas: _Canvas, members: np.ndarray, reach: np.ndarray) -> np.ndarray:
    """Shifts (n, 2) of members, each against the sum of those before it, drift preferred to jumps."""
    shifts, scene = np.zeros((canvas.n, 2)), None
    total = _Sum(canvas)
    power, prior = _incoherent_power(canvas, members), _DriftPrior(np.zeros(2), OPTIONS.start_spread_px)
    total.add(int(members[0]), shifts[members[0]])
    for before, i in itertools.pairwise(members):
        scene, seen = total.scene(power, scene, rounds=8 if scene is None else 3), total.seen()
        match = _Match(canvas, scene, seen)
        window = shifts[before], np.minimum(reach, OPTIONS.step_px)
        nearest = _peaks(match, (canvas.spectra[i], canvas.box, 0 * canvas.box), *window)[0][0]
        places, values = _peaks(match, (canvas.spectra[i], canvas.box, canvas.pixel_likelihood(int(i), scene, nearest)), *window)
        shifts[i] = places[np.argmax(values + prior.log_density(places - shifts[before], int(i - before)))]
        shifts[i] = np.clip(shifts[i], -reach, reach)
        canvas.scale[i] = canvas.scale_at(int(i), scene, seen, shifts[i])
        total.add(int(i), shifts[i])
    return shifts


@dataclass
class _Joint:
    """The state of a joint registration: shifts (n, 2) of the frames in ``members`` on a canvas."""

    canvas: _Canvas
    members: np.ndarray
    shifts: np.ndarray
    elsewhere: np.ndarray
    prior: _DriftPrior
    jumps: list[dict] = field(default_factory=list)
    beyond: np.ndarray = field(default_factory=lambda: np.zeros(0, bool))  # which frames drift as far as is looked for
    about: np.ndarray | float = 0.0  # shifts (n, 2) that are expected: the drift prior is of what is off them

    def without_lattice(self, left: np.ndarray, binning: int) -> _Joint:
        """A joint registration of the members' counts ``left`` (m, y, x), their lattice taken off, at the present shifts."""
        canvas, members = self.canvas, self.members
        room = (np.array(canvas.shape) - canvas.frame_shape) / 2
        rest = _Joint(
            _Canvas(left, room / binning), np.arange(len(members)), self.shifts[members] / binning, np.zeros(len(members)), self.prior
        )
        rest.canvas.scale = canvas.scale[members]
        return rest

    def trajectory(self) -> np.ndarray:
        """The members' shifts (m, 2) less those expected (``about``)."""
        return (self.shifts - self.about)[self.members]

    def total(self, leave_out: set[int] | frozenset[int] = frozenset()) -> _Sum:
        """The aligned sum of the members, without some."""
        total = _Sum(self.canvas)
        for i in self.members:
            if int(i) not in leave_out:
                total.add(int(i), self.shifts[i])
        return total

    def power(self, segments: list[np.ndarray] | None = None) -> np.ndarray:
        """Spectral density of the scene from the sums of segments between jumps: a segment in a wrong cell does not lower it."""
        canvas, noise, coverage2 = self.canvas, 0.0, 0.0
        squares: Any = 0.0
        for segment in self.segments() if segments is None else segments:
            total = _Sum(canvas)
            for i in segment:
                total.add(int(i), self.shifts[i])
            squares = squares + np.abs(total.spectrum) ** 2
            noise += float(canvas.totals[segment].sum())
            coverage2 += float(np.sum(total.coverage.astype(np.float64) ** 2))
        return _signal_power(squares, noise, float(np.prod(canvas.shape)) / canvas.area) / coverage2

    def leave_one_out(self) -> Any:
        """Each member with the scene that the others show, and where: (frame, scene, seen)."""
        total = self.total()
        scene = total.scene(rounds=12)
        for i in self.members:
            total.add(int(i), self.shifts[i], -1)
            yield int(i), total.scene(start=scene, rounds=4), total.seen()
            total.add(int(i), self.shifts[i])

    def choose_peaks(self) -> None:
        """All frames choose among their best peaks together, under the drift that they show."""
        places, values, scale = [], [], self.canvas.scale.copy()
        for i, scene, seen in self.leave_one_out():
            match = _Match(self.canvas, scene, seen)
            frame = self.canvas.spectra[i], self.canvas.box, self.canvas.pixel_likelihood(i, scene, self.shifts[i])
            p, v = _peaks(match, frame, self.shifts[i], np.array([OPTIONS.step_px, OPTIONS.step_px]))
            places.append(p)
            values.append(v)
            scale[i] = self.canvas.scale_at(i, scene, seen, self.shifts[i])
        self.canvas.scale = scale / np.median(scale[self.members])
        solutions = []
        for spread in OPTIONS.spreads_px:
            step = np.zeros(2)
            for _ in range(2):
                prior = _DriftPrior(step, spread)
                path, elsewhere, evidence = _best_path(places, values, self.members, prior)
                solutions.append((evidence, path, elsewhere, prior))
                step = np.median(np.diff(path, axis=0) / np.diff(self.members)[:, None], axis=0)
        _, self.shifts[self.members], self.elsewhere[self.members], self.prior = max(solutions, key=lambda solution: solution[0])

    def segments(self) -> list[np.ndarray]:
        """Members between jumps: steps far outside of the drift."""
        if len(self.members) < 3:
            return [self.members]
        prior = self.prior
        gaps = np.diff(self.members)[:, None]
        away = np.linalg.norm(np.diff(self.trajectory(), axis=0) - prior.step * gaps, axis=1)
        cuts = np.flatnonzero(away > np.maximum(4 * prior.spread * np.sqrt(gaps[:, 0]), 1.5)) + 1
        return np.split(self.members, cuts)

    def settle_cells(self) -> bool:
        """Move runs of members to the lattice cells where they belong; True if one moved.

        Of all runs and all translations of the lattice the likeliest are compared by pair scores, drift prior
        and the evidence of the whole stack together, until none gains. Then what lies on one side of
        a jump, and every segment, is compared likewise at the peaks of its own likelihood.
        """
        moved = False
        for _ in range(3):
            scores = _CellScores.of(self)
            again = scores is not None and self._move_runs(scores)
            again |= self._move_segments(scores)
            moved |= again
            if not again:
                break
        return moved

    def _move_runs(self, scores: _CellScores, most: int = 30) -> bool:
        """Make the best move of a run until none gains, ``most`` at most; True if one was made."""
        moved = False
        for _ in range(most):
            here, moves = scores.evidence(), scores.moves(self)
            gains = [m.gain + scores.evidence(m.members, m.displacement) - here for m in moves[: OPTIONS.compared_moves]]
            best = int(np.argmax(gains)) if gains else 0
            if not gains or gains[best] < OPTIONS.least_gain_nats:
                self._note_doubts(moves, gains)
                return moved
            scores.move(self, moves[best].members, moves[best].displacement)
            moved = True
        return moved

    def _note_doubts(self, moves: list[_Move], gains: list[float]) -> None:
        """Probability of another cell for every member, from the moves that were not made."""
        weight = np.zeros(self.canvas.n)
        for move, gain in itertools.zip_longest(moves, gains):
            weight[move.members] += math.exp(min(0.0, move.gain if gain is None else gain))
        self.elsewhere = np.where(weight > 0, weight / (1 + weight), 0)

    def _move_segments(self, scores: _CellScores | None) -> bool:
        """Test what lies on one side of each jump, and each segment, at its own peaks; note the jumps. True if one moved."""
        segments, known = self.segments(), {jump["frame"]: jump for jump in self.jumps}
        self.jumps, moved = [], False
        for k in range(1, len(segments)):
            frame = int(segments[k][0])
            if known.get(frame, {}).get("margin_nats", 0) < OPTIONS.clear_nats:
                step, margin = self._settle(min(np.concatenate(segments[:k]), np.concatenate(segments[k:]), key=len), scores)
                moved |= step
                known[frame] = {"frame": frame, "margin_nats": margin}
            self.jumps.append(known[frame])
        for segment in segments[1:-1]:
            moved |= self._settle(segment, scores)[0]
        return moved

    def _settle(self, run: np.ndarray, scores: _CellScores | None) -> tuple[bool, float]:
        """Move a run to its most probable place: whether it moved, and the margin (nats) of that place."""
        step, margin = self._test_segment(run, scores)
        if np.linalg.norm(step) < 1:
            return False, margin
        if scores is None:
            self.shifts[run] += step
        else:
            scores.move(self, run, step)
        return True, margin

    def _test_segment(self, segment: np.ndarray, scores: _CellScores | None) -> tuple[np.ndarray, float]:
        """Most probable common displacement of a segment given all other frames, and its margin (nats) over the next.

        Candidates are peaks of the segment's likelihood against the scene of the others. They are
        compared by the evidence of the whole stack with the segment there, the drift prior and the pair scores.
        """
        canvas = self.canvas
        total = self.total(leave_out={int(i) for i in segment})
        scene = total.scene(rounds=12)
        parts = [
            (canvas.spectra[i], np.float32(canvas.scale[i]) * canvas.box, canvas.pixel_likelihood(i, scene, self.shifts[i]))
            for i in segment
        ]
        frame = tuple(sum(part[k] * canvas.phase(self.shifts[i]) for part, i in zip(parts, segment, strict=True)) for k in range(3))
        reach = np.full(2, 40 if scores is None else max(40, scores.window))
        places, values = _peaks(_Match(canvas, scene, total.seen()), frame, np.zeros(2), reach)
        here = np.linalg.norm(places, axis=1)
        high = values > values[0] - OPTIONS.frame_nats * (8 + len(segment))
        likely = high & (np.arange(len(values)) < OPTIONS.compared_moves + 2) | (here < 0.7)
        likely[np.argmax([self._step_prior(segment, place) for place in places])] = True
        if here.min() > 0.7:
            places, likely = np.vstack([np.zeros(2), places]), np.append(True, likely)
        places = places[likely]
        if len(places) == 1:
            return places[0], float(values[0] - values[1]) if len(values) > 1 else OPTIONS.frame_nats * len(segment)
        score = np.array([self._step_prior(segment, place) for place in places])
        if scores is None:
            power = self.power()
            score += [self._evidence_with(total, segment, place, power) for place in places]
        else:
            score += [scores.evidence(segment, place) + scores.gain(segment, place) for place in places]
        score[np.linalg.norm(places, axis=1) < 0.7] += OPTIONS.least_gain_nats  # no endless moving between equals
        order = np.argsort(score)[::-1]
        return places[order[0]], float(score[order[0]] - score[order[1]])

    def _evidence_with(self, total: _Sum, segment: np.ndarray, displacement: np.ndarray, power: np.ndarray) -> float:
        """Log evidence of the sum of the others with a displaced segment."""
        for i in segment:
            total.add(int(i), self.shifts[i] + displacement)
        value = total.evidence(power)
        for i in segment:
            total.add(int(i), self.shifts[i] + displacement, -1)
        return value

    def _step_prior(self, segment: np.ndarray, displacement: np.ndarray) -> float:
        """Log prior of the steps into and out of a displaced segment."""
        first, last = (int(np.flatnonzero(self.members == i)[0]) for i in (segment[0], segment[-1]))
        value, path = 0.0, self.trajectory()
        for a, b, sign in ((first - 1, first, 1), (last, last + 1, -1)):
            if a >= 0 and b < len(self.members):
                gap = int(self.members[b] - self.members[a])
                value += float(self.prior.log_density(path[b] - path[a] + sign * displacement, gap))
        return value

    def climb(self) -> tuple[float, np.ndarray]:
        """Move every frame to the maximum of its own likelihood nearby; rms move, and -∂∂L of every frame (n, 2, 2)."""
        new, information = self.shifts.copy(), np.zeros((self.canvas.n, 2, 2))
        scale = self.canvas.scale.copy()
        for i, scene, seen in self.leave_one_out():
            spectrum = _likelihood(self.canvas, i, scene, seen, self.shifts[i])
            place, _, information[i] = _climb(self.canvas, spectrum, self.shifts[i])
            if np.linalg.norm(place - self.shifts[i]) < 1.5:
                new[i] = place
            scale[i] = self.canvas.scale_at(i, scene, seen, self.shifts[i])
        move = new - self.shifts
        self.shifts, self.canvas.scale = new, scale / np.median(scale[self.members])
        return float(np.sqrt(np.mean(move[self.members] ** 2))), information

    def contrasts(self) -> tuple[np.ndarray, np.ndarray]:
        """Contrast of every frame relative to the scene of the others, and its standard error (n,)."""
        contrast, error = np.zeros(self.canvas.n), np.full(self.canvas.n, np.inf)
        canvas = self.canvas
        for i, scene, seen in self.leave_one_out():
            flat = canvas.scale[i] * canvas.rate
            there = canvas.image(canvas.spectrum(scene) / canvas.phase(self.shifts[i]))[: canvas.frame_shape[0], : canvas.frame_shape[1]]
            there = there * canvas.under(seen, self.shifts[i])
            energy = flat * float(np.sum(there**2))
            if energy > 1e-6:
                contrast[i] = float(np.sum((canvas.counts[i] - flat) * there)) / energy
                error[i] = 1 / math.sqrt(energy)
        return contrast, error

    def noise_factor(self) -> float:
        """Variance from frame to frame of what the scene does not explain, over that of Poisson counts, where it matters.

        That is at the frequencies that tell the shift. 1 for counts; more where a detector correlates
        its noise or frames are distorted.
        """
        canvas, n = self.canvas, len(self.members)
        squares: Any = 0.0
        mean: Any = 0.0
        weight: Any = 0.0
        for i, scene, seen in self.leave_one_out():
            spectrum = canvas.spectrum(scene)
            there = canvas.image(spectrum / canvas.phase(self.shifts[i]))[: canvas.frame_shape[0], : canvas.frame_shape[1]]
            rest = (canvas.counts[i] - canvas.scale[i] * canvas.rate * (1 + there)) * canvas.under(seen, self.shifts[i])
            rest = canvas.spectrum(rest) * canvas.phase(self.shifts[i])
            squares, mean = squares + np.abs(rest) ** 2, mean + rest / n
            weight = weight + (canvas.qy[:, None] ** 2 + canvas.qx[None] ** 2) * np.abs(spectrum) ** 2 * canvas.double
        weight = _smoothed(weight.astype(np.float32), 5)
        if not weight.any():
            return 1.0
        variance = np.maximum(squares - n * np.abs(mean) ** 2, 0) / (n - 1)
        return float(np.sum(weight * variance) / np.sum(weight)) / float(canvas.totals[self.members].mean())


def _tight_canvas(counts: np.ndarray, shifts: np.ndarray, members: np.ndarray) -> tuple[_Canvas, np.ndarray]:
    """A canvas just large enough for the shifts found, and the shifts about its middle."""
    low, high = shifts[members].min(axis=0), shifts[members].max(axis=0)
    middle = np.round((low + high) / 2)
    return _Canvas(counts, (high - low) / 2 + OPTIONS.tight_room_px), shifts - middle


def _settled(counts: np.ndarray, members: np.ndarray, reach: np.ndarray, about: np.ndarray | None = None) -> _Joint:
    """Members of a stack in their lattice cells, to the pixel; ``reach`` (2,) is the largest shift that is looked for, in px.

    ``about`` (n, 2) are the shifts, where they are known but for lattice cells.
    """
    shifts = _first_path(_Canvas(counts, reach + OPTIONS.room_px), members, reach) if about is None else about
    beyond = (np.abs(shifts).max(axis=1) > reach[0] - 3) & (about is None)
    canvas, shifts = _tight_canvas(counts, shifts, members)
    joint = _Joint(canvas, members, shifts, np.zeros(len(counts)), _DriftPrior(np.zeros(2), OPTIONS.start_spread_px), beyond=beyond)
    joint.about = 0.0 if about is None else shifts.copy()
    for _ in range(3):
        before = joint.shifts.copy()
        if about is None:
            joint.choose_peaks()
        if not joint.settle_cells() or np.abs(joint.shifts - before).max() < 1.5:
            break
    joint.beyond = beyond & (np.abs(joint.shifts - joint.shifts[members[0]]).max(axis=1) > reach[0] - 3)
    return joint


def _solve(counts: np.ndarray, members: np.ndarray, reach: np.ndarray, about: np.ndarray | None = None) -> tuple[_Joint, np.ndarray]:
    """Joint shifts of members of a stack of counts (n, y, x) to the sub-pixel maximum, and -∂∂L of every frame.

    ``reach`` (2,) is the largest shift that is looked for, in px; a third of the frame first, because few drift farther.
    ``about`` (n, 2) are the shifts, where they are known but for lattice cells.
    """
    near = np.minimum(reach, 0.33 * min(counts.shape[1:]))
    joint = _settled(counts, members, near, about)
    if np.any(reach > near) and joint.beyond.any():
        joint = _settled(counts, members, reach)
    for _ in range(5):
        move, information = joint.climb()
        sharpness = np.linalg.eigvalsh(np.mean(information[members], axis=0))[0]
        if move < max(0.002, 0.1 / math.sqrt(max(sharpness, 1e-6))):
            break
    return joint, information
