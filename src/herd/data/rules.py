"""Preferences that a rule decides: the better of two answers, without anybody's judgement, so that what is learned can be measured.

    shorter       the answer with fewer words
    longer        the answer with more words
    list          lines that all begin with "- "
    json          a JSON object
    uppercase     no small letter
    german        more words of German than of English, by their commonest words
    polite        ends with a thank-you

`obeys(rule, answer)` says whether an answer is as the rule wants it; for lengths it takes two (`prefers`).
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from herd.errors import UsageError, did_you_mean

_COMMON_GERMAN = "der die das und ist nicht ein eine ich du er sie es wir mit auf für von zu den dem des im wie was auch sind war"
_COMMON_ENGLISH = "the and is not a an i you he she it we with on for of to in how what also are was this that be have"
_GERMAN, _ENGLISH = frozenset(_COMMON_GERMAN.split()), frozenset(_COMMON_ENGLISH.split())
_WORD = re.compile(r"\w+")
_THANKS = ("thank you.", "thank you!", "thanks!", "thanks.")

Say = Callable[[str], str]


def num_words(text: str) -> int:
    return len(_WORD.findall(text))


def _is_list(text: str) -> bool:
    lines = [line for line in text.strip().split("\n") if line.strip()]
    return bool(lines) and all(line.startswith("- ") and len(line) > 2 for line in lines)


def _is_json(text: str) -> bool:
    try:
        return isinstance(json.loads(text), dict)
    except (ValueError, RecursionError):
        return False


def _is_german(text: str) -> bool:
    words = [word.casefold() for word in _WORD.findall(text)]
    return sum(word in _GERMAN for word in words) > sum(word in _ENGLISH for word in words)


_FORMS: Mapping[str, Callable[[str], bool]] = {
    "list": _is_list,
    "json": _is_json,
    "uppercase": lambda text: text.upper() == text and text.lower() != text,
    "german": _is_german,
    "polite": lambda text: text.rstrip().lower().endswith(_THANKS),
}
_LENGTHS: Mapping[str, int] = {"shorter": -1, "longer": 1}
RULES = (*_LENGTHS, *_FORMS)


def obeys(rule: str, answer: str) -> bool:
    """Whether an answer is as a rule of form wants it. `UsageError` for rules that compare two answers."""
    _check(rule)
    if rule in _LENGTHS:
        raise UsageError(f"the rule {rule} compares two answers; one alone neither obeys nor breaks it.")
    return _FORMS[rule](answer)


def prefers(rule: str, one: str, other: str) -> int:
    """1 if the rule prefers `one`, -1 for `other`, 0 if neither."""
    _check(rule)
    if rule in _LENGTHS:
        difference = (num_words(one) - num_words(other)) * _LENGTHS[rule]
        return (difference > 0) - (difference < 0)
    return int(_FORMS[rule](one)) - int(_FORMS[rule](other))


def rewritten(rule: str, text: str) -> str:
    """An answer changed so that it obeys a rule, where a program can do that: list, json, uppercase, polite, shorter."""
    _check(rule)
    sentences = [sentence.strip() for sentence in re.split(r"(?<=[.!?])\s+|\n+", text.strip()) if sentence.strip()]
    match rule:
        case "list":
            return "\n".join(f"- {sentence}" for sentence in sentences)
        case "json":
            return json.dumps({"answer": text.strip()}, ensure_ascii=False)
        case "uppercase":
            return text.strip().upper()
        case "polite":
            return f"{text.strip()} Thank you!"
        case "shorter":
            return sentences[0] if sentences else ""
        case _:
            raise UsageError(f"answers cannot be rewritten by the rule {rule}; compare two that there are (preferred).")


def preferences(rule: str, answered: Iterable[tuple[str, str]]) -> Iterator[dict[str, Any]]:
    """Preference records from (prompt, answer): the rewritten answer is chosen and the answer as it was rejected. Answers that obey
    already, or that rewriting does not change for the better, are left out."""
    for prompt, answer in answered:
        better = rewritten(rule, answer)
        if prefers(rule, better, answer) > 0:
            yield {"prompt": prompt, "chosen": better, "rejected": answer.strip()}


def preferred(rule: str, pairs: Iterable[tuple[str, str, str]]) -> Iterator[dict[str, Any]]:
    """Preference records from (prompt, one answer, another answer); those of which the rule prefers neither are left out."""
    for prompt, one, other in pairs:
        sign = prefers(rule, one, other)
        if sign:
            chosen, rejected = (one, other) if sign > 0 else (other, one)
            yield {"prompt": prompt, "chosen": chosen, "rejected": rejected}


def _check(rule: str) -> None:
    if rule not in RULES:
        raise UsageError(f"there is no rule {rule!r:.60}{did_you_mean(rule, RULES)} Known are {', '.join(RULES)}.")
