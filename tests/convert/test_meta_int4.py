"""The format of Meta's int4 releases: groups of 32, embedding and head in 8 bits, read back by our reader and by torch."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from cli import chat_model
from cli.running import invoke
from convert import test_llama4 as llama4_files
from herd.api import load
from herd.checkpoints import open_checkpoint
from herd.convert import quantise
from herd.dtypes import Q4_0
from herd.errors import UsageError
from herd.models.weights import Kind
from herd.quant import dequantize, fit_groups, quantize_fitted
from tiny import random_leaves, tiny_llama
from tiny_files import write_huggingface

TEXT = "The quick brown fox jumps over the lazy dog, and then it sleeps. " * 12


def values() -> np.ndarray:
    return (np.random.default_rng(3).standard_t(5, (16, 512)) * 0.03).astype(np.float32)


def test_groups_are_searched_for_and_their_scales_are_positive() -> None:
    x = values()
    x[2, 32:64] = 0
    q, scales = fit_groups(x, 4, 32)
    assert q.min() >= -8 and q.max() <= 7 and scales.shape == (16, 16) and (scales >= 0).all() and scales[2, 1] == 0
    again = q.reshape(16, 16, 32) * scales[:, :, None]
    plain = np.abs(x.reshape(16, 16, 32)).max(axis=2, keepdims=True) / 7
    rounded = np.clip(np.rint(x.reshape(16, 16, 32) / np.where(plain, plain, 1)), -8, 7) * plain
    error, theirs = (float(np.square(each - x.reshape(16, 16, 32)).sum()) for each in (again, rounded))
    assert error < 0.95 * theirs
    block = dequantize(Q4_0, quantize_fitted(Q4_0, x), x.shape)
    assert error < 1.2 * float(np.square(block - x).sum()), "blocks whose scales may be negative reach -8 with either sign"


def test_rows_of_eight_bits_are_closer_still_and_importance_counts() -> None:
    x = values()
    q, scales = fit_groups(x, 8, 512)
    assert scales.shape == (16, 1) and np.abs(q * scales - x).max() < 0.01 * np.abs(x).max()
    weights = np.where(np.arange(512) % 2, 100.0, 0.01).astype(np.float32)
    weighed, plain = (fit_groups(x, 4, 32, each) for each in (weights, None))

    def error(found: tuple[np.ndarray, np.ndarray]) -> float:
        near = (found[0].reshape(16, 16, 32) * found[1][:, :, None]).reshape(16, 512)
        return float((np.square(near - x) @ weights).sum())

    assert error(weighed) < error(plain)


@pytest.mark.parametrize("is_tied", [True, False])
def test_a_model_becomes_a_folder_as_meta_publishes_them(is_tied: bool, tmp_path: Path) -> None:
    cfg = tiny_llama(tied_embeddings=is_tied, width=64, ffn_width=96)
    write_huggingface(tmp_path / "source", cfg, random_leaves(cfg))
    made = quantise(tmp_path / "source", tmp_path / "out", format="int4")
    params = json.loads((tmp_path / "out" / "params.json").read_text())
    assert params["quantization_args"] == {"group_size": 32, "scheme": "int4_weight_int8_dynamic_activation", "spinquant": False}
    torch = pytest.importorskip("torch")
    state = torch.load(tmp_path / "out" / "consolidated.00.pth", weights_only=True, mmap=True)
    down = state["layers.0.feed_forward.w2.weight"]
    assert down.dtype is torch.int8 and int(down.min()) >= -8 and int(down.max()) <= 7
    assert state["layers.0.feed_forward.w2.scales"].shape == (64, 3) and state["tok_embeddings.scales"].shape == (cfg.vocab_size, 1)
    assert state["output.weight"].dtype is torch.int8 and "layers.0.attention_norm.weight" in state
    assert set(made.formats.values()) == {"int4", "int8"} and any("takes a byte" in note for note in made.notes)
    before, after = open_checkpoint(tmp_path / "source"), open_checkpoint(tmp_path / "out")
    for spec in after.specs:
        if spec.kind is Kind.MATRIX:
            one, two = (dequantize(leaf.dtype, leaf.data, spec.shape) for leaf in (before.leaf(spec.name), after.leaf(spec.name)))
            assert 0 < np.abs(one - two).max() < 0.2 * np.abs(one).max(), spec.name
    before.close()
    after.close()


def test_the_folder_answers_and_is_reported(tmp_path: Path) -> None:
    folder = chat_model.write(tmp_path / "source")
    (tmp_path / "text.txt").write_text(TEXT)
    words = ("quantize", str(folder), str(tmp_path / "out"), "--format", "int4", "--importance", str(tmp_path / "text.txt"))
    done = invoke(*words, "--report", str(tmp_path / "text.txt"), "--report-tokens", "64", "--json")
    assert done.exit_code == 0, done.output
    report = json.loads(done.stdout)["report"]
    assert len(report) == 2 and 0 < report[1]["kl"] < 1 and report[1]["agreement"] > 0.3
    with load(tmp_path / "out", backend="reference") as model:
        assert len(model.generate([5, 6, 7], max_tokens=2, temperature=0.0).token_ids) == 2


def test_what_has_no_such_format_is_refused(tmp_path: Path) -> None:
    cfg = tiny_llama(width=48, ffn_width=80, num_heads=4, num_kv_heads=2, head_width=12)
    write_huggingface(tmp_path / "odd", cfg, random_leaves(cfg))
    with pytest.raises(UsageError, match="groups of 32"):
        quantise(tmp_path / "odd", tmp_path / "out", format="int4")
    with pytest.raises(UsageError, match="leave head out"):
        quantise(tmp_path / "odd", tmp_path / "out", format="int4", head="q8_0")
    with pytest.raises(UsageError, match="iq4_xs, int4"):
        quantise(tmp_path / "odd", tmp_path / "out.gguf", format="int5")
    llama4_files.folder(tmp_path / "llama4", llama4_files.tiny_llama4())
    with pytest.raises(UsageError, match="models of llama4 have none"):
        quantise(tmp_path / "llama4", tmp_path / "out", format="int4")
    assert not (tmp_path / "out").exists()
