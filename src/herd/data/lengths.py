"""Examples that are too long for a run: dropped, cut or split, and counted."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace

from herd.data.account import Account
from herd.data.reading import Place
from herd.data.tokenising import Example
from herd.errors import UsageError

TOO_LONG = "longer than the limit"
NOTHING_LEFT = "longer than the limit, and nothing to learn before it"
CUT = "cut at the limit of length"
SPLIT = "split at the limit of length"
POLICIES = ("drop", "cut", "split")


def limited(examples: Iterable[Example], max_tokens: int | None, policy: str, account: Account) -> Iterator[Example]:
    """The examples that fit, or are made to fit, into `max_tokens`; what became of the others is in `account`.

    drop     one that is too long is left out
    cut      its beginning is kept. One whose cut would go through a picture, or leave nothing to learn, is left out
    split    it becomes several, one behind the other: for plain text
    """
    check_policy(max_tokens, policy)
    nowhere = Place(account.files[0], 0) if account.files else None
    for example in examples:
        place = example.place or nowhere
        if max_tokens is None or len(example.tokens) <= max_tokens or place is None:
            yield example
        elif policy == "split" and not example.pictures:
            account.note(SPLIT, place, f"{len(example.tokens):,} tokens")
            yield from _pieces(example, max_tokens)
        elif policy == "cut" and (kept := _piece(example, 0, max_tokens)).num_learned and _is_whole(example, max_tokens):
            account.note(CUT, place, f"{len(example.tokens):,} tokens")
            yield kept
        else:
            account.drop_kept(
                NOTHING_LEFT if policy == "cut" else TOO_LONG, place, f"{len(example.tokens):,} tokens, {max_tokens:,} allowed"
            )


def check_policy(max_tokens: int | None, policy: str) -> None:
    """`UsageError` for a limit or a policy that is none."""
    if policy not in POLICIES:
        raise UsageError(f"what happens to long examples is {policy!r:.60}; expected one of {', '.join(POLICIES)}.")
    if max_tokens is not None and max_tokens < 2:
        raise UsageError(f"the limit of length is {max_tokens}; an example has at least 2 tokens: one to read and one to learn.")


def _is_whole(example: Example, end: int) -> bool:
    return not any(shown.begin < end < shown.end for shown in example.pictures)


def _pieces(example: Example, max_tokens: int) -> Iterator[Example]:
    for begin in range(0, len(example.tokens), max_tokens):
        piece = _piece(example, begin, min(begin + max_tokens, len(example.tokens)))
        if piece.num_learned:
            yield piece


def _piece(example: Example, begin: int, end: int) -> Example:
    return replace(
        example,
        tokens=example.tokens[begin:end],
        weights=(0.0, *example.weights[begin + 1 : end]),
        formatting=tuple(at - begin for at in example.formatting if begin < at < end),
        pictures=tuple(shown for shown in example.pictures if shown.end <= end),
    )
