"""What a model may be loaded with, checked before any file is opened."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from herd.errors import UsageError, did_you_mean
from herd.records import dataclass

DTYPES = ("float32", "bfloat16", "float16", "float64")
ACTIVATIONS = ("int8", "float32")


@dataclass(frozen=True, slots=True, kw_only=True)
class Choices:
    """The arguments of `herd.load` besides the model, with what they mean where nothing was said. `UsageError` for one that cannot be."""

    backend: str
    threads: int | None
    device: str
    tensor_parallel: int
    mmproj: str | None
    dtype: str | None
    activations: str
    adapter: str | os.PathLike[str] | None
    context: int | None
    draft: str | os.PathLike[str]
    chat_format: str | None
    parallel: int
    kv_cache: str
    cache_bytes: int | None
    cache_folder: Path | None
    cache_disk_bytes: int | None

    def __post_init__(self) -> None:
        from herd.backends.base import check_kv_cache

        self._check_backend()
        _check_count("threads", self.threads, 1024)
        _check_count("tensor_parallel", self.tensor_parallel, 1024)
        self._check_devices()
        _check_count("context", self.context, 2**31 - 1)
        check_kv_cache(self.kv_cache)
        _check_count("parallel", self.parallel, 4096)
        _check_count("cache_bytes", self.cache_bytes, 2**50)
        _check_count("cache_disk_bytes", self.cache_disk_bytes, 2**50)
        if self.cache_disk_bytes is not None and self.cache_folder is None:
            raise UsageError("cache_disk_bytes says what the files in cache_folder may take, and there is none. Name a cache_folder too.")
        if self.chat_format is not None:
            from herd.text.formats import NAMES

            _check_choice("chat_format", self.chat_format, NAMES)
        if not isinstance(self.draft, str | os.PathLike):
            raise UsageError(f"draft is {self.draft!r:.60}; it must be 'off', 'lookup' or a model's name or path.")

    def _check_backend(self) -> None:
        """`UsageError` for a value that no backend has."""
        from herd.backends.base import BACKENDS

        _check_choice("backend", self.backend, BACKENDS)
        _check_choice("activations", self.activations, ACTIVATIONS)
        if self.dtype is not None:
            _check_choice("dtype", self.dtype, DTYPES)

    def _check_devices(self) -> None:
        """`UsageError` for a device that the backend does not know or that is not here, and for fewer than the model is divided over."""
        if self.backend == "torch":
            from herd.api.choosing import check_divided, torch_backend

            if self.tensor_parallel > 1:
                check_divided(self.device, self.tensor_parallel)
            torch_backend().check_device(self.device)
        elif self.device != "cpu":
            raise UsageError(f"device is {self.device!r:.60}; the {self.backend} backend runs on 'cpu' only. GPUs are for backend='torch'.")
        elif self.tensor_parallel > 1:
            raise UsageError(
                f"tensor_parallel is {self.tensor_parallel}; the {self.backend} backend holds a model in one process. Dividing one over "
                "several GPUs is for backend='torch'."
            )


def _check_choice(name: str, value: str, known: Sequence[str]) -> None:
    if value not in known:
        raise UsageError(f"{name} is {value!r:.60}{did_you_mean(value, known)} It must be {' or '.join(map(repr, known))}.")


def _check_count(name: str, value: int | None, most: int) -> None:
    if value is not None and (type(value) is not int or not 1 <= value <= most):
        raise UsageError(f"{name} is {value!r:.60}; it must be a whole number from 1 to {most}.")
