"""Lists of spots in place of patterns: what other programs leave of a scan, and the patterns that are drawn from it.

A list has the places and strengths of the spots of every position of a scan: py4DSTEM's ``PointListArray`` (HDF5, EMD 1.0 or py4DSTEM
0.13), pyxem's ``DiffractionVectors`` (.hspy, .zspy), or a table (.csv, .parquet). It has no background and no counts, so two numbers
stand for them:

- the strengths are scaled so that a faint spot of the list (its 5 % quantile) has 6 electrons, and
- the background is flat and has 4 electrons in the disc about a spot. With these, that faint spot has 3 nats of evidence: the faintest of
  what a program lists is chance as often as a spot, and a list says nothing else about its noise.

Every spot is drawn as a Gaussian of 1.3 px. What works on patterns works on these, with evidence from places and strengths alone. A spot
that a crystal predicts and the list lacks counts against the crystal as far as it would be brighter than the faint ones.

References
----------
Savitzky et al., Microsc. Microanal. 27 (2021) 712 (py4DSTEM). Cautaerts et al., Ultramicroscopy 237 (2022) 113517 (pyxem).
"""

from __future__ import annotations

import json
import math
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from .errors import EmphaseError, one_line, shortened


@dataclass(frozen=True)
class SpotListOptions:
    """Tuning numbers of drawing a list."""

    sigma_px: float = 1.3  # of a drawn spot: its place is kept to a hundredth of a pixel, and spots 5 px apart stay two
    width_px: int = 256  # of the camera where the list is in 1/Å: as wide as most
    reach_quantile: float = 0.995  # of the lengths lies on that camera; the few beyond are artefacts as often as spots
    most_reach_invA: float = 2.0  # beyond, spots are weak and crowd
    beam_invA: float = 0.04  # a spot this near to zero is the direct beam: no reflection of a crystal is
    faint_quantile: float = 0.05  # of the strengths: the faintest are chance
    faint_counts: float = 6.0  # electrons in the disc about a faint spot: with these it has 3 nats, and is chance as often as a spot
    disc_counts: float = 4.0  # electrons of the background in that disc
    disc_sigma: float = 1.8  # radius of that disc, in standard deviations of a spot; it holds 80 % of a spot
    most_positions: int = 2_000_000  # of a scan: 1400 x 1400
    block: int = 4  # side of the boxes of the scan that are drawn at a time, ...
    block_bytes: float = 6.4e7  # ... unless one of them is larger than this
    most_width_px: int = 4096  # of a camera: no larger one is made for diffraction
    most_invA: float = 10.0  # of the lengths (99 %) in any list in 1/Å, ...
    guessed_invA: float = 3.0  # ... and in one that does not say so: angles in mrad and pixels are more
    margin_px: int = 6  # of the camera beyond the outermost spot, where the list is in pixels


OPTIONS = SpotListOptions()
#: Endings of files that may hold a list
_HDF5 = (".h5", ".hdf5", ".emd", ".hspy")
_TABLES = (".csv", ".parquet")
#: Filters of zarr that only turn bytes into numbers and texts
_PLAIN_FILTERS = ("vlen-array", "vlen-utf8")
_PLAIN_COMPRESSORS = ("blosc", "zlib", "zstd", "lz4", "gzip", "bz2")
#: Columns of a table, by what they hold
_COLUMNS = {
    "scan_y": ("scan_y", "ry"), "scan_x": ("scan_x", "rx"), "intensity": ("intensity",), "y_px": ("y_px",), "x_px": ("x_px",),
    "y_invA": ("qy_inva", "ky_inva"), "x_invA": ("qx_inva", "kx_inva"),
}  # fmt: skip


@dataclass(frozen=True)
class SpotList:
    """The spots of a scan of ny × nx positions.

    Attributes
    ----------
    shape
        (ny, nx).
    first
        (ny nx + 1,) where the spots of each position begin, in the order of the scan.
    places
        (n, 2) of the spots, (y, x), in 1/Å from the direct beam, or in px from the corner of the camera.
    intensity
        (n,) their strengths, in any unit; ones where the list has none.
    in_invA
        Whether places are in 1/Å.
    step_nm
        Of the scan, where the file says it.
    scale_invA_per_px
        Of a pixel, where places are in px and the file says it.
    """

    shape: tuple[int, int]
    first: np.ndarray
    places: np.ndarray
    intensity: np.ndarray
    in_invA: bool
    step_nm: float | None = None
    scale_invA_per_px: float | None = None


class _Drawing(NamedTuple):
    """How a list is drawn: the camera's width (px), pixels of a unit of places, and where zero is (px); electrons per strength.

    ``beam`` is the strength of a direct beam that is not listed; None for a list in px, which may have it anywhere.
    """

    width_px: int
    px_per_unit: float
    zero_px: float
    per_strength: float
    beam: float | None


# --- reading ---------------------------------------------------------------------------------------------------------------------


def read_spot_list(path: str | Path) -> SpotList | None:
    """The list of spots that a file holds.

    Parameters
    ----------
    path
        HDF5 with a ``PointListArray`` of py4DSTEM, a .hspy or .zspy of pyxem's ``DiffractionVectors``, or a table (.csv, .parquet) with a
        row for every spot: ``scan_y``, ``scan_x`` (from 0), either ``qy_invA``, ``qx_invA`` or ``y_px``, ``x_px``, and ``intensity``.
        A position without a row is one without spots.

    Returns
    -------
    None where the file holds something else, patterns for example.

    Raises
    ------
    EmphaseError
        For a list that lacks something: columns, places, a scan of two axes.

    Notes
    -----
    py4DSTEM counts its axes as arrays do: its ``qx`` runs down, with ``Rx``, and is the y of this library. Its lists say "A^-1" in the
    calibration beside them; where that is absent, places on both sides of zero within 3 are in 1/Å, others in px. Raw lists (BraggVectors)
    are in px, and get 1/Å where the file has the direct beam and the size of a pixel.
    """
    path = Path(path)
    suffix = path.suffix.lower()
    if suffix in _TABLES:
        return _from_table(path)
    if suffix == ".zspy":
        return _from_zarr(path)
    return _from_hdf5(path) if suffix in _HDF5 else None


def _check_scan(path: Path, shape: Sequence[int]) -> None:
    """`EmphaseError` for what is no scan, before anything of it is read."""
    if len(shape) != 2:
        raise EmphaseError(f"{path.name}: a list of spots at {' × '.join(map(str, shape))} positions, expected a scan of two axes")
    if math.prod(shape) > OPTIONS.most_positions:
        raise EmphaseError(f"{path.name}: a scan of {shape[0]} × {shape[1]} positions, expected {OPTIONS.most_positions} at most")


def _listed(path: Path, shape: Sequence[int], number: np.ndarray, columns: np.ndarray, in_invA: bool, step: float | None) -> SpotList:
    """A `SpotList` of the columns (n, 3) y, x, intensity, after what is no list is refused."""
    _check_scan(path, shape)
    if not len(columns) or not np.isfinite(columns).all() or (columns[:, 2] < 0).any():
        fault = "no spot" if not len(columns) else "places or intensities that are negative or no number"
        raise EmphaseError(f"{path.name}: a list of spots with {fault}, expected finite places and strengths of none or more")
    places = columns[:, :2].astype(float)
    if in_invA and not (np.linalg.norm(places, axis=1) > OPTIONS.beam_invA).any():
        raise EmphaseError(f"{path.name}: a list of spots with direct beams alone, expected diffracted ones")
    if not in_invA and np.quantile(places, 0.01) < 0:
        raise EmphaseError(
            f"{path.name}: places of spots in pixels, down to {places.min():.4g}, expected none below 0 or a calibration in 1/Å"
        )
    if not in_invA and places.max() > OPTIONS.most_width_px:
        raise EmphaseError(f"{path.name}: places of spots up to {places.max():.4g} px, expected {OPTIONS.most_width_px} at most")
    strengths = columns[:, 2] if (columns[:, 2] > 0).any() else np.ones(len(columns))
    first = np.concatenate([[0], np.cumsum(number)])
    return SpotList((int(shape[0]), int(shape[1])), first, places, strengths.astype(float), in_invA, step)


def _looks_in_invA(places: np.ndarray) -> bool:
    """Whether places without a unit are in 1/Å: on both sides of zero, and no longer than reflections."""
    both_sides = (places.min(axis=0) < 0).all() and (places.max(axis=0) > 0).all()
    return bool(len(places) and both_sides and np.quantile(np.abs(places), 0.99) < OPTIONS.guessed_invA)


def _from_table(path: Path) -> SpotList:
    import pandas as pd

    try:
        table = pd.read_csv(path) if path.suffix.lower() == ".csv" else pd.read_parquet(path)
    except Exception as error:  # pandas raises whatever it meets in a broken file
        raise EmphaseError(f"{path.name}: cannot be read as a table: {one_line(error)}") from error
    names = {str(name).strip().lower(): name for name in table.columns}
    found = {what: names[alias] for what, aliases in _COLUMNS.items() for alias in aliases if alias in names}
    in_invA = {"y_invA", "x_invA"} <= set(found)
    places = ["y_invA", "x_invA"] if in_invA else ["y_px", "x_px"]
    lacking = [what for what in ("scan_y", "scan_x", *places) if what not in found]
    if lacking:
        expected = "scan_y, scan_x, intensity and qy_invA, qx_invA or y_px, x_px"
        raise EmphaseError(f"{path.name}: has columns {shortened(', '.join(map(str, table.columns)))}, expected {expected}")
    kept = [found[what] for what in ("scan_y", "scan_x", *places, *(["intensity"] if "intensity" in found else []))]
    numbers = table[kept].apply(pd.to_numeric, errors="coerce").to_numpy(float)
    position = numbers[:, :2]
    if len(numbers) and not (np.isfinite(position).all() and (position >= 0).all() and (position == np.rint(position)).all()):
        raise EmphaseError(f"{path.name}: scan_y and scan_x must be whole numbers from 0")
    if "intensity" not in found:
        numbers = np.column_stack([numbers, np.ones(len(numbers))])
    shape = tuple(int(n) + 1 for n in position.max(axis=0)) if len(numbers) else (0, 0)
    _check_scan(path, shape)
    flat = (position[:, 0] * shape[1] + position[:, 1]).astype(int)
    order = np.argsort(flat, kind="stable")
    return _listed(path, shape, np.bincount(flat, minlength=math.prod(shape)), numbers[order, 2:], in_invA, None)


def _from_hdf5(path: Path) -> SpotList | None:
    import h5py

    try:
        with h5py.File(path, "r") as file:
            if path.suffix.lower() == ".hspy":
                return _from_vectors(path, file.get("Experiments"))
            return _from_point_lists(path, file)
    except EmphaseError:
        raise
    except OSError:  # no HDF5: for the other readers to say
        return None
    except Exception as error:  # h5py raises whatever it meets in a broken file
        raise EmphaseError(f"{path.name}: cannot be read: {type(error).__name__}: {one_line(error)}") from error


def _from_zarr(path: Path) -> SpotList | None:
    import zarr

    try:
        for described in path.rglob(".zarray"):
            content = json.loads(described.read_text(encoding="utf-8"))
            filters, compressor = content.get("filters") or [], content.get("compressor") or {"id": "zstd"}
            if any(part.get("id") not in _PLAIN_FILTERS for part in filters) or compressor.get("id") not in _PLAIN_COMPRESSORS:
                return None  # another may run what the file says
        return _from_vectors(path, zarr.open_group(str(path), mode="r").get("Experiments"))
    except EmphaseError:
        raise
    except Exception as error:  # zarr raises whatever it meets in a broken folder
        raise EmphaseError(f"{path.name}: cannot be read: {type(error).__name__}: {one_line(error)}") from error


def _text(value: Any) -> str:
    return value.decode(errors="replace") if isinstance(value, bytes) else str(value)


def _from_vectors(path: Path, experiments: Any) -> SpotList | None:
    """A list from the groups of hyperspy's files: vectors of each position, flattened, with their shapes beside them."""
    groups = [experiments[name] for name in experiments or ()]
    listed = [group for group in groups if "_ragged_shapes_data" in group and "metadata/VectorMetadata" in group]
    if not listed or any(group["data"].ndim > 3 for group in groups if group not in listed and "data" in group):
        return None  # patterns are more than a list of their spots
    group = listed[0]
    shape = group["data"].shape if group["data"].ndim != 1 else (1, *group["data"].shape)  # a line
    _check_scan(path, shape)
    about = group["metadata/VectorMetadata"]
    names = [_text(n).lower() for n in about["_list_column_names"][:]] if "_list_column_names" in about else []
    units = [_text(u) for u in about["_list_units"][:]] if "_list_units" in about else []
    data, shapes = group["data"][...].ravel(), group["_ragged_shapes_data"][...].ravel()
    width = max((int(np.atleast_1d(s)[-1]) for s in shapes), default=0)
    if width < 2:
        raise EmphaseError(f"{path.name}: vectors of {width} columns, expected places of two and an intensity")
    vectors = [np.asarray(one, float).reshape(-1, width) for one in data]
    vectors = [some[~np.isnan(some).all(axis=1)] for some in vectors]  # hyperspy has a row of NaN where it found nothing
    columns = _in_order(np.concatenate(vectors), names, units)
    factor = _invA_per(path, units[0] if units else "")
    if factor is not None:
        columns[:, :2] *= factor
    in_invA = factor is not None or _looks_in_invA(columns[:, :2])
    return _listed(path, shape, np.array([len(some) for some in vectors]), columns, in_invA, _vector_step(group))


def _in_order(flat: np.ndarray, names: list[str], units: list[str]) -> np.ndarray:
    """Columns y, x, intensity of vectors (n, columns) with these names.

    Without names the first is y, as hyperspy finds peaks; so it is under pyxem's default "x, y" without a unit, which it puts on these.
    """
    default = names[:2] == ["x", "y"] and not any(units[:2])
    y, x = (0, 1) if default or len(names) < 2 or names[0].endswith("y") or not names[1].endswith("y") else (1, 0)
    strength = names.index("intensity") if "intensity" in names and names.index("intensity") < flat.shape[1] else None
    return np.column_stack([flat[:, y], flat[:, x], np.ones(len(flat)) if strength is None else flat[:, strength]])


def _invA_per(path: Path, unit: str) -> float | None:
    """1/Å in a unit as it is written; None for pixels or none; `EmphaseError` for any other, as angles are."""
    plain = "".join(c for c in unicodedata.normalize("NFKC", unit) if c not in "$ {}[]^_\\").replace("−", "-")
    inverse = plain[2:] if plain.startswith("1/") else plain[:-2] if plain.endswith("-1") else ""
    known = {"A": 1.0, "Å": 1.0, "AA": 1.0, "angstrom": 1.0, "Angstrom": 1.0, "nm": 0.1, "pm": 100.0}
    if inverse.removeprefix("k") in known:
        return known[inverse.removeprefix("k")]
    if plain.lower() in ("", "none", "px", "pixel", "pixels", "<undefined>", "undefined"):
        return None
    raise EmphaseError(f"{path.name}: places of spots in {shortened(unit, 40)!r}, expected 1/Å, 1/nm or pixels")


def _vector_step(group: Any) -> float | None:
    """The step of a scan (nm) as hyperspy's axis states it."""
    axis = dict(group["axis-1"].attrs) if "axis-1" in group else {}
    return _step_nm(axis.get("scale"), axis.get("units", ""))


def _positive(size: Any) -> float | None:
    """A number above 0 as a file has it; None for all else."""
    return float(size) if isinstance(size, (int, float, np.number)) and size > 0 else None


def _step_nm(size: Any, unit: Any) -> float | None:
    """A step in nm, from its size and unit as files have them; None where one of them is no length."""
    factor, step = {"nm": 1.0, "Å": 0.1, "A": 0.1, "um": 1e3, "µm": 1e3}.get(_text(unit)), _positive(size)
    return step * factor if step and factor else None


class _Beside(NamedTuple):
    """What py4DSTEM's calibration in a file says: step (nm), 1/Å of a pixel, 1/Å in the unit of a pixel, direct beam (px) qx, qy."""

    step_nm: float | None
    pixel_invA: float | None
    unit_invA: float | None
    beam_px: tuple[np.ndarray, np.ndarray] | None


def _from_point_lists(path: Path, file: Any) -> SpotList | None:
    """A list from the PointListArrays of an EMD file: of several one that is called calibrated, else the first."""
    import h5py

    found: list[tuple[str, Any]] = []
    patterns = []

    def look(name: str, item: Any) -> None:
        said = {_text(item.attrs.get(key, "")) for key in ("python_class", "py4dstem_class", "emd_class")}
        if isinstance(item, h5py.Group) and said & {"PointListArray", "BraggVectors"} and _points_in(item) is not None:
            found.append((name, item))
        if isinstance(item, h5py.Dataset) and item.ndim > 3 and item.dtype.kind in "iuf":
            patterns.append(name)

    file.visititems(look)
    if not found or patterns:  # patterns are more than a list of their spots
        return None
    calibrated = (pair for pair in found if "cal" in pair[0].lower().replace("uncal", ""))
    name, group = next(calibrated, found[0])
    dataset = _points_in(group)
    _check_scan(path, dataset.shape)
    data = dataset[...]
    number = np.array([len(one) for one in data.ravel()])
    if not number.any():
        raise EmphaseError(f"{path.name}: {name}: a list of no spots, expected points with qx, qy and intensity")
    points = np.concatenate([one for one in data.ravel() if len(one)])
    strength = points["intensity"] if "intensity" in (points.dtype.names or ()) else np.ones(len(points))
    columns = np.column_stack([points["qx"], points["qy"], strength]).astype(float)
    beside = _calibration_beside(path, file)
    raw = "uncal" in name.lower() or "_v_uncal" in group
    columns[:, :2], in_invA = _as_calibrated(columns[:, :2], number, data.shape, beside, raw)
    listed = _listed(path, data.shape, number, columns, in_invA, beside.step_nm)
    return listed if in_invA else replace(listed, scale_invA_per_px=beside.pixel_invA)


def _as_calibrated(places: np.ndarray, number: np.ndarray, shape: tuple[int, ...], beside: _Beside, raw: bool) -> tuple[np.ndarray, bool]:
    """Places (n, 2) of points in 1/Å where they are, or can be made so; else as they came, in pixels. And whether they are in 1/Å.

    The unit of py4DSTEM's calibration is that of a pixel. Places have it where they were calibrated, which only their lengths tell.
    """
    length = float(np.quantile(np.abs(places), 0.99))
    counted = raw or (np.quantile(places, 0.01, axis=0) >= 0).all()  # from a corner of the camera
    if counted and beside.beam_px is not None and beside.pixel_invA:
        of_position = [np.broadcast_to(beam, shape).ravel() for beam in beside.beam_px]
        return (places - np.repeat(np.stack(of_position, axis=1), number, axis=0)) * beside.pixel_invA, True
    if counted:
        return places, False
    for factor in (beside.unit_invA, beside.pixel_invA):  # calibrated, or pixels from the direct beam
        if factor and length * factor < OPTIONS.most_invA:
            return places * factor, True
    return places, _looks_in_invA(places)


def _points_in(group: Any) -> Any:
    """The dataset of a scan whose elements are arrays of points qx, qy, in a group; None where there is none."""
    import h5py

    for name in ("data", "_v_uncal/data"):
        item = group.get(name)
        point = h5py.check_vlen_dtype(item.dtype) if isinstance(item, h5py.Dataset) else None
        if isinstance(point, np.dtype) and {"qx", "qy"} <= set(point.names or ()):
            return item
    return None


def _calibration_beside(path: Path, file: Any) -> _Beside:
    """py4DSTEM's calibration in a file, wherever in it; None for what it does not say."""
    import h5py

    wanted = ("R_pixel_size", "R_pixel_units", "Q_pixel_size", "Q_pixel_units", "qx0", "qy0", "qx0_mean", "qy0_mean")
    said: dict[str, Any] = {}

    def look(name: str, item: Any) -> None:
        key = name.rsplit("/", 1)[-1]
        if isinstance(item, h5py.Dataset) and key in wanted and item.ndim in (0, 2):
            said[key] = item[()]
        said.update({k: v for k, v in item.attrs.items() if k in wanted})

    file.visititems(look)

    step, pixel = _step_nm(said.get("R_pixel_size"), said.get("R_pixel_units", "")), _positive(said.get("Q_pixel_size"))
    unit = _invA_per(path, _text(said.get("Q_pixel_units", "")))
    beams = [np.asarray(said.get(f"q{axis}0", said.get(f"q{axis}0_mean", np.nan))) for axis in "xy"]
    known = all(beam.dtype.kind in "iuf" and np.isfinite(beam).all() for beam in beams)
    return _Beside(step, pixel * unit if pixel and unit else None, unit, (beams[0], beams[1]) if known else None)


# --- drawing ---------------------------------------------------------------------------------------------------------------------


def _how_to_draw(spots: SpotList) -> _Drawing:
    """The camera that a list is drawn on, and the electrons of its strengths."""
    length = np.linalg.norm(spots.places, axis=1) if spots.in_invA else np.full(len(spots.places), np.inf)
    diffracted = spots.intensity[(length > OPTIONS.beam_invA) & (spots.intensity > 0)]
    faint = float(np.quantile(diffracted, OPTIONS.faint_quantile)) if len(diffracted) else 1.0
    in_disc = 1 - math.exp(-(OPTIONS.disc_sigma**2) / 2)
    per_strength = OPTIONS.faint_counts / in_disc / faint
    if not spots.in_invA:
        outermost = float(spots.places.max())
        return _Drawing(max(32, 2 * math.ceil((outermost + OPTIONS.margin_px) / 2)), 1.0, 0.0, per_strength, None)
    beams = spots.intensity[length <= OPTIONS.beam_invA]
    beam = float(np.median(beams)) if len(beams) else float(spots.intensity.max())
    outermost = min(float(np.quantile(length[length > OPTIONS.beam_invA], OPTIONS.reach_quantile)), OPTIONS.most_reach_invA)
    half = OPTIONS.width_px / 2
    return _Drawing(OPTIONS.width_px, (half - OPTIONS.margin_px) / outermost, half, per_strength, beam)


def _draw(spots: SpotList, how: _Drawing, positions: np.ndarray) -> np.ndarray:
    """Patterns (n, width, width) float32 of flat positions of the scan."""
    disc = math.pi * (OPTIONS.disc_sigma * OPTIONS.sigma_px) ** 2
    drawn = np.full((len(positions), how.width_px, how.width_px), OPTIONS.disc_counts / disc, np.float32)
    reach = math.ceil(4 * OPTIONS.sigma_px)
    window = np.arange(-reach, reach + 1)
    for image, position in zip(drawn, positions, strict=True):
        mine = slice(spots.first[position], spots.first[position + 1])
        places, strength = spots.places[mine], spots.intensity[mine]
        if how.beam is not None and not (np.linalg.norm(places, axis=1) <= OPTIONS.beam_invA).any():
            places, strength = np.vstack([places, [[0.0, 0.0]]]), np.append(strength, how.beam)
        places = places * how.px_per_unit + how.zero_px
        centre = np.rint(places).astype(int)
        inside = ((centre >= reach) & (centre < how.width_px - reach)).all(axis=1)
        centre, off, electrons = centre[inside], (places - np.rint(places))[inside], (strength * how.per_strength)[inside]
        along = np.exp(-((window - off[:, :, None]) ** 2) / (2 * OPTIONS.sigma_px**2))
        along /= math.sqrt(2 * math.pi) * OPTIONS.sigma_px
        spot = electrons[:, None, None] * along[:, 0, :, None] * along[:, 1, None, :]
        rows, columns = centre[:, 0, None, None] + window[:, None], centre[:, 1, None, None] + window
        np.add.at(image, (rows, columns), spot.astype(np.float32))
    return drawn


def drawn_recording(spots: SpotList) -> Any:
    """The patterns of a list as a lazy hyperspy signal, drawn where they are used.

    Parameters
    ----------
    spots
        The list.

    Returns
    -------
    A lazy ``Signal2D`` of (ny, nx | k, k) float32 electrons, 256 px wide with the step of its camera in 1/Å where the list is in 1/Å, else
    as wide as its outermost spot needs, without a scale.
    """
    import dask.array as da
    from hyperspy.signals import Signal2D

    how = _how_to_draw(spots)
    ny, nx = spots.shape
    at_once = max(1, min(OPTIONS.block, math.isqrt(int(OPTIONS.block_bytes / (4 * how.width_px**2)))))
    numbers = da.from_array(np.arange(ny * nx).reshape(ny, nx), chunks=at_once)

    def block(positions: np.ndarray) -> np.ndarray:
        return _draw(spots, how, positions.ravel()).reshape(*positions.shape, how.width_px, how.width_px)

    data = numbers.map_blocks(
        block,
        dtype=np.float32,
        new_axis=(2, 3),
        chunks=(*numbers.chunks, (how.width_px,), (how.width_px,)),
        meta=np.empty((0,) * 4, np.float32),
    )
    scan = {"scale": spots.step_nm or 1.0, "units": "nm" if spots.step_nm else None}
    scale = 1 / how.px_per_unit if spots.in_invA else spots.scale_invA_per_px
    camera = {"scale": scale or 1.0, "units": "1/angstrom" if scale else None}
    sizes = zip("yxyx", data.shape, (scan, scan, camera, camera), strict=True)
    axes = [{"name": name, "size": size, "navigate": k < 2, **axis} for k, (name, size, axis) in enumerate(sizes)]
    return Signal2D(data, axes=axes, metadata={"Signal": {"spot_list": True, "drawn_scale": spots.in_invA}}).as_lazy()
