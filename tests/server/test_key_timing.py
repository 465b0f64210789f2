"""How long it takes to refuse a key tells nothing about the keys that there are.

No clock is read here: the steps that are taken are counted, and they are the same for every text.
"""

from __future__ import annotations

import ast
import hmac
import inspect
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

from herd.server import keys as keyring
from herd.server.keys import Keys


@pytest.fixture
def ring(tmp_path: Path) -> tuple[Keys, list[str]]:
    """Some keys, and their texts."""
    file = tmp_path / "server" / "keys.json"
    texts = [keyring.create(file, f"key {number}")[0] for number in range(20)]
    found = Keys(file)
    found.all()
    return found, texts


def steps(call: Callable[[], object]) -> list[tuple[str, int]]:
    """The lines of `herd.server.keys` that a call runs, in order."""
    seen: list[tuple[str, int]] = []

    def trace(frame: FrameType, event: str, argument: object) -> Any:
        if frame.f_code.co_filename != keyring.__file__:
            return None
        if event == "line":
            seen.append((frame.f_code.co_name, frame.f_lineno))
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        call()
    finally:
        sys.settrace(before)
    return seen


def wrong(text: str) -> list[str]:
    """Texts that share much with a key, little, or nothing."""
    return ["", text[:-1], text + "x", text[:-1] + ("a" if text[-1] != "a" else "b"), "x" + text[1:], text.upper(), "é\\ud800", "x" * 5000]


def test_every_wrong_text_takes_the_same_steps(ring: tuple[Keys, list[str]]) -> None:
    keys, texts = ring
    foreign = steps(lambda: keys.find("herd-of-nobody"))
    assert len(foreign) > 4 and keys.find(texts[7]) is not None
    for text in [each for known in texts[::5] for each in wrong(known)]:
        assert steps(lambda text=text: keys.find(text)) == foreign and keys.find(text) is None  # type: ignore[misc]


def test_what_is_looked_up_and_compared_depends_on_nothing_that_a_client_can_steer(
    ring: tuple[Keys, list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    keys, texts = ring
    compared: list[tuple[str, str]] = []
    compare = hmac.compare_digest

    def noted(first: str, second: str) -> bool:
        compared.append((first, second))
        return compare(first, second)

    monkeypatch.setattr(hmac, "compare_digest", noted)
    for text in (texts[3], *wrong(texts[3])):
        keys.find(text)
    assert len(compared) == 1 + len(wrong(texts[3])), "one comparison for each text, right or wrong"
    assert all(len(first) == len(second) == 64 for first, second in compared), "of digests, which are as long for every text"
    other = Keys(keys.path)
    assert len(other.all()) == len(texts)
    assert set(vars(keys)["_by_digest"]).isdisjoint(vars(other)["_by_digest"]), "places in the table are secret, and other ones each time"


def test_keys_are_compared_in_no_other_way() -> None:
    tree = ast.parse(textwrap.dedent(inspect.getsource(Keys.find)))
    operators = [type(each) for node in ast.walk(tree) if isinstance(node, ast.Compare) for each in node.ops]
    assert set(operators) <= {ast.Is, ast.IsNot}, "nothing that ends at the first difference"
