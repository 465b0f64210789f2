"""Pictures to the numbers that each release's vision encoder reads.

prepare("llama4", image) -> Picture(pixels [17, 3, 336, 336], rows=4, columns=4, digest)

Each function follows the published preprocessing, resampling included: Llama 3.2 resizes with Pillow, Llama 4 and Muse-Glimmer as torch
does (`resample.py`). Padding is black before normalisation. docs/explain/pictures.md says what was compared with what.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from herd.errors import UsageError
from herd.images import geometry
from herd.images.decode import rgb_pixels
from herd.images.digest import digest_of_pixels
from herd.images.resample import LANCZOS, resize

Kind = Literal["mllama", "llama4", "muse_glimmer"]

_CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
_CLIP_STD = (0.26862954, 0.26130258, 0.27577711)


@dataclass(frozen=True, slots=True)
class Picture:
    """A picture as an encoder reads it.

    pixels   float32 [tiles, 3, height, width], normalised. Used tiles only, row by row; for llama4 with more than one tile, the
             whole picture as a last one. muse_glimmer: one "tile" of any size, or an even number of frames of a video.
    rows, columns   the grid: of tiles, or for muse_glimmer of cells (a token each)
    digest   32 bytes that stand for the picture, whatever file it came in
    """

    pixels: NDArray[np.float32]
    rows: int
    columns: int
    digest: bytes


def prepare(kind: Kind, image: Image.Image, **numbers: int) -> Picture:
    """The picture for this kind of encoder. `numbers` are those of its configuration: `tile` and `max_tiles` for mllama and
    llama4, `max_tokens`, `patch` and `merge` for muse_glimmer. `UsageError` for an unknown kind, a number below 1, a mode without colours.
    """
    if kind not in get_args(Kind):
        raise UsageError(f"There is no way {kind!r:.40} to prepare pictures; expected one of {', '.join(get_args(Kind))}.")
    prepared: dict[str, Callable[..., Picture]] = {"mllama": mllama_tiles, "llama4": llama4_tiles, "muse_glimmer": muse_glimmer_picture}
    return prepared[kind](image, **numbers)


def prepare_video(kind: Kind, frames: Sequence[Image.Image], **numbers: int) -> Picture:
    """A video for this kind of encoder, from its frames; `numbers` as `prepare`. `UsageError` for kinds that take frames as pictures."""
    if kind != "muse_glimmer":
        raise UsageError("This model reads a video as pictures: give each frame as a picture of its own, with its own place in the prompt.")
    return muse_glimmer_frames(frames, patch=numbers.get("patch", 14), merge=numbers.get("merge", 2))


def mllama_tiles(image: Image.Image, tile: int = geometry.MLLAMA_TILE, max_tiles: int = geometry.MLLAMA_MAX_TILES) -> Picture:
    """Llama 3.2 Vision: resized by Pillow (bilinear), normalised with CLIP's mean and deviation."""
    colours = rgb_pixels(image)
    height, width, _ = colours.shape
    rows, columns = geometry.mllama_grid(width, height, tile, max_tiles)
    size = geometry.mllama_size(width, height, tile, max_tiles)
    small = np.asarray(Image.fromarray(colours).resize(size, Image.Resampling.BILINEAR))
    canvas = _on_canvas(small, rows, columns, tile)
    return Picture(_looked_up(canvas, _clip_levels()), rows, columns, digest_of_pixels([colours]))


def llama4_tiles(image: Image.Image, tile: int = geometry.LLAMA4_TILE, max_tiles: int = geometry.LLAMA4_MAX_TILES) -> Picture:
    """Llama 4: pixels from -1 to 1 in the steps that bfloat16 has; the whole picture, stretched to one tile, comes last."""
    colours = rgb_pixels(image)
    height, width, _ = colours.shape
    rows, columns = geometry.llama4_grid(width, height, max_tiles, tile)
    small = resize(colours, *geometry.llama4_size(width, height, max_tiles, tile))
    tiles = _on_canvas(small, rows, columns, tile)
    if rows * columns > 1:
        tiles = np.concatenate([tiles, resize(colours, tile, tile).transpose(2, 0, 1)[None]])
    return Picture(_looked_up(tiles, _bfloat16_levels()), rows, columns, digest_of_pixels([colours]))


def muse_glimmer_picture(
    image: Image.Image, max_tokens: int = geometry.MUSE_GLIMMER_MAX_TOKENS, patch: int = 14, merge: int = 2
) -> Picture:
    """Muse-Glimmer: stretched to the nearest grid of cells of `patch * merge` pixels (Lanczos), pixels from -1 to 1."""
    return muse_glimmer_frames([image], max_tokens, patch, merge, is_video=False)


def muse_glimmer_frames(
    images: Sequence[Image.Image],
    max_tokens: int = geometry.MUSE_GLIMMER_FRAME_TOKENS,
    patch: int = 14,
    merge: int = 2,
    *,
    is_video: bool = True,
) -> Picture:
    """A video as its frames, all of one size, at most `max_tokens` tokens each. Two frames share their tokens, so that an odd
    number of them is made even by the last one again. `UsageError` for none, or of different sizes."""
    frames = [rgb_pixels(image) for image in images]
    if not frames:
        raise UsageError("A video has no frames; expected at least one.")
    if len({colours.shape for colours in frames}) > 1:
        raise UsageError("The frames of a video have different sizes; expected one size for all.")
    height, width, _ = frames[0].shape
    cell = patch * merge
    rows, columns = geometry.muse_glimmer_grid(width, height, max_tokens, cell)
    resized = [resize(colours, columns * cell, rows * cell, LANCZOS).transpose(2, 0, 1) for colours in frames]
    if is_video and len(resized) % 2:
        resized.append(resized[-1])
    return Picture(_looked_up(np.stack(resized), _even_levels()), rows, columns, digest_of_pixels(frames))


def muse_glimmer_patches(pixels: NDArray[np.float32], patch: int = 14) -> NDArray[np.float32]:
    """[frames, 3, height, width] -> [patches, 2 * 3 * patch * patch]: row by row, two frames side by side in each (a single one
    twice), in the order frame, channel, row, column."""
    if pixels.shape[0] == 1:
        pixels = np.repeat(pixels, 2, axis=0)
    frames, channels, height, width = pixels.shape
    cut = pixels.reshape(frames // 2, 2, channels, height // patch, patch, width // patch, patch)
    return np.ascontiguousarray(cut.transpose(0, 3, 5, 1, 2, 4, 6).reshape(-1, 2 * channels * patch * patch))


def _on_canvas(colours: NDArray[np.uint8], rows: int, columns: int, tile: int) -> NDArray[np.uint8]:
    """[height, width, 3] in the upper left of a black canvas, cut into [rows * columns, 3, tile, tile]."""
    canvas = np.zeros((rows * tile, columns * tile, 3), np.uint8)
    canvas[: colours.shape[0], : colours.shape[1]] = colours
    return canvas.reshape(rows, tile, columns, tile, 3).transpose(0, 2, 4, 1, 3).reshape(rows * columns, 3, tile, tile)


def _looked_up(tiles: NDArray[np.uint8], levels: NDArray[np.float32]) -> NDArray[np.float32]:
    """tiles [n, 3, ...] of bytes -> their values by channel: levels [3, 256]."""
    result = np.empty(tiles.shape, np.float32)
    for channel in range(3):
        result[:, channel] = levels[channel][tiles[:, channel]]
    return result


@cache
def _clip_levels() -> NDArray[np.float32]:
    """What each of the 256 levels of a channel becomes for Llama 3.2: [3, 256]."""
    unit = (np.arange(256) * (1 / 255)).astype(np.float32)
    return (unit - np.array(_CLIP_MEAN, np.float32)[:, None]) / np.array(_CLIP_STD, np.float32)[:, None]


@cache
def _bfloat16_levels() -> NDArray[np.float32]:
    """For Llama 4: (level / 255 - 0.5) / 0.5, rounded to bfloat16 after each operation."""
    unit = _to_bfloat16(np.arange(256, dtype=np.float32) * np.float32(1 / 255))
    return np.tile(_to_bfloat16(unit - np.float32(0.5)) * np.float32(2), (3, 1))


@cache
def _even_levels() -> NDArray[np.float32]:
    """For Muse-Glimmer: (level - 127.5) / 127.5."""
    half = np.float32(127.5)
    return np.tile((np.arange(256, dtype=np.float32) - half) / half, (3, 1))


def _to_bfloat16(values: NDArray[np.float32]) -> NDArray[np.float32]:
    """Rounded to the nearest number with 8 significant bits, halves to even."""
    bits = values.view(np.uint32)
    return ((bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))) & np.uint32(0xFFFF0000)).view(np.float32)
