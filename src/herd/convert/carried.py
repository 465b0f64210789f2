"""The files beside the weights: which are carried along as they are, and which are written anew for another layout."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from herd.checkpoints.checkpoint import Checkpoint
from herd.checkpoints.folder import inside
from herd.checkpoints.gguf_keys import FILES
from herd.convert.notices import with_notices
from herd.convert.texts import GENERATION
from herd.convert.tokens import ranks_file, tokenizer_config, tokenizer_json
from herd.errors import FileProblem
from herd.files.text import read_bytes
from herd.text.vocabulary import Vocabulary

CLASSIFIER = "deberta-v2"
TOKENIZER = (
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "chat_template.json",
)
PICTURES = ("preprocessor_config.json", "processor_config.json")
MAX_BYTES = 64 << 20


def folder_files(checkpoint: Checkpoint, vocabulary: Vocabulary | None, to: str, notes: list[str]) -> dict[str, bytes]:
    """Everything of a folder but config and weights, by name."""
    files = with_notices(checkpoint.path, notes)
    files |= _tokenizer_files(checkpoint, vocabulary, to, notes)
    if checkpoint.architecture != CLASSIFIER and (GENERATION not in files or checkpoint.is_taught):
        generation = _generation(checkpoint, vocabulary) | _said(files.get(GENERATION))
        generation |= {"eos_token_id": list(checkpoint.stop_ids)} if checkpoint.is_taught else {}
        files |= {GENERATION: as_json(generation)} if generation else {}
    return files


def _tokenizer_files(checkpoint: Checkpoint, vocabulary: Vocabulary | None, to: str, notes: list[str]) -> dict[str, bytes]:
    files: dict[str, bytes] = {}
    if checkpoint.path.is_dir():
        own = (*TOKENIZER, *PICTURES) if _is_own_tokenizer(checkpoint) else PICTURES
        files = {name: _read(checkpoint.path, name) for name in own if (checkpoint.path / name).is_file()}
    if checkpoint.is_taught and checkpoint.chat_template is not None:
        files["chat_template.jinja"] = checkpoint.chat_template.encode()
    if vocabulary is None:
        notes.append("The source has no tokenizer, so the new model knows token ids only.")
        return files
    if "tokenizer.json" not in files and (to == "hf" or "tokenizer.model" not in files):
        files["tokenizer.json"] = tokenizer_json(vocabulary)
        files.setdefault("tokenizer_config.json", as_json(tokenizer_config(vocabulary, checkpoint.chat_template)))
    if to == "meta" and "tokenizer.model" not in files:
        ranks = ranks_file(vocabulary)
        if ranks is not None:
            files["tokenizer.model"] = ranks
        else:
            notes.append("Meta's tokenizer.model cannot hold this vocabulary; tokenizer.json, which herd reads, was written instead.")
    return files


def _is_own_tokenizer(checkpoint: Checkpoint) -> bool:
    """Whether the tokenizer is that of the checkpoint's folder, and not one that it was given besides."""
    source = checkpoint.tokenizer
    if source is None or source.path is None:
        return source is None
    files = (checkpoint.path / name for name in TOKENIZER)
    return any(file.is_file() and file.samefile(source.path) for file in files)


def _said(data: bytes | None) -> dict[str, Any]:
    """What a file of advice says already."""
    found = json.loads(data) if data is not None else {}
    return found if isinstance(found, dict) else {}


def _generation(checkpoint: Checkpoint, vocabulary: Vocabulary | None) -> dict[str, Any]:
    """generation_config.json from what the source recommends."""
    values: dict[str, Any] = {}
    ends = list(checkpoint.stop_ids or (vocabulary.eos_ids if vocabulary is not None else ()))
    if vocabulary is not None and vocabulary.bos_id is not None:
        values["bos_token_id"] = vocabulary.bos_id
    if ends:
        values["eos_token_id"] = ends if len(ends) > 1 else ends[0]
    if checkpoint.sampling_defaults:
        values |= {"do_sample": True, **checkpoint.sampling_defaults}
    return values


def gguf_texts(checkpoint: Checkpoint, notes: list[str]) -> dict[str, str]:
    """The same files as keys of a GGUF file."""
    found: dict[str, str] = {}
    for name, data in with_notices(checkpoint.path, notes).items():
        try:
            found[FILES + name] = data.decode()
        except UnicodeDecodeError as problem:
            raise FileProblem(
                f"{name}: is not valid UTF-8 at byte {problem.start}, so a GGUF file cannot carry it. Remove or mend it."
            ) from problem
    return found


def _read(folder: Path, name: str) -> bytes:
    return read_bytes(inside(folder, name, folder.name), MAX_BYTES)


def as_json(values: Mapping[str, Any]) -> bytes:
    """A JSON file as people read it."""
    return (json.dumps(values, indent=2, ensure_ascii=False) + "\n").encode()
