"""How byte-level vocabularies cut text into pieces before merging: one table, by the name that GGUF files use.

Every regular expression here is linear on long runs of one class (the `(?!\\S)` alternative gives back one character).
Expressions from files are never run: a file's own expression must be one of these, else the file is refused.
"""

from __future__ import annotations

from enum import Enum
from typing import TYPE_CHECKING

from herd.errors import FileProblem
from herd.records import dataclass

if TYPE_CHECKING:
    from tokenizers.pre_tokenizers import PreTokenizer

GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
LLAMA3 = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
O200K = "|".join(
    (
        r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?",
        r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?",
        r"\p{N}{1,3}",
        r" ?[^\s\p{L}\p{N}]+[\r\n/]*",
        r"\s*[\r\n]+",
        r"\s+(?!\S)",
        r"\s+",
    )
)
TEKKEN = "|".join(
    (
        r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+",
        r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*",
        r"\p{N}",
        r" ?[^\s\p{L}\p{N}]+[\r\n/]*",
        r"\s*[\r\n]+",
        r"\s+(?!\S)",
        r"\s+",
    )
)


class Step(Enum):
    """One way of cutting."""

    SINGLE_DIGITS = "single digits"
    GPT2 = GPT2
    LLAMA3 = LLAMA3
    O200K = O200K
    TEKKEN = TEKKEN


@dataclass(frozen=True, slots=True)
class Split:
    """The steps, applied in order to each piece of the step before. `name` is what messages and `herd show` say."""

    name: str
    steps: tuple[Step, ...]
    ignore_merges: bool = False
    """A piece that is a token as a whole is that token, even where merging would not get there."""
    adds_bos: bool = False
    """What a GGUF file without `add_bos_token` means."""
    slices: bool = False
    """Long text is cut as Meta's tokenizers do (see `slices.py`)."""


_GPT2 = Split("gpt-2", (Step.GPT2,))
_SMOLLM = Split("smollm", (Step.SINGLE_DIGITS, Step.GPT2))
LLAMA3_SPLIT = Split("llama-bpe", (Step.LLAMA3,), ignore_merges=True, adds_bos=True, slices=True)
LLAMA4_SPLIT = Split("llama4", (Step.O200K,), adds_bos=True, slices=True)

SPLITS: dict[str, Split] = {
    "gpt-2": _GPT2,
    "smollm": _SMOLLM,
    "starcoder": _SMOLLM,
    "refact": _SMOLLM,
    "minerva-7b": _SMOLLM,
    "llama-bpe": LLAMA3_SPLIT,
    "llama3": LLAMA3_SPLIT,
    "llama-v3": LLAMA3_SPLIT,
    "falcon3": Split("falcon3", (Step.LLAMA3,), ignore_merges=True, adds_bos=True),
    "tekken": Split("tekken", (Step.TEKKEN,), ignore_merges=True, adds_bos=True),
    "llama4": LLAMA4_SPLIT,
    "gpt-4o": Split("gpt-4o", (Step.O200K,)),
}


def split_by_name(name: str) -> Split:
    """The split that `tokenizer.ggml.pre` names. `FileProblem` lists the known ones."""
    try:
        return SPLITS[name]
    except KeyError:
        raise FileProblem(
            f"tokenizer.ggml.pre is {name!r}, a way of splitting text that is not known here; known are"
            f" {', '.join(sorted(SPLITS))}. Another split would give wrong token ids without a sign, so the file is refused."
        ) from None


def pre_tokenizer(split: Split) -> PreTokenizer:
    """The split as an object of the `tokenizers` library, ending in the byte-level alphabet."""
    from tokenizers import Regex, pre_tokenizers

    steps: list[PreTokenizer] = []
    for step in split.steps:
        if step is Step.SINGLE_DIGITS:
            steps.append(pre_tokenizers.Digits(individual_digits=True))
        elif step is Step.GPT2:
            steps.append(pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True))
        else:
            steps.append(pre_tokenizers.Split(Regex(step.value), "isolated"))
    if split.steps[-1:] != (Step.GPT2,):
        steps.append(pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False))
    whole: PreTokenizer = pre_tokenizers.Sequence(steps)
    return whole
