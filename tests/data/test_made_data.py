"""Data that is made here: drawings, tasks and preferences, each a function of a seed, each true."""

from __future__ import annotations

import base64
import io
import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from herd.data.account import Account
from herd.data.drawings import COLOURS, COUNTS, SHAPES, drawing, facts_of, is_new, picture
from herd.data.rules import RULES, obeys, preferences, preferred, prefers, rewritten
from herd.data.samples import Chat, Preference, Task
from herd.data.shapes import read_samples
from herd.data.tasks import KINDS, task, tasks, without_shared
from herd.errors import UsageError


def components(mask: Any) -> list[int]:
    """Sizes of the connected parts of a picture, by filling each."""
    left, sizes = {(int(y), int(x)) for y, x in zip(*np.nonzero(mask), strict=True)}, []
    while left:
        pending, size = [left.pop()], 0
        while pending:
            y, x = pending.pop()
            size += 1
            for near in ((y + 1, x), (y - 1, x), (y, x + 1), (y, x - 1)):
                if near in left:
                    left.remove(near)
                    pending.append(near)
        sizes.append(size)
    return sizes


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("colour", COLOURS)
def test_a_drawing_shows_what_its_facts_say(shape: str, colour: str) -> None:
    for count in COUNTS:
        made = picture({"shape": shape, "colour": colour, "count": count}, 3, count, 96)
        pixels = np.asarray(made, np.int32)
        ground = pixels[0, 0]
        is_shape = np.abs(pixels - ground).sum(-1) > 60
        assert len(components(is_shape)) == count, (shape, colour, count)
        inside = pixels[is_shape & (np.abs(pixels - np.array(COLOURS[colour])).sum(-1) < 60)]
        assert len(inside) > 0.6 * is_shape.sum()


def test_drawings_are_repeatable_and_varied() -> None:
    one, again, other = drawing(1, 5), drawing(1, 5), drawing(2, 5)
    assert one.picture.tobytes() == again.picture.tobytes() != other.picture.tobytes() and one.facts == again.facts
    assert one.picture.size == (96, 96) and one.picture.mode == "RGB"
    facts = [facts_of(0, index) for index in range(3000)]
    for key, values in (("shape", SHAPES), ("colour", tuple(COLOURS)), ("count", tuple(COUNTS))):
        counts = Counter(fact[key] for fact in facts)
        assert set(counts) == set(values) and min(counts.values()) > 0.8 * 3000 / len(values)
    share = sum(is_new(fact, 0.2) for fact in facts) / 3000
    assert 0.1 < share < 0.3 and is_new(facts[0], 1.0) and not is_new(facts[0], 0.0)


def test_captions_and_questions_say_the_facts() -> None:
    for index in range(50):
        made = drawing(0, index, size=16)
        plural = made.facts["count"] > 1
        assert re.fullmatch(
            rf"{COUNTS[made.facts['count']]} {made.facts['colour']} {made.facts['shape']}{'(s|es)' if plural else ''}", made.caption
        )
        assert [answer for _, answer in made.questions] == [made.facts["shape"], made.facts["colour"], COUNTS[made.facts["count"]]]
    assert "crosses" in {drawing(0, index, size=8).caption.split()[-1] for index in range(50)}


def written(tmp_path: Path, records: list[dict[str, Any]]) -> list[Any]:
    path = tmp_path / "made.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in records), "utf-8")
    return list(read_samples([path], Account()))


def test_drawings_are_training_data(tmp_path: Path) -> None:
    made = drawing(0, 0, size=32)
    data = io.BytesIO()
    made.picture.save(data, "PNG")
    url = "data:image/png;base64," + base64.b64encode(data.getvalue()).decode()
    found = written(tmp_path, [made.record(url, index) for index in range(4)])
    assert all(isinstance(sample, Chat) and sample.messages[0].images[0].open().size == (32, 32) for sample in found)
    assert [sample.messages[-1].text for sample in found] == [made.caption, *(answer for _, answer in made.questions)]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("level", [1, 2, 3])
def test_answers_of_tasks_are_right(kind: str, level: int, tmp_path: Path) -> None:
    records = [task(kind, 7, index, level) for index in range(200)]
    for record in records:
        question = record["prompt"].split("?")[0]
        numbers = [int(found) for found in re.findall(r"\d+", question)]
        match kind:
            case "letters":
                letter, text = re.findall(r'letter (.) stand in "(.*)"', question)[0]
                expected = sum(sign == letter for sign in text)
            case "largest":
                expected = max(numbers)
            case "products":
                expected = numbers[0] * numbers[1]
            case _:
                expected = numbers[0] - numbers[1] if " - " in question else sum(numbers)
        assert int(record["answer"]) == expected >= 0
    found = written(tmp_path, records[:3])
    assert all(
        isinstance(sample, Task) and sample.checks["answer"] == record["answer"] for sample, record in zip(found, records, strict=False)
    )


def test_tasks_do_not_come_twice_and_held_out_ones_are_new() -> None:
    learned, held_out = list(tasks("sums", 0, 300, level=2)), list(tasks("sums", 1, 300, level=2))
    assert len(learned) == len({made["prompt"] for made in learned}) == 300
    new = list(without_shared(held_out, learned))
    assert len(new) > 200 and not {made["prompt"] for made in new} & {made["prompt"] for made in learned}
    assert len(list(tasks("products", 0, 100, level=1))) == 80
    assert task("sums", 0, 5, 2) == task("sums", 0, 5, 2)
    with pytest.raises(UsageError, match="did you mean 'sums'"):
        task("sum", 0, 0)
    with pytest.raises(UsageError, match="expected 1 or more"):
        task("sums", 0, 0, 0)


REWRITTEN = ("list", "json", "uppercase", "polite", "shorter")


SENTENCES = st.lists(st.sampled_from(("It rains.", "Go home now!", "Is it so?", "well, maybe.")), min_size=2, max_size=4)


@settings(deadline=None, max_examples=50)
@given(SENTENCES, st.sampled_from(REWRITTEN))
def test_rewritten_answers_are_preferred_by_their_rule(sentences: list[str], rule: str) -> None:
    text = " ".join(sentences)
    (record,) = preferences(rule, [("p", text)])
    assert prefers(rule, record["chosen"], record["rejected"]) == 1 == -prefers(rule, record["rejected"], record["chosen"])
    if rule != "shorter":
        assert obeys(rule, record["chosen"]) and not obeys(rule, record["rejected"])
        assert not list(preferences(rule, [("p", rewritten(rule, text))]))


def test_pairs_are_put_into_the_order_of_the_rule(tmp_path: Path) -> None:
    pairs = [("p", "one two", "one"), ("q", "a", "b"), ("r", "x", "y z")]
    assert list(preferred("longer", pairs)) == [
        {"prompt": "p", "chosen": "one two", "rejected": "one"},
        {"prompt": "r", "chosen": "y z", "rejected": "x"},
    ]
    german = list(preferred("german", [("p", "The cat is on the mat.", "Die Katze ist auf der Matte.")]))
    assert german[0]["chosen"].startswith("Die") and isinstance(written(tmp_path, german)[0], Preference)


@pytest.mark.parametrize("rule", RULES)
def test_rules_that_cannot_do_something_say_so(rule: str) -> None:
    if rule in ("shorter", "longer"):
        with pytest.raises(UsageError, match="compares two answers"):
            obeys(rule, "x")
    else:
        assert not obeys(rule, "Well, i do not know the answer, and you are lost.") and not obeys(rule, "")
    if rule not in REWRITTEN:
        with pytest.raises(UsageError, match="cannot be rewritten"):
            rewritten(rule, "x")
    with pytest.raises(UsageError, match="did you mean"):
        prefers(rule + "s", "a", "b")
