"""Folders in Meta's layout, written by PyTorch: every way of cutting is put together again, and what does not fit is named."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from herd.checkpoints import open_checkpoint
from herd.dtypes import BF16
from herd.errors import FileProblem
from herd.models.llama import LlamaConfig
from herd.models.rope import Llama3, Rope
from meta_files import same, write_meta
from tiny import random_leaves, tiny_llama

CONFIG: dict[str, Any] = {
    "width": 32,
    "num_layers": 2,
    "num_heads": 4,
    "num_kv_heads": 2,
    "head_width": 8,
    "ffn_width": 96,
    "vocab_size": 40,
    "context_length": 4096,
}


def config(**changes: Any) -> LlamaConfig:
    return tiny_llama(**{**CONFIG, **changes})


@pytest.mark.parametrize("embed_axis", [0, 1])
@pytest.mark.parametrize("shards", [1, 2, 4])
def test_shards_are_put_together(tmp_path: Path, shards: int, embed_axis: int) -> None:
    """Four shards and two kv heads: neighbours hold the same head, as the 405B in 16 shards does."""
    cfg = config()
    leaves = random_leaves(cfg, 1, BF16)
    checkpoint = open_checkpoint(write_meta(tmp_path, cfg, leaves, shards=shards, embed_axis=embed_axis))
    assert (checkpoint.config, checkpoint.layout) == (cfg, "meta")
    assert {spec.name for spec in checkpoint.specs} == set(leaves)
    for name, leaf in leaves.items():
        assert same(checkpoint.leaf(name), leaf), name
        source = checkpoint.source(name)
        rows = source.rows()
        middle = len(rows) // 3
        assert (source.read(middle, len(rows)) == rows[middle:]).all()


def test_weights_of_one_shard_are_looked_at_in_place(tmp_path: Path) -> None:
    cfg = config()
    checkpoint = open_checkpoint(write_meta(tmp_path, cfg, random_leaves(cfg, 1, BF16)))
    assert not checkpoint.leaf("layers.0.attention.q").data.flags.owndata
    assert not checkpoint.leaf("layers.0.attention.q").data.flags.writeable


@pytest.mark.parametrize("shards", [1, 2])
def test_a_head_that_is_the_embedding_is_known_by_its_place(tmp_path: Path, shards: int) -> None:
    cfg = config(tied_embeddings=True)
    checkpoint = open_checkpoint(write_meta(tmp_path, cfg, random_leaves(cfg, 1, BF16), shards=shards))
    assert checkpoint.config.tied_embeddings
    assert "head" not in {spec.name for spec in checkpoint.specs}


def test_an_unknown_vocabulary_size_is_taken_from_the_embedding_or_the_tokenizer(tmp_path: Path) -> None:
    cfg = config()
    write_meta(tmp_path, cfg, random_leaves(cfg, 1, BF16), changes={"vocab_size": -1})
    assert open_checkpoint(tmp_path).config.vocab_size == 40
    (tmp_path / "tokenizer.model").write_bytes(b"\x0a\x03\x0a\x01a" * 39)
    with pytest.raises(FileProblem, match=r"tok_embeddings\.weight has shape \[40, 32\] .* expected is \[39, 32\]"):
        open_checkpoint(tmp_path)


@pytest.mark.parametrize(
    ("changes", "rope"),
    [
        ({"rope_theta": None}, Rope(10000.0, 8)),
        ({"rope_theta": 500000.0}, Rope(500000.0, 8)),
        ({"rope_theta": 500000.0, "use_scaled_rope": True}, Rope(500000.0, 8, Llama3(8.0, 1.0, 4.0, 8192))),
        (
            {"rope_theta": 500000.0, "use_scaled_rope": True, "rope_scaling_factor": 16, "rope_high_freq_factor": 1},
            Rope(500000.0, 8, Llama3(16.0, 1.0, 1.0, 8192)),
        ),
    ],
)
def test_positions_are_scaled_as_params_json_says(tmp_path: Path, changes: dict[str, Any], rope: Rope) -> None:
    cfg = config()
    write_meta(tmp_path, cfg, random_leaves(cfg, 1, BF16), changes=changes)
    checkpoint = open_checkpoint(tmp_path)
    assert checkpoint.config.rope == rope
    assert checkpoint.config.context_length == {10000.0: 4096}.get(rope.theta, 131072 if rope.scaling else 8192)


def test_the_factor_of_the_small_releases_is_that_of_their_other_files() -> None:
    from herd.checkpoints.meta_params import read_params

    params = {"dim": 2048, "ffn_dim_multiplier": 1.5, "multiple_of": 256, "n_heads": 32, "n_kv_heads": 8, "n_layers": 16}
    params |= {"norm_eps": 1e-05, "rope_theta": 500000.0, "use_scaled_rope": True, "vocab_size": 128256}
    facts: dict[str, Any] = {}
    cfg = read_params(params, 128256, facts)
    assert (cfg.ffn_width, cfg.rope.scaling) == (8192, Llama3(32.0, 1.0, 4.0, 8192))
    assert "Meta's own program computes with 8" in facts["rope_scaling"].source


def test_a_table_of_frequencies_is_no_weight(tmp_path: Path) -> None:
    import torch

    cfg = config()
    write_meta(tmp_path, cfg, random_leaves(cfg, 1, BF16), edit=lambda _, state: state.update({"rope.freqs": torch.ones(4)}))
    assert open_checkpoint(tmp_path).config == cfg


def _set(name: str, change: Any) -> Any:
    def edit(number: int, state: dict[str, Any]) -> None:
        if number == 1:
            state[name] = change(state[name])

    return edit


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda n, s: s.pop("norm.weight"), r"norm\.weight \[32\] is missing"),
        (lambda n, s: s.pop("norm.weight") if n else None, r"norm\.weight \[32\] is missing in consolidated\.01\.pth"),
        (_set("layers.1.feed_forward.w2.weight", lambda w: w.T.contiguous()), r"w2\.weight has shape \[48, 32\] in consolidated\.01\.pth"),
        (_set("output.weight", lambda w: w.float()), r"output\.weight is stored as bf16 and f32"),
        (_set("output.weight", lambda w: w.double()), r"'output\.weight' is stored as F64"),
        (_set("output.weight", lambda w: w.T), r"calls torch\._utils\._rebuild_tensor_v2 with arguments that make no tensor"),
        (
            lambda n, s: s.update(more=s["norm.weight"]),
            r"2 things are wrong(.|\n)*'more' \[32\] in consolidated\.01\.pth belongs to no part",
        ),
    ],
)
def test_shards_that_do_not_fit_are_refused_by_name(tmp_path: Path, edit: Any, message: str) -> None:
    cfg = config()
    write_meta(tmp_path, cfg, random_leaves(cfg, 1, BF16), shards=2, edit=edit)
    with pytest.raises(FileProblem, match=message):
        open_checkpoint(tmp_path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"dim": 64}, r"expected is \[.*64\]"),
        ({"n_layers": 3}, r"layers\.2\.attention_norm\.weight \[32\] is missing"),
        ({"n_layers": 1}, r"'layers\.1\.attention_norm\.weight' \[32\] belongs to no part"),
        ({"n_layers": 1 << 40}, "n_layers is 1099511627776; allowed is"),
        ({"n_heads": 0}, "n_heads is 0"),
        ({"n_heads": 5}, "dim is 32, which n_heads 5 does not divide"),
        ({"n_kv_heads": 3}, "4 query heads cannot be shared out evenly over 3 kv heads"),
        ({"multiple_of": 100}, r"w1\.weight has shape \[96, 32\]"),
        ({"ffn_dim_multiplier": "big"}, "ffn_dim_multiplier is 'big'"),
        ({"norm_eps": 0}, "norm_eps is 0"),
        ({"rope_theta": -1.0}, "rope_theta is -1.0"),
        ({"rope_scaling_factor": 8}, "without use_scaled_rope positions are not scaled"),
        ({"mystery": 1}, "mystery is not a key that is known here"),
        ({"vocab_size": 41}, r"tok_embeddings\.weight has shape \[40, 32\]"),
        ({"herd": {"config": {"width": 1}}}, "are missing or not known in LlamaConfig"),
        ({"herd": 5}, "herd is 5"),
        ({"quantization_args": {"scheme": "int3"}}, "quantization_args.scheme is 'int3'"),
    ],
)
def test_a_contradicting_params_json_is_refused_by_name(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    cfg = config()
    write_meta(tmp_path, cfg, random_leaves(cfg, 1, BF16), changes=changes)
    with pytest.raises(FileProblem, match=message):
        open_checkpoint(tmp_path)


def test_missing_doubled_and_foreign_shards_are_refused(tmp_path: Path) -> None:
    cfg = config()
    folder = write_meta(tmp_path / "model", cfg, random_leaves(cfg, 1, BF16), shards=2)
    (folder / "consolidated.00.pth").rename(folder / "consolidated.02.pth")
    with pytest.raises(FileProblem, match=r"consolidated\.00\.pth is missing"):
        open_checkpoint(folder)
    (folder / "consolidated.02.pth").rename(folder / "consolidated.00.pth")
    shutil.copy(folder / "consolidated.01.pth", folder / "consolidated.002.pth")
    with pytest.raises(FileProblem, match=r"norm\.weight|has shape"):
        open_checkpoint(folder)
    (folder / "consolidated.002.pth").unlink()
    other = write_meta(tmp_path / "other", cfg, random_leaves(cfg, 2, BF16), shards=2)
    shutil.copy(other / "consolidated.01.pth", folder / "consolidated.01.pth")
    with pytest.raises(
        FileProblem, match=r"norm\.weight in consolidated\.00\.pth and norm\.weight in consolidated\.01\.pth differ, which every shard"
    ):
        open_checkpoint(folder).leaf("norm")


def test_kv_heads_of_neighbours_that_differ_are_refused(tmp_path: Path) -> None:
    cfg = config()
    edit = _set("layers.0.attention.wk.weight", lambda w: w + 1)
    checkpoint = open_checkpoint(write_meta(tmp_path, cfg, random_leaves(cfg, 1, BF16), shards=4, edit=edit))
    with pytest.raises(FileProblem, match="which must hold the same kv head"):
        checkpoint.leaf("layers.0.attention.k")


def test_a_shard_that_leads_out_of_the_folder_is_refused(tmp_path: Path) -> None:
    cfg = config()
    folder = write_meta(tmp_path / "model", cfg, random_leaves(cfg, 1, BF16))
    (folder / "consolidated.00.pth").rename(tmp_path / "elsewhere.pth")
    (folder / "consolidated.00.pth").symlink_to(tmp_path / "elsewhere.pth")
    with pytest.raises(FileProblem, match="is a link that leads out of the folder"):
        open_checkpoint(folder)


def test_a_folder_without_weights_says_what_it_has(tmp_path: Path) -> None:
    (tmp_path / "params.json").write_text(json.dumps({"dim": 32}))
    with pytest.raises(FileProblem, match=r"has params\.json but no consolidated\.00\.pth"):
        open_checkpoint(tmp_path)
    (tmp_path / "model.pte").touch()
    with pytest.raises(FileProblem, match="is a program for ExecuTorch, which is not read"):
        open_checkpoint(tmp_path)


def test_the_exact_config_beside_other_keys_must_agree_with_them(tmp_path: Path) -> None:
    from herd.checkpoints.meta_params import kept

    cfg = config(rope=Rope(1e4, 8, Llama3(4.0, 1.0, 2.0, 64)), context_length=100, tied_embeddings=True)
    leaves = random_leaves(cfg, 1, BF16)
    assert open_checkpoint(write_meta(tmp_path, cfg, leaves, changes={"herd": kept(cfg)})).config == cfg
    write_meta(tmp_path, cfg, leaves, changes={"herd": kept(cfg), "rope_theta": 5e5})
    with pytest.raises(FileProblem, match=r"rope_theta is 500000\.0 and herd\.config means 10000\.0"):
        open_checkpoint(tmp_path)
