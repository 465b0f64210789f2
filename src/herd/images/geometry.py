"""How a picture is cut, in numbers only: which canvas of tiles, how large the picture becomes on it, how many tokens stand for it.

Three releases, three ways:

  mllama (Llama 3.2 Vision)   at most 4 square tiles in one of 8 grids; the picture keeps its shape, the rest of the canvas is padding
  llama4                      the same with at most 16 tiles in one of 50 grids; if more than one, a further tile shows the whole picture
  muse_glimmer                no tiles: the picture is stretched to the nearest grid of 28 x 28 pixel cells, one token each

A grid is always `(rows, columns)` and a size always `(width, height)` in pixels. Sizes are of a picture with at least one
pixel. The arithmetic is that of the published preprocessing, including where it rounds to 32 bits.
"""

from __future__ import annotations

import itertools
import math
import struct
from functools import cache

from herd.errors import UsageError

Grid = tuple[int, int]
Size = tuple[int, int]

MLLAMA_TILE, MLLAMA_MAX_TILES = 560, 4
LLAMA4_TILE, LLAMA4_MAX_TILES = 336, 16
LLAMA4_TILE_TOKENS = 144
"""A tile is 24 x 24 patches of 14 pixels, and four patches become one token."""
MUSE_GLIMMER_CELL, MUSE_GLIMMER_MAX_TOKENS = 28, 4096
"""A token stands for 2 x 2 patches of 14 pixels."""
MUSE_GLIMMER_FRAME_TOKENS = 144
"""Of one frame of a video."""


@cache
def mllama_canvases(max_tiles: int = MLLAMA_MAX_TILES) -> tuple[Grid, ...]:
    """The grids of at most `max_tiles` tiles, in the order that gives the aspect-ratio ids of the checkpoints."""
    _check_positive(max_tiles=max_tiles)
    return tuple((rows, columns) for rows in range(1, max_tiles + 1) for columns in range(1, max_tiles // rows + 1))


def mllama_grid(width: int, height: int, tile: int = MLLAMA_TILE, max_tiles: int = MLLAMA_MAX_TILES) -> Grid:
    """The grid of tiles that Llama 3.2 Vision cuts a picture into."""
    return _best_canvas(width, height, tile, max_tiles)


def mllama_size(width: int, height: int, tile: int = MLLAMA_TILE, max_tiles: int = MLLAMA_MAX_TILES) -> Size:
    """The picture's size on its canvas: enlarged to at most one tile, never larger than the canvas, its shape kept."""
    rows, columns = mllama_grid(width, height, tile, max_tiles)
    box_width, box_height = min(max(width, tile), columns * tile), min(max(height, tile), rows * tile)
    across, down = box_width / width, box_height / height
    if across < down:
        return box_width, min(math.floor(height * across) or 1, box_height)
    return min(math.floor(width * down) or 1, box_width), box_height


def mllama_ratio_id(rows: int, columns: int, max_tiles: int = MLLAMA_MAX_TILES) -> int:
    """The number of a grid in the checkpoints' tables: 1 for (1, 1); 0 stands for "no picture"."""
    return mllama_canvases(max_tiles).index((rows, columns)) + 1


def llama4_grid(width: int, height: int, max_tiles: int = LLAMA4_MAX_TILES, tile: int = LLAMA4_TILE) -> Grid:
    """The grid of tiles that Llama 4 cuts a picture into; the tile with the whole picture is not counted."""
    return _best_canvas(width, height, tile, max_tiles)


def llama4_size(width: int, height: int, max_tiles: int = LLAMA4_MAX_TILES, tile: int = LLAMA4_TILE) -> Size:
    """The picture's size on its canvas: enlarged to at most one tile, never larger than the canvas, its shape kept.

    Where the canvas is the limit of a side, the published code computes that side's scale in 32 bits.
    """
    rows, columns = llama4_grid(width, height, max_tiles, tile)
    box_width, box_height = min(max(width, tile), columns * tile), min(max(height, tile), rows * tile)
    round_across = _single if columns * tile < max(width, tile) else float
    round_down = _single if rows * tile < max(height, tile) else float
    round_both = float if round_across is float and round_down is float else _single
    across, down = round_across(box_width / width), round_down(box_height / height)
    if round_both(across) < round_both(down):
        return box_width, max(min(math.floor(round_across(height * across)), box_height), 1)
    return max(min(math.floor(round_down(width * down)), box_width), 1), box_height


def llama4_token_count(rows: int, columns: int, tile_tokens: int = LLAMA4_TILE_TOKENS) -> int:
    """All tokens of one picture: patches of its tiles and of the whole view, separators, the mark of the whole view, start and end."""
    tiles = rows * columns
    return tile_tokens + 3 if tiles == 1 else tile_tokens * (tiles + 1) + rows * (columns - 1) + rows + 3


def muse_glimmer_grid(width: int, height: int, max_tokens: int = MUSE_GLIMMER_MAX_TOKENS, cell: int = MUSE_GLIMMER_CELL) -> Grid:
    """The grid of cells nearest to the picture's shape, one token each; the picture is stretched to it.

    Between grids of equally near shape the published code takes the first of a Python set, and so does this.
    """
    _check_positive(width=width, height=height, max_tokens=max_tokens, cell=cell)
    rows, columns = height / cell, width / cell
    if rows * columns > max_tokens:
        ratio = columns / rows
        rows = (max_tokens / ratio) ** 0.5
        columns = rows * ratio
    candidates = set(itertools.product([math.floor(rows), math.ceil(rows)], [math.floor(columns), math.ceil(columns)]))
    fitting = [(r, c) for r, c in candidates if r >= 1 and c >= 1 and r * c <= max_tokens]
    if not fitting:
        fitting = [(max(1, round(rows)), max(1, round(columns)))]
    return min(fitting, key=lambda grid: abs(grid[0] / grid[1] - height / width))


def _best_canvas(width: int, height: int, tile: int, max_tiles: int) -> Grid:
    """The smallest grid that holds the picture enlarged as little as possible; if none holds it, the one that shrinks it least.

    A grid's scale is min(columns * tile / width, rows * tile / height); scales are compared as fractions, without rounding.
    """
    _check_positive(width=width, height=height, tile=tile, max_tiles=max_tiles)
    scaled = {}
    for rows, columns in mllama_canvases(max_tiles):
        across, down = columns * tile * height, rows * tile * width  # both times width * height, so that they are whole
        scaled[rows, columns] = min(across, down)
    holding = [scale for scale in scaled.values() if scale >= width * height]
    chosen = min(holding) if holding else max(scaled.values())
    return min((grid for grid, scale in scaled.items() if scale == chosen), key=lambda grid: grid[0] * grid[1])


def _single(value: float) -> float:
    """A number rounded to 32 bits."""
    rounded: float = struct.unpack("<f", struct.pack("<f", value))[0]
    return rounded


def _check_positive(**values: int) -> None:
    for name, value in values.items():
        if type(value) is not int or value < 1:
            raise UsageError(f"{name} of a picture is {value!r:.40}; expected a whole number of at least 1.")
