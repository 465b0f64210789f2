"""Open a checkpoint: look at what it is, and hand it to the reader of that layout."""

from __future__ import annotations

from pathlib import Path

from herd.checkpoints.checkpoint import Checkpoint
from herd.errors import FileProblem, UsageError


def open_checkpoint(path: Path, mmproj: Path | str | None = None) -> Checkpoint:
    """The checkpoint at `path`: a .gguf file, a folder in Hugging Face's or Meta's layout, or a llama2.c .bin file. `mmproj`: the
    GGUF file with the part of a Llama 4 that sees pictures; None: the one beside its text, if there is one; "off": none.

    Checks every key and tensor, touches no weight. `FileProblem` says what is wrong, where, and what to do.
    """
    path = Path(path)
    if not path.exists():
        raise FileProblem(f"{path}: does not exist.")
    try:
        if path.is_dir():
            return _open_folder(path, mmproj)
        return _open_file(path, mmproj)
    except OSError as problem:
        raise FileProblem(f"{problem.filename or path}: cannot be read: {problem.strerror}.") from problem


def _open_folder(folder: Path, mmproj: Path | str | None) -> Checkpoint:
    _check_mmproj(folder, mmproj)
    if (folder / "config.json").exists():
        from herd.checkpoints.huggingface import open_huggingface

        return open_huggingface(folder)
    if (folder / "params.json").exists():
        from herd.checkpoints.meta import open_meta

        return open_meta(folder)
    if (folder / "consolidated.00.pth").exists():
        raise FileProblem(f"{folder}: has consolidated.00.pth but no params.json, which says what model it is. Fetch it too.")
    files = sorted(file.name for file in folder.glob("*.gguf"))
    hint = f" Open one of its GGUF files: {', '.join(files[:5])}." if files else ""
    raise FileProblem(f"{folder}: is no model folder: it has neither config.json nor params.json.{hint}")


def _check_mmproj(path: Path, mmproj: Path | str | None) -> None:
    if mmproj not in (None, "off"):
        raise UsageError(f"mmproj goes with the GGUF file of a Llama 4; {path.name} is none, and other layouts are whole without it.")


def _open_file(path: Path, mmproj: Path | str | None) -> Checkpoint:
    with path.open("rb") as file:
        start = file.read(8)
    if start[:4] == b"GGUF" or path.suffix == ".gguf":
        from herd.checkpoints.gguf_llama import open_gguf

        return open_gguf(path, mmproj)
    _check_mmproj(path, mmproj)
    if path.suffix == ".safetensors":
        raise FileProblem(f"{path}: holds weights alone. Open the folder that it is in, {path.parent}, which has config.json too.")
    if path.name.startswith("consolidated.") and path.suffix == ".pth":
        raise FileProblem(
            f"{path}: is a shard of a model in Meta's layout. Open the folder that it is in, {path.parent}, which has params.json too."
        )
    if path.suffix == ".pte":
        raise FileProblem(
            f"{path}: is a program for ExecuTorch, which is not read. Take the model as safetensors, GGUF, or in Meta's layout."
        )
    if start[:2] == b"PK" or start[:1] == b"\x80" or path.suffix in (".pth", ".pt", ".pkl"):
        raise FileProblem(
            f"{path}: is a PyTorch pickle, which is not read: it can run code. Only Meta's own layout is (params.json and "
            "consolidated.00.pth), by a reader that runs none. Take the model as safetensors or GGUF, or save it again as safetensors "
            "in a program that you trust it with."
        )
    if path.suffix == ".bin":
        from herd.checkpoints.llama2c import open_llama2c

        return open_llama2c(path)
    raise FileProblem(f"{path}: is no model file that herd knows: GGUF (.gguf) or llama2.c (.bin), or a folder in Hugging Face layout.")
