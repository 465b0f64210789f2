"""`/v1/completions`: texts or token ids are continued, without a chat format. What measurements of models ask for: echo, logprobs, ids."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import replace
from typing import Annotated, Any, ClassVar

from pydantic import Discriminator, Field, Tag
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from herd.errors import UsageError
from herd.providers.base import Answer, CompletionRequest, Event, Failed, Finished, Prompted, Service, Text, TokenLogprob, Usage
from herd.server.house import house_of
from herd.server.openai.asking import arriving, ask, streamed
from herd.server.openai.chunks import TextChunks
from herd.server.openai.constraints import ConstraintFields
from herd.server.openai.fields import CALLER_FIELDS, SamplingFields, TokenId
from herd.server.openai.shapes import Completion
from herd.server.openai.wire import TextLogprobs, drawn_seed, finish_reason, new_id, usage_value
from herd.server.operations import operation
from herd.server.reading import read_body
from herd.server.replies import reply
from herd.server.settings import LIMITS
from herd.server.streaming import SSE, EventStream

DEFAULT_TOKENS = 16
"""Of an answer, where the request does not say; as OpenAI's."""


def _shape(value: object) -> str:
    """Which of the four forms of texts and token ids a value is meant to be."""
    if not isinstance(value, list):
        return "text"
    first = value[0] if value else None
    if isinstance(first, list):
        return "many_ids"
    return "ids" if isinstance(first, int) and not isinstance(first, bool) else "texts"


Ids = Annotated[list[TokenId], Field(min_length=1, max_length=1 << 24)]
Prompt = Annotated[
    Annotated[str, Tag("text")]
    | Annotated[list[str], Field(min_length=1, max_length=LIMITS.prompts), Tag("texts")]
    | Annotated[Ids, Tag("ids")]
    | Annotated[list[Ids], Field(min_length=1, max_length=LIMITS.prompts), Tag("many_ids")],
    Discriminator(_shape),
]
"""A text, texts, a list of token ids, or lists of token ids."""


def separate(given: str | Sequence[str] | Sequence[int] | Sequence[Sequence[int]]) -> list[str | Sequence[int]]:
    """The prompts of one of the four forms."""
    if isinstance(given, str):
        return [given]
    if isinstance(given[0], int):
        return [given]  # type: ignore[list-item]
    return list(given)  # type: ignore[arg-type]


class CompletionBody(ConstraintFields, SamplingFields):
    """Texts or ids, and how they are continued."""

    HARMLESS: ClassVar[Mapping[str, str]] = {**ConstraintFields.HARMLESS, **CALLER_FIELDS}
    REFUSED: ClassVar[Mapping[str, str]] = {**SamplingFields.REFUSED, **ConstraintFields.REFUSED}

    prompt: Prompt = Field(description="A text, texts, a list of token ids, or lists of token ids; each is continued by itself.")
    max_tokens: int | None = Field(None, ge=0, le=LIMITS.tokens, description=f"Most tokens of an answer; {DEFAULT_TOKENS} unless told.")
    best_of: int | None = Field(
        None, ge=1, le=LIMITS.choices, description="So many answers are made; those with the likeliest tokens are told."
    )
    echo: bool | None = Field(None, description="Answers begin with their prompt; with logprobs, so do those.")
    logprobs: int | None = Field(
        None, ge=0, le=LIMITS.top_logprobs, description="Alternatives of each token whose log-probabilities are told."
    )
    suffix: Annotated[str, Field(min_length=1)] | None = Field(None, description="What follows the answer, for models that fill in.")
    stop_token_ids: Annotated[list[TokenId], Field(max_length=64)] | None = Field(None, description="Tokens that end the answer.")

    @property
    def num_drawn(self) -> int:
        """Answers that are made for each prompt."""
        return max(self.best_of or 1, self.num_choices)

    def check(self) -> None:
        """`UsageError` for fields that contradict each other."""
        self.check_stream()
        if self.best_of is not None and self.best_of < self.num_choices:
            raise UsageError(f"best_of is {self.best_of} and n is {self.num_choices}; best_of cannot be less.", param="best_of")
        if self.stream and self.num_drawn > self.num_choices:
            raise UsageError("best_of is known when all answers are there, so it cannot be streamed.", param="best_of")
        if self.echo and self.suffix is not None:
            raise UsageError("echo and suffix cannot go together: the prompt and its answer would not be all of the text.", param="echo")
        answers = self.num_drawn * len(separate(self.prompt))
        if answers > LIMITS.prompts:
            raise UsageError(
                f"The prompts have {answers} answers together; at most {LIMITS.prompts} are made in one request.", param="prompt"
            )


def completion_requests(body: CompletionBody, service: Service, seed: int) -> list[CompletionRequest]:
    """A request for each answer, those of one prompt after each other."""
    facts = service.facts
    first = CompletionRequest(
        prompt="",
        sampling=body.sampling({}, seed=seed, logprobs=body.logprobs or 0, vocab_size=facts.vocab_size),
        max_tokens=DEFAULT_TOKENS if body.max_tokens is None else body.max_tokens,
        stop=body.stop_texts,
        stop_ids=body.stop_token_ids or (),
        suffix=body.suffix,
        score_prompt=bool(body.echo) and body.logprobs is not None,
        constraint=body.constraint(),
        ignore_end=bool(body.ignore_eos),
    )
    for prompt in separate(body.prompt):
        if not isinstance(prompt, str) and (largest := max(prompt)) >= facts.vocab_size:
            raise UsageError(f"prompt has token {largest}; the model's vocabulary is 0 to {facts.vocab_size - 1}.", param="prompt")
    return [
        replace(first, prompt=prompt, choice_index=place * body.num_drawn + index)
        for place, prompt in enumerate(separate(body.prompt))
        for index in range(body.num_drawn)
    ]


@operation("Continue texts", body=CompletionBody, reply=Completion, streams=SSE, generates=True)
async def create_completion(request: Request) -> Response | EventStream:
    """Prompts in, what follows them out. A text is tokenised with the model's beginning-of-text token, if it has one; ids are taken as they
    are. `echo` with `logprobs` gives the log-probabilities of the prompt's own tokens, the first of which has none."""
    body = await read_body(request, CompletionBody)
    body.check()
    house = house_of(request)
    async with AsyncExitStack() as stack:
        service = await stack.enter_async_context(house.use(request, body.model))
        seed = drawn_seed() if body.seed is None else body.seed
        requests = completion_requests(body, service, seed)
        prompts = len(separate(body.prompt))
        echoes = await _echoes(body, service)
        params = {None: "prompt", "response_format": body.constraint_param}
        answers, counts = await ask(stack, [_question(service, each) for each in requests], params)
        head = {
            "id": new_id("cmpl"),
            "object": "text_completion",
            "created": int(time.time()),
            "model": body.model,
            "system_fingerprint": service.facts.fingerprint,
        }
        if body.stream:
            frame = body.frame(head, seed)
            chunks = [
                TextChunks(frame, index, count, num_top=body.logprobs, echo=echoes[index // body.num_drawn])
                for index, count in enumerate(counts)
            ]
            pieces = streamed(answers, chunks, frame, has_usage=body.include_usage, prompts=prompts)
            return EventStream(pieces, held=stack.pop_all(), ping_s=house.settings.ping_s)
        collected = [TextAnswer(echoes[index // body.num_drawn]) for index in range(len(answers))]
        async for index, events in arriving(answers):
            collected[index].push(events)
    choices = [each.choice(index, body.logprobs) for index, each in enumerate(_best(collected, body))]
    return reply({**head, "seed": seed, "choices": choices, "usage": usage_value([each.usage for each in collected], prompts)})


def _question(service: Service, request: CompletionRequest) -> Callable[[], Answer]:
    return lambda: service.complete(request)


async def _echoes(body: CompletionBody, service: Service) -> list[str]:
    """What each answer begins with: its prompt's text, if it was asked for."""
    prompts = separate(body.prompt)
    if not body.echo:
        return [""] * len(prompts)
    return [prompt if isinstance(prompt, str) else await service.decode(prompt) for prompt in prompts]


def _best(collected: Sequence[TextAnswer], body: CompletionBody) -> list[TextAnswer]:
    """Of each prompt's answers the `n` whose tokens are likeliest on average, best first; all of them in their order without `best_of`."""
    if body.num_drawn == body.num_choices:
        return list(collected)
    kept: list[TextAnswer] = []
    for start in range(0, len(collected), body.num_drawn):
        ranked = sorted(collected[start : start + body.num_drawn], key=lambda each: -each.mean_logprob)
        kept.extend(ranked[: body.num_choices])
    return kept


class TextAnswer:
    """One continued text, collected. echo: what it begins with."""

    def __init__(self, echo: str) -> None:
        self._texts = [echo]
        self._prompt: tuple[TokenLogprob, ...] = ()
        self._tokens: list[TokenLogprob] = []
        self._finished: Finished | None = None

    @property
    def usage(self) -> Usage:
        return self._end.usage

    @property
    def mean_logprob(self) -> float:
        """Of the answer's tokens; of none, as bad as can be."""
        return sum(token.logprob for token in self._tokens) / len(self._tokens) if self._tokens else -math.inf

    @property
    def _end(self) -> Finished:
        assert self._finished is not None, "an answer ends with Finished or Failed"
        return self._finished

    def push(self, events: Sequence[Event]) -> None:
        """Raises what made the answer fail."""
        for event in events:
            match event:
                case Text():
                    self._texts.append(event.text)
                    self._tokens.extend(event.tokens)
                case Prompted():
                    self._prompt += event.tokens
                case Finished():
                    self._finished = event
                case Failed():
                    raise event.error

    def choice(self, index: int, num_top: int | None) -> dict[str, Any]:
        logprobs: dict[str, Any] | None = None
        if num_top is not None:
            logprobs = TextLogprobs(num_top, 0 if self._prompt else len(self._texts[0])).push([*self._prompt, *self._tokens])
        reason = finish_reason(self._end.stop_reason)
        return {"index": index, "text": "".join(self._texts), "logprobs": logprobs, "finish_reason": reason}


ROUTES = (Route("/v1/completions", create_completion, methods=["POST"]),)
