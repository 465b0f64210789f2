"""The published preprocessing of Llama 4 and Muse-Glimmer, run from `transformers`' own source.

Their processors need torchvision, which has no part in this project. Of it they use three functions on 8-bit tensors, and each is one
line of torch: resizing is `interpolate(antialias=True)` on the bytes, padding is `pad`, normalising is a subtraction and a division.
Here the processors' own functions are taken out of their files and run with those three in torchvision's place.
"""

from __future__ import annotations

import ast
import importlib.util
import itertools
import math
from collections import defaultdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from PIL import Image
from transformers.image_processing_utils import BatchFeature
from transformers.image_transforms import convert_to_rgb, group_images_by_shape, reorder_images, split_to_tiles
from transformers.image_utils import SizeDict
from transformers.video_utils import group_videos_by_shape, reorder_videos

MODES = {2: "bilinear", 1: "lanczos"}


def functions(file: str, class_name: str) -> dict[str, Any]:
    """The functions of a file of `transformers.models` and the methods of one of its classes, ready to be called."""
    spec = importlib.util.find_spec("transformers")
    assert spec is not None and spec.origin is not None
    tree = ast.parse((Path(spec.origin).parent / "models" / file).read_text(encoding="utf-8"))
    (found,) = [node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == class_name]
    chosen = [node for node in (*tree.body, *found.body) if isinstance(node, ast.FunctionDef) and node.name != "resize"]
    for node in chosen:
        node.decorator_list = []
        node.returns = None
        for argument in (*node.args.args, *node.args.kwonlyargs, *([node.args.kwarg] if node.args.kwarg else [])):
            argument.annotation = None
    names: dict[str, Any] = {
        "torch": torch,
        "math": math,
        "itertools": itertools,
        "defaultdict": defaultdict,
        "tvF": SimpleNamespace(pad=_pad),
        "SizeDict": SizeDict,
        "BatchFeature": BatchFeature,
        "group_images_by_shape": group_images_by_shape,
        "reorder_images": reorder_images,
        "group_videos_by_shape": group_videos_by_shape,
        "reorder_videos": reorder_videos,
        "split_to_tiles": split_to_tiles,
    }
    exec(compile(ast.Module(body=[*chosen], type_ignores=[]), file, "exec"), names)
    return names


def tensor(image: Image.Image) -> torch.Tensor:
    return torch.from_numpy(convert_to_rgb(image, return_numpy=True)).permute(2, 0, 1).contiguous()


def interpolated(images: torch.Tensor, height: int, width: int, mode: str) -> torch.Tensor:
    """Bytes [..., 3, h, w] resized as torchvision does it on a CPU."""
    if images.shape[-2:] == (height, width):
        return images
    options = {"align_corners": False} if mode == "bilinear" else {}
    flat = images.reshape(-1, *images.shape[-3:])
    return torch.nn.functional.interpolate(flat, (height, width), mode=mode, antialias=True, **options).reshape(
        *images.shape[:-2], height, width
    )


def _pad(images: torch.Tensor, padding: list[int], fill: list[int]) -> torch.Tensor:
    left, top, right, bottom = (int(side) for side in padding)
    assert not any(fill)
    return torch.nn.functional.pad(images, (left, right, top, bottom))


def _normalised(images: torch.Tensor, mean: list[float], std: list[float]) -> torch.Tensor:
    by_channel = [torch.as_tensor(value, dtype=images.dtype).view(-1, 1, 1) for value in (mean, std)]
    return images.sub(by_channel[0]).div(by_channel[1])


def llama4(image: Image.Image, tile: int = 336, max_tiles: int = 16) -> tuple[np.ndarray, tuple[int, int]]:
    """[tiles, 3, tile, tile] and the grid, as `Llama4ImageProcessor` gives them."""
    names = functions("llama4/image_processing_llama4.py", "Llama4ImageProcessor")
    processor = SimpleNamespace(
        resize=lambda images, size, resample: interpolated(images, int(size.height), int(size.width), MODES[resample]),
        normalize=_normalised,
    )
    processor.rescale_and_normalize = lambda *given: names["rescale_and_normalize"](processor, *given)
    done = names["_preprocess"](
        processor,
        [tensor(image)],
        True,
        SizeDict(height=tile, width=tile),
        2,
        True,
        1 / 255,
        True,
        [0.5] * 3,
        [0.5] * 3,
        max_tiles,
        False,
        False,
        "pt",
    )
    rows, columns = done["aspect_ratios"].reshape(2).tolist()
    return done["pixel_values"].float().numpy(), (rows, columns)


def muse_glimmer(images: list[Image.Image], max_tokens: int, is_video: bool) -> tuple[np.ndarray, list[int]]:
    """[patches, values] and the grid of patches (time, rows, columns), as the processors of Muse-Glimmer give them."""
    file, kind = ("video_processing", "MuseGlimmerVideoProcessor") if is_video else ("image_processing", "MuseGlimmerImageProcessor")
    names = functions(f"muse_glimmer/{file}_muse_glimmer.py", kind)

    def resize(images: torch.Tensor, patch_size: int, merge_size: int, max_tokens: int, resample: int) -> torch.Tensor:
        height, width = names["smart_resize"](*images.shape[-2:], patch_size * merge_size, max_tokens)
        return interpolated(images, height, width, MODES[resample])

    def rescale_and_normalize(images: torch.Tensor, do_rescale: bool, factor: float, *given: Any) -> torch.Tensor:
        mean, std = (torch.tensor(value) * (1.0 / factor) for value in given[1:])
        return _normalised(images.to(torch.float32), mean, std)

    processor = SimpleNamespace(
        resize=resize,
        rescale_and_normalize=rescale_and_normalize,
        patchify=lambda *given, **named: names["patchify"](None, *given, **named),
    )
    given = [torch.stack([tensor(image) for image in images])] if is_video else [tensor(image) for image in images]
    names_of_limit = {"max_video_frame_tokens" if is_video else "max_image_tokens": max_tokens}
    done = names["_preprocess"](
        processor,
        given,
        do_resize=True,
        resample=1,
        do_rescale=True,
        rescale_factor=1 / 255,
        do_normalize=True,
        image_mean=[0.5] * 3,
        image_std=[0.5] * 3,
        return_tensors="pt",
        patch_size=14,
        temporal_patch_size=2,
        merge_size=2,
        **names_of_limit,
    )
    pixels, grid = ("pixel_values_videos", "video_grid_thw") if is_video else ("pixel_values", "image_grid_thw")
    return done[pixels].reshape(-1, done[pixels].shape[-1]).numpy(), done[grid].reshape(3).tolist()
