"""How much memory the cache may take when nobody says how much."""

from __future__ import annotations

import os
from pathlib import Path

from herd.records import dataclass

SHARE_OF_AVAILABLE = 4


def available_bytes(root: Path = Path("/")) -> int | None:
    """Bytes this process could still use without swapping, also under a control group's limit; None if the system does not say.

    Sources: MemAvailable of proc(5); limits, usage and memory.stat of the kernel's control groups, versions 1 and 2.
    """
    found = [value for value in (_from_proc(root), _from_control_group(root)) if value is not None]
    if found:
        return min(found)
    names = getattr(os, "sysconf_names", {})
    if "SC_AVPHYS_PAGES" in names and "SC_PAGE_SIZE" in names:
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return None


def default_num_pages(context_pages: int, least: int, page_bytes: int, available: int | None) -> int:
    """Pages for one full context, or as many as fit into a quarter of the available memory; at least as many as a token needs."""
    if available is None:
        return context_pages
    return max(least, min(context_pages, available // SHARE_OF_AVAILABLE // max(1, page_bytes)))


def _from_proc(root: Path) -> int | None:
    for line in (_read(root / "proc/meminfo") or "").splitlines():
        name, _, rest = line.partition(":")
        words = rest.split()
        if name == "MemAvailable" and words and words[0].isdigit():
            return int(words[0]) * 1024
    return None


def _from_control_group(root: Path) -> int | None:
    """The least that any group of this process has left. A group's limit binds everything below it, so all the way up counts."""
    rooms = [
        room
        for kind, path in _own_groups(root)
        for folder in _upwards(root / kind.mount, path)
        if (room := _room(folder, kind)) is not None
    ]
    return min(rooms, default=None)


@dataclass(frozen=True, slots=True)
class _Kind:
    """How a version of the kernel's control groups names its files. Both count a group's children in; in version 1 the lines of
    memory.stat that do so begin with total_."""

    mount: str
    limit: str
    usage: str
    reclaimable: tuple[str, ...]


_SECOND = _Kind("sys/fs/cgroup", "memory.max", "memory.current", ("inactive_file", "active_file"))
_FIRST = _Kind("sys/fs/cgroup/memory", "memory.limit_in_bytes", "memory.usage_in_bytes", ("total_inactive_file", "total_active_file"))
_NO_LIMIT = 1 << 60
"""Version 1 writes "no limit" as the largest number of whole pages."""


def _own_groups(root: Path) -> list[tuple[_Kind, str]]:
    """The groups of this process, by version; those at the top where the system does not say which they are."""
    groups = []
    for line in (_read(root / "proc/self/cgroup") or "").splitlines():
        number, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if number == "0" and not controllers:
            groups.append((_SECOND, path))
        elif "memory" in controllers.split(","):
            groups.append((_FIRST, path))
    return groups or [(_SECOND, "/"), (_FIRST, "/")]


def _upwards(mount: Path, path: str) -> list[Path]:
    """The folder of a group and of all that it lies in. In a container the path may be the host's: then only the top is there."""
    parts = [part for part in path.split("/") if part]
    if ".." in parts:
        parts = []
    return [mount.joinpath(*parts[:count]) for count in range(len(parts), -1, -1)]


def _room(folder: Path, kind: _Kind) -> int | None:
    """Bytes that a group may still take; None without a limit. Pages of files are used, but given back when they are wanted."""
    limit, usage = ((_read(folder / name) or "").strip() for name in (kind.limit, kind.usage))
    if not (limit.isdecimal() and usage.isdecimal()) or int(limit) >= _NO_LIMIT:
        return None
    words = (line.split() for line in (_read(folder / "memory.stat") or "").splitlines())
    reclaimable = sum(int(line[1]) for line in words if len(line) == 2 and line[0] in kind.reclaimable and line[1].isdecimal())
    return max(0, int(limit) - max(0, int(usage) - reclaimable))


def _read(path: Path) -> str | None:
    try:
        return path.read_text("ascii")
    except (OSError, ValueError):
        return None
