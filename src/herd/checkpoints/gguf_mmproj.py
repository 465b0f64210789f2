"""The part of a Llama 4 that sees pictures, as a GGUF file of its own beside that of the text: `mmproj-*.gguf`.

    general.architecture = clip, clip.projector_type = llama4, clip.vision.*: the numbers; v.*: the encoder, mm.*: what leads to the text

Such a file does not say which token stands for a picture's rows; the tokenizer in the text's file does. Files of ours keep the
exact numbers as `herd.config`. Source: llama.cpp's `tools/mtmd` (`clip.cpp`, `models/llama4.cpp`) and its converter.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from herd.checkpoints import gguf_keys, names
from herd.checkpoints.account import account
from herd.checkpoints.checkpoint import Fact
from herd.checkpoints.config_reader import MAX_HEADS, MAX_LAYERS, MAX_VOCABULARY, MAX_WIDTH, ConfigReader, shown
from herd.checkpoints.config_text import describe, restore
from herd.checkpoints.gguf import GgufFile, Metadata, read_gguf
from herd.checkpoints.sources import Reshaped
from herd.checkpoints.stored import Source
from herd.dtypes import DType
from herd.errors import FileProblem
from herd.files import MappedFile
from herd.files.json import parse_json
from herd.models.encoder_blocks import NORM_EPS
from herd.models.llama4 import Llama4Config
from herd.models.llama4_vision import Llama4VisionConfig, tensors
from herd.models.weights import TensorSpec
from herd.records import dataclass

AT = "clip.vision"
MEAN = 0.5
"""Of each colour, and its spread: pixels go from -1 to 1."""
PICTURE_TOKEN, PATCH_TOKEN, TOKENS = "<|patch|>", 200092, "tokenizer.ggml.tokens"
HARMLESS = {"general.alignment": "used when the tensors were laid out"}
HARMLESS_PREFIXES = {"general.": "describes the file to people: names, licences, sources"}
_LAYER = "vision.layers.{}."
NAMES = {
    "vision.patches": "v.patch_embd.weight",
    "vision.class": "v.class_embd",
    "vision.positions": "v.position_embd.weight",
    "vision.first_norm": "v.pre_ln.weight",
    "vision.first_norm_bias": "v.pre_ln.bias",
    "vision.last_norm": "v.post_ln.weight",
    "vision.last_norm_bias": "v.post_ln.bias",
    "vision.adapter.in": "mm.model.mlp.1.weight",
    "vision.adapter.out": "mm.model.mlp.2.weight",
    "vision.projection": "mm.model.fc.weight",
}
for _ours, _theirs in {
    "attention_norm": "ln1", "attention.q": "attn_q", "attention.k": "attn_k", "attention.v": "attn_v", "attention.out": "attn_out",
    "ffn_norm": "ln2", "ffn.up": "ffn_up", "ffn.down": "ffn_down",
}.items():  # fmt: skip
    NAMES |= {f"{_LAYER}{_ours}": f"v.blk.{{}}.{_theirs}.weight", f"{_LAYER}{_ours}_bias": f"v.blk.{{}}.{_theirs}.bias"}


@dataclass(frozen=True, slots=True)
class Eyes:
    """What such a file adds to a text model."""

    config: Llama4VisionConfig
    specs: tuple[TensorSpec, ...]
    sources: Mapping[str, Source]
    widened: Mapping[str, DType]
    file: MappedFile


def beside(path: Path, mmproj: Path | None) -> Path | None:
    """The file that belongs to the text at `path`: the one that was named, or the only one in its folder, or that of its name.
    `FileProblem` where several could be meant."""
    if mmproj is not None:
        if not mmproj.is_file():
            raise FileProblem(f"{mmproj}: does not exist, or is no file.")
        return mmproj
    found = sorted(path.parent.glob("mmproj-*.gguf"))
    own = [each for each in found if each.name == name_beside(path)]
    if len(found) > 1 and not own:
        listed = " and ".join(each.name for each in found[:4])
        raise FileProblem(f"{path.name}: {listed} are beside it, and each could be the part that sees pictures. Say which: mmproj=...")
    return next(iter(own or found), None)


def name_beside(path: Path) -> str:
    """What the file beside a text's is called when both are written."""
    return f"mmproj-{path.name}"


def read_eyes(path: Path, cfg: Llama4Config, metadata: Metadata, facts: dict[str, Fact]) -> Eyes:
    """The file at `path`, for the text of this config and these keys. `FileProblem` for what does not fit."""
    found = read_gguf(MappedFile(path))
    where = found.file.name
    vision = _config(found, cfg, _picture_token(cfg, metadata), facts)
    specs = tuple(tensors(vision, cfg.width))
    stored = [replace(spec, shape=spec.shape[1:]) if spec.name == "vision.class" else spec for spec in specs]
    sources: dict[str, Source] = dict(account(stored, found.tensors, NAMES, where, {}))
    sources["vision.class"] = Reshaped(sources["vision.class"], (1, vision.width))
    facts["vision"] = Fact(f"{vision.num_layers} layers", where)
    widened = gguf_keys.widened(found.metadata, frozenset(spec.name for spec in specs), where)
    return Eyes(vision, specs, sources, widened, found.file)


def _config(found: GgufFile, cfg: Llama4Config, picture_token: int, facts: dict[str, Fact]) -> Llama4VisionConfig:
    where = found.file.name
    r = ConfigReader(found.metadata, where, facts)
    r.expect("general.architecture", "clip", because="this file is to be the part of a model that sees pictures")
    r.expect("general.type", "mmproj", because="this file is to be the part of a model that sees pictures")
    r.expect("clip.has_vision_encoder", True, because="without an encoder nothing is seen")
    r.expect("clip.has_audio_encoder", False, because="a Llama 4 hears nothing")
    key = "clip.projector_type" if r.has("clip.projector_type") else f"{AT}.projector_type"
    if (kind := r.raw(key)) != "llama4":
        r.problem(f"{key} is {shown(kind)}; 'llama4' belongs to a Llama 4, which {cfg.num_layers} layers of text were read for")
    r.expect("clip.use_gelu", True, because="the encoder's activation is GELU")
    r.expect("clip.use_silu", False, because="the encoder's activation is GELU")
    r.expect(f"{AT}.projection_dim", cfg.width, because="pictures become rows as wide as the text's")
    eps = r.number(f"{AT}.attention.layer_norm_epsilon", lowest=1e-12, highest=0.1, default=NORM_EPS)
    if abs(eps - NORM_EPS) > 1e-9:
        r.problem(f"{AT}.attention.layer_norm_epsilon is {eps:g}; Llama 4 has {NORM_EPS:g}")
    for key in (f"{AT}.image_mean", f"{AT}.image_std"):
        r.expect(key, [MEAN] * 3, because="pixels go from -1 to 1")
    plain = Llama4VisionConfig(
        width=r.integer(f"{AT}.embedding_length", "vision.width", highest=MAX_WIDTH),
        num_layers=r.integer(f"{AT}.block_count", "vision.num_layers", highest=MAX_LAYERS),
        num_heads=r.integer(f"{AT}.attention.head_count", "vision.num_heads", highest=MAX_HEADS),
        ffn_width=r.integer(f"{AT}.feed_forward_length", "vision.ffn_width", highest=MAX_VOCABULARY),
        tile=r.integer(f"{AT}.image_size", "vision.tile", highest=MAX_WIDTH),
        patch=r.integer(f"{AT}.patch_size", "vision.patch", highest=MAX_WIDTH),
        merge=r.integer(f"{AT}.projector.scale_factor", "vision.merge", highest=64),
        adapter_width=_adapter_width(found),
        picture_token=picture_token,
    )
    if plain.tile % plain.patch or plain.side % plain.merge or plain.width % (4 * plain.num_heads):
        r.problem(f"{AT}.*: tiles must be whole patches in whole squares, and a head's width a multiple of four")
    for key in (*gguf_keys.WIDENED, gguf_keys.CONFIG):
        r.raw(key)
    r.finish("herd reads files whose every key it understands.", HARMLESS, HARMLESS_PREFIXES)
    exact = _exact(plain, found, cfg.width)
    if not 1.0 <= exact.rope_theta <= 1e15 or not 1 <= exact.adapter_width <= MAX_WIDTH:
        raise FileProblem(f"{where}: {gguf_keys.CONFIG} has numbers that no Llama 4 can have: {exact}.")
    if not 0 <= exact.picture_token < cfg.vocab_size:
        raise FileProblem(
            f"{where}: the text's {cfg.vocab_size} tokens have no {PICTURE_TOKEN}, which stands for the rows of a picture. It belongs to "
            "another text."
        )
    return exact


def _adapter_width(found: GgufFile) -> int:
    tensor = found.tensors.get(NAMES["vision.adapter.out"])
    return tensor.shape[0] if tensor is not None else 1


def _picture_token(cfg: Llama4Config, metadata: Metadata) -> int:
    """The id of the token that stands for one row of a picture, as the text's tokenizer has it, or as the releases have; -1 if
    that is not in the vocabulary."""
    tokens = metadata.only(TOKENS).get(TOKENS)  # a copy: those of the text itself stay undecoded
    if isinstance(tokens, list) and PICTURE_TOKEN in tokens:
        return tokens.index(PICTURE_TOKEN)
    return PATCH_TOKEN if cfg.vocab_size > PATCH_TOKEN else -1


def _exact(plain: Llama4VisionConfig, found: GgufFile, width: int) -> Llama4VisionConfig:
    """The numbers that a file of ours keeps, if the ordinary keys agree with them."""
    text, where = found.metadata.get(gguf_keys.CONFIG), found.file.name
    if text is None:
        return plain
    if not isinstance(text, str) or len(text) > 1 << 20:
        raise FileProblem(f"{where}: {gguf_keys.CONFIG} is {shown(text)}; allowed is a text.")
    at = f"{where}: {gguf_keys.CONFIG}"
    exact = restore(Llama4VisionConfig, parse_json(text.encode("utf-8", "surrogatepass"), at), at)
    for key, value in keys_of(exact, width).items():
        if isinstance(value, int | str) and key != gguf_keys.CONFIG and found.metadata.get(key) != value:
            raise FileProblem(
                f"{where}: {key} is {shown(found.metadata.get(key))} and {gguf_keys.CONFIG} means {shown(value)}. The file was changed "
                f"after it was written; remove {gguf_keys.CONFIG} if the other keys are right."
            )
    return exact


def keys_of(cfg: Llama4VisionConfig, width: int) -> dict[str, Any]:
    """The keys of such a file, for a text of this width."""
    return {
        "clip.has_vision_encoder": True,
        "clip.projector_type": "llama4",
        f"{AT}.projection_dim": width,
        f"{AT}.image_size": cfg.tile,
        f"{AT}.patch_size": cfg.patch,
        f"{AT}.embedding_length": cfg.width,
        f"{AT}.feed_forward_length": cfg.ffn_width,
        f"{AT}.block_count": cfg.num_layers,
        f"{AT}.attention.head_count": cfg.num_heads,
        f"{AT}.attention.layer_norm_epsilon": NORM_EPS,
        f"{AT}.projector.scale_factor": cfg.merge,
        f"{AT}.image_mean": [MEAN] * 3,
        f"{AT}.image_std": [MEAN] * 3,
        "clip.use_gelu": True,
        gguf_keys.CONFIG: json.dumps(describe(cfg), separators=(",", ":")),
    }


def in_file(name: str) -> str:
    """What such files call our weight `name`."""
    return names.in_file(NAMES, name)
