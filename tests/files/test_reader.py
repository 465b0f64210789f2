"""The bounded reader: every length is checked against what is left before it is used."""

from __future__ import annotations

import struct

import pytest

from herd.errors import FileProblem
from herd.files import BoundedReader


def reader(data: bytes) -> BoundedReader:
    return BoundedReader(data, "model.gguf")


def test_numbers_and_texts_are_read_in_order() -> None:
    text = "Größe".encode()
    r = reader(struct.pack("<IQbdB", 7, 2**63, -3, 0.5, 1) + struct.pack("<Q", len(text)) + text)
    assert (r.u32("a"), r.u64("b"), r.scalar("b", "c"), r.scalar("d", "d")) == (7, 2**63, -3, 0.5)
    assert (r.boolean("e"), r.string("f")) == (True, "Größe")
    assert r.remaining == 0


def test_a_read_past_the_end_names_file_offset_and_field() -> None:
    r = reader(b"1234567")
    r.u32("the version")
    with pytest.raises(FileProblem, match=r"model\.gguf: at byte 4, the count needs 8 bytes and 3 are left"):
        r.u64("the count")


@pytest.mark.parametrize("length", [1, 2**24, 2**61, 2**63, 2**64 - 1, 2**64 - 8])
def test_a_lying_string_length_is_refused(length: int) -> None:
    with pytest.raises(FileProblem, match=r"general\.name"):
        reader(struct.pack("<Q", length)).string("general.name")


@pytest.mark.parametrize("count", [2, 2**22 + 1, 2**61, 2**64 - 1])
def test_a_lying_count_is_refused_before_anything_is_multiplied(count: int) -> None:
    with pytest.raises(FileProblem, match="allowed is at most"):
        reader(bytes(8)).skip_strings(count, "tokens")
    with pytest.raises(FileProblem, match="as many as the rest of the file holds"):
        reader(bytes(8)).scalars("Q", count, "scores")


def test_a_string_in_a_list_may_not_run_past_the_end() -> None:
    entry = struct.pack("<Q", 1) + b"a"
    with pytest.raises(FileProblem, match="tokens"):
        reader(entry + struct.pack("<Q", 2**64 - 20) + b"a" * 9).skip_strings(2, "tokens")
    with pytest.raises(FileProblem, match=r"tokens\[0\]"):
        reader(struct.pack("<Q", 2**40) + bytes(16)).skip_strings(2, "tokens")


def test_a_list_of_strings_is_stepped_over_and_read_later() -> None:
    texts = ["", "a", "ß", "雪" * 100]
    data = b"".join(struct.pack("<Q", len(text.encode())) + text.encode() for text in texts)
    r = reader(b"xx" + data + b"rest")
    r.take(2, "magic")
    r.skip_strings(4, "tokens")
    assert bytes(r.take(4, "rest")) == b"rest"
    assert r.strings_at(2, 2 + len(data), 4, "tokens") == texts


def test_text_that_is_no_utf8_is_refused_with_its_place() -> None:
    data = struct.pack("<Q", 2) + b"\xff\xfe"
    with pytest.raises(FileProblem, match=r"at byte 8, name is not valid UTF-8"):
        reader(data).string("name")
    with pytest.raises(FileProblem, match=r"at byte 8, tokens\[0\] is not valid UTF-8"):
        reader(data).strings_at(0, len(data), 1, "tokens")


def test_a_boolean_is_zero_or_one() -> None:
    with pytest.raises(FileProblem, match="is 2; allowed is 0 or 1"):
        reader(b"\2").boolean("add_bos_token")


def test_text_out_of_a_file_cannot_move_the_cursor_of_who_reads_the_message() -> None:
    with pytest.raises(FileProblem) as caught:
        reader(b"").u32("\x1b[2J\u202e" + "x" * 500)
    assert "\\x1b[2J\\u202exxx" in str(caught.value) and str(caught.value).isprintable() and len(str(caught.value)) < 400
