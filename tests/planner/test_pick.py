"""The short list: who is on it, in which order, and why the others are not."""

from __future__ import annotations

import pytest

from herd.errors import UsageError
from herd.family.catalogue import known
from herd.planner.devices import find_device
from herd.planner.pick import TASKS, Wish, pick


def names(wish: Wish) -> list[str]:
    return [candidate.release.name for candidate in pick(wish).candidates]


@pytest.mark.parametrize("task", TASKS)
def test_every_task_has_candidates_with_reasons(task: str) -> None:
    found = pick(Wish(task=task))
    assert found.candidates
    assert all(candidate.reasons and candidate.num_bytes > 0 for candidate in found.candidates)
    assert all(why for why in found.out.values())
    assert not set(found.out) & {candidate.release.name for candidate in found.candidates}


def test_the_best_come_first_where_nothing_limits() -> None:
    found = names(Wish(task="chat"))
    assert found[:2] == ["llama-4-maverick-instruct", "llama-4-scout-instruct"]
    assert found.index("llama-3.3-70b-instruct") < found.index("llama-3.1-8b-instruct") < found.index("llama-3.2-1b-instruct")


def test_what_does_not_fit_is_out_and_the_rest_takes_the_widest_format_that_does() -> None:
    found = pick(Wish(task="chat", languages=("de",), memory=16 * 2**30))
    best, second = found.candidates[:2]
    assert (best.release.name, best.format) == ("llama-3.1-8b-instruct", "q8_0")
    assert (second.release.name, second.format) == ("llama-3.2-11b-vision-instruct", "q8_0")
    assert "too large" in found.out["llama-3.3-70b-instruct"]
    assert "not made for de" in found.out["smollm2-135m-instruct"]


def test_the_licence_keeps_multimodal_llamas_from_companies_of_the_eu() -> None:
    found = pick(Wish(task="pictures", region="eu"))
    assert "AUP EU clause" in found.out["llama-4-scout-instruct"]
    assert [candidate.release.name for candidate in found.candidates] == ["muse-glimmer-30b"]
    assert "llama-4-scout-instruct" in names(Wish(task="pictures"))


def test_a_long_context_leaves_those_that_have_one() -> None:
    assert set(names(Wish(task="chat", context=1_000_000))) == {"llama-4-scout-instruct", "llama-4-maverick-instruct"}


def test_a_device_gives_a_speed() -> None:
    found = pick(Wish(task="chat", device=find_device("rtx-4090"))).candidates
    assert all(candidate.tokens_per_s for candidate in found)
    assert all(candidate.num_bytes <= 24e9 for candidate in found)


def test_infilling_needs_a_model_that_can() -> None:
    assert all(known(name).can_infill for name in names(Wish(task="infill")))  # type: ignore[union-attr]


def test_what_was_never_scored_says_where_its_place_is_from() -> None:
    found = {candidate.release.name: candidate.reasons[0] for candidate in pick(Wish(task="chat")).candidates}
    assert "placed by its size beside" in found["muse-glimmer-30b"]
    assert found["llama-2-7b-chat"] == "MMLU 45.3 of llama-2-7b, which it is made from"


@pytest.mark.parametrize(("wish", "says"), [(Wish(task="chta"), "did you mean 'chat'"), (Wish(languages=("xx",)), "--languages has 'xx'")])
def test_unknown_wishes_are_refused(wish: Wish, says: str) -> None:
    with pytest.raises(UsageError, match=says):
        pick(wish)
