"""An opened checkpoint: its config, every weight by our name, and what its files say about text and sampling."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from herd.dtypes import DType
from herd.errors import FileProblem
from herd.files import MappedFile
from herd.models.llama import LlamaConfig
from herd.models.weights import Blocks, Dense, TensorSpec, stored, stored_bytes

Layout = Literal["gguf", "huggingface", "llama2.c"]


@dataclass(frozen=True, slots=True)
class Fact:
    """One thing that is known about a model, and where it was read."""

    value: object
    source: str


@dataclass(frozen=True, slots=True)
class TokenizerSource:
    """Where the tokenizer of a checkpoint is: a file (`path`) or the tokenizer.* keys of a GGUF file (`metadata`).

    `config` is what tokenizer_config.json says, with what special_tokens_map.json and generation_config.json add to it.
    """

    kind: Literal["gguf", "tokenizer.json", "tiktoken", "sentencepiece", "llama2.c"]
    path: Path | None = None
    metadata: Mapping[str, Any] = field(default_factory=dict)
    config: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """One tensor of a file, whose range was checked against the file's size. `shape` is row-major, rows first."""

    name: str
    dtype: DType
    shape: tuple[int, ...]
    file: MappedFile
    offset: int

    @property
    def num_bytes(self) -> int:
        return stored_bytes(self.dtype, self.shape)

    def rows(self) -> NDArray[np.uint8]:
        """The bytes in place, uint8 [rows, row_bytes]; one row if the tensor has one axis."""
        count = self.num_bytes
        flat = np.frombuffer(self.file.view, dtype=np.uint8, count=count, offset=self.offset)
        rows = self.shape[0] if len(self.shape) > 1 else 1
        return flat.reshape(rows, count // rows)


@dataclass(frozen=True, slots=True)
class Interleaved:
    """A q or k weight whose heads keep their two halves apart, as Hugging Face files do."""

    tensor: StoredTensor
    num_heads: int

    def rows(self) -> NDArray[np.uint8]:
        """The rows of each head brought into interleaved order: row i and row i + half become rows 2i and 2i + 1."""
        shape = self.tensor.shape
        data = self.tensor.rows().reshape(self.num_heads, 2, shape[0] // self.num_heads // 2, -1)
        return np.ascontiguousarray(data.swapaxes(1, 2)).reshape(shape[0] if len(shape) > 1 else 1, -1)


@dataclass(frozen=True, slots=True)
class SameBytes:
    """A tied embedding whose file also stores the head: good only if both have the same bytes, checked when it is read."""

    tensor: StoredTensor
    twin: StoredTensor

    def rows(self) -> NDArray[np.uint8]:
        ours, other = self.tensor.rows(), self.twin.rows()
        step = max(1, (4 << 20) // ours.shape[1])
        if not all(np.array_equal(ours[at : at + step], other[at : at + step]) for at in range(0, len(ours), step)):
            raise FileProblem(
                f"{self.tensor.name} and {self.twin.name} differ, but config.json says tie_word_embeddings: true, so that both are one "
                "matrix. Set it to false if the stored head is meant."
            )
        self.twin.file.drop_pages(self.twin.offset, self.twin.num_bytes)
        return ours


Source = StoredTensor | Interleaved | SameBytes


def tensor_of(source: Source) -> StoredTensor:
    """The stored tensor that a source reads."""
    return source if isinstance(source, StoredTensor) else source.tensor


class Checkpoint:
    """A model on disk. Opening has checked every key and tensor and has touched no weight.

    `leaf(name)` gives weights by the names of `herd.models.llama.tensors(config)`, without a copy wherever the file keeps them as
    we do. `facts` says for `herd show` what is known and from which key of which file.
    """

    architecture = "llama"

    def __init__(
        self,
        *,
        path: Path,
        layout: Layout,
        config: LlamaConfig,
        specs: Sequence[TensorSpec],
        sources: Mapping[str, Source],
        files: Sequence[MappedFile],
        about: About,
    ) -> None:
        self.path = path
        self.layout: Layout = layout
        self.config = config
        self.specs = tuple(specs)
        self.tokenizer = about.tokenizer
        self.chat_template = about.chat_template
        self.sampling_defaults = about.sampling_defaults
        self.stop_ids = about.stop_ids
        self.facts = about.facts
        self._sources = sources
        self._files = tuple(files)

    @property
    def num_bytes(self) -> int:
        """Bytes of all weights as stored."""
        return sum(tensor_of(source).num_bytes for source in self._sources.values())

    def dtype(self, name: str) -> DType:
        """How the weight `name` is stored, without reading it."""
        return tensor_of(self._sources[name]).dtype

    def leaf(self, name: str) -> Dense | Blocks:
        """The weight called `name`. `KeyError` if the model has none of that name."""
        source = self._sources[name]
        tensor = tensor_of(source)
        tensor.file.check_unchanged()
        return stored(tensor.dtype, tensor.shape, source.rows())

    def release_pages(self) -> None:
        """Give the memory of all mapped weights back; a later `leaf` reads them from the files again."""
        for source in self._sources.values():
            tensor = tensor_of(source)
            tensor.file.drop_pages(tensor.offset, tensor.num_bytes)

    def close(self) -> None:
        """Let go of the files. Leaves that were handed out stay valid."""
        for file in self._files:
            file.close()


@dataclass(frozen=True, slots=True)
class About:
    """What a checkpoint says besides its config and weights."""

    facts: Mapping[str, Fact]
    tokenizer: TokenizerSource | None = None
    chat_template: str | None = None
    sampling_defaults: Mapping[str, float] = field(default_factory=dict)
    stop_ids: tuple[int, ...] = ()
