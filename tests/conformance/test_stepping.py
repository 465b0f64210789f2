"""However a text reaches a model - whole, in chunks, token by token, in company, over scattered pages - it says the same."""

from __future__ import annotations

import numpy as np
import pytest

from conformance.architectures import ARCHITECTURES
from conformance.running import error, in_chunks, logits_of, make_backend, oracle, pages_for, prompt, whole
from herd.backends.base import Span
from herd.backends.reference.arrays import Arrays
from herd.models.rope import Rope
from herd.models.weights import Adapted
from tiny import dense_f32, random_leaves, tiny_llama


@pytest.mark.parametrize("chunk", [1, 7, 64, 100])
def test_a_prompt_in_chunks_equals_the_whole_prompt(backend_name: str, chunk: int) -> None:
    cfg = ARCHITECTURES["llama-3.1 (llama3 scaling)"]
    leaves, tokens = random_leaves(cfg), prompt(cfg, 150)
    backend = make_backend(backend_name, cfg, leaves, activations="float32")
    exact = oracle(cfg, leaves, tokens)
    at_once = error(logits_of(backend, whole(tokens)), exact)
    assert error(in_chunks(backend, tokens, chunk, first_page=7), exact) <= 2 * at_once


def test_sequences_in_one_step_equal_each_alone(backend_name: str) -> None:
    cfg = ARCHITECTURES["llama-3 (grouped-query)"]
    leaves = random_leaves(cfg)
    backend = make_backend(backend_name, cfg, leaves, activations="float32")
    texts = [prompt(cfg, length, seed=length) for length in (1, 70, 33, 130)]
    first_pages = (0, 1, 3, 4)
    starts = (0, 69, 20, 64)
    for text, page, start in zip(texts, first_pages, starts, strict=True):
        if start:
            backend_span = Span(0, text[:start], pages_for(len(text), page), 1)
            logits_of(backend, backend_span)
    spans = [
        Span(start, text[start:], pages_for(len(text), page), len(text) - start)
        for text, page, start in zip(texts, first_pages, starts, strict=True)
    ]
    together = logits_of(backend, *spans)
    exact = np.concatenate([oracle(cfg, leaves, text)[start:] for text, start in zip(texts, starts, strict=True)])
    alone = np.concatenate([logits_of(backend, whole(text, 10))[start:] for text, start in zip(texts, starts, strict=True)])
    assert error(together, exact) <= 2 * error(alone, exact)


def test_only_the_wanted_rows_come_back(backend_name: str) -> None:
    cfg = ARCHITECTURES["llama-3.2 (tied)"]
    leaves, tokens = random_leaves(cfg), prompt(cfg, 40)
    backend = make_backend(backend_name, cfg, leaves, activations="float32")
    everything = logits_of(backend, whole(tokens))
    quiet = Span(0, tokens[:30], pages_for(30, 5), 0)
    some = logits_of(backend, quiet, Span(0, tokens, pages_for(40, 7), 3))
    assert some.shape == (3, cfg.vocab_size)
    exact = oracle(cfg, leaves, tokens)[-3:]
    assert error(some, exact) <= 2 * error(everything[-3:], exact)


def test_a_page_that_was_another_sequences_leaves_no_trace(backend_name: str) -> None:
    cfg = ARCHITECTURES["llama-3 (grouped-query)"]
    leaves = random_leaves(cfg)
    backend = make_backend(backend_name, cfg, leaves, activations="float32")
    text = prompt(cfg, 90)
    fresh = logits_of(backend, whole(text))
    logits_of(backend, whole(prompt(cfg, 128, seed=1)))
    assert np.array_equal(logits_of(backend, whole(text)), fresh)


def test_permuting_rotary_rows_and_frequencies_of_a_pair_changes_nothing(backend_name: str) -> None:
    """Swapping two rotary pairs of every head in q and k, together with their frequencies, leaves scores as they were."""
    from herd.models.rope import Divisors

    plain = tiny_llama()
    omega = Rope(10000.0, 32).frequencies()
    swapped = [omega[1], omega[0], *omega[2:]]
    divisors = Divisors(tuple(was / becomes for was, becomes in zip(omega, swapped, strict=True)))
    leaves = random_leaves(plain)
    moved = dict(leaves)
    for name in leaves:
        if name.endswith(("attention.q", "attention.k")):
            rows = Arrays(np.dtype(np.float32)).get(leaves[name]).reshape(-1, 16, 2, plain.width).copy()
            rows[:, [0, 1]] = rows[:, [1, 0]]
            moved[name] = dense_f32(rows.reshape(leaves[name].shape))
    tokens = prompt(plain, 100)
    exact = oracle(plain, leaves, tokens)
    straight = logits_of(make_backend(backend_name, plain, leaves, activations="float32"), whole(tokens))
    turned = tiny_llama(rope=Rope(10000.0, 32, divisors))
    crossed = logits_of(make_backend(backend_name, turned, moved, activations="float32"), whole(tokens))
    assert error(crossed, exact) <= 2 * error(straight, exact)


def test_heads_that_are_rotated_in_part_keep_the_rest() -> None:
    cfg = tiny_llama(rope=Rope(10000.0, 16))
    leaves, tokens = random_leaves(cfg), prompt(cfg, 60)
    exact = oracle(cfg, leaves, tokens)
    wide = oracle(tiny_llama(), leaves, tokens)
    stretched = Rope(10000.0, 16).frequencies() + (1e-30,) * 8
    full = Rope(10000.0, 32).frequencies()
    from herd.models.rope import Divisors

    same = Rope(10000.0, 32, Divisors(tuple(omega / wanted for omega, wanted in zip(full, stretched, strict=True))))
    assert error(exact, wide) > 0.1
    assert abs(oracle(tiny_llama(rope=same), leaves, tokens) - exact).max() < 1e-11


def test_an_adapted_matrix_equals_its_merged_one(backend_name: str) -> None:
    cfg = tiny_llama(tied_embeddings=True)
    leaves, tokens = random_leaves(cfg), prompt(cfg, 60)
    adapted, merged = dict(leaves), dict(leaves)
    random = np.random.default_rng(5)
    for name in ("layers.0.attention.q", "layers.1.ffn.down", "embed"):
        rows, columns = leaves[name].shape
        down, up = random.standard_normal((4, columns)) / 16, random.standard_normal((rows, 4)) / 4
        adapted[name] = Adapted(leaves[name], dense_f32(down), dense_f32(up), scale=0.5)
        values = Arrays(np.dtype(np.float64)).get(leaves[name])
        merged[name] = dense_f32(values + 0.5 * (up.astype(np.float32) @ down.astype(np.float32)))
    exact = oracle(cfg, adapted, tokens)
    plain = error(logits_of(make_backend("reference", cfg, merged, activations="float32"), whole(tokens)), exact)
    assert error(oracle(cfg, leaves, tokens), exact) > 0.1
    assert error(oracle(cfg, merged, tokens), exact) <= 2 * plain
    assert error(logits_of(make_backend(backend_name, cfg, adapted, activations="float32"), whole(tokens)), exact) <= 2 * plain


def test_new_weights_take_effect_and_the_cache_is_the_callers_affair(backend_name: str) -> None:
    cfg = tiny_llama()
    leaves, tokens = random_leaves(cfg), prompt(cfg, 40)
    backend = make_backend(backend_name, cfg, leaves, activations="float32")
    before = logits_of(backend, whole(tokens))
    other = random_leaves(cfg, seed=1)
    backend.update({name: other[name] for name in ("layers.0.ffn.up", "norm")})
    changed = {**leaves, "layers.0.ffn.up": other["layers.0.ffn.up"], "norm": other["norm"]}
    exact = oracle(cfg, changed, tokens)
    after = logits_of(backend, whole(tokens))
    assert error(before, exact) > 0.1
    assert error(after, exact) <= 2 * error(before, oracle(cfg, leaves, tokens))
