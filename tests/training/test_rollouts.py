"""Answers drawn by an engine from the weights that are trained, and how far its probabilities are from the trainer's."""

from __future__ import annotations

import pytest

pytest.importorskip("torch", reason="torch is not installed (pip install herd-llama[torch])")

import torch

from fakes import FakeBackend
from herd.backends.base import Backend, BackendOptions
from herd.backends.cpu.backend import CpuBackend
from herd.backends.torch.backend import TorchBackend
from herd.dtypes import Q4_0
from herd.engine.engine import Engine
from herd.errors import HerdError, UsageError
from herd.models.weights import Blocks, Matrix, stored
from herd.quant import dequantize, quantize
from herd.sampling.chain import token_logprob
from herd.training.settings.lora import Lora
from herd.training.signals.rollouts import Drawn, EngineSampler, Gap, Prompt, seed_of, seeds_of
from herd.training.student.batches import Document, batch_of
from herd.training.student.model import Student
from tiny import random_leaves, tiny_llama

CFG = tiny_llama(width=64, num_heads=4, num_kv_heads=2, head_width=16, ffn_width=128)
LEAVES = random_leaves(CFG)
PROMPTS = [Prompt((5, 6, 7, 8, 9)), Prompt((11, 12)), Prompt(tuple(range(20, 90)))]
STOP = 3


def seeds(seed: int) -> list[int]:
    return seeds_of(seed, len(PROMPTS))


def engine(kind: str, dtype: str | None = None) -> Engine:
    options = BackendOptions(threads=1, activations="float32", dtype=dtype)
    make = CpuBackend if kind == "cpu" else TorchBackend
    backend: Backend = make(CFG, LEAVES.__getitem__, options, lambda: None)
    return Engine(backend, context_length=256, stop_ids={STOP}, max_batch=8)


def learned(method: str, dtype: torch.dtype = torch.float32) -> Student:
    """A student whose weights are no longer those of the base."""
    return moved(Student(CFG, LEAVES.__getitem__, dtype=dtype, lora=Lora(rank=4) if method == "lora" else None))


def moved(student: Student) -> Student:
    """The same with other weights."""
    random = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in student.parameters.values():
            parameter += 0.02 * torch.randn(parameter.shape, generator=random, dtype=parameter.dtype)
    return student


def gap_of(student: Student, prompts: list[Prompt], drawn: list[list[Drawn]]) -> dict[str, float]:
    documents = []
    for prompt, answers in zip(prompts, drawn, strict=True):
        for answer in answers:
            weights = (0.0,) * len(prompt.tokens) + (1.0,) * len(answer.tokens)
            documents.append(Document(prompt.tokens + answer.tokens, weights))
    with torch.no_grad():
        trainer_R = student.logprobs(batch_of(documents))
    gap = Gap()
    sums = gap.add(trainer_R, torch.tensor([x for answers in drawn for answer in answers for x in answer.logprobs], dtype=torch.float64))
    return gap.figures(sums)


@pytest.mark.parametrize("method", ["lora", "full"])
def test_the_engines_log_probabilities_are_the_trainers(method: str) -> None:
    student, sampler = learned(method), EngineSampler(engine("cpu"))
    before = sampler.draw(PROMPTS, 2, max_tokens=8, temperature=1.0, seeds=seeds(1))
    sampler.push(student)
    drawn = sampler.draw(PROMPTS, 3, max_tokens=24, temperature=1.0, seeds=seeds(1))
    assert gap_of(student, PROMPTS, drawn)["gap_most"] < 1e-3
    assert gap_of(student, PROMPTS, before)["gap"] > 1e-3, "the weights have changed, so what was drawn before is of another model"


def exact_gap(student: Student, drawn: list[list[Drawn]]) -> float:
    """The trainer's logits, rounded to float32 as those that an engine chooses from are, give which log-probabilities?"""
    most = 0.0
    for prompt, answers in zip(PROMPTS, drawn, strict=True):
        for answer in answers:
            document = Document(prompt.tokens + answer.tokens, (0.0,) * len(prompt.tokens) + (1.0,) * len(answer.tokens))
            with torch.no_grad():
                logits_RV = student.logits(batch_of([document])).to(torch.float32).numpy()
            for row, (token, logprob) in enumerate(zip(answer.tokens, answer.logprobs, strict=True)):
                most = max(most, abs(token_logprob(logits_RV[row], token, 0, row).logprob - logprob))
    return most


def test_drawn_by_torch_the_log_probabilities_are_equal() -> None:
    """Exactly, where both compute in float64: the order of sums then decides nothing that a float32 logit shows."""
    sampler = EngineSampler(engine("torch", "float64"))
    exact = Student(CFG, LEAVES.__getitem__, dtype=torch.float64)
    assert exact_gap(exact, sampler.draw(PROMPTS, 3, max_tokens=24, temperature=1.0, seeds=seeds(2))) == 0
    student = learned("full", torch.float64)
    sampler.push(student)
    rounded = Student(CFG, {**LEAVES, **student.leaves()}.__getitem__, dtype=torch.float64)
    assert exact_gap(rounded, sampler.draw(PROMPTS, 3, max_tokens=24, temperature=1.0, seeds=seeds(2))) == 0


@pytest.mark.parametrize("method", ["lora", "full"])
def test_drawn_by_torch_in_float32_they_differ_by_rounding_only(method: str) -> None:
    student, sampler = learned(method), EngineSampler(engine("torch", "float32"))
    sampler.push(student)
    assert gap_of(student, PROMPTS, sampler.draw(PROMPTS, 3, max_tokens=24, temperature=1.0, seeds=seeds(2)))["gap_most"] < 2e-5


BLOCKS = {
    name: stored(Q4_0, leaf.shape, quantize(Q4_0, dequantize(leaf.dtype, leaf.data, leaf.shape)))
    if ".attention." in name or ".ffn." in name
    else leaf
    for name, leaf in LEAVES.items()
}
"""The base of QLoRA: matrices in blocks."""


def in_blocks() -> dict[str, Matrix]:
    """What an engine that has the model as it is stored has to be told of it."""
    return {name: leaf for name, leaf in BLOCKS.items() if leaf is not LEAVES[name]}


@pytest.mark.parametrize("kind", ["cpu", "torch"])
@pytest.mark.parametrize("dora", [False, True], ids=["updates", "DoRA"])
def test_over_a_base_in_blocks_the_probabilities_are_the_trainers_too(dora: bool, kind: str) -> None:
    student = moved(Student(CFG, BLOCKS.__getitem__, lora=Lora(rank=4, dora=dora, targets=("q", "down"))))
    sampler = EngineSampler(engine(kind, "float32" if kind == "torch" else None), in_blocks())
    for seed in (1, 2):  # the second time the base is there
        sampler.push(student)
        drawn = sampler.draw(PROMPTS, 3, max_tokens=24, temperature=1.0, seeds=seeds(seed))
        assert gap_of(student, PROMPTS, drawn)["gap_most"] < (2e-5 if kind == "torch" else 1e-3)
        moved(student)


def test_in_bfloat16_a_base_in_blocks_brings_the_probabilities_no_further_apart() -> None:
    gaps = []
    for leaves, base in ((LEAVES, {}), (BLOCKS, in_blocks())):
        student, sampler = (
            moved(Student(CFG, leaves.__getitem__, dtype=torch.bfloat16, lora=Lora(rank=4))),
            EngineSampler(engine("cpu"), base),
        )
        sampler.push(student)
        gaps.append(gap_of(student, PROMPTS, sampler.draw(PROMPTS, 4, max_tokens=24, temperature=1.0, seeds=seeds(1)))["gap"])
    assert gaps[1] < 1.5 * gaps[0]


def test_drawn_by_torch_over_a_base_in_blocks_the_log_probabilities_are_equal() -> None:
    student = Student(CFG, BLOCKS.__getitem__, dtype=torch.float64, lora=Lora(rank=4))
    with torch.no_grad():
        for parameter in moved(student).parameters.values():
            parameter.copy_(parameter.float())  # as an engine is told of them
    sampler = EngineSampler(engine("torch", "float64"), in_blocks())
    sampler.push(student)
    assert exact_gap(student, sampler.draw(PROMPTS, 3, max_tokens=24, temperature=1.0, seeds=seeds(2))) == 0


@pytest.mark.parametrize("kind", ["cpu", "torch"])
@pytest.mark.parametrize("lora", [None, Lora(rank=4)], ids=["all weights", "updates"])
def test_what_learns_for_four_bits_answers_from_those_four_bits(lora: Lora | None, kind: str) -> None:
    student = moved(Student(CFG, LEAVES.__getitem__, lora=lora, four_bits=True, exact_tokens=True))
    frozen = {} if lora is None else {name: student.base(name) for name in LEAVES if isinstance(student.base(name), Blocks)}
    sampler = EngineSampler(engine(kind, "float32" if kind == "torch" else None), frozen)
    for seed in (1, 2):
        sampler.push(student)
        drawn = sampler.draw(PROMPTS, 3, max_tokens=24, temperature=1.0, seeds=seeds(seed))
        assert gap_of(student, PROMPTS, drawn)["gap_most"] < (2e-5 if kind == "torch" else 1e-3)
        plain = Student(CFG, LEAVES.__getitem__, lora=lora)
        for name, parameter in student.parameters.items():
            plain.parameters[name].data.copy_(parameter.detach())
        assert gap_of(plain, PROMPTS, drawn)["gap"] > 1e-2, "unrounded it is another model"
        moved(student)


def test_answers_depend_on_seed_and_weights_alone() -> None:
    sampler = EngineSampler(engine("cpu"))
    sampler.push(learned("lora"))
    first = sampler.draw(PROMPTS, 2, max_tokens=12, temperature=1.0, seeds=seeds(9))
    sampler.push(learned("lora"))
    again = sampler.draw(PROMPTS, 2, max_tokens=12, temperature=1.0, seeds=seeds(9))
    other = sampler.draw(PROMPTS, 2, max_tokens=12, temperature=1.0, seeds=seeds(10))
    assert first == again and first != other
    assert first[0][0] != first[0][1], "answers to one prompt differ"
    assert sampler.draw(PROMPTS[1:], 1, max_tokens=12, temperature=0.0, seeds=seeds_of(9, len(PROMPTS) - 1)) == sampler.draw(
        PROMPTS[1:], 1, max_tokens=12, temperature=0.0, seeds=seeds_of(10, len(PROMPTS) - 1)
    )


def test_answers_end_at_stop_tokens_or_are_cut() -> None:
    drawn = EngineSampler(engine("cpu")).draw(PROMPTS, 16, max_tokens=40, temperature=2.0, seeds=seeds(3))
    answers = [answer for each in drawn for answer in each]
    assert all(answer.is_cut == (len(answer.tokens) == 40 and answer.tokens[-1] != STOP) for answer in answers)
    assert {answer.is_cut for answer in answers} == {True, False}
    assert all(STOP not in answer.tokens[:-1] and len(answer.tokens) == len(answer.logprobs) for answer in answers)


def test_a_prompt_that_is_too_long_is_refused_before_anything_is_drawn() -> None:
    small = Engine(FakeBackend(50), context_length=64, num_pages=4)
    with pytest.raises(HerdError, match="context"):
        EngineSampler(small).draw([Prompt((1, 2)), Prompt((1,) * 100)], 1, max_tokens=4, temperature=1.0, seeds=(0, 1))
    assert small.load.running == small.load.waiting == 0


def test_dora_reaches_the_engine_as_whole_weights() -> None:
    student, sampler = Student(CFG, LEAVES.__getitem__, lora=Lora(rank=4, dora=True)), EngineSampler(engine("cpu"))
    with torch.no_grad():
        for name, parameter in student.parameters.items():
            if name.endswith("up"):
                parameter += 0.02
    sampler.push(student)
    assert gap_of(student, PROMPTS, sampler.draw(PROMPTS, 2, max_tokens=12, temperature=1.0, seeds=seeds(4)))["gap_most"] < 1e-3


def test_seeds_of_prompts_are_apart() -> None:
    assert len({seed_of(seed, index) for seed in range(100) for index in range(100)}) == 10000
    assert all(0 <= seed_of(seed, 3) < 2**63 for seed in (0, 1, 2**62))


def test_the_gap_of_nothing_is_zero() -> None:
    gap = Gap()
    assert gap.figures(gap.add(torch.zeros(0), torch.zeros(0))) == {"gap": 0.0, "gap_most": 0.0}
    assert gap.figures(gap.add(torch.tensor([1.0, 2.0]), torch.tensor([1.5, 2.0]))) == {"gap": 0.25, "gap_most": 0.5}
    assert issubclass(UsageError, HerdError)
