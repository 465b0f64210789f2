"""The architecture of a model that is to be trained from nothing, from a few numbers or after the proportions of another.

    like = "llama-3.2-1b", width = 256, layers = 4      as wide and deep as said, with the proportions of that release
    architecture = "llama4", width = 256, ...           from numbers alone; what is not given follows from the width

What follows: heads as wide as the other model's (or 64), as many as the width holds; as many queries for each key and value as there;
a feed-forward in the same proportion to the width (or 8/3 of it), in multiples of 32. Of a Llama 4 each expert is half as wide as a
feed-forward without experts, so that a token goes through as many weights in either.
"""

from __future__ import annotations

import math
from dataclasses import field
from typing import Any, TypeVar

from herd.errors import UsageError, did_you_mean
from herd.family.catalogue import known
from herd.models.architecture import Config
from herd.models.llama import LlamaConfig
from herd.models.llama4 import Llama4Config, every
from herd.models.llama4_vision import Llama4VisionConfig
from herd.models.rope import Rope
from herd.records import dataclass
from herd.training.opening import open_here
from herd.training.settings.reading import need, need_above, need_positive

ARCHITECTURES = ("llama", "llama4")
MULTIPLE = 32
HEAD_WIDTH = 64
RELEASED_CHUNK = 8192
"""Of Scout and Maverick; files of llama.cpp say no other."""
T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class VisionSettings:
    """The part of a Llama 4 that sees pictures; without a width there is none.

    width         of the encoder; 0: the model sees no pictures
    layers        of the encoder
    heads         of its attention; not set: as many of 64 (or 16, if it is narrower than 128) as the width holds
    ffn_width     of its feed-forward; not set: four times the width
    tile, patch   side of a tile and of a patch, in pixels
    merge         patches along a side that become one row together
    adapter_width of the two layers after the merging; not set: the width of the model
    """

    width: int = 0
    layers: int = 2
    heads: int | None = None
    ffn_width: int | None = None
    tile: int = 64
    patch: int = 8
    merge: int = 2
    adapter_width: int | None = None

    def __post_init__(self) -> None:
        need(self.width >= 0, "vision.width", self.width, "0 or more")
        for name in ("layers", "tile", "patch", "merge"):
            need(getattr(self, name) >= 1, f"vision.{name}", getattr(self, name), "a whole number, 1 or more")
        need(
            self.tile % (self.patch * self.merge) == 0, "vision.tile", self.tile, f"a multiple of {self.patch * self.merge} (patch x merge)"
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSettings:
    """The model that is trained. What is not set follows from the rest.

    like           a release, a model that is here or a path, whose architecture and proportions are taken
    architecture   "llama" or "llama4"; not set: as in `like`, or llama
    width          length of a token's vector between layers
    layers         how many
    heads          query heads
    kv_heads       key and value heads
    head_width     of each of them
    ffn_width      of the feed-forward inside
    vocab_size     rows of the table; not set: the tokenizer's
    context        tokens that the model is made for; not set: the longest sequence that it is trained on
    norm_eps       added under the root of every norm
    rope_theta     base of the rotary frequencies
    tied           whether the head is the table of tokens
    experts        of a Llama 4: how many in a layer that has them
    chosen         experts that a token goes to, besides the shared one
    expert_width   of each expert and of the shared one
    expert_every   experts are in the last of each so many layers; 0: in none
    global_every   no rotation, and attention to everything, in the last of each so many layers; 0: in none
    chunk          tokens that local layers look back over, from the beginning of the chunk; 0: all
    qk_norm        whether queries and keys of local layers are normalised
    temper_floor   global layers: the temperature takes a step every so many tokens
    temper_scale   how large a step; 0: none
    vision         the part that sees pictures
    """

    like: str = ""
    architecture: str | None = None
    width: int | None = None
    layers: int | None = None
    heads: int | None = None
    kv_heads: int | None = None
    head_width: int | None = None
    ffn_width: int | None = None
    vocab_size: int | None = None
    context: int | None = None
    norm_eps: float | None = None
    rope_theta: float | None = None
    tied: bool | None = None
    experts: int | None = None
    chosen: int | None = None
    expert_width: int | None = None
    expert_every: int | None = None
    global_every: int | None = None
    chunk: int | None = None
    qk_norm: bool | None = None
    temper_floor: float | None = None
    temper_scale: float | None = None
    vision: VisionSettings = field(default_factory=VisionSettings)

    def __post_init__(self) -> None:
        if self.architecture is not None and self.architecture not in ARCHITECTURES:
            raise UsageError(
                f"There is no architecture {self.architecture!r} to train: {', '.join(ARCHITECTURES)}"
                f"{did_you_mean(self.architecture, ARCHITECTURES)}"
            )
        for name in ("width", "layers", "heads", "kv_heads", "head_width", "ffn_width", "vocab_size", "context", "experts", "chosen"):
            value = getattr(self, name)
            need(value is None or value >= 1, name, value, "a whole number, 1 or more")
        for name in ("expert_width", "expert_every", "global_every", "chunk"):
            value, least = getattr(self, name), int(name == "expert_width")
            need(value is None or value >= least, f"model.{name}", value, f"a whole number, {least} or more")
        need_above(self, 0, "norm_eps", "rope_theta", "temper_floor", at="model.")
        need_positive(self, "temper_scale", at="model.")


def config_of(settings: ModelSettings, *, vocab_size: int, context: int, picture_token: int | None = None) -> LlamaConfig | Llama4Config:
    """The architecture. `vocab_size` and `picture_token` are the tokenizer's, `context` the longest sequence of the training.

    `UsageError` for numbers that do not fit together, and for what the architecture does not have.
    """
    base = _base(settings)
    kind = settings.architecture or ("llama4" if isinstance(base, Llama4Config) else "llama")
    width = _first(settings.width, getattr(base, "width", None))
    layers = _first(settings.layers, getattr(base, "num_layers", None))
    if width is None or layers is None:
        raise UsageError("How large the model is was not said: give model.width and model.layers, or model.like.")
    facts = _common(settings, base, width, layers)
    rows = _first(settings.vocab_size, vocab_size)
    if rows < vocab_size:
        raise UsageError(f"model.vocab_size is {rows}; the tokenizer has {vocab_size} tokens.", param="vocab_size")
    facts |= {"vocab_size": rows, "context_length": _first(settings.context, context)}
    if facts["context_length"] < context:
        raise UsageError(f"model.context is {settings.context}; the training has sequences of {context} tokens.", param="context")
    if kind == "llama":
        _refuse_llama4(settings)
        return LlamaConfig(**facts)
    return Llama4Config(**facts, **_experts(settings, base, facts), vision=_vision(settings.vision, width, picture_token))


def _base(settings: ModelSettings) -> Config | None:
    """The config of the model that `like` names: of a release without its files, else of a checkpoint."""
    if not settings.like:
        return None
    release = known(settings.like)
    if release is not None and release.shape is not None:
        found: Any = release.config()
    else:
        checkpoint = open_here(settings.like)
        found = checkpoint.config
        checkpoint.close()
    if not isinstance(found, LlamaConfig | Llama4Config):
        raise UsageError(f"{settings.like} is of an architecture that is not trained from nothing; these are: {', '.join(ARCHITECTURES)}.")
    return found


def _common(settings: ModelSettings, base: Any, width: int, layers: int) -> dict[str, Any]:
    """What both architectures have. A rotary scaling of `like` belongs to its context and is not taken along."""
    ratio = 1.0 if base is None else width / base.width
    narrow = HEAD_WIDTH if width >= 2 * HEAD_WIDTH else max(width // 4, 2)
    head_width = _first(settings.head_width, narrow if base is None or width < base.head_width else base.head_width)
    heads = _first(
        settings.heads, max(1, width // head_width if base is None else round(base.num_heads * ratio * base.head_width / head_width))
    )
    groups = 1 if base is None else base.group_size
    kv_heads = _first(settings.kv_heads, _divisor(heads, heads / groups))
    if heads % kv_heads:
        raise UsageError(f"{heads} query heads cannot share {kv_heads} key and value heads evenly.", param="kv_heads")
    if head_width % 2:
        raise UsageError(f"A head is {head_width} wide; rotation turns pairs, so it must be even.", param="head_width")
    wanted = width * 8 / 3 if base is None else base.ffn_width * ratio
    return {
        "width": width,
        "num_layers": layers,
        "num_heads": heads,
        "num_kv_heads": kv_heads,
        "head_width": head_width,
        "ffn_width": _first(settings.ffn_width, max(MULTIPLE, round(wanted / MULTIPLE) * MULTIPLE)),
        "norm_eps": _first(settings.norm_eps, getattr(base, "norm_eps", 1e-5)),
        "rope": Rope(_first(settings.rope_theta, base.rope.theta if base is not None else 10000.0), head_width),
        "tied_embeddings": _first(settings.tied, getattr(base, "tied_embeddings", False)),
    }


def _experts(settings: ModelSettings, base: Any, facts: dict[str, Any]) -> dict[str, Any]:
    """What a Llama 4 has besides."""
    of4 = base if isinstance(base, Llama4Config) else None
    layers: int = facts["num_layers"]
    expert_every = settings.expert_every
    if expert_every is None:
        expert_every = 1 if of4 is None else (of4.expert_layers[0] + 1 if of4.expert_layers else 0)
    global_every = 4 if settings.global_every is None else settings.global_every
    chunk = settings.chunk if settings.chunk is not None else (of4.chunk if of4 is not None else RELEASED_CHUNK)
    alone = every(global_every, layers) if global_every else ()
    rotary = tuple(layer for layer in range(layers) if layer not in alone)
    ffn_width: int = facts["ffn_width"]
    half = max(MULTIPLE, round(ffn_width / 2 / MULTIPLE) * MULTIPLE)
    experts = _first(settings.experts, of4.num_experts if of4 is not None else 4)
    chosen = _first(settings.chosen, of4.num_chosen if of4 is not None else 1)
    if expert_every and chosen > experts:
        raise UsageError(f"A token cannot go to {chosen} of {experts} experts.", param="chosen")
    return {
        "expert_width": _first(settings.expert_width, half),
        "num_experts": experts if expert_every else 0,
        "num_chosen": chosen,
        "expert_layers": every(expert_every, layers) if expert_every else (),
        "rotary_layers": rotary,
        "chunked_layers": rotary if chunk else (),
        "chunk": chunk or None,
        "qk_norm": _first(settings.qk_norm, of4.qk_norm if of4 is not None else True),
        "temper_floor": _first(settings.temper_floor, of4.temper_floor if of4 is not None else 8192.0),
        "temper_scale": _first(settings.temper_scale, of4.temper_scale if of4 is not None else 0.1),
    }


def _vision(settings: VisionSettings, text_width: int, picture_token: int | None) -> Llama4VisionConfig | None:
    if not settings.width:
        return None
    if picture_token is None:
        raise UsageError("A model that sees needs a token that stands for pieces of pictures; the tokenizer has no <|patch|>.")
    heads = _first(settings.heads, max(1, settings.width // (HEAD_WIDTH if settings.width >= 2 * HEAD_WIDTH else 16)))
    if settings.width % heads or settings.width // heads % 4:
        raise UsageError(f"vision.width {settings.width} does not give {heads} heads of a multiple of 4.", param="vision.heads")
    return Llama4VisionConfig(
        width=settings.width,
        num_layers=settings.layers,
        num_heads=heads,
        ffn_width=_first(settings.ffn_width, 4 * settings.width),
        tile=settings.tile,
        patch=settings.patch,
        merge=settings.merge,
        adapter_width=_first(settings.adapter_width, text_width),
        picture_token=picture_token,
    )


def _refuse_llama4(settings: ModelSettings) -> None:
    """`UsageError` for what only a Llama 4 has."""
    names = ("experts", "chosen", "expert_width", "expert_every", "global_every", "chunk", "qk_norm", "temper_floor", "temper_scale")
    given = [name for name in names if getattr(settings, name) is not None] + (["vision.width"] if settings.vision.width else [])
    if given:
        raise UsageError(f'model.{given[0]} belongs to a Llama 4; set model.architecture = "llama4", or leave it out.', param=given[0])


def _divisor(number: int, near: float) -> int:
    """The divisor of `number` that is nearest."""
    return min((each for each in range(1, number + 1) if number % each == 0), key=lambda each: abs(math.log(each / near)))


def _first(value: T | None, otherwise: Any) -> Any:
    return otherwise if value is None else value
