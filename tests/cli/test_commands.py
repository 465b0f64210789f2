"""The commands do what their help says, on the smallest real model."""

from __future__ import annotations

import json
import math
from pathlib import Path

import click
import pytest

import herd
from cli.running import REFERENCE, STORIES, invoke
from herd.cli.main import main
from herd.dtypes import BY_NAME
from herd.family import store
from herd.family.catalogue import releases
from herd.files import models_folder
from tiny import random_leaves, tiny_llama
from tiny_files import write_gguf

ONCE = "Once upon a time"


def put_stories() -> Path:
    """The smallest real model in the models folder, as `stories`."""
    source, target = Path(STORIES), models_folder() / "stories"
    target.mkdir(parents=True)
    for name in ("stories260K.bin", "tok512.bin"):
        (target / name).write_bytes((source.parent / name).read_bytes())
    return target / "stories260K.bin"


def tiny_gguf(folder: Path, kind: str) -> Path:
    """A model of random weights whose matrices are stored as `kind`."""
    cfg = tiny_llama()
    return write_gguf(folder / f"{kind}.gguf", cfg, random_leaves(cfg, dtype=BY_NAME[kind]))


def test_help_leads_with_examples_for_every_command() -> None:
    assert invoke("--help").output.index("Examples:") < invoke("--help").output.index("Commands:")
    names = main.list_commands(click.Context(main))
    assert len(names) > 5
    for name in names:
        output = invoke(name, "--help").output
        assert output.index("Examples:") < output.index("Usage:"), name
        assert "  herd " in output


def test_the_version_is_told() -> None:
    assert invoke("--version").output == f"herd {herd.__version__}\n"


def test_run_continues_a_text_as_the_python_face_does() -> None:
    with herd.load(STORIES, backend="reference") as model:
        expected = model.generate(ONCE, max_tokens=12, temperature=0.0)
    done = invoke("run", STORIES, ONCE, "-n", "12", "-t", "0", *REFERENCE)
    assert (done.exit_code, done.output) == (0, f"{expected.text}\n")
    found = json.loads(invoke("run", STORIES, ONCE, "-n", "12", "-t", "0", "--json", "--logprobs", "2", *REFERENCE).output)
    assert found["token_ids"] == list(expected.token_ids) and found["text"] == expected.text
    assert found["logprobs"] == pytest.approx(expected.logprobs)
    assert found["prompt_token_ids"] == list(expected.prompt_token_ids) and found["stop_reason"] == "length"
    assert [len(top) for top in found["top_logprobs"]] == [2] * 12
    assert isinstance(found["seed"], int) and found["timings"]["decode_tokens_per_s"] > 0


@pytest.mark.parametrize("words", [(), ("-",)])
def test_run_reads_the_prompt_from_a_pipe(words: tuple[str, ...]) -> None:
    piped = invoke("run", STORIES, *words, "-n", "4", "-t", "0", "--json", *REFERENCE, typed=f"{ONCE}\n")
    given = invoke("run", STORIES, ONCE, "-n", "4", "-t", "0", "--json", *REFERENCE)
    assert json.loads(piped.output)["prompt_token_ids"] == json.loads(given.output)["prompt_token_ids"]


def test_run_takes_token_ids() -> None:
    text = json.loads(invoke("run", STORIES, ONCE, "-n", "4", "-t", "0", "--json", *REFERENCE).output)
    ids = ",".join(map(str, text["prompt_token_ids"]))
    assert json.loads(invoke("run", STORIES, "--tokens", ids, "-n", "4", "-t", "0", "--json", *REFERENCE).output)["text"] == text["text"]


def test_run_ends_before_a_stop_text() -> None:
    found = json.loads(invoke("run", STORIES, ONCE, "-n", "40", "-t", "0", "--stop", "girl", "--json", *REFERENCE).output)
    assert found["stop_reason"] == "stop_text" and found["stop_text"] == "girl" and "girl" not in found["text"]


def test_a_seed_gives_the_same_answer_again() -> None:
    words = ("run", STORIES, ONCE, "-n", "12", "-t", "1.5", "--seed", "7", *REFERENCE)
    assert invoke(*words).output == invoke(*words).output != invoke(*words, "--seed", "8").output


def test_show_tells_facts_and_where_they_are_from() -> None:
    output = invoke("show", STORIES).output
    assert "260,032" in output and "n_layers in the header of stories260K.bin" in output
    found = json.loads(invoke("show", STORIES, "--json", "--context", "128").output)
    assert found["architecture"]["layers"]["value"] == 5
    assert found["memory"]["cache"] == {"value": 2 * 5 * 4 * 8 * 4 * 128, "source": "128 tokens of keys and values, 32 bits each"}


@pytest.mark.parametrize("kind", ["q8_0", "bf16"])
def test_show_reckons_the_cache_that_the_model_would_have(tmp_path: Path, kind: str) -> None:
    pytest.importorskip("herd._core")
    path = tiny_gguf(tmp_path, kind)
    told = json.loads(invoke("show", str(path), "--json", "--context", "64").output)["memory"]["cache"]
    with herd.load(path, context=64) as model:
        assert ("kv-f16" in model.fingerprint) == (kind == "q8_0")
        assert told["value"] == model.memory().cache
    assert told["source"].endswith("16 bits each" if kind == "q8_0" else "32 bits each")


def test_show_knows_models_that_are_not_here() -> None:
    found = json.loads(invoke("show", "llama-3.1-70b-instruct", "--json").output)
    assert found["architecture"]["parameters"]["value"] == 70_553_706_496
    assert found["memory"]["weights"]["value"] == 2 * 70_553_706_496
    assert "herd pull llama-3.1-70b-instruct" in found["model"]["path"]["value"]


def test_models_lists_what_is_known_and_what_is_here() -> None:
    assert "herd pull" in invoke("models", "--here").output
    put_stories()
    found = json.loads(invoke("models", "--json").output)
    assert [row["name"] for row in found["models"]] == ["stories", *releases()]
    assert [row["name"] for row in found["models"] if row["here"]] == ["stories"]
    assert "1.1 MB" in invoke("models", "--here").output


def test_a_model_of_the_folder_is_used_and_removed_by_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    put_stories().parent.rename(models_folder() / "old")
    (models_folder() / "old" / "stories260K.bin").rename(models_folder() / "tale.bin")
    (models_folder() / "old" / "tok512.bin").rename(models_folder() / "tok512.bin")
    assert store.locate("tale.bin") is not None
    assert invoke("remove", "tale.bin").exit_code == 2
    monkeypatch.setattr("herd.cli.output.is_terminal", lambda stream: True)
    assert invoke("remove", "tale.bin", typed="n\n").output.endswith("tale.bin is kept.\n")
    assert invoke("remove", "tale.bin", "--yes").output == "tale.bin is gone; 1.1 MB are free again.\n"
    assert store.locate("tale.bin") is None


def test_perplexity_is_measured(tmp_path: Path) -> None:
    text = tmp_path / "story.txt"
    text.write_text("Once upon a time, there was a little girl named Lily. She loved to play outside.")
    tokens = tmp_path / "tokens.jsonl"
    found = json.loads(invoke("eval", "perplexity", STORIES, str(text), "--json", "--logprobs", str(tokens), *REFERENCE).output)
    lines = [json.loads(line) for line in tokens.read_text().splitlines()]
    assert found["tokens"] == len(lines)
    assert found["nll"] == pytest.approx(-sum(line["logprob"] for line in lines) / len(lines))
    assert found["perplexity"] == pytest.approx(math.exp(found["nll"])) and found["perplexity"] < 5
    assert f"perplexity {found['perplexity']:.4f}" in invoke("eval", "perplexity", STORIES, str(text), *REFERENCE).output


def test_two_settings_are_compared(tmp_path: Path) -> None:
    text = tmp_path / "story.txt"
    text.write_text("Once upon a time, there was a little girl named Lily.")
    found = json.loads(invoke("eval", "kl", STORIES, STORIES, str(text), "--json", "--p", "dtype=float64", *REFERENCE).output)
    assert 0 <= found["kl_mean"] < 1e-8 and found["agreement"] == 1.0


def test_accuracy_is_measured(tmp_path: Path) -> None:
    questions = tmp_path / "questions.jsonl"
    questions.write_text(
        '{"question": "Once upon a", "choices": ["time", "xylophone"], "answer": 0}\n'
        '{"question": "She loved to play", "choices": ["zzz", "outside"], "answer": 1}\n'
    )
    found = json.loads(invoke("eval", "accuracy", STORIES, str(questions), "--json", *REFERENCE).output)
    assert found["accuracy"] == 1.0 and found["questions"] == 2 and found["chance"] == 0.5
