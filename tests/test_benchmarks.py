"""The scripts around benchmarks: what a figure says, and how results become tables. Nothing is timed here."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cli.chat_model import write as write_answering
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


def test_forms_that_draw_are_counted_by_answers_and_stand_beside_their_peers() -> None:
    tuning = script("tuning")
    ours = {"seconds": [4.0, 2.0, 3.0], "peak_bytes": 1 << 30, "dtype": "float32", "losses": [0.0] * 4}
    theirs = {**ours, "seconds": [15.0], "peak_bytes": 4 << 30, "answer_tokens": [128.0], "drawing_s": [4.0]}
    ours = {**ours, "answer_tokens": [128.0, 128.0, 128.0], "drawing_s": [1.0, 0.5, 2.0]}
    forms = {form: tuning.summary(form, [found], 1.0, 100, 1.0, 12) for form, found in (("herd grpo", ours), ("trl grpo", theirs))}
    assert (forms["herd grpo"]["completions_per_s"], forms["herd grpo"]["drawn_tokens_per_s"]) == (4.0, 128.0)
    assert (forms["trl grpo"]["completions_per_s"], forms["trl grpo"]["drawn_tokens_per_s"]) == (0.8, 32.0)
    assert "tokens_per_s" not in forms["herd grpo"] and tuning.rate_of("herd lora") == ("tokens_per_s", "real tokens/s")
    assert tuning.beside(forms) == {"herd_grpo_beside": {"trl grpo": {"times_as_fast": 5.0, "of_its_memory": 0.25}}}


def test_prompts_are_beginnings_of_documents_that_their_texts_say_again(tmp_path: Path) -> None:
    tuning = script("tuning")
    tokenizer = tuning.tokenizer_of(open_checkpoint(write_answering(tmp_path / "model")))
    prompts = tuning.prompts_of([tokenizer.encode("abcdef"), tokenizer.encode("gh")], tokenizer, 3, 4)
    assert [each["text"] for each in prompts] == ["abcd", "gh", "abcd"]
    assert all(tokenizer.decode(each["tokens"]) == each["text"] for each in prompts)


def test_answers_are_drawn_and_learned_from_as_long_as_they_are_asked_for(tmp_path: Path) -> None:
    """The worker of "herd grpo" on a tiny model whose end of a text is among what it says."""
    pytest.importorskip("torch", reason="torch is not installed (pip install herd-llama[torch])")
    model = write_answering(tmp_path / "model")
    job = {"checkpoint": str(model), "documents": [], "rank": 2, "pack": 64, "warmup": 1, "steps": 2, "threads": 1}
    prompts = [{"text": "ab", "tokens": [97, 98]}, {"text": "c", "tokens": [99]}]
    (tmp_path / "job.json").write_text(json.dumps({**job, "prompts": prompts, "answers": 3, "answer_tokens": 20}), encoding="utf-8")
    command = [sys.executable, str(FOLDER / "tuning_workers.py"), "herd grpo", str(tmp_path / "job.json")]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "HERD_HOME": str(tmp_path / "home")}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["answer_tokens"] == [2 * 3 * 20] * 2 and len(found["losses"]) == 3
    assert all(0 < drawing < step for drawing, step in zip(found["drawing_s"], found["seconds"], strict=True))


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
