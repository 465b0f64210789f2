"""What a record of training data is, whatever shape it was written in."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import field
from pathlib import Path
from typing import Any

from herd.data.reading import Place
from herd.errors import FileProblem
from herd.records import dataclass
from herd.text.messages import Image, Message
from herd.text.tools import BuiltIn, Tool

Tools = tuple[Tool | BuiltIn, ...]
Messages = tuple[Message, ...]


@dataclass(frozen=True, slots=True)
class Passage:
    """Plain text, to be learned as a whole."""

    place: Place
    text: str


@dataclass(frozen=True, slots=True)
class Chat:
    """A conversation that ends with an answer.

    weights    how much each message counts, those of others than the assistant nothing; None: every answer counts 1
    is_plain   it was given as a prompt and its completion, so it can be learned without a chat format too
    """

    place: Place
    messages: Messages
    tools: Tools = ()
    weights: tuple[float, ...] | None = None
    is_plain: bool = False


@dataclass(frozen=True, slots=True)
class Preference:
    """Two answers to one prompt, of which the first is the better one. An answer is the messages after the prompt. margin: by how much
    it is better, if the record says so."""

    place: Place
    prompt: Messages
    chosen: Messages
    rejected: Messages
    tools: Tools = ()
    is_plain: bool = False
    margin: float | None = None


@dataclass(frozen=True, slots=True)
class Judged:
    """An answer to a prompt, and whether it is a good one."""

    place: Place
    prompt: Messages
    answer: Messages
    is_good: bool
    tools: Tools = ()
    is_plain: bool = False


@dataclass(frozen=True, slots=True)
class Task:
    """A prompt that is to be answered.

    checks   what to check its answers by, if anything: `answer` (the exact one), `tests` (of code), `schema` (JSON schema), `check` (the
             name of a checker)
    facts    the record's other fields, for checkers of one's own
    """

    place: Place
    messages: Messages
    checks: Mapping[str, Any] = field(default_factory=dict)
    facts: Mapping[str, Any] = field(default_factory=dict)
    tools: Tools = ()
    is_plain: bool = False


Sample = Passage | Chat | Preference | Judged | Task


class PictureFile(Image):
    """A picture that lies in a file, read when it is looked at. `FileProblem` then, if it cannot be."""

    __slots__ = ("path",)
    path: Path

    def __init__(self, path: Path) -> None:
        object.__setattr__(self, "path", path)

    def __reduce__(self) -> tuple[type[PictureFile], tuple[Path]]:
        return PictureFile, (self.path,)

    @property
    def source(self) -> bytes:
        """The bytes of the file."""
        try:
            return self.path.read_bytes()
        except OSError as problem:
            raise FileProblem(f"{self.path}: the picture cannot be read: {problem.strerror or problem}.") from None
