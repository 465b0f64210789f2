"""Llama 4 and Guard 4: equal to `transformers` through files, with pictures, in any chunks and company; every switch counts."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch", reason="torch is not installed (pip install herd-llama[dev])")

import torch

from conformance.llama4 import (
    LLAMA4,
    cut,
    hugging_face_values,
    in_float64,
    picture_logits,
    random_config,
    transformers_logits,
    transformers_model,
    with_pictures,
    without_pictures,
)
from conformance.running import error, in_chunks, logits_of, make_backend, oracle, pages_for, plain_of, prompt, whole
from herd import dtypes
from herd.backends.base import BackendOptions, Plan, Span, Watch
from herd.backends.reference import ReferenceBackend
from herd.checkpoints import open_checkpoint
from herd.dtypes import BF16, DType
from herd.errors import UsageError
from herd.images.pixels import prepare
from herd.models import llama4, llama4_vision
from herd.models.architecture import PictureShape, seeing
from herd.models.llama4 import Llama4Config, every
from herd.models.rope import Llama3, Rope
from herd.models.weights import Kind, TensorSpec
from tiny import random_leaves, tiny_llama4, tiny_llama4_vision

TOKENS = 150
SCOUT, MAVERICK = LLAMA4["llama-4 scout"], LLAMA4["llama-4 maverick"]
SEEING = tiny_llama4(vision=tiny_llama4_vision())


def text(cfg: Llama4Config, length: int = TOKENS, seed: int = 0) -> list[int]:
    """Random tokens, none of which stands for a picture."""
    return [token % 300 for token in prompt(cfg, length, seed)]


@pytest.mark.parametrize("seed", range(8))
def test_random_configs_saved_by_transformers_give_the_same_logits(tmp_path: Path, seed: int) -> None:
    """config.json says all that counts, every weight arrives bit for bit, and the logits are equal in float64."""
    cfg = random_config(seed)
    leaves, tokens = random_leaves(cfg, seed), text(cfg, seed=seed)
    transformers_model(cfg, leaves).save_pretrained(tmp_path / "model")
    checkpoint = open_checkpoint(tmp_path / "model")
    assert (checkpoint.config, checkpoint.architecture, checkpoint.stop_ids) == (cfg, "llama4", (2, 3))
    found = {spec.name: checkpoint.leaf(spec.name) for spec in checkpoint.specs}
    assert found.keys() == leaves.keys()
    for name, leaf in leaves.items():
        assert (found[name].dtype, found[name].shape) == (leaf.dtype, leaf.shape)
        assert np.array_equal(found[name].data, leaf.data), name
    ours = oracle(cfg, found, tokens)
    theirs = transformers_logits(transformers_model(cfg, leaves, "float64"), tokens)
    assert ours.std() > 0.5 and abs(ours - theirs).max() < 1e-10


@pytest.mark.parametrize(
    "change",
    [
        {"expert_layers": (1, 2)},
        {"rotary_layers": (0, 1)},
        {"rotary_layers": (0, 1, 2, 3)},
        {"chunked_layers": (0, 1, 2, 3)},
        {"chunked_layers": (0, 1)},
        {"chunk": 25},
        {"chunk": None},
        {"num_chosen": 2},
        {"qk_norm": False},
        {"temper_floor": 17.0},
        {"temper_scale": 0.4},
        {"temper_scale": 0.0},
        {"norm_eps": 1e-3},
        {"rope": Rope(500000.0, 32, Llama3(15.0, 1.0, 1.0, 64))},
        {"rope": Rope(500000.0, 32, Llama3(16.0, 1.0, 1.0, 32))},
        {"rope": Rope(500000.0, 32)},
        {"rope": Rope(400000.0, 32, Llama3(16.0, 1.0, 1.0, 64))},
        {"tied_embeddings": True},
        {"qkv_bias": True},
        {"out_bias": True},
    ],
    ids=str,
)
def test_every_switch_changes_the_logits(change: dict[str, Any]) -> None:
    cfg = tiny_llama4()
    changed = replace(cfg, **change)
    tokens = text(cfg)
    assert abs(oracle(cfg, random_leaves(cfg), tokens) - oracle(changed, random_leaves(changed), tokens)).max() > 1e-3


def test_every_weight_changes_the_logits() -> None:
    """The reference reads all of them: none is declared and forgotten. Only a bias on unrotated keys moves all scores of a query
    alike, so that the softmax stays."""
    vision = tiny_llama4_vision(num_layers=1)
    cfg = replace(SEEING, qkv_bias=True, out_bias=True, vision=vision)
    leaves, others = random_leaves(cfg), random_leaves(cfg, seed=1)
    pictures = [cut(vision, 1, 1, 0)]
    tokens = with_pictures(cfg, pictures, text(cfg, 20))
    before = picture_logits(cfg, leaves, tokens, pictures, "float32")
    for name in leaves.keys() - {"layers.3.attention.k_bias"}:
        assert abs(picture_logits(cfg, {**leaves, name: others[name]}, tokens, pictures, "float32") - before).max() > 1e-4, name


@pytest.mark.parametrize(
    ("name", "chunk"),
    [("llama-4 scout", 1), ("llama-4 scout", 7), ("llama-4 maverick", 13), ("llama guard 4", 64), ("llama-4 with two experts a token", 64)],
)
def test_chunks_of_the_prompt_change_nothing(backend_name: str, name: str, chunk: int) -> None:
    cfg = LLAMA4[name]
    leaves, tokens = random_leaves(cfg), text(cfg)
    backend = make_backend(backend_name, cfg, leaves, activations="float32")
    exact = oracle(cfg, leaves, tokens)
    at_once = error(logits_of(backend, whole(tokens)), exact)
    assert error(in_chunks(backend, tokens, chunk, first_page=7), exact) <= 2 * at_once


@pytest.mark.parametrize("name", ["llama-4 scout", "llama-4 chunked where nothing rotates"])
def test_sequences_in_one_step_equal_each_alone(backend_name: str, name: str) -> None:
    """Each with its own positions in chunks and steps of temperature, some of them begun before."""
    cfg = LLAMA4[name]
    leaves = random_leaves(cfg)
    backend = make_backend(backend_name, cfg, leaves, activations="float32")
    texts = [text(cfg, length, seed=length) for length in (1, 70, 33, 130)]
    pages, starts = (0, 1, 3, 4), (0, 69, 20, 64)
    for tokens, page, start in zip(texts, pages, starts, strict=True):
        if start:
            logits_of(backend, Span(0, tokens[:start], pages_for(len(tokens), page), 1))
    spans = [
        Span(start, tokens[start:], pages_for(len(tokens), page), len(tokens) - start)
        for tokens, page, start in zip(texts, pages, starts, strict=True)
    ]
    exact = np.concatenate([oracle(cfg, leaves, tokens)[start:] for tokens, start in zip(texts, starts, strict=True)])
    alone = np.concatenate([logits_of(backend, whole(tokens, 10))[start:] for tokens, start in zip(texts, starts, strict=True)])
    assert error(logits_of(backend, *spans), exact) <= 2 * error(alone, exact)


@pytest.mark.parametrize("dtype", [BF16, dtypes.Q8_0, dtypes.Q4_K, dtypes.IQ4_XS], ids=lambda dtype: dtype.name)
def test_stored_experts_are_inside_the_budget(backend_name: str, dtype: DType) -> None:
    """Matrices and experts stored in a format: against float64 of the same stored numbers, int8 activations where they are the rule."""
    cfg = tiny_llama4(vision=tiny_llama4_vision())

    def stored(spec: TensorSpec) -> DType:
        return dtype if spec.kind in (Kind.MATRIX, Kind.EXPERTS) else dtypes.F32

    leaves, tokens = random_leaves(cfg, dtype=stored), text(cfg, 60)
    exact = oracle(cfg, leaves, tokens)
    plain = error(logits_of(plain_of(backend_name, cfg, leaves, activations="float32"), whole(tokens)), exact)
    assert 0 < error(logits_of(make_backend(backend_name, cfg, leaves, activations="float32"), whole(tokens)), exact) <= 2 * plain


def test_a_local_layer_sees_nothing_of_earlier_chunks() -> None:
    """With local layers only, other tokens in the first chunk leave the second as it was, and the first token of a chunk sees
    itself alone."""
    cfg = tiny_llama4(rotary_layers=(0, 1, 2, 3), chunked_layers=(0, 1, 2, 3), chunk=24, temper_scale=0.0)
    leaves, tokens = random_leaves(cfg), text(cfg, 60)
    other = [*text(cfg, 24, seed=1), *tokens[24:]]
    one, two = oracle(cfg, leaves, tokens), oracle(cfg, leaves, other)
    assert abs(one[:24] - two[:24]).max() > 0.1 and abs(one[24:] - two[24:]).max() < 1e-11
    alone = oracle(replace(cfg, rope=Rope(500000.0, 32)), leaves, [tokens[24]])
    assert abs(one[24] - alone[0]).max() < 1e-10


def test_named_values_are_those_of_the_mathematics() -> None:
    """Normed queries have mean square one, the softmax is zero outside its chunk, and the router's choice is what the experts did."""
    cfg, tokens = SCOUT, text(SCOUT, 60)
    backend = make_backend("reference", cfg, random_leaves(cfg))
    reads = {"layers.0.attention.q", "layers.1.attention.k", "layers.0.attention.weights", "layers.3.attention.weights", "layers.2.router"}
    found = backend.step(Plan((whole(tokens),), watch=Watch(frozenset(reads)))).values
    for name in ("layers.0.attention.q", "layers.1.attention.k"):
        assert abs(np.mean(found[name] ** 2, axis=-1) - 1).max() < 1e-3
    (local,), (everything,) = found["layers.0.attention.weights"], found["layers.3.attention.weights"]
    position = np.arange(60)
    is_seen = (position[:, None] >= position) & (position[:, None] // 24 == position // 24)
    assert (local[:, ~is_seen] == 0).all() and (local[:, is_seen] > 0).all() and everything[:, 59, 0].min() > 0
    assert found["layers.2.router"].shape == (60, cfg.num_experts)
    assert set(reads) <= set(backend.value_names()) and "layers.2.shared.out" in backend.value_names()


def test_silencing_the_experts_leaves_the_shared_one() -> None:
    cfg, tokens = SCOUT, text(SCOUT, 40)
    leaves = random_leaves(cfg)
    patch = {f"layers.{layer}.experts.out": np.zeros_like for layer in cfg.expert_layers}
    backend = make_backend("reference", cfg, leaves, activations="float32")
    silenced = backend.step(Plan((whole(tokens),), want_logits=True, watch=Watch(patch=patch))).logits_RV
    dense = replace(cfg, expert_layers=(), ffn_width=cfg.expert_width)
    alone = {name.replace(".shared.", ".ffn."): leaf for name, leaf in leaves.items() if ".experts." not in name}
    assert error(silenced, oracle(dense, alone, tokens)) < 1e-5


def test_only_chunked_layers_have_a_reach() -> None:
    assert [shape.reach for shape in llama4.caches(tiny_llama4())] == [24, 24, 24, None]
    assert [shape.reach for shape in llama4.caches(LLAMA4["llama guard 4"])] == [None] * 4
    assert every(2, 7) == (1, 3, 5) and every(1, 3) == (0, 1, 2) and every(4, 3) == ()


# Pictures


@pytest.mark.parametrize("grid", [(1, 1), (1, 2)], ids=str)
@pytest.mark.parametrize(
    "changes", [{}, {"merge": 1, "ffn_width": 256}, {"num_heads": 8, "rope_theta": 50.0}, {"tile": 32, "patch": 8}], ids=str
)
def test_picture_features_equal_transformers(changes: dict[str, Any], grid: tuple[int, int]) -> None:
    cfg = tiny_llama4(vision=tiny_llama4_vision(**changes))
    leaves, picture = random_leaves(cfg), cut(tiny_llama4_vision(**changes), *grid, seed=1)
    backend = ReferenceBackend(cfg, leaves.__getitem__, BackendOptions(dtype="float64", activations="float32"))
    (ours,) = backend.encode(picture)
    theirs = transformers_model(cfg, leaves, "float64")
    with torch.inference_mode(), in_float64():
        seen = theirs.vision_model(torch.from_numpy(picture.pixels).double()).last_hidden_state
        expected = theirs.multi_modal_projector(seen.reshape(-1, seen.shape[-1])).numpy()
    assert ours.shape == expected.shape == (len(picture.pixels) * cfg.vision.tile_rows, cfg.width)
    assert ours.std() > 0.1 and abs(ours - expected).max() < 1e-10


@pytest.mark.parametrize("cfg", [SEEING, replace(MAVERICK, vision=tiny_llama4_vision())], ids=["scout", "maverick"])
def test_answers_about_several_pictures_equal_transformers(cfg: Llama4Config) -> None:
    """One picture of a single tile, one of four and the small whole one; a prompt over several chunks."""
    leaves = random_leaves(cfg)
    pictures = [cut(cfg.vision, 1, 1, 1), cut(cfg.vision, 2, 2, 2), cut(cfg.vision, 1, 2, 3)]
    tokens = with_pictures(cfg, pictures, text(cfg, 100))
    theirs = transformers_logits(transformers_model(cfg, leaves, "float64"), tokens, pictures)
    ours = picture_logits(cfg, leaves, tokens, pictures)
    assert abs(ours - theirs).max() < 1e-10
    blind = oracle(cfg, leaves, tokens)
    assert abs(blind - ours).max() > 0.1, "pictures count"
    assert abs(picture_logits(cfg, leaves, tokens, [*pictures[:2], cut(cfg.vision, 1, 2, 9)]) - ours).max() > 0.1
    assert abs(picture_logits(cfg, leaves, tokens, pictures, chunk=13) - ours).max() < 1e-10
    exact = error(transformers_logits(transformers_model(cfg, leaves), tokens, pictures), ours)
    assert 0 < error(picture_logits(cfg, leaves, tokens, pictures, "float32"), ours) <= 2 * exact


def test_pictures_given_to_a_loaded_model_are_seen_as_by_transformers(tmp_path: Path, backend_name: str) -> None:
    """From a folder and a picture to logits: several tiles and the small whole picture."""
    from PIL import Image

    import herd

    cfg = SEEING
    leaves = random_leaves(cfg)
    transformers_model(cfg, leaves).save_pretrained(tmp_path / "model")
    image = Image.fromarray(np.random.default_rng(3).integers(0, 256, (90, 120, 3), dtype=np.uint8))
    prepared = prepare("llama4", image, tile=cfg.vision.tile)
    assert (prepared.rows, prepared.columns, len(prepared.pixels)) == (2, 2, 5)
    tokens = with_pictures(cfg, [prepared], text(cfg, 40))
    exact = transformers_logits(transformers_model(cfg, leaves, "float64"), tokens, [prepared])
    theirs = error(transformers_logits(transformers_model(cfg, leaves), tokens, [prepared]), exact)
    with herd.load(str(tmp_path / "model"), backend=backend_name) as model:
        ours = model.logits(tokens, images=[image])
    assert abs(exact - oracle(cfg, leaves, tokens)).max() > 0.1
    assert error(ours, exact) <= 2 * theirs


def test_without_pictures_their_token_is_one_like_others() -> None:
    leaves, tokens = random_leaves(SEEING), [5, SEEING.vision.picture_token, 7, 8]
    theirs = transformers_logits(transformers_model(SEEING, leaves, "float64"), tokens)
    assert abs(oracle(SEEING, leaves, tokens) - theirs).max() < 1e-11


def test_a_text_model_has_no_eyes() -> None:
    assert seeing(without_pictures(SEEING)) is None and seeing(SEEING) is not None
    assert llama4.preparation(SEEING) == ("llama4", {"tile": 64}) and llama4.num_crossing(SEEING) == 0


@pytest.mark.parametrize(
    ("count", "shapes", "message"),
    [
        (7, [PictureShape(2, 64, 64, 1, 1)], r"There are 7 picture tokens \(id 319\) among the ids; 1 pictures need 8: 4 for each tile"),
        (0, [PictureShape(1, 64, 64, 1, 1), PictureShape(3, 64, 64, 1, 2)], r"There are 0 picture tokens .*; 2 pictures need 4 \+ 12"),
        (4, [PictureShape(1, 60, 64, 1, 1)], r"Picture 0 was cut into tiles of 64 x 60 pixels; this model's are 64 x 64"),
    ],
)
def test_ids_and_pictures_that_do_not_fit_are_refused(count: int, shapes: list[PictureShape], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        llama4.picture_positions(SEEING, [1, *[319] * count, 2], shapes)


def test_turns_of_the_released_encoder_are_the_published_ones() -> None:
    """22 frequencies, columns first, both counted from one; the class row does not turn."""
    vision = tiny_llama4_vision(width=1408, num_heads=16, tile=336, patch=14)
    rows = llama4_vision.angles(vision)
    assert len(rows) == 577 and len(rows[0]) == 44 and rows[-1] == [0.0] * 44
    published = {0: 1.0, 1: 0.6579332247, 10: 1.519911083e-2, 21: 1.519911083e-4}
    for index, omega in published.items():
        assert rows[0][index] == rows[0][22 + index] == pytest.approx(omega, rel=1e-9)
        assert rows[25][index] == pytest.approx(2 * omega, rel=1e-9) and rows[25][22 + index] == pytest.approx(2 * omega, rel=1e-9)
        assert rows[1][index] == pytest.approx(2 * omega, rel=1e-9) and rows[1][22 + index] == pytest.approx(omega, rel=1e-9)
    assert vision.tile_rows == 144


def test_hugging_face_shapes_are_those_of_the_facts() -> None:
    found = {name: values.shape for name, values in hugging_face_values(SEEING, random_leaves(SEEING)).items()}
    assert found["language_model.model.layers.1.feed_forward.experts.gate_up_proj"] == (4, 256, 512)
    assert found["language_model.model.layers.1.feed_forward.experts.down_proj"] == (4, 256, 256)
    assert found["vision_model.class_embedding"] == (256,)
