"""HAADF images by another program's forward model, abTEM's multislice, through what notebook 03 does.

Slabs 8 nm thick along [100]hex (PRISM, 200 keV, 18 mrad, detector 60 to 105 mrad, one configuration of displaced atoms, every atom of a
mixed site drawn), with a layer of spinel or rocksalt strained onto the layered lattice on either side, whose thickness is known to the
plane. One period along the surface is simulated and repeated, a source of 0.05 nm (FWHM) blurs it, the scan is turned anyhow and its
pixel is 1.5 % larger than stated; 25 and 80 counts on a metal column. Absorption and inelastic scattering are left out.

PRISM: Ophus, Adv. Struct. Chem. Imaging 3 (2017) 13; abTEM: Madsen & Susi, Open Research Europe 1 (2021) 24.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import ase
import numpy as np
from scipy.fft import next_fast_len
from scipy.ndimage import gaussian_filter, map_coordinates

import emphase

from .forward_ped import CUBIC_ON_HEXAGONAL, EXCHANGED, THERMAL_A, exchange_cations
from .haadf import BOOTSTRAPS, PIXEL_NM, find_layer
from .ped import PHASES

#: Layers (phase, thickness in Å, then rounded to planes) on either side of the slabs.
SLABS = ((("spinel", 16.0), ("rocksalt", 12.0)), (("rocksalt", 22.0), ("layered", 0.0)))
#: Further ones of a full validation.
MORE_SLABS = ((("spinel", 26.0), ("spinel", 9.0)), (("rocksalt", 8.0), ("spinel", 20.0)))
COUNTS = (25.0, 80.0)  # on a metal column
TRUE_PIXEL_NM = PIXEL_NM * 1.015
SHAPE = (448, 448)
BULK_A = 25.0  # between the layers
REPEATS = 28  # unit cells along the beam
VACUUM_A = 4.0  # on either side


class Surface(NamedTuple):
    """A surface of a slab: where it lies and the thickness of its layer, in Å, and +1 or −1 for the direction inwards."""

    face_A: float
    thickness_A: float
    inwards: int


class SurfaceImage(NamedTuple):
    """An image of a surface, the depth of its pixels below it in nm, and its row of `measure_slabs`."""

    image: np.ndarray
    depth_nm: np.ndarray
    row: dict[str, Any]


def draw_atoms(
    rng: np.random.Generator, crystal: Any, to_slab: np.ndarray, origin: np.ndarray, box_A: Sequence[float]
) -> tuple[np.ndarray, np.ndarray]:
    """Elements and places (n, 3) in Å of a crystal in a box, ``to_slab`` (3, 3) from its frame; every site is drawn by its occupancies."""
    sites, site_of = np.unique(np.round(crystal.positions, 4), axis=0, return_inverse=True)
    reach = int(np.ceil(np.linalg.norm(box_A) / np.linalg.norm(crystal.lattice, axis=1).min())) + 1
    cells = np.stack(np.meshgrid(*3 * [np.arange(-reach, reach + 1)], indexing="ij"), axis=-1).reshape(-1, 3)
    elements, places = [], []
    for number, site in enumerate(sites):
        at = (cells + site - origin) @ crystal.lattice @ to_slab.T
        at = at[np.all((at > -1e-3) & (at < np.array(box_A) - 1e-3), axis=1)]
        here = np.flatnonzero(site_of.ravel() == number)
        share = crystal.occupancies[here]
        drawn = rng.choice([*np.array(crystal.elements)[here], ""], len(at), p=[*share, 1 - share.sum()])
        elements.append(drawn[drawn != ""])
        places.append(at[drawn != ""])
    return np.concatenate(elements), np.concatenate(places)


def topotactic(crystal: Any, layered: Any) -> tuple[np.ndarray, np.ndarray]:
    """Matrix (3, 3) and origin that put a phase into the slab, strained onto the layered lattice.

    The slab's axes are the surface normal, [001]hex and the beam along [100]hex.
    """
    order = np.array([[0, 1, 0], [0, 0, 1], [1, 0, 0]])
    if crystal.name == "layered":
        return order, np.zeros(3)
    a_A, c_A = layered.lattice[0, 0], layered.lattice[2, 2]
    cells = 2 if crystal.name.startswith("spinel") else 1  # of two oxygen layers along an edge
    a_cubic = crystal.lattice[0, 0] / cells
    strain = [a_A / (a_cubic / np.sqrt(2)), a_A / (a_cubic / np.sqrt(2)), c_A / (2 * np.sqrt(3) * a_cubic)]
    return order @ np.diag(strain) @ CUBIC_ON_HEXAGONAL, (np.array([0.5, 0.25, 0.25]) if cells == 2 else np.zeros(3))


def build_slab(
    rng: np.random.Generator, crystals: Sequence[Any], layers: Sequence[tuple[str, float]]
) -> tuple[ase.Atoms, tuple[Surface, Surface]]:
    """A slab of the layered phase with a layer (phase, thickness in Å) on either side, in vacuum; and its two surfaces.

    Parameters
    ----------
    rng
        Draws the atoms of mixed sites.
    crystals
        Those of `ped.PHASES`, in their order.
    layers
        On the left and the right side; thicknesses are rounded to planes.
    """
    layered = crystals[0]
    a_A, c_A = layered.lattice[0, 0], layered.lattice[2, 2]
    plane = a_A * np.sqrt(3) / 6  # columns stand at every third of a spacing along the normal: all faces lie half way between
    left, bulk, right = (plane * round(t / plane) for t in (layers[0][1], BULK_A, layers[1][1]))
    box = (left + bulk + right, c_A, REPEATS * a_A)
    region = [(0, left), (left, left + bulk), (left + bulk, box[0])]
    elements, places = [], []
    for (low, high), phase in zip(region, (layers[0][0], "layered", layers[1][0]), strict=True):
        crystal = exchange_cations(layered, EXCHANGED) if phase == "layered" else crystals[PHASES.index(phase)]
        element, at = draw_atoms(rng, crystal, *topotactic(crystal, layered), (box[0] + plane, *box[1:]))
        at[:, 0] -= plane / 2
        inside = (at[:, 0] >= low) & (at[:, 0] < high)
        elements.append(element[inside])
        places.append(at[inside])
    shifted = np.concatenate(places) + np.array([VACUUM_A, 0, 0])
    atoms = ase.Atoms(np.concatenate(elements), shifted, cell=(box[0] + 2 * VACUUM_A, *box[1:]), pbc=True)
    return atoms, (Surface(VACUUM_A, left, 1), Surface(VACUUM_A + box[0], right, -1))


def haadf_signal(atoms: ase.Atoms, slice_A: float, phonon_seed: int) -> tuple[np.ndarray, np.ndarray]:
    """HAADF signal (x, y) of one period of a slab by PRISM multislice, and its sampling (2,) in Å.

    Parameters
    ----------
    atoms
        The slab; the beam runs along its third axis.
    slice_A
        Thickness of a slice.
    phonon_seed
        Of the displaced atoms.
    """
    import abtem

    gpts = [4 * next_fast_len(int(np.ceil(length / 0.302))) for length in atoms.cell.lengths()[:2]]
    shaken = abtem.FrozenPhonons(atoms, 1, THERMAL_A, seed=phonon_seed)
    potential = abtem.Potential(shaken, gpts=gpts, slice_thickness=slice_A, parametrization="lobato")
    waves = abtem.SMatrix(potential=potential, energy=200e3, semiangle_cutoff=18, interpolation=(4, 1))
    scan = abtem.GridScan((0, 0), tuple(atoms.cell.lengths()[:2]), sampling=0.345, endpoint=False)
    detector = abtem.AnnularDetector(60, 105)
    signal = waves.scan(scan, detectors=detector).compute(scheduler="single-threaded", progress_bar=False).interpolate(sampling=0.1)
    return np.maximum(signal.array, 0), np.array(signal.sampling)


def scan_image(
    rng: np.random.Generator, signal: tuple[np.ndarray, np.ndarray], surface: Surface, counts: float, repeat_A: float
) -> tuple[np.ndarray, np.ndarray]:
    """Counts of an image of one surface in any turn, vacuum outside and bulk repeated inside; and the depth of its pixels in nm.

    Parameters
    ----------
    rng
        Of the turn, the place along the surface and the counts.
    signal
        What `haadf_signal` returns.
    surface
        The surface to be imaged.
    counts
        On the brightest columns.
    repeat_A
        Period along the surface's normal, by which the bulk is repeated.
    """
    (values, sampling_A), turn = signal, rng.uniform(0, 2 * np.pi)
    rows, columns = (np.indices(SHAPE) - np.array(SHAPE)[:, None, None] / 2) * 10 * TRUE_PIXEL_NM
    depth = np.cos(turn) * rows + np.sin(turn) * columns + 0.28 * SHAPE[0] * 10 * TRUE_PIXEL_NM
    along = np.cos(turn) * columns - np.sin(turn) * rows + rng.uniform(0, 14)
    inside = depth - np.ceil(np.maximum(depth - (surface.thickness_A + 20.0), 0) / repeat_A) * repeat_A
    at = np.stack([surface.face_A + surface.inwards * inside, along]) / sampling_A[:, None, None]
    image = map_coordinates(values, at, order=1, mode="grid-wrap")
    image = gaussian_filter(np.where(depth < -3.5, 0, image), 0.021 / TRUE_PIXEL_NM)
    return rng.poisson(counts * image / np.percentile(image, 99) + 0.5), depth / 10


def _row_of_image(rng: np.random.Generator, image: np.ndarray, phase: str, true_nm: float) -> dict[str, Any]:
    """The layer of an image as notebook 03 finds it, beside the truth, or why the image was refused."""
    row = {"kind": "none" if phase == "layered" else phase, "true_nm": true_nm}
    try:
        _, layer = find_layer(rng, image, bootstraps=BOOTSTRAPS)
    except emphase.EmphaseError as error:
        return row | {"refused": str(error)}
    low, high = layer.ci95_nm
    found = {
        "found_nm": layer.thickness_nm,
        "low_nm": low,
        "high_nm": high,
        "found_kind": layer.kind,
        "error_nm": layer.thickness_nm - true_nm,
    }
    return row | found | {"covered": low <= true_nm <= high, "kind_right": layer.kind == row["kind"]}


def measure_slabs(crystals: Sequence[Any], seed: int, full: bool, progress: Callable[..., Iterable]) -> list[SurfaceImage]:
    """The layers of both surfaces of every slab, at every dose.

    Parameters
    ----------
    crystals
        Those of `ped.PHASES`, in their order.
    seed
        Of atoms, images and bootstrap.
    full
        With `MORE_SLABS`.
    progress
        Iterates over the slabs, with a label.

    Returns
    -------
    list of SurfaceImage
        Their rows hold ``counts``, ``kind``, ``true_nm``, and ``refused`` or ``found_nm``, ``low_nm``, ``high_nm`` (95 % interval),
        ``found_kind``, ``error_nm``, ``covered``, ``kind_right``.
    """
    a_A, images = crystals[0].lattice[0, 0], []
    for number, layers in enumerate(progress(SLABS + MORE_SLABS * full, "slabs by multislice")):
        rng = np.random.default_rng([seed, 7000 + number])
        atoms, surfaces = build_slab(rng, crystals, layers)
        signal = haadf_signal(atoms, a_A, number + 1)
        for (phase, _), surface in zip(layers, surfaces, strict=True):
            for counts in COUNTS:
                image, depth_nm = scan_image(rng, signal, surface, counts, 3 * np.sqrt(3) * a_A)
                row = {"counts": counts} | _row_of_image(rng, image, phase, surface.thickness_A / 10)
                images.append(SurfaceImage(image, depth_nm, row))
    return images
