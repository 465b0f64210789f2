"""Texts to labels: Prompt Guard, and any classifier of its kind.

A text longer than the model's context is cut into pieces, and counts as what its most suspicious piece is: the piece that is
least likely to have the first label, which is the harmless one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, final

import numpy as np
from numpy.typing import NDArray

from herd.errors import FileProblem, UsageError

if TYPE_CHECKING:
    from herd.engine.engine import Engine
    from herd.text.tokenizer import Tokenizer


@final
@dataclass(frozen=True, slots=True)
class Classification:
    """What a classifier makes of a text.

    label          the likeliest one
    probabilities  of all labels, by name; their sum is 1
    pieces         how many pieces the text was cut into
    """

    label: str
    probabilities: Mapping[str, float]
    pieces: int


def classify(
    engine: Engine, tokenizer: Tokenizer, labels: Sequence[str], text: str, *, context_length: int, temperature: float = 1.0
) -> Classification:
    """The softmax of the label logits, each divided by `temperature`. `FileProblem` if one is not a finite number."""
    if not isinstance(text, str):
        raise UsageError(f"text is {type(text).__name__}; expected a text.")
    if type(temperature) not in (int, float) or not 0 < temperature < float("inf"):
        raise UsageError(f"temperature is {temperature!r}; it must be a finite number above 0.")
    pieces = _pieces(tokenizer, text, context_length)
    rows = [_softmax(_finite(engine.classify(piece)), temperature) for piece in pieces]
    worst = min(rows, key=lambda row: float(row[0]))
    values = {label: float(value) for label, value in zip(labels, worst, strict=True)}
    return Classification(max(values, key=values.__getitem__), values, len(pieces))


def _pieces(tokenizer: Tokenizer, text: str, context_length: int) -> list[list[int]]:
    """The text between [CLS] and [SEP], or as many pieces of it as it takes."""
    known = tokenizer.special_ids
    if "[CLS]" not in known or "[SEP]" not in known:
        raise FileProblem("The classifier's tokenizer has no tokens [CLS] and [SEP], which every text it reads is put between.")
    first, last = known["[CLS]"], known["[SEP]"]
    ids = tokenizer.encode(text, bos=False)
    inner = ids[ids[:1] == [first] : len(ids) - (ids[-1:] == [last])]
    room = context_length - 2
    return [[first, *inner[at : at + room], last] for at in range(0, max(len(inner), 1), room)]


def _finite(logits: NDArray[np.float32]) -> NDArray[np.float64]:
    if not np.isfinite(logits).all():
        raise FileProblem(
            f"The classifier's logits are {logits.tolist()}, not all of them finite numbers. Weights that are damaged or too large for "
            "this number format do that: check the file against its published SHA-256."
        )
    return logits.astype(np.float64)


def _softmax(logits: NDArray[np.float64], temperature: float) -> NDArray[np.float64]:
    with np.errstate(over="ignore"):
        weights: NDArray[np.float64] = np.exp((logits - logits.max()) / temperature)
    weights /= weights.sum()
    return weights
