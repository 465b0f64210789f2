"""Small tasks whose answers a program can check, for reinforcement learning on any machine: sums, and letters to be counted.

    task("sums", seed, index, level=1)       -> {"prompt": "What is 17 + 25? ...", "answer": "42", ...}

Pure functions of their arguments, in the shape `task` of training data. Held-out tasks are those of another seed, less those that
training has too (`without_shared`): small tasks come again by chance.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from herd.data.order import hashed
from herd.errors import UsageError, did_you_mean

_WORDS = (
    "apple banana cherry river mountain window garden kitchen yellow purple silver golden planet rocket letter pencil paper summer winter"
    " autumn spring forest desert island ocean bridge castle village city market school teacher student doctor farmer singer painter"
    " balloon butterfly elephant giraffe kangaroo penguin squirrel tiger zebra cucumber pepper potato tomato strawberry blueberry coffee"
    " chocolate sugar butter cheese bottle basket candle mirror pillow blanket ladder hammer button pocket ribbon feather pebble"
    " thunder lightning rainbow shadow whisper laughter morning evening yesterday tomorrow century minute million thousand hundred"
)
WORDS = tuple(_WORDS.split())
_ASK = "Answer with the number only."


def sums(seed: int, index: int, level: int) -> dict[str, Any]:
    """Two numbers to be added or subtracted; level: how many digits they have. The result is not negative."""
    most = 10**level
    one, other = (hashed(seed, index, at) % most for at in (1, 2))
    if hashed(seed, index, 3) % 2 and one >= other:
        return {"prompt": f"What is {one} - {other}? {_ASK}", "answer": str(one - other)}
    return {"prompt": f"What is {one} + {other}? {_ASK}", "answer": str(one + other)}


def products(seed: int, index: int, level: int) -> dict[str, Any]:
    """Two numbers to be multiplied: one of `level` digits, one of a single digit."""
    one, other = hashed(seed, index, 1) % 10**level, 2 + hashed(seed, index, 2) % 8
    return {"prompt": f"What is {one} * {other}? {_ASK}", "answer": str(one * other)}


def letters(seed: int, index: int, level: int) -> dict[str, Any]:
    """How often a letter stands in `level` words. The letter is in the words three times out of four."""
    words = [WORDS[hashed(seed, index, at) % len(WORDS)] for at in range(level)]
    text = " ".join(words)
    inside = text.replace(" ", "")
    letter = inside[hashed(seed, index, -1) % len(inside)] if hashed(seed, index, -2) % 4 else chr(97 + hashed(seed, index, -3) % 26)
    return {"prompt": f'How many times does the letter {letter} stand in "{text}"? {_ASK}', "answer": str(text.count(letter))}


def largest(seed: int, index: int, level: int) -> dict[str, Any]:
    """The largest of two to five numbers of `level` digits."""
    count = 2 + hashed(seed, index, 0) % 4
    numbers = [hashed(seed, index, at) % 10**level for at in range(1, count + 1)]
    return {"prompt": f"Which is the largest: {', '.join(map(str, numbers))}? {_ASK}", "answer": str(max(numbers))}


KINDS: Mapping[str, Callable[[int, int, int], dict[str, Any]]] = {
    "sums": sums,
    "products": products,
    "letters": letters,
    "largest": largest,
}


def task(kind: str, seed: int, index: int, level: int = 1) -> dict[str, Any]:
    """One task. `UsageError` for a kind that there is not."""
    if kind not in KINDS:
        raise UsageError(f"there are no tasks {kind!r:.60}{did_you_mean(kind, KINDS)} Known are {', '.join(KINDS)}.")
    if level < 1:
        raise UsageError(f"the level of tasks is {level}; expected 1 or more.")
    return {**KINDS[kind](seed, index, level), "kind": kind, "level": level}


def tasks(kind: str, seed: int, count: int, level: int = 1) -> Iterator[dict[str, Any]]:
    """The first `count` tasks of a seed, without those that came before; fewer where there are no more of the kind."""
    seen: set[str] = set()
    for index in range(20 * count):
        made = task(kind, seed, index, level)
        if made["prompt"] not in seen:
            seen.add(made["prompt"])
            yield made
        if len(seen) == count:
            return


def without_shared(held_out: Iterable[Mapping[str, Any]], learned: Iterable[Mapping[str, Any]]) -> Iterator[Mapping[str, Any]]:
    """Those tasks whose prompt is in no task of `learned`."""
    known = {made["prompt"] for made in learned}
    return (made for made in held_out if made["prompt"] not in known)
