"""What a run's result depends on besides its settings: digests of data and model, version and commit, machine."""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from herd.data.reading import digest_of
from herd.version import __version__


def gathered(data: Iterable[Path] = (), model: str = "", more: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """The facts of a run. `data`: files that it learns from or is measured on; `model`: a digest of the weights that it begins with,
    empty if it begins with random ones."""
    return {
        "data": {str(path): digest(path) for path in data},
        "machine": machine(),
        "model": model,
        "version": {"herd": __version__, "commit": commit(), "torch": str(torch.__version__), "python": platform.python_version()},
        **(more or {}),
    }


def digest(path: Path) -> dict[str, Any]:
    """Size and SHA-256 of a file. `FileProblem` if it cannot be read."""
    size, sha256 = digest_of(path)
    return {"bytes": size, "sha256": sha256}


def machine() -> dict[str, Any]:
    """What computes."""
    found: dict[str, Any] = {
        "processor": _processor(),
        "cores": os.cpu_count() or 1,
        "threads": torch.get_num_threads(),
        "system": f"{platform.system()} {platform.machine()}",
    }
    if torch.cuda.is_available():
        found["gpus"] = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    return found


def commit() -> str:
    """The commit of the checkout that this code lies in; empty if it was installed."""
    for folder in Path(__file__).resolve().parents:
        if (folder / ".git").is_dir():
            with suppress(OSError):
                return _commit(folder / ".git")
    return ""


def _commit(git: Path) -> str:
    head = (git / "HEAD").read_text().strip()
    if not head.startswith("ref: "):
        return head
    name = head.removeprefix("ref: ")
    if (git / name).is_file():
        return (git / name).read_text().strip()
    for line in (git / "packed-refs").read_text().splitlines():
        if line.endswith(f" {name}"):
            return line.split()[0]
    return ""


def _processor() -> str:
    with suppress(OSError):
        if sys.platform == "linux":
            for line in Path("/proc/cpuinfo").read_text().splitlines():
                if line.startswith("model name"):
                    return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
