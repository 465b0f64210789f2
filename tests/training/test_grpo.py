"""Online reinforcement learning: its gradient is the papers', its answers come from the weights of now, its reward rises."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch", reason="torch is not installed (pip install herd-llama[torch])")
pytest.importorskip("transformers", reason="transformers is not installed (pip install herd-llama[dev])")

import numpy as np
import torch
from torch import Tensor

from herd.backends.base import BackendOptions
from herd.backends.cpu.backend import CpuBackend
from herd.data.reading import Place
from herd.data.samples import Task
from herd.engine.engine import Engine
from herd.errors import UsageError
from herd.text.messages import Message, Role
from herd.training.recipes.grpo import Grpo, Problem
from herd.training.recipes.preferences import Reference
from herd.training.settings.grpo import GrpoSettings, PolicyLoss, Rollouts, variant
from herd.training.settings.lora import Lora
from herd.training.settings.rewards import RewardSettings
from herd.training.signals.rewards import Answer, one_by_one
from herd.training.signals.rollouts import EngineSampler, Prompt
from herd.training.student.model import Student
from tiny import random_leaves, tiny_llama
from training.learning import in_their_layout, their_model

CFG = tiny_llama(width=64, num_layers=1, num_heads=4, num_kv_heads=2, head_width=16, ffn_width=96)
LEAVES = random_leaves(CFG)
STOP = 3


def problem(index: int) -> Problem:
    place = Place(Path("tasks.jsonl"), index + 1)
    return Problem(Task(place, (Message(Role.USER, "?"),), {"answer": index}), Prompt(tuple(range(10 + index, 15 + index))))


PROBLEMS = [problem(index) for index in range(6)]


def small_numbers(task: Task, answer: Answer) -> float:
    """The share of an answer's tokens below 160."""
    ids = [int(each) for each in answer.text.split()]
    return sum(each < 160 for each in ids) / max(1, len(ids))


def recipe(loss: PolicyLoss, rollouts: Rollouts, *, dtype: torch.dtype = torch.float32, lora: Lora | None = None, **changes: Any) -> Grpo:
    student = Student(CFG, LEAVES.__getitem__, dtype=dtype, lora=lora)
    backend = CpuBackend(CFG, LEAVES.__getitem__, BackendOptions(threads=1, activations="float32"), lambda: None)
    frozen = Student(CFG, LEAVES.__getitem__, dtype=dtype) if lora is None else None
    given: dict[str, Any] = {
        "student": student,
        "sampler": EngineSampler(Engine(backend, context_length=128, stop_ids={STOP}, max_batch=16)),
        "learned": PROBLEMS,
        "held_out": PROBLEMS,
        "reward": one_by_one(small_numbers),
        "decode": lambda ids: " ".join(str(each) for each in ids),
        "loss": loss,
        "rollouts": rollouts,
        "pack": 60,
        "seed": 4,
        "reference": Reference(student, frozen),
    }
    return Grpo(**{**given, **changes})


def descend(made: Grpo, lr: float) -> None:
    with torch.no_grad():
        for parameter in made.parameters.values():
            if parameter.grad is not None:
                parameter -= lr * parameter.grad
            parameter.grad = None


def their_logprobs(model: Any, tokens: tuple[int, ...], count: int) -> Tensor:
    logits = model(torch.tensor([tokens])).logits[0, -count - 1 : -1]
    return logits.log_softmax(-1).gather(1, torch.tensor(tokens[-count:])[:, None])[:, 0]


@pytest.mark.parametrize("name", ["grpo", "dr_grpo", "dapo"])
def test_the_gradient_is_that_of_the_paper_over_transformers(name: str) -> None:
    """Two steps from the same answers, so that ratios are not 1 in the second, in float64."""
    loss = PolicyLoss(**{**{each: getattr(variant(name), each) for each in PolicyLoss.__slots__}, "kl": 0.1, "sampler_most": 0.0})
    made = recipe(loss, Rollouts(prompts=2, answers=4, max_tokens=6, reuse=2, redraw=0), dtype=torch.float64)
    model, before = (their_model(CFG, LEAVES, "float64") for _ in range(2))
    old: list[Tensor] = []
    for number in range(2):
        figures = made.step(number)
        answers = made._answers
        size = sum(len(each.sampler) for each in answers)
        total = torch.zeros((), dtype=torch.float64)
        for index, each in enumerate(answers):
            count = len(each.sampler)
            now = their_logprobs(model, each.document.tokens, count)
            old.append(now.detach())
            with torch.no_grad():
                start = their_logprobs(before, each.document.tokens, count)
            ratio = (now - old[index]).exp()
            gain = torch.min(ratio * each.advantage, ratio.clamp(1 - loss.clip_low, 1 + loss.clip_high) * each.advantage)
            values = -gain + 0.1 * ((start - now).exp() - (start - now) - 1)
            total = (
                total
                + {
                    "answers": values.mean() / len(answers),
                    "tokens": values.sum() / size,
                    "constant": values.sum() / (6 * len(answers)),
                }[loss.over]
            )
        model.zero_grad()
        total.backward()  # type: ignore[no-untyped-call]
        assert abs(figures["loss"] - total.item()) < 1e-7
        gradients = {key: value.grad for key, value in made.parameters.items()}
        theirs = dict(model.named_parameters())
        for at, values_at in in_their_layout(CFG, gradients).items():
            exact = theirs[at].grad.numpy().reshape(values_at.shape)
            np.testing.assert_allclose(values_at, exact, atol=2e-6 * max(1.0, abs(exact).max()))
        with torch.no_grad():
            for parameter in model.parameters():
                parameter -= 2.0 * parameter.grad
        descend(made, 2.0)


@pytest.mark.parametrize("name", ["grpo", "dapo"])
def test_the_reward_of_a_toy_task_rises(name: str) -> None:
    made = recipe(variant(name), Rollouts(prompts=3, answers=8, max_tokens=6), lora=Lora(rank=8))
    before = made.evaluate(0)["reward"]
    optimiser = torch.optim.AdamW(list(made.parameters.values()), lr=2e-2)
    rewards = []
    for number in range(25):
        figures = made.step(number)
        rewards.append(figures["reward"])
        assert figures["gap_most"] < 1e-3, "the engine has the weights of now"
        optimiser.step()
        optimiser.zero_grad()
    after = made.evaluate(25)["reward"]
    assert np.mean(rewards[-5:]) > np.mean(rewards[:5]) + 0.25 and after > before + 0.1, (rewards, before, after)


def test_prompts_that_teach_nothing_are_drawn_again() -> None:
    def only_even(task: Task, answer: Answer) -> float:
        return small_numbers(task, answer) if task.checks["answer"] % 2 == 0 else 1.0

    made = recipe(variant("dapo"), Rollouts(prompts=2, answers=4, max_tokens=4, redraw=5), reward=one_by_one(only_even))
    figures = made.step(0)
    learned_from = {each.document.tokens[0] - 10 for each in made._answers}
    assert len(learned_from) == 2 and all(each % 2 == 0 for each in learned_from) and figures["informative"] < 1
    never = recipe(variant("dapo"), Rollouts(prompts=2, answers=4, max_tokens=4, redraw=1), reward=one_by_one(lambda task, answer: 1.0))
    figures = never.step(0)
    assert figures["informative"] == 0 and figures["loss"] == 0 and figures["tokens"] > 0
    assert all(float(each.grad.abs().max()) == 0 for each in never.parameters.values() if each.grad is not None)


def test_prompts_that_became_easy_are_left_out() -> None:
    def easy_below_3(task: Task, answer: Answer) -> float:
        return float(task.checks["answer"] < 3)

    rollouts = Rollouts(prompts=2, answers=4, max_tokens=4, redraw=0, filter_every=2, filter_most=0.9)
    made = recipe(variant("dapo"), rollouts, reward=one_by_one(easy_below_3))
    assert [made.step(number)["kept"] for number in range(3)] == [6, 6, 3]
    all_easy = recipe(variant("dapo"), rollouts, reward=one_by_one(lambda task, answer: 1.0))
    all_easy.step(1)
    assert all_easy.step(2)["kept"] == 6, "with none left, all are used"


def test_long_answers_cost_reward_and_cut_ones_may_be_left_out() -> None:
    made = recipe(variant("dapo"), Rollouts(prompts=3, answers=8, max_tokens=12, redraw=0, drop_cut=True, overlong=5))
    made.step(0)
    assert {each.scale == 0 for each in made._answers} == {True, False}
    for each in made._answers:
        assert (each.scale == 0) == (len(each.sampler) == 12 and each.document.tokens[-1] != STOP)


def test_shares_are_of_the_tokens_that_count() -> None:
    """Where cut answers are left out, so are their tokens, in what is counted and in what it is divided by."""
    loss = PolicyLoss(kl=0.1, clip_low=1e-9, clip_high=1e-9)
    made = recipe(loss, Rollouts(prompts=3, answers=8, max_tokens=12, redraw=0, drop_cut=True, reuse=2), dtype=torch.float64)
    made.step(0)
    descend(made, 1.0)
    cut = [each for each in made._answers if not each.scale]
    tokens = sum(len(each.sampler) for each in made._answers if each.scale)
    assert cut and 0 < tokens < sum(len(each.sampler) for each in cut)
    figures = made.step(1)
    assert 0 < figures["clipped"] <= 1
    alone = [made._measured([each], None)[1]["kl"] for each in made._answers if each.scale]
    assert figures["kl"] * tokens == pytest.approx(sum(alone), rel=1e-6)


def test_a_first_step_of_cut_answers_alone_says_so() -> None:
    made = recipe(variant("dapo"), Rollouts(prompts=2, answers=4, max_tokens=1, redraw=0, drop_cut=True))
    with pytest.raises(UsageError, match=r"All 8 answers of the first step were cut at 1 tokens, and rollouts\.drop_cut"):
        made.step(0)


def test_a_restored_recipe_goes_on_with_the_same_answers() -> None:
    rollouts = Rollouts(prompts=2, answers=3, max_tokens=5, reuse=2, redraw=0)
    whole, first = recipe(variant("dapo"), rollouts), recipe(variant("dapo"), rollouts)
    figures = []
    for number in range(4):
        figures.append(whole.step(number))
        descend(whole, 0.5)
    first.step(0)
    descend(first, 0.5)
    tensors, values = first.state()
    second = recipe(variant("dapo"), rollouts)
    second.restore(tensors, json.loads(json.dumps(values, sort_keys=True)))  # as a checkpoint keeps them
    with torch.no_grad():
        for name, parameter in second.parameters.items():
            parameter.copy_(first.parameters[name])
    for number in range(1, 4):
        found = second.step(number)
        assert (found, list(found)) == (figures[number], list(figures[number])), "the same bytes in the log"
        descend(second, 0.5)


def test_drawing_at_another_temperature_is_learned_at_it() -> None:
    """The mean of the gradient of log p over draws at a temperature is zero only for the probabilities at that temperature."""
    made = recipe(PolicyLoss(sampler_most=0), Rollouts(prompts=1, answers=2, max_tokens=4, temperature=0.5, redraw=0), dtype=torch.float64)
    figures = made.step(0)
    assert figures["gap_most"] < 1e-3
    each = made._answers[0]
    model = their_model(CFG, LEAVES, "float64")
    with torch.no_grad():
        logits = model(torch.tensor([each.document.tokens])).logits[0, -len(each.sampler) - 1 : -1] / 0.5
    theirs = logits.log_softmax(-1).gather(1, torch.tensor(each.document.tokens[-len(each.sampler) :])[:, None])[:, 0]
    from herd.training.student.batches import batch_of

    batch = batch_of([each.document])
    with torch.no_grad():
        ours = made._logprobs(made.student.hidden(batch), batch)
    torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-6)


def test_settings_that_cannot_be_are_refused() -> None:
    with pytest.raises(UsageError, match="variant 'ppo'"):
        variant("ppo")
    for kind, given, complaint in (
        (PolicyLoss, {"over": "words"}, "over"),
        (PolicyLoss, {"clip_low": 1.0}, "clip_low"),
        (Rollouts, {"answers": 1}, "answers"),
        (Rollouts, {"temperature": 0.0}, "temperature"),
        (Rollouts, {"overlong": 300}, "overlong"),
        (Rollouts, {"filter_least": 0.95}, "filter_least"),
    ):
        with pytest.raises(UsageError, match=complaint):
            kind(**given)
    with pytest.raises(UsageError, match="data"):
        GrpoSettings(model="m", data=())
    with pytest.raises(UsageError, match="filter_every"):
        judged = (RewardSettings(kind="model", model="runs/judge"),)
        GrpoSettings(model="m", data=("d",), rewards=judged, rollouts=Rollouts(filter_every=5))
    assert GrpoSettings(model="m", data=("d",), steps=7).resolved(1).loop.schedule.steps == 7
