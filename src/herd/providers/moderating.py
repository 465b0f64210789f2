"""A guard is asked like any other model; this is what it is asked with, and how its answer is read."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from herd.errors import UsageError
from herd.providers.base import Caller, ChatRequest, TokenLogprob
from herd.sampling.params import SamplingParams

if TYPE_CHECKING:
    from herd.text.formats.guard import Guard, Verdict
    from herd.text.messages import Message

VERDICT_TOKENS = 64
"""More than any verdict has."""
VERDICT_LOGPROBS = 20


def verdict_request(messages: Sequence[Message], caller: Caller | None = None) -> ChatRequest:
    """The chat whose answer is a verdict on the last message."""
    greedy = SamplingParams(temperature=0.0, logprobs=VERDICT_LOGPROBS)
    return ChatRequest(messages=messages, sampling=greedy, max_tokens=VERDICT_TOKENS, caller=caller or Caller())


def read_verdict(name: str, guard: Guard, answer: Iterable[TokenLogprob]) -> Verdict:
    """The verdict that an answer is. `UsageError` for an answer that is none. name: of the model."""
    tokens = list(answer)
    word = next((token for token in tokens if token.data.strip()), None)
    verdict = guard.verdict([token.token for token in tokens], {} if word is None else {**dict(word.top), word.token: word.logprob})
    if verdict is None:
        said = guard.tokenizer.decode([token.token for token in tokens])
        raise UsageError(f"{name} gave no verdict but {said!r:.200}.")
    return verdict
