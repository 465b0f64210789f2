"""What seeing takes: the largest picture as rows of its encoder, and what a running model keeps of it."""

from __future__ import annotations

from typing import Any

from herd.dtypes import F32
from herd.models.architecture import Config, architecture_of, seeing
from herd.records import dataclass

LLAMA4_TILES = 17
"""Sixteen tiles and the whole picture, small."""
MUSE_CELLS = 4096
"""Cells of a picture; the sums take so many where the model sets no limit of its own."""


@dataclass(frozen=True, slots=True)
class PictureWork:
    """The largest picture of a model: rows in the encoder, tokens that it stands for, bytes kept of it while a conversation shows
    it, and bytes that encoding it needs for a moment (float32)."""

    rows: int
    tokens: int
    kept_bytes: int
    encoding_bytes: int


def largest_picture(cfg: Config) -> PictureWork | None:
    """None for a model that takes no pictures."""
    if seeing(cfg) is None:
        return None
    vision: Any = getattr(cfg, "vision", None)
    crossing = len(getattr(cfg, "crossing", ()))
    if crossing:
        rows = vision.max_tiles * vision.filled_rows
        shape = architecture_of(cfg).caches(cfg)[0]
        kept = crossing * 2 * vision.max_tiles * vision.tile_rows * shape.num_kv_heads * shape.head_width * F32.block_bytes
        return PictureWork(rows, 1, kept, _encoding(rows, vision.width, vision.ffn_width, vision.num_heads, rows))
    if hasattr(vision, "tile_rows"):
        tile = (vision.tile // vision.patch) ** 2 + 1
        rows, tokens = LLAMA4_TILES * tile, LLAMA4_TILES * vision.tile_rows
        return PictureWork(
            rows, tokens, tokens * cfg.width * F32.block_bytes, _encoding(rows, vision.width, vision.ffn_width, vision.num_heads, tile)
        )
    tokens = MUSE_CELLS
    rows = tokens * vision.merge**2
    return PictureWork(
        rows, tokens, tokens * cfg.width * F32.block_bytes, _encoding(rows, vision.width, vision.mlp_width, vision.num_heads, rows)
    )


def _encoding(rows: int, width: int, ffn_width: int, num_heads: int, seen: int) -> int:
    """Residual stream and its norm; then queries, keys, values and what was read, or the widened rows. Scores of one head of one
    block of rows at a time: `seen` columns for each row of a block of 64."""
    return F32.block_bytes * (rows * (2 * width + max(4 * width, 2 * ffn_width)) + num_heads * 64 * seen)
