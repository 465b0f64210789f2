"""A tiny model that talks, and the same loaded in this process."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

import herd
from cli import chat_model


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return chat_model.write(tmp_path_factory.mktemp("model") / "m")


@pytest.fixture(scope="module")
def alone(folder: Path) -> Iterator[herd.Model]:
    with herd.load(folder, backend="cpu", threads=1) as model:
        yield model
