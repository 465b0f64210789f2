"""--session of the commands: a text and a conversation that go on in another process."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from cli import chat_model
from cli.running import REFERENCE, STORIES, invoke

PLAIN = (*REFERENCE, "-t", "0", "--json")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return chat_model.write(tmp_path_factory.mktemp("chat-model") / "tiny")


def run(*words: str) -> dict[str, object]:
    result = invoke("run", *words)
    assert result.exit_code == 0, result.output
    value: dict[str, object] = json.loads(result.stdout)
    return value


def test_a_text_goes_on_where_the_file_ends(tmp_path: Path) -> None:
    file = str(tmp_path / "s")
    whole = run(STORIES, "Once upon a time", "-n", "9", *PLAIN)
    first = run(STORIES, "Once upon a time", "-n", "4", "--session", file, *PLAIN)
    rest = run(STORIES, "-n", "5", "--session", file, *PLAIN)
    assert [*first["token_ids"], *rest["token_ids"]] == whole["token_ids"]  # type: ignore[misc]
    assert rest["usage"]["cached_tokens"] == len(rest["prompt_token_ids"]) - 1  # type: ignore[index, arg-type]


def test_a_prompt_comes_after_the_session_and_the_file_can_be_left(tmp_path: Path) -> None:
    path = tmp_path / "s"
    first = run(STORIES, "Once upon", "-n", "1", "--session", str(path), *PLAIN)
    before = path.read_bytes()
    more = run(STORIES, " a cat", "-n", "1", "--session", str(path), "--leave-session", *PLAIN)
    ids = [*first["prompt_token_ids"], *first["token_ids"]]  # type: ignore[misc]
    assert more["prompt_token_ids"][: len(ids)] == ids and len(more["prompt_token_ids"]) > len(ids)  # type: ignore[index, arg-type]
    assert 1 not in more["prompt_token_ids"][1:], "the text begins once"  # type: ignore[index]
    assert path.read_bytes() == before
    piped = invoke("run", STORIES, "-n", "1", "--session", str(path), *PLAIN, typed=" a cat\n")
    assert json.loads(piped.stdout)["prompt_token_ids"] == more["prompt_token_ids"]


def test_a_conversation_goes_on_in_chat_and_in_run(folder: Path, tmp_path: Path) -> None:
    file, model = str(tmp_path / "s"), str(folder)
    settings = ("-t", "0", "-n", "3", *REFERENCE, "--session", file)
    assert invoke("chat", model, *settings, "--system", "Be brief.", typed="hello\n").exit_code == 0
    assert invoke("run", model, "--chat", "again", *settings).exit_code == 0
    third = invoke("chat", model, *settings, typed="and again\n/save " + str(tmp_path / "said.json") + "\n")
    assert third.exit_code == 0, third.output
    said = json.loads((tmp_path / "said.json").read_text())["messages"]
    assert [message["role"] for message in said] == ["system", "user", "assistant", "user", "assistant", "user", "assistant"]
    assert [message["content"] for message in said[1::2]] == ["hello", "again", "and again"]


def test_sessions_are_not_mixed_up(folder: Path, tmp_path: Path) -> None:
    plain, talk, model = str(tmp_path / "plain"), str(tmp_path / "talk"), str(folder)
    short = ("-t", "0", "-n", "2", *REFERENCE)
    assert invoke("run", model, "abc", *short, "--session", plain).exit_code == 0
    assert invoke("run", model, "--chat", "abc", *short, "--session", talk).exit_code == 0
    refused = {
        ("run", model, "--chat", "x", *short, "--session", plain): "holds a plain text",
        ("chat", model, *short, "--session", plain): "holds a plain text",
        ("run", model, "x", *short, "--session", talk): "holds a conversation",
        ("chat", model, *short, "--system", "No.", "--session", talk): "without this system text",
        ("run", STORIES, "x", *short, "--session", plain): "weights are not those",
        ("run", model, "x", *short, "--leave-session"): "give it a file",
        ("run", model, "x", *short, "--session", str(tmp_path / "none"), "--leave-session"): "not there",
        ("run", model, "x", *short, "--session", str(tmp_path / "no" / "where")): "no folder",
    }
    for words, complaint in refused.items():
        result = invoke(*words, typed="")
        assert result.exit_code == 2 and complaint in result.stderr, (words, result.output)
    (tmp_path / "spoiled").write_bytes(b"nonsense")
    assert invoke("run", model, "x", *short, "--session", str(tmp_path / "spoiled")).exit_code == 3
