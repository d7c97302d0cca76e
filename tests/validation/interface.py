"""Phases of simulated bright-field images of interfaces through what notebook 04 does, against their truth.

Images (`emphase.simulate.interface_image`) have layers of every candidate phase, amorphous or none, 40 to 300 electrons per pixel, and a
pixel that is off by up to 3 %. A point is right where the phase named is the true one; points called ambiguous are counted apart.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import pandas as pd

import emphase
import helpers
from emphase.simulate import InterfaceScene

LAYERS = ("rocksalt", "spinel", "la2zr2o7", "lanio3", "li2co3", "amorphous", "none")
LLZO_ZONES = ((1, 1, 1), (1, 0, 0), (1, 1, 0), (2, 1, 1))
PIXEL_NM = 0.02  # as every image's file states it


def _crystals() -> list[Any]:
    return [helpers.phase_crystal(name) for name in helpers.INTERFACE_PHASES]


def _simulate(rng: np.random.Generator, side_px: int, scene: InterfaceScene, **options: Any) -> tuple[np.ndarray, dict[str, Any]]:
    """A simulated image of side × side pixels, and its truth."""
    crystals = {crystal.name: crystal for crystal in _crystals()}
    return emphase.simulate.interface_image(rng, crystals, scene, (side_px, side_px), PIXEL_NM, **options)


def _draw_conditions(rng: np.random.Generator, phase: str) -> tuple[InterfaceScene, dict[str, float]]:
    """Scene with a layer of this phase, and electrons, pixel size and amorphous film of an image, at random."""
    layer_nm = float(rng.uniform(2, 6))
    zones = ((1, 0, 0), (1, 1, 0), LLZO_ZONES[int(rng.integers(4))])
    options = {"counts": float(np.exp(rng.uniform(np.log(40), np.log(300)))), "pixel_size_error": float(rng.uniform(-0.03, 0.03))}
    roughness_nm = float(rng.uniform(0.1, 0.5))
    scene = InterfaceScene(helpers.INTERFACE_SIDES, phase, layer_nm, zones, roughness_nm)
    return scene, options | {"amorphous": float(rng.uniform(0.5, 1.5))}


def find_phases(rng: np.random.Generator, image: np.ndarray) -> Any:
    """What notebook 04 finds on an image (y, x) with a stated pixel of `PIXEL_NM`."""
    return emphase.interface.analyse_interface(image, PIXEL_NM, _crystals(), rng, sides=helpers.INTERFACE_SIDES)


def _measure_interface(seed: int, number: int) -> dict[str, Any]:
    """The row of a simulated interface: the share of points right among those named, of ambiguous ones, and the layer."""
    rng = np.random.default_rng([seed, 4000 + number])
    phase = LAYERS[number % len(LAYERS)]
    scene, options = _draw_conditions(rng, phase)
    image, truth = _simulate(rng, 1024, scene, **options)
    found = find_phases(rng, image)
    rows, columns = (((np.arange(n) + 0.5) * m / n).astype(int) for n, m in zip(found.map.label.shape, image.shape, strict=True))
    true = np.array(truth["phases"], dtype=object)[truth["phase_map"][np.ix_(rows, columns)]]
    named = np.array(found.map.names, dtype=object)[found.map.label]
    decided = named != "ambiguous"
    width, ci = found.width["width_nm"], found.width["ci95_nm"]
    measured = width is not None and phase != "none" and found.interface_phase == phase
    return {
        "layer": phase,
        "right_of_named": float(np.mean(true[decided] == named[decided])),
        "ambiguous": float(1 - decided.mean()),
        "layer_named": float(found.interface_phase == phase),
        "width_error_nm": width - truth["interface_width_nm"] if measured else np.nan,
        "width_covered": float(ci[0] <= truth["interface_width_nm"] <= ci[1]) if measured else np.nan,
        "pixel_off_percent": 100 * abs(found.pixel_size_nm / truth["pixel_size_nm"] - 1),
    }


def measure_interfaces(images: int, seed: int, progress: Callable[..., Iterable]) -> pd.DataFrame:
    """What is found on simulated images, a row each: `LAYERS` take turns.

    Parameters
    ----------
    images
        How many.
    seed
        Of the images and of the analysis.
    progress
        Iterates over the images, with a label.

    Returns
    -------
    DataFrame
        ``layer``, ``right_of_named``, ``ambiguous`` (shares of the points), ``layer_named``, ``width_error_nm`` and ``width_covered``
        (missing where the layer is not found, or is none), ``pixel_off_percent``.
    """
    return pd.DataFrame([_measure_interface(seed, number) for number in progress(range(images), "interfaces")])


def by_layer(rows: pd.DataFrame) -> pd.DataFrame:
    """Means over the images of every layer, from the rows of `measure_interfaces`."""
    groups = rows.groupby("layer", sort=False)
    table = groups.mean()
    table.insert(0, "images", groups.size())
    return table


def seconds_of_large_image(seed: int) -> float:
    """Seconds that the phases of an image of 2048 × 2048 take."""
    image, _ = _simulate(np.random.default_rng(seed), 2048, InterfaceScene(helpers.INTERFACE_SIDES))
    started = time.monotonic()
    find_phases(np.random.default_rng(seed), image)
    return time.monotonic() - started
