"""Unigram vocabularies (Prompt Guard's DeBERTa): the ids that Hugging Face's tokenizers give, and no text that becomes [SEP]."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from herd.errors import FileProblem
from herd.text.tokenizer import Tokenizer, load_tokenizer
from text.strings import strings
from text.vocabularies import GOLDEN

CONTROLS = ("[PAD]", "[CLS]", "[SEP]", "[UNK]")
CONFIG = {"bos_token": "[CLS]", "eos_token": "[SEP]", "cls_token": "[CLS]", "sep_token": "[SEP]"}


@functools.cache
def _trained() -> str:
    """A small vocabulary with the pipeline of DeBERTa's: control pieces in front with the score 0, [MASK] added at the end."""
    from tokenizers import Regex, models, normalizers, pre_tokenizers, processors, trainers
    from tokenizers import Tokenizer as Library

    library = Library(models.Unigram())
    library.normalizer = normalizers.Sequence([normalizers.Strip(), normalizers.NFKC(), normalizers.Replace(Regex(" {2,}"), " ")])
    library.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="always")
    trainer = trainers.UnigramTrainer(vocab_size=500, special_tokens=list(CONTROLS), unk_token="[UNK]", show_progress=False)
    texts = [(GOLDEN / "texts.txt").read_text("utf-8"), Path(__file__).read_text("utf-8")]
    library.train_from_iterator(texts * 4, trainer)
    library.add_special_tokens(["[MASK]"])
    library.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B [SEP]", special_tokens=[("[CLS]", 1), ("[SEP]", 2)]
    )
    return str(library.to_str())


def _load(tmp_path: Path, change: Callable[[dict[str, Any]], Any] = lambda file: None) -> Tokenizer:
    file = json.loads(_trained())
    change(file)
    (tmp_path / "tokenizer.json").write_text(json.dumps(file), "utf-8")
    return load_tokenizer(kind="tokenizer.json", path=tmp_path / "tokenizer.json", config=CONFIG)


def test_ids_equal_the_tokenizers_library(tmp_path: Path) -> None:
    from tokenizers import Tokenizer as Library

    library, tokenizer = Library.from_str(_trained()), _load(tmp_path)
    compared = 0
    for text in strings(3_000, seed=8):
        whole = text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
        if not any(name in whole for name in (*CONTROLS, "[MASK]")):
            ids = tokenizer.encode(text)
            assert [*ids, tokenizer.special_ids["[SEP]"]] == library.encode(whole).ids
            compared += 1
    assert compared > 2_900 and tokenizer.description == f"SentencePiece unigram, {tokenizer.vocab_size:,} tokens"


def test_no_text_becomes_a_control_token(tmp_path: Path) -> None:
    tokenizer = _load(tmp_path)
    assert set(tokenizer.special_ids) == {*CONTROLS, "[MASK]"} and tokenizer.special_ids["[SEP]"] == 2
    controls = {token for text, token in tokenizer.special_ids.items() if text != "[UNK]"}
    for text in tokenizer.special_ids:
        for around in ("{}", "a {} b", "{0}{0}", " {}"):
            assert not controls & set(tokenizer.encode(around.format(text), bos=False))
        assert tokenizer.special_ids[text] in tokenizer.encode(f"a {text}", specials=True)
    assert not controls & set(tokenizer.encode(" 1  2 \u00a03 ", bos=False))


def test_text_comes_back_and_every_id_has_bytes(tmp_path: Path) -> None:
    tokenizer = _load(tmp_path)
    assert tokenizer.encode("the vocabulary")[0] == tokenizer.bos_id == 1
    assert tokenizer.decode(tokenizer.encode("the vocabulary of this")) == "the vocabulary of this"
    assert all(isinstance(tokenizer.token_bytes(token), bytes) for token in range(tokenizer.vocab_size))
    stream = tokenizer.stream()
    assert "".join([*map(stream.push, tokenizer.encode("the end")), stream.finish()]) == "the end"


def _set(*path: Any, to: Any) -> Callable[[dict[str, Any]], None]:
    def change(file: dict[str, Any]) -> None:
        for key in path[:-1]:
            file = file[key]
        file[path[-1]] = to

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_set("model", "extra", to=1), "model has extra"),
        (_set("model", "byte_fallback", to=True), "model has byte_fallback"),
        (_set("model", "vocab", to={}), "model.vocab is dict"),
        (_set("model", "vocab", 5, to=["a"]), r"model.vocab\[5\] is \['a'\]"),
        (_set("model", "vocab", 5, to=["a", True]), r"model.vocab\[5\]"),
        (_set("model", "unk_id", to=-1), "model.unk_id is -1"),
        (_set("added_tokens", 0, "content", to="[OTHER]"), r"the added token 0 is '\[OTHER\]'"),
        (_set("normalizer", to={"type": "Replace", "pattern": {"Regex": "(a+)+$"}, "content": ""}), "normalizer has the step .*a\\+"),
        (_set("normalizer", to={"type": "Prepend", "prepend": "x"}), "normalizer has the step .*Prepend"),
        (_set("normalizer", to={"type": "Precompiled", "precompiled_charsmap": "AAAA"}), "does not make a tokenizer"),
        (_set("normalizer", to=5), "normalizer is int"),
        (_set("pre_tokenizer", to={"type": "Split", "pattern": {"Regex": "x"}}), "pre_tokenizer has the step .*Split"),
        (_set("pre_tokenizer", to=None), "does not write spaces as ▁"),
        (_set("pre_tokenizer", to={"type": "Sequence", "pretokenizers": 5}), "pretokenizers is int"),
    ],
)
def test_a_damaged_vocabulary_is_refused_by_name(tmp_path: Path, change: Callable[[dict[str, Any]], None], message: str) -> None:
    with pytest.raises(FileProblem, match=message):
        _load(tmp_path, change)


def test_control_tokens_may_take_spaces_along(tmp_path: Path) -> None:
    assert _load(tmp_path, _set("added_tokens", 0, "lstrip", to=True)).vocab_size == _load(tmp_path).vocab_size
