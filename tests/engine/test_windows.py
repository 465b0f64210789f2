"""Layers with a window give back the pages that no later token sees, and answers do not notice.

The fake backend fails if a group of layers does not find, in its own pages, every token that its window reaches.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from engine.engines import STOP, VOCAB, all_back, drive, expected, random_request, random_steps
from fakes import FakeBackend
from herd.backends.base import NO_PAGE, PAGE_TOKENS, Plan, Span, Watch
from herd.engine.disk import DiskPages
from herd.engine.engine import Engine
from herd.engine.lookup import LookupDrafter
from herd.engine.page_files import PageFiles
from herd.engine.request import Request
from herd.engine.speculative import Speculation
from herd.errors import CapacityError
from herd.models.cache_groups import CacheGroups
from herd.models.ops import Chunks, Sliding
from herd.sampling.params import SamplingParams


def groups(*windows: Chunks | Sliding | None) -> CacheGroups:
    return CacheGroups(PAGE_TOKENS, windows, tuple((layer,) for layer in range(len(windows))))


KINDS = {
    "chunks": groups(None, *[Chunks(128)] * 3),
    "a sliding window": groups(None, Sliding(100)),
    "odd windows": groups(None, None, Sliding(65), Chunks(90), Sliding(1)),
    "windows only": groups(Chunks(192), Sliding(300)),
    "one group with a window": groups(Sliding(100)),
}
WITHOUT_GLOBAL = {name: kind for name, kind in KINDS.items() if None not in kind.windows}
WITH_GLOBAL = {name: kind for name, kind in KINDS.items() if None in kind.windows}
GREEDY = SamplingParams(temperature=0.0)


class Counting(FakeBackend):
    """Counts the tokens that are computed."""

    computed = 0

    def step(self, plan: Any) -> Any:
        self.computed += plan.num_tokens
        return super().step(plan)


def make(kind: CacheGroups, pages: int = 200, **options: Any) -> tuple[Engine, Counting]:
    step = options.pop("max_step_tokens", 40)
    backend = Counting(VOCAB, groups=kind, max_step_tokens=step)
    settings: dict[str, Any] = {"context_length": 1024, "stop_ids": {STOP}, "num_pages": pages, "max_batch": 6, **options}
    return Engine(backend, max_step_tokens=step, **settings), backend


def first_seen(kind: CacheGroups) -> Callable[[int], int]:
    """The lowest position that any of the groups sees from another."""
    return lambda position: min(0 if window is None else window.first(position) for window in kind.windows)


def words(count: int, seed: int = 0) -> list[int]:
    rng = random.Random(seed)
    return [rng.randrange(VOCAB) for _ in range(count)]


def answered(engine: Engine, tokens: list[int], count: int = 5, salt: bytes = b"") -> tuple[list[tuple[int, float]], int]:
    """An answer, and how many tokens of the prompt were cached."""
    sequence = engine.submit(Request(tokens=tokens, sampling=GREEDY, max_tokens=count, stop_ids=(), salt=salt))
    found = []
    while sequence.stop_reason is None:
        found += [(each.token, each.logprob) for each in engine.step() if each.token is not None]
        engine.check()
    return [(token, logprob) for token, logprob in found if token is not None], sequence.cached_tokens or 0


@pytest.mark.parametrize("kind", WITH_GLOBAL.values(), ids=WITH_GLOBAL)
@pytest.mark.parametrize("length", [60, 127, 128, 129, 300, 500])
def test_answers_that_cross_borders_are_those_of_a_plain_loop(kind: CacheGroups, length: int) -> None:
    engine, _ = make(kind)
    request = Request(tokens=words(length), sampling=GREEDY, max_tokens=140, stop_ids=())
    assert drive(engine, [request]) == [expected(request, 1024)]
    all_back(engine)


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
@pytest.mark.parametrize("step", [1, 7, 64, 65, 129])
def test_steps_of_any_size_find_their_pages(kind: CacheGroups, step: int) -> None:
    """A part of a prompt may end on a border, with one token left, which then is computed as the tokens of answers are."""
    for length in (65, 129, 193, 257, 194):
        engine, _ = make(kind, max_step_tokens=step, max_batch=1, max_step_outputs=1)
        request = Request(tokens=words(length), sampling=GREEDY, max_tokens=3, stop_ids=())
        assert drive(engine, [request]) == [expected(request, 1024, first_seen(kind))]
        all_back(engine)


@pytest.mark.parametrize("kind", WITHOUT_GLOBAL.values(), ids=WITHOUT_GLOBAL)
def test_layers_that_all_have_windows_answer_alike_in_any_company(kind: CacheGroups) -> None:
    requests = [Request(tokens=words(100 + 90 * seed, seed), sampling=GREEDY, max_tokens=200, stop_ids=()) for seed in range(4)]
    engine, _ = make(kind, pages=kind.pages_for(570, 40) + 1)
    assert drive(engine, requests) == [expected(request, 1024, first_seen(kind)) for request in requests]
    assert engine.load.preempted > 0 or kind.count == 1, "four windows of the only group fit into these pages"
    all_back(engine)


def test_one_group_with_a_window_gives_its_pages_back() -> None:
    engine, _ = make(KINDS["one group with a window"])
    sequence = engine.submit(Request(tokens=words(900), sampling=GREEDY, max_tokens=40, stop_ids=()))
    while sequence.length < 938:
        engine.step()
    assert engine.load.owned_pages <= 4 and sequence.pages[:12] == [NO_PAGE] * 12
    engine.cancel(sequence)
    all_back(engine)


@pytest.mark.parametrize("kind", [groups(Chunks(64), Sliding(100)), groups(Sliding(100))], ids=["a later group", "the only group"])
def test_the_fake_notices_what_was_never_computed_in_any_group(kind: CacheGroups) -> None:
    """The second block is computed, of the first one nothing: groups that see into it read what is not there."""
    backend = FakeBackend(VOCAB, groups=kind)
    backend.allocate(8, by_group=True)
    span = Span(tokens=(1,), start=PAGE_TOKENS, pages=tuple(range(2 * kind.count)), num_outputs=1)
    with pytest.raises(AssertionError, match="never computed"):
        backend.step(Plan((span,)))


@pytest.mark.parametrize("kind", WITH_GLOBAL.values(), ids=WITH_GLOBAL)
def test_company_and_preemption_change_nothing(kind: CacheGroups) -> None:
    rng = random.Random(4)
    requests = [random_request(rng) for _ in range(6)]
    requests += [Request(tokens=words(200 + seed, seed), sampling=GREEDY, max_tokens=190, stop_ids=()) for seed in range(3)]
    engine, _ = make(kind, pages=2 * kind.pages_for(200, 40) + 1, context_length=512)
    assert drive(engine, requests) == [expected(request) for request in requests]
    assert engine.load.preempted > 0
    all_back(engine)


def test_a_long_context_takes_its_full_pages_and_a_window() -> None:
    engine, _ = make(KINDS["chunks"])
    sequence = engine.submit(Request(tokens=words(900), sampling=GREEDY, max_tokens=40, stop_ids=()))
    most = 0
    while sequence.stop_reason is None:
        engine.step()
        most = max(most, engine.load.owned_pages)
        if sequence.length == 938:
            blocks = -(-sequence.placed // PAGE_TOKENS)
            assert engine.load.owned_pages == blocks + 3 * (blocks - 896 // PAGE_TOKENS), "all of one group, of the others the last chunk"
            assert sequence.pages[1::4][: 896 // PAGE_TOKENS] == [NO_PAGE] * (896 // PAGE_TOKENS)
    assert most <= engine.limits.pages_for(940) < 4 * 15
    all_back(engine)


def test_the_same_pages_hold_longer_contexts_than_if_all_were_kept() -> None:
    engine, _ = make(KINDS["chunks"], pages=40, context_length=4096)
    assert engine.limits.whole_tokens == 640 and engine.max_length == 64 * (40 - 3 * 4)
    tokens = words(engine.max_length - 10)
    request = Request(tokens=tokens, sampling=GREEDY, max_tokens=10, stop_ids=())
    assert drive(engine, [request]) == [expected(request, engine.max_length)]
    all_back(engine)


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_never_more_pages_than_if_all_were_kept(kind: CacheGroups) -> None:
    for length in range(1, 3000, 7):
        blocks = -(-length // PAGE_TOKENS)
        assert kind.count <= kind.pages_for(length, 512) <= blocks * kind.count
        assert kind.longest(kind.pages_for(length, 512), 512) >= length


@pytest.mark.parametrize("kind", WITH_GLOBAL.values(), ids=WITH_GLOBAL)
@pytest.mark.parametrize("shared", [64, 100, 127, 128, 130, 192, 200, 256, 320, 383])
def test_beginnings_are_reused_before_and_behind_borders(kind: CacheGroups, shared: int) -> None:
    """With room enough, what was given back is still there."""
    engine, _ = make(kind)
    first = words(400)
    answered(engine, first, 20)
    second = [*first[:shared], *words(90, seed=2)]
    request = Request(tokens=second, sampling=GREEDY, max_tokens=5, stop_ids=())
    found, cached = answered(engine, second)
    assert found == expected(request, 1024) and cached == shared // PAGE_TOKENS * PAGE_TOKENS
    all_back(engine)


@pytest.mark.parametrize("kind", WITH_GLOBAL.values(), ids=WITH_GLOBAL)
def test_the_next_turn_goes_on_where_the_last_one_ended(kind: CacheGroups) -> None:
    engine, backend = make(kind)
    first = words(300)
    answer, _ = answered(engine, first, 20)
    before = backend.computed
    second = [*first, *(token for token, _ in answer), *words(10, seed=3)]
    _, cached = answered(engine, second, 1)
    assert cached == 319 and backend.computed - before == 11
    all_back(engine)


def test_a_beginning_whose_window_is_gone_is_computed_again() -> None:
    engine, _ = make(KINDS["a sliding window"], pages=40)
    first = words(400)
    answered(engine, first)
    books = engine._scheduler.pages
    keys = [engine._scheduler._key(sequence, 2) for sequence in [engine.submit(Request(tokens=first, max_tokens=0))]]
    page = books.page_of(engine._scheduler.tables.key(keys[0], 1))
    assert page is not None
    books.share(page)
    books.forget_contents(page)
    books.release(page)
    request = Request(tokens=[*first[:210], *words(50, seed=5)], sampling=GREEDY, max_tokens=5, stop_ids=())
    found, cached = answered(engine, list(request.tokens))
    assert found == expected(request, 1024) and cached == 2 * PAGE_TOKENS, "the second block's window is whole, the third's is not"
    all_back(engine)


@pytest.mark.parametrize("kind", WITH_GLOBAL.values(), ids=WITH_GLOBAL)
def test_several_answers_to_one_prompt_share_it(kind: CacheGroups) -> None:
    engine, backend = make(kind, max_step_tokens=64)
    requests = [
        Request(tokens=words(330), sampling=SamplingParams(temperature=1.0, seed=5), max_tokens=80, choice_index=index, stop_ids=())
        for index in range(3)
    ]
    assert drive(engine, requests) == [expected(request, 1024) for request in requests]
    assert backend.computed < 2 * 330 + 3 * 80
    all_back(engine)


@pytest.mark.parametrize("kind", WITH_GLOBAL.values(), ids=WITH_GLOBAL)
def test_drafts_over_borders_change_no_answer(kind: CacheGroups) -> None:
    backend = FakeBackend(VOCAB, groups=kind)
    engine = Engine(backend, context_length=1024, num_pages=90, speculation=Speculation(LookupDrafter()))
    requests = [Request(tokens=words(9, seed=seed) * 13, sampling=GREEDY, max_tokens=150, stop_ids=()) for seed in range(3)]
    assert drive(engine, requests) == [expected(request, 1024) for request in requests]
    all_back(engine)


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_thousands_of_random_steps_keep_the_books_right(kind: CacheGroups) -> None:
    rng = random.Random(11)
    engine, _ = make(kind, pages=kind.pages_for(400, 40) + 6, context_length=400, max_batch=5, max_step_outputs=6)
    random_steps(engine, rng, 2_500, [words(250, seed) for seed in range(4)])


@pytest.mark.parametrize("kind", WITH_GLOBAL.values(), ids=WITH_GLOBAL)
def test_pages_on_the_disk_are_found_by_a_later_engine(tmp_path: Path, kind: CacheGroups) -> None:
    def opened() -> tuple[Engine, Counting]:
        size = PAGE_TOKENS * 8
        return make(kind, disk=DiskPages(PageFiles(tmp_path / "c", b"one", size, 500 * (size + 40))))

    tokens = words(330)
    engine, _ = opened()
    first, _ = answered(engine, tokens)
    engine.close()
    again, backend = opened()
    found, cached = answered(again, tokens)
    assert found == first and cached == 320 and backend.computed == 10 + 4
    all_back(again)
    again.close()


@pytest.mark.parametrize("kind", WITH_GLOBAL.values(), ids=WITH_GLOBAL)
@pytest.mark.parametrize("length", [50, 128, 200, 384, 390])
def test_what_the_cache_holds_of_a_text_can_be_taken_out_and_put_in(kind: CacheGroups, length: int) -> None:
    tokens = words(length)
    one, other = make(kind)[0], make(kind)[0]
    wanted, _ = answered(one, [*tokens, 1, 2, 3])
    answered(one, tokens, 1, salt=b"")
    with one.cached(tokens) as (count, pages):
        contents = [memoryview(page) for page in pages]
    assert len(contents) == one.num_cached_pages(count)
    other.put_cached(tokens[:count], contents)
    found, cached = answered(other, [*tokens, 1, 2, 3])
    assert found == wanted and cached == count
    all_back(other)


def test_texts_are_watched_with_all_they_hold() -> None:
    """A text that is run by hand keeps all of its pages, so that everything in them can be looked at; it is no longer than they suffice."""
    engine, backend = make(KINDS["chunks"], pages=24)
    had = []
    backend.before_step = lambda plan: had.extend(plan.spans[0].pages)
    rows = [result.logits_RV for _, result in engine.examine(words(300), lambda positions: Watch())]
    assert sum(len(each) for each in rows if each is not None) == 300
    assert len(set(had)) == 4 * 5 and NO_PAGE not in had
    with pytest.raises(CapacityError, match="384 in all"):
        list(engine.examine(words(385), lambda positions: Watch()))
    all_back(engine)
