"""On the CPU backend a sequence's bits depend on nothing but its own tokens: not on threads, chunks or company.

Both the logits and the log-probabilities of drawn tokens are compared as bits. The reference and torch do not promise this.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from conformance.architectures import ARCHITECTURES
from conformance.running import in_chunks, logits_of, make_backend, pages_for, prompt, whole
from herd import dtypes
from herd.backends.base import Backend, Plan, Span
from herd.sampling.chain import Draw
from herd.sampling.params import SamplingParams
from tiny import random_leaves

ARCHITECTURE = "groups of three"
CFG = ARCHITECTURES[ARCHITECTURE]
STORAGES = ["f32", "bf16", "f16", "q4_1", "q8_0", "q4_k", "q6_k", "iq4_xs"]
MODES = [(storage, "float32") for storage in STORAGES] + [(dtype.name, "int8") for dtype in dtypes.BLOCK]
TOKENS = prompt(CFG, 150)
SAMPLED = SamplingParams(temperature=0.8, top_p=0.95, repetition_penalty=1.1, seed=11, logprobs=5)
GREEDY = SamplingParams(temperature=0.0, logprobs=5)

pytestmark = pytest.mark.usefixtures("cpu")


def backend_for(storage: str, activations: str, threads: int = 2, **options: int) -> Backend:
    leaves = random_leaves(CFG, dtype=dtypes.BY_NAME[storage])
    return make_backend("cpu", CFG, leaves, activations=activations, threads=threads, **options)


def same_bits(one: np.ndarray, other: np.ndarray) -> bool:
    return one.shape == other.shape and np.array_equal(one.view(np.uint32), other.view(np.uint32))


@pytest.mark.parametrize(("storage", "activations"), MODES)
def test_threads_change_no_bit(storage: str, activations: str) -> None:
    alone = logits_of(backend_for(storage, activations, threads=1), whole(TOKENS))
    for threads in (2, 3, 7):
        assert same_bits(logits_of(backend_for(storage, activations, threads), whole(TOKENS)), alone), f"{threads} threads"


@pytest.mark.parametrize(("storage", "activations"), MODES)
def test_chunks_change_no_bit(storage: str, activations: str) -> None:
    backend = backend_for(storage, activations)
    at_once = logits_of(backend, whole(TOKENS))
    for chunk in (1, 7, 64):
        assert same_bits(in_chunks(backend, TOKENS, chunk, first_page=5), at_once), f"chunks of {chunk}"


@pytest.mark.parametrize(("storage", "activations"), MODES)
def test_company_changes_no_bit(storage: str, activations: str) -> None:
    backend = backend_for(storage, activations)
    at_once = logits_of(backend, whole(TOKENS))
    for size, own in ((2, 0), (3, 1), (9, 8)):
        texts = [prompt(CFG, 1 + 11 * index, seed=index) for index in range(size)]
        texts[own] = TOKENS
        first_pages = np.cumsum([0] + [len(pages_for(len(text))) for text in texts])
        together = logits_of(backend, *(whole(text, int(page)) for text, page in zip(texts, first_pages, strict=False)))
        start = sum(len(text) for text in texts[:own])
        assert same_bits(together[start : start + len(TOKENS)], at_once), f"number {own} of {size}"


@pytest.mark.parametrize("params", [GREEDY, SAMPLED], ids=["greedy", "sampled"])
@pytest.mark.parametrize(("storage", "activations"), [("f32", "float32"), ("q4_1", "int8"), ("q4_k", "int8")])
def test_answers_and_log_probabilities_are_the_same_bits_alone_and_in_company(
    storage: str, activations: str, params: SamplingParams
) -> None:
    alone = answer(backend_for(storage, activations, threads=1), params, TOKENS[:70], chunk=70, company=0)
    for threads, chunk, company in ((2, 7, 0), (3, 64, 3), (2, 1, 6), (7, 70, 1)):
        backend = backend_for(storage, activations, threads)
        assert answer(backend, params, TOKENS[:70], chunk, company) == alone, f"{threads} threads, chunks of {chunk}, {company} others"


def answer(backend: Backend, params: SamplingParams, text: Sequence[int], chunk: int, company: int, length: int = 12) -> list[object]:
    """`length` tokens drawn after `text`, each with the bits of its log-probabilities; `company` other sequences decode along."""
    pages = pages_for(len(text) + length)
    others = [prompt(CFG, 20 + index, seed=50 + index) for index in range(company)]
    first_pages = [len(pages) + 2 * index for index in range(company)]
    for other, page in zip(others, first_pages, strict=True):
        backend.step(Plan((Span(0, other[:-1], [page, page + 1]),)))
    tokens, done, drawn = list(text), 0, []
    while len(drawn) < length:
        piece = tokens[done : done + chunk]
        is_last = done + len(piece) == len(tokens)
        draws = (_draw(params, tokens, len(text)),) if is_last else ()
        spans = [Span(done, piece, pages, int(is_last), draws)]
        for other, page in zip(others, first_pages, strict=True):
            spans.append(Span(len(other) - 1, other[-1:], [page, page + 1], 1))
            other.append((other[-1] + 1) % CFG.vocab_size)
        choices = backend.step(Plan(tuple(spans))).choices[0]
        done += len(piece)
        for choice in choices:
            tokens.append(choice.token)
            drawn.append((choice.token, np.float32(choice.logprob).tobytes(), [(t, np.float32(p).tobytes()) for t, p in choice.top]))
    return drawn


def _draw(params: SamplingParams, tokens: list[int], prompt_length: int) -> Draw:
    seen, answer = np.unique(np.asarray(tokens, np.int32)), np.asarray(tokens[prompt_length:], np.int32)
    counts = np.array([np.count_nonzero(answer == token) for token in seen], np.int32)
    return Draw(params=params, seed=params.seed or 0, position=len(tokens), seen_ids=seen, answer_counts=counts)
