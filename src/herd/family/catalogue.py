"""What is known about each release of the family: `data/*.toml`, read when it is asked for, and the lookup by name.

find("llama-3.2-1b-instruct") -> Release       find("lama-3.2-1b") -> UsageError that suggests the right name
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path

from herd.errors import UsageError
from herd.family.reading import read_catalogue, read_shapes, read_tables
from herd.family.release import Release, Shape, Wheel

__all__ = ["DEFAULT_NAME", "Release", "Shape", "Wheel", "find", "known", "read_catalogue", "releases", "suggestion"]

DEFAULT_NAME = "smollm2-135m-instruct"
"""What `herd chat` talks to when it is not told."""

_DATA = Path(__file__).with_name("data")
_FILES = (
    "community",
    "llama-1",
    "llama-2",
    "code-llama",
    "llama-3",
    "llama-3.1",
    "llama-3.2",
    "llama-3.3",
    "llama-4",
    "muse-glimmer",
)
_ENTRY = re.compile(r'^\[releases\."(?P<name>[^"]+)"\]|^repository = "(?P<repository>[^"]+)"', re.MULTILINE)


@cache
def releases() -> Mapping[str, Release]:
    """All releases by name, in the order in which they are shown."""
    return {name: release for file in _FILES for name, release in _releases_of(file).items()}


def known(name: str) -> Release | None:
    """The release of exactly this name or hub id, whatever its case, or None. Reads only the file that it is in."""
    place = _places().get(name.strip().lower())
    return None if place is None else _releases_of(place[0])[place[1]]


def find(name: str) -> Release:
    """The release of this name or hub id, whatever its case. `UsageError` with suggestions for an unknown one."""
    found = known(name)
    if found is not None:
        return found
    raise UsageError(
        f"No model is known as {name!r:.80}{suggestion(name.strip().lower(), releases())} `herd models` lists what is known; "
        "a .gguf file or a folder works too."
    )


def suggestion(wanted: str, names: Iterable[str]) -> str:
    """The end of a sentence about a name that is none: up to three that are meant. Those that hold it (whatever stands between its
    letters) come first, shortest first, then those that hold all of its words, then near spellings."""
    known_names = sorted(set(names), key=lambda name: (len(name), name))
    bare = wanted.rpartition("/")[2][:80]
    squashed, words = _squashed(bare), [word for word in re.split(r"[^a-z0-9.]+", bare) if word]
    holding = [name for name in known_names if squashed and squashed in _squashed(name)]
    wordy = [name for name in known_names if words and all(word in name for word in words)]
    import difflib

    near = difflib.get_close_matches(bare, known_names, n=3, cutoff=0.7)
    close = list(dict.fromkeys([*holding, *wordy, *near]))[:3]
    return f"; did you mean {' or '.join(close)}?" if close else "."


def _squashed(name: str) -> str:
    return re.sub(r"[^a-z0-9.]+", "", name)


@cache
def _places() -> Mapping[str, tuple[str, str]]:
    """For each name and hub id, in lower case: the file it is in, and the release's name. A scan, since parsing all takes ten times as
    long."""
    places: dict[str, tuple[str, str]] = {}
    for file in _FILES:
        name = ""
        for entry in _ENTRY.finditer(_text_of(file)):
            if entry["name"]:
                name = entry["name"]
                places[name] = (file, name)
            else:
                repository = entry["repository"].lower()
                places.setdefault(repository, (file, name))
                places.setdefault(repository.rpartition("/")[2], (file, name))
    return places


@cache
def _releases_of(file: str) -> Mapping[str, Release]:
    return read_catalogue(_text_of(file), _shapes())


@cache
def _shapes() -> Mapping[str, Shape]:
    return read_shapes(read_tables(_text_of("shapes"), "The table of shapes"))


def _text_of(file: str) -> str:
    return (_DATA / f"{file}.toml").read_text(encoding="utf-8")
