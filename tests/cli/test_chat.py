"""A conversation: what is said, what is kept, and what the commands of the chat do."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import herd
from cli import chat_model
from cli.running import REFERENCE, command, environment, invoke, process
from herd.api import Model
from herd.cli.chat import Conversation


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return chat_model.write(tmp_path_factory.mktemp("chat-model") / "tiny")


@pytest.fixture(scope="module")
def model(folder: Path) -> Iterator[Model]:
    with herd.load(folder, backend="reference") as loaded:
        yield loaded


def talk(model: Model, *lines: str, system: str | None = None, **request: Any) -> Conversation:
    conversation = Conversation(model, system, {"max_tokens": 4, "stop": (), "temperature": 0.0, **request})
    for line in lines:
        assert conversation.hear(line)
    return conversation


def test_turns_are_kept_in_order(model: Model) -> None:
    messages = talk(model, "hello", "  ", "again").messages
    assert [message["role"] for message in messages] == ["user", "assistant", "user", "assistant"]
    assert [message["content"] for message in messages[::2]] == ["hello", "again"]


def test_the_terminal_says_what_the_python_face_says(model: Model) -> None:
    told = "".join(e.text for e in model.chat([{"role": "user", "content": "hello"}], max_tokens=4, temperature=0.0) if e.type == "text")
    assert talk(model, "hello").messages[-1]["content"] == told


def test_the_system_text_comes_first_and_resets(model: Model, capsys: pytest.CaptureFixture[str]) -> None:
    conversation = talk(model, "hello", "/system Be brief.", "again")
    assert [message["content"] for message in conversation.messages[:2]] == ["Be brief.", "again"]
    conversation.hear("/reset")
    assert conversation.messages == [{"role": "system", "content": "Be brief."}]
    capsys.readouterr()
    conversation.hear("/system")
    assert capsys.readouterr().out == "Be brief.\n"


def test_a_conversation_is_saved_once(model: Model, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    target = tmp_path / "talk.json"
    conversation = talk(model, "hello", f"/save {target}")
    saved = json.loads(target.read_text())
    assert saved == {"model": "tiny", "messages": conversation.messages}
    conversation.hear(f"/save {target}")
    conversation.hear("/save")
    conversation.hear(f"/save {tmp_path}/no/such/folder.json")
    errors = capsys.readouterr().err.splitlines()
    assert len(errors) == 3 and "exists already" in errors[0] and "Say where" in errors[1] and "folder.json" in errors[2]


def test_commands_that_do_not_exist_are_no_messages(model: Model, capsys: pytest.CaptureFixture[str]) -> None:
    assert talk(model, "/nonsense", "/help").messages == []
    shown = capsys.readouterr()
    assert "/nonsense is not a command" in shown.err and "/reset" in shown.out


def test_exit_ends(model: Model) -> None:
    assert not talk(model).hear("/exit")


def test_statistics_count_the_last_answer(model: Model, capsys: pytest.CaptureFixture[str]) -> None:
    talk(model, "/stats", "hello", "again", "/stats")
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "There is no answer yet." and lines[-1].startswith("answer 4 tokens")


def test_a_message_that_is_too_long_is_refused_and_forgotten(model: Model, capsys: pytest.CaptureFixture[str]) -> None:
    conversation = talk(model, "hello")
    before = list(conversation.messages)
    conversation.hear("word " * 500)
    assert conversation.messages == before and "512" in capsys.readouterr().err
    conversation.hear("again")
    assert len(conversation.messages) == 4


def test_an_interrupt_keeps_what_was_said(model: Model, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    real = Model.chat

    def interrupted(self: Model, *arguments: Any, **settings: Any) -> Iterator[Any]:
        for number, event in enumerate(real(self, *arguments, **settings)):
            if number == 2:
                raise KeyboardInterrupt
            yield event

    monkeypatch.setattr(Model, "chat", interrupted)
    conversation = talk(model, "hello", max_tokens=50)
    assert "[stopped]" in capsys.readouterr().out
    assert len(conversation.messages) == 2 and conversation.messages[1]["content"]
    monkeypatch.setattr(Model, "chat", real)
    conversation.hear("again")
    assert len(conversation.messages) == 4


def test_a_pipe_is_one_message_per_line(folder: Path) -> None:
    done = invoke("chat", str(folder), "-n", "3", "-t", "0", *REFERENCE, typed="hello\nagain \\\nand again\n")
    assert done.exit_code == 0 and done.output.count("\n") >= 2 and ">" not in done.output.splitlines()[0][:2]


def test_the_first_error_in_a_pipe_ends_it_with_its_exit_code(folder: Path) -> None:
    words = ("chat", str(folder), "-n", "3", "-t", "0", *REFERENCE)
    for bad in ("word " * 500, "/nonsense"):
        done = process(*words, typed=f"hello\n{bad}\nagain\n".encode())
        alone = process(*words, typed=b"hello\n")
        assert (done.returncode, alone.returncode) == (2, 0) and done.stderr.count(b"\n") == 1
        assert done.stdout == alone.stdout, "nothing is answered after the error"


def test_an_interrupt_at_any_moment_leaves_no_question_without_an_answer(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: Any, **__: Any) -> Any:
        raise KeyboardInterrupt

    conversation = talk(model, "hello")
    before = list(conversation.messages)
    with monkeypatch.context() as patched:
        patched.setattr(Model, "chat", interrupted)
        patched.setattr("herd.cli.output.say", interrupted)
        with pytest.raises(KeyboardInterrupt):
            conversation.hear("again")
    assert conversation.messages == before
    with monkeypatch.context() as patched:
        patched.setattr("herd.cli.output.say", interrupted)
        with pytest.raises(KeyboardInterrupt):
            conversation.hear("again")
    assert [message["role"] for message in conversation.messages[2:]] == ["user", "assistant"]


def test_an_answer_that_was_cut_says_so_on_a_terminal(
    model: Model, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    talk(model, "hello")
    assert "[cut" not in capsys.readouterr().out
    monkeypatch.setattr("herd.cli.output.is_terminal", lambda stream: True)
    talk(model, "hello")
    assert capsys.readouterr().out.endswith(" [cut: --max-tokens]\n")
    talk(model, "hello " * 70, max_tokens=None, logit_bias={257: -100, 258: -100})
    assert capsys.readouterr().out.endswith(" [cut: the context is full]\n")


def test_an_impossible_option_is_refused_before_the_first_message(folder: Path) -> None:
    done = invoke("chat", str(folder), "-t", "-1", *REFERENCE, typed="hello\n")
    assert done.exit_code == 2 and "temperature" in done.output


def test_run_can_ask_as_in_a_chat(folder: Path, model: Model) -> None:
    words = ("run", str(folder), "hello", "--chat", "--system", "Be brief.", "-n", "3", "-t", "0", "--json", *REFERENCE)
    found = json.loads(invoke(*words).output)
    prompt = model.tokenizer.decode(found["prompt_token_ids"], skip_specials=False)
    assert prompt == "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nhello<|im_end|>\n<|im_start|>assistant\n"


def test_a_model_without_a_tokenizer_has_ids_and_says_so(tmp_path: Path) -> None:
    folder = chat_model.write(tmp_path / "bare", has_tokenizer=False)
    words = ("run", str(folder), "--tokens", "1,2,3", "-n", "3", "-t", "0", *REFERENCE)
    found = json.loads(invoke(*words, "--json").output)
    assert found["text"] is None and invoke(*words).output.split() == [str(token) for token in found["token_ids"]]
    assert invoke("run", str(folder), "hello", *REFERENCE).exit_code == 3
    assert "token ids only" in invoke("show", str(folder)).output


@pytest.mark.skipif(os.name != "posix", reason="a pseudo terminal is needed")
def test_a_chat_in_a_terminal(folder: Path, tmp_path: Path) -> None:
    """Types as a person does: help, a message, Ctrl-C in a long answer and at the prompt, and the end. The history is private."""
    import pty

    parent, child = pty.openpty()
    settings = environment(HERD_HOME=str(tmp_path / "home"), TERM="dumb", PYTHONWARNINGS="default")
    words = ("chat", str(folder), "-t", "1", "--seed", "1", *REFERENCE)
    running = subprocess.Popen(command(*words), stdin=child, stdout=child, stderr=child, env=settings, start_new_session=True)
    os.close(child)
    try:
        read_until(parent, b"/help lists")
        os.write(parent, b"/help\n")
        read_until(parent, b"Ctrl-C stops an answer.")
        os.write(parent, b"hello\n")
        read_until(parent, b"> hello\r\n")
        read_some(parent)
        running.send_signal(signal.SIGINT)
        read_until(parent, b"[stopped]")
        interrupt_until(parent, running, b"/exit or Ctrl-D ends.")
        os.write(parent, b"/exit\n")
        read_until_end(parent)
        assert running.wait(timeout=60) == 0
    finally:
        running.kill()
        running.wait()
        os.close(parent)
    history = tmp_path / "home" / "chat_history"
    assert "hello" in history.read_text() and history.stat().st_mode & 0o777 == 0o600


def interrupt_until(descriptor: int, running: subprocess.Popen[bytes], wanted: bytes) -> None:
    """Presses Ctrl-C until the terminal shows `wanted`.

    Once is not enough: CPython notices a signal that comes in the instant before its readline waits only at the next key or signal.
    """
    shown, deadline = b"", time.monotonic() + 60
    while wanted not in shown:
        assert time.monotonic() < deadline, shown
        running.send_signal(signal.SIGINT)
        while select.select([descriptor], [], [], 1)[0] and wanted not in shown:
            shown += os.read(descriptor, 1)


def read_until(descriptor: int, wanted: bytes) -> None:
    """Reads what the terminal shows until it shows `wanted`."""
    shown, deadline = b"", time.monotonic() + 60
    while wanted not in shown:
        assert time.monotonic() < deadline, shown
        shown += read_some(descriptor)


def read_some(descriptor: int) -> bytes:
    """The next thing that the terminal shows; an error when nothing comes for a minute."""
    ready, _, _ = select.select([descriptor], [], [], 60)
    assert ready, "the terminal stays silent"
    return os.read(descriptor, 1)


def read_until_end(descriptor: int) -> None:
    """Reads until the other side has closed the terminal."""
    try:
        while os.read(descriptor, 1024):
            pass
    except OSError:
        return
