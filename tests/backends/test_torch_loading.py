"""From `herd.load` to the torch backend, and what is said where torch is not there."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import herd
from herd.errors import UsageError

STORIES = Path(__file__).resolve().parent.parent / "data" / "stories260K" / "stories260K.bin"
WITHOUT_TORCH = """
import sys
sys.modules["torch"] = None
import herd
try:
    herd.load(sys.argv[1], backend="torch")
except herd.UsageError as error:
    print(error)
"""


def test_a_model_answers_in_torch_as_in_the_reference() -> None:
    pytest.importorskip("torch", reason="torch is not installed (pip install herd-llama[torch])")
    asked = {"max_tokens": 24, "temperature": 0.0}
    with herd.load(STORIES, backend="reference") as model:
        expected = model.generate("Once upon a time", **asked).text
    with herd.load(STORIES, backend="torch", threads=1) as model:
        assert model.generate("Once upon a time", **asked).text == expected
    with herd.load(STORIES, backend="torch", threads=1, dtype="bfloat16") as model:
        assert model.generate("Once upon a time", **asked).text[:8] == expected[:8]


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        ({"backend": "torch", "device": "tpu"}, "device is 'tpu'"),
        ({"backend": "torch", "device": None}, "device is None"),
        ({"backend": "torch", "activations": "int8"}, "activations is 'int8'"),
        ({"backend": "cpu", "device": "cuda"}, "GPUs are for backend='torch'"),
    ],
)
def test_settings_that_it_cannot_honour_are_refused(settings: dict[str, str], complaint: str) -> None:
    pytest.importorskip("torch", reason="torch is not installed (pip install herd-llama[torch])")
    with pytest.raises(UsageError) as caught:
        herd.load(STORIES, **settings)
    assert complaint in str(caught.value)


def test_without_torch_the_user_is_told_what_to_install() -> None:
    done = subprocess.run([sys.executable, "-c", WITHOUT_TORCH, str(STORIES)], capture_output=True, text=True, timeout=120)
    assert "pip install 'herd-llama[torch]'" in done.stdout, done
    assert done.returncode == 0
