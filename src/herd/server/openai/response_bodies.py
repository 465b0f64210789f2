"""What clients of `/v1/responses` send, and the question that it becomes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Discriminator, Field, Tag

from herd.errors import UsageError
from herd.providers.base import ChatRequest, ModelFacts, ToolChoice
from herd.sampling.constraint import Constraint, ConstraintKind
from herd.sampling.params import SamplingParams
from herd.server.branches import by_type
from herd.server.openai.constraints import NAME_IS_FOR_CLIENTS, schema_constraint
from herd.server.openai.fields import CALLER_FIELDS, MetadataKey, MetadataValue, Name
from herd.server.openai.response_items import Items
from herd.server.openai.tools import ToolFields
from herd.server.reading import Body
from herd.server.settings import LIMITS
from herd.text.messages import Message
from herd.text.tools import BuiltIn, Tool

LOGPROBS = "message.output_text.logprobs"
_NO_REASONING = "Llama models do not reason before they answer; leave it out."


class FunctionTool(Body):
    """A function that the client runs when the model asks for it."""

    REFUSED: ClassVar[Mapping[str, str]] = {
        "defer_loading": "every tool is told to the model at once.",
        "allowed_callers": "only the model itself calls tools.",
        "output_schema": "no Llama's format has a place for it; write it into the description.",
        "async": "calls are answered in the next request.",
    }

    type: Literal["function"]
    name: Name
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = Field(None, description="Told to the model's template; arguments of required and named calls follow the schema.")


AnyTool = Annotated[Annotated[FunctionTool, Tag("FunctionTool")], by_type(function="FunctionTool")]


class NamedTool(Body):
    type: Literal["function"]
    name: Name


class AllowedTools(Body):
    """Only these of the tools may be called."""

    type: Literal["allowed_tools"]
    mode: Literal["auto", "required"]
    tools: Annotated[list[NamedTool], Field(min_length=1, max_length=LIMITS.tools)]


def _choice_kind(value: object) -> str | None:
    if isinstance(value, str):
        return "Mode"
    kind = value.get("type") if isinstance(value, Mapping) else None
    return {"function": "NamedTool", "allowed_tools": "AllowedTools"}.get(kind) if isinstance(kind, str) else None


Choice = Annotated[
    Annotated[Literal["none", "auto", "required"], Tag("Mode")]
    | Annotated[NamedTool, Tag("NamedTool")]
    | Annotated[AllowedTools, Tag("AllowedTools")],
    Discriminator(
        _choice_kind,
        custom_error_type="herd_choice",
        custom_error_message="Is none of none, auto, required, a named function, or allowed_tools",
    ),
]
Includable = Literal[
    "message.output_text.logprobs",
    "reasoning.encrypted_content",
    "file_search_call.results",
    "web_search_call.results",
    "web_search_call.action.sources",
    "message.input_image.image_url",
    "computer_call_output.output.image_url",
    "code_interpreter_call.outputs",
]


class PlainText(Body):
    type: Literal["text"]


class JsonObject(Body):
    type: Literal["json_object"]


class JsonSchema(Body):
    HARMLESS: ClassVar[Mapping[str, str]] = {
        "description": NAME_IS_FOR_CLIENTS,
        "strict": "an answer is held to the schema either way",
    }

    type: Literal["json_schema"]
    name: Annotated[str, Field(max_length=LIMITS.name_characters)] | None = Field(None, description=NAME_IS_FOR_CLIENTS)
    schema_: Annotated[dict[str, Any], Field(alias="schema")]


class TextFields(Body):
    REFUSED: ClassVar[Mapping[str, str]] = {"verbosity": "say in a message how long the answer should be."}

    format: (
        Annotated[
            Annotated[PlainText, Tag("PlainText")] | Annotated[JsonObject, Tag("JsonObject")] | Annotated[JsonSchema, Tag("JsonSchema")],
            by_type(text="PlainText", json_object="JsonObject", json_schema="JsonSchema"),
        ]
        | None
    ) = None


class StreamOptions(Body):
    HARMLESS: ClassVar[Mapping[str, str]] = {"include_obfuscation": "pieces of this endpoint are not padded"}


class Asked(Body):
    """What an answer and a count of tokens have in common."""

    REFUSED: ClassVar[Mapping[str, str]] = {
        "conversation": "conversations are held by previous_response_id.",
        "reasoning": _NO_REASONING,
        "prompt": "prompts are not kept here; send instructions and input.",
        "personality": "say it in instructions.",
    }

    model: Name
    input: Items | None = None
    instructions: str | None = None
    previous_response_id: Annotated[str, Field(min_length=1, max_length=200)] | None = None
    tools: Annotated[list[AnyTool], Field(max_length=LIMITS.tools)] | None = None
    tool_choice: Choice | None = None
    parallel_tool_calls: bool | None = None
    text: TextFields | None = None
    truncation: Literal["auto", "disabled"] | None = Field(
        None, description="auto leaves out the oldest turns of a conversation that does not fit, and tells how many; else it is refused."
    )

    def offered(self) -> tuple[Sequence[Tool | BuiltIn], ToolChoice]:
        """The tools that the model may call, and whether it has to; read as those of chats are."""
        tools = [{"type": "function", "function": tool.model_dump(exclude_unset=True, exclude={"type"})} for tool in self.tools or ()]
        given = {"tools": tools, "tool_choice": _chat_choice(self.tool_choice), "parallel_tool_calls": self.parallel_tool_calls}
        return ToolFields.model_validate(given).offered()

    def constraint(self) -> Constraint | None:
        match self.text.format if self.text is not None else None:
            case JsonObject():
                return Constraint(ConstraintKind.JSON_OBJECT)
            case JsonSchema(schema_=schema):
                return schema_constraint(schema, "text.format.schema")
            case _:
                return None


class CountBody(Asked):
    """The body of `POST /v1/responses/input_tokens`."""


class ResponseBody(Asked):
    """The body of `POST /v1/responses`."""

    HARMLESS: ClassVar[Mapping[str, str]] = {
        **CALLER_FIELDS,
        "service_tier": "there is one tier, which is what the answer says",
        "max_tool_calls": "it bounds calls of tools that the server runs, and this one runs none",
    }
    REFUSED: ClassVar[Mapping[str, str]] = {
        **Asked.REFUSED,
        "context_management": "send truncation, or shorten the conversation.",
        "moderation": "send what was said to /v1/moderations.",
        "access_programs": "there are none here.",
        "background_options": "background answers begin as soon as they can.",
        "image": "pictures are looked at as each model was trained.",
    }

    stream: bool | None = Field(None, description="Whether the answer comes as events.")
    stream_options: StreamOptions | None = None
    store: bool | None = Field(
        None, description="Whether the answer is kept, to be asked for and gone on from; it is unless this is false."
    )
    background: bool | None = Field(None, description="Whether the answer is made without its client waiting; needs store.")
    include: Annotated[list[Includable], Field(max_length=32)] | None = Field(
        None, description=f"{LOGPROBS} tells how likely tokens were; the others name things that no answer here has."
    )
    max_output_tokens: Annotated[int, Field(ge=1, le=LIMITS.tokens)] | None = None
    metadata: Annotated[dict[MetadataKey, MetadataValue], Field(max_length=LIMITS.metadata)] | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(ge=0, le=1)] | None = None
    top_k: Annotated[int, Field(ge=0, le=LIMITS.tokens)] | None = None
    min_p: Annotated[float, Field(ge=0, le=1)] | None = None
    seed: Annotated[int, Field(ge=0, le=LIMITS.seed)] | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=LIMITS.top_logprobs)] | None = None

    @property
    def num_top(self) -> int | None:
        """Alternatives of each token; None: no log-probabilities."""
        return (self.top_logprobs or 0) if LOGPROBS in (self.include or ()) else None

    def check(self, keep_days: int) -> None:
        """`UsageError` for fields that contradict each other, or what this server does."""
        if self.input is None and self.previous_response_id is None:
            raise UsageError("input is missing.", param="input")
        if self.top_logprobs and self.num_top is None:
            raise UsageError(f"top_logprobs needs include to have {LOGPROBS}.", param="top_logprobs")
        if self.store and not keep_days:
            raise UsageError("This server stores no answers; send store: false.", param="store")
        if self.background and (self.store is False or not keep_days):
            raise UsageError("background needs store: the answer is fetched from there.", param="background")
        if self.background and self.stream:
            raise UsageError("An answer in the background is not streamed; ask for it until it is complete.", param="stream")

    def sampling(self, facts: ModelFacts) -> SamplingParams:
        """How the answer is drawn: what the request says, else what the model's publisher advises."""
        asked = {name: value for name in ("temperature", "top_p", "top_k", "min_p") if (value := getattr(self, name)) is not None}
        return SamplingParams(**{**facts.sampling, **asked}, seed=self.seed, logprobs=self.num_top or 0)


def to_chat(body: Asked, messages: Sequence[Message], facts: ModelFacts) -> ChatRequest:
    """The question. `UsageError` names the field that cannot be honoured."""
    if not facts.sees_pictures and any(message.images for message in messages):
        raise UsageError(f"{body.model} reads text only; the conversation has pictures.", param="input")
    tools, choice = body.offered()
    return ChatRequest(
        messages=messages,
        sampling=body.sampling(facts) if isinstance(body, ResponseBody) else SamplingParams(),
        max_tokens=body.max_output_tokens if isinstance(body, ResponseBody) else None,
        tools=tools,
        tool_choice=choice,
        constraint=body.constraint(),
    )


def _chat_choice(choice: object) -> object:
    """A choice of tools as chats have it."""
    match choice:
        case NamedTool(name=name):
            return {"type": "function", "function": {"name": name}}
        case AllowedTools(mode=mode, tools=tools):
            named = [{"type": "function", "function": {"name": tool.name}} for tool in tools]
            return {"type": "allowed_tools", "allowed_tools": {"mode": mode, "tools": named}}
        case _:
            return choice
