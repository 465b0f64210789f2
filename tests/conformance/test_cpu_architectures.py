"""Llama 4, Llama 3.2 Vision and Muse-Glimmer on the cpu backend: as close to the float64 oracle as the plain implementation, and the
same bits for any number of threads, any cutting of the prompt and any company, with pictures and without.

The budget is that of test_models.py.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from conformance.llama3_vision_texts import CFG, SEES, picture
from conformance.llama4 import LLAMA4
from conformance.running import NUM_PAGES, error, in_chunks, logits_of, make_backend, plain_of, prompt, whole
from conformance.seeing_models import MUSE, STORIES, Story, leaves_of
from herd import dtypes
from herd.backends.base import Backend, BackendOptions, Encoded, Placed, Plan, Span
from herd.backends.reference import ReferenceBackend
from herd.errors import UsageError
from herd.models.deberta import DebertaConfig
from herd.models.weights import Kind, Matrix, TensorSpec

pytestmark = pytest.mark.usefixtures("cpu")

TEXTS: dict[str, Any] = {**LLAMA4, "muse-glimmer": MUSE}
MODES = [("f32", "float32"), ("bf16", "float32"), ("q8_0", "int8"), ("q4_k", "int8")]
LENGTH = 150


@lru_cache(maxsize=8)
def stored(architecture: str, storage: str) -> Mapping[str, Matrix]:
    """Routers stay F32, as in published files: with rounded scores two right programs choose different experts."""
    cfg = TEXTS[architecture] if architecture in TEXTS else STORIES[architecture]().cfg

    def format_of(spec: TensorSpec) -> dtypes.DType:
        is_odd = spec.shape[-1] % 256 != 0
        return dtypes.F32 if spec.kind is Kind.ROUTER or is_odd else dtypes.BY_NAME[storage]

    return leaves_of(cfg, format_of)


@lru_cache(maxsize=8)
def story(name: str) -> Story:
    return STORIES[name]()


def reference(cfg: Any, leaves: Mapping[str, Matrix], **options: Any) -> ReferenceBackend:
    backend = ReferenceBackend(cfg, leaves.__getitem__, BackendOptions(**options))
    backend.allocate(NUM_PAGES)
    return backend


def same_bits(one: NDArray[np.float32], other: NDArray[np.float32]) -> bool:
    return one.shape == other.shape and np.array_equal(one.view(np.uint32), other.view(np.uint32))


def words(architecture: str, length: int = LENGTH, seed: int = 0) -> list[int]:
    return [token % 290 for token in prompt(TEXTS[architecture], length, seed)]


@pytest.mark.parametrize(("storage", "activations"), MODES)
@pytest.mark.parametrize("architecture", TEXTS)
def test_text_stays_within_the_budget(architecture: str, storage: str, activations: str) -> None:
    cfg, leaves, tokens = TEXTS[architecture], stored(architecture, storage), words(architecture, 80)
    exact = reference(cfg, leaves, dtype="float64", activations=activations).logits(Plan((whole(tokens),)))
    plain = plain_of("cpu", cfg, leaves, activations=activations)
    budget = error(logits_of(plain, whole(tokens)), exact)
    if activations == "int8":
        budget = max(budget, *(error(in_chunks(plain, tokens, chunk), exact) for chunk in (64, 7)))
    found = error(logits_of(make_backend("cpu", cfg, leaves, activations=activations, threads=2), whole(tokens)), exact)
    assert 0 < found <= 2 * budget


@pytest.mark.parametrize(("storage", "activations"), [("f32", "float32"), ("q4_k", "int8")])
@pytest.mark.parametrize("architecture", ["llama-4 scout", "llama-4 with two experts a token", "muse-glimmer"])
def test_threads_chunks_and_company_change_no_bit_of_text(architecture: str, storage: str, activations: str) -> None:
    cfg, leaves, tokens = TEXTS[architecture], stored(architecture, storage), words(architecture)
    backend = make_backend("cpu", cfg, leaves, activations=activations, threads=2)
    at_once = logits_of(backend, whole(tokens))
    for threads in (1, 3, 7):
        other = make_backend("cpu", cfg, leaves, activations=activations, threads=threads)
        assert same_bits(logits_of(other, whole(tokens)), at_once), f"{threads} threads"
    for chunk in (1, 7, 64):
        assert same_bits(in_chunks(backend, tokens, chunk, first_page=5), at_once), f"chunks of {chunk}"
    company = [whole(words(architecture, 1 + 13 * index, seed=index), 3 * index) for index in range(6)]
    together = logits_of(backend, *company[:3], whole(tokens, 20), *company[3:])
    start = sum(len(span.tokens) for span in company[:3])
    assert same_bits(together[start : start + len(tokens)], at_once)


@pytest.mark.parametrize("architecture", ["llama-4 scout", "muse-glimmer"])
def test_windows_far_into_a_text_give_the_bits_of_a_short_cache(architecture: str) -> None:
    """What lies before every window may be anything, as it is when pages are given to others."""
    cfg, leaves, tokens = TEXTS[architecture], stored(architecture, "f32"), words(architecture, 330)
    backend = make_backend("cpu", cfg, leaves, threads=3)
    at_once = logits_of(backend, whole(tokens))
    assert same_bits(in_chunks(backend, tokens, 41, first_page=8), at_once)


@pytest.mark.parametrize(("storage", "activations"), [("f32", "float32"), ("bf16", "float32"), ("q8_0", "int8")])
@pytest.mark.parametrize("name", STORIES)
def test_pictures_stay_within_the_budget(name: str, storage: str, activations: str) -> None:
    cfg, leaves = story(name).cfg, stored(name, storage)
    exact = reference(cfg, leaves, dtype="float64", activations=activations).logits(Plan((story(name).span(),)))
    plain = plain_of("cpu", cfg, leaves, activations=activations)
    budget = error(logits_of(plain, story(name).span()), exact)
    if activations == "int8":
        budget = max(budget, error(story_in_chunks(plain, name, 7), exact))
    found = logits_of(make_backend("cpu", cfg, leaves, activations=activations, threads=2), story(name).span())
    assert 0 < error(found, exact) <= 2 * budget
    assert error(found, exact) < exact.std() / 8


def story_in_chunks(backend: Backend, name: str, chunk: int, first_page: int = 0) -> NDArray[np.float32]:
    starts = range(0, len(story(name).tokens), chunk)
    return np.concatenate([logits_of(backend, story(name).span(start, start + chunk, first_page)) for start in starts])


@pytest.mark.parametrize(("storage", "activations"), [("f32", "float32"), ("q8_0", "int8")])
@pytest.mark.parametrize("name", STORIES)
def test_threads_chunks_and_company_change_no_bit_with_pictures(name: str, storage: str, activations: str) -> None:
    cfg, leaves, length = story(name).cfg, stored(name, storage), len(story(name).tokens)
    backend = make_backend("cpu", cfg, leaves, activations=activations, threads=2)
    at_once = logits_of(backend, story(name).span())
    for threads in (1, 3):
        other = make_backend("cpu", cfg, leaves, activations=activations, threads=threads)
        assert same_bits(logits_of(other, story(name).span()), at_once), f"{threads} threads"
    for chunk in (1, 7, 64):
        assert same_bits(story_in_chunks(backend, name, chunk, first_page=6), at_once), f"chunks of {chunk}"
    blind = Span(0, [5, 6, 7, 8], [12], 4)
    alone = logits_of(backend, blind)
    together = logits_of(backend, blind, story(name).span(first_page=14), Span(0, [9] * 5, [13], 5))
    assert same_bits(together[:4], alone) and same_bits(together[4 : 4 + length], at_once)


def test_a_text_without_pictures_leaves_out_what_crosses_over() -> None:
    """And gives the same bits as in a step where somebody else sees a picture."""
    name = "llama 3.2 vision"
    backend: Any = make_backend("cpu", story(name).cfg, stored(name, "f32"), threads=1)
    backend.profile(True)
    backend.step(Plan((Span(0, [1, 2, 3], [0], 1),)))
    assert [seconds for label, seconds in backend.profile(True) if label == "cross attention"] == [0.0, 0.0]
    backend.step(Plan((story(name).span(),)))
    assert all(seconds > 0 for label, seconds in backend.profile(False) if label == "cross attention")


def test_encoded_pictures_are_counted_and_kept() -> None:
    name = "llama 3.2 vision"
    backend = make_backend("cpu", story(name).cfg, stored(name, "f32"), threads=1)
    first = logits_of(backend, story(name).span())
    held = backend.memory().other["pictures"]
    assert held > 0
    assert same_bits(logits_of(backend, story(name).span()), first) and backend.memory().other["pictures"] == held


def test_many_sequences_with_a_picture_each_do_not_make_each_other_encode_again(backend_name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    encoded = []

    def spied(self: Encoded, encode: Callable[[Any], Any]) -> None:
        init(self, lambda shown: encoded.append(shown.digest) or encode(shown))  # type: ignore[func-returns-value]

    init = Encoded.__init__
    monkeypatch.setattr(Encoded, "__init__", spied)
    backend = make_backend(backend_name, CFG, leaves_of(CFG), activations="float32")
    spans = [Span(0, [SEES, 5], [page], 1, pictures=(Placed(picture((1, 1), page), (0,)),)) for page in range(12)]
    following = [Span(2, [6], [page], 1, pictures=span.pictures) for page, span in enumerate(spans)]
    for plan in (spans, following, following):
        backend.step(Plan(tuple(plan)))
    assert len(encoded) == 12
    for span in following[11], following[0], following[1]:
        backend.step(Plan((span,)))
    assert len(encoded) == 13, "when few are looked at, eight are kept"


def test_pictures_for_a_model_that_takes_none_are_refused(backend_name: str) -> None:
    backend = make_backend(backend_name, TEXTS["llama-4 scout"], stored("llama-4 scout", "f32"), activations="float32")
    with pytest.raises(UsageError, match="This model takes no pictures"):
        backend.step(Plan((Span(0, [1, 2], [0], 1, pictures=(Placed(picture((1, 1)), (0,)),)),)))


@pytest.mark.parametrize("dtype", [dtypes.F32, dtypes.Q8_0], ids=lambda dtype: dtype.name)
def test_a_classifier_gives_the_numbers_of_the_oracle_and_takes_no_steps(dtype: dtypes.DType) -> None:
    cfg = DebertaConfig(
        width=256,
        num_layers=2,
        num_heads=4,
        mlp_width=512,
        vocab_size=120,
        context_length=64,
        buckets=8,
        max_distance=40,
        norm_eps=1e-7,
        labels=("BENIGN", "INJECTION", "JAILBREAK"),
    )
    leaves, tokens = leaves_of(cfg, dtype), [token % 120 for token in range(7, 60)]
    ours: Any = make_backend("cpu", cfg, leaves, activations="float32", threads=2)
    exact = reference(cfg, leaves, dtype="float64", activations="float32").classify(tokens)
    plain = reference(cfg, leaves, dtype="float32", activations="float32").classify(tokens)
    found = ours.classify(tokens)
    assert found.shape == (3,) and error(found, exact) <= max(2 * error(plain, exact), 2e-6)
    assert ours.value_names() == ()
    with pytest.raises(UsageError, match="classifier"):
        ours.step(Plan((whole(tokens),)))
    with pytest.raises(UsageError, match="Token id 120 at position 1"):
        ours.classify([1, 120])


@pytest.mark.parametrize("name", STORIES)
def test_fused_and_composed_programs_give_the_same_bits(name: str) -> None:
    from herd.backends.cpu import CpuBackend

    found = []
    for fuse in (True, False):
        options = BackendOptions(activations="int8", threads=2, max_step_outputs=512)
        backend = CpuBackend(story(name).cfg, stored(name, "q8_0").__getitem__, options, lambda: None, fuse=fuse)
        backend.allocate(NUM_PAGES)
        found.append(logits_of(backend, story(name).span()))
    assert same_bits(*found)


def test_products_of_one_value_are_one_instruction() -> None:
    backend: Any = make_backend("cpu", TEXTS["muse-glimmer"], stored("muse-glimmer", "f32"), threads=1)
    labels = [label for label, _ in backend.profile(False)]
    # Queries, the gate, keys and values.
    assert sum(label.count("product") == 4 for label in labels) == len(MUSE.layers)
