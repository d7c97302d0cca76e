"""Surface layers of simulated HAADF images through what notebook 03 does, against their truth.

Images (`emphase.simulate.haadf_image`) have layers of 1 to 4 nm of every kind and none, 15 to 100 counts on a column, rough edges,
contamination, a thickness wedge, antisite disorder, drift and a wrong pixel size. The layer is measured from the columns' heights, and
again from fingerprints of the unit cell.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

import emphase
import helpers

KINDS = ("spinel", "spinel_m3o4", "rocksalt", "none")
PIXEL_NM = 0.0125  # as every image's file states it
BOOTSTRAPS = 200


class _Columns(NamedTuple):
    """The layered oxide seen along [100]hex: its projected columns, and the lattice of those of the cations."""

    projected: Any
    cations: Any


@functools.cache
def _layered_columns() -> _Columns:
    projected = emphase.haadf.project_columns(helpers.phase_crystal("layered"), (1, 0, 0))
    return _Columns(projected, emphase.haadf.cation_lattice(projected))


def find_layer(rng: np.random.Generator, image: np.ndarray, **options: Any) -> tuple[Any, Any]:
    """Lattice of an image (y, x) and the surface layer on it: what notebook 03 does.

    Parameters
    ----------
    rng, **options
        Of `emphase.haadf.measure_surface_layer`.
    image
        With a stated pixel of `PIXEL_NM`.

    Raises
    ------
    emphase.EmphaseError
        Where the image shows no lattice, or no surface.
    """
    projected, cations = _layered_columns()
    lattice = emphase.haadf.find_image_lattice(image, projected, PIXEL_NM)
    columns = emphase.haadf.measure_columns(image, lattice, cations)
    return lattice, emphase.haadf.measure_surface_layer(rng, columns, cations, **options)


def _fingerprint_layer(image: np.ndarray, lattice: Any, layer: Any) -> Any:
    """The layer of an image by the fingerprints of its unit cells."""
    maps = emphase.haadf.fingerprints.fingerprint_maps(image, lattice, _layered_columns().cations)
    return emphase.haadf.fingerprint_layer(emphase.haadf.fingerprints.fingerprint_profile(maps, lattice, layer.contour))


def _simulate_surface(rng: np.random.Generator, kind: str) -> tuple[np.ndarray, dict[str, Any]]:
    """An image (512, 512) of a surface with a layer of this kind under conditions drawn at random, and its truth."""
    counts = float(np.exp(rng.uniform(np.log(15), np.log(100))))
    conditions = emphase.simulate.HaadfConditions(
        roughness_nm=float(rng.uniform(0.05, 0.3)),
        antisite=float(rng.uniform(0.02, 0.08)),
        width_nm=float(rng.uniform(0.06, 0.25)),
    )
    layer_nm, rotation_deg = rng.uniform(1, 4), rng.uniform(-180, 180)
    return emphase.simulate.haadf_image(rng, (512, 512), PIXEL_NM, layer_nm, kind, rotation_deg, counts, conditions)


def _measure_surface(seed: int, number: int) -> dict[str, Any]:
    """The row of a simulated surface: its truth and what is found, or why it was refused."""
    rng = np.random.default_rng([seed, 3000 + number])
    kind = KINDS[number % len(KINDS)]
    image, truth = _simulate_surface(rng, kind)
    row = {"kind": kind, "counts": truth["counts_per_px"], "true_nm": truth["thickness_nm"]}
    try:
        lattice, layer = find_layer(rng, image, bootstraps=BOOTSTRAPS)
    except emphase.EmphaseError as error:
        return row | {"refused": str(error)}
    fingerprint = _fingerprint_layer(image, lattice, layer)
    low, high = layer.ci95_nm
    return row | {
        "error_nm": layer.thickness_nm - truth["thickness_nm"],
        "covered": low <= truth["thickness_nm"] <= high,
        "kind_right": layer.kind == truth["kind"],
        "fingerprint_error_nm": fingerprint.thickness_nm - truth["thickness_nm"],
        "fingerprint_kind_right": fingerprint.kind == truth["kind"],
    }


def measure_surfaces(images: int, seed: int, progress: Callable[..., Iterable]) -> tuple[pd.DataFrame, list[str]]:
    """Errors of the surface layer on simulated images.

    Parameters
    ----------
    images
        How many; the `KINDS` take turns.
    seed
        Of the images and of the bootstrap.
    progress
        Iterates over the images, with a label.

    Returns
    -------
    measured
        A row for every image that was not refused: ``kind``, ``counts``, ``true_nm``, ``error_nm``, ``covered`` (whether the 95 %
        interval holds the truth), ``kind_right``, and the same by fingerprints.
    refused
        Why the others were.
    """
    rows = [_measure_surface(seed, number) for number in progress(range(images), "surfaces")]
    measured = pd.DataFrame([row for row in rows if "refused" not in row])
    shares = dict.fromkeys(("covered", "kind_right", "fingerprint_kind_right"), float)
    return measured.astype(shares), [row["refused"] for row in rows if "refused" in row]


def by_kind(measured: pd.DataFrame) -> pd.DataFrame:
    """Errors of every kind of layer, from the rows of `measure_surfaces`."""
    rms = lambda errors: float(np.sqrt((errors**2).mean()))
    return measured.groupby("kind", sort=False).agg(
        images=("error_nm", "size"),
        rms_error_nm=("error_nm", rms),
        within_01_nm=("error_nm", lambda e: float((e.abs() <= 0.1).mean())),
        covered=("covered", "mean"),
        kind_right=("kind_right", "mean"),
        fingerprint_rms_nm=("fingerprint_error_nm", rms),
        fingerprint_kind_right=("fingerprint_kind_right", "mean"),
    )


def seconds_of_large_image(seed: int) -> float:
    """Seconds that the surface layer of an image of 2048 × 2048 takes."""
    image, _ = emphase.simulate.haadf_image(np.random.default_rng(seed), (2048, 2048), PIXEL_NM, 2.5)
    started = time.monotonic()
    find_layer(np.random.default_rng(seed), image)
    return time.monotonic() - started
