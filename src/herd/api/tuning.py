"""A model on its way through training: opened, made a student, shown data, and written where `herd chat` finds it.

    open_tuned(name) -> Opened     .student(settings) .tokenising(learn) .document(example) .answering()
    finish(folder, opened, student) -> folder/adapter or folder/model, and what a person should know of it

Every recipe goes this way. What a finished run's folder holds is written here and nowhere else.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from herd.api.loading import load, run_behind
from herd.api.model import Model
from herd.api.pictures import Eyes
from herd.api.words import Words, words_of
from herd.backends.torch.devices import DTYPES, find_device
from herd.checkpoints.adapter import WEIGHTS, Adapter, open_adapter
from herd.checkpoints.checkpoint import Checkpoint
from herd.checkpoints.merging import stacked
from herd.checkpoints.open import open_checkpoint
from herd.checkpoints.trained import ADAPTER, MODEL, MODEL_FILE, format_taught, trained_in
from herd.convert import write_adapter
from herd.convert.notices import write_notices
from herd.convert.replaced import write_replaced
from herd.convert.shaping import fitting
from herd.convert.taught import with_format
from herd.convert.trained import write_trained
from herd.data.tokenising import Example, Tokenising
from herd.dtypes import BF16, BY_NAME, F32, DType
from herd.engine.memory import available_bytes
from herd.errors import FileProblem, UsageError
from herd.family.finding import Found, find_model
from herd.family.progress import Progress, silent
from herd.files import replacing
from herd.models.architecture import Config, classifying
from herd.models.weights import Blocks, Kind, Leaf, Matrix
from herd.models.weights import stored as stored_as
from herd.quant import dequantize, quantize
from herd.text.tokenizer import Tokenizer
from herd.training.settings.student import StudentSettings
from herd.training.student.batches import Document
from herd.training.student.checkpointing import recomputed
from herd.training.student.computing import fastest_dtype
from herd.training.student.four_bits import is_rounded
from herd.training.student.model import Student
from herd.training.student.sharing import Sharing
from herd.training.student.spread import Context

# The share of free memory that a base in blocks may take decoded, so that it is not decoded twice in each step.
KEPT_SHARE = 4
BASE_FILE = "base.gguf"
"""What updates for four bits are learned over, rounded for good."""
IN_GGUF = ("llama", "llama4")
"""Architectures whose blocks of four bits can be written."""


@dataclass(frozen=True, slots=True)
class Opened:
    """A model that training begins with.

    device    where this process trains it, if not where settings say
    earlier   what an earlier run has learned over it; base: how that one names the model
    """

    asked: str
    found: Found
    checkpoint: Checkpoint
    words: Words
    eyes: Eyes
    device: str | None = None
    earlier: Adapter | None = None
    base: str = ""

    @property
    def files(self) -> tuple[Path, ...]:
        """What the run begins with besides the model."""
        return () if self.earlier is None else (self.earlier.path / WEIGHTS,)

    @property
    def cfg(self) -> Config:
        config: Config = self.checkpoint.config
        return config

    @property
    def is_in_blocks(self) -> bool:
        """Whether its matrices are stored in blocks, to be decoded where they are used."""
        first = next(spec.name for spec in self.checkpoint.specs if spec.kind is Kind.MATRIX)
        return isinstance(self.checkpoint.leaf(first), Blocks)

    @property
    def tokenizer(self) -> Tokenizer:
        """`FileProblem` for a model without one."""
        if self.words.tokenizer is None:
            raise FileProblem(f"{self.found.name}: has no tokenizer, so texts cannot become its tokens. Give a model that came with one.")
        return self.words.tokenizer

    def student(
        self,
        settings: StudentSettings,
        seed: int,
        sharing: Sharing | None = None,
        context: Context | None = None,
        *,
        exact_tokens: bool = False,
    ) -> Student:
        """The model as these settings let it learn, or with `sharing` this process's part of it; `context` and `exact_tokens`: as
        of `Student`."""
        device = find_device(self.device or settings.device)
        if settings.qat and self.checkpoint.architecture not in IN_GGUF:
            raise UsageError(f"{self.found.name} cannot learn for four bits: GGUF has no files of its architecture to keep them in.")
        whole = self.checkpoint if self.earlier is None else self.earlier.merged_into(self.checkpoint, is_wide=True)
        leaf: Leaf = whole.leaf
        if settings.base:
            leaf = _in_blocks(self.checkpoint, BY_NAME[settings.base])
        lora = settings.lora if settings.method == "lora" else None
        dtype = fastest_dtype(device) if settings.dtype == "auto" else DTYPES[settings.dtype]
        kept = (available_bytes() or 0) // KEPT_SHARE if device.type == "cpu" and lora is not None and not settings.recompute else 0
        made = Student(
            self.cfg,
            leaf,
            device=device,
            dtype=dtype,
            lora=lora,
            seed=seed,
            keep_bytes=kept,
            four_bits=settings.qat,
            exact_tokens=exact_tokens,
            sharing=sharing,
            context=context,
        )
        if settings.recompute:
            made.run = recomputed
        return made

    def check(self, settings: StudentSettings, draws: bool) -> None:
        """`UsageError` for what cannot go on from an earlier run's updates, and for answers of another model than the one that learns.
        draws: whether answers are drawn on the way."""
        if self.earlier is None:
            return
        is_dora = bool(self.earlier.magnitudes) or settings.lora.dora
        for is_so, what in (
            (draws, "an engine that draws answers takes one adapter, and the new one would take its place"),
            (settings.method == "lora" and is_dora, "DoRA changes whole rows, so two runs cannot be added up"),
            (
                settings.method == "lora" and bool(settings.base or settings.qat),
                "a base in fewer bits would be another than the one it is of",
            ),
        ):
            if is_so:
                raise UsageError(
                    f"{self.asked} is an adapter: {what}. Put it together with its model first: herd tune merge {self.asked} NEW"
                )

    def rebased(self, student: Student) -> dict[str, Matrix]:
        """The frozen weights that it learns over which are not as the model's files have them."""
        if student.lora is None:
            return {}
        bases = {name: student.base(name) for name in student.specs}
        return {name: base for name, base in bases.items() if base.dtype is not self.checkpoint.dtype(name)}

    def tokenising(self, learn: str = "answers") -> Tokenising:
        """How samples become tokens of this model."""
        return Tokenising(self.tokenizer, self.words.chat_format, learn, self.eyes.tiles if self.eyes.can_see else None)

    def document(self, example: Example) -> Document:
        """An example with its pictures as the model looks at them."""
        if not example.pictures:
            return Document(example.tokens, example.weights)
        pictures = self.eyes.prepare([shown.image.source for shown in example.pictures])
        return Document(example.tokens, example.weights, self.eyes.place(example.tokens, pictures))

    def answering(self, **choices: Any) -> Model:
        """The same model once more, to be asked; `choices` as in `herd.load`."""
        return load(self.asked, **choices)


@contextmanager
def open_tuned(
    model: str | os.PathLike[str],
    *,
    chat_format: str | None = None,
    mmproj: str | None = None,
    device: str | None = None,
    progress: Progress = silent,
) -> Iterator[Opened]:
    """The model that `model` names, opened for training; of a run that left an adapter, with this on it. `UsageError` for classifiers."""
    named = find_model(model, progress=progress)
    found, adapter = run_behind(named, None, progress)
    checkpoint = open_checkpoint(found.path, mmproj)
    try:
        if classifying(checkpoint.config) is not None:
            raise UsageError(f"{found.name} is a classifier of whole texts; language models are tuned here.")
        asked = str(Path(model).resolve()) if Path(model).exists() and found.release is None else os.fspath(model)
        taught = chat_format or format_taught(named.path)
        words = words_of(found, checkpoint, taught)
        if taught is not None and words.chat_format is not None:
            checkpoint = with_format(checkpoint, words.chat_format)
        earlier = None if adapter is None else open_adapter(Path(adapter), checkpoint.config)
        run = trained_in(named.path)
        base = asked if earlier is None or run is None else run.model
        yield Opened(asked, found, checkpoint, words, Eyes(found.name, checkpoint.config), device, earlier, base)
    finally:
        checkpoint.close()


def finish(folder: Path, opened: Opened, student: Student) -> tuple[Path, tuple[str, ...]]:
    """Writes what was learned into a run's folder, with the texts that the licence of the model wants beside it. Where it is, and what a
    person should know of it. What an earlier end of the run left there stays until all of it is written."""
    with replacing(folder) as beside:
        name, notes = _written(beside, folder, opened, student)
        told = write_notices(beside / name, opened.checkpoint.path) if (beside / name).is_dir() else ()
    if not (folder / name).is_dir():
        told = write_notices(folder, opened.checkpoint.path)
    return folder / name, tuple(dict.fromkeys((*notes, *told)))


def _written(beside: Path, folder: Path, opened: Opened, student: Student) -> tuple[str, tuple[str, ...]]:
    """Writes what was learned into `beside`, from where it goes to `folder`: the name of what is to be loaded, and notes."""
    four_bits, checkpoint = student.adapters.four_bits, opened.checkpoint
    notes: tuple[str, ...] = ()
    if student.lora is not None:
        base, factors = opened.base, student.factors()
        if opened.earlier is not None:
            factors = stacked(opened.earlier.factors, factors)
        if four_bits:
            frozen = {name: student.base(name) for name in student.specs if is_rounded(student.specs[name])}
            notes = write_replaced(beside / BASE_FILE, checkpoint, frozen).notes
            base = str(folder.resolve() / BASE_FILE)
        write_adapter(beside / ADAPTER, opened.cfg, factors, magnitudes=student.magnitudes(), base_model=base)
        return ADAPTER, notes
    if four_bits:
        return MODEL_FILE, write_replaced(beside / MODEL_FILE, checkpoint, student.leaves(plain_dtype(checkpoint))).notes
    report = write_trained(
        beside / MODEL,
        opened.cfg,
        student.leaves(plain_dtype(checkpoint)),
        tokenizer=checkpoint.tokenizer,
        chat_template=checkpoint.chat_template,
        stop_ids=checkpoint.stop_ids,
        is_taught=checkpoint.is_taught,
        beside=checkpoint.path,
    )
    return MODEL, report.notes


def plain_dtype(checkpoint: Checkpoint) -> DType:
    """What the model's matrices are written as: float32 if they were stored in that, else bfloat16."""
    formats = {checkpoint.dtype(spec.name) for spec in checkpoint.specs if spec.kind is Kind.MATRIX}
    return F32 if formats == {F32} else BF16


def _in_blocks(checkpoint: Checkpoint, wanted: DType) -> Leaf:
    """The weights with all matrices and experts in a block format: a base that is never changed again. What is in blocks stays."""
    kinds = {spec.name: spec.kind for spec in checkpoint.specs}

    def leaf(name: str) -> Matrix:
        stored = checkpoint.leaf(name)
        if kinds[name] not in (Kind.MATRIX, Kind.EXPERTS) or stored.dtype.is_block:
            return stored
        dtype = fitting(wanted, stored.shape[-1])
        values = dequantize(stored.dtype, stored.data, stored.shape).reshape(-1, stored.shape[-1])
        return stored_as(dtype, stored.shape, quantize(dtype, values))

    return leaf
