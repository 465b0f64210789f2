"""A closed interpreter of the few pickle operations that PyTorch's files of weights consist of. It calls nothing.

A pickle is a program. This machine has no way to import or call anything: what looks like a function is a name on the list that
the caller gives, and "calling" it makes the description that the list says. Every other name, operation or argument ends with a
`FileProblem` that says which. There is no other reader behind it.

Source: Python's `pickletools` (protocol 2). Memory and time are bounded by the size of the program: nothing is ever copied out
of a nested structure, and keys are texts, so no hash or comparison walks one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NoReturn

from herd.errors import FileProblem
from herd.files import BoundedReader
from herd.files.reader import visible

MAX_OPERATIONS = 1_000_000
MAX_TEXT_BYTES = 1 << 20
MAX_NAME_BYTES = 128

Made = Callable[[tuple[Any, ...]], Any]
_MARK = object()


class Name:
    """A name that the program has mentioned and that is on the list. `make` describes what calling it would give, or is None."""

    __slots__ = ("make", "text")

    def __init__(self, text: str, make: Made | None) -> None:
        self.text = text
        self.make = make


class Opaque:
    """An object that some program has put there and that nobody here looks into."""

    __slots__ = ()


class Machine:
    """Runs one program. `names` are the allowed ones ("module name" -> how to describe a call, None for a constant); `referred`
    turns the tuple of a reference to something outside (a storage) into its description."""

    def __init__(self, data: memoryview, where: str, names: Mapping[str, Made | None], referred: Made) -> None:
        self._reader = BoundedReader(data, where)
        self._names = names
        self._referred = referred
        self._stack: list[Any] = []
        self._memo: dict[int, Any] = {}

    def run(self) -> Any:
        """What the program leaves."""
        reader = self._reader
        if bytes(reader.take(2, "the protocol")) != b"\x80\x02":
            reader.fail("the protocol", ascii(bytes(reader.view[:2])), "pickle protocol 2, which PyTorch writes", 0)
        view, size, operations = reader.view, reader.size, _OPERATIONS
        for _ in range(MAX_OPERATIONS):
            at = reader.offset
            if at == size:
                reader.need(1, "an operation")
            reader.offset = at + 1
            code = view[at]
            if code == 0x2E:
                return self._result()
            operation = operations.get(code)
            if operation is None:
                self.refuse(f"has the operation {code:#04x}, which no file of weights needs")
            operation(self)
        self.refuse(f"has more than {MAX_OPERATIONS} operations")

    def refuse(self, what: str) -> NoReturn:
        """Raise the `FileProblem` for what the program wants to do."""
        raise FileProblem(
            f"{self._reader.name}: at byte {max(0, self._reader.offset - 1)}, the pickle {what}. It is no file of weights alone, or it "
            "is made to run code; herd runs none. Take the model as safetensors or GGUF from a source that you trust."
        )

    def _result(self) -> Any:
        if len(self._stack) != 1:
            self.refuse(f"ends with {len(self._stack)} values; one is expected")
        if self._reader.remaining:
            self.refuse(f"is followed by {self._reader.remaining} bytes")
        return self._pop()

    def _pop(self) -> Any:
        if not self._stack or self._stack[-1] is _MARK:
            self.refuse("takes a value that is not there")
        return self._stack.pop()

    def _to_mark(self) -> list[Any]:
        """The values above the last mark, which are taken with it."""
        for at in range(len(self._stack) - 1, -1, -1):
            if self._stack[at] is _MARK:
                values = self._stack[at + 1 :]
                del self._stack[at:]
                return values
        self.refuse("takes values up to a mark that is not there")

    def _top(self, kind: type) -> Any:
        if not self._stack or type(self._stack[-1]) is not kind:
            self.refuse(f"fills a {kind.__name__} that is not there")
        return self._stack[-1]

    def _tuple(self, size: int) -> None:
        values = [self._pop() for _ in range(size)]
        self._stack.append(tuple(reversed(values)))

    def _remember(self, index: int) -> None:
        if not self._stack or self._stack[-1] is _MARK:
            self.refuse("remembers a value that is not there")
        self._memo[index] = self._stack[-1]

    def _recall(self, index: int) -> None:
        if index not in self._memo:
            self.refuse(f"recalls value {index}, which it has not remembered")
        self._stack.append(self._memo[index])

    def _number(self, code: str) -> int:
        return int(self._reader.scalar(code, "a number"))

    def _long(self) -> None:
        length = self._number("B")
        if length > 8:
            self.refuse(f"has a whole number of {length} bytes")
        self._stack.append(int.from_bytes(self._reader.take(length, "a whole number"), "little", signed=True))

    def _text(self) -> None:
        length = self._number("I")
        if length > MAX_TEXT_BYTES:
            self.refuse(f"has a text of {length} bytes; at most {MAX_TEXT_BYTES} are read")
        try:
            self._stack.append(str(self._reader.take(length, "a text"), "utf-8"))
        except UnicodeDecodeError:
            self.refuse("has a text that is not UTF-8")

    def _line(self) -> str:
        ahead = bytes(self._reader.view[self._reader.offset : self._reader.offset + MAX_NAME_BYTES])
        line, newline, _ = ahead.partition(b"\n")
        if not newline or not line.isascii():
            self.refuse(f"names {visible(ascii(line)[1:])}, which is no name of a class or function")
        self._reader.offset += len(line) + 1
        return line.decode()

    def _name(self) -> None:
        text = f"{self._line()} {self._line()}"
        if text not in self._names:
            self.refuse(f"asks for {visible(text.replace(' ', '.'))}, which is not on the list of what weights need")
        self._stack.append(Name(text, self._names[text]))

    def _call(self) -> None:
        arguments, function = self._pop(), self._pop()
        if type(function) is not Name or function.make is None or type(arguments) is not tuple:
            self.refuse(f"calls {described(function)} with {described(arguments)}")
        made = function.make(arguments)
        if made is None:
            kinds = ", ".join(described(each) for each in arguments[:8])
            self.refuse(f"calls {function.text.replace(' ', '.')} with arguments that make no tensor ({kinds})")
        self._stack.append(made)

    def _refer(self) -> None:
        reference = self._pop()
        made = self._referred(reference) if type(reference) is tuple else None
        if made is None:
            self.refuse(f"refers to {described(reference)} outside of itself; only ('storage', class, key, device, count) is known")
        self._stack.append(made)

    def _set(self, pairs: list[Any]) -> None:
        target = self._top(dict)
        if len(pairs) % 2:
            self.refuse("gives a key without a value")
        for key, value in zip(pairs[::2], pairs[1::2], strict=True):
            if type(key) is not str:
                self.refuse(f"has {described(key)} as a key; texts are expected")
            if key in target:
                self.refuse(f"has the key {visible(key)!r} twice")
            target[key] = value

    def _set_one(self) -> None:
        value, key = self._pop(), self._pop()
        self._set([key, value])

    def _extend(self, values: list[Any]) -> None:
        self._top(list).extend(values)

    def _state(self) -> None:
        """State beside the items: PyTorch keeps version numbers of modules there."""
        state = self._pop()
        target = self._stack[-1] if self._stack else None
        is_metadata = type(target) is dict and type(state) is dict and set(state) == {"_metadata"}
        if not is_metadata and type(target) is not Opaque:
            self.refuse(f"gives state to {described(target)}")


_PLAIN = (type(None), bool, int, str, tuple, list, dict)


def described(value: Any) -> str:
    """What a value is, for a message; its content is not shown, since it may refer to itself."""
    if type(value) is Name:
        return value.text.replace(" ", ".")
    if type(value) in (int, bool) or value is None:
        return repr(value)
    if type(value) is str:
        return repr(visible(value))
    return f"a {type(value).__name__}" if type(value) in _PLAIN else "an object"


def _pushes(value: Any) -> Callable[[Machine], None]:
    return lambda machine: machine._stack.append(value)


_OPERATIONS: dict[int, Callable[[Machine], None]] = {
    ord("("): _pushes(_MARK),
    ord(")"): _pushes(()),
    ord("N"): _pushes(None),
    0x88: _pushes(True),
    0x89: _pushes(False),
    ord("}"): lambda m: m._stack.append({}),
    ord("]"): lambda m: m._stack.append([]),
    ord("t"): lambda m: m._stack.append(tuple(m._to_mark())),
    0x85: lambda m: m._tuple(1),
    0x86: lambda m: m._tuple(2),
    0x87: lambda m: m._tuple(3),
    ord("J"): lambda m: m._stack.append(m._number("i")),
    ord("K"): lambda m: m._stack.append(m._number("B")),
    ord("M"): lambda m: m._stack.append(m._number("H")),
    0x8A: Machine._long,
    ord("X"): Machine._text,
    ord("q"): lambda m: m._remember(m._number("B")),
    ord("r"): lambda m: m._remember(m._number("I")),
    ord("h"): lambda m: m._recall(m._number("B")),
    ord("j"): lambda m: m._recall(m._number("I")),
    ord("c"): Machine._name,
    ord("R"): Machine._call,
    0x81: Machine._call,
    ord("Q"): Machine._refer,
    ord("s"): Machine._set_one,
    ord("u"): lambda m: m._set(m._to_mark()),
    ord("a"): lambda m: m._extend([m._pop()]),
    ord("e"): lambda m: m._extend(m._to_mark()),
    ord("b"): Machine._state,
}
