"""From any checkpoint that can be read to one of three layouts, as a stream: no weight is ever whole in memory.

open -> config and notes -> files beside the weights -> tensors, some rows at a time -> sync, rename
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from herd import dtypes
from herd.checkpoints.checkpoint import Checkpoint
from herd.checkpoints.gguf_mmproj import name_beside
from herd.checkpoints.learned import open_learned
from herd.checkpoints.trained import format_taught
from herd.convert.carried import as_json, folder_files, gguf_texts
from herd.convert.gguf_file import write_gguf
from herd.convert.layouts import Layouts, layouts_of
from herd.convert.mmproj import mmproj_contents
from herd.convert.pth_file import write_pth
from herd.convert.safetensors_file import SHARD_BYTES, write_safetensors
from herd.convert.shaping import Shaping, format_named
from herd.convert.streams import Output
from herd.convert.taught import with_format_named
from herd.convert.tokens import gguf_ends, gguf_tokens, vocabulary_of
from herd.convert.writing import Told, check_place, new_folder, total_bytes
from herd.dtypes import DType
from herd.errors import UsageError
from herd.family.finding import find_model
from herd.family.progress import Progress, silent
from herd.files import atomic_write
from herd.text.vocabulary import Vocabulary

TARGETS = ("hf", "gguf", "meta")
# general.file_type of the GGUF specification: a label for what most tensors are.
FILE_TYPES = {
    "f32": 0, "f16": 1, "q4_0": 2, "q4_1": 3, "q8_0": 7, "q5_0": 8, "q5_1": 9, "q2_k": 10, "q3_k": 12, "q4_k": 15, "q5_k": 17, "q6_k": 18,
    "iq4_nl": 25, "iq4_xs": 30, "bf16": 32,
}  # fmt: skip
SAMPLING = {"temperature": "temp", "top_k": "top_k", "top_p": "top_p", "min_p": "min_p", "repetition_penalty": "penalty_repeat"}


@dataclass(frozen=True, slots=True)
class Report:
    """What was written, and what the user should know about it."""

    path: Path
    layout: str
    num_tensors: int
    num_bytes: int
    files: tuple[str, ...]
    notes: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class _Job:
    """A conversion under way."""

    checkpoint: Checkpoint
    layouts: Layouts
    config: Any
    vocabulary: Vocabulary | None
    shaping: Shaping
    progress: Progress

    @property
    def notes(self) -> list[str]:
        return self.shaping.notes


def convert(
    source: str | os.PathLike[str],
    destination: str | os.PathLike[str],
    *,
    to: str,
    dtype: str | None = None,
    quant: str | None = None,
    progress: Progress = silent,
    shard_bytes: int = SHARD_BYTES,
) -> Report:
    """Write the checkpoint at `source` to `destination`.

    source       as for `herd.load`: a name, a file or a folder, that of a finished run of training too
    to           "hf" (a folder with safetensors), "gguf" (a file), "meta" (a folder with params.json and consolidated.00.pth)
    dtype        plain numbers of all matrices: f32, f16, bf16; None: as stored (blocks become f32 where a layout has none)
    quant        a block format, for gguf only
    shard_bytes  safetensors files are not larger than this, or hold one tensor

    The destination appears when it is whole, and nothing is overwritten. `UsageError` for arguments and for what a layout cannot
    hold, `FileProblem` for the source, `CapacityError` for the disk.
    """
    if to not in TARGETS:
        raise UsageError(f"to is {to!r:.60}; it must be one of {', '.join(TARGETS)}.")
    plain, blocks = format_named(dtype, "dtype", dtypes.PLAIN), format_named(quant, "quant", dtypes.BLOCK)
    if plain is not None and blocks is not None:
        raise UsageError("dtype and quant exclude each other: a matrix is stored in one format.")
    if blocks is not None and to != "gguf":
        raise UsageError(f"quant is {blocks.name}; only gguf has block formats. Choose --to gguf, or --dtype for {to}.")
    target = Path(destination)
    check_place(target, 0)
    shaping = Shaping(plain, blocks)
    checkpoint = _opened(source, progress, shaping.notes)
    try:
        return write_opened(checkpoint, target, to, shaping, progress, shard_bytes)
    finally:
        checkpoint.close()


def write_opened(
    checkpoint: Checkpoint, target: Path, to: str, shaping: Shaping, progress: Progress = silent, shard_bytes: int = SHARD_BYTES
) -> Report:
    """The same for a checkpoint that is open, and stays so."""
    job = _job(checkpoint, shaping, progress)
    writers: dict[str, Callable[[_Job, Path], Report]] = {"gguf": _to_gguf, "meta": _to_meta}
    if to == "hf":
        return _to_huggingface(job, target, shard_bytes)
    return writers[to](job, target)


def _opened(source: str | os.PathLike[str], progress: Progress, notes: list[str]) -> Checkpoint:
    """The checkpoint at `source`; of a finished run of training what it has learned, put together with its base, and the chat format that
    it was taught."""
    path = find_model(source, progress=progress).path
    checkpoint = open_learned(path, lambda name: find_model(name, progress=progress).path)
    try:
        return with_format_named(checkpoint, format_taught(path), notes)
    except BaseException:
        checkpoint.close()
        raise


def _job(checkpoint: Checkpoint, shaping: Shaping, progress: Progress) -> _Job:
    layouts = layouts_of(checkpoint)
    config = layouts.named(checkpoint.config, shaping.notes)
    return _Job(checkpoint, layouts, config, vocabulary_of(checkpoint), shaping, progress)


def _to_huggingface(job: _Job, destination: Path, shard_bytes: int) -> Report:
    config = job.layouts.huggingface_config(job.config)
    outputs = job.layouts.huggingface_outputs(job.checkpoint, job.shaping)
    config.get("text_config", config).update(_tokens_of(job))
    config |= {"dtype": _torch_name(outputs), "torch_dtype": _torch_name(outputs)}
    files = {"config.json": as_json(config), **folder_files(job.checkpoint, job.vocabulary, "hf", job.notes)}

    def write(folder: Path, told: Told) -> list[str]:
        return write_safetensors(folder, outputs, told, shard_bytes)

    return _folder(job, destination, "hf", outputs, files, write)


def to_huggingface(checkpoint: Checkpoint, shaping: Shaping, destination: Path, progress: Progress) -> Report:
    """A Hugging Face folder of a checkpoint that is open, or lies in memory. Errors as of `convert`."""
    check_place(destination, 0)
    return _to_huggingface(_job(checkpoint, shaping, progress), destination, SHARD_BYTES)


def to_meta(
    checkpoint: Checkpoint,
    shaping: Shaping,
    destination: Path,
    outputs: list[Output],
    params_with: Callable[[dict[str, Any]], dict[str, Any]],
    progress: Progress,
) -> Report:
    """A folder in Meta's layout with these tensors, and params.json as `params_with` makes it of what the config says."""
    return _to_meta(_job(checkpoint, shaping, progress), destination, outputs, params_with)


def _to_meta(
    job: _Job,
    destination: Path,
    outputs: list[Output] | None = None,
    params_with: Callable[[dict[str, Any]], dict[str, Any]] = dict,
) -> Report:
    params = params_with(job.layouts.meta_params(job.config, job.notes))
    if outputs is None:
        outputs = job.layouts.meta_outputs(job.checkpoint, job.shaping)
    files = {"params.json": as_json(params), **folder_files(job.checkpoint, job.vocabulary, "meta", job.notes)}

    tensors = outputs

    def write(folder: Path, told: Told) -> list[str]:
        write_pth(folder / "consolidated.00.pth", tensors, told, "consolidated.00")
        return ["consolidated.00.pth"]

    return _folder(job, destination, "meta", outputs, files, write)


def _folder(
    job: _Job, destination: Path, layout: str, outputs: list[Output], files: Mapping[str, bytes], write: Callable[[Path, Told], list[str]]
) -> Report:
    stored = total_bytes(list({id(output.source): output for output in outputs}.values()))
    check_place(destination, stored + sum(map(len, files.values())))
    with new_folder(destination) as folder:
        for name, data in files.items():
            (folder / name).write_bytes(data)
        weights = write(folder, Told(job.progress, destination.name, stored))
    return Report(destination, layout, len(outputs), stored, tuple(sorted([*files, *weights])), tuple(job.notes))


def _to_gguf(job: _Job, destination: Path) -> Report:
    if destination.suffix != ".gguf":
        raise UsageError(f"{destination}: a GGUF file's name ends in .gguf.")
    files = {destination: _gguf_contents(job)}
    if (eyes := mmproj_contents(job.checkpoint, job.shaping)) is not None:
        of_eyes = {**_general(job, eyes[1]), "general.architecture": "clip", "general.type": "mmproj"}
        files[destination.with_name(name_beside(destination))] = ({**of_eyes, **eyes[0]}, eyes[1])
        job.notes.append(f"The part that sees pictures is in {name_beside(destination)}; keep it beside {destination.name}.")
    outputs = [output for _, each in files.values() for output in each]
    stored = total_bytes(outputs)
    for path in files:
        check_place(path, stored)
    with ExitStack() as opened:
        told = Told(job.progress, destination.name, stored)
        for path, (keys, tensors) in files.items():
            write_gguf(opened.enter_context(atomic_write(path)), keys, tensors, told)
        for path in files:
            check_place(path, 0)
    return Report(destination, "gguf", len(outputs), stored, tuple(path.name for path in files), tuple(job.notes))


def gguf_contents(checkpoint: Checkpoint, shaping: Shaping) -> tuple[dict[str, Any], list[Output]]:
    """All keys and tensors of a checkpoint as a GGUF file; of what sees pictures none."""
    if getattr(checkpoint.config, "vision", None) is not None:
        shaping.notes.append("This file holds the text; `herd convert --to gguf` writes the part that sees pictures, as mmproj-*.gguf.")
    return _gguf_contents(_job(checkpoint, shaping, silent))


def _gguf_contents(job: _Job) -> tuple[dict[str, Any], list[Output]]:
    keys, outputs = job.layouts.gguf_outputs(job.checkpoint, job.config, job.shaping)
    return {**_general(job, outputs), **keys, **_gguf_text(job), **gguf_texts(job.checkpoint, job.notes)}, outputs


def _general(job: _Job, outputs: list[Output]) -> dict[str, Any]:
    """The keys that describe the file to people and programs."""
    most = max(outputs, key=lambda output: output.num_bytes).source.dtype
    return {
        "general.architecture": job.checkpoint.architecture,
        "general.type": "model",
        "general.name": job.checkpoint.path.stem if job.checkpoint.path.is_file() else job.checkpoint.path.resolve().name,
        "general.quantization_version": 2,
        "general.file_type": FILE_TYPES[most.name],
        **{f"general.sampling.{SAMPLING[name]}": value for name, value in job.checkpoint.sampling_defaults.items()},
    }


def _gguf_text(job: _Job) -> dict[str, Any]:
    """The tokenizer.* keys. A GGUF source's are kept as they are."""
    source = job.checkpoint.tokenizer
    template = {} if job.checkpoint.chat_template is None else {"tokenizer.chat_template": job.checkpoint.chat_template}
    if source is None or job.vocabulary is None:
        job.notes.append("The source has no tokenizer, so the new model knows token ids only.")
        return {"tokenizer.ggml.model": "no_vocab", **gguf_ends(job.checkpoint.stop_ids, (), job.notes)}
    if source.kind == "gguf":
        return {key: source.metadata[key] for key in source.metadata} | (template if job.checkpoint.is_taught else {})
    return gguf_tokens(job.vocabulary, job.config.vocab_size, job.checkpoint.stop_ids, job.notes) | template


def _tokens_of(job: _Job) -> dict[str, Any]:
    """The token ids of config.json."""
    ids: dict[str, Any] = {}
    if job.vocabulary is not None and job.vocabulary.bos_id is not None:
        ids["bos_token_id"] = job.vocabulary.bos_id
    ends = list(job.checkpoint.stop_ids or (job.vocabulary.eos_ids if job.vocabulary is not None else ()))
    if ends:
        ids["eos_token_id"] = ends if len(ends) > 1 else ends[0]
    return ids


def _torch_name(outputs: list[Output]) -> str:
    """What most of the weights are, as transformers calls it."""
    counts: dict[DType, int] = {}
    for output in outputs:
        counts[output.source.dtype] = counts.get(output.source.dtype, 0) + output.num_bytes
    return {"f32": "float32", "f16": "float16", "bf16": "bfloat16"}[max(counts, key=lambda dtype: counts[dtype]).name]
