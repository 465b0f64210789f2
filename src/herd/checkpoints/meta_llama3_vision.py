"""Llama 3.2 Vision in Meta's layout: the text of Llama 3.1, crossing blocks, and an encoder whose numbers are in Meta's program.

params.json has the size of a tile, how many there are, and how many crossing blocks; where those stand follows by a rule. Of the
encoder the tensors tell width and depth; the number of heads and which layers' inputs are kept are constants of the program.
Source: Meta's `llama_models/llama3/multimodal/model.py`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from herd.checkpoints import meta_params, mllama_names
from herd.checkpoints.account import check_config
from herd.checkpoints.checkpoint import Fact
from herd.checkpoints.config_reader import MAX_LAYERS, MAX_WIDTH, ConfigReader
from herd.checkpoints.meta_params import FILE, exact_config, read_params
from herd.checkpoints.meta_shards import Gather, Shards
from herd.checkpoints.sources import Joined, Reshaped
from herd.checkpoints.stored import Source
from herd.errors import FileProblem
from herd.files import MappedFile
from herd.models import llama3_vision
from herd.models.architecture import shared_fields
from herd.models.llama import LlamaConfig
from herd.models.llama3_vision import EXTRA_ROWS, META_PICTURE, META_VOCABULARY, Llama3VisionConfig
from herd.models.llama3_vision_encoder import EncoderConfig
from herd.models.weights import TensorSpec

KEYS = ("vision_chunk_size", "vision_max_num_chunks", "vision_num_cross_attention_layers")
HEADS, PATCH, KEPT = 16, 14, (3, 7, 15, 23, 30)
MAX_TILES = 64
ENCODER = "vision_model.vision_encoder"
LAYER = re.compile(rf"{re.escape(ENCODER)}\.(transformer|global_transformer)\.resblocks\.(\d+)\.ln_1\.weight")


def read_llama3_vision(
    folder: Path, values: Mapping[str, Any], shards: Shards, facts: dict[str, Fact]
) -> tuple[Llama3VisionConfig, tuple[TensorSpec, ...], dict[str, Source], list[MappedFile]]:
    """The config, its weights, where their bytes come from, and no further files."""
    gather = Gather(shards, lambda name: name.endswith("rope.freqs"))
    cfg = _config(values, gather, facts)
    check_config(cfg, FILE, sum(map(len, shards)))
    specs = tuple(llama3_vision.tensors(cfg))
    sources = {spec.name: source for spec in specs if (source := _source(spec, cfg, gather)) is not None}
    gather.finish(folder.name, "a Llama 3.2 Vision")
    facts["architecture"] = Fact("llama3_vision", f"vision_* in {FILE}")
    return cfg, specs, sources, []


def _config(values: Mapping[str, Any], gather: Gather, facts: dict[str, Fact]) -> Llama3VisionConfig:
    embed = gather.shape(mllama_names.META_EMBED[0])
    text = read_params({key: value for key, value in values.items() if key not in (*KEYS, "herd")}, embed[0] if embed else 1, facts)
    if "herd" in values:
        return _checked(exact_config(Llama3VisionConfig, values, params_of, facts))
    r = ConfigReader({key: values[key] for key in KEYS if key in values}, FILE, facts)
    blocks = r.integer("vision_num_cross_attention_layers", highest=min(MAX_LAYERS, text.num_layers))
    vision = _encoder(r, gather)
    r.finish("herd reads folders whose params.json it understands whole.")
    return Llama3VisionConfig(
        width=text.width,
        num_layers=text.num_layers,
        num_heads=text.num_heads,
        num_kv_heads=text.num_kv_heads,
        head_width=text.head_width,
        ffn_width=text.ffn_width,
        vocab_size=text.vocab_size,
        context_length=text.context_length,
        norm_eps=text.norm_eps,
        rope=text.rope,
        crossing=crossing_layers(text.num_layers, blocks),
        vision=vision,
        picture_aliases=(META_PICTURE,) if text.vocab_size == META_VOCABULARY else (),
    )


def _checked(cfg: Llama3VisionConfig) -> Llama3VisionConfig:
    """The config, if the numbers that its key `herd` alone tells are ones that an encoder can have."""
    vision = cfg.vision
    is_sized = all(1 <= each <= MAX_WIDTH for each in (vision.tile, vision.patch, vision.width, vision.num_heads, vision.ffn_width))
    is_deep = 1 <= vision.num_layers <= MAX_LAYERS and 0 <= vision.num_global_layers <= MAX_LAYERS and 1 <= vision.max_tiles <= MAX_TILES
    is_crossed = sorted(set(cfg.crossing)) == list(cfg.crossing) and all(0 <= each < cfg.num_layers for each in cfg.crossing)
    is_kept = all(0 <= each < vision.num_layers for each in vision.kept)
    if not (is_sized and is_deep and is_crossed and is_kept) or vision.tile % vision.patch or vision.width % vision.num_heads:
        raise FileProblem(f"{FILE}: herd.config has numbers that no Llama 3.2 Vision can have: {vision}, crossing {cfg.crossing}.")
    return cfg


def params_of(cfg: Llama3VisionConfig) -> dict[str, Any]:
    """The ordinary keys of params.json for a config."""
    vision = dict(zip(KEYS, (cfg.vision.tile, cfg.vision.max_tiles, len(cfg.crossing)), strict=True))
    return meta_params.params_of(_text_of(cfg)) | vision


def not_said(cfg: Llama3VisionConfig) -> list[str]:
    """What of a config Meta's own program does not read from params.json, so that it would compute something else or refuse."""
    notes, vision = meta_params.not_said(_text_of(cfg)), cfg.vision
    if cfg.crossing != crossing_layers(cfg.num_layers, len(cfg.crossing)):
        notes.append(f"that crossing blocks stand before the layers {list(cfg.crossing)}: llama-models puts them at even distances")
    if (vision.num_heads, vision.patch, vision.kept) != (HEADS, PATCH, KEPT):
        notes.append(f"the encoder's heads, patches and kept layers: llama-models has {HEADS}, {PATCH} and {list(KEPT)} built in")
    return notes


def _text_of(cfg: Llama3VisionConfig) -> LlamaConfig:
    """The text model alone."""
    return LlamaConfig(**shared_fields(cfg, LlamaConfig))


def crossing_layers(num_layers: int, blocks: int) -> tuple[int, ...]:
    """Before which layers crossing blocks stand: at even distances, counted from the last layer."""
    return tuple(sorted(range(num_layers - 1, -1, -math.ceil(num_layers / blocks))[:blocks]))


def _encoder(r: ConfigReader, gather: Gather) -> EncoderConfig:
    """The encoder's numbers, as far as they are told anywhere."""
    width = math.prod(gather.shape(f"{ENCODER}.class_embedding"))
    counts = {"transformer": 0, "global_transformer": 0}
    for name in gather.shards[0]:
        if (found := LAYER.fullmatch(name)) is not None:
            counts[found[1]] = max(counts[found[1]], int(found[2][:5]) + 1)
    ffn = gather.shape(f"{ENCODER}.transformer.resblocks.0.mlp.c_fc.weight")
    cfg = EncoderConfig(
        tile=r.integer("vision_chunk_size", "vision.tile", highest=MAX_WIDTH),
        patch=PATCH,
        max_tiles=r.integer("vision_max_num_chunks", "vision.max_tiles", highest=MAX_TILES, default=4),
        width=width,
        num_layers=min(counts["transformer"], MAX_LAYERS),
        num_global_layers=min(counts["global_transformer"], MAX_LAYERS),
        num_heads=HEADS,
        ffn_width=(ffn[0] if ffn else 0) * len(gather.shards),
        kept=KEPT,
    )
    if not width or width % HEADS or cfg.num_layers <= max(KEPT):
        raise FileProblem(
            f"{FILE}: asks for pictures, and the shards hold an encoder of {cfg.num_layers} layers and width {width}; Meta's has "
            f"more than {max(KEPT)} layers and {HEADS} heads."
        )
    if cfg.tile % PATCH:
        r.problem(f"vision_chunk_size is {cfg.tile}; it must be whole patches of {PATCH}")
    return cfg


def _source(spec: TensorSpec, cfg: Llama3VisionConfig, gather: Gather) -> Source | None:
    """Where a weight comes from. Tables of places have more axes there."""
    if spec.name == "embed":
        base = gather.whole(mllama_names.META_EMBED[0], (cfg.vocab_size, cfg.width), 0)
        extra = gather.whole(mllama_names.META_EMBED[1], (EXTRA_ROWS, cfg.width), 0)
        return None if base is None or extra is None else Joined((base, extra), 0)
    axis = mllama_names.META_SPLIT.get(mllama_names.pattern(spec.name))
    shape = stored_shape(spec, cfg.vision)
    source = gather.whole(mllama_names.in_meta(spec.name), shape, axis)
    return source if source is None or shape == spec.shape else Reshaped(source, spec.shape)


def stored_shape(spec: TensorSpec, vision: EncoderConfig) -> tuple[int, ...]:
    """The shape of a weight in these folders."""
    match spec.name:
        case "vision.class_row":
            return (vision.width,)
        case "vision.tile_positions":
            return (vision.max_tiles, vision.max_tiles, vision.tile_rows, vision.width)
        case "vision.before" | "vision.after":
            return (vision.max_tiles, vision.max_tiles, 1, vision.width)
    return spec.shape
