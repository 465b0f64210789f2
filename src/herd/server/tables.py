"""The rows of what a server keeps, as operations inside one transaction; `stored` says when and by which thread they run.

    objects    JSON by (owner, kind, id): stored answers, files, batches
    pieces     the bytes of an object, in order: a file's content
    lines      what became of a batch's lines so far, once for each line
    owners     how many bytes each owner takes

An owner is part of every key, so that looking for somebody else's object is the same search as looking for one that never was: it
finds nothing, in the same time.
"""

from __future__ import annotations

import json
import secrets
import sqlite3
from collections.abc import Callable, Iterator
from typing import Any

from herd.errors import UsageError
from herd.records import dataclass

SCHEMA_VERSION = 1
SCHEMA = """
CREATE TABLE objects (
    owner TEXT NOT NULL, kind TEXT NOT NULL, id TEXT NOT NULL, number INTEGER NOT NULL, expires INTEGER, size INTEGER NOT NULL,
    body TEXT NOT NULL, PRIMARY KEY (owner, kind, id)) WITHOUT ROWID;
CREATE UNIQUE INDEX objects_in_order ON objects (owner, kind, number);
CREATE INDEX objects_that_expire ON objects (expires) WHERE expires IS NOT NULL;
CREATE TABLE pieces (id TEXT NOT NULL, number INTEGER NOT NULL, data BLOB NOT NULL, PRIMARY KEY (id, number));
CREATE TABLE lines (
    id TEXT NOT NULL, number INTEGER NOT NULL, failed INTEGER NOT NULL, text TEXT NOT NULL, PRIMARY KEY (id, number)) WITHOUT ROWID;
CREATE TABLE owners (owner TEXT PRIMARY KEY, bytes INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE counters (name TEXT PRIMARY KEY, value INTEGER NOT NULL) WITHOUT ROWID;
INSERT INTO counters VALUES ('object', 0);
"""
PIECE_BYTES = 1 << 20
"""The most that one row of a file's content holds."""
_IS_THERE = "owner = ? AND kind = ? AND id = ? AND (expires IS NULL OR expires > ?)"


class StorageFull(UsageError):
    """An owner's share of the storage is used up; deleting something makes room."""

    http_status = 413


class NotThere(UsageError):
    """There is no object of this id, or it is somebody else's: the two look the same."""

    http_status = 404


@dataclass(frozen=True, slots=True)
class Kept:
    """A stored object with its place in the order in which objects came."""

    owner: str
    id: str
    number: int
    expires: int | None
    body: dict[str, Any]


def new_id(prefix: str) -> str:
    """An id that nobody can guess: 192 random bits."""
    return f"{prefix}{secrets.token_hex(24)}"


class Tables:
    """Operations on one connection, inside a transaction that the caller holds. `clock` gives seconds since 1970; `owner_bytes` is
    the most that one owner may take."""

    def __init__(self, connection: sqlite3.Connection, clock: Callable[[], float], owner_bytes: int) -> None:
        self._sql = connection
        self._clock = clock
        self._owner_bytes = owner_bytes

    def put(
        self,
        owner: str,
        kind: str,
        key: str,
        body: dict[str, Any],
        *,
        expires: int | None = None,
        displaces: bool = False,
        checked: bool = True,
    ) -> None:
        """A new object. `StorageFull` if the owner may not take more, unless `checked` is False; `displaces`: the owner's oldest of the
        kind make room."""
        text = _written(body)
        if displaces:
            self.remove_oldest(owner, kind, _bytes(text))
        self._sql.execute("UPDATE counters SET value = value + 1 WHERE name = 'object'")
        (number,) = self._sql.execute("SELECT value FROM counters WHERE name = 'object'").fetchone()
        row = (owner, kind, key, number, expires, _bytes(text), text)
        self._sql.execute("INSERT INTO objects VALUES (?, ?, ?, ?, ?, ?, ?)", row)
        self._take(owner, _bytes(text), checked)

    def find(self, owner: str, kind: str, key: str) -> Kept | None:
        query = f"SELECT number, expires, body FROM objects WHERE {_IS_THERE}"
        row = self._sql.execute(query, (owner, kind, key, self._now())).fetchone()
        return None if row is None else Kept(owner, key, row[0], row[1], json.loads(row[2]))

    def get(self, owner: str, kind: str, key: str) -> dict[str, Any]:
        """The object's body. `NotThere` if this owner has none of that id."""
        found = self.find(owner, kind, key)
        if found is None:
            raise not_there(kind, key)
        return found.body

    def replace(self, owner: str, kind: str, key: str, body: dict[str, Any], *, expires: int | None = None) -> None:
        """Another body for an object that is there; `expires` None leaves when it goes."""
        text = _written(body)
        row = self._sql.execute(f"SELECT size FROM objects WHERE {_IS_THERE}", (owner, kind, key, self._now())).fetchone()
        if row is None:
            raise not_there(kind, key)
        update = "UPDATE objects SET body = ?, size = ?, expires = COALESCE(?, expires) WHERE owner = ? AND kind = ? AND id = ?"
        self._sql.execute(update, (text, _bytes(text), expires, owner, kind, key))
        self._take(owner, _bytes(text) - row[0], checked=False)

    def rename(self, owner: str, kind: str, key: str, new_kind: str, body: dict[str, Any], *, expires: int | None) -> None:
        """An object becomes one of another kind, with another body and the same bytes."""
        self.replace(owner, kind, key, body)
        query = "UPDATE objects SET kind = ?, expires = ? WHERE owner = ? AND kind = ? AND id = ?"
        self._sql.execute(query, (new_kind, expires, owner, kind, key))

    def page(self, owner: str, kind: str, *, after: str | None, limit: int, newest_first: bool, purpose: str | None = None) -> list[Kept]:
        """Up to `limit` objects in the order in which they came, those behind `after`. `NotThere` if that one is not there. `purpose`: only
        objects whose body says so."""
        edge = 0
        if after is not None:
            found = self.find(owner, kind, after)
            if found is None:
                raise not_there(kind, after, param="after")
            edge = found.number
        compare, order = ("<", "DESC") if newest_first else (">", "ASC")
        query = (
            "SELECT id, number, expires, body FROM objects WHERE owner = ? AND kind = ? AND (expires IS NULL OR expires > ?)"
            f" AND (? = 0 OR number {compare} ?) AND (? IS NULL OR json_extract(body, '$.purpose') = ?) ORDER BY number {order} LIMIT ?"
        )
        rows = self._sql.execute(query, (owner, kind, self._now(), edge, edge, purpose, purpose, limit)).fetchall()
        return [Kept(owner, row[0], row[1], row[2], json.loads(row[3])) for row in rows]

    def of_everybody(self, kind: str) -> list[Kept]:
        """All objects of a kind, oldest first: for what goes on after a restart."""
        rows = self._sql.execute("SELECT owner, id, number, expires, body FROM objects WHERE kind = ? ORDER BY number", (kind,))
        return [Kept(row[0], row[1], row[2], row[3], json.loads(row[4])) for row in rows.fetchall()]

    def remove(self, owner: str, kind: str, key: str) -> None:
        """The object, its bytes and its lines. `NotThere` if it is not there."""
        if self.find(owner, kind, key) is None:
            raise not_there(kind, key)
        self._remove(owner, kind, key)

    def remove_oldest(self, owner: str, kind: str, room: int) -> int:
        """Removes an owner's oldest objects of a kind until `room` bytes are free; returns how many went."""
        removed = 0
        while self.used(owner) + room > self._owner_bytes:
            oldest = self.page(owner, kind, after=None, limit=1, newest_first=False)
            if not oldest:
                break
            self._remove(owner, kind, oldest[0].id)
            removed += 1
        return removed

    def remove_expired(self) -> int:
        """Everything whose time is over; returns how many objects went."""
        query = "SELECT owner, kind, id FROM objects WHERE expires IS NOT NULL AND expires <= ? LIMIT 1000"
        rows = self._sql.execute(query, (self._now(),)).fetchall()
        for owner, kind, key in rows:
            self._remove(owner, kind, key)
        return len(rows)

    def remove_orphans(self) -> None:
        """Bytes and lines that belong to no object."""
        for table in ("pieces", "lines"):
            self._sql.execute(f"DELETE FROM {table} WHERE id NOT IN (SELECT id FROM objects)")
        self._sql.execute("DELETE FROM owners")
        self._sql.execute(
            "INSERT INTO owners SELECT owner, SUM(size + COALESCE((SELECT SUM(length(data)) FROM pieces WHERE pieces.id = objects.id), 0)"
            " + COALESCE((SELECT SUM(length(CAST(text AS BLOB))) FROM lines WHERE lines.id = objects.id), 0)) FROM objects GROUP BY owner"
        )

    def append(self, owner: str, key: str, data: bytes, *, checked: bool = True) -> None:
        """The next bytes of an object, which is there before them: another server that starts on the same file deletes what belongs to no
        object. `checked` False: also above the owner's share."""
        for start in range(0, len(data), PIECE_BYTES):
            piece = data[start : start + PIECE_BYTES]
            query = "INSERT INTO pieces SELECT ?, COALESCE(MAX(number), -1) + 1, ? FROM pieces WHERE id = ?"
            self._sql.execute(query, (key, piece, key))
        self._take(owner, len(data), checked)

    def pieces(self, key: str, first: int, count: int) -> list[bytes]:
        """Up to `count` pieces of an object's bytes, from the one numbered `first`."""
        query = "SELECT data FROM pieces WHERE id = ? AND number >= ? ORDER BY number LIMIT ?"
        return [row[0] for row in self._sql.execute(query, (key, first, count)).fetchall()]

    def add_line(self, owner: str, key: str, number: int, failed: bool, text: str, *, checked: bool = True) -> bool:
        """What became of a batch's line; False if that was known before, which then stays. `StorageFull` unless `checked` is False."""
        done = self._sql.execute("INSERT OR IGNORE INTO lines VALUES (?, ?, ?, ?)", (key, number, failed, text)).rowcount
        if done:
            self._take(owner, _bytes(text), checked)
        return bool(done)

    def done_lines(self, key: str) -> dict[int, bool]:
        """The batch's lines that are done, by number: whether they failed."""
        rows = self._sql.execute("SELECT number, failed FROM lines WHERE id = ?", (key,)).fetchall()
        return {number: bool(failed) for number, failed in rows}

    def count_lines(self, key: str) -> tuple[int, int]:
        """How many of a batch's lines are done well, and how many failed."""
        query = "SELECT COALESCE(SUM(1 - failed), 0), COALESCE(SUM(failed), 0) FROM lines WHERE id = ?"
        good, bad = self._sql.execute(query, (key,)).fetchone()
        return int(good), int(bad)

    def line_texts(self, key: str, failed: bool) -> Iterator[str]:
        """The texts of those that did, or did not, fail, in the order of the input."""
        cursor = self._sql.execute("SELECT text FROM lines WHERE id = ? AND failed = ? ORDER BY number", (key, failed))
        return (row[0] for row in cursor)

    def drop_lines(self, owner: str, key: str) -> None:
        self._take(owner, -self._drop("lines", "CAST(text AS BLOB)", key))

    def used(self, owner: str) -> int:
        """Bytes that an owner's objects take."""
        row = self._sql.execute("SELECT bytes FROM owners WHERE owner = ?", (owner,)).fetchone()
        return 0 if row is None else int(row[0])

    def _remove(self, owner: str, kind: str, key: str) -> None:
        where = (owner, kind, key)
        (size,) = self._sql.execute("SELECT size FROM objects WHERE owner = ? AND kind = ? AND id = ?", where).fetchone()
        self._sql.execute("DELETE FROM objects WHERE owner = ? AND kind = ? AND id = ?", where)
        self._take(owner, -size - self._drop("pieces", "data", key) - self._drop("lines", "CAST(text AS BLOB)", key))

    def _drop(self, table: str, column: str, key: str) -> int:
        """Deletes an id's rows; returns how many bytes they had."""
        (size,) = self._sql.execute(f"SELECT COALESCE(SUM(length({column})), 0) FROM {table} WHERE id = ?", (key,)).fetchone()
        self._sql.execute(f"DELETE FROM {table} WHERE id = ?", (key,))
        return int(size)

    def _take(self, owner: str, size: int, checked: bool = True) -> None:
        query = "INSERT INTO owners VALUES (?, ?) ON CONFLICT (owner) DO UPDATE SET bytes = bytes + excluded.bytes"
        self._sql.execute(query, (owner, size))
        if checked and size > 0 and self.used(owner) > self._owner_bytes:
            raise StorageFull(
                f"This would take more than the {self._owner_bytes} bytes that one caller may keep here. Delete files or answers first."
            )

    def _now(self) -> int:
        return int(self._clock())


def not_there(kind: str, key: str, param: str | None = None) -> NotThere:
    """The same words whether there never was such an object or it is somebody else's."""
    return NotThere(f"There is no {kind} {key!r:.80} here.", param=param)


def _bytes(text: str) -> int:
    return len(text.encode("utf-8", "replace"))


def _written(body: dict[str, Any]) -> str:
    return json.dumps(body, ensure_ascii=False, separators=(",", ":"))
