"""A model in block formats as a GGUF file: scales searched for, errors weighted by a text, a format for each matrix.

open -> read the text (importance) -> choose formats (bits) -> header -> tensors, some rows at a time -> sync, rename

Every stage is kept beside the destination until the file is whole, so that an interrupted run goes on where it was.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from herd import dtypes
from herd.checkpoints.checkpoint import Checkpoint
from herd.checkpoints.open import open_checkpoint
from herd.checkpoints.sources import Source, num_rows
from herd.convert import meta_int4
from herd.convert.budget import Choice, choices_of, spend
from herd.convert.calibration import Calibration, calibrate, running, tokens_of, try_errors
from herd.convert.conversion import gguf_contents, to_meta
from herd.convert.expected import expected_inputs
from herd.convert.fitted import Fitted
from herd.convert.gguf_file import ALIGNMENT, gguf_head
from herd.convert.resuming import Work, working
from herd.convert.shaping import Shaping, fitting, format_named
from herd.convert.streams import Output, in_format
from herd.convert.writing import Told, check_place, total_bytes
from herd.dtypes import F16, DType
from herd.engine.engine import Engine
from herd.errors import UsageError
from herd.family.finding import find_model
from herd.family.progress import Progress, silent
from herd.files import atomic_write
from herd.models.weights import Kind, TensorSpec, stored_bytes
from herd.version import __version__

# Values that are quantised between two looks at the progress.
PIECE_VALUES = 1 << 22
CALIBRATION_TOKENS = 16384
HARM_TOKENS = 128


@dataclass(frozen=True, slots=True)
class Quantised:
    """What was written. `formats`: the weight formats of the matrices by their names; `bits`: bits per weight of the whole file's
    tensors."""

    path: Path
    num_tensors: int
    num_bytes: int
    bits: float
    formats: Mapping[str, str]
    notes: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class _Settings:
    """What decides the file's bits, besides the source."""

    format: str | None
    head: str | None
    bits: float | None
    text: str | None
    max_tokens: int


def quantise(
    source: str | os.PathLike[str],
    destination: str | os.PathLike[str],
    *,
    format: str | None = None,
    head: str | None = None,
    bits: float | None = None,
    importance: str | None = None,
    max_tokens: int = CALIBRATION_TOKENS,
    threads: int | None = None,
    progress: Progress = silent,
) -> Quantised:
    """Write the checkpoint at `source` to the GGUF file `destination` in block formats.

    source       as for `herd.load`: a name, a file or a folder; best in 16 or 32 bits
    format       the format of the matrices: q4_0, q4_1, q5_0, q5_1, q8_0, q2_k, q3_k, q4_k, q5_k, q6_k, iq4_nl, iq4_xs; or int4, that of
                 Meta's own int4 releases: then the destination is a folder in Meta's layout
    head         the format of the output matrix (with tied embeddings: the embedding); None: q6_k, q8_0 where rows do not hold
                 its blocks, or `format` where that is larger
    bits         instead of a format: bits per weight of the whole file; each matrix gets the format that serves this best
    importance   a text of the kind the model is for: errors count by what it makes the columns of each matrix multiply; None: by what
                 the weights before a matrix let expect
    max_tokens   so many tokens of the text are read
    threads      None: one per core that this process may use

    The file appears when it is whole; nothing is overwritten. After an interruption the same call goes on where it was: what is
    done lies in the folder .NAME.herd beside the destination. `UsageError` for arguments, `FileProblem` for the source,
    `CapacityError` for the disk.
    """
    settings = _checked(_Settings(format, head, bits, importance, max_tokens))
    target = Path(destination)
    if format == meta_int4.NAME:
        return _quantise_for_meta(source, target, settings, threads, progress)
    if target.suffix != ".gguf":
        raise UsageError(f"{target}: a GGUF file's name ends in .gguf.")
    check_place(target, 0)
    checkpoint = open_checkpoint(find_model(source, progress=progress).path)
    try:
        with working(target, _key(checkpoint, settings)) as work, ThreadPoolExecutor(threads or _cores()) as pool:
            return _Making(checkpoint, settings, work, pool, progress).make(target)
    finally:
        checkpoint.close()


def _quantise_for_meta(
    source: str | os.PathLike[str], target: Path, settings: _Settings, threads: int | None, progress: Progress
) -> Quantised:
    """As `quantise`, in the format of Meta's int4 releases. Begun anew after an interruption."""
    check_place(target, 0)
    checkpoint = open_checkpoint(find_model(source, progress=progress).path)
    try:
        meta_int4.check_meta_int4(checkpoint)
        inputs: Mapping[str, NDArray[np.float32]]
        with ThreadPoolExecutor(threads or _cores()) as pool:
            if settings.text is None:
                inputs = expected_inputs(checkpoint, pool, progress)
            else:
                windows = tokens_of(checkpoint, settings.text, settings.max_tokens)
                with running(checkpoint) as engine:
                    inputs = calibrate(checkpoint, engine, windows, progress).inputs
            shaping = Shaping()
            outputs = meta_int4.outputs_of(checkpoint, shaping, inputs.get, pool)
            written = to_meta(checkpoint, shaping, target, outputs, meta_int4.params_with, progress)
        formats = {spec.name: f"int{bits}" for spec in checkpoint.specs if (bits := meta_int4.bits_of(spec))}
        notes = (*written.notes, "In the file every integer takes a byte, as in Meta's; programs pack them when they load.")
        return Quantised(target, written.num_tensors, written.num_bytes, meta_int4.bits_per_weight(checkpoint), formats, notes)
    finally:
        checkpoint.close()


def _checked(settings: _Settings) -> _Settings:
    if (settings.format is None) == (settings.bits is None):
        raise UsageError("Give either a format (such as q4_k) or bits (such as 4.25), and not both.")
    if settings.format != meta_int4.NAME:
        format_named(settings.format, "format", dtypes.BLOCK, (meta_int4.NAME,))
    elif settings.head is not None:
        raise UsageError("int4 is Meta's format, whose head has 8 bits; leave head out.")
    format_named(settings.head, "head", (*dtypes.BLOCK, *dtypes.PLAIN))
    if settings.bits is not None:
        if not 1 < settings.bits <= 16:
            raise UsageError(f"bits is {settings.bits}; it must be a number of bits per weight between 2 and 16.")
        if settings.head is not None:
            raise UsageError("With bits every format is chosen for you; leave head out.")
        if settings.text is None:
            raise UsageError("bits weighs formats by what a text shows of the model; give one with importance.")
    if settings.max_tokens < 2:
        raise UsageError(f"max_tokens is {settings.max_tokens}; at least 2 are needed.")
    return settings


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _key(checkpoint: Checkpoint, settings: _Settings) -> str:
    facts = [__version__, checkpoint.digest(), asdict(settings)]
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode("utf-8", "surrogatepass")).hexdigest()


@dataclass(frozen=True, slots=True)
class _Making:
    """One file under way."""

    checkpoint: Checkpoint
    settings: _Settings
    work: Work
    pool: ThreadPoolExecutor
    progress: Progress

    def make(self, target: Path) -> Quantised:
        shaping = Shaping(matrices=lambda _spec, source: source)
        # First, as it refuses what cannot be a GGUF file.
        _, stored = gguf_contents(self.checkpoint, shaping)
        calibration = self._calibration()
        if self.settings.bits is not None:
            formats = self._formats_for(calibration, stored)
        else:
            formats = {spec.name: self._format_of(spec, shaping) for spec in self._matrices()}
        shaping.notes.clear()
        shaping.matrices = lambda spec, source: self._stored(spec, source, formats.get(spec.name, F16), calibration, shaping.notes)
        keys, outputs = gguf_contents(self.checkpoint, shaping)
        check_place(target, total_bytes(outputs) - self._done_bytes())
        self._write(gguf_head(keys, outputs), outputs, Told(self.progress, target.name, total_bytes(outputs)))
        chosen = {name: dtype.name for name, dtype in formats.items()}
        return Quantised(target, len(outputs), total_bytes(outputs), _bits(outputs), chosen, tuple(dict.fromkeys(shaping.notes)))

    def _done_bytes(self) -> int:
        data = self.work.stage("data")
        return data.stat().st_size if data.exists() else 0

    def _matrices(self) -> list[TensorSpec]:
        """What is quantised: matrices and their stacks, not routers, and nothing that sees pictures (GGUF holds the text)."""
        kinds = (Kind.EMBEDDING, Kind.MATRIX, Kind.EXPERTS, Kind.HEAD)
        specs = [spec for spec in self.checkpoint.specs if spec.kind in kinds and len(spec.shape) > 1]
        return [spec for spec in specs if not spec.name.startswith("vision.")]

    def _format_of(self, spec: TensorSpec, shaping: Shaping) -> DType:
        asked = format_named(self.settings.format, "format", dtypes.BLOCK)
        assert asked is not None
        if spec.kind is Kind.HEAD or (spec.kind is Kind.EMBEDDING and self.checkpoint.config.tied_embeddings):
            head = format_named(self.settings.head, "head", (*dtypes.BLOCK, *dtypes.PLAIN))
            asked = head or max(asked, dtypes.Q6_K, key=lambda dtype: dtype.bits_per_weight)
        return fitting(asked, spec.shape[-1])

    def _stored(self, spec: TensorSpec, source: Source, dtype: DType, calibration: Calibration, notes: list[str]) -> Source:
        """The weight as the new file has it."""
        if not dtype.is_block:
            if dtype is F16:
                notes.append(f"Rows of {spec.shape[-1]} do not hold whole blocks; they stay at 16 bits.")
            return source if dtype is F16 and source.dtype in (dtypes.BF16, F16) else in_format(source, dtype)
        if source.dtype.is_block:
            notes.append("The source is quantised already, and its errors stay; better results come from weights of 16 or 32 bits.")
        if source.dtype is dtype:
            return source
        return Fitted(source, dtype, calibration.inputs.get(spec.name), self.pool)

    def _calibration(self) -> Calibration:
        """What the text says, from an earlier run if there was one; without a text, what the weights say."""
        kept = self.work.stage("calibration.npz")
        if self.settings.text is None:
            if not kept.exists():
                self._keep(kept, Calibration(expected_inputs(self.checkpoint, self.pool, self.progress), {}, {}))
            return _from_arrays(kept)
        asks_for_harm = self.settings.bits is not None and not self.work.stage("formats.json").exists()
        if asks_for_harm or not kept.exists():
            windows = tokens_of(self.checkpoint, self.settings.text, self.settings.max_tokens)
            with running(self.checkpoint) as engine:
                if not kept.exists():
                    self._keep(kept, calibrate(self.checkpoint, engine, windows, self.progress))
                if asks_for_harm:
                    return replace(_from_arrays(kept), harm=self._harm(engine, windows[0][:HARM_TOKENS]))
        return _from_arrays(kept)

    @staticmethod
    def _keep(path: Path, found: Calibration) -> None:
        with atomic_write(path) as file:
            np.savez(file, **_as_arrays(found))

    def _harm(self, engine: Engine, tokens: list[int]) -> dict[str, float]:
        """What errors do, each value's kept as soon as it is known."""
        kept = self.work.stage("harm.json")
        known: dict[str, float] = json.loads(kept.read_bytes()) if kept.exists() else {}
        harm = known
        for harm in try_errors(self.checkpoint, engine, tokens, known, self.progress):
            with atomic_write(kept) as file:
                file.write(json.dumps(harm).encode())
        return harm

    def _formats_for(self, calibration: Calibration, outputs: list[Output]) -> dict[str, DType]:
        """A format for each matrix within the budget."""
        assert self.settings.bits is not None
        specs = self._matrices()
        kept = self.work.stage("formats.json")
        if kept.exists():
            return {name: dtypes.BY_NAME[dtype] for name, dtype in json.loads(kept.read_bytes()).items()}
        values = sum(math.prod(output.source.shape) for output in outputs)
        plain = {spec.name: stored_bytes(self.checkpoint.dtype(spec.name), spec.shape) for spec in specs}
        budget = math.floor(values * self.settings.bits / 8) - (total_bytes(outputs) - sum(plain.values()))
        choices: dict[str, list[Choice]] = {}
        for done, spec in enumerate(specs, 1):
            source = self.checkpoint.source(spec.name)
            sample = Fitted(source, dtypes.Q8_0, calibration.inputs.get(spec.name), self.pool)
            choices[spec.name] = choices_of(spec, source, calibration, sample)
            self.progress("trying formats, matrices", done, len(specs))
        try:
            formats = spend(choices, budget)
        except UsageError as problem:
            raise UsageError(f"bits is {self.settings.bits}, which is too few for this model: {problem}.") from None
        with atomic_write(kept) as file:
            file.write(json.dumps({name: dtype.name for name, dtype in formats.items()}).encode())
        return formats

    def _write(self, head: bytes, outputs: list[Output], told: Told) -> None:
        """The file, from where an earlier run left it."""
        place = self.work.begin(head)
        told.add(sum(output.num_bytes for output in outputs[: place.tensor]))
        for tensor, output in enumerate(outputs):
            if tensor < place.tensor:
                continue
            first = place.row if tensor == place.tensor else 0
            told.add(first * output.source.dtype.row_bytes(output.source.shape[-1]))
            rows = num_rows(output.source.shape)
            for row, data in _pieces(output.source, first):
                told.add(len(data))
                end = (tensor + 1, 0) if row == rows else (tensor, row)
                padding = bytes(-output.num_bytes % ALIGNMENT) if row == rows else b""
                self.work.write(data.tobytes() + padding, *end)
        self.work.finish()


def _pieces(source: Source, first: int) -> Iterator[tuple[int, NDArray[np.uint8]]]:
    """(row after the piece, bytes) from row `first` on; what was read is given back to the system."""
    for tensor in source.tensors:
        tensor.file.check_unchanged()
    rows, step = num_rows(source.shape), max(1, PIECE_VALUES // source.shape[-1])
    for row in range(first, rows, step):
        last = min(row + step, rows)
        yield last, np.ascontiguousarray(source.read(row, last)).reshape(-1)
        for tensor in source.tensors:
            tensor.file.drop_pages(tensor.offset, tensor.num_bytes)


def _bits(outputs: list[Output]) -> float:
    return 8 * total_bytes(outputs) / sum(math.prod(output.source.shape) for output in outputs)


def _as_arrays(calibration: Calibration) -> dict[str, Any]:
    arrays: dict[str, Any] = {f"inputs {name}": each for name, each in calibration.inputs.items()}
    return arrays | {f"outputs {name}": np.float64(value).reshape(1) for name, value in calibration.outputs.items()}


def _from_arrays(path: Path) -> Calibration:
    kinds: dict[str, dict[str, NDArray[np.float32]]] = {"inputs": {}, "outputs": {}}
    with np.load(path, allow_pickle=False) as arrays:
        for key in arrays.files:
            kind, _, name = key.partition(" ")
            kinds[kind][name] = arrays[key]
    return Calibration(kinds["inputs"], {name: float(value[0]) for name, value in kinds["outputs"].items()}, {})
