"""What each architecture becomes in each layout: a table of functions, one module for each architecture."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NoReturn

from herd.checkpoints.checkpoint import Checkpoint
from herd.convert import deberta_layouts as deberta
from herd.convert import llama4_layouts as llama4
from herd.convert import llama_layouts as llama
from herd.convert import mllama_layouts as mllama
from herd.convert import muse_glimmer_layouts as muse_glimmer
from herd.convert.shaping import Shaping
from herd.convert.streams import Output
from herd.errors import UsageError

Outputs = Callable[[Checkpoint, Shaping], list[Output]]


@dataclass(frozen=True, slots=True)
class Layouts:
    """The functions of one architecture. Each takes the config as `named` gives it, and adds to a list of notes what gets lost."""

    named: Callable[[Any, list[str]], Any]
    huggingface_config: Callable[[Any], dict[str, Any]]
    huggingface_outputs: Outputs
    meta_params: Callable[[Any, list[str]], dict[str, Any]]
    meta_outputs: Outputs
    gguf_outputs: Callable[[Checkpoint, Any, Shaping], tuple[dict[str, Any], list[Output]]]


def _unchanged(config: Any, _notes: list[str]) -> Any:
    return config


def _refused(message: str) -> Callable[..., NoReturn]:
    """A function that refuses a layout which an architecture does not have."""

    def refuse(*_: object) -> NoReturn:
        raise UsageError(message)

    return refuse


_LLAMA = Layouts(
    named=llama.named_scaling,
    huggingface_config=llama.huggingface_config,
    huggingface_outputs=llama.huggingface_outputs,
    meta_params=llama.meta_params_of,
    meta_outputs=llama.meta_outputs,
    gguf_outputs=llama.gguf_outputs,
)
_LLAMA4 = Layouts(
    named=llama.named_scaling,
    huggingface_config=llama4.huggingface_config,
    huggingface_outputs=llama4.huggingface_outputs,
    meta_params=llama4.meta_params_of,
    meta_outputs=llama4.meta_outputs,
    gguf_outputs=llama4.gguf_outputs,
)
_LLAMA3_VISION = Layouts(
    named=_unchanged,
    huggingface_config=mllama.huggingface_config,
    huggingface_outputs=mllama.huggingface_outputs,
    meta_params=mllama.meta_params_of,
    meta_outputs=mllama.meta_outputs,
    gguf_outputs=_refused(mllama.NO_GGUF),
)
_MUSE_GLIMMER = Layouts(
    named=_unchanged,
    huggingface_config=muse_glimmer.huggingface_config,
    huggingface_outputs=muse_glimmer.huggingface_outputs,
    meta_params=_refused(muse_glimmer.NO_META),
    meta_outputs=_refused(muse_glimmer.NO_META),
    gguf_outputs=_refused(muse_glimmer.NO_GGUF),
)
_DEBERTA = Layouts(
    named=_unchanged,
    huggingface_config=deberta.huggingface_config,
    huggingface_outputs=deberta.huggingface_outputs,
    meta_params=_refused(deberta.NO_META),
    meta_outputs=_refused(deberta.NO_META),
    gguf_outputs=_refused(deberta.NO_GGUF),
)
_BY_ARCHITECTURE = {
    "llama": _LLAMA,
    "llama4": _LLAMA4,
    "llama3_vision": _LLAMA3_VISION,
    "muse_glimmer": _MUSE_GLIMMER,
    "deberta-v2": _DEBERTA,
}


def layouts_of(checkpoint: Checkpoint) -> Layouts:
    """How this checkpoint's architecture is written. `UsageError` for one that is not."""
    if checkpoint.architecture not in _BY_ARCHITECTURE:
        known = ", ".join(_BY_ARCHITECTURE)
        raise UsageError(f"Models of the architecture {checkpoint.architecture} cannot be converted; these can: {known}.")
    return _BY_ARCHITECTURE[checkpoint.architecture]
