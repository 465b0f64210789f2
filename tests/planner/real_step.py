"""Real training steps in a process of their own, which says what they take: `python real_step.py JOB` prints JSON.

JOB is a JSON object: release, changes (of its config), method, stored (format of the weights), recompute, keep (bytes of frozen matrices
that may be kept as they are multiplied), packs (of each pack of a step the lengths of its documents), rank, threads. Steps are in
float32, whatever the processor is fastest in. Weights are random, made one at
a time as a file gives them. What counts is the most that was in memory during the steps, less what the program itself takes: that is
measured before, after a step of a tiny model.
"""

from __future__ import annotations

import json
import math
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

STEPS = 3
SMALL = {"width": 64, "num_layers": 1, "num_heads": 2, "num_kv_heads": 1, "head_width": 32, "ffn_width": 64, "vocab_size": 256}
SMALL_MIXTURE = {"expert_width": 64, "num_experts": 2, "expert_layers": (0,), "rotary_layers": (0,), "chunked_layers": (0,), "vision": None}


def status(name: str) -> int:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(name))
    return int(line.split()[1]) * 1024


def leaf_of(cfg: Any, matrices: Any) -> Any:
    """Random weights, each made when it is asked for: tables in float32, matrices in this format."""
    from herd.dtypes import F32
    from herd.models.architecture import architecture_of
    from herd.models.weights import Blocks, Dense, Kind
    from herd.quant import quantize

    specs = {spec.name: spec for spec in architecture_of(cfg).tensors(cfg)}
    chance = np.random.default_rng(0)

    def leaf(name: str) -> Any:
        shape, kind = specs[name].shape, specs[name].kind
        if kind.is_vector:
            return Dense(F32, shape, np.ones((1, *shape), np.float32).view(np.uint8))
        *leading, columns = shape
        rows = math.prod(leading)
        stored = matrices if kind in (Kind.MATRIX, Kind.EXPERTS) else F32
        data = np.empty((rows, stored.row_bytes(columns)), np.uint8)
        for first in range(0, rows, 1024):
            values = chance.standard_normal((min(1024, rows - first), columns), np.float32) * np.float32(0.02)
            data[first : first + 1024] = quantize(stored, values)
        return (Blocks if stored.is_block else Dense)(stored, shape, data)

    return leaf


def steps(cfg: Any, job: dict[str, Any]) -> None:
    """The student and the steps of `loop.train` with `InPacks.learn`."""
    import torch

    from herd.dtypes import BY_NAME
    from herd.training import gradients
    from herd.training.running.optim import kinds_of, make_optimiser
    from herd.training.settings.lora import Lora
    from herd.training.settings.optimiser import OptimiserSettings
    from herd.training.student.batches import Document, batch_of
    from herd.training.student.checkpointing import recomputed
    from herd.training.student.model import Student

    lora = None if job["method"] in ("full", "pretrain") else Lora(rank=job["rank"], alpha=32)
    leaf = leaf_of(cfg, BY_NAME[job["stored"]])
    student = Student(cfg, leaf, dtype=torch.float32, lora=lora, keep_bytes=job["keep"])
    if job["recompute"]:
        student.run = recomputed
    optimiser = make_optimiser(OptimiserSettings(), kinds_of(cfg, student.parameters))
    for number in range(STEPS):
        for lengths in job["packs"]:
            ids = [[(number + place * 7919) % cfg.vocab_size for place in range(length)] for length in lengths]
            batch = batch_of([Document(tuple(each), (0.0, *[1.0] * (len(each) - 1))) for each in ids])
            nll, _ = student.nll(batch)
            (nll / batch.num_targets).backward()  # type: ignore[no-untyped-call]
        gradients.clip(student.parameters, gradients.norm(student.parameters), 1.0)
        optimiser.step(student.parameters, 1e-4)
        gradients.clear(student.parameters)


def run(job: dict[str, Any]) -> dict[str, int]:
    import torch

    from herd.family.catalogue import find
    from herd.training.student.allocation import tensor_memory

    torch.set_num_threads(job["threads"])
    cfg: Any = find(job["release"]).config()
    small = replace(cfg, **SMALL, **(SMALL_MIXTURE if hasattr(cfg, "num_experts") else {}), rope=replace(cfg.rope, width=32))
    with tensor_memory() as is_bounded:
        assert is_bounded, "a plan is for a system where tensors lie in pages of their own"
        steps(small, job | {"stored": "f32", "keep": 0, "packs": [[8]]})
        program = status("VmRSS")
        Path("/proc/self/clear_refs").write_text("5")  # forgets the highest so far
        changes = {name: tuple(value) if isinstance(value, list) else value for name, value in job["changes"].items()}
        steps(replace(cfg, **changes, rope=replace(cfg.rope, width=64)), job)
    return {"program": program, "peak": status("VmHWM"), "step": status("VmHWM") - program}


if __name__ == "__main__":
    print(json.dumps(run(json.loads(sys.argv[1]))))
