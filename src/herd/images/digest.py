"""What tells two pictures apart: the key under which the work done for one is found again."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from herd.images.decode import rgb_pixels


def digest(image: Image.Image) -> bytes:
    """SHA-256 (32 bytes) over the size and the pixels that preprocessing sees. `UsageError` for a mode that has no colours."""
    return digest_of_pixels([rgb_pixels(image)])


def digest_of_pixels(pictures: Iterable[NDArray[np.uint8]]) -> bytes:
    """The same of pictures that are already [height, width, 3]; for several, of all of them in their order."""
    found = hashlib.sha256()
    for pixels in pictures:
        height, width, _ = pixels.shape
        found.update(f"RGB {width} {height}\n".encode())
        found.update(np.ascontiguousarray(pixels).data)
    return found.digest()
