"""The chain step by step on rows small enough to work out by hand, and its random numbers against published vectors."""

from __future__ import annotations

import math

import numpy as np
import pytest

from herd.errors import FileProblem, UsageError
from herd.sampling.chain import Choice, Draw, adjust, candidates, choose
from herd.sampling.history import History
from herd.sampling.params import SamplingParams
from herd.sampling.random import philox, uniform

GREEDY = SamplingParams(temperature=0.0)


def row(*values: float) -> np.ndarray:
    return np.array(values, np.float32)


def draw(position: int = 5, seed: int = 1, **params: object) -> Draw:
    return Draw(params=SamplingParams(**params), seed=seed, position=position)  # type: ignore[arg-type]


def kept(logits: np.ndarray, **params: object) -> list[int]:
    ids, _ = candidates(logits.astype(np.float64), SamplingParams(**params))  # type: ignore[arg-type]
    return [int(i) for i in ids]


@pytest.mark.parametrize(
    ("counter", "key", "words"),
    [
        ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
        ((0xFFFFFFFF,) * 4, (0xFFFFFFFF,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
        (
            (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
            (0xA4093822, 0x299F31D0),
            (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
        ),
    ],
)
def test_philox_gives_the_published_words(counter: tuple[int, ...], key: tuple[int, int], words: tuple[int, ...]) -> None:
    """Known answers for philox4x32-10 from Random123 (file tests/kat_vectors), the library of the paper's authors."""
    assert philox(counter, key) == words  # type: ignore[arg-type]


def test_uniform_numbers_have_53_bits_and_depend_on_each_part_of_the_key() -> None:
    values = [uniform(seed, choice, position) for seed in (0, 1, 2**62) for choice in (0, 1) for position in range(200)]
    assert len(set(values)) == len(values)
    assert all(0.0 <= value < 1.0 and (value * 2**53).is_integer() for value in values)
    assert abs(np.mean(values) - 0.5) < 0.03 and abs(np.var(values) - 1 / 12) < 0.01


def test_a_uniform_number_is_the_first_53_bits_of_its_words() -> None:
    first, second, _, _ = philox((9, 3, 0, 0), (0xDEADBEEF, 0x1234))
    assert uniform(0x1234DEADBEEF, 3, 9) == ((first >> 5) * 2**26 + (second >> 6)) / 2**53


def test_greedy_takes_the_largest_and_the_lowest_id_of_equals() -> None:
    assert choose(row(1, 3, 3, 2), draw(temperature=0.0)).token == 1


def test_the_logprob_is_the_models_own_before_anything_is_changed() -> None:
    logits = row(0.5, 2.0, -1.0, 1.0)
    own = logits.astype(np.float64) - math.log(sum(math.exp(x) for x in logits.tolist()))
    for params in ({"temperature": 0.0}, {"temperature": 3.0}, {"logit_bias": {2: 100.0}}, {"top_k": 1}):
        choice = choose(logits, draw(**params, logprobs=3))
        assert choice.logprob == pytest.approx(own[choice.token], abs=1e-12)
        assert [token for token, _ in choice.top] == [1, 3, 0]
        assert [logprob for _, logprob in choice.top] == pytest.approx(own[[1, 3, 0]], abs=1e-12)


def test_equal_alternatives_stand_by_rising_id() -> None:
    choice = choose(row(1, 2, 2, 1, 2), draw(temperature=0.0, logprobs=4))
    assert [token for token, _ in choice.top] == [1, 2, 4, 0]


def test_more_alternatives_than_the_vocabulary_has_are_all_of_it() -> None:
    assert len(choose(row(1, 2), draw(logprobs=20)).top) == 2


def test_bias_is_added_first() -> None:
    assert choose(row(1, 2, 3), draw(temperature=0.0, logit_bias={0: 2.5})).token == 0
    assert choose(row(1, 2, 3), draw(temperature=0.0, logit_bias={2: -100.0})).token == 1


def test_penalties_change_seen_tokens_only() -> None:
    history = History([0, 1])
    for token in (1, 1, 2):
        history.add(token)
    assert history.ids.tolist() == [0, 1, 2] and history.counts.tolist() == [0, 2, 1]
    params = SamplingParams(repetition_penalty=2.0, presence_penalty=0.5, frequency_penalty=0.25)
    at = Draw(params=params, seed=0, position=5, seen_ids=history.ids, answer_counts=history.counts)
    assert adjust(np.array([4.0, -1.0, 3.0, 7.0]), at).tolist() == [2.0, -2.0 - 0.5 - 0.5, 1.5 - 0.5 - 0.25, 7.0]


def test_bias_comes_before_the_repetition_penalty() -> None:
    at = Draw(
        params=SamplingParams(repetition_penalty=2.0, logit_bias={0: 4.0}),
        seed=0,
        position=1,
        seen_ids=np.array([0], np.int32),
        answer_counts=np.array([0], np.int32),
    )
    assert adjust(np.array([-2.0, 0.0]), at).tolist() == [1.0, 0.0]


def test_a_history_grows_beyond_its_first_room() -> None:
    history = History(range(300))
    for token in range(250, 900):
        history.add(token)
    assert history.ids.tolist() == list(range(900))
    assert history.counts.tolist() == [0] * 250 + [1] * 650


def test_top_k_keeps_exactly_k_also_among_equals() -> None:
    assert kept(row(1, 5, 5, 5, 2), top_k=2) == [1, 2]


def test_top_p_includes_the_token_that_crosses_and_always_the_first() -> None:
    logits = np.log(np.array([0.1, 0.4, 0.2, 0.3], np.float32))
    assert kept(logits, top_p=0.3) == [1]
    assert kept(logits, top_p=0.5) == [1, 3]
    assert kept(logits, top_p=0.75) == [1, 3, 2]
    assert kept(logits, top_p=0.0) == [1]
    assert kept(logits, top_p=1.0) == [1, 3, 2, 0]


def test_a_token_stays_when_those_before_it_reach_p_exactly() -> None:
    assert kept(row(0, 0, 0, 0), top_p=0.5) == [0, 1, 2]


def test_min_p_is_relative_to_the_most_likely() -> None:
    logits = np.log(np.array([0.5, 0.26, 0.2, 0.04], np.float32))
    assert kept(logits, min_p=0.5) == [0, 1]
    assert kept(logits, min_p=1.0) == [0]
    assert kept(logits, min_p=0.0) == [0, 1, 2, 3]


def test_each_filter_works_on_what_the_one_before_left() -> None:
    logits = np.log(np.array([0.4, 0.3, 0.2, 0.1], np.float32))
    assert kept(logits, top_k=2, top_p=0.5) == [0], "0.4 of the 0.7 that top_k left is more than half"
    assert kept(logits, top_k=3, top_p=0.5) == [0, 1]


def test_draws_follow_the_probabilities() -> None:
    probabilities = np.array([0.5, 0.3, 0.15, 0.05])
    logits = np.log(probabilities).astype(np.float32)
    counts = np.bincount([choose(logits, draw(position)).token for position in range(4000)], minlength=4)
    assert np.abs(counts / 4000 - probabilities).max() < 0.03


def test_a_draw_is_the_inverse_of_the_cumulated_probabilities() -> None:
    probabilities = np.array([0.1, 0.6, 0.3])
    logits = np.log(probabilities).astype(np.float32)
    for position in range(300):
        u = uniform(7, 0, position)
        expected = 1 if u < 0.6 else 2 if u < 0.9 else 0
        assert choose(logits, draw(position, seed=7)).token == expected


def test_extreme_temperatures_and_logits_are_fine() -> None:
    assert choose(row(1, 2, 1.999), draw(temperature=1e-300)).token == 1
    assert choose(row(3e38, -3e38, 0), draw()).token == 0
    assert choose(row(-np.inf, 0, -np.inf), draw(temperature=100.0, logprobs=3)) == Choice(1, 0.0, ((1, 0.0), (0, -np.inf), (2, -np.inf)))


@pytest.mark.parametrize(
    ("logits", "found"),
    [((1, np.nan), "NaN"), ((np.inf, 1), r"\+inf"), ((-np.inf, -np.inf), "nothing but -inf"), ((np.inf, np.nan), "NaN")],
)
def test_a_row_without_a_distribution_is_a_file_problem(logits: tuple[float, ...], found: str) -> None:
    with pytest.raises(FileProblem, match=f"token 5 contain {found}"):
        choose(row(*logits), draw())


def test_a_bias_outside_the_vocabulary_is_refused() -> None:
    with pytest.raises(UsageError, match="token 3; the vocabulary has 3"):
        choose(row(1, 2, 3), draw(logit_bias={3: 1.0}))
