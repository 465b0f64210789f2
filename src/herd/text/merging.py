"""Plain text to ids: cut into pieces as the vocabulary was trained, then pairs merged, best first.

Both are the work of the `tokenizers` library, which is the definition. For a byte-level vocabulary that native code has read
(`gguf_file.py`) native code merges, and ASCII is cut by `ascii_cutting.py`: the same ids, without loading the library and building
its tables at every start.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import TYPE_CHECKING, Any, Protocol

from herd.errors import FileProblem
from herd.text.ascii_cutting import AsciiCutter
from herd.text.vocabulary import ByteLevel, Kind, Unigram, Vocabulary

if TYPE_CHECKING:
    from herd import _core

SPACE = "▁"


class Merger(Protocol):
    """Text in, ids out. It knows no control tokens."""

    def ids(self, text: str) -> list[int]: ...


def make_merger(vocabulary: Vocabulary, *, joins_words: bool) -> Merger:
    """joins_words: whether a token continues across the start of a word. `FileProblem` if the merges do not fit the tokens."""
    if vocabulary.native is not None:
        return NativeMerger(vocabulary, vocabulary.native)
    if isinstance(vocabulary.style, Unigram):
        return UnigramMerger(vocabulary.style, vocabulary.source)
    return LibraryMerger(vocabulary, joins_words=joins_words)


class NativeMerger:
    """Merges in native code. Nothing of the library is loaded before the first text that is not ASCII."""

    def __init__(self, vocabulary: Vocabulary, native: _core.Vocabulary) -> None:
        assert isinstance(vocabulary.style, ByteLevel)
        self._split = vocabulary.style.split
        self._native = native

    def ids(self, text: str) -> list[int]:
        return self._native.merge(self._pieces(text), self._split.ignore_merges)

    def _pieces(self, text: str) -> list[str]:
        return self._ascii_cutter.pieces(text) if text.isascii() else [piece for piece, _ in self._cutter.pre_tokenize_str(text)]

    @cached_property
    def _ascii_cutter(self) -> AsciiCutter:
        return AsciiCutter(self._split)

    @cached_property
    def _cutter(self) -> Any:
        from herd.text.splits import pre_tokenizer

        return pre_tokenizer(self._split)


class LibraryMerger:
    """The `tokenizers` object."""

    def __init__(self, vocabulary: Vocabulary, *, joins_words: bool) -> None:
        import tokenizers

        exceptions = vocabulary.exceptions
        ids: dict[str, int] = dict(zip(vocabulary.tokens, range(len(vocabulary.tokens)), strict=True))
        unknown = None
        for index, kind in exceptions.items():
            if kind is Kind.UNKNOWN:
                unknown = vocabulary.tokens[index]
            elif kind is not Kind.BYTE and kind is not Kind.NORMAL:
                del ids[vocabulary.tokens[index]]
        style = vocabulary.style
        try:
            if isinstance(style, ByteLevel):
                model = tokenizers.models.BPE(ids, list(vocabulary.merges), ignore_merges=style.split.ignore_merges)
            else:
                model = tokenizers.models.BPE(ids, list(vocabulary.merges), unk_token=unknown, byte_fallback=True)
        except Exception as error:
            raise _merge_problem(vocabulary, ids) from error
        self._library = tokenizers.Tokenizer(model)
        self._library.pre_tokenizer = _cutter(vocabulary, joins_words=joins_words)

    def ids(self, text: str) -> list[int]:
        found: list[int] = self._library.encode(text, add_special_tokens=False).ids
        return found


class UnigramMerger:
    """The `tokenizers` object of a unigram vocabulary."""

    def __init__(self, style: Unigram, source: str) -> None:
        import tokenizers

        try:
            self._library = tokenizers.Tokenizer.from_str(style.library)
        except BaseException as error:
            # The library's own failures on damaged tables are no `Exception`s.
            if isinstance(error, Exception) or type(error).__name__ == "PanicException":
                raise FileProblem(f"{source}: does not make a tokenizer: {str(error)[:200]}.") from None
            raise

    def ids(self, text: str) -> list[int]:
        found: list[int] = self._library.encode(text, add_special_tokens=False).ids
        return found


def _cutter(vocabulary: Vocabulary, *, joins_words: bool) -> Any:
    from tokenizers import Regex, pre_tokenizers

    from herd.text.splits import pre_tokenizer

    if isinstance(vocabulary.style, ByteLevel):
        return pre_tokenizer(vocabulary.style.split)
    if joins_words:
        return None
    # No token continues across the start of a word, so words are merged one by one: the same ids, and no work is quadratic.
    return pre_tokenizers.Split(Regex(f"{SPACE}+[^{SPACE}]*|[^{SPACE}]+"), "isolated")


def _merge_problem(vocabulary: Vocabulary, ids: Mapping[str, int]) -> FileProblem:
    for index, (left, right) in enumerate(vocabulary.merges):
        for token in (left, right, left + right):
            if token not in ids:
                return FileProblem(
                    f"{vocabulary.source}: merge {index} joins {left!r} and {right!r}, but {token!r} is not a token of the vocabulary."
                )
    return FileProblem(f"{vocabulary.source}: the vocabulary and its merges do not make a tokenizer.")
