"""Sums and gatherings between the processes of one model: NCCL on GPUs, gloo on processors.

A group is an object of its own, not torch's default one, so that several models may be loaded in one program. Processes find each other
by a file in a folder of this user alone; gloo listens on the loopback interface only.
"""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import Any, final

import torch
import torch.distributed as dist
from torch import Tensor

from herd.errors import UsageError

WAIT_S = 120.0
"""A process that waits so long for another gives the whole group up."""
LOOPBACK = "127.0.0.1"


def check_communication(device: str) -> None:
    """`UsageError` where this torch cannot exchange numbers between processes."""
    if not dist.is_available():
        raise UsageError(f"tensor_parallel needs torch.distributed, and torch {torch.__version__} was built without it.")
    if device.startswith("cuda") and not dist.is_nccl_available():
        raise UsageError(f"tensor_parallel on GPUs needs NCCL, and torch {torch.__version__} was built without it.")


@final
class ProcessGroup:
    """The `index`-th of `count` processes that meet in `folder`. Made when all of them are there; torch's own errors for one that is not,
    and for one that falls silent later."""

    def __init__(self, device: torch.device, folder: Path, index: int, count: int, wait_s: float = WAIT_S) -> None:
        self._count = count
        self._is_gpu = device.type == "cuda"
        self._store: Any = dist.FileStore(  # type: ignore[attr-defined]
            str(folder / "meeting"), count
        )
        make = _nccl if self._is_gpu else _gloo
        self._group: Any = make(self._store, index, count, timedelta(seconds=wait_s), device)

    def total(self, x: Tensor) -> None:
        self._group.allreduce([x]).wait()

    def all_of(self, x: Tensor) -> list[Tensor]:
        parts = [torch.empty_like(x) for _ in range(self._count)]
        self._group.allgather([parts], [x]).wait()
        return parts

    def abort(self) -> None:
        """Ends what is waited for, as another process is gone; gloo finds that out by itself. From any thread."""
        group = self._group
        if self._is_gpu and group is not None:
            group.abort()

    def close(self) -> None:
        """Lets go of what the library holds, its threads among it. Idempotent."""
        self.abort()
        self._group = None


def _gloo(store: Any, index: int, count: int, timeout: timedelta, device: torch.device) -> Any:
    gloo: Any = dist.ProcessGroupGloo
    options = gloo._Options()
    options._devices = [gloo.create_device(hostname=LOOPBACK)]
    options._timeout = timeout
    options._threads = 1  # in the order in which they are asked for
    return gloo(store, index, count, options)


def _nccl(store: Any, index: int, count: int, timeout: timedelta, device: torch.device) -> Any:
    nccl: Any = dist.ProcessGroupNCCL  # type: ignore[attr-defined,unused-ignore]
    options = nccl.Options()
    options._timeout = timeout
    group = nccl(store, index, count, options)
    group.eager_connect_single_device(device)  # else with the first sum, when the folder of the meeting is gone
    return group
