"""The second GGUF file of a Llama 4, with the part that sees pictures: written, found beside the text, and read by others."""

from __future__ import annotations

import ctypes
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

import herd
from convert.test_llama4 import CONFIGS, bits, folder
from herd.backends.base import BackendOptions
from herd.backends.reference import ReferenceBackend
from herd.checkpoints import open_checkpoint
from herd.cli.main import main
from herd.convert import convert, verify
from herd.dtypes import BF16, F32, DType
from herd.errors import FileProblem, UsageError
from herd.images.pixels import prepare
from tiny import random_leaves, tiny_llama, tiny_llama4, tiny_llama4_vision
from tiny_files import write_gguf

CFG = CONFIGS["with eyes"]


@pytest.fixture
def files(tmp_path: Path) -> Path:
    """The text's file, with its eyes beside it."""
    convert(folder(tmp_path / "given", CFG), tmp_path / "new.gguf", to="gguf")
    return tmp_path / "new.gguf"


@pytest.mark.parametrize("dtype", [F32, BF16], ids=lambda dtype: dtype.name)
def test_through_two_files_and_back_is_the_same(tmp_path: Path, dtype: DType) -> None:
    path = folder(tmp_path / "given", CFG, dtype)
    report = convert(path, tmp_path / "new.gguf", to="gguf")
    assert report.files == ("new.gguf", "mmproj-new.gguf")
    assert any("keep it beside new.gguf" in note for note in report.notes)
    assert sorted(each.name for each in tmp_path.iterdir()) == ["given", "mmproj-new.gguf", "new.gguf"]
    assert open_checkpoint(tmp_path / "new.gguf").config == CFG
    convert(tmp_path / "new.gguf", tmp_path / "back", to="hf")
    assert open_checkpoint(tmp_path / "back").config == CFG and bits(tmp_path / "back") == bits(path)
    assert verify(tmp_path / "new.gguf").is_good


def test_a_picture_is_seen_alike_in_both_layouts(files: Path) -> None:
    assert CFG.vision is not None
    image = Image.fromarray(np.random.default_rng(1).integers(0, 256, (64, 64, 3), np.uint8))
    settings: dict[str, Any] = {"backend": "reference", "dtype": "float64"}
    tokens = [5, *[CFG.vision.picture_token] * CFG.vision.tile_rows, 7]
    with herd.load(files, **settings) as ours, herd.load(files.parent / "given", **settings) as given:
        seen = ours.logits(tokens, images=[image])
        assert np.array_equal(seen, given.logits(tokens, images=[image])) and seen.std() > 0.1
    with herd.load(files, mmproj="off", **settings) as blind:
        assert not np.allclose(blind.logits([5, 6, 7])[-1], seen[-1])
        with pytest.raises(UsageError):
            blind.logits(tokens, images=[image])


def test_the_gguf_package_finds_the_keys_and_tensors(files: Path) -> None:
    gguf = pytest.importorskip("gguf")
    reader = gguf.GGUFReader(files.with_name("mmproj-new.gguf"))
    keys = gguf.Keys
    assert CFG.vision is not None
    found = {key: reader.fields[key].contents() for key in reader.fields if not key.startswith("GGUF.")}
    assert found["general.architecture"] == "clip" and found["general.type"] == "mmproj"
    assert found[keys.Clip.PROJECTOR_TYPE] == gguf.VisionProjectorType.LLAMA4 and found[keys.Clip.HAS_VISION_ENCODER] is True
    assert found[keys.ClipVision.PROJECTION_DIM] == CFG.width and found[keys.ClipVision.IMAGE_MEAN] == [0.5] * 3
    assert found[keys.ClipVision.Projector.SCALE_FACTOR] == CFG.vision.merge
    tensors = {tensor.name: tensor for tensor in reader.tensors}
    known = {gguf.TENSOR_NAMES[getattr(gguf.MODEL_TENSOR, name)] for name in dir(gguf.MODEL_TENSOR) if name.startswith("V_")}
    for name in tensors:
        plain = re.sub(r"\.(weight|bias)$", "", re.sub(r"blk\.\d+", "blk.{bid}", name))
        assert re.sub(r"mlp\.[12]$", "mlp.{bid}", plain) in known, name
    leaves = random_leaves(CFG, 1, F32)
    theirs = {
        "v.blk.1.ffn_up.bias": "vision.layers.1.ffn.up_bias",
        "mm.model.fc.weight": "vision.projection",
        "v.class_embd": "vision.class",
    }
    for name, ours in theirs.items():
        assert tensors[name].data.tobytes() == np.ascontiguousarray(leaves[ours].data).tobytes()  # type: ignore[union-attr]
    assert tensors["v.class_embd"].data.shape == (CFG.vision.width,)


def test_which_file_is_meant_must_be_clear(files: Path, tmp_path: Path) -> None:
    eyes = files.with_name("mmproj-new.gguf")
    shutil.copy(eyes, tmp_path / "mmproj-other.gguf")
    assert open_checkpoint(files).config == CFG, "the one with its name"
    renamed = files.rename(tmp_path / "renamed.gguf")
    with pytest.raises(FileProblem, match=r"mmproj-new\.gguf and mmproj-other\.gguf are beside it"):
        open_checkpoint(renamed)
    assert open_checkpoint(renamed, eyes).config == CFG
    assert open_checkpoint(renamed, "off").config.vision is None
    (tmp_path / "mmproj-other.gguf").unlink()
    assert open_checkpoint(renamed).config == CFG, "the only one"
    eyes.unlink()
    assert open_checkpoint(renamed).config.vision is None
    with pytest.raises(FileProblem, match="does not exist"):
        open_checkpoint(renamed, eyes)


def test_eyes_of_another_model_are_refused(files: Path, tmp_path: Path) -> None:
    other = tiny_llama4(vision=tiny_llama4_vision(width=128, num_heads=2, ffn_width=512), width=128, num_heads=4, num_kv_heads=2)
    convert(folder(tmp_path / "odd", other), tmp_path / "odd.gguf", to="gguf")
    with pytest.raises(FileProblem, match=r"clip\.vision\.projection_dim is 128"):
        open_checkpoint(files, tmp_path / "mmproj-odd.gguf")
    with pytest.raises(FileProblem, match=r"general\.architecture is 'llama4'"):
        open_checkpoint(files, files)
    cfg = tiny_llama(vocab_size=96)
    plain = write_gguf(tmp_path / "plain.gguf", cfg, random_leaves(cfg, 1, F32))
    assert open_checkpoint(plain).architecture == "llama"
    for path in (plain, tmp_path / "given"):
        with pytest.raises(UsageError, match="mmproj goes with the GGUF file of a Llama 4"):
            open_checkpoint(path, files.with_name("mmproj-new.gguf"))


def test_eyes_alone_are_no_model(files: Path) -> None:
    with pytest.raises(FileProblem, match="Open the file of its text"):
        open_checkpoint(files.with_name("mmproj-new.gguf"))


def test_a_changed_key_is_refused(files: Path) -> None:
    gguf = pytest.importorskip("gguf")
    reader = gguf.GGUFReader(files.with_name("mmproj-new.gguf"), "r+")
    reader.fields["clip.vision.attention.head_count"].parts[-1][0] = 2
    del reader
    with pytest.raises(FileProblem, match=r"head_count is 2 and herd\.config means 4"):
        open_checkpoint(files)


def test_neither_file_stays_when_one_cannot_be_written(tmp_path: Path) -> None:
    path = folder(tmp_path / "given", CFG)

    def stop(_name: str, done: int, total: int) -> None:
        if done == total:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        convert(path, tmp_path / "new.gguf", to="gguf", progress=stop)
    (tmp_path / "mmproj-new.gguf").write_text("mine")
    with pytest.raises(UsageError, match=r"mmproj-new\.gguf exists already"):
        convert(path, tmp_path / "new.gguf", to="gguf")
    assert sorted(each.name for each in tmp_path.iterdir()) == ["given", "mmproj-new.gguf"]


def test_the_command_takes_the_file(files: Path, tmp_path: Path) -> None:
    done = CliRunner().invoke(main, ["run", str(files), "--mmproj", str(tmp_path / "absent.gguf"), "a"])
    assert done.exit_code != 0 and "does not exist" in done.output


def test_llama_cpp_sees_the_same_but_for_the_order_of_its_rows(files: Path, tmp_path: Path) -> None:
    """Its encoder with our file, given the same pixels: it does not round them to bfloat16, as Meta's processor does. It leaves the rows
    of a tile column by column, where transformers and Meta's code, with which ours is compared elsewhere, turn them back."""
    llama_cpp = pytest.importorskip("llama_cpp")
    assert CFG.vision is not None
    pixels = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    picture = prepare("llama4", Image.fromarray(pixels), tile=64)
    exact = replace(picture, pixels=(pixels / 127.5 - 1).transpose(2, 0, 1)[None].astype(np.float32))
    backend = ReferenceBackend(CFG, open_checkpoint(files).leaf, BackendOptions(dtype="float64"))
    (ours,) = backend.encode(exact)
    side = CFG.vision.side // CFG.vision.merge
    theirs = llama_cpp_rows(llama_cpp, words(tmp_path / "text.gguf"), files.with_name("mmproj-new.gguf"), pixels)
    turned = theirs.reshape(side, side, -1).swapaxes(0, 1).reshape(ours.shape)
    apart = np.sqrt(np.mean((turned - ours) ** 2)) / ours.std()
    assert apart < 3e-3 and np.abs(theirs - ours).max() > ours.std()


def words(path: Path) -> Path:
    """A text model as wide as ours with the tokens that llama.cpp puts around a picture; it does not load ours without any."""
    frame = ["<|image_start|>", "<|image_end|>", "<|image|>", "<|tile_x_separator|>", "<|tile_y_separator|>"]
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{index:02X}>" for index in range(256)), *frame]
    cfg = tiny_llama(vocab_size=len(tokens), num_layers=1)
    keys = {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.scores": [0.0] * len(tokens),
        "tokenizer.ggml.token_type": [2, 3, 3, *[6] * 256, *[3] * len(frame)],
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
    }
    return write_gguf(path, cfg, random_leaves(cfg, 1, F32), keys)


def llama_cpp_rows(llama_cpp: Any, text: Path, eyes: Path, pixels: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """What llama.cpp makes of one tile of pixels: rows as wide as the text."""
    from llama_cpp import mtmd_cpp as mtmd

    model = llama_cpp.Llama(str(text), n_ctx=64, n_threads=1, verbose=False)
    settings = mtmd.mtmd_context_params_default()
    settings.use_gpu, settings.n_threads, settings.warmup, settings.print_timings = False, 1, False, False
    context = mtmd.mtmd_init_from_file(str(eyes).encode(), model.model, settings)
    bitmap = mtmd.mtmd_bitmap_init(pixels.shape[1], pixels.shape[0], pixels.ctypes.data_as(ctypes.POINTER(ctypes.c_uint8)))
    chunks, marker = mtmd.mtmd_input_chunks_init(), mtmd.mtmd_default_marker()
    try:
        asked = mtmd.mtmd_input_text(marker, len(marker), False, True)
        assert mtmd.mtmd_tokenize(context, chunks, ctypes.byref(asked), (mtmd.mtmd_bitmap_p_ctypes * 1)(bitmap), 1) == 0
        chunk = mtmd.mtmd_input_chunks_get(chunks, 1)  # between the tokens around it
        assert mtmd.mtmd_encode_chunk(context, chunk) == 0
        count = mtmd.mtmd_input_chunk_get_n_tokens(chunk)
        rows = np.ctypeslib.as_array(mtmd.mtmd_get_output_embd(context), (count * CFG.width,))
        return rows.reshape(count, CFG.width).astype(np.float64)
    finally:
        mtmd.mtmd_input_chunks_free(chunks)
        mtmd.mtmd_bitmap_free(bitmap)
        mtmd.mtmd_free(context)
        model.close()
