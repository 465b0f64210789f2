"""Tiny Llama 4s, and the same models in `transformers`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any
from unittest.mock import patch

import numpy as np
from numpy.typing import NDArray

from conformance.architectures import rope_scaling
from conformance.running import NUM_PAGES, pages_for
from herd.backends.base import BackendOptions, Placed, Plan, Span
from herd.backends.reference import ReferenceBackend
from herd.backends.reference.arrays import Arrays
from herd.checkpoints import names
from herd.checkpoints.huggingface_llama4 import NAMES
from herd.models import llama4
from herd.models.architecture import PictureShape
from herd.models.llama4 import Llama4Config, every
from herd.models.llama4_vision import Llama4VisionConfig
from herd.models.rope import Linear, Llama3, Rope, Yarn
from herd.models.weights import Adapted, Matrix
from tiny import tiny_llama4, tiny_llama4_vision

FAR = 8192
"""A chunk that no test reaches: how `transformers`, which cannot do without one, is told that there is none."""


def _guard(**changes: Any) -> Llama4Config:
    return tiny_llama4(expert_layers=(), chunk=None, ffn_width=256, **changes)


LLAMA4: dict[str, Llama4Config] = {
    "llama-4 scout": tiny_llama4(expert_layers=every(1, 4)),
    "llama-4 maverick": tiny_llama4(qk_norm=False, rope=Rope(500000.0, 32)),
    "llama guard 4": _guard(),
    "llama-4 with two experts a token": tiny_llama4(num_chosen=2),
    "llama-4 without temperature, tied": tiny_llama4(temper_scale=0.0, tied_embeddings=True),
    "llama-4 with attention biases": tiny_llama4(qkv_bias=True, out_bias=True, norm_eps=1e-3),
    "llama-4 chunked where nothing rotates": tiny_llama4(rotary_layers=(1, 3), chunked_layers=(2, 3), expert_layers=(0, 3)),
}


def random_config(seed: int) -> Llama4Config:
    """Every switch on or off, every number from a few, as the seed decides."""
    random = np.random.default_rng([4, seed])

    def some() -> tuple[int, ...]:
        return tuple(layer for layer in range(4) if random.random() < 0.5)

    def one_of(*choices: Any) -> Any:
        return choices[random.integers(len(choices))]

    has_bias = one_of(False, True)
    scaling = one_of(None, Llama3(8.0, 1.0, 4.0, 64), Llama3(16.0, 1.0, 1.0, 32), Linear(2.0), Yarn(4.0, 32))
    num_experts = one_of(1, 3, 4)
    return tiny_llama4(
        num_kv_heads=one_of(1, 2, 4, 8),
        num_experts=num_experts,
        num_chosen=int(random.integers(1, num_experts + 1)),
        expert_layers=some(),
        rotary_layers=some(),
        chunked_layers=some(),
        chunk=one_of(7, 16, 33),
        qk_norm=one_of(False, True),
        temper_floor=one_of(3.0, 16.0),
        temper_scale=one_of(0.0, 0.1, 0.7),
        tied_embeddings=one_of(False, True),
        qkv_bias=has_bias,
        out_bias=has_bias,
        norm_eps=one_of(1e-5, 1e-2),
        rope=Rope(one_of(10000.0, 500000.0), 32, scaling),
        vision=one_of(None, tiny_llama4_vision(), tiny_llama4_vision(tile=48, merge=3, width=64, ffn_width=576, rope_theta=100.0)),
    )


def transformers_config(cfg: Llama4Config) -> Any:
    """The same config in `transformers`: of the text model, or of the whole one if it sees."""
    from transformers import Llama4Config as TheirConfig
    from transformers import Llama4TextConfig

    assert cfg.qkv_bias == cfg.out_bias, "transformers has one switch for all four attention biases"
    text = {
        "hidden_size": cfg.width,
        "num_hidden_layers": cfg.num_layers,
        "num_attention_heads": cfg.num_heads,
        "num_key_value_heads": cfg.num_kv_heads,
        "head_dim": cfg.head_width,
        "intermediate_size": cfg.expert_width,
        "intermediate_size_mlp": cfg.ffn_width,
        "num_local_experts": cfg.num_experts,
        "num_experts_per_tok": cfg.num_chosen,
        "moe_layers": list(cfg.expert_layers),
        "no_rope_layers": [int(layer in cfg.rotary_layers) for layer in range(cfg.num_layers)],
        "layer_types": ["chunked_attention" if layer in cfg.chunked_layers else "full_attention" for layer in range(cfg.num_layers)],
        "attention_chunk_size": cfg.chunk or FAR,
        "vocab_size": cfg.vocab_size,
        "max_position_embeddings": cfg.context_length,
        "rms_norm_eps": cfg.norm_eps,
        "rope_parameters": {"rope_theta": cfg.rope.theta, **rope_scaling(cfg.rope)},
        "use_qk_norm": cfg.qk_norm,
        "attn_temperature_tuning": bool(cfg.temper_scale),
        "floor_scale": int(cfg.temper_floor),
        "attn_scale": cfg.temper_scale or 0.1,
        "tie_word_embeddings": cfg.tied_embeddings,
        "attention_bias": cfg.qkv_bias,
        "bos_token_id": 1,
        "eos_token_id": [2, 3],
    }
    if cfg.vision is None:
        return Llama4TextConfig(**text, attn_implementation="sdpa")
    vision = {
        "hidden_size": cfg.vision.width,
        "num_hidden_layers": cfg.vision.num_layers,
        "num_attention_heads": cfg.vision.num_heads,
        "intermediate_size": cfg.vision.ffn_width,
        "image_size": cfg.vision.tile,
        "patch_size": cfg.vision.patch,
        "pixel_shuffle_ratio": 1 / cfg.vision.merge,
        "projector_input_dim": cfg.vision.adapter_width,
        "projector_output_dim": cfg.vision.adapter_width,
        "vision_output_dim": cfg.vision.adapter_width,
        "rope_parameters": {"rope_theta": cfg.vision.rope_theta, "rope_type": "default"},
    }
    return TheirConfig(
        text_config=text,
        vision_config=vision,
        image_token_index=cfg.vision.picture_token,
        tie_word_embeddings=cfg.tied_embeddings,
        attn_implementation="sdpa",
    )


def transformers_model(cfg: Llama4Config, leaves: Mapping[str, Matrix], dtype: str = "float32") -> Any:
    """The same model in `transformers`."""
    import torch
    from transformers import Llama4ForCausalLM, Llama4ForConditionalGeneration

    torch.set_num_threads(1)  # for models this small, more threads only wait for each other
    config = transformers_config(cfg)
    made = Llama4ForCausalLM(config) if cfg.vision is None else Llama4ForConditionalGeneration(config)
    model = (made.double() if dtype == "float64" else made).eval()
    state = {name: torch.from_numpy(values.copy()) for name, values in hugging_face_values(cfg, leaves).items()}
    missing, unexpected = model.load_state_dict(state, strict=False)
    assert not unexpected and all(name.endswith("lm_head.weight") for name in missing) and bool(missing) == cfg.tied_embeddings
    text = model if cfg.vision is None else model.language_model
    if cfg.tied_embeddings:
        text.lm_head.weight = text.model.embed_tokens.weight
    if dtype == "float64":
        text.model.rotary_emb.inv_freq = torch.tensor(cfg.rope.frequencies(), dtype=torch.float64)
        text.model.rotary_emb.attention_scaling = cfg.rope.magnitude
        if cfg.vision is not None:
            rotary = model.vision_model.rotary_embedding
            with in_float64():
                rotary.freqs_ci = rotary._compute_freqs_ci(rotary.config)
    return model


@contextmanager
def in_float64() -> Iterator[None]:
    """Where `transformers` and Meta's code fall back to float32 (norms, angles, temperature, the router), they stay in float64."""
    import torch

    to = torch.Tensor.to

    def wide(self: Any, *args: Any, **kwargs: Any) -> Any:
        args = tuple(torch.float64 if each is torch.float32 else each for each in args)
        return to(self, *args, **{key: torch.float64 if each is torch.float32 else each for key, each in kwargs.items()})

    with patch.object(torch.Tensor, "float", torch.Tensor.double), patch.object(torch.Tensor, "to", wide):
        yield


def transformers_logits(model: Any, tokens: Sequence[int], pictures: Sequence[Any] = ()) -> NDArray[np.floating[Any]]:
    """Logits [T, V] of a whole prompt, in the model's type."""
    import torch

    pixels = {"pixel_values": torch.from_numpy(np.concatenate([each.pixels for each in pictures])).to(model.dtype)} if pictures else {}
    with torch.inference_mode():
        if model.dtype != torch.float64:
            return model(torch.tensor([list(tokens)]), **pixels).logits[0].numpy()
        with in_float64():
            return model(torch.tensor([list(tokens)]), **pixels).logits[0].numpy()


def same_logits(cfg: Llama4Config, leaves: Mapping[str, Matrix], tokens: Sequence[int], dtype: str) -> NDArray[np.floating[Any]]:
    """What `transformers` says to these tokens."""
    return transformers_logits(transformers_model(cfg, leaves, dtype), tokens)


def hugging_face_values(cfg: Llama4Config, leaves: Mapping[str, Matrix]) -> dict[str, NDArray[np.float64]]:
    """Weights under their Hugging Face names and in its shapes: experts laid out for x W, gate and up side by side."""
    arrays = Arrays(np.dtype(np.float64))
    table = names.HUGGING_FACE_LLAMA4 if cfg.vision is None else NAMES
    ours = {}
    for spec in llama4.tensors(cfg):
        leaf = leaves[spec.name]
        assert not isinstance(leaf, Adapted)
        ours[spec.name] = np.asarray(arrays.get(leaf), np.float64)
    for index in cfg.expert_layers:
        at = f"layers.{index}.experts"
        gate, up = ours.pop(f"{at}.gate"), ours.pop(f"{at}.up")
        ours[f"{at}.gate_up"] = np.concatenate([gate, up], axis=1).swapaxes(1, 2)
        ours[f"{at}.down"] = ours[f"{at}.down"].swapaxes(1, 2)
    if cfg.vision is not None:
        ours["vision.class"] = ours["vision.class"][0]
    return {names.in_file(table, name): values for name, values in ours.items()}


@dataclass(frozen=True)
class Cut:
    """A picture of random pixels, cut into tiles."""

    pixels: NDArray[np.float32]
    rows: int
    columns: int
    digest: bytes

    @property
    def shape(self) -> PictureShape:
        tiles, _, height, width = self.pixels.shape
        return PictureShape(tiles, height, width, self.rows, self.columns)


def cut(vision: Llama4VisionConfig, rows: int, columns: int, seed: int) -> Cut:
    """A picture of `rows` x `columns` tiles, and the small whole one if there are several."""
    tiles = rows * columns + (rows * columns > 1)
    pixels = np.random.default_rng([5, seed]).uniform(-1, 1, (tiles, 3, vision.tile, vision.tile)).astype(np.float32)
    return Cut(pixels, rows, columns, bytes([seed]))


def with_pictures(cfg: Llama4Config, pictures: Sequence[Any], tokens: Sequence[int]) -> list[int]:
    """`tokens` with each picture's tokens after the first of them, two ordinary tokens between tiles."""
    assert cfg.vision is not None
    row = [cfg.vision.picture_token] * cfg.vision.tile_rows
    ids = list(tokens[:5])
    for index, picture in enumerate(pictures):
        for _ in range(len(picture.pixels)):
            ids += [*row, 10 + index, 20]
    return [*ids, *tokens[5:]]


def picture_logits(
    cfg: Llama4Config, leaves: Mapping[str, Matrix], tokens: Sequence[int], pictures: Sequence[Cut], dtype: str = "float64", chunk: int = 0
) -> NDArray[np.floating[Any]]:
    """Logits [T, V] of the reference for tokens with pictures among them, in pieces of `chunk` tokens (0: whole)."""
    backend = ReferenceBackend(cfg, leaves.__getitem__, BackendOptions(dtype=dtype, activations="float32"))
    backend.allocate(NUM_PAGES)
    places = llama4.picture_positions(cfg, tokens, [each.shape for each in pictures])
    placed = tuple(map(Placed, pictures, places))
    pieces = []
    for start in range(0, len(tokens), chunk or len(tokens)):
        piece = list(tokens[start : start + (chunk or len(tokens))])
        pieces.append(backend.logits(Plan((Span(start, piece, pages_for(len(tokens)), len(piece), pictures=placed),))))
    return np.concatenate(pieces)


def without_pictures(cfg: Llama4Config) -> Llama4Config:
    """The language model alone."""
    return replace(cfg, vision=None)
