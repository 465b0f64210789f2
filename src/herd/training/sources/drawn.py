"""Drawings as a source of pretraining: questions about pictures and their answers, in the chat format of Llama 4.

Pictures are prepared as the model's own release prepares them. The answer and the token that ends it carry loss.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from herd.backends.base import Placed
from herd.data.drawings import Drawing, drawing
from herd.data.reading import Place
from herd.data.samples import Chat
from herd.data.tokenising import Tokenising
from herd.errors import UsageError
from herd.images.pixels import Picture, prepare
from herd.models.architecture import PictureShape, seeing
from herd.models.llama4 import Llama4Config
from herd.text.formats.choose import choose_format
from herd.text.messages import Image, Message, Role, Text
from herd.text.tokenizer import Tokenizer
from herd.training.student.batches import Document

QUESTION = "What is in the picture?"
HELD_OUT = 1
"""Drawings with seed 2 s are learned, those with 2 s + 1 measured on."""


class Drawings:
    """The source. `UsageError` for a model that sees nothing, or a tokenizer without the control tokens of Llama 4's chats."""

    def __init__(self, name: str, tokenizer: Tokenizer, cfg: Any, seed: int) -> None:
        if not isinstance(cfg, Llama4Config) or cfg.vision is None:
            raise UsageError(f"The data {name!r} has pictures, and the model sees none: set model.vision.width.", param="data")
        self.name = name
        self._cfg, self._vision, self._seed = cfg, cfg.vision, seed
        chat_format = choose_format(tokenizer, None, hint="llama4")
        grid = (1, 1, self._vision.tile_rows)
        self._tokenising = Tokenising(tokenizer, chat_format, tiles=lambda _: grid)
        self._longest = 0

    def learned(self, position: int, length: int) -> list[Document]:
        """As many drawings as a sequence holds."""
        count = self._per_sequence(length)
        return [self.document(drawing(2 * self._seed, position * count + each, self._vision.tile)) for each in range(count)]

    def held_out(self, length: int, tokens: int) -> Iterator[list[Document]]:
        count = self._per_sequence(length)
        for first in range(max(1, tokens // length)):
            yield [self.document(drawing(2 * self._seed + HELD_OUT, first * count + each, self._vision.tile)) for each in range(count)]

    def document(self, drawn: Drawing) -> Document:
        """A drawing's question and answer, with its picture."""
        user = Message(Role.USER, (Image(drawn.picture), Text(QUESTION)))
        chat = Chat(Place(Path("drawings"), 1), (user, Message(Role.ASSISTANT, drawn.caption)))
        (example,) = self._tokenising.examples(chat)
        return Document(
            example.tokens, example.weights, self.placed(example.tokens, prepare("llama4", drawn.picture, tile=self._vision.tile))
        )

    def placed(self, tokens: tuple[int, ...], picture: Picture) -> tuple[Placed, ...]:
        """The picture with the positions of what stands for it."""
        model = seeing(self._cfg)
        assert model is not None, "a model that sees"
        shape = PictureShape(len(picture.pixels), self._vision.tile, self._vision.tile, picture.rows, picture.columns)
        return tuple(Placed(picture, where) for where in model.picture_positions(self._cfg, tokens, [shape]))

    def _per_sequence(self, length: int) -> int:
        """Drawings of a sequence, reckoned with the longest of a few answers."""
        if not self._longest:
            self._longest = max(len(self.document(drawing(0, index, self._vision.tile)).tokens) for index in range(16))
        if length < self._longest:
            raise UsageError(f"A drawing takes {self._longest} tokens, and a sequence has {length}.", param="sequence")
        return length // self._longest
