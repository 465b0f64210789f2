"""Block-quantised bytes to numbers, on the device where the bytes lie.

What each format means is defined in `herd.quant`; here the same operations in the same order, so the float32 values are the
same bits. b is uint8 [blocks, bytes of a block] and becomes float32 [blocks, elements].
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from herd.backends.torch.constants import constant
from herd.dtypes import DType
from herd.quant.reading import IQ4_VALUES

CHUNK_ELEMENTS = 1 << 24
CHUNK_ELEMENTS_ON_CPU = 1 << 20
"""A dozen intermediate values of a piece stay in a CPU's caches."""


def decode(dtype: DType, stored: Tensor, compute: torch.dtype) -> Tensor:
    """The values of stored rows, uint8 [..., row bytes] -> [..., columns] in the type `compute`. A large matrix is decoded in
    pieces, so that what decoding needs on the way stays small beside it."""
    columns = stored.shape[-1] // dtype.block_bytes * dtype.block
    blocks, meaning = stored.reshape(-1, dtype.block_bytes), _MEANING[dtype.name]
    step = (CHUNK_ELEMENTS_ON_CPU if stored.device.type == "cpu" else CHUNK_ELEMENTS) // dtype.block
    if len(blocks) <= step:
        return meaning(blocks).to(compute).reshape(*stored.shape[:-1], columns)
    values = torch.empty((len(blocks), dtype.block), dtype=compute, device=stored.device)
    for at in range(0, len(blocks), step):
        values[at : at + step] = meaning(blocks[at : at + step])
    return values.reshape(*stored.shape[:-1], columns)


def _shifts(b: Tensor, end: int, step: int = 1) -> Tensor:
    return constant(tuple(range(0, end, step)), torch.uint8, b.device)


def _half(b: Tensor, at: int) -> Tensor:
    """The float16 at byte `at` of each block, [blocks, 1]."""
    return b[:, at : at + 2].contiguous().view(torch.float16).float()


def _signed(b: Tensor) -> Tensor:
    return b.contiguous().view(torch.int8).float()


def _nibbles(b: Tensor, group: int) -> Tensor:
    """Low nibbles of `group` bytes, then their high nibbles, then the next group: [blocks, 2 * bytes]."""
    grouped = b.reshape(len(b), -1, 1, group)
    return torch.cat([grouped & 15, grouped >> 4], dim=2).reshape(len(b), -1)


def _crumbs(b: Tensor) -> Tensor:
    """Two bits each: bits 0-1 of 32 bytes, then bits 2-3, 4-5, 6-7, then the next 32 bytes."""
    return ((b.reshape(len(b), -1, 1, 32) >> _shifts(b, 8, 2)[:, None]) & 3).reshape(len(b), -1)


def _bits(b: Tensor) -> Tensor:
    """Bit 0 of 32 bytes, then bit 1, ... bit 7: [blocks, 256]."""
    return ((b.reshape(len(b), 1, 32) >> _shifts(b, 8)[:, None]) & 1).reshape(len(b), 256)


def _fifth(b: Tensor, at: int) -> Tensor:
    """The 32 bits at byte `at` as fifth bits, [blocks, 32]."""
    return ((b[:, at : at + 4, None] >> _shifts(b, 8)) & 1).reshape(len(b), 32) << 4


def _spread(values: Tensor, q: Tensor) -> Tensor:
    """Per-group `values` [blocks, groups] at each of the elements of q [blocks, elements]."""
    groups = values.shape[1]
    return values[:, :, None].expand(-1, -1, q.shape[1] // groups).reshape(q.shape)


def _q4_0(b: Tensor) -> Tensor:
    return _half(b, 0) * (_nibbles(b[:, 2:], 16).float() - 8)


def _q4_1(b: Tensor) -> Tensor:
    return _half(b, 0) * _nibbles(b[:, 4:], 16).float() + _half(b, 2)


def _q5_0(b: Tensor) -> Tensor:
    return _half(b, 0) * ((_nibbles(b[:, 6:], 16) | _fifth(b, 2)).float() - 16)


def _q5_1(b: Tensor) -> Tensor:
    return _half(b, 0) * (_nibbles(b[:, 8:], 16) | _fifth(b, 4)).float() + _half(b, 2)


def _q8_0(b: Tensor) -> Tensor:
    return _half(b, 0) * _signed(b[:, 2:])


def _q2_k(b: Tensor) -> Tensor:
    q = _crumbs(b[:, 16:80]).float()
    d, m = _half(b, 80) * (b[:, :16] & 15).float(), _half(b, 82) * (b[:, :16] >> 4).float()
    return _spread(d, q) * q - _spread(m, q)


def _q3_k(b: Tensor) -> Tensor:
    q = (_crumbs(b[:, 32:96]) | _bits(b[:, :32]) << 2).float() - 4
    high = ((b[:, 104:108].reshape(-1, 1, 4) >> _shifts(b, 8, 2)[:, None]) & 3).reshape(-1, 16)
    scales = (_nibbles(b[:, 96:104], 8) | high << 4).float() - 32
    return _spread(_half(b, 108) * scales, q) * q


def _scales_and_mins(s: Tensor) -> tuple[Tensor, Tensor]:
    """Eight pairs of 6 bits from 12 bytes."""
    low, mid, high = s[:, :4], s[:, 4:8], s[:, 8:]
    scales = torch.cat([low & 63, (high & 15) | (low >> 6) << 4], dim=1)
    mins = torch.cat([mid & 63, (high >> 4) | (mid >> 6) << 4], dim=1)
    return scales.float(), mins.float()


def _q4_k(b: Tensor) -> Tensor:
    scales, mins = _scales_and_mins(b[:, 4:16])
    q = _nibbles(b[:, 16:], 32).float()
    return _spread(_half(b, 0) * scales, q) * q - _spread(_half(b, 2) * mins, q)


def _q5_k(b: Tensor) -> Tensor:
    scales, mins = _scales_and_mins(b[:, 4:16])
    q = (_nibbles(b[:, 48:], 32) | _bits(b[:, 16:48]) << 4).float()
    return _spread(_half(b, 0) * scales, q) * q - _spread(_half(b, 2) * mins, q)


def _q6_k(b: Tensor) -> Tensor:
    q = (_nibbles(b[:, :128], 64) | _crumbs(b[:, 128:192]) << 4).float() - 32
    return _spread(_half(b, 208) * _signed(b[:, 192:208]), q) * q


def _iq4(codes: Tensor) -> Tensor:
    """The values that 4-bit codes stand for."""
    table = constant(tuple(float(value) for value in IQ4_VALUES), torch.float32, codes.device)
    return table[codes.long()]


def _iq4_nl(b: Tensor) -> Tensor:
    return _half(b, 0) * _iq4(_nibbles(b[:, 2:], 16))


def _iq4_xs(b: Tensor) -> Tensor:
    high = ((b[:, 2:4, None] >> _shifts(b, 8, 2)) & 3).reshape(-1, 8)
    scales = (_nibbles(b[:, 4:8], 1) | high << 4).float() - 32
    q = _iq4(_nibbles(b[:, 8:], 16))
    return _spread(_half(b, 0) * scales, q) * q


_MEANING: Mapping[str, Callable[[Tensor], Tensor]] = {
    "q4_0": _q4_0, "q4_1": _q4_1, "q5_0": _q5_0, "q5_1": _q5_1, "q8_0": _q8_0, "q2_k": _q2_k, "q3_k": _q3_k,
    "q4_k": _q4_k, "q5_k": _q5_k, "q6_k": _q6_k, "iq4_nl": _iq4_nl, "iq4_xs": _iq4_xs,
}  # fmt: skip
