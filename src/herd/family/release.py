"""One published model as data: what `data/*.toml` says of it, and the model's config made from that."""

from __future__ import annotations

import datetime
from collections.abc import Mapping
from dataclasses import field
from typing import TYPE_CHECKING, Any

from herd.errors import UsageError

if TYPE_CHECKING:
    from herd.models.architecture import Config
from herd.records import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """The numbers of an architecture: which module of `herd.models` defines it, and values for the fields of its config."""

    architecture: str
    numbers: Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Wheel:
    """A model file that travels inside a Python wheel: which wheel, which member, and what the member must be."""

    requirement: str
    member: str
    num_bytes: int
    sha256: str

    @property
    def file_name(self) -> str:
        """The name of the member without its folders: the name it gets in the models folder."""
        return self.member.rpartition("/")[2]


@dataclass(frozen=True, slots=True, kw_only=True)
class Release:
    """One published model.

    kind        base, instruct, guard (a language model that gives verdicts) or classifier (a head over an encoder)
    base        the release that this one was made from
    parameters  exact; `active_parameters` are those that one token meets, where that is fewer; `huggingface_parameters` are what the
                Hugging Face layout stores, where that is another number
    inputs, outputs, languages, image_languages   what it takes and gives; the last: languages for questions about images
    gpu_hours   of pretraining, on `gpu`; `knowledge_cutoff` is year-month
    layouts     in which files it is published: huggingface, meta (`meta_shards` of them), gguf, executorch, bitsandbytes
    storage     the number format of its weights; `quantised` says what was quantised and how
    repository  its id on the hub; `meta_repository` where Meta's layout has another
    sampling    its publisher's recommended values
    unavailable, unverified   why it cannot be pulled; what of it is built from a description only
    is_released, announced    False for what was announced and never published, and what was announced
    sources     for each figure, where it is from
    """

    name: str
    generation: str
    title: str
    kind: str
    licence: str
    licence_id: str
    released: datetime.date
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    vocabulary: str
    gated: bool
    layouts: tuple[str, ...]
    storage: str
    sources: Mapping[str, str]
    shape: Shape | None = None
    parameters: int | None = None
    active_parameters: int | None = None
    huggingface_parameters: int | None = None
    context_length: int | None = None
    rope_theta: float | None = None
    rope_factor: float | None = None
    rope_low: float | None = None
    rope_high: float | None = None
    norm_eps: float | None = None
    languages: tuple[str, ...] = ()
    image_languages: tuple[str, ...] = ()
    labels: tuple[str, ...] = ()
    base: str | None = None
    knowledge_cutoff: str | None = None
    pretraining_tokens: int | None = None
    gpu_hours: int | None = None
    gpu: str | None = None
    meta_shards: int | None = None
    quantised: str | None = None
    can_infill: bool = False
    repository: str | None = None
    meta_repository: str | None = None
    chat_format: str | None = None
    sampling: Mapping[str, float] | None = None
    wheel: Wheel | None = None
    unavailable: str | None = None
    unverified: str | None = None
    note: str | None = None
    is_released: bool = True
    announced: Mapping[str, str] = field(default_factory=dict)

    def config(self) -> Config:
        """The architecture as published, for sums about a model that is not here. `UsageError` where the shape is not known."""
        if self.shape is None:
            raise UsageError(f"The shape of {self.name} is not known: {self.unavailable or 'it was never published'}.")
        from herd.family.shapes import config_of

        return config_of(self, self.shape)

    def is_takeable(self) -> bool:
        """Whether somebody serves it in a layout that can be pulled."""
        return self.unavailable is None and (self.repository is not None or self.wheel is not None)
