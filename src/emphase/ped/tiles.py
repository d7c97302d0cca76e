"""Parts of a scan in which lattices and overlap are sought at once, so that a long scan needs neither all memory nor one run.

A tile is a part of the scan with a margin: its patterns see their neighbours' lattices up to the edge, and only the results inside the
margin are kept. Each tile numbers its lattices from 0; over the scan the numbers go on from tile to tile.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np


@dataclass(frozen=True)
class TileOptions:
    """Sizes in patterns."""

    side: int = 96  # some 9000 patterns, whose arrays fit in memory, and all that a run that is broken off loses
    margin: int = 4  # twice the reach of the lattices that are offered to a pattern, so that the edge of a tile does not show


OPTIONS = TileOptions()


class _Tile(NamedTuple):
    """A part of a scan with a margin, as slices of the scan; ``inner`` is the part without its margin, as slices of the part."""

    outer: tuple[slice, slice]
    inner: tuple[slice, slice]

    @property
    def core(self) -> tuple[slice, slice]:
        """The part without its margin, as slices of the scan."""
        y, x = (slice(o.start + i.start, o.start + i.stop) for o, i in zip(self.outer, self.inner, strict=True))
        return y, x


def _tiles(ny: int, nx: int) -> dict[str, _Tile]:
    """Tiles that cover a scan, by name."""

    def spans(n: int) -> list[tuple[slice, slice]]:
        edges = np.linspace(0, n, max(1, round(n / OPTIONS.side)) + 1).astype(int)
        spans = []
        for low, high in itertools.pairwise(edges.tolist()):
            outer = slice(max(0, low - OPTIONS.margin), min(n, high + OPTIONS.margin))
            spans.append((outer, slice(low - outer.start, high - outer.start)))
        return spans

    return {f"tile_{j}_{i}": _Tile((y, x), (v, u)) for j, (y, v) in enumerate(spans(ny)) for i, (x, u) in enumerate(spans(nx))}


def _numbered_on(number: np.ndarray, tiles: Iterable[tuple[slice, ...]]) -> np.ndarray:
    """Numbers (ny, nx, 3) that begin at 0 in every tile, -1 for none, made to go on from tile to tile."""
    result, first = np.full_like(number, -1), 0
    for tile in tiles:
        here = number[tile]
        result[tile] = np.where(here >= 0, here + first, -1)
        first = max(first, int(result[tile].max()) + 1)
    return result
