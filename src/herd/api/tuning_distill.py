"""Distillation from settings to a folder: a teacher's words are kept first, or it judges the student's own answers."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack, closing
from functools import partial
from pathlib import Path

from herd.api.loading import load, run_behind
from herd.api.sessions import weights_digest
from herd.api.tuning import Opened
from herd.api.tuning_data import parted, read
from herd.api.tuning_grpo import engine_of, problems_of, room_for
from herd.api.tuning_run import PLAIN, Conduct, Lesson, Tuned, conducted, over_examples
from herd.checkpoints.open import open_checkpoint
from herd.data.account import Account
from herd.data.reading import data_files, data_hash, find_files
from herd.data.samples import Chat, Passage
from herd.errors import FileProblem, UsageError
from herd.family.finding import find_model
from herd.training.company import Company, by_the_first
from herd.training.recipes.distill import Distillation, EngineTeacher, OnPolicy, taught
from herd.training.settings.distill import DistillSettings
from herd.training.signals.rollouts import EngineSampler
from herd.training.signals.teacher_file import LIST, NOTHING_SAID, TeacherFolder, TeacherWriter
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
    """The teacher reads the data and its likeliest tokens are written down, unless the folder holds them already. `UsageError` if it holds
    what a teacher said of other data, or what was asked in another way."""
    made_of = _made_of(settings, opened) if settings.data else NOTHING_SAID
    if (folder / LIST).exists() or not settings.data:
        _check_made(settings, TeacherFolder(folder), made_of, folder)
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
            made_of=made_of,
        )
        for each in taught(teacher, documents, settings.k, settings.temperature):
            writer.add(each)
        writer.finish()


def _made_of(settings: DistillSettings, opened: Opened) -> dict[str, str]:
    """What a teacher's words follow from, besides k and temperature: data and teacher by their contents, and how data become tokens."""
    found, adapter = run_behind(find_model(settings.teacher), None)
    with closing(open_checkpoint(found.path)) as checkpoint:
        teacher = weights_digest(checkpoint, None if adapter is None else Path(adapter))
    tokenizer, chat_format = opened.tokenizer, opened.words.chat_format
    return {
        "data": data_hash(data_files(find_files(settings.data).paths)),
        "teacher": teacher,
        "tokenizer": f"{tokenizer.description}, {tokenizer.vocab_size} tokens",
        "chat_format": "none" if chat_format is None else chat_format.name,
        "learn": settings.learn,
        "max_tokens": str(min(settings.max_tokens, opened.cfg.context_length)),
    }


def _check_made(settings: DistillSettings, words: TeacherFolder, made_of: Mapping[str, str], folder: Path) -> None:
    asked = {"k": str(min(settings.k, words.vocabulary)), "temperature": str(settings.temperature), **made_of}
    there = {**words.made_of, "k": str(words.k), "temperature": str(words.temperature)}
    others = [
        f"{name}: {there.get(name, 'not told')[:40]} there, {value[:40]} asked" for name, value in asked.items() if there.get(name) != value
    ]
    if others:
        listed = "".join(f"\n  {line}" for line in others)
        raise UsageError(
            f"{folder} holds what a teacher said in another way or of other data:{listed}\nAsk as it was asked, keep the words in another "
            "folder (--words), or leave --data and --teacher out to learn what is there."
        )


def _stored(settings: DistillSettings, folder: Path, opened: Opened, together: Company) -> Lesson:
    account = Account()
    by_the_first(together, lambda: keep_words(settings, opened, account, folder), str(folder))
    words = TeacherFolder(folder)
    _same_words(opened, words.vocabulary, settings)
    if not account.num_read:
        account.shape, account.num_read, account.num_kept = "a teacher's words", words.num_documents, words.num_documents
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
    prompts = [each.prompt for each in problems_of(opened, settings.data, account, room_for(opened, settings.max_tokens))]
    learned, held_out = parted(prompts, settings)
    settled = settings.resolved(len(learned), len(held_out))
    longest = max(len(prompt.tokens) for prompt in prompts) + settled.max_tokens

    def recipe(student: Student, opening: ExitStack) -> OnPolicy:
        engine = opening.enter_context(engine_of(opened, settled.backend, longest, settled.batch * settled.answers))
        teacher = opening.enter_context(load(settled.teacher, backend=settled.backend, activations="float32", context=longest))
        _same_words(opened, teacher.engine.backend.vocab_size, settled)
        return OnPolicy(
            student=student,
            sampler=EngineSampler(engine, opened.rebased(student)),
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
            f"{settings.teacher or settings.words} has {vocabulary} tokens and {settings.model} has {opened.cfg.vocab_size}; distillation "
            "needs the same vocabulary."
        )
