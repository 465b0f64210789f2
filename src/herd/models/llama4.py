"""Llama 4 (Scout, Maverick) and Llama Guard 4: experts, and attention that alternates between local and global layers.

Against `llama.py`, five things are new:

  local layers    have rotary positions and attend inside their chunk of `cfg.chunk` tokens
  global layers   have none and attend to everything; their queries grow slowly with position (`cfg.temper_scale`)
  q/k norm        in local layers, after the rotation, without a weight (only if `cfg.qk_norm`)
  experts         in some layers the feed-forward is a shared expert plus one chosen by a router, whose sigmoid
                  multiplies the expert's *input*
  pictures        what `llama4_vision.py` makes of them takes the place of their tokens' embeddings

    tokens_T -> embed | picture -> x_TD -> [ x + attention(norm(x)) ; x + (ffn | mixture)(norm(x)) ] * L -> norm -> logits_RV

Source: Meta's `llama_models/llama4/model.py` and `moe.py`; switches that Meta's code lacks (biases, tied embeddings, layers listed
one by one) as in `transformers` `modeling_llama4.py`. Where the two disagree: docs/explain/references.md.
Shapes: docs/shapes.md. Checked on every backend and storage format: tests/conformance/.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from herd.models import llama4_vision
from herd.models.architecture import CacheShape, PictureShape
from herd.models.blocks import (
    AttentionWeights,
    FfnWeights,
    attend,
    attention_tensors,
    attention_weights,
    ffn,
    ffn_tensors,
    ffn_weights,
    project,
    vector,
)
from herd.models.llama4_vision import Llama4VisionConfig, VisionWeights
from herd.models.ops import Chunks, Experts, PictureStep, Step, Tensor
from herd.models.rope import Rope
from herd.models.weights import Kind, Leaf, Matrix, TensorSpec, Vector


@dataclass(frozen=True, slots=True, kw_only=True)
class Llama4Config:
    """The facts of one Llama 4. Layers are listed by index, from 0; `every` lists them at an interval.

    ffn_width         of layers without experts (Meta's and Hugging Face's names for the two widths are easily confused)
    expert_width      of each expert and of the shared one
    num_chosen        experts that a token goes to besides the shared one
    expert_layers     have experts; the others a plain feed-forward
    rotary_layers     rotate queries and keys; the others are "NoPE" layers
    chunked_layers    attend inside chunks of `chunk` tokens; in files these are the rotary layers
    temper_scale      of the temperature in layers without rotation, which takes a step every `temper_floor` tokens; 0: none
    """

    width: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_width: int
    ffn_width: int
    expert_width: int
    num_experts: int
    num_chosen: int = 1
    expert_layers: tuple[int, ...]
    rotary_layers: tuple[int, ...]
    chunked_layers: tuple[int, ...]
    chunk: int | None
    vocab_size: int
    context_length: int
    norm_eps: float
    rope: Rope
    qk_norm: bool
    temper_floor: float = 8192.0
    temper_scale: float = 0.0
    tied_embeddings: bool = False
    qkv_bias: bool = False
    out_bias: bool = False
    vision: Llama4VisionConfig | None = None

    @property
    def group_size(self) -> int:
        """Query heads that share one kv head."""
        return self.num_heads // self.num_kv_heads

    def window(self, layer: int) -> Chunks | None:
        """What layer `layer` sees of the past: its chunk, or (None) everything."""
        return Chunks(self.chunk) if self.chunk is not None and layer in self.chunked_layers else None


@dataclass(frozen=True, slots=True)
class MixtureWeights:
    at: str
    router: Matrix
    experts: Experts
    shared: FfnWeights


@dataclass(frozen=True, slots=True)
class LayerWeights:
    at: str
    index: int
    attention_norm: Vector
    attention: AttentionWeights
    ffn_norm: Vector
    ffn: FfnWeights | MixtureWeights


@dataclass(frozen=True, slots=True)
class Llama4Weights:
    embed: Matrix
    layers: tuple[LayerWeights, ...]
    norm: Vector
    head: Matrix
    vision: VisionWeights | None


def forward(w: Llama4Weights, cfg: Llama4Config, step: Step) -> Tensor:
    """This step's tokens -> logits_RV of the rows in `step.outputs_R`.

    Named values: embed (pictures included), of each layer `middle` (after attention) and `out` (both of the residual stream) and
    those of its attention and feed-forward or mixture, final (after the last norm), logits.
    """
    return logits(hidden(w, cfg, step), w, cfg, step)


def hidden(w: Llama4Weights, cfg: Llama4Config, step: Step) -> Tensor:
    """This step's tokens -> x_RD after the last norm."""
    ops = step.ops
    x_TD = ops.embed(step.tokens_T, w.embed)
    if cfg.vision is not None:
        x_TD = ops.overlay(x_TD, step.pictures)
    x_TD = ops.tap("embed", x_TD)
    rotary_TH = ops.rotary(step.positions_T, cfg.rope.frequencies(), cfg.rope.magnitude)
    for layer_w, cache in zip(w.layers, step.cache, strict=True):
        x_TD = step.run(layer, x_TD, layer_w, rotary_TH, cache, cfg, step)
    return ops.tap("final", ops.rms_norm(ops.select(x_TD, step.outputs_R), w.norm, cfg.norm_eps))


def logits(x_RD: Tensor, w: Llama4Weights, cfg: Llama4Config, step: Step) -> Tensor:
    """Rows after the last norm -> logits_RV."""
    return step.ops.tap("logits", step.ops.linear(x_RD, w.head))


def layer(x_TD: Tensor, w: LayerWeights, rotary_TH: Tensor, cache: Tensor, cfg: Llama4Config, step: Step) -> Tensor:
    """x_TD -> x_TD with attention and feed-forward or mixture added, each of what its norm makes of x."""
    ops = step.ops
    normed_TD = ops.rms_norm(x_TD, w.attention_norm, cfg.norm_eps)
    x_TD = ops.tap(f"{w.at}.middle", ops.add(x_TD, attention(normed_TD, w, rotary_TH, cache, cfg, step)))
    normed_TD = ops.rms_norm(x_TD, w.ffn_norm, cfg.norm_eps)
    y_TD = mixture(normed_TD, w.ffn, cfg, step) if isinstance(w.ffn, MixtureWeights) else ffn(normed_TD, w.ffn, step)
    return ops.tap(f"{w.at}.out", ops.add(x_TD, y_TD))


def attention(x_TD: Tensor, layer: LayerWeights, rotary_TH: Tensor, cache: Tensor, cfg: Llama4Config, step: Step) -> Tensor:
    """x_TD -> y_TD. Writes this step's keys and values into `cache`. Named values: those of `blocks.attend`."""
    ops = step.ops
    q_TNH, k_TKH, v_TKH = project(x_TD, layer.attention, cfg, step)
    if layer.index in cfg.rotary_layers:
        q_TNH, k_TKH = ops.rotate(q_TNH, rotary_TH), ops.rotate(k_TKH, rotary_TH)
        if cfg.qk_norm:
            q_TNH, k_TKH = ops.rms_norm(q_TNH, None, cfg.norm_eps), ops.rms_norm(k_TKH, None, cfg.norm_eps)
    elif cfg.temper_scale:
        q_TNH = ops.temper(q_TNH, step.positions_T, cfg.temper_floor, cfg.temper_scale)
    return attend((q_TNH, k_TKH, v_TKH), layer.attention, cache, cfg, step, cfg.window(layer.index))


def mixture(x_TD: Tensor, w: MixtureWeights, cfg: Llama4Config, step: Step) -> Tensor:
    """x_TD -> shared(x) + expert(sigmoid(score) x) for the expert (or `num_chosen`) of highest score.

    Named values: router (the scores [T, E], before the sigmoid), shared.hidden, shared.out, experts.out.
    """
    ops = step.ops
    scores_TE = ops.tap(f"{w.at}.router", ops.linear(x_TD, w.router))
    shared_TD = ffn(x_TD, w.shared, step)
    routed_TD = ops.tap(f"{w.at}.experts.out", ops.experts(x_TD, scores_TE, w.experts, cfg.num_chosen))
    return ops.add(shared_TD, routed_TD)


def every(interval: int, num_layers: int) -> tuple[int, ...]:
    """The last of each `interval` layers, as files say where experts are, or layers without rotation."""
    return tuple(range(interval - 1, num_layers, interval))


def caches(cfg: Llama4Config) -> tuple[CacheShape, ...]:
    """A chunked layer never looks back further than its chunk."""
    return tuple(CacheShape(cfg.num_heads, cfg.num_kv_heads, cfg.head_width, cfg.window(layer)) for layer in range(cfg.num_layers))


def tensors(cfg: Llama4Config) -> Iterator[TensorSpec]:
    """Every weight of this model, once. Loading fails if a file and this list disagree. No file of a Llama 4 keeps the halves
    of a head apart."""
    yield TensorSpec("embed", (cfg.vocab_size, cfg.width), Kind.EMBEDDING)
    for index in range(cfg.num_layers):
        at = f"layers.{index}"
        yield TensorSpec(f"{at}.attention_norm", (cfg.width,), Kind.NORM)
        yield from attention_tensors(f"{at}.attention", cfg, halved=False)
        yield TensorSpec(f"{at}.ffn_norm", (cfg.width,), Kind.NORM)
        if index in cfg.expert_layers:
            yield from mixture_tensors(at, cfg)
        else:
            yield from ffn_tensors(f"{at}.ffn", cfg.width, cfg.ffn_width, has_bias=False)
    yield TensorSpec("norm", (cfg.width,), Kind.NORM)
    if not cfg.tied_embeddings:
        yield TensorSpec("head", (cfg.vocab_size, cfg.width), Kind.HEAD)
    if cfg.vision is not None:
        yield from llama4_vision.tensors(cfg.vision, cfg.width)


def mixture_tensors(at: str, cfg: Llama4Config) -> Iterator[TensorSpec]:
    """The weights of one layer's experts, under the name `at`."""
    yield TensorSpec(f"{at}.router", (cfg.num_experts, cfg.width), Kind.ROUTER)
    yield TensorSpec(f"{at}.experts.gate", (cfg.num_experts, cfg.expert_width, cfg.width), Kind.EXPERTS)
    yield TensorSpec(f"{at}.experts.up", (cfg.num_experts, cfg.expert_width, cfg.width), Kind.EXPERTS)
    yield TensorSpec(f"{at}.experts.down", (cfg.num_experts, cfg.width, cfg.expert_width), Kind.EXPERTS)
    yield from ffn_tensors(f"{at}.shared", cfg.width, cfg.expert_width, has_bias=False)


def weights(cfg: Llama4Config, leaf: Leaf) -> Llama4Weights:
    """The tree that `forward` and `encode` read, from a function that gives the leaf of each name in `tensors(cfg)`."""

    def layer_weights(index: int) -> LayerWeights:
        at = f"layers.{index}"
        return LayerWeights(
            at=at,
            index=index,
            attention_norm=vector(leaf, f"{at}.attention_norm"),
            attention=attention_weights(f"{at}.attention", cfg, leaf),
            ffn_norm=vector(leaf, f"{at}.ffn_norm"),
            ffn=mixture_weights(at, leaf) if index in cfg.expert_layers else ffn_weights(f"{at}.ffn", has_bias=False, leaf=leaf),
        )

    embed = leaf("embed")
    return Llama4Weights(
        embed=embed,
        layers=tuple(layer_weights(index) for index in range(cfg.num_layers)),
        norm=vector(leaf, "norm"),
        head=embed if cfg.tied_embeddings else leaf("head"),
        vision=None if cfg.vision is None else llama4_vision.weights(cfg.vision, leaf),
    )


def mixture_weights(at: str, leaf: Leaf) -> MixtureWeights:
    """The tree that `mixture` reads."""
    return MixtureWeights(
        at=at,
        router=leaf(f"{at}.router"),
        experts=Experts(gate=leaf(f"{at}.experts.gate"), up=leaf(f"{at}.experts.up"), down=leaf(f"{at}.experts.down")),
        shared=ffn_weights(f"{at}.shared", has_bias=False, leaf=leaf),
    )


def has_pictures(cfg: Llama4Config) -> bool:
    """Whether this config has a vision part."""
    return cfg.vision is not None


def preparation(cfg: Llama4Config) -> tuple[str, Mapping[str, int]]:
    """How pictures are cut for this model: the name and the numbers that `herd.images.pixels.prepare` takes."""
    assert cfg.vision is not None, "pictures only for models that see"
    return "llama4", {"tile": cfg.vision.tile}


def num_crossing(cfg: Llama4Config) -> int:
    """None: pictures take the place of tokens."""
    return 0


def encode(w: Llama4Weights, cfg: Llama4Config, step: PictureStep) -> Sequence[Tensor]:
    """One picture -> one tensor: a row [D] for each of its tokens, tile by tile."""
    assert w.vision is not None and cfg.vision is not None, "pictures only for models that see"
    return [llama4_vision.encode(w.vision, cfg.vision, step)]


def picture_positions(cfg: Llama4Config, tokens: Sequence[int], shapes: Sequence[PictureShape]) -> list[tuple[int, ...]]:
    """For each picture, in order, the positions of the picture tokens that stand for it. `UsageError` when they do not fit."""
    assert cfg.vision is not None, "pictures only for models that see"
    return llama4_vision.picture_positions(cfg.vision, tokens, shapes)
