"""The zip container as PyTorch writes it: members stored as they are, each where the file says it is, nothing else in the file.

    member* | central directory | zip64 end, zip64 locator | end

A member is looked at in place, so its range must be certain. Python's `zipfile` trusts the directory; here both headers of each
member must agree, and members must follow one another from the first byte to the directory without holes, overlaps or a second
description. Compressed and encrypted members are refused: nothing is ever unpacked. Source: PKWARE's APPNOTE 6.3.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass

from herd.errors import FileProblem
from herd.files import BoundedReader, MappedFile
from herd.files.reader import visible

MAX_MEMBERS = 1 << 20
MAX_NAME_BYTES = 1024
_LOCAL, _CENTRAL = struct.Struct("<4s5H3I2H"), struct.Struct("<4s6H3I5H2I")
_END, _END64, _LOCATOR = struct.Struct("<4s4H2IH"), struct.Struct("<4sQ2H2I4Q"), struct.Struct("<4sIQI")
_ENCRYPTED, _DESCRIPTOR, _UTF8, _FOLDER = 1, 8, 0x800, 0x10


@dataclass(frozen=True, slots=True)
class Member:
    """One file inside, in place: `size` bytes at `offset`."""

    name: str
    offset: int
    size: int
    crc: int


@dataclass(frozen=True, slots=True)
class _Listed:
    """A member as the directory describes it; `header` is where its local header begins."""

    name: bytes
    flags: int
    crc: int
    size: int
    header: int


def read_zip(file: MappedFile) -> dict[str, Member]:
    """All members by name. `FileProblem` says what is wrong and where. Contents are not read, so neither are checksums compared."""
    reader = BoundedReader(file.view, file.name)
    count, begin, end = _directory(reader)
    reader.offset = begin
    listed = [_listed(reader) for _ in range(count)]
    if reader.offset != end:
        reader.fail("the zip directory", f"{count} entries that end here", f"entries up to byte {end}")
    members: dict[str, Member] = {}
    at = 0
    for entry in sorted(listed, key=lambda entry: entry.header):
        member = _member(reader, entry, at, begin)
        if member.name in members:
            raise FileProblem(f"{file.name}: holds {visible(member.name)!r} twice; which one is meant is not told.")
        members[member.name] = member
        at = member.offset + member.size
        if entry.flags & _DESCRIPTOR:
            at = _after_descriptor(reader, at, member)
    if at != begin:
        reader.fail("what follows the last member", f"{begin - at} bytes that belong to none", "the zip directory", at)
    return members


def _directory(reader: BoundedReader) -> tuple[int, int, int]:
    """Number of entries, begin and end of the central directory."""
    at = reader.size - _END.size
    if at < 0 or bytes(reader.view[at : at + 4]) != b"PK\x05\x06":
        raise FileProblem(
            f"{reader.name}: does not end as a zip file does (at byte {max(at, 0)}). It is cut short, or has something appended."
        )
    _, disk, first_disk, here, count, size, begin, comment = _END.unpack_from(reader.view, at)
    if disk or first_disk or here != count or comment:
        reader.fail(
            "the end of the zip file", f"disks {disk}, {first_disk}, entries {here} of {count}", "one disk, all entries, no comment", at
        )
    end = at
    if at >= _LOCATOR.size and bytes(reader.view[at - _LOCATOR.size :][:4]) == b"PK\x06\x07":
        end, wide = _directory64(reader, at - _LOCATOR.size)
        for narrow, value, limit, what in zip(
            (count, size, begin), wide, (0xFFFF, 0xFFFFFFFF, 0xFFFFFFFF), ("entries", "size", "offset"), strict=True
        ):
            if narrow not in (value, limit):
                reader.fail(f"the {what} of the zip directory", f"{narrow} in one place and {value} in another", "one value", at)
        count, size, begin = wide
    elif count == 0xFFFF or 0xFFFFFFFF in (size, begin):
        reader.fail("the zip64 locator", "absent", "there, since the end of the file points to it", at)
    if begin + size != end:
        reader.fail("the zip directory", f"bytes {begin} to {begin + size}", f"a range that ends at byte {end}", at)
    if count > min(MAX_MEMBERS, size // _CENTRAL.size):
        reader.fail("the number of members", count, f"at most {min(MAX_MEMBERS, size // _CENTRAL.size)}", at)
    return count, begin, end


def _directory64(reader: BoundedReader, at: int) -> tuple[int, tuple[int, int, int]]:
    """Where the zip64 end begins, and (entries, size, begin) as it gives them."""
    _, disk, where, disks = _LOCATOR.unpack_from(reader.view, at)
    if disk or disks != 1 or where != at - _END64.size:
        reader.fail("the zip64 locator", f"disk {disk} of {disks}, byte {where}", f"one disk, byte {at - _END64.size}", at)
    signature, length, _, _, disk, first_disk, here, count, size, begin = _END64.unpack_from(reader.view, where)
    if signature != b"PK\x06\x06" or length != _END64.size - 12 or disk or first_disk or here != count:
        reader.fail(
            "the zip64 end",
            f"{signature!a}, {length} bytes, disks {disk}, {first_disk}, entries {here} of {count}",
            "one disk, all entries",
            where,
        )
    return where, (count, size, begin)


def _listed(reader: BoundedReader) -> _Listed:
    at = reader.offset
    fields = _CENTRAL.unpack(reader.take(_CENTRAL.size, "an entry of the zip directory"))
    signature, _, _, flags, method, _, _, crc, packed, size, name_length, extra_length, comment, disk, _, kind, header = fields
    if signature != b"PK\x01\x02":
        reader.fail("an entry of the zip directory", ascii(signature), "PK\\x01\\x02", at)
    name = bytes(reader.take(name_length, "the name of a member"))
    extra = bytes(reader.take(extra_length, "the extra field of a member"))
    shown = visible(name.decode("utf-8", "replace"))
    if flags & _ENCRYPTED:
        raise FileProblem(f"{reader.name}: {shown!r} is encrypted; weights that are read in place cannot be.")
    if method != 0:
        raise FileProblem(
            f"{reader.name}: {shown!r} is compressed (method {method}); PyTorch stores members as they are, and only that is read."
        )
    if flags & ~(_DESCRIPTOR | _UTF8) or comment or disk or not name or len(name) > MAX_NAME_BYTES or kind & _FOLDER:
        reader.fail(f"the entry of {shown!r}", f"flags {flags:#x}, comment of {comment}, disk {disk}, kind {kind:#x}", "none of these", at)
    size, packed, header = _wide(reader, extra, (size, packed, header), shown, at)
    if size != packed:
        reader.fail(f"the size of {shown!r}", f"{packed} stored and {size} unpacked", "one size, as it is stored as it is", at)
    return _Listed(name, flags, crc, size, header)


def _wide(reader: BoundedReader, extra: bytes, narrow: tuple[int, int, int], shown: str, at: int) -> tuple[int, int, int]:
    """Size, stored size and header offset, of which those that are 0xFFFFFFFF are in the zip64 field of `extra`."""
    missing = sum(value == 0xFFFFFFFF for value in narrow)
    found: tuple[int, ...] | None = None
    while len(extra) >= 4:
        kind, length = struct.unpack_from("<HH", extra)
        if length > len(extra) - 4:
            reader.fail(f"the extra field of {shown!r}", f"a part of {length} bytes", f"at most {len(extra) - 4}", at)
        if kind == 1:
            if found is not None or length != 8 * missing:
                reader.fail(f"the zip64 field of {shown!r}", f"{length} bytes, or there twice", f"{8 * missing} bytes, once", at)
            found = struct.unpack_from(f"<{missing}Q", extra, 4)
        extra = extra[4 + length :]
    if missing and found is None:
        reader.fail(f"the zip64 field of {shown!r}", "absent", f"there, with {missing} numbers", at)
    wide = iter(found or ())
    size, packed, header = (next(wide) if value == 0xFFFFFFFF else value for value in narrow)
    return size, packed, header


def _member(reader: BoundedReader, entry: _Listed, expected: int, end: int) -> Member:
    """The member, whose local header must be where the one before it ended and must say what the directory says."""
    shown = visible(entry.name.decode("utf-8", "replace"))
    if entry.header != expected:
        reader.fail(f"the place of {shown!r}", entry.header, f"{expected}, where the member before it ends", expected)
    reader.offset = entry.header
    signature, _, flags, method, _, _, crc, packed, size, name_length, extra_length = _LOCAL.unpack(
        reader.take(_LOCAL.size, f"the header of {shown!r}")
    )
    name = bytes(reader.take(name_length, f"the name of {shown!r}"))
    extra = bytes(reader.take(extra_length, f"the extra field of {shown!r}"))
    wide = extra[4:20] if extra[:2] == b"\x01\x00" else b""
    if 0xFFFFFFFF in (size, packed) and wide == struct.pack("<QQ", entry.size, entry.size):
        size = packed = entry.size
    later = flags & _DESCRIPTOR
    agrees = (
        {size, packed} <= {entry.size, 0} and crc in (entry.crc, 0) if later else (size, packed, crc) == (entry.size, entry.size, entry.crc)
    )
    if signature != b"PK\x03\x04" or (flags, method, name) != (entry.flags, 0, entry.name) or not agrees:
        raise FileProblem(
            f"{reader.name}: the header of {shown!r} at byte {entry.header} and the zip directory contradict each other. The file is "
            "damaged, or made to mislead."
        )
    if entry.size > end - reader.offset:
        reader.fail(f"the size of {shown!r}", entry.size, f"at most {max(0, end - reader.offset)}, up to the zip directory", entry.header)
    try:
        text = name.decode()
    except UnicodeDecodeError:
        reader.fail("the name of a member", ascii(name[:80]), "UTF-8 text", entry.header)
    return Member(text, reader.offset, entry.size, entry.crc)


def _after_descriptor(reader: BoundedReader, at: int, member: Member) -> int:
    """The end of the checksum and sizes that follow a member."""
    sizes = {
        struct.pack("<III", member.crc, member.size & 0xFFFFFFFF, member.size & 0xFFFFFFFF),
        struct.pack("<IQQ", member.crc, member.size, member.size),
    }
    follows = bytes(reader.view[at : at + 24])
    for expected in sorted(sizes, key=len, reverse=True):
        for text in (b"PK\x07\x08" + expected, expected):
            if follows.startswith(text) and (len(expected) == 20 or member.size <= 0xFFFFFFFF):
                return at + len(text)
    reader.fail(f"what follows {visible(member.name)!r}", ascii(follows), "its checksum and size", at)


def checksums(file: MappedFile, members: Mapping[str, Member], names: list[str]) -> list[str]:
    """Those of `names` whose bytes do not have the checksum of the directory. Reads them."""
    import zlib

    wrong = []
    for name in names:
        member, crc = members[name], 0
        for at in range(member.offset, member.offset + member.size, 1 << 24):
            length = min(1 << 24, member.offset + member.size - at)
            crc = zlib.crc32(file.view[at : at + length], crc)
            file.drop_pages(at, length)
        if crc != member.crc:
            wrong.append(name)
    return wrong
