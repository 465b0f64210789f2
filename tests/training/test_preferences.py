"""Preference recipes take the steps that a plain loop over transformers takes, and learn what is preferred."""

from __future__ import annotations

from typing import Any

import pytest

pytest.importorskip("torch", reason="torch is not installed (pip install herd-llama[torch])")
pytest.importorskip("transformers", reason="transformers is not installed (pip install herd-llama[dev])")

import numpy as np
import torch
from torch import Tensor

from herd.data.order import index_at
from herd.data.tokenising import Example
from herd.errors import UsageError
from herd.training.recipes.preferences import Judgement, Pair, Preferences, Reference
from herd.training.recipes.reward_model import RewardModel, RewardTraining
from herd.training.settings.lora import Lora
from herd.training.settings.preferences import PreferenceLoss, PreferenceSettings
from herd.training.signals.answers import answer_begins, behind, in_groups, without_formatting
from herd.training.student.batches import Document
from herd.training.student.model import Student
from tiny import random_leaves, tiny_llama
from training.learning import in_their_layout, their_model

CFG = tiny_llama(width=64, num_layers=1, num_heads=4, num_kv_heads=2, head_width=16, ffn_width=96)
LEAVES = random_leaves(CFG)
SIZE, SEED, LR = 3, 5, 0.05


def example(prompt: int, answer: int, seed: int) -> Example:
    random = np.random.default_rng(seed)
    tokens = tuple(random.integers(4, 300, prompt + answer).tolist())
    return Example(tokens, (0.0,) * prompt + (1.0,) * answer, formatting=(prompt + answer - 1,))


def pair(seed: int) -> Pair:
    chosen, other = example(4 + seed % 3, 3 + seed % 5, seed), example(4 + seed % 3, 2 + seed % 7, seed + 100)
    at = answer_begins(Document(chosen.tokens, chosen.weights))
    return Pair(chosen, Example(chosen.tokens[:at] + other.tokens[at:], other.weights, other.formatting), margin=0.1 * (seed % 3))


PAIRS = [pair(seed) for seed in range(8)]
JUDGEMENTS = [Judgement(each.chosen if index % 2 else each.rejected, bool(index % 2)) for index, each in enumerate(PAIRS)]


def document(example: Example) -> Document:
    return Document(example.tokens, example.weights)


def recipe(loss: PreferenceLoss, dtype: torch.dtype = torch.float64, pack: int = 40, held_out: Any = (), **options: Any) -> Preferences:
    student = Student(CFG, LEAVES.__getitem__, dtype=dtype, **options)
    frozen = None if student.lora is not None else Student(CFG, LEAVES.__getitem__, dtype=dtype)
    items = JUDGEMENTS if loss.method == "kto" else PAIRS
    return Preferences(
        student=student,
        learned=items,
        held_out=held_out,
        document=document,
        loss=loss,
        size=SIZE,
        pack=pack,
        seed=SEED,
        reference=Reference(student, frozen),
    )


def log_sigmoid(x: Tensor) -> Tensor:
    return -torch.log1p(torch.exp(-x))


def theirs_of(model: Any, tokens: tuple[int, ...], weights: tuple[float, ...]) -> Tensor:
    """log p of what carries loss, by transformers."""
    logits = model(torch.tensor([tokens])).logits[0]
    chosen = logits[:-1].log_softmax(-1).gather(1, torch.tensor(tokens[1:])[:, None])[:, 0]
    return (chosen * torch.tensor(weights[1:], dtype=chosen.dtype)).sum()


def masked(example: Example, loss: PreferenceLoss) -> Example:
    return example if loss.formatting else without_formatting(example)


def their_loss(loss: PreferenceLoss, model: Any, before: Any, items: list[Any]) -> Tensor:
    """The mean over a step, in the words of the papers."""
    total = torch.zeros((), dtype=model.dtype)
    if loss.method == "kto":
        return kto_loss(loss, model, before, items)
    for item in items:
        chosen, rejected = masked(item.chosen, loss), masked(item.rejected, loss)
        w, l = (theirs_of(model, each.tokens, each.weights) for each in (chosen, rejected))  # noqa: E741
        with torch.no_grad():
            w0, l0 = (theirs_of(before, each.tokens, each.weights) for each in (chosen, rejected))
        size_w, size_l = sum(chosen.weights), sum(rejected.weights)
        if loss.method == "dpo":
            total = total - log_sigmoid(0.1 * ((w - w0) - (l - l0)) - item.margin) - loss.nll * w / size_w
        elif loss.method == "simpo":
            total = total - log_sigmoid(2.0 * w / size_w - 2.0 * l / size_l - 0.5)
        else:
            p, q = (w / size_w).exp(), (l / size_l).exp()
            total = total - w / size_w - 0.1 * log_sigmoid(torch.log((p / (1 - p)) / (q / (1 - q))))
    return total / len(items)


def kto_loss(loss: PreferenceLoss, model: Any, before: Any, items: list[Any]) -> Tensor:
    documents = [document(masked(item.example, loss)) for item in items]
    crossed = [behind(each, documents[at - 1]) for at, each in enumerate(documents)]
    with torch.no_grad():
        z = sum(theirs_of(model, each.tokens, each.weights) - theirs_of(before, each.tokens, each.weights) for each in crossed)
        start = [theirs_of(before, each.tokens, each.weights) for each in documents]
    z = max(torch.zeros(()), z / len(items))  # type: ignore[assignment, operator]
    total = torch.zeros((), dtype=model.dtype)
    for item, each, then in zip(items, documents, start, strict=True):
        ratio = theirs_of(model, each.tokens, each.weights) - then
        total = total + (1 - torch.sigmoid(0.1 * (ratio - z) * (1 if item.is_good else -1)))
    return total / len(items)


LOSSES = {
    "dpo": PreferenceLoss(nll=0.0, formatting=True),
    "dpo as in Llama 3": PreferenceLoss(),
    "simpo": PreferenceLoss(method="simpo"),
    "orpo": PreferenceLoss(method="orpo"),
    "kto": PreferenceLoss(method="kto"),
}


@pytest.mark.parametrize("name", LOSSES)
def test_steps_are_those_of_a_plain_loop_over_transformers(name: str) -> None:
    """Four steps of gradient descent over all weights: losses to float64, whatever was packed with what; then weights."""
    loss = LOSSES[name]
    ours = recipe(loss)
    model, before = (their_model(CFG, LEAVES, "float64") for _ in range(2))
    for number in range(4):
        items = [ours.learned[index_at(SEED, len(ours.learned), number * SIZE + offset)] for offset in range(SIZE)]
        value = their_loss(loss, model, before, items)
        model.zero_grad()
        value.backward()
        figures = ours.step(number)
        assert abs(figures["loss"] - value.item()) < 1e-6 * abs(value.item()), (number, figures)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter -= LR * parameter.grad
            for parameter in ours.parameters.values():
                assert parameter.grad is not None
                parameter -= LR * parameter.grad
                parameter.grad = None
    now = dict(model.named_parameters())
    for at, values in in_their_layout(CFG, {key: value.detach() for key, value in ours.parameters.items()}).items():
        np.testing.assert_allclose(values, now[at].detach().numpy().reshape(values.shape), atol=2e-6)


@pytest.mark.parametrize("name", ["dpo as in Llama 3", "kto"])
def test_float32_steps_with_low_rank_updates_follow_float64(name: str) -> None:
    found = {}
    for dtype in (torch.float64, torch.float32):
        made = recipe(LOSSES[name], dtype, lora=Lora(rank=4))
        values = []
        for number in range(5):
            values.append(made.step(number)["loss"])
            with torch.no_grad():
                for parameter in made.parameters.values():
                    parameter -= LR * parameter.grad  # type: ignore[operator]
                    parameter.grad = None
        found[dtype] = values
    np.testing.assert_allclose(found[torch.float32], found[torch.float64], rtol=2e-5)
    assert found[torch.float64][0] != found[torch.float64][-1]


def test_a_step_does_not_depend_on_how_it_is_packed() -> None:
    together, apart = recipe(LOSSES["dpo"], pack=10_000), recipe(LOSSES["dpo"], pack=1)
    assert together.step(2)["loss"] == pytest.approx(apart.step(2)["loss"], rel=1e-12)
    for one, other in zip(together.parameters.values(), apart.parameters.values(), strict=True):
        torch.testing.assert_close(one.grad, other.grad, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", LOSSES)
def test_what_is_preferred_is_learned(name: str) -> None:
    made = recipe(LOSSES[name], torch.float32, pack=1000, held_out=JUDGEMENTS if name == "kto" else PAIRS, lora=Lora(rank=8))
    before = made.evaluate(0)
    optimiser = torch.optim.AdamW(list(made.parameters.values()), lr=3e-3)
    for number in range(15):
        made.step(number)
        optimiser.step()
        optimiser.zero_grad()
    after = made.evaluate(15)
    assert after["accuracy"] == 1 and after["loss"] < before["loss"] and after["margin"] > before["margin"]


def test_a_reference_is_asked_for_where_all_weights_are_learned() -> None:
    student = Student(CFG, LEAVES.__getitem__)
    with pytest.raises(UsageError, match="second student"):
        Reference(student)


def test_the_reference_stays_what_it_was() -> None:
    made = recipe(LOSSES["dpo"], torch.float32, lora=Lora(rank=4))
    assert made.reference is not None
    documents = [document(each.chosen) for each in PAIRS]
    before = made.reference(documents)
    with torch.no_grad():
        for parameter in made.parameters.values():
            parameter += 0.1
    assert made.reference(documents) == before


def test_control_tokens_carry_no_loss_unless_asked_for() -> None:
    kept = without_formatting(PAIRS[0].chosen)
    assert kept.weights[-1] == 0 and sum(kept.weights) == sum(PAIRS[0].chosen.weights) - 1


def test_prompts_get_answers_of_others() -> None:
    one, other = Document((1, 2, 3, 4), (0, 0, 1, 1)), Document((9, 8, 7), (0, 1, 1))
    assert behind(one, other) == Document((1, 2, 8, 7), (0, 0, 1, 1))


def test_groups_have_room_and_keep_the_order() -> None:
    assert list(in_groups([3, 3, 3, 9, 1], lambda x: x, 6)) == [[3, 3], [3], [9], [1]]
    assert list(in_groups([], lambda x: x, 6)) == []


def test_a_reward_model_learns_to_tell_answers_apart() -> None:
    model = RewardModel(Student(CFG, LEAVES.__getitem__, lora=Lora(rank=4)))
    training = RewardTraining(model=model, learned=PAIRS, held_out=PAIRS, document=document, size=4, pack=60, seed=1)
    assert training.evaluate(0)["loss"] == pytest.approx(np.mean([np.log1p(np.exp(each.margin)) for each in PAIRS]))
    optimiser = torch.optim.AdamW(list(training.parameters.values()), lr=1e-2)
    for number in range(25):
        training.step(number)
        optimiser.step()
        optimiser.zero_grad()
    found = training.evaluate(25)
    assert found["accuracy"] == 1 and found["loss"] < 0.2
    rewards = model.judge([document(each.chosen) for each in PAIRS], pack=20)
    np.testing.assert_allclose(rewards, model.judge([document(each.chosen) for each in PAIRS], pack=10_000), atol=1e-5)


def test_settings_that_cannot_be_are_refused() -> None:
    for given, complaint in (
        ({"loss": {"method": "ppo"}}, "method"),
        ({"loss": {"label_smoothing": 0.7}}, "label_smoothing"),
        ({"batch": 1, "loss": {"method": "kto"}}, "batch"),
        ({"data": ()}, "data"),
        ({"max_tokens": 1}, "max_tokens"),
    ):
        values: dict[str, Any] = {"model": "m", "data": ("d",), **given}
        with pytest.raises(UsageError, match=complaint):
            PreferenceSettings(**{**values, "loss": PreferenceLoss(**values.get("loss", {}))})
    settings = PreferenceSettings(model="m", data=("d",), batch=4, epochs=2).resolved(10)
    assert settings.loop.schedule.steps == 5 and settings.loop.schedule.lr == 5e-5 and settings.resolved(10) == settings
