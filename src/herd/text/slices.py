"""Where Meta's Llama 3 and 4 tokenizers cut long text before anything else looks at it.

Slices of 400,000 characters; inside each, a new slice starts whenever a run of whitespace, or of anything else, has grown to
25,000 characters. Ids differ from uncut text only around those cuts; it bounds the work on a text of one endless word.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

SLICE_CHARACTERS = 400_000
RUN_CHARACTERS = 25_000

# `\s` of text patterns is `str.isspace`, which the reference asks.
_LONG_RUN = re.compile(rf"\s{{{RUN_CHARACTERS + 1},}}|\S{{{RUN_CHARACTERS + 1},}}")


def slices(text: str) -> Iterator[str]:
    """The slices of `text`, in order; joined they are the text."""
    if len(text) <= RUN_CHARACTERS:
        yield text
        return
    for start in range(0, len(text), SLICE_CHARACTERS):
        part = text[start : start + SLICE_CHARACTERS]
        begin = 0
        for run in _LONG_RUN.finditer(part):
            for cut in range(run.start() + RUN_CHARACTERS, run.end(), RUN_CHARACTERS):
                yield part[begin:cut]
                begin = cut
        yield part[begin:]
