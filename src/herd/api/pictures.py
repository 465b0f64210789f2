"""Pictures on their way to a model: prepared as its release was trained, and put where the prompt has their tokens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, cast

from herd.backends.base import Picture, Placed
from herd.errors import UsageError
from herd.models.architecture import Config, PictureShape, seeing

if TYPE_CHECKING:
    from herd.images.pixels import Kind
    from herd.text.formats.parts import Grid
    from herd.text.messages import Image


class Eyes:
    """What one model does with pictures. Without a vision part it refuses them."""

    def __init__(self, name: str, cfg: Config) -> None:
        self._name = name
        self._cfg = cfg
        self._model = seeing(cfg)

    @property
    def can_see(self) -> bool:
        return self._model is not None

    @property
    def cut(self) -> object:
        """How pictures are cut and how many tokens a tile becomes: models for which it is equal can read each other's ids. None: it
        does not see."""
        if self._model is None:
            return None
        return self._model.preparation(self._cfg), getattr(getattr(self._cfg, "vision", None), "tile_rows", None)

    def prepare(self, images: Sequence[object]) -> list[Picture]:
        """PIL images, bytes of image files or data URLs -> pixels; a list of them is a video, for models that read videos.
        `UsageError` for what is no picture, and for a model that reads text only."""
        if isinstance(images, str | bytes) or not isinstance(images, Sequence | None):
            raise UsageError(f"images is {type(images).__name__}; expected a list of pictures.")
        if not images:
            return []
        if self._model is None:
            given = "1 picture was given" if len(images) == 1 else f"{len(images)} pictures were given"
            raise UsageError(f"{self._name} reads text only; {given}.")
        kind, numbers = self._model.preparation(self._cfg)
        return [_prepared(cast(Any, kind), image, numbers) for image in images]

    def grid(self, picture: Picture) -> Grid:
        """Rows and columns of a picture, and for tiles that become tokens how many each becomes."""
        tile_rows = getattr(getattr(self._cfg, "vision", None), "tile_rows", None)
        return (picture.rows, picture.columns) if tile_rows is None else (picture.rows, picture.columns, int(tile_rows))

    def tiles(self, image: Image) -> Grid:
        """`grid` of a picture in a message."""
        return self.grid(self.prepare([image.source])[0])

    def place(self, tokens: Sequence[int], pictures: Sequence[Picture]) -> tuple[Placed, ...]:
        """Each picture with the positions of its tokens. `UsageError` when picture tokens and pictures do not fit together."""
        if self._model is None:
            return ()
        shapes = [_shape(picture) for picture in pictures]
        positions = self._model.picture_positions(self._cfg, tokens, shapes)
        return tuple(Placed(picture, where) for picture, where in zip(pictures, positions, strict=True))


def _prepared(kind: Kind, image: object, numbers: Mapping[str, int]) -> Picture:
    """A picture, or the frames of a video."""
    from herd.images.decode import open_image
    from herd.images.pixels import prepare, prepare_video

    if isinstance(image, list | tuple):
        return prepare_video(kind, [open_image(frame) for frame in image], **numbers)
    return prepare(kind, open_image(cast(Any, image)), **numbers)


def _shape(picture: Picture) -> PictureShape:
    tiles, _, height, width = picture.pixels.shape
    return PictureShape(tiles, height, width, picture.rows, picture.columns)
