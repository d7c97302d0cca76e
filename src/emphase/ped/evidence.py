"""Evidence of a crystal in a pattern, from the pattern's spots and what the crystal predicts.

Evidence is the log of the probability of a pattern's spots with a crystal, over that with background and stray spots only, in nats (a log
of a Bayes factor; MacKay, Information Theory, Inference, and Learning Algorithms, 2003, chapter 28).

- A predicted spot is missing altogether with a small probability (dynamical extinction, a wrong tilt); else its strength is log-normal
  about the expected one, with the Poisson noise of its counts, and its place is normal about the predicted one.
- A measured spot that no crystal predicts is noise or, at a small share of all places, a stray of any strength over three decades.

So a clear spot earns some 6 to 9 nats where it is predicted, whatever its brightness; one that is off its place by more than the spot's
uncertainty earns nothing; one that is predicted and missing costs up to -log(`missing`), less where few counts are expected. All of it
is compiled; the arrays that a thread works in are made once (`_room`). The orientation is climbed to the most evidence by `_refine`.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from ..kernels import kernel
from .distortion import undistorted_image, undistorted_mask
from .scan import Calibration
from .spots import OPTIONS as SPOT_OPTIONS
from .spots import _aperture_of, _good_pixels, first_radius_px, fixed_counts
from .templates import rocking_curve


class EvidenceOptions(NamedTuple):
    """Numbers of the model of a spot; a named tuple, so that kernels can read it."""

    missing: float = 0.08  # how often a predicted spot is absent altogether
    log_mean: float = -0.15  # of the strength over that expected, and its spread: intensities are neither kinematical nor dynamical
    log_spread: float = 0.8
    stray: float = 0.003  # share of all places with a spot of no crystal, ...
    stray_density: float = 1 / math.log(1000)  # ... whose strength is anything over three decades
    place_px: float = 0.2  # how far a strong spot may be off its place, besides Calibration.place_strain
    match_sigma: float = 2.0  # spot widths within which a spot is that predicted
    least_mean: float = 0.15  # spots expected to have fewer counts are left out
    clear_nats: float = 4.0  # of spots whose counts are surely diffracted
    least_share: float = 0.15  # of the diffracted counts that a crystal must explain: its scale is not taken lower


OPTIONS = EvidenceOptions()


class _Camera(NamedTuple):
    """Geometry of all patterns of a scan: ``metric`` (2, 2) from g (x, y) to px (x, y) and its inverse, lengths in px.

    ``pixels`` (ky, kx) is the share of good pixels in the aperture about each, ``full`` the number of pixels of an aperture, ``fixed``
    (ky, kx) the counts that all patterns have in an aperture beside their radial background.
    """

    metric: np.ndarray
    inverse: np.ndarray
    pixels: np.ndarray
    fixed: np.ndarray
    spot_sigma: float
    match: float
    first_radius: float
    full: float
    place_strain: float


def _camera(calibration: Calibration) -> _Camera:
    half = _aperture_of(calibration)
    full = float(np.sum(2 * half + 1))
    sigma = calibration.spot_sigma_px
    metric = np.ascontiguousarray(calibration.metric, dtype=float)
    pixels = _good_pixels(undistorted_mask(calibration), half) / np.float32(full)
    return _Camera(
        metric,
        np.linalg.inv(metric),
        pixels,
        undistorted_image(fixed_counts(calibration), calibration),
        sigma,
        OPTIONS.match_sigma * sigma,
        first_radius_px(calibration),
        full,
        calibration.place_strain,
    )


class _View(NamedTuple):
    """One pattern made ready for evidence, and room to work in.

    ``spots`` (m, 5) is its table, ``terms`` (m, 6) per spot what evidence needs of it: log of the
    net counts, 1/variance of the log strength, 1/variance of the place, density at perfect
    agreement, that of a missing or stray spot, that without a crystal; ``owner`` (ky, kx) the number of the nearest spot + 1, and
    -1 where there is a hidden one: nothing that is predicted there counts.
    ``strength``, ``off_y``, ``off_x`` (m,), ``missed`` (n, 2) and ``predicted`` (n, 4) take what a crystal predicts.
    """

    spots: np.ndarray
    terms: np.ndarray
    owner: np.ndarray
    background: np.ndarray
    centre: np.ndarray
    strength: np.ndarray
    off_y: np.ndarray
    off_x: np.ndarray
    missed: np.ndarray
    predicted: np.ndarray


@kernel
def _hide_pixels(spots, reach, owner):
    """Write -1 for every pixel within ``reach`` of the first spots that hold counts: what is predicted there cannot be seen."""
    ny, nx = owner.shape
    wide = int(reach) + 1
    for k in range(len(spots)):
        if spots[k, 2] <= 0:
            break
        y0, x0 = int(spots[k, 0] + 0.5), int(spots[k, 1] + 0.5)
        for y in range(max(0, y0 - wide), min(ny, y0 + wide + 1)):
            for x in range(max(0, x0 - wide), min(nx, x0 + wide + 1)):
                if (y - spots[k, 0]) ** 2 + (x - spots[k, 1]) ** 2 <= reach * reach:
                    owner[y, x] = -1


@kernel
def _own_pixels(spots, reach, owner):
    """Write for every pixel the number + 1 of the nearest spot within ``reach``."""
    ny, nx = owner.shape
    wide = int(reach) + 1
    for k in range(len(spots)):
        y0, x0 = int(spots[k, 0] + 0.5), int(spots[k, 1] + 0.5)
        for y in range(max(0, y0 - wide), min(ny, y0 + wide + 1)):
            for x in range(max(0, x0 - wide), min(nx, x0 + wide + 1)):
                distance = (y - spots[k, 0]) ** 2 + (x - spots[k, 1]) ** 2
                if distance > reach * reach:
                    continue
                other = owner[y, x] - 1
                if other < 0 or distance < (y - spots[other, 0]) ** 2 + (x - spots[other, 1]) ** 2:
                    owner[y, x] = k + 1


@kernel
def _view(table, number, background, centre, camera, work):
    """The `_View` of a pattern in the room of ``work``, and the net counts in its clear spots.

    Rows of ``table`` from ``number`` on that hold counts are hidden spots. No spot is a maximum beside them as far as their disc, an
    aperture and the window of a maximum reach.
    """
    spots, terms = table[:number], work.terms[:number]
    work.owner[:] = 0
    _hide_pixels(table[number:], camera.match + SPOT_OPTIONS.aperture_sigma * camera.spot_sigma + 2, work.owner)
    _own_pixels(spots, camera.match, work.owner)
    area = math.pi * camera.match**2
    diffracted = 3.0
    for k in range(number):
        a, b = spots[k, 2], spots[k, 3]
        net = max(a - b, 0.1)
        if spots[k, 4] > OPTIONS.clear_nats:
            diffracted += net
        r2 = (spots[k, 0] - centre[0]) ** 2 + (spots[k, 1] - centre[1]) ** 2
        noise = a / (net * net)
        spread = OPTIONS.log_spread**2 + noise
        place = OPTIONS.place_px**2 + camera.place_strain**2 * r2 + camera.spot_sigma**2 * noise
        nothing = net / math.sqrt(2 * math.pi * a) * math.exp(-min(spots[k, 4], 600.0))
        stray = OPTIONS.stray * OPTIONS.stray_density
        terms[k, 0] = math.log(net)
        terms[k, 1] = 0.5 / spread
        terms[k, 2] = 0.5 / place
        terms[k, 3] = (1 - OPTIONS.stray) * (1 - OPTIONS.missing) / math.sqrt(2 * math.pi * spread) * area / (2 * math.pi * place)
        terms[k, 4] = (1 - OPTIONS.stray) * OPTIONS.missing * nothing + stray
        terms[k, 5] = (1 - OPTIONS.stray) * nothing + stray
    view = _View(
        spots, terms, work.owner, background, centre, work.strength[:number], work.off_y[:number], work.off_x[:number], work.missed,
        work.predicted,
    )  # fmt: skip
    return view, diffracted


@kernel
def _within(view, k, camera, reach):
    """Whether spot k lies where the templates reach, ``reach`` (1/Å)."""
    y, x = view.spots[k, 0] - view.centre[0], view.spots[k, 1] - view.centre[1]
    gx = camera.inverse[0, 0] * x + camera.inverse[0, 1] * y
    gy = camera.inverse[1, 0] * x + camera.inverse[1, 1] * y
    return gx * gx + gy * gy <= reach * reach


@kernel
def _room(camera, n_reflections):
    """Work space of one thread, in the shape of a `_View`."""
    most = SPOT_OPTIONS.most_spots
    return _View(
        np.empty((0, 5), np.float32), np.empty((most, 6)), np.zeros(camera.pixels.shape, np.int16), np.empty(0, np.float32), np.empty(2),
        np.empty(most), np.empty(most), np.empty(most), np.empty((n_reflections, 2)), np.empty((n_reflections, 4)),
    )  # fmt: skip


@kernel
def _predict(rotation, near, n_near, refs, camera, centre, out):
    """The spots of a crystal on the camera: rows (y px, x px, strength, number of the reflection) into ``out``; returns how many.

    ``near`` holds the numbers of the reflections to look at.
    """
    g, strengths, cones, reaches = refs.g, refs.strength, refs.cone, refs.reach
    half_width, half_wavelength = refs.half_width, 0.5 * refs.wavelength
    r00, r10, r20 = rotation[0, 0], rotation[1, 0], rotation[2, 0]
    r01, r11, r21 = rotation[0, 1], rotation[1, 1], rotation[2, 1]
    r02, r12, r22 = rotation[0, 2], rotation[1, 2], rotation[2, 2]
    m00, m01, m10, m11 = camera.metric[0, 0], camera.metric[0, 1], camera.metric[1, 0], camera.metric[1, 1]
    cy, cx = centre[0], centre[1]
    last_y, last_x = camera.pixels.shape[0] - 3, camera.pixels.shape[1] - 3
    nearest2 = camera.first_radius**2
    n = 0
    for j in range(n_near):
        i = near[j]
        g0, g1, g2 = g[i, 0], g[i, 1], g[i, 2]
        s = g0 * r02 + g1 * r12 + g2 * r22 + half_wavelength * (g0 * g0 + g1 * g1 + g2 * g2)
        if abs(s) > reaches[i]:
            continue
        gx, gy = g0 * r00 + g1 * r10 + g2 * r20, g0 * r01 + g1 * r11 + g2 * r21
        dx, dy = m00 * gx + m01 * gy, m10 * gx + m11 * gy
        y, x = cy + dy, cx + dx
        if y < 2 or x < 2 or y > last_y or x > last_x or dx * dx + dy * dy < nearest2:
            continue
        out[n, 0], out[n, 1], out[n, 2], out[n, 3] = y, x, strengths[i] * rocking_curve(s, cones[i], half_width), i
        n += 1
    return n


@kernel
def _counts_below(y, x, view, camera):
    """The counts of the background in a full aperture at a place of an undistorted camera."""
    r = min(int(math.sqrt((y - view.centre[0]) ** 2 + (x - view.centre[1]) ** 2)), len(view.background) - 1)
    radial = view.background[r] * camera.full
    return max(radial + camera.fixed[int(y + 0.5), int(x + 0.5)], SPOT_OPTIONS.least_of_radial * radial) + SPOT_OPTIONS.empty_counts


@kernel
def _collect(rotation, near, n_near, refs, camera, view):
    """What a crystal predicts: strength and mean offset at each measured spot into ``view``, the rest into ``view.missed``.

    Returns the number of predicted spots without a measured one, and the total strength.
    """
    strength, off_y, off_x, missed, predicted = view.strength, view.off_y, view.off_x, view.missed, view.predicted
    spots, owner, pixels = view.spots, view.owner, camera.pixels
    for k in range(len(strength)):
        strength[k] = off_y[k] = off_x[k] = 0.0
    total, n_missed = 0.0, 0
    for j in range(_predict(rotation, near, n_near, refs, camera, view.centre, predicted)):
        y, x, expected = predicted[j, 0], predicted[j, 1], predicted[j, 2]
        v, u = int(y + 0.5), int(x + 0.5)
        k = owner[v, u] - 1
        if k < -1:  # hidden
            continue
        if k >= 0:
            strength[k] += expected
            off_y[k] += expected * (y - spots[k, 0])
            off_x[k] += expected * (x - spots[k, 1])
        elif pixels[v, u] > 0.5:
            missed[n_missed, 0] = expected
            missed[n_missed, 1] = _counts_below(y, x, view, camera)
            n_missed += 1
        else:
            continue
        total += expected
    return n_missed, total


@kernel
def _missed_odds(mean, below):
    """How much more probable it is to see nothing over ``below`` counts with a crystal that predicts ``mean`` more than without it.

    The Poisson probability averaged over the spread of strengths falls off as a power, not exponentially.
    """
    lack = 1 + 0.45 * mean * mean / (below + 0.667 * mean)
    return OPTIONS.missing + (1 - OPTIONS.missing) / (lack * lack)


@kernel
def _judge(strength, off_y, off_x, missed, n_missed, scale, view):
    """Evidence (nats) of what was collected, with ``scale`` counts a unit of strength, and the turn (radians) that would fit best."""
    spots, terms, cy, cx = view.spots, view.terms, view.centre[0], view.centre[1]
    log_scale, least = math.log(scale) + OPTIONS.log_mean, OPTIONS.least_mean / scale
    evidence, odds, torque, inertia = 0.0, 1.0, 0.0, 1e-9
    for k in range(len(spots)):
        expected = strength[k]
        if expected < least:
            continue
        dy, dx = off_y[k] / expected, off_x[k] / expected
        off = terms[k, 0] - log_scale - math.log(expected)
        density = terms[k, 3] * math.exp(-off * off * terms[k, 1] - (dy * dy + dx * dx) * terms[k, 2])
        ratio = (density + terms[k, 4]) / terms[k, 5]
        odds *= ratio
        if odds > 1e100 or odds < 1e-100:
            evidence += math.log(odds)
            odds = 1.0
        if ratio > 2.7:
            y, x = spots[k, 0] - cy, spots[k, 1] - cx
            weight = min(spots[k, 4], np.float32(30.0))
            torque += weight * (x * dy - y * dx)
            inertia += weight * (x * x + y * y)
    for j in range(n_missed):
        if missed[j, 0] >= least:
            odds *= _missed_odds(scale * missed[j, 0], missed[j, 1])
            if odds < 1e-100:
                evidence += math.log(odds)
                odds = 1.0
    return evidence + math.log(odds), torque / inertia


@kernel
def _evidence(rotation, near, refs, camera, view, diffracted):
    """Evidence (nats) of a crystal, and by how much (radians) its spots should turn in the plane to fit best.

    The scale is that of the measured spots which the crystal explains, but at least 15 % of all diffracted counts.
    """
    n_missed, total = _collect(rotation, near, len(near), refs, camera, view)
    if total <= 0:
        return 0.0, 0.0
    spots, strength = view.spots, view.strength
    matched = 0.0
    for k in range(len(spots)):
        if strength[k] > 0 and spots[k, 4] > 3:
            matched += spots[k, 2] - spots[k, 3]
    return _judge(strength, view.off_y, view.off_x, view.missed, n_missed, max(matched, OPTIONS.least_share * diffracted) / total, view)


@kernel
def _turned(rotation, axis, angle, out):
    """Into ``out`` the rotation (sample to crystal) after turning the crystal by ``angle`` about an axis of the sample."""
    c, s = math.cos(angle), math.sin(angle)
    i, j = (axis + 1) % 3, (axis + 2) % 3
    for row in range(3):
        out[row, axis] = rotation[row, axis]
        out[row, i] = c * rotation[row, i] + s * rotation[row, j]
        out[row, j] = c * rotation[row, j] - s * rotation[row, i]


@kernel
def _spun(rotation, near, refs, camera, view, diffracted):
    """Turn ``rotation`` in the plane, in place, as its spots ask for, where that helps; returns the evidence."""
    trial = np.empty((3, 3))
    best, spin = _evidence(rotation, near, refs, camera, view, diffracted)
    _turned(rotation, 2, spin, trial)
    value, _ = _evidence(trial, near, refs, camera, view, diffracted)
    if value > best:
        best = value
        rotation[:] = trial
    return best


@kernel
def _refine(rotation, tilt, levels, near, refs, camera, view, diffracted):
    """Climb the evidence from ``rotation``, which is changed in place; returns the evidence.

    The turn in the plane follows from the places of the spots at once; the tilt about x and y is
    searched in steps of ``tilt`` radians, halved ``levels - 1`` times.
    """
    trial = np.empty((3, 3))
    best, spin = _evidence(rotation, near, refs, camera, view, diffracted)
    for _ in range(levels):
        for _ in range(2):
            if abs(spin) < 3e-4:
                break
            _turned(rotation, 2, spin, trial)
            value, left = _evidence(trial, near, refs, camera, view, diffracted)
            if value <= best:
                break
            best, spin = value, left
            rotation[:] = trial
        for _ in range(2):
            moved = False
            for direction in range(4):
                _turned(rotation, direction % 2, tilt if direction < 2 else -tilt, trial)
                value, left = _evidence(trial, near, refs, camera, view, diffracted)
                if value > best:
                    best, spin, moved = value, left, True
                    rotation[:] = trial
            if not moved:
                break
        tilt *= 0.5
    return best


@kernel
def _near_ewald(rotation, reach, refs, first, last, near):
    """Numbers of the reflections of ``first`` to ``last`` that can shine within ``reach`` radians of tilt, into ``near``; how many."""
    n = 0
    for i in range(first, last):
        g0, g1, g2 = refs.g[i, 0], refs.g[i, 1], refs.g[i, 2]
        length2 = g0 * g0 + g1 * g1 + g2 * g2
        s = g0 * rotation[0, 2] + g1 * rotation[1, 2] + g2 * rotation[2, 2] + 0.5 * refs.wavelength * length2
        if abs(s) < refs.reach[i] + reach * math.sqrt(length2):
            near[n] = i
            n += 1
    return n
