"""The weights of a model that has learned nothing yet, as the Llamas and `transformers` begin.

    matrices, tables, head, experts, routers   normal, mean 0, standard deviation `std`
    norms 1 · biases 0 · gates 0               so that a crossing layer begins by adding nothing
    tables of the part that sees pictures      normal, standard deviation width^-0.5
    with `by_depth`                            what is added to the stream is smaller by sqrt(2 x layers) (GPT-2)

Each weight's random numbers come from the seed and its own name: nothing depends on the order of making, or on what else there is.
"""

from __future__ import annotations

import torch

from herd.dtypes import F32
from herd.errors import UsageError
from herd.models.architecture import Config, architecture_of
from herd.models.weights import Dense, Kind, Leaf, TensorSpec
from herd.training.keyed import generator
from herd.training.settings.initial import InitialSettings
from herd.training.student.model import dense

ARCHITECTURES = ("llama", "llama4", "llama3_vision")
INTO_THE_STREAM = ("out", "down")


def initial_leaf(cfg: Config, seed: int, how: InitialSettings | None = None) -> Leaf:
    """A function from names of `cfg`'s weights to their first values, float32. `UsageError` for an architecture that is not pretrained."""
    settings = how or InitialSettings()
    module = architecture_of(cfg)
    name = module.__name__.rpartition(".")[2] if hasattr(module, "__name__") else ""
    if name not in ARCHITECTURES:
        raise UsageError(f"Models of the architecture {name} are not trained from nothing; these are: {', '.join(ARCHITECTURES)}.")
    specs = {spec.name: spec for spec in module.tensors(cfg)}

    def leaf(wanted: str) -> Dense:
        return dense(initial_value(specs[wanted], seed, settings, cfg.num_layers), F32)

    return leaf


def initial_value(spec: TensorSpec, seed: int, how: InitialSettings, num_layers: int) -> torch.Tensor:
    """The first value of one weight, float32."""
    if spec.kind is Kind.NORM:
        return torch.ones(spec.shape)
    if spec.kind.is_vector:
        return torch.zeros(spec.shape)
    std = how.std
    is_seeing = spec.name.startswith("vision.")
    if is_seeing and spec.kind is Kind.EMBEDDING:
        std = spec.shape[-1] ** -0.5
    elif how.by_depth and not is_seeing and spec.name.rpartition(".")[2] in INTO_THE_STREAM:
        std /= (2 * num_layers) ** 0.5
    return torch.empty(spec.shape).normal_(0.0, std, generator=generator(seed, "initial", spec.name))
