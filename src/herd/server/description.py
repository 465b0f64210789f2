"""The OpenAPI description, made of the operations and their pydantic models."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from pydantic.json_schema import JsonSchemaMode, models_json_schema

from herd.server.operations import Described, described
from herd.server.streaming import SSE
from herd.version import __version__

if TYPE_CHECKING:
    import pydantic
    from starlette.routing import Route

REFERENCE = "#/components/schemas/{model}"
ERRORS = {
    400: "A field or the address is wrong; `param` names it.",
    401: "The key is missing or wrong.",
    403: "The operator has not allowed this, or not to that web page.",
    404: "There is no such model, or no such thing.",
    408: "The request did not come in time.",
    413: "The body is too large.",
    414: "The address is too long.",
    415: "The body is not JSON, or compressed.",
    421: "The server does not answer under this name.",
    429: "A limit is reached; `Retry-After` says when to ask again.",
    431: "The head of the request is too large.",
    500: "A bug of the server.",
    503: "The model cannot answer now; `Retry-After` says when to ask again.",
    504: "The time that the request was given is over.",
}
ERROR_SCHEMA = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["message", "type", "param", "code"],
            "properties": {
                "message": {"type": "string"},
                "type": {"type": "string"},
                "param": {"type": ["string", "null"]},
                "code": {"type": ["string", "null"]},
            },
        }
    },
}
ANTHROPIC_ERROR_SCHEMA = {
    "type": "object",
    "required": ["type", "error"],
    "properties": {
        "type": {"const": "error"},
        "error": {
            "type": "object",
            "required": ["type", "message"],
            "properties": {"type": {"type": "string"}, "message": {"type": "string"}},
        },
        "request_id": {"type": ["string", "null"]},
    },
}
EVENT_SCHEMA = {
    "type": "object",
    "description": "One event of the stream. Before OpenAPI 3.2 the schema of a stream of events is that of each.",
    "required": ["data"],
    "properties": {"event": {"type": "string"}, "data": {"type": "string"}},
}
OLLAMA_ERROR_SCHEMA = {"type": "object", "required": ["error"], "properties": {"error": {"type": "string"}}}


def describe(routes: Sequence[Route]) -> dict[str, Any]:
    """The description of these routes, as OpenAPI 3.1."""
    found = described(routes)
    names, schemas = _schemas(found)
    errors = {"Error": ERROR_SCHEMA, "AnthropicError": ANTHROPIC_ERROR_SCHEMA, "OllamaError": OLLAMA_ERROR_SCHEMA}
    paths: dict[str, dict[str, Any]] = {}
    for each in found:
        paths.setdefault(re.sub(r":\w+}", "}", each.path), {})[each.method.lower()] = _operation(each, names)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "herd",
            "version": __version__,
            "description": "A Llama of your own, for the clients of OpenAI, Anthropic and Ollama.",
        },
        "security": [{"bearer": []}, {"key": []}],
        "paths": paths,
        "components": {
            "schemas": {**schemas, **errors},
            "securitySchemes": {
                "bearer": {"type": "http", "scheme": "bearer"},
                "key": {"type": "apiKey", "in": "header", "name": "x-api-key"},
            },
        },
    }


Names = dict[tuple[type, str], dict[str, Any]]


def _schemas(found: Sequence[Described]) -> tuple[Names, dict[str, Any]]:
    wanted: list[tuple[type[pydantic.BaseModel], JsonSchemaMode]] = []
    for each in found:
        if each.operation.body is not None:
            wanted.append((each.operation.body, "validation"))
        if each.operation.reply is not None:
            wanted.append((each.operation.reply, "serialization"))
    names, definitions = models_json_schema(list(dict.fromkeys(wanted)), ref_template=REFERENCE)
    return {(model, mode): schema for (model, mode), schema in names.items()}, definitions.get("$defs", {})


def _operation(each: Described, names: Names) -> dict[str, Any]:
    operation = each.operation
    content: dict[str, Any] = {}
    if operation.reply is not None:
        content["application/json"] = {"schema": names[operation.reply, "serialization"]}
    elif operation.media:
        content[operation.media] = {"schema": {"type": "object"} if operation.media == "application/json" else {"type": "string"}}
    if operation.streams:
        content[operation.streams] = {"schema": EVENT_SCHEMA if operation.streams == SSE else {"type": "string"}}
    made: dict[str, Any] = {
        "summary": operation.summary,
        "description": each.doc,
        "tags": [operation.tag],
        "operationId": _identifier(each),
        "responses": {str(operation.status): {"description": "Done.", "content": content}, **_errors(each)},
    }
    if parameters := _parameters(each):
        made["parameters"] = parameters
    if operation.body is not None:
        made["requestBody"] = {"required": True, "content": {"application/json": {"schema": names[operation.body, "validation"]}}}
    elif operation.uploads:
        made["requestBody"] = {"required": True, "content": {"multipart/form-data": {"schema": operation.form or {"type": "object"}}}}
    if operation.is_open:
        made["security"] = []
    return made


def _identifier(each: Described) -> str:
    """A name for the operation: get_v1_models_model."""
    return re.sub(r"\W+", "_", f"{each.method.lower()}{re.sub(r':[a-z]+}', '}', each.path)}").strip("_")


def _parameters(each: Described) -> list[dict[str, Any]]:
    places = [
        {"name": name, "in": "path", "required": True, "schema": {"type": "string"}} for name in re.findall(r"{(\w+)(?::\w+)?}", each.path)
    ]
    return places + [
        {"name": name, "in": "query", "required": False, "schema": schema, "description": text}
        for name, schema, text in each.operation.query
    ]


def _errors(each: Described) -> dict[str, Any]:
    from herd.server.errors import surface

    name = {"anthropic": "AnthropicError", "ollama": "OllamaError"}.get(surface(each.path), "Error")
    content = {"application/json": {"schema": {"$ref": REFERENCE.format(model=name)}}}
    operation = each.operation
    statuses = set(ERRORS) if operation.body is not None or operation.uploads else set(ERRORS) - {415}
    return {str(status): {"description": ERRORS[status], "content": content} for status in sorted(statuses)}
