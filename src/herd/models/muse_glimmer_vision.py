"""Muse-Glimmer's eyes: a vision transformer over patches of any picture size, most layers attending inside windows.

    pixels -> patches (two frames each) -> linear + resampled positions -> norm -> [ x + attention(norm(x)) ; x + mlp(norm(x)) ] * L
           -> norm -> each 2 x 2 patches as one row -> adapter -> projection -> norm -> rows_ID

Rotary positions have two axes: the first half of a head's pairs turns with the column, the second with the row, both counted
from one. Windows are squares of `grid` patches, the last ones smaller; a picture's frames never see each other.

Source: `transformers` 5.23, `models/muse_glimmer/modeling_muse_glimmer.py` and `vision_utils.py`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from herd.models.encoder_blocks import (
    EncoderLayerWeights,
    LayerNormWeights,
    encoder_layer,
    layer_tensors,
    layer_weights,
    norm,
    norm_tensors,
    norm_weights,
)
from herd.models.ops import PictureStep, Tensor
from herd.models.weights import Kind, Leaf, Matrix, TensorSpec

CHANNELS = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class MuseGlimmerVisionConfig:
    """`grid` is the side of the learned table of positions and of a window, in patches; `is_local` says of each layer whether
    it attends inside windows."""

    width: int
    num_heads: int
    mlp_width: int
    is_local: tuple[bool, ...]
    patch: int
    frames: int
    grid: int
    merge: int
    norm_eps: float
    rope_theta: float
    projector_width: int

    @property
    def folded_width(self) -> int:
        """Columns of a row once `merge` x `merge` patches are one."""
        return self.width * self.merge**2


@dataclass(frozen=True, slots=True)
class VisionWeights:
    patch: Matrix
    positions: Matrix
    norm_before: LayerNormWeights
    layers: tuple[EncoderLayerWeights, ...]
    norm_after: LayerNormWeights
    adapter_in: Matrix
    adapter_out: Matrix
    projection: Matrix


def encode(w: VisionWeights, cfg: MuseGlimmerVisionConfig, text_norm_eps: float, step: PictureStep) -> Tensor:
    """One picture, or the frames of a video -> rows_ID, one per cell of each pair of frames, row by row."""
    ops = step.ops
    height, width = step.height // cfg.patch, step.width // cfg.patch
    times = max(1, step.tiles // cfg.frames)
    x_ID = ops.linear(ops.patches(step.pixels, cfg.patch, cfg.frames), w.patch)
    rows, shares = position_shares(height, width, cfg.grid)
    x_ID = ops.add(x_ID, ops.mix(w.positions, rows * times, shares * times))
    x_ID = norm(x_ID, w.norm_before, ops, cfg.norm_eps)
    order, windows = window_order(times, height, width, cfg.grid)
    x_ID = ops.rows(x_ID, order)
    angles = patch_angles(height, width, cfg) * times
    rotary_IH = ops.angles([angles[at] for at in order])
    whole = [height * width] * times
    for layer, is_local in zip(w.layers, cfg.is_local, strict=True):
        x_ID = encoder_layer(x_ID, layer, rotary_IH, cfg.num_heads, cfg.width // cfg.num_heads, windows if is_local else whole, ops)
    back = sorted(range(len(order)), key=order.__getitem__)
    x_ID = norm(ops.rows(x_ID, back), w.norm_after, ops, cfg.norm_eps)
    x_ID = ops.fold(ops.rows(x_ID, cell_order(times, height, width, cfg.merge)), cfg.merge**2, by_column=True)
    x_ID = ops.gelu(ops.linear(ops.gelu(ops.linear(x_ID, w.adapter_in)), w.adapter_out))
    return ops.rms_norm(ops.linear(x_ID, w.projection), None, text_norm_eps)


def position_shares(height: int, width: int, side: int) -> tuple[list[list[int]], list[list[float]]]:
    """For each patch the four entries of the `side` x `side` table around its place and how much of each it takes: bilinear
    between the middles of cells, nothing from outside the table."""
    across = [_shares(index, width, side) for index in range(width)]
    rows, shares = [], []
    for down in (_shares(index, height, side) for index in range(height)):
        for right in across:
            rows.append([y * side + x for y, _ in down for x, _ in right])
            shares.append([a * b for _, a in down for _, b in right])
    return rows, shares


def _shares(index: int, size: int, side: int) -> list[tuple[int, float]]:
    """Entry and share of the two neighbours of position `index` of `size` on an axis of `side` entries."""
    at = (index + 0.5) * side / size - 0.5
    low = math.floor(at)
    pair = [(low, 1 - (at - low)), (low + 1, at - low)]
    return [(min(max(entry, 0), side - 1), share if 0 <= entry < side else 0.0) for entry, share in pair]


def window_order(times: int, height: int, width: int, side: int) -> tuple[list[int], list[int]]:
    """The patches of all frames, window by window, and how many are in each window."""
    order: list[int] = []
    lengths: list[int] = []
    for frame in range(times):
        for top in range(0, height, side):
            for left in range(0, width, side):
                rows, columns = range(top, min(top + side, height)), range(left, min(left + side, width))
                order += [(frame * height + y) * width + x for y in rows for x in columns]
                lengths.append(len(rows) * len(columns))
    return order, lengths


def patch_angles(height: int, width: int, cfg: MuseGlimmerVisionConfig) -> list[list[float]]:
    """Angles of each patch of a frame [patches, H / 2]: those of its column, then those of its row."""
    half = cfg.width // cfg.num_heads // 2
    frequencies = [cfg.rope_theta ** (-2.0 * i / half) for i in range(half // 2)]
    return [[place * each for place in (x + 1, y + 1) for each in frequencies] for y in range(height) for x in range(width)]


def cell_order(times: int, height: int, width: int, merge: int) -> list[int]:
    """The patches of all frames, cell by cell: `merge` x `merge` neighbours after each other."""
    return [
        (frame * height + top + y) * width + left + x
        for frame in range(times)
        for top in range(0, height, merge)
        for left in range(0, width, merge)
        for y in range(merge)
        for x in range(merge)
    ]


def tensors(cfg: MuseGlimmerVisionConfig, text_width: int) -> Iterator[TensorSpec]:
    """Every weight of the encoder and of what leads from it to the text."""
    width = cfg.width
    yield TensorSpec("vision.patch", (width, cfg.frames * CHANNELS * cfg.patch**2))
    yield TensorSpec("vision.positions", (cfg.grid**2, width), Kind.EMBEDDING)
    yield from norm_tensors("vision.norm_before", width)
    for index in range(len(cfg.is_local)):
        yield from layer_tensors(f"vision.layers.{index}", width, cfg.mlp_width, cfg.num_heads)
    yield from norm_tensors("vision.norm_after", width)
    yield TensorSpec("vision.adapter_in", (cfg.projector_width, cfg.folded_width))
    yield TensorSpec("vision.adapter_out", (cfg.projector_width, cfg.projector_width))
    yield TensorSpec("vision.projection", (text_width, cfg.projector_width))


def weights(cfg: MuseGlimmerVisionConfig, leaf: Leaf) -> VisionWeights:
    """The tree that `encode` reads."""
    return VisionWeights(
        patch=leaf("vision.patch"),
        positions=leaf("vision.positions"),
        norm_before=norm_weights("vision.norm_before", leaf),
        layers=tuple(layer_weights(f"vision.layers.{index}", leaf) for index in range(len(cfg.is_local))),
        norm_after=norm_weights("vision.norm_after", leaf),
        adapter_in=leaf("vision.adapter_in"),
        adapter_out=leaf("vision.adapter_out"),
        projection=leaf("vision.projection"),
    )
