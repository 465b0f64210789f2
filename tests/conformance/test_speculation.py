"""With and without speculation real backends say the same; the cpu and the reference with the same bits for the tokens' probabilities."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from conformance.architectures import ARCHITECTURES
from conformance.running import make_backend, prompt
from herd import dtypes
from herd.backends.base import Plan, StepResult
from herd.engine.draft_model import ModelDrafter
from herd.engine.engine import Engine
from herd.engine.lookup import LookupDrafter
from herd.engine.request import Request
from herd.engine.speculative import Speculation
from herd.sampling.params import SamplingParams
from tiny import random_leaves

CFG = ARCHITECTURES["groups of three"]
FEW = {3: 100.0, 5: 100.0, 9: 100.0}  # answers of three tokens repeat themselves
GREEDY = SamplingParams(temperature=0.0, logprobs=3, seed=1, logit_bias=FEW)
SAMPLED = SamplingParams(temperature=0.9, top_p=0.9, repetition_penalty=1.05, frequency_penalty=0.1, logprobs=3, seed=6, logit_bias=FEW)
REQUESTS = [
    Request(tokens=prompt(CFG, 20) * 4, max_tokens=70, stop_ids=(), sampling=GREEDY),
    Request(tokens=prompt(CFG, 90), max_tokens=60, stop_ids=(), sampling=SAMPLED),
    Request(tokens=prompt(CFG, 7) * 9, max_tokens=50, stop_ids=(), sampling=SAMPLED, choice_index=1),
]


class Counted:
    """A backend, and a clock by which each of its steps takes a second and nothing else takes time, so that drafts pay."""

    def __init__(self, name: str, leaves: Any, **options: Any) -> None:
        self.backend: Any = make_backend(name, CFG, leaves, **options)
        self.steps, self._step = 0, self.backend.step
        self.backend.step = self.step

    def step(self, plan: Plan) -> StepResult:
        self.steps += 1
        return self._step(plan)

    def clock(self) -> float:
        return float(self.steps)


def answers(backend: Any, speculation: Speculation | None) -> list[list[tuple[Any, ...]]]:
    """All requests together, then each alone: tokens and log-probabilities as bits."""
    engine = Engine(backend, context_length=512, num_pages=32, speculation=speculation)
    sequences = [engine.submit(request) for request in REQUESTS]
    got: list[list[tuple[Any, ...]]] = [[] for _ in sequences]
    while engine.load.running or engine.load.waiting:
        for p in engine.step():
            got[p.sequence.number].append((p.token, _bits(p.logprob), [(token, _bits(value)) for token, value in p.top]))
        engine.check()
    for request in REQUESTS:
        got.append([(p.token, _bits(p.logprob), [(token, _bits(value)) for token, value in p.top]) for p in engine.run(request)])
    return got


def _bits(value: float) -> bytes:
    return np.float64(value).tobytes()


def drafters(name: str, leaves: Any, other: Any, **options: Any) -> dict[str, Any]:
    """From the text, from the model itself (always right), and from another (nearly always wrong)."""
    return {
        "lookup": LookupDrafter(),
        "itself": ModelDrafter(make_backend(name, CFG, leaves, **options), 512, 32, lambda: None),
        "another": ModelDrafter(make_backend(name, CFG, other, **options), 512, 32, lambda: None),
    }


@pytest.mark.parametrize("drafter", ["lookup", "itself", "another"])
@pytest.mark.parametrize(("storage", "activations"), [("f32", "float32"), ("q4_0", "int8"), ("q6_k", "int8"), ("bf16", "float32")])
@pytest.mark.usefixtures("cpu")
def test_the_cpu_backend_gives_the_same_tokens_and_the_same_bits(storage: str, activations: str, drafter: str) -> None:
    leaves, other = (random_leaves(CFG, seed=seed, dtype=dtypes.BY_NAME[storage]) for seed in (0, 1))
    plain = answers(make_backend("cpu", CFG, leaves, activations=activations, threads=2), None)
    drafting = drafters("cpu", leaves, other, activations=activations, threads=1)[drafter]
    counted = Counted("cpu", leaves, activations=activations, threads=2)
    speculation = Speculation(drafting, clock=counted.clock)
    assert answers(counted.backend, speculation) == plain
    assert (
        speculation.num_drafted > 100
        and speculation.num_right
        and (speculation.num_right == speculation.num_drafted or drafter != "itself")
    )


@pytest.mark.parametrize("drafter", ["lookup", "itself", "another"])
def test_the_reference_gives_the_same_tokens(drafter: str) -> None:
    leaves, other = (random_leaves(CFG, seed=seed) for seed in (0, 1))
    plain = answers(make_backend("reference", CFG, leaves, dtype="float64"), None)
    counted = Counted("reference", leaves, dtype="float64")
    speculation = Speculation(drafters("reference", leaves, other, dtype="float64")[drafter], clock=counted.clock)
    found = answers(counted.backend, speculation)
    assert [[each[0] for each in answer] for answer in found] == [[each[0] for each in answer] for answer in plain]
    near = [np.frombuffer(b"".join(each[1] for answer in every for each in answer)) for every in (found, plain)]
    np.testing.assert_allclose(near[0], near[1], atol=1e-6)
    assert speculation.num_drafted > 100
