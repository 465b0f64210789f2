"""What an answer is worth: by checks that a program can make, or by a model that has learned to judge.

    number    the last number of the answer (or what stands in \\boxed{}, or after ####) is the task's `answer`
    text      the answer, without case and space around it, is the task's `answer`; with `pattern`, its first group is
    tests     the answer's code passes the task's `tests` in a sandbox
    schema    the answer is JSON that fits the task's `schema`
    length    1 between `least` and `most` (of `unit`), less the further away
    pattern   the answer matches the regular expression `pattern`
    function  what a Python function of the user's says: `path/to/file.py:name`, called as name(answer, task)
    model     what a reward model says, which learned it from pairs of answers (recipes/reward_model.py); it is given, opened

Rewards are added up by their weights. The user's function runs in this process with all rights: it is trusted like any other program
of the user's. Code of a model's never runs outside of the sandbox.
"""

from __future__ import annotations

import importlib.util
import math
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from fractions import Fraction
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from herd.data.samples import Task
from herd.errors import FileProblem, UsageError
from herd.records import dataclass
from herd.training.settings.rewards import GUARDS, RewardSettings
from herd.training.signals.sandbox import Limits, passes
from herd.training.signals.schema_check import fits, parsed

if TYPE_CHECKING:
    from herd.training.student.batches import Document

_NUMBER = re.compile(
    r"(?=[-+\u2212]?\.?\d)[-+\u2212]?(?:\d{1,3}(?:[,\u202f\u00a0'](?=\d{3})\d{3})+|\d+)?(?:\.\d+)?(?:[eE][-+]?\d+)?(?:\s*/\s*\d+(?:\.\d+)?)?%?"
)
_CODE = re.compile(r"```(?:python|py)?[^\n]*\n(.*?)(?:```|\Z)", re.DOTALL)
MAX_DIGITS = 4000


@dataclass(frozen=True, slots=True)
class Answer:
    """An answer to be judged. `is_cut`: it was ended by its length, not by itself; `document`: it behind its prompt, as ids."""

    text: str
    num_tokens: int = 0
    is_cut: bool = False
    document: Document | None = None


Reward = Callable[[Task, Answer], float]
Asked = Sequence[tuple[Task, Answer]]
Judge = Callable[[Asked], Sequence[float]]
"""What each of some answers is worth. They are judged together, as a model does that faster."""


def one_by_one(reward: Reward) -> Judge:
    """A judge that looks at each answer alone."""
    return lambda asked: [reward(task, answer) for task, answer in asked]


class Rewards:
    """A judge: the sum of several rewards, each by its weight. models: judges for rewards of kind model, by the folders that these name."""

    def __init__(self, settings: Sequence[RewardSettings], models: Mapping[str, Judge] = MappingProxyType({})) -> None:
        if not settings:
            raise UsageError("There is no reward: name at least one, such as --reward number.")
        self._parts = [(each.weight, models[each.model] if each.kind == "model" else one_by_one(reward_of(each))) for each in settings]

    def __call__(self, asked: Asked) -> list[float]:
        worth = [0.0] * len(asked)
        for weight, judge in self._parts:
            worth = [so_far + weight * more for so_far, more in zip(worth, judge(asked), strict=True)]
        return worth


def reward_of(settings: RewardSettings) -> Reward:
    """The check that settings name, which is of another kind than model. `UsageError` for a pattern that is none, `FileProblem` for a
    function that cannot be loaded."""
    assert settings.kind != "model", "a reward model is opened by whoever can open models"
    pattern = _pattern(settings.pattern) if settings.pattern else None
    match settings.kind:
        case "number":
            return lambda task, answer: float(same_number(final_answer(answer.text), str(check_of(task, "answer"))))
        case "text":
            return lambda task, answer: float(_same_text(_chosen(answer.text, pattern), str(check_of(task, "answer"))))
        case "tests":
            return lambda task, answer: float(passes_tests(answer.text, str(check_of(task, "tests")), settings.seconds, settings.required))
        case "schema":
            return lambda task, answer: float(fits_schema(answer.text, check_of(task, "schema")))
        case "length":
            return lambda task, answer: length_reward(_count(answer, settings.unit), settings.least, settings.most)
        case "pattern":
            assert pattern is not None
            return lambda task, answer: float(pattern.search(answer.text) is not None)
        case "function":
            return function_of(settings.function)


def final_answer(text: str) -> str:
    """What an answer ends with: the inside of the last \\boxed{}, what follows the last ####, or the last number; "" without any."""
    if (at := text.rfind("\\boxed{")) >= 0:
        return _braced(text[at + len("\\boxed{") :])
    if (at := text.rfind("####")) >= 0:
        return text[at + 4 :].strip().split("\n")[0]
    found = _NUMBER.findall(text)
    return found[-1] if found else ""


def same_number(one: str, other: str) -> bool:
    """Equal as numbers, exactly (1,000 = 1000.0 = 1e3; 1/2 = 0.5 = 50%), or else as texts, if neither holds a number."""
    first, second = number_of(one), number_of(other)
    if first is None and second is None:
        return bool(one.strip()) and _same_text(one, other)
    return first is not None and first == second


def number_of(text: str) -> Fraction | None:
    """A text that is one number, with what people write around it (currency, units, a full stop), as an exact fraction; else None."""
    text = re.sub(r"\\(?:d|t)?frac\{([^{}]*)\}\{([^{}]*)\}", r"\1/\2", text).replace("\\%", "%").replace("\\,", "")
    found = _NUMBER.findall(text)
    if len(found) != 1 or len(found[0]) > MAX_DIGITS:
        return None
    digits = re.sub(r"[,\u202f\u00a0'\s]", "", found[0]).replace("\u2212", "-")
    share, digits = (100, digits[:-1]) if digits.endswith("%") else (1, digits)
    above, _, below = digits.partition("/")
    try:
        if any(abs(int(each.lower().partition("e")[2] or 0)) > MAX_DIGITS for each in (above, below)):
            return None
        return Fraction(above) / Fraction(below or 1) / share
    except (ValueError, ZeroDivisionError):
        return None


def passes_tests(text: str, tests: str, seconds: float = 5.0, required: Collection[str] = GUARDS) -> bool:
    """Whether the code of an answer (its last block of code, or all of it) passes tests, in the sandbox."""
    blocks = _CODE.findall(text)
    return passes(blocks[-1] if blocks else text, tests, Limits(seconds=seconds), required)


def fits_schema(text: str, schema: Any) -> bool:
    """Whether an answer is JSON, alone or as its only block of code, and fits the schema."""
    block = re.fullmatch(r"\s*```(?:json)?\s*\n(.*?)\n\s*```\s*", text, re.DOTALL)
    is_json, value = parsed(block[1] if block else text)
    return is_json and fits(value, schema)


def length_reward(count: int, least: int, most: int) -> float:
    """1 from `least` to `most`; outside of them the share of the nearer bound that it is (or that the bound is of it)."""
    if count < least:
        return count / least
    return 1.0 if count <= most else most / count


def function_of(place: str) -> Reward:
    """The user's function at `path/to/file.py:name`: name(answer: str, task: dict) -> number. `FileProblem` if there is none."""
    path, _, name = place.rpartition(":")
    file = Path(path).expanduser()
    spec = importlib.util.spec_from_file_location(f"herd_reward_{file.stem}", file) if file.is_file() else None
    if spec is None or spec.loader is None:
        raise FileProblem(f"{file}: there is no Python file; a reward's function is named as path/to/file.py:name.")
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except Exception as problem:
        raise FileProblem(f"{file}: cannot be loaded: {type(problem).__name__}: {problem}") from problem
    function = getattr(module, name, None)
    if not callable(function):
        raise FileProblem(f"{file}: has no function {name!r:.60}.")

    def reward(task: Task, answer: Answer) -> float:
        found = function(answer.text, told(task))
        if isinstance(found, bool | int | float) and math.isfinite(found):
            return float(found)
        raise UsageError(f"{place}: gave {found!r:.80} for the task at {task.place}; a reward must be a finite number.")

    return reward


def told(task: Task) -> dict[str, Any]:
    """A task as a user's function sees it: its record's fields, and the prompt as text."""
    return {**task.facts, **task.checks, "prompt": task.messages[-1].text, "place": str(task.place)}


def _braced(text: str) -> str:
    """Up to the brace that closes one that is open."""
    depth = 1
    for at, letter in enumerate(text):
        depth += (letter == "{") - (letter == "}")
        if depth == 0:
            return text[:at]
    return text


def check_of(task: Task, name: str) -> Any:
    """What the record has to check by. `UsageError` if it is not there."""
    checks: Mapping[str, Any] = task.checks
    if name not in checks:
        raise UsageError(f"{task.place}: the task has no {name!r} to check answers by; it has {', '.join(checks) or 'nothing'}.")
    return checks[name]


def _count(answer: Answer, unit: str) -> int:
    return {"tokens": answer.num_tokens, "words": len(answer.text.split()), "characters": len(answer.text)}[unit]


def _chosen(text: str, pattern: re.Pattern[str] | None) -> str:
    if pattern is None:
        return text
    found = pattern.search(text)
    return "" if found is None else found[1] or "" if pattern.groups else found[0]


def _same_text(one: str, other: str) -> bool:
    return " ".join(one.split()).casefold() == " ".join(other.split()).casefold()


def _pattern(pattern: str) -> re.Pattern[str]:
    try:
        return re.compile(pattern)
    except re.error as problem:
        raise UsageError(f"A reward's pattern {pattern!r:.80} is not a regular expression: {problem}.") from None
