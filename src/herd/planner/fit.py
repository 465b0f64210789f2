"""On which devices a model fits, and on how few: how layers can be shared, and what each device then holds."""

from __future__ import annotations

import math
from collections.abc import Iterator

from herd.models.architecture import Config, architecture_of
from herd.planner.devices import Device
from herd.planner.memory import USABLE_SHARE, Memory, runtime_bytes
from herd.planner.speed import Layout
from herd.records import dataclass

MOST_MACHINES = 16


@dataclass(frozen=True, slots=True)
class Fit:
    """The fewest devices of a kind that hold a model under its load. `layout` None: even `MOST_MACHINES` machines do not; `why` says
    what was in the way or how it is shared. `per_device` are the bytes on the fullest one, of `usable`."""

    device: Device
    layout: Layout | None
    per_device: int
    usable: int
    why: str

    @property
    def devices(self) -> int:
        return 0 if self.layout is None else self.layout.devices


def layouts(config: Config, device: Device) -> Iterator[Layout]:
    """Ways to share the model over the fewest devices first: whole machines or a part of one share each layer; machines take turns."""
    caches = architecture_of(config).caches(config)
    heads, kv_heads = (caches[0].num_heads, caches[0].num_kv_heads) if caches else (1, 1)
    groups = [size for size in range(1, device.most + 1) if _shares(size, heads, kv_heads)]
    found = [Layout(size, 1, max(1, size // kv_heads)) for size in groups]
    widest = groups[-1]
    found += [
        Layout(widest, n, max(1, widest // kv_heads))
        for n in range(2, MOST_MACHINES + 1)
        if n <= config.num_layers and device.kind == "gpu"
    ]
    yield from sorted(found, key=lambda layout: layout.devices)


def _shares(size: int, heads: int, kv_heads: int) -> bool:
    """Whether `size` devices can share the heads evenly: each has whole kv heads, or several have a copy of the same one."""
    return heads % size == 0 and (kv_heads % size == 0 or size % kv_heads == 0)


def smallest(config: Config, memory: Memory, device: Device) -> Fit:
    """The fewest of these devices that hold so much."""
    usable = 0 if device.memory is None else int(device.memory * USABLE_SHARE[device.kind])
    if device.memory is None:
        return Fit(device, None, 0, 0, "its memory is what was built in; say --device-memory")
    last = 0
    for layout in layouts(config, device):
        last = on_each(config, memory, layout, device.kind)
        if last <= usable:
            return Fit(device, layout, last, usable, str(layout))
    return Fit(device, None, last, usable, f"{last / 1e9:,.0f} GB on each of the most that can share it, {usable / 1e9:,.0f} GB usable")


def on_each(config: Config, memory: Memory, layout: Layout, kind: str) -> int:
    """Bytes on the fullest device: layers are whole, so groups of them may differ by one; the ends hold embedding and head too."""
    ends = sum(size for part, size in memory.weights.items() if part in ("embedding", "head", "vision"))
    share = math.ceil(config.num_layers / layout.stages) / config.num_layers
    ends_share = 1.0 if layout.stages == 1 else 0.5
    weights = ((memory.weight_bytes - ends) * share + ends * ends_share) / layout.tensor
    cache = memory.cache_bytes * share / min(layout.tensor, max(1, layout.tensor // layout.copies))
    return int(weights + cache + memory.pictures + memory.buffers + runtime_bytes(config, kind))
