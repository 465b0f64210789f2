"""What schemathesis finds: our description, read as a stranger reads it, against the server that it describes.

Requests are made of the description alone. Whatever is asked, the answer is no 5xx, and its status, media type and JSON are among those
that the description tells. Besides requests that follow the description, and requests that break it, there are bodies in order of which
some fields are replaced by described ones: those get past the door, and reach what is stored.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
import requests
import schemathesis
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import content_type_conformance, response_schema_conformance, status_code_conformance

from herd.server.description import describe
from herd.server.surfaces import surfaces
from herd.text.formats.guard import Verdict
from server.bodies import VALID
from server.conftest import Running, running
from server.fake_pool import FakePool, FakeService

DESCRIPTION = describe(surfaces())
SCHEMA = schemathesis.openapi.from_dict(DESCRIPTION)
CHECKS = [not_a_server_error, status_code_conformance, content_type_conformance, response_schema_conformance]
OPERATIONS = [(path, method) for path, methods in DESCRIPTION["paths"].items() for method in methods]
LINE = b'{"custom_id": "a", "method": "POST", "url": "/v1/chat/completions", "body": {"messages": [{"role": "user", "content": "Hi"}]}}'
TIMEOUT_S = 60
FEW, MANY = 4, 300


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """A server on which every operation can succeed."""
    folder = tmp_path_factory.mktemp("served")
    (folder / "adapters" / "poems").mkdir(parents=True)
    pool = FakePool(FakeService(verdict=Verdict(True, ())))
    with running(pool, data_folder=folder / "data", adapter_folder=folder / "adapters") as made:
        yield made


@pytest.fixture(scope="module")
def connection() -> Iterator[requests.Session]:
    with requests.Session() as made:
        yield made


def described(path: str, method: str) -> dict[str, Any]:
    found: dict[str, Any] = DESCRIPTION["paths"][path][method]
    return found


def takes_input(path: str, method: str) -> bool:
    return bool({"parameters", "requestBody"} & described(path, method).keys())


def body_fields(path: str, method: str) -> list[str]:
    """Names of the fields of an operation's JSON body."""
    schema = described(path, method).get("requestBody", {}).get("content", {}).get("application/json", {}).get("schema", {})
    name = schema.get("$ref", "").rpartition("/")[2]
    return sorted(DESCRIPTION["components"]["schemas"].get(name, {}).get("properties", {}))


def kept(url: str, path: str) -> dict[str, str]:
    """Names of things that are there, for the places in `path`: an answer, a file, a batch, an adapter, made for this test."""
    places = {"model": "fake"}
    with httpx.Client(base_url=url, timeout=TIMEOUT_S) as client:
        if path.startswith("/v1/responses/{"):
            places["id"] = client.post("/v1/responses", json=VALID["/v1/responses"]).json()["id"]
        elif path.startswith(("/v1/files/{", "/v1/batches")):
            made = client.post("/v1/files", files={"file": ("lines.jsonl", LINE)}, data={"purpose": "batch"}).json()["id"]
            places["input_file_id"] = places["id"] = made
            if path.startswith("/v1/batches/{"):
                places["id"] = client.post("/v1/batches", json={**VALID["/v1/batches"], "input_file_id": made}).json()["id"]
        elif path.startswith("/v1/adapters/{"):
            client.post("/v1/adapters", json=VALID["/v1/adapters"]).raise_for_status()
            places["id"] = "fake:poems"
    return places


def ask(case: schemathesis.Case, url: str, connection: requests.Session) -> None:
    """Sends a request, and judges what comes back."""
    answered = case.call(base_url=url, session=connection, timeout=TIMEOUT_S)
    case.validate_response(answered, checks=CHECKS)


def follow(path: str, method: str, url: str, connection: requests.Session, mode: GenerationMode, examples: int) -> None:
    """Requests made of the description: within it, or outside of it."""

    @seed(1)
    @settings(max_examples=examples, deadline=None, database=None, suppress_health_check=list(HealthCheck), phases=[Phase.generate])
    @given(case=SCHEMA[path][method.upper()].as_strategy(mode))
    def check(case: schemathesis.Case) -> None:
        ask(case, url, connection)

    check()


def vary(path: str, method: str, url: str, connection: requests.Session, examples: int) -> None:
    """Requests in order of which some fields of the body are replaced; places in the address name what is there."""
    names = body_fields(path, method)
    places = kept(url, path)
    replaced = st.sets(st.sampled_from(names), max_size=2) if names else st.just(set())

    @seed(1)
    @settings(max_examples=examples, deadline=None, database=None, suppress_health_check=list(HealthCheck), phases=[Phase.generate])
    @given(case=SCHEMA[path][method.upper()].as_strategy(), replaced=replaced)
    def check(case: schemathesis.Case, replaced: set[str]) -> None:
        if isinstance(case.body, dict) and path in VALID:
            own = {name: value for name, value in places.items() if name in VALID[path]}
            case.body = {**VALID[path], **own, **{name: case.body[name] for name in replaced & case.body.keys()}}
        case.path_parameters = {name: places.get(name, value) for name, value in (case.path_parameters or {}).items()}
        ask(case, url, connection)

    check()


@pytest.mark.parametrize(("path", "method"), OPERATIONS)
def test_requests_that_follow_the_description_are_answered_as_it_says(
    path: str, method: str, served: Running, connection: requests.Session
) -> None:
    follow(path, method, served.url, connection, GenerationMode.POSITIVE, FEW)


@pytest.mark.parametrize(("path", "method"), [each for each in OPERATIONS if takes_input(*each)])
def test_requests_that_break_the_description_are_answered_as_it_says(
    path: str, method: str, served: Running, connection: requests.Session
) -> None:
    follow(path, method, served.url, connection, GenerationMode.NEGATIVE, FEW)


@pytest.mark.parametrize(("path", "method"), [each for each in OPERATIONS if takes_input(*each)])
def test_requests_in_order_with_some_described_fields_are_answered_as_it_says(
    path: str, method: str, served: Running, connection: requests.Session
) -> None:
    vary(path, method, served.url, connection, 2 * FEW)


STREAMS = [path for path, method in OPERATIONS if "text/event-stream" in str(described(path, method)) and path in VALID]


@pytest.mark.parametrize("path", STREAMS)
def test_streams_are_events_as_described(path: str, served: Running, connection: requests.Session) -> None:
    ask(SCHEMA[path]["POST"].Case(body={**VALID[path], "stream": True}, media_type="application/json"), served.url, connection)


@pytest.mark.slow
@pytest.mark.parametrize(("path", "method"), [each for each in OPERATIONS if takes_input(*each)])
def test_many_requests_are_answered_as_the_description_says(path: str, method: str, served: Running, connection: requests.Session) -> None:
    vary(path, method, served.url, connection, MANY)
    for mode in GenerationMode:
        follow(path, method, served.url, connection, mode, MANY)


def test_who_brings_no_key_is_told_so_as_described() -> None:
    with running(need_key=True) as server:
        for path, method in OPERATIONS:
            address = server.url + re.sub(r"{\w+}", "a", path)
            answered = httpx.request(method, address, timeout=TIMEOUT_S)
            assert (answered.status_code == 401) == (described(path, method).get("security") != []), (path, method)
            SCHEMA[path][method.upper()].validate_response(answered)
