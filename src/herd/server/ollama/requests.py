"""What Ollama's clients send, and the question that it becomes."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Discriminator, Field, Tag

from herd.errors import UsageError
from herd.providers.base import ChatRequest, CompletionRequest, ModelFacts
from herd.sampling.constraint import Constraint, ConstraintKind
from herd.sampling.params import SamplingParams
from herd.server.ollama.keeping_alive import KeepAlive
from herd.server.openai.constraints import schema_constraint
from herd.server.openai.tools import Tools
from herd.server.reading import Body
from herd.server.settings import LIMITS
from herd.text.messages import Content, Image, Message, Role, Text
from herd.text.tools import ToolCall, read_tools, tool_name

STOP_MAX = 16
DEFAULTS: Mapping[str, float] = {"temperature": 0.8, "top_k": 40, "top_p": 0.9}
"""What Ollama draws with where neither the model's publisher nor the request says anything."""
_LOADING = "how a model is loaded is decided when this server starts, and changes no answer"
_Name = Annotated[str, Field(min_length=1, max_length=LIMITS.name_characters)]
_Picture = Annotated[str, Field(min_length=1)]


class Options(Body):
    """How an answer is drawn, and where it ends."""

    HARMLESS: ClassVar[Mapping[str, str]] = {
        **dict.fromkeys(
            ("numa", "num_batch", "num_gpu", "main_gpu", "low_vram", "f16_kv", "use_mmap", "use_mlock", "num_thread", "vocab_only"),
            _LOADING,
        ),
        "logits_all": "what is asked for is answered whether more is computed or not",
        "embedding_only": "every model here answers what it can answer",
        "num_ctx": "a model always has its whole context, and a prompt that does not fit is refused with both numbers, never cut",
        "num_keep": "nothing is ever cut out of a prompt, so there is nothing to keep",
        "mirostat_tau": "it says how Mirostat draws, which is not used",
        "mirostat_eta": "it says how Mirostat draws, which is not used",
        "draft_num_predict": "drafts change how fast an answer comes, and not what it says",
    }

    num_predict: Annotated[int, Field(ge=-2, le=LIMITS.tokens)] | None = None
    seed: Annotated[int, Field(ge=-1, le=LIMITS.seed)] | None = None
    temperature: Annotated[float, Field(ge=0, le=100)] | None = None
    top_k: Annotated[int, Field(ge=0, le=LIMITS.tokens)] | None = None
    top_p: Annotated[float, Field(ge=0, le=1)] | None = None
    min_p: Annotated[float, Field(ge=0, le=1)] | None = None
    repeat_penalty: Annotated[float, Field(ge=0.01, le=100)] | None = None
    repeat_last_n: Annotated[int, Field(ge=-1, le=LIMITS.tokens)] | None = Field(
        None, description="How far back repeat_penalty looks: 0 not at all, -1 over prompt and answer; nothing between."
    )
    presence_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    frequency_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    penalize_newline: Literal[True] | None = Field(None, description="Line breaks are penalised like every token.")
    tfs_z: Annotated[float, Field(ge=1, le=1)] | None = Field(None, description="Tail-free sampling: only 1, which is off.")
    typical_p: Annotated[float, Field(ge=1, le=1)] | None = Field(None, description="Typical sampling: only 1, which is off.")
    mirostat: Annotated[int, Field(ge=0, le=0)] | None = Field(None, description="Only 0, which is off.")
    stop: Annotated[list[Annotated[str, Field(min_length=1, max_length=LIMITS.stop_characters)]], Field(max_length=STOP_MAX)] | None = None


def _format_kind(value: object) -> str:
    return "schema" if isinstance(value, dict) else "word"


Format = Annotated[
    Annotated[Literal["", "json"], Tag("word")] | Annotated[dict[str, Any], Tag("schema")],
    Discriminator(_format_kind),
]


class Asked(Body):
    """What all questions have in common."""

    HARMLESS: ClassVar[Mapping[str, str]] = {"shift": "a conversation that does not fit is refused, never shortened"}
    REFUSED: ClassVar[Mapping[str, str]] = {"template": "a server does not run templates that come with a request; use raw."}

    model: _Name
    stream: bool | None = Field(None, description="Whether the answer comes in pieces, a line each; it does unless this is false.")
    format: Format | None = None
    options: Options | None = None
    keep_alive: KeepAlive | None = None
    think: bool | Literal["low", "medium", "high", "max"] | None = None
    truncate: Literal[False] | None = Field(None, description="A prompt that does not fit is refused with both numbers, never cut.")
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=LIMITS.top_logprobs)] | None = None

    @property
    def is_streamed(self) -> bool:
        return self.stream is not False

    @property
    def num_top(self) -> int | None:
        """Alternatives of each token; None: no log-probabilities."""
        return (self.top_logprobs or 0) if self.logprobs else None


class CalledFunction(Body):
    HARMLESS: ClassVar[Mapping[str, str]] = {"index": "calls are in the order of their list"}

    name: _Name
    arguments: dict[str, Any]


class Call(Body):
    HARMLESS: ClassVar[Mapping[str, str]] = {"type": "every call is of a function"}

    id: _Name | None = None
    function: CalledFunction


class Turn(Body):
    HARMLESS: ClassVar[Mapping[str, str]] = {"thinking": "what another model thought before it answered is no part of what it said"}

    role: Literal["system", "user", "assistant", "tool"]
    content: str | None = None
    images: Annotated[list[_Picture], Field(max_length=LIMITS.pictures)] | None = None
    tool_calls: Annotated[list[Call], Field(max_length=LIMITS.tools)] | None = None
    tool_name: _Name | None = None
    tool_call_id: _Name | None = None


class ChatBody(Asked):
    """The body of `POST /api/chat`. Without messages the model is loaded, and that is all."""

    messages: Annotated[list[Turn], Field(max_length=LIMITS.messages)] | None = None
    tools: Tools | None = None


class GenerateBody(Asked):
    """The body of `POST /api/generate`. Without a prompt the model is loaded, and that is all."""

    REFUSED: ClassVar[Mapping[str, str]] = {
        **Asked.REFUSED,
        "context": "send the conversation to /api/chat; beginnings that were seen before are found in the cache.",
        "width": "this server makes no pictures.",
        "height": "this server makes no pictures.",
        "steps": "this server makes no pictures.",
    }

    prompt: str | None = None
    suffix: str | None = None
    system: str | None = None
    raw: bool | None = Field(None, description="The prompt as it is: no chat format around it, and its control tokens are control tokens.")
    images: Annotated[list[_Picture], Field(max_length=LIMITS.pictures)] | None = None


def check(body: Asked) -> None:
    """`UsageError` for what no Llama does."""
    if body.think not in (None, False):
        raise UsageError(f"{body.model} does not support thinking: Llamas answer without; leave think out.", param="think")
    if body.top_logprobs and not body.logprobs:
        raise UsageError("top_logprobs needs logprobs to be true.", param="top_logprobs")


def to_chat(body: ChatBody, facts: ModelFacts) -> ChatRequest:
    """The question. `UsageError` names the field that does not fit."""
    check(body)
    messages = [_message(turn, f"messages.{index}") for index, turn in enumerate(body.messages or ())]
    tools = read_tools([tool.model_dump(exclude_unset=True) for tool in body.tools or ()])
    _check_pictures(messages, facts, "messages")
    return ChatRequest(
        messages=messages,
        sampling=sampling(body, facts),
        max_tokens=most_tokens(body),
        stop=stops(body),
        tools=tools,
        constraint=constraint(body),
    )


def to_question(body: GenerateBody, facts: ModelFacts) -> ChatRequest:
    """A prompt as the only message of a conversation."""
    check(body)
    parts: list[Text | Image] = [*_pictures(body.images, "images"), Text(body.prompt or "")]
    user = Message(Role.USER, _content(parts))
    messages = [Message(Role.SYSTEM, body.system), user] if body.system else [user]
    _check_pictures(messages, facts, "images")
    return ChatRequest(
        messages=messages, sampling=sampling(body, facts), max_tokens=most_tokens(body), stop=stops(body), constraint=constraint(body)
    )


def to_completion(body: GenerateBody, prompt: str | Sequence[int], facts: ModelFacts) -> CompletionRequest:
    """A prompt as it is, or with a suffix to be filled in before."""
    check(body)
    for name in ("system", "images"):
        if getattr(body, name):
            raise UsageError(f"{name} has no place in a prompt that is given as it is (raw, or with a suffix).", param=name)
    return CompletionRequest(
        prompt=prompt,
        sampling=sampling(body, facts),
        max_tokens=most_tokens(body),
        stop=stops(body),
        suffix=body.suffix,
        constraint=constraint(body),
    )


def sampling(body: Asked, facts: ModelFacts) -> SamplingParams:
    """The request's wishes, else the publisher's advice, else Ollama's defaults. Repetitions are not penalised unless asked for."""
    options = body.options or Options.model_validate({})
    values: dict[str, Any] = {**DEFAULTS, **facts.sampling}
    for name in ("temperature", "top_k", "top_p", "min_p", "presence_penalty", "frequency_penalty"):
        if (value := getattr(options, name)) is not None:
            values[name] = value
    penalty, reach = options.repeat_penalty, options.repeat_last_n
    if penalty not in (None, 1.0) and reach not in (None, -1, 0):
        raise UsageError(
            f"options.repeat_last_n is {reach}; repeat_penalty looks over prompt and answer here: expected -1, or 0 for no penalty.",
            param="options.repeat_last_n",
        )
    if penalty is not None and reach != 0:
        values["repetition_penalty"] = penalty
    seed = options.seed if options.seed is not None and options.seed >= 0 else None
    return SamplingParams(**{**values, "top_k": int(values["top_k"])}, seed=seed, logprobs=body.num_top or 0)


def most_tokens(body: Asked) -> int | None:
    """Ollama's -1, -2 and 0 all mean: to the end of the answer or of the context."""
    most = body.options.num_predict if body.options is not None else None
    return most if most is not None and most > 0 else None


def stops(body: Asked) -> tuple[str, ...]:
    return tuple(body.options.stop or ()) if body.options is not None else ()


def constraint(body: Asked) -> Constraint | None:
    if not body.format:
        return None
    if isinstance(body.format, str):
        return Constraint(ConstraintKind.JSON_OBJECT)
    return schema_constraint(body.format, "format")


def _message(turn: Turn, at: str) -> Message:
    role = Role(turn.role)
    for field, owner in (("images", Role.USER), ("tool_calls", Role.ASSISTANT), ("tool_name", Role.TOOL), ("tool_call_id", Role.TOOL)):
        if getattr(turn, field) and role is not owner:
            raise UsageError(f"{at}.{field} is only for messages of the role {owner.value}.", param=f"{at}.{field}")
    content = _content([*_pictures(turn.images, f"{at}.images"), *([Text(turn.content)] if turn.content else [])])
    calls = tuple(_call(call, index, f"{at}.tool_calls.{index}") for index, call in enumerate(turn.tool_calls or ()))
    name = None if turn.tool_name is None else _checked_name(turn.tool_name, f"{at}.tool_name")
    return Message(role, content, calls, turn.tool_call_id, name)


def _call(call: Call, index: int, at: str) -> ToolCall:
    return ToolCall(call.id or f"call_{index}", _checked_name(call.function.name, f"{at}.function.name"), call.function.arguments)


def _checked_name(name: str, at: str) -> str:
    try:
        return tool_name(name, at)
    except UsageError as problem:
        raise UsageError(str(problem), param=at) from None


def _pictures(given: Sequence[str] | None, at: str) -> list[Image]:
    found = []
    for index, text in enumerate(given or ()):
        try:
            found.append(Image(base64.b64decode(text, validate=True)))
        except (binascii.Error, ValueError):
            raise UsageError(f"{at}.{index} is not base64; expected the bytes of a picture in it.", param=f"{at}.{index}") from None
    return found


def _content(parts: Sequence[Text | Image]) -> Content:
    if all(isinstance(part, Text) for part in parts):
        return "".join(part.text for part in parts if isinstance(part, Text))
    return tuple(parts)


def _check_pictures(messages: Sequence[Message], facts: ModelFacts, param: str) -> None:
    if not facts.sees_pictures and any(message.images for message in messages):
        raise UsageError(f"{facts.name} reads text only; the request has pictures.", param=param)
    if sum(len(message.images) for message in messages) > LIMITS.pictures:
        raise UsageError(f"The request has more than {LIMITS.pictures} pictures.", param=param)
