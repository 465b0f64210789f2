"""One layer of a cache page, as native code lays it out (csrc/kernels/kernels.h), read in numpy."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from herd.backends.base import PAGE_TOKENS
from herd.backends.reference.integer_cache import FORMATS, GROUP, IntegerRows, num_groups
from herd.quant.reading import IQ4_VALUES

Bytes = NDArray[np.uint8]
Floats = NDArray[np.float32]
_BLOCK = 16


def read_page(page: Bytes, form: str, kv_heads: int, head_width: int) -> tuple[Floats, Floats]:
    """Keys and values [PAGE_TOKENS, K, H] of one layer of a page, in the format `form` of `KV_CACHES`."""
    page_KX = page.reshape(kv_heads, -1)
    if form in FORMATS:
        width = num_groups(head_width) * GROUP
        keys, values = page_KX[:, : page_KX.shape[1] // 2], page_KX[:, page_KX.shape[1] // 2 :]
        codes = width * PAGE_TOKENS // (1 if form == "int8" else 2)
        read = _key_codes(keys[:, :codes], form, width), _value_codes(values[:, :codes], form, width)
        scales = [_scales(part[:, codes:]) for part in (keys, values)]
        rows = [IntegerRows(part, scale, head_width, form == "int4") for part, scale in zip(read, scales, strict=True)]
        return rows[0].floats(np.dtype(np.float32)), rows[1].floats(np.dtype(np.float32))
    floats_KX = page_KX.view(np.float16 if form == "float16" else np.float32).astype(np.float32)
    keys_end = head_width * PAGE_TOKENS
    k_KBHS = floats_KX[:, :keys_end].reshape(kv_heads, -1, head_width, _BLOCK)
    v_KBSH = floats_KX[:, keys_end:].reshape(kv_heads, -1, PAGE_TOKENS, _BLOCK)
    keys_SKH = k_KBHS.transpose(1, 3, 0, 2).reshape(PAGE_TOKENS, kv_heads, head_width)
    values_SKH = v_KBSH.transpose(2, 0, 1, 3).reshape(PAGE_TOKENS, kv_heads, -1)[..., :head_width]
    return keys_SKH, values_SKH


def _key_codes(stored: Bytes, form: str, width: int) -> NDArray[np.int8]:
    """[K, bytes] -> [PAGE_TOKENS, K, width]."""
    heads = len(stored)
    if form == "int8":
        blocks = stored.view(np.int8).reshape(heads, -1, width // 2, _BLOCK, 2)
        return blocks.transpose(1, 3, 0, 2, 4).reshape(PAGE_TOKENS, heads, width)
    halves = _halves(stored.reshape(heads, -1, width // 4, _BLOCK, 2))  # [K, block, four, token, pair, half]
    return halves.transpose(1, 3, 0, 2, 5, 4).reshape(PAGE_TOKENS, heads, width)


def _value_codes(stored: Bytes, form: str, width: int) -> NDArray[np.int8]:
    """[K, bytes] -> [PAGE_TOKENS, K, width]."""
    heads = len(stored)
    if form == "int8":
        blocks = stored.view(np.int8).reshape(heads, width // _BLOCK, -1, _BLOCK, 2)
        return blocks.transpose(2, 4, 0, 1, 3).reshape(PAGE_TOKENS, heads, width)
    halves = _halves(stored.reshape(heads, width // GROUP, -1, _BLOCK, 2))  # [K, group, pair of tokens, component, token, half]
    return halves.transpose(2, 4, 0, 1, 5, 3).reshape(PAGE_TOKENS, heads, width)


def _halves(stored: Bytes) -> NDArray[np.int8]:
    """The values of the low and the high half of each byte, on a new last axis."""
    return np.asarray(IQ4_VALUES[np.stack([stored & 15, stored >> 4], axis=-1)], np.int8)


def _scales(stored: Bytes) -> NDArray[Any]:
    """[K, bytes] -> float16 [PAGE_TOKENS, K, groups]."""
    return stored.copy().view(np.float16).reshape(len(stored), -1, PAGE_TOKENS).transpose(2, 0, 1)
