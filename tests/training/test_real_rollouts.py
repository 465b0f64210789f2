"""How far the engine's log-probabilities are from the trainer's on the default model, whole (see `tests/conformance/test_smollm2.py` for
where it is taken from)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest

pytest.importorskip("torch", reason="torch is not installed (pip install herd-llama[torch])")

import torch

from conformance.test_smollm2 import _model
from herd.api.tuning import Opened, open_tuned
from herd.api.tuning_grpo import engine_of
from herd.backends.base import BackendOptions
from herd.backends.torch.backend import TorchBackend
from herd.engine.engine import Engine
from herd.sampling.chain import token_logprob
from herd.training.settings.lora import Lora
from herd.training.settings.student import StudentSettings
from herd.training.signals.rollouts import Drawn, EngineSampler, Gap, Prompt, behind_prompt, seeds_of
from herd.training.student.batches import batch_of
from herd.training.student.model import Student

pytestmark = [pytest.mark.slow, pytest.mark.network]
PLAIN = StudentSettings(method="lora", dtype="float32")
ASKED = ("What is the capital of France?", "Write a short poem about rivers.", "Explain how bread is made.", "List three animals.")


@pytest.fixture(scope="module")
def opened() -> Iterator[Opened]:
    with open_tuned(_model()) as found:
        yield found


@pytest.fixture(scope="module")
def prompts(opened: Opened) -> list[Prompt]:
    texts = (f"<|im_start|>user\n{text}<|im_end|>\n<|im_start|>assistant\n" for text in ASKED)
    return [Prompt(tuple(opened.tokenizer.encode(text, specials=True))) for text in texts]


def moved(student: Student) -> Student:
    """The same with updates that are not zero."""
    random = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for name, parameter in student.parameters.items():
            if name.endswith(".up"):
                parameter += 0.01 * torch.randn(parameter.shape, generator=random, dtype=parameter.dtype)
    return student


def drawn_from(engine: Engine, opened: Opened, student: Student, prompts: list[Prompt], count: int, longest: int) -> list[list[Drawn]]:
    sampler = EngineSampler(engine, opened.rebased(student))
    sampler.push(student)
    return sampler.draw(prompts, count, max_tokens=longest, temperature=1.0, seeds=seeds_of(1, len(prompts)))


@pytest.mark.parametrize(
    ("settings", "backend", "mean", "most"),
    [
        (PLAIN, "cpu", 1e-4, 1e-3),
        (PLAIN, "torch", 1e-4, 1e-3),
        (replace(PLAIN, qat=True), "cpu", 1e-4, 1e-3),
        (replace(PLAIN, qat=True), "torch", 1e-4, 1e-3),
        # What bfloat16 loses by itself: transformers in it is 0.042 from itself in float32 on this model.
        (replace(PLAIN, dtype="bfloat16"), "cpu", 0.05, 0.5),
    ],
    ids=["float32", "float32 by torch", "four bits", "four bits by torch", "bfloat16"],
)
def test_engine_and_trainer_agree_on_what_is_drawn(
    settings: StudentSettings, backend: str, mean: float, most: float, opened: Opened, prompts: list[Prompt]
) -> None:
    """The file has its matrices in blocks, so all of these learn over blocks, as `base` would have it."""
    student = moved(opened.student(settings, 0, exact_tokens=True))
    with engine_of(opened, backend, 256, 8) as engine:
        drawn = drawn_from(engine, opened, student, prompts, 2, 48)
    gap, sums = Gap(), {"gap_sum": 0.0, "gap_tokens": 0.0}
    for prompt, answers in zip(prompts, drawn, strict=True):
        with torch.no_grad():
            trainer_R = student.logprobs(batch_of([behind_prompt(prompt, each) for each in answers]))
        found = gap.add(trainer_R, torch.tensor([x for each in answers for x in each.logprobs], dtype=torch.float64))
        sums = {name: value + found[name] for name, value in sums.items()}
    figures = gap.figures(sums)
    assert figures["gap"] <= mean and figures["gap_most"] <= most, figures


def test_drawn_by_torch_in_float64_they_are_equal(opened: Opened, prompts: list[Prompt]) -> None:
    """Every logit is rounded to float32 before a token is chosen by it; there both are the same number."""
    checkpoint = opened.checkpoint
    student = Student(opened.cfg, checkpoint.leaf, dtype=torch.float64, lora=Lora(rank=4))
    backend = TorchBackend(opened.cfg, checkpoint.leaf, BackendOptions(activations="float32", dtype="float64"), lambda: None)
    engine = Engine(backend, context_length=128, stop_ids=set(), max_batch=4)
    with torch.no_grad():
        for parameter in moved(student).parameters.values():
            parameter.copy_(parameter.float())  # as an engine is told of them
    for prompt, (answer,) in zip(prompts[:2], drawn_from(engine, opened, student, prompts[:2], 1, 12), strict=True):
        with torch.no_grad():
            logits_RV = student.logits(batch_of([behind_prompt(prompt, answer)])).to(torch.float32).numpy()
        for row, (token, logprob) in enumerate(zip(answer.tokens, answer.logprobs, strict=True)):
            assert token_logprob(logits_RV[row], token, 0, row).logprob == logprob
