"""The texts beside a model: licence, notices, use policy, card. What is converted, tuned or served from it is told by the same ones."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from fnmatch import fnmatch
from pathlib import Path

from herd.checkpoints.folder import inside
from herd.checkpoints.gguf import read_gguf
from herd.checkpoints.gguf_keys import texts as carried_texts
from herd.errors import FileProblem
from herd.files.mapped import MappedFile
from herd.files.text import read_bytes
from herd.planner.notices import licence_told
from herd.records import dataclass

LICENCES = ("LICENSE*", "LICENCE*", "NOTICE*", "USE_POLICY*", "ACCEPTABLE_USE*")
CARDS = ("README*", "MODEL_CARD*")
GENERATION = "generation_config.json"
MAX_TEXT_BYTES = 1 << 20
_LICENCE_KEYS = ("general.license", "general.license.name")


@dataclass(frozen=True, slots=True)
class ModelTexts:
    """`files` by name, the advice on sampling among them; `licence`: what a GGUF file says its licence is; `notes`: what was left out."""

    files: Mapping[str, bytes]
    licence: str = ""
    notes: tuple[str, ...] = ()


def texts_at(source: Path) -> ModelTexts:
    """The texts of the model at `source`: those of its folder, or those that its GGUF file carries inside. Beside a single file may lie
    anything, so of its folder only texts of a Llama licence are taken, with their notices. A file that is too large to be such a text,
    or a link that leads out of the folder, is left out and told of.
    """
    if source.is_dir():
        return _in_folder(source, (*LICENCES, *CARDS, GENERATION))
    if not source.is_file():
        return ModelTexts({})
    inner = _in_gguf(source) if source.suffix == ".gguf" else ModelTexts({})
    beside = _in_folder(source.parent, LICENCES)
    if not inner.files and licence_told(beside.files) is not None:
        return replace(beside, licence=inner.licence)
    return inner


def is_card(name: str) -> bool:
    """Whether a file is about the model itself, and so not about what is made from it."""
    return name == GENERATION or any(fnmatch(name, pattern) for pattern in CARDS)


def _in_folder(folder: Path, patterns: tuple[str, ...]) -> ModelTexts:
    files, notes = {}, []
    for name in dict.fromkeys(path.name for pattern in patterns for path in sorted(folder.glob(pattern)) if path.is_file()):
        try:
            files[name] = read_bytes(inside(folder, name, folder.name), MAX_TEXT_BYTES)
        except FileProblem as problem:
            notes.append(f"{problem} It is not carried along.")
    return ModelTexts(files, notes=tuple(notes))


def _in_gguf(path: Path) -> ModelTexts:
    file = MappedFile(path)
    try:
        metadata = read_gguf(file).metadata
        texts = {name: text.encode() for name, text in carried_texts(metadata, file.name).items()}
        return ModelTexts(texts, " ".join(str(metadata[key]) for key in _LICENCE_KEYS if key in metadata))
    finally:
        file.close()
