"""The main of an engine's process: `python -m herd.api.serving DESCRIPTOR`, started by `providers.supervisor` with one end of a socket.

The first frame says what to load; then `Ready` (or `Broken`) goes back, and the worker answers until the socket closes. The process
dies with whoever started it, also if that was killed: its socket closes, and where the system can say so it is told. It is not ended by
Ctrl-C or by SIGTERM: those are for its parent, which lets running answers finish first.
"""

from __future__ import annotations

import ctypes
import gc
import os
import signal
import socket
import sys
import threading
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING

from herd.errors import EngineLost, HerdError, UsageError
from herd.providers.frames import Begin, Broken, FrameReader, Problem, to_bytes

if TYPE_CHECKING:
    from herd.api.model import Model
    from herd.providers.base import ModelFacts
    from herd.text.formats import ChatFormat

SWITCH_S = 0.0005
"""How long another thread may keep the interpreter while a step's results wait to be read."""
LAST_S = 5.0
"""A step that is in progress when the socket closes may take so long."""
_PR_SET_PDEATHSIG = 1


def main(arguments: list[str]) -> int:
    """Returns the exit status: 0 when the socket was closed, the error's own when the model could not be loaded, or can answer no more."""
    if len(arguments) != 1 or not arguments[0].isdecimal():
        print("This is the engine's process of herd serve, which starts it; it is no command of its own.", file=sys.stderr)
        return 2
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    die_with_parent()
    sys.setswitchinterval(SWITCH_S)
    connection = socket.socket(fileno=int(arguments[0]))
    begin = _first_frame(connection)
    if begin is None:
        return 0
    try:
        model = _load(begin)
    except HerdError as problem:
        return _broken(connection, problem)
    except Exception as problem:
        _broken(connection, problem)
        raise
    from herd.providers.worker import Worker

    gc.collect()
    gc.freeze()  # what was loaded stays: the cycle collector need not walk it again in the middle of answers
    status = 0
    with model:
        try:
            Worker(model.provider, served_facts(model), connection).run()
        except EngineLost as problem:
            print(f"The engine ends: {problem}", file=sys.stderr, flush=True)
            status = problem.exit_code
        threading.Timer(LAST_S, os._exit, (status,)).start()
    os._exit(status)  # nothing is left to be written, and no thread is worth waiting for


def die_with_parent() -> None:
    """Has the system kill this process when its parent ends, on Linux. Elsewhere the closed socket has to do."""
    if not sys.platform.startswith("linux"):
        return
    parent = os.getppid()
    try:
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    except (OSError, AttributeError):
        return
    if os.getppid() != parent:
        os._exit(0)


def served_facts(model: Model) -> ModelFacts:
    """All that a server tells of a model. Finds out how it reads conversations, which takes a moment."""
    from herd.models.architecture import seeing
    from herd.text.formats.guard import Guard

    provider, config = model.provider, model.config
    facts = provider.facts
    return replace(
        facts,
        has_tokenizer=model.has_tokenizer,
        sees_pictures=seeing(config) is not None,
        takes_tools=_takes_tools(provider.chat_format),
        is_guard=isinstance(provider.chat_format, Guard),
        is_classifier=getattr(config, "labels", None) is not None,
        num_parameters=sum(_product(spec.shape) for spec in model.checkpoint.specs),
        weight_bytes=model.checkpoint.num_bytes,
        sampling={name: float(value) for name, value in model.recommended_sampling().items()},
        sources={**facts.sources, "layout": _FORMATS.get(model.checkpoint.layout, model.checkpoint.layout), "dtype": _dtype(model)},
    )


_FORMATS = {"huggingface": "safetensors"}


def _dtype(model: Model) -> str:
    """The format that most of the matrices' elements are stored in: Q4_1, BF16."""
    elements: dict[str, int] = {}
    for spec in model.checkpoint.specs:
        if len(spec.shape) == 2:
            name = model.checkpoint.leaf(spec.name).dtype.name
            elements[name] = elements.get(name, 0) + _product(spec.shape)
    return max(elements, key=lambda name: elements[name], default="").upper()


def _takes_tools(chat_format: ChatFormat | None) -> bool:
    """Whether conversations of this format may offer tools: found out with one."""
    from herd.text.messages import Message, Role
    from herd.text.tools import read_tools

    if chat_format is None:
        return False
    try:
        chat_format.render([Message(Role.USER, "?")], tools=read_tools([{"type": "function", "function": {"name": "look"}}]))
    except HerdError:
        return False
    return True


def _product(shape: tuple[int, ...]) -> int:
    count = 1
    for size in shape:
        count *= size
    return count


def _first_frame(connection: socket.socket) -> Begin | None:
    """What to do; None if the other side is gone before it said so. Frames after it are left for the worker."""
    reader = FrameReader()
    while data := connection.recv(1):
        for frame in reader.feed(data):
            if not isinstance(frame, Begin):
                raise UsageError(f"The first frame is {type(frame).__name__}; expected Begin.")
            return frame
    return None


def _load(begin: Begin) -> Model:
    from herd.api.loading import load

    model = load(begin.model, **begin.options)
    try:
        for name, path in begin.adapters.items():
            model.add_adapter(name, path)
    except BaseException:
        model.close()
        raise
    return model


def _broken(connection: socket.socket, problem: Exception) -> int:
    with suppress(OSError):  # nobody is there to be told
        connection.sendall(to_bytes(Broken(Problem.of(problem))))
    connection.close()
    return problem.exit_code if isinstance(problem, HerdError) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
