"""Distillation from settings to a folder: a teacher's words are kept first, or it judges the student's own answers."""

from __future__ import annotations

from contextlib import ExitStack
from functools import partial
from pathlib import Path

from herd.api.loading import load
from herd.api.tuning import Opened
from herd.api.tuning_data import parted, read
from herd.api.tuning_grpo import engine_of, problems_of
from herd.api.tuning_run import PLAIN, Conduct, Lesson, Tuned, conducted, over_examples
from herd.data.account import Account
from herd.data.samples import Chat, Passage
from herd.errors import FileProblem, UsageError
from herd.training.recipes.distill import Distillation, EngineTeacher, OnPolicy, taught
from herd.training.running.company import Company, by_the_first
from herd.training.settings.distill import DistillSettings
from herd.training.signals.rollouts import EngineSampler
from herd.training.signals.teacher_file import LIST, TeacherFolder, TeacherWriter
from herd.training.student.batches import Document
from herd.training.student.model import Student

WORDS = "teacher"


def tune_distill(settings: DistillSettings, folder: Path, conduct: Conduct = PLAIN) -> Tuned:
    """Runs it in `folder`, which `herd.load` takes when it has come to its end."""
    words = Path(settings.words) if settings.words else folder.with_name(f"{folder.name}-{WORDS}")
    return conducted(
        settings, folder, conduct, partial(_stored, settings, words) if settings.way == "stored" else partial(_on_policy, settings)
    )


def keep_words(settings: DistillSettings, opened: Opened, account: Account, folder: Path) -> None:
    """The teacher reads the data and its likeliest tokens are written down, unless the folder holds them already."""
    if (folder / LIST).exists():
        return
    documents = _documents(settings, opened, account)
    longest = max(len(document.tokens) for document in documents)
    with load(settings.teacher, backend=settings.backend, activations="float32", context=longest) as model:
        teacher = EngineTeacher(model.engine)
        _same_words(opened, teacher.vocabulary, settings)
        writer = TeacherWriter(
            folder,
            k=min(settings.k, teacher.vocabulary),
            temperature=settings.temperature,
            vocabulary=teacher.vocabulary,
            teacher=f"{settings.teacher} {model.fingerprint}",
        )
        for each in taught(teacher, documents, settings.k, settings.temperature):
            writer.add(each)
        writer.finish()


def _stored(settings: DistillSettings, folder: Path, opened: Opened, together: Company) -> Lesson:
    account = Account()
    by_the_first(together, lambda: keep_words(settings, opened, account, folder), str(folder))
    words = TeacherFolder(folder)
    _same_words(opened, words.vocabulary, settings)
    if words.temperature != settings.temperature:
        raise UsageError(f"{folder} was kept at temperature {words.temperature}, and the run asks for {settings.temperature}.")
    learned, held_out = parted(list(words.read()), settings)
    if not learned:
        raise FileProblem(f"{folder}: nothing is left to learn from when {len(held_out)} examples are held out.")
    settled = settings.resolved(len(learned), len(held_out))

    def recipe(student: Student, opening: ExitStack) -> Distillation:
        return Distillation(
            student=student,
            targets=settled.targets,
            temperature=words.temperature,
            steps=settled.loop.steps,
            **over_examples(settled, learned, held_out, together),
        )

    return Lesson(name="distill", settings=settled, account=account, recipe=recipe, files=words.files)


def _on_policy(settings: DistillSettings, opened: Opened, together: Company) -> Lesson:
    account = Account()
    prompts = [each.prompt for each in problems_of(opened, settings.data, account, opened.cfg.context_length)]
    learned, held_out = parted(prompts, settings)
    settled = settings.resolved(len(learned), len(held_out))
    longest = max(len(prompt.tokens) for prompt in prompts) + settled.max_tokens

    def recipe(student: Student, opening: ExitStack) -> OnPolicy:
        engine = opening.enter_context(engine_of(opened, settled.backend, longest, settled.batch * settled.answers))
        teacher = opening.enter_context(load(settled.teacher, backend=settled.backend, activations="float32", context=longest))
        _same_words(opened, teacher.engine.backend.vocab_size, settled)
        return OnPolicy(
            student=student,
            sampler=EngineSampler(engine),
            teacher=EngineTeacher(teacher.engine),
            targets=settled.targets,
            k=settled.k,
            answers=settled.answers,
            max_tokens=settled.max_tokens,
            **over_examples(settled, learned, held_out, together),
        )

    return Lesson(name="distill", settings=settled, account=account, recipe=recipe, draws=True)


def _documents(settings: DistillSettings, opened: Opened, account: Account) -> list[Document]:
    found = read(
        opened,
        settings.data,
        account,
        lambda each: each if isinstance(each, Chat | Passage) else None,
        "a teacher reads conversations or text.",
        max_tokens=settings.max_tokens,
        too_long="split",
        learn=settings.learn,
    )
    return [opened.document(example) for _, examples in found for example in examples]


def _same_words(opened: Opened, vocabulary: int, settings: DistillSettings) -> None:
    if vocabulary != opened.cfg.vocab_size:
        raise UsageError(
            f"{settings.teacher} has {vocabulary} tokens and {settings.model} has {opened.cfg.vocab_size}; distillation needs the same "
            "vocabulary."
        )
