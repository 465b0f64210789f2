"""The learning rate of each step, against closed forms."""

from __future__ import annotations

import math

import pytest

from herd.errors import UsageError
from herd.training.schedules import NAMES, SHAPES, Schedule, lr_at


def rates(**facts: object) -> list[float]:
    schedule = Schedule(**facts)  # type: ignore[arg-type]
    return [lr_at(schedule, step) for step in range(schedule.steps + 3)]


@pytest.mark.parametrize("name", NAMES)
def test_the_warm_up_goes_to_the_peak_in_equal_parts_and_wastes_no_step_at_zero(name: str) -> None:
    found = rates(name=name, lr=0.6, steps=20, warmup=5)
    assert found[:6] == pytest.approx([0.1, 0.2, 0.3, 0.4, 0.5, 0.6], rel=1e-15)


def test_a_constant_rate_stays() -> None:
    assert rates(name="constant", lr=0.3, steps=4, final=0.1) == [0.3] * 7


def test_a_linear_rate_is_a_straight_line_to_the_final_rate() -> None:
    assert rates(name="linear", lr=1.0, steps=4, final=0.2) == pytest.approx([1.0, 0.8, 0.6, 0.4, 0.2, 0.2, 0.2], rel=1e-15)


def test_a_cosine_rate_is_half_a_cosine_from_the_peak_to_the_final_rate() -> None:
    steps, warmup, lr, final = 30, 6, 3e-4, 0.1
    expected = [lr * (final + (1 - final) * 0.5 * (1 + math.cos(math.pi * (step - warmup) / (steps - warmup)))) for step in range(6, 30)]
    assert rates(name="cosine", lr=lr, steps=steps, warmup=warmup, final=final)[6:] == pytest.approx(
        [*expected, *[lr * final] * 3], rel=1e-14
    )


@pytest.mark.parametrize("shape", SHAPES)
def test_wsd_keeps_the_peak_and_falls_over_the_last_steps(shape: str) -> None:
    left = {
        "linear": lambda share: 1 - share,
        "sqrt": lambda share: 1 - share**0.5,
        "cosine": lambda share: math.cos(math.pi * share / 2) ** 2,
    }
    found = rates(name="wsd", lr=2.0, steps=12, warmup=2, decay=4, final=0.5, shape=shape)
    assert found[2:9] == [2.0] * 7
    assert found[8:12] == pytest.approx([2.0 * (0.5 + 0.5 * left[shape](at / 4)) for at in range(4)], rel=1e-14)
    assert found[12:] == [1.0] * 3


def test_a_fifth_of_the_steps_falls_when_nothing_else_is_said() -> None:
    found = rates(name="wsd", lr=1.0, steps=11)
    assert found.count(1.0) == 9 and found[8] == 1.0 > found[9]


def test_without_decay_steps_wsd_stays_at_the_peak() -> None:
    assert rates(name="wsd", lr=1.0, steps=3, decay=0)[:3] == [1.0] * 3


@pytest.mark.parametrize(
    ("facts", "said"),
    [
        ({"name": "cosin"}, "did you mean 'cosine'"),
        ({"name": "wsd", "shape": "sqrtt"}, "did you mean 'sqrt'"),
        ({"lr": float("nan")}, "learning rate is nan"),
        ({"lr": -1.0}, "learning rate is -1.0"),
        ({"steps": 0}, "at least 1"),
        ({"steps": 5, "warmup": 6}, "warm-up has 6 steps"),
        ({"final": 1.5}, "share from 0 to 1"),
        ({"name": "wsd", "steps": 10, "warmup": 8, "decay": 3}, "0 to 2"),
        ({"name": "cosine", "decay": 3}, "belongs to the schedule"),
    ],
)
def test_a_schedule_that_cannot_be_is_refused_with_what_is_wrong(facts: dict[str, object], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        Schedule(**facts)  # type: ignore[arg-type]
