"""Files as PyTorch writes them, made by hand: a pickle program out of pieces, storages, and the zip around them."""

from __future__ import annotations

import io
import struct
import zipfile
from collections.abc import Mapping

GLOBALS = {"tensor": b"ctorch._utils\n_rebuild_tensor_v2\n", "ordered": b"ccollections\nOrderedDict\n"}


def text(value: str) -> bytes:
    """A text."""
    data = value.encode()
    return b"X" + struct.pack("<I", len(data)) + data


def number(value: int) -> bytes:
    """A whole number."""
    return b"J" + struct.pack("<i", value) if -(2**31) <= value < 2**31 else b"\x8a\x08" + struct.pack("<q", value)


def storage(key: str = "0", kind: str = "FloatStorage", count: int = 6) -> bytes:
    """A reference to a storage."""
    return b"(" + text("storage") + b"ctorch\n" + kind.encode() + b"\n" + text(key) + text("cpu") + number(count) + b"tQ"


def tensor(
    shape: tuple[int, ...] = (2, 3), strides: tuple[int, ...] = (3, 1), offset: int = 0, at: bytes = b"", rest: bytes = b""
) -> bytes:
    """A tensor over the storage `at`."""
    sizes = b"(" + b"".join(map(number, shape)) + b"t"
    steps = b"(" + b"".join(map(number, strides)) + b"t"
    hooks = GLOBALS["ordered"] + b")R"
    return GLOBALS["tensor"] + b"(" + (at or storage()) + number(offset) + sizes + steps + (rest or b"\x89" + hooks) + b"tR"


def program(body: bytes) -> bytes:
    """A whole pickle of protocol 2."""
    return b"\x80\x02" + body + b"."


def state(**values: bytes) -> bytes:
    """A dictionary of names to values."""
    return program(b"}(" + b"".join(text(name) + value for name, value in values.items()) + b"u")


def pth(
    pickle: bytes, storages: Mapping[str, bytes] | None = None, members: Mapping[str, bytes] | None = None, root: str = "archive"
) -> bytes:
    """The zip file; without `storages` it has one of six zeros."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as zipped:
        zipped.writestr(f"{root}/data.pkl", pickle)
        for key, data in ({"0": bytes(24)} if storages is None else storages).items():
            zipped.writestr(f"{root}/data/{key}", data)
        for name, data in {f"{root}/version": b"3\n", f"{root}/byteorder": b"little", **(members or {})}.items():
            zipped.writestr(name, data)
    return out.getvalue()
