"""What Anthropic's clients send, and the question that it becomes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, Tag

from herd.errors import UsageError
from herd.providers.base import ChatRequest, ModelFacts, ToolChoice, ToolUse
from herd.sampling.constraint import Constraint
from herd.sampling.params import SamplingParams
from herd.server.branches import by_shape, by_type
from herd.server.openai.constraints import schema_constraint
from herd.server.reading import Body
from herd.server.settings import LIMITS
from herd.text.messages import Content, Image, Message, Role, Text
from herd.text.tools import BuiltIn, Tool, ToolCall, read_tools

STOP_SEQUENCES_MAX = 16
_CACHED = {
    "cache_control": "every prompt is looked up in the cache from its first token on, and kept there; there is nothing to mark, and nothing"
    " to pay for it"
}
_NAME = Annotated[str, Field(min_length=1, max_length=LIMITS.name_characters)]
MediaType = Literal["image/jpeg", "image/png", "image/gif", "image/webp"]


class TextBlock(Body):
    HARMLESS: ClassVar[Mapping[str, str]] = _CACHED
    REFUSED: ClassVar[Mapping[str, str]] = {"citations": "Llamas were not taught to cite; write the source into the text."}

    type: Literal["text"]
    text: str


class Base64Source(Body):
    type: Literal["base64"]
    media_type: MediaType
    data: str


class UrlSource(Body):
    type: Literal["url"]
    url: Annotated[str, Field(min_length=1, max_length=2048)]


Source = Annotated[
    Annotated[Base64Source, Tag("Base64Source")] | Annotated[UrlSource, Tag("UrlSource")], by_type(base64="Base64Source", url="UrlSource")
]


class ImageBlock(Body):
    HARMLESS: ClassVar[Mapping[str, str]] = _CACHED
    REFUSED: ClassVar[Mapping[str, str]] = {"transformations": "change the picture before it is sent."}

    type: Literal["image"]
    source: Source


class ToolUseBlock(Body):
    HARMLESS: ClassVar[Mapping[str, str]] = _CACHED | {"caller": "every call here was asked for by the model itself"}
    REFUSED: ClassVar[Mapping[str, str]] = {"toolset_name": "there are no tool sets here."}

    type: Literal["tool_use"]
    id: _NAME
    name: _NAME
    input: dict[str, Any]


ResultContent = Annotated[
    Annotated[str, Tag("Text")]
    | Annotated[list[Annotated[Annotated[TextBlock, Tag("TextBlock")], by_type(text="TextBlock")]], Tag("List")],
    by_shape(),
]


class ToolResultBlock(Body):
    HARMLESS: ClassVar[Mapping[str, str]] = _CACHED | {
        "is_error": "Llamas read a tool's result as text, and have no other sign for a failure than what that text says"
    }
    REFUSED: ClassVar[Mapping[str, str]] = {"toolset_name": "there are no tool sets here."}

    type: Literal["tool_result"]
    tool_use_id: _NAME
    content: ResultContent = ""


Block = Annotated[
    Annotated[TextBlock, Tag("TextBlock")]
    | Annotated[ImageBlock, Tag("ImageBlock")]
    | Annotated[ToolUseBlock, Tag("ToolUseBlock")]
    | Annotated[ToolResultBlock, Tag("ToolResultBlock")],
    by_type(text="TextBlock", image="ImageBlock", tool_use="ToolUseBlock", tool_result="ToolResultBlock"),
]
Blocks = Annotated[Annotated[str, Tag("Text")] | Annotated[list[Block], Tag("List")], by_shape()]
SystemBlocks = ResultContent


class Turn(Body):
    role: Literal["user", "assistant", "system"]
    content: Blocks


class CustomTool(Body):
    HARMLESS: ClassVar[Mapping[str, str]] = _CACHED | {"eager_input_streaming": "arguments are always sent as they are made"}
    REFUSED: ClassVar[Mapping[str, str]] = {
        "defer_loading": "every tool is told to the model at once.",
        "input_examples": "no Llama's format has a place for them; write them into the description.",
        "allowed_callers": "only the model itself calls tools.",
    }

    type: Literal["custom"] | None = None
    name: _NAME
    description: Annotated[str, Field(max_length=LIMITS.schema_bytes)] | None = None
    input_schema: dict[str, Any]
    strict: bool | None = None


class AutoChoice(Body):
    type: Literal["auto"]
    disable_parallel_tool_use: bool = False


class AnyChoice(Body):
    type: Literal["any"]
    disable_parallel_tool_use: bool = False


class NamedChoice(Body):
    type: Literal["tool"]
    name: _NAME
    disable_parallel_tool_use: bool = False


class NoChoice(Body):
    type: Literal["none"]


Choice = Annotated[
    Annotated[AutoChoice, Tag("AutoChoice")]
    | Annotated[AnyChoice, Tag("AnyChoice")]
    | Annotated[NamedChoice, Tag("NamedChoice")]
    | Annotated[NoChoice, Tag("NoChoice")],
    by_type(auto="AutoChoice", any="AnyChoice", tool="NamedChoice", none="NoChoice"),
]


class Thinking(Body):
    """`adaptive` leaves it to the model how much it thinks before it answers; a Llama does not. `enabled` asks for what none does."""

    HARMLESS: ClassVar[Mapping[str, str]] = {"display": "there are no thoughts to be shown"}
    REFUSED: ClassVar[Mapping[str, str]] = {"budget_tokens": "Llamas answer without thinking first; leave `thinking` out."}

    type: Literal["disabled", "adaptive"]


class OutputFormat(Body):
    type: Literal["json_schema"]
    json_schema: Annotated[dict[str, Any], Field(alias="schema")]


class OutputConfig(Body):
    HARMLESS: ClassVar[Mapping[str, str]] = {"effort": "it says how much a model thinks before it answers, and a Llama does not"}

    format: OutputFormat | None = None


class Asked(Body):
    """What messages and the count of their tokens have in common."""

    HARMLESS: ClassVar[Mapping[str, str]] = _CACHED | {
        "speed": "every answer is made as fast as this server can",
        "user_profile_id": "who asks is known from the key",
        "workspace_id": "there is one workspace",
    }

    model: Annotated[str, Field(min_length=1, max_length=LIMITS.name_characters)]
    messages: Annotated[list[Turn], Field(min_length=1, max_length=LIMITS.messages)]
    system: SystemBlocks | None = None
    tools: Annotated[list[CustomTool], Field(max_length=LIMITS.tools)] | None = None
    tool_choice: Choice | None = None
    thinking: Thinking | None = None
    output_config: OutputConfig | None = None


class CountRequest(Asked):
    """The body of `POST /v1/messages/count_tokens`."""


class MessagesRequest(Asked):
    """The body of `POST /v1/messages`."""

    HARMLESS: ClassVar[Mapping[str, str]] = {
        **Asked.HARMLESS,
        "metadata": "it is a note about the user for whoever runs the service; nothing here depends on it",
        "service_tier": "there is one tier",
    }
    REFUSED: ClassVar[Mapping[str, str]] = {
        "container": "this server runs no code.",
        "inference_geo": "answers are made where this server runs.",
        "diagnostics": "the cache tells how much it found in `usage`, and nothing more.",
        "mcp_servers": "this server calls no others; give the tools to the model and call them yourself.",
        "context_management": "the conversation is yours to shorten.",
    }

    max_tokens: Annotated[int, Field(ge=1, le=LIMITS.tokens)]
    stream: bool = False
    stop_sequences: (
        Annotated[list[Annotated[str, Field(min_length=1, max_length=LIMITS.stop_characters)]], Field(max_length=STOP_SEQUENCES_MAX)] | None
    ) = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_k: Annotated[int, Field(ge=0, le=LIMITS.tokens)] | None = None
    top_p: Annotated[float, Field(ge=0, le=1)] | None = None


def pictures_asked_by_address(body: Asked) -> list[str]:
    """Addresses of pictures, in the order of the messages."""
    blocks = [block for turn in body.messages if not isinstance(turn.content, str) for block in turn.content]
    return [each.source.url for each in blocks if isinstance(each, ImageBlock) and isinstance(each.source, UrlSource)]


def to_chat(body: Asked, facts: ModelFacts, fetched: Mapping[str, bytes] | None = None) -> ChatRequest:
    """The question. `fetched`: the pictures that are named by address. `UsageError` names the field that does not fit."""
    messages = read_turns(body, fetched or {})
    num_pictures = sum(len(message.images) for message in messages)
    if num_pictures and not facts.sees_pictures:
        raise UsageError(f"{body.model} reads text only; the conversation has pictures.", param="messages")
    if num_pictures > LIMITS.pictures:
        raise UsageError(f"The conversation has {num_pictures} pictures; at most {LIMITS.pictures} are looked at.", param="messages")
    choice = read_choice(body)
    tools = tools_of(body.tools or ()) if choice.use is not ToolUse.NONE else ()
    if choice.use in (ToolUse.REQUIRED, ToolUse.NAMED) and not tools:
        raise UsageError("tool_choice asks for a call, and there are no tools.", param="tool_choice")
    if choice.name is not None and choice.name not in {tool.name for tool in tools if isinstance(tool, Tool)}:
        raise UsageError(f"tool_choice names {choice.name!r:.80}, which is none of the tools.", param="tool_choice.name")
    request = ChatRequest(messages=messages, sampling=SamplingParams(), tools=tools, tool_choice=choice, constraint=_constraint(body))
    return _with_limits(body, request, facts) if isinstance(body, MessagesRequest) else request


def _with_limits(body: MessagesRequest, request: ChatRequest, facts: ModelFacts) -> ChatRequest:
    from dataclasses import replace

    asked = {name: value for name in ("temperature", "top_k", "top_p") if (value := getattr(body, name)) is not None}
    sampling = SamplingParams(**{**facts.sampling, **asked})
    return replace(request, sampling=sampling, max_tokens=body.max_tokens, stop=tuple(body.stop_sequences or ()))


def _constraint(body: Asked) -> Constraint | None:
    if body.output_config is None or body.output_config.format is None:
        return None
    return schema_constraint(body.output_config.format.json_schema, "output_config.format.schema")


def read_choice(body: Asked) -> ToolChoice:
    match body.tool_choice:
        case None:
            return ToolChoice()
        case NoChoice():
            return ToolChoice(ToolUse.NONE)
        case NamedChoice() as choice:
            return ToolChoice(ToolUse.NAMED, choice.name, parallel=not choice.disable_parallel_tool_use)
        case AutoChoice() | AnyChoice() as choice:
            use = ToolUse.AUTO if isinstance(choice, AutoChoice) else ToolUse.REQUIRED
            return ToolChoice(use, parallel=not choice.disable_parallel_tool_use)


def tools_of(tools: Iterable[CustomTool]) -> tuple[Tool | BuiltIn, ...]:
    """Tools in the shape that all of herd's surfaces give to the chat formats, so that the same tool gives the same prompt."""
    given = []
    for tool in tools:
        function: dict[str, Any] = {"name": tool.name, "description": tool.description or "", "parameters": tool.input_schema}
        given.append({"type": "function", "function": function | ({"strict": True} if tool.strict else {})})
    return read_tools(given)


def read_turns(body: Asked, fetched: Mapping[str, bytes]) -> list[Message]:
    """The conversation: results of tools come before the rest of their turn, and turns of one side that follow each other are one."""
    messages: list[Message] = []
    if body.system is not None and (text := text_of(body.system)):
        messages.append(Message(Role.SYSTEM, text))
    made: set[str] = set()
    for index, turn in enumerate(body.messages):
        at = f"messages.{index}"
        for message in _read_turn(turn, at, fetched):
            _check_result(message, made, at)
            made.update(call.id for call in message.tool_calls)
            _join(messages, message)
    if messages[-1].role is Role.ASSISTANT:
        raise UsageError(
            "The last message is the assistant's; expected one of the user's or a tool's result. Answers that go on from a given beginning"
            " are not made here.",
            param=f"messages.{len(body.messages) - 1}.role",
        )
    return messages


def text_of(content: str | list[TextBlock]) -> str:
    """Blocks are paragraphs."""
    return content if isinstance(content, str) else "\n\n".join(block.text for block in content)


def _read_turn(turn: Turn, at: str, fetched: Mapping[str, bytes]) -> list[Message]:
    role = Role(turn.role)
    if isinstance(turn.content, str):
        return [Message(role, turn.content)]
    results: list[Message] = []
    parts: list[Text | Image] = []
    calls: list[ToolCall] = []
    for index, block in enumerate(turn.content):
        where = f"{at}.content.{index}"
        _check_place(block, role, where)
        match block:
            case TextBlock():
                parts.append(Text(block.text))
            case ImageBlock():
                parts.append(Image(_source(block.source, fetched, where)))
            case ToolUseBlock():
                calls.append(ToolCall(block.id, block.name, block.input))
            case ToolResultBlock():
                results.append(Message(Role.TOOL, text_of(block.content), tool_call_id=block.tool_use_id))
    own = [Message(role, _content(parts), tuple(calls))] if parts or calls or not results else []
    return [*results, *own]


def _check_place(block: object, role: Role, at: str) -> None:
    """Only a user shows pictures and brings results; only an assistant calls tools."""
    allowed = {
        Role.USER: (TextBlock, ImageBlock, ToolResultBlock),
        Role.ASSISTANT: (TextBlock, ToolUseBlock),
        Role.SYSTEM: (TextBlock,),
    }[role]
    if not isinstance(block, allowed):
        kind = getattr(block, "type", "")
        raise UsageError(f"{at} is of type {kind} in a message of the role {role.value}, which has none.", param=f"{at}.type")


def _check_result(message: Message, made: set[str], at: str) -> None:
    if message.role is Role.TOOL and message.tool_call_id not in made:
        raise UsageError(
            f"{at} has the result of {message.tool_call_id!r:.80}; no message before it has a tool_use of that id.", param=f"{at}.content"
        )


def _source(source: Base64Source | UrlSource, fetched: Mapping[str, bytes], at: str) -> object:
    if isinstance(source, Base64Source):
        return f"data:{source.media_type};base64,{source.data}"
    if source.url not in fetched:
        raise UsageError(f"{at} names a picture by its address; send it as base64.", param=f"{at}.source")
    return fetched[source.url]


def _content(parts: list[Text | Image]) -> Content:
    if all(isinstance(part, Text) for part in parts):
        return "".join(part.text for part in parts if isinstance(part, Text))
    return tuple(parts)


def _join(messages: list[Message], message: Message) -> None:
    """Adds a turn, to the one before if that is the same side's; a paragraph between them."""
    last = messages[-1] if messages else None
    if last is None or last.role is not message.role or message.role in (Role.TOOL, Role.SYSTEM) or last.tool_calls:
        messages.append(message)
        return
    between = (Text("\n\n"),) if last.parts and message.parts else ()
    parts = [*last.parts, *between, *message.parts]
    messages[-1] = Message(message.role, _content(parts), message.tool_calls)
