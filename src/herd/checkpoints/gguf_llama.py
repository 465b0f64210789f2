"""GGUF checkpoints of llama and Llama 4: keys to config, names to weights, split files to one model."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from herd.checkpoints import gguf_keys, names
from herd.checkpoints.account import account, check_config
from herd.checkpoints.advice import read_advice
from herd.checkpoints.checkpoint import About, Checkpoint, Fact, TokenizerSource
from herd.checkpoints.config_reader import MAX_CONTEXT, MAX_HEADS, MAX_LAYERS, MAX_VOCABULARY, MAX_WIDTH, ConfigReader, shown
from herd.checkpoints.gguf import GgufFile, Metadata, read_gguf
from herd.checkpoints.gguf_shared import any_of, rope_of, vocab_size_of
from herd.checkpoints.stored import Source, StoredTensor
from herd.errors import FileProblem, UsageError
from herd.files import MappedFile
from herd.models import llama
from herd.models.architecture import Config, architecture_of

ARCHITECTURES = ("llama", "llama4")
HARMLESS_KEYS = {
    "general.alignment": "used when the tensors were laid out",
    "*.tensor_data_layout": "a note of the converter; llama files have one layout",
    "*.rope.scaling.finetuned": "says how the model was trained, not how it is computed",
    "*.expert_used_count": "meaningless without experts, which are refused",
    "split.tensors.count": "compared with the parts when they are put together",
}
HARMLESS_PREFIXES = {
    "general.": "describes the model to people: names, licences, sources",
    "tokenizer.": "read by herd.text",
    "quantize.": "describes how the file was quantised",
    "mradermacher.": "notes of a publisher of quantised files",
    "split.": "used when the parts of a split file are put together",
    gguf_keys.FILES: "files that came with the model before it was converted",
}
# Refused unless they say what the llama architecture does anyway.
NEUTRAL = {
    "expert_count": ((0,), "models with experts are not read in this layout"),
    "use_parallel_residual": ((False,), "llama adds attention and feed-forward one after the other"),
    "attention.causal": ((True,), "only causal attention is computed"),
    "attention.sliding_window": ((0,), "llama attends to everything"),
    "attention.clamp_kqv": ((0.0,), "llama does not clamp"),
    "attention.max_alibi_bias": ((0.0,), "llama has rotary positions"),
    "logit_scale": ((0.0, 1.0), "llama does not scale its logits"),
    "residual_scale": ((0.0, 1.0), "llama does not scale its residuals"),
    "embedding_scale": ((0.0, 1.0), "llama does not scale its embeddings"),
    "attention.scale": ((0.0,), "llama scales by the square root of the head width"),
    "pooling_type": ((0,), "llama predicts the next token and does not pool"),
}
SAMPLING_PREFIX = "general.sampling."
SAMPLING = {
    SAMPLING_PREFIX + key: name
    for key, name in {
        "temp": "temperature",
        "top_k": "top_k",
        "top_p": "top_p",
        "min_p": "min_p",
        "penalty_repeat": "repetition_penalty",
    }.items()
}
SPLIT_NAME = re.compile(r"(?P<base>.*)-(?P<part>\d{5})-of-(?P<parts>\d{5})\.gguf", re.DOTALL)


def open_gguf(path: Path, mmproj: Path | str | None = None) -> Checkpoint:
    """Open a GGUF file, or the first of the parts of a split one. `mmproj`: the file with a Llama 4's part that sees pictures;
    None: the one beside it, if there is one; "off": none."""
    parts = [read_gguf(MappedFile(path))]
    parts += _further_parts(path, parts[0])
    return assemble(path, parts, _eyes_beside(path, parts[0], mmproj))


def _eyes_beside(path: Path, first: GgufFile, mmproj: Path | str | None) -> Path | None:
    """The file with the part that sees pictures, if there is one."""
    if mmproj == "off":
        return None
    architecture = first.metadata.get("general.architecture")
    if architecture != "llama4":
        if mmproj is not None:
            raise UsageError(f"mmproj goes with the GGUF file of a Llama 4; {path.name} is {shown(architecture)}.")
        return None
    from herd.checkpoints.gguf_mmproj import beside

    return beside(path, None if mmproj is None else Path(mmproj))


def assemble(path: Path, parts: list[GgufFile], mmproj: Path | None = None) -> Checkpoint:
    """The checkpoint that consists of these parts; the first has the keys. `mmproj`: the file of a Llama 4's eyes."""
    first = parts[0]
    tensors = _all_tensors(parts)
    where = first.file.name
    facts: dict[str, Fact] = {}
    cfg = _config(first.metadata, tensors, where, facts)
    check_config(cfg, where, len(tensors))
    harmless = {"rope_freqs.weight": "is the scaling of the rotary frequencies, part of the config"}
    specs = tuple(architecture_of(cfg).tensors(cfg))
    sources: dict[str, Source] = dict(account(specs, tensors, _names_of(cfg), where, harmless))
    widened = gguf_keys.widened(first.metadata, frozenset(spec.name for spec in specs), where)
    files = [part.file for part in parts]
    if mmproj is not None:
        from herd.checkpoints.gguf_mmproj import read_eyes

        text: Any = cfg  # a Llama 4's, which `_eyes_beside` has seen to
        eyes = read_eyes(mmproj, text, first.metadata, facts)
        cfg, specs, files = replace(text, vision=eyes.config), specs + eyes.specs, [*files, eyes.file]
        sources |= eyes.sources
        widened |= eyes.widened
    return Checkpoint(
        path=path,
        layout="gguf",
        config=cfg,
        specs=specs,
        sources=sources,
        files=files,
        about=_about(first.metadata, cfg, where, facts),
        architecture=str(facts["architecture"].value),
        widened=widened,
    )


def _names_of(cfg: Config) -> dict[str, str]:
    """What files call the weights of this architecture."""
    if isinstance(cfg, llama.LlamaConfig):
        return names.GGUF
    from herd.checkpoints.gguf_llama4 import NAMES

    return NAMES


def _further_parts(path: Path, first: GgufFile) -> list[GgufFile]:
    declared = first.metadata.get("split.count", 1)
    match = SPLIT_NAME.fullmatch(path.name)
    count = int(match["parts"]) if match else 1
    if declared != count or (declared in (0, 1) and not match):
        if declared in (0, 1) and not match:
            return []
        raise FileProblem(
            f"{path.name}: split.count is {shown(declared)} and the name says {count}. "
            "Parts must be called <name>-00001-of-0000N.gguf, as they were published."
        )
    assert match is not None
    if int(match["part"]) != 1 or first.metadata.get("split.no", 0) != 0:
        beginning = f"{match['base']}-00001-of-{match['parts']}.gguf"
        raise FileProblem(f"{path.name}: is a later part of a split model. Open its first part, {beginning}.")
    parts = []
    for number in range(2, count + 1):
        part_path = path.with_name(f"{match['base']}-{number:05d}-of-{match['parts']}.gguf")
        if not part_path.exists():
            raise FileProblem(f"{part_path.name}: is missing beside {path.name}; the model has {count} parts and all are needed.")
        part = read_gguf(MappedFile(part_path))
        says = (part.metadata.get("split.no"), part.metadata.get("split.count"))
        if says != (number - 1, count):
            raise FileProblem(
                f"{part_path.name}: split.no and split.count are {shown(says)}; by its name they must be {number - 1} and {count}. "
                "The parts were renamed or come from different models."
            )
        if odd := [key for key in part.metadata if not key.startswith(("split.", "general."))]:
            raise FileProblem(f"{part_path.name}: has the key {odd[0]!a}; only the first part of a split model carries such keys.")
        parts.append(part)
    return parts


def _all_tensors(parts: list[GgufFile]) -> dict[str, StoredTensor]:
    tensors: dict[str, StoredTensor] = {}
    for part in parts:
        if twice := next((name for name in part.tensors if name in tensors), None):
            other = tensors[twice].file.name
            raise FileProblem(f"{part.file.name}: holds {twice!a}, which {other} holds too. The parts do not belong together.")
        tensors |= part.tensors
    declared = parts[0].metadata.get("split.tensors.count", len(tensors))
    if declared != len(tensors):
        raise FileProblem(f"{parts[0].file.name}: split.tensors.count is {shown(declared)} and the parts hold {len(tensors)} tensors.")
    return tensors


def _config(metadata: Metadata, tensors: Mapping[str, StoredTensor], where: str, facts: dict[str, Fact]) -> Config:
    """The config of the architecture that the file names, every key of it accounted for."""
    r = ConfigReader(metadata, where, facts)
    architecture = _kind(r, metadata, where)
    if architecture == "llama4":
        from herd.checkpoints.gguf_llama4 import read_llama4_config

        cfg: Config = read_llama4_config(r, metadata, tensors, where)
    else:
        cfg = _llama_config(r, metadata, tensors)
    for key, (allowed, because) in NEUTRAL.items():
        if r.has(key := f"{architecture}.{key}") and key in r.unread():
            r.expect(key, *allowed, because=because)
    for key in gguf_keys.WIDENED:
        r.raw(key)
    r.raw(gguf_keys.CONFIG)
    harmless = {key.replace("*", architecture): because for key, because in HARMLESS_KEYS.items()}
    r.finish("herd reads files whose every key it understands.", harmless, HARMLESS_PREFIXES)
    tied = "output.weight" not in tensors
    facts["tied_embeddings"] = Fact(tied, f"output.weight is {'absent' if tied else 'present'} in {where}")
    return gguf_keys.exact_config(cfg, metadata, where)


def _llama_config(r: ConfigReader, metadata: Metadata, tensors: Mapping[str, StoredTensor]) -> llama.LlamaConfig:
    width = r.integer("llama.embedding_length", "width", highest=MAX_WIDTH)
    num_layers = r.integer("llama.block_count", "num_layers", highest=MAX_LAYERS)
    num_heads = r.uniform("llama.attention.head_count", "num_heads", highest=MAX_HEADS, count=num_layers)
    if width % num_heads and not r.has("llama.attention.key_length"):
        r.problem(f"llama.embedding_length is {width}, which {num_heads} heads do not divide, and llama.attention.key_length is missing")
    head_width = r.integer("llama.attention.key_length", "head_width", highest=MAX_WIDTH, default=max(1, width // num_heads))
    r.expect("llama.attention.value_length", head_width, because="keys and values of one width are supported")
    vocab_size = vocab_size_of("llama", r, metadata, tensors)
    return llama.LlamaConfig(
        width=width,
        num_layers=num_layers,
        num_heads=num_heads,
        num_kv_heads=r.uniform("llama.attention.head_count_kv", "num_kv_heads", highest=MAX_HEADS, count=num_layers, default=num_heads),
        head_width=head_width,
        ffn_width=r.uniform("llama.feed_forward_length", "ffn_width", highest=MAX_VOCABULARY, count=num_layers),
        vocab_size=vocab_size,
        context_length=r.integer("llama.context_length", "context_length", highest=MAX_CONTEXT),
        norm_eps=r.number("llama.attention.layer_norm_rms_epsilon", "norm_eps", lowest=1e-12, highest=0.1),
        rope=rope_of("llama", r, tensors, head_width),
        tied_embeddings="output.weight" not in tensors,
        qkv_bias=any_of(tensors, "attn_q.bias", "attn_k.bias", "attn_v.bias"),
        out_bias=any_of(tensors, "attn_output.bias"),
        ffn_bias=any_of(tensors, "ffn_gate.bias", "ffn_up.bias", "ffn_down.bias"),
    )


def _kind(r: ConfigReader, metadata: Metadata, where: str) -> str:
    """The architecture. Refuses what is not a model, or not a llama, before any key is judged."""
    architecture = r.raw("general.architecture")
    if architecture == "clip":
        raise FileProblem(f"{where}: is the part of a model that sees pictures. Open the file of its text; this one is found beside it.")
    if architecture not in ARCHITECTURES:
        raise FileProblem(
            f"{where}: general.architecture is {shown(architecture)}; herd reads {' and '.join(map(repr, ARCHITECTURES))} from GGUF files. "
            + ("The key is missing or not a text." if not isinstance(architecture, str) else "Another program is needed for this model.")
        )
    r.facts["architecture"] = Fact(architecture, f"general.architecture in {where}")
    r.expect("general.type", "model", because="adapters, projectors and importance matrices are no models of their own")
    r.expect("general.quantization_version", 2, because="the meaning of the block formats has changed before it")
    for key, fact in (("general.name", "name"), ("general.license", "licence"), ("general.file_type", "file_type")):
        if isinstance(value := metadata.get(key), str | int):
            r.note(fact, value, key)
    return str(architecture)


def _about(metadata: Metadata, cfg: Config, where: str, facts: dict[str, Fact]) -> About:
    """Tokenizer, template, stop ids and sampling advice, as the keys give them."""
    stop_ids: list[int] = []
    for key in ("eos", "eot", "eom"):
        full = f"tokenizer.ggml.{key}_token_id"
        value: Any = metadata.get(full)
        if value is None:
            continue
        if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < cfg.vocab_size:
            raise FileProblem(f"{where}: {full} is {shown(value)}; allowed is a token from 0 to {cfg.vocab_size - 1}.")
        stop_ids.append(value)
    template = metadata.get("tokenizer.chat_template")
    if template is not None:
        if not isinstance(template, str):
            raise FileProblem(f"{where}: tokenizer.chat_template is {shown(template)}; allowed is a text.")
        facts["chat_template"] = Fact(f"{len(template)} characters", f"tokenizer.chat_template in {where}")
    has_tokens = "tokenizer.ggml.tokens" in metadata
    if has_tokens:
        facts["tokenizer"] = Fact(f"{shown(metadata.get('tokenizer.ggml.model'))}, {cfg.vocab_size} tokens", f"tokenizer.ggml.* in {where}")
    if stop_ids:
        facts["stop_ids"] = Fact(tuple(dict.fromkeys(stop_ids)), f"tokenizer.ggml.*_token_id in {where}")
    if unused := sorted(key for key in metadata if key.startswith(SAMPLING_PREFIX) and key not in SAMPLING):
        facts["advice_not_followed"] = Fact(", ".join(shown(key)[1:-1] for key in unused), where)
    return About(
        facts=facts,
        tokenizer=TokenizerSource("gguf", metadata=metadata.only("tokenizer.")) if has_tokens else None,
        chat_template=template,
        sampling_defaults=read_advice(metadata, SAMPLING, where),
        stop_ids=tuple(dict.fromkeys(stop_ids)),
        texts=gguf_keys.texts(metadata, where),
    )
