"""Which backend runs a model. With the terminal the only place that chooses one.

checkpoint + choices --fits the memory?--> cpu (from memory, or from the disk) | torch | reference
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from herd.errors import CapacityError, UsageError

if TYPE_CHECKING:
    from herd.api.choices import Choices
    from herd.backends.base import Backend, BackendOptions
    from herd.backends.torch import TorchBackend
    from herd.checkpoints.checkpoint import Checkpoint
    from herd.family.finding import Found
    from herd.models.weights import Leaf


def if_larger_than_memory(found: Found, num_bytes: int, choices: Choices) -> int | None:
    """The free bytes, if they do not hold the weights and the cpu backend is to run those from the disk. `CapacityError`, before anything
    is allocated, where that cannot be done."""
    from herd.engine.memory import available_bytes

    if choices.device != "cpu":
        return None
    free = available_bytes()
    if free is None or num_bytes <= free:
        return None
    if choices.backend == "cpu" and choices.adapter is None:
        return free
    raise CapacityError(
        f"The weights of {found.name} take {num_bytes:,} bytes; {free:,} are available. Choose a smaller model or format. "
        "The cpu backend without an adapter runs a model from the disk where memory does not hold it, at the speed of the disk."
    )


def _nobody(done_bytes: int, total_bytes: int) -> None:
    """Hears of what nobody waits for."""


def make_backend(checkpoint: Checkpoint, choices: Choices, free: int | None = None, told: Callable[[int, int], None] = _nobody) -> Backend:
    """`free`: bytes of memory, where they do not hold the weights; `told` then hears of their packing."""
    from herd.backends.base import BackendOptions

    options = BackendOptions(
        threads=choices.threads, dtype=choices.dtype, activations=choices.activations, device=choices.device, kv_cache=choices.kv_cache
    )
    if choices.tensor_parallel > 1:
        return _divided(checkpoint, choices, options)
    leaf: Leaf = checkpoint.leaf
    if choices.adapter is not None:
        from herd.checkpoints.adapter import open_adapter

        leaf = open_adapter(Path(choices.adapter), checkpoint.config).leaf_over(checkpoint.leaf)
    if choices.backend == "reference":
        from herd.backends.reference import ReferenceBackend

        return ReferenceBackend(checkpoint.config, leaf, options)
    if choices.backend == "torch":
        return torch_backend()(checkpoint.config, leaf, options, checkpoint.release_pages)
    try:
        from herd.backends.cpu import CpuBackend, Origin
    except ImportError as error:
        advice = "Install herd with a C++ compiler or from a wheel, or use backend='reference', which is slow."
        raise UsageError(f"The native core of herd cannot be loaded here ({error}). {advice}") from error
    if choices.adapter is not None:
        return CpuBackend(checkpoint.config, leaf, options, checkpoint.release_pages)
    origin, larger = Origin(checkpoint.digest(), checkpoint.path), None
    if free is not None:
        from herd.backends.cpu.larger import Larger

        larger = Larger(free, told)
    return CpuBackend(checkpoint.config, leaf, options, checkpoint.release_pages, origin=origin, checkpoint=checkpoint, larger=larger)


def _divided(checkpoint: Checkpoint, choices: Choices, options: BackendOptions) -> Backend:
    """In torch, with a process for each device."""
    torch_backend()
    from herd.backends.torch.ranks.leader import DividedBackend

    adapter = None if choices.adapter is None else str(Path(choices.adapter).absolute())
    mmproj = choices.mmproj if choices.mmproj in (None, "off") else str(Path(choices.mmproj).absolute())
    return DividedBackend(checkpoint, options, choices.tensor_parallel, mmproj=mmproj, adapter=adapter)


def check_divided(device: str, count: int) -> None:
    """`UsageError` where so many processes cannot divide a model over devices of this kind; before anything is opened."""
    torch_backend()
    from herd.backends.torch.ranks.checks import check_devices

    check_devices(device, count)


def torch_backend() -> type[TorchBackend]:
    """The backend's class. `UsageError` where torch is not installed or does not load."""
    try:
        from herd.backends.torch import TorchBackend
    except ImportError as error:
        advice = "Install it: pip install 'herd-llama[torch]', or use backend='cpu', which needs none."
        raise UsageError(f"backend 'torch' needs torch, which cannot be loaded here ({error}). {advice}") from error
    return TorchBackend
