"""What the weights and the cache of a release take, from its config alone."""

from __future__ import annotations

from herd.dtypes import BF16, Q4_0, Q8_0, DType
from herd.models.architecture import Config
from herd.models.sizes import cache_bytes_per_token, weight_bytes
from herd.models.weights import Kind, TensorSpec

STORAGE = {16: BF16, 8: Q8_0, 4: Q4_0}
"""The formats that stand for 16, 8 and 4 bits a weight; the block formats have a scale per 32 weights besides."""


def weights_at(config: Config, bits: int) -> int:
    """Bytes of all weights at 16, 8 or 4 bits. Norms, biases, routers and matrices whose rows are no whole blocks stay at 16."""
    wanted = STORAGE[bits]

    def stored(spec: TensorSpec) -> DType:
        is_cut = not spec.kind.is_vector and spec.kind is not Kind.ROUTER and spec.shape[-1] % wanted.block == 0
        return wanted if is_cut else BF16

    return weight_bytes(config, stored)


def cache_per_token(config: Config) -> int:
    """Bytes of keys and values of one token at 16 bits. Layers that only look back a window or chunk stop growing there."""
    return cache_bytes_per_token(config)
