"""From layout to layout and back: the same bits of every weight, the same config, the same text."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from herd.checkpoints import open_checkpoint
from herd.checkpoints.checkpoint import Checkpoint
from herd.convert import convert
from herd.dtypes import BF16, F16, F32, Q4_1, Q8_0, DType
from herd.models.llama import LlamaConfig
from herd.models.rope import Linear, Llama3, Rope, Yarn
from herd.models.weights import Dense, TensorSpec
from meta_files import values_of, write_meta
from tiny import random_leaves, random_values, tiny_llama
from tiny_files import write_huggingface

SMALL = {"width": 64, "num_layers": 2, "num_heads": 4, "num_kv_heads": 2, "head_width": 16, "ffn_width": 96, "vocab_size": 40}
CONFIGS = {
    "plain": tiny_llama(**SMALL, norm_eps=1.3e-6),
    "tied": tiny_llama(**SMALL, tied_embeddings=True, rope=Rope(5e5, 16, Llama3(32.0, 1.0, 4.0, 64))),
    "wide heads": tiny_llama(**{**SMALL, "head_width": 32}, rope=Rope(123456.789, 32, Llama3(7.3, 1.1, 3.7, 50))),
    "linear": tiny_llama(**SMALL, rope=Rope(1e4, 16, Linear(3.3)), context_length=333),
    "yarn": tiny_llama(**SMALL, rope=Rope(1e4, 16, Yarn(4.1, 64, 30.3, 1.7, 1.234, False))),
    "biases": tiny_llama(**SMALL, qkv_bias=True, out_bias=True, ffn_bias=True),
}


def leaves_of(cfg: LlamaConfig, dtype: DType, norms: DType) -> dict[str, Any]:
    """Random weights, matrices in one format and vectors in another."""
    leaves: dict[str, Any] = dict(random_leaves(cfg, 3, dtype))
    for name, leaf in leaves.items():
        if len(leaf.shape) == 1:
            from herd.quant import quantize

            values = random_values(TensorSpec(name, leaf.shape), 5) + 1
            leaves[name] = Dense(norms, leaf.shape, quantize(norms, values.reshape(1, -1)))
    return leaves


def bits(checkpoint: Checkpoint) -> dict[str, tuple[str, tuple[int, ...], bytes]]:
    """Every weight's format, shape and bytes."""
    found = {}
    for spec in checkpoint.specs:
        leaf = checkpoint.leaf(spec.name)
        found[spec.name] = (leaf.dtype.name, leaf.shape, np.ascontiguousarray(leaf.data).tobytes())
    return found


def original(folder: Path, cfg: LlamaConfig, leaves: Mapping[str, Any]) -> Checkpoint:
    return open_checkpoint(write_huggingface(folder, cfg, leaves, {"eos_token_id": [5, 6], "bos_token_id": 3}))


@pytest.mark.parametrize("dtype", [BF16, F16, F32], ids=lambda dtype: dtype.name)
@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("through", ["meta", "gguf", "hf"])
def test_hugging_face_through_another_layout_and_back_is_the_same(tmp_path: Path, name: str, through: str, dtype: DType) -> None:
    cfg = CONFIGS[name]
    first = original(tmp_path / "first", cfg, leaves_of(cfg, dtype, BF16 if dtype is not F16 else F16))
    middle = tmp_path / ("middle.gguf" if through == "gguf" else "middle")
    convert(tmp_path / "first", middle, to=through)
    between = open_checkpoint(middle)
    assert between.config == cfg
    convert(middle, tmp_path / "last", to="hf")
    last = open_checkpoint(tmp_path / "last")
    assert last.config == first.config == cfg
    assert bits(last) == bits(first)
    for spec in between.specs:
        assert np.array_equal(values_of(between.leaf(spec.name)), values_of(first.leaf(spec.name))), spec.name
    if through != "meta":
        assert last.stop_ids == first.stop_ids


def test_shards_of_a_new_folder_are_indexed(tmp_path: Path) -> None:
    cfg = CONFIGS["plain"]
    first = original(tmp_path / "first", cfg, leaves_of(cfg, BF16, BF16))
    report = convert(tmp_path / "first", tmp_path / "last", to="hf", shard_bytes=20_000)
    assert sum(name.startswith("model-0000") for name in report.files) > 2 and "model.safetensors.index.json" in report.files
    assert bits(open_checkpoint(tmp_path / "last")) == bits(first)


def test_meta_shards_become_one_file(tmp_path: Path) -> None:
    cfg = CONFIGS["plain"]
    first = open_checkpoint(write_meta(tmp_path / "first", cfg, leaves_of(cfg, BF16, BF16), shards=4))
    convert(tmp_path / "first", tmp_path / "last", to="meta")
    assert bits(open_checkpoint(tmp_path / "last")) == bits(first)


@pytest.mark.parametrize("to", ["hf", "meta"])
def test_blocks_become_float32_exactly(tmp_path: Path, to: str) -> None:
    cfg = tiny_llama(num_layers=1)
    convert(write_huggingface(tmp_path / "first", cfg, leaves_of(cfg, F32, F32)), tmp_path / "q.gguf", to="gguf", quant="q4_1")
    blocks = open_checkpoint(tmp_path / "q.gguf")
    assert blocks.dtype("layers.0.attention.q") is Q4_1 and blocks.dtype("norm") is F32
    report = convert(tmp_path / "q.gguf", tmp_path / "last", to=to)
    assert any("float32, which is exact" in note for note in report.notes)
    last = open_checkpoint(tmp_path / "last")
    for spec in blocks.specs:
        assert np.array_equal(values_of(last.leaf(spec.name)), values_of(blocks.leaf(spec.name))), spec.name


def test_rows_that_hold_no_whole_blocks_get_the_nearest_format(tmp_path: Path) -> None:
    cfg = CONFIGS["plain"]
    write_huggingface(tmp_path / "first", cfg, leaves_of(cfg, BF16, BF16))
    report = convert(tmp_path / "first", tmp_path / "q.gguf", to="gguf", quant="q6_k")
    assert "Rows of 64 do not hold whole blocks of q6_k; they were written as q8_0." in report.notes
    assert open_checkpoint(tmp_path / "q.gguf").dtype("layers.0.ffn.up") is Q8_0


@pytest.mark.parametrize("to", ["hf", "gguf", "meta"])
def test_a_chosen_number_format_is_that_of_every_matrix(tmp_path: Path, to: str) -> None:
    cfg = CONFIGS["tied"]
    first = original(tmp_path / "first", cfg, leaves_of(cfg, F32, F32))
    path = tmp_path / ("last.gguf" if to == "gguf" else "last")
    convert(tmp_path / "first", path, to=to, dtype="bfloat16")
    last = open_checkpoint(path)
    from herd.quant import dequantize, quantize

    for spec in first.specs:
        values = values_of(first.leaf(spec.name))
        rounded = dequantize(BF16, quantize(BF16, values.reshape(-1, values.shape[-1])), values.shape)
        expected = values if to == "gguf" and len(spec.shape) == 1 else rounded
        assert np.array_equal(values_of(last.leaf(spec.name)), expected), spec.name


def test_the_list_of_divisors_of_a_known_release_becomes_its_rule(tmp_path: Path) -> None:
    from tiny_files import write_gguf

    cfg = tiny_llama(**SMALL, rope=Rope(5e5, 16, Llama3(8.0, 1.0, 4.0, 8192)), norm_eps=2.0**-17)
    write_gguf(tmp_path / "first.gguf", cfg, random_leaves(cfg, 1, F32))
    report = convert(tmp_path / "first.gguf", tmp_path / "last", to="hf")
    assert open_checkpoint(tmp_path / "last").config == cfg
    assert any("llama3 scaling by 8" in note for note in report.notes)
