"""What one choice of a token needs besides the logits (`Draw`), and what was chosen (`Choice`). `chain.py` says how."""

from __future__ import annotations

from array import array
from dataclasses import field
from typing import TYPE_CHECKING, cast

from herd.records import dataclass
from herd.sampling.params import SamplingParams

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


# Empty, and read by nobody who does not ask for its length first: a draw without penalties needs no numpy.
NO_TOKENS = cast("NDArray[np.int32]", array("i"))


def _no_tokens() -> NDArray[np.int32]:
    return NO_TOKENS


@dataclass(slots=True, kw_only=True)  # made for every token: what is frozen takes three times as long to make
class Draw:
    """Everything besides the logits that decides one token.

    position        index of the token to be chosen, counted from the first token of the prompt
    choice_index    which of several answers to one prompt this is
    seen_ids        distinct tokens of prompt and answer so far, int32 [n]; may be empty when no penalty is used
    answer_counts   how often each of them occurs in the answer so far, int32 [n]
    allowed         uint32 [V / 32], rounded up: token i may be chosen if bit i % 32 of word i // 32 is set; None: all may
    """

    params: SamplingParams
    seed: int
    position: int
    choice_index: int = 0
    seen_ids: NDArray[np.int32] = field(default_factory=_no_tokens)
    answer_counts: NDArray[np.int32] = field(default_factory=_no_tokens)
    allowed: NDArray[np.uint32] | None = None


@dataclass(slots=True)  # made for every token
class Choice:
    """The token, its natural-log probability before any adjustment, and the asked-for most likely ones as (id, logprob)."""

    token: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()
