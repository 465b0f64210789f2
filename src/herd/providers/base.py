"""Who answers: the one face that a terminal, a server, an evaluation and an assistant see, whatever answers behind it.

    ChatRequest --Provider.chat--> Text ... Text, Finished        (or Failed, once, last)

A provider turns messages into a stream of events; a scorer turns texts into log-probabilities. Both may be local or remote.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import field
from typing import TYPE_CHECKING, ClassVar, Protocol

from herd.errors import HerdError
from herd.records import dataclass
from herd.sampling.params import SamplingParams
from herd.sampling.stop import StopReason
from herd.text.messages import Message
from herd.text.tools import BuiltIn, Tool, ToolCall

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatRequest:
    """One question. `max_tokens` None: up to the end of the context. `stop` are texts at which the answer ends.

    tools    what the model may call; calls come as `Called` events
    format   "template": the chat format published with the model; "meta": that of Meta's own code
    """

    messages: Sequence[Message]
    sampling: SamplingParams
    max_tokens: int | None = None
    stop: Sequence[str] = ()
    date: str | None = None
    tools: Sequence[Tool | BuiltIn] = ()
    format: str = "template"


@dataclass(frozen=True, slots=True, kw_only=True)
class CompletionRequest:
    """Text or token ids to be continued. A text is tokenised as the model does for plain text (with its BOS, if it has one).
    `stop_ids` are tokens that end the answer besides the model's own."""

    prompt: str | Sequence[int]
    sampling: SamplingParams
    max_tokens: int | None = None
    stop: Sequence[str] = ()
    stop_ids: Collection[int] = ()


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """One generated token: id, its bytes, natural-log probability before temperature, and the asked-for alternatives."""

    token: int
    data: bytes
    logprob: float
    top: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True, slots=True)
class Text:
    """A piece of the answer; whole characters only. `tokens` are those that became certain with this piece."""

    type: ClassVar[str] = "text"
    text: str
    tokens: tuple[TokenLogprob, ...] = ()


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


Event = Text | Called | Finished | Failed


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelFacts:
    """What a front end may show or check about the model behind a provider."""

    name: str
    context_length: int
    vocab_size: int
    fingerprint: str
    chat_format: str | None = None
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
