"""`herd serve` as a person uses it: what it refuses before anything is loaded, its settings, and one real server from start to end."""

from __future__ import annotations

import json
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from cli.running import STORIES, command, environment, invoke
from herd.errors import FileProblem, UsageError
from herd.server.settings import Settings
from herd.server.settings_file import read_settings
from server.raw import until

NO_MODEL = ("serve", "./nothing.gguf")


def test_others_are_not_let_in_without_a_key_unless_that_is_wished() -> None:
    refused = invoke(*NO_MODEL, "--host", "0.0.0.0", "--port", "0")
    assert refused.exit_code == 2 and "herd keys create NAME" in refused.stderr and "--no-key" in refused.stderr
    wished = invoke(*NO_MODEL, "--host", "0.0.0.0", "--port", "0", "--no-key")
    assert wished.exit_code == 3 and "nothing.gguf" in wished.stderr
    invoke("keys", "create", "alice")
    assert invoke(*NO_MODEL, "--host", "0.0.0.0", "--port", "0").exit_code == 3


def test_keys_that_are_asked_for_have_to_be_there() -> None:
    refused = invoke(*NO_MODEL, "--key", "--port", "0")
    assert refused.exit_code == 2 and "herd keys create NAME" in refused.stderr


def test_a_port_that_is_taken_is_one_line(server: Any) -> None:
    refused = invoke("serve", STORIES, "--port", str(server.port))
    assert refused.exit_code == 2 and refused.stderr.strip().count("\n") == 0 and "in use by another program" in refused.stderr


def test_a_missing_library_is_named_with_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    import importlib.util

    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name == "uvicorn" else find(name, *rest))
    refused = invoke(*NO_MODEL)
    assert refused.exit_code == 2 and "needs uvicorn" in refused.stderr and "pip install 'herd-llama[server]'" in refused.stderr


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--port", "70000"), "port is 70000"),
        (("--set", "grace_s=-1"), "grace_s is -1"),
        (("--set", "grac_s=1"), "did you mean 'grace_s'?"),
        (("--set", "max_requests=many"), "expected a whole number"),
        (("--set", "cache_disk_bytes=1000000"), "Name a cache_folder too"),
        (("--cache-folder", "c", "--set", "cache_disk_bytes=0"), "cache_disk_bytes is 0"),
        (("--cache-folder", "c", "--set", "cache_disk_bytes=much"), "expected a whole number"),
        (("--set", "max_requests"), "expected NAME=VALUE"),
        (("--set", "max_connections=1000000000"), "ulimit -n"),
        (("--host", "192.0.2.1", "--no-key"), "no address of this computer"),
        (("--adapter", "poems"), "expected a folder, NAME=FOLDER"),
        (("--adapter", "other:poems=./x"), "names no model that is served"),
        (("--memory", "much"), "--memory"),
    ],
)
def test_wrong_options_are_refused_before_anything_is_loaded(words: tuple[str, ...], said: str) -> None:
    refused = invoke("serve", STORIES, *(() if "--port" in words else ("--port", "0")), *words)
    assert refused.exit_code == 2 and said in refused.stderr, refused.stderr


def test_settings_come_from_a_file_then_from_set_then_from_options(tmp_path: Path) -> None:
    file = tmp_path / "server.toml"
    file.write_text('port = 1\ngrace_s = 5\nallow_origin = ["https://a.example"]\ndata_folder = "kept"\nlog_prompts = true\n')
    found = read_settings(file, ["port=2", "grace_s=2.5", "image_host=img.example"], {"port": 3})
    expected = Settings(
        port=3, grace_s=2.5, allow_origin=("https://a.example",), image_host=("img.example",), data_folder=Path("kept"), log_prompts=True
    )
    assert found == expected
    file.write_text("port = ")
    with pytest.raises(FileProblem, match="is not TOML"):
        read_settings(file, [], {})
    with pytest.raises(FileProblem, match="cannot be read"):
        read_settings(tmp_path / "absent", [], {})
    file.write_text("log_prompts = 1")
    with pytest.raises(UsageError, match="expected true or false"):
        read_settings(file, [], {})
    kept = read_settings(None, ["cache_disk_bytes=1000000"], {"cache_folder": tmp_path})
    assert kept.cache_disk_bytes == 1_000_000 and read_settings(None, [], {"cache_folder": tmp_path}).cache_disk_bytes is None


@pytest.fixture
def stories(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """`herd serve` of a model of 260,000 parameters, as a process; it has printed that it is ready."""
    words = command("serve", f"tiny={STORIES}", "--port", "0", "--backend", "reference", "--context", "64", "--parallel", "2")
    words += ["--cache-folder", str(tmp_path / "cache")]
    bare = environment(LC_ALL="C")  # a locale without UTF-8, and nothing to read from
    process = subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=bare)
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def test_a_real_server_says_where_it_is_answers_and_leaves_nothing_behind(stories: subprocess.Popen[str]) -> None:
    assert stories.stdout is not None
    first = stories.stdout.readline()
    assert first.startswith("herd serves tiny at http://127.0.0.1:"), first
    url = first.split()[-1]
    page = ""
    while "twice ends at once" not in page:
        page += stories.stdout.readline()
    assert (
        "64 tokens of context" in page
        and "weights" in page
        and f'base_url="{url}/v1"' in page
        and "this computer only, without a key" in page
        and "cache, up to 8.6 GB" in page
        and "disk_buffers" in page
    )
    asked = {"model": "tiny", "prompt": "Once", "max_tokens": 4, "temperature": 0}
    found = httpx.post(f"{url}/v1/completions", json=asked, timeout=60)
    assert found.status_code == 200 and found.json()["usage"]["completion_tokens"] == 4
    assert 'herd_model_steps_total{model="tiny"}' in httpx.get(f"{url}/metrics").text
    children = _children(stories.pid)
    assert children
    stories.send_signal(signal.SIGTERM)
    _, log = stories.communicate(timeout=20)
    assert stories.returncode == 0 and until(lambda: not any(Path(f"/proc/{child}").exists() for child in children))
    lines = [json.loads(line.partition(" INFO ")[2]) for line in log.splitlines() if " INFO {" in line]
    assert [line["status"] for line in lines][:1] == [200] and lines[0]["answer_tokens"] == 4 and "Once" not in log


def test_a_file_that_is_no_model_ends_the_server_with_the_files_own_error(tmp_path: Path) -> None:
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(b"GGUF" + bytes(100))
    done = subprocess.run(command("serve", str(broken), "--port", "0"), capture_output=True, text=True, env=environment(), timeout=60)
    assert done.returncode == 3 and "broken.gguf" in done.stderr and "Traceback" not in done.stderr, done.stderr


def _children(parent: int) -> list[int]:
    """Processes that a process started, on Linux."""
    tasks = Path(f"/proc/{parent}/task/{parent}/children")
    return [int(each) for each in tasks.read_text().split()] if tasks.exists() else []


def test_a_model_whose_smallest_cache_does_not_fit_is_refused_once_before_anything_is_loaded() -> None:
    memory = Path(STORIES).stat().st_size + 1000
    refused = invoke("serve", f"a={STORIES}", f"b={STORIES}", "--port", "0", "--memory", str(memory))
    assert refused.exit_code == 4 and refused.stderr.strip().count("\n") == 0, refused.stderr
    assert "a takes" in refused.stderr and "for keys and values" in refused.stderr and f"the {memory:,} that all" in refused.stderr
