"""Packed weights that are kept from one start to the next give the same bits, and only for the same files and settings."""

from __future__ import annotations

import hashlib
import os
import shutil
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from herd.backends.base import BackendOptions, Plan, Span
from herd.checkpoints import open_checkpoint
from herd.dtypes import ALL, BF16, F32, Q4_1, Q8_0, DType
from herd.errors import FileProblem, UsageError
from herd.files import kept as files_kept
from herd.files.folders import cache_folder
from herd.models.deberta import DebertaConfig, tensors
from herd.models.weights import Kind, TensorSpec
from tiny import dense_f32, random_leaves, tiny_llama, tiny_llama4
from tiny_files import write_gguf

_core = pytest.importorskip("herd._core", reason="the extension herd._core is not built (pip install -e .)", exc_type=ImportError)
cpu = pytest.importorskip("herd.backends.cpu")
kept = pytest.importorskip("herd.backends.cpu.kept")

CFG = tiny_llama(num_layers=2, qkv_bias=True)
TOKENS = [1, 5, 9, 200, 7]


@pytest.fixture(autouse=True)
def _small_models_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kept, "MIN_BYTES", 0)


def mixed(spec: TensorSpec) -> DType:
    """Every kind of storage that one model can have."""
    if spec.kind in (Kind.NORM, Kind.BIAS):
        return F32
    return Q8_0 if spec.kind is Kind.EMBEDDING else BF16 if "down" in spec.name else Q4_1


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return write_gguf(tmp_path / "model.gguf", CFG, random_leaves(CFG, dtype=mixed))


class Counted:
    """Leaves of a checkpoint, counted as they are asked for."""

    def __init__(self, checkpoint: Any) -> None:
        self.checkpoint, self.count = checkpoint, 0

    def __call__(self, name: str) -> Any:
        self.count += 1
        return self.checkpoint.leaf(name)


def start(path: Path, **options: Any) -> tuple[Any, int]:
    """(a backend that has answered nothing yet, how many weights it has read from the model's file)."""
    checkpoint = open_checkpoint(path)
    leaf = Counted(checkpoint)
    origin = kept.Origin(checkpoint.digest(), path)
    backend = cpu.CpuBackend(
        checkpoint.config, leaf, BackendOptions(**{"threads": 2, "max_step_tokens": 64, **options}), lambda: None, origin=origin
    )
    backend.allocate(4)
    return backend, leaf.count


def answer(backend: Any) -> NDArray[np.float32]:
    result = backend.step(Plan((Span(0, TOKENS, [3, 1], len(TOKENS)),), want_logits=True))
    assert result.logits_RV is not None
    logits: NDArray[np.float32] = result.logits_RV
    return logits


def run(path: Path, **options: Any) -> tuple[bytes, int]:
    """(bits of the answer, weights read) of one start, answer and end."""
    backend, count = start(path, **options)
    bits = answer(backend).tobytes()
    backend.close()
    return bits, count


def files() -> list[Path]:
    return sorted(cache_folder().glob("*")) if cache_folder().is_dir() else []


@pytest.mark.parametrize("options", [{}, {"activations": "float32"}, {"dtype": "float16"}], ids=["int8", "float32", "float16"])
@pytest.mark.parametrize("isa", _core.available_isas())
def test_the_second_start_reads_no_weight_and_gives_the_same_bits(
    path: Path, isa: str, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HERD_ISA", isa)
    first, count = run(path, **options)
    assert count > 10 and len(files()) == 1
    assert run(path, **options) == (first, 0)
    assert run(path, threads=1, **options) == (first, 0)


def test_what_a_backend_says_of_itself_is_the_same_with_kept_weights(path: Path) -> None:
    packed, _ = start(path)
    answer(packed)
    packed.close()
    first, _ = start(path)
    packed, _ = start(path.rename(path.with_name("moved.gguf")), activations="int8")
    assert packed.fingerprint == first.fingerprint and packed.memory() == first.memory()


def test_another_instruction_set_arithmetic_or_format_is_another_file(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run(path)
    for options in ({"activations": "float32"}, {"dtype": "float32"}):
        assert run(path, **options)[1] > 0
    monkeypatch.setenv("HERD_ISA", "portable")
    run(path)
    assert len(files()) == 4 if _core.available_isas()[-1] != "portable" else 3


def test_a_file_that_was_touched_moved_in_or_changed_is_packed_again(path: Path) -> None:
    first, _ = run(path)
    os.utime(path, ns=(1, 1))
    assert run(path) == (first, len(open_checkpoint(path).specs))
    copy = path.with_name("copy.gguf")
    shutil.copy2(path, copy)
    copy.replace(path)
    assert run(path)[1] > 0, "another inode"
    status = path.stat()
    data = bytearray(path.read_bytes())
    at = data.index(b"general.name") if b"general.name" in data else data.index(b"llama.context_length")
    write_gguf(path, replace(CFG, context_length=CFG.context_length * 2), random_leaves(CFG, dtype=mixed))
    os.utime(path, ns=(status.st_mtime_ns, status.st_mtime_ns))
    assert at and run(path)[1] > 0, "another header, with the time of the old one"


def test_a_damaged_or_foreign_kept_file_is_packed_again_and_replaced(path: Path) -> None:
    first, _ = run(path)
    (file,) = files()
    for data in (file.read_bytes()[:-1], b"", file.read_bytes()[:100]):
        file.write_bytes(data)
        assert run(path)[0] == first
        assert run(path) == (first, 0)
    name = file.name.removesuffix(".kept")
    for about, parts in (({}, {}), ({"matrices": {}}, {"x": memoryview(b"")})):
        files_kept.keep(name, about, parts, lambda: False)
        assert run(path)[0] == first and run(path) == (first, 0)


def _changed(file: Path, part: str, num_bytes: int, value: int) -> None:
    """Bytes in the middle of a part of a kept file, replaced."""
    whole = bytearray(file.read_bytes())
    found = files_kept.read_kept(file)
    assert found is not None
    data = bytes(found.part(part))
    at = bytes(whole).index(data) + len(data) // 2 // 64 * 64
    whole[at : at + num_bytes] = bytes([value]) * num_bytes
    file.write_bytes(whole)


@pytest.fixture
def _unread_when_opened(monkeypatch: pytest.MonkeyPatch) -> None:
    """As files are whose weights are not tiny."""
    monkeypatch.setattr(files_kept, "CHECKED_AT_ONCE_BYTES", 0)


def test_a_small_kept_file_with_changed_bytes_is_packed_again_and_replaced(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files_kept, "CHECKED_AT_ONCE_BYTES", 16 << 20)
    first, _ = run(path)
    _changed(files()[0], "layers.1.ffn.up", 16, 0x55)
    bits, count = run(path)
    assert bits == first and count > 0 and run(path) == (first, 0)


@pytest.mark.usefixtures("_unread_when_opened")
def test_logits_that_are_no_numbers_because_the_kept_file_is_damaged_are_computed_again_and_the_file_is_replaced(path: Path) -> None:
    first, _ = run(path)
    _changed(files()[0], "norm", 8, 0xFF)
    backend, count = start(path)
    assert count == 0, "a start does not read what it maps"
    assert answer(backend).tobytes() == first
    backend.close()
    assert run(path) == (first, 0)


@pytest.mark.usefixtures("_unread_when_opened")
def test_after_the_first_answer_a_damaged_kept_file_ends_the_model_with_its_own_name(path: Path) -> None:
    first, _ = run(path)
    (file,) = files()
    backend, _ = start(path)
    assert answer(backend).tobytes() == first
    backend._packed["norm"] = backend._packer.pack(backend._specs["norm"], dense_f32(np.full(CFG.width, np.nan, np.float32)))
    backend._traced()
    _changed(file, "norm", 8, 0xFF)
    for _ in range(2):
        with pytest.raises(FileProblem, match=rf"{file.name} was damaged \(1 of its \d+ weights\).* Load the model again"):
            answer(backend)
    backend.close()
    assert run(path)[0] == first
    assert run(path) == (first, 0)


@pytest.mark.usefixtures("_unread_when_opened")
def test_logits_that_are_no_numbers_from_a_whole_kept_file_are_the_models_own(path: Path) -> None:
    leaves = random_leaves(CFG, dtype=mixed)
    write_gguf(path, CFG, leaves | {"norm": dense_f32(np.full(CFG.width, np.nan, np.float32))})
    for _ in range(2):
        backend, _ = start(path)
        with pytest.raises(FileProblem, match="check the file against its published SHA-256"):
            answer(backend)
        backend._loading.answered()
        backend.close()
    assert len(files()) == 1


def test_parts_of_wrong_lengths_and_formats_are_packed_again(path: Path) -> None:
    first, _ = run(path)
    (file,) = files()
    name = file.name.removesuffix(".kept")
    good = files_kept.open_kept(name)
    assert good is not None
    parts = {each: memoryview(bytes(good.part(each))) for each in good.names}
    matrix = next(iter(good.about["matrices"]))
    vector = next(each for each in good.names if each not in good.about["matrices"])
    storage, rows, columns = good.about["matrices"][matrix]
    wrong: list[tuple[dict[str, Any], dict[str, memoryview]]] = [
        ({}, {matrix: parts[matrix][:-64]}),
        ({}, {vector: parts[vector][:-4]}),
        ({matrix: (storage, columns, rows + 1)}, {}),
        ({matrix: (99, rows, columns)}, {}),
        ({matrix: (storage, rows)}, {}),
    ]
    for matrices, changed in wrong:
        files_kept.keep(name, {**good.about, "matrices": {**good.about["matrices"], **matrices}}, {**parts, **changed}, lambda: False)
        bits, count = run(path)
        assert bits == first and count > 0


def test_nothing_is_written_before_the_first_answer(path: Path) -> None:
    backend, _ = start(path)
    backend.close()
    assert files() == []


def test_closing_waits_for_the_writer_only_a_moment_and_leaves_nothing_half_written(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kept, "_WAIT_S", 0.05)
    original = files_kept._write
    stuck = threading.Event()

    def slowly(file: Any, begin: int, part: memoryview, is_cancelled: Any) -> None:
        while not is_cancelled():
            stuck.wait(0.01)
        original(file, begin, part, is_cancelled)

    monkeypatch.setattr(files_kept, "_write", slowly)
    run(path)
    assert files() == [] and not any(thread.name == "herd-keep" for thread in threading.enumerate())


def test_weights_that_are_updated_while_others_are_kept_stay_this_backends_own(path: Path) -> None:
    first, _ = run(path)
    backend, count = start(path)
    assert count == 0
    before = answer(backend)
    backend.update({"norm": dense_f32(np.full(CFG.width, 2.0, np.float32))})
    assert not np.array_equal(answer(backend), before)
    backend.close()
    assert run(path) == (first, 0)


def test_stacked_experts_are_kept_too() -> None:
    cfg = tiny_llama4()
    leaves = random_leaves(cfg, dtype=lambda spec: F32 if spec.kind.is_vector else Q8_0)
    origin = kept.Origin("a model of experts", Path("model"))
    bits = []
    for leaf in (leaves.__getitem__, {}.__getitem__):
        backend = cpu.CpuBackend(cfg, leaf, BackendOptions(threads=2, max_step_tokens=64), lambda: None, origin=origin)
        backend.allocate(4)
        bits.append(answer(backend).tobytes())
        backend.close()
    assert bits[0] == bits[1]


@pytest.mark.usefixtures("_unread_when_opened")
def test_a_classifier_whose_kept_weights_are_damaged_scores_again_with_its_own() -> None:
    cfg = DebertaConfig(
        width=16, num_layers=1, num_heads=2, mlp_width=24, vocab_size=40, context_length=32, buckets=8, max_distance=20, norm_eps=1e-7,
        labels=("BENIGN", "INJECTION"),
    )  # fmt: skip
    rng = np.random.default_rng(2)
    leaves = {spec.name: dense_f32(rng.standard_normal(spec.shape).astype(np.float32) / 4) for spec in tensors(cfg)}
    scores = []
    for damage in (None, 0xFF, None):
        if damage is not None:
            _changed(files()[0], next(name for name in leaves if "norm" in name), 8, damage)
        origin = kept.Origin("a classifier", Path("model"))
        backend = cpu.CpuBackend(cfg, leaves.__getitem__, BackendOptions(threads=1), lambda: None, origin=origin)
        scores.append(backend.classify([1, 2, 3]).tobytes())
        backend.close()
    assert scores[0] == scores[1] == scores[2] and np.isfinite(np.frombuffer(scores[0], np.float32)).all()


def test_small_models_are_not_kept(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    monkeypatch.setenv("HERD_HOME", str(path.parent / "home"))
    run(path)
    assert files() == []


def test_packed_bytes_that_do_not_fit_are_refused() -> None:
    machine = _core.Machine(1, "portable")
    data = np.zeros(32 * 4 * 32, np.uint8)
    whole = _core.Matrix(machine, 0, "int8", 32, 32, data)
    assert whole.storage == 0 and len(whole.packed) == whole.num_bytes
    with pytest.raises(ValueError, match="bytes, expected"):
        _core.Matrix.over(machine, 0, "int8", 32, 32, whole.packed[:-1])
    with pytest.raises(ValueError, match="aligned"):
        _core.Matrix.over(machine, 0, "int8", 32, 32, memoryview(bytearray(whole.num_bytes + 64))[1 : whole.num_bytes + 1])
    with pytest.raises(ValueError, match="not a format"):
        _core.Matrix.over(machine, 99, "int8", 32, 32, whole.packed)


def test_a_matrix_over_packed_bytes_keeps_them_alive() -> None:
    machine = _core.Machine(1, "portable")
    rows = np.arange(32 * 32, dtype=np.float32).reshape(32, 32)
    over = _core.Matrix.over(machine, 0, "int8", 32, 32, _core.Matrix(machine, 0, "int8", 32, 32, rows.view(np.uint8).reshape(-1)).packed)
    out = np.zeros(32, np.float32)
    over.row(machine, 31, out)
    assert np.array_equal(out, rows[31])


def test_the_layout_of_packed_bytes_has_the_number_it_was_recorded_with() -> None:
    """Where this fails packed bytes have changed: raise kPackedLayout in csrc/kernels/layout.h, then record anew."""
    assert (_core.PACKED_LAYOUT, _digest("portable")) == (2, RECORDED)


def _digest(isa: str) -> str:
    machine = _core.Machine(1, isa)
    rng = np.random.default_rng(3)
    found = hashlib.sha256()
    for dtype in sorted(ALL, key=lambda each: each.ggml_id):
        stored = np.frombuffer(rng.bytes(40 * dtype.row_bytes(512)), np.uint8)
        found.update(_core.Matrix(machine, dtype.ggml_id, "int8", 40, 512, stored).packed)
    return found.hexdigest()


RECORDED = "e03420177ed3dde079b8f9cb010244c977514fa6c295b04f5a52955987913cef"


def test_a_wrong_cache_size_is_refused_by_name(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HERD_CACHE_BYTES", "lots")
    with pytest.raises(UsageError, match="HERD_CACHE_BYTES is 'lots'"):
        start(path)


@pytest.fixture(autouse=True)
def _no_writer_is_left() -> Iterator[None]:
    yield
    for thread in threading.enumerate():
        if thread.name == "herd-keep":
            thread.join(5)
