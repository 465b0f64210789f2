"""The cpu backend as the engine sees it. That its numbers are right is the conformance tests' matter."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from herd.backends.base import BackendOptions, Plan, Span
from herd.dtypes import Q4_0, Q8_0
from herd.errors import CapacityError, FileProblem, UsageError
from herd.models.llama import LlamaConfig
from herd.models.weights import Adapted, Matrix
from herd.sampling.chain import Draw, choose
from herd.sampling.params import SamplingParams
from tiny import dense_f32, random_leaves, tiny_llama

pytest.importorskip("herd._core", reason="the extension herd._core is not built (pip install -e .)", exc_type=ImportError)
CpuBackend = pytest.importorskip("herd.backends.cpu").CpuBackend

CFG = tiny_llama(num_layers=1)


def make(cfg: LlamaConfig = CFG, leaves: dict[str, Matrix] | None = None, **options: Any) -> Any:
    """A small model with eight pages."""
    leaves = leaves or random_leaves(cfg, dtype=Q8_0)
    options = {"threads": 2, "max_step_tokens": 128} | options
    backend = CpuBackend(cfg, leaves.__getitem__, BackendOptions(**options), lambda: None)
    backend.allocate(8)
    return backend


def logits(backend: Any, tokens: list[int], outputs: int = 1) -> np.ndarray[Any, np.dtype[np.float32]]:
    result = backend.step(Plan((Span(0, tokens, [3, 1], outputs),), want_logits=True))
    assert result.logits_RV is not None
    return result.logits_RV


def test_a_token_outside_the_vocabulary_is_refused_by_position() -> None:
    with pytest.raises(UsageError, match=r"token 320 at position 2 .* vocabulary of 320"):
        logits(make(), [1, 2, 320])


def test_a_step_larger_than_its_buffers_is_refused() -> None:
    backend = make()
    with pytest.raises(UsageError, match="129 tokens; the buffers hold 128"):
        backend.step(Plan((Span(0, [1] * 129, [0, 1, 2]),)))
    with pytest.raises(UsageError, match="65 rows of logits; the buffers hold 64"):
        logits(backend, [1] * 65, 65)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"activations": "int4"}, "activations is 'int4'"),
        ({"dtype": "float64"}, "dtype is 'float64'"),
        ({"device": "cuda"}, "device is 'cuda'"),
        ({"threads": 0}, "threads is 0"),
        ({"max_step_tokens": 0}, "max_step_tokens is 0"),
    ],
)
def test_an_option_that_cannot_be_is_refused_by_name(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        make(**options)


def test_an_unknown_instruction_set_lists_the_possible_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HERD_ISA", "abacus")
    with pytest.raises(UsageError, match=r'"abacus" is not available here.*portable'):
        make()


def test_the_environment_forces_an_instruction_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HERD_ISA", "portable")
    assert make().fingerprint.startswith("cpu/portable/int8/kv-f16 herd-")
    assert "float32/kv-f32" in make(activations="float32").fingerprint


def test_more_cache_than_there_is_memory_is_a_capacity_error_and_nothing_breaks() -> None:
    backend = make()
    with pytest.raises(CapacityError, match="cache pages"):
        backend.allocate(2**31 - 1)
    assert backend.num_pages == 0
    backend.allocate(8)
    assert logits(backend, [1]).shape == (1, 320)


def test_memory_adds_up() -> None:
    use = make().memory()
    assert use.cache == 8 * make().page_bytes() == 8 * 64 * 2 * 2 * 32 * 2
    stored = sum(leaf.num_bytes for leaf in random_leaves(CFG, dtype=Q8_0).values())
    assert stored * 0.9 < use.weights < stored * 1.1
    assert use.buffers > 0


def test_a_tied_head_is_packed_once() -> None:
    tied, untied = tiny_llama(num_layers=1, tied_embeddings=True), CFG
    head = random_leaves(untied, dtype=Q8_0)["head"].num_bytes
    difference = make(untied).memory().weights - make(tied).memory().weights
    assert difference == pytest.approx(head, rel=0.1)


def test_pages_of_the_file_are_released_after_packing() -> None:
    released = []
    CpuBackend(CFG, random_leaves(CFG).__getitem__, BackendOptions(threads=1), lambda: released.append(True))
    assert released


def test_new_weights_are_used_from_the_next_step_on() -> None:
    old, new = random_leaves(CFG, dtype=Q8_0), random_leaves(CFG, seed=1, dtype=Q4_0)
    backend = make(leaves=old)
    backend.update({name: new[name] for name in ("embed", "layers.0.attention.q", "layers.0.ffn_norm")})
    mixed = old | {name: new[name] for name in ("embed", "layers.0.attention.q", "layers.0.ffn_norm")}
    assert np.array_equal(logits(backend, [1, 2, 3]), logits(make(leaves=mixed), [1, 2, 3]))


def test_an_update_of_an_unknown_or_misshapen_weight_is_refused() -> None:
    backend, leaves = make(), random_leaves(CFG)
    with pytest.raises(UsageError, match=r"no weight layers\.9"):
        backend.update({"layers.9.attention.q": leaves["norm"]})
    with pytest.raises(UsageError, match=r"norm has shape \[512\]; the model's has \[256\]"):
        backend.update({"norm": dense_f32(np.ones(512))})


def test_an_adapter_without_effect_changes_no_logit_by_more_than_rounding() -> None:
    leaves = random_leaves(CFG)
    base = leaves["embed"]
    assert not isinstance(base, Adapted)
    down, up = dense_f32(np.ones((4, 256))), dense_f32(np.zeros((320, 4)))
    adapted = leaves | {"embed": Adapted(base, down, up, 2.0), "head": Adapted(leaves["head"], down, up, 2.0)}  # type: ignore[arg-type]
    assert np.array_equal(logits(make(leaves=adapted), [1, 2, 3], 2), logits(make(leaves=leaves), [1, 2, 3], 2))


def test_choices_are_those_of_the_chain() -> None:
    backend = make()
    greedy = Draw(params=SamplingParams(temperature=0.0, logprobs=3), seed=1, position=2)
    drawn = Draw(params=SamplingParams(), seed=5, position=4)
    spans = [Span(0, [1, 2], [0], 2, (greedy, greedy)), Span(0, [3], [1]), Span(0, [4, 5, 6, 7], [2], 1, (drawn,))]
    result = backend.step(Plan(tuple(spans), want_logits=True))
    assert result.logits_RV is not None and result.choices[1] == ()
    (first, second), _, (third,) = result.choices
    for choice, row, draw in ((first, 0, greedy), (second, 1, greedy), (third, 2, drawn)):
        expected = choose(result.logits_RV[row], draw)
        assert choice.token == expected.token
        assert choice.logprob == pytest.approx(expected.logprob, abs=1e-9)
        assert [token for token, _ in choice.top] == [token for token, _ in expected.top]


def test_a_logit_that_is_no_number_names_its_position_and_the_cache_stays_usable() -> None:
    leaves = random_leaves(CFG)
    table = np.frombuffer(bytes(leaves["embed"].data), np.float32).reshape(320, 256).copy()  # type: ignore[union-attr]
    table[7] = np.nan
    backend = make(leaves=leaves | {"embed": dense_f32(table)})
    with pytest.raises(FileProblem, match="logits at position 2 hold a value that is not a finite number"):
        logits(backend, [1, 2, 7, 3], 4)
    assert np.array_equal(logits(backend, [1, 2, 3], 3), logits(make(leaves=leaves), [1, 2, 3], 3))


def test_a_closed_model_says_so_and_closes_twice() -> None:
    backend = make()
    backend.close()
    backend.close()
    with pytest.raises(UsageError, match="closed"):
        logits(backend, [1])


def test_tokens_and_pages_may_be_any_sequence_of_integers() -> None:
    backend = make()
    straight = logits(backend, [1, 2, 3])
    arrays = backend.step(Plan((Span(0, np.array([1, 2, 3], np.int32), np.array([3, 1])),), want_logits=True))  # type: ignore[arg-type]
    assert arrays.logits_RV is not None and arrays.logits_RV.shape == (0, 320)
    tuples = backend.step(Plan((Span(0, (1, 2, 3), range(3, 4), 1),), want_logits=True))
    assert tuples.logits_RV is not None and np.array_equal(tuples.logits_RV, straight)
