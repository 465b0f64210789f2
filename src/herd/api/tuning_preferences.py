"""Preference optimisation and reward models, from settings to a folder: data read, pairs made, the recipe run, the result written."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from herd.api.tuning import Opened, finish, open_tuned
from herd.data.account import Account
from herd.data.order import split
from herd.data.preparing import prepared
from herd.data.samples import Judged, Preference, Sample
from herd.data.shapes import read_samples
from herd.errors import UsageError
from herd.family.progress import Progress, silent
from herd.models.weights import Kind
from herd.training.allocation import keep_memory
from herd.training.curves import write_svg
from herd.training.facts import gathered
from herd.training.loop import End, Told, train
from herd.training.loop import silent as nobody
from herd.training.optim import kinds_of, make_optimiser
from herd.training.preference_settings import PreferenceSettings
from herd.training.preferences import Judgement, Pair, Preferences, Reference
from herd.training.reward_model import HEAD, RewardModel, RewardTraining
from herd.training.reward_settings import RewardModelSettings
from herd.training.runs import open_run

Began = Callable[[Any, Account, int], None]


def nothing_yet(settings: Any, account: Account, parameters: int) -> None:
    """Nobody wants to know how it begins."""


@dataclass(frozen=True, slots=True)
class Aligned:
    """What a run came to. `model`: what was learned, None if it was stopped; `curves`: the picture of its log; `held_out`: the last
    evaluation's figures and, under names that begin with before_, the first one's."""

    folder: Path
    end: End
    account: Account
    model: Path | None = None
    curves: Path | None = None
    held_out: dict[str, float] = field(default_factory=dict)


class Watched:
    """Hands news on, and remembers what the evaluations said."""

    def __init__(self, told: Callable[[Told], None]) -> None:
        self._told = told
        self.figures: dict[str, float] = {}

    def __call__(self, news: Told) -> None:
        if news.is_evaluation:
            if not self.figures:
                self.figures = {f"before_{name}": value for name, value in news.figures.items()}
            self.figures |= news.figures
        self._told(news)


def tune_preferences(
    settings: PreferenceSettings,
    folder: Path,
    *,
    resume: bool = False,
    force: bool = False,
    told: Callable[[Told], None] = nobody,
    began: Began = nothing_yet,
    progress: Progress = silent,
) -> Aligned:
    """Runs DPO, SimPO, KTO or ORPO in `folder`, which `herd.load` takes when it has come to its end."""
    keep_memory()
    with open_tuned(settings.model, chat_format=settings.chat_format, progress=progress) as opened:
        account = Account()
        items = _items(opened, settings.data, account, settings.max_tokens, Judged if settings.loss.method == "kto" else Preference)
        learned, held_out = parts(items, settings.held_out, settings.loop.seed)
        settings = evaluated(settings.resolved(len(learned)), bool(held_out))
        facts = gathered(account.files, opened.checkpoint.digest(), about(settings.loss.method, opened, account))
        with open_run(folder, settings, facts, resume=resume, force=force) as run:
            student = opened.student(settings.student, settings.loop.seed)
            frozen = None
            if settings.loss.needs_reference and student.lora is None:
                frozen = opened.student(replace(settings.student, method="lora"), settings.loop.seed)  # its updates stay at zero
            recipe = Preferences(
                student=student,
                learned=learned,
                held_out=held_out,
                document=opened.document,
                loss=settings.loss,
                size=settings.batch,
                pack=settings.pack,
                seed=settings.loop.seed,
                reference=Reference(student, frozen) if settings.loss.needs_reference else None,
            )
            began(settings, account, sum(parameter.numel() for parameter in student.parameters.values()))
            optimiser = make_optimiser(settings.optimiser, kinds_of(student.cfg, student.parameters))
            watched = Watched(told)
            end = train(recipe, run, settings.loop, optimiser, watched)
            model = finish(folder, opened, student) if end.is_complete else None
            return Aligned(folder, end, account, model, write_svg(folder), watched.figures)


def tune_reward(
    settings: RewardModelSettings,
    folder: Path,
    *,
    resume: bool = False,
    force: bool = False,
    told: Callable[[Told], None] = nobody,
    began: Began = nothing_yet,
    progress: Progress = silent,
) -> Aligned:
    """Learns a reward model from pairs: its updates or weights as of every run, and `reward.safetensors` in the run's folder."""
    keep_memory()
    with open_tuned(settings.model, chat_format=settings.chat_format, progress=progress) as opened:
        account = Account()
        pairs: list[Pair] = _items(opened, settings.data, account, settings.max_tokens, Preference)
        learned, held_out = parts(pairs, settings.held_out, settings.loop.seed)
        settings = evaluated(settings.resolved(len(learned)), bool(held_out))
        facts = gathered(account.files, opened.checkpoint.digest(), about("reward", opened, account))
        with open_run(folder, settings, facts, resume=resume, force=force) as run:
            model = RewardModel(opened.student(settings.student, settings.loop.seed))
            recipe = RewardTraining(
                model=model,
                learned=learned,
                held_out=held_out,
                document=opened.document,
                size=settings.batch,
                pack=settings.pack,
                seed=settings.loop.seed,
                centre=settings.centre,
            )
            began(settings, account, sum(parameter.numel() for parameter in model.parameters.values()))
            kinds = {**kinds_of(opened.cfg, model.student.parameters), HEAD: Kind.BIAS}
            watched = Watched(told)
            end = train(recipe, run, settings.loop, make_optimiser(settings.optimiser, kinds), watched)
            written = None
            if end.is_complete:
                written = finish(folder, opened, model.student)
                model.save_head(folder)
            return Aligned(folder, end, account, written, write_svg(folder), watched.figures)


def parts(items: list[Any], held_out: float, seed: int) -> tuple[list[Any], list[Any]]:
    """(learned, held out): a share below 1, or how many."""
    wanted = held_out if held_out < 1 else int(held_out)
    learned, others = split(len(items), wanted, seed)
    return [items[index] for index in learned], [items[index] for index in others]


def evaluated(settings: Any, is_held_out: bool) -> Any:
    """With an evaluation before and after, where something is held out and nothing else was asked for."""
    if settings.loop.evaluate_every or not is_held_out:
        return settings
    return replace(settings, loop=replace(settings.loop, evaluate_every=settings.loop.schedule.steps))


def about(recipe: str, opened: Opened, account: Account) -> dict[str, Any]:
    """What the folder of a run says of its beginning."""
    return {"recipe": recipe, "account": account.as_json(), "base": opened.asked}


def _items(opened: Opened, data: Sequence[str], account: Account, longest: int, kind: type[Sample]) -> list[Any]:
    """Pairs or judgements of all records. `UsageError` for records of another kind; `FileProblem` if nothing is left."""
    tokenising = opened.tokenising()
    found: list[Any] = []
    longest = min(longest, opened.cfg.context_length)
    for sample in read_samples(data, account):
        if not isinstance(sample, kind):
            raise UsageError(_wrong_kind(sample, account, kind))
        for examples in prepared([sample], tokenising, account, max_tokens=longest):
            if isinstance(sample, Judged):
                found.append(Judgement(examples[0], sample.is_good))
            else:
                chosen, rejected = examples
                found.append(Pair(chosen, rejected))
    account.require_kept()
    return found


def _wrong_kind(sample: Sample, account: Account, kind: type[Sample]) -> str:
    wanted = "prompt, completion and label (true or false)" if kind is Judged else "prompt, chosen and rejected"
    return f"{sample.place}: is a record of the shape {account.shape}; this recipe learns from records with {wanted}."
