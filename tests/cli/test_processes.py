"""As processes: pipes that close, Ctrl-C, no network, odd terminals, and what is imported."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from cli.running import REFERENCE, STORIES, command, environment, process

ONCE = "Once upon a time"
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


def test_everything_but_pulling_works_in_a_namespace_without_a_network(tmp_path: Path) -> None:
    """Not even the loopback device is up there: whatever leaves the machine, or only tries to, fails."""
    unshare = shutil.which("unshare")
    if unshare is None or subprocess.run([unshare, "-rn", "true"], capture_output=True, check=False).returncode != 0:
        pytest.skip("this system does not let a test make a network namespace (unshare -rn)")
    text = tmp_path / "text.txt"
    text.write_text(f"{ONCE}, there was a little girl.")
    settings = environment(HERD_OFFLINE="1")

    def alone(*words: str) -> subprocess.CompletedProcess[bytes]:
        return subprocess.run([unshare, "-rn", *command(*words)], env=settings, input=b"", capture_output=True, timeout=120, check=False)

    ran = alone("run", STORIES, ONCE, "-n", "4", "-t", "0", *REFERENCE)
    assert ran.returncode == 0 and ran.stdout.startswith(b", there was"), ran
    for words in (("models",), ("show", STORIES), ("eval", "perplexity", STORIES, str(text), *REFERENCE), ("--version",)):
        assert alone(*words).returncode == 0, words
    begin = time.monotonic()
    pulled = alone("pull", "smollm2-135m-instruct")
    assert pulled.returncode == 5 and b"Offline" in pulled.stderr and time.monotonic() - begin < 30


def test_offline_is_handed_on_to_libraries_and_telemetry_is_off() -> None:
    program = (
        "import json, os; from herd.family.offline import go_offline, silence_telemetry; go_offline(); silence_telemetry()\n"
        "from huggingface_hub import constants\n"
        "print(json.dumps([constants.HF_HUB_OFFLINE, constants.HF_HUB_DISABLE_TELEMETRY, os.environ['DO_NOT_TRACK']]))"
    )
    settings = {name: value for name, value in environment().items() if not name.startswith(("HF_", "HERD_OFF", "DO_NOT"))}
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", program], env=settings, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == [True, True, "1"]
