"""Text as a model is pretrained on it: tokens of all documents in one row, cut into sequences of one length.

    documents -> tokens, a beginning and an end around each -> sections -> those that are held out | those that are learned
    learned tokens, one after another -> sequences [i * length, (i + 1) * length) -> pieces, where documents end

A section is what lies between two cuts of a document at every `SECTION_TOKENS` tokens; which sections are held out is drawn from the
seed and the section's place, so that it is the same in every run, and a book is held out in parts. In what sequence follows which
is decided by the seed and the epoch alone. Tokens are kept in a file that is mapped, four bytes each, beside the run.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from herd.errors import FileProblem, UsageError
from herd.files import atomic_write
from herd.text.tokenizer import Tokenizer
from herd.training.student.batches import Document

SECTION_TOKENS = 2048
MIN_SECTION_TOKENS = 2
_FLUSH_TOKENS = 1 << 20
Tokens = NDArray[np.uint32]


@dataclass(frozen=True, slots=True)
class Corpus:
    """Tokens of documents, one after another; document i is tokens[starts[i]:starts[i + 1]]."""

    tokens: Tokens
    starts: NDArray[np.int64]

    @property
    def num_tokens(self) -> int:
        return len(self.tokens)

    def num_sequences(self, length: int) -> int:
        """Whole sequences of so many tokens; what is left over at the end is not used."""
        return len(self.tokens) // length

    def pieces(self, index: int, length: int) -> Iterator[tuple[int, ...]]:
        """Sequence `index`, cut where documents end."""
        first, last = index * length, (index + 1) * length
        inside = self.starts[np.searchsorted(self.starts, first, "right") : np.searchsorted(self.starts, last, "left")]
        cuts = [first, *inside.tolist(), last]
        for begin, end in pairwise(cuts):
            if end > begin:
                yield tuple(self.tokens[begin:end].tolist())


def tokenised(texts: Iterable[str], tokenizer: Tokenizer) -> Iterator[list[int]]:
    """The tokens of each text, between the beginning that the tokenizer has and the first end that it declares, if it does."""
    begin = [] if tokenizer.bos_id is None else [tokenizer.bos_id]
    end = list(tokenizer.eos_ids[:1])
    for text in texts:
        if text:
            yield [*begin, *tokenizer.encode(text, bos=False), *end]


def write_corpus(folder: Path, name: str, documents: Iterable[Sequence[int]], held_out: float, seed: int) -> tuple[Corpus, Corpus]:
    """Writes what is learned and what is held out to `folder`, and gives both. `UsageError` if nothing is left to learn."""
    folder.mkdir(parents=True, exist_ok=True)
    learned, held = _Writer(folder / f"{name}.learned"), _Writer(folder / f"{name}.held_out")
    with learned, held:
        for number, document in enumerate(documents):
            before: _Writer | None = None
            for part, first in enumerate(range(0, len(document), SECTION_TOKENS)):
                section = document[first : first + SECTION_TOKENS]
                writer = held if _is_held_out(seed, number, part, held_out) else learned
                if before is not None and len(section) < MIN_SECTION_TOKENS:
                    writer = before
                writer.add(section, is_continued=writer is before)
                before = writer
    found = read_corpus(folder, name)
    if not found[0].num_tokens:
        raise UsageError(f"The data {name!r} has no text to learn from; {found[1].num_tokens:,} tokens are held out.")
    return found


def read_corpus(folder: Path, name: str) -> tuple[Corpus, Corpus]:
    """What was written before. `FileProblem` for files that do not belong together."""
    learned, held = (_read(folder / f"{name}.{part}") for part in ("learned", "held_out"))
    return learned, held


def documents_of(pieces: Iterable[tuple[int, ...]], *, crosses: bool) -> list[Document]:
    """Documents in which every token but the first of each counts. `crosses`: one document, attention going from piece to piece."""
    parts = [token for piece in pieces for token in piece] if crosses else None
    every = [tuple(parts)] if parts is not None else [piece for piece in pieces if len(piece) > 1]
    return [Document(piece, (0.0, *[1.0] * (len(piece) - 1))) for piece in every if len(piece) > 1]


@lru_cache(maxsize=8)
def shuffled(seed: int, name: str, epoch: int, count: int) -> NDArray[np.int64]:
    """The order of an epoch: a permutation of 0 to count - 1, from its key alone."""
    return np.random.Generator(np.random.Philox(key=_key(seed, name, epoch, count))).permutation(count)


class _Writer:
    """Streams tokens to a file, and the starts of documents to one beside it."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._starts: list[int] = [0]
        self._held: list[int] = []
        self._count = 0

    def __enter__(self) -> _Writer:
        self._opened = atomic_write(self._path.with_suffix(self._path.suffix + ".tokens"))
        self._file = self._opened.__enter__()
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        if kind is None:
            self._flush()
            with atomic_write(self._path.with_suffix(self._path.suffix + ".starts")) as file:
                file.write(np.asarray([*self._starts, self._count], "<i8").tobytes())
        self._opened.__exit__(kind, error, trace)  # type: ignore[arg-type]

    def add(self, section: Sequence[int], *, is_continued: bool) -> None:
        """A section; `is_continued`: it goes on where the last one here ended."""
        if self._count and not is_continued:
            self._starts.append(self._count)
        self._held += section
        self._count += len(section)
        if len(self._held) >= _FLUSH_TOKENS:
            self._flush()

    def _flush(self) -> None:
        self._file.write(np.asarray(self._held, "<u4").tobytes())
        self._held.clear()


def _read(path: Path) -> Corpus:
    tokens_path, starts_path = (path.with_suffix(path.suffix + ending) for ending in (".tokens", ".starts"))
    try:
        starts = np.fromfile(starts_path, "<i8")
        size = tokens_path.stat().st_size
    except OSError as problem:
        raise FileProblem(f"{tokens_path}: cannot be read: {problem.strerror}. Remove the folder; it is made again.") from problem
    if not len(starts) or starts[-1] * 4 != size or (np.diff(starts) < 0).any():
        raise FileProblem(
            f"{tokens_path}: has {size} bytes, and {starts_path.name} is of another file. Remove the folder; it is made again."
        )
    return Corpus(np.memmap(tokens_path, "<u4", "r") if size else np.zeros(0, "<u4"), starts[:-1])


def _is_held_out(seed: int, document: int, section: int, share: float) -> bool:
    return int.from_bytes(_digest(seed, "held out", document, section)[:8], "little") < share * 2.0**64


def _key(*parts: object) -> int:
    return int.from_bytes(_digest(*parts)[:16], "little")


def _digest(*parts: object) -> bytes:
    return hashlib.blake2b("\0".join(map(str, parts)).encode()).digest()
