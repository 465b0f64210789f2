"""The whole answer for one model: what it takes, where it fits, how fast it is there, what that costs, what else would change it."""

from __future__ import annotations

import datetime
from collections.abc import Hashable, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, cast

from herd.dtypes import DType
from herd.errors import UsageError
from herd.models.architecture import Config, classifying
from herd.models.sizes import count_parameters
from herd.planner.cost import Cost, reckon_cost
from herd.planner.devices import Device
from herd.planner.fit import Fit, smallest
from herd.planner.formats import Format, format_named
from herd.planner.memory import Load, Memory, check_load, reckon
from herd.planner.published import Claim, claims_about
from herd.planner.services import offers_of
from herd.planner.speed import EXPECTED, PEAK, Shares, Speed, Work, predict
from herd.planner.units import size
from herd.records import dataclass

if TYPE_CHECKING:
    from herd.family.release import Release

OTHER_FORMATS = ("bf16", "fp8", "q8_0", "q4_0")


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """What is asked. `devices` are compared; `whole`: local layers keep every token too; `shares`: what of its peaks a device reaches."""

    release: Release
    config: Config
    stored: Format
    cache: DType
    load: Load
    devices: Sequence[Device]
    today: datetime.date
    whole: bool = False
    dollars_per_kwh: float | None = None
    shares: Shares = EXPECTED


@dataclass(frozen=True, slots=True)
class Choice:
    """One kind of device: the fewest that hold the model, and then how fast and dear they are. `bound` at their peaks."""

    fit: Fit
    bound: Speed | None
    expected: Speed | None
    cost: Cost | None


@dataclass(frozen=True, slots=True)
class Change:
    """What one other answer to the question would do: memory in all, devices, and tokens per second; None: it does not fit."""

    what: str
    total: int
    devices: int | None
    alone: float | None
    together: float | None
    why_not: str = ""


@dataclass(frozen=True, slots=True)
class Plan:
    """The answer. `best`: the choice that the details are about. `notes` are what a reader should know, `warnings` what to look up."""

    question: Question
    memory: Memory
    choices: tuple[Choice, ...]
    best: Choice | None
    changes: tuple[Change, ...]
    claims: tuple[Claim, ...]
    notes: tuple[str, ...]
    warnings: tuple[str, ...]


def ask(
    release: Release, *, quant: str, cache: DType, load: Load, devices: Sequence[Device], today: datetime.date, whole: bool = False,
    dollars_per_kwh: float | None = None, shares: Shares = EXPECTED,
) -> Question:  # fmt: skip
    """A question whose parts fit together. `UsageError` explains what cannot be."""
    config = release.config()
    if classifying(config) is not None:
        raise UsageError(
            f"{release.name} reads whole texts of up to {config.context_length} tokens and writes none, so there is no load to plan; its "
            f"weights take {size(4 * count_parameters(config))} in 32 bits, and it runs on any machine."
        )
    check_load(config, load, release.name)
    if load.pictures and "image" not in release.inputs:
        raise UsageError(f"--pictures is {load.pictures}; {release.name} takes text only.")
    stored = format_named(quant, release, config)
    return Question(
        release=release, config=config, stored=stored, cache=cache, load=load, devices=tuple(devices), today=today, whole=whole,
        dollars_per_kwh=dollars_per_kwh, shares=shares,
    )  # fmt: skip


def answer(question: Question, *, with_changes: bool = True) -> Plan:
    """The plan for a question."""
    choices = tuple(choose(question, device) for device in question.devices)
    best = _best(choices)
    notes = tuple(_notes(question))
    warnings = dict.fromkeys(line for choice in ([best] if best else []) if choice.cost for line in choice.cost.warnings)
    return Plan(
        question=question,
        memory=memory_of(question, best.fit.device.kind if best else "gpu", best.fit.devices if best else 1),
        choices=choices,
        best=best,
        changes=tuple(_changes(question, best)) if with_changes and best is not None else (),
        claims=tuple(claims_about(question.release.name, question.stored.name)),
        notes=notes,
        warnings=tuple(warnings),
    )


def memory_of(question: Question, kind: str, devices: int = 1) -> Memory:
    return reckon(question.config, question.stored, question.cache, question.load, kind=kind, whole=question.whole, devices=devices)


def choose(question: Question, device: Device) -> Choice:
    """The fewest of these devices that hold the model under its load, their speed and cost."""
    fit = smallest(question.config, memory_of(question, device.kind), device)
    if fit.layout is None:
        return Choice(fit, None, None, None)
    work = _work(cast(Hashable, question.config), question.stored.on(device.kind), question.cache)
    bound = predict(work, device, fit.layout, question.load, PEAK)
    expected = predict(work, device, fit.layout, question.load, question.shares)
    offers = [offer for offer in offers_of(question.release) if offer.takes(question.load.conversation_tokens)]
    cost = reckon_cost(device, fit.devices, expected, question.load, offers, question.today, question.dollars_per_kwh)
    return Choice(fit, bound, expected, cost)


@lru_cache(maxsize=64)
def _work(config: Hashable, stored: Format, cache: DType) -> Work:
    return Work(cast(Config, config), stored, cache)


def _best(choices: Sequence[Choice]) -> Choice | None:
    """The cheapest for a million tokens at the lowest known rent; without prices, the fewest devices."""
    fitting = [choice for choice in choices if choice.fit.layout is not None]

    def rank(choice: Choice) -> tuple[float, int]:
        known = choice.cost.per_million if choice.cost is not None else None
        return (known.low if known is not None else float("inf"), choice.fit.devices)

    return min(fitting, key=rank, default=None)


def _changes(question: Question, best: Choice) -> list[Change]:
    """The same question with another format, another context, and half or twice the users, on the best device."""
    found = []
    for name in OTHER_FORMATS:
        if name != question.stored.name:
            found.append(_changed(question, best, f"stored as {name}", quant=name))
    context, most = question.load.context, question.config.context_length
    for other in dict.fromkeys((max(question.load.conversation_tokens, context // 4), min(most, context * 4), most)):
        if other != context:
            found.append(_changed(question, best, f"{other:,} tokens of context", load=_with(question.load, context=other)))
    for users in dict.fromkeys((max(1, question.load.users // 4), question.load.users * 4)):
        if users != question.load.users:
            found.append(
                _changed(question, best, f"{users:,} user{'s' if users > 1 else ''} at once", load=_with(question.load, users=users))
            )
    return found


def _changed(question: Question, best: Choice, what: str, *, quant: str | None = None, load: Load | None = None) -> Change:
    device = best.fit.device
    try:
        other = ask(
            question.release, quant=quant or question.stored.name, cache=question.cache, load=load or question.load, devices=[device],
            today=question.today, whole=question.whole, shares=question.shares,
        )  # fmt: skip
    except UsageError as error:
        return Change(what, 0, None, None, None, str(error))
    choice = choose(other, device)
    total = memory_of(other, device.kind, max(1, choice.fit.devices)).total
    if choice.expected is None:
        return Change(what, total, None, None, None, choice.fit.why)
    return Change(what, total, choice.fit.devices, choice.expected.alone, choice.expected.together)


def _with(load: Load, *, users: int | None = None, context: int | None = None) -> Load:
    return Load(users or load.users, context or load.context, load.prompt_tokens, load.answer_tokens, load.pictures)


def _notes(question: Question) -> list[str]:
    release, load = question.release, question.load
    notes = [f"{question.stored.name}: {question.stored.note}."]
    memory = memory_of(question, "gpu")
    if memory.cache_kept_whole > sum(memory.cache.values()) * 1.05 and not question.whole:
        notes.append(
            f"Local layers are counted with what they can still see, which is what herd's engine keeps. An engine that keeps all of their "
            f"tokens takes {size(memory.cache_kept_whole)} instead of {size(sum(memory.cache.values()))} of keys and values (--keep-all "
            "counts it so)."
        )
    if load.users > 1:
        notes.append(
            f"Keys and values are for {load.users:,} conversations of {load.conversation_tokens:,} tokens, one of them grown to "
            f"{load.context:,}."
        )
    short = sorted({offer.service for offer in offers_of(release) if not offer.takes(load.conversation_tokens)})
    if short:
        notes.append(f"Hosted services that take no conversations of {load.conversation_tokens:,} tokens: {', '.join(short)}.")
    if release.unverified:
        notes.append(f"Not verified: {release.unverified}.")
    return notes
