"""Models that see pictures, and the classifier, as Hugging Face folders: the same bits as transformers saves, and it opens them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

pytest.importorskip("torch", reason="torch is not installed (pip install herd-llama[dev])")
pytest.importorskip("transformers", reason="transformers is not installed (pip install herd-llama[dev])")

import torch

from checkpoints.test_huggingface_mllama import CFG as SMALL_CFG
from checkpoints.test_huggingface_mllama import LEAVES, config, stored
from checkpoints.test_muse_glimmer_folder import saved as muse
from checkpoints.test_prompt_guard_folder import saved as guard
from conformance.llama3_vision_texts import CFG
from conformance.mllama_in_transformers import config as mllama_config
from conformance.mllama_in_transformers import randomise
from convert.test_llama4 import bits
from herd.checkpoints import mllama_names, open_checkpoint
from herd.checkpoints.safetensors import read_safetensors
from herd.cli.main import main
from herd.convert import convert, verify
from herd.dtypes import BF16, F32
from herd.errors import UsageError
from herd.files import MappedFile
from tiny_files import safetensors_bytes

__all__ = ["guard", "muse"]


@pytest.fixture(scope="module")
def mllama(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    """A folder that transformers saved, and the model that it saved."""
    from transformers import MllamaForConditionalGeneration

    torch.set_num_threads(1)
    model = MllamaForConditionalGeneration(mllama_config()).eval()
    randomise(model)
    folder = tmp_path_factory.mktemp("mllama")
    model.save_pretrained(folder)
    return folder, model


def reopened(kind: Any, folder: Path) -> Any:
    """The model as transformers opens it, with every tensor in its place."""
    model, told = kind.from_pretrained(folder, dtype="float32", output_loading_info=True)
    assert not any(told[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys")), told
    return model.eval()


def file_bytes(folder: Path) -> dict[str, tuple[str, tuple[int, ...], bytes]]:
    """What the folder's file holds, by published names."""
    file = MappedFile(folder / "model.safetensors")
    entries = read_safetensors(file).values()
    return {
        mllama_names.as_published(each.name): (each.dtype, each.shape, bytes(file.view[each.offset : each.offset + each.num_bytes]))
        for each in entries
    }


def with_picture(model: Any) -> Any:
    """Logits of a text about a picture of 1 x 2 tiles, and of text alone."""
    random = torch.Generator().manual_seed(5)
    side, most = CFG.vision.tile, CFG.vision.max_tiles
    tokens = torch.tensor([[CFG.picture_id, 4, 5, 6, 7, 8]])
    seen = torch.zeros(1, 6, 1, most)
    seen[..., :2] = 1
    with torch.inference_mode():
        seeing = model(
            tokens,
            pixel_values=torch.randn(1, 1, most, 3, side, side, generator=random),
            aspect_ratio_ids=torch.tensor([[2]]),
            aspect_ratio_mask=torch.tensor([[[1, 1] + [0] * (most - 2)]]),
            cross_attention_mask=seen,
        ).logits
        return torch.cat([seeing, model(tokens[:, 1:]).logits], 1)[0].numpy()


def test_a_folder_of_llama_3_2_vision_is_the_one_that_transformers_saved(tmp_path: Path, mllama: tuple[Path, Any]) -> None:
    from transformers import MllamaForConditionalGeneration

    folder, model = mllama
    report = convert(folder, tmp_path / "new", to="hf")
    assert open_checkpoint(tmp_path / "new").config == open_checkpoint(folder).config
    assert file_bytes(tmp_path / "new") == file_bytes(folder) and report.num_tensors == len(file_bytes(folder))
    assert bits(tmp_path / "new") == bits(folder)
    again = with_picture(reopened(MllamaForConditionalGeneration, tmp_path / "new"))
    assert np.allclose(again, with_picture(model), atol=1e-5) and again.std() > 0.1


def test_the_config_of_llama_3_2_vision_has_the_keys_of_the_release(tmp_path: Path) -> None:
    (tmp_path / "given").mkdir()
    (tmp_path / "given" / "config.json").write_text(json.dumps(config()))
    (tmp_path / "given" / "model.safetensors").write_bytes(safetensors_bytes(stored(LEAVES, F32)))
    convert(tmp_path / "given", tmp_path / "new", to="hf", dtype="bf16")
    found = json.loads((tmp_path / "new" / "config.json").read_text())
    assert set(found) <= {*config(), "dtype"}
    assert found["image_token_index"] == SMALL_CFG.vocab_size and found["text_config"]["eos_token_id"] == [2, 3]
    for part in ("text_config", "vision_config"):
        assert {key: value for key, value in found[part].items() if config()[part].get(key) != value} in ({}, {"pad_token_id": None})
    checkpoint = open_checkpoint(tmp_path / "new")
    assert checkpoint.config == SMALL_CFG and {checkpoint.dtype(spec.name) for spec in checkpoint.specs} == {BF16}
    assert verify(tmp_path / "new").is_good


def test_a_folder_of_muse_glimmer_is_the_one_that_transformers_saved(tmp_path: Path, muse: tuple[Path, Any]) -> None:
    from transformers import MuseGlimmerForConditionalGeneration

    folder, model = muse
    convert(folder, tmp_path / "new", to="hf")
    assert open_checkpoint(tmp_path / "new").config == open_checkpoint(folder).config
    assert file_bytes(tmp_path / "new") == file_bytes(folder) and bits(tmp_path / "new") == bits(folder)
    tokens = torch.tensor([[5, 6, *[290] * 4, 7, 8, *range(40)]])
    patches = torch.randn(16, 2 * 3 * 14 * 14, generator=torch.Generator().manual_seed(1))
    given = {"pixel_values": patches, "image_grid_thw": torch.tensor([[1, 4, 4]])}
    with torch.inference_mode():
        again = reopened(MuseGlimmerForConditionalGeneration, tmp_path / "new")(tokens, **given).logits.numpy()
        assert np.allclose(again, model(tokens, **given).logits.numpy(), atol=1e-5) and again.std() > 0.1


def test_a_folder_of_prompt_guard_is_the_one_that_transformers_saved(tmp_path: Path, guard: tuple[Path, Any, Any]) -> None:
    from transformers import DebertaV2ForSequenceClassification

    folder, model, _ = guard
    convert(folder, tmp_path / "new", to="hf")
    assert open_checkpoint(tmp_path / "new").config == open_checkpoint(folder).config
    assert file_bytes(tmp_path / "new") == file_bytes(folder) and bits(tmp_path / "new") == bits(folder)
    tokens = torch.tensor([[1, *range(4, 30), 2]])
    again = reopened(DebertaV2ForSequenceClassification, tmp_path / "new")
    with torch.inference_mode():
        assert np.allclose(again(tokens).logits.numpy(), model(tokens).logits.numpy(), atol=1e-5)
    assert again.config.id2label == model.config.id2label
    convert(folder, tmp_path / "half", to="hf", dtype="bf16")
    assert {leaf[0] for leaf in bits(tmp_path / "half").values()} == {"bf16"}
    assert not (tmp_path / "half" / "generation_config.json").exists()


@pytest.mark.parametrize(("name", "to", "said"), [
    ("mllama", "gguf", "Llama 3.2 Vision is not written as GGUF.*Choose hf"),
    ("muse", "gguf", "Muse-Glimmer is not written as GGUF.*Choose hf"),
    ("muse", "meta", "Muse-Glimmer has no layout of Meta's own.*Choose hf"),
    ("guard", "gguf", "Prompt Guard is not written as GGUF.*Choose hf"),
    ("guard", "meta", "Prompt Guard has no layout of Meta's own.*Choose hf"),
])  # fmt: skip
def test_what_a_layout_cannot_hold_is_refused_with_what_to_do(
    tmp_path: Path, request: pytest.FixtureRequest, name: str, to: str, said: str
) -> None:
    folder = request.getfixturevalue(name)[0]
    with pytest.raises(UsageError, match=said):
        convert(folder, tmp_path / "new.gguf", to=to)
    assert list(tmp_path.iterdir()) == []
    done = CliRunner().invoke(main, ["convert", str(folder), str(tmp_path / "new.gguf"), "--to", to])
    assert done.exit_code == 2 and "Choose hf" in done.output
