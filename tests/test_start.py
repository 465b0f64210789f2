"""A start from kept weights loads none of the libraries that take longer to import than a small model takes to answer."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from herd.dtypes import F32, Q8_0
from herd.files.folders import cache_folder
from text import vocabularies
from tiny import random_leaves, tiny_llama
from tiny_files import write_gguf

pytest.importorskip("herd._core", reason="the extension herd._core is not built (pip install -e .)", exc_type=ImportError)

LATER = {"numpy", "tokenizers", "jinja2", "huggingface_hub", "rich", "llguidance", "safetensors", "torch", "PIL"}
START = """
import json, sys
from herd.backends.cpu import kept
kept.MIN_BYTES = 0
from herd.cli.main import main
try:
    main(["run", sys.argv[1], sys.argv[2], "-n", "1", "-t", "0"], prog_name="herd")
except SystemExit as end:
    print(json.dumps({"code": end.code, "modules": sorted({name.partition(".")[0] for name in sys.modules})}))
"""


def start(path: Path, prompt: str) -> set[str]:
    """Top-level modules that one answer has loaded."""
    done = subprocess.run([sys.executable, "-c", START, str(path), prompt], check=True, capture_output=True, text=True)
    told = json.loads(done.stdout.splitlines()[-1])
    assert told["code"] == 0, done.stderr
    return set(told["modules"])


def test_the_second_start_answers_without_numpy_and_the_tokenizers_library(tmp_path: Path) -> None:
    keys = vocabularies.gguf("llama-bpe")
    cfg = tiny_llama(num_layers=1, vocab_size=len(keys["tokenizer.ggml.tokens"]))
    leaves = random_leaves(cfg, dtype=lambda spec: F32 if spec.kind.is_vector else Q8_0)
    path = write_gguf(tmp_path / "model.gguf", cfg, leaves, keys)
    assert "numpy" in start(path, "Once upon a time")
    assert len(list(cache_folder().glob("*.kept"))) == 1
    assert not start(path, "Once upon a time") & LATER
    assert start(path, "Es war einmal ein K\u00f6nig") & LATER == {"tokenizers"}
