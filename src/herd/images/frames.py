"""A video as pictures: frames taken evenly from an animation or a list. Films in codecs are not decoded.

read_frames(data, 8) -> Frames(images=(8 pictures), indices=(0, 4, ...), total=32, times_s=(0.0, 0.4, ...))
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from herd.errors import FileProblem, UsageError
from herd.images.decode import MAX_BYTES, open_container, open_image

MAX_FRAMES = 1024
MAX_ANIMATION_PIXELS = 500_000_000
"""Of all frames up to the last one that is taken: an animation's frames build on each other and are all decoded."""


@dataclass(frozen=True, slots=True)
class Frames:
    """Pictures of a video in their order. `indices` are their places among its `total` frames, `times_s` the seconds at which
    they begin, where the video says so."""

    images: tuple[Image.Image, ...]
    indices: tuple[int, ...]
    total: int
    times_s: tuple[float, ...] | None = None


def read_frames(source: Path | bytes | Sequence[Image.Image], count: int) -> Frames:
    """At most `count` frames, from the first to the last, evenly: of an animated GIF, WebP or PNG (a path or its bytes) or of a
    list of pictures. `UsageError` for a count below 1, an empty list, too many pixels or a damaged file; `FileProblem` when the
    path cannot be read."""
    if type(count) is not int or not 1 <= count <= MAX_FRAMES:
        raise UsageError(f"The number of frames is {count!r:.40}; expected 1 to {MAX_FRAMES}.")
    if isinstance(source, bytes):
        return _of_animation(open_container(source), count)
    if isinstance(source, Path):
        return _of_animation(open_container(_read(source)), count)
    images = list(source)
    if not images:
        raise UsageError("The video has no frames; expected at least one picture.")
    indices = sample(len(images), count)
    return Frames(tuple(open_image(images[index]) for index in indices), indices, len(images))


def sample(total: int, count: int) -> tuple[int, ...]:
    """Places of `count` frames among `total`: the first, the last and evenly between, cut to whole numbers."""
    count = min(count, total)
    return tuple(index * (total - 1) // (count - 1) for index in range(count)) if count > 1 else (0,)


def _read(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(MAX_BYTES + 1)
    except OSError as error:
        raise FileProblem(f"{path} cannot be read: {error.strerror}. Name a GIF, WebP or PNG file.") from error


def _of_animation(container: Image.Image, count: int) -> Frames:
    """Frames of a file, one after another: none is left out, since each may change only a part of the one before."""
    images, times_s, now_s = [], [], 0.0
    try:
        total = int(getattr(container, "n_frames", 1))
    except Exception:
        raise _damaged() from None
    indices = sample(total, count)
    if (indices[-1] + 1) * container.width * container.height > MAX_ANIMATION_PIXELS:
        raise UsageError(
            f"The animation has {total:,} frames of {container.width} x {container.height}; "
            f"at most {MAX_ANIMATION_PIXELS:,} pixels in all are decoded. Send fewer or smaller frames."
        )
    wanted = set(indices)
    for index in range(indices[-1] + 1):
        try:
            container.seek(index)
            container.load()
        except Exception:
            raise _damaged() from None
        if index in wanted:
            images.append(container.copy())
            times_s.append(now_s)
        now_s += float(container.info.get("duration") or 0) / 1000
    return Frames(tuple(images), indices, total, tuple(times_s) if now_s else None)


def _damaged() -> UsageError:
    return UsageError("The animation cannot be decoded: it is damaged or cut short. Save it again and send all of it.")
