"""Folders in Hugging Face layout: config.json, model.safetensors or its shards, and the files about text.

`config.json` names the architecture (`model_type`); what its config and tensors are called is a `Naming`, one for each.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from herd.checkpoints import names
from herd.checkpoints.account import account, check_config
from herd.checkpoints.checkpoint import Checkpoint, Fact
from herd.checkpoints.config_reader import shown
from herd.checkpoints.folder import inside
from herd.checkpoints.huggingface_config import FILE
from herd.checkpoints.huggingface_fp8 import without_quantisation
from herd.checkpoints.huggingface_pixels import check_pixels
from herd.checkpoints.huggingface_text import read_about
from herd.checkpoints.safetensors import Entry, read_safetensors
from herd.checkpoints.sources import Built, Interleaved, SameBytes, Source, StoredTensor
from herd.dtypes import BF16, F16, F32, DType
from herd.errors import FileProblem
from herd.files import MappedFile, read_json
from herd.models.architecture import Config, architecture_of
from herd.models.weights import TensorSpec

DTYPES: dict[str, DType] = {"F32": F32, "F16": F16, "BF16": BF16}
SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
INV_FREQ = re.compile(r"(.*\.)?(layers\.\d+\.self_attn\.)?rotary_emb\.inv_freq")
TIED = "but config.json says tie_word_embeddings: true, so that both are one matrix. Set it to false if the stored head is meant."
MODEL_TYPES = ("llama", "mllama", "llama4", "llama4_text", "muse_glimmer", "deberta-v2")
SHARD = re.compile(r"model-\d{5}-of-\d{5}\.safetensors")


@dataclass(frozen=True, slots=True)
class Naming:
    """How the folders of one `model_type` name things.

    read       the config, from the values of config.json, what they are called in messages, and the facts to fill
    names      our name of a weight -> theirs
    stored     a weight -> the tensors that hold it in files, or none where another weight's hold it too; here each is one alike
    source     where a weight comes from, given the tensors that were found
    spelled    a tensor's name as `names` has it, where files spell it in several ways
    """

    read: Callable[[Mapping[str, Any], str, dict[str, Fact]], Config]
    names: dict[str, str]
    stored: Callable[[TensorSpec], tuple[TensorSpec, ...]]
    source: Callable[[TensorSpec, Mapping[str, Source]], Source]
    spelled: Callable[[str], str] = str


def naming_of(model_type: object, where: str) -> Naming:
    """The naming for a `model_type`. `FileProblem` for one that is not read."""
    if model_type == "llama":
        from herd.checkpoints.huggingface_config import read_config

        return Naming(read_config, names.HUGGING_FACE, lambda spec: (spec,), _in_our_order)
    if model_type in ("llama4", "llama4_text"):
        import herd.checkpoints.huggingface_llama4 as llama4

        table = llama4.NAMES if model_type == "llama4" else names.HUGGING_FACE_LLAMA4
        return Naming(llama4.read_config, table, llama4.stored, llama4.source)
    if model_type == "muse_glimmer":
        import herd.checkpoints.huggingface_muse_glimmer as muse_glimmer

        return Naming(muse_glimmer.read_config, muse_glimmer.NAMES, lambda spec: (spec,), _in_our_order)
    if model_type == "deberta-v2":
        import herd.checkpoints.huggingface_deberta as deberta

        return Naming(deberta.read_config, deberta.NAMES, lambda spec: (spec,), _in_our_order)
    if model_type == "mllama":
        import herd.checkpoints.huggingface_mllama as mllama

        reader = mllama.Reader()
        return Naming(reader.read_config, reader.names, reader.stored, reader.source, reader.spelled)
    known = ", ".join(map(repr, MODEL_TYPES))
    raise FileProblem(f"{where}: model_type is {shown(model_type)}; herd reads {known} from Hugging Face folders.")


def open_huggingface(folder: Path) -> Checkpoint:
    """Open a folder with config.json."""
    values = read_json(inside(folder, FILE, folder.name))
    facts: dict[str, Fact] = {}
    naming = naming_of(values.get("model_type"), FILE)
    entries = _entries(folder)
    plain_values, plain, built = without_quantisation(values, entries)
    cfg = naming.read(plain_values, FILE, facts)
    specs, sources = match(cfg, plain, folder.name, naming, built)
    check_pixels(folder, cfg)
    about = read_about(folder, {**(values.get("text_config") or {}), **values}, cfg.vocab_size, facts)
    files = {id(entry.file): entry.file for entry in entries.values()}
    dtypes = sorted({entry.dtype.lower() for entry in entries.values()})
    facts["stored_as"] = Fact(", ".join(dtypes), f"the headers of {len(files)} safetensors file{'s' * (len(files) > 1)}")
    return Checkpoint(
        path=folder,
        layout="huggingface",
        config=cfg,
        specs=specs,
        sources=sources,
        files=list(files.values()),
        about=about,
        architecture=str(facts["architecture"].value),
    )


def match(
    cfg: Config, entries: Mapping[str, Entry], where: str, naming: Naming | None = None, built: Mapping[str, Built] | None = None
) -> tuple[tuple[TensorSpec, ...], dict[str, Source]]:
    """Every weight of the config against every tensor of the files: the weights, and where each one's bytes come from. `naming`
    None: that of llama. `built`: further tensors, made of several of the files'."""
    naming = naming or naming_of("llama", where)
    entries = _spelled(entries, naming, where)
    check_config(cfg, FILE, len(entries) + len(built or {}))
    specs = tuple(architecture_of(cfg).tensors(cfg))
    harmless = {name: "a table of rotary frequencies, which follow from the config" for name in entries if INV_FREQ.fullmatch(name)}
    head, embed = naming.names.get("head", ""), naming.names["embed"]
    is_twice = all(spec.name != "head" for spec in specs) and head in entries
    if is_twice:
        harmless[head] = "compared with the embedding, which it must equal, when that is read"
    unreadable = [
        f"{shown(entry.name)} is stored as {entry.dtype}; F32, F16 and BF16 are read"
        for entry in entries.values()
        if entry.dtype not in DTYPES and entry.name not in harmless
    ]
    tensors: dict[str, StoredTensor | Built] = {entry.name: _stored(entry) for entry in entries.values() if entry.dtype in DTYPES}
    tensors |= {naming.spelled(name): tensor for name, tensor in (built or {}).items()}
    stored = [each for spec in specs for each in naming.stored(spec)]
    found = account(stored, tensors, naming.names, where, harmless, unreadable)
    sources = {spec.name: naming.source(spec, found) for spec in specs}
    if is_twice:
        if (entries[head].shape, entries[head].dtype) != (entries[embed].shape, entries[embed].dtype):
            raise FileProblem(
                f"{where}: {head} is {entries[head].dtype} {list(entries[head].shape)} and {embed} is {entries[embed].dtype} "
                f"{list(entries[embed].shape)}, but config.json says tie_word_embeddings: true, so that both are one matrix."
            )
        sources["embed"] = SameBytes(sources["embed"], (tensors[head],), TIED)
    return specs, sources


def _in_our_order(spec: TensorSpec, found: Mapping[str, Source]) -> Source:
    """The tensor itself, with the halves of rotated heads interleaved."""
    return Interleaved(found[spec.name], spec.rotary_heads) if spec.rotary_heads else found[spec.name]


def _spelled(entries: Mapping[str, Entry], naming: Naming, where: str) -> dict[str, Entry]:
    """The tensors under the names that `naming` knows."""
    renamed: dict[str, Entry] = {}
    for name, entry in entries.items():
        known = naming.spelled(name)
        if known in renamed:
            raise FileProblem(f"{where}: holds {shown(known)} twice, under names that mean the same. Remove the one that is not meant.")
        renamed[known] = replace(entry, name=known)
    return renamed


def _stored(entry: Entry) -> StoredTensor:
    return StoredTensor(entry.name, DTYPES[entry.dtype], entry.shape, entry.file, entry.offset)


def _entries(folder: Path) -> dict[str, Entry]:
    """Every tensor of the folder, each in exactly one file."""
    single, index = (folder / SINGLE).exists(), (folder / INDEX).exists()
    if single and index:
        raise FileProblem(f"{folder}: has both {SINGLE} and {INDEX}, which may disagree. Remove the one that is not meant.")
    if single:
        if shards := sorted(path.name for path in folder.iterdir() if SHARD.fullmatch(path.name)):
            raise FileProblem(f"{folder}: has both {SINGLE} and {shown(shards)}, which belong to a split model. Remove what is not meant.")
        return read_safetensors(MappedFile(inside(folder, SINGLE, folder.name)))
    if index:
        return _sharded(folder, read_json(inside(folder, INDEX, folder.name)))
    raise FileProblem(f"{folder}: has {FILE} but neither {SINGLE} nor {INDEX}.{_other_weights(folder)}")


def _sharded(folder: Path, index: dict[str, Any]) -> dict[str, Entry]:
    weight_map, metadata = index.get("weight_map"), index.get("metadata", {})
    if set(index) - {"weight_map", "metadata"} or not isinstance(weight_map, dict) or not isinstance(metadata, dict):
        raise FileProblem(f"{INDEX}: has the keys {shown(sorted(index))}; expected are the objects weight_map and metadata.")
    if not weight_map or not all(isinstance(shard, str) and shard.endswith(".safetensors") for shard in weight_map.values()):
        raise FileProblem(f"{INDEX}: weight_map must give the name of a .safetensors file for each tensor.")
    shards = sorted(set(weight_map.values()))
    paths = {shard: inside(folder, shard, INDEX) for shard in shards}
    present = {path.name for path in folder.iterdir() if SHARD.fullmatch(path.name)}
    if extra := sorted(present - set(paths)):
        raise FileProblem(f"{INDEX}: does not name {shown(extra)}, which is in the folder too. The shards of two models are mixed.")
    entries: dict[str, Entry] = {}
    for shard in shards:
        for name, entry in read_safetensors(MappedFile(paths[shard])).items():
            if name in entries:
                other = entries[name].file.name
                raise FileProblem(f"{shard}: holds {shown(name)}, which {other} holds too; a tensor belongs in one shard.")
            if weight_map.get(name) != shard:
                raise FileProblem(f"{shard}: holds {shown(name)}, for which {INDEX} names {shown(weight_map.get(name))}.")
            entries[name] = entry
    if missing := [name for name in weight_map if name not in entries]:
        raise FileProblem(f"{INDEX}: places {shown(missing)} in {shown(weight_map[missing[0]])}, which does not hold it.")
    total = metadata.get("total_size")
    stored = sum(entry.num_bytes for entry in entries.values())
    if total is not None and total != stored:
        raise FileProblem(f"{INDEX}: total_size is {shown(total)} and the shards hold {stored} bytes. They are from different models.")
    return entries


def _other_weights(folder: Path) -> str:
    """What to do about the weights that a folder has instead."""
    if next(folder.glob("*.bin"), None) or next(folder.glob("*.pth"), None):
        return " Its weights are pickles (.bin, .pth), which are not read: they can run code. Save the model again as safetensors."
    if next(folder.glob("*.gguf"), None):
        return " It has a GGUF file: open that file itself."
    return ""
