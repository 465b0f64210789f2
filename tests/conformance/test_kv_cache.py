"""Keys and values in 8 and 4 bits: the cpu backend is as close to the float64 oracle over the same integers as the plain implementation,
with the same bits for any threads, chunks and company, for whole, chunked and sliding attention, for pictures, and for odd widths of heads.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as some
from numpy.typing import NDArray

from conformance import kept_integers
from conformance.llama4 import LLAMA4
from conformance.running import NUM_PAGES, error, in_chunks, logits_of, make_backend, prompt, whole
from conformance.seeing_models import MUSE, STORIES, Story, leaves_of
from herd import dtypes
from herd.backends.base import BackendOptions, Plan, Span
from herd.backends.reference import ReferenceBackend, integer_cache
from herd.errors import UsageError
from herd.models.weights import Matrix
from tiny import random_leaves, tiny_llama

pytestmark = pytest.mark.usefixtures("cpu")

FORMS = ["int8", "int4"]
MODELS: dict[str, Any] = {
    "a llama": tiny_llama(),
    "heads of 24": tiny_llama(num_heads=4, num_kv_heads=2, head_width=24),
    "heads of 6, one of each": tiny_llama(num_heads=3, num_kv_heads=3, head_width=6),
    "heads of 128": tiny_llama(num_heads=6, num_kv_heads=1, head_width=128),
    "chunks": LLAMA4["llama-4 scout"],
    "a sliding window": MUSE,
}


@cache
def leaves_for(name: str) -> Mapping[str, Matrix]:
    return random_leaves(MODELS[name]) if name in MODELS else leaves_of(story(name).cfg, lambda spec: dtypes.F32)


@cache
def story(name: str) -> Story:
    return STORIES[name]()


def reference(cfg: Any, leaves: Mapping[str, Matrix], **options: Any) -> ReferenceBackend:
    backend = ReferenceBackend(cfg, leaves.__getitem__, BackendOptions(activations="float32", **options))
    backend.allocate(NUM_PAGES)
    return backend


def words(name: str, length: int, seed: int = 0) -> list[int]:
    return [token % 290 for token in prompt(MODELS[name], length, seed)]


def same_bits(one: NDArray[np.float32], other: NDArray[np.float32]) -> bool:
    return one.shape == other.shape and np.array_equal(one.view(np.uint32), other.view(np.uint32))


def check_budget(cfg: Any, leaves: Mapping[str, Matrix], span: Span, form: str) -> None:
    """Against an oracle that reads the integers that were kept; each of these may be the one beside that of the oracle's own number
    only where that lies between the two."""
    plain, found = kept_integers.of_reference(cfg, leaves, span, form, "float32"), kept_integers.of_cpu(cfg, leaves, span, form)
    plain_exact, exact = (kept_integers.of_reference(cfg, leaves, span, form, "float64", each.rows) for each in (plain, found))
    apart = kept_integers.farthest(plain, plain_exact)
    assert 0 < apart < 0.1
    # A number that is off by twice what the plain one is may be given a code that is farther by twice as much again.
    assert kept_integers.beyond(exact) <= 4 * apart
    assert 0 < error(found.logits, exact.logits) <= 2 * error(plain.logits, plain_exact.logits)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", MODELS)
def test_text_stays_within_the_budget(name: str, form: str) -> None:
    check_budget(MODELS[name], leaves_for(name), whole(words(name, 100)), form)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", MODELS)
def test_threads_chunks_and_company_change_no_bit(name: str, form: str) -> None:
    cfg, leaves, tokens = MODELS[name], leaves_for(name), words(name, 150)
    backend = make_backend("cpu", cfg, leaves, activations="float32", threads=2, kv_cache=form)
    at_once = logits_of(backend, whole(tokens))
    for threads in (1, 3, 7):
        other = make_backend("cpu", cfg, leaves, activations="float32", threads=threads, kv_cache=form)
        assert same_bits(logits_of(other, whole(tokens)), at_once), f"{threads} threads"
    for chunk in (1, 7, 64):
        assert same_bits(in_chunks(backend, tokens, chunk, first_page=5), at_once), f"chunks of {chunk}"
    company = [whole(words(name, 1 + 13 * index, seed=index), 3 * index) for index in range(6)]
    together = logits_of(backend, *company[:3], whole(tokens, 20), *company[3:])
    start = sum(len(span.tokens) for span in company[:3])
    assert same_bits(together[start : start + len(tokens)], at_once)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", STORIES)
def test_pictures_stay_within_the_budget_in_any_chunks(name: str, form: str) -> None:
    cfg, leaves, length = story(name).cfg, leaves_for(name), len(story(name).tokens)
    check_budget(cfg, leaves, story(name).span(), form)
    backend = make_backend("cpu", cfg, leaves, activations="float32", threads=2, kv_cache=form)
    found = logits_of(backend, story(name).span())
    for chunk in (1, 7, 64):
        assert same_bits(_in_chunks(backend, name, chunk), found), f"chunks of {chunk} of {length}"


def _in_chunks(backend: Any, name: str, chunk: int) -> NDArray[np.float32]:
    return np.concatenate(
        [logits_of(backend, story(name).span(start, start + chunk)) for start in range(0, len(story(name).tokens), chunk)]
    )


@pytest.mark.parametrize("form", ["float16", *FORMS])
@pytest.mark.parametrize("name", ["a llama", "heads of 24", "heads of 6, one of each"])
def test_softmaxes_read_the_cache_as_it_is_laid_out(name: str, form: str) -> None:
    from herd.backends.base import Watch

    cfg, leaves, tokens = MODELS[name], leaves_for(name), words(name, 70)
    plain = reference(cfg, leaves, kv_cache=form)
    backend = make_backend("cpu", cfg, leaves, activations="float32", threads=2, kv_cache=form)
    names = [each for each in plain.value_names() if each.endswith(".weights")] or [
        each for each in plain.value_names() if "weights" in each
    ]
    watch = Watch(read=frozenset(names))
    expected, found = (each.step(Plan((whole(tokens),), watch=watch)).values for each in (plain, backend))
    for each in names:
        # A key that lies between two codes may be rounded to the other one.
        assert np.abs(found[each][0] - expected[each][0]).mean() < (1e-3 if form == "int4" else 1e-4)


@pytest.mark.parametrize("form", FORMS)
@settings(max_examples=25, deadline=None)
@given(
    rows=some.integers(1, 9),
    keys=some.integers(1, 300),
    kv_heads=some.integers(1, 3),
    group=some.integers(1, 7),
    head_width=some.sampled_from([1, 2, 6, 16, 31, 32, 33, 48, 64, 80, 96, 128]),
    spread=some.sampled_from([1e-3, 1.0, 30.0]),
    seed=some.integers(0, 2**16),
)
def test_attention_of_any_shape_is_that_of_the_definition(
    form: str, rows: int, keys: int, kv_heads: int, group: int, head_width: int, spread: float, seed: int
) -> None:
    from herd import _core
    from herd.backends.cpu.machine import make_machine

    random = np.random.default_rng(seed)
    q, k, v = (
        (random.standard_normal((count, heads, head_width)) * spread).astype(np.float32)
        for count, heads in ((rows, kv_heads * group), (keys, kv_heads), (keys, kv_heads))
    )
    pieces = [(integer_cache.rounded(k, form), integer_cache.rounded(v, form))]
    scale = float(np.float32(head_width**-0.5))
    exact = integer_cache.attend(q.astype(np.float64), pieces, scale)
    seen = _core.KeyValues(1, keys, kv_heads, head_width, form)
    found = np.empty_like(q)
    machine = make_machine(2)
    seen.store(machine, 0, k, v)
    _core.attend(machine, q, seen, 0, scale, found)
    # Where float32 and float64 round a weight or a query to neighbouring integers, they differ by one in 32767 of the largest.
    largest = np.abs(pieces[0][1].floats(np.dtype(np.float64))).max()
    assert np.abs(found - exact).max() <= (2e-4 + 3e-4 * spread**2) * largest + 1e-12


@pytest.mark.parametrize("form", FORMS)
def test_what_is_kept_is_close_to_what_was_there(form: str) -> None:
    x = np.random.default_rng(0).standard_normal((200, 2, 64)).astype(np.float32)
    kept = integer_cache.rounded(x, form)
    apart = np.sqrt(np.mean((kept.floats(np.dtype(np.float32)) - x) ** 2))
    assert apart < {"int8": 0.006, "int4": 0.09}[form]
    assert kept.codes.nbytes == x.size and kept.scales.nbytes == x.size // 32 * 2


def test_a_rotation_undoes_itself_and_keeps_products() -> None:
    x, y = np.random.default_rng(1).standard_normal((2, 5, 96))
    turned = integer_cache.hadamard(x)
    np.testing.assert_allclose(integer_cache.hadamard(turned), x, atol=1e-12)
    np.testing.assert_allclose((turned * integer_cache.hadamard(y)).sum(-1), (x * y).sum(-1), atol=1e-12)


def test_bytes_of_a_page_are_those_that_the_planner_counts() -> None:
    from herd.models.sizes import CACHE_DTYPES, cache_bytes

    for name in ("a llama", "heads of 128"):
        for form, dtype in CACHE_DTYPES.items():
            backend = make_backend("cpu", MODELS[name], leaves_for(name), activations="float32", kv_cache=form)
            assert backend.page_bytes() == cache_bytes(MODELS[name], 64, 64, dtype), form
            assert f"/kv-{form.replace('float', 'f')} " in backend.fingerprint


def test_an_unknown_format_is_refused_by_name() -> None:
    for name in ("cpu", "reference"):
        with pytest.raises(UsageError, match=r"kv_cache is 'int7'.*auto, float32, float16, int8, int4"):
            make_backend(name, MODELS["a llama"], leaves_for("a llama"), kv_cache="int7")
