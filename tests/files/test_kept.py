"""Kept files are whole or absent, bounded together, and never in the way."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from herd.errors import UsageError
from herd.files import kept
from herd.files.checking import Checked, check_kept, kept_bytes
from herd.files.folders import cache_folder

ABOUT = {"source": "/models/a.gguf", "number": 3}
PARTS = {"first": memoryview(b"x" * 100), "empty": memoryview(b""), "last": memoryview(bytes(range(256)))}


def never() -> bool:
    return False


def keep(name: str, num_bytes: int, source: str = "/models/a.gguf") -> bool:
    return kept.keep(name, {"source": source}, {"data": memoryview(bytes(num_bytes))}, never)


def names() -> list[str]:
    return sorted(path.name for path in cache_folder().iterdir())


def size_of(name: str) -> int:
    return (cache_folder() / f"{name}.kept").stat().st_size


def change(name: str, place: bytes) -> None:
    """One bit of a kept file, in the middle of these bytes."""
    path = cache_folder() / f"{name}.kept"
    data = bytearray(path.read_bytes())
    data[data.index(place) + len(place) // 2] ^= 1
    path.write_bytes(data)


def test_what_was_kept_comes_back_aligned() -> None:
    assert kept.open_kept("one") is None
    assert kept.keep("one", ABOUT, PARTS, never)
    found = kept.open_kept("one")
    assert found is not None and found.about == ABOUT and found.names == tuple(PARTS)
    assert {name: bytes(found.part(name)) for name in found.names} == {name: bytes(part) for name, part in PARTS.items()}
    import numpy as np

    assert all(np.frombuffer(found.part(name), np.uint8).ctypes.data % kept.ALIGNMENT == 0 for name in ("first", "last"))
    assert names() == ["one.kept"]


def test_a_view_outlives_the_file_and_its_opener() -> None:
    kept.keep("one", ABOUT, PARTS, never)
    found = kept.open_kept("one")
    assert found is not None
    part = found.part("last")
    del found
    kept.forget(Path("/models/a.gguf"))
    assert bytes(part) == bytes(range(256))


def test_parts_larger_than_a_piece_are_written_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kept, "_PIECE_BYTES", 7)
    assert kept.keep("one", ABOUT, PARTS, never)
    found = kept.open_kept("one")
    assert found is not None and bytes(found.part("last")) == bytes(range(256))


def test_every_cut_and_every_changed_byte_of_head_table_and_data_makes_it_absent() -> None:
    kept.keep("one", ABOUT, PARTS, never)
    path = cache_folder() / "one.kept"
    whole = path.read_bytes()
    table_end = whole.index(b"}}") + 2
    damaged = [whole[:size] for size in (0, 7, 31, 40, table_end, len(whole) - 1)] + [whole + b"x"]
    damaged += [whole[:at] + bytes((whole[at] ^ 1,)) + whole[at + 1 :] for at in range(table_end)]
    damaged += [whole[:at] + bytes((whole[at] ^ 1,)) + whole[at + 1 :] for at in (whole.index(b"x" * 100) + 50, len(whole) - 1)]
    for data in damaged:
        path.write_bytes(data)
        assert kept.open_kept("one") is None
        assert not path.exists(), "a damaged file is removed"


def test_of_a_large_file_only_checking_reads_the_data(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kept, "CHECKED_AT_ONCE_BYTES", 0)
    kept.keep("one", ABOUT, PARTS, never)
    kept.keep("other", {"source": "/models/b.gguf"}, PARTS, never)
    kept.keep_pieces("pieces", ABOUT, {"data": (6, iter([memoryview(b"abc"), memoryview(b"def")]))})
    read: list[int] = []
    assert check_kept(Path("/models/a.gguf"), read.append) == Checked(2, kept_bytes(Path("/models")) - size_of("other"), ())
    assert sum(read) == 100 + 256 + 6
    for name, place in (("one", b"x" * 100), ("other", b"x" * 100), ("pieces", b"abcdef")):
        change(name, place)
        assert kept.open_kept(name) is not None
    checked = check_kept(Path("/models/a.gguf"))
    assert checked.num_files == 0 and [line.split(": ")[1] for line in checked.removed] == [
        "the bytes of first are not what was written",
        "the bytes of data are not what was written",
    ]
    assert names() == ["other.kept"], "another model's is not looked at"


def test_checking_finds_a_changed_table_and_a_cut_and_leaves_the_files_of_other_versions() -> None:
    for name, source in (("table", "/models/a.gguf"), ("cut", "/models/b.gguf"), ("whole", "/models/a.gguf"), ("later", "/models/a.gguf")):
        kept.keep(name, {"source": source}, PARTS, never)
    change("table", b'"parts"')
    cut, later = (cache_folder() / f"{name}.kept" for name in ("cut", "later"))
    cut.write_bytes(cut.read_bytes()[:-1])
    data = bytearray(later.read_bytes())
    data[8] += 1
    later.write_bytes(data)
    checked = check_kept(Path("/models/a.gguf"))
    assert checked.num_files == 1 and len(checked.removed) == 2 and all("its table or its length" in line for line in checked.removed)
    assert names() == ["later.kept", "whole.kept"]
    assert check_kept(Path("/models/a.gguf")).removed == ()


def test_a_cancelled_write_leaves_nothing() -> None:
    assert not kept.keep("one", ABOUT, PARTS, lambda: True)
    assert names() == []


def test_a_folder_that_cannot_be_written_is_no_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    monkeypatch.setenv("HERD_HOME", str(tmp_path / "file"))
    assert not kept.keep("one", ABOUT, PARTS, never)
    assert kept.open_kept("one") is None and kept.used_bytes() == 0


def test_a_full_disk_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(kept, "_write", full)
    assert not kept.keep("one", ABOUT, PARTS, never)
    assert names() == []


def test_the_files_unused_for_longest_make_room(monkeypatch: pytest.MonkeyPatch) -> None:
    for age, name in ((300, "old"), (200, "older-but-used"), (100, "young")):
        assert keep(name, 10_000)
        os.utime(cache_folder() / f"{name}.kept", (1e9 - age, 1e9 - age))
    assert kept.open_kept("older-but-used") is not None
    monkeypatch.setenv("HERD_CACHE_BYTES", "25000")
    assert keep("new", 10_000)
    assert names() == ["new.kept", "older-but-used.kept"] and kept.used_bytes() <= 25_000


def test_what_is_larger_than_the_limit_or_a_quarter_of_the_free_disk_is_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    import shutil

    keep("small", 100)
    monkeypatch.setenv("HERD_CACHE_BYTES", "5000")
    assert not keep("large", 6_000) and names() == ["small.kept"]
    monkeypatch.delenv("HERD_CACHE_BYTES")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10, 10, 20_000))  # type: ignore[attr-defined]  # the type that it returns
    assert not keep("large", 6_000) and keep("medium", 4_000)


def test_zero_bytes_switch_it_off(monkeypatch: pytest.MonkeyPatch) -> None:
    keep("one", 100)
    monkeypatch.setenv("HERD_CACHE_BYTES", "0")
    assert kept.open_kept("one") is None and not keep("two", 100) and names() == ["one.kept"]


@pytest.mark.parametrize("text", ["-1", "2GB", "1e9", "²"])
def test_a_limit_that_is_no_count_is_refused(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setenv("HERD_CACHE_BYTES", text)
    with pytest.raises(UsageError, match="HERD_CACHE_BYTES"):
        kept.open_kept("one")


def test_forgetting_a_folder_forgets_what_came_from_it() -> None:
    for name, source in (("a", "/models/x/a.gguf"), ("b", "/models/x"), ("c", "/models/xy"), ("d", "/models/y/x")):
        keep(name, 100, source)
    assert kept.forget(Path("/models/x")) > 200
    assert names() == ["c.kept", "d.kept"]
    assert kept.forget(Path("/nowhere")) == 0


def test_temporary_files_of_killed_writers_go_when_they_are_old() -> None:
    keep("one", 100)
    old, new = cache_folder() / ".x.kept.1-00.part", cache_folder() / ".y.kept.2-00.part"
    for path in (old, new):
        path.write_bytes(b"half")
    os.utime(old, (1e9, 1e9))
    keep("two", 100)
    assert not old.exists() and new.exists()
