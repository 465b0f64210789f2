"""Writing safetensors: a JSON header, then the tensors in its order; split into shards with an index where a file would grow large.

Source: the format's README; names and sizes of shards as the Hugging Face libraries write them.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from herd.convert.streams import Output
from herd.convert.writing import Told, total_bytes, write_tensor

SHARD_BYTES = 5_000_000_000
ALIGNMENT = 8
INDEX = "model.safetensors.index.json"


def write_safetensors(folder: Path, outputs: Sequence[Output], told: Told, shard_bytes: int = SHARD_BYTES) -> list[str]:
    """model.safetensors, or shards with an index. The names of these files."""
    shards = list(_shards(outputs, shard_bytes))
    if len(shards) == 1:
        write_file(folder / "model.safetensors", shards[0], told)
        return ["model.safetensors"]
    names = [f"model-{number:05d}-of-{len(shards):05d}.safetensors" for number in range(1, len(shards) + 1)]
    weight_map: dict[str, str] = {}
    for name, shard in zip(names, shards, strict=True):
        write_file(folder / name, shard, told)
        weight_map |= {output.name: name for output in shard}
    index = {"metadata": {"total_size": total_bytes(outputs)}, "weight_map": dict(sorted(weight_map.items()))}
    (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n")
    return [*names, INDEX]


def _shards(outputs: Iterable[Output], limit: int) -> Iterable[list[Output]]:
    shard: list[Output] = []
    size = 0
    for output in outputs:
        if shard and size + output.num_bytes > limit:
            yield shard
            shard, size = [], 0
        shard.append(output)
        size += output.num_bytes
    yield shard


def write_file(path: Path, outputs: Sequence[Output], told: Told) -> None:
    """All tensors in one file."""
    # Wide formats first: so every tensor begins at a multiple of its elements' size, as the official writer does.
    ordered = sorted(outputs, key=lambda output: (-output.source.dtype.block_bytes, output.name))
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    at = 0
    for output in ordered:
        end = at + output.num_bytes
        header[output.name] = {"dtype": output.source.dtype.name.upper(), "shape": list(output.source.shape), "data_offsets": [at, end]}
        at = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % ALIGNMENT)
    with path.open("xb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for output in ordered:
            write_tensor(file, output, told)
