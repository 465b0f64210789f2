"""JSON from files that nobody vouches for."""

from __future__ import annotations

from pathlib import Path

import pytest

from herd.errors import FileProblem
from herd.files import read_json
from herd.files.json import parse_json


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b'{"a": 1, "b": {"c": 1, "c": 2}}', "the key 'c' appears twice"),
        (b'{"a": NaN}', "NaN is not a JSON number"),
        (b'{"a": -Infinity}', "-Infinity is not a JSON number"),
        (b"[" * 100_000, "nested too deeply"),
        (b'{"a":' * 100_000, "nested too deeply"),
        (b"[1]", "holds a JSON list"),
        (b"\xff{}", "not valid UTF-8 at byte 0"),
        (b'{"a": ' + b"1" * 5000 + b"}", "not valid JSON"),
        (b'{"a": "\\ud800"}', "half of a character"),
        (b'{"\\udc00": 1}', "half of a character"),
        (b'{"a": [-0]}', "-0 is not a whole number"),
        (b"", "not valid JSON"),
        (b"\xef\xbb\xbf{}", "not valid JSON"),
        (b'{"a": 1} x', "not valid JSON"),
    ],
)
def test_json_that_its_standard_forbids_or_that_is_no_object_is_refused(text: bytes, message: str) -> None:
    with pytest.raises(FileProblem, match=message):
        parse_json(text, "config.json")


def test_a_file_that_is_too_large_or_absent_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text('{"a": 1}')
    assert read_json(tmp_path / "a.json") == {"a": 1}
    assert parse_json(b'{"a": "\\ud83d\\ude00", "b": -0.0, "c": "-0"}', "a.json") == {"a": "\N{GRINNING FACE}", "b": 0.0, "c": "-0"}
    with pytest.raises(FileProblem, match="larger than 4 bytes"):
        read_json(tmp_path / "a.json", max_bytes=4)
    with pytest.raises(FileProblem, match="cannot be read"):
        read_json(tmp_path / "b.json")
