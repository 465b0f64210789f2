"""Writing GGUF version 3: keys, then tensors, each padded to 32 bytes. Source: the GGUF specification."""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from typing import Any, BinaryIO

from herd.convert.streams import Output
from herd.convert.writing import Told, pad, write_tensor
from herd.errors import FileProblem

ALIGNMENT = 32
MAX_NAME_BYTES = 63
U32, I32, F32, BOOL, STRING, ARRAY = 4, 5, 6, 7, 8, 9


def write_gguf(file: BinaryIO, keys: Mapping[str, Any], outputs: Sequence[Output], told: Told) -> None:
    """The whole file. Whole numbers become u32 (i32 in lists and below zero), numbers f32, as converters write them."""
    file.write(gguf_head(keys, outputs))
    for output in outputs:
        write_tensor(file, output, told)
        pad(file, ALIGNMENT)


def gguf_head(keys: Mapping[str, Any], outputs: Sequence[Output]) -> bytes:
    """Everything before the first tensor."""
    pieces = [b"GGUF" + struct.pack("<IQQ", 3, len(outputs), len(keys))]
    pieces += [_string(key) + _typed(key, value) for key, value in keys.items()]
    at = 0
    for output in outputs:
        pieces.append(_info(output, at))
        at += -(-output.num_bytes // ALIGNMENT) * ALIGNMENT
    head = b"".join(pieces)
    return head + bytes(-len(head) % ALIGNMENT)


def _info(output: Output, offset: int) -> bytes:
    name, shape = output.name.encode(), output.source.shape
    if len(name) > MAX_NAME_BYTES:
        raise FileProblem(f"{output.name}: is {len(name)} bytes long; GGUF allows {MAX_NAME_BYTES}.")
    sizes = struct.pack(f"<I{len(shape)}Q", len(shape), *reversed(shape))
    return struct.pack("<Q", len(name)) + name + sizes + struct.pack("<IQ", output.source.dtype.ggml_id, offset)


def _string(text: str) -> bytes:
    data = text.encode()
    return struct.pack("<Q", len(data)) + data


def _typed(key: str, value: Any) -> bytes:
    if not isinstance(value, list | tuple):
        kind = _kind(key, value, U32)
        return struct.pack("<I", kind) + _plain(kind, value)
    kind = _kind(key, value[0], I32) if value else I32
    return struct.pack("<IIQ", ARRAY, kind, len(value)) + b"".join(_plain(kind, each) for each in value)


def _kind(key: str, value: Any, whole: int) -> int:
    match value:
        case bool():
            return BOOL
        case int():
            return whole if value >= 0 else I32
        case float():
            return F32
        case str():
            return STRING
    raise FileProblem(f"{key}: a value of the type {type(value).__name__} cannot be written to GGUF.")


def _plain(kind: int, value: Any) -> bytes:
    if kind == STRING:
        return _string(value)
    return struct.pack("<" + {U32: "I", I32: "i", F32: "f", BOOL: "?"}[kind], value)
