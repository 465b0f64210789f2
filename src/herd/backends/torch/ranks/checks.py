"""What cannot be divided is refused by name, before anything is read or started."""

from __future__ import annotations

import os

import torch

from herd.backends.torch.devices import find_device
from herd.backends.torch.ranks.group import check_communication
from herd.errors import UsageError
from herd.models.architecture import Config
from herd.models.division import CONFIGS, to_run


def check_devices(device: str, count: int) -> None:
    """`UsageError` for devices that are not there: one for each of `count` processes, or the processor for all of them."""
    if device not in ("cpu", "cuda"):
        raise UsageError(
            f"tensor_parallel is {count}, and device {device!r:.60}; it takes the GPUs 0 to {count - 1}: say 'cuda', and with "
            "CUDA_VISIBLE_DEVICES which those are. With 'cpu' it can be tried without any."
        )
    find_device(device)
    check_communication(device)
    if device == "cuda" and (there := torch.cuda.device_count()) < count:
        raise UsageError(f"tensor_parallel is {count}, and there are {there} GPUs here. Each process needs one of its own.")
    if os.environ.get("HERD_TORCH_COMPILE") == "1":
        raise UsageError("HERD_TORCH_COMPILE=1 is for a model in one process: sums between processes are not compiled. Leave one out.")


def check_model(cfg: Config, count: int) -> None:
    """`UsageError` for a model that does not divide by so many."""
    if not isinstance(cfg, CONFIGS):
        raise UsageError("tensor_parallel is for Llamas with a next token; this model is another. Load it without.")
    for _, number, what in to_run(cfg, 0, count).indivisible(cfg):
        raise UsageError(f"tensor_parallel is {count}; the model's {number} {what} do not divide by it.", param="tensor_parallel")
