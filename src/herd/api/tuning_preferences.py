"""Preference optimisation and reward models, from settings to a folder: pairs made of the data, and the recipes over them."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

from herd.api.tuning import Opened
from herd.api.tuning_data import only, parted, read
from herd.api.tuning_run import PLAIN, Conduct, Lesson, Tuned, conducted, over_examples
from herd.data.account import Account
from herd.data.samples import Judged, Preference
from herd.errors import UsageError
from herd.models.weights import Kind
from herd.training.company import Company
from herd.training.recipes.preferences import Judgement, Pair, Preferences, Reference
from herd.training.recipes.reward_model import HEAD, RewardModel, RewardTraining
from herd.training.settings.preferences import PreferenceSettings
from herd.training.settings.reward_model import RewardModelSettings
from herd.training.settings.student import StudentSettings
from herd.training.student.model import Student


def tune_preferences(settings: PreferenceSettings, folder: Path, conduct: Conduct = PLAIN) -> Tuned:
    """Runs DPO, SimPO, KTO or ORPO in `folder`, which `herd.load` takes when it has come to its end."""

    def lesson(opened: Opened, together: Company) -> Lesson:
        account = Account()
        loss = settings.loss
        items: list[Any] = (
            _judgements(opened, settings, account) if loss.method == "kto" else _pairs(opened, settings, account, loss.margin)
        )
        learned, held_out = parted(items, settings)
        settled = settings.resolved(len(learned), len(held_out))

        def recipe(student: Student, opening: ExitStack) -> Preferences:
            return Preferences(
                student=student,
                document=opened.document,
                loss=settled.loss,
                reference=reference_of(opened, student, settled.student) if settled.loss.needs_reference else None,
                **over_examples(settled, learned, held_out, together),
            )

        return Lesson(name=settled.loss.method, settings=settled, account=account, recipe=recipe)

    return conducted(settings, folder, conduct, lesson)


def tune_reward(settings: RewardModelSettings, folder: Path, conduct: Conduct = PLAIN) -> Tuned:
    """Learns a reward model from pairs: its updates or weights as of every run, and `reward.safetensors` in the run's folder."""

    def lesson(opened: Opened, together: Company) -> Lesson:
        account = Account()
        learned, held_out = parted(_pairs(opened, settings, account, settings.margin), settings)
        settled = settings.resolved(len(learned), len(held_out))

        def recipe(student: Student, opening: ExitStack) -> RewardTraining:
            return RewardTraining(
                model=RewardModel(student),
                document=opened.document,
                centre=settled.centre,
                **over_examples(settled, learned, held_out, together),
            )

        def save_head(made: RewardTraining, run: Path) -> None:
            made.model.save_head(run)

        kinds = {HEAD: Kind.BIAS}
        return Lesson(name="reward", settings=settled, account=account, recipe=recipe, kinds=kinds, beside=save_head)

    return conducted(settings, folder, conduct, lesson)


def reference_of(opened: Opened, student: Student, settings: StudentSettings) -> Reference:
    """The model as it was: the student without its updates, or where all weights are learned a second one whose updates stay at zero."""
    if student.lora is not None:
        return Reference(student)
    frozen, is_exact = replace(settings, method="lora"), not student.adapters.rounds_tokens
    return Reference(student, opened.student(frozen, student.seed, student.sharing, exact_tokens=is_exact))


def _pairs(opened: Opened, settings: PreferenceSettings | RewardModelSettings, account: Account, margin: float) -> list[Pair]:
    """margin: what the records' own are multiplied by."""
    expected = "this recipe learns from records with prompt, chosen and rejected."
    found = list(read(opened, settings.data, account, only(Preference), expected, max_tokens=settings.max_tokens))
    if margin and all(sample.margin is None for sample, _ in found):
        raise UsageError(f"margin is {margin:g}, and no record of the data says by how much its chosen answer is better.", param="margin")
    for sample, _ in found:
        if margin and sample.margin is None:
            account.note("it says no margin, which counts as 0", sample.place)
        elif sample.margin is not None and not margin:
            account.note("its margin does not count; --margin 1 lets it", sample.place)
    return [Pair(chosen, rejected, margin * (sample.margin or 0.0)) for sample, (chosen, rejected) in found]


def _judgements(opened: Opened, settings: PreferenceSettings, account: Account) -> list[Judgement]:
    expected = "this recipe learns from records with prompt, completion and label (true or false)."
    found = read(opened, settings.data, account, only(Judged), expected, max_tokens=settings.max_tokens)
    return [Judgement(example, sample.is_good) for sample, (example,) in found]
