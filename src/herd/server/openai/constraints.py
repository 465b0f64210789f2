"""What an answer's text is held to, in the forms that clients send."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Discriminator, Field, Tag

from herd.errors import UsageError
from herd.sampling.constraint import Constraint, ConstraintKind
from herd.server.openai.fields import known
from herd.server.reading import Body
from herd.server.settings import LIMITS

NAME_IS_FOR_CLIENTS = "a name for the client's own use; the model is held to the schema, whatever it is called"
Source = Annotated[str, Field(min_length=1, max_length=LIMITS.schema_bytes)]
Choices = Annotated[list[Annotated[str, Field(min_length=1, max_length=LIMITS.stop_characters)]], Field(min_length=1, max_length=1024)]
_SPECIAL = re.compile(r"[\\.+*?()|\[\]{}^$#&~-]")


def _object_or_text(value: object) -> str:
    return "text" if isinstance(value, str) else "object"


Schema = Annotated[
    Annotated[Source, Tag("text")] | Annotated[dict[str, Any] | bool, Tag("object")],
    Discriminator(_object_or_text),
]
"""A JSON Schema, as an object or as its text."""


class NamedSchema(Body):
    HARMLESS: ClassVar[Mapping[str, str]] = {
        "name": NAME_IS_FOR_CLIENTS,
        "description": NAME_IS_FOR_CLIENTS,
        "strict": "an answer is held to the schema either way",
    }

    schema_: dict[str, Any] | None = Field(None, alias="schema", description="A JSON Schema; without one, any JSON object.")


class TextFormat(Body):
    type: Literal["text"]


class JsonObjectFormat(Body):
    type: Literal["json_object"]
    schema_: dict[str, Any] | None = Field(None, alias="schema", description="A JSON Schema, as llama.cpp's clients send it here.")


class JsonSchemaFormat(Body):
    type: Literal["json_schema"]
    json_schema: NamedSchema


class RegexFormat(Body):
    type: Literal["regex"]
    regex: Source = Field(description="What the whole answer matches, in the syntax of Rust's regex crate.")


class GrammarFormat(Body):
    type: Literal["grammar"]
    grammar: Source = Field(description="A context-free grammar in llguidance's variant of Lark.")


ResponseFormat = Annotated[
    TextFormat | JsonObjectFormat | JsonSchemaFormat | RegexFormat | GrammarFormat,
    Field(discriminator="type"),
    known("type", "text", "json_object", "json_schema", "regex", "grammar"),
]


class StructuredOutputs(Body):
    """vLLM's form: exactly one of these."""

    REFUSED: ClassVar[Mapping[str, str]] = {
        "structural_tag": "offer tools, or write a grammar.",
        "disable_any_whitespace": "write a grammar where white space matters.",
        "whitespace_pattern": "write a grammar where white space matters.",
    }
    HARMLESS: ClassVar[Mapping[str, str]] = {
        "disable_fallback": "there is one implementation, and no falling back",
    }

    json_: Schema | None = Field(None, alias="json")
    regex: Source | None = None
    choice: Choices | None = None
    grammar: Source | None = None
    json_object: bool | None = None


class ConstraintFields(Body):
    """What the text of an answer is held to."""

    REFUSED: ClassVar[Mapping[str, str]] = {
        "grammar": "send it as response_format={'type': 'grammar', 'grammar': ...}, in llguidance's variant of Lark.",
        "json_schema": "send it as response_format={'type': 'json_schema', 'json_schema': {'schema': ...}}.",
        "guided_whitespace_pattern": "write a grammar where white space matters.",
    }
    HARMLESS: ClassVar[Mapping[str, str]] = {"guided_decoding_backend": "there is one implementation"}

    response_format: ResponseFormat | None = Field(None, description="text, json_object, json_schema; also regex and grammar.")
    structured_outputs: StructuredOutputs | None = Field(None, description="The same in vLLM's form.")
    guided_json: Schema | None = Field(None, description="The same in vLLM's older form.")
    guided_regex: Source | None = Field(None, description="The same in vLLM's older form.")
    guided_choice: Choices | None = Field(None, description="The answer is one of these texts.")
    guided_grammar: Source | None = Field(None, description="The same in vLLM's older form.")

    @property
    def constraint_param(self) -> str:
        """The field that says what the answer is held to."""
        found = [*self._from_format(), *self._from_structured(), *self._from_guided()]
        return found[0][0] if found else "response_format"

    def constraint(self) -> Constraint | None:
        """What the answer is held to. `UsageError` for two things at once."""
        found = [*self._from_format(), *self._from_structured(), *self._from_guided()]
        if len(found) > 1:
            names = " and ".join(name for name, _ in found)
            raise UsageError(f"{names} both say what the answer is held to; send one of them.", param=found[1][0])
        return found[0][1] if found else None

    def _from_format(self) -> Iterator[tuple[str, Constraint]]:
        at = "response_format"
        match self.response_format:
            case JsonObjectFormat(schema_=schema) | JsonSchemaFormat(json_schema=NamedSchema(schema_=schema)):
                yield at, _ANY_OBJECT if schema is None else schema_constraint(schema, at)
            case RegexFormat(regex=text):
                yield at, Constraint(ConstraintKind.REGEX, text)
            case GrammarFormat(grammar=text):
                yield at, Constraint(ConstraintKind.GRAMMAR, text)

    def _from_structured(self) -> Iterator[tuple[str, Constraint]]:
        given, at = self.structured_outputs, "structured_outputs"
        if given is None:
            return
        yield from _each(
            given.json_, given.regex, given.choice, given.grammar, (f"{at}.json", f"{at}.regex", f"{at}.choice", f"{at}.grammar")
        )
        if given.json_object:
            yield f"{at}.json_object", _ANY_OBJECT

    def _from_guided(self) -> Iterator[tuple[str, Constraint]]:
        names = ("guided_json", "guided_regex", "guided_choice", "guided_grammar")
        yield from _each(self.guided_json, self.guided_regex, self.guided_choice, self.guided_grammar, names)


_ANY_OBJECT = Constraint(ConstraintKind.JSON_OBJECT)


def _each(
    schema: str | dict[str, Any] | bool | None,
    regex: str | None,
    choices: list[str] | None,
    grammar: str | None,
    names: tuple[str, str, str, str],
) -> Iterator[tuple[str, Constraint]]:
    if schema is not None:
        yield names[0], schema_constraint(schema, names[0])
    if regex is not None:
        yield names[1], Constraint(ConstraintKind.REGEX, regex)
    if choices is not None:
        yield names[2], Constraint(ConstraintKind.REGEX, "|".join(f"({_literal(choice)})" for choice in choices))
    if grammar is not None:
        yield names[3], Constraint(ConstraintKind.GRAMMAR, grammar)


def schema_constraint(schema: str | dict[str, Any] | bool, param: str) -> Constraint:
    """`UsageError` for a text that is no JSON, and for a schema that is too long."""
    if isinstance(schema, str):
        try:
            schema = json.loads(schema)
        except (ValueError, RecursionError):
            raise UsageError(f"{param} is a text that is not JSON; expected a JSON Schema.", param=param) from None
        if not isinstance(schema, dict | bool):
            raise UsageError(f"{param} is a text of JSON that is no object; expected a JSON Schema.", param=param)
    text = json.dumps(schema, ensure_ascii=False, separators=(",", ":"))
    if len(text) > LIMITS.schema_bytes:
        raise UsageError(f"{param} takes {len(text)} characters; at most {LIMITS.schema_bytes} are read.", param=param)
    return Constraint(ConstraintKind.JSON_SCHEMA, text)


def _literal(text: str) -> str:
    """A regular expression that matches this text only."""
    return _SPECIAL.sub(lambda match: "\\" + match.group(), text).replace("\n", "\\n").replace("\r", "\\r").replace("\t", "\\t")
