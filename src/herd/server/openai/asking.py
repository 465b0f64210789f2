"""Several answers to one request at once: asked for together, read as they come, left together."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack
from typing import Protocol

from herd.errors import UsageError
from herd.providers.base import Answer, Event, Usage
from herd.server.openai.chunks import Frame, closing
from herd.server.pouring import AnswerPieces


class Chunks(Protocol):
    """The chunks of one answer."""

    usage: Usage | None

    def push(self, events: Sequence[Event]) -> bytes: ...


async def ask(
    stack: AsyncExitStack, questions: Sequence[Callable[[], Answer]], params: Mapping[str | None, str]
) -> tuple[list[Answer], list[int]]:
    """Asks all questions, and waits until each is accepted: the answers, and the tokens of their prompts. The answers are left when the
    stack is; raises what is wrong with any.

    params   what a field is called in this request, by the name that an error gives it, or by None where an error does not say
    """
    answers: list[Answer] = []
    try:
        for question in questions:
            answers.append(question())
            stack.push_async_callback(answers[-1].aclose)
        return answers, [(await answer.accepted()).prompt_tokens for answer in answers]
    except UsageError as problem:
        problem.param = params.get(problem.param, problem.param)
        raise


async def arriving(answers: Sequence[Answer]) -> AsyncIterator[tuple[int, tuple[Event, ...]]]:
    """Events of all answers as they come, with the answer's index."""
    if len(answers) == 1:
        async for events in answers[0]:
            yield 0, events
        return
    waiting = {asyncio.ensure_future(_next(answer)): index for index, answer in enumerate(answers)}
    try:
        while waiting:
            done, _ = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                index = waiting.pop(task)
                found = task.result()
                if found is not None:
                    waiting[asyncio.ensure_future(_next(answers[index]))] = index
                    yield index, found
    finally:
        for task in waiting:
            task.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)


async def _next(answer: Answer) -> tuple[Event, ...] | None:
    try:
        return await answer.__anext__()
    except StopAsyncIteration:
        return None


def streamed(
    answers: Sequence[Answer], chunks: Sequence[Chunks], frame: Frame, *, has_usage: bool, prompts: int = 1
) -> AsyncIterator[bytes]:
    """The pieces of a stream, to its `[DONE]`. Raises what made an answer fail; the stream tells it and ends."""

    async def last() -> bytes:
        usages = [each.usage for each in chunks if each.usage is not None]
        return closing(frame, usages, has_usage=has_usage, prompts=prompts)

    if len(answers) == 1:
        return AnswerPieces(answers[0], chunks[0].push, last=last)
    return _together(answers, chunks, last)


async def _together(answers: Sequence[Answer], chunks: Sequence[Chunks], last: Callable[[], Awaitable[bytes]]) -> AsyncIterator[bytes]:
    async for index, events in arriving(answers):
        if piece := chunks[index].push(events):
            yield piece
    yield await last()
