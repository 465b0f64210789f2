"""Pictures of coloured shapes with words about them, made as they are needed: data whose every answer is known.

    drawing(seed, index) -> Drawing(picture, shape="circle", colour="red", count=3, ...)

Between one and four shapes of one kind and colour lie on a light ground, each in a quarter of its own, of any size that fits and
anywhere in it. What is drawn, and each pixel of it, comes from the seed and the index alone. Two seeds share no drawings: so one seed is
learned from and another measured on.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Mapping
from math import cos, pi, sin

from PIL import Image, ImageDraw

from herd.records import dataclass

SHAPES = ("circle", "square", "triangle", "star", "cross")
COLOURS: Mapping[str, tuple[int, int, int]] = {
    "red": (214, 40, 40),
    "green": (40, 160, 60),
    "blue": (40, 80, 210),
    "yellow": (235, 200, 30),
    "purple": (140, 50, 170),
    "black": (20, 20, 20),
}
COUNTS = ("one", "two", "three", "four")
PLURALS = {"cross": "crosses"}
QUESTION = "What is in the picture?"
_FINER = 4
"""A drawing is made so many times larger and made small, which smooths its edges."""


@dataclass(frozen=True, slots=True)
class Drawing:
    """A picture, what is on it, and the words: `caption` as a text would have it, `question` and `answer` as a chat would."""

    picture: Image.Image
    shape: str
    colour: str
    count: int
    question: str
    answer: str

    @property
    def caption(self) -> str:
        return f"A picture of {self.answer}."


def drawing(seed: int, index: int, side: int = 64) -> Drawing:
    """Drawing `index` of the series `seed`, `side` x `side` pixels."""
    drawn = random.Random(int.from_bytes(hashlib.blake2b(f"{seed} drawing {index}".encode(), digest_size=16).digest(), "little"))
    shape, colour, count = drawn.choice(SHAPES), drawn.choice(list(COLOURS)), drawn.randint(1, len(COUNTS))
    ground = tuple(drawn.randint(225, 255) for _ in range(3))
    large = side * _FINER
    picture = Image.new("RGB", (large, large), ground)
    pen = ImageDraw.Draw(picture)
    tint = tuple(max(0, min(255, value + drawn.randint(-15, 15))) for value in COLOURS[colour])
    for quarter in drawn.sample(range(4), count):
        half = large / 2
        radius = half * drawn.uniform(0.28, 0.46)
        x, y = (half * place + drawn.uniform(radius, half - radius) for place in (quarter % 2, quarter // 2))
        _draw(pen, shape, x, y, radius, tint)
    named = shape if count == 1 else PLURALS.get(shape, f"{shape}s")
    answer = f"{COUNTS[count - 1]} {colour} {named}"
    return Drawing(picture.resize((side, side), Image.Resampling.BOX), shape, colour, count, QUESTION, answer)


def _draw(pen: ImageDraw.ImageDraw, shape: str, x: float, y: float, radius: float, tint: tuple[int, ...]) -> None:
    """A shape that fits into the circle of this radius."""
    match shape:
        case "circle":
            pen.ellipse((x - radius, y - radius, x + radius, y + radius), tint)
        case "square":
            side = radius * 0.8
            pen.rectangle((x - side, y - side, x + side, y + side), tint)
        case "triangle":
            pen.polygon([(x + radius * sin(turn), y - radius * cos(turn)) for turn in (0, 2 * pi / 3, 4 * pi / 3)], tint)
        case "star":
            corners = [(radius if each % 2 == 0 else radius * 0.42, pi * each / 5) for each in range(10)]
            pen.polygon([(x + length * sin(turn), y - length * cos(turn)) for length, turn in corners], tint)
        case _:
            arm = radius * 0.32
            pen.rectangle((x - radius, y - arm, x + radius, y + arm), tint)
            pen.rectangle((x - arm, y - radius, x + arm, y + radius), tint)
