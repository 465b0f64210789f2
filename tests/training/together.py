"""A tiny model that one process trains, or two together; run as a program it is one of them.

`RANK=0 WORLD_SIZE=2 MASTER_ADDR=... MASTER_PORT=... python together.py FOLDER [WAY] CASE ...`

CASE is [MODEL ]METHOD-OPTIMISER-WEIGHTS[-STOP]: MODEL "llama4" (with experts; else a dense llama), METHOD all weights ("full"), updates
("lora", "dropped" with dropout), or the name of a recipe over all weights. WAY is how the processes share: "tensor" heads and columns of
one model, "expert" its experts, "both" all of these, "context" the tokens of every document.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from herd.models.architecture import Config
from herd.models.weights import Kind
from herd.training.company import ALONE, Company, shared
from herd.training.recipes.reward_model import HEAD
from herd.training.running.loop import Told, train
from herd.training.running.optim import kinds_of, make_optimiser
from herd.training.running.parallel import Processes, company, divide, gather
from herd.training.running.runs import open_run
from herd.training.running.saving import write_tensors
from herd.training.schedules import Schedule
from herd.training.settings.loop import LoopSettings
from herd.training.settings.optimiser import OptimiserSettings
from herd.training.settings.parallel import ParallelSettings
from herd.training.student.batches import Document
from herd.training.student.model import Student
from tiny import random_leaves, tiny_llama, tiny_llama4

SETTINGS = LoopSettings(schedule=Schedule(lr=0.01, steps=6), save_every=2, save_minutes=0, evaluate_every=3, clip=0.5)
SHORT = LoopSettings(schedule=Schedule(lr=0.01, steps=3), save_minutes=0, evaluate_every=3, clip=0.5)
"""Of recipes."""
STOPPED_AFTER = 3
LLAMA4 = "llama4 "
SMALL_LLAMA4 = tiny_llama4(num_layers=2, ffn_width=64, expert_width=64, expert_layers=(1,), rotary_layers=(0,), chunked_layers=(0,))
WAYS = {"tensor": ("tensor",), "expert": ("expert",), "both": ("tensor", "expert"), "context": ("context",)}


@dataclass(frozen=True)
class Packed:
    """Three packs of documents of unequal length a step, each process taking its own."""

    student: Student
    company: Company

    @property
    def parameters(self) -> Mapping[str, torch.nn.Parameter]:
        return self.student.parameters

    def step(self, number: int) -> dict[str, float]:
        packs = [documents_of(lengths, 10 * number + index) for index, lengths in enumerate(((9, 4), (17,), (3, 5, 2)))]
        return self._computed(packs, is_learning=True)

    def _computed(self, packs: list[list[Document]], *, is_learning: bool) -> dict[str, float]:
        total = sum(sum(document.weights) for pack in packs for document in pack)
        mine = 0.0
        for _, pack, counts in shared(self.company, packs):
            nll, _ = self.student.nll(self.student.batch_of(pack))
            loss = nll * counts / total
            if is_learning:
                loss.backward()  # type: ignore[no-untyped-call]
            mine += float(loss.detach())
        tokens = sum(weight != 0 for pack in packs for document in pack for weight in document.weights)
        return {"loss": self.company.total(mine), "tokens": float(tokens)}

    def evaluate(self, number: int) -> dict[str, float]:
        with torch.no_grad():
            return self._computed([documents_of((8,), 999)], is_learning=False)

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        return {}, {}

    def restore(self, tensors: Mapping[str, Tensor], values: Mapping[str, Any]) -> None:
        pass


def documents_of(lengths: tuple[int, ...], seed: int) -> list[Document]:
    """Random documents; about two thirds of their tokens count, some more than others."""
    random = np.random.default_rng([7, seed])
    made = []
    for length in lengths:
        weights = random.choice([0.0, 1.0, 0.5], length)
        weights[0], weights[-1] = 0.0, 1.0
        made.append(Document(tuple(random.integers(4, 200, length).tolist()), tuple(weights.tolist())))
    return made


def student_of(model: str, method: str, together: Company = ALONE) -> Student:
    from herd.training.settings.lora import Lora

    cfg: Config = SMALL_LLAMA4 if model == LLAMA4 else tiny_llama()
    leaves = random_leaves(cfg)
    lora = Lora(rank=4, targets=("all",), dropout=0.5 if method == "dropped" else 0.0) if method in ("lora", "dropped") else None
    sharing, context = (together.sharing, together.context) if isinstance(together, Processes) else (None, None)
    return Student(cfg, leaves.__getitem__, dtype=torch.float64, lora=lora, sharing=sharing, context=context)


def work(folder: Path, case: str, together: Company = ALONE) -> None:
    """Trains to the end, or until it is stopped; writes the weights that came of it as `learned.safetensors`."""
    model = LLAMA4 if case.startswith(LLAMA4) else ""
    method, optimiser, weights, *stop = case.removeprefix(model).split("-")
    student = student_of(model, method, together)
    recipe, settings = Packed(student, together), SETTINGS
    if method not in ("full", "lora", "dropped"):
        from training.recipes_together import recipe_of

        recipe, settings = recipe_of(method, student, student_of(model, "lora", together), documents_of, together), SHORT
    if weights == "divided" and isinstance(together, Processes):
        divide(student, together)
    kinds = {**kinds_of(student.cfg, student.parameters), HEAD: Kind.BIAS}
    made = make_optimiser(OptimiserSettings(name=optimiser), kinds)

    def told(seen: Told) -> None:
        if stop and seen.step == STOPPED_AFTER and not seen.is_evaluation and not seen.note and together.index == together.count - 1:
            os.kill(os.getpid(), signal.SIGTERM)

    facts = {"data": {}, "model": "", "machine": {}, "version": {}}
    with open_run(folder, settings, facts, resume=(folder / "config.toml").exists(), company=together) as run:
        train(recipe, run, settings, made, told, together)
    gather(student)
    if together.index == 0:
        write_tensors(folder / "learned.safetensors", student.parameters)


def main() -> None:
    folder, *cases = sys.argv[1:]
    divided = WAYS[cases.pop(0)] if cases[0] in WAYS else ()
    parallel = ParallelSettings(**dict.fromkeys(divided, int(os.environ["WORLD_SIZE"])))
    with company(parallel=parallel) as (together, _):
        for case in cases:
            name, _, case = case.rpartition("=")
            work(Path(folder) / (name or case), case, together)
            together.all_agree(True)


if __name__ == "__main__":
    main()
