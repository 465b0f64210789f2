"""Distillation from settings to a folder: a teacher's words are kept first, or it judges the student's own answers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from herd.api.loading import load
from herd.api.tuning import Opened, finish, open_tuned
from herd.api.tuning_grpo import engine_of, problems_of
from herd.api.tuning_preferences import Aligned, Began, Watched, about, evaluated, nothing_yet, parts
from herd.data.account import Account
from herd.data.preparing import prepared
from herd.data.samples import Chat, Passage
from herd.data.shapes import read_samples
from herd.errors import FileProblem, UsageError
from herd.family.progress import Progress, silent
from herd.training.allocation import keep_memory
from herd.training.batches import Document
from herd.training.curves import write_svg
from herd.training.distill import Distillation, EngineTeacher, OnPolicy, check_vocabulary, taught
from herd.training.distill_settings import DistillSettings
from herd.training.facts import gathered
from herd.training.loop import Told, train
from herd.training.loop import silent as nobody
from herd.training.optim import kinds_of, make_optimiser
from herd.training.rollouts import EngineSampler
from herd.training.runs import Run, open_run
from herd.training.student import Student
from herd.training.teacher_file import LIST, TeacherFolder, TeacherWriter

WORDS = "teacher"


def tune_distill(
    settings: DistillSettings,
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
        return (_stored if settings.way == "stored" else _on_policy)(settings, folder, opened, (resume, force), Watched(told), began)


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


def _stored(settings: DistillSettings, folder: Path, opened: Opened, again: tuple[bool, bool], watched: Watched, began: Began) -> Aligned:
    account = Account()
    words_folder = Path(settings.words) if settings.words else folder.with_name(f"{folder.name}-{WORDS}")
    keep_words(settings, opened, account, words_folder)
    words = TeacherFolder(words_folder)
    _same_words(opened, words.vocabulary, settings)
    if words.temperature != settings.temperature:
        raise UsageError(f"{words_folder} was kept at temperature {words.temperature}, and the run asks for {settings.temperature}.")
    learned, held_out = parts(list(words.read()), settings.held_out, settings.loop.seed)
    if not learned:
        raise FileProblem(f"{words_folder}: nothing is left to learn from when {len(held_out)} examples are held out.")
    settings = evaluated(settings.resolved(len(learned)), bool(held_out))
    facts = gathered(words.files, opened.checkpoint.digest(), about("distill", opened, account))
    with open_run(folder, settings, facts, resume=again[0], force=again[1]) as run:
        student = opened.student(settings.student, settings.loop.seed)
        recipe = Distillation(
            student=student,
            learned=learned,
            held_out=held_out,
            targets=settings.targets,
            temperature=words.temperature,
            steps=settings.loop.steps,
            size=settings.batch,
            pack=settings.pack,
            seed=settings.loop.seed,
        )
        return _run(settings, recipe, run, opened, student, account, watched, began)


def _on_policy(
    settings: DistillSettings, folder: Path, opened: Opened, again: tuple[bool, bool], watched: Watched, began: Began
) -> Aligned:
    account = Account()
    prompts = [each.prompt for each in problems_of(opened, settings.data, account, opened.cfg.context_length, is_checked=False)]
    learned, held_out = parts(prompts, settings.held_out, settings.loop.seed)
    settings = evaluated(settings.resolved(len(learned)), bool(held_out))
    longest = max(len(prompt.tokens) for prompt in prompts) + settings.max_tokens
    facts = gathered(account.files, opened.checkpoint.digest(), about("distill", opened, account))
    with (
        open_run(folder, settings, facts, resume=again[0], force=again[1]) as run,
        engine_of(opened, settings.backend, longest, settings.batch * settings.answers) as engine,
        load(settings.teacher, backend=settings.backend, activations="float32", context=longest) as teacher,
    ):
        _same_words(opened, teacher.engine.backend.vocab_size, settings)
        student = opened.student(settings.student, settings.loop.seed)
        recipe = OnPolicy(
            student=student,
            sampler=EngineSampler(engine),
            teacher=EngineTeacher(teacher.engine),
            learned=learned,
            held_out=held_out,
            targets=settings.targets,
            k=settings.k,
            size=settings.batch,
            answers=settings.answers,
            max_tokens=settings.max_tokens,
            pack=settings.pack,
            seed=settings.loop.seed,
        )
        return _run(settings, recipe, run, opened, student, account, watched, began)


def _run(
    settings: DistillSettings,
    recipe: Distillation | OnPolicy,
    run: Run,
    opened: Opened,
    student: Student,
    account: Account,
    watched: Watched,
    began: Began,
) -> Aligned:
    check_vocabulary(opened.cfg.vocab_size, student)
    began(settings, account, sum(parameter.numel() for parameter in student.parameters.values()))
    optimiser = make_optimiser(settings.optimiser, kinds_of(student.cfg, student.parameters))
    end = train(recipe, run, settings.loop, optimiser, watched)
    model = finish(run.folder, opened, student) if end.is_complete else None
    return Aligned(run.folder, end, account, model, write_svg(run.folder), watched.figures)


def _documents(settings: DistillSettings, opened: Opened, account: Account) -> Sequence[Document]:
    tokenising, found = opened.tokenising(settings.learn), []
    for sample in read_samples(settings.data, account):
        if not isinstance(sample, Chat | Passage):
            raise UsageError(f"{sample.place}: is a record of the shape {account.shape}; a teacher reads conversations or text.")
        for examples in prepared([sample], tokenising, account, max_tokens=settings.max_tokens, too_long="split"):
            found += [opened.document(example) for example in examples]
    account.require_kept()
    return found


def _same_words(opened: Opened, vocabulary: int, settings: DistillSettings) -> None:
    if vocabulary != opened.cfg.vocab_size:
        raise UsageError(
            f"{settings.teacher} has {vocabulary} tokens and {settings.model} has {opened.cfg.vocab_size}; distillation needs the same "
            "vocabulary."
        )
