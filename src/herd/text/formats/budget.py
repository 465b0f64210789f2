"""What a chat template may cost: steps and characters, counted, so that the limit is the same on every machine.

A template comes with a model file and is somebody's program. Everything in it that can repeat, grow or be large spends here:
turns of loops by the size of their body, calls, filters, comparisons by the size of what they look at, and texts by their length.
"""

from __future__ import annotations

from collections.abc import ItemsView, KeysView, ValuesView
from contextvars import ContextVar
from typing import Any, final

from jinja2.utils import Namespace

STEPS = 30_000
STEPS_PER_MESSAGE = 2_000
CHARACTERS = 2_000_000
CHARACTERS_PER_CHARACTER = 64
"""How often a template may copy the conversation's text."""
TEXT_OVERHEAD = 64
"""Bytes of a text besides its characters."""
INTEGER_BITS_MAX = 512


class OverBudget(Exception):
    """The template wants more than it may have. Not a `FileProblem` itself: jinja2 must not mistake it for its own errors."""


@final
class Budget:
    """One rendering's account."""

    __slots__ = ("characters", "steps")

    def __init__(self, messages: int, characters: int) -> None:
        self.steps = STEPS + STEPS_PER_MESSAGE * messages + characters
        self.characters = CHARACTERS + CHARACTERS_PER_CHARACTER * characters

    def spend(self, steps: int) -> None:
        """Before work of so many steps."""
        self.steps -= steps
        if self.steps < 0:
            raise OverBudget("more steps than a conversation of this size needs")

    def allocate(self, characters: int) -> None:
        """Before, or right after, a text of so many characters is made."""
        self.characters -= characters + TEXT_OVERHEAD
        if self.characters < 0:
            raise OverBudget("more text than a conversation of this size needs")


_CURRENT: ContextVar[Budget] = ContextVar("herd_template_budget")


def current() -> Budget:
    """The account of the rendering in progress; outside of one (while a template is compiled) a small one of its own."""
    return _CURRENT.get(None) or Budget(0, 0)


def begin(budget: Budget) -> None:
    """Everything that follows in this context spends from `budget`."""
    _CURRENT.set(budget)


def weigh(value: Any, budget: Budget) -> None:
    """Spends a step for every value inside `value`, however often it is shared: what printing or comparing it would cost."""
    pending = [value]
    while pending:
        item = pending.pop()
        budget.spend(1)
        if isinstance(item, str):
            budget.spend(len(item) >> 8)
        elif isinstance(item, dict):
            pending.extend(item.keys())
            pending.extend(item.values())
            budget.spend(len(item))
        elif isinstance(item, list | tuple | set | KeysView | ValuesView | ItemsView):
            budget.spend(len(item))
            pending.extend(item)
        elif isinstance(item, Namespace):
            pending.append(object.__getattribute__(item, "__dict__"))
        elif isinstance(item, range):
            budget.spend(len(item))


def weigh_shallow(value: Any, budget: Budget) -> None:
    """Spends for the length of `value`: what copying or walking over it would cost."""
    if isinstance(value, str):
        budget.spend(len(value) >> 8)
    elif isinstance(value, list | tuple | dict | set | range):
        budget.spend(len(value))


def account(value: Any, budget: Budget) -> None:
    """Allocates for a value that was just made."""
    if isinstance(value, str):
        budget.allocate(len(value))
    elif isinstance(value, list | tuple | dict | set):
        budget.allocate(16 * len(value))
