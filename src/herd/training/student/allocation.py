"""Where torch's tensors lie on a processor while somebody trains: in pages of their own, not in the C library's heap.

A step of training makes thousands of large tensors and frees them. glibc either maps each from the kernel, which clears and faults in every
page anew (half of a step's time went there), or keeps all that is freed in its heap. But torch asks for aligned pieces, for which glibc
wants a little more room than the same piece left, and the slivers beside it go to small objects that stay: so the heap grew by all that a
step makes, and twice as much was resident as was alive. `herd._core` has torch ask a region that holds large tensors only, and of
which no more is resident than a step needs at once, and a thirty-second of that (`csrc/base/region.h`, docs/decisions/0026).

Elsewhere (macOS, Windows, musl) tensors lie where torch puts them.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def tensor_memory() -> Iterator[bool]:
    """Inside, large tensors that torch makes on the processor lie in such pages; at the end free ones go back to the system, and tensors
    that are left stay. Gives whether that can be here."""
    import torch  # noqa: F401  (its library is the one that is told)

    from herd import _core

    is_open = _core.open_tensor_memory()
    try:
        yield is_open
    finally:
        if is_open:
            _core.close_tensor_memory()
