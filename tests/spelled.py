"""A small vocabulary in which one text can be spelled in many ways: bytes, a few longer pieces, and control tokens."""

from __future__ import annotations

import json
from typing import Any

from herd.sampling.constraint import Constraint, ConstraintKind
from herd.sampling.grammar import Grammars, Spelling

PIECES = ['{"', '":', '": ', ", ", "name", "true", '"}', "12", "ab", "abc", "  ", "é", "\n", '", "', "null"]
TOKENS = [bytes([byte]) for byte in range(256)] + [piece.encode() for piece in PIECES] + [b"<stop>", b"<tag>", b""]
STOP, TAG, EMPTY = len(TOKENS) - 3, len(TOKENS) - 2, len(TOKENS) - 1
VOCAB = len(TOKENS)
_LONGEST_FIRST = sorted(range(256 + len(PIECES)), key=lambda token: -len(TOKENS[token]))


def encode(text: str) -> list[int]:
    rest, ids = text.encode(), []
    while rest:
        token = next(token for token in _LONGEST_FIRST if rest.startswith(TOKENS[token]))
        ids.append(token)
        rest = rest[len(TOKENS[token]) :]
    return ids


def text_of(ids: list[int]) -> str:
    return b"".join(TOKENS[token] for token in ids if token < STOP).decode()


def make_grammars(**choices: Any) -> Grammars:
    """To be closed."""
    return Grammars(lambda: Spelling(TOKENS, {STOP, TAG}, encode), **choices)


def schema(value: Any) -> Constraint:
    return Constraint(ConstraintKind.JSON_SCHEMA, json.dumps(value))


def regex(pattern: str) -> Constraint:
    return Constraint(ConstraintKind.REGEX, pattern)


def lark(text: str) -> Constraint:
    return Constraint(ConstraintKind.GRAMMAR, text)
