"""jinja2 for templates that nobody has checked: jinja2's own sandbox, and a budget that holds for everything in it.

names        only the filters, tests, functions and text methods listed here exist; no files, no clock, no random numbers
loops        the syntax tree is changed so that every turn of a loop, and every macro, first spends for its body
texts        operators, filters and methods that can enlarge a text spend for the result before or as it is made
folding      nothing is computed while the template is compiled
`strftime_now`, `raise_exception`, `tojson`, `{% generation %}` and white-space control are as Hugging Face defines them
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Callable
from types import BuiltinMethodType
from typing import Any, cast

from jinja2 import nodes, pass_context
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension, LoopControlExtension
from jinja2.parser import Parser
from jinja2.runtime import Context, Macro, Undefined
from jinja2.sandbox import ImmutableSandboxedEnvironment

from herd.errors import UsageError
from herd.text.formats.budget import INTEGER_BITS_MAX, OverBudget, account, current, weigh, weigh_shallow

_SPEND, _ITEMS, _WEIGH, _CONCAT, _SLICE = "spend steps", "loop items", "weigh operand", "join texts", "take slice"
_SHALLOW = ("abs", "attr", "count", "d", "default", "first", "float", "int", "items", "last", "length", "list", "reverse")
_DEEP = (
    *("capitalize", "dictsort", "e", "escape", "groupby", "lower", "map", "max", "min", "reject", "rejectattr", "safe", "select"),
    *("selectattr", "sort", "string", "title", "trim", "truncate", "unique", "upper", "urlencode", "wordcount"),
)
_METHODS: dict[type, frozenset[str]] = {
    str: frozenset(
        (
            *("capitalize", "casefold", "count", "endswith", "find", "index", "isalnum", "isalpha", "isdigit", "islower", "isnumeric"),
            *("isspace", "isupper", "join", "lower", "lstrip", "partition", "removeprefix", "removesuffix", "replace", "rfind", "rindex"),
            *("rpartition", "rsplit", "rstrip", "split", "splitlines", "startswith", "strip", "swapcase", "title", "upper"),
        )
    ),
    dict: frozenset(("get", "items", "keys", "values", "copy")),
    list: frozenset(("count", "index", "copy")),
    tuple: frozenset(("count", "index")),
}
_WIDE = re.compile(r"\d{4}|\*")
_WIDE_FORMAT = re.compile(r"%[^%a-zA-Z]*(?:\d{4}|\*)")
WIDTH_MAX = 256
NODES_MAX = 3_000
"""Pieces of a template's syntax tree; the templates of the family have up to 500."""


class Refusal(UsageError):
    """What a template says by `raise_exception`: the conversation is not one that the model understands."""


class _Generation(Extension):
    """`{% generation %}` marks answers for training; here it only is what is inside it."""

    tags = {"generation"}  # noqa: RUF012  (jinja2's own declaration)

    def parse(self, parser: Parser) -> nodes.Node | list[nodes.Node]:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.Scope(body).set_lineno(line)


class Sandbox(ImmutableSandboxedEnvironment):
    """An environment for one template. Spends from the budget of the current rendering (`budget.begin`)."""

    intercepted_binops = frozenset(("+", "-", "*", "/", "//", "**", "%"))

    def __init__(self) -> None:
        super().__init__(
            trim_blocks=True, lstrip_blocks=True, optimized=False, finalize=_finalize, extensions=[LoopControlExtension, _Generation]
        )
        builtin: dict[str, Any] = dict(self.filters)
        self.filters: dict[str, Callable[..., Any]] = {name: _spending(builtin[name], weigh_shallow) for name in _SHALLOW}
        self.filters |= {name: _spending(builtin[name], weigh) for name in _DEEP}
        self.filters |= {name: _spending(made, weigh) for name, made in _OWN_FILTERS.items()}
        self.filters |= {_SPEND: _spend, _ITEMS: _items, _WEIGH: _weighed, _CONCAT: _concat, _SLICE: _slice}
        tests: dict[str, Any] = dict(self.tests)
        self.tests = {name: _spending(test, weigh) for name, test in tests.items() if name not in ("filter", "test")}
        kept = {name: self.globals[name] for name in ("range", "dict", "namespace", "cycler", "joiner")}
        self.globals.clear()
        self.globals.update(kept, raise_exception=_raise_exception)

    def _generate(self, source: nodes.Template, *args: Any, **kwargs: Any) -> str:
        if sum(1 for _ in source.find_all(nodes.Node)) > NODES_MAX:
            raise OverBudget(f"more than {NODES_MAX} expressions and statements")
        _Meter(self).generic(source)
        return super()._generate(source, *args, **kwargs)

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        """Operators, refused before they make anything large."""
        _check_operands(operator, left, right)
        result = super().call_binop(context, operator, left, right)
        account(result, current())
        return result

    def getitem(self, obj: Any, argument: Any) -> Any:
        """`obj[argument]`; looking up hashes the argument, so it is weighed."""
        weigh(argument, current())
        return super().getitem(obj, argument)

    def wrap_str_format(self, value: Any) -> Callable[..., str] | None:
        """`str.format` does not exist here: its widths cannot be bounded beforehand."""
        if isinstance(value, BuiltinMethodType) and value.__name__ in ("format", "format_map"):
            raise SecurityError("str.format is not available to chat templates")
        return None

    def call(self, context: Context, obj: Any, /, *args: Any, **kwargs: Any) -> Any:
        """Calls of macros, of the few functions, and of harmless methods of plain values."""
        budget = current()
        budget.spend(4 + len(args) + len(kwargs))
        for value in (*args, *kwargs.values()):
            (weigh_shallow if isinstance(obj, Macro) else weigh)(value, budget)
        owner = getattr(obj, "__self__", None) if isinstance(obj, BuiltinMethodType) else None
        if type(owner) in _METHODS:
            args = _checked_method(owner, obj.__name__, args)
        elif isinstance(obj, BuiltinMethodType):
            raise SecurityError("this function is not available to chat templates")
        result = super().call(context, obj, *args, **kwargs)
        account(result, budget)
        return result


def _checked_method(owner: Any, name: str, args: tuple[Any, ...]) -> tuple[Any, ...]:
    """The arguments to call the method with, after paying for it."""
    budget = current()
    if name not in _METHODS[type(owner)]:
        raise SecurityError(f"the method {name} of a {type(owner).__name__} is not available to chat templates")
    (weigh if name in ("index", "count") else weigh_shallow)(owner, budget)
    if name == "replace" and len(args) >= 2:
        _allocate_replaced(owner, args[0], args[1])
    elif name == "join" and args:
        args = (_items(args[0], 1), *args[1:])
        _allocate_joined(owner, args[0])
    return args


def _check_operands(operator: str, left: Any, right: Any) -> None:
    budget = current()
    budget.spend(2)
    weigh_shallow(left, budget)
    weigh_shallow(right, budget)
    if operator == "%" and isinstance(left, str):
        _check_format(left, right)
    elif operator == "*":
        for many, times in ((left, right), (right, left)):
            if isinstance(many, str | list | tuple) and isinstance(times, int):
                budget.allocate(len(many) * max(times, 0) * (1 if isinstance(many, str) else 16))
    elif operator == "+" and isinstance(left, str | list | tuple) and isinstance(right, str | list | tuple):
        budget.allocate(len(left) + len(right))
    if operator in ("*", "**") and isinstance(left, int) and isinstance(right, int):
        bits = left.bit_length() + right.bit_length() if operator == "*" else left.bit_length() * abs(right)
        if bits > INTEGER_BITS_MAX:
            raise OverBudget(f"numbers of more than {INTEGER_BITS_MAX} bits")


def _check_format(text: str, values: Any) -> None:
    weigh(values, current())
    named = text.find("%(")  # A name may hold anything, parentheses too, so all that follows the first one counts.
    if _WIDE_FORMAT.search(text) or (named >= 0 and _WIDE.search(text, named)):
        raise OverBudget("a format that is wider than 999")
    if named >= 0 and isinstance(values, dict):  # A name may be written as often as the text says.
        current().allocate(text.count("%(") * max((len(repr(value)) for value in values.values()), default=0))
    parts = values if isinstance(values, tuple) else (values,)
    current().allocate(len(text) * 1000 if "%" in text and len(text) < 64 else len(text))
    for part in parts:
        account(part, current())


def _allocate_replaced(text: str, old: Any, new: Any) -> None:
    if isinstance(old, str) and isinstance(new, str):
        found = text.count(old)
        current().allocate(len(text) + found * max(0, len(new) - len(old)))


def _allocate_joined(separator: str, values: Any) -> None:
    if isinstance(values, list | tuple | dict | str):
        current().allocate(sum(len(value) for value in values if isinstance(value, str)) + len(separator) * len(values))


def _raise_exception(message: Any) -> None:
    raise Refusal(f"the model's chat template refuses this conversation: {str(message)[:500]}")


@pass_context
def _finalize(context: Context, value: Any) -> Any:
    """Every output passes here, fixed texts too."""
    budget = current()
    budget.spend(1)
    if isinstance(value, str):
        budget.allocate(len(value))
    elif not isinstance(value, Undefined):
        weigh(value, budget)
    return value


def _spending(function: Callable[..., Any], scale: Callable[[Any, Any], None]) -> Callable[..., Any]:
    """The filter or test, paying for its arguments and for what it makes. Keeps jinja2's marks on the function."""

    @functools.wraps(function)
    def paid(*args: Any, **kwargs: Any) -> Any:
        budget = current()
        budget.spend(3)
        for value in (*args, *kwargs.values()):
            scale(value, budget)
        result = function(*args, **kwargs)
        account(result, budget)
        return result

    return paid


def _width(value: Any) -> int:
    if not isinstance(value, int) or abs(value) > WIDTH_MAX:
        raise OverBudget(f"a width above {WIDTH_MAX}")
    return value


def _filter_tojson(value: Any, ensure_ascii: bool = False, indent: Any = None, separators: Any = None, sort_keys: bool = False) -> str:
    if indent is not None and not (isinstance(indent, str) and len(indent) <= 16):
        indent = _width(indent)
    if indent:
        _allocate_indented(value, len(indent) if isinstance(indent, str) else indent)
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _allocate_indented(value: Any, width: int) -> None:
    """The white space before each item of what is nested, before it is written. The value has been weighed."""
    pending, budget = [(value, 1)], current()
    while pending:
        item, depth = pending.pop()
        inside = item.values() if isinstance(item, dict) else item if isinstance(item, list | tuple) else ()
        if inside:
            budget.allocate(len(inside) * depth * max(width, 0))
        pending += [(each, depth + 1) for each in inside]


def _filter_join(value: Any, d: str = "", attribute: Any = None) -> str:
    if attribute is not None:
        raise SecurityError("join by attribute is not available to chat templates")
    texts = [item if isinstance(item, str) else _concat([item]) for item in value]
    _allocate_joined(str(d), texts)
    return str(d).join(texts)


def _filter_replace(value: Any, old: Any, new: Any, count: int | None = None) -> str:
    text, old, new = _concat([value]), str(old), str(new)
    _allocate_replaced(text, old, new)
    return text.replace(old, new, -1 if count is None else count)


def _filter_indent(value: Any, width: Any = 4, first: bool = False, blank: bool = False) -> str:
    lead = width if isinstance(width, str) and len(width) <= WIDTH_MAX else " " * _width(width)
    text = _concat([value])
    _allocate_replaced(text, "\n", "\n" + lead)
    lines = text.splitlines() if text.endswith("\n") is False else (text + " ").splitlines()
    if text.endswith("\n"):
        lines[-1] = ""
    head, rest = lines[:1], lines[1:]
    indented = head + [lead + line if line or blank else line for line in rest]
    return (lead if first else "") + "\n".join(indented)


def _filter_center(value: Any, width: Any = 80) -> str:
    return _concat([value]).center(_width(width))


def _filter_format(value: Any, *args: Any, **kwargs: Any) -> str:
    text = str(value)
    _check_format(text, kwargs or args)
    return text % (kwargs or args)


def _filter_round(value: Any, precision: Any = 0, method: str = "common") -> Any:
    if method != "common":
        raise SecurityError("rounding other than 'common' is not available to chat templates")
    return round(float(value), _width(precision))


_OWN_FILTERS: dict[str, Callable[..., Any]] = {
    "tojson": _filter_tojson,
    "join": _filter_join,
    "replace": _filter_replace,
    "indent": _filter_indent,
    "center": _filter_center,
    "format": _filter_format,
    "round": _filter_round,
}


def _spend(steps: int) -> str:
    current().spend(steps)
    return ""


def _items(value: Any, cost: int) -> Any:
    """What a loop goes over, as something with a length, paid by `cost` an item."""
    if value is None or isinstance(value, Undefined):
        return value
    if not isinstance(value, str | list | tuple | dict | range):
        made = []
        for item in value:
            current().spend(1)
            current().allocate(16)
            made.append(item)
        value = made
    current().spend(cost * len(value))
    return value


def _weighed(value: Any) -> Any:
    if type(value) is not bool and value is not None:
        weigh(value, current())
    return value


def _concat(values: list[Any]) -> str:
    budget = current()
    for value in values:
        weigh(value, budget)
    texts = [str(value) for value in values]
    budget.allocate(sum(map(len, texts)))
    return "".join(texts)


def _slice(value: Any, start: Any, stop: Any, step: Any) -> Any:
    weigh_shallow(value, current())
    part = value[start:stop:step]
    account(part, current())
    return part


class _Meter:
    """Rewrites a syntax tree from the leaves up. The number of nodes that was inside comes back, as the cost of running them once."""

    def __init__(self, environment: Any) -> None:
        self._environment = environment

    def generic(self, node: nodes.Node) -> int:
        cost = 1
        for name, value in list(node.iter_fields()):
            if isinstance(value, list):
                for index, item in enumerate(value):
                    if isinstance(item, nodes.Node):
                        cost += self.generic(item)
                        value[index] = self._changed(item)
            elif isinstance(value, nodes.Node):
                cost += self.generic(value)
                setattr(node, name, self._changed(value))
        if isinstance(node, nodes.For):
            test_cost = sum(1 for _ in node.test.find_all(nodes.Node)) if node.test is not None else 0
            node.iter = self._filter(cast(nodes.Expr, node.iter), _ITEMS, nodes.Const(1 + test_cost))
        if isinstance(node, nodes.For | nodes.Macro | nodes.CallBlock):
            node.body.insert(0, self._placed(nodes.ExprStmt(self._filter(nodes.Const(cost + 2), _SPEND)), node))
        return cost

    def _changed(self, node: nodes.Node) -> nodes.Node:
        """The node that stands in for `node`, whose inside has been changed already."""
        if isinstance(node, nodes.TemplateData):
            return cast(nodes.Node, self._placed(nodes.Const(node.data), node))
        if isinstance(node, nodes.Concat):
            return self._filter(nodes.List(list(node.nodes)), _CONCAT)
        if isinstance(node, nodes.Getitem) and isinstance(node.arg, nodes.Slice):
            part = node.arg
            bounds = [bound or nodes.Const(None) for bound in (part.start, part.stop, part.step)]
            return self._filter(node.node, _SLICE, *bounds)
        if isinstance(node, nodes.Compare):
            node.expr = self._filter(node.expr, _WEIGH)
            for operand in node.ops:
                operand.expr = self._filter(operand.expr, _WEIGH)
        if isinstance(node, nodes.Pair):
            node.key = self._filter(node.key, _WEIGH)
        return node

    def _filter(self, value: nodes.Expr, name: str, *args: nodes.Expr) -> nodes.Expr:
        made: nodes.Expr = self._placed(nodes.Filter(value, name, list(args), [], None, None), value)
        return made

    def _placed(self, made: Any, like: nodes.Node) -> Any:
        return made.set_lineno(like.lineno or 1, override=True).set_environment(self._environment)
