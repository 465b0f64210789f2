"""What a run would learn from a data set: counted, and a few examples token by token."""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import field
from pathlib import Path
from typing import Any

from herd.data.account import Account
from herd.data.dedup import NearIndex, digest, text_of
from herd.data.order import hashed
from herd.data.packing import Packing
from herd.data.preparing import prepared
from herd.data.reading import data_files, data_hash
from herd.data.samples import Sample
from herd.data.shapes import read_samples
from herd.data.tokenising import Example, Tokenising
from herd.records import dataclass

_QUANTILES = (0, 50, 90, 99, 100)


@dataclass(slots=True)
class Inspection:
    """lengths: tokens of every example. learned: how many tokens carry loss. exact, near: records that stand there before."""

    account: Account
    sha256: str = ""
    lengths: list[int] = field(default_factory=list)
    num_learned: int = 0
    exact: int = 0
    near: int | None = None
    shown: list[tuple[Example, ...]] = field(default_factory=list)

    @property
    def num_tokens(self) -> int:
        return sum(self.lengths)

    @property
    def quantiles(self) -> dict[int, int]:
        """Lengths by how many per cent of the examples are not longer."""
        ordered = sorted(self.lengths)
        return {share: ordered[min(len(ordered) - 1, len(ordered) * share // 100)] for share in _QUANTILES} if ordered else {}

    def histogram(self) -> list[tuple[int, int, int]]:
        """(from, below, how many examples), in powers of two."""
        counts: dict[int, int] = {}
        for length in self.lengths:
            bits = max(length.bit_length(), 4)
            counts[bits] = counts.get(bits, 0) + 1
        found = range(min(counts), max(counts) + 1) if counts else range(0)
        return [(0 if bits == 4 else 1 << bits - 1, 1 << bits, counts.get(bits, 0)) for bits in found]

    def packed(self, budget_tokens: int, seed: int = 0) -> Packing:
        """The examples in rows of a budget."""
        return Packing(self.lengths, budget_tokens, seed)


def inspect(
    paths: Iterable[str | Path],
    tokenising: Tokenising,
    *,
    shape: str | None = None,
    max_tokens: int | None = None,
    too_long: str = "drop",
    near: float | None = None,
    examples: int = 3,
    seed: int = 0,
) -> Inspection:
    """Reads all of the data, and keeps `examples` of it to show, drawn by `seed`. `FileProblem` if there is nothing to learn from."""
    account = Account()
    found = Inspection(account, near=None if near is None else 0)
    samples = _watched(read_samples(paths, account, shape=shape), found, near)
    drawn: list[tuple[int, int, tuple[Example, ...]]] = []
    for number, group in enumerate(prepared(samples, tokenising, account, max_tokens=max_tokens, too_long=too_long)):
        found.lengths += [len(example.tokens) for example in group]
        found.num_learned += sum(example.num_learned for example in group)
        if examples:
            ticket = (-hashed(seed, number), number, group)  # the smallest hashes stay
            (heapq.heappush if len(drawn) < examples else heapq.heappushpop)(drawn, ticket)
    account.require_kept()
    found.shown = [group for _, _, group in sorted(drawn, key=lambda ticket: ticket[1])]
    found.sha256 = data_hash(data_files(account.files))
    return found


def _watched(samples: Iterable[Sample], found: Inspection, near: float | None) -> Iterator[Sample]:
    """The same samples, with duplicates counted on the way."""
    seen: set[bytes] = set()
    index = None if near is None else NearIndex(near)
    for sample in samples:
        key = digest(sample)
        if key in seen:
            found.exact += 1
        elif index is not None and found.near is not None and index.add(text_of(sample), "") is not None:
            found.near += 1
        seen.add(key)
        yield sample


@dataclass(frozen=True, slots=True)
class Run:
    """Neighbouring tokens of one kind, as text. kind: "read", "learned", "ends" (a control token that is learned), "frame" (one that
    is not), or "picture"."""

    kind: str
    text: str
    weight: float
    ids: tuple[int, ...]


def runs(example: Example, tokenising: Tokenising) -> Iterator[Run]:
    """An example in runs of tokens of one kind and weight. Bytes that are no characters become U+FFFD."""
    tokenizer, kind = tokenising.tokenizer, kinds(example, tokenising)
    begin = 0
    for at in range(1, len(kind) + 1):
        if at == len(kind) or kind[at] != kind[begin] or example.weights[at] != example.weights[begin]:
            ids = example.tokens[begin:at]
            text = b"".join(tokenizer.token_bytes(token) for token in ids).decode("utf-8", "replace")
            yield Run(kind[begin], f"[picture, {at - begin} tokens]" if kind[begin] == "picture" else text, example.weights[begin], ids)
            begin = at


def kinds(example: Example, tokenising: Tokenising) -> list[str]:
    """The kind of each token, as of `Run`."""
    pictured = {at for shown in example.pictures for at in range(shown.begin, shown.end)}
    found = []
    for at, (token, weight) in enumerate(zip(example.tokens, example.weights, strict=True)):
        is_special = tokenising.tokenizer.is_special(token)
        learned, unlearned = ("ends", "frame") if is_special else ("learned", "read")
        found.append("picture" if at in pictured else learned if weight else unlearned)
    return found


def as_json(found: Inspection, tokenising: Tokenising) -> dict[str, Any]:
    """Everything that was found, for programs."""
    return {
        "files": [str(path) for path in found.account.files],
        "sha256": found.sha256,
        **found.account.as_json(),
        "chat_format": None if tokenising.chat_format is None else tokenising.chat_format.name,
        "learn": tokenising.learn,
        "examples": len(found.lengths),
        "tokens": found.num_tokens,
        "learned_tokens": found.num_learned,
        "lengths": {f"{share}%": length for share, length in found.quantiles.items()},
        "histogram": [{"from": begin, "below": end, "examples": count} for begin, end, count in found.histogram()],
        "duplicates": {"exact": found.exact, **({} if found.near is None else {"near": found.near})},
        "shown": [_shown(group, tokenising) for group in found.shown],
    }


def _shown(group: Sequence[Example], tokenising: Tokenising) -> list[dict[str, Any]]:
    made = []
    for example in group:
        told = [{"kind": run.kind, "weight": run.weight, "text": run.text, "ids": list(run.ids)} for run in runs(example, tokenising)]
        made.append({"place": str(example.place), "runs": told})
    return made
