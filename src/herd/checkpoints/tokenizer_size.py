"""How many tokens a tokenizer.model has, counted without building the vocabulary: for params.json that says vocab_size -1."""

from __future__ import annotations

from pathlib import Path

from herd.errors import FileProblem

MAX_BYTES = 64 << 20


def count_pieces(path: Path) -> int | None:
    """Pieces of a SentencePiece model; None for a list of ranks (Llama 3 and 4), whose control tokens are not in the file."""
    data = path.read_bytes() if path.stat().st_size <= MAX_BYTES else b""
    if not data:
        raise FileProblem(f"{path}: is empty, or larger than {MAX_BYTES} bytes; no tokenizer of the family is.")
    first = data[:256].split(b"\n")[0].split(b" ")
    if len(first) == 2 and first[1].strip().isdigit():
        return None
    count, at = 0, 0
    while at < len(data):
        key, at = _varint(data, at, path)
        if key & 7 != 2:
            raise FileProblem(f"{path}: at byte {at}, the field {key >> 3} is no message. It is no SentencePiece model, or damaged.")
        length, at = _varint(data, at, path)
        if length > len(data) - at:
            raise FileProblem(f"{path}: at byte {at}, a field of {length} bytes reaches past the end. It is cut short or damaged.")
        at += length
        count += key >> 3 == 1
    return count


def _varint(data: bytes, at: int, path: Path) -> tuple[int, int]:
    value = 0
    for place in range(10):
        if at >= len(data):
            break
        byte = data[at]
        at += 1
        value |= (byte & 127) << 7 * place
        if byte < 128:
            return value, at
    raise FileProblem(f"{path}: at byte {at}, a number does not end. It is no SentencePiece model, or damaged.")
