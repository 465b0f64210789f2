"""The shapes that every backend must get right, as tiny models, and the same models in `transformers`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from herd.backends.reference.arrays import Arrays
from herd.models.llama import LlamaConfig, tensors
from herd.models.rope import Linear, Llama3, Rope, Yarn
from herd.models.weights import Adapted, Matrix
from tiny import tiny_llama

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM

# Original contexts are short, so that a prompt of a test reaches frequencies that are kept, blended and stretched.
ARCHITECTURES: dict[str, LlamaConfig] = {
    "llama-2 (multi-head)": tiny_llama(num_kv_heads=8, norm_eps=1e-6),
    "llama-3 (grouped-query)": tiny_llama(rope=Rope(500000.0, 32)),
    "llama-3.1 (llama3 scaling)": tiny_llama(rope=Rope(500000.0, 32, Llama3(8.0, 1.0, 4.0, 128))),
    "llama-3.2 (tied)": tiny_llama(rope=Rope(500000.0, 32, Llama3(32.0, 1.0, 4.0, 128)), tied_embeddings=True),
    "attention bias": tiny_llama(qkv_bias=True, out_bias=True),
    "every bias": tiny_llama(qkv_bias=True, out_bias=True, ffn_bias=True, num_kv_heads=4),
    "linear scaling": tiny_llama(rope=Rope(10000.0, 32, Linear(4.0))),
    "yarn scaling": tiny_llama(rope=Rope(10000.0, 32, Yarn(8.0, 64))),
    "one kv head, wide heads": tiny_llama(num_heads=4, num_kv_heads=1, head_width=128, num_layers=1),
    "groups of three": tiny_llama(width=768, num_heads=12, num_kv_heads=4, head_width=64, num_layers=1),
}


def transformers_model(cfg: LlamaConfig, leaves: Mapping[str, Matrix], dtype: str = "float32") -> LlamaForCausalLM:
    """The same model in `transformers`. In "float64" the places where transformers falls back to float32 (norms, angles)
    are replaced by float64 ones, so that nothing but the order of sums differs from the oracle."""
    import torch
    from transformers import LlamaConfig as TheirConfig
    from transformers import LlamaForCausalLM

    torch.set_num_threads(1)  # for models this small, more threads only wait for each other
    theirs = TheirConfig(
        hidden_size=cfg.width,
        num_hidden_layers=cfg.num_layers,
        num_attention_heads=cfg.num_heads,
        num_key_value_heads=cfg.num_kv_heads,
        head_dim=cfg.head_width,
        intermediate_size=cfg.ffn_width,
        vocab_size=cfg.vocab_size,
        max_position_embeddings=cfg.context_length,
        rms_norm_eps=cfg.norm_eps,
        tie_word_embeddings=cfg.tied_embeddings,
        attention_bias=cfg.qkv_bias,
        mlp_bias=cfg.ffn_bias,
        rope_parameters={"rope_theta": cfg.rope.theta, **rope_scaling(cfg.rope)},
        attn_implementation="sdpa",
    )
    assert cfg.qkv_bias == cfg.out_bias, "transformers has one switch for all four attention biases"
    model = LlamaForCausalLM(theirs).to(getattr(torch, dtype)).eval()
    state = {name: torch.from_numpy(values.copy()) for name, values in hugging_face_values(cfg, leaves).items()}
    missing, unexpected = model.load_state_dict(state, strict=False)
    assert not unexpected and set(missing) <= ({"lm_head.weight"} if cfg.tied_embeddings else set())
    if dtype == "float64":
        _all_in_float64(model, cfg)
    return model


def transformers_logits(model: LlamaForCausalLM, tokens: list[int]) -> NDArray[np.floating[Any]]:
    """Logits [T, V] of a whole prompt, in the model's type."""
    import torch

    with torch.inference_mode():
        return model(torch.tensor([tokens])).logits[0].numpy()


def hugging_face_values(cfg: LlamaConfig, leaves: Mapping[str, Matrix]) -> dict[str, NDArray[np.float64]]:
    """Weights under their Hugging Face names, rotary rows permuted to its layout (halves of a head apart)."""
    arrays = Arrays(np.dtype(np.float64))
    found = {}
    for spec in tensors(cfg):
        leaf = leaves[spec.name]
        assert not isinstance(leaf, Adapted)
        values = np.asarray(arrays.get(leaf), np.float64)
        if spec.rotary_heads:
            values = values.reshape(spec.rotary_heads, -1, 2, *spec.shape[1:]).swapaxes(1, 2).reshape(spec.shape)
        found[_hugging_face_name(spec.name)] = values
    return found


def _hugging_face_name(name: str) -> str:
    whole = {"embed": "model.embed_tokens.weight", "norm": "model.norm.weight", "head": "lm_head.weight"}
    if name in whole:
        return whole[name]
    layers, index, rest = name.split(".", 2)
    norms = {"attention_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm"}
    if rest in norms:
        return f"model.{layers}.{index}.{norms[rest]}.weight"
    part, leaf = rest.split(".")
    projection = {"q": "q", "k": "k", "v": "v", "out": "o", "gate": "gate", "up": "up", "down": "down"}[leaf.removesuffix("_bias")]
    where = {"attention": "self_attn", "ffn": "mlp"}[part]
    return f"model.{layers}.{index}.{where}.{projection}_proj.{'bias' if leaf.endswith('_bias') else 'weight'}"


def rope_scaling(rope: Rope) -> dict[str, Any]:
    """What `rope_parameters` of transformers say besides the base."""
    match rope.scaling:
        case None:
            return {"rope_type": "default"}
        case Linear(factor):
            return {"rope_type": "linear", "factor": factor}
        case Llama3(factor, low, high, original):
            ends = {"low_freq_factor": low, "high_freq_factor": high}
            return {"rope_type": "llama3", "factor": factor, "original_max_position_embeddings": original, **ends}
        case Yarn(factor, original):
            return {"rope_type": "yarn", "factor": factor, "original_max_position_embeddings": original}
        case other:
            raise ValueError(f"no spelling in transformers for {other}")


def _all_in_float64(model: Any, cfg: LlamaConfig) -> None:
    import torch

    class Angles(torch.nn.Module):
        def forward(self, x: Any, position_ids: Any) -> tuple[Any, Any]:
            angles = position_ids[..., None].double() * torch.tensor(cfg.rope.frequencies(), dtype=torch.float64)
            angles = torch.cat([angles, angles], dim=-1)
            return angles.cos() * cfg.rope.magnitude, angles.sin() * cfg.rope.magnitude

    def norm(theirs: Any) -> torch.nn.RMSNorm:
        ours = torch.nn.RMSNorm(cfg.width, eps=cfg.norm_eps, dtype=torch.float64)
        ours.weight = theirs.weight
        return ours

    model.model.rotary_emb = Angles()
    model.model.norm = norm(model.model.norm)
    for layer in model.model.layers:
        layer.input_layernorm = norm(layer.input_layernorm)
        layer.post_attention_layernorm = norm(layer.post_attention_layernorm)
