"""Speculation changes the number of steps and nothing else: the same tokens and the same bits, and pages that always come back."""

from __future__ import annotations

import contextlib
import random
import threading
from collections.abc import Sequence as List
from typing import Any

import numpy as np
import pytest

from engine.engines import STOP, VOCAB, all_back, collect, drive, expected, make, random_request, random_steps
from fakes import FakeBackend, fake_logits
from herd.backends.base import PAGE_TOKENS, Plan
from herd.engine.engine import Engine
from herd.engine.lookup import FADE, WINDOW, Likeness, LookupDrafter
from herd.engine.request import Request, Sequence
from herd.engine.speculative import SIZES, Speculation, StepCosts
from herd.errors import FileProblem
from herd.sampling.chain import adjust, candidates
from herd.sampling.draw import Draw
from herd.sampling.history import History
from herd.sampling.params import SamplingParams
from herd.sampling.stop import StopReason


class FakeDrafter:
    """Drafts what `guess` says after the tokens so far, always eight at a time, and is always sure of itself."""

    def __init__(self, guess: Any) -> None:
        self.guess = guess
        self.tried: list[tuple[int, int]] = []
        self.is_closed = False

    def chances(self, sequence: Sequence) -> List[float]:
        return [1.0] * SIZES[-1]

    def draft(self, asked: List[tuple[Sequence, int]]) -> list[List[int]]:
        return [self._draft(sequence, count) for sequence, count in asked]

    def learn(self, sequence: Sequence, drafted: List[int], chosen: List[int]) -> None:
        right = [ours == theirs for ours, theirs in zip(drafted, chosen, strict=False)]
        self.tried.append((len(drafted), (*right, False).index(False)))

    def close(self) -> None:
        self.is_closed = True

    def _draft(self, sequence: Sequence, count: int) -> list[int]:
        found: list[int] = []
        while len(found) < count:
            found.append(self.guess(sequence, [*sequence.tokens, *found]))
        return found


def right(sequence: Sequence, tokens: list[int]) -> int:
    """What the fake model will choose."""
    history = History(tokens[: sequence.num_prompt])
    for token in tokens[sequence.num_prompt :]:
        history.add(token)
    counts = {"seen_ids": history.ids, "answer_counts": history.counts}
    draw = Draw(params=sequence.sampling, seed=sequence.seed, position=len(tokens), choice_index=sequence.choice_index, **counts)
    from herd.sampling.chain import choose

    return choose(fake_logits(tokens, VOCAB), draw).token


def wrong(sequence: Sequence, tokens: list[int]) -> int:
    return (right(sequence, tokens) + 1) % VOCAB


def mixed(sequence: Sequence, tokens: list[int]) -> int:
    return right(sequence, tokens) if hash((sequence.number, len(tokens), 5)) % 4 else len(tokens) % VOCAB


def steps_of(backend: FakeBackend) -> Any:
    """A clock by which every step takes a second, and nothing else takes time."""
    return lambda: float(len(backend.plans))


def speculating(guess: Any = right, backend: FakeBackend | None = None, **options: object) -> tuple[Engine, FakeDrafter]:
    drafter, backend = FakeDrafter(guess), backend or FakeBackend(VOCAB)
    return make(backend, speculation=Speculation(drafter, clock=steps_of(backend)), **options), drafter


def looking_up(**options: object) -> Engine:
    backend = FakeBackend(VOCAB)
    return make(backend, speculation=Speculation(LookupDrafter(), clock=steps_of(backend)), **options)


@pytest.mark.parametrize("guess", [right, wrong, mixed])
def test_tokens_and_logprobs_are_those_of_a_plain_loop_whatever_is_drafted(guess: Any) -> None:
    rng = random.Random(4)
    engine, drafter = speculating(guess)
    for _ in range(40):
        request = random_request(rng)
        assert collect(engine.run(request)) == expected(request)
        all_back(engine)
    assert len(drafter.tried) > 20
    rates = [found for count, found in drafter.tried if count]
    assert {right: min(rates) > 0, wrong: max(rates) == 0, mixed: sum(rates) > 0}[guess]


def test_right_drafts_save_seven_of_eight_steps() -> None:
    backend = FakeBackend(VOCAB)
    engine, drafter = speculating(right, backend)
    request = Request(tokens=[1, 2, 3], max_tokens=164, stop_ids=(), sampling=SamplingParams(seed=3))
    assert collect(engine.run(request)) == expected(request)
    assert drafter.tried == [(7, 7)] * 20
    assert len(backend.plans) == StepCosts.NEEDED + 1 + 20


@pytest.mark.parametrize("step_tokens", [8, 17, 64, 512])
@pytest.mark.parametrize("guess", [right, wrong, mixed])
def test_company_chunks_and_drafts_change_nothing(step_tokens: int, guess: Any) -> None:
    rng = random.Random(step_tokens)
    engine, drafter = speculating(guess, num_pages=64, max_step_tokens=step_tokens)
    requests = [random_request(rng) for _ in range(20)]
    assert drive(engine, requests) == [expected(request) for request in requests]
    assert drafter.tried
    all_back(engine)


@pytest.mark.parametrize("guess", [right, wrong, mixed])
def test_preempted_requests_go_on_with_the_same_tokens(guess: Any) -> None:
    rng = random.Random(5)
    backend = FakeBackend(VOCAB)
    engine, drafter = speculating(guess, backend, num_pages=5, context_length=300)
    prompts = [[rng.randrange(VOCAB) for _ in range(50)] for _ in range(6)]
    requests = [Request(tokens=tokens, sampling=SamplingParams(seed=i), max_tokens=120, stop_ids=()) for i, tokens in enumerate(prompts)]
    assert drive(engine, requests) == [expected(request, 300) for request in requests]
    assert sum(len(span.tokens) > 10 for plan in backend.plans for span in plan.spans) > len(requests), "some were preempted"
    assert drafter.tried
    all_back(engine)


def test_drafts_preempt_nobody() -> None:
    for guess in (right, wrong):
        engine, _ = speculating(guess, num_pages=4, context_length=128)
        requests = [Request(tokens=[index] * 60, max_tokens=68, stop_ids=(), sampling=SamplingParams(seed=index)) for index in range(2)]
        assert drive(engine, requests) == [expected(request, 128) for request in requests]
        all_back(engine)


def test_penalties_see_the_drafted_tokens_as_history() -> None:
    sampling = SamplingParams(temperature=0.8, repetition_penalty=1.6, presence_penalty=0.7, frequency_penalty=0.9, seed=9)
    request = Request(tokens=[1, 2, 3, 1], max_tokens=120, stop_ids=(), sampling=sampling)
    for guess in (right, wrong, mixed):
        engine, _ = speculating(guess)
        assert collect(engine.run(request)) == expected(request)


def test_a_history_says_what_it_would_be_after_more_tokens() -> None:
    rng = random.Random(1)
    for _ in range(50):
        history = History([rng.randrange(30) for _ in range(20)])
        for _ in range(rng.randrange(300)):
            history.add(rng.randrange(400))
        more = [rng.randrange(400) for _ in range(rng.randrange(9))]
        before = history.ids.copy()
        ids, counts = history.after(more)
        assert np.array_equal(history.ids, before)
        for token in more:
            history.add(token)
        assert np.array_equal(ids, history.ids) and np.array_equal(counts, history.counts)


def test_a_stop_id_among_right_drafts_ends_the_answer_there() -> None:
    stopped = 0
    for seed in range(60):
        engine, _ = speculating(right)
        request = Request(tokens=[seed % VOCAB], sampling=SamplingParams(seed=seed), max_tokens=100)
        got = list(engine.run(request))
        assert collect(iter(got)) == expected(request)
        last = got[-1].sequence
        assert (got[-1].stop_reason is StopReason.END) == (last.tokens[-1] == STOP) and [p.is_last for p in got].index(True) == len(got) - 1
        stopped += got[-1].stop_reason is StopReason.END
        all_back(engine)
    assert stopped > 20


@pytest.mark.parametrize("length", range(1, 12))
def test_answers_end_at_their_length_and_at_the_context_end(length: int) -> None:
    engine, _ = speculating(right, context_length=40)
    for request in (Request(tokens=[1] * 20, max_tokens=length, stop_ids=()), Request(tokens=[1] * (40 - length), stop_ids=())):
        request = Request(tokens=request.tokens, max_tokens=request.max_tokens, stop_ids=(), sampling=SamplingParams(seed=length))
        for _ in range(3):
            got = list(engine.run(request))
            assert collect(iter(got)) == expected(request, 40) and got[-1].stop_reason is StopReason.LENGTH and len(got) == length
        all_back(engine)


def test_a_reader_who_stops_early_gets_no_more_and_the_cache_holds_only_what_was_chosen() -> None:
    for guess in (right, wrong, mixed):
        backend = FakeBackend(VOCAB)
        engine, _ = speculating(guess, backend)
        request = Request(tokens=[4] * 60, max_tokens=200, stop_ids=(), sampling=SamplingParams(seed=6))
        for length in (1, 5, 9, 30, 77):
            stream = engine.run(request)
            got = [next(stream) for _ in range(length)]
            stream.close()
            assert collect(iter(got)) == expected(request)[:length]
            all_back(engine)
        tokens = [*request.tokens, *(token for token, _ in expected(request)[:50]), 1, 2]
        after = Request(tokens=tokens, max_tokens=30, stop_ids=(), sampling=SamplingParams(seed=6))
        first = list(engine.run(after))
        assert (first[0].sequence.cached_tokens or 0) >= PAGE_TOKENS and collect(iter(first)) == expected(after)


def test_a_wrong_draft_is_not_to_blame() -> None:
    bad = 49
    backend = FakeBackend(VOCAB, spoiled=lambda tokens: bad in tokens)
    engine, _ = speculating(lambda sequence, tokens: bad, backend)
    request = Request(tokens=[1, 2], max_tokens=60, stop_ids=(), sampling=SamplingParams(temperature=0.0, logit_bias={bad: -100.0}))
    got = list(engine.run(request))
    assert got[-1].stop_reason is StopReason.LENGTH and collect(iter(got)) == expected(request)
    company = [Request(tokens=[index], max_tokens=30, stop_ids=(), sampling=request.sampling) for index in range(4)]
    assert drive(engine, company) == [expected(each) for each in company]
    all_back(engine)


def test_a_sequence_that_fails_with_drafts_fails_alone() -> None:
    backend = FakeBackend(VOCAB, spoiled=lambda tokens: tokens[0] == 13 and len(tokens) > 20)
    engine, _ = speculating(right, backend)
    good = Request(tokens=[1, 2], max_tokens=40, stop_ids=(), sampling=SamplingParams(seed=1))
    sequences = [engine.submit(good), engine.submit(Request(tokens=[13, 2], max_tokens=60, stop_ids=())), engine.submit(good)]
    answers: dict[int, list[tuple[int, float]]] = {sequence.number: [] for sequence in sequences}
    while engine.load.running or engine.load.waiting:
        for progress in engine.step():
            if progress.token is not None:
                answers[progress.sequence.number].append((progress.token, progress.logprob))
        engine.check()
    assert isinstance(sequences[1].error, FileProblem) and len(answers[1]) == 19
    assert answers[0] == answers[2] == expected(good)
    all_back(engine)


def test_tokens_that_no_answer_can_have_are_not_tried() -> None:
    backend = FakeBackend(VOCAB)
    backend.num_embeddings = VOCAB + 10
    seen: list[int] = []
    backend.before_step = lambda plan: seen.extend(token for span in plan.spans for token in span.tokens)
    engine, _ = speculating(lambda sequence, tokens: VOCAB + 1, backend)
    request = Request(tokens=[1, 2, 3], max_tokens=30, stop_ids=(), sampling=SamplingParams(seed=1, presence_penalty=0.5))
    assert collect(engine.run(request)) == expected(request) and max(seen) < VOCAB


def test_cancelling_in_the_middle_of_a_step_with_drafts_gives_every_page_back() -> None:
    backend = FakeBackend(VOCAB)
    engine, drafter = speculating(mixed, backend)
    for length in range(3, 60, 5):
        sequence = engine.submit(Request(tokens=[length % VOCAB] * 62, max_tokens=80, stop_ids=()))

        def cancel(plan: Plan, sequence: Sequence = sequence, length: int = length) -> None:
            if sequence.length >= 62 + length:
                worker = threading.Thread(target=engine.cancel, args=(sequence,))
                worker.start()
                worker.join()

        backend.before_step = cancel
        while sequence.stop_reason is None:
            engine.step()
        assert sequence.stop_reason is StopReason.CANCELLED
        all_back(engine)
    assert drafter.tried


def test_an_interrupted_step_leaves_the_books_right() -> None:
    backend = FakeBackend(VOCAB)
    engine, _ = speculating(wrong, backend)
    request = Request(tokens=[1] * 60, max_tokens=60, stop_ids=(), sampling=SamplingParams(seed=2))
    sequence = engine.submit(request)
    for turn in range(400):
        if sequence.stop_reason is not None:
            break
        backend.before_step = _interrupting if turn % 2 else lambda plan: None
        with contextlib.suppress(KeyboardInterrupt):
            engine.step()
        engine.check()
    assert [token for token, _ in expected(request)] == sequence.answer
    all_back(engine)


def _interrupting(plan: Plan) -> None:
    raise KeyboardInterrupt


@pytest.mark.parametrize("drafter", ["random", "lookup"])
def test_ten_thousand_random_steps_keep_the_books_right(drafter: str) -> None:
    rng = random.Random(12)

    def guess(sequence: Sequence, tokens: list[int]) -> int:
        return right(sequence, tokens) if rng.random() < 0.3 else rng.randrange(VOCAB)

    limits = {"num_pages": 12, "max_batch": 5, "max_step_tokens": 40, "max_step_outputs": 12, "context_length": 400}
    engine = looking_up(**limits) if drafter == "lookup" else speculating(guess, **limits)[0]
    prefixes = [[rng.randrange(VOCAB) for _ in range(12)] * 12 for _ in range(4)]

    def sampling() -> SamplingParams:
        return SamplingParams(temperature=rng.choice([0.0, 1.0]), seed=rng.randrange(99), frequency_penalty=rng.choice([0.0, 0.2]))

    for request, sequence in random_steps(engine, rng, 10_000, prefixes, sampling):
        wanted = [token for token, _ in expected(request, 400)]
        assert sequence.answer == (wanted[: len(sequence.answer)] if sequence.stop_reason is StopReason.CANCELLED else wanted)


def test_scores_beside_drafts_are_the_rows_they_always_were() -> None:
    engine, drafter = speculating(mixed, max_step_outputs=20)
    request = Request(tokens=[3] * 40, max_tokens=60, stop_ids=(), sampling=SamplingParams(seed=8))
    stream = engine.run(request)
    got = [next(stream) for _ in range(20)]
    tokens = [index % VOCAB for index in range(130)]
    pieces = list(engine.score(tokens))
    np.testing.assert_array_equal(np.concatenate(pieces), [fake_logits(tokens[: end + 1], VOCAB) for end in range(130)])
    assert collect(iter([*got, *stream])) == expected(request) and drafter.tried
    all_back(engine)


def test_closing_the_engine_closes_the_drafter() -> None:
    engine, drafter = speculating()
    engine.close()
    assert drafter.is_closed


def test_sampled_answers_have_the_distribution_of_the_model() -> None:
    """χ² over the first two tokens of 3,000 answers, which are computed with drafts, right ones and wrong ones."""
    count, vocab = 3_000, 4
    sampling = {"temperature": 1.5, "top_p": 0.95}
    backend = FakeBackend(vocab)

    def guess(sequence: Sequence, tokens: list[int]) -> int:
        return (sequence.number + len(tokens)) % vocab

    drafter = FakeDrafter(guess)
    engine = make(backend, speculation=Speculation(drafter, clock=steps_of(backend)), max_batch=8)
    found = np.zeros((vocab, vocab))
    for first_seed in range(0, count, 8):
        draws = [SamplingParams(seed=seed, **sampling) for seed in range(first_seed, first_seed + 8)]
        sequences = [engine.submit(Request(tokens=[1, 2], max_tokens=3, stop_ids=(), sampling=draw)) for draw in draws]
        while engine.load.running or engine.load.waiting:
            engine.step()
        for sequence in sequences:
            found[sequence.answer[0], sequence.answer[1]] += 1
    params = SamplingParams(**sampling)

    def distribution(tokens: list[int]) -> np.ndarray:
        adjusted = adjust(fake_logits(tokens, vocab).astype(np.float64), Draw(params=params, seed=0, position=0))
        ids, weights = candidates(adjusted, params)
        row = np.zeros(vocab)
        row[ids] = weights / weights.sum()
        return row

    first = distribution([1, 2])
    wanted = count * np.stack([first[token] * distribution([1, 2, token]) for token in range(vocab)])
    assert not found[wanted == 0].any() and sum(found for _, found in drafter.tried) > count // 8
    likely = wanted >= 5
    chi_squared = float(((found - wanted)[likely] ** 2 / wanted[likely]).sum())
    freedom = int(likely.sum()) - 1
    assert chi_squared < freedom + 4 * (2 * freedom) ** 0.5, f"χ² is {chi_squared:.1f} with {freedom} degrees of freedom"


def test_the_place_that_is_most_like_the_end_is_found() -> None:
    rng = random.Random(2)
    lesser = total = 0
    for _ in range(60):
        tokens: list[int] = []
        like = Likeness(tokens)
        for _ in range(80):
            first = rng.randrange(max(1, len(tokens) - 10))
            tokens += [rng.randrange(12)] if rng.random() < 0.5 else tokens[first : first + rng.randrange(1, 10)]
            for stop in [len(tokens)] if rng.random() < 0.3 else range(like.num_read + 1, len(tokens) + 1):
                like.read(stop)
            pairs = [place for place in range(2, len(tokens)) if tokens[place - 2 : place] == tokens[-2:]]
            most = max((_likeness(tokens, place) for place in pairs), default=0.0)
            assert like.degree >= 0.2 if pairs else like.degree == 0.0 or like.degree > 0.2
            lesser, total = lesser + (like.degree < most - 1e-9), total + 1
            if like.foretold is not None:
                assert len(like.continuation(8)) == 8 and like.continuation(8)[0] == like.foretold
                assert any(like.degree == pytest.approx(_likeness(tokens, place)) for place in range(1, len(tokens)))
    assert lesser < total / 10, "few have so many candidates that a place more like the end is missed"


def _likeness(tokens: list[int], place: int) -> float:
    """By its definition: which of the tokens before `place` are those at the end, each counting FADE times as much as the one after it."""
    same = [FADE**back for back in range(min(WINDOW, place)) if tokens[place - 1 - back] == tokens[-1 - back]]
    return sum(same) / sum(FADE**back for back in range(WINDOW))


def test_a_text_that_repeats_itself_is_foretold_beyond_its_end() -> None:
    like = Likeness([1, 2, 3, 1, 2, 3])
    like.read(6)
    assert like.continuation(8) == [1, 2, 3, 1, 2, 3, 1, 2]


def test_a_text_that_says_one_token_otherwise_is_foretold_again_after_it() -> None:
    like = Likeness([1, 2, 3, 4, 5, 6, 7, 8, 1, 2, 3, 4, 9])
    for stop in range(1, 14):
        like.read(stop)
    assert 0.2 < like.degree < 0.7 and like.continuation(3) == [6, 7, 8]


def test_a_token_that_stands_for_another_is_foretold_where_the_other_stood() -> None:
    city, country, town = 50, 60, 70
    first = [1, 2, city, 3, 4, 5, city, 6, 7, 8, 9, city]
    like = Likeness([*first, *(country if token == city else token for token in first[:6])])
    for stop in range(1, 19):
        like.read(stop)
    assert like.continuation(6) == [country, 6, 7, 8, 9, country]
    like = Likeness([*first, 1, 2, town, 3, 4, 5, city, 6])
    for stop in range(1, 21):
        like.read(stop)
    assert like.continuation(4) == [7, 8, 9, city], "the latest of each token counts"


def test_a_place_among_many_is_chosen_by_what_stood_further_before_it() -> None:
    getter, setter = [1, 2, 20, 4, 5, 6], [1, 3, 20, 4, 7, 8]
    like = Likeness([*setter, *getter, 9, 9, 1, 3, 21, 4])
    for stop in range(1, 19):
        like.read(stop)
    assert like.continuation(2) == [7, 8], "as in the setter, though the same single token was followed by another in the getter later"


def test_nothing_is_foretold_where_nothing_was_repeated() -> None:
    like = Likeness([1, 2, 3, 4, 5, 6])
    like.read(6)
    assert like.continuation(8) == [] and like.foretold is None


class FakeTime:
    """A clock that steps of a fake backend move on: `seconds` of a step with so many tokens."""

    def __init__(self, seconds: Any) -> None:
        self.now, self.seconds = 0.0, seconds

    def __call__(self) -> float:
        return self.now

    def step(self, plan: Plan) -> None:
        self.now += self.seconds(plan.num_tokens)


def timed(drafter: Any, seconds: Any, request: Request, *, repeats: int = 1) -> tuple[float, float]:
    """Seconds with and without speculation, of a backend that says what it is told."""
    times = []
    for uses in (True, False):
        clock = FakeTime(seconds)
        backend = FakeBackend(VOCAB)
        backend.before_step = clock.step
        engine = make(backend, speculation=Speculation(drafter, clock=clock) if uses else None)
        for _ in range(repeats):
            assert collect(engine.run(request)) == expected(request)
            all_back(engine)
        times.append(clock.now)
    return times[0], times[1]


@pytest.mark.parametrize("each", [0.02, 0.1, 0.3, 1.0])
def test_drafting_never_costs_more_than_two_percent(each: float) -> None:
    """Random answers, which lookup cannot foretell, on machines on which each token more costs so much of a step."""
    answers = SamplingParams(temperature=1.0, seed=5)
    request = Request(tokens=[1, 2, 3, 4, 5] * 10, max_tokens=400, stop_ids=(), sampling=answers)
    with_drafts, without = timed(LookupDrafter(), lambda tokens: 1.0 + each * (tokens - 1), request, repeats=2)
    assert with_drafts <= without / 0.98


def test_the_number_of_drafts_follows_what_steps_cost() -> None:
    """Where seven cost next to nothing seven are tried, where two are free but three dear, two; where any is dear, none."""
    request = Request(tokens=[1, 2, 3], max_tokens=300, stop_ids=(), sampling=SamplingParams(seed=1))
    for seconds, most in (
        (lambda tokens: 1.0 + 0.01 * tokens, 7),
        (lambda tokens: 1.0 if tokens <= 3 else 4.0, 2),
        (lambda tokens: float(tokens), 0),
    ):
        clock = FakeTime(seconds)
        backend = FakeBackend(VOCAB)
        backend.before_step = clock.step
        drafter = FakeDrafter(right)
        engine = make(backend, speculation=Speculation(drafter, clock=clock))
        assert collect(engine.run(request)) == expected(request)
        tried = [count for count, _ in drafter.tried]
        usual = max(set(tried), key=tried.count) if len(tried) > 5 else 0
        assert usual == most, tried


def test_a_measurement_that_was_disturbed_is_outvoted_and_an_old_one_forgotten() -> None:
    costs = StepCosts()
    for seconds in (1.0, 9.0, 1.0, 1.1):
        costs.add(1, seconds)
    assert costs.measured(1) == 1.1 and costs.measured(2) is None
    assert costs.estimated(9) == pytest.approx(1.1 * (1 + 8 * StepCosts.HOPE))
    costs.add(9, 3.0)
    assert costs.estimated(9) == 3.0 and costs.estimated(12) > 3.0
    for _ in range(StepCosts.STALE):
        costs.add(9, 3.0)
    assert costs.measured(1) is None, "what one token costs is measured again"


def test_a_size_whose_first_step_was_disturbed_is_tried_again() -> None:
    costs = StepCosts()
    for tokens, seconds in ((1, 1.0), (1, 1.0), (1, 1.0), (8, 2.4), (4, 9.0)):
        costs.add(tokens, seconds)
    assert costs.estimated(4) == pytest.approx(1.6), "between one token and eight"
    for _ in range(2):
        costs.add(4, 9.0)
    assert costs.estimated(4) == 9.0, "three times is what it takes"


def test_lookup_learns_also_while_nothing_is_tried_and_comes_back() -> None:
    """A text without repetition, then one that repeats itself: drafts stop, and begin again without having been tried."""
    rng = random.Random(3)
    tokens = [rng.randrange(6) for _ in range(300)]
    sequence = Sequence(
        purpose=None, tokens=tokens[:50], num_prompt=50, max_length=999, stop_ids=frozenset(), sampling=SamplingParams(), seed=0
    )  # type: ignore[arg-type]
    drafter = LookupDrafter()
    low = 1.0
    for token in tokens[50:]:
        low = min([low, *drafter.chances(sequence)[:1]])
        sequence.tokens.append(token)
    assert low < 0.25
    for token in tokens[100:140] * 3:
        high = next(iter(drafter.chances(sequence)), 0.0)
        sequence.tokens.append(token)
    assert high > 0.9 and len(drafter.chances(sequence)) == SIZES[-1]
