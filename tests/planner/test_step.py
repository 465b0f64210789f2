"""The moments of a step, beside what a small model's tensors really take: bytes that were in use at once, of one step in this process."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

import pytest

from herd.dtypes import F32, Q4_0
from herd.family.catalogue import find
from herd.models.architecture import Config
from herd.planner.step import Learning, is_in_blocks, logits_bytes, moments
from herd.planner.student import PRODUCTS_BYTES, taken
from tiny import random_leaves, tiny_llama, tiny_llama4

SHAPE = {"width": 256, "num_heads": 8, "num_kv_heads": 4, "head_width": 32, "ffn_width": 768, "vocab_size": 2048, "context_length": 4096}
LLAMA = tiny_llama(num_layers=4, tied_embeddings=True, **SHAPE)
UNTIED = tiny_llama(num_layers=4, **SHAPE)
MIXTURE = tiny_llama4(expert_width=768, chunk=None, chunked_layers=(), **SHAPE)


@dataclass(frozen=True)
class Case:
    """What is learned, in packs of 400 tokens."""

    config: Config
    rank: int = 0
    blocks: bool = False
    packs: int = 1
    recompute: bool = False
    keep_bytes: int = 0

    @property
    def learning(self) -> Learning:
        return Learning(
            rank=self.rank, blocks=self.blocks, tokens=400, longest=400, packs=self.packs, recompute=self.recompute,
            keep_bytes=self.keep_bytes, threads=2,
        )  # fmt: skip


CASES = {
    "all weights": Case(LLAMA),
    "all weights, a head of its own": Case(UNTIED),
    "all weights, two packs": Case(UNTIED, packs=2),
    "all weights, one table, two packs": Case(LLAMA, packs=2),
    "all weights, recomputed": Case(LLAMA, recompute=True),
    "updates": Case(LLAMA, rank=32),
    "updates, recomputed": Case(LLAMA, rank=32, recompute=True),
    "updates over blocks": Case(LLAMA, rank=32, blocks=True),
    "updates over blocks, decoded once": Case(LLAMA, rank=32, blocks=True, keep_bytes=1 << 40),
    "updates over blocks, recomputed": Case(LLAMA, rank=32, blocks=True, recompute=True),
    "experts": Case(MIXTURE),
    "updates beside experts": Case(MIXTURE, rank=32),
    "updates beside experts in blocks": Case(MIXTURE, rank=32, blocks=True),
}


@pytest.mark.parametrize("name", CASES)
def test_tensors_take_what_was_planned(name: str) -> None:
    """Within 5 %. Frozen weights are not tensors of the step: they lie as the file has them."""
    torch = pytest.importorskip("torch")
    case = CASES[name]
    said = taken(case.config, dataclasses.replace(case.learning, threads=torch.get_num_threads()))
    planned = said.total - PRODUCTS_BYTES - (said.weights if case.rank else 0)
    if case.rank:
        adapters = said.optimizer // 2
        # and what a joined matrix has beside them: a column for each of the ranks of its updates
        joined = (256 + 128 + 128) * 3 * case.rank + (768 + 768) * 2 * case.rank
        decoded = 4 * sum(768 * 256 * 3 + 256 * 256 * 3 + joined for _ in range(4)) if case.keep_bytes else 0
        planned += adapters + decoded
    assert most_in_use(case) == pytest.approx(planned, rel=0.05)


def most_in_use(case: Case) -> int:
    """Two steps in float32, whatever is fastest here: the first makes what the optimiser keeps."""
    import torch

    from herd import _core
    from herd.training import gradients
    from herd.training.running.optim import kinds_of, make_optimiser
    from herd.training.settings.lora import Lora
    from herd.training.settings.optimiser import OptimiserSettings
    from herd.training.student.allocation import tensor_memory
    from herd.training.student.batches import Document, batch_of
    from herd.training.student.checkpointing import recomputed
    from herd.training.student.model import Student

    leaves: dict[str, Any] = random_leaves(case.config, dtype=lambda spec: Q4_0 if case.blocks and is_in_blocks(spec) else F32)
    with tensor_memory():
        pass  # what was in use before is forgotten at its end
    with tensor_memory() as is_bounded:
        if not is_bounded:
            pytest.skip("torch's memory is not glibc's here")
        before = _core.tensor_memory_bytes()[0]
        lora = Lora(rank=case.rank, alpha=32) if case.rank else None
        student = Student(case.config, leaves.__getitem__, dtype=torch.float32, lora=lora, keep_bytes=case.keep_bytes)
        student.run = recomputed if case.recompute else student.run
        optimiser = make_optimiser(OptimiserSettings(), kinds_of(case.config, student.parameters))
        tokens = torch.randint(2048, (400,), generator=torch.Generator().manual_seed(0)).tolist()
        for _ in range(2):
            for _ in range(case.packs):
                nll, _ = student.nll(batch_of([Document(tuple(tokens), (0.0, *[1.0] * 399))]))
                nll.backward()  # type: ignore[no-untyped-call]
            optimiser.step(student.parameters, 1e-4)
            gradients.clear(student.parameters)
        return _core.tensor_memory_bytes()[1] - before


def test_a_second_chunk_of_logits_comes_while_the_first_is_still_there() -> None:
    rows, frozen = (48 << 20) // (4 * 2048), {"is_learned": False}
    assert logits_bytes(LLAMA, rows, **frozen) == rows * 2048 * 4
    assert logits_bytes(LLAMA, 2 * rows - 1000, **frozen) == (2 * rows - 1000) * 2048 * 4
    assert logits_bytes(LLAMA, 5 * rows, **frozen) == 2 * rows * 2048 * 4
    assert logits_bytes(LLAMA, rows, is_learned=True) == rows * (2048 + 256) * 4


@pytest.mark.parametrize("rows", [400, 7000])
@pytest.mark.parametrize("is_capped", [False, True])
@pytest.mark.parametrize("is_learned", [False, True])
def test_logits_take_what_was_planned(rows: int, is_capped: bool, is_learned: bool) -> None:
    """Within 3 %, of one chunk and of several, with a cap and without; beside them stands what comes back to rows and table."""
    torch = pytest.importorskip("torch")
    from herd import _core
    from herd.training.student.allocation import tensor_memory
    from herd.training.student.cross_entropy import Cap, weighted_nll

    with tensor_memory():
        pass  # what was in use before is forgotten at its end
    with tensor_memory() as is_bounded:
        if not is_bounded:
            pytest.skip("torch's memory is not glibc's here")
        hidden, table = torch.randn(rows, 256, requires_grad=True), torch.randn(2048, 256, requires_grad=is_learned)
        targets, weights = torch.arange(rows) % 2048, torch.ones(rows)
        before = _core.tensor_memory_bytes()[0]
        weighted_nll(hidden, table, targets, weights, cap=Cap(1.0, 30.0) if is_capped else None)
        most = _core.tensor_memory_bytes()[1] - before
    capped: Any = find("muse-glimmer-30b").config()
    config = dataclasses.replace(capped, vocab_size=2048, width=256) if is_capped else LLAMA
    planned = logits_bytes(config, rows, is_learned=is_learned) + 4 * 256 * (rows + (2048 if is_learned else 0))
    assert most == pytest.approx(planned, rel=0.03)


def test_every_moment_has_a_name_and_the_last_one_all_gradients() -> None:
    found = list(moments(LLAMA, CASES["all weights"].learning))
    assert [found[0].when, found[1].when, found[-1].when] == ["the loss", "the way back begins", "words"]
    assert found[-1].gradients == max(each.gradients for each in found)
