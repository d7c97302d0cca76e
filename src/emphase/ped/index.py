"""TODO."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

import numba
import numpy as np

from ..chunks import ChunkStore, LongWork, finish_chunks
from ..kernels import kernel
from .evidence import _Camera, _camera
from .families import _Families, _families
from .lattices import (
    _LATTICE_REACH,
    _MOST_COMPONENTS,
    _Components,
    _find_lattices,
    _propose,
    _related_lattices,
    _score_components,
    _second_crystals,
    _settle,
)
from .overlap import _MOST_PARTS, _choose_sets, _costs
from .scan import Calibration, _read_box, scan_boxes
from .search import _TEN_DEGREES, _nearest_operator, chance_evidence, search_phase
from .shares import _measure_shares
from .spots import Spots, _no_spots, find_spots
from .templates import TemplateBank, _joined_reflections, _Reflections
from .tiles import _numbered_on, _Tile, _tiles


@dataclass
class Indexing:
    """The best solution of every phase for every pattern of a scan, and what overlaps in it.

    ``rotation`` (p, ny, nx, 3, 3), ``evidence`` and ``runner_up`` (p, ny, nx) in nats, for the
    p phases in ``names``; ``chance`` (p,) is the evidence that patterns without any crystal
    hardly ever reach (`chance_evidence`), so that ``evidence - chance`` compares phases whose banks
    differ in size and density. ``winner`` (ny, nx) is the phase with the most support, the prior
    included, and ``prior`` (ny, nx) what the neighbours' lattices add to the support of a pattern.
    The crystals that lie over each other, the largest first: ``part_phase`` (ny, nx, 3) (-1: none),
    ``part_share`` (ny, nx, 3), ``part_sd`` that of its share, and ``part_rotation`` (ny, nx, 3, 3, 3). ``part_lattice``
    and ``part_crystal`` (ny, nx, 3) number the lattices and, on each, the crystals (phases and their variants) of the scan; -1
    is an orientation that one pattern alone has.
    """

    names: list[str]
    rotation: np.ndarray
    evidence: np.ndarray
    runner_up: np.ndarray
    chance: np.ndarray
    winner: np.ndarray
    prior: np.ndarray
    part_phase: np.ndarray
    part_share: np.ndarray
    part_sd: np.ndarray
    part_rotation: np.ndarray
    part_lattice: np.ndarray
    part_crystal: np.ndarray

    @property
    def support(self) -> np.ndarray:
        """Evidence above chance, (p, ny, nx)."""
        return self.evidence - self.chance[:, None, None]

    def part(self, rows: slice, cols: slice) -> Indexing:
        """What was found in a box of the scan."""
        by_phase = {name: getattr(self, name)[:, rows, cols] for name in ("rotation", "evidence", "runner_up")}
        names = ("winner", "prior", "part_phase", "part_share", "part_sd", "part_rotation", "part_lattice", "part_crystal")
        return replace(self, **by_phase, **{name: getattr(self, name)[rows, cols] for name in names})


def index_scan(
    patterns: Any,
    calibration: Calibration,
    banks: list[TemplateBank],
    *,
    neighbours: bool = True,
    mixtures: bool = True,
    neighbour_nats: float = 1.5,
    families: Iterable[Iterable[str]] = (),
    seed: int = 1,
    progress: Any = None,
    work: LongWork | None = None,
) -> tuple[Indexing, Spots]:
    """Find the best orientation of every phase, and what overlaps, for every pattern of a scan (ny, nx, ky, kx), numpy or dask.

    Every pattern is searched on its own first, read once by lines of the scan. With
    ``neighbours`` one in four is searched deeper, and the stated prior follows: orientations found about a pattern are offered to
    it and refined on its own counts, each of the eight neighbours on the same lattice is
    worth ``neighbour_nats``, overlapping crystals are sought first among the neighbours', and
    the strengths of a crystal's reflections are learned from all its patterns. With
    ``mixtures`` two or three crystals may share a pattern; else it is one.

    ``families`` name the phases that grow on one another's lattice, one tuple a family; without, all related phases are one.

    ``work`` says where finished chunks are kept (`LongWork`), so that a run that was broken off goes on, and who does them; the
    results are the same, to the bit, with any of it and without. Without, all is done here and kept in memory.

    Returns the `Indexing` and the `Spots` of all patterns in the order of the scan.
    """
    centre_px = np.ascontiguousarray(calibration.centre_px, dtype=float)
    calibration = replace(calibration, centre_px=centre_px[:1, :1])  # the rest goes with the patterns that it is of
    kin = tuple(map(tuple, families))
    options = (neighbours, mixtures, neighbour_nats, kin, seed)
    folder = work.chunk_folder(calibration, centre_px, banks, patterns.shape, options) if work else None
    scheduler = work.scheduler if work else ""
    with contextlib.ExitStack() as open_stores:
        alone = ChunkStore(*_searches(patterns, banks), folder and folder / "alone")
        open_stores.callback(alone.close)
        found = ChunkStore(*_solutions(patterns.shape[:2], len(banks)), folder and folder / "found")
        open_stores.callback(found.close)
        place = lambda name: (alone.chunks[name], centre_px[alone.chunks[name]].reshape(-1, 2))
        finish_chunks(alone, _search_box, (patterns, calibration, banks, neighbours), place, scheduler, progress)
        spots = _spots_of(alone.arrays, centre_px)
        chance = chance_evidence(spots, calibration, banks, patterns.shape[2:], seed=seed)
        tiles = _tiles(*patterns.shape[:2])
        cut = lambda name: (_cut_tile(alone, spots, tiles[name][0]), tiles[name])
        several = progress if len(tiles) > 1 else None
        finish_chunks(found, _solve_tile, (calibration, banks, chance, *options[:4]), cut, scheduler, several)
        solved = dict(found.arrays)
    for name in ("part_lattice", "part_crystal"):  # tiles number their own
        solved[name] = _numbered_on(solved[name], found.chunks.values())
    return Indexing(names=[b.crystal.name for b in banks], chance=chance, **solved), spots


_SPARSE_SPOTS = 40  # a template: the votes of banks with fewer may miss an orientation all over a grain, ...
_DEEP_EVERY = 4  # ... so one pattern in four is searched deeper, and what is found there is offered to its neighbours
_DEEP_COARSE, _DEEP_FINE = 80, 30


def _searches(patterns: Any, banks: list[TemplateBank]) -> tuple[dict, dict]:
    """Layout and chunks of `ChunkStore` for what each pattern gives on its own: its spots, and for every phase the best that was found."""
    shape, p = patterns.shape[:2], len(banks)
    room = _no_spots(np.zeros((1, 2)), patterns.shape[2:])
    layout = {name: ((*shape, *a.shape[1:]), a.dtype, 0) for name in ("table", "number", "background") for a in [getattr(room, name)]}
    layout |= {"rotation": ((p, *shape, 3, 3), np.float32, 1)}
    layout |= {name: ((p, *shape), np.float64, 1) for name in ("evidence", "runner_up")}
    return layout, {f"box_{rows.start}_{cols.start}": (rows, cols) for rows, cols in scan_boxes(patterns)}


def _search_box(
    patterns: Any, calibration: Calibration, banks: list[TemplateBank], neighbours: bool, box: tuple[slice, slice], centre_px: np.ndarray
) -> dict[str, np.ndarray]:
    """Spots of the patterns in a box of a scan and, for every phase, rotation, evidence and runner-up, each pattern on its own.

    With ``neighbours``, which can make use of it, some patterns are searched deeper in sparse banks. ``centre_px`` is (n, 2).
    """
    spots = find_spots(_read_box(patterns, box), centre_px, calibration)
    rows, cols = (np.arange(part.start, part.stop) for part in box)
    n, p = len(centre_px), len(banks)
    diagonal = np.add.outer(rows, cols).ravel() % _DEEP_EVERY == 0
    rotation, evidence, runner_up = np.zeros((p, n, 3, 3), np.float32), np.zeros((p, n)), np.zeros((p, n))
    for k, bank in enumerate(banks):
        sparse = len(bank.spot_radius) < _SPARSE_SPOTS * len(bank.frames)
        deep = diagonal & sparse & neighbours
        deeper: dict[str, Any] = {"n_coarse": _DEEP_COARSE, "n_fine": _DEEP_FINE}
        for some, depth in ((~deep, {}), (deep, deeper)):
            rotation[k, some], evidence[k, some], runner_up[k, some] = search_phase(spots[some], calibration, bank, **depth)
    shape = len(rows), len(cols)
    by_pattern = {"table": spots.table, "number": spots.number, "background": spots.background}
    by_phase: dict[str, np.ndarray] = {"rotation": rotation, "evidence": evidence, "runner_up": runner_up}
    return {name: a.reshape(*shape, *a.shape[1:]) for name, a in by_pattern.items()} | {
        name: a.reshape(p, *shape, *a.shape[2:]) for name, a in by_phase.items()
    }


def _spots_of(arrays: dict[str, np.ndarray], centre_px: np.ndarray) -> Spots:
    """The spots of all patterns of a scan, in its order, from their arrays (ny, nx, …)."""
    table, number, background = (arrays[name].reshape(-1, *arrays[name].shape[2:]) for name in ("table", "number", "background"))
    return Spots(table, number, background, centre_px.reshape(-1, 2))


def _cut_tile(alone: ChunkStore, spots: Spots, tile: tuple[slice, slice]) -> tuple[Spots, np.ndarray, np.ndarray, np.ndarray]:
    """What `_search_box` gave for the patterns of a tile, in its order."""
    chosen = np.arange(len(spots.number)).reshape(alone.arrays["number"].shape)[tile].ravel()
    by_phase = (alone.arrays[name][(slice(None), *tile)] for name in ("rotation", "evidence", "runner_up"))
    rotation, evidence, runner_up = (a.reshape(len(a), len(chosen), *a.shape[3:]) for a in by_phase)
    return spots[chosen], rotation, evidence, runner_up


def _solutions(shape: tuple[int, int], p: int) -> tuple[dict, dict]:
    """Layout and chunks of `ChunkStore` for the fields of `Indexing`."""
    layout = {"rotation": ((p, *shape, 3, 3), np.float32, 1), "winner": (shape, int, 0), "prior": (shape, float, 0)}
    layout |= {name: ((p, *shape), float, 1) for name in ("evidence", "runner_up")}
    layout |= {name: ((*shape, _MOST_PARTS), int, 0) for name in ("part_phase", "part_lattice", "part_crystal")}
    layout |= {name: ((*shape, _MOST_PARTS), float, 0) for name in ("part_share", "part_sd")}
    layout |= {"part_rotation": ((*shape, _MOST_PARTS, 3, 3), np.float32, 0)}
    return layout, {name: tile.own for name, tile in _tiles(*shape).items()}


def _solve_tile(
    calibration: Calibration, banks: list[TemplateBank], chance: np.ndarray, neighbours: bool, mixtures: bool, neighbour_nats: float,
    kin: tuple[tuple[str, ...], ...], alone: tuple[Spots, np.ndarray, np.ndarray, np.ndarray], tile: _Tile,
) -> dict[str, np.ndarray]:  # fmt: skip
    """The fields of `Indexing` for what is a tile's own, from what each of its patterns gave on its own; lattices are numbered from 0."""
    spots, rotation, evidence, runner_up = alone
    shape = tuple(part.stop - part.start for part in tile.outer)
    n, p = len(spots.number), len(banks)
    rotation = rotation.astype(float)
    families, camera = _families(banks, kin), _camera(calibration)
    refs, first = _joined_reflections(banks)
    support = evidence - chance[:, None]
    parts, related = _components_of(spots, shape, calibration, banks, families, rotation, support, neighbours, mixtures)
    choice, agreeing = np.full(n, -1), np.zeros((n, _MOST_COMPONENTS), int)
    nats = neighbour_nats if neighbours else 0.0
    _settle(shape, parts, chance, related, nats, choice, agreeing)
    solved = _best_of_phases(parts, agreeing, nats, rotation, evidence, runner_up, chance, families)
    chosen, share, sd = np.full((n, _MOST_PARTS), -1), np.zeros((n, _MOST_PARTS)), np.zeros((n, _MOST_PARTS))
    chosen[:, 0], share[:, 0] = choice, choice >= 0
    if mixtures:
        cost = np.zeros((n, _MOST_COMPONENTS))
        _costs(shape, parts, chance, chosen if neighbours else np.full_like(chosen, -1), share, cost)
        chosen, share, sd = _overlaps(spots, camera, refs, first, families.family, parts, cost, nats * agreeing, neighbours)
    solved |= _largest_first(parts, chosen, share, sd, nats * agreeing, families)
    by_phase = ("rotation", "evidence", "runner_up")
    return {k: v.reshape(p, *shape, *v.shape[2:])[:, *tile.inner] if k in by_phase else v.reshape(*shape, *v.shape[1:])[tile.inner]
            for k, v in solved.items()}  # fmt: skip


def _components_of(
    spots: Spots, shape: tuple[int, int], calibration: Calibration, banks: list[TemplateBank], families: _Families,
    rotation: np.ndarray, support: np.ndarray, neighbours: bool, mixtures: bool,
) -> tuple[_Components, np.ndarray]:  # fmt: skip
    """What each pattern of a part of a scan may hold, refined and judged, and which lattices are related (l, l).

    ``rotation`` (p, n, 3, 3) and ``support`` (p, n) are the best solutions of every phase for each pattern on its own.
    """
    n, camera = len(spots.number), _camera(calibration)
    refs, first = _joined_reflections(banks)
    best, most = np.argmax(support, axis=0), support.max(axis=0)
    own = rotation[best, np.arange(n)]
    lattice, keys, leaders, seen = _find_lattices(shape, best, most, own, 3.0, families, neighbours)
    parts = _Components(
        np.full((n, _MOST_COMPONENTS), -1), np.full((n, _MOST_COMPONENTS), -1), np.zeros((n, _MOST_COMPONENTS), int),
        np.zeros((n, _MOST_COMPONENTS, 3, 3)), np.full((n, _MOST_COMPONENTS), -1e3),
    )  # fmt: skip
    second = _second_crystals(spots, calibration, banks, best, own) if mixtures else np.zeros_like(rotation)
    reach = _LATTICE_REACH if neighbours else 0
    _propose(shape, reach, lattice, keys, seen, most[leaders], families, rotation, support, second, parts)
    _score_components(
        *spots.arrays, refs, first, camera, math.radians(0.3), families.own, parts.phase, parts.rotation, parts.evidence,
        numba.get_num_threads(),
    )  # fmt: skip
    shared = leaders if neighbours else leaders[:0]
    return parts, _related_lattices(keys[shared], families.family[best[shared]], families.operators[best[shared]])


def _overlaps(
    spots: Spots, camera: _Camera, refs: _Reflections, first: np.ndarray, family: np.ndarray, parts: _Components, cost: np.ndarray,
    bonus: np.ndarray, learn: bool,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:  # fmt: skip
    """Which components (n, 3) of each pattern lie over each other, their shares and the standard deviations of these."""
    n = len(spots.number)
    chosen, share, unit = np.full((n, _MOST_PARTS), -1), np.zeros((n, _MOST_PARTS)), np.zeros(n)
    _choose_sets(*spots.arrays, refs, first, camera, parts, cost, bonus, chosen, share, unit, numba.get_num_threads())
    if not (chosen >= 0).any():
        return chosen, share, np.zeros_like(share)
    weights, covariance = _measure_shares(spots, camera, refs, first, family, parts, chosen, unit, learn)
    return chosen, *_normalised(weights, covariance)


def _best_of_phases(
    parts: _Components, agreeing: np.ndarray, nats: float, rotation: np.ndarray, evidence: np.ndarray, runner_up: np.ndarray,
    chance: np.ndarray, families: _Families,
) -> dict[str, np.ndarray]:  # fmt: skip
    """The best solution of every phase under the prior on lattices: of its components, or the one found alone."""
    p, n = evidence.shape
    rotation, evidence, runner_up, total = rotation.copy(), evidence.copy(), runner_up.copy(), np.empty((p, n))
    for k in range(p):
        value = np.where(parts.phase == k, parts.evidence + nats * agreeing, -1e3)
        c = np.argmax(value, axis=1)
        here, rows = value[np.arange(n), c], np.arange(n)
        better = here > evidence[k]
        _note_runner_up(rotation[k], evidence[k], runner_up[k], parts.rotation[rows, c], parts.evidence[rows, c], better, families.own[k])
        total[k] = np.maximum(here, evidence[k]) - chance[k]
        rotation[k][better] = parts.rotation[rows, c][better]
        evidence[k][better] = parts.evidence[rows, c][better]
    return {"rotation": rotation, "evidence": evidence, "runner_up": runner_up, "winner": np.argmax(total, axis=0)}


@kernel
def _note_runner_up(rotation, evidence, runner_up, new_rotation, new_evidence, better, operators):
    """Keep ``runner_up`` the best evidence at least ten degrees from the solution that stays, where a new one is at hand."""
    for i in range(len(evidence)):
        far = _nearest_operator(rotation[i], new_rotation[i], operators)[1] > _TEN_DEGREES
        if far:
            runner_up[i] = max(runner_up[i], evidence[i] if better[i] else new_evidence[i])


def _normalised(weights: np.ndarray, covariance: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Shares (n, 3) that add up to one and their standard deviations, by the law of propagation."""
    total = np.maximum(weights.sum(axis=1, keepdims=True), 1e-9)
    share = weights / total
    slope = (np.eye(_MOST_PARTS)[None] - share[:, :, None]) / total[:, :, None]
    variance = np.einsum("nab,nbc,nac->na", slope, covariance, slope)
    return share, np.where(weights > 0, np.sqrt(np.maximum(variance, 0)), 0.0)


def _largest_first(
    parts: _Components, chosen: np.ndarray, share: np.ndarray, sd: np.ndarray, bonus: np.ndarray, families: _Families
) -> dict[str, np.ndarray]:
    """What `Indexing` holds of the chosen components (n, 3), the largest first."""
    order = np.argsort(-np.where(chosen >= 0, share, -1.0), axis=1, kind="stable")
    chosen, share, sd = (np.take_along_axis(a, order, axis=1) for a in (chosen, share, sd))
    taken, rows = np.maximum(chosen, 0), np.arange(len(chosen))[:, None]
    present = (chosen >= 0) & (share > 0)
    lattice = np.where(present, parts.lattice[rows, taken], -1)
    n_phases, n_variants = families.from_parent.shape[:2]
    crystal = (lattice * n_phases + parts.phase[rows, taken]) * n_variants + np.maximum(parts.variant[rows, taken], 0)
    return {
        "part_lattice": lattice,
        "part_crystal": np.where(lattice >= 0, crystal, -1),
        "prior": np.where(chosen[:, 0] >= 0, bonus[rows[:, 0], taken[:, 0]], 0.0),
        "part_phase": np.where(present, parts.phase[rows, taken], -1),
        "part_share": np.where(present, share, 0.0),
        "part_sd": np.where(present, sd, 0.0),
        "part_rotation": np.where(present[..., None, None], parts.rotation[rows, taken], 0.0),
    }
