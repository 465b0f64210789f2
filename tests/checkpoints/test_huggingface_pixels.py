"""Folders whose preprocessor_config.json asks for other pixels than the model's pictures get are refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from conformance.seeing_models import MUSE
from herd.checkpoints.huggingface_pixels import _CLIP, FILES, check_pixels
from herd.errors import FileProblem
from herd.images import geometry, pixels
from herd.models.architecture import seeing
from tiny import tiny_llama, tiny_llama3_vision, tiny_llama4, tiny_llama4_vision

CONFIGS: dict[str, Any] = {"llama4": tiny_llama4(vision=tiny_llama4_vision()), "mllama": tiny_llama3_vision(), "muse_glimmer": MUSE}


def published(name: str) -> dict[str, Any]:
    """The settings that the release's own file has, with the tile of the small model."""
    cfg = CONFIGS[name]
    model = seeing(cfg)
    assert model is not None
    numbers = model.preparation(cfg)[1]
    steps = {"do_resize": True, "do_rescale": True, "do_normalize": True, "rescale_factor": 0.00392156862745098, "do_convert_rgb": None}
    square = {"height": numbers.get("tile"), "width": numbers.get("tile")}
    return (
        steps
        | {
            "llama4": {"image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5], "size": square, "max_patches": 16, "resample": 2},
            "mllama": {"image_mean": [0.48145466, 0.4578275, 0.40821073], "size": square, "do_pad": True, "max_image_tiles": 4},
            "muse_glimmer": {
                "image_mean": [0.5, 0.5, 0.5],
                "patch_size": numbers.get("patch"),
                "merge_size": 2,
                "resample": 1,
                "max_image_tokens": 4096,
            },
        }[name]
    )


def write(folder: Path, name: str, values: dict[str, Any]) -> None:
    nested = values if name == FILES[0] else {"image_processor": values, "processor_class": "Any"}
    (folder / name).write_text(json.dumps(nested))


@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize("name", CONFIGS)
def test_the_published_settings_are_what_is_done(tmp_path: Path, name: str, file: str) -> None:
    check_pixels(tmp_path, CONFIGS[name])
    write(tmp_path, file, published(name))
    check_pixels(tmp_path, CONFIGS[name])


@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize(
    ("name", "change", "complaint"),
    [
        ("llama4", {"image_mean": [0.1, 0.5, 0.5]}, r"image_mean is \[0.1, 0.5, 0.5\] and not \[0.5, 0.5, 0.5\]"),
        ("llama4", {"max_patches": 4}, "max_patches is 4 and not 16"),
        ("llama4", {"do_normalize": False}, "do_normalize is false and not true"),
        ("llama4", {"rescale_factor": 1}, "rescale_factor is 1 and not"),
        ("llama4", {"size": {"height": 1, "width": 1}, "resample": 3}, "size is .*; resample is 3 and not 2"),
        ("mllama", {"image_mean": [0.5, 0.5, 0.5]}, "and not .0.48145466"),
        ("mllama", {"max_image_tiles": 1}, "max_image_tiles is 1 and not 4"),
        ("muse_glimmer", {"patch_size": "14"}, "patch_size is '14' and not"),
    ],
)
def test_other_pixels_are_refused_by_name(tmp_path: Path, name: str, change: dict[str, Any], complaint: str, file: str) -> None:
    write(tmp_path, file, published(name) | change)
    with pytest.raises(FileProblem, match=rf"{file}: .*{complaint}"):
        check_pixels(tmp_path, CONFIGS[name])


def test_a_model_that_reads_text_only_has_no_pixels(tmp_path: Path) -> None:
    write(tmp_path, FILES[0], {"image_mean": "none"})
    check_pixels(tmp_path, tiny_llama())


def test_the_numbers_are_those_of_the_preparation() -> None:
    assert (tuple(_CLIP["image_mean"]), tuple(_CLIP["image_std"])) == (pixels._CLIP_MEAN, pixels._CLIP_STD)
    assert geometry.LLAMA4_MAX_TILES == 16
