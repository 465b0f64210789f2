"""Online reinforcement learning from settings to a folder, and what every recipe needs that has prompts answered."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from herd.api.reward_models import RewardModels
from herd.api.tuning import Opened
from herd.api.tuning_data import parted, read
from herd.api.tuning_preferences import reference_of
from herd.api.tuning_run import PLAIN, Conduct, Lesson, Tuned, conducted
from herd.data.account import Account
from herd.data.samples import Sample, Task
from herd.engine.engine import Engine
from herd.errors import UsageError
from herd.training.company import Company
from herd.training.recipes.grpo import Grpo, Problem
from herd.training.settings.grpo import GrpoSettings
from herd.training.settings.rewards import CHECKED, RewardSettings
from herd.training.signals.rewards import Rewards, check_of
from herd.training.signals.rollouts import EngineSampler, Prompt
from herd.training.student.model import Student


def tune_grpo(settings: GrpoSettings, folder: Path, conduct: Conduct = PLAIN) -> Tuned:
    """Runs it in `folder`, which `herd.load` takes when it has come to its end."""

    def lesson(opened: Opened, together: Company) -> Lesson:
        account = Account()
        models = RewardModels(settings.rewards, opened, judging, conduct.progress)
        room = room_for(opened, settings.rollouts.max_tokens, "rollouts.max_tokens")
        problems = problems_of(opened, settings.data, account, min(settings.max_prompt, room), settings.rewards)
        learned, held_out = parted(problems, settings)
        settled = settings.resolved(len(learned), len(held_out))
        rollouts = settled.rollouts
        longest = max(len(each.prompt.tokens) for each in problems) + rollouts.max_tokens
        models.check(problems, longest)
        rewards = Rewards(settings.rewards, models.judges(settings.student, settings.pack))

        def recipe(student: Student, opening: ExitStack) -> Grpo:
            engine = opening.enter_context(engine_of(opened, settled.backend, longest, rollouts.prompts * rollouts.answers))
            return Grpo(
                student=student,
                sampler=EngineSampler(engine, opened.rebased(student)),
                learned=learned,
                held_out=held_out,
                reward=rewards,
                decode=opened.tokenizer.decode,
                loss=settled.loss,
                rollouts=rollouts,
                pack=settled.pack,
                seed=settled.loop.seed,
                best=max(1e-9, sum(max(0.0, each.weight) for each in settled.rewards)),
                reference=reference_of(opened, student, settled.student) if settled.loss.kl else None,
                company=together,
            )

        files = (*account.files, *models.files)
        return Lesson(name="grpo", settings=settled, account=account, recipe=recipe, files=files, draws=True)

    with ExitStack() as judging:
        return conducted(settings, folder, conduct, lesson)


def problems_of(
    opened: Opened, data: Sequence[str], account: Account, longest: int, rewards: Sequence[RewardSettings] = ()
) -> list[Problem]:
    """Prompts of all records as the model reads them. `UsageError` for records without what the rewards check answers by."""
    needed = sorted({CHECKED[each.kind] for each in rewards if each.kind in CHECKED})
    expected = "expected a prompt and what its answers are checked by (answer, tests or schema)."
    found = []
    for task, (example,) in read(opened, data, account, lambda each: _task(each, needed), expected, max_tokens=longest):
        document = opened.document(example)
        found.append(Problem(task, Prompt(document.tokens, document.pictures)))
    return found


def room_for(opened: Opened, max_tokens: int, name: str = "max_tokens") -> int:
    """How long a prompt may be that an answer of `max_tokens` follows. `UsageError` if there is no room for any."""
    room = opened.cfg.context_length - max_tokens
    if room < 1:
        raise UsageError(
            f"{name} is {max_tokens:,}, and {opened.found.name} was trained for {opened.cfg.context_length:,} tokens, prompt and answer"
            " together; expected less.",
            param=name,
        )
    return room


@contextmanager
def engine_of(opened: Opened, backend: str, context: int, parallel: int) -> Iterator[Engine]:
    """An engine over the same model, whose products are exact: what it says of probabilities is compared with the trainer."""
    with opened.answering(backend=backend, activations="float32", context=context, parallel=min(parallel, 64)) as model:
        yield model.engine


def _task(sample: Sample, needed: Sequence[str]) -> Task | None:
    """needed: what rewards check by."""
    if isinstance(sample, Task):
        for name in needed:
            check_of(sample, name)
        return sample
    prompt = getattr(sample, "prompt", None) or getattr(sample, "messages", ())[:-1]
    return None if needed or not prompt else Task(sample.place, tuple(prompt))
