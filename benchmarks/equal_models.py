"""The same model with its columns in another order: the same answers, other blocks.

Which values share a block is chance, and so is which way a quantiser's errors then point: of two small models that say the same, one may
lose a tenth more than the other. Quantisers are judged fairly on several such models. Put in another order are the components of the
residual stream, those between the matrices of a feed-forward, and those of each head's values.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from herd.checkpoints.open import open_checkpoint
from herd.convert.trained import write_trained
from herd.dtypes import F32
from herd.models.llama import LlamaConfig
from herd.models.weights import Dense
from herd.quant import dequantize

Order = NDArray[np.intp]
NORMS = ("attention_norm", "ffn_norm", "norm")
READS_STREAM = ("attention.q", "attention.k", "attention.v", "ffn.gate", "ffn.up", "embed", "head")


def write_reordered(model: Path, folder: Path, seed: int) -> None:
    """The model as a new folder in float32; its columns are in the order that `seed` draws, 0: in their own."""
    checkpoint = open_checkpoint(model)
    cfg = checkpoint.config
    if type(cfg) is not LlamaConfig:
        raise SystemExit("only models of the llama architecture are put in another order")
    chance = np.random.default_rng(seed)
    stream = _order(chance, cfg.width, seed)
    orders = [_orders_of_layer(chance, cfg, seed) for _ in range(cfg.num_layers)]
    leaves = {}
    for spec in checkpoint.specs:
        leaf = checkpoint.leaf(spec.name)
        values = dequantize(leaf.dtype, leaf.data, leaf.shape)
        _, _, rest = spec.name.partition("layers.")
        layer, _, inside = rest.partition(".")
        moved = _moved(values, inside or spec.name, stream, *(orders[int(layer)] if rest else (stream, stream, stream)))
        leaves[spec.name] = Dense(
            F32, spec.shape, np.ascontiguousarray(moved).view(np.uint8).reshape(max(1, moved.size // moved.shape[-1]), -1)
        )
    about = {"tokenizer": checkpoint.tokenizer, "chat_template": checkpoint.chat_template, "stop_ids": checkpoint.stop_ids}
    write_trained(folder, cfg, leaves, dtype=F32, **about)
    checkpoint.close()


def _order(chance: np.random.Generator, size: int, seed: int) -> Order:
    return chance.permutation(size) if seed else np.arange(size)


def _orders_of_layer(chance: np.random.Generator, cfg: LlamaConfig, seed: int) -> tuple[Order, Order, Order]:
    """Of the feed-forward's components, of the rows that make values, and of the columns that read what attention found."""
    width = cfg.head_width
    heads = [_order(chance, width, seed) for _ in range(cfg.num_kv_heads)]
    read_by = cfg.num_heads // cfg.num_kv_heads
    made = np.concatenate([number * width + head for number, head in enumerate(heads)])
    read = np.concatenate([number * width + heads[number // read_by] for number in range(cfg.num_heads)])
    return _order(chance, cfg.ffn_width, seed), made, read


def _moved(values: NDArray[np.float32], name: str, stream: Order, ffn: Order, made: Order, read: Order) -> NDArray[np.float32]:
    """One weight, by its name inside a layer or its whole name."""
    if name in NORMS:
        return values[stream]
    if name == "attention.out":
        return values[stream][:, read]
    if name == "ffn.down":
        return values[stream][:, ffn]
    if name not in READS_STREAM:
        raise SystemExit(f"{name}: only models whose weights are norms and matrices are put in another order")
    rows = {"attention.v": made, "ffn.gate": ffn, "ffn.up": ffn}.get(name)
    return (values if rows is None else values[rows])[:, stream]
