"""Tiny models in Meta's layout, written by PyTorch and cut into shards as Meta cuts them."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from herd.checkpoints import names
from herd.checkpoints.meta_params import params_of
from herd.models.llama import LlamaConfig, tensors
from herd.models.weights import Matrix
from herd.quant import dequantize


def write_meta(
    folder: Path,
    cfg: LlamaConfig,
    leaves: Mapping[str, Matrix],
    *,
    shards: int = 1,
    embed_axis: int = 0,
    changes: Mapping[str, Any] | None = None,
    edit: Callable[[int, dict[str, Any]], None] | None = None,
) -> Path:
    """The model as params.json and `shards` files by `torch.save`. `edit` may change the tensors of each shard."""
    torch = pytest.importorskip("torch")
    folder.mkdir(parents=True, exist_ok=True)
    params = {**params_of(cfg), **(changes or {})}
    (folder / "params.json").write_text(json.dumps({key: value for key, value in params.items() if value is not None}))
    kinds = {"f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16}
    states: list[dict[str, Any]] = [{} for _ in range(shards)]
    for spec in tensors(cfg):
        leaf = leaves[spec.name]
        whole = torch.from_numpy(dequantize(leaf.dtype, leaf.data, leaf.shape)).to(kinds[leaf.dtype.name])
        axis = embed_axis if spec.name == "embed" else names.META_SPLIT.get(names.pattern(spec.name))
        pieces = _cut(whole, axis, shards, cfg.num_kv_heads if spec.name.rpartition(".")[2] in ("k", "v") else shards)
        for state, piece in zip(states, pieces, strict=True):
            state[names.in_file(names.META, spec.name)] = piece
    for number, state in enumerate(states):
        if cfg.tied_embeddings:
            state["output.weight"] = state["tok_embeddings.weight"]
        if edit is not None:
            edit(number, state)
        torch.save(state, folder / f"consolidated.{number:02d}.pth")
    return folder


def _cut(whole: Any, axis: int | None, shards: int, heads: int) -> list[Any]:
    """Pieces for each shard; where there are fewer heads than shards, neighbours get the same one."""
    if axis is None or shards == 1:
        return [whole] * shards
    distinct = min(shards, heads)
    pieces = [piece.clone() for piece in whole.chunk(distinct, dim=axis)]
    return [pieces[number * distinct // shards] for number in range(shards)]


def values_of(leaf: Any) -> Any:
    """float32 values of a leaf."""
    return dequantize(leaf.dtype, leaf.data, leaf.shape)


def same(ours: Any, theirs: Any) -> bool:
    """Whether two leaves hold the same values."""
    return bool(np.array_equal(values_of(ours), values_of(theirs)))
