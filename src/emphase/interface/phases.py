"""Map of phases over a bright-field image, the two sides of the interface, and what lies between them.

The share of each lattice with its error gives the probability that it is the largest at a point; the posterior of the lattice gives the
phase. Points that no phase explains with 0.9 are ambiguous. The width of a layer is the median distance between the half-way contours of
the shares on both sides, with a block bootstrap along the interface (Künsch, Ann. Statist. 17 (1989) 1217).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..crystals import Crystal
from ..errors import EmphaseError
from .lattices import find_lattices, lattice_shares
from .pixel import calibrate_on_lattice
from .spectra import Lattice, WindowSpectra, _PatternBank, window_spectra, zone_patterns


@dataclass(frozen=True)
class PhaseOptions:
    """Tuning of the phase map and of the layer."""

    faint: float = 0.6  # of a share that a lattice may have where it is thin
    amorphous_level: float = 0.8  # of what the shares lack: the rest is their error
    amorphous_error: float = 0.08  # of that level
    most_misfit: float = 0.4  # share of the amplitudes that the lattices found leave unexplained before a point is ambiguous
    least_posterior: float = 0.9  # of a phase, before a point is ambiguous
    half_value_error_nm: float = 0.13  # of a half-way contour, a quarter of the kernel of the lock-in
    block_nm: float = 2.0  # of the bootstrap along a contour, over which its error is taken as common
    draws: int = 400  # of the bootstrap
    least_side: float = 0.02  # of the map, of a lattice that is a side of the interface
    most_clipped: float = 0.02  # share of pixels at the highest or the lowest value, before an image is called saturated, ...
    least_contrast: float = 8.0  # ... where that value is so far from the median: a picture of few grey values is none
    least_nyquist_invA: float = 0.45  # of an image in which the spacings of oxides can be told apart
    least_field: float = 1.5  # windows on each side
    least_layer_nm: float = 0.6  # a thinner one is within the kernel of the lock-in


OPTIONS = PhaseOptions()


@dataclass(frozen=True)
class InterfaceMap:
    """Phases around every point of a grid over the image.

    ``posterior`` (classes, y, x) of ``classes``, the candidate phases and "amorphous";
    ``label`` (y, x) indices into ``classes`` + ["ambiguous"]; ``lattice`` (y, x) the lattice, -1 none.
    """

    classes: list[str]
    posterior: np.ndarray
    label: np.ndarray
    lattice: np.ndarray
    step_nm: float

    @property
    def names(self) -> list[str]:
        """What ``label`` numbers."""
        return [*self.classes, "ambiguous"]

    def area_fractions(self) -> dict[str, float]:
        """Share of the image of each class; they sum to 1."""
        counts = np.bincount(self.label.ravel(), minlength=len(self.names))
        return {name: float(n / self.label.size) for name, n in zip(self.names, counts, strict=True)}


def phase_map(
    shares: np.ndarray,
    error: np.ndarray,
    lattices: list[Lattice],
    unexplained: np.ndarray,
    misfit: np.ndarray,
    phases: list[str],
    step_nm: float,
) -> InterfaceMap:
    """The posterior of every phase at every point, and its label.

    Parameters
    ----------
    shares, error
        (lattices, y, x) and (lattices,) from `lattice_shares`.
    lattices
        The lattices themselves.
    unexplained
        (y, x), where there are spots that no candidate has.
    misfit
        (y, x), where the lattices found lack spots that should be there, or have too many.
    phases
        Names of all candidates.
    step_nm
        Of the grid.

    Notes
    -----
    A point belongs to the lattice with the largest share; the probability that it truly is the largest comes from the errors of the shares,
    and the phase from the lattice's posterior. What the shares lack of ``faint`` (`PhaseOptions`: a lattice may be as much fainter where it
    is thin) is amorphous, or ambiguous where there are unexplained spots. Ambiguous is also where no phase is probable enough, where the
    lattice is not certain, and where the lattices do not explain the spots.
    """
    from scipy.special import ndtr

    classes = [*phases, "amorphous"]
    posterior = np.zeros((len(classes), *unexplained.shape))
    posterior[-1] = 1.0
    lattice = np.full(unexplained.shape, -1)
    if len(lattices):
        levels = np.concatenate([shares, OPTIONS.amorphous_level * np.clip(1 - shares.sum(axis=0, keepdims=True) / OPTIONS.faint, 0, None)])
        sigma = np.append(error, OPTIONS.amorphous_error)
        presence = np.ones_like(levels)
        for v in range(len(levels)):
            for other in range(len(levels)):
                if other != v:
                    presence[v] *= ndtr((levels[v] - levels[other]) / math.hypot(sigma[v], sigma[other]))
        presence /= presence.sum(axis=0)
        identity = np.array([[x.posterior.get(phase, 0.0) for phase in phases] for x in lattices])
        posterior[:-1] = np.tensordot(identity.T, presence[:-1], axes=1)
        posterior[-1] = presence[-1]
        lattice = np.where(levels.argmax(axis=0) < len(lattices), levels.argmax(axis=0), -1)
    label = posterior.argmax(axis=0)
    doubtful = (posterior.max(axis=0) < OPTIONS.least_posterior) | ((label == len(phases)) & unexplained) | misfit
    doubtful |= np.isin(lattice, [v for v, x in enumerate(lattices) if not x.certain])
    return InterfaceMap(classes, posterior, np.where(doubtful, len(classes), label), lattice, step_nm)


def _facing_distances(first: np.ndarray, second: np.ndarray, step_nm: float) -> list[np.ndarray]:
    """Distances (nm) between the half-way contours of two shares, in blocks of 2 nm along each contour."""
    from scipy.spatial import cKDTree
    from skimage.measure import find_contours

    contours = []
    for share in (first, second):
        lines = [line for line in find_contours(share, 0.5) if len(line) >= 8]
        longest = max((len(line) for line in lines), default=0)
        lines = [line for line in lines if len(line) > longest / 2]
        inside = [line[np.all((line > 2) & (line < np.array(share.shape) - 3), axis=1)] for line in lines]
        contours.append([line for line in inside if len(line) >= 8])
    if not contours[0] or not contours[1]:
        return []
    points = [np.concatenate(c) for c in contours]
    trees = [cKDTree(p) for p in points]
    distances = [[trees[1 - i].query(line)[0] for line in contours[i]] for i in (0, 1)]
    limit = 2.5 * min(float(np.median(np.concatenate(d))) for d in distances) + 2 / step_nm
    block = max(4, round(OPTIONS.block_nm / step_nm))
    blocks = [d[i : i + block] * step_nm for side in distances for d in side for i in range(0, len(d), block)]
    blocks = [b[b < limit * step_nm] for b in blocks]
    return [b for b in blocks if len(b) >= 2]


def layer_width(first: np.ndarray, second: np.ndarray, step_nm: float, rng: np.random.Generator) -> dict[str, Any]:
    """Width of what lies between two lattices, from where the share of each falls to half.

    Parameters
    ----------
    first, second
        Shares (y, x) of the two lattices on a grid.
    step_nm
        Of the grid.
    rng
        For the bootstrap.

    Returns
    -------
    dict
        ``width_nm``, ``ci95_nm``, ``spread_nm`` (standard deviation along the interface); without facing contours all are None.

    Notes
    -----
    Median distance of the two contours, from either to the other; the interval is a bootstrap of 2 nm blocks along them, with 0.13 nm for
    each half value, a quarter of the kernel of the lock-in: a lattice that fades at its end is cut off early.
    """
    blocks = _facing_distances(first, second, step_nm)
    if len(blocks) < 3:
        return {"width_nm": None, "ci95_nm": None, "spread_nm": None}
    values = np.concatenate(blocks)
    draws = [np.median(np.concatenate([blocks[i] for i in rng.integers(0, len(blocks), len(blocks))])) for _ in range(OPTIONS.draws)]
    low, high = np.percentile(draws, [2.5, 97.5])
    width, error = float(np.median(values)), math.sqrt(2) * OPTIONS.half_value_error_nm
    ci = [max(0.0, width - math.hypot(width - low, error)), width + math.hypot(high - width, error)]
    return {"width_nm": width, "ci95_nm": ci, "spread_nm": float(values.std())}


def _width_between(shares: np.ndarray, sides: tuple[int, int], step_nm: float, rng: np.random.Generator) -> dict[str, Any]:
    """`layer_width` between two of the lattices (lattices, y, x).

    Where a third lies between them their shares are taken of the sum of all: two lattices that share most of their spots both fade
    where they meet, which leaves a gap that belongs to neither. Half of what that moves the width enters the interval.
    """
    plain = layer_width(shares[sides[0]], shares[sides[1]], step_nm, rng)
    if len(shares) < 3 or plain["width_nm"] is None:
        return plain
    total = np.maximum(shares.sum(axis=0), 0.5)
    width = layer_width(shares[sides[0]] / total, shares[sides[1]] / total, step_nm, rng)
    if width["width_nm"] is None:
        return plain
    moved, middle = 0.5 * (plain["width_nm"] - width["width_nm"]), width["width_nm"]
    low, high = (middle + math.copysign(math.hypot(end - middle, moved), end - middle) for end in width["ci95_nm"])
    return width | {"ci95_nm": [max(0.0, low), high]}


def _sides(lattices: list[Lattice], lattice_map: np.ndarray, sides: tuple[str, str] | None) -> tuple[int, int] | None:
    """The lattices on both sides of the interface: those of the phases ``sides`` if both are there, else the two largest."""
    area = {v: int(np.sum(lattice_map == v)) for v in range(len(lattices))}
    present = sorted((v for v in area if area[v] > OPTIONS.least_side * lattice_map.size), key=lambda v: -area[v])
    named = {lattices[v].phase: v for v in reversed(present) if lattices[v].certain}
    if sides and sides[0] in named and sides[1] in named:
        return named[sides[0]], named[sides[1]]
    return (present[0], present[1]) if len(present) >= 2 else None


def _layer_in_hiding(shares: np.ndarray, sides: tuple[int, int], misfit: np.ndarray, step_nm: float) -> bool:
    """Whether spots are missing within 0.6 nm of most of where two lattices meet: a layer that has no spots but those of one of them."""
    from scipy.ndimage import binary_dilation, distance_transform_edt

    second = shares[sides[1]] > shares[sides[0]]
    meeting = binary_dilation(second) & ~second
    if not misfit.any() or not meeting.any():
        return False
    return bool(np.mean(distance_transform_edt(~misfit)[meeting] * step_nm < OPTIONS.least_layer_nm) > 0.5)


def _phase_between(found: InterfaceMap, sides: tuple[int, int], width_nm: float) -> str:
    """The class that holds most of what lies between two lattices."""
    from scipy.ndimage import distance_transform_edt

    reach = 1.5 * width_nm / found.step_nm
    label = np.where(found.label == len(found.classes), -1, found.lattice)
    away = [distance_transform_edt(label != side) for side in sides]
    between = (away[0] > 0) & (away[1] > 0) & (away[0] + away[1] < reach + 3)
    counts = np.bincount(found.label[between], minlength=len(found.names))
    decided = counts[:-1]
    if decided.sum() < 0.5 * counts.sum() or decided.max(initial=0) < 0.6 * decided.sum() or decided.sum() < 10:
        return "ambiguous"
    return found.names[int(np.argmax(decided))]


@dataclass(frozen=True)
class InterfaceResult:
    """All that `analyse_interface` finds.

    ``window_posteriors`` are those of every window by itself, of each phase in each zone axis; ``owner`` the lattice that it shows most
    clearly. ``statements`` say what could not be found.
    """

    calibration: dict[str, Any]
    pixel_size_nm: float
    spectra: WindowSpectra
    lattices: list[Lattice]
    owner: np.ndarray
    window_posteriors: list[dict[str, float]]
    map: InterfaceMap
    shares: np.ndarray
    sides: tuple[int, int] | None
    interface_phase: str | None
    width: dict[str, Any]
    statements: list[str]


def check_lattice_image(image: np.ndarray, pixel_size_nm: float, window_nm: float, where: str) -> None:
    """Whether an image can hold lattices at all.

    Parameters
    ----------
    image
        (y, x).
    pixel_size_nm, window_nm
        The pixel as stated, and the side of the windows to come.
    where
        What the image is called in messages, as the key of its acquisition.

    Raises
    ------
    EmphaseError
        For an image that is constant, not finite or saturated, a pixel too large for lattice spacings, and a field too small for windows.
    """
    values = np.asarray(image)
    if not np.all(np.isfinite(values)) or values.std() == 0:
        raise EmphaseError(f"{where}.file: all pixels are equal or some are not finite, expected an image with contrast")
    for end, words in ((values.max(), "highest"), (values.min(), "lowest")):
        clipped = float(np.mean(values == end))
        if clipped > OPTIONS.most_clipped and abs(float(end) - float(np.median(values))) > OPTIONS.least_contrast:
            raise EmphaseError(
                f"{where}.file: {clipped:.1%} of the pixels sit at the {words} value {end:g}: saturated, expected values inside"
            )
    nyquist = 1 / (20 * pixel_size_nm)
    if nyquist < OPTIONS.least_nyquist_invA:
        raise EmphaseError(
            f"{where}.pixel_size_nm: got {pixel_size_nm:g}, at which spacings below {1 / nyquist:.1f} Å are lost; "
            f"expected a lattice image of at most {1 / (20 * OPTIONS.least_nyquist_invA):.2f} nm a pixel"
        )
    field = [n * pixel_size_nm for n in values.shape]
    if min(field) < OPTIONS.least_field * window_nm:
        raise EmphaseError(
            f"{where}.pixel_size_nm: got {pixel_size_nm:g}, a field of {field[0]:.3g} × {field[1]:.3g} nm for {values.shape[0]} × "
            f"{values.shape[1]} pixels; expected at least {OPTIONS.least_field * window_nm:g} nm on each side (or a smaller window_nm)"
        )


def _unexplained(spectra: WindowSpectra, owner: np.ndarray, shape: tuple[int, int], image_shape: tuple[int, ...]) -> np.ndarray:
    """Grid points whose nearest window has spots that no candidate explains."""
    from scipy.spatial import cKDTree

    points = (np.indices(shape).reshape(2, -1).T + 0.5) * np.array(image_shape) / np.array(shape)
    return (owner == -2)[cKDTree(spectra.centres).query(points)[1]].reshape(shape)


@dataclass(frozen=True)
class InterfaceSearch:
    """What `analyse_interface` searches."""

    #: Side of the sliding window, nm; its Hann weight falls to half over half of that.
    window_nm: float = 3.8
    #: Distance of neighbouring windows, nm.
    stride_nm: float = 1.0
    #: Zone axes up to this index are tried.
    max_index: int = 2

    def __post_init__(self) -> None:
        """`EmphaseError` for a window or a stride that holds or gives nothing."""
        for name, value, least, most in (("window_nm", self.window_nm, 0.5, 100), ("stride_nm", self.stride_nm, 0.05, self.window_nm)):
            if not least <= value <= most:
                raise EmphaseError(f"{name}: got {value:g}, expected {least:g} to {most:g} nm")


def _layer_between(
    shares: np.ndarray, misfit: np.ndarray, found: InterfaceMap, sides: tuple[int, int], rng: np.random.Generator
) -> tuple[str | None, dict[str, Any]]:
    """Phase between two lattices, "none" or "ambiguous", None where they do not face each other; and its `layer_width`."""
    missing = misfit > OPTIONS.most_misfit
    width = _width_between(np.where(missing, np.minimum(shares, 0.3), shares), sides, found.step_nm, rng)
    if width["width_nm"] is None:
        return None, width
    phase = _phase_between(found, sides, width["width_nm"]) if width["width_nm"] > OPTIONS.least_layer_nm else "none"
    if phase == "none" and _layer_in_hiding(shares, sides, missing, found.step_nm):
        phase = "ambiguous"
    return phase, width


def analyse_interface(
    image: np.ndarray,
    pixel_size_nm: float,
    crystals: list[Crystal],
    rng: np.random.Generator,
    *,
    search: InterfaceSearch = InterfaceSearch(),
    sides: tuple[str, str] | None = None,
    where: str = "the image",
    progress: Any = iter,
) -> InterfaceResult:
    """Phases around every point of a bright-field lattice image, and the layer at its interface.

    Spectra of sliding windows give peaks; lengths, angles and strengths of all peaks of a window together score every candidate phase in
    every zone axis and rotation, and no phase is certain on spots of one direction. The pixel is calibrated on the phase that is certain,
    one of ``sides`` where it is there. The lattices found are then followed over the image.

    Parameters
    ----------
    image
        (y, x), any real type.
    pixel_size_nm
        As stated.
    crystals
        Candidate phases.
    rng
        For the bootstrap of the width.
    search
        Windows and zone axes.
    sides
        The phases known to lie on both sides of the interface; without, the two largest lattices are its sides.
    where
        Name of the image in error messages.
    progress
        Iterates over the windows.

    Returns
    -------
    InterfaceResult

    Raises
    ------
    EmphaseError
        Where the image cannot hold a lattice at this pixel size.
    """
    check_lattice_image(image, pixel_size_nm, search.window_nm, where)
    bank = _PatternBank([p for crystal in crystals for p in zone_patterns(crystal, search.max_index)])
    spectra = window_spectra(image, pixel_size_nm, search.window_nm, search.stride_nm)
    scale = calibrate_on_lattice(spectra, bank, sides or ())
    true_nm = pixel_size_nm * scale["scale"]
    lattices, owner, posteriors = find_lattices(spectra, bank, scale["scales"], progress)
    if lattices:
        shares, step_nm, error, misfit = lattice_shares(image, true_nm, spectra, lattices, owner)
    else:
        step_nm, error = 0.22, np.zeros(0)
        shares = np.zeros((0, *(max(8, round(n * true_nm / step_nm)) for n in image.shape)))
        misfit = np.zeros(shares.shape[1:])
    strange = _unexplained(spectra, owner, shares.shape[1:], image.shape)
    found = phase_map(shares, error, lattices, strange, misfit > OPTIONS.most_misfit, bank.phases, step_nm)
    beside = _sides(lattices, found.lattice, sides)
    width: dict[str, Any] = {"width_nm": None, "ci95_nm": None, "spread_nm": None}
    phase, width = _layer_between(shares, misfit, found, beside, rng) if beside else (None, width)
    result = InterfaceResult(scale, true_nm, spectra, lattices, owner, posteriors, found, shares, beside, phase, width, [])
    result.statements.extend(_interface_statements(result))
    return result


def _interface_statements(result: InterfaceResult) -> list[str]:
    """What the image does not show, in words."""
    lines = []
    if result.calibration["anchor"] is None:
        off = 100 * (result.calibration["scale"] - 1)
        used = f"lengths are for {off:+.1f} % of the stated pixel, which is not certain" if off else "the pixel size is not corrected"
        lines.append(f"{used}: {result.calibration['reason']}")
    elif {x.phase for x in result.lattices} <= set(result.calibration["anchor"].split(" or ")) and len(result.lattices) == 1:
        lines.append(f"the scale is given by {result.calibration['anchor']}, and no other lattice confirms it")
    if not result.lattices:
        strange = float(np.mean(result.owner == -2))
        lines.append(
            f"no lattice of a candidate phase is found; {100 * strange:.0f} % of the windows have spots that none explains"
            + (": check the pixel size and the candidates" if strange > 0.1 else ": noise or amorphous matter only")
        )
    elif result.sides is None:
        lines.append(f"only one lattice fills the image ({result.lattices[0].phase}): there is no interface in it")
    elif result.width["width_nm"] is None:
        lines.append("the two lattices do not face each other: no layer can be measured between them")
    elif result.interface_phase == "none":
        lines.append(f"no layer between the lattices wider than {max(OPTIONS.least_layer_nm, result.width['ci95_nm'][1]):.1f} nm")
    elif result.interface_phase == "ambiguous":
        lines.append("what lies between the two lattices shows too few spots, or those of several phases, to be named")
    lines += [f"a lattice is ambiguous: {_named_posterior(x)}" for x in result.lattices if not x.certain]
    return lines


def _named_posterior(lattice: Lattice) -> str:
    """The three most probable phases of a lattice, as text."""
    likely = sorted(lattice.posterior.items(), key=lambda item: -item[1])[:3]
    return ", ".join(f"{phase} {probability:.2f}" for phase, probability in likely)


def spacing_table(lattice: Lattice) -> list[dict[str, Any]]:
    """Measured against expected spacings of a lattice, the strongest peak of each reflection, longest first.

    Returns
    -------
    list of dict
        ``hkl``, ``expected_A``, ``measured_A``, ``deviation_percent`` and ``power_over_background`` of each reflection.
    """
    rows: dict[int, dict[str, Any]] = {}
    for q, strength, k in sorted(zip(lattice.measured, lattice.strength, lattice.index, strict=True), key=lambda r: -r[1]):
        expected = 1 / abs(lattice.pattern.spots[k])
        row = {
            "hkl": tuple(int(i) for i in lattice.pattern.hkl[k]),
            "expected_A": float(expected),
            "measured_A": float(1 / abs(q)),
            "deviation_percent": float(100 * (1 / abs(q) / expected - 1)),
            "power_over_background": float(strength),
        }
        rows.setdefault(int(k), row)
    return sorted(rows.values(), key=lambda r: -r["expected_A"])
