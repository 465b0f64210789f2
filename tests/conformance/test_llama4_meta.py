"""Llama 4 against Meta's own code, in float64: text over several chunks, pictures, and the one place where the code differs from the
description of the model."""

from __future__ import annotations

from dataclasses import replace

import pytest

pytest.importorskip("torch", reason="torch is not installed (pip install herd-llama[dev])")
pytest.importorskip("llama_models", reason="llama-models is not installed (pip install llama-models)")

from conformance.llama4 import cut, picture_logits, with_pictures
from conformance.meta_llama4 import MetaModel
from conformance.running import oracle, prompt
from herd.models.llama4 import Llama4Config, every
from herd.models.rope import Llama3, Rope
from tiny import random_leaves, tiny_llama4, tiny_llama4_vision

# Meta's code takes its widths from multiples and stretches positions from 8192 tokens on, whatever its arguments.
SHAPE = {"width": 64, "num_heads": 2, "num_kv_heads": 1, "ffn_width": 224, "expert_width": 128}
SCALED = Rope(500000.0, 32, Llama3(16.0, 1.0, 1.0, 8192))
MODELS: dict[str, Llama4Config] = {
    "scout": tiny_llama4(**SHAPE, rope=SCALED, expert_layers=every(1, 4)),
    "maverick": tiny_llama4(**SHAPE, rope=Rope(500000.0, 32), qk_norm=False),
    "two experts a token": tiny_llama4(**SHAPE, rope=SCALED, num_chosen=2),
    "without chunks and experts, all rotated": tiny_llama4(
        **SHAPE, rope=SCALED, chunk=None, expert_layers=(), rotary_layers=(0, 1, 2, 3), chunked_layers=(0, 1, 2, 3)
    ),
}


@pytest.mark.parametrize("name", MODELS)
def test_a_prompt_over_several_chunks_equals_metas_code(name: str) -> None:
    cfg = MODELS[name]
    leaves, tokens = random_leaves(cfg), prompt(cfg, 100)
    ours = oracle(cfg, leaves, tokens)
    assert ours.std() > 0.5 and abs(ours - MetaModel(cfg, leaves).logits(tokens)).max() < 1e-10


@pytest.mark.filterwarnings("ignore:User provided device_type of 'cuda':UserWarning")
def test_several_pictures_equal_metas_code() -> None:
    vision = tiny_llama4_vision(width=64, ffn_width=256, num_heads=2)
    cfg = replace(MODELS["scout"], vision=vision)
    leaves, pictures = random_leaves(cfg), [cut(vision, 1, 2, 1), cut(vision, 1, 1, 2)]
    tokens = with_pictures(cfg, pictures, [token % 300 for token in prompt(cfg, 60)])
    ours = picture_logits(cfg, leaves, tokens, pictures)
    assert abs(ours - MetaModel(cfg, leaves).logits(tokens, pictures)).max() < 1e-10
    assert abs(ours - oracle(cfg, leaves, tokens)).max() > 0.1


def test_metas_code_forgets_chunks_when_it_answers_and_we_do_not() -> None:
    """It makes no mask for a step of one token, so that from the second chunk on it attends to everything there. Inside the first
    chunk, and with no chunks at all, the two agree."""
    cfg = MODELS["scout"]
    assert cfg.chunk == 24
    leaves, tokens = random_leaves(cfg), prompt(cfg, 40)
    ours, theirs = oracle(cfg, leaves, tokens), MetaModel(cfg, leaves).steps(tokens)
    assert abs(ours[:24] - theirs[:24]).max() < 1e-10 and abs(ours[24:] - theirs[24:]).max(axis=-1).min() > 1e-3
    assert abs(oracle(replace(cfg, chunk=None), leaves, tokens) - theirs).max() < 1e-10
