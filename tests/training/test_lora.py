"""Low-rank updates: losses, slopes and 50 steps of AdamW as `peft` has them; what is dropped, quantised or put together."""

from __future__ import annotations

from typing import Any

import pytest

pytest.importorskip("torch", reason="torch is not installed (pip install herd-llama[torch])")

import torch

from conformance.architectures import ARCHITECTURES
from conformance.llama4 import LLAMA4
from conformance.running import logits_of, make_backend, whole
from herd import dtypes
from herd.errors import UsageError
from herd.models.architecture import Config, architecture_of
from herd.training.settings.lora import Lora
from herd.training.student.batches import batch_of
from herd.training.student.lora import targeted
from herd.training.student.model import Student
from tiny import random_leaves, tiny_llama, tiny_llama3_vision
from training.learning import documents_of, halved, loss_of, randomise, their_loss, their_model, their_module, their_updates

KINDS = {"LoRA": Lora(4, 7.0), "rsLoRA": Lora(4, 7.0, stabilised=True), "DoRA": Lora(4, 7.0, dora=True)}
CONFIGS: dict[str, Config] = {
    "tied, grouped-query": ARCHITECTURES["llama-3.2 (tied)"],
    "every bias": ARCHITECTURES["every bias"],
    "llama 4": LLAMA4["llama-4 scout"],
}
DOCUMENTS = documents_of((5, 31, 2, 18), seed=1)
SMALL = tiny_llama(num_layers=1, qkv_bias=True, out_bias=True)


def with_peft(student: Student, model: Any) -> Any:
    """The same updates in `peft`, with the student's values."""
    peft = pytest.importorskip("peft", reason="peft is not installed (pip install herd-llama[dev])")
    lora = student.lora
    assert lora is not None
    config = peft.LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,
        use_rslora=lora.stabilised,
        use_dora=lora.dora,
        target_modules=[their_module(student.cfg, learned.name) for learned in student.adapters.of.values()],
    )
    theirs = peft.get_peft_model(model, config, autocast_adapter_dtype=False)
    with torch.no_grad():
        for values, parameter in their_updates(student, theirs).values():
            parameter.copy_(values)
    return theirs


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")  # peft asks transformers so
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", CONFIGS)
def test_loss_and_slopes_equal_those_of_peft(name: str, kind: str) -> None:
    cfg = CONFIGS[name]
    leaves = random_leaves(cfg)
    student = Student(cfg, leaves.__getitem__, dtype=torch.float64, lora=KINDS[kind])
    randomise(student)
    theirs = with_peft(student, their_model(cfg, leaves, "float64"))
    exact = their_loss(theirs, DOCUMENTS)
    exact.backward()
    loss = loss_of(student, batch_of(DOCUMENTS))
    loss.backward()
    assert abs(loss.item() - exact.item()) < 1e-9 * exact.item()
    for at, (_, parameter) in their_updates(student, theirs).items():
        ours = student.parameters[at].grad
        assert ours is not None and parameter.grad is not None
        spec = student.specs[at.rpartition(".")[0]]
        slope = ours if at.endswith(".down") else halved(ours, spec)
        assert float((slope - parameter.grad).abs().max()) < 1e-7 * float(parameter.grad.abs().max()), at


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")
@pytest.mark.parametrize("kind", ["LoRA", pytest.param("DoRA", marks=pytest.mark.slow)])
def test_fifty_steps_of_adamw_in_float32_follow_pefts_curve(kind: str) -> None:
    leaves = random_leaves(SMALL)
    student = Student(SMALL, leaves.__getitem__, lora=KINDS[kind])
    theirs = with_peft(student, their_model(SMALL, leaves, "float32"))
    learned = [parameter for _, parameter in their_updates(student, theirs).values()]
    settings: dict[str, Any] = {"lr": 2e-3, "betas": (0.9, 0.95), "weight_decay": 0.1}
    ours, other = torch.optim.AdamW(student.parameters.values(), **settings), torch.optim.AdamW(learned, **settings)
    curves = []
    for step in range(50):
        documents = documents_of((7, 12), seed=step % 5)
        losses = loss_of(student, batch_of(documents)), their_loss(theirs, documents)
        for loss, optimiser in zip(losses, (ours, other), strict=True):
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
        curves.append([loss.item() for loss in losses])
    found = torch.tensor(curves)
    assert float(found[:5].mean() - found[-5:].mean()) > 0.5, "something was learned"
    assert float((found[:, 0] - found[:, 1]).abs().max()) < 2e-3


def test_learning_begins_at_the_base_model_and_depends_on_seed_and_name_alone() -> None:
    leaves = random_leaves(SMALL)
    batch = batch_of(DOCUMENTS)
    base = Student(SMALL, leaves.__getitem__).logprobs(batch)
    one, same, other = (Student(SMALL, leaves.__getitem__, lora=Lora(4), seed=seed) for seed in (3, 3, 4))
    assert torch.allclose(one.logprobs(batch), base, atol=1e-4)
    part = Student(SMALL, leaves.__getitem__, lora=Lora(4, targets=("ffn.up",)), seed=3)
    down = "layers.0.ffn.up.down"
    assert torch.equal(one.parameters[down], same.parameters[down]) and torch.equal(one.parameters[down], part.parameters[down])
    assert not torch.equal(one.parameters[down], other.parameters[down])
    bound = SMALL.width**-0.5
    values = one.parameters[down].detach()
    assert float(values.abs().max()) <= bound and float(values.std()) > bound / 2


def test_the_reference_is_the_model_without_its_updates() -> None:
    leaves = random_leaves(SMALL)
    student = Student(SMALL, leaves.__getitem__, lora=KINDS["DoRA"])
    batch = batch_of(DOCUMENTS)
    before = student.logprobs(batch)
    randomise(student)
    assert not torch.allclose(student.logprobs(batch), before, atol=0.1)
    with student.without_adapters(), torch.no_grad():
        assert torch.allclose(student.logprobs(batch), before, atol=1e-4)
    with pytest.raises(UsageError, match="keep a second student"):
        Student(SMALL, leaves.__getitem__).without_adapters()


def test_what_is_dropped_depends_on_the_step_and_on_nothing_else() -> None:
    leaves = random_leaves(SMALL)
    student = Student(SMALL, leaves.__getitem__, lora=Lora(4, dropout=0.3))
    randomise(student)
    batch = batch_of(DOCUMENTS)

    def at(step: int, part: int = 0) -> torch.Tensor:
        student.begin(step, part)
        return student.logprobs(batch).detach()

    first = at(5)
    assert torch.equal(at(5), first) and not torch.equal(at(6), first) and not torch.equal(at(5, 1), first)
    student.rest()
    whole_model = student.logprobs(batch).detach()
    none = Student(SMALL, leaves.__getitem__, lora=Lora(4))
    randomise(none)
    assert torch.equal(whole_model, none.logprobs(batch).detach())
    mean = torch.stack([at(step) for step in range(60)]).mean(dim=0)
    assert float((mean - whole_model).abs().mean()) < float((first - whole_model).abs().mean()) / 2


@pytest.mark.parametrize("dtype", [dtypes.Q4_0, dtypes.Q4_K, dtypes.IQ4_NL, dtypes.Q8_0], ids=lambda dtype: dtype.name)
def test_updates_over_blocks_learn_as_over_what_the_blocks_stand_for(dtype: dtypes.DType) -> None:
    """QLoRA: the base stays as it is stored."""
    stored = random_leaves(SMALL, dtype=dtype)
    student = Student(SMALL, stored.__getitem__, dtype=torch.float64, lora=Lora(4))
    plain = Student(SMALL, stored.__getitem__, dtype=torch.float64)
    decoded = plain.leaves(dtypes.F32)
    other = Student(SMALL, decoded.__getitem__, dtype=torch.float64, lora=Lora(4))
    batch = batch_of(DOCUMENTS)
    for each in (student, other):
        randomise(each)
        loss_of(each, batch).backward()
    for name, parameter in student.parameters.items():
        slope = other.parameters[name].grad
        assert parameter.grad is not None and slope is not None
        assert float((parameter.grad - slope).abs().max()) < 1e-5 * float(slope.abs().max())
    assert student.tensors.decoded_bytes == 0


def test_targets_are_ends_of_names_and_strange_ones_are_refused() -> None:
    specs = list(architecture_of(SMALL).tensors(SMALL))
    assert [spec.name for spec in targeted(specs, ("q", "ffn.up"))] == ["layers.0.attention.q", "layers.0.ffn.up"]
    assert len(targeted(specs, ("all",))) == 7
    with pytest.raises(UsageError, match="'q_proj' is no matrix"):
        targeted(specs, ("q_proj",))
    seeing = list(architecture_of(tiny_llama3_vision()).tensors(tiny_llama3_vision()))
    assert not any(spec.name.startswith("vision") for spec in targeted(seeing, ("all",)))
    with pytest.raises(UsageError, match=r"lora\.rank is 0"):
        Lora(0)


@pytest.mark.parametrize("kind", KINDS)
def test_merged_weights_are_the_base_with_its_updates(kind: str) -> None:
    cfg = ARCHITECTURES["every bias"]
    leaves = random_leaves(cfg)
    student = Student(cfg, leaves.__getitem__, dtype=torch.float64, lora=KINDS[kind])
    randomise(student)
    batch = batch_of(DOCUMENTS)
    merged = {learned.name: student.merged(learned) for learned in student.adapters.of.values()}
    plain = Student(cfg, leaves.__getitem__, dtype=torch.float64)
    with torch.no_grad():
        for name, values in merged.items():
            plain.parameters[name].copy_(values)
    assert torch.allclose(plain.logprobs(batch), student.logprobs(batch), atol=1e-9)


@pytest.mark.parametrize("backend", ["cpu", "torch", "reference"])
@pytest.mark.parametrize("kind", ["all weights", "LoRA", "DoRA"])
def test_a_running_model_takes_what_was_learned(kind: str, backend: str) -> None:
    """`leaves` through `update`, and `updates` as an adapter: the engine's log-probabilities are the trainer's."""
    leaves = random_leaves(SMALL)
    student = Student(SMALL, leaves.__getitem__, lora=KINDS.get(kind))
    randomise(student)
    if kind == "all weights":
        with torch.no_grad():
            for name, parameter in student.parameters.items():
                parameter.add_(0.05 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(len(name))))
    tokens = list(DOCUMENTS[1].tokens)
    runner = make_backend(backend, SMALL, leaves, activations="float32")
    before = torch.from_numpy(logits_of(runner, whole(tokens))).log_softmax(dim=-1)
    runner.update(student.leaves())
    found = torch.from_numpy(logits_of(runner, whole(tokens))).log_softmax(dim=-1)
    batch = batch_of([DOCUMENTS[1]])
    ours = student.logits(batch).detach().log_softmax(dim=-1)
    assert float((found[batch.rows_R] - ours).abs().max()) < 1e-3
    assert float((before[batch.rows_R] - ours).abs().max()) > 0.1
