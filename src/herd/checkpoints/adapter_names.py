"""What `peft` calls the matrices that an adapter updates: the modules of `transformers`, as they are called in memory there."""

from __future__ import annotations

from herd.checkpoints import mllama_names, names
from herd.checkpoints.huggingface_llama4 import NAMES as LLAMA4_WITH_VISION
from herd.checkpoints.huggingface_muse_glimmer import NAMES as MUSE_GLIMMER
from herd.models.architecture import Config, architecture_of
from herd.models.llama3_vision import Llama3VisionConfig
from herd.models.llama4 import Llama4Config
from herd.models.muse_glimmer import MuseGlimmerConfig
from herd.models.weights import Kind, TensorSpec

NO_LINEAR_MODULES = frozenset(("vision.patches",))
"""Matrices that are a convolution there, or no module at all."""


def modules(cfg: Config) -> dict[str, TensorSpec]:
    """Every matrix that can have an update, by the name of its module."""
    specs = [spec for spec in architecture_of(cfg).tensors(cfg) if spec.kind is Kind.MATRIX and spec.name not in NO_LINEAR_MODULES]
    found: dict[str, TensorSpec] = {}
    for spec in specs:
        name = _in_file(cfg, spec.name)
        if name is not None and name.endswith(".weight"):
            found[name.removesuffix(".weight")] = spec
    return found


def as_in_memory(module: str) -> str:
    """A module's name as newer versions of `transformers` have it, where older ones (and published files) have another."""
    for memory, published in mllama_names.SPELLINGS:
        if module.startswith(published):
            return memory + module.removeprefix(published)
    return module


def _in_file(cfg: Config, name: str) -> str | None:
    if isinstance(cfg, Llama3VisionConfig):
        return as_in_memory(mllama_names.in_huggingface(cfg, name))
    table = names.HUGGING_FACE
    if isinstance(cfg, Llama4Config):
        table = names.HUGGING_FACE_LLAMA4 if cfg.vision is None else LLAMA4_WITH_VISION
    elif isinstance(cfg, MuseGlimmerConfig):
        table = MUSE_GLIMMER
    return names.in_file(table, name) if names.pattern(name) in table else None
