"""Every model in torch: on a CPU or a CUDA device, in 16, 32 or 64 bits; training runs through the same operations."""

from herd.backends.torch.backend import TorchBackend

__all__ = ["TorchBackend"]
