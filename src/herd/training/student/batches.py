"""Documents as a model learns them: packed one after another into one row of tokens, attention never crossing from one to the next."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from herd.backends.base import Placed


@dataclass(frozen=True, slots=True)
class Document:
    """One text to learn from.

    tokens     its ids
    weights    weights[t]: how much the prediction of tokens[t], from what stands before it, counts. The first has nothing before it: 0
    pictures   where in it which picture is, as the engine has them
    """

    tokens: tuple[int, ...]
    weights: tuple[float, ...]
    pictures: tuple[Placed, ...] = ()

    def __post_init__(self) -> None:
        assert self.tokens and len(self.tokens) == len(self.weights), "a weight for each token"
        assert self.weights[0] == 0, "nothing stands before the first token"


@dataclass(frozen=True, slots=True)
class Batch:
    """Packed documents on a device. R rows are those whose next token counts: row t-1 for each weights[t] that is not 0, in order.

    tokens_T      all documents, one after another
    lengths       of each document
    rows_R        rows of T that predict something
    targets_R     the tokens to be predicted
    weights_R     what each counts, float32
    document_R    the index of each row's document
    pictures      of each document
    only          which of the documents' tokens are in it, where others are in other processes (`spread.py`): from one, to before one
    """

    tokens_T: Tensor
    lengths: tuple[int, ...]
    rows_R: Tensor
    targets_R: Tensor
    weights_R: Tensor
    document_R: Tensor
    pictures: tuple[tuple[Placed, ...], ...]
    only: tuple[int, int] | None = None

    @property
    def positions_T(self) -> Tensor:
        """Each token's place in its document."""
        whole = torch.cat([torch.arange(length, device=self.tokens_T.device) for length in self.lengths])
        return whole if self.only is None else whole[slice(*self.only)]

    def part(self, first: int, last: int, rows: Tensor) -> Batch:
        """Tokens `first` to before `last` alone, and what is predicted from these `rows` (bool [R])."""
        rows_R, targets_R, weights_R, document_R = (
            each[rows] for each in (self.rows_R - first, self.targets_R, self.weights_R, self.document_R)
        )
        return Batch(self.tokens_T[first:last], self.lengths, rows_R, targets_R, weights_R, document_R, self.pictures, (first, last))

    @property
    def num_tokens(self) -> int:
        return sum(self.lengths)

    @property
    def num_targets(self) -> int:
        return len(self.targets_R)


def batch_of(documents: Sequence[Document], device: torch.device | str = "cpu") -> Batch:
    """These documents packed, on `device`."""
    assert documents, "a batch has documents"
    lengths = tuple(len(document.tokens) for document in documents)
    tokens = torch.tensor([token for document in documents for token in document.tokens], dtype=torch.int64)
    weights = torch.tensor([weight for document in documents for weight in document.weights], dtype=torch.float32)
    owner = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))
    counted = weights.nonzero()[:, 0]
    found = counted - 1, tokens[counted], weights[counted], owner[counted]
    rows, targets, weights_R, document_R = (each.to(device) for each in found)
    return Batch(tokens.to(device), lengths, rows, targets, weights_R, document_R, tuple(document.pictures for document in documents))
