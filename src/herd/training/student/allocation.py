"""Memory that is freed stays with the process, so that the next layer's buffers need no pages from the kernel.

glibc maps every large piece of memory from the kernel and gives it back when it is freed; each page is cleared and faulted in anew at
the next use. A training step makes thousands of such pieces: on two cores half of its time went there. `keep_memory` tells
glibc to take large pieces from its heap and to keep what is freed. The price is memory that stays with the process until
`give_back` is called, or it ends.

Elsewhere (macOS, Windows, musl) nothing is done: those allocators have no such switch.
"""

from __future__ import annotations

import ctypes
import sys

# malloc.h's names for what `mallopt` sets.
M_TRIM_THRESHOLD = -1
M_TOP_PAD = -2
M_MMAP_MAX = -4

TOP_PAD_BYTES = 64 << 20
"""How much more than was asked for the heap grows by: pages that are fetched in one go."""


def keep_memory() -> bool:
    """Makes this process keep what it frees. Gives whether that could be set: only glibc knows how."""
    libc = _glibc()
    if libc is None:
        return False
    # No piece is mapped alone; the heap's end is never given back (-1 is the largest threshold there is).
    settings = ((M_MMAP_MAX, 0), (M_TRIM_THRESHOLD, -1), (M_TOP_PAD, TOP_PAD_BYTES))
    return all(libc.mallopt(name, value) == 1 for name, value in settings)


def give_back() -> bool:
    """Gives the kernel what lies unused. Gives whether anything was."""
    libc = _glibc()
    return libc is not None and libc.malloc_trim(0) == 1


def _glibc() -> ctypes.CDLL | None:
    if not sys.platform.startswith("linux"):
        return None
    libc = ctypes.CDLL(None)
    return libc if hasattr(libc, "gnu_get_libc_version") and hasattr(libc, "mallopt") else None
