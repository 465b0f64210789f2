"""Many callers, one engine: equal shares, priorities, bounded queues and deadlines; and nobody waits for ever."""

from __future__ import annotations

import random
import threading
from collections import Counter
from collections.abc import Sequence as List
from typing import Any

import pytest

from fakes import FakeBackend, fake_logits
from herd.engine.engine import Engine
from herd.engine.parts import shared_out
from herd.engine.request import Request, Sequence, Status
from herd.errors import Busy, CapacityError, UsageError
from herd.sampling.chain import Draw, choose
from herd.sampling.params import SamplingParams

VOCAB = 50


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def make(**options: Any) -> Engine:
    backend = options.pop("backend", None) or FakeBackend(VOCAB)
    return Engine(backend, **{"context_length": 512, "num_pages": 64, "max_batch": 4, **options})


def asked(caller: str, length: int = 5, max_tokens: int = 50, **choices: Any) -> Request:
    return Request(tokens=[sum(caller.encode()) % 40 + 1] * length, max_tokens=max_tokens, stop_ids=(), caller=caller, **choices)


def running(engine: Engine) -> Counter[str]:
    return Counter(s.caller for s in engine._scheduler.running)


def all_back(engine: Engine) -> None:
    engine.check()
    load = engine.load
    assert (load.owned_pages, load.waiting, load.running) == (0, 0, 0)


def expected(request: Request) -> list[int]:
    tokens = list(request.tokens)
    for _ in range(request.max_tokens or 0):
        draw = Draw(params=request.sampling, seed=request.sampling.seed or 0, position=len(tokens), choice_index=request.choice_index)
        tokens.append(choose(fake_logits(tokens, VOCAB), draw).token)
    return tokens[len(request.tokens) :]


def test_whoever_has_nothing_running_is_served_in_the_next_step() -> None:
    engine = make()
    for _ in range(40):
        engine.submit(asked("greedy"))
    engine.step()
    assert running(engine) == {"greedy": 4}
    modest = engine.submit(asked("modest"))
    engine.step()
    engine.check()
    assert running(engine) == {"greedy": 3, "modest": 1} and modest.answer


def test_places_that_become_free_go_to_whoever_has_fewest() -> None:
    engine = make(max_batch=6)
    for _ in range(30):
        engine.submit(asked("a", max_tokens=12))
    engine.step()
    for _ in range(30):
        engine.submit(asked("b", max_tokens=12))
    for _ in range(14):
        engine.step()
    assert running(engine) == {"a": 3, "b": 3}


def test_a_caller_with_one_running_takes_nothing_from_another_with_several() -> None:
    engine = make()
    for _ in range(3):
        engine.submit(asked("a", max_tokens=100))
    for _ in range(3):
        engine.submit(asked("b", max_tokens=100))
    for _ in range(20):
        engine.step()
    assert running(engine) == {"a": 2, "b": 2} and engine.load.preempted == 0, "both were there when places were given"


def test_a_step_s_room_for_prompts_is_shared_between_callers() -> None:
    backend = FakeBackend(VOCAB)
    engine = make(backend=backend, max_step_tokens=100)
    engine.submit(asked("long", 400, 1))
    engine.submit(asked("long", 400, 1))
    engine.step()
    engine.submit(asked("short", 30, 1))
    engine.step()
    assert sorted(len(span.tokens) for span in backend.plans[-1].spans) == [30, 70]
    engine.submit(asked("other", 400, 1))
    engine.step()
    assert sorted(len(span.tokens) for span in backend.plans[-1].spans) == [50, 50]


def sequences(*pending: tuple[str, int, bool]) -> list[Sequence]:
    engine = make()
    found = []
    for caller, length, is_low in pending:
        found.append(engine.submit(asked(caller, length, 1, is_low=is_low)))
    return found


def test_what_one_caller_does_not_need_goes_to_the_others() -> None:
    a1, a2, b, c = sequences(("a", 100, False), ("a", 100, False), ("b", 10, False), ("c", 60, False))
    assert {s.number: most for s, most in shared_out([a1, a2, b, c], 130)} == {a1.number: 60, b.number: 10, c.number: 60}
    assert {s.number: most for s, most in shared_out([a1, a2, b, c], 400)} == {0: 100, 1: 100, 2: 10, 3: 60}


def test_prompts_of_low_priority_have_what_the_others_leave() -> None:
    low, normal = sequences(("batch", 100, True), ("a", 70, False))
    assert shared_out([low, normal], 100) == [(normal, 70), (low, 30)]
    assert shared_out([low, normal], 60) == [(normal, 60)]


def test_with_fewer_tokens_than_callers_the_oldest_go_on() -> None:
    several = sequences(*((str(index), 10, False) for index in range(5)))
    assert {s.number: most for s, most in shared_out(several, 3)} == {0: 1, 1: 1, 2: 1}
    assert shared_out(several, 0) == []


def test_low_priority_runs_in_what_is_left_and_gives_way() -> None:
    engine = make()
    low = [engine.submit(asked("batch", is_low=True, max_tokens=20, sampling=SamplingParams(seed=i))) for i in range(8)]
    engine.step()
    assert running(engine) == {"batch": 4}
    normal = [engine.submit(asked("person", max_tokens=10)) for _ in range(3)]
    engine.step()
    engine.check()
    assert running(engine) == {"batch": 1, "person": 3} and all(s.answer for s in normal)
    more = [engine.submit(asked("person", max_tokens=10)) for _ in range(6)]
    while any(s.status is not Status.GONE for s in (*normal, *more)):
        engine.step()
        waits = any(s.status is Status.WAITING for s in (*normal, *more))
        assert not waits or not running(engine)["batch"], "nobody of low priority runs while another waits for a place"
    while engine.load.running or engine.load.waiting:
        engine.step()
    for index, sequence in enumerate(low):
        assert sequence.answer == expected(asked("batch", max_tokens=20, sampling=SamplingParams(seed=index)))
    all_back(engine)


def test_a_request_is_served_however_many_new_callers_come() -> None:
    """Each step brings two callers that were never seen; the second request of an old one still gets its turn."""
    engine = make(max_batch=2)
    patient = [engine.submit(asked("patient", max_tokens=8)) for _ in range(3)]
    for index in range(400):
        engine.submit(asked(f"new {index}", max_tokens=3))
        engine.step()
        if index % 2:
            engine.submit(asked(f"newer {index}", max_tokens=3))
        if all(s.status is Status.GONE for s in patient):
            break
    assert all(len(s.answer) == 8 for s in patient)


def test_a_large_request_is_not_passed_by_small_ones() -> None:
    engine = make(num_pages=8, max_batch=8)
    for index in range(8):
        engine.submit(asked(f"small {index}", 60, 30))
    engine.step()
    large = engine.submit(asked("large", 400, 2))
    steps = 0
    while large.status is not Status.GONE:
        engine.submit(asked(f"later {steps}", 60, 30))
        engine.step()
        steps += 1
        assert steps < 200
    assert len(large.answer) == 2


def test_nobody_gives_way_when_that_would_not_be_enough() -> None:
    engine = make(num_pages=10, max_batch=8)
    for _ in range(2):
        engine.submit(asked("a", 60, 40))
    engine.submit(Request(tokens=[7] * 256, max_tokens=60, stop_ids=(), caller="b"))
    engine.step()
    large = engine.submit(asked("c", 400, 2))
    for _ in range(10):
        engine.step()
    assert large.status is Status.WAITING and engine.load.preempted == 0


def test_callers_and_priorities_keep_the_books_right_and_change_no_answer() -> None:
    rng = random.Random(23)
    engine = make(num_pages=14, max_batch=5, max_step_tokens=40, max_step_outputs=8, context_length=400)
    alive: list[tuple[Request, Sequence]] = []
    prefixes = [[rng.randrange(VOCAB) for _ in range(150)] for _ in range(3)]
    finished = cancelled = 0
    for step in range(6000):
        if rng.random() < 0.12 and len(alive) < 24:
            tokens = rng.choice(prefixes)[: rng.randrange(1, 150)] + [rng.randrange(VOCAB) for _ in range(rng.randrange(20))]
            request = Request(
                tokens=tokens,
                max_tokens=rng.randrange(1, 50),
                stop_ids=(),
                salt=rng.choice([b"", b"x"]),
                caller=rng.choice("abcd"),
                is_low=rng.random() < 0.3,
                sampling=SamplingParams(seed=step),
            )
            alive.append((request, engine.submit(request)))
        elif rng.random() < 0.02 and alive:
            engine.cancel(rng.choice(alive)[1])
            cancelled += 1
        oldest = next((s for s in engine._scheduler.running if not s.is_low), None)
        engine.step()
        engine.check()
        assert oldest is None or oldest.status is not Status.WAITING, "the oldest that runs is never preempted"
        for request, sequence in alive:
            if sequence.status is Status.GONE and sequence.stop_reason is not None and len(sequence.answer) == request.max_tokens:
                assert sequence.answer == expected(request)
                finished += 1
        alive = [each for each in alive if each[1].status is not Status.GONE]
    assert finished > 200 and engine.load.preempted > 20
    for _, sequence in alive:
        engine.cancel(sequence)
    all_back(engine)


def test_a_full_queue_refuses_and_says_when_to_come_again() -> None:
    clock = Clock()
    engine = make(max_waiting=3, clock=clock)
    for _ in range(3):
        engine.submit(asked("a"))
    with pytest.raises(Busy, match="3 requests are waiting") as refused:
        engine.submit(asked("b"))
    assert refused.value.retry_after_s == 1.5 and refused.value.http_status == 429
    for _ in range(3):
        engine.submit(asked("batch", is_low=True))
    with pytest.raises(Busy):
        engine.submit(asked("batch", is_low=True))
    engine.step()
    engine.submit(asked("b"))


def test_when_to_come_again_follows_from_how_fast_answers_end() -> None:
    clock = Clock()
    engine = make(max_waiting=10, max_batch=1, clock=clock)
    for _ in range(30):
        sequence = engine.submit(asked("a", max_tokens=1))
        while sequence.status is not Status.GONE:
            engine.step()
        clock.now += 10.0
    for _ in range(10):
        engine.submit(asked("a"))
    with pytest.raises(Busy) as refused:
        engine.submit(asked("a"))
    assert 40 < refused.value.retry_after_s < 60, "half of ten answers of ten seconds"


def test_time_that_is_over_ends_a_request_wherever_it_is() -> None:
    clock = Clock()
    engine = make(max_batch=1, clock=clock)
    runs = engine.submit(asked("a", max_tokens=400, deadline_s=5.0))
    waits = engine.submit(asked("a", max_tokens=400, deadline_s=3.0))
    done = engine.submit(asked("a", max_tokens=1, deadline_s=4.0))
    for _ in range(3):
        engine.step()
    clock.now += 3.5
    (first, *_) = engine.step()
    assert first.sequence is waits and isinstance(first.error, CapacityError) and "time" in str(first.error)
    clock.now += 2.0
    ended = [progress for progress in engine.step() if progress.error is not None]
    assert {progress.sequence.number for progress in ended} == {runs.number, done.number} and len(runs.answer) == 4
    assert engine.step() == []
    all_back(engine)
    again = engine.submit(asked("a", max_tokens=2))
    engine.step()
    assert again.cached_tokens, "what was computed in time is right, and found again"


def test_a_stream_whose_time_is_over_is_told() -> None:
    clock = Clock()
    engine = make(clock=clock)
    stream = engine.run(asked("a", max_tokens=400, deadline_s=1.0))
    next(stream)
    clock.now += 1.0
    assert isinstance(next(stream).error, CapacityError)
    all_back(engine)


@pytest.mark.parametrize("deadline", [-1.0, float("nan"), True, "1"])
def test_an_impossible_deadline_is_refused(deadline: Any) -> None:
    with pytest.raises(UsageError, match="deadline_s"):
        make().submit(asked("a", deadline_s=deadline))


def test_who_begins_is_told_before_the_step() -> None:
    backend = FakeBackend(VOCAB)
    engine = make(backend=backend, max_batch=2)
    told: list[tuple[int, list[int]]] = []

    def began(fresh: List[Sequence]) -> None:
        told.append((len(backend.plans), [s.number for s in fresh]))

    engine.on_start = began
    for _ in range(3):
        engine.submit(asked("a", max_tokens=2))
    while engine.load.running or engine.load.waiting:
        engine.step()
    assert told == [(0, [0, 1]), (2, [2])]


def test_whoever_waits_for_work_is_woken_by_it() -> None:
    engine = make()
    assert engine.wait(0.0) is False
    threading.Timer(0.05, lambda: engine.submit(asked("a"))).start()
    assert engine.wait(10.0) is True
    threading.Timer(0.05, engine.wake).start()
    engine.cancel(engine._scheduler.waiting[0])
    assert engine.wait(10.0) is False, "woken without work"


def test_a_queue_of_thousands_is_not_read_when_nobody_can_be_admitted() -> None:
    engine = make(max_batch=32)
    for index in range(3000):
        engine.submit(asked(f"{index % 7}", 3))
    engine.step()
    scheduler = engine._scheduler
    assert len(scheduler.running) == 32
    scheduler.waiting = _Unread(scheduler.waiting)
    engine.step()
    assert len(scheduler.running) == 32


class _Unread(list[Sequence]):
    def __iter__(self) -> Any:
        raise AssertionError("the queue was read")
