"""LoRA adapters that herd writes: `peft` opens them and gives the same logits; herd reads the same bits."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from checkpoints.test_adapter import ALL, CFG, write_adapter
from conformance.running import oracle, prompt
from herd.checkpoints.adapter import open_adapter
from herd.convert import write_adapter as write
from herd.dtypes import BF16, F32, Q8_0, DType
from herd.errors import UsageError
from herd.models.llama import tensors
from herd.models.weights import Adapted, Dense, Kind, Update
from herd.quant import quantize
from tiny import random_leaves
from tiny_files import write_huggingface

KINDS = {spec.name: spec for spec in tensors(CFG) if spec.kind is Kind.MATRIX}


def leaf(shape: tuple[int, int], seed: int, dtype: DType = F32) -> Dense:
    values = np.random.default_rng(seed).standard_normal(shape).astype(np.float32) / shape[1] ** 0.5
    return Dense(dtype, shape, quantize(dtype, values))


def updates(rank: int, scale: float, chosen: Any = lambda name: True, dtype: DType = F32) -> dict[str, Update]:
    """Random updates of the chosen matrices."""
    named = [(number, spec) for number, spec in enumerate(KINDS.values()) if chosen(spec.name)]
    return {
        spec.name: Update(leaf((rank, spec.shape[1]), number, dtype), leaf((spec.shape[0], rank), 1000 + number, dtype), scale)
        for number, spec in named
    }


CASES: dict[str, Any] = {
    "every matrix": lambda name: True,
    "q and v": lambda name: name.endswith((".q", ".v")),
    "one layer, and k of all": lambda name: name.startswith("layers.1.") or name.endswith(".k"),
}


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")  # peft asks transformers so
@pytest.mark.parametrize("name", CASES)
def test_peft_opens_it_with_the_same_logits(tmp_path: Path, name: str) -> None:
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    peft = pytest.importorskip("peft", reason="peft is not installed (pip install herd-llama[dev])")
    leaves: dict[str, Any] = dict(random_leaves(CFG, 1, F32))
    base = write_huggingface(tmp_path / "base", CFG, leaves)
    wanted = updates(3, 0.7, CASES[name])
    adapted = {**leaves, **{each: update.over(leaves[each], each) for each, update in wanted.items()}}
    write(tmp_path / "adapter", CFG, {each: adapted[each] for each in wanted}, base_model=str(base))
    model = transformers.AutoModelForCausalLM.from_pretrained(base, dtype="float32")
    with_adapter = peft.PeftModel.from_pretrained(model, tmp_path / "adapter").eval()
    matrices = [each for each, _ in with_adapter.named_parameters() if "lora_" in each]
    assert len(matrices) == 2 * len(wanted)
    tokens = prompt(CFG, 40)
    with torch.inference_mode():
        theirs = with_adapter(torch.tensor([tokens])).logits[0].numpy()
    ours = oracle(CFG, adapted, tokens)
    assert np.abs(theirs - ours).max() < 2e-4
    assert np.abs(oracle(CFG, leaves, tokens) - ours).max() > 0.1


@pytest.mark.parametrize("dtype", [F32, BF16], ids=lambda dtype: dtype.name)
@pytest.mark.parametrize(("rank", "scale"), [(4, 2.0), (3, 0.7), (7, 1 / 3)])
@pytest.mark.parametrize("name", CASES)
def test_what_was_written_is_read_with_the_same_bits(tmp_path: Path, name: str, rank: int, scale: float, dtype: DType) -> None:
    wanted = updates(rank, scale, CASES[name], dtype)
    write(tmp_path / "new", CFG, wanted)
    found = open_adapter(tmp_path / "new", CFG)
    assert found.rank == rank and found.updates.keys() == wanted.keys()
    for each, update in found.updates.items():
        assert update.scale == pytest.approx(scale, rel=3e-16), "not every scale is alpha / rank of some alpha"
        for ours, theirs in ((update.down, wanted[each].down), (update.up, wanted[each].up)):
            assert (ours.dtype, ours.shape) == (theirs.dtype, theirs.shape) and np.array_equal(ours.data, theirs.data)


def test_an_adapter_that_was_read_is_written_as_it_was(tmp_path: Path) -> None:
    write_adapter(tmp_path / "given", ALL)
    write(tmp_path / "new", CFG, open_adapter(tmp_path / "given", CFG).updates, base_model="tiny")
    safetensors = pytest.importorskip("safetensors")
    one, two = (dict(safetensors.deserialize((tmp_path / each / "adapter_model.safetensors").read_bytes())) for each in ("given", "new"))
    assert one == two
    given, new = (json.loads((tmp_path / each / "adapter_config.json").read_text()) for each in ("given", "new"))
    assert {key for key in given if given[key] != new[key]} <= {"lora_dropout", "target_modules"}
    assert sorted(given["target_modules"]) == new["target_modules"]


def test_what_such_a_folder_cannot_hold_is_refused(tmp_path: Path) -> None:
    one, two = updates(4, 2.0), updates(2, 2.0)
    name = "layers.0.attention.q"
    odd = Update(leaf((4, 7), 1), one[name].up, 2.0)
    cases: dict[str, dict[str, Update | Adapted]] = {
        "no updates": {},
        "no matrix of this model's layers": {"embed": one[name]},
        "several ranks or scales": {**one, name: two[name]},
        "the matrix is": {name: odd},
        "f32, f16, bf16 are written": {name: Update(leaf((32, CFG.width), 1, Q8_0), leaf((CFG.width, 32), 2, Q8_0), 2.0)},
    }
    for message, given in cases.items():
        with pytest.raises(UsageError, match=message):
            write(tmp_path / "new", CFG, given)
    (tmp_path / "new").mkdir()
    with pytest.raises(UsageError, match="nothing is overwritten"):
        write(tmp_path / "new", CFG, one)
