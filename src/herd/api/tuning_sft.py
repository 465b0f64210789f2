"""Supervised fine-tuning from settings to a folder that can be talked to."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from herd.api.loading import load
from herd.api.model import Model
from herd.api.tuning import Opened, finish, open_tuned
from herd.data.account import Account
from herd.data.order import split
from herd.data.preparing import prepared
from herd.data.reading import Place
from herd.data.samples import Chat, Passage, Sample
from herd.data.shapes import read_samples
from herd.data.tokenising import Example
from herd.errors import UsageError
from herd.family.progress import Progress, silent
from herd.files import atomic_write
from herd.text.messages import Message
from herd.training.allocation import keep_memory
from herd.training.curves import write_svg
from herd.training.facts import gathered
from herd.training.loop import End, Told, train
from herd.training.loop import silent as nobody
from herd.training.optim import kinds_of, make_optimiser
from herd.training.parallel import Processes, company, divide, gather
from herd.training.runs import open_run
from herd.training.sft import Sft
from herd.training.sft_settings import SftSettings

SAMPLES = "samples.json"
SAMPLE_TOKENS = 128


@dataclass(frozen=True, slots=True)
class Answered:
    """A held-out prompt with the answer that its record has, and the model's before and after."""

    prompt: str
    wanted: str
    before: str
    after: str


@dataclass(frozen=True, slots=True)
class Tuned:
    """What a run came to. `model` is what was learned, None if the run was stopped; `curves` the picture of its log. Of several processes
    under torchrun the first alone has results to show (`is_first`)."""

    folder: Path
    end: End
    account: Account
    model: Path | None = None
    curves: Path | None = None
    answers: tuple[Answered, ...] = ()
    is_first: bool = True


@dataclass(slots=True)
class _Data:
    """The examples made of each sample (several, where a format writes earlier answers otherwise than the last), and samples by place."""

    account: Account
    samples: dict[Place, Chat | Passage] = field(default_factory=dict)
    examples: list[list[Example]] = field(default_factory=list)

    def of(self, indices: Sequence[int]) -> list[Example]:
        return [example for index in indices for example in self.examples[index]]

    def sample(self, index: int) -> Chat | Passage | None:
        place = self.examples[index][0].place
        return None if place is None else self.samples.get(place)


def tune_sft(
    settings: SftSettings,
    folder: Path,
    *,
    resume: bool = False,
    force: bool = False,
    told: Callable[[Told], None] = nobody,
    began: Callable[[SftSettings, Account, int], None] = lambda settings, account, parameters: None,
    progress: Progress = silent,
) -> Tuned:
    """Runs it in `folder`, which `herd.load` takes when it has come to its end.

    began   is told the settings with all numbers in place, what became of the data, and how many parameters are learned
    """
    keep_memory()
    with (
        company(settings.student.device) as (together, device),
        open_tuned(settings.model, chat_format=settings.chat_format, progress=progress) as opened,
    ):
        is_first = together.index == 0
        data = _read(settings, opened)
        learned, held_out = _split(data, settings)
        settings = settings.resolved(len(data.of(learned)))
        facts = gathered(data.account.files, opened.checkpoint.digest(), {"account": data.account.as_json(), "base": opened.asked})
        with open_run(folder, settings, facts, resume=resume, force=force, company=together) as run:
            student = opened.student(replace(settings.student, device=device), settings.loop.seed)
            if is_first:
                began(settings, data.account, sum(parameter.numel() for parameter in student.parameters.values()))
            if isinstance(together, Processes) and settings.loop.divided:
                divide(student, together)
            asked = _prompts(data, held_out, settings.samples if is_first else 0)
            before = _answers(asked, settings, lambda: opened.answering(chat_format=settings.chat_format))
            recipe = Sft(
                student=student,
                learned=data.of(learned),
                held_out=data.of(held_out),
                document=opened.document,
                size=settings.batch,
                pack=settings.pack,
                seed=settings.loop.seed,
                company=together,
            )
            optimiser = make_optimiser(settings.optimiser, kinds_of(student.cfg, student.parameters))
            end = train(recipe, run, settings.loop, optimiser, told if is_first else nobody, together)
            gather(student)
            if not is_first:
                return Tuned(folder, end, data.account, is_first=False)
            tuned = Tuned(folder, end, data.account, curves=write_svg(folder))
            if not end.is_complete:
                return tuned
            model = finish(folder, opened, student)
        after = _answers(asked, settings, lambda: load(folder, chat_format=settings.chat_format))
        answers = tuple(Answered(_shown(each), each[-1].text, *two) for each, *two in zip(asked, before, after, strict=True))
        _write(folder / SAMPLES, answers)
        return replace(tuned, model=model, answers=answers)


def _read(settings: SftSettings, opened: Opened) -> _Data:
    """All records as examples. `FileProblem` if nothing is left to learn from."""
    account = Account()
    data = _Data(account)
    longest = min(settings.max_tokens, opened.cfg.context_length)

    def passing() -> Iterator[Sample]:
        for sample in read_samples(settings.data, account, shape=settings.shape):
            if not isinstance(sample, Chat | Passage):
                raise UsageError(_not_for_sft(account))
            data.samples[sample.place] = sample
            yield sample

    made = prepared(passing(), opened.tokenising(settings.learn), account, max_tokens=longest, too_long=settings.too_long)
    data.examples += [list(examples) for examples in made]
    account.require_kept()
    return data


def _not_for_sft(account: Account) -> str:
    return (
        f"{account.files[0] if account.files else 'the data'}: holds records of the shape {account.shape}; supervised fine-tuning learns "
        "conversations, prompts with completions, or text. For preferences there is herd tune dpo."
    )


def _split(data: _Data, settings: SftSettings) -> tuple[Sequence[int], Sequence[int]]:
    wanted = settings.held_out if settings.held_out < 1 else int(settings.held_out)
    return split(len(data.examples), wanted, settings.loop.seed)


def _prompts(data: _Data, held_out: Sequence[int], count: int) -> list[tuple[Message, ...]]:
    """Conversations of words alone, to be answered before and after."""
    chats = map(data.sample, held_out)
    fitting = [each.messages for each in chats if isinstance(each, Chat) and not each.tools and not any(m.images for m in each.messages)]
    return fitting[:count]


def _answers(asked: Sequence[tuple[Message, ...]], settings: SftSettings, open_model: Callable[[], Model]) -> list[str]:
    """What a model says to each prompt, always the likeliest token."""
    if not asked:
        return []
    with open_model() as model:
        return [_answer(model, messages) for messages in asked]


def _answer(model: Model, messages: tuple[Message, ...]) -> str:
    options: dict[str, Any] = {"max_tokens": SAMPLE_TOKENS, "temperature": 0.0}
    try:
        model.chat_format  # noqa: B018
    except UsageError:
        return model.generate(messages[0].text, **options).text
    return model.collect([], model.chat(messages[:-1], **options)).text


def _shown(messages: tuple[Message, ...]) -> str:
    return next((message.text for message in reversed(messages[:-1]) if message.text), "")


def _write(path: Path, answers: Iterable[Answered]) -> None:
    listed = [{"prompt": each.prompt, "wanted": each.wanted, "before": each.before, "after": each.after} for each in answers]
    with atomic_write(path) as file:
        file.write(json.dumps(listed, ensure_ascii=False, indent=1).encode() + b"\n")
