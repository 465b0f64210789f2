"""Folders in Meta's own layout: params.json, consolidated.00.pth and its further shards, tokenizer.model.

A model of several shards is cut for as many devices: most matrices by rows, some by columns, norms are in every shard. They are
put together when a weight is read. Where there are fewer kv heads than shards (405B in 16), neighbours hold the same head.
Sources: Meta's `llama_models/checkpoint.py` (which axis), fairscale's layers, published files.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from herd.checkpoints import names
from herd.checkpoints.account import check_config, refuse
from herd.checkpoints.checkpoint import Checkpoint, Fact
from herd.checkpoints.config_reader import shown
from herd.checkpoints.folder import inside
from herd.checkpoints.huggingface_text import read_about
from herd.checkpoints.meta_params import FILE, read_params
from herd.checkpoints.meta_quantised import Quantised
from herd.checkpoints.meta_shards import Gather, Shards
from herd.checkpoints.pth import PthFile, read_pth
from herd.checkpoints.safetensors import Entry
from herd.checkpoints.stored import Source, StoredTensor
from herd.checkpoints.tokenizer_size import count_pieces
from herd.dtypes import BF16, F8_E4M3, F16, F32, I8, DType
from herd.errors import FileProblem
from herd.files import MappedFile, read_json
from herd.models import llama
from herd.models.weights import TensorSpec

DTYPES: dict[str, DType] = {"F32": F32, "F16": F16, "BF16": BF16, "I8": I8, "F8_E4M3": F8_E4M3}
SHARD = re.compile(r"consolidated\.(\d{2,})\.pth")
TRAINING_STATE = "_extra_state"  # notes of the training program, in Llama 4's files
HARMLESS = {"rope.freqs": "a table of rotary frequencies, which follow from params.json"}

Found = tuple[Any, tuple[TensorSpec, ...], dict[str, Source], list[MappedFile]]
"""The config, its weights, where each one's bytes come from, and further files that hold some of them."""
Reader = Callable[[Path, Mapping[str, Any], Shards, dict[str, Fact]], Found]


def open_meta(folder: Path) -> Checkpoint:
    """Open a folder with params.json."""
    values = read_json(inside(folder, FILE, folder.name))
    files = [read_pth(MappedFile(path)) for path in shard_paths(folder)]
    facts: dict[str, Fact] = {}
    shards = [_stored(file) for file in files]
    read = _reader(values, shards)
    cfg, specs, sources, extra = read(folder, values, shards, facts)
    about = read_about(folder, {}, cfg.vocab_size, facts)
    _note(facts, files)
    return Checkpoint(
        path=folder,
        layout="meta",
        config=cfg,
        specs=specs,
        sources=sources,
        files=[*(file.file for file in files), *extra],
        about=about,
        architecture=str(facts["architecture"].value),
    )


def _reader(values: Mapping[str, Any], shards: Shards) -> Reader:
    """What reads this kind of model."""
    if values.get("vision_num_cross_attention_layers", -1) != -1 or values.get("vision_chunk_size", -1) != -1:
        from herd.checkpoints.meta_llama3_vision import read_llama3_vision

        return read_llama3_vision
    if any(name.endswith(".attention.wqkv.weight") for name in shards[0]):
        from herd.checkpoints.meta_llama4 import read_llama4

        return read_llama4
    return _read_llama


def _read_llama(folder: Path, values: Mapping[str, Any], shards: Shards, facts: dict[str, Fact]) -> Found:
    cfg = read_params(values, _vocab_size(folder, values, shards), facts)
    cfg, specs, sources, extra = match(cfg, shards, folder, values)
    said = "are the same bytes" if cfg.tied_embeddings else "are two tensors"
    facts["tied_embeddings"] = Fact(cfg.tied_embeddings, f"tok_embeddings.weight and output.weight {said} in consolidated.*.pth")
    return cfg, specs, sources, extra


def shard_paths(folder: Path) -> list[Path]:
    """consolidated.00.pth and those that follow it, without a hole."""
    found = sorted((int(match[1]), path.name) for path in folder.iterdir() if (match := SHARD.fullmatch(path.name)))
    if not found:
        pte = next(folder.glob("*.pte"), None)
        hint = f" {pte.name} is a program for ExecuTorch, which is not read: take the model as .pth, safetensors or GGUF." if pte else ""
        raise FileProblem(f"{folder}: has {FILE} but no consolidated.00.pth.{hint}")
    numbers = [number for number, _ in found]
    if numbers != list(range(len(numbers))):
        missing = sorted(set(range(max(numbers) + 1)) - set(numbers))
        lacking = ", ".join(f"consolidated.{number:02d}.pth" for number in missing[:5])
        raise FileProblem(
            f"{folder}: {lacking or 'a shard'} is missing, or a number is there twice; the shards are numbered from 00 without a hole."
        )
    return [inside(folder, name, folder.name) for _, name in found]


def _stored(file: PthFile) -> dict[str, StoredTensor]:
    """The tensors of one shard. `FileProblem` names those in a format that no weight is stored in."""
    kept = {name: entry for name, entry in file.tensors.items() if not name.endswith(TRAINING_STATE)}
    odd = [f"{shown(entry.name)} is stored as {entry.dtype}" for entry in kept.values() if entry.dtype not in DTYPES]
    if odd:
        refuse(file.file.name, odd, f"{', '.join(DTYPES)} are read.")
    return {name: _tensor(entry) for name, entry in kept.items()}


def _tensor(entry: Entry) -> StoredTensor:
    return StoredTensor(entry.name, DTYPES[entry.dtype], entry.shape, entry.file, entry.offset)


def _vocab_size(folder: Path, values: Mapping[str, Any], shards: Shards) -> int:
    """The size of the vocabulary for files that say -1: what the tokenizer counts, else the rows of the embedding."""
    declared = values.get("vocab_size", -1)
    embed = shards[0].get(names.META["embed"])
    rows = embed.shape[0] if embed is not None and embed.shape else 1
    if declared != -1 or not (folder / "tokenizer.model").exists():
        return rows
    counted = count_pieces(inside(folder, "tokenizer.model", FILE))
    return rows if counted is None else counted


def match(
    cfg: llama.LlamaConfig, shards: Shards, folder: Path, values: Mapping[str, Any]
) -> tuple[llama.LlamaConfig, tuple[TensorSpec, ...], dict[str, Source], list[MappedFile]]:
    """Every weight of the config against every tensor of the shards: the config (with what only tensors tell), the weights, where
    each one's bytes come from, and further files that hold some of them."""
    check_config(cfg, FILE, sum(map(len, shards)))
    cfg = replace(cfg, tied_embeddings=_is_tied(shards))
    specs = tuple(llama.tensors(cfg))
    quantised = Quantised(folder, values, shards)
    gather = Gather(shards, HARMLESS.__contains__)
    if cfg.tied_embeddings:
        gather.used |= {names.META["head"], _scales(names.META["head"])}
    sources: dict[str, Source] = {}
    for spec in specs:
        axis, copies = _cut(spec, cfg, shards)
        leaf = partial(quantised.leaf, spec)
        if (source := gather.whole(names.in_file(names.META, spec.name), spec.shape, axis, copies, leaf)) is not None:
            sources[spec.name] = source
    gather.used |= quantised.used
    gather.problems[:0] = quantised.problems
    gather.finish(folder.name, "a llama model")
    return cfg, specs, sources, quantised.files


def _cut(spec: TensorSpec, cfg: llama.LlamaConfig, shards: Shards) -> tuple[int | None, int]:
    """Along which axis the shards divide a weight (None: all have the whole), and how many neighbours hold the same piece."""
    count = len(shards)
    if spec.name == "embed":  # Llama 1 and 2 cut its columns, Llama 3 its rows.
        first = shards[0].get(names.META["embed"])
        return (1 if first is not None and first.shape[:1] == spec.shape[:1] else 0), 1
    axis = names.META_SPLIT.get(names.pattern(spec.name))
    is_kv = spec.name.rpartition(".")[2] in ("k", "v", "k_bias", "v_bias")
    shared = is_kv and count > cfg.num_kv_heads and count % cfg.num_kv_heads == 0
    return axis, (count // cfg.num_kv_heads if shared else 1)


def _is_tied(shards: Shards) -> bool:
    """Whether the head is the embedding: both names stand for the same bytes of the file."""

    def is_same(one: StoredTensor | None, two: StoredTensor | None) -> bool:
        return one is not None and two is not None and (one.offset, one.shape) == (two.offset, two.shape)

    embed, head = names.META["embed"], names.META["head"]
    are_scaled = any(_scales(name) in shard for name in (embed, head) for shard in shards)
    pairs = [(embed, head), *([(_scales(embed), _scales(head))] if are_scaled else [])]
    return all(is_same(shard.get(one), shard.get(two)) for one, two in pairs for shard in shards)


def _scales(name: str) -> str:
    """Where the scales of a quantised weight are."""
    return name.removesuffix("weight") + "scales"


def _note(facts: dict[str, Fact], files: Sequence[PthFile]) -> None:
    count = len(files)
    dtypes = sorted({entry.dtype.lower() for file in files for entry in file.tensors.values()})
    facts["stored_as"] = Fact(", ".join(dtypes), f"{count} shard{'s' * (count > 1)}, consolidated.*.pth")
