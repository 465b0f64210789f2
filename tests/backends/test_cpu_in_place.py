"""Plain matrices give the same bits in their file, while they are packed and packed; nothing of it is left behind."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from herd.backends.base import BackendOptions, Plan, Span
from herd.checkpoints import open_checkpoint
from herd.dtypes import BF16, F16, F32, Q8_0, DType
from herd.files.folders import cache_folder
from herd.models.weights import TensorSpec
from tiny import random_leaves, tiny_llama
from tiny_files import write_gguf, write_huggingface

_core = pytest.importorskip("herd._core", reason="the extension herd._core is not built (pip install -e .)", exc_type=ImportError)
cpu = pytest.importorskip("herd.backends.cpu")
in_place = pytest.importorskip("herd.backends.cpu.in_place")
kept = pytest.importorskip("herd.backends.cpu.kept")

CFG = tiny_llama(num_layers=2)
TOKENS = [1, 5, 9, 200, 7, 3, 3, 11]


@pytest.fixture(autouse=True)
def _small_matrices_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(in_place, "MIN_BYTES", 0)


def plain(dtype: DType) -> Any:
    def of(spec: TensorSpec) -> DType:
        return F32 if spec.kind.is_vector else dtype

    return of


def folder(path: Path, dtype: DType, shards: int = 1) -> Path:
    return write_huggingface(path / "model", CFG, random_leaves(CFG, dtype=plain(dtype)), shards=shards)


def start(path: Path, *, is_in_place: bool = True, origin: Any = None, **options: Any) -> Any:
    checkpoint = open_checkpoint(path)
    backend = cpu.CpuBackend(
        checkpoint.config,
        checkpoint.leaf,
        BackendOptions(**{"threads": 2, "max_step_tokens": 64, **options}),
        checkpoint.release_pages,
        origin=origin,
        checkpoint=checkpoint if is_in_place else None,
    )
    backend.allocate(4)
    return backend


def answer(backend: Any, tokens: list[int] = TOKENS) -> bytes:
    result = backend.step(Plan((Span(0, tokens, [3, 1], len(tokens)),), want_logits=True))
    assert result.logits_RV is not None
    logits: NDArray[np.float32] = result.logits_RV
    return logits.tobytes()


def waiting(backend: Any) -> int:
    """How many matrices are in place."""
    return sum(isinstance(each, cpu.packed.PackedMatrix) and each.native.is_in_place for each in backend._packed.values())


def wait_for(name: str) -> None:
    for thread in threading.enumerate():
        if thread.name == name:
            thread.join(10)


@pytest.mark.parametrize("dtype", [F32, F16, BF16], ids=["f32", "f16", "bf16"])
@pytest.mark.parametrize("isa", _core.available_isas())
def test_matrices_in_their_file_give_the_bits_of_packed_ones(
    tmp_path: Path, isa: str, dtype: DType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HERD_ISA", isa)
    path = folder(tmp_path, dtype, shards=2)
    packed = start(path, is_in_place=False)
    assert waiting(packed) == 0
    backend = start(path)
    assert waiting(backend) == sum(len(spec.shape) == 2 for spec in open_checkpoint(path).specs)
    for tokens in (TOKENS, [4], TOKENS * 5):
        assert answer(backend, tokens) == answer(packed, tokens)
    wait_for("herd-pack")
    assert waiting(backend) == 0
    for tokens in (TOKENS, [4], TOKENS * 5):
        assert answer(backend, tokens) == answer(packed, tokens)
    assert backend.memory().weights == packed.memory().weights
    backend.close()


def test_nothing_is_packed_before_the_first_answer_and_everything_after_it(tmp_path: Path) -> None:
    backend = start(folder(tmp_path, BF16))
    before = waiting(backend)
    assert before > 10
    answer(backend)
    wait_for("herd-pack")
    assert waiting(backend) == 0
    backend.close()


def test_matrices_that_cannot_be_used_as_they_are_stored_are_packed_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert waiting(start(folder(tmp_path, BF16), dtype="float16")) == 0
    assert waiting(start(folder(tmp_path, BF16), dtype="bfloat16")) > 0
    blocks = write_gguf(tmp_path / "model.gguf", CFG, random_leaves(CFG, dtype=plain(Q8_0)))
    assert waiting(start(blocks)) == 0
    monkeypatch.undo()
    assert waiting(start(folder(tmp_path, BF16))) == 0, "all of them are small"


def test_packed_weights_are_kept_after_they_were_packed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kept, "MIN_BYTES", 0)
    path = folder(tmp_path, BF16)
    origin = kept.Origin(open_checkpoint(path).digest(), path)
    backend = start(path, origin=origin)
    first = answer(backend)
    backend.close()
    assert len(list(cache_folder().glob("*.kept"))) == 1
    backend = start(path, origin=origin)
    assert waiting(backend) == 0 and answer(backend) == first
    backend.close()


def test_closing_stops_both_threads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(in_place, "_WAIT_S", 0.0)
    backend = start(folder(tmp_path, F32))
    backend.close()
    backend = start(folder(tmp_path, F32))
    answer(backend)
    backend.close()
    assert not {"herd-pack", "herd-read"} & {thread.name for thread in threading.enumerate()}


def test_weights_updated_while_others_are_packed_stay(tmp_path: Path) -> None:
    path = folder(tmp_path, BF16)
    backend, packed = start(path), start(path, is_in_place=False)
    other = random_leaves(CFG, seed=1, dtype=plain(BF16))
    name = next(spec.name for spec in open_checkpoint(path).specs if spec.rotary_heads and len(spec.shape) == 2)
    answer(backend)
    for each in (backend, packed):
        each.update({name: other[name]})
    assert answer(backend) == answer(packed)
    wait_for("herd-pack")
    assert answer(backend) == answer(packed)
    backend.close()


def product(machine: Any, matrix: Any, x: NDArray[np.float32]) -> bytes:
    y = np.zeros((len(x), matrix.rows), np.float32)
    _core.linear(machine, matrix, None, x, y)
    return y.tobytes()


@pytest.mark.parametrize("dtype", [F32, F16, BF16], ids=["f32", "f16", "bf16"])
@pytest.mark.parametrize(("rows", "columns"), [(1, 1), (15, 7), (16, 8), (33, 35), (64, 96), (48, 130)])
@pytest.mark.parametrize("isa", _core.available_isas())
def test_every_shape_is_packed_turned_and_multiplied_the_same(isa: str, rows: int, columns: int, dtype: DType) -> None:
    machine, rng = _core.Machine(2, isa), np.random.default_rng(rows)
    values = rng.standard_normal((rows, columns)).astype(np.float32)
    stored = {F32: values, F16: values.astype(np.float16), BF16: (values.view(np.uint32) >> 16).astype(np.uint16)}[dtype]
    data = np.ascontiguousarray(stored).view(np.uint8).reshape(-1)
    matrix = _core.Matrix.in_place(machine, dtype.ggml_id, "int8", rows, columns, data)
    packed = _core.Matrix(machine, dtype.ggml_id, "int8", rows, columns, data)
    x = rng.standard_normal((9, columns)).astype(np.float32)
    expected = product(machine, packed, x)
    assert product(machine, matrix, x) == expected and matrix.is_in_place
    matrix.settle(machine)
    assert not matrix.is_in_place and bytes(matrix.packed) == bytes(packed.packed) and product(machine, matrix, x) == expected


@pytest.mark.parametrize("isa", _core.available_isas())
def test_halves_of_heads_that_a_file_keeps_apart_are_brought_together(isa: str) -> None:
    machine = _core.Machine(1, isa)
    ours = np.arange(48 * 20, dtype=np.float32).reshape(48, 20)
    apart = np.ascontiguousarray(ours.reshape(3, 8, 2, 20).swapaxes(1, 2)).view(np.uint8).reshape(-1)
    packed = _core.Matrix(machine, 0, "int8", 48, 20, ours.view(np.uint8).reshape(-1)).packed
    assert bytes(_core.Matrix(machine, 0, "int8", 48, 20, apart, None, 16).packed) == bytes(packed)
    matrix = _core.Matrix.in_place(machine, 0, "int8", 48, 20, apart, 16)
    row = np.zeros(20, np.float32)
    for index in range(48):
        matrix.row(machine, index, row)
        assert np.array_equal(row, ours[index])
    matrix.settle(machine)
    assert bytes(matrix.packed) == bytes(packed)


def test_what_cannot_be_in_place_is_refused() -> None:
    machine = _core.Machine(1, "portable")
    data = np.zeros(32 * 32 * 4, np.uint8)
    with pytest.raises(ValueError, match="only matrices of plain formats"):
        _core.Matrix.in_place(machine, Q8_0.ggml_id, "int8", 32, 32, data[: 32 * 34])
    with pytest.raises(ValueError, match="bytes, expected"):
        _core.Matrix.in_place(machine, 0, "int8", 32, 32, data[:-1])
    for head_width in (-2, 3, 12):
        with pytest.raises(ValueError, match="head_width is"):
            _core.Matrix.in_place(machine, 0, "int8", 32, 32, data, head_width)
    matrix = _core.Matrix.in_place(machine, 0, "int8", 32, 32, data)
    with pytest.raises(ValueError, match="not packed"):
        matrix.packed  # noqa: B018
    with pytest.raises(ValueError, match="no parts"):
        matrix.part(0, 16)
