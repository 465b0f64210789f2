"""Who follows an answer that is held to a language, and says which tokens may come next. The engine knows no more of it than this."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

from herd.errors import HerdError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

WORD_BITS = 32
"""Tokens in a word of a mask; token `i` is bit `i % 32` of word `i // 32`."""


class Matcher(Protocol):
    """One answer's place in its language. What it says is a function of the tokens that it was told, and of nothing else: not of
    when it was asked, or how often. Made for one answer, used by one thread at a time. Nothing here raises."""

    @property
    def problem(self) -> HerdError | None:
        """Why the answer cannot go on, once it cannot."""
        ...

    @property
    def is_done(self) -> bool:
        """Whether the answer is complete and nothing may follow."""
        ...

    def forced(self) -> Sequence[int]:
        """The tokens that come next, where the language leaves no choice of text; empty where it does, or where that is not known."""
        ...

    def allowed(self, drafted: Sequence[int] = ()) -> Sequence[NDArray[np.uint32] | None]:
        """Masks [V / 32], rounded up, of what may come next: first of all, and after each token of `drafted` as far as these may be
        said. So there are `n` masks, and the first `n - 1` drafted tokens are in the language. None: all may. Empty if there is a
        `problem`."""
        ...

    def advance(self, token: int) -> None:
        """The answer has one more token, which does not end it."""
        ...


def is_allowed(allowed: NDArray[np.uint32], token: int) -> bool:
    """Whether a mask has a token."""
    return bool(int(allowed[token // WORD_BITS]) >> (token % WORD_BITS) & 1)
