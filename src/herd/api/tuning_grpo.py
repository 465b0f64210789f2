"""Online reinforcement learning, rejection sampling and answers of a teacher: from settings to a folder or a file."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from herd.api.tuning import Opened, finish, open_tuned
from herd.api.tuning_preferences import Aligned, Began, Watched, about, evaluated, nothing_yet, parts
from herd.data.account import Account
from herd.data.preparing import prepared
from herd.data.samples import Sample, Task
from herd.data.shapes import read_samples
from herd.engine.engine import Engine
from herd.errors import UsageError
from herd.family.progress import Progress, silent
from herd.files import atomic_write
from herd.training.allocation import keep_memory
from herd.training.curves import write_svg
from herd.training.facts import gathered
from herd.training.grpo import Grpo, Problem
from herd.training.grpo_settings import GrpoSettings
from herd.training.loop import Told, train
from herd.training.loop import silent as nobody
from herd.training.optim import kinds_of, make_optimiser
from herd.training.preferences import Reference
from herd.training.rejection import Chosen, best_of
from herd.training.rejection_settings import RejectionSettings
from herd.training.rewards import Rewards
from herd.training.rollouts import EngineSampler, Prompt
from herd.training.runs import open_run


def tune_grpo(
    settings: GrpoSettings,
    folder: Path,
    *,
    resume: bool = False,
    force: bool = False,
    told: Callable[[Told], None] = nobody,
    began: Began = nothing_yet,
    progress: Progress = silent,
) -> Aligned:
    """Runs it in `folder`, which `herd.load` takes when it has come to its end."""
    keep_memory()
    with open_tuned(settings.model, chat_format=settings.chat_format, progress=progress) as opened:
        account, rewards = Account(), Rewards(settings.rewards)
        problems = problems_of(opened, settings.data, account, settings.max_prompt)
        learned, held_out = parts(problems, settings.held_out, settings.loop.seed)
        settings = evaluated(settings.resolved(), bool(held_out))
        facts = gathered(account.files, opened.checkpoint.digest(), about("grpo", opened, account))
        longest = max(len(each.prompt.tokens) for each in problems) + settings.rollouts.max_tokens
        count = settings.rollouts.prompts * settings.rollouts.answers
        with (
            open_run(folder, settings, facts, resume=resume, force=force) as run,
            engine_of(opened, settings.backend, longest, count) as engine,
        ):
            student = opened.student(settings.student, settings.loop.seed)
            reference = None
            if settings.loss.kl:
                frozen = None if student.lora is not None else opened.student(replace(settings.student, method="lora"), settings.loop.seed)
                reference = Reference(student, frozen)
            recipe = Grpo(
                student=student,
                sampler=EngineSampler(engine),
                learned=learned,
                held_out=held_out,
                reward=rewards,
                decode=opened.tokenizer.decode,
                loss=settings.loss,
                rollouts=settings.rollouts,
                pack=settings.pack,
                seed=settings.loop.seed,
                best=max(1e-9, sum(max(0.0, each.weight) for each in settings.rewards)),
                reference=reference,
            )
            began(settings, account, sum(parameter.numel() for parameter in student.parameters.values()))
            optimiser = make_optimiser(settings.optimiser, kinds_of(student.cfg, student.parameters))
            watched = Watched(told)
            end = train(recipe, run, settings.loop, optimiser, watched)
            model = finish(folder, opened, student) if end.is_complete else None
            return Aligned(folder, end, account, model, write_svg(folder), watched.figures)


@dataclass(frozen=True, slots=True)
class Gathered:
    """What rejection sampling came to: answers kept of prompts asked, and the mean reward of all answers and of those that were kept."""

    path: Path
    asked: int
    kept: int
    mean_reward: float
    kept_reward: float
    account: Account


def reject(settings: RejectionSettings, path: Path, *, progress: Progress = silent) -> Gathered:
    """Draws several answers to each prompt and writes the best of each to a JSONL file of conversations; without rewards every answer
    is written (data of a teacher's)."""
    with open_tuned(settings.model, chat_format=settings.chat_format, progress=progress) as opened:
        account = Account()
        rewards = Rewards(settings.rewards) if settings.rewards else None
        problems = problems_of(opened, settings.data, account, settings.max_prompt, is_checked=rewards is not None)
        longest = max(len(each.prompt.tokens) for each in problems) + settings.max_tokens
        with engine_of(opened, settings.backend, longest, settings.answers * settings.batch) as engine:
            found = list(best_of(settings, problems, EngineSampler(engine), opened.tokenizer.decode, rewards))
    kept = [each for each in found if each.is_kept]
    with atomic_write(path) as file:
        for each in kept:
            file.write(json.dumps(_record(each), ensure_ascii=False).encode() + b"\n")
    mean, best = (sum(each.reward for each in some) / max(1, len(some)) for some in (found, kept))
    return Gathered(path, len(problems), len(kept), mean, best, account)


def problems_of(opened: Opened, data: Sequence[str], account: Account, longest: int, *, is_checked: bool = True) -> list[Problem]:
    """Prompts of all records as the model reads them. `UsageError` for records without anything to check answers by, if they are to be."""
    tokenising, found = opened.tokenising(), []
    for sample in read_samples(data, account):
        task = _task(sample, is_checked, account)
        for (example,) in prepared([task], tokenising, account, max_tokens=min(longest, opened.cfg.context_length)):
            document = opened.document(example)
            found.append(Problem(task, Prompt(document.tokens, document.pictures)))
    account.require_kept()
    return found


@contextmanager
def engine_of(opened: Opened, backend: str, context: int, parallel: int) -> Iterator[Engine]:
    """An engine over the same model, whose products are exact: what it says of probabilities is compared with the trainer."""
    with opened.answering(backend=backend, activations="float32", context=context, parallel=min(parallel, 64)) as model:
        yield model.engine


def _task(sample: Sample, is_checked: bool, account: Account) -> Task:
    if isinstance(sample, Task):
        return sample
    prompt = getattr(sample, "prompt", None) or getattr(sample, "messages", ())[:-1]
    if is_checked or not prompt:
        raise UsageError(
            f"{sample.place}: is a record of the shape {account.shape}; expected a prompt and what its answers are checked by "
            "(answer, tests or schema)."
        )
    return Task(sample.place, tuple(prompt))


def _record(chosen: Chosen) -> dict[str, Any]:
    messages = [{"role": message.role.value, "content": message.text} for message in chosen.problem.task.messages]
    return {"messages": [*messages, {"role": "assistant", "content": chosen.text}], "reward": chosen.reward}
