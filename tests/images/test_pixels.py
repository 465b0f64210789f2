"""Pixels equal those of the published preprocessing, bit for bit, for pictures of many shapes and modes."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("torch", reason="torch is not installed (pip install herd-llama[dev])")

import torch
from transformers.models.mllama.image_processing_pil_mllama import MllamaImageProcessorPil

from herd.errors import UsageError
from herd.images.digest import digest
from herd.images.pixels import muse_glimmer_frames, muse_glimmer_patches, prepare
from herd.images.resample import BILINEAR, LANCZOS, resize
from images import published
from images.pictures import noise

SHAPES = [(1, 1), (1, 1000), (900, 3), (50, 31), (56, 56), (57, 56), (112, 112), (130, 99), (99, 130), (300, 200), (400, 90), (301, 299)]
MODES = ["RGB", "RGBA", "L", "LA", "P", "1", "CMYK", "YCbCr"]
CLIP = {"image_mean": [0.48145466, 0.4578275, 0.40821073], "image_std": [0.26862954, 0.26130258, 0.27577711]}


def assert_equals_mllama(width: int, height: int, mode: str, tile: int) -> None:
    image = noise(width, height, mode)
    theirs = MllamaImageProcessorPil(size={"height": tile, "width": tile}, **CLIP)([[image]], return_tensors="np")
    ours = prepare("mllama", image, tile=tile)
    tiles = theirs["num_tiles"][0][0]
    assert np.array_equal(ours.pixels, theirs["pixel_values"][0, 0, :tiles])
    assert ours.rows * ours.columns == tiles and ours.pixels.dtype == np.float32


@pytest.mark.parametrize(("width", "height"), SHAPES)
def test_llama_3_2_sees_what_transformers_gives_it(width: int, height: int) -> None:
    assert_equals_mllama(width, height, "RGB", 56)


@pytest.mark.parametrize("mode", MODES)
def test_llama_3_2_sees_every_mode_as_transformers_gives_it(mode: str) -> None:
    assert_equals_mllama(130, 99, mode, 56)


@pytest.mark.parametrize("tile", [560, 448])
def test_llama_3_2_sees_a_picture_of_real_size(tile: int) -> None:
    assert_equals_mllama(800, 600, "RGB", tile)


def assert_equals_llama4(width: int, height: int, mode: str = "RGB", tile: int = 56, max_tiles: int = 16) -> None:
    image = noise(width, height, mode)
    theirs, grid = published.llama4(image, tile, max_tiles)
    ours = prepare("llama4", image, tile=tile, max_tiles=max_tiles)
    assert (ours.rows, ours.columns) == grid
    assert np.array_equal(ours.pixels, theirs.reshape(ours.pixels.shape))
    assert len(ours.pixels) == 1 if grid == (1, 1) else len(ours.pixels) == grid[0] * grid[1] + 1


@pytest.mark.parametrize(("width", "height"), SHAPES)
def test_llama_4_sees_what_transformers_gives_it(width: int, height: int) -> None:
    assert_equals_llama4(width, height)


@pytest.mark.parametrize("mode", MODES)
def test_llama_4_sees_every_mode_as_transformers_gives_it(mode: str) -> None:
    assert_equals_llama4(130, 99, mode)


@pytest.mark.parametrize(("width", "height"), [(336, 336), (640, 480), (1920, 1080)])
def test_llama_4_sees_a_picture_of_real_size(width: int, height: int) -> None:
    assert_equals_llama4(width, height, tile=336)


@pytest.mark.parametrize(("width", "height"), SHAPES)
def test_muse_glimmer_sees_what_transformers_gives_it(width: int, height: int) -> None:
    image = noise(width, height)
    theirs, (_, rows, columns) = published.muse_glimmer([image], 64, is_video=False)
    ours = prepare("muse_glimmer", image, max_tokens=64)
    assert (2 * ours.rows, 2 * ours.columns) == (rows, columns)
    assert np.array_equal(muse_glimmer_patches(ours.pixels), theirs)


@pytest.mark.parametrize("count", [1, 2, 5])
def test_muse_glimmer_sees_the_frames_of_a_video_as_transformers_gives_them(count: int) -> None:
    frames = [noise(130, 99, seed=seed) for seed in range(count)]
    theirs, (pairs, rows, columns) = published.muse_glimmer(frames, 20, is_video=True)
    ours = muse_glimmer_frames(frames, 20)
    assert (len(ours.pixels), 2 * ours.rows, 2 * ours.columns) == (2 * pairs, rows, columns)
    assert np.array_equal(muse_glimmer_patches(ours.pixels), theirs)


@pytest.mark.parametrize(("kind", "name"), [(BILINEAR, "bilinear"), (LANCZOS, "lanczos")])
@pytest.mark.parametrize(
    ("old", "new"),
    [((37, 91), (120, 33)), ((5, 3), (336, 201)), ((700, 500), (233, 499)), ((1, 900), (1, 311)), ((900, 4), (17, 1)), ((8, 8), (8, 5))],
)
def test_resizing_equals_torch_bit_for_bit(old: tuple[int, int], new: tuple[int, int], kind: object, name: str) -> None:
    pixels = np.asarray(noise(*old))
    theirs = published.interpolated(torch.from_numpy(pixels.copy()).permute(2, 0, 1).contiguous(), new[1], new[0], name)
    assert np.array_equal(resize(pixels, *new, kind), theirs.permute(1, 2, 0).numpy())  # type: ignore[arg-type]


def test_frames_of_a_video_have_one_size_and_are_not_none() -> None:
    with pytest.raises(UsageError, match="different sizes"):
        muse_glimmer_frames([noise(10, 10), noise(11, 10)])
    with pytest.raises(UsageError, match="no frames"):
        muse_glimmer_frames([])


def test_a_digest_tells_size_and_pixels_apart_and_nothing_else() -> None:
    image = noise(20, 30)
    assert digest(image) == digest(image.convert("RGBA")) == prepare("llama4", image).digest == prepare("mllama", image).digest
    turned = image.transpose(2)  # the same bytes in another order and size
    flat = [noise(20, 30).point(lambda _: 7), noise(30, 20).point(lambda _: 7)]
    assert len({digest(image), digest(turned), *map(digest, flat)}) == 4 and len(digest(image)) == 32


def test_an_unknown_way_to_prepare_is_refused() -> None:
    with pytest.raises(UsageError, match="mllama, llama4, muse_glimmer"):
        prepare("llama5", noise(2, 2))  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="tile of a picture is 0"):
        prepare("mllama", noise(2, 2), tile=0)
