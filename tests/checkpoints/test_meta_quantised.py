"""Meta's quantised releases, as they are described: FP8 with scales in files of their own, int4 with adaptors or a rotation."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from herd.checkpoints import names, open_checkpoint
from herd.checkpoints.meta_quantised import walsh_hadamard
from herd.dtypes import BF16, F32
from herd.errors import FileProblem
from meta_files import values_of, write_meta
from tiny import random_leaves, tiny_llama

CFG = tiny_llama(
    width=32,
    num_layers=3,
    num_heads=4,
    num_kv_heads=2,
    head_width=8,
    ffn_width=64,
    vocab_size=40,
    context_length=4096,
    tied_embeddings=False,
)
INT4 = {"quantization_args": {"scheme": "int4_weight_int8_dynamic_activation", "group_size": 256, "spinquant": False}}


def write_fp8(folder: Path, shards: int) -> dict[str, Any]:
    """The model with e4m3 feed-forwards in all layers but the first and last; what each weight should be, by our name."""
    torch = pytest.importorskip("torch")
    expected: dict[str, Any] = {}
    pieces: dict[str, list[Any]] = {}

    def edit(number: int, state: dict[str, Any]) -> None:
        scales = {}
        for part, ours in (("w1", "gate"), ("w2", "down"), ("w3", "up")):
            name = f"layers.1.feed_forward.{part}.weight"
            weight = state[name].float()
            scale = weight.abs().amax(dim=1) / 448
            q = (weight / scale[:, None]).to(torch.float8_e4m3fn)
            state[name] = torch.nn.Parameter(q, requires_grad=False)
            scales[f"1_feed_forward.{part}_{number}"] = scale
            pieces.setdefault(f"layers.1.ffn.{ours}", []).append((q.float() * scale[:, None]).numpy())
        torch.save(scales, folder / f"fp8_scales_{number}.pt")

    write_meta(folder, CFG, random_leaves(CFG, 1, BF16), shards=shards, edit=edit)
    for name, parts in pieces.items():
        expected[name] = np.concatenate(parts, axis=names.META_SPLIT[names.pattern(name)])
    return expected


@pytest.mark.parametrize("shards", [1, 2])
def test_fp8_feed_forwards_are_read_with_their_scales(tmp_path: Path, shards: int) -> None:
    expected = write_fp8(tmp_path, shards)
    checkpoint = open_checkpoint(tmp_path)
    assert checkpoint.dtype("layers.1.ffn.gate") is F32 and checkpoint.dtype("layers.0.ffn.gate") is BF16
    assert "f8_e4m3" in str(checkpoint.facts["stored_as"].value)
    for name, values in expected.items():
        assert np.array_equal(values_of(checkpoint.leaf(name)), values), name


def test_fp8_without_its_scales_is_refused(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    write_fp8(tmp_path, 1)
    torch.save({"1_feed_forward.w1_0": torch.ones(64), "1_feed_forward.w3_0": torch.ones(63)}, tmp_path / "fp8_scales_0.pt")
    with pytest.raises(FileProblem) as caught:
        open_checkpoint(tmp_path)
    assert "has no 1_feed_forward.w2_0" in str(caught.value) and "one scale for each of the 64 rows" in str(caught.value)
    (tmp_path / "fp8_scales_0.pt").unlink()
    with pytest.raises(FileProblem, match=r"fp8_scales_0\.pt: is missing, and consolidated\.00\.pth needs it"):
        open_checkpoint(tmp_path)


def write_int4(folder: Path, change: Callable[[dict[str, Any]], None] = lambda _: None, **params: Any) -> dict[str, Any]:
    """The model with int4 blocks of 32 and int8 embedding and head; the values of every quantised weight, by our name."""
    torch = pytest.importorskip("torch")
    expected: dict[str, Any] = {}

    def edit(_number: int, state: dict[str, Any]) -> None:
        for ours in random_leaves(CFG):
            name = names.in_file(names.META, ours)
            weight = state[name].float()
            if weight.dim() < 2:
                continue
            group = 32 if ours.startswith("layers") else weight.shape[1]
            top = 7 if ours.startswith("layers") else 127
            grouped = weight.reshape(len(weight), -1, group)
            scale = grouped.abs().amax(dim=2) / top
            q = (grouped / scale[:, :, None]).round().to(torch.int8)
            state[name] = q.reshape(weight.shape)
            state[name.removesuffix("weight") + "scales"] = scale
            expected[ours] = (q.float() * scale[:, :, None]).reshape(weight.shape).numpy()
        change(state)

    write_meta(folder, CFG, random_leaves(CFG, 1, BF16), changes={**INT4, **params}, edit=edit)
    return expected


def test_int4_weights_are_read_with_the_group_size_of_their_scales(tmp_path: Path) -> None:
    """The group size that params.json gives is 256, as in Meta's files; the scales are of groups of 32."""
    expected = write_int4(tmp_path)
    checkpoint = open_checkpoint(tmp_path)
    for name, values in expected.items():
        assert np.array_equal(values_of(checkpoint.leaf(name)), values), name
        source = checkpoint.source(name)
        assert np.array_equal(source.read(3, 11), source.rows()[3:11])


def test_adaptors_become_part_of_their_matrix(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    down, up = torch.randn(4, 32).bfloat16(), torch.randn(64, 4).bfloat16()

    def change(state: dict[str, Any]) -> None:
        state["layers.1.feed_forward.w1.adaptor.A.weight"], state["layers.1.feed_forward.w1.adaptor.B.weight"] = down, up

    expected = write_int4(tmp_path, change, lora_args={"rank": 4, "scale": 2.0})["layers.1.ffn.gate"]
    found = values_of(open_checkpoint(tmp_path).leaf("layers.1.ffn.gate"))
    assert np.allclose(found, expected + 2 * (up.float() @ down.float()).numpy(), rtol=1e-6, atol=1e-6)


def test_the_rotation_before_w2_becomes_part_of_it(tmp_path: Path) -> None:
    args = {"quantization_args": {**INT4["quantization_args"], "spinquant": True}}
    expected = write_int4(tmp_path, **args)["layers.2.ffn.down"]
    checkpoint = open_checkpoint(tmp_path)
    x = np.random.default_rng(0).standard_normal((5, 64)).astype(np.float32)
    assert np.allclose(x @ values_of(checkpoint.leaf("layers.2.ffn.down")).T, walsh_hadamard(x) @ expected.T, atol=1e-5)
    assert np.array_equal(checkpoint.source("layers.2.ffn.down").read(3, 9), checkpoint.source("layers.2.ffn.down").rows()[3:9])


def test_the_rotation_is_the_normalised_hadamard_matrix() -> None:
    matrix = np.array([[1.0]])
    for _ in range(4):
        matrix = np.block([[matrix, matrix], [matrix, -matrix]])
    assert np.allclose(walsh_hadamard(np.eye(16, dtype=np.float32)), matrix / 4)
    with pytest.raises(FileProblem, match="no power of two"):
        walsh_hadamard(np.ones((1, 96), np.float32))


@pytest.mark.parametrize(
    ("change", "params", "message"),
    [
        (lambda s: s.pop("layers.0.attention.wq.scales"), {}, r"wq\.scales is missing"),
        (lambda s: s.update({"layers.0.attention.wk.scales": s["norm.weight"]}), {}, "one scale for each of the 16 rows"),
        (lambda s: s.update({"layers.0.attention.wq.zeros": s["norm.weight"]}), {}, "are symmetric and have none"),
        (lambda s: s.update({"layers.0.attention.wq.adaptor.A.weight": s["norm.weight"]}), {}, "is there in part"),
        (lambda s: None, {"lora_args": {"rank": 0, "scale": 1.0}}, r"lora_args\.rank is 0"),
        (lambda s: None, {"quantization_args": {"scheme": "int4_weight_int8_dynamic_activation", "odd": 1}}, "odd is not a key"),
        (lambda s: None, {"lora_args": 3}, "lora_args is 3"),
    ],
)
def test_odd_quantised_files_are_refused(tmp_path: Path, change: Any, params: dict[str, Any], message: str) -> None:
    write_int4(tmp_path, change, **params)
    with pytest.raises(FileProblem, match=message):
        open_checkpoint(tmp_path)
