"""The work on a batch, from its first line to its files.

    validating --> in_progress --> finalizing --> completed
         |              |                          expired, cancelled: what was answered by then is in the files
         +--> failed    +--> cancelling

What became of a line is on the disk before the next is begun in its place, under the line's number, once. So a server that was killed
goes on where it was: lines that are done are not asked again, and no line is in the files twice. The files are made in one transaction
with the end of the batch.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any

from herd.server.callers import LOCAL
from herd.server.dates import now, shown
from herd.server.errors import ApiError
from herd.server.openai.batch_lines import ENDPOINTS, Line, answered, outcome_text, read_line
from herd.server.openai.files import BATCH_FILE_DAYS, BATCH_OPEN, content, file_value
from herd.server.openai.kept import FILE, KeptWork
from herd.server.tables import PIECE_BYTES, NotThere, StorageFull, Tables, new_id

if TYPE_CHECKING:
    from herd.server.house import House
    from herd.server.keys import Key

__all__ = ["ENDPOINTS", "KIND", "OVER", "WINDOW_S", "resume", "start", "with_counts"]

KIND = "batch"
WINDOW_S = 86_400
OVER = ("completed", "failed", "expired", "cancelled")
LINES_MAX = 50_000
ERRORS_TOLD = 100


def start(house: House, owner: str, key: str) -> None:
    """Begins or goes on with a batch, unless that is being done."""
    if not house.keeping.is_running(owner, key):
        house.keeping.spawn(owner, key, Work(house, owner, key).run())


async def resume(house: House) -> None:
    """Goes on with all batches that are not over."""
    for each in await house.keeping.store.read(lambda tables: tables.of_everybody(BATCH_OPEN)):
        start(house, each.owner, each.id)


def with_counts(tables: Tables, batch: dict[str, Any]) -> dict[str, Any]:
    """A batch with the numbers of its lines as they are now."""
    if batch["status"] in OVER:
        return batch
    good, bad = tables.count_lines(batch["id"])
    return {**batch, "request_counts": {**batch["request_counts"], "completed": good, "failed": bad}}


class Failure(Exception):
    """The batch cannot be worked on: what is wrong with it, as the batch tells it."""

    def __init__(self, *errors: dict[str, Any]) -> None:
        super().__init__()
        self.errors = list(errors)


class Work(KeptWork):
    """One batch being worked on, in a task of its own."""

    def __init__(self, house: House, owner: str, key: str) -> None:
        super().__init__(house, owner, key)
        self._batch: dict[str, Any] = {}

    async def run(self) -> None:
        """From where the batch is to its end."""
        body = await self._store.read(lambda tables: tables.get(self._owner, KIND, self._key))
        self._batch = body["batch"]
        if self._batch["status"] in OVER:
            return
        try:
            if self._batch["status"] in ("cancelling", "finalizing"):
                return await self._finish({"cancelling": "cancelled"}.get(self._batch["status"], "completed"), body["output_seconds"])
            if self._batch["status"] == "validating":
                total = await self._validate()
                self._batch["request_counts"]["total"] = total
                await self._change("in_progress")
            left_s = self._batch["expires_at"] - now()
            try:
                async with asyncio.timeout(max(0.0, left_s)):
                    await self._answer_lines()
            except TimeoutError:
                await self._expire()
                return await self._finish("expired", body["output_seconds"])
            await self._change("finalizing")
            await self._finish("completed", body["output_seconds"])
        except Failure as failure:
            await self._fail(failure)

    async def _validate(self) -> int:
        """Reads every line before the first is answered. Raises a `Failure` with what is wrong; returns how many there are."""
        errors: list[dict[str, Any]] = []
        seen: dict[str, int] = {}
        number = 0
        async for number, data in self._lines():
            if number > LINES_MAX:
                raise Failure(_error("too_many_lines", f"The file has more than {LINES_MAX} lines.", None))
            try:
                line = await read_line(data, self._batch["endpoint"])
                if line.custom_id in seen:
                    raise ApiError(400, f"custom_id is the same as in line {seen[line.custom_id]}.", param="custom_id")
                seen[line.custom_id] = number
            except ApiError as problem:
                errors.append(_error(problem.code or "invalid_line", problem.message, number, problem.param))
                if len(errors) >= ERRORS_TOLD:
                    break
        if errors:
            raise Failure(*errors)
        if not number:
            raise Failure(_error("empty_file", "The file has no lines.", None))
        return number

    async def _answer_lines(self) -> None:
        """Answers what is not yet answered, several lines at once."""
        done = await self._store.read(lambda tables: tables.done_lines(self._key))
        key = self._find_key()
        places = self._house.keeping.batch_places
        try:
            async with asyncio.TaskGroup() as group:
                async for number, data in self._lines():
                    if number in done:
                        continue
                    line = await read_line(data, self._batch["endpoint"])
                    await places.acquire()
                    task = group.create_task(self._answer_line(number, line, key))
                    task.add_done_callback(lambda _: places.release())
        except ExceptionGroup as problems:
            raise problems.exceptions[0] from None

    async def _answer_line(self, number: int, line: Line, key: Key | None) -> None:
        status, text = await answered(self._house, self._batch["endpoint"], line, self._owner, key)
        await self._note(number, status >= 400, text, line)

    async def _note(self, number: int, failed: bool, text: str, line: Line) -> None:
        """Writes down what became of a line. Where its owner's share is used up, that is what became of it."""
        try:
            await self._store.write(lambda tables: tables.add_line(self._owner, self._key, number, failed, text))
        except StorageFull as problem:
            told = outcome_text(line.custom_id, None, {"code": "storage_full", "message": str(problem)})
            await self._store.write(lambda tables: tables.add_line(self._owner, self._key, number, True, told, checked=False))

    async def _expire(self) -> None:
        """Every line that was not answered in time says so."""
        done = await self._store.read(lambda tables: tables.done_lines(self._key))
        error = {"code": "batch_expired", "message": "This line was not answered before the batch expired."}
        async for number, data in self._lines():
            if number not in done:
                line = await read_line(data, self._batch["endpoint"])
                text = outcome_text(line.custom_id, None, error)
                await self._store.write(
                    lambda tables, number=number, text=text: tables.add_line(self._owner, self._key, number, True, text, checked=False)  # type: ignore[misc]
                )

    async def _finish(self, status: str, seconds: int | None) -> None:
        """Makes the files and ends the batch, in one transaction."""
        expires = now() + (seconds if seconds is not None else BATCH_FILE_DAYS * 86_400)

        def finish(tables: Tables) -> None:
            if self._is_over(tables):
                return
            counts = tables.count_lines(self._key)
            made = {}
            for failed, count, name in ((False, counts[0], "output"), (True, counts[1], "error")):
                made[f"{name}_file_id"] = self._make_file(tables, failed, name, expires) if count else None
            tables.drop_lines(self._owner, self._key)
            self._batch["request_counts"] |= {"completed": counts[0], "failed": counts[1]}
            self._batch |= made
            self._end(tables, status)

        await self._store.write(finish)

    def _make_file(self, tables: Tables, failed: bool, name: str, expires: int) -> str:
        """A file of the batch's lines that did, or did not, fail."""
        key, size, waiting = new_id("file-"), 0, bytearray()
        for text in tables.line_texts(self._key, failed):
            waiting += text.encode("utf-8", "replace") + b"\n"
            while len(waiting) >= PIECE_BYTES:
                tables.append(self._owner, key, bytes(waiting[:PIECE_BYTES]), checked=False)
                size += PIECE_BYTES
                del waiting[:PIECE_BYTES]
        tables.append(self._owner, key, bytes(waiting), checked=False)
        value = file_value(key, f"{self._key}_{name}.jsonl", "batch_output", size + len(waiting), expires)
        tables.put(self._owner, FILE, key, value, expires=expires, checked=False)
        return key

    async def _fail(self, failure: Failure) -> None:
        def fail(tables: Tables) -> None:
            if self._is_over(tables):
                return
            self._batch["errors"] = {"object": "list", "data": failure.errors}
            tables.drop_lines(self._owner, self._key)
            self._end(tables, "failed")

        await self._store.write(fail)

    async def _change(self, status: str) -> None:
        """The next state, unless the batch was cancelled meanwhile: then its task is about to end."""

        def change(tables: Tables) -> None:
            body = tables.get(self._owner, KIND, self._key)
            if body["batch"]["status"] != "cancelling":
                self._batch |= {"status": status, f"{status}_at": shown()}
                tables.replace(self._owner, KIND, self._key, {**body, "batch": self._batch})

        await self._store.write(change)

    def _is_over(self, tables: Tables) -> bool:
        """Whether the batch ended meanwhile: a write goes on when the task that asked for it is cancelled."""
        found = tables.find(self._owner, KIND, self._key)
        return found is None or found.body["batch"]["status"] in OVER

    def _end(self, tables: Tables, status: str) -> None:
        body = tables.get(self._owner, KIND, self._key)
        self._batch |= {"status": status, f"{status}_at": shown(), "cancelling_at": body["batch"]["cancelling_at"]}
        tables.replace(self._owner, KIND, self._key, {**body, "batch": self._batch})
        tables.remove(self._owner, BATCH_OPEN, self._key)

    def _find_key(self) -> Key | None:
        """The key of the batch's owner; one that was revoked works on nothing any more."""
        if self._owner == LOCAL and not self._house.settings.need_key:
            return None
        found = next((key for key in self._house.keys.all() if key.id == self._owner and key.is_valid(time.time())), None)
        if found is None:
            raise Failure(_error("invalid_api_key", "The key that made this batch is not valid any more.", None))
        return found

    async def _lines(self) -> AsyncIterator[tuple[int, bytes]]:
        """The file's lines with their numbers from 1; blank ones are none, but count. Raises a `Failure` where the file is gone."""
        most = self._house.settings.max_body_bytes
        waiting = bytearray()
        number = 0
        file = self._batch["input_file_id"]
        try:
            await self._store.read(lambda tables: tables.get(self._owner, FILE, file))
        except NotThere:
            raise Failure(_error("file_gone", "The input file is not there any more.", None)) from None
        async for piece in content(self._house, file):
            waiting += piece
            *whole, rest = waiting.split(b"\n")
            waiting = bytearray(rest)
            for data in whole:
                number += 1
                if data.strip():
                    yield number, bytes(data)
            if len(waiting) > most:
                raise Failure(_error("line_too_long", f"A line has more than {most} bytes.", number + 1))
        if waiting.strip():
            yield number + 1, bytes(waiting)


def _error(code: str, message: str, line: int | None, param: str | None = None) -> dict[str, Any]:
    return {"code": code, "message": message, "line": line, "param": param}
