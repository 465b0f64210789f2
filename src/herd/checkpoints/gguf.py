"""The GGUF container, versions 2 and 3, little-endian: keys and tensor ranges, all checked before any weight is touched.

    "GGUF" version counts | key value ... | tensor info ... | padding | tensor bytes

Source: the GGUF specification in ggml's repository. Stricter than it: no nested arrays, nothing but padding after the last
tensor, and every limit of `files/reader.py`. Long lists are stepped over and decoded when somebody asks for them.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

from herd import dtypes
from herd.checkpoints.stored import StoredTensor
from herd.errors import FileProblem
from herd.files import BoundedReader, MappedFile
from herd.files.reader import MAX_ARRAY_ITEMS
from herd.records import dataclass

MAX_KEYS = 100_000
MAX_TENSORS = 1_000_000
MAX_KEY_BYTES = 65_535
MAX_TENSOR_NAME_BYTES = 64
MAX_DIMENSIONS = 4
MAX_ALIGNMENT = 1 << 16
DEFAULT_ALIGNMENT = 32

BOOL, STRING, ARRAY = 7, 8, 9
NUMBER_CODES = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 10: "Q", 11: "q", 12: "d"}
NUMBER_BYTES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 10: 8, 11: 8, 12: 8}

# Types of the ggml table that weights of some models have and that herd does not read, and numbers that were given up.
OTHER_TYPES = {
    9: "q8_1", 15: "q8_k", 16: "iq2_xxs", 17: "iq2_xs", 18: "iq3_xxs", 19: "iq1_s", 21: "iq3_s", 22: "iq2_s", 24: "i8", 25: "i16",
    26: "i32", 27: "i64", 28: "f64", 29: "iq1_m", 34: "tq1_0", 35: "tq2_0", 39: "mxfp4", 40: "nvfp4", 41: "q1_0",
}  # fmt: skip
REMOVED_TYPES = {4: "q4_2", 5: "q4_3", 31: "q4_0_4_4", 32: "q4_0_4_8", 33: "q4_0_8_8", 36: "iq4_nl_4_4", 37: "iq4_nl_4_8", 38: "iq4_nl_8_8"}


@dataclass(frozen=True, slots=True)
class LongList:
    """A list that was stepped over: its element type, length, and the bytes from `start` to `end`."""

    element: int
    count: int
    start: int
    end: int


class Metadata(Mapping[str, Any]):
    """The keys of a file. Lists become Python lists when they are first asked for."""

    def __init__(self, entries: dict[str, Any], reader: BoundedReader) -> None:
        self._entries = entries
        self._reader = reader

    def __getitem__(self, key: str) -> Any:
        value = self._entries[key]
        if isinstance(value, LongList):
            value = self._entries[key] = _decode(self._reader, value, key)
        return value

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)

    def __contains__(self, key: object) -> bool:
        return key in self._entries

    def length(self, key: str) -> int:
        """How many elements the list `key` has, without decoding it; -1 if it is no list."""
        value = self._entries[key]
        return value.count if isinstance(value, LongList) else len(value) if isinstance(value, list) else -1

    def stored(self, key: str) -> tuple[int, int, memoryview] | None:
        """The list `key` as the file stores it: element type, length, bytes. None if it is no list, or was decoded already."""
        value = self._entries.get(key)
        if not isinstance(value, LongList):
            return None
        return value.element, value.count, self._reader.view[value.start : value.end]

    def only(self, prefix: str) -> Metadata:
        """The keys that start with `prefix`."""
        return Metadata({key: value for key, value in self._entries.items() if key.startswith(prefix)}, self._reader)


@dataclass(frozen=True, slots=True)
class GgufFile:
    """One file: its keys, and its tensors in the order of the file, names unique."""

    file: MappedFile
    metadata: Metadata
    tensors: dict[str, StoredTensor]


def read_gguf(file: MappedFile) -> GgufFile:
    """Parse and check everything before the tensor bytes. `FileProblem` names what is wrong and where."""
    reader = BoundedReader(file.view, file.name)
    _magic_and_version(reader)
    tensor_count = reader.u64("the number of tensors")
    # The least that a tensor or a key takes: an empty name and its numbers.
    if tensor_count > min(MAX_TENSORS, reader.remaining // 32):
        reader.fail("the number of tensors", tensor_count, f"at most {min(MAX_TENSORS, reader.remaining // 32)} in a file of this size", 8)
    key_count = reader.u64("the number of keys")
    if key_count > min(MAX_KEYS, reader.remaining // 13):
        reader.fail("the number of keys", key_count, f"at most {min(MAX_KEYS, reader.remaining // 13)} in a file of this size", 16)
    entries: dict[str, Any] = {}
    for _ in range(key_count):
        at = reader.offset
        key = reader.string("a key", MAX_KEY_BYTES)
        if key in entries:
            reader.fail(f"the key {key!a}", "there a second time", "each key once", at)
        entries[key] = _value(reader, key)
    alignment = _alignment(entries, reader)
    return GgufFile(file, Metadata(entries, reader), _tensors(reader, file, tensor_count, alignment))


def _magic_and_version(reader: BoundedReader) -> None:
    magic = bytes(reader.take(4, "the magic"))
    if magic != b"GGUF":
        reader.fail("the magic", ascii(magic), "b'GGUF', with which every GGUF file begins", 0)
    version = reader.u32("the version")
    if version in (2, 3):
        return
    if version & 0xFFFF == 0:
        raise FileProblem(f"{reader.name}: is a big-endian GGUF file; little-endian ones are read. Convert it with gguf_convert_endian.py.")
    hint = "Convert the model again with a current llama.cpp." if version == 1 else "A newer herd may read it."
    raise FileProblem(f"{reader.name}: is GGUF version {version} (at byte 4); versions 2 and 3 are read. {hint}")


def _value(reader: BoundedReader, key: str) -> Any:
    at = reader.offset
    kind = reader.u32(f"the type of {key}")
    if kind in NUMBER_CODES:
        return reader.scalar(NUMBER_CODES[kind], key)
    if kind == BOOL:
        return reader.boolean(key)
    if kind == STRING:
        return reader.string(key)
    if kind != ARRAY:
        reader.fail(f"the type of {key!a}", kind, "0 to 12", at)
    element = reader.u32(f"the element type of {key}")
    count = reader.u64(f"the length of {key}")
    if element == ARRAY:
        reader.fail(f"the element type of {key!a}", "a list of lists", "numbers or strings; no key that herd knows nests lists", at + 4)
    if count > MAX_ARRAY_ITEMS:
        reader.fail(f"the length of {key!a}", count, f"at most {MAX_ARRAY_ITEMS}", at + 8)
    start = reader.offset
    if element == STRING:
        reader.skip_strings(count, key)
    elif element in NUMBER_BYTES or element == BOOL:
        size = NUMBER_BYTES.get(element, 1)
        if count > reader.remaining // size:
            reader.fail(f"the length of {key!a}", count, f"at most {reader.remaining // size}, which the rest of the file holds", at + 8)
        reader.take(count * size, key)
    else:
        reader.fail(f"the element type of {key!a}", element, "0 to 8 or 10 to 12", at + 4)
    return LongList(element, count, start, reader.offset)


def _decode(reader: BoundedReader, values: LongList, key: str) -> list[Any]:
    if values.element == STRING:
        return reader.strings_at(values.start, values.end, values.count, key)
    at = BoundedReader(reader.view, reader.name, values.start)
    if values.element == BOOL:
        return [at.boolean(key) for _ in range(values.count)]
    return list(at.scalars(NUMBER_CODES[values.element], values.count, key))


def _alignment(entries: Mapping[str, Any], reader: BoundedReader) -> int:
    value = entries.get("general.alignment", DEFAULT_ALIGNMENT)
    if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= MAX_ALIGNMENT or value & (value - 1):
        raise FileProblem(f"{reader.name}: general.alignment is {value!a:.80}; allowed is a power of two up to {MAX_ALIGNMENT}.")
    return value


def _tensors(reader: BoundedReader, file: MappedFile, count: int, alignment: int) -> dict[str, StoredTensor]:
    """The tensor infos. Their ranges must follow one another from the start of the data, each padded to the alignment."""
    infos = [_tensor_info(reader) for _ in range(count)]
    data_start = -(-reader.offset // alignment) * alignment
    tensors: dict[str, StoredTensor] = {}
    expected = 0
    for name, dtype, shape, offset, at in infos:
        if name in tensors:
            reader.fail(f"the tensor {name!a}", "there a second time", "each tensor once", at)
        if offset != expected:
            reader.fail(f"the offset of {name!a}", offset, f"{expected}, where the tensor before it ends, rounded up to {alignment}", at)
        tensor = tensors[name] = StoredTensor(name, dtype, shape, file, data_start + offset)
        size = tensor.num_bytes
        if data_start + offset + size > file.size:
            raise FileProblem(
                f"{reader.name}: the tensor {name!a} needs the bytes {data_start + offset} to {data_start + offset + size}, and the file "
                f"has {file.size}. It is cut short or damaged; fetch it again."
            )
        expected = -(-(offset + size) // alignment) * alignment
    if file.size > data_start + expected:
        reader.fail("what follows the last tensor", f"{file.size - data_start - expected} bytes", "nothing", data_start + expected)
    return tensors


def _tensor_info(reader: BoundedReader) -> tuple[str, dtypes.DType, tuple[int, ...], int, int]:
    """name, format, shape (rows first), offset in the data, and where the info itself is in the file."""
    at = reader.offset
    name = reader.string("the name of a tensor", MAX_TENSOR_NAME_BYTES)
    dimensions = reader.u32(f"the number of dimensions of {name}")
    if not 1 <= dimensions <= MAX_DIMENSIONS:
        reader.fail(f"the number of dimensions of {name!a}", dimensions, f"1 to {MAX_DIMENSIONS}", reader.offset - 4)
    shape = tuple(int(size) for size in reversed(reader.scalars("Q", dimensions, f"the dimensions of {name}")))
    if 0 in shape or math.prod(shape) >= 1 << 63:
        reader.fail(f"the shape of {name!a}", list(shape), "sizes from 1 whose product is below 2^63", at)
    kind = reader.u32(f"the type of {name}")
    dtype = dtypes.BY_GGML_ID.get(kind)
    if dtype is None:
        raise FileProblem(f"{reader.name}: {_unreadable(name, kind)}")
    if shape[-1] % dtype.block:
        reader.fail(f"the row length of {name!a}", shape[-1], f"a multiple of {dtype.block}, the block of {dtype.name}", at)
    return name, dtype, shape, reader.u64(f"the offset of {name}"), at


def _unreadable(name: str, kind: int) -> str:
    read = ", ".join(dtype.name for dtype in dtypes.ALL)
    if kind in OTHER_TYPES:
        return f"{name!a} is stored as {OTHER_TYPES[kind]} (type {kind}), which herd does not read. Take a file of one of these: {read}."
    if kind in REMOVED_TYPES:
        return f"{name!a} is stored as {REMOVED_TYPES[kind]} (type {kind}), which GGUF has given up. Take a file of one of these: {read}."
    return f"{name!a} has the type {kind}, which GGUF does not define. The file is damaged, or newer than this herd, which reads {read}."
