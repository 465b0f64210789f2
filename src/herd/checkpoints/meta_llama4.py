"""Llama 4 and Llama Guard 4 in Meta's layout: fused queries, keys and values, experts of all layers laid out for x W.

    attention.wqkv.weight                       each shard: its query heads, then its key heads, then its value heads
    feed_forward.experts.moe_w_in_eD_F          [E * D, F / n]: all experts one below the other, columns divided
    feed_forward.experts.moe_w_out_eF_D         [E * F / n, D]: each expert's rows divided
    feed_forward.mlp.fc1_weight                 each shard: its gate rows, then its up rows
    fp8_scales_<shard>.pt                       Maverick FP8: a scale for each expert and output of `experts.w1`, `w2`, `w3`

Widths are taken from the tensors: the rule by which params.json means them is not settled. Sources: Meta's `llama4/model.py`,
`ffn.py`, `moe.py`, `scripts/quantize.py`, `checkpoint.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from herd.checkpoints.account import check_config
from herd.checkpoints.checkpoint import Fact
from herd.checkpoints.config_reader import MAX_CONTEXT, MAX_HEADS, MAX_LAYERS, MAX_VOCABULARY, MAX_WIDTH, ConfigReader
from herd.checkpoints.meta_llama4_params import HIGH_FREQUENCY, ORIGINAL_CONTEXT, SCALING_FACTOR, params_of
from herd.checkpoints.meta_params import FILE, exact_config
from herd.checkpoints.meta_quantised import Quantised
from herd.checkpoints.meta_shards import Gather, Shards
from herd.checkpoints.sources import Joined, Part, Reshaped, Scaled, Transposed
from herd.checkpoints.stored import Source, StoredTensor
from herd.dtypes import F8_E4M3
from herd.errors import FileProblem
from herd.files import MappedFile
from herd.models import llama4
from herd.models.llama4 import Llama4Config, every
from herd.models.llama4_vision import Llama4VisionConfig
from herd.models.rope import Llama3, Rope
from herd.models.weights import TensorSpec

CONCLUSION = "herd reads folders whose params.json it understands whole."
WIDTHS = "the widths are those of the tensors"
RUNTIME = "a limit of the program that runs the model"
HARMLESS = {
    "multiple_of": WIDTHS,
    "ffn_dim_multiplier": WIDTHS,
    "ffn_exp": WIDTHS,
    "max_batch_size": RUNTIME,
    "max_seq_len": RUNTIME,
}
# Ends of names that need no weight: notes of the training program, and a table that follows from the config.
NOTES = ("_extra_state", "rope.freqs", "global_gate_stats_3E", "running_gate_stats_3E", "expert_activation_DE")
PATCH_TOKEN = 200092
EXPERTS = {"gate": ("moe_w_in_eD_F", "w1"), "up": ("moe_w_swiglu_eD_F", "w3"), "down": ("moe_w_out_eF_D", "w2")}
SHARED = {"gate": ("w_in_shared_FD", 0), "up": ("w_swiglu_FD", 0), "down": ("w_out_shared_DF", 1)}
VISION = "vision_embeddings.vision_encoder."
# Our name -> Meta's, and the axis that shards divide.
PLAIN: dict[str, tuple[str, int | None]] = {
    "embed": ("tok_embeddings.weight", 0),
    "norm": ("norm.weight", None),
    "head": ("output.weight", 0),
    "vision.patches": (f"{VISION}conv1._linear.weight", 0),
    "vision.class": (f"{VISION}class_embedding", None),
    "vision.positions": (f"{VISION}positional_embedding_vlm", None),
    "vision.first_norm": (f"{VISION}ln_pre.weight", None),
    "vision.first_norm_bias": (f"{VISION}ln_pre.bias", None),
    "vision.last_norm": (f"{VISION}ln_post.weight", None),
    "vision.last_norm_bias": (f"{VISION}ln_post.bias", None),
    "vision.adapter.in": ("vision_embeddings.vision_adapter.mlp.c_fc.weight", 0),
    "vision.adapter.out": ("vision_embeddings.vision_adapter.mlp.c_proj.weight", 1),
    "vision.projection": ("vision_projection.weight", 0),
}
VISION_LAYER: dict[str, tuple[str, int | None]] = {
    "attention_norm": ("ln_1", None),
    "attention.q": ("attn.wq", 0),
    "attention.k": ("attn.wk", 0),
    "attention.v": ("attn.wv", 0),
    "attention.out": ("attn.wo", 1),
    "ffn_norm": ("ln_2", None),
    "ffn.up": ("mlp.c_fc", 0),
    "ffn.down": ("mlp.c_proj", 1),
}


def read_llama4(
    folder: Path, values: Mapping[str, Any], shards: Shards, facts: dict[str, Fact]
) -> tuple[Llama4Config, tuple[TensorSpec, ...], dict[str, Source], list[MappedFile]]:
    """The config, its weights, where their bytes come from, and the files of scales."""
    gather = Gather(shards, lambda name: name.endswith(NOTES))
    cfg = _config({key: value for key, value in values.items() if key != "herd"}, gather, facts)
    if "herd" in values:
        cfg = exact_config(Llama4Config, values, params_of, facts)
    if cfg.tied_embeddings:
        gather.used.add(PLAIN["head"][0])
    check_config(cfg, FILE, sum(map(len, shards)))
    specs = tuple(llama4.tensors(cfg))
    quantised = Quantised(folder, values, shards)
    places = _Places(cfg, gather, quantised)
    sources = {spec.name: source for spec in specs if (source := places.source(spec)) is not None}
    gather.problems[:0] = quantised.problems
    gather.finish(folder.name, "a Llama 4")
    facts["architecture"] = Fact("llama4", "the names of the tensors")
    return cfg, specs, sources, quantised.files


def _config(values: Mapping[str, Any], gather: Gather, facts: dict[str, Fact]) -> Llama4Config:
    r = ConfigReader(values, FILE, facts)
    width = r.integer("dim", "width", highest=MAX_WIDTH)
    num_layers = r.integer("n_layers", "num_layers", highest=MAX_LAYERS)
    num_heads = r.integer("n_heads", "num_heads", highest=MAX_HEADS)
    head_width = r.integer("head_dim", "head_width", highest=MAX_WIDTH, default=max(1, width // num_heads))
    interval = r.raw("nope_layer_interval")
    without = every(interval, num_layers) if isinstance(interval, int) and interval > 0 else ()
    if interval is not None and (not isinstance(interval, int) or isinstance(interval, bool) or interval < 1):
        r.problem(f"nope_layer_interval is {interval!a:.40}; allowed is a whole number from 1, or nothing")
    rotary = tuple(layer for layer in range(num_layers) if layer not in without)
    chunk = (
        r.integer("attention_chunk_size", "chunk", highest=MAX_CONTEXT) if r.has("attention_chunk_size") else r.raw("attention_chunk_size")
    )
    num_experts, num_chosen, layers = _experts(r, num_layers, gather)
    is_tempered = r.boolean("attn_temperature_tuning", default=False)
    scale = r.number("attn_scale", lowest=0.0, highest=1e3, default=0.1)
    rope = _rope(r, head_width)
    cfg = Llama4Config(
        width=width,
        num_layers=num_layers,
        num_heads=num_heads,
        num_kv_heads=r.integer("n_kv_heads", "num_kv_heads", highest=MAX_HEADS, default=num_heads),
        head_width=head_width,
        ffn_width=_width(gather, "feed_forward.mlp.fc2_weight"),
        expert_width=_width(gather, "feed_forward.w_out_shared_DF.weight"),
        num_experts=num_experts,
        num_chosen=num_chosen,
        expert_layers=layers,
        rotary_layers=rotary,
        chunked_layers=rotary,
        chunk=chunk,
        vocab_size=r.integer("vocab_size", "vocab_size", highest=MAX_VOCABULARY),
        context_length=_context(rope, facts),
        norm_eps=r.number("norm_eps", "norm_eps", lowest=1e-12, highest=0.1, default=1e-5),
        rope=rope,
        qk_norm=r.boolean("use_qk_norm", "qk_norm", default=False),
        temper_floor=r.number("floor_scale", lowest=1e-3, highest=MAX_CONTEXT, default=8192.0),
        temper_scale=scale if is_tempered else 0.0,
        vision=_vision(r),
    )
    for key in ("quantization_args", "lora_args"):
        r.expect(key, because="Meta's quantised Llama 4 has its scales in files beside it")
    r.finish(CONCLUSION, HARMLESS)
    return cfg


def _width(gather: Gather, ending: str) -> int:
    """The feed-forward width: columns of the last matrix of all shards together, in the first layer that has one; 1 if none has."""
    names = (name for name in gather.shards[0] if name.endswith(ending))
    shape = gather.shape(next(names, ""))
    return shape[1] * len(gather.shards) if len(shape) == 2 and shape[1] else 1


def _experts(r: ConfigReader, num_layers: int, gather: Gather) -> tuple[int, int, tuple[int, ...]]:
    """Number of experts, how many a token goes to, and which layers have them."""
    args = r.raw("moe_args")
    if args is None:
        return 1, 1, ()
    if not isinstance(args, dict):
        r.problem(f"moe_args is {args!a:.40}; allowed is an object")
        return 1, 1, ()
    inner = ConfigReader(args, FILE, r.facts, prefix="moe_args.")
    count = inner.integer("num_experts", "num_experts", highest=1 << 14)
    chosen = inner.integer("top_k", "num_chosen", highest=max(1, count), default=1)
    step = inner.integer("interleave_moe_layer_step", highest=MAX_LAYERS, default=1)
    inner.raw("capacity_factor")
    inner.raw("auto_scale_F")
    r.problems += inner.problems + [f"moe_args.{key!a:.60} is not a key that is known here" for key in inner.unread()]
    return count, chosen, every(step, num_layers)


def _rope(r: ConfigReader, head_width: int) -> Rope:
    theta = r.number("rope_theta", "rope_theta", lowest=1.0, highest=1e15, default=500000.0)
    is_scaled = r.boolean("use_scaled_rope", default=False)
    factor = r.number("rope_scaling_factor", lowest=1e-6, highest=1e6, default=SCALING_FACTOR)
    high = r.number("rope_high_freq_factor", lowest=1.0, highest=1e6, default=HIGH_FREQUENCY)
    if not is_scaled:
        return Rope(theta, head_width)
    scaling = Llama3(factor, 1.0, high, ORIGINAL_CONTEXT)
    r.facts["rope_scaling"] = Fact(scaling, f"use_scaled_rope in {FILE}, and what Meta's program adds to it")
    return Rope(theta, head_width, scaling)


def _context(rope: Rope, facts: dict[str, Fact]) -> int:
    """What the releases were made for: Scout scales its positions, Maverick does not."""
    found = 10485760 if rope.scaling is not None else 1048576
    facts["context_length"] = Fact(found, f"assumed: {FILE} does not say; the instruct releases have it")
    return found


def _vision(r: ConfigReader) -> Llama4VisionConfig | None:
    args = r.raw("vision_args")
    if args is None:
        return None
    if not isinstance(args, dict):
        r.problem(f"vision_args is {args!a:.40}; allowed is an object")
        return None
    inner = ConfigReader(args, FILE, r.facts, prefix="vision_args.")
    width = inner.integer("dim", "vision.width", highest=MAX_WIDTH)
    ratio = inner.number("mlp_ratio", lowest=1e-3, highest=1e3)
    shuffle = inner.number("pixel_shuffle_ratio", lowest=1e-3, highest=1.0)
    cfg = Llama4VisionConfig(
        width=width,
        num_layers=inner.integer("n_layers", "vision.num_layers", highest=MAX_LAYERS),
        num_heads=inner.integer("n_heads", "vision.num_heads", highest=MAX_HEADS),
        ffn_width=int(ratio * width),
        tile=_side(inner, "image_size"),
        patch=_side(inner, "patch_size"),
        merge=round(1 / shuffle),
        adapter_width=inner.integer("output_dim", "vision.adapter_width", highest=MAX_WIDTH),
        picture_token=PATCH_TOKEN,
    )
    if cfg.tile % cfg.patch or cfg.side % cfg.merge or cfg.width % (4 * cfg.num_heads) or abs(cfg.merge * shuffle - 1) > 1e-9:
        inner.problem("vision_args: tiles must be whole patches in whole squares, and a head's width a multiple of four")
    r.problems += inner.problems + [f"vision_args.{key!a:.60} is not a key that is known here" for key in inner.unread()]
    return cfg


def _side(r: ConfigReader, key: str) -> int:
    """`{height, width}`, equal ones."""
    value = r.raw(key)
    sides = {value.get("height"), value.get("width")} if isinstance(value, dict) else set()
    side = next(iter(sides), None)
    if len(sides) != 1 or not isinstance(side, int) or isinstance(side, bool) or not 1 <= side <= MAX_WIDTH:
        r.problem(f"{r.prefix}{key} is {value!a:.60}; allowed are a height and a width that are equal")
        return 1
    return side


def in_text(name: str, cfg: Llama4Config) -> tuple[str, int | None]:
    """What Meta's files call a weight of the text's layers that is one tensor, and the axis that shards divide."""
    _, layer, rest = name.split(".", 2)
    at = f"layers.{layer}"
    if rest.startswith("shared."):
        theirs, axis = SHARED[rest.removeprefix("shared.")]
        return f"{at}.feed_forward.{theirs}.weight", axis
    is_mixed = int(layer) in cfg.expert_layers
    found: dict[str, tuple[str, int | None]] = {
        "attention_norm": (f"{at}.attention.wqkv.layer_norm_weight", None),
        "attention.out": (f"{at}.attention.wo.weight", 1),
        "ffn_norm": (f"{at}.feed_forward.{'norm.weight' if is_mixed else 'mlp.layer_norm_weight'}", None),
        "ffn.down": (f"{at}.feed_forward.mlp.fc2_weight", 1),
    }
    return found[rest]


def in_vision(name: str) -> str:
    """What Meta's files call a weight of the encoder's layers."""
    _, _, layer, rest = name.split(".", 3)
    kind = "bias" if rest.endswith("_bias") else "weight"
    return f"{VISION}transformer.resblocks.{layer}.{VISION_LAYER[rest.removesuffix('_bias')][0]}.{kind}"


class _Places:
    """Where each weight of one model is."""

    def __init__(self, cfg: Llama4Config, gather: Gather, quantised: Quantised) -> None:
        self._cfg = cfg
        self._gather = gather
        self._quantised = quantised

    def source(self, spec: TensorSpec) -> Source | None:
        """The weight, or None with a problem noted."""
        if spec.name in PLAIN:
            name, axis = PLAIN[spec.name]
            shape = spec.shape[1:] if spec.name == "vision.class" else spec.shape
            source = self._gather.whole(name, shape, axis)
            return source if source is None or shape == spec.shape else Reshaped(source, spec.shape)
        if spec.name.startswith("vision.layers."):
            return self._vision(spec)
        _, layer, rest = spec.name.split(".", 2)
        at = f"layers.{layer}"
        if rest in ("attention.q", "attention.k", "attention.v"):
            return self._attention(f"{at}.attention.wqkv.weight", rest[-1])
        if rest.startswith("experts."):
            return self._experts(f"{at}.feed_forward.experts", rest.removeprefix("experts."))
        if rest in ("ffn.gate", "ffn.up"):
            return self._fused(f"{at}.feed_forward.mlp.fc1_weight", rest, spec.shape)
        if rest == "router":
            router = self._gather.whole(f"{at}.feed_forward.router_DE", (spec.shape[1], spec.shape[0]), None)
            return None if router is None else Transposed(router)
        theirs, axis = in_text(spec.name, self._cfg)
        return self._gather.whole(theirs, spec.shape, axis)

    def _vision(self, spec: TensorSpec) -> Source | None:
        _, _, _, rest = spec.name.split(".", 3)
        axis = VISION_LAYER[rest.removesuffix("_bias")][1]
        return self._gather.whole(in_vision(spec.name), spec.shape, None if rest.endswith("_bias") and axis == 1 else axis)

    def _attention(self, name: str, part: str) -> Source | None:
        """Query, key or value rows out of each shard's fused tensor."""
        cfg, count = self._cfg, len(self._gather.shards)
        heads, kv_heads = cfg.num_heads // count, cfg.num_kv_heads // count
        if heads * count != cfg.num_heads or kv_heads * count != cfg.num_kv_heads:
            raise FileProblem(f"{FILE}: {cfg.num_heads} query and {cfg.num_kv_heads} kv heads cannot be shared out over {count} shards.")
        pieces = self._gather.pieces(name, (cfg.head_width * (heads + 2 * kv_heads), cfg.width))
        if pieces is None:
            return None
        first = cfg.head_width * {"q": 0, "k": heads, "v": heads + kv_heads}[part]
        last = first + cfg.head_width * (heads if part == "q" else kv_heads)
        return _joined([Part(piece, 0, first, last) for piece in pieces], 0)

    def _fused(self, name: str, rest: str, shape: tuple[int, ...]) -> Source | None:
        """Gate or up rows out of each shard's fused tensor."""
        rows = shape[0] // len(self._gather.shards)
        pieces = self._gather.pieces(name, (2 * rows, shape[1]))
        first = 0 if rest == "ffn.gate" else rows
        return None if pieces is None else _joined([Part(piece, 0, first, first + rows) for piece in pieces], 0)

    def _experts(self, at: str, part: str) -> Source | None:
        """All experts of a layer, turned to [E, out, in], with their scales if they are e4m3."""
        cfg, count = self._cfg, len(self._gather.shards)
        name, module = EXPERTS[part]
        narrow = cfg.expert_width // count
        inner = (cfg.num_experts, narrow, cfg.width) if part == "down" else (cfg.num_experts, cfg.width, narrow)

        def leaf(piece: StoredTensor, number: int) -> Source:
            turned = Transposed(Reshaped(piece, inner))
            return Scaled(turned, self._scales(f"{at}.{module}", turned.shape, number)) if piece.dtype is F8_E4M3 else turned

        pieces = self._gather.pieces(f"{at}.{name}", (inner[0] * inner[1], inner[2]), leaf)
        return None if pieces is None else _joined(pieces, 2 if part == "down" else 1)

    def _scales(self, key: str, shape: tuple[int, ...], number: int) -> Source:
        """One scale for each expert and output."""
        scales = self._quantised.scales(key, number)
        if scales is None or scales.shape not in (shape[:2], (*shape[:2], 1)):
            found = "missing" if scales is None else f"{list(scales.shape)}"
            raise FileProblem(
                f"{key} in fp8_scales_{number}.pt is {found}; expected is {list(shape[:2])}, a scale for each output of each expert"
            )
        return Reshaped(scales, (*shape[:2], 1))


def _joined(pieces: list[Source] | list[Part], axis: int) -> Source:
    return pieces[0] if len(pieces) == 1 else Joined(tuple(pieces), axis)
