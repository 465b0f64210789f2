"""What herd writes, opened by those whose layouts they are: the same logits there. A round trip would hide errors that cancel."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from conformance.running import oracle, prompt
from herd.checkpoints import open_checkpoint
from herd.convert import convert
from herd.dtypes import BF16, F16, F32, Q4_0, Q8_0, DType
from herd.models.llama import LlamaConfig
from herd.models.rope import Linear, Llama3, Rope, Yarn
from tiny import random_leaves, tiny_llama
from tiny_files import write_gguf, write_huggingface

SMALL: dict[str, Any] = {"num_layers": 2, "vocab_size": 96, "norm_eps": 2.0**-17}
CONFIGS = {
    "plain": tiny_llama(**SMALL),
    "llama 3.1": tiny_llama(**SMALL, rope=Rope(500000.0, 32, Llama3(8.0, 1.0, 4.0, 8192)), context_length=16384),
    "tied, scaled early": tiny_llama(**SMALL, tied_embeddings=True, rope=Rope(500000.0, 32, Llama3(32.0, 1.0, 4.0, 16))),
    "linear": tiny_llama(**SMALL, rope=Rope(10000.0, 32, Linear(4.0))),
    "yarn": tiny_llama(**SMALL, rope=Rope(10000.0, 32, Yarn(8.0, 64))),
    "every bias": tiny_llama(**SMALL, qkv_bias=True, out_bias=True, ffn_bias=True),
    "biases of q, k and v": tiny_llama(**SMALL, qkv_bias=True),
}


def expected(path: Path, tokens: list[int]) -> Any:
    """Logits of the float64 reference for the files at `path`."""
    checkpoint = open_checkpoint(path)
    leaves = {spec.name: checkpoint.leaf(spec.name) for spec in checkpoint.specs}
    logits = oracle(checkpoint.config, leaves, tokens)
    assert logits.std() > 0.5, "logits that hardly differ prove nothing"
    return logits


def source(folder: Path, cfg: LlamaConfig, dtype: DType = F32) -> Path:
    """The model in the layout that it does not go to: GGUF where that can say it, else Hugging Face."""
    return write_gguf(folder / "source.gguf", cfg, random_leaves(cfg, 1, dtype))


@pytest.mark.parametrize("name", CONFIGS)
def test_transformers_reads_the_hugging_face_layout(tmp_path: Path, name: str) -> None:
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    cfg = CONFIGS[name]
    path = source(tmp_path, cfg)
    if name == "tied, scaled early":  # GGUF's list of divisors has no name; the exact config is in a file of ours.
        convert(write_huggingface(tmp_path / "given", cfg, random_leaves(cfg, 1, F32)), tmp_path / "ours.gguf", to="gguf")
        path = tmp_path / "ours.gguf"
    convert(path, tmp_path / "new", to="hf")
    tokens = prompt(cfg, 100)
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "new", dtype="float32")
    with torch.inference_mode():
        theirs = model(torch.tensor([tokens])).logits[0].numpy()
    assert np.abs(theirs - expected(path, tokens)).max() < 2e-4


FORMATS = [(name, F32) for name in CONFIGS] + [
    (name, dtype) for name in ("plain", "tied, scaled early") for dtype in (F16, BF16, Q8_0, Q4_0)
]


@pytest.mark.parametrize(("name", "dtype"), FORMATS, ids=str)
def test_llama_cpp_reads_the_gguf_layout(tmp_path: Path, name: str, dtype: DType) -> None:
    llama_cpp = pytest.importorskip("llama_cpp")
    cfg = CONFIGS[name]
    write_huggingface(tmp_path / "given", cfg, random_leaves(cfg, 1, F32))
    path = source(tmp_path, cfg) if cfg.qkv_bias != cfg.out_bias else tmp_path / "given"
    asked: dict[str, Any] = {"quant": dtype.name} if dtype.is_block else {"dtype": dtype.name}
    convert(path, tmp_path / "new.gguf", to="gguf", **asked)
    tokens = prompt(cfg, 100)
    theirs = llama_cpp_logits(llama_cpp, tmp_path / "new.gguf", tokens)
    ours = expected(tmp_path / "new.gguf", tokens)
    if dtype is F32:
        assert np.abs(theirs - ours).max() < 2e-4
    # llama.cpp rounds activations too: to the format of 16-bit weights, to 8 bits for blocks.
    apart = np.sqrt(np.mean((theirs - ours) ** 2)) / ours.std()
    assert apart < {"f32": 1e-5, "f16": 2e-3, "bf16": 2e-2}.get(dtype.name, 6e-2)


def llama_cpp_logits(llama_cpp: Any, path: Path, tokens: list[int]) -> Any:
    model = llama_cpp.Llama(
        str(path),
        n_ctx=128,
        n_batch=128,
        n_threads=1,
        n_threads_batch=1,
        logits_all=True,
        verbose=False,
        type_k=0,
        type_v=0,
        flash_attn=False,
    )
    try:
        model.eval(tokens)
        return np.array(model.scores[: len(tokens)], np.float64)
    finally:
        model.close()


@pytest.mark.parametrize("name", ["plain", "llama 3.1"])
@pytest.mark.parametrize("tied", [False, True])
def test_metas_own_program_reads_the_meta_layout(tmp_path: Path, name: str, tied: bool) -> None:
    """`Transformer` of llama_models, with the plain matrices that fairscale's are on one device."""
    torch = pytest.importorskip("torch")
    pytest.importorskip("llama_models", reason="Meta's llama_models is not installed (pip install herd-llama[dev])")
    from conformance.meta_llama3_vision import one_device

    cfg = tiny_llama(**{**SMALL, "tied_embeddings": tied}, rope=CONFIGS[name].rope)
    path = write_huggingface(tmp_path / "given", cfg, random_leaves(cfg, 1, F32))
    convert(path, tmp_path / "new", to="meta")
    with one_device():
        from llama_models.llama3.args import ModelArgs
        from llama_models.llama3.model import Transformer

        params = json.loads((tmp_path / "new" / "params.json").read_text())
        model = Transformer(ModelArgs(max_seq_len=128, max_batch_size=1, **params))
    state = torch.load(tmp_path / "new" / "consolidated.00.pth", weights_only=True, mmap=True)
    model.load_state_dict(state, strict=True)
    tokens = prompt(cfg, 100)
    theirs = model(torch.tensor([tokens]), 0)[0].numpy()
    assert np.abs(theirs - expected(tmp_path / "new", tokens)).max() < 2e-4


def test_a_file_of_ours_says_what_metas_program_would_not_know(tmp_path: Path) -> None:
    cfg = CONFIGS["tied, scaled early"]
    report = convert(write_huggingface(tmp_path / "given", cfg, random_leaves(cfg, 1, F32)), tmp_path / "new", to="meta")
    assert any("llama-models computes with its own numbers" in note for note in report.notes)


@pytest.mark.parametrize("dtype", [F32, F16, BF16], ids=lambda dtype: dtype.name)
def test_torch_loads_every_number_format_without_running_code(tmp_path: Path, dtype: DType) -> None:
    torch = pytest.importorskip("torch")
    cfg = tiny_llama(**{**SMALL, "tied_embeddings": True})
    convert(write_huggingface(tmp_path / "given", cfg, random_leaves(cfg, 1, F32)), tmp_path / "new", to="meta", dtype=dtype.name)
    checkpoint = open_checkpoint(tmp_path / "new")
    state = torch.load(tmp_path / "new" / "consolidated.00.pth", weights_only=True)
    assert state["output.weight"].data_ptr() == state["tok_embeddings.weight"].data_ptr()
    for spec in checkpoint.specs:
        from herd.checkpoints import names

        theirs = state[names.in_file(names.META, spec.name)].reshape(-1).view(torch.uint8).numpy()
        assert np.array_equal(theirs, checkpoint.leaf(spec.name).data.reshape(-1)), spec.name


def test_the_official_readers_find_the_same_bytes(tmp_path: Path) -> None:
    gguf = pytest.importorskip("gguf")
    safetensors = pytest.importorskip("safetensors")
    cfg = CONFIGS["plain"]
    given = write_huggingface(tmp_path / "given", cfg, random_leaves(cfg, 1, BF16))
    convert(given, tmp_path / "new.gguf", to="gguf")
    convert(given, tmp_path / "new", to="hf")
    reader = gguf.GGUFReader(tmp_path / "new.gguf")
    ours = open_checkpoint(tmp_path / "new.gguf")
    assert {tensor.name for tensor in reader.tensors} >= {"token_embd.weight", "blk.1.ffn_down.weight"}
    for tensor in reader.tensors:
        if tensor.name == "token_embd.weight":
            assert tensor.data.tobytes() == ours.leaf("embed").data.tobytes()
    one = dict(safetensors.deserialize((given / "model.safetensors").read_bytes()))
    two = dict(safetensors.deserialize((tmp_path / "new" / "model.safetensors").read_bytes()))
    assert one == two
