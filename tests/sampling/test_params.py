"""Impossible parameters are refused by name."""

from __future__ import annotations

import math

import pytest

from herd.errors import UsageError
from herd.sampling.params import SamplingParams

NUMBERS = ("temperature", "top_p", "min_p", "repetition_penalty", "presence_penalty", "frequency_penalty")
WHOLE = ("top_k", "logprobs", "seed")


@pytest.mark.parametrize("name", (*NUMBERS, *WHOLE))
@pytest.mark.parametrize(
    "value", ["1", True, [], math.nan, math.inf, -math.inf, 1e308, -1e308, 10**400, -(10**400), pytest.param(10**5000, id="huge")]
)
def test_what_is_no_number_in_range_is_refused_by_name(name: str, value: object) -> None:
    with pytest.raises(UsageError, match=name):
        SamplingParams(**{name: value})  # type: ignore[arg-type]


@pytest.mark.parametrize("name", WHOLE)
def test_counts_and_seeds_are_whole_numbers(name: str) -> None:
    with pytest.raises(UsageError, match=name):
        SamplingParams(**{name: 1.5})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "values",
    [
        {"temperature": -0.1},
        {"top_p": 1.01},
        {"min_p": -1},
        {"top_k": -1},
        {"logprobs": 21},
        {"seed": -1},
        {"seed": 2**63},
        {"repetition_penalty": 0},
    ],
)
def test_just_outside_is_refused(values: dict[str, float]) -> None:
    with pytest.raises(UsageError, match=next(iter(values))):
        SamplingParams(**values)  # type: ignore[arg-type]


@pytest.mark.parametrize("bias", [{-1: 0.0}, {1.5: 0.0}, {"1": 0.0}, {True: 0.0}, {1: "x"}, {1: math.nan}, {1: 100.5}, {2**40: 1.0}])
def test_wrong_biases_are_refused(bias: dict[int, float]) -> None:
    with pytest.raises(UsageError, match="logit_bias"):
        SamplingParams(logit_bias=bias)


def test_too_many_biases_are_refused_with_numbers() -> None:
    with pytest.raises(UsageError, match="301 entries; at most 300"):
        SamplingParams(logit_bias=dict.fromkeys(range(301), 1.0))


def test_the_edges_are_allowed() -> None:
    SamplingParams(temperature=0, top_p=0, min_p=1, top_k=0, logprobs=20, seed=2**63 - 1, repetition_penalty=0.01)


def test_names_are_those_of_the_fields() -> None:
    assert {"temperature", "seed", "logprobs"} <= set(SamplingParams.names())


def test_history_is_needed_for_penalties_only() -> None:
    assert not SamplingParams(temperature=2, logit_bias={1: 1}).uses_history
    for name in ("repetition_penalty", "presence_penalty", "frequency_penalty"):
        assert SamplingParams(**{name: 1.5}).uses_history  # type: ignore[arg-type]
