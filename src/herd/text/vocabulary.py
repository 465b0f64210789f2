"""A vocabulary as data: what every kind of tokenizer file is read into, and the checks that all of them share."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import field
from enum import IntEnum
from typing import TYPE_CHECKING

from herd.errors import FileProblem
from herd.records import dataclass
from herd.text.byte_level import first_foreign
from herd.text.splits import Split

if TYPE_CHECKING:
    from herd import _core

BYTES_MAX = 64 << 20
"""No vocabulary of the family is larger than 30 MB in any format."""
TOKENS_MAX = 1 << 21
TOKEN_CHARACTERS_MAX = 1024
"""No token of the family has more than a few hundred. How a token can be merged is tried at every one of its characters."""


class Kind(IntEnum):
    """What a token is; the numbers are those of GGUF and SentencePiece files."""

    NORMAL = 1
    UNKNOWN = 2
    CONTROL = 3
    USER_DEFINED = 4
    UNUSED = 5
    BYTE = 6


@dataclass(frozen=True, slots=True)
class ByteLevel:
    """Tokens in the byte-level alphabet, text cut by `split` first."""

    split: Split


@dataclass(frozen=True, slots=True)
class Spaces:
    """SentencePiece's way: a space is `▁`, and what is no piece becomes `<0xHH>` byte tokens."""

    prefix: bool = True
    """One space is put before the text, and taken off again by decoding."""
    prefix_after_specials: bool = True
    """Also before text that follows a special token."""
    prefix_before_space: bool = True
    """Also before text that begins with a space itself."""


@dataclass(frozen=True, slots=True)
class Unigram:
    """SentencePiece's other way: a text becomes the pieces whose scores sum highest. `library` is a file for the `tokenizers` library
    that does so, without control tokens; a space is `▁`, and one is put before the text."""

    library: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Vocabulary:
    """Tokens by id as the file writes them. `exceptions` holds the ids that are not plain text; all others are `NORMAL`."""

    tokens: Sequence[str]
    merges: Sequence[tuple[str, str]]
    """Pairs in the order in which they may merge, best first."""
    style: ByteLevel | Spaces | Unigram
    exceptions: Mapping[int, Kind]
    bos_id: int | None = None
    adds_bos: bool = False
    eos_ids: tuple[int, ...] = ()
    source: str = ""
    """Where it came from, for messages."""
    extra_description: str = field(default="")
    native: _core.Vocabulary | None = None
    """What native code has read and checked, if it has; then `merges` is empty here."""

    def __post_init__(self) -> None:
        if self.native is None:
            check_tokens(self.tokens, self.source)
        for name, ids in (("bos", (self.bos_id,)), ("eos", self.eos_ids)):
            for value in ids:
                if value is not None and not 0 <= value < len(self.tokens):
                    raise FileProblem(f"{self.source}: the {name} token is {value}; the vocabulary has {len(self.tokens)} tokens.")


def check_tokens(tokens: Sequence[str], source: str) -> None:
    """Refuses empty, oversized and doubled vocabularies, and oversized tokens. To be called before anything is merged."""
    if not tokens:
        raise FileProblem(f"{source}: the vocabulary is empty.")
    if len(tokens) > TOKENS_MAX:
        raise FileProblem(f"{source}: the vocabulary has {len(tokens)} tokens; at most {TOKENS_MAX} are read.")
    if max(map(len, tokens)) > TOKEN_CHARACTERS_MAX:
        index = next(i for i, token in enumerate(tokens) if len(token) > TOKEN_CHARACTERS_MAX)
        raise FileProblem(
            f"{source}: token {index} has {len(tokens[index])} characters; at most {TOKEN_CHARACTERS_MAX} are read, which no"
            " vocabulary of the family reaches. It is damaged or foreign."
        )
    if len(set(tokens)) != len(tokens):
        seen: dict[str, int] = {}
        for index, token in enumerate(tokens):
            if token in seen:
                raise FileProblem(f"{source}: tokens {seen[token]} and {index} are both {token!r}; one text, one id is expected.")
            seen[token] = index


def check_alphabet(tokens: Sequence[str], exceptions: Collection[int], source: str) -> None:
    """Refuses plain tokens of a byte-level vocabulary that are not written in its alphabet."""
    plain = [token for index, token in enumerate(tokens) if index not in exceptions] if exceptions else tokens
    foreign = first_foreign(plain)
    if foreign is not None:
        raise FileProblem(
            f"{source}: token {list(tokens).index(foreign)} is {foreign!r}, which is not written in the byte-level alphabet"
            " (one visible character per byte). The vocabulary is of another kind or damaged."
        )


def byte_of(token: str) -> int | None:
    """The byte that a `<0xHH>` token stands for, or None if it is not written exactly so."""
    if len(token) == 6 and token.startswith("<0x") and token.endswith(">"):
        digits = token[3:5]
        if all(digit in "0123456789ABCDEF" for digit in digits):
            return int(digits, 16)
    return None


def check_byte_tokens(tokens: Sequence[str], exceptions: Mapping[int, Kind], source: str) -> None:
    """Refuses byte tokens that are not `<0xHH>`."""
    for index, kind in exceptions.items():
        if kind is Kind.BYTE and byte_of(tokens[index]) is None:
            raise FileProblem(f"{source}: token {index} is a byte token written {tokens[index]!r}; expected <0x00> to <0xFF>.")
