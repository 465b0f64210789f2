"""Starting is fast: `import herd` loads neither numpy nor torch, and help needs no model code.

The promise is 100 ms for the import and 200 ms for `herd --help`. Counted here is processor time, which other work on the
machine changes less than the clock; and the guards are twice the promise, because shared machines differ. They catch a heavy
import, which costs much more, and are no measurement.
"""

from __future__ import annotations

import json
import resource
import statistics
import subprocess
import sys

SLACK = 2.0
IMPORT_S = 0.100
HELP_S = 0.200
RUNS = 5

PROBE = """
import json, sys, time
before = time.process_time()
import herd
seconds = time.process_time() - before
print(json.dumps({"seconds": seconds, "modules": sorted(sys.modules)}))
"""
HELP = "from herd.cli.main import main; main()"
HEAVY = {"numpy", "torch", "transformers", "tokenizers", "jinja2", "huggingface_hub", "rich", "safetensors"}


def test_import_herd_is_fast_and_loads_nothing_heavy() -> None:
    runs = [json.loads(subprocess.run([sys.executable, "-c", PROBE], check=True, capture_output=True).stdout) for _ in range(RUNS)]
    assert not HEAVY & set(runs[0]["modules"])
    assert statistics.median(run["seconds"] for run in runs) < IMPORT_S * SLACK


def test_help_is_fast() -> None:
    """The whole process, with the interpreter's own start."""
    seconds = []
    for _ in range(RUNS):
        before = children_s()
        subprocess.run([sys.executable, "-c", HELP, "--help"], check=True, capture_output=True)
        seconds.append(children_s() - before)
    assert statistics.median(seconds) < HELP_S * SLACK


def children_s() -> float:
    """Processor seconds of all processes that this one started and waited for."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime
