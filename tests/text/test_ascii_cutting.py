"""ASCII text is cut as the `tokenizers` library cuts it, by every split that there is."""

from __future__ import annotations

import random
import re

import pytest

from herd.text.ascii_cutting import AsciiCutter, ascii_expression
from herd.text.splits import SPLITS, Split, Step, pre_tokenizer

DISTINCT = {split.steps: split for split in SPLITS.values()}


def random_texts(count: int) -> list[str]:
    """Any ASCII, few kinds of characters in runs, and what the expressions look for."""
    rng = random.Random(11)
    every = [chr(code) for code in range(128)]
    few = [*"aZ0 9\n\r\t'./_", "  ", "\r\n", "'s", "'LL", "'Re", "'d", "it's", "\x0b", "\x0c", "\x1c", "\x1f", "\x00"]
    sources = (every, few, list("ab \n"), list("A'sS "), list("12 a/"))
    return ["".join(rng.choice(sources[index % 5]) for _ in range(rng.randrange(1, 30))) for index in range(count)]


@pytest.mark.parametrize("split", DISTINCT.values(), ids=lambda split: split.name)
def test_ascii_is_cut_as_the_library_cuts_it(split: Split) -> None:
    ours, library = AsciiCutter(split), pre_tokenizer(split)
    for text in random_texts(6_000):
        assert ours.pieces(text) == [piece for piece, _ in library.pre_tokenize_str(text)], repr(text)


def test_every_pair_and_triple_of_kinds_of_characters_is_cut_alike() -> None:
    kinds = "aZ5 \n\r\t'/.\x0b\x1d\x7fsL"
    texts = [a + b + c + d for a in kinds for b in kinds for c in kinds for d in "a \n"]
    for split in DISTINCT.values():
        ours, library = AsciiCutter(split), pre_tokenizer(split)
        for text in texts:
            assert ours.pieces(text) == [piece for piece, _ in library.pre_tokenize_str(text)], (split.name, text)


def test_no_text_has_no_pieces() -> None:
    assert all(AsciiCutter(split).pieces("") == [] for split in DISTINCT.values())


def test_expressions_for_ascii_have_no_unicode_classes_left() -> None:
    for step in Step:
        written = ascii_expression(step)
        assert r"\p" not in written and "[]" not in written
        re.compile(written, re.ASCII)
