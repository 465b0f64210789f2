"""What an answer is held to: data only. `grammar` makes masks of it."""

from __future__ import annotations

from enum import Enum

from herd.records import dataclass


class ConstraintKind(Enum):
    """What the text of a constraint is written in."""

    JSON_OBJECT = "json_object"
    """Any JSON object; the text is empty."""
    JSON_SCHEMA = "json_schema"
    """A JSON Schema, as JSON text."""
    REGEX = "regex"
    """A regular expression that the whole answer matches, in the syntax of Rust's `regex` crate."""
    GRAMMAR = "grammar"
    """A context-free grammar in llguidance's variant of Lark."""


@dataclass(frozen=True, slots=True)
class Constraint:
    """An answer is, from its first token to its last, a text of this language."""

    kind: ConstraintKind
    text: str = ""
