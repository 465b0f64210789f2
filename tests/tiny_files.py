"""Tiny models as files: GGUF written by the `gguf` package, and folders in Hugging Face layout."""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from herd.models.llama import LlamaConfig, tensors
from herd.models.rope import Divisors, Linear, Llama3, Rope, Yarn
from herd.models.weights import Matrix


def write_gguf(path: Path, cfg: LlamaConfig, leaves: Mapping[str, Matrix], keys: Mapping[str, Any] | None = None) -> Path:
    """The model as a GGUF file, written by the `gguf` package. `keys` are further or other keys; None leaves a key out."""
    import gguf

    from herd.checkpoints import names

    writer = gguf.GGUFWriter(path, "llama")
    for key, value in {**_gguf_keys(cfg), **(keys or {})}.items():
        if value is not None:
            writer.add_key_value(key, value, *_gguf_type(value))
    if (divisors := _divisors(cfg)) is not None:
        writer.add_tensor("rope_freqs.weight", divisors)
    for name, leaf in leaves.items():
        data = np.ascontiguousarray(leaf.data)
        kind = gguf.GGMLQuantizationType(leaf.dtype.ggml_id)
        as_numpy = {"f32": np.float32, "f16": np.float16}.get(leaf.dtype.name, np.uint8)
        rows = data.view(as_numpy)
        writer.add_tensor(names.in_file(names.GGUF, name), rows if len(leaf.shape) > 1 else rows[0], raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _gguf_keys(cfg: LlamaConfig) -> dict[str, Any]:
    keys: dict[str, Any] = {
        "llama.embedding_length": cfg.width,
        "llama.block_count": cfg.num_layers,
        "llama.attention.head_count": cfg.num_heads,
        "llama.attention.head_count_kv": cfg.num_kv_heads,
        "llama.attention.key_length": cfg.head_width,
        "llama.attention.value_length": cfg.head_width,
        "llama.feed_forward_length": cfg.ffn_width,
        "llama.vocab_size": cfg.vocab_size,
        "llama.context_length": cfg.context_length,
        "llama.attention.layer_norm_rms_epsilon": cfg.norm_eps,
        "llama.rope.dimension_count": cfg.rope.width,
        "llama.rope.freq_base": cfg.rope.theta,
    }
    match cfg.rope.scaling:
        case Linear(factor):
            keys |= {"llama.rope.scaling.type": "linear", "llama.rope.scaling.factor": factor}
        case Yarn(factor, original, beta_fast, beta_slow):
            keys |= {"llama.rope.scaling.type": "yarn", "llama.rope.scaling.factor": factor}
            keys |= {"llama.rope.scaling.original_context_length": original}
            keys |= {"llama.rope.scaling.yarn_beta_fast": beta_fast, "llama.rope.scaling.yarn_beta_slow": beta_slow}
    return keys


def _gguf_type(value: Any) -> tuple[Any, ...]:
    """The type that converters give such a value: whole numbers u32 (i32 in lists), numbers f32."""
    from gguf import GGUFValueType as Type

    def scalar(each: Any, whole: Any) -> Any:
        return {bool: Type.BOOL, int: whole, float: Type.FLOAT32, str: Type.STRING}[type(each)]

    return (Type.ARRAY, scalar(value[0], Type.INT32)) if isinstance(value, list | tuple) else (scalar(value, Type.UINT32),)


def _divisors(cfg: LlamaConfig) -> NDArray[np.float32] | None:
    """`rope_freqs.weight`: plain frequency over scaled one."""
    if not isinstance(cfg.rope.scaling, Llama3 | Divisors):
        return None
    plain = Rope(cfg.rope.theta, cfg.rope.width).frequencies()
    return np.array([omega / scaled for omega, scaled in zip(plain, cfg.rope.frequencies(), strict=True)], dtype=np.float32)


def write_huggingface(
    folder: Path, cfg: LlamaConfig, leaves: Mapping[str, Matrix], changes: Mapping[str, Any] | None = None, shards: int = 1
) -> Path:
    """The model as a Hugging Face folder: config.json, with `changes` (None leaves a key out), and `shards` safetensors files."""
    from herd.checkpoints import names

    config = {**_huggingface_config(cfg), **(changes or {})}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps({key: value for key, value in config.items() if value is not None}))
    stored = {}
    for spec in tensors(cfg):
        leaf = leaves[spec.name]
        data = np.ascontiguousarray(leaf.data)
        if spec.rotary_heads:
            data = data.reshape(spec.rotary_heads, spec.shape[0] // spec.rotary_heads // 2, 2, -1).swapaxes(1, 2)
        stored[names.in_file(names.HUGGING_FACE, spec.name)] = (leaf.dtype.name.upper(), leaf.shape, data.tobytes())
    if shards == 1:
        (folder / "model.safetensors").write_bytes(safetensors_bytes(stored))
        return folder
    weight_map: dict[str, str] = {}
    for shard in range(shards):
        name = f"model-{shard + 1:05d}-of-{shards:05d}.safetensors"
        part = dict(list(stored.items())[shard::shards])
        (folder / name).write_bytes(safetensors_bytes(part))
        weight_map |= dict.fromkeys(part, name)
    metadata = {"total_size": sum(len(data) for _, _, data in stored.values())}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": metadata, "weight_map": weight_map}))
    return folder


def safetensors_bytes(stored: Mapping[str, tuple[str, tuple[int, ...], bytes]]) -> bytes:
    """A safetensors file of name -> (dtype, shape, bytes)."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    at = 0
    for name, (dtype, shape, data) in stored.items():
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [at, at + len(data)]}
        at += len(data)
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text + b"".join(data for _, _, data in stored.values())


def _huggingface_config(cfg: LlamaConfig) -> dict[str, Any]:
    scaling: dict[str, Any] | None = None
    match cfg.rope.scaling:
        case Linear(factor):
            scaling = {"rope_type": "linear", "factor": factor}
        case Llama3(factor, low, high, original):
            scaling = {"rope_type": "llama3", "factor": factor, "low_freq_factor": low, "high_freq_factor": high}
            scaling["original_max_position_embeddings"] = original
        case Yarn(factor, original, beta_fast, beta_slow, magnitude, truncate):
            scaling = {"rope_type": "yarn", "factor": factor, "original_max_position_embeddings": original}
            scaling |= {"beta_fast": beta_fast, "beta_slow": beta_slow, "truncate": truncate, "attention_factor": magnitude}
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_act": "silu",
        "hidden_size": cfg.width,
        "num_hidden_layers": cfg.num_layers,
        "num_attention_heads": cfg.num_heads,
        "num_key_value_heads": cfg.num_kv_heads,
        "head_dim": cfg.head_width,
        "intermediate_size": cfg.ffn_width,
        "vocab_size": cfg.vocab_size,
        "max_position_embeddings": cfg.context_length,
        "rms_norm_eps": cfg.norm_eps,
        "rope_theta": cfg.rope.theta,
        "rope_scaling": scaling,
        "tie_word_embeddings": cfg.tied_embeddings,
        "attention_bias": cfg.qkv_bias,
        "mlp_bias": cfg.ffn_bias,
        "torch_dtype": "float32",
    }
