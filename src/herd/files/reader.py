"""Little-endian numbers and strings out of a file that may lie about every length.

The rule of this module: a count is compared with what is left of the file (`count <= remaining // element_bytes`) before
anything is multiplied, allocated or read. Every refusal is a `FileProblem` with the file, the offset, the field, what was
found and what was allowed.
"""

from __future__ import annotations

import struct
from typing import NoReturn

from herd.errors import FileProblem

try:
    from herd._core import skip_strings as _skip_strings
except ImportError:  # without native code the loop below does the same

    def _skip_strings(data: memoryview, start: int, count: int) -> int:
        return -1


MAX_STRING_BYTES = 16 << 20
MAX_ARRAY_ITEMS = 1 << 24
# Strings are walked one by one, 0.1 microseconds each: this many keep a hostile file under half a second.
MAX_ARRAY_STRINGS = 1 << 22

MAX_SHOWN = 160

_U32 = struct.Struct("<I")
_U64 = struct.Struct("<Q")


class BoundedReader:
    """A position that moves forward through `view`. `name` is how messages call the file."""

    __slots__ = ("name", "offset", "size", "view")

    def __init__(self, view: memoryview | bytes, name: str, offset: int = 0) -> None:
        self.view = memoryview(view)
        self.name = name
        self.size = len(self.view)
        self.offset = offset

    @property
    def remaining(self) -> int:
        return self.size - self.offset

    def fail(self, field: str, found: object, allowed: str, offset: int | None = None) -> NoReturn:
        """Raise the `FileProblem` for `field`, which starts at `offset` (by default: the present position)."""
        at = self.offset if offset is None else offset
        raise FileProblem(
            f"{self.name}: at byte {at}, {visible(field)} is {found}; allowed is {allowed}. The file is damaged, or made to mislead."
        )

    def need(self, count: int, field: str) -> None:
        """Refuse unless `count` more bytes are there."""
        if count > self.size - self.offset:
            raise FileProblem(
                f"{self.name}: at byte {self.offset}, {visible(field)} needs {count} bytes and {self.size - self.offset} are left. "
                "The file is cut short or damaged; fetch it again."
            )

    def take(self, count: int, field: str) -> memoryview:
        """The next `count` bytes, not copied."""
        self.need(count, field)
        start = self.offset
        self.offset = start + count
        return self.view[start : self.offset]

    def u32(self, field: str) -> int:
        self.need(4, field)
        (value,) = _U32.unpack_from(self.view, self.offset)
        self.offset += 4
        return int(value)

    def u64(self, field: str) -> int:
        self.need(8, field)
        (value,) = _U64.unpack_from(self.view, self.offset)
        self.offset += 8
        return int(value)

    def scalar(self, code: str, field: str) -> int | float:
        """One number; `code` is the `struct` letter of its type, without byte order."""
        return self.scalars(code, 1, field)[0]

    def scalars(self, code: str, count: int, field: str) -> tuple[int | float, ...]:
        """`count` numbers of one type."""
        size = struct.calcsize("<" + code)
        if count > self.remaining // size:
            self.fail(field, f"a list of {count}", f"at most {self.remaining // size}, as many as the rest of the file holds")
        values = struct.unpack_from(f"<{count}{code}", self.view, self.offset)
        self.offset += count * size
        return values

    def boolean(self, field: str) -> bool:
        """One byte that must be 0 or 1."""
        value = self.take(1, field)[0]
        if value > 1:
            self.fail(field, value, "0 or 1", self.offset - 1)
        return value == 1

    def string(self, field: str, max_bytes: int = MAX_STRING_BYTES) -> str:
        """A u64 length and that many bytes of UTF-8."""
        at = self.offset
        length = self.u64(f"the length of {field}")
        if length > max_bytes:
            self.fail(f"the length of {field}", length, f"at most {max_bytes}", at)
        data = self.take(length, field)
        try:
            return str(data, "utf-8")
        except UnicodeDecodeError as problem:
            self.fail(field, f"not valid UTF-8 ({problem.reason} after {problem.start} bytes)", "UTF-8 text", at + 8)

    def skip_strings(self, count: int, field: str) -> None:
        """Step over `count` strings, checking each length; `strings_at` reads them later."""
        if count > MAX_ARRAY_STRINGS:
            self.fail(field, f"a list of {count} strings", f"at most {MAX_ARRAY_STRINGS}")
        if count > self.remaining // 8:
            self.fail(field, f"a list of {count} strings", f"at most {self.remaining // 8}, as many as the rest of the file holds")
        end = _skip_strings(self.view, self.offset, count)
        if end >= 0:
            self.offset = end
            return
        unpack, view, offset, last = _U64.unpack_from, self.view, self.offset, self.size - 8
        for index in range(count):
            if offset > last:
                self.need(8, f"the length of {field}[{index}]")
                self.fail(f"{field}[{index - 1}]", "a string past the end of the file", f"at most {self.size - 8} as its end", self.offset)
            offset += 8 + unpack(view, offset)[0]
        if offset > self.size:
            self.fail(f"the last string of {field}", f"to end at byte {offset}", f"at most {self.size}, the size of the file")
        self.offset = offset

    def strings_at(self, start: int, end: int, count: int, field: str) -> list[str]:
        """The `count` strings in bytes `start` to `end`, over which `skip_strings` has stepped before."""
        data, unpack, at = bytes(self.view[start:end]), _U64.unpack_from, 0
        found: list[str] = []
        for index in range(count):
            begin = at + 8
            at = begin + unpack(data, at)[0]
            try:
                found.append(data[begin:at].decode())
            except UnicodeDecodeError:
                self.fail(f"{field}[{index}]", "not valid UTF-8", "UTF-8 text", start + begin)
        return found


def visible(text: str) -> str:
    """Text out of a file for a message: cut, and without characters that could move a cursor or hide something."""
    cut = text if len(text) <= MAX_SHOWN else text[: MAX_SHOWN - 3] + "..."
    return cut if cut.isprintable() else "".join(each if each.isprintable() else ascii(each)[1:-1] for each in cut)
