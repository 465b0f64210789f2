"""Meta's own quantised releases: FP8 feed-forwards (3.1 405B), and int4 with int8 embeddings (3.2, SpinQuant and QLoRA).

    FP8       w1, w2, w3 are e4m3 with a float32 scale per row in fp8_scales_<shard>.pt, keys "<layer>_feed_forward.w1_<shard>"
    int4      `weight` int8 from -8 to 7, `scales` [rows, groups]; embedding and head int8 with a scale per row
    QLoRA     as int4, and y = x W^T + scale * (x A^T) B^T with adaptor.A, adaptor.B
    SpinQuant as int4, and the input of w2 goes through a normalised Walsh-Hadamard transform first

Values are read as float32, q * scale; adaptors and the transform become part of their matrix. Activations stay float, where
Meta's programs round them to 8 bits. Sources: Meta's `llama3/quantization/loader.py`, arXiv 2405.16406 (SpinQuant).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from herd.checkpoints import names
from herd.checkpoints.config_reader import ConfigReader, shown
from herd.checkpoints.folder import inside
from herd.checkpoints.pth import read_pth
from herd.checkpoints.sources import ByRows, Bytes, Reshaped, Scaled, Source, StoredTensor
from herd.dtypes import BF16, F8_E4M3, F16, F32, I8, DType
from herd.errors import FileProblem
from herd.files import MappedFile
from herd.models.weights import TensorSpec
from herd.quant import dequantize

SCALE_DTYPES: dict[str, DType] = {"F32": F32, "F16": F16, "BF16": BF16}
SCHEME = "int4_weight_int8_dynamic_activation"
MAX_RANK = 1 << 12


class Quantised:
    """What the files of a folder say about quantised weights. `problems` are found at once, `used` are names it accounts for."""

    def __init__(self, folder: Path, values: Mapping[str, Any], shards: list[dict[str, StoredTensor]]) -> None:
        self.problems: list[str] = []
        self.used: set[str] = set()
        self.files: list[MappedFile] = []
        self._shards = shards
        self._fp8: list[dict[str, StoredTensor]] = []
        self._spin, self._lora = self._read_args(values)
        dtypes = {tensor.dtype for shard in shards for tensor in shard.values()}
        if F8_E4M3 in dtypes:
            self._fp8 = [self._scales(folder, number) for number in range(len(shards))]
        if I8 in dtypes and len(shards) > 1:
            self.problems.append(f"int8 weights in {len(shards)} shards are not known; Meta's are in one")

    def _read_args(self, values: Mapping[str, Any]) -> tuple[bool, tuple[int, float] | None]:
        """Whether w2 is rotated, and the adaptors' rank and scale."""
        spin, lora = False, None
        if isinstance(args := values.get("quantization_args"), dict):
            r = ConfigReader(args, "params.json", prefix="quantization_args.")
            r.expect("scheme", SCHEME, because="no other is published")
            # Cards and files disagree about the group size; the shape of the scales tells it.
            r.raw("group_size")
            spin = r.boolean("spinquant", default=False)
            r.finish("These are not Meta's quantised weights.")
        if isinstance(args := values.get("lora_args"), dict):
            r = ConfigReader(args, "params.json", prefix="lora_args.")
            lora = (r.integer("rank", highest=MAX_RANK), r.number("scale", lowest=1e-6, highest=1e6))
            r.finish("These are not Meta's adaptors.")
        for key in ("quantization_args", "lora_args"):
            if not isinstance(values.get(key), dict | None):
                self.problems.append(f"{key} is {shown(values[key])}; allowed is an object")
        return spin, lora

    def _scales(self, folder: Path, number: int) -> dict[str, StoredTensor]:
        path = inside(folder, f"fp8_scales_{number}.pt", f"consolidated.{number:02d}.pth")
        file = MappedFile(path)
        self.files.append(file)
        entries = read_pth(file).tensors
        return {
            name: StoredTensor(f"{path.name}: {name}", SCALE_DTYPES[entry.dtype], entry.shape, file, entry.offset)
            for name, entry in entries.items()
            if entry.dtype in SCALE_DTYPES
        }

    def scales(self, key: str, number: int) -> StoredTensor | None:
        """The scales called `key` in the file beside shard `number`."""
        return self._fp8[number].get(key)

    def leaf(self, spec: TensorSpec, piece: StoredTensor, number: int) -> Source:
        """The piece of a weight in shard `number`, with its scales, adaptors and rotation. `FileProblem` if one is missing or odd."""
        if piece.dtype is F8_E4M3:
            return Scaled(piece, self._row_scales(spec, piece, number))
        if piece.dtype is not I8:
            return piece
        module = names.in_file(names.META, spec.name).removesuffix("weight")
        leaf: Source = Scaled(piece, self._group_scales(piece, module, number))
        if self._spin and spec.name.endswith("ffn.down"):
            leaf = Rotated(leaf)
        return self._adapted(leaf, module, number)

    def _row_scales(self, spec: TensorSpec, piece: StoredTensor, number: int) -> Source:
        parts = names.in_file(names.META, spec.name).split(".")
        key = f"{parts[1]}_feed_forward.{parts[3]}_{number}" if len(parts) == 5 else ""
        scales = self._fp8[number].get(key)
        if scales is None:
            raise FileProblem(f"{piece.name} is e4m3 and fp8_scales_{number}.pt has no {key or 'scale for it'}")
        return self._one_per_row(piece, scales)

    def _group_scales(self, piece: StoredTensor, module: str, number: int) -> Source:
        self.used |= {f"{module}scales", f"{module}zeros"}
        scales = self._shards[number].get(f"{module}scales")
        if scales is None or scales.dtype not in (F32, F16, BF16):
            raise FileProblem(f"{piece.name} is int8 and {module}scales is missing or no float tensor")
        if f"{module}zeros" in self._shards[number]:
            raise FileProblem(f"{module}zeros is there; Meta's quantised weights are symmetric and have none")
        rows, columns = piece.shape
        groups = scales.shape[1] if len(scales.shape) == 2 else 1
        if len(scales.shape) == 2 and scales.shape[0] == rows and groups and columns % groups == 0:
            return scales
        return self._one_per_row(piece, scales)

    def _one_per_row(self, piece: StoredTensor, scales: StoredTensor) -> Source:
        rows = piece.shape[0]
        if scales.shape not in ((rows,), (rows, 1), (1, rows)):
            raise FileProblem(
                f"{scales.name} has shape {list(scales.shape)}; one scale for each of the {rows} rows of {piece.name} is expected"
            )
        return Reshaped(scales, (rows, 1))

    def _adapted(self, leaf: Source, module: str, number: int) -> Source:
        down, up = (self._shards[number].get(f"{module}adaptor.{name}.weight") for name in "AB")
        if down is None and up is None:
            return leaf
        rows, columns = leaf.shape
        if self._lora is None or down is None or up is None:
            raise FileProblem(f"{module}adaptor is there in part, or params.json has no lora_args")
        rank, scale = self._lora
        plain = {down.dtype, up.dtype} <= {F32, F16, BF16}
        if (down.shape, up.shape) != ((rank, columns), (rows, rank)) or not plain:
            raise FileProblem(
                f"{module}adaptor has A {list(down.shape)} and B {list(up.shape)}; expected are [{rank}, {columns}] and [{rows}, {rank}]"
            )
        self.used |= {f"{module}adaptor.A.weight", f"{module}adaptor.B.weight"}
        return Updated(leaf, down, up, scale)


@dataclass(frozen=True, slots=True)
class Updated(ByRows):
    """A matrix and its low-rank update as one, float32: W + scale * up down."""

    base: Source
    down: Source
    up: Source
    scale: float

    @property
    def dtype(self) -> DType:
        return F32

    @property
    def shape(self) -> tuple[int, ...]:
        return self.base.shape

    @property
    def tensors(self) -> tuple[StoredTensor, ...]:
        return (*self.base.tensors, *self.down.tensors, *self.up.tensors)

    def read(self, first: int, last: int) -> Bytes:
        base = dequantize(self.base.dtype, self.base.read(first, last), (last - first, self.shape[1]))
        up = dequantize(self.up.dtype, self.up.read(first, last), (last - first, self.up.shape[1]))
        base += np.float32(self.scale) * (up @ dequantize(self.down.dtype, self.down.rows(), self.down.shape))
        return base.view(np.uint8)


@dataclass(frozen=True, slots=True)
class Rotated(ByRows):
    """W H for a matrix whose input was to go through the normalised Walsh-Hadamard transform H: x H W^T = x (W H)^T. float32."""

    tensor: Source

    @property
    def dtype(self) -> DType:
        return F32

    @property
    def shape(self) -> tuple[int, ...]:
        return self.tensor.shape

    @property
    def tensors(self) -> tuple[StoredTensor, ...]:
        return self.tensor.tensors

    def read(self, first: int, last: int) -> Bytes:
        values = dequantize(self.tensor.dtype, self.tensor.read(first, last), (last - first, self.shape[1]))
        return walsh_hadamard(values).view(np.uint8)


def walsh_hadamard(rows: NDArray[np.float32]) -> NDArray[np.float32]:
    """Each row times the normalised Hadamard matrix in natural (Sylvester) order. `FileProblem` unless its length is a power of two."""
    count, width = rows.shape
    if width & (width - 1):
        raise FileProblem(f"The feed-forward width {width} is no power of two; SpinQuant's rotation is known for those.")
    values = rows.astype(np.float64)
    half = 1
    while half < width:
        pairs = values.reshape(count, width // (2 * half), 2, half)
        values = np.stack([pairs[:, :, 0] + pairs[:, :, 1], pairs[:, :, 0] - pairs[:, :, 1]], axis=2).reshape(count, width)
        half *= 2
    return np.ascontiguousarray(values / np.sqrt(width), np.float32)
