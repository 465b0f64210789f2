"""Prompt Guard's folders in Hugging Face layout: DeBERTa-v3 with a classifier on its first token.

Source: `transformers` `models/deberta_v2/{configuration,modeling}_deberta_v2.py`. What makes a DeBERTa a version 3 is expected, not read:
shared projections for content and distances, both kinds of relative attention, no absolute positions.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from herd.checkpoints.checkpoint import Fact
from herd.checkpoints.config_reader import MAX_CONTEXT, MAX_HEADS, MAX_LAYERS, MAX_VOCABULARY, MAX_WIDTH, ConfigReader, shown
from herd.models.deberta import DebertaConfig

_LAYER = "deberta.encoder.layer.{}."
NAMES = {
    "embed": "deberta.embeddings.word_embeddings.weight",
    "embed_norm": "deberta.embeddings.LayerNorm.weight",
    "embed_norm_bias": "deberta.embeddings.LayerNorm.bias",
    "distances": "deberta.encoder.rel_embeddings.weight",
    "distance_norm": "deberta.encoder.LayerNorm.weight",
    "distance_norm_bias": "deberta.encoder.LayerNorm.bias",
    "layers.{}.attention.q": _LAYER + "attention.self.query_proj.weight",
    "layers.{}.attention.q_bias": _LAYER + "attention.self.query_proj.bias",
    "layers.{}.attention.k": _LAYER + "attention.self.key_proj.weight",
    "layers.{}.attention.k_bias": _LAYER + "attention.self.key_proj.bias",
    "layers.{}.attention.v": _LAYER + "attention.self.value_proj.weight",
    "layers.{}.attention.v_bias": _LAYER + "attention.self.value_proj.bias",
    "layers.{}.attention.out": _LAYER + "attention.output.dense.weight",
    "layers.{}.attention.out_bias": _LAYER + "attention.output.dense.bias",
    "layers.{}.attention_norm": _LAYER + "attention.output.LayerNorm.weight",
    "layers.{}.attention_norm_bias": _LAYER + "attention.output.LayerNorm.bias",
    "layers.{}.ffn.up": _LAYER + "intermediate.dense.weight",
    "layers.{}.ffn.up_bias": _LAYER + "intermediate.dense.bias",
    "layers.{}.ffn.down": _LAYER + "output.dense.weight",
    "layers.{}.ffn.down_bias": _LAYER + "output.dense.bias",
    "layers.{}.ffn_norm": _LAYER + "output.LayerNorm.weight",
    "layers.{}.ffn_norm_bias": _LAYER + "output.LayerNorm.bias",
    "pooler": "pooler.dense.weight",
    "pooler_bias": "pooler.dense.bias",
    "classifier": "classifier.weight",
    "classifier_bias": "classifier.bias",
}
_TRAINING = "says how it was trained"
_LOADING = "says how other programs load it"
HARMLESS = {
    "_name_or_path": _LOADING,
    "attention_probs_dropout_prob": _TRAINING,
    "bos_token_id": "the tokenizer's own are used",
    "cls_dropout": _TRAINING,
    "dtype": _LOADING,
    "eos_token_id": "the tokenizer's own are used",
    "finetuning_task": _TRAINING,
    "hidden_dropout_prob": _TRAINING,
    "initializer_range": _TRAINING,
    "label2id": "the inverse of id2label",
    "legacy": "of a head that is not here",
    "num_labels": "id2label has the labels",
    "output_attentions": _LOADING,
    "output_hidden_states": _LOADING,
    "pad_token_id": "padding is not needed",
    "pooler_dropout": _TRAINING,
    "problem_type": _TRAINING,
    "return_dict": _LOADING,
    "tie_word_embeddings": "there is no head over the vocabulary",
    "torch_dtype": _LOADING,
    "transformers_version": _LOADING,
    "use_cache": _LOADING,
}
CONCLUSION = "herd reads classifiers of the DeBERTa-v3 kind that Prompt Guard is."


def read_config(values: Mapping[str, Any], where: str, facts: dict[str, Fact]) -> DebertaConfig:
    """The config; one `FileProblem` for all that is wrong."""
    r = ConfigReader(values, where, facts)
    r.raw("model_type")
    r.expect("architectures", ["DebertaV2ForSequenceClassification"], because="other heads give no labels")
    r.expect("hidden_act", "gelu", because="the activation is GELU")
    r.expect("pooler_hidden_act", "gelu", because="the activation is GELU")
    r.expect("position_biased_input", False, because="positions are no part of the input in version 3")
    r.expect("type_vocab_size", 0, because="a text has one part")
    r.expect("conv_kernel_size", 0, because="version 3 has no convolution")
    r.expect("pos_att_type", "p2c|c2p", "c2p|p2c", ["p2c", "c2p"], ["c2p", "p2c"], because="both kinds of relative attention are computed")
    r.expect("norm_rel_ebd", "layer_norm", because="the table of distances is normalised")
    for key in ("relative_attention", "share_att_key"):
        if not r.boolean(key, default=False):
            r.problem(f"{key} is false; version 3 has it")
    width = r.integer("hidden_size", "width", highest=MAX_WIDTH)
    num_heads = r.integer("num_attention_heads", "num_heads", highest=MAX_HEADS)
    if width % num_heads:
        r.problem(f"hidden_size is {width}, which num_attention_heads {num_heads} does not divide")
    r.expect("embedding_size", width, because="embeddings are as wide as the layers")
    r.expect("attention_head_size", width // num_heads, because="heads share out the width")
    r.expect("pooler_hidden_size", width, because="the first token's state is read whole")
    context_length = r.integer("max_position_embeddings", "context_length", highest=MAX_CONTEXT, default=512)
    distance = r.integer("max_relative_positions", lowest=-1, highest=MAX_CONTEXT, default=-1)
    buckets = r.integer("position_buckets", "buckets", lowest=2, highest=MAX_CONTEXT)
    cfg = DebertaConfig(
        width=width,
        num_layers=r.integer("num_hidden_layers", "num_layers", highest=MAX_LAYERS),
        num_heads=num_heads,
        mlp_width=r.integer("intermediate_size", "mlp_width", highest=MAX_VOCABULARY),
        vocab_size=r.integer("vocab_size", "vocab_size", highest=MAX_VOCABULARY),
        context_length=context_length,
        buckets=buckets,
        max_distance=distance if distance > 0 else context_length,
        norm_eps=r.number("layer_norm_eps", "norm_eps", lowest=1e-14, highest=0.1, default=1e-7),
        labels=_labels(r),
    )
    if cfg.max_distance - 1 <= cfg.buckets // 2:
        r.problem(f"position_buckets is {cfg.buckets} for distances up to {cfg.max_distance}; there must be fewer than twice as many")
    facts["architecture"] = Fact("deberta-v2", f"model_type in {where}")
    r.finish(CONCLUSION, HARMLESS)
    return cfg


def _labels(r: ConfigReader) -> tuple[str, ...]:
    values = r.raw("id2label")
    if values is None:
        return ("LABEL_0", "LABEL_1")
    is_map = isinstance(values, dict) and sorted(values) == sorted(map(str, range(len(values)))) and values
    if not is_map or not all(isinstance(label, str) for label in values.values()):
        r.problem(f"id2label is {shown(values)}; it must give a text for each number from 0")
        return ("LABEL_0",)
    labels = tuple(values[str(index)] for index in range(len(values)))
    r.note("labels", ", ".join(labels), "id2label")
    return labels
