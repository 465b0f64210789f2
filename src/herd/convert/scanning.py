"""Every weight looked at once: numbers that are none, matrices of zeros, bytes that are not those that were published."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from herd.checkpoints.checkpoint import Checkpoint
from herd.checkpoints.folder import inside
from herd.checkpoints.meta import shard_paths
from herd.checkpoints.pth import read_pth
from herd.checkpoints.sources import Source
from herd.convert.findings import Finding, Outcome
from herd.convert.streams import pieces
from herd.convert.writing import Told
from herd.dtypes import BF16, F16, F32, DType
from herd.errors import FileProblem
from herd.files import MappedFile
from herd.models.weights import TensorSpec, stored_bytes
from herd.quant import dequantize

MAX_LISTED = 10
DIGESTED_BYTES = 16 << 20
# The bits of a plain number that are all set in an infinity or a NaN.
EXPONENTS: dict[DType, tuple[Any, int]] = {F32: (np.uint32, 0x7F800000), F16: (np.uint16, 0x7C00), BF16: (np.uint16, 0x7F80)}
CHECKSUMS = ("checklist.chk", "tokenizer_checklist.chk")


def scan_weights(checkpoint: Checkpoint, told: Told) -> Finding:
    """Counts what is not finite, and finds weights that are all zeros. Reads everything once."""
    bad: list[str] = []
    odd: list[str] = []
    for spec in checkpoint.specs:
        source = checkpoint.source(spec.name)
        infinite, is_zero = _scan(source, told)
        if infinite:
            bad.append(f"{spec.name}: {infinite} of {spec.count} values are NaN or infinite")
        elif is_zero and not _may_be_zero(spec):
            odd.append(f"{spec.name}: all values are zero")
    if bad:
        return Finding("weights", Outcome.PROBLEM, _listed(bad))
    if odd:
        return Finding("weights", Outcome.WARNING, _listed(odd))
    return Finding("weights", Outcome.GOOD, f"all {sum(spec.count for spec in checkpoint.specs):,} values are finite numbers")


def _may_be_zero(spec: TensorSpec) -> bool:
    """Biases and gates may be; a matrix or a norm of zeros makes a layer that does nothing."""
    return spec.count == 1 or spec.kind.value in ("bias", "gate")


def _listed(lines: list[str]) -> str:
    more = [f"and {len(lines) - MAX_LISTED} more"] if len(lines) > MAX_LISTED else []
    return "\n".join([*lines[:MAX_LISTED], *more])


def scanned_bytes(checkpoint: Checkpoint) -> int:
    """What `scan_weights` will tell about."""
    return sum(stored_bytes(source.dtype, source.shape) for source in (checkpoint.source(spec.name) for spec in checkpoint.specs))


def _scan(source: Source, told: Told) -> tuple[int, bool]:
    """How many values are not finite, and whether all are zero."""
    infinite, is_zero = 0, True
    for piece in pieces(source):
        infinite += _not_finite(source.dtype, piece)
        is_zero = is_zero and not piece.any()
        told.add(piece.nbytes)
    return infinite, is_zero


def _not_finite(dtype: DType, piece: NDArray[np.uint8]) -> int:
    if dtype in EXPONENTS:
        kind, exponent = EXPONENTS[dtype]
        bits = np.ascontiguousarray(piece).view(kind)
        return int(np.count_nonzero((bits & kind(exponent)) == kind(exponent)))
    columns = piece.shape[1] // dtype.block_bytes * dtype.block
    step = max(1, (1 << 22) // columns)
    return sum(
        int(np.count_nonzero(~np.isfinite(dequantize(dtype, piece[at : at + step], (len(piece[at : at + step]), columns)))))
        for at in range(0, len(piece), step)
    )


def check_published_sums(checkpoint: Checkpoint) -> Finding | None:
    """The checksums that Meta's files carry: of each member of a .pth, and the MD5 list beside them. None where there are none."""
    if checkpoint.layout != "meta":
        return None
    wrong: list[str] = []
    for path in shard_paths(checkpoint.path):
        file = MappedFile(path)
        wrong += [f"{path.name}: the bytes of {name} do not have their checksum" for name in read_pth(file).damaged()]
        file.close()
    listed = 0
    for name in CHECKSUMS:
        if (checkpoint.path / name).is_file():
            found, problems = _checklist(checkpoint.path, name)
            listed += found
            wrong += problems
    if wrong:
        return Finding("checksums", Outcome.PROBLEM, _listed(wrong))
    also = f", and the MD5 of {listed} files in checklist.chk" if listed else ""
    return Finding("checksums", Outcome.GOOD, f"every member of the .pth files has its CRC-32{also}")


def _checklist(folder: Path, name: str) -> tuple[int, list[str]]:
    """How many files a list of MD5 sums names that are here, and what is wrong with them."""
    problems: list[str] = []
    count = 0
    for line in inside(folder, name, folder.name).read_text("utf-8", "replace").splitlines()[:1000]:
        expected, _, file = line.partition(" ")
        file = file.strip(" *\t")
        if not file:
            continue
        try:
            path = inside(folder, file, name)
        except FileProblem as problem:
            problems.append(str(problem))
            continue
        count += 1
        if _md5(path) != expected.lower():
            problems.append(f"{file}: does not have the MD5 that {name} gives, {expected[:40]!a}")
    return count, problems


def _md5(path: Path) -> str:
    found = hashlib.md5(usedforsecurity=False)
    with path.open("rb") as file:
        while data := file.read(DIGESTED_BYTES):
            found.update(data)
    return found.hexdigest()
