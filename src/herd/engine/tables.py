"""Which pages a sequence has: block by block one for each group of layers, as far as the group may still look.

    blocks of a sequence       0    1    2    3    4    5
    a group that sees all      7    3    9   12    4    8      every block, until the sequence ends
    a group with a window      -    -    -    2   11    5      what the next token sees and what is computed next; the rest returns

A group with a window has as many pages ahead as it will ever have at a time, so a sequence that was admitted goes on in the pages that it
gives back itself. What is given back is found by others as long as nobody needs its page.

A beginning can be reused if all groups without a window have it whole, and those with one have what the token after it sees.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from collections.abc import Sequence as List
from typing import final

from herd.backends.base import NO_PAGE
from herd.engine.pages import Content, Pages
from herd.engine.parts import Limits
from herd.engine.request import Sequence
from herd.records import dataclass


@dataclass(frozen=True, slots=True)
class Beginning:
    """What there is of a beginning of `num_tokens`: its full pages, `NO_PAGE` where it has none here; those of them that are `stored` on
    the disk, by their places among the pages; and partly filled ones, one for each group, or none."""

    pages: List[int]
    num_tokens: int
    stored: List[int] = ()
    tail: List[int] = ()

    @property
    def reused(self) -> list[int]:
        return [page for page in (*self.pages, *self.tail) if page != NO_PAGE]


@final
class Tables:
    """Takes pages out of the books for sequences and gives them back. `Sequence.pages` has those of the first block in the order of their
    groups, then those of the next block."""

    def __init__(self, limits: Limits, books: Pages) -> None:
        self._groups, self._count = limits.groups, limits.groups.count
        self._books = books
        self._most = [limits.groups.most_blocks(group, limits.max_step_tokens) for group in range(self._count)]
        self._windowed = [group for group, most in enumerate(self._most) if most is not None]

    @property
    def num_groups(self) -> int:
        return self._count

    @property
    def has_windows(self) -> bool:
        return bool(self._windowed)

    def key(self, key: bytes, group: int) -> bytes:
        """The key of a group's page, of the one that the block has."""
        return key if self._count == 1 else key + group.to_bytes(2, "little")

    def needed(self, num_tokens: int, computed: int) -> int:
        """How many pages a sequence of `num_tokens` has that goes on after the first `computed`."""
        blocks = self._groups.blocks_for(num_tokens)
        return sum(len(self._live(group, computed, blocks)) for group in range(self._count))

    def places(self, num_tokens: int) -> list[int]:
        """Where, among the pages of a text of which so many tokens were computed, those are that the next token needs."""
        blocks, count = self._groups.blocks_for(num_tokens), self._count
        found = [block * count + group for group in range(count) for block in self._live(group, num_tokens, blocks)]
        return sorted(found)

    def extend(self, sequence: Sequence, num_tokens: int) -> bool:
        """Takes what pages the sequence lacks for `num_tokens`. False if there is one too few; it then has some of them."""
        pages, blocks, take = sequence.pages, self._groups.blocks_for(num_tokens), self._books.take
        pages += [NO_PAGE] * (blocks * self._count - len(pages))
        for group in range(self._count):
            for block in self._live(group, sequence.computed, blocks):
                at = block * self._count + group
                if pages[at] == NO_PAGE:
                    page = take()
                    if page is None:
                        return False
                    pages[at] = page
        return True

    def held(self, sequence: Sequence) -> int:
        """For how many tokens the sequence has all pages, after some could not be had."""
        pages, count = sequence.pages, self._count
        blocks = len(pages) // count
        while blocks and NO_PAGE in pages[(blocks - 1) * count : blocks * count]:
            blocks -= 1
        return blocks * self._groups.page_tokens

    def shrink(self, sequence: Sequence, num_tokens: int) -> None:
        """Gives back what lies behind the first `num_tokens`."""
        pages, keep = sequence.pages, self._groups.blocks_for(num_tokens) * self._count
        while len(pages) > keep:
            if (page := pages.pop()) != NO_PAGE:
                self._books.release(page)

    def name(self, sequence: Sequence, block: int, key: bytes) -> None:
        """Says what the pages of a full block hold."""
        first = block * self._count
        for group, page in enumerate(sequence.pages[first : first + self._count]):
            if page != NO_PAGE:
                self._books.name(page, self.key(key, group))

    def give_back_past(self, sequence: Sequence, before: int) -> None:
        """Gives back what no token from the first that is not computed on can see, since it was the one at `before`."""
        pages, count = sequence.pages, self._count
        for group in self._windowed:
            first, end = (self._groups.first_block(group, position) for position in (before, sequence.computed))
            for block in reversed(range(first, end)):
                at = block * count + group
                if pages[at] != NO_PAGE:
                    self._books.release(pages[at])
                    pages[at] = NO_PAGE

    def find(self, keys: List[bytes], stored: Collection[int] = ()) -> Beginning:
        """The longest beginning of full blocks with these keys that is in the cache or, by their places, `stored`."""

        def is_there(block: int, group: int) -> bool:
            return self._page(keys, block, group) is not None or block * self._count + group in stored

        most, places = self._usable(len(keys), is_there)
        pages, read = [NO_PAGE] * (most * self._count), []
        for at in places:
            block, group = divmod(at, self._count)
            page = self._page(keys, block, group)
            if page is None:
                read.append(at)
            else:
                pages[at] = page
        return Beginning(pages, most * self._groups.page_tokens, read)

    def missing(self, keys: List[bytes], has: Callable[[bytes], bool]) -> dict[int, bytes]:
        """The keys of pages, by their places, that are not in the cache but elsewhere, and make the longest beginning."""

        def is_there(block: int, group: int) -> bool:
            return self._page(keys, block, group) is not None or has(self.key(keys[block], group))

        _, places = self._usable(len(keys), is_there)
        found = {at: divmod(at, self._count) for at in places}
        return {at: self.key(keys[block], group) for at, (block, group) in found.items() if self._page(keys, block, group) is None}

    def tail(self, before: bytes, contents: List[Content]) -> tuple[list[int], int]:
        """Partly filled pages after the block of key `before`, one for each group, and how many of `contents` they begin with."""
        pages, least = [], len(contents)
        for group in range(self._count):
            found = self._books.tail(self.key(before, group), contents)
            if found is None:
                return [], 0
            pages.append(found[0])
            least = min(least, found[1])
        return pages, least

    def leave_tail(self, pages: List[int], before: bytes, contents: List[Content]) -> None:
        """Gives back the pages of a partly filled block; the next text that begins like this finds them."""
        for group, page in enumerate(pages):
            self._books.leave_tail(page, self.key(before, group), contents)

    def check(self, sequence: Sequence) -> None:
        """Fails (AssertionError) unless the sequence has what it needs, and nothing that it cannot need."""
        blocks = self._groups.blocks_for(sequence.placed)
        assert len(sequence.pages) == blocks * self._count
        for group in range(self._count):
            live = self._live(group, sequence.computed, blocks)
            for block, page in enumerate(sequence.pages[group :: self._count]):
                if block < live.start or block >= live.stop:
                    assert page == NO_PAGE, "what cannot be seen is given back"
                elif block < self._groups.blocks_for(sequence.computed):
                    assert page != NO_PAGE, "what will be seen is there"

    def _live(self, group: int, computed: int, blocks: int) -> range:
        """The blocks, of so many, of which a group has pages."""
        first, most = self._groups.first_block(group, computed), self._most[group]
        return range(first, blocks if most is None else max(first, min(blocks, first + most)))

    def _usable(self, blocks: int, is_there: Callable[[int, int], bool]) -> tuple[int, list[int]]:
        """With how many of so many blocks a sequence can begin, and the places of the pages that it then needs."""
        runs, best = [0] * self._count, 0  # of each group, how many blocks up to this one are there
        size = self._groups.page_tokens
        for end in range(1, blocks + 1):
            for group in range(self._count):
                runs[group] = runs[group] + 1 if is_there(end - 1, group) else 0
                if self._most[group] is None and runs[group] < end:
                    return best, self.places(best * size)
            if all(runs[group] >= end - self._groups.first_block(group, end * size) for group in self._windowed):
                best = end
        return best, self.places(best * size)

    def _page(self, keys: List[bytes], block: int, group: int) -> int | None:
        return self._books.page_of(self.key(keys[block], group))
