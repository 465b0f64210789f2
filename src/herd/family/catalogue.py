"""What is known about each release of the family: the strict reader of `family.toml` and the lookup by name.

find("llama-3.2-1b-instruct") -> Release       find("lama-3.2-1b") -> UsageError that suggests the right name
"""

from __future__ import annotations

import datetime
import difflib
import tomllib
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, fields
from functools import cache
from pathlib import Path
from typing import Any

from herd.errors import FileProblem, UsageError
from herd.models.llama import LlamaConfig
from herd.models.rope import Llama3, Rope

DEFAULT_NAME = "smollm2-135m-instruct"
"""What `herd chat` talks to when it is not told."""

_TABLES = {"shapes", "generations", "releases"}
_LOW_FREQ_FACTOR, _HIGH_FREQ_FACTOR, _ORIGINAL_CONTEXT = 1.0, 4.0, 8192


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """The numbers of an architecture, as in `LlamaConfig`."""

    width: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_width: int
    ffn_width: int
    vocab_size: int
    tied_embeddings: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Wheel:
    """A model file that travels inside a Python wheel: which wheel, which member, and what the member must be."""

    requirement: str
    member: str
    num_bytes: int
    sha256: str

    @property
    def file_name(self) -> str:
        """The name of the member without its folders: the name it gets in the models folder."""
        return self.member.rpartition("/")[2]


@dataclass(frozen=True, slots=True, kw_only=True)
class Release:
    """One published model. `sampling` are its publisher's recommended values; `knowledge_cutoff` is year-month.

    `unavailable` says why it cannot be pulled, where that is so. `repository` is its id on the hub.
    """

    name: str
    generation: str
    title: str
    shape: Shape
    parameters: int
    context_length: int
    rope_theta: float
    norm_eps: float
    licence: str
    released: datetime.date
    languages: tuple[str, ...]
    gated: bool
    rope_factor: float | None = None
    knowledge_cutoff: str | None = None
    repository: str | None = None
    chat_format: str | None = None
    sampling: Mapping[str, float] | None = None
    wheel: Wheel | None = None
    unavailable: str | None = None

    def config(self) -> LlamaConfig:
        """The architecture as published, for sums about a model that is not here."""
        shape = self.shape
        scaling = Llama3(self.rope_factor, _LOW_FREQ_FACTOR, _HIGH_FREQ_FACTOR, _ORIGINAL_CONTEXT) if self.rope_factor else None
        return LlamaConfig(
            width=shape.width,
            num_layers=shape.num_layers,
            num_heads=shape.num_heads,
            num_kv_heads=shape.num_kv_heads,
            head_width=shape.head_width,
            ffn_width=shape.ffn_width,
            vocab_size=shape.vocab_size,
            context_length=self.context_length,
            norm_eps=self.norm_eps,
            rope=Rope(self.rope_theta, shape.head_width, scaling),
            tied_embeddings=shape.tied_embeddings,
        )


@cache
def releases() -> Mapping[str, Release]:
    """All releases by name, in the order of the file."""
    return read_catalogue(Path(__file__).with_name("family.toml").read_text(encoding="utf-8"))


def find(name: str) -> Release:
    """The release of this name or hub id, whatever its case. `UsageError` with suggestions for an unknown one."""
    known = releases()
    wanted = name.strip().lower()
    if wanted in known:
        return known[wanted]
    for release in known.values():
        if release.repository is not None and wanted in (release.repository.lower(), release.repository.rpartition("/")[2].lower()):
            return release
    raise UsageError(
        f"No model is known as {name!r:.80}{_suggestion(wanted, known)} `herd models` lists what is known; "
        "a .gguf file or a folder works too."
    )


def _suggestion(wanted: str, known: Mapping[str, Release]) -> str:
    close = difflib.get_close_matches(wanted[:80], known, n=3, cutoff=0.6)
    return f"; did you mean {' or '.join(close)}?" if close else "."


def read_catalogue(text: str) -> dict[str, Release]:
    """Releases from the text of a catalogue. `FileProblem` names the entry and key that is unknown, missing or wrong."""
    try:
        tables = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise FileProblem(f"The catalogue is not valid TOML: {error}.") from error
    unknown = sorted(set(tables) - _TABLES)
    if unknown:
        raise FileProblem(f"The catalogue has the table {unknown[0]!r}; expected {', '.join(sorted(_TABLES))}.")
    shapes = {name: _read(Shape, f"shapes.{name}", entry) for name, entry in tables.get("shapes", {}).items()}
    generations = tables.get("generations", {})
    return {name: _release(name, entry, generations, shapes) for name, entry in tables.get("releases", {}).items()}


def _release(name: str, entry: Mapping[str, Any], generations: Mapping[str, Any], shapes: Mapping[str, Shape]) -> Release:
    at = f"releases.{name}"
    for key, known in (("generation", generations), ("shape", shapes)):
        if entry.get(key) not in known:
            raise FileProblem(f"{at}.{key} is {entry.get(key)!r}; the catalogue has {', '.join(known) or 'none'}.")
    values = {**generations[entry["generation"]], **entry, "shape": shapes[entry["shape"]], "name": name}
    if "wheel" in values:
        values["wheel"] = _read(Wheel, f"{at}.wheel", values["wheel"])
    values["languages"] = tuple(values.get("languages", ()))
    release: Release = _read(Release, at, values)
    return release


def _read(kind: type[Any], at: str, values: Mapping[str, Any]) -> Any:
    """A dataclass from a table: no unknown key, none missing, the types as declared."""
    declared = {field.name: field for field in fields(kind)}
    for key, value in values.items():
        if key not in declared:
            close = difflib.get_close_matches(key, declared, n=1)
            raise FileProblem(f"{at} has the unknown key {key!r}{f'; did you mean {close[0]!r}' if close else ''}.")
        _check_type(f"{at}.{key}", str(declared[key].type), value)
    missing = [name for name, field in declared.items() if field.default is MISSING and name not in values]
    if missing:
        raise FileProblem(f"{at} lacks {', '.join(missing)}.")
    return kind(**values)


_PYTHON_TYPES: Mapping[str, type[Any]] = {
    "int": int,
    "float": float,
    "bool": bool,
    "str": str,
    "Shape": Shape,
    "Wheel": Wheel,
    "datetime.date": datetime.date,
    "tuple[str, ...]": tuple,
    "Mapping[str, float]": dict,
}


def _check_type(at: str, declared: str, value: Any) -> None:
    expected = _PYTHON_TYPES[declared.removesuffix(" | None")]
    if type(value) is not expected:
        raise FileProblem(f"{at} is {value!r}; expected {declared}.")
