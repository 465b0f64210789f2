"""Llama 3.2 Vision as Meta's own modules define it, small, on a CPU, in float64.

`llama_models` needs fairscale for matrices that are spread over many devices and torchvision for pictures. On one device such a matrix
is a plain one and exchanging parts does nothing, so the modules are imported with plain matrices in fairscale's place; pictures
come prepared. Where they fall back to float32 (norms, rotary angles, logits) float64 is put in.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from herd.backends.base import Picture, Placed
from herd.backends.reference.arrays import Arrays
from herd.checkpoints.mllama_names import META_EMBED, in_meta
from herd.models.llama3_vision import Llama3VisionConfig, tensors
from herd.models.weights import Matrix


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


@contextmanager
def one_device() -> Iterator[None]:
    """Modules for what cannot be imported here, as long as Meta's are being imported."""
    ranks = {
        "get_model_parallel_world_size": lambda: 1,
        "get_model_parallel_rank": lambda: 0,
        "get_model_parallel_group": lambda: None,
    }
    initialize = _module("fairscale.nn.model_parallel.initialize", **ranks)
    parallel = _module("fairscale.nn.model_parallel", initialize=initialize)
    functional = _module("torchvision.transforms.functional")
    made = [
        _module("fairscale"),
        _module("fairscale.nn", model_parallel=parallel),
        parallel,
        initialize,
        _module(
            "fairscale.nn.model_parallel.layers",
            ColumnParallelLinear=_Linear,
            RowParallelLinear=_Linear,
            VocabParallelEmbedding=_Embedding,
        ),
        _module("torchvision"),
        _module("torchvision.transforms", functional=functional),
        functional,
    ]
    before = {each.__name__: sys.modules.get(each.__name__) for each in made}
    sys.modules.update({each.__name__: each for each in made})
    try:
        yield
    finally:
        for name, module in before.items():
            del sys.modules[name]
            if module is not None:
                sys.modules[name] = module


@cache
def meta() -> SimpleNamespace:
    """Meta's modules: `model` (multimodal), `args`, `chat` (which tokens see which picture)."""
    with one_device():
        model, text, args, chat = (
            importlib.import_module(f"llama_models.llama3.{name}") for name in ("multimodal.model", "model", "args", "chat_format")
        )
    for name in ("reduce_from_tensor_model_parallel_region", "gather_from_tensor_model_parallel_region"):
        setattr(model, name, lambda x: x)
    text.RMSNorm.forward = lambda norm, x: norm._norm(x) * norm.weight
    model.apply_rotary_emb = _rotated
    return SimpleNamespace(model=model, args=args, chat=chat)


def _rotated(q: Any, k: Any, turns: Any) -> tuple[Any, Any]:
    def turned(x: Any) -> Any:
        pairs = torch.view_as_complex(x.reshape(*x.shape[:-1], -1, 2))
        return torch.view_as_real(pairs * turns[None, :, None]).flatten(3)

    return turned(q), turned(k)


@contextmanager
def _float64() -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        with torch.inference_mode():
            yield
    finally:
        torch.set_default_dtype(before)


class MetaModel:
    """The same weights in Meta's modules."""

    def __init__(self, cfg: Llama3VisionConfig, leaves: Mapping[str, Matrix]) -> None:
        torch.set_num_threads(1)  # for models this small, more threads only wait for each other
        self._cfg = cfg
        vision, code = cfg.vision, meta().model
        args = meta().args.ModelArgs(
            dim=cfg.width,
            n_layers=cfg.num_layers,
            n_heads=cfg.num_heads,
            n_kv_heads=cfg.num_kv_heads,
            vocab_size=cfg.vocab_size,
            multiple_of=cfg.ffn_width,
            norm_eps=cfg.norm_eps,
            max_batch_size=4,
            max_seq_len=cfg.context_length,
            vision_chunk_size=vision.tile,
            vision_max_num_chunks=vision.max_tiles,
            vision_num_cross_attention_layers=len(cfg.crossing),
        )
        with _float64():
            self._text = code.CrossAttentionTransformerText(args)
            self._encoder = code.VisionEncoder(
                max_num_tiles=vision.max_tiles,
                image_size=vision.tile,
                patch_size=vision.patch,
                width=vision.width,
                layers=vision.num_layers,
                heads=vision.num_heads,
                mlp_ratio=vision.ffn_width / vision.width,
                n_global_layers=vision.num_global_layers,
                global_model=True,
                return_intermediate=list(vision.kept),
            )
            self._projection = torch.nn.Linear(vision.num_features, cfg.width)
            self._load(meta_values(cfg, leaves))
            angles = torch.outer(torch.arange(cfg.context_length * 2).double(), torch.tensor(cfg.rope.frequencies()).double())
            self._text.freqs_cis = torch.polar(torch.ones_like(angles) * cfg.rope.magnitude, angles)
            self._text.norm.register_forward_hook(lambda module, given, out: self._hidden.append(out))
        assert tuple(self._text.fusion_schedule) == cfg.crossing

    def _load(self, values: Mapping[str, NDArray[np.float64]]) -> None:
        """Every parameter of the modules gets a value, and every value has a parameter."""
        parameters = {start + name: value for start, part in self._parts().items() for name, value in part.named_parameters()}
        assert parameters.keys() == values.keys()
        for name, parameter in parameters.items():
            parameter.copy_(torch.from_numpy(values[name]).reshape(parameter.shape))

    def load(self, state: Mapping[str, Any]) -> None:
        """The tensors of a file in the place of the weights, each in its own shape."""
        shapes = {start + name: value.shape for start, part in self._parts().items() for name, value in part.named_parameters()}
        assert shapes == {name: values.shape for name, values in state.items()}
        with _float64():
            self._load({name: values.double().numpy() for name, values in state.items()})

    def _parts(self) -> dict[str, torch.nn.Module]:
        """The modules, by how the names of their tensors begin in files."""
        return {
            "text_model.": self._text,
            "vision_model.vision_encoder.": self._encoder,
            "vision_model.vision_projection.": self._projection,
        }

    def keys_and_values(self, picture: Picture) -> list[NDArray[np.float64]]:
        """Of each crossing block the keys and the values [I, K, H] of the picture's used tiles."""
        rows = self.features([Placed(picture, (0,))])[:, : len(picture.pixels)].reshape(1, -1, self._cfg.width)
        found: list[NDArray[np.float64]] = []
        with _float64():
            for layer in self._text.cross_attention_layers:
                for repeated in layer.compute_xattn_kv_cache(rows):  # [1, N, I, H]: each kv head as often as it is read
                    once = repeated[0, :: self._cfg.num_heads // self._cfg.num_kv_heads]
                    found.append(once.transpose(0, 1).numpy())
        return found

    def features(self, pictures: Sequence[Placed]) -> torch.Tensor:
        """Projected rows of all tiles, unused ones too [pictures, max_tiles, tile rows, D]."""
        side = self._cfg.vision.tile
        tiles = [torch.from_numpy(placed.picture.pixels).double() for placed in pictures]
        grids = torch.tensor([[[placed.picture.rows, placed.picture.columns] for placed in pictures]])
        with _float64():
            stacked, _ = meta().model._stack_images([tiles], self._cfg.vision.max_tiles, side, len(tiles))
            return self._projection(self._encoder(stacked, grids))[0]

    def logits(self, tokens: Sequence[int], pictures: Sequence[Placed] = ()) -> NDArray[np.float64]:
        """Logits [T, V] of a whole prompt. Tokens that stand for a picture are translated as Meta's chat format does it."""
        picture_id = self._cfg.picture_id
        ids = [picture_id if token in self._cfg.picture_aliases else token for token in tokens]
        self._hidden: list[torch.Tensor] = []
        with _float64():
            positions = torch.arange(len(ids))
            self._text.setup_cache(1, torch.device("cpu"), torch.float64)
            embedded = self._text.get_partially_trainable_embedding(torch.tensor([ids]))
            seen = self._seen(ids, pictures) if pictures else (None, None, [None] * len(self._cfg.crossing))
            self._text(positions, embedded, *seen, text_only_inference=not pictures)
            return (self._hidden[0] @ self._text.output.weight.T)[0].numpy()

    def _seen(self, ids: Sequence[int], pictures: Sequence[Placed]) -> tuple[Any, Any, Any]:
        """Masks and the keys and values of the pictures, as `CrossAttentionTransformer` makes them."""
        rows = self.features(pictures)[None]
        crossing = self._text.cross_attention_layers
        found = torch.stack([layer.compute_xattn_kv_cache(rows.reshape(1, -1, rows.shape[-1])) for layer in crossing])
        spans = meta().chat.create_vision_mask(list(ids), self._cfg.picture_id)
        padded = meta().model._pad_masks([spans], [[len(placed.picture.pixels) for placed in pictures]], len(ids), rows.shape[2])
        mask, row_mask = self._text._get_xattn_mask(len(ids), "cpu", torch.float64, rows, padded)
        return mask, row_mask, found


def meta_values(cfg: Llama3VisionConfig, leaves: Mapping[str, Matrix]) -> dict[str, NDArray[np.float64]]:
    """All weights in float64 under the names of Meta's files; shapes are ours."""
    arrays, found = Arrays(np.dtype(np.float64)), {}
    for spec in tensors(cfg):
        values = np.array(arrays.get(leaves[spec.name]), np.float64)
        if spec.name == "embed":
            found |= dict(zip(META_EMBED, (values[: cfg.vocab_size], values[cfg.vocab_size :]), strict=True))
        else:
            found[in_meta(spec.name)] = values
    return found
