"""Llama 3.2 Vision in `transformers`, saved by it as a folder, read from there: the same logits, once its two differences are mended.

Meta's code is the definition (test_llama3_vision.py). transformers 5.23 takes the encoder's kept values one layer later (outputs instead
of inputs), and multiplies only the feed-forward of rows without a picture by zero, not their attention.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

pytest.importorskip("torch", reason="torch is not installed (pip install herd-llama[dev])")

import torch

import herd
from conformance.llama3_vision_texts import CFG, SEES, TEXTS, difference, placed, span_of, text
from conformance.running import NUM_PAGES, cpu_is_built
from herd.backends.base import BackendOptions, Placed, Plan, Span
from herd.backends.reference import ReferenceBackend
from herd.checkpoints import open_checkpoint
from herd.checkpoints.mllama_places import shapes_of_pictures
from herd.errors import UsageError
from herd.images.pixels import prepare
from herd.models.architecture import seeing
from tiny import random_leaves


@pytest.fixture(scope="module")
def theirs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Path]:
    """The model in float64 and its folder. Random everywhere, gates and norms too; the tables of places written out from a grid."""
    from transformers import MllamaForConditionalGeneration

    torch.set_num_threads(1)
    model = MllamaForConditionalGeneration(_config()).eval()
    _randomise(model)
    folder = tmp_path_factory.mktemp("mllama")
    model.save_pretrained(folder)
    return _mended(model.double()), folder


def _config() -> Any:
    from transformers import MllamaConfig
    from transformers.models.mllama.configuration_mllama import MllamaTextConfig, MllamaVisionConfig

    vision, scaling = CFG.vision, CFG.rope.scaling
    text_config = MllamaTextConfig(
        vocab_size=CFG.vocab_size,
        hidden_size=CFG.width,
        num_hidden_layers=CFG.num_layers + len(CFG.crossing),
        cross_attention_layers=[layer + number for number, layer in enumerate(CFG.crossing)],
        num_attention_heads=CFG.num_heads,
        num_key_value_heads=CFG.num_kv_heads,
        intermediate_size=CFG.ffn_width,
        max_position_embeddings=CFG.context_length,
        rms_norm_eps=CFG.norm_eps,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
        rope_parameters={
            "rope_type": "llama3",
            "rope_theta": CFG.rope.theta,
            "factor": scaling.factor,
            "low_freq_factor": scaling.low_freq_factor,
            "high_freq_factor": scaling.high_freq_factor,
            "original_max_position_embeddings": scaling.original_context,
        },
    )
    vision_config = MllamaVisionConfig(
        hidden_size=vision.width,
        num_hidden_layers=vision.num_layers,
        num_global_layers=vision.num_global_layers,
        attention_heads=vision.num_heads,
        intermediate_size=vision.ffn_width,
        vision_output_dim=vision.num_features,
        image_size=vision.tile,
        patch_size=vision.patch,
        intermediate_layers_indices=list(vision.kept),
    )
    config = MllamaConfig(vision_config=vision_config, text_config=text_config, image_token_index=CFG.picture_id)
    config._attn_implementation = "sdpa"
    return config


def _randomise(model: Any) -> None:
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            values = torch.randn(parameter.shape, generator=generator)
            if parameter.ndim == 1 and "norm" in name and name.endswith("weight"):
                parameter.copy_(1 + values / 10)
            elif parameter.ndim == 1 or "embed" in name:
                parameter.copy_(values / 4)
            else:
                parameter.copy_(values * 2 / parameter[0].numel() ** 0.5)
        eye, most = model.model.vision_model, CFG.vision.max_tiles
        for table in (
            eye.gated_positional_embedding.tile_embedding,
            eye.pre_tile_positional_embedding.embedding,
            eye.post_tile_positional_embedding.embedding,
        ):
            grid = torch.randn((most, most, table.weight.shape[1] // most), generator=generator) / 4
            table.weight.zero_()
            for number, (rows, columns) in enumerate(shapes_of_pictures(most)):
                corner = grid[:rows, :columns].reshape(-1)
                table.weight[number + 1, : len(corner)] = corner


def _mended(model: Any) -> Any:
    """Without the two differences, and in float64 throughout."""
    eye, text = model.model.vision_model, model.model.language_model
    eye.intermediate_layers_indices = [layer - 1 for layer in CFG.vision.kept]

    def remember(layer: Any, given: Any, named: dict[str, Any]) -> None:
        layer.cross_attn.rows_that_see = named["full_text_row_masked_out_mask"]

    def only_those(attention: Any, given: Any, out: tuple[Any, Any]) -> tuple[Any, Any]:
        return out[0] * attention.rows_that_see[:, 0], out[1]

    for index in text.cross_attention_layers:
        text.layers[index].register_forward_pre_hook(remember, with_kwargs=True)
        text.layers[index].cross_attn.register_forward_hook(only_those)

    class Angles(torch.nn.Module):
        def forward(self, x: Any, position_ids: Any) -> tuple[Any, Any]:
            angles = position_ids[..., None].double() * torch.tensor(CFG.rope.frequencies(), dtype=torch.float64)
            angles = torch.cat([angles, angles], dim=-1)
            return angles.cos() * CFG.rope.magnitude, angles.sin() * CFG.rope.magnitude

    text.rotary_emb = Angles()
    for module in model.modules():
        if type(module).__name__ == "MllamaTextRMSNorm":
            module.forward = _float64_norm.__get__(module)
    return model


def _float64_norm(self: Any, x: Any) -> Any:
    return self.weight * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.variance_epsilon))


def transformers_logits(model: Any, tokens: Sequence[int], pictures: Sequence[Placed]) -> NDArray[np.float64]:
    """Logits [T, V] of a whole prompt with prepared pictures."""
    given: dict[str, Any] = {}
    if pictures:
        most, side = CFG.vision.max_tiles, CFG.vision.tile
        pixels = torch.zeros((1, len(pictures), most, 3, side, side), dtype=torch.float64)
        used = torch.zeros((1, len(pictures), most), dtype=torch.int64)
        for index, each in enumerate(pictures):
            pixels[0, index, : len(each.picture.pixels)] = torch.from_numpy(each.picture.pixels).double()
            used[0, index, : len(each.picture.pixels)] = 1
        shapes = shapes_of_pictures(most)
        numbers = [1 + shapes.index((each.picture.rows, each.picture.columns)) for each in pictures]
        given = {"pixel_values": pixels, "aspect_ratio_ids": torch.tensor([numbers]), "aspect_ratio_mask": used}
        given["cross_attention_mask"] = _mask(tokens, [len(each.picture.pixels) for each in pictures])
    with torch.inference_mode():
        return model(torch.tensor([tokens]), **given).logits[0].numpy()


def _mask(tokens: Sequence[int], num_tiles: list[int]) -> Any:
    """Which token sees which tiles, made by transformers' own functions."""
    from transformers.models.mllama.processing_mllama import convert_sparse_cross_attention_mask_to_dense, get_cross_attention_token_mask

    spans = get_cross_attention_token_mask(list(tokens), CFG.picture_id)
    return torch.from_numpy(convert_sparse_cross_attention_mask_to_dense([spans], [num_tiles], CFG.vision.max_tiles, len(tokens)))


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
            torch.tensor([tokens]), pixel_values=prepared["pixel_values"].double(), cross_attention_mask=_mask(tokens, counts), **given
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
