"""Writing PyTorch's .pth: a zip of a pickle and of storages, by an emitter that knows how to write one thing, a dictionary of
tensors. Readable by `torch.load(file, weights_only=True)`, mapped too (`mmap=True`).

Source: PyTorch's `torch/serialization.py`, PKWARE's APPNOTE 6.3.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO

from herd.checkpoints.sources import Source
from herd.convert.streams import Output
from herd.convert.writing import Told, write_tensor

STORAGES = {"f32": b"FloatStorage", "f16": b"HalfStorage", "bf16": b"BFloat16Storage", "i8": b"CharStorage"}
ALIGNMENT = 64
WIDE = 0xFFFFFFFF


def write_pth(path: Path, outputs: Sequence[Output], told: Told, root: str) -> None:
    """All tensors in one file; those that share a source share a storage. `root` is the folder inside the zip."""
    keys: dict[int, int] = {}
    stored: list[Output] = []
    for output in outputs:
        if id(output.source) not in keys:
            keys[id(output.source)] = len(stored)
            stored.append(output)
    with path.open("xb") as file:
        archive = _Zip(file)
        archive.add_bytes(f"{root}/data.pkl", _pickle([(output, keys[id(output.source)]) for output in outputs]))
        archive.add_bytes(f"{root}/byteorder", b"little")
        for key, output in enumerate(stored):
            archive.add_tensor(f"{root}/data/{key}", output, told)
        archive.add_bytes(f"{root}/version", b"3\n")
        archive.finish()


def _pickle(tensors: Sequence[tuple[Output, int]]) -> bytes:
    """The program, protocol 2: a dictionary of name to `_rebuild_tensor_v2(storage, 0, shape, strides, False, OrderedDict())`."""
    entries = b"".join(_text(output.name) + _tensor(output.source, key) for output, key in tensors)
    return b"\x80\x02}(" + entries + b"u."


def _tensor(source: Source, key: int) -> bytes:
    count, strides = 1, []
    for size in reversed(source.shape):
        strides.append(count)
        count *= size
    kind = b"ctorch\n" + STORAGES[source.dtype.name] + b"\n"
    storage = b"(" + _text("storage") + kind + _text(str(key)) + _text("cpu") + _number(count) + b"tQ"
    hooks = b"ccollections\nOrderedDict\n)R"
    shapes = _tuple(source.shape) + _tuple(tuple(reversed(strides)))
    return b"ctorch._utils\n_rebuild_tensor_v2\n(" + storage + _number(0) + shapes + b"\x89" + hooks + b"tR"


def _text(value: str) -> bytes:
    data = value.encode()
    return b"X" + struct.pack("<I", len(data)) + data


def _number(value: int) -> bytes:
    return b"J" + struct.pack("<i", value) if value < 1 << 31 else b"\x8a\x08" + struct.pack("<q", value)


def _tuple(values: tuple[int, ...]) -> bytes:
    return b"(" + b"".join(map(_number, values)) + b"t"


class _Zip:
    """Members one after the other, stored, each at a multiple of 64 bytes; sizes above 4 GiB in zip64 fields."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._entries: list[bytes] = []
        self._crc = 0

    def add_bytes(self, name: str, data: bytes) -> None:
        start = self._begin(name, len(data))
        self.write(memoryview(data))
        self._end(name, start, len(data))

    def add_tensor(self, name: str, output: Output, told: Told) -> None:
        start = self._begin(name, output.num_bytes)
        write_tensor(self, output, told)
        self._end(name, start, output.num_bytes)

    def write(self, data: memoryview) -> None:
        self._crc = zlib.crc32(data, self._crc)
        self._file.write(data)

    def _begin(self, name: str, size: int) -> int:
        """The header, with room for the checksum; where it begins."""
        start, encoded = self._file.tell(), name.encode()
        extra = struct.pack("<HHQQ", 1, 16, size, size) if size >= WIDE else b""
        padding = -(start + 30 + len(encoded) + len(extra) + 4) % ALIGNMENT
        extra += struct.pack("<2sH", b"FB", padding) + bytes(padding)
        self._file.write(self._header(0, size, encoded, extra))
        self._crc = 0
        return start

    @staticmethod
    def _header(crc: int, size: int, name: bytes, extra: bytes) -> bytes:
        narrow = min(size, WIDE)
        version = 45 if size >= WIDE else 20
        return struct.pack("<4s5H3I2H", b"PK\x03\x04", version, 0x800, 0, 0, 33, crc, narrow, narrow, len(name), len(extra)) + name + extra

    def _end(self, name: str, start: int, size: int) -> None:
        """Put the checksum into the header, and note the member for the directory."""
        end, encoded = self._file.tell(), name.encode()
        self._file.seek(start + 14)
        self._file.write(struct.pack("<I", self._crc))
        self._file.seek(end)
        wide = [value for value in (size, size, start) if value >= WIDE]
        extra = struct.pack(f"<HH{len(wide)}Q", 1, 8 * len(wide), *wide) if wide else b""
        narrow = [min(value, WIDE) for value in (size, size)]
        fields = (45, 45 if wide else 20, 0x800, 0, 0, 33, self._crc, *narrow, len(encoded), len(extra), 0, 0, 0, 0, min(start, WIDE))
        self._entries.append(struct.pack("<4s6H3I5H2I", b"PK\x01\x02", *fields) + encoded + extra)

    def finish(self) -> None:
        begin = self._file.tell()
        directory = b"".join(self._entries)
        end, count = begin + len(directory), len(self._entries)
        self._file.write(directory)
        if count >= 0xFFFF or begin >= WIDE:
            self._file.write(struct.pack("<4sQ2H2I4Q", b"PK\x06\x06", 44, 45, 45, 0, 0, count, count, len(directory), begin))
            self._file.write(struct.pack("<4sIQI", b"PK\x06\x07", 0, end, 1))
        narrow = (min(count, 0xFFFF), min(count, 0xFFFF), min(len(directory), WIDE), min(begin, WIDE))
        self._file.write(struct.pack("<4s4H2IH", b"PK\x05\x06", 0, 0, *narrow, 0))
