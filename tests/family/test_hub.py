"""Releases of a hub, against a server of this machine that speaks its protocol."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import random
import shutil
from pathlib import Path

import pytest

from family.servers import Hub, serving_hub
from herd.errors import CapacityError, FileProblem, ProviderError, UsageError
from herd.family import store
from herd.family.catalogue import find
from herd.family.finding import find_model
from herd.family.pull import pull

RELEASE = find("llama-3.2-1b-instruct")
CONTENT = {
    "config.json": json.dumps({"model_type": "llama"}).encode(),
    "model-00001-of-00002.safetensors": random.Random(3).randbytes(700_000),
    "model-00002-of-00002.safetensors": random.Random(4).randbytes(300_000),
    "model.safetensors.index.json": b"{}",
    "tokenizer.json": b"{}",
    "tokenizer_config.json": b"{}",
    "README.md": b"not fetched",
    "consolidated.00.pth": b"not fetched",
}


@pytest.fixture(autouse=True)
def _plain_hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No token of the person who runs the tests, no other hub, no cache of theirs."""
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HF_HUB_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_HUB_DISABLE_XET", "1")
    monkeypatch.setenv("HF_TOKEN_PATH", str(tmp_path / "no-token"))
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(tmp_path / "no-token"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub-cache"))


def test_weights_configuration_and_tokenizer_are_fetched_and_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    hub = Hub(content=CONTENT)
    seen: list[tuple[str, int, int]] = []
    with serving_hub(hub) as address:
        monkeypatch.setenv("HF_ENDPOINT", address)
        path = pull(RELEASE, progress=lambda *told: seen.append(told))
    wanted = {name: data for name, data in CONTENT.items() if data != b"not fetched"}
    assert {file.name: file.read_bytes() for file in path.iterdir() if file.name != store.SOURCE_FILE} == wanted
    assert json.loads((path / store.SOURCE_FILE).read_text())["source"].startswith(f"{hub.repository} at commit {hub.commit}")
    weights = [name for name in wanted if name.endswith(".safetensors")]
    assert store.announced_sums(path) == {name: hashlib.sha256(CONTENT[name]).hexdigest() for name in weights}
    total = sum(map(len, wanted.values()))
    assert seen[-1][1:] == (total, total)
    assert all("telemetry" not in path for _, path, _ in hub.requests)


def test_a_release_in_metas_layout_is_fetched_in_it_with_its_licence(monkeypatch: pytest.MonkeyPatch) -> None:
    release = find("llama-3.2-1b-instruct-spinquant")
    wanted = {
        "consolidated.00.pth": b"weights",
        "params.json": b"{}",
        "tokenizer.model": b"words",
        "LICENSE.txt": b"text",
        "USE_POLICY.md": b"text",
    }
    content = {**wanted, "README.md": b"not fetched", "llama3_2_spinquant.pte": b"not fetched"}
    with serving_hub(Hub(content=content, repository=release.repository or "")) as address:
        monkeypatch.setenv("HF_ENDPOINT", address)
        path = pull(release)
    assert {file.name: file.read_bytes() for file in path.iterdir() if file.name != store.SOURCE_FILE} == wanted


def test_a_name_that_is_not_here_is_fetched_by_asking_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    with serving_hub(Hub(content=CONTENT)) as address:
        monkeypatch.setenv("HF_ENDPOINT", address)
        found = find_model("meta-llama/Llama-3.2-1B-Instruct")
    assert found.release is RELEASE and found.path.is_dir()


@pytest.mark.parametrize("token", [None, "hf_wrong"])
def test_a_gated_repository_says_where_to_accept_the_licence(monkeypatch: pytest.MonkeyPatch, token: str | None) -> None:
    if token:
        monkeypatch.setenv("HF_TOKEN", token)
    with serving_hub(Hub(content=CONTENT, gate="hf_right")) as address:
        monkeypatch.setenv("HF_ENDPOINT", address)
        with pytest.raises(ProviderError) as caught:
            pull(RELEASE)
    message = str(caught.value)
    assert f"{address}/{RELEASE.repository}" in message and "HF_TOKEN" in message and "Llama 3.2 Community License" in message
    assert "hf_wrong" not in message
    assert store.installed() == []


def test_a_token_opens_the_gate(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_right")
    with serving_hub(Hub(content=CONTENT, gate="hf_right")) as address:
        monkeypatch.setenv("HF_ENDPOINT", address)
        assert (pull(RELEASE) / "config.json").exists()


def test_an_interrupted_pull_keeps_what_is_complete(monkeypatch: pytest.MonkeyPatch) -> None:
    hub = Hub(content=CONTENT, gate=None)
    with serving_hub(hub) as address:
        monkeypatch.setenv("HF_ENDPOINT", address)
        first = "model-00001-of-00002.safetensors"
        folder = store.partial_folder(RELEASE.name) / "model"
        hub.gate = "nobody"
        with pytest.raises(ProviderError):
            pull(RELEASE)
        assert folder.is_dir() and store.locate(RELEASE.name) is None
        hub.gate = None
        (folder / first).write_bytes(CONTENT[first])
        assert (pull(RELEASE) / first).read_bytes() == CONTENT[first]


def test_a_file_that_is_not_what_the_hub_says_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    hub = Hub(content=CONTENT, wrong_sha256=True)
    with serving_hub(hub) as address:
        monkeypatch.setenv("HF_ENDPOINT", address)
        with pytest.raises(FileProblem, match="SHA-256"):
            pull(RELEASE)
    assert store.installed() == []


def test_an_unknown_repository_and_a_silent_hub_are_provider_errors(monkeypatch: pytest.MonkeyPatch) -> None:
    with serving_hub(Hub(repository="somebody/else", content=CONTENT)) as address:
        monkeypatch.setenv("HF_ENDPOINT", address)
        with pytest.raises(ProviderError, match="does not show"):
            pull(RELEASE)
    with pytest.raises(ProviderError, match="cannot be reached"):
        pull(RELEASE)


def test_a_repository_without_safetensors_is_refused_before_anything_is_fetched(monkeypatch: pytest.MonkeyPatch) -> None:
    hub = Hub(content={"config.json": b"{}", "consolidated.00.pth": b"x"})
    with serving_hub(hub) as address:
        monkeypatch.setenv("HF_ENDPOINT", address)
        with pytest.raises(ProviderError, match=r"no \.safetensors files"):
            pull(RELEASE)
    assert not any("/resolve/" in path for _, path, _ in hub.requests)


def test_space_is_checked_up_front(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10, 9, 1_000))  # type: ignore[attr-defined]
    hub = Hub(content=CONTENT)
    with serving_hub(hub) as address:
        monkeypatch.setenv("HF_ENDPOINT", address)
        with pytest.raises(CapacityError, match="1,000 are free"):
            pull(RELEASE)
    assert not any("/resolve/" in path for _, path, _ in hub.requests)


def test_a_release_that_nobody_serves_says_why() -> None:
    with pytest.raises(UsageError, match="researchers by application"):
        pull(find("llama-1-7b"))


def test_offline_nothing_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HERD_OFFLINE", "1")
    hub = Hub(content=CONTENT)
    with serving_hub(hub) as address:
        monkeypatch.setenv("HF_ENDPOINT", address)
        with pytest.raises(ProviderError, match="Offline"):
            pull(RELEASE)
    assert hub.requests == []


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG])
def test_a_disk_that_fills_while_fetching_is_a_matter_of_capacity(monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    """What a write raises names no file."""

    def full(*_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number))

    with serving_hub(Hub(content=CONTENT)) as address:
        monkeypatch.setenv("HF_ENDPOINT", address)
        monkeypatch.setattr("huggingface_hub.HfApi.snapshot_download", full)
        with pytest.raises(CapacityError, match="Free some space"):
            pull(RELEASE)
    assert store.locate(RELEASE.name) is None
