"""When an answer ends: by a token id, by a text, by length, or because somebody said so."""

from __future__ import annotations

from collections.abc import Sequence
from enum import Enum

from herd.errors import UsageError

MAX_STOP_TEXTS = 16
MAX_STOP_CHARACTERS = 1024


class StopReason(Enum):
    """Why no more tokens came."""

    END = "end"
    STOP_TEXT = "stop_text"
    LENGTH = "length"
    CANCELLED = "cancelled"

    @property
    def is_complete(self) -> bool:
        """Whether the answer ended by itself or where the caller wanted it to."""
        return self in (StopReason.END, StopReason.STOP_TEXT)


class StopTexts:
    """Finds the first of several texts in a stream of pieces, and holds back what may still become one.

    Feed pieces with `push`; it returns what is certain. After a match, `matched` names the text and nothing more comes.
    """

    def __init__(self, texts: Sequence[str]) -> None:
        if isinstance(texts, str):
            raise UsageError(f"stop is the text {texts!r:.60}; expected a list of texts.")
        if len(texts) > MAX_STOP_TEXTS:
            raise UsageError(f"stop has {len(texts)} texts; at most {MAX_STOP_TEXTS} are allowed.")
        values: Sequence[object] = texts
        for text in values:
            if not isinstance(text, str) or not 0 < len(text) <= MAX_STOP_CHARACTERS:
                raise UsageError(f"stop contains {text!r:.60}; each must be a text of 1 to {MAX_STOP_CHARACTERS} characters.")
        self._texts = tuple(texts)
        self._held = ""
        self.matched: str | None = None

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing to be found."""
        return not self._texts

    def push(self, piece: str) -> str:
        """Adds a piece; returns the text that can no longer be part of a stop text."""
        if self.matched is not None:
            return ""
        if not self._texts:
            return piece
        self._held += piece
        found = [(at, text) for text in self._texts if (at := self._held.find(text)) >= 0]
        if found:
            at, self.matched = min(found, key=lambda pair: (pair[0], -len(pair[1])))
            certain, self._held = self._held[:at], ""
            return certain
        keep = max((self._overlap(text) for text in self._texts), default=0)
        certain, self._held = self._held[: len(self._held) - keep], self._held[len(self._held) - keep :]
        return certain

    def finish(self) -> str:
        """The stream is over: what was held back is ordinary text."""
        held, self._held = self._held, ""
        return held

    def _overlap(self, text: str) -> int:
        """Length of the longest end of what is held that begins `text`."""
        for size in range(min(len(text) - 1, len(self._held)), 0, -1):
            if self._held.endswith(text[:size]):
                return size
        return 0
