"""Where and in what type to compute: the user's words to torch's, refused by name where they cannot be honoured."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

import torch

from herd.backends.torch.tensors import PLAIN, parts
from herd.errors import UsageError
from herd.models.weights import Blocks, Matrix

DTYPES: Mapping[str, torch.dtype] = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "float64": torch.float64,
}


def find_device(name: str) -> torch.device:
    """ "cpu", "cuda" (the current one) or "cuda:1". `UsageError` for another word, and for a device that is not there."""
    match = re.fullmatch(r"cpu|cuda(?::(\d{1,3}))?", str(name))
    if match is None:
        raise UsageError(f'device is {name!r:.60}; the torch backend runs on "cpu", "cuda" or a numbered one such as "cuda:1".')
    if name == "cpu":
        return torch.device("cpu")
    if torch.version.cuda is None and torch.version.hip is None:
        raise UsageError(f"device is {name!r}, but torch {torch.__version__} was built without CUDA. Install a build of torch with it.")
    if not torch.cuda.is_available():
        raise UsageError(f"device is {name!r}, but torch finds no GPU: `nvidia-smi` shows whether the system does.")
    index = torch.cuda.current_device() if match[1] is None else int(match[1])
    if index >= torch.cuda.device_count():
        raise UsageError(f"device is {name!r}; there are {torch.cuda.device_count()} GPUs here, counted from 0.")
    return torch.device("cuda", index)


def device_name(device: torch.device) -> str:
    """What the device is: an instruction set or a model of GPU."""
    if device.type == "cpu":
        return f"cpu-{torch.backends.cpu.get_cpu_capability().lower()}"
    return f"{device} ({torch.cuda.get_device_name(device)})"


def kind_of(device: torch.device) -> str:
    """The same without its number: alike for two devices of one kind."""
    return device_name(device).removeprefix(f"{device} ")


def use_threads(threads: int | None, device: torch.device) -> None:
    """Tells torch how many threads to take, in the whole process. None: as it is."""
    if threads is None:
        return
    if device.type != "cpu":
        raise UsageError("threads are for a CPU; leave them out when computing on a GPU.")
    torch.set_num_threads(threads)


def compute_dtype(wanted: str | None, leaves: Iterable[Matrix], device: torch.device) -> torch.dtype:
    """The type to compute in: the one asked for, else the one that all plain matrices are stored in, else float32; for models
    with block-quantised matrices float32 on a CPU and bfloat16 on a GPU."""
    if wanted is not None:
        if wanted not in DTYPES:
            raise UsageError(f"dtype is {wanted!r:.60}; the torch backend computes in one of: {', '.join(DTYPES)}.")
        return DTYPES[wanted]
    matrices = [part for leaf in leaves for part in parts(leaf)[:1] if len(part.shape) >= 2]
    if any(isinstance(part, Blocks) for part in matrices):
        return torch.float32 if device.type == "cpu" else torch.bfloat16
    stored = {part.dtype for part in matrices}
    return PLAIN[stored.pop()] if len(stored) == 1 else torch.float32
