"""What the tokens of a step see of pictures: each picture encoded once, kept for a few, and handed to the native program.

Keys and values of crossing layers are kept in the cache's format, as native code reads them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, cast

import numpy as np
from numpy.typing import NDArray

from herd import _core
from herd.backends.base import Encoded, Picture, Plan, pictures_seen
from herd.backends.cpu.picture_ops import CpuPictureOps
from herd.backends.reference.memory import overlays
from herd.models.architecture import Config, Seeing
from herd.models.ops import PictureStep


class StepPictures(NamedTuple):
    """What `Program.step` takes besides spans: the rows of pictures with their features, and (first row, count, pictures) of rows
    that see pictures."""

    picture_rows: NDArray[np.int32] | None = None
    features: NDArray[np.float32] | None = None
    seeing: Sequence[tuple[int, int, list[_core.KeyValues]]] = ()


class Pictures:
    """The pictures of one model. `weights` is the tree that the module's `encode` reads; `form` says how keys and values are
    kept."""

    def __init__(self, machine: _core.Machine, model: Seeing, cfg: Config, weights: Any, form: str) -> None:
        self._machine = machine
        self._model = model
        self._cfg = cfg
        self._weights = weights
        self._form = form
        self._ops = CpuPictureOps(machine)
        self._encoded = Encoded(self._encode)

    @property
    def num_bytes(self) -> int:
        return self._encoded.num_bytes

    def of(self, plan: Plan) -> StepPictures:
        """Encodes what is new and says what each row of the step sees."""
        if self._model.num_crossing(self._cfg):
            return StepPictures(seeing=self._seeing(plan))
        found = overlays(plan, self._encoded)
        if found is None:
            return StepPictures()
        rows, features = found
        return StepPictures(rows.astype(np.int32), np.ascontiguousarray(features, np.float32))

    def _seeing(self, plan: Plan) -> list[tuple[int, int, list[_core.KeyValues]]]:
        found = []
        self._encoded.begin_step()
        row = 0
        for span in plan.spans:
            for begin, end, pictures in pictures_seen(span.pictures, span.start + len(span.tokens)):
                first = max(begin, span.start)
                if first < end:
                    kept = [cast(_core.KeyValues, self._encoded.get(picture)[0]) for picture in pictures]
                    found.append((row + first - span.start, end - first, kept))
            row += len(span.tokens)
        return found

    def _encode(self, picture: Picture) -> list[Any]:
        tiles, _, height, width = picture.pixels.shape
        pixels = np.asarray(picture.pixels, np.float32)
        step = PictureStep(cast(Any, self._ops), pixels, tiles, height, width, picture.rows, picture.columns)
        with np.errstate(all="ignore"):
            tensors = list(self._model.encode(self._weights, self._cfg, step))
        layers = self._model.num_crossing(self._cfg)
        if not layers:
            return tensors
        rows, kv_heads, head_width = tensors[0].shape
        kept = _core.KeyValues(layers, rows, kv_heads, head_width, self._form)
        for layer in range(layers):
            keys, values = (np.ascontiguousarray(each, np.float32) for each in tensors[2 * layer : 2 * layer + 2])
            kept.store(self._machine, layer, keys, values)
        return [kept]
