"""Which lattice cell each frame belongs to: scores of all pairs of frames in all cells, from what differs from cell to cell.

Near-periodic lattices look nearly the same a translation away. What differs is spread thin: a slow modulation of the columns, edges,
superlattice reflections. `_CellScores` gathers it for every pair of frames and every translation of the lattice; a template of frames
that are half in one cell and half in another would defend itself, so whole runs of frames are moved by these scores (`joint`).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import product
from typing import Any, Protocol

import numpy as np

from .likelihood import _Canvas, _Sum
from .options import OPTIONS


class Registration(Protocol):
    """What scores of lattice cells need of a joint registration as it stands (`joint._Joint`, whose docstrings hold here)."""

    canvas: _Canvas
    members: np.ndarray
    shifts: np.ndarray
    prior: Any

    def total(self) -> _Sum: ...

    def segments(self) -> list[np.ndarray]: ...

    def trajectory(self) -> np.ndarray: ...

    def power(self, segments: list[np.ndarray] | None = None) -> np.ndarray: ...

    def without_lattice(self, left: np.ndarray, binning: int) -> Registration: ...


def _reflections(canvas: _Canvas, spectrum: np.ndarray, noise: float, most: int = 40, least: float = 25) -> tuple[np.ndarray, np.ndarray]:
    """Strongest sharp peaks of a sum's half spectrum, ``least`` times its noise: indices (m, 2) and powers (m,), strongest first.

    Rows of a half spectrum wrap around, which `skimage.feature.peak_local_max` does not know.
    """
    from scipy.ndimage import maximum_filter

    power = np.abs(spectrum) ** 2
    q = np.hypot(canvas.qy[:, None], canvas.qx[None]) / (2 * np.pi)
    reach = 2 * math.ceil(2.5 * max(np.array(canvas.shape) / canvas.frame_shape)) + 1
    top = (q > 6 / min(canvas.frame_shape)) & (canvas.qx[None] > 0) & (power > least * noise)
    at = np.argwhere(top & (power == maximum_filter(power, reach, mode="wrap")))
    at = at[np.argsort(power[tuple(at.T)])[::-1][:most]]
    return at, power[tuple(at.T)]


def _between_modes(canvas: _Canvas, spectrum: np.ndarray, at: np.ndarray) -> np.ndarray:
    """Frequencies (m, 2) in rad/px of peaks at the indices ``at``, between modes by the centre of their power."""
    power = np.abs(spectrum) ** 2
    centre, weight = np.zeros((len(at), 2)), np.zeros(len(at))
    for dy, dx in product((-1, 0, 1), repeat=2):
        here = power[(at[:, 0] + dy) % power.shape[0], np.clip(at[:, 1] + dx, 0, power.shape[1] - 1)]
        centre += here[:, None] * np.array([dy, dx])
        weight += here
    whole = np.stack([canvas.qy[at[:, 0]], canvas.qx[at[:, 1]]], -1)
    return whole + centre / weight[:, None] * 2 * np.pi / np.array(canvas.shape)


def _translations(q: np.ndarray, power: np.ndarray, window: int) -> np.ndarray:
    """Translations (t, 2) in px up to ``window`` that bring reflections ``q`` (m, 2) in rad/px back into phase.

    Maxima of equal height are all kept, in the order of the image; `skimage.feature.peak_local_max` keeps one of two that touch.
    """
    from scipy.ndimage import maximum_filter

    near = np.arange(-window, window + 1)
    image = sum(p * np.cos(g[0] * near[:, None] + g[1] * near[None]) for g, p in zip(q, power, strict=True))
    places = np.argwhere((image == maximum_filter(image, 5)) & (image > 0.3 * power.sum())).astype(float) - window
    for _ in range(6):
        turn = places @ q.T
        slope = -(power * np.sin(turn)) @ q
        bend = np.einsum("vm,ma,mb->vab", power * np.cos(turn), q, q)
        low, high = np.linalg.eigvalsh(bend).T
        peaked = low > 1e-6 * high  # reflections along one line have ridges, no translations
        places, bend, slope = places[peaked], bend[peaked], slope[peaked]
        step = np.linalg.solve(bend, slope[..., None])[..., 0]
        places = places + step * np.minimum(1, 1 / np.maximum(np.linalg.norm(step, axis=1), 1e-9))[:, None]
    places = places[np.abs(places).max(axis=1, initial=0) < window - 1]
    same = np.linalg.norm(places[:, None] - places[None], axis=2) < 1
    return places[~np.tril(same, -1).any(axis=1)]


def _near_modes(shape: tuple[int, ...], at: np.ndarray, radius: int) -> np.ndarray:
    """Where a half spectrum lies within ``radius`` modes of the indices ``at`` (m, 2)."""
    near, step = np.zeros(shape, bool), np.arange(-radius, radius + 1)
    dy, dx = (v.ravel() for v in np.meshgrid(step, step, indexing="ij"))
    disc = dy**2 + dx**2 <= radius**2
    rows, columns = (at[:, :1] + dy[disc]) % shape[0], at[:, 1:] + dx[disc]
    inside = (columns >= 0) & (columns < shape[1])
    near[rows[inside], columns[inside]] = True
    return near


def _taper(shape: Iterable[int], share: float) -> np.ndarray:
    """1 inside of a frame, falling to 0 over this share of its sides at either edge.

    Between pixels where `scipy.signal.windows.tukey` is at them: no pixel of the edge is lost.
    """
    sides = []
    for n in shape:
        edge = max(4, int(share * n))
        rise = 0.5 - 0.5 * np.cos(np.pi * (np.arange(edge, dtype=np.float32) + 0.5) / edge)
        sides.append(np.concatenate([rise, np.ones(n - 2 * edge, np.float32), rise[::-1]]))
    return np.outer(*sides)


@dataclass(frozen=True)
class _Move:
    """A run of members that is moved by a translation (2,) of the lattice, and what that gains (nats)."""

    members: np.ndarray
    displacement: np.ndarray
    gain: float


@dataclass
class _CellScores:
    """How well members of a stack agree in other lattice cells: a score (nats) for every pair and displacement.

    Columns of a crystal differ in brightness, by thickness, composition, bending or an edge, from one to the next
    or slowly. Such a modulation m(r) of the lattice c(r) has a copy about *every* reflection. The
    residual of a frame less the lattice, times c, brings all copies together below the first
    reflection, where with amplitudes of spectral density P and noise N, of n frames, a displacement u of
    frame k against j has the log-likelihood Σ_q w Re(conj(m_j) m_k exp(iqu)), w = P/(N(N + nP)).
    On simulated plain lattices at 0.15 counts a pixel, frames in a wrong cell fell from 45 % to about none. Reflections that some
    translations break (superlattices) are added with their amplitudes. Neither depends on how far frames
    overlap, as a correlation of lattice images does.

    ``tables`` (n, n, y, x) hold the first for displacements on a grid of ``pitch`` (2,) px; ``amplitudes`` (n, m)
    and ``weights`` (m,) belong to the ``reflections`` (m, 2) in rad/px; ``offsets`` (n, 2) is how far members were moved since.
    ``rest`` is the stack without its lattice, of pixels ``binning`` times as large, and ``power`` its spectral density: the evidence
    of what is left holds edges and steps, and is not misled by how much lattice a larger area holds.
    """

    tables: np.ndarray
    pitch: np.ndarray
    window: float
    translations: np.ndarray
    reflections: np.ndarray
    amplitudes: np.ndarray
    weights: np.ndarray
    offsets: np.ndarray
    members: np.ndarray
    rest: Registration
    binning: int
    power: np.ndarray

    @classmethod
    def of(cls, joint: Registration) -> _CellScores | None:
        """Scores about the present shifts; None where there is no lattice."""
        canvas, members, total = joint.canvas, joint.members, joint.total()
        at, power = _reflections(canvas, total.spectrum, float(canvas.totals[members].sum()))
        if len(at) == 0:
            return None
        q = _between_modes(canvas, total.spectrum, at)
        strong = float(np.linalg.norm(q[power > 0.1 * power[0]], axis=1).min()) / (2 * np.pi)
        far = 100.0 if len(members) <= 50 else 40.0  # px; the tables of many frames would take too much memory
        window = float(min(0.4 * min(canvas.frame_shape), max(far, 5 / strong)))
        translations = _translations(q, power, int(window))
        if len(translations) < 2:
            return None
        reach = 0.6 * strong
        binning = 2 if min(canvas.frame_shape) >= 512 and reach < 0.1 else 1
        fields, frequency, noise, left = _modulations(joint, total, at, reach, binning)
        runs = [np.searchsorted(members, segment) for segment in joint.segments()]
        rest = joint.without_lattice(left, binning)
        weight = _modulation_weight(fields, frequency / reach, noise, runs, canvas)
        tables, pitch = _pair_tables(fields, weight, np.array(canvas.shape), 2 * window)
        amplitudes, weights = _superlattice(joint, q, power, translations[np.linalg.norm(translations, axis=1) < 0.5 * window])
        offsets, power = np.zeros((len(members), 2)), rest.power(runs)
        return cls(tables, pitch, window, translations, q, amplitudes, weights, offsets, members, rest, binning, power)

    def evidence(self, run: np.ndarray | None = None, displacement: np.ndarray | float = 0.0) -> float:
        """Log evidence of the stack without its lattice, a run of members being moved, but for a constant."""
        rest, kept = self.rest, self.rest.shifts
        if run is not None:
            rest.shifts = kept.copy()
            rest.shifts[np.isin(self.members, run)] += np.asarray(displacement) / self.binning
        value = rest.total().evidence(self.power)
        rest.shifts = kept
        return value

    def _pairs(self, displacement: np.ndarray) -> np.ndarray:
        """Scores (n, n) of column k moved against row j by displacements (n, n, 2)."""
        j, k = np.indices(displacement.shape[:2])
        half = np.array(self.tables.shape[2:]) // 2
        at = np.round(displacement / self.pitch).astype(int)
        known = (np.abs(at) <= half).all(axis=-1)
        y, x = np.moveaxis(np.clip(at, -half, half) + half, -1, 0)
        return np.where(known, self.tables[j, k, y, x], 0)

    def _gains(self, displacements: np.ndarray) -> Iterator[np.ndarray]:
        """For each displacement (t, 2) what every pair (n, n) gains if its second member is moved by it."""
        apart = self.offsets[None] - self.offsets[:, None]
        kept, here = self._pairs(apart), self.amplitudes * np.exp(1j * (self.offsets @ self.reflections.T))
        for u in displacements:
            turn = np.exp(1j * (self.reflections @ u)) - 1
            gain = self._pairs(apart + u) - kept + 2 * np.real((here.conj() * self.weights) @ (here * turn).T)
            np.fill_diagonal(gain, 0)
            yield gain

    def gain(self, run: np.ndarray, displacement: np.ndarray) -> float:
        """What the pair scores gain if a run of members is moved."""
        inside = np.isin(self.members, run)
        return float(next(self._gains(displacement[None]))[np.ix_(~inside, inside)].sum())

    def moves(self, joint: Registration) -> list[_Move]:
        """Moves of runs of members, by pair scores and drift prior, the best first."""
        members, n = joint.members, len(joint.members)
        gaps, step = np.diff(members), np.diff(joint.trajectory(), axis=0)
        link = joint.prior.log_density(step, gaps)
        first, last = np.triu_indices(n + 1, 1)
        allowed = (2 * (last - first) <= n) | ((first > 0) & (last < n))  # a run at an end and the rest are the same move
        moves = []
        others = self.translations[np.linalg.norm(self.translations, axis=1) > 1]
        for u, gain in zip(others, self._gains(others), strict=True):
            sums = np.pad(np.cumsum(gain.sum(axis=0)), (1, 0))
            square = np.pad(np.cumsum(np.cumsum(gain, axis=0), axis=1), ((1, 0), (1, 0)))
            inside = square[last, last] - square[first, last] - square[last, first] + square[first, first]
            into, out_of = (np.pad(joint.prior.log_density(step + sign * u, gaps) - link, 1) for sign in (1, -1))
            value = np.where(allowed, sums[last] - sums[first] - inside + into[first] + out_of[last], -np.inf)
            moves += [_Move(members[first[m] : last[m]], u, float(value[m])) for m in np.argsort(value)[::-1][:3]]
        return sorted(moves, key=lambda move: -move.gain)

    def move(self, joint: Registration, run: np.ndarray, displacement: np.ndarray) -> None:
        """Move a run of members, and note it."""
        joint.shifts[run] += displacement
        inside = np.isin(self.members, run)
        self.offsets[inside] += displacement
        self.rest.shifts[inside] += displacement / self.binning


def _modulations(
    joint: Registration, total: _Sum, at: np.ndarray, reach: float, binning: int
) -> tuple[np.ndarray, np.ndarray, float, np.ndarray]:
    """Half spectra of all members' modulations of the lattice, on a smaller canvas; frequencies (1/px); noise of a mode.

    Last the frames (n, y, x) less their lattice, in pixels ``binning`` times as large.

    ``reach`` (1/px) is the highest frequency of a modulation, a bit more than half the distance to the first strong reflection.
    """
    from scipy import fft
    from skimage.measure import block_reduce

    canvas, members, shape = joint.canvas, joint.members, joint.canvas.frame_shape
    peaks = _near_modes(total.spectrum.shape, at, math.ceil(1.2 * max(np.array(canvas.shape) / shape)))
    lattice, seen = canvas.image(np.where(peaks, canvas.spectrum(total.scene()), 0)), total.seen() > 0
    comb = np.maximum(lattice - np.percentile(lattice[seen], 3), 0)
    comb /= comb[seen].mean()
    images = canvas.spectrum(lattice), canvas.spectrum(comb)
    taper, width = _taper(shape, 0.05), min(1 / reach, min(shape) / 5)
    blur = np.exp(-0.5 * width**2 * (canvas.qy[:, None] ** 2 + canvas.qx[None] ** 2))
    smooth = lambda image: canvas.image(canvas.spectrum(image) * blur)[: shape[0], : shape[1]]
    inside = smooth(np.ones(shape, np.float32))
    small = tuple(min(n, fft.next_fast_len(2 * math.ceil(2 * reach * n) + 2, real=True)) for n in canvas.shape)
    rows = np.round(np.fft.fftfreq(small[0], 1 / small[0])).astype(int)
    fields = np.zeros((len(members), small[0], small[1] // 2 + 1), np.complex64)
    left = np.zeros((len(members), *(n // binning for n in shape)), np.float32)
    for row, coarse, i in zip(fields, left, members, strict=True):
        there, columns = (canvas.image(image / canvas.phase(joint.shifts[i]))[: shape[0], : shape[1]] for image in images)
        flat = np.float32(canvas.scale[i] * canvas.rate)
        rest = canvas.counts[i] - flat * (1 + there)
        trimmed = rest[: left.shape[1] * binning, : left.shape[2] * binning]
        coarse[:] = block_reduce(trimmed, binning, np.sum) + flat * binning**2
        rest = (rest - smooth(rest) / inside) * columns
        rest = (rest - smooth(rest) / inside) * taper
        row[:] = (canvas.spectrum(rest) * canvas.phase(joint.shifts[i]))[rows, : row.shape[1]]
    frequency = np.hypot(rows[:, None] / canvas.shape[0], np.arange(fields.shape[2])[None] / canvas.shape[1])
    passed = 1 - np.exp(-2 * (np.pi * frequency * width) ** 2)  # by what is slower being taken off
    fields *= np.where((frequency < reach) & (passed > 0.2), 1 / np.maximum(passed, 0.2), 0).astype(np.float32)
    noise = canvas.rate * float((taper**2).sum()) * float((comb[seen] ** 2 * (1 + lattice[seen])).mean())
    return fields, frequency, noise, left


def _modulation_weight(fields: np.ndarray, frequency: np.ndarray, noise: float, runs: list[np.ndarray], canvas: _Canvas) -> np.ndarray:
    """Weight P/(N(N + nP)) of every mode, P by rings from the sums of runs; ``frequency`` is 1 at the end of the band."""
    lengths = np.array([len(run) for run in runs], float)
    double = np.broadcast_to(np.where(np.arange(fields.shape[2]) == 0, 1.0, 2.0), fields.shape[1:])
    excess = sum(np.abs(fields[run].sum(axis=0)) ** 2 for run in runs) - noise * lengths.sum()
    used = (frequency < 1) & (np.abs(fields).max(axis=0) > 0)
    rings = OPTIONS.modulation_rings
    ring = np.where(used, np.minimum(frequency * rings, rings - 1).astype(int), rings)
    modes, total = (np.bincount(ring.ravel(), v.ravel(), minlength=rings + 1) for v in (double, excess * double))
    modes[-1] = total[-1] = 0
    independent = np.maximum(modes / 2 * canvas.area / float(np.prod(canvas.shape)), 1)
    mean = total / np.maximum(modes, 1)
    error = noise * np.sqrt((lengths**2).sum() / independent)
    snr = (np.where(mean > error, mean, 0) / (lengths**2).sum() / noise)[ring]
    return (snr / (1 + len(fields) * snr) / noise).astype(np.float32) * np.float32(canvas.area / np.prod(canvas.shape))


def _pair_tables(fields: np.ndarray, weight: np.ndarray, size: np.ndarray, window: float) -> tuple[np.ndarray, np.ndarray]:
    """Scores (n, n, y, x) of all pairs for displacements up to ``window`` px, and their pitch (2,) in px; ``size`` is the canvas."""
    from scipy import fft

    n, small = len(fields), (fields.shape[1], 2 * (fields.shape[2] - 1))
    pitch = size / np.array(small)
    half = np.minimum(window / pitch, 0.45 * np.array(small)).astype(int)
    at = np.ix_(*(np.arange(-h, h + 1) % m for h, m in zip(half, small, strict=True)))
    tables = np.zeros((n, n, *(2 * half + 1)), np.float32)
    for j in range(n):
        left = np.conj(fields[j]) * weight * np.float32(np.prod(small))
        for k in range(j + 1, n):
            tables[j, k] = fft.irfft2(left * fields[k], small)[at]
            tables[k, j] = tables[j, k, ::-1, ::-1]
    return tables, pitch


def _superlattice(joint: Registration, q: np.ndarray, power: np.ndarray, translations: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Amplitudes (n, m) of reflections in all members, and weights (m,), 0 for those that no translation breaks."""
    canvas, members = joint.canvas, joint.members
    taper = _taper(canvas.frame_shape, 0.125)
    waves = [np.exp(-1j * np.outer(q[:, axis], np.arange(size))).astype(np.complex64) for axis, size in enumerate(canvas.frame_shape)]
    amplitude = lambda image: np.sum((waves[0] @ image) * waves[1], axis=1)
    box = amplitude(taper) * canvas.rate
    amplitudes = np.array([amplitude(canvas.counts[i] * taper) - canvas.scale[i] * box for i in members])
    amplitudes *= np.exp(1j * (joint.shifts[members] @ q.T))
    n, noise = len(members), float((taper**2).sum()) * canvas.rate
    snr = np.maximum(np.abs(amplitudes.sum(axis=0)) ** 2 - n * noise, 0) / n**2 / noise
    phase = np.cos(translations @ q.T)
    common = phase @ power > 0.5 * power.sum()
    broken = np.abs(1 - phase[common]).max(axis=0) > 0.5
    return amplitudes, np.where(broken, snr / (1 + n * snr) / noise, 0)
