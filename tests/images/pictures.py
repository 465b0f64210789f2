"""Pictures for tests: noise with a fixed seed, in every mode that files come in."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image


def noise(width: int, height: int, mode: str = "RGB", seed: int = 0) -> Image.Image:
    """A picture of random colours; modes with alpha get random alpha, palettes a random palette."""
    rng = np.random.default_rng(seed + 1000 * width + height)
    if mode == "P":
        image = Image.fromarray(rng.integers(0, 256, (height, width), np.uint8))
        image.putpalette(rng.integers(0, 256, 768, np.uint8).tobytes())
        return image
    if mode == "1":
        return Image.fromarray(rng.integers(0, 256, (height, width), np.uint8)).convert("1")
    channels = len(Image.new(mode, (1, 1)).getbands())
    values = rng.integers(0, 256, (height, width, channels) if channels > 1 else (height, width), np.uint8)
    return Image.merge(mode, [Image.fromarray(values[..., c]) for c in range(channels)]) if channels > 1 else Image.fromarray(values)


def encoded(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    """The bytes of a file of this format."""
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()
