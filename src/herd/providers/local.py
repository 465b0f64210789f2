"""A model in this process as a provider: messages and texts go in, whole characters and log-probabilities come out.

    messages -> chat format -> ids -> engine -> tokens -> characters -> stop texts -> (calls of tools) -> events

The engine knows ids only; this file knows what they spell. Text is given out when it is certain: when its bytes make whole
characters and it can no longer become a stop text. Each generated token, the one that ended the answer included, appears in
exactly one `Text` event: the one that made its characters certain, or the last one. When tools were offered, the chat format's
parser stands between text and events; then the tokens of a call are in the `Text` that follows it, empty if need be.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import replace
from functools import cached_property
from typing import TYPE_CHECKING, Protocol

from herd.engine.engine import Engine
from herd.engine.request import Progress, Request
from herd.errors import FileProblem, UsageError
from herd.providers.base import Called, ChatRequest, CompletionRequest, Event, Failed, Finished, ModelFacts, Text, TokenLogprob, Usage
from herd.sampling.stop import StopReason, StopTexts

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from herd.backends.base import Picture, Placed
    from herd.text.formats import ChatFormat, Formats
    from herd.text.formats.parsing import Piece, StreamParser
    from herd.text.formats.parts import Grid
    from herd.text.tokenizer import Tokenizer
    from herd.text.tools import BuiltIn, Tool


class Eyes(Protocol):
    """What a model does with pictures."""

    def prepare(self, images: Sequence[object]) -> list[Picture]:
        """Pictures as they were given -> pixels. `UsageError` for what is no picture."""

    def grid(self, picture: Picture) -> Grid:
        """Rows and columns of a picture, for the chat format to write its ids."""

    def place(self, tokens: Sequence[int], pictures: Sequence[Picture]) -> tuple[Placed, ...]:
        """Each picture with the positions of its ids in the prompt."""


class LocalProvider:
    """Provider and scorer over one engine. Usable from several threads, as the engine is.

    Both `chat` and `complete` check their request at the call and compute when the first event is asked for; closing the
    iterator returns the request's pages at once. An error is raised if nothing was said yet, else it is the `Failed` event.

    Without a tokenizer only token ids are understood, and `Text` events carry tokens without text. Without a chat format
    there is no chat.
    """

    def __init__(
        self,
        engine: Engine,
        tokenizer: Tokenizer | None,
        chat_format: ChatFormat | None,
        facts: ModelFacts,
        *,
        meta_format: ChatFormat | None = None,
        find_formats: Callable[[], Formats] | None = None,
        eyes: Eyes | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """meta_format: for requests with `format="meta"`. find_formats: gives both formats instead, when one is first asked for. eyes:
        of a model that looks at pictures."""
        self._engine = engine
        self._tokenizer = tokenizer
        self._find_formats = find_formats or (lambda: (chat_format, meta_format))
        self._eyes = eyes
        self._facts = facts
        self._clock = clock

    @cached_property
    def facts(self) -> ModelFacts:
        return replace(self._facts, chat_format=None if self._chat_format is None else self._chat_format.name)

    @cached_property
    def _formats(self) -> Formats:
        return self._find_formats()

    @property
    def _chat_format(self) -> ChatFormat | None:
        return self._formats[0]

    def chat(self, request: ChatRequest, chat_format: ChatFormat | None = None) -> Iterator[Event]:
        """As `Provider.chat`. chat_format: in place of the model's own. `UsageError` for a model without a chat format."""
        chat_format = chat_format or self._format(request)
        ids, pictures = self.prompt(request, chat_format)
        stop_ids = frozenset() if request.ignore_end else frozenset(chat_format.stop_ids) | self._stop_ids()
        answer = Request(tokens=ids, sampling=request.sampling, max_tokens=request.max_tokens, stop_ids=stop_ids, pictures=pictures)
        return self._events(answer, request.stop, chat_format if request.tools else None, request.tools)

    def prompt(self, request: ChatRequest, chat_format: ChatFormat | None = None) -> tuple[list[int], tuple[Placed, ...]]:
        """The token ids that a chat becomes, and its pictures with their places there. `UsageError` as `chat`."""
        chat_format = chat_format or self._format(request)
        images = chat_format.images(request.messages)
        if not images:
            return chat_format.render(request.messages, tools=request.tools, date=request.date), ()
        if self._eyes is None:
            raise UsageError(f"{self._facts.name} reads text only; the conversation has {len(images)} pictures.")
        pictures = self._eyes.prepare([image.source for image in images])
        grids = iter([self._eyes.grid(picture) for picture in pictures])
        ids = chat_format.render(request.messages, tools=request.tools, date=request.date, tiles=lambda image: next(grids))
        return ids, self._eyes.place(ids, pictures)

    def _format(self, request: ChatRequest) -> ChatFormat:
        """The chat format that a request asks for."""
        if self._tokenizer is None and self._chat_format is not None:
            raise self._no_tokenizer()
        if self._chat_format is None:
            raise UsageError(
                f"{self._facts.name} has no chat format: it is a base model, or its files do not say how it reads conversations. Continue "
                'a text with it: herd run MODEL "text"; or name its format: chat_format="llama3.1" (--chat-format llama3.1).'
            )
        if request.format == "template":
            return self._chat_format
        if request.format != "meta":
            raise UsageError(f"format is {request.format!r:.60}; it must be 'template' or 'meta'.")
        meta_format = self._formats[1]
        if meta_format is None:
            raise UsageError(f"format='meta' is not possible: the chat format {self._chat_format.name} is not one of Meta's.")
        return meta_format

    def complete(self, request: CompletionRequest) -> Iterator[Event]:
        """As `Provider.complete`. `FileProblem` for a text when there is no tokenizer."""
        ids = self.encode(request.prompt) if isinstance(request.prompt, str) else request.prompt
        stop_ids = frozenset(request.stop_ids) | (frozenset() if request.ignore_end else self._stop_ids())
        answer = Request(tokens=ids, sampling=request.sampling, max_tokens=request.max_tokens, stop_ids=stop_ids)
        return self._events(answer, request.stop)

    def encode(self, text: str, *, bos: bool | None = None) -> list[int]:
        """Token ids of plain text. `FileProblem` if the model came without a tokenizer."""
        if self._tokenizer is None:
            raise self._no_tokenizer()
        return self._tokenizer.encode(text, bos=bos)

    def logits(self, tokens: Sequence[int]) -> Iterator[NDArray[np.float32]]:
        """Rows [t, V] for all positions of `tokens`, in pieces of bounded size."""
        return self._engine.score(tokens)

    def _events(
        self, request: Request, stop: Sequence[str], parsed_by: ChatFormat | None = None, tools: Sequence[Tool | BuiltIn] = ()
    ) -> Iterator[Event]:
        """Checks everything now; computes when the first event is asked for. parsed_by: whose parser looks for calls."""
        stop_texts = StopTexts(stop)
        if stop and self._tokenizer is None:
            raise UsageError(f"{self._facts.name} has no tokenizer, so stop texts cannot be found. Use stop token ids, or max_tokens.")
        spelling = _Spelling(self._tokenizer, stop_texts, frozenset() if parsed_by is None else parsed_by.mark_ids)
        events = _answer(self._engine.run(request), spelling, len(request.tokens), _Times(self._clock))
        return events if parsed_by is None else _with_calls(events, parsed_by.parser(tools))

    def _stop_ids(self) -> frozenset[int]:
        own = frozenset() if self._tokenizer is None else frozenset(self._tokenizer.eos_ids)
        return self._engine.stop_ids | own

    def _no_tokenizer(self) -> FileProblem:
        return FileProblem(
            f"{self._facts.name} came without a tokenizer, so text cannot be read; give token ids, "
            "or put the model's tokenizer files beside its weights."
        )


class _Spelling:
    """Turns tokens into certain text, and remembers which tokens that text does not cover yet."""

    def __init__(self, tokenizer: Tokenizer | None, stop_texts: StopTexts, shown: frozenset[int] = frozenset()) -> None:
        """shown: control tokens whose names are part of the text, for a parser to find."""
        self._tokenizer = tokenizer
        self._stream = None if tokenizer is None else tokenizer.stream(shown) if shown else tokenizer.stream()
        self._stop_texts = stop_texts
        self._decoded = 0
        self._certain = 0
        self._uncovered: deque[tuple[int, TokenLogprob]] = deque()

    @property
    def matched(self) -> str | None:
        """The stop text that was found."""
        return self._stop_texts.matched

    def push(self, progress: Progress) -> Text | None:
        """One more token; what became certain by it. A token that ends the answer is no part of its text."""
        assert progress.token is not None
        is_stop = progress.stop_reason is StopReason.END
        piece = "" if self._stream is None or is_stop else self._stream.push(progress.token)
        data = b"" if self._tokenizer is None else self._tokenizer.token_bytes(progress.token)
        self._decoded += len(piece)
        top_data = () if self._tokenizer is None else tuple(self._tokenizer.token_bytes(token) for token, _ in progress.top)
        self._uncovered.append((self._decoded, TokenLogprob(progress.token, data, progress.logprob, progress.top, top_data)))
        if self._stream is None:
            return self._text("", 1)
        certain = self._stop_texts.push(piece)
        self._certain += len(certain)
        return self._text(certain, sum(1 for end, _ in self._uncovered if end <= self._certain)) if certain else None

    def finish(self) -> Text | None:
        """The answer is over: everything that was held back, unless a stop text was found."""
        rest = "" if self._stream is None else self._stop_texts.push(self._stream.finish()) + self._stop_texts.finish()
        return self._text(rest, len(self._uncovered)) if rest or self._uncovered else None

    def _text(self, text: str, num_tokens: int) -> Text:
        return Text(text, tuple(self._uncovered.popleft()[1] for _ in range(num_tokens)))


class _Times:
    """When the request began, and when its first and its latest token came. `clock` gives seconds that only grow."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._start = self._first = self._latest = 0.0
        self._num_tokens = 0

    def start(self) -> None:
        self._start = self._first = self._latest = self._clock()

    def token(self) -> None:
        self._latest = self._clock()
        if self._num_tokens == 0:
            self._first = self._latest
        self._num_tokens += 1

    def usage(self, prompt_tokens: int, cached_tokens: int) -> Usage:
        return Usage(
            prompt_tokens=prompt_tokens,
            completion_tokens=self._num_tokens,
            cached_tokens=cached_tokens,
            prompt_s=self._first - self._start,
            decode_s=self._latest - self._first,
        )


def _answer(steps: Generator[Progress, None, None], spelling: _Spelling, prompt_tokens: int, times: _Times) -> Generator[Event, None, None]:
    """The events of one request. Whichever way it ends, the engine has its pages back before the last event."""
    times.start()
    said_something = False
    try:
        for progress in steps:
            if progress.token is not None:
                times.token()
                event = spelling.push(progress)
                if event is not None:
                    said_something = True
                    yield event
            if progress.is_last or spelling.matched is not None:
                break
    finally:
        steps.close()
    if progress.error is not None and not said_something:
        raise progress.error
    rest = spelling.finish()
    if rest is not None:
        yield rest
    if progress.error is not None:
        yield Failed(progress.error)
        return
    reason = progress.stop_reason if spelling.matched is None else StopReason.STOP_TEXT
    assert reason is not None
    sequence = progress.sequence
    yield Finished(reason, times.usage(prompt_tokens, sequence.cached_tokens or 0), sequence.seed, spelling.matched)


def _with_calls(events: Generator[Event, None, None], parser: StreamParser) -> Generator[Event, None, None]:
    """The same events with the calls found in the text."""
    tokens: list[TokenLogprob] = []

    def read(pieces: list[Piece]) -> Iterator[Event]:
        for piece in pieces:
            if piece.text:
                yield Text(piece.text, tuple(tokens))
                tokens.clear()
            yield from map(Called, piece.calls)

    try:
        for event in events:
            if isinstance(event, Text):
                tokens.extend(event.tokens)
                yield from read(parser.push(event.text))
                continue
            yield from read(parser.finish())
            if tokens:
                yield Text("", tuple(tokens))
                tokens.clear()
            yield event
    finally:
        events.close()
