"""A base without a template that was taught a chat format: what is written of it chats at once, here and in `transformers`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

pytest.importorskip("torch", reason="torch is not installed (pip install herd-llama[torch])")

import herd
from cli.chat_model import write
from herd.api.tuning_sft import tune_sft
from herd.convert import convert
from herd.training.settings.reading import read_settings
from herd.training.settings.sft import SftSettings

TURNS = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "a"},
    {"role": "assistant", "content": "b"},
    {"role": "user", "content": " c"},
]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that says nothing of chats, and that ends with another token than its chats will."""
    folder = write(tmp_path_factory.mktemp("base") / "model")
    config = json.loads((folder / "tokenizer_config.json").read_text())
    del config["chat_template"]
    (folder / "tokenizer_config.json").write_text(json.dumps({**config, "eos_token": "<|endoftext|>"}))
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": 256, "do_sample": True, "temperature": 0.5}))
    return folder


def learned(base: Path, folder: Path, *changes: str) -> Path:
    data = folder.with_suffix(".jsonl")
    data.write_text("".join(json.dumps({"messages": [*TURNS, {"role": "assistant", "content": "d"}]}) + "\n" for _ in range(4)))
    few = ["epochs=0", "loop.schedule.steps=1", "held_out=0", "chat_format=chatml", *changes]
    tune_sft(read_settings(SftSettings, None, few, {"model": str(base), "data": (str(data),)}), folder)
    return folder


@pytest.mark.parametrize("method", ["lora", "full"])
def test_a_taught_format_is_in_what_is_written(method: str, base: Path, tmp_path: Path) -> None:
    run = learned(base, tmp_path / "run", f"student.method={method}")
    convert(run, tmp_path / "merged", to="hf")
    convert(run, tmp_path / "merged.gguf", to="gguf")
    convert(tmp_path / "merged.gguf", tmp_path / "again", to="hf")
    with herd.load(run, backend="reference") as model:
        wanted = model.chat_format.render(TURNS)
    for place in ("merged", "merged.gguf", "again", *(["run/model"] if method == "full" else [])):
        with herd.load(tmp_path / place, backend="reference") as model:
            assert model.chat_format.name == "chatml" and model.chat_format.render(TURNS) == wanted
    theirs = pytest.importorskip("transformers").AutoTokenizer.from_pretrained(tmp_path / "merged")
    found = theirs.apply_chat_template(TURNS, add_generation_prompt=True, return_dict=False)
    assert list(found) == wanted
    advice = json.loads((tmp_path / "merged" / "generation_config.json").read_text())
    assert advice["eos_token_id"] == [256, 258] and advice["temperature"] == 0.5


def test_a_gguf_base_that_was_taught_a_format_says_so_afterwards(base: Path, tmp_path: Path) -> None:
    convert(base, tmp_path / "base.gguf", to="gguf")
    run = learned(tmp_path / "base.gguf", tmp_path / "run", "student.method=lora")
    convert(run, tmp_path / "merged.gguf", to="gguf")
    whole = learned(tmp_path / "base.gguf", tmp_path / "whole", "student.qat=true")
    for path in (tmp_path / "merged.gguf", whole / "model.gguf"):
        with herd.load(path, backend="reference") as model:
            assert model.chat_format.name == "chatml"


def test_a_format_without_a_template_is_told_of(base: Path, tmp_path: Path) -> None:
    from herd.checkpoints.open import open_checkpoint
    from herd.convert.taught import with_format_named

    notes: list[str] = []
    checkpoint = open_checkpoint(base)
    assert with_format_named(checkpoint, "muse-glimmer", notes) is checkpoint
    checkpoint.close()
    assert notes == ["No template of the chat format muse-glimmer is written: say --chat-format muse-glimmer to chat."]


def test_a_model_with_another_tokenizer_carries_that_one_and_not_the_files_of_its_folder(base: Path, tmp_path: Path) -> None:
    from herd.checkpoints.checkpoint import TokenizerSource
    from herd.checkpoints.open import open_checkpoint
    from herd.convert.trained import write_trained

    other = write(tmp_path / "other")
    config = json.loads((other / "tokenizer_config.json").read_text())
    checkpoint = open_checkpoint(base)
    source = TokenizerSource("tokenizer.json", path=other / "tokenizer.json", config=config)
    leaves = {spec.name: checkpoint.leaf(spec.name) for spec in checkpoint.specs}
    write_trained(tmp_path / "made", checkpoint.config, leaves, tokenizer=source, chat_template=config["chat_template"], beside=base)
    checkpoint.close()
    with herd.load(tmp_path / "made", backend="reference") as model:
        assert model.chat_format.name == "chatml"
