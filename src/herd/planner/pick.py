"""Which model: those that can do what is asked, best first, each with its reasons; and why the others are out.

Order: by the published score that says most about the task. A model without it takes its base model's, or stands where the
largest smaller model of its time does; both are said. Scores of different cards were not measured alike, so neighbours in the list
are about equal.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from herd.errors import UsageError, did_you_mean
from herd.family.catalogue import known, releases
from herd.family.scores import scores_of
from herd.planner.devices import Device
from herd.planner.fit import on_each
from herd.planner.formats import format_named
from herd.planner.licence import check
from herd.planner.memory import USABLE_SHARE, Load, cache_format, reckon
from herd.planner.speed import Layout, Work, predict
from herd.planner.units import size
from herd.records import dataclass

if TYPE_CHECKING:
    from herd.family.release import Release

TASKS: Mapping[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "chat": (("instruct",), ("MMLU-Pro", "MMLU")),
    "code": (("instruct",), ("HumanEval", "MMLU-Pro", "MMLU")),
    "infill": (("base", "instruct"), ("HumanEval",)),
    "pictures": (("instruct",), ("MMMU",)),
    "tune": (("base",), ("MMLU-Pro", "MMLU")),
    "moderation": (("guard",), ()),
    "injection": (("classifier",), ()),
}
"""For each task the kinds of release that do it, and the benchmarks that say most about it, first things first."""
FORMATS = ("bf16", "q8_0", "q4_0")


@dataclass(frozen=True, slots=True, kw_only=True)
class Wish:
    """What is asked. `memory` in bytes or a `device`, which has one; `use` and `region` for the licence."""

    task: str = "chat"
    languages: tuple[str, ...] = ()
    pictures: bool = False
    context: int | None = None
    memory: int | None = None
    device: Device | None = None
    region: str = "other"
    use: str = "internal"


@dataclass(frozen=True, slots=True)
class Candidate:
    """A model that can do it: the widest format that fits, bytes with it, tokens a second where a device is known, and reasons."""

    release: Release
    format: str
    num_bytes: int
    tokens_per_s: float | None
    reasons: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Pick:
    """Candidates, best first; and of the others why each is out."""

    candidates: tuple[Candidate, ...]
    out: Mapping[str, str]


def pick(wish: Wish) -> Pick:
    """The short list for a wish. `UsageError` for an unknown task or language."""
    _check(wish)
    kinds, _ = TASKS[wish.task]
    found: list[tuple[tuple[float, ...], Candidate]] = []
    out: dict[str, str] = {}
    for release in releases().values():
        if release.kind not in kinds or release.quantised:
            continue
        why_not = _why_not(release, wish)
        if why_not is None:
            candidate = _fitting(release, wish)
            if candidate is not None:
                found.append((_rank(release, wish.task)[0], candidate))
                continue
            why_not = "too large, at 4 bits too"
        out[release.name] = why_not
    found.sort(key=lambda each: (*each[0], each[1].release.released.toordinal()), reverse=True)
    return Pick(tuple(candidate for _, candidate in found), out)


def _check(wish: Wish) -> None:
    if wish.task not in TASKS:
        raise UsageError(f"--task is {wish.task!r:.40}{did_you_mean(wish.task, TASKS)} The tasks are {', '.join(TASKS)}.")
    spoken = {language for release in releases().values() for language in release.languages}
    for language in wish.languages:
        if language not in spoken:
            raise UsageError(
                f"--languages has {language!r:.20}; some release is made for each of {', '.join(sorted(spoken))}, by two letters."
            )


def _why_not(release: Release, wish: Wish) -> str | None:
    """Why a model is out before its size is looked at; None: it is not."""
    speaks = release.image_languages if wish.pictures and release.image_languages else release.languages
    missing = [language for language in wish.languages if speaks and language not in speaks]
    if not release.is_takeable() or release.shape is None:
        return "it cannot be had"
    if (wish.pictures or wish.task == "pictures") and "image" not in release.inputs:
        return "it takes no pictures"
    if missing:
        return f"it is not made for {', '.join(missing)}{' with pictures' if wish.pictures else ''}"
    if wish.task == "infill" and not release.can_infill:
        return "it cannot fill gaps"
    if wish.context is not None and wish.context > (release.context_length or 0):
        return f"its context is {release.context_length:,}"
    ruling = check(release.name, {"region": wish.region, "use": wish.use})
    if ruling.verdict in ("not-granted", "separate-licence-needed"):
        return f"its licence does not grant it ({', '.join(next(f.clauses for f in ruling.findings if f.verdict == ruling.verdict))})"
    return None


def _fitting(release: Release, wish: Wish) -> Candidate | None:
    """The widest format that fits; without a limit, as published."""
    config = release.config()
    context = min(wish.context or 8192, config.context_length)
    kind = wish.device.kind if wish.device is not None else "cpu"
    memory = wish.memory if wish.memory is not None else wish.device.memory if wish.device is not None else None
    load = Load(1, context, max(1, context - context // 4), max(1, context // 4))
    for name in FORMATS:
        if release.kind == "classifier" and name != "bf16":
            return None
        stored, cache = format_named(name, release, config), cache_format("f16")
        taken = reckon(config, stored, cache, load, kind=kind)
        needed = on_each(config, taken, Layout(), kind)
        if memory is None or needed <= memory * USABLE_SHARE[kind]:
            rate = None
            if wish.device is not None and release.kind != "classifier":
                rate = predict(Work(config, stored.on(kind), cache), wish.device, Layout(), load).alone
            return Candidate(release, name, needed, rate, tuple(_reasons(release, wish, name, needed, rate)))
    return None


def _reasons(release: Release, wish: Wish, stored: str, needed: int, rate: float | None) -> list[str]:
    said = _rank(release, wish.task)[1]
    found = [said] if said else []
    found.append(f"{size(needed)} as {stored}" + ("" if rate is None else f", about {rate:,.3g} tokens/s"))
    if wish.languages:
        found.append(f"made for {', '.join(wish.languages)}" if release.languages else "its languages are not stated")
    if wish.context is not None:
        found.append(f"context {release.context_length:,}")
    ruling = check(release.name, {"region": wish.region, "use": wish.use})
    words = {"allowed": "free to use so", "allowed-with-duties": "allowed with duties", "ask-a-lawyer": "licence: ask a lawyer"}
    found.append(f"{ruling.licence.title}: {words[ruling.verdict]}")
    return found


def _rank(release: Release, task: str) -> tuple[tuple[float, ...], str]:
    """Where a model stands: which benchmark (the first counts most), the score, its size; and how that is said."""
    _, benchmarks = TASKS[task]
    count = float(release.parameters or 0)
    base = None if release.base is None else known(release.base)
    weights = {benchmark: float(len(benchmarks) - place) for place, benchmark in enumerate(benchmarks)}
    for benchmark, weight in weights.items():
        if (own := _score(release, benchmark)) is not None:
            return (weight, own, count), f"{benchmark} {own:g}"
    for benchmark, weight in weights.items():
        if base is not None and (inherited := _score(base, benchmark)) is not None:
            return (weight, inherited, count), f"{benchmark} {inherited:g} of {base.name}, which it is made from"
    for benchmark, weight in weights.items():
        if (smaller := _by_size(release, benchmark)) is not None:
            return (weight, smaller[1], count), f"no published score; placed by its size beside {smaller[0]}"
    return (0.0, float(release.released.toordinal()), count), ""


def _by_size(release: Release, benchmark: str) -> tuple[str, float] | None:
    """The largest smaller model of its kind and no later day, that has the score."""
    found = [
        (other.parameters or 0, other.name, score)
        for other in releases().values()
        if other.kind == release.kind and other.released <= release.released and (other.parameters or 0) <= (release.parameters or 0)
        if (score := _score(other, benchmark)) is not None
    ]  # fmt: skip
    return None if not found else (max(found)[1], max(found)[2])


def _score(release: Release, benchmark: str) -> float | None:
    """The published score, whatever the prompt ("MMLU CoT" counts as MMLU); the highest, where there are several."""
    exact: Sequence[str] = (benchmark, f"{benchmark} CoT", benchmark.replace("-", " "))
    values = [score.value for score in scores_of(release.name) if score.benchmark in exact]
    return max(values, default=None)
