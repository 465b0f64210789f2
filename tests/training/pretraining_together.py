"""Pretraining of a tiny model from made-up text, by one process or by several; run as a program it is one of them.

`RANK=0 WORLD_SIZE=2 ... python pretraining_together.py PLACE FOLDER CASE`, CASE being NAME-WEIGHTS[-STOP]; PLACE has text and tokenizer.
In float64: AdamW makes a full step of any gradient, however small, so in float32 the order of sums would show.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from herd.models.weights import Matrix
from herd.training.beginning import pretrain_run
from herd.training.running.loop import Told
from herd.training.settings.parallel import ParallelSettings
from herd.training.settings.pretrain import PretrainSettings
from herd.training.settings.reading import read_settings

STOPPED_AFTER = 3
TEXT = "The quick brown fox jumps over the lazy dog, and the dog does not mind at all. "
MODELS: dict[str, dict[str, Any]] = {
    "dense": {"model": {"architecture": "llama", "width": 32, "layers": 2}, "micro_tokens": 96},
    "experts": {"model": {"architecture": "llama4", "width": 32, "layers": 2, "experts": 2}, "balancing": {"loss": 0.1, "bias": 0.01}},
    "recomputed": {"model": {"architecture": "llama4", "width": 32, "layers": 2, "experts": 2}, "recompute": True},
    "taught": {"model": {"architecture": "llama", "width": 32, "layers": 2}},
}


def make_place(folder: Path) -> None:
    """A text, and a tokenizer that was learned from it."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    (folder / "fox.txt").write_text(TEXT * 400)
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)  # type: ignore[assignment]
    made.decoder = decoders.ByteLevel()  # type: ignore[assignment]
    specials = ["<|begin_of_text|>", "<|end_of_text|>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    made.train_from_iterator([TEXT], trainers.BpeTrainer(vocab_size=300, special_tokens=specials, initial_alphabet=alphabet))
    (folder / "words").mkdir()
    made.save(str(folder / "words" / "tokenizer.json"))
    (folder / "words" / "tokenizer_config.json").write_text('{"bos_token": "<|begin_of_text|>", "eos_token": "<|end_of_text|>"}')


def settings_of(place: Path, name: str, *, is_divided: bool = False) -> PretrainSettings:
    named: dict[str, Any] = {
        "data": [{"path": [str(place / "fox.txt")], "held_out": 0.2}],
        "tokenizer": str(place / "words"),
        "sequence": 32,
        "batch_tokens": 160,
        "loop": {"schedule": {"steps": 6, "lr": 0.01}, "save_every": 2, "evaluate_every": 3, "divided": is_divided},
        **MODELS[name],
    }
    if name == "taught":
        named["teacher"] = {"model": str(place / "teacher" / "model")}
    return read_settings(PretrainSettings, None, (), named)


def work(place: Path, folder: Path, case: str) -> None:
    """Trains to the end, or until it is stopped; the weights that came of it are written by the first process."""
    name, weights, *stop = case.split("-")

    def write(model: Path, cfg: Any, leaves: Mapping[str, Matrix], words: Any, beside: Any) -> None:
        np.savez(folder / "learned.npz", **{name: np.asarray(leaf.data).view(np.float32) for name, leaf in leaves.items()})

    def told(news: Told) -> None:
        if stop and news.step == STOPPED_AFTER and not news.is_evaluation and not news.note:
            os.kill(os.getpid(), signal.SIGTERM)

    torch.set_num_threads(1)
    pretrain_run._dtype = lambda settings: torch.float64  # type: ignore[assignment]
    settings = settings_of(place, name, is_divided=weights.startswith("divided"))
    if weights not in ("whole", "divided") and "WORLD_SIZE" in os.environ:
        tensor, expert, context = {"tensor": (2, 1, 1), "expert": (1, 2, 1), "": (2, 2, 1), "context": (1, 1, 2)}[weights.partition(" ")[2]]
        settings = replace(settings, parallel=ParallelSettings(tensor=tensor, expert=expert, context=context))
    pretrain_run.pretrain(settings, folder, write, resume=(folder / "config.toml").exists(), told=told)


if __name__ == "__main__":
    work(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3])
