"""What a model module offers, and how to get from a config to its module.

A config's module is its architecture: `architecture_of(cfg).forward` is the function that defines the model. Adding an
architecture is adding a module with a config class and these functions; nothing else has a list of them.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields
from typing import Any, Protocol, cast

from herd.models.ops import PictureOps, PictureStep, Step, Tensor, Window
from herd.models.weights import Leaf, TensorSpec
from herd.records import dataclass


class Config(Protocol):
    """What every config of a language model has, whatever the architecture."""

    @property
    def width(self) -> int: ...
    @property
    def num_layers(self) -> int: ...
    @property
    def vocab_size(self) -> int: ...
    @property
    def context_length(self) -> int: ...


def shared_fields(cfg: Config, kind: type) -> dict[str, Any]:
    """What a config says of the fields that another kind of config has too, to make one of that kind."""
    theirs = {field.name for field in fields(kind)}
    return {field.name: getattr(cfg, field.name) for field in fields(cast(Any, cfg)) if field.name in theirs}


@dataclass(frozen=True, slots=True)
class CacheShape:
    """What one attending layer keeps of each token: a key and a value per kv head, read by `num_heads` query heads. `window`:
    how far tokens look back (None: to the first)."""

    num_heads: int
    num_kv_heads: int
    head_width: int
    window: Window | None = None

    @property
    def reach(self) -> int | None:
        """No later token looks further back than this many tokens; None: to the first."""
        return None if self.window is None else self.window.tokens


class Architecture(Protocol):
    """A module of `herd.models`, seen from outside."""

    def tensors(self, cfg: Any) -> Iterator[TensorSpec]:
        """Every weight of this model, once."""
        ...

    def weights(self, cfg: Any, leaf: Leaf) -> Any:
        """The tree that `forward` reads."""
        ...

    def caches(self, cfg: Any) -> tuple[CacheShape, ...]:
        """One entry for each place that `forward` finds in `step.cache`."""
        ...

    def forward(self, w: Any, cfg: Any, step: Step) -> Tensor:
        """This step's tokens -> logits_RV of the rows in `step.outputs_R`: `logits` of `hidden`."""
        ...

    def hidden(self, w: Any, cfg: Any, step: Step) -> Tensor:
        """This step's tokens -> x_RD after the last norm, of the rows in `step.outputs_R`."""
        ...

    def logits(self, x_RD: Tensor, w: Any, cfg: Any, step: Step) -> Tensor:
        """Rows after the last norm -> logits_RV."""
        ...


class Seeing(Architecture, Protocol):
    """An architecture that takes pictures too."""

    def has_pictures(self, cfg: Any) -> bool:
        """Whether this config has a vision part."""
        ...

    def preparation(self, cfg: Any) -> tuple[str, Mapping[str, int]]:
        """How pictures are cut for this model: the name and the numbers that `herd.images.pixels.prepare` takes."""
        ...

    def num_crossing(self, cfg: Any) -> int:
        """How many layers cross over to pictures; 0 for early fusion."""
        ...

    def encode(self, w: Any, cfg: Any, step: PictureStep) -> Sequence[Tensor]:
        """One picture -> what the backend keeps of it and shows to `forward`: for early fusion one tensor, rows_ID for the
        picture tokens in order; for cross-attention the keys and values of each crossing layer, k_IKH then v_IKH."""
        ...

    def picture_positions(self, cfg: Any, tokens: Sequence[int], shapes: Sequence[PictureShape]) -> list[tuple[int, ...]]:
        """For each picture, in order, the positions among `tokens` that stand for it. `UsageError` when ids and pictures do not
        fit together."""
        ...


@dataclass(frozen=True, slots=True)
class PictureShape:
    """How a picture was cut: `tiles` pieces of `height` x `width` pixels, in a grid of `rows` x `columns` (a further tile is the
    whole picture, small)."""

    tiles: int
    height: int
    width: int
    rows: int
    columns: int


class Classifying(Protocol):
    """A module that reads whole texts and gives each a number per label; it has no next token."""

    def classify(self, w: Any, cfg: Any, ops: PictureOps, tokens: Sequence[int]) -> Tensor:
        """All tokens of a text -> logits [1, labels]."""
        ...


def architecture_of(cfg: Config) -> Architecture:
    """The module that defines the config's class."""
    return cast(Architecture, sys.modules[type(cfg).__module__])


def num_embeddings(cfg: Config) -> int:
    """How many token ids a model can be given: the rows of its embedding. `vocab_size` is the width of its logits, which may be less."""
    return next(spec.shape[0] for spec in architecture_of(cfg).tensors(cfg) if spec.name == "embed")


def classifying(cfg: Config) -> Classifying | None:
    """The module, if this model is a classifier."""
    module = cast(Any, architecture_of(cfg))
    return cast(Classifying, module) if hasattr(module, "classify") else None


def seeing(cfg: Config) -> Seeing | None:
    """The same, if this model takes pictures."""
    module = cast(Any, architecture_of(cfg))
    return cast(Seeing, module) if hasattr(module, "encode") and module.has_pictures(cfg) else None
