"""One answer as a value, and how it is read from an answer's events."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import field
from typing import TYPE_CHECKING, final

from herd.errors import FileProblem
from herd.records import dataclass

if TYPE_CHECKING:
    from herd.providers.base import Event, TokenLogprob, Usage
    from herd.sampling.stop import StopReason
    from herd.text.tools import ToolCall


@final
@dataclass(frozen=True, slots=True)
class Output:
    """One answer.

    token_ids    of the answer, the token that ended it included
    logprobs     natural-log probability of each of them, from the model's distribution before temperature
    top          per token the alternatives (id, log-probability) that `logprobs=N` asked for
    stop_reason  why no more tokens came; `stop_text` is the stop text that was met, if one was
    usage        counts and wall times
    tool_calls   what a chat with tools asks for
    """

    token_ids: list[int]
    logprobs: list[float]
    top: list[tuple[tuple[int, float], ...]]
    stop_reason: StopReason
    stop_text: str | None
    prompt_token_ids: list[int]
    seed: int
    usage: Usage
    model_name: str
    decoded: str | None
    tool_calls: list[ToolCall] = field(default_factory=list)

    @property
    def text(self) -> str:
        """The answer as text, up to a stop text. `FileProblem` if the model came without a tokenizer."""
        if self.decoded is None:
            raise no_tokenizer(self.model_name)
        return self.decoded


def collect(name: str, prompt_token_ids: Sequence[int], events: Iterable[Event], *, has_text: bool) -> Output:
    """Reads an answer's events to their end. Raises what made it fail. has_text: whether the model `name` has a tokenizer."""
    from herd.providers.base import Called, Failed, Finished, Text

    texts: list[str] = []
    tokens: list[TokenLogprob] = []
    calls: list[ToolCall] = []
    for event in events:
        match event:
            case Text(text, more):
                texts.append(text)
                tokens.extend(more)
            case Called(call):
                calls.append(call)
            case Failed(error):
                raise error
            case Finished() as end:
                return Output(
                    token_ids=[item.token for item in tokens],
                    logprobs=[item.logprob for item in tokens],
                    top=[item.top for item in tokens],
                    stop_reason=end.stop_reason,
                    stop_text=end.stop_text,
                    prompt_token_ids=list(prompt_token_ids),
                    seed=end.seed,
                    usage=end.usage,
                    model_name=name,
                    decoded="".join(texts) if has_text else None,
                    tool_calls=calls,
                )
    raise AssertionError("an answer ended without saying how")


def no_tokenizer(name: str) -> FileProblem:
    """For texts to or from a model without a tokenizer."""
    return FileProblem(
        f"{name} came without a tokenizer, so it has token ids and no texts. Put a tokenizer.json beside it, or use token ids."
    )
