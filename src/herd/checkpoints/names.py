"""What each layout calls our weights. `{}` stands for the number of the layer.

Sources: GGUF specification (tensor names), transformers `modeling_llama.py`, Meta's `llama_models/llama3/model.py`. The order of
llama2.c files is in `llama2c.py`.
"""

from __future__ import annotations

import re

_LAYER = re.compile(r"\blayers\.(\d+)\.")

GGUF = {
    "embed": "token_embd.weight",
    "norm": "output_norm.weight",
    "head": "output.weight",
    "layers.{}.attention_norm": "blk.{}.attn_norm.weight",
    "layers.{}.attention.q": "blk.{}.attn_q.weight",
    "layers.{}.attention.k": "blk.{}.attn_k.weight",
    "layers.{}.attention.v": "blk.{}.attn_v.weight",
    "layers.{}.attention.out": "blk.{}.attn_output.weight",
    "layers.{}.attention.q_bias": "blk.{}.attn_q.bias",
    "layers.{}.attention.k_bias": "blk.{}.attn_k.bias",
    "layers.{}.attention.v_bias": "blk.{}.attn_v.bias",
    "layers.{}.attention.out_bias": "blk.{}.attn_output.bias",
    "layers.{}.ffn_norm": "blk.{}.ffn_norm.weight",
    "layers.{}.ffn.gate": "blk.{}.ffn_gate.weight",
    "layers.{}.ffn.up": "blk.{}.ffn_up.weight",
    "layers.{}.ffn.down": "blk.{}.ffn_down.weight",
    "layers.{}.ffn.gate_bias": "blk.{}.ffn_gate.bias",
    "layers.{}.ffn.up_bias": "blk.{}.ffn_up.bias",
    "layers.{}.ffn.down_bias": "blk.{}.ffn_down.bias",
}

HUGGING_FACE = {
    "embed": "model.embed_tokens.weight",
    "norm": "model.norm.weight",
    "head": "lm_head.weight",
    "layers.{}.attention_norm": "model.layers.{}.input_layernorm.weight",
    "layers.{}.attention.q": "model.layers.{}.self_attn.q_proj.weight",
    "layers.{}.attention.k": "model.layers.{}.self_attn.k_proj.weight",
    "layers.{}.attention.v": "model.layers.{}.self_attn.v_proj.weight",
    "layers.{}.attention.out": "model.layers.{}.self_attn.o_proj.weight",
    "layers.{}.attention.q_bias": "model.layers.{}.self_attn.q_proj.bias",
    "layers.{}.attention.k_bias": "model.layers.{}.self_attn.k_proj.bias",
    "layers.{}.attention.v_bias": "model.layers.{}.self_attn.v_proj.bias",
    "layers.{}.attention.out_bias": "model.layers.{}.self_attn.o_proj.bias",
    "layers.{}.ffn_norm": "model.layers.{}.post_attention_layernorm.weight",
    "layers.{}.ffn.gate": "model.layers.{}.mlp.gate_proj.weight",
    "layers.{}.ffn.up": "model.layers.{}.mlp.up_proj.weight",
    "layers.{}.ffn.down": "model.layers.{}.mlp.down_proj.weight",
    "layers.{}.ffn.gate_bias": "model.layers.{}.mlp.gate_proj.bias",
    "layers.{}.ffn.up_bias": "model.layers.{}.mlp.up_proj.bias",
    "layers.{}.ffn.down_bias": "model.layers.{}.mlp.down_proj.bias",
}

# Text alone (`llama4_text`); with pictures these follow "language_model.", and the tables of vision are added (huggingface_llama4.py).
# Gate and up of all experts are one tensor, and one row of a table has one axis less.
HUGGING_FACE_LLAMA4 = {
    **{name: theirs for name, theirs in HUGGING_FACE.items() if not name.startswith("layers.{}.ffn.")},
    "layers.{}.ffn.gate": "model.layers.{}.feed_forward.gate_proj.weight",
    "layers.{}.ffn.up": "model.layers.{}.feed_forward.up_proj.weight",
    "layers.{}.ffn.down": "model.layers.{}.feed_forward.down_proj.weight",
    "layers.{}.router": "model.layers.{}.feed_forward.router.weight",
    "layers.{}.experts.gate_up": "model.layers.{}.feed_forward.experts.gate_up_proj",
    "layers.{}.experts.down": "model.layers.{}.feed_forward.experts.down_proj",
    "layers.{}.shared.gate": "model.layers.{}.feed_forward.shared_expert.gate_proj.weight",
    "layers.{}.shared.up": "model.layers.{}.feed_forward.shared_expert.up_proj.weight",
    "layers.{}.shared.down": "model.layers.{}.feed_forward.shared_expert.down_proj.weight",
}

HUGGING_FACE_LLAMA4_VISION = {
    "vision.patches": "vision_model.patch_embedding.linear.weight",
    "vision.class": "vision_model.class_embedding",
    "vision.positions": "vision_model.positional_embedding_vlm",
    "vision.first_norm": "vision_model.layernorm_pre.weight",
    "vision.first_norm_bias": "vision_model.layernorm_pre.bias",
    "vision.layers.{}.attention_norm": "vision_model.model.layers.{}.input_layernorm.weight",
    "vision.layers.{}.attention_norm_bias": "vision_model.model.layers.{}.input_layernorm.bias",
    "vision.layers.{}.attention.q": "vision_model.model.layers.{}.self_attn.q_proj.weight",
    "vision.layers.{}.attention.q_bias": "vision_model.model.layers.{}.self_attn.q_proj.bias",
    "vision.layers.{}.attention.k": "vision_model.model.layers.{}.self_attn.k_proj.weight",
    "vision.layers.{}.attention.k_bias": "vision_model.model.layers.{}.self_attn.k_proj.bias",
    "vision.layers.{}.attention.v": "vision_model.model.layers.{}.self_attn.v_proj.weight",
    "vision.layers.{}.attention.v_bias": "vision_model.model.layers.{}.self_attn.v_proj.bias",
    "vision.layers.{}.attention.out": "vision_model.model.layers.{}.self_attn.o_proj.weight",
    "vision.layers.{}.attention.out_bias": "vision_model.model.layers.{}.self_attn.o_proj.bias",
    "vision.layers.{}.ffn_norm": "vision_model.model.layers.{}.post_attention_layernorm.weight",
    "vision.layers.{}.ffn_norm_bias": "vision_model.model.layers.{}.post_attention_layernorm.bias",
    "vision.layers.{}.ffn.up": "vision_model.model.layers.{}.mlp.fc1.weight",
    "vision.layers.{}.ffn.up_bias": "vision_model.model.layers.{}.mlp.fc1.bias",
    "vision.layers.{}.ffn.down": "vision_model.model.layers.{}.mlp.fc2.weight",
    "vision.layers.{}.ffn.down_bias": "vision_model.model.layers.{}.mlp.fc2.bias",
    "vision.last_norm": "vision_model.layernorm_post.weight",
    "vision.last_norm_bias": "vision_model.layernorm_post.bias",
    "vision.adapter.in": "vision_model.vision_adapter.mlp.fc1.weight",
    "vision.adapter.out": "vision_model.vision_adapter.mlp.fc2.weight",
    "vision.projection": "multi_modal_projector.linear_1.weight",
}

META = {
    "embed": "tok_embeddings.weight",
    "norm": "norm.weight",
    "head": "output.weight",
    "layers.{}.attention_norm": "layers.{}.attention_norm.weight",
    "layers.{}.attention.q": "layers.{}.attention.wq.weight",
    "layers.{}.attention.k": "layers.{}.attention.wk.weight",
    "layers.{}.attention.v": "layers.{}.attention.wv.weight",
    "layers.{}.attention.out": "layers.{}.attention.wo.weight",
    "layers.{}.attention.q_bias": "layers.{}.attention.wq.bias",
    "layers.{}.attention.k_bias": "layers.{}.attention.wk.bias",
    "layers.{}.attention.v_bias": "layers.{}.attention.wv.bias",
    "layers.{}.attention.out_bias": "layers.{}.attention.wo.bias",
    "layers.{}.ffn_norm": "layers.{}.ffn_norm.weight",
    "layers.{}.ffn.gate": "layers.{}.feed_forward.w1.weight",
    "layers.{}.ffn.up": "layers.{}.feed_forward.w3.weight",
    "layers.{}.ffn.down": "layers.{}.feed_forward.w2.weight",
    "layers.{}.ffn.gate_bias": "layers.{}.feed_forward.w1.bias",
    "layers.{}.ffn.up_bias": "layers.{}.feed_forward.w3.bias",
    "layers.{}.ffn.down_bias": "layers.{}.feed_forward.w2.bias",
}

# Along which axis Meta's shards divide a weight; those that are not here, every shard has whole.
META_SPLIT = {
    "head": 0,
    "layers.{}.attention.q": 0,
    "layers.{}.attention.k": 0,
    "layers.{}.attention.v": 0,
    "layers.{}.attention.out": 1,
    "layers.{}.attention.q_bias": 0,
    "layers.{}.attention.k_bias": 0,
    "layers.{}.attention.v_bias": 0,
    "layers.{}.ffn.gate": 0,
    "layers.{}.ffn.up": 0,
    "layers.{}.ffn.down": 1,
    "layers.{}.ffn.gate_bias": 0,
    "layers.{}.ffn.up_bias": 0,
}


def pattern(name: str) -> str:
    """Our name with `{}` for the number of its layer."""
    return _LAYER.sub("layers.{}.", name, count=1)


def in_file(table: dict[str, str], name: str) -> str:
    """What the layout of `table` calls our weight `name`."""
    found = _LAYER.search(name)
    return table[pattern(name)].replace("{}", found[1] if found else "")
