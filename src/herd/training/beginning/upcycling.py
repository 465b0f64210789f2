"""A dense llama becomes a Llama 4 with experts that computes the same at first (sparse upcycling, arXiv 2212.05055).

    shared expert     the dense feed-forward itself
    routed experts    its gate and up with a part of their rows drawn anew (arXiv 2502.19261), so that experts can differ; their down is 0,
                      so that they add nothing until they have learned something
    router            random, small
    everything else   as it was: rotation in every layer, no chunks, no q/k norm, no temperature

The logits at the start are those of the dense model, to the bit on one backend.
"""

from __future__ import annotations

import torch

from herd.dtypes import F32
from herd.errors import UsageError
from herd.models.architecture import Config, shared_fields
from herd.models.llama import LlamaConfig
from herd.models.llama4 import Llama4Config, every, tensors
from herd.models.weights import Adapted, Dense, Leaf, Matrix
from herd.quant import dequantize
from herd.records import dataclass
from herd.training.beginning.initialising import initial_value
from herd.training.keyed import generator
from herd.training.settings.initial import InitialSettings
from herd.training.settings.reading import need
from herd.training.student.model import dense


@dataclass(frozen=True, slots=True, kw_only=True)
class UpcyclingSettings:
    """How experts are made of a feed-forward.

    experts  how many in each layer that gets them
    chosen   experts that a token goes to, besides the shared one
    every    the last of each so many layers gets them
    drawn    share of the rows of each expert's gate and up that is drawn anew
    std      standard deviation of the router, and of rows that are drawn
    seed     what is drawn comes from
    """

    experts: int = 4
    chosen: int = 1
    every: int = 1
    drawn: float = 0.25
    std: float = 0.02
    seed: int = 0

    def __post_init__(self) -> None:
        need(self.experts >= 1, "experts", self.experts, "a whole number, 1 or more")
        need(1 <= self.chosen <= self.experts, "chosen", self.chosen, f"1 to {self.experts}, as there are experts")
        need(self.every >= 1, "every", self.every, "a whole number, 1 or more")
        need(0 <= self.drawn <= 1, "drawn", self.drawn, "a share from 0 to 1")
        need(0 < self.std < 1, "std", self.std, "a number between 0 and 1")


def upcycled_config(cfg: Config, settings: UpcyclingSettings) -> Llama4Config:
    """The architecture with experts. `UsageError` for a model that is no dense llama, or has what a Llama 4 has not."""
    if not isinstance(cfg, LlamaConfig):
        raise UsageError("Only dense models of the llama architecture become experts; this one is of another.")
    if cfg.ffn_bias:
        raise UsageError("This model's feed-forward has biases, which a Llama 4 has not.")
    if settings.every > cfg.num_layers:
        raise UsageError(f"every is {settings.every}; the model has {cfg.num_layers} layers, so none would get experts.", param="every")
    layers = tuple(range(cfg.num_layers))
    return Llama4Config(
        **shared_fields(cfg, Llama4Config),
        expert_width=cfg.ffn_width,
        num_experts=settings.experts,
        num_chosen=settings.chosen,
        expert_layers=every(settings.every, cfg.num_layers),
        rotary_layers=layers,
        chunked_layers=(),
        chunk=None,
        qk_norm=False,
    )


def upcycled_leaf(cfg: LlamaConfig, leaf: Leaf, settings: UpcyclingSettings) -> Leaf:
    """The weights of `upcycled_config(cfg)`, from those of the dense model."""
    target = upcycled_config(cfg, settings)
    specs = {spec.name: spec for spec in tensors(target)}

    def made(name: str) -> Matrix:
        layer, _, part = name.rpartition(".experts.")
        if layer:
            return _experts(values_of(leaf(f"{layer}.ffn.{part}")), part, name, settings)
        if name.endswith(".router"):
            return dense(initial_value(specs[name], settings.seed, InitialSettings(std=settings.std), cfg.num_layers), F32)
        return leaf(name.replace(".shared.", ".ffn."))

    return made


def values_of(leaf: Matrix) -> torch.Tensor:
    """A weight's values, float32. `UsageError` for one that carries an adapter."""
    if isinstance(leaf, Adapted):
        raise UsageError("A weight carries an adapter; merge it first.")
    return torch.from_numpy(dequantize(leaf.dtype, leaf.data, leaf.shape))


def _experts(value: torch.Tensor, part: str, name: str, settings: UpcyclingSettings) -> Dense:
    """The stack of one of the three matrices."""
    if part == "down":
        return dense(torch.zeros(settings.experts, *value.shape), F32)
    stack = value[None].repeat(settings.experts, 1, 1)
    for expert in range(settings.experts):
        # gate and up of an expert are drawn anew in the same rows
        chosen = torch.rand(len(value), generator=generator(settings.seed, "rows", name.rpartition(".")[0], expert)) < settings.drawn
        fresh = torch.empty_like(value).normal_(0.0, settings.std, generator=generator(settings.seed, "expert", name, expert))
        stack[expert] = torch.where(chosen[:, None], fresh, value)
    return dense(stack, F32)
