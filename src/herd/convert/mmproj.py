"""The second file of a Llama 4 in GGUF: the part that sees pictures."""

from __future__ import annotations

from typing import Any

from herd.checkpoints import gguf_keys
from herd.checkpoints.checkpoint import Checkpoint
from herd.checkpoints.gguf_mmproj import in_file, keys_of
from herd.checkpoints.sources import Reshaped
from herd.convert.shaping import Shaping, widened_names
from herd.convert.streams import Output, in_format
from herd.dtypes import F32
from herd.models.llama4 import Llama4Config

# llama.cpp adds these to other values as they are.
ALWAYS_F32 = ("vision.class", "vision.positions")


def mmproj_contents(checkpoint: Checkpoint, shaping: Shaping) -> tuple[dict[str, Any], list[Output]] | None:
    """Keys and tensors, or None for a model without eyes. They are not quantised: what is small is not made smaller."""
    cfg = checkpoint.config
    if not isinstance(cfg, Llama4Config) or cfg.vision is None:
        return None
    if shaping.quant is not None:
        shaping.notes.append("The part that sees pictures was written as it was stored: only text is quantised.")
    plain = Shaping(dtype=shaping.dtype, notes=shaping.notes)
    specs = [spec for spec in checkpoint.specs if spec.name.startswith("vision.")]
    sources = {spec.name: plain.for_gguf(checkpoint, spec) for spec in specs}
    sources |= {name: in_format(checkpoint.source(name), F32) for name in ALWAYS_F32}
    keys = keys_of(cfg.vision, cfg.width)
    before = widened_names(checkpoint, specs, sources)
    keys |= {key: before[dtype] for key, dtype in gguf_keys.WIDENED.items() if before[dtype]}
    sources["vision.class"] = Reshaped(sources["vision.class"], (cfg.vision.width,))
    return keys, [Output(in_file(name), source) for name, source in sources.items()]
