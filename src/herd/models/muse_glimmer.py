"""Muse-Glimmer (2026): the open successor of Llama 4's line, dense, with pictures and video.

Against `llama.py`, these things are new:

  local layers    attend to the last `window` tokens and have rotary positions; every fourth attends to everything and has none
  q/k norm        of each head, before the rotation, without a weight; queries are then multiplied by `query_factor`
  gate            what the heads read is multiplied by the sigmoid of one more projection of the layer's input
  sandwich        a norm before and one after attention and feed-forward; their weights count from one
  embedding       is normalised; picture tokens get the rows of the vision encoder instead
  logits          are capped softly: cap * tanh(factor * logits / cap)

    tokens_T -> norm(embed) -> x_TD -> [ x + norm(attention(norm(x))) ; x + norm(ffn(norm(x))) ] * L -> norm -> logits_RV

Source: `transformers` 5.23, `models/muse_glimmer/modeling_muse_glimmer.py` (Apache-2.0 release, no paper).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from herd.errors import UsageError
from herd.models import muse_glimmer_vision as vision
from herd.models.architecture import CacheShape, PictureShape
from herd.models.blocks import (
    AttentionWeights,
    FfnWeights,
    attention_tensors,
    attention_weights,
    ffn,
    ffn_tensors,
    ffn_weights,
    project,
    vector,
)
from herd.models.muse_glimmer_vision import MuseGlimmerVisionConfig, VisionWeights
from herd.models.ops import PictureStep, Sliding, Step, Tensor
from herd.models.rope import Rope
from herd.models.weights import Kind, Leaf, Matrix, TensorSpec, Vector

MAX_PICTURE_TOKENS = 4096


@dataclass(frozen=True, slots=True)
class LayerKind:
    """What a layer's attention sees: the last `window` tokens (None: all), with or without rotary positions."""

    window: int | None
    has_positions: bool

    @property
    def sight(self) -> Sliding | None:
        return None if self.window is None else Sliding(self.window)


@dataclass(frozen=True, slots=True, kw_only=True)
class MuseGlimmerConfig:
    """The facts of one Muse-Glimmer. `layers` says for each layer what it attends to."""

    width: int
    num_heads: int
    num_kv_heads: int
    head_width: int
    ffn_width: int
    vocab_size: int
    context_length: int
    norm_eps: float
    post_norm_eps: float
    rope: Rope
    layers: tuple[LayerKind, ...]
    query_factor: float
    logit_factor: float
    logit_cap: float
    tied_embeddings: bool = False
    attention_bias: bool = False
    image_token: int = 200092
    video_token: int = 200091
    vision: MuseGlimmerVisionConfig | None = None

    @property
    def num_layers(self) -> int:
        return len(self.layers)

    @property
    def qkv_bias(self) -> bool:
        return self.attention_bias

    @property
    def out_bias(self) -> bool:
        return self.attention_bias


@dataclass(frozen=True, slots=True)
class LayerWeights:
    at: str
    attention_norm: Vector
    attention: AttentionWeights
    gate: Matrix
    after_attention_norm: Vector
    ffn_norm: Vector
    ffn: FfnWeights
    after_ffn_norm: Vector


@dataclass(frozen=True, slots=True)
class MuseGlimmerWeights:
    embed: Matrix
    layers: tuple[LayerWeights, ...]
    norm: Vector
    head: Matrix
    vision: VisionWeights | None


def forward(w: MuseGlimmerWeights, cfg: MuseGlimmerConfig, step: Step) -> Tensor:
    """This step's tokens -> logits_RV of the rows in `step.outputs_R`. Named values as in `llama.py`."""
    return logits(hidden(w, cfg, step), w, cfg, step)


def hidden(w: MuseGlimmerWeights, cfg: MuseGlimmerConfig, step: Step) -> Tensor:
    """This step's tokens -> x_RD after the last norm."""
    ops = step.ops
    x_TD = ops.rms_norm(ops.embed(step.tokens_T, w.embed), None, cfg.norm_eps)
    if cfg.vision is not None:
        x_TD = ops.overlay(x_TD, step.pictures)
    x_TD = ops.tap("embed", x_TD)
    rotary_TH = ops.rotary(step.positions_T, cfg.rope.frequencies(), cfg.rope.magnitude)
    for layer_w, kind, cache in zip(w.layers, cfg.layers, step.cache, strict=True):
        x_TD = step.run(layer, x_TD, layer_w, kind, rotary_TH, cache, cfg, step)
    return ops.tap("final", ops.rms_norm(ops.select(x_TD, step.outputs_R), w.norm, cfg.norm_eps))


def logits(x_RD: Tensor, w: MuseGlimmerWeights, cfg: MuseGlimmerConfig, step: Step) -> Tensor:
    """Rows after the last norm -> logits_RV."""
    ops = step.ops
    return ops.tap("logits", ops.soft_cap(ops.linear(x_RD, w.head), cfg.logit_factor, cfg.logit_cap))


def layer(x_TD: Tensor, w: LayerWeights, kind: LayerKind, rotary_TH: Tensor, cache: Tensor, cfg: MuseGlimmerConfig, step: Step) -> Tensor:
    """x_TD -> x_TD with attention and feed-forward added, each between two norms."""
    ops = step.ops
    normed_TD = ops.rms_norm(x_TD, w.attention_norm, cfg.norm_eps, centred=True)
    y_TD = attention(normed_TD, w, kind, rotary_TH, cache, cfg, step)
    y_TD = ops.rms_norm(y_TD, w.after_attention_norm, cfg.post_norm_eps, centred=True)
    x_TD = ops.tap(f"{w.at}.middle", ops.add(x_TD, y_TD))
    normed_TD = ops.rms_norm(x_TD, w.ffn_norm, cfg.norm_eps, centred=True)
    y_TD = ops.rms_norm(ffn(normed_TD, w.ffn, step), w.after_ffn_norm, cfg.post_norm_eps, centred=True)
    return ops.tap(f"{w.at}.out", ops.add(x_TD, y_TD))


def attention(
    x_TD: Tensor, layer: LayerWeights, kind: LayerKind, rotary_TH: Tensor, cache: Tensor, cfg: MuseGlimmerConfig, step: Step
) -> Tensor:
    """x_TD -> y_TD. Writes this step's keys and values into `cache`. Named values as in `blocks.attend`, and gate."""
    ops, w = step.ops, layer.attention
    q_TNH, k_TKH, v_TKH = project(x_TD, w, cfg, step)
    q_TNH, k_TKH = (ops.rms_norm(x, None, cfg.norm_eps) for x in (q_TNH, k_TKH))
    if kind.has_positions:
        q_TNH, k_TKH = ops.rotate(q_TNH, rotary_TH), ops.rotate(k_TKH, rotary_TH)
    q_TNH, k_TKH, v_TKH = (ops.tap(f"{w.at}.{which}", x) for which, x in zip("qkv", (q_TNH, k_TKH, v_TKH), strict=True))
    scale = cfg.query_factor * cfg.head_width**-0.5
    y_TNH = ops.tap(f"{w.at}.heads", ops.attention(q_TNH, k_TKH, v_TKH, cache, scale, window=kind.sight, name=f"{w.at}.weights"))
    gate = ops.tap(f"{w.at}.gate", ops.linear(x_TD, layer.gate))
    y = ops.sigmoid_gate(ops.merge_heads(y_TNH), gate)
    return ops.tap(f"{w.at}.out", ops.linear(y, w.out, w.out_bias))


def caches(cfg: MuseGlimmerConfig) -> tuple[CacheShape, ...]:
    """One place per layer; local layers look back at most their window."""
    return tuple(CacheShape(cfg.num_heads, cfg.num_kv_heads, cfg.head_width, kind.sight) for kind in cfg.layers)


def tensors(cfg: MuseGlimmerConfig) -> Iterator[TensorSpec]:
    """Every weight of this model, once."""
    yield TensorSpec("embed", (cfg.vocab_size, cfg.width), Kind.EMBEDDING)
    for index in range(cfg.num_layers):
        at = f"layers.{index}"
        yield TensorSpec(f"{at}.attention_norm", (cfg.width,), Kind.NORM)
        yield from attention_tensors(f"{at}.attention", cfg)
        yield TensorSpec(f"{at}.attention.gate", (cfg.num_heads * cfg.head_width, cfg.width))
        yield TensorSpec(f"{at}.after_attention_norm", (cfg.width,), Kind.NORM)
        yield TensorSpec(f"{at}.ffn_norm", (cfg.width,), Kind.NORM)
        yield from ffn_tensors(f"{at}.ffn", cfg.width, cfg.ffn_width, False)
        yield TensorSpec(f"{at}.after_ffn_norm", (cfg.width,), Kind.NORM)
    yield TensorSpec("norm", (cfg.width,), Kind.NORM)
    if not cfg.tied_embeddings:
        yield TensorSpec("head", (cfg.vocab_size, cfg.width), Kind.HEAD)
    if cfg.vision is not None:
        yield from vision.tensors(cfg.vision, cfg.width)


def weights(cfg: MuseGlimmerConfig, leaf: Leaf) -> MuseGlimmerWeights:
    """The tree that `forward` and `encode` read."""

    def layer_weights(at: str) -> LayerWeights:
        return LayerWeights(
            at=at,
            attention_norm=vector(leaf, f"{at}.attention_norm"),
            attention=attention_weights(f"{at}.attention", cfg, leaf),
            gate=leaf(f"{at}.attention.gate"),
            after_attention_norm=vector(leaf, f"{at}.after_attention_norm"),
            ffn_norm=vector(leaf, f"{at}.ffn_norm"),
            ffn=ffn_weights(f"{at}.ffn", False, leaf),
            after_ffn_norm=vector(leaf, f"{at}.after_ffn_norm"),
        )

    embed = leaf("embed")
    return MuseGlimmerWeights(
        embed=embed,
        layers=tuple(layer_weights(f"layers.{index}") for index in range(cfg.num_layers)),
        norm=vector(leaf, "norm"),
        head=embed if cfg.tied_embeddings else leaf("head"),
        vision=None if cfg.vision is None else vision.weights(cfg.vision, leaf),
    )


def has_pictures(cfg: MuseGlimmerConfig) -> bool:
    return cfg.vision is not None


def num_crossing(cfg: MuseGlimmerConfig) -> int:
    """None: pictures take the place of tokens."""
    return 0


def preparation(cfg: MuseGlimmerConfig) -> tuple[str, Mapping[str, int]]:
    """As `herd.images.pixels.prepare` takes it."""
    assert cfg.vision is not None
    return "muse_glimmer", {"max_tokens": MAX_PICTURE_TOKENS, "patch": cfg.vision.patch, "merge": cfg.vision.merge}


def encode(w: MuseGlimmerWeights, cfg: MuseGlimmerConfig, step: PictureStep) -> Sequence[Tensor]:
    """A picture or a video -> rows_ID in place of its tokens."""
    assert w.vision is not None and cfg.vision is not None
    return [vision.encode(w.vision, cfg.vision, cfg.norm_eps, step)]


def picture_positions(cfg: MuseGlimmerConfig, tokens: Sequence[int], shapes: Sequence[PictureShape]) -> list[tuple[int, ...]]:
    """A picture stands where `image_token` is, a video (two or more frames) where `video_token` is; each has a token per cell
    and pair of frames. `UsageError` when tokens and pictures do not fit together."""
    assert cfg.vision is not None
    frames = cfg.vision.frames
    kinds = {cfg.image_token: "picture", cfg.video_token: "video"}
    wanted = [position for position, token in enumerate(tokens) if token in kinds]
    found: list[tuple[int, ...]] = []
    first = 0
    for number, shape in enumerate(shapes):
        count = shape.rows * shape.columns * max(1, shape.tiles // frames)
        positions = tuple(wanted[first : first + count])
        token = cfg.image_token if shape.tiles == 1 else cfg.video_token
        if len(positions) < count or any(tokens[position] != token for position in positions):
            there = sum(tokens[position] == token for position in positions)
            raise UsageError(
                f"{kinds[token]} {number + 1} is {shape.rows} x {shape.columns} cells and needs {count} tokens {token} in its place; "
                f"the prompt has {there} there."
            )
        found.append(positions)
        first += count
    if first < len(wanted):
        raise UsageError(
            f"The prompt has {len(wanted)} picture tokens ({cfg.image_token} or {cfg.video_token}); "
            f"the {len(shapes)} pictures given fill {first} of them."
        )
    return found
