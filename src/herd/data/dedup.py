"""What stands in a data set twice: exactly, or nearly (MinHash and banded hashing; Broder 1997).

Two texts are near duplicates if the sets of their runs of `SHINGLE` words overlap by a threshold (Jaccard). Signatures of 128 minima
find the candidates; whether a candidate is one is decided by the sets themselves, so nothing is dropped that is not. At a
threshold of 0.8 fewer than one duplicate in a million is missed, at 0.5 an eighth.
"""

from __future__ import annotations

import hashlib
import re
import zlib
from collections import defaultdict
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from herd.data.account import Account
from herd.data.samples import Chat, Judged, Passage, Preference, Sample, Task
from herd.errors import UsageError
from herd.text.messages import Image, Message, Text

EXACT, NEAR = "the same as an earlier record", "nearly the same as an earlier record"
SHINGLE = 5
_MINIMA, _BANDS = 128, 32
_IN_BUCKET = 16
"""Earlier texts that one bucket offers for comparing; more are of one kind anyway."""
_WORD = re.compile(r"\w+")


def without_duplicates(samples: Iterable[Sample], account: Account, *, near: float | None = None) -> Iterator[Sample]:
    """The samples without those that came before. near: also those that overlap by this share with an earlier one, 0.5 to 1."""
    if near is not None and not 0.5 <= near <= 1:
        raise UsageError(f"the threshold of near duplicates is {near}; expected a share from 0.5 to 1.")
    seen: dict[bytes, str] = {}
    index = None if near is None else NearIndex(near)
    for sample in samples:
        key = digest(sample)
        if (earlier := seen.setdefault(key, str(sample.place))) != str(sample.place):
            account.drop_kept(EXACT, sample.place, f"as {earlier}")
            continue
        found = None if index is None else index.add(text_of(sample), str(sample.place))
        if found is not None:
            account.drop_kept(NEAR, sample.place, f"as {found}")
            continue
        yield sample


def digest(sample: Sample) -> bytes:
    """SHA-256 of everything that a sample teaches, wherever it stands."""
    match sample:
        case Passage():
            held: Any = sample.text
        case Chat():
            held = _spelled(sample.messages), sample.weights
        case Preference():
            held = _spelled(sample.prompt), _spelled(sample.chosen), _spelled(sample.rejected)
        case Judged():
            held = _spelled(sample.prompt), _spelled(sample.answer), sample.is_good
        case Task():
            held = _spelled(sample.messages), sorted(sample.checks.items())
    return hashlib.sha256(repr((type(sample).__name__, held)).encode("utf-8", "surrogatepass")).digest()


def text_of(sample: Sample) -> str:
    """All words of a sample."""
    match sample:
        case Passage():
            return sample.text
        case Chat() | Task():
            messages: tuple[Message, ...] = sample.messages
        case Preference():
            messages = (*sample.prompt, *sample.chosen, *sample.rejected)
        case Judged():
            messages = (*sample.prompt, *sample.answer)
    return "\n".join(message.text for message in messages)


class NearIndex:
    """Texts that came so far, and which of them a new one is nearly the same as."""

    def __init__(self, threshold: float) -> None:
        self._threshold = threshold
        numbers = np.random.Generator(np.random.Philox(key=7))
        self._factors = numbers.integers(0, 1 << 63, (_MINIMA, 1), dtype=np.uint64) * np.uint64(2) + np.uint64(1)
        self._offsets = numbers.integers(0, 1 << 63, (_MINIMA, 1), dtype=np.uint64)
        self._buckets: dict[tuple[int, bytes], list[int]] = defaultdict(list)
        self._texts: list[tuple[str, NDArray[np.uint64]]] = []

    def add(self, text: str, name: str) -> str | None:
        """The name of an earlier text that this one is nearly the same as; else None, and it is remembered."""
        shingles = shingles_of(text)
        bands = (shingles * self._factors + self._offsets >> np.uint64(32)).min(axis=1).reshape(_BANDS, -1)
        keys = [(at, band.tobytes()) for at, band in enumerate(bands)]
        for number in dict.fromkeys(number for key in keys for number in self._buckets.get(key, ())):
            earlier, theirs = self._texts[number]
            if overlap(shingles, theirs) >= self._threshold:
                return earlier
        for key in keys:
            if len(bucket := self._buckets[key]) < _IN_BUCKET:
                bucket.append(len(self._texts))
        self._texts.append((name, shingles))
        return None


def shingles_of(text: str) -> NDArray[np.uint64]:
    """Hashes of all runs of `SHINGLE` words, sorted, each once; of a shorter text the one run that it is."""
    words = _WORD.findall(text.casefold()) or [text]
    runs = {" ".join(words[at : at + SHINGLE]) for at in range(max(1, len(words) - SHINGLE + 1))}
    spelled = [run.encode("utf-8", "surrogatepass") for run in runs]
    return np.unique(np.array([zlib.crc32(run) << 32 | zlib.adler32(run) for run in spelled], np.uint64))


def overlap(one: NDArray[np.uint64], other: NDArray[np.uint64]) -> float:
    """The Jaccard index of two sets."""
    shared = len(np.intersect1d(one, other, assume_unique=True))
    return shared / (len(one) + len(other) - shared)


def _spelled(messages: Iterable[Message]) -> list[Any]:
    return [
        (
            message.role.value,
            [part.text if isinstance(part, Text) else ("picture", _shown(part)) for part in message.parts],
            [(call.name, repr(call.arguments)) for call in message.tool_calls],
        )
        for message in messages
    ]


def _shown(image: Image) -> str:
    """What tells a picture from others: the digest of its file, or of its pixels."""
    held: Any = image.source
    data = held.encode() if isinstance(held, str) else held.tobytes() if hasattr(held, "tobytes") else held
    return hashlib.sha256(data).hexdigest()
