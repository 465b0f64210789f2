"""What a teacher said of a data set, kept in a folder: for each token that is learned its likeliest next tokens and all others together.

    teacher.json            k, temperature, vocabulary, which teacher, what the words were made of (digests of data and teacher, and
                            the settings that made examples of the data), the shards with their SHA-256 and how much is in each
    shard-00000.safetensors tokens [T], weights [T], lengths [N] of the documents; for each of the R tokens that carry loss
                            ids [R, K] and logprobs [R, K + 1] (the last: of all others together), float16

The examples lie in the shards too, so that nothing else is needed to learn from them. Everything is checked when it is read: sizes
before anything is loaded, names, types and shapes, ids against the vocabulary, each row for being a distribution.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from herd.errors import FileProblem, UsageError
from herd.files.writing import atomic_write
from herd.training.student.batches import Document

LIST, VERSION = "teacher.json", 1
MAX_SHARD_BYTES = 1 << 30
MAX_LIST_BYTES = 4 << 20
SHARD_ROWS = 200_000
MAX_K = 4096
NOTHING_SAID: Mapping[str, str] = MappingProxyType({})
_LEAST = -60.0
"""Log-probabilities below are kept as this: float16 has no use for less, and a rest of no mass at all would be called impossible."""
_TYPES = {"tokens": torch.int32, "weights": torch.float32, "lengths": torch.int32, "ids": torch.int32, "logprobs": torch.float16}


@dataclass(frozen=True, slots=True)
class Taught:
    """A document and what the teacher says of its R tokens that carry loss."""

    document: Document
    ids_RK: Tensor
    logprobs_RK1: Tensor

    @property
    def num_tokens(self) -> int:
        return len(self.document.tokens)


class TeacherWriter:
    """Writes a folder of shards; the list comes last, so that a folder without it is not whole."""

    def __init__(
        self, folder: Path, *, k: int, temperature: float, vocabulary: int, teacher: str, made_of: Mapping[str, str] = NOTHING_SAID
    ) -> None:
        if not 1 <= k <= min(MAX_K, vocabulary):
            raise UsageError(f"k is {k}; expected from 1 to {min(MAX_K, vocabulary)}.")
        if (folder / LIST).exists():
            raise UsageError(f"{folder} holds a teacher's words already; choose another folder.")
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder
        about = {"version": VERSION, "k": k, "temperature": temperature, "vocabulary": vocabulary, "teacher": teacher}
        self._about = {**about, "made_of": dict(made_of)}
        self._waiting: list[Taught] = []
        self._rows = 0
        self._shards: list[dict[str, Any]] = []

    def add(self, taught: Taught) -> None:
        """One more document. Pictures are not kept."""
        if taught.document.pictures:
            raise UsageError("A teacher's words about pictures are not kept; distil such models on their own samples instead.")
        self._waiting.append(taught)
        self._rows += len(taught.ids_RK)
        if self._rows >= SHARD_ROWS:
            self._write()

    def finish(self) -> None:
        """Writes what is left, and the list."""
        if self._waiting:
            self._write()
        with atomic_write(self._folder / LIST) as file:
            file.write(json.dumps({**self._about, "shards": self._shards}, indent=1).encode() + b"\n")

    def _write(self) -> None:
        waiting, self._waiting, self._rows = self._waiting, [], 0
        data = save(
            {
                "tokens": torch.tensor([token for each in waiting for token in each.document.tokens], dtype=torch.int32),
                "weights": torch.tensor([weight for each in waiting for weight in each.document.weights], dtype=torch.float32),
                "lengths": torch.tensor([len(each.document.tokens) for each in waiting], dtype=torch.int32),
                "ids": torch.cat([each.ids_RK for each in waiting]).to(torch.int32).contiguous(),
                "logprobs": torch.cat([each.logprobs_RK1 for each in waiting]).clamp(min=_LEAST).to(torch.float16).contiguous(),
            }
        )
        name = f"shard-{len(self._shards):05d}.safetensors"
        with atomic_write(self._folder / name) as file:
            file.write(data)
        self._shards.append({"file": name, "bytes": len(data), "sha256": hashlib.sha256(data).hexdigest(), "documents": len(waiting)})


class TeacherFolder:
    """A folder that `TeacherWriter` made, opened. `FileProblem` for one that is not whole or not as it should be."""

    def __init__(self, folder: Path) -> None:
        about = _list(folder)
        self._folder = folder
        self.k = _number(about, "k", 1, MAX_K, folder)
        self.vocabulary = _number(about, "vocabulary", self.k, 1 << 24, folder)
        self.temperature = _temperature(about.get("temperature", 1.0), folder)
        self.made_of = _made_of(about.get("made_of", {}), folder)
        self.teacher = str(about.get("teacher", ""))[:200]
        self._shards = [_shard(entry, folder) for entry in about.get("shards", [])]
        self.num_documents = sum(count for *_, count in self._shards)
        if self.num_documents == 0:
            raise FileProblem(f"{folder / LIST}: holds 0 documents; nothing to learn.")

    @property
    def files(self) -> tuple[Path, ...]:
        """All files, the list first."""
        return (self._folder / LIST, *(path for path, *_ in self._shards))

    def read(self) -> Iterator[Taught]:
        """All documents, a shard in memory at a time."""
        for path, size, digest, count in self._shards:
            yield from self._documents(path, _tensors(path, size, digest), count)

    def _documents(self, path: Path, tensors: dict[str, Tensor], count: int) -> Iterator[Taught]:
        tokens, weights, lengths = tensors["tokens"], tensors["weights"], tensors["lengths"]
        self._check(path, tensors, count)
        at = row = 0
        for length in lengths.tolist():
            here = weights[at : at + length].tolist()
            rows = sum(weight != 0 for weight in here)
            document = Document(tuple(tokens[at : at + length].tolist()), tuple(here))
            logprobs = _whole(tensors["logprobs"][row : row + rows].to(torch.float32))
            yield Taught(document, tensors["ids"][row : row + rows].to(torch.int64), logprobs)
            at, row = at + length, row + rows

    def _check(self, path: Path, tensors: dict[str, Tensor], count: int) -> None:
        tokens, weights, lengths, ids, logprobs = (tensors[name] for name in _TYPES)
        rows = int((weights != 0).sum())
        shapes = {"weights": (len(tokens),), "lengths": (count,), "ids": (rows, self.k), "logprobs": (rows, self.k + 1)}
        for name, shape in shapes.items():
            if tuple(tensors[name].shape) != shape:
                raise FileProblem(f"{path}: {name} has the shape {list(tensors[name].shape)}; expected {list(shape)}.")
        first = torch.cat([torch.zeros(1, dtype=torch.int64), lengths.to(torch.int64).cumsum(0)[:-1]]) if count else lengths
        if count == 0 or bool((lengths < 1).any()) or int(lengths.sum()) != len(tokens):
            raise FileProblem(f"{path}: the lengths of its documents do not add up to its {len(tokens)} tokens.")
        for name, values in (("tokens", tokens), ("ids", ids)):
            if values.numel() and (int(values.min()) < 0 or int(values.max()) >= self.vocabulary):
                raise FileProblem(f"{path}: {name} has an id outside of the vocabulary of {self.vocabulary}.")
        if not bool(weights.isfinite().all()) or bool((weights[first] != 0).any()):
            raise FileProblem(f"{path}: weights are not finite, or the first token of a document carries loss.")
        mass = logprobs.to(torch.float32).exp().sum(dim=1)
        if not bool(((mass - 1).abs() < 0.02).all()):
            raise FileProblem(f"{path}: a row of logprobs is no distribution: its probabilities do not sum to 1.")


def _whole(logprobs_RK1: Tensor) -> Tensor:
    """Rounded to 16 bits rows sum to almost 1; to exactly 1 they are brought here."""
    return logprobs_RK1 - logprobs_RK1.logsumexp(dim=1, keepdim=True)


def _list(folder: Path) -> dict[str, Any]:
    path = folder / LIST
    try:
        if path.stat().st_size > MAX_LIST_BYTES:
            raise FileProblem(f"{path}: is larger than {MAX_LIST_BYTES} bytes.")
        about = json.loads(path.read_bytes())
    except OSError:
        raise FileProblem(f"{folder}: holds no teacher's words: there is no {LIST} in it. A run of herd tune distill makes one.") from None
    except (ValueError, RecursionError) as problem:
        raise FileProblem(f"{path}: is not JSON: {problem}.") from None
    if not isinstance(about, dict) or about.get("version") != VERSION or not isinstance(about.get("shards", []), list):
        raise FileProblem(f"{path}: is not a list of a teacher's words of version {VERSION}.")
    return about


def _number(about: dict[str, Any], name: str, least: int, most: int, folder: Path) -> int:
    value = about.get(name)
    if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
        raise FileProblem(f"{folder / LIST}: {name} is {value!r:.40}; expected a whole number from {least} to {most}.")
    return value


def _temperature(value: Any, folder: Path) -> float:
    if not isinstance(value, int | float) or isinstance(value, bool) or not 0 < value <= 100:
        raise FileProblem(f"{folder / LIST}: temperature is {value!r:.40}; expected a number above 0, up to 100.")
    return float(value)


def _made_of(value: Any, folder: Path) -> dict[str, str]:
    if not isinstance(value, dict) or not all(isinstance(each, str) for each in value.values()):
        raise FileProblem(f"{folder / LIST}: made_of is {value!r:.80}; expected texts by name.")
    return value


def _shard(entry: Any, folder: Path) -> tuple[Path, int, str, int]:
    """(path, bytes, digest, documents) of a shard, whose name may not lead out of the folder."""
    try:
        name, size, digest, count = str(entry["file"]), int(entry["bytes"]), str(entry["sha256"]), int(entry["documents"])
    except (TypeError, KeyError, ValueError):
        raise FileProblem(f"{folder / LIST}: a shard is described by {entry!r:.80}; expected file, bytes, sha256, documents.") from None
    if os.path.basename(name) != name or not name.endswith(".safetensors") or not 0 < size <= MAX_SHARD_BYTES or count < 1:
        raise FileProblem(f"{folder / LIST}: a shard is named {name!r:.60} with {size} bytes and {count} documents, which cannot be.")
    return folder / name, size, digest, count


def _tensors(path: Path, size: int, digest: str) -> dict[str, Tensor]:
    try:
        if path.stat().st_size != size:
            raise FileProblem(f"{path}: has {path.stat().st_size} bytes; its list says {size}. It was cut or changed.")
        data = path.read_bytes()
        if hashlib.sha256(data).hexdigest() != digest:
            raise FileProblem(f"{path}: its contents are not those that were written (SHA-256).")
        tensors = load(data)
    except (OSError, SafetensorError) as problem:
        raise FileProblem(f"{path}: cannot be read: {problem}.") from problem
    for name, dtype in _TYPES.items():
        if name not in tensors or tensors[name].dtype != dtype:
            raise FileProblem(f"{path}: should hold {name} as {dtype}.")
    if strange := sorted(set(tensors) - set(_TYPES)):
        raise FileProblem(f"{path}: holds {strange[0]!r:.60}, which is nothing of a teacher's words.")
    return tensors


def weights_of(documents: Sequence[Document]) -> float:
    """All that carries loss."""
    return sum(sum(document.weights) for document in documents)
