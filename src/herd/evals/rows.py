"""Log-probabilities from a scorer's rows, and windows over a long text: what all measures are made of.

`t` is the number of rows in one piece, `V` the vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from herd.errors import FileProblem, UsageError
from herd.providers.base import Scorer

ROWS = 32
"""Rows that are worked on at once: [32, 128256] in float64 is 33 MB."""


class Told(Protocol):
    """Is told how many of all tokens (or questions) are done."""

    def __call__(self, done: int, total: int) -> None: ...


def nobody(done: int, total: int) -> None:
    """For callers who do not look."""


def pieces(scorer: Scorer, tokens: Sequence[int]) -> Iterator[NDArray[np.float32]]:
    """The scorer's rows for all positions, cut into pieces of exactly `ROWS` rows (the last may be shorter)."""
    held: list[NDArray[np.float32]] = []
    count = 0
    for rows_tV in scorer.logits(tokens):
        held.append(rows_tV)
        count += len(rows_tV)
        while count >= ROWS:
            joined_tV = held[0] if len(held) == 1 else np.concatenate(held)
            yield joined_tV[:ROWS]
            held, count = [joined_tV[ROWS:]], count - ROWS
    if count:
        yield held[0] if len(held) == 1 else np.concatenate(held)


def log_softmax(logits_tV: NDArray[np.float32]) -> NDArray[np.float64]:
    """Natural logarithms of the probabilities of each row. `FileProblem` if a logit is not a number."""
    shifted_tV = logits_tV.astype(np.float64)
    with np.errstate(invalid="ignore"):
        shifted_tV -= shifted_tV.max(axis=1, keepdims=True)
    if not np.isfinite(shifted_tV).any(axis=1).all():
        raise FileProblem("The model gave logits that are not numbers; its weights are damaged.")
    shifted_tV -= np.log(np.exp(shifted_tV).sum(axis=1, keepdims=True))
    return shifted_tV


def next_token_logprobs(scorer: Scorer, tokens: Sequence[int], first: int) -> Iterator[NDArray[np.float64]]:
    """log P(tokens[i] | tokens[:i]) for i from `first` (at least 1) to the end, in pieces."""
    targets_T = np.asarray(tokens, dtype=np.int64)
    position = 0
    for logits_tV in pieces(scorer, tokens):
        begin = max(first - 1 - position, 0)
        end = min(len(logits_tV), len(tokens) - 1 - position)
        if begin < end:
            wanted_t = targets_T[position + begin + 1 : position + end + 1]
            yield log_softmax(logits_tV[begin:end])[np.arange(end - begin), wanted_t]
        position += len(logits_tV)


@dataclass(frozen=True, slots=True)
class Window:
    """A stretch of text to run at once. Its tokens from index `first` on are the ones that are scored."""

    tokens: list[int]
    first: int

    @property
    def num_scored(self) -> int:
        return len(self.tokens) - self.first


@dataclass(frozen=True, slots=True, kw_only=True)
class Windowing:
    """How a long text is cut. Every token is scored once, with at least `size - stride` tokens before it where the text has them.

    size        tokens run at once, the beginning-of-text token included; None: 1024, or the context if that is smaller
    stride      tokens by which the next window moves on; None: half of `size`
    max_tokens  only so many tokens of the text; None: all
    """

    size: int | None = None
    stride: int | None = None
    max_tokens: int | None = None

    def resolved(self, context_length: int) -> tuple[int, int]:
        """Size and stride for a model of this context. `UsageError` for what cannot be."""
        size = min(1024, context_length) if self.size is None else self.size
        stride = max(size // 2, 1) if self.stride is None else self.stride
        if not 2 <= size <= context_length:
            raise UsageError(f"window is {size}; it must be from 2 to the context of {context_length} tokens.")
        if not 1 <= stride < size:
            raise UsageError(f"stride is {stride}; it must be from 1 to {size - 1}, below the window of {size}.")
        if self.max_tokens is not None and self.max_tokens < 2:
            raise UsageError(f"max_tokens is {self.max_tokens}; at least 2 are needed to predict one.")
        return size, stride


def windows(text_tokens: Sequence[int], prefix: Sequence[int], size: int, stride: int) -> Iterator[Window]:
    """Windows over a text. Each begins with `prefix` (the model's beginning-of-text token, or nothing); without one the
    very first token of the text has nothing before it and is not scored."""
    room = size - len(prefix)
    step = min(stride, room)
    begin, scored = 0, 0 if prefix else 1
    while scored < len(text_tokens):
        end = min(begin + room, len(text_tokens))
        if end > scored:
            yield Window([*prefix, *text_tokens[begin:end]], len(prefix) + scored - begin)
            scored = end
        begin += step


def tokens_of(scorer: Scorer, text: str, max_tokens: int | None) -> tuple[list[int], list[int]]:
    """The text's own tokens, and what the model puts before any text. `UsageError` for a text too short to score."""
    prefix = scorer.encode("", bos=None)
    tokens = scorer.encode(text, bos=False)[:max_tokens]
    if len(tokens) + len(prefix) < 2:
        raise UsageError(f"The text has {len(tokens)} tokens; at least 2 are needed to predict one from another.")
    return tokens, prefix
