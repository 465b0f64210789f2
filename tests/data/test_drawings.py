"""Drawings whose every answer is known."""

from __future__ import annotations

from collections import Counter

import numpy as np

from herd.data.drawings import COLOURS, SHAPES, drawing


def test_a_drawing_comes_from_seed_and_index_alone() -> None:
    first, again, other = drawing(1, 5), drawing(1, 5), drawing(2, 5)
    assert np.array_equal(np.asarray(first.picture), np.asarray(again.picture)) and first.answer == again.answer
    assert not np.array_equal(np.asarray(first.picture), np.asarray(other.picture))


def test_what_is_said_is_what_is_drawn() -> None:
    for index in range(40):
        found = drawing(3, index)
        pixels = np.asarray(found.picture, np.int64)
        near = np.abs(pixels - np.array(COLOURS[found.colour])).sum(axis=-1) < 60
        quarters = [near[y : y + 32, x : x + 32].any() for y in (0, 32) for x in (0, 32)]
        assert sum(quarters) == found.count
        assert found.colour in found.answer and found.shape in found.answer and found.answer in found.caption


def test_every_shape_colour_and_count_is_as_frequent_as_another() -> None:
    made = [drawing(0, index, side=8) for index in range(1200)]
    for counts, kinds in ((Counter(each.shape for each in made), len(SHAPES)), (Counter(each.count for each in made), 4)):
        assert len(counts) == kinds and min(counts.values()) > 0.75 * 1200 / kinds
    assert set(Counter(each.colour for each in made)) == set(COLOURS)
