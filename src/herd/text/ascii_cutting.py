"""Cuts ASCII text exactly as the splits of `splits.py` do, with nothing but `re`.

Most first prompts are ASCII, and for ASCII every class of those expressions is a few ranges: loading the library that knows all of
Unicode takes longer than all else that a prompt needs. tests/text/test_ascii_cutting.py holds the two together.
"""

from __future__ import annotations

import re

from herd.text.byte_level import ALPHABET
from herd.text.splits import Split, Step

# Letters that are neither upper nor lower case, and marks, are outside of ASCII.
_CLASSES = {"L": "A-Za-z", "Lu": "A-Z", "Ll": "a-z", "Lt": "", "Lm": "", "Lo": "", "M": "", "N": "0-9"}
_ITEM = re.compile(r"\\p\{(\w+)\}|\\.|\[\^?|\]")
_ALPHABET = dict(enumerate(ALPHABET[:128]))


class AsciiCutter:
    """One split. A piece that a step has cut off is cut on by the next one, alone."""

    def __init__(self, split: Split) -> None:
        self._steps = [re.compile(ascii_expression(step), re.ASCII) for step in split.steps]

    def pieces(self, text: str) -> list[str]:
        """The pieces of an ASCII text, in the byte-level alphabet; joined they are the text."""
        assert text.isascii()
        pieces = [text] if text else []
        for step in self._steps:
            pieces = [match.group() for piece in pieces for match in step.finditer(piece)]
        return [piece.translate(_ALPHABET) for piece in pieces]


def ascii_expression(step: Step) -> str:
    """The expression of a step with its Unicode classes written out for ASCII."""
    if step is Step.SINGLE_DIGITS:
        return "[0-9]|[^0-9]+"
    is_inside = False

    def written(item: re.Match[str]) -> str:
        nonlocal is_inside
        if item[1] is not None:
            return _CLASSES[item[1]] if is_inside else f"[{_CLASSES[item[1]]}]"
        if item[0][0] in "[]":
            is_inside = item[0] != "]"
        return item[0]

    return _ITEM.sub(written, step.value)
