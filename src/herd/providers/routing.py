"""Which of several replicas of a model answers a request: the one that has the beginning of its conversation in its cache.

    marks_of(request)      -> a mark for each beginning of the conversation: after every message, and every `PIECE` characters of one
    router.choose(marks)   -> the replica that answered the longest of these beginnings, unless it has much more to do than the others

A mark is a hash of all that is read up to it, with whose it is: conversations of different callers never share one, as their caches do
not. A wrong choice costs time and nothing else: every replica gives the same answer.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from typing import final

from herd.providers.base import ChatRequest, CompletionRequest
from herd.text.messages import Image

PIECE = 512
"""Characters, or tokens of a prompt that is given as tokens, after which there is a mark within a text."""
SLACK = 4
"""A replica may have so many requests more than the least busy one and still be chosen for what it has cached."""
MARKS_MAX = 200_000


def marks_of(request: ChatRequest | CompletionRequest) -> tuple[bytes, ...]:
    """The marks of a request's beginnings, shortest first. There is at least one."""
    digest = hashlib.blake2b(request.caller.salt, digest_size=12)
    digest.update(f"\0{request.adapter}\0".encode("utf-8", "surrogatepass"))
    marks = []
    for piece in _chat_pieces(request) if isinstance(request, ChatRequest) else _prompt_pieces(request.prompt):
        digest.update(len(piece).to_bytes(4, "big") + piece)
        marks.append(digest.digest())
    return tuple(marks) or (digest.digest(),)


def _chat_pieces(request: ChatRequest) -> Iterator[bytes]:
    """What a chat's prompt is made of, in its order. Tools come first: all formats write them before the conversation."""
    tools = [repr(each) for each in request.tools]
    for message in request.messages:
        head = f"{message.role.value}\0{message.name}\0{message.tool_call_id}\0{message.tool_calls}\0{tools}"
        for part in message.parts or ("",):
            pieces = [_picture(part)] if isinstance(part, Image) else _pieces(part if isinstance(part, str) else part.text)
            for piece in pieces:
                yield head.encode("utf-8", "surrogatepass") + b"\0" + piece
                head = ""


def _picture(image: Image) -> bytes:
    """A picture in short. One that was opened already is not looked at, and is like any other."""
    source = image.source
    data = source.encode("utf-8", "surrogatepass") if isinstance(source, str) else source
    return hashlib.blake2b(data, digest_size=12).digest() if isinstance(data, bytes) else b"picture"


def _pieces(text: str) -> Iterator[bytes]:
    for at in range(0, max(len(text), 1), PIECE):
        yield text[at : at + PIECE].encode("utf-8", "surrogatepass")


def _prompt_pieces(prompt: str | Sequence[int]) -> Iterator[bytes]:
    if isinstance(prompt, str):
        yield from _pieces(prompt)
    else:
        for at in range(0, len(prompt), PIECE):
            yield repr(tuple(prompt[at : at + PIECE])).encode()


@final
class Router:
    """Remembers which replica answered which beginnings, the latest `MARKS_MAX` of them."""

    def __init__(self, count: int) -> None:
        self._known: OrderedDict[bytes, frozenset[int]] = OrderedDict()
        self._chosen_at = [0] * count
        self._turn = 0

    def choose(self, marks: Sequence[bytes], loads: Sequence[int | None]) -> int:
        """The replica to ask. loads: how many requests each has; None for one that cannot answer now. If none can, any is chosen."""
        ready = [replica for replica, load in enumerate(loads) if load is not None] or list(range(len(loads)))
        busy = [load or 0 for load in loads]
        least = min(busy[replica] for replica in ready)
        chosen = min(ready, key=lambda replica: (busy[replica], self._chosen_at[replica]))
        for mark in reversed(marks):
            holding = [replica for replica in ready if replica in self._known.get(mark, ())]
            if holding:
                best = min(holding, key=lambda replica: (busy[replica], self._chosen_at[replica]))
                chosen = best if busy[best] <= least + SLACK else chosen
                break
        self._remember(marks, chosen)
        return chosen

    def forget(self, replica: int) -> None:
        """A replica begins with an empty cache."""
        for mark, holding in list(self._known.items()):
            if holding == {replica}:
                del self._known[mark]
            elif replica in holding:
                self._known[mark] = holding - {replica}

    def _remember(self, marks: Sequence[bytes], replica: int) -> None:
        self._turn += 1
        self._chosen_at[replica] = self._turn
        for mark in marks:
            self._known[mark] = self._known.get(mark, frozenset()) | {replica}
            self._known.move_to_end(mark)
        while len(self._known) > MARKS_MAX:
            self._known.popitem(last=False)
