"""The texts beside a model: licence, notices, use policy, card. What is converted, tuned or served from it is told by the same ones."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from herd.checkpoints.folder import inside
from herd.checkpoints.gguf import read_gguf
from herd.checkpoints.gguf_keys import texts as carried_texts
from herd.files.mapped import MappedFile
from herd.files.text import read_bytes
from herd.planner.notices import licence_told
from herd.records import dataclass

TEXTS = ("LICENSE*", "LICENCE*", "NOTICE*", "USE_POLICY*", "ACCEPTABLE_USE*", "README*", "MODEL_CARD*")
CARDS = ("README", "MODEL_CARD")
GENERATION = "generation_config.json"
MAX_TEXT_BYTES = 1 << 20
_LICENCE_KEYS = ("general.license", "general.license.name")


@dataclass(frozen=True, slots=True)
class ModelTexts:
    """`files` by name, the advice on sampling among them; `licence`: what a GGUF file says its licence is."""

    files: Mapping[str, bytes]
    licence: str = ""


def texts_at(source: Path) -> ModelTexts:
    """The texts of the model at `source`: those of its folder, or those that its GGUF file carries inside. Beside a single file may lie
    anything, so of its folder only texts of a Llama licence are taken, with their notices.

    `FileProblem` for a text that is too large to be one, or a link that leads out of the folder.
    """
    if source.is_dir():
        return ModelTexts(_in_folder(source, (*TEXTS, GENERATION)))
    if not source.is_file():
        return ModelTexts({})
    inner = _in_gguf(source) if source.suffix == ".gguf" else ModelTexts({})
    beside = {name: data for name, data in _in_folder(source.parent, TEXTS).items() if not name.upper().startswith(CARDS)}
    if not inner.files and licence_told(beside) is not None:
        return ModelTexts(beside, inner.licence)
    return inner


def _in_folder(folder: Path, patterns: tuple[str, ...]) -> dict[str, bytes]:
    names = dict.fromkeys(path.name for pattern in patterns for path in sorted(folder.glob(pattern)) if path.is_file())
    return {name: read_bytes(inside(folder, name, folder.name), MAX_TEXT_BYTES) for name in names}


def _in_gguf(path: Path) -> ModelTexts:
    file = MappedFile(path)
    try:
        metadata = read_gguf(file).metadata
        texts = {name: text.encode() for name, text in carried_texts(metadata, file.name).items()}
        return ModelTexts(texts, " ".join(str(metadata[key]) for key in _LICENCE_KEYS if key in metadata))
    finally:
        file.close()
