"""Folders in Meta's own layout: params.json, consolidated.00.pth and its further shards, tokenizer.model.

A model of several shards is cut for as many devices: most matrices by rows, some by columns, norms are in every shard. They are
put together when a weight is read. Where there are fewer kv heads than shards (405B in 16), neighbours hold the same head.
Sources: Meta's `llama_models/checkpoint.py` (which axis), fairscale's layers, published files.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
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
from herd.checkpoints.pth import PthFile, read_pth
from herd.checkpoints.safetensors import Entry
from herd.checkpoints.sources import Joined, SameBytes, Source, StoredTensor
from herd.checkpoints.tokenizer_size import count_pieces
from herd.dtypes import BF16, F8_E4M3, F16, F32, I8, DType
from herd.errors import FileProblem
from herd.files import MappedFile, read_json
from herd.models import llama
from herd.models.weights import TensorSpec

DTYPES: dict[str, DType] = {"F32": F32, "F16": F16, "BF16": BF16, "I8": I8, "F8_E4M3": F8_E4M3}
SHARD = re.compile(r"consolidated\.(\d{2,})\.pth")
HARMLESS = {"rope.freqs": "a table of rotary frequencies, which follow from params.json"}
WRONG = "params.json and the shards are from different models, or the file is of a kind that is not known."
EVERY_SHARD = "which every shard must hold alike. The shards are from different models, or one is damaged."

Shards = list[dict[str, StoredTensor]]


def open_meta(folder: Path) -> Checkpoint:
    """Open a folder with params.json."""
    values = read_json(inside(folder, FILE, folder.name))
    if "vision_chunk_size" in values or "moe_args" in values or "vision_args" in values:
        raise FileProblem(f"{folder}: params.json describes a model with pictures or experts; take it as a Hugging Face folder.")
    files = [read_pth(MappedFile(path)) for path in shard_paths(folder)]
    facts: dict[str, Fact] = {}
    shards = [_stored(file) for file in files]
    cfg = read_params(values, _vocab_size(folder, values, shards), facts)
    cfg, specs, sources, extra = match(cfg, shards, folder, values)
    about = read_about(folder, {}, cfg.vocab_size, facts)
    _note(facts, cfg, files)
    mapped = [*(file.file for file in files), *extra]
    return Checkpoint(path=folder, layout="meta", config=cfg, specs=specs, sources=sources, files=mapped, about=about)


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
    odd = [f"{shown(entry.name)} is stored as {entry.dtype}" for entry in file.tensors.values() if entry.dtype not in DTYPES]
    if odd:
        refuse(file.file.name, odd, f"{', '.join(DTYPES)} are read.")
    return {name: _tensor(entry) for name, entry in file.tensors.items()}


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
    merge = _Merge(cfg, shards, quantised)
    sources = {spec.name: source for spec in specs if (source := merge.source(spec)) is not None}
    merge.finish(folder.name)
    return cfg, specs, sources, quantised.files


def _is_tied(shards: Shards) -> bool:
    """Whether the head is the embedding: both names stand for the same bytes of the file."""
    pairs = [(shard.get(names.META["embed"]), shard.get(names.META["head"])) for shard in shards]
    return all(one is not None and two is not None and (one.offset, one.shape) == (two.offset, two.shape) for one, two in pairs)


class _Merge:
    """Puts weights together, and collects everything that does not fit."""

    def __init__(self, cfg: llama.LlamaConfig, shards: Shards, quantised: Quantised) -> None:
        self._cfg = cfg
        self._shards = shards
        self._quantised = quantised
        self._problems = list(quantised.problems)
        self._used: set[str] = set(HARMLESS)
        if cfg.tied_embeddings:
            self._used.add(names.META["head"])

    def source(self, spec: TensorSpec) -> Source | None:
        """Where the bytes of a weight come from; None if something is wrong with it."""
        name = names.in_file(names.META, spec.name)
        self._used.add(name)
        pieces = [shard.get(name) for shard in self._shards]
        if absent := [number for number, piece in enumerate(pieces) if piece is None]:
            where = "" if len(absent) == len(pieces) else f" in consolidated.{absent[0]:02d}.pth"
            self._problems.append(f"{name} {list(spec.shape)} is missing{where}")
            return None
        found = [piece for piece in pieces if piece is not None]
        axis, copies = self._cut(spec, found[0])
        expected = list(spec.shape)
        if axis is not None:
            expected[axis] = spec.shape[axis] * copies // len(found)
        for number, piece in enumerate(found):
            if list(piece.shape) != expected:
                whole = f" of {len(found)}, so that the whole is {list(spec.shape)}" if len(found) > 1 else ""
                self._problems.append(
                    f"{name} has shape {list(piece.shape)} in consolidated.{number:02d}.pth; expected is {expected}{whole}"
                )
                return None
        if len({piece.dtype.name for piece in found}) > 1:
            self._problems.append(
                f"{name} is stored as {' and '.join(sorted({piece.dtype.name for piece in found}))}; one format is expected"
            )
            return None
        try:
            leaves = [self._quantised.leaf(spec, piece, number) for number, piece in enumerate(found)]
        except FileProblem as problem:
            self._problems.append(str(problem))
            return None
        return _together(leaves, axis, copies)

    def _cut(self, spec: TensorSpec, first: StoredTensor) -> tuple[int | None, int]:
        """Along which axis the shards divide a weight (None: all have the whole), and how many neighbours hold the same piece."""
        count, cfg = len(self._shards), self._cfg
        if count == 1:
            return None, 1
        if spec.name == "embed":  # Llama 1 and 2 cut its columns, Llama 3 its rows.
            return (1 if first.shape[:1] == spec.shape[:1] else 0), 1
        axis = names.META_SPLIT.get(names.pattern(spec.name))
        is_kv = spec.name.rpartition(".")[2] in ("k", "v", "k_bias", "v_bias")
        shared = is_kv and count > cfg.num_kv_heads and count % cfg.num_kv_heads == 0
        return axis, (count // cfg.num_kv_heads if shared else 1)

    def finish(self, where: str) -> None:
        """Refuse if something was wrong or left over."""
        for number, shard in enumerate(self._shards):
            place = "" if len(self._shards) == 1 else f" in consolidated.{number:02d}.pth"
            left = [tensor for name, tensor in shard.items() if name not in self._used | self._quantised.used]
            self._problems += [f"{shown(tensor.name)} {list(tensor.shape)}{place} belongs to no part of a llama model" for tensor in left]
        if self._problems:
            refuse(where, self._problems, WRONG)


def _together(pieces: Sequence[Source], axis: int | None, copies: int) -> Source:
    """One weight out of the pieces of all shards."""
    if len(pieces) == 1:
        return pieces[0]
    if axis is None:
        return SameBytes(pieces[0], tuple(pieces[1:]), EVERY_SHARD)
    if copies > 1:
        because = "which must hold the same kv head, since there are fewer heads than shards. They are from different models."
        groups = [pieces[at : at + copies] for at in range(0, len(pieces), copies)]
        pieces = [SameBytes(group[0], tuple(group[1:]), because) for group in groups]
    return Joined(tuple(pieces), axis) if len(pieces) > 1 else pieces[0]


def _note(facts: dict[str, Fact], cfg: llama.LlamaConfig, files: Sequence[PthFile]) -> None:
    count = len(files)
    dtypes = sorted({entry.dtype.lower() for file in files for entry in file.tensors.values()})
    facts["stored_as"] = Fact(", ".join(dtypes), f"{count} shard{'s' * (count > 1)}, consolidated.*.pth")
    said = "are the same bytes" if cfg.tied_embeddings else "are two tensors"
    facts["tied_embeddings"] = Fact(cfg.tied_embeddings, f"tok_embeddings.weight and output.weight {said} in consolidated.*.pth")
