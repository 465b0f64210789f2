"""Values that break readers, and damage that knows no format."""

from __future__ import annotations

import random

INTEGERS = (
    0, 1, 2, 3, 7, 8, 9, 10, 12, 31, 32, 64, 255, 256, 65535, 65536, 2**24, 2**24 + 1, 2**31 - 1, 2**31, 2**32 - 1, 2**32, 2**53,
    2**60, 2**61, 2**61 - 1, 2**62, 2**63 - 1, 2**63, 2**64 - 32, 2**64 - 8, 2**64 - 4, 2**64 - 3, 2**64 - 2, 2**64 - 1, -1, -2**31, -2**63,
)  # fmt: skip
TEXTS = (b"../", b"\0", b"\xff", b"\xed\xa0\x80", b"\xf0\x9f\x98\x80", b"{", b"blk.0.", b"general.", b"llama.", b"\x1b[2J", b" ", b"%s")


def damage(data: bytes, header_end: int, rng: random.Random) -> bytes:
    """Cut, grow, insert, remove, flip: mostly in the header."""
    where = rng.randrange(len(data)) if rng.random() < 0.3 else rng.randrange(min(len(data), header_end))
    match rng.randrange(6):
        case 0:
            return data[:where]
        case 1:
            return data + rng.choice((b"\0", b"\0" * 32, b"\xff" * 7))
        case 2:
            return data[:where] + rng.randbytes(rng.choice((1, 4, 8, 32))) + data[where:]
        case 3:
            return data[:where] + data[where + rng.choice((1, 4, 8, 32)) :]
        case 4:
            flipped = bytearray(data)
            for _ in range(rng.choice((1, 2, 8))):
                end = len(data) if rng.random() < 0.2 else min(len(data), header_end)
                flipped[rng.randrange(end)] ^= 1 << rng.randrange(8)
            return bytes(flipped)
        case _:
            length = rng.choice((4, 8, 32))
            other = rng.randrange(max(1, header_end - length))
            return data[:where] + data[other : other + length] + data[where + length :]
