"""Every number of every body, as the description tells them, set to values that clients send by mistake or on purpose.

A value outside its bounds, or of another kind, is a 400 that names the field; whatever the value, it is never a 5xx.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from herd.server.description import describe
from herd.server.errors import surface
from herd.server.surfaces import surfaces
from server.bodies import VALID
from server.conftest import Running, running

LITERALS = ("-1", "0", str(2**31), str(2**63), str(2**64), "1e308", "-1e308", "1.5", '"1"', "true", "[]", "{}", '""', "9" * 300)
DESCRIPTION = describe(surfaces())
Path = tuple[str, ...]


def resolved(schema: dict[str, Any]) -> dict[str, Any]:
    while "$ref" in schema:
        schema = DESCRIPTION["components"]["schemas"][schema["$ref"].rpartition("/")[2]]
    return schema


def numbers(schema: dict[str, Any], path: Path = ()) -> Iterator[tuple[Path, list[dict[str, Any]]]]:
    """Fields that take numbers, by path, each with all kinds of value that it takes; objects within objects too, lists not."""
    if len(path) > 4:
        return
    for name, field in resolved(schema).get("properties", {}).items():
        kinds = [resolved(each) for each in resolved(field).get("anyOf", [field])]
        if any(each.get("type") in ("integer", "number") for each in kinds):
            yield (*path, name), kinds
        for each in kinds:
            if each.get("type") == "object":
                yield from numbers(each, (*path, name))


def operations() -> Iterator[tuple[str, dict[str, Any]]]:
    for path, methods in DESCRIPTION["paths"].items():
        for each in methods.values():
            content = each.get("requestBody", {}).get("content", {})
            if "application/json" in content:
                yield path, content["application/json"]["schema"]


def takes(kinds: list[dict[str, Any]], value: Any) -> bool:
    """Whether a value is among what the description allows."""
    return any(_is(each, value) for each in kinds)


def _is(kind: dict[str, Any], value: Any) -> bool:
    if "const" in kind or "enum" in kind:
        return value in kind.get("enum", [kind.get("const")])
    match kind.get("type"):
        case "integer" | "number":
            is_kind = type(value) is int or (type(value) is float and kind["type"] == "number")
            return is_kind and kind.get("minimum", value) <= value <= kind.get("maximum", value)
        case "string":
            return isinstance(value, str)
        case "boolean":
            return isinstance(value, bool)
        case "array":
            return isinstance(value, list)
        case "object":
            return isinstance(value, dict)
        case "null":
            return value is None
        case _:
            return True


def with_field(body: dict[str, Any], path: Path, literal: str) -> bytes:
    """A body with one field set, as text: the literal is not read and written again."""
    made = copy.deepcopy(body)
    holder = made
    for name in path[:-1]:
        holder = holder.setdefault(name, {})
    holder[path[-1]] = "\0here"
    return json.dumps(made).replace('"\\u0000here"', literal).encode()


CASES = [(path, field, kinds) for path, schema in operations() for field, kinds in numbers(schema)]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HERD_HOME", str(tmp_path_factory.mktemp("home")))
        with running() as found:
            yield found


@pytest.fixture(scope="module")
def client(server: Running) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=server.url, timeout=20) as made:
        yield made


def post(client: httpx.Client, path: str, content: bytes) -> httpx.Response:
    headers = {"content-type": "application/json", "anthropic-version": "2023-06-01"}
    return client.post(path, content=content, headers=headers)


def test_every_body_has_an_example_here() -> None:
    assert {path for path, _ in operations()} <= set(VALID)


def test_every_number_has_bounds() -> None:
    unbounded = [
        (path, ".".join(field))
        for path, field, kinds in CASES
        for each in kinds
        if each.get("type") in ("integer", "number") and not {"minimum", "exclusiveMinimum"} & set(each) | {"maximum"} & set(each)
    ]
    assert not unbounded


@pytest.mark.parametrize("path", sorted({path for path, _ in operations()}))
def test_the_examples_are_in_order(client: httpx.Client, path: str) -> None:
    found = post(client, path, json.dumps(VALID[path]).encode())
    needs_more = path in ("/v1/adapters", "/v1/batches", "/v1/fine_tuning/jobs", "/v1/moderations")  # a folder, a file, a guard
    assert found.status_code == 200 or (needs_more and found.status_code in (400, 403, 404)), found.text


@pytest.mark.parametrize(("path", "field", "kinds"), [pytest.param(*case, id=f"{case[0]} {'.'.join(case[1])}") for case in CASES])
def test_a_number_outside_its_bounds_is_refused_by_name(client: httpx.Client, path: str, field: Path, kinds: list[dict[str, Any]]) -> None:
    just_outside = [str(kind[bound] + step) for kind in kinds for bound, step in (("minimum", -1), ("maximum", 1)) if bound in kind]
    for literal in (*LITERALS, *just_outside):
        found = post(client, path, with_field(VALID[path], field, literal))
        assert found.status_code < 500, f"{literal}: {found.text}"
        if not takes(kinds, json.loads(literal)):
            assert found.status_code == 400, f"{literal}: {found.status_code} {found.text}"
            name = found.json()["error"]["param"] if surface(path) == "openai" else found.text
            assert name is not None and field[-1] in name, f"{literal}: {found.text}"


@pytest.mark.parametrize("path", sorted({path for path, _ in operations()}))
@pytest.mark.parametrize(
    "content", [b"", b"null", b"[]", b'"a"', b"1", b"{", b'{"model":1}', b'{"model":null}', b'{"model":"a","model":"b"}']
)
def test_a_body_that_is_no_request_is_a_400_in_the_shape_of_its_api(client: httpx.Client, path: str, content: bytes) -> None:
    found = post(client, path, content)
    error = found.json()["error"]
    assert found.status_code == 400 and (error if isinstance(error, str) else error["message"])


@pytest.mark.parametrize("path", sorted({path for path, _ in operations() if "model" in VALID.get(path, {})}))
@pytest.mark.parametrize("model", ["../../x", "C:\\x", "a\0b", "x" * 500, "fak\u0435", "fake:adapter", "FAKE ", "\n", "\u202efake"])
def test_a_model_that_is_not_there_is_a_404_or_a_400(client: httpx.Client, path: str, model: str) -> None:
    found = post(client, path, json.dumps({**VALID[path], "model": model}).encode())
    assert found.status_code in (400, 403, 404), found.text


@pytest.mark.parametrize("path", sorted({path for path, _ in operations()}))
def test_a_field_that_nobody_knows_is_named(client: httpx.Client, path: str) -> None:
    found = post(client, path, json.dumps({**VALID[path], "modle": "fake"}).encode())
    assert found.status_code == 400 and "modle" in found.text
