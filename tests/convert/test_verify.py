"""`herd verify`: a whole checkpoint passes, and each thing that can be wrong with one is found and named."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from herd.cli.main import main
from herd.convert import Outcome, Verdict, convert, verify
from herd.dtypes import BF16, F16, F32, Q4_0, Q6_K, DType
from herd.family.catalogue import find
from herd.family.download import digest
from herd.family.finding import Found
from herd.family.store import SOURCE_FILE, publish
from herd.files import models_folder
from herd.files.folders import cache_folder
from herd.files.kept import keep
from herd.models.weights import Dense
from meta_files import write_meta
from tiny import random_leaves, tiny_llama
from tiny_files import write_gguf, write_huggingface

STORIES = Path(__file__).resolve().parent.parent / "data" / "stories260K" / "stories260K.bin"
CFG = tiny_llama(width=256, num_layers=1, num_heads=4, num_kv_heads=2, head_width=64, ffn_width=256, vocab_size=512, context_length=4096)
NAN_BYTES = {"f32": b"\x00\x00\xc0\x7f", "f16": b"\x00\x7e", "bf16": b"\xc0\x7f"}


def outcomes(verdict: Verdict) -> dict[str, Outcome]:
    return {finding.check: finding.outcome for finding in verdict.findings}


def text_of(verdict: Verdict, check: str) -> str:
    return next(finding.text for finding in verdict.findings if finding.check == check)


def with_text(folder: Path) -> Path:
    """A model whose vocabulary is that of the stories."""
    convert(STORIES, folder.with_name(f"{folder.name}-stories"), to="hf")
    write_huggingface(folder, CFG, random_leaves(CFG, 1, F32))
    for name in ("tokenizer.json", "tokenizer_config.json", "generation_config.json"):
        (folder / name).write_bytes((folder.with_name(f"{folder.name}-stories") / name).read_bytes())
    return folder


def test_a_real_small_model_is_whole() -> None:
    verdict = verify(STORIES)
    assert verdict.is_good, verdict
    assert {"files", "weights", "tokenizer", "chat format", "self-test"} <= set(outcomes(verdict))


def test_damaged_packed_weights_are_found_told_and_deleted(tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "model.gguf", CFG, random_leaves(CFG, 1, F32))
    about = {"source": str(path), "matrices": {}, "experts": {}}
    for name in ("weights-1", "weights-2"):
        keep(name, about, {"norm": memoryview(bytes(4096)), "embed": memoryview(bytes(2 << 20))}, lambda: False)
    assert text_of(verify(path), "cache").startswith("2 files have the bytes that were kept")
    file = cache_folder() / "weights-2.kept"
    data = bytearray(file.read_bytes())
    data[len(data) // 2 : len(data) // 2 + 16] = b"\xff" * 16
    file.write_bytes(data)
    shown = CliRunner().invoke(main, ["verify", str(path)], standalone_mode=False)
    assert f"{file}: the bytes of embed are not what was written" in shown.output and "Deleted: the next start packs" in shown.output
    assert shown.return_value == 3 and not file.exists()
    assert outcomes(verify(path))["cache"] is Outcome.GOOD


@pytest.mark.parametrize("dtype", [F32, F16, BF16], ids=lambda dtype: dtype.name)
def test_a_number_that_is_none_is_found(tmp_path: Path, dtype: DType) -> None:
    leaves: dict[str, Any] = dict(random_leaves(CFG, 1, dtype))
    data = np.array(leaves["layers.0.ffn.up"].data)
    data.reshape(-1)[: len(NAN_BYTES[dtype.name])] = np.frombuffer(NAN_BYTES[dtype.name], np.uint8)
    leaves["layers.0.ffn.up"] = Dense(dtype, leaves["layers.0.ffn.up"].shape, data)
    leaves["layers.0.ffn.down"] = Dense(dtype, leaves["layers.0.ffn.down"].shape, np.zeros_like(leaves["layers.0.ffn.down"].data))
    verdict = verify(write_huggingface(tmp_path / "model", CFG, leaves))
    assert not verdict.is_good
    assert text_of(verdict, "weights") == "layers.0.ffn.up: 1 of 65536 values are NaN or infinite"
    assert outcomes(verdict)["self-test"] is Outcome.SKIPPED


@pytest.mark.parametrize("dtype", [Q4_0, Q6_K], ids=lambda dtype: dtype.name)
def test_a_block_with_a_broken_scale_is_found(tmp_path: Path, dtype: DType) -> None:
    leaves = random_leaves(CFG, 1, dtype)
    path = write_gguf(tmp_path / "model.gguf", CFG, leaves)
    stored = np.ascontiguousarray(leaves["layers.0.attention.q"].data).tobytes()
    data = bytearray(path.read_bytes())
    at = data.index(stored) + (0 if dtype is Q4_0 else 208)
    data[at : at + 2] = b"\x00\x7c"
    path.write_bytes(data)
    verdict = verify(path)
    assert "layers.0.attention.q: " in text_of(verdict, "weights") and not verdict.is_good


def test_a_matrix_of_zeros_is_worth_a_warning(tmp_path: Path) -> None:
    leaves: dict[str, Any] = dict(random_leaves(CFG, 1, F32))
    leaves["layers.0.ffn.down"] = Dense(F32, leaves["layers.0.ffn.down"].shape, np.zeros_like(leaves["layers.0.ffn.down"].data))
    verdict = verify(write_huggingface(tmp_path / "model", CFG, leaves))
    assert outcomes(verdict)["weights"] is Outcome.WARNING and verdict.is_good
    assert text_of(verdict, "weights") == "layers.0.ffn.down: all values are zero"


def test_files_that_do_not_belong_together_are_a_problem(tmp_path: Path) -> None:
    verdict = verify(write_huggingface(tmp_path / "model", CFG, random_leaves(CFG, 1, F32), {"num_hidden_layers": 2}))
    assert outcomes(verdict) == {"files": Outcome.PROBLEM} and not verdict.is_good
    assert "model.layers.1" in text_of(verdict, "files")


def test_a_tokenizer_of_another_model_is_a_problem(tmp_path: Path) -> None:
    folder = with_text(tmp_path / "model")
    small = tiny_llama(width=32, num_layers=1, num_heads=4, num_kv_heads=2, head_width=8, ffn_width=32, vocab_size=100)
    write_huggingface(folder, small, random_leaves(small, 1, F32))
    (folder / "generation_config.json").unlink()
    verdict = verify(folder)
    assert outcomes(verdict)["tokenizer"] is Outcome.PROBLEM and "the model knows 100 ids" in text_of(verdict, "tokenizer")


def test_a_damaged_template_is_a_problem(tmp_path: Path) -> None:
    folder = with_text(tmp_path / "model")
    (folder / "chat_template.jinja").write_text("{% for message in messages %}{{ message['content'] }}")
    assert outcomes(verify(folder))["chat format"] is Outcome.PROBLEM


def test_a_template_of_its_own_is_named_as_such(tmp_path: Path) -> None:
    folder = with_text(tmp_path / "model")
    (folder / "chat_template.jinja").write_text(
        "{% for message in messages %}{{ message['role'] }}: {{ message['content'] }}\n{% endfor %}"
    )
    verdict = verify(folder)
    assert verdict.is_good and "the template itself" in text_of(verdict, "chat format")


def test_bytes_that_changed_after_publication_are_found(tmp_path: Path) -> None:
    folder = write_meta(tmp_path / "model", CFG, random_leaves(CFG, 1, F32))
    assert outcomes(verify(folder))["checksums"] is Outcome.GOOD
    sums = {path.name: hashlib.md5(path.read_bytes()).hexdigest() for path in folder.iterdir()}
    (folder / "checklist.chk").write_text("".join(f"{digest}  {name}\n" for name, digest in sums.items()))
    assert "the MD5 of 2 files" in text_of(verify(folder), "checksums")
    path = folder / "consolidated.00.pth"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    (folder / "checklist.chk").write_text((folder / "checklist.chk").read_text() + "00  ../../etc/passwd\n00  missing.pth\n")
    text = text_of(verify(folder), "checksums")
    assert "do not have their checksum" in text and "does not have the MD5" in text
    assert "../../etc/passwd" in text and "missing.pth" in text


def test_a_model_that_is_too_large_is_tried_with_its_first_layers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from herd.convert import self_test

    cfg = tiny_llama(num_layers=4)
    path = write_huggingface(tmp_path / "model", cfg, random_leaves(cfg, 1, F32))
    monkeypatch.setattr(self_test, "MOST_BYTES", 5_500_000)
    assert "with the first 2 of 4 layers" in text_of(verify(path), "self-test")
    monkeypatch.setattr(self_test, "MOST_BYTES", 1_000_000)
    assert outcomes(verify(path))["self-test"] is Outcome.SKIPPED


def test_backends_that_disagree_are_a_problem(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from herd.convert import self_test

    path = write_huggingface(tmp_path / "model", CFG, random_leaves(CFG, 1, F32))
    monkeypatch.setattr(self_test, "ALLOWED", {False: 1e-12, True: 1e-12})
    assert outcomes(verify(path))["self-test"] is Outcome.PROBLEM


def test_the_command_prints_a_page_and_tells_by_its_exit_code(tmp_path: Path) -> None:
    good = CliRunner().invoke(main, ["verify", str(STORIES)])
    assert (good.exit_code, good.output.splitlines()[-1][:6]) == (0, "whole:")
    write_huggingface(tmp_path / "model", CFG, random_leaves(CFG, 1, F32), {"num_hidden_layers": 2})
    bad = CliRunner().invoke(main, ["verify", str(tmp_path / "model"), "--json"])
    assert bad.exit_code == 3
    verdict = json.loads(bad.output)
    assert verdict["is_good"] is False and verdict["checks"][0]["outcome"] == "problem"
    missing = CliRunner().invoke(main, ["verify", str(tmp_path / "absent.gguf")])
    assert missing.exit_code == 3 and "does not exist" in missing.output


def test_progress_counts_every_byte() -> None:
    seen: list[tuple[int, int]] = []
    verify(STORIES, progress=lambda name, done, total: seen.append((done, total)))
    assert seen[-1][0] == seen[-1][1]


@pytest.mark.parametrize("is_changed", [False, True], ids=["as published", "a bit changed"])
def test_a_pulled_file_has_its_published_sha256(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_changed: bool) -> None:
    """Changed bytes of a weight are still finite numbers; only the digest tells."""
    path = write_gguf(tmp_path / "small.gguf", CFG, random_leaves(CFG, 1, Q4_0))
    release = find("smollm2-135m-instruct")
    assert release.wheel is not None
    wheel = replace(release.wheel, member="a/small.gguf", num_bytes=path.stat().st_size, sha256=digest(path))
    known = Found("small", path, replace(release, wheel=wheel, parameters=None))
    monkeypatch.setattr(import_module("herd.convert.verify"), "find_model", lambda model, is_fetched: known)
    if is_changed:
        data = bytearray(path.read_bytes())
        data[-100] ^= 1
        path.write_bytes(data)
    verdict = verify("small")
    assert outcomes(verdict)["checksums"] is (Outcome.PROBLEM if is_changed else Outcome.GOOD)
    assert ("pull it again" if is_changed else "has the published SHA-256") in text_of(verdict, "checksums")


def test_files_from_a_hub_have_the_sha256_that_it_announced(tmp_path: Path) -> None:
    complete = write_huggingface(tmp_path / "model", CFG, random_leaves(CFG, 1, F32))
    models_folder().mkdir(parents=True)
    publish("pulled", complete, "a hub", {"model.safetensors": digest(complete / "model.safetensors")})
    assert text_of(verify("pulled"), "checksums") == "model.safetensors has the published SHA-256"
    folder = models_folder() / "pulled"
    path = folder / "model.safetensors"
    data = bytearray(path.read_bytes())
    data[-100] ^= 1
    path.write_bytes(data)
    for named in ("pulled", folder):
        verdict = verify(named)
        assert outcomes(verdict)["checksums"] is Outcome.PROBLEM and "pull it again" in text_of(verdict, "checksums")
    for damaged in ('{"sha256": {"../model.safetensors": "0"}}', '{"sha256": ["model.safetensors"]}', "{"):
        (folder / SOURCE_FILE).write_text(damaged)
        assert not verify("pulled").is_good, damaged
    (folder / SOURCE_FILE).write_text('{"sha256": {"absent.safetensors": "0"}}')
    assert "absent.safetensors: is missing" in text_of(verify("pulled"), "checksums")
