"""Supervised fine-tuning from settings to a folder that can be talked to."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

from herd.api.loading import load
from herd.api.model import Model
from herd.api.tuning import Opened
from herd.api.tuning_data import parted, read
from herd.api.tuning_run import PLAIN, Answered, Conduct, Lesson, Tuned, conducted, over_examples
from herd.data.account import Account
from herd.data.samples import Chat, Passage, Sample
from herd.data.tokenising import Example
from herd.errors import UsageError
from herd.files import atomic_write
from herd.text.messages import Message
from herd.training.company import Company
from herd.training.recipes.sft import Sft
from herd.training.settings.sft import SftSettings
from herd.training.student.model import Student

SAMPLES = "samples.json"
SAMPLE_TOKENS = 128
EXPECTED = "supervised fine-tuning learns conversations, prompts with completions, or text. For preferences there is herd tune dpo."


def tune_sft(settings: SftSettings, folder: Path, conduct: Conduct = PLAIN) -> Tuned:
    """Runs it in `folder`, which `herd.load` takes when it has come to its end; some held-out prompts are answered before and after."""
    asked: list[tuple[Message, ...]] = []
    before: list[str] = []

    def lesson(opened: Opened, together: Company) -> Lesson:
        account, measured = Account(), Account()
        limits = {"max_tokens": settings.max_tokens, "too_long": settings.too_long, "learn": settings.learn, "shape": settings.shape}

        def found(data: Sequence[str], of: Account) -> list[tuple[Chat | Passage, tuple[Example, ...]]]:
            return list(read(opened, data, of, _taken, EXPECTED, **limits))  # type: ignore[arg-type]

        asked_for = replace(settings, held_out=0.0) if settings.held_out_data else settings
        some, others = parted(found(settings.data, account), asked_for)
        if settings.held_out_data:
            others = found(settings.held_out_data, measured)
            account.take(measured)
        learned, held_out = ([each for _, examples in group for each in examples] for group in (some, others))
        asked.extend(_prompts([sample for sample, _ in others], settings.samples))
        settled = asked_for.resolved(len(learned), len(held_out))

        def recipe(student: Student, opening: ExitStack) -> Sft:
            return Sft(student=student, document=opened.document, **over_examples(settled, learned, held_out, together))

        def answer() -> None:
            before.extend(_answers(asked, lambda: opened.answering(chat_format=settings.chat_format)))

        return Lesson(name="sft", settings=settled, account=account, recipe=recipe, before=answer, stretches=True)

    tuned = conducted(settings, folder, conduct, lesson)
    if tuned.model is None:
        return tuned
    after = _answers(asked, lambda: load(folder, chat_format=settings.chat_format))
    answers = tuple(Answered(_shown(each), each[-1].text, *two) for each, *two in zip(asked, before, after, strict=True))
    _write(folder / SAMPLES, answers)
    return replace(tuned, answers=answers)


def _taken(sample: Sample) -> Chat | Passage | None:
    return sample if isinstance(sample, Chat | Passage) else None


def _prompts(held_out: Sequence[Chat | Passage], count: int) -> list[tuple[Message, ...]]:
    """Conversations of words alone, to be answered before and after."""
    chats = [each for each in held_out if isinstance(each, Chat) and not each.tools]
    return [each.messages for each in chats if not any(message.images for message in each.messages)][:count]


def _answers(asked: Sequence[tuple[Message, ...]], open_model: Callable[[], Model]) -> list[str]:
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
