"""What is asked of the engine, and what becomes of it: a `Request` is data, a `Sequence` is its life.

A sequence's tokens are its prompt and, one by one, its answer. Four numbers say how far it is, and every other quantity
follows from them:

    0 ......... computed ......... placed ......... length        computed  tokens whose keys and values are in its pages
    |  in pages     |  have a place   |  have none     |          placed    tokens that its pages have room kept for
                                                                  length    tokens known so far (prompt and answer)

While a step is in progress that tries drafted tokens, `placed` counts those too; they are no tokens of the sequence.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import deque
from collections.abc import Collection
from collections.abc import Sequence as List
from dataclasses import field
from enum import Enum
from typing import TYPE_CHECKING

from herd.backends.base import Placed
from herd.engine.pages import Content
from herd.errors import HerdError
from herd.records import dataclass
from herd.sampling.params import SamplingParams
from herd.sampling.stop import StopReason

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from herd.sampling.draw import Draw
    from herd.sampling.history import History
    from herd.sampling.matching import Matcher


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """Token ids to be continued.

    max_tokens      None: until the context is full. More than the context has left is cut, with `StopReason.LENGTH`
    stop_ids        tokens that end the answer; None: the engine's own
    choice_index    which of several answers to the same prompt and seed this is
    salt            requests share cached pages only with requests of the same salt
    pictures        where in the prompt which picture is; pages are shared with requests that have the same ones up to their end
    matcher         says what may come next, for an answer that is held to a language; made for this request alone
    caller          on whose behalf: each name gets an equal share of a full engine
    is_low          runs in what requests without it leave
    adapter         the LoRA adapter that answers, by the name under which it was added; None: the model itself
    owner           whatever whoever asks wants to find at the sequence; the engine does not look at it
    deadline_s      seconds from the submission after which the request is given up, wherever it is; None: never
    """

    tokens: List[int]
    sampling: SamplingParams = field(default_factory=SamplingParams)
    max_tokens: int | None = None
    stop_ids: Collection[int] | None = None
    choice_index: int = 0
    salt: bytes = b""
    pictures: tuple[Placed, ...] = ()
    matcher: Matcher | None = None
    caller: str = ""
    is_low: bool = False
    deadline_s: float | None = None
    owner: object | None = None
    adapter: str | None = None


@dataclass(frozen=True, slots=True)
class Load:
    """How busy the engine is: pages by owner, and sequences by status; and since the start how often one had to give way, and the CPU time
    that those who drove steps spent in the backend."""

    free_pages: int
    owned_pages: int
    cached_pages: int
    waiting: int
    running: int
    preempted: int = 0
    model_s: float = 0.0


class Status(Enum):
    """Where a sequence is in its life."""

    WAITING = "waiting"
    RUNNING = "running"
    GONE = "gone"


class Purpose(Enum):
    """What a sequence is run for: to be continued, or for the logits of the tokens it has."""

    ANSWER = "answer"
    SCORES = "scores"


@dataclass(slots=True, kw_only=True, eq=False)
class Sequence:
    """One request inside the engine. Read it freely; only the engine and its scheduler change it."""

    purpose: Purpose
    tokens: list[int]
    num_prompt: int
    max_length: int
    stop_ids: frozenset[int]
    sampling: SamplingParams
    seed: int
    choice_index: int = 0
    salt: bytes = b""
    pictures: tuple[Placed, ...] = ()
    caller: str = ""
    is_low: bool = False
    owner: object | None = None
    adapter: str | None = None
    matcher: Matcher | None = None
    history: History | None = None

    number: int = -1
    status: Status = Status.WAITING
    stop_reason: StopReason | None = None
    error: HerdError | None = None
    pages: list[int] = field(default_factory=list)
    page_keys: list[bytes] = field(default_factory=list)
    computed: int = 0
    placed: int = 0
    cached_tokens: int | None = None
    scored: int = 0
    is_held: bool = False
    has_begun: bool = False  # whether some of it was computed
    news: deque[Progress] | None = None
    drafting: object | None = None  # what the engine's drafter remembers of it
    stored: dict[int, bytes] = field(default_factory=dict)  # contents of full pages, by their places, that were read from the disk
    draw: Draw | None = None  # of the last step; the next one differs in its position

    @property
    def length(self) -> int:
        return len(self.tokens)

    @property
    def num_pending(self) -> int:
        """Tokens that are known and not yet computed: 1 while decoding."""
        return len(self.tokens) - self.computed

    def contents(self, start: int, end: int) -> List[Content]:
        """The tokens at positions `start` to `end`, those that stand for a picture with which one: what decides what a page holds."""
        found: list[Content] = list(self.tokens[start:end])
        for placed in self.pictures:
            first, last = bisect_left(placed.positions, start), bisect_left(placed.positions, end)
            for place in range(first, last):
                position = placed.positions[place]
                found[position - start] = (self.tokens[position], placed.picture.digest, place)
        return found

    @property
    def answer(self) -> list[int]:
        """The tokens chosen so far, a stop token included."""
        return self.tokens[self.num_prompt :]


@dataclass(slots=True, kw_only=True)  # made for every token: what is frozen takes three times as long to make
class Progress:
    """What one step did for one sequence.

    token, logprob, top    the chosen token, or None (scores, or an end without a token)
    logits_RV              for scores: the rows of the next R positions
    stop_reason            set in the last progress of a sequence that ended
    error                  set in the last progress of a sequence that failed
    """

    sequence: Sequence
    token: int | None = None
    logprob: float = 0.0
    top: tuple[tuple[int, float], ...] = ()
    logits_RV: NDArray[np.float32] | None = None
    stop_reason: StopReason | None = None
    error: HerdError | None = None

    @property
    def is_last(self) -> bool:
        return self.stop_reason is not None or self.error is not None
