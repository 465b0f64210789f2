"""Quantising: better blocks than plain rounding, files of the size asked for, that others open, and work that can be interrupted."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from click.testing import CliRunner

import herd
from cli import chat_model
from conformance.running import prompt
from convert import test_llama4 as llama4_files
from convert.test_other_readers import expected, llama_cpp_logits
from herd import dtypes
from herd.checkpoints import open_checkpoint
from herd.cli.main import main
from herd.convert import quantise, quantising, resuming
from herd.convert.budget import Choice, spend
from herd.convert.calibration import calibrate, running
from herd.convert.expected import expected_inputs
from herd.dtypes import F32, DType
from herd.errors import FileProblem, UsageError
from herd.family.progress import silent
from herd.quant import dequantize, quantize, quantize_fitted
from tiny import dense_f32, random_leaves, tiny_llama
from tiny_files import write_huggingface

TEXT = "The quick brown fox jumps over the lazy dog, and then it sleeps. " * 12
SOURCES = str(Path(herd.__file__).parent.parent)


def weights(rows: int = 16, columns: int = 512) -> Any:
    return (np.random.default_rng(3).standard_t(5, (rows, columns)) * 0.03).astype(np.float32)


@pytest.mark.parametrize("dtype", dtypes.BLOCK, ids=lambda dtype: dtype.name)
def test_a_searched_block_has_less_error_than_a_plain_one_where_it_counts(dtype: DType) -> None:
    x, importance = weights(), np.exp(np.random.default_rng(4).standard_normal(512)).astype(np.float32)

    def error(stored: Any) -> float:
        return float((np.square(dequantize(dtype, stored, x.shape) - x) @ importance).sum())

    assert error(quantize_fitted(dtype, x, importance)) < 0.95 * error(quantize(dtype, x))


@pytest.mark.parametrize("dtype", dtypes.BLOCK, ids=lambda dtype: dtype.name)
def test_zeros_constants_and_single_values_stay_what_they_are(dtype: DType) -> None:
    x = np.zeros((4, 256), np.float32)
    x[1] = 0.25
    x[2, 17] = -3.0
    x[3, ::2] = 1e-30
    found = dequantize(dtype, quantize_fitted(dtype, x), x.shape)
    assert np.array_equal(found[0], x[0])
    assert np.abs(found - x).max() < 0.03


def test_a_searched_block_does_not_depend_on_the_rows_beside_it() -> None:
    x = weights(9)
    for dtype in dtypes.BLOCK:
        apart = [quantize_fitted(dtype, x[row : row + 1]) for row in range(9)]
        assert np.array_equal(np.concatenate(apart), quantize_fitted(dtype, x))


def test_values_that_no_block_can_hold_are_refused() -> None:
    x = weights(1)
    x[0, 5] = 1e7
    with pytest.raises(FileProblem, match="too large"):
        quantize_fitted(dtypes.Q4_0, x)
    x[0, 5] = np.nan
    with pytest.raises(FileProblem, match="not a finite number; q4_k"):
        quantize_fitted(dtypes.Q4_K, x)
    x[0, 5] = 1e30
    with pytest.raises(FileProblem, match="too large"):
        quantize_fitted(dtypes.Q4_0, x)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return chat_model.write(tmp_path / "given")


@pytest.mark.parametrize("name", ["q4_0", "q5_1", "q3_k", "q4_k", "iq4_xs"])
def test_llama_cpp_opens_the_file_and_agrees(tmp_path: Path, name: str) -> None:
    llama_cpp = pytest.importorskip("llama_cpp")
    cfg = tiny_llama(num_layers=1, vocab_size=96)
    write_huggingface(tmp_path / "given", cfg, random_leaves(cfg, 1, F32))
    made = quantise(tmp_path / "given", tmp_path / "new.gguf", format=name)
    assert set(made.formats.values()) == {name, "q6_k"} and made.formats["head"] == "q6_k"
    tokens = prompt(cfg, 60)
    ours = expected(tmp_path / "new.gguf", tokens)
    theirs = llama_cpp_logits(llama_cpp, tmp_path / "new.gguf", tokens)
    assert np.sqrt(np.mean((theirs - ours) ** 2)) / ours.std() < 6e-2


def test_a_text_makes_columns_count_and_bits_choose_formats(folder: Path, tmp_path: Path) -> None:
    told: list[str] = []
    made = quantise(folder, tmp_path / "new.gguf", bits=4.6, importance=TEXT, max_tokens=100, progress=lambda name, *_: told.append(name))
    reader = gguf.GGUFReader(tmp_path / "new.gguf")
    stored, values = sum(int(t.n_bytes) for t in reader.tensors), sum(int(t.n_elements) for t in reader.tensors)
    assert 4.3 < 8 * stored / values <= 4.6 and made.bits == 8 * stored / values
    assert len(set(made.formats.values())) > 1
    assert {"reading the text, tokens", "trying errors, values", "trying formats, matrices", "new.gguf"} == set(told)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["given", "new.gguf"]


def test_rows_that_hold_no_blocks_stay_at_sixteen_bits_and_that_is_said(tmp_path: Path) -> None:
    cfg = tiny_llama(width=64, num_heads=2, num_kv_heads=1, head_width=32, ffn_width=80, num_layers=1, vocab_size=40)
    write_huggingface(tmp_path / "given", cfg, random_leaves(cfg, 1, dtypes.BF16))
    made = quantise(tmp_path / "given", tmp_path / "new.gguf", format="q4_k")
    assert made.formats["layers.0.ffn.down"] == "f16" and made.formats["layers.0.attention.q"] == "q5_0"
    assert any("Rows of 80 do not hold whole blocks" in note for note in made.notes)
    kinds = {t.name: t.tensor_type.name for t in gguf.GGUFReader(tmp_path / "new.gguf").tensors}
    assert kinds["blk.0.ffn_down.weight"] == "BF16" and kinds["blk.0.attn_norm.weight"] == "F32"


def test_experts_are_quantised_and_their_router_is_not(tmp_path: Path) -> None:
    cfg = llama4_files.CONFIGS["as Maverick"]
    made = quantise(llama4_files.folder(tmp_path / "given", cfg), tmp_path / "new.gguf", format="q4_0")
    assert made.formats["layers.1.experts.down"] == "q4_0" and "layers.1.router" not in made.formats
    checkpoint = open_checkpoint(tmp_path / "new.gguf")
    assert checkpoint.dtype("layers.1.router") is F32
    assert checkpoint.dtype("layers.1.experts.gate") is dtypes.Q4_0
    with running(checkpoint) as engine:
        found = calibrate(checkpoint, engine, [list(range(3, 60))], silent)
    known = {"layers.1.experts.gate", "layers.1.shared.down", "layers.1.attention.out", "head"}
    assert known <= set(found.inputs) and "layers.1.experts.down" not in found.inputs


def test_interrupted_work_goes_on_and_ends_with_the_same_bytes(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quantising, "PIECE_VALUES", 1 << 15)
    settings: dict[str, Any] = {"bits": 5.0, "importance": TEXT, "max_tokens": 60}
    quantise(folder, tmp_path / "whole.gguf", **settings)
    monkeypatch.setattr(resuming, "SAVED_EVERY_S", 0.0)
    seen: list[tuple[str, int]] = []
    for stop in (2, 9, 25):
        left = stop

        def told(name: str, done: int, _total: int) -> None:
            nonlocal left
            seen.append((name, done))
            left -= 1
            if left == 0:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            quantise(folder, tmp_path / "new.gguf", progress=told, **settings)
        assert not (tmp_path / "new.gguf").exists()
    seen.clear()
    quantise(folder, tmp_path / "new.gguf", progress=lambda name, done, _: seen.append((name, done)), **settings)
    assert {name for name, _ in seen} == {"new.gguf"}, "earlier stages are not done again"
    assert (tmp_path / "new.gguf").read_bytes() == (tmp_path / "whole.gguf").read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["given", "new.gguf", "whole.gguf"]


def test_other_settings_begin_anew(folder: Path, tmp_path: Path) -> None:
    def stopped(name: str, done: int, total: int) -> None:
        if done > total // 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        quantise(folder, tmp_path / "new.gguf", format="q8_0", progress=stopped)
    quantise(folder, tmp_path / "new.gguf", format="q4_0")
    quantise(folder, tmp_path / "other.gguf", format="q4_0")
    assert (tmp_path / "new.gguf").read_bytes() == (tmp_path / "other.gguf").read_bytes()


@pytest.mark.skipif(sys.platform == "win32", reason="needs SIGKILL")
def test_a_killed_process_leaves_work_that_goes_on(folder: Path, tmp_path: Path) -> None:
    quantise(folder, tmp_path / "whole.gguf", format="q4_k")
    program = (
        "import time; from herd.convert import quantise, quantising, resuming\n"
        "quantising.PIECE_VALUES, resuming.SAVED_EVERY_S = 4096, 0.0\n"
        f"quantise({str(folder)!r}, {str(tmp_path / 'new.gguf')!r}, format='q4_k', progress=lambda *_: time.sleep(0.02))\n"
    )
    process = subprocess.Popen([sys.executable, "-c", program], env={**os.environ, "PYTHONPATH": SOURCES})
    done = tmp_path / ".new.gguf.herd" / "done"
    limit = time.monotonic() + 60
    while not done.exists() and process.poll() is None and time.monotonic() < limit:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert done.exists() and not (tmp_path / "new.gguf").exists()
    quantise(folder, tmp_path / "new.gguf", format="q4_k")
    assert (tmp_path / "new.gguf").read_bytes() == (tmp_path / "whole.gguf").read_bytes()


def test_a_budget_is_spent_where_it_helps_most() -> None:
    q2, q4, q8 = dtypes.Q2_K, dtypes.Q4_K, dtypes.Q8_0
    tender = [Choice(q2, 10, 100.0), Choice(q4, 20, 10.0), Choice(q8, 40, 1.0)]
    robust = [Choice(q2, 10, 1.0), Choice(q4, 20, 0.5), Choice(q8, 40, 0.4)]
    assert spend({"a": tender, "b": robust}, 20) == {"a": q2, "b": q2}
    assert spend({"a": tender, "b": robust}, 30) == {"a": q4, "b": q2}
    assert spend({"a": tender, "b": robust}, 55) == {"a": q8, "b": q2}
    assert spend({"a": tender, "b": robust}, 60) == {"a": q8, "b": q4}
    with pytest.raises(UsageError, match="take 20 bytes at least, and 19 are left"):
        spend({"a": tender, "b": robust}, 19)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "either a format"),
        ({"format": "q4_k", "bits": 4.5}, "either a format"),
        ({"format": "q4_9"}, "must be one of"),
        ({"format": "f16"}, "must be one of"),
        ({"bits": 4.5}, "give one with importance"),
        ({"bits": 0.5, "importance": TEXT}, "between 2 and 16"),
        ({"bits": 2.0, "importance": TEXT}, "too few for this model"),
        ({"format": "q4_k", "importance": "x"}, "a few thousand are needed"),
    ],
)
def test_what_cannot_be_done_is_said_before_it_is_tried(folder: Path, tmp_path: Path, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        quantise(folder, tmp_path / "new.gguf", **settings)
    assert not (tmp_path / "new.gguf").exists()


def test_the_command_reports_size_speed_and_distance(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text(TEXT)
    words = ["quantize", str(folder), str(tmp_path / "new.gguf"), "--format", "q4_0", "--report", str(tmp_path / "text.txt")]
    done = CliRunner().invoke(main, [*words, "--report-tokens", "100", "--plot", str(tmp_path / "cost.svg")], prog_name="herd")
    assert done.exit_code == 0, done.output
    first, note, header, original, new = done.output.splitlines()
    assert note.startswith("note: The source has no licence file")
    assert "bits per weight; matrices: 1 in q6_k" in first or "in q4_0" in first
    assert header.split()[:3] == ["model", "size", "bits"] and original.startswith("given") and new.startswith("new.gguf")
    assert "new.gguf" in (tmp_path / "cost.svg").read_text()
    again = CliRunner().invoke(main, words, prog_name="herd")
    assert again.exit_code == 2 and "exists already" in again.output


def test_columns_count_by_what_the_weights_before_them_let_expect(tmp_path: Path) -> None:
    """A norm makes a component large, a row of v what a column of `out` reads, rows of gate and up what one of `down` reads."""
    cfg = tiny_llama(num_layers=1)
    leaves = random_leaves(cfg)
    for name, place in (("attention_norm", 3), ("attention.v", 5), ("ffn.gate", 5), ("ffn.up", 5)):
        leaf = leaves[f"layers.0.{name}"]
        values = dequantize(leaf.dtype, leaf.data, leaf.shape).copy()
        values[place] *= 10
        leaves[f"layers.0.{name}"] = dense_f32(values)
    checkpoint = open_checkpoint(write_huggingface(tmp_path / "model", cfg, leaves))
    with ThreadPoolExecutor(1) as pool:
        inputs = expected_inputs(checkpoint, pool, silent)
    assert {name.rpartition(".")[2] for name in inputs} >= {"q", "k", "v", "out", "gate", "up", "down"}
    assert all(inputs[f"layers.0.attention.{name}"].argmax() == 3 for name in "qkv")
    heads = inputs["layers.0.attention.out"].reshape(cfg.num_heads, cfg.head_width)
    each = cfg.num_heads // cfg.num_kv_heads
    assert (heads[:each].argmax(axis=1) == 5).all() and np.array_equal(heads[0], heads[each - 1])
    assert inputs["layers.0.ffn.down"].argmax() == 5


@pytest.mark.parametrize("value", [1e10, np.inf])
def test_weights_beyond_reason_leave_columns_without_a_foreseen_input(value: float, tmp_path: Path) -> None:
    """Large ones count in proportion; what is not a number is refused by name where it is stored, and not before."""
    cfg = tiny_llama(num_layers=1)
    leaves = random_leaves(cfg)
    for name in ("ffn.gate", "ffn.up"):
        leaves[f"layers.0.{name}"] = dense_f32(np.full((cfg.ffn_width, cfg.width), value))
    checkpoint = open_checkpoint(write_huggingface(tmp_path / "model", cfg, leaves))
    with ThreadPoolExecutor(1) as pool:
        inputs = expected_inputs(checkpoint, pool, silent)
    assert all(np.isfinite(each).all() for each in inputs.values())
    assert ("layers.0.ffn.down" in inputs) == np.isfinite(value)
