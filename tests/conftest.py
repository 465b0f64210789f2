"""What every test may rely on: no network by default, no models of the person who runs them, and optional shared data."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parent.parent


def pytest_make_parametrize_id(val: object, argname: str) -> str | None:
    """Bytes are named after their argument: packed bytes hold the time, and every worker must collect the same names."""
    return argname if isinstance(val, bytes) else None


@pytest.fixture(autouse=True)
def _own_home(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Default tests see an empty models folder and no settings of the caller; tests marked `network` see the real ones."""
    if request.node.get_closest_marker("network"):
        return
    monkeypatch.setenv("HERD_HOME", str(tmp_path_factory.mktemp("herd-home", numbered=True)))
    monkeypatch.delenv("HERD_OFFLINE", raising=False)


@pytest.fixture(scope="session")
def repository() -> Path:
    """The root of this checkout."""
    return REPOSITORY


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Tokenizers, vectors and a tiny real model that are too large for the repository. Skips, saying so, where absent."""
    root = Path(os.environ.get("HERD_SHARED", REPOSITORY.parent / "shared"))
    if not (root / "data").is_dir():
        pytest.skip(f"no shared data at {root / 'data'} (name its folder with HERD_SHARED)")
    return root / "data"
