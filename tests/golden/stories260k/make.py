"""Writes story.json beside this file: what `transformers` makes of stories260K. Nothing of herd is used, so that herd can be
checked against it.

    python tests/golden/stories260k/make.py path/to/stories260K.bin
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import torch
import transformers

# Token ids of tok512.bin: begin; begin + "Once upon a time"; begin + "Tom and his mom went to the park."
PROMPTS: list[list[int]] = [
    [1],
    [1, 403, 407, 261, 378],
    [1, 274, 287, 269, 345, 357, 263, 377, 267, 265, 282, 295, 433, 426],
]
LENGTH = 200
KEYS = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "vocab_size")


def load(path: Path) -> transformers.LlamaForCausalLM:
    """The model from llama2.c's version 0 layout, as its run.c reads it; rotary rows go to Hugging Face's order."""
    header = np.fromfile(path, "<i4", 7)
    facts = dict(zip((*KEYS, "max_position_embeddings"), (int(value) for value in header), strict=True))
    values, at = np.fromfile(path, "<f4", offset=28), 0
    width, layers, vocabulary = facts["hidden_size"], facts["num_hidden_layers"], facts["vocab_size"]
    heads, kv_heads, ffn = facts["num_attention_heads"], facts["num_key_value_heads"], facts["intermediate_size"]
    kv_width = width // heads * kv_heads

    def take(*shape: int) -> torch.Tensor:
        nonlocal at
        at += int(np.prod(shape))
        return torch.from_numpy(values[at - int(np.prod(shape)) : at].reshape(shape).copy())

    def halves(rows: torch.Tensor, num_heads: int) -> torch.Tensor:
        return rows.reshape(num_heads, -1, 2, width).transpose(1, 2).reshape(rows.shape)

    state = {"model.embed_tokens.weight": take(vocabulary, width)}
    stacks = {
        "input_layernorm": (width,),
        "self_attn.q_proj": (width, width),
        "self_attn.k_proj": (kv_width, width),
        "self_attn.v_proj": (kv_width, width),
        "self_attn.o_proj": (width, width),
        "post_attention_layernorm": (width,),
        "mlp.gate_proj": (ffn, width),
        "mlp.down_proj": (width, ffn),
        "mlp.up_proj": (ffn, width),
    }
    for name, shape in stacks.items():
        for layer, rows in enumerate(take(layers, *shape)):
            turned = halves(rows, heads if "q_proj" in name else kv_heads) if name.endswith(("q_proj", "k_proj")) else rows
            state[f"model.layers.{layer}.{name}.weight"] = turned
    state["model.norm.weight"] = take(width)
    config = transformers.LlamaConfig(
        **facts, rms_norm_eps=1e-5, tie_word_embeddings=True, rope_parameters={"rope_theta": 10000.0, "rope_type": "default"}
    )
    model = transformers.LlamaForCausalLM(config).eval()
    missing, unexpected = model.load_state_dict(state, strict=False)
    assert set(missing) <= {"lm_head.weight"} and not unexpected
    return model


@torch.inference_mode()
def story(model: transformers.LlamaForCausalLM, prompt: list[int]) -> dict[str, list[float]]:
    """Greedy tokens, the whole text read again for each; log-probability, and by how much the best logit beat the second."""
    tokens, logprobs, margins = list(prompt), [], []
    for _ in range(LENGTH):
        row = model(torch.tensor([tokens])).logits[0, -1].double()
        best = row.topk(2)
        tokens.append(int(best.indices[0]))
        logprobs.append(round(float(row.log_softmax(0)[best.indices[0]]), 6))
        margins.append(round(float(best.values[0] - best.values[1]), 6))
    return {"prompt": prompt, "tokens": tokens[len(prompt) :], "logprobs": logprobs, "margins": margins}


if __name__ == "__main__":
    source = load(Path(sys.argv[1]))
    lines = [json.dumps(story(source, prompt)) for prompt in PROMPTS]
    Path(__file__).with_name("story.json").write_text("[\n" + ",\n".join(lines) + "\n]\n", encoding="utf-8")
