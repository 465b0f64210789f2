"""What a loaded model takes of the memory: its weights once, its cache, and little besides."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from conformance.running import cpu_is_built
from herd.bench.shapes import shape_of, write_shape
from herd.family.progress import silent
from herd.models.sizes import weight_bytes

pytestmark = [
    pytest.mark.skipif(not cpu_is_built(), reason="the native core is not built here"),
    pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="this system does not say what a process has resident"),
]

BESIDES_BYTES = 250_000_000
PROGRAM = """
import gc, json, sys, threading
import herd
model = herd.load(sys.argv[1], context=1024, threads=1)
model.generate([300, 301, 302], max_tokens=2, temperature=0.0)
for thread in threading.enumerate():
    if thread.name.startswith("herd-"):
        thread.join()
gc.collect()
status = dict(line.split(":", 1) for line in open("/proc/self/status"))
print(json.dumps({"resident": 1024 * int(status["VmRSS"].split()[0]), "cache": model.engine.memory().cache}))
"""


@pytest.mark.parametrize("quant", ["q4_0", pytest.param("bf16", marks=pytest.mark.slow)])
def test_a_loaded_model_takes_its_weights_once_and_its_cache(tmp_path: Path, quant: str) -> None:
    """Two starts: one that packs the weights, one that maps what the first has kept. In the shape of SmolLM2 135M."""
    shape = shape_of("smollm2-135m-instruct", quant, None)
    path = tmp_path / "model.gguf"
    write_shape(path, shape, silent)
    weights = weight_bytes(shape.config, shape.stored.chosen)
    assert weights > 70_000_000
    environment = os.environ | {"OMP_NUM_THREADS": "1", "HERD_HOME": str(tmp_path / "home")}
    for start in ("packing", "mapping"):
        done = subprocess.run([sys.executable, "-c", PROGRAM, str(path)], env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        found = json.loads(done.stdout)
        assert found["resident"] <= 1.05 * weights + found["cache"] + BESIDES_BYTES, f"{start}: {found}, weights {weights}"
    assert list((tmp_path / "home" / "cache").glob("weights-*.kept"))
