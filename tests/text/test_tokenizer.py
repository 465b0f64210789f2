"""Words to tokens and back: promises that hold for every vocabulary."""

from __future__ import annotations

import codecs
import time
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from herd.errors import FileProblem, UsageError
from herd.text.byte_level import ALPHABET, from_bytes, to_bytes
from herd.text.slices import RUN_CHARACTERS, SLICE_CHARACTERS, chunks, slices
from herd.text.tokenizer import Tokenizer, load_tokenizer
from text import vocabularies

BYTES = vocabularies.tokenizer("llama-bpe")
SPACES = vocabularies.sentencepiece()
BOTH = pytest.mark.parametrize("tokenizer", [BYTES, SPACES], ids=["byte-level", "sentencepiece"])
TEXT = st.text(st.characters(exclude_categories=("Cs",)), max_size=80) | st.text("ab \n\t'<|>_▁é日🙂\u0301" + "eot_id", max_size=80)
PROPERTY = settings(deadline=None, max_examples=150)


@PROPERTY
@given(TEXT)
def test_byte_level_text_comes_back_exactly(text: str) -> None:
    assert BYTES.decode(BYTES.encode(text)) == text


@PROPERTY
@given(TEXT)
def test_sentencepiece_text_comes_back_with_spaces_for_its_own_space_sign(text: str) -> None:
    assert SPACES.decode(SPACES.encode(text)) == text.replace("▁", " ")


@BOTH
@PROPERTY
@given(data=st.data())
def test_pieces_of_a_stream_joined_equal_decoding_at_once(tokenizer: Tokenizer, data: Any) -> None:
    ids = data.draw(st.lists(st.integers(0, tokenizer.vocab_size - 1), max_size=40))
    stream = tokenizer.stream()
    pieces = [stream.push(token) for token in ids] + [stream.finish()]
    assert "".join(pieces) == tokenizer.decode(ids)


@PROPERTY
@given(TEXT)
def test_a_stream_of_text_never_gives_half_a_character(text: str) -> None:
    for tokenizer in (BYTES, SPACES):
        stream = tokenizer.stream()
        pieces = [stream.push(token) for token in tokenizer.encode(text, bos=False)] + [stream.finish()]
        assert "".join(pieces) == (text if tokenizer is BYTES else text.replace("▁", " "))
        assert "\ufffd" in text or not any("\ufffd" in piece for piece in pieces)


def test_bytes_that_are_no_text_become_replacement_characters() -> None:
    ids = [BYTES.encode(character, bos=False)[0] for character in "é"]
    assert BYTES.token_bytes(ids[0]) in (b"\xc3", "é".encode())
    broken = [next(i for i in range(BYTES.vocab_size) if BYTES.token_bytes(i) == byte) for byte in (b"\xe6", b"\x97", b"a", b"\xff")]
    assert BYTES.decode(broken) == b"\xe6\x97a\xff".decode(errors="replace")


@BOTH
def test_control_tokens_are_recognised_only_when_asked_for(tokenizer: Tokenizer) -> None:
    special = set(tokenizer.special_ids.values())
    for text, token in tokenizer.special_ids.items():
        assert not special & set(tokenizer.encode(f"a {text} b", bos=False))
        assert token in tokenizer.encode(f"a {text} b", bos=False, specials=True)
        assert tokenizer.decode([token]) == ""
        assert text in tokenizer.decode([token], skip_specials=False)


def test_the_longest_control_token_wins() -> None:
    plain = len(vocabularies.trained()[0])
    tokens = [*vocabularies.trained()[0], "<a>", "<a><b>"]
    tokenizer = vocabularies.tokenizer("smollm", tokens=tokens, token_type=[1] * plain + [3, 3])
    assert tokenizer.encode("<a><b><a>", specials=True) == [plain + 1, plain]


def test_bos_is_as_trained_unless_said() -> None:
    assert BYTES.encode("a")[0] == BYTES.bos_id and BYTES.encode("a", bos=False)[0] != BYTES.bos_id
    plain = vocabularies.tokenizer("smollm")
    assert plain.encode("a")[0] != plain.bos_id and plain.encode("a", bos=True)[0] == plain.bos_id
    with pytest.raises(UsageError, match="no BOS token"):
        vocabularies.tokenizer("smollm", bos_token_id=None).encode("a", bos=True)


@BOTH
def test_empty_text_is_no_tokens(tokenizer: Tokenizer) -> None:
    assert tokenizer.encode("", bos=False) == [] and tokenizer.decode([]) == ""


@BOTH
def test_an_unpaired_surrogate_becomes_the_replacement_character(tokenizer: Tokenizer) -> None:
    for broken, whole in (("ab\ud800c", "ab\ufffdc"), ("\udc00\udc00", "\ufffd\ufffd"), ("\ud83d\ude42\ud83d", "\U0001f642\ufffd")):
        assert tokenizer.encode(broken) == tokenizer.encode(whole)
        assert tokenizer.encode_parts([broken]) == tokenizer.encode(whole, bos=False)


@BOTH
@pytest.mark.parametrize("token", [-1, 10_000_000])
def test_an_id_outside_the_vocabulary_is_refused(tokenizer: Tokenizer, token: int) -> None:
    for ask in (lambda: tokenizer.decode([token]), lambda: tokenizer.token_bytes(token), lambda: tokenizer.stream().push(token)):
        with pytest.raises(UsageError, match=str(token)):
            ask()
    with pytest.raises(UsageError, match=str(token)):
        tokenizer.encode_parts([token])


def test_ids_that_only_the_model_has_stand_for_no_text() -> None:
    count = BYTES.vocab_size
    tokenizer = load_tokenizer(kind="gguf", metadata=vocabularies.gguf("llama-bpe"), model_vocab=count + 5)
    for padded in (count, count + 4):
        assert tokenizer.token_bytes(padded) == b"" and not tokenizer.is_special(padded)
        ids = [*tokenizer.encode("a"), padded, *tokenizer.encode("b", bos=False)]
        stream = tokenizer.stream()
        assert tokenizer.decode(ids) == "".join([*map(stream.push, ids), stream.finish()]) == "ab"
    assert tokenizer.vocab_size == count
    with pytest.raises(UsageError, match=f"token id {count + 5} is not in the vocabulary; ids are 0 to {count + 4}"):
        tokenizer.decode([count + 5])
    with pytest.raises(UsageError, match=str(count)):
        tokenizer.encode_parts([count])


def test_a_vocabulary_larger_than_the_model_is_refused_unless_the_rest_is_unused() -> None:
    count = BYTES.vocab_size
    with pytest.raises(FileProblem, match=f"has {count} tokens and can produce the id {count - 1} .*; the model knows {count - 1} ids"):
        load_tokenizer(kind="gguf", metadata=vocabularies.gguf("llama-bpe"), model_vocab=count - 1)
    metadata = vocabularies.gguf("llama-bpe")
    metadata["tokenizer.ggml.tokens"].append("unused")
    metadata["tokenizer.ggml.token_type"].append(5)
    assert load_tokenizer(kind="gguf", metadata=metadata, model_vocab=count).decode([count]) == ""


@BOTH
@pytest.mark.parametrize(
    ("ask", "message"),
    [
        (lambda t: t.encode(5), r"text is 5 \(int\); expected a str"),
        (lambda t: t.encode(None), r"text is None \(NoneType\)"),
        (lambda t: t.encode(b"a", specials=True), r"text is b'a' \(bytes\)"),
        (lambda t: t.split_specials(["a"]), r"text is \['a'\] \(list\)"),
        (lambda t: t.encode_parts(5), r"parts is 5 \(int\); expected texts and token ids"),
        (lambda t: t.encode_parts(["a", 1.0]), "token id 1.0 is of type float"),
        (lambda t: t.encode_parts([True]), "token id True is of type bool"),
        (lambda t: t.decode(5), r"ids is 5 \(int\); expected token ids"),
        (lambda t: t.decode("abc"), r"ids is 'abc' \(str\); expected token ids"),
        (lambda t: t.decode(b"abc"), r"ids is b'abc' \(bytes\)"),
        (lambda t: t.decode(["a"]), "token id 'a' is of type str; expected a whole number"),
        (lambda t: t.decode([None]), "token id None is of type NoneType"),
        (lambda t: t.decode(np.zeros((1, 2), np.int64)), "token id is of type ndarray|token id array"),
        (lambda t: t.decode([np.float32(1)]), "of type float32"),
        (lambda t: t.token_bytes("a"), "token id 'a'"),
        (lambda t: t.is_special(1.5), "token id 1.5"),
        (lambda t: t.special_text([1]), r"token id \[1\]"),
        (lambda t: t.stream().push("a"), "token id 'a'"),
    ],
)
def test_arguments_of_a_wrong_type_are_refused_with_what_was_found(tokenizer: Tokenizer, ask: Any, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        ask(tokenizer)


@BOTH
def test_whole_numbers_of_other_libraries_are_token_ids(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode("the end")
    assert tokenizer.decode(np.array(ids, np.int32)) == "the end"
    assert tokenizer.encode_parts([*map(np.int64, ids)]) == ids


def test_every_single_token_decodes_to_its_bytes() -> None:
    for tokenizer in (BYTES, SPACES):
        for token in range(tokenizer.vocab_size):
            assert isinstance(tokenizer.decode([token]), str)
            assert tokenizer.is_special(token) or tokenizer.token_bytes(token)


def test_ends_are_the_declared_ones_and_the_well_known_names() -> None:
    named = {text for text, token in BYTES.special_ids.items() if token in BYTES.stop_ids}
    assert named == {"<|end_of_text|>", "<|eot_id|>", "<|eom_id|>", "<|im_end|>", "<|eot|>", "<|eom|>", "<step>"}


def test_user_defined_tokens_are_always_whole() -> None:
    plain = len(vocabularies.trained()[0])
    tokens = [*vocabularies.trained()[0], "<think>"]
    tokenizer = vocabularies.tokenizer("smollm", tokens=tokens, token_type=[1] * plain + [4], eos_token_id=None)
    assert tokenizer.encode("a<think>b")[1] == plain
    assert tokenizer.decode(tokenizer.encode("a<think>b")) == "a<think>b"


def test_the_byte_alphabet_is_its_own_inverse() -> None:
    assert len(set(ALPHABET)) == 256
    assert all(to_bytes(from_bytes(bytes((byte,)))) == bytes((byte,)) for byte in range(256))
    assert from_bytes(b" \n") == "ĠĊ"


def _meta_slices(text: str) -> list[str]:
    """Meta's rule, character by character: a cut in front of the character that makes a run too long."""
    pieces = []
    for start in range(0, len(text), SLICE_CHARACTERS):
        part, begin, length = text[start : start + SLICE_CHARACTERS], 0, 0
        for index, character in enumerate(part):
            same = index > 0 and part[index - 1].isspace() == character.isspace()
            length = length + 1 if same or index == 0 else 1
            if length > RUN_CHARACTERS:
                pieces.append(part[begin:index])
                begin, length = index, 1
        pieces.append(part[begin:])
    return pieces


@pytest.mark.parametrize(
    "text",
    ["ab " * 150_000 + "x" * 60_001, " " * 25_001, "x" * 50_000 + " " * 25_000 + "y" * 25_001, "a" * 400_001 + "\n" * 100_000, ""],
    ids=["mixed", "spaces", "exact", "long", "empty"],
)
def test_long_text_is_cut_where_meta_cuts_it(text: str) -> None:
    assert list(slices(text)) == (_meta_slices(text) or [""])


def test_chunks_of_ordinary_long_text_change_no_id() -> None:
    text = "The end,\n of  the day 12\n\n日本 x's  " * 9_000
    assert "".join(chunks(text)) == text and len(list(chunks(text))) > 3
    for tokenizer in (vocabularies.tokenizer("smollm"), vocabularies.tokenizer("tekken"), SPACES):
        whole = tokenizer._merger.ids(text if tokenizer is not SPACES else "▁" + text.replace(" ", "▁"))
        assert tokenizer.encode(text, bos=False) == whole


@pytest.mark.parametrize("unit", ["a", " ", "é", "<|", "\u0301"])
def test_a_text_of_one_repeated_character_costs_in_proportion(unit: str) -> None:
    def seconds(characters: int) -> float:
        text = unit * (characters // len(unit))
        started = time.process_time()
        for tokenizer in (BYTES, SPACES):
            tokenizer.encode(text, specials=True)
        return time.process_time() - started

    seconds(10_000)
    assert seconds(400_000) <= 12 * max(seconds(40_000), 0.02) * 2


def test_unknown_kinds_of_tokenizer_are_refused_by_name() -> None:
    with pytest.raises(UsageError, match="wordpiece"):
        load_tokenizer(kind="wordpiece")


def test_decoding_is_incremental_in_the_way_python_decodes() -> None:
    data = b"\xe6\x97\xa5\xe6\x97x\xf0\x9f\x99\x82\xf0\x9f"
    decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
    text = "".join(decoder.decode(data[i : i + 1]) for i in range(len(data))) + decoder.decode(b"", final=True)
    assert text == data.decode(errors="replace")
