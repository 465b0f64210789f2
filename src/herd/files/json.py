"""JSON from files that nobody vouches for: no duplicate keys, no NaN, no unpaired surrogates, no 10^5 brackets (RFC 8259, 7493)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from herd.errors import FileProblem
from herd.files.text import read_bytes

MAX_CONFIG_BYTES = 64 << 20


def read_json(path: Path, max_bytes: int = MAX_CONFIG_BYTES) -> dict[str, Any]:
    """The object in a JSON file of at most `max_bytes`."""
    return parse_json(read_bytes(path, max_bytes), path.name)


def parse_json(data: bytes, name: str) -> dict[str, Any]:
    """The object in `data`, UTF-8 text. `name` is how messages call the file."""
    try:
        text = data.decode("utf-8")
        value = json.loads(text, object_pairs_hook=_unique, parse_constant=_no_constant, parse_int=_whole if "-0" in text else None)
        if "\\u" in text:
            json.dumps(value, ensure_ascii=False).encode("utf-8")
    except UnicodeEncodeError as problem:
        raise FileProblem(f"{name}: has an escape such as \\ud800 that is half of a character.") from problem
    except UnicodeDecodeError as problem:
        raise FileProblem(f"{name}: is not valid UTF-8 at byte {problem.start}; JSON must be.") from problem
    except RecursionError as problem:
        raise FileProblem(f"{name}: has brackets nested too deeply to be a description of a model.") from problem
    except ValueError as problem:
        raise FileProblem(f"{name}: is not valid JSON: {problem}.") from problem
    if not isinstance(value, dict):
        raise FileProblem(f"{name}: holds a JSON {type(value).__name__}; an object in braces is expected.")
    return value


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise ValueError(f"the key {twice[:80]!r} appears twice in one object")
    return found


def _no_constant(text: str) -> None:
    raise ValueError(f"{text} is not a JSON number")


def _whole(text: str) -> int:
    """-0 is the one whole number that readers disagree about: an integer to some, a fraction to others."""
    if text == "-0":
        raise ValueError("-0 is not a whole number that every reader understands")
    return int(text)
