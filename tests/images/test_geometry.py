"""Canvases, sizes and token counts equal the published tables and the published code."""

from __future__ import annotations

import random
import subprocess
import sys

import pytest

pytest.importorskip("torch", reason="torch is not installed (pip install herd-llama[dev])")

import torch
from transformers.image_utils import SizeDict
from transformers.models.mllama import image_processing_pil_mllama as mllama

from herd.errors import UsageError
from herd.images import geometry
from images.published import functions

# width, height: grid and size of Llama 3.2 Vision at 560, of Llama 4, and the tokens of Llama 4
TABLE = [
    ((100, 50), (1, 1), (560, 280), (1, 1), (336, 168), 147),
    ((336, 336), (1, 1), (560, 560), (1, 1), (336, 336), 147),
    ((337, 336), (1, 1), (560, 558), (1, 2), (337, 336), 437),
    ((560, 560), (1, 1), (560, 560), (2, 2), (560, 560), 727),
    ((640, 480), (1, 2), (640, 480), (2, 2), (640, 480), 727),
    ((800, 600), (2, 2), (800, 600), (2, 3), (800, 600), 1017),
    ((1024, 768), (2, 2), (1024, 768), (3, 4), (1024, 768), 1887),
    ((1920, 1080), (2, 2), (1120, 630), (3, 5), (1680, 945), 2322),
    ((1080, 1920), (2, 2), (630, 1120), (5, 3), (945, 1680), 2322),
    ((2000, 200), (1, 4), (2000, 200), (1, 6), (2000, 200), 1017),
    ((4000, 3000), (2, 2), (1120, 840), (3, 4), (1344, 1008), 1887),
    ((1, 1000), (2, 1), (1, 1000), (3, 1), (1, 1000), 582),
]
EDGES = [(1, 1), (1, 5000), (5000, 1), (335, 337), (336, 672), (672, 336), (5376, 336), (5377, 335), (1344, 1344), (3504, 1152), (65535, 2)]


def sizes(count: int, seed: int) -> list[tuple[int, int]]:
    """Sizes of pictures: edges of the tiles, then random ones, small and large."""
    rng = random.Random(seed)
    return EDGES + [(rng.randint(1, rng.choice((50, 700, 6000))), rng.randint(1, rng.choice((50, 700, 6000)))) for _ in range(count)]


@pytest.mark.parametrize(("size", "mllama_grid", "mllama_size", "llama4_grid", "llama4_size", "tokens"), TABLE)
def test_the_published_table_of_sizes(
    size: tuple[int, int],
    mllama_grid: tuple[int, int],
    mllama_size: tuple[int, int],
    llama4_grid: tuple[int, int],
    llama4_size: tuple[int, int],
    tokens: int,
) -> None:
    assert (geometry.mllama_grid(*size), geometry.mllama_size(*size)) == (mllama_grid, mllama_size)
    assert (geometry.llama4_grid(*size), geometry.llama4_size(*size)) == (llama4_grid, llama4_size)
    assert geometry.llama4_token_count(*llama4_grid) == tokens


def test_there_are_8_and_50_canvases() -> None:
    assert geometry.mllama_canvases(4) == ((1, 1), (1, 2), (1, 3), (1, 4), (2, 1), (2, 2), (3, 1), (4, 1))
    assert len(geometry.mllama_canvases(16)) == 50
    assert [geometry.mllama_ratio_id(*grid) for grid in geometry.mllama_canvases(4)] == list(range(1, 9))


def test_published_token_counts_of_grids() -> None:
    assert [geometry.llama4_token_count(*grid) for grid in ((1, 1), (2, 2), (1, 2), (4, 4))] == [147, 727, 437, 2467]


@pytest.mark.parametrize("tile", [560, 448])
def test_llama_3_2_places_pictures_as_transformers_does(tile: int) -> None:
    for width, height in sizes(2000, seed=tile):
        canvas = mllama.get_optimal_tiled_canvas(height, width, 4, tile)
        size = mllama.get_image_size_fit_to_canvas(height, width, *canvas, tile)
        assert geometry.mllama_grid(width, height, tile) == (canvas[0] // tile, canvas[1] // tile), (width, height)
        assert geometry.mllama_size(width, height, tile) == (size[1], size[0]), (width, height)


def test_llama_4_places_pictures_as_transformers_does() -> None:
    """Its code holds the canvas in tensors, so that some scales are rounded to 32 bits: 3504 x 1152 becomes 2043 wide, not 2044."""
    theirs = functions("llama4/image_processing_llama4.py", "Llama4ImageProcessor")
    canvases = torch.tensor(theirs["find_supported_resolutions"](16, SizeDict(height=336, width=336)))
    for width, height in sizes(1500, seed=4):
        canvas = theirs["get_best_fit"]((height, width), canvases)
        box = (min(max(height, 336), canvas[0]), min(max(width, 336), canvas[1]))
        down, across = theirs["get_max_res_without_distortion"]((height, width), box)
        assert geometry.llama4_grid(width, height) == (int(canvas[0]) // 336, int(canvas[1]) // 336), (width, height)
        assert geometry.llama4_size(width, height) == (max(int(across), 1), max(int(down), 1)), (width, height)
    assert geometry.llama4_size(3504, 1152) == (2043, 672)


@pytest.mark.parametrize("max_tokens", [4096, 144, 1])
def test_muse_glimmer_stretches_pictures_as_transformers_does(max_tokens: int) -> None:
    theirs = functions("muse_glimmer/image_processing_muse_glimmer.py", "MuseGlimmerImageProcessor")["smart_resize"]
    for width, height in sizes(2000, seed=max_tokens) + [(side, side) for side in range(1, 200)]:
        rows, columns = geometry.muse_glimmer_grid(width, height, max_tokens)
        assert (rows * 28, columns * 28) == theirs(height, width, 28, max_tokens), (width, height)


@pytest.mark.parametrize(("width", "height", "tiles"), [(0, 5, 16), (5, -1, 16), (5, 5, 0), (5.0, 5, 16)])
def test_a_picture_without_pixels_has_no_grid(width: int, height: int, tiles: int) -> None:
    with pytest.raises(UsageError, match="expected a whole number of at least 1"):
        geometry.llama4_grid(width, height, tiles)


def test_geometry_needs_neither_numpy_nor_pillow() -> None:
    code = "import herd.images.geometry, sys; print([name for name in ('numpy', 'PIL') if name in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
