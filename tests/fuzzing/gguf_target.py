"""GGUF: seed files, mutations that know the format, and what an accepted file must hold."""

from __future__ import annotations

import random
import struct
import tempfile
from pathlib import Path

import gguf
import numpy as np

from fuzzing.values import INTEGERS, TEXTS, damage
from herd import dtypes
from herd.checkpoints.gguf import read_gguf
from herd.checkpoints.gguf_llama import assemble
from herd.checkpoints.sources import tensor_of
from herd.files import MappedFile
from herd.models.rope import Linear, Llama3, Rope
from tiny import random_leaves, tiny_llama
from tiny_files import write_gguf

SIZES = {"width": 32, "num_layers": 1, "num_heads": 2, "num_kv_heads": 1, "head_width": 16, "ffn_width": 64, "vocab_size": 16}
TOKENIZER = {
    "general.name": "a seed",
    "general.languages": ["en", "de"],
    "tokenizer.ggml.model": "gpt2",
    "tokenizer.ggml.tokens": [f"token {index} \N{SNOWMAN}" for index in range(16)],
    "tokenizer.ggml.token_type": [1] * 16,
    "tokenizer.ggml.scores": [0.5] * 16,
    "tokenizer.ggml.merges": ["a b", "c d"],
    "tokenizer.ggml.eos_token_id": 2,
    "tokenizer.ggml.add_bos_token": False,
    "tokenizer.chat_template": "{{ messages }}",
}


class Target:
    """What `running` needs of a format: `make` an input from a random source, `open` it, `compare` what was accepted."""

    name = "gguf"

    def __init__(self) -> None:
        with tempfile.TemporaryDirectory() as folder:
            self.seeds = [(data := path.read_bytes(), fields_of(data)) for path in _write_seeds(Path(folder))]

    def make(self, rng: random.Random) -> bytes:
        data, fields = rng.choice(self.seeds)
        changed = bytearray(data)
        for _ in range(rng.choice((1, 1, 1, 2, 3))):
            _mutate(changed, fields, rng)
        return damage(bytes(changed), fields[-1][1], rng) if rng.random() < 0.25 else bytes(changed)

    def open(self, data: bytes) -> object:
        checkpoint = assemble(Path("input.gguf"), [read_gguf(MappedFile.of_bytes(data, "input.gguf"))])
        if checkpoint.tokenizer is not None:
            dict(checkpoint.tokenizer.metadata)
        return checkpoint

    def compare(self, data: bytes, opened: object) -> str | None:
        """A difference between ours and the official reader's tensors, or None."""
        with tempfile.TemporaryDirectory(prefix="herd-fuzz-") as folder:
            path = Path(folder) / "accepted.gguf"
            path.write_bytes(data)
            theirs = {tensor.name: tensor for tensor in gguf.GGUFReader(path).tensors}
        for name, source in opened._sources.items():  # type: ignore[attr-defined]
            tensor = tensor_of(source)
            other = theirs.get(tensor.name)
            if other is None:
                return f"{name}: the gguf package does not find {tensor.name}"
            if tuple(reversed(other.shape.tolist())) != tensor.shape or int(other.tensor_type) != tensor.dtype.ggml_id:
                return f"{name}: the gguf package finds {other.tensor_type} {other.shape}"
            if not np.array_equal(np.ascontiguousarray(other.data).view(np.uint8).ravel(), tensor.rows().ravel()):
                return f"{name}: the gguf package finds other bytes"
        return None


def _write_seeds(folder: Path) -> list[Path]:
    plain, biased = tiny_llama(**SIZES), tiny_llama(**SIZES, qkv_bias=True, out_bias=True, ffn_bias=True)
    stretched = tiny_llama(**SIZES, tied_embeddings=True, rope=Rope(5e5, 16, Llama3(8.0, 1.0, 4.0, 64)))
    linear = tiny_llama(**SIZES, rope=Rope(1e4, 16, Linear(2.0)))
    return [
        write_gguf(folder / "f32.gguf", plain, random_leaves(plain), TOKENIZER),
        write_gguf(folder / "q8_0.gguf", biased, random_leaves(biased, 1, dtypes.Q8_0), {"llama.attention.key_length": None}),
        write_gguf(folder / "q4_1.gguf", stretched, random_leaves(stretched, 2, dtypes.Q4_1), TOKENIZER),
        write_gguf(folder / "bf16.gguf", linear, random_leaves(linear, 3, dtypes.BF16), {"llama.attention.head_count_kv": [1]}),
    ]


def fields_of(data: bytes) -> list[tuple[str, int, int]]:
    """(kind, offset, bytes) of every field of a sound file; the last is the beginning of the data."""
    fields: list[tuple[str, int, int]] = [("magic", 0, 4), ("u32", 4, 4), ("u64", 8, 8), ("u64", 16, 8)]
    tensors, keys = struct.unpack_from("<QQ", data, 8)
    at = 24

    def text() -> None:
        nonlocal at
        (length,) = struct.unpack_from("<Q", data, at)
        fields.extend([("u64", at, 8), ("text", at + 8, length)])
        at += 8 + length

    def number(size: int) -> int:
        nonlocal at
        fields.append((f"u{8 * size}", at, size))
        at += size
        return int.from_bytes(data[at - size : at], "little")

    def value(kind: int) -> None:
        if kind == 8:
            text()
        elif kind == 9:
            element, count = number(4), number(8)
            for _ in range(count):
                value(element)
        else:
            number({0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}[kind])

    for _ in range(keys):
        text()
        value(number(4))
    for _ in range(tensors):
        text()
        for _ in range(number(4)):
            number(8)
        number(4)
        number(8)
    fields.append(("data", -(-at // 32) * 32, 0))
    return fields


def _mutate(data: bytearray, fields: list[tuple[str, int, int]], rng: random.Random) -> None:
    kind, at, size = rng.choice(fields[:-1])
    if at + size > len(data) or not size:
        return
    if kind == "text":
        other = rng.choice([each for each in fields if each[0] == "text"])
        choice = rng.random()
        if choice < 0.4 and other[2] == size:
            # Another text of the same length: a doubled key or name, or a key in place of a value.
            data[at : at + size] = data[other[1] : other[1] + size]
        elif choice < 0.7:
            data[at : at + size] = (rng.choice(TEXTS) * size)[:size]
        else:
            data[at + rng.randrange(size)] ^= 1 << rng.randrange(8)
        return
    if kind == "magic" or rng.random() < 0.2:
        data[at + rng.randrange(size)] ^= 1 << rng.randrange(8)
        return
    old = int.from_bytes(data[at : at + size], "little")
    near = (old - 1, old + 1, old * 2, old ^ 1 << rng.randrange(8 * size), len(data), len(data) - at, rng.randrange(64))
    new = rng.choice(INTEGERS) if rng.random() < 0.5 else rng.choice(near)
    data[at : at + size] = (new % (1 << 8 * size)).to_bytes(size, "little")
