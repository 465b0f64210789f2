"""Stop texts in a stream: nothing of one is ever given out, and nothing else is lost."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from herd.errors import UsageError
from herd.sampling.stop import StopReason, StopTexts


def stream(stops: list[str], pieces: list[str]) -> tuple[str, str | None]:
    matcher = StopTexts(stops)
    said = "".join(matcher.push(piece) for piece in pieces)
    return said + matcher.finish(), matcher.matched


def test_text_that_may_become_a_stop_text_is_held_back() -> None:
    matcher = StopTexts(["STOP"])
    assert [matcher.push(piece) for piece in ["a S", "T", "O", "X", "STO", "P more"]] == ["a ", "", "", "STOX", "", ""]
    assert matcher.matched == "STOP" and matcher.push("more") == "" and matcher.finish() == ""


def test_the_first_match_wins_and_the_longer_one_of_two_at_one_place() -> None:
    assert stream(["b", "abc"], ["xabc"]) == ("x", "abc")
    assert stream(["ab", "abc"], ["xabc"]) == ("x", "abc")


@given(st.lists(st.text("ab", min_size=1, max_size=4), max_size=3), st.lists(st.text("abc", max_size=5), max_size=8))
def test_how_a_text_is_cut_into_pieces_does_not_matter_to_what_precedes_a_match(stops: list[str], pieces: list[str]) -> None:
    said, matched = stream(stops, pieces)
    whole = "".join(pieces)
    if matched is None:
        assert said == whole and not any(stop in whole for stop in stops)
    else:
        assert whole.startswith(said + matched)
        assert not any(stop in said for stop in stops)


@pytest.mark.parametrize("stops", ["text", [""], ["x" * 1025], ["x"] * 17, [1], [None]])
def test_wrong_stop_texts_are_refused(stops: list[str]) -> None:
    with pytest.raises(UsageError, match="stop"):
        StopTexts(stops)


def test_only_ends_and_stop_texts_are_complete() -> None:
    assert {reason for reason in StopReason if reason.is_complete} == {StopReason.END, StopReason.STOP_TEXT}
