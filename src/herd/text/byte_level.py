"""The alphabet in which byte-level vocabularies are written: every byte as one visible character.

Bytes that are printable in Latin-1 stand for themselves; the other 68, in increasing order, are U+0100, U+0101, ...
(GPT-2's table, used by GGUF and `tokenizer.json` alike).
"""

from __future__ import annotations

import codecs
from collections.abc import Iterable

_THEMSELVES = frozenset((*range(33, 127), *range(161, 173), *range(174, 256)))


def _alphabet() -> list[str]:
    others = iter(range(256, 256 + 68))
    return [chr(byte) if byte in _THEMSELVES else chr(next(others)) for byte in range(256)]


ALPHABET: tuple[str, ...] = tuple(_alphabet())
"""Character for each byte."""

_CHARACTERS = frozenset(ALPHABET)
_DECODING = "".join(ALPHABET)
_ENCODING = codecs.charmap_build(_DECODING)


def to_bytes(token: str) -> bytes:
    """The bytes that a token of this alphabet stands for."""
    return codecs.charmap_encode(token, "strict", _ENCODING)[0]


def from_bytes(data: bytes) -> str:
    """The token of this alphabet that stands for `data`."""
    return codecs.charmap_decode(data, "strict", _DECODING)[0]


def first_foreign(tokens: Iterable[str]) -> str | None:
    """The first token with a character outside the alphabet, or None. Fast for vocabularies that have none."""
    texts = list(tokens)
    if _CHARACTERS.issuperset("".join(texts)):
        return None
    return next(token for token in texts if not _CHARACTERS.issuperset(token))
