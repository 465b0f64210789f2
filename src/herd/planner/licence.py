"""May we? What the licence of a release says to a use of it: a verdict, the rules that led to it, and what has to be done.

    check("llama-3.1-8b", {"use": "product", "region": "eu"}) -> Ruling

Each rule is a function of a release's licence and the answers that gives findings: what it says, in which clause, because of which
answer. The verdict is the gravest of them. Where the wording leaves two readings that matter, the verdict is to ask a lawyer.
None of this is legal advice.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import field
from typing import Any

from herd.family.catalogue import find
from herd.family.release import Release
from herd.planner.licence_answers import Answers, contradictions
from herd.planner.licence_data import Licence, licence_data
from herd.planner.licence_duties import apache_duties, community_duties, unmet_duties
from herd.records import dataclass

VERDICTS = ("contradiction", "not-granted", "separate-licence-needed", "ask-a-lawyer", "allowed-with-duties", "allowed")
"""The gravest first."""
USERS_LIMIT = 700_000_000
EU_CLAUSE = "AUP EU clause"
DISCLAIMER = "This is not legal advice: it follows the wording of the licence and knows nothing else about you."
_IRISH, _AMERICAN = "Meta Platforms Ireland Limited", "Meta Platforms, Inc."


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """What one rule says: a verdict (allowed: it was looked at and does not stand in the way), where, why, because of which answer;
    the duty that it brings and the doubt that it leaves."""

    verdict: str
    clauses: tuple[str, ...]
    why: str
    because: str = ""
    duty: str = ""
    doubt: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ruling:
    """The answer. `duties` and `unmet` only where the use is allowed; `fields` only for contradictions."""

    release: Release
    licence: Licence
    verdict: str
    findings: tuple[Finding, ...]
    fields: tuple[str, ...] = ()
    unmet: tuple[str, ...] = ()
    badges: tuple[str, ...] = ()
    notices: tuple[str, ...] = ()
    contracting_party: str | None = None
    other_licences: tuple[str, ...] = field(default=())

    @property
    def duties(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(found.duty for found in self.findings if found.duty)) if self.is_allowed else ()

    @property
    def is_allowed(self) -> bool:
        return self.verdict in ("allowed", "allowed-with-duties")

    @property
    def clauses(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(clause for found in self.findings for clause in found.clauses))

    @property
    def doubts(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(found.doubt for found in self.findings if found.doubt))


def check(name: str, given: Mapping[str, Any]) -> Ruling:
    """The ruling for a use of a release. `UsageError` for unknown models, questions and answers."""
    release, answers = find(name), Answers(given)
    others = [find(other) for other in answers.also_derived_from]
    licence = licence_of(release)
    fields, said = contradictions(answers, release)
    if fields:
        findings = tuple(Finding(verdict="contradiction", clauses=(), why=f"{line}.") for line in said)
        return Ruling(release=release, licence=licence, verdict="contradiction", findings=findings, fields=fields)
    found = [*_findings(release, licence, answers)]
    for other in others:
        found += [*_findings(other, licence_of(other), answers), *_merge(licence, licence_of(other))]
    all_licences = {each.id: each for each in [licence, *map(licence_of, others)]}
    verdict = min((each.verdict for each in found), key=VERDICTS.index)
    if verdict in ("allowed", "allowed-with-duties"):
        verdict = "allowed-with-duties" if any(each.duty for each in found) else "allowed"
    is_due = {each.duty for each in found}
    return Ruling(
        release=release,
        licence=licence,
        verdict=verdict,
        findings=tuple(dict.fromkeys(found)),
        unmet=unmet_duties(all_licences.values(), answers, is_due) if verdict == "allowed-with-duties" else (),
        badges=tuple(dict.fromkeys(each.badge for each in all_licences.values() if each.badge and _wants_badge(found, each))),
        notices=tuple(line for each in all_licences.values() if "notice-file" in is_due and (line := each.notice_line())),
        contracting_party=_party(licence, answers),
        other_licences=tuple(name for name in all_licences if name != licence.id),
    )


def licence_of(release: Release) -> Licence:
    return licence_data().licences[release.licence_id]


def _wants_badge(found: list[Finding], licence: Licence) -> bool:
    return any(each.duty == "built-with-badge" and licence.badge is not None for each in found)


def _party(licence: Licence, answers: Answers) -> str | None:
    if licence.kind == "apache":
        return None
    return _IRISH if licence.kind == "community" and answers["region"] in ("eu", "eea-or-switzerland") else _AMERICAN


def _findings(release: Release, licence: Licence, answers: Answers) -> Iterator[Finding]:
    for doubt in licence_data().releases.get(release.name, ()):
        yield Finding(verdict="allowed", clauses=(), why=licence_data().doubts[doubt], doubt=doubt)
    if not release.is_released:
        yield Finding(
            verdict="not-granted", clauses=("definitions",), why="Nothing was released, so there is nothing that the licence grants."
        )
        return
    rules = {"research": _research, "community": _community, "apache": _apache}
    yield from rules[licence.kind](release, licence, answers)


def _research(release: Release, licence: Licence, answers: Answers) -> Iterator[Finding]:
    """Llama 1: non-commercial research by those who applied."""
    use, is_commercial = answers["use"], answers["commercial"] == "yes"
    yield from _common(licence, answers, brand="9", ended="7")
    if is_commercial or use in ("internal", "service", "product"):
        because = "commercial = yes" if is_commercial else f"use = {use}"
        yield Finding(
            verdict="not-granted",
            clauses=("1.a", "2.a"),
            why="The grant is for non-commercial research only; commercial and production purposes are ruled out, for outputs too.",
            because=because,
        )
        return
    yield Finding(verdict="allowed", clauses=("1.a", "2.a"), why="Non-commercial research is what is granted.", duty="research-only")
    if answers.distributes == "yes":
        yield _asks("llama-1-redistribution", ("1.a", "3"), f"use = {use}")
    if answers["access"] == "other":
        yield _asks("llama-1-access", ("1.a",), "access = other")


def _apache(release: Release, licence: Licence, answers: Answers) -> Iterator[Finding]:
    yield Finding(verdict="allowed", clauses=("2",), why="Use, copies and derivatives are granted to everybody for every purpose.")
    if answers["mark_use"] == "brand":
        yield Finding(verdict="not-granted", clauses=("6",), why="Trade names and marks are not licensed.", because="mark_use = brand")
    if answers["litigation"] == "claims-model-infringes":
        yield _asks("patent-litigation", ("3",), "litigation = claims-model-infringes")
    for duty, clause, why in apache_duties(answers):
        yield Finding(verdict="allowed", clauses=(clause,), why=why, because=f"use = {answers['use']}", duty=duty)
    if answers.is_service():
        yield Finding(verdict="allowed", clauses=("4",), why="Conditions begin with handing on copies; a service hands on none.")


def _community(release: Release, licence: Licence, answers: Answers) -> Iterator[Finding]:
    """Llama 2 and later."""
    yield Finding(
        verdict="allowed", clauses=("1.a",), why="Use, copies, derivatives and distribution are granted, under the conditions below."
    )
    yield Finding(verdict="allowed", clauses=("1.b.iv",), why="The law and the use policy bind every user.", duty="acceptable-use-policy")
    yield from _common(licence, answers, brand="5.a", ended="6")
    yield from _users(release, licence, answers)
    yield from _eu(release, licence, answers)
    yield from _improving(licence, answers)
    for duty, clauses, why, doubt in community_duties(licence, answers):
        yield Finding(verdict="allowed", clauses=clauses, why=why, because=f"use = {answers['use']}", duty=duty, doubt=doubt)
    if answers["region"] != "other":
        yield Finding(
            verdict="allowed", clauses=("definitions",), why=f"The licensor is {_IRISH}.", because=f"region = {answers['region']}"
        )  # fmt: skip


def _common(licence: Licence, answers: Answers, *, brand: str, ended: str) -> Iterator[Finding]:
    """Purposes, marks, suits and termination."""
    purpose, mark, suit = answers["purpose"], answers["mark_use"], answers["litigation"]
    clause = licence.policy.get(purpose)
    policy = ("1.b.iv",) if licence.kind == "community" else ()
    if purpose == "works-for-listed-industry" and clause is not None:
        yield _asks("listed-industry", (*policy, clause), f"purpose = {purpose}")
    elif clause is not None:
        yield Finding(verdict="not-granted", clauses=(*policy, clause), why="This purpose is ruled out.", because=f"purpose = {purpose}")
    if mark == "brand":
        why = "No trade mark is licensed beyond what the licence itself asks for."
        yield Finding(verdict="not-granted", clauses=(brand,), why=why, because="mark_use = brand")
    elif mark == "descriptive":
        yield Finding(
            verdict="allowed", clauses=(brand,), why="Saying what it is counts as customary description.", because="mark_use = descriptive"
        )
    if licence.kind == "community" and suit != "none":
        ends = suit == "claims-model-infringes"
        why = "A claim that the model or its outputs infringe your rights ends the licence." if ends else "Other suits leave it alone."
        yield Finding(verdict="not-granted" if ends else "allowed", clauses=("5.c",), why=why, because=f"litigation = {suit}")
    if answers["terminated"] == "yes":
        yield Finding(verdict="not-granted", clauses=(ended,), why="The licence has ended; delete the model.", because="terminated = yes")


def _users(release: Release, licence: Licence, answers: Answers) -> Iterator[Finding]:
    """Section 2: more than 700 million in the month before the release date of the version."""
    month, users, own = licence.counted_month, answers.users, answers.own_users
    if answers["role"] == "end-user":
        why = "Section 2 does not reach who has the model as part of a finished product of a licensee."
        yield Finding(verdict="allowed", clauses=("1.b.ii",), why=why, because="role = end-user")
        return
    if users is None:
        yield _asks("users-not-known", ("2",), "users_per_month = unknown")
        return
    because = f"users_per_month = {users:,} in {month}"
    if users <= USERS_LIMIT:
        yield Finding(
            verdict="allowed",
            clauses=("2",),
            why=f"Not more than {USERS_LIMIT:,} users in {month}; later growth changes nothing.",
            because=because,
        )
        return
    late = "version-release-date" if licence.version_date is not None and release.released > licence.version_date else ""
    if answers["separate_licence"] == "yes":
        why = "Meta granted the rights expressly, on its own terms."
        yield Finding(
            verdict="allowed", clauses=("2",), why=why, because="separate_licence = yes", duty="separate-licence-terms", doubt=late
        )
    elif answers["affiliate_joined_after_release"] == "yes":
        yield _asks("affiliates-of-which-day", ("2",), "affiliate_joined_after_release = yes")
    elif own is not None and max(own, users - own) <= USERS_LIMIT:
        yield _asks("affiliates-added-together", ("2",), f"own_users_per_month = {own:,}")
    else:
        why = (
            f"More than {USERS_LIMIT:,} users in {month}: no right before Meta grants one, whatever the use and however many there are now."
        )
        yield Finding(verdict="separate-licence-needed", clauses=("2",), why=why, because=because, doubt=late)


def _eu(release: Release, licence: Licence, answers: Answers) -> Iterator[Finding]:
    """The end of the use policies of 3.2, 3.3 and 4: no rights of 1.a to multimodal models for individuals and companies of the EU."""
    if not licence.eu_clause:
        return
    region, clauses = answers["region"], (EU_CLAUSE,)
    is_multimodal = "image" in release.inputs
    if not is_multimodal or region == "eea-or-switzerland":
        why = (
            "It is about multimodal models; this one is not."
            if not is_multimodal
            else "It is about the European Union, and this is outside it."
        )
        yield Finding(verdict="allowed", clauses=clauses, why=why, because=f"region = {region}")
    elif answers["role"] == "end-user":
        yield Finding(verdict="allowed", clauses=clauses, why="End users of a product or service are excepted.", because="role = end-user")
    elif region == "eu":
        yield from _in_the_eu(answers)
    elif answers["eu_subsidiary"] == "yes":
        yield _asks("eu-subsidiary", (EU_CLAUSE, "definitions"), "eu_subsidiary = yes")
    else:
        why = "The seat of the licensee decides, not that of servers or customers."
        yield Finding(verdict="allowed", clauses=clauses, why=why, because=f"region = {region}")


def _in_the_eu(answers: Answers) -> Iterator[Finding]:
    if answers["separate_licence"] == "yes":
        yield _asks("eu-separate-licence", (EU_CLAUSE, "2"), "separate_licence = yes")
    elif answers["hosted_by"] == "third-party":
        yield _asks("eu-api-customer", (EU_CLAUSE,), "hosted_by = third-party")
    elif answers["vision_removed"] == "yes":
        yield _asks("eu-vision-removed", (EU_CLAUSE,), "vision_removed = yes")
    elif answers["licensee"] == "other-entity":
        yield _asks("eu-entity-not-company", (EU_CLAUSE,), "licensee = other-entity")
    else:
        why = "Individuals domiciled and companies seated in the EU have no rights of 1.a to multimodal models, whatever is put in."
        yield Finding(verdict="not-granted", clauses=(EU_CLAUSE, "1.a"), why=why, because=f"region = eu, licensee = {answers['licensee']}")


def _improving(licence: Licence, answers: Answers) -> Iterator[Finding]:
    """1.b.v of Llama 2 and 3: no improving of other large language models, published or not."""
    taught, what = answers["trains_other_model_with"], answers["improves"]
    if taught == "none" or not licence.forbids_improving_other_llms:
        return
    because, clauses = f"improves = {what}, with {taught}", ("1.b.v",)
    if what == "other-llm":
        why = "Neither materials nor outputs may improve another large language model."
        yield Finding(verdict="not-granted", clauses=clauses, why=why, because=because)
    elif what == "other-llama":
        yield _asks("same-family", clauses, because)
    elif what == "small-language-model":
        yield _asks("what-is-large", clauses, because)
    else:
        why = "Its own generation is excepted." if what == "same-generation" else "The rule is about language models only."
        yield Finding(verdict="allowed", clauses=clauses, why=why, because=because)


def _merge(one: Licence, other: Licence) -> Iterator[Finding]:
    """Each licence binds its part; where one forbids improving others, whether a merge does is open."""
    if one.id != other.id and (one.forbids_improving_other_llms or other.forbids_improving_other_llms):
        yield _asks("merge-of-generations", ("1.b.i", "1.b.v"), "also_derived_from")


def _asks(doubt: str, clauses: tuple[str, ...], because: str) -> Finding:
    return Finding(verdict="ask-a-lawyer", clauses=clauses, why=licence_data().doubts[doubt], because=because, doubt=doubt)
