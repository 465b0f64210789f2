"""A model in this process as a provider: messages and texts go in, whole characters and log-probabilities come out.

    messages -> chat format -> ids -> engine -> tokens -> answering -> events

The engine knows ids only; `answering` knows what they spell. This file makes ids of what was asked, and an iterator of the answer.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from herd.engine.engine import Engine
from herd.engine.request import Request
from herd.errors import FileProblem, UsageError
from herd.providers.answering import Answering, Asked, PromptScores
from herd.providers.base import Caller, ChatRequest, CompletionRequest, Event, Failed, ModelFacts, Priority
from herd.providers.constraining import Constraining, as_chosen, is_call_or_free

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from herd.backends.base import Picture, Placed
    from herd.models.weights import Update
    from herd.text.formats import ChatFormat, Formats
    from herd.text.formats.parts import Grid
    from herd.text.tokenizer import Tokenizer


ADAPTER_NAME = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,98}[A-Za-z0-9])?")


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
        read_adapter: Callable[[str], Mapping[str, Update]] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """meta_format: for requests with `format="meta"`. find_formats: gives both formats instead, when one is first asked for. eyes:
        of a model that looks at pictures. read_adapter: opens the folder of a LoRA adapter for this model."""
        self._engine = engine
        self._tokenizer = tokenizer
        self._find_formats = find_formats or (lambda: (chat_format, meta_format))
        self._eyes = eyes
        self._read_adapter = read_adapter
        self._facts = facts
        self._constraining = Constraining(tokenizer, engine.backend.vocab_size)
        self._clock = clock
        self._pieces: dict[int, tuple[str, bytes]] = {}

    @cached_property
    def facts(self) -> ModelFacts:
        return replace(self._facts, chat_format=None if self._chat_format is None else self._chat_format.name)

    @cached_property
    def _formats(self) -> Formats:
        return self._find_formats()

    @property
    def _chat_format(self) -> ChatFormat | None:
        return self._formats[0]

    @property
    def engine(self) -> Engine:
        return self._engine

    @property
    def tokenizer(self) -> Tokenizer:
        """`FileProblem` if the model came without one."""
        if self._tokenizer is None:
            raise self._no_tokenizer()
        return self._tokenizer

    @property
    def chat_format(self) -> ChatFormat | None:
        """How the model reads conversations, as published with it."""
        return self._chat_format

    def add_adapter(self, name: str, path: str) -> None:
        """Gives requests the LoRA adapter of a folder, or of a finished run's, to name. `UsageError` for a name that cannot be or is taken,
        and for an adapter of another model; `FileProblem` for the folder."""
        if not ADAPTER_NAME.fullmatch(name):
            raise UsageError(f"An adapter cannot be named {name!r:.80}; names have letters, digits, and . _ - between them.", param="name")
        if self._read_adapter is None:
            raise UsageError(f"{self._facts.name} takes no adapters.")
        from herd.checkpoints.trained import adapter_in

        self._engine.add_adapter(name, self._read_adapter(str(adapter_in(Path(path)) or path)))

    def remove_adapter(self, name: str) -> None:
        """Requests that have it finish; new ones are refused. `UsageError` for one that is not there."""
        self._engine.remove_adapter(name)

    def chat(self, request: ChatRequest, chat_format: ChatFormat | None = None) -> Iterator[Event]:
        """As `Provider.chat`. chat_format: in place of the model's own. `UsageError` for a model without a chat format."""
        return self._events(self.asked_chat(request, chat_format))

    @staticmethod
    def may_be_held(request: ChatRequest | CompletionRequest) -> bool:
        """Whether `asked_chat` or `asked_completion` may take the time to compile a grammar."""
        return request.constraint is not None or (isinstance(request, ChatRequest) and bool(request.tools))

    def asked_chat(self, request: ChatRequest, chat_format: ChatFormat | None = None) -> Asked:
        """What a chat asks of the engine, all of it checked. Errors as `chat`."""
        request = as_chosen(request)
        chat_format = chat_format or self._format(request)
        ids, pictures = self.prompt(request, chat_format)
        stop_ids = frozenset() if request.ignore_end else frozenset(chat_format.stop_ids) | self._stop_ids()
        asked = self._request(request, ids, stop_ids, pictures)
        asked = replace(asked, matcher=self._constraining.chat(request, chat_format, stop_ids))
        return Asked(asked, self._chat_answering(request, asked, chat_format))

    def prompt(self, request: ChatRequest, chat_format: ChatFormat | None = None) -> tuple[list[int], tuple[Placed, ...]]:
        """The token ids that a chat becomes, and its pictures with their places there. `UsageError` as `chat`."""
        request = as_chosen(request)
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
        return self._events(self.asked_completion(request))

    def asked_completion(self, request: CompletionRequest) -> Asked:
        """What a completion asks of the engine, all of it checked. Errors as `complete`."""
        ids, stop_ids = self._completed(request)
        own = frozenset() if request.ignore_end else self._stop_ids() | stop_ids
        own |= frozenset(request.stop_ids)
        asked = self._request(request, ids, own)
        asked = replace(asked, matcher=self._constraining.completion(request, own))
        scores = PromptScores(self._tokenizer, ids, request.sampling.logprobs) if request.score_prompt else None
        self._refuse_stop_texts(request.stop)
        return Asked(asked, Answering(self._tokenizer, len(ids), self._clock, stop=request.stop, pieces=self._pieces), scores)

    def _completed(self, request: CompletionRequest) -> tuple[Sequence[int], frozenset[int]]:
        """A completion's prompt, and ids that end its answer because a suffix follows. `UsageError` for a suffix that cannot be."""
        prompt = request.prompt
        if request.suffix is None:
            return (self.encode(prompt) if isinstance(prompt, str) else prompt), frozenset()
        if not isinstance(prompt, str):
            raise UsageError("A suffix needs a prompt that is a text; token ids were given.", param="suffix")
        from herd.text.formats.infilling import Infilling

        infilling = Infilling(self.tokenizer)
        return infilling.render(prompt, request.suffix), infilling.stop_ids

    def encode(self, text: str, *, bos: bool | None = None) -> list[int]:
        """Token ids of plain text. `FileProblem` if the model came without a tokenizer."""
        if self._tokenizer is None:
            raise self._no_tokenizer()
        return self._tokenizer.encode(text, bos=bos)

    def logits(self, tokens: Sequence[int]) -> Iterator[NDArray[np.float32]]:
        """Rows [t, V] for all positions of `tokens`, in pieces of bounded size."""
        return self._engine.score(tokens)

    def _request(
        self,
        asked: ChatRequest | CompletionRequest,
        ids: Sequence[int],
        stop_ids: frozenset[int],
        pictures: tuple[Placed, ...] = (),
    ) -> Request:
        """What the engine is given. It finds fault now with what it can never honour."""
        caller: Caller = asked.caller
        request = Request(
            tokens=ids,
            sampling=asked.sampling,
            max_tokens=asked.max_tokens,
            stop_ids=stop_ids,
            choice_index=asked.choice_index,
            salt=caller.salt,
            pictures=pictures,
            caller=caller.name,
            is_low=caller.priority is Priority.LOW,
            deadline_s=asked.deadline_s,
            adapter=asked.adapter,
        )
        self._engine.validate(request)
        return request

    def _refuse_stop_texts(self, stop: Sequence[str]) -> None:
        if stop and self._tokenizer is None:
            raise UsageError(f"{self._facts.name} has no tokenizer, so stop texts cannot be found. Use stop token ids, or max_tokens.")

    def _chat_answering(self, request: ChatRequest, asked: Request, chat_format: ChatFormat) -> Answering:
        self._refuse_stop_texts(request.stop)
        return Answering(
            self._tokenizer,
            len(asked.tokens),
            self._clock,
            stop=request.stop,
            parsed_by=chat_format if request.tools else None,
            tools=request.tools,
            is_held=asked.matcher is not None and is_call_or_free(request),
            most_calls=None if request.tool_choice.parallel else 1,
            pieces=self._pieces,
        )

    def _events(self, asked: Asked) -> Iterator[Event]:
        """The events of one request. Whichever way it ends, the engine has its pages back before the last event."""
        answering, request = asked.answering, asked.request
        if asked.prompt_scores is not None:
            for rows in self._engine.score(request.tokens, salt=request.salt, adapter=request.adapter):
                asked.prompt_scores.push(rows)
            yield asked.prompt_scores.event
        answering.start()
        steps = self._engine.run(request)
        try:
            for progress in steps:
                said_something = answering.said_something
                events = answering.push(progress)
                if answering.is_over:
                    break
                yield from events
        finally:
            steps.close()
        yield from _raised(events, said_something)

    def _stop_ids(self) -> frozenset[int]:
        own = frozenset() if self._tokenizer is None else frozenset(self._tokenizer.eos_ids)
        return self._engine.stop_ids | own

    def _no_tokenizer(self) -> FileProblem:
        return FileProblem(
            f"{self._facts.name} came without a tokenizer, so text cannot be read; give token ids, "
            "or put the model's tokenizer files beside its weights."
        )


def _raised(events: Iterable[Event], said_something: bool) -> Iterator[Event]:
    """The last events; an error is raised if nothing was said before it."""
    for event in events:
        if isinstance(event, Failed) and not said_something:
            raise event.error
        yield event
