"""What people send as pictures: read when it is one, refused in our own words when it is not, before memory is spent on it."""

from __future__ import annotations

import base64
import io
import struct
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from herd.errors import UsageError
from herd.images.decode import MAX_PIXELS, open_image, rgb_pixels
from images.pictures import encoded, noise


def data_url(data: bytes, mime: str = "image/png") -> str:
    return f"data:{mime};base64,{base64.b64encode(data).decode()}"


def png(width: int, height: int, kind: int = 2, depth: int = 8) -> bytes:
    """A PNG whose header declares any size, with almost no pixels."""

    def chunk(name: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    header = struct.pack(">IIBBBBB", width, height, depth, kind, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 16)) + chunk(b"IEND", b"")


@pytest.mark.parametrize(("kind", "mime"), [("PNG", "png"), ("WEBP", "webp"), ("BMP", "bmp"), ("GIF", "gif"), ("JPEG", "jpeg")])
def test_every_format_is_read_from_bytes_and_from_a_data_url(kind: str, mime: str) -> None:
    image = noise(17, 9)
    data = encoded(image, kind, **({"lossless": True} if kind == "WEBP" else {}))
    found = open_image(data)
    assert found.size == (17, 9)
    assert np.array_equal(rgb_pixels(found), rgb_pixels(open_image(data_url(data, f"image/{mime}"))))
    if kind in ("PNG", "WEBP", "BMP"):
        assert np.array_equal(rgb_pixels(found), np.asarray(image))


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "I;16"])
def test_every_mode_of_png_becomes_colours(mode: str) -> None:
    image = Image.fromarray(np.array([[0, 255, 256, 65535]], np.uint16)) if mode == "I;16" else noise(4, 1, mode)
    found = rgb_pixels(open_image(encoded(image)))
    assert found.shape == (1, 4, 3) and found.dtype == np.uint8
    if mode == "I;16":
        assert found[0, :, 0].tolist() == [0, 0, 1, 255]


def test_a_cmyk_photograph_becomes_colours() -> None:
    assert rgb_pixels(open_image(encoded(noise(8, 8, "CMYK"), "JPEG"))).shape == (8, 8, 3)


def test_what_is_transparent_lies_on_white() -> None:
    image = Image.new("RGBA", (2, 1), (0, 0, 0, 0))
    image.putpixel((1, 0), (10, 20, 30, 255))
    assert rgb_pixels(image).tolist() == [[[255, 255, 255], [10, 20, 30]]]
    palette = Image.new("P", (1, 1), 0)
    palette.info["transparency"] = 0
    assert rgb_pixels(palette).tolist() == [[[255, 255, 255]]]


def test_a_photograph_in_bytes_is_turned_upright_and_a_picture_is_taken_as_it_is() -> None:
    image = noise(16, 8)
    exif = Image.Exif()
    exif[0x0112] = 6
    data = encoded(image, exif=exif)
    assert open_image(data).size == (8, 16)
    assert np.array_equal(rgb_pixels(open_image(data)), np.rot90(np.asarray(image), -1))
    assert open_image(Image.open(io.BytesIO(data))).size == (16, 8)


def test_exif_data_that_cannot_be_read_turns_nothing() -> None:
    assert open_image(encoded(noise(16, 8), exif=b"Exif\0\0MM\0*\xff\xff\xff\xff")).size == (16, 8)


def test_of_an_animation_the_first_frame_counts() -> None:
    frames = [Image.new("RGB", (4, 4), colour) for colour in ("red", "green", "blue")]
    for kind in ("GIF", "WEBP", "PNG"):
        data = encoded(frames[0], kind, save_all=True, append_images=frames[1:])
        assert abs(rgb_pixels(open_image(data))[0, 0].astype(int) - (255, 0, 0)).max() <= 3


@pytest.mark.parametrize(
    ("width", "height"), [(65535, 65535), (100_000, 1), (8000, 7000), (1 << 31, 1), (10_000, 9_000), (0, 5)], ids=lambda side: str(side)
)
def test_a_header_that_declares_too_much_is_refused_before_decoding(width: int, height: int) -> None:
    with pytest.raises(UsageError) as caught:
        open_image(png(width, height))
    assert "pixel" in str(caught.value) or "damaged" in str(caught.value)


def test_the_largest_picture_is_not_refused_for_its_size() -> None:
    with pytest.raises(UsageError, match="cut short"):
        open_image(png(10_000, MAX_PIXELS // 10_000))


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "GIF", "BMP"])
def test_a_picture_cut_short_is_refused(kind: str) -> None:
    data = encoded(noise(64, 64), kind)
    for length in {1, 8, 20, len(data) // 2, len(data) - len(data) // 8}:
        with pytest.raises(UsageError, match="cut short"):
            open_image(data[:length])


@pytest.mark.parametrize(
    "data",
    [
        b"<svg xmlns='http://www.w3.org/2000/svg'/>",
        b"<!doctype html><html></html>",
        b"%PDF-1.7",
        b"II*\0\x08\0\0\0\0\0",
        b"P6 1 1 255 abc",
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n",
        b"\0" * 100,
    ],
)
def test_what_is_no_picture_is_refused(data: bytes) -> None:
    with pytest.raises(UsageError, match="not PNG, JPEG, WebP, GIF or BMP"):
        open_image(data)


@pytest.mark.parametrize(
    ("url", "complaint"),
    [
        ("http://example.com/a.png", "not opened"),
        ("file:///etc/passwd", "not opened"),
        ("/etc/passwd", "not opened"),
        ("", "expected a data URL"),
        ("data:image/png;base64", "expected a data URL"),
        ("data:image/svg+xml;base64,AAAA", "says 'image/svg"),
        ("data:text/html;base64,AAAA", "says 'text/html"),
        ("data:,hello", "says ''"),
        ("data:image/png,hello", "not base64"),
        ("data:image/png;charset=utf-8;base64,AAAA", "not base64"),
        ("data:image/png;base64,####", "not valid base64"),
        ("data:image/png;base64,A", "not valid base64"),
        ("data:image/png;base64,AAAA\n", "not valid base64"),
        ("data:image/png;base64,\xe9", "not valid base64"),
        ("data:image/png;base64,", "no bytes"),
        ("data:image/png;base64,AAAA", "cut short"),
    ],
)
def test_a_wrong_data_url_is_refused_by_name(url: str, complaint: str) -> None:
    with pytest.raises(UsageError, match=complaint):
        open_image(url)


def test_bytes_that_are_not_what_the_data_url_announces_are_refused() -> None:
    with pytest.raises(UsageError, match="announces PNG and its bytes are JPEG"):
        open_image(data_url(encoded(noise(4, 4), "JPEG"), "image/png"))


def test_too_many_bytes_are_refused_before_they_are_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("herd.images.decode.MAX_BYTES", 1000)
    for source in (b"x" * 1001, data_url(b"x" * 1400)):
        with pytest.raises(UsageError, match="more than 1,000 bytes"):
            open_image(source)
    assert open_image(encoded(Image.new("RGB", (9, 9)))).size == (9, 9)


@pytest.mark.parametrize("source", [None, 7, ["data:"], {"url": "x"}])
def test_other_types_are_refused(source: object) -> None:
    with pytest.raises(UsageError, match=r"expected a PIL\.Image"):
        open_image(source)  # type: ignore[arg-type]


def test_pixels_of_unknown_range_are_refused() -> None:
    for kind in (np.int32, np.float32):
        with pytest.raises(UsageError, match="convert it to RGB first"):
            rgb_pixels(Image.fromarray(np.zeros((2, 2), kind)))


@pytest.mark.parametrize("mode", ["RGBa", "PA", "LAB", "HSV", "YCbCr", "RGBX"])
def test_rare_modes_become_colours(mode: str) -> None:
    assert rgb_pixels(Image.new(mode, (3, 2))).shape == (2, 3, 3)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "GIF", "BMP"])
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_damaged_files_are_read_or_refused_and_nothing_else(kind: str, data: st.DataObject) -> None:
    body = bytearray(encoded(noise(24, 24), kind))
    for _ in range(data.draw(st.integers(1, 8))):
        body[data.draw(st.integers(0, len(body) - 1))] = data.draw(st.integers(0, 255))
    try:
        pixels = rgb_pixels(open_image(bytes(body)))
    except UsageError as error:
        assert "Error" not in str(error)
    else:
        assert pixels.ndim == 3 and pixels.shape[2] == 3
