"""A small Llama 3.2 Vision, and texts with pictures in every place where a picture can be."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from conformance.running import pages_for, prompt
from herd.backends.base import Placed, Span
from herd.images.pixels import Picture
from herd.models.architecture import PictureShape
from herd.models.llama3_vision import Llama3VisionConfig, picture_positions
from herd.models.rope import Llama3, Rope
from tiny import tiny_llama3_vision

CFG = tiny_llama3_vision(rope=Rope(500000.0, 32, Llama3(8.0, 1.0, 4.0, 128)))
GRIDS = [(1, 1), (1, 2), (1, 3), (1, 4), (2, 1), (2, 2), (3, 1), (4, 1)]
SEES = CFG.picture_id


def picture(grid: tuple[int, int], seed: int = 0, cfg: Llama3VisionConfig = CFG) -> Picture:
    """Random pixels; the digest tells pictures apart."""
    rows, columns = grid
    side = cfg.vision.tile
    pixels = np.random.default_rng([11, seed, rows, columns]).standard_normal((rows * columns, 3, side, side)).astype(np.float32)
    return Picture(pixels, rows, columns, bytes([seed, rows, columns]) * 8)


def placed(tokens: Sequence[int], pictures: Sequence[Picture], cfg: Llama3VisionConfig = CFG) -> tuple[Placed, ...]:
    shapes = [PictureShape(*each.pixels.shape[:1], *each.pixels.shape[2:], each.rows, each.columns) for each in pictures]
    return tuple(Placed(each, at) for each, at in zip(pictures, picture_positions(cfg, tokens, shapes), strict=True))


def text(length: int, seed: int = 0) -> list[int]:
    """Random tokens, none of which stands for a picture."""
    return [token if token not in (SEES, *CFG.picture_aliases) else 5 for token in prompt(CFG, length, seed)]


TEXTS: dict[str, tuple[list[int], list[Picture]]] = {
    "a picture first": ([SEES, *text(20)], [picture((1, 1))]),
    "text before the picture": ([*text(9), SEES, *text(20, 1)], [picture((2, 2))]),
    "two pictures with text between": ([SEES, *text(7), SEES, *text(9, 1)], [picture((1, 2)), picture((3, 1), 1)]),
    "two pictures in a row": ([*text(3), SEES, SEES, *text(12)], [picture((1, 4)), picture((1, 1), 1)]),
    "a run, text, a run": ([1, SEES, SEES, *text(5), SEES, SEES, SEES, *text(6)], [picture(GRIDS[i], i) for i in (0, 3, 4, 5, 6)]),
    "a picture at the end": ([*text(8), SEES], [picture((4, 1))]),
    "the other number of the picture token": ([CFG.picture_aliases[0], *text(12)], [picture((1, 3))]),
    "the other rows of the embedding": ([SEES, *range(SEES + 1, SEES + 8), *text(6)], [picture((2, 1))]),
    "no picture": (text(25), []),
}


def span_of(name: str, start: int = 0, stop: int | None = None, first_page: int = 0) -> Span:
    """A stretch of one of the texts, with all of its pictures, all logits wanted."""
    tokens, pictures = TEXTS[name]
    piece = tokens[start:stop]
    return Span(start, piece, pages_for(len(tokens), first_page), len(piece), pictures=placed(tokens, pictures))


def difference(ours: NDArray[Any], exact: NDArray[Any]) -> float:
    assert ours.shape == exact.shape and exact.std() > 0.5, "logits that hardly differ prove nothing"
    return float(abs(ours - exact).max())
