"""Memory that is freed stays with the process, so that the next layer's buffers need no pages from the kernel.

glibc maps every large piece of memory from the kernel and gives it back when it is freed; each page is cleared and faulted in anew at
the next use. A training step makes thousands of such pieces: on two cores half of its time went there. `keep_memory` tells
glibc to take large pieces from its heap and to keep what is freed. The price is memory that stays with the process until
it ends.

Elsewhere (macOS, Windows, musl) nothing is done: those allocators have no such switch.
"""

from __future__ import annotations

import ctypes
import os
import sys
from pathlib import Path

# malloc.h's names for what `mallopt` sets.
M_TRIM_THRESHOLD = -1
M_TOP_PAD = -2
M_MMAP_THRESHOLD = -3
M_MMAP_MAX = -4

HUGE_PAGES = Path("/sys/kernel/mm/transparent_hugepage/enabled")
ALONE_BYTES = 16 << 20
"""Pieces from this size on are mapped alone. Steps that learned all weights took 4 % longer than with all of it in the heap (256 tokens,
width 2048) and a sixth less memory; those over a base in blocks a fifth less, and no longer."""
TOP_PAD_BYTES = 64 << 20
"""How much more than was asked for the heap grows by: pages that are fetched in one go."""


def keep_memory(*, in_large_pieces: bool = False) -> bool:
    """Makes this process keep what it frees. Gives whether that could be set: only glibc knows how.

    `in_large_pieces`: whole matrices will come and go, gradients where all weights are learned, or what is decoded of a base in blocks. In
    a heap they leave holes of their size that nothing fits, so where the kernel has huge pages (which cost few faults) large pieces are
    mapped and given back one by one. For torch to ask for such pages this must come before its first tensor.
    """
    libc = _glibc()
    if libc is None:
        return False
    kept = ((M_TRIM_THRESHOLD, -1), (M_TOP_PAD, TOP_PAD_BYTES))  # the heap's end is never given back: -1 is the largest threshold
    if in_large_pieces and _has_huge_pages():
        os.environ["THP_MEM_ALLOC_ENABLE"] = "1"  # read by torch when it makes its first tensor
        settings = ((M_MMAP_THRESHOLD, ALONE_BYTES), *kept)
    else:
        settings = ((M_MMAP_MAX, 0), *kept)  # no piece is mapped alone
    return all(libc.mallopt(name, value) == 1 for name, value in settings)


def _has_huge_pages() -> bool:
    """Whether the kernel gives huge pages to whoever asks."""
    try:
        return "[never]" not in HUGE_PAGES.read_text(encoding="ascii")
    except OSError:
        return False


def _glibc() -> ctypes.CDLL | None:
    if not sys.platform.startswith("linux"):
        return None
    libc = ctypes.CDLL(None)
    return libc if hasattr(libc, "gnu_get_libc_version") and hasattr(libc, "mallopt") else None
