"""The description of the server: complete, true, and readable without a network."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import httpx

from herd.server.description import describe
from herd.server.endpoints import endpoints_page
from herd.server.operations import operation_of
from herd.server.surfaces import surfaces
from server.echo import ROUTES

Serve = Callable[..., Any]


def test_every_route_of_the_server_says_what_it_does() -> None:
    for route in surfaces():
        said = operation_of(route)
        assert said.summary and not said.summary.endswith("."), route.path
        assert (route.endpoint.__doc__ or "").strip(), f"{route.path} has no docstring"


def test_the_description_names_every_route_field_and_bound() -> None:
    found = describe(ROUTES)
    operation = found["paths"]["/v1/ask"]["post"]
    schema = found["components"]["schemas"][operation["requestBody"]["content"]["application/json"]["schema"]["$ref"].rpartition("/")[2]]
    assert schema["properties"]["n"]["maximum"] == 128 and schema["required"] == ["prompt"] and schema["additionalProperties"] is False
    assert "text/event-stream" in operation["responses"]["200"]["content"]
    assert found["paths"]["/health"]["get"]["security"] == [] and "security" not in found["paths"]["/ready"]["get"]
    assert found["paths"]["/api/ask"]["post"]["responses"]["400"]["content"]["application/json"]["schema"]["$ref"].endswith("OllamaError")


def test_names_of_operations_are_unique() -> None:
    paths = describe(surfaces())["paths"]
    names = [each["operationId"] for methods in paths.values() for each in methods.values()]
    assert len(names) == len(set(names))


def test_the_description_is_served_and_refers_only_to_itself(server: Any) -> None:
    found = httpx.get(f"{server.url}/openapi.json").json()
    assert found["openapi"] == "3.1.0"
    references = set(re.findall(r'"\$ref": ?"#/components/schemas/([^"]+)"', httpx.get(f"{server.url}/openapi.json").text))
    assert references <= set(found["components"]["schemas"])


def test_the_page_for_people_needs_nothing_from_elsewhere(server: Any) -> None:
    found = httpx.get(f"{server.url}/docs")
    assert found.status_code == 200 and "<script" not in found.text and "default-src 'none'" in found.headers["content-security-policy"]
    assert not re.findall(r"(?:src|href)=['\"]?(?:https?:)?//", found.text)
    assert "/health" in found.text and "/metrics" in found.text


def test_the_reference_has_three_lists_for_a_body() -> None:
    page = endpoints_page(ROUTES)
    section = page[page.index("`POST /v1/ask`") : page.index("`POST /v1/messages/ask`")]
    assert (
        "| `n` | whole number from 1 to 128 | `1` |" in section
        and "| `prompt` | text of at most 1000000 characters | required |" in section
    )
    assert "- `user`: who asks is told by the key." in section and "- `audio`: answers are text." in section
    assert "| `options.include_usage` | true or false |" in section and "| `parts[].kind` | text | required |" in section
