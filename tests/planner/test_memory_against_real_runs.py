"""What a plan says that an engine takes, beside what the system says that it took: real engines, each in a process of its own.

Models have the shapes of releases and random weights (what weights say takes no memory); SmolLM2 itself where it was fetched. Set
HERD_RESULTS to a file to have the figures of the table in the docs written there.
"""

from __future__ import annotations

import datetime
import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from herd.engine.memory import available_bytes
from herd.family.catalogue import find
from herd.models.sizes import CACHE_DTYPES
from herd.planner.devices import Device
from herd.planner.formats import Format, format_named
from herd.planner.memory import Load, Memory, reckon
from herd.planner.plan import ask, choose
from herd.planner.reading import Source

WITHIN = 0.05
HERE = Path(__file__).resolve().parent
BENCHMARKS = HERE.parents[1] / "benchmarks"
SMOLLM2 = "smollm2-135m-instruct"
WRITE = "import sys, pathlib, random_models as r; r.write_model(pathlib.Path(sys.argv[1]), *sys.argv[2:], words=True)"
MARGIN_BYTES = 1 << 30


@dataclass(frozen=True)
class Real:
    """A model in a format, and what is kept for it: conversations of `context` tokens, `users` of them, in `cache`."""

    shape: str
    quant: str
    context: int
    users: int
    cache: str

    def __str__(self) -> str:
        return f"{self.shape} {self.quant} {self.users} x {self.context} {self.cache}"


RUNS = [
    Real("smollm2-135m", "q4_0", 2048, 1, "float16"),
    Real("smollm2-135m", "q8_0", 512, 16, "float16"),
    Real("smollm2-135m", "bf16", 2048, 2, "float32"),
    Real("smollm2-360m", "q4_0", 4096, 1, "float16"),
    Real("smollm2-360m", "q5_0", 1024, 8, "int8"),
    Real("smollm2-360m", "f16", 1024, 1, "float32"),
    Real("tinyllama-1.1b-chat", "q4_k", 2048, 1, "float16"),
    Real("tinyllama-1.1b-chat", "q5_k", 1024, 4, "float16"),
    Real("tinyllama-1.1b-chat", "q2_k", 2048, 1, "int4"),
    Real("llama-3.2-1b", "q4_0", 1024, 1, "float16"),
    Real("llama-3.2-1b", "q4_0", 8192, 2, "int8"),
    Real("llama-3.2-1b", "q4_0", 256, 64, "float16"),
    Real("llama-3.2-1b", "q8_0", 2048, 4, "float16"),
    Real("llama-3.2-1b", "bf16", 512, 1, "float32"),
    Real("llama-3.2-3b", "q4_0", 4096, 1, "float16"),
]
"""Models x quantisations x contexts x conversations at once x formats of the cache."""


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where models are written, each when it is first wanted; and kept, where HERD_RANDOM_MODELS names a folder."""
    kept = os.environ.get("HERD_RANDOM_MODELS")
    return Path(kept) if kept else tmp_path_factory.mktemp("models")


def _run(*command: str, **environment: str) -> str:
    path = os.pathsep.join([str(BENCHMARKS), *sys.path])
    done = subprocess.run(
        [sys.executable, *command], capture_output=True, text=True, env={**os.environ, "PYTHONPATH": path, **environment}, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def measured(path: Path, real: Real, home: Path) -> dict[str, int]:
    found: dict[str, int] = json.loads(
        _run(str(HERE / "real_run.py"), str(path), str(real.context), str(real.users), real.cache, HERD_HOME=str(home))
    )
    return found


def predicted(release: str, stored: Format, real: Real) -> Memory:
    """What `herd plan this-machine` reckons with."""
    load = Load(real.users, real.context, real.context - 1, 1)
    return reckon(find(release).config(), stored, CACHE_DTYPES[real.cache], load, kind="cpu", whole=True)


def kept(what: str, said: float, found: float) -> None:
    """A line of the table in the docs."""
    if path := os.environ.get("HERD_RESULTS"):
        line: dict[str, Any] = {"what": what, "predicted": said, "measured": found, "unit": "bytes", "error": said / found - 1}
        with Path(path).open("a", encoding="utf-8") as file:
            file.write(json.dumps({"figure": "memory of an engine", **line, "date": datetime.date.today().isoformat()}) + "\n")


def written(models: Path, real: Real) -> Path:
    path = models / f"{real.shape}-{real.quant}.gguf"
    if not path.exists():
        for other in models.glob("*.gguf") if not os.environ.get("HERD_RANDOM_MODELS") else ():
            other.unlink()
        _run("-c", WRITE, str(path), real.shape, real.quant)
    return path


@pytest.mark.slow
@pytest.mark.parametrize("real", RUNS, ids=str)
def test_an_engine_takes_what_was_planned(real: Real, models: Path, tmp_path: Path) -> None:
    """Within 5 %, of what is in memory when the cache is full: weights, cache, buffers and the program."""
    release = find(real.shape)
    said = predicted(real.shape, format_named(real.quant, release, release.config()), real)
    free = available_bytes()
    if free is None or free < 2 * said.total + MARGIN_BYTES:
        pytest.skip(f"{said.total / 1e9:.1f} GB and as much for the file are needed, {(free or 0) / 1e9:.1f} GB are free")
    found = measured(written(models, real), real, tmp_path)
    kept(str(real), said.total, found["resident"])
    assert found["cache"] == said.cache_bytes
    assert said.weight_bytes == pytest.approx(found["weights"], rel=0.01)
    assert said.total == pytest.approx(found["resident"], rel=WITHIN), found


@pytest.mark.slow
@pytest.mark.network
@pytest.mark.parametrize(("context", "users"), [(2048, 1), (1024, 8), (8192, 1)])
def test_a_real_model_takes_what_was_planned(context: int, users: int, tmp_path: Path) -> None:
    """SmolLM2 as it was fetched: most matrices in q4_1, the table in q8_0."""
    from herd.dtypes import F32, Q4_1, Q8_0
    from herd.errors import HerdError
    from herd.family.finding import find_model
    from herd.family.progress import silent
    from herd.models.weights import Kind

    try:
        path = find_model(SMOLLM2, progress=silent).path
    except HerdError as error:
        pytest.skip(f"{SMOLLM2} is not here: {error}")
    stored = Format("", lambda spec: F32 if spec.kind.is_vector else Q8_0 if spec.kind is Kind.EMBEDDING else Q4_1, (), "")
    real = Real(SMOLLM2, "as fetched", context, users, "float16")
    said, found = predicted(SMOLLM2, stored, real), measured(path, real, tmp_path)
    kept(str(real), said.total, found["resident"])
    assert said.total == pytest.approx(found["resident"], rel=WITHIN), found


def test_what_is_said_of_this_machine_is_the_same_sum() -> None:
    """The plan's own bytes on the device, of which the slow tests know that they are right."""
    release = find("llama-3.2-1b")
    load = Load(2, 4096, 3000, 1096)
    now = Source("test", "a test", datetime.date(2026, 11, 22))
    device = Device(name="here", title="here", kind="cpu", memory=10**10, bandwidth=1e10, peaks={"int8": 1e11}, sources={"memory": now})
    question = ask(
        release, quant="q5_k", cache=CACHE_DTYPES["int8"], load=load, devices=[device], today=now.date or datetime.date.min, whole=True
    )
    memory = reckon(release.config(), question.stored, question.cache, load, kind="cpu", whole=True)
    assert choose(question, device).fit.per_device == memory.total
