"""A scorer whose distributions are known in closed form."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from herd.providers.base import ModelFacts

VOCABULARY = 7


class FakeScorer:
    """Tokens are the letters a to f (1 to 6), 0 begins a text. The logits at a position depend on the token there, and on
    `context` tokens before it; `sharpness` scales them. Rows come in pieces of `piece`."""

    def __init__(
        self,
        *,
        context: int = 0,
        sharpness: float = 1.0,
        bos: bool = True,
        piece: int = 5,
        vocabulary: int = VOCABULARY,
        name: str = "fake",
    ) -> None:
        self.facts = ModelFacts(name=name, context_length=64, vocab_size=vocabulary, fingerprint="fake-1")
        self._context, self._sharpness, self._bos, self._piece = context, sharpness, bos, piece
        self.lengths: list[int] = []
        self.largest_piece = 0

    def encode(self, text: str, *, bos: bool | None = None) -> list[int]:
        ids = [ord(letter) - ord("a") + 1 for letter in text if "a" <= letter <= "f"]
        return [0, *ids] if (self._bos if bos is None else bos) else ids

    def rows(self, tokens: Sequence[int]) -> NDArray[np.float32]:
        """All rows at once: [T, V]."""
        rows = np.zeros((len(tokens), self.facts.vocab_size), dtype=np.float32)
        for at in range(len(tokens)):
            seen = tokens[max(0, at - self._context) : at + 1]
            for back, token in enumerate(reversed(seen)):
                rows[at] += self._sharpness * np.cos(np.arange(self.facts.vocab_size) * (token + 1) / (back + 1))
        return rows

    def logits(self, tokens: Sequence[int]) -> Iterator[NDArray[np.float32]]:
        self.lengths.append(len(tokens))
        rows = self.rows(tokens)
        for at in range(0, len(rows), self._piece):
            yield rows[at : at + self._piece]


def logprobs(scorer: FakeScorer, tokens: Sequence[int]) -> NDArray[np.float64]:
    """log P(token) of each token but the first, computed in the plainest way."""
    rows = scorer.rows(tokens).astype(np.float64)
    table = rows - np.log(np.exp(rows).sum(axis=1, keepdims=True))
    return np.array([table[at, token] for at, token in enumerate(tokens[1:])])
