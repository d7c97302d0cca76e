"""The patterns of a scan as pictures in a page, within a budget of bytes: to look at, not to measure.

Patterns are binned, drawn as the square root of their counts, and put 64 to a sheet (a sprite), a WebP. The size of a pattern at each
binning is estimated from 64 of them over the scan; of the choices that fit the budget the best is taken, all patterns before fine ones.
"""

from __future__ import annotations

import base64
import functools
import io
import itertools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from emphase.ped.scan import Calibration, patterns_at, read_box, scan_boxes
from helpers import RecordingError


@dataclass(frozen=True)
class SpriteOptions:
    """Tuning numbers of the sprites."""

    across: int = 8  # patterns in a row of a sheet, and rows in it
    most_side_px: int = 160  # of a pattern; larger ones are binned
    least_side_px: int = 48  # of a pattern; it is binned no further
    quality: int = 45  # of WebP, 0 to 100
    effort: int = 3  # of WebP's search, 0 (fast) to 6
    white_percentile: float = 99.8  # of a pattern, which is white: the direct beam saturates
    margin: float = 0.95  # of the budget that an estimate may take


OPTIONS = SpriteOptions()


def _kept_patterns(patterns: Any, every: int) -> Iterator[np.ndarray]:
    """Every n-th pattern of every n-th line of a scan, in blocks (m, ky, kx) of whole lines; the scan itself is read box by box."""
    ky, kx = patterns.shape[2:]
    for _, boxes in itertools.groupby(scan_boxes(patterns), key=lambda box: box[0].start):
        pieces = []
        for rows, cols in boxes:
            first, left = (-part.start % every for part in (rows, cols))
            box = slice(rows.start + first, rows.stop, every), slice(cols.start + left, cols.stop, every)
            shape = [len(range(part.start, part.stop, every)) for part in box]
            pieces.append(read_box(patterns, box).reshape(*shape, ky, kx) if all(shape) else np.empty((*shape, ky, kx), patterns.dtype))
        block = np.concatenate(pieces, axis=1)
        if block.size:
            yield block.reshape(-1, ky, kx)


def _shown_patterns(block: np.ndarray, binning: int, mask: np.ndarray, offset: float) -> np.ndarray:
    """Patterns (m, ky, kx) as the page shows them, (m, ky // binning, kx // binning) of 8 bits: binned, square root, bright is 255."""
    from skimage.measure import block_reduce

    counts = np.where(mask, 0, np.maximum(block.astype(np.float32) - offset, 0))
    tall, wide = (n // binning * binning for n in block.shape[1:])
    amplitude = np.sqrt(block_reduce(counts[:, :tall, :wide], (1, binning, binning), np.mean))
    brightest = np.maximum(np.percentile(amplitude.reshape(len(block), -1), OPTIONS.white_percentile, axis=1), 1e-6)
    return np.clip(255 * amplitude / brightest[:, None, None], 0, 255).astype(np.uint8)


def _sprite(tiles: np.ndarray) -> str:
    """Up to 64 patterns (n, h, w) side by side in rows, as a WebP in base64."""
    from PIL import Image

    n, tall, wide = tiles.shape
    rows = math.ceil(n / OPTIONS.across)
    sheet = np.zeros((rows * OPTIONS.across, tall, wide), np.uint8)
    sheet[:n] = tiles
    sheet = sheet.reshape(rows, OPTIONS.across, tall, wide).swapaxes(1, 2).reshape(rows * tall, OPTIONS.across * wide)
    buffer = io.BytesIO()
    Image.fromarray(sheet).save(buffer, "WEBP", quality=OPTIONS.quality, method=OPTIONS.effort)
    return base64.b64encode(buffer.getvalue()).decode()


def _sprites(patterns: Any, every: int, show: Callable[[np.ndarray], np.ndarray], most_bytes: float) -> list[str] | None:
    """The kept patterns of a scan in sprites of 64; None where they would take more than ``most_bytes``."""
    sprites, waiting, count, sheet = [], [], 0, OPTIONS.across**2
    for block in _kept_patterns(patterns, every):
        waiting.append(show(block))
        count += len(block)
        if count < sheet:
            continue
        tiles = np.concatenate(waiting)
        full = len(tiles) // sheet * sheet
        sprites += [_sprite(tiles[i : i + sheet]) for i in range(0, full, sheet)]
        waiting, count = [tiles[full:]], len(tiles) - full
        if sum(map(len, sprites)) > most_bytes:
            return None
    if count:
        sprites.append(_sprite(np.concatenate(waiting)))
    return sprites if sum(map(len, sprites)) <= most_bytes else None


def _pattern_choices(shape: tuple[int, ...], bytes_of: Callable[[int], float], most_bytes: float) -> Iterator[tuple[int, int]]:
    """Choices (every n-th pattern, binning) that keep a scan's patterns in a budget, the best first: all patterns, then fine ones.

    ``bytes_of`` gives the bytes of a pattern at a binning.
    """
    ny, nx, ky, kx = shape
    side = max(ky, kx)
    least = math.ceil(side / OPTIONS.most_side_px)
    binnings = list(range(least, side // OPTIONS.least_side_px + 1)) or [least]
    for every in range(1, max(ny, nx) + 1):
        kept = math.ceil(ny / every) * math.ceil(nx / every)
        yield from ((every, b) for b in binnings if kept * bytes_of(b) < OPTIONS.margin * most_bytes)


def _packed_patterns(patterns: Any, calibration: Calibration, most_bytes: float) -> tuple[dict, int, int]:
    """Sprites of a scan's patterns within a budget of bytes, every how many-th pattern is kept, and the binning in px."""
    ny, nx = patterns.shape[:2]
    show = lambda block, binning: _shown_patterns(block, binning, calibration.mask, calibration.offset)
    lines = np.unique(np.linspace(0, ny - 1, 8).astype(int))
    columns = np.unique(np.linspace(0, nx - 1, 64 // len(lines)).astype(int))
    tried = patterns_at(patterns, np.add.outer(nx * lines, columns).ravel())
    bytes_of = functools.cache(lambda binning: len(_sprite(show(tried, binning))) / len(tried))
    for every, binning in _pattern_choices(patterns.shape, bytes_of, most_bytes):
        sprites = _sprites(patterns, every, functools.partial(show, binning=binning), most_bytes)
        if sprites is not None:
            side = [n // binning for n in patterns.shape[2:]]
            packed = {"every": every, "across": math.ceil(nx / every), "down": math.ceil(ny / every), "side": side}
            packed |= {"tiles": OPTIONS.across**2, "in_row": OPTIONS.across}
            return packed | {"sprites": sprites, "scale_invA_per_px": calibration.scale_invA_per_px * binning, "spots": 0}, every, binning
    raise RecordingError(f"a pattern of {patterns.shape[2]} x {patterns.shape[3]} pixels is too large for the page")
