"""GGUF files: what is read equals the official reader's, and everything else is refused by name."""

from __future__ import annotations

import dataclasses
import random
import struct
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest

from herd import dtypes
from herd.checkpoints import open_checkpoint
from herd.checkpoints.advice import RANGES
from herd.checkpoints.gguf import read_gguf
from herd.dtypes import DType
from herd.errors import FileProblem
from herd.files import MappedFile
from herd.models.llama import LlamaConfig
from herd.models.rope import Divisors, Linear, Llama3, Rope, Yarn
from herd.sampling.params import SamplingParams
from tiny import dense_f32, random_leaves, tiny_llama
from tiny_files import write_gguf

TOKENIZER = {
    "tokenizer.ggml.model": "gpt2",
    "tokenizer.ggml.tokens": [f"token {index}" for index in range(39)] + ["雪"],
    "tokenizer.ggml.token_type": [1] * 40,
    "tokenizer.ggml.merges": ["a b", "c d"],
    "tokenizer.ggml.eos_token_id": 2,
    "tokenizer.ggml.eot_token_id": 5,
    "tokenizer.ggml.add_bos_token": False,
    "tokenizer.chat_template": "{{ messages }}",
}


@pytest.fixture
def written(tmp_path: Path, small: LlamaConfig) -> Callable[..., Path]:
    """Writes the small model with further or other keys."""

    def write(keys: dict[str, Any] | None = None, cfg: LlamaConfig = small, name: str = "model.gguf", **changes: Any) -> Path:
        cfg = dataclasses.replace(cfg, **changes)
        return write_gguf(tmp_path / name, cfg, random_leaves(cfg), keys)

    return write


def refusal(path: Path) -> str:
    with pytest.raises(FileProblem) as caught:
        open_checkpoint(path)
    return str(caught.value)


@pytest.mark.parametrize("dtype", dtypes.ALL, ids=lambda dtype: dtype.name)
def test_every_format_reads_to_the_tensors_of_the_official_reader(tmp_path: Path, dtype: DType) -> None:
    cfg = tiny_llama(num_layers=1, norm_eps=2.0**-17)
    leaves = random_leaves(cfg, dtype=dtype)
    path = write_gguf(tmp_path / "model.gguf", cfg, leaves)
    checkpoint = open_checkpoint(path)
    official = {tensor.name: tensor for tensor in gguf.GGUFReader(path).tensors}
    assert checkpoint.config == cfg and len(official) == len(checkpoint.specs)
    for spec in checkpoint.specs:
        leaf = checkpoint.leaf(spec.name)
        assert (leaf.dtype, leaf.shape) == (leaves[spec.name].dtype, spec.shape)
        assert leaf.data.dtype == np.uint8 and leaf.data.shape == (spec.shape[0] if len(spec.shape) > 1 else 1, dtypes_row(leaf))
        assert not leaf.data.flags.owndata and not leaf.data.flags.writeable
        assert np.array_equal(leaf.data, leaves[spec.name].data)
    embed = official["token_embd.weight"]
    assert np.array_equal(np.ascontiguousarray(embed.data).view(np.uint8).ravel(), checkpoint.leaf("embed").data.ravel())
    assert checkpoint.num_bytes == sum(leaf.num_bytes for leaf in leaves.values())


def dtypes_row(leaf: Any) -> int:
    return int(leaf.dtype.row_bytes(leaf.shape[-1]))


def test_tokenizer_template_and_stops_come_from_the_keys(written: Callable[..., Path]) -> None:
    checkpoint = open_checkpoint(written({**TOKENIZER, "general.sampling.temp": 0.25, "general.name": "Tiny"}))
    assert checkpoint.tokenizer is not None and checkpoint.tokenizer.kind == "gguf"
    assert {key: checkpoint.tokenizer.metadata[key] for key in TOKENIZER} == TOKENIZER
    assert checkpoint.chat_template == "{{ messages }}" and checkpoint.stop_ids == (2, 5)
    assert checkpoint.sampling_defaults == {"temperature": 0.25}
    assert checkpoint.facts["width"].source == "llama.embedding_length in model.gguf"
    assert checkpoint.facts["name"].value == "Tiny"


def test_advice_on_sampling_is_followed_or_named(written: Callable[..., Path]) -> None:
    keys = {"temp": 1, "top_k": 40, "top_p": 0.5, "min_p": 0.25, "penalty_repeat": 1.5, "mirostat_tau": 5.0, "novel": "text"}
    checkpoint = open_checkpoint(written({f"general.sampling.{key}": value for key, value in keys.items()}))
    expected = {"temperature": 1.0, "top_k": 40, "top_p": 0.5, "min_p": 0.25, "repetition_penalty": 1.5}
    assert checkpoint.sampling_defaults == expected and SamplingParams(**checkpoint.sampling_defaults).top_k == 40  # type: ignore[arg-type]
    assert checkpoint.facts["advice_not_followed"].value == "general.sampling.mirostat_tau, general.sampling.novel"


@pytest.mark.parametrize(
    ("key", "value"),
    [
        *(("temp", value) for value in ("hot", True, -1.0, float("nan"))),
        *(("top_k", value) for value in (-1.0, 0.5)),
        *(("penalty_repeat", value) for value in (0.0, 1000.0)),
        ("top_p", 1.5),
        ("min_p", [0.5]),
    ],
)
def test_advice_that_sampling_would_not_accept_is_refused(written: Callable[..., Path], key: str, value: Any) -> None:
    assert f"model.gguf: general.sampling.{key} is " in refusal(written({f"general.sampling.{key}": value}))


@pytest.mark.parametrize(("name", "end"), [(name, end) for name, ends in RANGES.items() for end in ends])
def test_sampling_accepts_the_ends_of_what_files_may_recommend(name: str, end: float) -> None:
    assert getattr(SamplingParams(**{name: end}), name) == end  # type: ignore[arg-type]


def test_a_file_without_a_tokenizer_opens(written: Callable[..., Path]) -> None:
    assert open_checkpoint(written()).tokenizer is None


@pytest.mark.parametrize("scaling", [None, Linear(4.0), Yarn(8.0, 64), Divisors(tuple(float(i + 1) for i in range(8)))], ids=str)
def test_rotary_scalings_are_read(written: Callable[..., Path], scaling: Any) -> None:
    rope = Rope(500_000.0, 16, scaling)
    assert open_checkpoint(written(rope=rope)).config.rope == rope


def test_llama_3_scaling_arrives_as_divisors_with_the_same_frequencies(written: Callable[..., Path]) -> None:
    rope = Rope(500_000.0, 16, Llama3(8.0, 1.0, 4.0, 64))
    found = open_checkpoint(written(rope=rope)).config.rope
    assert found.frequencies() == pytest.approx(rope.frequencies(), rel=1e-6)


def test_the_old_key_for_linear_scaling_is_read(written: Callable[..., Path]) -> None:
    assert open_checkpoint(written({"llama.rope.scale_linear": 2.0})).config.rope.scaling == Linear(2.0)


@pytest.mark.parametrize(("factor", "scaling"), [(4.0, Linear(4.0)), (1.0, None)])
def test_a_factor_without_a_type_is_linear_as_in_llama_cpp(written: Callable[..., Path], factor: float, scaling: Any) -> None:
    assert open_checkpoint(written({"llama.rope.scaling.factor": factor})).config.rope.scaling == scaling


@pytest.mark.parametrize("key", ["scaling.factor", "scale_linear"])
def test_no_scaling_and_a_factor_are_refused_together(written: Callable[..., Path], key: str) -> None:
    path = written({"llama.rope.scaling.type": "none", f"llama.rope.{key}": 2.0})
    with pytest.raises(FileProblem, match=rf"scaling\.type is 'none' and llama\.rope\.{key} is 2"):
        open_checkpoint(path)
    assert open_checkpoint(written({"llama.rope.scaling.type": "none", f"llama.rope.{key}": 1.0})).config.rope.scaling is None


def test_two_factors_that_differ_are_refused(written: Callable[..., Path]) -> None:
    with pytest.raises(FileProblem, match="they must agree"):
        open_checkpoint(written({"llama.rope.scaling.factor": 2.0, "llama.rope.scale_linear": 4.0}))


def test_a_factor_on_the_magnitude_of_yarn_multiplies_it(written: Callable[..., Path]) -> None:
    keys = {"llama.rope.scaling.attn_factor": 0.5}
    plain = Rope(10000.0, 16, Yarn(8.0, 64))
    assert open_checkpoint(written(keys, rope=plain)).config.rope.magnitude == pytest.approx(plain.magnitude / 2)


@pytest.mark.parametrize("changes", [{"tied_embeddings": True}, {"qkv_bias": True}, {"out_bias": True, "ffn_bias": True}], ids=str)
def test_ties_and_biases_follow_from_the_tensors(written: Callable[..., Path], small: LlamaConfig, changes: dict[str, bool]) -> None:
    assert open_checkpoint(written(**changes)).config == dataclasses.replace(small, **changes)


def test_equal_heads_for_every_layer_may_be_a_list(written: Callable[..., Path], small: LlamaConfig) -> None:
    assert open_checkpoint(written({"llama.attention.head_count_kv": [2, 2]})).config == small
    assert "a list of 2 equal ones" in refusal(written({"llama.attention.head_count_kv": [2, 1]}))


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"general.architecture": "mamba"}, "general.architecture is 'mamba'; herd reads 'llama'"),
        ({"general.architecture": "mamba"}, "general.architecture is 'mamba'"),
        ({"general.type": "adapter"}, "general.type is 'adapter'; allowed is 'model'"),
        ({"llama.expert_count": 8}, "models with experts are not read"),
        ({"llama.attention.sliding_window": 4096}, "llama attends to everything"),
        ({"llama.rope.scaling.type": "longrope"}, "allowed are 'none', 'linear' and 'yarn'"),
        ({"llama.attention.value_length": 32}, "keys and values of one width"),
        ({"llama.some_new_key": 3}, "llama.some_new_key is not a key that is known here (3)"),
        ({"unheard.of": "x"}, "unheard.of is not a key that is known here ('x')"),
        ({"llama.block_count": 0}, "llama.block_count is 0; allowed is a whole number from 1"),
        ({"llama.block_count": 2**31}, "llama.block_count is 2147483648"),
        ({"llama.block_count": 16000}, "16000 layers are declared and the file has"),
        ({"llama.embedding_length": 2**31}, "llama.embedding_length is 2147483648"),
        ({"llama.embedding_length": "64"}, "llama.embedding_length is '64'"),
        ({"llama.attention.head_count": True}, "llama.attention.head_count is true"),
        ({"llama.attention.head_count": 0}, "llama.attention.head_count is 0"),
        ({"llama.attention.head_count_kv": 3}, "cannot be shared out evenly over 3 kv heads"),
        ({"llama.attention.head_count_kv": 8}, "cannot be shared out evenly over 8 kv heads"),
        ({"llama.attention.key_length": 15, "llama.attention.value_length": 15}, "the head width 15 is odd"),
        ({"llama.rope.dimension_count": 32}, "the rotary width 32 must be even and at most the head width 16"),
        ({"llama.rope.freq_base": float("nan")}, "llama.rope.freq_base is nan"),
        ({"llama.attention.layer_norm_rms_epsilon": -1.0}, "llama.attention.layer_norm_rms_epsilon is -1.0"),
        ({"llama.attention.layer_norm_rms_epsilon": float("inf")}, "llama.attention.layer_norm_rms_epsilon is inf"),
        ({"llama.context_length": None}, "llama.context_length is missing"),
        ({"llama.vocab_size": 41}, "llama.vocab_size is 41 and token_embd.weight has 40 rows"),
        ({"tokenizer.ggml.tokens": ["a", "b"]}, "tokenizer.ggml.tokens lists 2 tokens and the vocabulary has 40"),
        ({**TOKENIZER, "tokenizer.ggml.eos_token_id": 40}, "tokenizer.ggml.eos_token_id is 40; allowed is a token from 0 to 39"),
        ({"general.alignment": 48}, "general.alignment is 48"),
    ],
    ids=lambda value: str(value)[:60],
)
def test_a_key_that_no_llama_has_is_refused_by_name(written: Callable[..., Path], keys: dict[str, Any], message: str) -> None:
    assert message in refusal(written(keys))


def test_one_error_lists_everything_that_disagrees(tmp_path: Path, small: LlamaConfig) -> None:
    leaves = random_leaves(small)
    del leaves["layers.1.ffn_norm"]
    leaves["layers.0.attention.k"] = dense_f32(np.zeros((64, 64), np.float32))
    path = write_gguf(tmp_path / "model.gguf", small, leaves, {"llama.unknown": 1})
    assert "llama.unknown" in refusal(path)
    message = refusal(write_gguf(tmp_path / "model.gguf", small, leaves))
    assert "2 things are wrong" in message
    assert "blk.1.ffn_norm.weight [64] is missing" in message
    assert "blk.0.attn_k.weight has shape [64, 64] in model.gguf; the config says [32, 64]" in message


def test_a_tensor_too_many_and_a_quantised_vector_are_refused(tmp_path: Path, small: LlamaConfig) -> None:
    leaves = random_leaves(small)
    more = dataclasses.replace(small, num_layers=3)
    path = write_gguf(tmp_path / "model.gguf", more, random_leaves(more), {"llama.block_count": 2})
    assert "'blk.2.attn_norm.weight' [64] belongs to no part of this model" in refusal(path)
    norm = random_leaves(tiny_llama(), dtype=dtypes.Q8_0)["layers.0.attention.k"]
    leaves["norm"] = dataclasses.replace(norm, shape=(64,), data=norm.data[:1, :68])
    assert "output_norm.weight is stored as q8_0; a vector must be f32" in refusal(write_gguf(tmp_path / "b.gguf", small, leaves))


def patched(path: Path, at: int, data: bytes) -> Path:
    changed = bytearray(path.read_bytes())
    changed[at : at + len(data)] = data
    path.write_bytes(changed)
    return path


@pytest.mark.parametrize(
    ("version", "message"), [(1, "GGUF version 1"), (4, "GGUF version 4"), (0x03000000, "big-endian"), (0, "big-endian")], ids=str
)
def test_other_versions_and_byte_orders_are_refused_by_name(written: Callable[..., Path], version: int, message: str) -> None:
    assert message in refusal(patched(written(), 4, struct.pack("<I", version)))


def test_version_2_is_read(written: Callable[..., Path], small: LlamaConfig) -> None:
    assert open_checkpoint(patched(written(), 4, struct.pack("<I", 2))).config == small


def info_of(path: Path, name: bytes) -> int:
    """Where the info of a two-dimensional tensor goes on after its name."""
    return path.read_bytes().index(struct.pack("<Q", len(name)) + name) + 8 + len(name)


@pytest.mark.parametrize(
    ("offset", "data", "message"),
    [
        (0, struct.pack("<I", 0), "the number of dimensions of 'blk.0.attn_q.weight' is 0"),
        (0, struct.pack("<I", 2**32 - 1), "allowed is 1 to 4"),
        (4, struct.pack("<QQ", 0, 64), "the shape of 'blk.0.attn_q.weight' is [64, 0]"),
        (4, struct.pack("<QQ", 2**62, 4), "whose product is below 2^63"),
        (4, struct.pack("<QQ", 2**40, 2**20), "needs the bytes"),
        (20, struct.pack("<I", 16), "is stored as iq2_xxs (type 16), which herd does not read"),
        (20, struct.pack("<I", 39), "mxfp4"),
        (20, struct.pack("<I", 4), "which GGUF has given up"),
        (20, struct.pack("<I", 99), "has the type 99"),
        (20, struct.pack("<I", 14), "a multiple of 256, the block of q6_k"),
        (24, struct.pack("<Q", 2**64 - 32), "the offset of 'blk.0.attn_q.weight' is 18446744073709551584"),
        (24, struct.pack("<Q", 0), "the offset of 'blk.0.attn_q.weight' is 0"),
    ],
    ids=str,
)
def test_a_lying_tensor_info_is_refused_by_name(written: Callable[..., Path], offset: int, data: bytes, message: str) -> None:
    path = written()
    assert message in refusal(patched(path, info_of(path, b"blk.0.attn_q.weight") + offset, data))


@pytest.mark.parametrize("at", [8, 16])
@pytest.mark.parametrize("count", [2**63, 2**64 - 1, 10**6 + 1, 2**32])
def test_a_lying_count_is_refused_at_once(written: Callable[..., Path], at: int, count: int) -> None:
    path = patched(written(), at, struct.pack("<Q", count))
    start = time.process_time()
    assert f"is {count}; allowed is at most" in refusal(path)
    assert time.process_time() - start < 0.1


def test_doubled_keys_and_tensors_are_refused(written: Callable[..., Path]) -> None:
    path = written({"llama.logit_scalf": 1.0, "llama.logit_scale": 1.0})
    path.write_bytes(path.read_bytes().replace(b"llama.logit_scalf", b"llama.logit_scale"))
    assert "the key 'llama.logit_scale' is there a second time" in refusal(path)
    path = written()
    path.write_bytes(path.read_bytes().replace(b"blk.1.attn_q.weight", b"blk.0.attn_q.weight"))
    assert "the tensor 'blk.0.attn_q.weight' is there a second time" in refusal(path)


def test_bytes_after_the_last_tensor_are_refused(written: Callable[..., Path]) -> None:
    path = written()
    path.write_bytes(path.read_bytes() + bytes(64))
    assert "what follows the last tensor is 64 bytes" in refusal(path)


def test_a_file_cut_anywhere_is_refused(written: Callable[..., Path]) -> None:
    data = written(TOKENIZER).read_bytes()
    header = data.index(b"output.weight") + 200
    points = [*range(header), *random.Random(0).sample(range(header, len(data) - 32), 1000)]
    for point in points:
        with pytest.raises(FileProblem):
            read_gguf(MappedFile.of_bytes(data[:point], "cut.gguf"))


def split(path: Path, parts: int) -> list[Path]:
    """Split as llama.cpp does: all keys in the first part, tensors in turn."""
    whole = gguf.GGUFReader(path)
    paths = []
    for number in range(parts):
        part = path.with_name(f"model-{number + 1:05d}-of-{parts:05d}.gguf")
        writer = gguf.GGUFWriter(part, "llama")
        if number:
            writer.kv_data[0].clear()
        for key, field in whole.fields.items():
            if number == 0 and not key.startswith(("GGUF.", "general.architecture")):
                writer.add_key_value(key, field.contents(), field.types[0], field.types[-1] if len(field.types) > 1 else None)
        writer.add_key_value("split.no", number, gguf.GGUFValueType.UINT16)
        writer.add_key_value("split.count", parts, gguf.GGUFValueType.UINT16)
        writer.add_key_value("split.tensors.count", len(whole.tensors), gguf.GGUFValueType.INT32)
        share = -(-len(whole.tensors) // parts)
        for tensor in whole.tensors[number * share : (number + 1) * share]:
            writer.add_tensor(tensor.name, np.array(tensor.data), raw_dtype=tensor.tensor_type)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        paths.append(part)
    return paths


def test_a_split_model_opens_by_its_first_part(written: Callable[..., Path], small: LlamaConfig) -> None:
    parts = split(written(TOKENIZER), 3)
    checkpoint = open_checkpoint(parts[0])
    leaves = random_leaves(small)
    assert checkpoint.config == small
    assert all(np.array_equal(checkpoint.leaf(name).data, leaf.data) for name, leaf in leaves.items())


def test_a_split_model_needs_every_part_in_its_place(written: Callable[..., Path]) -> None:
    parts = split(written(), 3)
    assert "Open its first part, model-00001-of-00003.gguf" in refusal(parts[1])
    renamed = parts[0].with_name("other.gguf")
    renamed.write_bytes(parts[0].read_bytes())
    assert "split.count is 3 and the name says 1" in refusal(renamed)
    third = parts[2].read_bytes()
    parts[2].unlink()
    assert "model-00003-of-00003.gguf: is missing beside model-00001-of-00003.gguf" in refusal(parts[0])
    parts[2].write_bytes(parts[1].read_bytes())
    assert "by its name they must be 2 and 3" in refusal(parts[0])
    parts[2].write_bytes(third)
    open_checkpoint(parts[0])


def test_pages_are_given_back_and_leaves_outlive_the_checkpoint(written: Callable[..., Path], small: LlamaConfig) -> None:
    checkpoint = open_checkpoint(written())
    leaf = checkpoint.leaf("layers.1.ffn.up")
    checkpoint.release_pages()
    checkpoint.close()
    assert np.array_equal(leaf.data, random_leaves(small)["layers.1.ffn.up"].data)
