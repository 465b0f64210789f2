"""Pretraining: the same steps as transformers takes, for models with and without experts; what a step is made of; stages."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from herd.convert.trained import write_trained
from herd.errors import UsageError
from herd.models.architecture import Config
from herd.models.llama4 import every
from herd.models.rope import Linear, Rope
from herd.models.weights import Kind
from herd.training.beginning.initialising import initial_leaf
from herd.training.recipes.co_distillation import Teacher
from herd.training.recipes.pretrain import Pretraining
from herd.training.running.optim import kinds_of, make_optimiser
from herd.training.schedules import Schedule
from herd.training.settings.loop import LoopSettings
from herd.training.settings.optimiser import OptimiserSettings
from herd.training.settings.pretrain import (
    BalancingSettings,
    PretrainSettings,
    RopeSettings,
    SourceSettings,
    StageSettings,
    TeacherSettings,
)
from herd.training.sources.corpus import Corpus
from herd.training.sources.mixing import Mixture, Text
from herd.training.student.batches import Document, batch_of
from herd.training.student.model import Student
from tiny import tiny_llama, tiny_llama4

VOCABULARY, LENGTH = 64, 24
SMALL: dict[str, Any] = {"width": 32, "num_heads": 4, "head_width": 8, "ffn_width": 64, "vocab_size": VOCABULARY, "rope": Rope(10000.0, 8)}
LR = 1e-2


def small_llama() -> Config:
    return tiny_llama(**SMALL)


def small_llama4(**changes: Any) -> Config:
    return tiny_llama4(**{**SMALL, "expert_width": 32, "chunk": 8, "temper_floor": 4.0, **changes})


def corpus(count: int = 40, seed: int = 0) -> Corpus:
    """Documents as long as a sequence, in which most tokens follow from the one before."""
    random = np.random.default_rng(seed)
    steps = np.where(random.random((count, LENGTH)) < 0.8, 1, random.integers(2, VOCABULARY, (count, LENGTH)))
    tokens = (random.integers(0, VOCABULARY, (count, 1)) + np.cumsum(steps, axis=1)) % VOCABULARY
    return Corpus(tokens.astype(np.uint32).reshape(-1), np.arange(0, count * LENGTH, LENGTH))


def settings(steps: int = 3, **changes: Any) -> PretrainSettings:
    given: dict[str, Any] = {
        "data": (SourceSettings(name="text", path=(Path("a.txt"),)),),
        "sequence": LENGTH,
        "batch_tokens": 4 * LENGTH,
        "optimiser": OptimiserSettings(weight_decay=0.1),
        "balancing": BalancingSettings(bias=0),
        "loop": LoopSettings(schedule=Schedule(name="constant", lr=LR, steps=steps)),
        **changes,
    }
    return PretrainSettings(**given)


def recipe(cfg: Config, given: PretrainSettings, teacher: Teacher | None = None, std: float = 0.02) -> Pretraining:
    student = Student(cfg, initial_leaf(cfg, 7))
    mixture = Mixture([Text("text", corpus(), corpus(8, 1), 0, False)], given)
    return Pretraining(student, mixture, given, teacher)


def learn(made: Pretraining, cfg: Config, steps: int, given: PretrainSettings) -> list[dict[str, float]]:
    optimiser = make_optimiser(given.optimiser, kinds_of(cfg, made.parameters))
    found = []
    for step in range(steps):
        for parameter in made.parameters.values():
            parameter.grad = None
        found.append(made.step(step))
        optimiser.step(made.parameters, LR)
    return found


@pytest.mark.parametrize("cfg", [small_llama(), small_llama4()], ids=["llama", "llama4"])
def test_steps_of_pretraining_are_those_of_transformers(cfg: Config, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    given = settings()
    ours = recipe(cfg, given)
    leaf = initial_leaf(cfg, 7)
    write_trained(tmp_path / "model", cfg, {name: leaf(name) for name in ours.parameters})
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "model", dtype=torch.float32, attn_implementation="eager")
    groups = [
        {"params": [each for each in theirs.parameters() if each.dim() > 1], "weight_decay": 0.1},
        {"params": [each for each in theirs.parameters() if each.dim() == 1], "weight_decay": 0.0},
    ]
    optimiser = torch.optim.AdamW(groups, lr=LR, betas=(0.9, 0.95), eps=1e-8)
    found = learn(ours, cfg, 3, given)
    for step, figures in enumerate(found):
        documents = [each.tokens for _, documents in ours._mixture.sequences(step) for each in documents]
        rows = torch.tensor(documents)
        logits = theirs(rows, use_cache=False).logits[:, :-1].flatten(0, 1)
        loss = torch.nn.functional.cross_entropy(logits, rows[:, 1:].flatten())
        assert figures["loss"] == pytest.approx(loss.item(), rel=2e-6)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()


def test_a_step_does_not_depend_on_how_many_tokens_are_computed_at_once() -> None:
    cfg = small_llama4()
    whole, parts = (recipe(cfg, settings(balancing=BalancingSettings(bias=0.01), micro_tokens=most)) for most in (0, LENGTH))
    assert whole.step(0) == pytest.approx(parts.step(0), rel=1e-5)
    for name, parameter in whole.parameters.items():
        other = parts.parameters[name].grad
        assert parameter.grad is not None and other is not None
        assert (parameter.grad - other).norm() <= 1e-5 * parameter.grad.norm()


def test_layers_that_are_computed_twice_give_the_same_gradients_with_biases_of_experts() -> None:
    cfg = small_llama4()
    once, twice = (recipe(cfg, settings(balancing=BalancingSettings(bias=0.5, loss=0.1), recompute=again)) for again in (False, True))
    for made in (once, twice):
        made._balance.biases["layers.1"][0] = 3.0
        assert made.step(0)["expert_load_max"] == pytest.approx(4.0)
    for name, parameter in once.parameters.items():
        other = twice.parameters[name].grad
        assert parameter.grad is not None and other is not None and torch.equal(parameter.grad, other)


def test_the_z_loss_is_a_weight_times_the_square_of_the_softmaxs_sum() -> None:
    cfg = small_llama()
    plain, with_z = recipe(cfg, settings()), recipe(cfg, settings(z_loss=0.1))
    with_z._student.parameters["head"].data.mul_(30)
    plain._student.parameters["head"].data.mul_(30)
    figures = with_z.step(0)
    assert figures["loss"] == pytest.approx(plain.step(0)["loss"], rel=1e-6) and figures["z"] > 1
    made = with_z._student
    head = made.parameters["head"]
    found = head.grad
    head.grad = None
    batch = batch_of([each for _, documents in with_z._mixture.sequences(0) for each in documents])
    logits = made.logits(batch)
    lse = logits.logsumexp(-1)
    loss = (lse - logits.gather(1, batch.targets_R[:, None])[:, 0]).mean() + 0.1 * lse.square().mean()
    loss.backward()  # type: ignore[no-untyped-call]
    assert head.grad is not None and found is not None and torch.allclose(head.grad, found, rtol=1e-4, atol=1e-7)


def test_the_loss_goes_down_and_the_held_out_loss_with_it() -> None:
    cfg = small_llama4()
    given = settings(30)
    made = recipe(cfg, given)
    before = made.evaluate(0)
    figures = learn(made, cfg, 30, given)
    after = made.evaluate(30)
    assert figures[-1]["loss"] < figures[0]["loss"] - 0.5 and after["loss"] < before["loss"] - 0.5
    assert after["tokens"] == 8 * (LENGTH - 1)


def test_a_step_is_a_function_of_seed_and_number_alone() -> None:
    cfg = small_llama4()
    first, second = recipe(cfg, settings()), recipe(cfg, settings())
    assert first.step(1) == second.step(1)
    assert all(torch.equal(a.grad, b.grad) for a, b in zip(first.parameters.values(), second.parameters.values(), strict=True))  # type: ignore[arg-type]


def test_stages_change_length_rotation_and_mix() -> None:
    cfg = small_llama()
    data = (SourceSettings(name="a", path=(Path("a"),)), SourceSettings(name="b", path=(Path("b"),), weight=3))
    stages = (
        StageSettings(steps=2, mix={"b": 0}),
        StageSettings(steps=2, sequence=2 * LENGTH, rope=RopeSettings(kind="linear", factor=2.0), mix={"a": 0}),
    )
    given = settings(4, data=data, stages=stages)
    student = Student(cfg, initial_leaf(cfg, 7))
    mixture = Mixture([Text(name, corpus(seed=seed), corpus(8, 3), 0, True) for name, seed in (("a", 0), ("b", 1))], given)
    made = Pretraining(student, mixture, given)
    assert [{name for name, _ in mixture.sequences(step)} for step in range(4)] == [{"a"}, {"a"}, {"b"}, {"b"}]
    assert [len(documents[0].tokens) for _, documents in mixture.sequences(3)] == [2 * LENGTH] * 2
    made.step(1)
    assert made._student.cfg == cfg
    made.step(2)
    assert made._student.cfg.rope == Rope(10000.0, 8, Linear(2.0))  # type: ignore[attr-defined]


def test_every_sequence_of_an_epoch_is_learned_once_before_any_is_learned_twice() -> None:
    given = settings(20)
    mixture = Mixture([Text("text", corpus(), corpus(8, 1), 0, False)], given)
    seen = [documents[0].tokens for step in range(20) for _, documents in mixture.sequences(step)]
    assert len(set(seen[:40])) == 40 and sorted(seen[:40]) == sorted(seen[40:]) and seen[:40] != seen[40:]


def test_shares_of_sources_are_those_of_the_mix() -> None:
    data = (SourceSettings(name="a", path=(Path("a"),)), SourceSettings(name="b", path=(Path("b"),), weight=3))
    mixture = Mixture([Text(name, corpus(), corpus(), 0, True) for name in "ab"], settings(500, data=data))
    names = [name for step in range(500) for name, _ in mixture.sequences(step)]
    assert names.count("b") / len(names) == pytest.approx(0.75, abs=1 / len(names))


def test_a_source_goes_on_after_the_tokens_that_it_has_had_where_lengths_change() -> None:
    data = tuple(SourceSettings(name=name, path=(Path(name),)) for name in "ab")
    stages = tuple(StageSettings(steps=3, sequence=length) for length in (LENGTH, 2 * LENGTH, LENGTH))
    asked: dict[str, list[tuple[int, int]]] = {"a": [], "b": []}

    @dataclass
    class Listening:
        name: str

        def learned(self, position: int, length: int) -> list[Document]:
            asked[self.name].append((position, length))
            return []

        def held_out(self, length: int, tokens: int) -> Iterator[list[Document]]:
            return iter(())

    mixture = Mixture([Listening(name) for name in "ab"], settings(9, data=data, stages=stages))
    for step in range(9):
        mixture.sequences(step)
    for places in asked.values():
        end = 0
        for position, length in places:
            assert end <= position * length < end + length
            end = (position + 1) * length
    last, again = list(asked["a"]), mixture.sequences(8)
    assert len(again) == mixture.per_step(stages[2]) and asked["a"][: len(last)] == last


def test_a_teacher_that_is_ahead_pulls_and_one_that_is_not_does_not() -> None:
    cfg = small_llama()
    taught = settings(40)
    made = recipe(cfg, taught)
    learn(made, cfg, 40, taught)
    leaves = made._student.leaves()
    teacher = Teacher(cfg, leaves.__getitem__, torch.device("cpu"), torch.float32)
    with_teacher = settings(3, teacher=TeacherSettings(model="it", share=0.8, last_share=0.2))
    figures = learn(recipe(cfg, with_teacher, teacher), cfg, 3, with_teacher)
    assert 0.1 < figures[0]["soft_share"] < 0.8 and figures[0]["soft"] > 0.1
    itself = Pretraining(made._student, made._mixture, with_teacher, teacher)
    alike = itself.step(0)
    assert alike["soft"] == pytest.approx(0, abs=1e-6) and alike["soft_share"] == pytest.approx(0, abs=1e-5)


def test_the_blend_with_a_teacher_is_the_formula() -> None:
    cfg = small_llama()
    given = settings(3, teacher=TeacherSettings(model="it", share=0.6, last_share=0.6, temperature=2.0, by_gap=False))
    leaf = initial_leaf(cfg, 11)
    made = recipe(cfg, given, Teacher(cfg, leaf, torch.device("cpu"), torch.float32))
    figures = made.step(0)
    batch = batch_of([each for _, documents in made._mixture.sequences(0) for each in documents])
    ours, theirs = made._student.logits(batch).double(), Student(cfg, leaf).logits(batch).double()
    p, q = torch.log_softmax(ours / 2, -1), torch.log_softmax(theirs / 2, -1)
    soft = 4 * (q.exp() * (q - p)).sum(-1).mean()
    hard = -torch.log_softmax(ours, -1).gather(1, batch.targets_R[:, None]).mean()
    assert figures["soft"] == pytest.approx(soft.item(), rel=1e-4) and figures["loss"] == pytest.approx(hard.item(), rel=1e-6)
    gradient = made.parameters["head"].grad
    made.parameters["head"].grad = None
    (0.4 * hard + 0.6 * soft).backward()
    assert gradient is not None and made.parameters["head"].grad is not None
    assert torch.allclose(gradient, made.parameters["head"].grad, rtol=1e-4, atol=1e-8)


def test_weights_begin_as_transformers_begins_them() -> None:
    cfg = tiny_llama4(expert_layers=every(2, 4))
    leaf = initial_leaf(cfg, 3)
    made = Student(cfg, leaf)
    for name, parameter in made.parameters.items():
        if made.specs[name].kind is Kind.NORM:
            assert (parameter == 1).all()
        else:
            assert parameter.std().item() == pytest.approx(0.02, rel=0.05) and abs(parameter.mean().item()) < 1e-3
    again = Student(cfg, initial_leaf(cfg, 3))
    assert all(torch.equal(again.parameters[name], each) for name, each in made.parameters.items())
    assert not torch.equal(made.parameters["layers.0.attention.q"], made.parameters["layers.1.attention.q"])


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"stages": (StageSettings(steps=2),)}, "The stages have 2 steps together; loop.schedule.steps is 3"),
        ({"stages": (StageSettings(steps=3, mix={"txt": 1.0}),)}, "did you mean 'text'"),
        ({"batch_tokens": 5}, "at least a sequence, 24"),
        ({"begin": "x", "model": replace(PretrainSettings().model, width=32)}, "leave model.like and model.width out"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        settings(**changes)
