"""gloo in a form that processes can leave: torch's own now and then ends them by "terminate called without an active exception".

A worker thread of gloo lets go of an operation's tensors a moment *after* the one who waited for it goes on, and takes Python's lock to do
so. If the interpreter has begun to end by then, Python ends the thread that asks for its lock, C++ is in the midst of a destructor, and
the process dies of SIGABRT with its work done. Destroying a group of processes does not wait for its workers as long as anything refers to
the group, as torch's own caches do of divided weights.

Here a group has one worker, which takes operations in the order in which they are asked for. So once it has let go of the tensor of one
that was asked for last, it has let go of everything: `settled` waits for that. See https://github.com/pytorch/pytorch/issues/190489.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterable
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

IN_ORDER = "gloo_in_order"
"""What torch knows this form of gloo by."""
MOST_S = 10.0


def register() -> str:
    """Makes the form known to torch; its name, for `init_process_group`."""
    if IN_ORDER not in dist.Backend.backend_list:
        dist.Backend.register_backend(IN_ORDER, _made, devices=["cpu"])
    return IN_ORDER


def _made(store: Any, rank: int, size: int, timeout: timedelta) -> Any:
    """One group of processes, over the network interfaces that GLOO_SOCKET_IFNAME names or the one that leads to the host's name."""
    gloo: Any = dist.ProcessGroupGloo
    if not hasattr(gloo, "_Options"):  # a torch that names them otherwise: as it makes one itself
        return gloo(store, rank, size, timeout)
    options = gloo._Options()
    interfaces = [name for name in os.environ.get("GLOO_SOCKET_IFNAME", "").split(",") if name]
    options._devices = [gloo.create_device(interface=name) for name in interfaces] or [gloo.create_default_device()]
    options._timeout = timeout
    options._threads = 1
    return gloo(store, rank, size, options)


def settled(groups: Iterable[dist.ProcessGroup | None] = (None,)) -> None:
    """Waits until the workers of these groups (None: all processes) hold no tensor any more, at most MOST_S seconds: what else may refer to
    one, such as a profiler, must not keep a finished run. Every process of a group has to call it."""
    until = time.monotonic() + MOST_S
    for group in groups:
        last: Any = torch.zeros(1)
        uses = getattr(last, "_use_count", lambda: 0)
        alone = sys.getrefcount(last), uses()
        dist.all_reduce(last, group=group)
        while (sys.getrefcount(last), uses()) != alone and time.monotonic() < until:
            time.sleep(0.001)
