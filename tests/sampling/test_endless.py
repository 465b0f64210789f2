"""Languages without an end are refused when they are asked for, and no others."""

from __future__ import annotations

from typing import Any

import pytest

from herd.sampling.endless import REPETITIONS_MAX, has_instance, longest, patterns_of

NODE: dict[str, Any] = {"type": "object", "properties": {"next": {"$ref": "#/$defs/node"}}}
LINE = {"type": "string"}


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "object", "properties": {"a": {"$ref": "#"}}, "required": ["a"]},
        {"$ref": "#/$defs/node", "$defs": {"node": {**NODE, "required": ["next"]}}},
        {"type": "array", "items": {"$ref": "#"}, "minItems": 1},
        {"type": "array", "prefixItems": [LINE, {"$ref": "#"}], "minItems": 2},
        {"anyOf": [{"$ref": "#/$defs/a"}, {"$ref": "#/$defs/b"}], "$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}}},
        {"allOf": [{"type": "object"}, {"$ref": "#"}]},
    ],
)
def test_a_schema_whose_values_never_end_is_found(schema: Any) -> None:
    assert not has_instance(schema)


@pytest.mark.parametrize(
    "schema",
    [
        True,
        {},
        NODE,
        {"$ref": "#/$defs/node", "$defs": {"node": NODE}},
        {"$ref": "#/$defs/node", "$defs": {"node": {**NODE, "required": ["next"], "type": ["object", "null"]}}},
        {"type": "array", "items": {"$ref": "#"}},
        {"type": "array", "prefixItems": [LINE], "items": {"$ref": "#"}, "minItems": 1},
        {"anyOf": [{"$ref": "#"}, {"type": "null"}]},
        {"type": "object", "required": ["a"], "properties": {"a": {"enum": [1, 2]}}},
        {"$ref": "https://example.com/other.json"},
        {"$ref": "#/nowhere"},
        {"$ref": "#/$defs/0", "$defs": {str(n): {"$ref": f"#/$defs/{n + 1}"} if n < 200 else LINE for n in range(201)}},
    ],
)
def test_a_schema_that_has_a_value_is_let_be(schema: Any) -> None:
    assert has_instance(schema)


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("abc", 3),
        ("a{3}b", 4),
        ("(ab){2,5}c", 11),
        ("((a{10}){10}){10}", 1000),
        (r"[a-z\]]{4}\p{L}{3}\{2\}", 10),
        ("a{1000000}{1000000}", 10**12),
        ("(a|bb)*c", 4),
        ("a{,7}", 7),
        ("{}", 2),
        ("a)(", 2),
        ("[]]{2}[^]]{3}", 5),
    ],
)
def test_what_braces_ask_for_is_counted(pattern: str, expected: int) -> None:
    assert longest(pattern) == expected
    assert (longest(pattern) > REPETITIONS_MAX) == (expected > REPETITIONS_MAX)


def test_the_patterns_of_a_schema_are_found_wherever_they_are() -> None:
    assert sorted(patterns_of({"pattern": "a", "items": [{"properties": {"pattern": {"pattern": "b"}}}]})) == ["a", "b"]
