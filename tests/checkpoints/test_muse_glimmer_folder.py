"""Muse-Glimmer folders as `transformers` saves them, and what is wrong with others."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch", reason="torch is not installed (pip install herd-llama[dev])")

import torch

import herd
from herd.errors import FileProblem, UsageError

TEXT = {
    "vocab_size": 300,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 5,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 256,
    "sliding_window": 20,
    "rope_parameters": {"rope_type": "default", "rope_theta": 500.0},
    "bos_token_id": 0,
    "eos_token_id": 1,
}
VISION = {
    "patch_size": 14,
    "pos_emb_height": 4,
    "pos_emb_width": 4,
    "num_attention_heads": 2,
    "num_hidden_layers": 5,
    "hidden_size": 32,
    "intermediate_size": 48,
}


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    """A folder with random weights, and the model that wrote it."""
    from transformers import MuseGlimmerConfig, MuseGlimmerForConditionalGeneration

    torch.set_num_threads(1)
    torch.manual_seed(0)
    sizes = {"image_token_id": 290, "video_token_id": 291, "out_hidden_size": 128, "projector_hidden_size": 40}
    model = MuseGlimmerForConditionalGeneration(MuseGlimmerConfig(text_config=TEXT, vision_config=VISION, **sizes)).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3 if parameter.ndim == 1 else 1.5 / parameter.shape[-1] ** 0.5)
    folder = tmp_path_factory.mktemp("muse")
    model.save_pretrained(folder)
    return folder, model


def test_a_saved_folder_gives_the_same_logits_with_and_without_a_picture(saved: tuple[Path, Any]) -> None:
    from PIL import Image

    from herd.images.pixels import muse_glimmer_patches, muse_glimmer_picture

    folder, theirs = saved
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (90, 150, 3), np.uint8))
    picture = muse_glimmer_picture(image)
    cells = picture.rows * picture.columns
    tokens = [5, 6, *[290] * cells, 7, 8]
    with herd.load(folder, backend="reference") as model:
        ours, blind = model.logits(tokens, images=[image]), model.logits([5, 6, 7, 8])
    with torch.inference_mode():
        grid = torch.tensor([[1, picture.rows * 2, picture.columns * 2]])
        patches = torch.from_numpy(muse_glimmer_patches(picture.pixels))
        expected = theirs(torch.tensor([tokens]), pixel_values=patches, image_grid_thw=grid).logits[0].numpy()
        assert np.allclose(blind, theirs(torch.tensor([[5, 6, 7, 8]])).logits[0].numpy(), atol=2e-5)
    assert np.allclose(ours, expected, atol=5e-5)


def test_a_video_is_a_list_of_its_frames(saved: tuple[Path, Any]) -> None:
    from PIL import Image

    from herd.images.pixels import muse_glimmer_frames, muse_glimmer_patches

    folder, theirs = saved
    frames = [Image.fromarray(np.random.default_rng(at).integers(0, 256, (60, 80, 3), np.uint8)) for at in range(4)]
    video = muse_glimmer_frames(frames)
    cells = 2 * video.rows * video.columns
    tokens = [5, 6, *[291] * cells, 7, 8]
    with herd.load(folder, backend="reference") as model:
        ours = model.logits(tokens, images=[frames])
        with pytest.raises(UsageError, match="video 1 is 2 x 3 cells and needs 12 tokens 291"):
            model.logits(tokens[:-3], images=[frames])
    with torch.inference_mode():
        grid = torch.tensor([[2, video.rows * 2, video.columns * 2]])
        patches = torch.from_numpy(muse_glimmer_patches(video.pixels))
        expected = theirs(torch.tensor([tokens]), pixel_values_videos=patches, video_grid_thw=grid).logits[0].numpy()
    assert np.allclose(ours, expected, atol=5e-5)


@pytest.mark.parametrize(
    ("part", "change", "message"),
    [
        ("", {"projector_hidden_act": "relu"}, r"projector_hidden_act is .relu.; allowed is .gelu."),
        ("", {"out_hidden_size": 96}, "out_hidden_size is 96; allowed is 128"),
        ("", {"surprise": 1}, "surprise is not a key that is known here"),
        ("text_config", {"layer_types": ["full_attention"]}, "text_config.layer_types is .*for 5 layers"),
        ("text_config", {"layer_rope_theta": [0, 500.0, 400.0, 500.0, 0]}, "layer_rope_theta is .*must be 0 or rope_theta, 500"),
        ("text_config", {"rope_parameters": {"rope_type": "yarn", "rope_theta": 500.0}}, "rope_type is 'yarn'; allowed is 'default'"),
        ("text_config", {"num_key_value_heads": 3}, "4 query heads cannot be shared out evenly over 3 kv heads"),
        ("text_config", {"mystery": 1}, "text_config.mystery is not a key"),
        ("vision_config", {"pos_emb_width": 5}, "pos_emb_height is 4 and pos_emb_width 5; the table of positions must be square"),
        ("vision_config", {"num_attention_heads": 3}, "a head must be a multiple of 4 wide"),
        ("vision_config", {"mystery": 1}, "vision_config.mystery is not a key"),
    ],
)
def test_a_config_that_is_not_understood_whole_is_refused(
    saved: tuple[Path, Any], tmp_path: Path, part: str, change: dict[str, Any], message: str
) -> None:
    folder, _ = saved
    values = json.loads((folder / "config.json").read_text())
    (values[part] if part else values).update(change)
    (tmp_path / "config.json").write_text(json.dumps(values))
    (tmp_path / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes())
    with pytest.raises(FileProblem, match=message):
        herd.load(tmp_path, backend="reference")
