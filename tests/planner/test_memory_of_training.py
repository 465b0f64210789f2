"""What a plan says that a step of training takes on a processor, beside what real steps took, each in a process of its own.

Steps compute in float32, which is what is planned, whatever the processor is fastest in. Models have the shapes of releases with other
widths and numbers of layers and tokens, and random weights. Set HERD_RESULTS to a file to
have the figures of the table in the docs written there.
"""

from __future__ import annotations

import dataclasses
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
from herd.planner.step import Learning
from herd.planner.student import taken
from planner.test_memory_against_real_runs import kept

WITHIN = 0.10
THREADS = 2
"""Of a step, as `real_step.py` sets them."""
AMPLE = 1 << 40
RELEASE = "smollm2-135m"
STEP = Path(__file__).with_name("real_step.py")


@dataclass(frozen=True)
class Real:
    """A step: of each of its packs the lengths of the documents. `keep`: whether a frozen base is kept as it is multiplied. `width`: that
    of SmolLM2-135M, of Llama 3.2 1B, or the one between them. `within`: how near the plan comes."""

    method: str
    packs: tuple[tuple[int, ...], ...]
    layers: int = 8
    vocabulary: int = 8192
    recompute: bool = False
    keep: bool = False
    rank: int = 16
    width: int = 576
    release: str = RELEASE

    def __str__(self) -> str:
        packs = " + ".join("x".join(str(length) for length in pack) for pack in self.packs)
        how = [
            *([self.release] if self.release != RELEASE else []),
            f"width {self.width}",
            f"{self.layers} layers",
            f"{self.vocabulary} tokens known",
            *(["recomputed"] if self.recompute else []),
        ]
        return f"{self.method} of {packs}, {', '.join([*how, *(['decoded once'] if self.keep else [])])}"

    @property
    def changes(self) -> dict[str, Any]:
        heads, kv_heads, ffn = SHAPES[self.width]
        shape = {"width": self.width, "num_heads": heads, "num_kv_heads": kv_heads, "head_width": 64, "ffn_width": ffn}
        every = list(range(self.layers))
        mixture = {"expert_width": ffn, "num_experts": 4, "expert_layers": every[1::2], "rotary_layers": every, "chunked_layers": [],
                   "chunk": None, "vision": None}  # fmt: skip
        is_mixture = self.release.startswith("llama-4")
        return {"num_layers": self.layers, "vocab_size": self.vocabulary, **shape, **(mixture if is_mixture else {})}

    @property
    def config(self) -> Any:
        config: Any = find(self.release).config()
        return dataclasses.replace(config, **self.changes, rope=dataclasses.replace(config.rope, width=64))


SHAPES = {320: (5, 1, 896), 576: (9, 3, 1536), 768: (12, 4, 2048), 1024: (16, 4, 4096), 1536: (24, 8, 4096), 2048: (32, 8, 8192)}
"""By width: query heads, kv heads and the feed-forward's width."""
RUNS = [
    Real("full", ((512,),)),
    Real("full", ((256, 256), (512,))),
    Real("full", ((1024,),), recompute=True),
    Real("full", ((256,),), layers=2, vocabulary=49152),
    Real("lora", ((512,),)),
    Real("lora", ((1024,),), recompute=True),
    Real("lora", ((512,),), layers=24, recompute=True),
    Real("lora", ((256,),), layers=2, vocabulary=49152),
    Real("qlora", ((1024,),)),
    Real("qlora", ((512,),), layers=4, keep=True),
    Real("full", ((512,),), layers=4, width=1024),
    Real("lora", ((512,),), layers=6, width=1024),
    Real("qlora", ((1024,),), recompute=True),
    Real("qlora", ((512,),), layers=5, width=1024),
    Real("qlora", ((512,),), layers=6, recompute=True, width=1024),
    Real("full", ((256,),), layers=2, width=2048),
    Real("full", ((512,),), layers=2, recompute=True, width=2048),
    Real("lora", ((512,),), layers=2, width=2048),
    Real("lora", ((1024,),), layers=3, recompute=True, width=2048),
    Real("qlora", ((512,),), layers=2, width=2048),
    Real("qlora", ((512,),), layers=3, recompute=True, width=2048),
    # These were planned before they were measured.
    Real("full", ((384,),), layers=12, vocabulary=16384, width=320),
    Real("full", ((700,),), layers=3, vocabulary=32000, width=768, release="tinyllama-1.1b-chat"),
    Real("full", ((300,), (500,)), layers=2, recompute=True, width=1536),
    Real("lora", ((200, 200, 200), (600,)), layers=5, vocabulary=4096, rank=64, width=1536),
    Real("lora", ((2048,),), layers=4, vocabulary=32000, recompute=True, rank=8, width=768),
    Real("lora", ((512,),), layers=4, width=768, release="llama-4-scout"),
    Real("qlora", ((768,),), layers=3, rank=32, width=1536),
    Real("qlora", ((1536,),), layers=10, keep=True, rank=8, width=320),
    Real("qlora", ((640,),), layers=4, vocabulary=49152, recompute=True, width=768),
]


def predicted(real: Real) -> int:
    tokens = max(sum(pack) for pack in real.packs)
    learning = Learning(
        rank=0 if real.method == "full" else real.rank, blocks=real.method == "qlora", tokens=tokens, packs=len(real.packs),
        longest=max(max(pack) for pack in real.packs if sum(pack) == tokens), recompute=real.recompute,
        keep_bytes=AMPLE if real.keep else 0, threads=THREADS,
    )  # fmt: skip
    return taken(real.config, learning).total


def measured(real: Real) -> int:
    job: dict[str, Any] = {
        "release": real.release, "changes": real.changes, "method": real.method, "rank": real.rank, "recompute": real.recompute,
        "stored": "q4_0" if real.method == "qlora" else "f32", "keep": AMPLE if real.keep else 0, "packs": real.packs,
        "threads": THREADS,
    }  # fmt: skip
    path = os.pathsep.join(sys.path)
    done = subprocess.run(
        [sys.executable, str(STEP), json.dumps(job)], capture_output=True, text=True, env={**os.environ, "PYTHONPATH": path}, check=False
    )
    assert done.returncode == 0, done.stderr
    return int(json.loads(done.stdout)["step"])


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="what a process takes is read from /proc")
@pytest.mark.parametrize("real", RUNS, ids=str)
def test_a_step_takes_what_was_planned(real: Real) -> None:
    """Within 10 % of what is in memory at most, less the program itself."""
    pytest.importorskip("torch")
    said, free = predicted(real), available_bytes()
    if free is None or free < 2 * said:
        pytest.skip(f"{2 * said / 1e9:.1f} GB are needed, {(free or 0) / 1e9:.1f} GB are free")
    found = measured(real)
    kept(f"step of training, {real}", said, found)
    assert said == pytest.approx(found, rel=WITHIN)


def test_states_are_twelve_bytes_a_weight_beside_its_own_four() -> None:
    config = find(RELEASE).config()
    count = 134_515_008
    found = taken(config, Learning(rank=0, blocks=False, tokens=64, longest=64, packs=2, recompute=False, keep_bytes=0, threads=2))
    assert (found.weights, found.gradients, found.optimizer) == (4 * count, 4 * count, 8 * count)
    alone = taken(config, Learning(rank=0, blocks=False, tokens=2048, longest=2048, packs=1, recompute=False, keep_bytes=0, threads=2))
    assert alone.gradients == 0, "activations are more than gradients, and gone when these come"


def test_recomputing_and_blocks_take_less_and_decoding_once_takes_more() -> None:
    config = find(RELEASE).config()
    lora = Learning(rank=16, blocks=False, tokens=1024, longest=1024, packs=1, recompute=False, keep_bytes=0, threads=2)
    blocks, again = dataclasses.replace(lora, blocks=True), dataclasses.replace(lora, recompute=True)
    assert taken(config, again).activations < taken(config, lora).activations / 5
    assert taken(config, blocks).weights < taken(config, lora).weights / 1.5
    decoded = taken(config, dataclasses.replace(blocks, keep_bytes=AMPLE))
    assert taken(config, lora).weights < decoded.weights < 1.2 * taken(config, lora).weights
