"""Tens of thousands of random and adversarial texts, encoded as the official libraries encode them. A million: scripts/tokenizers."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from herd.text.splits import LLAMA3, LLAMA3_SPLIT, LLAMA4_SPLIT, O200K, Split
from herd.text.tokenizer import Tokenizer, load_tokenizer
from herd.text.vocabulary import ByteLevel, Kind, Vocabulary
from text import vocabularies
from text.comparing import NAMES, differences, official, tokens_of
from text.strings import strings
from text.test_native_vocabulary import both

COUNT = 20_000
BYTES = vocabularies.tokenizer("llama-bpe")


@pytest.mark.parametrize(("split", "expression"), [(LLAMA3_SPLIT, LLAMA3), (LLAMA4_SPLIT, O200K)], ids=["llama3", "llama4"])
def test_byte_level_ids_equal_tiktoken(split: Split, expression: str) -> None:
    tiktoken = pytest.importorskip("tiktoken")
    encoding = tiktoken.Encoding("small", pat_str=expression, mergeable_ranks=vocabularies.ranks(), special_tokens={})
    plain, merges = vocabularies.trained()
    tokenizer = Tokenizer(Vocabulary(tokens=plain, merges=merges, style=ByteLevel(split), exceptions=dict[int, Kind]()))
    assert differences(tokenizer, encoding.encode_ordinary, COUNT // 2, seed=1) == []


def test_sentencepiece_ids_equal_sentencepiece() -> None:
    pytest.importorskip("sentencepiece")
    encode = official("llama2", vocabularies.GOLDEN / "small.model")
    assert differences(vocabularies.sentencepiece(), encode, COUNT // 2, seed=2) == []


@pytest.mark.parametrize("name", NAMES)
def test_the_real_vocabularies_equal_the_official_libraries(shared_data: Path, name: str) -> None:
    pytest.importorskip("sentencepiece" if name == "llama2" else "tiktoken")
    path = shared_data / "tokenizers" / name / "tokenizer.model"
    assert differences(load_tokenizer(kind="tiktoken", path=path), official(name, path), COUNT // 20, seed=3) == []


def test_every_text_can_be_encoded_and_every_id_decoded() -> None:
    for tokenizer in (BYTES, vocabularies.tokenizer("smollm"), vocabularies.sentencepiece()):
        for text in strings(500, seed=4):
            assert all(0 <= token < tokenizer.vocab_size for token in tokenizer.encode(text, specials=True))
        everything = range(tokenizer.vocab_size)
        assert isinstance(tokenizer.decode(everything, skip_specials=False), str)


@pytest.mark.parametrize(("unit", "megabytes"), [("a", 10), (" ", 1), ("\n", 1), ("é", 1), ("☺", 1), ("1", 1), ("'", 1), ("▁", 1)])
def test_megabytes_of_one_character_take_linear_time(unit: str, megabytes: int) -> None:
    """By the processor's clock, against a small part of it: quadratic work would take hundreds of times as long."""

    def seconds(tokenizer: Tokenizer, size: int) -> float:
        text = unit * (size // len(unit.encode()))
        started = time.process_time()
        ids = tokenizer.encode(text, bos=False)
        taken = time.process_time() - started
        assert 0 < len(ids) <= len(text.encode()) + 1
        return taken

    for tokenizer in (BYTES,) if megabytes > 1 else (BYTES, vocabularies.sentencepiece()):
        small = seconds(tokenizer, 50_000)
        assert seconds(tokenizer, megabytes * 1_000_000) <= 3 * 20 * megabytes * max(small, 0.005)


@pytest.mark.parametrize(
    ("name", "count", "named"),
    [
        (
            "llama3",
            256,
            {
                "<|begin_of_text|>": 128000,
                "<|finetune_right_pad_id|>": 128004,
                "<|step_id|>": 128005,
                "<|start_header_id|>": 128006,
                "<|eom_id|>": 128008,
                "<|eot_id|>": 128009,
                "<|python_tag|>": 128010,
                "<|image|>": 128011,
                "<|reserved_special_token_2|>": 128012,
                "<|reserved_special_token_245|>": 128255,
            },
        ),
        (
            "llama4",
            2048,
            {
                "<|fim_suffix|>": 200004,
                "<|header_start|>": 200005,
                "<|eom|>": 200007,
                "<|eot|>": 200008,
                "<|python_start|>": 200016,
                "<|python_end|>": 200017,
                "<|finetune_right_pad|>": 200018,
                "<|text_post_train_reserved_special_token_68|>": 200079,
                "<|image_start|>": 200080,
                "<|tile_x_separator|>": 200084,
                "<|tile_y_separator|>": 200085,
                "<|image|>": 200090,
                "<|patch|>": 200092,
                "<|vision_reserved_special_token_1047|>": 201133,
                "<|reasoning_thinking_end|>": 201143,
                "<|reserved_special_token_903|>": 202047,
            },
        ),
        ("llama2", 3, {"<unk>": 0, "<s>": 1, "</s>": 2}),
    ],
)
def test_control_tokens_have_the_published_ids(shared_data: Path, name: str, count: int, named: dict[str, int]) -> None:
    tokenizer = load_tokenizer(kind="tiktoken", path=shared_data / "tokenizers" / name / "tokenizer.model")
    assert len(tokenizer.special_ids) == count
    assert {text: tokenizer.special_ids[text] for text in named} == named


@pytest.mark.parametrize("pre", ["llama-bpe", "llama4", "smollm"])
def test_native_code_gives_the_ids_of_the_library(pre: str) -> None:
    native, library = both(vocabularies.gguf(pre))
    for text in strings(COUNT // 5, seed=5, tokens=tokens_of(BYTES)):
        assert native.encode(text) == library.encode(text), repr(text)
