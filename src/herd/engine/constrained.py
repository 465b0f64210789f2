"""Sequences that are held to a language: before a step, what may follow; of forced text, all tokens at once.

A mask is made for every token that a step draws of such a sequence. Forced tokens are tried like drafts, each with a mask that allows
nothing else, so that all of them are accepted and come with the log-probabilities that the model gives them. Where a step has no room for
them, they come one by one, and are the same.
"""

from __future__ import annotations

from collections.abc import Sequence as List
from dataclasses import replace

from herd.engine.parts import Part


def any_held(parts: List[Part]) -> bool:
    """Whether any of these sequences is held to a language."""
    return any([part.sequence.matcher is not None for part in parts])


def forced(parts: List[Part]) -> list[tuple[int, ...]]:
    """For each part of a step the tokens that come next in any case."""
    found: list[tuple[int, ...]] = []
    for part in parts:
        matcher = part.sequence.matcher
        found.append(tuple(matcher.forced()) if matcher is not None and part.is_decoding else ())
    return found


def with_forced(parts: List[Part], found: List[tuple[int, ...]]) -> list[Part]:
    """The parts with the forced tokens that there is room for as their drafts."""
    return [replace(part, drafted=tokens[: part.room]) if tokens and part.room else part for part, tokens in zip(parts, found, strict=True)]


def with_masks(parts: List[Part]) -> list[Part]:
    """The parts with a mask for every token that is drawn, and without drafts that the language does not have."""
    return [_masked(part) for part in parts]


def _masked(part: Part) -> Part:
    matcher = part.sequence.matcher
    if matcher is None or not part.draws:
        return part
    masks = matcher.allowed(part.drafted)
    if not masks:
        return replace(part, drafted=(), problem=matcher.problem)
    return replace(part, drafted=part.drafted[: len(masks) - 1], masks=tuple(masks))
