"""What is at a path, and what to do about what herd does not read."""

from __future__ import annotations

import pickle
import time
from pathlib import Path

import pytest

from herd.checkpoints import gguf_llama, llama2c, open_checkpoint
from herd.errors import FileProblem

READERS = (gguf_llama, llama2c)  # imported on use otherwise, which would be timed


class _Trap:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return exec, ("raise SystemExit('the pickle ran')",)


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("model.safetensors", b"12345678{}", "Open the folder that it is in"),
        ("model.pte", b"", "is a program for ExecuTorch"),
        ("consolidated.00.pth", b"PK\x03\x04", "Open the folder that it is in"),
        ("model.pth", b"PK\x03\x04", "is a PyTorch pickle, which is not read: it can run code"),
        ("pytorch_model.bin", pickle.dumps(_Trap()), "is a PyTorch pickle"),
        ("pytorch_model.bin", b"PK\x03\x04", "is a PyTorch pickle"),
        ("model.bin", b"", "the header needs 28 bytes and 0 are left"),
        ("model.gguf", b"", "the magic needs 4 bytes and 0 are left"),
        ("model.gguf", b"GGML" + bytes(100), "the magic is b'GGML'"),
        ("readme.txt", b"hello", "is no model file that herd knows"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_a_file_that_is_no_checkpoint_says_what_to_do(tmp_path: Path, name: str, data: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(data)
    start = time.process_time()
    with pytest.raises(FileProblem) as caught:
        open_checkpoint(tmp_path / name)
    assert message in str(caught.value) and name in str(caught.value)
    assert time.process_time() - start < 0.1


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ([], "it has neither config.json nor params.json"),
        (["params.json", "consolidated.00.pth"], "params.json: is not valid JSON"),
        (["consolidated.00.pth"], "but no params.json"),
        (["a.gguf", "b.gguf"], "Open one of its GGUF files: a.gguf, b.gguf"),
    ],
    ids=str,
)
def test_a_folder_that_is_no_checkpoint_says_what_to_do(tmp_path: Path, names: list[str], message: str) -> None:
    for name in names:
        (tmp_path / name).touch()
    with pytest.raises(FileProblem) as caught:
        open_checkpoint(tmp_path)
    assert message in str(caught.value)


def test_a_path_with_nothing_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileProblem, match="does not exist"):
        open_checkpoint(tmp_path / "absent")
