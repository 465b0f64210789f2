"""Meta's `tokenizer.model` of Llama 3 and 4: a line per token, base64 of its bytes, a space, its rank.

The rank is the id and the order of merging. The file has no control tokens; they follow the last rank, and which they are is
told by the number of ranks: 128,000 is Llama 3 (all releases), 200,000 is Llama 4.

`tokenizers` merges by pairs, this format by what a pair makes. Every way to make a token from two others is given to it, in the
order of the token's rank: the pairs that can ever meet merge in exactly the file's order (of the ways to make one token, only
one is met, whatever the text, because everything inside it has merged before).
"""

from __future__ import annotations

import binascii
from collections.abc import Iterator

from herd.errors import FileProblem
from herd.text.byte_level import from_bytes
from herd.text.splits import LLAMA3_SPLIT, LLAMA4_SPLIT, Split
from herd.text.vocabulary import TOKENS_MAX, ByteLevel, Kind, Vocabulary, check_tokens


def read_tiktoken(data: bytes, source: str) -> Vocabulary:
    """The vocabulary in `data`. `FileProblem` names the line that is wrong."""
    ranks = _ranks(data, source)
    split, specials = _family(len(ranks), source)
    plain = [from_bytes(token) for token in ranks]
    tokens = plain + specials
    check_tokens(tokens, source)
    exceptions = dict.fromkeys(range(len(plain), len(tokens)), Kind.CONTROL)
    ids = {token: index for index, token in enumerate(tokens)}
    ends = [ids[name] for name in ("<|end_of_text|>", "<|eom_id|>", "<|eot_id|>", "<|eom|>", "<|eot|>") if name in ids]
    return Vocabulary(
        tokens=tokens,
        merges=_merges(plain),
        style=ByteLevel(split),
        exceptions=exceptions,
        bos_id=ids["<|begin_of_text|>"],
        adds_bos=True,
        eos_ids=tuple(ends),
        source=source,
    )


def looks_like_tiktoken(data: bytes) -> bool:
    """Whether the first line is a token and a rank."""
    token, _, rank = data[:1024].split(b"\n", 1)[0].partition(b" ")
    try:
        return bool(token) and binascii.a2b_base64(token, strict_mode=True) != b"" and rank.strip().isdigit()
    except ValueError:
        return False


def _ranks(data: bytes, source: str) -> list[bytes]:
    ranks: list[bytes] = []
    decode = binascii.a2b_base64
    for line in data.splitlines():
        token, _, rank = line.partition(b" ")
        try:
            ranks.append(decode(token, strict_mode=True))
            ok = int(rank) == len(ranks) - 1 and ranks[-1] != b""
        except ValueError:
            ok = False
        if not ok:
            raise FileProblem(
                f"{source}: line {len(ranks)} is {line[:80]!r}; expected base64 of a token, a space, and its rank, counting up from 0."
            )
        if len(ranks) > TOKENS_MAX:
            raise FileProblem(f"{source}: more than {TOKENS_MAX} tokens.")
    if len({token for token in ranks if len(token) == 1}) != 256:
        raise FileProblem(f"{source}: not every single byte is a token, so some text could not be written.")
    return ranks


def _merges(plain: list[str]) -> list[tuple[str, str]]:
    known = frozenset(plain)
    return [(token[:at], token[at:]) for token in plain for at in range(1, len(token)) if token[:at] in known and token[at:] in known]


def _family(count: int, source: str) -> tuple[Split, list[str]]:
    if count == 128_000:
        return LLAMA3_SPLIT, list(_llama3_specials())
    if count == 200_000:
        return LLAMA4_SPLIT, list(_llama4_specials())
    raise FileProblem(
        f"{source}: {count} ranks; Llama 3 has 128000 and Llama 4 has 200000. Which control tokens belong to others is not in the file."
    )


def _llama3_specials() -> Iterator[str]:
    yield from ("<|begin_of_text|>", "<|end_of_text|>", "<|reserved_special_token_0|>", "<|reserved_special_token_1|>")
    yield from ("<|finetune_right_pad_id|>", "<|step_id|>", "<|start_header_id|>", "<|end_header_id|>")
    yield from ("<|eom_id|>", "<|eot_id|>", "<|python_tag|>", "<|image|>")
    yield from _reserved("", 2, 246)


def _llama4_specials() -> Iterator[str]:
    yield from ("<|begin_of_text|>", "<|end_of_text|>", "<|fim_prefix|>", "<|fim_middle|>", "<|fim_suffix|>")
    yield from ("<|header_start|>", "<|header_end|>", "<|eom|>", "<|eot|>", "<|step|>")
    yield from _reserved("text_post_train_", 0, 6)
    yield from ("<|python_start|>", "<|python_end|>", "<|finetune_right_pad|>")
    yield from _reserved("text_post_train_", 8, 69)
    yield from ("<|image_start|>", "<|image_end|>")
    yield from _reserved("vision_", 0, 2)
    yield from ("<|tile_x_separator|>", "<|tile_y_separator|>")
    yield from _reserved("vision_", 2, 6)
    yield "<|image|>"
    yield from _reserved("vision_", 6, 7)
    yield "<|patch|>"
    yield from _reserved("vision_", 7, 1048)
    yield from _reserved("reasoning_", 0, 8)
    yield from ("<|reasoning_thinking_start|>", "<|reasoning_thinking_end|>")
    yield from _reserved("", 0, 904)


def _reserved(kind: str, first: int, end: int) -> Iterator[str]:
    for number in range(first, end):
        yield f"<|{kind}reserved_special_token_{number}|>"
