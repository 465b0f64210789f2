"""Llama 3.2 Vision learns as in `transformers`: slopes of text, crossing layers, projector and encoder, of all weights and of updates."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch", reason="torch is not installed (pip install herd-llama[torch])")
pytest.importorskip("transformers", reason="transformers is not installed (pip install herd-llama[dev])")

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from conformance.llama3_vision_texts import CFG, SEES, TEXTS, placed
from conformance.mllama_in_transformers import given_with, model_in
from herd.checkpoints import open_checkpoint
from herd.checkpoints.checkpoint import Checkpoint
from herd.checkpoints.mllama_places import shapes_of_pictures
from herd.training.settings.lora import Lora
from herd.training.student.batches import Document, batch_of
from herd.training.student.checkpointing import recomputed
from herd.training.student.model import Student
from training.learning import loss_of

NAMES = ("text before the picture", "no picture", "two pictures with text between", "two pictures in a row")
TABLES = {
    "vision.tile_positions": "gated_positional_embedding.tile_embedding",
    "vision.before": "pre_tile_positional_embedding.embedding",
    "vision.after": "post_tile_positional_embedding.embedding",
}
"""Our grids of places, and the tables that write them out once for each shape of picture."""


def documents() -> list[Document]:
    made = []
    for at, name in enumerate(NAMES):
        tokens, pictures = TEXTS[name]
        weights = np.random.default_rng(at).choice([0.0, 1.0, 0.5], len(tokens)) * [
            index > 0 and token != SEES for index, token in enumerate(tokens)
        ]
        made.append(Document(tuple(tokens), tuple(weights.tolist()), placed(tokens, pictures)))
    return made


@pytest.fixture(scope="module")
def learned(tmp_path_factory: pytest.TempPathFactory) -> tuple[Checkpoint, float, dict[str, NDArray[np.float64]]]:
    """The model, and in our layout the loss and slopes that transformers has, document by document, in float64."""
    model = model_in(folder := tmp_path_factory.mktemp("mllama"))
    total, count = torch.zeros((), dtype=torch.float64), 0.0
    for each in documents():
        logits = model(torch.tensor([each.tokens]), **given_with(each.tokens, each.pictures)).logits[0]
        weights = torch.tensor(each.weights[1:], dtype=torch.float64)
        targets = torch.tensor(each.tokens[1:]).clamp(max=CFG.vocab_size - 1)  # the picture token is no answer, and weighs nothing
        chosen = logits[:-1].log_softmax(-1).gather(1, targets[:, None])[:, 0]
        total, count = total - (chosen * weights).sum(), count + float(weights.sum())
    loss = total / count
    loss.backward()  # type: ignore[no-untyped-call]
    slopes = _in_our_layout(model, tmp_path_factory.mktemp("slopes"))
    return open_checkpoint(folder), loss.item(), slopes


def _in_our_layout(model: Any, folder: Path) -> dict[str, NDArray[np.float64]]:
    """Their slopes, read as if they were weights: a layout is a matter of order. A place has the sum of its copies."""
    eye, most = model.model.vision_model, CFG.vision.max_tiles
    found: dict[str, NDArray[np.float64]] = {}
    for name, place in TABLES.items():
        table = eye.get_submodule(place).weight
        grid = torch.zeros((most, most, table.shape[1] // most), dtype=torch.float64)
        for number, (rows, columns) in enumerate(shapes_of_pictures(most)):
            grid[:rows, :columns] += table.grad[number + 1].reshape(most, -1)[: rows * columns].reshape(rows, columns, -1)
        found[name] = grid.reshape(-1, CFG.vision.width).numpy()
        table.grad.zero_()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.zeros_like(parameter) if parameter.grad is None else parameter.grad)
    model.float().save_pretrained(folder)
    checkpoint = open_checkpoint(folder)
    read = {spec.name: np.array(checkpoint.leaf(spec.name).data).view(np.float32).reshape(spec.shape) for spec in checkpoint.specs}
    checkpoint.close()
    return {name: values.astype(np.float64) for name, values in read.items()} | found


def slopes_of(student: Student) -> tuple[float, dict[str, Tensor]]:
    loss = loss_of(student, batch_of(documents()))
    loss.backward()  # type: ignore[no-untyped-call]
    return loss.item(), {name: torch.zeros_like(each) if each.grad is None else each.grad for name, each in student.parameters.items()}


def differences(slopes: dict[str, Tensor], exact: dict[str, NDArray[np.float64]]) -> dict[str, float]:
    """The largest of each weight, beside its largest slope."""
    assert slopes.keys() == exact.keys()
    return {
        name: float(abs(ours.double().numpy() - exact[name].reshape(ours.shape)).max() / max(abs(exact[name]).max(), 1e-6))
        for name, ours in slopes.items()
    }


@pytest.mark.parametrize("is_recomputed", [False, True], ids=["kept", "computed again"])
def test_loss_and_slopes_of_all_weights_equal_those_of_transformers(learned: Any, is_recomputed: bool) -> None:
    checkpoint, loss, exact = learned
    student = Student(checkpoint.config, checkpoint.leaf, dtype=torch.float64)
    if is_recomputed:
        student.run = recomputed
    ours, slopes = slopes_of(student)
    assert ours == pytest.approx(loss, rel=1e-10)
    assert {name: each for name, each in differences(slopes, exact).items() if each > 1e-6} == {}, "theirs are compared in float32"
    seeing = (
        "crossing.0.attention.k",
        "crossing.1.attention_gate",
        "vision.patches",
        "vision.tile_positions",
        "vision.project",
        "vision.before_gate",
    )
    assert all(float(slopes[name].abs().max()) > 0 for name in seeing)


def test_in_float32_they_are_as_near_as_that_has_it(learned: Any) -> None:
    checkpoint, loss, exact = learned
    ours, slopes = slopes_of(Student(checkpoint.config, checkpoint.leaf))
    assert ours == pytest.approx(loss, rel=2e-5)
    assert {name: each for name, each in differences(slopes, exact).items() if each > 2e-3} == {}


def test_updates_of_crossing_layers_learn_what_their_matrices_would(learned: Any) -> None:
    """At the beginning, where `up` is zero: its slope is scale · (slope of the matrix) · down^T."""
    checkpoint, _, exact = learned
    student = Student(checkpoint.config, checkpoint.leaf, dtype=torch.float64, lora=Lora(4, 8.0))
    _, slopes = slopes_of(student)
    names = {each.name for each in student.adapters.of.values()}
    assert {"crossing.0.attention.q", "crossing.1.attention.v", "crossing.1.ffn.down", "layers.3.ffn.up"} <= names
    for each in student.adapters.of.values():
        expected = each.leaf.scale * torch.from_numpy(exact[each.name]) @ each.down.detach().T
        found = slopes[f"{each.name}.up"]
        assert float((found - expected).abs().max()) <= 1e-6 * float(expected.abs().max()), each.name
