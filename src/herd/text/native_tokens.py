"""Byte-level vocabularies of GGUF files, read in native code from the stored bytes: no object for each of 100,000 strings.

Native code takes only what is in good order. Whatever else the file has (or where there is no native code) is left to
`gguf_file.py`, which reads the same lists in Python, accepts what is merely unusual, and says what is wrong.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, overload

from herd.text.vocabulary import TOKENS_MAX

if TYPE_CHECKING:
    from herd import _core

_STRING = 8
_INT32 = 5


class NativeTokens(Sequence[str]):
    """The tokens as texts, made when they are asked for."""

    def __init__(self, native: _core.Vocabulary) -> None:
        self._native = native
        self._count = len(native)

    def __len__(self) -> int:
        return self._count

    @overload
    def __getitem__(self, index: int) -> str: ...

    @overload
    def __getitem__(self, index: slice) -> list[str]: ...

    def __getitem__(self, index: int | slice) -> str | list[str]:
        if isinstance(index, slice):
            return [self._native.token(at) for at in range(*index.indices(self._count))]
        return self._native.token(index + self._count if index < 0 else index)


def read_native(metadata: Mapping[str, Any]) -> _core.Vocabulary | None:
    """The vocabulary in the lists `tokens`, `token_type` and `merges`, if `metadata` can give their stored bytes
    (`stored(key)` -> element type, length, bytes) and they are in good order."""
    stored = getattr(metadata, "stored", None)
    if stored is None:
        return None
    try:
        from herd import _core
    except ImportError:
        return None
    tokens, merges, kinds = (stored(f"tokenizer.ggml.{name}") for name in ("tokens", "merges", "token_type"))
    if tokens is None or merges is None or tokens[0] != _STRING or merges[0] != _STRING or tokens[1] > TOKENS_MAX:
        return None
    if kinds is None:
        if "tokenizer.ggml.token_type" in metadata:
            return None
    elif kinds[0] != _INT32 or kinds[1] != tokens[1]:
        return None
    return _core.Vocabulary.read(tokens[2], tokens[1], None if kinds is None else kinds[2], merges[2], merges[1])
