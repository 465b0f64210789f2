"""params.json of Llama 4 for a config, and what Meta's own program does not learn from it.

Widths follow there from a rule, the same numbers for plain layers and for experts:

    plain:    round_up(multiple_of, ffn_dim_multiplier * (2/3 * 4 * dim))
    experts:  round_up(multiple_of, ffn_dim_multiplier * (2/3 * ffn_exp * dim) / 2), or without the half if not auto_scale_F

Source: Meta's `llama_models/llama4/args.py`, `model.py` and `moe.py`.
"""

from __future__ import annotations

import math
from typing import Any

from herd.models.llama4 import Llama4Config, every
from herd.models.llama4_vision import Llama4VisionConfig
from herd.models.rope import Llama3

SCALING_FACTOR, HIGH_FREQUENCY, ORIGINAL_CONTEXT = 16.0, 1.0, 8192
PUBLISHED: dict[str, Any] = {"multiple_of": 2048, "ffn_dim_multiplier": 1.2, "ffn_exp": 4.0}


def params_of(cfg: Llama4Config) -> dict[str, Any]:
    """The ordinary keys of params.json for a config."""
    rule, is_shared_out = _rule(cfg)
    params: dict[str, Any] = {
        "dim": cfg.width,
        "n_layers": cfg.num_layers,
        "n_heads": cfg.num_heads,
        "n_kv_heads": cfg.num_kv_heads,
        "head_dim": cfg.head_width,
        "vocab_size": cfg.vocab_size,
        **rule,
        "norm_eps": cfg.norm_eps,
        "rope_theta": cfg.rope.theta,
        "use_scaled_rope": isinstance(cfg.rope.scaling, Llama3),
        "nope_layer_interval": _interval(cfg),
        "use_qk_norm": cfg.qk_norm,
        "attn_temperature_tuning": bool(cfg.temper_scale),
        "floor_scale": cfg.temper_floor,
    }
    if isinstance(cfg.rope.scaling, Llama3) and (scaling := cfg.rope.scaling) != _known(scaling):
        params |= {"rope_scaling_factor": scaling.factor, "rope_high_freq_factor": max(1.0, scaling.high_freq_factor)}
    if cfg.temper_scale:
        params["attn_scale"] = cfg.temper_scale
    if cfg.chunk is not None:
        params["attention_chunk_size"] = cfg.chunk
    if cfg.expert_layers:
        params["moe_args"] = {
            "num_experts": cfg.num_experts,
            "capacity_factor": 1.0,
            "auto_scale_F": is_shared_out,
            "top_k": cfg.num_chosen,
            "interleave_moe_layer_step": cfg.expert_layers[0] + 1,
        }
    return params if cfg.vision is None else params | {"vision_args": _vision(cfg.vision)}


def _known(scaling: Llama3) -> Llama3:
    """What Meta's program adds to `use_scaled_rope`, in the place of what it reads from the file."""
    return Llama3(SCALING_FACTOR, scaling.low_freq_factor, HIGH_FREQUENCY, scaling.original_context)


def _vision(cfg: Llama4VisionConfig) -> dict[str, Any]:
    ratio = cfg.ffn_width / cfg.width
    return {
        "image_size": {"height": cfg.tile, "width": cfg.tile},
        "patch_size": {"height": cfg.patch, "width": cfg.patch},
        "dim": cfg.width,
        "n_layers": cfg.num_layers,
        "n_heads": cfg.num_heads,
        "mlp_ratio": ratio if int(ratio * cfg.width) == cfg.ffn_width else (cfg.ffn_width + 0.5) / cfg.width,
        "output_dim": cfg.adapter_width,
        "pixel_shuffle_ratio": 1 / cfg.merge,
    }


def _interval(cfg: Llama4Config) -> int | None:
    """How far apart the layers without rotary positions are."""
    without = [layer for layer in range(cfg.num_layers) if layer not in cfg.rotary_layers]
    return without[0] + 1 if without else None


def _rule(cfg: Llama4Config) -> tuple[dict[str, Any], bool]:
    """The numbers from which the widths follow, and `auto_scale_F`: those of the releases, if they give them."""
    plain, experts = cfg.ffn_width, cfg.expert_width
    if not cfg.expert_layers:
        experts = plain
    elif len(cfg.expert_layers) == cfg.num_layers:
        plain = experts if _widths(cfg.width, PUBLISHED, True)[1] != experts else _widths(cfg.width, PUBLISHED, True)[0]
    if _widths(cfg.width, PUBLISHED, True) == (plain, experts):
        return dict(PUBLISHED), True
    multiple = math.gcd(plain, experts)
    multiplier = (plain + (0.5 if multiple == 1 else -0.5)) / (8 * cfg.width // 3)
    inner = math.ceil((experts - multiple + 1) / multiplier)
    return {"multiple_of": multiple, "ffn_dim_multiplier": multiplier, "ffn_exp": ((3 * inner + 1) // 2 + 0.25) / cfg.width}, False


def _widths(width: int, rule: dict[str, Any], is_shared_out: bool) -> tuple[int, int]:
    """(of plain layers, of experts), as Meta's program computes them."""
    plain = int(rule["ffn_dim_multiplier"] * int(2 * int(4 * width) / 3))
    experts = int(rule["ffn_dim_multiplier"] * int(2 * int(rule["ffn_exp"] * width) / 3))
    if is_shared_out:
        experts = int(experts / 2.0)
    multiple = rule["multiple_of"]
    return plain + -plain % multiple, experts + -experts % multiple


def not_said(cfg: Llama4Config) -> list[str]:
    """What of a config Meta's own program does not read from params.json, so that it would compute something else or refuse."""
    notes = []
    scaling = cfg.rope.scaling
    if scaling is not None and not (isinstance(scaling, Llama3) and (scaling.low_freq_factor, scaling.original_context) == (1.0, 8192)):
        notes.append(f"its rotary scaling, {scaling}: llama-models has its own numbers")
    if cfg.head_width * cfg.num_heads != cfg.width:
        notes.append(f"its head width {cfg.head_width}: llama-models divides the width by the heads and refuses these tensors")
    interval = _interval(cfg)
    rotary = tuple(layer for layer in range(cfg.num_layers) if interval is None or layer not in every(interval, cfg.num_layers))
    if cfg.rotary_layers != rotary or (cfg.chunk is not None and cfg.chunked_layers != rotary):
        notes.append("which of its layers rotate and which see chunks only: llama-models knows one interval for both")
    if cfg.expert_layers and cfg.expert_layers != every(cfg.expert_layers[0] + 1, cfg.num_layers):
        notes.append(f"that the layers {cfg.expert_layers} have experts: llama-models knows one interval")
    rule, is_shared_out = _rule(cfg)
    plain, experts = _widths(cfg.width, rule, is_shared_out)
    has_plain = len(cfg.expert_layers) < cfg.num_layers
    if (has_plain and plain != cfg.ffn_width) or (cfg.expert_layers and experts != cfg.expert_width):
        notes.append(
            f"its widths {cfg.ffn_width} and {cfg.expert_width}, which do not follow from its rule: llama-models refuses these tensors"
        )
    return notes
