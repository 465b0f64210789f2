"""Which backends a conformance test runs on."""

from __future__ import annotations

import pytest

from conformance.running import BACKENDS, cpu_is_built, torch_is_installed


@pytest.fixture(params=BACKENDS)
def backend_name(request: pytest.FixtureRequest) -> str:
    """Every backend of this checkout, one after another."""
    if request.param == "cpu" and not cpu_is_built():
        pytest.skip("the extension herd._core is not built (pip install -e .)")
    if request.param == "torch" and not torch_is_installed():
        pytest.skip("torch is not installed (pip install herd-llama[torch])")
    return str(request.param)


@pytest.fixture
def cpu() -> str:
    """The compiled backend's name; skips where the extension is not built."""
    if not cpu_is_built():
        pytest.skip("the extension herd._core is not built (pip install -e .)")
    return "cpu"
