"""Code Llama's infilling (7B and 13B, base and Instruct, and 70B base): what stands between a beginning and an end.

    prefix first   <s> ▁<PRE> prefix ▁<SUF> suffix ▁<MID>
    suffix first   <s> ▁<PRE> ▁<SUF> suffix ▁<MID> prefix

The answer ends with `▁<EOT>`. The suffix is encoded without the space that this vocabulary puts before every text.
"""

from __future__ import annotations

from typing import final

from herd.errors import UsageError
from herd.records import dataclass
from herd.text.tokenizer import Tokenizer

_BEFORE = "☺"
"""A character to which nothing joins: what follows it is encoded as the inside of a text."""


@final
@dataclass(frozen=True)
class Infilling:
    """One model's vocabulary as a format for infilling. `UsageError` if it was not made for it."""

    tokenizer: Tokenizer

    def __post_init__(self) -> None:
        missing = [name for name in ("PRE", "SUF", "MID", "EOT") if self._found(name) is None]
        if missing or self.tokenizer.bos_id is None:
            raise UsageError(
                f"this model's vocabulary has no token {missing[0] if missing else 'BOS'}, so it was not taught to fill in; Code Llama"
                " 7B and 13B (base and Instruct) and 70B base were.",
                param="suffix",
            )

    def render(self, prefix: str, suffix: str, *, suffix_first: bool = False) -> list[int]:
        """Ids of the prompt whose answer is what stands between the two texts. Neither text can become a control token."""
        bos = self.tokenizer.bos_id
        assert bos is not None
        before, after = self.tokenizer.encode(prefix, bos=False), self._inside(suffix)
        pre, suf, mid = (self._id(name) for name in ("PRE", "SUF", "MID"))
        if {pre, suf, mid, self._id("EOT")} & {*before, *after}:
            raise UsageError("the prefix or the suffix contains a token of infilling itself, such as ▁<PRE>. Write it differently.")
        return [bos, pre, suf, *after, mid, *before] if suffix_first else [bos, pre, *before, suf, *after, mid]

    @property
    def stop_ids(self) -> frozenset[int]:
        """Ids that end the answer."""
        return self.tokenizer.stop_ids | {self._id("EOT")}

    def _inside(self, text: str) -> list[int]:
        encode = self.tokenizer.encode
        return encode(_BEFORE + text, bos=False)[len(encode(_BEFORE, bos=False)) :]

    def _id(self, name: str) -> int:
        found = self._found(name)
        assert found is not None
        return found

    def _found(self, name: str) -> int | None:
        return self.tokenizer.id_of(f"▁<{name}>")
