"""Tokenizers, templates and files beside the weights survive every way from layout to layout."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import herd
from herd.checkpoints import open_checkpoint
from herd.convert import convert
from herd.convert.tokens import tokenizer_json
from herd.dtypes import BF16, F32
from herd.text.byte_level import from_bytes
from herd.text.splits import SPLITS
from herd.text.tokenizer import Tokenizer, load_tokenizer
from herd.text.vocabulary import ByteLevel, Kind, Vocabulary
from meta_files import write_meta
from tiny import random_leaves, tiny_llama
from tiny_files import write_huggingface

ROOT = Path(__file__).resolve().parent.parent
STORIES = ROOT / "data" / "stories260K" / "stories260K.bin"
TEXTS = [
    "Once upon a time, there was a little girl named Lily.",
    "  two spaces,\n\n\tlines and\ttabs   ",
    "Zażółć gęślą jaźń — 你好,世界 🦙🦙 \u200d e\u0301",
    "def f(x):\n        return x ** 2  # 12345 67890",
    "<|begin_of_text|> is text here, [INST] too </s>",
    "",
    " " * 40,
]


def tokenizer_at(path: Path) -> Tokenizer:
    checkpoint = open_checkpoint(path)
    source = checkpoint.tokenizer
    assert source is not None
    known = checkpoint.config.vocab_size
    return load_tokenizer(kind=source.kind, path=source.path, metadata=source.metadata, config=source.config, model_vocab=known)


def chain(first: Path, folder: Path, *layouts: str) -> list[Path]:
    """The model through each layout in turn."""
    paths = [first]
    for number, layout in enumerate(layouts):
        path = folder / (f"{number}.gguf" if layout == "gguf" else f"{number}-{layout}")
        convert(paths[-1], path, to=layout)
        paths.append(path)
    return paths


def test_a_real_small_model_tells_the_same_story_in_every_layout(tmp_path: Path) -> None:
    paths = chain(STORIES, tmp_path, "hf", "gguf", "meta", "gguf", "hf")
    stories = []
    for path in paths:
        with herd.load(path, backend="reference") as model:
            stories.append(model.generate("Once upon a time", max_tokens=24, temperature=0).text)
    assert len(set(stories)) == 1 and len(stories[0]) > 40


def test_opening_a_file_of_ours_leaves_its_vocabulary_as_it_is_stored(tmp_path: Path) -> None:
    """Native code reads it from the stored bytes; a list of 100,000 texts would take longer and stay in memory."""
    (path,) = chain(STORIES, tmp_path, "gguf")[1:]
    checkpoint = open_checkpoint(path)
    assert checkpoint.tokenizer is not None
    metadata: Any = checkpoint.tokenizer.metadata
    assert metadata.stored("tokenizer.ggml.tokens") is not None
    checkpoint.close()


WAYS = [("hf", "gguf", "hf", "meta"), ("gguf", "meta", "hf"), ("meta", "gguf", "hf", "gguf")]
SLOW = [pytest.param(release, way, marks=pytest.mark.slow) for release in ("llama2", "llama3", "llama4") for way in WAYS]


@pytest.mark.parametrize(("release", "layouts"), [("llama2", ("gguf", "hf")), *SLOW], ids=str)
def test_metas_tokenizers_keep_every_id_on_every_way(tmp_path: Path, shared_data: Path, release: str, layouts: tuple[str, ...]) -> None:
    model = shared_data / "tokenizers" / release / "tokenizer.model"
    size = {"llama2": 32000, "llama3": 128256, "llama4": 202048}[release]
    cfg = tiny_llama(width=4, num_layers=1, num_heads=1, num_kv_heads=1, head_width=4, ffn_width=4, vocab_size=size, context_length=4096)
    first = write_meta(tmp_path / "first", cfg, random_leaves(cfg, 1, BF16))
    (first / "tokenizer.model").write_bytes(model.read_bytes())
    paths = chain(first, tmp_path, *layouts)
    before = tokenizer_at(paths[0])
    for path in paths[1:]:
        after = tokenizer_at(path)
        assert (after.bos_id, after.adds_bos) == (before.bos_id, before.adds_bos)
        assert dict(after.special_ids) == dict(before.special_ids), path
        assert after.stop_ids == before.stop_ids, path
        for text in TEXTS:
            assert after.encode(text) == before.encode(text), (path, text)
            assert after.decode(before.encode(text)) == text


def test_a_tokenizer_json_of_ours_is_one_of_theirs(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    (path,) = chain(STORIES, tmp_path, "hf")[1:]
    theirs = transformers.AutoTokenizer.from_pretrained(path)
    ours = tokenizer_at(path)
    for text in TEXTS[:4]:
        assert theirs(text)["input_ids"] == ours.encode(text)


@pytest.mark.parametrize("first", [0, 3, 256], ids=["before all others", "between", "after all others"])
def test_special_tokens_keep_their_ids_wherever_they_are(first: int) -> None:
    """SmolLM2's come first, Llama 3's last. The library counts on from the other tokens for those that its model does not name."""
    tokenizers = pytest.importorskip("tokenizers")
    plain = [from_bytes(bytes([byte])) for byte in range(256)]
    specials = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    kinds = {first + number: Kind.CONTROL for number in range(len(specials))}
    tokens = [*plain[:first], *specials, *plain[first:]]
    vocabulary = Vocabulary(tokens=tokens, merges=[], style=ByteLevel(SPLITS["smollm"]), exceptions=kinds)
    theirs = tokenizers.Tokenizer.from_str(tokenizer_json(vocabulary).decode())
    assert [theirs.token_to_id(token) for token in tokens] == list(range(len(tokens)))
    ids = theirs.encode("<|im_start|>user 12<|im_end|>").ids
    assert (ids[0], ids[-1]) == (first + 1, first + 2) and theirs.decode(ids, skip_special_tokens=False) == "<|im_start|>user 12<|im_end|>"


def given(folder: Path, **files: str) -> Path:
    """A model with files beside it. Its vocabulary is that of bytes."""
    cfg = tiny_llama(width=32, num_layers=1, num_heads=4, num_kv_heads=2, head_width=8, ffn_width=32, vocab_size=512)
    write_huggingface(folder, cfg, random_leaves(cfg, 1, F32))
    convert(STORIES, folder.with_name("stories"), to="hf")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).write_bytes((folder.with_name("stories") / name).read_bytes())
    for name, text in files.items():
        (folder / name).write_text(text)
    return folder


FILES: dict[str, Any] = {
    "LICENSE.txt": "the licence",
    "NOTICE": "the notice",
    "USE_POLICY.md": "the policy",
    "README.md": "the card",
    "generation_config.json": json.dumps({"do_sample": True, "temperature": 0.6, "top_p": 0.9, "eos_token_id": [2]}),
}


def test_licence_notice_card_and_advice_go_along(tmp_path: Path) -> None:
    first = given(tmp_path / "first", **FILES)
    template = "{% for message in messages %}<<{{ message['role'] }}>>{{ message['content'] }}{% endfor %}"
    (first / "chat_template.jinja").write_text(template)
    paths = chain(first, tmp_path, "meta", "gguf", "hf")
    for path in (paths[1], paths[3]):
        assert {name: (path / name).read_text() for name in FILES} == FILES
    for path in paths:
        checkpoint = open_checkpoint(path)
        assert checkpoint.chat_template == template
        assert checkpoint.sampling_defaults == pytest.approx({"temperature": 0.6, "top_p": 0.9})
        assert checkpoint.stop_ids == (2,)


def test_what_cannot_go_along_is_said(tmp_path: Path) -> None:
    report = convert(given(tmp_path / "first"), tmp_path / "new", to="meta")
    assert any("has no licence file" in note for note in report.notes)
    assert any("tokenizer.model cannot hold this vocabulary" in note for note in report.notes)


def test_the_line_that_a_licence_wants_in_every_copy_is_written(tmp_path: Path) -> None:
    """Of a release that the folder's name tells, the Notice and what is missing by name."""
    report = convert(given(tmp_path / "Llama-3.2-1B-Instruct"), tmp_path / "llama.gguf", to="gguf")
    assert any("LICENSE is missing" in note and "Llama 3.2 Community License" in note for note in report.notes)
    assert open_checkpoint(tmp_path / "llama.gguf").texts["NOTICE"].startswith("Llama 3.2 is licensed under the Llama 3.2 Community")
    (tmp_path / "older").mkdir()
    first = given(tmp_path / "older" / "llama-2-7b", **{"LICENSE.txt": "its text"})
    report = convert(first, tmp_path / "new", to="hf")
    assert "LLAMA 2 Community License" in (tmp_path / "new" / "NOTICE").read_text() and not any("LICENSE" in note for note in report.notes)


def test_rows_without_tokens_become_unused_tokens(tmp_path: Path) -> None:
    cfg = tiny_llama(width=32, num_layers=1, num_heads=4, num_kv_heads=2, head_width=8, ffn_width=32, vocab_size=520)
    first = write_huggingface(given(tmp_path / "first"), cfg, random_leaves(cfg, 1, F32))
    paths = chain(first, tmp_path, "gguf", "hf")
    assert open_checkpoint(paths[1]).config.vocab_size == 520
    before, after = tokenizer_at(paths[0]), tokenizer_at(paths[2])
    assert [after.encode(text) for text in TEXTS] == [before.encode(text) for text in TEXTS]


def test_a_gguf_file_may_only_carry_plain_files(tmp_path: Path) -> None:
    from herd.checkpoints.gguf_keys import FILES as PREFIX
    from herd.errors import FileProblem
    from tiny_files import write_gguf

    cfg = tiny_llama(width=32, num_layers=1, num_heads=4, num_kv_heads=2, head_width=8, ffn_width=32, vocab_size=64, norm_eps=2.0**-17)
    for name in ("../../LICENSE", "LICENSE/../../x", "evil.py", "config.json", ""):
        path = write_gguf(tmp_path / "x.gguf", cfg, random_leaves(cfg, 1, F32), {PREFIX + name: "text"})
        with pytest.raises(FileProblem, match="allowed is the text of a licence"):
            open_checkpoint(path)


def test_scores_made_from_merges_give_the_same_merges() -> None:
    from herd.convert.tokens import scores_of
    from herd.text.scores import merges_from_scores
    from herd.text.tokenizer import read_vocabulary

    vocabulary = read_vocabulary("llama2.c", STORIES.with_name("tok512.bin"), {}, {})
    again = merges_from_scores(vocabulary.tokens, scores_of(vocabulary), vocabulary.exceptions, "test")
    assert again == list(vocabulary.merges)
    assert np.isfinite(scores_of(vocabulary)).all()
