"""In 16 bits updates learn like in 32, because their product is added before the one rounding; beside `peft`, which adds it after."""

from __future__ import annotations

from typing import Any

import pytest

pytest.importorskip("torch", reason="torch is not installed (pip install herd-llama[torch])")
pytest.importorskip("peft", reason="peft is not installed (pip install herd-llama[dev])")

import torch

from herd.dtypes import BF16, F32
from herd.training.settings.lora import Lora
from herd.training.student.batches import batch_of
from herd.training.student.model import Student
from tiny import random_leaves, tiny_llama
from training.learning import documents_of, loss_of, their_loss, their_model, their_module, their_updates

SMALL = tiny_llama(width=64, num_layers=2, num_heads=2, num_kv_heads=1, ffn_width=128, vocab_size=128, tied_embeddings=True)
LORA = Lora(8, 16.0)
SETTINGS: dict[str, Any] = {"lr": 1e-3, "weight_decay": 0.0, "betas": (0.9, 0.999)}
STEPS = 200


def curves(seed: int, steps: int = STEPS) -> tuple[list[float], list[float], list[float]]:
    """Losses of each step: ours in float32, ours in bfloat16, peft's over a bfloat16 model with its own float32 adapters."""
    import peft

    leaves = random_leaves(SMALL, seed, lambda spec: BF16 if len(spec.shape) == 2 else F32)
    wide = Student(SMALL, leaves.__getitem__, lora=LORA, seed=seed)
    narrow = Student(SMALL, leaves.__getitem__, dtype=torch.bfloat16, lora=LORA, seed=seed)
    modules = [their_module(SMALL, learned.name) for learned in wide.adapters.of.values()]
    config = peft.LoraConfig(r=LORA.rank, lora_alpha=LORA.alpha, target_modules=modules)
    theirs = peft.get_peft_model(their_model(SMALL, leaves, "bfloat16"), config)
    pairs = their_updates(wide, theirs)
    with torch.no_grad():
        for values, parameter in pairs.values():
            parameter.copy_(values)
    learned = [list(wide.parameters.values()), list(narrow.parameters.values()), [parameter for _, parameter in pairs.values()]]
    optimisers = [torch.optim.AdamW(parameters, **SETTINGS) for parameters in learned]
    found: tuple[list[float], list[float], list[float]] = ([], [], [])
    for step in range(steps):
        documents = documents_of((24, 24), seed=100 * seed + step % 8, vocabulary=120)
        batch = batch_of(documents)
        losses = loss_of(wide, batch), loss_of(narrow, batch), their_loss(theirs, documents)
        for curve, loss, optimiser in zip(found, losses, optimisers, strict=True):
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            curve.append(loss.item())
    return found


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")  # peft asks transformers so
def test_two_hundred_steps_in_bfloat16_learn_like_float32_over_three_seeds() -> None:
    gaps = []
    for seed in range(3):
        wide, narrow, theirs = (torch.tensor(curve) for curve in curves(seed))
        gained = wide[:8].mean() - wide[-8:].mean()
        assert gained > 1.0, "something was learned"
        gaps.append([float((curve - wide).abs().mean() / gained) for curve in (narrow, theirs)])
    ours, peft = torch.tensor(gaps).mean(dim=0).tolist()
    assert ours < 0.02, gaps
    assert ours < peft, gaps
