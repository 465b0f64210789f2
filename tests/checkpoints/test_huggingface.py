"""Hugging Face folders: every key and tensor accounted for, nothing outside the folder read."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from herd import dtypes
from herd.checkpoints import open_checkpoint
from herd.dtypes import DType
from herd.errors import FileProblem
from herd.models.llama import LlamaConfig
from herd.models.rope import Linear, Llama3, Rope, Yarn
from tiny import random_leaves
from tiny_files import safetensors_bytes, write_huggingface

Write = Callable[..., Path]


@pytest.fixture
def written(tmp_path: Path, small: LlamaConfig) -> Write:
    """Writes the small model with changes to config.json."""

    def write(changes: dict[str, Any] | None = None, shards: int = 1, **facts: Any) -> Path:
        cfg = dataclasses.replace(small, **facts)
        return write_huggingface(tmp_path / "model", cfg, random_leaves(cfg), changes, shards)

    return write


def refusal(path: Path) -> str:
    with pytest.raises(FileProblem) as caught:
        open_checkpoint(path)
    return str(caught.value)


def edit(path: Path, change: Callable[[dict[str, Any]], None]) -> None:
    values = json.loads(path.read_text())
    change(values)
    path.write_text(json.dumps(values))


@pytest.mark.parametrize("dtype", dtypes.PLAIN, ids=lambda dtype: dtype.name)
@pytest.mark.parametrize("shards", [1, 3])
def test_weights_arrive_in_our_order_and_format(tmp_path: Path, small: LlamaConfig, dtype: DType, shards: int) -> None:
    cfg = dataclasses.replace(small, qkv_bias=True, out_bias=True)
    leaves = random_leaves(cfg, dtype=dtype)
    checkpoint = open_checkpoint(write_huggingface(tmp_path, cfg, leaves, shards=shards))
    assert checkpoint.config == cfg and checkpoint.layout == "huggingface"
    for name, leaf in leaves.items():
        found = checkpoint.leaf(name)
        assert (found.dtype, found.shape, found.data.shape) == (leaf.dtype, leaf.shape, leaf.data.shape)
        assert np.array_equal(found.data, leaf.data), name
    assert not checkpoint.leaf("layers.0.ffn.up").data.flags.owndata
    assert checkpoint.num_bytes == sum(leaf.num_bytes for leaf in leaves.values())


def test_transformers_reads_the_same_model_from_the_folder(written: Write) -> None:
    """Its rows are in Hugging Face's order; each head's halves must be our pairs."""
    transformers = pytest.importorskip("transformers")
    folder = written()
    weights = transformers.AutoModelForCausalLM.from_pretrained(folder).state_dict()
    q = open_checkpoint(folder).leaf("layers.1.attention.q").data.view(np.float32)
    theirs = weights["model.layers.1.self_attn.q_proj.weight"].numpy().reshape(4, 2, 8, 64)
    assert np.array_equal(q.reshape(4, 8, 2, 64), theirs.swapaxes(1, 2))


def test_a_config_that_transformers_5_writes_is_read(tmp_path: Path, small: LlamaConfig) -> None:
    transformers = pytest.importorskip("transformers")
    cfg = dataclasses.replace(small, rope=Rope(500_000.0, 16, Llama3(8.0, 1.0, 4.0, 64)))
    folder = write_huggingface(tmp_path, cfg, random_leaves(cfg))
    transformers.LlamaConfig.from_pretrained(folder).save_pretrained(folder)
    assert "rope_parameters" in json.loads((folder / "config.json").read_text())
    assert open_checkpoint(folder).config == cfg


@pytest.mark.parametrize(
    "scaling",
    [None, Linear(4.0), Llama3(8.0, 1.0, 4.0, 64), Yarn(8.0, 64), Yarn(4.0, 64, 16.0, 2.0, magnitude=1.5, truncate=False)],
    ids=str,
)
@pytest.mark.parametrize("spelling", ["rope_scaling", "type", "rope_parameters"])
def test_rotary_scalings_are_read_in_every_spelling(written: Write, scaling: Any, spelling: str) -> None:
    rope = Rope(500_000.0, 16, scaling)
    folder = written(rope=rope)

    def respell(config: dict[str, Any]) -> None:
        old = config.get("rope_scaling")
        if spelling == "type" and old:
            old["type"] = old.pop("rope_type")
        if spelling == "rope_parameters":
            config.pop("rope_scaling", None)
            config["rope_parameters"] = {**(old or {"rope_type": "default"}), "rope_theta": config.pop("rope_theta")}

    edit(folder / "config.json", respell)
    assert open_checkpoint(folder).config.rope == rope


def test_the_magnitude_of_yarn_follows_from_mscale(written: Write) -> None:
    scaling = {"type": "yarn", "factor": 40.0, "original_max_position_embeddings": 64, "mscale": 1.0, "mscale_all_dim": 0.707}
    rope = open_checkpoint(written({"rope_scaling": scaling})).config.rope
    assert rope.magnitude == pytest.approx((0.1 * np.log(40) + 1) / (0.0707 * np.log(40) + 1))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "mistral"}, "model_type is 'mistral'; herd reads 'llama'"),
        ({"architectures": ["LlamaForSequenceClassification"]}, "classifiers and other heads are no language models"),
        ({"hidden_act": "gelu"}, "hidden_act is 'gelu'; allowed is 'silu'"),
        ({"quantization_config": {"bits": 4}}, "quant_method is None, which is not read"),
        ({"auto_map": {"AutoModel": "x.Y"}}, "code that comes with a model is never run"),
        ({"sliding_window": 4096}, "sliding_window is 4096; it is allowed to be absent only: llama attends to everything"),
        ({"layer_types": ["full_attention", "sliding_attention"]}, "allowed is 'full_attention' for every layer"),
        ({"rope_scaling": {"type": "dynamic", "factor": 2.0}}, "depending on what came before"),
        ({"rope_scaling": {"rope_type": "longrope", "short_factor": [1.0]}}, "depending on what came before"),
        ({"rope_scaling": {"rope_type": "ntk"}}, "the rotary scaling 'ntk' is not known"),
        ({"rope_scaling": {"rope_type": "linear", "type": "yarn", "factor": 2.0}}, "name two kinds of scaling"),
        ({"rope_scaling": {"rope_type": "linear"}}, "rope_scaling.factor is missing"),
        ({"rope_scaling": {"rope_type": "linear", "factor": 2.0, "odd": 1}}, "rope_scaling.odd is not a key of this kind of scaling"),
        ({"rope_scaling": "linear"}, "rope_scaling is 'linear'; allowed is an object"),
        ({"rope_parameters": {"rope_theta": 7.0}}, "rope_theta is 10000 and rope_parameters.rope_theta is 7; they must agree"),
        ({"residual_multiplier": 0.2}, "residual_multiplier is not a key that is known here (0.2)"),
        ({"hidden_size": 0}, "hidden_size is 0; allowed is a whole number from 1"),
        ({"hidden_size": 64.0}, "hidden_size is 64.0"),
        ({"num_hidden_layers": 2**31}, "num_hidden_layers is 2147483648"),
        ({"num_hidden_layers": 16384}, "16384 layers are declared"),
        ({"num_attention_heads": -4}, "num_attention_heads is -4"),
        ({"num_key_value_heads": 3}, "cannot be shared out evenly over 3 kv heads"),
        ({"head_dim": 17}, "the head width 17 is odd"),
        ({"num_attention_heads": 5, "head_dim": None}, "does not divide"),
        ({"rms_norm_eps": 1e400}, "Infinity is not a JSON number"),
        ({"rms_norm_eps": "1e-5"}, "rms_norm_eps is '1e-5'"),
        ({"tie_word_embeddings": 1}, "tie_word_embeddings is 1; allowed is true or false"),
        ({"vocab_size": 41}, "model.embed_tokens.weight has shape [40, 64] in model.safetensors; the config says [41, 64]"),
        ({"attention_bias": True}, "model.layers.0.self_attn.q_proj.bias [64] is missing"),
        ({"eos_token_id": 40}, "eos_token_id is 40; allowed are tokens from 0 to 39"),
        ({"intermediate_size": None}, "intermediate_size is missing"),
    ],
    ids=lambda value: str(value)[:60],
)
def test_a_key_that_no_llama_has_is_refused_by_name(written: Write, changes: dict[str, Any], message: str) -> None:
    assert message in refusal(written(changes))


def test_one_error_lists_all_keys_that_are_wrong(written: Write) -> None:
    message = refusal(written({"hidden_size": -1, "vocab_size": "many", "novelty": True}))
    assert all(part in message for part in ("3 things are wrong", "hidden_size is -1", "vocab_size is 'many'", "novelty is not a key"))


def test_values_that_are_assumed_say_so(written: Write) -> None:
    checkpoint = open_checkpoint(written({"rope_theta": None, "num_key_value_heads": 2}))
    assert checkpoint.facts["rope_theta"].source == "assumed: config.json has no rope_theta"
    assert checkpoint.facts["num_kv_heads"].source == "num_key_value_heads in config.json"


def test_a_tied_head_may_be_stored_if_it_is_the_same(tmp_path: Path, small: LlamaConfig) -> None:
    leaves = random_leaves(small)
    folder = write_huggingface(tmp_path, small, {**leaves, "head": leaves["embed"]}, {"tie_word_embeddings": True})
    checkpoint = open_checkpoint(folder)
    assert checkpoint.config.tied_embeddings and np.array_equal(checkpoint.leaf("embed").data, leaves["embed"].data)
    folder = write_huggingface(tmp_path, small, leaves, {"tie_word_embeddings": True})
    with pytest.raises(FileProblem, match=r"differ, but config\.json says tie_word_embeddings: true"):
        open_checkpoint(folder).leaf("embed")


def stored(cfg: LlamaConfig, folder: Path) -> dict[str, tuple[str, tuple[int, ...], bytes]]:
    """The tensors of a written folder, to be changed and written again."""
    from herd.checkpoints.safetensors import read_safetensors
    from herd.files import MappedFile

    entries = read_safetensors(MappedFile(folder / "model.safetensors"))
    return {e.name: (e.dtype, e.shape, bytes(e.file.view[e.offset : e.offset + e.num_bytes])) for e in entries.values()}


def test_old_rotary_tables_are_harmless_and_other_tensors_are_not(written: Write, small: LlamaConfig) -> None:
    folder = written()
    tensors = stored(small, folder)
    tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = ("F32", (8,), bytes(32))
    (folder / "model.safetensors").write_bytes(safetensors_bytes(tensors))
    open_checkpoint(folder)
    tensors["model.layers.0.adapter"] = ("F32", (8,), bytes(32))
    tensors["model.norm.weight"] = ("F8_E4M3", (64,), bytes(64))
    (folder / "model.safetensors").write_bytes(safetensors_bytes(tensors))
    message = refusal(folder)
    assert "'model.layers.0.adapter' [8] belongs to no part of this model" in message
    assert "'model.norm.weight' is stored as F8_E4M3; F32, F16 and BF16 are read" in message


INDEX = "model.safetensors.index.json"


@pytest.mark.parametrize("name", ["../x.safetensors", "/etc/x.safetensors", "a/b.safetensors", "..\\x.safetensors", "C:x.safetensors"])
def test_an_index_cannot_name_a_file_elsewhere(written: Write, name: str) -> None:
    folder = written(shards=2)
    edit(folder / INDEX, lambda index: index["weight_map"].update({"model.norm.weight": name}))
    assert "only plain names of files" in refusal(folder)


def test_links_may_not_lead_out_of_the_folder_except_into_the_hubs_own_store(written: Write, tmp_path: Path) -> None:
    folder = written()
    outside = tmp_path / "outside.safetensors"
    (folder / "model.safetensors").rename(outside)
    (folder / "model.safetensors").symlink_to(outside)
    assert "is a link that leads out of the folder" in refusal(folder)
    snapshot = tmp_path / "models--a--b" / "snapshots" / "0123"
    blobs = tmp_path / "models--a--b" / "blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    for index, (name, source) in enumerate((("config.json", folder / "config.json"), ("model.safetensors", outside))):
        source.rename(blobs / str(index))
        (snapshot / name).symlink_to(Path("../../blobs") / str(index))
    assert open_checkpoint(snapshot).num_bytes > 0


def test_shards_must_be_complete_and_hold_what_the_index_says(written: Write) -> None:
    folder = written(shards=3)
    index = folder / INDEX
    sound = index.read_text()
    first, second, third = sorted(folder.glob("model-*.safetensors"))
    edit(index, lambda values: values["metadata"].update(total_size=1))
    assert "total_size is 1" in refusal(folder)
    index.write_text(sound)
    edit(index, lambda values: values["weight_map"].update({"model.norm.weight": first.name}))
    assert "holds 'model.norm.weight', for which" in refusal(folder)
    index.write_text(sound)
    edit(index, lambda values: values["weight_map"].update({"model.extra": first.name}))
    assert "places ['model.extra'] in" in refusal(folder)
    index.write_text(sound)
    (folder / "model-00004-of-00004.safetensors").write_bytes(first.read_bytes())
    assert "does not name ['model-00004-of-00004.safetensors']" in refusal(folder)
    (folder / "model-00004-of-00004.safetensors").unlink()
    kept = second.read_bytes()
    second.write_bytes(first.read_bytes())
    assert "holds too; a tensor belongs in one shard" in refusal(folder)
    second.write_bytes(kept)
    third.unlink()
    assert f"{third.name}: is missing" in refusal(folder)


def test_shards_beside_a_whole_file_are_refused_by_name(written: Write) -> None:
    folder = written()
    (folder / "model-00001-of-00002.safetensors").touch()
    assert "has both model.safetensors and ['model-00001-of-00002.safetensors']" in refusal(folder)


@pytest.mark.parametrize(
    ("key", "value"), [("top_k", 1.5), ("repetition_penalty", 0.001), ("repetition_penalty", 500), ("temperature", True)]
)
def test_advice_that_sampling_would_not_accept_is_refused(written: Write, key: str, value: Any) -> None:
    folder = written()
    (folder / "generation_config.json").write_text(json.dumps({"do_sample": True, key: value}))
    assert f"generation_config.json: {key} is" in refusal(folder)


def test_a_folder_with_two_sets_of_weights_or_none_is_refused(written: Write) -> None:
    folder = written(shards=2)
    (folder / "model.safetensors").touch()
    assert "has both model.safetensors and" in refusal(folder)
    (folder / "model.safetensors").unlink()
    (folder / INDEX).unlink()
    (folder / "pytorch_model.bin").touch()
    assert "are pickles (.bin, .pth), which are not read: they can run code" in refusal(folder)


def test_what_the_folder_says_about_text_is_found(written: Write) -> None:
    folder = written({"eos_token_id": 3, "bos_token_id": 1})
    assert open_checkpoint(folder).tokenizer is None
    (folder / "tokenizer.json").write_text("{}")
    (folder / "tokenizer_config.json").write_text(json.dumps({"chat_template": "from the config", "bos_token": "<s>"}))
    (folder / "special_tokens_map.json").write_text(json.dumps({"bos_token": "<old>", "eos_token": "</s>"}))
    generation = {"eos_token_id": [3, 4], "do_sample": True, "temperature": 0.6, "top_p": 0.9, "renormalize_logits": True}
    (folder / "generation_config.json").write_text(json.dumps(generation))
    checkpoint = open_checkpoint(folder)
    assert checkpoint.stop_ids == (3, 4) and checkpoint.sampling_defaults == {"temperature": 0.6, "top_p": 0.9}
    assert checkpoint.chat_template == "from the config"
    assert checkpoint.facts["advice_not_followed"].value == "renormalize_logits"
    assert checkpoint.tokenizer is not None and checkpoint.tokenizer.kind == "tokenizer.json"
    config = checkpoint.tokenizer.config
    assert (config["bos_token"], config["eos_token"], config["eos_token_id"], config["bos_token_id"]) == ("<s>", "</s>", [3, 4], 1)
    (folder / "chat_template.jinja").write_text("from its own file")
    (folder / "generation_config.json").write_text(json.dumps({**generation, "do_sample": False}))
    checkpoint = open_checkpoint(folder)
    assert checkpoint.chat_template == "from its own file" and checkpoint.sampling_defaults == {}


@pytest.mark.parametrize(("data", "kind"), [(b"IQ== 0\nIg== 1\n", "tiktoken"), (b"\n\x0e\n\x05<unk>\x15\0\0\0\0", "sentencepiece")])
def test_a_tokenizer_model_is_recognised_by_its_content(written: Write, data: bytes, kind: str) -> None:
    folder = written()
    (folder / "tokenizer.model").write_bytes(data)
    tokenizer = open_checkpoint(folder).tokenizer
    assert tokenizer is not None and (tokenizer.kind, tokenizer.path) == (kind, folder / "tokenizer.model")
