"""What a loaded model has of words: its tokenizer and chat formats, found when somebody asks."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from herd.text.formats import ChatFormat, Formats
    from herd.text.tokenizer import Tokenizer


class Words:
    """Tokenizer and chat formats, where the files have them. Which formats is found out when somebody wants to chat: `find_formats`
    gives the published one and Meta's own."""

    def __init__(self, tokenizer: Tokenizer | None = None, find_formats: Callable[[], Formats] = lambda: (None, None)) -> None:
        self.tokenizer = tokenizer
        self._find_formats = find_formats

    @cached_property
    def formats(self) -> Formats:
        return self._find_formats()

    @property
    def chat_format(self) -> ChatFormat | None:
        return self.formats[0]
