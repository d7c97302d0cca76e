"""Find the lattice of a projected crystal in an HAADF image, index it and follow it over the image.

Spectra of overlapping patches are matched with the frequencies of the projection (`spectrum`); phases of these frequencies give the
origin; columns refined to sub-pixel places are followed outwards from a patch, and the degree of the polynomial map is chosen by Bayes'
information criterion (Schwarz, Ann. Statist. 6 (1978) 461). The error where no lattice is found names the reason: no lattice, another pixel
size, another zone axis, inverted contrast.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import partial

import numpy as np

from ..crystals import direction_name
from ..errors import EmphaseError
from .image_lattice import ImageLattice, _fit_lattice, _Group, _refined_positions, _sites_in
from .profiles import _local_level
from .projection import ProjectedColumns
from .registration import registered
from .spectrum import _band_passed, _binned, _binning, _match_spectrum, _Spectrum, _spectrum


@dataclass(frozen=True)
class LatticeOptions:
    """Tuning of `find_image_lattice`."""

    least_agreement: float = 0.7  # of a spectrum with that of the projection; noise and other zones stay below
    scales: tuple[float, float] = (0.84, 1.19)  # of the stated pixel that are tried: 15 % and the distortion of the scan
    patch_cells: tuple[tuple[int, int], ...] = ((96, 16), (64, 9))  # least px, and spacings: large for contrast, small for a thin edge
    most_trials: int = 12  # patches from which the lattice is followed
    most_clipped: float = 0.003  # share of pixels at the highest value, before an image is called saturated
    least_columns: int = 12  # from which a lattice is fitted
    clear_noise: float = 8.0  # times the noise, of a peak that is a lattice's
    most_degree: int = 6  # of the polynomial
    together: float = 0.45  # spacings, between columns that are located as one: both stand in the window of one
    faintest: float = 0.1  # of the brightest column, of those located with it: a fainter one moves it by 3 pm at most


OPTIONS = LatticeOptions()


def _polished_map(spectrum: _Spectrum, columns: ProjectedColumns, trial: np.ndarray) -> tuple[np.ndarray, int, int]:
    """Least squares over all peaks that the map explains; how many of the strong peaks it explains, and how many there are."""
    _, vectors, _ = columns.frequencies()
    both = np.concatenate([vectors, -vectors])
    strong = spectrum.heights > max(6 * spectrum.noise, 0.08 * spectrum.heights[0])
    strong &= np.linalg.norm(spectrum.peaks, axis=1) < 1.02 * np.linalg.norm(vectors @ trial, axis=1).max()  # sharp columns have more
    peaks, heights = spectrum.peaks[strong], spectrum.heights[strong]
    for _ in range(3):
        apart = np.linalg.norm(peaks[:, None] - (both @ trial)[None], axis=2)
        nearest = np.argmin(apart, axis=1)
        near = apart[np.arange(len(peaks)), nearest] < np.maximum(0.02 * np.linalg.norm(peaks, axis=1), 0.006)
        if near.sum() < 3:
            break
        w = np.sqrt(heights[near])[:, None]
        trial, *_ = np.linalg.lstsq(w * both[nearest[near]], w * peaks[near], rcond=None)
    return trial, int(near.sum()), len(peaks)


def _origin(
    patch: np.ndarray, corner: tuple[int, int], columns: ProjectedColumns, to_frequency: np.ndarray
) -> tuple[np.ndarray, float, float]:
    """Pixel (y, x) of a site 0 by the phases of the lattice's frequencies, with the best and the worst agreement (−1 to 1)."""
    size = patch.shape[0]
    window = np.hanning(size)
    flat = (patch - patch.mean()) * window[:, None] * window
    index, vectors, amplitudes = columns.frequencies()
    k = vectors[:16] @ to_frequency
    r = np.arange(size)
    wave_y, wave_x = np.exp(-2j * np.pi * k[:, :1] * r), np.exp(-2j * np.pi * k[:, 1:] * r)
    seen = np.einsum("ky,yx,kx->k", wave_y, flat, wave_x)
    weight = seen * np.conj(amplitudes[:16])
    grid = np.stack(np.meshgrid(*2 * [np.arange(64) / 64], indexing="ij"), axis=-1)
    agreement = np.real(np.exp(2j * np.pi * (grid @ index[:16].T)) @ weight) / np.sum(np.abs(weight))
    best = np.array(np.unravel_index(np.argmax(agreement), agreement.shape)) / 64
    step = np.linalg.inv(to_frequency).T
    place = best @ columns.basis_nm @ step
    middle = np.array([size / 2, size / 2])
    cells = np.rint((middle - place) @ np.linalg.inv(columns.basis_nm @ step))
    return place + cells @ columns.basis_nm @ step + np.array(corner), float(agreement.max()), float(agreement.min())


def _group(columns: ProjectedColumns, matrix: np.ndarray) -> _Group:
    """The brightest column with those that stand too near for it to be located alone, as the halves of a dumbbell do."""
    spacing_nm = float(np.linalg.norm(columns.basis_nm, axis=1).min())
    places, brightness = columns.beside_brightest(OPTIONS.together * spacing_nm, OPTIONS.faintest)
    middle = brightness @ places / brightness.sum()
    return _Group(middle, (places - middle) @ matrix, brightness)


def _middles(fit: ImageLattice, group: _Group, points: np.ndarray) -> np.ndarray:
    """Pixels (n, 2) of the middles of the groups about lattice points (n, 2)."""
    return fit.to_px(points + group.middle)


def _grown_lattice(image: np.ndarray, columns: ProjectedColumns, origin: np.ndarray, matrix: np.ndarray) -> ImageLattice | None:
    """The lattice of the brightest columns, followed outwards from a patch over the whole image; None where they are not there."""
    spacing = float(np.linalg.norm(matrix, axis=1).min())
    sigma, far = 0.2 * spacing, max(image.shape) * 1.5
    smooth = _band_passed(image, 0.12 * spacing, 1.2 * spacing)
    radius, group = 6 * spacing, _group(columns, matrix)
    to_px = lambda points: origin + (points + group.middle) @ matrix
    fit, height = None, 0.0
    while True:
        points, places = _sites_in(image.shape, to_px, matrix, origin, 0.5 * spacing)
        near = np.linalg.norm(places - origin, axis=1) < radius
        found, level = _refined_positions(smooth, places[near], sigma, 0.4 * spacing, group)
        height = float(np.percentile(level, 75)) if fit is None else height
        good = level > 0.4 * height
        if good.sum() < OPTIONS.least_columns:
            break
        degree = 1 if radius < 12 * spacing or good.sum() < 80 else 2 if radius < far else 3
        fit, kept = _fit_lattice(columns, points[near][good] + group.middle, found[good], degree)
        height = float(np.median(level[good][kept]))
        to_px = partial(_middles, fit, group)
        if radius >= far:
            break
        radius = radius * 1.6 if radius * 1.6 < far else far
    if fit is None or fit.n_columns < OPTIONS.least_columns or fit.residual_px > 0.2 * spacing:
        return None
    seen, found = _followed_columns(smooth, fit, group, matrix, height)
    everywhere, _ = _sites_in(image.shape, fit.to_px, matrix, origin, -spacing)
    return _smoothest_fit(columns, seen, found, everywhere) if len(seen) >= 60 else fit


def _followed_columns(
    smooth: np.ndarray, fit: ImageLattice, group: _Group, matrix: np.ndarray, height: float
) -> tuple[np.ndarray, np.ndarray]:
    """Lattice coordinates and places (n, 2) px of groups of columns, from those near a polynomial on, by what their neighbours are off it.

    So corners of a scan that bends more than the polynomial does are reached, and the thin edge of a wedge.
    """
    from scipy.spatial import cKDTree

    spacing = float(np.linalg.norm(matrix, axis=1).min())
    located = partial(_refined_positions, smooth, sigma_px=0.2 * spacing, reach_px=0.4 * spacing, group=group)
    points, places = _sites_in(smooth.shape, partial(_middles, fit, group), matrix, fit.to_px(np.zeros((1, 2)))[0], 0.5 * spacing)
    found, level = located(places)
    good = (level > 0.4 * height) & (np.linalg.norm(found - places, axis=1) < 0.15 * spacing)
    for _ in range(12):
        if good.sum() < OPTIONS.least_columns:
            break
        tree, off = cKDTree(places[good]), found[good] - places[good]
        weights = np.ones(int(good.sum()))
        moved = places + np.stack([_local_level(places[good], off[:, k], weights, places, 2 * spacing) for k in (0, 1)], axis=1)
        apart, near = tree.query(places, k=min(7, int(good.sum())))
        usual, before = np.median(level[good][near], axis=1), good
        found, level = located(moved)
        good = (np.median(apart[:, :3], axis=1) < 2.6 * spacing) & (level > np.maximum(0.35 * usual, 0.12 * height))
        good &= np.linalg.norm(found - moved, axis=1) < 0.2 * spacing
        if np.array_equal(good, before):
            break
    return points[good] + group.middle, found[good]


def _smoothest_fit(columns: ProjectedColumns, seen: np.ndarray, found: np.ndarray, everywhere: np.ndarray) -> ImageLattice:
    """The polynomial of degree 1 to 6 that columns ``seen`` (n, 2) ``found`` (n, 2) px support, by Bayes' information criterion.

    ``everywhere`` are the lattice points of the whole image: where no column is seen, a degree of 2 goes on with a small weight, so that a
    high one does not run off in the vacuum.
    """
    from scipy.spatial import cKDTree

    empty = everywhere[cKDTree(seen).query(everywhere)[0] > 1.5].astype(float)
    plain, _ = _fit_lattice(columns, seen, found, 2)
    best = (math.inf, plain)
    for degree in range(1, OPTIONS.most_degree + 1):
        terms = (degree + 1) * (degree + 2) // 2
        if 4 * terms > len(seen):
            break
        trial, kept = _fit_lattice(columns, seen, found, degree, (empty, plain.to_px(empty)) if degree > 2 else None)
        score = 4 * len(seen) * math.log(trial.residual_px) + 2 * terms * math.log(2 * len(seen)) + 12 * int(np.sum(~kept))
        if score < best[0]:
            best = (score, trial)
    return best[1]


def check_haadf_image(image: np.ndarray, name: str = "image") -> np.ndarray:
    """The image as float; `EmphaseError` where it is not one image, is too small, flat, or saturated."""
    image = np.asarray(image)
    if image.ndim != 2 or min(image.shape) < 96:
        raise EmphaseError(f"{name}: shape {image.shape}, expected one image of 96 x 96 pixels or more")
    if not np.all(np.isfinite(image)):
        raise EmphaseError(f"{name}: {int(np.sum(~np.isfinite(image)))} pixels are not finite numbers, expected counts")
    top = image.max()
    if image.min() == top:
        raise EmphaseError(f"{name}: every pixel is {top}, expected contrast")
    clipped = float(np.mean(image == top))
    if clipped > OPTIONS.most_clipped and top - np.median(image) > 8:
        raise EmphaseError(f"{name}: {clipped:.1%} of the pixels sit at the highest value {top}: saturated, expected peaks below it")
    return image.astype(float)


def _patches(shape: tuple[int, int], size: int) -> list[tuple[int, int]]:
    """Corners of square patches that cover an image with overlap, at most 7 a side."""
    starts = [np.unique(np.linspace(0, n - size, min(7, max(1, math.ceil(2 * (n - size) / size) + 1))).round().astype(int)) for n in shape]
    return [(int(y), int(x)) for y in starts[0] for x in starts[1]]


def _check_spacing(spacing: float, most: float, pixel_size_nm: float, pixel_key: str) -> None:
    """Refuse a pixel size at which neighbouring columns lie too close (px) to be seen, or farther apart than ``most``."""
    if not 2.5 < spacing < most:
        raise EmphaseError(
            f"{pixel_key}: got {pixel_size_nm:g}, at which columns {spacing * pixel_size_nm:.3f} nm "
            f"apart lie {spacing:.1f} px apart; expected a pixel of {spacing * pixel_size_nm / 60:.4f} to "
            f"{spacing * pixel_size_nm / 4:.3f} nm"
        )


def find_image_lattice(
    image: np.ndarray, columns: ProjectedColumns, pixel_size_nm: float, name: str = "image", pixel_key: str = "pixel_size_nm"
) -> ImageLattice:
    """Find the lattice of a projected crystal in an HAADF image, index it and follow it over the image.

    The spectrum of patches is compared with the frequencies of the projection, in any
    orientation, mirrored or not, at 0.85 to 1.15 of the stated pixel size; phases give
    the place of the brightest column; places of columns, fitted with sub-pixel
    precision, give the map, a polynomial of degree 6 at most (`_smoothest_fit`).

    Parameters
    ----------
    image
        (y, x), counts; columns bright.
    columns
        From `project_columns`.
    pixel_size_nm
        The stated pixel size.
    name
        Of the image in errors: its file.
    pixel_key
        Of the stated pixel size in errors.

    Returns
    -------
    ImageLattice

    Raises
    ------
    EmphaseError
        No lattice; not the lattice of this zone axis; inverted contrast; a pixel size that this lattice contradicts by more than 15 %.
    """
    image = check_haadf_image(image, name)
    spacing = float(np.linalg.norm(columns.basis_nm, axis=1).min()) / pixel_size_nm
    _check_spacing(spacing, min(image.shape) / 6, pixel_size_nm, pixel_key)
    factor = _binning(pixel_size_nm)
    image, pixel_size_nm, spacing = _binned(image, factor), pixel_size_nm * factor, spacing / factor
    lowest = 0.6 * pixel_size_nm / (2 * float(np.linalg.norm(columns.basis_nm, axis=1).max()))
    spectra = {}
    for size in sorted({int(min(min(image.shape), max(least, n * spacing))) for least, n in OPTIONS.patch_cells}):
        for corner in _patches(image.shape, size):
            spectrum = _spectrum(image[corner[0] : corner[0] + size, corner[1] : corner[1] + size], lowest)
            if len(spectrum.peaks):
                spectra[(*corner, size)] = spectrum
    tried = [(*_match_spectrum(s, columns, pixel_size_nm, OPTIONS.scales), place) for place, s in spectra.items()]
    _check_match(spectra, max((t[0] for t in tried), default=0.0), columns, pixel_size_nm, factor, name, pixel_key)
    strength = {place: float(np.sum(s.heights[:6])) / place[2] ** 2 for place, s in spectra.items()}
    strongest = max(strength.values())
    tried = [t for t in tried if t[0] >= OPTIONS.least_agreement]
    tried.sort(key=lambda t: -t[0] * (strength[t[2]] / strongest) ** 0.2)  # a few columns at an edge agree with much
    turned = _other_grain(columns, tried, strength)
    reason = ""
    for _, trial, place in tried[: OPTIONS.most_trials]:
        trial, explained, strong = _polished_map(spectra[place], columns, trial)
        if explained < 3 or explained < 0.5 * strong:
            reason = reason or _wrong_zone(spectra[place], columns, pixel_size_nm, f"{explained} of {strong} strong spots agree")
            continue
        y, x, size = place
        origin, best, worst = _origin(image[y : y + size, x : x + size], (y, x), columns, trial)
        if -worst > 1.15 * best:
            raise EmphaseError(f"{name}: the columns are dark: the contrast is inverted, expected an HAADF image with bright columns")
        fit = _grown_lattice(image, columns, origin, columns.basis_nm @ np.linalg.inv(trial).T)
        if fit is not None:
            return replace(registered(image, fit), other_grain_deg=turned).rescaled(factor)
        reason = "the lattice of the spectrum is not there as columns: fewer than 12 stand where it says"
    raise EmphaseError(f"{name}: {reason}")


def _other_grain(columns: ProjectedColumns, matched: list, strength: dict) -> float | None:
    """Turn (degrees) against the first of the maps of patches that three others agree on, None where all lie alike.

    A layer of spinel or rocksalt may pass for layered turned by 70.5°, the angle of its {111}: that is no grain.
    """
    if not matched:
        return None
    wave = columns.frequencies()[1][0]
    along = np.array([np.arctan2(*(wave @ trial)) for _, trial, _ in matched])
    turn = np.degrees(along - along[0]) % 180
    turn = np.minimum(turn, 180 - turn)
    clear = np.array([score > 0.8 and strength[place] > 0.3 * strength[matched[0][2]] for score, _, place in matched])
    other = clear & (turn > 4) & (np.abs(turn - 70.5) > 4.5)
    if other.sum() < 3:
        return None
    middle = float(np.median(turn[other]))
    return middle if np.sum(np.abs(turn[other] - middle) < 4) >= 3 else None


def _check_match(
    spectra: dict, score: float, columns: ProjectedColumns, pixel_size_nm: float, factor: int, name: str, pixel_key: str
) -> None:
    """Say what is wrong where the expected lattice was not found: no lattice, another pixel size, another zone."""
    if score >= OPTIONS.least_agreement:
        return
    lit = [s for s in spectra.values() if np.sum(s.heights > OPTIONS.clear_noise * s.noise) >= 2]
    if not lit:
        best = max((float(s.heights[0] / s.noise) for s in spectra.values()), default=0.0)
        raise EmphaseError(
            f"{name}: no lattice: the strongest spatial frequency stands {best:.1f} times above the noise, expected two of 8 or more"
        )
    spectrum = max(lit, key=lambda s: float(np.sum(s.heights[:6])))
    other, trial = _match_spectrum(spectrum, columns, pixel_size_nm, (0.05, 20.0))
    if other > OPTIONS.least_agreement:
        true = float(math.sqrt(abs(np.linalg.det(trial)))) / factor
        raise EmphaseError(
            f"{pixel_key}: got {pixel_size_nm / factor:g}, but the lattice of {columns.name} fits at {true:.4g}; expected within 15 %"
        )
    raise EmphaseError(
        f"{name}: " + _wrong_zone(spectrum, columns, pixel_size_nm, f"agreement {score:.2f}, expected {OPTIONS.least_agreement}")
    )


def _wrong_zone(spectrum: _Spectrum, columns: ProjectedColumns, pixel_size_nm: float, why: str) -> str:
    """What the image shows against what the zone axis would show."""
    _, vectors, _ = columns.frequencies()
    seen = spectrum.peaks[spectrum.heights > OPTIONS.clear_noise * spectrum.noise][:4]
    have = ", ".join(f"{pixel_size_nm / np.linalg.norm(k):.3f}" for k in seen)
    want = ", ".join(f"{1 / np.linalg.norm(g):.3f}" for g in vectors[:4])
    shown = f"the image does not show {columns.name} along {direction_name(columns.zone_axis)} ({why})"
    return f"{shown}: strongest spacings {have} nm, expected {want} nm"
