"""Bodies of requests: strict JSON first, then a pydantic model that knows every field by name.

A field is honoured, or on the model's list of those that may be ignored because that changes nothing, or refused by name.
"""

from __future__ import annotations

import asyncio
import functools
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar, TypeVar

import pydantic
from pydantic_core import PydanticCustomError
from starlette.requests import Request

from herd.errors import did_you_mean
from herd.server.errors import ApiError
from herd.server.settings import LIMITS

BIG_BYTES = 1 << 20
"""Bodies above are parsed beside the event loop, which others' tokens pass through."""
_JSON = "application/json"
_OF_OBJECTS = frozenset(("model_type", "model_attributes_type", "dataclass_type", "dict_type"))
"""Faults that pydantic tells with the names of our classes."""
B = TypeVar("B", bound="Body")


class Body(pydantic.BaseModel):
    """An object that clients send: a whole body, or a part of one.

    HARMLESS   fields that are accepted and ignored, with the reason why that changes nothing
    REFUSED    fields that the API has and this server does not honour, with what to do instead; null is accepted, as if absent
    """

    model_config = pydantic.ConfigDict(strict=True, frozen=True, extra="forbid", hide_input_in_errors=True, protected_namespaces=())

    HARMLESS: ClassVar[Mapping[str, str]] = {}
    REFUSED: ClassVar[Mapping[str, str]] = {}

    @pydantic.model_validator(mode="before")
    @classmethod
    def _know_every_field(cls, value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        known = cls.known()
        kept = {}
        for name, item in value.items():
            if name in known:
                kept[name] = item
            elif name in cls.HARMLESS:
                continue
            elif name in cls.REFUSED:
                if item is not None:
                    raise _field_error(name, f"is not honoured here: {cls.REFUSED[name]}")
            else:
                raise _field_error(name, f"is not a field of this request{did_you_mean(name, known)}")
        return kept

    @classmethod
    @functools.cache
    def known(cls) -> frozenset[str]:
        """Names of the fields that are honoured, as clients write them."""
        return frozenset(field.alias or name for name, field in cls.model_fields.items())


def _field_error(name: str, message: str) -> PydanticCustomError:
    return PydanticCustomError("herd_field", "{said}", {"field": name[:80], "said": message})


async def read_body(request: Request, model: type[B]) -> B:
    """The body of a request as `model`. `ApiError` 400 names the field that is wrong, 415 a body that is not JSON."""
    kind, _, parameters = request.headers.get("content-type", "").partition(";")
    charset = parameters.strip().lower().replace('"', "").removeprefix("charset=")
    if kind.strip().lower() != _JSON or charset not in ("", "utf-8", "utf8"):
        raise ApiError(415, f"The content type is {request.headers.get('content-type', '')!r:.80}; expected {_JSON} in UTF-8.")
    data: bytes = request.scope.pop("herd.body", b"")
    if len(data) > BIG_BYTES:
        return await asyncio.to_thread(parse_body, data, model)
    return parse_body(data, model)


def parse_body(data: bytes, model: type[B]) -> B:
    return validate(parse_json(data), model)


def validate(value: object, model: type[B]) -> B:
    """A parsed JSON value as `model`."""
    try:
        return model.model_validate(value)
    except pydantic.ValidationError as problem:
        raise told(problem, value) from None
    except RecursionError:
        raise ApiError(400, "The body is nested too deeply.") from None


def told(problem: pydantic.ValidationError, value: object) -> ApiError:
    """The first thing that is wrong with `value`, with the dotted path of its field."""
    first = problem.errors(include_url=False, include_input=False)[0]
    path = list(_path(first["loc"], value, first["type"] == "missing"))
    said = first["msg"]
    if first["type"] == "herd_field":
        path.append(first["ctx"]["field"])
    elif first["type"] == "missing":
        said = "is missing"
    elif first["type"] in _OF_OBJECTS:
        said = "is not a JSON object"
    else:
        said = f"is wrong: {said[:1].lower()}{said[1:]}"
    name = ".".join(path)[:200]
    return ApiError(400, f"{name or 'The body'} {said.rstrip('.?')}{'?' if said.endswith('?') else '.'}", param=name or None)


def _path(parts: Sequence[int | str], value: Any, is_missing: bool) -> Iterator[str]:
    """The steps that lead into the value; pydantic also names branches of unions, which are no part of it."""
    for index, part in enumerate(parts):
        is_step = part < len(value) if isinstance(value, list) and isinstance(part, int) else isinstance(value, dict) and part in value
        if is_step:
            value = value[part]
        elif not (is_missing and index == len(parts) - 1):
            continue
        yield str(part)


def parse_json(data: bytes) -> Any:
    """JSON of RFC 8259 and nothing else: no duplicate keys, NaN, infinities, half characters, or brackets nested too deeply."""
    if not data.strip():
        raise _not_json("it is empty")
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as problem:
        raise _not_json(f"byte {problem.start} is not UTF-8") from None
    if text[0] == "\ufeff":
        raise _not_json("it begins with a byte order mark")
    try:
        value = _DECODER.decode(text)
        if "\\u" in text:
            json.dumps(value, ensure_ascii=False).encode("utf-8")
    except UnicodeEncodeError:
        raise _not_json("an escape such as \\ud800 is half of a character") from None
    except RecursionError:
        raise _not_json("its brackets are nested too deeply") from None
    except json.JSONDecodeError as problem:
        raise _not_json(f"{problem.msg} at character {problem.pos}") from None
    except ValueError as problem:
        raise _not_json(str(problem)) from None
    if text.count("[") + text.count("{") > LIMITS.json_depth and _depth(value) > LIMITS.json_depth:
        raise _not_json(f"its brackets are nested deeper than {LIMITS.json_depth}")
    return value


def _not_json(reason: str) -> ApiError:
    return ApiError(400, f"The body is not JSON that can be read: {reason}.", code="invalid_json")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        seen: set[str] = set()
        for name, _ in pairs:
            if name in seen:
                raise ValueError(f"the key {name[:80]!r} appears twice in one object")
            seen.add(name)
    return found


def _no_constant(text: str) -> None:
    raise ValueError(f"{text} is not a number of JSON")


def _finite(text: str) -> float:
    value = float(text)
    if math.isinf(value):
        raise ValueError(f"{text[:20]} is larger than any number that can be read")
    return value


def _whole(text: str) -> int:
    if len(text) > 400:
        raise ValueError("a number has more than 400 digits")
    return int(text)


_DECODER = json.JSONDecoder(object_pairs_hook=_unique, parse_constant=_no_constant, parse_float=_finite, parse_int=_whole)


def _depth(value: object) -> int:
    """How deep lists and objects lie in each other."""
    depth, level = 0, [value]
    while level:
        depth += 1
        level = [
            item
            for each in level
            for item in (each.values() if isinstance(each, dict) else each if isinstance(each, list) else ())
            if isinstance(item, dict | list)
        ]
    return depth
