"""Llama 3.2 Vision in `transformers`, small, random everywhere and without its two differences from Meta's code.

Meta's code is the definition (test_llama3_vision.py). transformers 5.23 takes the encoder's kept values one layer later (outputs instead
of inputs), and multiplies only the feed-forward of rows without a picture by zero, not their attention.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from conformance.llama3_vision_texts import CFG
from herd.backends.base import Placed
from herd.checkpoints.mllama_places import shapes_of_pictures


def model_in(folder: Path) -> Any:
    """The model in float64; as it was saved in `folder`. Random everywhere, gates and norms too; the tables of places written out from
    a grid."""
    from transformers import MllamaForConditionalGeneration

    torch.set_num_threads(1)
    model = MllamaForConditionalGeneration(config()).eval()
    randomise(model)
    model.save_pretrained(folder)
    return mended(model.double())


def config() -> Any:
    from transformers import MllamaConfig
    from transformers.models.mllama.configuration_mllama import MllamaTextConfig, MllamaVisionConfig

    vision, scaling = CFG.vision, CFG.rope.scaling
    text_config = MllamaTextConfig(
        vocab_size=CFG.vocab_size,
        hidden_size=CFG.width,
        num_hidden_layers=CFG.num_layers + len(CFG.crossing),
        cross_attention_layers=[layer + number for number, layer in enumerate(CFG.crossing)],
        num_attention_heads=CFG.num_heads,
        num_key_value_heads=CFG.num_kv_heads,
        intermediate_size=CFG.ffn_width,
        max_position_embeddings=CFG.context_length,
        rms_norm_eps=CFG.norm_eps,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
        rope_parameters={
            "rope_type": "llama3",
            "rope_theta": CFG.rope.theta,
            "factor": scaling.factor,
            "low_freq_factor": scaling.low_freq_factor,
            "high_freq_factor": scaling.high_freq_factor,
            "original_max_position_embeddings": scaling.original_context,
        },
    )
    vision_config = MllamaVisionConfig(
        hidden_size=vision.width,
        num_hidden_layers=vision.num_layers,
        num_global_layers=vision.num_global_layers,
        attention_heads=vision.num_heads,
        intermediate_size=vision.ffn_width,
        vision_output_dim=vision.num_features,
        image_size=vision.tile,
        patch_size=vision.patch,
        intermediate_layers_indices=list(vision.kept),
    )
    config = MllamaConfig(vision_config=vision_config, text_config=text_config, image_token_index=CFG.picture_id)
    config._attn_implementation = "sdpa"
    return config


def randomise(model: Any) -> None:
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            values = torch.randn(parameter.shape, generator=generator)
            if parameter.ndim == 1 and "norm" in name and name.endswith("weight"):
                parameter.copy_(1 + values / 10)
            elif parameter.ndim == 1 or "embed" in name:
                parameter.copy_(values / 4)
            else:
                parameter.copy_(values * 2 / parameter[0].numel() ** 0.5)
        eye, most = model.model.vision_model, CFG.vision.max_tiles
        for table in (
            eye.gated_positional_embedding.tile_embedding,
            eye.pre_tile_positional_embedding.embedding,
            eye.post_tile_positional_embedding.embedding,
        ):
            grid = torch.randn((most, most, table.weight.shape[1] // most), generator=generator) / 4
            table.weight.zero_()
            for number, (rows, columns) in enumerate(shapes_of_pictures(most)):
                corner = grid[:rows, :columns].reshape(-1)
                table.weight[number + 1, : len(corner)] = corner


def mended(model: Any) -> Any:
    """Without the two differences, and in float64 throughout."""
    eye, text = model.model.vision_model, model.model.language_model
    eye.intermediate_layers_indices = [layer - 1 for layer in CFG.vision.kept]

    def remember(layer: Any, given: Any, named: dict[str, Any]) -> None:
        layer.cross_attn.rows_that_see = named["full_text_row_masked_out_mask"]

    def only_those(attention: Any, given: Any, out: tuple[Any, Any]) -> tuple[Any, Any]:
        return out[0] * attention.rows_that_see[:, 0], out[1]

    for index in text.cross_attention_layers:
        text.layers[index].register_forward_pre_hook(remember, with_kwargs=True)
        text.layers[index].cross_attn.register_forward_hook(only_those)

    class Angles(torch.nn.Module):
        def forward(self, x: Any, position_ids: Any) -> tuple[Any, Any]:
            angles = position_ids[..., None].double() * torch.tensor(CFG.rope.frequencies(), dtype=torch.float64)
            angles = torch.cat([angles, angles], dim=-1)
            return angles.cos() * CFG.rope.magnitude, angles.sin() * CFG.rope.magnitude

    text.rotary_emb = Angles()
    for module in model.modules():
        if type(module).__name__ == "MllamaTextRMSNorm":
            module.forward = _float64_norm.__get__(module)
    return model


def _float64_norm(self: Any, x: Any) -> Any:
    return self.weight * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.variance_epsilon))


def given_with(tokens: Sequence[int], pictures: Sequence[Placed]) -> dict[str, Any]:
    """What the model in transformers is called with beside the tokens of a whole prompt with prepared pictures."""
    if not pictures:
        return {}
    most, side = CFG.vision.max_tiles, CFG.vision.tile
    pixels = torch.zeros((1, len(pictures), most, 3, side, side), dtype=torch.float64)
    used = torch.zeros((1, len(pictures), most), dtype=torch.int64)
    for index, each in enumerate(pictures):
        pixels[0, index, : len(each.picture.pixels)] = torch.from_numpy(each.picture.pixels).double()
        used[0, index, : len(each.picture.pixels)] = 1
    shapes = shapes_of_pictures(most)
    numbers = [1 + shapes.index((each.picture.rows, each.picture.columns)) for each in pictures]
    given = {"pixel_values": pixels, "aspect_ratio_ids": torch.tensor([numbers]), "aspect_ratio_mask": used}
    return {**given, "cross_attention_mask": mask(tokens, [len(each.picture.pixels) for each in pictures])}


def transformers_logits(model: Any, tokens: Sequence[int], pictures: Sequence[Placed]) -> NDArray[np.float64]:
    """Logits [T, V] of a whole prompt with prepared pictures."""
    with torch.inference_mode():
        return model(torch.tensor([tokens]), **given_with(tokens, pictures)).logits[0].numpy()


def mask(tokens: Sequence[int], num_tiles: list[int]) -> Any:
    """Which token sees which tiles, made by transformers' own functions."""
    from transformers.models.mllama.processing_mllama import convert_sparse_cross_attention_mask_to_dense, get_cross_attention_token_mask

    spans = get_cross_attention_token_mask(list(tokens), CFG.picture_id)
    return torch.from_numpy(convert_sparse_cross_attention_mask_to_dense([spans], [num_tiles], CFG.vision.max_tiles, len(tokens)))
