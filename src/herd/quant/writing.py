"""float32 to stored bytes: one function per block format, x float32 [blocks, elements] -> b uint8 [blocks, block bytes]."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from herd import dtypes
from herd.dtypes import DType
from herd.errors import FileProblem
from herd.quant import packing
from herd.quant.reading import CHUNK_ELEMENTS, IQ4_VALUES, Bytes, Floats
from herd.quant.search import fit_affine, fit_scale, inverse

ACTIVATION_GROUP = 32
_IQ4_MIDDLES = (IQ4_VALUES[1:] + IQ4_VALUES[:-1]) / 2


def quantize(dtype: DType, x: Floats) -> Bytes:
    """Stored bytes uint8 [rows, row_bytes] of x float32 [rows, columns].

    `FileProblem` if a row does not hold whole blocks, or if a value is not finite or too large for the format.
    """
    rows, columns = x.shape
    row_bytes = dtype.row_bytes(columns)
    flat = np.ascontiguousarray(x, dtype=np.float32)
    if dtype is dtypes.F32:
        return flat.view(np.uint8).reshape(rows, row_bytes).copy()
    if dtype is dtypes.BF16:
        return _to_bf16(flat).view(np.uint8).reshape(rows, row_bytes)
    if dtype is dtypes.F16:
        with np.errstate(all="ignore"):
            halves = flat.astype(np.float16)
        if np.any(np.isinf(halves) & np.isfinite(flat)):
            raise FileProblem("A weight is larger than 65504, the most that f16 can hold; store it as bf16 or f32.")
        return halves.view(np.uint8).reshape(rows, row_bytes)
    blocks, layout = flat.reshape(-1, dtype.block), _QUANTIZE[dtype.name]
    out = np.empty((len(blocks), dtype.block_bytes), dtype=np.uint8)
    step = max(1, CHUNK_ELEMENTS // dtype.block)
    for at in range(0, len(blocks), step):
        chunk = blocks[at : at + step]
        if not np.all(np.isfinite(chunk)):
            raise FileProblem(f"A weight is not a finite number; {dtype.name} cannot store it.")
        with np.errstate(all="ignore"):
            out[at : at + step] = layout(chunk)
    return out.reshape(rows, row_bytes)


def quantize_activations(x_TK: Floats) -> tuple[NDArray[np.int8], Floats]:
    """Activations as int8: (q [T, K], scale [T, K / 32]); x is about q * scale of its group of 32.

    scale = max|x| / 127 in float32; q = x * (1 / scale) rounded half to even; a group of zeros gets zeros.
    """
    tokens, width = x_TK.shape
    groups = np.ascontiguousarray(x_TK, dtype=np.float32).reshape(tokens, width // ACTIVATION_GROUP, ACTIVATION_GROUP)
    scale = np.abs(groups).max(axis=-1) / np.float32(127)
    q = np.rint(groups * inverse(scale)[..., None]).astype(np.int8)
    return q.reshape(tokens, width), scale


def _to_bf16(x: Floats) -> NDArray[np.uint16]:
    """Rounded to nearest even; a NaN stays one and becomes quiet."""
    bits = x.view(np.uint32)
    rounded = (bits.astype(np.uint64) + 0x7FFF + (bits >> 16 & 1)) >> 16
    return np.where((bits & 0x7FFFFFFF) > 0x7F800000, bits >> 16 | 64, rounded).astype(np.uint16)


def _write_centred(x: Floats, half: int) -> tuple[Floats, Bytes]:
    """(d, q) of Q4_0 and Q5_0: the element of largest magnitude becomes -half."""
    largest = np.take_along_axis(x, np.abs(x).argmax(axis=-1, keepdims=True), axis=-1)
    d = largest / np.float32(-half)
    return d, np.minimum(np.trunc(x * inverse(d) + np.float32(half + 0.5)), np.float32(2 * half - 1)).astype(np.uint8)


def _write_offset(x: Floats, levels: int) -> tuple[Floats, Floats, Bytes]:
    """(d, m, q) of Q4_1 and Q5_1: the range of the block divided evenly."""
    m = x.min(axis=-1, keepdims=True)
    d = (x.max(axis=-1, keepdims=True) - m) / np.float32(levels)
    return d, m, np.minimum(np.trunc((x - m) * inverse(d) + np.float32(0.5)), np.float32(levels)).astype(np.uint8)


def _write_q4_0(x: Floats) -> Bytes:
    return packing.pack_q4_0(*_write_centred(x, 8))


def _write_q4_1(x: Floats) -> Bytes:
    return packing.pack_q4_1(*_write_offset(x, 15))


def _write_q5_0(x: Floats) -> Bytes:
    return packing.pack_q5_0(*_write_centred(x, 16))


def _write_q5_1(x: Floats) -> Bytes:
    return packing.pack_q5_1(*_write_offset(x, 31))


def _write_q8_0(x: Floats) -> Bytes:
    d = np.abs(x).max(axis=1, keepdims=True) / np.float32(127)
    scaled = x * inverse(d)
    whole = np.floor(np.abs(scaled))
    q = np.sign(scaled) * (whole + (np.abs(scaled) - whole >= 0.5))
    return packing.pack_q8_0(d, q.astype(np.int8))


def _grouped(x: Floats, size: int) -> Floats:
    return x.reshape(len(x), -1, size)


def _share(scales: Floats, low: int) -> tuple[Floats, Floats]:
    """Signed group scales [blocks, groups] as (d [blocks, 1], integers from `low` to -low - 1): the largest becomes `low`."""
    largest = np.take_along_axis(scales, np.abs(scales).argmax(axis=-1, keepdims=True), axis=-1)
    d = packing.rounded_half(largest / np.float32(low))
    return d, np.clip(np.rint(scales * inverse(d)), low, -low - 1)


def _share_positive(scales: Floats, high: int) -> tuple[Floats, Bytes]:
    """Group scales or offsets from zero up as (d [blocks, 1], integers up to `high`)."""
    d = packing.rounded_half(scales.max(axis=-1, keepdims=True) / np.float32(high))
    return d, np.clip(np.rint(scales * inverse(d)), 0, high).astype(np.uint8)


def _write_signed(x: Floats, size: int, half: int, scale_low: int) -> tuple[Floats, Floats, Bytes]:
    """(d, group scales, q from 0 to 2 * half - 1) of Q3_K and Q6_K: groups of `size` centred on `half`."""
    groups = _grouped(x, size)
    found = fit_scale(groups, lambda scaled: np.clip(np.rint(scaled), -half, half - 1), (-half,))
    d, scales = _share(found[..., 0], scale_low)
    q = np.clip(np.rint(groups * inverse((d * scales)[..., None])), -half, half - 1) + half
    return d, scales, q.astype(np.uint8).reshape(len(x), -1)


def _write_affine(x: Floats, size: int, levels: int, high: int) -> tuple[Floats, Bytes, Floats, Bytes, Bytes]:
    """(d, scales, dmin, mins, q) of Q2_K, Q4_K and Q5_K: groups of `size` with a scale and an offset each, up to `high`."""
    groups = _grouped(x, size)
    scale, offset = fit_affine(groups, levels)
    d, scales = _share_positive(scale[..., 0], high)
    dmin, mins = _share_positive(offset[..., 0], high)
    shifted = groups + (dmin * mins.astype(np.float32))[..., None]
    q = np.clip(np.rint(shifted * inverse((d * scales.astype(np.float32))[..., None])), 0, levels)
    return d, scales, dmin, mins, q.astype(np.uint8).reshape(len(x), -1)


def _write_q2_k(x: Floats) -> Bytes:
    return packing.pack_q2_k(*_write_affine(x, 16, 3, 15))


def _write_q3_k(x: Floats) -> Bytes:
    return packing.pack_q3_k(*_write_signed(x, 16, 4, -32))


def _write_q4_k(x: Floats) -> Bytes:
    return packing.pack_q4_k(*_write_affine(x, 32, 15, 63))


def _write_q5_k(x: Floats) -> Bytes:
    return packing.pack_q5_k(*_write_affine(x, 32, 31, 63))


def _write_q6_k(x: Floats) -> Bytes:
    return packing.pack_q6_k(*_write_signed(x, 16, 32, -128))


def _nearest_iq4(scaled: Floats) -> Floats:
    return IQ4_VALUES[np.searchsorted(_IQ4_MIDDLES, scaled)]


def _write_iq4_nl(x: Floats) -> Bytes:
    d = packing.rounded_half(fit_scale(x, _nearest_iq4, (-127, 113)))
    return packing.pack_q4_0(d, np.searchsorted(_IQ4_MIDDLES, x * inverse(d)).astype(np.uint8))


def _write_iq4_xs(x: Floats) -> Bytes:
    groups = _grouped(x, 32)
    d, signed = _share(fit_scale(groups, _nearest_iq4, (-127, 113))[..., 0], -32)
    q = np.searchsorted(_IQ4_MIDDLES, groups * inverse((d * signed)[..., None])).astype(np.uint8).reshape(len(x), -1)
    return packing.pack_iq4_xs(d, signed, q)


_QUANTIZE: dict[str, Callable[[Floats], Bytes]] = {
    "q4_0": _write_q4_0, "q4_1": _write_q4_1, "q5_0": _write_q5_0, "q5_1": _write_q5_1, "q8_0": _write_q8_0, "q2_k": _write_q2_k,
    "q3_k": _write_q3_k, "q4_k": _write_q4_k, "q5_k": _write_q5_k, "q6_k": _write_q6_k, "iq4_nl": _write_iq4_nl, "iq4_xs": _write_iq4_xs,
}  # fmt: skip
