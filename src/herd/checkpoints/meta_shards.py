"""The shards of a model in Meta's layout, put together weight by weight, with everything that does not fit collected."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from herd.checkpoints.account import refuse
from herd.checkpoints.config_reader import shown
from herd.checkpoints.sources import Joined, SameBytes, Source
from herd.checkpoints.stored import StoredTensor
from herd.errors import FileProblem

WRONG = "params.json and the shards are from different models, or the file is of a kind that is not known."
EVERY_SHARD = "which every shard must hold alike. The shards are from different models, or one is damaged."
SAME_HEAD = "which must hold the same kv head, since there are fewer heads than shards. They are from different models."

Shards = list[dict[str, StoredTensor]]
Leaf = Callable[[StoredTensor, int], Source]
"""A piece in the shard of that number, as it is to be read."""


def as_stored(piece: StoredTensor, _number: int) -> Source:
    """The piece itself."""
    return piece


class Gather:
    """Puts weights together out of `shards`. `is_harmless` says which further tensors need no weight."""

    def __init__(self, shards: Shards, is_harmless: Callable[[str], bool]) -> None:
        self.shards = shards
        self.problems: list[str] = []
        self.used: set[str] = set()
        self._is_harmless = is_harmless

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of a tensor in the first shard, or nothing."""
        tensor = self.shards[0].get(name)
        return () if tensor is None else tensor.shape

    def pieces(self, name: str, shape: Sequence[int], leaf: Leaf = as_stored) -> list[Source] | None:
        """The tensor of every shard, which must have this shape there; None, with a problem noted, if one has not."""
        self.used.add(name)
        found: list[StoredTensor] = []
        for number, shard in enumerate(self.shards):
            piece = shard.get(name)
            where = f" in consolidated.{number:02d}.pth" if any(name in each for each in self.shards) else ""
            if piece is None:
                self.problems.append(f"{name} {list(shape)} is missing{where}")
                return None
            if list(piece.shape) != list(shape):
                self.problems.append(f"{name} has shape {list(piece.shape)}{where}; expected is {list(shape)}{self._of_all()}")
                return None
            found.append(piece)
        formats = sorted({piece.dtype.name for piece in found})
        if len(formats) > 1:
            self.problems.append(f"{name} is stored as {' and '.join(formats)}; one format is expected")
            return None
        try:
            return [leaf(piece, number) for number, piece in enumerate(found)]
        except FileProblem as problem:
            self.problems.append(str(problem))
            return None

    def _of_all(self) -> str:
        return f" in each of {len(self.shards)}" if len(self.shards) > 1 else ""

    def whole(self, name: str, shape: tuple[int, ...], axis: int | None, copies: int = 1, leaf: Leaf = as_stored) -> Source | None:
        """The weight of this shape that the shards divide along `axis` (None: all have the whole); `copies` neighbours hold the
        same piece. None, with a problem noted, if it does not fit."""
        count = len(self.shards)
        expected = list(shape)
        if axis is not None and count > 1:
            expected[axis] = shape[axis] * copies // count
        pieces = self.pieces(name, expected, leaf)
        if pieces is None:
            return None
        if axis is None or count == 1:
            return self.same(pieces, EVERY_SHARD)
        if copies > 1:
            pieces = [self.same(pieces[at : at + copies], SAME_HEAD) for at in range(0, count, copies)]
        return Joined(tuple(pieces), axis) if len(pieces) > 1 else pieces[0]

    @staticmethod
    def same(pieces: Sequence[Source], because: str) -> Source:
        """One of several that must be alike."""
        return pieces[0] if len(pieces) == 1 else SameBytes(pieces[0], tuple(pieces[1:]), because)

    def finish(self, where: str, kind: str) -> None:
        """Refuse if something was wrong or left over; `kind` is what model this is."""
        for number, shard in enumerate(self.shards):
            place = "" if len(self.shards) == 1 else f" in consolidated.{number:02d}.pth"
            left = [tensor for name, tensor in shard.items() if name not in self.used and not self._is_harmless(name)]
            self.problems += [f"{shown(tensor.name)} {list(tensor.shape)}{place} belongs to no part of {kind}" for tensor in left]
        if self.problems:
            refuse(where, self.problems, WRONG)
