"""Hugging Face folders of Llama 3.2 Vision: every key and tensor accounted for, tables of places checked, both spellings of names."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from herd import dtypes
from herd.backends.reference.arrays import Arrays
from herd.checkpoints import mllama_names, open_checkpoint
from herd.checkpoints.mllama_places import shapes_of_pictures
from herd.dtypes import DType
from herd.errors import FileProblem
from herd.models.llama3_vision import Llama3VisionConfig, tensors
from herd.models.llama3_vision_encoder import EncoderConfig
from herd.models.rope import Llama3, Rope
from herd.models.weights import Matrix
from herd.quant import quantize
from tiny import random_leaves
from tiny_files import safetensors_bytes

CFG = Llama3VisionConfig(
    width=32, num_layers=4, num_heads=4, num_kv_heads=2, head_width=8, ffn_width=64, vocab_size=96, context_length=64, norm_eps=1e-5,
    rope=Rope(500000.0, 8, Llama3(8.0, 1.0, 4.0, 16)), crossing=(1, 3),
    vision=EncoderConfig(
        tile=8, patch=4, max_tiles=4, width=16, num_layers=2, num_global_layers=1, num_heads=2, ffn_width=32, kept=(0, 1)
    ),
)  # fmt: skip
TABLE = "vision_model.gated_positional_embedding.tile_embedding.weight"
PRE = "vision_model.pre_tile_positional_embedding.embedding.weight"
# What transformers 4.45 wrote into the objects of the published folders besides the numbers of the model.
OLD_SETTINGS = {
    "_name_or_path": "", "add_cross_attention": False, "architectures": None, "bad_words_ids": None, "begin_suppress_tokens": None,
    "chunk_size_feed_forward": 0, "cross_attention_hidden_size": None, "decoder_start_token_id": None, "diversity_penalty": 0.0,
    "do_sample": False, "early_stopping": False, "encoder_no_repeat_ngram_size": 0, "exponential_decay_length_penalty": None,
    "finetuning_task": None, "forced_bos_token_id": None, "forced_eos_token_id": None, "id2label": {"0": "LABEL_0", "1": "LABEL_1"},
    "is_decoder": False, "is_encoder_decoder": False, "label2id": {"LABEL_0": 0, "LABEL_1": 1}, "length_penalty": 1.0, "max_length": 20,
    "min_length": 0, "no_repeat_ngram_size": 0, "num_beam_groups": 1, "num_beams": 1, "num_return_sequences": 1,
    "output_attentions": False, "output_hidden_states": False, "output_scores": False, "prefix": None, "problem_type": None,
    "pruned_heads": {}, "remove_invalid_values": False, "repetition_penalty": 1.0, "return_dict": True, "return_dict_in_generate": False,
    "sep_token_id": None, "suppress_tokens": None, "task_specific_params": None, "temperature": 1.0, "tf_legacy_loss": False,
    "tie_encoder_decoder": False, "tokenizer_class": None, "top_k": 50, "top_p": 1.0, "torch_dtype": "bfloat16", "torchscript": False,
    "typical_p": 1.0, "use_bfloat16": False,
}  # fmt: skip


def config() -> dict[str, Any]:
    """config.json as the published folders have it."""
    vision = CFG.vision
    text_config = {
        "bos_token_id": 1,
        "cross_attention_layers": [1, 4],
        "dropout": 0,
        "eos_token_id": [2, 3],
        "hidden_act": "silu",
        "hidden_size": CFG.width,
        "initializer_range": 0.02,
        "intermediate_size": CFG.ffn_width,
        "max_position_embeddings": CFG.context_length,
        "model_type": "mllama_text_model",
        "num_attention_heads": CFG.num_heads,
        "num_hidden_layers": CFG.num_layers + 2,
        "num_key_value_heads": CFG.num_kv_heads,
        "pad_token_id": 4,
        "rms_norm_eps": CFG.norm_eps,
        "rope_scaling": {
            "factor": 8.0,
            "high_freq_factor": 4.0,
            "low_freq_factor": 1.0,
            "original_max_position_embeddings": 16,
            "rope_type": "llama3",
        },
        "rope_theta": 500000.0,
        "tie_word_embeddings": False,
        "use_cache": True,
        "vocab_size": CFG.vocab_size,
    }
    vision_config = {
        "attention_heads": vision.num_heads,
        "hidden_act": "gelu",
        "hidden_size": vision.width,
        "image_size": vision.tile,
        "intermediate_layers_indices": list(vision.kept),
        "intermediate_size": vision.ffn_width,
        "max_num_tiles": vision.max_tiles,
        "model_type": "mllama_vision_model",
        "norm_eps": 1e-5,
        "num_channels": 3,
        "num_global_layers": vision.num_global_layers,
        "num_hidden_layers": vision.num_layers,
        "patch_size": vision.patch,
        "supported_aspect_ratios": [list(shape) for shape in shapes_of_pictures(4)],
        "vision_output_dim": vision.num_features,
    }
    return {
        "architectures": ["MllamaForConditionalGeneration"],
        "image_token_index": CFG.picture_id,
        "model_type": "mllama",
        "text_config": OLD_SETTINGS | text_config,
        "torch_dtype": "bfloat16",
        "transformers_version": "4.45.0.dev0",
        "vision_config": OLD_SETTINGS | vision_config,
    }


def written_out(grid: NDArray[np.float32], max_tiles: int) -> NDArray[np.float32]:
    """A grid [max_tiles^2 * rows, width] as the table [shapes + 1, ...] of Hugging Face."""
    grid = grid.reshape(max_tiles, max_tiles, -1)
    shapes = shapes_of_pictures(max_tiles)
    table = np.zeros((len(shapes) + 1, max_tiles * grid.shape[-1]), np.float32)
    for number, (rows, columns) in enumerate(shapes):
        corner = grid[:rows, :columns].reshape(-1)
        table[number + 1, : len(corner)] = corner
    return table


def stored(leaves: Mapping[str, Matrix], dtype: DType) -> dict[str, tuple[str, tuple[int, ...], bytes]]:
    """The tensors of the folder's file."""
    found = {}
    arrays, vision = Arrays(np.dtype(np.float32)), CFG.vision
    for spec in tensors(CFG):
        values = np.array(arrays.get(leaves[spec.name]))
        if spec.name in ("vision.tile_positions", "vision.before", "vision.after"):
            values = written_out(values, vision.max_tiles)
        elif spec.name == "vision.patches":
            values = values.reshape(vision.width, 3, vision.patch, vision.patch)
        elif spec.name == "vision.class_row":
            values = values[0]
        elif spec.rotary_heads:
            values = values.reshape(spec.rotary_heads, -1, 2, spec.shape[1]).swapaxes(1, 2).reshape(spec.shape)
        data = quantize(dtype, values.reshape(-1, values.shape[-1])).tobytes()
        found[mllama_names.in_huggingface(CFG, spec.name)] = (dtype.name.upper(), values.shape, data)
    return found


LEAVES = random_leaves(CFG)
Change = Callable[[dict[str, Any]], None]


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Path]:
    """Writes the folder, with changes to config.json and to the tensors."""

    def made(change: Change = lambda values: None, tensors: Change = lambda found: None, dtype: DType = dtypes.F32) -> Path:
        values, found = config(), stored(LEAVES, dtype)
        change(values)
        tensors(found)
        (tmp_path / "config.json").write_text(json.dumps(values))
        (tmp_path / "model.safetensors").write_bytes(safetensors_bytes(found))
        return tmp_path

    return made


def refusal(path: Path) -> str:
    with pytest.raises(FileProblem) as caught:
        open_checkpoint(path)
    return str(caught.value)


def reached(values: NDArray[Any]) -> NDArray[Any]:
    """The places of a grid that some shape of picture has; zeros elsewhere."""
    grid = values.reshape(4, 4, -1).copy()
    for row in range(4):
        for column in range(4):
            if (row + 1) * (column + 1) > 4:
                grid[row, column] = 0
    return grid.reshape(values.shape)


@pytest.mark.parametrize("dtype", [dtypes.F32, dtypes.BF16], ids=lambda dtype: dtype.name)
def test_weights_arrive_in_our_order_and_shape(write: Callable[..., Path], dtype: DType) -> None:
    checkpoint = open_checkpoint(write(dtype=dtype))
    assert checkpoint.config == CFG and checkpoint.stop_ids == (2, 3) and checkpoint.architecture == "llama3_vision"
    for spec in checkpoint.specs:
        leaf = checkpoint.leaf(spec.name)
        values = Arrays(np.dtype(np.float32)).get(LEAVES[spec.name])
        values = reached(values) if spec.name in ("vision.tile_positions", "vision.before", "vision.after") else values
        expected = quantize(dtype, values.reshape(-1, values.shape[-1]))
        assert (leaf.dtype, leaf.shape, leaf.data.shape) == (dtype, spec.shape, expected.shape)
        assert np.array_equal(leaf.data, expected), spec.name
        middle = len(expected) // 2
        assert np.array_equal(checkpoint.source(spec.name).read(middle, len(expected)), expected[middle:])


def test_names_that_transformers_uses_in_memory_mean_the_same(write: Callable[..., Path]) -> None:
    def renamed(found: dict[str, Any]) -> None:
        for name in list(found):
            start, published = next(each for each in mllama_names.SPELLINGS if name.startswith(each[1]))
            found[start + name.removeprefix(published)] = found.pop(name)

    checkpoint = open_checkpoint(write(tensors=renamed))
    assert np.array_equal(checkpoint.leaf("crossing.1.attention.k").data, LEAVES["crossing.1.attention.k"].data)
    assert np.array_equal(checkpoint.leaf("head").data, LEAVES["head"].data)


def test_one_tensor_under_both_names_is_refused(write: Callable[..., Path]) -> None:
    def twice(found: dict[str, Any]) -> None:
        found["lm_head.weight"] = found["language_model.lm_head.weight"]

    assert "holds 'language_model.lm_head.weight' twice, under names that mean the same" in refusal(write(tensors=twice))


@pytest.mark.parametrize(("name", "ours"), [(TABLE, "vision.tile_positions"), (PRE, "vision.before")])
def test_a_table_that_says_two_things_of_one_place_is_refused_when_it_is_read(write: Callable[..., Path], name: str, ours: str) -> None:
    def other(found: dict[str, Any]) -> None:
        dtype, shape, data = found[name]
        values = np.frombuffer(data, np.float32).reshape(shape).copy()
        values[6, -1] += 1  # the last tile of 2 x 2
        values[4, 0] += 1  # the first tile of 1 x 4
        found[name] = (dtype, shape, values.tobytes())

    checkpoint = open_checkpoint(write(tensors=other))
    with pytest.raises(
        FileProblem, match=r"one vector for the tile in row 1 and column 1 of pictures of 1 x 1 tiles and another for those of 1 x 4"
    ):
        checkpoint.leaf(ours)


def test_a_table_with_values_for_tiles_that_a_picture_lacks_is_refused_when_it_is_read(write: Callable[..., Path]) -> None:
    def other(found: dict[str, Any]) -> None:
        dtype, shape, data = found[TABLE]
        values = np.frombuffer(data, np.float32).reshape(shape).copy()
        values[7, -1] = 1  # 3 x 1 has no fourth tile
        found[TABLE] = (dtype, shape, values.tobytes())

    with pytest.raises(FileProblem, match="has values for tiles that pictures of 3 x 1 tiles lack"):
        open_checkpoint(write(tensors=other)).leaf("vision.tile_positions")


def test_what_a_table_says_of_no_picture_is_never_used(write: Callable[..., Path]) -> None:
    def other(found: dict[str, Any]) -> None:
        dtype, shape, data = found[TABLE]
        values = np.frombuffer(data, np.float32).reshape(shape).copy()
        values[0] = 7
        found[TABLE] = (dtype, shape, values.tobytes())

    assert not (np.asarray(open_checkpoint(write(tensors=other)).leaf("vision.tile_positions").data).view(np.float32) == 7).any()


def within(part: str, **changes: Any) -> Change:
    def change(values: dict[str, Any]) -> None:
        (values if part == "" else values[part]).update(changes)

    return change


REFUSED = {
    "image_token_index is 95; it must be vocab_size, 96": within("", image_token_index=95),
    "tie_word_embeddings is true; allowed is false": within("", tie_word_embeddings=True),
    "text_config is 'large'; allowed is an object": within("", text_config="large"),
    "vision_config.norm_eps is 1e-06; allowed is 1e-05": within("vision_config", norm_eps=1e-6),
    "vision_config.vision_output_dim is 64; the last values and 2 kept ones are 48 wide": within("vision_config", vision_output_dim=64),
    "vision_config.intermediate_layers_indices is [2]; allowed is a list of layers from 0 to 1": within(
        "vision_config", intermediate_layers_indices=[2]
    ),
    "vision_config.supported_aspect_ratios is [[1, 1]]; allowed is": within("vision_config", supported_aspect_ratios=[[1, 1]]),
    "vision_config.image_size is 9; it must be whole patches of 4": within("vision_config", image_size=9),
    "vision_config.hidden_act is 'quick_gelu'; allowed is 'gelu'": within("vision_config", hidden_act="quick_gelu"),
    "vision_config.depth is not a key that is known here (3)": within("vision_config", depth=3),
    "text_config.cross_attention_layers is [1, 2]; each must stand before a layer of the text model, not another": within(
        "text_config", cross_attention_layers=[1, 2]
    ),
    "text_config.cross_attention_layers is [1, 5]; allowed is a list of whole numbers from 0 to 4": within(
        "text_config", cross_attention_layers=[1, 5]
    ),
    "text_config.head_dim is 16; allowed is 8": within("text_config", head_dim=16),
    "text_config.attention_bias is true; allowed is false": within("text_config", attention_bias=True),
    "text_config.rope_scaling.beta_fast is not a key of this kind of scaling": lambda values: values["text_config"]["rope_scaling"].update(
        beta_fast=3
    ),
    "quant_method is None, which is not read": within("", quantization_config={"bits": 4}),
}


@pytest.mark.parametrize("message", REFUSED)
def test_a_config_that_means_something_else_is_refused(write: Callable[..., Path], message: str) -> None:
    assert message in refusal(write(REFUSED[message]))


def test_a_missing_and_an_unknown_tensor_are_both_named(write: Callable[..., Path]) -> None:
    def change(found: dict[str, Any]) -> None:
        found["vision_model.extra"] = found.pop("language_model.model.layers.4.cross_attn_mlp_gate")

    message = refusal(write(tensors=change))
    assert "language_model.model.layers.4.cross_attn_mlp_gate [1] is missing" in message
    assert "'vision_model.extra' [1] belongs to no part" in message


def test_a_config_in_the_spelling_of_transformers_5_is_the_same(write: Callable[..., Path]) -> None:
    def change(values: dict[str, Any]) -> None:
        text = values["text_config"]
        text["rope_parameters"] = {**text.pop("rope_scaling"), "rope_theta": text.pop("rope_theta")}
        values["vision_config"]["image_size"] = [8, 8]
        values["image_token_id"] = values["image_token_index"]

    assert open_checkpoint(write(change)).config == CFG


def test_metas_number_of_the_picture_token_is_known_where_the_vocabulary_is_metas() -> None:
    from herd.checkpoints.huggingface_mllama import Reader

    values = config()
    values["image_token_index"] = values["text_config"]["vocab_size"] = 128256
    found = Reader().read_config(values, "config.json", {})
    assert found == replace(CFG, vocab_size=128256, picture_aliases=(128011,))
