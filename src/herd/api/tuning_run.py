"""A run of any recipe, from its settings to a folder that can be talked to, in one process or in several that torchrun has started.

settings -> the model, opened -> a `Lesson`, which the recipe's own file makes -> the loop -> what was learned, in the run's folder
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from herd.api.tuning import Opened, finish, open_tuned
from herd.data.account import Account
from herd.errors import UsageError
from herd.family.progress import Progress
from herd.family.progress import silent as unseen
from herd.models.architecture import seeing
from herd.models.weights import Kind
from herd.training.company import Company, by_the_first
from herd.training.running.curves import draw
from herd.training.running.facts import gathered
from herd.training.running.loop import End, Recipe, Told, silent, train
from herd.training.running.optim import kinds_of, make_optimiser
from herd.training.running.parallel import Processes, company, divide, gather
from herd.training.running.runs import HELD_OUT, METRICS, open_run, read_log
from herd.training.settings.tuning import EpochSettings, TuningSettings
from herd.training.student.allocation import tensor_memory
from herd.training.student.model import Student


@dataclass(frozen=True, slots=True)
class Conduct:
    """How a run is begun, and who watches it.

    resume     go on with the run that is in the folder
    force      although settings or data are others now
    told       hears of every step and evaluation
    began      hears the settings with all numbers in place, what became of the data, and how many parameters are learned
    progress   of a model that has to be fetched
    """

    resume: bool = False
    force: bool = False
    told: Callable[[Told], None] = silent
    began: Callable[[Any, Account, int], None] = lambda settings, account, parameters: None
    progress: Progress = unseen


PLAIN = Conduct()


@dataclass(frozen=True, slots=True)
class Answered:
    """A held-out prompt with the answer that its record has, and the model's before and after."""

    prompt: str
    wanted: str
    before: str
    after: str


@dataclass(frozen=True, slots=True)
class Tuned:
    """What a run came to. Of several processes under torchrun the first alone has results to show (`is_first`).

    model      what was learned; None if the run was stopped
    curves     the picture of its log
    held_out   the last evaluation's figures and, under names that begin with before_, those of the one before the first step
    notes      what a person should know of what was written: what a licence asks for, say
    answers    of supervised fine-tuning
    """

    folder: Path
    end: End
    account: Account
    model: Path | None = None
    curves: Path | None = None
    held_out: Mapping[str, float] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    answers: tuple[Answered, ...] = ()
    is_first: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Lesson:
    """What a run does in the way of its recipe.

    name       of the recipe, as the run's folder keeps it
    settings   with all numbers in place
    account    what became of the data
    recipe     makes it for a student; what it opens (engines, a teacher) is closed with the run
    files      what it learns from, whose digests the run's folder keeps; None: the account's
    kinds      of what is learned beside the student's parameters
    before     what the first process does before the first step
    beside     writes what the recipe has learned beside the student, into the run's folder
    draws      whether answers are drawn from the model while it learns
    stretches  whether its loss is a sum over tokens, so that processes may have a part of a document each
    """

    name: str
    settings: TuningSettings
    account: Account
    recipe: Callable[[Student, ExitStack], Recipe]
    files: tuple[Path, ...] | None = None
    kinds: Mapping[str, Kind] = field(default_factory=dict)
    before: Callable[[], None] = lambda: None
    beside: Callable[[Any, Path], None] = lambda recipe, folder: None
    draws: bool = False
    stretches: bool = False


def over_examples(settings: EpochSettings, learned: Sequence[Any], held_out: Sequence[Any], together: Company) -> dict[str, Any]:
    """What every recipe over examples takes of a run (`training.packed.OverExamples`)."""
    sizes = {"size": settings.batch, "pack": settings.pack, "seed": settings.loop.seed}
    return {"learned": learned, "held_out": held_out, **sizes, "company": together}


def conducted(settings: TuningSettings, folder: Path, conduct: Conduct, lesson_of: Callable[[Opened, Company], Lesson]) -> Tuned:
    """Runs it in `folder`, which `herd.load` takes when it has come to its end."""
    with ExitStack() as opening:
        opening.enter_context(tensor_memory())
        together, device = opening.enter_context(company(settings.student.device, parallel=settings.parallel))
        model = open_tuned(settings.model, chat_format=settings.chat_format, device=device, progress=conduct.progress)
        opened = opening.enter_context(model)
        lesson = lesson_of(opened, together)
        settings, is_first = lesson.settings, together.index == 0
        opened.check(settings.student, lesson.draws)
        _check_together(lesson, opened, together)
        about = {"recipe": lesson.name, "account": lesson.account.as_json(), "base": opened.asked}
        files = lesson.account.files if lesson.files is None else lesson.files
        facts = gathered((*files, *opened.files), opened.checkpoint.digest(), about)
        run = opening.enter_context(open_run(folder, settings, facts, resume=conduct.resume, force=conduct.force, company=together))
        sharing, context = (together.sharing, together.context) if isinstance(together, Processes) else (None, None)
        student = opened.student(settings.student, settings.loop.seed, sharing, context, exact_tokens=lesson.draws)
        recipe = lesson.recipe(student, opening)

        def begin() -> None:
            conduct.began(settings, lesson.account, sum(parameter.numel() for parameter in recipe.parameters.values()))
            lesson.before()

        by_the_first(together, begin, "What stands before the first step")
        if isinstance(together, Processes) and settings.loop.divided:
            divide(student, together)
        optimiser = make_optimiser(settings.optimiser, {**kinds_of(student.cfg, student.parameters), **lesson.kinds})
        end = train(recipe, run, settings.loop, optimiser, conduct.told if is_first else silent, together)
        gather(student)
        if not is_first:
            return Tuned(folder, end, lesson.account, is_first=False)
        tuned = Tuned(folder, end, lesson.account, curves=draw(folder), held_out=_measured(folder))
        if not end.is_complete:
            return tuned
        with run.finishing(settings.loop.steps):
            written, notes = finish(folder, opened, student)
            lesson.beside(recipe, folder)
        return replace(tuned, model=written, notes=notes)


def _check_together(lesson: Lesson, opened: Opened, together: Company) -> None:
    """`UsageError` for ways to share a model or its documents that a recipe or a model does not know."""
    loop, parallel = lesson.settings.loop, lesson.settings.parallel
    is_held_apart = loop.divided and together.count > 1
    if lesson.draws and (is_held_apart or parallel.together > 1):
        name = "loop.divided" if is_held_apart else "parallel"
        raise UsageError(f"{name} is set; with this recipe every process draws answers from the model, and needs all of it. Leave it out.")
    if parallel.context > 1 and (not lesson.stretches or seeing(opened.cfg) is not None):
        what = "the recipe looks at whole answers" if not lesson.stretches else "a model that sees has whole pictures"
        raise UsageError(f"parallel.context takes documents apart, and {what}. Leave it at 1.", param="parallel.context")


def _measured(folder: Path) -> dict[str, float]:
    """What the run's log has of the evaluation before the first step, by names that begin with before_, and of the last one. The process
    that began the run need not be the one that ended it."""
    found = [
        (line["step"], {name.removeprefix(HELD_OUT): value for name, value in line.items() if name.startswith(HELD_OUT)})
        for line in read_log(folder / METRICS)
        if any(name.startswith(HELD_OUT) for name in line)
    ]
    figures = {f"before_{name}": value for step, line in found[:1] if step == 0 for name, value in line.items()}
    last = found[-1][1] if found else {}
    return {name: math.nan if value is None else float(value) for name, value in (figures | last).items()}
