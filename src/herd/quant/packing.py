"""Block layouts: scales and small integers -> stored bytes, one function per block format.

d, m, dmin float32 [blocks, 1]; q uint8 [blocks, elements], from zero up; scales and mins [blocks, groups].
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from herd.errors import FileProblem

Bytes = NDArray[np.uint8]
# Small integers out of bytes; numpy's stubs do not say that a uint8 stays one when it is shifted.
Integers = NDArray[Any]
Floats = NDArray[np.float32]


def half_bytes(d: Floats) -> Bytes:
    """float16 bytes [blocks, 2] of d [blocks, 1]."""
    halves = d.astype(np.float16)
    if not np.all(np.isfinite(halves)):
        raise FileProblem("A weight is too large for a block format, whose scales are float16; store it as bf16 or f32.")
    return halves.view(np.uint8)


def rounded_half(d: Floats) -> Floats:
    """d as the reader will see it, after float16."""
    return half_bytes(d).view(np.float16).astype(np.float32)


def _pack_nibbles(q: Integers, group: int) -> Integers:
    grouped = q.reshape(len(q), -1, 2, group)
    packed: Integers = grouped[:, :, 0] | grouped[:, :, 1] << 4
    return packed.reshape(len(q), -1)


def _pack_crumbs(q: Integers) -> Integers:
    grouped = q.reshape(len(q), -1, 4, 32)
    packed: Integers = grouped[:, :, 0] | grouped[:, :, 1] << 2 | grouped[:, :, 2] << 4 | grouped[:, :, 3] << 6
    return packed.reshape(len(q), -1)


def _pack_bits(q: Integers) -> Bytes:
    return np.packbits(q.reshape(len(q), 8, 32), axis=1, bitorder="little").reshape(len(q), 32)


def _pack_scales_and_mins(scales: Bytes, mins: Bytes) -> Bytes:
    """Eight pairs of 6 bits in 12 bytes."""
    low = scales[:, :4] | (scales[:, 4:] >> 4) << 6
    mid = mins[:, :4] | (mins[:, 4:] >> 4) << 6
    return np.concatenate([low, mid, (scales[:, 4:] & 15) | mins[:, 4:] << 4], axis=1)


def pack_q4_0(d: Floats, q: Bytes) -> Bytes:
    return np.concatenate([half_bytes(d), _pack_nibbles(q, 16)], axis=1)


def pack_q4_1(d: Floats, m: Floats, q: Bytes) -> Bytes:
    return np.concatenate([half_bytes(d), half_bytes(m), _pack_nibbles(q, 16)], axis=1)


def pack_q5_0(d: Floats, q: Bytes) -> Bytes:
    return np.concatenate([half_bytes(d), np.packbits(q >> 4, axis=1, bitorder="little"), _pack_nibbles(q & 15, 16)], axis=1)


def pack_q5_1(d: Floats, m: Floats, q: Bytes) -> Bytes:
    fifth = np.packbits(q >> 4, axis=1, bitorder="little")
    return np.concatenate([half_bytes(d), half_bytes(m), fifth, _pack_nibbles(q & 15, 16)], axis=1)


def pack_q8_0(d: Floats, q: NDArray[np.int8]) -> Bytes:
    """q from -127 to 127."""
    return np.concatenate([half_bytes(d), q.view(np.uint8)], axis=1)


def pack_q2_k(d: Floats, scales: Bytes, dmin: Floats, mins: Bytes, q: Bytes) -> Bytes:
    return np.concatenate([scales | mins << 4, _pack_crumbs(q), half_bytes(d), half_bytes(dmin)], axis=1)


def pack_q3_k(d: Floats, signed: Floats, q: Bytes) -> Bytes:
    """`signed` group scales from -32 to 31."""
    scales = (signed + 32).astype(np.uint8)
    high = scales.reshape(-1, 4, 4) >> 4
    packed = high[:, 0] | high[:, 1] << 2 | high[:, 2] << 4 | high[:, 3] << 6
    return np.concatenate([_pack_bits(q >> 2), _pack_crumbs(q & 3), _pack_nibbles(scales & 15, 8), packed, half_bytes(d)], axis=1)


def pack_q4_k(d: Floats, scales: Bytes, dmin: Floats, mins: Bytes, q: Bytes) -> Bytes:
    return np.concatenate([half_bytes(d), half_bytes(dmin), _pack_scales_and_mins(scales, mins), _pack_nibbles(q, 32)], axis=1)


def pack_q5_k(d: Floats, scales: Bytes, dmin: Floats, mins: Bytes, q: Bytes) -> Bytes:
    packed = _pack_scales_and_mins(scales, mins)
    return np.concatenate([half_bytes(d), half_bytes(dmin), packed, _pack_bits(q >> 4), _pack_nibbles(q & 15, 32)], axis=1)


def pack_q6_k(d: Floats, signed: Floats, q: Bytes) -> Bytes:
    """`signed` group scales from -128 to 127."""
    return np.concatenate([_pack_nibbles(q & 15, 64), _pack_crumbs(q >> 4), signed.astype(np.int8).view(np.uint8), half_bytes(d)], axis=1)


def pack_iq4_xs(d: Floats, signed: Floats, q: Bytes) -> Bytes:
    """`signed` group scales from -32 to 31."""
    scales = (signed + 32).astype(np.uint8)
    high = ((scales >> 4).astype(np.uint16) << np.arange(0, 16, 2, dtype=np.uint16)).sum(axis=1, dtype=np.uint16)[:, None]
    return np.concatenate([half_bytes(d), high.view(np.uint8), _pack_nibbles(scales & 15, 1), _pack_nibbles(q, 16)], axis=1)
