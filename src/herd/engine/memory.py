"""How much memory the cache may take when nobody says how much."""

from __future__ import annotations

import os
from pathlib import Path

SHARE_OF_AVAILABLE = 4


def available_bytes(root: Path = Path("/")) -> int | None:
    """Bytes this process could still use without swapping, also under a control group's limit; None if the system does not say.

    Sources: MemAvailable of proc(5); memory.max and memory.current of the kernel's control groups, version 2.
    """
    found = [value for value in (_from_proc(root), _from_control_group(root)) if value is not None]
    if found:
        return min(found)
    names = getattr(os, "sysconf_names", {})
    if "SC_AVPHYS_PAGES" in names and "SC_PAGE_SIZE" in names:
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return None


def default_num_pages(context_pages: int, page_bytes: int, available: int | None) -> int:
    """Pages for one full context, or as many as fit into a quarter of the available memory; at least one."""
    if available is None:
        return context_pages
    return max(1, min(context_pages, available // SHARE_OF_AVAILABLE // max(1, page_bytes)))


def _from_proc(root: Path) -> int | None:
    try:
        text = (root / "proc/meminfo").read_text("ascii")
    except (OSError, ValueError):
        return None
    for line in text.splitlines():
        name, _, rest = line.partition(":")
        words = rest.split()
        if name == "MemAvailable" and words and words[0].isdigit():
            return int(words[0]) * 1024
    return None


def _from_control_group(root: Path) -> int | None:
    folder = root / "sys/fs/cgroup"
    try:
        largest = (folder / "memory.max").read_text("ascii").strip()
        current = (folder / "memory.current").read_text("ascii").strip()
    except (OSError, ValueError):
        return None
    return max(0, int(largest) - int(current)) if largest.isdigit() and current.isdigit() else None
