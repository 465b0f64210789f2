"""The files beside the weights: which are carried along as they are, and which are written anew for another layout."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from herd.checkpoints.checkpoint import Checkpoint
from herd.checkpoints.folder import inside
from herd.checkpoints.gguf_keys import FILES
from herd.convert.notices import GENERATION, MAX_TEXT_BYTES, TEXTS, with_notices
from herd.convert.tokens import ranks_file, tokenizer_config, tokenizer_json
from herd.errors import FileProblem
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


def texts(checkpoint: Checkpoint) -> dict[str, bytes]:
    """Licence, notice, use policy, model card and advice on sampling, by name: from the source's folder, or out of a GGUF file
    that carries them."""
    if checkpoint.layout == "gguf":
        return {name: text.encode() for name, text in checkpoint.texts.items()}
    if not checkpoint.path.is_dir():
        return {}
    found: dict[str, bytes] = {}
    for pattern in (*TEXTS, GENERATION):
        for path in sorted(checkpoint.path.glob(pattern)):
            if path.is_file():
                found[path.name] = _read(checkpoint.path, path.name, MAX_TEXT_BYTES)
    return found


def folder_files(checkpoint: Checkpoint, vocabulary: Vocabulary | None, to: str, notes: list[str]) -> dict[str, bytes]:
    """Everything of a folder but config and weights, by name."""
    files = with_notices(texts(checkpoint), checkpoint.path, notes, _licence_of(checkpoint))
    files |= _tokenizer_files(checkpoint, vocabulary, to, notes)
    is_classifier = checkpoint.architecture == CLASSIFIER
    if not is_classifier and GENERATION not in files and (generation := _generation(checkpoint, vocabulary)):
        files[GENERATION] = as_json(generation)
    return files


def _tokenizer_files(checkpoint: Checkpoint, vocabulary: Vocabulary | None, to: str, notes: list[str]) -> dict[str, bytes]:
    files: dict[str, bytes] = {}
    if checkpoint.path.is_dir():
        files = {name: _read(checkpoint.path, name, MAX_BYTES) for name in (*TOKENIZER, *PICTURES) if (checkpoint.path / name).is_file()}
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
    for name, data in with_notices(texts(checkpoint), checkpoint.path, notes, _licence_of(checkpoint)).items():
        try:
            found[FILES + name] = data.decode()
        except UnicodeDecodeError as problem:
            raise FileProblem(
                f"{name}: is not valid UTF-8 at byte {problem.start}, so a GGUF file cannot carry it. Remove or mend it."
            ) from problem
    return found


def _licence_of(checkpoint: Checkpoint) -> str:
    """What a GGUF file says its licence is."""
    return str(checkpoint.facts["licence"].value) if "licence" in checkpoint.facts else ""


def _read(folder: Path, name: str, most: int) -> bytes:
    path = inside(folder, name, folder.name)
    size = path.stat().st_size
    if size > most:
        raise FileProblem(f"{path}: has {size} bytes; at most {most} are carried along.")
    return path.read_bytes()


def as_json(values: Mapping[str, Any]) -> bytes:
    """A JSON file as people read it."""
    return (json.dumps(values, indent=2, ensure_ascii=False) + "\n").encode()
