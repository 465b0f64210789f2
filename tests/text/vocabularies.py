"""Small vocabularies for tests: a byte-level one trained here, in every file format, and the recorded SentencePiece one."""

from __future__ import annotations

import base64
import functools
import json
from pathlib import Path
from typing import Any

from herd.text.byte_level import ALPHABET, to_bytes
from herd.text.tokenizer import Tokenizer, load_tokenizer

GOLDEN = Path(__file__).resolve().parents[1] / "golden" / "text"
CONTROLS = ("<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", "<|eom_id|>")
CONTROLS += ("<|im_start|>", "<|im_end|>", "<|header_start|>", "<|header_end|>", "<|eot|>", "<|eom|>", "<|python_tag|>")
CONTROLS += ("<|python_start|>", "<|python_end|>", "<|image|>", "<|image_start|>", "<|image_end|>", "<|patch|>")
CONTROLS += ("<|tile_x_separator|>", "<|tile_y_separator|>", "<step>")


@functools.cache
def trained() -> tuple[tuple[str, ...], tuple[tuple[str, str], ...]]:
    """(plain tokens, merges) of a byte-level vocabulary trained on the golden texts and this folder's sources."""
    from tokenizers import Tokenizer as Library
    from tokenizers import models, pre_tokenizers, trainers

    library = Library(models.BPE())
    library.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(vocab_size=900, initial_alphabet=list(ALPHABET), show_progress=False)
    texts = [(GOLDEN / "texts.txt").read_text("utf-8"), Path(__file__).read_text("utf-8"), (GOLDEN / "record.py").read_text("utf-8")]
    library.train_from_iterator(texts * 4, trainer)
    model = json.loads(library.to_str())["model"]
    vocab: dict[str, int] = model["vocab"]
    return tuple(sorted(vocab, key=vocab.__getitem__)), tuple((left, right) for left, right in model["merges"])


def gguf(pre: str | None = "smollm", **changes: Any) -> dict[str, Any]:
    """GGUF metadata of the trained vocabulary. `changes` replace or (with None) remove `tokenizer.ggml.` keys."""
    plain, merges = trained()
    values: dict[str, Any] = {
        "model": "gpt2",
        "pre": pre,
        "tokens": [*plain, *CONTROLS],
        "token_type": [1] * len(plain) + [3] * len(CONTROLS),
        "merges": [f"{left} {right}" for left, right in merges],
        "bos_token_id": len(plain),
        "eos_token_id": len(plain) + 1,
        **changes,
    }
    return {f"tokenizer.ggml.{name}": value for name, value in values.items() if value is not None}


def tokenizer(pre: str = "smollm", **changes: Any) -> Tokenizer:
    """The trained vocabulary as a tokenizer."""
    return load_tokenizer(kind="gguf", metadata=gguf(pre, **changes))


def sentencepiece() -> Tokenizer:
    """The recorded small SentencePiece vocabulary."""
    return load_tokenizer(kind="sentencepiece", path=GOLDEN / "small.model")


def huggingface(cutters: dict[str, Any], *, ignore_merges: bool = False, bos: bool = False) -> dict[str, Any]:
    """The trained vocabulary as the content of a `tokenizer.json`."""
    plain, merges = trained()
    single = [{"SpecialToken": {"id": CONTROLS[0], "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}]
    processor = {"type": "TemplateProcessing", "single": single, "pair": single, "special_tokens": {}}
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [{"id": len(plain) + index, "content": text, **flags} for index, text in enumerate(CONTROLS)],
        "normalizer": None,
        "pre_tokenizer": cutters,
        "post_processor": processor if bos else None,
        "decoder": {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True},
        "model": {
            "type": "BPE",
            "ignore_merges": ignore_merges,
            "vocab": {token: index for index, token in enumerate(plain)},
            "merges": [list(pair) for pair in merges],
        },
    }


def ranks() -> dict[bytes, int]:
    """The trained vocabulary in tiktoken's terms."""
    return {to_bytes(token): index for index, token in enumerate(trained()[0])}


def tiktoken_file(tokens: dict[bytes, int]) -> bytes:
    """Ranks as a file of lines."""
    return b"".join(base64.b64encode(token) + b" %d\n" % rank for token, rank in tokens.items())
