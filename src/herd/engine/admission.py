"""Which requests can be honoured at all, decided before anything is queued or computed; and what they become."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterable
from collections.abc import Sequence as List
from numbers import Integral
from typing import TYPE_CHECKING

from herd.backends.base import Backend
from herd.engine.request import Progress, Purpose, Request, Sequence
from herd.errors import CapacityError, ContextExceeded, UsageError
from herd.sampling.params import SamplingParams

if TYPE_CHECKING:
    from herd.sampling.history import History


def check_request(request: Request, backend: Backend, context_length: int, cache_tokens: int) -> list[int]:
    """The prompt's ids, or the error. An explicit `max_tokens` that fits the context must fit the pages as well; one that
    exceeds the context is cut to it, and then to the pages."""
    tokens = check_tokens(request.tokens, backend.num_embeddings, context_length, cache_tokens)
    wanted: object = request.max_tokens
    if wanted is not None and (isinstance(wanted, bool) or not isinstance(wanted, int) or wanted < 0):
        raise UsageError(f"max_tokens is {wanted!r}; it must be a whole number from 0.")
    if wanted is not None and cache_tokens < len(tokens) + wanted <= context_length:
        raise CapacityError(
            f"The prompt has {len(tokens)} tokens and the answer may have {wanted}; the cache holds {cache_tokens} tokens in all. "
            "Ask for a shorter answer, or give the cache more memory."
        )
    _check_ids(request.stop_ids or (), "stop_ids", backend.vocab_size)
    _check_ids(request.sampling.logit_bias, "logit_bias", backend.vocab_size)
    deadline: object = request.deadline_s
    if deadline is not None and (isinstance(deadline, bool) or not isinstance(deadline, int | float) or not deadline >= 0):
        raise UsageError(f"deadline_s is {deadline!r:.60}; it must be a number of seconds from 0.")
    if not 0 <= request.choice_index < 2**32:
        raise UsageError(f"choice_index is {request.choice_index}; it must be from 0 to 2^32 - 1.")
    return tokens


def check_tokens(tokens: List[int], num_embeddings: int, context_length: int, cache_tokens: int) -> list[int]:
    """Token ids as plain integers. `UsageError` if there are none, too many or wrong ones; `CapacityError` if they exceed the pages."""
    if len(tokens) == 0:
        raise UsageError("The prompt is empty; a model needs at least one token to continue.")
    if len(tokens) > context_length:
        raise ContextExceeded(
            f"The prompt has {len(tokens)} tokens; the context is {context_length}. Shorten the prompt, or start a new conversation."
        )
    if len(tokens) > cache_tokens:
        raise CapacityError(
            f"The prompt has {len(tokens)} tokens; the cache holds {cache_tokens} in all. Shorten it, or give the cache more memory."
        )
    return _check_ids(tokens, "The prompt", num_embeddings)


def new_answer(
    request: Request, tokens: list[int], room: int, stop_ids: frozenset[int], vocab_size: int, news: deque[Progress] | None
) -> Sequence:
    """The life of a checked request begins. `room` is how many tokens its answer can have at most. Tokens of the prompt that no
    answer can have (`vocab_size` and above) have no part in penalties."""
    sampling = request.sampling
    return Sequence(
        purpose=Purpose.ANSWER,
        tokens=tokens,
        num_prompt=len(tokens),
        max_length=len(tokens) + (room if request.max_tokens is None else min(room, request.max_tokens)),
        stop_ids=stop_ids if request.stop_ids is None else frozenset(request.stop_ids),
        sampling=sampling,
        seed=_drawn_seed() if sampling.seed is None else sampling.seed,
        choice_index=request.choice_index,
        salt=request.salt,
        pictures=request.pictures,
        caller=request.caller,
        is_low=request.is_low,
        owner=request.owner,
        adapter=request.adapter,
        matcher=request.matcher,
        history=_history(token for token in tokens if token < vocab_size) if sampling.uses_history else None,
        news=news,
    )


def new_scores(request: Request, tokens: list[int], news: deque[Progress] | None) -> Sequence:
    """The life of a text whose logits are wanted begins."""
    return Sequence(
        purpose=Purpose.SCORES,
        tokens=tokens,
        num_prompt=len(tokens),
        max_length=len(tokens),
        stop_ids=frozenset(),
        sampling=SamplingParams(),
        seed=0,
        salt=request.salt,
        pictures=request.pictures,
        caller=request.caller,
        is_low=request.is_low,
        owner=request.owner,
        adapter=request.adapter,
        news=news,
    )


def _drawn_seed() -> int:
    """63 bits that nobody can foretell."""
    return int.from_bytes(os.urandom(8), "little") >> 1


def _history(tokens: Iterable[int]) -> History:
    from herd.sampling.history import History

    return History(tokens)


def _check_ids(values: Iterable[object], what: str, vocab_size: int) -> list[int]:
    ids: list[int] = []
    for value in values:
        if isinstance(value, bool) or not isinstance(value, Integral):
            raise UsageError(f"{what} contains {value!r:.60}; token ids are whole numbers from 0 to {vocab_size - 1}.")
        token = int(value)
        if not 0 <= token < vocab_size:
            raise UsageError(f"{what} contains token {token}; the model's vocabulary is 0 to {vocab_size - 1}.")
        ids.append(token)
    return ids
