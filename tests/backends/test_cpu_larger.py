"""Weights that memory does not hold run from the disk, with the same bits, or are refused by name."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections import namedtuple
from pathlib import Path
from typing import Any

import pytest

import herd
from herd.backends.base import BackendOptions, Plan, Span
from herd.dtypes import BF16, F32, Q4_0, Q4_1, Q6_K, Q8_0, DType
from herd.errors import CapacityError
from herd.files import kept as files_kept
from herd.files.folders import cache_folder
from herd.models.weights import Kind, TensorSpec
from tiny import random_leaves, tiny_llama, tiny_llama4
from tiny_files import write_gguf

_core = pytest.importorskip("herd._core", reason="the extension herd._core is not built (pip install -e .)", exc_type=ImportError)
cpu = pytest.importorskip("herd.backends.cpu")
larger = pytest.importorskip("herd.backends.cpu.larger")

TOKENS = [1, 5, 9, 200, 7]


def mixed(spec: TensorSpec) -> DType:
    if spec.kind.is_vector:
        return F32
    if spec.kind is Kind.EMBEDDING:
        return Q8_0
    return BF16 if "down" in spec.name else Q6_K if "up" in spec.name else Q4_1


class Leaves:
    """What a backend asks of a checkpoint when it packs on the disk."""

    def __init__(self, cfg: Any) -> None:
        self.leaves = random_leaves(cfg, dtype=mixed)
        self.releases = 0

    def dtype(self, name: str) -> DType:
        return self.leaves[name].dtype  # type: ignore[union-attr]

    def release_pages(self) -> None:
        self.releases += 1


def bits(cfg: Any, told: list[tuple[int, int]] | None, **options: Any) -> bytes:
    """The logits of a backend that packs in memory, or, with `told`, on the disk."""
    leaves = Leaves(cfg)
    more: dict[str, Any] = {}
    if told is not None:
        origin = cpu.Origin(f"digest of {cfg}", Path("model.gguf"))
        more = {"origin": origin, "checkpoint": leaves, "larger": larger.Larger(1 << 20, lambda done, total: told.append((done, total)))}
    backend = cpu.CpuBackend(cfg, leaves.leaves.__getitem__, BackendOptions(threads=2, max_step_tokens=64, **options), lambda: None, **more)
    backend.allocate(2)
    result = backend.step(Plan((Span(0, TOKENS, [1], len(TOKENS)),), want_logits=True))
    backend.close()
    return bytes(result.logits_RV.tobytes())


@pytest.mark.parametrize("options", [{}, {"activations": "float32"}, {"dtype": "float32"}], ids=["int8", "float32", "widened"])
@pytest.mark.parametrize("cfg", [tiny_llama(qkv_bias=True), tiny_llama4(expert_width=256)], ids=["dense", "experts"])
def test_weights_packed_on_the_disk_give_the_same_bits(cfg: Any, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(larger, "PIECE_BYTES", 1 << 15)  # many pieces of a matrix
    told: list[tuple[int, int]] = []
    assert bits(cfg, told, **options) == bits(cfg, None, **options)
    assert told[0][0] == 0 and told[-1][0] == told[-1][1] and [done for done, _ in told] == sorted(done for done, _ in told)
    assert len(list(cache_folder().glob("*.kept"))) == 1
    again: list[tuple[int, int]] = []
    assert bits(cfg, again, **options) == bits(cfg, None, **options) and not again, "the second start finds them packed"


def test_weights_that_are_damaged_on_the_disk_are_packed_there_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files_kept, "CHECKED_AT_ONCE_BYTES", 0)
    cfg, told = tiny_llama(qkv_bias=True), list[tuple[int, int]]()
    expected = bits(cfg, told)
    (file,) = cache_folder().glob("*.kept")
    kept = files_kept.read_kept(file)
    assert kept is not None
    data = bytearray(file.read_bytes())
    at = bytes(data).index(bytes(kept.part("norm")))
    data[at : at + 8] = b"\xff" * 8
    file.write_bytes(data)
    told.clear()
    assert bits(cfg, told) == expected and told, "packed anew"
    told.clear()
    assert bits(cfg, told) == expected and not told


@pytest.fixture
def model(tmp_path: Path) -> Path:
    cfg = tiny_llama()
    return write_gguf(tmp_path / "model.gguf", cfg, random_leaves(cfg, dtype=lambda spec: F32 if spec.kind.is_vector else Q4_0))


def answer(path: Path) -> tuple[list[int], list[float]]:
    with herd.load(path, threads=1, context=64) as loaded:
        out = loaded.generate([1, 2, 3], max_tokens=6, temperature=0.0)
    return list(out.token_ids), list(out.logprobs)


def test_a_model_larger_than_the_memory_answers_as_ever(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = answer(model)
    monkeypatch.setattr("herd.engine.memory.available_bytes", lambda: 100_000)
    seen: list[str] = []
    with herd.load(model, context=64, progress=lambda name, done, total: seen.append(name)):
        assert seen and all(name.startswith("packing ") for name in seen)
    assert answer(model) == expected


def test_a_model_larger_than_memory_and_disk_is_refused_by_name(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("herd.engine.memory.available_bytes", lambda: 100_000)
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(1 << 40, 1 << 40, 5000))
    with pytest.raises(CapacityError, match=r"do not fit into memory, and to run from the disk they take [\d,]+ bytes .*; 5,000 are free"):
        herd.load(model)
    monkeypatch.undo()
    monkeypatch.setenv("HERD_CACHE_BYTES", "1000")
    monkeypatch.setattr("herd.engine.memory.available_bytes", lambda: 100_000)
    with pytest.raises(CapacityError, match="HERD_CACHE_BYTES allows 1,000 bytes"):
        herd.load(model)


def test_kept_files_of_other_models_go_where_the_disk_has_no_room_for_both(monkeypatch: pytest.MonkeyPatch) -> None:
    cache_folder().mkdir(parents=True, exist_ok=True)
    old = cache_folder() / "old.kept"
    old.write_bytes(b"something else")
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(1 << 40, 0, 5000 if old.exists() else 1 << 40))
    files_kept.keep_pieces("new", {"source": "x"}, {"data": (6, iter([memoryview(b"abc"), memoryview(b"def")]))})
    found = files_kept.open_kept("new")
    assert found is not None and bytes(found.part("data")) == b"abcdef" and not old.exists()


LIMIT = 160 << 20
IN_A_GROUP = """
import os, sys
open(sys.argv[1] + "/cgroup.procs", "w").write(str(os.getpid()))
import herd
with herd.load(sys.argv[2], threads=2, context=64) as model:
    print(list(model.generate([1, 2, 3], max_tokens=4, temperature=0.0).token_ids))
"""


@pytest.fixture
def group() -> Any:
    """A control group whose processes may use LIMIT bytes; skips where none can be made."""
    second, first = Path("/sys/fs/cgroup"), Path("/sys/fs/cgroup/memory")
    for parent, sign, limit in ((second, "cgroup.controllers", "memory.max"), (first, "cgroup.procs", "memory.limit_in_bytes")):
        if not (parent / sign).exists():
            continue
        folder = parent / f"herd-test-{os.getpid()}"
        try:
            folder.mkdir()
        except OSError:
            continue
        try:
            (folder / limit).write_text(str(LIMIT))
        except OSError:
            folder.rmdir()
            continue
        yield folder
        folder.rmdir()
        return
    pytest.skip("no control group with a memory limit can be made here (it takes root and a writable /sys/fs/cgroup)")


@pytest.mark.slow
def test_a_file_larger_than_a_control_groups_limit_runs(group: Path, tmp_path: Path) -> None:
    cfg = tiny_llama(num_layers=4, ffn_width=1 << 17)  # 400 million weights, 226 MB
    path = write_gguf(tmp_path / "model.gguf", cfg, random_leaves(cfg, dtype=lambda spec: F32 if spec.kind.is_vector else Q4_0))
    assert path.stat().st_size > LIMIT
    expected = answer(path)[0][:4]
    command = [sys.executable, "-c", IN_A_GROUP, str(group), str(path)]
    environment = {**os.environ, "HERD_HOME": str(tmp_path / "home"), "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == str(expected)
    assert list((tmp_path / "home").rglob("*.kept"))
