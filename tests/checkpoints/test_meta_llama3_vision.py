"""Llama 3.2 Vision in Meta's layout, in one shard and in two."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from herd.checkpoints import mllama_names, open_checkpoint
from herd.checkpoints.meta_llama3_vision import KEPT, crossing_layers
from herd.dtypes import F32
from herd.errors import FileProblem
from herd.models.llama3_vision import Llama3VisionConfig
from herd.models.llama3_vision_encoder import EncoderConfig
from herd.models.rope import Llama3, Rope
from meta_files import values_of
from tiny import random_leaves, tiny_llama3_vision

ENCODER = EncoderConfig(tile=28, patch=14, max_tiles=4, width=64, num_layers=32, num_global_layers=2, num_heads=16, ffn_width=96, kept=KEPT)
SHAPES = {
    "vision.class_row": (64,),
    "vision.tile_positions": (4, 4, 5, 64),
    "vision.before": (4, 4, 1, 64),
    "vision.after": (4, 4, 1, 64),
}


def config() -> Llama3VisionConfig:
    return tiny_llama3_vision(
        width=64, num_heads=4, num_kv_heads=2, head_width=16, ffn_width=96, vocab_size=64, vision=ENCODER, picture_aliases=(),
        rope=Rope(500000.0, 16, Llama3(8.0, 1.0, 4.0, 8192)), context_length=131072,
    )  # fmt: skip


def write(folder: Path, cfg: Llama3VisionConfig, count: int, **changes: Any) -> Any:
    torch = pytest.importorskip("torch")
    params: dict[str, Any] = {
        "dim": 64, "n_layers": 4, "n_heads": 4, "n_kv_heads": 2, "vocab_size": 64, "multiple_of": 96, "ffn_dim_multiplier": 0.5,
        "norm_eps": cfg.norm_eps, "rope_theta": 500000.0, "use_scaled_rope": True, "vision_chunk_size": 28, "vision_max_num_chunks": 4,
        "vision_num_cross_attention_layers": 2,
    }  # fmt: skip
    (folder / "params.json").write_text(json.dumps({**params, **changes}))
    leaves = random_leaves(cfg, 1, F32)
    states: list[dict[str, Any]] = [{} for _ in range(count)]
    for name, leaf in leaves.items():
        values = torch.from_numpy(np.array(values_of(leaf)))
        if name == "embed":
            parts = zip(mllama_names.META_EMBED, (values[:64], values[64:]), (0, 0), strict=True)
        else:
            axis = mllama_names.META_SPLIT.get(mllama_names.pattern(name))
            parts = zip([mllama_names.in_meta(name)], [values.reshape(SHAPES.get(name, values.shape))], [axis], strict=True)
        for theirs, whole, axis in parts:
            for state, piece in zip(states, [whole] * count if axis is None else whole.chunk(count, dim=axis), strict=True):
                state[theirs] = piece.clone()
    for number, state in enumerate(states):
        torch.save(state, folder / f"consolidated.{number:02d}.pth")
    return leaves


@pytest.mark.parametrize("count", [1, 2])
def test_every_weight_is_put_together(tmp_path: Path, count: int) -> None:
    cfg = config()
    leaves = write(tmp_path, cfg, count)
    checkpoint = open_checkpoint(tmp_path)
    assert (checkpoint.config, checkpoint.architecture) == (cfg, "llama3_vision")
    assert {spec.name for spec in checkpoint.specs} == set(leaves)
    for name, leaf in leaves.items():
        assert np.array_equal(values_of(checkpoint.leaf(name)), values_of(leaf)), name


def test_the_released_models_cross_where_meta_says() -> None:
    assert crossing_layers(32, 8) == (3, 7, 11, 15, 19, 23, 27, 31)
    assert crossing_layers(80, 20) == tuple(range(3, 80, 4))
    assert crossing_layers(4, 2) == (1, 3)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"vision_num_cross_attention_layers": 4}, r"cross_attention_layers\.2\..* is missing"),
        ({"vision_num_cross_attention_layers": 0}, "vision_num_cross_attention_layers is 0"),
        ({"vision_chunk_size": 42}, r"positional_embedding has shape \[5, 64\] in consolidated\.00\.pth; expected is \[10, 64\]"),
        ({"vision_chunk_size": 30}, "must be whole patches of 14"),
        ({"vision_max_num_chunks": 2}, r"expected is \[2, 2, "),
        ({"vision_surprise": 2}, "vision_surprise is not a key"),
    ],
)
def test_params_that_do_not_fit_are_refused_by_name(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    write(tmp_path, config(), 1, **changes)
    with pytest.raises(FileProblem, match=message):
        open_checkpoint(tmp_path)


def test_a_text_model_that_claims_pictures_is_refused(tmp_path: Path) -> None:
    from meta_files import write_meta
    from tiny import tiny_llama

    cfg = tiny_llama(width=64, num_layers=2, num_heads=4, num_kv_heads=2, head_width=16, ffn_width=96, vocab_size=64)
    write_meta(tmp_path, cfg, random_leaves(cfg, 1, F32), changes={"vision_chunk_size": 28, "vision_num_cross_attention_layers": 1})
    with pytest.raises(FileProblem, match="the shards hold an encoder of 0 layers"):
        open_checkpoint(tmp_path)
