"""A real engine in a process of its own, which says what it takes: `python real_run.py FILE CONTEXT PARALLEL CACHE` prints JSON.

It is loaded as a program loads it, answers until a step was as large as steps get, and then holds a full cache: pages that no answer
reached are written as if one had. What is in memory then is what the system says it is, file pages of weights included.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

SETTLED_BYTES = 1 << 20
STEP_TOKENS = 512


def resident_bytes() -> int:
    """What of this process is in memory now."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmRSS"))
    return int(line.split()[1]) * 1024


def settled() -> int:
    """The same, once nothing comes or goes any more: plain weights are packed after the first answer."""
    last, since = resident_bytes(), time.monotonic()
    while time.monotonic() - since < 2.0:
        time.sleep(0.1)
        now = resident_bytes()
        if abs(now - last) > SETTLED_BYTES:
            last, since = now, time.monotonic()
    return resident_bytes()


def run(path: str, context: int, parallel: int, kv_cache: str) -> dict[str, Any]:
    import herd
    from herd.engine.request import Request
    from herd.sampling.params import SamplingParams

    with herd.load(path, context=context, parallel=parallel, kv_cache=kv_cache, threads=2) as model:
        model.tokenizer.encode("How much is it? " * 20)
        engine = model._engine  # what is measured: its pages, and what its backend says of itself
        each = min(STEP_TOKENS, context - 8)
        for number in range(parallel):
            length = each if number * each < STEP_TOKENS else 4  # the first ones fill a step, the others take a row of logits
            tokens = [(number * 7919 + place * 104729) % (model.config.vocab_size - 1) for place in range(length)]
            engine.submit(Request(tokens=tokens, sampling=SamplingParams(temperature=0.0), max_tokens=3, stop_ids=()))
        while engine.step():
            pass
        after = settled()
        page = bytes(engine.page_bytes)
        for number in range(engine.limits.num_pages):
            engine.backend.write_page(number, memoryview(page))
        held = engine.backend.memory()
        del page
        return {
            "resident": settled(),
            "after_answers": after,
            "weights": held.weights,
            "cache": held.cache,
            "buffers": held.buffers,
        }


if __name__ == "__main__":
    print(json.dumps(run(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4])))
