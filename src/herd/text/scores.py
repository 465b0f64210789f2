"""From SentencePiece's scores to merges in order.

SentencePiece joins the two neighbours whose union is the piece with the best score, leftmost first. That equals merging by
rank, where every way to make a piece from two pieces has the rank of its piece, as long as no two pieces tie: which of the
ways is ever met is settled by the better pieces. Ties happen only among the runs of `▁`, scored -1e9 in Llama's own
vocabulary: there, leftmost first means that a run grows from the left to the longest piece. Joining equal powers of two
first, and the rest afterwards, ends in the same pieces; that is how the runs are ordered here.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

from herd.errors import FileProblem
from herd.text.vocabulary import Kind

_SPACE = "▁"
RUN_MAX = 256
"""Llama's longest run is 16. The merges of tied runs grow with the square of the longest."""


def check_scores(scores: Sequence[Any], count: int, source: str) -> None:
    """Refuses a list of another length than the tokens, and scores that are not finite numbers."""
    if len(scores) != count:
        raise FileProblem(f"{source}: there are {len(scores)} scores for {count} tokens.")
    for index, score in enumerate(scores):
        if not isinstance(score, (int, float)) or not math.isfinite(score):
            raise FileProblem(f"{source}: the score of token {index} is {score!r}; expected a finite number.")


def merges_from_scores(
    tokens: Sequence[str], scores: Sequence[float], exceptions: Mapping[int, Kind], source: str
) -> list[tuple[str, str]]:
    """Merges, best first. `FileProblem` if pieces tie where the order would matter, or cannot be built from characters."""
    _check_runs(tokens, source)
    plain = {token: scores[index] for index, token in enumerate(tokens) if index not in exceptions}
    _check_characters(plain, source)
    runs, ranked = _ties_of_spaces(plain, source)
    merges: list[tuple[str, str]] = []
    for token in ranked:
        merges.extend((token[:at], token[at:]) for at in range(1, len(token)) if token[:at] in plain and token[at:] in plain)
    return merges + _run_merges(runs)


def _check_runs(tokens: Sequence[str], source: str) -> None:
    for index, token in enumerate(tokens):
        if len(token) > RUN_MAX and not token.strip(_SPACE):
            raise FileProblem(f"{source}: token {index} is a run of {len(token)} spaces; at most {RUN_MAX} are read.")


def _check_characters(plain: Mapping[str, float], source: str) -> None:
    for character in set("".join(plain)):
        if character not in plain:
            piece = next(token for token in plain if character in token)
            raise FileProblem(f"{source}: the piece {piece!r} contains {character!r}, which is itself no piece, so it cannot be built.")


def _ties_of_spaces(plain: Mapping[str, float], source: str) -> tuple[int, list[str]]:
    """(longest run of `▁` among tied runs or 0, all other pieces of two or more characters from best to worst)."""
    longer = sorted((token for token in plain if len(token) > 1), key=lambda token: -plain[token])
    runs = [token for token in longer if not token.strip(_SPACE)]
    tied = len(runs) > 1 and len({plain[token] for token in runs}) == 1
    ranked = [token for token in longer if token.strip(_SPACE)] if tied else longer
    for better, worse in pairwise(ranked):
        if plain[better] == plain[worse]:
            raise FileProblem(
                f"{source}: the pieces {better!r} and {worse!r} have the same score {plain[better]}, so which merges first is not"
                " settled. Convert the model again from its original tokenizer.model."
            )
    if not tied:
        return 0, ranked
    longest = max(map(len, runs))
    if len(runs) != longest - 1 or longest & (longest - 1) or (ranked and plain[ranked[-1]] <= plain[runs[0]]):
        raise FileProblem(
            f"{source}: {len(runs)} runs of spaces up to length {longest} share the score {plain[runs[0]]}; expected every length up"
            " to a power of two, below all other pieces, as in Llama's vocabulary."
        )
    return longest, ranked


def _run_merges(longest: int) -> list[tuple[str, str]]:
    """Merges for runs of `▁` of every length up to `longest`, a power of two: doublings first, then all others."""
    doublings = [(_SPACE * (1 << k), _SPACE * (1 << k)) for k in range(longest.bit_length() - 1)]
    others = [(_SPACE * left, _SPACE * right) for left in range(2, longest) for right in range(1, min(left, longest - left + 1))]
    return doublings + others
