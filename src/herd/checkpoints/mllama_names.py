"""What files call the weights of Llama 3.2 Vision. `{}` stands for the number of a layer.

Sources: Meta's `llama_models/llama3/multimodal/model.py` and transformers `modeling_mllama.py`. Hugging Face counts the text model's
layers and the crossing blocks together, in the order in which a token passes them.
"""

from __future__ import annotations

import re

from herd.models.llama3_vision import Llama3VisionConfig

_NUMBER = re.compile(r"\.(\d+)\.")

META_TEXT = {
    "norm": "text_model.norm.weight",
    "head": "text_model.output.weight",
    "layers.{}.attention_norm": "text_model.layers.{}.attention_norm.weight",
    "layers.{}.attention.q": "text_model.layers.{}.attention.wq.weight",
    "layers.{}.attention.k": "text_model.layers.{}.attention.wk.weight",
    "layers.{}.attention.v": "text_model.layers.{}.attention.wv.weight",
    "layers.{}.attention.out": "text_model.layers.{}.attention.wo.weight",
    "layers.{}.ffn_norm": "text_model.layers.{}.ffn_norm.weight",
    "layers.{}.ffn.gate": "text_model.layers.{}.feed_forward.w1.weight",
    "layers.{}.ffn.up": "text_model.layers.{}.feed_forward.w3.weight",
    "layers.{}.ffn.down": "text_model.layers.{}.feed_forward.w2.weight",
    "crossing.{}.attention_norm": "text_model.cross_attention_layers.{}.attention_norm.weight",
    "crossing.{}.attention.q": "text_model.cross_attention_layers.{}.attention.wq.weight",
    "crossing.{}.attention.k": "text_model.cross_attention_layers.{}.attention.wk.weight",
    "crossing.{}.attention.v": "text_model.cross_attention_layers.{}.attention.wv.weight",
    "crossing.{}.attention.out": "text_model.cross_attention_layers.{}.attention.wo.weight",
    "crossing.{}.attention.q_norm": "text_model.cross_attention_layers.{}.attention.q_norm.weight",
    "crossing.{}.attention.k_norm": "text_model.cross_attention_layers.{}.attention.k_norm.weight",
    "crossing.{}.attention_gate": "text_model.cross_attention_layers.{}.gate_attn",
    "crossing.{}.ffn_norm": "text_model.cross_attention_layers.{}.ffn_norm.weight",
    "crossing.{}.ffn.gate": "text_model.cross_attention_layers.{}.feed_forward.w1.weight",
    "crossing.{}.ffn.up": "text_model.cross_attention_layers.{}.feed_forward.w3.weight",
    "crossing.{}.ffn.down": "text_model.cross_attention_layers.{}.feed_forward.w2.weight",
    "crossing.{}.ffn_gate": "text_model.cross_attention_layers.{}.gate_ffwd",
}
META_EMBED = ("text_model.tok_embeddings.weight", "text_model.learnable_embedding.weight")
"""The embedding is in two tensors, one below the other."""

META_VISION = {
    "vision.patches": "vision_model.vision_encoder.conv1._linear.weight",
    "vision.class_row": "vision_model.vision_encoder.class_embedding",
    "vision.positions": "vision_model.vision_encoder.positional_embedding",
    "vision.tile_positions": "vision_model.vision_encoder.gated_positional_embedding",
    "vision.positions_gate": "vision_model.vision_encoder.gated_positional_embedding_gate",
    "vision.before": "vision_model.vision_encoder.pre_tile_pos_embed.embedding",
    "vision.before_gate": "vision_model.vision_encoder.pre_tile_pos_embed.gate",
    "vision.before_norm": "vision_model.vision_encoder.ln_pre.weight",
    "vision.before_norm_bias": "vision_model.vision_encoder.ln_pre.bias",
    "vision.after": "vision_model.vision_encoder.post_tile_pos_embed.embedding",
    "vision.after_gate": "vision_model.vision_encoder.post_tile_pos_embed.gate",
    "vision.after_norm": "vision_model.vision_encoder.ln_post.weight",
    "vision.after_norm_bias": "vision_model.vision_encoder.ln_post.bias",
    "vision.project": "vision_model.vision_projection.weight",
    "vision.project_bias": "vision_model.vision_projection.bias",
}
_META_LAYER = {
    "attention_norm": "ln_1.weight",
    "attention_norm_bias": "ln_1.bias",
    "attention.q": "attn.wq.weight",
    "attention.k": "attn.wk.weight",
    "attention.v": "attn.wv.weight",
    "attention.out": "attn.wo.weight",
    "ffn_norm": "ln_2.weight",
    "ffn_norm_bias": "ln_2.bias",
    "ffn.up": "mlp.c_fc.weight",
    "ffn.up_bias": "mlp.c_fc.bias",
    "ffn.down": "mlp.c_proj.weight",
    "ffn.down_bias": "mlp.c_proj.bias",
    "attention_gate": "gate_attn",
    "ffn_gate": "gate_ffn",
}
for _ours, _theirs in (("layers", "transformer"), ("global_layers", "global_transformer")):
    META_VISION |= {f"vision.{_ours}.{{}}.{k}": f"vision_model.vision_encoder.{_theirs}.resblocks.{{}}.{v}" for k, v in _META_LAYER.items()}
META = META_TEXT | META_VISION

# Along which axis Meta's shards divide a weight; those that are not here, every shard has whole. Both parts of `embed` are divided
# by rows.
META_SPLIT = {
    "head": 0,
    **{f"{at}.{{}}.attention.{name}": axis for at in ("layers", "crossing") for name, axis in (("q", 0), ("k", 0), ("v", 0), ("out", 1))},
    **{f"{at}.{{}}.ffn.{name}": axis for at in ("layers", "crossing") for name, axis in (("gate", 0), ("up", 0), ("down", 1))},
    "vision.patches": 0,
    "vision.project": 0,
    "vision.project_bias": 0,
    **{
        f"vision.{at}.{{}}.{name}": axis
        for at in ("layers", "global_layers")
        for name, axis in (
            ("attention.q", 0), ("attention.k", 0), ("attention.v", 0), ("attention.out", 1),
            ("ffn.up", 0), ("ffn.up_bias", 0), ("ffn.down", 1),
        )
    },
}  # fmt: skip

# Starts of names as transformers 4.52 and later call tensors in memory, and in published files, longest first.
SPELLINGS = (
    ("model.language_model.", "language_model.model."),
    ("model.vision_model.", "vision_model."),
    ("model.multi_modal_projector.", "multi_modal_projector."),
    ("lm_head.", "language_model.lm_head."),
)

HUGGING_FACE = {
    "embed": "language_model.model.embed_tokens.weight",
    "norm": "language_model.model.norm.weight",
    "head": "language_model.lm_head.weight",
    "layers.{}.attention_norm": "language_model.model.layers.{}.input_layernorm.weight",
    "layers.{}.attention.q": "language_model.model.layers.{}.self_attn.q_proj.weight",
    "layers.{}.attention.k": "language_model.model.layers.{}.self_attn.k_proj.weight",
    "layers.{}.attention.v": "language_model.model.layers.{}.self_attn.v_proj.weight",
    "layers.{}.attention.out": "language_model.model.layers.{}.self_attn.o_proj.weight",
    "layers.{}.ffn_norm": "language_model.model.layers.{}.post_attention_layernorm.weight",
    "layers.{}.ffn.gate": "language_model.model.layers.{}.mlp.gate_proj.weight",
    "layers.{}.ffn.up": "language_model.model.layers.{}.mlp.up_proj.weight",
    "layers.{}.ffn.down": "language_model.model.layers.{}.mlp.down_proj.weight",
    "crossing.{}.attention_norm": "language_model.model.layers.{}.input_layernorm.weight",
    "crossing.{}.attention.q": "language_model.model.layers.{}.cross_attn.q_proj.weight",
    "crossing.{}.attention.k": "language_model.model.layers.{}.cross_attn.k_proj.weight",
    "crossing.{}.attention.v": "language_model.model.layers.{}.cross_attn.v_proj.weight",
    "crossing.{}.attention.out": "language_model.model.layers.{}.cross_attn.o_proj.weight",
    "crossing.{}.attention.q_norm": "language_model.model.layers.{}.cross_attn.q_norm.weight",
    "crossing.{}.attention.k_norm": "language_model.model.layers.{}.cross_attn.k_norm.weight",
    "crossing.{}.attention_gate": "language_model.model.layers.{}.cross_attn_attn_gate",
    "crossing.{}.ffn_norm": "language_model.model.layers.{}.post_attention_layernorm.weight",
    "crossing.{}.ffn.gate": "language_model.model.layers.{}.mlp.gate_proj.weight",
    "crossing.{}.ffn.up": "language_model.model.layers.{}.mlp.up_proj.weight",
    "crossing.{}.ffn.down": "language_model.model.layers.{}.mlp.down_proj.weight",
    "crossing.{}.ffn_gate": "language_model.model.layers.{}.cross_attn_mlp_gate",
    "vision.patches": "vision_model.patch_embedding.weight",
    "vision.class_row": "vision_model.class_embedding",
    "vision.positions": "vision_model.gated_positional_embedding.embedding",
    "vision.tile_positions": "vision_model.gated_positional_embedding.tile_embedding.weight",
    "vision.positions_gate": "vision_model.gated_positional_embedding.gate",
    "vision.before": "vision_model.pre_tile_positional_embedding.embedding.weight",
    "vision.before_gate": "vision_model.pre_tile_positional_embedding.gate",
    "vision.before_norm": "vision_model.layernorm_pre.weight",
    "vision.before_norm_bias": "vision_model.layernorm_pre.bias",
    "vision.after": "vision_model.post_tile_positional_embedding.embedding.weight",
    "vision.after_gate": "vision_model.post_tile_positional_embedding.gate",
    "vision.after_norm": "vision_model.layernorm_post.weight",
    "vision.after_norm_bias": "vision_model.layernorm_post.bias",
    "vision.project": "multi_modal_projector.weight",
    "vision.project_bias": "multi_modal_projector.bias",
}
_HUGGING_FACE_LAYER = {
    "attention_norm": "input_layernorm.weight",
    "attention_norm_bias": "input_layernorm.bias",
    "attention.q": "self_attn.q_proj.weight",
    "attention.k": "self_attn.k_proj.weight",
    "attention.v": "self_attn.v_proj.weight",
    "attention.out": "self_attn.o_proj.weight",
    "ffn_norm": "post_attention_layernorm.weight",
    "ffn_norm_bias": "post_attention_layernorm.bias",
    "ffn.up": "mlp.fc1.weight",
    "ffn.up_bias": "mlp.fc1.bias",
    "ffn.down": "mlp.fc2.weight",
    "ffn.down_bias": "mlp.fc2.bias",
    "attention_gate": "gate_attn",
    "ffn_gate": "gate_ffn",
}
for _ours, _theirs in (("layers", "transformer"), ("global_layers", "global_transformer")):
    HUGGING_FACE |= {f"vision.{_ours}.{{}}.{k}": f"vision_model.{_theirs}.layers.{{}}.{v}" for k, v in _HUGGING_FACE_LAYER.items()}


def pattern(name: str) -> str:
    """Our name with `{}` for the number of its layer."""
    return _NUMBER.sub(".{}.", name)


def in_meta(name: str) -> str:
    """What Meta's files call our weight `name`; `embed` is not one tensor there (`META_EMBED`)."""
    return META[pattern(name)].replace("{}", _number(name))


def in_huggingface(cfg: Llama3VisionConfig, name: str) -> str:
    """What a Hugging Face folder calls our weight `name`."""
    number = _number(name)
    if name.startswith("layers."):
        number = str(int(number) + sum(crossing <= int(number) for crossing in cfg.crossing))
    elif name.startswith("crossing."):
        number = str(cfg.crossing[int(number)] + int(number))
    return HUGGING_FACE[pattern(name)].replace("{}", number)


def as_published(name: str) -> str:
    """A tensor's name in a Hugging Face folder, spelled as the published files do."""
    for start, published in SPELLINGS:
        if name.startswith(start):
            return published + name.removeprefix(start)
    return name


def _number(name: str) -> str:
    found = _NUMBER.search(name)
    return found[1] if found else ""
