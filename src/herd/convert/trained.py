"""Weights that were trained, written as a model: a Hugging Face folder that herd, `transformers` and `herd convert` read."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace
from pathlib import Path

from herd.checkpoints.checkpoint import About, Checkpoint, TokenizerSource
from herd.checkpoints.stored import InMemory
from herd.convert.conversion import Report, to_huggingface
from herd.convert.shaping import Shaping
from herd.dtypes import DType
from herd.errors import UsageError
from herd.family.progress import Progress, silent
from herd.models.architecture import Config, architecture_of
from herd.models.weights import Adapted, Matrix
from herd.planner.notices import UNKNOWN


def write_trained(
    destination: Path,
    cfg: Config,
    leaves: Mapping[str, Matrix],
    *,
    tokenizer: TokenizerSource | None = None,
    chat_template: str | None = None,
    stop_ids: Collection[int] = (),
    is_taught: bool = False,
    beside: Path | None = None,
    dtype: DType | None = None,
    progress: Progress = silent,
) -> Report:
    """A new folder with config, weights and tokenizer.

    leaves     all weights of `cfg`, by name
    is_taught  whether template and ends of answers are those of training, and win over what lies beside the tokenizer
    beside     the model that training began with, a folder or a file: its licence and notices are carried along, and tokenizer files;
               None: it began with nothing, and no licence is missed
    dtype      plain numbers of matrices; None: as `leaves` have them

    `UsageError` if the folder exists, for weights that carry adapters and for what the layout cannot hold; `CapacityError` for the disk.
    """
    module = architecture_of(cfg)
    sources = {}
    for spec in module.tensors(cfg):
        leaf = leaves[spec.name]
        if isinstance(leaf, Adapted):
            raise UsageError(f"{spec.name} carries an adapter; merge it first.")
        assert tuple(leaf.shape) == spec.shape, "a weight of the shape that the config says"
        sources[spec.name] = InMemory(leaf)
    checkpoint = Checkpoint(
        path=beside or destination,
        layout="huggingface",
        config=cfg,
        specs=tuple(module.tensors(cfg)),
        sources=sources,
        files=(),
        about=About(facts={}, tokenizer=tokenizer, chat_template=chat_template, stop_ids=tuple(stop_ids), is_taught=is_taught),
        architecture=type(cfg).__module__.rpartition(".")[2],
    )
    report = to_huggingface(checkpoint, Shaping(dtype), destination, progress)
    return report if beside is not None else replace(report, notes=tuple(note for note in report.notes if note != UNKNOWN))
