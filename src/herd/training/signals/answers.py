"""Answers to be compared or judged, as documents for a student: what carries loss in them, and how many fit into one pass."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import TypeVar

from torch import Tensor

from herd.data.tokenising import Example
from herd.training.signals import losses
from herd.training.student.batches import Batch, Document

T = TypeVar("T")


def without_formatting(example: Example) -> Example:
    """The control tokens of its answers (their end, headers of tool calls) carry no loss: Llama 3 found that learning to prefer or avoid
    what both answers end with makes models repeat themselves or stop (arXiv 2407.21783, section 4.1.4)."""
    weights = list(example.weights)
    for at in example.formatting:
        weights[at] = 0.0
    return replace(example, weights=tuple(weights), formatting=())


def answer_begins(document: Document) -> int:
    """The position of the first token that carries loss."""
    return next(at for at, weight in enumerate(document.weights) if weight)


def behind(prompt: Document, answer: Document) -> Document:
    """The prompt of one document with the answer of another. Pictures of the answer's own prompt are not in it."""
    first, begin = answer_begins(prompt), answer_begins(answer)
    tokens, weights = prompt.tokens[:first] + answer.tokens[begin:], (0.0,) * first + answer.weights[begin:]
    return Document(tokens, weights, prompt.pictures)


def in_groups(items: Sequence[T], size_of: Callable[[T], int], tokens: int) -> Iterator[list[T]]:
    """Consecutive items, as many at a time as have `tokens` tokens together; one that is larger comes alone."""
    group: list[T] = []
    used = 0
    for item in items:
        size = size_of(item)
        if group and used + size > tokens:
            yield group
            group, used = [], 0
        group.append(item)
        used += size
    if group:
        yield group


def sums(logprobs_R: Tensor, batch: Batch) -> Tensor:
    """log π of each document's answer [N]: the sum over what carries loss, by its weights."""
    return losses.document_sums(logprobs_R * batch.weights_R.to(logprobs_R.dtype), batch.document_R, len(batch.lengths))


def counts(batch: Batch) -> Tensor:
    """How much of each document carries loss [N]."""
    return losses.document_sums(batch.weights_R, batch.document_R, len(batch.lengths))
