"""Pictures of coloured shapes, drawn here, with what can be said and asked of them: data for models that learn to see.

    drawing(seed, index, size=96)      ->  the picture, its facts, a caption, and questions with answers

A pure function of its arguments. Every picture shows between one and four shapes of one kind and colour, apart from each other, on a
light ground. Held-out pictures are those of another seed; `is_new` tells combinations that a training set left out on purpose.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from herd.data.order import hashed
from herd.records import dataclass

if TYPE_CHECKING:
    from PIL.Image import Image
    from PIL.ImageDraw import ImageDraw

COLOURS: Mapping[str, tuple[int, int, int]] = {
    "red": (214, 40, 40),
    "green": (46, 139, 60),
    "blue": (38, 84, 200),
    "yellow": (240, 196, 25),
    "purple": (128, 48, 160),
    "black": (24, 24, 24),
}
SHAPES = ("circle", "square", "triangle", "star", "cross")
COUNTS = {1: "one", 2: "two", 3: "three", 4: "four"}
_GROUNDS = ((255, 255, 255), (244, 240, 230), (230, 238, 246), (236, 246, 232))
_FINE = 4
"""Pictures are drawn this much larger and made small, so that edges are smooth."""
_KIND, _PLACE = 11, 12


@dataclass(frozen=True, slots=True)
class Drawing:
    """facts: {"shape", "colour", "count"}. questions: (question, answer) pairs, the answer one word."""

    picture: Image
    facts: Mapping[str, Any]
    caption: str
    questions: tuple[tuple[str, str], ...]

    def record(self, picture: str, index: int) -> dict[str, Any]:
        """A line of training data, the picture given by a data: URL or the name of a file: the caption, or one of the questions."""
        asked, answer = (("What is in the picture?", self.caption), *self.questions)[index % (1 + len(self.questions))]
        content = [{"type": "image_url", "image_url": {"url": picture}}, {"type": "text", "text": asked}]
        return {"messages": [{"role": "user", "content": content}, {"role": "assistant", "content": answer}]}


def facts_of(seed: int, index: int) -> dict[str, Any]:
    """What the drawing shows: each shape, colour and count equally often, and in every combination."""
    number = hashed(seed, index, _KIND)
    number, shape = divmod(number, len(SHAPES))
    number, colour = divmod(number, len(COLOURS))
    return {"shape": SHAPES[shape], "colour": tuple(COLOURS)[colour], "count": 1 + number % len(COUNTS)}


def is_new(facts: Mapping[str, Any], share: float, seed: int = 0) -> bool:
    """Whether this combination of shape, colour and count is among the `share` that is left out of training to be asked for later."""
    at = SHAPES.index(facts["shape"]), tuple(COLOURS).index(facts["colour"]), int(facts["count"])
    return hashed(seed, *at) % 1000 < share * 1000


def drawing(seed: int, index: int, size: int = 96) -> Drawing:
    """The drawing of this number, RGB, `size` pixels a side."""
    facts = facts_of(seed, index)
    return Drawing(picture(facts, seed, index, size), facts, caption(facts), questions(facts))


def caption(facts: Mapping[str, Any]) -> str:
    """Such as "three red circles"."""
    return f"{COUNTS[facts['count']]} {facts['colour']} {_plural(facts['shape'], facts['count'])}"


def questions(facts: Mapping[str, Any]) -> tuple[tuple[str, str], ...]:
    """One question for each fact."""
    return (
        ("Which shape is in the picture?", facts["shape"]),
        (f"What colour {'is the shape' if facts['count'] == 1 else 'are the shapes'}?", facts["colour"]),
        ("How many shapes are there?", COUNTS[facts["count"]]),
    )


def picture(facts: Mapping[str, Any], seed: int, index: int, size: int) -> Image:
    """These facts drawn at places, sizes and turns that belong to seed and index."""
    from PIL import Image as Pillow
    from PIL import ImageDraw

    draws = _Numbers(seed, index)
    large = size * _FINE
    made = Pillow.new("RGB", (large, large), _GROUNDS[int(draws.below(len(_GROUNDS)))])
    canvas = ImageDraw.Draw(made)
    quarters = [(0, 0), (1, 0), (0, 1), (1, 1)]
    for _ in range(facts["count"]):
        column, row = quarters.pop(int(draws.below(len(quarters))))  # one shape a quarter: they never touch
        radius = large * (0.13 + draws.below(0.09))
        slack = large / 2 - 2.2 * radius
        centre = (column * large / 2 + 1.1 * radius + draws.below(slack), row * large / 2 + 1.1 * radius + draws.below(slack))
        _draw(canvas, facts["shape"], centre, radius, (draws.below(1) - 0.5) * 0.5, _shaded(COLOURS[facts["colour"]], draws))
    return made.resize((size, size), Pillow.Resampling.LANCZOS)


class _Numbers:
    """Numbers that depend on the key and on how many were drawn before."""

    def __init__(self, *key: int) -> None:
        self._key, self._count = key, 0

    def below(self, most: float) -> float:
        """Evenly from [0, most)."""
        self._count += 1
        return (hashed(*self._key, _PLACE, self._count) >> 11) / (1 << 53) * most


def _draw(canvas: ImageDraw, shape: str, centre: tuple[float, float], radius: float, turn: float, colour: tuple[int, int, int]) -> None:
    x, y = centre
    if shape == "circle":
        canvas.ellipse((x - radius, y - radius, x + radius, y + radius), fill=colour)
        return
    corners = [(x + radius * far * math.sin(angle + turn), y - radius * far * math.cos(angle + turn)) for angle, far in _outline(shape)]
    canvas.polygon(corners, fill=colour)


def _outline(shape: str) -> list[tuple[float, float]]:
    """Corners as (angle from above, distance from the centre in radii)."""
    if shape == "square":
        return [(math.pi / 4 + at * math.pi / 2, 1.0) for at in range(4)]
    if shape == "triangle":
        return [(at * 2 * math.pi / 3, 1.0) for at in range(3)]
    if shape == "star":
        return [(at * math.pi / 5, 1.0 if at % 2 == 0 else 0.4) for at in range(10)]
    narrow = math.atan(1 / 3)  # a cross whose arms are a third as wide as it is
    inner = math.hypot(1, 1) / math.hypot(3, 1)
    return [
        corner
        for at in range(4)
        for corner in (
            (at * math.pi / 2 - narrow, 1.0),
            (at * math.pi / 2 + narrow, 1.0),
            (at * math.pi / 2 + math.pi / 4, inner),
        )
    ]


def _shaded(colour: tuple[int, int, int], draws: _Numbers) -> tuple[int, int, int]:
    """The colour a little lighter or darker."""
    shift = round(draws.below(30)) - 15
    red, green, blue = (min(255, max(0, value + shift)) for value in colour)
    return red, green, blue


def _plural(shape: str, count: int) -> str:
    if count == 1:
        return shape
    return f"{shape}es" if shape.endswith("s") else f"{shape}s"
