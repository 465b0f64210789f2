"""What is wrong gets one line that says so, and the exit code of its kind: 2 usage, 3 files, 4 capacity, 5 others."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

import pytest

from cli.running import REFERENCE, STORIES, environment, invoke, process
from herd.errors import CapacityError, UsageError
from herd.files import models_folder

LONG = "word " * 5000


@pytest.mark.parametrize(
    ("words", "code", "complaint"),
    [
        (("nonsense",), 2, "No such command"),
        (("run",), 2, "Missing argument"),
        (("run", "no-such-model", "x"), 2, "No model is known as 'no-such-model'"),
        (("run", "smollm-135m-instruct", "x"), 2, "did you mean smollm2-135m-instruct"),
        (("run", "./missing.gguf", "x"), 3, "does not exist"),
        (("run", __file__, "x"), 3, "test_refusals.py"),
        (("run", ".", "x"), 3, ""),
        (("run", STORIES, "x", "--backend", "refrence"), 2, "did you mean 'reference'"),
        (("run", STORIES, "x", "--device", "cuda"), 2, "device is 'cuda'"),
        (("run", STORIES, "x", "--dtype", "int4"), 2, "dtype is 'int4'"),
        (("run", STORIES, "x", "--activations", "int4"), 2, "activations is 'int4'"),
        (("run", STORIES, "x", "--threads", "0"), 2, "threads is 0"),
        (("run", STORIES, "x", "--threads", "two"), 2, "not a valid integer"),
        (("run", STORIES, "x", "--context", "100000", *REFERENCE), 2, "context is 100000"),
        (("run", STORIES, "x", "--adapter", "/none", *REFERENCE), 3, "/none"),
        (("run", STORIES, "x", "-t", "-1", *REFERENCE), 2, "temperature is -1.0"),
        (("run", STORIES, "x", "-t", "nan", *REFERENCE), 2, "temperature is nan"),
        (("run", STORIES, "x", "--top-p", "1.5", *REFERENCE), 2, "top_p is 1.5"),
        (("run", STORIES, "x", "--seed", "-1", *REFERENCE), 2, "seed is -1"),
        (("run", STORIES, "x", "-n", "-1", *REFERENCE), 2, "max_tokens"),
        (("run", STORIES, "x", "--stop", "", *REFERENCE), 2, "stop contains ''"),
        (("run", STORIES, "x", "--logprobs", "3", *REFERENCE), 2, "--logprobs is for --json"),
        (("run", STORIES, "x", "--logprobs", "21", "--json", *REFERENCE), 2, "logprobs is 21"),
        (("run", STORIES, "x", "--system", "y", *REFERENCE), 2, "--system is for --chat"),
        (("run", STORIES, "x", "--chat", *REFERENCE), 2, "no chat format"),
        (("run", STORIES, "x", "--tokens", "1,2"), 2, "--tokens is the whole prompt"),
        (("run", STORIES, "--tokens", "1,a"), 2, "expected whole numbers"),
        (("run", STORIES, "--tokens", "1,512", *REFERENCE), 2, "512"),
        (("run", STORIES, LONG, *REFERENCE), 2, "512"),
        (("chat", STORIES, *REFERENCE), 2, "no chat format"),
        (("pull", "llama-1-7b"), 2, "researchers by application"),
        (("pull", "smollm2-135m-instruct", "--offline"), 5, "Offline"),
        (("--offline", "pull", "llama-3.2-1b"), 5, "Offline"),
        (("--offline", "run", "llama-3.2-1b", "x"), 5, "Offline"),
        (("remove", "../../x", "--yes"), 2, "is not in"),
        (("remove", "smollm2-135m-instruct"), 2, "is not in"),
        (("show", "no-such-model"), 2, "No model is known"),
        (("show", STORIES, "--context", "0"), 2, "--context is 0"),
        (("bench", STORIES, "--rounds", "0"), 2, "--rounds is 0"),
        (("bench", STORIES, "--prompt-tokens", "5000", *REFERENCE), 2, "The context has 512"),
        (("eval", "perplexity", STORIES, "./none.txt", *REFERENCE), 3, "cannot be read"),
        (("eval", "perplexity", STORIES, STORIES, *REFERENCE), 3, "not valid UTF-8"),
        (("eval", "perplexity", STORIES, __file__, "--window", "9999", *REFERENCE), 2, "window is 9999"),
        (("eval", "kl", STORIES, STORIES, __file__, "--p", "nonsense", *REFERENCE), 2, "expected NAME=VALUE"),
        (("eval", "kl", STORIES, STORIES, __file__, "--p", "threads=x", *REFERENCE), 2, "expected a whole number"),
        (("eval", "accuracy", STORIES, __file__, *REFERENCE), 3, "is not JSON"),
        (("eval", "accuracy", STORIES, __file__, "--limit", "0", *REFERENCE), 2, "--limit is 0"),
    ],
    ids=lambda value: " ".join(value)[:60].replace(STORIES, "stories") if isinstance(value, tuple) else "",
)
def test_bad_input(words: tuple[str, ...], code: int, complaint: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HERD_OFFLINE", "")
    monkeypatch.setenv("HF_HUB_OFFLINE", "")
    done = invoke(*words)
    assert done.exit_code == code, done.output
    assert complaint in done.output and "Traceback" not in done.output and "met a bug" not in done.output
    assert len(done.output) < 2000


def test_bytes_that_are_no_text_are_refused() -> None:
    done = invoke("run", STORIES, *REFERENCE, typed=b"good \xff bad")
    assert done.exit_code == 2 and "not valid UTF-8 (at byte 5)" in done.output
    done = invoke("run", STORIES, "bad \udcff", *REFERENCE)
    assert done.exit_code == 2 and "not valid UTF-8" in done.output
    assert invoke("run", STORIES, *REFERENCE, typed=b"").exit_code == 2


def test_a_prompt_as_an_argument_of_raw_bytes_is_refused_by_a_process_too() -> None:
    done = process("run", STORIES, os.fsdecode(b"bad \xff"), *REFERENCE)
    assert done.returncode == 2 and b"not valid UTF-8" in done.stderr and done.stdout == b""


def test_errors_go_to_stderr_and_nothing_to_stdout() -> None:
    done = process("run", "no-such-model", "x")
    assert (done.returncode, done.stdout) == (2, b"") and done.stderr.startswith(b"Error: ") and done.stderr.count(b"\n") == 1


def test_a_bug_of_ours_is_one_line_unless_it_is_looked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> None:
        raise ZeroDivisionError("oh")

    monkeypatch.setattr("herd.family.store.installed", broken)
    done = invoke("models")
    assert done.exit_code == 1 and "met a bug: ZeroDivisionError: oh. Set HERD_DEBUG=1" in done.output
    monkeypatch.setenv("HERD_DEBUG", "1")
    assert isinstance(invoke("models").exception, ZeroDivisionError)


@pytest.mark.parametrize(("error", "code"), [(CapacityError("full"), 4), (MemoryError(), 4), (KeyboardInterrupt(), 130)])
def test_other_ends_have_their_codes(monkeypatch: pytest.MonkeyPatch, error: BaseException, code: int) -> None:
    def failing() -> None:
        raise error

    monkeypatch.setattr("herd.family.store.installed", failing)
    assert invoke("models").exit_code == code


def test_without_a_home_the_way_out_is_named() -> None:
    settings = {name: value for name, value in environment().items() if name not in ("HOME", "HERD_HOME", "XDG_CACHE_HOME")}
    done = process("models", env=settings)
    assert done.returncode == 2 and b"HERD_HOME" in done.stderr


def test_a_home_that_is_a_file_is_a_matter_of_usage(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    done = process("pull", "smollm2-135m-instruct", env=environment(HERD_HOME=str(tmp_path / "file")))
    assert done.returncode == 2 and b"HERD_HOME" in done.stderr


def test_a_damaged_model_is_refused_by_name_and_quickly() -> None:
    folder = models_folder() / "broken"
    folder.mkdir(parents=True)
    (folder / "model.gguf").write_bytes(b"GGUF" + b"\xff" * 100)
    for words in (("show", "broken"), ("run", "broken", "x"), ("eval", "perplexity", "broken", __file__)):
        done = invoke(*words)
        assert done.exit_code == 3 and "model.gguf" in done.output, done.output


@pytest.mark.skipif(not os.path.exists("/dev/zero"), reason="needs a file without an end")
def test_a_text_without_an_end_is_refused_and_not_read_for_ever() -> None:
    done = invoke("eval", "perplexity", STORIES, "/dev/zero", *REFERENCE)
    assert done.exit_code == 3 and "larger than 67,108,864 bytes" in done.output


@pytest.mark.skipif(os.name != "posix" or sys.platform == "darwin", reason="needs names of files that are not UTF-8")
def test_a_name_that_no_terminal_can_show_is_no_crash(tmp_path: Path) -> None:
    copy = tmp_path / os.fsdecode(b"bad\xff.bin")
    shutil.copy(STORIES, copy)
    shutil.copy(Path(STORIES).with_name("tok512.bin"), tmp_path / "tok512.bin")
    for coding in ("utf-8", "ascii"):
        settings = environment(PYTHONIOENCODING=coding)
        shown = process("show", str(copy), env=settings)
        assert shown.returncode == 0 and b"260,032" in shown.stdout, shown
        missing = process("show", str(copy) + "x.gguf", env=settings)
        assert missing.returncode == 3 and missing.stderr.startswith(b"Error: ") and missing.stderr.count(b"\n") == 1, missing


def test_without_a_home_a_chat_keeps_no_history(monkeypatch: pytest.MonkeyPatch) -> None:
    from herd.cli.chat import _history

    def homeless() -> Path:
        raise UsageError("There is no home.")

    monkeypatch.setattr("herd.files.home", homeless)
    with _history(True):
        pass
