"""Text from tokens as they arrive: whole characters only, and in sum exactly what decoding at once gives."""

from __future__ import annotations

import codecs
from collections.abc import Callable
from typing import final


@final
class StreamDecoder:
    """Made by `Tokenizer.stream()`. `push` returns the characters that became whole; `finish` what is left over.

    Bytes that are no UTF-8 become U+FFFD, at the latest in `finish`. The pieces joined equal `Tokenizer.decode` of all ids.
    """

    __slots__ = ("_bytes_of", "_decoder", "_drop_space")

    def __init__(self, bytes_of: Callable[[int], bytes], *, drop_leading_space: bool) -> None:
        self._bytes_of = bytes_of
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._drop_space = drop_leading_space

    def push(self, token: int) -> str:
        """The text that is certain now that `token` has arrived; often empty in the middle of a character."""
        return self._without_first_space(self._decoder.decode(self._bytes_of(token)))

    def finish(self) -> str:
        """The rest: U+FFFD if the tokens ended inside a character. The decoder starts anew afterwards."""
        text = self._without_first_space(self._decoder.decode(b"", final=True))
        self._decoder.reset()
        return text

    def _without_first_space(self, text: str) -> str:
        if self._drop_space and text:
            self._drop_space = False
            return text.removeprefix(" ")
        return text
