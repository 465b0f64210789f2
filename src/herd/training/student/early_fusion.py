"""A student that sees many pictures at once.

Tiles of a Llama 4 do not see each other inside the encoder. So all pictures of a batch go through it as the tiles of one, which is many
times faster than one small picture after the other, and gives each the same rows.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from herd.backends.base import Picture
from herd.models.architecture import Config
from herd.models.llama4 import Llama4Config, encode
from herd.models.ops import PictureStep
from herd.training.student.batches import Batch
from herd.training.student.model import Student


def sees_at_once(cfg: Config) -> bool:
    """Whether the model's tiles are independent."""
    return isinstance(cfg, Llama4Config) and cfg.vision is not None


class EarlyFusion(Student):
    """A Llama 4 with a vision part."""

    def hidden(self, batch: Batch) -> Tensor:
        self._ready = self._encode_all({placed.picture.digest: placed.picture for each in batch.pictures for placed in each})
        try:
            return super().hidden(batch)
        finally:
            self._ready = {}

    def _encode(self, picture: Picture) -> list[Tensor]:
        return [self._ready[picture.digest]]

    def _encode_all(self, pictures: dict[bytes, Picture]) -> dict[bytes, Tensor]:
        """The rows of each picture, by its digest."""
        if not pictures:
            return {}
        cfg = self.cfg
        assert isinstance(cfg, Llama4Config) and cfg.vision is not None, "only made for models that see"
        pixels = np.concatenate([picture.pixels for picture in pictures.values()])
        tiles, _, height, width = pixels.shape
        step = PictureStep(self._picture_ops, torch.from_numpy(pixels).to(self.device, self.dtype), tiles, height, width, 1, tiles)
        rows = encode(self.weights, cfg, step)[0]
        counts = [len(picture.pixels) * cfg.vision.tile_rows for picture in pictures.values()]
        return dict(zip(pictures, torch.split(rows, counts), strict=True))
