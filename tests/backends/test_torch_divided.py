"""A model whose heads, columns, experts and head are divided comes to what the whole one comes to. The parts run in threads of one process
here, which exchange numbers through memory; with processes of their own: test_torch_ranks.py."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch", reason="torch is not installed (pip install herd-llama[torch])")
import torch
from torch import Tensor

from conformance.running import error, logits_of, oracle, prompt
from conformance.running import whole as whole_text
from conformance.test_torch import rounding_reference
from herd import dtypes
from herd.backends.base import BackendOptions, Placed, Plan, Span
from herd.backends.torch import TorchBackend
from herd.backends.torch.divided import Together
from herd.backends.torch.ranks.checks import check_model
from herd.backends.torch.ranks.reading import divided_leaf, drop_copied
from herd.checkpoints.adapter import open_adapter
from herd.checkpoints.divided import part_of, part_of_update
from herd.checkpoints.open import open_checkpoint
from herd.convert import write_adapter
from herd.convert.trained import write_trained
from herd.errors import UsageError
from herd.models.architecture import architecture_of
from herd.models.division import Divided, is_whole, to_run
from herd.models.muse_glimmer import LayerKind, MuseGlimmerConfig
from herd.models.rope import Rope
from herd.models.weights import Kind, Update
from tiny import dense_f32, random_leaves, tiny_llama, tiny_llama3_vision, tiny_llama4, tiny_llama4_vision

EXACT = BackendOptions(activations="float32", threads=1, dtype="float64")


class InMemory:
    """A `Group` of threads."""

    def __init__(self, count: int) -> None:
        self.count, self._barrier, self._given = count, threading.Barrier(count, timeout=20), [torch.empty(0)] * count

    def of(self, index: int) -> Any:
        group = self

        class Mine:
            def total(self, x: Tensor) -> None:
                x.copy_(torch.stack(self.all_of(x)).sum(dim=0))

            def all_of(self, x: Tensor) -> list[Tensor]:
                group._given[index] = x.clone()
                group._barrier.wait()
                found = [each.clone() for each in group._given]
                group._barrier.wait()
                return found

        return Mine()


def parts_of(cfg: Any, leaves: dict[str, Any], count: int, options: BackendOptions = EXACT, pages: int = 8) -> list[TorchBackend]:
    group, made = InMemory(count), []
    for index in range(count):
        division = to_run(cfg, index, count)
        leaf = {name: part_of(name, each, division) for name, each in leaves.items()}.__getitem__
        made.append(TorchBackend(cfg, leaf, options, together=Together(division, group.of(index))))
        made[-1].allocate(pages)
    return made


def together(parts: list[TorchBackend], work: Callable[[TorchBackend], Any]) -> list[Any]:
    found: list[Any] = [None] * len(parts)

    def run(index: int) -> None:
        found[index] = work(parts[index])

    threads = [threading.Thread(target=run, args=(index,)) for index in range(len(parts))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return found


def whole_of(cfg: Any, leaves: dict[str, Any], options: BackendOptions = EXACT, pages: int = 8) -> TorchBackend:
    backend = TorchBackend(cfg, leaves.__getitem__, options)
    backend.allocate(pages)
    return backend


def span(*tokens: int, start: int = 0, outputs: int = 1, pages: tuple[int, ...] = (0, 1), **more: Any) -> Span:
    return Span(start, list(tokens), list(pages), outputs, (), **more)


def plans(size: int) -> list[Plan]:
    """Prompts in chunks, two sequences at once, then decoding steps."""
    ids = [int(each) for each in np.random.default_rng(3).integers(0, size, 90)]
    return [
        Plan((span(*ids[:40], outputs=3), span(*ids[40:50], pages=(2, 3)))),
        Plan((span(*ids[50:80], start=40), span(ids[80], start=10, pages=(2, 3)))),
        Plan((span(ids[81], start=70), span(ids[82], start=11, pages=(2, 3)))),
    ]


def same(cfg: Any, count: int, leaves: dict[str, Any] | None = None, work: list[Plan] | None = None, tolerance: float = 1e-11) -> None:
    leaves = leaves or random_leaves(cfg)
    whole, parts = whole_of(cfg, leaves), parts_of(cfg, leaves, count)
    for plan in work or plans(300):
        wanted = whole.logits(plan)
        for found in together(parts, lambda part, plan=plan: part.logits(plan)):
            np.testing.assert_allclose(found, wanted, rtol=0, atol=tolerance * np.abs(wanted).max())


@pytest.mark.parametrize("count", [2, 4, 8])
def test_parts_of_a_llama_come_to_what_the_whole_comes_to(count: int) -> None:
    same(tiny_llama(qkv_bias=True, out_bias=True, ffn_bias=True), count)


def test_a_vocabulary_that_does_not_divide_keeps_its_head_whole() -> None:
    cfg = tiny_llama(vocab_size=321)
    assert to_run(cfg, 0, 2).axis("head") is None and to_run(tiny_llama(), 0, 2).axis("head") == 0
    same(cfg, 2)
    same(tiny_llama(tied_embeddings=True), 2)


@pytest.mark.parametrize("count", [2, 4])
def test_parts_of_experts_and_of_the_shared_one_come_to_what_the_whole_comes_to(count: int) -> None:
    same(tiny_llama4(), count)


def test_parts_of_an_early_fusion_model_see_the_same_picture() -> None:
    cfg = tiny_llama4(vision=tiny_llama4_vision())
    picture = a_picture(1, 64)
    rows = tuple(range(2, 2 + 4))
    ids = [5, 6, *[319] * 4, 7, 8, 9]
    seen = span(*ids, pictures=(Placed(picture, rows),))
    same(cfg, 2, work=[Plan((seen, span(1, 2, pages=(2, 3))))])


def test_parts_of_a_crossing_model_keep_keys_and_values_of_their_own_heads() -> None:
    cfg = tiny_llama3_vision()
    placed = (Placed(a_picture(1, 32), (1,)),)
    first = Plan((span(5, cfg.picture_id, 7, 8, outputs=4, pictures=placed), span(1, 2, pages=(2, 3))))
    then = Plan((span(9, start=4, pictures=placed), span(3, start=2, pages=(2, 3))))
    same(cfg, 2, work=[first, then])
    same(cfg, 4, work=[first, then])


def a_picture(tiles: int, side: int) -> Any:
    class Prepared:
        pixels = np.random.default_rng(1).standard_normal((tiles, 3, side, side)).astype(np.float32)
        rows, columns, digest = 1, tiles, b"a picture"

    return Prepared()


def test_parts_of_the_newest_generation_come_to_what_the_whole_comes_to() -> None:
    same(muse(), 2)


def muse() -> MuseGlimmerConfig:
    layers = tuple(LayerKind(None if index == 3 else 24, index != 3) for index in range(4))
    return MuseGlimmerConfig(
        width=256, num_heads=8, num_kv_heads=2, head_width=32, ffn_width=512, vocab_size=320, context_length=512, norm_eps=1e-5,
        post_norm_eps=1e-5, rope=Rope(10000.0, 32), layers=layers, query_factor=1.5, logit_factor=0.5, logit_cap=20.0,
    )  # fmt: skip


@pytest.mark.parametrize("count", [2, 4])
def test_in_16_bits_parts_stay_within_the_budget_of_the_whole(count: int) -> None:
    cfg = tiny_llama()
    leaves, tokens = random_leaves(cfg, dtype=dtypes.BF16), prompt(cfg, 80)
    exact = oracle(cfg, leaves, tokens)
    allowed = 2 * error(logits_of(rounding_reference(cfg, leaves, dtypes.BF16), whole_text(tokens)), exact)
    parts = parts_of(cfg, leaves, count, BackendOptions(activations="float32", threads=1))
    for found in together(parts, lambda part: part.logits(Plan((whole_text(tokens),)))):
        assert 0 < error(found, exact) <= allowed


@pytest.mark.parametrize("dtype", [dtypes.Q4_0, dtypes.Q8_0, dtypes.BF16], ids=lambda dtype: dtype.name)
def test_parts_of_stored_blocks_are_whole_blocks(dtype: dtypes.DType) -> None:
    cfg = tiny_llama(num_layers=1)
    same(cfg, 2, random_leaves(cfg, dtype=lambda spec: dtypes.F32 if spec.kind in (Kind.EMBEDDING, Kind.HEAD) else dtype))


def test_blocks_that_would_be_cut_are_refused_by_the_name_of_their_weight() -> None:
    cfg = tiny_llama(num_layers=1)
    leaves = random_leaves(cfg, dtype=dtypes.Q4_K)
    division = to_run(cfg, 0, 2)
    with pytest.raises(UsageError, match=r"layers\.0\.attention\.out has 256 columns in blocks of 256 \(Q4_K\), which 2 would cut"):
        part_of("layers.0.attention.out", leaves["layers.0.attention.out"], division)
    assert part_of("layers.0.ffn.gate", leaves["layers.0.ffn.gate"], division).shape == (256, 256)


def updates_for(cfg: Any) -> dict[str, Update]:
    rng = np.random.default_rng(0)
    found = {}
    for spec in architecture_of(cfg).tensors(cfg):
        if spec.kind is Kind.MATRIX:
            rows, columns = spec.shape
            down, up = rng.standard_normal((4, columns)) / columns**0.5, rng.standard_normal((rows, 4)) * 0.5
            found[spec.name] = Update(dense_f32(down), dense_f32(up), 0.7)
    return found


def test_parts_of_adapters_add_up_for_the_spans_that_name_them() -> None:
    cfg = tiny_llama(out_bias=True, ffn_bias=True)
    leaves, updates = random_leaves(cfg), updates_for(cfg)
    whole, parts = whole_of(cfg, leaves), parts_of(cfg, leaves, 2)
    whole.add_adapter("poems", updates)
    for index, part in enumerate(parts):
        part.add_adapter("poems", {name: part_of_update(name, each, to_run(cfg, index, 2)) for name, each in updates.items()})
    plan = Plan((span(1, 2, 3, adapter="poems"), span(4, 5, pages=(2, 3))))
    wanted = whole.logits(plan)
    assert not np.allclose(wanted, whole.logits(Plan((span(1, 2, 3), span(4, 5, pages=(2, 3))))), atol=1e-3)
    for found in together(parts, lambda part: part.logits(plan)):
        np.testing.assert_allclose(found, wanted, atol=1e-10)


def test_parts_of_an_adapter_that_looks_at_whole_rows_are_cut_from_the_whole_sum(tmp_path: Path) -> None:
    cfg = tiny_llama(num_layers=1)
    write_trained(tmp_path / "m", cfg, random_leaves(cfg))
    updates = updates_for(cfg)
    names = ("layers.0.attention.q", "layers.0.ffn.down", "layers.0.attention.out")
    chosen, lengths = {name: updates[name] for name in names}, {}
    for name in names:
        lengths[name] = dense_f32(np.linspace(0.5, 2, updates[name].up.shape[0]))
    write_adapter(tmp_path / "dora", cfg, chosen, magnitudes=lengths)
    write_adapter(tmp_path / "lora", cfg, chosen)
    checkpoint = open_checkpoint(tmp_path / "m")
    for folder in (tmp_path / "dora", tmp_path / "lora"):
        leaf = open_adapter(folder, cfg).leaf_over(checkpoint.leaf)
        whole = whole_of(cfg, {spec.name: leaf(spec.name) for spec in checkpoint.specs})
        group, parts = InMemory(2), []
        for index in range(2):
            division = to_run(cfg, index, 2)
            mine = divided_leaf(checkpoint, division, str(folder))
            parts.append(TorchBackend(cfg, mine, EXACT, together=Together(division, group.of(index))))
            parts[-1].allocate(8)
            drop_copied(checkpoint, division)
        for plan in plans(300):
            wanted = whole.logits(plan)
            for found in together(parts, lambda part, plan=plan: part.logits(plan)):
                np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-10)
    checkpoint.close()


def test_what_each_part_holds_makes_up_the_model_and_its_cache() -> None:
    cfg = tiny_llama4()
    whole = whole_of(cfg, random_leaves(cfg))
    for count, kv in ((2, 2), (4, 2)):
        parts = parts_of(cfg, random_leaves(cfg), count)
        assert sum(part.page_bytes() for part in parts) == whole.page_bytes() * count // kv
        assert len({part.memory().weights for part in parts}) == 1
        undivided = sum(spec.count * 8 for spec in architecture_of(cfg).tensors(cfg) if to_run(cfg, 0, count).axis(spec.name) is None)
        copied = sum(spec.count * 8 for spec in architecture_of(cfg).tensors(cfg) if spec.name.endswith((".k", ".v"))) * (count // kv - 1)
        assert parts[0].memory().weights * count == whole.memory().weights + undivided * (count - 1) + copied


def test_values_that_are_said_to_be_whole_are_whole_in_each_part() -> None:
    from herd.backends.base import Watch

    cfg = tiny_llama4()
    whole, parts = whole_of(cfg, random_leaves(cfg)), parts_of(cfg, random_leaves(cfg), 2)
    names = frozenset(filter(is_whole, whole.value_names()))
    assert {"final", "layers.1.router", "layers.1.experts.out", "layers.0.attention.out", "layers.0.ffn.out"} <= names
    plan = Plan((span(1, 2, 3),), watch=Watch(read=names))
    wanted = whole.step(plan).values
    for found in together(parts, lambda part: part.step(plan).values):
        for name in names:
            np.testing.assert_allclose(found[name], wanted[name], atol=1e-5, err_msg=name)


@pytest.mark.parametrize(
    ("count", "cfg", "said"),
    [
        (3, tiny_llama(), "the model's 8 heads do not divide"),
        (4, tiny_llama(num_heads=8, num_kv_heads=8, ffn_width=514), "514 columns of its feed-forward do not"),
        (4, tiny_llama(num_heads=12, num_kv_heads=3, head_width=32, width=384), "3 kv heads do not divide"),
        (4, tiny_llama4(expert_width=258), "258 columns of its shared expert"),
    ],
    ids=["heads", "columns", "kv heads", "experts"],
)
def test_a_model_that_does_not_divide_is_refused_by_what_does_not(count: int, cfg: Any, said: str) -> None:
    with pytest.raises(UsageError, match=f"tensor_parallel is {count}; .*{said}"):
        check_model(cfg, count)


def test_a_classifier_is_not_divided() -> None:
    from herd.models.deberta import DebertaConfig

    with pytest.raises(UsageError, match="next token"):
        check_model(object.__new__(DebertaConfig), 2)


def test_nothing_is_divided_twice_and_every_matrix_of_a_layer_is() -> None:
    for cfg in (tiny_llama(), tiny_llama4(), tiny_llama3_vision(), muse()):
        division = to_run(cfg, 1, 2)
        for spec in architecture_of(cfg).tensors(cfg):
            in_layer = spec.name.split(".")[0] in ("layers", "crossing") and spec.kind in (Kind.MATRIX, Kind.EXPERTS)
            assert (division.axis(spec.name) is not None) == (in_layer or spec.name == "head"), spec.name
    assert Divided.EXPERTS not in to_run(tiny_llama4(), 0, 2).of
