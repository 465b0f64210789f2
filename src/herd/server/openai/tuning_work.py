"""The work on a fine-tuning job: a process that learns, watched from beside.

    validating_files --> queued --> running --> succeeded        the adapter is loaded, and asked for as model:name
           |                |          |
           +----------------+----------+------> failed, cancelled

One job learns at a time. What it learned so far is on the disk (the run's own checkpoints): when the server stops, the process is told to
stop too, and the next server goes on where it was.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import signal
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from herd.errors import CapacityError, HerdError, UsageError
from herd.providers.jobs import JobOrder
from herd.server.dates import shown
from herd.server.errors import ApiError, api_error
from herd.server.openai.files import content
from herd.server.openai.kept import FILE, KeptWork
from herd.server.tables import NotThere, Tables

if TYPE_CHECKING:
    from herd.server.house import House

KIND, OPEN = "fine_tuning_job", "fine_tuning_open"
OVER = ("succeeded", "failed", "cancelled")
END_S = 20.0
"""A process that is told to stop saves what it has; it may take so long."""
SAID_BYTES = 4096
EVENTS_MAX = 200
_LOG = logging.getLogger("herd.server")


def start(house: House, owner: str, key: str) -> None:
    """Begins or goes on with a job, unless that is being done."""
    if not house.keeping.is_running(owner, key):
        house.keeping.spawn(owner, key, Work(house, owner, key).run())


async def resume(house: House) -> None:
    """Goes on with all jobs that are not over, and gives models back what jobs taught them before."""
    if house.jobs is None:
        return
    for each in await house.keeping.store.read(lambda tables: tables.of_everybody(OPEN)):
        start(house, each.owner, each.id)
    for each in await house.keeping.store.read(lambda tables: tables.of_everybody(KIND)):
        if each.body["job"]["status"] == "succeeded" and each.id not in house.keeping.taught:
            house.keeping.taught.add(each.id)
            with suppress(HerdError):
                await add_result(house, each.id, each.body["job"])


async def add_result(house: House, key: str, job: dict[str, Any]) -> None:
    """Loads what a job learned."""
    model, _, name = job["fine_tuned_model"].rpartition(":")
    if all(offer.name != job["fine_tuned_model"] for offer in house.pool.offers()):
        await house.pool.add_adapter(model, name, str(folder_of(house, key) / "run"))


def folder_of(house: House, key: str) -> Path:
    return house.keeping.path.parent / "tuning" / key


def figures(house: House, key: str) -> list[dict[str, float]]:
    """What the run has logged so far, a step each."""
    found = []
    with suppress(OSError):
        for line in (folder_of(house, key) / "run" / "metrics.jsonl").read_text("utf-8").splitlines():
            with suppress(ValueError):
                if isinstance(each := json.loads(line), dict) and "step" in each:
                    found.append(each)
    return found


class Work(KeptWork):
    """One job being worked on, in a task of its own."""

    def __init__(self, house: House, owner: str, key: str) -> None:
        super().__init__(house, owner, key)
        self._folder = folder_of(house, key)

    async def run(self) -> None:
        """From where the job is to its end."""
        async with self._house.keeping.tuning_place:
            body = await self._store.read(lambda tables: tables.get(self._owner, KIND, self._key))
            if body["job"]["status"] in OVER:
                return
            try:
                await self._learn(body)
            except Exception as problem:
                if not isinstance(problem, HerdError | ApiError):
                    _LOG.exception("fine-tuning %s failed", self._key)
                await self._fail(api_error(problem))

    async def _learn(self, body: dict[str, Any]) -> None:
        job = body["job"]
        data, held_out = self._folder / "training.jsonl", self._folder / "validation.jsonl"
        measures = job.get("validation_file") is not None
        if job["status"] == "validating_files":
            if measures:
                await self._bring(job["validation_file"], held_out, "validation_file")
            await self._bring(job["training_file"], data, "training_file")
            await self._change("queued", "The files were read." if measures else "The file was read.")
        await self._change("running", "The run has begun." if job["status"] != "running" else "The run goes on where it was.")
        run = self._folder / "run"
        is_begun = (run / "config.toml").is_file()  # it is there long before the first checkpoint
        order = JobOrder(
            model=job["model"],
            data=str(data),
            folder=str(run),
            seed=job["seed"],
            held_out=str(held_out) if measures else None,
            resume=is_begun,
            **body["choices"],
        )
        assert self._house.jobs is not None, "jobs are begun where there are any"
        status, said = await self._process(list(self._house.jobs.command(order)))
        if status or not (run / "adapter").is_dir():
            _LOG.error("fine-tuning %s ended with status %d: %s", self._key, status, said)
            told = said.strip().splitlines()[-1:] if status == UsageError.exit_code else []
            param = "validation_file" if told and str(held_out) in told[0] else "training_file"
            text = told[0].replace(str(data), param).replace(str(held_out), param) if told else "The server's log says why."
            raise ApiError(400, f"The run failed. {text.replace(str(self._folder), '')}", param=param if told else None, code="run_failed")
        await add_result(self._house, self._key, job)
        self._house.keeping.taught.add(self._key)
        learned = int(sum(each.get("tokens", 0) for each in figures(self._house, self._key)))
        ended: dict[str, Any] = {"finished_at": shown(), "trained_tokens": learned}
        await self._change("succeeded", f"The model {job['fine_tuned_model']} can be asked.", **ended)

    async def _bring(self, file: str, place: Path, param: str) -> None:
        """A job's file, out of the storage and to where a process can read it."""
        place.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        try:
            await self._store.read(lambda tables: tables.get(self._owner, FILE, file))
        except NotThere as problem:
            raise ApiError(400, str(problem), param=param) from None
        with place.open("wb") as written:
            async for piece in content(self._house, file):
                written.write(piece)

    async def _process(self, command: list[str]) -> tuple[int, str]:
        """Runs a command to its end: its status, and the end of what it said of problems."""
        self._end_earlier()
        output, error = asyncio.subprocess.DEVNULL, asyncio.subprocess.PIPE
        try:
            process = await asyncio.create_subprocess_exec(*command, stdin=output, stdout=output, stderr=error, start_new_session=True)
        except OSError as problem:
            raise CapacityError(f"The process that learns cannot be started ({problem.strerror}). Try again later.") from problem
        (self._folder / "process").write_text(str(process.pid))
        said = bytearray()
        try:
            assert process.stderr is not None
            while piece := await process.stderr.read(SAID_BYTES):
                said += piece
                del said[:-SAID_BYTES]
            return await process.wait(), said.decode("utf-8", "replace")
        finally:
            if process.returncode is None:
                process.send_signal(signal.SIGTERM)
                with suppress(TimeoutError):
                    await asyncio.wait_for(asyncio.shield(process.wait()), END_S)
                if process.returncode is None:
                    process.kill()
                    await process.wait()

    def _end_earlier(self) -> None:
        """Ends the process of a server that was killed before it could."""
        with suppress(OSError, ValueError):
            number = int((self._folder / "process").read_text())
            if str(self._folder).encode() in Path(f"/proc/{number}/cmdline").read_bytes():
                os.kill(number, signal.SIGKILL)

    async def _fail(self, error: ApiError) -> None:
        told = {"code": error.code or "invalid_request", "message": error.message, "param": error.param}
        ended = {"error": told, "finished_at": shown(), "fine_tuned_model": None}
        await self._change("failed", error.message, level="error", **ended)

    async def _change(self, status: str, said: str, level: str = "info", **fields: Any) -> None:
        await self._store.write(changed(self._owner, self._key, status, said, level, **fields))


def changed(owner: str, key: str, status: str, said: str, level: str = "info", **fields: Any) -> Callable[[Tables], dict[str, Any]]:
    """The change of a job to another status, with an event that tells of it. One that is over stays as it is."""

    def change(tables: Tables) -> dict[str, Any]:
        body = tables.get(owner, KIND, key)
        job: dict[str, Any] = body["job"]
        if job["status"] in OVER:
            return job
        job |= {"status": status, **fields}
        body["events"] = [*body["events"], [shown(), level, said]][-EVENTS_MAX:]
        tables.replace(owner, KIND, key, body)
        if status in OVER:
            with suppress(NotThere):
                tables.remove(owner, OPEN, key)
        return job

    return change
