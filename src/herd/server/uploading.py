"""A file that comes as a form (multipart/form-data): read while it arrives, kept piece by piece, never whole in memory.

The parts are the file, which has a file name, and short fields. What is wrong with a form is said once, and what was kept of it goes.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import field
from typing import TYPE_CHECKING, Any

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from herd.records import dataclass
from herd.server.errors import ApiError
from herd.server.settings import LIMITS
from herd.server.tables import PIECE_BYTES

if TYPE_CHECKING:
    from starlette.requests import Request

FIELDS_MAX = 16
FIELD_BYTES = 1024
FILE = "file"


@dataclass(slots=True)
class Form:
    """What came of a form so far.

    fields      short parts by name
    filename    as the client calls the file; it is never a path here. None until the file's part has begun
    pieces      bytes of the file that nobody has taken yet
    """

    fields: dict[str, str] = field(default_factory=dict)
    filename: str | None = None
    pieces: bytearray = field(default_factory=bytearray)


class FormReader:
    """Feeds a form's bytes to the parser and sorts what comes out."""

    def __init__(self, content_type: str) -> None:
        kind, options = parse_options_header(content_type)
        if kind != b"multipart/form-data" or not options.get(b"boundary"):
            raise ApiError(415, "The content type is not multipart/form-data with a boundary; files are sent as a form.")
        self.form = Form()
        self._name = ""
        self._is_file = False
        self._header: list[bytes] = [b"", b""]
        self._headers: dict[bytes, bytes] = {}
        self._value = bytearray()
        self._is_complete = False
        try:
            self._parser = MultipartParser(options[b"boundary"], self._callbacks(), max_header_count=8, max_header_size=4096)
        except FormParserError:
            raise _broken() from None

    def feed(self, data: bytes) -> None:
        try:
            self._parser.write(data)
        except FormParserError:
            raise _broken() from None

    def finish(self) -> None:
        """`ApiError` for a form that has no end, or no file."""
        if not self._is_complete:
            raise _broken()
        if self.form.filename is None:
            raise ApiError(400, "file is missing: expected a part named file, with a file name.", param=FILE)

    def _callbacks(self) -> Any:
        return {
            "on_part_begin": self._part_begin,
            "on_header_field": self._header_field,
            "on_header_value": self._header_value,
            "on_header_end": self._header_end,
            "on_headers_finished": self._headers_finished,
            "on_part_data": self._part_data,
            "on_part_end": self._part_end,
            "on_end": self._end,
        }

    def _part_begin(self) -> None:
        self._headers, self._header, self._value = {}, [b"", b""], bytearray()

    def _header_field(self, data: bytes, start: int, end: int) -> None:
        self._header[0] += data[start:end]

    def _header_value(self, data: bytes, start: int, end: int) -> None:
        self._header[1] += data[start:end]

    def _header_end(self) -> None:
        self._headers[self._header[0].lower()] = self._header[1]
        self._header = [b"", b""]

    def _headers_finished(self) -> None:
        kind, options = parse_options_header(self._headers.get(b"content-disposition", b"").decode("latin-1"))
        if kind != b"form-data" or b"name" not in options or self._headers.get(b"content-transfer-encoding", b"binary") not in _PLAIN:
            raise _broken()
        self._name = _text(options[b"name"])
        self._is_file = self._name == FILE
        if not self._is_file:
            return self._check_field(self._name)
        if self.form.filename is not None:
            raise ApiError(400, "file is given twice; a request brings one.", param=FILE)
        name = _text(options.get(b"filename", b"file"))
        if not 0 < len(name) <= LIMITS.name_characters:
            raise ApiError(400, f"The file's name has {len(name)} characters; at most {LIMITS.name_characters} are kept.", param=FILE)
        self.form.filename = name

    def _check_field(self, name: str) -> None:
        if name in self.form.fields:
            raise ApiError(400, f"{name[:80]} is given twice.", param=name[:80])
        if len(self.form.fields) >= FIELDS_MAX:
            raise ApiError(400, f"The form has more than {FIELDS_MAX} fields.")

    def _part_data(self, data: bytes, start: int, end: int) -> None:
        if self._is_file:
            self.form.pieces += data[start:end]
            return
        self._value += data[start:end]
        if len(self._value) > FIELD_BYTES:
            raise ApiError(400, f"{self._name[:80]} has more than {FIELD_BYTES} bytes.", param=self._name[:80])

    def _part_end(self) -> None:
        if not self._is_file:
            self.form.fields[self._name] = _text(bytes(self._value))

    def _end(self) -> None:
        self._is_complete = True


_PLAIN = (b"binary", b"8bit", b"7bit")


async def read_form(request: Request, max_bytes: int) -> AsyncIterator[tuple[Form, bytes]]:
    """The form as it comes, each time with the next piece of its file, of `PIECE_BYTES` but for the last. `ApiError` for a form that is
    broken off, is none, or has a file of more than `max_bytes`."""
    reader = FormReader(request.headers.get("content-type", ""))
    size = 0
    async for chunk in request.stream():
        reader.feed(chunk)
        pieces = reader.form.pieces
        while len(pieces) >= PIECE_BYTES:
            size += PIECE_BYTES
            if size > max_bytes:
                raise ApiError(413, f"The file is larger than {max_bytes} bytes.", param=FILE)
            yield reader.form, bytes(pieces[:PIECE_BYTES])
            del pieces[:PIECE_BYTES]
    reader.finish()
    if size + len(reader.form.pieces) > max_bytes:
        raise ApiError(413, f"The file is larger than {max_bytes} bytes.", param=FILE)
    yield reader.form, bytes(reader.form.pieces)


def _text(data: bytes) -> str:
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError:
        raise ApiError(400, "A field of the form is not UTF-8.") from None


def _broken() -> ApiError:
    return ApiError(400, "The form is broken: it is not what multipart/form-data has to be, or it ends too early.")
