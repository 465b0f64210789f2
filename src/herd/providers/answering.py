"""One answer in the making: the engine's progress goes in, events come out. No threads, no waiting, no engine.

    tokens -> whole characters -> stop texts -> (calls of tools) -> events

Whoever drives the engine pushes what it says of a request: an iterator that waits for one answer (`local`), or a process that
answers many (`worker`). Text is given out when it is certain: when its bytes make whole characters and it can no longer become a
stop text. Each generated token, the one that ended the answer included, appears in exactly one `Text` event: the one that made its
characters certain, or the last one. When tools were offered, the chat format's parser stands between text and events; then the
tokens of a call are in the `Text` that follows it, empty if need be.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, final

from herd.engine.request import Progress, Request
from herd.providers.base import Called, Calling, Event, Failed, Finished, Prompted, Text, TokenLogprob, Usage
from herd.records import dataclass
from herd.sampling.stop import StopReason, StopTexts

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from herd.text.formats import ChatFormat
    from herd.text.formats.parsing import Piece, StreamParser
    from herd.text.tokenizer import Tokenizer
    from herd.text.tools import BuiltIn, Tool


@final
@dataclass(frozen=True, slots=True)
class Asked:
    """A checked request: what the engine is given, what makes events of its progress, and who reads the prompt's own
    log-probabilities, if they were asked for."""

    request: Request
    answering: Answering
    prompt_scores: PromptScores | None = None


@final
class Answering:
    """The events of one answer. Push progress until `is_over`; then the engine may forget the request, if it has not already."""

    def __init__(
        self,
        tokenizer: Tokenizer | None,
        prompt_tokens: int,
        clock: Callable[[], float],
        *,
        stop: Sequence[str] = (),
        parsed_by: ChatFormat | None = None,
        tools: Sequence[Tool | BuiltIn] = (),
        is_held: bool = False,
        most_calls: int | None = None,
        pieces: dict[int, tuple[str, bytes]] | None = None,
    ) -> None:
        """parsed_by: the format whose parser looks for calls of `tools`. is_held: an answer that begins with a call is held to the
        format's grammar of calls, so that its arguments can be told while they arrive. most_calls: the answer ends with so many.
        pieces: what all answers in this tokenizer's tokens know of those that are nothing but their text (see `plain`).
        `UsageError` for impossible stop texts."""
        shown = frozenset() if parsed_by is None else parsed_by.mark_ids
        # Where marks are shown, their text is not what it is in other answers.
        self._spelling = _Spelling(tokenizer, StopTexts(stop), shown, {} if pieces is None or shown else pieces)
        self._calls = None
        if parsed_by is not None:
            heads = parsed_by.call_heads(tools) if is_held else {}
            self._calls = _Calls(parsed_by.parser(tools, heads=heads), most_calls)
        self._times = _Times(clock)
        self._prompt_tokens = prompt_tokens
        self.is_over = False
        self.said_something = False
        self._is_plain = parsed_by is None and self._spelling.is_plain

    def start(self) -> None:
        """The time of the answer begins."""
        self._times.start()

    def plain(self, progress: Progress) -> tuple[str, bytes] | None:
        """The text and the bytes of a token that is nothing but its text, as nearly all are: then it is told by that, and not pushed.
        None for any other progress, and for the first of an answer."""
        token = progress.token
        if not self._is_plain or token is None or progress.stop_reason is not None or progress.top or not self.said_something:
            return None
        found = self._spelling.plain(token)
        if found is not None:
            self._times.token()
        return found

    def push(self, progress: Progress) -> list[Event]:
        """What one step did for the answer. The last event of all is `Finished` or `Failed`."""
        events: list[Event] = []
        if progress.token is not None:
            self._times.token()
            text = self._spelling.push(progress)
            if text is not None:
                self.said_something = True
                if self._calls is None:
                    events.append(text)
                else:
                    events += self._calls.push(text)
        if progress.stop_reason is not None or progress.error is not None or self._spelling.matched is not None:
            self.is_over, self._is_plain = True, False
            events += self._last(progress)
        elif self._calls is not None and self._calls.is_full:
            self.is_over = True
            events.append(self._finished(progress, StopReason.END))
        return events

    def _last(self, progress: Progress) -> Iterator[Event]:
        rest = self._spelling.finish()
        if self._calls is not None:
            if rest is not None:
                yield from self._calls.push(rest)
            yield from self._calls.finish()
        elif rest is not None:
            yield rest
        if progress.error is not None:
            yield Failed(progress.error)
            return
        reason = progress.stop_reason if self._spelling.matched is None else StopReason.STOP_TEXT
        assert reason is not None
        yield self._finished(progress, reason)

    def _finished(self, progress: Progress, reason: StopReason) -> Finished:
        sequence = progress.sequence
        usage = self._times.usage(self._prompt_tokens, sequence.cached_tokens or 0)
        return Finished(reason, usage, sequence.seed, self._spelling.matched)


@final
class PromptScores:
    """Makes a `Prompted` event of the logits at the prompt's positions."""

    def __init__(self, tokenizer: Tokenizer | None, tokens: Sequence[int], num_top: int) -> None:
        """num_top: how many alternatives each token comes with."""
        self._token_bytes = None if tokenizer is None else tokenizer.token_bytes
        self._tokens = tokens
        self._num_top = num_top
        self._found = [_scored(self._token_bytes, tokens[0], float("nan"), ())]

    def push(self, logits_RV: NDArray[np.float32]) -> None:
        """The rows of the next positions."""
        from herd.sampling.chain import token_logprob

        for row_V in logits_RV:
            position = len(self._found)
            if position == len(self._tokens):
                return  # after the last token there is none to have a probability
            choice = token_logprob(row_V, self._tokens[position], self._num_top, position)
            self._found.append(_scored(self._token_bytes, choice.token, choice.logprob, choice.top))

    @property
    def event(self) -> Prompted:
        return Prompted(tuple(self._found))


class _Spelling:
    """Turns tokens into certain text, and remembers which tokens that text does not cover yet."""

    def __init__(
        self, tokenizer: Tokenizer | None, stop_texts: StopTexts, shown: frozenset[int], pieces: dict[int, tuple[str, bytes]]
    ) -> None:
        """shown: control tokens whose names are part of the text, for a parser to find. pieces: see `Answering`."""
        self._stream = None if tokenizer is None else tokenizer.stream(shown) if shown else tokenizer.stream()
        self._stop_texts = stop_texts
        self.is_plain = tokenizer is not None and stop_texts.is_empty
        self._pieces = pieces
        self._token_bytes = None if tokenizer is None else tokenizer.token_bytes
        self.matched: str | None = None  # the stop text that was found
        self._decoded = 0
        self._certain = 0
        self._uncovered: deque[tuple[int, TokenLogprob]] = deque()

    def plain(self, token: int) -> tuple[str, bytes] | None:
        """What is known of a token that is nothing but its text, where no other text waits for it."""
        found = self._pieces.get(token)
        if found is None or self._uncovered or self._stream is None or not self._stream.is_between:
            return None
        return found

    def push(self, progress: Progress) -> Text | None:
        """One more token; what became certain by it. A token that ends the answer is no part of its text."""
        assert progress.token is not None
        is_stop = progress.stop_reason is StopReason.END
        piece = "" if self._stream is None or is_stop else self._stream.push(progress.token)
        token = _scored(self._token_bytes, progress.token, progress.logprob, progress.top)
        if self.is_plain and piece and not self._uncovered:  # nearly all of them
            if piece.isascii() and piece.encode() == token.data:
                self._pieces[token.token] = piece, token.data
            return Text(piece, (token,))
        if self._stream is None:
            return Text("", (token,))
        self._decoded += len(piece)
        certain = self._stop_texts.push(piece)
        self.matched = self._stop_texts.matched
        self._certain += len(certain)
        if certain and not self._uncovered and self._certain == self._decoded:
            return Text(certain, (token,))
        self._uncovered.append((self._decoded, token))
        return self._text(certain, sum(1 for end, _ in self._uncovered if end <= self._certain)) if certain else None

    def finish(self) -> Text | None:
        """The answer is over: everything that was held back, unless a stop text was found."""
        rest = "" if self._stream is None else self._stop_texts.push(self._stream.finish()) + self._stop_texts.finish()
        self.matched = self._stop_texts.matched
        return self._text(rest, len(self._uncovered)) if rest or self._uncovered else None

    def _text(self, text: str, num_tokens: int) -> Text:
        return Text(text, tuple(self._uncovered.popleft()[1] for _ in range(num_tokens)))


class _Calls:
    """Finds calls in text, and keeps the tokens of what it holds back."""

    def __init__(self, parser: StreamParser, most: int | None) -> None:
        """most: calls; what comes after them is dropped."""
        self._parser = parser
        self._most = most
        self._tokens: list[TokenLogprob] = []
        self._num_called = 0

    @property
    def is_full(self) -> bool:
        """Whether there are as many calls as there may be."""
        return self._most is not None and self._num_called >= self._most

    def push(self, text: Text) -> Iterator[Event]:
        self._tokens.extend(text.tokens)
        yield from self._read(self._parser.push(text.text))

    def finish(self) -> Iterator[Event]:
        yield from self._read(self._parser.finish())
        if self._tokens:
            yield Text("", self._taken())

    def _read(self, pieces: list[Piece]) -> Iterator[Event]:
        for piece in pieces:
            if self.is_full:
                return
            if piece.text:
                yield Text(piece.text, self._taken())
            if piece.begun is not None:
                yield Calling(self._num_called, piece.begun.name, piece.begun.call_id, piece.begun.arguments)
            for call in piece.calls[: None if self._most is None else self._most - self._num_called]:
                self._num_called += 1
                yield Called(call)

    def _taken(self) -> tuple[TokenLogprob, ...]:
        tokens, self._tokens = tuple(self._tokens), []
        return tokens


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


def _scored(token_bytes: Callable[[int], bytes] | None, token: int, logprob: float, top: tuple[tuple[int, float], ...]) -> TokenLogprob:
    if token_bytes is None:
        return TokenLogprob(token, b"", logprob, top)
    return TokenLogprob(token, token_bytes(token), logprob, top, tuple([token_bytes(other) for other, _ in top]) if top else ())
