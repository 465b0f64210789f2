"""Stored bytes to float32: one function per block format, b -> float32 [blocks, elements].

The order of operations is part of the definition: float32, scale times integer first, then the offset.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from herd import dtypes
from herd.dtypes import DType

Bytes = NDArray[np.uint8]
# Small integers out of bytes; numpy's stubs do not say that a uint8 stays one when it is shifted.
Integers = NDArray[Any]
Floats = NDArray[np.float32]

# The sixteen values of IQ4_NL and IQ4_XS.
IQ4_VALUES = np.array([-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113], dtype=np.float32)
CHUNK_ELEMENTS = 1 << 18


def _e4m3() -> Floats:
    """All values of e4m3fn: sign, 4 bits of exponent (bias 7), 3 of mantissa; no infinities, 0x7f and 0xff are NaN."""
    code = np.arange(256)
    exponent, mantissa = code >> 3 & 15, (code & 7).astype(np.float32)
    values = np.where(exponent == 0, mantissa * np.float32(2.0**-9), (8 + mantissa) * np.exp2(exponent - np.float32(10)))
    values = np.where(code & 127 == 127, np.float32(np.nan), values)
    return np.where(code >> 7, -values, values).astype(np.float32)


# The value of every byte of the e4m3fn format (arXiv 2209.05433).
E4M3_VALUES = _e4m3()


def dequantize(dtype: DType, data: Any, shape: tuple[int, ...]) -> Floats:
    """float32 [shape] from the stored bytes `data` (any uint8 buffer of exactly that many). `ValueError` on another size."""
    flat = (np.ascontiguousarray(data) if isinstance(data, np.ndarray) else np.frombuffer(data, dtype=np.uint8)).reshape(-1).view(np.uint8)
    count = math.prod(shape)
    if count % dtype.block or flat.size != count // dtype.block * dtype.block_bytes:
        raise ValueError(f"{flat.size} bytes are not a {dtype.name} tensor of shape {shape}")
    if dtype is dtypes.F32:
        return flat.view(np.float32).reshape(shape).copy()
    if dtype is dtypes.F16:
        return flat.view(np.float16).astype(np.float32).reshape(shape)
    if dtype is dtypes.BF16:
        return (flat.view(np.uint16).astype(np.uint32) << 16).view(np.float32).reshape(shape)
    if dtype is dtypes.I8:
        return flat.view(np.int8).astype(np.float32).reshape(shape)
    if dtype is dtypes.F8_E4M3:
        return E4M3_VALUES[flat].reshape(shape)
    blocks, meaning = flat.reshape(-1, dtype.block_bytes), _DEQUANTIZE[dtype.name]
    out = np.empty((len(blocks), dtype.block), dtype=np.float32)
    step = max(1, CHUNK_ELEMENTS // dtype.block)
    with np.errstate(all="ignore"):
        for at in range(0, len(blocks), step):
            out[at : at + step] = meaning(blocks[at : at + step])
    return out.reshape(shape)


def _half(b: Bytes, at: int) -> Floats:
    """The float16 at byte `at` of each block, [blocks, 1]."""
    return np.ascontiguousarray(b[:, at : at + 2]).view(np.float16).astype(np.float32)


def _nibbles(b: Bytes, group: int) -> Integers:
    """Low nibbles of `group` bytes, then their high nibbles, then the next group: [blocks, 2 * bytes]."""
    grouped = b.reshape(len(b), -1, 1, group)
    return np.concatenate([grouped & 15, grouped >> 4], axis=2).reshape(len(b), -1)


def _crumbs(b: Bytes) -> Integers:
    """Two bits each: bits 0-1 of 32 bytes, then bits 2-3, 4-5, 6-7, then the next 32 bytes."""
    return ((b.reshape(len(b), -1, 1, 32) >> np.arange(0, 8, 2, dtype=np.uint8)[:, None]) & 3).reshape(len(b), -1)


def _bits(b: Bytes) -> Integers:
    """Bit 0 of 32 bytes, then bit 1, ... bit 7: [blocks, 256]."""
    return ((b.reshape(len(b), 1, 32) >> np.arange(8, dtype=np.uint8)[:, None]) & 1).reshape(len(b), 256)


def _fifth(b: Bytes, at: int) -> Integers:
    """The 32 bits at byte `at` as fifth bits, [blocks, 32]."""
    return np.unpackbits(np.ascontiguousarray(b[:, at : at + 4]), axis=1, bitorder="little") << 4


def _q4_0(b: Bytes) -> Floats:
    return _half(b, 0) * (_nibbles(b[:, 2:], 16).astype(np.float32) - 8)


def _q4_1(b: Bytes) -> Floats:
    return _half(b, 0) * _nibbles(b[:, 4:], 16).astype(np.float32) + _half(b, 2)


def _q5_0(b: Bytes) -> Floats:
    return _half(b, 0) * ((_nibbles(b[:, 6:], 16) | _fifth(b, 2)).astype(np.float32) - 16)


def _q5_1(b: Bytes) -> Floats:
    return _half(b, 0) * (_nibbles(b[:, 8:], 16) | _fifth(b, 4)).astype(np.float32) + _half(b, 2)


def _q8_0(b: Bytes) -> Floats:
    return _half(b, 0) * b[:, 2:].view(np.int8).astype(np.float32)


def _spread(values: Floats, q: Floats) -> Floats:
    """Per-group `values` [blocks, groups] at each of the elements of q [blocks, elements]."""
    return np.repeat(values, q.shape[1] // values.shape[1], axis=1)


def _q2_k(b: Bytes) -> Floats:
    q = _crumbs(b[:, 16:80]).astype(np.float32)
    d, m = _half(b, 80) * (b[:, :16] & 15).astype(np.float32), _half(b, 82) * (b[:, :16] >> 4).astype(np.float32)
    return _spread(d, q) * q - _spread(m, q)


def _q3_k(b: Bytes) -> Floats:
    q: Floats = (_crumbs(b[:, 32:96]) | _bits(b[:, :32]) << 2).astype(np.float32) - 4
    high = (b[:, 104:108].reshape(-1, 1, 4) >> np.arange(0, 8, 2, dtype=np.uint8)[:, None]) & 3
    scales: Floats = (_nibbles(b[:, 96:104], 8) | high.reshape(-1, 16) << 4).astype(np.float32) - 32
    return _spread(_half(b, 108) * scales, q) * q


def _scales_and_mins(s: Bytes) -> tuple[Floats, Floats]:
    """Eight pairs of 6 bits from 12 bytes."""
    low, mid, high = s[:, :4], s[:, 4:8], s[:, 8:]
    scales = np.concatenate([low & 63, (high & 15) | (low >> 6) << 4], axis=1)
    mins = np.concatenate([mid & 63, (high >> 4) | (mid >> 6) << 4], axis=1)
    return scales.astype(np.float32), mins.astype(np.float32)


def _q4_k(b: Bytes) -> Floats:
    scales, mins = _scales_and_mins(b[:, 4:16])
    q = _nibbles(b[:, 16:], 32).astype(np.float32)
    return _spread(_half(b, 0) * scales, q) * q - _spread(_half(b, 2) * mins, q)


def _q5_k(b: Bytes) -> Floats:
    scales, mins = _scales_and_mins(b[:, 4:16])
    q: Floats = (_nibbles(b[:, 48:], 32) | _bits(b[:, 16:48]) << 4).astype(np.float32)
    return _spread(_half(b, 0) * scales, q) * q - _spread(_half(b, 2) * mins, q)


def _q6_k(b: Bytes) -> Floats:
    q: Floats = (_nibbles(b[:, :128], 64) | _crumbs(b[:, 128:192]) << 4).astype(np.float32) - 32
    return _spread(_half(b, 208) * b[:, 192:208].view(np.int8).astype(np.float32), q) * q


def _iq4_nl(b: Bytes) -> Floats:
    q: Floats = IQ4_VALUES[_nibbles(b[:, 2:], 16)]
    return _half(b, 0) * q


def _iq4_xs(b: Bytes) -> Floats:
    high = np.ascontiguousarray(b[:, 2:4]).view(np.uint16) >> np.arange(0, 16, 2, dtype=np.uint16) & 3
    scales: Floats = (_nibbles(b[:, 4:8], 1) | high.astype(np.uint8) << 4).astype(np.float32) - 32
    q: Floats = IQ4_VALUES[_nibbles(b[:, 8:], 16)]
    return _spread(_half(b, 0) * scales, q) * q


_DEQUANTIZE: dict[str, Callable[[Bytes], Floats]] = {
    "q4_0": _q4_0, "q4_1": _q4_1, "q5_0": _q5_0, "q5_1": _q5_1, "q8_0": _q8_0, "q2_k": _q2_k, "q3_k": _q3_k,
    "q4_k": _q4_k, "q5_k": _q5_k, "q6_k": _q6_k, "iq4_nl": _iq4_nl, "iq4_xs": _iq4_xs,
}  # fmt: skip
