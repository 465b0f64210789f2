"""A model as one visitor sees it: what is asked runs in the visitor's name and time, and is measured."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from herd.providers.base import Answer, ChatRequest, CompletionRequest, Finished, Text

if TYPE_CHECKING:
    from herd.providers.base import Accepted, Caller, Embedding, Event, Gauges, ModelFacts, Service
    from herd.server.admission import Admission
    from herd.server.callers import Visit
    from herd.server.metrics import Metrics, OfModel
    from herd.server.settings import Settings
    from herd.text.formats.guard import Verdict
    from herd.text.messages import Message

_LOG = logging.getLogger("herd.server.prompts")


class Observed:
    """A `Service` for one visit. The caller that a request names is replaced by the visit's."""

    def __init__(self, service: Service, visit: Visit, metrics: Metrics, admission: Admission, settings: Settings, model: str) -> None:
        """model: the name under which it is served, which measures bear."""
        self._service = service
        self._visit = visit
        self._metrics = metrics
        self._admission = admission
        self._settings = settings
        self._model = model

    @property
    def facts(self) -> ModelFacts:
        return self._service.facts

    @property
    def gauges(self) -> Gauges:
        return self._service.gauges

    def chat(self, request: ChatRequest) -> Answer:
        if self._settings.log_prompts:
            _LOG.info("%s asks %r", self._visit.request_id, [(m.role.value, m.text) for m in request.messages])
        return self._watched(self._service.chat(replace(request, caller=self._visit.caller, deadline_s=self._deadline(request.deadline_s))))

    def complete(self, request: CompletionRequest) -> Answer:
        if self._settings.log_prompts:
            _LOG.info("%s asks %r", self._visit.request_id, request.prompt)
        asked = replace(request, caller=self._visit.caller, deadline_s=self._deadline(request.deadline_s))
        return self._watched(self._service.complete(asked))

    async def count(self, request: ChatRequest) -> int:
        return await self._service.count(replace(request, caller=self._visit.caller))

    async def encode(self, text: str, *, bos: bool | None = None, specials: bool = False) -> list[int]:
        return await self._service.encode(text, bos=bos, specials=specials)

    async def decode(self, ids: Sequence[int]) -> str:
        return await self._service.decode(ids)

    async def embed(self, inputs: Sequence[str | Sequence[int]], caller: Caller | None = None) -> list[Embedding]:
        found = await self._service.embed(inputs, self._visit.caller)
        self._spend(sum(each.num_tokens for each in found))
        return found

    async def moderate(self, messages: Sequence[Message], caller: Caller | None = None) -> Verdict:
        return await self._service.moderate(messages, self._visit.caller)

    def _deadline(self, asked_s: float | None) -> float | None:
        """What is left of the visit's time, or less if the request says so."""
        if self._visit.deadline_s is None:
            return asked_s
        left_s = max(0.001, self._visit.deadline_s - (time.perf_counter() - self._visit.began))
        return left_s if asked_s is None else min(asked_s, left_s)

    def _watched(self, answer: Answer) -> Answer:
        return _Watched(answer, self._visit, self._metrics.of_model(self._model), self._admission)

    def _spend(self, num_tokens: int) -> None:
        self._visit.prompt_tokens += num_tokens
        self._admission.spend(self._visit, num_tokens)
        self._metrics.of_model(self._model).prompt_tokens.inc(num_tokens)


class _Watched:
    """An `Answer` that counts what passes. What it does for each token is a comparison."""

    def __init__(self, answer: Answer, visit: Visit, metrics: OfModel, admission: Admission) -> None:
        self._answer = answer
        self._visit = visit
        self._metrics = metrics
        self._admission = admission
        self._first: float | None = None
        self._pieces = 0
        self._is_asked = False
        self._is_counted = False

    async def accepted(self) -> Accepted:
        found = await self._answer.accepted()
        self._ask(found.prompt_tokens)
        return found

    def __aiter__(self) -> Answer:
        return self

    async def __anext__(self) -> tuple[Event, ...]:
        events = await self._answer.__anext__()
        if self._first is None:
            self._see_first(events)
        self._pieces += len(events)
        if type(last := events[-1]) is Finished:
            self._finish(last)
        return events

    async def pour(self, take: Callable[[tuple[Event, ...]], bool]) -> None:
        def seen(events: tuple[Event, ...]) -> bool:
            if self._first is None:
                self._see_first(events)
            self._pieces += len(events)
            if type(last := events[-1]) is Finished:
                self._finish(last)
            return take(events)

        await self._answer.pour(seen)

    async def aclose(self) -> None:
        if not self._is_counted:
            self._count(self._pieces)
        await self._answer.aclose()

    def _see_first(self, events: Sequence[Event]) -> None:
        if any(isinstance(event, Text) for event in events):
            self._first = time.perf_counter()
            self._metrics.first.observe(self._first - self._visit.began)

    def _ask(self, num_tokens: int) -> None:
        if not self._is_asked:
            self._is_asked = True
            self._visit.prompt_tokens += num_tokens
            self._admission.spend(self._visit, num_tokens)
            self._metrics.prompt_tokens.inc(num_tokens)

    def _finish(self, event: Finished) -> None:
        self._ask(event.usage.prompt_tokens)
        self._metrics.cached_tokens.inc(event.usage.cached_tokens)
        if self._first is not None and event.usage.completion_tokens > 1:
            gap_s = (time.perf_counter() - self._first) / (event.usage.completion_tokens - 1)
            self._metrics.between.observe(gap_s)
        self._count(event.usage.completion_tokens)

    def _count(self, num_tokens: int) -> None:
        """An answer that was left early costs what was seen of it."""
        self._is_counted = True
        self._visit.answer_tokens += num_tokens
        self._admission.spend(self._visit, num_tokens)
        self._metrics.answer_tokens.inc(num_tokens)
