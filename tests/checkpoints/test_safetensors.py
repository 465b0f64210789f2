"""The safetensors container: equal to the official reader on what is sound, refusing what is not."""

from __future__ import annotations

import json
import random
import struct
from typing import Any

import pytest
import safetensors

from herd.checkpoints.safetensors import read_safetensors
from herd.errors import FileProblem
from herd.files import MappedFile
from tiny_files import safetensors_bytes

SOUND = safetensors_bytes({"a": ("F32", (2, 3), bytes(range(24))), "b": ("BF16", (4,), bytes(8)), "empty": ("I64", (0, 7), b"")})


def read(data: bytes) -> Any:
    return read_safetensors(MappedFile.of_bytes(data, "model.safetensors"))


def with_header(header: str, data: bytes) -> bytes:
    return struct.pack("<Q", len(header)) + header.encode() + data


def one(dtype: object = "F32", shape: object = (2,), offsets: object = (0, 8), **more: object) -> bytes:
    return with_header(json.dumps({"x": {"dtype": dtype, "shape": shape, "data_offsets": offsets, **more}}), bytes(8))


def test_a_sound_file_reads_to_the_tensors_of_the_official_reader() -> None:
    entries = read(SOUND)
    official = dict(safetensors.deserialize(SOUND))
    assert set(entries) == set(official)
    for name, entry in entries.items():
        assert entry.dtype == {"F32": "F32", "BF16": "BF16", "I64": "I64"}[official[name]["dtype"]]
        assert entry.shape == tuple(official[name]["shape"])
        assert bytes(entry.file.view[entry.offset : entry.offset + entry.num_bytes]) == bytes(official[name]["data"])


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"1234567", "needs 8 bytes and 7 are left"),
        (struct.pack("<Q", 2**64 - 1) + b"{}", "the length of the header is 18446744073709551615"),
        (struct.pack("<Q", 3) + b"{}", "the length of the header is 3; allowed is at most 2"),
        (with_header(" {}", b""), "starts with a brace"),
        (with_header("{}\0\0", b""), "not valid JSON"),
        (with_header("[]", b""), "starts with a brace"),
        (with_header('{"x": ' + "[" * 100_000, b""), "nested too deeply"),
        (with_header('{"__metadata__": {"a": 1}}', b""), "__metadata__"),
        (with_header('{"x": 1}', b""), "the description of 'x' is 1"),
        (one(strides=[1]), "and nothing else"),
        (one(dtype="F4"), "the dtype of 'x' is 'F4'"),
        (one(dtype=["F32"]), "the dtype of 'x'"),
        (one(shape=[2.0]), "the shape of 'x' is [2.0]"),
        (one(shape=[True, 2]), "the shape of 'x'"),
        (one(shape=[-2]), "the shape of 'x' is [-2]"),
        (one(shape=[2**62, 2**62]), "data_offsets of 'x'"),
        (one(shape=[1] * 9), "a list of up to 8 sizes"),
        (one(offsets=[8, 0]), "a begin and an end"),
        (one(offsets=[0, 12]), "a range of 8 bytes"),
        (one(offsets=[4, 12]), "an end up to 8; the file is cut short"),
        (one(shape=[1], offsets=[4, 8]), "leaves a hole"),
        (one(shape=[1], offsets=[0, 4]), "has 4 bytes after its last tensor"),
        (SOUND + b"\0", "has 1 bytes after its last tensor"),
        (SOUND.replace(b"[24,32]", b"[16,24]"), "overlaps the tensor before it"),
        (SOUND.replace(b'"b":', b'"a":'), "the key 'a' appears twice"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_a_header_that_lies_is_refused_with_what_and_where(data: bytes, message: str) -> None:
    with pytest.raises(FileProblem) as caught:
        read(data)
    assert message in str(caught.value) and "model.safetensors" in str(caught.value)


def test_a_file_cut_anywhere_is_refused() -> None:
    for point in range(len(SOUND)):
        with pytest.raises(FileProblem):
            read(SOUND[:point])


def test_what_the_official_reader_refuses_is_refused_whatever_bit_is_flipped() -> None:
    """Stricter is allowed; laxer never."""
    flips = [(at, bit) for at in range(len(SOUND) - 32) for bit in range(8)]
    for at, bit in random.Random(0).sample(flips, 1500):
        changed = bytearray(SOUND)
        changed[at] ^= 1 << bit
        try:
            entries = read(bytes(changed))
        except FileProblem:
            continue
        official = dict(safetensors.deserialize(bytes(changed)))
        assert {name: entry.shape for name, entry in entries.items()} == {name: tuple(each["shape"]) for name, each in official.items()}
