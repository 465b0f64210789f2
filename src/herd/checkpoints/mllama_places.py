"""The tables that say where a tile is, from Hugging Face folders of Llama 3.2 Vision.

Meta's files have a vector (or a row for each patch) for each place of a grid of tiles, and a picture of h x w tiles takes the upper
left corner. Hugging Face writes that corner out for each shape of picture: row `1 + number of the shape` holds its tiles one after
another, and zeros for tiles that the picture lacks; row 0, for no picture, is never used. So each place is there several times. All
copies must be alike and all unused parts zero, or no grid says the same; places that no shape reaches become zeros.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np

from herd.checkpoints.sources import Joined, Part, Reshaped
from herd.checkpoints.stored import ByRows, Bytes, Source, StoredTensor
from herd.dtypes import DType
from herd.errors import FileProblem

Shape = tuple[int, int]


def shapes_of_pictures(max_tiles: int) -> list[Shape]:
    """(rows, columns) of tiles that a picture may have, in the order of Hugging Face's tables."""
    return [(rows, columns) for rows in range(1, max_tiles + 1) for columns in range(1, max_tiles // rows + 1)]


def places_of_tiles(table: Source, max_tiles: int, rows: int, width: int) -> Source:
    """`table` [shapes + 1, max_tiles * rows * width] -> [max_tiles^2 * rows, width], for each place of the grid its `rows` rows."""
    shapes = shapes_of_pictures(max_tiles)
    flat = Reshaped(table, ((len(shapes) + 1) * max_tiles * rows, width))

    def slot(shape: int, tile: int) -> Source:
        first = ((shape + 1) * max_tiles + tile) * rows
        return Part(flat, 0, first, first + rows)

    copies: dict[Shape, list[Copy]] = {}
    unused = [Copy(slot(number, tile), f"{h} x {w}") for number, (h, w) in enumerate(shapes) for tile in range(h * w, max_tiles)]
    for number, (h, w) in enumerate(shapes):
        for row, column in itertools.product(range(h), range(w)):
            copies.setdefault((row, column), []).append(Copy(slot(number, row * w + column), f"{h} x {w}"))
    grid = list(itertools.product(range(max_tiles), range(max_tiles)))
    nowhere = [place for place in grid if place not in copies]
    found: dict[Shape, Source] = {place: Place(tuple(those), place) for place, those in copies.items()}
    found |= {place: Nowhere(tuple(unused[index :: len(nowhere)])) for index, place in enumerate(nowhere)}
    return Joined(tuple(found[place] for place in grid), 0)


@dataclass(frozen=True, slots=True)
class Copy:
    """One place's part of the table, and the shape of picture that it is for."""

    part: Source
    shape: str


@dataclass(frozen=True, slots=True)
class _OfCopies(ByRows):
    copies: tuple[Copy, ...]

    @property
    def dtype(self) -> DType:
        return self.copies[0].part.dtype

    @property
    def shape(self) -> tuple[int, ...]:
        return self.copies[0].part.shape

    @property
    def tensors(self) -> tuple[StoredTensor, ...]:
        return self.copies[0].part.tensors


@dataclass(frozen=True, slots=True)
class Place(_OfCopies):
    """A place of the grid, read from the first shape that has it and compared with the others."""

    place: Shape

    def read(self, first: int, last: int) -> Bytes:
        ours = self.copies[0].part.read(first, last)
        for copy in self.copies[1:]:
            if not (copy.part.read(first, last) == ours).all():
                raise FileProblem(
                    f"{self.tensors[0].file.name}: {self.tensors[0].name} has one vector for the tile in row {self.place[0] + 1} and "
                    f"column {self.place[1] + 1} of pictures of {self.copies[0].shape} tiles and another for those of {copy.shape}. "
                    "Llama 3.2 Vision has one vector for each place; a table that was changed after it was written out is not read."
                )
        return ours


@dataclass(frozen=True, slots=True)
class Nowhere(_OfCopies):
    """A place that no shape of picture reaches: zeros, as (some of) what the table says of tiles that pictures lack must be."""

    def read(self, first: int, last: int) -> Bytes:
        ours = self.copies[0].part.read(first, last)
        for copy in self.copies:
            if copy.part.read(first, last).any():
                raise FileProblem(
                    f"{self.tensors[0].file.name}: {self.tensors[0].name} has values for tiles that pictures of {copy.shape} tiles lack. "
                    "Llama 3.2 Vision adds nothing there; such models are not read."
                )
        return ours


@dataclass(frozen=True, slots=True)
class WrittenOut(ByRows):
    """The opposite of `places_of_tiles`: a grid [max_tiles^2 * rows, width] as the table of these folders, a row for each shape."""

    grid: Source
    max_tiles: int
    rows_of_place: int

    @property
    def dtype(self) -> DType:
        return self.grid.dtype

    @property
    def shape(self) -> tuple[int, ...]:
        shapes = len(shapes_of_pictures(self.max_tiles)) + 1
        return (shapes, self.max_tiles * self.rows_of_place * self.grid.shape[1])

    @property
    def tensors(self) -> tuple[StoredTensor, ...]:
        return self.grid.tensors

    def read(self, first: int, last: int) -> Bytes:
        shapes, count = shapes_of_pictures(self.max_tiles), self.rows_of_place
        size = count * self.dtype.row_bytes(self.grid.shape[1])
        out = np.zeros((last - first, self.max_tiles * size), np.uint8)
        for row in range(max(first, 1), last):
            height, width = shapes[row - 1]
            for tile, (line, column) in enumerate(itertools.product(range(height), range(width))):
                place = line * self.max_tiles + column
                data = self.grid.read(place * count, (place + 1) * count)
                out[row - first, tile * size : (tile + 1) * size] = data.reshape(-1)
        return out
