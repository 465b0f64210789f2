"""Every file format gives the ids of the library that defines it, and damage is refused by name."""

from __future__ import annotations

import functools
import itertools
import json
import struct
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from herd.errors import FileProblem
from herd.text.byte_level import from_bytes
from herd.text.json_file import read_tokenizer_json
from herd.text.sentencepiece_file import read_llama2c, read_sentencepiece
from herd.text.splits import LLAMA3, LLAMA3_SPLIT, O200K, Split, Step
from herd.text.tiktoken_file import _merges, read_tiktoken
from herd.text.tokenizer import Tokenizer, load_tokenizer
from herd.text.vocabulary import ByteLevel, Vocabulary
from text import vocabularies
from text.vocabularies import GOLDEN

TEXT = st.text(st.characters(exclude_categories=("Cs",)), max_size=60) | st.text("abtheof  \n\t'sLl123éß日🙂<|>/", max_size=60)
PROPERTY = settings(deadline=None, max_examples=200)
BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
GPT2 = {**BYTE_LEVEL, "use_regex": True}
DIGITS = {"type": "Digits", "individual_digits": True}


def _split(expression: str) -> dict[str, Any]:
    return {"type": "Split", "pattern": {"Regex": expression}, "behavior": "Isolated", "invert": False}


def _sequence(*steps: dict[str, Any]) -> dict[str, Any]:
    return {"type": "Sequence", "pretokenizers": list(steps)}


def _json(content: dict[str, Any], config: dict[str, Any] | None = None) -> Tokenizer:
    return Tokenizer(read_tokenizer_json(json.dumps(content).encode(), config or {}, "tokenizer.json"))


# GGUF


@pytest.mark.parametrize(
    ("pre", "cutters"),
    [
        ("smollm", _sequence(DIGITS, GPT2)),
        ("gpt-2", GPT2),
        ("llama-bpe", _sequence(_split(LLAMA3), BYTE_LEVEL)),
        ("llama4", _sequence(_split(O200K), BYTE_LEVEL)),
    ],
)
def test_gguf_and_tokenizer_json_equal_hugging_face(pre: str, cutters: dict[str, Any]) -> None:
    from tokenizers import Tokenizer as Library

    content = vocabularies.huggingface(cutters, ignore_merges=pre == "llama-bpe")
    library = Library.from_str(json.dumps({**content, "added_tokens": []}))
    ours = (vocabularies.tokenizer(pre), _json(content))

    @PROPERTY
    @given(TEXT)
    def equal(text: str) -> None:
        expected = library.encode(text).ids
        assert [tokenizer.encode(text, bos=False) for tokenizer in ours] == [expected, expected]

    equal()


def test_smollm_splits_digits_one_by_one() -> None:
    tokenizer = vocabularies.tokenizer("smollm")
    assert [tokenizer.token_bytes(token) for token in tokenizer.encode(" 123")] == [b" ", b"1", b"2", b"3"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": "rwkv"}, "tokenizer.ggml.model is 'rwkv'"),
        ({"model": None}, "tokenizer.ggml.model is missing"),
        ({"pre": "jais-9"}, "'jais-9', a way of splitting text that is not known here; known are"),
        ({"pre": None}, "tokenizer.ggml.pre is missing"),
        ({"pre": "default"}, "none that is recognised by its content"),
        ({"tokens": [], "token_type": []}, "vocabulary is empty"),
        ({"tokens": ["a", 7]}, r"tokens\[1\] is 7"),
        ({"tokens": ["a", ""]}, r"tokens\[1\] is ''"),
        ({"tokens": "abc"}, "tokens is str; expected a list"),
        ({"token_type": [1]}, "token_type has 1 entries for"),
        ({"merges": None}, "merges is missing"),
        ({"merges": ["a"]}, r"merges\[0\] is 'a'"),
        ({"merges": ["a b", "a b c"]}, r"merges\[1\] is 'a b c'"),
        ({"merges": ["zq qz"]}, "merge 0 joins 'zq' and 'qz', but 'zq' is not a token"),
        ({"bos_token_id": 5_000_000}, "bos token is 5000000"),
        ({"eos_token_id": -1}, "eos token is -1"),
        ({"eos_token_id": "x"}, "eos_token_id is 'x'"),
        ({"add_bos_token": 7}, "add_bos_token is 7"),
        ({"novelty": 1}, "tokenizer.ggml.novelty, which is not known"),
    ],
)
def test_a_damaged_gguf_vocabulary_is_refused_by_name(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(FileProblem, match=message):
        load_tokenizer(kind="gguf", metadata=vocabularies.gguf(**{"pre": "smollm", **changes}))


def test_doubled_tokens_and_unknown_kinds_are_refused() -> None:
    metadata = vocabularies.gguf()
    metadata["tokenizer.ggml.tokens"][5] = metadata["tokenizer.ggml.tokens"][4]
    with pytest.raises(FileProblem, match="tokens 4 and 5 are both"):
        load_tokenizer(kind="gguf", metadata=metadata)
    metadata = vocabularies.gguf()
    metadata["tokenizer.ggml.token_type"][3] = 9
    with pytest.raises(FileProblem, match=r"token_type\[3\] is 9"):
        load_tokenizer(kind="gguf", metadata=metadata)
    metadata = vocabularies.gguf()
    metadata["tokenizer.ggml.tokens"][400] = "two words"
    metadata["tokenizer.ggml.merges"] = []
    with pytest.raises(FileProblem, match="token 400 is 'two words', which is not written in the byte-level alphabet"):
        load_tokenizer(kind="gguf", metadata=metadata)


def _spaced(**changes: Any) -> dict[str, Any]:
    """The small SentencePiece vocabulary as GGUF metadata."""
    vocabulary = read_sentencepiece((GOLDEN / "small.model").read_bytes(), "small.model")
    tokens = list(vocabulary.tokens)
    runs = {token: -1e9 for token in tokens if not token.strip("▁") and len(token) > 1}
    values = {
        "model": "llama",
        "tokens": tokens,
        "scores": [runs.get(token, -float(index)) for index, token in enumerate(tokens)],
        "token_type": [int(vocabulary.exceptions.get(index, 1)) for index in range(len(tokens))],
        "bos_token_id": 1,
        "eos_token_id": 2,
        **changes,
    }
    return {f"tokenizer.ggml.{name}": value for name, value in values.items() if value is not None}


def test_sentencepiece_style_gguf_equals_sentencepiece() -> None:
    tokenizer = load_tokenizer(kind="gguf", metadata=_spaced())
    recorded = json.loads((GOLDEN / "small.json").read_text("utf-8"))
    assert [tokenizer.encode(text, bos=False) for text in recorded["texts"]] == recorded["ids"]
    assert tokenizer.encode("a")[0] == 1 and tokenizer.eos_ids == (2,)
    without_types = load_tokenizer(kind="gguf", metadata=_spaced(token_type=None))
    assert without_types.encode("héllo 日") == tokenizer.encode("héllo 日")


def test_a_file_may_say_that_no_space_is_put_before_text() -> None:
    tokenizer = load_tokenizer(kind="gguf", metadata=_spaced(add_space_prefix=False))
    assert tokenizer.decode(tokenizer.encode("the")) == "the" and tokenizer.decode(tokenizer.encode(" the")) == " the"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"scores": [0.0]}, "1 scores for 707 tokens"),
        ({"scores": [float("nan")] * 707}, "score of token 0 is nan"),
        ({"scores": [0.0] * 707}, "have the same score"),
        ({"pre": "llama-bpe"}, "beside tokenizer.ggml.model 'llama'"),
        ({"remove_extra_whitespaces": True}, "remove_extra_whitespaces is true"),
        ({"precompiled_charsmap": [1]}, "precompiled_charsmap is set"),
    ],
)
def test_a_damaged_sentencepiece_style_gguf_is_refused_by_name(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(FileProblem, match=message):
        load_tokenizer(kind="gguf", metadata=_spaced(**changes))


@pytest.mark.parametrize("name", ["<0xZZ>", "<0x-1>", "<0x1>", "<0x0g>"])
def test_a_byte_token_that_is_no_byte_is_refused(name: str) -> None:
    metadata = _spaced()
    metadata["tokenizer.ggml.tokens"][7] = name
    with pytest.raises(FileProblem, match="token 7 is a byte token written"):
        load_tokenizer(kind="gguf", metadata=metadata)


@pytest.mark.parametrize(
    ("token", "message"),
    [
        ("a" * 3_000_000, "token 400 has 3000000 characters; at most 1024"),
        ("▁" * 512, "token 400 is a run of 512 spaces; at most 256"),
    ],
)
def test_a_token_too_long_to_merge_in_reasonable_time_is_refused_at_once(token: str, message: str) -> None:
    metadata = _spaced()
    metadata["tokenizer.ggml.tokens"][400] = token
    with pytest.raises(FileProblem, match=message):
        load_tokenizer(kind="gguf", metadata=metadata)


# SentencePiece


def test_a_sentencepiece_model_equals_sentencepiece() -> None:
    tokenizer = vocabularies.sentencepiece()
    recorded = json.loads((GOLDEN / "small.json").read_text("utf-8"))
    assert [tokenizer.encode(text, bos=False) for text in recorded["texts"]] == recorded["ids"]


def test_random_text_equals_sentencepiece() -> None:
    library = pytest.importorskip("sentencepiece").SentencePieceProcessor(model_file=str(GOLDEN / "small.model"))
    tokenizer = vocabularies.sentencepiece()

    @PROPERTY
    @given(TEXT | st.text(" ▁ath", max_size=60))
    def equal(text: str) -> None:
        assert tokenizer.encode(text, bos=False) == library.encode(text)

    equal()


def test_every_truncation_of_a_sentencepiece_model_is_refused_or_whole() -> None:
    data = (GOLDEN / "small.model").read_bytes()
    for end in (0, 1, 2, 5, 100, 3_333, 9_000, len(data) - 1):
        with pytest.raises(FileProblem):
            read_sentencepiece(data[:end], "small.model")


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"\x0a\xff\xff\xff\xff\xff\xff\xff\xff\xff\x7f", "longer than 64 bits"),
        (b"\x0a\xff\xff\xff\xff\x0f", "reaches byte"),
        (b"\x0b", "wire type 3"),
        (b"\x0a\x03\x0a\x01\xff", "not UTF-8"),
        (b"\x0a\x05\x0a\x01a\x18\x09", "kind 9"),
        (b"\x0a\x03\x0a\x01a", "is not BPE"),
    ],
)
def test_damaged_protocol_buffers_are_refused(data: bytes, message: str) -> None:
    with pytest.raises(FileProblem, match=message):
        read_sentencepiece(data, "tokenizer.model")


@settings(deadline=None, max_examples=300)
@given(st.integers(0, 10_000), st.binary(min_size=1, max_size=4))
def test_a_changed_sentencepiece_model_loads_or_is_refused_and_never_crashes(at: int, change: bytes) -> None:
    data = bytearray((GOLDEN / "small.model").read_bytes())
    data[at : at + len(change)] = change
    try:
        Tokenizer(read_sentencepiece(bytes(data), "small.model")).encode("the end  日")
    except FileProblem as problem:
        assert "small.model" in str(problem)


def test_llama2c_tokens_equal_the_sentencepiece_model_they_come_from() -> None:
    vocabulary = read_sentencepiece((GOLDEN / "small.model").read_bytes(), "small.model")
    scores = _spaced()["tokenizer.ggml.scores"]
    data = struct.pack("<i", 16)
    for index, token in enumerate(vocabulary.tokens):
        text = {1: "\n<s>\n", 2: "\n</s>\n"}.get(index, token.replace("▁", " ")).encode()
        data += struct.pack("<fi", scores[index], len(text)) + text
    tokenizer = Tokenizer(read_llama2c(data, "tok.bin"))
    recorded = json.loads((GOLDEN / "small.json").read_text("utf-8"))
    assert [tokenizer.encode(text, bos=False) for text in recorded["texts"]] == recorded["ids"]
    for damaged in (data[:-1], data[:9], data[:3], data + b"\0\0\0\0\xff\xff\xff\x7f"):
        with pytest.raises(FileProblem, match=r"tok\.bin"):
            read_llama2c(damaged, "tok.bin")


# tiktoken


def _from_ranks(ranks: dict[bytes, int], split: Split) -> Tokenizer:
    plain = [from_bytes(token) for token in ranks]
    return Tokenizer(Vocabulary(tokens=plain, merges=_merges(plain), style=ByteLevel(split), exceptions={}))


@pytest.mark.parametrize(("split", "expression"), [(LLAMA3_SPLIT, LLAMA3), (Split("llama4", (Step.O200K,)), O200K)])
def test_ranks_equal_tiktoken_with_tokens_that_merging_does_not_reach(split: Split, expression: str) -> None:
    tiktoken = pytest.importorskip("tiktoken")
    ranks = vocabularies.ranks()
    extra = (" Việt".encode(), b"qxz", "日本語".encode()) if split.ignore_merges else ()
    ranks |= {token: len(ranks) + index for index, token in enumerate(extra)}
    official = tiktoken.Encoding(name="small", pat_str=expression, mergeable_ranks=ranks, special_tokens={})
    tokenizer = _from_ranks(ranks, split)
    for token in extra:
        assert tokenizer.encode(token.decode()) == [ranks[token]]

    @PROPERTY
    @given(TEXT | st.sampled_from([" Việt qxz", "x 日本語", "I'LL'S"]))
    def equal(text: str) -> None:
        assert tokenizer.encode(text) == official.encode_ordinary(text)

    equal()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda lines: lines[:-1], "ranks; Llama 3 has 128000"),
        (lambda lines: [*lines[:9], b"!!!! 9", *lines[10:]], "line 9 is"),
        (lambda lines: [*lines[:9], b"YWI=", *lines[10:]], "line 10 is"),
        (lambda lines: [*lines[:9], *lines[10:]], "line 10 is"),
        (lambda lines: [lines[0], lines[0].replace(b" 0", b" 1"), *lines[2:]], "not every single byte|are both|line"),
        (lambda lines: [*lines[:9], lines[9] + b"x", *lines[10:]], "line 10 is"),
    ],
)
def test_a_damaged_list_of_ranks_is_refused_by_line(change: Any, message: str) -> None:
    lines = vocabularies.tiktoken_file(vocabularies.ranks()).splitlines()
    with pytest.raises(FileProblem, match=message):
        read_tiktoken(b"\n".join(change(lines)), "tokenizer.model")


def test_a_rank_with_a_token_of_a_million_bytes_is_refused_at_once() -> None:
    tokens = [bytes((byte,)) for byte in range(256)] + [b"x" * 1_000_000] + [b"x%d" % rank for rank in range(257, 128_000)]
    with pytest.raises(FileProblem, match="token 256 has 1000000 characters; at most 1024"):
        read_tiktoken(vocabularies.tiktoken_file({token: rank for rank, token in enumerate(tokens)}), "tokenizer.model")


def test_a_tokenizer_model_is_recognised_by_content(tmp_path: Path) -> None:
    ranks, foreign = tmp_path / "ranks.model", tmp_path / "foreign.model"
    ranks.write_bytes(vocabularies.tiktoken_file(vocabularies.ranks()))
    with pytest.raises(FileProblem, match="Llama 3 has 128000"):
        load_tokenizer(kind="sentencepiece", path=ranks)
    assert load_tokenizer(kind="tiktoken", path=GOLDEN / "small.model").vocab_size == 707
    foreign.write_bytes(b"\x89PNG\r\n")
    with pytest.raises(FileProblem, match="neither a list of tokens and ranks"):
        load_tokenizer(kind="tiktoken", path=foreign)
    with pytest.raises(FileProblem, match="cannot be read"):
        load_tokenizer(kind="tiktoken", path=tmp_path / "absent")


# tokenizer.json


def test_bos_and_eos_come_from_the_config_and_the_post_processor() -> None:
    content = vocabularies.huggingface(_sequence(_split(LLAMA3), BYTE_LEVEL), bos=True)
    first = len(content["model"]["vocab"])
    tokenizer = _json(content, {"eos_token": {"content": "<|end_of_text|>"}, "eos_token_id": [first + 4, first + 5]})
    assert (tokenizer.bos_id, tokenizer.eos_ids) == (first, (first + 1, first + 4, first + 5))
    assert tokenizer.encode("a")[0] == first
    assert _json(content, {"bos_token": "<|begin_of_text|>", "add_bos_token": False}).encode("a")[0] != first


def test_sentencepiece_style_json_equals_hugging_face() -> None:
    from tokenizers import Tokenizer as Library

    vocabulary = read_sentencepiece((GOLDEN / "small.model").read_bytes(), "small.model")
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    prepend = {"type": "Prepend", "prepend": "▁"}
    replace = {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}
    model = {"type": "BPE", "unk_token": "<unk>", "fuse_unk": True, "byte_fallback": True, "merges": [list(m) for m in vocabulary.merges]}
    content = {
        "added_tokens": [{"id": index, "content": text, **flags} for index, text in enumerate(("<unk>", "<s>", "</s>"))],
        "model": {**model, "vocab": {token: index for index, token in enumerate(vocabulary.tokens)}},
    }
    metaspace = {"type": "Metaspace", "replacement": "▁", "split": False}
    for normalizer, cutter in (
        ({"type": "Sequence", "normalizers": [prepend, replace]}, None),
        (None, {**metaspace, "prepend_scheme": "first"}),
        (None, {**metaspace, "prepend_scheme": "always"}),
        (None, {**metaspace, "prepend_scheme": "never"}),
    ):
        whole = {**content, "normalizer": normalizer, "pre_tokenizer": cutter}
        library, ours = Library.from_str(json.dumps(whole)), _json(whole, {"bos_token": "<s>"})
        for text in ("the end", " the  end", "a</s>b </s> c", "日<s>", ""):
            assert ours.encode(text, bos=False, specials=True) == library.encode(text).ids, (text, normalizer, cutter)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c["model"].update(type="WordPiece"), "only BPE is known"),
        (lambda c: c["model"].update(dropout=0.1), "model.dropout is 0.1"),
        (lambda c: c.update(surprise=1), "surprise is not known"),
        (lambda c: c.update(normalizer={"type": "NFC"}), "the normalizer is NFC"),
        (lambda c: c.update(pre_tokenizer=_sequence(_split("(a+)+$"), BYTE_LEVEL)), "which is not one of those known"),
        (lambda c: c.update(pre_tokenizer=None), "some text could not be written"),
        (lambda c: c["model"]["vocab"].update(hole=5_000), "hole at"),
        (lambda c: c["model"]["vocab"].update(again=3), "same id to two tokens"),
        (lambda c: c["model"]["vocab"].update({"!": "x"}), "no whole number"),
        (lambda c: c["model"].update(merges=[["a"]]), r"merges\[0\]"),
        (lambda c: c["model"].update(merges=None), "merges is NoneType"),
        (lambda c: c["added_tokens"][0].update(id=-1), r"added_tokens\[0\] has id -1"),
        (lambda c: c["added_tokens"][0].update(content=""), r"added_tokens\[0\]"),
        (lambda c: c["added_tokens"][0].update(lstrip=True), "has lstrip"),
        (lambda c: c["added_tokens"][0].update(id=3), "id 3 is"),
        (lambda c: c.update(model=[]), "model is list"),
        (lambda c: c.update(added_tokens=5), "added_tokens is int; expected a list of objects"),
        (lambda c: c.update(added_tokens={}), "added_tokens is dict; expected a list of objects"),
        (lambda c: c.update(added_tokens=["x"]), r"added_tokens\[0\] is str; expected an object"),
        (lambda c: c.update(normalizer=5), "normalizer is int; expected an object"),
        (lambda c: c.update(normalizer={"type": "Sequence", "normalizers": 5}), r"normalizer\.normalizers is int; expected a list"),
        (lambda c: c.update(normalizer={"type": "Sequence", "normalizers": ["NFC"]}), r"normalizer\.normalizers\[0\] is str"),
        (lambda c: c.update(pre_tokenizer={"type": "Sequence", "pretokenizers": {}}), r"pre_tokenizer\.pretokenizers is dict"),
        (lambda c: c.update(pre_tokenizer={"type": "Sequence"}), r"pre_tokenizer\.pretokenizers is NoneType"),
        (lambda c: c.update(post_processor="x"), "post_processor is str"),
        (lambda c: c.update(post_processor={"type": "Sequence", "processors": [[]]}), r"post_processor\.processors\[0\] is list"),
        (lambda c: c.update(post_processor={"type": "TemplateProcessing", "single": 5}), r"post_processor\.single is int"),
        (lambda c: c.update(post_processor={"type": "RobertaProcessing"}), "has a step 'RobertaProcessing'"),
        (
            lambda c: c.update(post_processor={"type": "TemplateProcessing", "single": [{"SpecialToken": {"id": 5}}]}),
            "first token of post_processor is 5",
        ),
    ],
)
def test_a_damaged_tokenizer_json_is_refused_by_name(change: Any, message: str) -> None:
    content = vocabularies.huggingface(_sequence(DIGITS, GPT2))
    change(content)
    with pytest.raises(FileProblem, match=message):
        _json(content)


@pytest.mark.parametrize("ends", ["</s>", 1.0, True, [1, "2"], {"id": 1}])
def test_an_end_that_is_no_whole_number_is_refused_and_not_dropped(ends: Any) -> None:
    with pytest.raises(FileProblem, match="gives eos_token_id as"):
        _json(vocabularies.huggingface(_sequence(DIGITS, GPT2)), {"eos_token_id": ends})


def test_ends_may_be_one_id_or_a_list_or_null() -> None:
    content = vocabularies.huggingface(_sequence(DIGITS, GPT2))
    found = [_json(content, {"eos_token": "<|eot_id|>", "eos_token_id": ends}).eos_ids for ends in (None, 7, [7, 8])]
    named = content["added_tokens"][4]["id"]
    assert found == [(named,), (named, 7), (named, 7, 8)]


def test_a_key_that_appears_twice_in_a_tokenizer_json_is_refused() -> None:
    with pytest.raises(FileProblem, match=r"tokenizer\.json: .*'model' appears twice"):
        read_tokenizer_json(b'{"model": {}, "model": {}}', {}, "tokenizer.json")


@pytest.mark.parametrize("data", [b"", b"{", b"[" * 100_000, b"\xff\xfe", b"[]", b'{"a":' * 100_000])
def test_what_is_no_json_is_refused(data: bytes) -> None:
    with pytest.raises(FileProblem, match=r"tokenizer\.json"):
        read_tokenizer_json(data, {}, "tokenizer.json")


# The real files


@functools.cache
def _real(shared_data: Path, name: str) -> Tokenizer:
    return load_tokenizer(kind="tiktoken", path=shared_data / "tokenizers" / name / "tokenizer.model")


@pytest.mark.parametrize("name", ["llama2", "llama3", "llama4"])
def test_the_real_vocabularies_give_the_recorded_ids(shared_data: Path, name: str) -> None:
    tokenizer = _real(shared_data, name)
    texts = (GOLDEN / "texts.txt").read_text("utf-8").split("\n===\n")
    recorded = json.loads((GOLDEN / "real.json").read_text("utf-8"))[name]
    assert [tokenizer.encode(text, bos=False) for text in texts] == recorded
    assert tokenizer.encode("a")[0] == tokenizer.bos_id


@pytest.mark.parametrize(("name", "vectors"), [("llama2", "llama-spm"), ("llama3", "llama-bpe")])
def test_the_real_vocabularies_pass_the_shared_vectors(shared_data: Path, name: str, vectors: str) -> None:
    tokenizer = _real(shared_data, name)
    stem = shared_data / "tokenizers" / "vectors" / f"ggml-vocab-{vectors}.gguf"
    texts = Path(f"{stem}.inp").read_bytes().decode().split("\n__ggml_vocab_test__\n")
    expected = [[int(token) for token in line.split()] for line in Path(f"{stem}.out").read_text().split("\n")]
    pairs = list(zip(texts, expected, strict=False))
    assert len(pairs) >= 46
    for text, ids in pairs:
        assert tokenizer.encode(text, bos=False) == ids, text


def test_llama3_in_gguf_without_a_split_is_recognised_by_content(shared_data: Path) -> None:
    vocabulary = read_tiktoken((shared_data / "tokenizers" / "llama3" / "tokenizer.model").read_bytes(), "llama3")
    count = len(vocabulary.tokens)
    metadata = {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.tokens": list(vocabulary.tokens),
        "tokenizer.ggml.token_type": [1] * 128_000 + [3] * (count - 128_000),
        "tokenizer.ggml.merges": [" ".join(pair) for pair in vocabulary.merges],
        "tokenizer.ggml.bos_token_id": 128_000,
        "tokenizer.ggml.eos_token_id": 128_009,
    }
    tokenizer = load_tokenizer(kind="gguf", metadata=metadata)
    assert "recognised as llama-bpe by content" in tokenizer.description
    assert tokenizer.encode(" Việt") == [128_000, 101_798]
    assert tokenizer.stop_ids == {128_001, 128_008, 128_009}


def test_the_tokens_of_stories_are_read(shared_data: Path) -> None:
    tokenizer = load_tokenizer(kind="llama2.c", path=shared_data / "models" / "stories260K" / "tok512.bin")
    assert tokenizer.encode("Once upon a time") == [1, 403, 407, 261, 378]
    assert tokenizer.decode(tokenizer.encode("Once upon  a time, ü")) == "Once upon  a time, ü"


def test_every_vocabulary_entry_of_llama3_is_one_token_as_a_whole_piece(shared_data: Path) -> None:
    tokenizer = _real(shared_data, "llama3")
    for token in itertools.chain(range(256, 128_000, 97), (101_798,)):
        text = tokenizer.token_bytes(token).decode("utf-8", "replace")
        if "\ufffd" not in text:
            assert tokenizer.decode(tokenizer.encode(text, bos=False)) == text
