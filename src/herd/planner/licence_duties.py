"""What has to be done along with an allowed use: copies, notices, badges, names."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator

from herd.planner.licence_answers import Answers
from herd.planner.licence_data import Licence

Duty = tuple[str, tuple[str, ...], str, str]
"""The duty ("" for none), the clauses, why, and the doubt that is left ("" for none)."""


def apache_duties(answers: Answers) -> Iterator[tuple[str, str, str]]:
    """(duty, clause, why) of section 4, where copies or derivatives are handed on."""
    if not answers.is_handed_over():
        return
    yield "agreement-copy", "4.a", "Whoever gets the work gets a copy of the licence."
    if answers["use"] in ("derivative-model", "train-other-model"):
        yield "changes-marked", "4.b", "Changed files say that they were changed."
    yield "keep-notices", "4.c", "Notices of the source stay, and NOTICE where there is one."


def community_duties(licence: Licence, answers: Answers) -> Iterator[Duty]:
    """The duties of 1.b.i and 1.b.iii for Llama 2 and later."""
    if answers["use"] == "derivative-model":
        yield "", ("5.b",), "Your changes are yours.", ""
    if answers["role"] == "end-user":
        return
    if answers.is_handed_over():
        yield from _handed_over(licence, answers)
    elif answers.is_service():
        yield from _service(licence, answers)
    if answers["use"] == "train-other-model" and answers["trains_other_model_with"] == "outputs":
        yield from _learned_from_outputs(licence, answers)


def _handed_over(licence: Licence, answers: Answers) -> Iterator[Duty]:
    yield "agreement-copy", ("1.b.i",), "Whoever gets the materials or a derivative gets a copy of the licence.", _doubt_of_change(answers)
    yield "notice-file", ("1.b.iii",), "Every copy keeps the attribution line in a text file called Notice.", ""
    if licence.badge is not None:
        yield "built-with-badge", ("1.b.i",), f'Show "{licence.badge}".', ""
    if answers["use"] in ("derivative-model", "train-other-model"):
        yield from _name(licence, answers)


def _doubt_of_change(answers: Answers) -> str:
    doubts = {"adapter": "adapter-only", "quantised": "quantised-is-new-model"}
    return doubts.get(answers["change"], "") if answers["use"] == "derivative-model" else ""


def _service(licence: Licence, answers: Answers) -> Iterator[Duty]:
    if answers["hosted_by"] == "third-party":
        is_using = licence.badge_reaches_callers
        why = "A service that calls a hosted model uses it, and the licence says using." if is_using else "The licence says containing."
        yield "built-with-badge" if is_using else "", ("1.b.i",), why, "service-calls-hosted-model"
    elif licence.badge is None:
        yield "", ("1.b.i",), "Copies and notices are due where materials are made available; a service hands out answers.", "hosted-access"
    else:
        yield "agreement-copy", ("1.b.i",), "The licence names services beside products.", "agreement-copy-for-hosted-service"
        yield "built-with-badge", ("1.b.i",), f'Show "{licence.badge}".', ""
    if answers["model_name"]:
        yield from _name(licence, answers)


def _learned_from_outputs(licence: Licence, answers: Answers) -> Iterator[Duty]:
    if licence.badge is None:
        return
    if answers.distributes != "yes":
        yield "", ("1.b.i",), "A name is due when a model is distributed or made available; this one is kept.", ""
        return
    yield "", ("1.b.i",), "The badge is for what contains or uses the materials.", "badge-for-output-trained"
    if licence.names_what_learned_from_outputs:
        yield from _name(licence, answers)


def _name(licence: Licence, answers: Answers) -> Iterator[Duty]:
    if licence.name_prefix is None:
        return
    _, doubt = meets_prefix(licence.name_prefix, answers["model_name"])
    yield (
        "name-prefix",
        ("1.b.i",),
        f'The name of a model that is distributed or made available begins with "{licence.name_prefix}".',
        doubt,
    )
    yield "brand-guidelines", ("5.a",), "The mark is lent for that name, under Meta's brand guidelines.", ""


def unmet_duties(licences: Iterable[Licence], answers: Answers, due: Collection[str]) -> tuple[str, ...]:
    """Duties that the answers show to be broken."""
    name = answers["model_name"]
    prefixes = [licence.name_prefix for licence in licences if licence.name_prefix is not None]
    is_broken = name and "name-prefix" in due and not all(meets_prefix(prefix, name)[0] for prefix in prefixes)
    return ("name-prefix",) if is_broken else ()


def meets_prefix(prefix: str, name: str) -> tuple[bool, str]:
    """Whether a name begins as it must, and the doubt that is left. Other joints than a space are doubtful and do; other letter
    case is doubtful and does not."""
    if not name:
        return True, ""
    if name.startswith(prefix):
        return True, ""
    spellings = tuple(prefix.replace(" ", joint) for joint in ("-", "_", "")) if " " in prefix else ()
    if spellings and name.startswith(spellings):
        return True, "prefix-spelling"
    if name.lower().startswith(tuple(each.lower() for each in (prefix, *spellings))):
        return False, "prefix-letter-case"
    return False, ""
