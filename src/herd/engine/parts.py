"""What a step consists of: the limits of steps and cache, one sequence's part of a step, and how prompts share what room there is."""

from __future__ import annotations

from collections.abc import Sequence as List
from typing import TYPE_CHECKING

from herd.engine.request import Purpose, Sequence
from herd.errors import HerdError
from herd.models.cache_groups import CacheGroups
from herd.records import dataclass

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """How large a step and the cache may be. `groups`: of layers, each with pages of its own."""

    num_pages: int
    groups: CacheGroups
    max_batch: int
    max_step_tokens: int
    max_step_outputs: int

    @property
    def page_tokens(self) -> int:
        return self.groups.page_tokens

    @property
    def cache_tokens(self) -> int:
        """The longest sequence that the pages can hold."""
        return self.groups.longest(self.num_pages, self.max_step_tokens)

    @property
    def whole_tokens(self) -> int:
        """The longest text that the pages can hold if nothing of it is given back."""
        return self.num_pages // self.groups.count * self.page_tokens

    def pages_for(self, num_tokens: int) -> int:
        """The most that a sequence of so many tokens has at a time."""
        return self.groups.pages_for(num_tokens, self.max_step_tokens)

    def whole_pages_for(self, num_tokens: int) -> int:
        """Those of a text of so many tokens of which nothing is given back."""
        return self.groups.blocks_for(num_tokens) * self.groups.count


@dataclass(slots=True, eq=False)  # made for every token: what is frozen takes three times as long to make
class Part:
    """One sequence's share of a step: `count` tokens from position `start`, and logits of the last `num_outputs`. There is room for
    `room` tokens more, and `drafted`, at most so many, are tried: not known to be the sequence's, each with logits. Of a sequence that is
    held to a language, `masks` say what may be drawn after the part and after each drafted token, or `problem` why nothing may."""

    sequence: Sequence
    start: int
    count: int
    num_outputs: int
    room: int = 0
    drafted: tuple[int, ...] = ()
    masks: tuple[NDArray[np.uint32] | None, ...] = ()
    problem: HerdError | None = None

    @property
    def end(self) -> int:
        return self.start + self.count

    @property
    def draws(self) -> bool:
        """Whether a token is chosen after this part."""
        return self.num_outputs > 0 and self.sequence.purpose is Purpose.ANSWER

    @property
    def is_decoding(self) -> bool:
        """Whether it is the one token that the sequence has to compute before it can choose the next."""
        return self.draws and self.count == 1


def shared_out(prompts: List[Sequence], tokens: int) -> list[tuple[Sequence, int]]:
    """How many tokens each of these may have in a step with room for so many: those of low priority what the others leave; callers
    equal parts, and what one does not need goes to the others; of one caller's the oldest first. Nobody who has none is listed. Where
    there are fewer tokens than callers, those with the oldest prompts have one each."""
    found: list[tuple[Sequence, int]] = []
    for is_low in (False, True):
        of_caller: dict[str, list[Sequence]] = {}
        for sequence in prompts:
            if sequence.is_low == is_low:
                of_caller.setdefault(sequence.caller, []).append(sequence)
        groups = [(sum(s.num_pending for s in group), group) for group in of_caller.values()][: max(tokens, 0)]
        for index, (wanted, group) in enumerate(sorted(groups, key=lambda each: each[0])):
            part = min(wanted, tokens // (len(groups) - index))
            tokens -= part
            for sequence in group:
                most = min(part, sequence.num_pending)
                if most:
                    found.append((sequence, most))
                    part -= most
    return found


def is_decoding(sequence: Sequence) -> bool:
    return len(sequence.tokens) - sequence.computed == 1 and sequence.purpose is Purpose.ANSWER


def part_of(sequence: Sequence, tokens: int, outputs: int) -> Part:
    count = min(sequence.num_pending, tokens)
    if sequence.purpose is Purpose.ANSWER:
        return Part(sequence, sequence.computed, count, int(count == sequence.num_pending))
    known = max(0, min(sequence.scored - sequence.computed, count))
    count = min(count, known + outputs)
    return Part(sequence, sequence.computed, count, count - known)
