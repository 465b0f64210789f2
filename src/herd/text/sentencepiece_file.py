"""SentencePiece's `tokenizer.model` (Llama 1, 2, Code Llama, Guard 1) and llama2.c's flat copy of it.

The first is a protocol buffer, read here field by field with every length checked against what remains:

    ModelProto       1 pieces (repeated) · 2 trainer · 3 normaliser · 4 self test · 5 denormaliser
    piece            1 text · 2 score · 3 kind
    trainer          3 model type (2 = BPE) · 24 spaces as suffix · 35 byte fallback · 41, 42 BOS, EOS ids · others: for training only
    normaliser       1 name · 2 rewriting table · 3 space before the text · 4 joins spaces · 5 spaces as `▁` · 6 rules
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

from herd.errors import FileProblem
from herd.text.scores import check_scores, merges_from_scores
from herd.text.vocabulary import TOKENS_MAX, Kind, Spaces, Vocabulary, byte_of, check_byte_tokens, check_tokens

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5


class _Field(NamedTuple):
    number: int
    wire: int
    value: int
    """Of a varint: the number; otherwise where the bytes begin."""
    end: int


class _Message(NamedTuple):
    """A slice of the file that is one protocol-buffer message."""

    data: bytes
    begin: int
    end: int
    source: str

    def fields(self) -> Iterator[_Field]:
        """Fields in order. `FileProblem` says at which byte the message stops making sense."""
        at = self.begin
        while at < self.end:
            start = at
            key, at = self._varint(at)
            number, wire = key >> 3, key & 7
            value = at
            if wire == _VARINT:
                value, at = self._varint(at)
            elif wire == _BYTES:
                length, value = self._varint(at)
                at = value + length
            elif wire in (_FIXED32, _FIXED64):
                at += 4 if wire == _FIXED32 else 8
            else:
                raise self._problem(start, f"field {number} has wire type {wire}, which no version of the format has")
            if at > self.end or number == 0:
                raise self._problem(start, f"field {number} reaches byte {at}; its message ends at {self.end}")
            yield _Field(number, wire, value, at)

    def message(self, field: _Field) -> _Message:
        """The message inside a field."""
        self._expect(field, _BYTES)
        return _Message(self.data, field.value, field.end, self.source)

    def text(self, field: _Field) -> str:
        """The text in a field."""
        self._expect(field, _BYTES)
        try:
            return self.data[field.value : field.end].decode("utf-8")
        except UnicodeDecodeError:
            raise self._problem(field.value, "a text is not UTF-8") from None

    def float32(self, field: _Field) -> float:
        """The float in a field."""
        self._expect(field, _FIXED32)
        value: float = struct.unpack_from("<f", self.data, field.value)[0]
        return value

    def integer(self, field: _Field) -> int:
        """The signed integer, enum or flag in a field."""
        self._expect(field, _VARINT)
        return field.value - (1 << 64) if field.value >> 63 else field.value

    def _expect(self, field: _Field, wire: int) -> None:
        if field.wire != wire:
            raise self._problem(field.value, f"field {field.number} has wire type {field.wire}; expected {wire}")

    def _varint(self, at: int) -> tuple[int, int]:
        if at < self.end and self.data[at] < 0x80:
            return self.data[at], at + 1
        value = 0
        for place in range(10):
            if at >= self.end:
                raise self._problem(at, "the file ends inside a number")
            byte = self.data[at]
            at += 1
            value |= (byte & 0x7F) << (7 * place)
            if byte < 0x80:
                if value >= 1 << 64:
                    break
                return value, at
        raise self._problem(at, "a number is longer than 64 bits")

    def _problem(self, at: int, what: str) -> FileProblem:
        return FileProblem(f"{self.source}: at byte {at}: {what}. It is no SentencePiece model, or truncated or damaged.")


@dataclass(slots=True)
class _Model:
    """What the fields say; defaults are those of the format."""

    tokens: list[str]
    scores: list[float]
    kinds: dict[int, Kind]
    model_type: int = 1
    byte_fallback: bool = False
    spaces_as_suffix: bool = False
    bos_id: int = 1
    eos_id: int = 2
    rewrites: bool = False
    prefix: bool = True
    joins_spaces: bool = True
    escapes_spaces: bool = True


def read_sentencepiece(data: bytes, source: str) -> Vocabulary:
    """The vocabulary in `data`. `FileProblem` says what is damaged, or which feature no Llama vocabulary has."""
    model = _read_model(_Message(data, 0, len(data), source))
    _refuse_unsupported(model, source)
    check_byte_tokens(model.tokens, model.kinds, source)
    return _vocabulary(model, source)


def _vocabulary(model: _Model, source: str) -> Vocabulary:
    check_tokens(model.tokens, source)
    check_scores(model.scores, len(model.tokens), source)
    return Vocabulary(
        tokens=model.tokens,
        merges=merges_from_scores(model.tokens, model.scores, model.kinds, source),
        style=Spaces(prefix=model.prefix),
        exceptions=model.kinds,
        bos_id=model.bos_id if model.bos_id >= 0 else None,
        adds_bos=model.bos_id >= 0,
        eos_ids=(model.eos_id,) if model.eos_id >= 0 else (),
        source=source,
    )


def _read_model(proto: _Message) -> _Model:
    model = _Model([], [], {})
    for field in proto.fields():
        if field.number == 1:
            _read_piece(proto.message(field), model)
        elif field.number == 2:
            _read_trainer(proto.message(field), model)
        elif field.number == 3:
            _read_normaliser(proto.message(field), model)
        elif field.number == 5 and any(f.number == 2 and f.end > f.value for f in proto.message(field).fields()):
            raise FileProblem(f"{proto.source}: has a denormaliser, which no Llama vocabulary has; it is not supported.")
    return model


def _read_piece(piece: _Message, model: _Model) -> None:
    text, score, kind = "", 0.0, int(Kind.NORMAL)
    for field in piece.fields():
        if field.number == 1:
            text = piece.text(field)
        elif field.number == 2:
            score = piece.float32(field)
        elif field.number == 3:
            kind = piece.integer(field)
    index = len(model.tokens)
    if not text or not 1 <= kind <= 6 or index >= TOKENS_MAX:
        raise FileProblem(
            f"{piece.source}: piece {index} is {text!r} of kind {kind}; expected a text, kind 1 to 6, and at most {TOKENS_MAX} pieces."
        )
    model.tokens.append(text)
    model.scores.append(score)
    if kind != Kind.NORMAL:
        model.kinds[index] = Kind(kind)


def _read_trainer(trainer: _Message, model: _Model) -> None:
    for field in trainer.fields():
        if field.number == 3:
            model.model_type = trainer.integer(field)
        elif field.number == 24:
            model.spaces_as_suffix = bool(trainer.integer(field))
        elif field.number == 35:
            model.byte_fallback = bool(trainer.integer(field))
        elif field.number == 41:
            model.bos_id = trainer.integer(field)
        elif field.number == 42:
            model.eos_id = trainer.integer(field)


def _read_normaliser(normaliser: _Message, model: _Model) -> None:
    for field in normaliser.fields():
        if field.number == 2:
            model.rewrites = field.end > field.value
        elif field.number == 3:
            model.prefix = bool(normaliser.integer(field))
        elif field.number == 4:
            model.joins_spaces = bool(normaliser.integer(field))
        elif field.number == 5:
            model.escapes_spaces = bool(normaliser.integer(field))


def _refuse_unsupported(model: _Model, source: str) -> None:
    unsupported = {
        "is not BPE": model.model_type != 2,
        "puts spaces after words": model.spaces_as_suffix,
        "has no byte fallback": not model.byte_fallback,
        "rewrites characters": model.rewrites,
        "joins neighbouring spaces": model.joins_spaces,
        "does not write spaces as ▁": not model.escapes_spaces,
        "has unused pieces": Kind.UNUSED in model.kinds.values(),
    }
    found = [what for what, is_so in unsupported.items() if is_so]
    if found:
        raise FileProblem(f"{source}: the SentencePiece model {' and '.join(found)}; Llama's are plain BPE with byte fallback.")


def looks_like_sentencepiece(data: bytes) -> bool:
    """Whether the file begins with a piece: field 1, with bytes, whose own first field is its text."""
    return len(data) > 3 and data[0] == 0x0A and data[2] == 0x0A


def read_llama2c(data: bytes, source: str) -> Vocabulary:
    """llama2.c's copy: the longest length, then per token its score, length and text, spaces as spaces, little-endian."""
    if len(data) < 4:
        raise FileProblem(f"{source}: {len(data)} bytes; expected llama2.c's list of tokens.")
    model = _Model([], [], {})
    at = 4
    while at < len(data):
        index = len(model.tokens)
        score, length = struct.unpack_from("<fi", data, at) if at + 8 <= len(data) else (0.0, -1)
        at += 8
        if length <= 0 or length > len(data) - at or index >= TOKENS_MAX:
            left = max(0, len(data) - at)
            raise FileProblem(f"{source}: token {index} has length {length} with {left} bytes left; truncated or damaged.")
        try:
            token = data[at : at + length].decode("utf-8")
        except UnicodeDecodeError:
            raise FileProblem(f"{source}: token {index} is not UTF-8.") from None
        at += length
        _add_llama2c(model, token, score)
    return _vocabulary(model, source)


def _add_llama2c(model: _Model, token: str, score: float) -> None:
    index = len(model.tokens)
    # BOS and EOS are written with line breaks around them, for printing.
    control = {0: "<unk>", 1: "\n<s>\n", 2: "\n</s>\n"}.get(index)
    if control is not None:
        model.kinds[index] = Kind.UNKNOWN if index == 0 else Kind.CONTROL
        token = token.strip("\n") if token == control else control.strip("\n")
    elif 3 <= index < 259 and byte_of(token) == index - 3:
        model.kinds[index] = Kind.BYTE
    model.tokens.append(token.replace(" ", "▁"))
    model.scores.append(score)
