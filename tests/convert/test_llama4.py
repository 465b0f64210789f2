"""Llama 4 from layout to layout: the same bits, and the same logits in transformers and llama.cpp."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from conformance.running import oracle, prompt
from herd.checkpoints import open_checkpoint
from herd.checkpoints.checkpoint import About, Checkpoint
from herd.checkpoints.stored import StoredTensor
from herd.convert import convert, verify
from herd.convert.carried import as_json
from herd.convert.layouts import layouts_of
from herd.convert.safetensors_file import write_safetensors
from herd.convert.shaping import Shaping
from herd.convert.writing import Told
from herd.dtypes import BF16, F32, DType
from herd.family.progress import silent
from herd.files import MappedFile
from herd.models.architecture import Config, architecture_of
from herd.models.llama4 import Llama4Config, every
from herd.models.rope import Llama3, Rope
from tiny import random_leaves, tiny_llama4, tiny_llama4_vision

BUILT_IN = {
    "chunk": 8192,
    "temper_floor": 8192.0,
    "temper_scale": 0.1,
    "norm_eps": 2.0**-17,
    "rotary_layers": (0, 1, 2),
    "chunked_layers": (0, 1, 2),
}
SMALL: dict[str, Any] = {"vocab_size": 96}
CONFIGS: dict[str, Llama4Config] = {
    "special in every way": tiny_llama4(**SMALL, rotary_layers=(0, 2), chunked_layers=(0, 1), expert_layers=(1, 2), temper_scale=0.25),
    "as Scout": tiny_llama4(
        **SMALL, **BUILT_IN, expert_layers=(0, 1, 2, 3), num_experts=16, rope=Rope(5e5, 32, Llama3(16.0, 1.0, 1.0, 64))
    ),
    "as Maverick": tiny_llama4(**SMALL, **BUILT_IN, expert_layers=every(2, 4), rope=Rope(5e5, 32)),
    "as Guard 4": tiny_llama4(**SMALL, expert_layers=(), num_experts=1, chunk=None),
    "no window": tiny_llama4(**SMALL, rotary_layers=(0, 1, 2, 3), chunked_layers=(), chunk=None, temper_scale=0.0),
    "with eyes": tiny_llama4(vision=tiny_llama4_vision()),
}


def folder(path: Path, cfg: Llama4Config, dtype: DType = F32) -> Path:
    """The model as a Hugging Face folder."""
    return made(path, cfg, "llama4", dtype)


def made(path: Path, cfg: Config, architecture: str, dtype: DType = F32) -> Path:
    """A model of any architecture as a Hugging Face folder: made by way of its leaves, as if they were a checkpoint."""
    leaves: dict[str, Any] = dict(random_leaves(cfg, 1, dtype))
    sources = {
        name: StoredTensor(name, leaf.dtype, leaf.shape, MappedFile.of_bytes(np.ascontiguousarray(leaf.data).tobytes(), name), 0)
        for name, leaf in leaves.items()
    }
    specs = tuple(architecture_of(cfg).tensors(cfg))
    checkpoint = Checkpoint(
        path=path, layout="gguf", config=cfg, specs=specs, sources=sources, files=[], about=About({}), architecture=architecture
    )
    layouts = layouts_of(checkpoint)
    path.mkdir()
    (path / "config.json").write_bytes(as_json(layouts.huggingface_config(cfg)))
    write_safetensors(path, layouts.huggingface_outputs(checkpoint, Shaping()), Told(silent, "", 1))
    return path


def bits(path: Path) -> dict[str, tuple[str, tuple[int, ...], bytes]]:
    checkpoint = open_checkpoint(path)
    leaves = {spec.name: checkpoint.leaf(spec.name) for spec in checkpoint.specs}
    return {name: (leaf.dtype.name, leaf.shape, np.ascontiguousarray(leaf.data).tobytes()) for name, leaf in leaves.items()}


@pytest.mark.parametrize("name", CONFIGS)
def test_a_folder_holds_the_model_that_was_written(tmp_path: Path, name: str) -> None:
    cfg = CONFIGS[name]
    path = folder(tmp_path / "given", cfg)
    assert open_checkpoint(path).config == cfg
    found = bits(path)
    for ours, leaf in random_leaves(cfg, 1, F32).items():
        assert found[ours][2] == np.ascontiguousarray(leaf.data).tobytes(), ours  # type: ignore[union-attr]


@pytest.mark.parametrize(("name", "dtype"), [(name, F32) for name in CONFIGS if name != "with eyes"] + [("as Maverick", BF16)], ids=str)
def test_through_gguf_and_back_is_the_same(tmp_path: Path, name: str, dtype: DType) -> None:
    cfg = CONFIGS[name]
    path = folder(tmp_path / "given", cfg, dtype)
    convert(path, tmp_path / "new.gguf", to="gguf")
    assert open_checkpoint(tmp_path / "new.gguf").config == cfg
    convert(tmp_path / "new.gguf", tmp_path / "last", to="hf")
    assert open_checkpoint(tmp_path / "last").config == cfg
    assert bits(tmp_path / "last") == bits(path)


@pytest.mark.parametrize("name", CONFIGS)
def test_transformers_reads_the_folder(tmp_path: Path, name: str) -> None:
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    cfg = CONFIGS[name]
    path = folder(tmp_path / "given", cfg)
    kind = transformers.Llama4ForCausalLM if cfg.vision is None else transformers.Llama4ForConditionalGeneration
    if cfg.chunk is None:  # transformers makes no mask without a chunk size, though none is used.
        import json

        values = json.loads((path / "config.json").read_text())
        values.update(attention_chunk_size=8192)
        (path / "config.json").write_text(json.dumps(values))
    model = kind.from_pretrained(path, dtype="float32", attn_implementation="eager").eval()
    tokens = prompt(cfg, 40)
    with torch.inference_mode():
        theirs = model(torch.tensor([tokens])).logits[0].numpy()
    checkpoint = open_checkpoint(path)
    ours = oracle(cfg, {spec.name: checkpoint.leaf(spec.name) for spec in checkpoint.specs}, tokens)
    assert np.abs(theirs - ours).max() < 5e-4 and ours.std() > 0.3


@pytest.mark.parametrize("name", ["as Scout", "as Maverick"])
def test_llama_cpp_reads_the_file(tmp_path: Path, name: str) -> None:
    llama_cpp = pytest.importorskip("llama_cpp")
    from convert.test_other_readers import llama_cpp_logits

    cfg = CONFIGS[name]
    report = convert(folder(tmp_path / "given", cfg), tmp_path / "new.gguf", to="gguf")
    assert not any("Other programs" in note for note in report.notes)
    checkpoint = open_checkpoint(tmp_path / "new.gguf")
    tokens = prompt(cfg, 60)
    ours = oracle(cfg, {spec.name: checkpoint.leaf(spec.name) for spec in checkpoint.specs}, tokens)
    assert np.abs(llama_cpp_logits(llama_cpp, tmp_path / "new.gguf", tokens) - ours).max() < 5e-4


def test_what_gguf_cannot_say_is_said(tmp_path: Path) -> None:
    report = convert(folder(tmp_path / "given", CONFIGS["special in every way"]), tmp_path / "new.gguf", to="gguf")
    said = "\n".join(report.notes)
    assert "llama.cpp knows one interval" in said and "has those of the releases built in" in said


def test_a_small_one_is_whole(tmp_path: Path) -> None:
    verdict = verify(folder(tmp_path / "given", CONFIGS["as Maverick"]))
    assert verdict.is_good and any(finding.check == "self-test" and "apart" in finding.text for finding in verdict.findings), verdict
