"""Multiple choice: which of several continuations of a question does the model find likeliest?

One JSON object a line:

    {"question": "The sky is", "choices": ["blue", "green"], "answer": 0}

`answer` is the index of the right choice, from 0; an `id` is allowed and not used. Question and choice are joined by one
space, unless either already has white space there.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from herd.errors import FileProblem, UsageError
from herd.evals.rows import Told, next_token_logprobs, nobody
from herd.providers.base import Scorer

MAX_LINE_BYTES = 1 << 20
MAX_CHOICES = 64
_KEYS = frozenset({"question", "choices", "answer", "id"})


@dataclass(frozen=True, slots=True)
class Question:
    """One question, its choices, and which of them is right."""

    question: str
    choices: tuple[str, ...]
    answer: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Accuracy:
    """accuracy              share of questions whose right choice has the highest log-probability
    accuracy_normalized      the same by log-probability per token of the choice
    accuracy_error           standard error of `accuracy`; `accuracy_normalized_error` likewise
    chance                   what guessing would reach
    """

    accuracy: float
    accuracy_error: float
    accuracy_normalized: float
    accuracy_normalized_error: float
    chance: float
    questions: int
    model: str
    fingerprint: str


def read_questions(path: Path, limit: int | None = None) -> Iterator[Question]:
    """The questions of a file, one at a time, at most `limit`. `FileProblem` names the line that is wrong."""
    try:
        with path.open("rb") as file:
            number = count = 0
            while (limit is None or count < limit) and (line := file.readline(MAX_LINE_BYTES + 1)):
                number += 1
                if line.strip():
                    count += 1
                    yield _read_line(line, f"{path}:{number}")
    except OSError as error:
        raise FileProblem(f"{path} cannot be read: {error.strerror}.") from error


def measure_accuracy(scorer: Scorer, questions: Sequence[Question], *, told: Told = nobody) -> Accuracy:
    """Asks all questions. `UsageError` for none, or for one that does not fit the context."""
    if not questions:
        raise UsageError("There is no question to ask.")
    right = right_normalized = 0
    for done, question in enumerate(questions):
        scores = [score(scorer, question.question, choice) for choice in question.choices]
        sums = [logprob for logprob, _ in scores]
        means = [logprob / count for logprob, count in scores]
        right += sums.index(max(sums)) == question.answer
        right_normalized += means.index(max(means)) == question.answer
        told(done + 1, len(questions))
    count = len(questions)
    return Accuracy(
        accuracy=right / count,
        accuracy_error=_error(right, count),
        accuracy_normalized=right_normalized / count,
        accuracy_normalized_error=_error(right_normalized, count),
        chance=math.fsum(1 / len(question.choices) for question in questions) / count,
        questions=count,
        model=scorer.facts.name,
        fingerprint=scorer.facts.fingerprint,
    )


def score(scorer: Scorer, question: str, choice: str) -> tuple[float, int]:
    """Log-probability of `choice` after `question`, and the number of tokens it is the sum of.

    The whole is cut into tokens once; those that the question alone would also begin with are the given part.
    """
    glue = "" if not question or question[-1].isspace() or choice[0].isspace() else " "
    given, whole = scorer.encode(question), scorer.encode(f"{question}{glue}{choice}")
    first = 0
    while first < min(len(given), len(whole) - 1) and given[first] == whole[first]:
        first += 1
    first = max(first, 1)
    if len(whole) <= first:
        raise UsageError(f"The choice {choice!r:.60} cannot be scored: it is one token with nothing before it. Give the question a text.")
    if len(whole) > scorer.facts.context_length:
        raise UsageError(f"A question has {len(whole)} tokens with its choice; the context has {scorer.facts.context_length}.")
    total = math.fsum(float(piece_t.sum()) for piece_t in next_token_logprobs(scorer, whole, first))
    return total, len(whole) - first


def _read_line(line: bytes, at: str) -> Question:
    if len(line) > MAX_LINE_BYTES:
        raise FileProblem(f"{at} is longer than {MAX_LINE_BYTES} bytes; each line is one question.")
    try:
        value: Any = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise FileProblem(f"{at} is not JSON: {error}.") from error
    if not isinstance(value, dict):
        raise FileProblem(f"{at} is {type(value).__name__}; expected an object with question, choices and answer.")
    unknown, missing = sorted(set(value) - _KEYS), sorted(_KEYS - {"id"} - set(value))
    if unknown or missing:
        raise FileProblem(f"{at} {'has ' + unknown[0] if unknown else 'lacks ' + missing[0]}; expected question, choices and answer.")
    question, choices, answer = value["question"], value["choices"], value["answer"]
    if not isinstance(question, str):
        raise FileProblem(f"{at}: question is {type(question).__name__}; expected a text.")
    if not isinstance(choices, list) or not 2 <= len(choices) <= MAX_CHOICES or not all(isinstance(c, str) and c.strip() for c in choices):
        raise FileProblem(f"{at}: choices must be a list of 2 to {MAX_CHOICES} texts that are not empty.")
    if isinstance(answer, bool) or not isinstance(answer, int) or not 0 <= answer < len(choices):
        raise FileProblem(f"{at}: answer is {answer!r:.40}; expected the index of the right choice, 0 to {len(choices) - 1}.")
    return Question(question, tuple(choices), answer)


def _error(right: int, count: int) -> float:
    share = right / count
    return math.sqrt(share * (1 - share) / (count - 1)) if count > 1 else math.inf
