"""The likelihood of Poisson counts against a scene at every shift, and the scene that a sum of frames shows.

With a scene λ = λ0 (1 + T), frame k at shift s and beam current a, the log-likelihood against a flat scene is
L(s) = Σ_r [k(r) ln(1 + T(r - s)) - a λ0 T(r - s)], r over the frame: two products in Fourier space, without wrap-around on a canvas that
holds all frames (`_Canvas`). T is the Wiener estimate of the scene (`_Sum.scene`), which weighs every frequency by what is known there.
`_Match` gives L at every whole shift, `_climb` its sub-pixel maximum with the curvature.
"""

from __future__ import annotations

import math

import numpy as np

from ..kernels import kernel
from .options import OPTIONS


class _Canvas:
    """Spectra of frames on a canvas that holds all of them, and what follows from them.

    Scene and canvas share coordinates; frame i lies at -shift. ``reach`` (2,) is the range of
    shifts on either side of 0 for which nothing wraps around.
    """

    def __init__(self, counts: np.ndarray, reach: np.ndarray):
        from scipy import fft

        self.counts = counts
        self.n, *self.frame_shape = counts.shape
        self.shape = tuple(fft.next_fast_len(int(f + 2 * np.ceil(r)), real=True) for f, r in zip(self.frame_shape, reach, strict=True))
        self.qy = (2 * np.pi * fft.fftfreq(self.shape[0])).astype(np.float32)
        self.qx = (2 * np.pi * fft.rfftfreq(self.shape[1])).astype(np.float32)
        self.totals = counts.reshape(self.n, -1).sum(axis=1, dtype=np.float64)
        self.area = float(np.prod(self.frame_shape))
        self.spectra = np.empty((self.n, self.shape[0], len(self.qx)), np.complex64)
        for spectrum, image in zip(self.spectra, counts, strict=True):
            spectrum[:] = fft.rfft2(image.astype(np.float32), self.shape)
        self.box = fft.rfft2(np.ones(self.frame_shape, np.float32), self.shape)
        self.double = np.where((np.arange(len(self.qx)) == 0) | (2 * np.arange(len(self.qx)) == self.shape[1]), 1.0, 2.0)
        self.scale = self.totals / np.median(self.totals[self.totals > 0])
        self.rate = float(np.median(self.totals[self.totals > 0]) / self.area)

    def spectrum(self, image: np.ndarray) -> np.ndarray:
        """Spectrum of an image of the size of a frame or of the canvas."""
        from scipy import fft

        return fft.rfft2(image.astype(np.float32, copy=False), self.shape)

    def image(self, spectrum: np.ndarray) -> np.ndarray:
        """Image of the canvas from its half spectrum."""
        from scipy import fft

        return fft.irfft2(spectrum, self.shape)

    def image_of(self, modes: np.ndarray, values: np.ndarray) -> np.ndarray:
        """Image of the canvas from the ``values`` (m,) of some ``modes`` (m,) of its half spectrum, flattened."""
        spectrum = np.zeros(self.spectra.shape[1:], np.complex64)
        spectrum.ravel()[modes] = values
        return self.image(spectrum)

    def phase(self, shift: np.ndarray) -> np.ndarray:
        """Factor that brings the content of a frame at ``shift`` back to the scene."""
        return np.exp(1j * self.qy * np.float32(shift[0]))[:, None] * np.exp(1j * self.qx * np.float32(shift[1]))[None]

    def moved(self, i: int, shift: np.ndarray) -> np.ndarray:
        """Spectrum of frame i in the scene's coordinates, less what a flat scene would give."""
        return (self.spectra[i] - np.float32(self.scale[i] * self.rate) * self.box) * self.phase(shift)

    def under(self, image: np.ndarray, shift: np.ndarray) -> np.ndarray:
        """The part of an image of the canvas that a frame at a shift lies on, to the nearest pixel."""
        rows, columns = (np.arange(n) - round(float(s)) for s, n in zip(shift, self.frame_shape, strict=True))
        return image[np.ix_(rows % self.shape[0], columns % self.shape[1])]

    def scale_at(self, i: int, scene: np.ndarray, seen: np.ndarray, shift: np.ndarray) -> float:
        """Beam current of frame i relative to the scene's, from the pixels seen at its shift."""
        inside = self.under(seen, shift)
        expected = self.rate * float(np.sum((1 + self.under(scene, shift)) * inside))
        return float(np.sum(self.counts[i] * inside)) / expected if inside.any() else float(self.scale[i])

    def pixel_likelihood(self, i: int, scene: np.ndarray, shift: np.ndarray) -> np.ndarray:
        """Spectrum of the log-likelihood that every pixel of a frame gains from a scene at a shift."""
        there = self.image(self.spectrum(scene) / self.phase(shift))[: self.frame_shape[0], : self.frame_shape[1]]
        rate = 1 + np.maximum(there, np.float32(-0.9))
        rate = rate / rate.mean()
        return self.spectrum(self.counts[i] * np.log(rate) - np.float32(self.totals[i] / self.area) * (rate - 1))

    def coverage(self, shift: np.ndarray) -> np.ndarray:
        """The frame's box in the scene, split over pixels where it lies between them."""
        sides = []
        for s, n, size in zip(shift, self.frame_shape, self.shape, strict=True):
            low = math.floor(-s)
            part = -s - low
            side = np.zeros(size, np.float32)
            side[np.arange(low, low + n) % size] += 1 - part
            side[np.arange(low + 1, low + 1 + n) % size] += part
            sides.append(side)
        return np.outer(*sides)


def _smoothed(power: np.ndarray, width: int) -> np.ndarray:
    """A half spectrum of a real image averaged over width x width modes, its mirror image respected."""
    from scipy.ndimage import uniform_filter1d

    wide = uniform_filter1d(power, width, axis=0, mode="wrap")
    pad = width // 2
    mirrored = np.concatenate([np.roll(wide[::-1], 1, axis=0)[:, pad:0:-1], wide], axis=1)
    return uniform_filter1d(mirrored, width, axis=1, mode="nearest")[:, pad:]


def _signal_power(power: np.ndarray, noise: float, oversampling: float, spectra: int = 1) -> np.ndarray:
    """What of a power spectrum is significantly above white noise, else 0.

    Sharp lattice peaks are found mode by mode; what is left is averaged over a few modes, then
    over more, at last over rings, so that no peak lends its power to the noise around it. What makes one
    cell of a lattice differ from the next is spread so thin that only the widest averages show it.
    ``oversampling`` is the number of modes of the canvas for one independent mode, ``spectra`` that of
    the spectra that ``power`` is the mean of; noise power is gamma distributed.
    """
    from scipy.stats import gamma

    excess = power - noise
    signal, found = np.zeros_like(power), np.zeros(power.shape, bool)
    for width in (1, 3, 11, 33):
        free = (~found).astype(np.float32)
        weight = _smoothed(free, width) if width > 1 else free
        smooth = _smoothed(excess * free, width) / np.maximum(weight, 1e-3) if width > 1 else excess
        modes = spectra * max(1.0, width**2 / oversampling)
        here = ~found & (weight > 0.3) & (smooth > noise * (gamma.isf(OPTIONS.false_modes, modes) / modes - 1))
        signal[here] = smooth[here]
        found |= here
    ring = _frequency_rings(power.shape)
    count, total = (np.bincount(ring[~found], v, minlength=OPTIONS.rings + 1) for v in (None, excess[~found]))
    mean = total / np.maximum(count, 1)
    shows = mean > OPTIONS.ring_sigma * noise / np.sqrt(np.maximum(spectra * count / oversampling, 1))
    return np.where(found, signal, np.where(shows, mean, 0)[ring]).astype(power.dtype)


def _frequency_rings(shape: tuple[int, ...]) -> np.ndarray:
    """Number of the ring of every mode of a half spectrum, `OPTIONS.rings` of them between 0 and the corner."""
    qy, qx = np.fft.fftfreq(shape[0]), np.linspace(0, 0.5, shape[1])
    return (np.hypot(qy[:, None], qx[None]) * OPTIONS.rings * math.sqrt(2)).astype(int)


class _Sum:
    """The aligned sum of frames of a canvas, from which frames can be taken out again."""

    def __init__(self, canvas: _Canvas):
        self.canvas = canvas
        self.spectrum = np.zeros(canvas.spectra.shape[1:], np.complex64)
        self.coverage = np.zeros(canvas.shape, np.float32)
        self.held: set[int] = set()

    def add(self, i: int, shift: np.ndarray, sign: int = 1) -> None:
        """Put frame i in at its shift, or take it out (sign -1)."""
        self.spectrum += np.float32(sign) * self.canvas.moved(i, shift)
        self.coverage += np.float32(sign * self.canvas.scale[i]) * self.canvas.coverage(shift)
        self.held ^= {i}

    def most(self) -> float:
        """Frames that cover a pixel at most."""
        return float(self.canvas.scale[list(self.held)].sum())

    def counts(self) -> float:
        """All counts in the sum."""
        return float(self.canvas.totals[list(self.held)].sum())

    def power(self) -> np.ndarray:
        """Spectral density of the scene's signal, (counts per pixel and frame)² a mode."""
        canvas, noise = self.canvas, self.counts()
        oversampling = float(np.prod(canvas.shape)) / canvas.area
        return _signal_power(np.abs(self.spectrum) ** 2, noise, oversampling) / float(np.sum(self.coverage.astype(np.float64) ** 2))

    def scene(self, power: np.ndarray | None = None, start: np.ndarray | None = None, rounds: int = 8) -> np.ndarray:
        """Most probable scene over the canvas, relative to its mean less 1 (at least -0.9).

        With signal of spectral density P and noise λ0/coverage in every pixel it solves
        (1/P + coverage/λ0) T = data/λ0 by conjugate gradients, preconditioned with the Wiener
        filter of full coverage: what few frames saw is held to what the lattice continues.
        """
        canvas, rate = self.canvas, self.canvas.rate
        power = (self.power() if power is None else power) / rate**2
        known = np.flatnonzero(power > 0)  # modes without signal stay 0, so vectors hold the others alone
        inverse = (1 / power.ravel()[known]).astype(np.float32)
        wiener = 1 / (inverse + np.float32(rate * self.most()))
        weight, double = np.float32(rate) * self.coverage, canvas.double[known % power.shape[1]] / float(np.prod(canvas.shape))
        dot = lambda a, b: float(np.sum(double * (a.real * b.real + a.imag * b.imag)))
        modes = lambda image: canvas.spectrum(image).ravel()[known]
        residual = self.spectrum.ravel()[known]
        x = np.zeros_like(residual) if start is None else modes(start)
        if start is not None:
            residual = residual - inverse * x - modes(weight * canvas.image_of(known, x))
        direction, before, first = None, 0.0, 0.0
        for _ in range(rounds):
            step = wiener * residual
            now = dot(residual, step)
            first = max(first, now)
            if now <= 1e-8 * first:
                break
            direction = step if direction is None else step + np.float32(now / before) * direction
            bent = inverse * direction + modes(weight * canvas.image_of(known, direction))
            length = np.float32(now / dot(direction, bent))
            x, residual, before = x + length * direction, residual - length * bent, now
        return np.maximum(canvas.image_of(known, x), np.float32(-0.9))

    def evidence(self, power: np.ndarray) -> float:
        """Log probability of the sum under a scene of spectral density ``power``, but for a constant.

        ½ dataᵀT/λ0-weighted less ½ ln det(1 + coverage P/λ0), the determinant pixel by pixel.
        """
        canvas, rate = self.canvas, self.canvas.rate
        size = float(np.prod(canvas.shape))
        scene = canvas.spectrum(self.scene(power, rounds=12))
        explained = 0.5 * float(np.sum(canvas.double * (np.conj(self.spectrum) * scene).real, dtype=np.float64)) / size
        steps = np.linspace(0, float(self.coverage.max()) + 1e-6, 33)
        weights = np.broadcast_to(canvas.double, power.shape)[power > 0]
        loss = [0.5 * float(np.sum(weights * np.log1p(c * power[power > 0] / rate))) / size for c in steps]
        return explained - float(np.sum(np.interp(self.coverage, steps, loss)))

    def seen(self) -> np.ndarray:
        """Where at least about one of the frames held covers the canvas, as 0 and 1."""
        return (self.coverage > 0.5 * min(1.0, float(self.canvas.scale[list(self.held)].min()))).astype(np.float32)


class _Match:
    """Log-likelihoods of frames against a scene at every shift, whatever the beam current was.

    L(s) = Σ k ln(1 + T) - Σk ln(Σλ/Σλ0) over the pixels seen, the likelihood of the counts' places
    against a flat scene. Pixels of a frame that fall where nothing was seen are credited with
    what they gain at another shift of the same phase in the lattice (``per_pixel``, from `_Canvas.pixel_likelihood`), where the scene is
    continued: an overlap larger or smaller is then no advantage.
    """

    def __init__(self, canvas: _Canvas, scene: np.ndarray, seen: np.ndarray):
        self.canvas = canvas
        self._seen, self._log, self._bright = (canvas.spectrum(image * seen) for image in (np.ones_like(scene), np.log1p(scene), scene))

    def images(self, counts: np.ndarray, box: np.ndarray, per_pixel: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """L at every whole shift, and the beam current relative to the scene's there (images of the canvas)."""
        canvas = self.canvas
        found, flat, bright = (canvas.image(np.conj(x) * y) for x, y in ((self._seen, counts), (self._seen, box), (self._bright, box)))
        flat = np.maximum(flat, 1e-3 * flat.max())
        mean = np.maximum(1 + bright / flat, 0.05)
        likelihood = canvas.image(np.conj(self._log) * counts - np.conj(self._seen) * per_pixel) - found * np.log(mean)
        return likelihood, found / (canvas.rate * flat * mean)

    def spectra(self, counts: np.ndarray, box: np.ndarray, per_pixel: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Spectra whose first less a times the second is that of L, but for a constant, about a shift with beam current a."""
        return self._log * np.conj(counts) - self._seen * np.conj(per_pixel), np.float32(self.canvas.rate) * self._bright * np.conj(box)


def _likelihood(canvas: _Canvas, i: int, scene: np.ndarray, seen: np.ndarray, shift: np.ndarray) -> np.ndarray:
    """Spectrum of the log-likelihood of frame i about a shift, of the pixels that others saw there and around."""
    from scipy.ndimage import minimum_filter

    inside = minimum_filter(canvas.under(seen, shift), 5, mode="nearest")
    counts, box = canvas.spectra[i], canvas.box
    if not inside.all():
        counts, box = canvas.spectrum(canvas.counts[i] * inside), canvas.spectrum(inside)
    flat = np.float32(canvas.scale[i] * canvas.rate)
    return np.conj(counts) * canvas.spectrum(np.log1p(scene)) - flat * np.conj(box) * canvas.spectrum(scene)


@kernel
def _moments(spectrum, ey, ex, qy, qx):
    """Real parts of Σ A ey ex times 1, -iqy, -iqx, -qy², -qyqx, -qx², the sums over y first: all columns at once."""
    columns = spectrum.shape[1]
    re, im = np.zeros((3, columns)), np.zeros((3, columns))  # times 1, qy, qy²
    for i in range(spectrum.shape[0]):
        c, d, q = ey[i].real, ey[i].imag, qy[i]
        for j in range(columns):
            a, b = spectrum[i, j].real, spectrum[i, j].imag
            x, y = a * c - b * d, a * d + b * c
            re[0, j] += x
            im[0, j] += y
            re[1, j] += q * x
            im[1, j] += q * y
            re[2, j] += q * q * x
            im[2, j] += q * q * y
    out = np.zeros(6)
    for j in range(columns):
        c, d, q = ex[j].real, ex[j].imag, qx[j]
        plain, first = re[0, j] * c - im[0, j] * d, re[1, j] * c - im[1, j] * d
        out[0] += plain
        out[1] += re[1, j] * d + im[1, j] * c
        out[2] += q * (re[0, j] * d + im[0, j] * c)
        out[3] -= re[2, j] * c - im[2, j] * d
        out[4] -= q * first
        out[5] -= q * q * plain
    return out


def _evaluate(canvas: _Canvas, spectrum: np.ndarray, s: np.ndarray) -> tuple[float, np.ndarray, np.ndarray]:
    """L(s), its gradient (2,) and -∂∂L (2, 2) from the spectrum A."""
    ey = np.exp(-1j * canvas.qy * s[0])
    ex = np.exp(-1j * canvas.qx * s[1]) * canvas.double / float(np.prod(canvas.shape))
    m = _moments(spectrum, ey, ex, canvas.qy, canvas.qx)
    return float(m[0]), m[1:3], -np.array([[m[3], m[4]], [m[4], m[5]]])


def _climb(canvas: _Canvas, spectrum: np.ndarray, start: np.ndarray, steps: int = 5) -> tuple[np.ndarray, float, np.ndarray]:
    """Newton's method on L, in steps below 0.7 px: the place of the maximum, L there and -∂∂L (2, 2)."""
    s = np.array(start, dtype=np.float64)
    for _ in range(steps):
        _, slope, curvature = _evaluate(canvas, spectrum, s)
        concave = np.linalg.eigvalsh(curvature)[0] > 0
        move = np.linalg.solve(curvature, slope) if concave else slope
        length = float(np.linalg.norm(move))
        s = s + move * min(1.0, 0.7 / max(length, 1e-12))
        if length < 1e-3:
            break
    value, _, curvature = _evaluate(canvas, spectrum, s)
    return s, value, curvature


def _peaks(match: _Match, frame: tuple, centre: np.ndarray, reach: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The highest maxima of L within ``reach`` (2,) of ``centre``: places (m, 2), values (m,), best first.

    ``frame`` holds the spectra of its counts, of its box and of the likelihood of its pixels. Where L is flat every place is a maximum;
    `skimage.feature.peak_local_max`, which is no faster, would find none.
    """
    from scipy.ndimage import maximum_filter

    image, scale = match.images(*frame)
    middle = np.round(centre).astype(int)
    rows, columns = (np.arange(m - int(r), m + int(r) + 1) for m, r in zip(middle, reach, strict=True))
    at = np.ix_(rows % image.shape[0], columns % image.shape[1])
    window, scale = image[at], scale[at]
    y, x = np.nonzero(window == maximum_filter(window, 3))
    order = np.argsort(window[y, x])[::-1][: OPTIONS.candidates]
    order = order[window[y, x][order] > window.max() - max(30.0, 0.3 * float(np.ptp(window)))]
    places, values = np.zeros((len(order), 2)), np.zeros(len(order))
    fixed, flat = match.spectra(*frame)
    for k, (row, column) in enumerate(zip(y[order], x[order], strict=True)):
        spectrum, start = fixed - np.float32(scale[row, column]) * flat, np.array([rows[row], columns[column]], dtype=float)
        places[k], top, _ = _climb(match.canvas, spectrum, start, steps=2)
        values[k] = window[row, column] + top - _evaluate(match.canvas, spectrum, start)[0]
    apart = [k for k in range(len(order)) if not np.any(np.linalg.norm(places[:k] - places[k], axis=1) < 0.5)]
    best = sorted(apart, key=lambda k: -values[k])[: OPTIONS.candidates]
    return places[best], values[best]
