"""What a student learned, as files: `peft` opens them and says the same, and so does every way in which herd loads them."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("torch", reason="torch is not installed (pip install herd-llama[torch])")
pytest.importorskip("peft", reason="peft is not installed (pip install herd-llama[dev])")

import peft
import torch

from conformance.architectures import ARCHITECTURES
from conformance.llama4 import LLAMA4
from conformance.running import logits_of, make_backend, whole
from herd.checkpoints.adapter import open_adapter
from herd.convert import write_adapter
from herd.errors import UsageError
from herd.models.architecture import Config, architecture_of
from herd.training.settings.lora import Lora
from herd.training.student.batches import batch_of
from herd.training.student.model import Student
from tiny import random_leaves, tiny_llama3_vision
from training.learning import documents_of, loss_of, randomise, their_loss, their_model

CONFIGS: dict[str, Config] = {"llama": ARCHITECTURES["every bias"], "llama 4": LLAMA4["llama-4 scout"]}
KINDS = {"LoRA": Lora(3, 5.0), "rsLoRA": Lora(3, 5.0, stabilised=True), "DoRA": Lora(3, 5.0, dora=True)}
DOCUMENTS = documents_of((12, 19), seed=4)


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")  # peft asks transformers so
@pytest.mark.parametrize(("name", "kind"), [("llama", "LoRA"), ("llama", "rsLoRA"), ("llama", "DoRA"), ("llama 4", "LoRA")])
def test_peft_and_herd_read_the_same_from_the_folder(tmp_path: Path, name: str, kind: str) -> None:
    cfg = CONFIGS[name]
    leaves = random_leaves(cfg)
    student = Student(cfg, leaves.__getitem__, lora=KINDS[kind])
    randomise(student)
    folder = write_adapter(tmp_path / "adapter", cfg, student.factors(), magnitudes=student.magnitudes(), base_model="tiny")
    with torch.no_grad():
        ours = loss_of(student, batch_of(DOCUMENTS)).item()
        model = peft.PeftModel.from_pretrained(their_model(cfg, leaves, "float32"), folder)
        assert abs(their_loss(model, DOCUMENTS).item() - ours) < 2e-4
        base = their_loss(their_model(cfg, leaves, "float32"), DOCUMENTS).item()
    assert abs(base - ours) > 0.01
    adapter = open_adapter(folder, cfg)
    tokens = list(DOCUMENTS[1].tokens)
    runner = make_backend("reference", cfg, {at: adapter.leaf_over(leaves.__getitem__)(at) for at in leaves}, activations="float32")
    batch = batch_of([DOCUMENTS[1]])
    found = torch.from_numpy(logits_of(runner, whole(tokens)))[batch.rows_R]
    assert float((found - student.logits(batch).detach()).abs().max()) < 2e-3
    if kind == "DoRA":
        with pytest.raises(UsageError, match="herd tune merge"):
            _ = adapter.updates


def test_updates_of_crossing_blocks_come_back_with_the_same_bits(tmp_path: Path) -> None:
    cfg = tiny_llama3_vision()
    leaves = random_leaves(cfg)
    student = Student(cfg, leaves.__getitem__, lora=Lora(2))
    randomise(student)
    folder = write_adapter(tmp_path / "adapter", cfg, student.factors())
    found, written = open_adapter(folder, cfg).updates, student.factors()
    assert found.keys() == written.keys() and any(name.startswith("crossing.") for name in found)
    assert {spec.name for spec in architecture_of(cfg).tensors(cfg)} >= found.keys()
    for name, update in written.items():
        assert bytes(found[name].up.data) == bytes(update.up.data) and bytes(found[name].down.data) == bytes(update.down.data), name
