"""The eyes of Llama 4: tiles of a picture -> rows that take the place of its tokens' embeddings.

Each tile goes through the encoder by itself; the class row after its patches gathers what belongs to the whole tile, and is
dropped at the end.

    pixels -> patches -> linear, class row, positions -> norm -> [ x + attention(norm(x)) ; x + ffn(norm(x)) ] * L -> norm
           -> squares of neighbouring patches side by side -> two layers with GELU -> projection to the width of the text

Positions count twice: a learned row for each patch is added, and queries and keys are rotated by column and row.

Source: Meta's `llama_models/llama4/vision/`; Hugging Face's names for the same numbers in `transformers` `modeling_llama4.py`.
Shapes: docs/shapes.md; I counts rows of all tiles, one tile after another.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from herd.errors import UsageError
from herd.models.architecture import PictureShape
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


@dataclass(frozen=True, slots=True, kw_only=True)
class Llama4VisionConfig:
    """The facts of one vision part.

    tile            pixels of a tile's side
    patch           pixels of a patch's side
    merge           patches per side of the square that becomes one row (1 / pixel shuffle ratio)
    adapter_width   of both layers after the merging
    picture_token   the id that stands for one row, `<|patch|>`
    """

    width: int
    num_layers: int
    num_heads: int
    ffn_width: int
    tile: int
    patch: int
    merge: int
    adapter_width: int
    picture_token: int
    rope_theta: float = 10000.0

    @property
    def side(self) -> int:
        """Patches along a side of a tile."""
        return self.tile // self.patch

    @property
    def tile_rows(self) -> int:
        """Rows that one tile becomes."""
        return (self.side // self.merge) ** 2


@dataclass(frozen=True, slots=True)
class VisionWeights:
    patches: Matrix
    class_row: Matrix
    positions: Matrix
    first_norm: LayerNormWeights
    layers: tuple[EncoderLayerWeights, ...]
    last_norm: LayerNormWeights
    adapter_in: Matrix
    adapter_out: Matrix
    projection: Matrix


def encode(w: VisionWeights, cfg: Llama4VisionConfig, step: PictureStep) -> Tensor:
    """One picture's tiles -> [tiles * tile_rows, width of the text]."""
    ops = step.ops
    x_ID = embed(w, cfg, step)
    rotary_IH = ops.angles(angles(cfg) * step.tiles)
    tiles = [cfg.side**2 + 1] * step.tiles
    for layer in w.layers:
        x_ID = encoder_layer(x_ID, layer, rotary_IH, cfg.num_heads, cfg.width // cfg.num_heads, tiles, ops)
    x_ID = norm(x_ID, w.last_norm, ops)
    x_ID = ops.fold(ops.rows(x_ID, neighbours(cfg, step.tiles)), cfg.merge**2)
    x_ID = ops.gelu(ops.linear(ops.gelu(ops.linear(x_ID, w.adapter_in)), w.adapter_out))
    return ops.linear(x_ID, w.projection)


def embed(w: VisionWeights, cfg: Llama4VisionConfig, step: PictureStep) -> Tensor:
    """Pixels -> x_ID: each tile's patches, row by row, then its class row."""
    ops, count = step.ops, cfg.side**2
    patches_ID = ops.linear(ops.patches(step.pixels, cfg.patch), w.patches)
    rows_ID = ops.concat([patches_ID, ops.embed([0], w.class_row)])
    class_row = step.tiles * count
    order = [row for tile in range(step.tiles) for row in (*range(tile * count, (tile + 1) * count), class_row)]
    x_ID = ops.add(ops.rows(rows_ID, order), ops.embed([*range(count + 1)] * step.tiles, w.positions))
    return norm(x_ID, w.first_norm, ops)


def angles(cfg: Llama4VisionConfig) -> list[list[float]]:
    """How far each pair of a head turns, for the rows of one tile: the first half of the pairs by column, the second by row, both
    counted from 1. The class row does not turn."""
    pairs = cfg.width // cfg.num_heads // 4
    frequencies = [cfg.rope_theta ** (-i / pairs) for i in range(pairs)]
    counts = range(1, cfg.side + 1)
    turned = [[count * omega for count in (column, row) for omega in frequencies] for row in counts for column in counts]
    return [*turned, [0.0] * (2 * pairs)]


def neighbours(cfg: Llama4VisionConfig, tiles: int) -> list[int]:
    """The rows of the patches, square of neighbours after square, each row by row; without the class rows."""
    steps, inside = range(0, cfg.side, cfg.merge), range(cfg.merge)
    square = [(y + dy) * cfg.side + x + dx for y in steps for x in steps for dy in inside for dx in inside]
    return [tile * (cfg.side**2 + 1) + row for tile in range(tiles) for row in square]


def tensors(cfg: Llama4VisionConfig, text_width: int) -> Iterator[TensorSpec]:
    """Every weight of the vision part, once."""
    yield TensorSpec("vision.patches", (cfg.width, 3 * cfg.patch**2))
    yield TensorSpec("vision.class", (1, cfg.width), Kind.EMBEDDING)
    yield TensorSpec("vision.positions", (cfg.side**2 + 1, cfg.width), Kind.EMBEDDING)
    yield from norm_tensors("vision.first_norm", cfg.width)
    for index in range(cfg.num_layers):
        yield from layer_tensors(f"vision.layers.{index}", cfg.width, cfg.ffn_width)
    yield from norm_tensors("vision.last_norm", cfg.width)
    yield TensorSpec("vision.adapter.in", (cfg.adapter_width, cfg.width * cfg.merge**2))
    yield TensorSpec("vision.adapter.out", (cfg.adapter_width, cfg.adapter_width))
    yield TensorSpec("vision.projection", (text_width, cfg.adapter_width))


def weights(cfg: Llama4VisionConfig, leaf: Leaf) -> VisionWeights:
    """The tree that `encode` reads."""
    return VisionWeights(
        patches=leaf("vision.patches"),
        class_row=leaf("vision.class"),
        positions=leaf("vision.positions"),
        first_norm=norm_weights("vision.first_norm", leaf),
        layers=tuple(layer_weights(f"vision.layers.{index}", leaf) for index in range(cfg.num_layers)),
        last_norm=norm_weights("vision.last_norm", leaf),
        adapter_in=leaf("vision.adapter.in"),
        adapter_out=leaf("vision.adapter.out"),
        projection=leaf("vision.projection"),
    )


def picture_positions(cfg: Llama4VisionConfig, tokens: Sequence[int], shapes: Sequence[PictureShape]) -> list[tuple[int, ...]]:
    """For each picture, in order, the positions of the picture tokens that stand for it: `tile_rows` for each of its tiles, the
    small whole picture included. Without pictures a picture token is a token like others. `UsageError` when they do not fit."""
    for number, shape in enumerate(shapes):
        if (shape.height, shape.width) != (cfg.tile, cfg.tile):
            raise UsageError(
                f"Picture {number} was cut into tiles of {shape.width} x {shape.height} pixels; this model's are {cfg.tile} x {cfg.tile}."
            )
    if not shapes:
        return []
    positions = [position for position, token in enumerate(tokens) if token == cfg.picture_token]
    counts = [shape.tiles * cfg.tile_rows for shape in shapes]
    if len(positions) != sum(counts):
        wanted = " + ".join(map(str, counts))
        raise UsageError(
            f"There are {len(positions)} picture tokens (id {cfg.picture_token}) among the ids; {len(shapes)} pictures need {wanted}: "
            f"{cfg.tile_rows} for each tile. Let the model's chat format place them, or give the pictures in the order of their tokens."
        )
    ends = [sum(counts[: index + 1]) for index in range(len(counts))]
    return [tuple(positions[end - count : end]) for end, count in zip(ends, counts, strict=True)]
