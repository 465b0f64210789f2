"""The torch backend against the oracle, for every architecture: in float64 the same numbers, in fewer bits within the budget.

The plain implementation in 16 bits is the reference with every operation's result rounded to the type, whatever it computed in;
for llamas that is about half as far from exact as `transformers` in that type.

Where experts are chosen, two scores can be closer than 16 bits can tell, and then any implementation goes either way: there the
errors of the rows are compared by their median, which a few rows with another expert do not move.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

pytest.importorskip("torch", reason="torch is not installed (pip install herd-llama[torch])")

import torch

from conformance import architectures, llama3_vision_texts, llama4, test_deberta, test_muse_glimmer
from conformance.cases import CASES
from conformance.running import NUM_PAGES, error, in_chunks, logits_of, make_backend, oracle, pages_for, prompt, whole
from herd import dtypes
from herd.backends.base import BackendOptions, Placed, Plan, Span
from herd.backends.reference import ReferenceBackend
from herd.backends.reference.arrays import rounded
from herd.backends.torch import TorchBackend
from herd.dtypes import BF16, F16, DType
from herd.models import muse_glimmer
from herd.models.architecture import Config
from herd.models.llama4 import picture_positions
from herd.models.weights import Matrix
from tiny import random_leaves, tiny_llama4, tiny_llama4_vision

LENGTH = 80
NAMES = {F16: "float16", BF16: "bfloat16"}
STORED = "llama-3.2 (tied)"


@dataclass(frozen=True)
class Text:
    """Tokens for a model, with the pictures among them."""

    cfg: Config
    leaves: Mapping[str, Matrix]
    tokens: Sequence[int]
    pictures: tuple[Placed, ...] = ()

    def span(self, start: int, stop: int, first_page: int = 0) -> Span:
        """A stretch, all logits wanted."""
        piece, pages = list(self.tokens[start:stop]), pages_for(len(self.tokens), first_page)
        return Span(start, piece, pages, len(piece), pictures=self.pictures)


def llama4_text() -> Text:
    cfg = tiny_llama4(vision=tiny_llama4_vision())
    cuts = [llama4.cut(cfg.vision, 1, 2, 1), llama4.cut(cfg.vision, 1, 1, 2)]
    tokens = llama4.with_pictures(cfg, cuts, [token % 200 for token in prompt(cfg, 30)])
    return Text(cfg, random_leaves(cfg), tokens, tuple(map(Placed, cuts, picture_positions(cfg, tokens, [each.shape for each in cuts]))))


def muse_text() -> Text:
    cfg, image, video = test_muse_glimmer.CFG, test_muse_glimmer.IMAGE, test_muse_glimmer.VIDEO
    cuts = [test_muse_glimmer.cut(1, 3, 5, 1), test_muse_glimmer.cut(4, 2, 2, 3)]
    tokens = [5, 6, *[image] * 15, 7, *[video] * 4, 9, *[video] * 4, *range(10, 60)]
    placed = map(Placed, cuts, muse_glimmer.picture_positions(cfg, tokens, [each.shape for each in cuts]))
    return Text(cfg, test_muse_glimmer.leaves_of(cfg), tokens, tuple(placed))


def crossing_text(name: str) -> Text:
    cfg, (tokens, pictures) = llama3_vision_texts.CFG, llama3_vision_texts.TEXTS[name]
    return Text(cfg, random_leaves(cfg), tokens, llama3_vision_texts.placed(tokens, pictures))


def text_of(name: str) -> Text:
    if name in CASES:
        return Text(CASES[name].cfg, random_leaves(CASES[name].cfg), prompt(CASES[name].cfg, LENGTH))
    if name in llama3_vision_texts.TEXTS:
        return crossing_text(name)
    return {"llama-4 with pictures": llama4_text, "muse-glimmer with pictures and video": muse_text}[name]()


CROSSING = [
    "text before the picture",
    "two pictures with text between",
    "a run, text, a run",
    "the other rows of the embedding",
    "no picture",
]
TEXTS = [*CASES, "llama-4 with pictures", "muse-glimmer with pictures and video", *CROSSING]


@pytest.mark.parametrize("name", TEXTS)
def test_in_float64_logits_are_the_oracles_however_the_text_arrives(name: str) -> None:
    """Whole; then in pieces of several sizes, beside another sequence that takes a token at a time."""
    text = text_of(name)
    length = len(text.tokens)
    reference = ReferenceBackend(text.cfg, text.leaves.__getitem__, BackendOptions(dtype="float64", activations="float32"))
    reference.allocate(NUM_PAGES)
    exact = reference.logits(Plan((text.span(0, length),)))
    ours = make_backend("torch", text.cfg, text.leaves, activations="float32", dtype="float64")
    assert isinstance(ours, TorchBackend)
    assert exact.std() > 0.25 and abs(ours.logits(Plan((text.span(0, length),))) - exact).max() < 1e-11
    ends = sorted({1, 8, length // 2, length // 2 + 1, length // 2 + 2, length - 3, length - 1, length})
    other, pieces, others = 2, [], []
    ours.logits(Plan((text.span(0, other, 8),)))
    for start, end in zip([0, *ends[:-1]], ends, strict=True):
        both = ours.logits(Plan((text.span(start, end), text.span(other, other + 1, 8))))
        pieces.append(both[: end - start])
        others.append(both[end - start :])
        other += 1
    assert abs(np.concatenate(pieces) - exact).max() < 1e-11
    assert abs(np.concatenate(others) - exact[2:other]).max() < 1e-11


@pytest.mark.parametrize("length", [1, 9, 64])
def test_in_float64_labels_of_a_classifier_are_the_oracles(length: int) -> None:
    cfg = test_deberta.CFG
    leaves = test_deberta.leaves_of(cfg)
    tokens = [int(token) for token in np.random.default_rng(length).integers(0, cfg.vocab_size, length)]
    options = BackendOptions(dtype="float64", activations="float32")
    exact = ReferenceBackend(cfg, leaves.__getitem__, options).classify(tokens)
    ours = TorchBackend(cfg, leaves.__getitem__, options).classify(tokens)
    assert np.array_equal(ours, exact.astype(np.float32)) or abs(ours - exact).max() < 1e-6


@pytest.mark.parametrize("name", CASES)
def test_in_float32_it_stays_within_the_budget(name: str) -> None:
    text = text_of(name)
    exact = oracle(text.cfg, text.leaves, text.tokens)
    plain, ours = (make_backend(backend, text.cfg, text.leaves, activations="float32") for backend in ("reference", "torch"))
    assert 0 < error(logits_of(ours, whole(text.tokens)), exact) <= 2 * error(logits_of(plain, whole(text.tokens)), exact)


@pytest.mark.parametrize("storage", [dtype.name for dtype in dtypes.BLOCK])
def test_every_block_format_is_multiplied_within_the_budget(storage: str) -> None:
    cfg = CASES[STORED].cfg
    leaves, tokens = random_leaves(cfg, dtype=dtypes.BY_NAME[storage]), prompt(cfg, LENGTH)
    exact = oracle(cfg, leaves, tokens)
    plain, ours = (make_backend(backend, cfg, leaves, activations="float32") for backend in ("reference", "torch"))
    assert 0 < error(logits_of(ours, whole(tokens)), exact) <= 2 * error(logits_of(plain, whole(tokens)), exact)


@pytest.mark.parametrize(
    ("name", "dtype"), [*((name, BF16) for name in CASES), *((name, F16) for name in ("llama-3.1 (llama3 scaling)", "llama-4 scout"))]
)
def test_in_16_bits_it_stays_within_the_budget(name: str, dtype: DType) -> None:
    cfg = CASES[name].cfg
    leaves, tokens = random_leaves(cfg, dtype=dtype), prompt(cfg, LENGTH)
    exact = oracle(cfg, leaves, tokens)
    measure = median_error if getattr(cfg, "expert_layers", ()) else error
    ours = make_backend("torch", cfg, leaves, activations="float32")
    assert NAMES[dtype] in ours.fingerprint, "what plain weights are stored in is what is computed in"
    allowed = 2 * measure(logits_of(rounding_reference(cfg, leaves, dtype), whole(tokens)), exact)
    assert 0 < measure(logits_of(ours, whole(tokens)), exact) <= allowed
    assert 0 < measure(in_chunks(ours, tokens, 27), exact) <= allowed


@pytest.mark.parametrize("storage", ["f32", "q4_k"])
def test_other_storage_is_computed_in_16_bits_when_asked(storage: str) -> None:
    cfg = CASES[STORED].cfg
    leaves, tokens = random_leaves(cfg, dtype=dtypes.BY_NAME[storage]), prompt(cfg, LENGTH)
    exact = oracle(cfg, leaves, tokens)
    ours = make_backend("torch", cfg, leaves, activations="float32", dtype="bfloat16")
    plain = error(logits_of(rounding_reference(cfg, leaves, BF16), whole(tokens)), exact)
    assert plain / 2 < error(logits_of(ours, whole(tokens)), exact) <= 2 * plain


@pytest.mark.parametrize("dtype", [BF16, F16])
def test_the_plain_implementation_in_16_bits_is_no_looser_than_transformers(dtype: DType) -> None:
    case = CASES["llama-3 (grouped-query)"]
    leaves, tokens = random_leaves(case.cfg, dtype=dtype), prompt(case.cfg, LENGTH)
    exact = oracle(case.cfg, leaves, tokens)
    plain = error(logits_of(rounding_reference(case.cfg, leaves, dtype), whole(tokens)), exact)
    model = architectures.transformers_model(case.cfg, leaves, NAMES[dtype])
    with torch.inference_mode():
        theirs = error(model(torch.tensor([tokens])).logits[0].float().numpy(), exact)
    assert theirs / 4 < plain <= theirs


def median_error(ours: NDArray[Any], exact: NDArray[Any]) -> float:
    """The median over rows of the root mean square of the difference."""
    return float(np.median(np.sqrt(np.mean((ours.astype(np.float64) - exact) ** 2, axis=-1))))


class Rounding:
    """The reference's operations, each result rounded to a 16-bit type. Angles are not values of the model and stay."""

    def __init__(self, ops: Any, dtype: DType) -> None:
        self._ops, self._dtype = ops, dtype

    def __getattr__(self, name: str) -> Any:
        operation = getattr(self._ops, name)
        if name == "rotary" or not callable(operation):
            return operation

        def rounding(*arguments: Any, **options: Any) -> Any:
            y = operation(*arguments, **options)
            return rounded(y, self._dtype) if isinstance(y, np.ndarray) and y.dtype.kind == "f" else y

        return rounding


def rounding_reference(cfg: Config, leaves: Mapping[str, Matrix], dtype: DType) -> ReferenceBackend:
    """The plain implementation in 16 bits."""
    backend = make_backend("reference", cfg, leaves, activations="float32", dtype=NAMES[dtype])
    assert isinstance(backend, ReferenceBackend)
    backend._ops = Rounding(backend._ops, dtype)  # type: ignore[assignment]  # stands in for it
    return backend
