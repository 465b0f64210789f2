"""Random numbers that depend on a key and on nothing else, so that a run which begins again in the middle draws what it would have."""

from __future__ import annotations

from hashlib import blake2b

import torch


def generator(*key: int | str, device: torch.device | str = "cpu") -> torch.Generator:
    """A generator of its own for this key: (seed, what for, step, ...)."""
    digest = blake2b("\0".join(map(str, key)).encode(), digest_size=8).digest()
    made = torch.Generator(device)
    made.manual_seed(int.from_bytes(digest, "little") >> 1)
    return made
