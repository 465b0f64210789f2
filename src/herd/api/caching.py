"""Where a model's keys and values are kept: pages in memory, and files of a folder for what the memory has no room for.

a quarter of the free memory, or cache_bytes = pages + copies on their way to and from the folder
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from herd.errors import CapacityError
from herd.records import dataclass

if TYPE_CHECKING:
    from herd.api.choices import Choices
    from herd.backends.base import Backend
    from herd.checkpoints.checkpoint import Checkpoint
    from herd.engine.disk import DiskPages
    from herd.models.cache_groups import CacheGroups

SHARE_OF_COPIES = 4
"""Of the memory for keys and values this part may be copies of pages that are written or were read."""


@dataclass(frozen=True, slots=True)
class CacheRoom:
    """How the memory for keys and values is divided. `copies_bytes` is 0 without a folder."""

    num_pages: int
    copies_bytes: int


def cache_room(context: int, groups: CacheGroups, page_bytes: int, choices: Choices, available: int | None) -> CacheRoom:
    """For `available` bytes of free memory, or None where the system does not say. `CapacityError` where `cache_bytes` do not hold a page
    for each of a model's `groups` of layers."""
    from herd.engine.disk import MEMORY_BYTES
    from herd.engine.memory import SHARE_OF_AVAILABLE

    wanted = _wanted_pages(context, groups, choices.parallel)
    bounds = [each for each in (None if available is None else available // SHARE_OF_AVAILABLE, choices.cache_bytes) if each is not None]
    copies = 0
    if choices.cache_folder is not None:
        most = (MEMORY_BYTES, 3 * wanted * page_bytes // 2, *(each // SHARE_OF_COPIES for each in bounds))
        copies = max(_least_copies(page_bytes), min(most))
    least = groups.count * page_bytes
    if choices.cache_bytes is not None and choices.cache_bytes < copies + least:
        beside = f", and pages on their way to and from the disk {copies:,}" if copies else ""
        raise CapacityError(
            f"{choices.cache_bytes:,} bytes are left for keys and values; {groups.page_tokens} tokens of them take {least:,}{beside}."
        )
    pages = [wanted, *((each - copies) // max(1, page_bytes) for each in bounds)]
    return CacheRoom(max(groups.count, min(pages)), copies)


def cache_needs(checkpoint: Checkpoint, load: Mapping[str, Any]) -> tuple[int, int | None]:
    """The least bytes that hold keys and values of a model, loaded with these arguments of `herd.load`, and the most that it has a use
    for: what `cache_room` will say, known before the model is loaded. Of a GPU's memory nothing is said: 0 and None."""
    from herd.backends.base import PAGE_TOKENS
    from herd.models.architecture import architecture_of
    from herd.models.cache_groups import cache_groups
    from herd.models.division import to_run
    from herd.models.sizes import CACHE_DTYPES, cache_bytes_per_token

    if (load.get("device") or "cpu") != "cpu":
        return 0, None
    groups = cache_groups(architecture_of(checkpoint.config).caches(checkpoint.config), PAGE_TOKENS)
    page_bytes = PAGE_TOKENS * cache_bytes_per_token(checkpoint.config, CACHE_DTYPES[_cache_form(checkpoint, load)]) // groups.count
    page_bytes *= to_run(checkpoint.config, 0, load.get("tensor_parallel") or 1).kv_copies  # of all devices together
    copies = _least_copies(page_bytes) if load.get("cache_folder") is not None else 0
    pages = _wanted_pages(load.get("context") or checkpoint.config.context_length, groups, load.get("parallel", 1))
    return groups.count * page_bytes + copies, pages * page_bytes * (2 if copies else 1)


def _cache_form(checkpoint: Checkpoint, load: Mapping[str, Any]) -> str:
    """How keys and values will be kept: as said, else as the backends choose."""
    if (form := load.get("kv_cache") or "auto") != "auto":
        return str(form)
    backend = load.get("backend") or "cpu"
    if backend == "torch":
        return _computed_in(checkpoint, load)
    activations = load.get("activations") or ("int8" if backend == "cpu" else "float32")
    has_blocks = activations == "int8" and any(checkpoint.dtype(spec.name).block > 1 for spec in checkpoint.specs)
    return "float16" if has_blocks else "float32"


def _computed_in(checkpoint: Checkpoint, load: Mapping[str, Any]) -> str:
    """What torch computes in, and keeps keys and values in: as said, else as all plain matrices are stored; "float16" for both types of 16
    bits."""
    if (dtype := load.get("dtype")) is not None:
        return "float16" if dtype in ("float16", "bfloat16") else "float32"
    stored = {checkpoint.dtype(spec.name) for spec in checkpoint.specs if len(spec.shape) >= 2}
    is_short = all(dtype.block == 1 for dtype in stored) and len(stored) == 1 and all(dtype.block_bytes == 2 for dtype in stored)
    return "float16" if is_short else "float32"


def _wanted_pages(context: int, groups: CacheGroups, parallel: int) -> int:
    """Pages for so many answers of full length."""
    from herd.backends.base import BackendOptions

    return groups.pages_for(context, BackendOptions().max_step_tokens) * parallel


def _least_copies(page_bytes: int) -> int:
    """With a folder: one page on its way to it, and one on its way back."""
    from herd.engine.page_files import file_bytes

    return 2 * file_bytes(page_bytes)


def open_disk(checkpoint: Checkpoint, backend: Backend, choices: Choices, room: CacheRoom) -> DiskPages | None:
    """Where keys and values go that the memory has no room for; None: nowhere. Errors as `PageFiles`."""
    if choices.cache_folder is None:
        return None
    from herd.api.sessions import weights_digest
    from herd.backends.base import group_page_bytes
    from herd.engine.disk import DiskPages
    from herd.engine.page_files import LIMIT_BYTES, PageFiles

    adapter = None if choices.adapter is None else Path(choices.adapter)
    page_bytes = group_page_bytes(backend)
    identity = f"{weights_digest(checkpoint, adapter)} {backend.fingerprint} {page_bytes}"
    folder = choices.cache_folder.expanduser().absolute()
    limit = LIMIT_BYTES if choices.cache_disk_bytes is None else choices.cache_disk_bytes
    return DiskPages(PageFiles(folder, identity.encode(), page_bytes, limit), room.copies_bytes)
