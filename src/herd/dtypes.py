"""One table of number formats: what a weight may be stored as, and how many bytes that takes.

Ids and block sizes are those of the GGUF specification (ggml type table). A *block* format stores `block` consecutive
elements of a row in `block_bytes` bytes; for the plain formats a block is one element. What the bytes mean is defined
in `quant.py`.
"""

from __future__ import annotations

from herd.errors import FileProblem
from herd.records import dataclass


@dataclass(frozen=True, slots=True)
class DType:
    """One storage format. `name` is lower case and is what users write (`q4_1`); `ggml_id` is its number in GGUF files."""

    name: str
    ggml_id: int
    block: int
    block_bytes: int

    @property
    def is_block(self) -> bool:
        """Whether elements are quantised together in blocks."""
        return self.block > 1

    @property
    def bits_per_weight(self) -> float:
        return 8.0 * self.block_bytes / self.block

    def row_bytes(self, columns: int) -> int:
        """Bytes of a row of `columns` elements. `FileProblem` if the row does not hold whole blocks."""
        if columns % self.block:
            raise FileProblem(f"{self.name} stores {self.block} elements a block; a row of {columns} does not hold whole blocks.")
        return columns // self.block * self.block_bytes


F32 = DType("f32", 0, 1, 4)
F16 = DType("f16", 1, 1, 2)
BF16 = DType("bf16", 30, 1, 2)
Q4_0 = DType("q4_0", 2, 32, 18)
Q4_1 = DType("q4_1", 3, 32, 20)
Q5_0 = DType("q5_0", 6, 32, 22)
Q5_1 = DType("q5_1", 7, 32, 24)
Q8_0 = DType("q8_0", 8, 32, 34)
Q2_K = DType("q2_k", 10, 256, 84)
Q3_K = DType("q3_k", 11, 256, 110)
Q4_K = DType("q4_k", 12, 256, 144)
Q5_K = DType("q5_k", 13, 256, 176)
Q6_K = DType("q6_k", 14, 256, 210)
IQ4_NL = DType("iq4_nl", 20, 32, 18)
IQ4_XS = DType("iq4_xs", 23, 256, 136)

ALL = (F32, F16, BF16, Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, Q2_K, Q3_K, Q4_K, Q5_K, Q6_K, IQ4_NL, IQ4_XS)
BY_NAME = {dtype.name: dtype for dtype in ALL}
BY_GGML_ID = {dtype.ggml_id: dtype for dtype in ALL}
PLAIN = tuple(dtype for dtype in ALL if not dtype.is_block)
BLOCK = tuple(dtype for dtype in ALL if dtype.is_block)

# Numbers that mean something only with their scales, as some files keep them. Never the format of a leaf.
F8_E4M3 = DType("f8_e4m3", -1, 1, 1)
I8 = DType("i8", 24, 1, 1)
