"""safetensors with its config.json: seeds, edits of JSON and bytes, and what an accepted folder must hold."""

from __future__ import annotations

import json
import random
import struct
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import safetensors

from fuzzing.values import INTEGERS, damage
from herd import dtypes
from herd.checkpoints.huggingface import match
from herd.checkpoints.huggingface_config import read_config
from herd.checkpoints.safetensors import read_safetensors
from herd.checkpoints.sources import tensor_of
from herd.files import MappedFile
from herd.files.json import parse_json
from herd.models.rope import Llama3, Rope, Yarn
from tiny import random_leaves, tiny_llama
from tiny_files import write_huggingface

SIZES = {"width": 16, "num_layers": 1, "num_heads": 2, "num_kv_heads": 1, "head_width": 8, "ffn_width": 24, "vocab_size": 12}
VALUES: tuple[Any, ...] = (
    None, True, False, "", "F32", "BF16", "F64", "F4", "llama", "yarn", "dynamic", [], [0], [-1, 2], [[1]], {}, {"a": 1}, 0.5, -0.0, 1e308,
    1e-320, *INTEGERS,
)  # fmt: skip
# Put into the text of the header as they are, in place of some value.
RAW = (
    "NaN", "Infinity", "-Infinity", "1e400", "[" * 2000, '{"a":' * 500, '"\\ud800"', "0" * 5000, "1" * 5000, "1.0", "1e3", "-0", "'x'", "",
)  # fmt: skip


class Target:
    """As in `gguf_target`; an input is config.json and model.safetensors."""

    name = "safetensors"

    def __init__(self) -> None:
        plain = tiny_llama(**SIZES)
        biased = tiny_llama(**SIZES, qkv_bias=True, out_bias=True, rope=Rope(5e5, 8, Llama3(8.0, 1.0, 4.0, 64)))
        tied = tiny_llama(**SIZES, tied_embeddings=True, rope=Rope(1e4, 8, Yarn(4.0, 64)))
        self.seeds: list[tuple[bytes, bytes]] = []
        with tempfile.TemporaryDirectory() as folder:
            for index, (cfg, dtype) in enumerate(((plain, dtypes.F32), (biased, dtypes.BF16), (tied, dtypes.F16))):
                path = write_huggingface(Path(folder) / str(index), cfg, random_leaves(cfg, index, dtype))
                self.seeds.append(((path / "config.json").read_bytes(), (path / "model.safetensors").read_bytes()))

    def make(self, rng: random.Random) -> tuple[bytes, bytes]:
        config, data = rng.choice(self.seeds)
        if rng.random() < 0.3:
            return _edited_config(config, rng), data
        (length,) = struct.unpack_from("<Q", data)
        if rng.random() < 0.3:
            return config, damage(data, 8 + length, rng)
        header = _edited_header(data[8 : 8 + length], rng)
        stated = len(header) if rng.random() < 0.95 else rng.choice(INTEGERS) % (1 << 64)
        return config, struct.pack("<Q", stated) + header + data[8 + length :]

    def open(self, inputs: tuple[bytes, bytes]) -> object:
        config, data = inputs
        cfg = read_config(parse_json(config, "config.json"), "config.json", {})
        _, sources = match(cfg, read_safetensors(MappedFile.of_bytes(data, "model.safetensors")), "input")
        return sources

    def compare(self, inputs: tuple[bytes, bytes], opened: object) -> str | None:
        theirs = dict(safetensors.deserialize(inputs[1]))
        for name, source in opened.items():  # type: ignore[attr-defined]
            tensor = tensor_of(source)
            other = theirs.get(tensor.name)
            if other is None:
                return f"{name}: the safetensors package does not find {tensor.name!a}"
            if tuple(other["shape"]) != tensor.shape or other["dtype"].lower() != tensor.dtype.name:
                return f"{name}: the safetensors package finds {other['dtype']} {other['shape']}"
            if not np.array_equal(np.frombuffer(other["data"], np.uint8), tensor.rows().ravel()):
                return f"{name}: the safetensors package finds other bytes"
        return None


def _edited_config(config: bytes, rng: random.Random) -> bytes:
    values = json.loads(config)
    for _ in range(rng.choice((1, 1, 2))):
        inner = values.get("rope_scaling")
        place = inner if isinstance(inner, dict) and inner and rng.random() < 0.3 else values
        key = rng.choice(list(place))
        match rng.randrange(5):
            case 0:
                del place[key]
            case 1:
                place[key + "_odd"] = place[key]
            case _:
                place[key] = rng.choice(VALUES)
    return _with_raw(json.dumps(values), rng).encode("utf-8", "surrogatepass")


def _edited_header(header: bytes, rng: random.Random) -> bytes:
    described: dict[str, Any] = json.loads(header)
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        name = rng.choice(list(described))
        fields = described[name]
        if not isinstance(fields, dict) or not fields or rng.random() < 0.1:
            described[name] = rng.choice(VALUES)
            continue
        key = rng.choice(list(fields))
        match rng.randrange(8):
            case 0:
                fields[key] = rng.choice(VALUES)
            case 1 | 2 | 3 if isinstance(fields[key], list) and fields[key]:
                at = rng.randrange(len(fields[key]))
                old = fields[key][at]
                near = [old - 4, old - 1, old + 1, old + 4] if isinstance(old, int) and rng.random() < 0.5 else []
                fields[key][at] = rng.choice(near or (*INTEGERS, True, None))
            case 4:
                del fields[key]
            case 5:
                fields[rng.choice(("extra", "dtype ", "strides"))] = rng.choice(VALUES)
            case 6:
                described[rng.choice(("x", "../x", "\0", "lm_head.weight", "\ud800"))] = described.pop(name)
            case _:
                other = rng.choice(list(described))
                described[name], described[other] = described[other], described[name]
    text = _with_raw(json.dumps(described, separators=(",", ":")), rng)
    if rng.random() < 0.05:
        text = text[:-1] + "," + text[1:]
    return text.encode("utf-8", "surrogatepass") + rng.choice((b"", b"", b" " * 7, b"\0" * 8, b"\n"))


def _with_raw(text: str, rng: random.Random) -> str:
    if rng.random() > 0.1:
        return text
    at = rng.choice([index for index, letter in enumerate(text) if letter == ":"] or [0]) + 1
    ends = [place for mark in (",", "}") if (place := text.find(mark, at)) >= 0]
    return text[:at] + rng.choice(RAW) + text[min(ends, default=at) :]
