"""What `herd serve` knows of the licence of what it serves, whatever that is called."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from herd.cli.serve_models import hosted_models
from herd.convert.gguf_file import write_gguf
from herd.convert.writing import Told
from herd.family.progress import silent


@pytest.fixture
def base(tmp_path: Path) -> Path:
    """A renamed file of Llama 3.1, as far as it says."""
    path = tmp_path / "poems.gguf"
    with path.open("wb") as file:
        write_gguf(file, {"general.architecture": "llama", "general.license": "llama3.1"}, [], Told(silent, path.name, 0))
    return path


def learned_from(folder: Path, base: Path) -> Path:
    """The folder of a run that learned an adapter."""
    (folder / "adapter").mkdir(parents=True)
    (folder / "adapter" / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": str(base)}))
    return folder


def badge_of(text: str) -> tuple[str, str | None]:
    (hosted,) = hosted_models([text], [], {})
    return hosted.name, None if hosted.terms is None else hosted.terms.badge


def test_a_renamed_model_has_the_badge_of_its_licence(base: Path) -> None:
    assert badge_of(f"mine={base}") == ("mine", "Built with Llama")


def test_what_was_learned_has_the_badge_of_the_model_below_or_of_the_texts_beside_it(base: Path, tmp_path: Path) -> None:
    run = learned_from(tmp_path / "faq", base)
    assert badge_of(f"mine={run}") == ("mine", "Built with Llama")
    (run / "adapter" / "NOTICE").write_text("Meta Llama 3 is licensed under the Meta Llama 3 Community License, Copyright ...")
    assert badge_of(f"mine={run}") == ("mine", "Built with Meta Llama 3")


def test_a_model_that_learned_all_its_weights_has_the_badge_of_the_texts_in_its_folder(tmp_path: Path) -> None:
    model = tmp_path / "bank" / "model"
    model.mkdir(parents=True)
    (model / "config.json").write_text("{}")
    (model / "LICENSE").write_text("LLAMA 3.2 COMMUNITY LICENSE AGREEMENT")
    assert badge_of(f"mine={tmp_path / 'bank'}") == ("mine", "Built with Llama")


def test_of_a_model_that_says_nothing_nothing_is_said(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    assert badge_of(f"mine={tmp_path}") == ("mine", None)
