"""An answer that is free until it begins as a call does, and is held to the language of calls from there on.

"Sure, ..."                          no call begins so: free to its end
{"name": "get_weather", "param       perhaps: free, and followed
{"name": "get_weather", "parameters": {     a call has begun: from here on it is held to the grammar, to its end
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from herd.errors import HerdError
from herd.sampling.grammar import GrammarMatcher

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

LONGEST = 512
"""Bytes after which an answer that has not begun as a call is none."""


class OnceBegun:
    """`matching.Matcher` that is nobody until an answer, which must be of the grammar so far, has spelled one of `beginnings`."""

    def __init__(self, inner: GrammarMatcher, beginnings: Sequence[bytes], token_bytes: Callable[[int], bytes]) -> None:
        """token_bytes: what a token stands for, control tokens their names."""
        self._inner = inner
        self._beginnings = tuple(beginnings)
        self._token_bytes = token_bytes
        self._said: bytes | None = b""  # what the answer begins with, while it may become a call; None: it is free
        self._is_held = False

    @property
    def problem(self) -> HerdError | None:
        return self._inner.problem if self._is_held else None

    @property
    def is_done(self) -> bool:
        return self._is_held and self._inner.is_done

    def forced(self) -> Sequence[int]:
        return self._inner.forced() if self._is_held else ()

    def allowed(self, drafted: Sequence[int] = ()) -> Sequence[NDArray[np.uint32] | None]:
        if self._is_held:
            return self._inner.allowed(drafted)
        masks: list[NDArray[np.uint32] | None] = [None]
        said, followed = self._said, 0
        for index, token in enumerate(drafted):
            if said is None or not self._inner.takes(token):
                masks += [None] * (len(drafted) - index)
                break
            said += self._token_bytes(token)
            self._inner.follow(token)
            followed += 1
            if self._has_begun(said):
                masks += self._inner.allowed(drafted[index + 1 :])
                break
            masks.append(None)
        self._inner.unfollow(followed)
        return masks

    def advance(self, token: int) -> None:
        if self._is_held:
            self._inner.advance(token)
        elif self._said is not None:
            if len(self._said) > LONGEST or not self._inner.takes(token):
                self._said = None
                return
            self._said += self._token_bytes(token)
            self._inner.advance(token)
            self._is_held = self._has_begun(self._said)

    def _has_begun(self, said: bytes) -> bool:
        return said.lstrip(b" ").startswith(self._beginnings)
