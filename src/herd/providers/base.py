"""Who answers: the one face that a terminal, a server, an evaluation and an assistant see, whatever answers behind it.

    ChatRequest --Provider.chat--> Text ... Text, Finished        (or Failed, once, last)

A provider turns messages into a stream of events; a scorer turns texts into log-probabilities. Both may be local or remote. A
service is a provider for a program that holds many requests in one thread (a server), and a pool has a service for each model.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import field
from enum import Enum
from typing import TYPE_CHECKING, ClassVar, NamedTuple, Protocol

from herd.errors import HerdError
from herd.records import dataclass
from herd.sampling.constraint import Constraint
from herd.sampling.params import SamplingParams
from herd.sampling.stop import StopReason
from herd.text.messages import Message
from herd.text.tools import BuiltIn, Tool, ToolCall

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from herd.text.formats.guard import Verdict


class Priority(Enum):
    """Who goes first when not all can. Work of a lower priority runs in what the others leave."""

    NORMAL = "normal"
    LOW = "low"


@dataclass(frozen=True, slots=True)
class Caller:
    """On whose behalf a request runs.

    name      callers of one name share one turn: each name gets an equal part of a full machine
    salt      cached prompts are found only by requests of the same salt, so that nobody can probe what others asked
    """

    name: str = ""
    salt: bytes = b""
    priority: Priority = Priority.NORMAL


class ToolUse(Enum):
    """Whether an answer calls tools."""

    AUTO = "auto"
    NONE = "none"
    REQUIRED = "required"
    """At least one call, of any tool; held to it by a grammar."""
    NAMED = "named"
    """One call of the tool that is named; held to it by a grammar."""


@dataclass(frozen=True, slots=True)
class ToolChoice:
    """`name` is set where `use` is NAMED. `parallel` False: at most one call in an answer."""

    use: ToolUse = ToolUse.AUTO
    name: str | None = None
    parallel: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatRequest:
    """One question. `max_tokens` None: up to the end of the context. `stop` are texts at which the answer ends.

    tools         what the model may call; calls come as `Called` events
    format        "template": the chat format published with the model; "meta": that of Meta's own code
    constraint    the language that the answer's text is held to
    choice_index  which of several answers to the same question and seed this is
    ignore_end    the tokens with which the model ends an answer do not end it: for measurements, which need answers of a given length
    adapter       the LoRA adapter that answers, by the name under which it was added; None: the model itself
    deadline_s    seconds after which the answer is given up, from when it is asked for
    """

    messages: Sequence[Message]
    sampling: SamplingParams
    max_tokens: int | None = None
    stop: Sequence[str] = ()
    date: str | None = None
    tools: Sequence[Tool | BuiltIn] = ()
    tool_choice: ToolChoice = ToolChoice()
    format: str = "template"
    constraint: Constraint | None = None
    choice_index: int = 0
    ignore_end: bool = False
    adapter: str | None = None
    caller: Caller = Caller()
    deadline_s: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class CompletionRequest:
    """Text or token ids to be continued. A text is tokenised as the model does for plain text (with its BOS, if it has one).

    stop_ids       tokens that end the answer besides the model's own
    suffix         a text that follows what is generated, for models that were taught to fill in
    score_prompt   the prompt's own log-probabilities come first, as a `Prompted` event
    The rest as in `ChatRequest`.
    """

    prompt: str | Sequence[int]
    sampling: SamplingParams
    max_tokens: int | None = None
    stop: Sequence[str] = ()
    stop_ids: Collection[int] = ()
    suffix: str | None = None
    score_prompt: bool = False
    constraint: Constraint | None = None
    choice_index: int = 0
    ignore_end: bool = False
    adapter: str | None = None
    caller: Caller = Caller()
    deadline_s: float | None = None


class TokenLogprob(NamedTuple):
    """One generated token: id, its bytes, natural-log probability before temperature, and the asked-for alternatives, whose bytes are in
    `top_data`, as many as there are in `top`."""

    token: int
    data: bytes
    logprob: float
    top: tuple[tuple[int, float], ...] = ()
    top_data: tuple[bytes, ...] = ()


@dataclass(slots=True)  # made for every token
class Text:
    """A piece of the answer; whole characters only. `tokens` are those that became certain with this piece."""

    type: ClassVar[str] = "text"
    text: str
    tokens: tuple[TokenLogprob, ...] = ()


@dataclass(frozen=True, slots=True)
class Prompted:
    """The prompt's tokens, each with its probability given those before it; the first has none (`logprob` NaN)."""

    type: ClassVar[str] = "prompt"
    tokens: tuple[TokenLogprob, ...]


@dataclass(frozen=True, slots=True)
class Calling:
    """A tool call begins, or another piece of its arguments' JSON text is there. `index` counts the answer's calls; the first piece
    of each has the name and the id. What the pieces spell is what the `Called` event has, which follows."""

    type: ClassVar[str] = "tool_call_piece"
    index: int
    name: str
    call_id: str
    arguments: str


@dataclass(frozen=True, slots=True)
class Called:
    """A complete tool call of the answer."""

    type: ClassVar[str] = "tool_call"
    call: ToolCall


@dataclass(frozen=True, slots=True)
class Usage:
    """Counts and wall times. `cached_tokens` of the prompt were found in the cache and not computed again."""

    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int = 0
    prompt_s: float = 0.0
    decode_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Finished:
    """The last event of a complete or cut answer. `seed` is the one that was used."""

    type: ClassVar[str] = "finished"
    stop_reason: StopReason
    usage: Usage
    seed: int
    stop_text: str | None = None


@dataclass(frozen=True, slots=True)
class Failed:
    """The last event of an answer that could not be completed; what was said before stays valid."""

    type: ClassVar[str] = "failed"
    error: HerdError


Event = Prompted | Text | Calling | Called | Finished | Failed


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelFacts:
    """What a front end may show or check about the model behind a provider. `sampling`: what its publisher recommends, by the names of
    `SamplingParams`; a chat that does not say otherwise is answered with it."""

    name: str
    context_length: int
    vocab_size: int
    fingerprint: str
    chat_format: str | None = None
    has_tokenizer: bool = True
    sees_pictures: bool = False
    takes_tools: bool = False
    is_guard: bool = False
    is_classifier: bool = False
    num_parameters: int = 0
    weight_bytes: int = 0
    adapters: tuple[str, ...] = ()
    sampling: dict[str, float] = field(default_factory=dict)
    sources: dict[str, str] = field(default_factory=dict)


class Provider(Protocol):
    """Answers chats and completions. Closing an event iterator early cancels the request and gives its memory back."""

    @property
    def facts(self) -> ModelFacts: ...

    def chat(self, request: ChatRequest) -> Iterator[Event]:
        """`UsageError` for a request that cannot be honoured, before the first event."""
        ...

    def complete(self, request: CompletionRequest) -> Iterator[Event]: ...


class Scorer(Protocol):
    """Gives the distribution that the model has for each next token of a given text."""

    @property
    def facts(self) -> ModelFacts: ...

    def encode(self, text: str, *, bos: bool | None = None) -> list[int]:
        """Token ids of plain text; `bos` None does as the model was trained."""
        ...

    def logits(self, tokens: Sequence[int]) -> Iterator[NDArray[np.float32]]:
        """Rows [t, V] for all positions of `tokens`, in order, in pieces of bounded size."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Accepted:
    """A request is in the queue: how long its prompt is, and which seed its answer is drawn with."""

    prompt_tokens: int
    seed: int


class Answer(Protocol):
    """One answer on its way. Iterating gives, each time, all events that came since the last time; the last of all is `Finished` or
    `Failed`. Leaving it (`aclose`, or the garbage collector) cancels the request, wherever it is."""

    async def accepted(self) -> Accepted:
        """Waits until the request is checked and queued. Raises what is wrong with it, or `CapacityError` for a full queue."""
        ...

    def __aiter__(self) -> Answer: ...

    async def __anext__(self) -> tuple[Event, ...]: ...

    async def pour(self, take: Callable[[tuple[Event, ...]], bool]) -> None:
        """Calls `take` with events as soon as they are there, until it says no or the answer is over; what it was given is taken in
        any case. Whoever calls this does not iterate meanwhile, and may do so afterwards. Raises what `take` raises."""
        ...

    async def aclose(self) -> None: ...


@dataclass(frozen=True, slots=True)
class Embedding:
    """A text's vector of length 1, and how many tokens were read for it."""

    values: NDArray[np.float32]
    num_tokens: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Gauges:
    """How busy a model is, and what it did since it was loaded. `scheduling_s`: CPU time of the thread that drives it, without the
    model's own."""

    waiting: int = 0
    running: int = 0
    free_pages: int = 0
    cached_pages: int = 0
    used_pages: int = 0
    memory_bytes: Mapping[str, int] = field(default_factory=dict)
    prompt_tokens: int = 0
    cached_tokens: int = 0
    answer_tokens: int = 0
    steps: int = 0
    preempted: int = 0
    restarts: int = 0
    scheduling_s: float = 0.0


class Service(Protocol):
    """A model as a server sees it, used from one thread of `asyncio`. `UsageError` for what cannot be honoured, `CapacityError` for what
    cannot be honoured now, `ProviderError` when what answers has died."""

    @property
    def facts(self) -> ModelFacts: ...

    @property
    def gauges(self) -> Gauges: ...

    def chat(self, request: ChatRequest) -> Answer: ...

    def complete(self, request: CompletionRequest) -> Answer: ...

    async def count(self, request: ChatRequest) -> int:
        """Tokens of the prompt that a chat becomes."""
        ...

    async def encode(self, text: str, *, bos: bool | None = None, specials: bool = False) -> list[int]: ...

    async def decode(self, ids: Sequence[int]) -> str: ...

    async def embed(self, inputs: Sequence[str | Sequence[int]], caller: Caller) -> list[Embedding]: ...

    async def moderate(self, messages: Sequence[Message], caller: Caller) -> Verdict:
        """A guard's verdict on the last message."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Terms:
    """The licence that a model is under, by its title; what whoever lets others use the model shows, and the line that copies of it carry,
    where the licence wants them."""

    licence: str
    badge: str | None = None
    notice: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Offer:
    """A model that a pool can answer with. `facts` are known once it is loaded. `created`: seconds since 1970. `terms`: None where the
    model's files do not say."""

    name: str
    created: int
    is_loaded: bool = False
    facts: ModelFacts | None = None
    parent: str | None = None
    terms: Terms | None = None


class Pool(Protocol):
    """The models of a server. A name is a model's, or `model:adapter`."""

    def offers(self) -> Sequence[Offer]: ...

    def use(self, model: str) -> AbstractAsyncContextManager[Service]:
        """The model's service, loaded if need be, and kept while it is used. `UnknownModel` for a name that is not offered,
        `CapacityError` when it cannot be loaded now."""
        ...

    async def put_away(self, model: str) -> bool:
        """Unloads a model unless somebody uses it; whether it is unloaded now. It is loaded again when it is asked for. `UnknownModel`."""
        ...

    async def add_adapter(self, model: str, name: str, path: str) -> None: ...

    async def remove_adapter(self, model: str, name: str) -> None: ...

    def gauges(self) -> Mapping[str, Gauges]:
        """Of each loaded model."""
        ...

    @property
    def is_ready(self) -> bool:
        """Whether the models that were to be loaded at the start can answer."""
        ...
