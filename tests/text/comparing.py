"""Our tokenizers beside the official libraries on the real vocabulary files: used by a test and by `scripts/tokenizers`."""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from herd.text.splits import LLAMA3, O200K
from herd.text.tokenizer import Tokenizer, load_tokenizer
from text.strings import strings

NAMES = ("llama2", "llama3", "llama4")
Encode = Callable[[str], Sequence[int]]


def official(name: str, path: Path) -> Encode:
    """What the official library makes of a text, without BOS and without looking for control tokens."""
    if name == "llama2":
        import sentencepiece

        processor: Any = sentencepiece.SentencePieceProcessor(model_file=str(path))
        return lambda text: processor.encode(_whole(text))
    import tiktoken
    from tiktoken.load import load_tiktoken_bpe

    expression = LLAMA3 if name == "llama3" else O200K
    encoding = tiktoken.Encoding(name, pat_str=expression, mergeable_ranks=load_tiktoken_bpe(str(path)), special_tokens={})
    return encoding.encode_ordinary


def _whole(text: str) -> str:
    """sentencepiece takes no unpaired surrogates; they stand for what `tiktoken` makes of them."""
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")


def tokens_of(tokenizer: Tokenizer) -> list[str]:
    """Texts of a part of the vocabulary."""
    step = max(1, tokenizer.vocab_size // 5_000)
    return [text for token in range(0, tokenizer.vocab_size, step) if (text := tokenizer.decode([token]))]


def differences(tokenizer: Tokenizer, encode: Encode, count: int, seed: int) -> list[tuple[str, list[int], list[int]]]:
    """(text, ours, theirs) of texts that are encoded differently."""
    found = []
    for text in strings(count, seed, tokens_of(tokenizer)):
        ours, theirs = tokenizer.encode(text, bos=False), list(encode(text))
        if ours != theirs:
            found.append((text, ours, theirs))
    return found


def main(arguments: list[str]) -> int:
    """The command; returns its exit code."""
    parser = argparse.ArgumentParser(prog="scripts/tokenizers", description="Compares tokenizers with the official libraries.")
    parser.add_argument("names", nargs="*", default=NAMES, metavar="NAME", help=f"of {', '.join(NAMES)}; all if none is given")
    parser.add_argument("--count", type=int, default=1_000_000, help="texts per tokenizer")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args(arguments)
    root = Path(os.environ.get("HERD_SHARED", Path(__file__).resolve().parents[2].parent / "shared")) / "data" / "tokenizers"
    if not root.is_dir():
        print(f"no vocabulary files at {root}; name the folder above data/ with HERD_SHARED", file=sys.stderr)
        return 2
    failed = False
    for name in given.names:
        path = root / name / "tokenizer.model"
        started = time.monotonic()
        found = differences(load_tokenizer(kind="tiktoken", path=path), official(name, path), given.count, given.seed)
        failed = failed or bool(found)
        for text, ours, theirs in found[:20]:
            print(f"{name}: {text!r}\n  ours   {ours}\n  theirs {theirs}", file=sys.stderr)
        seconds = round(time.monotonic() - started, 1)
        print(json.dumps({"tokenizer": name, "texts": given.count, "seed": given.seed, "differences": len(found), "seconds": seconds}))
    return int(failed)
