"""A model that several processes hold together, by heads, columns and experts, learns what one process's model does."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch", reason="torch is not installed (pip install herd-llama[torch])")
import torch
from torch import Tensor

from herd.errors import UsageError
from herd.models.architecture import architecture_of
from herd.models.ops import Chunks, Sliding, Window
from herd.training.running.parallel import company
from herd.training.running.runs import State, _is_harmless, read_log, state_of
from herd.training.settings.lora import Lora
from herd.training.settings.optimiser import OptimiserSettings
from herd.training.settings.parallel import ParallelSettings
from herd.training.settings.pretrain import PretrainSettings, TeacherSettings
from herd.training.student.attention import Packed
from herd.training.student.batches import Document, batch_of
from herd.training.student.model import Student
from herd.training.student.sharing import Sharing
from herd.training.student.spread import Context, Spread, _Attended
from tiny import random_leaves, tiny_llama, tiny_llama4
from training.pretraining_together import make_place, work
from training.test_parallel_pretrain import same, together


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pretraining")
    make_place(folder)
    return folder


def nothing(tensor: Tensor) -> Tensor:
    raise AssertionError("nobody to talk to")


def sharing(index: int = 0, count: int = 2, *, tensor: int = 2, expert: int = 1, total: Callable[[Tensor], Tensor] = nothing) -> Sharing:
    return Sharing(ParallelSettings(tensor=tensor, expert=expert), index, count, total, lambda tensor: [tensor])


def test_two_processes_that_hold_heads_columns_and_experts_come_to_what_one_comes_to(place: Path, tmp_path: Path) -> None:
    together(place, tmp_path / "two", "experts-shared")
    work(place, tmp_path / "one", "experts-whole")
    same(tmp_path / "one", tmp_path / "two")


@pytest.mark.slow  # each case starts processes
@pytest.mark.parametrize(
    ("case", "count"),
    [
        ("dense-shared tensor", 2),
        ("experts-shared expert", 2),
        ("recomputed-shared", 2),
        ("taught-shared tensor", 4),
        ("recomputed-divided context", 2),
        ("experts-shared context", 4),
    ],
)
def test_processes_that_hold_a_part_of_a_model_come_to_what_one_comes_to(place: Path, tmp_path: Path, case: str, count: int) -> None:
    if case.startswith("taught"):
        from herd.cli.train_pretrain import write_model
        from herd.training.beginning.pretrain_run import pretrain
        from training.pretraining_together import settings_of

        pretrain(settings_of(place, "dense"), place / "teacher", write_model)
    together(place, tmp_path / "many", case, count)
    work(place, tmp_path / "one", case)
    same(tmp_path / "one", tmp_path / "many")


@pytest.mark.slow  # a pair of processes
def test_one_process_goes_on_with_what_two_that_shared_a_model_have_saved(place: Path, tmp_path: Path) -> None:
    together(place, tmp_path / "handed", "experts-shared-stop")
    assert state_of(tmp_path / "handed") is State.STOPPED and len(list(read_log(tmp_path / "handed" / "metrics.jsonl"))) == 5
    work(place, tmp_path / "handed", "experts-whole")
    work(place, tmp_path / "one", "experts-whole")
    same(tmp_path / "one", tmp_path / "handed")


def test_parts_of_all_weights_make_up_the_model_again() -> None:
    cfg = tiny_llama4()
    leaves = random_leaves(cfg)
    for spec in architecture_of(cfg).tensors(cfg):
        parts = [Student(cfg, leaves.__getitem__, sharing=sharing(index, expert=2)).parameters[spec.name] for index in range(2)]
        axis = sharing(expert=2).axis(spec.name)
        whole = Student(cfg, leaves.__getitem__).parameters[spec.name]
        assert torch.equal(parts[0] if axis is None else torch.cat([*parts], dim=axis), whole), spec.name


@pytest.mark.parametrize("window", [None, Chunks(100), Sliding(90)], ids=["all", "chunks", "sliding"])
def test_attention_of_stretches_is_that_of_whole_documents(window: Window | None) -> None:
    torch.manual_seed(3)
    lengths, (q, k, v, dy) = (5, 300, 7), [torch.randn(312, heads, 8, dtype=torch.float64) for heads in (4, 2, 2, 4)]
    whole = [x.clone().requires_grad_() for x in (q, k, v)]
    wanted = Packed(lengths).attend(*whole, 0.3, window)
    wanted.backward(dy)  # type: ignore[no-untyped-call]
    summed = [torch.zeros_like(x) for x in (q, k, v)]
    for first, last in ((0, 3), (3, 170), (170, 312)):
        mine, keys, values = (x.clone().requires_grad_() for x in (q[first:last], k, v))
        spread = Spread(lengths, first, last, Context(0, 3, nothing))
        y = _Attended.apply(mine, keys, values, spread, 0.3, window)  # type: ignore[no-untyped-call]
        torch.testing.assert_close(y, wanted[first:last])
        y.backward(dy[first:last])
        for total, each in zip(summed[1:], (keys, values), strict=True):
            total += each.grad
        summed[0][first:last] = mine.grad
    for total, each in zip(summed, whole, strict=True):
        torch.testing.assert_close(total, each.grad)


def test_a_batch_is_taken_apart_without_losing_a_prediction() -> None:
    random = np.random.default_rng(1)
    documents = [Document((1,) * length, (0.0, *random.choice([0.0, 1.0], length - 1).tolist())) for length in (4, 9, 2, 6)]
    whole = batch_of(documents)
    parts = [Context(index, 3, nothing).stretch(whole) for index in range(3)]
    for name in ("tokens_T", "positions_T", "targets_R", "weights_R", "document_R"):
        assert torch.equal(torch.cat([getattr(part, name) for part in parts]), getattr(whole, name)), name
    assert torch.equal(torch.cat([part.rows_R + part.only[0] for part in parts if part.only]), whole.rows_R)
    with pytest.raises(UsageError, match="too few"):
        Context(0, 30, nothing).stretch(whole)


def test_what_does_not_divide_is_refused_by_name() -> None:
    dense, mixed = tiny_llama(), tiny_llama4()
    for count, cfg, given, said in (
        (3, dense, {"tensor": 3}, "heads do not divide"),
        (64, mixed, {"expert": 64, "tensor": 1}, "experts do not divide"),
        (2, dense, {"expert": 2, "tensor": 1}, "0 experts do not divide"),
    ):
        with pytest.raises(UsageError, match=said):
            sharing(0, count, **given).check(cfg)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="give one number"):
        ParallelSettings(tensor=2, expert=4)
    with pytest.raises(UsageError, match="there are 1"), company(parallel=ParallelSettings(tensor=2)):
        pass
    with pytest.raises(UsageError, match=r"parallel\.context is 2, and"):
        ParallelSettings(tensor=2, context=2)
    with pytest.raises(UsageError, match="A teacher reads whole documents"):
        PretrainSettings(parallel=ParallelSettings(context=2), teacher=TeacherSettings(model="another"))
    with pytest.raises(UsageError, match="Muon"):
        PretrainSettings(parallel=ParallelSettings(tensor=2), optimiser=OptimiserSettings(name="muon"))


def test_blocks_are_divided_where_that_cuts_none() -> None:
    from herd.dtypes import Q8_0
    from herd.models.weights import Blocks

    stored = Blocks(Q8_0, (8, 32), np.zeros((8, 34), np.uint8))
    assert sharing().leaf(lambda name: stored)("layers.0.ffn.gate").shape == (4, 32)
    with pytest.raises(UsageError, match=r"layers\.0\.ffn\.down has 32 columns in blocks of 32 .*would cut"):
        sharing().leaf(lambda name: stored)("layers.0.ffn.down")


def test_what_looks_at_whole_rows_or_tokens_is_refused_in_a_part_of_a_model() -> None:
    cfg = tiny_llama()
    leaf = random_leaves(cfg).__getitem__
    with pytest.raises(UsageError, match="DoRA looks at whole rows"):
        Student(cfg, leaf, lora=Lora(rank=2, dora=True), sharing=sharing())
    with pytest.raises(UsageError, match="Learning for four bits looks at whole tokens"):
        Student(cfg, leaf, four_bits=True, sharing=sharing())


def test_a_resumed_run_may_have_other_processes_but_no_other_model() -> None:
    assert _is_harmless("parallel.context: 1 then, 2 now") and _is_harmless("loop.divided: false then, true now")
    assert not _is_harmless("model.context: 512 then, 1024 now") and not _is_harmless("loop.seed: 0 then, 1 now")
