"""Which replica a request goes to: the one that has its beginning, unless that one has much more to do."""

from __future__ import annotations

from herd.providers import routing
from herd.providers.base import Caller, ChatRequest, CompletionRequest
from herd.providers.routing import PIECE, SLACK, Router, marks_of
from herd.sampling.params import SamplingParams
from herd.text.messages import Image, Message, Role

GREEDY = SamplingParams(temperature=0.0)


def chat(*texts: str, salt: bytes = b"", adapter: str | None = None) -> tuple[bytes, ...]:
    roles = (Role.USER, Role.ASSISTANT)
    messages = [Message(roles[index % 2], text) for index, text in enumerate(texts)]
    return marks_of(ChatRequest(messages=messages, sampling=GREEDY, caller=Caller("a", salt), adapter=adapter))


def completion(prompt: str | list[int]) -> tuple[bytes, ...]:
    return marks_of(CompletionRequest(prompt=prompt, sampling=GREEDY))


def test_a_longer_conversation_has_the_marks_of_a_shorter_one() -> None:
    first = chat("Who?", "x" * (2 * PIECE + 1))
    assert len(first) == 4 and chat("Who?", "x" * (2 * PIECE + 1), "And?")[:4] == first
    assert chat("Who?", "x" * (2 * PIECE) + "y")[:3] == first[:3] and chat("Who!", "x")[0] != first[0]


def test_marks_differ_with_whose_a_conversation_is_and_with_its_adapter() -> None:
    assert len({chat("Hi"), chat("Hi", salt=b"b"), chat("Hi", adapter="poems"), chat("Hi", adapter="")}) == 4


def test_prompts_and_pictures_and_nothing_at_all_have_marks() -> None:
    assert completion("x" * PIECE + "a")[0] == completion("x" * PIECE + "b")[0]
    assert completion(list(range(PIECE + 1)))[:1] == completion(list(range(PIECE)))
    assert len(completion("")) == len(completion([])) == 1
    pictures = [Message(Role.USER, (Image(source),)) for source in (b"one", b"two", "data:,", object())]
    assert len({marks_of(ChatRequest(messages=[each], sampling=GREEDY)) for each in pictures}) == 4
    assert marks_of(ChatRequest(messages=[Message(Role.USER, "\ud800")], sampling=GREEDY))


def test_what_begins_alike_goes_to_the_same_replica_and_the_rest_is_spread() -> None:
    router = Router(3)
    first = router.choose(chat("Hi"), [0, 0, 0])
    others = {router.choose(chat(text), [0, 0, 0]) for text in ("a", "b")}
    assert others == {0, 1, 2} - {first}
    assert router.choose(chat("Hi", "Hello", "Go on"), [SLACK, SLACK, SLACK]) == first


def test_a_replica_that_has_much_more_to_do_is_passed_over() -> None:
    router = Router(2)
    first = router.choose(chat("Hi"), [0, 0])
    loads: list[int | None] = [0, 0]
    loads[first] = SLACK
    assert router.choose(chat("Hi"), loads) == first
    loads[first] = SLACK + 1
    assert router.choose(chat("Hi"), loads) == 1 - first
    assert {router.choose(chat("Hi"), [0, 0]) for _ in range(2)} == {0, 1}, "both have it now"


def test_a_replica_that_is_away_is_not_asked_and_comes_back_with_nothing() -> None:
    router = Router(2)
    first = router.choose(chat("Hi"), [0, 0])
    away: list[int | None] = [None if replica == first else 9 for replica in range(2)]
    assert router.choose(chat("Hi", "", "more"), away) == 1 - first
    router.forget(first)
    assert router.choose(chat("Hi"), [0, 0]) == 1 - first
    assert router.choose(chat("other"), [None, None]) in (0, 1)


def test_what_is_remembered_is_bounded() -> None:
    before, routing.MARKS_MAX = routing.MARKS_MAX, 10
    try:
        router = Router(1)
        for number in range(100):
            router.choose(completion(str(number)), [0])
        assert len(router._known) == 10
    finally:
        routing.MARKS_MAX = before
