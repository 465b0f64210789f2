"""Where herd keeps its files."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from herd.errors import UsageError
from herd.files import home, models_folder


def test_herd_home_comes_first(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HERD_HOME", str(tmp_path))
    assert home() == tmp_path and models_folder() == tmp_path / "models"


@pytest.mark.parametrize(
    ("platform", "variables", "expected"),
    [
        ("linux", {"HOME": "/people/a", "XDG_CACHE_HOME": "/cache"}, "/cache/herd"),
        ("linux", {"HOME": "/people/a", "XDG_CACHE_HOME": "relative"}, "/people/a/.cache/herd"),
        ("linux", {"HOME": "/people/a"}, "/people/a/.cache/herd"),
        ("darwin", {"HOME": "/people/a"}, "/people/a/Library/Caches/herd"),
        ("win32", {"LOCALAPPDATA": "/people/a/local"}, "/people/a/local/herd"),
    ],
)
def test_each_platform_has_its_cache_folder(
    monkeypatch: pytest.MonkeyPatch, platform: str, variables: dict[str, str], expected: str
) -> None:
    for name in ("HERD_HOME", "HOME", "XDG_CACHE_HOME", "LOCALAPPDATA"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(sys, "platform", platform)
    assert home() == Path(expected)


def test_without_any_home_the_error_says_what_to_set(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HERD_HOME", "HOME", "XDG_CACHE_HOME", "LOCALAPPDATA"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(UsageError, match="Set HERD_HOME"):
        home()
