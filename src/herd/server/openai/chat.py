"""`/v1/chat/completions`: a conversation is answered, n times if asked, at once or in pieces."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import replace
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, Field
from pydantic_core import PydanticCustomError
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from herd.errors import UsageError
from herd.providers.base import Answer, Called, Calling, ChatRequest, Event, Failed, Finished, Service, Text, TokenLogprob, Usage
from herd.records import dataclass
from herd.server.fetching import Rules
from herd.server.house import house_of
from herd.server.openai.asking import arriving, ask, streamed
from herd.server.openai.chunks import ChatChunks, Frame, arguments_text, chat_reason
from herd.server.openai.constraints import ConstraintFields
from herd.server.openai.fields import CALLER_FIELDS, MetadataKey, MetadataValue, SamplingFields
from herd.server.openai.messages import Messages, read_conversation, with_pictures
from herd.server.openai.shapes import ChatCompletion
from herd.server.openai.tools import ToolFields
from herd.server.openai.wire import chat_logprobs, drawn_seed, new_id, usage_value
from herd.server.operations import operation
from herd.server.reading import Body, read_body
from herd.server.replies import reply
from herd.server.settings import LIMITS, Settings
from herd.server.streaming import SSE, EventStream
from herd.text.messages import Message
from herd.text.tools import ToolCall

NO_TIERS = "there is one tier, which is what the answer says"


class TemplateFields(Body):
    """What a chat format may be told."""

    REFUSED: ClassVar[Mapping[str, str]] = {"enable_thinking": "Llama models do not think before they answer; leave it out."}

    date_string: Annotated[str, Field(min_length=1, max_length=40)] | None = Field(None, description="Today, as in 26 Jul 2024.")


def _not_stored(value: object) -> object:
    if value is True:
        raise PydanticCustomError("herd_store", "Answers of this endpoint are not stored; those of /v1/responses can be")
    return value


class ChatBody(ConstraintFields, ToolFields, SamplingFields):
    """A conversation, and how it is to be answered."""

    HARMLESS: ClassVar[Mapping[str, str]] = {
        **ConstraintFields.HARMLESS,
        **CALLER_FIELDS,
        "service_tier": NO_TIERS,
        "prediction": "a hint for speed; the answer is the same without it",
    }
    REFUSED: ClassVar[Mapping[str, str]] = {
        **SamplingFields.REFUSED,
        **ToolFields.REFUSED,
        **ConstraintFields.REFUSED,
        "audio": "this server does not speak; leave it out.",
        "moderation": "send what was said to /v1/moderations.",
        "reasoning_effort": "Llama models do not reason before they answer; leave it out.",
        "verbosity": "say in a message how long the answer should be.",
    }

    messages: Messages = Field(description="The conversation so far, oldest first.")
    max_completion_tokens: int | None = Field(
        None, ge=1, le=LIMITS.tokens, description="Most tokens of an answer; the end of the context if that comes first."
    )
    max_tokens: int | None = Field(None, ge=1, le=LIMITS.tokens, description="Deprecated name of max_completion_tokens.")
    logprobs: bool | None = Field(None, description="Whether log-probabilities of tokens are told, the one that ends the answer included.")
    top_logprobs: int | None = Field(None, ge=0, le=LIMITS.top_logprobs, description="Alternatives of each token; needs logprobs.")
    modalities: Annotated[list[Literal["text"]], Field(min_length=1, max_length=1)] | None = Field(None, description="Answers are text.")
    metadata: dict[MetadataKey, MetadataValue] | None = Field(
        None, max_length=LIMITS.metadata, description="Checked, and not kept: answers of this endpoint are not stored."
    )
    store: Annotated[Literal[False], BeforeValidator(_not_stored)] | None = Field(
        None, description="Answers of this endpoint are not stored; those of /v1/responses can be."
    )
    chat_template_kwargs: TemplateFields | None = Field(None, description="What the model's chat format is told.")

    @property
    def num_top(self) -> int | None:
        """Alternatives of each token; None: no log-probabilities."""
        return (self.top_logprobs or 0) if self.logprobs else None

    @property
    def most_tokens(self) -> int | None:
        return self.max_completion_tokens if self.max_completion_tokens is not None else self.max_tokens

    def check(self) -> None:
        """`UsageError` for fields that contradict each other."""
        self.check_stream()
        if self.top_logprobs is not None and not self.logprobs:
            raise UsageError("top_logprobs needs logprobs to be true.", param="top_logprobs")
        if self.max_tokens is not None and self.max_completion_tokens not in (None, self.max_tokens):
            raise UsageError("max_tokens and max_completion_tokens differ; send one of them.", param="max_tokens")


def chat_request(body: ChatBody, messages: Sequence[Message], service: Service, seed: int) -> ChatRequest:
    """The first of the body's answers; the others differ in `choice_index`. `UsageError` names the field that cannot be honoured."""
    facts = service.facts
    tools, choice = body.offered()
    if not facts.sees_pictures and any(message.images for message in messages):
        raise UsageError(f"{body.model} reads text only; the conversation has pictures.", param="messages")
    return ChatRequest(
        messages=messages,
        sampling=body.sampling(facts.sampling, seed=seed, logprobs=body.num_top or 0, vocab_size=facts.vocab_size),
        max_tokens=body.most_tokens,
        stop=body.stop_texts,
        date=body.chat_template_kwargs.date_string if body.chat_template_kwargs is not None else None,
        tools=tools,
        tool_choice=choice,
        constraint=body.constraint(),
        ignore_end=bool(body.ignore_eos),
    )


def fetch_rules(settings: Settings) -> Rules:
    """Which pictures may be fetched."""
    return Rules(hosts=settings.image_host)


@operation("Answer a conversation", body=ChatBody, reply=ChatCompletion, streams=SSE, generates=True)
async def create_chat(request: Request) -> Response | EventStream:
    """Messages in, an answer out: text, or calls of the tools that were offered. With `stream`, pieces come as server-sent events that end
    with `[DONE]`. Where a request does not say how to draw (`temperature`, `top_p`, `top_k` and the like), what the model's publisher
    recommends is followed. A prompt that does not fit the context is refused with both numbers; an answer ends where the context does.
    """
    body = await read_body(request, ChatBody)
    body.check()
    house = house_of(request)
    messages = await with_pictures(read_conversation(body.messages), fetch_rules(house.settings))
    async with AsyncExitStack() as stack:
        service = await stack.enter_async_context(house.use(request, body.model))
        seed = drawn_seed() if body.seed is None else body.seed
        first = chat_request(body, messages, service, seed)
        requests = [replace(first, choice_index=index) for index in range(body.num_choices)]
        params = {None: "messages", "response_format": body.constraint_param}
        answers, prompts = await ask(stack, [_question(service, each) for each in requests], params)
        head = {
            "id": new_id("chatcmpl"),
            "object": "chat.completion",
            "created": int(time.time()),
            "model": body.model,
            "system_fingerprint": service.facts.fingerprint,
            "service_tier": "default",
        }
        if body.stream:
            frame = body.frame({**head, "object": "chat.completion.chunk"}, seed)
            chunks = [_chunks(body, frame, index, count) for index, count in enumerate(prompts)]
            pieces = streamed(answers, chunks, frame, has_usage=body.include_usage)
            return EventStream(pieces, held=stack.pop_all(), ping_s=house.settings.ping_s)
        collected = [ChatAnswer() for _ in answers]
        async for index, events in arriving(answers):
            collected[index].push(events)
    choices = [each.choice(index, body) for index, each in enumerate(collected)]
    return reply({**head, "seed": seed, "choices": choices, "usage": usage_value([each.usage for each in collected])})


def _question(service: Service, request: ChatRequest) -> Callable[[], Answer]:
    return lambda: service.chat(request)


def _chunks(body: ChatBody, frame: Frame, index: int, prompt_tokens: int) -> ChatChunks:
    return ChatChunks(frame, index, prompt_tokens, num_top=body.num_top, is_deprecated=body.is_deprecated_form)


@dataclass(slots=True)
class _Told:
    """A call as it was said so far."""

    id: str
    name: str
    arguments: str = ""


class ChatAnswer:
    """One answer, collected."""

    def __init__(self) -> None:
        self._texts: list[str] = []
        self._tokens: list[TokenLogprob] = []
        self._calls: list[_Told] = []
        self._num_called = 0
        self._finished: Finished | None = None

    @property
    def usage(self) -> Usage:
        return self._end.usage

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
                case Calling():
                    self._calling(event)
                case Called():
                    self._called(event.call)
                case Finished():
                    self._finished = event
                case Failed():
                    raise event.error

    def _calling(self, event: Calling) -> None:
        """The next piece of a call. What was said of it stays, in the same words as in a stream, also if the answer ends before it does."""
        if event.index == len(self._calls):
            self._calls.append(_Told(event.call_id, event.name))
        self._calls[event.index].arguments += event.arguments

    def _called(self, call: ToolCall) -> None:
        if self._num_called == len(self._calls):
            self._calls.append(_Told(call.id, call.name, arguments_text(call)))
        self._num_called += 1

    def choice(self, index: int, body: ChatBody) -> dict[str, Any]:
        reason = chat_reason(self._end, bool(self._calls), body.is_deprecated_form)
        logprobs = None if body.num_top is None else chat_logprobs(self._tokens, body.num_top)
        return {"index": index, "message": self._message(body.is_deprecated_form), "logprobs": logprobs, "finish_reason": reason}

    def _message(self, is_deprecated: bool) -> dict[str, Any]:
        text = "".join(self._texts)
        message: dict[str, Any] = {"role": "assistant", "content": text if text or not self._calls else None, "refusal": None}
        functions = [{"name": call.name, "arguments": call.arguments} for call in self._calls]
        if functions and is_deprecated:
            message["function_call"] = functions[0]
        elif functions:
            made = zip(self._calls, functions, strict=True)
            message["tool_calls"] = [{"id": call.id, "type": "function", "function": function} for call, function in made]
        return message


ROUTES = (Route("/v1/chat/completions", create_chat, methods=["POST"]),)
