"""Files of data: every packing and layout gives the same records, and what is wrong with a file is told by file and line."""

from __future__ import annotations

import builtins
import gzip
import json
import random
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from herd.data import reading
from herd.data.reading import DataFile, data_files, data_hash, find_files, read_file, read_records
from herd.errors import FileProblem, UsageError

VALUES = [{"text": "one"}, {"text": 'two "{[\\'}, {"text": "drei\né\u2028", "n": [1, {"a": []}]}]


def values(path: Path) -> list[dict[str, Any]]:
    return [record.value for record in read_file(path)]


def lines(path: Path) -> list[int]:
    return [record.place.line for record in read_file(path)]


def jsonl(items: list[dict[str, Any]], end: str = "\n") -> bytes:
    return "".join(json.dumps(item, ensure_ascii=False) + end for item in items).encode()


def zstd(data: bytes) -> bytes:
    return bytes(pytest.importorskip("zstandard").ZstdCompressor().compress(data))


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("a.jsonl", jsonl(VALUES)),
        ("a.json", jsonl(VALUES)),
        ("a.ndjson", jsonl(VALUES).rstrip()),
        ("a.jsonl", b"\xef\xbb\xbf" + jsonl(VALUES)),
        ("a.jsonl", jsonl(VALUES, "\r\n")),
        ("a.jsonl", b"\n  \n" + jsonl(VALUES, "\n\n\r\n")),
        ("a.json", json.dumps(VALUES).encode()),
        ("a.json", b" \n" + json.dumps(VALUES, indent=2, ensure_ascii=False).encode() + b"\n"),
        ("a.jsonl.gz", gzip.compress(jsonl(VALUES))),
        ("a.json.gz", gzip.compress(b"\xef\xbb\xbf" + json.dumps(VALUES).encode())),
        ("A.JSONL.GZ", gzip.compress(jsonl(VALUES[:1])) + gzip.compress(jsonl(VALUES[1:]))),
    ],
)
def test_every_layout_gives_the_same_records(tmp_path: Path, name: str, data: bytes) -> None:
    (tmp_path / name).write_bytes(data)
    assert values(tmp_path / name) == VALUES


def test_frames_of_zstandard_are_read_one_after_another(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl.zst"
    path.write_bytes(zstd(jsonl(VALUES[:2])) + zstd(jsonl(VALUES[2:])))
    assert values(path) == VALUES


def test_lines_are_counted_in_every_layout(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(b'{"a":1}\r\n\n{"a":2}\n\n\n{"a":3}')
    assert lines(tmp_path / "a.jsonl") == [1, 3, 6]
    (tmp_path / "a.json").write_bytes(b'[\n{"a":\n1},\n\n{"a":"\\"}"}]\n')
    assert lines(tmp_path / "a.json") == [2, 5]


@settings(deadline=None, max_examples=60)
@given(data=st.data())
def test_records_do_not_depend_on_where_the_file_is_cut_for_reading(data: st.DataObject, tmp_path_factory: pytest.TempPathFactory) -> None:
    strings = st.text('ab"\\{}[],\n\r\té🦙', max_size=12)
    items = data.draw(st.lists(st.dictionaries(strings, strings | st.lists(strings, max_size=2), max_size=3), min_size=1, max_size=5))
    step = data.draw(st.integers(1, 9))
    indent = data.draw(st.sampled_from([None, 1]))
    path = tmp_path_factory.mktemp("cut") / "a.json"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reading, "_STEP_BYTES", step)
        path.write_text(json.dumps(items, indent=indent), encoding="utf-8")
        assert values(path) == items
        path.write_bytes(jsonl(items))
        assert values(path) == items


def test_a_text_file_is_a_document_and_a_long_one_several(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "book.txt"
    path.write_bytes(b"\xef\xbb\xbfOne\r\nTwo\r\n")
    assert values(path) == [{"text": "One\nTwo\n"}]
    monkeypatch.setattr(reading, "TEXT_BYTES", 8)
    path.write_bytes(b"aaaa\n" * 5)
    assert [record.value["text"] for record in read_file(path)] == ["aaaa\naaaa\n", "aaaa\naaaa\n", "aaaa\n"]
    assert lines(path) == [1, 3, 5]


@pytest.mark.parametrize(
    ("name", "data", "expected"),
    [
        ("a.jsonl", b'{"a":1}\nnot json\n', "a.jsonl:2: is not valid JSON"),
        ("a.jsonl", b'{"a":1}\n[1]\n', "a.jsonl:2: holds a JSON list"),
        ("a.jsonl", b'{"a":1}\n{"a":"\xff"}\n', "a.jsonl:2: is not valid UTF-8 at byte 6"),
        ("a.jsonl", b'{"a":1,"a":2}\n', "a.jsonl:1: is not valid JSON: the key 'a' appears twice"),
        ("a.jsonl", b'{"a":NaN}\n', "a.jsonl:1: is not valid JSON: NaN"),
        ("a.jsonl", '{"a":1}'.encode("utf-16"), "a.jsonl:1: the file is UTF-16"),
        ("a.jsonl", b'{"a":' + b"[" * 100_000, "a.jsonl:1"),
        ("a.json", b'[{"a":1},', "a.json:1: expected an object in the JSON array, found the end of the file"),
        ("a.json", b'[{"a":1}\n{"a":1}]', "a.json:2: expected a comma or ]"),
        ("a.json", b'[{"a":1}, 3]', "a.json:1: expected an object in the JSON array, found '3]'"),
        ("a.json", b'[{"a":1},\n{"a": "b', "a.json:2: the file ends inside this element"),
        ("a.json", b'[{"a":1}] {"a":2}', "a.json:1: something follows the JSON array"),
        ("a.json", b'[{"a":1},]', "expected an object in the JSON array, found ']'"),
        ("a.txt", b"good\nb\xffd\n", "a.txt:2: is not valid UTF-8 at byte 1 of the line"),
        ("a.jsonl.gz", gzip.compress(jsonl(VALUES * 50))[:-20], "a.jsonl.gz: the packed file ends too early"),
        ("a.jsonl.gz", gzip.compress(jsonl(VALUES))[:12] + b"\0" * 30, "a.jsonl.gz: cannot be unpacked"),
        ("a.jsonl.gz", jsonl(VALUES), "is called .gz and is not packed so"),
        ("a.jsonl", b"", "a.jsonl: the file is empty"),
        ("a.txt", b" \n\n", "a.txt: the file is empty"),
        ("a.jsonl.gz", gzip.compress(b""), "a.jsonl.gz: the file is empty"),
    ],
)
def test_what_is_wrong_with_a_file_is_told_by_file_and_line(tmp_path: Path, name: str, data: bytes, expected: str) -> None:
    (tmp_path / name).write_bytes(data)
    with pytest.raises(FileProblem) as caught:
        list(read_records([tmp_path / name]))
    assert expected in str(caught.value)


@pytest.mark.parametrize("cut", [5, 20, -1])
def test_a_frame_of_zstandard_that_is_cut_short_is_refused(tmp_path: Path, cut: int) -> None:
    noise = bytes(random.Random(0).choices(range(97, 123), k=400))
    path = tmp_path / "a.jsonl.zst"
    path.write_bytes(zstd(b'{"a":"' + noise + b'"}\n')[:cut])
    with pytest.raises(FileProblem, match="ends too early"):
        list(read_records([path]))


def test_without_the_package_zstandard_is_refused_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.jsonl.zst"
    path.write_bytes(b"\x28\xb5\x2f\xfd1234")
    real = builtins.__import__

    def absent(name: str, *rest: Any) -> Any:
        if name == "zstandard":
            raise ImportError
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", absent)
    with pytest.raises(UsageError, match="pip install 'herd-llama"):
        list(read_records([path]))


@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.txt"])
def test_a_line_without_end_is_refused_before_it_is_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setattr(reading, "LINE_BYTES_MAX", 4000)
    monkeypatch.setattr(reading, "_STEP_BYTES", 1000)
    path = tmp_path / name
    path.write_bytes((b"[" if name == "a.json" else b"") + b'{"a":"' + b"x" * 1_000_000)
    with pytest.raises(FileProblem, match=r"a\.\w+:1: the record is longer than"):
        list(read_records([path]))


def test_folders_are_searched_and_what_is_no_data_is_told(tmp_path: Path) -> None:
    for name in ("b.jsonl", "deep/a.txt", "README.md", "picture.png", ".hidden/c.jsonl", "deep/x.md.gz"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text('{"a":1}')
    found = find_files([tmp_path, tmp_path / "b.jsonl"])
    assert [path.relative_to(tmp_path).as_posix() for path in found.paths] == ["b.jsonl", "deep/a.txt", "deep/x.md.gz"]
    assert {path.name: reason for path, reason in found.skipped} == {
        "README.md": "lies beside data, by its name",
        "picture.png": "is not called like a data file",
    }


@pytest.mark.parametrize(
    ("name", "expected"), [("none.jsonl", "no such file"), ("t.parquet", "Convert it to JSONL"), ("empty", "the folder has no data files")]
)
def test_what_is_no_data_is_refused_by_name(tmp_path: Path, name: str, expected: str) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "t.parquet").write_bytes(b"PAR1")
    with pytest.raises(FileProblem, match=expected):
        find_files([tmp_path / name])
    with pytest.raises(UsageError, match="no data is given"):
        find_files([])


def test_the_hash_of_data_is_of_contents_and_order(tmp_path: Path) -> None:
    for name, text in (("a.txt", "x"), ("b.txt", "y"), ("c.txt", "x")):
        (tmp_path / name).write_text(text)
    a, b, c = data_files([tmp_path / "a.txt", tmp_path / "b.txt", tmp_path / "c.txt"])
    assert a == DataFile("a.txt", 1, "2d711642b726b04401627ca9fbac32f5c8530fb1903cc4db02258717921a4881")
    assert data_hash([a, b]) == data_hash([c, b]) != data_hash([b, a])
