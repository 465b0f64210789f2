"""What a server keeps: whole or not at all, for its owner only, bounded, gone when deleted, and there after kill -9."""

from __future__ import annotations

import asyncio
import os
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from herd.errors import CapacityError, FileProblem
from herd.server.stored import Store
from herd.server.tables import NotThere, StorageFull, Tables

OPENS = """
import asyncio, sys
from pathlib import Path
from herd.server.stored import Store

async def main():
    store = Store(Path(sys.argv[1]))
    number = 0
    while True:
        await store.write(lambda tables: tables.put("a", "response", f"r{number}", {"number": number}))
        print(number, flush=True)
        number += 1

asyncio.run(main())
"""


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    made = Store(tmp_path / "kept.sqlite3", owner_bytes=100_000)
    yield made
    made.close()


def put(owner: str, key: str, **body: object) -> Callable[[Tables], None]:
    return lambda tables: tables.put(owner, "response", key, body)


def test_what_was_put_is_found_by_its_owner_only(store: Store) -> None:
    async def play() -> None:
        await store.write(put("a", "r1", text="mine"))
        assert await store.read(lambda tables: tables.get("a", "response", "r1")) == {"text": "mine"}
        for owner, kind, key in (("b", "response", "r1"), ("a", "file", "r1"), ("a", "response", "r2")):
            with pytest.raises(NotThere) as caught:
                await store.read(lambda tables, o=owner, k=kind, i=key: tables.get(o, k, i))
            assert str(caught.value) == f"There is no {kind} {key!r} here."

    asyncio.run(play())


def test_a_page_begins_behind_its_cursor_and_a_foreign_cursor_is_not_there(store: Store) -> None:
    async def play() -> None:
        for number in range(5):
            await store.write(put("a", f"r{number}"))
        await store.write(put("b", "other"))

        async def keys(after: str | None, newest_first: bool) -> list[str]:
            kept = await store.read(lambda tables: tables.page("a", "response", after=after, limit=3, newest_first=newest_first))
            return [each.id for each in kept]

        assert await keys(None, True) == ["r4", "r3", "r2"]
        assert await keys("r2", True) == ["r1", "r0"]
        assert await keys("r2", False) == ["r3", "r4"]
        with pytest.raises(NotThere):
            await keys("other", True)

    asyncio.run(play())


def test_writes_that_wait_together_succeed_or_fail_one_by_one(store: Store) -> None:
    def fails(tables: Tables) -> None:
        tables.put("a", "response", "half", {})
        raise ValueError("broken")

    async def play() -> list[object]:
        wanted = [store.write(fails if number == 7 else put("a", f"r{number}")) for number in range(20)]
        outcomes = await asyncio.gather(*wanted, return_exceptions=True)
        kept = await store.read(lambda tables: tables.page("a", "response", after=None, limit=100, newest_first=False))
        assert [each.id for each in kept] == [f"r{number}" for number in range(20) if number != 7]
        return list(outcomes)

    outcomes = asyncio.run(play())
    assert [index for index, outcome in enumerate(outcomes) if outcome is not None] == [7]
    assert isinstance(outcomes[7], ValueError)


def test_an_owner_takes_no_more_than_its_share_and_gets_it_back(store: Store) -> None:
    async def play() -> None:
        await store.write(put("a", "f1"))
        began = await store.read(lambda tables: tables.used("a"))
        await store.write(lambda tables: tables.append("a", "f1", b"x" * 90_000))
        with pytest.raises(StorageFull, match="100000 bytes"):
            await store.write(lambda tables: tables.append("a", "f1", b"x" * 20_000))
        assert await store.read(lambda tables: tables.used("a")) == began + 90_000
        await store.write(lambda tables: tables.append("b", "f2", b"x" * 90_000))
        await store.write(lambda tables: tables.remove("a", "response", "f1"))
        assert await store.read(lambda tables: tables.used("a")) == 0

    asyncio.run(play())


def test_the_oldest_objects_make_room(store: Store) -> None:
    async def play() -> None:
        for number in range(9):
            await store.write(put("a", f"r{number}", text="x" * 10_000))
        assert await store.write(lambda tables: tables.remove_oldest("a", "response", 25_000)) == 2
        with pytest.raises(NotThere):
            await store.read(lambda tables: tables.get("a", "response", "r1"))
        assert await store.read(lambda tables: tables.get("a", "response", "r2"))

    asyncio.run(play())


def test_what_expired_is_not_found_and_then_removed(tmp_path: Path) -> None:
    now = [1000.0]
    store = Store(tmp_path / "kept.sqlite3", clock=lambda: now[0])

    async def play() -> None:
        await store.write(lambda tables: tables.put("a", "file", "f", {}, expires=1010))
        await store.write(lambda tables: tables.append("a", "f", b"content"))
        assert await store.read(lambda tables: tables.get("a", "file", "f")) == {}
        now[0] = 1010.0
        with pytest.raises(NotThere):
            await store.read(lambda tables: tables.get("a", "file", "f"))
        assert await store.write(lambda tables: tables.remove_expired()) == 1
        assert await store.read(lambda tables: tables.pieces("f", 0, 10)) == []
        assert await store.read(lambda tables: tables.used("a")) == 0

    asyncio.run(play())
    store.close()


def test_what_is_deleted_is_in_no_file_any_more(tmp_path: Path) -> None:
    folder = tmp_path / "state"
    store = Store(folder / "kept.sqlite3")
    marker = b"a marker that nobody else writes"

    def in_files() -> bool:
        return any(marker in path.read_bytes() for path in folder.iterdir())

    async def play() -> None:
        await store.write(lambda tables: tables.put("a", "response", "r", {"text": marker.decode()}))
        await store.write(lambda tables: tables.append("a", "r", marker * 10_000))
        assert in_files()
        await store.write(lambda tables: tables.remove("a", "response", "r"), erase=True)
        assert not in_files()

    asyncio.run(play())
    store.close()


def test_a_line_that_is_done_stays_as_it_was(store: Store) -> None:
    async def play() -> None:
        assert await store.write(lambda tables: tables.add_line("a", "b", 3, False, "first"))
        assert not await store.write(lambda tables: tables.add_line("a", "b", 3, True, "second"))
        assert await store.read(lambda tables: tables.done_lines("b")) == {3: False}
        assert await store.read(lambda tables: list(tables.line_texts("b", False))) == ["first"]

    asyncio.run(play())


def test_an_upload_that_broke_off_is_swept_at_the_next_start(tmp_path: Path) -> None:
    path = tmp_path / "kept.sqlite3"
    store = Store(path)
    asyncio.run(store.write(lambda tables: tables.append("a", "gone", b"half a file")))
    store.close()
    store = Store(path)
    assert asyncio.run(store.read(lambda tables: tables.pieces("gone", 0, 10))) == []
    assert asyncio.run(store.read(lambda tables: tables.used("a"))) == 0
    store.close()


def test_a_full_disk_is_an_error_of_capacity_and_what_was_there_stays(store: Store) -> None:
    async def play() -> None:
        await store.write(put("a", "r", text="kept"))
        store._writer.execute("PRAGMA max_page_count = 20")
        with pytest.raises(CapacityError, match="SQLITE_FULL"):
            await store.write(lambda tables: tables.append("a", "f", b"x" * 99_000))
        store._writer.execute("PRAGMA max_page_count = 100000")
        await store.write(put("a", "r2", text="more"))
        assert await store.read(lambda tables: tables.get("a", "response", "r")) == {"text": "kept"}

    asyncio.run(play())


@pytest.mark.parametrize("content", [b"not a database at all" * 300, b"SQLite format 3\0" + b"\xff" * 5000])
def test_a_file_that_is_no_database_is_refused_by_name(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "kept.sqlite3"
    path.write_bytes(content)
    with pytest.raises(FileProblem, match=r"kept\.sqlite3"):
        Store(path)
    assert path.read_bytes() == content


def test_tables_of_a_newer_herd_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "kept.sqlite3"
    Store(path).close()
    with sqlite3.connect(path) as connection:
        connection.execute("PRAGMA user_version = 99")
    connection.close()
    with pytest.raises(FileProblem, match="version 99"):
        Store(path)


def test_the_file_is_its_owners_alone(tmp_path: Path) -> None:
    store = Store(tmp_path / "state" / "kept.sqlite3")
    store.close()
    assert (tmp_path / "state").stat().st_mode & 0o077 == 0
    assert (tmp_path / "state" / "kept.sqlite3").stat().st_mode & 0o077 == 0


def test_what_was_acknowledged_is_there_after_kill_9(tmp_path: Path) -> None:
    path = tmp_path / "kept.sqlite3"
    for wanted in (3, 17):
        with subprocess.Popen([sys.executable, "-c", OPENS, str(path)], stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            said = [int(process.stdout.readline()) for _ in range(wanted)]
            os.kill(process.pid, signal.SIGKILL)
            said += [int(line) for line in process.stdout.read().splitlines()]
        store = Store(path)
        kept = asyncio.run(store.read(lambda tables: tables.of_everybody("response")))
        assert [each.body["number"] for each in kept][: len(said)] == said
        assert len(kept) - len(said) in (0, 1)
        asyncio.run(store.write(lambda tables, keys=[each.id for each in kept]: [tables.remove("a", "response", key) for key in keys]))
        store.close()


def test_a_damaged_file_does_not_keep_a_server_from_answering(serve: Any, tmp_path: Path) -> None:
    (tmp_path / "kept.sqlite3").write_bytes(b"not a database at all" * 300)
    server = serve(data_folder=tmp_path)
    body = {"model": "fake", "input": "Hi"}
    assert httpx.post(f"{server.url}/v1/responses", json={**body, "store": False}).status_code == 200
    refused = httpx.post(f"{server.url}/v1/responses", json=body)
    assert refused.status_code == 503 and "cannot keep" in refused.json()["error"]["message"] and str(tmp_path) not in refused.text
