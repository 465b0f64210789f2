"""Meta's layout: seeds, edits of the pickle and of the zip around it, and what an accepted file must hold."""

from __future__ import annotations

import io
import random
import struct
import tempfile
import zipfile
from pathlib import Path

import numpy as np

from fuzzing.values import INTEGERS, damage
from herd import dtypes
from herd.checkpoints.meta import DTYPES
from herd.checkpoints.meta_params import params_of, read_params
from herd.checkpoints.pth import PthFile, read_pth
from herd.files import MappedFile
from meta_files import write_meta
from pth_files import number, pth, storage, tensor, text
from tiny import random_leaves, tiny_llama

SIZES = {"width": 16, "num_layers": 1, "num_heads": 2, "num_kv_heads": 1, "head_width": 8, "ffn_width": 24, "vocab_size": 12}
# Pieces of programs, put in at random: calls, names, marks, references, numbers.
PIECES = (
    *(b"cos\nsystem\n", b"cbuiltins\neval\n", b"ctorch._utils\n_rebuild_tensor_v2\n", b"ctorch\nFloatStorage\n"),
    *(b"ccollections\nOrderedDict\n", b"(", b")", b"t", b"R", b"Q", b"}", b"]", b"u", b"s", b"e", b"b", b".", b"N"),
    *(b"\x88", b"\x85", b"\x86", b"\x87", b"\x81", b"h\x00", b"q\x00", b"X\xff\xff\xff\xff", b"\x8a\xff", b"\x80\x05"),
    *(text("storage"), text("norm.weight"), text("0"), tensor(), storage(), storage(count=2**40)),
)


class Target:
    """As in `gguf_target`; an input is a .pth file. The official reader is PyTorch's with `weights_only=True`."""

    name = "pth"

    def __init__(self) -> None:
        import torch

        torch.set_num_threads(1)
        self._torch = torch
        self.seeds: list[bytes] = []
        self._config = tiny_llama(**SIZES)
        read_params(params_of(self._config), 12, {})
        with tempfile.TemporaryDirectory() as folder:
            for index, (changes, dtype) in enumerate((({}, dtypes.F32), ({"tied_embeddings": True}, dtypes.BF16), ({}, dtypes.F16))):
                cfg = tiny_llama(**SIZES, **changes)
                path = write_meta(Path(folder) / str(index), cfg, random_leaves(cfg, index, dtype))
                self.seeds.append((path / "consolidated.00.pth").read_bytes())
        self.seeds.append(pth(b"\x80\x02}(" + text("a") + tensor() + text("b") + tensor(offset=3, shape=(3,), strides=(1,)) + b"u."))

    def make(self, rng: random.Random) -> bytes:
        data = rng.choice(self.seeds)
        if rng.random() < 0.3:
            return damage(data, len(data), rng)
        if rng.random() < 0.3:
            return _directory_edited(data, rng)
        return _pickle_edited(data, rng)

    def open(self, data: bytes) -> object:
        return read_pth(MappedFile.of_bytes(data, "consolidated.00.pth"))

    def compare(self, data: bytes, opened: object) -> str | None:
        assert isinstance(opened, PthFile)
        theirs = self._torch.load(io.BytesIO(data), weights_only=True, map_location="cpu")
        if set(theirs) != set(opened.tensors):
            return f"PyTorch finds the names {sorted(theirs)!a:.200}"
        for name, entry in opened.tensors.items():
            other = theirs[name]
            ours = np.frombuffer(opened.file.view, np.uint8, entry.num_bytes, entry.offset)
            if tuple(other.shape) != entry.shape:
                return f"{name!a}: PyTorch finds the shape {tuple(other.shape)}"
            if entry.dtype in DTYPES and not np.array_equal(ours, other.contiguous().reshape(-1).view(self._torch.uint8).numpy()):
                return f"{name!a}: PyTorch finds other bytes"
        return None


def _pickle_edited(data: bytes, rng: random.Random) -> bytes:
    """The file with other bytes as its program; the zip around it is sound."""
    with zipfile.ZipFile(io.BytesIO(data)) as file:
        members = {name: file.read(name) for name in file.namelist()}
    name = next(each for each in members if each.endswith("/data.pkl"))
    program = bytearray(members[name])
    for _ in range(rng.choice((1, 1, 2, 4))):
        at = rng.randrange(2, len(program))
        match rng.randrange(5):
            case 0:
                program[at:at] = rng.choice(PIECES)
            case 1:
                del program[at : at + rng.choice((1, 2, 5, 20))]
            case 2:
                program[at] = rng.randrange(256)
            case 3:
                value = rng.choice(INTEGERS)
                program[at : at + 2] = number(value) if -(2**63) <= value < 2**63 else b"\x8a\x09" + bytes(9)
            case _:
                other = rng.randrange(2, len(program))
                program[at:at] = program[other : other + rng.choice((3, 10, 60))]
    members[name] = bytes(program)
    if rng.random() < 0.1:
        del members[rng.choice(list(members))]
    if rng.random() < 0.1:
        members[rng.choice(("archive/data/9", "../x", "x/data/0", "archive/code/a.py", "x"))] = b"more"
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", rng.choice((zipfile.ZIP_STORED,) * 9 + (zipfile.ZIP_DEFLATED,))) as file:
        for each, content in members.items():
            file.writestr(each, content)
    return out.getvalue()


def _directory_edited(data: bytes, rng: random.Random) -> bytes:
    """A number of a header, the directory or the end changed."""
    starts = [at for mark in (b"PK\x01\x02", b"PK\x03\x04", b"PK\x05\x06", b"PK\x06\x06", b"PK\x06\x07") for at in _all(data, mark)]
    at = rng.choice(starts) + rng.randrange(4, 46)
    code = rng.choice(("<H", "<I", "<Q"))
    limit = 1 << (8 * struct.calcsize(code))
    near = int.from_bytes(data[at : at + struct.calcsize(code)], "little")
    value = rng.choice((*INTEGERS, near + 1, near - 1, near + 4, near * 2)) % limit
    return data[:at] + struct.pack(code, value) + data[at + struct.calcsize(code) :]


def _all(data: bytes, mark: bytes) -> list[int]:
    found, at = [], data.find(mark)
    while at >= 0:
        found.append(at)
        at = data.find(mark, at + 1)
    return found
