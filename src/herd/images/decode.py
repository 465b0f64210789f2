"""Bytes of somebody else's picture to a picture: checked before it is decoded, refused in our own words.

open_image("data:image/png;base64,...") -> PIL.Image.Image       rgb_pixels(image) -> uint8 [height, width, 3]

Formats are PNG, JPEG, WebP, GIF and BMP; of an animation the first frame counts. Size and format are read from the header,
and a picture of more than `MAX_PIXELS` is refused before anything is decoded. A photograph in bytes is turned upright by its
EXIF orientation, as `transformers` does when it loads one; a `PIL.Image` is taken as it is.
"""

from __future__ import annotations

import base64
import binascii
import io
import warnings

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from herd.errors import UsageError

MAX_BYTES = 64 << 20
MAX_PIXELS = 50_000_000
MAX_SIDE = 65_535

_FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP")
_NAMES = "PNG, JPEG, WebP, GIF or BMP"
_MIME_TYPES = {
    "image/png": {"PNG"},
    "image/jpeg": {"JPEG", "MPO"},
    "image/jpg": {"JPEG", "MPO"},
    "image/webp": {"WEBP"},
    "image/gif": {"GIF"},
    "image/bmp": {"BMP"},
    "image/x-ms-bmp": {"BMP"},
}
_16_BIT_MODES = {"I;16", "I;16L", "I;16B", "I;16N"}
_COLOUR_MODES = {"1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr", "HSV", "LAB", *_16_BIT_MODES}
_DAMAGED = f"The picture cannot be decoded: it is damaged, cut short or not {_NAMES}. Save it again and send all of it."


def open_image(source: Image.Image | bytes | bytearray | memoryview | str) -> Image.Image:
    """A decoded picture from a `PIL.Image`, the bytes of a file, or a data URL (`data:image/png;base64,...`).

    Paths and network addresses are not opened: open the file and pass its bytes. `UsageError` says what is wrong with the
    source; nothing of the decoding library's own words is in it.
    """
    if isinstance(source, Image.Image):
        check_size(*source.size)
        _load(source)
        return source
    if isinstance(source, str):
        data, expected = _from_data_url(source)
    elif isinstance(source, bytes | bytearray | memoryview):
        data, expected = bytes(source), None
    else:
        raise UsageError(f"A picture is {type(source).__name__}; expected a PIL.Image, the bytes of a file or a data URL.")
    return _upright(_decode(data, expected))


def check_size(width: int, height: int) -> None:
    """`UsageError` for a picture without pixels or with too many."""
    if width < 1 or height < 1:
        raise UsageError(f"The picture is {width} x {height}; a picture has at least one pixel.")
    if width > MAX_SIDE or height > MAX_SIDE or width * height > MAX_PIXELS:
        raise UsageError(
            f"The picture is {width} x {height}; at most {MAX_PIXELS:,} pixels and {MAX_SIDE:,} a side are taken. Send a smaller copy."
        )


def rgb_pixels(image: Image.Image) -> NDArray[np.uint8]:
    """The colours as uint8 [height, width, 3]; what is transparent is laid on white, as `transformers` does.

    Grey of 16 bits keeps its upper 8. `UsageError` for 32-bit integers and floats, whose range nobody knows.
    """
    if image.mode not in _COLOUR_MODES:
        raise UsageError(f"The picture has pixels of mode {image.mode!r:.20}; convert it to RGB first.")
    check_size(*image.size)
    _load(image)
    if image.mode in _16_BIT_MODES:
        grey = (np.asarray(image).astype(np.uint16) >> 8).astype(np.uint8)
        return np.repeat(grey[:, :, None], 3, axis=2)
    if "A" in image.getbands() or image.info.get("transparency") is not None:
        white = Image.new("RGBA", image.size, (255, 255, 255, 255))
        image = Image.alpha_composite(white, image.convert("RGBA"))
    return np.array(image.convert("RGB"))


def _from_data_url(url: str) -> tuple[bytes, set[str]]:
    """The bytes of a data URL, and the formats that its media type allows."""
    head, comma, _ = url[:200].partition(",")
    scheme, _, media = head.partition(":")
    if scheme.lower() != "data" or not comma:
        raise UsageError(
            f"A picture is {url[:40]!r}; expected a data URL (data:image/png;base64,...). Addresses and paths are not opened: "
            "fetch the file and send its bytes."
        )
    kind, *options = media.lower().split(";")
    if kind not in _MIME_TYPES:
        raise UsageError(f"The data URL says {kind[:40]!r}; expected one of {', '.join(_MIME_TYPES)}.")
    if options != ["base64"]:
        raise UsageError("The data URL is not base64; expected data:" + kind + ";base64,...")
    if (len(url) - len(head)) // 4 * 3 > MAX_BYTES:
        raise UsageError(f"The picture has more than {MAX_BYTES:,} bytes. Send a smaller copy.")
    try:
        return base64.b64decode(url[len(head) + 1 :], validate=True), _MIME_TYPES[kind]
    except (binascii.Error, ValueError):
        raise UsageError("The data URL is not valid base64. Encode the whole file, without line breaks or spaces.") from None


def open_container(data: bytes, expected: set[str] | None = None) -> Image.Image:
    """The header of a picture or animation, checked; its pixels are not decoded yet. `expected` are the formats announced."""
    if not data:
        raise UsageError("The picture has no bytes; expected the bytes of a file.")
    if len(data) > MAX_BYTES:
        raise UsageError(f"The picture has more than {MAX_BYTES:,} bytes. Send a smaller copy.")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            image = Image.open(io.BytesIO(data), formats=_FORMATS)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise UsageError(f"The picture has more than {MAX_PIXELS:,} pixels. Send a smaller copy.") from None
    except Exception:
        raise UsageError(_DAMAGED) from None
    if expected is not None and image.format not in expected:
        raise UsageError(f"The data URL announces {'/'.join(sorted(expected))} and its bytes are {image.format}. Announce what they are.")
    check_size(*image.size)
    return image


def _decode(data: bytes, expected: set[str] | None) -> Image.Image:
    image = open_container(data, expected)
    declared = image.size
    _load(image)
    if image.size != declared:
        raise UsageError(_DAMAGED)
    return image


def _load(image: Image.Image) -> None:
    """Decodes the pixels of a picture that was opened, the current frame only."""
    try:
        image.load()
    except Exception:
        raise UsageError(_DAMAGED) from None


def _upright(image: Image.Image) -> Image.Image:
    """Turned as its EXIF orientation says. EXIF data that cannot be read says nothing."""
    try:
        turned: Image.Image | None = ImageOps.exif_transpose(image)
    except Exception:
        return image
    return image if turned is None else turned
