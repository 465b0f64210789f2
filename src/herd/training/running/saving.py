"""Checkpoints that are whole or absent, in safetensors and JSON only.

    checkpoints/step-000123/weights.safetensors     a file for each part: weights, optimiser, what the recipe adds
    checkpoints/step-000123/manifest.json           the step, size and SHA-256 of each file, and what is no tensor
    checkpoints/.step-000123.77-1f2e.part/          one that is being made, or was when its process died

A checkpoint is written into a folder of another name; every file is synced, then that folder, which then gets its name, and the
folder around it is synced. So a name means that everything under it is on the disk. Where several processes keep parts of the weights, each
writes a file of its own (`weights-00002-of-00004.safetensors`); a tensor that several files have is their rows one after another, so
that any number of processes can go on. Reading trusts nothing all the same: the newest
checkpoint whose manifest, sizes and digests agree is taken. Nothing here can run code out of a file.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import secrets
import shutil
import struct
from collections.abc import Callable, Collection, Iterable, Mapping
from contextlib import suppress
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from herd.checkpoints.safetensors import read_safetensors
from herd.errors import CapacityError, FileProblem
from herd.files import MappedFile, read_json
from herd.files.writing import FULL, cannot_write, sync_folder
from herd.records import dataclass
from herd.training.company import ALONE, Company

FORMAT = 1
MANIFEST = "manifest.json"
PIECE_BYTES = 32 << 20
_PLACE = re.compile(r"(-\d{5}-of-\d{5})?\.safetensors$")
_NAME = re.compile(r"step-(\d{6,})")
_TYPES: Mapping[torch.dtype, str] = {
    torch.float64: "F64", torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16", torch.int64: "I64", torch.int32: "I32",
    torch.int16: "I16", torch.int8: "I8", torch.uint8: "U8", torch.bool: "BOOL",
}  # fmt: skip
_BY_NAME = {name: dtype for dtype, name in _TYPES.items()}


@dataclass(frozen=True, slots=True)
class Saved:
    """A checkpoint whose manifest and files' sizes agree. `values` is what was saved besides tensors."""

    folder: Path
    step: int
    values: Mapping[str, Any]
    files: Mapping[str, tuple[int, str]]

    def read(self) -> dict[str, dict[str, Tensor]]:
        """The tensors of each part, by name. `FileProblem` if a file is not what was written."""
        pieces: dict[str, dict[str, list[Tensor]]] = {}
        for name, expected in sorted(self.files.items()):
            part = pieces.setdefault(_PLACE.sub("", name), {})
            for tensor, value in self._file(name, *expected).items():
                part.setdefault(tensor, []).append(value)
        return {
            part: {name: rows[0] if len(rows) == 1 else torch.cat(rows) for name, rows in tensors.items()}
            for part, tensors in pieces.items()
        }

    def _file(self, name: str, num_bytes: int, digest: str) -> dict[str, Tensor]:
        file = MappedFile(self.folder / name)
        try:
            if file.size != num_bytes or hashlib.sha256(file.view).hexdigest() != digest:
                raise FileProblem(f"{self.folder / name}: is not what was written; the checkpoint is damaged.")
            return {entry.name: _tensor(file, entry) for entry in read_safetensors(file).values()}
        finally:
            file.close()


def save(root: Path, step: int, parts: Mapping[str, Mapping[str, Tensor]], values: Mapping[str, Any], company: Company = ALONE) -> None:
    """Makes the checkpoint of a step; one that was there under its name is replaced.

    Of several processes each gives the rows that it keeps and writes a file for each part; the first makes the manifest and gives the
    folder its name. `CapacityError` if the disk is full, `FileProblem` if it cannot be written otherwise; then everything is as before.
    """
    target = root / f"step-{step:06d}"
    temporary = root / f".{target.name}.{f'{os.getpid()}-{secrets.token_hex(4)}' if company.count == 1 else 'together'}.part"
    is_first = company.index == 0
    place = "" if company.count == 1 else f"-{company.index + 1:05d}-of-{company.count:05d}"
    total = sum(tensor.nbytes for tensors in parts.values() for tensor in tensors.values())

    def begin() -> None:
        root.mkdir(parents=True, exist_ok=True)
        temporary.mkdir()

    def write() -> None:
        told = {f"{part}{place}.safetensors": _write(temporary / f"{part}{place}.safetensors", tensors) for part, tensors in parts.items()}
        _put(temporary / f"written{place}.json", [_json(told)])

    def finish() -> None:
        _complete(temporary, target, {"format": FORMAT, "step": step, "values": values})

    try:
        try:
            _in_step(company, begin if is_first else _nothing)
            _in_step(company, write)
            _in_step(company, finish if is_first else _nothing)
        except BaseException:
            if is_first:
                shutil.rmtree(temporary, ignore_errors=True)
            raise
        if is_first:
            sync_folder(root)
    except OSError as problem:
        if problem.errno in FULL:
            free = shutil.disk_usage(root.parent).free
            raise CapacityError(
                f"{target}: the checkpoint takes {total:,} bytes and could not be written: {problem.strerror} ({free:,} bytes are free "
                "there). What was saved before is whole. Make room, then go on with --resume."
            ) from problem
        raise cannot_write(target, problem) from problem


def _complete(temporary: Path, target: Path, manifest: Mapping[str, Any]) -> None:
    """All files of a checkpoint are written: they get their manifest, and the folder its name."""
    files: dict[str, Any] = {}
    for path in sorted(temporary.glob("written*.json")):
        files |= read_json(path)
        path.unlink()
    _put(temporary / MANIFEST, [_json({**manifest, "files": files})])
    sync_folder(temporary)
    if target.exists():
        _remove(target)
    temporary.rename(target)


def _in_step(company: Company, work: Callable[[], None]) -> None:
    """`work`, and then waiting for the other processes: what fails for one fails for all."""
    problem: BaseException | None = None
    try:
        work()
    except BaseException as found:
        problem = found
    is_fine = company.all_agree(problem is None)
    if problem is not None:
        raise problem
    if not is_fine:
        raise FileProblem("The checkpoint could not be written: another process failed; see what it says.")


def _nothing() -> None:
    """Another process does it."""


def complete(root: Path) -> list[Saved]:
    """All checkpoints whose manifest can be read and whose files have their sizes, oldest first."""
    found = []
    for folder in _folders(root):
        with suppress(FileProblem, OSError):
            found.append(_opened(folder))
    return sorted(found, key=lambda saved: saved.step)


def newest(root: Path) -> tuple[Saved, dict[str, dict[str, Tensor]], list[str]] | None:
    """The newest checkpoint that is whole, its tensors, and what was wrong with newer ones; None if there is none."""
    problems: list[str] = []
    for saved in reversed(complete(root)):
        try:
            return saved, saved.read(), problems
        except (FileProblem, OSError) as problem:
            problems.append(str(problem))
    return None


def keep_only(root: Path, steps: Collection[int]) -> None:
    """Removes the checkpoints of other steps. One that is half removed is no checkpoint any more."""
    for folder in _folders(root):
        match = _NAME.fullmatch(folder.name)
        if match is not None and int(match[1]) not in steps:
            with suppress(OSError):
                _remove(folder)


def remove_litter(root: Path) -> None:
    """Removes what processes that died have left. Only who holds the run's lock may."""
    with suppress(OSError):
        for path in root.iterdir():
            if path.name.startswith(".") and path.name.endswith(".part"):
                shutil.rmtree(path, ignore_errors=True)


def _folders(root: Path) -> list[Path]:
    try:
        return sorted(path for path in root.iterdir() if _NAME.fullmatch(path.name) and path.is_dir())
    except OSError:
        return []


def _remove(folder: Path) -> None:
    """Takes the name away first: a folder that is half removed must not look like a checkpoint."""
    gone = folder.with_name(f".{folder.name}.{os.getpid()}-{secrets.token_hex(4)}.part")
    folder.rename(gone)
    shutil.rmtree(gone, ignore_errors=True)


def _opened(folder: Path) -> Saved:
    """`FileProblem` if the manifest is not one, or a file has another size than it says."""
    manifest = read_json(folder / MANIFEST)
    step, listed, values = manifest.get("step"), manifest.get("files"), manifest.get("values")
    if not (isinstance(step, int) and isinstance(listed, dict) and isinstance(values, dict)) or manifest.get("format") != FORMAT:
        raise FileProblem(f"{folder / MANIFEST}: is no manifest of format {FORMAT}.")
    if folder.name != f"step-{step:06d}":
        raise FileProblem(f"{folder / MANIFEST}: says that it is of step {step}; the folder has another name.")
    files: dict[str, tuple[int, str]] = {}
    for name, expected in listed.items():
        if "/" in name or not name.endswith(".safetensors") or not isinstance(expected, list) or len(expected) != 2:
            raise FileProblem(f"{folder / MANIFEST}: lists {name!r:.80}, which is no file of a checkpoint.")
        if (found := (folder / name).stat().st_size) != expected[0]:
            raise FileProblem(f"{folder / name}: has {found} bytes; {expected[0]} were written.")
        files[name] = (expected[0], str(expected[1]))
    return Saved(folder, step, values, files)


def write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """A safetensors file by itself, whole or absent."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}.part")
    try:
        _write(temporary, tensors)
        os.replace(temporary, path)
    except OSError as problem:
        temporary.unlink(missing_ok=True)
        raise cannot_write(path, problem) from problem


def _write(path: Path, tensors: Mapping[str, Tensor]) -> tuple[int, str]:
    """Writes and syncs a safetensors file; its size and SHA-256. The same tensors always give the same bytes."""
    ordered = sorted(tensors.items(), key=lambda item: (-item[1].element_size(), item[0]))
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    at = 0
    for name, tensor in ordered:
        header[name] = {"dtype": _TYPES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [at, at + tensor.nbytes]}
        at += tensor.nbytes
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    head = memoryview(struct.pack("<Q", len(text)) + text)
    return 8 + len(text) + at, _put(path, chain((head,), (_bytes_of(tensor) for _, tensor in ordered)))


def _put(path: Path, pieces: Iterable[memoryview]) -> str:
    """Makes a file of these pieces and syncs it; its SHA-256."""
    digest = hashlib.sha256()
    descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY | getattr(os, "O_BINARY", 0), 0o666)
    try:
        for data in pieces:
            digest.update(data)
            while len(data):  # a single write may take less
                data = data[os.write(descriptor, data[:PIECE_BYTES]) :]
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    return digest.hexdigest()


def _json(value: Any) -> memoryview:
    return memoryview(json.dumps(value, indent=1, sort_keys=True).encode() + b"\n")


def _bytes_of(tensor: Tensor) -> memoryview:
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    return flat.view(torch.uint8).numpy().data if flat.numel() else memoryview(b"")


def _tensor(file: MappedFile, entry: Any) -> Tensor:
    """A copy of its own of one tensor."""
    if entry.dtype not in _BY_NAME:
        raise FileProblem(f"{file.name}: {entry.name!r:.80} is of type {entry.dtype}, which no checkpoint has.")
    dtype = _BY_NAME[entry.dtype]
    data = bytearray(file.view[entry.offset : entry.offset + entry.num_bytes])
    return torch.frombuffer(data, dtype=dtype).reshape(entry.shape) if data else torch.empty(entry.shape, dtype=dtype)
