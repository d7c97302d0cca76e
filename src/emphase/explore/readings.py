"""What matching finds in a box of a scan, and in one pattern of it: the records that `PedExplorer` shows.

A `Reading` holds what `emphase.ped.map_scan` returns for a box with some candidate phases and thresholds. Thresholds act on what was found,
so a part of a reading with other thresholds needs no other search. Shares of a region are counted patterns, without a correction for
patterns that were assigned wrongly.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import numpy as np

from ..crystals import direction_name
from ..fractions.estimate import counted_shares
from ..ped.index import Indexing
from ..ped.maps import read_maps
from ..ped.scan import Calibration
from ..ped.search import SpotComparison, compare_spots, nearest_zone_axis
from ..ped.spots import Spots
from ..ped.templates import TemplateBank

Box = tuple[slice, slice]


@dataclass(frozen=True)
class Reading:
    """What matching with some banks and thresholds finds in a box of a scan.

    Parameters
    ----------
    rows, cols : slice
        The box, in scan positions.
    banks : list of TemplateBank
        The candidate phases, in the order of the maps' ``phase_id``.
    thresholds : dict
        Arguments of `emphase.ped.decide.decide_phases`.
    maps, found, spots : dict, Indexing, Spots
        The results of `emphase.ped.map_scan`.
    trusted : bool
        Whether the calibration and the candidates hold for the scan; without it nothing is called decided.
    options : dict
        The arguments of `emphase.ped.index.index_scan` with which it was matched.
    """

    rows: slice
    cols: slice
    banks: list[TemplateBank]
    thresholds: dict[str, float]
    maps: dict[str, np.ndarray]
    found: Indexing
    spots: Spots
    trusted: bool = True
    options: dict[str, Any] = field(default_factory=dict)

    @property
    def names(self) -> list[str]:
        """The candidate phases."""
        return [bank.crystal.name for bank in self.banks]

    def holds(self, rows: slice, cols: slice) -> bool:
        """Whether a box of the scan lies within this one."""
        inside = ((part.start, part.stop, whole) for part, whole in ((rows, self.rows), (cols, self.cols)))
        return all(whole.start <= start and stop <= whole.stop for start, stop, whole in inside)

    def with_thresholds(self, thresholds: dict[str, float], calibration: Calibration, rows: slice, cols: slice) -> Reading:
        """A part of the box with other thresholds.

        Parameters
        ----------
        thresholds : dict
            Arguments of `emphase.ped.decide.decide_phases`.
        calibration : Calibration
            That of the whole scan.
        rows, cols : slice
            The part, in scan positions.

        Returns
        -------
        Reading
        """
        inner = tuple(slice(part.start - box.start, part.stop - box.start) for part, box in ((rows, self.rows), (cols, self.cols)))
        places = np.arange(self.found.winner.size).reshape(self.found.winner.shape)[inner].ravel()
        found, spots = self.found.part(*inner), self.spots[places]
        here = replace(calibration, centre_px=calibration.centre_px[rows, cols])
        maps = read_maps(found, spots, here, self.banks, thresholds)
        return Reading(rows, cols, self.banks, thresholds, maps, found, spots, self.trusted, self.options)

    def numbered(self, names: list[str]) -> np.ndarray:
        """Index in ``names`` of every pattern's phase; -1 where it is not indexed."""
        return np.array([*(names.index(name) for name in self.names), -1])[self.maps["phase_id"]]


class ShareOf(NamedTuple):
    """A share that regions report: the patterns of ``phase`` among those of the phases ``among``, which together are called ``area``."""

    phase: str
    among: tuple[str, ...]
    area: str


@dataclass(frozen=True)
class MapDisplay:
    """What a map of a scan shows beside what was found.

    Parameters
    ----------
    layers : dict of str to ndarray (ny, nx)
        Further layers by name.
    colours : dict of str to str
        Colours of phases, hexadecimal; others take theirs from a cycle that is safe for the colour-blind.
    share : ShareOf, optional
        A share that regions report.
    """

    layers: dict[str, np.ndarray] = field(default_factory=dict)
    colours: dict[str, str] = field(default_factory=dict)
    share: ShareOf | None = None


@dataclass(frozen=True)
class PatternReading:
    """One pattern: the best orientation of every phase, and the spots that it predicts against those measured.

    ``leading`` is the index of the phase found, or of the one with the most evidence above chance where none was.
    """

    reading: Reading
    rotation: np.ndarray
    compared: list[SpotComparison]
    leading: int

    @classmethod
    def of(cls, reading: Reading, calibration: Calibration) -> PatternReading:
        """From the reading of a box of one pattern; ``calibration`` is that of the whole scan."""
        maps, rotation = reading.maps, reading.found.rotation[:, 0, 0].astype(float)
        phase = int(maps["phase_id"][0, 0])
        leading = phase if phase >= 0 else int(np.argmax(reading.found.support[:, 0, 0]))
        rotation[leading] = maps["rotation"][0, 0] if phase >= 0 else rotation[leading]
        compared = [compare_spots(reading.spots, calibration, bank, r) for bank, r in zip(reading.banks, rotation, strict=True)]
        return cls(reading, rotation, compared, leading)

    @property
    def phase(self) -> str:
        """The phase found."""
        phase = int(self.reading.maps["phase_id"][0, 0])
        return self.reading.names[phase] if phase >= 0 else "not indexed"

    def value(self, name: str) -> float:
        """The pattern's value in one of the maps."""
        return float(self.reading.maps[name][0, 0])

    def table(self) -> list[tuple[Any, ...]]:
        """A row for every phase: evidence in nats, the same above chance, spots seen, missing and extra, and the nearest zone axis."""
        rows: list[tuple[Any, ...]] = []
        found = self.reading.found
        for k, (bank, spots) in enumerate(zip(self.reading.banks, self.compared, strict=True)):
            zone, angle = nearest_zone_axis(bank.crystal, self.rotation[k][:, 2])
            counts = int(spots.seen.sum()), int(spots.missing.sum()), len(spots.extra_px)
            nats = f"{found.evidence[k, 0, 0]:.1f}", f"{found.support[k, 0, 0]:+.1f}"
            rows.append((bank.crystal.name, *nats, *counts, f"{direction_name(zone)} + {angle:.1f}°"))
        return rows

    def sentence(self, y: int, x: int, step_nm: float) -> str:
        """The phase found at (y, x) with its margins."""
        decided = "decided" if self.value("decided") and self.reading.trusted else "not decided"
        place = f"y {y}, x {x} ({y * step_nm:.4g}, {x * step_nm:.4g} nm)"
        margins = f"margin to the next phase {self.value('phase_margin'):.1f} nats, "
        margins += f"to the next orientation {self.value('orientation_margin'):.1f} nats"
        return f"{place}: {self.phase}, {decided}; {margins}; correlation {self.value('correlation'):.2f}."


def region_sentence(label: str, phase_id: np.ndarray, names: list[str], share: ShareOf | None) -> str:
    """The shares of the phases in a region, counted.

    Parameters
    ----------
    label : str
        Which reading of the region it is.
    phase_id : ndarray (ny, nx)
        Index in ``names`` of every pattern's phase; -1 not indexed.
    names : list of str
    share : ShareOf, optional
        A further share to report.

    Returns
    -------
    str
    """
    shares = counted_shares(phase_id, names)
    listed = ", ".join(f"{phase} {part:.1%}" for phase, part in shares.items() if part > 0) or "nothing indexed"
    text = f"Region of {phase_id.size} patterns, {label}: {listed}"
    area = sum(part for phase, part in shares.items() if phase in share.among) if share else 0.0
    if share is None or area == 0:
        return f"{text}."
    part = f"{shares.get(share.phase, 0.0) / area:.1%} of {round(area * phase_id.size)} {share.area} patterns"
    return f"{text}; {share.phase} {part} (counted, not corrected)."
