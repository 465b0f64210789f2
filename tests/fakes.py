"""Stand-ins for models and tokenizers: small, deterministic, and strict about how they are used.

`FakeBackend` keeps the token ids themselves as the contents of its pages and makes logits from *all* tokens that a sequence
finds in its pages, as far back as the group of layers sees that looks back furthest. A wrong page number, a page written by
two, or a token that was never computed changes every later choice, or fails at once.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from hashlib import blake2b
from typing import Any

import numpy as np

from herd.backends.base import NO_PAGE, PAGE_TOKENS, MemoryUse, Plan, Span, StepResult
from herd.errors import CapacityError, FileProblem, UsageError
from herd.models.cache_groups import CacheGroups
from herd.sampling.chain import choose

NOTHING = -1
ADAPTED = 1000
ONE_GROUP = CacheGroups(PAGE_TOKENS)


class FakeBackend:
    """A backend without a model. `spoiled` says for which sequences (all their tokens) the logits are not numbers."""

    name = "fake"

    def __init__(
        self,
        vocab_size: int = 50,
        *,
        spoiled: Callable[[list[int]], bool] = lambda tokens: False,
        max_pages: int = 1_000_000,
        max_step_tokens: int = 512,
        max_step_outputs: int = 64,
        groups: CacheGroups = ONE_GROUP,
    ) -> None:
        self.groups = groups
        self.vocab_size = self.num_embeddings = vocab_size
        self.num_pages = 0
        self.spoiled = spoiled
        self.max_pages = max_pages
        self.max_step_tokens = max_step_tokens
        self.max_step_outputs = max_step_outputs
        self.plans: list[Plan] = []
        self.before_step: Callable[[Plan], None] = lambda plan: None
        self.is_closed = False
        self.adapters: dict[str, int] = {}
        self._contents = np.zeros((0, PAGE_TOKENS), np.int64)
        self._divided = ONE_GROUP

    @property
    def fingerprint(self) -> str:
        return "fake-1"

    @property
    def _count(self) -> int:
        return self._divided.count

    def allocate(self, num_pages: int, *, by_group: bool = False) -> None:
        self._divided = self.groups if by_group else ONE_GROUP
        if num_pages > self.max_pages:
            raise CapacityError(f"{num_pages} pages were asked for; there is memory for {self.max_pages}.")
        self.num_pages = num_pages
        self._contents = np.full((num_pages, PAGE_TOKENS), NOTHING, np.int64)

    def page_bytes(self) -> int:
        return PAGE_TOKENS * 8 * self.groups.count

    def read_page(self, page: int) -> bytes:
        return self._contents[page].tobytes()

    def write_page(self, page: int, contents: memoryview) -> None:
        self._contents[page] = np.frombuffer(contents, np.int64)

    def step(self, plan: Plan) -> StepResult:
        self.plans.append(plan)
        self.before_step(plan)
        assert not self.is_closed
        assert 0 < plan.num_tokens <= self.max_step_tokens and plan.num_outputs <= self.max_step_outputs
        assert self._written(plan) == len(set(self._places(plan))), "no place is written twice in one step"
        for span in plan.spans:
            if not all(0 <= token < self.vocab_size for token in span.tokens):
                raise UsageError("A token is outside the vocabulary.")
        for span in plan.spans:
            for index, token in enumerate(span.tokens):
                for group in range(self._count):
                    self._contents[self._place(span, span.start + index, group)] = token + self._offset(span)
        rows, choices = [], []
        for span in plan.spans:
            outputs = [self._logits(span, end) for end in range(self._end(span) - span.num_outputs + 1, self._end(span) + 1)]
            rows.extend(outputs)
            choices.append(tuple(map(choose, outputs[len(outputs) - len(span.draws) :], span.draws)))
        return StepResult(tuple(choices), np.stack(rows) if plan.want_logits and rows else None)

    def add_adapter(self, name: str, updates: Mapping[str, Any]) -> None:
        """An adapter makes other tokens of all that a span computes."""
        assert name not in self.adapters
        self.adapters[name] = fake_adapter(name)

    def remove_adapter(self, name: str) -> None:
        del self.adapters[name]

    def _offset(self, span: Span) -> int:
        return 0 if span.adapter is None else self.adapters[span.adapter]

    def update(self, weights: Mapping[str, Any]) -> None:
        self._contents[:] = NOTHING

    def memory(self) -> MemoryUse:
        return MemoryUse(weights=0, cache=self.num_pages * self.page_bytes() // self._count, buffers=0)

    def close(self) -> None:
        self.is_closed = True

    def _logits(self, span: Span, end: int) -> np.ndarray:
        found = [self._seen(span, end, group) for group in range(self._count)]
        assert not any(NOTHING in seen for seen in found), "a sequence reads a token that was never computed"
        tokens = max(found, key=len)
        assert all(seen == tokens[-len(seen) :] for seen in found), "every group of layers has what it sees"
        assert len({token // ADAPTED for token in tokens}) == 1, "a sequence reads what another adapter computed"
        if self.spoiled(tokens):
            raise FileProblem(f"The logits for token {end} contain NaN.")
        return fake_logits(tokens, self.vocab_size)

    def _seen(self, span: Span, end: int, group: int) -> list[int]:
        """What the token before `end` sees of its sequence."""
        window = self._divided.windows[group]
        first = 0 if window is None else window.first(end - 1)
        return [int(self._contents[self._place(span, position, group)]) for position in range(first, end)]

    def _place(self, span: Span, position: int, group: int = 0) -> tuple[int, int]:
        page = span.pages[position // PAGE_TOKENS * self._count + group]
        assert page != NO_PAGE, "a sequence has a page for what it sees and writes"
        return page, position % PAGE_TOKENS

    def _places(self, plan: Plan) -> list[tuple[int, int]]:
        groups = range(self._count)
        return [self._place(s, at, group) for s in plan.spans for at in range(s.start, self._end(s)) for group in groups]

    def _written(self, plan: Plan) -> int:
        return plan.num_tokens * self._count

    @staticmethod
    def _end(span: Span) -> int:
        return span.start + len(span.tokens)


def fake_adapter(name: str) -> int:
    """What the adapter of this name adds to every token."""
    return ADAPTED * (1 + name.encode()[0])


def fake_logits(tokens: Sequence[int], vocab_size: int) -> np.ndarray:
    """The logits that follow `tokens`: float32 [vocab_size], a function of every one of them."""
    digest = blake2b(np.asarray(tokens, np.int64).tobytes(), digest_size=8 * 4).digest()
    words = np.frombuffer(digest, np.uint64)
    index = np.arange(vocab_size, dtype=np.uint64)
    with np.errstate(over="ignore"):
        mixed = (index + words[0]) * (words[1] | np.uint64(1))
        mixed = (mixed ^ (mixed >> np.uint64(31))) * (words[2] | np.uint64(1))
        mixed ^= mixed >> np.uint64(29)
    return ((mixed % np.uint64(1_000_003)).astype(np.float64) / 1_000_003 * 12 - 6).astype(np.float32)


class FakeTokenizer:
    """Token id = byte; ids from 256 are control tokens without bytes. Several bytes can make one character."""

    description = "bytes"
    bos_id = 256

    def __init__(self, eos_id: int = 257) -> None:
        self.special_ids = {"<bos>": 256, "<eos>": eos_id, "<turn>": 258}
        self.eos_ids = frozenset({eos_id})
        self.stop_ids = frozenset({eos_id})
        self.vocab_size = 259

    def encode(self, text: str, *, bos: bool | None = None, specials: bool = False) -> list[int]:
        return [self.bos_id] * (bos is not False) + list(text.encode())

    def decode(self, ids: Sequence[int], *, skip_specials: bool = True) -> str:
        return b"".join(map(self.token_bytes, ids)).decode(errors="replace")

    def token_bytes(self, token: int) -> bytes:
        return bytes([token]) if token < 256 else b""

    def stream(self) -> FakeStream:
        return FakeStream()


class FakeStream:
    """Whole characters only."""

    def __init__(self) -> None:
        self._held = b""

    def push(self, token: int) -> str:
        self._held += bytes([token]) if token < 256 else b""
        for size in range(len(self._held), -1, -1):
            try:
                text = self._held[:size].decode()
            except UnicodeDecodeError:
                continue
            if len(self._held) - size < 4:
                self._held = self._held[size:]
                return text
        return self.finish()

    def finish(self) -> str:
        held, self._held = self._held, b""
        return held.decode(errors="replace")


class FakeFormat:
    """`<turn>` before each message."""

    name = "turns"
    stop_ids = frozenset({258})
    mark_ids: frozenset[int] = frozenset()

    def render(self, messages: Sequence[Any], **choices: Any) -> list[int]:
        tokenizer = FakeTokenizer()
        ids = [tokenizer.bos_id]
        for message in messages:
            ids += [258, *tokenizer.encode(f"{message.role.value}: {message.content}", bos=False)]
        return [*ids, 258]

    def images(self, messages: Sequence[Any]) -> list[Any]:
        return [image for message in messages for image in message.images]

    def call_heads(self, tools: Sequence[Any]) -> dict[str, Any]:
        return {}

    def call_grammar(self, tools: Sequence[Any], *, parallel: bool = True) -> str:
        raise UsageError("no calls")

    def parser(self, tools: Sequence[Any], *, heads: Any = None) -> Any:
        from herd.text.formats.parsing import Marks, StreamParser

        return StreamParser(Marks(), frozenset(tool.name for tool in tools))
