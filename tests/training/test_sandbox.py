"""What a program in the sandbox cannot do. Programs that try it are run here, each for a moment."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

import pytest

from herd.errors import UsageError
from herd.training.settings.rewards import GUARDS
from herd.training.signals import sandbox
from herd.training.signals.sandbox import Limits, Outcome, passes, run_program


def _guards() -> frozenset[str]:
    return run_program("", Limits(seconds=5), required=()).guards


needs_guards = pytest.mark.skipif(
    sys.platform != "linux" or _guards() != GUARDS, reason="this system forbids user namespaces: the sandbox has limits only"
)


def run(source: str, **limits: float) -> Outcome:
    return run_program(source, Limits(**{"seconds": 10, **limits}), required=())  # type: ignore[arg-type]


def test_a_program_runs_and_its_output_and_end_are_told() -> None:
    found = run("import sys\nprint('six', 2 * 3)\nprint('oh', file=sys.stderr)\nsys.exit(3)")
    assert (found.reason, found.exit_code, found.output, found.errors) == ("ended", 3, "six 6\n", "oh\n")
    assert not found.is_success and run("pass").is_success


def test_an_endless_loop_is_ended() -> None:
    start = time.monotonic()
    found = run("while True: pass", seconds=0.5)
    assert found.reason == "time" and found.exit_code is None and time.monotonic() - start < 8


def test_a_program_that_waits_is_ended_too() -> None:
    assert run("import time\ntime.sleep(60)", seconds=0.5).reason == "time"


def test_a_memory_bomb_is_refused_memory() -> None:
    found = run("x = bytearray(1 << 31)", memory_bytes=256 << 20)
    assert found.exit_code == 1 and "MemoryError" in found.errors


def test_huge_output_ends_the_program_and_is_cut() -> None:
    found = run("while True: print('x' * 1000)", output_bytes=5000)
    assert found.reason == "output" and len(found.output) == 5000


@needs_guards
def test_a_fork_bomb_stays_small_and_leaves_nothing_behind() -> None:
    bomb = "import os, time\nwhile True:\n    try:\n        os.fork()\n    except OSError:\n        time.sleep(0.01)"
    before = processes_of_nobody_or_me()
    found = run(bomb, seconds=1.0, processes=8)
    assert found.reason == "time"
    deadline = time.monotonic() + 5
    while processes_of_nobody_or_me() > before and time.monotonic() < deadline:
        time.sleep(0.05)
    assert processes_of_nobody_or_me() <= before


def processes_of_nobody_or_me() -> int:
    """Processes whose command line is the sandbox's program or what it starts."""
    count = 0
    for folder in Path("/proc").iterdir():
        try:
            words = (folder / "cmdline").read_bytes()
        except OSError:
            continue
        count += b"program.py" in words or b"sandbox_child.py" in words
    return count


@needs_guards
def test_processes_are_counted() -> None:
    begin = "import os, time\nn = 0\ntry:\n    while os.fork(): n += 1\n    time.sleep(5)\n"
    source = begin + "except OSError:\n    print(n, flush=True)\n    os._exit(0)"
    assert run(source, processes=4).output in ("2\n", "3\n", "4\n")


@needs_guards
def test_a_program_that_leaves_its_session_dies_with_the_others() -> None:
    source = "import os, time\nif os.fork() == 0:\n    os.setsid()\n    time.sleep(60)\nprint('left')"
    found = run(source, seconds=5)
    assert found.output == "left\n" and found.seconds < 5


@needs_guards
def test_there_is_no_network() -> None:
    source = """
import socket
for at in (("127.0.0.1", 80), ("10.0.0.1", 80), ("8.8.8.8", 53)):
    try:
        socket.create_connection(at, 1)
        print("connected")
    except OSError:
        pass
try:
    socket.getaddrinfo("example.org", 80)
    print("resolved")
except OSError:
    print("none")
"""
    assert run(source).output == "none\n"


@needs_guards
def test_files_are_written_to_a_small_folder_in_memory_only(tmp_path: Path) -> None:
    os.chmod(tmp_path, 0o777)
    source = f"""
import os
for place in ("/tmp/herd", "/etc/herd", "/dev/shm/herd", {str(tmp_path / "herd")!r}, os.path.expanduser("~/herd")):
    try:
        open(place, "w")
        print("wrote", place)
    except OSError:
        pass
open("mine", "w").write("kept")
print(open("mine").read())
try:
    for number in range(10000):
        open(str(number), "wb").write(bytes(1 << 16))
except OSError as error:
    print(error.errno, number < 40)
"""
    found = run(source, files_bytes=1 << 20, files=20)
    assert found.output == "kept\n28 True\n", found
    assert list(tmp_path.iterdir()) == []


@needs_guards
def test_rights_over_the_namespaces_are_gone() -> None:
    source = """
import ctypes, os
libc = ctypes.CDLL(None, use_errno=True)
print(libc.umount2(b"/proc", 2), libc.mount(b"none", b"/", None, 0x1000 | 0x20, None), libc.sethostname(b"mine", 4))
print(os.listdir("/proc") if os.access("/proc", os.R_OK) else [])
try:
    os.kill(1, 9)
except PermissionError:
    pass
print("still here")
"""
    assert run(source).output == "-1 -1 -1\n[]\nstill here\n"


def test_secrets_of_the_environment_are_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET_KEY", "sesame")
    assert "sesame" not in run("import os\nprint(os.environ)").output


def test_code_passes_its_tests_or_does_not() -> None:
    code = "def double(x):\n    return 2 * x"
    assert passes(code, "assert double(4) == 8", required=())
    assert not passes(code, "assert double(4) == 9", required=())
    assert not passes("def double(x:", "assert True", required=())


@pytest.mark.parametrize("way", ["import sys; sys.exit(0)", "import os; os._exit(0)", "raise SystemExit", "exit()"])
def test_ending_early_is_not_passing(way: str) -> None:
    assert not passes(way, "assert False", required=())


def test_a_missing_guard_is_refused_by_name(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    weak = tmp_path / "child.py"
    text = sandbox._CHILD.read_text(encoding="utf-8").replace('if enter_namespaces(libc, told["folder"]):', "if False:")
    weak.write_text(text, encoding="utf-8")
    monkeypatch.setattr(sandbox, "_CHILD", weak)
    with pytest.raises(UsageError, match="no hold here on: files, network, processes"):
        run_program("print(1)")
    with pytest.raises(UsageError, match="no hold here on: network"):
        passes("", "", required={"network"})
    assert run_program("print(1)", required=()).output == "1\n"
    assert run_program("while True: pass", Limits(seconds=0.3), required=()).reason == "time"


def test_limits_that_make_no_sense_are_refused() -> None:
    with pytest.raises(UsageError, match="seconds is 0"):
        Limits(seconds=0)
