"""As processes: pipes that close, Ctrl-C, no network, odd terminals, and what is imported."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from cli import chat_model
from cli.running import REFERENCE, STORIES, command, environment, process

ONCE = "Once upon a time"
Alone = Callable[..., "subprocess.CompletedProcess[bytes]"]
HEAVY = ("numpy", "torch", "transformers", "tokenizers", "jinja2", "huggingface_hub", "rich", "click")


def test_importing_herd_loads_nothing_heavy() -> None:
    program = "import sys, herd; print([name for name in sys.argv[1:] if name in sys.modules]); herd.UsageError; herd.FileProblem"
    done = subprocess.run([sys.executable, "-c", program, *HEAVY], env=environment(), capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_unknown_names_of_the_package_are_attribute_errors() -> None:
    import herd

    assert {"load", "Model", "HerdError", "__version__"} <= set(dir(herd))
    with pytest.raises(AttributeError, match="no attribute 'laod'"):
        herd.laod  # noqa: B018


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="/dev/full, a disk without room, is Linux's")
def test_output_to_a_full_disk_is_said_to_be_that() -> None:
    with open("/dev/full", "wb") as full:
        done = subprocess.run(
            command("run", STORIES, ONCE, "-n", "2", *REFERENCE),
            stdout=full,
            stderr=subprocess.PIPE,
            env=environment(),
            timeout=120,
            check=False,
        )
    assert done.returncode == 4 and b"no room" in done.stderr and b"bug" not in done.stderr


def test_running_a_model_imports_no_network_and_no_drawing() -> None:
    program = (
        "import sys; from herd.cli.main import main\n"
        "try:\n    main(sys.argv[1:], prog_name='herd')\nexcept SystemExit as end:\n    assert not end.code\n"
        "print([n for n in ('rich', 'huggingface_hub', 'torch', 'transformers', 'httpx', 'httpx2') if n in sys.modules])"
    )
    words = ["run", STORIES, ONCE, "-n", "2", *REFERENCE]
    done = subprocess.run([sys.executable, "-c", program, *words], env=environment(), capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


def test_a_reader_that_leaves_early_is_no_error() -> None:
    line = " ".join(["set -o pipefail;", *(f"'{word}'" for word in command("run", STORIES, ONCE, "-n", "300", *REFERENCE)), "| head -c 5"])
    done = subprocess.run(["bash", "-c", line], env=environment(), capture_output=True, timeout=120, check=False)
    assert (done.returncode, len(done.stdout), done.stderr) == (0, 5, b"")


def test_ctrl_c_ends_a_run_with_130() -> None:
    running = subprocess.Popen(
        command("run", STORIES, ONCE, "-n", "400", "-t", "1", *REFERENCE), env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert running.stdout is not None and running.stdout.read(1)
    running.send_signal(signal.SIGINT)
    _, errors = running.communicate(timeout=60)
    assert running.returncode == 130 and b"Traceback" not in errors


def test_closed_standard_input_is_refused_in_one_line() -> None:
    for words in (("run", STORIES), ("chat", STORIES)):
        line = " ".join([*(f"'{word}'" for word in command(*words, *REFERENCE)), "<&-"])
        done = subprocess.run(["bash", "-c", line], env=environment(), capture_output=True, timeout=60, check=False)
        assert done.returncode == 2 and done.stderr.count(b"\n") == 1, done.stderr


def test_a_terminal_of_plain_letters_gets_replacements() -> None:
    settings = environment(LC_ALL="C", PYTHONCOERCECLOCALE="0", PYTHONUTF8="0", PYTHONIOENCODING="")
    done = process("show", STORIES, env=settings)
    assert done.returncode == 0 and b"stories260K" in done.stdout
    done = process("eval", "accuracy", STORIES, "/dev/null", *REFERENCE, env=settings)
    assert done.returncode == 2 and b"Traceback" not in done.stderr


def test_nothing_waits_or_draws_when_nobody_looks() -> None:
    done = process("run", STORIES, ONCE, "-n", "3", *REFERENCE)
    assert done.returncode == 0 and done.stderr == b""


@pytest.fixture(scope="module")
def alone() -> Alone:
    """Runs a command where not even the loopback device is up: whatever leaves the machine, or only tries to, fails."""
    unshare = shutil.which("unshare")
    if unshare is None or subprocess.run([unshare, "-rn", "true"], capture_output=True, check=False).returncode != 0:
        pytest.skip("this system does not let a test make a network namespace (unshare -rn)")

    def run(*words: str, typed: bytes = b"", **changes: str) -> subprocess.CompletedProcess[bytes]:
        settings = environment(**{"HERD_OFFLINE": "1", **changes})
        return subprocess.run([unshare, "-rn", *command(*words)], env=settings, input=typed, capture_output=True, timeout=120, check=False)

    return run


def test_everything_but_pulling_works_without_a_network(alone: Alone, tmp_path: Path) -> None:
    text, questions = tmp_path / "text.txt", tmp_path / "questions.jsonl"
    text.write_text(f"{ONCE}, there was a little girl.")
    questions.write_text('{"question": "Once upon a", "choices": ["time", "xylophone"], "answer": 0}\n')
    ran = alone("run", STORIES, ONCE, "-n", "4", "-t", "0", *REFERENCE)
    assert ran.returncode == 0 and ran.stdout.startswith(b", there was"), ran
    for words in (
        ("models",),
        ("show", STORIES),
        ("eval", "perplexity", STORIES, str(text), *REFERENCE),
        ("eval", "kl", STORIES, STORIES, str(text), *REFERENCE),
        ("eval", "accuracy", STORIES, str(questions), *REFERENCE),
        ("bench", STORIES, "--prompt-tokens", "8", "--decode-tokens", "4", "--rounds", "1", *REFERENCE),
        ("--version",),
    ):
        done = alone(*words)
        assert done.returncode == 0 and done.stdout, (words, done)


def test_a_chat_from_a_pipe_works_without_a_network(alone: Alone, tmp_path: Path) -> None:
    folder = chat_model.write(tmp_path / "tiny")
    done = alone("chat", str(folder), "-n", "3", "-t", "0", *REFERENCE, typed=b"hello\nagain\n")
    assert done.returncode == 0 and done.stdout.count(b"\n") >= 2 and done.stderr == b"", done


def test_a_model_is_removed_without_a_network(alone: Alone, tmp_path: Path) -> None:
    folder = tmp_path / "models" / "mine"
    folder.mkdir(parents=True)
    (folder / "model.gguf").write_bytes(b"GGUF")
    done = alone("remove", "mine", "--yes", HERD_HOME=str(tmp_path))
    assert done.returncode == 0 and not folder.exists(), done


def test_the_compiled_backend_works_without_a_network(alone: Alone) -> None:
    pytest.importorskip("herd._core", reason="herd._core is not built here")
    ran = alone("run", STORIES, ONCE, "-n", "4", "-t", "0", "--threads", "1")
    assert ran.returncode == 0 and ran.stdout.startswith(b", there was"), ran
    timed = alone("bench", STORIES, "--prompt-tokens", "8", "--decode-tokens", "4", "--rounds", "1", "--threads", "1")
    assert timed.returncode == 0, timed


def test_pulling_without_a_network_says_so_at_once(alone: Alone) -> None:
    begin = time.monotonic()
    pulled = alone("pull", "smollm2-135m-instruct")
    assert pulled.returncode == 5 and b"Offline" in pulled.stderr and time.monotonic() - begin < 30


def test_a_local_file_needs_no_network_and_tries_none_even_where_that_is_allowed() -> None:
    """Nobody said offline. Every attempt to look up a name or to connect is written down, and there is none."""
    program = (
        "import sys; tried = []\n"
        "def heard(event, _):\n    if event.startswith(('socket.connect', 'socket.get', 'socket.send')): tried.append(event)\n"
        "sys.addaudithook(heard)\n"
        "from herd.cli.main import main\n"
        "try:\n    main(sys.argv[1:], prog_name='herd')\nexcept SystemExit as end:\n    assert not end.code\n"
        "print(tried)"
    )
    unset = ("HERD_OFFLINE", "HF_HUB_OFFLINE", "HF_HUB_DISABLE_TELEMETRY", "DO_NOT_TRACK")
    settings = {name: value for name, value in environment().items() if name not in unset}
    words = [sys.executable, "-c", program, "run", STORIES, ONCE, "-n", "4", "-t", "0", *REFERENCE]
    done = subprocess.run(words, env=settings, capture_output=True, timeout=120, check=False)
    assert done.returncode == 0 and done.stdout.startswith(b", there was") and done.stdout.splitlines()[-1] == b"[]", done


def test_a_local_file_works_without_a_network_when_nobody_said_offline(alone: Alone) -> None:
    ran = alone("run", STORIES, ONCE, "-n", "4", "-t", "0", *REFERENCE, HERD_OFFLINE="", HF_HUB_OFFLINE="")
    assert ran.returncode == 0 and ran.stdout.startswith(b", there was") and ran.stderr == b"", ran


def test_offline_is_handed_on_to_libraries_and_telemetry_is_off() -> None:
    program = (
        "import json, os; from herd.family.offline import go_offline, silence_telemetry; go_offline(); silence_telemetry()\n"
        "from huggingface_hub import constants\n"
        "print(json.dumps([constants.HF_HUB_OFFLINE, constants.HF_HUB_DISABLE_TELEMETRY, os.environ['DO_NOT_TRACK']]))"
    )
    settings = {name: value for name, value in environment().items() if not name.startswith(("HF_", "HERD_OFF", "DO_NOT"))}
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", program], env=settings, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == [True, True, "1"]
