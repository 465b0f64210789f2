"""Calls that are given out while they arrive: how they begin, and how far their arguments are there."""

from __future__ import annotations

from herd.records import dataclass


@dataclass(frozen=True, slots=True)
class Head:
    """How a call begins as a format writes it: the tool's name, and what follows its arguments. is_json: they are a JSON object."""

    name: str
    tail: str = ""
    is_json: bool = True


@dataclass(frozen=True, slots=True)
class Begun:
    """A piece of the arguments' JSON text, of a call that is not complete."""

    call_id: str
    name: str
    arguments: str


@dataclass(slots=True)
class OpenCall:
    """A call in an answer that begins with it. Its arguments begin at `begin`, are given out up to `sent`, and end at `end`, once that
    is known."""

    head: Head
    call_id: str
    begin: int
    sent: int
    end: int = 0
    _depth: int = 0
    _in_text: bool = False
    _is_escaped: bool = False

    def scan(self, held: str) -> int:
        """How far the arguments are there; sets `end` where their last bracket is. Each character is looked at once."""
        for at in range(self.sent, len(held)):
            sign = held[at]
            if self._in_text:
                self._in_text = self._is_escaped or sign != '"'
                self._is_escaped = sign == "\\" and not self._is_escaped
            elif sign == '"':
                self._in_text = True
            elif sign in "{[":
                self._depth += 1
            elif sign in "}]":
                self._depth -= 1
                if self._depth <= 0:
                    self.end = at + 1
                    return self.end
        return len(held)
