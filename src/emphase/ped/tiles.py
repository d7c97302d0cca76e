"""TODO."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np


class _Tile(NamedTuple):
    """A part of a scan with a margin, as slices of the scan; ``inner`` is what of it is its own, as slices of the part."""

    outer: tuple[slice, slice]
    inner: tuple[slice, slice]

    @property
    def own(self) -> tuple[slice, slice]:
        """What is its own, as slices of the scan."""
        y, x = (slice(o.start + i.start, o.start + i.stop) for o, i in zip(self.outer, self.inner, strict=True))
        return y, x


_TILE, _TILE_MARGIN = 96, 4  # patterns a side, in which overlap is sought at once


def _tiles(ny: int, nx: int) -> dict[str, _Tile]:
    """Tiles that cover a scan, by name."""

    def spans(n: int) -> list[tuple[slice, slice]]:
        edges = np.linspace(0, n, max(1, round(n / _TILE)) + 1).astype(int)
        spans = []
        for low, high in itertools.pairwise(edges.tolist()):
            outer = slice(max(0, low - _TILE_MARGIN), min(n, high + _TILE_MARGIN))
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
