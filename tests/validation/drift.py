"""Drift of stacks by the workbook and by other programs, against the truth and the Cramér-Rao floor.

A stack is simulated, or a recorded image is moved along a recorded trajectory (`recorded.stack_along_trajectory`). Every method gets the
same frames; the other programs get what suits them best of what was tried: the blank frame left out, frames blurred by one pixel, the
sign of the shifts that fits.

A shift is measured up to a constant, and on a lattice up to a lattice vector: the errors of a stack are compared with the place that
most frames share, frames within 2 px of it lie in the right cell, and their rms about their mean is given over the floor,
sqrt(mean(trace(J⁻¹) / 2)) with J the Fisher information of a noise-free frame (`emphase.drift.poisson_shift_information`).

Sources: scikit-image's `phase_cross_correlation` (Guizar-Sicairos et al., Opt. Lett. 33 (2008) 156), hyperspy's `estimate_shift2D`
(Schaffer et al., Ultramicroscopy 102 (2004) 27), StackReg (Thévenaz et al., IEEE Trans. Image Process. 7 (1998) 27).
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from scipy.ndimage import gaussian_filter

import emphase
import helpers

from . import recorded as recordings

DOSES = (8.0, 2.0, 0.5, 0.15)  # counts per pixel and frame
RECORDED = "recorded image and trajectory"
WORKBOOK = "workbook"
RIGHT_CELL_PX = 2.0  # a frame within this distance of the place that most frames share lies in the right cell

#: Makes a stack and its truth from a generator and the counts per pixel.
Scene = Callable[[np.random.Generator, float], tuple[np.ndarray, dict[str, Any]]]


class Error(NamedTuple):
    """Errors of a stack: share of frames in a wrong place, rms of the others over the floor, median error in px."""

    wrong: float
    ratio: float
    median_px: float


def llzo_scene() -> Callable[[np.random.Generator, tuple[int, int]], np.ndarray]:
    """Makes LLZO along [001], for a random generator and a shape."""
    return partial(emphase.simulate.lattice_scene, crystal=helpers.phase_crystal("llzo"))


def scenes(recorded: Path | None) -> dict[str, Scene]:
    """The scenes on which drift is measured, by name.

    Parameters
    ----------
    recorded
        Folder of recordings, for the scene of a recorded image; None leaves it out.
    """
    found: dict[str, Scene] = {
        "LLZO [001]": partial(_simulated_stack, scene=llzo_scene()),
        "plain lattice": partial(_simulated_stack, scene=emphase.simulate.plain_lattice),
    }
    return found | ({RECORDED: partial(recordings.stack_along_trajectory, recorded / "cryo_haadf")} if recorded else {})


def _simulated_stack(rng: np.random.Generator, counts_per_px: float, scene: Any) -> tuple[np.ndarray, dict[str, Any]]:
    """Frames of a scene with drift of 0.2 to 1 px a frame and one to three jumps, and their truth."""
    drift_px, jumps = rng.uniform(0.2, 1.0), int(rng.integers(1, 4))
    return emphase.simulate.drifting_stack(
        rng, counts_per_px=counts_per_px, scene=scene, motion=emphase.simulate.StackMotion(drift_px, jumps)
    )


def by_skimage(stack: np.ndarray) -> np.ndarray:
    """Shifts (n, 2) in px of frames (n, y, x) by cross-correlation with the sum of the frames before."""
    from scipy.ndimage import shift as moved
    from skimage.registration import phase_cross_correlation

    window = np.outer(*(np.hanning(n) for n in stack.shape[1:]))
    found, total = np.zeros((len(stack), 2)), stack[0].copy()
    for k in range(1, len(stack)):
        reference, image = ((a - a.mean()) * window for a in (total / k, stack[k]))
        found[k] = -phase_cross_correlation(reference, image, upsample_factor=20, normalization=None)[0]
        total += moved(stack[k], -found[k], order=1, mode="reflect")
    return found


def by_hyperspy(stack: np.ndarray, reference: str = "current") -> np.ndarray:
    """Shifts (n, 2) in px of frames (n, y, x) by hyperspy's `estimate_shift2D` against one ``reference``, or in a "cascade"."""
    import hyperspy.api as hs

    signal = hs.signals.Signal2D(stack)
    return np.asarray(signal.estimate_shift2D(reference=reference, sub_pixel_factor=20, show_progressbar=False), dtype=float)


def by_stackreg(stack: np.ndarray) -> np.ndarray | None:
    """Shifts (n, 2) in px of frames (n, y, x) by StackReg, each to the one before; None where it is not installed."""
    try:
        from pystackreg import StackReg
    except ImportError:
        return None
    warnings.filterwarnings("ignore", message="Detected axis")  # it guesses at the axis of frames, and it is the first
    matrices = StackReg(StackReg.TRANSLATION).register_stack(stack, reference="previous")
    return matrices[:, [1, 0], 2]


#: Programs beside the workbook, by name; "nothing" is the plain sum.
PEERS: dict[str, Callable[[np.ndarray], np.ndarray | None]] = {
    "scikit-image": by_skimage,
    "hyperspy": by_hyperspy,
    "hyperspy, cascade": partial(by_hyperspy, reference="cascade"),
    "StackReg": by_stackreg,
    "nothing": lambda stack: np.zeros((len(stack), 2)),
}


def compare_with_truth(found: np.ndarray, truth_px: np.ndarray, floor_px: float) -> Error:
    """Errors of shifts against the truth, with the sign that suits them.

    Parameters
    ----------
    found, truth_px
        Shifts (n, 2), (y, x), in px, of the same frames.
    floor_px
        Cramér-Rao floor of one axis.
    """
    of_sign = []
    for sign in (1, -1):
        error = sign * found - truth_px
        place = max(error, key=lambda e: np.sum(np.linalg.norm(error - e, axis=1) < RIGHT_CELL_PX))
        right = np.linalg.norm(error - place, axis=1) < RIGHT_CELL_PX
        near = error[right] - error[right].mean(axis=0)
        median = float(np.median(np.linalg.norm(error - np.median(error, axis=0), axis=1)))
        of_sign.append(Error(float(np.mean(~right)), float(np.sqrt(np.mean(near**2))) / floor_px, median))
    return min(of_sign)


def _by_workbook(stack: np.ndarray, lit: np.ndarray, truth: Mapping[str, Any]) -> dict[str, Any]:
    """The workbook's row of a stack: beside the errors, the lit frames left out and the rms of errors over their stated sigma."""
    started = time.monotonic()
    solution = emphase.drift.register_stack(stack)
    seen = lit & solution.used
    found, took = solution.shift_px[seen], time.monotonic() - started
    path_px = truth["shift_px"][seen]
    error = compare_with_truth(found, path_px, truth["crlb_px"])
    off = found - path_px
    z = np.sqrt(np.mean(((off - np.median(off, axis=0)) / solution.sigma_px[seen, None]) ** 2))
    left_out = int(lit.sum() - seen.sum())
    return error._asdict() | {"seconds": took, "left_out": left_out, "z": float(z) if error.wrong == 0 else None}


def _rows_of_stack(stack: np.ndarray, truth: Mapping[str, Any]) -> Iterable[dict[str, Any]]:
    """A row for every method on a stack; that of a program which is not installed holds its name alone."""
    lit = np.array([j not in truth["blank"] for j in range(len(stack))])
    blurred = np.stack([gaussian_filter(frame.astype(float), 1) for frame in stack[lit]])
    yield {"method": WORKBOOK} | _by_workbook(stack, lit, truth)
    for name, method in PEERS.items():
        started = time.monotonic()
        found = method(blurred)
        took = time.monotonic() - started
        row: dict[str, Any] = {"method": name}
        if found is not None:
            row |= compare_with_truth(found, truth["shift_px"][lit], truth["crlb_px"])._asdict() | {"seconds": took}
        yield row


def measure_stacks(stacks: int, seed: int, recorded: Path | None, progress: Callable[..., Iterable]) -> tuple[pd.DataFrame, set[str]]:
    """Errors of every method on stacks of every scene and dose.

    Parameters
    ----------
    stacks
        Number of stacks of every simulated scene and dose; of the recorded scene there is one a dose.
    seed
        Of the stacks.
    recorded
        Folder of recordings; None leaves the recorded scene out.
    progress
        Iterates over stacks, with a label.

    Returns
    -------
    rows
        ``scene``, ``counts``, ``method``, the fields of `Error`, ``seconds``; of the workbook also ``left_out`` (lit frames that it left
        out) and ``z``, the rms of the errors over the stated sigma where no frame lies in a wrong place.
    missing
        Names of the programs that are not installed.
    """
    makers, rows, missing = scenes(recorded), [], set()
    cases = [(scene, dose, k) for scene in makers for dose in DOSES for k in range(stacks if scene != RECORDED else 1)]
    for scene, dose, k in progress(cases, "stacks for drift"):
        rng = np.random.default_rng([seed, 3000 + k, int(100 * dose), list(makers).index(scene)])
        for row in _rows_of_stack(*makers[scene](rng, dose)):
            if "wrong" in row:
                rows.append({"scene": scene, "counts": dose} | row)
            else:
                missing.add(row["method"])
    return pd.DataFrame(rows), missing


def by_scene_and_dose(rows: pd.DataFrame) -> pd.DataFrame:
    """Errors of every method by scene and dose, from the rows of `measure_stacks`: means, rms and medians over the stacks."""
    return rows.groupby(["scene", "counts", "method"], sort=False).agg(
        stacks=("wrong", "size"),
        wrong_place=("wrong", "mean"),
        rms_over_floor=("ratio", lambda r: float(np.sqrt(np.mean(r**2)))),
        median_error_px=("median_px", "median"),
        seconds=("seconds", "median"),
    )
