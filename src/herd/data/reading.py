"""Records from files that nobody vouches for: JSONL, JSON arrays and plain text, also compressed, one file or folders of them.

    for record in read_records(find_files(["chats.jsonl.gz", "more/"])):
        record.place        more/a.jsonl:17
        record.value        {"messages": [...]}

Files are read as they are needed and never as a whole. What is wrong with a file is a `FileProblem` that names file and line; what is
wrong with the *content* of a record is for `shapes` to say.

A text file is one document; one of more than `TEXT_BYTES` is several, cut at ends of lines.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

from herd.data.opening import open_data
from herd.errors import FileProblem, UsageError
from herd.files.json import parse_json
from herd.records import dataclass

LINE_BYTES_MAX = 64 << 20
"""What one record may take; a longer line is refused before it is in memory."""
TEXT_BYTES = 1 << 20
_JSON_ENDINGS, _TEXT_ENDINGS = (".jsonl", ".ndjson", ".json"), (".txt", ".text", ".md", ".raw")
_PACKED_ENDINGS = (".gz", ".zst")
_NOT_DATA = ("readme", "license", "licence", "notice", "manifest")
"""Beginnings of names of files that lie beside data in folders and are none."""
_STEP_BYTES = 1 << 20
_SPACE = b" \t\r\n"


@dataclass(frozen=True, slots=True)
class Place:
    """A line of a file, counted from 1."""

    path: Path
    line: int

    def __str__(self) -> str:
        return f"{self.path}:{self.line}"


@dataclass(frozen=True, slots=True)
class Record:
    """An object of a JSON file, or {"text": ...} of a text file."""

    place: Place
    value: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Found:
    """Files to read, in order; and what lay beside them in folders and is not read, with the reason."""

    paths: tuple[Path, ...]
    skipped: tuple[tuple[Path, str], ...] = ()


@dataclass(frozen=True, slots=True)
class DataFile:
    """What a run notes of a file, so that a changed one is noticed: the SHA-256 of its bytes as they lie on the disk."""

    name: str
    num_bytes: int
    sha256: str


def find_files(paths: Iterable[str | Path]) -> Found:
    """The files that are meant: files as given, folders as all data files below them, sorted by name.

    `FileProblem` for what is not there or is no data file, and for a folder without any.
    """
    if isinstance(paths, str | Path):
        paths = [paths]
    found: list[Path] = []
    skipped: list[tuple[Path, str]] = []
    for given in map(Path, paths):
        if given.is_dir():
            inside = _inside(given, skipped)
            if not inside:
                raise FileProblem(f"{given}: the folder has no data files; expected names ending in {_endings()}, also with .gz or .zst.")
            found += inside
        elif not given.exists():
            raise FileProblem(f"{given}: there is no such file or folder.")
        elif kind_of(given) is None:
            raise FileProblem(_not_known(given))
        else:
            found.append(given)
    if not found:
        raise UsageError("no data is given; name files or folders (--data).")
    return Found(tuple(dict.fromkeys(found)), tuple(skipped))


def kind_of(path: Path) -> str | None:
    """ "json" or "text" by the file's name; None for others."""
    name = path.name.lower()
    for ending in _PACKED_ENDINGS:
        name = name.removesuffix(ending)
    if name.endswith(_JSON_ENDINGS):
        return "json"
    return "text" if name.endswith(_TEXT_ENDINGS) else None


def read_records(paths: Iterable[Path]) -> Iterator[Record]:
    """All records of the files, in order. `FileProblem` names the file and the line."""
    for path in paths:
        count = 0
        for record in read_file(path):
            count += 1
            yield record
        if not count:
            raise FileProblem(f"{path}: the file is empty; it holds no record.")


def read_file(path: Path) -> Iterator[Record]:
    """The records of one file; none of one that is empty."""
    kind = kind_of(path)
    if kind is None:
        raise FileProblem(_not_known(path))
    with open_data(path) as file:
        begin = _without_bom(path, file.read(_STEP_BYTES))
        if kind == "text":
            yield from _documents(path, file, begin)
        elif begin.lstrip(_SPACE).startswith(b"["):
            yield from _array(path, file, begin)
        else:
            yield from _lines(path, file, begin)


def data_files(paths: Iterable[Path]) -> tuple[DataFile, ...]:
    """Name, size and digest of each file."""
    return tuple(DataFile(path.name, *digest_of(path)) for path in paths)


def digest_of(path: Path) -> tuple[int, str]:
    """Size and SHA-256 of a file. `FileProblem` if it cannot be read."""
    digest, size = hashlib.sha256(), 0
    try:
        with path.open("rb") as file:
            while piece := file.read(_STEP_BYTES):
                digest.update(piece)
                size += len(piece)
    except OSError as problem:
        raise FileProblem(f"{path}: cannot be read: {problem.strerror or problem}.") from None
    return size, digest.hexdigest()


def data_hash(files: Iterable[DataFile]) -> str:
    """One SHA-256 of all files' contents in their order, whatever they are called."""
    return hashlib.sha256("\n".join(f"{file.num_bytes} {file.sha256}" for file in files).encode()).hexdigest()


def _endings() -> str:
    return ", ".join((*_JSON_ENDINGS, *_TEXT_ENDINGS))


def _not_known(path: Path) -> str:
    convert = " Convert it to JSONL first." if path.suffix.lower() in (".parquet", ".arrow", ".csv", ".tsv", ".feather") else ""
    return f"{path}: is not called like a file that is read here; expected {_endings()}, also with .gz or .zst.{convert}"


def _inside(folder: Path, skipped: list[tuple[Path, str]]) -> list[Path]:
    inside = []
    for path in sorted(folder.rglob("*")):
        if any(part.startswith(".") for part in path.relative_to(folder).parts) or path.is_dir():
            continue
        if path.name.lower().startswith(_NOT_DATA):
            skipped.append((path, "lies beside data, by its name"))
        elif kind_of(path) is None:
            skipped.append((path, "is not called like a data file"))
        else:
            inside.append(path)
    return inside


def _without_bom(path: Path, begin: bytes) -> bytes:
    if begin.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise FileProblem(f"{path}:1: the file is UTF-16; expected UTF-8. Save it as UTF-8.")
    return begin.removeprefix(b"\xef\xbb\xbf")


def _raw_lines(path: Path, file: BinaryIO, begin: bytes) -> Iterator[tuple[int, bytes]]:
    """(number, line with its end) of each line. Lines end with a line feed; a carriage return before it belongs to the end."""
    held, number = begin, 1
    is_last = False
    while held or not is_last:
        cut = held.rfind(b"\n") + 1
        for line in held[:cut].splitlines(keepends=True) if b"\r" not in held[:cut] else _fed(held[:cut]):
            yield number, line
            number += 1
        held = held[cut:]
        if is_last:
            if held:
                yield number, held
            return
        pieces, size = [held], len(held)
        while True:
            piece = file.read(_STEP_BYTES)
            pieces.append(piece)
            size += len(piece)
            if not piece or b"\n" in piece:
                break
            if size > LINE_BYTES_MAX:
                raise _too_long(path, number)
        held, is_last = b"".join(pieces), not piece


def _fed(lines: bytes) -> Iterator[bytes]:
    """Lines by line feeds alone."""
    for line in lines.split(b"\n")[:-1]:
        yield line + b"\n"


def _too_long(path: Path, line: int) -> FileProblem:
    return FileProblem(f"{path}:{line}: the record is longer than {LINE_BYTES_MAX >> 20} MiB. Cut it into records, one a line.")


def _lines(path: Path, file: BinaryIO, begin: bytes) -> Iterator[Record]:
    """JSONL. Empty lines are no records."""
    for number, line in _raw_lines(path, file, begin):
        if len(line) > LINE_BYTES_MAX:
            raise _too_long(path, number)
        if line.strip(_SPACE):
            yield Record(Place(path, number), parse_json(line, f"{path}:{number}"))


def _documents(path: Path, file: BinaryIO, begin: bytes) -> Iterator[Record]:
    """Plain text, in documents of `TEXT_BYTES` or a little more."""
    held: list[str] = []
    size, first = 0, 1
    for number, line in _raw_lines(path, file, begin):
        try:
            held.append(line.decode("utf-8"))
        except UnicodeDecodeError as problem:
            raise FileProblem(f"{path}:{number}: is not valid UTF-8 at byte {problem.start} of the line. Save it as UTF-8.") from None
        size += len(line)
        if size >= TEXT_BYTES:
            yield Record(Place(path, first), {"text": _text(held)})
            held, size, first = [], 0, number + 1
    if (text := _text(held)).strip():
        yield Record(Place(path, first), {"text": text})


def _text(lines: list[str]) -> str:
    return "".join(lines).replace("\r\n", "\n")


def _array(path: Path, file: BinaryIO, begin: bytes) -> Iterator[Record]:
    """The elements of a JSON array, one after another; never more of them in memory than one and a step."""
    text = _Text(path, file, begin)
    text.skip(1)
    expected = b"{]"
    while True:
        sign = text.peek()
        if sign == b"]":
            break
        if expected == b",]":
            if sign != b",":
                raise FileProblem(f"{path}:{text.line}: expected a comma or ] after an element of the JSON array, found {text.shown()}.")
            text.skip(1)
            sign = text.peek()
        if sign != b"{":
            raise FileProblem(f"{path}:{text.line}: expected an object in the JSON array, found {text.shown()}.")
        line = text.line
        yield Record(Place(path, line), parse_json(text.element(), f"{path}:{line}"))
        expected = b",]"
    text.skip(1)
    if text.peek():
        raise FileProblem(f"{path}:{text.line}: something follows the JSON array: {text.shown()}.")


class _Text:
    """The bytes of a file from the place that was reached, with the number of its line."""

    def __init__(self, path: Path, file: BinaryIO, begin: bytes) -> None:
        self._path, self._file, self._held, self._at = path, file, begin, 0
        self.line = 1
        self.peek()

    def skip(self, count: int) -> None:
        self.line += self._held.count(b"\n", self._at, self._at + count)
        self._at += count

    def peek(self) -> bytes:
        """The next byte that is no white space; none at the end of the file."""
        while True:
            rest = self._held[self._at : self._at + 4096]
            stripped = rest.lstrip(_SPACE)
            self.skip(len(rest) - len(stripped))
            if stripped:
                return stripped[:1]
            if not rest and not self._more(_STEP_BYTES):
                return b""

    def shown(self) -> str:
        found = self._held[self._at : self._at + 40].decode("utf-8", "replace")
        return repr(found) if found else "the end of the file"

    def element(self) -> bytes:
        """The bytes of the object that begins here. The brackets are counted; what is inside is for JSON's reader to judge."""
        depth, in_text, at = 0, False, self._at
        while True:
            found = _SIGNS.search(self._held, at)
            is_cut = found is not None and found[0] == b"\\" and found.end() == len(self._held)
            if found is None or is_cut:  # nothing more is here, or what is escaped was not read yet
                at = (len(self._held) if found is None else found.start()) - self._at
                if at > LINE_BYTES_MAX:
                    raise _too_long(self._path, self.line)
                if not self._more(_STEP_BYTES):
                    raise FileProblem(f"{self._path}:{self.line}: the file ends inside this element of the JSON array; it is cut short.")
                continue  # what is held begins with the element now
            sign, at = found[0], found.end()
            if sign == b"\\":
                at += 1
                continue
            if sign == b'"':
                in_text = not in_text
            elif not in_text:
                depth += 1 if sign in b"{[" else -1
                if depth == 0:
                    element = self._held[self._at : at]
                    self.skip(len(element))
                    return element

    def _more(self, size: int) -> bool:
        """Reads on, more the more is held, so that a long element is not copied again for each of its pieces."""
        kept = self._held[self._at :]
        piece = self._file.read(max(size, len(kept)))
        self._held, self._at = kept + piece, 0
        return bool(piece)


_SIGNS = re.compile(rb'[\\"{}\[\]]')
