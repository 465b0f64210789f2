"""One answer as bytes to send. Where nothing stands in the way they are written while the engine's frame is read: no task is woken for a
token.

    engine's frame -> Answer.pour -> write (events to bytes) -> the connection      or, for whoever cannot take them at once: iteration
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, final

if TYPE_CHECKING:
    from herd.providers.base import Answer, Event


@final
class AnswerPieces:
    """Pieces of an answer, each of whole events. Iterate, or `pour`, or both in turn.

    write   the bytes of some events; may be none. Raises what made the answer fail
    first   what is sent before all
    last    what is sent after all

    num_poured  how many pieces were sent by `pour` so far
    """

    __slots__ = ("_answer", "_held", "_is_over", "_last", "_write", "num_poured")

    def __init__(
        self,
        answer: Answer,
        write: Callable[[tuple[Event, ...]], bytes],
        *,
        first: bytes = b"",
        last: Callable[[], Awaitable[bytes]] | None = None,
    ) -> None:
        self._answer = answer
        self._write = write
        self._held = first
        self._last = last
        self._is_over = False
        self.num_poured = 0

    def __aiter__(self) -> AnswerPieces:
        return self

    async def __anext__(self) -> bytes:
        while not self._held:
            if self._is_over:
                raise StopAsyncIteration
            try:
                self._held = self._write(await self._answer.__anext__())
            except StopAsyncIteration:
                self._is_over = True
                self._held = b"" if self._last is None else await self._last()
        held, self._held = self._held, b""
        return held

    async def pour(self, send: Callable[[bytes], bool]) -> None:
        """Sends pieces as they arise, until the answer is over or `send` does not take one: that is the next of the iteration."""
        if self._held or self._is_over:
            return
        write = self._write

        def take(events: tuple[Event, ...]) -> bool:
            piece = write(events)
            self.num_poured += 1
            if not piece or send(piece):
                return True
            self._held = piece
            return False

        await self._answer.pour(take)

    async def aclose(self) -> None:
        await self._answer.aclose()
