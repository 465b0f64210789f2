"""What GGUF files of every llama say alike, under the prefix of their architecture: vocabulary and rotary positions."""

from __future__ import annotations

import struct
from collections.abc import Mapping

from herd.checkpoints.checkpoint import Fact
from herd.checkpoints.config_reader import MAX_CONTEXT, MAX_VOCABULARY, MAX_WIDTH, ConfigReader, shown
from herd.checkpoints.gguf import Metadata
from herd.checkpoints.stored import StoredTensor
from herd.dtypes import F16, F32
from herd.models import rope


def vocab_size_of(at: str, r: ConfigReader, metadata: Metadata, tensors: Mapping[str, StoredTensor]) -> int:
    """Declared, listed and stored vocabularies must have one size."""
    embed = tensors.get("token_embd.weight")
    rows = embed.shape[0] if embed is not None and len(embed.shape) == 2 else 0
    vocab_size = r.integer(f"{at}.vocab_size", "vocab_size", highest=MAX_VOCABULARY, default=max(1, rows))
    if rows and rows != vocab_size:
        r.problem(f"{at}.vocab_size is {vocab_size} and token_embd.weight has {rows} rows")
    if "tokenizer.ggml.tokens" in metadata and (listed := metadata.length("tokenizer.ggml.tokens")) != vocab_size:
        r.problem(f"tokenizer.ggml.tokens lists {listed} tokens and the vocabulary has {vocab_size}")
    return vocab_size


def rope_of(at: str, r: ConfigReader, tensors: Mapping[str, StoredTensor], head_width: int) -> rope.Rope:
    width = r.integer(f"{at}.rope.dimension_count", "rope_width", highest=MAX_WIDTH, default=head_width)
    theta = r.number(f"{at}.rope.freq_base", "rope_theta", lowest=1.0, highest=1e15, default=10000.0)
    kind = r.text(f"{at}.rope.scaling.type", default="linear")  # as llama.cpp reads a file without it
    scaling: rope.Scaling | None = None
    factor = _stretch(at, r)
    if kind == "yarn":
        scaling = _yarn(at, r, factor)
    elif kind == "linear":
        scaling = rope.Linear(factor) if factor != 1.0 else None
    elif kind != "none":
        r.problem(f"{at}.rope.scaling.type is {shown(kind)}; allowed are 'none', 'linear' and 'yarn'")
    elif factor != 1.0:
        key = "scaling.factor" if r.has(f"{at}.rope.scaling.factor") else "scale_linear"
        r.problem(f"{at}.rope.scaling.type is 'none' and {at}.rope.{key} is {factor:g}; without scaling it must be 1 or absent")
    if "rope_freqs.weight" in tensors:
        if scaling is not None:
            r.problem(f"the rotary frequencies are scaled twice: by rope_freqs.weight and by {at}.rope.scaling.type {shown(kind)}")
        scaling = _divisors(r, tensors["rope_freqs.weight"], width)
        r.facts["rope_scaling"] = Fact(scaling, f"rope_freqs.weight in {tensors['rope_freqs.weight'].file.name}")
    elif scaling is not None:
        r.note("rope_scaling", scaling, f"{at}.rope.scaling.*")
    return rope.Rope(theta=theta, width=width, scaling=scaling)


def _stretch(at: str, r: ConfigReader) -> float:
    """How many times longer the context is made, in the key of today or in the one before it; 1 without either."""
    factor = r.number(f"{at}.rope.scaling.factor", lowest=1e-6, highest=1e6, default=1.0)
    older = r.number(f"{at}.rope.scale_linear", lowest=1e-6, highest=1e6, default=1.0)
    if not r.has(f"{at}.rope.scaling.factor"):
        return older
    if r.has(f"{at}.rope.scale_linear") and factor != older:
        r.problem(f"{at}.rope.scaling.factor is {factor:g} and {at}.rope.scale_linear is {older:g}; they must agree")
    return factor


def _yarn(at: str, r: ConfigReader, factor: float) -> rope.Yarn:
    """YaRN's numbers. `attn_factor` multiplies the magnitude that the paper gives."""
    r.expect(f"{at}.rope.scaling.yarn_ext_factor", 1.0, -1.0, because="mixing in only a part of YaRN is not supported")
    r.expect(f"{at}.rope.scaling.yarn_log_multiplier", 0.0, because="it belongs to other architectures")
    extra = r.number(f"{at}.rope.scaling.attn_factor", lowest=1e-6, highest=1e6, default=1.0)
    extra *= r.number(f"{at}.rope.scaling.yarn_attn_factor", lowest=1e-6, highest=1e6, default=1.0)
    yarn = rope.Yarn(
        factor=factor,
        original_context=r.integer(f"{at}.rope.scaling.original_context_length", highest=MAX_CONTEXT),
        beta_fast=r.number(f"{at}.rope.scaling.yarn_beta_fast", lowest=1e-3, highest=1e6, default=32.0),
        beta_slow=r.number(f"{at}.rope.scaling.yarn_beta_slow", lowest=1e-3, highest=1e6, default=1.0),
    )
    if extra == 1.0:
        return yarn
    magnitude = rope.Rope(theta=10000.0, width=2, scaling=yarn).magnitude
    return rope.Yarn(yarn.factor, yarn.original_context, yarn.beta_fast, yarn.beta_slow, magnitude=magnitude * extra)


def _divisors(r: ConfigReader, tensor: StoredTensor, width: int) -> rope.Divisors | None:
    if tensor.shape != (width // 2,) or tensor.dtype not in (F32, F16):
        r.problem(f"rope_freqs.weight is {tensor.dtype.name} {list(tensor.shape)}; allowed is f32 or f16 [{width // 2}], one per pair")
        return None
    values = struct.unpack_from(f"<{width // 2}{'f' if tensor.dtype is F32 else 'e'}", tensor.file.view, tensor.offset)
    if not all(1e-6 <= value <= 1e6 for value in values):
        r.problem("rope_freqs.weight holds a value outside of 1e-6 to 1e6; rotary frequencies are divided by these")
        return None
    return rope.Divisors(values)


def any_of(tensors: Mapping[str, StoredTensor], *endings: str) -> bool:
    return any(f"blk.0.{ending}" in tensors for ending in endings)
