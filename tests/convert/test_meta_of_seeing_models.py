"""Llama 3.2 Vision and Llama 4 in Meta's layout: the same bits there and back, and the same logits in Meta's own modules."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch", reason="torch is not installed (pip install herd-llama[dev])")

import torch

from checkpoints import test_meta_llama3_vision, test_meta_llama4
from checkpoints.test_huggingface_mllama import reached
from conformance.llama3_vision_texts import CFG as VISION_CFG
from conformance.llama3_vision_texts import TEXTS, placed
from conformance.llama4 import cut, picture_logits, with_pictures
from conformance.running import NUM_PAGES, oracle, pages_for, prompt
from convert.test_llama4 import CONFIGS, bits, folder, made
from herd.backends.base import BackendOptions, Plan, Span
from herd.backends.reference import ReferenceBackend
from herd.checkpoints import open_checkpoint
from herd.convert import convert
from herd.dtypes import BF16, F32
from herd.errors import FileProblem
from herd.models.llama3_vision import Llama3VisionConfig
from herd.models.llama4 import Llama4Config
from herd.models.rope import Rope
from tiny import random_leaves, tiny_llama4

PLACES = ("vision.tile_positions", "vision.before", "vision.after")


def state_of(path: Path) -> dict[str, Any]:
    """What PyTorch finds in the file."""
    found: dict[str, Any] = torch.load(path / "consolidated.00.pth", weights_only=True)
    return found


def leaves_of(path: Path) -> dict[str, Any]:
    checkpoint = open_checkpoint(path)
    return {spec.name: checkpoint.leaf(spec.name) for spec in checkpoint.specs}


def vision_config(name: str) -> Llama3VisionConfig:
    """`as released`: with the numbers that Meta's program has built in. `other`: with numbers that only herd's key says."""
    return test_meta_llama3_vision.config() if name == "as released" else replace(VISION_CFG, picture_aliases=(), context_length=512)


@pytest.mark.parametrize("name", ["as released", "other"])
def test_llama_3_2_vision_through_both_layouts_is_the_same(tmp_path: Path, name: str) -> None:
    cfg = vision_config(name)
    path = made(tmp_path / "given", cfg, "llama3_vision", BF16)
    report = convert(path, tmp_path / "meta", to="meta")
    assert any("Meta's own program" in note for note in report.notes) == (name == "other")
    checkpoint = open_checkpoint(tmp_path / "meta")
    assert (checkpoint.config, checkpoint.layout, checkpoint.architecture) == (cfg, "meta", "llama3_vision")
    convert(tmp_path / "meta", tmp_path / "back", to="hf")
    assert open_checkpoint(tmp_path / "back").config == cfg
    assert bits(tmp_path / "back") == bits(tmp_path / "meta") == bits(path)


def test_the_file_of_llama_3_2_vision_is_metas_but_for_places_that_no_picture_has(tmp_path: Path) -> None:
    (tmp_path / "given").mkdir()
    test_meta_llama3_vision.write(tmp_path / "given", test_meta_llama3_vision.config(), 1)
    convert(tmp_path / "given", tmp_path / "hf", to="hf")
    convert(tmp_path / "hf", tmp_path / "new", to="meta")
    convert(tmp_path / "given", tmp_path / "again", to="meta")
    given, new, again = (state_of(tmp_path / name) for name in ("given", "new", "again"))
    assert given.keys() == new.keys() == again.keys()
    for name, values in given.items():
        expected = values.numpy()
        assert np.array_equal(again[name].numpy(), expected), name
        if ("gated_positional_embedding" in name and expected.ndim > 1) or "tile_pos_embed.embedding" in name:
            expected = reached(expected)
        assert np.array_equal(new[name].numpy(), expected), name


def test_metas_modules_see_the_same_in_the_file_of_llama_3_2_vision(tmp_path: Path) -> None:
    pytest.importorskip("llama_models", reason="Meta's llama_models is not installed (pip install herd-llama[dev])")
    from conformance.meta_llama3_vision import MetaModel, meta

    cfg = vision_config("other")
    path = made(tmp_path / "given", cfg, "llama3_vision")
    convert(path, tmp_path / "new", to="meta")
    theirs = MetaModel(cfg, random_leaves(cfg, 9, F32))
    theirs.load(state_of(tmp_path / "new"))
    args = meta().args.ModelArgs(**json.loads((tmp_path / "new" / "params.json").read_text()))
    assert (args.dim, args.vision_chunk_size, args.vision_num_cross_attention_layers) == (cfg.width, cfg.vision.tile, len(cfg.crossing))
    backend = ReferenceBackend(cfg, leaves_of(path).__getitem__, BackendOptions(dtype="float64"))
    backend.allocate(NUM_PAGES)
    tokens, pictures = TEXTS["two pictures with text between"]
    span = Span(0, tokens, pages_for(len(tokens)), len(tokens), pictures=placed(tokens, pictures, cfg))
    ours = backend.logits(Plan((span,)))
    assert ours.std() > 0.3 and np.abs(ours - theirs.logits(tokens, placed(tokens, pictures, cfg))).max() < 1e-9


@pytest.mark.parametrize("release", test_meta_llama4.RELEASES)
def test_the_file_of_llama_4_is_metas(tmp_path: Path, release: str) -> None:
    cfg = test_meta_llama4.config(release)
    test_meta_llama4.write(tmp_path / "given", cfg, 1)
    convert(tmp_path / "given", tmp_path / "hf", to="hf")
    report = convert(tmp_path / "hf", tmp_path / "new", to="meta")
    assert not any("Meta's own program" in note for note in report.notes), report.notes
    assert open_checkpoint(tmp_path / "new").config == cfg
    given, new = state_of(tmp_path / "given"), state_of(tmp_path / "new")
    kept = {name: values for name, values in given.items() if not name.endswith(("_extra_state", "_3E"))}
    assert kept.keys() == new.keys()
    for name, values in kept.items():
        assert torch.equal(new[name], values), name


@pytest.mark.filterwarnings("ignore:User provided device_type of 'cuda':UserWarning")
@pytest.mark.parametrize("release", test_meta_llama4.RELEASES)
def test_metas_modules_compute_the_same_with_the_file_and_its_params(tmp_path: Path, release: str) -> None:
    pytest.importorskip("llama_models", reason="Meta's llama_models is not installed (pip install herd-llama[dev])")
    from conformance.meta_llama4 import MetaModel

    cfg = test_meta_llama4.config(release)
    assert cfg.vision is not None
    vision = replace(cfg.vision, picture_token=319)
    cfg = replace(cfg, vision=vision)
    path = folder(tmp_path / "given", cfg)
    convert(path, tmp_path / "new", to="meta")
    leaves = leaves_of(path)
    theirs = MetaModel(cfg, random_leaves(cfg, 9, F32), json.loads((tmp_path / "new" / "params.json").read_text()))
    theirs.load(state_of(tmp_path / "new"))
    pictures = [cut(vision, 1, 2, 1)]
    tokens = with_pictures(cfg, pictures, [token % 300 for token in prompt(cfg, 60)])
    ours = picture_logits(cfg, leaves, tokens, pictures)
    assert ours.std() > 0.3 and np.abs(ours - theirs.logits(tokens, pictures)).max() < 1e-9
    words = [token % 300 for token in prompt(cfg, 90)]
    assert np.abs(oracle(cfg, leaves, words) - theirs.logits(words)).max() < 1e-9


ODD: dict[str, Llama4Config] = {
    **CONFIGS,
    "tied, odd widths": tiny_llama4(vocab_size=96, tied_embeddings=True, ffn_width=101, expert_width=33),
    "plain rotation": tiny_llama4(vocab_size=96, rope=Rope(1e4, 32), num_chosen=2),
}


@pytest.mark.parametrize("name", ODD)
def test_llama_4_through_metas_layout_and_back_is_the_same(tmp_path: Path, name: str) -> None:
    cfg = ODD[name]
    path = folder(tmp_path / "given", cfg, BF16)
    convert(path, tmp_path / "meta", to="meta")
    assert open_checkpoint(tmp_path / "meta").config == cfg and bits(tmp_path / "meta") == bits(path)
    convert(tmp_path / "meta", tmp_path / "back", to="hf")
    assert open_checkpoint(tmp_path / "back").config == cfg and bits(tmp_path / "back") == bits(path)


@pytest.mark.parametrize(("architecture", "key", "value"), [("llama3_vision", "vision_chunk_size", 64), ("llama4", "floor_scale", 7.0)])
def test_params_that_were_changed_afterwards_are_refused(tmp_path: Path, architecture: str, key: str, value: float) -> None:
    cfg = vision_config("other") if architecture == "llama3_vision" else CONFIGS["with eyes"]
    convert(made(tmp_path / "given", cfg, architecture), tmp_path / "new", to="meta")
    params = json.loads((tmp_path / "new" / "params.json").read_text())
    (tmp_path / "new" / "params.json").write_text(json.dumps({**params, key: value}))
    with pytest.raises(FileProblem, match=f"{key} is {value} and herd.config means"):
        open_checkpoint(tmp_path / "new")


@pytest.mark.parametrize(("key", "value"), [("patch", 0), ("num_layers", 10**9), ("kept", [77]), ("num_heads", 3), ("max_tiles", 0)])
def test_impossible_numbers_of_an_encoder_are_refused(tmp_path: Path, key: str, value: Any) -> None:
    convert(made(tmp_path / "given", vision_config("other"), "llama3_vision"), tmp_path / "new", to="meta")
    params = json.loads((tmp_path / "new" / "params.json").read_text())
    params["herd"]["config"]["vision"][key] = value
    (tmp_path / "new" / "params.json").write_text(json.dumps(params))
    with pytest.raises(FileProblem, match=r"params\.json: "):
        open_checkpoint(tmp_path / "new")
