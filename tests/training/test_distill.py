"""Distillation: its gradients are those of the plain sums over transformers, a teacher's words survive the disk, students come nearer."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch", reason="torch is not installed (pip install herd-llama[torch])")
pytest.importorskip("transformers", reason="transformers is not installed (pip install herd-llama[dev])")

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from herd.backends.base import BackendOptions
from herd.backends.cpu.backend import CpuBackend
from herd.engine.engine import Engine
from herd.errors import FileProblem, UsageError
from herd.training.recipes.distill import Distillation, EngineTeacher, OnPolicy, taught
from herd.training.settings.distill import DistillSettings, SoftTargets
from herd.training.signals.divergences import SoftWeight
from herd.training.signals.rollouts import EngineSampler, Prompt
from herd.training.signals.teacher_file import LIST, Taught, TeacherFolder, TeacherWriter
from herd.training.student.batches import Document
from herd.training.student.model import Student
from tiny import random_leaves, tiny_llama
from training.learning import documents_of, in_their_layout, their_model

CFG = tiny_llama(width=64, num_layers=1, num_heads=4, num_kv_heads=2, head_width=16, ffn_width=96)
LARGER = tiny_llama(width=96, num_layers=2, num_heads=4, num_kv_heads=2, head_width=24, ffn_width=128)
LEAVES, TEACHER = random_leaves(CFG), random_leaves(LARGER, seed=1)
DOCUMENTS = [each for each in documents_of((9, 14, 5, 20, 7, 11)) if any(each.weights)]


def engine(cfg: Any, leaves: Any) -> Engine:
    backend = CpuBackend(cfg, leaves.__getitem__, BackendOptions(threads=1, activations="float32"), lambda: None)
    return Engine(backend, context_length=128, stop_ids={3}, max_batch=8)


def teacher() -> EngineTeacher:
    return EngineTeacher(engine(LARGER, TEACHER))


def recipe(k: int = 5, dtype: torch.dtype = torch.float64, pack: int = 30, temperature: float = 1.0, **targets: Any) -> Distillation:
    words = list(taught(teacher(), DOCUMENTS, k, temperature))
    return Distillation(
        student=Student(CFG, LEAVES.__getitem__, dtype=dtype),
        learned=words,
        held_out=words[:3],
        targets=SoftTargets(**targets),
        temperature=temperature,
        steps=40,
        size=3,
        pack=pack,
        seed=2,
    )


def grouped_by_hand(row: Tensor, ids: list[int]) -> Tensor:
    rest = [index for index in range(len(row)) if index not in ids]
    return torch.stack([*(row[each] for each in ids), row[rest].sum()])


@pytest.mark.parametrize(("name", "temperature"), [("forward", 1.0), ("reverse", 1.0), ("js", 1.0), ("forward", 2.0)])
def test_loss_and_gradient_are_the_plain_sums_over_transformers(name: str, temperature: float) -> None:
    made = recipe(divergence=name, temperature=temperature, start=0.7, end=0.7)
    figures = made.step(0)
    model = their_model(CFG, LEAVES, "float64")
    from herd.data.order import index_at

    chosen: list[Taught] = [made.learned[index_at(2, len(made.learned), at)] for at in range(3)]
    total = sum(sum(each.document.weights) for each in chosen)
    loss = torch.zeros((), dtype=torch.float64)
    for each in chosen:
        logits = model(torch.tensor([each.document.tokens])).logits[0]
        rows = [at for at, weight in enumerate(each.document.weights) if weight]
        for row, at in enumerate(rows):
            weight, target = each.document.weights[at], each.document.tokens[at]
            p = each.logprobs_RK1[row].double().exp()
            q = grouped_by_hand((logits[at - 1] / temperature).softmax(-1), each.ids_RK[row].tolist())
            if name == "forward":
                far = (p * (p / q).log()).sum()
            elif name == "reverse":
                far = (q * (q / p).log()).sum()
            else:
                m = (p + q) / 2
                far = 0.5 * (p * (p / m).log()).sum() + 0.5 * (q * (q / m).log()).sum()
            loss = loss + weight * (0.7 * temperature**2 * far - 0.3 * logits[at - 1].log_softmax(-1)[target]) / total
    loss.backward()  # type: ignore[no-untyped-call]
    assert abs(figures["loss"] - loss.item()) < 1e-6
    theirs = dict(model.named_parameters())
    for at_name, values in in_their_layout(CFG, {key: each.grad for key, each in made.parameters.items()}).items():
        exact = theirs[at_name].grad.numpy().reshape(values.shape)
        np.testing.assert_allclose(values, exact, atol=3e-6 * max(1.0, abs(exact).max()))


def test_float32_and_other_packs_give_the_same_step() -> None:
    exact, single, packed = recipe(), recipe(dtype=torch.float32), recipe(pack=1)
    values = [each.step(1)["loss"] for each in (exact, single, packed)]
    np.testing.assert_allclose(values[1:], values[0], rtol=2e-5)


def test_the_weight_of_the_teacher_changes_over_the_run() -> None:
    made = recipe(start=1.0, end=0.0)
    assert made.weight == SoftWeight(start=1.0, end=0.0)
    assert made.step(0)["soft"] == 1 and made.step(39)["soft"] == 0


def test_a_student_comes_nearer_to_its_teacher() -> None:
    made = recipe(k=16, dtype=torch.float32, start=1.0, end=1.0)
    before = made.evaluate(0)
    optimiser = torch.optim.AdamW(list(made.parameters.values()), lr=3e-3)
    for number in range(30):
        made.step(number)
        optimiser.step()
        optimiser.zero_grad()
    assert made.evaluate(30)["divergence"] < 0.3 * before["divergence"]


@pytest.mark.parametrize("k", [0, 8])
def test_on_its_own_answers_a_student_comes_nearer_too(k: int) -> None:
    prompts = [Prompt(tuple(range(10 + at, 14 + at))) for at in range(4)]
    made = OnPolicy(
        student=Student(CFG, LEAVES.__getitem__),
        sampler=EngineSampler(engine(CFG, LEAVES)),
        teacher=teacher(),
        learned=prompts,
        held_out=prompts,
        targets=SoftTargets(divergence="reverse"),
        k=k,
        size=2,
        answers=2,
        max_tokens=6,
        pack=60,
        seed=1,
    )
    before = made.evaluate(0)["loss"]
    optimiser = torch.optim.AdamW(list(made.parameters.values()), lr=3e-3)
    for number in range(25):
        figures = made.step(number)
        assert figures["gap_most"] < 1e-3
        optimiser.step()
        optimiser.zero_grad()
    assert made.evaluate(25)["loss"] < 0.9 * before


def test_another_vocabulary_is_refused() -> None:
    class Other:
        vocabulary = 5

        def logits(self, document: Document) -> Tensor:
            raise AssertionError

    with pytest.raises(UsageError, match="vocabulary has 5 tokens and the student's 320"):
        OnPolicy(
            student=Student(CFG, LEAVES.__getitem__), sampler=EngineSampler(engine(CFG, LEAVES)), teacher=Other(), learned=[], held_out=[],
            targets=SoftTargets(), k=0, size=1, answers=1, max_tokens=4, pack=9, seed=0,
        )  # fmt: skip


def written(folder: Path) -> list[Taught]:
    words = list(taught(teacher(), DOCUMENTS, 5))
    writer = TeacherWriter(folder, k=5, temperature=1.0, vocabulary=320, teacher="tiny")
    for each in words:
        writer.add(each)
    writer.finish()
    return words


def test_a_teachers_words_survive_the_disk(tmp_path: Path) -> None:
    words = written(tmp_path / "words")
    found = TeacherFolder(tmp_path / "words")
    assert (found.k, found.vocabulary, found.teacher, found.num_documents) == (5, 320, "tiny", len(words))
    for one, other in zip(words, found.read(), strict=True):
        assert one.document == other.document and one.ids_RK.equal(other.ids_RK)
        torch.testing.assert_close(one.logprobs_RK1, other.logprobs_RK1, rtol=2e-3, atol=2e-3)
        torch.testing.assert_close(other.logprobs_RK1.exp().sum(1), torch.ones(len(other.ids_RK)))
    with pytest.raises(UsageError, match="already"):
        TeacherWriter(tmp_path / "words", k=5, temperature=1.0, vocabulary=320, teacher="tiny")


def rewritten(folder: Path, change: Callable[[dict[str, Tensor]], None]) -> None:
    """A shard with other tensors and a list that fits it."""
    import hashlib

    path = folder / "shard-00000.safetensors"
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path)
    about = json.loads((folder / LIST).read_text())
    data = path.read_bytes()
    about["shards"][0] |= {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    (folder / LIST).write_text(json.dumps(about))


CHANGES: dict[str, tuple[Callable[[dict[str, Tensor]], Any], str]] = {
    "an id too large": (lambda t: t["ids"].fill_(320), "outside of the vocabulary"),
    "a token below zero": (lambda t: t["tokens"].fill_(-1), "outside of the vocabulary"),
    "no distribution": (lambda t: t["logprobs"].fill_(-9.0), "is no distribution"),
    "not a number": (lambda t: t["logprobs"].fill_(float("nan")), "is no distribution"),
    "weights without end": (lambda t: t["weights"].mul_(float("inf")), "shape|not finite"),
    "lengths that do not add up": (lambda t: t["lengths"].fill_(3), "do not add up"),
    "another type": (lambda t: t.update(ids=t["ids"].to(torch.int64)), "should hold ids"),
    "another name": (lambda t: t.update(more=torch.zeros(1)), "'more'"),
    "fewer rows": (lambda t: t.update(ids=t["ids"][1:].contiguous()), "ids has the shape"),
}


@pytest.mark.parametrize("name", CHANGES)
def test_shards_that_are_not_as_they_should_be_are_refused(name: str, tmp_path: Path) -> None:
    written(tmp_path)
    change, complaint = CHANGES[name]
    rewritten(tmp_path, change)
    with pytest.raises(FileProblem, match=complaint):
        list(TeacherFolder(tmp_path).read())


def test_damaged_folders_are_refused(tmp_path: Path) -> None:
    with pytest.raises(FileProblem, match="no teacher's words"):
        TeacherFolder(tmp_path)
    written(tmp_path)
    path, about = tmp_path / "shard-00000.safetensors", (tmp_path / LIST).read_text()
    for change, complaint in (
        (about.replace("shard-00000", "../shard-00000"), "cannot be"),
        (about.replace('"version": 1', '"version": 2'), "version 1"),
        (about.replace('"k": 5', '"k": true'), "k is True"),
        (about.replace('"temperature": 1.0', '"temperature": "x"'), "temperature is 'x'"),
        (about.replace('"temperature": 1.0', '"temperature": []'), r"temperature is \[\]"),
        (about.replace('"temperature": 1.0', '"temperature": NaN'), "temperature is nan"),
        (about.replace('"made_of": {}', '"made_of": {"data": 1}'), "made_of is"),
        ("{", "not JSON"),
        ("[]", "version 1"),
    ):
        (tmp_path / LIST).write_text(change)
        with pytest.raises(FileProblem, match=complaint):
            TeacherFolder(tmp_path)
    (tmp_path / LIST).write_text(about)
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(FileProblem, match="SHA-256"):
        list(TeacherFolder(tmp_path).read())
    path.write_bytes(data[:-5])
    with pytest.raises(FileProblem, match="cut or changed"):
        list(TeacherFolder(tmp_path).read())


def test_settings_that_cannot_be_are_refused() -> None:
    for given, complaint in (
        ({"way": "online"}, "way"),
        ({"k": 0}, "k"),
        ({"temperature": 0.0}, "temperature"),
        ({"data": ()}, "data"),
    ):
        with pytest.raises(UsageError, match=complaint):
            DistillSettings(**{"model": "m", "teacher": "t", "data": ("d",), **given})
    with pytest.raises(UsageError, match="divergence"):
        SoftTargets(divergence="kl")
