"""Thickness and phase of a surface layer from spatial frequencies that differ between the phases.

The image is demodulated on its fitted lattice (geometric phase analysis: Hÿtch, Snoeck & Kilaas, Ultramicroscopy 74 (1998) 131, amplitudes
only) at the frequencies of layered 003, the second spinel 111 and the spinel 220 of M3O4. Their mean over the surface against depth is
fitted with a blurred step. No column is located, so it is a check of `measure_surface_layer`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from .columns import CationLattice
from .contour import SurfaceContour
from .image_lattice import ImageLattice
from .layer import OPTIONS as LAYER_OPTIONS
from .layer import transformed_share
from .spectrum import _binned


@dataclass(frozen=True)
class FingerprintOptions:
    """Tuning of the fingerprints; levels are relative to the 003 of the bulk."""

    blur_nm: float = 0.35  # over which a frequency is followed: three periods of 003 in four standard deviations
    pixel_nm: float = 0.04  # of the maps: far below the blur
    depth_step_nm: float = 0.05  # of the profile
    least_pixels: int = 20  # of a step of the profile, ...
    least_share: float = 0.3  # ... and of the usual number: where the image ends, a mean over the surface is one over a piece of it
    width_nm: float = 0.12  # of the step between layer and bulk, which the blur hides
    trial_nm: float = 0.02  # between thicknesses that are tried
    deepest: float = 0.9  # of the profile that a layer may fill: the rest is needed as bulk
    none_above: float = 0.85  # level of the 003 in a layer that is none
    least_220: float = 0.12  # of M3O4: what noise leaves of a modulus stays below
    least_111: float = 0.2  # of LiM2O4, expected one half
    over_220: float = 1.5  # times the 220, of the 111 of LiM2O4


OPTIONS = FingerprintOptions()
FINGERPRINTS = {
    "003": ((0.0, 0.5), "layered 003 / spinel 111, 0.474 nm"),
    "111": ((0.5, 0.0), "second spinel 111 at 70.5°, 0.474 nm"),
    "220": ((0.5, -0.5), "M3O4 spinel 220, 0.287 nm"),
}


def fingerprint_maps(
    image: np.ndarray, lattice: ImageLattice, cations: CationLattice, blur_nm: float = OPTIONS.blur_nm
) -> dict[str, np.ndarray]:
    """Local amplitude of the frequencies that differ between the phases, and of those that all of them share.

    Parameters
    ----------
    image
        (y, x), counts.
    lattice, cations
        From `find_image_lattice` and `cation_lattice`.
    blur_nm
        Standard deviation of the Gaussian over which a frequency is followed.

    Returns
    -------
    dict
        All (y, x), counts: "003", signed, positive where metal lies in the metal layers; "111" and "220", moduli; "shared", the mean
        modulus of the two shortest cation frequencies.

    Notes
    -----
    The image is demodulated on the fitted lattice, so distortions of the scan do not blur it.
    """
    from scipy.ndimage import gaussian_filter

    image = np.asarray(image, dtype=float)
    pixel_nm = lattice.scan()["pixel_size_nm"]
    factor = max(1, int(OPTIONS.pixel_nm / pixel_nm))
    coarse, lattice, blur = _binned(image, factor), lattice.rescaled(1 / factor), blur_nm / (pixel_nm * factor)
    flat = coarse - gaussian_filter(coarse, blur)
    y, x = np.meshgrid(np.arange(coarse.shape[0]), np.arange(coarse.shape[1]), indexing="ij")
    ij = (lattice.to_lattice(np.stack([y.ravel(), x.ravel()], axis=1)) @ np.linalg.inv(cations.steps)).reshape(*coarse.shape, 2)

    def lock_in(q: tuple[float, float]) -> np.ndarray:
        """Complex local amplitude of a frequency of the cation lattice."""
        phase = 2 * np.pi * (ij @ np.array(q))
        return gaussian_filter(flat * np.cos(phase), blur) - 1j * gaussian_filter(flat * np.sin(phase), blur)

    maps = {name: lock_in(q) for name, (q, _) in FINGERPRINTS.items()}
    shared = 0.5 * (np.abs(lock_in((0.0, 1.0))) + np.abs(lock_in((1.0, 0.0))))
    maps = {"003": maps["003"].real, "111": np.abs(maps["111"]), "220": np.abs(maps["220"]), "shared": shared}
    over = [(0, n - m * factor) for n, m in zip(image.shape, coarse.shape, strict=True)]
    return {name: np.pad(np.kron(m, np.ones((factor, factor))), over, mode="edge") for name, m in maps.items()}


def fingerprint_profile(
    maps: dict[str, np.ndarray], lattice: ImageLattice, contour: SurfaceContour, blur_nm: float = OPTIONS.blur_nm
) -> dict[str, np.ndarray]:
    """Mean over the surface of every fingerprint, relative to the shared frequencies, against depth.

    Parameters
    ----------
    maps, lattice, contour
        From `fingerprint_maps`, `find_image_lattice` and `surface_contour`.
    blur_nm
        That of the maps: a border as wide is left out.

    Returns
    -------
    dict
        ``depth_nm`` (m,) and one array (m,) for each fingerprint, all in units of the 003 of the bulk.
    """
    shape = maps["shared"].shape
    step = max(1, round(OPTIONS.pixel_nm / lattice.scan()["pixel_size_nm"]))
    edge = round(blur_nm / lattice.scan()["pixel_size_nm"])
    y, x = (g.ravel() for g in np.meshgrid(np.arange(edge, shape[0] - edge, step), np.arange(edge, shape[1] - edge, step), indexing="ij"))
    _, depth, seen = contour.places(lattice.to_lattice(np.stack([y, x], axis=1)) @ lattice.columns.basis_nm)
    seen &= depth >= 0
    bins = np.floor(depth[seen] / OPTIONS.depth_step_nm).astype(int)
    count = np.bincount(bins)
    good = count >= max(OPTIONS.least_pixels, OPTIONS.least_share * float(np.median(count)))
    last = int(np.argmin(good)) if not good.all() else len(good)
    total = {k: np.bincount(bins, weights=m[y, x][seen])[:last] for k, m in maps.items()}
    out = {k: v / total["shared"] for k, v in total.items() if k != "shared"}
    bulk = float(np.median(out["003"][-max(10, last // 5) :]))
    return {"depth_nm": (np.arange(last) + 0.5) * OPTIONS.depth_step_nm, **{k: v / bulk for k, v in out.items()}}


@dataclass(frozen=True)
class FingerprintLayer:
    """The layer by the fingerprint frequencies alone: its thickness and phase, and their levels in it (003 of the bulk = 1).

    ``phase`` is "LiM2O4", "M3O4", "rocksalt", "none" or "undecided"; ``fitted`` (m,) the 003 of the profile as fitted.
    """

    thickness_nm: float
    phase: str
    levels: dict[str, float]
    fitted: np.ndarray

    @property
    def kind(self) -> str:
        """The phase with both spinels as one."""
        return "spinel" if self.phase in ("LiM2O4", "M3O4") else self.phase


def fingerprint_layer(profile: dict[str, np.ndarray], blur_nm: float = OPTIONS.blur_nm) -> FingerprintLayer:
    """Thickness and phase of the layer from the fingerprint frequencies, without any column.

    Parameters
    ----------
    profile
        From `fingerprint_profile`.
    blur_nm
        That of the maps.

    Returns
    -------
    FingerprintLayer

    Notes
    -----
    The share falls by a step of one width; blur and edge of the crystal are part of the model. In a rocksalt
    the frequencies that all share grow by as much as the 003 shrinks, which moves the half value of their ratio; in a spinel they
    stay. Expected of the four columns (1, 1/2, 1/2, 0) and the metal of the 8a columns: LiM₂O₄ 003 and 111 of 1/2 and no 220; M₃O₄
    220 the strongest.
    """
    depth, seen = profile["depth_nm"], profile["003"]
    x = np.arange(-2.0, depth[-1] + 2.0, OPTIONS.trial_nm)
    kernel = np.exp(-0.5 * ((depth[:, None] - x) / blur_nm) ** 2) * (x > 0)
    kernel /= kernel.sum(axis=1, keepdims=True)
    trials = np.arange(OPTIONS.trial_nm, OPTIONS.deepest * depth[-1], OPTIONS.trial_nm)
    blurred = kernel @ transformed_share(x[:, None], trials, OPTIONS.width_nm)
    best, level, fitted = _fit_003(seen, blurred, 0.0)
    share = blurred[:, best]
    levels = {"003": level} | {k: _level_over_bulk(profile[k], share) for k in ("111", "220")}
    if level > OPTIONS.none_above or trials[best] < LAYER_OPTIONS.least_limit_nm:
        return FingerprintLayer(0.0, "none", levels, np.ones_like(seen))
    if levels["220"] > max(OPTIONS.least_220, levels["111"]):
        phase = "M3O4"
    elif levels["111"] > max(OPTIONS.least_111, OPTIONS.over_220 * levels["220"]):
        phase = "LiM2O4"
    else:
        phase = "rocksalt" if max(levels["111"], levels["220"]) < OPTIONS.least_220 else "undecided"
    if phase == "rocksalt":
        best, levels["003"], fitted = _fit_003(seen, blurred, 1.0)
    return FingerprintLayer(float(trials[best]), phase, levels, fitted)


def _fit_003(seen: np.ndarray, blurred: np.ndarray, growth: float) -> tuple[int, float, np.ndarray]:
    """Which of the shares (m, trials) explains the 003 over the shared frequencies, its level in the layer, and the fit (m,).

    ``growth``: by how much of what the 003 loses the shared frequencies gain.
    """
    best = (math.inf, 0, 1.0, seen)
    drop = np.clip(np.sum(blurred * (1 - seen)[:, None], axis=0) / np.maximum(np.sum(blurred**2, axis=0), 1e-9), 0, 1.5)
    for trial, least in enumerate(drop):
        share = blurred[:, trial]
        for lost in np.linspace(0.3, 1.0, 15) if growth else (least,):
            fitted = (1 - lost * share) / (1 + growth * lost * share)
            misfit = float(np.sum((seen - fitted) ** 2))
            if misfit < best[0]:
                best = (misfit, trial, 1 - float(lost), fitted)
    return best[1:]


def _level_over_bulk(amplitude: np.ndarray, share: np.ndarray) -> float:
    """Amplitude that a profile (m,) has where the share is 1, over what it has where that is 0."""
    design = np.stack([np.ones_like(share), share], axis=1)
    return float(np.linalg.lstsq(design, amplitude, rcond=None)[0][1])
