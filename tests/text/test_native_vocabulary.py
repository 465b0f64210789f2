"""Native code reads a byte-level vocabulary as Python does and merges as the `tokenizers` library does, or leaves it alone."""

from __future__ import annotations

import random
import struct
from collections.abc import Mapping, Sequence
from typing import Any

import pytest

from herd.errors import FileProblem
from herd.text.byte_level import from_bytes
from herd.text.merging import LibraryMerger, NativeMerger
from herd.text.native_tokens import NativeTokens, read_native
from herd.text.tokenizer import Tokenizer, load_tokenizer
from text import vocabularies
from text.vocabularies import GOLDEN

STRING, INT32, UINT32 = 8, 5, 4
TOKENS, KINDS, MERGES = (f"tokenizer.ggml.{name}" for name in ("tokens", "token_type", "merges"))


class Stored(dict[str, Any]):
    """GGUF metadata that can give the stored bytes of its lists, as an opened file can."""

    element = INT32
    cut = 0

    def stored(self, key: str) -> tuple[int, int, memoryview] | None:
        values = self.get(key)
        if not isinstance(values, list):
            return None
        if key == KINDS:
            return self.element, len(values), memoryview(struct.pack(f"<{len(values)}i", *values))
        data = b"".join(struct.pack("<Q", len(each)) + each for each in map(_encoded, values))
        return STRING, len(values), memoryview(data[: len(data) - self.cut])


def _encoded(text: str | bytes) -> bytes:
    return text if isinstance(text, bytes) else text.encode()


def both(metadata: Mapping[str, Any]) -> tuple[Tokenizer, Tokenizer]:
    """The same vocabulary (by native code, by the library)."""
    native, library = load_tokenizer(kind="gguf", metadata=Stored(metadata)), load_tokenizer(kind="gguf", metadata=metadata)
    assert isinstance(native._merger, NativeMerger) and isinstance(library._merger, LibraryMerger)
    return native, library


def random_texts(count: int, tokenizer: Tokenizer) -> list[str]:
    """Any characters, runs of few, cuts of real text, and tokens put together at random."""
    rng = random.Random(5)
    real = (GOLDEN / "texts.txt").read_text("utf-8")
    texts = []
    for index in range(count):
        if index % 4 == 0:
            ranges = ((32, 127), (32, 0x2000), (0x2000, 0xD800), (0xE000, 0x20000))
            texts.append("".join(chr(rng.randrange(*rng.choice(ranges))) for _ in range(rng.randrange(40))))
        elif index % 4 == 1:
            start = rng.randrange(len(real))
            texts.append(real[start : start + rng.randrange(200)])
        elif index % 4 == 2:
            texts.append(tokenizer.decode([rng.randrange(tokenizer.vocab_size) for _ in range(rng.randrange(12))]))
        else:
            texts.append("".join(rng.choice("aaaab theof\n\t  THE'sll0123.,!é中🙂") for _ in range(rng.randrange(120))))
    return texts


@pytest.mark.parametrize("pre", ["smollm", "gpt-2", "llama-bpe", "llama4"])
def test_native_merging_gives_the_ids_of_the_library(pre: str) -> None:
    native, library = both(vocabularies.gguf(pre))
    for text in random_texts(6_000, library):
        assert native.encode(text) == library.encode(text), repr(text)


def test_one_endless_word_merges_as_the_library_merges_it() -> None:
    native, library = both(vocabularies.gguf("llama-bpe"))
    rng = random.Random(1)
    for text in ("a" * 24_000, "the" * 8_000, "".join(rng.choice("theofan") for _ in range(24_000))):
        assert native.encode(text) == library.encode(text)


def test_a_vocabulary_without_some_bytes_leaves_them_out_as_the_library_does() -> None:
    metadata = vocabularies.gguf("smollm")
    missing = [from_bytes(bytes((byte,))) for byte in (0xC3, 0xA9, ord("q"))]
    keep = [i for i, token in enumerate(metadata[TOKENS]) if not any(each in token for each in missing) or metadata[KINDS][i] != 1]
    merges = [merge for merge in metadata[MERGES] if not any(each in merge for each in missing)]
    changes = {TOKENS: [metadata[TOKENS][i] for i in keep], KINDS: [metadata[KINDS][i] for i in keep], MERGES: merges}
    native, library = both({**metadata, **changes, "tokenizer.ggml.bos_token_id": 0, "tokenizer.ggml.eos_token_id": 0})
    for text in ("qu\u00e9", "the quick", "caf\u00e9 \u00c9tat", *random_texts(400, library)):
        assert native.encode(text) == library.encode(text), repr(text)


def test_everything_else_about_the_vocabulary_is_the_same() -> None:
    native, library = both(vocabularies.gguf("llama-bpe"))
    assert (native.vocab_size, native.description, native.bos_id, native.adds_bos) == (
        library.vocab_size,
        library.description,
        library.bos_id,
        library.adds_bos,
    )
    assert (native.special_ids, native.stop_ids, native.eos_ids) == (library.special_ids, library.stop_ids, library.eos_ids)
    ids = range(library.vocab_size)
    assert [native.token_bytes(i) for i in ids] == [library.token_bytes(i) for i in ids]
    assert [native.is_special(i) for i in ids] == [library.is_special(i) for i in ids]


def test_tokens_are_a_sequence_of_texts() -> None:
    metadata = Stored(vocabularies.gguf())
    native = read_native(metadata)
    assert native is not None
    tokens = NativeTokens(native)
    assert list(tokens) == metadata[TOKENS] and tokens[-1] == metadata[TOKENS][-1] and tokens[3:7] == metadata[TOKENS][3:7]
    with pytest.raises(IndexError):
        tokens[len(tokens)]


def test_control_tokens_may_have_any_characters_and_a_file_may_leave_out_their_kinds() -> None:
    metadata = vocabularies.gguf()
    native, library = both({**metadata, TOKENS: [*metadata[TOKENS][:-1], "<\uff5cbegin\u2581of\u2581sentence\uff5c>"]})
    assert native.special_ids == library.special_ids
    plain = {**vocabularies.gguf(tokens=metadata[TOKENS][:900]), TOKENS: metadata[TOKENS][:900]}
    plain.pop(KINDS)
    plain["tokenizer.ggml.bos_token_id"] = plain["tokenizer.ggml.eos_token_id"] = 0
    native, library = both(plain)
    assert native.encode("the end") == library.encode("the end")


def _changed(key: str, at: int, value: object) -> dict[str, Any]:
    values = list(vocabularies.gguf()[key])
    values[at] = value
    return {key: values}


ODD: dict[str, dict[str, Any]] = {
    "a token twice": _changed(TOKENS, 400, vocabularies.gguf()[TOKENS][401]),
    "an empty token": _changed(TOKENS, 400, ""),
    "a space in a plain token": _changed(TOKENS, 400, "a b"),
    "a foreign character in a plain token": _changed(TOKENS, 400, "\u4e2d"),
    "a soft hyphen, which the alphabet leaves out": _changed(TOKENS, 400, "\u00ad"),
    "a token of 1025 characters": _changed(TOKENS, -1, "x" * 1025),
    "an unknown kind": _changed(KINDS, 5, 7),
    "kind 0": _changed(KINDS, 5, 0),
    "one kind too few": {KINDS: vocabularies.gguf()[KINDS][:-1]},
    "a merge without a space": _changed(MERGES, 3, "th"),
    "a merge of three": _changed(MERGES, 3, "t h e"),
    "a merge of what is no token": _changed(MERGES, 3, "qqq zzz"),
    "a merge with an empty half": _changed(MERGES, 3, "t "),
    "no tokens": {TOKENS: [], KINDS: []},
}


@pytest.mark.parametrize("changes", ODD.values(), ids=ODD.keys())
def test_what_is_wrong_is_left_to_python_which_names_it(changes: Mapping[str, Any]) -> None:
    metadata = Stored({**vocabularies.gguf(), **changes})
    assert read_native(metadata) is None
    with pytest.raises(FileProblem) as ours:
        load_tokenizer(kind="gguf", metadata=metadata)
    with pytest.raises(FileProblem) as plain:
        load_tokenizer(kind="gguf", metadata=dict(metadata))
    assert str(ours.value) == str(plain.value)


@pytest.mark.parametrize("damaged", [b"\xff", b"\xc0\x80", b"\xed\xa0\x80", b"\xf4\x90\x80\x80", b"\xe2\x82", b"\xc3"])
def test_bytes_that_are_no_utf8_are_left_to_python(damaged: bytes) -> None:
    assert read_native(Stored({**vocabularies.gguf(), **_changed(TOKENS, -1, damaged)})) is None
    assert read_native(Stored({**vocabularies.gguf(), **_changed(TOKENS, -1, "\U0010ffff\ud7ff\ue000")})) is not None


def test_what_is_merely_unusual_is_read_in_python() -> None:
    metadata = Stored(vocabularies.gguf())
    twice: Sequence[str] = [*metadata[MERGES], metadata[MERGES][0]]
    assert read_native(Stored({**metadata, MERGES: twice})) is None
    assert load_tokenizer(kind="gguf", metadata=Stored({**metadata, MERGES: twice})).encode("the end")
    metadata.element = UINT32
    assert read_native(metadata) is None
    assert load_tokenizer(kind="gguf", metadata=metadata).encode("the end")


@pytest.mark.parametrize("cut", [1, 7, 8, 9, 100])
def test_lists_that_end_early_are_not_read(cut: int) -> None:
    metadata = Stored(vocabularies.gguf())
    metadata.cut = cut
    assert read_native(metadata) is None


def test_tokens_made_to_collide_are_left_to_python() -> None:
    """Texts of eight bytes whose difference the table's hash does not see in the bits that it uses first."""
    from herd import _core

    texts = [struct.pack("<Q", 0x3131313131313131 + (i << 56)) for i in range(70)]
    tokens = b"".join(struct.pack("<Q", 8) + text for text in texts)
    found = _core.Vocabulary.read(memoryview(tokens), len(texts), None, memoryview(b""), 0)
    assert found is None or len(found) == len(texts)
