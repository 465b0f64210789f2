"""`herd licence`: may we, and what do we have to do along with it."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import click

from herd.cli.options import Examples, offline_option
from herd.errors import UsageError

if TYPE_CHECKING:
    from herd.family.release import Release
    from herd.planner.licence import Ruling

OPTIONS: tuple[tuple[str, str, str], ...] = (
    ("distributes", "YES|NO", "Whether what is made reaches anybody outside."),
    ("commercial", "YES|NO", "Whether money or production is the aim (Llama 1)."),
    ("licensee", "KIND", "individual, company or other-entity."),
    ("region", "PLACE", "Domicile or principal place of business: eu, eea-or-switzerland, other."),
    ("users_per_month", "N", "Users of licensee and affiliates in the month before the release, such as 10M; or unknown."),
    ("own_users_per_month", "N", "Of them, the licensee's own."),
    ("users_now", "N", "Today's users; decides nothing."),
    ("affiliate_joined_after_release", "YES|NO", "Whether the limit is passed only through a company that joined later."),
    ("customers_region", "PLACE", "eu or other; decides nothing."),
    ("eu_subsidiary", "YES|NO", "Whether a subsidiary in the EU uses the model itself."),
    ("role", "ROLE", "end-user: has it only as part of somebody's finished product; else developer."),
    ("hosted_by", "WHO", "third-party: somebody else holds the weights; else self."),
    ("modality", "KIND", "What is put in: text or image."),
    ("vision_removed", "YES|NO", "Whether only the text part is kept and used."),
    ("change", "KIND", "How a derivative was made: fine-tuned, adapter, quantised, merged."),
    ("also_derived_from", "MODELS", "Other releases that went into a merge, with commas."),
    ("trains_other_model_with", "WHAT", "materials or outputs teach another model; none."),
    ("improves", "WHAT", "same-generation, other-llama, other-llm, small-language-model, other-ai; none."),
    ("model_name", "NAME", "Name of the derivative, or of the model that was taught."),
    ("mark_use", "HOW", "brand, descriptive or none."),
    ("purpose", "PURPOSE", "ordinary, or one that a use policy names: military, malware, fraud, ..."),
    ("litigation", "KIND", "claims-model-infringes, other or none."),
    ("terminated", "YES|NO", "Whether Meta ended the licence for breach."),
    ("separate_licence", "YES|NO", "Whether Meta gave you a licence of your own."),
    ("access", "HOW", "by-application, or other: a copy that somebody passed on (Llama 1)."),
)
"""The answers that can be given as options, besides --use and --derivative."""


def _answer_options(function: Any) -> Any:
    for name, metavar, told in reversed(OPTIONS):
        function = click.option(f"--{name.replace('_', '-')}", name, metavar=metavar, help=told)(function)
    return function


@click.command(
    cls=Examples,
    short_help="May we use it so, and what must we do.",
    examples="""
    herd licence                                           asks everything
    herd licence llama-4-scout                             asks the questions that matter
    herd licence llama-3.1-8b --use product --region eu --users-per-month 10M
    herd licence llama-3.3-70b-instruct --use service --derivative yes --model-name Llama-Bank
    herd licence llama-2-7b --use train-other-model --trains-other-model-with outputs --improves other-llm
    """,
)
@click.argument("model", required=False)
@click.option(
    "--use",
    "uses",
    multiple=True,
    metavar="USE",
    help="research, internal, service, product, redistribute-weights, derivative-model, train-other-model; can be repeated.",
)
@click.option("--derivative", metavar="YES|NO", help="Whether a model made from this one is what is used so.")
@_answer_options
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@offline_option
def licence(model: str | None, uses: tuple[str, ...], derivative: str | None, as_json: bool, **options: str | None) -> None:
    """Say whether the licence of MODEL allows a use: each rule, its clause and the answer that triggered it. Not legal advice."""
    from herd.cli.output import is_terminal, print_json
    from herd.family.catalogue import find
    from herd.planner.licence import check
    from herd.planner.licence_report import ruling_data

    given: dict[str, Any] = {name: value for name, value in options.items() if value is not None}
    is_asking = not given and not uses and derivative is None and is_terminal(sys.stdin) and not as_json
    if model is None and not is_asking:
        raise UsageError("Name a model: herd licence llama-3.1-8b. `herd models` lists what is known.")
    release = _asked_release() if model is None else find(model)
    asked = [_ask(release)] if is_asking else _each_use(given, uses, derivative)
    with _told_by_option(given):
        rulings = [(each, check(release.name, each)) for each in asked]
    if as_json:
        print_json({"rulings": [{"answers": each, **ruling_data(ruling)} for each, ruling in rulings]})
        return
    for number, (each, ruling) in enumerate(rulings):
        if number:
            click.echo("")
        _print(ruling, each)


@contextmanager
def _told_by_option(given: Mapping[str, Any]) -> Iterator[None]:
    """What is wrong with an answer names the option that it was given with."""
    try:
        yield
    except UsageError as problem:
        field = next((name for name in given if str(problem).startswith(f"{name} ")), None)
        if field is None:
            raise
        raise UsageError(f"--{field.replace('_', '-')}{str(problem)[len(field) :]}") from problem


def _each_use(given: dict[str, Any], uses: tuple[str, ...], derivative: str | None) -> list[dict[str, Any]]:
    """One set of answers for each use; a derivative is a further one, which reaches whoever the other uses reach."""
    if derivative is not None and derivative.lower() not in ("yes", "no"):
        raise UsageError(f"--derivative is {derivative!r:.40}; it must be yes or no.")
    if (derivative or "").lower() == "no" and "derivative-model" in uses:
        raise UsageError("--use derivative-model and --derivative no contradict each other. Leave one of them out.")
    found = [{**given, "use": use} for use in uses] or ([] if (derivative or "").lower() == "yes" else [given])
    if (derivative or "").lower() == "yes" and "derivative-model" not in uses:
        reaches = any(use in ("service", "product", "redistribute-weights") for use in uses)
        found.append({**given, "use": "derivative-model", "distributes": given.get("distributes", "yes" if reaches else "no")})
    return found


def _asked_release() -> Release:
    """Asks until a name is known."""
    from herd.family.catalogue import find

    while True:
        try:
            return find(click.prompt("Which model?"))
        except UsageError as error:
            click.echo(str(error), err=True)


def _ask(release: Release) -> dict[str, Any]:
    """Asks what matters, one question after another; an empty answer takes the usual one."""
    from herd.planner.licence import USERS_LIMIT, licence_of
    from herd.planner.licence_answers import UNKNOWN, Answers, next_question

    given: dict[str, Any] = {}
    month = licence_of(release).counted_month or "the month before its release"
    while (question := next_question(given, release, USERS_LIMIT)) is not None:
        usual = question.default or (UNKNOWN if question.field == "users_per_month" else "no" if question.choices else "")
        asks = question.asks.format(month=month)
        if question.choices:
            asks += f"\n  {', '.join(question.choices)}"
        answer = click.prompt(asks, default=usual, show_default=bool(usual))
        try:
            given[question.field] = Answers({question.field: answer}).given[question.field] if answer else _nothing(question.field)
        except UsageError as error:
            click.echo(str(error), err=True)
    return given


def _nothing(field: str) -> Any:
    return () if field == "also_derived_from" else "unknown" if field.endswith("per_month") else ""


def _print(ruling: Ruling, given: dict[str, Any]) -> None:
    from herd.planner.licence import DISCLAIMER
    from herd.planner.licence_data import licence_data
    from herd.planner.licence_report import OPEN_SOURCE, OPEN_WEIGHTS, VERDICT_WORDS

    data = licence_data()
    click.echo(f"{ruling.release.name}, {ruling.licence.title}, use: {given.get('use', 'internal')}")
    click.echo(f"{VERDICT_WORDS[ruling.verdict]}\n")
    for found in sorted(ruling.findings, key=lambda each: each.verdict == "allowed"):
        clauses = f" [{', '.join(found.clauses)}]" if found.clauses else ""
        mark = " " if found.verdict == "allowed" else "!"
        because = f" ({found.because})" if found.because else ""
        click.echo(f"{mark} {found.why}{clauses}{because}")
    _section("To do", [data.duties[duty] + ("  NOT MET by these answers" if duty in ruling.unmet else "") for duty in ruling.duties])
    _section("Badge", ruling.badges if ruling.is_allowed else ())
    _section("Line for the Notice file", ruling.notices if ruling.is_allowed else ())
    _section("Open questions", [data.doubts[doubt] for doubt in ruling.doubts])
    click.echo("")
    if ruling.licence.counted_month is not None:
        click.echo(f"Users are those of {ruling.licence.counted_month}.")
    if ruling.contracting_party is not None:
        click.echo(f"Licensor: {ruling.contracting_party}")
    click.echo(f"{OPEN_SOURCE if ruling.licence.is_open_source else OPEN_WEIGHTS}")
    _assumed(given)
    click.echo(f"Source: {ruling.licence.source}. {DISCLAIMER}")


def _section(title: str, lines: Any) -> None:
    if lines:
        click.echo(f"\n{title}")
        for line in lines:
            click.echo(f"  {line}")


def _assumed(given: dict[str, Any]) -> None:
    """The answers that decide most and were not given."""
    from herd.planner.licence_answers import Answers

    answers = Answers(given)
    users = f"{answers.users:,}" if answers.users is not None else "unknown"
    usual = {"use": answers["use"], "users_per_month": users, **{name: answers[name] for name in ("licensee", "region", "role", "purpose")}}
    taken = [f"{name.replace('_', ' ')} {value}" for name, value in usual.items() if name not in given]
    if taken:
        click.echo(f"Not said, and taken to be: {', '.join(taken)}.")
