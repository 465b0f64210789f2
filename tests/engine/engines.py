"""Engines on a fake backend, requests made at random, and what a plain loop without an engine answers them."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator

import numpy as np

from fakes import FakeBackend, fake_logits
from herd.engine.engine import Engine
from herd.engine.request import Progress, Request, Sequence
from herd.models.weights import Update
from herd.sampling.chain import Draw, choose
from herd.sampling.history import History
from herd.sampling.params import SamplingParams
from tiny import dense_f32

VOCAB = 50
STOP = 7


def make(backend: FakeBackend | None = None, **options: object) -> Engine:
    settings: dict[str, object] = {"context_length": 512, "stop_ids": {STOP}, "num_pages": 16, "max_batch": 8, **options}
    return Engine(backend or FakeBackend(VOCAB), **settings)  # type: ignore[arg-type]


def everything(position: int) -> int:
    return 0


def expected(request: Request, max_length: int = 512, first_seen: Callable[[int], int] = everything) -> list[tuple[int, float]]:
    """What a plain loop without an engine chooses. `first_seen`: the lowest position that a model's layers see from another."""
    tokens, answer = list(request.tokens), []
    history = History(tokens)
    limit = max_length if request.max_tokens is None else min(max_length, len(tokens) + request.max_tokens)
    stops = {STOP} if request.stop_ids is None else set(request.stop_ids)
    while len(tokens) < limit:
        draw = Draw(
            params=request.sampling,
            seed=request.sampling.seed or 0,
            position=len(tokens),
            choice_index=request.choice_index,
            seen_ids=history.ids,
            answer_counts=history.counts,
        )
        choice = choose(fake_logits(tokens[first_seen(len(tokens) - 1) :], VOCAB), draw)
        tokens.append(choice.token)
        history.add(choice.token)
        answer.append((choice.token, choice.logprob))
        if choice.token in stops:
            break
    return answer


def random_request(rng: random.Random, longest: int = 200) -> Request:
    start = [rng.randrange(VOCAB) for _ in range(rng.choice([1, 5, 63, 64, 65, 130]))]
    sampling = rng.choice(
        [
            SamplingParams(temperature=0.0, seed=1),
            SamplingParams(temperature=0.9, top_p=0.8, seed=rng.randrange(2**63)),
            SamplingParams(temperature=1.3, top_k=5, min_p=0.01, seed=3, repetition_penalty=1.2, frequency_penalty=0.3),
        ]
    )
    return Request(tokens=start[:longest], sampling=sampling, max_tokens=rng.randrange(1, 60), choice_index=rng.randrange(3))


def collect(progress: Iterator[Progress]) -> list[tuple[int, float]]:
    return [(p.token, p.logprob) for p in progress if p.token is not None]


def drive(engine: Engine, requests: list[Request]) -> list[list[tuple[int, float]]]:
    """All requests together, by hand."""
    sequences = [engine.submit(request) for request in requests]
    got: dict[int, list[tuple[int, float]]] = {sequence.number: [] for sequence in sequences}
    while any(s.stop_reason is None and s.error is None for s in sequences):
        for progress in engine.step():
            if progress.token is not None:
                got[progress.sequence.number].append((progress.token, progress.logprob))
        engine.check()
    return [got[sequence.number] for sequence in sequences]


def all_back(engine: Engine) -> None:
    engine.check()
    load = engine.load
    assert (load.owned_pages, load.waiting, load.running) == (0, 0, 0)
    assert load.free_pages + load.cached_pages == engine.limits.num_pages


def random_steps(
    engine: Engine, rng: random.Random, count: int, prefixes: list[list[int]], sampling: Callable[[], SamplingParams] = SamplingParams
) -> list[tuple[Request, Sequence]]:
    """Submits, scores, cancels and steps at random, `count` times in all, looking at the books each time, and cancels what is left. Texts
    begin as one of `prefixes`. What was submitted, in order."""
    alive: list[Sequence] = []
    scores: list[Iterator[np.ndarray]] = []
    submitted = []

    def beginning() -> list[int]:
        prefix = rng.choice(prefixes)
        return prefix[: rng.randrange(1, len(prefix))]

    for _ in range(count):
        action = rng.random()
        if action < 0.05 and len(alive) < 12:
            tokens = beginning() + [rng.randrange(VOCAB) for _ in range(rng.randrange(30))]
            request = Request(tokens=tokens, max_tokens=rng.randrange(0, 90), salt=rng.choice([b"", b"x"]), sampling=sampling())
            alive.append(engine.submit(request))
            submitted.append((request, alive[-1]))
        elif action < 0.06 and len(scores) < 2:
            scores.append(engine.score(beginning()))
        elif action < 0.08 and alive:
            engine.cancel(rng.choice(alive))
        elif action < 0.10 and scores:
            _go_on(scores, rng)
        else:
            engine.step()
        engine.check()
        alive = [sequence for sequence in alive if sequence.stop_reason is None]
    for iterator in scores:
        iterator.close()  # type: ignore[attr-defined]
    for sequence in alive:
        engine.cancel(sequence)
    all_back(engine)
    return submitted


def _go_on(scores: list[Iterator[np.ndarray]], rng: random.Random) -> None:
    """Asks one of the scores for more, and sometimes for no more."""
    chosen = rng.choice(scores)
    if next(chosen, None) is None or rng.random() < 0.3:
        chosen.close()  # type: ignore[attr-defined]
        scores.remove(chosen)


def matrices(name: str) -> dict[str, Update]:
    """An adapter's contents; what the fake backend makes of them it takes from the name alone."""
    down, up = (dense_f32(np.full(shape, ord(name))) for shape in ((1, 4), (4, 1)))
    return {"layers.0.attention.q": Update(down, up, 2.0)}
