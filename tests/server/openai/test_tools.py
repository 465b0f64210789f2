"""Tools and structured answers: what clients offer and demand, in every form they do, as the model's side sees it."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import openai
import pydantic
import pytest

from herd.providers.base import Called, ChatRequest, Text, ToolChoice, ToolUse
from herd.sampling.constraint import Constraint, ConstraintKind
from herd.server.openai.constraints import StructuredOutputs
from herd.text.messages import Role, ToolCall
from herd.text.tools import BuiltIn, Tool
from server.fake_pool import FakePool, FakeService, words

if TYPE_CHECKING:
    from server.conftest import Running
    from server.openai.conftest import Connect

ASK: dict[str, Any] = {"model": "fake", "messages": [{"role": "user", "content": "Hi"}]}
PARAMETERS = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
WEATHER: dict[str, Any] = {"type": "function", "function": {"name": "weather", "description": "Of a city", "parameters": PARAMETERS}}
TIME: dict[str, Any] = {"type": "function", "function": {"name": "time"}}
CALL = ToolCall("call_1", "weather", {"city": "Osló"})


def asked(server: Running) -> ChatRequest:
    found = server.pool.only.asked[-1]
    assert isinstance(found, ChatRequest)
    return found


def test_an_answer_that_calls_has_calls_and_no_content(serve: Callable[..., Running], connect: Connect) -> None:
    server = serve(FakePool(FakeService(script=[Called(CALL), Called(ToolCall("call_2", "time", {}))])))
    (choice,) = connect(server).chat.completions.create(**ASK, tools=[WEATHER, TIME]).choices
    assert choice.finish_reason == "tool_calls" and choice.message.content is None
    first, second = choice.message.tool_calls or ()
    assert first.type == "function" and (first.id, first.function.name) == ("call_1", "weather")
    assert json.loads(first.function.arguments) == {"city": "Osló"} and second.function.arguments == "{}"


def test_an_answer_may_say_something_and_call(serve: Callable[..., Running], connect: Connect) -> None:
    server = serve(FakePool(FakeService(script=[*words("Let me look."), Called(CALL)])))
    message = connect(server).chat.completions.create(**ASK, tools=[WEATHER]).choices[0].message
    assert message.content == "Let me look." and len(message.tool_calls or ()) == 1


def test_tools_reach_the_model_as_they_were_sent(server: Running, client: openai.OpenAI) -> None:
    client.chat.completions.create(**ASK, tools=[WEATHER, TIME])
    weather, clock = asked(server).tools
    assert isinstance(weather, Tool) and weather.parameters == PARAMETERS and weather.given == WEATHER
    assert isinstance(clock, Tool) and clock.parameters == {} and clock.given == TIME
    assert asked(server).tool_choice == ToolChoice(ToolUse.AUTO, None, True)


def test_tools_that_meta_trained_in_are_offered_by_type(server: Running, client: openai.OpenAI) -> None:
    client.chat.completions.create(**ASK, tools=[{"type": "brave_search"}, WEATHER])  # type: ignore[list-item]
    assert asked(server).tools[0] is BuiltIn.BRAVE_SEARCH


ALLOWED = {"type": "allowed_tools", "allowed_tools": {"mode": "required", "tools": [{"type": "function", "function": {"name": "time"}}]}}


@pytest.mark.parametrize(
    ("choice", "expected"),
    [
        ("auto", ToolChoice(ToolUse.AUTO)),
        ("none", ToolChoice(ToolUse.NONE)),
        ("required", ToolChoice(ToolUse.REQUIRED)),
        ({"type": "function", "function": {"name": "time"}}, ToolChoice(ToolUse.NAMED, "time")),
        (ALLOWED, ToolChoice(ToolUse.REQUIRED)),
    ],
)
def test_a_choice_of_tools_is_handed_on(server: Running, client: openai.OpenAI, choice: Any, expected: ToolChoice) -> None:
    client.chat.completions.create(**ASK, tools=[WEATHER, TIME], tool_choice=choice)
    assert asked(server).tool_choice == expected
    names = [tool.name for tool in asked(server).tools if isinstance(tool, Tool)]
    assert names == (["time"] if choice is ALLOWED else ["weather", "time"])


def test_one_call_at_most_is_handed_on(server: Running, client: openai.OpenAI) -> None:
    client.chat.completions.create(**ASK, tools=[WEATHER], parallel_tool_calls=False)
    assert asked(server).tool_choice == ToolChoice(ToolUse.AUTO, None, False)


def test_results_of_calls_are_the_messages_that_formats_know(server: Running, client: openai.OpenAI) -> None:
    call: Any = {"id": "call_1", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Oslo"}'}}
    messages: list[Any] = [
        *ASK["messages"],
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "call_1", "content": [{"type": "text", "text": "rain"}]},
    ]
    client.chat.completions.create(model="fake", messages=messages, tools=[WEATHER])
    _, said, result = asked(server).messages
    assert said.tool_calls == (ToolCall("call_1", "weather", {"city": "Oslo"}),) and said.content == ""
    assert (result.role, result.text, result.tool_call_id) == (Role.TOOL, "rain", "call_1")


def test_the_deprecated_form_is_answered_in_its_own_form(serve: Callable[..., Running], connect: Connect) -> None:
    server = serve(FakePool(FakeService(script=[Called(CALL)])))
    client = connect(server)
    old: dict[str, Any] = {"functions": [WEATHER["function"]], "function_call": {"name": "weather"}}
    (choice,) = client.chat.completions.create(**ASK, **old).choices
    assert choice.finish_reason == "function_call" and choice.message.tool_calls is None
    assert choice.message.function_call is not None and json.loads(choice.message.function_call.arguments) == {"city": "Osló"}
    assert asked(server).tool_choice == ToolChoice(ToolUse.NAMED, "weather", False)
    chunks = list(client.chat.completions.create(**ASK, **old, stream=True))
    deltas = [chunk.choices[0].delta.function_call for chunk in chunks]
    assert [delta.name for delta in deltas if delta is not None] == ["weather"] and chunks[-1].choices[0].finish_reason == "function_call"
    said = choice.message.model_dump(exclude_none=True)
    messages = [*ASK["messages"], said, {"role": "function", "name": "weather", "content": "rain"}]
    client.chat.completions.create(**{**ASK, "messages": messages}, functions=old["functions"])
    assert asked(server).messages[2].text == "rain" and asked(server).messages[1].tool_calls == (CALL,)


def named(name: str) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name}}


@pytest.mark.parametrize(
    ("fields", "param", "said"),
    [
        ({"tools": [named("a b")]}, "tools", "letters"),
        ({"tools": [named('x"<|eot_id|>')]}, "tools", "letters"),
        ({"tools": [named("a\n")]}, "tools", "letters"),
        ({"tools": [WEATHER, WEATHER]}, "tools", "names must differ"),
        ({"tools": [{"type": "custom", "custom": {"name": "x"}}]}, "tools.0", "function, brave_search"),
        ({"tools": [{"type": "function"}]}, "tools.0.function", "missing"),
        ({"tools": [{"type": "function", "function": {"name": "f", "parameters": []}}]}, "tools.0.function.parameters", "JSON object"),
        ({"tools": [{"type": "function", "function": {"name": "f", "x": 1}}]}, "tools.0.function.x", "not a field"),
        ({"tools": [named(f"f{index}") for index in range(129)]}, "tools", "128"),
        ({"tool_choice": "required"}, "tool_choice", "no tools"),
        ({"tools": [WEATHER], "tool_choice": "maybe"}, "tool_choice", "'none', 'auto' or 'required'"),
        ({"tools": [WEATHER], "tool_choice": named("time")}, "tool_choice", "'time'"),
        ({"tools": [WEATHER], "tool_choice": ALLOWED}, "tool_choice", "'time'"),
        ({"tools": [WEATHER], "tool_choice": {"type": "custom"}}, "tool_choice.type", "function"),
        ({"functions": [WEATHER["function"]], "tools": [TIME]}, "functions", "one of them"),
        ({"function_call": "auto"}, "function_call", "tool_choice"),
        ({"functions": []}, "functions", "at least 1"),
    ],
)
def test_tools_that_make_no_sense_are_refused_by_name(lasting: openai.OpenAI, fields: dict[str, Any], param: str, said: str) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        lasting.chat.completions.create(**ASK, extra_body=fields)
    assert caught.value.param == param and said in caught.value.message


@pytest.mark.parametrize(
    ("call", "param"),
    [
        ({"id": "a", "type": "function", "function": {"name": "f", "arguments": "{"}}, "messages.0.tool_calls.0.function.arguments"),
        ({"id": "a", "type": "function", "function": {"name": "f", "arguments": "[1]"}}, "messages.0.tool_calls.0.function.arguments"),
        ({"id": "a", "type": "function", "function": {"name": "f", "arguments": "NaN"}}, "messages.0.tool_calls.0.function.arguments"),
        ({"id": "a", "type": "function", "function": {"name": "f g", "arguments": "{}"}}, "messages.0.tool_calls.0.function.name"),
        ({"id": "a", "type": "custom", "function": {"name": "f", "arguments": "{}"}}, "messages.0.tool_calls.0.type"),
        ({"type": "function", "function": {"name": "f", "arguments": "{}"}}, "messages.0.tool_calls.0.id"),
    ],
)
def test_earlier_calls_that_are_none_are_refused_by_name(lasting: openai.OpenAI, call: Any, param: str) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        lasting.chat.completions.create(model="fake", messages=[{"role": "assistant", "tool_calls": [call]}])
    assert caught.value.param == param


class City(pydantic.BaseModel):
    name: str
    people: int


def test_the_clients_own_parser_gets_its_object(serve: Callable[..., Running], connect: Connect) -> None:
    server = serve(FakePool(FakeService(script=[Text('{"name": "Oslo", "people": 700000}')])))
    answer = connect(server).chat.completions.parse(**ASK, response_format=City)
    assert answer.choices[0].message.parsed == City(name="Oslo", people=700000)
    constraint = asked(server).constraint
    assert constraint is not None and constraint.kind is ConstraintKind.JSON_SCHEMA
    assert json.loads(constraint.text)["required"] == ["name", "people"]


def test_the_clients_own_parser_reads_arguments_of_tools(serve: Callable[..., Running], connect: Connect) -> None:
    server = serve(FakePool(FakeService(script=[Called(ToolCall("c", "City", {"name": "Oslo", "people": 5}))])))
    answer = connect(server).chat.completions.parse(**ASK, tools=[openai.pydantic_function_tool(City)])
    (call,) = answer.choices[0].message.tool_calls or ()
    assert call.function.parsed_arguments == City(name="Oslo", people=5)


SCHEMA = {"type": "object", "properties": {"ü": {"const": 1}}}
SCHEMA_TEXT = '{"type":"object","properties":{"ü":{"const":1}}}'


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"response_format": {"type": "text"}}, None),
        ({"response_format": {"type": "json_object"}}, Constraint(ConstraintKind.JSON_OBJECT)),
        ({"response_format": {"type": "json_object", "schema": SCHEMA}}, Constraint(ConstraintKind.JSON_SCHEMA, SCHEMA_TEXT)),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"name": "n", "strict": True, "schema": SCHEMA}}},
            Constraint(ConstraintKind.JSON_SCHEMA, SCHEMA_TEXT),
        ),
        ({"response_format": {"type": "json_schema", "json_schema": {"name": "n"}}}, Constraint(ConstraintKind.JSON_OBJECT)),
        ({"response_format": {"type": "regex", "regex": "a+"}}, Constraint(ConstraintKind.REGEX, "a+")),
        ({"response_format": {"type": "grammar", "grammar": 'start: "a"'}}, Constraint(ConstraintKind.GRAMMAR, 'start: "a"')),
        ({"structured_outputs": {"json": SCHEMA}}, Constraint(ConstraintKind.JSON_SCHEMA, SCHEMA_TEXT)),
        ({"structured_outputs": {"json": json.dumps(SCHEMA)}}, Constraint(ConstraintKind.JSON_SCHEMA, SCHEMA_TEXT)),
        ({"structured_outputs": {"json_object": True}}, Constraint(ConstraintKind.JSON_OBJECT)),
        ({"structured_outputs": {"regex": "a+", "json": None}}, Constraint(ConstraintKind.REGEX, "a+")),
        ({"structured_outputs": {"choice": ["yes", "no."]}}, Constraint(ConstraintKind.REGEX, "(yes)|(no\\.)")),
        ({"structured_outputs": {"grammar": "g"}}, Constraint(ConstraintKind.GRAMMAR, "g")),
        ({"guided_json": SCHEMA}, Constraint(ConstraintKind.JSON_SCHEMA, SCHEMA_TEXT)),
        ({"guided_regex": "a"}, Constraint(ConstraintKind.REGEX, "a")),
        ({"guided_choice": ["a"]}, Constraint(ConstraintKind.REGEX, "(a)")),
        ({"guided_grammar": "g"}, Constraint(ConstraintKind.GRAMMAR, "g")),
    ],
)
def test_every_form_of_a_constraint_is_understood(
    server: Running, client: openai.OpenAI, fields: dict[str, Any], expected: Constraint | None
) -> None:
    client.chat.completions.create(**ASK, extra_body=fields)
    assert asked(server).constraint == expected
    client.completions.create(model="fake", prompt="x", extra_body=fields)
    assert server.pool.only.asked[-1].constraint == expected


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"response_format": {"type": "xml"}}, "response_format"),
        ({"response_format": {}}, "response_format"),
        ({"response_format": "json"}, "response_format"),
        ({"response_format": {"type": "json_schema"}}, "response_format.json_schema"),
        ({"response_format": {"type": "json_schema", "json_schema": {"name": "n", "schema": [1]}}}, "response_format.json_schema.schema"),
        ({"response_format": {"type": "regex", "regex": ""}}, "response_format.regex"),
        ({"response_format": {"type": "json_object"}, "guided_regex": "a"}, "guided_regex"),
        ({"structured_outputs": {"json": "{"}}, "structured_outputs.json"),
        ({"structured_outputs": {"json": "[]"}}, "structured_outputs.json"),
        ({"structured_outputs": {"regex": "a", "choice": ["b"]}}, "structured_outputs.choice"),
        ({"structured_outputs": {"structural_tag": "x"}}, "structured_outputs.structural_tag"),
        ({"guided_choice": []}, "guided_choice"),
        ({"guided_regex": "a" * (2**20 + 1)}, "guided_regex"),
        ({"guided_json": {"a": "a" * 2**20}}, "guided_json"),
        ({"grammar": 'root ::= "a"'}, "grammar"),
        ({"json_schema": {}}, "json_schema"),
    ],
)
def test_constraints_that_make_no_sense_are_refused_by_name(lasting: openai.OpenAI, fields: dict[str, Any], param: str) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        lasting.chat.completions.create(**ASK, extra_body=fields)
    assert caught.value.param == param


@pytest.mark.parametrize("text", ["a.b", "a|b", "(a)*", "[^x]{2}", "\\d", "a\nb\tc", "#-&~$^", "日本"])
def test_a_choice_matches_its_own_text_only(text: str) -> None:
    from herd.server.openai.constraints import ConstraintFields

    constraint = ConstraintFields(structured_outputs=StructuredOutputs(choice=[text])).constraint()
    assert constraint is not None and re.fullmatch(constraint.text, text)
    assert not any(re.fullmatch(constraint.text, other) for other in (text + "x", text[:-1], text.replace(text[0], "\0", 1)))
