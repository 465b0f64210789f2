"""Llama 3.2 Vision in `transformers`, saved by it as a folder, read from there: the same logits, once its two differences are mended."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("torch", reason="torch is not installed (pip install herd-llama[dev])")

import torch

import herd
from conformance.llama3_vision_texts import CFG, SEES, TEXTS, difference, placed, span_of, text
from conformance.mllama_in_transformers import mask, model_in, transformers_logits
from conformance.running import NUM_PAGES, cpu_is_built
from herd.backends.base import BackendOptions, Plan, Span
from herd.backends.reference import ReferenceBackend
from herd.checkpoints import open_checkpoint
from herd.errors import UsageError
from herd.images.pixels import prepare
from herd.models.architecture import seeing
from tiny import random_leaves


@pytest.fixture(scope="module")
def theirs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Path]:
    """The model in float64 and its folder."""
    folder = tmp_path_factory.mktemp("mllama")
    return model_in(folder), folder


@pytest.fixture(scope="module")
def ours(theirs: tuple[Any, Path]) -> ReferenceBackend:
    """The folder, opened."""
    checkpoint = open_checkpoint(theirs[1])
    assert checkpoint.architecture == "llama3_vision"
    backend = ReferenceBackend(checkpoint.config, checkpoint.leaf, BackendOptions(dtype="float64"))
    backend.allocate(NUM_PAGES)
    return backend


@pytest.mark.parametrize("name", [name for name in TEXTS if name != "the other number of the picture token"])
def test_logits_equal_those_of_transformers_without_its_two_differences(
    theirs: tuple[Any, Path], ours: ReferenceBackend, name: str
) -> None:
    tokens, pictures = TEXTS[name]
    exact = transformers_logits(theirs[0], tokens, placed(tokens, pictures))
    assert difference(ours.logits(Plan((span_of(name),))), exact) < 1e-10


def test_images_of_any_size_equal_those_that_transformers_prepares(theirs: tuple[Any, Path], ours: ReferenceBackend) -> None:
    """From PIL images to logits, each side with its own preparation."""
    from transformers.models.mllama.image_processing_pil_mllama import MllamaImageProcessorPil

    side = CFG.vision.tile
    random = np.random.default_rng(5)
    sizes = [(side, side), (3 * side, side + 3), (20, 70), (2 * side + 1, 2 * side + 9)]
    images = [Image.fromarray(random.integers(0, 256, (height, width, 3), np.uint8)) for width, height in sizes]
    tokens = [*text(3), SEES, *text(4), SEES, SEES, *text(5), SEES, *text(6)]
    clip = {"image_mean": [0.48145466, 0.4578275, 0.40821073], "image_std": [0.26862954, 0.26130258, 0.27577711]}
    processor = MllamaImageProcessorPil(size={"height": side, "width": side}, max_image_tiles=CFG.vision.max_tiles, **clip)
    prepared = processor(images, return_tensors="pt")
    counts = [int(each) for each in prepared["num_tiles"][0]]
    given = {name: prepared[name] for name in ("aspect_ratio_ids", "aspect_ratio_mask")}
    with torch.inference_mode():
        exact = theirs[0](
            torch.tensor([tokens]), pixel_values=prepared["pixel_values"].double(), cross_attention_mask=mask(tokens, counts), **given
        ).logits[0]
    model = seeing(CFG)
    assert model is not None
    kind, numbers = model.preparation(CFG)
    pictures = [prepare(kind, image, **numbers) for image in images]
    assert [(each.rows, each.columns) for each in pictures] == [(1, 1), (1, 3), (3, 1), (2, 2)]
    found = ours.logits(Plan((Span(0, tokens, [0], len(tokens), pictures=placed(tokens, pictures)),)))
    assert difference(found, exact.numpy()) < 1e-10


@pytest.mark.parametrize("name", ["reference", "cpu", "torch"])
def test_a_loaded_model_is_shown_pictures_on_every_backend(theirs: tuple[Any, Path], ours: ReferenceBackend, name: str) -> None:
    if name == "cpu" and not cpu_is_built():
        pytest.skip("the native core is not built here")
    image = Image.fromarray(np.random.default_rng(6).integers(0, 256, (50, 70, 3), np.uint8))
    tokens = [*text(3), SEES, *text(4)]
    model = seeing(CFG)
    assert model is not None
    kind, numbers = model.preparation(CFG)
    exact = ours.logits(Plan((Span(0, tokens, [0], len(tokens), pictures=placed(tokens, [prepare(kind, image, **numbers)])),)))
    with herd.load(theirs[1], backend=name) as loaded:
        assert difference(loaded.logits(tokens, images=[image]), exact) < 1e-3
        with pytest.raises(UsageError, match=r"1 tokens that stand for a picture .* and 0 pictures came with it"):
            loaded.logits(tokens)
        with pytest.raises(UsageError, match="images is Image; expected a list of pictures"):
            loaded.logits(tokens, images=image)


def test_the_config_that_transformers_saved_is_ours(theirs: tuple[Any, Path]) -> None:
    assert open_checkpoint(theirs[1]).config == replace(CFG, picture_aliases=())


def test_every_weight_arrives(theirs: tuple[Any, Path]) -> None:
    checkpoint = open_checkpoint(theirs[1])
    expected = random_leaves(CFG)
    assert {spec.name: spec.shape for spec in checkpoint.specs} == {name: leaf.shape for name, leaf in expected.items()}
    for spec in checkpoint.specs:
        assert checkpoint.leaf(spec.name).shape == spec.shape
