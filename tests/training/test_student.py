"""A student's losses and slopes are those of `transformers`, packed or not, in every architecture, with pictures too."""

from __future__ import annotations

from typing import Any

import pytest

pytest.importorskip("torch", reason="torch is not installed (pip install herd-llama[torch])")
pytest.importorskip("transformers", reason="transformers is not installed (pip install herd-llama[dev])")

import numpy as np
import torch

from conformance.architectures import ARCHITECTURES
from conformance.llama4 import LLAMA4, cut, with_pictures
from herd import dtypes
from herd.backends.base import Placed
from herd.errors import UsageError
from herd.models import llama4
from herd.models.architecture import Config
from herd.training.student.batches import Document, batch_of
from herd.training.student.model import Student
from tiny import random_leaves, tiny_llama, tiny_llama4, tiny_llama4_vision
from training.learning import documents_of, in_their_layout, loss_of, their_loss, their_model

CONFIGS: dict[str, Config] = {
    **{name: ARCHITECTURES[name] for name in ("llama-3.2 (tied)", "every bias", "groups of three")},
    **{name: LLAMA4[name] for name in ("llama-4 scout", "llama-4 with two experts a token", "llama-4 without temperature, tied")},
}
DOCUMENTS = documents_of((5, 41, 2, 18))


def slopes_of(student: Student, documents: list[Document]) -> tuple[float, dict[str, torch.Tensor]]:
    loss = loss_of(student, batch_of(documents))
    loss.backward()
    found = {name: each.grad if each.grad is not None else torch.zeros_like(each) for name, each in student.parameters.items()}
    return loss.item(), found


def largest_difference(cfg: Config, slopes: dict[str, torch.Tensor], model: Any) -> float:
    """Between our slopes and theirs, beside the largest slope of each weight."""
    theirs, worst = dict(model.named_parameters()), 0.0
    found = in_their_layout(cfg, slopes)
    assert found, "nothing was compared"
    for name, ours in found.items():
        slope = theirs[name].grad if theirs[name].grad is not None else torch.zeros_like(theirs[name])
        exact = slope.double().numpy().reshape(ours.shape)
        worst = max(worst, float(abs(ours - exact).max() / max(abs(exact).max(), 1e-6)))
    return worst


@pytest.mark.parametrize("name", CONFIGS)
def test_loss_and_slopes_of_all_weights_equal_those_of_transformers(name: str) -> None:
    """Ours packed, theirs document by document; in float64, and in float32 as close to that as theirs are."""
    cfg = CONFIGS[name]
    leaves = random_leaves(cfg)
    exact = their_model(cfg, leaves, "float64")
    loss = their_loss(exact, DOCUMENTS)
    loss.backward()
    ours, slopes = slopes_of(Student(cfg, leaves.__getitem__, dtype=torch.float64), DOCUMENTS)
    assert abs(ours - loss.item()) < 1e-9 * abs(loss.item())
    assert largest_difference(cfg, slopes, exact) < 1e-6, "their layout is compared in float32"
    ours32, slopes32 = slopes_of(Student(cfg, leaves.__getitem__), DOCUMENTS)
    assert abs(ours32 - loss.item()) < 2e-5 * abs(loss.item())
    assert largest_difference(cfg, slopes32, exact) < 2e-3


def test_packed_documents_learn_what_each_learns_alone() -> None:
    cfg = LLAMA4["llama-4 scout"]
    leaves = random_leaves(cfg)
    packed = Student(cfg, leaves.__getitem__, dtype=torch.float64)
    _, together = slopes_of(packed, DOCUMENTS)
    alone = Student(cfg, leaves.__getitem__, dtype=torch.float64)
    total = sum(sum(document.weights) for document in DOCUMENTS)
    for document in DOCUMENTS:
        batch = batch_of([document])
        if batch.num_targets == 0:
            continue
        (-(alone.logprobs(batch) * batch.weights_R).sum() / total).backward()
    for name, parameter in alone.parameters.items():
        assert parameter.grad is not None
        assert torch.allclose(parameter.grad, together[name], atol=1e-12), name


def test_slopes_go_through_pictures_as_in_transformers() -> None:
    """Early fusion: text, projector and encoder of a Llama 4 that sees, two documents with different pictures."""
    cfg = tiny_llama4(vision=tiny_llama4_vision(num_layers=1))
    assert cfg.vision is not None
    leaves = random_leaves(cfg)
    documents, pixels = [], []
    for seed, (rows, columns) in enumerate(((1, 2), (1, 1))):
        picture = cut(cfg.vision, rows, columns, seed)
        tokens = with_pictures(cfg, [picture], documents_of((17 + seed,), seed)[0].tokens)
        placed = Placed(picture, llama4.picture_positions(cfg, tokens, [picture.shape])[0])
        weights = [0.0 if token == cfg.vision.picture_token or index == 0 else 1.0 for index, token in enumerate(tokens)]
        documents.append(Document(tuple(tokens), tuple(weights), (placed,)))
        pixels.append(picture.pixels)
    exact = their_model(cfg, leaves, "float64")
    loss = their_loss(exact, documents, pixels)
    loss.backward()
    ours, slopes = slopes_of(Student(cfg, leaves.__getitem__, dtype=torch.float64), documents)
    assert abs(ours - loss.item()) < 1e-9 * abs(loss.item())
    assert largest_difference(cfg, slopes, exact) < 1e-6
    assert float(slopes["vision.layers.0.attention.q"].abs().max()) > 0


def test_quantised_weights_are_learned_from_what_they_stand_for() -> None:
    cfg = tiny_llama(num_layers=1)
    leaves = random_leaves(cfg, dtype=lambda spec: dtypes.Q4_K if len(spec.shape) == 2 else dtypes.F32)
    student = Student(cfg, leaves.__getitem__)
    expected = student.wide(leaves["layers.0.ffn.up"])  # type: ignore[arg-type]
    assert torch.equal(student.parameters["layers.0.ffn.up"], expected)
    found = student.leaves()["layers.0.ffn.up"]
    assert np.array_equal(found.data.view(np.float32), expected.numpy())  # type: ignore[union-attr]


def test_a_model_without_eyes_refuses_pictures_by_name() -> None:
    cfg = tiny_llama(num_layers=1)
    student = Student(cfg, random_leaves(cfg).__getitem__)
    vision = tiny_llama4_vision()
    document = Document((1, 2, 3), (0, 1, 1), (Placed(cut(vision, 1, 1, 0), (1,)),))
    with pytest.raises(UsageError, match="takes no pictures"):
        student.logprobs(batch_of([document]))
