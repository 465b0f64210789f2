"""llama2.c files: the smallest real model, in both of its versions."""

from __future__ import annotations

import shutil
import struct
from pathlib import Path

import numpy as np
import pytest

from herd.checkpoints import open_checkpoint
from herd.errors import FileProblem
from herd.models.llama import LlamaConfig
from herd.models.rope import Rope

STORIES = Path(__file__).parent.parent / "data" / "stories260K"


def test_the_smallest_real_model_opens_with_its_tokenizer() -> None:
    checkpoint = open_checkpoint(STORIES / "stories260K.bin")
    assert checkpoint.layout == "llama2.c"
    assert checkpoint.config == LlamaConfig(
        width=64, num_layers=5, num_heads=8, num_kv_heads=4, head_width=8, ffn_width=172, vocab_size=512, context_length=512,
        norm_eps=1e-5, rope=Rope(10000.0, 8), tied_embeddings=True,
    )  # fmt: skip
    assert checkpoint.tokenizer is not None and checkpoint.tokenizer.path == STORIES / "tok512.bin"
    norms = [checkpoint.leaf(f"layers.{layer}.ffn_norm").data.view(np.float32) for layer in range(5)]
    assert all(0.1 < norm.mean() < 5 for norm in norms)
    assert checkpoint.facts["norm_eps"].source.startswith("assumed")


def test_both_versions_hold_the_same_model(shared_data: Path) -> None:
    first = open_checkpoint(STORIES / "stories260K.bin")
    second = open_checkpoint(shared_data / "models" / "stories260K" / "stories260K_v1.bin")
    assert first.config == second.config
    assert all(np.array_equal(first.leaf(spec.name).data, second.leaf(spec.name).data) for spec in first.specs)


@pytest.mark.parametrize(
    ("at", "data", "message"),
    [
        (0, struct.pack("<i", 65), "which n_heads 8 does not divide"),
        (0, struct.pack("<i", 0), "dim is 0"),
        (8, struct.pack("<i", -1), "n_layers is -1"),
        (16, struct.pack("<i", 3), "cannot be shared out evenly"),
        (20, struct.pack("<i", -512), "a model with the numbers in its header takes"),
        (24, struct.pack("<i", 513), "a model with the numbers in its header takes"),
        (0, struct.pack("<Ii", 0x616B3432, 2), "is version 2 of llama2.c's format"),
    ],
    ids=str,
)
def test_a_header_that_lies_is_refused(tmp_path: Path, at: int, data: bytes, message: str) -> None:
    changed = bytearray((STORIES / "stories260K.bin").read_bytes())
    changed[at : at + len(data)] = data
    (tmp_path / "model.bin").write_bytes(changed)
    with pytest.raises(FileProblem) as caught:
        open_checkpoint(tmp_path / "model.bin")
    assert message in str(caught.value)


def test_another_rotary_base_is_noticed_in_the_tables(tmp_path: Path) -> None:
    changed = bytearray((STORIES / "stories260K.bin").read_bytes())
    tables = len(changed) - 4 * 2 * 512 * 4
    changed[tables + 16 : tables + 32] = np.cos(500_000.0 ** -(np.arange(4) / 4)).astype("<f4").tobytes()
    (tmp_path / "model.bin").write_bytes(changed)
    with pytest.raises(FileProblem, match="of another base than 10000"):
        open_checkpoint(tmp_path / "model.bin")


def test_a_model_without_a_tokenizer_beside_it_opens(tmp_path: Path) -> None:
    shutil.copy(STORIES / "stories260K.bin", tmp_path)
    assert open_checkpoint(tmp_path / "stories260K.bin").tokenizer is None
