"""Prompt Guard's architecture against `transformers`, in float64."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray

pytest.importorskip("torch", reason="torch is not installed (pip install herd-llama[dev])")

import torch

from herd.backends.base import BackendOptions
from herd.backends.reference import ReferenceBackend
from herd.checkpoints.huggingface_deberta import NAMES
from herd.models import deberta
from herd.models.deberta import DebertaConfig, distance_buckets
from herd.models.sizes import count_parameters
from herd.models.weights import Dense, Kind, Matrix
from tiny import dense_f32

# Few buckets, so that texts of a test reach those that stand for several distances, and the last one.
CFG = DebertaConfig(
    width=48,
    num_layers=3,
    num_heads=4,
    mlp_width=80,
    vocab_size=120,
    context_length=64,
    buckets=8,
    max_distance=40,
    norm_eps=1e-7,
    labels=("BENIGN", "INJECTION", "JAILBREAK"),
)


def leaves_of(cfg: DebertaConfig) -> dict[str, Matrix]:
    """Every weight random, norms and biases too."""
    rng = np.random.default_rng(2)

    def values(kind: Kind, shape: tuple[int, ...]) -> NDArray[np.float64]:
        drawn = rng.standard_normal(shape)
        return 1 + drawn / 4 if kind is Kind.NORM else drawn / 4 if kind is Kind.BIAS else drawn * 1.5 / shape[-1] ** 0.5

    return {spec.name: dense_f32(values(spec.kind, spec.shape)) for spec in deberta.tensors(cfg)}


def transformers_logits(cfg: DebertaConfig, leaves: Mapping[str, Matrix], tokens: list[int]) -> NDArray[np.float64]:
    from transformers import DebertaV2Config, DebertaV2ForSequenceClassification

    torch.set_num_threads(1)
    config = DebertaV2Config(
        vocab_size=cfg.vocab_size,
        hidden_size=cfg.width,
        num_hidden_layers=cfg.num_layers,
        num_attention_heads=cfg.num_heads,
        intermediate_size=cfg.mlp_width,
        max_position_embeddings=cfg.context_length,
        relative_attention=True,
        max_relative_positions=cfg.max_distance,
        position_buckets=cfg.buckets,
        norm_rel_ebd="layer_norm",
        share_att_key=True,
        pos_att_type="p2c|c2p",
        position_biased_input=False,
        layer_norm_eps=cfg.norm_eps,
        num_labels=len(cfg.labels),
    )
    model = DebertaV2ForSequenceClassification(config).double().eval()
    state = {}
    for spec in deberta.tensors(cfg):
        leaf = leaves[spec.name]
        assert isinstance(leaf, Dense)
        number = next((part for part in spec.name.split(".") if part.isdigit()), "")
        name = NAMES[".".join("{}" if part.isdigit() else part for part in spec.name.split("."))].replace("{}", number)
        values = np.asarray(leaf.data).reshape(-1).view(np.float32).reshape(spec.shape)
        state[name] = torch.from_numpy(values.astype(np.float64))
    model.load_state_dict(state)
    with torch.inference_mode():
        logits: NDArray[np.float64] = model(torch.tensor([tokens])).logits[0].numpy()
    return logits


@pytest.mark.parametrize("length", [1, 2, 9, 64])
def test_logits_of_labels_equal_transformers(length: int) -> None:
    leaves = leaves_of(CFG)
    tokens = [int(token) for token in np.random.default_rng(length).integers(0, CFG.vocab_size, length)]
    backend = ReferenceBackend(CFG, leaves.__getitem__, BackendOptions(dtype="float64", activations="float32"))
    ours = backend.classify(tokens)
    assert ours.shape == (3,) and abs(ours).max() > 0.1
    # transformers rounds the square root in the scale of the scores to float32.
    assert abs(ours - transformers_logits(CFG, leaves, tokens)).max() < 1e-6


def test_far_distances_share_buckets() -> None:
    row = distance_buckets(64, CFG)[63]
    assert row[-1] == CFG.buckets and len(set(row)) < 64 and max(row) == 2 * CFG.buckets - 1
    assert distance_buckets(64, CFG)[0][63] == 0


def test_the_published_sizes() -> None:
    """86 million in the layers of Prompt Guard 86M and 192 million in its embeddings; the 22M has 22 and 48."""
    large = replace(CFG, width=768, num_layers=12, num_heads=12, mlp_width=3072, vocab_size=251000, buckets=256, max_distance=512)
    embeddings = 251000 * 768
    assert round(embeddings / 1e6) == 193 and 85e6 < count_parameters(large) - embeddings < 87e6
    small = replace(large, width=384, num_heads=6, mlp_width=1536, vocab_size=128100)
    assert 21e6 < count_parameters(small) - 128100 * 384 < 23e6
