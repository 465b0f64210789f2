"""What the reference promises besides right numbers: checks, options, memory, errors by name."""

from __future__ import annotations

import numpy as np
import pytest

from herd import dtypes
from herd.backends.base import PAGE_TOKENS, BackendOptions, Plan, Span
from herd.backends.reference import ReferenceBackend
from herd.backends.reference.arrays import Arrays, rounded
from herd.backends.reference.ops import NumpyOps, _attend
from herd.errors import CapacityError, FileProblem, UsageError
from herd.models.sizes import cache_bytes, weight_bytes
from herd.models.weights import Adapted, Blocks, Dense
from herd.quant import dequantize, quantize, quantize_activations
from tiny import dense_f32, random_leaves, tiny_llama

CFG = tiny_llama(num_layers=1)
EXACT = BackendOptions(activations="float32")


def make(leaves=None, options: BackendOptions = EXACT, pages: int = 4, **keywords) -> ReferenceBackend:
    backend = ReferenceBackend(CFG, (leaves or random_leaves(CFG)).__getitem__, options, **keywords)
    backend.allocate(pages)
    return backend


def span(*tokens: int, start: int = 0, outputs: int = 1, pages=(0, 1)) -> Span:
    return Span(start, list(tokens), list(pages), outputs)


def logits(backend: ReferenceBackend, *spans: Span) -> np.ndarray:
    return backend.step(Plan(spans, want_logits=True)).logits_RV


@pytest.mark.parametrize("token", [-1, CFG.vocab_size, 2**40])
def test_a_token_outside_the_vocabulary_is_refused_before_anything_is_written(token: int) -> None:
    backend = make()
    first = logits(backend, span(1, 2, 3))
    with pytest.raises(UsageError, match=f"Token id {token} at position 2 .* ids go from 0 to 319"):
        backend.step(Plan((span(5, 6, token),)))
    assert np.array_equal(logits(backend, span(3, start=2)), logits(backend, span(3, start=2)))
    assert np.allclose(logits(backend, span(3, start=2)), first, atol=1e-4)


def test_a_logit_that_is_not_a_number_names_its_position_and_leaves_the_cache_usable() -> None:
    leaves = random_leaves(CFG)
    table = Arrays(np.dtype(np.float32)).get(leaves["embed"]).copy()
    table[7, 3] = np.nan
    backend = make({**leaves, "embed": dense_f32(table)})
    before = logits(backend, span(1, 2, 3))
    with pytest.raises(FileProblem, match=r"position 1 is nan.*SHA-256"):
        backend.step(Plan((span(1, 7, 3, outputs=3, pages=(1,)),)))
    assert np.array_equal(logits(backend, span(1, 2, 3)), before)


def test_an_overflow_is_refused_like_a_nan() -> None:
    leaves = random_leaves(CFG)
    head = Arrays(np.dtype(np.float32)).get(leaves["head"]) * np.float32(3e38)
    with pytest.raises(FileProblem, match="inf, not a number to go on with"):
        make({**leaves, "head": dense_f32(np.clip(head, -3.4e38, 3.4e38))}).step(Plan((span(1),)))


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (BackendOptions(dtype="float8"), "dtype is 'float8'; .* float32, float64, bfloat16, float16"),
        (BackendOptions(activations="int4"), "activations is 'int4'"),
        (BackendOptions(device="cuda"), "device is 'cuda'"),
        (BackendOptions(threads=2), "leaves threads to numpy"),
    ],
)
def test_options_that_it_cannot_honour_are_refused_by_name(options: BackendOptions, says: str) -> None:
    with pytest.raises(UsageError, match=says):
        make(options=options)


def test_more_pages_than_memory_is_a_capacity_error_that_says_how_much() -> None:
    backend = make()
    with pytest.raises(CapacityError, match=r"pages of 64 tokens take \d+ bytes"):
        backend.allocate(2**50)
    assert backend.num_pages == 0
    backend.allocate(2)
    assert logits(backend, span(1)).shape == (1, CFG.vocab_size)


def test_memory_counts_weights_cache_and_what_is_kept_converted() -> None:
    backend = make(random_leaves(CFG, dtype=dtypes.Q8_0), pages=3)
    before = backend.memory()
    assert before.cache == 3 * backend.page_bytes() == cache_bytes(CFG, 3 * PAGE_TOKENS, PAGE_TOKENS, dtypes.F32)
    backend.step(Plan((span(1),)))
    kept = backend.memory().other["converted weights"]
    matrices = weight_bytes(CFG, lambda spec: dtypes.F32) - CFG.vocab_size * CFG.width * 4
    assert matrices * 0.99 < kept < matrices * 1.01
    assert backend.memory().weights == before.weights + kept


def test_a_quantised_model_with_int8_activations_caches_in_16_bits_and_no_other_does() -> None:
    per_page = cache_bytes(CFG, PAGE_TOKENS, PAGE_TOKENS, dtypes.F16)
    quantised = random_leaves(CFG, dtype=dtypes.Q8_0)
    assert make(quantised, BackendOptions(activations="int8")).page_bytes() == per_page
    assert make(quantised, EXACT).page_bytes() == 2 * per_page
    assert make(options=BackendOptions(activations="int8")).page_bytes() == 2 * per_page
    assert make(options=BackendOptions(dtype="float64")).page_bytes() == 4 * per_page


def test_converted_weights_stay_within_their_bound_and_change_nothing() -> None:
    leaves = random_leaves(CFG, dtype=dtypes.Q4_K)
    bounded = make(leaves, keep_bytes=700_000)
    assert np.array_equal(logits(bounded, span(1, 2, 3)), logits(make(leaves), span(1, 2, 3)))
    assert 0 < bounded.memory().other["converted weights"] <= 700_000


def test_f32_weights_are_used_where_they_lie() -> None:
    backend = make()
    backend.step(Plan((span(1),)))
    assert backend.memory().other["converted weights"] == 0


def test_new_weights_are_checked_by_name_and_shape() -> None:
    backend = make()
    with pytest.raises(UsageError, match=r"no weight layers\.9\.ffn\.up"):
        backend.update({"layers.9.ffn.up": random_leaves(CFG)["norm"]})
    with pytest.raises(UsageError, match=r"new norm has shape \[320, 256\]; the model's has \[256\]"):
        backend.update({"norm": random_leaves(CFG)["embed"]})


def test_a_closed_model_says_so_and_closing_twice_is_fine() -> None:
    backend = make()
    backend.close()
    backend.close()
    assert backend.memory().weights == backend.memory().cache == 0
    with pytest.raises(UsageError, match="closed"):
        backend.step(Plan((span(1),)))


def test_the_fingerprint_names_what_changes_bits() -> None:
    leaves = random_leaves(CFG, dtype=dtypes.Q4_1)
    backend = make(leaves, BackendOptions(dtype="float64", activations="int8"))
    for part in ("reference", np.__version__, "float64", "int8", "f32+q4_1"):
        assert part in backend.fingerprint


def test_draws_come_back_in_the_order_of_the_spans() -> None:
    from herd.sampling.chain import Draw
    from herd.sampling.params import SamplingParams

    greedy = Draw(params=SamplingParams(temperature=0.0, logprobs=2), seed=0, position=2)
    backend = make()
    spans = (span(1, 2, outputs=2), span(3, pages=(2,)), Span(0, [4, 5], [3], 2, (greedy, greedy)))
    result = backend.step(Plan((*spans[:2], spans[2]), want_logits=True))
    assert result.logits_RV.shape == (5, CFG.vocab_size) and result.logits_RV.dtype == np.float32
    assert result.choices[:2] == ((), ())
    assert [choice.token for choice in result.choices[2]] == [int(row.argmax()) for row in result.logits_RV[3:]]
    assert backend.step(Plan(spans)).logits_RV is None


def ops_for(dtype=np.float32, **modes) -> NumpyOps:
    return NumpyOps(Arrays(np.dtype(dtype), modes.get("plain_dtype")), np.dtype(dtype), **modes)


@pytest.mark.parametrize("storage", dtypes.BLOCK, ids=lambda dtype: dtype.name)
def test_int8_means_the_product_with_quantised_activations(storage: dtypes.DType) -> None:
    random = np.random.default_rng(3)
    x, w = random.standard_normal((5, 256)).astype(np.float32), random.standard_normal((7, 256)).astype(np.float32)
    x[2, 32:64] = 0
    data = quantize(storage, w)
    q, scale = quantize_activations(x)
    expected = (q.astype(np.float64) * np.repeat(scale, 32, axis=1)) @ dequantize(storage, data, w.shape).T.astype(np.float64)
    found = ops_for(np.float64, int8=True).linear(x.astype(np.float64), Blocks(storage, w.shape, data))
    assert np.allclose(found, expected, rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("plain", [dtypes.F16, dtypes.BF16], ids=lambda dtype: dtype.name)
def test_a_16_bit_type_rounds_both_factors(plain: dtypes.DType) -> None:
    random = np.random.default_rng(4)
    x, w = random.standard_normal((5, 96)).astype(np.float32), random.standard_normal((7, 96)).astype(np.float32)
    found = ops_for(plain_dtype=plain).linear(x, dense_f32(w))
    assert np.array_equal(found, rounded(x, plain) @ rounded(w, plain).T)
    assert not np.array_equal(found, x @ w.T)
    assert np.array_equal(rounded(rounded(x, plain), plain), rounded(x, plain))


def test_an_adapter_is_exact_whatever_its_base_is_multiplied_with() -> None:
    random = np.random.default_rng(6)
    x = random.standard_normal((3, 256)).astype(np.float32)
    base = Blocks(dtypes.Q8_0, (4, 256), np.zeros((4, dtypes.Q8_0.row_bytes(256)), np.uint8))
    down, up = random.standard_normal((2, 256)).astype(np.float32), random.standard_normal((4, 2)).astype(np.float32)
    found = ops_for(np.float64, int8=True).linear(x.astype(np.float64), Adapted(base, dense_f32(down), dense_f32(up), 0.25))
    assert np.allclose(found, 0.25 * (x.astype(np.float64) @ down.T.astype(np.float64)) @ up.T, rtol=1e-13)


def test_an_adapted_embedding_gives_the_rows_of_the_merged_table() -> None:
    random = np.random.default_rng(8)
    table, down, up = (random.standard_normal(shape).astype(np.float32) for shape in ((10, 64), (2, 64), (10, 2)))
    adapted = Adapted(dense_f32(table), dense_f32(down), dense_f32(up), 0.5)
    tokens = np.array([3, 9, 3])
    assert np.allclose(ops_for(np.float64).embed(tokens, adapted), (table + 0.5 * (up @ down))[tokens], atol=1e-6)


def test_rows_of_a_quantised_table_are_read_without_converting_it() -> None:
    values = np.random.default_rng(9).standard_normal((50, 256)).astype(np.float32)
    table = Blocks(dtypes.Q6_K, values.shape, quantize(dtypes.Q6_K, values))
    arrays = Arrays(np.dtype(np.float32))
    rows = arrays.rows(table, np.array([4, 49, 4]))
    assert arrays.num_bytes == 0
    assert np.array_equal(rows, arrays.get(table)[[4, 49, 4]])


def test_long_prompts_are_attended_in_pieces_with_the_same_result(monkeypatch: pytest.MonkeyPatch) -> None:
    random = np.random.default_rng(10)
    q, k, v = (random.standard_normal(shape) for shape in ((90, 6, 16), (120, 2, 16), (120, 2, 16)))
    whole = _attend(q, k, v, 30, 0.25)
    monkeypatch.setattr("herd.backends.reference.ops.SCORES_BYTES", 6 * 120 * 8 * 7)
    assert np.allclose(_attend(q, k, v, 30, 0.25), whole, rtol=1e-13, atol=1e-13)


def test_a_query_head_reads_the_kv_head_of_its_group() -> None:
    values = np.arange(3.0)[None, :, None] * np.ones((1, 3, 4))
    found = _attend(np.ones((1, 6, 4)), np.ones((1, 3, 4)), values, 0, 1.0)
    assert found[0, :, 0].tolist() == [0.0, 0.0, 1.0, 1.0, 2.0, 2.0]


def test_large_gates_neither_warn_nor_overflow() -> None:
    with np.errstate(all="ignore"):
        found = ops_for().silu_gate(np.array([[-1e4, 0.0, 1e4]], np.float32), np.ones((1, 3), np.float32))
    assert found.tolist() == [[0.0, 0.0, 1e4]]


def test_bytes_that_are_not_an_array_are_read_too() -> None:
    values = np.arange(12, dtype=np.float32).reshape(3, 4)
    assert np.array_equal(Arrays(np.dtype(np.float64)).get(Dense(dtypes.F32, (3, 4), values.tobytes())), values)
