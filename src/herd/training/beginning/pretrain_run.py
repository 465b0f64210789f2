"""A pretraining run from its settings to a model in a folder.

tokenizer -> architecture -> weights -> tokens of the data, kept beside the run -> the loop -> NAME/model
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from herd.backends.torch.devices import find_device
from herd.checkpoints.checkpoint import Checkpoint
from herd.data.reading import data_files, data_hash, find_files, read_records
from herd.dtypes import BF16, F32
from herd.errors import FileProblem, UsageError
from herd.files import replacing
from herd.models.architecture import Config, seeing
from herd.models.weights import Leaf, Matrix
from herd.training.beginning.initialising import initial_leaf
from herd.training.beginning.words import Words, read_words
from herd.training.company import Company, by_the_first
from herd.training.opening import learned_files, open_here
from herd.training.recipes.co_distillation import Teacher
from herd.training.recipes.pretrain import Pretraining
from herd.training.running.facts import gathered
from herd.training.running.loop import End, Told, silent, train
from herd.training.running.optim import kinds_of, make_optimiser
from herd.training.running.parallel import Processes, company, divide, gather
from herd.training.running.runs import open_run
from herd.training.settings.pretrain import PretrainSettings, SourceSettings
from herd.training.shape import config_of
from herd.training.sources.corpus import read_corpus, tokenised, write_corpus
from herd.training.sources.drawn import Drawings
from herd.training.sources.mixing import Mixture, Sequences, Text
from herd.training.student.early_fusion import EarlyFusion, sees_at_once
from herd.training.student.model import Student

Write = Callable[[Path, Config, Mapping[str, Matrix], Words, Path | None], None]
"""Writes a folder that can be loaded: its path, the architecture, all weights, the tokenizer, the file or folder of the model that it began
with."""


def pretrain(
    settings: PretrainSettings,
    folder: Path,
    write: Write,
    *,
    resume: bool = False,
    force: bool = False,
    told: Callable[[Told], None] = silent,
) -> End:
    """Runs it in `folder`, with the other processes of torchrun if there are any. When it has come to its end, `folder`/model is written by
    `write`, in the first process, in place of what an earlier end has left there.

    `UsageError` and `FileProblem` for settings, data and files that cannot be used, before anything is computed.
    """
    if not settings.data:
        raise UsageError("There is no data to learn from: name files or folders by --data, or sources in [[data]].", param="data")
    with ExitStack() as opened:
        together, device = opened.enter_context(company(settings.device, parallel=settings.parallel))
        begin = _opened(settings.begin, opened)
        words = read_words(settings.tokenizer or settings.begin)
        cfg = _config(settings, words, begin)
        _check_seeing(settings, cfg, together)
        facts = _facts(settings, begin)
        run = opened.enter_context(open_run(folder, settings, facts, resume=resume, force=force, company=together))
        torch.manual_seed(settings.loop.seed)
        student = _student(settings, cfg, begin, device, together)
        mixture = _mixture(settings, words, cfg, folder / "tokens", together)
        recipe = Pretraining(student, mixture, settings, _teacher(settings, words, device, opened), together)
        if isinstance(together, Processes) and settings.loop.divided:
            divide(student, together)
        optimiser = make_optimiser(settings.optimiser, kinds_of(cfg, student.parameters))
        end = train(recipe, run, settings.loop, optimiser, told if together.index == 0 else silent, together)
        gather(student)
        if together.index == 0 and end.is_complete:
            _finish(settings, student)
            with run.finishing(settings.loop.steps), replacing(folder) as new:
                leaves = student.leaves(BF16 if settings.save_dtype == "bf16" else F32)
                write(new / "model", student.cfg, leaves, words, None if begin is None else begin.path)
    return end


def _facts(settings: PretrainSettings, begin: Checkpoint | None) -> dict[str, Any]:
    """What the run's result depends on besides its settings."""
    files = [path for source in settings.data for path in _files(source)]
    return gathered((*files, *learned_files(settings.begin)), "" if begin is None else begin.digest(), {"recipe": "pretrain"})


def _mixture(settings: PretrainSettings, words: Words, cfg: Config, folder: Path, together: Company) -> Mixture:
    """All sources; the first process makes their tokens, where they are not there yet."""

    def sources() -> list[Sequences]:
        return [_source(source, settings, words, cfg, folder) for source in settings.data]

    return Mixture(by_the_first(together, sources, "The tokens of the data") or sources(), settings)


def _student(settings: PretrainSettings, cfg: Config, begin: Checkpoint | None, device: str, together: Company) -> Student:
    """The model that learns, or this process's part of it."""
    leaf: Leaf = initial_leaf(cfg, settings.loop.seed, settings.initial) if begin is None else begin.leaf
    kind = EarlyFusion if sees_at_once(cfg) else Student
    sharing, context = (together.sharing, together.context) if isinstance(together, Processes) else (None, None)
    return kind(cfg, leaf, device=device, dtype=_dtype(settings), seed=settings.loop.seed, sharing=sharing, context=context)


def _check_seeing(settings: PretrainSettings, cfg: Config, together: Company) -> None:
    """`UsageError` for a model that sees where weights or documents are divided: a process whose documents have no picture would have no
    gradient to share."""
    if seeing(cfg) is None or together.count == 1:
        return
    if settings.loop.divided:
        raise UsageError("loop.divided is true; the weights of a model that sees are whole in every process. Leave it false.")
    if settings.parallel.context > 1:
        raise UsageError("parallel.context takes documents of text apart; leave it at 1 for a model that sees.", param="parallel.context")


def _finish(settings: PretrainSettings, student: Student) -> None:
    """The model is made for what its last stage was."""
    cfg: Any = student.cfg
    last = settings.all_stages[-1]
    context = settings.model.context or max(settings.context, last.sequence)
    if not settings.begin:
        student.cfg = replace(cfg, context_length=context)


def _config(settings: PretrainSettings, words: Words, begin: Checkpoint | None) -> Config:
    """The architecture of the run. `UsageError` for a tokenizer that knows ids which the model has no rows for."""
    if begin is None:
        size = words.tokenizer.vocab_size
        return config_of(settings.model, vocab_size=size, context=settings.context, picture_token=words.picture_token)
    cfg: Any = begin.config
    if words.tokenizer.vocab_size > cfg.vocab_size:
        raise UsageError(f"The tokenizer has {words.tokenizer.vocab_size} tokens; {settings.begin} has rows for {cfg.vocab_size}.")
    made: Config = replace(cfg, context_length=max(cfg.context_length, settings.context))
    return made


def _source(source: SourceSettings, settings: PretrainSettings, words: Words, cfg: Config, folder: Path) -> Sequences:
    """A source, its tokens made if they are not there already."""
    seed = settings.loop.seed
    if source.kind == "drawings":
        return Drawings(source.name, words.tokenizer, cfg, seed)
    key = _key(source, words, seed)
    name = f"{source.name}-{key[:16]}"
    if not (folder / f"{name}.learned.tokens").is_file():
        write_corpus(folder, name, tokenised(_texts(source), words.tokenizer), source.held_out, seed)
    learned, held = read_corpus(folder, name)
    return Text(source.name, learned, held, seed, settings.crossing)


def _texts(source: SourceSettings) -> Iterator[str]:
    """The texts of a source's records. `FileProblem` names a record without one."""
    for record in read_records(_files(source)):
        text = record.value.get("text")
        if not isinstance(text, str):
            raise FileProblem(f"{record.place}: has no `text`; pretraining reads plain text, or JSON lines with that field.")
        yield text


def _files(source: SourceSettings) -> tuple[Path, ...]:
    return find_files(source.path).paths if source.path else ()


def _key(source: SourceSettings, words: Words, seed: int) -> str:
    """What the tokens of a source depend on."""
    said = f"{source.held_out} {seed} {words.tokenizer.description} {words.tokenizer.vocab_size} {data_hash(data_files(_files(source)))}"
    return hashlib.sha256(said.encode()).hexdigest()


def _teacher(settings: PretrainSettings, words: Words, device: str, opened: ExitStack) -> Teacher | None:
    checkpoint = _opened(settings.teacher.model, opened)
    if checkpoint is None:
        return None
    theirs = read_words(settings.teacher.model)
    ours, named = words.tokenizer, theirs.tokenizer
    if ours.vocab_size != named.vocab_size or any(ours.token_bytes(i) != named.token_bytes(i) for i in range(ours.vocab_size)):
        raise UsageError(
            f"The teacher {settings.teacher.model} has another tokenizer ({named.description}) than the model ({ours.description}); "
            "what it says of its tokens means nothing here. Take the teacher's tokenizer.",
            param="teacher.model",
        )
    return Teacher(checkpoint.config, checkpoint.leaf, find_device(device), _dtype(settings))


def _opened(named: str, opened: ExitStack) -> Checkpoint | None:
    if not named:
        return None
    checkpoint = open_here(named)
    opened.callback(checkpoint.close)
    return checkpoint


def _dtype(settings: PretrainSettings) -> torch.dtype:
    return {"float32": torch.float32, "bfloat16": torch.bfloat16}[settings.dtype]
