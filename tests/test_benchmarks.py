"""The scripts around benchmarks: what a figure says, and how results become tables. Nothing is timed here."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from typing import Any

import pytest

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
    from tiny import tiny_llama

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
