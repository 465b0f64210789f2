"""Bodies: JSON that is JSON, fields that are known, numbers within their bounds; whatever else is a 400 that names the field."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import httpx
import pytest

from herd.server.errors import ApiError
from herd.server.reading import BIG_BYTES, parse_body, parse_json
from herd.server.settings import LIMITS
from server.echo import ROUTES, Ask, body

Serve = Callable[..., Any]


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"", "empty"),
        (b"  \n", "empty"),
        (b"{", "character 1"),
        (b"nonsense", "character 0"),
        (b'{"prompt":"a"} x', "Extra data"),
        (b"{'prompt':'a'}", "double quotes"),
        (b'{"prompt":"a",}', "double quotes"),
        (b'{"prompt":"a","prompt":"b"}', "'prompt' appears twice"),
        (b'{"options":{"x":1,"x":1},"prompt":"a"}', "'x' appears twice"),
        (b'{"n":NaN}', "NaN is not a number"),
        (b'{"n":-Infinity}', "-Infinity is not a number"),
        (b'{"n":1e400}', "larger than any number"),
        (b'{"n":' + b"9" * 401 + b"}", "400 digits"),
        (b'\xef\xbb\xbf{"prompt":"a"}', "byte order mark"),
        ('{"prompt":"a"}'.encode("utf-16"), "not UTF-8"),
        (b'{"prompt":"\xff"}', "byte 11 is not UTF-8"),
        (b'{"prompt":"\\ud800"}', "half of a character"),
        (b'{"\\udfff":1}', "half of a character"),
        (b"[" * 100_000, "nested"),
        (b"[" * 200 + b"]" * 200, "nested deeper than"),
        (b'{"a":' * 100_000, "nested"),
        (b'{"prompt":"a\nb"}', "control character"),
    ],
)
def test_what_is_not_json_is_refused_with_a_reason(data: bytes, said: str) -> None:
    with pytest.raises(ApiError) as refused:
        parse_body(data, Ask)
    assert refused.value.status == 400 and refused.value.code == "invalid_json" and said in refused.value.message


@pytest.mark.parametrize("data", [b"null", b"[]", b"1", b'"a"', b"true"])
def test_json_that_is_no_object_is_refused(data: bytes) -> None:
    with pytest.raises(ApiError, match="body is not a JSON object"):
        parse_body(data, Ask)


def test_whole_pairs_of_escapes_are_characters() -> None:
    assert parse_json(b'"\\ud83d\\ude00"') == "\N{GRINNING FACE}"


def test_brackets_inside_texts_do_not_count_as_depth() -> None:
    assert parse_json(json.dumps({"a": "[" * 1000}).encode()) == {"a": "[" * 1000}
    assert parse_json(b"[" * LIMITS.json_depth + b"]" * LIMITS.json_depth)


@pytest.mark.parametrize(
    ("fields", "param", "said"),
    [
        ({"promt": "a"}, "promt", "did you mean 'prompt'?"),
        ({"prompt": None}, "prompt", "valid string"),
        ({"prompt": 1}, "prompt", "valid string"),
        ({"n": 0}, "n", "greater than or equal to 1"),
        ({"n": "1"}, "n", "valid integer"),
        ({"n": True}, "n", "valid integer"),
        ({"n": 1.5}, "n", "valid integer"),
        ({"temperature": "1"}, "temperature", "valid number"),
        ({"audio": {"voice": "x"}}, "audio", "is not honoured here: answers are text"),
        ({"options": {"include_usge": True}}, "options.include_usge", "did you mean 'include_usage'?"),
        ({"options": []}, "options", "JSON object"),
        ({"parts": [{"kind": "a"}, {"kind": "b", "text": 5}]}, "parts.1.text", "valid string"),
        ({"parts": [{"text": "b"}]}, "parts.0.kind", "missing"),
        ({"parts": [{"kind": "a", "colour": 1}]}, "parts.0.colour", "not a field"),
        ({"stop": 5}, "stop", "valid string"),
        ({"stop": ["a", 5]}, "stop", "valid string"),
        ({"x" * 1000: 1}, "x" * 80, "not a field"),
    ],
)
def test_a_wrong_field_is_named(fields: dict[str, Any], param: str, said: str) -> None:
    with pytest.raises(ApiError) as refused:
        parse_body(json.dumps(body(**fields)).encode(), Ask)
    assert refused.value.status == 400 and refused.value.param == param and said in refused.value.message


def test_harmless_fields_are_ignored_and_refused_ones_may_be_null() -> None:
    assert parse_body(b'{"prompt":"a","user":5,"audio":null}', Ask).prompt == "a"


def test_values_that_were_sent_are_not_repeated_in_errors(serve: Serve) -> None:
    server = serve(routes=ROUTES)
    found = httpx.post(f"{server.url}/v1/ask", json=body(n="SECRET"))
    assert found.status_code == 400 and "SECRET" not in found.text
    assert found.json()["error"] == {
        "message": "n is wrong: input should be a valid integer.",
        "type": "invalid_request_error",
        "param": "n",
        "code": None,
    }


def test_a_large_body_is_read_beside_the_loop(serve: Serve) -> None:
    server = serve(routes=ROUTES)
    found = httpx.post(f"{server.url}/v1/ask", json=body(user="x" * (BIG_BYTES + 1)))
    assert found.status_code == 200


def test_errors_have_the_shape_of_their_api(serve: Serve) -> None:
    server = serve(routes=ROUTES)
    wrong = body(n=0)
    assert httpx.post(f"{server.url}/v1/messages/ask", json=wrong).json()["error"]["type"] == "invalid_request_error"
    assert httpx.post(f"{server.url}/api/ask", json=wrong).json()["error"].startswith("n is wrong")
