"""`/v1/fine_tuning/jobs`: a file of conversations becomes an adapter of a model that is served, and is asked for as `model:name`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

import pydantic
from pydantic import Field
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from herd.errors import UnknownModel, did_you_mean
from herd.server.dates import shown
from herd.server.errors import ApiError
from herd.server.house import House, caller, house_of, visit_of
from herd.server.openai import tuning_work
from herd.server.openai.fields import MetadataKey, MetadataValue
from herd.server.openai.kept import check_file, check_open, found_by
from herd.server.openai.tuning_work import KIND, OPEN, changed
from herd.server.openai.wire import drawn_seed
from herd.server.operations import operation
from herd.server.paging import list_value, page_query, read_page
from herd.server.reading import Body, read_body
from herd.server.replies import reply
from herd.server.settings import LIMITS
from herd.server.tables import Tables, new_id

LIST_DEFAULT, LIST_MOST = 20, 100
OPEN_MOST = 10
LR = 1e-3
"""The peak rate that a multiplier of 1 means."""
_FIGURES = {"loss": "train_loss", "held_out.loss": "valid_loss"}


class Hyperparameters(Body):
    """How it is learned; `auto` is what suits most data."""

    n_epochs: Literal["auto"] | Annotated[int, Field(ge=1, le=50)] = "auto"
    batch_size: Literal["auto"] | Annotated[int, Field(ge=1, le=256)] = "auto"
    learning_rate_multiplier: Literal["auto"] | Annotated[float, Field(gt=0, le=100)] = "auto"


class Supervised(Body):
    hyperparameters: Hyperparameters | None = None


class Method(Body):
    REFUSED: ClassVar[Mapping[str, str]] = dict.fromkeys(
        ("dpo", "reinforcement"), "this route learns answers; `herd tune` beside the server knows other recipes."
    )

    type: Literal["supervised"]
    supervised: Supervised | None = None


class JobBody(Body):
    """The body of `POST /v1/fine_tuning/jobs`."""

    REFUSED: ClassVar[Mapping[str, str]] = {"integrations": "curves are in the job's events."}

    model: Annotated[str, Field(min_length=1, max_length=LIMITS.name_characters, description="A model that is served.")]
    training_file: Annotated[str, Field(min_length=1, max_length=200, description="A file for fine-tune: a conversation a line.")]
    validation_file: Annotated[str, Field(min_length=1, max_length=200)] | None = Field(
        None, description="A file for fine-tune that is measured and not learned; without one, 5 % of the training file are."
    )
    method: Method | None = None
    hyperparameters: Hyperparameters | None = Field(None, description="Older place of method.supervised.hyperparameters.")
    suffix: Annotated[str, Field(min_length=1, max_length=64, pattern=r"^[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?$")] | None = Field(
        None, description="How the name of what was learned begins."
    )
    seed: Annotated[int, Field(ge=0, le=2**31 - 1)] | None = None
    metadata: Annotated[dict[MetadataKey, MetadataValue], Field(max_length=LIMITS.metadata)] | None = None

    @property
    def chosen(self) -> Hyperparameters:
        given = self.method.supervised.hyperparameters if self.method is not None and self.method.supervised is not None else None
        return given or self.hyperparameters or Hyperparameters()


class JobReply(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(extra="allow")

    id: str
    object: Literal["fine_tuning.job"]
    model: str
    status: Literal["validating_files", "queued", "running", "succeeded", "failed", "cancelled"]
    fine_tuned_model: str | None
    training_file: str


class JobsReply(pydantic.BaseModel):
    object: Literal["list"]
    data: list[JobReply]
    first_id: str | None
    last_id: str | None
    has_more: bool


class PartsReply(pydantic.BaseModel):
    object: Literal["list"]
    data: list[dict[str, Any]]
    first_id: str | None
    last_id: str | None
    has_more: bool


@operation("Teach a model", body=JobBody, reply=JobReply)
async def create_job(request: Request) -> Response:
    """A low-rank adapter is learned from the file's conversations, beside the server, one job at a time. What was learned so far survives a
    restart. When it succeeds, `fine_tuned_model` can be asked at once. Needs the setting `allow_tuning`."""
    body = await read_body(request, JobBody)
    house, owner = house_of(request), caller(request).name
    _need_jobs(house)
    visit_of(request).check_model(body.model)
    known = [offer.name for offer in house.pool.offers() if offer.parent is None]
    if body.model not in known:
        raise UnknownModel(f"There is no model {body.model!r:.100} here that can be taught{did_you_mean(body.model, known)}", param="model")
    key = new_id("ftjob-")
    value = _first_value(key, body)
    given = {"epochs": body.chosen.n_epochs, "batch": body.chosen.batch_size, "lr": body.chosen.learning_rate_multiplier}
    choices = {name: value for name, value in given.items() if value != "auto"}
    if "lr" in choices:
        choices["lr"] *= LR

    def put(tables: Tables) -> None:
        check_file(tables, owner, body.training_file, "fine-tune", "training_file")
        if body.validation_file is not None:
            check_file(tables, owner, body.validation_file, "fine-tune", "validation_file")
        check_open(tables, owner, OPEN, OPEN_MOST, "jobs")
        begun = [[shown(), "info", "The job was taken."]]
        tables.put(owner, KIND, key, {"job": value, "choices": choices, "events": begun})
        tables.put(owner, OPEN, key, {})

    await house.keeping.store.write(put)
    if house.keeping.is_owner:
        tuning_work.start(house, owner, key)
    return reply(_shown(value))


def _first_value(key: str, body: JobBody) -> dict[str, Any]:
    chosen = body.chosen.model_dump()
    value = {"id": key, "object": "fine_tuning.job", "created_at": shown(), "finished_at": None, "error": None}
    value |= {"model": body.model, "fine_tuned_model": f"{body.model}:{body.suffix or 'tuned'}-{key[-8:]}"}
    value |= {"organization_id": "", "status": "validating_files", "training_file": body.training_file}
    value |= {
        "validation_file": body.validation_file,
        "result_files": [],
        "trained_tokens": None,
        "estimated_finish": None,
        "integrations": [],
    }
    value |= {"hyperparameters": chosen, "method": {"type": "supervised", "supervised": {"hyperparameters": chosen}}}
    return {**value, "seed": drawn_seed() % 2**31 if body.seed is None else body.seed, "metadata": body.metadata or {}}


def _shown(job: dict[str, Any]) -> dict[str, Any]:
    """What was learned has a name from the start, and is told once it can be asked for."""
    return job if job["status"] == "succeeded" else {**job, "fine_tuned_model": None}


@operation("List jobs", reply=JobsReply, query=page_query(LIST_DEFAULT, LIST_MOST))
async def list_jobs(request: Request) -> Response:
    """The caller's jobs, in pages."""
    page, owner = read_page(request, limit=LIST_DEFAULT, most=LIST_MOST), caller(request).name

    def find(tables: Tables) -> list[dict[str, Any]]:
        kept = tables.page(owner, KIND, after=page.after, limit=page.limit + 1, newest_first=page.newest_first)
        return [_shown(each.body["job"]) for each in kept]

    return reply(list_value(await house_of(request).keeping.store.read(find), page.limit))


@operation("Describe a job", reply=JobReply)
async def get_job(request: Request) -> Response:
    """How far it is, and what it taught."""
    return reply(_shown((await found_by(request, KIND))["job"]))


@operation("Cancel a job", reply=JobReply)
async def cancel_job(request: Request) -> Response:
    """Nothing is kept of what it learned. One that is over stays as it is."""
    house, owner, key = house_of(request), caller(request).name, request.path_params["id"]
    ended: dict[str, Any] = {"finished_at": shown()}
    job = await house.keeping.store.write(changed(owner, key, "cancelled", "The job was cancelled.", **ended))
    await house.keeping.cancel(owner, key)
    return reply(_shown(job))


@operation("List a job's events", reply=PartsReply, query=page_query(LIST_DEFAULT, LIST_MOST))
async def list_events(request: Request) -> Response:
    """What became of it, and the figures of its steps as they are logged."""
    body, key = await found_by(request, KIND), request.path_params["id"]
    events = [{"level": level, "message": said, "created_at": at, "type": "message", "data": {}} for at, level, said in body["events"]]
    first = events[0]["created_at"]
    for each in tuning_work.figures(house_of(request), key):
        step = int(each["step"])
        shown = {_FIGURES.get(name, name): value for name, value in each.items()}
        told = ", ".join(f"{name} {value:.4g}" for name, value in shown.items() if name.endswith("_loss"))
        at = len(events) - 1 if body["job"]["status"] in tuning_work.OVER else len(events)
        said = {"level": "info", "message": f"Step {step}: {told}", "created_at": first, "type": "metrics", "data": shown}
        events.insert(at, said)
    made = [{"object": "fine_tuning.job.event", "id": f"ftevent-{number}", **each} for number, each in enumerate(events)]
    return reply(_part(request, made))


@operation("List a job's checkpoints", reply=PartsReply, query=page_query(10, LIST_MOST))
async def list_checkpoints(request: Request) -> Response:
    """What can be asked of what it learned: the end of its run."""
    job, house, key = (await found_by(request, KIND))["job"], house_of(request), request.path_params["id"]
    if job["status"] != "succeeded":
        return reply(_part(request, []))
    logged = tuning_work.figures(house, key)
    latest = {name: each[name] for each in logged for name in each}
    metrics = {"step": latest.get("step", 0), "train_loss": latest.get("loss"), "valid_loss": latest.get("held_out.loss")}
    made = {"object": "fine_tuning.job.checkpoint", "id": f"ftckpt-{key[6:]}", "created_at": job["finished_at"], "fine_tuning_job_id": key}
    made |= {"fine_tuned_model_checkpoint": job["fine_tuned_model"], "step_number": int(latest.get("step", 0))}
    return reply(_part(request, [{**made, "metrics": {name: value for name, value in metrics.items() if value is not None}}]))


def _part(request: Request, made: list[dict[str, Any]]) -> dict[str, Any]:
    """A page of a list that is made at once."""
    page = read_page(request, limit=LIST_DEFAULT, most=LIST_MOST)
    listed = made[::-1] if page.newest_first else made
    places = [index for index, each in enumerate(listed) if each["id"] == page.after]
    if page.after is not None and not places:
        raise ApiError(404, f"There is no {page.after!r:.80} in this list.", param="after")
    first = places[0] + 1 if places else 0
    return list_value(listed[first : first + page.limit + 1], page.limit)


def _need_jobs(house: House) -> None:
    if house.jobs is None or not house.settings.allow_tuning:
        raise ApiError(403, "Models are not taught over HTTP here; `herd serve --set allow_tuning=true` allows it.", code="not_allowed")


ROUTES = (
    Route("/v1/fine_tuning/jobs", create_job, methods=["POST"]),
    Route("/v1/fine_tuning/jobs", list_jobs, methods=["GET"]),
    Route("/v1/fine_tuning/jobs/{id}", get_job, methods=["GET"]),
    Route("/v1/fine_tuning/jobs/{id}/cancel", cancel_job, methods=["POST"]),
    Route("/v1/fine_tuning/jobs/{id}/events", list_events, methods=["GET"]),
    Route("/v1/fine_tuning/jobs/{id}/checkpoints", list_checkpoints, methods=["GET"]),
)
