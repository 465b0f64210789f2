"""What is measured: each task is one question about speed, asked of every engine in turn, again and again.

Rounds alternate between the engines, so that what else happens on the machine meets all of them, and the machine's limits are
measured in every round too. One more, without the long tasks, warms up and is not counted. Prompts are random ids that no round before had.
"""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from herd.bench.engines import Settings
from herd.bench.workers import Worker, first_token_s
from herd.errors import ProviderError, UsageError, did_you_mean

TASKS = ("decode", "steps", "parts", "sequences", "context", "prompt", "long-prompt", "start", "memory")
SHORT_PROMPT = 4
STEP_CONTEXT, STEP_REPEATS = 64, 6
STEP_TOKENS = (2, 4, 8)
PART_STEPS = 24
SEQUENCES = (8, 16, 32)
TOGETHER_PROMPT, TOGETHER_TOKENS = 8, 24
CONTEXT_TOKENS = 4096
CONTEXT_DECODED = 24
LONG_TASKS = ("context", "long-prompt")
WARMING_TOKENS = 8


@dataclass(frozen=True, slots=True)
class Question:
    """One figure to be: `group` is the task that asks for it; `tokens`, `context` and `sequences` say what a step has, for bounds.
    `unit` is tokens/s, s or bytes."""

    group: str
    title: str
    unit: str
    tokens: int = 1
    context: int = 0
    sequences: int = 1


@dataclass(slots=True)
class Seen:
    """What was measured: values by question and engine, one a round; the limits by name; and what could not be measured, with why."""

    values: dict[Question, dict[str, list[float]]] = field(default_factory=dict)
    limits: dict[str, list[float]] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def add(self, question: Question, engine: str, value: float) -> None:
        self.values.setdefault(question, {}).setdefault(engine, []).append(value)


@dataclass(frozen=True, slots=True)
class Wanted:
    """What to measure and how long. `vocabulary`: ids go from the first to below the second number."""

    tasks: Sequence[str]
    rounds: int
    prompt_tokens: int
    decode_tokens: int
    vocabulary: tuple[int, int]
    max_context: int
    together_tokens: int = TOGETHER_TOKENS

    def warming(self) -> Wanted:
        """What is run once and not counted: every kind of step, and none of the long tasks."""
        tasks = tuple(task for task in self.tasks if task not in LONG_TASKS)
        return replace(self, tasks=tasks, decode_tokens=min(self.decode_tokens, WARMING_TOKENS), together_tokens=WARMING_TOKENS)

    @property
    def context(self) -> int:
        """The longest sequence of all tasks."""
        lengths = [STEP_CONTEXT + max(STEP_TOKENS), SHORT_PROMPT + self.decode_tokens, TOGETHER_PROMPT + TOGETHER_TOKENS + 1]
        if "prompt" in self.tasks or "memory" in self.tasks:
            lengths.append(self.prompt_tokens + 1)
        if "context" in self.tasks or "long-prompt" in self.tasks:
            lengths.append(CONTEXT_TOKENS + CONTEXT_DECODED)
        return max(lengths)

    @property
    def sequences(self) -> int:
        return max(SEQUENCES) if "sequences" in self.tasks else 1


def tasks_named(text: str) -> tuple[str, ...]:
    """The tasks that a user names, separated by commas; "all" for all of them. `UsageError` for an unknown one."""
    names = [name.strip() for name in text.split(",")]
    for name in names:
        if name not in (*TASKS, "all"):
            raise UsageError(f"--what has {name!r:.40}{did_you_mean(name, TASKS)} There are {', '.join(TASKS)}, and all.")
    return TASKS if "all" in names else tuple(task for task in TASKS if task in names)


def measure(
    engines: Mapping[str, Settings],
    wanted: Wanted,
    limits: Callable[[], Mapping[str, float]] | None,
    told: Callable[[str], None],
) -> Seen:
    """Asks every engine everything. An engine that cannot open the file, or fails later, is left out from there on, with a note; that
    of herd raises."""
    seen = Seen()
    workers = _started(engines, seen, told)
    try:
        starts: list[float] = []
        for number in range(wanted.rounds + 1):
            starts.append(time.perf_counter())
            if limits is not None and number > 0:
                for name, value in limits().items():
                    seen.limits.setdefault(name, []).append(value)
            for worker in workers if number % 2 else list(reversed(workers)):
                told(f"{_where(starts, wanted.rounds)}: {worker.engine}")
                try:
                    _ask_all(worker, wanted if number else wanted.warming(), number, seen if number else Seen())
                except ProviderError as problem:
                    _leave_out(worker, workers, problem, seen)
        if "memory" in wanted.tasks:
            for worker in workers:
                if (peak := worker.peak_bytes()) is not None:
                    seen.add(Question("memory", "peak memory", "bytes"), worker.engine, float(peak))
    finally:
        for worker in workers:
            worker.close()
    if "start" in wanted.tasks:
        _ask_starts(engines, wanted, seen, told)
    return seen


def _where(starts: Sequence[float], rounds: int) -> str:
    """The round, and how long it and the others will take. `starts`: when each began, that which warms up the first."""
    number = len(starts) - 1
    if number < 2:
        return f"round {number} of {rounds}" if number else "warming up"
    left = (rounds - number + 1) * (starts[-1] - starts[1]) / (number - 1)
    return f"round {number} of {rounds}, {left / 60:.0f} min left" if left > 90 else f"round {number} of {rounds}, {left:.0f} s left"


def _started(engines: Mapping[str, Settings], seen: Seen, told: Callable[[str], None]) -> list[Worker]:
    workers: list[Worker] = []
    try:
        for name, settings in engines.items():
            told(f"loading with {name}")
            try:
                worker = Worker(name, settings)
            except ProviderError as problem:
                if name == "herd":
                    raise
                seen.notes.append(f"without {name}: {problem}")
                continue
            workers.append(worker)
            seen.versions[name] = worker.version
    except BaseException:
        for worker in workers:
            worker.close()
        raise
    return workers


def _leave_out(worker: Worker, workers: list[Worker], problem: ProviderError, seen: Seen) -> None:
    if worker.engine == "herd":
        raise problem
    seen.notes.append(f"without {worker.engine} from here on: {problem}")
    workers.remove(worker)
    worker.close()
    for values in seen.values.values():
        values.pop(worker.engine, None)


def _ask_all(worker: Worker, wanted: Wanted, number: int, seen: Seen) -> None:
    """One round of one engine. All engines of a round get the same ids."""
    chance = random.Random(number)
    first, last = wanted.vocabulary

    def ids(count: int) -> list[int]:
        return [chance.randrange(first, last) for _ in range(count)]

    tasks, engine = wanted.tasks, worker.engine
    if "decode" in tasks:
        _, seconds = worker.answer(ids(SHORT_PROMPT), wanted.decode_tokens)
        question = Question("decode", "decode", "tokens/s", context=SHORT_PROMPT + wanted.decode_tokens // 2)
        seen.add(question, engine, (wanted.decode_tokens - 1) / seconds)
    if "prompt" in tasks:
        seconds, _ = worker.answer(ids(wanted.prompt_tokens), 1)
        question = Question("prompt", f"prompt of {wanted.prompt_tokens}", "tokens/s", tokens=wanted.prompt_tokens)
        seen.add(question, engine, wanted.prompt_tokens / seconds)
    elif "memory" in tasks and number == 0:
        worker.answer(ids(wanted.prompt_tokens), 1)  # an engine that has answered nothing has touched little
    if "steps" in tasks and "step" in worker.abilities:
        _ask_steps(worker, ids, seen)
    if "parts" in tasks and "parts" in worker.abilities:
        _ask_parts(worker, ids, seen)
    if "sequences" in tasks:
        for count in SEQUENCES:
            seconds = worker.together([ids(TOGETHER_PROMPT) for _ in range(count)], wanted.together_tokens)
            question = Question("sequences", f"{count} sequences", "tokens/s", context=TOGETHER_PROMPT + 12, sequences=count)
            seen.add(question, engine, count * wanted.together_tokens / seconds)
    if "context" in tasks or "long-prompt" in tasks:
        decoded = CONTEXT_DECODED if "context" in tasks else 1
        prompt_s, decode_s = worker.answer(ids(CONTEXT_TOKENS), decoded)
        if "long-prompt" in tasks:
            question = Question("long-prompt", f"prompt of {CONTEXT_TOKENS}", "tokens/s", tokens=CONTEXT_TOKENS)
            seen.add(question, engine, CONTEXT_TOKENS / prompt_s)
        if "context" in tasks:
            question = Question("context", f"decode after {CONTEXT_TOKENS}", "tokens/s", context=CONTEXT_TOKENS + decoded // 2)
            seen.add(question, engine, (decoded - 1) / decode_s)


def _ask_steps(worker: Worker, ids: Callable[[int], list[int]], seen: Seen) -> None:
    """Steps of one token and of several, in turns; what a step costs is told as its seconds, and so is its ratio to one of one token."""
    times: dict[int, list[float]] = {}
    for _ in range(STEP_REPEATS):
        for count in (1, *STEP_TOKENS):
            times.setdefault(count, []).append(worker.step(STEP_CONTEXT, ids(count)))
    for count, seconds in times.items():
        title = f"step of {count} token{'s' if count > 1 else ''}"
        seen.add(Question("steps", title, "s", tokens=count, context=STEP_CONTEXT), worker.engine, statistics.median(seconds))


def _ask_parts(worker: Worker, ids: Callable[[int], list[int]], seen: Seen) -> None:
    """Where the time of a step of one token goes: medians of each kind of instruction over some steps, the longest first."""
    steps = [worker.parts(STEP_CONTEXT, ids(1)) for _ in range(PART_STEPS)]
    medians = {label: statistics.median(step[label] for step in steps) for label in steps[0]}
    for label in sorted(medians, key=lambda label: -medians[label]):
        seen.add(Question("parts", f"of a step of 1 token: {label}", "s", context=STEP_CONTEXT), worker.engine, medians[label])


def _ask_starts(engines: Mapping[str, Settings], wanted: Wanted, seen: Seen, told: Callable[[str], None]) -> None:
    first, _ = wanted.vocabulary
    question = Question("start", "process start to first token", "s")
    for number in range(wanted.rounds):
        told(f"start {number + 1} of {wanted.rounds}")
        for name in list(seen.versions):
            seen.add(question, name, first_token_s(name, engines[name], [first + each for each in range(SHORT_PROMPT)]))
