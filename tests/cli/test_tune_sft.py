"""`herd tune sft` and `herd tune merge` as they are typed, on a tiny model."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

pytest.importorskip("torch", reason="torch is not installed (pip install herd-llama[torch])")

from cli.chat_model import write
from cli.running import invoke


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model and data."""
    folder = tmp_path_factory.mktemp("tuning")
    write(folder / "model")
    lines = [{"prompt": one, "completion": two} for one, two in [("a", "xx"), ("b", "yy")] * 6]
    (folder / "faq.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def test_a_run_is_made_talked_to_and_merged(place: Path) -> None:
    options = ("--lora", "--rank", "4", "--lr", "0.003", "--steps", "40", "--batch", "4", "--held-out", "1", "--dtype", "float32")
    words = ("tune", "sft", "--model", str(place / "model"), "--data", str(place / "faq.jsonl"), *options, "--out", str(place / "run"))
    done = invoke(*words)
    assert done.exit_code == 0, done.output
    assert "note: The source has no licence file" in done.output and "held out loss" in done.output
    assert "Talk to it: herd chat" in done.output and "before" in done.output and "step 40 of 40: loss" in done.output
    asked = invoke("run", str(place / "run"), "--chat", "a", "-t", "0", "-n", "4", "--context", "64")
    assert asked.exit_code == 0 and asked.output.startswith("xx")
    merged = invoke("tune", "merge", str(place / "run"), str(place / "merged.gguf"), "--to", "gguf")
    assert merged.exit_code == 0, merged.output
    assert invoke("run", str(place / "merged.gguf"), "--chat", "b", "-t", "0", "-n", "4", "--context", "64").output.startswith("yy")
    again = invoke(
        "tune", "sft", "--model", str(place / "model"), "--data", str(place / "faq.jsonl"), *options, "--out", str(place / "run")
    )
    assert again.exit_code == 2 and "--resume" in again.output


def test_what_cannot_be_is_said_in_a_line(place: Path) -> None:
    nothing = invoke("tune", "merge", str(place / "model"), str(place / "other"))
    assert nothing.exit_code == 2 and "holds no adapter" in nothing.output
    misspelled = invoke("tune", "sft", "--model", str(place / "model"), "--data", str(place / "faq.jsonl"), "--set", "bach=2")
    assert misspelled.exit_code == 2 and "did you mean 'batch'" in misspelled.output
    missing = invoke("tune", "sft", "--model", str(place / "model"), "--data", str(place / "nothing.jsonl"), "--out", str(place / "none"))
    assert missing.exit_code in (2, 3) and "nothing.jsonl" in missing.output
