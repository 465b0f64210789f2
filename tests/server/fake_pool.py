"""A scripted pool: what a server's tests need of models, without any.

    pool = FakePool(FakeService(script=[Text("Hel"), Wait(0.01), Text("lo")]))

A script is what an answer does: events in order, waits between them, and errors. `Finished` with the right counts is added where a script
does not end by itself. Everything that was asked is kept in `service.asked`, and `service.open` counts answers that were not left.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from herd.errors import HerdError, UnknownModel, UsageError, did_you_mean
from herd.providers.base import (
    Accepted,
    Answer,
    Caller,
    ChatRequest,
    CompletionRequest,
    Embedding,
    Event,
    Failed,
    Finished,
    Gauges,
    ModelFacts,
    Offer,
    Service,
    Terms,
    Text,
    TokenLogprob,
    Usage,
)
from herd.sampling.stop import StopReason
from herd.text.formats.guard import Verdict
from herd.text.messages import Message

PROMPT_TOKENS = 7
CREATED = 1_700_000_000


@dataclass(frozen=True)
class Wait:
    """Seconds in which nothing comes."""

    seconds: float


@dataclass(frozen=True)
class Refuse:
    """Instead of being accepted, the request is refused."""

    error: HerdError


Step = Event | Wait | Refuse | BaseException
Script = Sequence[Step]


def words(text: str) -> list[Text]:
    """A text as an answer says it: a piece for each word, each of one token with its log-probability."""
    pieces = [piece for piece in text.replace(" ", "\0 ").split("\0") if piece]
    return [
        Text(piece, (TokenLogprob(100 + i, piece.encode(), -0.5 - i, ((100 + i, -0.5 - i), (1, -3.0))),)) for i, piece in enumerate(pieces)
    ]


@dataclass
class FakeAnswer:
    """Plays a script."""

    service: FakeService
    request: ChatRequest | CompletionRequest
    script: list[Step]
    seed: int = 42
    said: int = 0
    is_over: bool = False
    is_open: bool = True

    def __post_init__(self) -> None:
        self.service.open += 1

    async def accepted(self) -> Accepted:
        while self.script and isinstance(self.script[0], Wait):
            await asyncio.sleep(self.script.pop(0).seconds)  # type: ignore[union-attr]
        if self.script and isinstance(self.script[0], Refuse):
            self._leave()
            raise self.script[0].error
        return Accepted(prompt_tokens=PROMPT_TOKENS, seed=self.seed)

    def __aiter__(self) -> Answer:
        return self

    async def __anext__(self) -> tuple[Event, ...]:
        if self.is_over:
            raise StopAsyncIteration
        await self.accepted()
        if not self.script:
            return self._end(Finished(StopReason.END, Usage(PROMPT_TOKENS, self.said), self.seed))
        step = self.script.pop(0)
        if isinstance(step, BaseException):
            self._leave()
            raise step
        assert not isinstance(step, Wait | Refuse)
        if isinstance(step, Finished | Failed):
            return self._end(step)
        if isinstance(step, Text):
            self.said += len(step.tokens) or 1
            if (most := self.request.max_tokens) is not None and self.said >= most:
                self.script[:] = [Finished(StopReason.LENGTH, Usage(PROMPT_TOKENS, self.said), self.seed)]
        await asyncio.sleep(0)
        return (step,)

    async def pour(self, take: Callable[[tuple[Event, ...]], bool]) -> None:
        async for events in self:
            if not take(events):
                return

    async def aclose(self) -> None:
        if self.is_open and not self.is_over:
            self.service.cancelled += 1
        self._leave()

    def _end(self, event: Event) -> tuple[Event, ...]:
        self.is_over = True
        self._leave()
        return (event,)

    def _leave(self) -> None:
        if self.is_open:
            self.is_open = False
            self.service.open -= 1


@dataclass
class FakeService:
    """A model that says what it is told to. `script` is a list of steps, or a function from the request to one."""

    name: str = "fake"
    script: Script | Callable[[Any], Script] = field(default_factory=lambda: words("Hello there, world."))
    context_length: int = 1000
    vocab_size: int = 1000
    facts_given: Mapping[str, Any] = field(default_factory=dict)
    verdict: Verdict | None = None
    asked: list[ChatRequest | CompletionRequest] = field(default_factory=list)
    embedded: list[tuple[Sequence[str | Sequence[int]], Caller]] = field(default_factory=list)
    moderated: list[Sequence[Message]] = field(default_factory=list)
    open: int = 0
    cancelled: int = 0

    @property
    def facts(self) -> ModelFacts:
        base: dict[str, Any] = {
            "name": self.name,
            "context_length": self.context_length,
            "vocab_size": self.vocab_size,
            "fingerprint": "fake-1",
        }
        return ModelFacts(**{**base, "chat_format": "llama3.1", "takes_tools": True, **self.facts_given})

    @property
    def gauges(self) -> Gauges:
        return Gauges(running=self.open, memory_bytes={"weights": 1000, "cache": 500}, answer_tokens=3)

    def chat(self, request: ChatRequest) -> Answer:
        if not request.messages:
            raise UsageError("messages is empty; a chat needs at least one message.", param="messages")
        return self._answer(request)

    def complete(self, request: CompletionRequest) -> Answer:
        return self._answer(request)

    def _answer(self, request: ChatRequest | CompletionRequest) -> Answer:
        self.asked.append(request)
        script = self.script(request) if callable(self.script) else self.script
        return FakeAnswer(self, request, list(script))

    async def count(self, request: ChatRequest) -> int:
        return 3 + sum(len(message.text.split()) + 2 for message in request.messages)

    async def encode(self, text: str, *, bos: bool | None = None, specials: bool = False) -> list[int]:
        return [1] * bool(bos) + list(text.encode())

    async def decode(self, ids: Sequence[int]) -> str:
        if any(not 0 <= each < self.vocab_size for each in ids):
            raise UsageError(f"A token is outside the vocabulary of {self.vocab_size}.", param="tokens")
        return bytes(each % 256 for each in ids).decode("utf-8", "replace")

    async def embed(self, inputs: Sequence[str | Sequence[int]], caller: Caller) -> list[Embedding]:
        self.embedded.append((inputs, caller))
        return [Embedding(np.asarray([0.6, 0.8], np.float32), max(1, len(each))) for each in inputs]

    async def moderate(self, messages: Sequence[Message], caller: Caller) -> Verdict:
        self.moderated.append(messages)
        if self.verdict is None:
            raise UsageError(f"{self.name} is no guard; moderations need a Llama Guard.", param="model")
        return self.verdict


class FakePool:
    """The models of a server: those given. `adapters` maps `model:name` to the path it was added with."""

    def __init__(self, *services: FakeService) -> None:
        self.services = {each.name: each for each in (services or (FakeService(),))}
        self.adapters: dict[str, str] = {}
        self.terms: dict[str, Terms] = {}
        self.used = 0
        self.put_away_models: list[str] = []
        self.is_ready = True
        self.before_use: Callable[[str], Any] = lambda model: None

    @property
    def only(self) -> FakeService:
        """The service, where there is one."""
        (service,) = self.services.values()
        return service

    def offers(self) -> Sequence[Offer]:
        own = [
            Offer(name=name, created=CREATED, is_loaded=True, facts=each.facts, terms=self.terms.get(name))
            for name, each in self.services.items()
        ]
        return [*own, *(Offer(name=name, created=CREATED, is_loaded=True, parent=name.partition(":")[0]) for name in self.adapters)]

    @asynccontextmanager
    async def use(self, model: str) -> AsyncIterator[Service]:
        self.before_use(model)
        base, _, adapter = model.partition(":")
        if base not in self.services or (adapter and model not in self.adapters):
            raise UnknownModel(f"There is no model {model!r:.100} here{did_you_mean(model, self.services)}", param="model")
        self.used += 1
        try:
            yield self.services[base]
        finally:
            self.used -= 1

    async def put_away(self, model: str) -> bool:
        if model not in self.services:
            raise UnknownModel(f"There is no model {model!r:.100} here.", param="model")
        self.put_away_models.append(model)
        return self.used == 0

    async def add_adapter(self, model: str, name: str, path: str) -> None:
        if model not in self.services:
            raise UnknownModel(f"There is no model {model!r:.100} here.", param="model")
        self.adapters[f"{model}:{name}"] = path

    async def remove_adapter(self, model: str, name: str) -> None:
        if self.adapters.pop(f"{model}:{name}", None) is None:
            raise UnknownModel(f"{model} has no adapter {name!r:.100}.", param="name")

    def gauges(self) -> Mapping[str, Gauges]:
        return {name: each.gauges for name, each in self.services.items()}
