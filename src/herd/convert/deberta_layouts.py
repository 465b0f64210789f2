"""Prompt Guard as a Hugging Face folder, its only layout."""

from __future__ import annotations

from typing import Any

from herd.checkpoints import names
from herd.checkpoints.checkpoint import Checkpoint
from herd.checkpoints.huggingface_deberta import NAMES
from herd.convert.shaping import Shaping
from herd.convert.streams import Output
from herd.models.deberta import DebertaConfig

NO_GGUF = "A classifier such as Prompt Guard is not written as GGUF: the format has no architecture for it. Choose hf."
NO_META = "A classifier such as Prompt Guard has no layout of Meta's own: it was published as a Hugging Face folder. Choose hf."


def huggingface_config(cfg: DebertaConfig) -> dict[str, Any]:
    """config.json, but for tokens and number format."""
    return {
        "architectures": ["DebertaV2ForSequenceClassification"],
        "model_type": "deberta-v2",
        "hidden_act": "gelu",
        "hidden_size": cfg.width,
        "num_hidden_layers": cfg.num_layers,
        "num_attention_heads": cfg.num_heads,
        "intermediate_size": cfg.mlp_width,
        "vocab_size": cfg.vocab_size,
        "max_position_embeddings": cfg.context_length,
        "max_relative_positions": -1 if cfg.max_distance == cfg.context_length else cfg.max_distance,
        "position_buckets": cfg.buckets,
        "layer_norm_eps": cfg.norm_eps,
        "id2label": {str(index): label for index, label in enumerate(cfg.labels)},
        "label2id": {label: index for index, label in enumerate(cfg.labels)},
        "norm_rel_ebd": "layer_norm",
        "pooler_hidden_act": "gelu",
        "pooler_hidden_size": cfg.width,
        "pos_att_type": "p2c|c2p",
        "position_biased_input": False,
        "relative_attention": True,
        "share_att_key": True,
        "type_vocab_size": 0,
    }


def huggingface_outputs(checkpoint: Checkpoint, shaping: Shaping) -> list[Output]:
    """All tensors by their names there."""
    return [Output(names.in_file(NAMES, spec.name), shaping.plain(checkpoint, spec)) for spec in checkpoint.specs]
