"""An answer as it arrives, read into text and calls.

    parser = chat_format.parser(tools)
    parser.push("Let me look. ")         -> [Piece("Let me look. ")]
    parser.push('{"name": "f", ')        -> []                       (may become a call: held back)
    parser.push('"parameters": {}}')     -> [Piece(calls=(f,))]
    parser.finish()                      -> whatever is still held back, as text

Nothing is lost: the `raw` of all pieces, joined, is all that was pushed. Nothing raises: what only looks like a call is text. A
call is looked for where models write calls: at the beginning of an answer, after another call, in a block that a control token
opens, or in a `<function=...>` tag; and at the beginning of any line if it names a tool that was offered.

An answer whose calls are held to a grammar (`ChatFormat.call_grammar`) is known to be a call once it begins as one: then its arguments
are given out while they arrive, as pieces of JSON text. What they spell is what the call has that comes after them. If the answer is cut
off in the middle of a call, that call does not come, and is no text either.

The work is linear in the answer: a candidate's characters are looked at once, candidates have a longest size, and an answer in
which `FAILURES_MAX` of them turned out to be text is text from there on.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import final

from herd.records import dataclass
from herd.text.formats import calls as notation
from herd.text.formats.begun import Begun, Head, OpenCall
from herd.text.formats.calls import Found
from herd.text.stream import StreamDecoder
from herd.text.tools import BuiltIn, ToolCall

CANDIDATE_MAX = 1 << 16
FAILURES_MAX = 32
DEPTH_MAX = 100
LEAD_MAX = 256
"""White space that is held back before what may be a call."""
_BEGINNING, _AFTER_CALL = re.compile(r"\s*"), re.compile(r"[\s;,]*")
_TAGS: dict[str, tuple[str, Callable[[str], Found]]] = {
    "<function=": ("</function>", notation.read_function),
    "<tool_call>": ("</tool_call>", notation.read_tool_call),
}
_BUILT_INS = tuple(f"{tool.value}.call(" for tool in BuiltIn)
_LINE_END = re.compile(rf"\n[ \t]{{0,{LEAD_MAX}}}\Z")
# How a call goes on after its bracket. A prefix of such a beginning is one that matches up to its own end.
_OBJECT_KEY = ("name", "type", "function", "parameters", "arguments", "id")
_OBJECT = re.compile(r'\{\s*(?:\Z|"(?:\w*\Z|(?:' + "|".join(_OBJECT_KEY) + r')"))')
_LIST = re.compile(r"\[\s*(?:\Z|\{|[A-Za-z_][\w.]*\s*(?:\Z|\())")
_BRACKET = re.compile(r"""["'\\\[\]{}()]""")
_CLOSES = {"]": "[", "}": "{", ")": "("}


@dataclass(frozen=True, slots=True)
class Marks:
    """The control tokens that open and close a block of calls or code; empty in formats that have none."""

    begin: str = ""
    end: str = ""

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(name for name in (self.begin, self.end) if name)


@dataclass(frozen=True, slots=True)
class Piece:
    """Text, or calls, or a piece of one. `raw` is what the model wrote for it, control tokens by their names."""

    text: str = ""
    calls: tuple[ToolCall, ...] = ()
    raw: str = ""
    begun: Begun | None = None


@dataclass(slots=True)
class _Candidate:
    """What is held back because it may become a call. `lead` characters before it are white space."""

    lead: int
    scan: Callable[[str, _Candidate], int]
    read: Callable[[str], Found]
    explicit: bool
    """The notation says that it is a call, so the name need not be known."""
    at: int = 0
    """How far it has been looked at."""
    quote: str = ""
    stack: str = ""


_MORE, _NO = -1, -2


@final
class StreamParser:
    """Made by `ChatFormat.parser`. Push texts or token ids, then finish once."""

    def __init__(
        self,
        marks: Marks,
        names: frozenset[str] | None,
        decoder: StreamDecoder | None = None,
        heads: Mapping[str, Head] | None = None,
    ) -> None:
        """names: of the tools that were offered; None if that is not known. heads: the beginnings of calls, in an answer that is held
        to a grammar from such a beginning on."""
        self._marks, self._names, self._decoder = marks, names, decoder
        literals = [*marks.names, *_TAGS]
        self._literals = re.compile("|".join(map(re.escape, literals)))
        self._literal_prefixes = {text[:size] for text in literals for size in range(1, len(text))}
        self._prefix_size = max(map(len, literals)) - 1
        self._held = ""
        self._candidate: _Candidate | None = None
        self._lead: re.Pattern[str] | None = _BEGINNING
        self._failures = 0
        self._pieces: list[Piece] = []
        self._code: list[Piece] = []
        self._finished = False
        self._heads = {text: head for text, head in (heads or {}).items() if head.is_json}
        self._open: OpenCall | None = None

    def push(self, piece: str | int | Iterable[int]) -> list[Piece]:
        """More of the answer, as text or as token ids; what became certain by it."""
        self._held += piece if isinstance(piece, str) else self._decoded(piece)
        self._run()
        return self._taken()

    def finish(self) -> list[Piece]:
        """The answer is over: what was held back becomes what it is."""
        if self._decoder is not None:
            self._held += self._decoder.finish()
        self._finished = True
        self._run()
        self._settle_code(is_text=False)
        return self._taken()

    def _decoded(self, ids: int | Iterable[int]) -> str:
        if self._decoder is None:
            raise TypeError("this parser was made for texts")
        return "".join(map(self._decoder.push, [ids] if isinstance(ids, int) else ids))

    def _run(self) -> None:
        while self._step():
            pass

    def _taken(self) -> list[Piece]:
        pieces, self._pieces = self._pieces, []
        return _merged(pieces)

    def _step(self) -> bool:
        """One thing that became certain; False when more must arrive first."""
        if self._candidate is not None:
            return self._go_on(self._candidate)
        if self._open is not None:
            return self._give_out(self._open)
        if not self._held:
            return False
        return self._look_inside() if self._lead is None else self._look_for_beginning(self._lead)

    def _look_for_beginning(self, lead: re.Pattern[str]) -> bool:
        """At a place where a call may begin without more ado."""
        match = lead.match(self._held)
        size = match.end() if match else 0
        rest = self._held[size : size + LEAD_MAX]
        if self._heads and (size == 0 or lead is _AFTER_CALL):
            found = next((text for text in self._heads if rest.startswith(text)), None)
            if found is not None:
                begin = size + len(found)
                self._open = OpenCall(self._heads[found], notation.new_call_id(), begin, begin)
                return True
            if not self._finished and any(text.startswith(rest) for text in self._heads):
                return False
        self._heads = {}  # the answer did not begin so, or went on otherwise: nothing holds it from here on
        if size <= LEAD_MAX and not self._finished and (not rest or any(text.startswith(rest) for text in _BUILT_INS)):
            return False
        if rest and rest[0] in "{[" and size <= LEAD_MAX and self._failures < FAILURES_MAX:
            self._candidate = _bracketed(rest[0], size)
        elif rest.startswith(_BUILT_INS) and size <= LEAD_MAX:
            self._candidate = _Candidate(size, _scan_brackets, notation.read_built_in, explicit=True)
        else:
            self._lead = None
        return True

    def _give_out(self, call: OpenCall) -> bool:
        """More of the arguments of a call; the call itself, once what follows them is there."""
        stop = call.end or call.scan(self._held)
        if stop > call.sent:
            piece = Begun(call.call_id, call.head.name, self._held[call.sent : stop])
            call.sent = stop
            self._pieces.append(Piece(begun=piece))
        tail = self._held[call.end : call.end + len(call.head.tail)] if call.end else ""
        if not self._finished and (not call.end or (tail != call.head.tail and call.head.tail.startswith(tail))):
            return False
        size = len(self._held) if not call.end else call.end + (len(tail) if tail == call.head.tail else 0)
        arguments = notation.read_arguments(self._held[call.begin : call.end]) if call.end else None
        calls = () if arguments is None else (ToolCall(call.call_id, call.head.name, arguments),)
        self._open = None
        self._emit(Piece(calls=calls, raw=self._held[:size]))
        self._lead = _AFTER_CALL
        return True

    def _look_inside(self) -> bool:
        """In the middle of text: a tag, or a line that begins with a bracket."""
        self._heads = {}
        if self._failures >= FAILURES_MAX:
            tag = re.search("|".join(map(re.escape, self._marks.names)), self._held) if self._marks.names else None
        else:
            tag = self._literals.search(self._held)
        line = self._line_candidate(tag.start() if tag else len(self._held))
        if line is not None:
            at, bracket = line
            self._emit_text(at)
            self._candidate = _bracketed(self._held[bracket - at], bracket - at)
            return True
        if tag is not None:
            self._emit_text(tag.start())
            self._begin_tag(tag[0])
            return True
        keep = 0 if self._finished else self._uncertain_end()
        self._emit_text(len(self._held) - keep)
        return False

    def _line_candidate(self, end: int) -> tuple[int, int] | None:
        """(start of the white space, the bracket) of the first line that may be a call of an offered tool."""
        if not self._names or self._failures >= FAILURES_MAX:
            return None
        for found in re.finditer(rf"\n[ \t]{{0,{LEAD_MAX}}}([\[{{])", self._held[:end]):
            return found.start(), found.start(1)
        return None

    def _uncertain_end(self) -> int:
        """How many of the last characters may be the beginning of a tag or of a line that is a call."""
        tail = self._held[-self._prefix_size :]
        keep = next((len(tail) - at for at in range(len(tail)) if tail[at:] in self._literal_prefixes), 0)
        line = _LINE_END.search(self._held, max(0, len(self._held) - LEAD_MAX - 1)) if self._names else None
        return max(keep, len(self._held) - line.start() if line else 0)

    def _begin_tag(self, tag: str) -> None:
        """The held text begins with a tag."""
        if tag == self._marks.begin:
            self._candidate = _Candidate(0, self._scan_block, notation.read_block, explicit=True)
        elif tag == self._marks.end:
            # A block's end that is left over: no text, no call.
            self._emit(Piece(raw=tag))
            self._lead = _AFTER_CALL
        else:
            end, read = _TAGS[tag]
            self._candidate = _Candidate(0, _until(end), read, explicit=True)

    def _go_on(self, candidate: _Candidate) -> bool:
        end = candidate.scan(self._held, candidate)
        if end == _MORE and not self._finished:
            return False
        self._candidate = None
        end = len(self._held) if end == _MORE else end
        if candidate.read is notation.read_block:
            self._take_block(end)
            return True
        found = candidate.read(self._held[candidate.lead : end]) if end != _NO else None
        if found is not None and (candidate.explicit or self._are_known(found)):
            self._emit(Piece(calls=found, raw=self._held[:end]))
            self._lead = _AFTER_CALL
        else:
            self._failures += 1
            self._lead = None
            self._emit_text(candidate.lead + 1)
        return True

    def _are_known(self, found: tuple[ToolCall, ...]) -> bool:
        return self._names is None or all(call.name in self._names for call in found)

    def _scan_block(self, held: str, candidate: _Candidate) -> int:
        """A block goes on to its end token, or else to the end of the answer."""
        return _until(self._marks.end, sys.maxsize)(held, candidate) if self._marks.end else _MORE

    def _take_block(self, end: int) -> None:
        """The held text up to `end` is a block: calls, perhaps with text after them, or code, or nothing."""
        raw, mark = self._held[:end], self._marks
        closed = bool(mark.end) and raw.endswith(mark.end)
        body = raw[len(mark.begin) : len(raw) - len(mark.end) if closed else len(raw)]
        found = notation.read_calls(body)
        if found is None and (first := self._first_call(body)) is not None:
            found, size = first
            raw = raw[: len(mark.begin) + size]
        self._lead = _AFTER_CALL
        if found is not None:
            self._emit(Piece(calls=found, raw=raw))
        elif not body.strip():
            self._emit(Piece(text=body, raw=raw))
        else:
            self._settle_code(is_text=False)
            self._code = [Piece(body, notation.read_block(body), raw)]
            self._held = self._held[len(raw) :]
            if not closed:
                self._settle_code(is_text=False)

    def _first_call(self, body: str) -> tuple[tuple[ToolCall, ...], int] | None:
        """(calls, where they end) of a block that goes on after them."""
        lead = len(body) - len(body.lstrip())
        if not body[lead:].startswith(("{", "[", *_BUILT_INS)):
            return None
        end = _scan_brackets(body, _Candidate(lead, _scan_brackets, notation.read_calls, explicit=False))
        found = notation.read_calls(body[lead:end]) if end > 0 else None
        return (found, end) if found is not None and self._are_known(found) else None

    def _settle_code(self, *, is_text: bool) -> None:
        """What a closed block of no calls was is known when what follows it is: text if calls follow (as templates of Llama 4
        write an answer that calls), else code to be run."""
        for piece in self._code:
            self._pieces.append(Piece(piece.text, (), piece.raw) if is_text or not piece.calls else replace(piece, text=""))
        self._code = []

    def _emit(self, piece: Piece) -> None:
        """The piece is the held text's beginning."""
        self._held = self._held[len(piece.raw) :]
        if self._code and (piece.calls or piece.text.strip()):
            self._settle_code(is_text=bool(piece.calls))
        (self._code if self._code else self._pieces).append(piece)

    def _emit_text(self, size: int) -> None:
        if size:
            self._emit(Piece(text=self._held[:size], raw=self._held[:size]))


def _bracketed(bracket: str, lead: int) -> _Candidate:
    return _Candidate(lead, _scan_brackets, notation.read_json if bracket == "{" else _read_list, explicit=False)


def _read_list(text: str) -> Found:
    return notation.read_json(text) or notation.read_python(text)


def _until(end: str, most: int = CANDIDATE_MAX) -> Callable[[str, _Candidate], int]:
    def scan(held: str, candidate: _Candidate) -> int:
        found = held.find(end, max(candidate.at - len(end), 0))
        if found >= 0:
            return found + len(end)
        candidate.at = len(held)
        return _NO if len(held) > most else _MORE

    return scan


def _scan_brackets(held: str, candidate: _Candidate) -> int:
    """The end of the brackets that the candidate begins with, found by counting; each character is looked at once."""
    begin = candidate.lead
    if candidate.at < begin + LEAD_MAX and not _may_be_call(held[begin : begin + LEAD_MAX]):
        return _NO
    candidate.at = max(candidate.at, begin)
    while found := _BRACKET.search(held, candidate.at):
        sign, candidate.at = found[0], found.end()
        if sign == "\\":
            if found.end() == len(held):
                candidate.at = found.start()
                return _MORE
            candidate.at += 1
        elif candidate.quote:
            if sign == candidate.quote:
                candidate.quote = ""
        elif sign == '"' or (sign == "'" and held[begin] != "{"):
            candidate.quote = sign
        elif sign in "[{(":
            candidate.stack += sign
            if len(candidate.stack) > DEPTH_MAX:
                return _NO
        elif sign in _CLOSES:
            if candidate.stack[-1:] != _CLOSES[sign]:
                return _NO
            candidate.stack = candidate.stack[:-1]
            if not candidate.stack:
                return candidate.at
    candidate.at = len(held)
    return _NO if len(held) - begin > CANDIDATE_MAX else _MORE


def _may_be_call(text: str) -> bool:
    if text[:1] == "{":
        return _OBJECT.match(text) is not None
    return text[:1] != "[" or _LIST.match(text) is not None


def _merged(pieces: list[Piece]) -> list[Piece]:
    """Neighbouring texts as one piece."""
    merged: list[Piece] = []
    for piece in pieces:
        if merged and not piece.calls and not merged[-1].calls and piece.begun is None and merged[-1].begun is None:
            last = merged.pop()
            piece = Piece(last.text + piece.text, (), last.raw + piece.raw)
        merged.append(piece)
    return merged
