"""Llama 3.2 Vision 11B and 90B, and Llama Guard 3 Vision: a text model that crosses over to pictures.

The text model is Llama 3.1's. Before some of its layers stands a crossing block: attention whose keys and values come from
pictures, and a feed-forward, both through gates (tanh). A token sees the picture before it (or the unbroken run of pictures
before it). Tokens that see none pass the crossing blocks unchanged, so that text alone is Llama 3.1 exactly.

    picture  -> llama3_vision_encoder -> rows_ID -> per crossing block: k_IKH (normed), v_IKH
    tokens_T -> embed -> x_TD -> [ (crossing block) ; x + attention(norm(x)) ; x + ffn(norm(x)) ] * L -> norm -> logits_RV
    crossing:  x + tanh(gate) attention(norm(x), pictures) ; x + tanh(gate) ffn(norm(x)), in rows that see a picture

The embedding has eight rows more than there are logits; the first of them stands for a picture.

Source: Meta's `llama_models/llama3/multimodal/model.py`. transformers 5.23 differs in two places (it keeps the outputs of the
encoder's layers where Meta keeps the inputs, and lets the attention of rows without a picture through).
Shapes: docs/shapes.md. Checked against both: tests/conformance/test_llama3_vision.py.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from herd.errors import UsageError
from herd.models.architecture import CacheShape, PictureShape
from herd.models.blocks import FfnWeights, ffn, ffn_tensors, ffn_weights, vector
from herd.models.llama import LayerWeights, layer, layer_tensors, layer_weights
from herd.models.llama3_vision_encoder import EncoderConfig, EncoderWeights, encode_tiles, encoder_tensors, encoder_weights
from herd.models.ops import PictureStep, Step, Tensor
from herd.models.rope import Rope
from herd.models.weights import Kind, Leaf, Matrix, TensorSpec, Vector

META_VOCABULARY, META_PICTURE = 128256, 128011
"""In Meta's own vocabulary the picture token has a number below the vocabulary's size; its code exchanges it for the one above."""
EXTRA_ROWS = 8
"""Rows of the embedding that were trained with the pictures, after those of the text model."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Llama3VisionConfig:
    """The facts of one model. `num_layers` counts the text model's layers; `crossing` are those with a crossing block before
    them. `picture_aliases`: further ids that stand for a picture, as other tokenizers number it."""

    width: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_width: int
    ffn_width: int
    vocab_size: int
    context_length: int
    norm_eps: float
    rope: Rope
    crossing: tuple[int, ...]
    vision: EncoderConfig
    picture_aliases: tuple[int, ...] = ()

    @property
    def num_embeddings(self) -> int:
        """Ids that the model can be given; it answers with the first `vocab_size` of them."""
        return self.vocab_size + EXTRA_ROWS

    @property
    def picture_id(self) -> int:
        """The id that stands for a picture."""
        return self.vocab_size

    @property
    def qkv_bias(self) -> bool:
        return False

    @property
    def out_bias(self) -> bool:
        return False

    @property
    def ffn_bias(self) -> bool:
        return False


@dataclass(frozen=True, slots=True)
class CrossingWeights:
    at: str
    attention_norm: Vector
    q: Matrix
    k: Matrix
    v: Matrix
    out: Matrix
    q_norm: Vector
    k_norm: Vector
    attention_gate: Vector
    ffn_norm: Vector
    ffn: FfnWeights
    ffn_gate: Vector


@dataclass(frozen=True, slots=True)
class Llama3VisionWeights:
    embed: Matrix
    layers: tuple[LayerWeights, ...]
    crossing: tuple[CrossingWeights, ...]
    norm: Vector
    head: Matrix
    vision: EncoderWeights


def forward(w: Llama3VisionWeights, cfg: Llama3VisionConfig, step: Step) -> Tensor:
    """This step's tokens -> logits_RV of the rows in `step.outputs_R`.

    Named values: embed, of each layer `middle` (after attention) and `out`, of each crossing block `middle` and `out` (all four
    of the residual stream) and those of its attention and feed-forward, final (after the last norm), logits.
    """
    return logits(hidden(w, cfg, step), w, cfg, step)


def hidden(w: Llama3VisionWeights, cfg: Llama3VisionConfig, step: Step) -> Tensor:
    """This step's tokens -> x_RD after the last norm."""
    ops = step.ops
    x_TD = ops.tap("embed", ops.embed(step.tokens_T, w.embed, aliases=dict.fromkeys(cfg.picture_aliases, cfg.picture_id)))
    rotary_TH = ops.rotary(step.positions_T, cfg.rope.frequencies(), cfg.rope.magnitude)
    crossing = dict(zip(cfg.crossing, zip(w.crossing, step.memory, strict=True), strict=True))
    for index, (layer_w, cache) in enumerate(zip(w.layers, step.cache, strict=True)):
        if index in crossing:
            x_TD = step.run(cross, x_TD, *crossing[index], cfg, step)
        x_TD = step.run(layer, x_TD, layer_w, rotary_TH, cache, cfg, step)
    return ops.tap("final", ops.rms_norm(ops.select(x_TD, step.outputs_R), w.norm, cfg.norm_eps))


def logits(x_RD: Tensor, w: Llama3VisionWeights, cfg: Llama3VisionConfig, step: Step) -> Tensor:
    """Rows after the last norm -> logits_RV."""
    return step.ops.tap("logits", step.ops.linear(x_RD, w.head))


def cross(x_TD: Tensor, w: CrossingWeights, memory: Tensor, cfg: Llama3VisionConfig, step: Step) -> Tensor:
    """x_TD -> x_TD, with what the tokens' pictures say added. No rotary positions: a picture has no place in the text.

    Named values: attention.q (normed), attention.heads (what each head read), attention.out, middle, those of ffn, out.
    """
    ops = step.ops
    normed_TD = ops.rms_norm(x_TD, w.attention_norm, cfg.norm_eps)
    q_TNH = ops.rms_norm(ops.heads(ops.linear(normed_TD, w.q), cfg.num_heads), w.q_norm, cfg.norm_eps)
    q_TNH = ops.tap(f"{w.at}.attention.q", q_TNH)
    y_TNH = ops.tap(f"{w.at}.attention.heads", ops.cross_attention(q_TNH, memory, cfg.head_width**-0.5))
    y_TD = ops.tap(f"{w.at}.attention.out", ops.linear(ops.merge_heads(y_TNH), w.out))
    x_TD = ops.tap(f"{w.at}.middle", ops.gated_add(x_TD, y_TD, w.attention_gate, step.seen))
    y_TD = ffn(ops.rms_norm(x_TD, w.ffn_norm, cfg.norm_eps), w.ffn, step)
    return ops.tap(f"{w.at}.out", ops.gated_add(x_TD, y_TD, w.ffn_gate, step.seen))


def encode(w: Llama3VisionWeights, cfg: Llama3VisionConfig, step: PictureStep) -> Sequence[Tensor]:
    """One picture -> keys (normed) and values of every crossing block: k_IKH, v_IKH of the first, of the second, ..."""
    ops = step.ops
    rows_ID = encode_tiles(w.vision, cfg.vision, step)
    found: list[Tensor] = []
    for crossing in w.crossing:
        found.append(ops.rms_norm(ops.heads(ops.linear(rows_ID, crossing.k), cfg.num_kv_heads), crossing.k_norm, cfg.norm_eps))
        found.append(ops.heads(ops.linear(rows_ID, crossing.v), cfg.num_kv_heads))
    return found


def has_pictures(cfg: Llama3VisionConfig) -> bool:
    """Always."""
    return True


def preparation(cfg: Llama3VisionConfig) -> tuple[str, Mapping[str, int]]:
    """As `herd.images.pixels.prepare` takes it."""
    return "mllama", {"tile": cfg.vision.tile, "max_tiles": cfg.vision.max_tiles}


def num_crossing(cfg: Llama3VisionConfig) -> int:
    """The number of crossing blocks."""
    return len(cfg.crossing)


def picture_positions(cfg: Llama3VisionConfig, tokens: Sequence[int], shapes: Sequence[PictureShape]) -> list[tuple[int, ...]]:
    """One position for each picture: that of its token. `UsageError` when there are more of one than of the other."""
    ids = (cfg.picture_id, *cfg.picture_aliases)
    positions: list[tuple[int, ...]] = [(position,) for position, token in enumerate(tokens) if token in ids]
    if len(positions) != len(shapes):
        named = " or ".join(str(each) for each in ids)
        raise UsageError(
            f"The prompt has {len(positions)} tokens that stand for a picture ({named}) and {len(shapes)} pictures came with it; "
            "expected as many of one as of the other, in the same order."
        )
    side, most = cfg.vision.tile, cfg.vision.max_tiles
    for number, shape in enumerate(shapes):
        if (shape.height, shape.width) != (side, side) or shape.tiles != shape.rows * shape.columns or not 1 <= shape.tiles <= most:
            raise UsageError(
                f"Picture {number + 1} has {shape.tiles} tiles of {shape.width} x {shape.height} pixels in {shape.rows} rows and "
                f"{shape.columns} columns; expected are up to {most} tiles of {side} x {side}, all of the grid."
            )
    return positions


def caches(cfg: Llama3VisionConfig) -> tuple[CacheShape, ...]:
    """Every layer of the text model keeps every token; crossing blocks keep nothing of tokens."""
    return (CacheShape(cfg.num_heads, cfg.num_kv_heads, cfg.head_width),) * cfg.num_layers


def tensors(cfg: Llama3VisionConfig) -> Iterator[TensorSpec]:
    """Every weight of this model, once. Loading fails if a file and this list disagree."""
    yield TensorSpec("embed", (cfg.num_embeddings, cfg.width), Kind.EMBEDDING)
    for index in range(cfg.num_layers):
        yield from layer_tensors(f"layers.{index}", cfg)
    for index in range(len(cfg.crossing)):
        yield from _crossing_tensors(f"crossing.{index}", cfg)
    yield TensorSpec("norm", (cfg.width,), Kind.NORM)
    yield TensorSpec("head", (cfg.vocab_size, cfg.width), Kind.HEAD)
    yield from encoder_tensors("vision", cfg.vision, cfg.width)


def _crossing_tensors(at: str, cfg: Llama3VisionConfig) -> Iterator[TensorSpec]:
    q_width, kv_width = cfg.num_heads * cfg.head_width, cfg.num_kv_heads * cfg.head_width
    yield TensorSpec(f"{at}.attention_norm", (cfg.width,), Kind.NORM)
    yield TensorSpec(f"{at}.attention.q", (q_width, cfg.width))
    yield TensorSpec(f"{at}.attention.k", (kv_width, cfg.width))
    yield TensorSpec(f"{at}.attention.v", (kv_width, cfg.width))
    yield TensorSpec(f"{at}.attention.out", (cfg.width, q_width))
    yield TensorSpec(f"{at}.attention.q_norm", (cfg.head_width,), Kind.NORM)
    yield TensorSpec(f"{at}.attention.k_norm", (cfg.head_width,), Kind.NORM)
    yield TensorSpec(f"{at}.attention_gate", (1,), Kind.GATE)
    yield TensorSpec(f"{at}.ffn_norm", (cfg.width,), Kind.NORM)
    yield from ffn_tensors(f"{at}.ffn", cfg.width, cfg.ffn_width, False)
    yield TensorSpec(f"{at}.ffn_gate", (1,), Kind.GATE)


def weights(cfg: Llama3VisionConfig, leaf: Leaf) -> Llama3VisionWeights:
    """The tree that `forward` and `encode` read, from a function that gives the leaf of each name in `tensors(cfg)`."""
    return Llama3VisionWeights(
        embed=leaf("embed"),
        layers=tuple(layer_weights(f"layers.{index}", cfg, leaf) for index in range(cfg.num_layers)),
        crossing=tuple(_crossing_weights(f"crossing.{index}", leaf) for index in range(len(cfg.crossing))),
        norm=vector(leaf, "norm"),
        head=leaf("head"),
        vision=encoder_weights("vision", cfg.vision, leaf),
    )


def _crossing_weights(at: str, leaf: Leaf) -> CrossingWeights:
    return CrossingWeights(
        at=at,
        attention_norm=vector(leaf, f"{at}.attention_norm"),
        q=leaf(f"{at}.attention.q"),
        k=leaf(f"{at}.attention.k"),
        v=leaf(f"{at}.attention.v"),
        out=leaf(f"{at}.attention.out"),
        q_norm=vector(leaf, f"{at}.attention.q_norm"),
        k_norm=vector(leaf, f"{at}.attention.k_norm"),
        attention_gate=vector(leaf, f"{at}.attention_gate"),
        ffn_norm=vector(leaf, f"{at}.ffn_norm"),
        ffn=ffn_weights(f"{at}.ffn", False, leaf),
        ffn_gate=vector(leaf, f"{at}.ffn_gate"),
    )
