"""The picture encoder of Llama 3.2 Vision: a vision transformer over all tiles of a picture at once.

Up to `max_tiles` tiles of a grid, each a class row and its patches. Three tables say where a patch is: `positions` inside any
tile, `tile_positions` inside the tile at one place of the grid, and one row for each place of the grid before and after the first
stack of layers. Gates (tanh) weigh them. A second stack of layers has gated branches.

    tiles -> patches -> [ + places ] -> norm -> layers -> norm -> [ + places ] -> gated layers -> final
    features = final and the inputs of the `kept` layers, side by side -> project -> rows_ID of the used tiles

Two things are unusual and reproduced, because the weights were trained with them: unused tiles (black, without places of the
grid) and rows that fill a tile up to a multiple of eight take part; they do not see each other, but the rows of the picture
see them. And the kept values are joined value by value: column 5 c + k of their part is column c of the k-th of five.

Source: Meta's `llama_models/llama3/multimodal/model.py` and `encoder_utils.py`. Shapes: docs/shapes.md; `I` are rows of all tiles.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from herd.models.blocks import vector
from herd.models.encoder_blocks import NORM_EPS, norm_tensors
from herd.models.ops import PictureOps, PictureStep, Tensor
from herd.models.weights import Kind, Leaf, Matrix, TensorSpec, Vector

CHANNELS = 3
ROWS_MULTIPLE = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class EncoderConfig:
    """The numbers of one encoder. `tile` and `patch` are sides in pixels; `kept`: the layers whose inputs are features too."""

    tile: int
    patch: int
    max_tiles: int
    width: int
    num_layers: int
    num_global_layers: int
    num_heads: int
    ffn_width: int
    kept: tuple[int, ...]

    @property
    def head_width(self) -> int:
        return self.width // self.num_heads

    @property
    def num_patches(self) -> int:
        """Patches of one tile."""
        return (self.tile // self.patch) ** 2

    @property
    def tile_rows(self) -> int:
        """Rows of one tile: the class row and its patches."""
        return self.num_patches + 1

    @property
    def filled_rows(self) -> int:
        """The same, filled up to a multiple of eight."""
        return -(-self.tile_rows // ROWS_MULTIPLE) * ROWS_MULTIPLE

    @property
    def num_features(self) -> int:
        """Columns of what is projected."""
        return self.width * (1 + len(self.kept))


@dataclass(frozen=True, slots=True)
class EncoderLayerWeights:
    attention_norm: Vector
    attention_norm_bias: Vector
    q: Matrix
    k: Matrix
    v: Matrix
    out: Matrix
    ffn_norm: Vector
    ffn_norm_bias: Vector
    up: Matrix
    up_bias: Vector
    down: Matrix
    down_bias: Vector
    attention_gate: Vector | None
    ffn_gate: Vector | None


@dataclass(frozen=True, slots=True)
class EncoderWeights:
    """`tile_positions` has `tile_rows` rows for each place of a `max_tiles` x `max_tiles` grid, `before` and `after` one."""

    patches: Matrix
    class_row: Matrix
    positions: Matrix
    tile_positions: Matrix
    positions_gate: Vector
    before: Matrix
    before_gate: Vector
    after: Matrix
    after_gate: Vector
    before_norm: Vector
    before_norm_bias: Vector
    after_norm: Vector
    after_norm_bias: Vector
    layers: tuple[EncoderLayerWeights, ...]
    global_layers: tuple[EncoderLayerWeights, ...]
    project: Matrix
    project_bias: Vector


def encode_tiles(w: EncoderWeights, cfg: EncoderConfig, step: PictureStep) -> Tensor:
    """One picture -> rows_ID [tiles * tile_rows, D], tile by tile, the class row of each first."""
    ops = step.ops
    places = [row * cfg.max_tiles + column for row in range(step.rows) for column in range(step.columns)]
    unused = [tile >= len(places) for tile in range(cfg.max_tiles)]
    padding = [is_unused or row >= cfg.tile_rows for is_unused in unused for row in range(cfg.filled_rows)]
    nothing_1W = ops.mix(w.class_row, [[0]], [[0.0]])
    x_IW = _placed_tiles(w, cfg, step, places, nothing_1W)
    inputs = []
    for layer in w.layers:
        inputs.append(x_IW)
        x_IW = _encoder_layer(x_IW, layer, cfg, ops, padding)
    x_IW = ops.layer_norm(x_IW, w.after_norm, w.after_norm_bias, NORM_EPS)
    rows = [min(tile, len(places)) for tile in range(cfg.max_tiles) for _ in range(cfg.filled_rows)]
    after_IW = ops.rows(ops.concat([ops.embed(places, w.after), nothing_1W]), rows)
    x_IW = ops.gated_add(x_IW, after_IW, w.after_gate)
    for layer in w.global_layers:
        x_IW = _encoder_layer(x_IW, layer, cfg, ops, padding)
    used = [tile * cfg.filled_rows + row for tile in range(len(places)) for row in range(cfg.tile_rows)]
    final_IW, kept = ops.rows(x_IW, used), [ops.rows(inputs[layer], used) for layer in cfg.kept]
    return ops.linear(ops.join([final_IW, _side_by_side(kept, len(used), ops)]), w.project, w.project_bias)


def _placed_tiles(w: EncoderWeights, cfg: EncoderConfig, step: PictureStep, places: list[int], nothing_1W: Tensor) -> Tensor:
    """Pixels -> x_IW of all tiles, used or not: patches with everything added that says where they are, normalised, filled up."""
    ops, count, used = step.ops, cfg.num_patches, len(places)
    x_IW = ops.linear(ops.patches(step.pixels, cfg.patch), w.patches)
    before_IW = ops.embed([place for place in places for _ in range(count)], w.before)
    x_IW = ops.gated_add(x_IW, before_IW, w.before_gate)
    class_row, black_patch = used * count, used * count + 1
    order = [row for tile in range(used) for row in (class_row, *range(tile * count, (tile + 1) * count))]
    order += [class_row, *[black_patch] * count] * (cfg.max_tiles - used)
    x_IW = ops.rows(ops.concat([x_IW, ops.embed([0], w.class_row), nothing_1W]), order)
    x_IW = ops.add(x_IW, _positions(w, cfg, ops, places, nothing_1W))
    x_IW = ops.layer_norm(x_IW, w.before_norm, w.before_norm_bias, NORM_EPS)
    nothing = cfg.max_tiles * cfg.tile_rows
    filling = [nothing] * (cfg.filled_rows - cfg.tile_rows)
    order = [row for tile in range(cfg.max_tiles) for row in (*range(tile * cfg.tile_rows, (tile + 1) * cfg.tile_rows), *filling)]
    return ops.rows(ops.concat([x_IW, nothing_1W]), order)


def _positions(w: EncoderWeights, cfg: EncoderConfig, ops: PictureOps, places: list[int], nothing_1W: Tensor) -> Tensor:
    """(1 - tanh(gate)) * positions in a tile + tanh(gate) * positions in this tile of the grid, which unused tiles lack."""
    tile = list(range(cfg.tile_rows))
    subtracted_IW = ops.mix(w.positions, [[row] for row in tile], [[-1.0]] * cfg.tile_rows)
    everywhere_IW = ops.gated_add(ops.embed(tile, w.positions), subtracted_IW, w.positions_gate)
    here_IW = ops.embed([place * cfg.tile_rows + row for place in places for row in tile], w.tile_positions)
    nothing = len(places) * cfg.tile_rows
    order = [*range(nothing), *[nothing] * ((cfg.max_tiles - len(places)) * cfg.tile_rows)]
    here_IW = ops.rows(ops.concat([here_IW, nothing_1W]), order)
    return ops.gated_add(ops.rows(everywhere_IW, tile * cfg.max_tiles), here_IW, w.positions_gate)


def _encoder_layer(x_IW: Tensor, w: EncoderLayerWeights, cfg: EncoderConfig, ops: PictureOps, padding: list[bool]) -> Tensor:
    """x_IW -> x_IW: attention among all rows, then the feed-forward; each branch times tanh of its gate where there is one."""
    normed_IW = ops.layer_norm(x_IW, w.attention_norm, w.attention_norm_bias, NORM_EPS)
    q_INH, k_INH, v_INH = (ops.heads(ops.linear(normed_IW, matrix), cfg.num_heads) for matrix in (w.q, w.k, w.v))
    y_INH = ops.attend(q_INH, k_INH, v_INH, cfg.head_width**-0.5, [len(padding)], padding)
    y_IW = ops.linear(ops.merge_heads(y_INH), w.out)
    x_IW = ops.add(x_IW, y_IW) if w.attention_gate is None else ops.gated_add(x_IW, y_IW, w.attention_gate)
    normed_IW = ops.layer_norm(x_IW, w.ffn_norm, w.ffn_norm_bias, NORM_EPS)
    y_IW = ops.linear(ops.gelu(ops.linear(normed_IW, w.up, w.up_bias)), w.down, w.down_bias)
    return ops.add(x_IW, y_IW) if w.ffn_gate is None else ops.gated_add(x_IW, y_IW, w.ffn_gate)


def _side_by_side(parts: list[Tensor], num_rows: int, ops: PictureOps) -> Tensor:
    """Parts [I, W] -> [I, W * parts]: column 0 of every part, then column 1 of every part, ..."""
    order = [part * num_rows + row for row in range(num_rows) for part in range(len(parts))]
    return ops.fold(ops.rows(ops.concat(parts), order), len(parts), by_column=True)


def encoder_tensors(at: str, cfg: EncoderConfig, width: int) -> Iterator[TensorSpec]:
    """The weights of the encoder under the name `at`; `width` is that of the language model."""
    places = cfg.max_tiles**2
    yield TensorSpec(f"{at}.patches", (cfg.width, CHANNELS * cfg.patch**2))
    yield TensorSpec(f"{at}.class_row", (1, cfg.width), Kind.EMBEDDING)
    yield TensorSpec(f"{at}.positions", (cfg.tile_rows, cfg.width), Kind.EMBEDDING)
    yield TensorSpec(f"{at}.tile_positions", (places * cfg.tile_rows, cfg.width), Kind.EMBEDDING)
    yield TensorSpec(f"{at}.positions_gate", (1,), Kind.GATE)
    for name in ("before", "after"):
        yield TensorSpec(f"{at}.{name}", (places, cfg.width), Kind.EMBEDDING)
        yield TensorSpec(f"{at}.{name}_gate", (1,), Kind.GATE)
        yield from norm_tensors(f"{at}.{name}_norm", cfg.width)
    for index in range(cfg.num_layers):
        yield from _layer_tensors(f"{at}.layers.{index}", cfg, is_gated=False)
    for index in range(cfg.num_global_layers):
        yield from _layer_tensors(f"{at}.global_layers.{index}", cfg, is_gated=True)
    yield TensorSpec(f"{at}.project", (width, cfg.num_features))
    yield TensorSpec(f"{at}.project_bias", (width,), Kind.BIAS)


def _layer_tensors(at: str, cfg: EncoderConfig, *, is_gated: bool) -> Iterator[TensorSpec]:
    yield from norm_tensors(f"{at}.attention_norm", cfg.width)
    for name in ("q", "k", "v", "out"):
        yield TensorSpec(f"{at}.attention.{name}", (cfg.width, cfg.width))
    yield from norm_tensors(f"{at}.ffn_norm", cfg.width)
    yield TensorSpec(f"{at}.ffn.up", (cfg.ffn_width, cfg.width))
    yield TensorSpec(f"{at}.ffn.up_bias", (cfg.ffn_width,), Kind.BIAS)
    yield TensorSpec(f"{at}.ffn.down", (cfg.width, cfg.ffn_width))
    yield TensorSpec(f"{at}.ffn.down_bias", (cfg.width,), Kind.BIAS)
    if is_gated:
        yield TensorSpec(f"{at}.attention_gate", (1,), Kind.GATE)
        yield TensorSpec(f"{at}.ffn_gate", (1,), Kind.GATE)


def encoder_weights(at: str, cfg: EncoderConfig, leaf: Leaf) -> EncoderWeights:
    """The tree that `encode_tiles` reads."""
    return EncoderWeights(
        patches=leaf(f"{at}.patches"),
        class_row=leaf(f"{at}.class_row"),
        positions=leaf(f"{at}.positions"),
        tile_positions=leaf(f"{at}.tile_positions"),
        positions_gate=vector(leaf, f"{at}.positions_gate"),
        before=leaf(f"{at}.before"),
        before_gate=vector(leaf, f"{at}.before_gate"),
        after=leaf(f"{at}.after"),
        after_gate=vector(leaf, f"{at}.after_gate"),
        before_norm=vector(leaf, f"{at}.before_norm"),
        before_norm_bias=vector(leaf, f"{at}.before_norm_bias"),
        after_norm=vector(leaf, f"{at}.after_norm"),
        after_norm_bias=vector(leaf, f"{at}.after_norm_bias"),
        layers=tuple(_layer_weights(f"{at}.layers.{index}", leaf, is_gated=False) for index in range(cfg.num_layers)),
        global_layers=tuple(_layer_weights(f"{at}.global_layers.{index}", leaf, is_gated=True) for index in range(cfg.num_global_layers)),
        project=leaf(f"{at}.project"),
        project_bias=vector(leaf, f"{at}.project_bias"),
    )


def _layer_weights(at: str, leaf: Leaf, *, is_gated: bool) -> EncoderLayerWeights:
    return EncoderLayerWeights(
        attention_norm=vector(leaf, f"{at}.attention_norm"),
        attention_norm_bias=vector(leaf, f"{at}.attention_norm_bias"),
        q=leaf(f"{at}.attention.q"),
        k=leaf(f"{at}.attention.k"),
        v=leaf(f"{at}.attention.v"),
        out=leaf(f"{at}.attention.out"),
        ffn_norm=vector(leaf, f"{at}.ffn_norm"),
        ffn_norm_bias=vector(leaf, f"{at}.ffn_norm_bias"),
        up=leaf(f"{at}.ffn.up"),
        up_bias=vector(leaf, f"{at}.ffn.up_bias"),
        down=leaf(f"{at}.ffn.down"),
        down_bias=vector(leaf, f"{at}.ffn.down_bias"),
        attention_gate=vector(leaf, f"{at}.attention_gate") if is_gated else None,
        ffn_gate=vector(leaf, f"{at}.ffn_gate") if is_gated else None,
    )
