"""Llama 4 as Meta's own modules define it, small, on a CPU, in float64.

`llama_models` needs fairscale, for matrices that are spread over many devices. On one device such a matrix is a plain one and
exchanging parts does nothing, so the modules are imported with plain matrices in fairscale's place, and caches stay off the GPU.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from types import ModuleType, SimpleNamespace
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from numpy.typing import NDArray

from conformance.llama4 import Cut, in_float64
from herd.backends.reference.arrays import Arrays
from herd.models import llama4
from herd.models.llama4 import Llama4Config
from herd.models.weights import Adapted, Matrix


class _Linear(torch.nn.Linear):
    def __init__(self, inputs: int, outputs: int, bias: bool = True, **_: Any) -> None:
        super().__init__(inputs, outputs, bias=bias)


class _Embedding(torch.nn.Embedding):
    def __init__(self, rows: int, columns: int, **_: Any) -> None:
        super().__init__(rows, columns)


def _module(name: str, **names: Any) -> ModuleType:
    made = ModuleType(name)
    made.__dict__.update(names)
    return made


@cache
def meta() -> SimpleNamespace:
    """Meta's modules: `model`, `args`, `datatypes` and `vision` (embedding)."""
    root = "fairscale.nn.model_parallel"
    initialize = _module(f"{root}.initialize", get_model_parallel_world_size=lambda: 1)
    layers = _module(f"{root}.layers", ColumnParallelLinear=_Linear, RowParallelLinear=_Linear, VocabParallelEmbedding=_Embedding)
    mappings = _module(f"{root}.mappings", reduce_from_model_parallel_region=lambda x: x)
    parallel = _module(root, initialize=initialize, layers=layers, mappings=mappings)
    made = [_module("fairscale"), _module("fairscale.nn", model_parallel=parallel), parallel, initialize, layers, mappings]
    names = {"model": "model", "args": "args", "datatypes": "datatypes", "vision": "vision.embedding"}
    with patch.dict(sys.modules, {each.__name__: each for each in made}):
        found = {short: importlib.import_module(f"llama_models.llama4.{name}") for short, name in names.items()}
        imported = {name: module for name, module in sys.modules.items() if name.startswith("llama_models")}
    sys.modules.update(imported)
    return SimpleNamespace(**found)


@contextmanager
def _on_a_cpu() -> Iterator[None]:
    """Modules are made and run in float64, and nothing is sent to a GPU."""
    arange = torch.arange

    def wide(*args: Any, **kwargs: Any) -> Any:
        return arange(*args, **{key: torch.float64 if each is torch.float32 else each for key, each in kwargs.items()})

    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        at_home, exact = patch.object(torch.Tensor, "cuda", lambda self: self), patch.object(torch, "arange", wide)
        with in_float64(), at_home, exact, torch.no_grad():
            yield
    finally:
        torch.set_default_dtype(before)


class MetaModel:
    """The same weights in Meta's modules. Their widths follow from multiples: those of `cfg` must be such."""

    def __init__(self, cfg: Llama4Config, leaves: Mapping[str, Matrix], params: Mapping[str, Any] | None = None) -> None:
        """`params`: of params.json, in the place of arguments that are made from `cfg`."""
        torch.set_num_threads(1)
        self._cfg = cfg
        with _on_a_cpu():
            args = _args(cfg) if params is None else meta().args.ModelArgs(max_batch_size=2, max_seq_len=256, **params)
            self._model = meta().model.Transformer(args).double().eval()
        wanted = self._model.state_dict()
        state = {name: torch.from_numpy(values.copy()) for name, values in meta_values(cfg, leaves).items()}
        assert {name: values.shape for name, values in state.items()} == {name: values.shape for name, values in wanted.items()}
        self._model.load_state_dict(state)

    def logits(self, tokens: Sequence[int], pictures: Sequence[Cut] = ()) -> NDArray[np.float64]:
        """Logits [T, V] of a whole prompt."""
        ids = torch.tensor([list(tokens)])
        with _on_a_cpu():
            embedding = self._pictures(ids, pictures) if pictures else None
            step = meta().datatypes.TransformerInput(ids, tokens_position=0, image_embedding=embedding)
            return self._model(step).logits[0].numpy()

    def load(self, state: Mapping[str, Any]) -> None:
        """The tensors of a file in the place of the weights."""
        self._model.load_state_dict({name: values.double() for name, values in state.items()}, strict=True)

    def steps(self, tokens: Sequence[int]) -> NDArray[np.float64]:
        """The same, token by token."""
        with _on_a_cpu():
            steps = [meta().datatypes.TransformerInput(torch.tensor([[token]]), tokens_position=at) for at, token in enumerate(tokens)]
            return torch.cat([self._model(step).logits[0] for step in steps]).numpy()

    def _pictures(self, ids: Any, pictures: Sequence[Cut]) -> Any:
        """What their generation makes of pictures: features where the mask is."""
        assert self._cfg.vision is not None
        mask = (ids == self._cfg.vision.picture_token).unsqueeze(-1)
        batch = [[torch.from_numpy(each.pixels).double() for each in pictures]]
        reference = torch.zeros(*ids.shape, self._cfg.width)
        return meta().datatypes.MaskedEmbedding(self._model.vision_embeddings(batch, mask, reference), mask)


def _args(cfg: Llama4Config) -> Any:
    args = meta().args
    scaling: Any = cfg.rope.scaling
    vision = cfg.vision and args.VisionArgs(
        image_size=args.Size(height=cfg.vision.tile, width=cfg.vision.tile),
        patch_size=args.Size(height=cfg.vision.patch, width=cfg.vision.patch),
        dim=cfg.vision.width,
        n_layers=cfg.vision.num_layers,
        n_heads=cfg.vision.num_heads,
        mlp_ratio=cfg.vision.ffn_width / cfg.vision.width,
        output_dim=cfg.vision.adapter_width,
        pixel_shuffle_ratio=1 / cfg.vision.merge,
    )
    without = [layer for layer in range(cfg.num_layers) if layer not in cfg.rotary_layers]
    step = cfg.expert_layers[0] + 1 if cfg.expert_layers else 0
    return args.ModelArgs(
        dim=cfg.width,
        n_layers=cfg.num_layers,
        n_heads=cfg.num_heads,
        n_kv_heads=cfg.num_kv_heads,
        vocab_size=cfg.vocab_size,
        multiple_of=32,
        ffn_dim_multiplier=1.2,
        ffn_exp=4.0,
        norm_eps=cfg.norm_eps,
        attention_chunk_size=cfg.chunk,
        rope_theta=cfg.rope.theta,
        use_scaled_rope=scaling is not None,
        rope_scaling_factor=scaling and scaling.factor,
        rope_high_freq_factor=scaling and scaling.high_freq_factor,
        nope_layer_interval=without[0] + 1 if without else None,
        use_qk_norm=cfg.qk_norm,
        attn_temperature_tuning=bool(cfg.temper_scale),
        floor_scale=cfg.temper_floor,
        attn_scale=cfg.temper_scale,
        vision_args=vision or None,
        moe_args=args.MoEArgs(num_experts=cfg.num_experts, top_k=cfg.num_chosen, interleave_moe_layer_step=step) if step else None,
        max_batch_size=2,
        max_seq_len=256,
    )


def meta_values(cfg: Llama4Config, leaves: Mapping[str, Matrix]) -> dict[str, NDArray[np.float64]]:
    """Weights under the names that Meta's modules have in memory, which are not those of its files."""
    arrays = Arrays(np.dtype(np.float64))
    found = {}
    for spec in llama4.tensors(cfg):
        leaf = leaves[spec.name]
        assert not isinstance(leaf, Adapted)
        values = np.asarray(arrays.get(leaf), np.float64)
        if ".experts." in spec.name:
            values = values.swapaxes(1, 2)
        elif spec.name.endswith(".router"):
            values = values.T
        elif spec.name == "vision.class":
            values = values[0]
        found[_name(spec.name)] = values
    return found


_WHOLE = {
    "embed": "tok_embeddings.weight",
    "norm": "norm.weight",
    "head": "output.weight",
    "vision.patches": "vision_embeddings.vision_encoder.conv1._linear.weight",
    "vision.class": "vision_embeddings.vision_encoder.class_embedding",
    "vision.positions": "vision_embeddings.vision_encoder.positional_embedding_vlm",
    "vision.first_norm": "vision_embeddings.vision_encoder.ln_pre.weight",
    "vision.first_norm_bias": "vision_embeddings.vision_encoder.ln_pre.bias",
    "vision.last_norm": "vision_embeddings.vision_encoder.ln_post.weight",
    "vision.last_norm_bias": "vision_embeddings.vision_encoder.ln_post.bias",
    "vision.adapter.in": "vision_embeddings.vision_adapter.mlp.c_fc.weight",
    "vision.adapter.out": "vision_embeddings.vision_adapter.mlp.c_proj.weight",
    "vision.projection": "vision_projection.weight",
}
_TEXT = {
    "attention_norm": "attention_norm.weight",
    "attention.q": "attention.wq.weight",
    "attention.k": "attention.wk.weight",
    "attention.v": "attention.wv.weight",
    "attention.out": "attention.wo.weight",
    "ffn_norm": "ffn_norm.weight",
    "ffn.gate": "feed_forward.w1.weight",
    "ffn.up": "feed_forward.w3.weight",
    "ffn.down": "feed_forward.w2.weight",
    "router": "feed_forward.router_DE",
    "experts.gate": "feed_forward.experts.w1",
    "experts.up": "feed_forward.experts.w3",
    "experts.down": "feed_forward.experts.w2",
    "shared.gate": "feed_forward.shared_expert.w1.weight",
    "shared.up": "feed_forward.shared_expert.w3.weight",
    "shared.down": "feed_forward.shared_expert.w2.weight",
}
_VISION = {
    "attention_norm": "ln_1",
    "attention.q": "attn.wq",
    "attention.k": "attn.wk",
    "attention.v": "attn.wv",
    "attention.out": "attn.wo",
    "ffn_norm": "ln_2",
    "ffn.up": "mlp.c_fc",
    "ffn.down": "mlp.c_proj",
}


def _name(ours: str) -> str:
    if ours in _WHOLE:
        return _WHOLE[ours]
    vision, _, layer = ours.rpartition("layers.")
    index, rest = layer.split(".", 1)
    if not vision:
        return f"layers.{index}.{_TEXT[rest]}"
    kind = "bias" if rest.endswith("_bias") else "weight"
    return f"vision_embeddings.vision_encoder.transformer.resblocks.{index}.{_VISION[rest.removesuffix('_bias')]}.{kind}"
