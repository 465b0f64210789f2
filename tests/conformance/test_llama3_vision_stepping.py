"""However a text with pictures reaches the model - whole, in chunks, token by token, in company - it says the same; and every part of
the architecture matters to what it says."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from functools import lru_cache
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from conformance.llama3_vision_texts import CFG, TEXTS, difference, picture, placed, span_of, text
from conformance.running import NUM_PAGES, oracle
from herd.backends.base import BackendOptions, Plan, Span
from herd.backends.reference import ReferenceBackend
from herd.backends.reference.arrays import Arrays
from herd.errors import UsageError
from herd.models.architecture import PictureShape, num_embeddings, seeing
from herd.models.llama import LlamaConfig
from herd.models.llama3_vision import Llama3VisionConfig, picture_positions
from herd.models.rope import Rope
from herd.models.weights import Matrix
from tiny import dense_f32, random_leaves

LEAVES = random_leaves(CFG)
SEEN = "a run, text, a run"


def reference(cfg: Llama3VisionConfig = CFG, leaves: Mapping[str, Matrix] = LEAVES, **options: Any) -> ReferenceBackend:
    backend = ReferenceBackend(cfg, leaves.__getitem__, BackendOptions(**{"dtype": "float64", **options}))
    backend.allocate(NUM_PAGES)
    return backend


@lru_cache(maxsize=1)
def shared() -> ReferenceBackend:
    return reference()


@lru_cache(maxsize=16)
def whole(name: str) -> NDArray[np.float64]:
    return shared().logits(Plan((span_of(name),)))


@pytest.mark.parametrize("name", TEXTS)
@pytest.mark.parametrize("chunk", [1, 3, 7])
def test_a_prompt_in_chunks_equals_the_whole_prompt(name: str, chunk: int) -> None:
    length = len(TEXTS[name][0])
    pieces = [shared().logits(Plan((span_of(name, start, start + chunk, first_page=5),))) for start in range(0, length, chunk)]
    assert difference(np.concatenate(pieces), whole(name)) < 1e-11


def test_sequences_in_one_step_equal_each_alone_with_pictures_and_without() -> None:
    starts = {
        "two pictures in a row": 4,
        "no picture": 9,
        "a picture first": 0,
        "two pictures with text between": 7,
        "a picture at the end": 8,
    }
    for page, (name, start) in enumerate(starts.items()):
        if start:
            shared().logits(Plan((span_of(name, 0, start, first_page=page),)))
    together = shared().logits(
        Plan(tuple(span_of(name, start, None, first_page=page) for page, (name, start) in enumerate(starts.items())))
    )
    alone = np.concatenate([whole(name)[start:] for name, start in starts.items()])
    assert difference(together, alone) < 1e-11


def test_a_picture_that_is_encoded_again_is_the_same() -> None:
    backend = reference()
    first = backend.logits(Plan((span_of("a picture first"),)))
    backend.logits(
        Plan((span_of(SEEN), span_of("two pictures with text between", first_page=3), span_of("a picture at the end", first_page=6)))
    )
    assert np.array_equal(backend.logits(Plan((span_of("a picture first"),))), first)


def test_text_before_the_first_picture_is_as_if_there_were_none() -> None:
    tokens, _ = TEXTS["text before the picture"]
    before = tokens.index(CFG.picture_id)
    alone = shared().logits(Plan((Span(0, tokens[:before], [9], before),)))
    assert difference(whole("text before the picture")[:before], alone) < 1e-11


def test_text_alone_is_llama_3_1_exactly() -> None:
    names = (
        "width",
        "num_layers",
        "num_heads",
        "num_kv_heads",
        "head_width",
        "ffn_width",
        "vocab_size",
        "context_length",
        "norm_eps",
        "rope",
    )
    llama = LlamaConfig(**{name: getattr(CFG, name) for name in names})
    embed = Arrays(np.dtype(np.float64)).get(LEAVES["embed"])[: CFG.vocab_size]
    tokens, _ = TEXTS["no picture"]
    assert np.array_equal(whole("no picture"), oracle(llama, {**LEAVES, "embed": dense_f32(embed)}, tokens))


def test_closed_gates_hide_every_picture() -> None:
    closed = {name: dense_f32(np.zeros(1)) for name in LEAVES if name.startswith("crossing.") and name.endswith("_gate")}
    assert len(closed) == 4
    tokens, _ = TEXTS["two pictures in a row"]
    blind = reference(leaves={**LEAVES, **closed})
    seen = blind.logits(Plan((span_of("two pictures in a row"),)))
    assert np.array_equal(seen, blind.logits(Plan((Span(0, tokens, [9], len(tokens)),))))


SWITCHES: dict[str, Llama3VisionConfig] = {
    "other crossing layers": replace(CFG, crossing=(0, 2)),
    "the outputs of the kept layers": replace(CFG, vision=replace(CFG.vision, kept=(2, 3))),
    "kept layers the other way round": replace(CFG, vision=replace(CFG.vision, kept=(3, 1))),
    "no other number of the picture token": replace(CFG, picture_aliases=()),
    "rotary positions without scaling": replace(CFG, rope=Rope(CFG.rope.theta, CFG.rope.width)),
    "another epsilon": replace(CFG, norm_eps=1e-2),
    "more heads in the encoder": replace(CFG, vision=replace(CFG.vision, num_heads=8)),
}


@pytest.mark.parametrize("switch", SWITCHES)
def test_flipping_a_switch_changes_the_logits(switch: str) -> None:
    name = "the other number of the picture token"
    assert difference(reference(SWITCHES[switch]).logits(Plan((span_of(name),))), whole(name)) > 1e-4


@pytest.mark.parametrize("name", [name for name in LEAVES if not re.search(r"(layers|crossing)\.[1-9]", name)])
def test_every_weight_matters_to_a_text_with_a_picture(name: str) -> None:
    """A gate or a table that nothing read would be found here; layers of one stack are alike."""
    values = Arrays(np.dtype(np.float32)).get(LEAVES[name])
    other = reference(leaves={**LEAVES, name: dense_f32(values * np.float32(1.25) + np.float32(0.125))}, dtype="float32")
    found = other.logits(Plan((span_of("the other rows of the embedding"),)))
    assert abs(found - whole("the other rows of the embedding")).max() > 1e-3


def test_unused_tiles_take_part_in_the_encoder() -> None:
    """A picture of one tile in an encoder of one tile is another one."""
    shown, narrow = picture((1, 1)), replace(CFG, vision=replace(CFG.vision, max_tiles=1))
    grid, rows = CFG.vision.max_tiles**2, CFG.vision.tile_rows
    arrays = Arrays(np.dtype(np.float32))
    first = {"vision.before": 1, "vision.after": 1, "vision.tile_positions": rows}
    leaves = {**LEAVES, **{name: dense_f32(arrays.get(LEAVES[name])[:kept]) for name, kept in first.items()}}
    assert arrays.get(LEAVES["vision.tile_positions"]).shape[0] == grid * rows
    alone = reference(narrow, leaves).encode(shown)
    assert abs(alone[1] - shared().encode(shown)[1]).max() > 1e-2


def test_ids_go_up_to_the_rows_of_the_embedding_and_logits_do_not() -> None:
    assert num_embeddings(CFG) == CFG.vocab_size + 8 == shared().num_embeddings
    assert whole("the other rows of the embedding").shape[1] == CFG.vocab_size == shared().vocab_size
    with pytest.raises(UsageError, match="Token id 328 at position 1 is outside the vocabulary; ids go from 0 to 327"):
        shared().logits(Plan((Span(0, [1, 328], [0], 1),)))


def test_pictures_and_their_tokens_must_fit_together() -> None:
    assert seeing(CFG) is not None
    with pytest.raises(UsageError, match=r"The prompt has 2 tokens that stand for a picture \(320 or 311\) and 1 pictures came with it"):
        placed([5, 320, 6, 311], [picture((1, 1))])
    with pytest.raises(UsageError, match="has 0 tokens that stand for a picture"):
        placed(text(5), [picture((1, 1))])
    with pytest.raises(UsageError, match="has 1 tokens that stand for a picture"):
        placed([320], [])


@pytest.mark.parametrize("shape", [PictureShape(5, 32, 32, 5, 1), PictureShape(1, 64, 32, 1, 1), PictureShape(3, 32, 32, 1, 2)])
def test_a_picture_that_was_cut_otherwise_is_refused(shape: PictureShape) -> None:
    with pytest.raises(UsageError, match=r"Picture 1 has .* expected are up to 4 tiles of 32 x 32, all of the grid"):
        picture_positions(CFG, [320], [shape])


def test_every_value_on_the_way_has_a_name() -> None:
    names = shared().value_names()
    for each in (
        "embed",
        "layers.1.out",
        "crossing.0.attention.q",
        "crossing.0.middle",
        "crossing.1.ffn.hidden",
        "crossing.1.out",
        "logits",
    ):
        assert each in names
    assert names.index("crossing.1.out") < names.index("layers.3.attention.q") < names.index("layers.3.out")
