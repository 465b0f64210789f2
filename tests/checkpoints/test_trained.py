"""What the folder of a run stands for."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from herd.checkpoints.trained import Trained, format_taught, trained_in
from herd.errors import FileProblem


def run(folder: Path, base: str) -> Path:
    (folder / "adapter").mkdir(parents=True)
    (folder / "adapter" / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": base}))
    (folder / "config.toml").write_text('chat_format = "chatml"\n')
    (folder / "facts.json").write_text("{}")
    return folder


def test_a_base_that_a_run_wrote_moves_with_its_folder(tmp_path: Path) -> None:
    begun = tmp_path / "begun"
    folder = run(begun, str(begun / "base.gguf"))
    (folder / "base.gguf").write_bytes(b"")
    assert trained_in(folder) == Trained(str(begun / "base.gguf"), begun / "adapter")
    moved = folder.rename(tmp_path / "moved")
    assert trained_in(moved) == Trained(str(moved / "base.gguf"), moved / "adapter")
    elsewhere = run(tmp_path / "other", "/gone/model.gguf")
    assert trained_in(elsewhere) == Trained("/gone/model.gguf", elsewhere / "adapter"), "what is nowhere is named as it was"


def test_the_chat_format_of_a_run_is_read_from_its_settings(tmp_path: Path) -> None:
    folder = run(tmp_path / "run", "model")
    assert format_taught(folder) == "chatml" and format_taught(tmp_path) is None
    (folder / "config.toml").write_text('model = "m"\n')
    assert format_taught(folder) is None
    (folder / "config.toml").write_text("chat_format = ")
    with pytest.raises(FileProblem, match="is not TOML"):
        format_taught(folder)
