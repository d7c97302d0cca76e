"""Index a scan: the best orientation of every phase in every pattern, and the crystals that overlap in it.

The steps, each in its room:

1. Every pattern is reduced to its spots (`emphase.ped.spots`) and searched by itself for the best orientation of every phase
   (`emphase.ped.search`). With the prior, one pattern in four is searched deeper.
2. What each bank of templates reaches by chance is measured on patterns of background alone; the evidence above it is the *support*.
3. Tile by tile (`emphase.ped.tiles`): the lattices of the scan are found, and each pattern is offered the crystals on the lattices about it
   (`emphase.ped.lattices`); the one with the most support, the bonus for agreeing neighbours included, leads.
4. Sets of overlapping crystals are chosen by evidence (`emphase.ped.overlap`), and their shares measured (`emphase.ped.shares`).
5. What they leave over is searched for crystals of a few per cent (`emphase.ped.faint`).

Steps 1 and 3 to 5 are done in chunks, which can be kept and distributed (`emphase.chunks`).
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np

from ..chunks import ChunkStore, LongWork, finish_chunks
from ..errors import EmphaseError
from ..kernels import kernel, side_by_side
from .evidence import _Camera, _camera
from .faint import _Known, find_faint_crystals, part_followers, with_faint
from .families import _Families, _families
from .lattices import OPTIONS as LATTICE_OPTIONS
from .lattices import (
    _Components,
    _find_lattices,
    _no_components,
    _propose,
    _related_lattices,
    _score_components,
    _second_crystals,
    _settle,
    _Solutions,
)
from .leading import log_odds_of_leading
from .overlap import _MOST_PARTS, _NO_SET, _choose_sets, _costs, _no_sets, _Prices
from .scan import Calibration, read_box, scan_boxes
from .search import OPTIONS as SEARCH_OPTIONS
from .search import _nearest_operator, chance_evidence, search_phase
from .shares import _measure_shares, _unit_of_phases
from .spots import Spots, _no_spots, _SpotArrays, find_spots
from .templates import TemplateBank, _joined_reflections, _Reflections
from .tiles import _numbered_on, _Tile, _tiles


@dataclass(frozen=True)
class IndexOptions:
    """Tuning numbers of the search of single patterns."""

    sparse_spots: int = 40  # a template: the votes of banks with fewer may miss an orientation all over a grain, ...
    deep_every: int = 4  # ... so one pattern in so many is searched deeper, and what is found there is offered to its neighbours
    deep_coarse: int = 80  # templates that are compared in the deeper search, ...
    deep_fine: int = 30  # ... and orientations that are refined
    most_afterglow: float = 0.15  # of a pattern in the next one; cameras with a scintillator keep some per cent, and strengths scatter


OPTIONS = IndexOptions()


@dataclass(frozen=True)
class LatticePrior:
    """What is assumed of the crystals of a scan before its patterns are looked at.

    It knows lattices, not phases: it cannot turn a pattern from one phase of a family to another.

    Parameters
    ----------
    neighbours
        Whether neighbours count: orientations found around a pattern are offered to it and refined on its counts, each of the eight
        neighbours on the same lattice is a bonus of ``neighbour_nats``, overlapping crystals are sought first among the neighbours', and
        the strengths of a crystal's reflections are learned from all its patterns.
    mixtures
        Whether two or three crystals may share a pattern; else it is one.
    neighbour_nats
        Bonus for each of the eight neighbours on the same lattice, of whatever phase.
    families
        Names of the phases that grow on one another's lattice, one tuple a family; without, all related phases are one family.
    """

    neighbours: bool = True
    mixtures: bool = True
    neighbour_nats: float = 1.5
    families: Iterable[Iterable[str]] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "families", tuple(map(tuple, self.families)))

    @property
    def bonus(self) -> float:
        """Nats for each agreeing neighbour; 0 where neighbours do not count."""
        return self.neighbour_nats if self.neighbours else 0.0


@dataclass
class Indexing:
    """The best solution of every phase for every pattern of a scan, and what overlaps in it.

    Parameters
    ----------
    names
        Of the p phases.
    rotation
        Best orientation of every phase, (p, ny, nx, 3, 3), sample to crystal.
    evidence, runner_up
        Its evidence (p, ny, nx) in nats, and that of the best orientation of the phase at least ten degrees away.
    set_value
        Evidence less price (p, ny, nx), in nats, of the best set of crystals in which each phase is the largest (`emphase.ped.overlap`).
    chance
        Evidence (p,) that patterns without any crystal hardly ever reach (`chance_evidence`), so that ``evidence - chance`` compares
        phases whose banks differ in size and density.
    winner
        The phase (ny, nx) with the most support, the prior included.
    prior
        What the neighbours' lattices add to the support of a pattern (ny, nx), in nats.
    part_phase
        The crystals that lie over each other, the one that gives the phase first (`emphase.ped.leading`), then by share: their phase
        (ny, nx, 3), -1 for none.
    part_share, part_sd
        Their shares (ny, nx, 3) and the standard deviations of these.
    part_rotation
        Their orientations (ny, nx, 3, 3, 3).
    thickness
        What the crystals of a pattern scatter together (ny, nx), in units of what they scatter in most of their patterns
        (`emphase.ped.shares`); 1 without mixtures, and where none is chosen.
    afterglow
        Whether a pattern (ny, nx) looks like what the camera kept of the one before it in its line.
    part_lattice, part_crystal
        Numbers (ny, nx, 3) of the lattices and, on each, of the crystals (phases and their variants) of the scan; -1
        is an orientation that one pattern alone has.
    """

    names: list[str]
    rotation: np.ndarray
    evidence: np.ndarray
    runner_up: np.ndarray
    set_value: np.ndarray
    chance: np.ndarray
    winner: np.ndarray
    prior: np.ndarray
    part_phase: np.ndarray
    part_share: np.ndarray
    part_sd: np.ndarray
    part_rotation: np.ndarray
    thickness: np.ndarray
    afterglow: np.ndarray
    part_lattice: np.ndarray
    part_crystal: np.ndarray

    @property
    def support(self) -> np.ndarray:
        """Evidence above chance, (p, ny, nx)."""
        return self.evidence - self.chance[:, None, None]

    def part(self, rows: slice, cols: slice) -> Indexing:
        """What was found in a box of the scan."""
        by_phase = {name: getattr(self, name)[:, rows, cols] for name in ("rotation", "evidence", "runner_up", "set_value")}
        names = ["winner", "prior", "thickness", "afterglow"]
        names += [f"part_{name}" for name in ("phase", "share", "sd", "rotation", "lattice", "crystal")]
        return replace(self, **by_phase, **{name: getattr(self, name)[rows, cols] for name in names})


def index_scan(
    patterns: Any,
    calibration: Calibration,
    banks: list[TemplateBank],
    *,
    seed: int = 1,
    progress: Any = None,
    work: LongWork | None = None,
    **prior: Any,
) -> tuple[Indexing, Spots]:
    """Find the best orientation of every phase, and what overlaps, for every pattern of a scan from its spots.

    Parameters
    ----------
    patterns
        Scan (ny, nx, ky, kx), numpy or dask, or anything that is read by slices of lines and columns.
    calibration
        Of the scan, with the direct beam of every pattern.
    banks
        Templates of the candidate phases.
    seed
        Of the patterns of background alone from which chance is measured.
    progress
        Called with the list of chunks that are left to do, returns an iterable that is advanced with each.
    work
        Where finished chunks are kept (`LongWork`), so that a run that was broken off goes on, and who does them; the
        results are the same, to the bit, with any of it and without. Without, all is done here and kept in memory.
    **prior
        Fields of `LatticePrior`: ``neighbours``, ``mixtures``, ``neighbour_nats`` and ``families``.

    Returns
    -------
    What was found, and the `Spots` of all patterns in the order of the scan.

    Raises
    ------
    TypeError
        For a name that `LatticePrior` has not.
    EmphaseError
        For a calibration of another scan or camera, and where the candidate phases are none or two have one name.

    Notes
    -----
    Every pattern is searched on its own first, read once by lines of the scan; the module's docstring lists the steps.
    """
    _check_models(patterns.shape, calibration, banks)
    centre_px = np.ascontiguousarray(calibration.centre_px, dtype=float)
    calibration = replace(calibration, centre_px=centre_px[:1, :1])  # the rest goes with the patterns that it is of
    assumed = LatticePrior(**prior)
    folder = work.chunk_folder(index_scan, calibration, centre_px, banks, patterns.shape, assumed, seed) if work else None
    scheduler = work.scheduler if work else ""
    with contextlib.ExitStack() as open_stores:
        alone = ChunkStore(*_searches(patterns, banks), folder and folder / "alone")
        open_stores.callback(alone.close)
        found = ChunkStore(*_solutions(patterns.shape[:2], len(banks)), folder and folder / "found")
        open_stores.callback(found.close)
        place = lambda name: (alone.chunks[name], centre_px[alone.chunks[name]].reshape(-1, 2))
        finish_chunks(alone, _search_box, (patterns, calibration, banks, assumed.neighbours), place, scheduler, progress)
        spots = _spots_of(alone.arrays, centre_px)
        chance = chance_evidence(spots, calibration, banks, patterns.shape[2:], seed=seed)
        tiles = _tiles(*patterns.shape[:2])
        cut = lambda name: (_cut_tile(alone, spots, tiles[name].outer), tiles[name])
        several = progress if len(tiles) > 1 else None
        finish_chunks(found, _solve_tile, (calibration, banks, chance, assumed), cut, scheduler, several)
        solved = dict(found.arrays)
    for name in ("part_lattice", "part_crystal"):  # numbered from 0 in every tile
        solved[name] = _numbered_on(solved[name], found.chunks.values())
    return Indexing(names=[b.crystal.name for b in banks], chance=chance, **solved), spots


def _check_models(shape: tuple[int, ...], calibration: Calibration, banks: list[TemplateBank]) -> None:
    """`EmphaseError` where a scan of ``shape`` cannot be searched with this calibration and these candidates."""
    of = (*calibration.centre_px.shape[:2], *calibration.mask.shape)
    if calibration.fixed_background.shape not in ((0, 0), calibration.mask.shape):
        got, expected = (" × ".join(map(str, a.shape)) for a in (calibration.fixed_background, calibration.mask))
        raise EmphaseError(f"calibration: a fixed_background of {got} pixels, expected {expected}")
    if of != tuple(shape):
        raise EmphaseError(f"calibration: of a scan of {' × '.join(map(str, of))}, but the patterns are {' × '.join(map(str, shape))}")
    names = [bank.crystal.name for bank in banks]
    if not names or len(set(names)) < len(names):
        raise EmphaseError(f"candidate phases: got {', '.join(names) or 'none'}, expected one or more of different names")


class _Alone(NamedTuple):
    """What each of n patterns gave on its own: its spots, and the best solution (p, n, …) of every phase."""

    spots: Spots
    rotation: np.ndarray
    evidence: np.ndarray
    runner_up: np.ndarray


class _Models(NamedTuple):
    """What is known of all patterns of a scan: the candidate phases, what each reaches by ``chance`` (p,), and the camera."""

    calibration: Calibration
    banks: list[TemplateBank]
    chance: np.ndarray
    families: _Families
    refs: _Reflections
    first: np.ndarray
    camera: _Camera


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

    With ``neighbours``, to whom it is offered, some patterns are searched deeper in sparse banks. ``centre_px`` is (n, 2).
    """
    spots = find_spots(read_box(patterns, box), centre_px, calibration)
    rows, cols = (np.arange(part.start, part.stop) for part in box)
    n, p = len(centre_px), len(banks)
    diagonal = np.add.outer(rows, cols).ravel() % OPTIONS.deep_every == 0
    rotation, evidence, runner_up = np.zeros((p, n, 3, 3), np.float32), np.zeros((p, n)), np.zeros((p, n))
    for k, bank in enumerate(banks):
        sparse = len(bank.spot_radius) < OPTIONS.sparse_spots * len(bank.frames)
        deep = diagonal & sparse & neighbours
        deeper: dict[str, Any] = {"n_coarse": OPTIONS.deep_coarse, "n_fine": OPTIONS.deep_fine}
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


def _cut_tile(alone: ChunkStore, spots: Spots, tile: tuple[slice, slice]) -> _Alone:
    """What `_search_box` gave for the patterns of a tile, in its order."""
    chosen = np.arange(len(spots.number)).reshape(alone.arrays["number"].shape)[tile].ravel()
    by_phase = (alone.arrays[name][(slice(None), *tile)] for name in ("rotation", "evidence", "runner_up"))
    rotation, evidence, runner_up = (a.reshape(len(a), len(chosen), *a.shape[3:]) for a in by_phase)
    return _Alone(spots[chosen], rotation, evidence, runner_up)


def _solutions(shape: tuple[int, int], p: int) -> tuple[dict, dict]:
    """Layout and chunks of `ChunkStore` for the fields of `Indexing`."""
    layout = {"rotation": ((p, *shape, 3, 3), np.float32, 1), "winner": (shape, int, 0)}
    layout |= {"prior": (shape, float, 0), "thickness": (shape, float, 0), "afterglow": (shape, bool, 0)}
    layout |= {name: ((p, *shape), float, 1) for name in ("evidence", "runner_up", "set_value")}
    layout |= {name: ((*shape, _MOST_PARTS), int, 0) for name in ("part_phase", "part_lattice", "part_crystal")}
    layout |= {name: ((*shape, _MOST_PARTS), float, 0) for name in ("part_share", "part_sd")}
    layout |= {"part_rotation": ((*shape, _MOST_PARTS, 3, 3), np.float32, 0)}
    return layout, {name: tile.core for name, tile in _tiles(*shape).items()}


def _solve_tile(
    calibration: Calibration, banks: list[TemplateBank], chance: np.ndarray, prior: LatticePrior, alone: _Alone, tile: _Tile
) -> dict[str, np.ndarray]:
    """The fields of `Indexing` for the core of a tile, from what each of its patterns gave on its own; lattices are numbered from 0."""
    shape = tuple(part.stop - part.start for part in tile.outer)
    models = _Models(calibration, banks, chance, _families(banks, prior.families), *_joined_reflections(banks), _camera(calibration))
    alone = alone._replace(rotation=alone.rotation.astype(float))
    parts, related = _components_of(alone, shape, models, prior)
    choice, agreeing = np.full(len(parts.phase), -1), np.zeros(parts.phase.shape, int)
    _settle(shape, parts, chance, related, prior.bonus, choice, agreeing)
    bonus = prior.bonus * agreeing
    solved = _best_of_phases(parts, bonus, alone, models)
    parts, over = _overlaps(alone.spots, shape, models, parts, bonus, choice, prior)
    solved["set_value"], solved["thickness"] = np.maximum(over.value, solved.pop("total")), over.thickness
    solved |= _leading_first(parts, over, solved["set_value"], bonus, models.families)
    solved["afterglow"] = _afterglow(over.thickness.reshape(shape), solved["part_lattice"][:, 0].reshape(shape)).ravel()
    by_phase = ("rotation", "evidence", "runner_up", "set_value")
    return {k: v.reshape(len(banks), *shape, *v.shape[2:])[:, *tile.inner] if k in by_phase else v.reshape(*shape, *v.shape[1:])[tile.inner]
            for k, v in solved.items()}  # fmt: skip


def _components_of(alone: _Alone, shape: tuple[int, ...], models: _Models, prior: LatticePrior) -> tuple[_Components, np.ndarray]:
    """What each pattern of a part of a scan may hold, refined and judged, and which lattices are related (l, l)."""
    spots, families = alone.spots, models.families
    support = alone.evidence - models.chance[:, None]
    best, most = np.argmax(support, axis=0), support.max(axis=0)
    rotation = alone.rotation[best, np.arange(len(best))]
    lattices = _find_lattices(shape, best, most, rotation, families, prior.neighbours)
    second = np.zeros_like(alone.rotation)
    if prior.mixtures:
        second = _second_crystals(spots, models.calibration, models.banks, best, rotation)
    parts = _no_components(len(best))
    reach = LATTICE_OPTIONS.reach if prior.neighbours else 0
    _propose(shape, reach, lattices, most[lattices.leaders], families, _Solutions(alone.rotation, support, second), parts)
    arrays, operators = _SpotArrays(*spots.arrays), families.phase_operators
    side_by_side(_score_components, len(best), arrays, models.refs, models.first, models.camera, operators, parts)
    shared = lattices.leaders if prior.neighbours else lattices.leaders[:0]
    related = _related_lattices(lattices.keys[shared], families.family[best[shared]], families.operators[best[shared]])
    return parts, related


class _Overlaps(NamedTuple):
    """Which components lie over each other in each of n patterns: ``chosen`` (n, 3), -1 for none, their ``share`` and its ``sd`` (n, 3).

    ``value`` (p, n) is that of the best set in which each phase is the largest, ``thickness`` (n,) as in `Indexing`.
    """

    chosen: np.ndarray
    share: np.ndarray
    sd: np.ndarray
    value: np.ndarray
    thickness: np.ndarray


def _overlaps(
    spots: Spots, shape: tuple[int, ...], models: _Models, parts: _Components, bonus: np.ndarray, choice: np.ndarray, prior: LatticePrior
) -> tuple[_Components, _Overlaps]:
    """The crystals of each pattern, and the components with faint ones; without mixtures the leading component ``choice`` (n,) alone."""
    n = len(choice)
    chosen, share = np.full((n, _MOST_PARTS), -1), np.zeros((n, _MOST_PARTS))
    chosen[:, 0], share[:, 0] = choice, choice >= 0
    if not prior.mixtures:
        return parts, _Overlaps(chosen, share, np.zeros_like(share), np.full((len(models.banks), n), _NO_SET), np.ones(n))
    nearby = chosen if prior.neighbours else np.full_like(chosen, -1)
    prices = _Prices(_costs(shape, parts, models.chance, nearby, share), bonus)
    arrays, refs, first, camera = _SpotArrays(*spots.arrays), models.refs, models.first, models.camera
    sets = _no_sets(n, len(models.banks))
    side_by_side(_choose_sets, n, arrays, refs, first, camera, parts, prices, sets)
    chosen, share, unit, value = sets
    if not (chosen >= 0).any():
        return parts, _Overlaps(chosen, share, np.zeros_like(share), value.T, np.ones(n))
    known = _Known(refs, first, camera, models.families.phase_operators)
    chosen, follower = part_followers(spots, known, parts, chosen, share)
    leading_phase = parts.phase[np.arange(n), np.maximum(chosen[:, 0], 0)]
    unit_of_phases = _unit_of_phases(models.families.family, leading_phase, unit)
    weights, covariance = _measure_shares(spots, camera, refs, first, parts, chosen, unit_of_phases, prior.neighbours)
    thickness = np.where(chosen[:, 0] >= 0, weights.sum(axis=1), 1.0)

    def search(some: Spots) -> tuple[np.ndarray, np.ndarray]:
        found = [search_phase(some, models.calibration, bank)[:2] for bank in models.banks]
        return np.stack([r for r, _ in found]), np.stack([e for _, e in found]) - models.chance[:, None]

    faint = find_faint_crystals(spots, shape, known, search, parts, chosen, follower, prior.neighbours)
    parts, chosen, share, sd = with_faint(parts, chosen, *_normalised(weights, covariance), *faint)
    return parts, _Overlaps(chosen, share, sd, value.T, thickness)


def _best_of_phases(parts: _Components, bonus: np.ndarray, alone: _Alone, models: _Models) -> dict[str, np.ndarray]:
    """The best solution of every phase under the prior on lattices: of its components, or the one found alone."""
    p, n = alone.evidence.shape
    rotation, evidence, runner_up, total = alone.rotation.copy(), alone.evidence.copy(), alone.runner_up.copy(), np.empty((p, n))
    for k, operators in enumerate(models.families.phase_operators):
        value = np.where(parts.phase == k, parts.evidence + bonus, -1e3)
        c = np.argmax(value, axis=1)
        here, rows = value[np.arange(n), c], np.arange(n)
        better = here > evidence[k]
        _note_runner_up(rotation[k], evidence[k], runner_up[k], parts.rotation[rows, c], parts.evidence[rows, c], better, operators)
        total[k] = np.maximum(here, evidence[k]) - models.chance[k]
        rotation[k][better] = parts.rotation[rows, c][better]
        evidence[k][better] = parts.evidence[rows, c][better]
    return {"rotation": rotation, "evidence": evidence, "runner_up": runner_up, "winner": np.argmax(total, axis=0), "total": total}


@kernel
def _note_runner_up(rotation, evidence, runner_up, new_rotation, new_evidence, better, operators):
    """Keep ``runner_up`` the best evidence at least ten degrees from the solution that stays, the old one or a ``better`` new one."""
    for i in range(len(evidence)):
        far = _nearest_operator(rotation[i], new_rotation[i], operators)[1] > SEARCH_OPTIONS.apart
        if far:
            runner_up[i] = max(runner_up[i], evidence[i] if better[i] else new_evidence[i])


def _afterglow(thickness: np.ndarray, lattice: np.ndarray) -> np.ndarray:
    """Whether a pattern (ny, nx) has the ``lattice`` (ny, nx) of the one before it in its line, at a small part of its strength.

    And the one after it has not more of it: afterglow is seen where a crystal ends, and a thin place within a crystal is none. Lines are
    recorded from left to right; what is before the first pattern of a line was recorded long before.
    """
    found = np.zeros(thickness.shape, bool)
    most = OPTIONS.most_afterglow * thickness[:, :-1]
    faint = (lattice[:, 1:] >= 0) & (lattice[:, 1:] == lattice[:, :-1]) & (thickness[:, 1:] <= most)
    goes_on = np.zeros(faint.shape, bool)
    goes_on[:, :-1] = (lattice[:, 2:] == lattice[:, 1:-1]) & (thickness[:, 2:] > most[:, :-1])
    found[:, 1:] = faint & ~goes_on
    return found


def _normalised(weights: np.ndarray, covariance: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Shares (n, 3) that add up to one and their standard deviations, by the law of propagation."""
    total = np.maximum(weights.sum(axis=1, keepdims=True), 1e-9)
    share = weights / total
    slope = (np.eye(_MOST_PARTS)[None] - share[:, :, None]) / total[:, :, None]
    variance = np.einsum("nab,nbc,nac->na", slope, covariance, slope)
    return share, np.where(weights > 0, np.sqrt(np.maximum(variance, 0)), 0.0)


def _leading_first(
    parts: _Components, over: _Overlaps, set_value: np.ndarray, bonus: np.ndarray, families: _Families
) -> dict[str, np.ndarray]:
    """What `Indexing` holds of the chosen components, the one that gives the phase first, then the larger ones."""
    chosen, share, sd = over.chosen, over.share, over.sd
    phase = np.where((chosen >= 0) & (share > 0), np.take_along_axis(parts.phase, np.maximum(chosen, 0), axis=1), -1)
    may_lead = np.where(chosen < bonus.shape[1], phase, -1)  # faint ones come after the components
    leading = log_odds_of_leading(may_lead, share, sd, set_value)
    of_part = np.where(may_lead >= 0, np.take_along_axis(leading.T, np.maximum(phase, 0), axis=1), -np.inf)
    leads = (may_lead >= 0) & (of_part == of_part.max(axis=1, keepdims=True))
    order = np.argsort(-np.where(chosen >= 0, share + leads, -1.0), axis=1, kind="stable")
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
