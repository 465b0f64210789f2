"""What an answer must be, from what was asked: a schema or a grammar for its text, and calls of tools that are demanded.

    response_format, regex, grammar    the answer's text, from its first token to its last
    tool_choice required, named        the answer is calls, in the format's own notation, with arguments as the tools' schemas say
    tools that may be called (auto)    the answer is free, but a call that it begins with is held to be one to its end; beside a
                                       constraint it is either a text of it, or calls
    tool_choice none                   no tools are offered, and nothing is read as a call

A call begins, in an answer that is free, with what its format writes before the arguments, name and all: only then is it surely one. An
answer that calls in other words, or after a text, is free, and is read as the format's parser reads it. Tools whose schemas cannot be
held to are called freely too, unless one of them is `strict`: then that is an error.

A tool's arguments are held to its schema wherever calls are held to a grammar; `strict` only decides what happens to keywords that a
grammar cannot express: they are refused, or let be. The rules are those of `text.formats.languages`.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, final

from herd.errors import CapacityError, UsageError, did_you_mean
from herd.providers.base import ChatRequest, CompletionRequest, ToolUse
from herd.sampling.constraint import Constraint, ConstraintKind
from herd.text.tools import BuiltIn, Tool

if TYPE_CHECKING:
    from herd.sampling.grammar import Grammars, Spelling
    from herd.sampling.matching import Matcher
    from herd.text.formats import ChatFormat
    from herd.text.tokenizer import Tokenizer

PARAM = "response_format"


@final
class Constraining:
    """Makes matchers for the answers of one model. Usable from several threads; compiling takes its time (`sampling.grammar`)."""

    def __init__(self, tokenizer: Tokenizer | None, vocab_size: int) -> None:
        """vocab_size: how many tokens the model gives logits for."""
        self._tokenizer = tokenizer
        self._vocab_size = vocab_size
        self._grammars: Grammars | None = None

    def chat(self, request: ChatRequest, chat_format: ChatFormat, stop_ids: Collection[int]) -> Matcher | None:
        """Who follows the answer to a chat; None if it is free. `UsageError` for what cannot be demanded."""
        if request.constraint is None and request.tool_choice.use is ToolUse.AUTO:
            return self._once_begun(request, chat_format, stop_ids) if request.tools else None
        constraint, calls = request.constraint, self._calls(request, chat_format)
        if calls is not None and request.tool_choice.use is not ToolUse.AUTO:
            what = "the schemas of the tools"
            return self._ready().matcher(Constraint(ConstraintKind.GRAMMAR, calls), stop_ids, param="tools", what=what)
        if constraint is None:
            return None
        return self._ready().matcher(constraint, stop_ids, param=PARAM, or_else=calls)

    def completion(self, request: CompletionRequest, stop_ids: Collection[int]) -> Matcher | None:
        """Who follows the continuation of a text; None if it is free."""
        return None if request.constraint is None else self._ready().matcher(request.constraint, stop_ids, param=PARAM)

    def _calls(self, request: ChatRequest, chat_format: ChatFormat) -> str | None:
        """The grammar of the calls that may be, or must be, the answer."""
        choice = request.tool_choice
        if not request.tools:
            return None
        tools: Sequence[Tool | BuiltIn] = request.tools
        if choice.use is ToolUse.NAMED:
            tools = [tool for tool in tools if _name(tool) == choice.name]
        _refuse_endless(tools)
        return chat_format.call_grammar(tools, parallel=choice.parallel and choice.use is not ToolUse.NAMED)

    def _once_begun(self, request: ChatRequest, chat_format: ChatFormat, stop_ids: Collection[int]) -> Matcher | None:
        """Who follows an answer that may call; None where calls cannot be held to a grammar and none of the tools is strict."""
        from herd.sampling.beginning import OnceBegun
        from herd.text.formats.languages import is_strict

        beginnings = [text.encode() for text in chat_format.call_heads(request.tools)]
        assert self._tokenizer is not None, "a chat has a tokenizer"
        try:
            _refuse_endless(request.tools)
            grammar = Constraint(ConstraintKind.GRAMMAR, chat_format.call_grammar(request.tools, parallel=request.tool_choice.parallel))
            inner = self._ready().matcher(grammar, stop_ids, param="tools", what="the schemas of the tools")
        except (UsageError, CapacityError):
            if any(isinstance(tool, Tool) and is_strict(tool) for tool in request.tools):
                raise
            return None
        return OnceBegun(inner, beginnings, self._tokenizer.token_bytes)

    def _ready(self) -> Grammars:
        tokenizer = self._tokenizer
        if tokenizer is None:
            raise UsageError("An answer can be held to a schema or a grammar if the model has a tokenizer; this one has none.", param=PARAM)
        if self._grammars is None:
            from herd.sampling.grammar import Grammars

            self._grammars = Grammars(lambda: spelling(tokenizer, self._vocab_size))
        return self._grammars


def _refuse_endless(tools: Sequence[Tool | BuiltIn]) -> None:
    """`UsageError` for a tool whose arguments can never be complete."""
    from herd.sampling.endless import has_instance

    for tool in tools:
        if isinstance(tool, Tool) and not has_instance(tool.parameters):
            raise UsageError(f"The parameters of {tool.name} refer to themselves so that no finite value fits them.", param="tools")


def as_chosen(request: ChatRequest) -> ChatRequest:
    """The request with the tools that are offered to the model: none if none may be called. `UsageError` for a choice of what is
    not there."""
    choice = request.tool_choice
    if choice.use is ToolUse.NONE:
        return replace(request, tools=()) if request.tools else request
    if choice.use in (ToolUse.REQUIRED, ToolUse.NAMED) and not request.tools:
        raise UsageError("tool_choice demands a call; the request offers no tools.", param="tool_choice")
    names = [_name(tool) for tool in request.tools]
    if choice.use is ToolUse.NAMED and choice.name not in names:
        raise UsageError(f"tool_choice names the tool {choice.name!r:.80}{did_you_mean(choice.name, names)}", param="tool_choice")
    return request


def is_call_or_free(request: ChatRequest) -> bool:
    """Whether an answer that begins as a call can be nothing else: not if it may be a text of a constraint too."""
    return request.constraint is None or request.tool_choice.use is not ToolUse.AUTO


def spelling(tokenizer: Tokenizer, vocab_size: int) -> Spelling:
    """A model's vocabulary as grammars see it."""
    from herd.sampling.grammar import Spelling

    return Spelling(
        tokens=[tokenizer.token_bytes(token) if token < tokenizer.vocab_size else b"" for token in range(vocab_size)],
        special_ids=frozenset(token for token in tokenizer.special_ids.values() if token < vocab_size),
        encode=tokenizer.encode_inside,
        begins_with_space=tokenizer.drops_first_space,
    )


def _name(tool: Tool | BuiltIn) -> str:
    return tool.name if isinstance(tool, Tool) else tool.value
