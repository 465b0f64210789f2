"""What can and cannot be said of a model that was announced and never published: its totals, and nothing that needs a shape."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from herd.planner.units import size

if TYPE_CHECKING:
    from herd.family.release import Release

_WORDS = {"million": 1e6, "billion": 1e9, "trillion": 1e12}
NOT_KNOWN = (
    "layers, widths, heads and which layers have experts, so no keys and values, no split over devices, no activations",
    "the context, the number formats and files it would come in",
    "how fast it would be: active weights bound it, but not how they are shared",
)


def said_of(release: Release) -> dict[str, list[str]]:
    """Three lists of sentences: what was announced, what follows from that alone, and what is not known."""
    announced = [f"{what}: {value}" for what, value in release.announced.items()]
    follows = []
    total, active = _number(release.announced.get("parameters", "")), _number(release.announced.get("active parameters", ""))
    if total is not None:
        sizes = ", ".join(f"{size(total * bits / 8)} at {bits:g} bits" for bits in (16, 8, 4.5))
        follows.append(f"about {sizes} a weight, for the weights alone")
    if active is not None:
        follows.append(
            f"about {2 * active / 1e9:,.0f} billion operations for each token, and {size(active)} read for it at 8 bits when it is alone"
        )
    return {"announced": announced, "follows": follows, "not known": list(NOT_KNOWN)}


def _number(text: str) -> float | None:
    """The number in "nearly 2 trillion"."""
    found = re.search(r"([0-9.]+)\s*(million|billion|trillion)", text)
    return None if found is None else float(found[1]) * _WORDS[found[2]]
