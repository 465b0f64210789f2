"""Tools as clients offer them, and which of them an answer is to call."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Discriminator, Field, Tag

from herd.errors import UsageError
from herd.providers.base import ToolChoice, ToolUse
from herd.server.openai.fields import Name, known
from herd.server.reading import Body
from herd.server.settings import LIMITS
from herd.text.tools import BuiltIn, Tool, read_tools


class Function(Body):
    """A function that the client runs when the model asks for it."""

    name: Name = Field(description="Up to 128 letters, digits and _ . : / -, beginning with a letter or _.")
    description: str | None = Field(None, description="What it does, for the model to read.")
    parameters: dict[str, Any] | None = Field(None, description="A JSON Schema of its arguments.")
    strict: bool | None = Field(
        None, description="Told to the model's template; arguments of required and named calls follow the schema always."
    )


class FunctionTool(Body):
    type: Literal["function"]
    function: Function


class BuiltInTool(Body):
    """A tool that Meta trained into Llama 3.1 and later by its name. Its calls come back as calls of a function of this name."""

    type: Literal["brave_search", "wolfram_alpha", "code_interpreter"]


AnyTool = Annotated[FunctionTool | BuiltInTool, Field(discriminator="type"), known("type", "function", *(tool.value for tool in BuiltIn))]
Tools = Annotated[list[AnyTool], Field(max_length=LIMITS.tools)]


class NameOnly(Body):
    name: Name


class NamedTool(Body):
    type: Literal["function"]
    function: NameOnly


class AllowedTools(Body):
    mode: Literal["auto", "required"]
    tools: list[NamedTool] = Field(min_length=1, max_length=LIMITS.tools)


class AllowedToolsChoice(Body):
    """Only these of the tools may be called."""

    type: Literal["allowed_tools"]
    allowed_tools: AllowedTools


def _choice_kind(value: object) -> str:
    if isinstance(value, dict):
        return "allowed_tools" if value.get("type") == "allowed_tools" else "function"
    if isinstance(value, AllowedToolsChoice):
        return "allowed_tools"
    return "function" if isinstance(value, NamedTool) else "mode"


ToolChoiceField = Annotated[
    Annotated[Literal["none", "auto", "required"], Tag("mode")]
    | Annotated[NamedTool, Tag("function")]
    | Annotated[AllowedToolsChoice, Tag("allowed_tools")],
    Discriminator(_choice_kind),
]
FunctionCallField = Annotated[
    Annotated[Literal["none", "auto"], Tag("mode")] | Annotated[NameOnly, Tag("function")],
    Discriminator(lambda value: "function" if isinstance(value, dict | NameOnly) else "mode"),
]


class ToolFields(Body):
    """Tools that the model may ask for."""

    REFUSED: ClassVar[Mapping[str, str]] = {
        "web_search_options": "this server does not search the web; offer a tool that does.",
    }

    tools: Tools | None = Field(None, description="What the model may call.")
    tool_choice: ToolChoiceField | None = Field(None, description="Whether it calls: none, auto, required, a named one, or allowed_tools.")
    parallel_tool_calls: bool | None = Field(None, description="Whether an answer may have several calls.")
    functions: Annotated[list[Function], Field(min_length=1, max_length=LIMITS.tools)] | None = Field(
        None, description="Deprecated form of tools."
    )
    function_call: FunctionCallField | None = Field(None, description="Deprecated form of tool_choice.")

    @property
    def is_deprecated_form(self) -> bool:
        """Whether calls are asked for, and so are answered, as `function_call`."""
        return self.functions is not None

    def offered(self) -> tuple[Sequence[Tool | BuiltIn], ToolChoice]:
        """The tools that the model may call, and whether it has to. `UsageError` names what contradicts itself."""
        self._check_forms()
        if self.functions is not None:
            given = [{"type": "function", "function": _plain(each)} for each in self.functions]
            return self._chosen(_read(given, "functions"), self.function_call, "function_call", parallel=False)
        tools = _read([_plain(each) for each in self.tools or ()], "tools")
        return self._chosen(tools, self.tool_choice, "tool_choice", parallel=self.parallel_tool_calls is not False)

    def _check_forms(self) -> None:
        if self.functions is not None and (self.tools is not None or self.tool_choice is not None):
            raise UsageError("functions is the old form of tools; send one of them, with its own form of choice.", param="functions")
        if self.function_call is not None and self.functions is None:
            raise UsageError(
                "function_call is for functions, of which none are offered; with tools it is tool_choice.", param="function_call"
            )

    def _chosen(
        self, tools: Sequence[Tool | BuiltIn], choice: object, param: str, *, parallel: bool
    ) -> tuple[Sequence[Tool | BuiltIn], ToolChoice]:
        if not tools and choice not in (None, "none", "auto"):
            raise UsageError(f"{param} asks for a call, and no tools are offered.", param=param)
        names = [_name(tool) for tool in tools]
        match choice:
            case None | str():
                return tools, ToolChoice(ToolUse(choice or "auto"), None, parallel)
            case AllowedToolsChoice():
                allowed = {each.function.name for each in choice.allowed_tools.tools}
                _check_offered(sorted(allowed), names, param)
                kept = [tool for tool in tools if _name(tool) in allowed]
                return kept, ToolChoice(ToolUse(choice.allowed_tools.mode), None, parallel)
            case _:
                named = choice.function.name if isinstance(choice, NamedTool) else choice.name  # type: ignore[attr-defined]
                _check_offered([named], names, param)
                return tools, ToolChoice(ToolUse.NAMED, named, parallel)


def _plain(value: Body) -> dict[str, Any]:
    """As it was sent."""
    return value.model_dump(exclude_unset=True)


def _read(given: list[dict[str, Any]], param: str) -> tuple[Tool | BuiltIn, ...]:
    try:
        return read_tools(given)
    except UsageError as problem:
        raise UsageError(str(problem), param=param) from None


def _name(tool: Tool | BuiltIn) -> str:
    return tool.name if isinstance(tool, Tool) else tool.value


def _check_offered(wanted: Sequence[str], offered: Sequence[str], param: str) -> None:
    for name in wanted:
        if name not in offered:
            raise UsageError(f"{param} names {name!r:.80}, which is not among the tools that are offered.", param=param)
