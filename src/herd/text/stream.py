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

    __slots__ = ("_bytes_of", "_decoder", "_drop_space", "is_between")

    def __init__(self, bytes_of: Callable[[int], bytes], *, drop_leading_space: bool) -> None:
        self._bytes_of = bytes_of
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._drop_space = drop_leading_space
        self.is_between = not drop_leading_space
        """Whether the next token's text, if it is ASCII, is that of its bytes: no character is begun, and no space to be dropped."""

    def push(self, token: int) -> str:
        """The text that is certain now that `token` has arrived; often empty in the middle of a character."""
        data = self._bytes_of(token)
        if self.is_between and data.isascii():  # nearly all of them
            return data.decode("ascii")
        text = self._decoder.decode(data)
        shown = self._without_first_space(text)
        self.is_between = not (self._drop_space or self._decoder.getstate()[0])
        return shown

    def finish(self) -> str:
        """The rest: U+FFFD if the tokens ended inside a character. The decoder starts anew afterwards."""
        text = self._without_first_space(self._decoder.decode(b"", final=True))
        self._decoder.reset()
        self.is_between = not self._drop_space
        return text

    def _without_first_space(self, text: str) -> str:
        if self._drop_space and text:
            self._drop_space = False
            return text.removeprefix(" ")
        return text
