"""The safetensors container: a JSON header and the bytes after it, all ranges checked before any weight is touched.

    u64 header length | {"name": {"dtype", "shape", "data_offsets": [begin, end]}, "__metadata__": {...}} | tensor bytes

Source: the format's README. Stricter than the reference reader 0.8: a key twice, an unknown field of a tensor, and a header that
does not start with a brace are refused. No holes, no overlaps, nothing after the last tensor.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from herd.checkpoints.config_reader import shown
from herd.errors import FileProblem
from herd.files import BoundedReader, MappedFile
from herd.files.json import parse_json

MAX_HEADER_BYTES = 100_000_000
MAX_TENSORS = 1_000_000
MAX_DIMENSIONS = 8
MAX_NAME_BYTES = 1024
ELEMENT_BYTES = {
    "F64": 8, "F32": 4, "F16": 2, "BF16": 2, "F8_E4M3": 1, "F8_E5M2": 1, "F8_E8M0": 1, "C64": 8,
    "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U64": 8, "U32": 4, "U16": 2, "U8": 1, "BOOL": 1,
}  # fmt: skip
FIELDS = {"dtype", "shape", "data_offsets"}


@dataclass(frozen=True, slots=True)
class Entry:
    """One tensor: its format as the file calls it, its shape, and where its bytes begin in the file."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    file: MappedFile
    offset: int
    num_bytes: int


def read_safetensors(file: MappedFile) -> dict[str, Entry]:
    """Parse and check the header. `FileProblem` names what is wrong and where."""
    reader = BoundedReader(file.view, file.name)
    length = reader.u64("the length of the header")
    allowed = min(MAX_HEADER_BYTES, reader.remaining)
    if length > allowed:
        reader.fail("the length of the header", length, f"at most {allowed}", 0)
    header = bytes(reader.take(length, "the header"))
    if not header.startswith(b"{"):
        reader.fail("the header", f"text that starts with {header[:1]!a}", "an object that starts with a brace", 8)
    described = parse_json(header, file.name)
    metadata = described.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise FileProblem(f"{file.name}: __metadata__ is {shown(metadata)}; allowed is an object of texts.")
    if len(described) > MAX_TENSORS:
        raise FileProblem(f"{file.name}: has {len(described)} tensors; at most {MAX_TENSORS} are allowed.")
    entries = [_entry(name, fields, file, reader.offset) for name, fields in described.items()]
    _check_ranges(sorted(entries, key=lambda entry: (entry.offset, entry.num_bytes)), file, reader.offset)
    return {entry.name: entry for entry in entries}


def _entry(name: str, fields: Any, file: MappedFile, data_start: int) -> Entry:
    def refuse(what: str, found: object, allowed: str) -> FileProblem:
        return FileProblem(f"{file.name}: in the header, {what} of {shown(name)} is {shown(found)}; allowed is {allowed}.")

    if len(name) > MAX_NAME_BYTES:
        raise refuse("the name", f"{len(name)} characters long", f"at most {MAX_NAME_BYTES}")
    if not isinstance(fields, dict) or set(fields) != FIELDS:
        raise refuse("the description", fields, "an object with dtype, shape and data_offsets and nothing else")
    dtype, shape, offsets = fields["dtype"], fields["shape"], fields["data_offsets"]
    if not isinstance(dtype, str) or dtype not in ELEMENT_BYTES:
        raise refuse("the dtype", dtype, "one of " + ", ".join(ELEMENT_BYTES))
    if not isinstance(shape, list) or len(shape) > MAX_DIMENSIONS or not all(map(_is_size, shape)):
        raise refuse("the shape", shape, f"a list of up to {MAX_DIMENSIONS} sizes")
    if not isinstance(offsets, list) or len(offsets) != 2 or not all(map(_is_size, offsets)) or offsets[0] > offsets[1]:
        raise refuse("data_offsets", offsets, "a begin and an end")
    size = math.prod(shape) * ELEMENT_BYTES[dtype]
    if size != offsets[1] - offsets[0]:
        raise refuse("data_offsets", offsets, f"a range of {size} bytes, which shape {shown(shape)} of {dtype} takes")
    if offsets[1] > file.size - data_start:
        raise refuse("data_offsets", offsets, f"an end up to {file.size - data_start}; the file is cut short or damaged")
    return Entry(name, dtype, tuple(shape), file, data_start + offsets[0], size)


def _is_size(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 63


def _check_ranges(entries: list[Entry], file: MappedFile, data_start: int) -> None:
    expected = data_start
    for entry in entries:
        if entry.offset != expected:
            kind = "overlaps the tensor before it" if entry.offset < expected else "leaves a hole before it"
            raise FileProblem(f"{file.name}: {shown(entry.name)} begins at byte {entry.offset} and {kind}; it must begin at {expected}.")
        expected += entry.num_bytes
    if expected != file.size:
        after = file.size - expected
        raise FileProblem(f"{file.name}: has {after} bytes after its last tensor, which ends at byte {expected}; none are allowed.")
