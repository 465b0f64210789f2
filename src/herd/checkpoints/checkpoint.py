"""An opened checkpoint: its config, every weight by our name, and what its files say about text and sampling."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import field
from pathlib import Path
from typing import Any, Literal

from herd.checkpoints.stored import Source, StoredTensor
from herd.dtypes import DType
from herd.files import MappedFile
from herd.models.weights import Blocks, Dense, TensorSpec, stored
from herd.records import dataclass

_DIGESTED_BYTES = 32 << 20

Layout = Literal["gguf", "huggingface", "meta", "llama2.c"]


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


class Checkpoint:
    """A model on disk. Opening has checked every key and tensor and has touched no weight.

    `leaf(name)` gives weights by the names of the architecture's `tensors(config)`, without a copy wherever the file keeps them as
    we do; `source(name)` reads them piece by piece. `config` is the architecture's own class (`LlamaConfig`, ...). `facts` says
    for `herd show` what is known and from which key of which file; `widened` which weights were narrower before they were
    converted to this file, and so fit into that format exactly.
    """

    def __init__(
        self,
        *,
        path: Path,
        layout: Layout,
        config: Any,
        specs: Sequence[TensorSpec],
        sources: Mapping[str, Source],
        files: Sequence[MappedFile],
        about: About,
        architecture: str = "llama",
        widened: Mapping[str, DType] | None = None,
    ) -> None:
        self.architecture = architecture
        self.widened: Mapping[str, DType] = widened or {}
        self.path = path
        self.layout: Layout = layout
        self.config = config
        self.specs = tuple(specs)
        self.tokenizer = about.tokenizer
        self.chat_template = about.chat_template
        self.is_taught = about.is_taught
        self.sampling_defaults = about.sampling_defaults
        self.stop_ids = about.stop_ids
        self.texts = about.texts
        self.facts = about.facts
        self._sources = sources
        self._files = tuple(files)

    @property
    def num_bytes(self) -> int:
        """Bytes that all weights take in the files; what several weights share counts once."""
        return sum(tensor.num_bytes for tensor in self._tensors())

    def dtype(self, name: str) -> DType:
        """The format in which `leaf` and `source` give the weight `name`, without reading it."""
        return self._sources[name].dtype

    def source(self, name: str) -> Source:
        """The weight called `name`, to be read piece by piece."""
        return self._sources[name]

    def leaf(self, name: str) -> Dense | Blocks:
        """The weight called `name`. `KeyError` if the model has none of that name."""
        source = self._sources[name]
        for tensor in source.tensors:
            tensor.file.check_unchanged()
        return stored(source.dtype, source.shape, source.rows())

    def with_template(self, template: str, stop_ids: tuple[int, ...]) -> Checkpoint:
        """The same checkpoint, taught to read conversations as this template writes them. Both share their files."""
        import copy

        made = copy.copy(self)
        made.chat_template, made.stop_ids, made.is_taught = template, stop_ids, True
        return made

    def with_sources(self, sources: Mapping[str, Source]) -> Checkpoint:
        """The same checkpoint with some weights from elsewhere. Both share their files: closing one closes the other's."""
        import copy

        made = copy.copy(self)
        made._sources = {**self._sources, **sources}
        made.widened = {name: dtype for name, dtype in self.widened.items() if name not in sources}
        return made

    def digest(self) -> str:
        """Tells whether these are the same files with the same contents as another time, from their headers and from what the system
        says about them; no weight is read. Hexadecimal."""
        import hashlib

        found = hashlib.sha256(repr((self.layout, self.config)).encode())
        first = {id(file): file.size for file in self._files}
        for tensor in self._tensors():
            first[id(tensor.file)] = min(first.get(id(tensor.file), tensor.offset), tensor.offset)
        for file in self._files:
            found.update(repr(file.identity()).encode())
            found.update(file.view[: first[id(file)]])
        return found.hexdigest()

    def contents_digest(self) -> bytes:
        """SHA-256 of the config and of every weight as the files have it, whatever they are called; reads all of them."""
        import hashlib

        found = hashlib.sha256(repr((self.layout, self.config, [(spec.name, self.dtype(spec.name)) for spec in self.specs])).encode())
        for tensor in self._tensors():
            tensor.file.check_unchanged()
            for start in range(tensor.offset, tensor.offset + tensor.num_bytes, _DIGESTED_BYTES):
                size = min(_DIGESTED_BYTES, tensor.offset + tensor.num_bytes - start)
                found.update(tensor.file.view[start : start + size])
        return found.digest()

    def release_pages(self) -> None:
        """Give the memory of all mapped weights back; a later `leaf` reads them from the files again."""
        for tensor in self._tensors():
            tensor.file.drop_pages(tensor.offset, tensor.num_bytes)

    def _tensors(self) -> list[StoredTensor]:
        """Every range of the files that some weight reads, once."""
        found = {(id(tensor.file), tensor.offset): tensor for source in self._sources.values() for tensor in source.tensors}
        return list(found.values())

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
    texts: Mapping[str, str] = field(default_factory=dict)
    """Licence and other files that a single file carries inside, by name."""
    is_taught: bool = False
    """Whether the template and the ends of answers are those of training, and not those of the files."""
