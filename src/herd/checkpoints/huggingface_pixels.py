"""preprocessor_config.json: how pictures become numbers for the model of a folder.

herd prepares pictures as each release was published with (`herd.images`). A folder that asks for other pixels is refused, since
its answers about pictures would be another model's.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import isclose
from pathlib import Path
from typing import Any

from herd.checkpoints.config_reader import shown
from herd.checkpoints.folder import optional_json
from herd.errors import FileProblem
from herd.models.architecture import Config, seeing

FILES = ("preprocessor_config.json", "processor_config.json")
"""The second one, of transformers 5, has the same settings in its object `image_processor`."""
_STEPS: dict[str, Any] = {"do_resize": True, "do_rescale": True, "do_normalize": True, "do_convert_rgb": True, "rescale_factor": 1 / 255}
_HALVES: dict[str, Any] = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3}
_CLIP: dict[str, Any] = {
    "image_mean": [0.48145466, 0.4578275, 0.40821073],
    "image_std": [0.26862954, 0.26130258, 0.27577711],
}
_BILINEAR, _LANCZOS = 2, 1
"""Numbers of Pillow's resampling filters."""


def check_pixels(folder: Path, cfg: Config) -> None:
    """`FileProblem` if the folder asks for other pixels than the model's pictures get. Keys that change none are not looked at,
    nor are absent ones and null: the published value is meant. Models that read text only have no pictures to prepare."""
    model = seeing(cfg)
    if model is None:
        return
    right = _settings(*model.preparation(cfg))
    for name in FILES:
        values = optional_json(folder, name)
        if name == FILES[1]:
            nested = values.get("image_processor")
            values = nested if isinstance(nested, dict) else {}
        wrong = [key for key, value in right.items() if values.get(key) is not None and not _same(values[key], value)]
        if wrong:
            found = "; ".join(f"{key} is {shown(values[key])} and not {shown(right[key])}" for key in wrong)
            raise FileProblem(f"{name}: {found}. Pictures are prepared as this architecture was published with; others are not supported.")


def _settings(kind: str, numbers: Mapping[str, int]) -> dict[str, Any]:
    """What the file of a kind of encoder says if it asks for what herd does."""
    square = {"height": numbers.get("tile"), "width": numbers.get("tile")}
    if kind == "llama4":
        own = {**_HALVES, "size": square, "max_patches": 16, "resize_to_max_canvas": False, "resample": _BILINEAR}
    elif kind == "mllama":
        own = {**_CLIP, "size": square, "max_image_tiles": numbers["max_tiles"], "do_pad": True, "resample": _BILINEAR}
    else:
        cells = {"patch_size": numbers["patch"], "merge_size": numbers["merge"], "temporal_patch_size": 2}
        own = {**_HALVES, **cells, "max_image_tokens": numbers["max_tokens"], "resample": _LANCZOS}
    return {**_STEPS, **own}


def _same(value: object, right: object) -> bool:
    if isinstance(right, list):
        return isinstance(value, list) and len(value) == len(right) and all(map(_same, value, right))
    if isinstance(right, float):
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        return is_number and isclose(float(value), right, rel_tol=1e-5)  # type: ignore[arg-type]
    return type(value) is type(right) and value == right
