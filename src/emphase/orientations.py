"""Orientations of a scan as an orix CrystalMap, in colours, and in the file formats of EBSD software.

A rotation leads from the axes of the map, x to the right, y down, z along the beam, to the crystal's Cartesian axes e1 || a, e3 || c*,
as in orix; `in_map_axes` brings orientations to the axes of the map where those of the camera are others. `save_crystal_map` keeps all
of a map in HDF5; `save_ang` and `save_ctf` write the formats of EDAX and Oxford, whose software has other Cartesian axes in monoclinic,
trigonal and hexagonal crystals: the rotations are turned for them. The conventions are those that MTEX reads (Bachmann, Hielscher &
Schaeben, Solid State Phenom. 160 (2010) 63): its loadEBSD_ang.m, loadEBSD_ctf.m and calcAxis.m.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from .crystals import Crystal
from .errors import EmphaseError
from .files import write_atomically


def to_crystal_map(
    phase_id: np.ndarray,
    rotation: np.ndarray,
    crystals: list[Crystal],
    step_nm: float,
    properties: dict[str, np.ndarray],
    colours: Mapping[str, str] | None = None,
) -> Any:
    """An orix CrystalMap of the phases and orientations of a scan.

    Parameters
    ----------
    phase_id
        (ny, nx), the index of a pattern's phase in ``crystals``, -1 where it is not indexed.
    rotation
        (ny, nx, 3, 3), sample to crystal; anything where not indexed.
    crystals
        The phases.
    step_nm
        Of the scan, in y and x.
    properties
        Further maps (ny, nx) by name.
    colours
        Of phases by name, hexadecimal; orix's own for others.

    Returns
    -------
    The CrystalMap, in nm.
    """
    from orix.crystal_map import CrystalMap, PhaseList
    from orix.quaternion import Rotation

    ny, nx = phase_id.shape
    y, x = np.indices((ny, nx)) * step_nm
    phases = PhaseList([c.orix_phase((colours or {}).get(c.name, "")) for c in crystals], ids=list(range(len(crystals))))
    if (phase_id < 0).any():
        phases.add_not_indexed()
    safe = np.where((phase_id >= 0)[..., None, None], rotation, np.eye(3))
    return CrystalMap(
        rotations=Rotation.from_matrix(safe.reshape(-1, 3, 3)),
        phase_id=phase_id.ravel(),
        x=x.ravel(),
        y=y.ravel(),
        phase_list=phases,
        prop={k: v.ravel() for k, v in properties.items()},
        scan_unit="nm",
    )


def in_map_axes(rotation: np.ndarray, scan_rotation_deg: float, *, flip_y: bool = False, flip_x: bool = False) -> np.ndarray:
    """Orientations about the axes of the map, from those about the axes of the camera's image.

    Parameters
    ----------
    rotation
        (..., 3, 3), axes of the camera (x to the right, y down, z along the beam) to crystal, as patterns give them.
    scan_rotation_deg
        The angle by which the image of the camera has to be turned, counter-clockwise as it is shown, to lie on the map as it is shown.
    flip_y, flip_x
        Whether the image is upside down, or left is right, before that.

    Returns
    -------
    (..., 3, 3), axes of the map to crystal.

    Notes
    -----
    The patterns of a crystal do not tell g from -g. So one that is mirrored in x is that of the crystal turned about x by half a turn, and
    the orientation stays a rotation: with F the product of such half turns and Z the turn about the beam, r becomes r (Z F)^T.

    Examples
    --------
    >>> in_map_axes(np.eye(3), 90.0).round(6) @ [1, 0, 0]  # to the right in the map is down in the image
    array([0., 1., 0.])
    """
    cosine, sine = np.cos(np.deg2rad(scan_rotation_deg)), np.sin(np.deg2rad(scan_rotation_deg))
    turn = np.array([[cosine, sine, 0], [-sine, cosine, 0], [0, 0, 1]])
    halves = np.diag([1.0, -1.0, -1.0] if flip_x else [1.0] * 3) @ np.diag([-1.0, 1.0, -1.0] if flip_y else [1.0] * 3)
    return rotation @ (turn @ halves).T


def ipf_colours(rotation: np.ndarray, inside: np.ndarray, crystal: Crystal) -> np.ndarray:
    """Colours of the crystal direction along the beam (inverse pole figure), from the orientations of one phase.

    Parameters
    ----------
    rotation
        (ny, nx, 3, 3), sample to crystal.
    inside
        (ny, nx), where the phase is.
    crystal
        The phase; the key of its Laue group is that of TSL.

    Returns
    -------
    (ny, nx, 3) red, green and blue from 0 to 1, white outside.
    """
    from orix.plot import IPFColorKeyTSL
    from orix.quaternion import Orientation
    from orix.vector import Vector3d

    symmetry = crystal.orix_phase().point_group.laue
    colours = np.ones((*inside.shape, 3))
    if inside.any():
        orientations = Orientation.from_matrix(rotation[inside], symmetry=symmetry)
        colours[inside] = IPFColorKeyTSL(symmetry, direction=Vector3d.zvector()).orientation2color(orientations)
    return colours


def save_crystal_map(path: str | Path, crystal_map: Any, **options: Any) -> None:
    """Write an orix CrystalMap in one step: a reader sees the old file or the new.

    The suffix of the path chooses the writer of orix, which takes the ``options``: .h5 holds all of the map;
    `save_ang` brings it into the units and axes of .ang first.
    """
    from orix import io

    path = Path(path)
    temporary = path.with_name(f".{path.stem}.part{path.suffix}")
    path.parent.mkdir(parents=True, exist_ok=True)
    io.save(str(temporary), crystal_map, overwrite=True, **options)
    os.replace(temporary, path)


def crystal_map_arrays(path: str | Path) -> dict[str, np.ndarray]:
    """The arrays of a CrystalMap in a file of orix, without its phases.

    orix reads these too, every atom of them, which takes a hundred times as long as the arrays.

    Parameters
    ----------
    path
        An .h5 file that `save_crystal_map` wrote.

    Returns
    -------
    By name, of the n points: ``x``, ``y``, ``phase_id``, all properties, and the ``rotation`` (n, 3, 3), sample to crystal.

    Raises
    ------
    OSError, KeyError
        For a file that is no such map.
    """
    import h5py
    from orix.quaternion import Rotation

    with h5py.File(path) as file:
        arrays = {name: values[()] for name, values in file["crystal_map/data"].items()}
    angles = np.column_stack([arrays.pop(name) for name in ("phi1", "Phi", "phi2")])
    return arrays | {"rotation": Rotation.from_euler(angles).to_matrix()}


def _a_star_and_c(phase: Any) -> np.ndarray:
    """Rotation (3, 3) of a crystal's Cartesian coordinates from the axes e1 || a, e3 || c* to e1 || a*, e3 || c.

    It turns about c by 30° in trigonal and hexagonal cells, about b by beta - 90° in monoclinic ones, and not at all
    where the angles of the cell are right.
    """
    lattice = phase.structure.lattice.base
    a_star, c = np.linalg.inv(lattice)[:, 0], lattice[2]
    x, z = a_star / np.linalg.norm(a_star), c / np.linalg.norm(c)
    return np.stack([x, np.cross(z, x), z])


def _indexed_phases(crystal_map: Any) -> list[tuple[int, Any]]:
    """Ids and phases of a CrystalMap in the order of the ids, without that of points that are not indexed."""
    return [(k, phase) for k, phase in crystal_map.phases if k >= 0]


def _rotations_to(crystal_map: Any, axes: dict[int, np.ndarray]) -> Any:
    """The rotations (n,) of a CrystalMap, carried on to other Cartesian axes of the crystal by a rotation (3, 3) for every phase id."""
    from orix.quaternion import Rotation

    rotations = crystal_map.rotations
    for k, turn in axes.items():
        here = crystal_map.phase_id == k
        rotations[here] = Rotation.from_matrix(turn) * rotations[here]
    return rotations


def _positions_um(crystal_map: Any) -> tuple[np.ndarray, np.ndarray]:
    """Positions x (n,) and y (n,) of a CrystalMap in µm; orix has None for the one that all points share."""
    um = {"nm": 1e-3, "um": 1.0}[crystal_map.scan_unit]
    x, y = (np.zeros(crystal_map.size) if v is None else v * um for v in (crystal_map.x, crystal_map.y))
    return x, y


def save_ang(path: str | Path, crystal_map: Any, note: str = "") -> None:
    """Write the CrystalMap of a whole scan as .ang of EDAX (TSL), for OIM Analysis, MTEX or orix, in one step.

    Columns: image quality is ``score`` (nats), confidence index is ``correlation`` (0 to 1), detector signal is
    ``phase_margin`` (nats), each 0 where the map lacks it, and fit is 0. Points that are not indexed have phase 0 (-1 in a map
    of one phase), confidence index -1, fit 180 and Euler angles of 4 pi, as OIM has them. Phases are numbered from 1 in the
    order of the map. Positions are in µm, rounded to 0.01 nm: at steps of about 1 nm that are no multiple of that, a reader
    that takes the step from two points, as orix does, can count a column too many; the header has the right number. A ``note`` is the
    first line of the header.

    Euler angles (Bunge, radians) lead from the axes of the map, x to the right, y down, z along the beam, to the crystal's
    Cartesian axes: e1 || a, e3 || c* as in this library, in monoclinic crystals e1 || a*, e3 || c with the symmetry code 20
    of a twofold axis along b. So MTEX reads .ang (its loadEBSD_ang.m and calcAxis.m, "EDAX"). The Euler angles of OIM's own
    maps are about other axes than the map's, by one of four settings that the file does not name: load this one without
    MTEX's correction for that.

    Raises
    ------
    EmphaseError
        For a scan of a single column, which orix would write as a row of points in one place; its writer also fails on a row of fewer than
        four points.
    """
    from orix.crystal_map import CrystalMap

    path = Path(path)
    if crystal_map.x is None:
        raise EmphaseError(f"{path.name}: a scan of one column, expected two or more; .ctf can hold it")
    x, y = _positions_um(crystal_map)
    monoclinic = {k: _a_star_and_c(p) for k, p in _indexed_phases(crystal_map) if p.point_group.system == "monoclinic"}
    phases = crystal_map.phases.deepcopy()
    for k in monoclinic:
        phases[k].space_group, phases[k].point_group = None, "121"  # orix itself has the twofold axis of these along e3
    columns = {"image_quality_prop": "score", "confidence_index_prop": "correlation", "detector_signal_prop": "phase_margin"}
    columns = {column: name for column, name in columns.items() if name in crystal_map.prop}
    written = CrystalMap(
        rotations=_rotations_to(crystal_map, monoclinic),
        phase_id=crystal_map.phase_id,
        x=x,
        y=y,
        phase_list=phases,
        prop={name: crystal_map.prop[name] for name in columns.values()},
        scan_unit="um",
    )
    save_crystal_map(path, written, **columns)
    if note:
        write_atomically(path, f"# {note}\n{path.read_text(encoding='utf-8')}")


#: Laue groups in the numbering of Channel 5, which begins with 1.
_LAUE_GROUPS = ("-1", "2/m", "mmm", "4/m", "4/mmm", "-3", "-3m", "6/m", "6/mmm", "m-3", "m-3m")


def _ctf_phase(phase: Any) -> str:
    """A phase as a line of a .ctf header."""
    a, b, c, alpha, beta, gamma = phase.structure.lattice.abcABG()
    laue = _LAUE_GROUPS.index(phase.point_group.laue.name) + 1
    space_group = phase.space_group.number if phase.space_group else 0
    return f"{a:.4f};{b:.4f};{c:.4f}\t{alpha:.4f};{beta:.4f};{gamma:.4f}\t{phase.name}\t{laue}\t{space_group}\t\t\t"


def _ctf_header(name: str, x_um: np.ndarray, y_um: np.ndarray, phases: list[Any]) -> list[str]:
    """The lines of a .ctf before its points; the microscope's numbers are 0, for a CrystalMap does not hold them."""
    nx, ny = len(np.unique(x_um)), len(np.unique(y_um))
    dx, dy = np.ptp(x_um) / max(nx - 1, 1), np.ptp(y_um) / max(ny - 1, 1)
    return [
        "Channel Text File",
        f"Prj\t{name}",
        "Author\t[Unknown]",
        "JobMode\tGrid",
        f"XCells\t{nx}",
        f"YCells\t{ny}",
        f"XStep\t{dx or dy:.8f}",
        f"YStep\t{dy or dx:.8f}",
        *(f"AcqE{i}\t0.0000" for i in (1, 2, 3)),
        "Euler angles refer to Sample Coordinate system (CS0)!\t"
        "Mag\t0.0000\tCoverage\t100\tDevice\t0\tKV\t0.0000\tTiltAngle\t0.0000\tTiltAxis\t0",
        f"Phases\t{len(phases)}",
        *(_ctf_phase(phase) for phase in phases),
        "Phase\tX\tY\tBands\tError\tEuler1\tEuler2\tEuler3\tMAD\tBC\tBS",
    ]


def save_ctf(path: str | Path, crystal_map: Any, note: str = "") -> None:
    """Write the CrystalMap of a whole scan as .ctf of Oxford (HKL Channel 5), for AZtecCrystal, MTEX or orix, in one step.

    Columns: band contrast BC is ``correlation`` times 255, band slope BS is ``phase_margin`` in nats, at most 255, each 0
    where the map lacks it. Bands and MAD are 0: no bands are counted and no angular deviation is measured. Points that are
    not indexed have phase 0, error 3 (no solution) and Euler angles of 0. Phases are numbered from 1 in the order of the map.
    Positions are in µm. A ``note`` stands behind the name of the project in the header.

    Euler angles (Bunge, degrees) lead from the axes of the map, x to the right, y down, z along the beam, to the crystal's
    Cartesian axes e1 || a*, e3 || c of Channel 5: in trigonal and hexagonal crystals the third one is 30° larger than in this
    library's axes (MTEX's loadEBSD_ctf.m and calcAxis.m; Mainprice in its issue 241). orix takes the axes of every .ctf as
    e1 || a, so the directions that it gives in such crystals are turned by these 30°. The Euler angles of Oxford's own maps are
    about other axes than the map's: load this one without MTEX's correction for that.
    """
    path = Path(path)
    x, y = _positions_um(crystal_map)
    phases = _indexed_phases(crystal_map)
    number = np.searchsorted([-1, *(k for k, _ in phases)], crystal_map.phase_id)
    rotations = _rotations_to(crystal_map, {k: _a_star_and_c(phase) for k, phase in phases})
    euler = np.where(number[:, None] > 0, rotations.to_euler(degrees=True), 0.0)
    nothing = np.zeros(crystal_map.size)
    contrast = 255 * np.clip(crystal_map.prop.get("correlation", nothing), 0, 1)
    slope = np.clip(crystal_map.prop.get("phase_margin", nothing), 0, 255)
    error = np.where(number > 0, 0, 3)
    points = np.column_stack([number, x, y, nothing, error, euler, nothing, np.rint(contrast), np.rint(slope)])
    row = "%d\t%.8f\t%.8f\t%d\t%d\t%.4f\t%.4f\t%.4f\t%.4f\t%d\t%d"
    lines = _ctf_header(f"{path.stem} ({note})" if note else path.stem, x, y, [phase for _, phase in phases]) + [
        row % tuple(point) for point in points
    ]
    write_atomically(path, "\r\n".join(lines) + "\r\n")
