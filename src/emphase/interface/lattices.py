"""Crystal lattices in a bright-field image: identification, and how much of each there is at every point.

Every window is searched by itself; a lattice is accepted while it explains windows that those accepted before, and their pairs, do not, and
is identified once more from the mean spectrum of the windows that show it best. The local amplitude of its spots (lock-in with a Gaussian
kernel, less that of control frequencies) is then explained as a non-negative sum of the amplitudes that the lattices have where they are
alone.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..errors import EmphaseError
from .pixel import OPTIONS as PIXEL_OPTIONS
from .pixel import PixelScale
from .spectra import OPTIONS as SPECTRUM_OPTIONS
from .spectra import Lattice, WindowSpectra, _half_plane_area, _match, _missing, _PatternBank, _same_spots, _sigma, spectrum_peaks


@dataclass(frozen=True)
class LatticeOptions:
    """Tuning of the search for lattices."""

    least_score: float = 6.0  # nats of a window for a lattice
    least_gain: float = 3.0  # nats by which a window needs a lattice beyond those accepted
    least_support: float = 25.0  # nats of all windows that need it
    most_lattices: int = 8
    mean_threshold: float = 3.0  # least power over background of a peak of the mean spectrum of many windows
    mean_error: tuple[float, float] = (0.08, 0.004)  # of its peaks, in bins and as a share of q: noise and strain average out
    explained_within: float = 3.5  # errors of a peak
    kernel_steps: float = 2.5  # of the grid in a standard deviation of the lock-in
    common_spots: float = 0.02  # over the kernel: frequencies nearer to each other are one to the lock-in
    amplitude_error: tuple[float, float] = (0.3, 0.1)  # of a spot, as a share of its own and of the usual amplitude
    alone: tuple[float, float] = (0.6, 0.25)  # least share of a lattice, and largest of the others, where it sets its amplitudes
    share_error: float = 0.05  # of a share, beside that of noise: thickness varies
    strange_peak: float = 20.0  # power over background of a peak that has to belong to a lattice


OPTIONS = LatticeOptions()


@dataclass
class _Window:
    """Peaks of one window and the hypotheses about it."""

    q: np.ndarray
    strength: np.ndarray
    sigma: np.ndarray
    score: np.ndarray
    turn: np.ndarray
    hand: np.ndarray


def _searched_windows(spectra: WindowSpectra, bank: _PatternBank, scale: float, progress: Any) -> list[_Window]:
    """Peaks of every window, at the true scale, and the scores of all patterns."""
    windows = []
    for i in progress(range(len(spectra.power))):
        q, strength = spectrum_peaks(*spectra.mean([i]), spectra.bin_invA)
        q = q / scale
        sigma = _sigma(q, spectra.bin_invA)
        windows.append(
            _Window(q, strength, sigma, *bank.search(q, sigma, strength, PIXEL_OPTIONS.strain_tolerance, PIXEL_OPTIONS.peak_threshold))
        )
    return windows


def _score_placed(window: _Window, spots: np.ndarray, weight: np.ndarray, amplitude: np.ndarray | None) -> float:
    """Score of spots that are already placed; without amplitudes nothing is expected to be there."""
    if len(window.q) < 2:
        return -1e9
    matched = np.empty(len(window.q), dtype=np.int64)
    nothing_excused = np.zeros(len(window.q), dtype=bool)
    score = _match(window.q, window.sigma, spots, weight, _half_plane_area(), nothing_excused, matched)
    if amplitude is not None:
        score += _missing(window.q, window.strength, spots, amplitude, matched, PIXEL_OPTIONS.peak_threshold)[0]
    return score


def _proposals(windows: list[_Window], bank: _PatternBank, limit: int = 40) -> list[tuple[int, np.ndarray]]:
    """Distinct placed patterns that are among the best three of some windows, most supported first."""
    groups: list[list] = []
    for window in windows:
        for index in np.argsort(-window.score)[:3]:
            if window.score[index] < OPTIONS.least_score:
                continue
            spots = bank.placed(index, window.turn[index] / abs(window.turn[index]), window.hand[index])
            weight = bank.patterns[index].weight
            for group in groups:
                if group[0] == index and _same_spots(spots, weight, group[1]) > SPECTRUM_OPTIONS.same_spots:
                    group[2] += window.score[index]
                    break
            else:
                groups.append([index, spots, window.score[index]])
    groups.sort(key=lambda g: -g[2])
    return [(int(g[0]), g[1]) for g in groups[:limit]]


def _accepted_lattices(windows: list[_Window], bank: _PatternBank) -> tuple[list[tuple[int, np.ndarray]], np.ndarray]:
    """Lattices that the windows need, and the score (windows, lattices) of each; one enters while it explains what single
    ones and pairs of those before it do not."""
    proposals = _proposals(windows, bank)
    scores = np.array(
        [[_score_placed(w, spots, bank.patterns[i].weight, bank.patterns[i].amplitude) for i, spots in proposals] for w in windows]
    )
    base = np.zeros(len(windows))
    accepted: list[int] = []
    while proposals and len(accepted) < OPTIONS.most_lattices:
        gain = np.clip(scores - base[:, None], 0, None)
        gain = np.where(gain > OPTIONS.least_gain, gain, 0)
        support = np.where((gain > 0).sum(axis=0) >= 3, gain.sum(axis=0), 0)
        best = int(np.argmax(support))
        if support[best] < OPTIONS.least_support:
            break
        index, spots = proposals[best]
        for other in accepted:
            both = np.concatenate([spots, proposals[other][1]])
            weight = 0.5 * np.concatenate([bank.patterns[index].weight, bank.patterns[proposals[other][0]].weight])
            pair = np.array([_score_placed(w, both, weight, None) - 4 for w in windows])
            base = np.maximum(base, pair)
        base = np.maximum(base, scores[:, best])
        accepted.append(best)
    return [proposals[i] for i in accepted], scores[:, accepted]


def _identified(
    spectra: WindowSpectra, chosen: np.ndarray, scales: Sequence[PixelScale], bank: _PatternBank, neighbours: np.ndarray
) -> Lattice | None:
    """The lattice that the mean spectrum of some windows shows; peaks at spots of its ``neighbours`` (complex) need no explanation.

    Its place is that at the most probable scale, and its posterior the mean over all ``scales`` by their probability.
    """
    n, bin_invA = len(chosen), spectra.bin_invA
    threshold = max(OPTIONS.mean_threshold, PIXEL_OPTIONS.peak_threshold / math.sqrt(n))
    stated, strength = spectrum_peaks(*spectra.mean(chosen), bin_invA, threshold)
    q = stated / scales[0].scale
    if len(q) < 3:
        return None
    sigma = _sigma(q, bin_invA, *OPTIONS.mean_error)
    excused = np.min(np.abs(q[:, None] - neighbours), axis=1, initial=1.0) < 3 * sigma
    search = lambda q: bank.search(q, sigma, strength, PIXEL_OPTIONS.strain_tolerance, threshold, excused)
    score, turn, hand = search(q)
    score = _at_scale(score, turn, bank, scales[0])
    best = int(np.argmax(score))
    spots = bank.placed(best, turn[best], hand[best])
    nearest = np.abs(q[:, None] - spots[None, :]).argmin(axis=1)
    explained = np.abs(q - spots[nearest]) < OPTIONS.explained_within * sigma
    if explained.sum() < 2:
        return None
    searched = [(search(stated / other.scale), other) for other in scales[1:]]
    scores = [score, *(_at_scale(found[0], found[1], bank, other) for found, other in searched)]
    chances = [other.probability for other in scales]
    posterior = dict(zip([*bank.phases, "unknown"], np.dot(chances, [bank.phase_posterior(x) for x in scores]).tolist(), strict=True))
    zones = bank.zone_posterior(scores, chances)
    return Lattice(bank.patterns[best], turn[best], spots, posterior, zones, q[explained], strength[explained], nearest[explained], n)


def _at_scale(score: np.ndarray, turn: np.ndarray, bank: _PatternBank, scale: PixelScale) -> np.ndarray:
    """Scores of all patterns if the pixel is as a phase gives it: none of another size, and what that phase explains is that phase."""
    there = np.where(np.abs(np.abs(turn) - 1) > PIXEL_OPTIONS.strain_tolerance, -1e9, score)
    own = bank.phase_of_pattern == scale.phase
    return np.where(np.isin(bank.phase_of_pattern, scale.rivals), -1e9, there) if there[own].max(initial=-1.0) > 0 else there


def _strange_peaks(window: _Window, lattices: list[Lattice]) -> bool:
    """Whether a window has a clear peak that is no spot of any of the lattices."""
    known = np.concatenate([x.spots for x in lattices]) if lattices else np.array([1e3 + 0j])
    if len(window.q) == 0:
        return False
    far = np.abs(window.q[:, None] - known[None, :]).min(axis=1) > 4 * window.sigma
    return bool(np.any(far & (window.strength > OPTIONS.strange_peak)))


def find_lattices(
    spectra: WindowSpectra, bank: _PatternBank, scales: Sequence[PixelScale], progress: Any = iter
) -> tuple[list[Lattice], np.ndarray, list[dict[str, float]]]:
    """The crystal lattices in an image, from the spectra of its windows.

    Every window is searched by itself; the lattices that several windows need are then identified from the mean spectrum of the windows
    that show them best.

    Parameters
    ----------
    spectra, bank
        Spectra of windows, and the candidate patterns.
    scales
        What the pixel may be, the most probable first, from `calibrate_on_lattice`.
    progress
        Wraps the iteration over the windows.

    Returns
    -------
    lattices
        The most supported first.
    owner
        (n,) for every window the lattice that it shows most clearly; -1 where nothing is found, -2 where there are peaks that no candidate
        explains.
    zones
        For every window the posterior of each phase in each zone axis, from that window alone.
    """
    windows = _searched_windows(spectra, bank, scales[0].scale, progress)
    accepted, scores = _accepted_lattices(windows, bank)
    lattices: list[Lattice] = []
    owner = np.full(len(windows), -1)
    margin = np.zeros(len(windows))
    if accepted:
        order = np.sort(np.concatenate([scores, np.zeros((len(scores), 1))], axis=1), axis=1)
        margin = order[:, -1] - order[:, -2]
        winner = np.where(order[:, -1] > OPTIONS.least_score, scores.argmax(axis=1), -1)
    for k in range(len(accepted)):
        mine = np.nonzero(winner == k)[0]
        mine = mine[np.argsort(-margin[mine])][:25]
        if len(mine) < 2:
            continue
        others = np.concatenate([np.zeros(0, dtype=complex), *(spots for i, (_, spots) in enumerate(accepted) if i != k)])
        lattice = _identified(spectra, mine, scales, bank, others)
        if lattice is None:
            continue
        same = [
            i
            for i, other in enumerate(lattices)
            if other.pattern is lattice.pattern
            and _same_spots(lattice.spots, lattice.pattern.weight, other.spots, 0.02) > SPECTRUM_OPTIONS.same_spots
        ]
        if not same:
            lattices.append(lattice)
        owner[winner == k] = same[0] if same else len(lattices) - 1
    strange = np.array([_strange_peaks(w, lattices) for w in windows])
    owner[(owner < 0) & strange] = -2
    return lattices, owner, _window_posteriors(spectra, bank, scales, windows)


def _window_posteriors(
    spectra: WindowSpectra, bank: _PatternBank, scales: Sequence[PixelScale], windows: list[_Window]
) -> list[dict[str, float]]:
    """For every window the posterior of each phase in each zone axis, over all scales that a phase gives."""
    by_phase = [scale for scale in scales if scale.phase] or [scales[0]]
    searched = [windows, *(_searched_windows(spectra, bank, scale.scale, iter) for scale in by_phase[1:])]
    chances = np.array([scale.probability for scale in by_phase])
    scores = [
        [_at_scale(w.score, w.turn, bank, scale) for w, scale in zip(of_window, by_phase, strict=True)]
        for of_window in zip(*searched, strict=True)
    ]
    return [bank.zone_posterior(of_window, chances / chances.sum()) for of_window in scores]


def _lock_in(image: np.ndarray, spots_px: np.ndarray, sigma_px: float, grid: tuple[int, int]) -> np.ndarray:
    """Amplitude of each spatial frequency (cycles a pixel, complex x + iy) around every point of a grid that spans the image.

    A Gaussian kernel of the given width; towards the border the amplitude is that of the part
    inside. Returns amplitudes (n, *grid).
    """
    from scipy.fft import fft2, ifft2
    from scipy.ndimage import gaussian_filter1d

    pad = math.ceil(3 * sigma_px)
    steps = [n / m for n, m in zip(image.shape, grid, strict=True)]
    margins = [math.ceil(pad / step) for step in steps]
    full = tuple(m + 2 * e for m, e in zip(grid, margins, strict=True))
    padded = tuple(round(m * step) for m, step in zip(full, steps, strict=True))
    canvas = np.zeros(padded, dtype=np.float32)
    canvas[: image.shape[0], : image.shape[1]] = image - image.mean()
    spectrum = fft2(canvas)
    fy, fx = (np.fft.fftfreq(m, step) for m, step in zip(full, steps, strict=True))
    kernel = np.exp(-2 * (np.pi * sigma_px) ** 2 * (fy[:, None] ** 2 + fx[None, :] ** 2))
    inside = [gaussian_filter1d(np.pad(np.ones(m), e), sigma_px / step)[e : e + m] for m, e, step in zip(grid, margins, steps, strict=True)]
    mass = inside[0][:, None] * inside[1][None, :]
    rows, columns = (np.round(np.fft.fftfreq(m) * m).astype(int) for m in full)
    out = np.empty((len(spots_px), *grid), dtype=np.float32)
    offset = [(step - 1) / 2 for step in steps]
    for i, spot in enumerate(spots_px):
        at = (round(spot.imag * padded[0]), round(spot.real * padded[1]))
        patch = spectrum[np.ix_((rows + at[0]) % padded[0], (columns + at[1]) % padded[1])] * kernel
        patch = patch * np.exp(2j * np.pi * (fy[:, None] * offset[0] + fx[None, :] * offset[1]))
        field = ifft2(patch) * (full[0] * full[1] / (padded[0] * padded[1]))
        out[i] = 2 * np.abs(field[: grid[0], : grid[1]]) / mass
    return out


def _common_spots(lattices: list[Lattice], reach: float) -> np.ndarray:
    """The measured spots of all lattices, those nearer than reach taken as one."""
    spots: list[complex] = []
    for lattice in lattices:
        for q in lattice.measured[np.argsort(-lattice.strength)][:14]:
            if not spots or min(min(abs(q - s), abs(q + s)) for s in spots) > reach:
                spots.append(complex(q))
    return np.array(spots)


def _non_negative_shares(amplitudes: np.ndarray, signatures: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """Non-negative c (n, lattices) that minimise sum_s w_s (a_s - sum_v c_v r_sv)², by coordinate descent.

    All points share one Gram matrix, so this takes them together; `scipy.optimize.nnls` takes one at a time.
    """
    gram = (signatures * weight[:, None]).T @ signatures
    right = amplitudes @ (signatures * weight[:, None])
    shares = np.clip(right / np.diag(gram), 0, None)
    for _ in range(60):
        for v in range(len(gram)):
            rest = right[:, v] - shares @ gram[:, v] + shares[:, v] * gram[v, v]
            shares[:, v] = np.clip(rest / gram[v, v], 0, None)
    return shares


def _control_spots(spots: np.ndarray, lattices: list[Lattice], reach: float, number: int = 4) -> np.ndarray:
    """For every spot (n,) frequencies (n, number) as long where no lattice has a spot: what they hold is noise and amorphous matter."""
    known = np.concatenate([x.spots for x in lattices])
    turns = np.exp(1j * np.radians(np.arange(4, 177, 4)))
    trial = spots[:, None] * turns
    apart = np.min(np.abs(trial[..., None] - np.concatenate([known, -known])), axis=-1)
    free = np.where(apart > reach, np.random.default_rng(0).random(apart.shape), 2.0 - apart)
    return np.take_along_axis(trial, np.argsort(free, axis=1)[:, :number], axis=1)


def lattice_shares(
    image: np.ndarray, pixel_size_nm: float, spectra: WindowSpectra, lattices: list[Lattice], owner: np.ndarray, kernel_nm: float = 0.55
) -> tuple[np.ndarray, float, np.ndarray, np.ndarray]:
    """How much of each lattice there is around every point of a grid.

    Parameters
    ----------
    image
        (y, x).
    pixel_size_nm
        As calibrated.
    spectra, lattices, owner
        The spectra of its windows, and what `find_lattices` found in them.
    kernel_nm
        Standard deviation of the Gaussian over which an amplitude is measured.

    Returns
    -------
    shares
        (lattices, y, x), 1 inside a lattice.
    step_nm
        Of the grid.
    error
        (lattices,) standard error of the shares.
    misfit
        (y, x), the share of the amplitudes, weighted, that the sum does not explain: 0 where all do or where there is no more than noise, 1
        where none does.

    Raises
    ------
    EmphaseError
        Where there is no lattice.

    Notes
    -----
    The amplitude of every spot is measured by lock-in, less that of frequencies of the same length where no lattice has a spot, and
    explained as a sum of the amplitudes of the lattices, taken from the windows that each of them owns. Spots that two lattices share count
    for both, and those of one only decide.
    """
    from scipy.ndimage import gaussian_filter

    if not lattices:
        raise EmphaseError("lattices: got none, expected those that `find_lattices` found: without one there are no spots to follow")
    step_px = max(1, round(kernel_nm / OPTIONS.kernel_steps / pixel_size_nm))
    grid = tuple(max(8, n // step_px) for n in image.shape)
    spots = _common_spots(lattices, OPTIONS.common_spots / kernel_nm)
    sigma_px = kernel_nm / pixel_size_nm
    lock_in = lambda q: _lock_in(image.astype(np.float32), q * 10 * pixel_size_nm, sigma_px, grid)
    power = lock_in(spots).reshape(len(spots), -1).T.astype(float) ** 2
    control = lock_in(_control_spots(spots, lattices, 0.5 / (10 * kernel_nm)).ravel()).astype(float) ** 2
    control = np.median(control.reshape(len(spots), -1, *grid), axis=1) / math.log(2)  # the median of an exponential law
    noise = np.stack([gaussian_filter(c, kernel_nm / (step_px * pixel_size_nm)) for c in control]).reshape(len(spots), -1).T
    flat = np.sqrt(np.clip(power - noise, 0, None))
    centres = np.clip((spectra.centres / np.array(image.shape) * np.array(grid)).astype(int), 0, np.array(grid) - 1)
    at = centres[:, 0] * grid[1] + centres[:, 1]
    signatures = np.array([np.median(flat[at[owner == v]], axis=0) for v in range(len(lattices))]).T
    scale = signatures.max(axis=1) + 1e-9
    weight = 1 / (OPTIONS.amplitude_error[0] * scale + np.median(scale) * OPTIONS.amplitude_error[1]) ** 2
    for _ in range(2):
        shares = _non_negative_shares(flat, signatures, weight)
        winner = np.where(shares.max(axis=1) > OPTIONS.alone[0], shares.argmax(axis=1), -1)
        for v in range(len(lattices)):
            core = (winner == v) & (np.delete(shares, v, axis=1).max(axis=1, initial=0) < OPTIONS.alone[1])
            if core.sum() >= 8:
                signatures[:, v] = np.median(flat[core], axis=0)
    shares = _non_negative_shares(flat, signatures, weight)
    rest = flat - shares @ signatures.T
    variance = float(np.average(np.median(rest**2, axis=0), weights=weight))
    covariance = np.linalg.inv((signatures * weight[:, None]).T @ signatures) * variance * weight.mean()
    error = np.sqrt(np.diag(covariance)) + OPTIONS.share_error
    present = np.sqrt((flat**2) @ weight) / np.sqrt(np.median((signatures**2).T @ weight))
    unexplained = np.clip((rest**2) @ weight - noise @ weight, 0, None)
    misfit = np.sqrt(unexplained / np.maximum((flat**2) @ weight, 1e-12))
    misfit = np.where(present > 0.35, misfit, 0.0)
    return shares.T.reshape(len(lattices), *grid), step_px * pixel_size_nm, error, misfit.reshape(grid)
