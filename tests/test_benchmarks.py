"""The scripts around benchmarks: what a figure says, and how results become tables. Nothing is timed here."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from conformance.running import oracle, prompt
from herd.checkpoints.open import open_checkpoint
from herd.quant import dequantize
from tiny import random_leaves, tiny_llama
from tiny_files import write_huggingface

FOLDER = Path(__file__).resolve().parent.parent / "benchmarks"


def script(name: str) -> Any:
    spec = importlib.util.spec_from_file_location(name, FOLDER / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


FACTS = {
    "machine": {"cpu": "a processor"},
    "threads": 2,
    "commit": "abc",
    "model": "m.gguf",
    "model_sha256": "0" * 64,
    "model_mb": 98.362,
    "versions": {"herd": "1", "llama.cpp": "2"},
}


def test_a_figure_is_one_line_with_median_spread_and_bound(capsys: pytest.CaptureFixture[str]) -> None:
    bound = {"value": 400, "what": "bandwidth / bytes"}
    script("record").figure("decode", [100.0, 300.0, 200.0], "tokens/s", FACTS, engine="herd", bound=bound, share=0.5)
    line = json.loads(capsys.readouterr().out)
    assert (line["value"], line["spread"], line["rounds"], line["bound"], line["commit"]) == (200.0, [100.0, 300.0], 3, bound, "abc")


def test_the_newest_results_fill_the_marked_places(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    tables = script("make_tables")
    monkeypatch.setattr(tables, "RESULTS", tmp_path)
    for date, value in (("2026-01-01", 1.0), ("2026-02-01", 2.0)):
        script("record").figure("decode", [value, value], "tokens/s", FACTS, engine="herd", bound={"value": 4.0, "what": "x"}, share=0.5)
        (tmp_path / f"{date}-versus-llama-cpp.json").write_text(capsys.readouterr().out, encoding="utf-8")
    page = "before\n<!-- results: versus-llama-cpp -->\nold\n<!-- end of results -->\nafter\n"
    filled = tables.renewed(page)
    assert "| decode | herd | 2 tokens/s |" in filled and "old" not in filled and "a processor" in filled
    side_by_side = tables.renewed(page.replace("results: versus", "summary: versus"))
    assert "| | herd | herd's share of the bound |" in side_by_side and "| decode | 2 tokens/s | 50% |" in side_by_side
    assert filled.startswith("before\n") and filled.endswith("after\n") and tables.renewed(filled) == filled


def test_the_arithmetic_of_a_tuning_step_is_what_its_products_are() -> None:
    """Counted product by product for one document: two of the frozen matrices, three of the updates, seven of attention's."""
    from herd.models import llama

    cfg, length, rank = tiny_llama(num_layers=1, tied_embeddings=True), 3, 4
    matrices = [(256, 256), (64, 256), (64, 256), (256, 256), (512, 256), (512, 256), (256, 512)]
    frozen = 2 * length * (sum(out * columns for out, columns in matrices) + 320 * 256)
    updates = 2 * length * rank * sum(out + columns for out, columns in matrices)
    attention = 2 * (1 + 2 + 3) * 8 * 32
    operations = script("tuning").operations
    assert operations(cfg, tuple(llama.tensors(cfg)), rank, [length], False) == 2 * frozen + 3 * updates + 7 * attention
    assert operations(cfg, tuple(llama.tensors(cfg)), rank, [length], True) == 3 * frozen + 7 * attention


def test_documents_are_packed_largest_first_and_no_fuller_than_allowed() -> None:
    packs = script("tuning_workers").packs
    assert list(packs([3, 9, 5, 1, 20], 10, lambda size: size)) == [[20], [9, 1], [5, 3]]


def test_ratios_are_told_with_their_standard_errors(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    tables, record = script("make_tables"), script("record")
    monkeypatch.setattr(tables, "RESULTS", tmp_path)
    for engine, values, mean, error in (("herd", [0.2, 0.4], 0.3, 0.03), ("llama.cpp", [0.4, 0.4], 0.4, 0.0)):
        record.figure("KL of q4_0", values, "nats a token", FACTS, engine=engine, mean=mean, error=error, perplexity=9.5)
    record.figure("KL of q4_0", [0.5, 1.0], "ratio", FACTS, engine="herd / llama.cpp", mean=0.7071, error=0.05)
    (tmp_path / "2026-01-01-formats.json").write_text(capsys.readouterr().out, encoding="utf-8")
    filled = tables.renewed("<!-- ratios: formats -->\n<!-- end of results -->\n")
    assert "| | herd | llama.cpp | herd / llama.cpp |" in filled
    assert "| KL of q4_0 | 0.3 ± 10% (9.50) | 0.4 ± 0% (9.50) | 0.7071 ± 0.05 |" in filled


def test_what_was_measured_once_is_told_with_its_standard_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    script("record").figure("int8, more than float32", [0.3], "%", FACTS, error=0.02)
    path = tmp_path / "2026-01-01-perplexity.json"
    path.write_text(capsys.readouterr().out, encoding="utf-8")
    assert "| int8, more than float32 |  | 0.3 % | ± 0.02 |" in script("make_tables").table(path)


def test_a_model_with_its_columns_in_another_order_says_the_same(tmp_path: Path) -> None:
    cfg = tiny_llama(num_layers=2)
    write_huggingface(tmp_path / "model", cfg, random_leaves(cfg))
    script("equal_models").write_reordered(tmp_path / "model", tmp_path / "other", 1)
    one, other = (open_checkpoint(tmp_path / name) for name in ("model", "other"))
    leaves = [{spec.name: each.leaf(spec.name) for spec in each.specs} for each in (one, other)]
    same, moved = (dequantize(each["embed"].dtype, each["embed"].data, each["embed"].shape) for each in leaves)
    assert not np.array_equal(same, moved) and np.array_equal(np.sort(same[5]), np.sort(moved[5]))
    logits = [oracle(cfg, each, prompt(cfg, 9)) for each in leaves]
    assert np.abs(logits[0] - logits[1]).max() < 1e-5 * np.abs(logits[0]).max()
