"""Adapters that are loaded and unloaded over HTTP: only from where the operator allows it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import httpx
import pytest

from server.conftest import Running


@pytest.fixture
def within(tmp_path: Path) -> Path:
    folder = tmp_path / "adapters"
    (folder / "poems").mkdir(parents=True)
    (tmp_path / "secret").mkdir()
    (folder / "link").symlink_to(tmp_path / "secret", target_is_directory=True)
    return folder


def test_an_adapter_comes_and_goes(serve: Any, within: Path) -> None:
    running = serve(adapter_folder=within)
    made = httpx.post(running.url + "/v1/adapters", json={"model": "fake", "name": "p", "folder": "poems"})
    assert made.status_code == 201 and made.json()["id"] == "fake:p"
    assert running.pool.adapters == {"fake:p": str(within / "poems")}
    gone = httpx.delete(running.url + "/v1/adapters/fake:p")
    assert gone.status_code == 200 and gone.json()["deleted"] is True and not running.pool.adapters
    for name in ("fake:p", "p", "other:p"):
        assert httpx.delete(running.url + f"/v1/adapters/{name}").status_code == 404


@pytest.mark.parametrize("folder", ["../secret", "link", "/", ".", "..", "nothing", "poems/../../secret", "a\0b", "C:\\x", "x" * 600])
def test_nothing_outside_the_folder_is_ever_loaded(serve: Any, within: Path, folder: str) -> None:
    running = serve(adapter_folder=within)
    answer = httpx.post(running.url + "/v1/adapters", json={"model": "fake", "name": "p", "folder": folder})
    assert answer.status_code == 400 and answer.json()["error"]["param"] == "folder"
    assert "secret" not in answer.text.replace(folder, "") and not running.pool.adapters


def test_without_such_a_folder_adapters_stay_as_they_are(server: Running) -> None:
    answer = httpx.post(server.url + "/v1/adapters", json={"model": "fake", "name": "p", "folder": "poems"})
    assert answer.status_code == 403 and "--adapter-folder" in answer.json()["error"]["message"]
    assert httpx.delete(server.url + "/v1/adapters/fake:p").status_code == 403
