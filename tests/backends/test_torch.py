"""What the torch backend promises besides right numbers: checks, options, memory, errors by name, captures, choices."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

pytest.importorskip("torch", reason="torch is not installed (pip install herd-llama[torch])")

import torch

from herd import dtypes
from herd.backends.base import BackendOptions, Plan, Span, Watch
from herd.backends.reference import ReferenceBackend
from herd.backends.reference.arrays import Arrays
from herd.backends.torch import TorchBackend
from herd.backends.torch.blocks import decode
from herd.backends.torch.choosing import choose as choose_in_torch
from herd.backends.torch.choosing import is_plainly_greedy, judge
from herd.backends.torch.decoding import Decoder, Outcome, uncaptured
from herd.backends.torch.tensors import Tensors, as_stored
from herd.errors import CapacityError, FileProblem, UsageError
from herd.models.sizes import cache_bytes, weight_bytes
from herd.models.weights import Adapted, Dense
from herd.quant import dequantize, quantize
from herd.sampling.chain import choose
from herd.sampling.draw import Draw
from herd.sampling.params import SamplingParams
from tiny import dense_f32, random_leaves, tiny_llama, tiny_llama4

CFG = tiny_llama(num_layers=1)
EXACT = BackendOptions(activations="float32", threads=1)


def make(leaves=None, options: BackendOptions = EXACT, pages: int = 4, cfg=CFG, **keywords) -> TorchBackend:
    backend = TorchBackend(cfg, (leaves or random_leaves(cfg)).__getitem__, options, **keywords)
    backend.allocate(pages)
    return backend


def options(**changes) -> BackendOptions:
    return BackendOptions(**{"activations": "float32", "threads": 1} | changes)


def span(*tokens: int, start: int = 0, outputs: int = 1, pages=(0, 1), draws: tuple[Draw, ...] = ()) -> Span:
    return Span(start, list(tokens), list(pages), outputs, draws)


def logits(backend: TorchBackend, *spans: Span) -> np.ndarray:
    return backend.step(Plan(spans, want_logits=True)).logits_RV


@pytest.mark.parametrize("dtype", dtypes.BLOCK, ids=lambda dtype: dtype.name)
def test_every_byte_of_a_block_format_means_what_the_definition_says(dtype: dtypes.DType) -> None:
    stored = np.random.default_rng(0).integers(0, 256, (64, dtype.row_bytes(512)), dtype=np.uint8)
    ours = decode(dtype, torch.from_numpy(stored), torch.float32).numpy()
    assert np.array_equal(ours, dequantize(dtype, stored, (64, 512)), equal_nan=True)


def test_a_large_matrix_is_decoded_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    stored = torch.from_numpy(quantize(dtypes.Q4_K, np.random.default_rng(1).standard_normal((9, 512)).astype(np.float32)))
    whole = decode(dtypes.Q4_K, stored, torch.bfloat16)
    monkeypatch.setattr("herd.backends.torch.blocks.CHUNK_ELEMENTS_ON_CPU", 1024)
    assert torch.equal(decode(dtypes.Q4_K, stored, torch.bfloat16), whole)


@pytest.mark.parametrize("token", [-1, CFG.vocab_size, 2**40])
def test_a_token_outside_the_vocabulary_is_refused_before_anything_is_written(token: int) -> None:
    backend = make()
    before = logits(backend, span(1, 2, 3))
    with pytest.raises(UsageError, match=f"Token id {token} at position 2 .* ids go from 0 to 319"):
        backend.step(Plan((span(5, 6, token),)))
    assert np.allclose(logits(backend, span(3, start=2)), before, atol=1e-4)


@pytest.mark.parametrize("outputs", [3, 2, 1])
def test_a_logit_that_is_not_a_number_names_its_position_and_leaves_the_cache_usable(outputs: int) -> None:
    leaves = random_leaves(CFG)
    table = Arrays(np.dtype(np.float32)).get(leaves["embed"]).copy()
    table[7, 3] = np.nan
    backend = make({**leaves, "embed": dense_f32(table)})
    before = logits(backend, span(1, 2, 3))
    with pytest.raises(FileProblem, match=rf"position {max(1, 3 - outputs)} is nan.*SHA-256"):
        backend.step(Plan((span(1, 7, 3, outputs=outputs, pages=(1,)),)))
    assert np.array_equal(logits(backend, span(1, 2, 3)), before)
    # The page with the not-a-numbers may become anybody's.
    alone = logits(backend, span(4, start=3, pages=(0,)))
    assert np.allclose(logits(backend, span(4, start=3, pages=(0,)), span(9, pages=(1,)))[:1], alone, atol=1e-4)


def test_an_overflow_is_refused_like_a_nan() -> None:
    leaves = random_leaves(CFG)
    head = Arrays(np.dtype(np.float32)).get(leaves["head"]) * np.float32(3e38)
    with pytest.raises(FileProblem, match=r"(inf|nan), not a number to go on with"):
        make({**leaves, "head": dense_f32(np.clip(head, -3.4e38, 3.4e38))}).step(Plan((span(1),)))


@pytest.mark.parametrize(
    ("chosen", "says"),
    [
        (options(dtype="float8"), "dtype is 'float8'; .* float32, bfloat16, float16, float64"),
        (options(activations="int8"), "activations is 'int8'.* take \"float32\""),
        (options(device="gpu"), 'device is \'gpu\'; the torch backend runs on "cpu", "cuda"'),
        (options(device="cuda:1:2"), "device is 'cuda:1:2'"),
    ],
)
def test_options_that_it_cannot_honour_are_refused_by_name(chosen: BackendOptions, says: str) -> None:
    with pytest.raises(UsageError, match=says):
        make(options=chosen)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_a_gpu_that_is_not_there_is_a_usage_error_that_says_why() -> None:
    with pytest.raises(UsageError, match=r"built without CUDA|finds no GPU"):
        make(options=options(device="cuda:0", threads=None))


def test_more_pages_than_memory_is_a_capacity_error_that_says_how_much() -> None:
    backend = make()
    with pytest.raises(CapacityError, match=r"pages of 64 tokens take \d+ bytes"):
        backend.allocate(2**50)
    assert backend.num_pages == 0
    backend.allocate(2)
    assert logits(backend, span(1)).shape == (1, CFG.vocab_size)


def test_no_memory_on_the_device_is_a_capacity_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise torch.OutOfMemoryError

    backend = make()
    monkeypatch.setattr(backend, "_forward", refuse)
    with pytest.raises(CapacityError, match="no memory left for a step of 2 tokens"):
        backend.step(Plan((span(1, 2),)))
    monkeypatch.setattr(Tensors, "place", refuse)
    with pytest.raises(CapacityError, match="no memory for the weights"):
        make()


def test_memory_counts_weights_cache_and_what_is_kept_decoded() -> None:
    backend = make(random_leaves(CFG, dtype=dtypes.Q8_0), pages=3)
    before = backend.memory()
    assert before.cache == 3 * backend.page_bytes() == cache_bytes(CFG, 192, 64, dtypes.F32)
    assert before.weights == sum(leaf.num_bytes for leaf in random_leaves(CFG, dtype=dtypes.Q8_0).values())
    backend.step(Plan((span(1),)))
    kept = backend.memory().other["converted weights"]
    matrices = weight_bytes(CFG, lambda spec: dtypes.F32) - CFG.vocab_size * CFG.width * 4
    assert matrices * 0.99 < kept < matrices * 1.01
    assert backend.memory().weights == before.weights + kept


def test_decoded_weights_stay_within_their_bound_and_change_nothing() -> None:
    leaves = random_leaves(CFG, dtype=dtypes.Q4_K)
    bounded = make(leaves, keep_bytes=700_000)
    assert np.array_equal(logits(bounded, span(1, 2, 3)), logits(make(leaves), span(1, 2, 3)))
    assert 0 < bounded.memory().other["converted weights"] <= 700_000


def test_plain_weights_are_used_where_they_lie_if_they_are_of_the_type_computed_in() -> None:
    for dtype in (dtypes.F32, dtypes.BF16, dtypes.F16):
        leaf = random_leaves(CFG, dtype=dtype)["head"]
        place = Tensors(torch.device("cpu"), as_stored(leaf).dtype).get(leaf).data_ptr()
        assert place == leaf.data.ctypes.data
    crooked = np.zeros(33, np.uint8)[1:]
    assert as_stored(Dense(dtypes.F32, (8,), crooked)).data_ptr() % 4 == 0


def test_a_read_only_mapping_is_taken_without_a_warning() -> None:
    data = np.frombuffer(bytes(range(64)), np.uint8)
    assert not data.flags.writeable
    assert as_stored(Dense(dtypes.F32, (4, 4), data)).shape == (4, 4)


def test_a_page_costs_what_the_type_computed_in_says() -> None:
    per_page = cache_bytes(CFG, 64, 64, dtypes.F16)
    assert make(options=options(dtype="bfloat16")).page_bytes() == per_page
    assert make(random_leaves(CFG, dtype=dtypes.F16)).page_bytes() == per_page
    assert make(random_leaves(CFG, dtype=dtypes.Q8_0)).page_bytes() == make().page_bytes() == 2 * per_page
    assert make(options=options(dtype="float64")).page_bytes() == 4 * per_page


def test_new_weights_are_checked_by_name_and_shape_and_old_ones_given_back() -> None:
    backend = make()
    with pytest.raises(UsageError, match=r"no weight layers\.9\.ffn\.up"):
        backend.update({"layers.9.ffn.up": random_leaves(CFG)["norm"]})
    with pytest.raises(UsageError, match=r"new norm has shape \[320, 256\]; the model's has \[256\]"):
        backend.update({"norm": random_leaves(CFG)["embed"]})
    held = backend.memory().weights
    backend.update({"head": random_leaves(CFG, seed=3)["head"]})
    assert backend.memory().weights == held


def test_a_closed_model_says_so_and_closing_twice_is_fine() -> None:
    backend = make()
    backend.close()
    backend.close()
    assert backend.memory().weights == backend.memory().cache == backend.memory().buffers == 0
    with pytest.raises(UsageError, match="closed"):
        backend.step(Plan((span(1),)))


def test_the_fingerprint_names_what_changes_bits() -> None:
    fingerprint = make(random_leaves(CFG, dtype=dtypes.Q4_1), options(dtype="bfloat16")).fingerprint
    for part in (f"torch-{torch.__version__}", "cpu-", "bfloat16", "attention-fused", "f32+q4_1"):
        assert part in fingerprint
    assert "float32 attention-plain" in make().fingerprint


def test_choices_are_those_of_the_definition_whatever_is_asked() -> None:
    rows = np.random.default_rng(2).standard_normal((4, 320)).astype(np.float32) * 3
    rows[1, [5, 9, 200]] = 20.0
    tensor = torch.from_numpy(rows)
    verdicts = judge(tensor).tolist()
    for params in (
        SamplingParams(temperature=0.0),
        SamplingParams(temperature=0.0, logprobs=3),
        SamplingParams(temperature=0.0, logit_bias={17: 40.0}),
        SamplingParams(temperature=0.7, top_p=0.9, seed=5),
        SamplingParams(temperature=0.0, repetition_penalty=1.5),
    ):
        seen = np.array([5, 9], np.int32)
        draws = [Draw(params=params, seed=5, position=30 + row, seen_ids=seen, answer_counts=np.zeros(2, np.int32)) for row in range(4)]
        spans = (span(1, 2, outputs=2, draws=tuple(draws[:2])), *(span(1, draws=(draw,)) for draw in draws[2:]))
        chosen = choose_in_torch(Plan(spans), tensor, verdicts)
        for row, (draw, ours) in enumerate(zip(draws, itertools.chain(*chosen), strict=True)):
            defined = choose(rows[row], draw)
            assert ours.token == defined.token and ours.top == defined.top
            assert abs(ours.logprob - defined.logprob) < 1e-12
    assert is_plainly_greedy(draws[0]) is False and verdicts[1][1] == 5.0


def test_draws_come_back_in_the_order_of_the_spans() -> None:
    greedy = Draw(params=SamplingParams(temperature=0.0), seed=0, position=2)
    backend = make()
    spans = (span(1, 2, draws=(greedy,)), span(3, pages=(2,)), span(4, 5, outputs=2, pages=(3,), draws=(greedy, greedy)))
    result = backend.step(Plan(spans, want_logits=True))
    assert [len(choices) for choices in result.choices] == [1, 0, 2]
    tokens = [choice.token for choices in result.choices for choice in choices]
    assert tokens == [int(result.logits_RV[row].argmax()) for row in (0, 2, 3)]


def test_a_decoding_step_that_is_rounded_up_says_the_same() -> None:
    """As on CUDA: tables of fixed shapes, written to again and again, rows that fill up."""
    cfg = tiny_llama4()
    exact, rounded = (make(cfg=cfg, pages=12, options=options(dtype="float64")) for _ in range(2))
    shapes = []

    def capture(run):
        shapes.append(run().logits_RV.shape)
        return run

    rounded._decoder = Decoder(rounded._decode, torch.device("cpu"), lambda: capture, rounds=True, max_rows=4)
    rounded._decoding_ops._is_static = True
    texts = [[3, 4, 5], list(range(70)), [9] * 20]
    for backend in (exact, rounded):
        backend.step(Plan(tuple(span(*text, pages=(4 * i, 4 * i + 1, 4 * i + 2)) for i, text in enumerate(texts))))
    for step in range(3):
        spans = [span(7 + step, start=len(text) + step, pages=(4 * i, 4 * i + 1, 4 * i + 2)) for i, text in enumerate(texts)]
        plan = Plan(tuple(spans))
        assert abs(exact.logits(plan) - rounded.logits(plan)).max() < 1e-12
    assert shapes == [(4, cfg.vocab_size)], "three rows and two pages, rounded up once, captured once"
    rounded.update({"norm": random_leaves(cfg, seed=2)["norm"]})
    rounded.logits(plan)
    assert len(shapes) == 2, "new weights are captured anew"


def test_steps_that_are_not_decoding_are_not_captured() -> None:
    decoder = Decoder(lambda table: Outcome(table, table), torch.device("cpu"), uncaptured, rounds=True, max_rows=2)
    assert decoder.takes(Plan((span(1), span(2))))
    assert not decoder.takes(Plan((span(1, 2),)))
    assert not decoder.takes(Plan((span(1, outputs=0),)))
    assert not decoder.takes(Plan((span(1),) * 3))
    assert not decoder.takes(Plan((span(1),), watch=Watch(frozenset({"logits"}))))


@pytest.mark.slow
def test_a_decoding_step_can_be_traced_as_one_graph() -> None:
    """What is compiled on CUDA has no break in it that only the host could bridge."""
    backend = make(pages=3)
    backend.step(Plan((span(*range(70)),)))
    table = torch.tensor([[5, 70, 0, 1]])
    with torch.no_grad():
        plain = backend._decode(table)
        backend._judged_forward = torch.compile(backend._judged, backend="eager", dynamic=False, fullgraph=True)
        compiled = backend._decode(table)
    assert torch.equal(plain.logits_RV, compiled.logits_RV) and torch.equal(plain.verdict_R3, compiled.verdict_R3)
    torch.compiler.reset()


def test_values_are_read_and_replaced_as_in_the_reference() -> None:
    cfg = tiny_llama4()
    leaves = random_leaves(cfg)
    ours, reference = make(leaves, cfg=cfg), ReferenceBackend(cfg, leaves.__getitem__, BackendOptions(activations="float32"))
    reference.allocate(4)
    assert ours.value_names() == reference.value_names()
    read = frozenset(ours.value_names())
    patch = {
        "layers.1.attention.weights": lambda weights: weights[:, :, ::-1].copy(),
        "layers.0.out": lambda x: x * np.float32(1.5),
    }
    plan = Plan((span(1, 2, 3, 4, outputs=2), span(7, pages=(2,))), want_logits=True, watch=Watch(read, patch))
    found, expected = ours.step(plan), reference.step(plan)
    assert found.values.keys() == expected.values.keys() >= read
    for name, value in expected.values.items():
        pairs = zip(found.values[name], value, strict=True) if isinstance(value, list) else [(found.values[name], value)]
        for one, other in pairs:
            assert one.shape == other.shape and one.dtype == np.float32
            assert np.allclose(one, other, atol=1e-4), name
    assert np.allclose(found.logits_RV, expected.logits_RV, atol=1e-4)
    with pytest.raises(UsageError, match=r"The patch of embed gave shape \[2\]"):
        ours.step(Plan((span(1),), watch=Watch(patch={"embed": lambda x: np.zeros(2)})))


def test_experts_take_no_adapters() -> None:
    cfg = tiny_llama4()
    leaves = random_leaves(cfg)
    name = next(name for name in leaves if name.endswith("experts.up"))
    adapted = Adapted(leaves[name], dense_f32(np.zeros((1, 4))), dense_f32(np.zeros((4, 1))), 1.0)
    with pytest.raises(UsageError, match="stacked matrices of experts"):
        make({**leaves, name: adapted}, cfg=cfg).step(Plan((span(1),)))


def test_an_adapter_is_added_before_the_rounding() -> None:
    """A small low-rank product on a large output: rounded apart, most of it would be lost."""
    from herd.backends.torch.ops import TorchOps

    random = np.random.default_rng(3)
    x = torch.from_numpy(random.standard_normal((64, 256)).astype(np.float32)).bfloat16()
    base = dense_f32(random.standard_normal((128, 256)))
    down, up = dense_f32(random.standard_normal((8, 256))), dense_f32(random.standard_normal((128, 8)) / 2000)
    tensors = Tensors(torch.device("cpu"), torch.bfloat16)
    y = TorchOps(tensors).linear(x, Adapted(base, down, up, 2.0))
    wide = [tensors.get(leaf).double() for leaf in (base, down, up)]
    exact = x.double() @ wide[0].T + 2.0 * (x.double() @ wide[1].T @ wide[2].T)
    apart = (x @ tensors.get(base).T) + 2.0 * (x @ tensors.get(down).T @ tensors.get(up).T)
    once = (exact.bfloat16() - exact).square().mean()
    assert (y - exact).square().mean() < 1.02 * once < 1.1 * once < (apart - exact).square().mean()
