"""Where long text is cut before anything else looks at it.

`slices` is what Meta's Llama 3 and 4 tokenizers do: slices of 400,000 characters, and inside each a new one whenever a run of
whitespace, or of anything else, has grown to 25,000 characters. `chunks`, for all other vocabularies, cuts such runs only (so one
endless word costs no gigabytes; ids differ from uncut text around those cuts), and further where no vocabulary joins, which
changes nothing: in front of a space after a word.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

SLICE_CHARACTERS = 400_000
RUN_CHARACTERS = 25_000
CHUNK_CHARACTERS = 50_000

# `\s` of text patterns is `str.isspace`, which the reference asks.
_LONG_RUN = re.compile(rf"\s{{{RUN_CHARACTERS + 1},}}|\S{{{RUN_CHARACTERS + 1},}}")

_AFTER_WORD = re.compile(r"(?<=\S) ")


def slices(text: str) -> Iterator[str]:
    """Meta's slices of `text`, in order; joined they are the text."""
    for start in range(0, max(len(text), 1), SLICE_CHARACTERS):
        yield from _short_runs(text[start : start + SLICE_CHARACTERS])


def chunks(text: str) -> Iterator[str]:
    """Pieces of `text`, in order; joined they are the text."""
    for part in _short_runs(text):
        begin = 0
        while len(part) - begin > CHUNK_CHARACTERS and (space := _AFTER_WORD.search(part, begin + CHUNK_CHARACTERS)):
            yield part[begin : space.start()]
            begin = space.start()
        yield part[begin:]


def _short_runs(text: str) -> Iterator[str]:
    begin = 0
    for run in _LONG_RUN.finditer(text) if len(text) > RUN_CHARACTERS else ():
        for cut in range(run.start() + RUN_CHARACTERS, run.end(), RUN_CHARACTERS):
            yield text[begin:cut]
            begin = cut
    yield text[begin:]
